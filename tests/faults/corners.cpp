// More cases of kinds of faults that were mended, and hold: what one test of a kind does not reach.
#include "world.hpp"

#include <sys/resource.h>
#include <unistd.h>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::text_of;
using store::World;

// ---- equal bytes ----------------------------------------------------------------------------------------------------

TEST_CASE("of several who store equal bytes in parts over an expired entry if it is absent, one is told that it did",
          "[corners][equal][conditions]") {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    options.answer_delay = 2ms;
    World world(options);
    Config config = world.config();
    config.on_event = {};
    config.seams.sleep = {};
    config.seams.random = {};
    config.part_bytes = 1000;
    store::Folder folder;
    const std::string data = store::text_lines(5000);
    store::write(folder / "in", data);
    std::vector<Cache> caches;
    for (int i = 0; i < 3; ++i) caches.push_back(world.cache(config));
    for (int way = 0; way < 4; ++way) {
        CAPTURE(way);
        const auto write = [&](Cache& cache) {
            SetOptions options_;
            options_.ttl = 60s;
            options_.if_absent = true;
            options_.compress = way == 3;
            if (way == 0) return cache.try_set("k", data, options_);
            if (way == 1) return cache.try_set_file("k", folder / "in", options_);
            return cache.try_set("k", Source(std::istringstream(data)), options_);
        };
        for (int round = 0; round < 4; ++round) {
            CAPTURE(round);
            world.s3.erase("bucket", "k");
            CHECK(ok(write(caches[0])));
            const auto there = world.s3.object("bucket", "k");
            REQUIRE(there);
            fake_s3::HeaderList headers;
            for (const auto& [name, value] : there->metadata)
                headers.emplace_back("x-amz-meta-" + name, name == "expires_at" ? "1000000000" : value);
            world.s3.put_object("bucket", "k", there->body, headers);
            std::atomic<int> won{0};
            store::Crew crew;
            crew.start(caches.size(), [&](std::size_t i) { won += ok(write(caches[i])) ? 1 : 0; });
            for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
            CHECK(won == 1);
            CHECK(same(text_of(caches[0].get("k")), data));
            CHECK(world.s3.open_uploads().empty());
        }
    }
}

// ---- removing -------------------------------------------------------------------------------------------------------

TEST_CASE("a sweep that cannot abort an upload is an error that tells what was aborted", "[corners][removing][sweep]") {
    World world;
    const store::Raw raw(world.s3.endpoint(), "", world.s3.access_key(), world.s3.secret_key(), "us-east-1");
    world.s3.set_clock_offset(-100);
    for (const char* key : {"/bucket/a", "/bucket/b", "/bucket/c"})
        REQUIRE(raw.request("POST", key, {{"uploads", ""}}).status == 200);
    world.s3.set_clock_offset(0);
    world.s3.deny_key("b");
    const Error error = failure(world.cache().try_sweep_uploads("", 10s));
    CAPTURE(error.what());
    CHECK(error.code() == Errc::denied);
    CHECK(store::holds(error.what(), "2 removed"));
    CHECK(world.s3.open_uploads().size() == 1);
}

TEST_CASE("a writer of other bytes between each look of a purge and its removal keeps its value",
          "[corners][removing][race]") {
    World world;
    Cache cache = world.cache();
    for (int i = 0; i < 20; ++i) world.put_expiring("k" + std::to_string(i), "old", -10);
    world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        if (request.operation == "HeadObject" && phase == Phase::after_effect)
            world.put_expiring(request.key, "new", 1000);
    });
    CHECK(code_of(cache.try_purge_expired()) == store::no_error);
    world.s3.on_request({});
    for (int i = 0; i < 20; ++i) CHECK(text_of(cache.get("k" + std::to_string(i))) == "new");
}
TEST_CASE("an answer to DeleteObjects that is no result leaves no key taken for removed", "[corners][removing][many]") {
    const char* const bodies[] = {"",
                                  " ",
                                  "<html>ok</html>",
                                  "<Error><Code>AccessDenied</Code></Error>",
                                  "<DeleteResult>",
                                  "<DeleteResult><Error/></DeleteResult>",
                                  "<DeleteResult><Error><Key>k/1</Key></Error></DeleteResult>"};
    for (const char* body : bodies) {
        CAPTURE(body);
        World world;
        Cache cache = world.cache();
        const std::vector<std::string> keys = {"k/0", "k/1", "k/2"};
        for (const std::string& key : keys) world.put(key, "v");
        world.always(fake_s3::respond(200, body), "DeleteObjects");
        if (store::holds(body, "k/1")) {  // the others are gone by the time of the answer
            world.s3.erase("bucket", "k/0");
            world.s3.erase("bucket", "k/2");
        }
        const auto results = cache.remove_many(keys);
        for (std::size_t i = 0; i < keys.size(); ++i) {
            CAPTURE(i);
            if (results[i]) CHECK_FALSE(world.has(keys[i]));
        }
    }
}

