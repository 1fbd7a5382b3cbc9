// Of conditions, leases, removing and presigned URLs: waits that must end, clocks put right, answers half right.
#include "world.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::if_absent;
using store::limited;
using store::ok;
using store::since;
using store::text_of;
using store::waiting;
using store::with_slow_helper;
using store::World;

TEST_CASE("call_timeout and cancel() end presign's wait for a slow source of credentials", "[timeout][cancel]") {
    World world;
    store::Folder folder;
    for (const bool cancels : {false, true}) {
        CAPTURE(cancels);
        Cache cache = world.cache(with_slow_helper(limited(world, cancels ? 60000ms : 300ms), folder));
        std::atomic<bool> over{false};
        std::thread other([&] {  // again and again: there is no telling from outside when the call has begun
            while (cancels && !over) {
                std::this_thread::sleep_for(100ms);
                cache.cancel();
            }
        });
        const auto began = std::chrono::steady_clock::now();
        CHECK(code_of(cache.try_presign("k", "GET", 60s)) == (cancels ? Errc::cancelled : Errc::timed_out));
        CHECK(since(began) < 15s);  // the helper would have taken twenty
        over = true;
        other.join();
    }
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("cancel() while a lease is asked for ends get_or_set, and nothing is computed", "[cancel][compute]") {
    World world;
    Cache cache = world.cache(waiting(world));
    ComputeOptions how;
    how.lease = 30s;
    world.once("PutObject", Phase::before_effect, [&] { cache.cancel(); });
    world.s3.add_fault(fake_s3::stall_at(Point::before_effect, 1s).on("PutObject"));
    bool computed = false;
    const auto value = cache.try_get_or_set(
        "k",
        [&] {
            computed = true;
            return "v";
        },
        {}, how);
    CHECK(code_of(value) == Errc::cancelled);
    CHECK_FALSE(computed);
}

TEST_CASE("a claim that was left behind does not bound the time of the write that takes it over", "[conditions]") {
    World world;
    Config config = world.config();
    std::chrono::seconds shift{0};
    config.clock = [&] { return std::chrono::system_clock::now() + shift; };
    Cache cache = world.cache(config);
    CHECK(cache.set("probe", "v", if_absent()));
    world.put_expiring("k", "v", -10);
    {
        Config dying = config;
        dying.attempts_max = 1;
        world.s3.add_fault(fake_s3::reset_at(Point::before_effect).on("PutObject").for_key("k").nth_time(3));
        world.s3.add_fault(fake_s3::reset_at(Point::before_effect).on("DeleteObject").for_times(fake_s3::forever));
        world.always(fake_s3::reset_at(Point::before_effect).for_key("k"), "PutObject");
        static_cast<void>(world.cache(dying).try_set("k", "v", if_absent()));
        world.s3.clear_faults();
    }
    std::size_t claims = 0;
    for (const std::string& key : world.s3.keys("bucket")) claims += store::holds(key, ".s3cache/lease/");
    REQUIRE(claims == 1);
    shift = 120s;
    world.s3.set_clock_offset(120);
    world.s3.add_fault(fake_s3::slow_down("15").on("PutObject").for_key("k"));  // World waits for none
    const auto stored = cache.try_set("k", "v", if_absent());
    CHECK(code_of(stored) == store::no_error);
    CHECK((stored && *stored));
}

TEST_CASE("cancel() ends the pause between two looks for another machine's value", "[cancel][compute]") {
    World world;
    Config config = waiting(world);
    config.seams.random = [] { return 0.99; };
    Cache cache = world.cache(config), machine = world.cache(waiting(world));
    ComputeOptions how;
    how.lease = 60s;
    std::atomic<bool> enough{false}, computing{false};
    std::thread owner([&] {
        static_cast<void>(machine.try_get_or_set(
            "k",
            [&] {
                computing = true;
                while (!enough) std::this_thread::sleep_for(1ms);
                return "v";
            },
            {}, how));
    });
    while (!computing) std::this_thread::sleep_for(1ms);
    // What keeps a busy machine keeps one try; a pause that does not heed cancel() keeps each, as it has just begun.
    std::atomic<int> looks{0};  // at the lease: pauses of 50, 100, 200, 400, 800 and then 1000 ms follow
    world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        looks += request.operation == "HeadObject" && phase == Phase::after_effect;
    });
    std::chrono::milliseconds least = 1h;
    for (int tries = 0; tries < 5 && least >= 400ms; ++tries) {
        looks = 0;
        std::atomic<bool> over{false};
        std::chrono::steady_clock::time_point cancelled;
        std::thread other([&] {
            while (!over && looks < 7) std::this_thread::sleep_for(1ms);
            std::this_thread::sleep_for(50ms);
            cancelled = std::chrono::steady_clock::now();
            cache.cancel();
        });
        const Errc code = code_of(cache.try_get_or_set(
            "k", [] { return "w"; }, {}, how));
        const auto ended = std::chrono::steady_clock::now();
        over = true;
        other.join();
        CHECK(code == Errc::cancelled);
        least = (std::min)(least, std::chrono::duration_cast<std::chrono::milliseconds>(ended - cancelled));
    }
    CHECK(least < 400ms);
    enough = true;
    owner.join();
}

