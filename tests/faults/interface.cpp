// Traps of the interface: what looks right and was read after it was gone, copied without need, or crashed when it was empty.
#include "world.hpp"

#include <sys/resource.h>

#include <array>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::text_of;
using store::World;

namespace {

// Overwritten when it goes, so that who reads it later sees that.
struct Fleeting {
    std::string text;
    explicit Fleeting(std::string what) : text(std::move(what)) {}
    Fleeting(const Fleeting&) = default;
    Fleeting& operator=(const Fleeting&) = default;
    ~Fleeting() { std::fill(text.begin(), text.end(), '#'); }
};

Source kept_in_a_variable(const std::string& path) { return Source(std::ifstream(path, std::ios::binary)); }

void overwrite_the_stack() {
    volatile char rubbish[8192];
    for (volatile char& byte : rubbish) byte = '#';
}

}  // namespace

// ---- what is gone ---------------------------------------------------------------------------------------------------

TEST_CASE("a source owns the stream that it was given for good, and borrows one that was lent", "[interface][source]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    const std::string body = store::random_bytes(300000, 1);
    store::write(folder / "in", body);
    Source kept = kept_in_a_variable(folder / "in");
    overwrite_the_stack();
    CHECK(ok(cache.try_set("k", std::move(kept))));
    CHECK(same(world.body("k"), body));
    Source text = std::stringstream(body);
    overwrite_the_stack();
    CHECK(ok(cache.try_set("text", std::move(text))));
    CHECK(same(world.body("text"), body));
    std::vector<Source> many;
    for (int i = 0; i < 5; ++i) many.push_back(Source(std::istringstream("source " + std::to_string(i))));
    for (int i = 0; i < 5; ++i) {
        CHECK(ok(cache.try_set("k", std::move(many[static_cast<std::size_t>(i)]))));
        CHECK(world.body("k") == "source " + std::to_string(i));
    }
    std::istringstream lent("lent");
    CHECK(ok(cache.try_set("k", Source(lent))));
    CHECK(world.body("k") == "lent");
    CHECK(lent.eof());
    CHECK(ok(cache.try_get_or_set("produced", [&] { return std::ifstream(folder / "in", std::ios::binary); })).view() ==
          body);
}

TEST_CASE("chunks of a range that lasts are put together", "[interface][source]") {
    World world;
    Cache cache = world.cache();
    const std::vector<std::string> parts{"one", "", "two", std::string(100000, 'x')};
    CHECK(ok(cache.try_set("k", chunks(parts.begin(), parts.end()))));
    CHECK(world.body("k") == "onetwo" + std::string(100000, 'x'));
    const char* const literals[] = {"a", "b"};
    CHECK(ok(cache.try_set("k", chunks(std::begin(literals), std::end(literals)))));
    CHECK(world.body("k") == "ab");
}

TEST_CASE("a stream that throws by itself at its end is read like any other", "[interface][source]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{300000}}) {
        CAPTURE(size);
        const std::string body = store::random_bytes(size, size + 1);
        store::write(folder / "in", body);
        for (const auto state :
             {std::ios::failbit, std::ios::eofbit, std::ios::badbit, std::ios::failbit | std::ios::eofbit}) {
            std::ifstream in(folder / "in", std::ios::binary);
            in.exceptions(state);
            CHECK(ok(cache.try_set("k", in)));
            CHECK(same(world.body("k"), body));
            std::istringstream text(body);
            text.exceptions(state);
            CHECK(ok(cache.try_set("k", text, {1h, true})));
            CHECK(same(text_of(cache.get("k")), body));
        }
    }
    std::ifstream missing(folder / "nothing");
    CHECK(code_of(cache.try_set("bad", missing)) == Errc::source);
    CHECK_FALSE(world.has("bad"));
}

TEST_CASE("a callable that counts in another type is a source, without a warning in the caller's program", "[source]") {
    World world;
    Cache cache = world.cache();
    std::istringstream in("counted in streamsize");
    const auto count = [&in](char* buffer, std::size_t capacity) -> std::streamsize {
        return in.rdbuf()->sgetn(buffer, static_cast<std::streamsize>(capacity));
    };
    CHECK(ok(cache.try_set("k", Source(count))));
    CHECK(world.body("k") == "counted in streamsize");
}

TEST_CASE("a payload keeps a temporary string, however short, when it is copied or moved", "[interface][payload]") {
    World world;
    Cache cache = world.cache();
    for (const std::string& text : {std::string(), std::string("short"), std::string(1000, 'x')}) {
        CAPTURE(text);
        std::vector<Item> items;
        for (int i = 0; i < 9; ++i) items.push_back({std::to_string(i), json('"' + text + '"'), {}});
        const std::vector<Item> copies = items;
        items.clear();
        overwrite_the_stack();
        for (const Result<bool>& stored : cache.set_many(copies)) CHECK(stored);
        for (const Item& item : copies) CHECK(world.body(item.key) == '"' + text + '"');
        Payload plain = std::string(text);
        const Payload moved = std::move(plain);
        CHECK(moved.present());
        CHECK(moved.view() == text);
    }
}

