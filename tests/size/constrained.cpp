// What examples/minimal.cpp does, as a build without exceptions and RTTI would.
#include "s3cache.hpp"

#include <cstdio>

int main(int argc, char** argv) {
    if (argc != 2) return 64;
    auto cache = s3cache::Cache::try_open(argv[1]);
    if (!cache) return std::fprintf(stderr, "%s\n", cache.error().what()), 2;
    const auto stored = cache->try_set("greeting", "Hello from the bucket.", {std::chrono::seconds(2)});
    if (!stored) return std::fprintf(stderr, "%s\n", stored.error().what()), 2;
    const auto hit = cache->try_get("greeting");
    if (!hit) return std::fprintf(stderr, "%s\n", hit.error().what()), 2;
    if (*hit) std::puts((*hit)->str().c_str());
    return 0;
}
