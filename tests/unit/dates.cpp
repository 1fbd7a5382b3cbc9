// Section dates.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <locale.h>
#include <optional>
#include <string>
#include <string_view>

namespace dates = s3cache::detail::dates;
namespace bytes = s3cache::detail::bytes;

namespace {

std::string bits_of(double number) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    std::string big_endian;
    for (int shift = 56; shift >= 0; shift -= 8) big_endian += static_cast<char>((bits >> shift) & 0xFF);
    return bytes::hex(big_endian);
}

void check_expires_at(const vectors::Case& c) {
    const std::optional<double> number = dates::parse_float(c.get("text"));
    CHECK(number.has_value() == c.yes("ok"));
    if (!number) return;
    const std::string bits = c.get("bits");
    CHECK((bits == "nan" ? std::isnan(*number) : bits_of(*number) == bits));
}

const vectors::Handler expires_at_vectors{"expires_at", {"text", "ok", "bits"}, check_expires_at};

std::optional<std::int64_t> milliseconds(std::optional<s3cache::TimePoint> time) {
    if (!time) return std::nullopt;
    return std::chrono::duration_cast<std::chrono::milliseconds>(time->time_since_epoch()).count();
}

std::optional<std::int64_t> iso(std::string_view text) { return milliseconds(dates::iso8601(text)); }
std::optional<std::int64_t> http(std::string_view text) { return milliseconds(dates::http_date(text)); }

std::string amz(std::int64_t seconds) {
    std::string out;
    dates::append_utc(out, seconds);
    return out;
}

}  // namespace

TEST_CASE("dates: ISO 8601 as S3 and credential services write it") {
    CHECK(iso("1970-01-01T00:00:00Z") == 0);
    CHECK(iso("2025-01-15T12:34:56Z") == 1736944496000);
    CHECK(iso("2025-01-15T12:34:56.789Z") == 1736944496789);
    CHECK(iso("2025-01-15T12:34:56.7899999999999Z") == 1736944496789);
    CHECK(iso("2025-01-15T12:34:56,5z") == 1736944496500);
    CHECK(iso("2025-01-15t12:34:56+00:00") == 1736944496000);
    CHECK(iso("2025-01-15 18:04:56+05:30") == 1736944496000);
    CHECK(iso("2025-01-15T04:34:56-0800") == 1736944496000);
    CHECK(iso("2025-01-15T11:34:56-01") == 1736944496000);
    CHECK(iso(" 2025-01-15T12:34:56\r\n") == 1736944496000);
    CHECK(iso("1969-12-31T23:59:59.250Z") == -750);
    CHECK(iso("2024-02-29T23:59:60Z") == iso("2024-03-01T00:00:00Z"));
}

TEST_CASE("dates: ISO 8601 that names no time is refused") {
    for (const char* text : {"",
                             "Z",
                             "2025",
                             "2025-01-15",
                             "2025-01-15T12:34Z",
                             "2025-01-15T12:34:56ZZ",
                             "2025-1-15T12:34:56Z",
                             "2025-13-01T00:00:00Z",
                             "2025-00-01T00:00:00Z",
                             "2025-01-00T00:00:00Z",
                             "2025-02-29T00:00:00Z",
                             "2100-02-29T00:00:00Z",
                             "2025-04-31T00:00:00Z",
                             "2025-01-15T24:00:00Z",
                             "2025-01-15T12:60:00Z",
                             "2025-01-15T12:00:61Z",
                             "2025-01-15T12:34:56.Z",
                             "2025-01-15T12:34:56+",
                             "2025-01-15T12:34:56+1",
                             "2025-01-15T12:34:56+01:",
                             "2025-01-15T12:34:56+01:6",
                             "2025-01-15T12:34:56+24:00",
                             "2025-01-15T12:34:56+01:60",
                             "2025-01-15T12:34:56 Z",
                             "20250115T123456Z",
                             "+025-01-15T12:34:56Z",
                             "0000-01-01T00:00:00Z",
                             "12025-01-15T12:34:56Z",
                             "1736944496",
                             "2025-01-15T12:34:56\xC3\xA9"}) {
        INFO(text);
        CHECK_FALSE(dates::iso8601(text));
    }
}

TEST_CASE("dates: times that the clock cannot hold become its nearest end") {
    const auto last = dates::iso8601("9999-12-31T23:59:59.999999999-23:59");
    const auto first = dates::iso8601("0001-01-01T00:00:00+23:59");
    REQUIRE(last);
    REQUIRE(first);
    CHECK(*last > dates::iso8601("2262-01-01T00:00:00Z").value());
    CHECK(*first < dates::iso8601("1678-01-01T00:00:00Z").value());
    CHECK(dates::clamped((std::numeric_limits<std::int64_t>::max)(), 999999999) == (s3cache::TimePoint::max)());
    CHECK(dates::clamped((std::numeric_limits<std::int64_t>::min)(), 0) == (s3cache::TimePoint::min)());
}

