// What stores other than AWS, proxies before them and bucket policies answer, and what is made of it.
#include "world.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
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

// A web server that is no S3: a page of HTML, and none of S3's headers.
void serve_pages(World& world, int status, const std::string& body = "<html><title>Not here</title></html>") {
    fake_s3::Edit edit;
    edit.remove_headers = {"x-amz-request-id", "x-amz-id-2", "Server"};
    world.always(fake_s3::respond(status, body, {{"Content-Type", "text/html"}}));
    world.always(fake_s3::edit_answer(edit));
}

SetOptions if_match(std::string etag) {
    SetOptions options;
    options.if_match = std::move(etag);
    return options;
}

std::string stream_text(Cache& cache, const char* key) {
    auto reader = cache.get_stream(key);
    return reader ? store::drained(*reader) : "(a miss)";
}

struct Tried {
    const char* name;
    Errc (*run)(Cache& cache);
};

std::string out_path;

const Tried readings[] = {
    {"get", [](Cache& c) { return code_of(c.try_get("k")); }},
    {"get_stream", [](Cache& c) { return code_of(c.try_get_stream("k")); }},
    {"get_file", [](Cache& c) { return code_of(c.try_get_file("k", out_path)); }},
    {"get_many",
     [](Cache& c) {
         Errc code = store::no_error;
         c.get_many({"k"}, [&](const std::string&, Result<std::optional<Value>> hit) { code = code_of(hit); });
         return code;
     }},
};

const Tried heads[] = {
    {"stat", [](Cache& c) { return code_of(c.try_stat("k")); }},
    {"contains", [](Cache& c) { return code_of(c.try_contains("k")); }},
    {"touch", [](Cache& c) { return code_of(c.try_touch("k", 1h)); }},
};

}  // namespace

// ---- ETags ----------------------------------------------------------------------------------------------------------

TEST_CASE("where ETags are weak all is read over one connection and touched", "[stores][etag]") {
    fake_s3::Options options;
    options.quirks.weak_etags = true;
    options.connection_bytes_per_second = 4 << 20;
    World world(options);
    Config config = world.config();
    config.part_bytes = 256 << 10;
    Cache cache = world.cache(config);
    store::Folder folder;
    const std::string large = store::random_bytes(2 << 20, 1);
    world.put("large", large, {{"expires_at", std::to_string(world.s3.now() + 100)}});
    CHECK(same(text_of(cache.get("large")), large));
    CHECK(same(stream_text(cache, "large"), large));
    REQUIRE(cache.get_file("large", folder / "out"));
    CHECK(same(store::contents(folder / "out"), large));
    CHECK(cache.touch("large", 1h));
    CHECK(std::strtod(world.meta("large", "expires_at").c_str(), nullptr) > static_cast<double>(world.s3.now() + 3000));
    CHECK(same(text_of(cache.get("large")), large));
    for (const auto& request : world.s3.requests()) {
        CAPTURE(request.operation);
        CHECK_FALSE(store::holds(request.header("if-match").value_or(""), "W/"));
        CHECK_FALSE(store::holds(request.header("x-amz-copy-source-if-match").value_or(""), "W/"));
    }
}

TEST_CASE("a weak ETag as a condition is refused or compared, and never simply fails", "[stores][etag][conditions]") {
    fake_s3::Quirks quirks;
    quirks.weak_etags = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    cache.set("k", "v");
    const std::string etag = cache.stat("k")->etag;
    const auto over_it = cache.try_set("k", "w", if_match(etag));
    if (over_it) CHECK(*over_it);
    if (!over_it) {
        const Error error = failure(over_it);
        CHECK((error.code() == Errc::unsupported || error.code() == Errc::invalid_argument));
        CHECK(store::holds(store::lower(error.what()), "weak"));
    }
    CHECK(world.body("k") == (over_it ? "w" : "v"));
    const std::string before = world.body("k");
    const auto over_another = cache.try_set("k", "x", if_match("W/\"another\""));
    CHECK((!over_another || !*over_another));
    CHECK(world.body("k") == before);
    CHECK(cache.get_if_changed("k", cache.stat("k")->etag).unchanged);
    CHECK_FALSE(cache.set("k", "y", if_absent()));
}

