// Compiled once for each CASE by misuse.sh: what cannot work does not compile, with a sentence; what compiles works.
#include "use.hpp"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Unknown {};

[[maybe_unused]] std::string long_text() { return std::string(100, 'v'); }

int run(s3cache::Cache& cache) {
    const auto value_is = [&](const char* key, const std::string& wanted) {
        auto hit = cache.try_get(key);
        return hit && *hit && (*hit)->view() == wanted ? 0 : 1;
    };
#if CASE == 1  // json of a local string: gone when the producer has returned
    static_cast<void>(cache
                          .try_get_or_set("m1",
                                          [] {
                                              std::string local = "\"" + long_text() + "\"";
                                              return s3cache::json(local);
                                          })
                          .has_value());
    return value_is("m1", "\"" + long_text() + "\"");
#elif CASE == 2   // bytes of a local vector
    static_cast<void>(cache
                          .try_get_or_set("m2",
                                          [] {
                                              std::vector<char> local(100, 'v');
                                              return s3cache::bytes(local.data(), local.size());
                                          })
                          .has_value());
    return value_is("m2", long_text());
#elif CASE == 3   // a view of a local string
    static_cast<void>(cache
                          .try_get_or_set("m3",
                                          [] {
                                              const std::string local = long_text();
                                              return std::string_view(local);
                                          })
                          .has_value());
    return value_is("m3", long_text());
#elif CASE == 4   // chunks of strings that the iterator makes as it goes
    std::istringstream in(long_text() + " b");
    static_cast<void>(cache.try_set("m4", s3cache::chunks(std::istream_iterator<std::string>(in), {})).has_value());
    return value_is("m4", long_text() + "b");
#elif CASE == 5   // a source out of a stream that nobody keeps
    std::ofstream("misuse.tmp") << long_text();
    s3cache::Source source(std::ifstream("misuse.tmp"));
    std::remove("misuse.tmp");
    static_cast<void>(cache.try_set("m5", std::move(source)).has_value());
    return value_is("m5", long_text());
#elif CASE == 6   // json of nothing
    return cache.try_set("m6", s3cache::json(nullptr)).has_value() ? 1 : 0;
#elif CASE == 7   // a type without a codec
    static_cast<void>(cache.try_set("m7", Unknown()).has_value());
    return 0;
#elif CASE == 8   // the same, read
    static_cast<void>(cache.try_get<Unknown>("m8").has_value());
    return 0;
#elif CASE == 9   // the same, produced
    static_cast<void>(cache.try_get_or_set("m9", [] { return Unknown(); }).has_value());
    return 0;
#elif CASE == 10  // a number: text or bytes?
    static_cast<void>(cache.try_set("m10", 42).has_value());
    return 0;
#elif CASE == 11  // a producer that returns nothing
    static_cast<void>(cache.try_get_or_set("m11", [] {}).has_value());
    return 0;
#elif CASE == 12  // a producer that wants an argument
    static_cast<void>(cache.try_get_or_set("m12", [](int) { return "v"; }).has_value());
    return 0;
#elif CASE == 13  // a payload out of a string that goes before it is used
    const s3cache::Payload payload = s3cache::json("\"" + long_text() + "\"");
    static_cast<void>(cache.try_set("m13", payload).has_value());
    return value_is("m13", "\"" + long_text() + "\"");
#elif CASE == 14  // nullptr as a value
    return cache.try_set("m14", nullptr).has_value() ? 1 : 0;
#elif CASE == 15  // a vector of what are no bytes
    static_cast<void>(cache.try_set("m15", std::vector<int>{1, 2}).has_value());
    return 0;
#endif
}

}  // namespace

int main() {
    auto cache = use::open();
    if (!cache) return std::printf("%s\n", cache.error().what()), 1;
    return run(*cache);
}
