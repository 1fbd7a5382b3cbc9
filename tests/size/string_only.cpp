// The yardstick of compile times: what one standard header that everybody includes costs.
#include <string>
int main() {}