TEST_CASE("required conditions are refused over a weak ETag, automatic ones are written and counted",
          "[stores][etag][conditions]") {
    for (const bool required : {true, false}) {
        CAPTURE(required);
        fake_s3::Quirks quirks;
        quirks.weak_etags = true;
        World world(store::with(quirks));
        Config config = world.config();
        if (required) config.conditions = Conditions::required;
        Cache cache = world.cache(config);
        CHECK(cache.set("k", "old"));
        const std::string etag = cache.stat("k")->etag;
        REQUIRE(store::holds(etag, "W/"));
        const auto written = cache.try_set("k", "new", if_match(etag));
        CHECK(code_of(written) == (required ? Errc::unsupported : store::no_error));
        CHECK(world.body("k") == (required ? "old" : "new"));
        CHECK(cache.stats().unconditional == (required ? 0 : 1));
        CHECK(cache.set("absent", "v", if_absent()));  // nothing weak is in the way of that
    }
}

TEST_CASE("of two who store over an expired entry with a weak ETag if it is absent, one is told that it did",
          "[stores][etag][conditions]") {
    fake_s3::Quirks quirks;
    quirks.weak_etags = true;
    World world(store::with(quirks));
    Cache first = world.cache(store::waiting(world)), second = world.cache(store::waiting(world));
    CHECK(first.set("warm", "v", if_absent()));  // what the store makes of conditions is known
    CHECK_FALSE(second.set("warm", "v", if_absent()));
    world.put_expiring("k", "old", -10);
    std::atomic<bool> begun{false};
    std::atomic<int> won{0};
    const auto write = [&](Cache& cache, const char* value) {
        const auto stored = cache.try_set("k", value, if_absent());
        won += stored && *stored;
    };
    world.s3.on_request(
        [&](const fake_s3::Recorded& request, Phase phase) {  // the second between first's look and write
            const bool writes = request.operation == "PutObject" && request.key == "k" && phase == Phase::before_effect;
            if (writes && !begun.exchange(true)) write(second, "the second's");
        });
    write(first, "the first's");
    world.s3.on_request({});
    CHECK(begun);
    CHECK(won == 1);
}

TEST_CASE("expired entries go also where ETags are weak or there are none", "[stores][etag][removing]") {
    for (const bool weak : {true, false}) {
        CAPTURE(weak);
        fake_s3::Quirks quirks;
        quirks.weak_etags = weak;
        World world(store::with(quirks));
        if (!weak) {
            fake_s3::Edit edit;
            edit.remove_headers = {"ETag"};
            world.always(fake_s3::edit_answer(edit), "GetObject");
            world.always(fake_s3::edit_answer(edit), "HeadObject");
        }
        Cache cache = world.cache();
        world.put_expiring("old", "v", -10);
        CHECK_FALSE(cache.get("old"));
        CHECK_FALSE(world.has("old"));
        world.put_expiring("old", "v", -10);
        world.put_expiring("live", "v", 100);
        CHECK(cache.purge_expired() == 1);
        CHECK_FALSE(world.has("old"));
        CHECK(text_of(cache.get("live")) == "v");
        world.put_expiring("old", "v", -10);
        CHECK(cache.set("old", "w", if_absent()));
        CHECK(world.body("old") == "w");
    }
}

TEST_CASE("a download without a strong ETag that is cut is begun anew or an error, and never put together",
          "[stores][etag]") {
    fake_s3::Quirks quirks;
    quirks.weak_etags = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    const std::string first(100000, 'a'), second(100000, 'b');
    world.put("k", first);
    world.s3.add_fault(fake_s3::cut_body(50000).on("GetObject"));
    world.once("GetObject", Phase::after_effect, [&] { world.put("k", second); });
    const auto hit = cache.try_get("k");
    if (hit) CHECK(same(text_of(*hit), second));
    world.s3.clear_faults();
    world.s3.add_fault(fake_s3::cut_body(50000).on("GetObject"));
    world.once("GetObject", Phase::after_effect, [&] { world.put("k", first); });
    auto reader = cache.get_stream("k");
    REQUIRE(reader);
    std::string got;
    while (true) {
        auto chunk = reader->try_next();
        if (!chunk || chunk->empty()) {
            if (chunk) CHECK((got == first || got == second));
            break;
        }
        got += *chunk;
    }
    CHECK((got.find('a') == std::string::npos || got.find('b') == std::string::npos));
}

