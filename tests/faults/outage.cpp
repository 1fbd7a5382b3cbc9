// A real store that is stopped, killed, frozen and given an untrusted certificate in the middle of work. Not among the tests
// that run by themselves: `unit '[outage]'` with the variables of a store (see store.hpp) and
//   S3CACHE_TEST_CONTROL   a command that is called with `gateway-stop`, `-kill`, `-freeze`, `-thaw`, `-start`, `-untrusted`
#include "store.hpp"

#include <array>
#include <condition_variable>

using namespace s3cache;
using namespace std::chrono_literals;
using store::expect;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;
constexpr auto call_timeout = 2000ms;
constexpr auto overrun_max = 1000ms;
constexpr auto patience = 120s;  // for what must come: not what is measured

void control(const std::string& what) {
    const std::string command = store::environment("S3CACHE_TEST_CONTROL") + " gateway-" + what + " >&2";
    expect(std::system(command.c_str()) == 0, command);
}

struct Place {
    std::string endpoint, ca;
};

std::vector<Place> places() {
    std::vector<Place> out;
    const std::string plain = store::environment("S3CACHE_TEST_ENDPOINT"),
                      tls = store::environment("S3CACHE_TEST_TLS_ENDPOINT");
    if (!plain.empty()) out.push_back({plain, ""});
    if (!tls.empty()) out.push_back({tls, store::environment("S3CACHE_TEST_CA")});
    REQUIRE_FALSE(out.empty());
    REQUIRE_FALSE(store::environment("S3CACHE_TEST_CONTROL").empty());
    store::secrets().push_back(store::environment("AWS_SECRET_ACCESS_KEY"));
    return out;
}

Cache cache_at(const Place& place, bool hurried = true) {
    Config config;
    config.endpoint = place.endpoint;
    config.region = "us-east-1";
    config.ca_bundle = place.ca;
    config.credentials = Credentials{
        store::environment("AWS_ACCESS_KEY_ID"), store::environment("AWS_SECRET_ACCESS_KEY"), {}, {}, "the tests"};
    config.part_bytes = part;
    if (hurried) config.call_timeout = call_timeout;
    config.stall_timeout = 2000ms;
    config.seams.environment = [](const char*) { return std::optional<std::string>(); };
    static const std::string prefix = "outage-" + store::Store::tag();
    return Cache("s3://" + store::environment("S3CACHE_TEST_BUCKET") + "/" + prefix, config);
}

// "key sequence\n" and bytes that follow from both.
std::string value_of(const std::string& key, std::uint64_t sequence, std::size_t size) {
    return key + " " + std::to_string(sequence) + " " + std::to_string(size) + "\n" +
           store::random_bytes(size, sequence * 31 + static_cast<unsigned char>(key.back()));
}

std::uint64_t sequence_of(const std::string& key, std::string_view value) {
    std::istringstream head{std::string(value.substr(0, value.find('\n')))};
    std::string name;
    std::uint64_t sequence = 0, size = 0;
    expect(head >> name >> sequence >> size && name == key &&
               value == value_of(key, sequence, static_cast<std::size_t>(size)),
           "a value that nobody wrote");
    return sequence;
}

// How long this process has stood still, on a machine that has no time for it: no call can do better.
class Standstill {
public:
    ~Standstill() {
        over_ = true;
        ticker_.join();
    }
    std::chrono::nanoseconds so_far() {
        const std::lock_guard<std::mutex> hold(lock_);
        return stood_ + gap();
    }

private:
    std::chrono::nanoseconds gap() const {
        const std::chrono::nanoseconds since = std::chrono::steady_clock::now() - ticked_;
        return since < 50ms ? 0ns : since;
    }
    void tick() {
        const std::lock_guard<std::mutex> hold(lock_);
        stood_ += gap();
        ticked_ = std::chrono::steady_clock::now();
    }

    std::mutex lock_;
    std::chrono::nanoseconds stood_{0};
    std::chrono::steady_clock::time_point ticked_ = std::chrono::steady_clock::now();
    std::atomic<bool> over_{false};
    std::thread ticker_{[this] {
        for (; !over_; std::this_thread::sleep_for(10ms)) tick();
    }};
};

