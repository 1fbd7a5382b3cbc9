// Only one of many writers gets through: to claim a job, and to change a value nobody else has changed meanwhile.
// g++ -std=c++17 -I../.. once.cpp -o once -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: once my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        s3cache::SetOptions claim{10min};
        claim.if_absent = true;
        std::cout << (cache.set("jobs/42", "worker 1", claim) ? "mine" : "taken") << "\n";
        std::cout << (cache.set("jobs/42", "worker 2", claim) ? "mine" : "taken") << "\n";

        const auto seen = cache.get("jobs/42");
        s3cache::SetOptions change{10min};
        change.if_match = seen->info().etag;
        std::cout << (cache.set("jobs/42", seen->str() + ", half way", change) ? "changed" : "someone was faster")
                  << "\n";
        std::cout << (cache.set("jobs/42", "late", change) ? "changed" : "someone was faster") << "\n";
        cache.remove("jobs/42");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "once: " << error.what() << "\n";
        return 2;
    }
}
