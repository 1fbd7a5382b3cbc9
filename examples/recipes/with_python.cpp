// A cache that C++ and Python share: either reads what the other wrote, and both see when it ends. Its other half: with_python.py.
// g++ -std=c++17 -I../.. with_python.cpp -o with_python -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: with_python my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Cache cache(argv[1]);
    cache.set("from/cpp", s3cache::json(R"({"rows":1042})"), {1h, /*compress=*/true});
    if (const auto hit = cache.get("from/python"))
        std::cout << "C++ reads " << hit->str() << (hit->kind() == s3cache::Kind::json ? " as JSON\n" : "\n");
    cache.remove("from/python");
}
