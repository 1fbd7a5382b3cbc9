// Section ini. What the sections mean is tested with section credentials, which reads them.
#include "s3cache.hpp"

#include "catch.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ini = s3cache::detail::ini;

namespace {

std::string problem_in(const std::string& text) {
    const auto parsed = ini::Parser().parse(text, "file");
    return parsed ? "none" : parsed.error().what();
}

std::string text_of(const ini::Section& section, std::string_view name) {
    const std::string* text = section.find(name);
    return text != nullptr ? *text : "(none)";
}

}  // namespace

TEST_CASE("ini: settings, blocks and values of several lines") {
    const auto parsed = ini::Parser().parse(
        "; c\n[a]\nX = 1 # kept\ny: \"q\"\ns3 =\n  Path = b = c\n  # no\n  n=\nz = 1\n  2\n\n  3\n\n[b c]\n", "file");
    REQUIRE(parsed);
    REQUIRE(parsed->size() == 2);
    const ini::Section& a = parsed->front();
    CHECK(text_of(a, "x") == "1 # kept");
    CHECK(text_of(a, "y") == "\"q\"");
    CHECK(text_of(a, "z") == "1\n2\n\n3");
    CHECK(ini::Profile{&a}.get("s3").empty());
    CHECK(ini::find_in_block(text_of(a, "s3"), "Path") == "b = c");
    CHECK(ini::find_in_block(text_of(a, "s3"), "n").empty());
    CHECK(ini::find_in_block("\n\na = 1\nb=2\na=3", "a") == "3");
    CHECK(ini::find_in_block("a = 1\na = 2", "a").empty());  // which did not begin on the next line
    CHECK(parsed->back().name == "b c");
}

TEST_CASE("ini: an error names the line") {
    CHECK(problem_in("[a]\nx = 1\njunk\n") == "file:3: a line without '=' or ':'");
    CHECK(problem_in("x = 1\n") == "file:1: a setting before the first [section]");
    CHECK(problem_in("\xEF\xBB\xBF[a]\n").substr(0, 7) == "file:1:");
    CHECK(problem_in("[a]\nx=1\nX=2\n") == "file:3: setting 'x' comes twice in its section");
    CHECK(problem_in("[a]\r\n[b]\r\n[a]\r\n") == "file:3: section [a] comes twice");
    CHECK(problem_in("[a]\n= 1\n") == "file:2: a setting without a name");
    CHECK(problem_in("[a]\nx = \xFF\n") == "file:2: not UTF-8 text");
    CHECK(problem_in("[a]\ny=1\ns3 =\n  p = 1\n  q\n") == "file:5: a line without '=' in the block under 's3'");
    CHECK(problem_in(std::string(ini::file_bytes_max + 1, '\n')).substr(0, 7) == "file:0:");
    CHECK(problem_in("") == "none");
}

TEST_CASE("ini: the section DEFAULT lends its settings to all others") {
    const auto parsed = ini::Parser().parse("[DEFAULT]\nr = 1\nq = 2\n[a]\nq = 3\n[DEFAULT]\ns = 4\n", "file");
    REQUIRE(parsed);
    REQUIRE(parsed->size() == 1);
    const ini::Section& a = parsed->front();
    CHECK(text_of(a, "r") == "1");
    CHECK(text_of(a, "q") == "3");
    CHECK(text_of(a, "s") == "4");
}

TEST_CASE("ini: a file whose DEFAULT would fill the memory with copies is refused") {
    const auto file = [](int defaults, int sections) {
        std::string text = "[DEFAULT]\n";
        for (int i = 0; i < defaults; ++i) text += "d" + std::to_string(i) + " = 1\n";
        for (int i = 0; i < sections; ++i) text += "[" + std::to_string(i) + "]\n";
        return text;
    };
    CHECK(problem_in(file(400, 400)).find("too many settings in [DEFAULT]") != std::string::npos);
    CHECK(problem_in(file(30, 1000)) == "none");
}

