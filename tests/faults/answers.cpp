// Bad input and bad days on the fake store: what each operation costs, answers that are not S3's, damage, clocks, races.
#include "world.hpp"

#include <sys/wait.h>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

// `count` requests of that operation, and none of another.
void only(World& world, std::size_t count, const std::string& operation) {
    CAPTURE(operation);
    CHECK(world.s3.request_count() == count);
    CHECK(world.s3.request_count(operation) == count);
    world.s3.clear_requests();
}

}  // namespace

// ---- what is sent ---------------------------------------------------------------------------------------------------

TEST_CASE("an operation sends no more requests than it needs", "[requests]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Cache cache = world.cache();
        store::Folder folder;
        store::write(folder / "in", "small");
        cache.set("k", "v");
        only(world, 1, "PutObject");
        cache.set("k", "v", {1h, true});
        only(world, 1, "PutObject");
        cache.set("s", std::istringstream("small"));
        only(world, 1, "PutObject");
        cache.set("s", std::istringstream("small"), {1h, true});
        only(world, 1, "PutObject");
        cache.set("s", std::istringstream(""));
        only(world, 1, "PutObject");
        cache.set("s", std::istringstream(std::string(part, 'x')));
        only(world, 1, "PutObject");
        cache.set_file("f", folder / "in");
        only(world, 1, "PutObject");
        cache.get("k");
        only(world, 1, "GetObject");
        cache.get("nothing");
        only(world, 1, "GetObject");
        store::drained(*cache.get_stream("k"));
        only(world, 1, "GetObject");
        cache.get_file("k", folder / "out");
        only(world, 1, "GetObject");
        cache.stat("k");
        only(world, 1, "HeadObject");
        cache.contains("k");
        only(world, 1, "HeadObject");
        cache.contains("nothing");
        only(world, 1, "HeadObject");
        cache.remove("s");
        only(world, 1, "DeleteObject");
        for (const Entry& entry : cache.list()) CHECK_FALSE(entry.key.empty());
        only(world, 1, "ListObjectsV2");
        cache.presign("k", "GET", 1h);
        CHECK(world.requests([&] { CHECK(cache.touch("k", 1h)); }) == 2);
        CHECK(world.requests([&] { cache.get_or_set("k", [] { return "w"; }); }) == 1);
        CHECK(world.requests([&] { cache.get_or_set("new", [] { return "w"; }); }) == 2);
        CHECK(world.requests([&] { CHECK(cache.remove_many({"a", "b", "f"}).size() == 3); }) == 1);
        CHECK(world.requests([&] { CHECK(cache.clear("") == 2); }) == 2);
        CHECK(world.s3.object_count() == 0);
        CHECK(world.waits.empty());
    }
}

TEST_CASE("each call makes the requests that README says", "[requests]") {
    World world;
    Config config = world.config();
    config.part_bytes = Config().part_bytes;
    Cache cache = world.cache(config);
    // Their methods, in this order.
    const auto sent = [&](auto&& work) {
        world.s3.clear_requests();
        work();
        std::string methods;
        for (const auto& request : world.s3.requests()) methods += (methods.empty() ? "" : " ") + request.method;
        return methods;
    };
    const std::string mebibytes(std::size_t{16} << 20, 'x');
    SetOptions once{1h};
    once.if_absent = true;
    ComputeOptions leased;
    leased.lease = 60s;
    const auto produce = [] { return "v"; };

    CHECK(sent([&] { cache.set("k", "v"); }) == "PUT");
    CHECK(sent([&] { cache.set("large", mebibytes); }) == "PUT");
    CHECK(sent([&] { cache.set("stream", std::istringstream(mebibytes.substr(0, 8 << 20))); }) == "PUT");
    CHECK(sent([&] { cache.set("stream", std::istringstream(mebibytes.substr(0, (8 << 20) + 1))); }) ==
          "POST PUT PUT POST");
    CHECK(sent([&] { cache.set("large", mebibytes + "x"); }) == "POST PUT PUT PUT POST");
    CHECK(sent([&] { cache.get("k"); }) == "GET");
    CHECK(sent([&] { cache.get("nothing"); }) == "GET");
    CHECK(sent([&] { cache.get_stream("nothing"); }) == "GET");
    world.put_expiring("old", "v", -10);
    CHECK(sent([&] { cache.get("old"); }) == "GET HEAD DELETE");
    CHECK(sent([&] { cache.stat("k"); }) == "HEAD");
    CHECK(sent([&] { cache.contains("nothing"); }) == "HEAD");
    CHECK(sent([&] { cache.touch("k", 1h); }) == "HEAD PUT");
    CHECK(sent([&] { cache.set("first", "v", once); }) ==
          "PUT PUT PUT HEAD DELETE HEAD PUT");  // five try the store out
    CHECK(sent([&] { cache.set("second", "v", once); }) == "HEAD PUT");
    CHECK(sent([&] { cache.get_or_set("computed", produce); }) == "GET PUT");
    CHECK(sent([&] { cache.get_or_set("computed", produce); }) == "GET");
    CHECK(sent([&] { cache.get_or_set("leased", produce, {1h}, leased); }) == "GET HEAD PUT GET PUT HEAD DELETE");
    world.s3.erase_all();
    for (int i = 0; i < 1001; ++i) {
        const std::string key = "k" + std::to_string(10000 + i);
        i < 3 ? world.put_expiring(key, "v", -10) : world.put(key, "v");
    }
    CHECK(sent([&] {
              for (const Entry& entry : cache.list()) CHECK_FALSE(entry.key.empty());
          }) == "GET GET");
    world.s3.clear_requests();
    CHECK(cache.purge_expired("k100") == 3);  // of a hundred
    CHECK(world.s3.request_count("GET") == 1);
    CHECK(world.s3.request_count("HEAD") == 100);
    CHECK(world.s3.request_count("DELETE") == 3);
    CHECK(sent([&] { CHECK(cache.clear("k100") == 97); }) == "GET POST");
}

TEST_CASE("an upload in parts sends each part once, all of one size but the last", "[requests]") {
    World world;
    Cache cache = world.cache();
    struct Case {
        std::size_t size, parts;
    };
    for (const Case& c : {Case{part + 1, 2}, Case{2 * part, 2}, Case{3 * part, 3}, Case{3 * part + 1, 4}}) {
        CAPTURE(c.size);
        const std::string data = store::random_bytes(c.size, c.size);
        for (const bool announced : {false, true}) {
            CAPTURE(announced);
            world.s3.clear_requests();
            std::istringstream in(data);
            if (announced)
                cache.set("k", Source(in).sized(c.size));
            else
                cache.set("k", in);
            CHECK(world.s3.request_count("CreateMultipartUpload") == 1);
            CHECK(world.s3.request_count("UploadPart") == c.parts);
            CHECK(world.s3.request_count("CompleteMultipartUpload") == 1);
            CHECK(world.s3.request_count() == c.parts + 2);
            CHECK(same(world.body("k"), data));
            std::size_t smaller = 0;
            for (const auto& request : world.s3.requests()) {
                if (request.operation == "UploadPart") smaller += request.body_size != part;
            }
            CHECK(smaller <= 1);
        }
    }
}