TEST_CASE("an entry whose copy left it without an ETag goes on being an entry", "[stores][etag][touch]") {
    fake_s3::Options options;
    options.quirks.copy_without_etag = true;
    options.part_bytes_min = 1;
    World world(options);
    Config config = world.config();
    config.part_bytes = 100000;
    Cache cache = world.cache(config);
    const std::string large = store::random_bytes(350000, 1);
    cache.set("k", large, {100s});
    for (int i = 0; i < 2; ++i) {
        CHECK(cache.touch("k", 1h));
        CHECK(same(text_of(cache.get("k")), large));
        CHECK(same(stream_text(cache, "k"), large));
        REQUIRE(cache.stat("k"));
        CHECK(cache.stat("k")->size == large.size());
    }
    std::size_t entries = 0;
    for (const Entry& entry : cache.list({}, Look::deep)) entries += entry.info.size == large.size();
    CHECK(entries == 1);
    CHECK_FALSE(cache.set("k", "v", if_absent()));
    CHECK(cache.set("k", "v"));
    CHECK(text_of(cache.get("k")) == "v");
}

// ---- lengths --------------------------------------------------------------------------------------------------------

TEST_CASE("where HEAD tells no length the size is found out, and never said to be nothing", "[stores][stat]") {
    fake_s3::Quirks quirks;
    quirks.head_without_length = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    const std::string body = store::random_bytes(12345, 1);
    cache.set("k", body, {1h});
    cache.set("empty", "");
    for (const bool reused : {false, true}) {
        CAPTURE(reused);
        const auto info = ok(cache.try_stat("k"));
        REQUIRE(info);
        CHECK(info->size == body.size());
        CHECK(info->expires_at);
        CHECK(ok(cache.try_stat("empty"))->size == 0);
    }
    CHECK_FALSE(cache.stat("nothing"));
    CHECK(cache.contains("k"));
    CHECK(cache.touch("k", 2h));
    CHECK(same(text_of(cache.get("k")), body));
    for (const Entry& entry : cache.list({}, Look::deep))
        CHECK(entry.info.size == (entry.key == "k" ? body.size() : 0));
}

// ---- what is tried again --------------------------------------------------------------------------------------------

TEST_CASE("every status that passes is tried again, of every operation", "[stores][retry]") {
    for (const int status : {408, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524}) {
        for (const bool page : {true, false}) {
            CAPTURE(status, page);
            World world;
            Cache cache = world.cache();
            world.put("k", "v");
            const auto trouble = [&] {
                world.s3.clear_faults();
                world.s3.add_fault((page ? fake_s3::html_page(status) : fake_s3::respond(status)).for_times(1));
            };
            trouble();
            CHECK(text_of(ok(cache.try_get("k"))) == "v");
            trouble();
            CHECK(stream_text(cache, "k") == "v");
            trouble();
            CHECK(ok(cache.try_stat("k")));
            trouble();
            CHECK(ok(cache.try_set("k", "v")));
            trouble();
            ok(cache.try_remove("other"));
            trouble();
            for (const Entry& entry : cache.list()) CHECK(entry.key == "k");
            trouble();
            CHECK(ok(cache.try_touch("k", 1h)));
            trouble();
            for (const auto& result : cache.remove_many({"a", "b"})) ok(result);
        }
    }
}

TEST_CASE("a HEAD refused with a bare 400 on a connection that was idle is tried again, once", "[stores][retry]") {
    World world;
    Cache cache = world.cache();
    world.put("k", "v");
    CHECK(cache.get("k"));
    world.s3.add_fault(fake_s3::respond(400).on("HeadObject"));
    CHECK(ok(cache.try_stat("k")));
    world.s3.add_fault(fake_s3::respond(400, "", {{"Connection", "close"}}).on("HeadObject"));
    CHECK(ok(cache.try_contains("k")));
    world.s3.clear_faults();
    world.s3.clear_requests();
    world.always(fake_s3::respond(400), "HeadObject");
    const Error error = failure(cache.try_stat("k"));
    CHECK(error.status() == 400);
    CHECK(world.s3.request_count() <= 2);
    World fresh;
    fresh.always(fake_s3::respond(400), "HeadObject");
    Cache first = fresh.cache();
    CHECK(failure(first.try_stat("k")).status() == 400);
}

