// What makes it a cache for many hands: conditions, touch, get_or_set, threads, counts.
#include "store.hpp"

#include <array>
#include <condition_variable>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::expect;
using store::failure;
using store::if_absent;
using store::ok;
using store::same;
using store::Space;
using store::text_of;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

struct Broke : std::runtime_error {
    using std::runtime_error::runtime_error;
};

SetOptions if_match(std::string etag) {
    SetOptions options;
    options.if_match = std::move(etag);
    return options;
}

}  // namespace

// ---- conditions -----------------------------------------------------------------------------------------------------

STORE_TEST("if_absent stores once", "[conditions]") {
    Cache cache = space.cache();
    CHECK(cache.set("k", "first", if_absent()));
    CHECK_FALSE(cache.set("k", "second", if_absent()));
    CHECK_FALSE(cache.set("k", std::istringstream("third"), if_absent()));
    CHECK(text_of(cache.get("k")) == "first");
    CHECK(cache.stats().refused == 2);
    cache.remove("k");
    CHECK(cache.set("k", std::istringstream("again"), if_absent()));
    CHECK(text_of(cache.get("k")) == "again");
}

STORE_TEST("if_absent stores over an expired entry: it counts as absent", "[conditions][ttl]") {
    for (const Expired policy : {Expired::remove, Expired::keep}) {
        Config config = space.config();
        config.expired = policy;
        Cache cache = space.cache(config);
        space.put_expiring("k", "old", -100);
        CHECK(cache.set("k", "new", if_absent()));
        CHECK(text_of(cache.get("k")) == "new");
        CHECK_FALSE(cache.set("k", "newer", if_absent()));
        CHECK(text_of(cache.get("k")) == "new");
    }
}

STORE_TEST("if_match stores over the entry that was seen, and no other", "[conditions]") {
    Cache cache = space.cache();
    CHECK_FALSE(cache.set("k", "v", if_match("\"0123456789abcdef0123456789abcdef\"")));
    CHECK_FALSE(space.has("k"));
    cache.set("k", "first");
    const std::string etag = cache.get("k")->info().etag;
    CHECK(cache.set("k", "second", if_match(etag)));
    CHECK_FALSE(cache.set("k", "third", if_match(etag)));
    CHECK_FALSE(cache.set("k", std::istringstream("third"), if_match(etag)));
    CHECK(text_of(cache.get("k")) == "second");
    CHECK(cache.set("k", std::istringstream("third"), if_match(cache.stat("k")->etag)));
    CHECK(text_of(cache.get("k")) == "third");
}

STORE_TEST("conditions hold for uploads in parts, where the store has them there", "[conditions]") {
    if (space.lacks(store::Ability::conditions)) return;
    if (!space.fake()) return;  // on others: what Complete does about conditions is theirs to say
    Cache cache = space.cache();
    const std::string large = store::random_bytes(2 * part + 1, 2);
    cache.set("k", "first");
    CHECK_FALSE(cache.set("k", std::istringstream(large), if_absent()));
    CHECK(text_of(cache.get("k")) == "first");
    CHECK(cache.set("k", std::istringstream(large), if_match(cache.stat("k")->etag)));
    CHECK(same(text_of(cache.get("k")), large));
    CHECK_FALSE(cache.set("k", std::istringstream(large), if_match("\"0123456789abcdef0123456789abcdef\"")));
    CHECK(cache.set("new", std::istringstream(large), if_absent()));
    CHECK(space.open_uploads() == 0);
}

STORE_TEST("conditions that contradict each other, or are none, are refused", "[conditions][refused]") {
    Cache cache = space.cache();
    SetOptions both = if_absent();
    both.if_match = "\"x\"";
    CHECK(code_of(cache.try_set("k", "v", both)) == Errc::invalid_argument);
    for (const char* bad : {"\"a\"\r\nx-amz-acl: public-read", "\"\x01\"", "caf\xC3\xA9"}) {
        CAPTURE(bad);
        CHECK(code_of(cache.try_set("k", "v", if_match(bad))) == Errc::invalid_argument);
    }
    CHECK(cache.stats().requests == 0);
}

