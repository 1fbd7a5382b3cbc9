// Memory that runs out: of every operation each allocation in turn fails, once or from then on, and what is left is an
// error or a success, a cache that works, and no upload, lock or file that nobody knows of.
#include "world.hpp"

#include <openssl/crypto.h>

#include <cstdio>
#include <cstring>
#include <utility>

namespace {

enum class Whose { ours, of_curl, of_openssl };

// Of the thread under test alone: the fake's threads and Catch go on undisturbed.
struct Memory {
    std::size_t until_failure = 0;  // 0: none fails
    bool for_good = false;
    bool failed = false;
    Whose whose = Whose::ours;
};
thread_local Memory memory;

bool fails(Whose whose) noexcept {
    if (memory.until_failure == 0 || memory.whose != whose) return false;
    if (memory.until_failure > 1) {
        --memory.until_failure;
        return false;
    }
    memory.failed = true;
    if (!memory.for_good) memory.until_failure = 0;
    return true;
}

void* allocate(std::size_t size) noexcept { return fails(Whose::ours) ? nullptr : std::malloc(size > 0 ? size : 1); }

void* allocate_or_throw(std::size_t size) {
    void* const out = allocate(size);
    if (!out) throw std::bad_alloc();
    return out;
}

void* curl_malloc(std::size_t size) { return fails(Whose::of_curl) ? nullptr : std::malloc(size); }
void* curl_calloc(std::size_t count, std::size_t size) {
    return fails(Whose::of_curl) ? nullptr : std::calloc(count, size);
}
void* curl_realloc(void* data, std::size_t size) { return fails(Whose::of_curl) ? nullptr : std::realloc(data, size); }
char* curl_copy(const char* text) { return fails(Whose::of_curl) ? nullptr : strdup(text); }

void* openssl_malloc(std::size_t size, const char* /*file*/, int /*line*/) {
    return fails(Whose::of_openssl) ? nullptr : std::malloc(size);
}
void* openssl_realloc(void* data, std::size_t size, const char* /*file*/, int /*line*/) {
    return fails(Whose::of_openssl) ? nullptr : std::realloc(data, size);
}
void openssl_free(void* data, const char* /*file*/, int /*line*/) { std::free(data); }

// Before anything else asks OpenSSL and libcurl for memory.
const bool openssl_is_hooked = CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) == 1;
const bool curl_is_hooked =
    curl_global_init_mem(CURL_GLOBAL_DEFAULT, curl_malloc, std::free, curl_realloc, curl_copy, curl_calloc) == CURLE_OK;

}  // namespace

