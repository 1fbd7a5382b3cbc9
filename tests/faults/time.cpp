// Whose word the time is taken from: dates of caches, proxies and single nodes move nothing, and nothing is removed for them.
#include "world.hpp"

#include <cmath>

using namespace s3cache;
using namespace std::chrono_literals;
using store::ok;
using store::text_of;
using store::World;

namespace {

// How far from now the entry's time is up.
double left(World& world, const std::string& key) {
    return std::strtod(world.meta(key, "expires_at").c_str(), nullptr) - static_cast<double>(world.s3.now());
}

constexpr std::int64_t wrong_dates[] = {-3 * 86400, -3600, -600, 600, 7200, 40 * 86400};

}  // namespace

TEST_CASE("a good answer's date, however wrong, moves neither the TTL of a write nor the end of an entry", "[time]") {
    for (const std::int64_t off : wrong_dates) {
        CAPTURE(off);
        World world;
        Cache cache = world.cache();
        world.put_expiring("live", "v", 100);
        world.put_expiring("dead", "v", -100);
        world.always(fake_s3::other_date(off));
        for (int i = 0; i < 2; ++i) {
            CHECK(text_of(cache.get("live")) == "v");
            CHECK(cache.contains("live"));
            CHECK(store::drained(*cache.get_stream("live")) == "v");
            CHECK_FALSE(cache.contains("dead"));
            CHECK(cache.set("k", "v", {60s}));
            CHECK(std::abs(left(world, "k") - 60) < 10);
            CHECK(cache.touch("k", 90s));
            CHECK(std::abs(left(world, "k") - 90) < 10);
            for (const Entry& entry : cache.list()) CHECK_FALSE(entry.key.empty());
        }
        CHECK_FALSE(cache.get("dead"));
        CHECK(world.has("live"));
    }
}

TEST_CASE("an error page's date removes no live entry", "[time][removing]") {
    for (const std::int64_t off : wrong_dates) {
        CAPTURE(off);
        World world;
        Cache cache = world.cache();
        for (int i = 0; i < 8; ++i) world.put_expiring("live/" + std::to_string(i), "v", 100);
        world.put_expiring("dead", "v", -100);
        for (const int status : {503, 403, 404, 500}) {
            world.s3.add_fault(fake_s3::html_page(status));
            world.s3.add_fault(fake_s3::other_date(off));
            static_cast<void>(cache.try_get("live/0"));
            world.s3.clear_faults();
        }
        world.s3.add_fault(fake_s3::respond(403));
        world.s3.add_fault(fake_s3::other_date(off));
        static_cast<void>(cache.try_stat("live/0"));
        world.s3.clear_faults();
        CHECK(text_of(cache.get("live/1")) == "v");
        CHECK(ok(cache.try_purge_expired()) == 1);
        CHECK(world.s3.object_count() == 8);
        CHECK(cache.set("k", "v", {60s}));
        CHECK(std::abs(left(world, "k") - 60) < 10);
    }
}

TEST_CASE("one node whose clock is ahead removes nothing, whatever asks it", "[time][removing]") {
    World world;
    Cache cache = world.cache();
    for (int i = 0; i < 8; ++i) world.put_expiring("live/" + std::to_string(i), "v", 100);
    const char* const operations[] = {"ListObjectsV2", "HeadObject", "GetObject", "DeleteObjects", "DeleteObject"};
    for (const char* operation : operations) {
        CAPTURE(operation);
        world.always(fake_s3::other_date(7200), operation);
        static_cast<void>(cache.try_purge_expired());
        std::vector<std::string> keys;
        for (const Entry& entry : cache.list({}, Look::deep)) keys.push_back(entry.key);
        CHECK(keys.size() == 8);
        std::size_t hits = 0;
        cache.get_many(keys, [&](const std::string&, Result<std::optional<Value>> hit) { hits += hit && *hit; });
        CHECK(hits == 8);
        world.s3.clear_faults();
    }
    CHECK(world.s3.object_count() == 8);
}

