// What the fuzz targets share. Each target is one function over any bytes: libFuzzer calls it in a program of its own
// (`make fuzz`), and tests/unit/fuzz_replay.cpp, which includes all of them, calls it with what lies in corpus/NAME.
#pragma once

#include "s3cache.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fuzz {

#ifdef S3CACHE_FUZZ_REPLAY

[[noreturn]] inline void fail(const char* what) { throw std::runtime_error(what); }

using Run = void (*)(std::string_view);

struct Target {
    const char* name;
    Run run;
};

inline std::vector<Target>& targets() {
    static std::vector<Target> all;
    return all;
}

struct Registered {
    Registered(const char* name, Run run) { targets().push_back({name, run}); }
};

#define FUZZ_TARGET(name)                                               \
    static void run_##name(std::string_view input);                     \
    static const fuzz::Registered registered_##name{#name, run_##name}; \
    static void run_##name(std::string_view input)

#else

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "broken promise: %s\n", what);
    std::abort();
}

#define FUZZ_TARGET(name)                                                               \
    static void run_##name(std::string_view input);                                     \
    extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t*, std::size_t);            \
    extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
        run_##name(std::string_view(reinterpret_cast<const char*>(data), size));        \
        return 0;                                                                       \
    }                                                                                   \
    static void run_##name(std::string_view input)

#endif

inline void require(bool promise, const char* what) {
    if (!promise) fail(what);
}

// What stands for itself in a URL.
inline bool is_unreserved(char c) {
    return s3cache::detail::bytes::is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
}

// Whether a terminal would obey the text, or a header end in it.
inline bool has_control(std::string_view text) {
    for (char c : text) {
        if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7F) return true;
    }
    return false;
}

// Sizes and cuts that depend on nothing but the input: the same file always takes the same way, and a seed can be a
// plain file of its format, without bytes in front that steer the test.
class Dice {
public:
    explicit Dice(std::string_view input) {
        for (char c : input) state_ = (state_ ^ static_cast<unsigned char>(c)) * 1099511628211U;
    }

    std::size_t below(std::size_t end) {
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;
        return static_cast<std::size_t>(state_ >> 33) % end;
    }

private:
    std::uint64_t state_ = 14695981039346656037U;
};

inline std::vector<std::string_view> pieces(std::string_view text, std::string_view separator) {
    std::vector<std::string_view> out;
    for (;;) {
        const std::size_t end = text.find(separator);
        out.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return out;
        text.remove_prefix(end + separator.size());
    }
}

// The piece of that number, or nothing.
inline std::string_view piece(const std::vector<std::string_view>& all, std::size_t at) {
    return at < all.size() ? all[at] : std::string_view();
}

}  // namespace fuzz
