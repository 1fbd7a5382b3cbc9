// Files on either end: names of any length, devices, pipes, links and modes; and files that change while they are read.
#include "world.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <csignal>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using fake_s3::Point;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::text_of;
using store::World;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

mode_t mode_of(const std::string& path) {
    struct stat about {};
    REQUIRE(lstat(path.c_str(), &about) == 0);
    return about.st_mode;
}

// A device like /dev/null (3) or /dev/full (7) in a folder of the test's own: whoever may replace a device could replace the
// machine's. Empty: none can be made here. Who is not root cannot make one, nor replace the machine's.
std::string device(const store::Folder& folder, const char* name, unsigned minor_number) {
    const std::string own = folder / name;
    if (geteuid() != 0) return std::string("/dev/") + name;
    if (mknod(own.c_str(), S_IFCHR | 0666, makedev(1, minor_number)) != 0) return {};
    const int opened = open(own.c_str(), O_WRONLY);  // not where devices are not to be used
    if (opened < 0) return {};
    close(opened);
    return own;
}

// Changes the file when so much of it has been read or sent.
void when_sending(World& world, const std::string& operation, std::function<void()> change) {
    world.once(operation, Phase::before_effect, std::move(change));
}

void append(const std::string& path, std::string_view data) {
    std::ofstream(path, std::ios::binary | std::ios::app).write(data.data(), static_cast<std::streamsize>(data.size()));
}

}  // namespace

// ---- where get_file writes ------------------------------------------------------------------------------------------

TEST_CASE("a file of any name that the system takes is written", "[files]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    world.put("k", "v");
    for (const std::size_t length : {1U, 200U, 230U, 231U, 240U, 254U, 255U}) {
        CAPTURE(length);
        const std::string path = folder / std::string(length, 'n');
        CHECK(ok(cache.try_get_file("k", path)));
        CHECK(store::contents(path) == "v");
        CHECK(ok(cache.try_get_file("k", path)));  // over what is there
        std::filesystem::remove(path);
        CHECK(folder.count() == 0);
    }
    CHECK(code_of(cache.try_get_file("k", folder / std::string(256, 'n'))) == Errc::file);
    CHECK(code_of(cache.try_get_file("k", folder / "no such folder/out")) == Errc::file);
    CHECK(code_of(cache.try_get_file("k", folder / "")) == Errc::file);
    CHECK(folder.count() == 0);
}

TEST_CASE("a device is written to, and stays a device", "[files]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    world.put("k", "v");
    const std::string null = device(folder, "null", 3), full = device(folder, "full", 7);
    if (null.empty() || full.empty()) {
        WARN("no device can be made here");
        return;
    }
    CHECK(ok(cache.try_get_file("k", null)));
    CHECK(S_ISCHR(mode_of(null)));
    CHECK(code_of(cache.try_get_file("k", full)) == Errc::file);
    CHECK(S_ISCHR(mode_of(full)));
    CHECK_FALSE(ok(cache.try_get_file("nothing", null)));
    std::filesystem::create_symlink(null, folder / "link");
    CHECK(ok(cache.try_get_file("k", folder / "link")));
    CHECK(S_ISLNK(mode_of(folder / "link")));
    CHECK(S_ISCHR(mode_of(null)));
}

TEST_CASE("a pipe with a name is written to, and stays a pipe", "[files]") {
    World world;
    Config config = world.config();
    config.on_event = {};
    Cache cache = world.cache(config);
    store::Folder folder;
    const std::string body = store::random_bytes(300000, 1);
    world.put("k", body);
    const std::string path = folder / "pipe";
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);  // so that nobody waits for whom
    REQUIRE(reader >= 0);
    std::atomic<bool> over{false};
    std::string got;
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        std::array<char, 65536> buffer{};
        while (true) {
            const bool last = over;
            const ssize_t count = read(reader, buffer.data(), buffer.size());
            if (count > 0) got.append(buffer.data(), static_cast<std::size_t>(count));
            if (count <= 0 && last) return;
            if (count <= 0) std::this_thread::sleep_for(1ms);
        }
    });
    CHECK(ok(cache.try_get_file("k", path)));
    over = true;
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
    close(reader);
    CHECK(S_ISFIFO(mode_of(path)));
    CHECK(same(got, body));
    CHECK(folder.count() == 1);
}

