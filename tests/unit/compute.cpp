// get_or_set: one producer among threads and among machines, values near their end, failures, and "there is nothing".
// Machines are caches of their own in this process; who does what when is settled by hooks, never by time that passes.
#include "world.hpp"

#include <sys/wait.h>

#include <future>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using store::code_of;
using store::expect;
using store::failure;
using store::ok;
using store::text_of;

namespace {

// A store whose day the test makes pass, and machines on it: their waits take no time but what the test does in them.
class Lab : public store::World {
public:
    explicit Lab(fake_s3::Options options = {}) : World(std::move(options)) {}

    // Called instead of waiting, by the machine that waits.
    using Wait = std::function<void(std::chrono::milliseconds)>;

    // `ahead`: of this machine's clock.
    Config machine(Wait wait = {}, std::chrono::seconds ahead = 0s) {
        Config config = World::config();
        config.clock = [this, ahead] { return began_ + ahead + std::chrono::seconds(day_); };
        config.seams.random = [this] { return draw(); };
        config.seams.sleep = [this, wait](std::chrono::milliseconds time) {
            slept_ += time.count();
            if (wait) wait(time);
        };
        config.on_event = [this](const Event& event) {
            const std::lock_guard<std::mutex> hold(lock_);
            if (event.attempt == 0) told_.push_back(std::string(event.operation) + " " + std::string(event.outcome));
        };
        return config;
    }
    Cache open(Wait wait = {}, std::chrono::seconds ahead = 0s) {
        return Cache("bucket", machine(std::move(wait), ahead));
    }

    // For the store and for all machines.
    void pass(std::chrono::seconds time) {
        day_ += time.count();
        s3.set_clock_offset(day_);
    }
    std::chrono::milliseconds slept() const { return std::chrono::milliseconds(slept_); }
    std::size_t told(const std::string& what) {
        const std::lock_guard<std::mutex> hold(lock_);
        return static_cast<std::size_t>(std::count(told_.begin(), told_.end(), what));
    }
    // From now on every draw is this; a draw below zero: they differ again.
    void draw_always(double value) { fixed_ = value; }

    std::string lease() const {
        for (const std::string& key : s3.keys("bucket")) {
            if (key.rfind(".s3cache/lease/", 0) == 0) return key;
        }
        return {};
    }
    // What a machine leaves that holds the lease and dies: taken from one that is computing.
    void crash_while_computing(const std::string& key, Seconds time) {
        s3.erase("bucket", key);
        Cache machine = open();
        std::string name;
        std::optional<fake_s3::StoredObject> held;
        ComputeOptions how;
        how.lease = time;
        static_cast<void>(machine.get_or_set(
            key,
            [&] {
                name = lease();
                held = s3.object("bucket", name);
                return "of the dead";
            },
            {}, how));
        REQUIRE(held);
        s3.erase("bucket", key);
        fake_s3::HeaderList headers;
        for (const auto& [meta, value] : held->metadata) headers.emplace_back("x-amz-meta-" + meta, value);
        s3.put_object("bucket", name, held->body, headers);
    }

private:
    double draw() {
        const std::lock_guard<std::mutex> hold(lock_);
        const double drawn = std::uniform_real_distribution<double>(0, 1)(engine_);
        return fixed_ < 0 ? drawn : fixed_.load();
    }

    const std::chrono::system_clock::time_point began_ = std::chrono::system_clock::now();
    std::atomic<std::int64_t> day_{0}, slept_{0};
    std::atomic<double> fixed_{-1};
    std::mutex lock_;
    std::mt19937_64 engine_{42};
    std::vector<std::string> told_;
};

// Opened once, by anybody; whoever waits for longer than any test takes is told of it instead of hanging.
class Gate {
public:
    void open() {
        if (!opened_.exchange(true)) promise_.set_value();
    }
    bool wait() const { return future_.wait_for(20s) == std::future_status::ready; }
    bool is_open() const { return opened_; }

private:
    std::promise<void> promise_;
    std::shared_future<void> future_{promise_.get_future().share()};
    std::atomic<bool> opened_{false};
};

ComputeOptions leased(Seconds time, Seconds wait = Seconds(0)) {
    ComputeOptions how;
    how.lease = time;
    how.lease_wait = wait;
    return how;
}

ComputeOptions early(double factor) {
    ComputeOptions how;
    how.early_refresh = factor;
    return how;
}

ComputeOptions forgiving(Seconds time) {
    ComputeOptions how;
    how.stale_if_error = time;
    return how;
}

std::string fails() { throw std::runtime_error("the producer's own words"); }

struct Fraction {
    int above, below;
};

}  // namespace

template <>
struct s3cache::codec<Fraction> {
    static constexpr Kind kind = Kind::text;
    static std::string encode(const Fraction& f) {
        if (f.below == 0) throw std::domain_error("no such fraction");
        return std::to_string(f.above) + "/" + std::to_string(f.below);
    }
    static Fraction decode(std::string_view text) {
        const std::string copy(text);
        return {std::stoi(copy), std::stoi(copy.substr(copy.find('/') + 1))};
    }
};

// ---- what a producer may be -----------------------------------------------------------------------------------------

