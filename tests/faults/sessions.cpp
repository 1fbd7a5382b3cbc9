// Faults that are near of kin to those of the other files: cancellation in a wait, what a HEAD cannot say, pages of a proxy.
#include "world.hpp"

#include <unistd.h>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::if_absent;
using store::ok;
using store::since;
using store::text_of;
using store::waiting;
using store::World;

namespace {

std::chrono::nanoseconds time_of(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

// ---- waits that call_timeout and cancel() must reach ----------------------------------------------------------------

TEST_CASE("a cancelled set_many starts no more keys of those that need more than one PUT either", "[cancel][many]") {
    for (const bool compress : {true, false}) {
        CAPTURE(compress);
        World world;
        Cache cache = world.cache(waiting(world));
        std::atomic<std::size_t> seen{0};
        SetOptions options;
        options.compress = compress;
        options.if_absent = !compress;
        std::vector<Item> items;
        for (int i = 0; i < 500; ++i) items.push_back(Item{"k" + std::to_string(i), "v", options});
        std::mutex counting;  // nobody is served between the count and the cancel()
        world.s3.on_request([&](const fake_s3::Recorded&, Phase phase) {
            if (phase != Phase::before_effect) return;
            const std::lock_guard<std::mutex> hold(counting);
            if (++seen == 20) cache.cancel();
        });
        const auto results = cache.set_many(items);
        CHECK(seen < 20 + 40);
        CHECK(results.size() == items.size());
        CHECK(code_of(results.back()) == Errc::cancelled);
        world.s3.on_request({});
    }
}

TEST_CASE("cancel() while a file is summed ends the call, with and without progress", "[cancel]") {
    store::Folder folder;
    const std::string path = folder / "sparse";
    store::write(path, "");
    REQUIRE(truncate(path.c_str(), off_t{1} << 30) == 0);
    for (const bool reports : {true, false}) {
        CAPTURE(reports);
        World world;
        Config config = waiting(world);
        config.part_bytes = std::size_t{64} << 20;
        Cache cache = world.cache(config);
        SetOptions options;
        if (reports) options.progress = [](const Progress&) { return true; };
        std::atomic<bool> sent{false};
        world.s3.on_request([&](const fake_s3::Recorded&, Phase) {
            if (!sent.exchange(true)) cache.cancel();  // or this would take a while
        });
        // The processor time of this thread: it alone tells that summing goes on, and what is done of it after cancel().
        clockid_t ours{};
        REQUIRE(pthread_getcpuclockid(pthread_self(), &ours) == 0);
        const auto before = time_of(ours);
        std::chrono::nanoseconds cancelled{0};
        std::atomic<bool> over{false};
        std::thread other([&] {
            while (!over && time_of(ours) - before < 50ms) std::this_thread::sleep_for(1ms);
            cache.cancel();
            cancelled = time_of(ours);
        });
        const Errc code = code_of(cache.try_set_file("k", path, options));
        const auto ended = time_of(ours);
        over = true;
        other.join();
        CHECK(code == Errc::cancelled);
        CHECK(ended - cancelled < 400ms);
        CHECK_FALSE(sent);
        world.s3.on_request({});
    }
}

TEST_CASE("a page that is no answer of S3's is no proof of S3 either", "[stores]") {
    for (const char* operation : {"get", "set", "list", "contains"}) {
        CAPTURE(operation);
        World world;
        fake_s3::Edit edit;
        edit.remove_headers = {"x-amz-request-id", "x-amz-id-2", "Server"};
        Cache cache = world.cache();
        world.always(fake_s3::html_page(200));
        world.always(fake_s3::edit_answer(edit));
        const std::string_view what = operation;
        if (what == "get") CHECK(code_of(cache.try_get("k")) == Errc::protocol);
        if (what == "set") CHECK(code_of(cache.try_set("k", "v")) == Errc::protocol);
        if (what == "list") CHECK(code_of(cache.try_list()) == Errc::protocol);
        if (what == "contains") CHECK(code_of(cache.try_contains("k")) == Errc::protocol);
        world.s3.clear_faults();
        world.always(fake_s3::respond(404));
        world.always(fake_s3::edit_answer(edit));
        CHECK(code_of(cache.try_get("k")) != store::no_error);
        CHECK(code_of(cache.try_remove("k")) != store::no_error);
    }
}

// ---- who we are -----------------------------------------------------------------------------------------------------

TEST_CASE("keys that are no good any more are fetched anew also where a HEAD finds it out", "[credentials]") {
    for (const char* call : {"stat", "touch", "if_absent"}) {
        for (const bool expired : {true, false}) {  // or unknown
            for (const bool reused : {true, false}) {
                CAPTURE(call, expired, reused);
                fake_s3::Options options;
                options.keys = {{"AKIDOLD", "secret 1 of two"}, {"AKIDNEW", "secret 2 of two"}};
                for (const auto& key : options.keys) store::secrets().push_back(key.secret_key);
                World world(options);
                Config config = world.config();
                std::size_t asked = 0;
                config.credentials = [&]() -> Result<Credentials> {
                    const fake_s3::Key& key = options.keys[(std::min)(asked++, std::size_t{1})];
                    return Credentials{key.access_key, key.secret_key, {}, {}, "a function"};
                };
                config.conditions = Conditions::off;
                Cache cache = world.cache(config);
                world.put("k", "v");
                if (reused) CHECK(cache.get("k"));
                if (expired) {
                    auto keys = options.keys;
                    keys[0].expired = true;
                    world.s3.set_keys(keys);
                } else {
                    world.s3.set_keys({options.keys[1]});
                }
                if (!reused) world.s3.close_connections();
                const std::string_view what = call;
                Errc code = store::no_error;
                if (what == "stat") code = code_of(cache.try_stat("k"));
                if (what == "touch") code = code_of(cache.try_touch("k", 60s));
                if (what == "if_absent") code = code_of(cache.try_set("k", "w", if_absent()));
                CHECK(code == store::no_error);
            }
        }
    }
}

// ---- what cleans up while the breaker keeps calls back --------------------------------------------------------------

TEST_CASE("an open breaker does not keep back the abort of an upload", "[breaker][parts]") {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    for (const char* cause : {"partNumber=1&", "partNumber=2&", "source"}) {
        CAPTURE(cause);
        World world(options);
        Config config = world.config();
        config.part_bytes = std::size_t{64} << 10;
        config.breaker_failures = 1;
        Cache cache = world.cache(config);
        if (std::string_view(cause) == "source") {
            world.s3.add_fault(fake_s3::respond_error(500, "InternalError").on("GetObject").for_times(3));
            std::size_t asked = 0, given = 0;
            Source source = [&](char* buffer, std::size_t capacity) -> std::size_t {
                if (given >= 200000 && ++asked == 1) {
                    CHECK(code_of(cache.try_get("other")) != store::no_error);    // it opens …
                    CHECK(code_of(cache.try_get("other")) == Errc::unavailable);  // … and is open
                    throw std::runtime_error("the source has had enough");
                }
                std::fill_n(buffer, capacity, 'x');
                given += capacity;
                return capacity;
            };
            CHECK(code_of(cache.try_set("k", std::move(source))) == Errc::source);
            CHECK(asked == 1);
            CHECK(world.s3.request_count("CreateMultipartUpload") == 1);
        } else {
            world.s3.add_fault(
                fake_s3::respond_error(500, "InternalError").on("UploadPart").with_query(cause).for_times(3));
            CHECK(failure(cache.try_set("k", store::random_bytes(300000, 1))).status() == 500);
        }
        CHECK(world.s3.request_count("AbortMultipartUpload") == 1);
        CHECK(world.s3.open_uploads().empty());
        CHECK(cache.stats().leftover_uploads == 0);
    }
}

TEST_CASE("an open breaker keeps back the end of a lease, which lapses by itself", "[breaker][lease]") {
    World world;
    Config config = world.config();
    config.breaker_failures = 1;
    Cache cache = world.cache(config);
    ComputeOptions how;
    how.lease = 600s;
    std::size_t sent = 0;
    const auto made = cache.try_get_or_set(
        "k",
        [&]() -> std::string {
            world.s3.add_fault(fake_s3::respond_error(500, "InternalError").on("GetObject").for_times(3));
            CHECK(code_of(cache.try_get("other")) != store::no_error);
            CHECK(code_of(cache.try_get("other")) == Errc::unavailable);
            sent = world.s3.requests().size();
            return "v";
        },
        {}, how);
    CHECK(ok(made).view() == "v");
    CHECK(world.s3.requests().size() == sent);
}