TEST_CASE("an error of DeleteObjects that names another key than was asked for is not taken for success",
          "[removing][many]") {
    for (const char* name : {"k%2F1", "/k/1", "K/1", "another"}) {
        CAPTURE(name);
        World world;
        Cache cache = world.cache();
        const std::vector<std::string> keys = {"k/0", "k/1", "k/2"};
        for (const std::string& key : keys) world.put(key, "v");
        fake_s3::Edit edit;
        edit.body = std::string("<?xml version=\"1.0\"?><DeleteResult><Error><Key>") + name +
                    "</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";
        world.s3.refuse_in_bulk("k/1", "AccessDenied", fake_s3::forever);
        world.always(fake_s3::edit_answer(edit), "DeleteObjects");
        world.always(fake_s3::respond_error(403, "AccessDenied").for_key("k/1"), "DeleteObject");
        const auto results = cache.remove_many(keys);
        for (std::size_t i = 0; i < keys.size(); ++i) {
            CAPTURE(i);
            if (results[i]) CHECK_FALSE(world.has(keys[i]));
        }
    }
}

TEST_CASE("a clock that is put right between the look at an entry and its removal keeps what lives",
          "[removing][time]") {
    for (const bool purges : {false, true}) {
        CAPTURE(purges);
        World world;
        Cache cache = world.cache();
        world.put_expiring("live", "v", 3600);
        world.s3.set_clock_offset(7200);  // one node of two, that answers all but the last request
        world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
            if (request.operation == "HeadObject" && phase == Phase::after_effect) world.s3.set_clock_offset(0);
        });
        static_cast<void>(purges ? code_of(cache.try_purge_expired()) : code_of(cache.try_get("live")));
        world.s3.on_request({});
        world.s3.set_clock_offset(0);
        CHECK(world.has("live"));
        CHECK(text_of(cache.get("live")) == "v");
    }
}

TEST_CASE("a lease is given back and taken over where ETags are weak", "[stores][compute]") {
    fake_s3::Quirks quirks;
    quirks.weak_etags = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    ComputeOptions how;
    how.lease = 30s;
    CHECK(code_of(cache.try_get_or_set(
              "k", []() -> Result<std::string> { return Error(Errc::source, "no"); }, {}, how)) == Errc::source);
    world.waits.clear();
    CHECK(ok(cache.try_get_or_set(
                 "k", [] { return "v"; }, {}, how))
              .view() == "v");
    std::chrono::milliseconds waited{0};
    for (const auto wait : world.waits) waited += wait;
    CHECK(waited < 5s);
}

TEST_CASE("a control character that stands raw in a list of uploads is named", "[stores]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::respond(
        200,
        "<?xml version=\"1.0\"?><ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>a\x01"
        "b</Key><UploadId>u</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>"
        "</ListMultipartUploadsResult>"));
    const Error error = failure(cache.try_sweep_uploads("", 1s));
    CHECK(store::holds(error.what(), "XML"));
}

// ---- counts ---------------------------------------------------------------------------------------------------------

TEST_CASE("clear, purge and sweep tell how many went before a page could not be had", "[removing]") {
    for (const char* operation : {"clear", "purge", "sweep"}) {
        CAPTURE(operation);
        fake_s3::Options options;
        options.list_page_max = 3;
        World world(options);
        Cache cache = world.cache();
        const std::string_view what = operation;
        const store::Raw raw(world.s3.endpoint(), "", world.s3.access_key(), world.s3.secret_key(), "us-east-1");
        world.s3.set_clock_offset(-100);
        for (int i = 0; i < 9; ++i) {
            const std::string key = "k" + std::to_string(i);
            if (what == "sweep")
                REQUIRE(raw.request("POST", "/bucket/" + key, {{"uploads", ""}}).status == 200);
            else
                world.put_expiring(key, "v", -10);
        }
        world.s3.set_clock_offset(0);
        const char* lists = what == "sweep" ? "ListMultipartUploads" : "ListObjectsV2";
        world.s3.add_fault(fake_s3::respond_error(403, "AccessDenied").on(lists).nth_time(2));
        const auto gone = what == "clear"   ? cache.try_clear("")
                          : what == "purge" ? cache.try_purge_expired()
                                            : cache.try_sweep_uploads("", 1s);
        const Error error = failure(gone);
        CHECK(error.code() == Errc::denied);
        CHECK(store::holds(error.what(), "3 removed"));
    }
}

