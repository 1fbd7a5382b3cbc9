// Two entries of the same bytes have the same ETag: what claims, removals and touches make of a writer who stores them again.
#include "world.hpp"

#include <array>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using store::code_of;
using store::ok;
using store::text_of;
using store::World;

namespace {

SetOptions claim(Seconds ttl = 60s) {
    SetOptions options;
    options.ttl = ttl;
    options.if_absent = true;
    return options;
}

// A store as AWS is, and one that deletes whatever If-Match says.
fake_s3::Options store_that(bool ignores_delete, std::chrono::milliseconds latency = 0ms) {
    fake_s3::Options options;
    options.quirks.ignore_conditional_delete = ignores_delete;
    options.answer_delay = latency;
    return options;
}

// World's own logs are one thread's.
Config for_threads(World& world) {
    Config config = world.config();
    config.on_event = {};
    config.seams.sleep = {};
    config.seams.random = {};
    return config;
}

using Write = Result<bool> (*)(Cache& cache, const std::string& payload);

}  // namespace

// ---- one of many ----------------------------------------------------------------------------------------------------

TEST_CASE("of many who store the same bytes over an expired entry if it is absent, one is told that it did",
          "[equal][conditions]") {
    struct Way {
        const char* name;
        Write write;
    };
    const Way ways[] = {
        {"set", [](Cache& cache, const std::string& v) { return cache.try_set("jobs/42", v, claim()); }},
        {"stream",
         [](Cache& cache, const std::string& v) {
             return cache.try_set("jobs/42", Source(std::istringstream(v)), claim());
         }},
        {"set_many",
         [](Cache& cache, const std::string& v) {
             return cache.set_many({Item{"jobs/42", v, claim()}}).at(0);
         }},
    };
    for (const bool ignores_delete : {false, true}) {
        for (const Way& way : ways) {
            CAPTURE(ignores_delete, way.name);
            World world(store_that(ignores_delete, 3ms));
            std::vector<Cache> caches;
            for (int i = 0; i < 3; ++i) caches.push_back(world.cache(for_threads(world)));
            for (int round = 0; round < 8; ++round) {
                CAPTURE(round);
                world.put_expiring("jobs/42", "mine", -10);
                std::atomic<int> won{0}, at_start{0};
                store::Crew crew;
                crew.start(caches.size(), [&](std::size_t i) {
                    ++at_start;
                    while (at_start < static_cast<int>(caches.size())) std::this_thread::yield();
                    won += ok(way.write(caches[i], "mine")) ? 1 : 0;
                });
                for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
                CHECK(won == 1);
                CHECK(text_of(caches[0].get("jobs/42")) == "mine");
                CHECK_FALSE(caches[0].set("jobs/42", "mine", claim()));
            }
            std::size_t entries = 0;
            for (const Entry& entry : caches[0].list()) entries += entry.key == "jobs/42" ? 1U : 100U;
            CHECK(entries == 1);
        }
    }
}

TEST_CASE("of two who store other bytes over an expired entry the one that is told so has its bytes there",
          "[equal][conditions]") {
    World world(store_that(false, 3ms));
    std::vector<Cache> caches;
    for (int i = 0; i < 3; ++i) caches.push_back(world.cache(for_threads(world)));
    for (int round = 0; round < 8; ++round) {
        CAPTURE(round);
        world.put_expiring("k", "old", -10);
        std::array<std::atomic<bool>, 3> won{};
        store::Crew crew;
        crew.start(caches.size(),
                   [&](std::size_t i) { won[i] = ok(caches[i].try_set("k", std::to_string(i), claim())); });
        for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
        REQUIRE(won[0] + won[1] + won[2] == 1);
        CHECK(world.body("k") == (won[0] ? "0" : won[1] ? "1" : "2"));
    }
}

TEST_CASE("a claimer that dies at any request keeps the others from the key for a while at the most",
          "[equal][conditions][kill]") {
    for (const bool ignores_delete : {false, true}) {
        for (std::size_t request = 1; request <= 9; ++request) {
            CAPTURE(ignores_delete, request);
            World world(store_that(ignores_delete));
            std::chrono::seconds shift{0};  // of all clocks
            Config config = world.config();
            config.clock = [&] { return std::chrono::system_clock::now() + shift; };
            {
                config.attempts_max = 1;
                Cache dying = world.cache(config);
                static_cast<void>(dying.try_set("probe", "v", claim()));  // what the store honours is known by now
                world.put_expiring("jobs/42", "mine", -10);
                world.s3.add_fault(
                    fake_s3::reset_at(fake_s3::Point::after_effect).nth_time(request).for_times(fake_s3::forever));
                static_cast<void>(dying.try_set("jobs/42", "mine", claim(1s)));
                world.s3.clear_faults();
            }
            bool won = false;
            for (int i = 0; i < 40 && !won; ++i) {
                Cache next = world.cache(config);
                won = ok(next.try_set("jobs/42", "mine", claim()));
                if (!won) shift += 30s;
                world.s3.set_clock_offset(shift.count());
            }
            CHECK(won);
            CHECK(text_of(world.cache(config).get("jobs/42")) == "mine");
        }
    }
}

// ---- removal of what has expired ------------------------------------------------------------------------------------

