// Times and numbers. Held to: C's calendar for the plain forms, and strtod for plain decimal texts. What callers do with
// times that were read, subtract and add, is tried with every one.
#include "fuzz.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>

namespace fuzz_dates {

using fuzz::require;
namespace dates = s3cache::detail::dates;
namespace bytes = s3cache::detail::bytes;
namespace retry = s3cache::detail::retry;
using std::chrono::seconds;

// Years in which the narrowest clock counts without coming to its ends.
constexpr int plain_year_min = 1900;
constexpr int plain_year_max = 2100;

inline std::int64_t to_seconds(s3cache::TimePoint when) {
    return std::chrono::duration_cast<seconds>(when.time_since_epoch()).count();
}

// `pattern` with '0' for a digit; other characters stand for themselves.
inline bool looks_like(std::string_view text, std::string_view pattern) {
    if (text.size() != pattern.size()) return false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (pattern[i] == '0' ? !bytes::is_digit(text[i]) : text[i] != pattern[i]) return false;
    }
    return true;
}

inline int number(std::string_view text, std::size_t at, std::size_t count) {
    int value = 0;
    for (std::size_t i = at; i < at + count; ++i) value = value * 10 + (text[i] - '0');
    return value;
}

// What C makes of the fields; empty if they are no date, which shows in fields that come back changed.
inline std::optional<std::int64_t> reference(int year, int month, int day, std::string_view clock) {
    std::tm fields{};
    fields.tm_year = year - 1900;
    fields.tm_mon = month - 1;
    fields.tm_mday = day;
    fields.tm_hour = number(clock, 0, 2);
    fields.tm_min = number(clock, 3, 2);
    const int second = number(clock, 6, 2);
    const std::tm given = fields;
    const std::time_t when = timegm(&fields);
    if (second > 60 || fields.tm_mon != given.tm_mon || fields.tm_mday != given.tm_mday ||
        fields.tm_hour != given.tm_hour || fields.tm_min != given.tm_min) {
        return std::nullopt;
    }
    return std::int64_t{when} + second;
}

inline void check_reference(const std::optional<s3cache::TimePoint>& got, int year, int month, int day,
                            std::string_view clock) {
    if (year < plain_year_min || year > plain_year_max) return;
    if (sizeof(std::time_t) < 8 && (year < 1902 || year > 2037)) return;  // C's calendar ends there
    const auto expected = reference(year, month, day, clock);
    require(got.has_value() == expected.has_value(), "C's calendar has that date too");
    if (got) require(to_seconds(*got) == *expected, "C's calendar says the same");
}

inline int month_of(std::string_view name) {
    constexpr std::string_view names[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                          "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    for (int i = 0; i < 12; ++i) {
        if (name == names[i]) return i + 1;
    }
    return 0;
}

inline void check_plain_forms(std::string_view text) {
    if (looks_like(text, "0000-00-00T00:00:00Z")) {
        check_reference(dates::iso8601(text), number(text, 0, 4), number(text, 5, 2), number(text, 8, 2),
                        text.substr(11));
    }
    if (text.size() != 29 || !bytes::starts_with(text, "Sun, ")) return;
    const int month = month_of(text.substr(8, 3));
    std::string shape(text);
    if (month != 0) shape.replace(8, 3, "Jan");
    if (!looks_like(shape, "Sun, 00 Jan 0000 00:00:00 GMT")) return;
    check_reference(dates::http_date(text), number(text, 12, 4), month, number(text, 5, 2), text.substr(17));
}

// What callers do with a time that a header or an answer chose. A plain difference may overflow, so they ask for seconds.
inline void check_usable(s3cache::TimePoint when) {
    using std::chrono::hours;
    const s3cache::TimePoint now{hours(24) * 20454};  // in 2026
    const double ahead = retry::seconds_between(now, when);
    require((ahead > 0) == (when > now) && (ahead < 0) == (when < now), "a difference keeps its sign");
    const std::string text = dates::iso8601_text(when);
    const auto again = dates::iso8601(text);
    require(again && (when < s3cache::TimePoint() || to_seconds(*again) == to_seconds(when)), "its text reads back");
    std::string amz;
    dates::append_utc(amz, to_seconds(when));
    require(looks_like(amz, "00000000T000000Z"), "sixteen characters for a signature");
    const double century = 36600.0 * dates::seconds_per_day;  // the cache believes no clock that is further off
    if (ahead > century || ahead < -century) return;
    const s3cache::TimePoint clock = now + std::chrono::milliseconds(static_cast<std::int64_t>(ahead * 1000) + 500);
    require(clock > when && clock - when <= std::chrono::seconds(1), "an offset learnt leads there");
}

