// Sources, readers, files: streams in both directions.
#include "store.hpp"

#include <csignal>
#include <list>

#ifndef _WIN32
#include <sys/resource.h>  // a limit of a file's size, in the place of a full disk
#endif

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::Space;
using store::text_of;

namespace {

constexpr std::size_t part = std::size_t{5} << 20;

struct SourceBroke : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Gives `data` in pieces of odd sizes.
struct Pieces {
    std::string_view data;
    std::size_t step = 1;
    std::size_t operator()(char* buffer, std::size_t capacity) {
        const std::size_t count = (std::min)({data.size(), capacity, step});
        data.copy(buffer, count);
        data.remove_prefix(count);
        step = step * 7 % 65537 + 1;
        return count;
    }
};

// Gives `good` bytes, then does what `then` does.
Source after(std::size_t good, std::function<std::size_t(char*, std::size_t)> then) {
    return [good, then](char* buffer, std::size_t capacity) mutable {
        if (good == 0) return then(buffer, capacity);
        const std::size_t count = (std::min)(good, capacity);
        std::fill(buffer, buffer + count, 'x');
        good -= count;
        return count;
    };
}

}  // namespace

// ---- sources --------------------------------------------------------------------------------------------------------

STORE_TEST("every kind of source is stored", "[source]") {
    Cache cache = space.cache();
    const std::string data = store::text_lines(100001);
    const auto check = [&](const char* key) {
        CAPTURE(key);
        const auto hit = cache.get(key);
        REQUIRE(hit);
        CHECK(same(hit->view(), data));
        CHECK(hit->kind() == Kind::bytes);
    };
    for (const bool compress : {false, true}) {
        CAPTURE(compress);
        const SetOptions options{{}, compress};
        SECTION(compress ? "gzip: istream" : "istream") {
            std::istringstream in(data);
            CHECK(cache.set("istream", in, options));
            check("istream");
            CHECK(cache.set("istream, moved", std::istringstream(data), options));
            check("istream, moved");
        }
        SECTION(compress ? "gzip: callable" : "callable") {
            Pieces pieces{data};
            CHECK(cache.set("borrowed", pieces, options));
            CHECK(pieces.data.empty());  // the caller's own object was read, not a copy
            check("borrowed");
            CHECK(cache.set("kept", Pieces{data}, options));
            check("kept");
            auto owner = std::make_unique<Pieces>(Pieces{data});
            auto move_only = [owner = std::move(owner)](char* buffer, std::size_t capacity) {
                return (*owner)(buffer, capacity);
            };
            CHECK(cache.set("move-only", std::move(move_only), options));
            check("move-only");
        }
        SECTION(compress ? "gzip: chunks" : "chunks") {
            std::vector<std::string> strings{"", data.substr(0, 1), "", data.substr(1, 70000), data.substr(70001), ""};
            CHECK(cache.set("vector", chunks(strings.begin(), strings.end()), options));
            check("vector");
            const std::list<std::string_view> views(strings.begin(), strings.end());
            CHECK(cache.set("list", chunks(views.begin(), views.end()), options));
            check("list");
            CHECK(cache.set("none", chunks(strings.end(), strings.end()), options));
            CHECK(cache.get("none")->view().empty());
        }
        SECTION(compress ? "gzip: file" : "file") {
            store::Folder folder;
            store::write(folder / "f", data);
            CHECK(cache.set("file", file(folder / "f"), options));
            check("file");
            CHECK(cache.set("ifstream", std::ifstream(folder / "f", std::ios::binary), options));
            check("ifstream");
        }
    }
    CHECK(space.open_uploads() == 0);
}

STORE_TEST("a stream's kind is the caller's word for it", "[source]") {
    Cache cache = space.cache();
    SetOptions options;
    options.kind = Kind::json;
    cache.set("json", std::istringstream("[1]"), options);
    CHECK(cache.get("json")->kind() == Kind::json);
    CHECK(cache.stat("json")->content_type == "application/json");
    options.kind = Kind::text;
    cache.set("text", std::istringstream(store::text_lines(part + 5)), options);
    CHECK(cache.get("text")->kind() == Kind::text);
    CHECK(cache.stat("text")->content_type == "text/plain; charset=utf-8");
    cache.set("default", std::istringstream("[1]"));
    CHECK(cache.get("default")->kind() == Kind::bytes);
}

