// The conformance suite: what Cache promises, on every store of tests/store.hpp. Here: opening, values, sizes, TTLs and
// what is stored for other programs; conformance_keys, _streams and _shared hold the rest.
#include "store.hpp"

#include <cmath>

using namespace s3cache;
using namespace std::chrono_literals;
using store::Answer;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::Space;
using store::text_of;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

double stored_expiry(const Answer& answer) {
    const auto text = answer.meta("expires_at");
    REQUIRE(text);
    return std::stod(*text);
}

}  // namespace

// ---- opening --------------------------------------------------------------------------------------------------------

STORE_TEST("opening a cache sends nothing and refuses what is malformed by name", "[open]") {
    SECTION("bucket") {
        for (const char* bad : {"", "a b", "a/b?c", "bucket\n",
                                "b\xC3\xBC"
                                "cket",
                                "s3://", "s3:///prefix", "http://host/bucket", "s3://a b/x"}) {
            CAPTURE(bad);
            CHECK(code_of(Cache::try_open(bad, space.config())) == Errc::invalid_argument);
        }
    }
    SECTION("options in the URL") {
        for (const char* bad :
             {"?nonsense=1", "?path_style=perhaps", "?region=us%20east", "?endpoint=ftp%3A%2F%2Fhost", "?region=%"}) {
            CAPTURE(bad);
            CHECK(code_of(Cache::try_open("s3://bucket/x" + std::string(bad), space.config())) ==
                  Errc::invalid_argument);
        }
    }
    SECTION("region") {
        for (const char* bad : {"us east", "us-east-1/x", "us\r\neast", "us.east.", "-"}) {
            CAPTURE(bad);
            Config config = space.config();
            config.region = bad;
            CHECK(code_of(Cache::try_open(space.where(), config)) == Errc::invalid_argument);
        }
    }
    SECTION("endpoint") {
        for (const char* bad : {"host", "ftp://host", "http://", "http://host:99999", "http://ho st", "http://host:12x",
                                "http://[::1", "http://host/a\r\nb", "http://host?x=1", "//host"}) {
            CAPTURE(bad);
            Config config = space.config();
            config.endpoint = bad;
            CHECK(code_of(Cache::try_open(space.where(), config)) == Errc::invalid_argument);
        }
    }
    SECTION("nothing is sent") {
        const std::size_t before = space.fake() ? space.fake()->connection_count() : 0;
        Cache cache = space.cache();
        Cache moved = std::move(cache);
        cache = std::move(moved);
        CHECK(cache.stats().requests == 0);
        if (space.fake()) CHECK(space.fake()->connection_count() == before);
    }
    SECTION("the constructor throws what try_open returns") { CHECK_THROWS_AS(Cache("", space.config()), Error); }
}

STORE_TEST("region, endpoint, path style and prefix may stand in the URL and go before Config", "[open]") {
    Config config = space.config();
    const std::string endpoint = config.endpoint;
    config.endpoint = "http://127.0.0.1:1";
    const std::string url = "s3://" + space.bucket() + "/" + space.prefix() +
                            "?region=us-east-1&path_style=true&endpoint=" + store::Raw::encoded(endpoint, false);
    Cache cache(url, config);
    cache.set("k", "v");
    CHECK(space.look("k").body == "v");
    CHECK(text_of(cache.get("k")) == "v");
}

STORE_TEST("every key lies under the prefix, with one slash between, whether or not the prefix ends in one", "[open]") {
    for (const char* end : {"inner", "inner/"}) {
        CAPTURE(end);
        Cache cache("s3://" + space.bucket() + "/" + space.prefix() + end, space.config());
        cache.set("k", end);
        CHECK(space.look("inner/k").body == end);
        CHECK(text_of(cache.get("k")) == end);
        cache.remove("k");
        CHECK_FALSE(space.has("inner/k"));
    }
}

STORE_TEST("credentials, region and endpoint are found in the environment", "[open]") {
    Config config = space.config();
    config.endpoint.clear();
    config.region.clear();
    config.credentials = {};
    const store::Store& where = space.store;
    config.seams.environment = [&where](const char* name) -> std::optional<std::string> {
        const std::string wanted = name;
        if (wanted == "AWS_ENDPOINT_URL_S3") return where.endpoint();
        if (wanted == "AWS_ACCESS_KEY_ID") return where.access();
        if (wanted == "AWS_SECRET_ACCESS_KEY") return where.secret();
        if (wanted == "AWS_REGION") return "us-east-1";
        if (wanted == "AWS_CA_BUNDLE" && !where.ca().empty()) return where.ca();
        if (wanted == "HOME") return "/nonexistent";
        return std::nullopt;
    };
    config.ca_bundle.clear();
    Cache cache = space.cache(config);
    cache.set("k", "v");
    CHECK(text_of(cache.get("k")) == "v");
}