void* operator new(std::size_t size) { return allocate_or_throw(size); }
void* operator new[](std::size_t size) { return allocate_or_throw(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocate(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocate(size); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t) noexcept { std::free(data); }

using namespace s3cache;
using namespace std::chrono_literals;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = 100000;

// What the caller does before the call is not under test.
struct Spared {
    Memory saved = memory;
    Spared() { memory = {}; }
    Spared(const Spared&) = delete;
    Spared& operator=(const Spared&) = delete;
    ~Spared() { memory = saved; }
};

// What a call made of it; `name` is a literal, for there may be no memory to keep more.
struct Outcome {
    bool ok = false;
    bool shown = true;  // an error has a text, a value is one
};

template <class T>
Outcome of(const Result<T>& result) {
    return {result.has_value(), result.has_value() || (result.error().what() && *result.error().what())};
}

template <class T>
Outcome of(const std::vector<Result<T>>& results) {
    Outcome out{!results.empty()};
    for (const Result<T>& result : results) {
        out.ok = out.ok && result.has_value();
        out.shown = out.shown && of(result).shown;
    }
    return out;
}

struct Operation {
    const char* name;
    Outcome (*run)(Cache& cache);
};

const std::string& large() {
    static const std::string data = store::random_bytes(part + 1, 1);
    return data;
}
const std::string& lines() {
    static const std::string data = store::text_lines(200000);
    return data;
}
const std::vector<std::string>& keys() {
    static const std::vector<std::string> all{"a key that is too long for a short string", "b", "c"};
    return all;
}
std::string source, target;  // paths of set_file and get_file

Outcome stream_of(std::size_t size, Cache& cache, const SetOptions& options) {
    std::size_t given = 0;
    const auto read = [&given, size](char* buffer, std::size_t capacity) {
        const std::size_t count = (std::min)(capacity, size - given);
        std::fill_n(buffer, count, 'x');
        given += count;
        return count;
    };
    std::optional<Source> stream;
    {
        const Spared spared;
        stream.emplace(read);
    }
    return of(cache.try_set("stream", *std::move(stream), options));
}

template <class F>
Outcome stream_from(Cache& cache, const char* key, F&& each) {
    auto reader = cache.try_get_stream(key);
    if (!reader || !*reader) return of(reader);
    while (true) {
        auto chunk = (*reader)->try_next();
        if (!chunk || chunk->empty()) return of(chunk);
        each(*chunk);
    }
}

template <class F>
Outcome listed(Result<Listing> listing, F&& each) {
    if (!listing) return of(listing);
    while (true) {
        auto next = listing->try_next();
        if (!next || !*next) return of(next);
        each(**next);
    }
}

ComputeOptions leased() {
    ComputeOptions how;
    how.lease = Seconds(30);
    how.lease_wait = Seconds(0.001);
    return how;
}

SetOptions with(bool compress, bool if_absent = false) {
    SetOptions options;
    options.ttl = Seconds(60);
    options.compress = compress;
    options.if_absent = if_absent;
    return options;
}

const Operation operations[] = {
    {"set", [](Cache& c) { return of(c.try_set("new", "v", with(false))); }},
    {"set, gzip", [](Cache& c) { return of(c.try_set("new", lines(), with(true))); }},
    {"set if absent", [](Cache& c) { return of(c.try_set("new", "v", with(false, true))); }},
    {"set if absent, expired", [](Cache& c) { return of(c.try_set("expired", "v", with(false, true))); }},
    {"stream up", [](Cache& c) { return stream_of(1000, c, with(false)); }},
    {"stream up, gzip", [](Cache& c) { return stream_of(300000, c, with(true)); }},
    {"stream up in parts", [](Cache& c) { return stream_of(part + 1, c, with(false)); }},
    {"memory in parts", [](Cache& c) { return of(c.try_set("new", large(), with(false))); }},
    {"set_file", [](Cache& c) { return of(c.try_set_file("new", source, with(false))); }},
    {"get", [](Cache& c) { return of(c.try_get("k")); }},
    {"get, gzip", [](Cache& c) { return of(c.try_get("lines")); }},
    {"get, missing", [](Cache& c) { return of(c.try_get("nothing")); }},
    {"get, expired", [](Cache& c) { return of(c.try_get("expired")); }},
    {"get, denied",
     [](Cache& c) {
         return Outcome{true, of(c.try_get("denied")).shown};
     }},
    {"get if changed", [](Cache& c) { return of(c.try_get_if_changed("k", "\"x\"")); }},
    {"stream down", [](Cache& c) { return stream_from(c, "k", [](std::string_view) {}); }},
    {"stream down, gzip", [](Cache& c) { return stream_from(c, "lines", [](std::string_view) {}); }},
    {"get_file", [](Cache& c) { return of(c.try_get_file("lines", target)); }},
    {"stat", [](Cache& c) { return of(c.try_stat("k")); }},
    {"contains", [](Cache& c) { return of(c.try_contains("k")); }},
    {"touch", [](Cache& c) { return of(c.try_touch("k", Seconds(100))); }},
    {"remove", [](Cache& c) { return of(c.try_remove("a")); }},
    {"list", [](Cache& c) { return listed(c.try_list(), [](const Entry&) {}); }},
    {"list, deep", [](Cache& c) { return listed(c.try_list("many/", Look::deep), [](const Entry&) {}); }},
    {"clear", [](Cache& c) { return of(c.try_clear("many/")); }},
    {"purge", [](Cache& c) { return of(c.try_purge_expired("exp")); }},
    {"sweep", [](Cache& c) { return of(c.try_sweep_uploads("", Seconds(0))); }},
    {"presign",
     [](Cache& c) {
         const auto url = c.try_presign("k", "GET", Seconds(60));
         const bool is_signed = !url || url->find("Signature=00000000") == std::string::npos;
         return Outcome{url.has_value(), of(url).shown && is_signed};
     }},
    {"get_many",
     [](Cache& c) {
         Outcome out{true};
         c.get_many(keys(), [&](const std::string&, const Result<std::optional<Value>>& hit) {
             out.ok = out.ok && hit.has_value();
             out.shown = out.shown && of(hit).shown;
         });
         return out;
     }},
    {"set_many",
     [](Cache& c) {
         static const std::vector<Item> items{{"a", "v"}, {"b", lines(), with(true)}, {"c", "w"}};
         return of(c.set_many(items));
     }},
    {"remove_many", [](Cache& c) { return of(c.remove_many(keys())); }},
    {"get_or_set, hit", [](Cache& c) { return of(c.try_get_or_set("k", [] { return "w"; })); }},
    {"get_or_set, miss", [](Cache& c) { return of(c.try_get_or_set("new", [] { return "w"; })); }},
    {"get_or_set, lease",
     [](Cache& c) {
         return of(c.try_get_or_set(
             "new", [] { return "w"; }, with(false), leased()));
     }},
    {"get_or_set, throwing",
     [](Cache& c) {
         const auto fails = [](char*, std::size_t) { return source_failed; };
         return Outcome{true, of(c.try_get_or_set("new", [&] { return Source(fails); })).shown};
     }},
    {"explain",
     [](Cache& c) {  // no try_ form: it may throw
         try {
             return Outcome{!c.explain().empty()};
         } catch (const std::bad_alloc&) {
             return Outcome{};
         }
     }},
};

// Nothing here may allocate on the thread under test without need.
Config quiet(World& world, Checksums checksums = Checksums::own) {
    Config config = world.config();
    config.on_event = {};
    config.seams.sleep = [](std::chrono::milliseconds) {};
    config.seams.random = [] { return 0.0; };
    config.part_bytes = part;
    config.checksums = checksums;
    return config;
}

void fill(World& world, int round) {
    world.s3.erase_all();
    world.put("k", "v");
    static const std::string packed = store::gzip(lines());
    world.put("lines", packed, {{"compressed", "true"}});
    world.put_expiring("expired", "v", -100);
    world.put("denied", "v");
    for (const std::string& key : keys()) world.put(key, "v" + std::to_string(round));
    for (const char* key : {"many/a", "many/b"}) world.put(key, "v");
}

// Of a request that the store takes for one of another, or of another body than was signed.
std::string refused(const World& world) {
    for (const fake_s3::Recorded& request : world.s3.requests()) {
        if (request.status != 400 && (request.status != 403 || request.key == "denied")) continue;
        std::string out = std::to_string(request.status) + " to " + request.method + " " + request.target;
        for (const auto& [name, value] : request.headers) out.append("\n").append(name).append(": ").append(value);
        return out;
    }
    return {};
}

std::size_t points = 0;

void fail_each_allocation(const Operation& operation, bool for_good, Whose whose,
                          Checksums checksums = Checksums::own) {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    World world(options);
    world.s3.deny_key("denied");
    store::Folder folder;
    store::write(folder / "in", "a file");
    source = folder / "in";
    target = folder / "out of the way of short strings";
    Cache cache = world.cache(quiet(world, checksums));
    fill(world, 0);
    REQUIRE(operation.run(cache).shown);  // what is done once in a process is done
    std::size_t allocation = 1;
    for (bool reached = true; reached; ++allocation) {
        CAPTURE(operation.name, allocation, for_good, static_cast<int>(whose), static_cast<int>(checksums));
        fill(world, static_cast<int>(allocation));
        world.s3.clear_requests();
        const auto uploads = cache.stats().leftover_uploads;
        Outcome outcome;
        bool threw = false;
        memory = {allocation, for_good, false, whose};
        try {
            outcome = operation.run(cache);
        } catch (...) {
            threw = true;
        }
        reached = memory.failed;
        memory = {};
        if (threw || !outcome.shown || (!reached && !outcome.ok)) {
            CHECK_FALSE(threw);
            CHECK(outcome.shown);
            CHECK((reached || outcome.ok));
        }
        const auto open = world.s3.open_uploads().size();
        if (open > cache.stats().leftover_uploads - uploads) CHECK(open <= cache.stats().leftover_uploads - uploads);
        const auto fine = [](const auto& result) {
            if (!result) UNSCOPED_INFO(result.error().what());
            return result.has_value();
        };
        const bool usable = fine(cache.try_get_or_set("new", [] { return "w"; })) && fine(cache.try_get("k")) &&
                            fine(cache.try_set("after", "v")) && text_of(cache.get("after")) == "v";
        if (!usable) CHECK(usable);
        // Without memory libcurl leaves out a query: that the store sees by the signature.
        const std::string wrong = whose == Whose::of_curl ? std::string() : refused(world);
        if (!wrong.empty()) CHECK(wrong == "");
        if (folder.count() > 2) CHECK(folder.count() <= 2);
        REQUIRE(allocation < 20000);
    }
    points += allocation - 2;  // the last one was not reached
}

// How many allocations were to fail since the last time.
void tell(const char* what) {
    std::printf("allocation: %s, %zu operations, %zu failures\n", what, std::size(operations),
                std::exchange(points, 0));
}

}  // namespace

TEST_CASE("any one allocation that fails is an error or nothing, and the cache works on", "[memory]") {
    for (const Operation& operation : operations) fail_each_allocation(operation, false, Whose::ours);
    tell("each once");
}

TEST_CASE("any one allocation that fails where the store checks sums leaves no half a hash behind", "[memory]") {
    for (const Operation& operation : operations) {
        const std::string_view name = operation.name;
        const bool sends = name.find("set") != name.npos || name.find("up") != name.npos || name == "memory in parts";
        if (sends) fail_each_allocation(operation, false, Whose::ours, Checksums::store);
    }
}

TEST_CASE("no memory at all from any moment of a call to its end is an error, and the cache works on", "[memory]") {
    for (const Operation& operation : operations) fail_each_allocation(operation, true, Whose::ours);
    tell("each and all behind it");
}

TEST_CASE("memory that libcurl or OpenSSL asks for in vain is an error or nothing, and the cache works on",
          "[memory]") {
    REQUIRE(curl_is_hooked);
    REQUIRE(openssl_is_hooked);
    for (const Whose whose : {Whose::of_curl, Whose::of_openssl}) {
        for (const bool for_good : {false, true}) {
            for (const Operation& operation : operations) fail_each_allocation(operation, for_good, whose);
        }
        tell(whose == Whose::of_curl ? "libcurl's, both ways" : "OpenSSL's, both ways");
    }
}

TEST_CASE("a cache is opened, or not, however early memory runs out, and works on", "[memory]") {
    fake_s3::Options options;
    options.keys = {{"AKID", "short"}};  // copied without memory: a provider that throws is not asked again for a while
    World world(options);
    world.put("k", "v");
    const Config config = quiet(world);
    for (const Whose whose : {Whose::ours, Whose::of_curl, Whose::of_openssl}) {
        for (const bool for_good : {false, true}) {
            bool reached = true;
            for (std::size_t allocation = 1; reached; ++allocation) {
                CAPTURE(static_cast<int>(whose), allocation, for_good);
                Config copy = config;
                bool fine = false;
                memory = {allocation, for_good, false, whose};
                try {
                    auto cache = Cache::try_open("s3://bucket/?region=us-east-1", std::move(copy));
                    if (cache) static_cast<void>(cache->try_get("k").has_value());
                    reached = memory.failed;
                    memory = {};
                    fine = !cache || text_of(cache->get("k")) == "v";
                } catch (const std::exception& e) {
                    UNSCOPED_INFO(e.what());
                }
                memory = {};
                if (!fine) CHECK(fine);
                REQUIRE(allocation < 20000);
            }
        }
    }
    CHECK(text_of(world.cache(config).get("k")) == "v");
}

TEST_CASE("a get_or_set that found no memory leaves its key to the next thread", "[memory][compute]") {
    World world;
    Cache cache = world.cache(quiet(world));
    bool reached = true;
    for (std::size_t allocation = 1; reached; ++allocation) {
        const std::string key = "k" + std::to_string(allocation);
        memory = {allocation, false, false, Whose::ours};
        try {
            static_cast<void>(cache.try_get_or_set(key, [] { return "v"; }).has_value());
        } catch (...) {
        }
        reached = memory.failed;
        memory = {};
        store::Crew crew;
        crew.start(2, [&](std::size_t) {
            store::expect(cache.get_or_set(key, [] { return "v"; }).view() == "v", "the value of " + key);
        });
        for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
    }
}

TEST_CASE("a reader that found no memory gives no wrong bytes and does not hang when it is read on",
          "[memory][ranges]") {
    fake_s3::Options options;
    options.connection_bytes_per_second = 4000000;  // slow enough for ranges over more connections
    World world(options);
    const std::string plain = store::random_bytes(6 * part, 1);
    world.put("ranges", plain);
    world.put("gzip", store::gzip(lines()), {{"compressed", "true"}});
    Cache cache = world.cache(quiet(world));
    for (const char* key : {"ranges", "gzip"}) {
        const std::string& value = std::string_view(key) == "gzip" ? lines() : plain;
        bool reached = true;
        for (std::size_t allocation = 1; reached; ++allocation) {
            CAPTURE(key, allocation);
            auto reader = cache.get_stream(key);
            REQUIRE(reader);
            std::string got;
            memory = {allocation, false, false, Whose::ours};
            for (int errors = 0; errors < 3;) {
                const auto chunk = reader->try_next();
                const Spared spared;
                if (!chunk)
                    ++errors;
                else if (chunk->empty())
                    break;
                else
                    got.append(*chunk);
                if (errors == 3) got.clear();
            }
            reached = memory.failed;
            memory = {};
            if (!got.empty()) CHECK(same(got, value));
        }
    }
}

TEST_CASE("a listing that found no memory leaves nothing out when it is read on", "[memory][list]") {
    World world;
    world.s3.set_list_page_max(2);
    for (char name = 'a'; name < 'h'; ++name) world.put(std::string(1, name), "v");
    Cache cache = world.cache(quiet(world));
    bool reached = true;
    for (std::size_t allocation = 1; reached; ++allocation) {
        CAPTURE(allocation);
        Listing listing = cache.list();
        std::size_t count = 0;
        memory = {allocation, false, false, Whose::ours};
        for (int errors = 0; errors < 3;) {
            const auto entry = listing.try_next();
            if (!entry && ++errors == 3) count = 7;
            if (entry && !*entry) break;
            if (entry) ++count;
        }
        reached = memory.failed;
        memory = {};
        if (count != 7) CHECK(count == 7);
    }
}
