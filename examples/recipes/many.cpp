// Many small values at once, over several connections and one thread; a result for each key.
// g++ -std=c++17 -I../.. many.cpp -o many -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <map>

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: many my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        std::vector<s3cache::Item> items;
        for (const char* name : {"a", "b", "c"}) items.push_back({std::string("thumb/") + name, name, {1h}});
        for (const s3cache::Result<bool>& stored : cache.set_many(items)) stored.value();  // throws what went wrong

        std::map<std::string, std::string> found;
        cache.get_many({"thumb/a", "thumb/b", "thumb/none"}, [&](const std::string& key, auto result) {
            if (result && *result) found[key] = (*result)->str();
        });
        for (const auto& [key, value] : found) std::cout << key << " = " << value << "\n";
        std::cout << "removed " << cache.clear("thumb/") << "\n";
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "many: " << error.what() << "\n";
        return 2;
    }
}