STORE_TEST("a provider of credentials is asked, and what it fails with is the call's error", "[open]") {
    Config config = space.config();
    SECTION("asked") {
        int asked = 0;
        config.credentials = [&]() -> Result<Credentials> {
            ++asked;
            return Credentials{space.store.access(), space.store.secret(), {}, {}, "a function"};
        };
        Cache cache = space.cache(config);
        CHECK(asked == 0);
        cache.set("k", "v");
        cache.get("k");
        CHECK(asked == 1);
    }
    SECTION("failing") {
        config.credentials = []() -> Result<Credentials> { return Error(Errc::credentials, "the vault is locked"); };
        Cache cache = space.cache(config);
        const Error error = failure(cache.try_get("k"));
        CHECK(error.code() == Errc::credentials);
        CHECK(store::holds(error.what(), "the vault is locked"));
        CHECK(cache.stats().requests == 0);
    }
    SECTION("with keys that have run out") {
        config.credentials = Credentials{
            space.store.access(), space.store.secret(), {}, std::chrono::system_clock::now() - 1h, "the vault"};
        const Error error = failure(space.cache(config).try_set("k", "v"));
        CHECK(error.code() == Errc::credentials);
        CHECK(store::holds(error.what(), "the vault"));
    }
}

STORE_TEST("virtual-host style reaches the same entries", "[open]") {
    std::string endpoint = space.fake() && !space.store.tls() ? space.fake()->host_endpoint()
                                                              : store::environment("S3CACHE_TEST_HOST_ENDPOINT");
    if (endpoint.empty()) return;  // needs a store that knows its own name
    Config config = space.config();
    config.endpoint = endpoint;
    config.addressing = Addressing::virtual_host;
    // Names below localhost are resolved by newer libcurls only, and by some systems.
    const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> here(curl_slist_append(nullptr, "::127.0.0.1:"),
                                                                           &curl_slist_free_all);
    if (space.fake()) config.setup_curl = [&](void* easy) { curl_easy_setopt(easy, CURLOPT_CONNECT_TO, here.get()); };
    Cache cache = space.cache(config);
    cache.set("a b/c+d%", "v");
    CHECK(space.look("a b/c+d%").body == "v");
    CHECK(text_of(cache.get("a b/c+d%")) == "v");
    std::size_t entries = 0;
    for (const Entry& entry : cache.list()) entries += entry.key == "a b/c+d%";
    CHECK(entries == 1);
}

STORE_TEST("a certificate that nobody vouches for is refused", "[open]") {
    if (!space.store.tls() || space.store.ca().empty()) return;
    Config config = space.config();
    config.ca_bundle.clear();
    config.attempts_max = 1;
    Cache cache = space.cache(config);
    CHECK(code_of(cache.try_get("k")) == Errc::tls);
    CHECK(code_of(cache.try_set("k", "v")) == Errc::tls);
    CHECK_FALSE(space.has("k"));
}

STORE_TEST("a bucket that is not there is its own error", "[open][errors]") {
    if (space.lacks(store::Ability::names_errors)) return;
    Cache cache("s3cache-no-such-bucket-" + store::Store::tag(), space.config());
    CHECK(code_of(cache.try_get("k")) == Errc::no_such_bucket);
    CHECK(code_of(cache.try_get_stream("k")) == Errc::no_such_bucket);
    CHECK(code_of(cache.try_set("k", "v")) == Errc::no_such_bucket);
    std::istringstream in("v");
    CHECK(code_of(cache.try_set("k", in)) == Errc::no_such_bucket);
    auto listing = cache.try_list();
    if (listing)
        CHECK(code_of(listing->try_next()) == Errc::no_such_bucket);
    else
        CHECK(code_of(listing) == Errc::no_such_bucket);
}

STORE_TEST("wrong keys are denied, and the text says what was tried without the secret", "[open][errors]") {
    if (space.lacks(store::Ability::authentication)) return;
    space.put("there", "x");
    Config config = space.store.config();
    config.credentials = Credentials{space.store.access(), "not the secret 4711", {}, {}, "the test"};
    store::secrets().push_back("not the secret 4711");
    Cache cache = space.cache(config);
    const auto check = [&](const Error& error) {
        CHECK(error.code() == Errc::denied);
        CHECK(error.status() == 403);
        CHECK(error.s3_code() == "SignatureDoesNotMatch");
        CHECK_FALSE(error.retryable());
        CHECK(error.attempts() == 1);
        CHECK_FALSE(error.request_id().empty());
        for (const std::string& part_of_text :
             {std::string("there"), std::string("403"), error.s3_code(), error.request_id()}) {
            CAPTURE(error.what(), part_of_text);
            CHECK(store::holds(error.what(), part_of_text));
        }
    };
    const Error got = failure(cache.try_get("there"));
    check(got);
    CHECK(store::holds(got.what(), "get"));
    const Error set = failure(cache.try_set("there", "y"));
    check(set);
    CHECK(store::holds(set.what(), "set"));
    check(failure(cache.try_remove("there")));
    CHECK(space.look("there").body == "x");
    CHECK(code_of(cache.try_stat("there")) == Errc::denied);
    CHECK_THROWS_AS(cache.get("there"), Error);
}

