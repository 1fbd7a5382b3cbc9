// Runs every vector of tests/vectors and of the folder that S3CACHE_VECTORS names through the handler of its format.
#include "vectors.hpp"

#include "catch.hpp"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <utility>

namespace vectors {
namespace {

std::vector<const Handler*>& handlers() {
    static std::vector<const Handler*> all;
    return all;
}

int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    throw std::runtime_error("bad percent escape");
}

// The decoders are the tests' own, so that a fault in the library's cannot hide itself here.
std::string from_percent(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        if (text.size() - i < 3) throw std::runtime_error("cut percent escape");
        out += static_cast<char>(hex_value(text[i + 1]) * 16 + hex_value(text[i + 2]));
        i += 2;
    }
    return out;
}

std::string from_base64(std::string_view text) {
    static const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    unsigned bits = 0;
    unsigned count = 0;
    for (char c : text.substr(0, text.find('='))) {
        const std::size_t value = alphabet.find(c);
        if (value == std::string::npos) throw std::runtime_error("bad base64");
        bits = (bits << 6 | static_cast<unsigned>(value)) & 0xFFFFFFU;
        count += 6;
        if (count >= 8) out += static_cast<char>(bits >> (count -= 8) & 0xFFU);
    }
    return out;
}

std::string decode(std::string_view field, std::string_view value) {
    if (value == "-") return {};
    const std::string_view suffix = "base64";
    const bool is_base64 = field.size() >= suffix.size() && field.substr(field.size() - suffix.size()) == suffix;
    return is_base64 ? from_base64(value) : from_percent(value);
}

Field parse_field(std::string_view line) {
    std::size_t end = line.find(' ');
    if (end == std::string_view::npos || end == 0) throw std::runtime_error("a field needs a name and a value");
    Field field{std::string(line.substr(0, end)), {}};
    while (end != std::string_view::npos) {
        line.remove_prefix(end + 1);
        end = line.find(' ');
        if (line.empty() || end == 0) throw std::runtime_error("empty value; write -");
        field.values.push_back(decode(field.name, line.substr(0, end)));
    }
    return field;
}

// One line at a time; `open` says whether a case has begun and not ended.
void take_line(std::vector<Case>& cases, bool& open, const std::string& file, std::string_view line) {
    if (!line.empty() && line[0] == '#') return;
    if (line.empty()) {
        open = false;
    } else if (line.substr(0, 5) == "case ") {
        if (open) throw std::runtime_error("a case inside a case");
        cases.push_back(Case{file, std::string(line.substr(5)), {}});
        open = true;
    } else {
        if (!open) throw std::runtime_error("a field outside a case");
        cases.back().fields.push_back(parse_field(line));
    }
}

bool knows_all_fields(const Handler& handler, const Case& c) {
    return std::all_of(c.fields.begin(), c.fields.end(), [&](const Field& field) {
        return std::find(handler.fields.begin(), handler.fields.end(), field.name) != handler.fields.end();
    });
}

const Handler* by_fields(const std::vector<Case>& cases) {
    for (const Handler* handler : handlers()) {
        if (std::all_of(cases.begin(), cases.end(), [&](const Case& c) { return knows_all_fields(*handler, c); })) {
            return handler;
        }
    }
    return nullptr;
}

// Exact stem, else the longest stem that the file's contains (json_more.vec), else whoever knows every field.
const Handler* find_handler(const std::string& stem, const std::vector<Case>& cases) {
    const Handler* best = nullptr;
    for (const Handler* handler : handlers()) {
        if (handler->stem == stem) return handler;
        if (stem.find(handler->stem) == std::string::npos) continue;
        if (best == nullptr || handler->stem.size() > best->stem.size()) best = handler;
    }
    return best != nullptr ? best : by_fields(cases);
}

std::vector<std::filesystem::path> vec_files(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() == ".vec") files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
}

