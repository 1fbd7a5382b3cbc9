// Section retry: retries, timeouts, lost answers, uploads in parts that fail, and the quirks of other stores, on the fake.
#include "world.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::if_absent;
using store::ok;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

using Milliseconds = std::chrono::milliseconds;

Milliseconds total(const std::vector<Milliseconds>& waits) {
    Milliseconds sum{0};
    for (const Milliseconds wait : waits) sum += wait;
    return sum;
}

}  // namespace

// ---- retries --------------------------------------------------------------------------------------------------------

TEST_CASE("passing trouble is waited out: two failures and a success are three requests", "[retry]") {
    struct Case {
        const char* name;
        fake_s3::Fault fault;
    };
    const Case cases[] = {
        {"503 SlowDown", fake_s3::slow_down()},
        {"500 InternalError", fake_s3::respond_error(500, "InternalError")},
        {"500 without a body", fake_s3::respond(500)},
        {"503 HTML", fake_s3::html_page(503)},
        {"502", fake_s3::html_page(502)},
        {"504", fake_s3::html_page(504)},
        {"429", fake_s3::respond_error(429, "TooManyRequests")},
        {"400 RequestTimeout", fake_s3::respond_error(400, "RequestTimeout")},
        {"closed before the answer", fake_s3::close_at(Point::before_effect)},
        {"reset before the answer", fake_s3::reset_at(Point::before_effect)},
        {"reset at the head", fake_s3::reset_at(Point::request_head)},
        {"reset after the effect", fake_s3::reset_at(Point::after_effect)},
        {"closed in the answer's head", fake_s3::close_at(Point::answer_head, 10)},
    };
    for (const Case& c : cases) {
        for (const char* operation : {"get", "set", "stat", "remove", "stream", "stream set", "list"}) {
            CAPTURE(c.name, operation);
            if (std::string(operation) == "stat" && c.fault.status == 400)
                continue;  // the answer to a HEAD cannot say which 400 it is
            World world;
            world.put("k", "v");
            Cache cache = world.cache();
            world.s3.add_fault(c.fault.for_times(2));
            const std::string what = operation;
            if (what == "get") CHECK(text_of(cache.get("k")) == "v");
            if (what == "set") CHECK(cache.set("k", "w"));
            if (what == "stat") CHECK(cache.stat("k")->size == 1);
            if (what == "remove") cache.remove("k");
            if (what == "stream") CHECK(store::drained(*cache.get_stream("k")) == "v");
            if (what == "stream set") CHECK(cache.set("k", std::istringstream("w")));
            if (what == "list") CHECK(ok(cache.list().try_next())->key == "k");
            CHECK(world.s3.request_count() == 3);
            CHECK(world.waits.size() == 2);
            CHECK(cache.stats().retries == 2);
            CHECK(cache.stats().requests == 3);
            CHECK(cache.stats().errors == 0);
            CHECK(world.body("k") == (what == "remove"                        ? "(nothing)"
                                      : what == "set" || what == "stream set" ? "w"
                                                                              : "v"));
            CHECK(world.attempts.size() == 3);
        }
    }
}

TEST_CASE("waits are random within bounds that double, up to the cap", "[retry]") {
    for (const double random : {0.0, 0.25, 0.999999}) {
        for (const Milliseconds cap : {Milliseconds(5000), Milliseconds(120)}) {
            CAPTURE(random, cap.count());
            World world;
            world.random = random;
            Config config = world.config();
            config.backoff_base = 50ms;
            config.backoff_cap = cap;
            config.attempts_max = 6;
            Cache cache = world.cache(config);
            world.s3.add_fault(fake_s3::slow_down().for_times(fake_s3::forever));
            const Error error = failure(cache.try_get("k"));
            CHECK(error.code() == Errc::throttled);
            CHECK(error.attempts() == 6);
            REQUIRE(world.waits.size() == 5);
            for (std::size_t i = 0; i < world.waits.size(); ++i) {
                const auto most = (std::min)(cap, Milliseconds(50 << (i + 1)));
                CHECK(world.waits[i] >= 0ms);
                CHECK(world.waits[i] <= most);
                if (random == 0.0)
                    CHECK(world.waits[i] == 0ms);
                else
                    CHECK(world.waits[i] > 0ms);
                if (i > 0 && random > 0) CHECK(world.waits[i] >= world.waits[i - 1]);
            }
            if (random > 0.9 && cap > 1s) CHECK(world.waits[4] > 400ms);
        }
    }
}

