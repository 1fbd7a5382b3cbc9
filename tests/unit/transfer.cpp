// Section transfer: the same results with one connection and with many, up and down; what goes wrong in between; many threads at once.
#include "world.hpp"

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <filesystem>  // readdir gives up where an inode has more bits than a 32-bit program expects
#include <mutex>
#include <thread>

#include <sys/resource.h>
#include <unistd.h>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{64} << 10;
// Far below the rate at which a download is left to one connection, whatever the machine.
constexpr std::uint64_t slow_bytes_per_second = 4000000;

// Parts of 64 KiB, so that small objects have many; a slow line where ranges are wanted.
fake_s3::Options line(bool slow) {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    if (slow) options.connection_bytes_per_second = slow_bytes_per_second;
    return options;
}

Config parted(World& world, unsigned connections) {
    Config config = world.config();
    config.part_bytes = part;
    config.connections = connections;
    return config;
}

// A file that is gone with the test.
struct TempFile {
    std::string folder = make_folder(), path = folder + "/file";
    ~TempFile() {
        for (const auto& name : names()) static_cast<void>(std::remove((folder + "/" + name).c_str()));
        static_cast<void>(rmdir(folder.c_str()));
    }
    TempFile() = default;
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    std::vector<std::string> names() const {
        std::vector<std::string> out;
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            out.push_back(entry.path().filename().string());
        return out;
    }
    static std::string make_folder() {
        std::string name = "/tmp/s3cache-parallel-XXXXXX";
        if (!mkdtemp(&name[0])) throw std::runtime_error("no temporary folder");
        return name;
    }
};

struct SourceBroke : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// `data` in pieces of at most `step`, then what `then` does.
Source pieces(std::string_view data, std::size_t step, std::function<std::size_t(char*)> then = {}) {
    return [data, step, then](char* buffer, std::size_t capacity) mutable -> std::size_t {
        if (data.empty() && then) return then(buffer);
        const std::size_t count = data.copy(buffer, (std::min)(capacity, step));
        data.remove_prefix(count);
        return count;
    };
}

const std::vector<std::size_t> boundaries{0,
                                          1,
                                          part - 1,
                                          part,
                                          part + 1,
                                          2 * part - 1,
                                          2 * part,
                                          2 * part + 1,
                                          3 * part - 1,
                                          3 * part,
                                          3 * part + 1,
                                          9 * part + 5};

std::size_t ranged(const fake_s3::FakeS3& s3) {
    std::size_t count = 0;
    for (const auto& request : s3.requests()) count += request.header("range") ? 1U : 0U;
    return count;
}

void check_tidy(World& world) {
    CHECK(world.s3.open_uploads().empty());
    CHECK(world.s3.stalled() == 0);
}

}  // namespace

// ---- the same with one connection and with many ---------------------------------------------------------------------

TEST_CASE("uploads of any size around a part's arrive whole, over one connection and over many", "[parallel]") {
    for (const unsigned connections : {1U, 2U, 8U}) {
        World world(line(false));
        Cache cache = world.cache(parted(world, connections));
        for (const std::size_t size : boundaries) {
            CAPTURE(connections, size);
            const std::string data = store::random_bytes(size, size + 1);
            CHECK(cache.set("memory", bytes(data.data(), data.size())));
            CHECK(same(world.body("memory"), data));
            CHECK(cache.set("stream", pieces(data, 10007)));
            CHECK(same(world.body("stream"), data));
            CHECK(cache.set("announced", pieces(data, 65537).sized(size)));
            CHECK(same(world.body("announced"), data));
            TempFile file;
            store::write(file.path, data);
            CHECK(cache.set_file("file", file.path));
            CHECK(same(world.body("file"), data));
            CHECK(cache.set("gzip", pieces(data, 4099), {{}, true}));
            CHECK(same(text_of(cache.get("gzip")), data));
        }
        check_tidy(world);
    }
}

