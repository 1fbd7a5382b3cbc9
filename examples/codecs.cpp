// Types of your own as values: a plain struct as its bytes, a vector of doubles the same on every machine.
// g++ -std=c++17 -I.. codecs.cpp -o codecs -lcurl -lcrypto -lz
// Usage: ./codecs s3://my-bucket/prefix
#include "s3cache.hpp"

#include <cstring>
#include <iostream>

struct Reading {
    std::int32_t sensor;
    float celsius;
};

// Bytes as they lie in memory: quick, and right as long as writer and reader are built for the same kind of machine.
template <>
struct s3cache::codec<Reading> {
    static_assert(std::is_trivially_copyable_v<Reading>);
    static constexpr Kind kind = Kind::bytes;
    static std::string encode(const Reading& in) { return {reinterpret_cast<const char*>(&in), sizeof in}; }
    static Result<Reading> decode(std::string_view data) {
        Reading out;
        if (data.size() != sizeof out) return Error(Errc::source, "that is no Reading");
        return std::memcpy(&out, data.data(), sizeof out), out;
    }
};

// Eight bytes a number, the low one first, whatever the machine's own order.
template <>
struct s3cache::codec<std::vector<double>> {
    static constexpr Kind kind = Kind::bytes;
    static std::string encode(const std::vector<double>& numbers) {
        std::string data;
        for (const double number : numbers) {
            std::uint64_t bits = 0;
            std::memcpy(&bits, &number, sizeof bits);
            for (int i = 0; i < 8; ++i) data += static_cast<char>(bits >> (8 * i) & 0xFF);
        }
        return data;
    }
    static Result<std::vector<double>> decode(std::string_view data) {
        if (data.size() % 8 != 0) return Error(Errc::source, "those are no doubles");
        std::vector<double> numbers(data.size() / 8);
        for (std::size_t i = 0; i < data.size(); i += 8) {
            std::uint64_t bits = 0;
            for (std::size_t j = 8; j-- > 0;) bits = bits << 8 | static_cast<unsigned char>(data[i + j]);
            std::memcpy(&numbers[i / 8], &bits, sizeof bits);
        }
        return numbers;
    }
};

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: codecs s3://bucket/prefix\n", 64;
    s3cache::Cache cache(argv[1]);
    cache.set("reading", Reading{7, 21.5F});
    cache.set("numbers", std::vector<double>{1, -0.5, 1e300});
    std::cout << cache.get<Reading>("reading")->celsius << " degrees\n";
    std::cout << cache.get<std::vector<double>>("numbers")->size() << " numbers\n";
    for (const auto& removed : cache.remove_many({"reading", "numbers"})) removed.value();
}