// ---- values ---------------------------------------------------------------------------------------------------------

STORE_TEST("a value comes back as it was set, with its kind", "[values]") {
    Cache cache = space.cache();
    struct Case {
        const char* name;
        Payload payload;
        Kind kind;
        const char* content_type;
    };
    static const std::string with_nul("a\0b", 3), not_utf8("\xFF\xFE\x80", 3), null("null");
    static const std::vector<std::byte> std_bytes{std::byte{1}, std::byte{0}, std::byte{255}};
    static const std::vector<unsigned char> plain_bytes{'1', '2', '3'};
    const Case cases[] = {
        {"text", "hello", Kind::text, "text/plain; charset=utf-8"},
        {"text that is a number", "123", Kind::text, "text/plain; charset=utf-8"},
        {"text that is null", null, Kind::text, "text/plain; charset=utf-8"},
        {"text with NUL", with_nul, Kind::text, "text/plain; charset=utf-8"},
        {"text beyond ASCII", std::string_view("h\xC3\xA9 \xF0\x9F\x98\x80"), Kind::text, "text/plain; charset=utf-8"},
        {"text with a BOM", "\xEF\xBB\xBFx", Kind::text, "text/plain; charset=utf-8"},
        {"empty text", "", Kind::text, "text/plain; charset=utf-8"},
        {"a string that is not UTF-8", not_utf8, Kind::bytes, "application/octet-stream"},
        {"json", json(R"( {"a": [1, 2.50, "x"]} )"), Kind::json, "application/json"},
        {"json number", json("123"), Kind::json, "application/json"},
        {"json null", json("null"), Kind::json, "application/json"},
        {"json as Python has it", json("[NaN, -Infinity]"), Kind::json, "application/json"},
        {"bytes that are text", bytes("plain", 5), Kind::bytes, "application/octet-stream"},
        {"bytes that are json", plain_bytes, Kind::bytes, "application/octet-stream"},
        {"std::byte", std_bytes, Kind::bytes, "application/octet-stream"},
        {"no bytes", bytes(nullptr, 0), Kind::bytes, "application/octet-stream"},
        {"bytes that look like gzip", bytes("\x1F\x8B\x08\x00", 4), Kind::bytes, "application/octet-stream"},
    };
    for (const bool compress : {false, true}) {
        for (const Case& c : cases) {
            INFO(c.name << (compress ? ", gzip" : ""));
            SetOptions options;
            options.compress = compress;
            REQUIRE(cache.set(c.name, c.payload, options));
            const auto hit = cache.get(c.name);
            REQUIRE(hit);
            CHECK(hit->view() == c.payload.view());
            CHECK(hit->kind() == c.kind);
            CHECK(hit->info().kind == c.kind);
            CHECK(hit->info().content_type == c.content_type);
            CHECK(hit->info().compressed == compress);
            CHECK_FALSE(hit->info().expires_at);
            CHECK(hit->info().metadata.empty());
            const Answer raw = space.look(c.name);
            CHECK(raw.header("content-type") == std::string(c.content_type));
            CHECK_FALSE(raw.header("content-encoding"));
            CHECK(raw.body.size() == hit->info().size);
            CHECK(raw.header("etag") == hit->info().etag);
            CHECK(raw.meta("compressed").has_value() == compress);
            if (compress)
                CHECK(raw.body.substr(0, 2) == "\x1F\x8B");
            else
                CHECK(raw.body == c.payload.view());
        }
    }
}

STORE_TEST("a payload that cannot be stored is refused before anything is sent", "[values][refused]") {
    Cache cache = space.cache();
    for (const char* bad :
         {"", " ", "{", "[1,]", "01", "{'a':1}", "nul", "\"\xFF\"", "\xEF\xBB\xBF{}", "1 2", "\"a\nb\""}) {
        CAPTURE(bad);
        CHECK(code_of(cache.try_set("k", json(bad))) == Errc::invalid_argument);
    }
    CHECK(code_of(cache.try_set("k", Payload(static_cast<const char*>(nullptr)))) == Errc::invalid_argument);
    CHECK(code_of(cache.try_set("k", bytes(nullptr, 5))) == Errc::invalid_argument);
    CHECK(cache.stats().requests == 0);
    CHECK_FALSE(space.has("k"));
    const Error error = failure(cache.try_set("the-key", json("{")));
    CHECK(store::holds(error.what(), "the-key"));
}

