// A link that works for ten minutes, for someone without credentials.
// g++ -std=c++17 -I../.. share.cpp -o share -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: share my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        cache.set("reports/q3.txt", "up and to the right");
        const std::string link = cache.presign("reports/q3.txt", "GET", 10min);
        std::cout << link.substr(link.find('?') + 1, link.find('&') - link.find('?') - 1) << "\n";
        cache.remove("reports/q3.txt");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "share: " << error.what() << "\n";
        return 2;
    }
}
