// Values of a type of your own, through a codec of two functions.
// g++ -std=c++17 -I../.. own_type.cpp -o own_type -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <cstdio>
#include <iostream>
#include <stdexcept>

struct Point {
    int x = 0, y = 0;
};

template <>
struct s3cache::codec<Point> {
    static constexpr Kind kind = Kind::json;  // how it is stored: any language can read it
    static std::string encode(const Point& p) { return "[" + std::to_string(p.x) + "," + std::to_string(p.y) + "]"; }
    static Point decode(std::string_view text) {
        Point p;
        if (std::sscanf(std::string(text).c_str(), "[%d,%d]", &p.x, &p.y) != 2) throw std::domain_error("no point");
        return p;  // what is thrown here, get() throws
    }
};

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: own_type my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        cache.set("centre", Point{3, 4});
        if (const auto centre = cache.get<Point>("centre")) std::cout << centre->x << ", " << centre->y << "\n";
        std::cout << cache.get("centre")->str() << "\n";
        cache.remove("centre");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "own_type: " << error.what() << "\n";
        return 2;
    }
}