TEST_CASE("a body that came to the store other than it was sent is sent again", "[stores][retry]") {
    World world;
    Cache cache = world.cache();
    const auto mismatch = fake_s3::respond_error(400, "XAmzContentSHA256Mismatch");
    world.s3.add_fault(mismatch.on("PutObject"));
    CHECK(ok(cache.try_set("k", "v")));
    const std::string large = store::random_bytes(part + 1, 1);
    world.s3.add_fault(mismatch.on("UploadPart"));
    CHECK(ok(cache.try_set("large", Source(std::istringstream(large)))));
    CHECK(same(world.body("large"), large));
    world.s3.add_fault(mismatch.on("DeleteObjects"));
    for (const auto& result : cache.remove_many({"k", "large"})) ok(result);
    world.always(mismatch, "PutObject");
    CHECK(failure(cache.try_set("k", "v")).s3_code() == "XAmzContentSHA256Mismatch");
}

TEST_CASE("one answer that is no HTTP on a connection that worked is tried again", "[stores][retry]") {
    World world;
    world.put("k", "v");
    for (const auto& odd : {fake_s3::garbage(), fake_s3::raw_bytes("SSH-2.0-x\r\n"), fake_s3::raw_bytes("\r\n\r\n"),
                            fake_s3::raw_bytes("HTTP/1.1 200"), fake_s3::raw_bytes("")}) {
        CAPTURE(odd.body);
        Cache cache = world.cache();
        const auto trouble = [&] {
            CHECK(text_of(ok(cache.try_get("k"))) == "v");
            world.s3.add_fault(odd.for_times(1));
        };
        trouble();
        CHECK(text_of(ok(cache.try_get("k"))) == "v");
        trouble();
        CHECK(ok(cache.try_stat("k")));
        trouble();
        CHECK(ok(cache.try_set("k", "v")));
        trouble();
        ok(cache.try_remove("other"));
        world.always(odd);
        const Errc code = code_of(cache.try_get("k"));
        CHECK((code == Errc::network || code == Errc::protocol));
        world.s3.clear_faults();
    }
}

// ---- refusals and misses --------------------------------------------------------------------------------------------

TEST_CASE("forbidden_is_miss is for a missing permission to list, and for nothing else", "[stores][errors]") {
    store::Folder folder;
    out_path = folder / "out";
    for (const char* code :
         {"SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed", "InvalidObjectState", "InvalidToken",
          "AccountProblem", "QuotaExceeded", "NotSignedUp", "InvalidSecurity"}) {
        World world;
        Config config = world.config();
        config.forbidden_is_miss = true;
        Cache cache = world.cache(config);
        world.always(fake_s3::respond_error(403, code));
        for (const Tried& reading : readings) {
            CAPTURE(code, reading.name);
            CHECK(reading.run(cache) != store::no_error);
        }
        int computed = 0;
        CHECK(code_of(cache.try_get_or_set("k", [&] { return ++computed, "v"; })) != store::no_error);
        CHECK(computed == 0);
    }
    for (const bool body : {true, false}) {
        World world;
        Config config = world.config();
        config.forbidden_is_miss = true;
        Cache cache = world.cache(config);
        world.always(body ? fake_s3::respond_error(403, "AccessDenied") : fake_s3::respond(403), "GetObject");
        world.always(fake_s3::respond(403), "HeadObject");
        for (const Tried& reading : readings) {
            CAPTURE(body, reading.name);
            CHECK(reading.run(cache) == store::no_error);
        }
        CHECK_FALSE(cache.get("k"));
        CHECK_FALSE(cache.contains("k"));
        CHECK_FALSE(cache.stat("k"));
    }
    World world;
    Config config = world.config();
    config.forbidden_is_miss = true;
    Cache cache = world.cache(config);
    serve_pages(world, 403);
    for (const Tried& reading : readings) {
        CAPTURE(reading.name);
        CHECK(reading.run(cache) != store::no_error);
    }
}

