// The words of a command line, one a line of the input. Held to: they are taken, or refused with a sentence and a usage that can be
// shown; no word is lost or changed; times and places are what the words say.
#include "fuzz.hpp"

#define main s3cache_main
#include "../../examples/s3cache_cli.cpp"
#undef main

namespace fuzz_arguments {

using fuzz::require;

inline std::size_t bytes_in(const Arguments& arguments) {
    std::size_t bytes = 0;
    for (const std::string& word : arguments.words) bytes += word.size();
    for (const std::string& word : arguments.command) bytes += word.size();
    for (const auto& [name, values] : arguments.options) {
        for (const std::string& value : values) bytes += value.size();
    }
    return bytes;
}

template <class F>
bool taken(F&& work) {
    try {
        work();
        return true;
    } catch (const WrongUsage& wrong) {
        const std::string shown = printable(wrong.what());
        require(!shown.empty() && !fuzz::has_control(shown), "wrong usage is told in words");
    }
    return false;
}

FUZZ_TARGET(arguments) {
    std::vector<std::string> words;
    for (std::string_view word : fuzz::pieces(input, "\n")) words.emplace_back(word);
    Arguments arguments;
    if (taken([&] { parse(arguments, words); })) {
        std::size_t plain = 0;
        bool is_command = false;
        for (const std::string& word : words) {
            is_command = is_command || word == "--";
            if (is_command || word.size() < 2 || word[0] != '-') plain += word == "--" ? 0 : word.size();
        }
        require(bytes_in(arguments) <= input.size(), "nothing is made up");
        for (const auto& [name, values] : arguments.options) {
            require(name.size() > 1 && name[0] == '-', "an option has a name");
            if (!values.empty()) plain = 0;  // words may be their values
        }
        require(plain <= bytes_in(arguments), "no word is lost");
    }
    const Command* command = command_named(arguments.word(0));
    require(!usage_of(command).empty(), "there is a usage");
    for (const std::string& word : words) {
        double seconds = 0;
        if (taken([&] { seconds = duration(word).count(); })) require(seconds > 0, "a time is positive");
        require(!fuzz::has_control(printable(word)), "what is printed moves no cursor");
    }
}

}  // namespace fuzz_arguments
