// Section endpoint.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace endpoint = s3cache::detail::endpoint;
namespace bytes = s3cache::detail::bytes;
using s3cache::Addressing;
using s3cache::Config;
using s3cache::Result;

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

// What resolve() is given, in one piece.
struct Options {
    std::string bucket{}, region{}, endpoint_url{};
    Config config{};
};

Result<endpoint::Endpoint> resolve(const Options& options) {
    return endpoint::resolve(options.bucket, options.region, options.endpoint_url, options.config);
}

Options options_of(const vectors::Case& c) {
    Options options;
    options.bucket = c.get("bucket");
    options.region = c.get_or("region", "");
    options.endpoint_url = c.get_or("endpoint_url", "");
    const bool path = c.has("force_path_style") && c.yes("force_path_style");
    options.config.addressing = path ? Addressing::path : Addressing::virtual_host;
    options.config.dual_stack = c.has("dualstack") && c.yes("dualstack");
    options.config.fips = c.has("fips") && c.yes("fips");
    options.config.accelerate = c.has("accelerate") && c.yes("accelerate");
    return options;
}

// Directory buckets and ARNs need other signatures; this library refuses them on purpose, before it looks for a host.
bool is_unsupported(const std::string& bucket) {
    return bytes::ends_with(bucket, "--x-s3") || bytes::ends_with(bucket, "--xa-s3") ||
           bytes::starts_with(bucket, "arn:");
}

// botocore's rules put a dotted bucket before an address too, which no resolver answers: path style here.
std::string expected_url(const Options& options, const std::string& url) {
    const auto custom = endpoint::parse_url(options.endpoint_url);
    const std::string dotted = "://" + options.bucket + ".";
    if (!custom || !custom->is_address || url.find(dotted) == std::string::npos) return as_sent(url);
    return custom->scheme + "://" + custom->host + custom->path + "/" + options.bucket;
}

void check_endpoint(const vectors::Case& c) {
    const Options options = options_of(c);
    Config config;
    if (is_unsupported(options.bucket) || options.bucket.empty()) {
        CHECK_FALSE(endpoint::parse_location(options.bucket, config));
        return;
    }
    const auto resolved = resolve(options);
    const bool expected = c.yes("ok");
    if (!resolved) INFO(resolved.error().what());
    REQUIRE(resolved.has_value() == expected);
    if (!expected) return;
    CHECK(resolved->url() == expected_url(options, c.get("url")));
    if (c.has("signing_region")) CHECK(resolved->signing_region == c.get("signing_region"));
}

const vectors::Handler endpoint_vectors{"endpoints",
                                        {"bucket", "region", "endpoint_url", "force_path_style", "dualstack", "fips",
                                         "accelerate", "ok", "url", "signing_region", "note"},
                                        check_endpoint};

Options options(std::string bucket, std::string url, Addressing addressing = Addressing::automatic) {
    Options out;
    out.bucket = std::move(bucket);
    out.region = "eu-west-1";
    out.endpoint_url = std::move(url);
    out.config.addressing = addressing;
    return out;
}

std::string url_of(const Options& given) {
    const auto resolved = resolve(given);
    return resolved ? resolved->url() : "refused";
}

std::string problem_of(const Result<endpoint::Endpoint>& result) {
    return result ? std::string() : result.error().what();
}

std::string problem_of(const Result<endpoint::Location>& result) {
    return result ? std::string() : result.error().what();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// What a location says: where, and the options that it changes.
struct Parsed {
    Config config;
    Result<endpoint::Location> where;

    explicit Parsed(std::string_view text) : where(endpoint::parse_location(text, config)) {}
};

std::string prefix_of(std::string_view text) { return Parsed(text).where.value().prefix; }

std::string problem_in(std::string_view location) { return problem_of(Parsed(location).where); }

bool refused(std::string_view location) { return !Parsed(location).where; }

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
    CHECK(url_of(options("b", "https://gw/a\xC3\xBC,b/c")) == "https://gw/a%C3%BC%2Cb/c/b");
    CHECK(url_of(options("b", "https://gw/a%20b/%41")) == "https://gw/a%20b/A/b");
    CHECK(url_of(options("b", "https://gw/a%2")) == "refused");
}

