// Section cache: what keeps entries right and a bucket small: revalidation, write conditions as the store has them, scattered times,
// and removal of what has expired without anybody's loss.
#include "world.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using store::code_of;
using store::expect;
using store::failure;
using store::if_absent;
using store::ok;
using store::text_of;
using store::World;

namespace {

fake_s3::Quirks ignoring() {
    fake_s3::Quirks quirks;
    quirks.ignore_conditional_put = quirks.ignore_conditional_delete = true;
    return quirks;
}

// What the store and this machine call now moves on.
void pass(World& world, std::chrono::seconds time) {
    world.s3.set_clock_offset(world.s3.now() - std::time(nullptr) + time.count());
}

Config with_the_stores_clock(World& world) {
    Config config = world.config();
    config.clock = [&world] {
        return std::chrono::system_clock::now() + std::chrono::seconds(world.s3.now() - std::time(nullptr));
    };
    return config;
}

double seconds_left(World& world, const std::string& key) {
    return std::stod(world.meta(key, "expires_at")) - static_cast<double>(world.s3.now());
}

// Does something the first time that such a request arrives, or has had its effect.
template <class F>
void once(World& world, const std::string& operation, Phase when, F work) {
    auto done = std::make_shared<std::atomic<bool>>(false);
    world.s3.on_request([=](const fake_s3::Recorded& request, Phase phase) {
        if (request.operation == operation && phase == when && !done->exchange(true)) work();
    });
}

}  // namespace

// ---- unless it has changed ------------------------------------------------------------------------------------------

TEST_CASE("what has not changed is not sent again", "[revalidate]") {
    World world;
    Cache cache = world.cache(with_the_stores_clock(world));
    cache.set("k", std::string(100000, 'x'), {60s});
    const std::string etag = cache.get("k")->info().etag;
    const auto before = cache.stats();
    Revalidated same;
    CHECK(world.requests([&] { same = cache.get_if_changed("k", etag); }) <= 2);
    CHECK(same.unchanged);
    CHECK_FALSE(same.value);
    CHECK(cache.stats().bytes_in == before.bytes_in);
    CHECK(cache.stats().unchanged == 1);
    CHECK(cache.stats().hits == before.hits);
    const Revalidated other = cache.get_if_changed("k", "\"of something else\"");
    CHECK_FALSE(other.unchanged);
    REQUIRE(other.value);
    CHECK(other.value->view().size() == 100000);
    cache.set("k", "new", {60s});
    const Revalidated changed = cache.get_if_changed("k", etag);
    CHECK_FALSE(changed.unchanged);
    CHECK(text_of(changed.value) == "new");
    pass(world, 61s);
    const Revalidated over = cache.get_if_changed("k", world.s3.object("bucket", "k")->etag);
    CHECK_FALSE(over.unchanged);
    CHECK_FALSE(over.value);
    for (const std::string& any : {etag, std::string("W/")}) {
        const Revalidated none = cache.get_if_changed("none", any);
        CHECK_FALSE(none.unchanged);
        CHECK_FALSE(none.value);
    }
    for (const char* wrong : {"", "a\nb"})
        CHECK(code_of(cache.try_get_if_changed("k", wrong)) == Errc::invalid_argument);
}

TEST_CASE("a store that sends the unchanged value again is not taken for one that changed it", "[revalidate]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "v");
    const std::string etag = cache.get("k")->info().etag;
    const auto object = world.s3.object("bucket", "k");
    world.s3.add_fault(fake_s3::respond(200, "v", {{"ETag", object->etag}}).on("GetObject"));
    const Revalidated same = cache.get_if_changed("k", etag);
    CHECK(same.unchanged);
    CHECK_FALSE(same.value);
}

// ---- write conditions -----------------------------------------------------------------------------------------------