STORE_TEST("a source that fails leaves the old value, and nothing behind", "[source][failure]") {
    Cache cache = space.cache();
    cache.set("k", "old");
    const std::size_t lengths[] = {0, 1, part, 2 * part + 1};
    for (const bool compress : {false, true}) {
        for (const std::size_t good : lengths) {
            INFO("after " << good << " bytes" << (compress ? ", gzip" : ""));
            const SetOptions options{{}, compress};
            const auto throws = [](char*, std::size_t) -> std::size_t { throw SourceBroke("the pump broke"); };
            CHECK_THROWS_AS(cache.set("k", after(good, throws), options), SourceBroke);
            const Error thrown = failure(cache.try_set("k", after(good, throws), options));
            CHECK(thrown.code() == Errc::source);
            CHECK(store::holds(thrown.what(), "the pump broke"));
            CHECK(thrown.details().cause);
            CHECK_THROWS_AS(cache.set("k", after(good, [](char*, std::size_t) -> std::size_t { throw 42; }), options),
                            int);
            CHECK(code_of(cache.try_set("k", after(good, [](char*, std::size_t) { return source_failed; }), options)) ==
                  Errc::source);
            CHECK(code_of(cache.try_set("k", after(good, [](char*, std::size_t capacity) { return capacity + 1; }),
                                        options)) == Errc::source);
            CHECK(code_of(cache.try_set("new", after(good, throws), options)) == Errc::source);
            CHECK(text_of(cache.get("k")) == "old");
            CHECK_FALSE(space.has("new"));
            CHECK(space.open_uploads() == 0);
        }
    }
}

STORE_TEST("an istream that goes bad is a source that failed, not one that ended", "[source][failure]") {
    struct Bad : std::streambuf {
        std::size_t left;
        char block[4096] = {};
        explicit Bad(std::size_t good) : left(good) {}
        int_type underflow() override {
            if (left == 0) throw SourceBroke("disk gone");
            const std::size_t count = (std::min)(left, sizeof block);
            left -= count;
            setg(block, block, block + count);
            return traits_type::to_int_type(block[0]);
        }
    };
    Cache cache = space.cache();
    for (const std::size_t good : {std::size_t{0}, std::size_t{10000}, part + 1}) {
        CAPTURE(good);
        Bad bad(good);
        std::istream in(&bad);  // sets badbit, throws nothing
        CHECK(code_of(cache.try_set("k", in)) == Errc::source);
        CHECK_FALSE(space.has("k"));
        CHECK(space.open_uploads() == 0);
    }
    std::istringstream failed("data");
    failed.setstate(std::ios::failbit);
    CHECK(code_of(cache.try_set("k", failed)) == Errc::source);
    CHECK_FALSE(space.has("k"));
}

STORE_TEST("a source that announces one length and gives another stores nothing", "[source][failure]") {
    Cache cache = space.cache();
    struct Case {
        std::size_t announced, given;
    };
    const Case cases[] = {{100, 50},        {100, 150},       {0, 1},           {1, 0},
                          {part + 1, part}, {part, part + 1}, {3 * part, part}, {3 * part, 2 * part + 5},
                          {part, 3 * part}};
    for (const bool compress : {false, true}) {
        for (const Case& c : cases) {
            INFO("announced " << c.announced << ", given " << c.given << (compress ? ", gzip" : ""));
            std::istringstream in(std::string(c.given, 'x'));
            CHECK(code_of(cache.try_set("k", Source(in).sized(c.announced), {{}, compress})) == Errc::source);
            CHECK_FALSE(space.has("k"));
            CHECK(space.open_uploads() == 0);
        }
    }
}

STORE_TEST("a file that cannot be read stores nothing", "[source][file][failure]") {
    Cache cache = space.cache();
    store::Folder folder;
    cache.set("k", "old");
    CHECK(code_of(cache.try_set("k", file(folder / "missing"))) == Errc::source);
    CHECK(code_of(cache.try_set("k", file(folder / "."))) == Errc::source);
    const Error missing = failure(cache.try_set_file("k", folder / "missing"));
    CHECK(missing.code() == Errc::file);
    CHECK(store::holds(missing.what(), "missing"));
    CHECK(code_of(cache.try_set_file("k", folder / ".")) == Errc::file);
    CHECK(code_of(cache.try_set_file("k", "")) == Errc::file);
    CHECK(text_of(cache.get("k")) == "old");
    CHECK(space.open_uploads() == 0);
}