TEST_CASE("a 404 that is no S3 error is an error, whoever asks", "[stores][errors]") {
    store::Folder folder;
    out_path = folder / "out";
    for (const bool known : {false, true}) {
        for (const char* body :
             {"<html><title>Not here</title></html>", "{\"message\":\"no route\"}", "404 page not found\n"}) {
            World world;
            Cache cache = world.cache();
            if (known) CHECK(cache.set("k", "v"));
            serve_pages(world, 404, body);
            for (const Tried& reading : readings) {
                CAPTURE(known, body, reading.name);
                CHECK(reading.run(cache) != store::no_error);
            }
            CHECK(code_of(cache.try_remove("k")) != store::no_error);
            for (const auto& result : cache.remove_many({"k", "l"})) CHECK_FALSE(result);
            int computed = 0;
            CHECK(code_of(cache.try_get_or_set("k", [&] { return ++computed, "v"; })) != store::no_error);
            CHECK(computed == 0);
            for (const Tried& head : heads) {
                CAPTURE(known, body, head.name);
                if (!known) CHECK(head.run(cache) != store::no_error);
            }
            const Error error = failure(cache.try_get("k"));
            CHECK(store::holds(error.what(), "404"));
            CHECK((error.code() == Errc::protocol || error.code() == Errc::store));
        }
    }
}

TEST_CASE("a 404 without a body from a store known to be S3 is a miss", "[stores][errors]") {
    fake_s3::Quirks quirks;
    quirks.empty_404 = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    CHECK(cache.set("k", "v"));
    world.s3.erase_all();
    CHECK_FALSE(cache.get("k"));
    CHECK_FALSE(cache.get_stream("k"));
    CHECK_FALSE(cache.stat("k"));
    CHECK_FALSE(cache.contains("k"));
    CHECK_FALSE(cache.touch("k", 1h));
    cache.remove("k");
}

TEST_CASE("a HEAD's 404 is no miss while the bucket's HEAD fails, and vouches for no other 404", "[stores][errors]") {
    for (const int status : {500, 503, 403}) {
        CAPTURE(status);
        World world;
        Cache cache = world.cache();
        fake_s3::Edit bare;
        bare.remove_headers = {"x-amz-request-id", "x-amz-id-2", "Server"};
        world.always(fake_s3::edit_answer(bare));
        world.always(fake_s3::respond(404), "HeadObject");
        world.always(fake_s3::respond(404), "GetObject");
        world.always(fake_s3::respond(status), "HeadBucket");
        CHECK(code_of(cache.try_get("k")) != store::no_error);
        if (status == 403) {  // credentials may be allowed objects alone
            CHECK_FALSE(ok(cache.try_contains("k")));
            CHECK_FALSE(ok(cache.try_stat("k")));
            continue;
        }
        CHECK(code_of(cache.try_contains("k")) != store::no_error);
        CHECK(code_of(cache.try_stat("k")) != store::no_error);
        CHECK(code_of(cache.try_get("k")) != store::no_error);
        CHECK(world.s3.request_count("HeadBucket") > 0);
    }
}

// ---- policies -------------------------------------------------------------------------------------------------------

TEST_CASE("every write of a kind carries the encryption, class and checksum that a policy demands",
          "[stores][policies]") {
    for (const bool sums : {false, true}) {
        CAPTURE(sums);
        World world;
        for (const char* operation : {"PutObject", "CopyObject", "CreateMultipartUpload"}) {
            world.s3.demand_header(operation, "x-amz-server-side-encryption");
            world.s3.demand_header(operation, "x-amz-server-side-encryption-aws-kms-key-id");
            world.s3.demand_header(operation, "x-amz-storage-class");
        }
        Config config = world.config();
        config.server_side_encryption = "aws:kms";
        config.kms_key_id = "a-key";
        config.storage_class = "STANDARD_IA";
        if (sums) {
            config.checksums = Checksums::store;
            world.s3.demand_header("PutObject", "x-amz-checksum-");
            world.s3.demand_header("UploadPart", "x-amz-checksum-crc32c");
            world.s3.demand_header("CreateMultipartUpload", "x-amz-checksum-algorithm");
        }
        Cache cache = world.cache(config), other = world.cache(config);
        store::Folder folder;
        const std::string large = store::random_bytes(2 * part + 1, 1);
        store::write(folder / "in", large);
        CHECK(ok(cache.try_set("k", "v", {1h, true})));
        CHECK(ok(cache.try_set("once", "v", if_absent())));
        CHECK_FALSE(ok(other.try_set("once", "v", if_absent())));
        CHECK(ok(cache.try_set("over", "v")));
        CHECK(ok(cache.try_set("over", "w", if_match(cache.stat("over")->etag))));
        world.put_expiring("expired", "v", -10);
        CHECK(ok(cache.try_set("expired", "v", if_absent())));
        CHECK(ok(cache.try_set("stream", Source(std::istringstream("v")))));
        CHECK(ok(cache.try_set("large", Source(std::istringstream(large)))));
        CHECK(same(text_of(cache.get("large")), large));
        CHECK(ok(cache.try_set("memory", large)));
        CHECK(ok(cache.try_set_file("file", folder / "in")));
        SetOptions gzip;
        gzip.compress = true;
        CHECK(ok(cache.try_set("gzip", Source(std::istringstream(large)), gzip)));
        CHECK(same(text_of(cache.get("gzip")), large));
        CHECK(ok(cache.try_touch("k", 2h)));
        for (const auto& result : cache.set_many({Item{"a", "v"}, Item{"b", "v"}})) CHECK(ok(result));
        ComputeOptions how;
        how.lease = Seconds(30);
        CHECK(ok(cache.try_get_or_set(
                     "computed", [] { return "v"; }, {}, how))
                  .view() == "v");
        CHECK(cache.stats().unconditional == 0);
        CHECK(other.stats().unconditional == 0);
        for (const auto& request : world.s3.requests()) {
            CAPTURE(request.operation, request.key);
            CHECK(request.status != 403);
            CHECK(request.status != 400);
        }
    }
}