STORE_TEST("a miss is empty everywhere", "[values]") {
    Cache cache = space.cache();
    CHECK_FALSE(cache.get("nothing"));
    CHECK_FALSE(cache.get_stream("nothing"));
    CHECK_FALSE(cache.stat("nothing"));
    CHECK_FALSE(cache.contains("nothing"));
    CHECK_FALSE(cache.touch("nothing", 1h));
    cache.remove("nothing");
    cache.remove("nothing");
}

STORE_TEST("set replaces value, kind, compression, TTL and metadata at one stroke", "[values]") {
    Cache cache = space.cache();
    SetOptions first{1h, true};
    first.metadata = {{"owner", "alice"}};
    cache.set("k", json("[1]"), first);
    cache.set("k", "second");
    const auto hit = cache.get("k");
    REQUIRE(hit);
    CHECK(hit->str() == "second");
    CHECK(hit->kind() == Kind::text);
    CHECK_FALSE(hit->info().compressed);
    CHECK_FALSE(hit->info().expires_at);
    CHECK(hit->info().metadata.empty());
}

STORE_TEST("stat tells what get does, without the body", "[values]") {
    Cache cache = space.cache();
    SetOptions options{90min, true};
    options.metadata = {{"owner", "alice"}};
    const std::string text = store::text_lines(10000);
    cache.set("k", text, options);
    const auto info = cache.stat("k");
    REQUIRE(info);
    const auto hit = cache.get("k");
    REQUIRE(hit);
    CHECK(info->size == hit->info().size);
    CHECK(info->size < text.size());
    CHECK(info->etag == hit->info().etag);
    CHECK(info->etag.size() > 2);
    CHECK(store::opaque(info->etag).front() == '"');
    CHECK(info->last_modified == hit->info().last_modified);
    CHECK(info->last_modified > TimePoint());
    CHECK(info->expires_at == hit->info().expires_at);
    CHECK(info->compressed);
    CHECK(info->kind == Kind::text);
    CHECK(info->metadata == hit->info().metadata);
    CHECK(info->metadata == Metadata{{"owner", "alice"}});
    CHECK(cache.contains("k"));
    CHECK(std::move(*hit).str() == text);
}

STORE_TEST("entries of other programs are read by the Python rule", "[values][foreign]") {
    Cache cache = space.cache();
    struct Case {
        const char* name;
        std::string body;
        Kind kind;
    };
    const Case cases[] = {
        {"json", R"({"a":1})", Kind::json},
        {"number", "123", Kind::json},
        {"nan", "NaN", Kind::json},
        {"blanks", " \n[ ]\t", Kind::json},
        {"text", "hello", Kind::text},
        {"empty", "", Kind::text},
        {"bom", "\xEF\xBB\xBF{}", Kind::text},
        {"broken", "{\"a\":}", Kind::text},
        {"bytes", "\xFF\x00\x01", Kind::bytes},
        {"latin1", "caf\xE9", Kind::bytes},
        {"surrogate", "\xED\xA0\x80", Kind::bytes},
    };
    for (const Case& c : cases) {
        CAPTURE(c.name);
        space.put(c.name, c.body, {{":content-type", "binary/octet-stream"}, {"owner", "someone"}});
        const auto hit = cache.get(c.name);
        REQUIRE(hit);
        CHECK(hit->str() == c.body);
        CHECK(hit->kind() == c.kind);
        CHECK(hit->info().metadata == Metadata{{"owner", "someone"}});
        const auto info = cache.stat(c.name);
        REQUIRE(info);
        CHECK_FALSE(info->kind);
    }
}

STORE_TEST("gzip of other programs is read as Python's gzip does, and a false flag does no harm",
           "[values][foreign][gzip]") {
    Cache cache = space.cache();
    const std::string one = store::text_lines(3000), two = store::random_bytes(2000, 7);
    const std::string both = one + two, zeros(17, '\0');
    const auto reads = [&](const char* key, const std::string& body, const std::string& wanted) {
        CAPTURE(key);
        space.put(key, body, {{"compressed", "true"}});
        const auto hit = cache.get(key);
        REQUIRE(hit);
        CHECK(same(hit->view(), wanted));
        CHECK(hit->info().compressed);
        auto reader = cache.get_stream(key);
        REQUIRE(reader);
        CHECK(same(store::drained(*reader), wanted));
    };
    reads("one member", store::gzip(one), one);
    reads("two members", store::gzip(one) + store::gzip(two), both);
    reads("padded", store::gzip(one) + zeros + store::gzip(two) + zeros, both);
    reads("an empty member", store::gzip("") + store::gzip(one), one);
    reads("flag without gzip", "plain " + one, "plain " + one);
    reads("flag on an empty body", "", "");
    reads("flag on one byte", "\x1F", "\x1F");
    space.put("no flag", store::gzip(one));
    CHECK(same(text_of(cache.get("no flag")), store::gzip(one)));
}

