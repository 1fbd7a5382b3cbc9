// The cost of this library against that of bare libcurl, row by row; run.sh starts the servers and calls it.
//     bench table                          everything, as a table; the environment says where (see World)
//     bench files DIR                      makes the objects that are read, and prints nginx's map of their CRC-32C
//     bench child WORK SIDE SCHEME         one transfer of BENCH_STREAM_BYTES; prints its cost (called by `table`)
#include "s3cache.hpp"

#include "bare.hpp"
#include "measure.hpp"

#include <sched.h>     // sched_setaffinity
#include <sys/stat.h>  // mkdir
#include <unistd.h>    // link
#include <zlib.h>      // its own time, for the rows with gzip

#include <fstream>   // objects in the server's directory
#include <optional>  // what is made anew each round

namespace {

using bare::fail;
using measure::Cost;
using measure::Row;
using measure::Table;
using measure::Unit;
using measure::Variant;
using Kind = bare::Handle::Kind;

constexpr std::size_t kib = 1024, mib = 1024 * kib;
constexpr std::size_t small_bytes = 4 * kib;
constexpr std::size_t small_keys = 64;  // that are read in turn
constexpr std::size_t text_bytes = 8 * mib;
constexpr std::size_t part_bytes = 8 * mib;
constexpr unsigned many_connections = 8;
constexpr int compression_level = 6;

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

std::size_t environment_number(const char* name, std::size_t otherwise) {
    const std::string text = environment(name);
    return text.empty() ? otherwise : static_cast<std::size_t>(std::strtoull(text.c_str(), nullptr, 10));
}

// What run.sh says.
struct World {
    std::string root = environment("BENCH_ROOT");  // the server's files
    std::string http = environment("BENCH_HTTP");  // endpoints
    std::string https = environment("BENCH_HTTPS");
    std::string far = environment("BENCH_FAR");        // 20 ms away
    std::string narrow = environment("BENCH_NARROW");  // 50 MB/s a connection
    std::string ca = environment("BENCH_CA");
    std::string programs = environment("BENCH_PROGRAMS");  // directory of one, one_bare, libs3_rows
    std::string python = environment("BENCH_PYTHON");      // with boto3; empty: there is none
    std::string sources = environment("BENCH_SOURCES");    // directory of boto3_rows.py
    std::string only = environment("BENCH_ONLY");          // substring of the rows wanted; empty: all
    bool quick = !environment("BENCH_QUICK").empty();
    int rounds = quick ? 5 : 9;
    int long_rounds = quick ? 3 : 5;  // of what takes seconds
    std::size_t scale = quick ? 1 : 4;
    std::size_t stream_bytes = environment_number("BENCH_STREAM_BYTES", 1024 * mib);
    std::size_t far_keys = quick ? 640 : 10000;

    const std::string& endpoint(const std::string& scheme) const { return scheme == "https" ? https : http; }
    bool wants(const std::string& work) const { return work.find(only) != std::string::npos; }
};

s3cache::Cache open_cache(const World& world, const std::string& endpoint,
                          const std::function<void(s3cache::Config&)>& change = {}) {
    s3cache::Config config;
    config.endpoint = endpoint;
    config.region = "us-east-1";
    config.ca_bundle = world.ca;
    config.compression_level = compression_level;
    if (change) change(config);
    auto cache = s3cache::Cache::try_open("bench", std::move(config));
    if (!cache) fail(cache.error().what());
    return *std::move(cache);
}

bare::Store store_at(const World& world, const std::string& endpoint) { return {endpoint + "/bench/", world.ca}; }

template <class T>
T checked(s3cache::Result<T> result) {
    if (!result) fail(result.error().what());
    return *std::move(result);
}
void checked(const s3cache::Result<void>& result) {
    if (!result) fail(result.error().what());
}

void expect_size(std::size_t size, std::size_t wanted) {
    if (size != wanted) fail("a value of " + std::to_string(size) + " bytes instead of " + std::to_string(wanted));
}

// ---------------------------------------------------------------- data

std::string random_bytes(std::size_t size) {
    std::string out(size, '\0');
    std::uint64_t state = 0x9E3779B97F4A7C15;
    for (std::size_t i = 0; i < size; ++i) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out[i] = static_cast<char>(state >> 32);
    }
    return out;
}