TEST_CASE("no file descriptors left is told as that where the endpoint has a name", "[corners][errors]") {
    World world;
    Config config = world.config();
    config.attempts_max = 1;
    config.endpoint = world.s3.host_endpoint();
    config.addressing = Addressing::path;
    Cache cache = world.cache(config);
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    const int next = dup(0);
    REQUIRE(next >= 0);
    close(next);
    const rlimit none{static_cast<rlim_t>(next), before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    const auto result = cache.try_get("k");
    setrlimit(RLIMIT_NOFILE, &before);
    const Error error = failure(result);
    CAPTURE(error.what());
    CHECK(store::holds(error.what(), "descriptor"));
}

// ---- what stores answer ---------------------------------------------------------------------------------------------

TEST_CASE("headers that a proxy has joined to a list of the same word are read as that word", "[corners][stores]") {
    World world;
    Cache cache = world.cache();
    const std::string later = std::to_string(world.s3.now() + 1000), before = std::to_string(world.s3.now() - 10);
    for (const char* join : {",", ", ", " ,  "}) {
        CAPTURE(join);
        const auto twice = [&](const std::string& text) { return text + join + text; };
        world.put("live", "[1]", {{"expires_at", twice(later)}, {"kind", twice("bytes")}, {"mine", "a,a"}});
        const auto hit = cache.get("live");
        REQUIRE(hit);
        CHECK(hit->kind() == Kind::bytes);
        CHECK(hit->info().expires_at);
        CHECK(hit->info().metadata == Metadata{{"mine", "a,a"}});  // the user's own stays as it is
        world.put("gzip", store::gzip("value"), {{"compressed", twice("true")}, {"kind", twice("text")}});
        CHECK(text_of(cache.get("gzip")) == "value");
        world.put("damaged", "value", {{"crc32c", twice(store::crc32c("another"))}});
        CHECK(code_of(cache.try_get("damaged")) == Errc::damaged);
        world.put("old", "v", {{"expires_at", twice(before)}});
        CHECK_FALSE(cache.get("old"));
        CHECK_FALSE(world.has("old"));
        world.put("odd", "v", {{"expires_at", later + join + before}});  // two that differ are no time
        CHECK_FALSE(cache.get("odd"));
        CHECK(world.has("odd"));
    }
}

// ---- waits ----------------------------------------------------------------------------------------------------------

TEST_CASE("a list of nothing but moving keys whose token is ignored comes to an end", "[corners][waiting][list]") {
    for (const int way : {0, 1, 2}) {
        CAPTURE(way);
        fake_s3::Options options;
        options.quirks.endless_lists = true;
        options.quirks.empty_list_pages = way == 1;
        options.quirks.reversed_lists = way == 2;
        options.list_page_max = 3;
        World world(options);
        Cache cache = world.cache();
        for (const char* key : {"a", "b", "c", "d", "e"}) world.put(key, "v");
        std::atomic<int> pages{0};
        world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
            if (request.operation != "ListObjectsV2" || phase != Phase::before_effect) return;
            if (++pages > 500) world.s3.set_quirks({});  // or it would never end
            if (pages % 2 == 1 && pages < 8) world.put("Before" + std::to_string(10 - pages), "v");  // a new first key
        });
        Listing listing = cache.list();
        Errc code = store::no_error;
        while (code == store::no_error) {
            auto next = listing.try_next();
            if (next && !*next) break;
            code = code_of(next);
        }
        world.s3.on_request({});
        CHECK(pages <= 500);
    }
}