STORE_TEST("of many writers that all say if_absent, one succeeds", "[conditions][threads]") {
    if (space.lacks(store::Ability::conditions)) return;
    Cache cache = space.cache();
    std::atomic<int> won{0};
    std::array<std::atomic<bool>, 8> winners{};
    store::Crew crew;
    crew.start(8, [&](std::size_t i) {
        if (!cache.set("k", "by " + std::to_string(i), if_absent())) return;
        ++won;
        winners[i] = true;
    });
    CHECK(crew.join() == std::vector<std::string>());
    CHECK(won == 1);
    const std::string value = cache.get("k")->str();
    CHECK(winners[static_cast<std::size_t>(std::stoi(value.substr(3)))]);
}

// ---- touch ----------------------------------------------------------------------------------------------------------

STORE_TEST("touch gives a new TTL and keeps everything else", "[touch]") {
    Cache cache = space.cache();
    const std::string large = store::random_bytes(2 * part + 1, 3);
    SetOptions options{1h, true};
    options.metadata = {{"owner", "alice"}, {"with-dash", "a b"}};
    options.content_type = "text/csv";
    cache.set("json", json("[1, 2]"), options);
    options.kind = Kind::bytes;
    cache.set("large", std::istringstream(large), options);
    space.put("foreign", "123",
              {{"owner", "someone"}, {":content-type", "text/x-own"}, {":cache-control", "max-age=5"}});
    for (const char* key : {"json", "large", "foreign"}) {
        CAPTURE(key);
        const auto before = cache.get(key);
        REQUIRE(before);
        const auto headers = space.look(key);
        CHECK(cache.touch(key, 48h));
        const auto after = cache.get(key);
        REQUIRE(after);
        CHECK(same(after->view(), before->view()));
        CHECK(after->kind() == before->kind());
        CHECK(after->info().kind == before->info().kind);
        CHECK(after->info().compressed == before->info().compressed);
        CHECK(after->info().content_type == before->info().content_type);
        CHECK(after->info().metadata == before->info().metadata);
        CHECK(after->info().size == before->info().size);
        REQUIRE(after->info().expires_at);
        CHECK(*after->info().expires_at > std::chrono::system_clock::now() + 47h);
        CHECK(*after->info().expires_at < std::chrono::system_clock::now() + 49h);
        const auto now = space.look(key);
        for (const char* name : {"cache-control", "content-encoding", "content-type"})
            CHECK(now.header(name) == headers.header(name));
        for (const char* name : {"kind", "compressed", "crc32c"}) CHECK(now.meta(name) == headers.meta(name));
        CHECK(cache.touch(key, forever));
        CHECK_FALSE(cache.stat(key)->expires_at);
        CHECK_FALSE(space.look(key).meta("expires_at"));
        CHECK(cache.touch(key, 1min));
        CHECK(*cache.stat(key)->expires_at < std::chrono::system_clock::now() + 5min);
        CHECK(same(store::drained(*cache.get_stream(key)), before->view()));
    }
}

STORE_TEST("touch of nothing, or of what has expired, does nothing", "[touch]") {
    Cache cache = space.cache();
    CHECK_FALSE(cache.touch("nothing", 1h));
    CHECK_FALSE(space.has("nothing"));
    space.put_expiring("old", "v", -10);
    CHECK_FALSE(cache.touch("old", 1h));
    CHECK_FALSE(cache.contains("old"));
}

// ---- get_or_set -----------------------------------------------------------------------------------------------------

STORE_TEST("get_or_set computes on a miss, stores, and reads afterwards", "[get_or_set]") {
    Cache cache = space.cache();
    int ran = 0;
    const auto produce = [&] { return ++ran, std::string("made"); };
    SetOptions options{1h, true};
    options.metadata = {{"owner", "alice"}};
    const Value made = cache.get_or_set("k", produce, options);
    CHECK(made.str() == "made");
    CHECK(made.kind() == Kind::text);
    CHECK(ran == 1);
    const auto stored = cache.get("k");
    REQUIRE(stored);
    CHECK(stored->str() == "made");
    CHECK(stored->info().expires_at);
    CHECK(stored->info().compressed);
    CHECK(stored->info().metadata == options.metadata);
    CHECK(cache.get_or_set("k", produce, options).str() == "made");
    CHECK(ran == 1);
    space.put_expiring("k", "old", -10);
    CHECK(cache.get_or_set("k", produce).str() == "made");
    CHECK(ran == 2);
}