TEST_CASE("an upload whose first two lanes are slow is helped by others", "[parallel]") {
    World world(line(false));
    // From the second on no part is taken before three have come, which two connections never bring.
    std::mutex lock;
    std::condition_variable changed;
    int waiting = 0;
    bool helped = false;
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        const bool is_first = request.target.find("partNumber=1&") != std::string::npos;
        if (request.operation != "UploadPart" || phase != fake_s3::Phase::before_effect || is_first) return;
        std::unique_lock<std::mutex> hold(lock);
        helped |= ++waiting == 3;
        changed.notify_all();
        changed.wait_for(hold, std::chrono::seconds(20), [&] { return helped; });
    });
    Cache cache = world.cache(parted(world, 4));
    const std::string data = store::random_bytes(6 * part, 6);
    CHECK(cache.set("k", pieces(data, part)));
    CHECK(helped);
    CHECK(same(world.body("k"), data));
    check_tidy(world);
}

TEST_CASE("downloads of any size around a part's are whole, over one connection and over many", "[parallel][ranges]") {
    for (const unsigned connections : {1U, 2U, 8U}) {
        World world(line(true));
        Cache cache = world.cache(parted(world, connections));
        for (const std::size_t size : boundaries) {
            CAPTURE(connections, size);
            const std::string data = store::random_bytes(size, size + 2);
            world.put("k", data);
            CHECK(same(text_of(cache.get("k")), data));
            CHECK(same(store::drained(*cache.get_stream("k")), data));
            TempFile file;
            REQUIRE(cache.get_file("k", file.path));
            CHECK(same(store::contents(file.path), data));
            CHECK(file.names().size() == 1);
        }
        CHECK((ranged(world.s3) > 0) == (connections > 1));
        for (const auto& request : world.s3.requests()) {
            if (request.header("range")) CHECK(request.header("if-match"));
        }
    }
}

TEST_CASE("gzip in ranges is inflated as in one piece", "[parallel][ranges][gzip]") {
    World world(line(true));
    Cache cache = world.cache(parted(world, 4));
    const std::string data = store::random_bytes(6 * part + 3, 4);  // that gzip makes no smaller
    world.put("k", store::gzip(data), {{"compressed", "true"}});
    // One that stands still finds so much waiting that it takes the line for a fast one: again, then.
    for (int i = 0; i < 5 && ranged(world.s3) == 0; ++i) CHECK(same(text_of(cache.get("k")), data));
    CHECK(ranged(world.s3) > 0);
    CHECK(same(store::drained(*cache.get_stream("k")), data));
}

TEST_CASE("no more connections than configured help a download, nor more parts than fit the memory bound",
          "[parallel][ranges]") {
    World world(line(true));
    Config config = parted(world, 6);
    config.transfer_bytes_max = 3 * part;
    std::atomic<int> now{0}, most{0};
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (!request.header("range")) return;
        now += phase == fake_s3::Phase::before_effect ? 1 : -1;
        if (now > most) most = now.load();
    });
    Cache cache = world.cache(config);
    const std::string data = store::random_bytes(20 * part, 5);
    world.put("k", data);
    CHECK(same(text_of(cache.get("k")), data));
    CHECK(world.s3.connection_count() <= 1 + 3);  // the first is given up at the end of its part
    CHECK(most <= 3);
}

TEST_CASE("a fast download keeps to its one connection", "[parallel][ranges]") {
    World world(line(false));
    Config config = world.config();
    config.part_bytes = std::size_t{1} << 20;
    Cache cache = world.cache(config);
    world.put("k", std::string(2 * config.part_bytes - 1, 'x'));  // too short to be worth others at any speed
    CHECK(cache.get("k"));
    CHECK(world.s3.request_count() == 1);
    CHECK(world.s3.connection_count() == 1);
}

TEST_CASE("many keys at once share the connections of the call, however large their values", "[parallel][ranges]") {
    World world(line(true));
    Cache cache = world.cache(parted(world, 3));
    std::vector<std::string> keys, data;
    for (std::size_t i = 0; i < 7; ++i) {
        keys.push_back("k" + std::to_string(i));
        data.push_back(store::random_bytes(i * part / 2, i));
        world.put(keys.back(), data.back());
    }
    std::size_t right = 0;
    cache.get_many(keys, [&](const std::string& key, Result<std::optional<Value>> hit) {
        right += hit && *hit && same((*hit)->view(), data[static_cast<std::size_t>(key[1] - '0')]) ? 1U : 0U;
    });
    CHECK(right == keys.size());
    CHECK(ranged(world.s3) == 0);
    CHECK(world.s3.connection_count() <= 3);
}

