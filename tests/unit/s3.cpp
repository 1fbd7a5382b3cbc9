// Section s3, what a caller chooses for bad days: the breaker, reading only, errors told as misses, cancelling from another thread,
// and what a body is checked against.

#include "world.hpp"

#include <algorithm>
#include <stdexcept>
#include <thread>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

// A clock that goes only when it is told to.
struct Hands {
    TimePoint now = std::chrono::system_clock::now();
    std::function<TimePoint()> clock() {
        return [this] { return now; };
    }
};

// For several threads: what a World notes down is one thread's to write.
Config quiet(World& world) {
    Config config = world.config();
    config.on_event = {};
    config.seams.sleep = {};
    return config;
}

// Catch's assertions are one thread's, too.
template <class T>
std::optional<Errc> quiet_code(const Result<T>& result) {
    return result ? std::optional<Errc>() : result.error().code();
}

Result<std::string> read_all(Cache& cache, const std::string& key) {
    Result<std::optional<Reader>> reader = cache.try_get_stream(key);
    if (!reader) return std::move(reader).error();
    if (!*reader) return std::string("(a miss)");
    std::string out;
    for (;;) {
        const Result<std::string_view> chunk = (*reader)->try_next();
        if (!chunk) return chunk.error();
        if (chunk->empty()) return out;
        out += *chunk;
    }
}

}  // namespace

// ---- the breaker ----------------------------------------------------------------------------------------------------

TEST_CASE("after so many failures in a row the breaker keeps calls back, and lets one through after the pause",
          "[breaker]") {
    World world;
    Hands hands;
    Config config = world.config();
    config.clock = hands.clock();
    config.attempts_max = 1;
    config.breaker_failures = 3;
    config.breaker_pause = 10s;
    Cache cache = world.cache(config);
    world.put("k", "v");
    world.s3.add_fault(fake_s3::respond(500).for_times(fake_s3::forever));
    for (int i = 0; i < 3; ++i) CHECK(code_of(cache.try_get("k")) == Errc::store);

    CHECK(world.requests([&] {
        const Error error = failure(cache.try_get("k"));
        CHECK(error.code() == Errc::unavailable);
        CHECK(error.attempts() == 0);
        CHECK(code_of(cache.try_set("k", "w")) == Errc::unavailable);
    }) == 0);
    CHECK(cache.stats().unavailable == 2);

    hands.now += 11s;  // one goes through and fails: the pause begins again
    CHECK(world.requests([&] {
        CHECK(code_of(cache.try_get("k")) == Errc::store);
        CHECK(code_of(cache.try_get("k")) == Errc::unavailable);
    }) == 1);

    world.s3.clear_faults();
    hands.now += 11s;  // one goes through and succeeds: all do
    CHECK(text_of(cache.get("k")) == "v");
    CHECK(text_of(cache.get("k")) == "v");
}

TEST_CASE("misses and refusals are signs of health", "[breaker]") {
    World world;
    Config config = world.config();
    config.attempts_max = 1;
    config.breaker_failures = 2;
    Cache cache = world.cache(config);
    world.s3.deny_key("denied");
    for (int i = 0; i < 5; ++i) {
        CHECK_FALSE(cache.get("missing"));
        CHECK(code_of(cache.try_get("denied")) == Errc::denied);
    }
    world.s3.add_fault(fake_s3::respond(500).for_times(1));
    CHECK(code_of(cache.try_get("k")) == Errc::store);
    CHECK_FALSE(cache.get("missing"));  // which makes the count begin anew
    world.s3.add_fault(fake_s3::respond(500).for_times(1));
    CHECK(code_of(cache.try_get("k")) == Errc::store);
    CHECK_FALSE(cache.get("missing"));
}

TEST_CASE("a clock set back does not turn the breaker's pause into a day", "[breaker]") {
    World world;
    Hands hands;
    Config config = world.config();
    config.clock = hands.clock();
    config.attempts_max = 1;
    config.breaker_failures = 1;
    Cache cache = world.cache(config);
    world.s3.add_fault(fake_s3::respond(500).for_times(1));
    CHECK(code_of(cache.try_get("k")) == Errc::store);
    hands.now -= 24h;
    CHECK_FALSE(cache.get("k"));
}

// ---- reading only, errors as misses ---------------------------------------------------------------------------------

