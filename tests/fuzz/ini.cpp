// Configuration files. An input is a config file, a credentials file and an environment (NAME=VALUE a line), with lines
// "=====" between them. Held to: what was read and is written out plainly reads back the same, every outcome is one or the
// other, and no secret stands in a message.
#include "fuzz.hpp"

namespace fuzz_ini {

using fuzz::require;
namespace ini = s3cache::detail::ini;
namespace bytes = s3cache::detail::bytes;
namespace utf8 = s3cache::detail::utf8;

// Shorter values may well stand in a message by chance.
constexpr std::size_t secret_bytes_min = 12;

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
inline bool append_plain(std::string& out, const std::string& name, const ini::Entry& entry) {
    if (name.front() == '[' || name.front() == '#' || name.front() == ';') return false;
    out += name + " = " + indented(entry.text) + "\n";
    for (const auto& [inner, value] : entry.block) {
        if (inner.empty() || inner.front() == '#' || inner.front() == ';') return false;
        out += "    " + inner + " = " + value + "\n";
    }
    return true;
}

inline bool same(const ini::Section& a, const ini::Section& b) {
    if (a.size() != b.size()) return false;
    for (auto x = a.begin(), y = b.begin(); x != a.end(); ++x, ++y) {
        if (x->first != y->first || x->second.text != y->second.text || x->second.block != y->second.block)
            return false;
    }
    return true;
}

inline void check_section(const ini::NamedSection& section) {
    require(!section.name.empty() && section.name != "DEFAULT" && utf8::valid(section.name), "a section has a name");
    for (const auto& [name, entry] : section.entries) {
        require(!name.empty() && bytes::lower(name) == name && ini::strip(name) == name,
                "names are lower case and stripped");
        require(name.find_first_of("=:\r\n") == std::string::npos, "a name ends at the delimiter");
        require(ini::strip(entry.text) == entry.text && utf8::valid(entry.text), "values are stripped text");
        require(entry.block.empty() || entry.text.empty(), "a text or a block");
        require(entry.line > 0, "a setting has a line");
        for (const auto& [inner, value] : entry.block) {
            require(ini::strip(inner) == inner && ini::strip(value) == value, "blocks are stripped too");
            require((inner + value).find('\n') == std::string::npos, "one line each");
        }
    }
}

inline void check_file(std::string_view text) {
    const ini::Parsed parsed = ini::parse(text);
    require(parsed.file.has_value() == parsed.message.empty(), "a file or a message");
    if (!parsed.file) {
        require(parsed.line <= count_lines(text), "a message names a line of the file");
        return;
    }
    std::string plain;
    bool can_say = true;
    for (const ini::NamedSection& section : *parsed.file) {
        check_section(section);
        plain += "[" + section.name + "]\n";
        can_say = can_say && section.name.find_first_of("\r\n") == std::string::npos;
        for (const auto& [name, entry] : section.entries) can_say = can_say && append_plain(plain, name, entry);
    }
    if (!can_say) return;
    const ini::Parsed again = ini::parse(plain);
    require(again.file && again.file->size() == parsed.file->size(), "written plainly, the same sections");
    for (std::size_t i = 0; i < again.file->size(); ++i) {
        require((*again.file)[i].name == (*parsed.file)[i].name, "of the same names");
        require(same((*again.file)[i].entries, (*parsed.file)[i].entries), "with the same settings");
    }
}

inline void check_words(std::string_view text) {
    const auto words = ini::split_words(text);
    if (!words) return;
    std::string plain;
    for (const std::string& word : *words) {
        plain += '"';
        for (char c : word) plain.append(c == '"' || c == '\\' ? "\\" : "").append(1, c);
        plain += "\" ";
    }
    require(ini::split_words(plain) == words, "quoted words split as they were");
}

inline ini::Environment environment_of(std::string_view text) {
    const std::string lines(text);
    return [lines](const char* name) -> std::optional<std::string> {
        const std::string wanted = std::string(name) + "=";
        for (std::string_view line : fuzz::pieces(lines, "\n")) {
            if (bytes::starts_with(line, wanted)) return std::string(line.substr(wanted.size()));
        }
        return std::nullopt;
    };
}

inline void check_message(const std::optional<ini::Problem>& problem, const ini::Resolved& resolved) {
    if (!problem) return;
    require(!problem->message.empty() && !problem->where.empty(), "a problem says what and where");
    const std::string& secret = resolved.source.keys.secret_key;
    if (secret.size() < secret_bytes_min) return;
    // A name that was chosen to equal the secret may be shown, so only a text of its own counts.
    require(problem->message.find(secret) == std::string::npos || resolved.profile.find(secret) != std::string::npos ||
                problem->message.find("source_profile") != std::string::npos,
            "no secret in a message");
}

inline void check_resolve(ini::Inputs inputs) {
    const ini::Outcome outcome = ini::resolve(inputs);
    require(outcome.resolved.has_value() != outcome.problem.has_value(), "resolved or a problem");
    if (!outcome.resolved) {
        require(!outcome.problem->message.empty() && !outcome.problem->where.empty(), "a problem says what and where");
        return;
    }
    const ini::Resolved& got = *outcome.resolved;
    check_message(got.credentials_problem, got);
    require(got.roles.empty() || got.method == ini::Method::role, "roles are assumed, or there are none");
    for (std::size_t i = 0; i < got.roles.size(); ++i) {
        for (std::size_t j = 0; j + 1 < i; ++j)
            require(got.roles[i].profile != got.roles[j].profile, "no profile twice");
    }
    if (got.method == ini::Method::environment && !got.credentials_problem) {
        require(!got.source.keys.access_key.empty() && !got.source.keys.secret_key.empty(), "both keys or none");
        require(inputs.profile.empty(), "a profile named in code passes the environment over");
    }
    const auto process_is_set = !got.source.process.empty();
    require(!process_is_set || got.source.method == ini::Method::process, "a process runs only where it is the source");
}

FUZZ_TARGET(ini) {
    const auto parts = fuzz::pieces(input, "\n=====\n");
    ini::Inputs inputs;
    inputs.config = fuzz::piece(parts, 0);
    inputs.credentials = fuzz::piece(parts, 1);
    inputs.environment = environment_of(fuzz::piece(parts, 2));
    check_file(inputs.config);
    check_file(inputs.credentials);
    check_words(inputs.config.substr(0, inputs.config.find('\n')));
    check_resolve(inputs);
    inputs.profile = "dev";
    check_resolve(inputs);
}

}  // namespace fuzz_ini
