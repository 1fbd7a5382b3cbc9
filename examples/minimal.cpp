// A value goes into a bucket, comes back, and is gone when its time is up.
// g++ -std=c++17 -I.. minimal.cpp -o minimal -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <thread>  // sleep_for

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) {
        std::cerr << "usage: minimal my-bucket   (or s3://my-bucket/some/prefix)\n";
        return 64;
    }
    try {
        s3cache::Cache cache(argv[1]);  // region, credentials and endpoint: as the AWS CLI finds them

        cache.set("greeting", "Hello from the bucket.", {2s});
        if (auto hit = cache.get("greeting")) std::cout << hit->str() << "\n";

        std::cout << "Two seconds later ... " << std::flush;
        std::this_thread::sleep_for(2200ms);
        std::cout << (cache.get("greeting") ? "it is still there?\n" : "it has expired, as it should.\n");
    } catch (const s3cache::Error& error) {
        std::cerr << "minimal: " << error.what() << "\n";
        return 2;
    }
}