TEST_CASE("a writer of equal bytes right after the read of the expired entry keeps its entry", "[equal][removing]") {
    struct Way {
        const char* name;
        void (*read)(Cache& cache);
    };
    store::Folder folder;
    static std::string path;
    path = folder / "out";
    const Way ways[] = {
        {"get", [](Cache& cache) { CHECK_FALSE(ok(cache.try_get("k"))); }},
        {"get_stream", [](Cache& cache) { CHECK_FALSE(ok(cache.try_get_stream("k"))); }},
        {"get_file", [](Cache& cache) { CHECK_FALSE(ok(cache.try_get_file("k", path))); }},
        {"get_many",
         [](Cache& cache) {
             cache.get_many({"k"}, [](const std::string&, Result<std::optional<Value>> hit) { CHECK_FALSE(ok(hit)); });
         }},
        {"get_if_changed", [](Cache& cache) { CHECK_FALSE(ok(cache.try_get_if_changed("k", "\"other\"")).value); }},
    };
    for (const bool ignores_delete : {false, true}) {
        for (const Way& way : ways) {
            CAPTURE(ignores_delete, way.name);
            World world(store_that(ignores_delete));
            Cache cache = world.cache();
            world.s3.set_clock_offset(-100);
            world.put_expiring("k", "v", 50);
            world.s3.set_clock_offset(0);
            world.once("GetObject", Phase::after_effect, [&] { world.put_expiring("k", "v", 100); });
            way.read(cache);
            CHECK(world.has("k"));
            CHECK(text_of(cache.get("k")) == "v");
        }
    }
}

TEST_CASE("a writer of equal bytes whose entry also has expired by then loses nothing", "[equal][removing]") {
    World world;
    Cache cache = world.cache();
    world.put_expiring("k", "v", -100);
    world.once("GetObject", Phase::after_effect, [&] { world.put("k", "v"); });
    CHECK_FALSE(cache.get("k"));
    CHECK(text_of(cache.get("k")) == "v");
}

TEST_CASE("an expired entry that nobody replaced is removed by the get that met it", "[equal][removing]") {
    for (const bool ignores_delete : {false, true}) {
        CAPTURE(ignores_delete);
        World world(store_that(ignores_delete));
        Cache cache = world.cache();
        world.put_expiring("k", "v", -100);
        CHECK_FALSE(cache.get("k"));
        CHECK_FALSE(world.has("k"));
    }
}

TEST_CASE("an expired entry is left alone while this process computes its key", "[equal][compute]") {
    World world;
    Cache cache = world.cache(for_threads(world));
    Cache other = world.cache(for_threads(world));
    world.put_expiring("k", "v", -100);
    const Value value = cache.get_or_set("k", [&] {
        for (int i = 0; i < 3; ++i) {
            CHECK_FALSE(cache.get("k"));
            CHECK_FALSE(cache.get_stream("k"));
        }
        CHECK(world.s3.request_count("DELETE") == 0);
        return "v";
    });
    CHECK(value.view() == "v");
    CHECK(world.s3.request_count("DELETE") == 0);
    CHECK(text_of(cache.get("k")) == "v");
}

TEST_CASE("computing over an expired entry of the same bytes never loses the value", "[equal][compute]") {
    for (const bool ignores_delete : {false, true}) {
        CAPTURE(ignores_delete);
        World world(store_that(ignores_delete, 2ms));
        std::vector<Cache> caches;
        for (int i = 0; i < 2; ++i) caches.push_back(world.cache(for_threads(world)));
        for (int round = 0; round < 20; ++round) {
            world.put_expiring("k", "v", -10);
            store::Crew crew;
            crew.start(caches.size(), [&](std::size_t i) {
                store::expect(ok(caches[i].try_get_or_set("k", [] { return "v"; }, {100s})).view() == "v", "the value");
            });
            for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
            CHECK(world.has("k"));
        }
    }
}

// ---- touch ----------------------------------------------------------------------------------------------------------

TEST_CASE("a writer in the middle of a touch is not undone without a word", "[equal][touch]") {
    for (const bool all_conditions : {true, false}) {
        for (const bool equal_bytes : {true, false}) {
            if (equal_bytes && !all_conditions) continue;  // AWS looks at the ETag alone, which is the same
            CAPTURE(all_conditions, equal_bytes);
            fake_s3::Quirks quirks;
            quirks.all_copy_conditions = all_conditions;
            World world(store::with(quirks));
            Cache cache = world.cache();
            world.s3.set_clock_offset(-100);
            world.put_expiring("k", "v", 1000);
            world.s3.set_clock_offset(0);
            world.once("CopyObject", Phase::before_effect, [&] {
                world.put("k", equal_bytes ? "v" : "w",
                          {{"expires_at", std::to_string(world.s3.now() + 5000)}, {"who", "the rival"}});
            });
            const Result<bool> touched = cache.try_touch("k", 100s);
            if (touched && *touched) CHECK(world.meta("k", "who") == "the rival");
        }
    }
}

TEST_CASE("a touch of an entry that another removed, or let expire, meanwhile says so", "[equal][touch]") {
    World world;
    Cache cache = world.cache();
    world.put_expiring("k", "v", 1000);
    world.once("CopyObject", Phase::before_effect, [&] { world.s3.erase("bucket", "k"); });
    CHECK_FALSE(cache.touch("k", 100s));
    CHECK_FALSE(world.has("k"));
    world.put_expiring("k", "v", 1000);
    world.once("CopyObject", Phase::before_effect, [&] { world.put_expiring("k", "w", -10); });
    CHECK_FALSE(cache.touch("k", 100s));
    CHECK_FALSE(cache.contains("k"));
}