TEST_CASE("attempts_max is the number of requests, and the error is the last one's", "[retry]") {
    for (const int attempts : {1, 2, 5}) {
        CAPTURE(attempts);
        World world;
        Config config = world.config();
        config.attempts_max = attempts;
        Cache cache = world.cache(config);
        world.s3.add_fault(fake_s3::slow_down().for_times(fake_s3::forever));
        const Error error = failure(cache.try_set("k", "v"));
        CHECK(error.code() == Errc::throttled);
        CHECK(error.status() == 503);
        CHECK(error.s3_code() == "SlowDown");
        CHECK(error.attempts() == attempts);
        CHECK(error.retryable());
        CHECK(store::holds(error.what(), "SlowDown"));
        CHECK(world.s3.request_count() == static_cast<std::size_t>(attempts));
        CHECK(world.waits.size() == static_cast<std::size_t>(attempts - 1));
        CHECK(cache.stats().retries == static_cast<std::uint64_t>(attempts - 1));
        CHECK(cache.stats().errors == 1);
    }
    World world;
    Config config = world.config();
    config.attempts_max = 0;
    const auto opened = Cache::try_open("bucket", config);
    if (!opened) CHECK(code_of(opened) == Errc::invalid_argument);
}

TEST_CASE("what another attempt would not change is not tried again", "[retry]") {
    struct Case {
        int status;
        const char* s3_code;
        Errc code;
    };
    for (const Case& c : {Case{403, "AccessDenied", Errc::denied}, Case{403, "SignatureDoesNotMatch", Errc::denied},
                          Case{403, "InvalidAccessKeyId", Errc::denied}, Case{401, "Unauthorized", Errc::denied},
                          Case{404, "NoSuchBucket", Errc::no_such_bucket}, Case{400, "InvalidArgument", Errc::store},
                          Case{501, "NotImplemented", Errc::unsupported}, Case{405, "MethodNotAllowed", Errc::store},
                          Case{400, "EntityTooLarge", Errc::too_large}, Case{403, "InvalidObjectState", Errc::denied},
                          Case{400, "KeyTooLongError", Errc::store}}) {
        CAPTURE(c.s3_code);
        World world;
        Cache cache = world.cache();
        world.s3.add_fault(fake_s3::respond_error(c.status, c.s3_code).for_times(fake_s3::forever));
        const Error error = failure(cache.try_set("k", "v"));
        CHECK(error.status() == c.status);
        CHECK(error.s3_code() == c.s3_code);
        CHECK_FALSE(error.retryable());
        CHECK(world.s3.request_count() == 1);
        CHECK(world.waits.empty());
        if (c.code == Errc::denied || c.code == Errc::no_such_bucket) CHECK(error.code() == c.code);
    }
}

TEST_CASE("Retry-After is honoured, up to the call's deadline", "[retry]") {
    World world;
    Config config = world.config();
    Cache cache = world.cache(config);
    world.s3.add_fault(fake_s3::slow_down("2"));
    CHECK_FALSE(cache.get("k"));
    REQUIRE(world.waits.size() == 1);
    CHECK(world.waits[0] >= 2s);
    CHECK(world.waits[0] < 10s);

    world.waits.clear();
    world.s3.add_fault(fake_s3::slow_down("999999999999999999999"));
    CHECK_FALSE(cache.get("k"));
    REQUIRE(world.waits.size() == 1);
    CHECK(world.waits[0] <= 1min);

    world.waits.clear();
    world.s3.add_fault(fake_s3::slow_down("soon"));
    CHECK_FALSE(cache.get("k"));
    REQUIRE(world.waits.size() == 1);
    CHECK(world.waits[0] <= 100ms);

    config.call_timeout = 1500ms;
    Cache hurried = world.cache(config);
    world.waits.clear();
    world.s3.add_fault(fake_s3::slow_down("2").for_times(fake_s3::forever));
    const Errc code = code_of(hurried.try_get("k"));
    CHECK((code == Errc::throttled || code == Errc::timed_out));
    CHECK(total(world.waits) <= 1500ms);
}

