// Section endpoint.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace endpoint = s3cache::detail::endpoint;
namespace bytes = s3cache::detail::bytes;
using s3cache::Addressing;

namespace {

// An Endpoint is written as it is sent: host in lower case, the scheme's own port left out, no slash at the end. The
// vectors keep the endpoint as it was typed.
std::string as_sent(std::string url) {
    const std::size_t host = url.find("://") + 3;
    const std::size_t path = (std::min)(url.find('/', host), url.size());
    std::string start = bytes::lower(url.substr(0, path));
    const std::string port = bytes::starts_with(start, "https:") ? ":443" : ":80";
    if (bytes::ends_with(start, port)) start.resize(start.size() - port.size());
    std::string rest = url.substr(path);
    if (bytes::ends_with(rest, "/")) rest.pop_back();
    return start + rest;
}

endpoint::Options options_of(const vectors::Case& c) {
    endpoint::Options options;
    options.bucket = c.get("bucket");
    options.region = c.get_or("region", "");
    options.endpoint_url = c.get_or("endpoint_url", "");
    const bool path = c.has("force_path_style") && c.yes("force_path_style");
    options.addressing = path ? Addressing::path : Addressing::virtual_host;
    options.dualstack = c.has("dualstack") && c.yes("dualstack");
    options.fips = c.has("fips") && c.yes("fips");
    options.accelerate = c.has("accelerate") && c.yes("accelerate");
    return options;
}

// Directory buckets and multi-region access points need other signatures; this library refuses them on purpose.
bool is_unsupported(const std::string& bucket) {
    const bool arn = bytes::starts_with(bucket, "arn:");
    const bool multi_region = arn && (bytes::ends_with(bucket, ".mrap") || bucket.find(":s3::") != std::string::npos);
    return multi_region || bytes::ends_with(bucket, "--x-s3") || bytes::ends_with(bucket, "--xa-s3");
}

// botocore's rules put a dotted bucket before an address too, which no resolver answers: path style here.
std::string expected_url(const endpoint::Options& options, const std::string& url) {
    const auto custom = endpoint::parse_url(options.endpoint_url);
    const std::string dotted = "://" + options.bucket + ".";
    if (!custom || !custom->is_address || url.find(dotted) == std::string::npos) return as_sent(url);
    return custom->scheme + "://" + custom->host + custom->path + "/" + options.bucket;
}

void check_endpoint(const vectors::Case& c) {
    const endpoint::Options options = options_of(c);
    const endpoint::Resolution resolution = endpoint::resolve(options);
    const bool expected = c.yes("ok") && !is_unsupported(options.bucket);
    INFO(resolution.problem);
    REQUIRE(resolution.endpoint.has_value() == expected);
    CHECK(resolution.problem.empty() == expected);
    if (!expected) return;
    CHECK(resolution.endpoint->url() == expected_url(options, c.get("url")));
    if (c.has("signing_region")) CHECK(resolution.endpoint->signing_region == c.get("signing_region"));
}

const vectors::Handler endpoint_vectors{"endpoints",
                                        {"bucket", "region", "endpoint_url", "force_path_style", "dualstack", "fips",
                                         "accelerate", "ok", "url", "signing_region", "note"},
                                        check_endpoint};

endpoint::Options options(std::string bucket, std::string url, Addressing addressing = Addressing::automatic) {
    endpoint::Options out;
    out.bucket = std::move(bucket);
    out.region = "eu-west-1";
    out.endpoint_url = std::move(url);
    out.addressing = addressing;
    return out;
}

std::string url_of(const endpoint::Options& given) {
    const auto resolution = endpoint::resolve(given);
    return resolution.endpoint ? resolution.endpoint->url() : "refused";
}

bool refused(std::string_view location) { return !endpoint::parse_location(location).location; }

}  // namespace