TEST_CASE("a value is computed once, stored and then read", "[compute]") {
    Lab lab;
    Cache cache = lab.open();
    int runs = 0;
    const auto produce = [&] { return "value " + std::to_string(++runs); };
    SetOptions options;
    options.ttl = 1h;
    options.metadata = {{"made-by", "the test"}};
    CHECK(lab.requests([&] { CHECK(cache.get_or_set("k", produce, options).str() == "value 1"); }) == 2);
    CHECK(lab.requests([&] { CHECK(cache.get_or_set("k", produce, options).str() == "value 1"); }) == 1);
    CHECK(runs == 1);
    CHECK(cache.stats().computed == 1);
    CHECK(cache.stats().hits == 1);
    CHECK(lab.meta("k", "made-by") == "the test");
    lab.pass(2h);
    CHECK(cache.get_or_set("k", produce, options).str() == "value 2");
    CHECK(lab.body("k") == "value 2");
}

TEST_CASE("a producer returns whatever can be stored, and its kind is kept", "[compute][codec]") {
    Lab lab;
    Cache cache = lab.open();
    int count = 0;
    const auto check = [&](auto produce, const std::string& body, Kind kind) {
        const std::string key = "k" + std::to_string(++count);
        CAPTURE(key);
        const Value made = cache.get_or_set(key, produce);
        CHECK(made.str() == body);
        CHECK(made.kind() == kind);
        const auto hit = cache.get(key);
        REQUIRE(hit);
        CHECK(hit->str() == body);
        CHECK(hit->kind() == kind);
        CHECK(hit->info().kind == kind);
    };
    const std::string bytes("\x80\xFF\0", 3);
    std::istringstream in("a stream");
    check([] { return std::string("text"); }, "text", Kind::text);
    check([] { return "text"; }, "text", Kind::text);
    check([] { return std::string(); }, "", Kind::text);
    check([&] { return std::string(bytes); }, bytes, Kind::bytes);
    check([] { return json("[1]"); }, "[1]", Kind::json);
    check([&] { return s3cache::Value(std::string(bytes.data(), 3), Kind::bytes); }, bytes, Kind::bytes);
    check([] { return std::vector<unsigned char>{'a', 'b'}; }, "ab", Kind::bytes);
    check([] { return std::vector<std::byte>{std::byte{'c'}}; }, "c", Kind::bytes);
    check([] { return std::optional<std::string>("there"); }, "there", Kind::text);
    check([] { return Result<std::string>("result"); }, "result", Kind::text);
    check([] { return Result<std::optional<Fraction>>(Fraction{1, 2}); }, "1/2", Kind::text);
    check([] { return Fraction{3, 4}; }, "3/4", Kind::text);
    check([&] { return Source(in); }, "a stream", Kind::bytes);
    check([] { return file(std::string(S3CACHE_TEST_DIR) + "/main.cpp"); },
          store::contents(std::string(S3CACHE_TEST_DIR) + "/main.cpp"), Kind::bytes);
    CHECK(cache.get<Fraction>("k11")->below == 2);
}

TEST_CASE("a producer that fails stores nothing, and the next who asks has another try", "[compute]") {
    Lab lab;
    Cache cache = lab.open();
    CHECK_THROWS_WITH(cache.get_or_set("k", fails), "the producer's own words");
    CHECK_THROWS_AS(cache.get_or_set("k", []() -> std::string { throw 42; }), int);
    const auto told = cache.try_get_or_set("k", fails);
    CHECK(code_of(told) == Errc::source);
    CHECK(store::holds(told.error().what(), "the producer's own words"));
    CHECK(code_of(cache.try_get_or_set("k", [] { return Result<std::string>(Error(Errc::cancelled, "not today")); })) ==
          Errc::cancelled);
    CHECK(code_of(cache.try_get_or_set("k", [] { return static_cast<const char*>(nullptr); })) == Errc::source);
    CHECK(code_of(cache.try_get_or_set("k", [] { return json("{"); })) == Errc::invalid_argument);
    CHECK(code_of(cache.try_get_or_set("k", [] { return Source([](char*, std::size_t) { return source_failed; }); })) ==
          Errc::source);
    CHECK(code_of(cache.try_get_or_set("k", [] { return file("/no/such/file"); })) == Errc::source);
    CHECK_THROWS_AS(cache.get_or_set("k", [] { return Fraction{1, 0}; }), std::domain_error);
    CHECK(lab.s3.request_count("PutObject") == 0);
    CHECK(cache.get_or_set("k", [] { return "at last"; }).str() == "at last");
    CHECK(lab.body("k") == "at last");
}

TEST_CASE("a value that cannot be stored is returned all the same, and the failure told", "[compute]") {
    Lab lab;
    Cache cache = lab.open();
    lab.s3.add_fault(fake_s3::respond_error(403, "AccessDenied").on("PutObject").for_times(fake_s3::forever));
    CHECK(cache
              .get_or_set(
                  "k", [] { return "v"; }, {}, leased(30s))
              .str() == "v");
    CHECK(lab.slept() == 0ms);  // nor is a lease waited for that cannot be had
    CHECK(cache.stats().errors == 1);
    CHECK(lab.told("set error") == 1);
    CHECK(lab.s3.object_count() == 0);
}

