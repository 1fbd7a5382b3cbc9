// Touching on read: what is in use lives on, what nobody asks for ends an hour after it was last read.
// g++ -std=c++17 -I../.. touch_on_read.cpp -o touch_on_read -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

constexpr std::chrono::minutes lifetime(60);

// A touch costs two requests, so that it is left out while most of the time is still to come.
std::optional<s3cache::Value> get_and_keep(s3cache::Cache& cache, const std::string& key) {
    auto hit = cache.get(key);
    const auto soon = std::chrono::system_clock::now() + lifetime / 2;
    if (hit && hit->info().expires_at && *hit->info().expires_at < soon) cache.touch(key, lifetime);
    return hit;
}

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: touch_on_read my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Cache cache(argv[1]);
    cache.set("session/ann", "...", {std::chrono::minutes(10)});
    get_and_keep(cache, "session/ann");
    const auto left = cache.stat("session/ann")->expires_at.value() - std::chrono::system_clock::now();
    std::cout << (left > std::chrono::minutes(50) ? "an hour again" : "ten minutes still") << "\n";
    cache.remove("session/ann");
}