// ---- sources that misbehave -----------------------------------------------------------------------------------------

TEST_CASE("a source that gives a byte at a time is a source like any other", "[parallel][source]") {
    World world(line(false));
    Config config = parted(world, 4);
    config.part_bytes = 1000;
    Cache cache = world.cache(config);
    const std::string data = store::random_bytes(12345, 6);
    CHECK(cache.set("k", pieces(data, 1)));
    CHECK(same(world.body("k"), data));
    CHECK(cache.set("gzip", pieces(data, 1), {{}, true}));
    CHECK(same(text_of(cache.get("gzip")), data));
}

TEST_CASE("a source that lies about its length leaves nothing behind", "[parallel][source]") {
    for (const std::size_t actual : {std::size_t{0}, part, 3 * part - 1, 3 * part + 1, 5 * part}) {
        for (const bool compress : {false, true}) {
            CAPTURE(actual, compress);
            World world(line(false));
            Cache cache = world.cache(parted(world, 4));
            world.put("k", "old");
            const std::string data = store::random_bytes(actual, 7);
            CHECK(code_of(cache.try_set("k", pieces(data, 7777).sized(3 * part), {{}, compress})) == Errc::source);
            CHECK(world.body("k") == "old");
            check_tidy(world);
        }
    }
}

TEST_CASE("a source that throws or fails midway leaves nothing behind", "[parallel][source]") {
    for (const std::size_t good : {std::size_t{0}, part / 2, 2 * part, 3 * part + 1}) {
        for (const bool compress : {false, true}) {
            CAPTURE(good, compress);
            World world(line(false));
            Cache cache = world.cache(parted(world, 4));
            world.put("k", "old");
            const std::string data = store::random_bytes(good, 8);
            const auto throws = [](char*) -> std::size_t { throw SourceBroke("no more"); };
            CHECK_THROWS_AS(cache.set("k", pieces(data, 9999, throws), {{}, compress}), SourceBroke);
            const auto fails = [](char*) { return source_failed; };
            CHECK(code_of(cache.try_set("k", pieces(data, 9999, fails), {{}, compress})) == Errc::source);
            CHECK(world.body("k") == "old");
            check_tidy(world);
        }
    }
}

// ---- what goes wrong between two parts ------------------------------------------------------------------------------

TEST_CASE("a part that is refused fails the upload, whichever it is, over one connection and over many",
          "[parallel][faults]") {
    for (const unsigned connections : {1U, 2U, 4U}) {
        for (std::size_t number = 1; number <= 4; ++number) {
            CAPTURE(connections, number);
            World world(line(false));
            world.s3.add_fault(
                fake_s3::respond_error(403, "AccessDenied").with_query("partNumber=" + std::to_string(number)));
            Cache cache = world.cache(parted(world, connections));
            CHECK(code_of(cache.try_set("k", store::random_bytes(3 * part + 1, 1))) == Errc::denied);
            CHECK(!world.has("k"));
            CHECK(world.s3.open_uploads().empty());
        }
    }
}

TEST_CASE("one part that fails is sent again, and it alone", "[parallel][faults]") {
    using fake_s3::Point;
    const std::string data = store::random_bytes(8 * part, 9);
    for (const auto& fault :
         {fake_s3::slow_down(), fake_s3::reset_at(Point::request_body, 1000), fake_s3::lost_answer()}) {
        World world(line(false));
        Cache cache = world.cache(parted(world, 4));
        world.s3.add_fault(fault.on("UploadPart").with_query("partNumber=5&"));
        CHECK(cache.set("k", pieces(data, 10000)));
        CHECK(same(world.body("k"), data));
        CHECK(world.s3.request_count("UploadPart") <= 9);
        check_tidy(world);
    }
}

