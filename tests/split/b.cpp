// The second file of a program: see a.cpp.
#include "use.hpp"

namespace use {

bool works_elsewhere(s3cache::Cache& cache) {
    std::string text = "from the other file";
    const auto stored = cache.try_set("other file", text, {std::chrono::hours(1), true});
    if (!stored || !*stored) return false;
    auto reader = cache.try_get_stream("other file");
    if (!reader || !*reader) return false;
    std::string got;
    for (auto chunk = (*reader)->try_next();; chunk = (*reader)->try_next()) {
        if (!chunk) return false;
        if (chunk->empty()) return got == text;
        got += *chunk;
    }
}

}  // namespace use
