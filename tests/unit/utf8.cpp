// Section utf8.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace utf8 = s3cache::detail::utf8;

namespace {

void check_utf8(const vectors::Case& c) { CHECK(utf8::valid(c.get("data_base64")) == c.yes("utf8")); }

const vectors::Handler utf8_vectors{"utf8", {"data_base64", "utf8"}, check_utf8};

std::string encoded(std::uint32_t code) {
    std::string out;
    utf8::append(out, code);
    return out;
}

// Of one sequence: a lead byte with as many leading ones as it has bytes, six bits in each of the others.
std::uint32_t decoded(std::string_view text) {
    const std::uint32_t lead = static_cast<unsigned char>(text[0]);
    std::uint32_t code = text.size() == 1 ? lead : lead & (0x7FU >> text.size());
    for (char c : text.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 0x3FU);
    return code;
}

}  // namespace

TEST_CASE("utf8: every code point but the surrogates is one valid sequence") {
    std::size_t wrong = 0;
    for (std::uint32_t code = 0; code <= 0x10FFFF; ++code) {
        if (code >= 0xD800 && code <= 0xDFFF) continue;
        const std::string text = encoded(code);
        const bool good = utf8::valid(text) && utf8::sequence(text, 0) == text.size() && decoded(text) == code;
        wrong += good ? 0U : 1U;
    }
    CHECK(wrong == 0);
}

TEST_CASE("utf8: surrogates and code points past the last are refused in either notation") {
    for (std::uint32_t code : {0xD800U, 0xDBFFU, 0xDC00U, 0xDFFFU}) CHECK_FALSE(utf8::valid(encoded(code)));
    CHECK_FALSE(utf8::valid("\xF4\x90\x80\x80"));
    CHECK_FALSE(utf8::valid("\xF8\x88\x80\x80\x80"));
}

TEST_CASE("utf8: a bad byte is found wherever it stands among ASCII") {
    for (std::size_t size = 1; size <= 40; ++size) {
        for (std::size_t at = 0; at < size; ++at) {
            std::string text(size, 'a');
            CHECK(utf8::valid(text));
            text[at] = '\x80';
            INFO(size << " " << at);
            CHECK_FALSE(utf8::valid(text));
        }
    }
}

TEST_CASE("utf8: a sequence is found wherever it stands among ASCII, and refused when it is cut") {
    for (std::size_t before = 0; before <= 17; ++before) {
        const std::string text = std::string(before, 'a') + "\xF0\x9F\x98\x80";
        INFO(before);
        CHECK(utf8::valid(text + "tail"));
        for (std::size_t cut = 1; cut <= 3; ++cut) CHECK_FALSE(utf8::valid(text.substr(0, text.size() - cut)));
    }
}

TEST_CASE("utf8: nothing is read past the end of a view") {
    const std::string text = "ab\xC3\xA9";
    CHECK_FALSE(utf8::valid(std::string_view(text).substr(0, 3)));
    CHECK(utf8::valid(std::string_view(text).substr(0, 2)));
    CHECK(utf8::valid(std::string_view()));
}