STORE_TEST("what is stored is what the Python class reads", "[values][stored]") {
    Config config = space.config();
    const std::string text = store::text_lines(5000);
    SECTION("the name that Python reads") {
        Cache cache = space.cache(config);
        cache.set("k", text, {1h, true});
        const Answer raw = space.look("k");
        CHECK(raw.meta("compressed") == "true");
        CHECK(raw.meta("kind") == "text");
        CHECK(raw.meta("crc32c") == store::crc32c(raw.body));
        CHECK(std::abs(stored_expiry(raw) - static_cast<double>(std::time(nullptr)) - 3600) < 120);
        if (space.fake()) {
            CHECK(raw.header("x-amz-meta-expires_at"));
            CHECK_FALSE(raw.header("x-amz-meta-expires-at"));
        }
    }
    SECTION("the other name") {
        if (!space.fake()) return;  // others fold the two into one
        config.metadata_names = MetadataNames::hyphen;
        space.cache(config).set("k", "v", {1h});
        CHECK_FALSE(space.look("k").header("x-amz-meta-expires_at"));
        CHECK(space.look("k").header("x-amz-meta-expires-at"));
        CHECK(space.cache(config).get("k")->info().expires_at);
    }
    SECTION("no checksum of our own where the policy says so") {
        config.checksums = Checksums::none;
        Cache cache = space.cache(config);
        cache.set("k", "v");
        CHECK_FALSE(space.look("k").meta("crc32c"));
        CHECK(text_of(cache.get("k")) == "v");
    }
}

STORE_TEST("sizes around a part come back equal, from memory and from streams", "[sizes]") {
    const std::size_t sizes[] = {0, 1, part - 1, part, part + 1, 3 * part + 7};
    for (const bool compress : {false, true}) {
        for (const std::size_t size : sizes) {
            INFO(size << " bytes" << (compress ? ", gzip" : ""));
            Cache cache = space.cache();
            const std::string data = store::random_bytes(size, size + 1);
            SetOptions options{1h, compress};
            options.kind = Kind::bytes;
            options.metadata = {{"owner", "alice"}};
            REQUIRE(cache.set("payload", bytes(data.data(), data.size()), options));
            std::istringstream in(data);
            REQUIRE(cache.set("stream", in, options));
            std::istringstream announced(data);
            REQUIRE(cache.set("sized", Source(announced).sized(size), options));
            for (const char* key : {"payload", "stream", "sized"}) {
                CAPTURE(key);
                const auto hit = cache.get(key);
                REQUIRE(hit);
                CHECK(same(hit->view(), data));
                CHECK(hit->kind() == Kind::bytes);
                CHECK(hit->info().compressed == compress);
                CHECK(hit->info().expires_at);
                CHECK(hit->info().metadata == Metadata{{"owner", "alice"}});
                auto reader = cache.get_stream(key);
                REQUIRE(reader);
                CHECK(same(store::drained(*reader), data));
                CHECK(reader->info().etag == hit->info().etag);
                if (!compress) CHECK(same(space.look(key).body, data));
            }
            CHECK(space.open_uploads() == 0);
        }
    }
}

STORE_TEST("one connection and eight give the same bytes around every part boundary", "[sizes][parallel]") {
    for (const std::size_t parts : {std::size_t{1}, std::size_t{2}, std::size_t{4}}) {
        for (const int around : {-1, 0, 1}) {
            const std::size_t size = around < 0 ? parts * part - 1 : parts * part + static_cast<std::size_t>(around);
            INFO(size << " bytes");
            const std::string data = store::random_bytes(size, size);
            std::string etags[2];
            for (const unsigned connections : {1U, 8U}) {
                CAPTURE(connections);
                Config config = space.config();
                config.connections = connections;
                Cache cache = space.cache(config);
                std::istringstream in(data);
                REQUIRE(cache.set("k", in));
                etags[connections / 8] = cache.stat("k")->etag;
                for (const unsigned readers : {1U, 8U}) {
                    config.connections = readers;
                    Cache reading = space.cache(config);
                    CHECK(same(text_of(reading.get("k")), data));
                    CHECK(same(store::drained(*reading.get_stream("k")), data));
                }
            }
            if (space.fake()) CHECK(etags[0] == etags[1]);
        }
    }
}

// ---- TTLs -----------------------------------------------------------------------------------------------------------

