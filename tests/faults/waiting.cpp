// Waits: none of them spins, and none is out of reach of call_timeout and cancel(), whose names the errors give.
#include "world.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)  // dlsym() without a library of its own
#define REPLACES_CALLS
#include <curl/curl.h>
#include <dlfcn.h>
#include <netdb.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::limited;
using store::ok;
using store::same;
using store::text_of;
using store::waiting;
using store::with_slow_helper;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

std::chrono::milliseconds processor_time() {  // of this thread
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    const auto of = [](const timeval& t) {
        return std::chrono::seconds(t.tv_sec) + std::chrono::microseconds(t.tv_usec);
    };
    return std::chrono::duration_cast<std::chrono::milliseconds>(of(usage.ru_utime) + of(usage.ru_stime));
}

// Zeros until `until` says that it is enough; how often it was asked.
struct Endless {
    std::function<bool()> until;
    std::size_t asked = 0, bytes = 0;
    bool came_to_its_end = false;
    std::chrono::milliseconds pause{0};

    std::size_t operator()(char* buffer, std::size_t capacity) {
        ++asked;
        if (pause.count() > 0) std::this_thread::sleep_for(pause);
        came_to_its_end = until();
        if (came_to_its_end) return 0;
        std::fill_n(buffer, capacity, '\0');
        bytes += capacity;
        return capacity;
    }
};

// A limit of the test's own, far from what is tested.
std::function<bool()> after(std::chrono::seconds limit) {
    return [end = std::chrono::steady_clock::now() + limit] { return std::chrono::steady_clock::now() > end; };
}

void names_call_timeout(const Error& error) {
    CAPTURE(error.what());
    CHECK(error.code() == Errc::timed_out);
    CHECK(store::holds(error.what(), "call_timeout"));
}

void names_cancel(const Error& error) {
    CAPTURE(error.what());
    CHECK(error.code() == Errc::cancelled);
    CHECK(store::holds(error.what(), "cancel()"));
    CHECK_FALSE(store::holds(error.what(), "progress"));
    CHECK_FALSE(store::holds(error.what(), "callback"));
}

// Cancels from another thread once `when` holds.
template <class When, class Call>
auto cancelled_when(Cache& cache, When when, Call call) {
    std::atomic<bool> over{false};
    std::thread other([&] {
        while (!over && !when()) std::this_thread::sleep_for(1ms);
        while (!over) {
            cache.cancel();
            std::this_thread::sleep_for(20ms);
        }
    });
    auto result = call();
    over = true;
    other.join();
    return result;
}

}  // namespace

// ---- no wait spins --------------------------------------------------------------------------------------------------

TEST_CASE("a wait between attempts takes no processor time", "[waiting]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Cache cache = world.cache(waiting(world));
        world.put("k", "v");
        CHECK(cache.contains("k"));
        for (const bool closes : {false, true}) {
            CAPTURE(closes);
            world.s3.add_fault(fake_s3::slow_down("2"));
            if (closes) world.s3.close_connections();
            const auto before = processor_time();
            const auto began = std::chrono::steady_clock::now();
            CHECK(text_of(cache.get("k")) == "v");
            CHECK(std::chrono::steady_clock::now() - began >= 1900ms);
            CHECK(processor_time() - before < 150ms);
            world.s3.clear_faults();
        }
    }
}

TEST_CASE("waits of many keys, of uploads in parts and of streams take no processor time either", "[waiting]") {
    World world;
    Cache cache = world.cache(waiting(world));
    for (const char* key : {"a", "b", "c"}) world.put(key, "v");
    const auto before = processor_time();
    world.s3.add_fault(fake_s3::slow_down("1").on("GetObject").for_times(3));
    std::size_t hits = 0;
    cache.get_many({"a", "b", "c"}, [&](const std::string&, Result<std::optional<Value>> hit) { hits += hit && *hit; });
    CHECK(hits == 3);
    world.s3.add_fault(fake_s3::slow_down("1").on("DeleteObjects"));
    for (const auto& result : cache.remove_many({"a", "b"})) CHECK(result);
    world.s3.add_fault(fake_s3::slow_down("1").on("ListObjectsV2"));
    for (const Entry& entry : cache.list()) CHECK(entry.key == "c");
    CHECK(processor_time() - before < 300ms);
}

