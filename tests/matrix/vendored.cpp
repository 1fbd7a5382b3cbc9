// A library that has s3cache.hpp of its own: VERSION is `old` or `new`, and both are linked into one program.
#include "s3cache.hpp"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

int JOINED(use_, VERSION)();
int JOINED(use_, VERSION)() {
    s3cache::Config config;
    config.endpoint = "http://127.0.0.1:1";
    config.attempts_max = 1;
    config.credentials = s3cache::anonymous();
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!cache) return 1;
    const auto hit = cache->try_get("key");
    return !hit && hit.error().code() == s3cache::Errc::network ? 0 : 1;
}
