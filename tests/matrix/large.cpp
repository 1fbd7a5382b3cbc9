// An object over 4 GiB, where a size or an offset of 32 bits would show: a file up, the file down, and a stream that is cut
// behind 4 GiB and goes on from there. large.sh runs it, also under an emulated processor of 32 bits.
//     large ENDPOINT FOLDER     the server cuts the first answer that goes past 4 GiB and 1 MiB there
#include "s3cache.hpp"

#include <cstdio>
#include <fstream>

namespace {

constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t size = 4 * gib + (std::uint64_t{9} << 20) + 3;

// The offsets of the only bytes that are not zero: around 2 GiB, 4 GiB, the cut, and at both ends.
constexpr std::uint64_t marks[] = {0,
                                   2 * gib - 1,
                                   2 * gib,
                                   4 * gib - 1,
                                   4 * gib,
                                   4 * gib + (std::uint64_t{1} << 20) - 1,
                                   4 * gib + (std::uint64_t{1} << 20),
                                   size - 1};
constexpr char mark_of(std::size_t index) { return static_cast<char>('A' + index); }
constexpr std::size_t mark_count = sizeof marks / sizeof *marks;

int failures = 0;

void check(bool truth, const std::string& what) {
    std::printf("%s %s\n", truth ? "ok   " : "FAIL ", what.c_str());
    if (!truth) ++failures;
}

template <class T>
bool said(const char* what, const s3cache::Result<T>& result) {
    check(result.has_value(), what + (result ? std::string() : std::string(": ") + result.error().what()));
    return result.has_value();
}

// A file with holes: it takes no room. Streams of the C++ library know 64 bits of offset on every machine.
void write_marks(const std::string& path) {
    std::ofstream out(path, std::ios::binary);
    for (std::size_t i = 0; i < mark_count; ++i) {
        out.seekp(static_cast<std::streamoff>(marks[i]));
        out.put(mark_of(i));
    }
}

bool has_marks(const std::string& path) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in || static_cast<std::uint64_t>(static_cast<std::streamoff>(in.tellg())) != size) return false;
    for (std::size_t i = 0; i < mark_count; ++i) {
        in.seekg(static_cast<std::streamoff>(marks[i]));
        if (in.get() != mark_of(i)) return false;
    }
    return true;
}

// Looks for the marks in what arrives, and counts it.
class Counted {
public:
    void take(std::string_view chunk) {
        for (; next_ < mark_count && marks[next_] < bytes_ + chunk.size(); ++next_) {
            if (chunk[static_cast<std::size_t>(marks[next_] - bytes_)] == mark_of(next_)) ++found_;
        }
        bytes_ += chunk.size();
    }
    bool whole() const { return bytes_ == size && found_ == mark_count; }
    std::string text() const { return std::to_string(bytes_) + " bytes, " + std::to_string(found_) + " marks"; }

private:
    std::uint64_t bytes_ = 0;
    std::size_t next_ = 0, found_ = 0;
};

void stream_down(s3cache::Cache& cache, const char* key) {
    auto reader = cache.try_get_stream(key);
    if (!said("the stream opens", reader)) return;
    if (!*reader) return check(false, "it is there");
    check((*reader)->info().size == size, "the stream's size");
    Counted counted;
    for (;;) {
        const auto chunk = (*reader)->try_next();
        if (!chunk) return check(false, std::string(chunk.error().what()) + " after " + counted.text());
        if (chunk->empty()) break;
        counted.take(*chunk);
    }
    check(counted.whole(), "a stream that was cut behind 4 GiB: " + counted.text());
}

void there_and_back(s3cache::Cache& cache, const std::string& folder) {
    const std::string up = folder + "/up", down = folder + "/down";
    write_marks(up);
    check(has_marks(up), "a file of " + std::to_string(size) + " bytes");
    if (!said("the file goes up", cache.try_set_file("large", up))) return;
    const auto info = cache.try_stat("large");
    check(info && *info && (*info)->size == size, "its size in the store");
    stream_down(cache, "large");
    said("the file comes down", cache.try_get_file("large", down));
    check(has_marks(down), "the same file");
    std::remove(down.c_str());
    std::remove(up.c_str());
}

// The same from a stream that says nothing of its length.
void unknown_length(s3cache::Cache& cache) {
    std::uint64_t at = 0;
    std::size_t next = 0;
    const auto source = [&](char* buffer, std::size_t capacity) -> std::size_t {
        const auto count = static_cast<std::size_t>((std::min)(std::uint64_t{capacity}, size - at));
        std::fill_n(buffer, count, '\0');
        for (; next < mark_count && marks[next] < at + count; ++next) buffer[marks[next] - at] = mark_of(next);
        at += count;
        return count;
    };
    if (!said("a stream goes up", cache.try_set("large stream", source))) return;
    stream_down(cache, "large stream");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return std::fprintf(stderr, "usage: large ENDPOINT FOLDER\n"), 64;
    s3cache::Config config;
    config.endpoint = arguments[1];
    config.credentials = s3cache::Credentials{"key", "secret", {}, {}, "the test"};
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!said("a cache opens", cache)) return 1;
    std::printf("      pointers of %zu bits\n", 8 * sizeof(void*));
    there_and_back(*cache, arguments[2]);
    unknown_length(*cache);
    return failures == 0 ? 0 : 1;
}