TEST_CASE("a cache for reading only sends nothing that writes", "[read_only]") {
    World world;
    Config config = world.config();
    config.read_only = true;
    Cache cache = world.cache(config);
    world.put_expiring("old", "v", -10);
    world.put_expiring("k", "v", 60);
    world.s3.clear_requests();

    CHECK(text_of(cache.get("k")) == "v");
    CHECK_FALSE(cache.get("old"));  // and it stays there
    CHECK(code_of(cache.try_set("k", "w")) == Errc::read_only);
    CHECK(code_of(cache.try_set("k", std::istringstream("w"))) == Errc::read_only);
    CHECK(code_of(cache.try_set_file("k", "/etc/hostname")) == Errc::read_only);
    CHECK(code_of(cache.try_remove("k")) == Errc::read_only);
    CHECK(code_of(cache.try_touch("k", 1h)) == Errc::read_only);
    CHECK(code_of(cache.try_clear("")) == Errc::read_only);
    CHECK(code_of(cache.try_purge_expired()) == Errc::read_only);
    CHECK(code_of(cache.try_sweep_uploads("", 0s)) == Errc::read_only);
    CHECK(code_of(cache.set_many({{"k", "w"}}).front()) == Errc::read_only);
    CHECK(code_of(cache.remove_many({"k"}).front()) == Errc::read_only);
    CHECK(cache.get_or_set("new", [] { return "made"; }, {}, {1min}).str() == "made");

    for (const auto& request : world.s3.requests()) CHECK((request.method == "GET" || request.method == "HEAD"));
    CHECK(world.has("old"));
    CHECK_FALSE(world.has("new"));
}

TEST_CASE("errors may be told as misses, counted apart", "[tolerated]") {
    World world;
    Config config = world.config();
    config.attempts_max = 1;
    config.errors_are_misses = true;
    Cache cache = world.cache(config);
    world.put("k", "v");
    world.s3.add_fault(fake_s3::respond(500).for_times(fake_s3::forever));
    CHECK_FALSE(cache.get("k"));
    CHECK_FALSE(cache.get_stream("k"));
    CHECK_FALSE(cache.stat("k"));
    CHECK_FALSE(cache.contains("k"));
    CHECK_FALSE(cache.get_file("k", "/tmp/s3cache-never-made"));
    cache.get_many({"k"}, [](const std::string&, const Result<std::optional<Value>>& result) {
        CHECK(result);
        CHECK_FALSE(*result);
    });
    CHECK(cache.get_or_set("k", [] { return "made"; }).str() == "made");
    CHECK(cache.stats().tolerated == 7);
    CHECK(cache.stats().misses == 0);
    CHECK(cache.stats().errors == 8);  // the seven, and the value that could not be stored

    CHECK(code_of(cache.try_get("")) == Errc::invalid_argument);  // the caller's own mistake
    CHECK(code_of(cache.try_set("k", "w")) == Errc::store);       // writing is no reading
}

// ---- cancelling -----------------------------------------------------------------------------------------------------

TEST_CASE("cancel() ends what is under way in other threads, and nothing that comes later", "[cancel]") {
    World world;
    world.put("k", "v");
    Config config = quiet(world);
    config.stall_timeout = 0ms;
    config.connect_timeout = 0ms;
    Cache cache = world.cache(config);
    const auto stalled = [&](Point at) { world.s3.add_fault(fake_s3::stall_at(at).for_times(fake_s3::forever)); };

    for (const Point at : {Point::before_effect, Point::answer_head, Point::answer_body}) {
        CAPTURE(static_cast<int>(at));
        stalled(at);
        std::optional<Errc> get, set, stream;
        std::thread getting([&] { get = quiet_code(cache.try_get("k")); });
        std::thread setting(
            [&] { set = quiet_code(cache.try_set("other", std::istringstream(std::string(2 * part, 'x')))); });
        std::thread streaming([&] {
            const Result<std::string> all = read_all(cache, "k");
            stream = all ? std::optional<Errc>() : all.error().code();
        });
        REQUIRE(world.s3.wait_for_stalled(3, 20s));
        cache.cancel();
        getting.join();
        streaming.join();
        world.s3.clear_faults();
        world.s3.release_stalls();  // the beginning of an upload is waited for, so that it can be aborted
        setting.join();
        CHECK(get == Errc::cancelled);
        CHECK(set == Errc::cancelled);
        CHECK(stream == Errc::cancelled);
        CHECK(world.s3.open_uploads().empty());
        CHECK(text_of(cache.get("k")) == "v");
    }
}