TEST_CASE("an expired entry costs its get, and little more to remove", "[requests][ttl]") {
    for (const bool ignores : {false, true}) {
        CAPTURE(ignores);
        fake_s3::Quirks quirks;
        quirks.ignore_conditional_delete = ignores;
        World world(store::with(quirks));
        Config config = world.config();
        Cache removing = world.cache(config);
        config.expired = Expired::keep;
        Cache keeping = world.cache(config);
        world.put_expiring("k", "v", -10);
        CHECK(world.requests([&] { CHECK_FALSE(keeping.get("k")); }) == 1);
        CHECK(world.requests([&] { CHECK_FALSE(keeping.get_stream("k")); }) == 1);
        CHECK(world.requests([&] { CHECK_FALSE(removing.contains("k")); }) == 1);
        CHECK(world.has("k"));
        CHECK(world.requests([&] { CHECK_FALSE(removing.get("k")); }) <= 3);
        CHECK_FALSE(world.has("k"));
    }
}

TEST_CASE("a connection is kept after a hit, a miss, an expired entry, a HEAD and a small error", "[connections]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Cache cache = world.cache();
        world.put_expiring("old", std::string(2000, 'x'), -10);
        world.s3.deny_key("denied");
        cache.set("k", "v");
        for (int i = 0; i < 3; ++i) {
            CHECK(cache.get("k"));
            CHECK_FALSE(cache.get("nothing"));
            CHECK_FALSE(cache.get("old"));
            world.put_expiring("old", std::string(2000, 'x'), -10);
            CHECK_FALSE(cache.get_stream("old"));
            world.put_expiring("old", std::string(2000, 'x'), -10);
            CHECK_FALSE(cache.contains("nothing"));
            CHECK(cache.contains("k"));
            CHECK(code_of(cache.try_get("denied")) == Errc::denied);
            CHECK(code_of(cache.try_stat("denied")) == Errc::denied);
            CHECK(code_of(cache.try_set("denied", "v")) == Errc::denied);
            CHECK(store::drained(*cache.get_stream("k")) == "v");
            cache.set("k", "v");
            cache.set("s", std::istringstream("stream"), {1h, true});
            cache.remove("s");
            CHECK(cache.touch("k", 1h));
            for (const Entry& entry : cache.list()) CHECK_FALSE(entry.key.empty());
        }
        CHECK(world.s3.connection_count() == 1);
        CHECK(cache.stats().connections == 1);
    }
}

TEST_CASE("a reader closed early costs one connection, one read to its end none", "[connections]") {
    World world;
    Config config = world.config();
    config.connections = 1;
    Cache cache = world.cache(config);
    world.put("large", std::string(50 << 20, 'x'));
    world.put("small", std::string(100000, 'x'));
    CHECK(cache.get("small"));
    CHECK(store::drained(*cache.get_stream("small")).size() == 100000);
    CHECK(world.s3.connection_count() == 1);
    {
        auto reader = cache.get_stream("large");
        char byte = 0;
        CHECK(reader->read(&byte, 1) == 1);
    }
    CHECK(cache.get("small"));
    CHECK(cache.get("small"));
    CHECK(world.s3.connection_count() == 2);
}

TEST_CASE("stores that close after each answer, say so or not, are worked with", "[connections][quirks]") {
    for (const bool silently : {false, true}) {
        CAPTURE(silently);
        fake_s3::Quirks quirks;
        quirks.close_each = !silently;
        quirks.close_each_silently = silently;
        World world(store::with(quirks));
        Cache cache = world.cache();
        for (int i = 0; i < 5; ++i) {
            cache.set("k", "value " + std::to_string(i));
            CHECK(text_of(cache.get("k")) == "value " + std::to_string(i));
            CHECK(cache.contains("k"));
        }
        const std::string large = store::random_bytes(2 * part + 1, 1);
        cache.set("large", std::istringstream(large));
        CHECK(same(text_of(cache.get("large")), large));
        cache.remove("k");
        CHECK_FALSE(world.has("k"));
        CHECK(world.s3.open_uploads().empty());
    }
}

TEST_CASE("connections that the store closed while they were idle are replaced without an error", "[connections]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "v");
    for (int i = 0; i < 3; ++i) {
        world.s3.close_connections();
        CHECK(cache.set("k", "v" + std::to_string(i)));
        world.s3.close_connections();
        CHECK(text_of(cache.get("k")) == "v" + std::to_string(i));
        world.s3.close_connections();
        CHECK(cache.contains("k"));
        world.s3.close_connections();
        cache.remove("gone");
    }
}

TEST_CASE("a child process does not share a connection with its parent", "[connections][fork]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "v");
    REQUIRE(world.s3.connection_count() == 1);
    for (int round = 1; round <= 2; ++round) {
        // The child keeps locks that the server's threads hold now: those of connections that have ended end first.
        while (world.s3.open_connection_count() > 1) std::this_thread::sleep_for(200us);
        const pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            alarm(10);
            const auto hit = cache.try_get("k");
            const bool fine = hit && *hit && (*hit)->view() == "v" && cache.try_set("from the child", "v").has_value();
            _exit(fine ? 0 : 1);
        }
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 0);
        CHECK(world.s3.connection_count() == static_cast<std::size_t>(1 + round));
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(world.s3.connection_count() == static_cast<std::size_t>(1 + round));
    }
    CHECK(world.has("from the child"));
}

TEST_CASE("requests carry what stores insist on, and nothing that some refuse", "[wire]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Cache cache = world.cache();
        cache.set("k", "v", {1h});
        cache.set("empty", "");
        cache.set("stream", std::istringstream("v"), {1h, true});
        cache.set("large", std::istringstream(std::string(part + 1, 'x')));
        cache.get("k");
        cache.touch("k", 2h);
        cache.remove_many({"k", "empty"});
        for (const auto& request : world.s3.requests()) {
            CAPTURE(request.operation, request.target);
            CHECK(request.status / 100 == 2);
            CHECK_FALSE(request.header("transfer-encoding"));
            CHECK_FALSE(request.header("accept-encoding"));
            CHECK_FALSE(request.header("content-encoding"));
            CHECK_FALSE(request.header("x-amz-sdk-checksum-algorithm"));
            CHECK_FALSE(request.header("x-amz-trailer"));
            for (const auto& [name, value] : request.headers) {
                CHECK_FALSE(store::holds(store::lower(name), "x-amz-checksum"));
                CHECK_FALSE(store::holds(value, world.s3.secret_key()));
            }
            CHECK(request.header("x-amz-content-sha256"));
            CHECK(request.header("x-amz-content-sha256")->size() == 64);
            if (request.method == "PUT" || request.method == "POST") CHECK(request.header("content-length"));
            if (request.method == "GET" || request.method == "HEAD") CHECK_FALSE(request.header("content-type"));
            if (request.operation == "PutObject") CHECK_FALSE(request.header("expect"));
            if (request.operation == "DeleteObjects") CHECK(request.header("content-md5"));
        }
    }
}

TEST_CASE("unsigned payloads are for TLS alone", "[wire]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Config config = world.config();
        config.unsigned_payload = true;
        Cache cache = world.cache(config);
        cache.set("k", "v");
        cache.set("large", std::istringstream(std::string(part + 1, 'x')));
        for (const auto& request : world.s3.requests()) {
            if (request.operation != "PutObject" && request.operation != "UploadPart") continue;
            CHECK((request.header("x-amz-content-sha256") == std::string("UNSIGNED-PAYLOAD")) == tls);
        }
        CHECK(text_of(cache.get("k")) == "v");
    }
}