TEST_CASE("ini: lines end in LF, CR LF or CR") {
    for (const char* end : {"\n", "\r\n", "\r"}) {
        const auto parsed =
            ini::Parser().parse(std::string("[a]") + end + "x = 1" + end + " 2" + end + "y = 3", "file");
        REQUIRE(parsed);
        CHECK(text_of(parsed->front(), "x") == "1\n2");
        CHECK(text_of(parsed->front(), "y") == "3");
    }
}

TEST_CASE("ini: words are split as by a shell, without expansion") {
    using Words = std::vector<std::string>;
    CHECK(ini::split_words("") == Words{});
    CHECK(ini::split_words("  a\tb  ") == Words{"a", "b"});
    CHECK(ini::split_words("a\\ b 'c \\ d' \"e \\\" \\n \\\\\" ''") == Words{"a b", "c \\ d", "e \" \\n \\", ""});
    CHECK(ini::split_words("x'y'\"z\" $HOME *") == Words{"xyz", "$HOME", "*"});
    for (const char* open : {"'a", "\"a", "a\\", "b 'a"}) CHECK(ini::split_words(open).empty());
}

TEST_CASE("ini: a broken block in DEFAULT is an error of the file") {
    CHECK(problem_in("[DEFAULT]\ns3 =\n  x\n") == "file:3: a line without '=' in the block under 's3'");
    CHECK(problem_in("[DEFAULT]\ns3 =\n  x\n[a]\n") == "file:3: a line without '=' in the block under 's3'");
}

TEST_CASE("ini: of two broken blocks the first is told, with its own line") {
    CHECK(problem_in("[a]\ns3 =\n  x\nsts =\n  y\n") == "file:3: a line without '=' in the block under 's3'");
    CHECK(problem_in("[a]\ns3 =\n  x\n[b]\nsts =\n  y\n") == "file:3: a line without '=' in the block under 's3'");
}

TEST_CASE("ini: a profile is found by its name in either file, the later section of two") {
    const auto config = ini::Parser().parse(
        "[default]\na = 1\n[profile default]\na = 2\n[profile \"my dev\"]\n[ profile x ]\n[y]\n", "c");
    const auto credentials = ini::Parser().parse("[ default ]\na = 3\n[x]\n[profile y]\n", "k");
    REQUIRE(config);
    REQUIRE(credentials);
    const auto find = [&](const char* name) { return ini::find_profile(*config, *credentials, name); };
    CHECK(find("default").get("a") == "3");
    CHECK(text_of(*find("default").config, "a") == "2");
    CHECK(find("my dev").exists());
    CHECK(find("x").config == nullptr);
    CHECK(find("x").credentials != nullptr);
    CHECK_FALSE(find("y").exists());
    CHECK_FALSE(find("").exists());
    CHECK(find("default").has("a"));
    CHECK_FALSE(find("default").has("b"));
    CHECK(find("nobody").get("a").empty());
}

TEST_CASE("ini: a file of very many sections is refused, not searched for minutes") {
    std::string text;
    for (std::size_t i = 0; i <= ini::sections_max; ++i) text += "[" + std::to_string(i) + "]\n";
    CHECK(problem_in(text).find("too many sections") != std::string::npos);
}

TEST_CASE("ini: a section of very many settings is refused, not searched for minutes") {
    const auto section = [](int settings) {
        std::string text = "[a]\n";
        for (int i = 0; i < settings; ++i) text += "s" + std::to_string(i) + " = 1\n";
        return text;
    };
    CHECK(problem_in(section(1000)) == "none");
    CHECK(problem_in(section(1000) + "[b]\nx = 1\n") == "none");
    CHECK(problem_in(section(1001)).find("too many settings") != std::string::npos);
}

TEST_CASE("ini: no message holds a value") {
    CHECK(problem_in("[default]\naws_secret_access_key = HUSH\njunk HUSH\n").find("HUSH") == std::string::npos);
    CHECK(problem_in("[default]\na =\n  junk HUSH\n").find("HUSH") == std::string::npos);
}
