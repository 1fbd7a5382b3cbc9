// UTF-8. Held to a reference that decodes bit by bit and judges the number it gets.
#include "fuzz.hpp"

namespace fuzz_utf8 {

using fuzz::require;
namespace utf8 = s3cache::detail::utf8;
namespace bytes = s3cache::detail::bytes;

// Where the first byte that is not UTF-8 stands: the size if there is none.
inline std::size_t reference(std::string_view text, std::vector<std::uint32_t>& codes) {
    std::size_t at = 0;
    while (at < text.size()) {
        unsigned ones = 0;
        const unsigned char lead = bytes::octet(text[at]);
        while (ones < 8 && (lead >> (7 - ones) & 1) != 0) ++ones;
        if (ones == 1 || ones > 4) return at;
        const std::size_t length = ones == 0 ? 1 : ones;
        if (text.size() - at < length) return at;
        std::uint32_t code = ones == 0 ? lead : lead & (0xFFU >> (ones + 1));
        for (std::size_t i = 1; i < length; ++i) {
            if (bytes::octet(text[at + i]) / 64 != 2) return at;
            code = code * 64 + bytes::octet(text[at + i]) % 64;
        }
        constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return at;
        codes.push_back(code);
        at += length;
    }
    return at;
}

FUZZ_TARGET(utf8) {
    std::vector<std::uint32_t> codes;
    const std::size_t good = reference(input, codes);
    const bool expected = good == input.size();
    require(utf8::valid(input) == expected, "UTF-8 is what the reference reads");
    require(utf8::valid(input.substr(0, good)), "and so is what stands before the first bad byte");
    std::string shifted = "1234567";
    for (int i = 0; i < 8; ++i, shifted += '8') {  // words of eight bytes begin elsewhere each time
        require(utf8::valid(shifted + std::string(input)) == expected, "wherever it begins");
        require(utf8::valid(std::string(input) + shifted) == expected, "whatever follows");
    }
    std::string again;
    for (std::uint32_t code : codes) utf8::append(again, code);
    require(again == input.substr(0, good), "code points are written as they were read");
    std::size_t at = 0;
    for (std::uint32_t code : codes) {
        const std::size_t length = utf8::sequence(input, at);
        std::string one;
        utf8::append(one, code);
        require(length > 0 && input.substr(at, length) == one, "and read one by one");
        at += length;
    }
}

}  // namespace fuzz_utf8