// Threads at work on keys of their own, while the store has trouble.
class Workers {
public:
    static constexpr std::size_t count = 3;

    explicit Workers(Cache& cache) : cache_(cache) {
        crew_.start(count, [this](std::size_t i) { work(i); });
    }
    ~Workers() { over_ = true; }

    // Until each thread has seen so many more calls of that outcome.
    void wait_for(bool success, std::size_t calls) {
        std::unique_lock<std::mutex> hold(lock_);
        std::array<std::size_t, count> wanted{};
        for (std::size_t i = 0; i < count; ++i) wanted[i] = seen_[i][success] + calls;
        const bool came = changed_.wait_for(hold, patience, [&] {
            for (std::size_t i = 0; i < count; ++i) {
                if (!ended_ && seen_[i][success] < wanted[i]) return false;
            }
            return true;
        });
        expect(came, success ? "no call works" : "no call fails");
    }
    std::vector<std::string> finish() {
        over_ = true;
        return crew_.join();
    }
    std::size_t calls() const {
        return seen_[0][1] + seen_[1][1] + seen_[2][1] + seen_[0][0] + seen_[1][0] + seen_[2][0];
    }
    std::size_t errors() const { return seen_[0][0] + seen_[1][0] + seen_[2][0]; }
    std::chrono::milliseconds longest() const { return longest_; }

private:
    template <class Call>
    auto timed(std::size_t i, Call&& call) {
        const auto stood = standstill_.so_far();
        const auto began = std::chrono::steady_clock::now();
        auto result = call();
        const auto ended = std::chrono::steady_clock::now();
        const auto took =
            std::chrono::duration_cast<std::chrono::milliseconds>(ended - began - (standstill_.so_far() - stood));
        if (!result) {
            const Errc code = result.error().code();
            broken_ = true;
            expect(code == Errc::network || code == Errc::timed_out || code == Errc::tls || code == Errc::throttled ||
                       code == Errc::store,
                   result.error().what());
            expect(!store::holds(result.error().what(), store::environment("AWS_SECRET_ACCESS_KEY")),
                   "a secret in an error");
        }
        const std::lock_guard<std::mutex> hold(lock_);
        longest_ = (std::max)(longest_, took);
        ++seen_[i][result.has_value()];
        changed_.notify_all();
        return result;
    }

    void work(std::size_t i) {
        struct End {
            Workers& all;
            ~End() {
                const std::lock_guard<std::mutex> hold(all.lock_);
                all.ended_ = true;
                all.changed_.notify_all();
            }
        } end{*this};
        const std::string key = keys_ + std::to_string(i);
        std::uint64_t sequence = 0, surely = 0;
        while (!over_) {
            ++sequence;
            const std::string value = value_of(key, sequence, sequence % 4 ? 50000 : 2 * part / 3);
            if (timed(i, [&] { return cache_.try_set(key, bytes(value.data(), value.size())); }))
                surely = broken_ ? surely : sequence;
            const auto hit = timed(i, [&] { return cache_.try_get(key); });
            if (!hit) continue;
            expect(hit->has_value(), "a miss although there is a value");
            const std::uint64_t there = sequence_of(key, (*hit)->view());
            // A write that was given up may still be done later, also after one that followed it.
            expect(there >= surely && there <= sequence, "a value older than what was stored for sure");
        }
    }

    Cache& cache_;
    const std::string keys_ = store::Store::tag() + "-k";  // of an earlier outage a write may still be done
    Standstill standstill_;
    std::atomic<bool> over_{false}, broken_{false};
    std::mutex lock_;
    std::condition_variable changed_;
    std::array<std::array<std::size_t, 2>, count> seen_{};  // errors and successes
    std::chrono::milliseconds longest_{0};
    bool ended_ = false;
    store::Crew crew_;  // last, so that it is joined first
};