TEST_CASE("a purge stops asking a store that is gone", "[removing]") {
    World world;
    Config config = world.config();
    config.connections = 2;
    Cache cache = world.cache(config);
    for (int i = 0; i < 50; ++i) world.put_expiring("k" + std::to_string(i), "v", -10);
    world.always(fake_s3::reset_at(Point::before_effect), "HeadObject");
    world.s3.clear_requests();
    CHECK(code_of(cache.try_purge_expired()) == Errc::network);
    CHECK(world.s3.request_count() < 20);
    CHECK(world.s3.object_count() == 50);
}

TEST_CASE("an empty visitor is told nothing, and nothing throws", "[many]") {
    World world;
    world.put("k", "v");
    Cache cache = world.cache();
    CHECK_NOTHROW(cache.get_many({"k", "", "missing"}, Cache::Visit()));
}

// ---- one producer at a time -----------------------------------------------------------------------------------------

namespace {

template <class Until>
void wait_until(Until until, std::chrono::milliseconds limit = 30s) {
    for (const auto began = std::chrono::steady_clock::now(); !until() && since(began) < limit;)
        std::this_thread::sleep_for(1ms);
}

}  // namespace

TEST_CASE("after a producer that failed late only one of those that wait takes its place", "[compute][timeout]") {
    constexpr std::size_t machines = 4;
    constexpr auto limit = 8000ms;  // and what cleaning up may take beyond it is 500
    World world;
    std::atomic<std::size_t> asleep{0}, asleep_again{0}, computed{0}, at_once{0}, most{0};
    std::atomic<bool> failed{false}, given_back{false};
    std::atomic<std::size_t> writes{0}, writes_again{0};
    Config config = waiting(world);
    config.call_timeout = limit;
    config.seams.sleep = [&](std::chrono::milliseconds) {
        if (!given_back) {
            ++asleep;
            wait_until([&] { return given_back.load(); });
        } else {
            ++asleep_again;
            std::this_thread::sleep_for(20ms);
        }
    };
    std::vector<Cache> caches;
    for (std::size_t i = 0; i < machines; ++i) {
        caches.push_back(world.cache(config));
        CHECK(ok(caches[i].try_set("warm" + std::to_string(i), "v", if_absent())));  // it knows what conditions do
    }
    // None writes the lease before all have seen that there is none, at first and when it is free again: all but one
    // are told then that it is taken. If they don't come, the test tells nothing.
    world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        if (!store::holds(request.key, ".s3cache/lease/")) return;
        if (request.operation == "PutObject" && phase == Phase::before_effect) {
            auto& count = failed ? writes_again : writes;
            ++count;
            wait_until([&] { return count >= (failed ? machines - 1 : machines); }, limit / 2);
        }
        if (request.operation == "DeleteObject" && phase == Phase::after_effect) given_back = true;
    });
    ComputeOptions how;
    how.lease = 60s;
    const auto produce = [&]() -> Result<std::string> {
        const std::size_t now = ++at_once;
        for (std::size_t seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        if (++computed == 1) {
            wait_until([&] { return asleep == machines - 1; });
            std::this_thread::sleep_for(limit + 800ms);
            failed = true;
            --at_once;
            return Error(Errc::source, "the first one fails");
        }
        wait_until([&] { return asleep_again + computed >= machines; });  // the others wait again, or compute as well
        --at_once;
        return std::string("v");
    };
    store::Crew crew;
    std::atomic<std::size_t> values{0};
    crew.start(machines, [&](std::size_t i) {
        const auto value = caches[i].try_get_or_set("k", produce, SetOptions{}, how);
        values += value && value->view() == "v" ? 1U : 0U;
    });
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
    world.s3.on_request({});
    CHECK(most == 1);
    CHECK(computed == 2);
    CHECK(values == machines - 1);
}

// ---- conditions of what goes up in parts ----------------------------------------------------------------------------

TEST_CASE("a condition that the store refuses keeps no value in parts from being stored either",
          "[conditions][parts]") {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    options.quirks.refuse_conditional_put = true;
    const std::string data = store::random_bytes(300000, 1);
    for (const bool streams : {false, true}) {
        for (const bool replaces : {false, true}) {
            for (const Conditions conditions : {Conditions::automatic, Conditions::required}) {
                CAPTURE(streams, replaces, static_cast<int>(conditions));
                World world(options);
                Config config = world.config();
                config.part_bytes = std::size_t{64} << 10;
                config.conditions = conditions;
                Cache cache = world.cache(config);
                if (replaces) world.put("k", "before");
                SetOptions how;
                how.if_absent = !replaces;
                if (replaces) how.if_match = world.s3.object("bucket", "k")->etag;
                const auto stored =
                    streams ? cache.try_set("k", Source(std::istringstream(data)), how) : cache.try_set("k", data, how);
                if (conditions == Conditions::automatic) {
                    CHECK(code_of(stored) == store::no_error);
                    CHECK(store::same(world.body("k"), data));
                } else {
                    CHECK(code_of(stored) == Errc::unsupported);
                    CHECK(world.body("k") == (replaces ? "before" : "(nothing)"));
                }
                CHECK(world.s3.open_uploads().empty());
            }
        }
    }
}