STORE_TEST("a TTL counts from now by the store's clock", "[ttl]") {
    Cache cache = space.cache();
    struct Case {
        Seconds ttl;
        double tolerance;
    };
    for (const Case& c : {Case{Seconds(0.5), 120}, Case{Seconds(90), 120}, Case{Seconds(1h), 120},
                          Case{Seconds(1234567.25), 120}, Case{Seconds(4e9), 120}, Case{Seconds(1e12), 1000}}) {
        CAPTURE(c.ttl.count());
        cache.set("k", "v", {c.ttl});
        const double wanted = static_cast<double>(std::time(nullptr)) + c.ttl.count();
        CHECK(std::abs(stored_expiry(space.look("k")) - wanted) <= c.tolerance);
    }
    // A time that no clock reaches is as good as never, however it is stored.
    for (const double huge : {1e12, 1e17, 1e19, 1e200, std::numeric_limits<double>::infinity()}) {
        CAPTURE(huge);
        cache.set("k", "v", {Seconds(huge)});
        const auto hit = cache.get("k");
        REQUIRE(hit);
        if (hit->info().expires_at) CHECK(*hit->info().expires_at > std::chrono::system_clock::now() + 24h * 365 * 50);
        CHECK(cache.touch("k", Seconds(huge)));
        CHECK(cache.contains("k"));
    }
}

STORE_TEST("a whole TTL reads back as a time", "[ttl]") {
    Cache cache = space.cache();
    cache.set("k", "v", {1h});
    const auto info = cache.stat("k");
    REQUIRE(info);
    REQUIRE(info->expires_at);
    CHECK(*info->expires_at > std::chrono::system_clock::now() + 58min);
    CHECK(*info->expires_at < std::chrono::system_clock::now() + 62min);
}

STORE_TEST("no TTL, the default TTL and forever", "[ttl]") {
    Config config = space.config();
    space.cache(config).set("none", "v");
    CHECK_FALSE(space.look("none").meta("expires_at"));
    config.default_ttl = 1h;
    Cache cache = space.cache(config);
    cache.set("default", "v");
    CHECK(std::abs(stored_expiry(space.look("default")) - static_cast<double>(std::time(nullptr)) - 3600) < 120);
    cache.set("own", "v", {2h});
    CHECK(std::abs(stored_expiry(space.look("own")) - static_cast<double>(std::time(nullptr)) - 7200) < 120);
    cache.set("forever", "v", {forever});
    CHECK_FALSE(space.look("forever").meta("expires_at"));
    CHECK(text_of(cache.get("forever")) == "v");
    std::istringstream in("v");
    cache.set("stream", in);
    CHECK(space.look("stream").meta("expires_at"));
}

STORE_TEST("a TTL that is no time to live is refused", "[ttl][refused]") {
    Cache cache = space.cache();
    for (const double bad : {0.0, -1.0, -1e300, std::nan(""), -std::numeric_limits<double>::infinity()}) {
        CAPTURE(bad);
        CHECK(code_of(cache.try_set("k", "v", {Seconds(bad)})) == Errc::invalid_argument);
        CHECK(code_of(cache.try_touch("k", Seconds(bad))) == Errc::invalid_argument);
        std::istringstream in("v");
        CHECK(code_of(cache.try_set("k", in, {Seconds(bad)})) == Errc::invalid_argument);
    }
    CHECK(cache.stats().requests == 0);
    Config config = space.config();
    config.default_ttl = Seconds(-1);
    auto opened = Cache::try_open(space.where(), config);
    if (opened)
        CHECK(code_of(opened->try_set("k", "v")) == Errc::invalid_argument);
    else
        CHECK(code_of(opened) == Errc::invalid_argument);
    CHECK_FALSE(space.has("k"));
}

STORE_TEST("an expired entry is absent, and goes or stays by policy", "[ttl]") {
    Config config = space.config();
    for (const Expired policy : {Expired::remove, Expired::keep}) {
        config.expired = policy;
        Cache cache = space.cache(config);
        const bool stays = policy == Expired::keep;
        CAPTURE(stays);
        space.put_expiring("k", "old", -100);
        CHECK_FALSE(cache.stat("k"));
        CHECK_FALSE(cache.contains("k"));
        CHECK_FALSE(cache.touch("k", 1h));
        CHECK(space.has("k"));
        CHECK_FALSE(cache.get("k"));
        CHECK(space.has("k") == stays);
        space.put_expiring("s", "old", -1);
        CHECK_FALSE(cache.get_stream("s"));
        CHECK(space.has("s") == stays);
        CHECK(cache.stats().expired >= 2);
        space.put_expiring("later", "new", 100);
        CHECK(text_of(cache.get("later")) == "new");
    }
}