TEST_CASE("what read() left of a chunk comes first from the stream of the same reader", "[interface][reading]") {
    World world;
    Cache cache = world.cache();
    cache.set("k", "abcdef");
    auto reader = cache.get_stream("k");
    REQUIRE(reader);
    char two[2];
    REQUIRE(reader->read(two, sizeof two) == 2);
    CHECK(std::string(std::istreambuf_iterator<char>(reader->istream()), {}) == "cdef");
}

TEST_CASE("what a producer returns is stored as it was when it returned", "[interface][compute]") {
    World world;
    Cache cache = world.cache();
    const Value text = cache.get_or_set("text", [] { return Fleeting(std::string(100, 'v')).text; });
    CHECK(text.view() == std::string(100, 'v'));
    const Value owned = cache.get_or_set("bytes", [] { return std::vector<unsigned char>(100, 'v'); });
    CHECK(owned.view() == std::string(100, 'v'));
    CHECK(owned.kind() == Kind::bytes);
    const Value literal = cache.get_or_set("literal", [] { return "v"; });
    CHECK(literal.view() == "v");
}

// ---- what is empty --------------------------------------------------------------------------------------------------

TEST_CASE("an error that was moved from is still an error with a text", "[interface][errors]") {
    Error first(Errc::network, "the first");
    Error second(std::move(first));
    CHECK(second.code() == Errc::network);
    CHECK(first.what() != nullptr);  // NOLINT: what is left of it
    static_cast<void>(first.code());
    static_cast<void>(first.status());
    static_cast<void>(first.s3_code().size() + first.s3_message().size() + first.request_id().size());
    static_cast<void>(first.attempts());
    static_cast<void>(first.retryable());
    static_cast<void>(first.details().code);
    Error third(Errc::tls, "the third");
    third = std::move(second);
    CHECK(third.code() == Errc::network);
    CHECK(std::string_view(third.what()) == "the first");
    static_cast<void>(second.code());
    second = Error(Errc::store, "anew");
    CHECK(second.code() == Errc::store);
    Result<int> result = Error(Errc::denied, "no");
    const Error taken = std::move(result).error();
    CHECK(taken.code() == Errc::denied);
    CHECK_FALSE(result.has_value());
    static_cast<void>(result.error().code());
    static_cast<void>(result.error().what());
}

TEST_CASE("null pointers are refused like any wrong argument", "[interface]") {
    World world;
    Cache cache = world.cache();
    const char* const null = nullptr;
    CHECK(code_of(cache.try_set("k", null)) == Errc::invalid_argument);
    CHECK(code_of(cache.try_set("k", bytes(nullptr, 5))) == Errc::invalid_argument);
    CHECK(ok(cache.try_set("k", bytes(nullptr, 0))));
    CHECK(code_of(cache.try_get_or_set("new", [=] { return null; })) == Errc::source);
    CHECK(code_of(cache.try_set("k", Payload(nullptr, 3, Kind::text))) == Errc::invalid_argument);
}

TEST_CASE("an empty function as a source, a visitor or a provider is a wrong argument, not a crash", "[interface]") {
    World world;
    Cache cache = world.cache();
    const Source::Read none;
    const Errc code = code_of(cache.try_set("k", Source(none)));
    CHECK((code == Errc::invalid_argument || code == Errc::source));
    CHECK_FALSE(world.has("k"));
}

// ---- what a newcomer writes -----------------------------------------------------------------------------------------

namespace {

// Compiles where the interface takes it, and fails as a test where it does not.
template <class T>
void stored_as_bytes(World& world, const T& data, std::string_view wanted) {
    if constexpr (std::is_constructible_v<Payload, const T&>) {
        Cache cache = world.cache();
        CHECK(ok(cache.try_set("k", Payload(data))));
        CHECK(world.body("k") == wanted);
        CHECK(cache.get("k")->kind() == Kind::bytes);
    } else {
        FAIL_CHECK("no Payload is made of that");
    }
}

}  // namespace

TEST_CASE("every container of bytes is a payload of bytes", "[interface][payload]") {
    World world;
    stored_as_bytes(world, std::vector<char>{'a', '\0', '\xFF'}, std::string_view("a\0\xFF", 3));
    stored_as_bytes(world, std::vector<unsigned char>{1, 2, 255}, "\x01\x02\xFF");
    stored_as_bytes(world, std::vector<std::byte>{std::byte{1}, std::byte{2}}, "\x01\x02");
    stored_as_bytes(world, std::array<char, 2>{{'a', 'b'}}, "ab");
    stored_as_bytes(world, std::array<unsigned char, 2>{{1, 2}}, "\x01\x02");
    stored_as_bytes(world, std::array<std::byte, 2>{{std::byte{1}, std::byte{2}}}, "\x01\x02");
    stored_as_bytes(world, std::vector<char>{}, "");
    stored_as_bytes(world, std::array<std::byte, 0>{}, "");
}