TEST_CASE("cancel() ends the wait for another thread's value", "[cancel]") {
    World world;
    Cache cache = world.cache(quiet(world));
    std::atomic<bool> go{false}, begun{false};
    std::thread pilot([&] {
        cache.get_or_set("k", [&] {
            begun = true;
            while (!go) std::this_thread::yield();
            return "made";
        });
    });
    while (!begun) std::this_thread::yield();
    std::optional<Errc> waiting;
    std::atomic<bool> over{false};
    std::thread waiter([&] {
        waiting = quiet_code(cache.try_get_or_set("k", [] { return "not asked"; }));
        over = true;
    });
    for (int round = 0; !over && round < 1000; ++round) {  // until it waits, there is nothing to cancel
        cache.cancel();
        std::this_thread::sleep_for(10ms);
    }
    go = true;
    waiter.join();
    pilot.join();
    CHECK(waiting == Errc::cancelled);
}

// ---- progress of reading --------------------------------------------------------------------------------------------

TEST_CASE("a get tells its progress, and is cancelled by it", "[progress]") {
    World world;
    const std::string body = store::random_bytes(2 * part, 1);
    world.put("k", body);
    Config config = world.config();
    Cache cache = world.cache(config);
    std::uint64_t told = 0, total = 0;
    GetOptions options;
    options.progress = [&](const Progress& progress) {
        CHECK(progress.done >= told);
        told = progress.done;
        total = progress.total.value_or(0);
        return true;
    };
    CHECK(same(text_of(cache.get("k", options)), body));
    CHECK(told == body.size());
    CHECK(total == body.size());

    world.s3.add_fault(fake_s3::stall_at(Point::answer_body, 0ms, 1000).for_times(fake_s3::forever));
    options.progress = [](const Progress& progress) { return progress.done == 0; };
    CHECK(code_of(cache.try_get("k", options)) == Errc::cancelled);
    world.s3.release_stalls();
    auto reader = cache.try_get_stream("k", options);
    Result<std::string_view> chunk = reader ? (*reader)->try_next() : Result<std::string_view>(reader.error());
    while (chunk && !chunk->empty()) chunk = (*reader)->try_next();
    CHECK(code_of(chunk) == Errc::cancelled);
}

TEST_CASE("operations on many keys throw nothing: what was thrown is the error of each key without a result",
          "[many]") {
    World world;
    for (const char* key : {"a", "b", "c"}) world.put(key, "v");
    Config config = world.config();
    config.seams.random = []() -> double { throw std::runtime_error("thrown on the way"); };  // before a retry
    config.connections = 1;
    Cache cache = world.cache(config);
    const std::vector<std::string> keys{"a", "b", "c"};
    std::vector<std::string> told;
    int hits = 0, errors = 0;
    world.s3.add_fault(fake_s3::slow_down().on("GetObject").for_key("b"));
    CHECK_NOTHROW(cache.get_many(keys, [&](const std::string& key, Result<std::optional<Value>> result) {
        told.push_back(key);
        hits += result && *result;
        errors += !result && store::holds(result.error().what(), "get " + key) &&
                  store::holds(result.error().what(), "thrown on the way");
    }));
    std::sort(told.begin(), told.end());
    CHECK(told == keys);
    CHECK(hits == 1);
    CHECK(errors == 2);
    world.s3.add_fault(fake_s3::slow_down().on("PutObject").for_key("b"));
    std::vector<Result<bool>> stored;
    CHECK_NOTHROW(stored = cache.set_many({{"a", "w"}, {"b", "w"}, {"c", "w"}}));
    REQUIRE(stored.size() == 3);
    CHECK(store::ok(stored[0]));
    CHECK(store::holds(failure(stored[1]).what(), "thrown on the way"));
    CHECK(store::holds(failure(stored[2]).what(), "set c"));
    world.s3.add_fault(fake_s3::slow_down().on("DeleteObjects"));
    std::vector<Result<void>> removed;
    CHECK_NOTHROW(removed = cache.remove_many(keys));
    REQUIRE(removed.size() == 3);
    for (const auto& result : removed) CHECK(store::holds(failure(result).what(), "thrown on the way"));
    CHECK(world.s3.object_count() == 3);
}

// ---- what a body is checked against ---------------------------------------------------------------------------------