STORE_TEST("expires_at is read as Python's float() reads it", "[ttl][foreign]") {
    Cache cache = space.cache();
    struct Case {
        const char* text;
        bool there;
    };
    for (const Case& c : {Case{"99999999999", true}, Case{"99999999999.25", true}, Case{"9.9e10", true},
                          Case{"inf", true}, Case{"Infinity", true}, Case{"1e400", true}, Case{"0", false},
                          Case{"-1", false}, Case{"-inf", false}, Case{"1e-5", false}}) {
        CAPTURE(c.text);
        space.put("k", "v", {{"expires_at", c.text}, {"expires-at", c.text}});
        CHECK(cache.contains("k") == c.there);
        CHECK(cache.get("k").has_value() == c.there);
    }
}

STORE_TEST("an expires_at that is no number is a miss, counted, told, and left alone", "[ttl][foreign]") {
    Config config = space.config();
    std::vector<std::string> outcomes;
    config.on_event = [&](const Event& event) {
        if (event.attempt == 0) outcomes.emplace_back(event.outcome);
    };
    Cache cache = space.cache(config);
    std::uint64_t count = 0;
    for (const char* bad : {"soon", "nan", "0x10", "1,5", "2025-01-01", "1__0"}) {
        CAPTURE(bad);
        space.put("k", "v", {{"expires_at", bad}, {"expires-at", bad}});
        outcomes.clear();
        CHECK_FALSE(cache.get("k"));
        CHECK(outcomes == std::vector<std::string>{"malformed"});
        CHECK(cache.stats().malformed == ++count);
        CHECK_FALSE(cache.get_stream("k"));
        CHECK(cache.stats().malformed == ++count);
        CHECK(space.look("k").body == "v");
        CHECK_FALSE(cache.contains("k"));
        count = cache.stats().malformed;
    }
    CHECK(cache.stats().hits == 0);
    cache.set("k", "new");
    CHECK(text_of(cache.get("k")) == "new");
}

// ---- metadata -------------------------------------------------------------------------------------------------------

STORE_TEST("metadata of the user comes back with every way to read", "[metadata]") {
    Config config = space.config();
    config.metadata = {{"app", "tests"}};
    Cache cache = space.cache(config);
    SetOptions options;
    options.metadata = {{"owner", "alice"},
                        {"with-dash", "a b c"},
                        {"Upper", "MiXed"},
                        {"punct", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~\"\\"}};
    options.content_type = "text/csv";
    const auto check = [&](const Info& info) {
        Metadata sorted = info.metadata;
        std::sort(sorted.begin(), sorted.end());
        CHECK(sorted == Metadata{{"app", "tests"},
                                 {"owner", "alice"},
                                 {"punct", options.metadata[3].second},
                                 {"upper", "MiXed"},
                                 {"with-dash", "a b c"}});
        CHECK(info.content_type == "text/csv");
    };
    cache.set("k", "1,2", options);
    check(cache.get("k")->info());
    check(*cache.stat("k"));
    check(cache.get_stream("k")->info());
    std::istringstream in(store::random_bytes(part + 1, 3));
    cache.set("large", in, options);
    check(*cache.stat("large"));
}

STORE_TEST("a metadata value is refused or comes back exactly, never changed in silence", "[metadata]") {
    Cache cache = space.cache();
    std::vector<std::string> values{"", " ", "  lead", "trail ", "two  blanks", "=?UTF-8?Q?x?=", "\"quoted\"", "a,b"};
    if (!space.lacks(store::Ability::long_metadata, "one of 1500 bytes")) values.emplace_back(1500, 'x');
    for (const std::string& value : values) {
        CAPTURE(value);
        SetOptions options;
        options.metadata = {{"owner", value}};
        const auto result = cache.try_set("k", "v", options);
        if (!result) {
            CHECK(code_of(result) == Errc::invalid_argument);
            continue;
        }
        const Metadata got = cache.get("k")->info().metadata;
        if (value.empty() && !space.fake()) continue;  // some stores drop empty ones
        CHECK(got == options.metadata);
    }
}

STORE_TEST("metadata that no store takes is refused before anything is sent", "[metadata][refused]") {
    Cache cache = space.cache();
    const auto refused = [&](const Metadata& metadata, const char* type = "") {
        SetOptions options;
        options.metadata = metadata;
        options.content_type = type;
        const Errc code = code_of(cache.try_set("k", "v", options));
        std::istringstream in("v");
        CHECK(code_of(cache.try_set("k", in, options)) == code);
        return code;
    };
    for (const char* value : {"a\r\nx-amz-acl: public-read", "a\nb", "a\tb", "\x7F", "\x01", "caf\xC3\xA9", "\xFF"}) {
        CAPTURE(value);
        CHECK(refused({{"owner", value}}) == Errc::invalid_argument);
    }
    CHECK(refused({{"owner", std::string("a\0b", 3)}}) == Errc::invalid_argument);
    for (const char* name : {"", "two words", "a:b", "a\nb", "caf\xC3\xA9", "a.b/c"}) {
        CAPTURE(name);
        CHECK(refused({{name, "v"}}) == Errc::invalid_argument);
    }
    for (const char* name : {"expires_at", "expires-at", "Expires_At", "kind", "compressed", "crc32c"}) {
        CAPTURE(name);
        CHECK(refused({{name, "v"}}) == Errc::invalid_argument);
    }
    CHECK(refused({{"twice", "a"}, {"Twice", "b"}}) == Errc::invalid_argument);
    for (const char* type : {"text/plain\r\nx-amz-acl: public-read", "\x01", "caf\xC3\xA9"}) {
        CAPTURE(type);
        CHECK(refused({}, type) == Errc::invalid_argument);
    }
    const Errc large = refused({{"a", std::string(1100, 'x')}, {"b", std::string(1100, 'y')}});
    CHECK((large == Errc::too_large || large == Errc::invalid_argument));
    CHECK(cache.stats().requests == 0);
    CHECK_FALSE(space.has("k"));
}

