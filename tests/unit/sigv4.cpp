// Section sigv4.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace sigv4 = s3cache::detail::sigv4;
namespace bytes = s3cache::detail::bytes;

namespace {

bytes::Pairs query_of(const vectors::Case& c) {
    bytes::Pairs query;
    for (const auto& row : c.rows("query")) query.emplace_back(row.at(0), row.size() > 1 ? row[1] : std::string());
    return query;
}

// "https://host/path" and the parameters, sorted: their order in a URL is free.
std::vector<std::string> url_parts(const std::string& url) {
    const std::size_t question = url.find('?');
    std::vector<std::string> parts{url.substr(0, question)};
    for (std::size_t at = question; at != std::string::npos;) {
        const std::size_t next = url.find('&', at + 1);
        parts.push_back(url.substr(at + 1, next == std::string::npos ? next : next - at - 1));
        at = next;
    }
    std::sort(parts.begin() + 1, parts.end());
    return parts;
}

struct Prepared {
    std::string path;
    std::string query;
    std::vector<std::vector<std::string>> rows;
    std::vector<sigv4::Header> headers;
    sigv4::Request request;

    explicit Prepared(const vectors::Case& c) : query(sigv4::canonical_query(query_of(c))), rows(c.rows("header")) {
        bytes::append_percent(path, c.get("path"), true);
        for (auto& row : rows) {
            row.at(0) = bytes::lower(row[0]);  // the signer takes names as they are signed
            headers.push_back({row[0], row.size() > 1 ? row[1] : std::string_view()});
        }
        request = {c.get("method"), path, query, c.get("payload_hash")};
    }
};

void check_presigned(const vectors::Case& c, sigv4::Signer& signer, const s3cache::Credentials& credentials,
                     const sigv4::Scope& scope) {
    const Prepared prepared(c);
    const auto seconds = bytes::to_u64(c.get("expires"));
    REQUIRE(seconds);
    signer.headers = prepared.headers;
    const std::string query =
        signer.presign(prepared.request, query_of(c), credentials, scope, static_cast<std::uint32_t>(*seconds));
    if (!c.has("signed_url")) return;
    const std::string& expected = c.get("signed_url");
    std::string host;
    for (const auto& header : prepared.headers) {
        if (bytes::iequal(header.name, "host")) host = header.value;
    }
    const std::string scheme = expected.substr(0, expected.find("://") + 3);
    CHECK(url_parts(scheme + host + prepared.path + "?" + query) == url_parts(expected));
}

void check_sigv4(const vectors::Case& c) {
    s3cache::Credentials credentials;
    credentials.access_key = c.get("access_key");
    credentials.secret_key = c.get("secret_key");
    credentials.session_token = c.get_or("token", "");
    const sigv4::Scope scope{c.get("date"), c.get("region"), c.get("service")};
    sigv4::Signer signer;
    if (c.get("mode") == "query") {
        check_presigned(c, signer, credentials, scope);
    } else {
        REQUIRE(c.get("mode") == "header");
        const Prepared prepared(c);
        signer.headers = prepared.headers;
        const std::string first(signer.sign(prepared.request, credentials, scope));
        if (c.has("authorization")) CHECK(first == c.get("authorization"));
        CHECK(signer.sign(prepared.request, credentials, scope) == first);  // by the cached key
    }
    CHECK(signer.canonical_request == c.get("canonical_request"));
    CHECK(signer.string_to_sign == c.get("string_to_sign"));
    CHECK(signer.signature == c.get("signature"));
    if (c.has("signing_key")) {
        s3cache::detail::digest::Sha256 hash;
        const auto key = sigv4::signing_key(hash, credentials.secret_key, scope);
        CHECK(bytes::hex(s3cache::detail::digest::as_text(key)) == c.get("signing_key"));
    }
}

const vectors::Handler sigv4_vectors{
    "sigv4",
    {"mode",           "method",    "path",          "query",      "header",      "payload_hash", "date",
     "region",         "service",   "access_key",    "secret_key", "token",       "expires",      "canonical_request",
     "string_to_sign", "signature", "authorization", "signed_url", "signing_key", "note"},
    check_sigv4};

s3cache::Credentials some_keys() {
    s3cache::Credentials keys;
    keys.access_key = "AKID";
    keys.secret_key = "secret";
    return keys;
}

const sigv4::Scope some_scope{"20250115T123456Z", "eu-west-1", "s3"};

std::string signed_names(const std::vector<sigv4::Header>& headers) {
    sigv4::Signer signer;
    signer.headers = headers;
    const sigv4::Request request{"GET", "/", "", sigv4::unsigned_payload};
    const std::string value(signer.sign(request, some_keys(), some_scope));
    const std::size_t at = value.find("SignedHeaders=") + 14;
    return value.substr(at, value.find(',', at) - at);
}

std::string canonical_value(std::string_view raw) {
    std::string out;
    sigv4::append_header_value(out, raw);
    return out;
}

}  // namespace