TEST_CASE("a wait for a store that says nothing takes no processor time", "[waiting]") {
    World world;
    Cache cache = world.cache(waiting(world));
    world.put("k", std::string(100000, 'x'));
    for (const Point at : {Point::before_effect, Point::answer_head, Point::answer_body}) {
        world.s3.add_fault(fake_s3::stall_at(at, 1000ms, at == Point::before_effect ? 0 : 10));
        const auto before = processor_time();
        CHECK(cache.get("k"));
        CHECK(processor_time() - before < 150ms);
        world.s3.clear_faults();
    }
}

TEST_CASE("who waits for another thread's or another machine's value takes no processor time", "[waiting][compute]") {
    World world;
    Cache cache = world.cache(waiting(world)), machine = world.cache(waiting(world));
    ComputeOptions how;
    how.lease = Seconds(30);
    std::atomic<bool> computing{false};
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        static_cast<void>(cache.get_or_set(
            "k",
            [&] {
                computing = true;
                std::this_thread::sleep_for(1s);
                return "v";
            },
            {}, how));
    });
    while (!computing) std::this_thread::sleep_for(1ms);
    for (Cache* waits : {&cache, &machine}) {
        crew.start(1, [&how, waits](std::size_t) {
            const auto before = processor_time();
            store::expect(waits->get_or_set(
                                   "k", [] { return "w"; }, {}, how)
                                  .view() == "v",
                          "the other's value");
            store::expect(processor_time() - before < 300ms, "a wait that does not spin");
        });
    }
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
}

// ---- call_timeout reaches everything --------------------------------------------------------------------------------