TEST_CASE("encryption, storage class and the hook on libcurl reach every write", "[wire]") {
    World world;
    Config config = world.config();
    config.server_side_encryption = "AES256";
    config.storage_class = "STANDARD_IA";
    config.setup_curl = [](void* curl) { curl_easy_setopt(static_cast<CURL*>(curl), CURLOPT_USERAGENT, "hooked"); };
    Cache cache = world.cache(config);
    cache.set("k", "v");
    cache.set("large", std::istringstream(std::string(part + 1, 'x')));
    cache.touch("k", 1h);
    for (const auto& request : world.s3.requests()) {
        CAPTURE(request.operation);
        CHECK(request.header("user-agent") == std::string("hooked"));
        const bool creates = request.operation == "PutObject" || request.operation == "CreateMultipartUpload" ||
                             request.operation == "CopyObject";
        CHECK((request.header("x-amz-server-side-encryption") == std::string("AES256")) == creates);
        CHECK((request.header("x-amz-storage-class") == std::string("STANDARD_IA")) == creates);
    }
}

TEST_CASE("every request says once who asks", "[wire]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "v");
    cache.set("large", std::istringstream(std::string(part + 1, 'x')));
    CHECK(cache.get("k"));
    cache.remove("k");
    REQUIRE(world.s3.request_count() > 5);
    for (const auto& request : world.s3.requests()) {
        CAPTURE(request.operation);
        CHECK(request.header("user-agent") == std::string("s3cache/" S3CACHE_VERSION));  // repeats would be joined
    }
}

TEST_CASE("anonymous requests are not signed", "[wire]") {
    fake_s3::Options options;
    options.allow_anonymous = true;
    World world(options);
    Config config = world.config();
    config.credentials = anonymous();
    Cache cache = world.cache(config);
    world.put("k", "v");
    CHECK(text_of(cache.get("k")) == "v");
    for (const auto& request : world.s3.requests()) CHECK_FALSE(request.header("authorization"));
}

TEST_CASE("a session token goes along and is signed", "[wire]") {
    fake_s3::Options options;
    options.keys = {{"ASIAFAKE", "secret of a session", "token+/=of-a-session"}};
    World world(options);
    store::secrets().push_back("secret of a session");
    store::secrets().push_back("token+/=of-a-session");
    Config config = world.config();
    config.credentials = Credentials{"ASIAFAKE", "secret of a session", "token+/=of-a-session", {}, "the test"};
    Cache cache = world.cache(config);
    cache.set("k", "v");
    CHECK(text_of(cache.get("k")) == "v");
    world.s3.deny_key("denied");
    CHECK(code_of(cache.try_get("denied")) == Errc::denied);
    const store::Raw plain(world.s3.endpoint(), "", "", "", "");
    CHECK(plain.send("GET", cache.presign("k", "GET", 1h)).body == "v");
}

// ---- errors ---------------------------------------------------------------------------------------------------------

TEST_CASE("an error tells operation, key, status, code, message and request id, and no secret", "[errors]") {
    World world;
    world.s3.deny_key("a key");
    Cache cache = world.cache();
    const Error error = failure(cache.try_get("a key"));
    CHECK(error.code() == Errc::denied);
    CHECK(error.status() == 403);
    CHECK(error.s3_code() == "AccessDenied");
    CHECK_FALSE(error.s3_message().empty());
    CHECK_FALSE(error.request_id().empty());
    CHECK(error.attempts() == 1);
    CHECK_FALSE(error.retryable());
    for (const std::string& text : {std::string("get"), std::string("a key"), std::string("403"),
                                    std::string("AccessDenied"), error.request_id()}) {
        CAPTURE(error.what(), text);
        CHECK(store::holds(error.what(), text));
    }
    CHECK(cache.stats().errors == 1);
    CHECK(world.s3.request_count() == 1);
    CHECK(world.waits.empty());
    const Error copy = error;
    CHECK(std::string(copy.what()) == error.what());

    CHECK(code_of(cache.try_set("a key", "v")) == Errc::denied);
    CHECK(code_of(cache.try_remove("a key")) == Errc::denied);
    CHECK(code_of(cache.try_stat("a key")) == Errc::denied);
    CHECK(code_of(cache.try_touch("a key", 1h)) == Errc::denied);
    CHECK(code_of(cache.try_get_stream("a key")) == Errc::denied);
    CHECK(code_of(cache.try_get_or_set("a key", [] { return "v"; })) == Errc::denied);
    const auto many = cache.remove_many({"a key", "other"});
    REQUIRE(many.size() == 2);
    CHECK(code_of(many[0]) == Errc::denied);
    CHECK(many[1]);
}