TEST_CASE("an outage is not multiplied: retries have a budget", "[retry]") {
    World world;
    Config config = world.config();
    config.attempts_max = 3;
    Cache cache = world.cache(config);
    world.s3.add_fault(fake_s3::respond_error(500, "InternalError").for_times(fake_s3::forever));
    for (int i = 0; i < 200; ++i) CHECK_FALSE(cache.try_get("k"));
    CHECK(world.s3.request_count() >= 200);
    CHECK(world.s3.request_count() < 500);  // 600 without a budget
    world.s3.clear_faults();
    CHECK_FALSE(cache.get("k"));
    // What the budget lost comes back with successes.
    for (int i = 0; i < 100; ++i) CHECK_FALSE(cache.get("k"));
    world.s3.add_fault(fake_s3::slow_down());
    CHECK_FALSE(cache.get("k"));
}

TEST_CASE("a stalled answer ends with the call's deadline, a stalled upload too", "[timeout]") {
    World world;
    Config config = world.config();
    config.call_timeout = 300ms;
    Cache cache = world.cache(config);
    world.put("k", std::string(100000, 'x'));
    const auto stalls = [&](const fake_s3::Fault& fault, auto&& call) {
        world.s3.add_fault(fault.for_times(fake_s3::forever));
        const auto result = call();
        CHECK(code_of(result) == Errc::timed_out);
        CHECK(result.error().retryable());
        world.s3.clear_faults();
        world.s3.release_stalls();
    };
    stalls(fake_s3::stall_at(Point::before_effect), [&] { return cache.try_get("k"); });
    stalls(fake_s3::stall_at(Point::answer_head), [&] { return cache.try_get("k"); });
    stalls(fake_s3::stall_at(Point::answer_body, 0ms, 10), [&] { return cache.try_get("k"); });
    stalls(fake_s3::stall_at(Point::answer_head), [&] { return cache.try_get_stream("k"); });
    stalls(fake_s3::stall_at(Point::before_effect), [&] { return cache.try_stat("k"); });
    stalls(fake_s3::stall_at(Point::before_effect), [&] { return cache.try_set("k", "v"); });
    stalls(fake_s3::stall_at(Point::before_effect),
           [&] { return cache.try_set("k", std::istringstream(std::string(2 * part, 'x'))); });
    stalls(fake_s3::stall_at(Point::before_effect), [&] { return cache.try_remove("k"); });
    stalls(fake_s3::stall_at(Point::before_effect), [&] { return cache.try_clear(""); });
}

TEST_CASE("a stall is noticed without a deadline, and tried again", "[timeout]") {
    World world;
    Config config = world.config();
    config.stall_timeout = 1000ms;
    config.attempts_max = 4;  // one for the stall; the others for a machine that stands still as long
    Cache cache = world.cache(config);
    world.put("k", "v");
    world.s3.add_fault(fake_s3::stall_at(Point::before_effect));
    CHECK(text_of(cache.get("k")) == "v");
    CHECK(cache.stats().retries >= 1);
    world.s3.add_fault(fake_s3::stall_at(Point::answer_body, 0ms, 0).for_times(fake_s3::forever));
    config.attempts_max = 1;
    Cache impatient = world.cache(config);
    CHECK(code_of(impatient.try_get("k")) == Errc::timed_out);
    world.s3.release_stalls();
    auto reader = impatient.try_get_stream("k");
    if (reader && *reader)
        CHECK(code_of((*reader)->try_next()) == Errc::timed_out);
    else
        CHECK(code_of(reader) == Errc::timed_out);
    world.s3.clear_faults();
    world.s3.release_stalls();
}

// ---- answers that got lost ------------------------------------------------------------------------------------------

TEST_CASE("a write whose answer got lost has happened, once", "[lost]") {
    for (const auto& lost : {fake_s3::lost_answer(), fake_s3::reset_at(Point::after_effect),
                             fake_s3::respond(500).placed(Point::after_effect)}) {
        World world;
        Cache cache = world.cache();
        world.s3.add_fault(lost.on("PutObject"));
        CHECK(cache.set("plain", "v"));
        world.s3.add_fault(lost.on("PutObject"));
        CHECK(cache.set("k", "v", if_absent()));
        CHECK(world.body("k") == "v");
        CHECK(cache.stats().sets == 2);
        CHECK(cache.stats().refused == 0);
        CHECK_FALSE(cache.set("k", "w", if_absent()));

        SetOptions match;
        match.if_match = cache.stat("k")->etag;
        world.s3.add_fault(lost.on("PutObject"));
        CHECK(cache.set("k", "w", match));
        CHECK(world.body("k") == "w");
        world.s3.add_fault(lost.on("DeleteObject"));
        cache.remove("k");
        CHECK_FALSE(world.has("k"));
    }
}

