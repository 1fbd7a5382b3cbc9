// A Cache of static storage, made before main and gone after it, with a Reader still open then.
#include "use.hpp"

#include <cstdio>
#include <optional>

namespace {
std::optional<s3cache::Reader> open_at_the_end;  // before the cache: it goes after it
s3cache::Result<s3cache::Cache> cache = use::open();
}  // namespace

int main() {
    if (!cache) return std::printf("%s\n", cache.error().what()), 1;
    const std::string large(std::size_t{2} << 20, 'x');
    if (!cache->try_set("static", large).value_or(false)) return std::puts("set failed"), 1;
    auto reader = cache->try_get_stream("static");
    if (!reader || !*reader) return std::puts("get failed"), 1;
    open_at_the_end = std::move(*reader);
    char byte = 0;
    return open_at_the_end->try_read(&byte, 1).value_or(0) == 1 ? 0 : 1;
}