TEST_CASE("what a store makes of conditions is found out once, and leaves nothing", "[conditions]") {
    for (const bool ignores : {false, true}) {
        CAPTURE(ignores);
        World world(store::with(ignores ? ignoring() : fake_s3::Quirks()));
        Cache cache = world.cache();
        const std::size_t first = world.requests([&] { CHECK(cache.set("a", "v", if_absent())); });
        const std::size_t second = world.requests([&] { CHECK(cache.set("b", "v", if_absent())); });
        CHECK(first > second);
        CHECK(second == 2);  // the look, the write
        CHECK_FALSE(cache.set("b", "another", if_absent()));
        CHECK(world.s3.keys("bucket") == std::vector<std::string>{"a", "b"});
        CHECK(cache.stats().refused == 1);
        CHECK((cache.stats().unconditional != 0) == ignores);
        const bool told = std::count(world.outcomes.begin(), world.outcomes.end(), "set unconditional") != 0;
        CHECK(told == ignores);
    }
}

TEST_CASE("plain writes and reads never ask what a store makes of conditions", "[conditions][requests]") {
    World world;
    Config config = world.config();
    config.conditions = Conditions::required;
    Cache cache = world.cache(config);
    CHECK(world.requests([&] { cache.set("k", "v"); }) == 1);
    CHECK(world.requests([&] { CHECK(cache.get("k")); }) == 1);
}

TEST_CASE("required conditions are an error where the store does not honour them, and nothing is written",
          "[conditions]") {
    fake_s3::Quirks refusing;
    refusing.refuse_conditional_put = true;
    for (const auto& quirks : {ignoring(), refusing}) {
        World world(store::with(quirks));
        Config config = world.config();
        config.conditions = Conditions::required;
        Cache cache = world.cache(config);
        world.put("there", "old");
        SetOptions match;
        match.if_match = world.s3.object("bucket", "there")->etag;
        const auto refused = cache.try_set("k", "v", if_absent());
        CHECK(code_of(refused) == Errc::unsupported);
        CHECK(store::holds(failure(refused).what(), "Config::conditions"));
        CHECK(code_of(cache.try_set("there", "new", match)) == Errc::unsupported);
        std::istringstream in("v");
        CHECK(code_of(cache.try_set("k", in, if_absent())) == Errc::unsupported);
        CHECK(world.s3.keys("bucket") == std::vector<std::string>{"there"});
        CHECK(world.body("there") == "old");
        CHECK(cache.set("k", "v"));  // without a condition there is none to honour
    }
    World world;
    Config config = world.config();
    config.conditions = Conditions::required;
    Cache cache = world.cache(config);
    CHECK(cache.set("k", "v", if_absent()));
    CHECK_FALSE(cache.set("k", "v", if_absent()));
    CHECK(cache.stats().unconditional == 0);
}

TEST_CASE("conditions that are off cost a look and send none", "[conditions]") {
    World world;
    Config config = world.config();
    config.conditions = Conditions::off;
    Cache cache = world.cache(config);
    cache.set("warm", "v");
    CHECK(world.requests([&] { CHECK(cache.set("k", "v", if_absent())); }) == 2);
    CHECK_FALSE(cache.set("k", "another", if_absent()));
    for (const auto& request : world.s3.requests()) {
        CHECK_FALSE(request.header("if-none-match"));
        CHECK_FALSE(request.header("if-match"));
    }
    CHECK(world.body("k") == "v");
}

TEST_CASE("a rival between look and write is seen by a store that honours conditions, by no other", "[conditions]") {
    for (const bool ignores : {false, true}) {
        for (const bool match : {false, true}) {
            CAPTURE(ignores, match);
            World world(store::with(ignores ? ignoring() : fake_s3::Quirks()));
            Cache cache = world.cache();
            cache.set("warm", "v", if_absent());
            SetOptions options = if_absent();
            if (match) {
                world.put("k", "old");
                options.if_absent = false;
                options.if_match = world.s3.object("bucket", "k")->etag;
            }
            once(world, "PutObject", Phase::before_effect, [&] { world.put("k", "the rival's"); });
            CHECK(cache.set("k", "mine", options) == ignores);
            CHECK(world.body("k") == (ignores ? "mine" : "the rival's"));
        }
    }
}

TEST_CASE("an expired entry is not in the way of if_absent, a rival that replaces it is", "[conditions][race]") {
    World world;
    Cache cache = world.cache();
    world.put_expiring("k", "expired", -10);
    CHECK(cache.set("k", "first", if_absent()));
    CHECK(world.body("k") == "first");
    world.put_expiring("k", "expired", -10);
    once(world, "PutObject", Phase::before_effect, [&] { world.put("k", "the rival's"); });
    CHECK_FALSE(cache.set("k", "second", if_absent()));
    CHECK(world.body("k") == "the rival's");
}