TEST_CASE("a conditional write that another one won is not taken for one's own", "[lost]") {
    World world;
    Cache cache = world.cache();
    // The first attempt has no effect; before the second has, another writer is there.
    world.s3.add_fault(fake_s3::respond(500).on("PutObject"));
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (request.operation == "PutObject" && phase == fake_s3::Phase::before_effect && world.s3.fault_hits() == 1 &&
            !world.has("k"))
            world.put("k", "theirs");
    });
    CHECK_FALSE(cache.set("k", "ours", if_absent()));
    CHECK(world.body("k") == "theirs");
}

TEST_CASE("a Complete whose answer got lost has happened, and its upload is gone", "[lost][parts]") {
    const std::string data = store::random_bytes(2 * part + 1, 5);
    for (const auto& lost :
         {fake_s3::lost_answer(), fake_s3::respond(500).placed(Point::after_effect),
          fake_s3::error_in_200().placed(Point::after_effect), fake_s3::respond(200).placed(Point::after_effect),
          fake_s3::respond(200, "<CompleteMultipartUploadRes").placed(Point::after_effect)}) {
        for (const bool conditional : {false, true}) {
            CAPTURE(conditional, lost.status, lost.body.substr(0, 40));
            World world;
            Cache cache = world.cache();
            world.s3.add_fault(lost.on("CompleteMultipartUpload"));
            CHECK(cache.set("k", std::istringstream(data), conditional ? if_absent() : SetOptions()));
            CHECK(same(world.body("k"), data));
            CHECK(world.s3.open_uploads().empty());
            CHECK(cache.stats().leftover_uploads == 0);
        }
    }
}

TEST_CASE("an upload that vanished is an error, not a success", "[lost][parts]") {
    World world;
    Cache cache = world.cache();
    world.put("k", "old");
    world.s3.add_fault(
        fake_s3::respond_error(404, "NoSuchUpload").on("CompleteMultipartUpload").for_times(fake_s3::forever));
    const auto result = cache.try_set("k", std::istringstream(std::string(part + 1, 'x')));
    CHECK_FALSE(result);
    CHECK(world.body("k") == "old");
    CHECK(world.s3.open_uploads().empty());
}

// ---- uploads in parts -----------------------------------------------------------------------------------------------

TEST_CASE("a part that fails is sent again, and only that one", "[parts]") {
    const std::string data = store::random_bytes(4 * part + 1, 6);
    for (const auto& fault : {fake_s3::respond_error(500, "InternalError"), fake_s3::slow_down(),
                              fake_s3::reset_at(Point::request_body, 100000), fake_s3::lost_answer(),
                              fake_s3::respond_error(400, "BadDigest")}) {
        for (const unsigned connections : {1U, 4U}) {
            CAPTURE(connections);
            World world;
            Config config = world.config();
            config.connections = connections;
            Cache cache = world.cache(config);
            world.s3.add_fault(fault.on("UploadPart").with_query("partNumber=2&").for_times(2));
            CHECK(cache.set("k", std::istringstream(data)));
            CHECK(same(world.body("k"), data));
            CHECK(world.s3.request_count("UploadPart") == 7);
            CHECK(world.s3.request_count("CreateMultipartUpload") == 1);
            CHECK(world.s3.request_count("CompleteMultipartUpload") == 1);
        }
    }
}

TEST_CASE("an upload that fails for good is aborted and leaves the old value", "[parts]") {
    for (const char* operation : {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}) {
        for (const auto& fault :
             {fake_s3::respond_error(403, "AccessDenied"), fake_s3::respond_error(500, "InternalError"),
              fake_s3::error_in_200("InternalError"), fake_s3::close_at(Point::before_effect)}) {
            CAPTURE(operation);
            if (std::string(operation) == "UploadPart" && fault.status == 200)
                continue;  // a part's 200 is taken at its word
            World world;
            Cache cache = world.cache();
            world.put("k", "old");
            world.s3.add_fault(fault.on(operation).for_times(fake_s3::forever));
            const Error error = failure(cache.try_set("k", std::istringstream(std::string(3 * part, 'x'))));
            CHECK(error.attempts() >= 1);
            CHECK(world.body("k") == "old");
            CHECK(world.s3.open_uploads().empty());
            CHECK(cache.stats().leftover_uploads == 0);
            CHECK(cache.stats().errors == 1);
        }
    }
}

