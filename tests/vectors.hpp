// Test vectors: text files of cases, one handler per format.
//
// `#` starts a comment line, `case NAME` a case; then one `field VALUE…` a line, values separated by one space; a
// blank line ends the case. Values are percent-encoded bytes, a lone `-` is the empty value, fields named `…base64`
// hold base64.
//
// A section's test file registers its handler:
//
//     inline void check_utf8(const vectors::Case& c) { CHECK(utf8::valid(c.get("data_base64")) == c.yes("utf8")); }
//     inline const vectors::Handler utf8_vectors{"utf8", {"data_base64", "utf8"}, check_utf8};
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace vectors {

struct Field {
    std::string name;
    std::vector<std::string> values;  // decoded
};

struct Case {
    std::string file;
    std::string name;
    std::vector<Field> fields;  // in the order of the file

    bool has(std::string_view field) const;
    // The first value of the first field of that name; a case without it fails its test.
    const std::string& get(std::string_view field) const;
    std::string get_or(std::string_view field, std::string_view fallback) const;
    // The first values of every field of that name, in order.
    std::vector<std::string> all(std::string_view field) const;
    // Every field of that name with all its values, for fields that hold pairs.
    std::vector<std::vector<std::string>> rows(std::string_view field) const;
    // A field that says yes or no; anything else fails the test.
    bool yes(std::string_view field) const;
};

using Check = void (*)(const Case&);

// Registers itself; meant to live as long as the program. A field that isn't listed makes the case fail.
struct Handler {
    Handler(std::string stem, std::vector<std::string> fields, Check check);
    std::string stem;
    std::vector<std::string> fields;
    Check check;
};

// Strict: a malformed line throws std::runtime_error with file and line number.
std::vector<Case> load(const std::string& path);

}  // namespace vectors
