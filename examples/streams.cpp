// Streams of any length, gzipped on the way in and inflated on the way out, in bounded memory.
// g++ -std=c++17 -I.. streams.cpp -o streams -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <sys/resource.h>  // getrusage: how much memory it took

#include <algorithm>  // count
#include <iostream>

// A source is anything that fills a buffer and returns how much it put there: 0 at the end.
struct Diary {
    int day = 0, days;
    std::string rest{};

    std::size_t operator()(char* buffer, std::size_t capacity) {
        if (rest.empty() && day < days) rest = "day " + std::to_string(++day) + ": nothing worth a new line happened\n";
        const std::size_t count = rest.copy(buffer, capacity);
        rest.erase(0, count);
        return count;
    }
};

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) {
        std::cerr << "usage: streams my-bucket   (or s3://my-bucket/some/prefix)\n";
        return 64;
    }
    try {
        s3cache::Cache cache(argv[1]);
        cache.set("diary", Diary{0, 4000000}, {1h, /*compress=*/true});

        if (auto diary = cache.get_stream("diary")) {
            std::size_t bytes = 0;
            std::ptrdiff_t days = 0;
            for (std::string_view chunk : *diary) {  // what you don't read isn't downloaded
                bytes += chunk.size();
                days += std::count(chunk.begin(), chunk.end(), '\n');
            }
            std::cout << "Read " << days << " days in " << bytes / 1000000 << " MB of text, kept in the bucket as "
                      << diary->info().size / 1000 << " kB.\n";
        }
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        std::cout << "The program never held more than " << usage.ru_maxrss / 1024 << " MiB.\n";
        cache.remove("diary");
    } catch (const s3cache::Error& error) {
        std::cerr << "streams: " << error.what() << "\n";
        return 2;
    }
}