TEST_CASE("an object replaced while it is read in ranges is never mixed", "[parallel][ranges]") {
    const std::string older(9 * part, 'o'), newer(9 * part, 'n');
    for (std::size_t when = 1; when <= 8; ++when) {
        CAPTURE(when);
        World world(line(true));
        Cache cache = world.cache(parted(world, 3));
        world.put("k", older);
        std::atomic<std::size_t> gets{0};
        world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation == "GetObject" && phase == fake_s3::Phase::before_effect && ++gets == when)
                world.put("k", newer);
        });
        const auto hit = cache.try_get("k");  // read again, where it was replaced under our hands
        REQUIRE(hit);
        CHECK((same((*hit)->view(), older) || same((*hit)->view(), newer)));
        world.put("k", older);
        gets = 0;
        auto reader = cache.get_stream("k");
        std::string read;
        std::optional<Errc> trouble;
        while (!trouble) {
            const auto chunk = reader->try_next();
            if (!chunk)
                trouble = code_of(chunk);
            else if (chunk->empty())
                break;
            else
                read += *chunk;
        }
        if (trouble)
            CHECK(*trouble == Errc::changed);
        else
            CHECK((same(read, older) || same(read, newer)));
        CHECK(read.find(read.empty() || read[0] == 'o' ? 'n' : 'o') == std::string::npos);
        TempFile file;
        store::write(file.path, "before");
        world.put("k", older);
        gets = 0;
        const auto got = cache.try_get_file("k", file.path);
        const std::string now = store::contents(file.path);
        if (got)
            CHECK((same(now, older) || same(now, newer)));
        else
            CHECK(now == "before");
        CHECK(file.names().size() == 1);
    }
}

TEST_CASE("a store that ignores ranges, or answers another, never gives wrong bytes", "[parallel][ranges]") {
    const std::string data = store::random_bytes(9 * part + 1, 10);
    for (const bool ignores : {true, false}) {
        CAPTURE(ignores);
        fake_s3::Options options = line(true);
        options.quirks.ignore_range = ignores;
        World world(options);
        Cache cache = world.cache(parted(world, 4));
        world.put("k", data);
        if (!ignores)
            world.s3.add_fault(fake_s3::other_range(1).on("GetObject").nth_time(2).for_times(fake_s3::forever));
        const auto hit = cache.try_get("k");
        if (hit)
            CHECK(same((*hit)->view(), data));
        else
            CHECK(code_of(hit) == Errc::protocol);
        CHECK(hit.has_value() == ignores);
        TempFile file;
        const auto got = cache.try_get_file("k", file.path);
        CHECK(got.has_value() == ignores);
        if (ignores) CHECK(same(store::contents(file.path), data));
        CHECK(file.names().size() == (ignores ? 1U : 0U));
    }
}

// ---- cancelled --------------------------------------------------------------------------------------------------------

TEST_CASE("an upload cancelled at any request leaves no upload and no entry", "[parallel][cancel]") {
    const std::string data = store::random_bytes(6 * part, 11);
    for (std::size_t when = 1; when <= 8; ++when) {
        CAPTURE(when);
        World world(line(true));  // slow enough for the callback to be asked in between
        Cache cache = world.cache(parted(world, 3));
        std::atomic<std::size_t> seen{0};
        std::atomic<bool> completes{false};
        world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (phase != fake_s3::Phase::before_effect) return;
            ++seen;
            if (request.operation == "CompleteMultipartUpload") completes = true;
        });
        SetOptions options;
        options.progress = [&](const Progress&) { return seen < when; };
        const auto stored = cache.try_set("k", pieces(data, 10000), options);
        if (!stored) CHECK(code_of(stored) == Errc::cancelled);
        if (stored) CHECK(world.has("k"));     // it was over before it was asked
        if (world.has("k")) CHECK(completes);  // which on a slow machine is cut off under way, and has an effect still
        if (world.has("k")) CHECK(same(world.body("k"), data));
        CHECK(world.s3.open_uploads().empty());
    }
}

TEST_CASE("a reader left at any moment leaves nothing that a next call would meet", "[parallel][ranges][cancel]") {
    World world(line(true));
    Cache cache = world.cache(parted(world, 3));
    const std::string data = store::random_bytes(9 * part, 12);
    world.put("k", data);
    for (std::size_t chunks = 0; chunks < 6; ++chunks) {
        auto reader = cache.get_stream("k");
        std::string read;
        for (std::size_t i = 0; i < chunks; ++i) read += *reader->try_next();
        CHECK(same(read, std::string_view(data).substr(0, read.size())));
    }
    CHECK(same(text_of(cache.get("k")), data));
}

