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
    }
}

TEST_CASE("bytes: a checksum in base64 is known, and is not one where it is not exactly RFC 4648") {
    using namespace s3cache::detail;
    for (std::uint32_t crc : {0U, 1U, 0xE3069283U, 0xFFFFFFFFU, 0x00FF00FFU})
        CHECK(entry::is_crc32c(entry::crc32c_text(crc)));
    for (const char* text :
         {"", "4waSgw=", "4waSgw", "4waSgw===", "4waSgx==", "4waS gw=", " 4waSgw=", "4waSgw=\n",
          "4waSgw= ", "========", "4waSgwA=", "4waSgwAA", "4waSgw==4waSgw==", "4wa_gw==", "\xE9waSgw=="}) {
        INFO(text);
        CHECK_FALSE(entry::is_crc32c(text));
    }
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
    CHECK(bytes::number(0) == "0");
    CHECK(bytes::number(1001) == "1001");
    CHECK(bytes::number((std::numeric_limits<std::uint64_t>::max)()) == "18446744073709551615");
}

TEST_CASE("bytes: foreign text in a message is one line of printable characters") {
    CHECK(bytes::sanitize("") == "");
    CHECK(bytes::sanitize("plain text, caf\xC3\xA9 \xF0\x9F\x98\x80") == "plain text, caf\xC3\xA9 \xF0\x9F\x98\x80");
    CHECK(bytes::sanitize("a\r\nb\tc\x7F\x1B[31m") == "a\\x0d\\x0ab\\x09c\\x7f\\x1b[31m");
    CHECK(bytes::sanitize(std::string_view("a\0b", 3)) == "a\\x00b");
    CHECK(bytes::sanitize("a\xC2\x9B"
                          "31m\xC2\xA0") == "a\\xc2\\x9b31m\xC2\xA0");  // a control character of Latin-1
    CHECK(bytes::sanitize("\xFF\xC3(\xED\xA0\x80") == "\\xff\\xc3(\\xed\\xa0\\x80");
}

TEST_CASE("bytes: foreign text in a message is short, and never cut inside a character") {
    CHECK(bytes::sanitize(std::string(300, 'a')) == std::string(300, 'a'));
    CHECK(bytes::sanitize(std::string(301, 'a')) == std::string(300, 'a') + "...");
    CHECK(bytes::sanitize(std::string(299, 'a') + "\xC3\xA9") == std::string(299, 'a') + "...");
    CHECK(bytes::sanitize(std::string(298, 'a') + "\xC3\xA9") == std::string(298, 'a') + "\xC3\xA9");
    CHECK(bytes::sanitize(std::string(1000, '\n')).size() == 303);
    CHECK(bytes::sanitize(std::string(16 * 1024 * 1024, '@')).size() <= 303);
    CHECK(bytes::sanitize(std::string(290, ' ') + "http://user:secret@proxy").find("secret") == std::string::npos);
}

TEST_CASE("bytes: the user info of a URL is hidden wherever the URL stands in a message") {
    const char* cases[][2] = {
        {"http://user:secret@proxy:3128/", "http://******@proxy:3128/"},
        {"s3://KEY:SECRET@bucket/prefix", "s3://******@bucket/prefix"},
        {"https://token@host", "https://******@host"},
        {"bad URL 'socks5h://u:p@h:1080', give another", "bad URL 'socks5h://******@h:1080', give another"},
        {"\"ftp://u:p@h\"", "\"ftp://******@h\""},
        {"http://u:p@ss@w:rd@host/a@b", "http://******@host/a@b"},
        {"http://u:p@a http://v:q@b", "http://******@a http://******@b"},
        {"http://a,http://u:p@b", "http://a,http://******@b"},
        {"http://u:p\x01@host", "http://******@host"},
        {"s3://KEY:SEC/RET+/@bucket/p", "s3://******@bucket/p"},  // secret keys hold slashes
        {"s3://KEY:1/RET@bucket", "s3://******@bucket"},
        {"user:secret@proxy:3128", "******@proxy:3128"},  // libcurl takes a proxy without a scheme
        {"Unsupported proxy syntax in 'user:secret@[x'", "Unsupported proxy syntax in '******@[x'"},
    };
    for (const auto& pair : cases) CHECK(bytes::sanitize(pair[0]) == pair[1]);
}

TEST_CASE("bytes: what is no user info is not hidden") {
    for (const char* text :
         {"@", "a@b", "jane@example.com", "http://host/jane@example.com", "http://host:9000/a@b", "s3://bucket/a:b@c",
          "User: arn:aws:sts::123456789012:assumed-role/Admin/jane@example.com is not authorized", "https://host:443",
          "http:// jane@example.com", "12:30 mail to jane@example.com", "reports/2025:01@x"}) {
        CHECK(bytes::sanitize(text) == text);
    }
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