STORE_TEST("progress is told, and false cancels with nothing left behind", "[source][progress]") {
    Cache cache = space.cache();
    cache.set("k", "old");
    const std::string data = store::random_bytes(3 * part, 9);
    SetOptions options;
    std::vector<std::uint64_t> seen;
    options.progress = [&](const Progress& progress) {
        seen.push_back(progress.done);
        if (progress.total) CHECK(*progress.total == data.size());
        return true;
    };
    cache.set("fine", bytes(data.data(), data.size()), options);
    REQUIRE_FALSE(seen.empty());
    CHECK(std::is_sorted(seen.begin(), seen.end()));
    CHECK(seen.back() == data.size());

    options.progress = [](const Progress&) { return false; };
    CHECK(code_of(cache.try_set("k", bytes(data.data(), data.size()), options)) == Errc::cancelled);
    std::istringstream in(data);
    CHECK(code_of(cache.try_set("k", in, options)) == Errc::cancelled);
    CHECK(text_of(cache.get("k")) == "old");
    CHECK(space.open_uploads() == 0);

    store::Folder folder;
    store::write(folder / "out", "before");
    GetOptions reading;
    reading.progress = [](const Progress&) { return false; };
    CHECK(code_of(cache.try_get_file("fine", folder / "out", reading)) == Errc::cancelled);
    CHECK(store::contents(folder / "out") == "before");
    CHECK(folder.count() == 1);
    seen.clear();
    reading.progress = [&](const Progress& progress) { return seen.push_back(progress.done), true; };
    CHECK(cache.get_file("fine", folder / "out", reading));
    CHECK(same(store::contents(folder / "out"), data));
    REQUIRE_FALSE(seen.empty());
    CHECK(std::is_sorted(seen.begin(), seen.end()));
    CHECK(seen.back() == data.size());
}

STORE_TEST("memory, parts and compression levels may be chosen, and do not change what is read", "[source]") {
    const std::string data = store::text_lines(4 * part + 11);
    for (const std::size_t memory : {std::size_t{1}, part, 3 * part}) {
        for (const int level : {1, 9}) {
            CAPTURE(memory, level);
            Config config = space.config();
            config.transfer_bytes_max = memory;
            config.compression_level = level;
            Cache cache = space.cache(config);
            std::istringstream in(data);
            const Result<bool> set = cache.try_set("k", in, {{}, level == 9});
            if (!set) {  // less than one part cannot work, and says so
                CHECK(memory < part);
                CHECK(code_of(set) == Errc::invalid_argument);
                continue;
            }
            CHECK(same(text_of(cache.get("k")), data));
            CHECK(same(store::drained(*cache.get_stream("k")), data));
        }
    }
}

// ---- readers --------------------------------------------------------------------------------------------------------

STORE_TEST("a reader gives the same bytes however it is read", "[reader]") {
    Cache cache = space.cache();
    for (const bool compress : {false, true}) {
        for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{100000}, 2 * part + 3}) {
            INFO(size << " bytes" << (compress ? ", gzip" : ""));
            const std::string data = store::text_lines(size);
            cache.set("k", data, {1h, compress});
            {
                auto reader = cache.get_stream("k");
                REQUIRE(reader);
                std::string got, buffer(70001, '\0');
                std::size_t step = 1;
                while (const std::size_t count = reader->read(buffer.data(), step)) {
                    REQUIRE(count <= step);
                    got.append(buffer, 0, count);
                    step = step * 7 % buffer.size() + 1;
                }
                CHECK(same(got, data));
                CHECK(reader->read(buffer.data(), 10) == 0);
                CHECK(ok(reader->try_next()).empty());
                CHECK(reader->info().compressed == compress);
                CHECK(reader->info().expires_at);
                CHECK(reader->info().kind == Kind::text);
                if (!compress) CHECK(reader->info().size == size);
            }
            CHECK(same(store::drained(*cache.get_stream("k")), data));
            {
                auto reader = cache.get_stream("k");
                std::string got;
                for (std::string_view chunk = ok(reader->try_next()); !chunk.empty(); chunk = ok(reader->try_next()))
                    got += chunk;
                CHECK(same(got, data));
            }
            {
                auto reader = cache.get_stream("k");
                std::string line, got;
                std::istream& in = reader->istream();
                CHECK(&in == &reader->istream());
                while (std::getline(in, line)) got += line + (in.eof() ? "" : "\n");
                CHECK(in.eof());
                CHECK_FALSE(in.bad());
                CHECK(same(got, data));
            }
            {
                auto reader = cache.get_stream("k");
                char first = '?';
                std::string got;
                if (reader->read(&first, 1)) got += first;
                Reader moved = std::move(*reader);
                got += store::drained(moved);
                CHECK(same(got, data));
            }
        }
    }
}

