// Replays tests/fuzz/corpus through the fuzz targets, without libFuzzer: seeds, and whatever fuzzing once found.
#include "s3cache.hpp"

#include "catch.hpp"

#define S3CACHE_FUZZ_REPLAY
#include "fuzz/answers.cpp"
#include "fuzz/bytes.cpp"
#include "fuzz/credentials.cpp"
#include "fuzz/dates.cpp"
#include "fuzz/endpoint.cpp"
#include "fuzz/gzip.cpp"
#include "fuzz/headers.cpp"
#include "fuzz/ini.cpp"
#include "fuzz/json.cpp"
#include "fuzz/utf8.cpp"
#include "fuzz/xml.cpp"

#ifndef _WIN32                 // where there is no command line
#include "fuzz/arguments.cpp"  // last, as it brings the whole of it
#endif

#include <filesystem>
#include <fstream>
#include <iterator>

namespace {

namespace fs = std::filesystem;

std::string bytes_of(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

std::string broken_promise(const fuzz::Target& target, std::string_view input) {
    try {
        target.run(input);
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return {};
}

// The file itself, each of its beginnings up to a size, and each with a byte changed: cheap, and finds what a seed lies next to.
std::string broken_nearby(const fuzz::Target& target, const std::string& input) {
    constexpr std::size_t neighbours_max = 64;
    std::string problem = broken_promise(target, input);
    const std::size_t step = 1 + input.size() / neighbours_max;
    for (std::size_t at = 0; at < input.size() && problem.empty(); at += step) {
        problem = broken_promise(target, std::string_view(input).substr(0, at));
        std::string changed = input;
        changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
        if (problem.empty()) problem = broken_promise(target, changed);
    }
    return problem;
}

}  // namespace

TEST_CASE("the corpus of each fuzz target keeps its promises", "[fuzz]") {
    for (const fuzz::Target& target : fuzz::targets()) {
        const fs::path folder = fs::path(S3CACHE_TEST_DIR) / "fuzz" / "corpus" / target.name;
        CHECK(broken_promise(target, {}) == "");
        std::size_t replayed = 0;
        for (const auto& file : fs::directory_iterator(folder)) {
            CAPTURE(target.name, file.path().filename().string());
            CHECK(broken_nearby(target, bytes_of(file.path())) == "");
            ++replayed;
        }
        CAPTURE(target.name);
        CHECK(replayed >= 3);
    }
}

TEST_CASE("every fuzz target is replayed, and every folder of the corpus has its target", "[fuzz]") {
    std::vector<std::string> known;
    for (const fuzz::Target& target : fuzz::targets()) known.emplace_back(target.name);
#ifdef _WIN32
    known.emplace_back("arguments");
#endif
    std::vector<std::string> sources;
    for (const auto& file : fs::directory_iterator(fs::path(S3CACHE_TEST_DIR) / "fuzz")) {
        if (file.path().extension() == ".cpp") sources.push_back(file.path().stem().string());
    }
    std::vector<std::string> folders;
    for (const auto& folder : fs::directory_iterator(fs::path(S3CACHE_TEST_DIR) / "fuzz" / "corpus")) {
        folders.push_back(folder.path().filename().string());
    }
    for (auto* names : {&known, &sources, &folders}) std::sort(names->begin(), names->end());
    CHECK(known == sources);
    CHECK(known == folders);
}