TEST_CASE("cancel() ends a download, a listing and a removal at whichever request they stand still",
          "[corners][waiting][cancel]") {
    for (const char* operation : {"GetObject", "HeadObject", "DeleteObject", "DeleteObjects", "ListObjectsV2"}) {
        CAPTURE(operation);
        World world;
        Config config = world.config();
        config.on_event = {};
        config.seams.sleep = {};
        config.seams.random = {};
        Cache cache = world.cache(config);
        for (const char* key : {"k", "l"}) world.put_expiring(key, "v", -10);
        world.always(fake_s3::stall_at(Point::before_effect, 20s), operation);
        std::atomic<bool> over{false};
        std::thread other([&] {
            while (!over && world.s3.stalled() == 0) std::this_thread::sleep_for(1ms);
            std::this_thread::sleep_for(20ms);
            cache.cancel();
        });
        const std::string_view what = operation;
        const auto began = std::chrono::steady_clock::now();
        if (what == "GetObject") CHECK(code_of(cache.try_get_stream("k")) == Errc::cancelled);
        if (what == "HeadObject") CHECK(code_of(cache.try_purge_expired()) == Errc::cancelled);
        if (what == "DeleteObject") CHECK(code_of(cache.try_remove("k")) == Errc::cancelled);
        if (what == "DeleteObjects") CHECK(code_of(cache.remove_many({"k", "l"}).at(1)) == Errc::cancelled);
        if (what == "ListObjectsV2") CHECK(code_of(cache.try_list()) == Errc::cancelled);
        CHECK(std::chrono::steady_clock::now() - began < 15s);  // of the 20 that the store stands still
        over = true;
        other.join();
        world.s3.end_stalls();
    }
}

// ---- who we are, and what is said of it -----------------------------------------------------------------------------

TEST_CASE("however an endpoint is spelt, the host that is signed is the one that is sent", "[corners][endpoint]") {
    World world;
    world.put("k", "v");
    const std::string port = std::to_string(world.s3.port());
    for (const std::string host : {"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1",
                                   "LOCALHOST", "localhost", "0x7F.1", "127.0.0.01"}) {
        for (const std::string& tail : {":" + port, ":0" + port, ":" + port + "/", std::string(":") + port + "//"}) {
            CAPTURE(host, tail);
            Config config = world.config();
            config.endpoint = "http://" + host + tail;
            config.addressing = Addressing::path;
            config.attempts_max = 1;
            auto cache = Cache::try_open("bucket", config);
            if (!cache) {
                CHECK(cache.error().code() == Errc::invalid_argument);
                continue;
            }
            const auto hit = cache->try_get("k");
            if (hit)
                CHECK(text_of(*hit) == "v");
            else
                CHECK(hit.error().s3_code() != "SignatureDoesNotMatch");
        }
    }
}

TEST_CASE("no message of a proxy's trouble tells its password", "[corners][errors][secrets]") {
    for (const char* proxy :
         {"http://user:hush-hush@127.0.0.1:1", "user:hush-hush@127.0.0.1:1", "http://user:hush-hush@no-such.invalid:1",
          "user:hush-hush@no-such.invalid", "socks5h://user:hush-hush@127.0.0.1:1",
          "socks4://user:hush-hush@no.invalid", "nonsense://user:hush-hush@127.0.0.1:1", "http://user:hush-hush@[::1",
          "http://user:hush%2Dhush@127.0.0.1:x"}) {
        CAPTURE(proxy);
        World world;
        Config config = world.config();
        config.attempts_max = 2;
        config.proxy = proxy;
        bool told = false;
        config.on_event = [&](const Event& event) {
            told = told || store::holds(event.detail, "hush-hush") || store::holds(event.detail, "hush%2Dhush");
        };
        auto cache = Cache::try_open("bucket", config);
        const Error error = cache ? cache->try_get("k").error() : cache.error();
        CAPTURE(error.what());
        CHECK_FALSE(told);
        CHECK_FALSE(store::holds(error.what(), "hush-hush"));
        CHECK_FALSE(store::holds(error.what(), "hush%2Dhush"));
    }
}