// ---- types of the user's own ----------------------------------------------------------------------------------------

namespace {
struct Point {
    double x = 0, y = 0;
};
struct Thrower {};
struct Careful {
    int value = 0;
};
}  // namespace

template <>
struct s3cache::codec<Point> {
    static constexpr Kind kind = Kind::json;
    static std::string encode(const Point& p) { return "[" + std::to_string(p.x) + "," + std::to_string(p.y) + "]"; }
    static Point decode(std::string_view data) {
        Point p;
        if (std::sscanf(std::string(data).c_str(), "[%lf,%lf]", &p.x, &p.y) != 2) throw std::domain_error("no point");
        return p;
    }
};

template <>
struct s3cache::codec<std::vector<double>> {
    static constexpr Kind kind = Kind::bytes;
    static std::string encode(const std::vector<double>& v) {
        return v.empty() ? std::string()
                         : std::string(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(double));
    }
    static std::vector<double> decode(std::string_view data) {
        std::vector<double> v(data.size() / sizeof(double));
        data.copy(reinterpret_cast<char*>(v.data()), v.size() * sizeof(double));
        return v;
    }
};

template <>
struct s3cache::codec<Thrower> {
    static constexpr Kind kind = Kind::text;
    static std::string encode(const Thrower&) { throw std::domain_error("cannot encode"); }
    static Thrower decode(std::string_view) { throw std::domain_error("cannot decode"); }
};

template <>
struct s3cache::codec<Careful> {
    static constexpr Kind kind = Kind::text;
    static Result<std::string> encode(const Careful& c) {
        if (c.value < 0) return Error(Errc::source, "negative");
        return std::to_string(c.value);
    }
    static Result<Careful> decode(std::string_view data) {
        if (data == "13") return Error(Errc::damaged, "unlucky");
        return Careful{std::atoi(std::string(data).c_str())};
    }
};

STORE_TEST("types of the user's own go through codec", "[codec]") {
    Cache cache = space.cache();
    cache.set("point", Point{1.5, -2}, {1h, true});
    const auto point = cache.get<Point>("point");
    REQUIRE(point);
    CHECK(point->x == 1.5);
    CHECK(point->y == -2);
    CHECK(cache.get("point")->kind() == Kind::json);
    CHECK(cache.stat("point")->compressed);
    CHECK_FALSE(cache.get<Point>("nothing"));

    const std::vector<double> numbers{1, 2.5, -1e300};
    cache.set("numbers", numbers);
    CHECK(*cache.get<std::vector<double>>("numbers") == numbers);
    CHECK(cache.get("numbers")->kind() == Kind::bytes);

    cache.set("careful", Careful{7});
    CHECK(cache.get<Careful>("careful")->value == 7);
    CHECK(code_of(cache.try_set("careful", Careful{-1})) == Errc::source);
    CHECK(cache.get<Careful>("careful")->value == 7);
    cache.set("careful", Careful{13});
    CHECK(code_of(cache.try_get<Careful>("careful")) == Errc::damaged);
}

STORE_TEST("what a codec throws is what the throwing forms throw, and nothing is stored", "[codec]") {
    Cache cache = space.cache();
    CHECK_THROWS_AS(cache.set("k", Thrower()), std::domain_error);
    const Error error = failure(cache.try_set("k", Thrower()));
    CHECK(error.code() == Errc::source);
    CHECK(store::holds(error.what(), "cannot encode"));
    CHECK_FALSE(space.has("k"));
    cache.set("k", "text");
    CHECK_THROWS_AS(cache.get<Thrower>("k"), std::domain_error);
    CHECK_THROWS_AS(cache.get<Point>("k"), std::domain_error);
    CHECK(code_of(cache.try_get<Point>("k")) == Errc::source);
    CHECK(text_of(cache.get("k")) == "text");
}