TEST_CASE("a refusal for the time corrects the clock for signing and for expiry, and a wrong one is put right",
          "[time]") {
    for (const std::int64_t off : {std::int64_t{-7200}, std::int64_t{7200}}) {
        CAPTURE(off);
        World world;
        Config config = world.config();
        config.clock = [off] { return std::chrono::system_clock::now() + std::chrono::seconds(off); };
        Cache skewed = world.cache(config);
        world.put_expiring("live", "v", 100);
        world.put_expiring("dead", "v", -100);
        CHECK(text_of(skewed.get("live")) == "v");
        CHECK_FALSE(skewed.get("dead"));
        CHECK(skewed.set("k", "v", {60s}));
        CHECK(std::abs(left(world, "k") - 60) < 10);

        Cache cache = world.cache();
        world.s3.add_fault(fake_s3::respond_error(403, "RequestTimeTooSkewed"));
        world.s3.add_fault(fake_s3::other_date(off));
        static_cast<void>(cache.try_get("live"));
        CHECK(world.has("live"));
        CHECK(text_of(cache.get("live")) == "v");
        CHECK(cache.set("k", "v", {60s}));
        CHECK(std::abs(left(world, "k") - 60) < 10);
    }
}

TEST_CASE("a refusal for the time that answers an unsigned request corrects nothing", "[time]") {
    fake_s3::Options options;
    options.allow_anonymous = true;
    World world(options);
    Config config = world.config();
    config.credentials = anonymous();
    Cache cache = world.cache(config);
    world.put_expiring("live", "v", 100);
    world.s3.add_fault(fake_s3::respond_error(403, "RequestTimeTooSkewed"));
    world.s3.add_fault(fake_s3::other_date(7200));
    static_cast<void>(cache.try_get("live"));
    CHECK(text_of(cache.get("live")) == "v");
    CHECK(world.has("live"));
}

TEST_CASE("a refusal for the time whose date is thousands of years ahead does not revive what has expired", "[time]") {
    fake_s3::Quirks quirks;
    quirks.no_date = true;  // but this one
    World world(store::with(quirks));
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::respond_error(403, "RequestTimeTooSkewed", "The difference is too large.",
                                              {{"Date", "Fri, 31 Dec 9999 23:59:59 GMT"}}));
    static_cast<void>(cache.try_get("k"));
    // The store refuses no signature any more, whatever its date.
    world.always(fake_s3::raw_bytes("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nx-amz-meta-expires_at: 1000000000\r\n"
                                    "Content-Length: 1\r\n\r\nv"),
                 "GetObject");
    const auto hit = ok(cache.try_get("k"));
    CHECK_FALSE(hit);
}

// ---- far ends -------------------------------------------------------------------------------------------------------

TEST_CASE("the end of an entry is told rightly as far as a time point reaches, and as its greatest beyond", "[time]") {
    World world;
    Cache cache = world.cache();
    using Unit = TimePoint::duration;
    const double last = std::chrono::duration<double>(TimePoint::max().time_since_epoch()).count();
    for (const char* text : {"4611686018", "4611686019", "4700000000", "9000000000.5", "9200000000", "9300000000",
                             "99999999999", "1e12", "1e300"}) {
        CAPTURE(text);
        const double seconds = std::strtod(text, nullptr);
        world.put("k", "v", {{"expires_at", text}});
        const TimePoint wanted =
            seconds < last ? TimePoint(std::chrono::duration_cast<Unit>(Seconds(seconds))) : TimePoint::max();
        const auto near = [&](const Info& info) {
            REQUIRE(info.expires_at);
            const TimePoint got = *info.expires_at;
            return got <= wanted ? wanted - got <= 1s : got - wanted <= 1s;
        };
        CHECK(near(*cache.stat("k")));
        CHECK(near(cache.get("k")->info()));
        CHECK(near(cache.get_stream("k")->info()));
        for (const Entry& entry : cache.list({}, Look::deep)) CHECK(near(entry.info));
    }
    for (const char* text : {"-1e300", "-9300000000", "0", "1"}) {
        CAPTURE(text);
        world.put("k", "v", {{"expires_at", text}});
        CHECK_FALSE(cache.contains("k"));
        for (const Entry& entry : cache.list({}, Look::deep)) {
            REQUIRE(entry.info.expires_at);
            CHECK(*entry.info.expires_at < std::chrono::system_clock::now());
        }
    }
}

TEST_CASE("a TTL of centuries is written and read as what it is", "[time]") {
    World world;
    Cache cache = world.cache();
    for (const double years : {80.0, 100.0, 150.0, 230.0, 300.0, 5000.0}) {
        CAPTURE(years);
        const Seconds ttl(years * 365 * 86400);
        CHECK(cache.set("k", "v", {ttl}));
        CHECK(std::abs(left(world, "k") - ttl.count()) < 10);
        const auto info = cache.stat("k");
        REQUIRE(info);
        REQUIRE(info->expires_at);
        CHECK(*info->expires_at > std::chrono::system_clock::now() + std::chrono::hours(24 * 365 * 79));
        CHECK(cache.touch("k", ttl));
        CHECK(std::abs(left(world, "k") - ttl.count()) < 10);
    }
}
