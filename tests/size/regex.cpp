// The yardstick of the budgets' compile times: a short program with a standard header that is known to be slow.
#include <cstdio>
#include <regex>
#include <string>

int main(int argc, char** argv) {
    const std::string text = argc > 1 ? argv[1] : "key=value";
    std::smatch match;
    if (!std::regex_match(text, match, std::regex("(\\w+)=(.*)"))) return 1;
    std::printf("%s is %s\n", match[1].str().c_str(), match[2].str().c_str());
}