TEST_CASE("a wrong secret, an unknown key and no credentials at all are told apart", "[errors][credentials]") {
    World world;
    Config config = world.config();
    store::secrets().push_back("another secret");
    config.credentials = Credentials{world.s3.access_key(), "another secret", {}, {}, "the test"};
    const Error wrong = failure(world.cache(config).try_get("k"));
    CHECK(wrong.code() == Errc::denied);
    CHECK(wrong.s3_code() == "SignatureDoesNotMatch");
    config.credentials = Credentials{"AKIDUNKNOWN", "another secret", {}, {}, "the test"};
    const Error unknown = failure(world.cache(config).try_get("k"));
    CHECK(unknown.code() == Errc::denied);
    CHECK(unknown.s3_code() == "InvalidAccessKeyId");
    config.credentials = {};
    config.seams.environment = [](const char* name) -> std::optional<std::string> {
        if (std::string_view(name) == "AWS_EC2_METADATA_DISABLED") return "true";
        if (std::string_view(name) == "HOME") return "/nonexistent";
        return std::nullopt;
    };
    world.s3.clear_requests();
    CHECK(code_of(world.cache(config).try_get("k")) == Errc::credentials);
    CHECK(world.s3.request_count() == 0);
    config.credentials = Credentials{"AKID\r\nx-evil: 1", "another secret", {}, {}, "the test"};
    const Errc injected = code_of(world.cache(config).try_get("k"));
    CHECK((injected == Errc::credentials || injected == Errc::invalid_argument));
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("credentials that the store calls expired are fetched anew, once", "[credentials]") {
    fake_s3::Options options;
    options.keys = {{"AKIDOLD", "secret 1 of three", {}, true},
                    {"AKIDOLDER", "secret 2 of three", {}, true},
                    {"AKIDNEW", "secret 3 of three"}};
    World world(options);
    for (const char* secret : {"secret 1 of three", "secret 2 of three", "secret 3 of three"})
        store::secrets().push_back(secret);
    world.put("k", "v");
    Config config = world.config();
    std::vector<std::size_t> order;  // of the keys that the provider hands out
    std::size_t asked = 0;
    config.credentials = [&]() -> Result<Credentials> {
        const fake_s3::Key& key = options.keys[order[(std::min)(asked++, order.size() - 1)]];
        return Credentials{key.access_key, key.secret_key, {}, std::chrono::system_clock::now() + 1h, "a function"};
    };
    SECTION("and work") {
        order = {0, 2};
        Cache cache = world.cache(config);
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(asked == 2);
        CHECK(world.s3.request_count() == 2);
        CHECK(world.waits.empty());
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(asked == 2);
    }
    SECTION("and are no better") {
        order = {0, 1};
        Cache cache = world.cache(config);
        const Error error = failure(cache.try_get("k"));
        CHECK((error.code() == Errc::credentials || error.code() == Errc::denied));
        CHECK(error.s3_code() == "ExpiredToken");
        CHECK(asked == 2);
        CHECK(world.s3.request_count() == 2);
    }
}

TEST_CASE("credentials that are about to run out are fetched anew before they do", "[credentials]") {
    World world;
    world.put("k", "v");
    Config config = world.config();
    std::chrono::seconds shift{0};  // of both clocks, the store's and this machine's
    const auto now = [&] { return std::chrono::system_clock::now() + shift; };
    int asked = 0;
    config.clock = now;
    config.credentials = [&]() -> Result<Credentials> {
        ++asked;
        return Credentials{world.s3.access_key(), world.s3.secret_key(), {}, now() + 1h, "a function"};
    };
    Cache cache = world.cache(config);
    for (int hour = 1; hour <= 3; ++hour) {
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(asked == hour);
        shift += 59min;
        world.s3.set_clock_offset(shift.count());
    }
    CHECK(world.waits.empty());
}

TEST_CASE("without a network the error says so, after the attempts that were allowed", "[errors]") {
    World world;
    Config config = world.config();
    world.s3.set_listening(false);
    for (const int attempts : {1, 3}) {
        CAPTURE(attempts);
        config.attempts_max = attempts;
        Cache cache = world.cache(config);
        world.waits.clear();
        const Error error = failure(cache.try_get("k"));
        CHECK(error.code() == Errc::network);
        CHECK(error.status() == 0);
        CHECK(error.attempts() == attempts);
        CHECK(error.retryable());
        CHECK(world.waits.size() == static_cast<std::size_t>(attempts - 1));
        CHECK(code_of(cache.try_set("k", "v")) == Errc::network);
        CHECK(code_of(cache.try_set("k", std::istringstream("v"))) == Errc::network);
    }
    config.endpoint = "http://no-such-host.invalid";
    config.attempts_max = 1;
    CHECK(code_of(world.cache(config).try_get("k")) == Errc::network);
    world.s3.set_listening(true);
    config.endpoint = world.s3.endpoint();
    CHECK_FALSE(world.cache(config).get("k"));
}

TEST_CASE("a certificate that changes to one nobody vouches for is refused", "[errors][tls]") {
    World world(store::over(true));
    Cache cache = world.cache();
    cache.set("k", "v");
    world.s3.swap_certificate();
    world.s3.close_connections();
    CHECK(code_of(cache.try_set("k", "w")) == Errc::tls);
    CHECK(code_of(cache.try_get("k")) == Errc::tls);
    CHECK(world.body("k") == "v");
}

TEST_CASE("a TLS port spoken to in plain text, and the other way round, is an error", "[errors][tls]") {
    World tls(store::over(true)), plain;
    Config config = tls.config();
    config.attempts_max = 1;
    config.endpoint = "http" + tls.s3.endpoint().substr(5);
    const Errc spoken_plain = code_of(tls.cache(config).try_get("k"));
    CHECK((spoken_plain == Errc::network || spoken_plain == Errc::protocol || spoken_plain == Errc::store));
    config.endpoint = "https" + plain.s3.endpoint().substr(4);
    config.connect_timeout = 300ms;  // such a server waits for the end of a line that never comes
    const Errc spoken_tls = code_of(plain.cache(config).try_get("k"));
    CHECK((spoken_tls == Errc::tls || spoken_tls == Errc::network || spoken_tls == Errc::timed_out));
}

TEST_CASE("403 is an error, or a miss for callers who may not list", "[errors]") {
    fake_s3::Quirks quirks;
    quirks.forbidden_for_missing = true;
    World world(store::with(quirks));
    Config config = world.config();
    Cache cache = world.cache(config);
    CHECK(code_of(cache.try_get("k")) == Errc::denied);
    CHECK(code_of(cache.try_stat("k")) == Errc::denied);
    config.forbidden_is_miss = true;
    Cache lenient = world.cache(config);
    CHECK_FALSE(lenient.get("k"));
    CHECK_FALSE(lenient.get_stream("k"));
    CHECK_FALSE(lenient.stat("k"));
    CHECK_FALSE(lenient.contains("k"));
    lenient.set("k", "v");
    CHECK(text_of(lenient.get("k")) == "v");
}

TEST_CASE("a 404 without a body is a miss, a page of HTML is none", "[errors]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::html_page(404));
    CHECK_FALSE(cache.try_get("k"));
    fake_s3::Quirks quirks;
    quirks.empty_404 = true;
    world.s3.set_quirks(quirks);
    CHECK_FALSE(cache.get("k"));
    CHECK_FALSE(cache.get_stream("k"));
    CHECK_FALSE(cache.stat("k"));
    CHECK(cache.stats().errors == 1);
}

// ---- answers that are not S3's --------------------------------------------------------------------------------------

TEST_CASE("a page of HTML is never taken for an entry or a list", "[hostile]") {
    for (const int status : {200, 302, 400, 403, 500}) {
        CAPTURE(status);
        World world;
        Cache cache = world.cache();
        world.put("k", "v");
        world.s3.add_fault(fake_s3::html_page(status).for_times(fake_s3::forever));
        const auto check = [&](const Error& error) {
            CHECK_FALSE(store::holds(error.what(), "<"));
            CHECK(std::string_view(error.what()).size() < 1000);
            if (status == 403)
                CHECK(error.code() == Errc::denied);
            else
                CHECK((error.code() == Errc::protocol || error.code() == Errc::store));
        };
        check(failure(cache.try_get("k")));
        check(failure(cache.try_get_stream("k")));
        if (status != 200) check(failure(cache.try_set("k", "w")));
        if (status != 200) check(failure(cache.try_stat("k")));
        auto listing = cache.try_list();
        if (listing)
            check(failure(listing->try_next()));
        else
            check(failure(listing));
        check(failure(cache.try_clear("")));
        check(failure(cache.try_set("k", std::istringstream(std::string(part + 1, 'x')))));
        world.s3.clear_faults();
        CHECK(world.body("k") == "v");
        CHECK(world.s3.open_uploads().empty());
    }
}

TEST_CASE("bytes that are not HTTP are an error", "[hostile]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::garbage().for_times(fake_s3::forever));
    for (const Errc code :
         {code_of(cache.try_get("k")), code_of(cache.try_set("k", "v")), code_of(cache.try_stat("k"))}) {
        CHECK((code == Errc::network || code == Errc::protocol));
    }
}

TEST_CASE("lists that are empty, cut, wrong, endless or that lie are errors, not entries", "[hostile][list]") {
    const std::string head =
        "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
    const std::string entry =
        "<Contents><Key>k</Key><LastModified>2025-01-15T12:00:00.000Z</LastModified><ETag>\"x\"</ETag><Size>1</Size></"
        "Contents>";
    struct Case {
        const char* name;
        std::string body;
    };
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += "<a>";
    const Case cases[] = {
        {"empty", ""},
        {"blanks", " \n "},
        {"another root", "<?xml version=\"1.0\"?><ListAllMyBucketsResult/>"},
        {"an error in a 200", "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>x</Message></Error>"},
        {"cut", head + "<IsTruncated>false</IsTruncated>" + entry},
        {"cut in a tag", head + "<IsTr"},
        {"a DTD", "<!DOCTYPE x [<!ENTITY a \"aaaa\">]>" + head + "<IsTruncated>false</IsTruncated></ListBucketResult>"},
        {"deep", head + deep},
        {"not UTF-8",
         head +
             "<IsTruncated>false</IsTruncated><Contents><Key>\xFF</Key><Size>1</Size></Contents></ListBucketResult>"},
        {"truncated without a token", head + "<IsTruncated>true</IsTruncated>" + entry + "</ListBucketResult>"},
        {"the same token again",
         head + "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>" + entry +
             "</ListBucketResult>"},
    };
    for (const Case& c : cases) {
        CAPTURE(c.name);
        World world;
        Cache cache = world.cache();
        world.s3.add_fault(fake_s3::respond(200, c.body, {{"Content-Type", "application/xml"}})
                               .on("ListObjectsV2")
                               .for_times(fake_s3::forever));
        Result<Listing> listing = cache.try_list();
        std::size_t entries = 0;
        std::optional<Error> error;
        if (!listing) error = listing.error();
        while (!error && entries < 100) {
            const auto next = listing->try_next();
            if (!next)
                error = next.error();
            else if (!*next)
                break;
            else
                ++entries;
        }
        REQUIRE(error);
        store::checked(*error);
        CHECK((error->code() == Errc::protocol || error->code() == Errc::store));
        CHECK(entries <= 2);
        CHECK(world.s3.request_count() <= 4);
    }
}

TEST_CASE("what a list names outside of the prefix is not handed out, and never removed", "[hostile][list]") {
    World world;
    Cache cache("s3://bucket/mine", world.config());
    world.put("theirs/k", "v");
    world.put("mine/k", "v");
    const std::string body =
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>theirs/k</Key><Size>1</Size></Contents>"
        "<Contents><Key>m</Key><Size>1</Size></Contents><Contents><Key>mine/k</Key><Size>1</Size></Contents></"
        "ListBucketResult>";
    world.s3.add_fault(fake_s3::respond(200, body).on("ListObjectsV2").for_times(fake_s3::forever));
    Result<Listing> listing = cache.try_list();
    if (listing) {
        for (auto next = listing->try_next(); next && *next; next = listing->try_next()) CHECK((*next)->key == "k");
    } else {
        CHECK(code_of(listing) == Errc::protocol);
    }
    static_cast<void>(cache.try_clear(""));
    CHECK(world.has("theirs/k"));
}

TEST_CASE("huge headers, many headers and huge error bodies are bounded", "[hostile]") {
    World world;
    Config config = world.config();
    config.attempts_max = 1;
    Cache cache = world.cache(config);
    world.put("k", "v");
    world.s3.add_fault(fake_s3::huge_header(99000));
    const auto large = cache.try_get("k");
    if (!large) CHECK((code_of(large) == Errc::protocol || code_of(large) == Errc::network));
    fake_s3::Edit many;
    for (int i = 0; i < 5000; ++i)
        many.add_headers.emplace_back("X-Amz-Meta-N" + std::to_string(i), std::string(50, 'x'));
    world.s3.add_fault(fake_s3::edit_answer(many));
    const auto crowded = cache.try_get("k");
    if (!crowded) CHECK((code_of(crowded) == Errc::protocol || code_of(crowded) == Errc::network));
    for (const int status : {400, 500}) {
        CAPTURE(status);
        world.s3.clear_faults();
        world.s3.add_fault(fake_s3::respond(
            status, "<Error><Code>Big</Code><Message>" + std::string(30 << 20, 'x') + "</Message></Error>"));
        const Error error = failure(cache.try_get("k"));
        CHECK(std::string_view(error.what()).size() < 5000);
        CHECK(error.s3_message().size() < 100000);
    }
    const std::string nasty = "<Error><Code>Bad\r\nCode</Code><Message>line\none\x1B[31m\ttwo</Message></Error>";
    world.s3.add_fault(fake_s3::respond(400, nasty));
    const Error error = failure(cache.try_get("k"));
    CHECK(std::string_view(error.what()).find('\x1B') == std::string_view::npos);
    CHECK(text_of(cache.get("k")) == "v");
}

TEST_CASE("answers in every legal shape are read", "[wire]") {
    World world;
    Cache cache = world.cache();
    const std::string text = store::text_lines(200000);
    world.put("k", text, {{"owner", "alice"}});
    const auto fine = [&](const char* what, const fake_s3::Fault& fault) {
        CAPTURE(what);
        world.s3.add_fault(fault.for_times(2));
        CHECK(same(text_of(cache.get("k")), text));
        CHECK(same(store::drained(*cache.get_stream("k")), text));
        world.s3.clear_faults();
    };
    fine("lines that end in LF", fake_s3::bare_lf());
    fine("100 Continue thrice", fake_s3::continues(3));
    fine("dripping", fake_s3::drip(50000, 1ms));
    fine("an ETag twice", fake_s3::duplicate_header("ETag", world.s3.object("bucket", "k")->etag));
    // Where the end of the connection is the only end, a cut answer cannot be told from a whole one.
    world.s3.add_fault(fake_s3::no_length().for_times(2));
    const auto endless = cache.try_get("k");
    if (endless)
        CHECK(same(text_of(*endless), text));
    else
        CHECK(code_of(endless) == Errc::protocol);
    world.s3.clear_faults();
    fake_s3::Quirks quirks;
    quirks.chunked_answers = true;
    world.s3.set_quirks(quirks);
    CHECK(same(text_of(cache.get("k")), text));
    CHECK(same(store::drained(*cache.get_stream("k")), text));
    CHECK(cache.clear("") == 1);
}

TEST_CASE("100 Continue that is withheld does not stop an upload", "[wire]") {
    World world;
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::continues(0).for_times(fake_s3::forever));
    cache.set("k", "v");
    const std::string large = store::random_bytes(part + 1, 3);
    cache.set("large", std::istringstream(large));
    CHECK(same(world.body("large"), large));
}

