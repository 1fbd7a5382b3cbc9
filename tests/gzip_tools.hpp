// Whole values through the library's gzip filters, for tests that have all of a value at hand.
#pragma once

#include "s3cache.hpp"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace gzip_tools {

namespace gzip = s3cache::detail::gzip;

// The limit counts output, since four kilobytes of input can stand for four megabytes. `problem` is set on refusal.
inline std::optional<std::string> inflate_all(std::string_view data, std::size_t limit_bytes, std::string& problem) {
    gzip::Inflater inflater;
    inflater.feed(data);
    std::string out;
    std::string room((std::min)(std::size_t{1} << 20, limit_bytes) + 1, '\0');
    for (std::size_t produced = room.size(); produced == room.size() && out.size() <= limit_bytes;) {
        produced = inflater.pull(&room[0], room.size());
        out.append(room, 0, produced);
    }
    if (out.size() > limit_bytes)
        problem = "larger than the limit once inflated";
    else if (!inflater.end_of_input())
        problem = inflater.problem();
    else
        return out;
    return std::nullopt;
}

// Empty only if zlib has no memory, or does not know the level: the shortest gzip member has twenty bytes.
inline std::string deflate_all(std::string_view data, int level) {
    gzip::Deflater deflater(level);
    deflater.feed(data);
    deflater.finish();
    std::string out;
    std::string room(16384, '\0');
    for (;;) {
        const std::size_t produced = deflater.pull(&room[0], room.size());
        out.append(room, 0, produced);
        if (deflater.is_finished()) return out;
        if (produced != room.size()) return {};
    }
}

}  // namespace gzip_tools
