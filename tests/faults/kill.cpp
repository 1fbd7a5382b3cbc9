// Processes killed in the middle of uploads and downloads: what can be read afterwards is the value before, the new one or
// none, each whole; a file appears whole or not at all; and what the killed left in the store, a sweep clears away.
#include "world.hpp"

#include <csignal>

#include <sys/mman.h>
#include <sys/wait.h>

using namespace s3cache;
using namespace std::chrono_literals;
using store::World;

namespace {

constexpr int kills = 40;
constexpr std::size_t piece = std::size_t{64} << 10;
constexpr std::uint32_t longest_life_us = 25000;  // of a child; most kills then strike in the middle of something
constexpr std::size_t key_count = 3;

// A value that says which one it is, and is known in full from that.
std::string value_of(std::size_t key, std::uint64_t sequence) {
    const std::size_t size = key == 0 ? 3000 : 3 * piece + 100 * static_cast<std::size_t>(sequence % 50);
    return std::to_string(sequence) + "\n" + store::random_bytes(size, sequence * key_count + key);
}
std::optional<std::uint64_t> sequence_of(std::size_t key, std::string_view value) {
    const std::uint64_t sequence = std::strtoull(std::string(value.substr(0, 20)).c_str(), nullptr, 10);
    if (value != value_of(key, sequence)) return std::nullopt;
    return sequence;
}
std::string name_of(std::size_t key) { return "k" + std::to_string(key); }

// What a child tells its parent, in memory that both see.
struct Diary {
    std::atomic<std::uint64_t> begun[key_count], done[key_count];
    std::atomic<bool> failed;
};

class SharedDiary {
public:
    SharedDiary() : where_(mmap(nullptr, sizeof(Diary), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
        REQUIRE(where_ != MAP_FAILED);
        diary_ = new (where_) Diary();
    }
    SharedDiary(const SharedDiary&) = delete;
    SharedDiary& operator=(const SharedDiary&) = delete;
    ~SharedDiary() { munmap(where_, sizeof(Diary)); }
    Diary* operator->() const { return diary_; }
    Diary& operator*() const { return *diary_; }

private:
    void* where_;
    Diary* diary_ = nullptr;
};

Config config_for(World& world) {
    Config config;
    config.endpoint = world.s3.endpoint();
    config.region = "us-east-1";
    config.credentials = Credentials{world.s3.access_key(), world.s3.secret_key(), {}, {}, "the tests"};
    config.part_bytes = piece;
    config.connections = 3;
    config.seams.environment = [](const char*) { return std::optional<std::string>(); };
    return config;
}

// Writes and reads until it is killed: one PUT, parts from memory, parts from a stream with gzip; then into a file.
[[noreturn]] void live(World& world, Diary& diary, const std::string& file) {
    Cache cache("bucket", config_for(world));
    for (int i = 0; i < 100000; ++i) {
        const std::size_t key = static_cast<std::size_t>(i) % key_count;
        const std::uint64_t sequence = ++diary.begun[key];
        const std::string value = value_of(key, sequence);
        const auto stored = key == 2 ? cache.try_set(name_of(key), std::istringstream(value), {1h, true})
                                     : cache.try_set(name_of(key), bytes(value.data(), value.size()));
        const auto got = cache.try_get_file(name_of(key), file + std::to_string(key));
        diary.failed = diary.failed || !stored || !*stored || !got || !*got;
        diary.done[key] = sequence;
    }
    _exit(0);
}

void kill_one(World& world, Diary& diary, const std::string& file, std::chrono::microseconds life) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) live(world, diary, file);
    std::this_thread::sleep_for(life);
    REQUIRE(kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    while (world.s3.open_connection_count() > 0) std::this_thread::sleep_for(200us);  // what was sent is still done
}

// The sequence that lies there now, or 0 for nothing.
std::uint64_t check_value(Cache& cache, std::size_t key, const Diary& diary) {
    const auto hit = cache.get(name_of(key));
    if (!hit) {
        CHECK(diary.done[key] == 0);
        return 0;
    }
    const auto sequence = sequence_of(key, hit->view());
    REQUIRE(sequence);
    CHECK(*sequence >= diary.done[key]);
    CHECK(*sequence <= diary.begun[key]);
    return *sequence;
}

void check_file(const std::string& path, std::size_t key) {
    if (!std::filesystem::exists(path)) return;
    CAPTURE(path);
    CHECK(sequence_of(key, store::contents(path)));
}

}  // namespace

TEST_CASE("a process killed in the middle of its work leaves nothing wrong to read", "[kill]") {
    const std::string given = store::environment("S3CACHE_MODEL_SEED");
    const std::uint64_t seed = given.empty() ? std::random_device()() : std::stoull(given);
    std::mt19937_64 engine(seed);
    fake_s3::Options options;
    options.part_bytes_min = 1;
    options.answer_delay = 1ms;
    World world(options);
    store::Folder folder;
    SharedDiary diary;
    std::size_t left = 0, old_values = 0;
    for (int i = 0; i < kills; ++i) {
        INFO("kill " << i << " of seed " << seed);
        kill_one(world, *diary, folder / "file", std::chrono::microseconds(engine() % longest_life_us));
        Cache cache("bucket", config_for(world));
        for (std::size_t key = 0; key < key_count; ++key) {
            const std::uint64_t there = check_value(cache, key, *diary);
            old_values += there < diary->begun[key];
            diary->done[key] = there;  // the next child goes on from what is there
            check_file(folder / ("file" + std::to_string(key)), key);
        }
        left = world.s3.open_uploads().size();
    }
    CHECK_FALSE(diary->failed);
    Cache cache("bucket", config_for(world));
    CHECK(cache.sweep_uploads("", 1h) == 0);  // younger ones may still be in use
    CHECK(world.s3.open_uploads().size() == left);
    CHECK(cache.sweep_uploads("", -1h) == left);
    CHECK(world.s3.open_uploads().empty());
    std::printf(
        "killed: %d processes, seed %llu: %zu uploads left and swept, %zu times the value before, %zu unfinished files "
        "beside the targets\n",
        kills, static_cast<unsigned long long>(seed), left, old_values, folder.count());
    CHECK(diary->begun[0] > 1);
}
