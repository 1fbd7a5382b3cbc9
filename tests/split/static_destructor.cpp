// A static object whose destructor uses a Cache: after main, and after what the libraries themselves do at the end.
#include "use.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>

namespace {

struct AtTheEnd {
    const char* name;
    ~AtTheEnd() {
        alarm(20);                 // a hang is a failure, too
        auto cache = use::open();  // made here
        if (!cache) {
            std::printf("%s: %s\n", name, cache.error().what());
            return;
        }
        const auto set = cache->try_set(name, "v");
        const auto got = cache->try_get(name);
        const bool told = !set || !got;  // an error is an answer
        if (!told && (!*got || (*got)->view() != "v")) {
            std::puts("what was set is not there");
            std::_Exit(1);
        }
        std::string large(std::size_t{1} << 20, 'x');
        static_cast<void>(cache->try_set(name, large, {{}, true}));
        if (auto reader = cache->try_get_stream(name); reader && *reader) {
            char bytes[10];
            static_cast<void>((*reader)->try_read(bytes, sizeof bytes));
        }
        for (const auto& result : cache->remove_many({name})) static_cast<void>(result.has_value());
        static_cast<void>(cache->try_get_or_set(name, [] { return "w"; }));
        static_cast<void>(cache->try_remove(name));
        std::printf("%s: %s\n", name, told ? "an error" : "worked");
    }
};

AtTheEnd first{"made before main"};  // so destroyed last

}  // namespace

int main() {
    static AtTheEnd second{"made in main before any cache"};
    auto cache = use::open();
    if (!cache || !cache->try_set("static", "v").value_or(false)) return std::puts("set failed"), 1;
    static AtTheEnd third{"made in main after a cache"};
    return 0;
}