TEST_CASE("a touch keeps within what a bucket with object lock and checksums takes", "[stores][policies][touch]") {
    World world;
    Config config = world.config();
    config.checksums = Checksums::store;
    Cache cache = world.cache(config);
    cache.set("k", "v", {100s});
    CHECK(cache.touch("k", 1h));
    CHECK(text_of(cache.get("k")) == "v");
}

// ---- limits ---------------------------------------------------------------------------------------------------------

TEST_CASE("a touch of what is too large for one copy says so", "[stores][touch]") {
    World world;
    Cache cache = world.cache();
    world.put_expiring("k", "v", 100);
    fake_s3::Edit edit;
    edit.set_headers = {{"Content-Length", "6000000000"}};
    world.always(fake_s3::edit_answer(edit), "HeadObject");
    world.always(
        fake_s3::respond_error(400, "InvalidRequest",
                               "The specified copy source is larger than the maximum allowable size for a copy "
                               "source: 5368709120"),
        "CopyObject");
    const Error error = failure(cache.try_touch("k", 1h));
    CAPTURE(error.what());
    CHECK((error.code() == Errc::too_large || error.code() == Errc::unsupported));
    CHECK(store::holds(error.what(), "5 G"));
    CHECK_FALSE(error.retryable());
}

TEST_CASE("metadata is counted as stores count it, without the prefix of the names", "[stores][metadata]") {
    World world;
    Cache cache = world.cache();
    SetOptions options;
    for (int i = 0; i < 100; ++i)
        options.metadata.emplace_back("n" + std::to_string(1000 + i), "v" + std::to_string(1000 + i));
    CHECK(ok(cache.try_set("k", "v", options)));
    CHECK(cache.stat("k")->metadata.size() == 100);
    CHECK(ok(cache.try_set("k", Source(std::istringstream("v")), options)));
    CHECK(ok(cache.try_touch("k", 1h)));
    CHECK(cache.stat("k")->metadata.size() == 100);
    for (int i = 0; i < 150; ++i)
        options.metadata.emplace_back("m" + std::to_string(1000 + i), "v" + std::to_string(1000 + i));
    world.s3.clear_requests();
    const Errc code = code_of(cache.try_set("k", "v", options));
    CHECK((code == Errc::invalid_argument || code == Errc::too_large));
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("one name is written for the time, so that no proxy has two to join or to sort", "[stores][metadata]") {
    for (const bool joins : {true, false}) {
        CAPTURE(joins);
        fake_s3::Quirks quirks;
        quirks.join_metadata = joins;
        World world(store::with(quirks));
        Cache cache = world.cache();
        CHECK(ok(cache.try_set("k", "v", {1h})));
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(cache.touch("k", 2h));
        CHECK(text_of(cache.get("k")) == "v");
        REQUIRE(cache.stat("k")->expires_at);
        CHECK(ok(cache.try_set("large", Source(std::istringstream(std::string(part + 1, 'x'))), {1h})));
        CHECK(cache.stat("large")->expires_at);
        for (const auto& request : world.s3.requests()) {
            std::size_t names = 0;
            for (const auto& [name, value] : request.headers) names += store::holds(store::lower(name), "meta-expires");
            CHECK(names <= 1);
        }
    }
}

// ---- others' uploads and copies -------------------------------------------------------------------------------------

TEST_CASE("whatever root holds an UploadId is an answer to Create", "[stores][parts]") {
    fake_s3::Quirks quirks;
    quirks.other_create_root = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    const std::string large = store::random_bytes(part + 1, 1);
    CHECK(ok(cache.try_set("k", Source(std::istringstream(large)))));
    CHECK(same(text_of(cache.get("k")), large));
    world.s3.add_fault(fake_s3::error_in_200().on("CreateMultipartUpload"));  // tried again, and never an upload
    CHECK(ok(cache.try_set("k", Source(std::istringstream(large)))));
    CHECK(world.s3.open_uploads().empty());
}

TEST_CASE("a store that refuses a copy with the very ETag it gave copies without", "[stores][touch]") {
    fake_s3::Quirks quirks;
    quirks.refuse_copy_condition = true;
    World world(store::with(quirks));
    Cache cache = world.cache();
    const std::string large = store::random_bytes(part + 1, 1);
    CHECK(ok(cache.try_set("k", Source(std::istringstream(large)), {100s})));
    CHECK(ok(cache.try_touch("k", 1h)));
    CHECK(std::strtod(world.meta("k", "expires_at").c_str(), nullptr) > static_cast<double>(world.s3.now() + 3000));
    CHECK(same(text_of(cache.get("k")), large));
    world.once("CopyObject", Phase::before_effect, [&] { world.put("k", "new", {{"who", "the rival"}}); });
    static_cast<void>(cache.try_touch("k", 2h));
    CHECK(world.body("k") == "new");
    CHECK(world.meta("k", "who") == "the rival");
}

TEST_CASE("a touch that cannot rest on the ETag rests on the time, and leaves a newer entry its own metadata",
          "[stores][touch][race]") {
    for (const bool weak : {true, false}) {  // or the store refuses it, and the second copy goes without
        CAPTURE(weak);
        fake_s3::Quirks quirks;
        (weak ? quirks.weak_etags : quirks.refuse_copy_condition) = true;
        World world(store::with(quirks));
        Cache cache = world.cache();
        CHECK(cache.set("k", "old", {60s}));
        int copies = 0;
        world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
            if (request.operation != "CopyObject" || phase != Phase::before_effect) return;
            if (++copies != (weak ? 1 : 2)) return;
            world.s3.set_clock_offset(2);  // a later second
            world.put("k", "new", {{"kind", "text"}, {"who", "the rival"}});
        });
        const auto touched = cache.try_touch("k", 1h);
        world.s3.on_request({});
        if (weak) CHECK(code_of(touched) == store::no_error);
        CHECK(text_of(cache.get("k")) == "new");
        CHECK(world.meta("k", "who") == "the rival");
        CHECK(copies > (weak ? 1 : 2));
        for (const auto& request : world.s3.requests()) {
            if (request.operation != "CopyObject") continue;
            CHECK(request.header("x-amz-copy-source-if-unmodified-since"));
            if (weak) CHECK_FALSE(request.header("x-amz-copy-source-if-match"));
        }
    }
}