STORE_TEST("a reader outlives its cache", "[reader]") {
    const std::string data = store::random_bytes(2 * part + 1, 1);
    std::optional<Reader> small, large;
    {
        Cache cache = space.cache();
        cache.set("small", "s");
        cache.set("large", bytes(data.data(), data.size()));
        small = cache.get_stream("small");
        large = cache.get_stream("large");
    }
    CHECK(store::drained(*small) == "s");
    CHECK(same(store::drained(*large), data));
}

STORE_TEST("a reader closed early costs nothing but its connection", "[reader]") {
    Config config = space.config();
    config.transfer_bytes_max = 2 * part;
    for (const unsigned connections : {1U, 8U}) {
        for (const bool compress : {false, true}) {
            CAPTURE(connections, compress);
            config.connections = connections;
            Cache cache = space.cache(config);
            const std::string data = store::random_bytes(12 * part, 4);
            cache.set("large", bytes(data.data(), data.size()), {{}, compress});
            const std::uint64_t before = cache.stats().bytes_in;
            for (int i = 0; i < 3; ++i) {
                auto reader = cache.get_stream("large");
                REQUIRE(reader);
                char buffer[100];
                const std::size_t count = reader->read(buffer, sizeof buffer);
                CHECK(std::string_view(buffer, count) == std::string_view(data).substr(0, count));
            }
            {
                auto unread = cache.get_stream("large");
                REQUIRE(unread);
            }
            // Far less than 4 times the object: what was not read was not downloaded, beyond the buffers.
            CHECK(cache.stats().bytes_in - before < 4 * (config.transfer_bytes_max + part));
            cache.set("small", "s");
            CHECK(text_of(cache.get("small")) == "s");
        }
    }
}

STORE_TEST("two readers and other calls may be mixed on one cache", "[reader]") {
    Cache cache = space.cache();
    const std::string a = store::random_bytes(2 * part + 9, 11), b = store::random_bytes(2 * part + 5, 12);
    cache.set("a", bytes(a.data(), a.size()));
    cache.set("b", bytes(b.data(), b.size()));
    auto first = cache.get_stream("a");
    auto second = cache.get_stream("b");
    std::string got_a, got_b, buffer(300000, '\0');
    for (bool more = true; more;) {
        const std::size_t from_a = first->read(buffer.data(), buffer.size());
        got_a.append(buffer, 0, from_a);
        const std::size_t from_b = second->read(buffer.data(), buffer.size() / 3);
        got_b.append(buffer, 0, from_b);
        cache.set("between", "x");
        CHECK(cache.contains("between"));
        more = from_a != 0 || from_b != 0;
    }
    CHECK(same(got_a, a));
    CHECK(same(got_b, b));
}

STORE_TEST("a reader may feed a set on the same cache", "[reader][source]") {
    Cache cache = space.cache();
    const std::string data = store::text_lines(3 * part);
    cache.set("from", data, {{}, true});
    auto reader = cache.get_stream("from");
    Reader& from = *reader;
    cache.set("to", [&from](char* buffer, std::size_t capacity) { return from.read(buffer, capacity); });
    CHECK(same(text_of(cache.get("to")), data));
}

