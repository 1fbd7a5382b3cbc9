// What the cache does, for your log and your dashboards; and limits for those who wait.
// g++ -std=c++17 -I../.. watch.cpp -o watch -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: watch my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Config config;
        config.call_timeout = 2s;  // a whole call, with all its attempts
        config.attempts_max = 2;
        config.on_event = [](const s3cache::Event& event) {
            if (event.attempt == 0) std::cout << event.operation << " " << event.key << ": " << event.outcome << "\n";
        };
        s3cache::Cache cache(argv[1], config);
        cache.set("k", "v", {1h});
        cache.get("k");
        cache.get("other");
        cache.remove("k");
        const s3cache::Stats stats = cache.stats();
        std::cout << stats.hits << " hit, " << stats.misses << " miss, " << stats.errors << " errors\n";
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "watch: " << error.what() << "\n";
        return 2;
    }
}