TEST_CASE("a value that was got is stored again as what it is", "[interface][payload]") {
    World world;
    Cache cache = world.cache();
    cache.set("json", json("[1]"));
    cache.set("bytes", bytes("\x01\x02", 2));
    cache.set("text", "v");
    const auto store_again = [&](const auto& value) {
        if constexpr (std::is_convertible_v<decltype(value), Payload>) {
            CHECK(ok(cache.try_set("copy", Payload(value))));
            CHECK(cache.get("copy")->kind() == value.kind());
            CHECK(world.body("copy") == value.view());
        } else {
            FAIL_CHECK("no Payload is made of a Value");
        }
    };
    for (const char* key : {"json", "bytes", "text"}) store_again(*cache.get(key));
}

// ---- get_or_set -----------------------------------------------------------------------------------------------------

TEST_CASE("a hit that nobody else waits for is handed out without a copy of it", "[interface][compute][memory]") {
    World world;
    Config config = world.config();
    config.checksums = Checksums::none;
    Cache cache = world.cache(config);
    constexpr std::size_t size = std::size_t{192} << 20;
    world.put("k", std::string(size, 'x'), {{"kind", "text"}});
    const auto peak = [] {  // in bytes
        std::ifstream status("/proc/self/status");
        for (std::string line; std::getline(status, line);) {
            if (line.compare(0, 6, "VmHWM:") == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
        }
        return 0ULL;
    };
    const auto forget = [] { std::ofstream("/proc/self/clear_refs") << "5"; };
    forget();
    {
        const Value value = *cache.get("k");
        CHECK(value.view().size() == size);
    }
    const auto plain = peak();
    forget();
    {
        const Value value = cache.get_or_set("k", [] { return "w"; });
        CHECK(value.view().size() == size);
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which keep what was freed
    CHECK(peak() < plain + size / 2);
#else
    static_cast<void>(plain);
#endif
}

TEST_CASE("a store that cannot be reached does not keep the producer from being asked, and that is counted",
          "[interface][compute]") {
    World world;
    Config config = world.config();
    config.attempts_max = 2;
    world.s3.set_listening(false);
    ComputeOptions leased;
    leased.lease = Seconds(30);
    leased.lease_wait = Seconds(1);
    for (const ComputeOptions& how : {ComputeOptions(), leased}) {
        CAPTURE(how.lease.count());
        Cache cache = world.cache(config);
        int computed = 0;
        world.outcomes.clear();
        const auto producer = [&] { return ++computed, "v"; };
        CHECK(ok(cache.try_get_or_set("k", producer, {1h}, how)).view() == "v");
        CHECK(computed == 1);
        const Stats stats = cache.stats();
        CHECK(stats.computed == 1);
        CHECK(stats.errors + stats.tolerated >= 1);
        CHECK_FALSE(world.outcomes.empty());
        CHECK(std::any_of(world.outcomes.begin(), world.outcomes.end(), [](const std::string& outcome) {
            return store::holds(outcome, "error") || store::holds(outcome, "tolerated");
        }));
        const auto fails = [] { return Result<std::string>(Error(Errc::source, "the producer's own")); };
        CHECK(code_of(cache.try_get_or_set("k", fails)) == Errc::source);
        CHECK(code_of(cache.try_get("k")) == Errc::network);  // a get is still told the truth
    }
    world.s3.set_listening(true);
    Cache cache = world.cache(config);
    CHECK(ok(cache.try_get_or_set("k", [] { return "v"; })).view() == "v");
    CHECK(world.body("k") == "v");
}

TEST_CASE("a store that hangs, or a breaker that is open, does not keep the producer from being asked either",
          "[interface][compute]") {
    World world;
    Config config = world.config();
    config.call_timeout = 200ms;
    Cache cache = world.cache(config);
    world.always(fake_s3::stall_at(fake_s3::Point::before_effect));
    CHECK(ok(cache.try_get_or_set("k", [] { return "v"; })).view() == "v");
    world.s3.clear_faults();
    world.s3.end_stalls();
    config.call_timeout = 0ms;
    config.attempts_max = 1;
    config.breaker_failures = 1;
    Cache guarded = world.cache(config);
    world.s3.set_listening(false);
    CHECK(code_of(guarded.try_get("k")) == Errc::network);
    CHECK(code_of(guarded.try_get("k")) == Errc::unavailable);
    CHECK(ok(guarded.try_get_or_set("k", [] { return "v"; })).view() == "v");
}

TEST_CASE("a store that refuses who asks is an error and nothing is computed", "[interface][compute]") {
    World world;
    Config config = world.config();
    store::secrets().push_back("another secret");
    config.credentials = Credentials{world.s3.access_key(), "another secret", {}, {}, "the test"};
    Cache cache = world.cache(config);
    int computed = 0;
    CHECK(code_of(cache.try_get_or_set("k", [&] { return ++computed, "v"; })) == Errc::denied);
    CHECK(computed == 0);
}