TEST_CASE("trouble while a store is tried out is an error if conditions are required, and else none", "[conditions]") {
    for (const bool required : {false, true}) {
        CAPTURE(required);
        World world;
        Config config = world.config();
        if (required) config.conditions = Conditions::required;
        Cache cache = world.cache(config);
        world.s3.add_fault(
            fake_s3::respond_error(403, "AccessDenied").for_key(".s3cache/probe/").for_times(fake_s3::forever));
        CHECK(cache.try_set("k", "v", if_absent()).has_value() == !required);
        CHECK(world.has("k") == !required);
        world.s3.clear_faults();
        CHECK(cache.set("another", "v", if_absent()));  // it was not the store's last word
        CHECK(world.s3.object_count() == (required ? 1 : 2));
    }
}

TEST_CASE("a store whose first answer to being tried out is lost is still found to honour conditions",
          "[conditions][lost]") {
    for (const bool required : {false, true}) {
        CAPTURE(required);
        World world;
        Config config = world.config();
        if (required) config.conditions = Conditions::required;
        Cache cache = world.cache(config);
        const std::size_t lost = world.s3.add_fault(fake_s3::lost_answer().on("PutObject").for_key(".s3cache/probe/"));
        CHECK(ok(cache.try_set("k", "v", if_absent())));
        CHECK_FALSE(ok(cache.try_set("k", "w", if_absent())));
        CHECK(world.s3.fault_hits(lost) == 1);
        CHECK(cache.stats().unconditional == 0);
        CHECK(world.s3.keys("bucket") == std::vector<std::string>{"k"});
    }
}

TEST_CASE("times to live are cut by a share, so that not all end at once", "[jitter]") {
    World world;
    Config config = world.config();
    config.ttl_jitter = 0.2;
    const std::time_t now = std::time(nullptr);
    config.clock = [now] { return std::chrono::system_clock::from_time_t(now); };  // it stands still
    Cache cache = world.cache(config);
    for (const double draw : {0.0, 0.5, 0.999}) {
        CAPTURE(draw);
        world.random = draw;
        cache.set("k", "v", {1000s});
        const double given = std::stod(world.meta("k", "expires_at")) - static_cast<double>(now);
        CHECK(std::abs(given - 1000 * (1 - 0.2 * draw)) <= 1);  // whole seconds are stored
    }
    cache.set("k", "v", {forever});
    CHECK(world.meta("k", "expires_at").empty());
    cache.set("k", "v");
    CHECK(world.meta("k", "expires_at").empty());
    for (const double wrong : {-0.1, 1.0, std::nan("")}) {
        config.ttl_jitter = wrong;
        CHECK(code_of(Cache::try_open("bucket", config)) == Errc::invalid_argument);
    }
}

TEST_CASE("a writer that comes while more time is given keeps its value and its own time", "[touch][race]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "old", {60s});
    once(world, "CopyObject", Phase::before_effect, [&] { world.put("k", "new", {{"kind", "text"}}); });
    CHECK(cache.touch("k", 1h));  // the new one, then
    CHECK(text_of(cache.get("k")) == "new");
    CHECK(seconds_left(world, "k") > 3590);
    // Replaced each time: given up in the end, and never by spoiling what is there.
    int round = 0;
    world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        if (request.operation == "CopyObject" && phase == Phase::before_effect)
            world.put("k", "new " + std::to_string(++round), {{"kind", "text"}});
    });
    CHECK(code_of(cache.try_touch("k", 1h)) == Errc::changed);
    CHECK(text_of(cache.get("k")) == "new " + std::to_string(round));
}

// ---- what has expired goes ------------------------------------------------------------------------------------------

