// One operation on a value of 4 KiB, COUNT times, after one of each: what tests/budget.py counts the instructions, allocations and
// system calls of. A run with COUNT and one with twice as many differ by what COUNT of them cost.
//     operations set|get|remove COUNT      S3CACHE_TEST_ENDPOINT and the AWS_* variables name the store
#include "s3cache.hpp"

#include <cstdio>   // the error text
#include <cstdlib>  // strtol, getenv
#include <cstring>  // strcmp

#include <unistd.h>  // getppid

namespace {

template <class T>
bool done(const s3cache::Result<T>& result) {
    if (!result) std::fprintf(stderr, "operations: %s\n", result.error().what());
    return result.has_value();
}

bool once(s3cache::Cache& cache, const char* operation, const std::string& value) {
    if (std::strcmp(operation, "set") == 0) return done(cache.try_set("budget", value, {std::chrono::hours(1)}));
    if (std::strcmp(operation, "remove") == 0) return done(cache.try_remove("budget"));
    const auto hit = cache.try_get("budget");
    return done(hit) && *hit && (*hit)->view() == value;
}

}  // namespace

int main(int argc, char** argv) {
    const char* endpoint = std::getenv("S3CACHE_TEST_ENDPOINT");
    if (argc != 3 || !endpoint) return 64;
    s3cache::Config config;
    config.endpoint = endpoint;
    // Times of equal length: how many digits `expires_at` has should not depend on when this runs.
    config.clock = [] {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        return s3cache::TimePoint(std::chrono::duration_cast<std::chrono::seconds>(now) +
                                  std::chrono::milliseconds(250));
    };
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!done(cache)) return 1;
    const std::string value(4096, 'v');
    // The connection, and what is found out once, belong to no operation. Last comes the set, so that a get has a hit.
    if (!once(*cache, "remove", value) || !once(*cache, "set", value) || !once(*cache, "get", value)) return 1;
    for (long left = std::strtol(argv[2], nullptr, 10); left > 0; --left) {
        getppid();  // marks where an operation begins, for those who count system calls
        if (!once(*cache, argv[1], value)) return 1;
    }
    getppid();
    return 0;
}
