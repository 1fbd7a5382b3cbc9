// gzip by helper threads: the same values, in members, and nothing left running.
#include "world.hpp"

#include <zlib.h>

#include <filesystem>
#include <thread>

using namespace s3cache;
using detail::gzip::member_bytes;
using detail::gzip::ParallelDeflater;
using detail::gzip::Pulled;
using detail::gzip::Step;
using store::code_of;
using store::same;
using store::text_of;
using store::World;

namespace {

struct SourceBroke : std::runtime_error {
    using std::runtime_error::runtime_error;
};

Source pieces(std::string_view data, std::size_t step, std::function<std::size_t(char*)> then = {}) {
    return [data, step, then](char* buffer, std::size_t capacity) mutable -> std::size_t {
        if (data.empty() && then) return then(buffer);
        const std::size_t count = data.copy(buffer, (std::min)(capacity, step));
        data.remove_prefix(count);
        return count;
    };
}

std::string deflated(ParallelDeflater& deflater, std::string_view data, std::size_t fed, std::size_t pulled) {
    std::string out, buffer(pulled, '\0');
    for (;;) {
        const Pulled got = deflater.pull(&buffer[0], buffer.size());
        out.append(buffer, 0, got.produced);
        REQUIRE(got.step != Step::damaged);
        if (got.step == Step::finished) return out;
        if (got.step == Step::output) continue;
        if (data.empty()) deflater.finish();
        deflater.feed(data.substr(0, fed));
        data.remove_prefix((std::min)(data.size(), fed));
    }
}

// By zlib's own reader of gzip, one member after the other.
std::string inflated(const std::string& data, std::size_t& members) {
    z_stream stream{};
    REQUIRE(inflateInit2(&stream, MAX_WBITS + 16) == Z_OK);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    stream.avail_in = static_cast<uInt>(data.size());
    std::string out, buffer(std::size_t{1} << 16, '\0');
    int result = Z_OK;
    for (members = 0; result == Z_OK;) {
        stream.next_out = reinterpret_cast<Bytef*>(&buffer[0]);
        stream.avail_out = static_cast<uInt>(buffer.size());
        result = inflate(&stream, Z_NO_FLUSH);
        out.append(buffer, 0, buffer.size() - stream.avail_out);
        if (result != Z_STREAM_END) continue;
        ++members;
        if (stream.avail_in > 0) result = inflateReset(&stream);
    }
    inflateEnd(&stream);
    CHECK(result == Z_STREAM_END);
    return out;
}

Config threaded(World& world, unsigned threads) {
    Config config = world.config();
    config.compression_threads = threads;
    config.compression_level = 1;
    return config;
}

std::size_t threads_now() {
#if defined(__linux__)
    const std::filesystem::directory_iterator first("/proc/self/task");
    return static_cast<std::size_t>(std::distance(begin(first), end(first)));
#else
    return 0;
#endif
}

// What has been joined may be listed a moment longer.
bool threads_settled(std::size_t expected) {
    for (int i = 0; i < 1000 && threads_now() != expected; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return threads_now() == expected;
}

}  // namespace

TEST_CASE("members compressed in parallel come out whole and in order", "[parallel][gzip]") {
    const std::string text = store::text_lines(3 * member_bytes + 5);
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{1}, member_bytes - 1, member_bytes, member_bytes + 1, text.size()}) {
        for (const unsigned threads : {0U, 1U, 2U, 16U}) {
            CAPTURE(size, threads);
            const std::string_view data = std::string_view(text).substr(0, size);
            ParallelDeflater deflater(1, threads);
            const std::string packed = deflated(deflater, data, 300000, 70001);
            std::size_t members = 0;
            CHECK(same(inflated(packed, members), data));
            CHECK(members == (std::max)(std::size_t{1}, (size + member_bytes - 1) / member_bytes));
            std::string problem;
            const auto read = detail::gzip::inflate_all(packed, data.size(), problem);
            REQUIRE(read);
            CHECK(same(*read, data));
        }
    }
}

TEST_CASE("each level compresses in parallel what cannot be made smaller", "[parallel][gzip]") {
    const std::string noise = store::random_bytes(member_bytes + 1000, 1);
    for (const int level : {0, 1, 6, 9}) {
        CAPTURE(level);
        ParallelDeflater deflater(level, 2);
        std::size_t members = 0;
        CHECK(same(inflated(deflated(deflater, noise, noise.size(), noise.size()), members), noise));
    }
}