TEST_CASE("what is asked for wrongly is refused before anything is sent or computed", "[compute]") {
    Lab lab;
    Cache cache = lab.open();
    bool ran = false;
    const auto produce = [&] { return ran = true, "v"; };
    const auto refused = [&](std::string_view key, const SetOptions& options, const ComputeOptions& how) {
        CHECK(code_of(cache.try_get_or_set(key, produce, options, how)) == Errc::invalid_argument);
    };
    refused("", {}, {});
    refused("k", {Seconds(0)}, {});
    refused("k", {Seconds(-1)}, {});
    refused("k", {}, leased(Seconds(-1)));
    refused("k", {}, leased(1s, Seconds(-1)));
    refused("k", {}, leased(Seconds(std::nan(""))));
    refused("k", {}, early(-1));
    refused("k", {}, early(std::nan("")));
    refused("k", {}, forgiving(Seconds(-1)));
    ComputeOptions negative;
    negative.negative_ttl = Seconds(0);
    refused("k", {}, negative);
    CHECK_FALSE(ran);
    CHECK(lab.s3.request_count() == 0);
}

TEST_CASE("where nothing may be written values are computed and not stored", "[compute][read-only]") {
    Lab lab;
    lab.put_expiring("old", "expired", -10);
    Config config = lab.machine();
    config.read_only = true;
    Cache cache("bucket", config);
    CHECK(cache
              .get_or_set(
                  "k", [] { return "v"; }, {}, leased(30s))
              .str() == "v");
    CHECK_FALSE(cache.get("old"));
    CHECK(lab.has("old"));
    CHECK(code_of(cache.try_set("k", "v")) == Errc::read_only);
    CHECK(code_of(cache.try_remove("k")) == Errc::read_only);
    CHECK(code_of(cache.try_touch("k", 1h)) == Errc::read_only);
    CHECK(code_of(cache.try_clear("")) == Errc::read_only);
    CHECK(code_of(cache.try_purge_expired()) == Errc::read_only);
    CHECK(lab.s3.request_count() == lab.s3.request_count("GetObject"));
}

TEST_CASE("an error of reading is returned and nothing computed, unless errors are misses", "[compute]") {
    Lab lab;
    lab.s3.add_fault(fake_s3::respond_error(403, "AccessDenied").on("GetObject").for_times(fake_s3::forever));
    int runs = 0;
    const auto produce = [&] { return ++runs, "v"; };
    CHECK(code_of(lab.open().try_get_or_set("k", produce)) == Errc::denied);
    CHECK(runs == 0);
    Config config = lab.machine();
    config.errors_are_misses = true;
    Cache cache("bucket", config);
    CHECK(cache.get_or_set("k", produce).str() == "v");
    CHECK(runs == 1);
    CHECK(cache.stats().tolerated == 1);
    CHECK(lab.told("get tolerated") == 1);
}

TEST_CASE("what is no entry of ours is read as what it is, what is broken is computed anew", "[compute][foreign]") {
    Lab lab;
    Cache cache = lab.open();
    const auto computed = [&](const std::string& key) { return cache.get_or_set(key, [] { return "new"; }).str(); };
    lab.put("foreign", "an object of another program");
    lab.put("unknown kind", "[1]", {{"kind", "sausage"}, {"cost", "much"}, {"negative", "perhaps"}});
    CHECK(computed("foreign") == "an object of another program");
    CHECK(computed("unknown kind") == "[1]");
    lab.put("no time", "v", {{"expires_at", "next week"}});
    lab.put("cut", store::gzip("some text").substr(0, 20), {{"compressed", "true"}});
    lab.put("flipped", "v", {{"crc32c", "AAAAAA=="}});
    for (const char* key : {"no time", "cut", "flipped"}) {
        CAPTURE(key);
        CHECK(computed(key) == "new");
        CHECK(lab.body(key) == "new");
        CHECK(text_of(cache.get(key)) == "new");
    }
    CHECK(cache.stats().damaged == 2);
    CHECK(cache.stats().malformed == 1);
}

// ---- there is nothing -----------------------------------------------------------------------------------------------

TEST_CASE("that there is nothing is a value of its own, and no miss", "[compute][negative]") {
    Lab lab;
    Cache cache = lab.open();
    int runs = 0;
    const auto look_up = [&]() -> std::optional<std::string> { return ++runs, std::nullopt; };
    ComputeOptions how;
    how.negative_ttl = 60s;
    CHECK(cache.get_or_set("user/1", look_up, {1h}, how).negative());
    const Value again = cache.get_or_set("user/1", look_up, {1h}, how);
    CHECK(again.negative());
    CHECK(again.kind() == Kind::json);  // what Python's json.loads reads as None
    CHECK(again.str() == "null");
    CHECK(runs == 1);
    CHECK(cache.contains("user/1"));
    CHECK_FALSE(cache.contains("user/2"));
    lab.pass(61s);  // its time is its own
    CHECK_FALSE(cache.get("user/1"));
    cache.set("json", json("null"));
    CHECK_FALSE(cache.get("json")->negative());
    cache.set("set", nothing(), {1h, true});
    CHECK(cache.get("set")->negative());
    CHECK(cache.stat("set")->negative);
    CHECK(cache.touch("set", 2h));
    CHECK(cache.get("set")->negative());
}

TEST_CASE("an optional of a type tells a miss from nothing; the plain type refuses nothing", "[negative][codec]") {
    Lab lab;
    Cache cache = lab.open();
    cache.set("nothing", nothing());
    cache.set("half", Fraction{1, 2});
    CHECK(lab.body("half") == "1/2");
    const auto miss = cache.get<std::optional<Fraction>>("miss");
    const auto none = cache.get<std::optional<Fraction>>("nothing");
    const auto half = cache.get<std::optional<Fraction>>("half");
    CHECK_FALSE(miss);
    REQUIRE(none);
    CHECK_FALSE(*none);
    REQUIRE(half);
    REQUIRE(*half);
    CHECK((*half)->below == 2);
    CHECK(code_of(cache.try_get<Fraction>("nothing")) == Errc::source);
    CHECK(cache.get<Fraction>("half")->below == 2);
}