TEST_CASE("an abort that fails is tried again, then counted and told", "[parts]") {
    World world;
    Cache cache = world.cache();
    const auto denied = fake_s3::respond_error(403, "AccessDenied").on("UploadPart").for_times(fake_s3::forever);
    world.s3.add_fault(denied);
    world.s3.add_fault(fake_s3::respond_error(500, "InternalError").on("AbortMultipartUpload").for_times(2));
    CHECK(code_of(cache.try_set("k", std::istringstream(std::string(2 * part, 'x')))) == Errc::denied);
    CHECK(world.s3.open_uploads().empty());
    CHECK(cache.stats().leftover_uploads == 0);
    world.s3.clear_faults();
    world.s3.add_fault(denied);
    world.s3.add_fault(
        fake_s3::respond_error(500, "InternalError").on("AbortMultipartUpload").for_times(fake_s3::forever));
    CHECK(code_of(cache.try_set("k", std::istringstream(std::string(2 * part, 'x')))) == Errc::denied);
    CHECK(world.s3.open_uploads().size() == 1);
    CHECK(cache.stats().leftover_uploads == 1);
    std::size_t told = 0;
    for (const std::string& outcome : world.outcomes) told += store::holds(outcome, "leftover");
    CHECK(told == 1);
}

TEST_CASE("an error inside a 200 of Complete and copy is an error, and is tried again", "[parts]") {
    World world;
    Cache cache = world.cache();
    const std::string data = store::random_bytes(part + 1, 3);
    world.s3.add_fault(fake_s3::error_in_200("InternalError").on("CompleteMultipartUpload"));
    CHECK(cache.set("k", std::istringstream(data)));
    CHECK(same(world.body("k"), data));
    world.s3.add_fault(fake_s3::error_in_200("SlowDown").on("CopyObject"));
    CHECK(cache.touch("k", 1h));
    CHECK_FALSE(world.meta("k", "expires_at").empty());
    world.s3.add_fault(fake_s3::error_in_200("SlowDown").on("CopyObject").for_times(fake_s3::forever));
    CHECK(code_of(cache.try_touch("k", 1h)) == Errc::throttled);
}

TEST_CASE("a failing part in the middle of a stream whose source fails as well leaves nothing", "[parts]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::slow_down().on("UploadPart").for_times(2));
    std::size_t left = 3 * part;
    const auto source = [&](char* buffer, std::size_t capacity) -> std::size_t {
        if (left == 0) return source_failed;
        const std::size_t count = (std::min)(left, capacity);
        std::fill(buffer, buffer + count, 'x');
        left -= count;
        return count;
    };
    CHECK(code_of(cache.try_set("k", source)) == Errc::source);
    CHECK_FALSE(world.has("k"));
    CHECK(world.s3.open_uploads().empty());
}

// ---- many keys ------------------------------------------------------------------------------------------------------

TEST_CASE("trouble with some of many keys is theirs alone", "[many]") {
    World world;
    Config config = world.config();
    config.attempts_max = 12;  // one key may meet all of the trouble
    Cache cache = world.cache(config);
    std::vector<std::string> keys;
    std::vector<Item> items;
    for (int i = 0; i < 20; ++i) keys.push_back("k" + std::to_string(i));
    for (const std::string& key : keys) items.push_back({key, key, {}});
    world.s3.deny_key("k7");
    world.s3.add_fault(fake_s3::slow_down().for_times(5));
    const auto set = cache.set_many(items);
    REQUIRE(set.size() == 20);
    for (std::size_t i = 0; i < 20; ++i) {
        CAPTURE(i);
        if (i == 7)
            CHECK(code_of(set[i]) == Errc::denied);
        else
            CHECK(ok(set[i]));
    }
    world.s3.add_fault(fake_s3::reset_at(Point::before_effect).for_times(5));
    int hits = 0, errors = 0;
    cache.get_many(keys, [&](const std::string& key, const Result<std::optional<Value>>& result) {
        if (!result) {
            ++errors;
            CHECK(key == "k7");
            return;
        }
        REQUIRE(*result);
        hits += (*result)->str() == key;
    });
    CHECK(hits == 19);
    CHECK(errors == 1);
    world.s3.add_fault(fake_s3::slow_down());
    const auto removed = cache.remove_many(keys);
    for (std::size_t i = 0; i < 20; ++i) {
        CAPTURE(i);
        if (i == 7)
            CHECK(code_of(removed[i]) == Errc::denied);
        else
            ok(removed[i]);
    }
    CHECK(world.s3.object_count() == 0);
}

