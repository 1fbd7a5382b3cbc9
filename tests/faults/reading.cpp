// More of what a reader meets: lengths that nobody tells, ETags that one answer weakens, files that are no plain files.
#include "world.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <fcntl.h>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Point;
using store::code_of;
using store::limited;
using store::ok;
using store::same;
using store::since;
using store::with_slow_helper;
using store::World;

TEST_CASE("call_timeout ends what a stream's opening does to an expired entry", "[reading][timeout]") {
    World world;
    for (const char* operation : {"HeadObject", "DeleteObject"}) {
        CAPTURE(operation);
        world.put_expiring("old", "v", -10);
        world.always(fake_s3::stall_at(Point::before_effect, 20s), operation);
        // A busy machine may be out of time before it comes to that request: then it has twice as long.
        for (auto limit = 300ms; world.s3.stalled() == 0 && limit < 10s; limit *= 2) {
            const auto opened = world.cache(limited(world, limit)).try_get_stream("old");
            if (opened)
                CHECK_FALSE(*opened);
            else
                CHECK(code_of(opened) == Errc::timed_out);
        }
        CHECK(world.s3.stalled() > 0);  // nobody waited for it to go on
        world.s3.clear_faults();
        world.s3.end_stalls();
    }
}

TEST_CASE("call_timeout ends a slow source of credentials when a stream is opened", "[reading][timeout]") {
    World world;
    store::Folder folder;
    Cache cache = world.cache(with_slow_helper(limited(world), folder));
    const auto began = std::chrono::steady_clock::now();
    CHECK(code_of(cache.try_get_stream("k")) == Errc::timed_out);
    CHECK(since(began) < 5s);
    CHECK(world.s3.request_count() == 0);
}

TEST_CASE("a size that cannot be found out is an error, and not nothing", "[reading][stores]") {
    fake_s3::Quirks quirks;
    quirks.head_without_length = true;
    for (const int status : {403, 503, 200}) {
        CAPTURE(status);
        World world(store::with(quirks));
        Cache cache = world.cache();
        world.put("k", "value");
        fake_s3::Edit edit;
        edit.omit_content_length = true;
        edit.status = 200;
        edit.remove_headers = {"Content-Range"};
        world.always(status == 200 ? fake_s3::edit_answer(edit) : fake_s3::respond(status), "GetObject");
        const auto info = cache.try_stat("k");
        if (info) CHECK((*info && (*info)->size == 5));
    }
}

TEST_CASE("ETags that are weak to a GET alone still fit those that a HEAD tells", "[reading][stores][etag]") {
    World world;
    Cache cache = world.cache();
    world.put_expiring("old", "v", -10);
    world.put("k", "v");
    fake_s3::Edit edit;  // as a proxy that compresses what has a body
    edit.set_headers = {{"ETag", "W/" + world.s3.object("bucket", "k")->etag}};
    world.always(fake_s3::edit_answer(edit), "GetObject");
    CHECK_FALSE(cache.get("old"));
    CHECK_FALSE(world.has("old"));
    const std::string etag = cache.get("k")->info().etag;
    CHECK(cache.get_if_changed("k", etag).unchanged);
    SetOptions options;
    options.if_match = etag;
    CHECK(ok(cache.try_set("k", "w", options)));
}