STORE_TEST("a producer may return whatever a payload is made from", "[get_or_set]") {
    Cache cache = space.cache();
    const auto check = [&](const char* key, const Value& value, std::string_view data, Kind kind) {
        CAPTURE(key);
        CHECK(value.view() == data);
        CHECK(value.kind() == kind);
        const auto stored = cache.get(key);
        REQUIRE(stored);
        CHECK(stored->view() == data);
        CHECK(stored->kind() == kind);
    };
    check("literal", cache.get_or_set("literal", [] { return "123"; }), "123", Kind::text);
    check("string", cache.get_or_set("string", [] { return std::string(100, 'x'); }), std::string(100, 'x'),
          Kind::text);
    check("no text", cache.get_or_set("no text", [] { return std::string("\xFF"); }), "\xFF", Kind::bytes);
    check("empty", cache.get_or_set("empty", [] { return ""; }), "", Kind::text);
    check("json", cache.get_or_set("json", [] { return json("{}"); }), "{}", Kind::json);
    check("bytes",
          cache.get_or_set("bytes",
                           [] {
                               return std::vector<unsigned char>{'a', 0};
                           }),
          std::string_view("a\0", 2), Kind::bytes);
    check("result", cache.get_or_set("result", [] { return Result<std::string>("r"); }), "r", Kind::text);
    int calls = 0;
    const auto stream = [calls](char* buffer, std::size_t) mutable -> std::size_t {
        *buffer = 's';
        return ++calls <= 3 ? 1U : 0U;
    };
    check("stream", cache.get_or_set("stream", [&] { return stream; }), "sss", Kind::bytes);
}

STORE_TEST("what a producer throws or returns as an error reaches the caller, and nothing is stored", "[get_or_set]") {
    Cache cache = space.cache();
    CHECK_THROWS_AS(cache.get_or_set("k", []() -> std::string { throw Broke("no model"); }), Broke);
    const Error thrown = failure(cache.try_get_or_set("k", []() -> std::string { throw Broke("no model"); }));
    CHECK(thrown.code() == Errc::source);
    CHECK(store::holds(thrown.what(), "no model"));
    CHECK(code_of(cache.try_get_or_set("k", [] {
              return Result<std::string>(Error(Errc::timed_out, "the model took too long"));
          })) == Errc::timed_out);
    CHECK(code_of(cache.try_get_or_set("k", [] { return json("{"); })) == Errc::invalid_argument);
    CHECK(code_of(cache.try_get_or_set("k", [] { return static_cast<const char*>(nullptr); })) == Errc::source);
    CHECK_FALSE(space.has("k"));
    CHECK(cache.get_or_set("k", [] { return "fine"; }).str() == "fine");
}

STORE_TEST("a producer that asks for its own key is told so, and may ask for another", "[get_or_set]") {
    Cache cache = space.cache();
    const auto recursion = [&]() -> Result<std::string> {
        Result<Value> inner = cache.try_get_or_set("k", [] { return "inner"; });
        if (!inner) return inner.error();
        return inner->str();
    };
    CHECK(code_of(cache.try_get_or_set("k", recursion)) == Errc::source);
    CHECK_FALSE(space.has("k"));
    CHECK(cache.get_or_set("k", [&] { return "outer of " + cache.get_or_set("other", [] { return "inner"; }).str(); })
              .str() == "outer of inner");
    CHECK(text_of(cache.get("other")) == "inner");
    // Through a third: a asks b, b asks a.
    const auto ring = [&] {
        return cache.try_get_or_set("b", [&]() -> Result<std::string> {
            Result<Value> inner = cache.try_get_or_set("a", [] { return "x"; });
            if (!inner) return inner.error();
            return inner->str();
        });
    };
    CHECK(code_of(cache.try_get_or_set("a", [&]() -> Result<std::string> {
              Result<Value> inner = ring();
              if (!inner) return inner.error();
              return inner->str();
          })) == Errc::source);
}