std::filesystem::path own_folder() {
#ifdef S3CACHE_TEST_DIR
    return std::filesystem::path(S3CACHE_TEST_DIR) / "vectors";
#else
    const char* folder = std::getenv("S3CACHE_TEST_DIR");
    return (folder != nullptr ? std::filesystem::path(folder) : std::filesystem::path(__FILE__).parent_path()) /
           "vectors";
#endif
}

// A failed REQUIRE has been recorded by the time it throws; catching it here lets the other cases run.
void run_case(const Handler& handler, const Case& c) {
    INFO("vector " << c.file << ": " << c.name);
    if (!knows_all_fields(handler, c)) {
        FAIL_CHECK("a field that the handler " << handler.stem << " does not know");
        return;
    }
    try {
        handler.check(c);
    } catch (const std::exception& error) {
        FAIL_CHECK("threw " << error.what());
    } catch (...) {  // Catch's own, which is no std::exception
    }
}

void run_file(const std::filesystem::path& path, std::map<const Handler*, std::size_t>& seen) {
    INFO("vectors " << path.string());
    const std::vector<Case> cases = load(path.string());
    CHECK_FALSE(cases.empty());
    const Handler* handler = find_handler(path.stem().string(), cases);
    if (handler == nullptr) {
        FAIL_CHECK("no handler knows this file");
        return;
    }
    for (const Case& c : cases) run_case(*handler, c);
    seen[handler] += cases.size();
}

}  // namespace

Handler::Handler(std::string handler_stem, std::vector<std::string> known, Check function)
    : stem(std::move(handler_stem)), fields(std::move(known)), check(function) {
    handlers().push_back(this);
}

bool Case::has(std::string_view field) const {
    return std::any_of(fields.begin(), fields.end(), [&](const Field& f) { return f.name == field; });
}

const std::string& Case::get(std::string_view field) const {
    for (const Field& f : fields) {
        if (f.name == field) return f.values.front();
    }
    throw std::runtime_error("the case has no field " + std::string(field));
}

std::string Case::get_or(std::string_view field, std::string_view fallback) const {
    return has(field) ? get(field) : std::string(fallback);
}

std::vector<std::string> Case::all(std::string_view field) const {
    std::vector<std::string> out;
    for (const Field& f : fields) {
        if (f.name == field) out.push_back(f.values.front());
    }
    return out;
}

std::vector<std::vector<std::string>> Case::rows(std::string_view field) const {
    std::vector<std::vector<std::string>> out;
    for (const Field& f : fields) {
        if (f.name == field) out.push_back(f.values);
    }
    return out;
}

bool Case::yes(std::string_view field) const {
    const std::string& answer = get(field);
    if (answer != "yes" && answer != "no") throw std::runtime_error(std::string(field) + " is neither yes nor no");
    return answer == "yes";
}

std::vector<Case> load(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error("cannot open " + path);
    const std::string file = std::filesystem::path(path).filename().string();
    std::vector<Case> cases;
    bool open = false;
    std::size_t number = 0;
    for (std::string line; std::getline(in, line);) {
        ++number;
        try {
            take_line(cases, open, file, line);
        } catch (const std::exception& error) {
            throw std::runtime_error(file + " line " + std::to_string(number) + ": " + error.what());
        }
    }
    return cases;
}

}  // namespace vectors

TEST_CASE("vectors: every case of every file") {
    std::map<const vectors::Handler*, std::size_t> seen;
    for (const auto& path : vectors::vec_files(vectors::own_folder())) vectors::run_file(path, seen);
    const char* shared = std::getenv("S3CACHE_VECTORS");
    if (shared != nullptr && *shared != '\0') {
        for (const auto& path : vectors::vec_files(shared)) vectors::run_file(path, seen);
    }
    for (const vectors::Handler* handler : vectors::handlers()) {
        INFO("handler " << handler->stem);
        CHECK(seen[handler] > 0);
    }
}