TEST_CASE("endpoint: automatic addressing is by host on AWS and by path elsewhere") {
    CHECK(url_of(options("my-bucket", "")) == "https://my-bucket.s3.eu-west-1.amazonaws.com");
    CHECK(url_of(options("my.bucket", "")) == "https://s3.eu-west-1.amazonaws.com/my.bucket");
    CHECK(url_of(options("my-bucket", "http://store:9000")) == "http://store:9000/my-bucket");
    CHECK(url_of(options("my-bucket", "http://store:9000", Addressing::virtual_host)) == "http://my-bucket.store:9000");
}

TEST_CASE("endpoint: an address never takes a bucket before it") {
    for (const char* bucket : {"my-bucket", "my.bucket"}) {
        const std::string path = std::string("/") + bucket;
        CHECK(url_of(options(bucket, "http://10.0.0.1:9000", Addressing::virtual_host)) ==
              "http://10.0.0.1:9000" + path);
        CHECK(url_of(options(bucket, "https://[FD00::1]:9000", Addressing::virtual_host)) ==
              "https://[fd00::1]:9000" + path);
    }
}

TEST_CASE("endpoint: the host is written as it is signed") {
    CHECK(url_of(options("b", "HTTPS://Store.Example:443/")) == "https://store.example/b");
    CHECK(url_of(options("b", "http://store.example:80")) == "http://store.example/b");
    CHECK(url_of(options("b", "http://store.example:443")) == "http://store.example:443/b");
    CHECK(url_of(options("b", "https://store.example:80")) == "https://store.example:80/b");
    CHECK(url_of(options("b", "http://minio_1:09000//")) == "http://minio_1:9000/b");
}

TEST_CASE("endpoint: a path of the endpoint is encoded once, as keys are") {
    CHECK(url_of(options("b", "https://gw/a b/c")) == "https://gw/a%20b/c/b");
    CHECK(url_of(options("b", "https://gw/a%20b/%41")) == "https://gw/a%20b/A/b");
    CHECK(url_of(options("b", "https://gw/a%2")) == "refused");
}

TEST_CASE("endpoint: URLs that could mislead are refused") {
    for (const char* url : {"store:9000", "ftp://store", "https://", "https:///b", "https://user:pw@store",
                            "https://a b", "https://store?x=1", "https://store#x", "https://store:0",
                            "https://store:65536", "https://store:9x", "https://[::1", "https://[::1]x", "https://[]",
                            "https://st\\ore", "https://store\r\nx: y", "https://[fe80::1%25eth0]"}) {
        INFO(url);
        CHECK(url_of(options("b", url)) == "refused");
    }
}

TEST_CASE("endpoint: a region must be a host label") {
    for (const char* region : {"", "a.b", "evil.example/", "us east", "-a", "a-", "a/b", "a@b", "\xC3\xA9"}) {
        CHECK_FALSE(endpoint::valid_region(region));
        auto given = options("my-bucket", "");
        given.region = region;
        CHECK(url_of(given) == "refused");
    }
    CHECK_FALSE(endpoint::valid_region(std::string(64, 'a')));
    for (const char* region : {"auto", "garage", "us-west-004", "mars-north-1"}) CHECK(endpoint::valid_region(region));
}

TEST_CASE("endpoint: Express buckets and multi-region access points are refused in words") {
    for (const char* bucket :
         {"b--use1-az4--x-s3", "b--use1-az4--xa-s3", "arn:aws:s3::123456789012:accesspoint:x.mrap"}) {
        const auto resolution = endpoint::resolve(options(bucket, ""));
        CHECK_FALSE(resolution.endpoint);
        CHECK(resolution.problem.find("not supported") != std::string::npos);
    }
}