void check_trouble(const Place& place, const std::string& trouble, const std::string& repair) {
    Cache cache = cache_at(place);
    Workers workers(cache);
    workers.wait_for(true, 4);
    control(trouble);
    workers.wait_for(false, 2);
    control(repair);
    workers.wait_for(true, 4);
    for (const std::string& problem : workers.finish()) FAIL_CHECK(problem);
    CHECK(workers.longest() <= call_timeout + overrun_max);
    std::printf("%s, %s: %zu calls, %zu errors, the longest call %d ms of %d\n", place.ca.empty() ? "http" : "TLS",
                trouble.c_str(), workers.calls(), workers.errors(), static_cast<int>(workers.longest().count()),
                static_cast<int>(call_timeout.count()));
}

// Whatever becomes of a test, the next one finds a store.
struct Repaired {
    ~Repaired() {
        std::system((store::environment("S3CACHE_TEST_CONTROL") + " gateway-thaw >&2; " +
                     store::environment("S3CACHE_TEST_CONTROL") + " gateway-start >&2")
                        .c_str());
    }
};

}  // namespace

TEST_CASE("the store is stopped, killed, frozen in the middle of work, and comes back", "[.][outage]") {
    for (const Place& place : places()) {
        Repaired afterwards;
        check_trouble(place, "stop", "start");
        check_trouble(place, "kill", "start");
        check_trouble(place, "freeze", "thaw");
    }
}

TEST_CASE("a download goes on after the store was killed and came back", "[.][outage]") {
    for (const Place& place : places()) {
        Repaired afterwards;
        Cache cache = cache_at(place, false);
        const std::string data = value_of("d0", 1, 4 * part);
        cache.set("d0", bytes(data.data(), data.size()));
        auto reader = cache.get_stream("d0");
        REQUIRE(reader);
        std::string read(1 << 20, '\0');
        std::size_t have = 0;
        while (have < read.size()) have += reader->read(&read[have], read.size() - have);
        control("kill");
        control("start");
        read += store::drained(*reader);
        CHECK(store::same(read, data));
    }
}

TEST_CASE("an upload goes on after the store was killed and came back, or leaves the old value", "[.][outage]") {
    for (const Place& place : places()) {
        Repaired afterwards;
        Cache cache = cache_at(place, false);
        cache.set("u0", "old");
        const std::string data = value_of("u0", 2, 4 * part);
        std::size_t at = 0;
        bool killed = false;
        const auto source = [&](char* buffer, std::size_t capacity) {
            if (at > 2 * part && !killed) control("kill"), control("start"), killed = true;
            const std::size_t count = data.copy(buffer, capacity, at);
            at += count;
            return count;
        };
        const auto stored = cache.try_set("u0", source);
        CHECK(killed);
        const auto hit = cache.get("u0");
        REQUIRE(hit);
        if (stored)
            CHECK(store::same(hit->view(), data));
        else
            CHECK(((hit->view() == "old") || store::same(hit->view(), data)));
        CHECK(cache.stats().leftover_uploads == 0);
        if (stored) CHECK(cache.sweep_uploads("", -1h) == 0);
    }
}

TEST_CASE("a certificate that nobody vouches for ends the work, and nothing is taken from behind it", "[.][outage]") {
    for (const Place& place : places()) {
        if (place.ca.empty()) continue;
        Repaired afterwards;
        Cache cache = cache_at(place, false);
        const std::string data = value_of("c0", 3, 3 * part);
        cache.set("c0", bytes(data.data(), data.size()));
        auto reader = cache.get_stream("c0");
        REQUIRE(reader);
        char byte = 0;
        CHECK(reader->read(&byte, 1) == 1);
        control("untrusted");
        CHECK(store::code_of(cache.try_get("c0")) == Errc::tls);
        CHECK(store::code_of(cache.try_set("c0", "new")) == Errc::tls);
        CHECK(store::code_of(cache.try_set("c0", bytes(data.data(), data.size()))) == Errc::tls);
        CHECK(store::code_of(cache.try_remove("c0")) == Errc::tls);
        Result<std::string_view> chunk = reader->try_next();
        while (chunk && !chunk->empty()) chunk = reader->try_next();
        CHECK(store::code_of(chunk) == Errc::tls);  // what was on its way may still come, the end may not
        control("start");
        CHECK(store::same(store::text_of(cache.get("c0")), data));
        CHECK(cache.clear("") >= 1);
    }
}
