// Section json.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <string>
#include <string_view>

namespace json = s3cache::detail::json;
namespace utf8 = s3cache::detail::utf8;

namespace {

void check_json(const vectors::Case& c) {
    CHECK(utf8::valid(c.get("data_base64")) == c.yes("utf8"));
    CHECK(json::valid(c.get("data_base64")) == c.yes("json"));
}

const vectors::Handler json_vectors{"json", {"data_base64", "utf8", "json"}, check_json};

std::string nested(std::size_t levels, const std::string& opening, const std::string& inside,
                   const std::string& closing) {
    std::string out;
    for (std::size_t i = 0; i < levels; ++i) out += opening;
    out += inside;
    for (std::size_t i = 0; i < levels; ++i) out += closing;
    return out;
}

}  // namespace

TEST_CASE("json: depth is accepted up to the limit and refused beyond it") {
    const std::size_t most = json::depth_levels_max;
    CHECK(json::valid(nested(most, "[", "", "]")));
    CHECK_FALSE(json::valid(nested(most + 1, "[", "", "]")));
    CHECK(json::valid(nested(most, "{\"a\": ", "1", "}")));
    CHECK_FALSE(json::valid(nested(most + 1, "{\"a\": ", "1", "}")));
    CHECK(json::valid(nested(most / 2, "[{\"a\":", "[]", "}]")) == (most % 2 == 1));
}

TEST_CASE("json: only levels that are open count towards the depth") {
    std::string wide = "[";
    for (int i = 0; i < 5000; ++i) wide += "[{}],";
    CHECK(json::valid(wide + "0]"));
}

TEST_CASE("json: an endless run of brackets is refused without a deep stack") {
    CHECK_FALSE(json::valid(std::string(10000000, '[')));
    CHECK_FALSE(json::valid(nested(1000000, "{\"\":", "", "")));
}

TEST_CASE("json: integers have a limit of digits, floats have none") {
    const std::string digits(json::integer_digits_max, '7');
    CHECK(json::valid(digits));
    CHECK(json::valid("-" + digits));
    CHECK_FALSE(json::valid(digits + "7"));
    CHECK_FALSE(json::valid("[-" + digits + "7]"));
    CHECK(json::valid(digits + "7.0"));
    CHECK(json::valid(digits + "7e0"));
    CHECK(json::valid("0." + digits + "7"));
}

TEST_CASE("json: bytes that are not UTF-8 are refused, inside strings too") {
    CHECK_FALSE(json::valid("\"\xFF\""));
    CHECK_FALSE(json::valid("\"\xC3\""));
    CHECK_FALSE(json::valid("\"\xED\xA0\x80\""));
    CHECK(json::valid("\"\xC3\xA9\x7F\""));
}

TEST_CASE("json: the field of a small answer") {
    const std::string answer = R"( {"Code" : "Success", "Expires":17e8,"Nested":{"Code":"inner","x":[1,{"Code":2}]},
                                    "Token":"a\/b\u00e9\ud83d\ude00\n\"" } )";
    CHECK(json::string_field(answer, "Code") == std::string("Success"));
    CHECK(json::string_field(answer, "Token") == std::string("a/b\xC3\xA9\xF0\x9F\x98\x80\n\""));
    CHECK(json::member(answer, "Expires") == std::string_view("17e8"));
    CHECK_FALSE(json::string_field(answer, "Expires"));
    CHECK_FALSE(json::string_field(answer, "Nested"));
    CHECK_FALSE(json::string_field(answer, "x"));
    CHECK_FALSE(json::string_field(answer, ""));
    CHECK(json::member(answer, "Code") == "\"Success\"");
}

TEST_CASE("json: among members of one name the last wins") {
    CHECK(json::string_field(R"({"a":"1","a":"2"})", "a") == std::string("2"));
    CHECK_FALSE(json::string_field(R"({"a":"1","a":2})", "a"));
    CHECK(json::member(R"({"a":"1","a":2})", "a") == std::string_view("2"));
}

TEST_CASE("json: member names are compared after their escapes") {
    CHECK(json::string_field(R"({"\u0061b":"x"})", "ab") == std::string("x"));
    CHECK(json::string_field(R"({"a\"b":"x"})", "a\"b") == std::string("x"));
    CHECK(json::string_field(R"({"":""})", "") == std::string());
}

TEST_CASE("json: a text that is not an object has no fields") {
    for (const char* text : {"", " ", "{}", " { } ", "[]", "[\"a\",\"b\"]", "\"a\"", "null", "{\"a\":\"b\"",
                             "{\"a\":\"b\"}x", "{\"a\":\"b\",}", "<html>", "{\"a\":\"\xFF\"}", "{\"a\" \"b\"}"}) {
        INFO(text);
        CHECK_FALSE(json::string_field(text, "a"));
        CHECK(json::member(text, "a").empty());
    }
}

TEST_CASE("json: half of a surrogate pair is no text") {
    CHECK(json::valid(R"({"a":"\ud800"})"));
    for (const char* text : {R"({"a":"\ud800"})", R"({"a":"\udc00"})", R"({"a":"\ud800\ud800"})", R"({"a":"\ud800x"})",
                             R"({"a":"\ud800\n"})", R"({"a":"\ud83d\u0041"})"}) {
        INFO(text);
        CHECK_FALSE(json::string_field(text, "a"));
    }
}

TEST_CASE("json: a member is found as it is written") {
    const std::string text = R"({"n":-0.5E+1,"t":true,"z": null ,"N":NaN,"s":"1","a":[ 1],"o":{"n":1}})";
    const std::pair<const char*, const char*> members[] = {{"n", "-0.5E+1"},  {"t", "true"},  {"z", "null"},
                                                           {"N", "NaN"},      {"s", "\"1\""}, {"a", "[ 1]"},
                                                           {"o", "{\"n\":1}"}};
    for (const auto& [name, raw] : members) CHECK(json::member(text, name) == raw);
    CHECK(json::member(text, "absent").empty());
}