STORE_TEST("an object replaced while it is read is never mixed with its successor", "[reader]") {
    for (const unsigned connections : {1U, 8U}) {
        CAPTURE(connections);
        Config config = space.config();
        config.connections = connections;
        config.transfer_bytes_max = 2 * part;
        Cache cache = space.cache(config);
        const std::string old_data(10 * part, 'o'), new_data(10 * part, 'n');
        cache.set("k", old_data);
        auto reader = cache.get_stream("k");
        REQUIRE(reader);
        std::string got(1000, '\0');
        got.resize(reader->read(got.data(), got.size()));
        cache.set("k", new_data);
        Result<std::string_view> chunk = reader->try_next();
        for (; chunk && !chunk->empty(); chunk = reader->try_next()) got += *chunk;
        if (chunk)
            CHECK(same(got, old_data));
        else
            CHECK(code_of(chunk) == Errc::changed);
        CHECK(got.find('n') == std::string::npos);
        CHECK(cache.get("k")->view()[0] == 'n');
    }
}

// ---- files ----------------------------------------------------------------------------------------------------------

STORE_TEST("files go up and come back equal", "[file]") {
    Cache cache = space.cache();
    store::Folder folder;
    for (const bool compress : {false, true}) {
        for (const std::size_t size : {std::size_t{0}, std::size_t{1}, part - 1, part, part + 1, 3 * part + 7}) {
            INFO(size << " bytes" << (compress ? ", gzip" : ""));
            const std::string data = store::random_bytes(size, size);
            store::write(folder / "in", data);
            CHECK(cache.set_file("k", folder / "in", {1h, compress}));
            const auto info = cache.get_file("k", folder / "out");
            REQUIRE(info);
            CHECK(info->compressed == compress);
            CHECK(info->expires_at);
            CHECK(same(store::contents(folder / "out"), data));
            CHECK(same(text_of(cache.get("k")), data));
            CHECK(folder.count() == 2);
        }
    }
    CHECK(space.open_uploads() == 0);
}

STORE_TEST("a target file appears whole or not at all", "[file]") {
    Cache cache = space.cache();
    store::Folder folder;
    store::write(folder / "out", "before");
    SECTION("no entry") {
        CHECK_FALSE(cache.get_file("nothing", folder / "out"));
        space.put_expiring("old", "x", -10);
        CHECK_FALSE(cache.get_file("old", folder / "out"));
    }
    SECTION("a damaged entry") {
        space.put("k", "body", {{"kind", "text"}, {"crc32c", store::crc32c("another")}});
        CHECK(code_of(cache.try_get_file("k", folder / "out")) == Errc::damaged);
        const std::string zipped = store::gzip(store::text_lines(1000000));
        space.put("k", zipped.substr(0, zipped.size() - 9), {{"compressed", "true"}});
        CHECK(code_of(cache.try_get_file("k", folder / "out")) == Errc::damaged);
    }
    SECTION("no place for it") {
        cache.set("k", "v");
        CHECK(code_of(cache.try_get_file("k", folder / "missing/out")) == Errc::file);
        CHECK(code_of(cache.try_get_file("k", folder / ".")) == Errc::file);
        CHECK(code_of(cache.try_get_file("k", "")) == Errc::file);
    }
    CHECK(store::contents(folder / "out") == "before");
    CHECK(folder.count() == 1);
}

STORE_TEST("files have names in UTF-8", "[file]") {
    Cache cache = space.cache();
    store::Folder folder;
    const std::string name = folder / "gr\xC3\xBC\xC3\x9F\xE6\x97\xA5\xF0\x9F\x98\x80";
    store::write(name, "from a file");
    CHECK(cache.set_file("k", name));
    CHECK(text_of(cache.get("k")) == "from a file");
    cache.set("k", "into a file");
    for (const std::string& target : {name, name + "2"}) {  // one that is there, and a new one
        CHECK(cache.get_file("k", target));
        CHECK(store::contents(target) == "into a file");
    }
    CHECK(folder.count() == 2);
}

#ifndef _WIN32
STORE_TEST("a disk that takes no more is an error, and the target stays as it was", "[file]") {
    Cache cache = space.cache();
    store::Folder folder;
    store::write(folder / "out", "before");
    const std::string text = store::text_lines(300000);
    cache.set("plain", text);
    cache.set("gzip", text, {{}, true});
    rlimit usual;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &usual) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    for (const char* key : {"plain", "gzip"}) {
        rlimit tight = usual;
        tight.rlim_cur = 100000;
        REQUIRE(setrlimit(RLIMIT_FSIZE, &tight) == 0);
        const auto result = cache.try_get_file(key, folder / "out");
        REQUIRE(setrlimit(RLIMIT_FSIZE, &usual) == 0);
        CHECK(code_of(result) == Errc::file);
        CHECK(store::contents(folder / "out") == "before");
        CHECK(folder.count() == 1);
    }
    std::signal(SIGXFSZ, handler);
    CHECK(cache.get_file("gzip", folder / "out"));
    CHECK(same(store::contents(folder / "out"), text));
}
#endif