// ---- among the threads of one process -------------------------------------------------------------------------------

TEST_CASE("of many threads one computes, and all have its value", "[compute][threads]") {
    Lab lab;
    Cache cache = lab.open();
    constexpr std::size_t threads = 16;
    std::atomic<std::size_t> asked{0}, runs{0};
    Gate all_here;
    store::Crew crew;
    crew.start(threads, [&](std::size_t) {
        if (++asked == threads) all_here.open();
        const auto value = cache.try_get_or_set("k", [&] {
            ++runs;
            expect(all_here.wait(), "not all came");
            return std::string(100000, 'x');
        });
        expect(value && value->str() == std::string(100000, 'x'), "not the value");
    });
    CHECK(crew.join().empty());
    CHECK(runs == 1);
    const Stats stats = cache.stats();
    CHECK(stats.computed == 1);
    CHECK(stats.waited + stats.hits == threads - 1);
    CHECK(lab.s3.request_count("PutObject") == 1);
}

TEST_CASE("a failure is shared by those who wait, and forgotten then", "[compute][threads]") {
    Lab lab;
    Cache cache = lab.open();
    constexpr std::size_t threads = 8;
    std::atomic<std::size_t> failures{0};
    store::Crew crew;
    crew.start(threads, [&](std::size_t) {
        try {
            static_cast<void>(cache.get_or_set("k", fails));
        } catch (const std::runtime_error& error) {
            failures += std::string(error.what()) == "the producer's own words";
        }
    });
    CHECK(crew.join().empty());
    CHECK(failures == threads);
    CHECK(cache.stats().computed + cache.stats().waited == threads);
    CHECK(cache.get_or_set("k", [] { return "v"; }).str() == "v");
}

TEST_CASE("a purge leaves the key that is being computed, and takes it when its time is up again", "[compute][purge]") {
    for (const bool by_another : {false, true}) {  // or by the producer
        CAPTURE(by_another);
        Lab lab;
        Cache cache = lab.open();
        lab.put_expiring("k", "old", -10);
        lab.put_expiring("other", "old", -10);
        const auto purge = [&] { return cache.try_purge_expired(); };
        const Value made =
            cache.get_or_set("k",
                             [&] {
                                 lab.put_expiring("k", "old", -10);  // whatever became of it before
                                 CHECK(ok(by_another ? std::async(std::launch::async, purge).get() : purge()) == 1);
                                 CHECK(lab.has("k"));
                                 return "new";
                             },
                             {1h});
        CHECK(made.view() == "new");
        CHECK_FALSE(lab.has("other"));
        CHECK(lab.body("k") == "new");
        lab.pass(2h);
        CHECK(ok(purge()) == 1);
        CHECK_FALSE(lab.has("k"));
    }
}

TEST_CASE("keys do not wait for each other", "[compute][threads]") {
    Lab lab;
    Cache cache = lab.open();
    Gate first, second;
    store::Crew crew;
    crew.start(2, [&](std::size_t i) {
        const auto value = cache.try_get_or_set("k" + std::to_string(i), [&] {
            (i == 0 ? first : second).open();
            return std::string((i == 0 ? second : first).wait() ? "met" : "alone");
        });
        expect(value && value->str() == "met", "one waited for the other's end");
    });
    CHECK(crew.join().empty());
}

TEST_CASE("a producer that asks for its own key is told so, at any depth", "[compute][recursion]") {
    Lab lab;
    Cache cache = lab.open();
    Errc inner = store::no_error;
    const auto value = cache.try_get_or_set("a", [&] {
        inner = cache.try_get_or_set("a", [] { return "inner"; }).error().code();
        return "outer";
    });
    CHECK(inner == Errc::source);
    CHECK(ok(value).str() == "outer");
    const auto deep = cache.try_get_or_set("b", [&] {
        return cache
            .try_get_or_set(
                "c",
                [&] {
                    return cache.try_get_or_set("b", [] { return "inner"; }).transform([](Value v) { return v.str(); });
                })
            .transform([](Value v) { return v.str(); });
    });
    CHECK(code_of(deep) == Errc::source);
    CHECK(store::holds(deep.error().what(), "the producer asks"));
    for (const char* key : {"b", "c"}) CHECK(cache.get_or_set(key, [] { return "free again"; }).str() == "free again");
}

// Each has what the other waits for. Waiting would never end, so the one who would close the circle is refused.
TEST_CASE("two threads whose producers ask for each other's key do not wait for ever",
          "[compute][recursion][threads]") {
    Lab lab;
    Cache cache = lab.open();
    Gate met[2], done;
    std::atomic<std::size_t> refused{0}, finished{0};
    std::thread guard([&] {
        if (!done.wait()) cache.cancel();  // so that a failure is one, and no hang
    });
    store::Crew crew;
    crew.start(2, [&](std::size_t i) {
        const std::string own = i == 0 ? "a" : "b", other = i == 0 ? "b" : "a";
        const auto value = cache.try_get_or_set(own, [&]() -> Result<std::string> {
            met[i].open();
            expect(met[1 - i].wait(), "the other did not come");
            const auto inner = cache.try_get_or_set(other, [] { return "inner"; });
            if (!inner && inner.error().code() == Errc::source) ++refused;
            return std::string("own");
        });
        expect(value && value->str() == "own", "not the value");
        if (++finished == 2) done.open();
    });
    CHECK(crew.join().empty());
    done.open();
    guard.join();
    CHECK(refused == 1);
}