TEST_CASE("more than a thousand keys are removed in as few requests as the store takes", "[many]") {
    World world;
    Cache cache = world.cache();
    std::vector<std::string> keys;
    for (int i = 0; i < 2500; ++i) {
        keys.push_back("a b/" + std::to_string(i) + "&<\xC3\xA9");
        world.put(keys.back(), "v");
    }
    CHECK(world.requests([&] {
        for (const auto& result : cache.remove_many(keys)) ok(result);
    }) == 3);
    CHECK(world.s3.object_count() == 0);
    for (const std::string& key : keys) world.put(key, "v");
    CHECK(world.requests([&] { CHECK(cache.clear("a b/") == 2500); }) <= 7);
    CHECK(world.s3.object_count() == 0);
}

TEST_CASE("where DeleteObjects is not to be had keys are removed one by one", "[many][quirks]") {
    for (const bool refuses : {true, false}) {
        CAPTURE(refuses);
        fake_s3::Quirks quirks;
        quirks.refuse_delete_objects = refuses;
        quirks.delete_objects_needs_md5 = !refuses;
        World world(store::with(quirks));
        Cache cache = world.cache();
        for (const char* key : {"a", "b c", "\x01", "d"}) world.put(key, "v");
        for (const auto& result : cache.remove_many({"a", "b c", "\x01", "nothing"})) ok(result);
        CHECK(world.s3.keys("bucket") == std::vector<std::string>{"d"});
        CHECK(cache.clear("") == 1);
        world.put("e", "v");
        world.put_expiring("f", "v", -10);
        CHECK(cache.purge_expired() == 1);
        CHECK(world.s3.keys("bucket") == std::vector<std::string>{"e"});
    }
}

// ---- other stores ---------------------------------------------------------------------------------------------------

TEST_CASE("everyday work is the same on every store", "[quirks]") {
    using Switch = bool fake_s3::Quirks::*;
    const std::pair<const char*, Switch> quirks[] = {
        {"AWS", nullptr},
        {"metadata with dashes", &fake_s3::Quirks::metadata_dashes},
        {"metadata with capitals", &fake_s3::Quirks::metadata_capitals},
        {"conditional puts ignored", &fake_s3::Quirks::ignore_conditional_put},
        {"conditional Complete ignored", &fake_s3::Quirks::ignore_conditional_complete},
        {"conditional deletes ignored", &fake_s3::Quirks::ignore_conditional_delete},
        {"conditional puts refused", &fake_s3::Quirks::refuse_conditional_put},
        {"no DeleteObjects", &fake_s3::Quirks::refuse_delete_objects},
        {"DeleteObjects with MD5", &fake_s3::Quirks::delete_objects_needs_md5},
        {"no encoding-type", &fake_s3::Quirks::ignore_encoding_type},
        {"one answer a connection", &fake_s3::Quirks::close_each},
        {"no ranges", &fake_s3::Quirks::ignore_range},
        {"equal parts", &fake_s3::Quirks::equal_parts},
        {"ETags that are no MD5s", &fake_s3::Quirks::etag_not_md5},
        {"no Date", &fake_s3::Quirks::no_date},
        {"404 without a body", &fake_s3::Quirks::empty_404},
        {"no aws-chunked", &fake_s3::Quirks::refuse_aws_chunked},
        {"chunked answers", &fake_s3::Quirks::chunked_answers},
        {"empty list pages", &fake_s3::Quirks::empty_list_pages},
    };
    for (const auto& [name, on] : quirks) {
        CAPTURE(name);
        fake_s3::Options options;
        if (on) options.quirks.*on = true;
        options.list_page_max = 2;
        World world(options);
        Cache cache = world.cache();
        SetOptions set{1h, true};
        set.metadata = {{"owner", "alice"}};
        CHECK_FALSE(cache.get("k"));
        CHECK_FALSE(cache.contains("k"));
        CHECK(cache.set("k", json("[1]"), set));
        auto hit = cache.get("k");
        REQUIRE(hit);
        CHECK(hit->str() == "[1]");
        CHECK(hit->kind() == Kind::json);
        CHECK(hit->info().expires_at);
        CHECK(hit->info().metadata == set.metadata);
        CHECK(cache.touch("k", 2h));
        hit = cache.get("k");
        REQUIRE(hit);
        CHECK(hit->str() == "[1]");
        CHECK(hit->info().metadata == set.metadata);
        const std::string large = store::random_bytes(3 * part + 5, 4);
        CHECK(cache.set("large", std::istringstream(large), {1h}));
        CHECK(same(text_of(cache.get("large")), large));
        CHECK(same(store::drained(*cache.get_stream("large")), large));
        CHECK(cache.touch("large", 3h));
        CHECK(same(text_of(cache.get("large")), large));
        world.put_expiring("old", "v", -10);
        CHECK_FALSE(cache.get("old"));
        CHECK_FALSE(world.has("old"));
        for (const char* key : {"a b", "a+b", "a%20b", "a/b", "\xC3\xA9"}) CHECK(cache.set(key, "v"));
        std::vector<std::string> keys;
        for (const Entry& entry : cache.list()) keys.push_back(entry.key);
        CHECK(keys == std::vector<std::string>{"a b", "a%20b", "a+b", "a/b", "k", "large", "\xC3\xA9"});
        for (const auto& result : cache.remove_many({"a b", "a+b"})) ok(result);
        CHECK(cache.clear("") == 5);
        CHECK(world.s3.object_count() == 0);
        CHECK(world.s3.open_uploads().empty());
        CHECK(cache.stats().errors == 0);
    }
}

