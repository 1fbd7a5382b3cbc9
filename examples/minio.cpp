// Any store that speaks S3 (MinIO, Ceph, R2, Garage, a NAS): endpoint, keys and URL style given in code.
// g++ -std=c++17 -I.. minio.cpp -o minio -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <cstdlib>  // getenv
#include <iostream>

static std::string variable(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc < 3 || argc > 4) {
        std::cerr << "usage: minio http://127.0.0.1:9000 my-bucket [REGION]\n"
                     "       keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else minioadmin twice\n";
        return 64;
    }
    s3cache::Config config;
    config.endpoint = argv[1];
    config.region = argc > 3 ? argv[3] : "us-east-1";  // most stores take any; R2 wants `auto`, some their own
    config.addressing = s3cache::Addressing::path;     // http://host/bucket/key; the default for a custom endpoint
    config.credentials = s3cache::Credentials{variable("AWS_ACCESS_KEY_ID", "minioadmin"),
                                              variable("AWS_SECRET_ACCESS_KEY", "minioadmin")};
    config.connect_timeout = 2s;
    config.on_event = [](const s3cache::Event& event) {
        if (event.attempt == 0) return;  // the outcome of the whole operation; here we watch its requests
        std::cout << "    " << event.operation << " " << event.key << ": HTTP " << event.status << " in "
                  << event.duration.count() * 1000 << " ms" << (event.reused ? " on the same connection\n" : "\n");
    };

    s3cache::Result<s3cache::Cache> cache = s3cache::Cache::try_open(argv[2], config);  // the forms that never throw
    if (!cache) {
        std::cerr << "minio: " << cache.error().what() << "\n";
        return 2;
    }
    for (const char* key : {"tea", "coffee & cake", "\xE6\x8A\xB9\xE8\x8C\xB6"}) {
        const auto stored = cache->try_set(key, std::string("a cup of ") + key, {1min});
        const auto hit = cache->try_get(key);
        if (!stored || !hit) {
            std::cerr << "minio: " << (stored ? hit.error() : stored.error()).what() << "\n";
            return 2;
        }
        std::cout << (*hit ? (*hit)->str() : "nothing?") << "\n";
        static_cast<void>(cache->try_remove(key));  // it would be gone in a minute anyway
    }
}
