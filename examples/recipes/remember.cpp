// An expensive answer is worked out once and remembered for an hour.
// g++ -std=c++17 -I../.. remember.cpp -o remember -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: remember my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        int runs = 0;
        const auto train = [&] {
            ++runs;
            return std::string("weights, after a long night");
        };
        for (int i = 0; i < 3; ++i) {
            const s3cache::Value model = cache.get_or_set("model/v7", train, {1h});
            std::cout << model.str() << "\n";
        }
        std::cout << "trained " << runs << " time\n";
        cache.remove("model/v7");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "remember: " << error.what() << "\n";
        return 2;
    }
}