TEST_CASE("dates: a time of the store's becomes the clock's, or the nearest end of it") {
    using std::chrono::seconds;
    const auto at = [](double unix_seconds) { return dates::to_time_point(unix_seconds); };
    CHECK(at(0) == s3cache::TimePoint());
    CHECK(at(1736944496.5) == s3cache::TimePoint() + std::chrono::milliseconds(1736944496500));
    CHECK(at(-0.25) == s3cache::TimePoint() - std::chrono::milliseconds(250));
    CHECK(at(4626379445) == dates::iso8601("2116-08-09T01:24:05Z"));
    CHECK(at(7258118400) == dates::iso8601("2200-01-01T00:00:00Z"));
    CHECK(dates::unix_seconds(at(7258118400)) == 7258118400);
    CHECK(at(9223372035.75) == s3cache::TimePoint(seconds(9223372035)) + std::chrono::milliseconds(750));
    // A clock of nanoseconds ends in 2262, one of microseconds holds the year 9999.
    const bool holds_9999 =
        std::chrono::duration_cast<seconds>((s3cache::TimePoint::duration::max)()).count() > 253402300799;
    CHECK((at(253402300799) == (s3cache::TimePoint::max)()) != holds_9999);
    for (double far : {9e15, 1e300, std::numeric_limits<double>::infinity()})
        CHECK(at(far) == (s3cache::TimePoint::max)());
    for (double far : {-9e15, -1e300, -std::numeric_limits<double>::infinity()})
        CHECK(at(far) == (s3cache::TimePoint::min)());
}

TEST_CASE("dates: unix seconds of a time are whole ones") {
    CHECK(dates::unix_seconds(s3cache::TimePoint() + std::chrono::milliseconds(1736944496789)) == 1736944496);
    CHECK(dates::unix_seconds(s3cache::TimePoint()) == 0);
}