inline void check_times(std::string_view text) {
    for (const auto& when : {dates::iso8601(text), dates::http_date(text)}) {
        if (!when) continue;
        require(text.find('\0') == std::string_view::npos && bytes::trim(text).size() >= 19,
                "no text that short is a time");
        check_usable(*when);
    }
    const std::string padded = " \t" + std::string(text) + "\r\n";
    require(dates::iso8601(padded) == dates::iso8601(text), "blanks around a time mean nothing");
    require(dates::http_date(padded) == dates::http_date(text), "blanks around a date mean nothing");
    check_plain_forms(text);
    const auto wait = retry::retry_after(text, s3cache::TimePoint{std::chrono::hours(24) * 20454});
    require(wait.count() >= 0 && wait <= retry::retry_after_max, "waits have bounds");
    const auto when = dates::http_date(text);
    require(!when || *when >= s3cache::TimePoint{} || wait.count() == 0, "what is past is not waited for");
}

// The grammar that Python's float and C's strtod share: [+-]digits[.digits][e[+-]digits]
inline bool plain_decimal(std::string_view text) {
    const auto digits = [&text] {
        std::size_t count = 0;
        for (; !text.empty() && bytes::is_digit(text.front()); ++count) text.remove_prefix(1);
        return count;
    };
    if (!text.empty() && (text[0] == '+' || text[0] == '-')) text.remove_prefix(1);
    std::size_t count = digits();
    if (!text.empty() && text[0] == '.') {
        text.remove_prefix(1);
        count += digits();
    }
    if (count == 0) return false;
    if (text.empty()) return true;
    if (text[0] != 'e' && text[0] != 'E') return false;
    text.remove_prefix(1);
    if (!text.empty() && (text[0] == '+' || text[0] == '-')) text.remove_prefix(1);
    return digits() > 0 && text.empty();
}

inline std::uint64_t bits_of(double number) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

// Whether the digits are below 2^53 and the exponent is within 22: then reading is exact.
inline bool is_short(std::string_view text) {
    std::uint64_t digits = 0;
    int exponent = 0;
    std::size_t at = 0;
    for (bool has_point = false; at < text.size() && bytes::lower(text[at]) != 'e'; ++at) {
        if (text[at] == '.') has_point = true;
        if (!bytes::is_digit(text[at])) continue;
        digits = digits * 10 + static_cast<std::uint64_t>(text[at] - '0');
        exponent -= has_point ? 1 : 0;
        if (digits >= std::uint64_t{1} << 53 || exponent < -40) return false;
    }
    if (text.size() - at > 4) return false;
    if (at < text.size()) exponent += std::atoi(std::string(text.substr(at + 1)).c_str());
    return exponent >= -22 && exponent <= 22;
}

inline void check_numbers(std::string_view text) {
    const auto got = dates::parse_float(text);
    if (!plain_decimal(text)) {
        const auto magnitude = got ? std::fabs(*got) : std::numeric_limits<double>::infinity();
        require(!got || !(magnitude < magnitude + 1) || text != bytes::trim(text) ||
                    text.find_first_of("\v\f") != std::string_view::npos,
                "only words and blanks are more than plain decimals");
        return;
    }
    const double expected = std::strtod(std::string(text).c_str(), nullptr);
    require(got.has_value() && std::signbit(*got) == std::signbit(expected), "strtod reads that too");
    require(!is_short(text) || bits_of(*got) == bits_of(expected), "and the same, to the bit");
    const double size = std::fabs(expected);
    require(size < 1e-290 || size > 1e290 || std::fabs(*got - expected) <= size * 1e-14, "or almost the same");
    require(size >= 1e-290 || std::fabs(*got) < 1e-289, "a tiny number stays one");
    require(size <= 1e290 || std::fabs(*got) > 1e289, "and a huge one");
    require(dates::parse_float(" \f" + std::string(text) + "\v\n").has_value(), "blanks around a number mean nothing");
    const double unix_seconds = *got;
    const s3cache::TimePoint when = dates::to_time_point(unix_seconds);
    require(std::fabs(unix_seconds) > 9.2e9 || std::fabs(static_cast<double>(to_seconds(when)) - unix_seconds) < 1,
            "a time within the clock is that time");
}

FUZZ_TARGET(dates) {
    check_times(input);
    check_numbers(input);
    std::string written;
    const auto whole = bytes::to_u64(input);
    if (whole) dates::append_utc(written, static_cast<std::int64_t>(*whole), "0000-11-22T33:44:55Z");
}

}  // namespace fuzz_dates