TEST_CASE("endpoint: URLs that could mislead are refused") {
    for (const char* url : {"store:9000",
                            "ftp://store",
                            "https://",
                            "https:///b",
                            "https://user:pw@store",
                            "https://a b",
                            "https://store?x=1",
                            "https://store#x",
                            "https://store:0",
                            "https://store:65536",
                            "https://store:9x",
                            "https://[::1",
                            "https://[::1]x",
                            "https://[]",
                            "https://st\\ore",
                            "https://store\r\nx: y",
                            "https://[fe80::1%25eth0]",
                            "https://store/a b",
                            "http://host/a\nb",
                            "http://host/a\tb",
                            "http://host/\x7F",
                            " http://host",
                            "http://host "}) {
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

TEST_CASE("endpoint: buckets that need other hosts or signatures are refused by name") {
    const std::vector<std::pair<const char*, const char*>> kinds = {
        {"b--use1-az4--x-s3", "directory buckets (S3 Express) are not supported"},
        {"b--use1-az4--xa-s3", "directory buckets (S3 Express) are not supported"},
        {"arn:aws:s3::123456789012:accesspoint:x.mrap", "access points, Outposts, Object Lambda) are not supported"},
        {"arn:aws:s3:us-west-2:123456789012:accesspoint/mine", "use an access point's alias"},
        {"arn:aws:s3-outposts:us-west-2:1:outpost:op-1:accesspoint:a", "use an access point's alias"},
        {"arn:aws:s3-object-lambda:us-west-2:1:accesspoint:a", "use an access point's alias"}};
    for (const auto& [bucket, problem] : kinds) {
        INFO(bucket);
        CHECK(contains(problem_in(bucket), problem));
        CHECK(contains(problem_in("s3://" + std::string(bucket) + "/prefix"), problem));
    }
}

TEST_CASE("endpoint: the alias of an access point is the name of a bucket") {
    const std::string alias = "mine-metabcdefghijklmnopqrstuvwxyz12345-s3alias";
    CHECK(url_of(options(alias, "")) == "https://" + alias + ".s3.eu-west-1.amazonaws.com");
}

TEST_CASE("endpoint: an address is written the one way that libcurl sends it") {
    CHECK(url_of(options("b", "http://[0:0::1]:9000")) == "http://[::1]:9000/b");
    CHECK(url_of(options("b", "http://[2001:0DB8::0:1]")) == "http://[2001:db8::1]/b");
    CHECK(url_of(options("b", "http://127.0.0.1:9000")) == "http://127.0.0.1:9000/b");
    CHECK(url_of(options("b", "http://1.example:9000")) == "http://1.example:9000/b");
    CHECK(url_of(options("b", "http://0x.example")) == "http://0x.example/b");
    for (const char* host : {"127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01",
                             "127.0.0.0x1", "300.1.1.1", "1.2.3.4.5", "0", "[::1.2.3]", "[1]", "[::g]"}) {
        INFO(host);
        const auto resolved = resolve(options("b", std::string("http://") + host + ":9000"));
        CHECK(contains(problem_of(resolved), "four numbers"));
    }
}

TEST_CASE("endpoint: a location is a bucket or an s3 URL") {
    const Parsed bare("my-bucket");
    REQUIRE(bare.where);
    CHECK(bare.where->bucket == "my-bucket");
    CHECK(bare.where->prefix.empty());
    CHECK(bare.config.region.empty());
    CHECK(bare.config.endpoint.empty());
    CHECK(bare.config.addressing == Addressing::automatic);
    CHECK(bare.config.part_bytes == Config().part_bytes);

    const Parsed full("S3://b.c/p/q?region=auto&endpoint=http%3A%2F%2Fh:9000/x&path_style=false");
    REQUIRE(full.where);
    CHECK(full.where->bucket == "b.c");
    CHECK(full.where->prefix == "p/q/");
    CHECK(full.config.region == "auto");
    CHECK(full.config.endpoint == "http://h:9000/x");
    CHECK(full.config.addressing == Addressing::virtual_host);
    CHECK(Parsed("bkt?path_style=true").config.addressing == Addressing::path);
}

TEST_CASE("endpoint: a prefix is the same with and without a slash at its end") {
    CHECK(prefix_of("s3://bkt/p") == "p/");
    CHECK(prefix_of("s3://bkt/p/") == "p/");
    CHECK(prefix_of("s3://bkt/").empty());
    CHECK(prefix_of("s3://bkt").empty());
    CHECK(prefix_of("s3://bkt/a%20b") == "a%20b/");
}

TEST_CASE("endpoint: a location may say how entries are stored") {
    using s3cache::Checksums;
    using s3cache::MetadataNames;
    const Parsed full("s3://bkt/p?checksums=store&metadata_names=hyphen&part_bytes=5242880");
    REQUIRE(full.where);
    CHECK(full.config.checksums == Checksums::store);
    CHECK(full.config.metadata_names == MetadataNames::hyphen);
    CHECK(full.config.part_bytes == 5242880U);
    CHECK(Parsed("bkt?checksums=own").config.checksums == Checksums::own);
    CHECK(Parsed("bkt?checksums=none").config.checksums == Checksums::none);
    CHECK(Parsed("bkt?metadata_names=underscore").config.metadata_names == MetadataNames::underscore);
}

TEST_CASE("endpoint: keys in a location are refused and not repeated") {
    for (const char* text : {"s3://AKID:HUSH@bucket/p", "s3://AKID:HU/SH@bucket", "AKID:HUSH@bucket",
                             "s3://HUSH@bucket", "s3://AKID:HUSH@bucket?region=x"}) {
        INFO(text);
        CHECK(contains(problem_in(text), "keys"));
        CHECK_FALSE(contains(problem_in(text), "HU"));
    }
    CHECK_FALSE(contains(problem_of(resolve(options("b", "http://AKID:HUSH@store"))), "HUSH"));
    CHECK_FALSE(contains(problem_in("s3://bkt?http//AKID:HUSH@store"), "HUSH"));
}

TEST_CASE("endpoint: a location that is misspelt is refused, not guessed at") {
    for (const char* text : {"",
                             "s3://",
                             "s3:///p",
                             "bucket/p",
                             "http://bkt",
                             "s3://bkt c",
                             "bkt?regoin=x",
                             "bkt?region",
                             "bkt?region=",
                             "bkt?region=a&region=b",
                             "bkt?path_style=yes",
                             "bkt?checksums=md5",
                             "bkt?checksums=own&checksums=own",
                             "bkt?metadata_names=both",
                             "bkt?part_bytes=5M",
                             "bkt?part_bytes=-1",
                             "bkt?part_bytes=1&part_bytes=2",
                             "bkt?access_key=x",
                             "bkt?region=%zz",
                             "bkt\n",
                             "s3://bkt?region=a&"}) {
        INFO(text);
        CHECK(refused(text));
    }
    CHECK_FALSE(refused("bkt?"));
}

TEST_CASE("endpoint: a store that names ever new regions is not followed for ever") {
    using s3cache::detail::Core;
    s3cache::Config config;
    config.region = "us-east-1";
    config.endpoint = "http://127.0.0.1:9";
    Core core(config, s3cache::detail::endpoint::Location{"bucket", {}});
    REQUIRE(core.place());
    for (int i = 0; i < 1000; ++i) core.set_region("eu-test-" + std::to_string(i));
    CHECK(core.places.size() == Core::places_max);
    core.set_region("eu-test-0");
    CHECK((*core.place())->signing_region == "eu-test-0");
}
