// What is in there, how long it lives, a longer life for what is in use, and a broom for the rest.
// g++ -std=c++17 -I../.. expiry.cpp -o expiry -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: expiry my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        cache.set("session/ann", "...", {30min});
        cache.set("session/bob", "...", {1ms});  // gone at once
        cache.touch("session/ann", 2h);          // without sending the value again

        std::cout << (cache.contains("session/bob") ? "there" : "expired") << "\n";
        for (const s3cache::Entry& entry : cache.list("session/"))
            std::cout << entry.key << ", " << entry.info.size << " bytes\n";
        std::cout << "purged " << cache.purge_expired("session/") << "\n";  // on a timer of yours, or never: see README
        cache.clear("session/");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "expiry: " << error.what() << "\n";
        return 2;
    }
}
