// A step of a pipeline: its result is large, so that writing has a deadline of its own, and a failure is seen.
// g++ -std=c++17 -I../.. etl.cpp -o etl -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: etl my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Config config;
    config.call_timeout = 2s;  // of reading: who waits for a miss waits for nothing
    config.errors_are_misses = true;
    s3cache::Cache cache(argv[1], config);
    if (const auto done = cache.get_stream("etl/2026-11")) return std::cout << "nothing to do\n", 0;

    std::uint64_t rows = 0;
    const auto transform = [&](char* buffer,
                               std::size_t capacity) -> std::size_t {  // a row at a time, never all of them
        if (rows == 1000000) return 0;
        const std::string row = std::to_string(rows++) + "\n";
        return row.copy(buffer, capacity);
    };
    s3cache::SetOptions options{24h, /*compress=*/true};
    options.timeout = 10min;  // of writing: megabytes do not go up in two seconds
    const auto stored = cache.try_set("etl/2026-11", transform, options);
    if (!stored) return std::cerr << stored.error().what() << "\n", 1;  // the next run will do it again
    std::cout << rows << " rows\n";
    cache.remove("etl/2026-11");
}