TEST_CASE("where a proxy drops names with underscores the error names the hyphen, which works", "[quirks]") {
    fake_s3::Quirks quirks;
    quirks.drop_underscore_headers = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    const std::string large(11 << 20, 'x');
    for (const bool whole : {true, false}) {
        CAPTURE(whole);
        const Error error = failure(cache.try_set("k", whole ? "v" : large, {1h}));
        CHECK(error.code() == Errc::denied);
        CHECK(error.s3_code() == "SignatureDoesNotMatch");
        CHECK(store::holds(error.what(), "MetadataNames::hyphen"));
        CHECK(store::holds(error.what(), "?metadata_names=hyphen"));
    }
    CHECK(cache.set("k", "v"));  // nothing is dropped here
    Config config = world.config();
    config.metadata_names = MetadataNames::hyphen;
    for (const char* where : {"bucket", "bucket?metadata_names=hyphen", "s3://bucket/?metadata_names=hyphen"}) {
        CAPTURE(where);
        Cache served(where, where == std::string("bucket") ? config : world.config());
        CHECK(served.set("k", "v", {1h}));
        CHECK(served.get("k")->info().expires_at);
        CHECK(served.touch("k", 2h));
        CHECK(world.meta("k", "expires_at").empty());
        CHECK_FALSE(world.meta("k", "expires-at").empty());
    }
    CHECK(code_of(Cache::try_open("bucket?metadata_names=both", config)) == Errc::invalid_argument);
}

TEST_CASE("a wrong secret or a proxy's page is put down to names only where one was sent", "[quirks][errors]") {
    World world;
    Config config = world.config();
    config.credentials = Credentials{world.s3.access_key(), "wrong", {}, {}, "the tests"};
    Cache stranger = world.cache(config);
    CHECK(store::holds(failure(stranger.try_set("k", "v", {1h})).what(), "MetadataNames::hyphen"));
    CHECK_FALSE(store::holds(failure(stranger.try_set("k", "v")).what(), "MetadataNames"));
    CHECK_FALSE(store::holds(failure(stranger.try_get("k")).what(), "MetadataNames"));
    Cache cache = world.cache();
    for (const auto& fault :
         {fake_s3::respond(400, "<html>a bad header</html>"), fake_s3::respond(400),
          fake_s3::respond_error(403, "AccessDenied",
                                 "There were headers present in the request which were not signed")}) {
        world.s3.add_fault(fault.for_times(3));
        CHECK(store::holds(failure(cache.try_set("k", "v", {1h})).what(), "MetadataNames::hyphen"));
        CHECK_FALSE(store::holds(failure(cache.try_set("k", "v")).what(), "MetadataNames"));
        CHECK_FALSE(store::holds(failure(cache.try_get("k")).what(), "MetadataNames"));
    }
    world.s3.add_fault(fake_s3::respond_error(400, "InvalidStorageClass"));
    CHECK_FALSE(store::holds(failure(cache.try_set("k", "v", {1h})).what(), "MetadataNames"));
    world.s3.add_fault(fake_s3::respond_error(403, "AccessDenied"));
    CHECK_FALSE(store::holds(failure(cache.try_set("k", "v", {1h})).what(), "MetadataNames"));
}

