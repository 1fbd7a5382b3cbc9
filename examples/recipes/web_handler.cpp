// A web handler that never fails because of its cache: what cannot be read is computed, and nobody waits long.
// g++ -std=c++17 -I../.. web_handler.cpp -o web_handler -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

s3cache::Config tolerant() {
    using namespace std::chrono_literals;
    s3cache::Config config;
    config.call_timeout = 2s;  // nobody waits longer for the cache
    config.attempts_max = 2;
    config.breaker_failures = 5;  // a store in trouble is left alone for ten seconds
    return config;
}

std::string page_of(s3cache::Cache& cache, const std::string& user) {
    const auto render = [&] { return "<h1>" + user + "</h1>"; };
    const auto page = cache.try_get_or_set("page/" + user, render, {std::chrono::minutes(5)});
    return page ? page->str() : render();
}

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: web_handler my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Cache cache(argv[1], tolerant());
    s3cache::Cache away("bucket?endpoint=http://127.0.0.1:1", tolerant());  // nobody is there
    std::cout << page_of(cache, "ann") << page_of(cache, "ann") << page_of(away, "bob") << "\n";
    std::cout << cache.stats().computed << " rendered, " << cache.stats().hits << " from the cache\n";
    cache.remove("page/ann");
}
