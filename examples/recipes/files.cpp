// Files go up and come down, with a look at the progress; a file that comes down appears whole or not at all.
// g++ -std=c++17 -I../.. files.cpp -o files -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>  // a name for the file

int main(int argc, char** argv) {
    using namespace std::chrono_literals;
    if (argc != 2) return std::cerr << "usage: files my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    try {
        s3cache::Cache cache(argv[1]);
        const std::string path = "/tmp/s3cache-recipe-" + std::to_string(std::random_device()());
        std::ofstream(path) << std::string(100000, 'x');
        s3cache::SetOptions options{24h};
        std::uint64_t sent = 0;
        options.progress = [&](const s3cache::Progress& progress) {
            sent = progress.done;
            return true;  // false would cancel
        };
        cache.set_file("backup/recipes.bin", path, options);
        std::cout << "sent " << sent << " bytes\n";

        if (const auto info = cache.get_file("backup/recipes.bin", path + ".copy"))
            std::cout << "got " << info->size << " bytes\n";
        cache.remove("backup/recipes.bin");
        std::remove(path.c_str());
        std::remove((path + ".copy").c_str());
    } catch (const std::exception& error) {  // s3cache::Error is a std::runtime_error
        std::cerr << "files: " << error.what() << "\n";
        return 2;
    }
}