TEST_CASE("damage in memory and files that were uploaded in parts is found by the CRC-32C of the whole",
          "[damage][parts]") {
    World world;
    Config config = world.config();
    config.connections = 1;  // so that one answer holds the whole, and a bit of it flips where it is meant to
    Cache cache = world.cache(config);
    const std::string body = store::random_bytes(3 * part + 17, 3);
    const store::Folder folder;
    const std::string path = folder / "in";
    std::ofstream(path, std::ios::binary) << body;
    REQUIRE(cache.set("memory", body));
    REQUIRE(cache.set_file("file", path));
    for (const std::string key : {"memory", "file"}) {
        CAPTURE(key);
        CHECK(world.s3.object("bucket", key)->parts > 1);
        CHECK(world.meta(key, "crc32c") ==
              detail::entry::crc32c_text(detail::digest::crc32c(0, body.data(), body.size())));
        CHECK(same(text_of(cache.get(key)), body));
        CHECK(same(*read_all(cache, key), body));
        for (const std::size_t at : {std::size_t{0}, part, 3 * part + 16}) {
            world.s3.add_fault(fake_s3::flip_bit(8 * at).on("GetObject").for_times(2));
            CHECK(code_of(cache.try_get(key)) == Errc::damaged);
            CHECK(code_of(read_all(cache, key)) == Errc::damaged);
        }
        REQUIRE(cache.touch(key, 1h));  // a copy onto itself keeps the sum
        world.s3.add_fault(fake_s3::flip_bit(8 * 4321).on("GetObject"));
        CHECK(code_of(cache.try_get(key)) == Errc::damaged);
        CHECK(same(text_of(cache.get(key)), body));
        config.checksums = Checksums::none;
        Cache trusting = world.cache(config);
        world.s3.add_fault(fake_s3::flip_bit(0).on("GetObject"));
        CHECK(trusting.get(key)->view().size() == body.size());
        config.checksums = Checksums::own;
    }
}

TEST_CASE("a stream in parts carries no sum, and sends nothing twice to find out about the store", "[parts]") {
    fake_s3::Quirks quirks;
    for (const bool odd : {false, true}) {
        CAPTURE(odd);
        quirks.etag_not_md5 = odd;
        World world(store::with(quirks));
        Cache cache = world.cache();
        const std::string body = store::random_bytes(2 * part + 17, 4);
        CHECK(world.requests([&] { CHECK(cache.set("k", std::istringstream(body))); }) == 5);
        for (const char* name : {"crc32c", "part-bytes", "parts-etag"}) CHECK(world.meta("k", name).empty());
        CHECK(same(text_of(cache.get("k")), body));
        CHECK(cache.touch("k", 1h));
        CHECK(same(text_of(cache.get("k")), body));
        CHECK(world.s3.open_uploads().empty());
    }
}

TEST_CASE("what earlier versions said of parts is ignored, and no user's metadata", "[parts]") {
    World world;
    Cache cache = world.cache();
    world.put("k", "v", {{"part-bytes", "1"}, {"parts-etag", "00000000000000000000000000000000-1"}, {"who", "me"}});
    const auto hit = cache.get("k");
    CHECK(text_of(hit) == "v");
    CHECK(hit->info().metadata == Metadata{{"who", "me"}});
    for (const char* name : {"part-bytes", "Parts-ETag"}) {
        SetOptions options;
        options.metadata = {{name, "1"}};
        CHECK(code_of(cache.try_set("other", "v", options)) == Errc::invalid_argument);
    }
}

TEST_CASE("an answer to a part without an ETag is no store's", "[damage][parts]") {
    World world;
    Cache cache = world.cache();
    const std::string body = store::random_bytes(2 * part + 1, 9);
    fake_s3::Edit edit;
    edit.remove_headers = {"ETag"};
    world.s3.add_fault(fake_s3::edit_answer(edit).on("UploadPart"));
    CHECK(code_of(cache.try_set("k", std::istringstream(body))) == Errc::protocol);
    CHECK(world.s3.open_uploads().empty());
    CHECK(cache.set("k", std::istringstream(body)));
}

TEST_CASE("summing before an upload in parts can be cancelled, and then nothing is sent", "[parts][cancel]") {
    World world;
    Cache cache = world.cache();
    SetOptions options;
    options.progress = [](const Progress&) { return false; };
    CHECK(world.requests([&] {
        CHECK(code_of(cache.try_set("k", std::string(3 * part, 'x'), options)) == Errc::cancelled);
    }) == 0);
}