TEST_CASE("endpoint: an access point brings its own region and host") {
    const auto point = endpoint::resolve(options("arn:aws:s3:us-west-2:123456789012:accesspoint/mine", ""));
    REQUIRE(point.endpoint);
    CHECK(point.endpoint->url() == "https://mine-123456789012.s3-accesspoint.us-west-2.amazonaws.com");
    CHECK(point.endpoint->signing_region == "us-west-2");
    CHECK_FALSE(point.endpoint->path_style);
    for (const char* arn : {"arn:aws:s3:us-west-2:123456789012:accesspoint", "arn:aws:s3:us-west-2:1:accesspoint:a:b",
                            "arn:aws:s3:us-west-2:1:bucket:a", "arn:aws:sqs:us-west-2:1:accesspoint:a",
                            "arn:aws:s3:us-west-2::accesspoint:a", "arn:aws:s3:us-west-2:1:accesspoint:a_b",
                            "arn:aws-cn:s3:cn-north-1:1:accesspoint:a", "arn:aws-cn:s3:us-west-2:1:accesspoint:a"}) {
        INFO(arn);
        CHECK(url_of(options(arn, "")) == "refused");
    }
    CHECK(url_of(options("arn:aws:s3:us-west-2:1:accesspoint:a", "", Addressing::path)) == "refused");
}

TEST_CASE("endpoint: access points of other services name the service to sign for") {
    const auto outpost = endpoint::resolve(options("arn:aws:s3-outposts:us-west-2:1:outpost:op-1:accesspoint:a", ""));
    REQUIRE(outpost.endpoint);
    CHECK(outpost.endpoint->url() == "https://a-1.op-1.s3-outposts.us-west-2.amazonaws.com");
    CHECK(outpost.endpoint->signing_service == "s3-outposts");
    const auto lambda = endpoint::resolve(options("arn:aws:s3-object-lambda:us-west-2:1:accesspoint:a", ""));
    REQUIRE(lambda.endpoint);
    CHECK(lambda.endpoint->url() == "https://a-1.s3-object-lambda.us-west-2.amazonaws.com");
    CHECK(lambda.endpoint->signing_service == "s3-object-lambda");
}

TEST_CASE("endpoint: a location is a bucket or an s3 URL") {
    const auto bare = endpoint::parse_location("my-bucket");
    REQUIRE(bare.location);
    CHECK(bare.location->bucket == "my-bucket");
    CHECK(bare.location->prefix.empty());
    CHECK_FALSE(bare.location->region);

    const auto full =
        endpoint::parse_location("S3://b.c/p/q?region=auto&endpoint=http%3A%2F%2Fh:9000/x&path_style=false");
    REQUIRE(full.location);
    CHECK(full.location->bucket == "b.c");
    CHECK(full.location->prefix == "p/q/");
    CHECK(full.location->region == "auto");
    CHECK(full.location->endpoint_url == "http://h:9000/x");
    CHECK(full.location->path_style == false);
}

TEST_CASE("endpoint: a prefix is the same with and without a slash at its end") {
    CHECK(endpoint::parse_location("s3://b/p").location->prefix == "p/");
    CHECK(endpoint::parse_location("s3://b/p/").location->prefix == "p/");
    CHECK(endpoint::parse_location("s3://b/").location->prefix.empty());
    CHECK(endpoint::parse_location("s3://b").location->prefix.empty());
    CHECK(endpoint::parse_location("s3://b/a%20b").location->prefix == "a%20b/");
}

TEST_CASE("endpoint: an ARN may have a prefix behind it") {
    const auto slash = endpoint::parse_location("s3://arn:aws:s3:us-west-2:1:accesspoint/a/p");
    REQUIRE(slash.location);
    CHECK(slash.location->bucket == "arn:aws:s3:us-west-2:1:accesspoint/a");
    CHECK(slash.location->prefix == "p/");
    const auto colon = endpoint::parse_location("s3://arn:aws:s3:us-west-2:1:accesspoint:a/p");
    REQUIRE(colon.location);
    CHECK(colon.location->bucket == "arn:aws:s3:us-west-2:1:accesspoint:a");
}

TEST_CASE("endpoint: a location that is misspelt is refused, not guessed at") {
    for (const char* text :
         {"", "s3://", "s3:///p", "bucket/p", "http://b", "s3://b c", "b?regoin=x", "b?region",
          "b?region=", "b?region=a&region=b", "b?path_style=yes", "b?region=%zz", "b\n", "s3://b?region=a&"}) {
        INFO(text);
        CHECK(refused(text));
    }
    CHECK_FALSE(refused("b?"));
}