TEST_CASE("call_timeout ends a helper process that gives credentials too slowly", "[waiting][timeout]") {
    World world;
    store::Folder folder;
    Config config = with_slow_helper(limited(world), folder);
    const auto began = std::chrono::steady_clock::now();
    names_call_timeout(failure(world.cache(config).try_get("k")));
    config.call_timeout = 0ms;
    Cache cache = world.cache(config);
    names_cancel(failure(cancelled_when(
        cache, [] { return true; }, [&] { return cache.try_get("k"); })));
    CHECK(std::chrono::steady_clock::now() - began < 15s);
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("call_timeout and cancel() end a request for credentials that is not answered", "[waiting][timeout]") {
    World world, container;
    container.always(fake_s3::stall_at(Point::before_effect));
    const std::string uri = container.s3.endpoint() + "/credentials";
    Config config = limited(world);
    config.credentials = {};
    config.seams.environment = [uri](const char* name) -> std::optional<std::string> {
        if (std::string_view(name) == "AWS_CONTAINER_CREDENTIALS_FULL_URI") return uri;
        if (std::string_view(name) == "AWS_EC2_METADATA_DISABLED") return "true";
        if (std::string_view(name) == "HOME") return "/nonexistent";
        return std::nullopt;
    };
    names_call_timeout(failure(world.cache(config).try_get("k")));
    config.call_timeout = 0ms;
    Cache cache = world.cache(config);
    container.s3.end_stalls();
    names_cancel(failure(cancelled_when(
        cache, [&] { return container.s3.stalled() > 0; }, [&] { return cache.try_get("k"); })));
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("call_timeout ends gzip of a source that never ends, and a source that dawdles", "[waiting][timeout]") {
    for (const bool compress : {true, false}) {
        for (const bool dawdles : {true, false}) {
            CAPTURE(compress, dawdles);
            World world;
            Config config = limited(world);
            config.transfer_bytes_max = part;
            Cache cache = world.cache(config);
            Endless source{after(15s)};
            source.pause = dawdles ? 20ms : 0ms;
            SetOptions options;
            options.compress = compress;
            const auto result = cache.try_set("k", Source(source), options);
            names_call_timeout(failure(result));
            CHECK_FALSE(source.came_to_its_end);
            CHECK_FALSE(world.has("k"));
            // One whose id was on its way when the time was over cannot be aborted, and is counted.
            CHECK(world.s3.open_uploads().size() <= cache.stats().leftover_uploads);
        }
    }
}

TEST_CASE("call_timeout ends an upload at whichever request it stands still", "[waiting][timeout]") {
    for (const char* operation :
         {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "PutObject"}) {
        CAPTURE(operation);
        World world;
        world.always(fake_s3::stall_at(Point::before_effect, 20s), operation);
        const bool aborts = std::string_view(operation) == "AbortMultipartUpload";
        if (aborts) world.always(fake_s3::stall_at(Point::before_effect, 20s), "UploadPart");
        const std::string body(std::string_view(operation) == "PutObject" ? 10 : 2 * part, 'x');
        // A busy machine may be out of time before it comes to that request: then it has twice as long.
        for (auto limit = 300ms; world.s3.stalled() == 0 && limit < 10s; limit *= 2)
            names_call_timeout(
                failure(world.cache(limited(world, limit)).try_set("k", Source(std::istringstream(body)))));
        CHECK(world.s3.stalled() > 0);  // nobody waited for it to go on
        world.s3.end_stalls();
    }
}

TEST_CASE("call_timeout is named by every operation that it ended, and not what there was no time for",
          "[waiting][timeout]") {
    World world;
    world.put("k", "v");
    world.put_expiring("old", "v", -10);
    store::Folder folder;
    Cache cache = world.cache(limited(world, 100ms));
    world.always(fake_s3::stall_at(Point::before_effect));
    names_call_timeout(failure(cache.try_get("k")));
    names_call_timeout(failure(cache.try_get_stream("k")));
    names_call_timeout(failure(cache.try_get_file("k", folder / "out")));
    names_call_timeout(failure(cache.try_stat("k")));
    names_call_timeout(failure(cache.try_touch("k", 1h)));
    names_call_timeout(failure(cache.try_remove("k")));
    names_call_timeout(failure(cache.try_set("k", "v")));
    names_call_timeout(failure(cache.try_clear("")));
    names_call_timeout(failure(cache.try_purge_expired()));
    for (const auto& result : cache.remove_many({"k", "old"})) names_call_timeout(failure(result));
    for (const auto& result : cache.set_many({Item{"k", "v"}, Item{"l", "v"}})) names_call_timeout(failure(result));
    cache.get_many({"k"},
                   [](const std::string&, Result<std::optional<Value>> hit) { names_call_timeout(failure(hit)); });
    world.s3.clear_faults();
    world.s3.end_stalls();

    world.always(fake_s3::slow_down("60"));  // no wait would do: what the store said goes along
    const Error error = failure(world.cache(limited(world, 20000ms)).try_get("k"));
    CHECK((error.code() == Errc::throttled || error.code() == Errc::timed_out));
    CHECK(store::holds(error.what(), "SlowDown"));
}

TEST_CASE("the other limits are named, too, by what they end", "[waiting][timeout]") {
    World world;
    world.put("k", "v");
    Config config = waiting(world);
    config.attempts_max = 1;
    config.stall_timeout = 1000ms;
    world.always(fake_s3::stall_at(Point::before_effect));
    const Error stalled = failure(world.cache(config).try_get("k"));
    CHECK(stalled.code() == Errc::timed_out);
    CHECK(store::holds(stalled.what(), "stall_timeout"));
    CHECK_FALSE(store::holds(stalled.what(), "call_timeout"));
}

// ---- cancel() reaches everything ------------------------------------------------------------------------------------

TEST_CASE("cancel() ends gzip of a source that never ends, also when the source itself calls it", "[waiting][cancel]") {
    for (const bool compress : {true, false}) {
        for (const bool itself : {true, false}) {
            CAPTURE(compress, itself);
            World world;
            Config config = waiting(world);
            config.transfer_bytes_max = part;
            Cache cache = world.cache(config);
            Endless source{after(15s)};
            std::atomic<bool> begun{false};
            SetOptions options;
            options.compress = compress;
            Source stream = [&](char* buffer, std::size_t capacity) {
                if (itself && source.asked == 3) cache.cancel();
                begun = true;
                return source(buffer, capacity);
            };
            const auto call = [&] { return cache.try_set("k", std::move(stream), options); };
            names_cancel(failure(itself ? call()
                                        : cancelled_when(
                                              cache, [&] { return begun.load(); }, call)));
            CHECK_FALSE(source.came_to_its_end);
            CHECK_FALSE(world.has("k"));
            CHECK(world.s3.open_uploads().empty());
        }
    }
}

TEST_CASE("cancel() ends the wait between attempts, and an upload that has hardly begun", "[waiting][cancel]") {
    World world;
    Config config = waiting(world);
    Cache cache = world.cache(config);
    world.always(fake_s3::slow_down("60"), "GetObject");
    const auto asked = [&] { return world.s3.request_count() > 0; };
    names_cancel(failure(cancelled_when(cache, asked, [&] { return cache.try_get("k"); })));
    for (const char* operation : {"CreateMultipartUpload", "UploadPart"}) {
        CAPTURE(operation);
        world.always(fake_s3::stall_at(Point::before_effect, 20s), operation);
        const auto call = [&] { return cache.try_set("k", Source(std::istringstream(std::string(2 * part, 'x')))); };
        names_cancel(failure(cancelled_when(
            cache, [&] { return world.s3.stalled() > 0; }, call)));
        CHECK(world.s3.stalled() > 0);
        world.s3.clear_faults();
        world.s3.end_stalls();
        while (world.s3.stalled() > 0) std::this_thread::sleep_for(1ms);  // or the next would be cancelled at once
    }
}

TEST_CASE("a cancelled call for many keys starts no more of them", "[waiting][cancel][many]") {
    // A store for each call: what one had sent when it was cancelled may arrive when it has returned.
    struct Stopping {
        explicit Stopping(std::size_t stop_at) {
            cache.emplace(world.cache(waiting(world)));
            world.s3.on_request([this, stop_at](const fake_s3::Recorded&, Phase phase) {
                if (phase != Phase::before_effect) return;
                const std::lock_guard<std::mutex> hold(counting);
                if (++seen == stop_at && cache) cache->cancel();
            });
        }
        // Its connections go before the store does, whose threads they may keep waiting (under wine).
        ~Stopping() {
            const std::lock_guard<std::mutex> hold(counting);
            cache.reset();
        }
        std::optional<Cache> cache;
        std::mutex counting;  // nobody is served between the count and the cancel()
        std::atomic<std::size_t> seen{0};
        World world;
    };
    std::vector<Item> items;
    std::vector<std::string> keys;
    for (int i = 0; i < 20000; ++i) {
        keys.push_back("k" + std::to_string(i));
        items.push_back(Item{keys.back(), "v"});
    }
    {
        constexpr std::size_t stop_at = 100;
        Stopping store(stop_at);
        const auto sets = store.cache->set_many(items);
        CHECK(store.seen < stop_at + 100);
        REQUIRE(sets.size() == items.size());
        std::size_t done = 0;
        for (const auto& result : sets) {
            done += result.has_value();
            if (!result && result.error().code() != Errc::cancelled) FAIL_CHECK(result.error().what());
        }
        CHECK(done < stop_at + 100);
        names_cancel(failure(sets.back()));
    }
    {
        Stopping store(100);
        std::size_t visits = 0;
        store.cache->get_many(keys, [&](const std::string&, Result<std::optional<Value>>) { ++visits; });
        CHECK(store.seen < 100 + 100);
        CHECK(visits == keys.size());
    }
    {
        Stopping store(2);
        const auto removals = store.cache->remove_many(keys);
        CHECK(store.seen <= 2 + 16);
        CHECK(removals.size() == keys.size());
        names_cancel(failure(removals.back()));
    }
    for (const bool all : {false, true}) {
        CAPTURE(all);
        Stopping store(5);
        store.world.s3.set_list_page_max(10);
        for (int i = 0; i < 1000; ++i) store.world.put_expiring(keys[static_cast<std::size_t>(i)], "v", -10);
        names_cancel(failure(all ? store.cache->try_clear("") : store.cache->try_purge_expired()));
        CHECK(store.seen < 5 + 40);
    }
}

// ---- sources slower than the store ----------------------------------------------------------------------------------

TEST_CASE("a source slower than the store has patience for is stored all the same", "[waiting][source]") {
    fake_s3::Options options;
    options.body_idle_limit = 400ms;
    options.idle_close = 1000ms;
    for (const bool announced : {false, true}) {
        for (const bool compress : {false, true}) {
            CAPTURE(announced, compress);
            World world(options);
            Cache cache = world.cache(waiting(world));
            const std::string data = store::random_bytes(2 * part + 1000, 1);
            std::size_t given = 0, pause_at = 3000000;
            Source source = [&](char* buffer, std::size_t capacity) {
                if (given >= pause_at) {
                    pause_at += 4500000;
                    std::this_thread::sleep_for(700ms);  // longer than a body may pause
                }
                const std::size_t count = (std::min)({capacity, data.size() - given, std::size_t{1500000}});
                data.copy(buffer, count, given);
                given += count;
                return count;
            };
            if (announced) source = std::move(source).sized(data.size());
            SetOptions how;
            how.compress = compress;
            CHECK(ok(cache.try_set("k", std::move(source), how)));
            CHECK(same(text_of(cache.get("k")), data));
            CHECK(world.s3.open_uploads().empty());
            CHECK(cache.stats().retries <= 4);  // idle connections that were closed; no part was cut
        }
    }
}

TEST_CASE("a body that pauses is never begun: what is sent is at hand whole", "[waiting][source]") {
    World world;
    Cache cache = world.cache(waiting(world));
    // Nothing is sent while the source is asked: what was begun ends only if all of it has been sent already.
    const auto is_half_sent = [&] {
        const auto requests = world.s3.requests();
        return std::any_of(requests.begin(), requests.end(), [](const fake_s3::Recorded& request) {
            return request.operation == "UploadPart" && request.status == 0;
        });
    };
    std::size_t given = 0, pause_at = part + part / 2, pauses = 0;
    const std::size_t size = 2 * part + part / 2;
    Source source = [&](char* buffer, std::size_t capacity) {
        const std::size_t count = (std::min)({capacity, size - given, part / 4});
        if (given >= pause_at) {
            ++pauses;
            pause_at += part / 2 + part / 4;
            std::this_thread::sleep_for(250ms);  // so that the source counts as a slow one
            const auto limit = after(20s);       // the store may be slow to answer what it has
            while (is_half_sent() && !limit()) std::this_thread::sleep_for(1ms);
            CHECK_FALSE(is_half_sent());
        }
        std::fill_n(buffer, count, 'x');
        given += count;
        return count;
    };
    CHECK(ok(cache.try_set("k", std::move(source))));
    CHECK(pauses == 2);
    CHECK(world.s3.request_count("UploadPart") == 3);
}

// ---- lists that do not end ------------------------------------------------------------------------------------------

TEST_CASE("a store that ignores the token gives an error, not a list without end", "[waiting][list]") {
    fake_s3::Options options;
    options.quirks.endless_lists = true;
    options.list_page_max = 3;
    for (const char* operation : {"list", "deep", "purge", "sweep"}) {
        CAPTURE(operation);
        World world(options);
        Cache cache = world.cache(waiting(world));
        for (const char* key : {"a", "b", "c", "d", "e"}) world.put(key, "v");
        const store::Raw raw(world.s3.endpoint(), "", world.s3.access_key(), world.s3.secret_key(), "us-east-1");
        for (const char* key : {"u", "v"})
            CHECK(raw.request("POST", std::string("/bucket/") + key, {{"uploads", ""}}).status == 200);
        world.s3.on_request([&](const fake_s3::Recorded&, Phase) {
            if (world.s3.request_count() > 2000) world.s3.set_quirks({});  // or it would never end
        });
        world.s3.clear_requests();
        const std::string_view what = operation;
        Errc code = store::no_error;
        if (what == "purge") code = code_of(cache.try_purge_expired());
        if (what == "sweep") code = code_of(cache.try_sweep_uploads("", 24h));
        if (what == "list" || what == "deep") {
            Listing listing = cache.list({}, what == "deep" ? Look::deep : Look::shallow);
            while (code == store::no_error) {
                auto next = listing.try_next();
                if (!next)
                    code = code_of(next);
                else if (!*next)
                    break;
            }
        }
        CHECK(code == Errc::protocol);
        CHECK(world.s3.request_count() < 100);
        world.s3.on_request({});
    }
}

TEST_CASE("clear comes to an end where the token is ignored, and has removed what there was", "[waiting][list]") {
    fake_s3::Options options;
    options.quirks.endless_lists = true;
    options.list_page_max = 3;
    World world(options);
    Cache cache = world.cache(waiting(world));
    for (const char* key : {"a", "b", "c", "d", "e", "f", "g"}) world.put(key, "v");
    world.s3.on_request([&](const fake_s3::Recorded&, Phase) {
        if (world.s3.request_count() > 2000) world.s3.set_quirks({});
    });
    const auto cleared = cache.try_clear("");
    CHECK((!cleared || world.s3.object_count() == 0));
    CHECK(world.s3.request_count() < 1000);
    world.s3.on_request({});
}

TEST_CASE("pages that repeat a key, or come empty without end, are an error", "[waiting][list]") {
    const auto page = [](const std::string& keys, const std::string& token) {
        std::string out =
            "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>true</IsTruncated>"
            "<NextContinuationToken>" +
            token + "</NextContinuationToken>";
        for (const char key : keys) {
            out += std::string("<Contents><Key>") + key +
                   "</Key><LastModified>2025-01-15T12:00:00.000Z</LastModified>" +
                   "<ETag>\"x\"</ETag><Size>1</Size></Contents>";
        }
        return out + "</ListBucketResult>";
    };
    for (const std::vector<std::string>& pages :
         {std::vector<std::string>{"abc", "cde"}, {"abc", "abd"}, {"abc", "abc"}}) {
        CAPTURE(pages[1]);
        World world;
        Cache cache = world.cache(waiting(world));
        for (std::size_t i = 0; i < pages.size(); ++i) {
            world.s3.add_fault(
                fake_s3::respond(200, page(pages[i], "t" + std::to_string(i))).on("ListObjectsV2").nth_time(i + 1));
        }
        Listing listing = cache.list();
        Errc code = store::no_error;
        for (int i = 0; i < 100 && code == store::no_error; ++i) {
            auto next = listing.try_next();
            if (next && !*next) break;
            code = code_of(next);
        }
        CHECK(code == Errc::protocol);
    }
}

TEST_CASE("a list page full of references without an end is refused in time that grows with its size",
          "[waiting][list]") {
    World world;
    Cache cache = world.cache();
    std::string page = "<ListBucketResult>";
    while (page.size() < std::size_t{7} << 20) page += "&#";  // the square of that takes the better part of an hour
    world.always(fake_s3::respond(200, page), "ListObjectsV2");
    CHECK(code_of(cache.try_list()) == Errc::protocol);
}

TEST_CASE("a store that sorts in another order is listed whole, page by page", "[waiting][list]") {
    fake_s3::Options options;
    options.quirks.reversed_lists = true;
    options.list_page_max = 3;
    World world(options);
    Cache cache = world.cache();
    for (const char* key : {"a", "b", "c", "d", "e", "f", "g", "h"})
        world.put_expiring(key, "v", *key < 'e' ? -10 : 100);
    std::size_t count = 0;
    for (const Entry& entry : cache.list()) count += !entry.key.empty();
    CHECK(count == 8);
    CHECK(cache.purge_expired() == 4);
    CHECK(cache.clear("") == 4);
}

// ---- the time of one call -------------------------------------------------------------------------------------------

TEST_CASE("the longest timeout of a call is no timeout, a negative one is over before anything is sent",
          "[waiting][timeout]") {
    World world;
    Cache cache = world.cache();
    GetOptions get;
    SetOptions set;
    get.timeout = set.timeout = std::chrono::milliseconds::max();
    CHECK(code_of(cache.try_set("k", "v", set)) == store::no_error);
    CHECK(code_of(cache.try_get("k", get)) == store::no_error);
    CHECK(code_of(cache.try_get_stream("k", get)) == store::no_error);
    for (const auto over : {-1ms, std::chrono::milliseconds::min()}) {
        CAPTURE(over.count());
        get.timeout = set.timeout = over;
        world.s3.clear_requests();
        CHECK(code_of(cache.try_set("k", "w", set)) == Errc::timed_out);
        CHECK(code_of(cache.try_get_stream("k", get)) == Errc::timed_out);
        const auto late = cache.try_get("k", get);
        REQUIRE(code_of(late) == Errc::timed_out);
        CHECK(std::string_view(late.error().what()).find("call_timeout, 0 ms") != std::string_view::npos);
        CHECK(world.s3.request_count() == 0);
    }
    CHECK(world.body("k") == "v");
}

// ---- what hangs while it is cleaned up after ------------------------------------------------------------------------

TEST_CASE("cancel() ends an upload in parts to a store that answers nothing any more", "[waiting][cancel][parts]") {
    const auto time_to_end = [](const char* operation) {
        fake_s3::Options options;
        options.part_bytes_min = 1;
        World world(options);
        Config config = waiting(world);
        config.part_bytes = std::size_t{64} << 10;
        Cache cache = world.cache(config);
        for (const char* hangs : {operation, "AbortMultipartUpload", "HeadObject"})
            world.always(fake_s3::stall_at(Point::before_effect), hangs);
        std::chrono::steady_clock::time_point cancelled;
        std::thread other([&] {
            world.s3.wait_for_stalled(1, 60s);
            cancelled = std::chrono::steady_clock::now();
            cache.cancel();
        });
        const auto result = cache.try_set("k", store::random_bytes(300000, 1));
        const auto returned = std::chrono::steady_clock::now();
        CHECK(world.s3.stalled() > 0);  // nobody waited for it to go on
        other.join();
        world.s3.end_stalls();
        names_cancel(failure(result));
        return returned - cancelled;
    };
    for (const char* operation : {"UploadPart", "CompleteMultipartUpload"}) {
        CAPTURE(operation);
        bool is_quick = false;  // cleaning up was tried for ten seconds each time, whatever the machine
        for (int tries = 0; tries < 3 && !is_quick; ++tries) is_quick = time_to_end(operation) < 5s;
        CHECK(is_quick);
    }
}

TEST_CASE("cancel() ends a get_or_set whose lease cannot be given back", "[waiting][cancel][lease]") {
    const auto time_to_end = [] {
        World world;
        Cache cache = world.cache(waiting(world));
        ComputeOptions how;
        how.lease = 600s;
        std::chrono::steady_clock::time_point cancelled;
        std::thread other;
        const auto produce = [&]() -> std::string {
            world.always(fake_s3::stall_at(Point::before_effect));
            other = std::thread([&] {
                world.s3.wait_for_stalled(1, 60s);
                cancelled = std::chrono::steady_clock::now();
                cache.cancel();
            });
            return "v";
        };
        const auto made = cache.try_get_or_set("k", produce, {}, how);
        const auto returned = std::chrono::steady_clock::now();
        other.join();
        world.s3.end_stalls();
        CHECK(ok(made).view() == "v");  // it is made, stored or not
        return returned - cancelled;
    };
    bool is_quick = false;  // giving it back was tried for ten seconds, whatever the machine
    for (int tries = 0; tries < 3 && !is_quick; ++tries) is_quick = time_to_end() < 5s;
    CHECK(is_quick);
}

// ---- calls of libcurl's that the program takes ----------------------------------------------------------------------

#ifdef REPLACES_CALLS

namespace {

std::atomic<int> held_lookups{0};
std::atomic<bool> are_lookups_held{false};
#ifdef __LP64__                                                // elsewhere there may be two ways to ask for the time
thread_local const std::atomic<int>* seconds_ahead = nullptr;  // of this thread's steady clock; null: none
#endif

}  // namespace

// Holds that name's lookup, as a name server does that says nothing.
extern "C" int getaddrinfo(const char* name, const char* service, const addrinfo* hints, addrinfo** found) {
    static const auto real = reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
    if (!name || std::string_view(name) != "held.invalid") return real(name, service, hints, found);
    ++held_lookups;
    while (are_lookups_held) std::this_thread::sleep_for(1ms);
    --held_lookups;
    return EAI_AGAIN;
}

TEST_CASE("a name whose lookup hangs keeps no call from being out of time, or cancelled",
          "[waiting][timeout][cancel]") {
    const auto* const curl = curl_version_info(CURLVERSION_NOW);
    const bool looks_up_in_a_thread = (curl->features & CURL_VERSION_ASYNCHDNS) != 0 && !curl->ares;
    if (LIBCURL_VERSION_NUM < 0x075700 || curl->version_num < 0x075700 || !looks_up_in_a_thread) {
        WARN("this libcurl cannot leave a lookup alone, or does not look up as we hold it");
        return;
    }
    for (const bool cancels : {false, true}) {
        CAPTURE(cancels);
        World world;
        Config config = limited(world, cancels ? 0ms : 500ms);
        config.endpoint = "http://held.invalid:9000";
        config.addressing = Addressing::path;
        Cache cache = world.cache(config);
        are_lookups_held = true;
        std::atomic<bool> over{false};
        std::thread other([&] {
            const auto limit = after(15s);  // or a call that waits for the lookup would never end
            while (!over && !limit() && held_lookups == 0) std::this_thread::sleep_for(1ms);
            if (cancels) cache.cancel();
            while (!over && !limit()) std::this_thread::sleep_for(1ms);
            are_lookups_held = false;
        });
        const auto result = cache.try_get("k");
        const bool was_held = are_lookups_held;
        over = true;
        other.join();
        while (held_lookups > 0) std::this_thread::sleep_for(1ms);
        CHECK(was_held);
        cancels ? names_cancel(failure(result)) : names_call_timeout(failure(result));
    }
}

#ifdef __LP64__

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
    const int result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
    if (result == 0 && clock == CLOCK_MONOTONIC && seconds_ahead) time->tv_sec += *seconds_ahead;
    return result;
}

TEST_CASE("no limit is no limit, also of the time that connecting takes", "[waiting][timeout]") {
    World world(store::over(true));
    world.put("k", "v");
    Config config = limited(world, 0ms);
    config.attempts_max = 1;
    Cache cache = world.cache(config);
    world.s3.add_fault(fake_s3::stall_at(Point::connect));  // there is no TLS yet
    std::atomic<int> ahead{0};
    std::atomic<bool> over{false};
    std::thread other([&] {
        world.s3.wait_for_stalled(1, 60s);
        ahead = 1000;                  // libcurl's own limit is 300
        const auto limit = after(1s);  // of which it would need a tenth to find that its time is over
        while (!over && !limit()) std::this_thread::sleep_for(1ms);
        world.s3.release_stalls();
    });
    seconds_ahead = &ahead;
    const auto hit = cache.try_get("k");
    const auto now = std::chrono::steady_clock::now();
    seconds_ahead = nullptr;
    over = true;
    other.join();
    CHECK(now - std::chrono::steady_clock::now() > 900s);  // the clock was indeed put forward
    REQUIRE(ok(hit));
    CHECK(text_of(*hit) == "v");
}

#endif

#endif