TEST_CASE("the store's own checksums are sent and checked where the policy says so", "[damage][checksums]") {
    World world;
    Config config = world.config();
    config.checksums = Checksums::store;
    Cache cache = world.cache(config);
    const std::string body = store::random_bytes(100000, 6);
    REQUIRE(cache.set("own", body));
    const auto sent = world.s3.requests().back().header("x-amz-checksum-crc32c");
    CHECK(sent == store::crc32c(body));
    CHECK(same(text_of(cache.get("own")), body));
    CHECK(world.s3.requests().back().header("x-amz-checksum-mode") == "ENABLED");

    // Entries of other programs: each kind of sum, as the store tells it, right and wrong.
    struct Sum {
        const char *name, *right, *wrong;
    };
    const Sum sums[] = {{"crc32", "NhCmhg==", "NhCmhw=="},
                        {"crc32c", "mnG7TA==", "mnG7TQ=="},
                        {"crc64nvme", "M3eFcAZSQlc=", "M3eFcAZSQlY="}};
    for (const Sum& sum : sums) {
        CAPTURE(sum.name);
        world.put("k", "hello");
        for (const bool right : {true, false}) {
            fake_s3::Edit edit;
            edit.set_headers = {{std::string("x-amz-checksum-") + sum.name, right ? sum.right : sum.wrong}};
            world.s3.add_fault(fake_s3::edit_answer(edit).on("GetObject").for_times(fake_s3::forever));
            if (right)
                CHECK(text_of(cache.get("k")) == "hello");
            else
                CHECK(code_of(cache.try_get("k")) == Errc::damaged);
            world.s3.clear_faults();
        }
    }
    fake_s3::Edit composite;
    composite.set_headers = {{"x-amz-checksum-crc32c", "AAAAAA==-3"}};
    world.s3.add_fault(fake_s3::edit_answer(composite).on("GetObject"));
    CHECK(text_of(cache.get("k")) == "hello");  // a sum of sums tells nothing
    // Digests are not looked at, and do not keep a CRC beside them from being.
    for (const bool beside : {false, true}) {
        fake_s3::Edit digests;
        digests.set_headers = {{"x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ04="},
                               {"x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCU="}};
        if (beside) digests.set_headers.insert(digests.set_headers.begin(), {"x-amz-checksum-crc32", "NhCmhw=="});
        world.s3.add_fault(fake_s3::edit_answer(digests).on("GetObject"));
        CHECK(cache.try_get("k").has_value() == !beside);
    }
}

// ---- where the store is, whom to trust ------------------------------------------------------------------------------

TEST_CASE("a refusal that names no region is settled by the bucket's HEAD", "[region]") {
    fake_s3::Options options;
    options.region = "eu-west-7";
    options.quirks.enforce_region = true;
    World world(options);
    world.put("k", "v");
    world.s3.add_fault(fake_s3::respond_error(400, "IllegalLocationConstraintException").on("GetObject"));
    Cache cache = world.cache();
    CHECK(text_of(cache.get("k")) == "v");
    CHECK(world.s3.request_count("HeadBucket") >= 1);
    CHECK(world.requests([&] { CHECK(cache.get("k")); }) == 1);
}

TEST_CASE("the profile's ca_bundle is trusted, after what the environment names", "[tls]") {
    World world(store::over(true));
    const store::Folder folder;
    const std::string file = folder / "config";
    std::ofstream(file) << "[default]\nca_bundle = " << world.s3.ca_file() << "\n";
    std::map<std::string, std::string> variables = {{"AWS_CONFIG_FILE", file},
                                                    {"AWS_SHARED_CREDENTIALS_FILE", "/nowhere"}};
    Config config = world.config();
    config.ca_bundle.clear();
    config.attempts_max = 1;
    config.seams.environment = [&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? std::optional<std::string>() : found->second;
    };
    world.put("k", "v");
    CHECK(text_of(world.cache(config).get("k")) == "v");
    variables["AWS_CA_BUNDLE"] = "/nowhere/bundle.pem";
    Cache misled = world.cache(config);
    CHECK(code_of(misled.try_get("k")) == Errc::tls);
}

