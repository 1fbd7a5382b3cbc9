// Every operation in its form that returns Result, as it is for those who build without exceptions and RTTI.
#include "use.hpp"

#include <cstdio>
#include <sstream>

#if S3CACHE_EXCEPTIONS
#error "this file is for -fno-exceptions"
#endif

struct Point {
    int x = 0;
};

template <>
struct s3cache::codec<Point> {
    static constexpr Kind kind = Kind::json;
    static Result<std::string> encode(const Point& point) {
        if (point.x < 0) return Error(Errc::source, "negative");
        return std::to_string(point.x);
    }
    static Result<Point> decode(std::string_view data) { return Point{std::atoi(std::string(data).c_str())}; }
};

namespace {

int failures = 0;

void check(bool truth, const char* what) {
    if (truth) return;
    std::printf("no_exceptions: %s\n", what);
    ++failures;
}

template <class T>
bool said(const s3cache::Result<T>& result, s3cache::Errc code) {
    return !result && result.error().code() == code && result.error().what()[0] != '\0';
}

void values(s3cache::Cache& cache) {
    check(cache.try_set("text", "123", {std::chrono::hours(1)}).value(), "set");
    const auto hit = cache.try_get("text");
    check(hit && *hit && (*hit)->str() == "123" && (*hit)->kind() == s3cache::Kind::text, "get");
    check(cache.try_get("nothing") && !*cache.try_get("nothing"), "miss");
    check(said(cache.try_get(""), s3cache::Errc::invalid_argument), "no key");
    check(said(cache.try_set("json", s3cache::json("{")), s3cache::Errc::invalid_argument), "no json");
    check(cache.try_contains("text").value_or(false), "contains");
    check(cache.try_touch("text", std::chrono::hours(2)).value_or(false), "touch");
    const auto info = cache.try_stat("text");
    check(info && *info && (*info)->expires_at, "stat");
    check(cache.try_set("point", Point{7}).value_or(false), "set through a codec");
    const auto point = cache.try_get<Point>("point");
    check(point && *point && (*point)->x == 7, "get through a codec");
    check(said(cache.try_set("point", Point{-1}), s3cache::Errc::source), "codec that fails");
}

void streams(s3cache::Cache& cache) {
    std::string data;
    while (data.size() < (std::size_t{9} << 20)) data += "another line of text " + std::to_string(data.size()) + "\n";
    std::istringstream in(data);
    check(cache.try_set("stream", in, {{}, true}).value_or(false), "set of a stream");
    auto reader = cache.try_get_stream("stream");
    std::string got;
    if (reader && *reader) {
        for (auto chunk = (*reader)->try_next(); chunk && !chunk->empty(); chunk = (*reader)->try_next()) got += *chunk;
    }
    check(got == data, "get of a stream");
    const auto fails = [](char*, std::size_t) { return s3cache::source_failed; };
    check(said(cache.try_set("failed", fails), s3cache::Errc::source), "source that fails");
    check(!cache.try_contains("failed").value_or(true), "nothing is left of it");
    check(said(cache.try_set_file("file", "/nonexistent/file"), s3cache::Errc::file), "no such file");
}

void many(s3cache::Cache& cache) {
    check(cache.try_get_or_set("made", [] { return "value"; }).value().str() == "value", "get_or_set");
    const auto failed = cache.try_get_or_set(
        "failed", [] { return s3cache::Result<std::string>(s3cache::Error(s3cache::Errc::source, "no")); });
    check(said(failed, s3cache::Errc::source), "producer that fails");
    for (const auto& result : cache.set_many({{"m1", "1", {}}, {"m2", "2", {}}}))
        check(result.value_or(false), "set_many");
    int hits = 0;
    cache.get_many({"m1", "m2"}, [&](const std::string&, const s3cache::Result<std::optional<s3cache::Value>>& result) {
        hits += result && *result;
    });
    check(hits == 2, "get_many");
    for (const auto& result : cache.remove_many({"m1", "m2"})) check(result.has_value(), "remove_many");
    check(cache.try_presign("text", "GET", std::chrono::hours(1)).has_value(), "presign");
    auto listing = cache.try_list();
    std::size_t entries = 0;
    while (listing) {
        const auto entry = listing->try_next();
        check(entry.has_value(), "list");
        if (!entry || !*entry) break;
        ++entries;
    }
    check(entries >= 4, "all listed");
    check(cache.try_remove("text").has_value(), "remove");
    check(cache.try_purge_expired().has_value(), "purge_expired");
    check(cache.try_clear("").value_or(0) >= 3, "clear");
    check(cache.stats().hits > 0, "stats");
}

}  // namespace

int main() {
    auto cache = use::open();
    if (!cache) return std::printf("%s\n", cache.error().what()), 1;
    values(*cache);
    streams(*cache);
    many(*cache);
    return failures == 0 ? 0 : 1;
}
