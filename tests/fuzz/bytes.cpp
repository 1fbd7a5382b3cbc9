// Percent-encoding, base64, hex and numbers: there and back again, and nothing but the one spelling is taken.
#include "fuzz.hpp"

namespace fuzz_bytes {

using fuzz::require;
namespace bytes = s3cache::detail::bytes;
namespace sigv4 = s3cache::detail::sigv4;

inline void check_percent(std::string_view input) {
    for (bool keep_slash : {false, true}) {
        std::string encoded = "x";
        bytes::append_percent(encoded, input, keep_slash);
        encoded.erase(0, 1);
        require(encoded.size() <= input.size() * 3, "three bytes for one at most");
        for (char c : encoded) require(fuzz::is_unreserved(c) || c == '%' || (keep_slash && c == '/'), "safe in a URL");
        require(bytes::unpercent(encoded, false) == std::string(input), "percent there and back");
        require(bytes::unpercent(encoded, true) == std::string(input), "no plus is left to be a blank");
    }
    const auto decoded = bytes::unpercent(input, false);
    const bool has_percent = input.find('%') != std::string_view::npos;
    require(has_percent || (decoded && *decoded == input), "without escapes nothing changes");
    require(decoded.has_value() == bytes::unpercent(input, true).has_value(), "a plus is never the trouble");
    if (!decoded) return;
    std::size_t escapes = 0;
    for (char c : input) escapes += c == '%' ? 1U : 0U;
    require(decoded->size() + 2 * escapes == input.size(), "an escape is three bytes for one");
}

inline void check_base64(std::string_view input) {
    const std::string encoded = bytes::base64(input);
    require(encoded.size() == (input.size() + 2) / 3 * 4, "four letters for three bytes");
    require(!s3cache::detail::entry::is_crc32c(input) || input.size() == 8, "a checksum has eight letters");
    const std::string hex = bytes::hex(input);
    require(hex.size() == input.size() * 2 && hex == bytes::lower(hex), "two lower-case digits a byte");
    for (std::size_t i = 0; i < input.size(); ++i) {
        require(bytes::hex_value(hex[2 * i]) * 16 + bytes::hex_value(hex[2 * i + 1]) == bytes::octet(input[i]),
                "hex reads back");
    }
}

inline void check_number(std::string_view input) {
    const auto number = bytes::to_u64(input);
    std::string_view digits = input;
    while (digits.size() > 1 && digits.front() == '0') digits.remove_prefix(1);
    bool all_digits = !input.empty();
    for (char c : input) all_digits = all_digits && c >= '0' && c <= '9';
    const std::string_view most = "18446744073709551615";
    const bool fits = all_digits && (digits.size() < most.size() || (digits.size() == most.size() && digits <= most));
    require(number.has_value() == fits, "digits that fit, and nothing else");
    if (!number) return;
    require(bytes::number(*number) == digits, "a number is written as it was read");
}

inline void check_query(std::string_view input) {
    bytes::Pairs pairs;
    for (std::string_view pair : fuzz::pieces(input, "&")) {
        const std::size_t equals = (std::min)(pair.find('='), pair.size());
        pairs.emplace_back(pair.substr(0, equals), pair.substr((std::min)(equals + 1, pair.size())));
    }
    const std::string query = sigv4::canonical_query(pairs);
    std::string_view before;
    std::size_t at = 0;
    for (std::string_view pair : fuzz::pieces(query, "&")) {
        const std::size_t equals = pair.find('=');
        require(equals != std::string_view::npos && pair.find('=', equals + 1) == std::string_view::npos, "name=value");
        const std::string_view name = pair.substr(0, equals);
        require(at == 0 || before <= name, "sorted by encoded name");
        before = name;
        const auto raw_name = bytes::unpercent(name, false);
        const auto raw_value = bytes::unpercent(pair.substr(equals + 1), false);
        bool known = false;
        for (const auto& [given, value] : pairs)
            known = known || (raw_name == std::string(given) && raw_value == std::string(value));
        require(known, "every pair was given");
        ++at;
    }
    require(at == pairs.size(), "none is lost");
}

FUZZ_TARGET(bytes) {
    check_percent(input);
    check_base64(input);
    check_number(input);
    check_query(input.substr(0, 300));
    const std::string_view trimmed = bytes::trim(input);
    require(bytes::trim(trimmed) == trimmed && trimmed.size() <= input.size(), "trimmed is trimmed");
    require(bytes::iequal(bytes::lower(input), input), "case does not count");
    const std::string shown = bytes::sanitize(input);
    require(shown.size() <= bytes::sanitized_bytes_max + 3 && s3cache::detail::utf8::valid(shown), "short, and UTF-8");
    for (char c : shown) require(bytes::octet(c) >= 0x20 && c != 0x7F, "one line without control bytes");
    if (input.size() <= 100 && input.find_first_of(" \t\r\n\"'`<>@/") == std::string_view::npos) {
        const std::string url = "'http://" + std::string(input) + "@host'";
        require(bytes::sanitize(url) == "'http://******@host'", "user info is hidden");
    }
    std::string secret(input);
    bytes::wipe(secret);
    require(secret.empty(), "wiped is empty");
}

}  // namespace fuzz_bytes