TEST_CASE("through a link its file is replaced, and the link stays", "[files]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder, elsewhere;
    world.put("k", "new");
    store::write(elsewhere / "file", "old");
    std::filesystem::create_symlink(elsewhere / "file", folder / "link");
    std::filesystem::create_symlink("link", folder / "link to a link");
    for (const char* name : {"link", "link to a link"}) {
        CAPTURE(name);
        store::write(elsewhere / "file", "old");
        CHECK(ok(cache.try_get_file("k", folder / name)));
        CHECK(S_ISLNK(mode_of(folder / name)));
        CHECK(S_ISREG(mode_of(elsewhere / "file")));
        CHECK(store::contents(elsewhere / "file") == "new");
    }
    std::filesystem::create_symlink(elsewhere / "not yet", folder / "dangling");
    CHECK(ok(cache.try_get_file("k", folder / "dangling")));
    CHECK(S_ISLNK(mode_of(folder / "dangling")));
    CHECK(store::contents(elsewhere / "not yet") == "new");
    std::filesystem::create_symlink("circle", folder / "circle");
    CHECK(code_of(cache.try_get_file("k", folder / "circle")) == Errc::file);
    world.s3.add_fault(fake_s3::respond_error(403, "AccessDenied"));
    CHECK(code_of(cache.try_get_file("k", folder / "link")) == Errc::denied);
    CHECK(store::contents(elsewhere / "file") == "new");
    CHECK(elsewhere.count() == 2);
}

TEST_CASE("a file that is replaced keeps its mode, a new one has what the umask leaves", "[files]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    world.put("k", "v");
    for (const mode_t mode : {0600U, 0640U, 0644U, 0755U, 0444U}) {
        CAPTURE(mode);
        const std::string path = folder / ("m" + std::to_string(mode));
        store::write(path, "old");
        REQUIRE(chmod(path.c_str(), mode) == 0);
        CHECK(ok(cache.try_get_file("k", path)));
        CHECK((mode_of(path) & 07777) == mode);
        CHECK(store::contents(path) == "v");
    }
    const mode_t before = umask(027);
    CHECK(ok(cache.try_get_file("k", folder / "new")));
    umask(before);
    CHECK((mode_of(folder / "new") & 0777) == 0640);
}

TEST_CASE("errors told as misses are told so to the end of a get_file, and those of the file are not", "[files]") {
    World world;
    Config config = world.config();
    config.errors_are_misses = true;
    Cache cache = world.cache(config);
    store::Folder folder;
    const std::string body = store::random_bytes(300000, 1);
    world.put("k", body);
    store::write(folder / "out", "old");
    const fake_s3::Fault faults[] = {fake_s3::respond_error(403, "AccessDenied"),
                                     fake_s3::respond_error(500, "InternalError"),
                                     fake_s3::reset_at(Point::answer_head, 10), fake_s3::cut_body(1000)};
    for (std::size_t i = 0; i < std::size(faults); ++i) {
        CAPTURE(i);
        world.always(faults[i], "GetObject");
        const auto got = cache.try_get_file("k", folder / "out");
        REQUIRE(got);
        CHECK_FALSE(*got);
        CHECK(store::contents(folder / "out") == "old");
        world.s3.clear_faults();
    }
    CHECK(cache.stats().tolerated == std::size(faults));
    world.put("damaged", "v", {{"crc32c", store::crc32c("w")}});
    CHECK_FALSE(ok(cache.try_get_file("damaged", folder / "out")));
    CHECK(code_of(cache.try_get_file("k", folder / "no/out")) == Errc::file);
    CHECK(store::contents(folder / "out") == "old");
    CHECK(folder.count() == 1);
}

TEST_CASE("what a progress function throws is no miss, out of get_file as out of get", "[files]") {
    World world;
    Config config = world.config();
    config.errors_are_misses = true;
    Cache cache = world.cache(config);
    store::Folder folder;
    world.put("k", std::string(300000, 'x'));
    store::write(folder / "out", "old");
    GetOptions how;
    how.progress = [](const Progress&) -> bool { throw std::runtime_error("the window is gone"); };
    CHECK(code_of(cache.try_get("k", how)) == Errc::source);
    CHECK(code_of(cache.try_get_file("k", folder / "out", how)) == Errc::source);
    CHECK(cache.stats().tolerated == 0);
    CHECK(folder.count() == 1);
}