// ---- damage ---------------------------------------------------------------------------------------------------------

TEST_CASE("a bit that flips on the way is found, and no damaged value returned", "[damage]") {
    World world;
    Config config = world.config();
    Cache cache = world.cache(config);
    const std::string text = store::text_lines(100000);
    cache.set("plain", text);
    cache.set("gzip", text, {{}, true});
    for (const char* key : {"plain", "gzip"}) {
        CAPTURE(key);
        world.s3.add_fault(fake_s3::flip_bit(54321).on("GetObject").for_times(fake_s3::forever));
        CHECK(code_of(cache.try_get(key)) == Errc::damaged);
        auto reader = cache.try_get_stream(key);
        if (reader) {
            Result<std::string_view> chunk = (*reader)->try_next();
            while (chunk && !chunk->empty()) chunk = (*reader)->try_next();
            CHECK(code_of(chunk) == Errc::damaged);
        } else {
            CHECK(code_of(reader) == Errc::damaged);
        }
        world.s3.clear_faults();
        CHECK(same(text_of(cache.get(key)), text));
    }
    CHECK(cache.stats().damaged >= 4);
}

TEST_CASE("a part of an object that was not asked for is no value", "[hostile]") {
    World world;
    Cache cache = world.cache();
    world.put("k", "the whole of it");
    world.s3.add_fault(fake_s3::respond(206, "the whole").on("GetObject").for_times(fake_s3::forever));
    CHECK(code_of(cache.try_get("k")) == Errc::protocol);
    CHECK(code_of(cache.try_get_stream("k")) == Errc::protocol);
    CHECK(world.body("k") == "the whole of it");
}

