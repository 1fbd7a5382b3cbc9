// A stream of any length goes in gzipped and comes out inflated, in bounded memory.
// g++ -std=c++17 -I../.. streams.cpp -o streams -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <sstream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: streams my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        std::istringstream log("one line\nanother line\n");  // any std::istream, or a function that fills a buffer
        cache.set("logs/today", log, {7 * 24h, /*compress=*/true});

        if (auto in = cache.get_stream("logs/today")) {
            for (std::string_view chunk : *in) std::cout << chunk;  // what is not read is not downloaded
            std::cout << "stored " << (in->info().compressed ? "gzipped" : "plain") << "\n";
        }
        cache.remove("logs/today");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "streams: " << error.what() << "\n";
        return 2;
    }
}
