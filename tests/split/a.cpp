// Two files that use the cache, linked into one program; with S3CACHE_DECLARATIONS_ONLY a third holds the functions.
#include "use.hpp"

#include <cstdio>

struct Point {
    int x = 0;
};

template <>
struct s3cache::codec<Point> {
    static constexpr Kind kind = Kind::text;
    static std::string encode(const Point& point) { return std::to_string(point.x); }
    static Point decode(std::string_view data) { return Point{std::atoi(std::string(data).c_str())}; }
};

namespace {

bool own_types(s3cache::Cache& cache) {
    if (!cache.try_set("point", Point{7}).value_or(false)) return false;
    const auto point = cache.try_get<Point>("point");
    return point && *point && (*point)->x == 7;
}

#if S3CACHE_EXCEPTIONS
bool throwing_forms(s3cache::Cache& cache) {
    if (cache.get<Point>("point")->x != 7) return false;
    cache.set("k", s3cache::json("[1]"));
    bool listed = false;
    for (const s3cache::Entry& entry : cache.list()) listed = listed || entry.key == "k";
    if (!listed || cache.get("k")->kind() != s3cache::Kind::json) return false;
    try {
        cache.set("k", s3cache::json("["));
        return false;
    } catch (const std::runtime_error&) {  // what Error derives from, seen from any file
    }
    return cache.get_or_set("k", [] { return "never made"; }).str() == "[1]";
}
#endif

}  // namespace

int main() {
    auto cache = use::open();
    if (!cache) return std::printf("%s\n", cache.error().what()), 1;
    if (!use::works_elsewhere(*cache)) return std::puts("the other file could not use the cache"), 1;
    if (!own_types(*cache)) return std::puts("types of the user's own do not work"), 1;
#if S3CACHE_EXCEPTIONS
    if (!throwing_forms(*cache)) return std::puts("the throwing forms do not work"), 1;
#endif
    return cache->try_clear("").has_value() ? 0 : 1;
}