TEST_CASE("cancel ends the wait for another thread's value, and not its computing", "[compute][cancel]") {
    Lab lab;
    Cache cache = lab.open();
    Gate computing, cancelled;
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        const auto value = cache.try_get_or_set("k", [&] {
            computing.open();
            expect(cancelled.wait(), "the other was not cancelled");
            return "v";
        });
        expect(value && value->str() == "v", "not the value");
    });
    REQUIRE(computing.wait());
    // Again and again, as there is no telling from outside when the other has begun to wait.
    std::atomic<bool> over{false};
    std::thread canceller([&] {
        while (!over) cache.cancel();
    });
    CHECK(code_of(cache.try_get_or_set("k", [] { return "another"; })) == Errc::cancelled);
    over = true;
    canceller.join();
    cancelled.open();
    CHECK(crew.join().empty());
}

// ---- among machines: the lease --------------------------------------------------------------------------------------

TEST_CASE("a lease costs seven requests more, and leaves nothing behind", "[lease][requests]") {
    Lab lab;
    Cache cache = lab.open();
    static_cast<void>(cache.get_or_set(
        "first", [] { return "v"; }, {}, leased(30s)));  // also finds out what the store honours
    const std::size_t sent = lab.requests([&] {
        static_cast<void>(cache.get_or_set(
            "k",
            [&] {
                CHECK_FALSE(lab.lease().empty());
                return "v";
            },
            {1h}, leased(30s)));
    });
    CHECK(sent <= 2 + 7);
    CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"first", "k"});
    CHECK(lab.requests([&] { static_cast<void>(cache.get_or_set("k", fails, {}, leased(30s))); }) == 1);
    CHECK(lab.slept() == 0ms);
}

TEST_CASE("who finds the lease taken waits for the owner's value", "[lease]") {
    fake_s3::Quirks ignoring, refusing;
    ignoring.ignore_conditional_put = ignoring.ignore_conditional_delete = true;
    refusing.refuse_conditional_put = true;
    for (const auto& quirks : {fake_s3::Quirks(), ignoring, refusing}) {
        CAPTURE(quirks.ignore_conditional_put, quirks.refuse_conditional_put);
        Lab lab(store::with(quirks));
        Gate computing, waited, stored;
        Cache owner = lab.open();
        Cache other = lab.open([&](std::chrono::milliseconds) {
            waited.open();
            expect(stored.wait(), "the owner does not end");
        });
        store::Crew crew;
        crew.start(1, [&](std::size_t) {
            const auto value = owner.try_get_or_set(
                "k",
                [&] {
                    computing.open();
                    expect(waited.wait(), "the other does not wait");
                    return "the owner's";
                },
                {}, leased(30s));
            stored.open();
            expect(value && value->str() == "the owner's", "not the value");
        });
        REQUIRE(computing.wait());
        CHECK(other.get_or_set("k", fails, {}, leased(30s)).str() == "the owner's");
        CHECK(crew.join().empty());
        CHECK(other.stats().waited == 1);
        CHECK(other.stats().computed == 0);
        CHECK(lab.told("get_or_set waited") == 1);
        CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
    }
}

TEST_CASE("a lease whose owner died is taken over when it lapses, and not before", "[lease]") {
    Lab lab;
    lab.crash_while_computing("k", 30s);
    // The clock runs on in here: the store's own seconds are looked at, before and after each look at the lease.
    const std::int64_t last = lab.s3.object("bucket", lab.lease())->last_modified + 30;  // at which it holds
    std::int64_t looked_from = lab.s3.now(), computed_at = 0;
    Cache cache = lab.open([&](std::chrono::milliseconds) {
        CHECK(looked_from <= last);  // or it was found to hold when it had lapsed
        lab.pass(1s);
        looked_from = lab.s3.now();
    });
    CHECK(cache
              .get_or_set(
                  "k", [&] { return computed_at = lab.s3.now(), "v"; }, {}, leased(30s, 1h))
              .str() == "v");
    CHECK(computed_at > last);
    CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
}

TEST_CASE("the wait for a lease is bounded; then the value is computed without it", "[lease]") {
    Lab lab;
    lab.crash_while_computing("k", 1h);
    const std::string lease = lab.lease(), owner = lab.body(lease);
    Cache cache = lab.open();
    CHECK(cache
              .get_or_set(
                  "k", [] { return "mine"; }, {}, leased(1h, 5s))
              .str() == "mine");
    CHECK(lab.slept() >= 5s);
    CHECK(lab.slept() <= 6s);  // the longest pause is a second
    CHECK(lab.body("k") == "mine");
    CHECK(lab.body(lease) == owner);  // which is another's still
}

TEST_CASE("a lease that never lapses and a wait without end are what they say", "[lease]") {
    Lab lab;
    Cache first = lab.open();
    const Value value = first.get_or_set(
        "k",
        [&] {
            CHECK(lab.meta(lab.lease(), "expires_at").empty());
            return "v";
        },
        {forever}, leased(forever, forever));
    CHECK(value.str() == "v");
    CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
    CHECK(lab.meta("k", "expires_at").empty());
}