TEST_CASE("a touch goes without the conditions that the store refuses, one after the other", "[stores][touch]") {
    for (const bool weak : {true, false}) {
        CAPTURE(weak);
        fake_s3::Quirks quirks;
        quirks.weak_etags = weak;
        World world(store::with(quirks));
        Cache cache = world.cache();
        CHECK(cache.set("k", "v", {60s}));
        // As one does that compares the fraction of the second in which it was stored.
        world.s3.add_fault(fake_s3::respond_error(412, "PreconditionFailed").on("CopyObject").for_times(2));
        CHECK(ok(cache.try_touch("k", 1h)));
        CHECK(world.s3.request_count("CopyObject") == 3);
        const auto last = world.s3.requests().back();
        CHECK_FALSE(last.header("x-amz-copy-source-if-match"));
        CHECK_FALSE(last.header("x-amz-copy-source-if-unmodified-since"));
    }
}

TEST_CASE("a condition that the store refuses for parts alone is counted as none", "[stores][conditions]") {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    World world(options);
    Config config = world.config();
    config.part_bytes = std::size_t{64} << 10;
    Cache cache = world.cache(config);
    world.s3.add_fault(fake_s3::respond_error(501, "NotImplemented").on("CompleteMultipartUpload"));
    CHECK(ok(cache.try_set("k", store::random_bytes(300000, 1), if_absent())));
    CHECK(cache.stats().unconditional == 1);
    CHECK(world.s3.open_uploads().empty());
}

