// Two versions of the header at work in one program, neither of which knows of the other.
int use_old();
int use_new();

int main() { return use_old() + use_new(); }
