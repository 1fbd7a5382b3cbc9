// Section gzip.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <algorithm>
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
        const gzip::Pulled pulled = inflater.pull(&room[0], room.size());
        const bool full = pulled.produced == room.size();
        if (pulled.produced > room.size() || (pulled.step == gzip::Step::output && !full))
            FAIL("a buffer not filled, or overrun");
        out.append(room, 0, pulled.produced);
        if (pulled.step == gzip::Step::damaged) {
            CHECK(inflater.problem() != nullptr);
            return std::nullopt;
        }
        if (pulled.step == gzip::Step::output) continue;
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
        const gzip::Pulled pulled = deflater.pull(&room[0], room.size());
        out.append(room, 0, pulled.produced);
        if (pulled.step == gzip::Step::damaged) FAIL(deflater.problem());
        if (pulled.step == gzip::Step::finished) return out;
        if (pulled.step == gzip::Step::output) continue;
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
    check_output(c, gzip::inflate_all(data, no_limit, problem));
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

}  // namespace

TEST_CASE("gzip: what is deflated inflates again, at every level and in any pieces") {
    std::string problem;
    for (const std::size_t size : {0U, 1U, 15U, 16U * 1024, 16U * 1024 + 1, 300000U}) {
        const std::string data = numbers(size);
        for (const int level : {1, 6, 9}) {
            const std::string packed = gzip::deflate_all(data, level);
            CHECK(gzip::looks_like_gzip(packed));
            CHECK(gzip::inflate_all(packed, no_limit, problem) == data);
            CHECK(deflate(data, level, 1000, 77) == packed);
        }
        CHECK(inflate(deflate(data, 6, 333, 1), 5, 4096) == data);
    }
}

TEST_CASE("gzip: equal values give equal bytes, without time or system") {
    const std::string packed = gzip::deflate_all("hello", 6);
    CHECK(packed == gzip::deflate_all("hello", 6));
    CHECK(bytes::hex(std::string_view(packed).substr(0, 10)) == "1f8b08000000000000ff");
}

TEST_CASE("gzip: the limit counts output, and exactly the limit is allowed") {
    const std::string data(100000, 'a');
    const std::string packed = gzip::deflate_all(data, 9);
    std::string problem;
    CHECK(gzip::inflate_all(packed, data.size(), problem) == data);
    CHECK(problem.empty());
    CHECK_FALSE(gzip::inflate_all(packed, data.size() - 1, problem));
    CHECK_FALSE(problem.empty());
    CHECK_FALSE(gzip::inflate_all(packed, 0, problem));
    CHECK(gzip::inflate_all(gzip::deflate_all("", 6), 0, problem) == "");
    CHECK(gzip::inflate_all("", 0, problem) == "");
}

TEST_CASE("gzip: a value cut anywhere is refused, but not one cut between members") {
    const std::string one = gzip::deflate_all(numbers(2000), 6);
    const std::string two = one + std::string(3, '\0') + one;
    for (std::size_t size = 1; size < two.size(); ++size) {
        const bool whole = size >= one.size() && size <= one.size() + 3;
        INFO("cut at " << size << " of " << two.size());
        CHECK(inflate(two.substr(0, size), 64, 4096).has_value() == whole);
    }
}

TEST_CASE("gzip: every flipped bit of the trailer is noticed") {
    const std::string packed = gzip::deflate_all("some text", 6);
    for (std::size_t bit = 0; bit < 64; ++bit) {
        std::string damaged = packed;
        char& byte = damaged[packed.size() - 8 + bit / 8];
        byte = static_cast<char>(byte ^ (1 << bit % 8));
        CHECK_FALSE(inflate(damaged, 100, 100));
    }
}

TEST_CASE("gzip: filters can be moved between pieces") {
    const std::string data = numbers(50000);
    const std::string packed = gzip::deflate_all(data, 6);
    std::string room(100000, '\0');
    gzip::Inflater first;
    first.feed(std::string_view(packed).substr(0, 1000));
    const std::size_t before = first.pull(&room[0], room.size()).produced;
    gzip::Inflater second(std::move(first));
    second.feed(std::string_view(packed).substr(1000));
    const std::size_t after = second.pull(&room[before], room.size() - before).produced;
    CHECK(second.end_of_input());
    CHECK(room.substr(0, before + after) == data);
}

TEST_CASE("gzip: a level that zlib does not know is an error, not a crash") {
    gzip::Deflater deflater(42);
    char room[8];
    CHECK(deflater.pull(room, sizeof room).step == gzip::Step::damaged);
    CHECK(deflater.problem() != nullptr);
    CHECK(gzip::deflate_all("x", 42).empty());
}

TEST_CASE("gzip: the magic needs both of its bytes") {
    CHECK(gzip::looks_like_gzip("\x1f\x8b"));
    CHECK_FALSE(gzip::looks_like_gzip("\x1f"));
    CHECK_FALSE(gzip::looks_like_gzip(""));
    CHECK_FALSE(gzip::looks_like_gzip("{}"));
}