TEST_CASE("a descriptor's name leads to the pipe behind it", "[reading][files]") {
    World world;
    Cache cache = world.cache();
    world.put("k", "value");
    store::Folder folder;
    int ends[2] = {-1, -1};
    REQUIRE(pipe(ends) == 0);
    const std::string name = "/proc/self/fd/" + std::to_string(ends[1]);
    struct stat seen {};
    if (stat(name.c_str(), &seen) != 0) {
        WARN("there is no /proc here");
        return;
    }
    std::filesystem::create_symlink(name, folder / "link");
    for (const std::string& path : {name, folder / "link"}) {
        CAPTURE(path);
        CHECK(code_of(cache.try_get_file("k", path)) == store::no_error);
        REQUIRE(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
        char got[16] = {};
        CHECK(read(ends[0], got, sizeof got) == 5);
        CHECK(std::string(got) == "value");
    }
    close(ends[0]);
    close(ends[1]);
}

TEST_CASE("a file that is replaced keeps its owner where that is allowed", "[reading][files]") {
    if (getuid() != 0) {
        WARN("only root may give files away");
        return;
    }
    World world;
    Cache cache = world.cache();
    world.put("k", "v");
    store::Folder folder;
    const std::string path = folder / "theirs";
    store::write(path, "old");
    REQUIRE(chmod(path.c_str(), 0600) == 0);
    REQUIRE(chown(path.c_str(), 12345, 12345) == 0);
    CHECK(ok(cache.try_get_file("k", path)));
    struct stat seen {};
    REQUIRE(stat(path.c_str(), &seen) == 0);
    CHECK(store::contents(path) == "v");
    CHECK(seen.st_uid == 12345);
    CHECK(seen.st_gid == 12345);
}

TEST_CASE("an answer that tells no length gives the size of what came, as it is stored", "[reading][stores]") {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    const std::string text = store::text_lines(10000);
    for (const bool compressed : {false, true}) {
        CAPTURE(compressed);
        const std::string stored = compressed ? store::gzip(text) : text;
        std::ostringstream answer;
        answer << "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n"
               << (compressed ? "x-amz-meta-compressed: true\r\n" : "") << "Transfer-Encoding: chunked\r\n\r\n"
               << std::hex << stored.size() << "\r\n"
               << stored << "\r\n0\r\n\r\n";
        world.s3.clear_faults();
        world.always(fake_s3::raw_bytes(answer.str()), "GetObject");
        const auto hit = ok(cache.try_get("k"));
        REQUIRE(hit);
        CHECK(same(hit->view(), text));
        CHECK(hit->info().size == stored.size());
        const auto info = ok(cache.try_get_file("k", folder / "out"));
        REQUIRE(info);
        CHECK(same(store::contents(folder / "out"), text));
        CHECK(info->size == stored.size());
    }
}

// ---- answers that are none, or break off ---------------------------------------------------------------------------

TEST_CASE("a body that always breaks at the same place is an error after attempts_max, also where ranges are ignored",
          "[reading][stores][attempts]") {
    fake_s3::Quirks quirks;
    quirks.ignore_range = true;
    store::Folder folder;
    for (const char* call : {"get", "get_file", "get_stream"}) {
        CAPTURE(call);
        World world(store::with(quirks));
        Config config = world.config();
        config.attempts_max = 3;
        Cache cache = world.cache(config);
        world.put("k", store::random_bytes(std::size_t{4} << 20, 1));
        world.always(fake_s3::close_at(Point::answer_body, 1500000), "GetObject");
        const std::string_view what = call;
        std::optional<Error> error;
        if (what == "get") error = store::failure(cache.try_get("k"));
        if (what == "get_file") error = store::failure(cache.try_get_file("k", folder / "out"));
        if (what == "get_stream") {
            auto reader = cache.get_stream("k");
            REQUIRE(reader);
            while (!error) {
                const auto chunk = reader->try_next();
                REQUIRE((!chunk || !chunk->empty()));  // it has no end
                if (!chunk) error = chunk.error();
            }
        }
        REQUIRE(error);
        CAPTURE(error->what());
        CHECK(error->code() == Errc::network);
        CHECK(error->attempts() == 3);
        CHECK(world.s3.request_count("GetObject") <= 2 * 3);  // the first may count as one that came on
    }
}

TEST_CASE("an answer of success that is not a GET's is an error, never an empty value", "[reading][stores]") {
    const std::string tag = "ETag: \"0123456789abcdef0123456789abcdef\"\r\n";
    const std::string chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    const std::string answers[] = {
        "HTTP/1.1 203 Non-Authoritative Information\r\n" + tag + chunked,
        "HTTP/1.1 204 No Content\r\n" + tag + "\r\n",
        "HTTP/1.1 204 No Content\r\n" + tag + "Content-Length: 0\r\n\r\n",
        "HTTP/1.1 206 Partial Content\r\n" + tag + "Content-Range: bytes 3-3/9\r\nContent-Length: 0\r\n\r\n",
    };
    for (const std::string& answer : answers) {
        CAPTURE(answer);
        World world;
        Cache cache = world.cache();
        world.always(fake_s3::raw_bytes(answer), "GetObject");
        CHECK(code_of(cache.try_get("k")) != store::no_error);
        Errc code = store::no_error;
        auto opened = cache.try_get_stream("k");
        if (!opened) code = code_of(opened);
        if (opened && *opened) code = code_of((*opened)->try_next());
        CHECK(code != store::no_error);
    }
}

TEST_CASE("an empty object that is answered with 200 is a hit", "[reading][stores]") {
    for (const char* length : {"Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}) {
        CAPTURE(length);
        World world;
        Cache cache = world.cache();
        const std::string head = "HTTP/1.1 200 OK\r\nETag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\n";
        world.always(fake_s3::raw_bytes(head + length), "GetObject");
        const auto hit = cache.get("k");
        REQUIRE(hit);
        CHECK(hit->view().empty());
        auto reader = cache.get_stream("k");
        REQUIRE(reader);
        CHECK(store::drained(*reader).empty());
    }
}

TEST_CASE("a body whose end nothing tells is no value when the connection ends", "[reading][stores]") {
    const std::string head = "HTTP/1.1 200 OK\r\nETag: \"0123456789abcdef0123456789abcdef\"\r\n";
    World world;
    Cache cache = world.cache();
    const auto answer = [&](const std::string& rest) {
        world.s3.clear_faults();
        world.always(fake_s3::raw_bytes(head + rest), "GetObject");
    };
    answer("Transfer-Encoding: identity\r\n\r\nhel");
    CHECK(code_of(cache.try_get("k")) != store::no_error);
    Errc code = store::no_error;
    auto opened = cache.try_get_stream("k");
    if (!opened) code = code_of(opened);
    while (opened && *opened && code == store::no_error) {
        const auto chunk = (*opened)->try_next();
        code = code_of(chunk);
        if (chunk && chunk->empty()) break;
    }
    CHECK(code != store::no_error);
    answer("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    CHECK(store::text_of(cache.get("k")) == "hello");
}