TEST_CASE("sigv4: headers that hops rewrite are sent but not signed") {
    CHECK(signed_names({{"user-agent", "x"}, {"accept-encoding", "gzip"}, {"host", "h"}, {"expect", "100-continue"}}) ==
          "host");
    CHECK(signed_names({{"proxy-authorization", "x"}, {"te", "trailers"}, {"authorization", "x"}, {"host", "h"}}) ==
          "host");
    CHECK(signed_names({{"connection", "x"}, {"host", "h"}, {"transfer-encoding", "chunked"}, {"trailer", "x"}}) ==
          "host");
    CHECK(signed_names({{"x-amzn-trace-id", "x"}, {"upgrade", "h2c"}, {"host", "h"}, {"sec-websocket-key", "x"}}) ==
          "host");
}

TEST_CASE("sigv4: what is near a never-signed name is signed") {
    CHECK(signed_names({{"host", "h"}, {"x-amz-te", "1"}, {"proxied", "1"}, {"expected", "1"}}) ==
          "expected;host;proxied;x-amz-te");
}

TEST_CASE("sigv4: header values lose outer blanks and inner runs of them") {
    CHECK(canonical_value("") == "");
    CHECK(canonical_value(" \t ") == "");
    CHECK(canonical_value("a") == "a");
    CHECK(canonical_value("  a \t b  c ") == "a b c");
    CHECK(canonical_value("a\tb") == "a b");
}

TEST_CASE("sigv4: repeated headers join in sending order") {
    sigv4::Signer signer;
    signer.headers = {{"x-two", "b"}, {"host", "h"}, {"x-two", " a "}, {"x-two", "b"}};
    signer.sign({"GET", "/", "", "x"}, some_keys(), some_scope);
    CHECK(signer.canonical_request == "GET\n/\n\nhost:h\nx-two:b,a,b\n\nhost;x-two\nx");
}

TEST_CASE("sigv4: an empty path is signed as a slash") {
    sigv4::Signer signer;
    signer.sign({"GET", "", "", "x"}, some_keys(), some_scope);
    CHECK(signer.canonical_request == "GET\n/\n\n\n\nx");
}

TEST_CASE("sigv4: query names are sorted as names, then values as values") {
    CHECK(sigv4::canonical_query({}) == "");
    CHECK(sigv4::canonical_query({{"a-b", "1"}, {"a", "2"}, {"a", "10"}, {"A", ""}}) == "A=&a=10&a=2&a-b=1");
    CHECK(sigv4::canonical_query({{"k", "a/b c+d%"}, {"\xC3\xA9", "~"}}) == "%C3%A9=~&k=a%2Fb%20c%2Bd%25");
}

TEST_CASE("sigv4: the cached key follows the secret, the day, the region and the service") {
    const sigv4::Request request{"GET", "/", "", "x"};
    s3cache::Credentials rotated = some_keys();
    rotated.secret_key = "other";
    const std::vector<sigv4::Scope> scopes{some_scope,
                                           {"20250116T000000Z", "eu-west-1", "s3"},
                                           {"20250115T123456Z", "eu-west-2", "s3"},
                                           {"20250115T123456Z", "eu-west-1", "sts"}};
    sigv4::Signer reused;
    reused.headers = {{"host", "h"}};
    for (int round = 0; round < 2; ++round) {
        for (const auto& keys : {some_keys(), rotated}) {
            for (const sigv4::Scope& scope : scopes) {
                sigv4::Signer fresh;
                fresh.headers = reused.headers;
                CHECK(reused.sign(request, keys, scope) == fresh.sign(request, keys, scope));
            }
        }
    }
}

TEST_CASE("sigv4: a presigned URL carries its lifetime, and no secret") {
    sigv4::Signer signer;
    signer.headers = {{"host", "h"}};
    const sigv4::Request request{"GET", "/k", "", sigv4::unsigned_payload};
    const std::string url = signer.presign(request, {}, some_keys(), some_scope, 1);
    CHECK(url.find("&X-Amz-Expires=1&") != std::string::npos);
    CHECK(url.find("secret") == std::string::npos);
}

TEST_CASE("sigv4: a session token is part of a presigned query") {
    sigv4::Signer signer;
    s3cache::Credentials keys = some_keys();
    keys.session_token = "a/b+c=";
    signer.headers = {{"host", "h"}};
    const sigv4::Request request{"GET", "/k", "", sigv4::unsigned_payload};
    const std::string url = signer.presign(request, {}, keys, some_scope, 60);
    CHECK(url.find("X-Amz-Security-Token=a%2Fb%2Bc%3D") != std::string::npos);
    CHECK(signer.canonical_request.find("X-Amz-Security-Token=a%2Fb%2Bc%3D") != std::string::npos);
}
