// Configuration files. An input is a config file and a credentials file, with a line "=====" between them; what follows is
// for target credentials. Held to: what was read and is written out plainly reads back the same, every outcome is a file
// or one line that names a line, and every profile that is written down is found.
#include "fuzz.hpp"

namespace fuzz_ini {

using fuzz::require;
namespace ini = s3cache::detail::ini;
namespace bytes = s3cache::detail::bytes;
namespace utf8 = s3cache::detail::utf8;

inline std::size_t count_lines(std::string_view text) {
    std::size_t lines = 1;
    for (char c : text) lines += c == '\n' || c == '\r' ? 1U : 0U;
    return lines;
}

inline std::string indented(std::string_view text) {
    std::string out;
    for (char c : text) {
        out += c;
        if (c == '\n') out += "    ";
    }
    return out;
}

// False where the plain form cannot say it: a continuation that would be taken for a comment, or a name for a section.
inline bool append_plain(std::string& out, const std::string& name, const std::string& text) {
    if (name.front() == '[' || name.front() == '#' || name.front() == ';') return false;
    out += name + " = " + indented(text) + "\n";
    return true;
}

inline bool same(const ini::Section& a, const ini::Section& b) { return a.name == b.name && a.settings == b.settings; }

inline void check_section(const ini::Section& section) {
    require(!section.name.empty() && section.name != "DEFAULT" && utf8::valid(section.name), "a section has a name");
    for (const auto& [name, text] : section.settings) {
        require(!name.empty() && bytes::lower(name) == name && bytes::trim(name) == name,
                "names are lower case and stripped");
        require(name.find_first_of("=:\r\n") == std::string::npos, "a name ends at the delimiter");
        require(section.find(name) == &text, "a name comes once");
        const bool is_block = bytes::starts_with(text, "\n");
        require(bytes::trim(text) == (is_block ? bytes::trim(text) : text) && utf8::valid(text), "stripped text");
        for (std::string_view rest = is_block ? std::string_view(text) : ""; !rest.empty();) {
            const std::string_view line = bytes::cut(rest, '\n');
            require(line.empty() || line.find('=') != std::string_view::npos, "a block is of settings");
        }
    }
}

inline void check_problem(std::string_view text, const std::string& problem) {
    require(bytes::starts_with(problem, "file:") && !fuzz::has_control(problem), "a message is one line and names one");
    const std::size_t end = problem.find(':', 5);
    require(end != std::string::npos, "a message names a line");
    const auto line = bytes::to_u64(std::string_view(problem).substr(5, end - 5));
    require(line && *line <= count_lines(text), "of the file");
}

inline void check_file(std::string_view text) {
    const auto parsed = ini::Parser().parse(text, "file");
    if (!parsed) return check_problem(text, parsed.error().what());
    std::string plain;
    bool can_say = true;
    for (const ini::Section& section : *parsed) {
        check_section(section);
        require(ini::find_profile({}, *parsed, section.name).credentials != nullptr, "a profile is found");
        plain += "[" + section.name + "]\n";
        can_say = can_say && section.name.find_first_of("\r\n") == std::string::npos;
        for (const auto& [name, value] : section.settings) can_say = can_say && append_plain(plain, name, value);
    }
    if (!can_say) return;
    const auto again = ini::Parser().parse(plain, "file");
    require(again && again->size() == parsed->size(), "written plainly, the same sections");
    require(std::equal(again->begin(), again->end(), parsed->begin(), same),
            "of the same names, with the same settings");
}

inline void check_words(std::string_view text) {
    const auto words = ini::split_words(text);
    std::string plain;
    for (const std::string& word : words) {
        plain += '"';
        for (char c : word) plain.append(c == '"' || c == '\\' ? "\\" : "").append(1, c);
        plain += "\" ";
    }
    require(ini::split_words(plain) == words, "quoted words split as they were");
}

FUZZ_TARGET(ini) {
    const auto parts = fuzz::pieces(input, "\n=====\n");
    check_file(fuzz::piece(parts, 0));
    check_file(fuzz::piece(parts, 1));
    check_words(input.substr(0, input.find('\n')));
}

}  // namespace fuzz_ini
