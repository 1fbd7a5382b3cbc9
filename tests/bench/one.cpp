// A process that does COUNT gets of one key and ends: with the library, or built with -DBENCH_BARE with libcurl alone.
//     one ENDPOINT BUCKET KEY COUNT        AWS_CA_BUNDLE names the certificate
//     one_bare ... signed                  sends headers as long as those of a signed request
#ifdef BENCH_BARE
#include "bare.hpp"
#else
#include "s3cache.hpp"
#endif

#include <cstdio>   // the error text
#include <cstdlib>  // strtol

int main(int argc, char** argv) {
    if (argc < 5) return 64;
    const long count = std::strtol(argv[4], nullptr, 10);
    std::size_t bytes = 0;
#ifdef BENCH_BARE
    const char* ca = std::getenv("AWS_CA_BUNDLE");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const bare::Store store{std::string(argv[1]) + "/" + argv[2] + "/", ca ? ca : ""};
    const std::vector<std::string> lines = argc > 5 ? bare::signed_lines("host") : std::vector<std::string>();
    bare::Handle handle(store, bare::Handle::Kind::get, bare::Buffers::standard, lines);
    for (long i = 0; i < count; ++i) {
        handle.run(argv[3]);
        bytes += handle.value.size();
    }
#else
    s3cache::Config config;
    config.endpoint = argv[1];
    config.region = "us-east-1";
    auto cache = s3cache::Cache::try_open(argv[2], config);
    for (long i = 0; cache && i < count; ++i) {
        const auto hit = cache->try_get(argv[3]);
        if (!hit) std::fprintf(stderr, "%s\n", hit.error().what());
        if (hit && *hit) bytes += (*hit)->view().size();
    }
#endif
    return bytes > 0 ? 0 : 1;
}