TEST_CASE("a 200 to a PUT without an ETag, as Swift gives to one of two writers, is looked into or sent again",
          "[stores][lost]") {
    for (const bool took_effect : {true, false}) {
        for (const bool html : {true, false}) {
            CAPTURE(took_effect, html);
            World world;
            Cache cache = world.cache();
            const auto odd = (html ? fake_s3::html_page(200) : fake_s3::respond(200))
                                 .placed(took_effect ? Point::after_effect : Point::before_effect);
            world.put("k", "old");
            world.s3.add_fault(odd.on("PutObject"));
            CHECK(ok(cache.try_set("k", "v")));
            CHECK(world.body("k") == "v");
            CHECK(ok(cache.try_set("probe", "v", if_absent())));
            world.s3.erase("bucket", "k");
            world.s3.add_fault(odd.on("PutObject").for_key("k"));
            CHECK(ok(cache.try_set("k", "w", if_absent())));
            CHECK(world.body("k") == "w");
            if (html) {
                world.s3.clear_faults();
                world.s3.erase("bucket", "k");
                world.always(fake_s3::html_page(200), "PutObject");
                CHECK(code_of(cache.try_set("k", "x")) != store::no_error);
            }
        }
    }
}

TEST_CASE("uploads are swept where markers stand unencoded, or true has a capital", "[stores][sweep]") {
    for (const int quirk : {0, 1, 2}) {
        CAPTURE(quirk);
        fake_s3::Options options;
        options.list_page_max = 2;
        options.quirks.raw_markers = quirk == 0;
        options.quirks.capital_true = quirk == 1;
        options.quirks.ignore_encoding_type = quirk == 2;
        World world(options);
        const store::Raw raw(world.s3.endpoint(), "", world.s3.access_key(), world.s3.secret_key(), "us-east-1");
        world.s3.set_clock_offset(-100);
        for (const char* key : {"/bucket/10%", "/bucket/20%zz", "/bucket/30%41", "/bucket/40+ b", "/bucket/50%"})
            REQUIRE(raw.request("POST", key, {{"uploads", ""}}).status == 200);
        world.s3.set_clock_offset(0);
        CHECK(ok(world.cache().try_sweep_uploads("", Seconds(1))) == 5);
        CHECK(world.s3.open_uploads().empty());
    }
}

TEST_CASE("a control character that stands raw in a list is named, and keeps nothing else from going",
          "[stores][list][clear]") {
    fake_s3::Options options;
    const bool raw = GENERATE(true, false);  // as the byte, or as a reference
    (raw ? options.quirks.raw_controls : options.quirks.ignore_encoding_type) = true;
    options.list_page_max = 3;
    World world(options);
    Cache cache = world.cache();
    for (const char* key : {"a", "b", "c",
                            "d\x01"
                            "d",
                            "e", "f", "g", "h", "i"})
        world.put(key, "v");
    const auto names_it = [](const Error& error) {
        CAPTURE(error.what());
        CHECK(error.code() == Errc::protocol);
        CHECK(store::holds(error.what(), "XML"));
        CHECK(store::holds(error.what(), "key"));
        CHECK_FALSE(store::holds(error.what(), "is the endpoint"));
    };
    Listing listing = cache.list();
    std::optional<Error> error;
    for (int i = 0; i < 20 && !error; ++i) {
        auto next = listing.try_next();
        if (!next) error = store::checked(next.error());
        if (next && !*next) break;
    }
    REQUIRE(error);
    names_it(*error);
    const auto cleared = cache.try_clear("");
    if (!cleared) names_it(cleared.error());
    CHECK(world.s3.object_count() <= 1);
    CHECK((world.s3.object_count() == 0) == cleared.has_value());
}