TEST_CASE("the number of threads does not change what is stored", "[parallel][gzip]") {
    const std::string text = store::text_lines(2 * member_bytes + 77);
    const auto packed = [&](unsigned threads, std::size_t fed) {
        ParallelDeflater deflater(6, threads);
        return deflated(deflater, text, fed, 100000);
    };
    const std::string one = packed(1, 1000);
    CHECK(same(packed(3, 777777), one));
    CHECK(same(packed(0, text.size()), one));
}

TEST_CASE("a deflater left in the middle of its work ends its threads", "[parallel][gzip]") {
    const std::string text = store::text_lines(4 * member_bytes);
    const std::size_t before = threads_now();
    for (int i = 0; i < 3; ++i) {
        ParallelDeflater deflater(6, 3);
        char nothing = 0;
        deflater.feed(text);
        CHECK(deflater.pull(&nothing, 1).step != Step::damaged);
    }
    CHECK(threads_settled(before));
}

TEST_CASE("values, streams and files compressed by helper threads read as any others", "[parallel][gzip]") {
    World world;
    const std::string text = store::text_lines(6 * member_bytes + 3);
    for (const unsigned threads : {1U, 4U}) {
        CAPTURE(threads);
        Cache cache = world.cache(threaded(world, threads));
        CHECK(cache.set("value", text, {{}, true}));
        CHECK(cache.set("stream", pieces(text, 100003), {{}, true}));
        const std::string path = "/tmp/s3cache-parallel-gzip-" + std::to_string(threads);
        store::write(path, text);
        CHECK(cache.set_file("file", path, {{}, true}));
        static_cast<void>(std::remove(path.c_str()));
        for (const char* key : {"value", "stream", "file"}) {
            CAPTURE(key);
            std::size_t members = 0;
            CHECK(same(inflated(world.body(key), members), text));
            CHECK(members == 7);
            CHECK(same(text_of(cache.get(key)), text));
            CHECK(same(store::drained(*cache.get_stream(key)), text));
        }
    }
}

TEST_CASE("helper threads run only while there is much to compress", "[parallel][gzip]") {
    World world;
    Cache cache = world.cache(threaded(world, 2));
    const std::string text = store::text_lines(5 * member_bytes);
    CHECK(cache.set("warm", "up"));
    const std::size_t before = threads_now();  // the fake store's among them
    std::size_t most = 0;
    const auto watched = [&](std::string_view data) {
        return Source([data, &most](char* buffer, std::size_t capacity) mutable {
            most = (std::max)(most, threads_now());
            const std::size_t count = data.copy(buffer, capacity);
            data.remove_prefix(count);
            return count;
        });
    };
    CHECK(cache.set("short", watched(std::string_view(text).substr(0, member_bytes / 2)), {{}, true}));
    CHECK(most == before);
    CHECK(cache.set("plain", watched(text)));
    CHECK(most == before);
    CHECK(cache.set("long", watched(text), {{}, true}));
#if defined(__linux__)
    CHECK(most == before + 2);
#endif
    CHECK(threads_settled(before));
}

TEST_CASE("a source that breaks while helpers compress is thrown on, and all is taken back",
          "[parallel][gzip][source]") {
    World world;
    Config config = threaded(world, 3);
    config.part_bytes = std::size_t{5} << 20;
    Cache cache = world.cache(config);
    const std::string noise = store::random_bytes(12 * member_bytes, 2);
    CHECK(cache.set("warm", "up"));
    const std::size_t before = threads_now();
    for (const std::size_t good : {std::size_t{0}, member_bytes / 2, member_bytes, 12 * member_bytes}) {
        CAPTURE(good);
        const auto throws = [](char*) -> std::size_t { throw SourceBroke("no more"); };
        CHECK_THROWS_AS(cache.set("k", pieces(std::string_view(noise).substr(0, good), 99999, throws), {{}, true}),
                        SourceBroke);
        CHECK(code_of(cache.try_set("k", pieces(std::string_view(noise).substr(0, good), 99999).sized(good + 1),
                                    {{}, true})) == Errc::source);
        CHECK_FALSE(world.has("k"));
        CHECK(world.s3.open_uploads().empty());
    }
    CHECK(threads_now() <= before + 8);  // the fake store starts one for each connection
}

TEST_CASE("more helper threads than sixteen are refused", "[parallel][gzip][config]") {
    Config config;
    config.compression_threads = 16;
    CHECK(Cache::try_open("bucket", config));
    config.compression_threads = 17;
    CHECK(code_of(Cache::try_open("bucket", config)) == Errc::invalid_argument);
}