TEST_CASE("write conditions hold also on stores that ignore or refuse them, but for a race", "[quirks][conditions]") {
    for (const bool refuses : {false, true}) {
        CAPTURE(refuses);
        fake_s3::Quirks quirks;
        quirks.ignore_conditional_put = !refuses;
        quirks.refuse_conditional_put = refuses;
        World world(store::with(quirks));
        Cache cache = world.cache();
        CHECK(cache.set("k", "first", if_absent()));
        CHECK_FALSE(cache.set("k", "second", if_absent()));
        CHECK(world.body("k") == "first");
        SetOptions match;
        match.if_match = "\"0123456789abcdef0123456789abcdef\"";
        CHECK_FALSE(cache.set("k", "second", match));
        match.if_match = cache.stat("k")->etag;
        CHECK(cache.set("k", "second", match));
        CHECK(world.body("k") == "second");
        CHECK(cache.set("new", "first", if_absent()));
        CHECK(world.s3.object_count() == 2);  // whatever was stored to find out is gone
    }
}

TEST_CASE("a racing write that the store calls a conflict is settled", "[conditions]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::respond_error(409, "ConditionalRequestConflict").on("PutObject"));
    CHECK(cache.set("k", "v", if_absent()));
    CHECK(world.body("k") == "v");
}

// ---- reading in parallel --------------------------------------------------------------------------------------------

TEST_CASE("a range that fails is asked for again, and only that one", "[ranges]") {
    constexpr std::size_t range = std::size_t{256} << 10;
    const std::string data = store::random_bytes(6 * range + 1, 7);
    for (const auto& fault : {fake_s3::slow_down(), fake_s3::reset_at(Point::before_effect),
                              fake_s3::close_at(Point::answer_body, 100000)}) {
        for (const unsigned connections : {1U, 4U}) {
            CAPTURE(connections);
            fake_s3::Options options;
            if (connections > 1)
                options.connection_bytes_per_second = 4000000;  // so slow that others help, however busy the machine
            World world(options);
            Config config = world.config();
            config.part_bytes = range;
            config.connections = connections;
            Cache cache = world.cache(config);
            world.put("k", data);
            CHECK(same(text_of(cache.get("k")), data));
            world.s3.clear_requests();
            const std::size_t nth = connections > 1 ? 2 : 1;  // a range, or else the one request
            const std::size_t number = world.s3.add_fault(fault.on("GetObject").nth_time(nth).for_times(2));
            CHECK(same(text_of(cache.get("k")), data));
            // How many ranges there are depends on how fast they come. One that is asked for again ends where it did.
            std::map<std::string, std::size_t> asked;
            for (const auto& request : world.s3.requests()) {
                const std::string where = request.header("range").value_or("-");
                ++asked[connections > 1 ? where.substr(where.find('-')) : ""];
            }
            CHECK(world.s3.request_count() - asked.size() <= world.s3.fault_hits(number));
            CHECK((world.s3.request_count() > asked.size() || asked.size() < 3));
            world.s3.clear_faults();
            world.s3.add_fault(fault.on("GetObject").nth_time(nth).for_times(1));
            CHECK(same(store::drained(*cache.get_stream("k")), data));
        }
    }
}

TEST_CASE("an object replaced between two ranges is never mixed", "[ranges]") {
    for (const unsigned connections : {1U, 8U}) {
        CAPTURE(connections);
        World world;
        Config config = world.config();
        config.connections = connections;
        config.transfer_bytes_max = 2 * part;
        Cache cache = world.cache(config);
        const std::string old_data(8 * part, 'o'), new_data(8 * part, 'n');
        world.put("k", old_data);
        std::atomic<int> gets{0};
        world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation == "GetObject" && phase == fake_s3::Phase::after_effect && ++gets == 1)
                world.put("k", new_data);
        });
        const auto hit = cache.try_get("k");
        if (hit)
            CHECK((same((*hit)->view(), old_data) || same((*hit)->view(), new_data)));
        else
            CHECK(code_of(hit) == Errc::changed);
    }
}
