// Without exceptions: every operation has a try_ twin that returns a value or an error with a kind.
// g++ -std=c++17 -I../.. errors.cpp -o errors -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: errors my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    auto opened = s3cache::Cache::try_open(argv[1]);
    if (!opened) return std::cerr << "errors: " << opened.error().what() << "\n", 2;
    s3cache::Cache& cache = *opened;

    const auto hit = cache.try_get("nothing/here");                 // Result<std::optional<Value>>
    std::cout << (!hit ? "error" : *hit ? "hit" : "miss") << "\n";  // a miss is not an error

    const auto refused = cache.try_set("", "no key");
    if (!refused && refused.error().code() == s3cache::Errc::invalid_argument)
        std::cout << "refused: " << refused.error().what() << "\n";
    if (!refused && refused.error().retryable()) std::cout << "later, perhaps\n";
}
