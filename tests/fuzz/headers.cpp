// Header lines, one a line of the input, and what is read from them. Held to: the block keeps what came within its bounds,
// names are found whatever their case, and the facts of an entry are in bounds that callers count on.
#include "fuzz.hpp"

namespace fuzz_headers {

using fuzz::require;
namespace http = s3cache::detail::http;
namespace entry = s3cache::detail::entry;
namespace bytes = s3cache::detail::bytes;

using Lines = std::vector<std::pair<std::string, std::string>>;

// What the block should hold, kept the slow way.
inline bool add(Lines& lines, std::size_t& total, std::string_view line) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0 || bytes::is_blank(line[colon - 1])) return true;
    if (lines.size() == http::header_lines_max || total + line.size() > http::header_bytes_max) return false;
    lines.emplace_back(line.substr(0, colon), bytes::trim(line.substr(colon + 1)));
    total += lines.back().first.size() + lines.back().second.size();
    return true;
}

inline std::string_view first_of(const Lines& lines, std::string_view name) {
    for (const auto& [known, value] : lines) {
        if (bytes::iequal(known, name)) return value;
    }
    return {};
}

inline void check_found(const http::Headers& headers, const Lines& lines) {
    std::size_t at = 0;
    headers.each([&](std::string_view name, std::string_view value) {
        require(at < lines.size() && name == lines[at].first && value == lines[at].second, "lines come back in order");
        ++at;
    });
    require(at == lines.size(), "all of them");
    for (const auto& line : lines) {
        const std::string& name = line.first;
        std::string other = bytes::lower(name);
        for (char& c : other) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
        const std::string_view first = first_of(lines, name);
        require(headers.get(other) == first && headers.get(name) == first, "the first of a name is found");
        for (const std::string& near : {name + "x", name.substr(1)})
            require(headers.get(near) == first_of(lines, near), "and not for a name that only begins or ends like it");
    }
}

inline std::size_t count_of(const Lines& lines, std::string_view name) {
    std::size_t count = 0;
    for (const auto& line : lines) count += bytes::iequal(line.first, name) ? 1U : 0U;
    return count;
}

inline void check_facts(const entry::Facts& facts, const Lines& lines) {
    require(facts.info.expires_at.has_value() == (facts.expires_at < entry::never), "an expiry has a time");
    require(facts.info.size == facts.length.value_or(0), "one length");
    if (facts.info.expires_at) {
        const double shown = std::chrono::duration<double>(facts.info.expires_at->time_since_epoch()).count();
        const double bound = 4e9;  // years that the narrowest clock can count
        if (facts.expires_at > -bound && facts.expires_at < bound) {
            require(shown > facts.expires_at - 1 && shown < facts.expires_at + 1, "a time as the header says");
        }
        require(!facts.expired(-std::numeric_limits<double>::infinity()) || facts.expires_at < 0 || facts.lease > 0,
                "not expired before time");
    }
    entry::Facts unused;
    for (const auto& [name, value] : facts.info.metadata) {
        require(!entry::read_own(unused, name, {}) && name == bytes::lower(name) && !name.empty(),
                "metadata is the user's own");
        require(count_of(lines, "x-amz-meta-" + name) > 0, "and came from a line");
        static_cast<void>(value);
    }
    for (std::string_view name : {"x-amz-meta-expires_at", "x-amz-meta-expires-at"}) {
        if (count_of(lines, name) > 0 && facts.expires_at == entry::never) {
            const auto number = s3cache::detail::dates::parse_float(first_of(lines, name));
            require(number && *number > (std::numeric_limits<double>::max)(), "only infinity is never");
        }
    }
    if (facts.is_own_sum && count_of(lines, "x-amz-meta-crc32c") == 1)
        require(facts.sum == first_of(lines, "x-amz-meta-crc32c"), "a checksum is the text's own");
}

FUZZ_TARGET(headers) {
    const auto given = fuzz::pieces(input, "\n");
    http::Headers headers;
    Lines lines;
    std::size_t total = 0;
    for (std::string_view line : given) {
        const bool fits = add(lines, total, line);
        require(headers.add(std::string(line) + "\r\n") == fits || total + line.size() + 2 > http::header_bytes_max,
                "a line fits, or the answer is refused");
        if (!fits) break;
    }
    if (total + 2 * given.size() + input.size() > http::header_bytes_max) return;  // the line ends count too
    check_found(headers, lines);
    check_facts(entry::read(headers), lines);
    headers.clear();
    check_found(headers, {});
    for (const auto& line : lines) require(headers.get(line.first).empty(), "what is cleared is not found");
}

}  // namespace fuzz_headers