TEST_CASE("a large object on a slow connection comes in ranges of one version, and whole", "[ranges]") {
    fake_s3::Options options;
    // Far below the rate at which one connection is left alone.
    options.connection_bytes_per_second = 2000000;
    for (const bool ignores_ranges : {false, true}) {
        options.quirks.ignore_range = ignores_ranges;
        World world(options);
        Config config = world.config();
        config.part_bytes = 128 << 10;
        Cache cache = world.cache(config);
        const std::string data = store::random_bytes((1 << 20) + 1, 11);
        world.put("k", data);
        world.s3.clear_requests();
        // One that stands still finds so much waiting that it takes the line for a fast one: again, then.
        std::size_t ranged = 0;
        for (int i = 0; i < (ignores_ranges ? 1 : 5) && ranged < 2; ++i) {
            CHECK(same(text_of(cache.get("k")), data));
            CHECK(same(store::drained(*cache.get_stream("k")), data));
            ranged = 0;
            for (const auto& request : world.s3.requests()) {
                if (!request.header("range")) continue;
                ++ranged;
                CHECK(request.header("if-match"));
            }
        }
        CHECK((ranged >= 2) == !ignores_ranges);  // such a store does not announce ranges, so none is asked for
        if (ignores_ranges) continue;
        // One range fails for a while: it alone is asked for again.
        world.s3.add_fault(fake_s3::slow_down().on("GetObject").nth_time(3).for_times(1));
        CHECK(same(text_of(cache.get("k")), data));
        world.s3.clear_faults();
        // Another writer comes between two ranges: one version or the other, never a mixture.
        const std::string newer = store::random_bytes((1 << 20) + 1, 12);
        std::atomic<std::size_t> gets{0};  // of several connections
        world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation == "GetObject" && phase == fake_s3::Phase::before_effect && ++gets == 3)
                world.put("k", newer);
        });
        for (int i = 0; i < 5 && gets < 3; ++i) {
            gets = 0;
            const std::string got = text_of(cache.get("k"));
            CHECK(same(got, gets < 3 ? data : newer));
        }
        CHECK(gets >= 3);
    }
}

TEST_CASE("an answer cut short goes on where it stopped", "[damage][resume]") {
    for (const bool tls : {false, true}) {
        World world(store::over(tls));
        Cache cache = world.cache();
        const std::string data = store::random_bytes(3 << 20, 4);
        cache.set("plain", bytes(data.data(), data.size()));
        cache.set("gzip", bytes(data.data(), data.size()), {{}, true});
        for (const char* key : {"plain", "gzip"}) {
            for (const auto& fault :
                 {fake_s3::close_at(Point::answer_body, 1000000), fake_s3::reset_at(Point::answer_body, 1000000)}) {
                CAPTURE(tls, key);
                world.s3.add_fault(fault.on("GetObject").for_times(2));
                CHECK(same(text_of(cache.get(key)), data));
                world.s3.clear_faults();
                world.s3.add_fault(fault.on("GetObject"));
                CHECK(same(store::drained(*cache.get_stream(key)), data));
                world.s3.clear_faults();
                world.s3.add_fault(fault.on("GetObject").for_times(fake_s3::forever));
                Config once = world.config();
                once.attempts_max = 1;
                CHECK(code_of(world.cache(once).try_get(key)) == Errc::network);
                world.s3.clear_faults();
            }
        }
        CHECK(cache.stats().retries > 0);
    }
}

TEST_CASE("an object replaced while a cut answer is resumed is not mixed with its successor", "[damage][resume]") {
    World world;
    Cache cache = world.cache();
    const std::string old_data(3 << 20, 'o'), new_data(3 << 20, 'n');
    cache.set("k", old_data);
    world.s3.add_fault(fake_s3::close_at(Point::answer_body, 1000000).on("GetObject"));
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        static std::atomic<int> gets{0};
        if (request.operation == "GetObject" && phase == fake_s3::Phase::after_effect && ++gets == 1)
            world.put("k", new_data);
    });
    const auto hit = cache.try_get("k");
    if (hit)
        CHECK((*hit)->view() == new_data);
    else
        CHECK(code_of(hit) == Errc::changed);
}

TEST_CASE("a length that lies is an error, not a value", "[damage]") {
    World world;
    Config config = world.config();
    config.attempts_max = 2;
    const std::string text = store::text_lines(10000);
    for (const bool own_checksum : {false, true}) {
        for (const std::int64_t delta : {std::int64_t{-1}, std::int64_t{1}, std::int64_t{1000}}) {
            CAPTURE(own_checksum, delta);
            if (delta < 0 && !own_checksum) continue;  // nothing can tell
            Cache cache = world.cache(config);         // bytes too many may still lie on the old one's connection
            if (own_checksum)
                cache.set("k", text);
            else
                world.put("k", text);
            world.s3.add_fault(fake_s3::wrong_length(delta).on("GetObject").for_times(fake_s3::forever));
            const auto hit = cache.try_get("k");
            if (hit)
                CHECK(same((*hit)->view(), text));
            else
                CHECK(
                    (code_of(hit) == Errc::network || code_of(hit) == Errc::damaged || code_of(hit) == Errc::protocol));
            world.s3.clear_faults();
        }
    }
}

TEST_CASE("stores that ignore ranges, or answer others, do not spoil a large read", "[damage][ranges]") {
    const std::string data = store::random_bytes(4 * part + 3, 6);
    for (const unsigned connections : {1U, 8U}) {
        CAPTURE(connections);
        World world;
        Config config = world.config();
        config.connections = connections;
        Cache cache = world.cache(config);
        cache.set("k", std::istringstream(data));
        const auto never_wrong = [&](const char* what) {
            CAPTURE(what);
            const auto hit = cache.try_get("k");
            if (hit)
                CHECK(same((*hit)->view(), data));
            else
                CHECK(
                    (code_of(hit) == Errc::protocol || code_of(hit) == Errc::damaged || code_of(hit) == Errc::network));
        };
        world.s3.add_fault(fake_s3::other_range(1).on("GetObject").nth_time(2).for_times(fake_s3::forever));
        never_wrong("another range, with its Content-Range");
        world.s3.clear_faults();
        world.s3.add_fault(fake_s3::wrong_content_range("bytes 5-9/10").on("GetObject").for_times(fake_s3::forever));
        never_wrong("a Content-Range of another object");
        world.s3.clear_faults();
        fake_s3::Quirks quirks;
        quirks.ignore_range = true;
        world.s3.set_quirks(quirks);
        CHECK(same(text_of(cache.get("k")), data));
        CHECK(same(store::drained(*cache.get_stream("k")), data));
    }
}

