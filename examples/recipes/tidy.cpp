// For cron: removes what has expired and what crashed writers left, says how much, and fails when it could not.
// g++ -std=c++17 -I../.. tidy.cpp -o tidy -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: tidy my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Config config;
    config.attempts_max = 10;  // nobody waits: better late than not
    s3cache::Cache cache(argv[1], config);
    cache.set("old", "...", {1ms});
    cache.set("new", "...", {1h});
    const auto purged = cache.try_purge_expired();
    const auto swept = cache.try_sweep_uploads("", 24h);
    for (const auto* result : {&purged, &swept}) {
        if (!*result) return std::cerr << "tidy: " << result->error().what() << "\n", 1;  // cron mails it
    }
    std::cout << *purged << " expired, " << *swept << " uploads never completed\n";
    cache.remove("new");
}