TEST_CASE("cancel ends the wait for another machine", "[lease][cancel]") {
    Lab lab;
    lab.crash_while_computing("k", 1h);
    Cache* waiting = nullptr;
    Cache cache = lab.open([&](std::chrono::milliseconds) { waiting->cancel(); });
    waiting = &cache;
    CHECK(code_of(cache.try_get_or_set("k", fails, {}, leased(1h))) == Errc::cancelled);
    lab.s3.erase("bucket", lab.lease());
    CHECK(cache
              .get_or_set(
                  "k", [] { return "v"; }, {}, leased(1h))
              .str() == "v");  // calls that begin later are not concerned
}

TEST_CASE("a store that fails while one waits for another's value does not keep it from computing", "[lease]") {
    Lab lab;
    lab.crash_while_computing("k", 1h);
    Cache cache = lab.open([&](std::chrono::milliseconds) {
        lab.s3.add_fault(fake_s3::respond_error(403, "AccessDenied").for_times(fake_s3::forever));
    });
    CHECK(cache
              .get_or_set(
                  "k", [] { return "v"; }, {}, leased(1h))
              .str() == "v");
    CHECK(lab.slept() < 1s);
}

TEST_CASE("a producer that fails gives the lease back at once", "[lease]") {
    Lab lab;
    Cache first = lab.open(), second = lab.open();
    CHECK_THROWS(first.get_or_set("k", fails, {}, leased(1h)));
    CHECK(lab.s3.object_count() == 0);
    CHECK(second
              .get_or_set(
                  "k", [] { return "v"; }, {}, leased(1h))
              .str() == "v");
    CHECK(lab.slept() == 0ms);
}

TEST_CASE("the lease of a producer that takes too long is another's, and is left to it", "[lease]") {
    Lab lab;
    Cache slow = lab.open(), quick = lab.open();
    Gate late, taken, ended;
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        const auto value = slow.try_get_or_set(
            "k",
            [&] {
                lab.pass(11s);
                late.open();
                expect(taken.wait(), "nobody took the lease over");
                return "slow";
            },
            {}, leased(10s));
        ended.open();
        expect(value && value->str() == "slow", "not the value");
    });
    REQUIRE(late.wait());
    CHECK(quick
              .get_or_set(
                  "k",
                  [&] {
                      const std::string owner = lab.body(lab.lease());
                      taken.open();
                      expect(ended.wait(), "the slow one does not end");
                      CHECK(lab.body(lab.lease()) == owner);
                      return "quick";
                  },
                  {}, leased(10s))
              .str() == "quick");
    CHECK(crew.join().empty());
    CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
    CHECK(lab.body("k") == "quick");  // whoever writes last
}

// Both have looked and found no lease, then both write theirs, the second before the first.
TEST_CASE("of two who ask for the lease at once one has it", "[lease][race]") {
    for (const bool ignores : {false, true}) {
        CAPTURE(ignores);
        fake_s3::Quirks quirks;
        quirks.ignore_conditional_put = ignores;
        Lab lab(store::with(quirks));
        Gate both_looked, second_wrote, first_wrote, stored;
        std::atomic<int> writes{0}, settling{0}, runs{0};
        lab.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
            if (request.operation != "PutObject" || !store::holds(request.key, "/lease/")) return;
            if (phase == Phase::after_effect) {
                (second_wrote.is_open() ? first_wrote : second_wrote).open();
            } else if (++writes == 1) {
                both_looked.open();
                static_cast<void>(second_wrote.wait());
            }
        });
        // Where the store honours conditions the first one waits, as its write is refused. Elsewhere each pauses for
        // the other's write to arrive, and then the second finds that it was overwritten.
        Cache first =
            lab.open([&](std::chrono::milliseconds) { expect(ignores || stored.wait(), "the second does not end"); });
        Cache second = lab.open([&](std::chrono::milliseconds) {
            expect(first_wrote.wait(), "the first does not write");
            expect(++settling == 1 || stored.wait(), "the first does not end");
        });
        const auto ask = [&](Cache& cache, const char* value) {
            const auto got = cache.try_get_or_set(
                "k", [&] { return ++runs, value; }, {}, leased(1h));
            stored.open();
            expect(got && got->str() == (ignores ? "the first's" : "the second's"), "not the value");
        };
        store::Crew crew;
        crew.start(1, [&](std::size_t) { ask(first, "the first's"); });
        REQUIRE(both_looked.wait());
        ask(second, "the second's");
        CHECK(crew.join().empty());
        CHECK(runs == 1);
        CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
        CHECK((second.stats().unconditional != 0) == ignores);
    }
}