// ---- the clock ------------------------------------------------------------------------------------------------------

TEST_CASE("a machine days off still works: a refused signature corrects the clock, of TTLs too", "[clock]") {
    for (const std::int64_t off : {std::int64_t{3 * 86400}, std::int64_t{-3 * 86400}})
        DYNAMIC_SECTION("off by " << off << " s") {
            World world;
            world.s3.set_clock_offset(off);
            const auto cold = [&] { return world.cache(); };
            const auto stored_ttl = [&](const std::string& key) {
                return std::stod(world.meta(key, "expires_at")) - static_cast<double>(world.s3.now());
            };
            SECTION("set first") {
                cold().set("k", "v", {1h});
                CHECK(std::abs(stored_ttl("k") - 3600) < 120);
                cold().set("s", std::istringstream("v"), {1h, true});
                CHECK(std::abs(stored_ttl("s") - 3600) < 120);
                cold().set("l", std::istringstream(std::string(part + 1, 'x')), {1h});
                CHECK(std::abs(stored_ttl("l") - 3600) < 120);
                const Item item{"m", "v", {1h}};
                CHECK(ok(cold().set_many({item, {"m2", "v", {1h}}})[0]));
                CHECK(std::abs(stored_ttl("m") - 3600) < 120);
                CHECK(std::abs(stored_ttl("m2") - 3600) < 120);
            }
            SECTION("reading first") {
                world.put_expiring("fresh", "v", 300);
                world.put_expiring("old", "v", -300);
                CHECK(text_of(cold().get("fresh")) == "v");
                CHECK(cold().get_stream("fresh"));
                CHECK(cold().contains("fresh"));
                CHECK(cold().stat("fresh"));
                CHECK_FALSE(cold().contains("old"));
                int hits = 0;
                cold().get_many({"fresh", "fresh"},
                                [&](const std::string&, const Result<std::optional<Value>>& r) { hits += r && *r; });
                CHECK(hits == 2);
                CHECK_FALSE(cold().get("old"));
                CHECK_FALSE(world.has("old"));
                CHECK(world.has("fresh"));
            }
            SECTION("others first") {
                world.put_expiring("fresh", "v", 300);
                world.put_expiring("old", "v", -300);
                CHECK(cold().touch("fresh", 1h));
                CHECK(std::abs(stored_ttl("fresh") - 3600) < 120);
                std::size_t entries = 0;
                Cache listing = cold();
                for (const Entry& entry : listing.list()) entries += !entry.key.empty();
                CHECK(entries == 2);
                CHECK(cold().purge_expired() == 1);
                CHECK_FALSE(world.has("old"));
                cold().remove("fresh");
                CHECK_FALSE(world.has("fresh"));
                CHECK(cold().get_or_set("g", [] { return "v"; }, {1h}).str() == "v");
                CHECK(std::abs(stored_ttl("g") - 3600) < 120);
            }
            SECTION("learnt once") {
                Cache cache = cold();
                world.put_expiring("fresh", "v", 300);
                CHECK(cache.get("fresh"));
                CHECK(world.requests([&] { CHECK(cache.get("fresh")); }) == 1);
                CHECK(world.requests([&] { cache.set("k", "v", {1h}); }) == 1);
                const store::Raw plain(world.s3.endpoint(), "", "", "", "");
                CHECK(plain.send("GET", cache.presign("fresh", "GET", 10min)).status == 200);
            }
        }
}

namespace {

std::string date_off_by(std::int64_t seconds) {
    const std::time_t when = std::time(nullptr) + static_cast<std::time_t>(seconds);
    std::tm parts{};
    gmtime_r(&when, &parts);
    char text[64];
    std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
    return text;
}

fake_s3::Fault dated(std::int64_t seconds_off, fake_s3::HeaderList more = {}, std::optional<int> status = {},
                     std::optional<std::string> body = {}) {
    fake_s3::Edit edit;
    edit.status = status;
    edit.body = std::move(body);
    edit.set_headers = std::move(more);
    edit.set_headers.emplace_back("Date", date_off_by(seconds_off));
    return fake_s3::edit_answer(edit);
}

// What the cache takes for now, as its entries show.
void check_clock_is_local(World& world, Cache& cache) {
    world.s3.clear_faults();
    world.put_expiring("fresh", "v", 300);
    world.put_expiring("old", "v", -300);
    CHECK(text_of(cache.get("fresh")) == "v");
    CHECK(cache.contains("fresh"));
    CHECK_FALSE(cache.contains("old"));
    CHECK_FALSE(cache.get("old"));
    cache.set("new", "v", {1h});
    CHECK(std::abs(std::stod(world.meta("new", "expires_at")) - static_cast<double>(std::time(nullptr)) - 3600) < 60);
}

}  // namespace