// ---- damage ---------------------------------------------------------------------------------------------------------

STORE_TEST("a damaged entry is never returned, is told by a reader before the end, and stays", "[damage]") {
    Cache cache = space.cache();
    const std::string text = store::text_lines(300000), zipped = store::gzip(text);
    const auto damaged = [&](const char* what, const std::string& body, const store::Headers& metadata) {
        CAPTURE(what);
        space.put("k", body, metadata);
        CHECK(code_of(cache.try_get("k")) == Errc::damaged);
        CHECK_THROWS_AS(cache.get("k"), Error);
        auto stream = cache.try_get_stream("k");
        if (stream) {
            REQUIRE(*stream);
            Result<std::string_view> chunk = (*stream)->try_next();
            while (chunk && !chunk->empty()) chunk = (*stream)->try_next();
            CHECK(code_of(chunk) == Errc::damaged);
            CHECK(code_of((*stream)->try_next()) == Errc::damaged);  // and stays so
        } else {
            CHECK(code_of(stream) == Errc::damaged);
        }
        if (auto again = cache.try_get_stream("k")) {
            std::istream& in = (*again)->istream();
            std::string line;
            while (std::getline(in, line)) continue;
            CHECK(in.bad());
        }
        CHECK(same(space.look("k").body, body));
        CHECK(cache.contains("k"));
    };
    const auto flipped = [](std::string body, std::size_t at) {
        body[at] = static_cast<char>(body[at] ^ 4);
        return body;
    };
    const store::Headers gz{{"compressed", "true"}};
    damaged("crc32c", flipped(text, 1000), {{"kind", "text"}, {"crc32c", store::crc32c(text)}});
    damaged("crc32c, cut", text.substr(1), {{"kind", "text"}, {"crc32c", store::crc32c(text)}});
    damaged("crc32c, empty", "", {{"kind", "text"}, {"crc32c", store::crc32c(text)}});
    damaged("gzip with crc32c", flipped(zipped, zipped.size() / 2),
            {{"compressed", "true"}, {"crc32c", store::crc32c(zipped)}});
    damaged("gzip body", flipped(zipped, zipped.size() / 2), gz);
    damaged("gzip checksum", flipped(zipped, zipped.size() - 6), gz);
    damaged("gzip length", flipped(zipped, zipped.size() - 2), gz);
    damaged("gzip cut in the body", zipped.substr(0, zipped.size() / 2), gz);
    damaged("gzip cut in the trailer", zipped.substr(0, zipped.size() - 1), gz);
    damaged("gzip cut in the head", zipped.substr(0, 5), gz);
    damaged("gzip with one byte behind", zipped + "x", gz);
    damaged("gzip, second member cut", zipped + zipped.substr(0, 30), gz);
    CHECK(cache.stats().damaged >= 12);
}

STORE_TEST("a value over the limit is refused by get, compressed or not, and streams all the same", "[limit]") {
    Config config = space.config();
    config.value_bytes_max = 1000;
    Cache cache = space.cache(config);
    const std::string fits(1000, 'x'), large(1001, 'x'), bomb(std::size_t{50} << 20, '\0');
    for (const bool compress : {false, true}) {
        CAPTURE(compress);
        cache.set("fits", fits, {{}, compress});
        CHECK(text_of(cache.get("fits")) == fits);
        cache.set("large", large, {{}, compress});
        const Error error = failure(cache.try_get("large"));
        CHECK(error.code() == Errc::too_large);
        CHECK_FALSE(error.retryable());
        CHECK(store::drained(*cache.get_stream("large")) == large);
        CHECK(cache.contains("large"));
    }
    cache.set("bomb", bomb, {{}, true});
    CHECK(cache.stat("bomb")->size < 100000);
    CHECK(code_of(cache.try_get("bomb")) == Errc::too_large);
    CHECK(same(store::drained(*cache.get_stream("bomb")), bomb));
}