// Both have looked before either writes, and both have written before either looks who did last.
TEST_CASE("of two who take over a lapsed lease whose ETag is weak one has it", "[lease][race]") {
    fake_s3::Quirks quirks;
    quirks.weak_etags = true;
    Lab lab(store::with(quirks));
    lab.crash_while_computing("k", 5s);
    lab.pass(20s);
    const std::string lease = lab.lease();
    Gate both_looked, both_wrote, met;
    std::atomic<int> looks{0}, writes{0}, computing{0}, most{0};
    lab.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
        if (request.key != lease || phase != Phase::after_effect) return;
        if (request.operation == "PutObject" && ++writes == 2) both_wrote.open();
        if (request.operation != "HeadObject") return;
        const int look = ++looks;
        if (look == 2) both_looked.open();
        if (look == 4) met.open();  // the other has seen that it is not its own, if it looks at all
        if (look <= 2) static_cast<void>(both_looked.wait());
    });
    const auto ask = [&] {
        Cache machine = lab.open([&](std::chrono::milliseconds) {
            expect(both_wrote.wait(), "the other does not write");
            std::this_thread::sleep_for(1ms);
        });
        const auto got = machine.try_get_or_set(
            "k",
            [&] {
                const int now = ++computing;
                if (now > most) most = now;
                if (now == 2) met.open();
                expect(met.wait(), "the other is gone");
                --computing;
                return "v";
            },
            {1h}, leased(1h));
        expect(got && got->view() == "v", "not the value");
    };
    store::Crew crew;
    crew.start(2, [&](std::size_t) { ask(); });
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
    lab.s3.on_request({});
    CHECK(both_looked.is_open());
    CHECK(both_wrote.is_open());
    CHECK(most == 1);
}

TEST_CASE("where no store vouches for a lease, required is an error and off a best effort", "[lease][conditions]") {
    fake_s3::Quirks quirks;
    quirks.ignore_conditional_put = true;
    Lab lab(store::with(quirks));
    Config config = lab.machine();
    config.conditions = Conditions::required;
    Cache strict("bucket", config);
    bool ran = false;
    CHECK(code_of(strict.try_get_or_set(
              "k", [&] { return ran = true, "v"; }, {}, leased(30s))) == Errc::unsupported);
    CHECK_FALSE(ran);
    config.conditions = Conditions::off;
    Cache lax("bucket", config);
    static_cast<void>(lax.get_or_set(
        "k",
        [&] {
            CHECK_FALSE(lab.lease().empty());
            return "v";
        },
        {}, leased(1h)));
    CHECK(lab.s3.keys("bucket") == std::vector<std::string>{"k"});
    lax.remove("k");
    CHECK(lab.requests([&] { CHECK_FALSE(lax.try_get_or_set("k", fails, {}, leased(1h))); }) < 10);
    CHECK(lab.s3.object_count() == 0);
}

TEST_CASE("clocks a minute apart neither end a lease early nor keep it long", "[lease][clock]") {
    Lab lab;
    Gate computing, waited, stored;
    std::int64_t pauses = 0;
    Cache behind = lab.open({}, -30s);
    Cache ahead = lab.open(
        [&](std::chrono::milliseconds) {
            if (++pauses < 4) return lab.pass(3s);  // well within its 20 s, as the store's clock runs on
            waited.open();
            expect(stored.wait(), "the owner does not end");
        },
        30s);
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        const auto value = behind.try_get_or_set(
            "k",
            [&] {
                computing.open();
                expect(waited.wait(), "the other does not wait");
                return "the owner's";
            },
            {1h}, leased(20s));
        stored.open();
        expect(value.has_value(), "no value");
    });
    REQUIRE(computing.wait());
    CHECK(ahead
              .get_or_set(
                  "k", [] { return "the other's"; }, {1h}, leased(20s))
              .str() == "the owner's");
    CHECK(crew.join().empty());
    lab.crash_while_computing("k", 20s);
    lab.pass(23s);  // the store tells times in whole seconds
    CHECK(ahead
              .get_or_set(
                  "k", [] { return "the other's"; }, {1h}, leased(20s))
              .str() == "the other's");
    CHECK(pauses == 4);
}

TEST_CASE("a lease lapses by the store's own times, whatever a machine's clock says of it", "[lease][clock]") {
    for (const std::chrono::seconds ahead : {-600s, 600s}) {
        CAPTURE(ahead.count());
        Lab lab;
        lab.crash_while_computing("k", 300s);
        std::int64_t pauses = 0;
        Cache other = lab.open(
            [&](std::chrono::milliseconds) {
                ++pauses;
                lab.pass(40s);
            },
            ahead);
        CHECK(other
                  .get_or_set(
                      "k", [] { return "v"; }, {}, leased(300s))
                  .str() == "v");
        CHECK(pauses == 8);  // 280 s are too few, 320 s enough
    }
}

TEST_CASE("leases are no entries: lists leave them out, what removes everything does not", "[lease][list]") {
    Lab lab;
    lab.crash_while_computing("k", 30s);
    lab.put(".s3cache/lease/of a user", "v");
    Cache cache = lab.open();
    std::vector<std::string> keys;
    for (const Entry& entry : cache.list()) keys.push_back(entry.key);
    CHECK(keys == std::vector<std::string>{".s3cache/lease/of a user"});
    CHECK(cache.purge_expired() == 0);
    lab.pass(31s);
    CHECK(cache.purge_expired() == 1);
    lab.crash_while_computing("k", 30s);
    CHECK(cache.clear("") == 2);
    CHECK(lab.s3.object_count() == 0);
}

