// Section entry: what the headers of an answer say of an entry, and what may be written into them.
#include "s3cache.hpp"

#include "catch.hpp"

#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace entry = s3cache::detail::entry;
using s3cache::Kind;
using s3cache::Metadata;

namespace {

entry::Facts facts_of(const std::vector<std::string>& lines) {
    s3cache::detail::http::Headers headers;
    for (const std::string& line : lines) REQUIRE(headers.add(line));
    return entry::read(headers);
}

}  // namespace

TEST_CASE(
    "entry: what the cache keeps in metadata is read, whatever the case of the names, and the rest is the user's") {
    const entry::Facts facts =
        facts_of({"ETag: \"abc\"", "content-length: 12", "x-amz-meta-Expires_At: 1763816400.25",
                  "X-Amz-Meta-kind: json", "x-amz-meta-compressed: True", "x-amz-meta-negative: true",
                  "x-amz-meta-crc32c: 4waSgw==", "x-amz-meta-Author: me", "x-amz-meta-part-bytes: 8388608"});
    CHECK(facts.from_s3);
    CHECK(facts.info.etag == "\"abc\"");
    CHECK(facts.info.size == 12);
    CHECK(facts.expires_at == 1763816400.25);
    CHECK(facts.info.kind == Kind::json);
    CHECK(facts.info.compressed);
    CHECK(facts.info.negative);
    CHECK(facts.info.metadata == Metadata{{"author", "me"}});
}

TEST_CASE("entry: an expiry is read under either name, joined to itself too; what is no number is malformed") {
    CHECK(facts_of({"x-amz-meta-expires-at: 100"}).expires_at == 100);
    CHECK(facts_of({"x-amz-meta-expires_at: 100,100"}).expires_at == 100);
    CHECK(facts_of({"x-amz-meta-expires_at: 100, 200"}).is_malformed());
    CHECK(facts_of({"x-amz-meta-expires_at: soon"}).is_malformed());
    CHECK(facts_of({"x-amz-meta-expires_at: nan"}).is_malformed());
    CHECK(facts_of({"x-amz-meta-expires_at: inf"}).expires_at == entry::never);
    CHECK(facts_of({"ETag: \"a\""}).expires_at == entry::never);
    CHECK_FALSE(facts_of({"x-amz-meta-expires_at: soon"}).expired(1e300));
}

TEST_CASE("entry: an entry has expired from its second on; a lease goes by two times of one answer") {
    const entry::Facts facts = facts_of({"x-amz-meta-expires_at: 100"});
    CHECK_FALSE(facts.expired(99.9));
    CHECK(facts.expired(100));
    const std::vector<std::string> lease = {"x-amz-meta-lease-seconds: 10", "x-amz-meta-expires_at: 100",
                                            "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"};
    std::vector<std::string> young = lease, old = lease;
    young.push_back("Date: Sun, 06 Nov 1994 08:49:47 GMT");
    old.push_back("Date: Sun, 06 Nov 1994 08:49:48 GMT");
    CHECK_FALSE(facts_of(young).expired(1e12));
    CHECK(facts_of(old).expired(0));
}

TEST_CASE("entry: a page that something before the store made is no entry, and a weak ETag vouches for nothing") {
    CHECK_FALSE(facts_of({"content-type: text/html", "x-amz-meta-kind: json"}).from_s3);
    CHECK_FALSE(facts_of({"content-type: application/json"}).from_s3);
    const entry::Facts weak = facts_of({"ETag: W/\"abc\""});
    CHECK(weak.from_s3);
    CHECK_FALSE(weak.has_strong_etag());
    CHECK(weak.has_etag("\"abc\""));
    CHECK_FALSE(weak.has_etag("\"abd\""));
}

TEST_CASE("entry: metadata that would not come back as it is, or that is the cache's own, is refused by name") {
    const auto text = [](const Metadata& metadata) {
        const auto fine = entry::check_metadata(metadata);
        return fine ? std::string() : std::string(fine.error().what());
    };
    CHECK(text({{"author", "me"}, {"x.y_z-1", "a b"}}).empty());
    CHECK(text({{"a b", "x"}}).find("name") != std::string::npos);
    CHECK(text({{"", "x"}}).find("name") != std::string::npos);
    CHECK(text({{"a", "x"}, {"A", "y"}}).find("twice") != std::string::npos);
    CHECK(text({{"Kind", "json"}}).find("own") != std::string::npos);
    CHECK(text({{"a", " x"}}).find("blanks") != std::string::npos);
    CHECK(text({{"a", "x  y"}}).find("two blanks") != std::string::npos);
    CHECK(text({{"a", "\xC3\xBC"}}).find("ASCII") != std::string::npos);
    CHECK(text({{"a", std::string(2047, 'x')}}).empty());
    CHECK(text({{"a", std::string(2048, 'x')}}).find("2048") != std::string::npos);
}

TEST_CASE("entry: a TTL is written in milliseconds, and scratch names are told from keys") {
    CHECK(entry::seconds_text(1763816400.25) == "1763816400.250");
    CHECK(entry::seconds_text(0.0004) == "0.000");
    CHECK(entry::is_scratch_name(entry::scratch_name("lease", std::string(32, 'a'))));
    CHECK(entry::is_scratch_name(entry::scratch_name("probe", std::string(16, '0'))));
    CHECK_FALSE(entry::is_scratch_name(".s3cache/lease/mine"));
    CHECK_FALSE(entry::is_scratch_name(".s3cache/lease/" + std::string(32, 'g')));
    CHECK_FALSE(entry::is_scratch_name("reports/" + std::string(32, 'a')));
}