// ---- files ------------------------------------------------------------------------------------------------------------

TEST_CASE("a disk that fills leaves the old file as it was", "[parallel][file]") {
    World world(line(false));
    Cache cache = world.cache(parted(world, 4));
    world.put("k", store::random_bytes(9 * part, 13));
    TempFile file;
    store::write(file.path, "before");
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    for (const std::size_t room : {std::size_t{0}, std::size_t{1}, part, 9 * part - 1}) {
        CAPTURE(room);
        // A file that may not grow further fails as on a full disk: the write comes back short.
        const auto handler = std::signal(SIGXFSZ, SIG_IGN);
        rlimit small = before;
        small.rlim_cur = room;
        setrlimit(RLIMIT_FSIZE, &small);
        const auto got = cache.try_get_file("k", file.path);
        setrlimit(RLIMIT_FSIZE, &before);
        std::signal(SIGXFSZ, handler);
        CHECK(code_of(got) == Errc::file);
        CHECK(store::contents(file.path) == "before");
        CHECK(file.names().size() == 1);
    }
    REQUIRE(cache.get_file("k", file.path));
    CHECK(same(store::contents(file.path), world.body("k")));
}

// ---- threads ----------------------------------------------------------------------------------------------------------

TEST_CASE("sixteen threads do everything on one cache", "[parallel][threads]") {
    World world(line(false));
    Config config = parted(world, 4);
    config.on_event = {};
    config.seams = {};
    config.seams.environment = [](const char*) { return std::optional<std::string>(); };
    Cache cache = world.cache(config);
    const std::string shared = store::random_bytes(5 * part, 14);
    world.put("shared", shared);
    store::Crew crew;
    crew.start(16, [&](std::size_t thread) {
        const std::string own = "own" + std::to_string(thread);
        for (std::size_t round = 0; round < 3; ++round) {
            const std::string data = store::random_bytes(thread * part / 4 + round, thread);
            store::expect(cache.set(own, bytes(data.data(), data.size())), "set");
            store::expect(text_of(cache.get(own)) == data, "get");
            store::expect(cache.set(own, pieces(data, 5000), {{}, thread % 2 == 0}), "set of a stream");
            store::expect(store::drained(*cache.get_stream(own)) == data, "get_stream");
            store::expect(text_of(cache.get("shared")) == shared, "get of what all read");
            store::expect(cache.contains(own), "contains");
            cache.remove(own);
            store::expect(!cache.get(own), "a miss");
        }
    });
    CHECK(crew.join() == std::vector<std::string>());
    check_tidy(world);
}

TEST_CASE("many keys from several threads at once", "[parallel][threads]") {
    World world(line(false));
    Config config = parted(world, 4);
    config.on_event = {};
    Cache cache = world.cache(config);
    store::Crew crew;
    crew.start(4, [&](std::size_t thread) {
        std::vector<std::string> keys, data;
        for (std::size_t i = 0; i < 50; ++i) {
            keys.push_back(std::to_string(thread) + "/" + std::to_string(i));
            data.push_back(store::random_bytes(i * 97, thread * 100 + i));
        }
        std::vector<Item> items;
        for (std::size_t i = 0; i < keys.size(); ++i) items.push_back({keys[i], bytes(data[i].data(), data[i].size())});
        for (const auto& stored : cache.set_many(items)) store::expect(stored.has_value() && *stored, "set_many");
        std::size_t right = 0;
        cache.get_many(keys, [&](const std::string& key, Result<std::optional<Value>> hit) {
            const auto i = static_cast<std::size_t>(std::stoul(key.substr(2)));
            right += hit && *hit && (*hit)->view() == data[i] ? 1U : 0U;
        });
        store::expect(right == keys.size(), "get_many");
    });
    CHECK(crew.join() == std::vector<std::string>());
    CHECK(world.s3.object_count("bucket") == 200);
}