// A server that forks workers after it has used the cache: none may pass for another.
TEST_CASE("processes forked from one that drew already draw differently", "[lease][fork]") {
    Lab lab;
    Config config = lab.machine();
    config.seams.random = nullptr;
    Cache cache("bucket", config);
    SetOptions options;
    options.if_absent = true;
    cache.set("parent", "v", options);
    for (const char* key : {"one", "two"}) {
        // The child keeps locks that the server's threads hold now: those of connections that have ended end first.
        while (lab.s3.open_connection_count() > 1) std::this_thread::sleep_for(200us);
        const pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            alarm(10);
            _exit(cache.try_set(key, "v", options).value_or(false) ? 0 : 1);
        }
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    CHECK_FALSE(lab.meta("one", "write-id").empty());
    CHECK(lab.meta("one", "write-id") != lab.meta("two", "write-id"));
}

// ---- near the end of a value's time ---------------------------------------------------------------------------------

TEST_CASE("a value is computed ahead of its end by the rule of XFetch", "[early]") {
    Lab lab;
    Cache cache = lab.open();
    int runs = 0;
    const auto produce = [&] { return lab.pass(10s), "value " + std::to_string(++runs); };
    const auto ask = [&](double factor) { return cache.get_or_set("k", produce, {100s}, early(factor)).str(); };
    CHECK(ask(1) == "value 1");
    CHECK(std::stod(lab.meta("k", "cost")) == 10);
    // 50 s are left, and computing takes 10: ahead by 10 * -ln(1 - draw) s.
    lab.pass(50s);
    lab.draw_always(0.99);  // 46 s
    CHECK(ask(1) == "value 1");
    lab.draw_always(0.999);  // 69 s
    CHECK(ask(0.5) == "value 1");
    CHECK(ask(0) == "value 1");
    CHECK(ask(1) == "value 2");
    CHECK(lab.told("get_or_set early") == 1);
    CHECK(lab.body("k") == "value 2");
    CHECK(ask(1) == "value 2");  // its time has begun anew
    lab.draw_always(1);          // what no generator returns must do no harm
    CHECK(ask(1) == "value 3");
}

TEST_CASE("what never expires, or tells no cost, is not computed ahead of its end", "[early]") {
    Lab lab;
    Cache cache = lab.open();
    lab.draw_always(0.999999);
    lab.put("forever", "v", {{"cost", "1000"}});
    lab.put_expiring("no cost", "v", 100);
    lab.put("bad cost", "v", {{"cost", "-5"}, {"expires_at", std::to_string(lab.s3.now() + 10)}});
    lab.put("nan cost", "v", {{"cost", "nan"}, {"expires_at", std::to_string(lab.s3.now() + 10)}});
    for (const char* key : {"forever", "no cost", "bad cost", "nan cost"}) {
        CAPTURE(key);
        CHECK(cache.get_or_set(key, fails, {}, early(1)).str() == "v");
    }
}

TEST_CASE("while one computes a value anew the others have the one that is there", "[early][threads]") {
    for (const Seconds lease : {Seconds(0), Seconds(30)}) {
        CAPTURE(lease.count());
        Lab lab;
        Cache cache = lab.open(), elsewhere = lab.open();
        ComputeOptions how = early(1);
        how.lease = lease;
        static_cast<void>(cache.get_or_set(
            "k", [&] { return lab.pass(10s), "old"; }, {100s}, how));
        lab.pass(50s);
        lab.draw_always(0.9999);
        std::atomic<int> others{0};
        const Value made = cache.get_or_set(
            "k",
            [&] {
                lab.draw_always(-1);  // as the lease's owners must differ
                store::Crew crew;
                crew.start(4, [&](std::size_t) {
                    const auto value = cache.try_get_or_set("k", fails, {100s}, how);
                    others += value && value->str() == "old";
                });
                expect(crew.join().empty(), "one failed");
                lab.draw_always(0.9999);
                if (lease.count() > 0) others += elsewhere.get_or_set("k", fails, {100s}, how).str() == "old";
                return "new";
            },
            {100s}, how);
        CHECK(made.str() == "new");
        CHECK(others == (lease.count() > 0 ? 5 : 4));
        CHECK(lab.body("k") == "new");
        CHECK(lab.slept() == 0ms);
        CHECK(lab.lease().empty());
    }
}

TEST_CASE("a failure ahead of the end is no failure: the value is good still", "[early]") {
    Lab lab;
    Cache cache = lab.open();
    static_cast<void>(cache.get_or_set(
        "k", [&] { return lab.pass(10s), "old"; }, {100s}, early(1)));
    lab.draw_always(0.999999);
    CHECK(cache.get_or_set("k", fails, {100s}, early(1)).str() == "old");
    CHECK(cache.stats().stale == 0);
}

TEST_CASE("an expired value does where the producer fails, for as long as is allowed", "[stale]") {
    Lab lab;
    Cache cache = lab.open();
    cache.set("k", "old", {60s});
    lab.pass(90s);
    CHECK_FALSE(cache.try_get_or_set("other", fails, {}, forgiving(60s)));
    CHECK(cache.get_or_set("k", fails, {}, forgiving(60s)).str() == "old");
    CHECK(cache.get_or_set("k", fails, {}, forgiving(60s)).str() == "old");  // it was not removed
    CHECK(cache.stats().stale == 2);
    CHECK(lab.told("get_or_set stale") == 2);
    CHECK_THROWS_WITH(cache.get_or_set("k", fails, {}, forgiving(20s)), "the producer's own words");
    CHECK_FALSE(lab.open().get("k"));  // no other call serves it
    cache.set("k", "old", {60s});
    lab.pass(90s);
    CHECK(cache
              .get_or_set(
                  "k", [] { return "new"; }, {}, forgiving(60s))
              .str() == "new");
}