TEST_CASE("dates: an HTTP date") {
    CHECK(http("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777000);
    CHECK(http("Sun, 6 Nov 1994 08:49:37 UTC\r\n") == 784111777000);
    CHECK(http("Mon, 16 Nov 2026 08:49:37 GMT") == 1794818977000);
    CHECK(http("Sat, 31 Dec 2016 23:59:60 GMT") == http("Sun, 01 Jan 2017 00:00:00 GMT"));
    constexpr std::string_view months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    for (std::size_t i = 0; i < 12; ++i) {
        const std::string number = std::to_string(101 + i).substr(1);
        CHECK(http("Sun, 06 " + std::string(months.substr(3 * i, 3)) + " 1994 08:49:37 GMT") ==
              iso("1994-" + number + "-06T08:49:37Z"));
    }
}

TEST_CASE("dates: HTTP dates that name no time are refused") {
    for (const char* text : {"",
                             "0",
                             "Sun",
                             "Sun,",
                             "Sun, 06 Nov 1994 08:49:37",
                             "Sun, 06 Nov 1994 08:49:37 PST",
                             "Sun, 06 Nov 1994 08:49:37 GMT+1",
                             "Sun, 06 nov 1994 08:49:37 GMT",
                             "sun, 06 Nov 1994 08:49:37 GMT",
                             "Sun, 31 Nov 1994 08:49:37 GMT",
                             "Sun, 00 Nov 1994 08:49:37 GMT",
                             "Sun, 06 Nov 94 08:49:37 GMT",
                             "Sun, 06-Nov-1994 08:49:37 GMT",
                             "Sun, 06 Nov 1994 8:49:37 GMT",
                             "Sun, 06 Nov 1994 24:00:00 GMT",
                             "Sun, 29 Feb 2023 00:00:00 GMT",
                             "06 Nov 1994 08:49:37 GMT",
                             "Sunday, 06-Nov-94 08:49:37 GMT",  // the two forms that nobody may send any more
                             "Sun Nov  6 08:49:37 1994",
                             "Sun, 06 anF 1994 08:49:37 GMT",
                             "unM, 06 Nov 1994 08:49:37 GMT",
                             "2025-01-15T12:34:56Z"}) {
        INFO(text);
        CHECK_FALSE(dates::http_date(text));
    }
}

TEST_CASE("dates: written times") {
    CHECK(amz(0) == "19700101T000000Z");
    CHECK(amz(1736944496) == "20250115T123456Z");
    CHECK(amz(951782400) == "20000229T000000Z");
    CHECK(amz(4107542399) == "21000228T235959Z");
    CHECK(amz(4107542400) == "21000301T000000Z");
    CHECK(amz(253402300799) == "99991231T235959Z");
    CHECK(dates::iso8601_text(s3cache::TimePoint(std::chrono::seconds(1736944496))) == "2025-01-15T12:34:56Z");
}

TEST_CASE("dates: times outside four-digit years are written as the nearest one inside") {
    CHECK(amz(-1) == "19700101T000000Z");
    CHECK(amz((std::numeric_limits<std::int64_t>::min)()) == "19700101T000000Z");
    CHECK(amz(253402300800) == "99991231T235959Z");
    CHECK(amz((std::numeric_limits<std::int64_t>::max)()) == "99991231T235959Z");
}

TEST_CASE("dates: every day of two thousand years is written as it is read") {
    constexpr std::int64_t lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    std::size_t wrong = 0;
    std::int64_t year = 1970, month = 1, day = 1;
    for (std::int64_t days = 0; year < 4000; ++days) {
        const dates::Parts time = dates::parts_of(days * 86400 + 45296);
        const dates::Parts expected = {year, month, day, 12, 34, 56};
        wrong += time == expected && dates::days_since_epoch(year, month, day) == days ? 0U : 1U;
        wrong += dates::is_real(time) ? 0U : 1U;
        const bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        if (++day <= lengths[month - 1] + (month == 2 && is_leap ? 1 : 0)) continue;
        wrong += dates::is_real({year, month, day}) ? 1U : 0U;
        day = 1;
        month = month % 12 + 1;
        year += month == 1 ? 1 : 0;
    }
    CHECK(wrong == 0);
}

TEST_CASE("dates: a number is plain ASCII") {
    CHECK(dates::parse_float(" \t\r\n\v\f1.5\f\v") == 1.5);
    for (const char* text : {"",
                             " ",
                             ".",
                             "-",
                             "+.",
                             "e5",
                             "1,5",
                             "1_0",
                             "\xA0"
                             "1",
                             "1\x85",
                             "\xE2\x80\x83"
                             "1",
                             "\xD9\xA1",
                             "1.5.",
                             "1e5.",
                             "1e",
                             "1e+",
                             "1 e5",
                             "- 1",
                             "0x10",
                             "nan(1)",
                             "infinite",
                             "--1"}) {
        INFO(text);
        CHECK_FALSE(dates::parse_float(text));
    }
    CHECK_FALSE(dates::parse_float(std::string_view("1\0", 2)));
    const auto nan = dates::parse_float("-NaN");
    REQUIRE(nan);
    CHECK(std::isnan(*nan));
}

TEST_CASE("dates: a hostile number costs little and is read for what it is") {
    const std::string zeros(100000, '0');
    CHECK(dates::parse_float("0." + zeros + "1") == 0.0);
    CHECK(dates::parse_float("1" + zeros) == std::numeric_limits<double>::infinity());
    CHECK(dates::parse_float("1" + zeros + "e-100000") == 1.0);
    CHECK(dates::parse_float("0." + zeros + "1e100001") == 1.0);
    CHECK(dates::parse_float("1e" + zeros + "5") == 1e5);
    CHECK(dates::parse_float("1e9" + zeros) == std::numeric_limits<double>::infinity());
    CHECK(dates::parse_float("-0e9" + zeros) == 0.0);
    CHECK(dates::parse_float("1763816400.25" + zeros) == 1763816400.25);
    const auto nines = dates::parse_float(std::string(100000, '9') + "e-100000");
    REQUIRE(nines);
    CHECK(std::abs(*nines - 1) < 1e-15);
}

TEST_CASE("dates: a number of up to 15 digits is read to the bit") {
    std::uint64_t state = 88172645463325252;  // xorshift, so that a failure can be repeated
    std::size_t wrong = 0;
    for (int i = 0; i < 20000; ++i) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        const std::string digits = std::to_string(1000000000000000 + state % 1000000000000000).substr(1);
        const std::string exponent = std::to_string(static_cast<int>(state >> 60) - 8);
        const std::size_t point = 1 + state % 14;
        const std::string text = digits.substr(0, point) + "." + digits.substr(point) + "e" + exponent;
        const std::optional<double> number = dates::parse_float(text);
        wrong += number && bits_of(*number) == bits_of(std::strtod(text.c_str(), nullptr)) ? 0U : 1U;
    }
    CHECK(wrong == 0);
}

TEST_CASE("dates: a time that Python wrote with 17 digits is read to the microsecond") {
    for (const char* text : {"1763816400.2534912", "1736944496.1234567", "4102444799.9999995"}) {
        const std::optional<double> number = dates::parse_float(text);
        REQUIRE(number);
        CHECK(std::abs(*number - std::strtod(text, nullptr)) < 1e-6);
    }
}

TEST_CASE("dates: the program's locale changes nothing") {
    const std::string before = setlocale(LC_ALL, nullptr);
    const bool changed = setlocale(LC_ALL, "de_DE.UTF-8") != nullptr || setlocale(LC_ALL, "fr_FR.UTF-8") != nullptr;
    CHECK(dates::parse_float("1.5") == 1.5);
    CHECK_FALSE(dates::parse_float("1,5"));

    setlocale(LC_ALL, before.c_str());
    if (!changed) WARN("no locale with a decimal comma is installed");
}
