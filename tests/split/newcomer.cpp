// What a newcomer writes without having read anything. It compiles, and does what it says.
#include "use.hpp"

#include <array>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

using namespace std::chrono_literals;

struct Point {
    int x = 0;
};
template <>
struct s3cache::codec<Point> {
    static constexpr Kind kind = Kind::text;
    static std::string encode(const Point& point) { return std::to_string(point.x); }
    static Point decode(std::string_view text) { return {std::atoi(std::string(text).c_str())}; }
};

namespace {

int failures = 0;
void check(bool truth, const char* what) {
    if (truth) return;
    std::printf("wrong: %s\n", what);
    ++failures;
}

void work(s3cache::Cache& cache) {
    cache.set("k", "v", 1h);
    check(cache.stat("k")->expires_at.has_value(), "set(key, value, 1h)");
    cache.set("k", std::string("v"), 90s);
    check(cache.get<std::string>("k") == std::string("v"), "get<std::string>");
    check(!cache.get<std::string>("nothing"), "get<std::string> of nothing");
    cache.set("k", std::vector<char>{'a', 'b'}, 1h);
    check(cache.get("k")->view() == "ab", "std::vector<char>");
    cache.set("k", std::array<std::byte, 1>{{std::byte{'c'}}});
    check(cache.get("k")->view() == "c", "std::array<std::byte>");
    cache.set("k", std::array<unsigned char, 2>{{'d', 'e'}});
    check(cache.get("k")->view() == "de", "std::array<unsigned char>");
    cache.set("k", std::array<char, 1>{{'f'}});
    check(cache.get("k")->view() == "f", "std::array<char>");
    cache.set("copy", *cache.get("k"));
    check(cache.get("copy")->view() == "f", "a Value stored again");
    cache.set("point", Point{7}, 1h);
    check(cache.get<Point>("point")->x == 7, "get<T>");
    check(cache.get_or_set<Point>("point", [] { return Point{8}; }).x == 7, "get_or_set<T>, a hit");
    check(cache.get_or_set<Point>(
                   "new point", [] { return Point{9}; }, 1h)
                  .x == 9,
          "get_or_set<T>, a miss");
    check(cache.get_or_set(
                   "text", [] { return std::string("w"); }, 1h)
                  .view() == "w",
          "get_or_set with a TTL alone");
    std::ofstream("newcomer.tmp") << "a file";
    cache.set("stream", std::ifstream("newcomer.tmp"), 1h);
    check(cache.get("stream")->view() == "a file", "an ifstream that nobody keeps");
    std::remove("newcomer.tmp");
    const std::string text = *std::move(cache.get<std::string>("k"));
    check(text == "f", "a string moved out");
}

}  // namespace

int main() {
    auto cache = use::open();
    if (!cache) return std::printf("%s\n", cache.error().what()), 1;
    try {
        work(*cache);
    } catch (const s3cache::Error& error) {
        return std::printf("%s\n", error.what()), 1;
    }
    return failures;
}
