// Your own types in the cache as JSON, through a codec of a few lines; with nlohmann's library (nlohmann-json3-dev).
// g++ -std=c++17 -I.. json.cpp -o json -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <nlohmann/json.hpp>

struct Forecast {
    std::string city;
    std::vector<double> celsius;
};

template <>
struct s3cache::codec<Forecast> {
    static constexpr s3cache::Kind kind = s3cache::Kind::json;

    static std::string encode(const Forecast& forecast) {
        return nlohmann::json{{"city", forecast.city}, {"celsius", forecast.celsius}}.dump();
    }
    static Forecast decode(std::string_view text) {
        const auto object = nlohmann::json::parse(text);  // what it throws, get() throws
        return {object.at("city").get<std::string>(), object.at("celsius").get<std::vector<double>>()};
    }
};

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) {
        std::cerr << "usage: json my-bucket   (or s3://my-bucket/some/prefix)\n";
        return 64;
    }
    try {
        s3cache::Cache cache(argv[1]);
        cache.set("forecast/oslo", Forecast{"Oslo", {-3.5, -1, 0.5, 2, 1}}, {1h});

        if (auto forecast = cache.get<Forecast>("forecast/oslo")) {
            std::cout << "The week in " << forecast->city << ":\n";
            for (const double celsius : forecast->celsius) {
                const auto snowmen = static_cast<std::size_t>(celsius < 0 ? -celsius : 0);
                std::cout << "  " << celsius << " degrees " << std::string(snowmen, '*') << "\n";
            }
        }
        if (auto raw = cache.get("forecast/oslo")) {
            std::cout << "In the bucket, readable from any language: " << raw->str() << "\n";
        }
        cache.remove("forecast/oslo");
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "json: " << error.what() << "\n";
        return 2;
    }
}
