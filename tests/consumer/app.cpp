// The program of every consumer here: it must compile, link and run without any S3 in reach.
#include <s3cache.hpp>

#include <cstdio>

int main() {
    // Port 1 of this machine: nobody listens, so a call that reaches the network comes back with an error at once.
    s3cache::Config config;
    config.attempts_max = 1;
    s3cache::Cache cache("s3://bucket?region=us-east-1&endpoint=http://127.0.0.1:1&path_style=true", config);
    const bool linked = !cache.try_get("key").has_value();
    std::printf("s3cache %s, %s\n", S3CACHE_VERSION, linked ? "links and runs" : "an answer from nowhere?");
    return linked ? 0 : 1;
}