TEST_CASE("what cleans up after a call that is out of time takes its overtime once", "[timeout][parts]") {
    // The promise is in seconds, so this is one of few places where a clock decides: 0.5 s, and one of grace. A busy machine
    // may be out of time before there is something to clean up, or stand still in the overtime: then it has twice as long.
    auto overtime = std::chrono::steady_clock::duration::max();
    auto limit = 300ms;
    for (int i = 0; i < 4 && overtime >= 1500ms; ++i, limit *= 2) {
        World world;
        Config config = world.config();
        config.call_timeout = limit;
        config.stall_timeout = 0ms;
        Cache cache = world.cache(config);
        for (const char* operation : {"UploadPart", "AbortMultipartUpload"})
            world.always(fake_s3::stall_at(Point::before_effect), operation);
        const auto began = std::chrono::steady_clock::now();
        CHECK(code_of(cache.try_set("k", std::istringstream(std::string(2 * part, 'x')))) == Errc::timed_out);
        const auto took = std::chrono::steady_clock::now() - began;
        if (world.s3.request_count("AbortMultipartUpload") == 0) continue;
        CHECK(cache.stats().leftover_uploads == 1);
        overtime = (std::min)(overtime, took - limit);
    }
    CHECK(overtime < 1500ms);
}

// ---- a sink that says no to what was held back ----------------------------------------------------------------------

TEST_CASE("bytes that were held back and are then refused end the transfer, and none come after them", "[pause]") {
    World world;
    world.put("k", store::random_bytes(std::size_t{4} << 20, 7));
    Config config = world.config();
    const auto core = detail::cache::open("bucket", config);
    REQUIRE(core);
    struct Sink {
        bool refuses = false;
        std::size_t offered = 0;
        static detail::http::SinkResult take(void* self, const detail::http::Transfer&, const char*, std::size_t) {
            Sink& sink = *static_cast<Sink*>(self);
            ++sink.offered;
            return sink.refuses ? detail::http::SinkResult::stop : detail::http::SinkResult::pause;
        }
    } sink;
    detail::s3::Session session(**core);
    detail::s3::Call call(session, detail::s3::request(**core, "get", detail::http::Method::get, "k"));
    call.request.sink = {&sink, &Sink::take};
    call.start();
    while (!call.done && !(call.answer && call.answer->paused)) session.step(100ms);
    REQUIRE_FALSE(call.done);
    sink.refuses = true;
    const std::size_t before = sink.offered;
    call.resume();
    for (int i = 0; i < 50; ++i) session.step(0ms);
    CHECK(call.done);
    CHECK(call.stopped_by_sink());
    CHECK(sink.offered == before + 1);
}

TEST_CASE("a stream read in fits and starts over a line that gets help is what was stored", "[pause][ranges]") {
    fake_s3::Options options;
    options.connection_bytes_per_second = 30 << 20;
    World world(options);
    Config config = world.config();
    config.part_bytes = std::size_t{1} << 20;
    Cache cache = world.cache(config);
    const std::string body = store::random_bytes((std::size_t{6} << 20) + 4321, 8);
    world.put("k", body);
    for (int round = 0; round < 5; ++round) {
        auto reader = cache.get_stream("k");
        REQUIRE(reader);
        std::string got;
        for (std::string_view chunk : *reader) {
            got += chunk;
            if (got.size() < body.size() / 2)
                std::this_thread::sleep_for(60ms);  // so that the buffers fill, and the transfer pauses
        }
        CHECK(same(got, body));
    }
}

TEST_CASE("the outcome of a get, a set and a removal tells what was moved and how long it took", "[events]") {
    World world;
    Config config = world.config();
    std::map<std::string, Event> outcomes;
    config.on_event = [&](const Event& event) {
        if (event.attempt == 0) outcomes[std::string(event.operation) + " " + std::string(event.outcome)] = event;
    };
    Cache cache = world.cache(config);
    cache.set("k", "hello");
    cache.get("k");
    cache.get("missing");
    cache.remove("k");
    for (const char* name : {"set done", "get hit", "get miss", "remove done"}) {
        CAPTURE(name);
        REQUIRE(outcomes.count(name) == 1);
        CHECK(outcomes[name].duration.count() > 0);
    }
    CHECK(outcomes["set done"].bytes == 5);
    CHECK(outcomes["get hit"].bytes == 5);
    CHECK(outcomes["get hit"].status == 200);
    CHECK(outcomes["get miss"].status == 404);
}
