// Section gzip.
#include "s3cache.hpp"

#include "catch.hpp"
#include "gzip_tools.hpp"
#include "vectors.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GZIP_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define GZIP_TEST_SANITIZED 1
#endif
#endif
#if defined(__linux__) && !defined(GZIP_TEST_SANITIZED)
#define GZIP_TEST_WITHOUT_MEMORY 1  // a sanitizer's own memory is counted too
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace gzip = s3cache::detail::gzip;
namespace bytes = s3cache::detail::bytes;
namespace digest = s3cache::detail::digest;

namespace {

constexpr std::size_t no_limit = 64 * 1024 * 1024;

// In pieces of `feed_bytes`, through a buffer of `room_bytes`; empty if the data is refused.
std::optional<std::string> inflate(std::string_view data, std::size_t feed_bytes, std::size_t room_bytes) {
    gzip::Inflater inflater;
    std::string out;
    std::string room(room_bytes, '\0');
    for (;;) {
        const std::size_t produced = inflater.pull(&room[0], room.size());
        if (produced > room.size()) FAIL("a buffer overrun");
        out.append(room, 0, produced);
        if (inflater.problem() != nullptr) return std::nullopt;
        if (produced == room.size()) continue;
        if (data.empty()) break;
        inflater.feed(data.substr(0, feed_bytes));
        data.remove_prefix((std::min)(feed_bytes, data.size()));
    }
    if (!inflater.end_of_input()) return std::nullopt;
    return out;
}

std::string deflate(std::string_view data, int level, std::size_t feed_bytes, std::size_t room_bytes) {
    gzip::Deflater deflater(level);
    std::string out;
    std::string room(room_bytes, '\0');
    for (;;) {
        const std::size_t produced = deflater.pull(&room[0], room.size());
        out.append(room, 0, produced);
        if (deflater.problem() != nullptr) FAIL(deflater.problem());
        if (deflater.is_finished()) return out;
        if (produced == room.size()) continue;
        if (data.empty()) deflater.finish();
        deflater.feed(data.substr(0, feed_bytes));
        data.remove_prefix((std::min)(feed_bytes, data.size()));
    }
}

void check_output(const vectors::Case& c, const std::optional<std::string>& out) {
    REQUIRE(out.has_value() == c.yes("ok"));
    if (!out) return;
    if (c.has("out_size")) CHECK(bytes::to_u64(c.get("out_size")) == out->size());
    if (c.has("out_sha256")) CHECK(bytes::hex(digest::as_text(digest::sha256(*out))) == c.get("out_sha256"));
}

void check_gzip(const vectors::Case& c) {
    const std::string data = c.get("data_base64");
    std::string problem;
    check_output(c, gzip_tools::inflate_all(data, no_limit, problem));
    CHECK(problem.empty() == c.yes("ok"));
    check_output(c, inflate(data, 1, 4096));
    check_output(c, inflate(data, data.size() + 1, 997));
    check_output(c, inflate(data, 7, 13));
    if (data.size() < 4096) check_output(c, inflate(data, 1, 1));
}

const vectors::Handler gzip_vectors{"gzip", {"data_base64", "ok", "out_size", "out_sha256", "note"}, check_gzip};

std::string numbers(std::size_t size) {
    std::string out;
    for (std::size_t i = 0; out.size() < size; ++i) out += std::to_string(i * i) + (i % 7 == 0 ? "\n" : ",");
    out.resize(size);
    return out;
}

#if defined(GZIP_TEST_WITHOUT_MEMORY)
// Whether `check` holds in a process that has no memory left. Everything it needs must be there before.
bool without_memory(bool (*check)()) {
    const pid_t child = fork();
    if (child == 0) {
        const rlimit none{0, 0};
        bool good = setrlimit(RLIMIT_AS, &none) == 0;
        // In steps finer than an allocator's classes of sizes, each of which may have room left.
        for (std::size_t size = 1 << 20; size >= 64; size -= size / 16) {
            while (std::malloc(size) != nullptr) {
            }
        }
        good = good && check();
        _exit(good ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
#endif

}  // namespace

TEST_CASE("gzip: what is deflated inflates again, at every level and in any pieces") {
    std::string problem;
    for (const std::size_t size : {0U, 1U, 15U, 16U * 1024, 16U * 1024 + 1, 300000U}) {
        const std::string data = numbers(size);
        for (const int level : {1, 6, 9}) {
            const std::string packed = gzip_tools::deflate_all(data, level);
            CHECK(gzip_tools::inflate_all(packed, no_limit, problem) == data);
            CHECK(deflate(data, level, 1000, 77) == packed);
        }
        CHECK(inflate(deflate(data, 6, 333, 1), 5, 4096) == data);
    }
}

TEST_CASE("gzip: equal values give equal bytes, without time or system") {
    const std::string packed = gzip_tools::deflate_all("hello", 6);
    CHECK(packed == gzip_tools::deflate_all("hello", 6));
    CHECK(bytes::hex(std::string_view(packed).substr(0, 10)) == "1f8b08000000000000ff");
}

TEST_CASE("gzip: the limit counts output, and exactly the limit is allowed") {
    const std::string data(100000, 'a');
    const std::string packed = gzip_tools::deflate_all(data, 9);
    std::string problem;
    CHECK(gzip_tools::inflate_all(packed, data.size(), problem) == data);
    CHECK(problem.empty());
    CHECK_FALSE(gzip_tools::inflate_all(packed, data.size() - 1, problem));
    CHECK_FALSE(problem.empty());
    CHECK_FALSE(gzip_tools::inflate_all(packed, 0, problem));
    CHECK(gzip_tools::inflate_all(gzip_tools::deflate_all("", 6), 0, problem) == "");
    CHECK(gzip_tools::inflate_all("", 0, problem) == "");
}

TEST_CASE("gzip: a value cut anywhere is refused, but not one cut between members") {
    const std::string one = gzip_tools::deflate_all(numbers(2000), 6);
    const std::string two = one + std::string(3, '\0') + one;
    for (std::size_t size = 1; size < two.size(); ++size) {
        const bool whole = size >= one.size() && size <= one.size() + 3;
        INFO("cut at " << size << " of " << two.size());
        CHECK(inflate(two.substr(0, size), 64, 4096).has_value() == whole);
    }
}

TEST_CASE("gzip: every flipped bit of the trailer is noticed") {
    const std::string packed = gzip_tools::deflate_all("some text", 6);
    for (std::size_t bit = 0; bit < 64; ++bit) {
        std::string damaged = packed;
        char& byte = damaged[packed.size() - 8 + bit / 8];
        byte = static_cast<char>(byte ^ (1 << bit % 8));
        CHECK_FALSE(inflate(damaged, 100, 100));
    }
}

TEST_CASE("gzip: members follow one another, with zeros between and behind them but not in front") {
    const std::string one = gzip_tools::deflate_all("one", 6);
    const std::string two = gzip_tools::deflate_all("two", 6);
    const std::string zeros(70000, '\0');
    for (std::size_t room : {1U, 3U, 100U}) {
        CHECK(inflate(one + two, 1, room) == "onetwo");
        CHECK(inflate(one + zeros + two + zeros, 1000, room) == "onetwo");
        CHECK_FALSE(inflate(zeros, 1000, room));
        CHECK_FALSE(inflate(std::string(1, '\0') + one, 1000, room));
        CHECK_FALSE(inflate(one + "x", 1000, room));
        CHECK_FALSE(inflate(one + zeros + "\x1f", 1000, room));
        CHECK_FALSE(inflate(one + two.substr(0, two.size() - 1), 1, room));
        CHECK(inflate("", 1, room) == "");
    }
}

TEST_CASE("gzip: nothing comes after damage") {
    const std::string packed = gzip_tools::deflate_all(numbers(5000), 6);
    std::string damaged = packed;
    damaged.back() = static_cast<char>(damaged.back() ^ 0x55);
    gzip::Inflater inflater;
    std::string room(10000, '\0');
    inflater.feed(damaged);
    inflater.pull(&room[0], room.size());
    CHECK(inflater.problem() != nullptr);
    inflater.feed(packed);
    CHECK(inflater.pull(&room[0], room.size()) == 0);
    CHECK_FALSE(inflater.end_of_input());
}

#if defined(GZIP_TEST_WITHOUT_MEMORY)
TEST_CASE("gzip: a failed allocation is an error, not a crash") {
    CHECK(without_memory([] {
        char room[8];
        gzip::Deflater deflater(6);
        deflater.feed("text");
        deflater.finish();
        return deflater.pull(room, sizeof room) == 0 && deflater.problem() != nullptr;
    }));
    CHECK(without_memory([] {
        char room[8];
        gzip::Inflater inflater;
        inflater.feed("\x1f\x8b\x08");
        return inflater.pull(room, sizeof room) == 0 && inflater.problem() != nullptr && !inflater.end_of_input();
    }));
}
#endif

TEST_CASE("gzip: a level that zlib does not know is an error, not a crash") {
    gzip::Deflater deflater(42);
    char room[8];
    CHECK(deflater.pull(room, sizeof room) == 0);
    CHECK(deflater.problem() != nullptr);
    CHECK(gzip_tools::deflate_all("x", 42).empty());
}
