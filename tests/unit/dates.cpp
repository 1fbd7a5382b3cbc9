// Section dates.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdint>
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

double from_bits(std::uint64_t bits) {
    double number = 0;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

void check_expires_at(const vectors::Case& c) {
    const std::optional<double> number = dates::parse_float(c.get("text"));
    CHECK(number.has_value() == c.yes("ok"));
    if (!number) return;
    const std::string bits = c.get("bits");
    CHECK((bits == "nan" ? std::isnan(*number) : bits_of(*number) == bits));
}

const vectors::Handler expires_at_vectors{"expires_at", {"text", "ok", "bits"}, check_expires_at};

std::optional<std::int64_t> milliseconds(std::optional<dates::TimePoint> time) {
    if (!time) return std::nullopt;
    return std::chrono::duration_cast<std::chrono::milliseconds>(time->time_since_epoch()).count();
}

std::optional<std::int64_t> iso(std::string_view text) { return milliseconds(dates::iso8601(text)); }
std::optional<std::int64_t> http(std::string_view text) { return milliseconds(dates::http_date(text)); }

std::string amz(std::int64_t seconds) {
    std::string out;
    dates::append_amz_date(out, seconds);
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
    CHECK(dates::clamped((std::numeric_limits<std::int64_t>::max)(), 999999999) == (dates::TimePoint::max)());
    CHECK(dates::clamped((std::numeric_limits<std::int64_t>::min)(), 0) == (dates::TimePoint::min)());
}

TEST_CASE("dates: the three forms of an HTTP date name one time") {
    CHECK(http("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777000);
    CHECK(http("Sunday, 06-Nov-94 08:49:37 GMT") == 784111777000);
    CHECK(http("Sun Nov  6 08:49:37 1994") == 784111777000);
    CHECK(http("Sun, 6 Nov 1994 08:49:37 UTC\r\n") == 784111777000);
    CHECK(http("Mon Nov 16 08:49:37 2026") == 1794818977000);
    CHECK(http("Saturday, 01-Jan-00 00:00:00 GMT") == 946684800000);
    CHECK(http("Wednesday, 01-Jan-75 00:00:00 GMT") == http("Tue, 01 Jan 2075 00:00:00 GMT"));
    CHECK(http("Thursday, 01-Jan-76 00:00:00 GMT") == http("Thu, 01 Jan 1976 00:00:00 GMT"));
    CHECK(http("Sat, 31 Dec 2016 23:59:60 GMT") == http("Sun, 01 Jan 2017 00:00:00 GMT"));
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
                             "Sun Nov 6 08:49:37",
                             "Sun Nov   6 08:49:37 1994",
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
    CHECK(dates::iso8601_text(1736944496) == "2025-01-15T12:34:56Z");
}

TEST_CASE("dates: times outside four-digit years are written as the nearest one inside") {
    CHECK(amz(-1) == "19700101T000000Z");
    CHECK(amz((std::numeric_limits<std::int64_t>::min)()) == "19700101T000000Z");
    CHECK(amz(253402300800) == "99991231T235959Z");
    CHECK(amz((std::numeric_limits<std::int64_t>::max)()) == "99991231T235959Z");
}

TEST_CASE("dates: every day of two thousand years is written as it is read") {
    std::size_t wrong = 0;
    dates::Date expected;
    for (std::int64_t day = 0; expected.year < 4000; ++day) {
        const dates::Date date = dates::date_of(day);
        const bool same = date.year == expected.year && date.month == expected.month && date.day == expected.day;
        wrong += same && dates::days_since_epoch(date) == day ? 0U : 1U;
        if (++expected.day <= dates::days_in_month(expected.year, expected.month)) continue;
        expected.day = 1;
        expected.month = expected.month % 12 + 1;
        expected.year += expected.month == 1 ? 1 : 0;
    }
    CHECK(wrong == 0);
}

TEST_CASE("dates: header bytes that are not UTF-8 are read as Latin-1") {
    CHECK(dates::parse_float("\xA0"
                             "1.5\x85") == 1.5);
    CHECK_FALSE(
        dates::parse_float("\xE9"
                           "1"));
    CHECK_FALSE(dates::parse_float("\xB2"));
    CHECK_FALSE(dates::parse_float(std::string_view("1\0", 2)));
}

TEST_CASE("dates: a hostile number costs little and is read exactly") {
    const std::string zeros(100000, '0');
    CHECK(dates::parse_float("0." + zeros + "1") == 0.0);
    CHECK(dates::parse_float("1" + zeros) == std::numeric_limits<double>::infinity());
    CHECK(dates::parse_float("1" + zeros + "e-100000") == 1.0);
    CHECK(dates::parse_float("0." + zeros + "1e100001") == 1.0);
    CHECK(dates::parse_float("1e" + zeros + "5") == 1e5);
    CHECK(dates::parse_float("1e9" + zeros) == std::numeric_limits<double>::infinity());
    CHECK(dates::parse_float("-0e9" + zeros) == 0.0);
    CHECK(dates::parse_float(std::string(100000, '9') + "e-100000") == 1.0);
    CHECK(dates::parse_float("9007199254740993." + zeros + "1") == 9007199254740994.0);
    CHECK(dates::parse_float("9007199254740993." + zeros) == 9007199254740992.0);
}

TEST_CASE("dates: a written number reads back to the bit") {
    std::uint64_t state = 88172645463325252;  // xorshift, so that a failure can be repeated
    std::size_t wrong = 0;
    for (int i = 0; i < 20000; ++i) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        const double number = from_bits(i % 2 == 0 ? state : state >> (12 + state % 50));
        if (std::isnan(number)) continue;
        char text[40];
        std::snprintf(text, sizeof text, "%.17g", number);  // 17 digits tell every double from its neighbours
        const std::optional<double> again = dates::parse_float(text);
        wrong += again && bits_of(*again) == bits_of(number) ? 0U : 1U;
    }
    CHECK(wrong == 0);
}

TEST_CASE("dates: the program's locale changes nothing") {
    const std::string before = setlocale(LC_ALL, nullptr);
    const bool changed = setlocale(LC_ALL, "de_DE.UTF-8") != nullptr || setlocale(LC_ALL, "fr_FR.UTF-8") != nullptr;
    CHECK(dates::parse_float("1.5") == 1.5);
    CHECK_FALSE(dates::parse_float("1,5"));

    setlocale(LC_ALL, before.c_str());
    if (!changed) WARN("no locale with a decimal comma is installed");
}