STORE_TEST("eight threads that want the same value have it computed once", "[get_or_set][threads]") {
    Cache cache = space.cache();
    std::atomic<int> ran{0};
    std::atomic<int> asking{0};
    store::Crew crew;
    crew.start(8, [&](std::size_t) {
        ++asking;
        const Value value = cache.get_or_set("k", [&] {
            ++ran;
            while (asking < 8) std::this_thread::yield();  // all are here, or on their way in, before it is done
            std::this_thread::sleep_for(50ms);
            return "value";
        });
        expect(value.str() == "value", "a thread got another value");
        expect(value.kind() == Kind::text, "a thread got another kind");
    });
    CHECK(crew.join() == std::vector<std::string>());
    CHECK(ran == 1);
    CHECK(text_of(cache.get("k")) == "value");
}

STORE_TEST("those that wait share the producer's error, and different keys do not wait for each other",
           "[get_or_set][threads]") {
    Cache cache = space.cache();
    std::mutex mutex;
    std::condition_variable changed;
    int inside = 0;
    store::Crew crew;
    // Each producer waits for the other one: it ends only if both may run at once.
    crew.start(2, [&](std::size_t i) {
        cache.get_or_set("key " + std::to_string(i), [&] {
            std::unique_lock<std::mutex> lock(mutex);
            ++inside;
            changed.notify_all();
            expect(changed.wait_for(lock, 30s, [&] { return inside == 2; }), "the other producer did not run");
            return "v";
        });
    });
    CHECK(crew.join() == std::vector<std::string>());

    std::atomic<int> ran{0}, caught{0}, asking{0};
    crew.start(4, [&](std::size_t) {
        ++asking;
        try {
            cache.get_or_set("bad", [&]() -> std::string {
                ++ran;
                while (asking < 4) std::this_thread::yield();
                std::this_thread::sleep_for(50ms);
                throw Broke("all of you");
            });
        } catch (const Broke&) {
            ++caught;
        }
    });
    CHECK(crew.join() == std::vector<std::string>());
    CHECK(caught == 4);
    CHECK(ran >= 1);
    CHECK(ran <= 4);
    CHECK_FALSE(space.has("bad"));
}

// ---- threads --------------------------------------------------------------------------------------------------------

STORE_TEST("sixteen threads on one cache read only what was written whole, under that key", "[threads]") {
    Cache cache = space.cache();
    const auto value = [](std::size_t key, std::size_t version) {
        return std::to_string(key) + ":" + std::to_string(version) + ":" +
               std::string(1000 + 500 * version, static_cast<char>('a' + version % 26));
    };
    const auto whole = [&](std::size_t key, std::string_view text) {
        const std::string prefix = std::to_string(key) + ":";
        expect(text.substr(0, prefix.size()) == prefix, "a value of another key");
        const std::string rest(text.substr(prefix.size()));
        const std::size_t version = static_cast<std::size_t>(std::stoul(rest));
        expect(text == value(key, version), "a value that was never written");
    };
    store::Crew crew;
    crew.start(16, [&](std::size_t thread) {
        std::mt19937 random(static_cast<unsigned>(thread));
        for (int step = 0; step < 25; ++step) {
            const std::size_t key = random() % 5;
            const std::string name = "key " + std::to_string(key);
            switch (random() % 6) {
            case 0:
                expect(cache.set(name, value(key, random() % 20), {1h, random() % 2 == 0}), "not set");
                break;
            case 1: {
                std::istringstream in(value(key, random() % 20));
                expect(cache.set(name, in, {1h, random() % 2 == 0}), "not set");
                break;
            }
            case 2:
                if (const auto hit = cache.get(name)) whole(key, hit->view());
                break;
            case 3:
                if (auto reader = cache.get_stream(name)) whole(key, store::drained(*reader));
                break;
            case 4:
                if (random() % 4 == 0)
                    cache.remove(name);
                else
                    static_cast<void>(cache.stat(name));
                break;
            default: {
                const std::string own = "own " + std::to_string(thread);
                cache.set(own, own);
                const auto hit = cache.get(own);
                expect(hit && hit->str() == own, "lost its own value");
                break;
            }
            }
        }
    });
    CHECK(crew.join() == std::vector<std::string>());
    std::size_t own = 0;
    for (const Entry& entry : cache.list("own ")) own += entry.key.size() > 4;
    CHECK(own <= 16);
    CHECK(space.open_uploads() == 0);
    CHECK(cache.stats().errors == 0);
}