// Text that compresses like records do.
std::string json_text(std::size_t size) {
    const std::string noise = random_bytes(size / 8);
    std::string out = "[";
    for (std::size_t i = 0; out.size() < size; ++i) {
        const auto byte = [&](std::size_t at) {
            return static_cast<unsigned char>(noise[(i * 5 + at) % noise.size()]);
        };
        out += R"({"id":)" + std::to_string(100000 + i) + R"(,"name":"item )" + std::to_string(byte(0)) +
               R"(","price":)" + std::to_string(byte(1)) + "." + std::to_string(byte(2) % 100) + R"(,"in_stock":)" +
               (byte(3) < 128 ? "true" : "false") + R"(,"warehouse":"hall )" + std::to_string(byte(4) % 8) + R"("},)";
    }
    out.resize(size - 1);
    return out + "]";
}

std::string packed(const std::string& text, int level) {
    z_stream stream{};
    if (deflateInit2(&stream, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) fail("deflateInit2");
    std::string out(deflateBound(&stream, static_cast<uLong>(text.size())), '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    stream.avail_in = static_cast<uInt>(text.size());
    stream.next_out = reinterpret_cast<Bytef*>(&out[0]);
    stream.avail_out = static_cast<uInt>(out.size());
    if (deflate(&stream, Z_FINISH) != Z_STREAM_END) fail("deflate");
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
}

// Into fresh memory of the right size, which is more than a reader of gzip can know.
void unpack(const std::string& data, std::size_t size) {
    const std::unique_ptr<char[]> out(new char[size]);
    z_stream stream{};
    if (inflateInit2(&stream, 15 + 16) != Z_OK) fail("inflateInit2");
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    stream.avail_in = static_cast<uInt>(data.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.get());
    stream.avail_out = static_cast<uInt>(size);
    if (inflate(&stream, Z_FINISH) != Z_STREAM_END || stream.total_out != size) fail("inflate");
    inflateEnd(&stream);
}

void write_file(const std::string& path, std::string_view data, std::size_t times = 1) {
    std::ofstream out(path, std::ios::binary);
    for (std::size_t i = 0; i < times; ++i) out.write(data.data(), static_cast<std::streamsize>(data.size()));
    if (!out.flush()) fail("cannot write " + path);
}

int make_files(const World& world, const std::string& root) {
    for (const char* below : {"", "/small", "/put", "/gone"}) mkdir((root + "/bench" + below).c_str(), 0755);
    const auto put = [&](const std::string& key, const std::string& data) {
        write_file(root + "/bench/" + key, data);
        const std::uint32_t crc = s3cache::detail::digest::crc32c(0, data.data(), data.size());
        std::printf("/bench/%s \"%s\";\n", key.c_str(), s3cache::detail::entry::crc32c_text(crc).c_str());
    };
    const std::string noise = random_bytes(mib);
    for (std::size_t i = 0; i < small_keys; ++i)
        put("small/" + std::to_string(i), noise.substr(i * small_bytes, small_bytes));
    put("mib", noise);
    put("text.gz", packed(json_text(text_bytes), compression_level));
    // The same twice: as a stream of unknown length is stored, without a CRC-32C, and as memory or a file in parts, with it.
    const std::string stream = root + "/bench/stream";
    write_file(stream, noise, world.stream_bytes / mib);
    if (link(stream.c_str(), (root + "/bench/parts").c_str()) != 0) fail("cannot link " + stream);
    std::uint32_t crc = 0;
    for (std::size_t i = 0; i < world.stream_bytes / mib; ++i)
        crc = s3cache::detail::digest::crc32c(crc, noise.data(), noise.size());
    std::printf("/bench/parts \"%s\";\n", s3cache::detail::entry::crc32c_text(crc).c_str());
    return 0;
}

// ---------------------------------------------------------------- rows

Row ratio_row(const std::string& work, const std::string& scheme, double target, const Variant& library,
              const Variant& bare) {
    Row row{work, scheme};
    row.library = library.cpu();
    row.bare = bare.cpu();
    std::vector<double> ratios;
    for (std::size_t i = 0; i < library.samples.size(); ++i)
        ratios.push_back(library.samples[i].cpu / bare.samples[i].cpu);
    row.value = measure::median(ratios);
    row.low = *std::min_element(ratios.begin(), ratios.end());
    row.high = *std::max_element(ratios.begin(), ratios.end());
    row.target = target;
    return row;
}

// libs3 and boto3, where they can do the same, as multiples of the bare loop.
std::string others(const World& world, const std::string& peer_work, const std::string& scheme, std::size_t count,
                   double bare) {
    std::string out;
    const auto add = [&](const std::string& name, std::vector<std::string> command, std::size_t operations) {
        command.insert(command.end(), {peer_work, world.endpoint(scheme), std::to_string(operations)});
        std::vector<double> costs;
        bool fine = true;
        for (int round = 0; fine && round < (world.quick ? 1 : 3); ++round)
            costs.push_back(measure::run_measured(command, fine).cpu);
        const std::string ratio = fine ? "x" + measure::three_digits(measure::median(costs) / bare) : "-";
        out += (out.empty() ? "" : ", ") + name + " " + ratio;
    };
    if (!environment("BENCH_LIBS3").empty() && scheme == "http") add("libs3", {world.programs + "/libs3_rows"}, count);
    if (!world.python.empty())
        add("boto3", {world.python, world.sources + "/boto3_rows.py"}, (std::max)(count / 20, std::size_t{1}));
    return out;
}

// Library, bare with default and bare with large buffers by turns; and the bare loop with a signed request's headers and
// hashes: what libcurl and libcrypto take for the same, whoever calls them.
struct Contest {
    std::string work, scheme;
    double target;
    std::size_t operations;
    std::function<void()> library;
    std::function<void(bare::Buffers)> bare;
    std::function<void()> before = [] {};
    std::string peer_work{};
    std::function<void()> floor{};
    int tries = 1;  // of which the cheapest counts
};

void hold(const World& world, Table& table, const Contest& contest) {
    if (!world.wants(contest.work)) return;
    const auto variant = [&](const std::string& name, const std::function<void()>& work) {
        return Variant{name, [&contest, work] {
                           Cost best;
                           for (int i = 0; i < contest.tries; ++i) {
                               contest.before();
                               const Cost cost = measure::timed(contest.operations, work);
                               if (i == 0 || cost.cpu < best.cpu) best = cost;
                           }
                           return best;
                       }};
    };
    std::vector<Variant> variants{variant("library", contest.library),
                                  variant("bare", [&] { contest.bare(bare::Buffers::standard); }),
                                  variant("bare, large buffers", [&] { contest.bare(bare::Buffers::large); })};
    if (contest.floor) variants.push_back(variant("bare, signed", contest.floor));
    take_turns(variants, world.rounds);
    const Variant& best = variants[2].cpu() < variants[1].cpu() ? variants[2] : variants[1];
    Row row = ratio_row(contest.work, contest.scheme, contest.target, variants[0], best);
    if (!contest.peer_work.empty())
        row.others = others(world, contest.peer_work, contest.scheme, contest.operations, best.cpu());
    if (contest.floor) {
        const Row floor = ratio_row(contest.work, contest.scheme, contest.target, variants[3], best);
        const Row ours = ratio_row(contest.work, contest.scheme, contest.target, variants[0], variants[3]);
        row.others = "signed x" + measure::three_digits(floor.value) + ", of which ours is x" +
                     measure::three_digits(ours.value) + (row.others.empty() ? "" : ", ") + row.others;
    }
    table.add(row);
}

// The two bare handles of a row, each with a warm connection of its own.
struct Pair {
    Pair(const bare::Store& store, Kind kind)
        : standard(store, kind, bare::Buffers::standard), large(store, kind, bare::Buffers::large) {}
    bare::Handle& of(bare::Buffers buffers) { return buffers == bare::Buffers::large ? large : standard; }
    bare::Handle standard, large;
};

std::string small_key(std::size_t i) { return "small/" + std::to_string(i % small_keys); }
std::string put_key(std::size_t i) { return "put/" + std::to_string(i % small_keys); }
std::string gone_key(std::size_t i) { return "gone/" + std::to_string(i); }

void rows_small(const World& world, Table& table, const std::string& scheme) {
    const bare::Store store = store_at(world, world.endpoint(scheme));
    s3cache::Cache cache = open_cache(world, world.endpoint(scheme));
    const std::size_t count = (scheme == "https" ? 250 : 500) * world.scale;
    std::vector<std::string> gets, puts, gone;
    for (std::size_t i = 0; i < count; ++i) {
        gets.push_back(small_key(i));
        puts.push_back(put_key(i));
        gone.push_back(gone_key(i));
    }
    Pair get(store, Kind::get), put(store, Kind::put_small), remove(store, Kind::remove);
    using bare::Buffers;
    using bare::signed_lines;
    const Buffers usual = scheme == "https" ? Buffers::standard : Buffers::large;
    const std::vector<std::string> lines = signed_lines("host"),
                                   put_lines = signed_lines("content-type;host", bare::stored_lines());
    bare::Handle signed_get(store, Kind::get, usual, lines), signed_remove(store, Kind::remove, usual, lines);
    bare::Handle signed_put(store, Kind::put_small, Buffers::standard, put_lines);
    bare::Signature signature(lines), put_signature(put_lines);
    bare::Sha256 sha;
    const std::string data = random_bytes(small_bytes);

    hold(world, table,
         {"get 4 KiB", scheme, 1.15, count,
          [&] {
              for (const auto& key : gets) expect_size(checked(cache.try_get(key)).value().view().size(), small_bytes);
          },
          [&](bare::Buffers buffers) {
              for (const auto& key : gets) {
                  get.of(buffers).run(key);
                  expect_size(get.of(buffers).value.size(), small_bytes);
              }
          },
          [] {}, "get-small",
          [&] {
              for (const auto& key : gets) {
                  signature.make();
                  signed_get.run(key);
                  expect_size(signed_get.value.size(), small_bytes);
              }
          }});
    hold(world, table,
         {"remove", scheme, 1.15, count,
          [&] {
              for (const auto& key : gone) checked(cache.try_remove(key));
          },
          [&](bare::Buffers buffers) {
              for (const auto& key : gone) remove.of(buffers).run(key);
          },
          [&] {
              for (const auto& key : gone) write_file(world.root + "/bench/" + key, "");
          },
          "remove",
          [&] {
              for (const auto& key : gone) {
                  signature.make();
                  signed_remove.run(key);
              }
          }});
    hold(world, table,
         {"set 4 KiB (bare: and its SHA-256)", scheme, 1.10, count,
          [&] {
              for (const auto& key : puts) checked(cache.try_set(key, s3cache::bytes(data.data(), data.size())));
          },
          [&](bare::Buffers buffers) {
              for (const auto& key : puts) {
                  sha.of(data);
                  put.of(buffers).run(key, data);
              }
          },
          [] {}, "set-small",
          [&] {
              for (const auto& key : puts) {
                  sha.of(data);
                  put_signature.make();
                  signed_put.run(key, data);
              }
          }});
}

void rows_many(const World& world, Table& table, const std::string& scheme) {
    const bare::Store store = store_at(world, world.endpoint(scheme));
    s3cache::Cache cache = open_cache(world, world.endpoint(scheme),
                                      [](s3cache::Config& config) { config.connections = many_connections; });
    const std::size_t count = (scheme == "https" ? 400 : 800) * world.scale;
    const std::string data = random_bytes(small_bytes);
    std::vector<std::string> gets;
    std::vector<s3cache::Item> items;
    for (std::size_t i = 0; i < count; ++i) {
        gets.push_back(small_key(i));
        items.push_back({"put/" + std::to_string(i % 512), s3cache::bytes(data.data(), data.size())});
    }
    using bare::Buffers;
    bare::Many get(store, Kind::get, Buffers::standard, many_connections),
        get_large(store, Kind::get, Buffers::large, many_connections);
    bare::Many put(store, Kind::put_small, Buffers::standard, many_connections),
        put_large(store, Kind::put_small, Buffers::large, many_connections);
    const std::vector<std::string> lines = bare::signed_lines("host"),
                                   put_lines = bare::signed_lines("content-type;host", bare::stored_lines());
    bare::Many signed_get(store, Kind::get, scheme == "https" ? Buffers::standard : Buffers::large, many_connections,
                          lines),
        signed_put(store, Kind::put_small, Buffers::standard, many_connections, put_lines);
    bare::Signature signature(lines), put_signature(put_lines);
    bare::Sha256 sha;
    const auto get_by = [&](bare::Many& many, bool is_signed) {
        std::size_t bytes = 0;
        many.run(
            count,
            [&](bare::Handle& handle, std::size_t i) {
                if (is_signed) signature.make();
                handle.prepare(gets[i]);
            },
            [&](bare::Handle& handle) { bytes += handle.value.size(); });
        expect_size(bytes, count * small_bytes);
    };
    const auto put_by = [&](bare::Many& many, bool is_signed) {
        many.run(
            count,
            [&](bare::Handle& handle, std::size_t i) {
                sha.of(items[i].payload.view());
                if (is_signed) put_signature.make();
                handle.prepare(items[i].key, items[i].payload.view());
            },
            [](bare::Handle&) {});
    };

    hold(world, table,
         {"get_many 4 KiB, 8 connections",
          scheme,
          1.30,
          count,
          [&] {
              std::size_t bytes = 0;
              cache.get_many(gets, [&](const std::string&, s3cache::Result<std::optional<s3cache::Value>> hit) {
                  bytes += checked(std::move(hit)).value().view().size();
              });
              expect_size(bytes, count * small_bytes);
          },
          [&](Buffers buffers) { get_by(buffers == Buffers::large ? get_large : get, false); },
          [] {},
          {},
          [&] { get_by(signed_get, true); }});
    hold(world, table,
         {"set_many 4 KiB, 8 connections (bare: and SHA-256)",
          scheme,
          1.30,
          count,
          [&] {
              for (const auto& stored : cache.set_many(items)) checked(stored);
          },
          [&](Buffers buffers) { put_by(buffers == Buffers::large ? put_large : put, false); },
          [] {},
          {},
          [&] { put_by(signed_put, true); }});
}

// One connection carries a megabyte at a third of another's cost, for as long as both live, by how far the kernel lets its
// window grow, which is chance. So each round has new ones, warmed up by one operation each way, and the cheapest of three counts.
void rows_mib(const World& world, Table& table, const std::string& scheme) {
    const bare::Store store = store_at(world, world.endpoint(scheme));
    std::optional<s3cache::Cache> cache, unchecked;
    std::optional<Pair> get, put;
    constexpr int new_connections = 3;
    const std::size_t count = (scheme == "https" ? 10 : 20) * world.scale;
    bare::Sha256 sha;
    const std::string data = random_bytes(mib);
    const auto renew = [&] {
        cache.emplace(open_cache(world, world.endpoint(scheme)));
        unchecked.emplace(open_cache(world, world.endpoint(scheme), [](s3cache::Config& config) {
            config.checksums = s3cache::Checksums::none;
            config.unsigned_payload = true;
        }));
        for (s3cache::Cache* one : {&*cache, &*unchecked}) {
            expect_size(checked(one->try_get("mib")).value().view().size(), mib);
            checked(one->try_set("put/mib", s3cache::bytes(data.data(), data.size())));
        }
        get.emplace(store, Kind::get);
        put.emplace(store, Kind::put);
        for (const bare::Buffers buffers : {bare::Buffers::standard, bare::Buffers::large}) {
            get->of(buffers).run("mib");
            put->of(buffers).run("put/mib", data);
        }
    };
    const auto times = [count](const std::function<void()>& work) {
        return [count, work] {
            for (std::size_t i = 0; i < count; ++i) work();
        };
    };
    const auto bare_get = [&](bare::Buffers buffers) {
        for (std::size_t i = 0; i < count; ++i) {
            get->of(buffers).run("mib");
            expect_size(get->of(buffers).value.size(), mib);
        }
    };
    const auto bare_put = [&](bare::Buffers buffers, bool hashed) {
        for (std::size_t i = 0; i < count; ++i) {
            if (hashed) sha.of(data);
            put->of(buffers).run("put/mib", data);
        }
    };
    hold(world, table,
         {"get 1 MiB, checksum off",
          scheme,
          1.05,
          count,
          times([&] { expect_size(checked(unchecked->try_get("mib")).value().view().size(), mib); }),
          bare_get,
          renew,
          "get-mib",
          {},
          new_connections});
    hold(world, table,
         {"get 1 MiB, checksum on",
          scheme,
          1.15,
          count,
          times([&] { expect_size(checked(cache->try_get("mib")).value().view().size(), mib); }),
          bare_get,
          renew,
          {},
          {},
          new_connections});
    if (scheme == "https") {
        hold(world, table,
             {"set 1 MiB, payload unsigned",
              scheme,
              1.05,
              count,
              times([&] { checked(unchecked->try_set("put/mib", s3cache::bytes(data.data(), data.size()))); }),
              [&](bare::Buffers buffers) { bare_put(buffers, false); },
              renew,
              {},
              {},
              new_connections});
    }
    hold(world, table,
         {"set 1 MiB, payload signed (bare: and its SHA-256)",
          scheme,
          1.05,
          count,
          times([&] { checked(cache->try_set("put/mib", s3cache::bytes(data.data(), data.size()))); }),
          [&](bare::Buffers buffers) { bare_put(buffers, true); },
          renew,
          "set-mib",
          {},
          new_connections});
}

// Held against zlib alone, in this process and in the same rounds.
void rows_gzip(const World& world, Table& table, const std::string& scheme) {
    s3cache::Cache cache = open_cache(world, world.endpoint(scheme));
    const std::string text = json_text(text_bytes), small = packed(text, compression_level);
    const std::size_t times = 4;
    hold(world, table,
         {"set 8 MiB with gzip (bare: zlib alone)", scheme, 1.05, 1,
          [&] {
              checked(cache.try_set("put/text", s3cache::bytes(text.data(), text.size()), {{}, true}));
          },
          [&](bare::Buffers) { expect_size(packed(text, compression_level).size(), small.size()); }});
    hold(world, table,
         {"get 8 MiB of gzip (bare: inflate alone)", scheme, 1.10, times,
          [&] {
              for (std::size_t i = 0; i < times; ++i)
                  expect_size(checked(cache.try_get("text.gz")).value().view().size(), text_bytes);
          },
          [&](bare::Buffers) {
              for (std::size_t i = 0; i < times; ++i) unpack(small, text_bytes);
          }});
}

// ---------------------------------------------------------------- streams, each in a process of its own

// A source as cheap as memory gets: the block over and over, so that all parts are the same.
std::size_t fill(const std::string& block, char* buffer, std::size_t capacity, std::size_t& left) {
    const std::size_t at = (block.size() - left % block.size()) % block.size();
    const std::size_t count = (std::min)({capacity, left, block.size() - at});
    std::memcpy(buffer, block.data() + at, count);
    left -= count;
    return count;
}

void library_get_stream(const World& world, const std::string& endpoint, const char* key) {
    s3cache::Cache cache = open_cache(world, endpoint);
    auto reader = checked(cache.try_get_stream(key));
    if (!reader) fail("there is no stream");
    std::size_t bytes = 0;
    for (;;) {
        const std::string_view chunk = checked(reader->try_next());
        if (chunk.empty()) break;
        bytes += chunk.size();
    }
    expect_size(bytes, world.stream_bytes);
}

void bare_get_stream(const World& world, const std::string& endpoint, bare::Buffers buffers) {
    const bare::Store store = store_at(world, endpoint);
    bare::Handle handle(store, Kind::get, buffers);
    handle.keep = false;
    handle.run("stream");
    expect_size(handle.received, world.stream_bytes);
}

void library_set_stream(const World& world, const std::string& endpoint) {
    s3cache::Cache cache = open_cache(world, endpoint);
    const std::string block = random_bytes(mib);
    std::size_t left = world.stream_bytes;
    const auto source = [&](char* buffer, std::size_t capacity) { return fill(block, buffer, capacity, left); };
    checked(cache.try_set("multi", s3cache::Source(source).sized(world.stream_bytes)));
}

// The same parts one after the other, which costs least; no ETag is read, nothing is retried.
void bare_set_stream(const World& world, const std::string& endpoint, bare::Buffers buffers) {
    const bare::Store store = store_at(world, endpoint);
    bare::Handle post(store, Kind::post, buffers), put(store, Kind::put, buffers);
    bare::Sha256 sha;
    const std::string block = random_bytes(mib);
    const std::unique_ptr<char[]> part(new char[part_bytes]);
    std::size_t left = world.stream_bytes, number = 0;
    std::string list = "<CompleteMultipartUpload>";
    post.run("multi?uploads=");
    while (left > 0) {
        std::size_t size = 0;
        while (size < part_bytes && left > 0) size += fill(block, part.get() + size, part_bytes - size, left);
        sha.of({part.get(), size});
        put.run("multi?partNumber=" + std::to_string(++number) + "&uploadId=u", {part.get(), size});
        list += "<Part><PartNumber>" + std::to_string(number) + "</PartNumber><ETag>e</ETag></Part>";
    }
    post.run("multi?uploadId=u", list + "</CompleteMultipartUpload>");
}

int child(const World& world, const std::string& work, const std::string& side, const std::string& endpoint) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const bare::Buffers buffers = side == "large" ? bare::Buffers::large : bare::Buffers::standard;
    const Cost cost = measure::timed(1, [&] {
        if (side == "library" && work != "set")
            return library_get_stream(world, endpoint, work == "get" ? "stream" : "parts");
        if (work != "set") return bare_get_stream(world, endpoint, buffers);
        if (side == "library") return library_set_stream(world, endpoint);
        bare_set_stream(world, endpoint, buffers);
    });
    std::printf("%.9f %.9f %.3f\n", cost.cpu, cost.wall, measure::peak_memory_mib());
    return 0;
}

Cost child_cost(const std::string& work, const std::string& side, const std::string& endpoint) {
    bool fine = false;
    const Cost cost = measure::run_measured({"/proc/self/exe", "child", work, side, endpoint}, fine);
    if (!fine) fail("the child that measures '" + work + "' by " + side + " failed");
    return cost;
}

std::string stream_name(const World& world) {
    return world.stream_bytes == 1024 * mib ? "1 GiB" : std::to_string(world.stream_bytes / mib) + " MiB";
}

void row_stream(const World& world, Table& table, const std::string& scheme, const std::string& work,
                const std::string& name, double memory_target) {
    if (!world.wants(name)) return;
    const std::string& endpoint = world.endpoint(scheme);
    const auto variant = [&](const std::string& side) {
        return Variant{side, [&endpoint, work, side] { return child_cost(work, side, endpoint); }};
    };
    // Which buffers suit the bare loop is settled beforehand: these rounds are long.
    const bool large = child_cost(work, "large", endpoint).cpu < child_cost(work, "standard", endpoint).cpu;
    std::vector<Variant> variants{variant("library"), variant(large ? "large" : "standard")};
    take_turns(variants, 5);
    Row row = ratio_row(name, scheme, work == "get-parts" ? 1.15 : 1.10, variants[0], variants[1]);
    if (work != "get-parts") row.others = others(world, work + "-stream", scheme, 1, row.bare);
    table.add(row);
    Row memory{name + ": peak memory", scheme};
    memory.unit = Unit::mib;
    memory.plain = true;
    memory.library = memory.value = variants[0].memory();
    memory.bare = variants[1].memory();
    memory.target = memory_target;
    table.add(memory);
}

void rows_stream(const World& world, Table& table, const std::string& scheme) {
    row_stream(world, table, scheme, "get", "get_stream of " + stream_name(world), 16);
    row_stream(world, table, scheme, "get-parts", "get_stream of " + stream_name(world) + " in parts, with its CRC-32C",
               16);
    row_stream(world, table, scheme, "set", "set of a stream of " + stream_name(world) + " (bare: and SHA-256)", 32);
}

// ---------------------------------------------------------------- far and narrow: wall time against what the line allows

void row_far(const World& world, Table& table, const std::string& name, const std::function<void()>& library,
             const std::function<void()>& bare, unsigned connections) {
    if (!world.wants(name)) return;
    const double ideal = static_cast<double>(world.far_keys) / connections * 0.020;
    Row row{name, "http"};
    std::vector<Variant> variants{Variant{"library", [&] { return measure::timed(1, library); }},
                                  Variant{"bare", [&] { return measure::timed(1, bare); }}};
    take_turns(variants, world.long_rounds);  // the round that warms up makes the connections
    row.library = variants[0].wall();
    row.bare = variants[1].wall();
    row.value = row.library / ideal;
    row.target = 1.2;
    row.others = "ideal " + measure::show(ideal, Unit::time);
    table.add(row);
}

void rows_far(const World& world, Table& table) {
    constexpr unsigned connections = 32;
    const bare::Store store = store_at(world, world.far);
    s3cache::Cache cache =
        open_cache(world, world.far, [](s3cache::Config& config) { config.connections = connections; });
    const std::string data = random_bytes(small_bytes);
    bare::Many get(store, Kind::get, bare::Buffers::standard, connections),
        put(store, Kind::put_small, bare::Buffers::standard, connections);
    const std::string size = std::to_string(world.far_keys) + " x 4 KiB";
    row_far(
        world, table, "get_many of " + size + " over 20 ms, 32 connections",
        [&] {
            std::vector<std::string> keys;
            for (std::size_t i = 0; i < world.far_keys; ++i) keys.push_back(small_key(i));
            cache.get_many(keys, [](const std::string&, auto hit) {
                expect_size(checked(std::move(hit)).value().view().size(), small_bytes);
            });
        },
        [&] {
            get.run(
                world.far_keys, [](bare::Handle& handle, std::size_t i) { handle.prepare(small_key(i)); },
                [](bare::Handle&) {});
        },
        connections);
    row_far(
        world, table, "set_many of " + size + " over 20 ms, 32 connections",
        [&] {
            std::vector<s3cache::Item> items;
            for (std::size_t i = 0; i < world.far_keys; ++i)
                items.push_back({"put/" + std::to_string(i % 512), s3cache::bytes(data.data(), data.size())});
            for (const auto& stored : cache.set_many(items)) checked(stored);
        },
        [&] {
            put.run(
                world.far_keys,
                [&](bare::Handle& handle, std::size_t i) { handle.prepare("put/" + std::to_string(i % 512), data); },
                [](bare::Handle&) {});
        },
        connections);
}

// How fast a line is filled is a matter of wall time, so the processor must not be what is full: all cores may work.
void use_all_cores() {
    cpu_set_t all;
    CPU_ZERO(&all);
    for (long i = 0; i < sysconf(_SC_NPROCESSORS_CONF); ++i) CPU_SET(static_cast<std::size_t>(i), &all);
    if (sched_setaffinity(0, sizeof all, &all) != 0) std::fprintf(stderr, "bench: one core only\n");
}

void rows_narrow(const World& world, Table& table) {
    use_all_cores();
    constexpr double line = 8 * 50e6;
    for (const std::string work : {"get", "set"}) {
        const std::string name =
            (work == "get" ? "get_stream of " : "set of ") + stream_name(world) + ", 8 connections of 50 MB/s";
        if (!world.wants(name)) continue;
        std::vector<double> speeds, memory;
        for (int round = 0; round < world.long_rounds; ++round) {
            const Cost cost = child_cost(work, "library", world.narrow);
            speeds.push_back(static_cast<double>(world.stream_bytes) / cost.wall);
            memory.push_back(cost.memory_mib);
        }
        Row row{name, "http"};
        row.unit = Unit::mb_per_second;
        row.library = measure::median(speeds) / 1e6;
        row.value = measure::median(speeds) / line;
        row.target = 0.9;
        row.at_least = true;
        row.others = "ideal " + measure::show(line / 1e6, row.unit);
        table.add(row);
        Row peak{name + ": peak memory", "http"};
        peak.unit = Unit::mib;
        peak.plain = true;
        peak.library = peak.value = measure::median(memory);
        peak.target = static_cast<double>(s3cache::Config().transfer_bytes_max / mib) + 16;
        table.add(peak);
    }
}

// ---------------------------------------------------------------- a process for one get

void rows_process(const World& world, Table& table, const std::string& scheme) {
    const std::string name = "a process that does one get of 4 KiB";
    if (!world.wants(name)) return;
    setenv("AWS_CA_BUNDLE", world.ca.c_str(), 1);
    const auto variant = [&](const std::string& program) {
        return Variant{program, [&world, &scheme, program] {
                           constexpr int times = 10;
                           Cost sum;
                           for (int i = 0; i < times; ++i) {
                               const measure::Ran ran = measure::run_program(
                                   {world.programs + "/" + program, world.endpoint(scheme), "bench", "small/0", "1"});
                               if (!ran.fine) fail(program + " failed");
                               sum.cpu += ran.cost.cpu / times;
                               sum.wall += ran.cost.wall / times;
                           }
                           return sum;
                       }};
    };
    std::vector<Variant> variants{variant("one"), variant("one_bare")};
    take_turns(variants, world.rounds);
    table.add(ratio_row(name + ": CPU", scheme, 1.2, variants[0], variants[1]));
    for (Variant& v : variants) {
        for (Cost& cost : v.samples) cost.cpu = cost.wall;
    }
    table.add(ratio_row(name + ": wall", scheme, 1.2, variants[0], variants[1]));
}

int run_table(const World& world) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
    Table table;
    table.print_head();
    for (const std::string scheme : {"http", "https"}) {
        rows_small(world, table, scheme);
        rows_many(world, table, scheme);
        rows_mib(world, table, scheme);
        rows_gzip(world, table, scheme);
        rows_process(world, table, scheme);
        rows_stream(world, table, scheme);
    }
    rows_far(world, table);
    rows_narrow(world, table);
    std::printf("\n%zu rows, %zu within their target\n", table.size(), table.size() - table.missed());
    const std::string path = environment("BENCH_MARKDOWN");
    if (std::FILE* out = path.empty() ? nullptr : std::fopen(path.c_str(), "w")) {
        table.write(out);
        std::fclose(out);
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const World world;
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() == 1 && arguments[0] == "table") return run_table(world);
    if (arguments.size() == 1 && arguments[0] == "versions") {
        std::printf("%s, zlib %s\n", curl_version(), zlibVersion());
        return 0;
    }
    if (arguments.size() == 2 && arguments[0] == "files") return make_files(world, arguments[1]);
    if (arguments.size() == 4 && arguments[0] == "child") return child(world, arguments[1], arguments[2], arguments[3]);
    std::fprintf(stderr, "usage: bench table | versions | files DIR | child WORK SIDE ENDPOINT\n");
    return 64;
}