TEST_CASE("a get_file that fails leaves what was there and nothing beside it", "[files]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    world.put("k", std::string(300000, 'x'));
    store::write(folder / "out", "old");
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    const auto handler = signal(SIGXFSZ, SIG_IGN);
    const rlimit small{100000, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    const Errc code = code_of(cache.try_get_file("k", folder / "out"));
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    CHECK(code == Errc::file);
    CHECK(store::contents(folder / "out") == "old");
    CHECK(folder.count() == 1);
}

// ---- what set_file reads --------------------------------------------------------------------------------------------

TEST_CASE("a file that changes while it is sent is an error of the source, and nothing is stored", "[files][source]") {
    struct Change {
        const char* name;
        void (*make)(const std::string& path);
    };
    const Change changes[] = {
        {"grows", [](const std::string& path) { append(path, "more"); }},
        {"shrinks", [](const std::string& path) { std::filesystem::resize_file(path, 1000); }},
        {"is emptied", [](const std::string& path) { std::filesystem::resize_file(path, 0); }},
        {"is written again",
         [](const std::string& path) {
             const std::string other = store::random_bytes(std::filesystem::file_size(path), 99);
             std::this_thread::sleep_for(20ms);  // file systems tell times in ticks
             store::write(path, other);
         }},
    };
    for (const Change& change : changes) {
        for (const bool parts : {false, true}) {
            for (const bool compress : {false, true}) {
                CAPTURE(change.name, parts, compress);
                World world;
                Config config = world.config();
                config.connections = 1;
                config.transfer_bytes_max = part;
                Cache cache = world.cache(config);
                store::Folder folder;
                const std::string before = store::random_bytes(parts ? 3 * part : 300000, 1);
                store::write(folder / "in", before);
                world.put("k", "old");
                bool changed = false;
                const auto make = [&] {
                    change.make(folder / "in");
                    changed = true;
                };
                if (parts)
                    when_sending(world, "UploadPart", make);
                else
                    world.s3.add_fault(fake_s3::slow_down().on("PutObject"));
                if (!parts) when_sending(world, "PutObject", make);
                SetOptions options;
                options.compress = compress;
                const auto result = cache.try_set_file("k", folder / "in", options);
                if (!changed) continue;  // too small a body to be caught in the act
                if (parts) CHECK(code_of(result) == Errc::source);
                CHECK(same(text_of(cache.get("k")), result && !parts ? before : "old"));
                CHECK(world.s3.open_uploads().empty());
            }
        }
    }
}

TEST_CASE("a file is stored as it was at one moment, or not at all", "[files][source]") {
    World world;
    Config config = world.config();
    config.on_event = {};
    config.seams.sleep = {};
    config.seams.random = {};
    Cache cache = world.cache(config);
    store::Folder folder;
    const std::string a(2000000, 'a'), b(2000000, 'b');
    store::write(folder / "in", a);
    std::atomic<bool> over{false};
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        for (int i = 0; !over; ++i) {
            store::write(folder / "in", i % 2 ? a : b);
            std::this_thread::sleep_for(3ms);
        }
    });
    for (int round = 0; round < 30; ++round) {
        const auto result = cache.try_set_file("k", folder / "in");
        if (!result) {
            CHECK(result.error().code() == Errc::source);
            continue;
        }
        const std::string body = world.body("k");
        const bool whole = body == a || body == b || body.empty();
        if (!whole && body.size() == a.size()) CHECK(whole);
    }
    over = true;
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
}

TEST_CASE("a file that is replaced by another of its name goes up as it was opened", "[files][source]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    const std::string body = store::random_bytes(2 * part, 1);
    store::write(folder / "in", body);
    when_sending(world, "UploadPart", [&] {
        store::write(folder / "other", "other");
        std::filesystem::rename(folder / "other", folder / "in");
    });
    CHECK(ok(cache.try_set_file("k", folder / "in")));
    CHECK(same(world.body("k"), body));
}

TEST_CASE("what is no plain file is sent as a stream, or refused by name", "[files][source]") {
    World world;
    Config config = world.config();
    config.on_event = {};
    Cache cache = world.cache(config);
    store::Folder folder;
    for (const char* name : {"nothing", ""}) {
        const Errc code = code_of(cache.try_set_file("k", folder / name));
        CHECK((code == Errc::source || code == Errc::file));
    }
    CHECK(ok(cache.try_set_file("empty", "/dev/null")));
    CHECK(world.body("empty").empty());
    const std::string path = folder / "pipe", body = store::random_bytes(200000, 1);
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    store::Crew crew;
    crew.start(1, [&](std::size_t) { store::write(path, body); });
    const auto result = cache.try_set_file("pipe", path);
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
    if (result)
        CHECK(same(world.body("pipe"), body));
    else
        CHECK(result.error().code() == Errc::source);
}
