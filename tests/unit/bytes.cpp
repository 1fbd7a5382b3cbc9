// Section bytes.
#include "s3cache.hpp"

#include "catch.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace bytes = s3cache::detail::bytes;

namespace {

std::string percent(std::string_view raw, bool keep_slash) {
    std::string out;
    bytes::append_percent(out, raw, keep_slash);
    return out;
}

std::string number(std::uint64_t value) {
    std::string out;
    bytes::append_number(out, value);
    return out;
}

std::string all_octets() {
    std::string out;
    for (int i = 0; i < 256; ++i) out += static_cast<char>(i);
    return out;
}

}  // namespace

TEST_CASE("bytes: hex is lower case and covers every octet") {
    CHECK(bytes::hex("").empty());
    CHECK(bytes::hex(std::string_view("\x00\x0f\xf0\xff", 4)) == "000ff0ff");
    const std::string all = bytes::hex(all_octets());
    CHECK(all.size() == 512);
    CHECK(all.substr(0x7F * 2, 4) == "7f80");
}

TEST_CASE("bytes: a hexadecimal digit of either case, and nothing else") {
    CHECK(bytes::hex_value('0') == 0);
    CHECK(bytes::hex_value('9') == 9);
    CHECK(bytes::hex_value('a') == 10);
    CHECK(bytes::hex_value('F') == 15);
    for (char c : {'g', 'G', '/', ':', '@', '`', ' ', '\0', '\xFF'}) CHECK(bytes::hex_value(c) == -1);
}

TEST_CASE("bytes: base64 has the vectors of RFC 4648") {
    const char* pairs[][2] = {{"", ""},
                              {"f", "Zg=="},
                              {"fo", "Zm8="},
                              {"foo", "Zm9v"},
                              {"foob", "Zm9vYg=="},
                              {"fooba", "Zm9vYmE="},
                              {"foobar", "Zm9vYmFy"},
                              {"\xFB\xFF", "+/8="}};
    for (const auto& pair : pairs) {
        CHECK(bytes::base64(pair[0]) == pair[1]);
        CHECK(bytes::unbase64(pair[1]) == std::string(pair[0]));
    }
}

TEST_CASE("bytes: base64 reads back whatever it wrote") {
    const std::string all = all_octets();
    for (std::size_t size = 0; size <= all.size(); ++size) {
        const std::string raw = all.substr(all.size() - size);
        CHECK(bytes::unbase64(bytes::base64(raw)) == raw);
    }
}

TEST_CASE("bytes: base64 that is not exactly RFC 4648 is refused") {
    for (const char* text : {"Z", "Zg", "Zg=", "Zg===", "====", "=", "==", "Z===", "Zg==Zg==", "Zm9v\n", " Zm9v",
                             "Zm-_", "Zm9 ", "Z\xE9==", "Zh==", "Zm9=", "Z=g="}) {
        INFO(text);
        CHECK_FALSE(bytes::unbase64(text));
    }
    CHECK_FALSE(bytes::unbase64(std::string_view("Zm9\0", 4)));
}

TEST_CASE("bytes: percent-encoding keeps the unreserved characters alone") {
    const std::string unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    CHECK(percent(unreserved, false) == unreserved);
    CHECK(percent("a b+c%d", true) == "a%20b%2Bc%25d");
    CHECK(percent("/a//b/", true) == "/a//b/");
    CHECK(percent("/a//b/", false) == "%2Fa%2F%2Fb%2F");
    CHECK(percent("caf\xC3\xA9", true) == "caf%C3%A9");
    CHECK(percent(std::string_view("\0\n\x7F", 3), true) == "%00%0A%7F");
    CHECK(percent("!*'();:@&=$,?#[]", true) == "%21%2A%27%28%29%3B%3A%40%26%3D%24%2C%3F%23%5B%5D");
}

