// The header alone, and first: it brings what its public half needs.
#include "s3cache.hpp"

int main() {
    s3cache::Config config;
    config.endpoint = "http://127.0.0.1:1";
    config.attempts_max = 1;
    config.credentials = s3cache::anonymous();
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!cache) return 1;
    const s3cache::Payload payloads[] = {"text", s3cache::json("{}"), std::string_view("view"), s3cache::bytes("b", 1)};
    for (const s3cache::Payload& payload : payloads) {
        if (cache->try_set("k", payload)) return 1;
    }
    s3cache::SetOptions options{std::chrono::minutes(5), true};
    options.metadata.emplace_back("owner", "me");
    return cache->try_set("k", s3cache::Source([](char*, std::size_t) -> std::size_t { return 0; }), options) ? 1 : 0;
}
