// Where OpenSSL refuses SHA-256 nothing can be signed: every operation must say so, and send nothing. check_all.sh runs this with an
// OpenSSL configuration that has no algorithm allowed under FIPS. S3CACHE_TEST_ENDPOINT names a store.
#include "s3cache.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

int failures = 0;

template <class T>
void check(const char* operation, const s3cache::Result<T>& result) {
    const bool clear = !result && result.error().code() == s3cache::Errc::unsupported &&
                       std::strstr(result.error().what(), "SHA-256") && result.error().attempts() == 0;
    std::printf("%s %s: %s\n", clear ? "ok   " : "FAIL ", operation, result ? "no error" : result.error().what());
    if (!clear) ++failures;
}

}  // namespace

int main() {
    s3cache::Config config;
    config.endpoint = std::getenv("S3CACHE_TEST_ENDPOINT");
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!cache) return check("open", cache), failures;
    check("set", cache->try_set("key", "value"));
    check("get", cache->try_get("key"));
    check("get_stream", cache->try_get_stream("key"));
    check("remove", cache->try_remove("key"));
    check("presign", cache->try_presign("key", "GET", std::chrono::hours(1)));
    return failures;
}