TEST_CASE("a wrong date in an answer changes nothing", "[clock]") {
    World world;
    world.put_expiring("k", "v", 300);
    Cache cache = world.cache();
    SECTION("an answer out of an HTTP cache") {
        world.s3.add_fault(dated(-3600, {{"Age", "3600"}}).for_times(fake_s3::forever));
        CHECK(text_of(cache.get("k")) == "v");
        CHECK(cache.contains("k"));
    }
    SECTION("a proxy's page, two hours off") {
        for (const int off : {7200, -7200}) {
            world.s3.add_fault(dated(off, {{"Content-Type", "text/html"}}, 503, "<html>busy</html>"));
            CHECK(text_of(cache.get("k")) == "v");
        }
        world.s3.add_fault(dated(7200, {}, 403, "<html>no</html>"));
        CHECK(code_of(cache.try_get("k")) == Errc::denied);
        CHECK(world.s3.request_count() == 5);
    }
    SECTION("one node, two hours ahead") {
        for (int i = 0; i < 3; ++i) {
            world.s3.add_fault(dated(7200));
            CHECK(text_of(cache.get("k")) == "v");
            CHECK(cache.contains("k"));
            world.s3.add_fault(dated(7200).on("PutObject"));
            CHECK(cache.set("other", "v", {1h}));
        }
    }
    SECTION("a refusal of the store's, for another reason") {
        world.s3.add_fault(dated(7200, {}, 403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"));
        CHECK(code_of(cache.try_get("k")) == Errc::denied);
        CHECK(world.s3.request_count() == 1);
    }
    SECTION("a refusal of HEAD, which does not say why, is signed once more and no more") {
        world.s3.add_fault(dated(7200, {}, 403).on("HEAD").for_times(2));
        CHECK(code_of(cache.try_stat("k")) == Errc::denied);
        CHECK(world.s3.request_count() == 2);
    }
    check_clock_is_local(world, cache);
    CHECK(cache.explain().back().text == "the local one; the store has not refused it");
}

TEST_CASE("a signature refused for its time corrects the clock, for signing and for expiry", "[clock]") {
    for (const std::int64_t off : {std::int64_t{7200}, std::int64_t{-7200}}) {
        for (const bool head : {false, true}) {
            CAPTURE(off, head);
            World world;
            world.s3.set_clock_offset(off);
            world.put_expiring("fresh", "v", 300);
            world.put_expiring("old", "v", -300);
            Cache cache = world.cache();
            CHECK(world.requests([&] { CHECK((head ? cache.contains("fresh") : cache.get("fresh").has_value())); }) ==
                  2);
            CHECK(world.requests([&] { CHECK_FALSE(cache.contains("old")); }) == 1);
            CHECK(world.requests([&] { CHECK(cache.get("fresh")); }) == 1);
            CHECK(store::holds(cache.explain().back().text, off > 0 ? "s behind" : "s ahead"));
            // Nothing but the next refusal corrects it again.
            world.s3.add_fault(dated(0));
            CHECK(cache.contains("fresh"));
            CHECK(world.requests([&] { cache.set("k", "v", {1h}); }) == 1);
            CHECK(std::abs(std::stod(world.meta("k", "expires_at")) - static_cast<double>(world.s3.now()) - 3600) < 60);
            world.s3.set_clock_offset(0);
            CHECK(world.requests([&] { CHECK(cache.set("k", "v", {1h})); }) == 2);
            CHECK(std::abs(std::stod(world.meta("k", "expires_at")) - static_cast<double>(std::time(nullptr)) - 3600) <
                  60);
        }
    }
}

TEST_CASE("the clock of Config stands for the machine's, and moves the TTL with it", "[clock]") {
    World world;
    Config config = world.config();
    std::chrono::seconds shift{0};
    config.clock = [&] { return std::chrono::system_clock::now() + shift; };
    Cache cache = world.cache(config);
    cache.set("k", "v", {1h});
    CHECK(cache.get("k"));
    shift = 2h;  // the machine's clock jumps; the store's has not
    CHECK(cache.get("k"));
    world.s3.set_clock_offset(2 * 3600);  // now the store's has, too
    CHECK_FALSE(cache.get("k"));
}

TEST_CASE("without a Date in the answers the machine's own clock decides", "[clock]") {
    fake_s3::Quirks quirks;
    quirks.no_date = true;
    World world(store::with(quirks));
    Config config = world.config();
    std::chrono::seconds shift{0};
    config.clock = [&] { return std::chrono::system_clock::now() + shift; };
    Cache cache = world.cache(config);
    cache.set("k", "v", {10min});
    CHECK(cache.get("k"));
    shift = 11min;  // within what the store tolerates in a signature
    CHECK_FALSE(cache.get("k"));
}

// ---- the region -----------------------------------------------------------------------------------------------------

TEST_CASE("the store's region is learnt from its answer, once", "[region]") {
    for (const bool redirects : {false, true}) {
        for (const char* first : {"get", "set", "stat", "stream", "list", "large"}) {
            CAPTURE(redirects, first);
            fake_s3::Options options;
            options.region = "eu-west-7";
            options.quirks.enforce_region = !redirects;
            options.quirks.redirect_region = redirects;
            World world(options);
            world.put("k", "v");
            Cache cache = world.cache();
            const std::string what = first;
            const std::string large = store::random_bytes(part + 1, 2);
            if (what == "get") CHECK(text_of(cache.get("k")) == "v");
            if (what == "set") CHECK(cache.set("k", "w"));
            if (what == "stat") CHECK(cache.stat("k"));
            if (what == "stream") CHECK(store::drained(*cache.get_stream("k")) == "v");
            if (what == "list") CHECK(ok(cache.list().try_next())->key == "k");
            if (what == "large") CHECK(cache.set("k", std::istringstream(large)));
            CHECK(world.waits.empty());
            CHECK(world.requests([&] { CHECK(cache.get("k")); }) == 1);
            CHECK(world.requests([&] { CHECK(cache.set("k", "x")); }) == 1);
        }
    }
}

TEST_CASE("a redirect elsewhere is not followed", "[region][hostile]") {
    World world, elsewhere;
    for (const int status : {301, 302, 307, 308}) {
        CAPTURE(status);
        Cache cache = world.cache();
        world.s3.add_fault(fake_s3::respond(status, "", {{"Location", elsewhere.s3.endpoint() + "/bucket/k"}})
                               .for_times(fake_s3::forever));
        CHECK_FALSE(cache.try_get("k"));
        CHECK_FALSE(cache.try_set("k", "v"));
        CHECK(world.s3.request_count() <= 20);
        world.s3.clear_faults();
    }
    CHECK(elsewhere.s3.connection_count() == 0);
    Cache cache = world.cache();
    world.s3.add_fault(fake_s3::respond(301, "<Error><Code>PermanentRedirect</Code></Error>",
                                        {{"x-amz-bucket-region", "evil/../region"}})
                           .for_times(fake_s3::forever));
    CHECK_FALSE(cache.try_get("k"));
}

// ---- races on an expired entry --------------------------------------------------------------------------------------

TEST_CASE("a writer between the read and the removal of an expired entry keeps its value", "[race]") {
    for (const bool ignores : {false, true}) {
        for (const bool stream : {false, true}) {
            CAPTURE(ignores, stream);
            fake_s3::Quirks quirks;
            quirks.ignore_conditional_delete = ignores;
            World world(store::with(quirks));
            world.put_expiring("k", "old", -10);
            std::atomic<bool> written{false};
            world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
                if (request.operation == "GetObject" && phase == fake_s3::Phase::after_effect &&
                    !written.exchange(true))
                    world.put("k", "new");
            });
            Cache cache = world.cache();
            if (stream)
                CHECK_FALSE(cache.get_stream("k"));
            else
                CHECK_FALSE(cache.get("k"));
            CHECK(world.body("k") == "new");
            CHECK(text_of(cache.get("k")) == "new");
        }
    }
}

TEST_CASE("where the store honours If-Match on DELETE, no window is left at all", "[race]") {
    World world;
    world.put_expiring("k", "old", -10);
    std::atomic<bool> written{false};
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (request.operation == "DeleteObject" && phase == fake_s3::Phase::before_effect && !written.exchange(true))
            world.put("k", "new");
    });
    Cache cache = world.cache();
    CHECK_FALSE(cache.get("k"));
    CHECK(written);
    CHECK(world.body("k") == "new");
    CHECK(cache.stats().errors == 0);
}

TEST_CASE("an expired entry that cannot be removed is a miss all the same", "[race]") {
    World world;
    world.put_expiring("k", "old", -10);
    world.s3.add_fault(fake_s3::respond_error(403, "AccessDenied").on("DeleteObject").for_times(fake_s3::forever));
    Cache cache = world.cache();
    CHECK_FALSE(cache.get("k"));
    CHECK_FALSE(cache.get_stream("k"));
    CHECK(world.has("k"));
}

TEST_CASE("a writer that comes while entries are purged or touched keeps its value", "[race]") {
    World world;
    std::atomic<bool> written{false};
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (request.operation == "HeadObject" && request.key == "k" && phase == fake_s3::Phase::after_effect &&
            !written.exchange(true)) {
            world.put("k", "new", {{"kind", "text"}});
        }
    });
    SECTION("purge") {
        world.put_expiring("k", "old", -10);
        world.put_expiring("other", "old", -10);
        CHECK(world.cache().purge_expired() == 1);
        CHECK_FALSE(world.has("other"));
    }
    SECTION("touch") {
        world.put("k", "old");
        static_cast<void>(world.cache().try_touch("k", 1h));
    }
    CHECK(written);
    CHECK(world.body("k") == "new");
}