TEST_CASE("the expired go, in pages of any size, and nothing else goes", "[purge]") {
    for (const std::size_t page : {std::size_t{1000}, std::size_t{7}, std::size_t{1}}) {
        CAPTURE(page);
        fake_s3::Options options;
        options.list_page_max = page;
        options.quirks.empty_list_pages = page == 7;
        World world(options);
        Cache cache = world.cache();
        const int count = page == 1000 ? 1500 : 30;
        for (int i = 0; i < count; ++i) world.put_expiring("old/" + std::to_string(i), "v", -10);
        for (int i = 0; i < 10; ++i) world.put_expiring("good/" + std::to_string(i), "v", 1000);
        world.put("foreign", "v");
        world.put("malformed", "v", {{"expires_at", "yesterday"}});
        world.put("never", "v", {{"expires_at", "inf"}});
        CHECK(cache.purge_expired("good/") == 0);
        world.s3.clear_requests();
        CHECK(cache.purge_expired() == static_cast<std::uint64_t>(count));
        CHECK(world.s3.request_count("DeleteObjects") == 0);  // that would be without a condition
        CHECK(world.s3.object_count() == 13);
        CHECK(cache.purge_expired() == 0);
    }
}

// The same bytes have the same ETag, so that If-Match alone does not tell a new entry from the expired one.
TEST_CASE("a writer that comes while the expired go keeps its value, be it other bytes or the same", "[purge][race]") {
    for (const bool ignores : {false, true}) {
        for (const char* body : {"new", "old"}) {
            for (const bool purges : {false, true}) {
                CAPTURE(ignores, body, purges);
                World world(store::with(ignores ? ignoring() : fake_s3::Quirks()));
                Cache cache = world.cache();
                cache.set("warm", "v", if_absent());  // what the store makes of conditions is known
                world.put_expiring("k", "old", -10);
                once(world, purges ? "ListObjectsV2" : "GetObject", Phase::after_effect,
                     [&] { world.put_expiring("k", body, 1000); });
                if (purges)
                    CHECK(cache.purge_expired() == 0);
                else
                    CHECK_FALSE(cache.get("k"));
                CHECK(text_of(cache.get("k")) == body);
            }
        }
    }
}

TEST_CASE("where the store honours If-Match a writer right before the removal keeps its value", "[purge][race]") {
    World world;
    Cache cache = world.cache();
    cache.set("warm", "v", if_absent());
    world.put_expiring("k", "old", -10);
    world.put_expiring("other", "old", -10);
    world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        if (request.operation == "DeleteObject" && request.key == "k" && phase == Phase::before_effect)
            world.put_expiring("k", "new", 1000);
    });
    CHECK(cache.purge_expired() == 1);
    CHECK(text_of(cache.get("k")) == "new");
    CHECK_FALSE(world.has("other"));
}

TEST_CASE("thousands of entries with odd names are cleared, and their neighbours stay", "[clear]") {
    fake_s3::Options options;
    options.list_page_max = 700;
    World world(options);
    Cache cache = world.cache();
    const std::vector<std::string> odd = {"a b",
                                          "a+b",
                                          "a%2Fb",
                                          "&<>\"'",
                                          "//",
                                          "/",
                                          "..",
                                          "\xC3\xA9",
                                          "\xF0\x9F\x98\x80",
                                          "tab\there",
                                          "line\nbreak",
                                          "\x01",
                                          "\x1F",
                                          "~",
                                          "?q=1#f",
                                          std::string(900, 'x'),
                                          " ",
                                          "=",
                                          "\\",
                                          ";,"};
    for (int i = 0; i < 2500; ++i)
        world.put("p/" + odd[static_cast<std::size_t>(i) % odd.size()] + std::to_string(i), "v");
    for (const std::string& name : odd) world.put("p/" + name, "v");
    for (const char* other : {"p", "p.", "p0", "q/a"}) world.put(other, "v");
    CHECK(cache.clear("p/") == 2500 + odd.size());
    CHECK(world.s3.keys("bucket") == std::vector<std::string>{"p", "p.", "p0", "q/a"});
}

TEST_CASE("a list that repeats its token ends a purge and a clear with an error, not a loop",
          "[purge][clear][hostile]") {
    World world;
    Cache cache = world.cache();
    for (int i = 0; i < 3; ++i) world.put_expiring("k" + std::to_string(i), "v", -10);
    world.s3.add_fault(
        fake_s3::respond(
            200,
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
            "</ListBucketResult>")
            .on("ListObjectsV2")
            .for_times(fake_s3::forever));
    CHECK(code_of(cache.try_purge_expired()) == Errc::protocol);
    CHECK(code_of(cache.try_clear("k")) == Errc::protocol);
    CHECK(world.s3.object_count() == 3);
}
