// Inflater and Deflater. Held to: a reference that goes through the headers by itself, as Python's gzip module does, and
// refuses what zlib refuses beyond that: reserved flags, and a header whose checksum is wrong;
// any cutting of input and output gives the same; output never passes the limit; what we deflate inflates to itself.
#include "fuzz.hpp"

#include "../gzip_tools.hpp"

#include <optional>

namespace fuzz_gzip {

using fuzz::require;
namespace gzip = s3cache::detail::gzip;
namespace bytes = s3cache::detail::bytes;

// Larger results are compared up to here only.
constexpr std::size_t compared_bytes_max = std::size_t{1} << 16;

struct Outcome {
    std::string out;
    bool fine = false;
    bool over_limit = false;
};

// One raw deflate stream from the front of `data`, which moves past it. False: damaged or cut.
inline bool reference_body(std::string_view& data, Outcome& outcome) {
    z_stream stream{};
    require(inflateInit2(&stream, -MAX_WBITS) == Z_OK, "zlib has memory");
    std::string copy(data);
    stream.next_in = reinterpret_cast<Bytef*>(&copy[0]);
    stream.avail_in = static_cast<uInt>(copy.size());
    int result = Z_OK;
    while (result == Z_OK && !outcome.over_limit) {
        char block[4096];
        stream.next_out = reinterpret_cast<Bytef*>(block);
        stream.avail_out = sizeof block;
        result = inflate(&stream, Z_SYNC_FLUSH);
        outcome.out.append(block, sizeof block - stream.avail_out);
        outcome.over_limit = outcome.out.size() > compared_bytes_max;
    }
    data.remove_prefix(data.size() - stream.avail_in);
    inflateEnd(&stream);
    return result == Z_STREAM_END;
}

inline bool take(std::string_view& data, std::size_t count) {
    if (data.size() < count) return false;
    data.remove_prefix(count);
    return true;
}

inline unsigned long little_endian(std::string_view data, std::size_t count) {
    unsigned long value = 0;
    for (std::size_t i = count; i-- > 0;) value = value << 8 | static_cast<unsigned char>(data[i]);
    return value;
}

inline bool take_text(std::string_view& data) {
    const std::size_t end = data.find('\0');
    return end != std::string_view::npos && take(data, end + 1);
}

inline bool reference_header(std::string_view& data) {
    if (data.size() < 10 || data.substr(0, 3) != "\x1f\x8b\x08") return false;
    const std::string_view begin = data;
    const unsigned flags = static_cast<unsigned char>(data[3]);
    if ((flags & 0xE0) != 0) return false;
    data.remove_prefix(10);
    if ((flags & 4) != 0) {
        if (data.size() < 2) return false;
        const std::size_t extra = little_endian(data, 2);
        if (!take(data, 2 + extra)) return false;
    }
    if ((flags & 8) != 0 && !take_text(data)) return false;
    if ((flags & 16) != 0 && !take_text(data)) return false;
    if ((flags & 2) == 0) return true;
    const std::size_t size = begin.size() - data.size();
    const unsigned long crc = crc32(0, reinterpret_cast<const Bytef*>(begin.data()), static_cast<uInt>(size)) & 0xFFFF;
    return data.size() >= 2 && little_endian(data, 2) == crc && take(data, 2);
}

inline Outcome reference(std::string_view data) {
    Outcome outcome;
    while (!data.empty()) {
        const std::size_t begin = outcome.out.size();
        if (!reference_header(data) || !reference_body(data, outcome) || data.size() < 8) return outcome;
        const std::string_view member = std::string_view(outcome.out).substr(begin);
        const unsigned long crc =
            crc32(0, reinterpret_cast<const Bytef*>(member.data()), static_cast<uInt>(member.size()));
        if (little_endian(data, 4) != crc || little_endian(data.substr(4), 4) != member.size()) return outcome;
        data.remove_prefix(8);
        while (!data.empty() && data.front() == '\0') data.remove_prefix(1);
    }
    outcome.fine = true;
    return outcome;
}

// The next piece, a byte or many; empty once all has been given.
inline std::string_view next_piece(std::string_view& data, fuzz::Dice& dice) {
    const std::size_t most = dice.below(3) == 0 ? 1 : 1 + dice.below(1 + data.size());
    const std::string_view piece = data.substr(0, most);
    data.remove_prefix(piece.size());
    return piece;
}

inline Outcome in_pieces(std::string_view data, fuzz::Dice& dice) {
    Outcome outcome;
    gzip::Inflater inflater;
    std::string room;
    for (bool ended = data.empty();;) {
        room.assign(1 + (dice.below(2) == 0 ? dice.below(5) : dice.below(5000)), '\x5a');
        const std::size_t produced = inflater.pull(&room[0], room.size());
        require(produced <= room.size(), "never more than there is room for");
        outcome.out.append(room, 0, produced);
        if (inflater.problem() != nullptr) {
            require(inflater.pull(&room[0], room.size()) == 0, "nothing comes after damage");
            return outcome;
        }
        if (outcome.out.size() > compared_bytes_max) {
            outcome.over_limit = true;
            return outcome;
        }
        if (produced == room.size()) continue;
        if (ended) break;
        inflater.feed(next_piece(data, dice));
        ended = data.empty();
    }
    outcome.fine = inflater.end_of_input();
    require(outcome.fine == (inflater.problem() == nullptr), "a problem or none");
    return outcome;
}

inline void check_same(const Outcome& got, const Outcome& expected, const char* what) {
    if (got.over_limit || expected.over_limit) {  // what comes behind the limit is not looked at, damage least of all
        require(got.out.size() > compared_bytes_max && expected.out.size() > compared_bytes_max, what);
        return;
    }
    require(got.fine == expected.fine, what);
    if (expected.fine) require(got.out == expected.out, what);
}

inline void check_limits(std::string_view input, const Outcome& expected, fuzz::Dice& dice) {
    for (std::size_t limit : {compared_bytes_max, expected.out.size(), expected.out.size() - 1, dice.below(70000)}) {
        if (limit > compared_bytes_max) continue;  // the one before an empty result
        std::string problem;
        const auto all = gzip_tools::inflate_all(input, limit, problem);
        require(all.has_value() == problem.empty(), "a problem where there is no result");
        require(!all || all->size() <= limit, "never more than the limit");
        const bool fits = expected.fine && expected.out.size() <= limit;
        require(all.has_value() == fits && (!fits || *all == expected.out), "inflate_all is the reference");
    }
}

inline void check_deflate(std::string_view input, fuzz::Dice& dice) {
    const int level = static_cast<int>(dice.below(11)) - 1;
    gzip::Deflater deflater(level);
    std::string out;
    std::string room;
    for (std::string_view rest = input;;) {
        room.assign(1 + dice.below(300), '\x5a');
        const std::size_t produced = deflater.pull(&room[0], room.size());
        out.append(room, 0, produced);
        require(deflater.problem() == nullptr, "deflating does not fail");
        if (deflater.is_finished()) break;
        if (produced == room.size()) continue;
        if (rest.empty()) deflater.finish();
        deflater.feed(next_piece(rest, dice));
    }
    std::string problem;
    for (const std::string& packed : {out, gzip_tools::deflate_all(input, level)}) {
        require(bytes::starts_with(packed, "\x1f\x8b"), "gzip data looks like it");
        require(gzip_tools::inflate_all(packed, input.size(), problem) == std::string(input),
                "what we deflate comes back");
    }
}

FUZZ_TARGET(gzip) {
    fuzz::Dice dice(input);
    const Outcome expected = reference(input);
    check_same(in_pieces(input, dice), expected, "in pieces as in one");
    check_same(in_pieces(input, dice), expected, "in other pieces as in one");
    check_limits(input, expected, dice);
    check_deflate(input, dice);
}

}  // namespace fuzz_gzip