STORE_TEST("many threads may use the many-key calls of one cache at once", "[threads][many]") {
    Cache cache = space.cache();
    store::Crew crew;
    crew.start(4, [&](std::size_t thread) {
        std::vector<std::string> keys;
        for (int i = 0; i < 10; ++i) keys.push_back("t" + std::to_string(thread) + "/" + std::to_string(i));
        std::vector<Item> items;
        for (const std::string& key : keys) items.push_back({key, key, {}});
        for (const auto& result : cache.set_many(items)) expect(result.has_value() && *result, "not set");
        int hits = 0;
        cache.get_many(keys, [&](const std::string& key, const Result<std::optional<Value>>& result) {
            hits += result && *result && (*result)->str() == key;
        });
        expect(hits == 10, "not all came back");
        for (const auto& result : cache.remove_many(keys)) expect(result.has_value(), "not removed");
    });
    CHECK(crew.join() == std::vector<std::string>());
    CHECK(cache.clear("") == 0);
}

// ---- counts and events ----------------------------------------------------------------------------------------------

STORE_TEST("stats count what happened", "[stats]") {
    Cache cache = space.cache();
    cache.set("k", "12345");
    cache.get("k");
    cache.get("k");
    cache.get("nothing");
    space.put_expiring("old", "v", -10);
    cache.get("old");
    cache.set("k", "other", if_absent());
    cache.remove("k");
    const Stats stats = cache.stats();
    CHECK(stats.hits == 2);
    CHECK(stats.misses == 2);  // every get that was no hit
    CHECK(stats.expired == 1);
    CHECK(stats.sets == 1);
    CHECK(stats.refused == 1);
    CHECK(stats.removes == 1);
    CHECK(stats.errors == 0);
    CHECK(stats.damaged == 0);
    CHECK(stats.malformed == 0);
    CHECK(stats.retries == 0);
    CHECK(stats.leftover_uploads == 0);
    CHECK(stats.requests >= 7);
    CHECK(stats.connections >= 1);
    CHECK(stats.bytes_in >= 10);
    CHECK(stats.bytes_out >= 5);
}

STORE_TEST("events tell one outcome per operation, and every attempt", "[events]") {
    struct Seen {
        std::string operation, key, outcome;
        int attempt, status;
    };
    std::vector<Seen> seen;
    Config config = space.config();
    config.on_event = [&](const Event& event) {
        seen.push_back({std::string(event.operation), std::string(event.key), std::string(event.outcome), event.attempt,
                        event.status});
        store::check_no_secret(event.detail);
    };
    Cache cache = space.cache(config);
    const auto outcome = [&](const char* operation, const char* key) {
        std::string found;
        int outcomes = 0, attempts = 0;
        for (const Seen& event : seen) {
            attempts += event.attempt > 0;
            if (event.attempt != 0) continue;
            ++outcomes;
            CHECK(event.operation == operation);
            CHECK(event.key == key);
            found = event.outcome;
        }
        CHECK(outcomes == 1);
        CHECK(attempts >= 1);
        seen.clear();
        return found;
    };
    cache.set("k", "v");
    CHECK(outcome("set", "k") == "done");
    cache.get("k");
    CHECK(outcome("get", "k") == "hit");
    cache.get("nothing");
    CHECK(outcome("get", "nothing") == "miss");
    space.put_expiring("old", "v", -10);
    cache.get("old");
    CHECK(outcome("get", "old") == "expired");
    // Elsewhere the first such write first finds out what the store makes of conditions, which has attempts of its own.
    if (!space.lacks(store::Ability::conditions, "a refused write")) {
        cache.set("k", "w", if_absent());
        CHECK(outcome("set", "k") == "refused");
    }
    space.put("bad", "x", {{"kind", "text"}, {"crc32c", store::crc32c("y")}});
    CHECK(code_of(cache.try_get("bad")) == Errc::damaged);
    CHECK(outcome("get", "bad") == "damaged");
    cache.remove("k");
    CHECK(outcome("remove", "k") == "done");
}