TEST_CASE("bytes: percent-decoding undoes the encoding of every octet") {
    CHECK(bytes::unpercent(percent(all_octets(), false), false) == all_octets());
    CHECK(bytes::unpercent("a+b%20c", true) == std::string("a b c"));
    CHECK(bytes::unpercent("a+b%2bc", false) == std::string("a+b+c"));
    CHECK(bytes::unpercent("", false) == std::string());
}

TEST_CASE("bytes: a stray percent sign is refused") {
    for (const char* text : {"%", "%4", "a%", "%4g", "%g4", "% 4", "%%20", "%-1"}) {
        INFO(text);
        CHECK_FALSE(bytes::unpercent(text, false));
    }
}

TEST_CASE("bytes: case folding touches ASCII letters only") {
    CHECK(bytes::lower("AZaz09@[\xC3\x89") == "azaz09@[\xC3\x89");
    CHECK(bytes::iequal("ETag", "etAG"));
    CHECK(bytes::iequal("", ""));
    CHECK_FALSE(bytes::iequal("etag", "etags"));
    CHECK_FALSE(bytes::iequal("a@", "a`"));
    CHECK_FALSE(bytes::iequal("\xC3\x89", "\xC3\xA9"));
}

TEST_CASE("bytes: prefixes and suffixes") {
    CHECK(bytes::starts_with("s3://b", "s3://"));
    CHECK(bytes::starts_with("x", ""));
    CHECK_FALSE(bytes::starts_with("s3:", "s3://"));
    CHECK(bytes::ends_with("name.gz", ".gz"));
    CHECK(bytes::ends_with("", ""));
    CHECK_FALSE(bytes::ends_with("gz", ".gz"));
}

TEST_CASE("bytes: trimming takes blanks at both ends and leaves those inside") {
    CHECK(bytes::trim(" \t\r\na b\r\n") == "a b");
    CHECK(bytes::trim(" \t ").empty());
    CHECK(bytes::trim("").empty());
    CHECK(bytes::trim("\v\x0C x\xA0") == "\v\x0C x\xA0");
}

TEST_CASE("bytes: numbers are checked") {
    CHECK(bytes::to_u64("0") == 0U);
    CHECK(bytes::to_u64("0007") == 7U);
    CHECK(bytes::to_u64("18446744073709551615") == (std::numeric_limits<std::uint64_t>::max)());
    for (const char* text : {"", " 1", "1 ", "+1", "-1", "1.0", "0x1", "1e3", "1_0", "18446744073709551616",
                             "99999999999999999999", "184467440737095516150", "\xD9\xA1"}) {
        INFO(text);
        CHECK_FALSE(bytes::to_u64(text));
    }
}

TEST_CASE("bytes: numbers are written in full") {
    CHECK(number(0) == "0");
    CHECK(number(1001) == "1001");
    CHECK(number((std::numeric_limits<std::uint64_t>::max)()) == "18446744073709551615");
}

TEST_CASE("bytes: control bytes are found, the tab and high bytes are not") {
    for (int i = 0; i < 256; ++i) {
        const std::string text = std::string("a") + static_cast<char>(i) + "b";
        INFO(i);
        CHECK(bytes::has_control(text) == ((i < 0x20 && i != 9) || i == 0x7F));
    }
    CHECK_FALSE(bytes::has_control(""));
}

TEST_CASE("bytes: a wiped secret is gone, and so is what its buffer held before") {
    std::string secret(100, 's');
    secret.resize(70);
    const std::size_t capacity = secret.capacity();
    bytes::wipe(secret);
    CHECK(secret.empty());
    REQUIRE(secret.capacity() == capacity);  // the same buffer: nothing was left behind in another
#if !defined(__SANITIZE_ADDRESS__)
    const volatile char* memory = secret.data();
    for (std::size_t i = 0; i < 100; ++i) CHECK(memory[i] == '\0');
#endif
    std::string empty;
    bytes::wipe(empty);
    CHECK(empty.empty());
}
