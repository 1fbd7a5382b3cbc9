// The fake S3 itself: a test store that accepts what it should refuse would make every other test worthless.
#include "catch.hpp"
#include "fake_s3.hpp"

#include <algorithm>  // min
#include <chrono>     // waits
#include <cstring>    // memcpy
#include <memory>     // a server that ends early
#include <string>     // bodies
#include <thread>     // a stalled client
#include <vector>     // header lists

#include <curl/curl.h>

namespace {

using fake_s3::FakeS3;
using fake_s3::Fault;
using fake_s3::Header;
using fake_s3::HeaderList;
using fake_s3::Options;
using fake_s3::Point;
using std::chrono::milliseconds;

struct Reply {
    CURLcode result = CURLE_OK;
    long status = 0;
    std::string head, body;
    bool says(const std::string& text) const { return (head + body).find(text) != std::string::npos; }
    std::string header(const std::string& name) const {
        const auto at = head.find(name + ": ");
        if (at == std::string::npos) return {};
        const auto begin = at + name.size() + 2;
        return head.substr(begin, head.find_first_of("\r\n", begin) - begin);
    }
};

std::size_t append(char* data, std::size_t size, std::size_t count, void* to) {
    static_cast<std::string*>(to)->append(data, size * count);
    return size * count;
}

std::size_t take(char* to, std::size_t size, std::size_t count, void* from) {
    auto& rest = *static_cast<std::string*>(from);
    const std::size_t taken = (std::min)(size * count, rest.size());
    std::memcpy(to, rest.data(), taken);
    rest.erase(0, taken);
    return taken;
}

class Client {
public:
    explicit Client(const FakeS3& server) : base(server.endpoint()), ca(server.ca_file()), handle(curl_easy_init()) {}
    ~Client() { curl_easy_cleanup(handle); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    Reply send(const std::string& method, const std::string& path, const HeaderList& headers = {},
               std::string body = {}, bool sized = true) {
        Reply reply;
        curl_easy_reset(handle);
        curl_slist* list = curl_slist_append(nullptr, "Expect:");
        for (const auto& header : headers)
            list = curl_slist_append(list, (header.first + ": " + header.second).c_str());
        const std::string url = base + path;
        const std::string none = "*";
        const curl_off_t size = static_cast<curl_off_t>(body.size());
        curl_easy_setopt(handle, CURLOPT_URL, url.c_str());
        curl_easy_setopt(handle, CURLOPT_NOPROXY, none.c_str());
        curl_easy_setopt(handle, CURLOPT_PATH_AS_IS, 1L);
        curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS, 20000L);
        curl_easy_setopt(handle, CURLOPT_HTTPHEADER, list);
        curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, append);
        curl_easy_setopt(handle, CURLOPT_WRITEDATA, &reply.body);
        curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, append);
        curl_easy_setopt(handle, CURLOPT_HEADERDATA, &reply.head);
        if (!ca.empty()) curl_easy_setopt(handle, CURLOPT_CAINFO, ca.c_str());
        if (method == "HEAD") curl_easy_setopt(handle, CURLOPT_NOBODY, 1L);
        const bool uploads = (method == "PUT" || method == "POST") && sized;
        if (uploads) {
            curl_easy_setopt(handle, CURLOPT_UPLOAD, 1L);
            curl_easy_setopt(handle, CURLOPT_READFUNCTION, take);
            curl_easy_setopt(handle, CURLOPT_READDATA, &body);
            curl_easy_setopt(handle, CURLOPT_INFILESIZE_LARGE, size);
        }
        if (method != "HEAD") curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, method.c_str());
        reply.result = curl_easy_perform(handle);
        curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &reply.status);
        curl_slist_free_all(list);
        return reply;
    }

private:
    std::string base, ca;
    CURL* handle;
};

Options open_to_all() {
    Options options;
    options.allow_anonymous = true;
    options.part_bytes_min = 4;
    return options;
}

// ---- the examples that AWS publishes for Signature Version 4 ---------------------------------------------------

const char* const empty_hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const std::int64_t example_time = 1369353600;  // 2013-05-24 00:00:00 UTC

Options of_the_examples() {
    Options options;
    options.keys = {{"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}};
    options.buckets = {"examplebucket"};
    return options;
}

std::string authorization(const std::string& headers, const std::string& signature) {
    return "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=" +
           headers + ",Signature=" + signature;
}

HeaderList example_headers(const std::string& headers, const std::string& signature,
                           const std::string& hash = empty_hash) {
    return {{"Host", "examplebucket.s3.amazonaws.com"},
            {"x-amz-date", "20130524T000000Z"},
            {"x-amz-content-sha256", hash},
            {"Authorization", authorization(headers, signature)}};
}

HeaderList get_example() {
    HeaderList headers = example_headers("host;range;x-amz-content-sha256;x-amz-date",
                                         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    headers.emplace_back("Range", "bytes=0-9");
    return headers;
}

}  // namespace

TEST_CASE("fake: accepts the published signatures", "[fake]") {
    FakeS3 server(of_the_examples());
    server.set_clock(example_time);
    server.put_object("examplebucket", "test.txt", "0123456789abc");
    Client client(server);

    const Reply got = client.send("GET", "/test.txt", get_example());
    CHECK(got.status == 206);
    CHECK(got.body == "0123456789");

    HeaderList put = example_headers("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                                     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
                                     "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
    put.emplace_back("Date", "Fri, 24 May 2013 00:00:00 GMT");
    put.emplace_back("x-amz-storage-class", "REDUCED_REDUNDANCY");
    CHECK(client.send("PUT", "/test%24file.text", put, "Welcome to Amazon S3.").status == 200);
    REQUIRE(server.object("examplebucket", "test$file.text"));
    CHECK(server.object("examplebucket", "test$file.text")->body == "Welcome to Amazon S3.");
    const Reply damaged = client.send("PUT", "/test%24file.text", put, "Welcome to amazon S3.");
    CHECK(damaged.status == 400);
    CHECK(damaged.says("<Code>XAmzContentSHA256Mismatch</Code>"));

    const std::string plain = "host;x-amz-content-sha256;x-amz-date";
    CHECK(client
              .send("GET", "/?max-keys=2&prefix=J",
                    example_headers(plain, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"))
              .status == 200);
    CHECK(client
              .send("GET", "/?lifecycle",
                    example_headers(plain, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"))
              .says("NoSuchLifecycle"));
}

TEST_CASE("fake: accepts the published presigned URL, until it ends", "[fake]") {
    FakeS3 server(of_the_examples());
    server.set_clock(example_time + 86390);
    server.put_object("examplebucket", "test.txt", "body");
    Client client(server);
    const std::string path =
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%"
        "2F"
        "aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    const HeaderList host{{"Host", "examplebucket.s3.amazonaws.com"}};
    CHECK(client.send("GET", path, host).body == "body");
    CHECK(client.send("DELETE", path, host).says("SignatureDoesNotMatch"));
    CHECK(client.send("GET", path, {host[0], {"x-amz-meta-more", "1"}}).says("HeadersNotSigned"));
    server.set_clock(example_time + 86401);
    CHECK(client.send("GET", path, host).says("Request has expired"));
}

TEST_CASE("fake: accepts the published chunked upload, with each chunk's signature", "[fake]") {
    FakeS3 server(of_the_examples());
    server.set_clock(example_time);
    Client client(server);
    const HeaderList headers{
        {"Host", "s3.amazonaws.com"},
        {"x-amz-date", "20130524T000000Z"},
        {"x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
        {"x-amz-storage-class", "REDUCED_REDUNDANCY"},
        {"Content-Encoding", "aws-chunked"},
        {"x-amz-decoded-content-length", "66560"},
        {"Authorization", authorization("content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-"
                                        "decoded-content-length;x-amz-storage-class",
                                        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")}};
    std::string body = "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" +
                       std::string(65536, 'a') +
                       "\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" +
                       std::string(1024, 'a') +
                       "\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n";
    REQUIRE(client.send("PUT", "/examplebucket/chunkObject.txt", headers, body).status == 200);
    const auto stored = server.object("examplebucket", "chunkObject.txt");
    REQUIRE(stored);
    CHECK(stored->body == std::string(66560, 'a'));
    for (const auto& header : stored->headers) CHECK(header.first != "content-encoding");
    body[100] = 'b';
    CHECK(client.send("PUT", "/examplebucket/chunkObject.txt", headers, body).says("SignatureDoesNotMatch"));
}

TEST_CASE("fake: refuses requests that are signed wrongly", "[fake]") {
    FakeS3 server(of_the_examples());
    server.set_clock(example_time);
    server.put_object("examplebucket", "test.txt", "0123456789abc");
    Client client(server);

    HeaderList other_range = get_example();
    other_range.back().second = "bytes=0-8";
    const Reply mismatch = client.send("GET", "/test.txt", other_range);
    CHECK(mismatch.status == 403);
    CHECK(mismatch.says("<Code>SignatureDoesNotMatch</Code>"));
    CHECK(mismatch.says("<CanonicalRequest>GET\n/test.txt\n\nhost:examplebucket.s3.amazonaws.com\nrange:bytes=0-8\n"));

    HeaderList unsigned_header = get_example();
    unsigned_header.emplace_back("x-amz-meta-more", "1");
    CHECK(
        client.send("GET", "/test.txt", unsigned_header).says("<HeadersNotSigned>x-amz-meta-more</HeadersNotSigned>"));

    HeaderList no_hash = get_example();
    no_hash.erase(no_hash.begin() + 2);
    CHECK(client.send("GET", "/test.txt", no_hash)
              .says("Missing required header for this request: x-amz-content-sha256"));

    HeaderList no_host = get_example();
    no_host[3].second = authorization("range;x-amz-content-sha256;x-amz-date", std::string(64, '0'));
    CHECK(client.send("GET", "/test.txt", no_host).says("<HeadersNotSigned>host</HeadersNotSigned>"));

    CHECK(client.send("GET", "/test.txt").says("<Code>AccessDenied</Code>"));
    CHECK(client.send("GET", "/tes%74.txt", get_example()).says("<Code>InvalidURI</Code>"));
    Reply skewed;
    do {  // until all of it falls into one second
        server.set_clock(example_time + 901);
        skewed = client.send("GET", "/test.txt", get_example());
    } while (server.now() != example_time + 901);
    CHECK(skewed.says("<Code>RequestTimeTooSkewed</Code>"));
    CHECK(skewed.says("<ServerTime>2013-05-24T00:15:01.000Z</ServerTime>"));
    server.set_clock(example_time);
    server.set_keys({{"AKIAIOSFODNN7EXAMPLE", "another"}});
    CHECK(client.send("GET", "/test.txt", get_example()).says("<Code>SignatureDoesNotMatch</Code>"));
    server.set_keys({{"AKIAIOSFODNN7EXAMPLE", "another", "", true}});
    CHECK(client.send("GET", "/test.txt", get_example()).says("<Code>ExpiredToken</Code>"));
    server.set_keys({{"OTHER", "another"}});
    CHECK(client.send("GET", "/test.txt", get_example()).says("<Code>InvalidAccessKeyId</Code>"));
}

TEST_CASE("fake: region of the scope where it is enforced", "[fake]") {
    Options options = of_the_examples();
    options.region = "eu-west-3";
    options.quirks.enforce_region = true;
    FakeS3 server(options);
    server.set_clock(example_time);
    Client client(server);
    const Reply malformed = client.send("GET", "/test.txt", get_example());
    CHECK(malformed.status == 400);
    CHECK(malformed.says("<Region>eu-west-3</Region>"));
    fake_s3::Quirks quirks;
    quirks.redirect_region = true;
    server.set_quirks(quirks);
    const Reply redirected = client.send("GET", "/test.txt", get_example());
    CHECK(redirected.status == 301);
    CHECK(redirected.header("x-amz-bucket-region") == "eu-west-3");
}

TEST_CASE("fake: refuses bodies as AWS does", "[fake]") {
    FakeS3 server(open_to_all());
    Client client(server);
    const Reply chunked = client.send("PUT", "/bucket/k", {{"Transfer-Encoding", "chunked"}}, "body");
    CHECK(chunked.status == 501);
    CHECK(chunked.says("<Header>Transfer-Encoding</Header>"));
    CHECK(client.send("PUT", "/bucket/k", {}, {}, false).status == 411);
    CHECK(client.send("PUT", "/bucket/k", {{"Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA=="}}, "body")
              .says("<Code>BadDigest</Code>"));
    CHECK(client.send("PUT", "/bucket/k", {{"x-amz-checksum-crc32c", "AAAAAA=="}}, "body")
              .says("<Code>BadDigest</Code>"));
    CHECK(client.send("PUT", "/bucket/k", {{"x-amz-meta-a", std::string(2048, 'a')}}, "body")
              .says("<Code>MetadataTooLarge</Code>"));
    CHECK(client.send("PUT", "/bucket/" + std::string(1025, 'a'), {}, "body").says("<Code>KeyTooLongError</Code>"));
    CHECK(client.send("PUT", "/nowhere/k", {}, "body").says("<Code>NoSuchBucket</Code>"));
    CHECK(server.object_count() == 0);
    for (const auto& sum : HeaderList{{"crc32", "y/Q5Jg=="},
                                      {"crc32c", "4waSgw=="},
                                      {"crc64nvme", "rosUhgp5mIg="},
                                      {"sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="},
                                      {"sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="}}) {
        CAPTURE(sum.first);
        CHECK(client.send("PUT", "/bucket/sum", {{"x-amz-checksum-" + sum.first, sum.second}}, "123456789").status ==
              200);
        CHECK(client.send("GET", "/bucket/sum", {{"x-amz-checksum-mode", "ENABLED"}})
                  .header("x-amz-checksum-" + sum.first) == sum.second);
    }
}

TEST_CASE("fake: objects, ranges and conditions", "[fake]") {
    FakeS3 server(open_to_all());
    Client client(server);
    const Reply put = client.send("PUT", "/bucket/a%20b/..//c",
                                  {{"x-amz-meta-Expires_At", "1.5"}, {"Content-Type", "text/plain"}}, "0123456789");
    CHECK(put.header("ETag") == "\"781e5e245d69b566979b86e28d23f2c7\"");
    REQUIRE(server.object("bucket", "a b/..//c"));
    const Reply got = client.send("GET", "/bucket/a%20b/..//c");
    CHECK(got.body == "0123456789");
    CHECK(got.header("x-amz-meta-expires_at") == "1.5");
    CHECK(got.header("Content-Type") == "text/plain");
    CHECK_FALSE(got.header("Date").empty());
    CHECK_FALSE(got.header("x-amz-request-id").empty());

    const std::string path = "/bucket/a%20b/..//c";
    CHECK(client.send("GET", path, {{"Range", "bytes=8-20"}}).body == "89");
    CHECK(client.send("GET", path, {{"Range", "bytes=-2"}}).header("Content-Range") == "bytes 8-9/10");
    CHECK(client.send("GET", path, {{"Range", "bytes=10-"}}).status == 416);
    CHECK(client.send("HEAD", path).header("Content-Length") == "10");
    CHECK(client.send("GET", path, {{"If-None-Match", put.header("ETag")}}).status == 304);
    CHECK(client.send("GET", path, {{"If-Match", "\"other\""}}).status == 412);
    CHECK(client.send("PUT", path, {{"If-None-Match", "*"}}, "new").status == 412);
    CHECK(client.send("PUT", path, {{"If-Match", "\"other\""}}, "new").status == 412);
    CHECK(client.send("PUT", "/bucket/none", {{"If-Match", "\"other\""}}, "new").status == 404);
    CHECK(client.send("DELETE", path, {{"If-Match", "\"other\""}}).status == 412);
    CHECK(client.send("DELETE", "/bucket/none", {{"If-Match", "\"other\""}}).status == 404);
    CHECK(client.send("DELETE", "/bucket/none").status == 204);
    CHECK(server.object("bucket", "a b/..//c")->body == "0123456789");

    const HeaderList onto_itself{{"x-amz-copy-source", path},
                                 {"x-amz-metadata-directive", "REPLACE"},
                                 {"x-amz-meta-new", "1"},
                                 {"x-amz-copy-source-if-match", put.header("ETag")}};
    CHECK(client.send("PUT", path, onto_itself).says("<CopyObjectResult"));
    CHECK(server.object("bucket", "a b/..//c")->metadata == HeaderList{{"new", "1"}});
    CHECK(client.send("PUT", path, {{"x-amz-copy-source", path}}).status == 400);
    CHECK(client
              .send("PUT", path,
                    {{"x-amz-copy-source", path},
                     {"x-amz-metadata-directive", "REPLACE"},
                     {"x-amz-copy-source-if-match", "\"x\""}})
              .status == 412);
    CHECK(client.send("DELETE", path, {{"If-Match", put.header("ETag")}}).status == 204);
    CHECK(server.object_count() == 0);
    CHECK(server.connection_count() == 1);  // all of it over one connection
}

TEST_CASE("fake: lists in pages, with opaque tokens", "[fake]") {
    Options options = open_to_all();
    options.list_page_max = 2;
    FakeS3 server(options);
    for (const char* key : {"p/a b", "p/b+c", "p/c", "q"}) server.put_object("bucket", key, "x");
    Client client(server);
    const Reply first = client.send("GET", "/bucket?list-type=2&prefix=p%2F&encoding-type=url");
    CHECK(first.says("<Key>p/a+b</Key>"));
    CHECK(first.says("<Key>p/b%2Bc</Key>"));
    CHECK(first.says("<IsTruncated>true</IsTruncated>"));
    CHECK_FALSE(first.says("<Key>p/c</Key>"));
    const auto begin = first.body.find("<NextContinuationToken>") + 23;
    char* token = curl_easy_escape(nullptr, first.body.substr(begin, first.body.find('<', begin) - begin).c_str(), 0);
    const Reply second = client.send("GET", "/bucket?list-type=2&prefix=p%2F&continuation-token=" + std::string(token));
    curl_free(token);
    CHECK(second.says("<Key>p/c</Key>"));
    CHECK(second.says("<IsTruncated>false</IsTruncated>"));
    CHECK_FALSE(second.says("<Key>q</Key>"));
    CHECK(client.send("GET", "/bucket?list-type=2&continuation-token=made-up").status == 400);
}

TEST_CASE("fake: many deletes at once", "[fake]") {
    FakeS3 server(open_to_all());
    server.put_object("bucket", "a&b", "x");
    server.put_object("bucket", "kept", "x");
    server.deny_key("kept");
    Client client(server);
    const std::string body = "<Delete><Object><Key>a&amp;b</Key></Object><Object><Key>kept</Key></Object></Delete>";
    CHECK(client.send("POST", "/bucket?delete", {}, body).says("Content-MD5"));
    const Reply done = client.send("POST", "/bucket?delete", {{"Content-MD5", "bIPA/as5c6u88P2Nf0/GGw=="}}, body);
    CHECK(done.says("<Deleted><Key>a&amp;b</Key></Deleted>"));
    CHECK(done.says("<Error><Key>kept</Key><Code>AccessDenied</Code>"));
    CHECK_FALSE(server.object("bucket", "a&b"));
    CHECK(client.send("POST", "/bucket?delete", {{"Content-MD5", "bIPA/as5c6u88P2Nf0/GGw=="}}, body + " ")
              .says("<Code>BadDigest</Code>"));
    fake_s3::Quirks quirks;
    quirks.refuse_delete_objects = true;
    server.set_quirks(quirks);
    CHECK(client.send("POST", "/bucket?delete", {}, body).status == 501);
    CHECK(server.object("bucket", "kept"));
}

TEST_CASE("fake: multipart uploads", "[fake]") {
    FakeS3 server(open_to_all());
    Client client(server);
    client.send("POST", "/bucket/big?uploads", {{"x-amz-meta-kind", "bytes"}});
    REQUIRE(server.open_uploads().size() == 1);
    char* escaped = curl_easy_escape(nullptr, server.open_uploads()[0].id.c_str(), 0);
    const std::string id = escaped;
    curl_free(escaped);
    const auto part = [&](int number, const std::string& body) {
        return client.send("PUT", "/bucket/big?partNumber=" + std::to_string(number) + "&uploadId=" + id, {}, body)
            .header("ETag");
    };
    const auto complete = [&](const std::vector<std::pair<int, std::string>>& parts, const HeaderList& headers = {}) {
        std::string body = "<CompleteMultipartUpload>";
        for (const auto& one : parts) {
            body += "<Part><PartNumber>" + std::to_string(one.first) + "</PartNumber><ETag>" + one.second +
                    "</ETag></Part>";
        }
        return client.send("POST", "/bucket/big?uploadId=" + id, headers, body + "</CompleteMultipartUpload>");
    };
    const std::string one = part(1, "1234");
    const std::string two = part(2, "12");
    const std::string three = part(3, "3");
    CHECK(complete({{2, two}, {1, one}}).says("<Code>InvalidPartOrder</Code>"));
    CHECK(complete({{1, two}}).says("<Code>InvalidPart</Code>"));
    CHECK(complete({{1, one}, {2, two}, {3, three}}).says("<Code>EntityTooSmall</Code>"));
    CHECK(complete({}).says("<Code>MalformedXML</Code>"));
    server.put_object("bucket", "big", "in the way");
    CHECK(complete({{1, one}, {2, two}}, {{"If-None-Match", "*"}}).status == 412);
    CHECK(complete({{1, one}, {2, two}}).says("-2&quot;</ETag>"));
    CHECK(server.object("bucket", "big")->body == "123412");
    CHECK(server.object("bucket", "big")->metadata == HeaderList{{"kind", "bytes"}});
    CHECK(complete({{1, one}, {2, two}}).says("<Code>NoSuchUpload</Code>"));
    CHECK(server.open_uploads().empty());
}

TEST_CASE("fake: faults strike where they are placed", "[fake]") {
    for (const bool tls : {false, true}) {
        Options options = open_to_all();
        options.tls = tls;
        FakeS3 server(options);
        const std::string body(300000, 'x');
        server.put_object("bucket", "k", body);
        Client client(server);
        const auto get = [&](const Fault& fault) {
            const std::size_t number = server.add_fault(fault);
            Reply reply = client.send("GET", "/bucket/k");
            CHECK(server.fault_hits(number) >= 1);
            server.clear_faults();
            return reply;
        };
        CAPTURE(tls);
        using namespace fake_s3;
        CHECK(get(reset_at(Point::before_effect).for_times(forever)).result != CURLE_OK);
        const Reply cut = get(cut_body(1000));
        CHECK(cut.result != CURLE_OK);
        CHECK(cut.body.size() == 1000);
        const Reply torn = get(reset_at(Point::answer_body, 1000));
        CHECK(torn.result != CURLE_OK);
        CHECK(torn.body.size() <= 1000);
        CHECK(get(close_at(Point::answer_head, 20)).status != 404);
        CHECK(get(drop_at(Point::answer_body, 10)).result != CURLE_OK);
        CHECK(get(garbage()).result != CURLE_OK);
        const Reply flipped = get(flip_bit(8));
        CHECK(flipped.body.substr(0, 3) == "xyx");
        CHECK(flipped.body.size() == body.size());
        CHECK(get(slow_down("7")).header("Retry-After") == "7");
        CHECK(get(html_page()).says("<html>"));
        CHECK(get(expired_token()).status == 400);
        CHECK(get(wrong_length(5)).result == CURLE_PARTIAL_FILE);
        const Reply endless = get(no_length());
        CHECK(endless.result == CURLE_OK);
        CHECK(endless.body == body);
        CHECK(get(duplicate_header("ETag", "\"two\"")).says("ETag: \"two\""));
        CHECK(get(huge_header(5000)).head.size() > 5000);
        CHECK(get(drip(100000, milliseconds{1})).body == body);
        CHECK(get(edit_answer({}).nth_time(1)).body == body);
        server.add_fault(slow_down().nth_time(2).for_key("k").on("GetObject"));
        CHECK(client.send("GET", "/bucket/k").status == 200);
        CHECK(client.send("GET", "/bucket/k").status == 503);
        CHECK(client.send("GET", "/bucket/k").status == 200);
    }
}

TEST_CASE("fake: an answer lost after the effect, and one before it", "[fake]") {
    FakeS3 server(open_to_all());
    Client client(server);
    server.add_fault(fake_s3::lost_answer().on("PutObject").for_times(fake_s3::forever));
    CHECK(client.send("PUT", "/bucket/lost", {}, "stored").result == CURLE_GOT_NOTHING);
    CHECK(server.object("bucket", "lost")->body == "stored");
    server.clear_faults();
    server.add_fault(fake_s3::close_at(Point::request_body, 3).on("PUT"));
    CHECK(client.send("PUT", "/bucket/never", {}, "not stored").result != CURLE_OK);
    CHECK_FALSE(server.object("bucket", "never"));
    CHECK(server.requests().back().body_size >= 3);
}

TEST_CASE("fake: a stall lasts until it is released, and never outlives the server", "[fake]") {
    auto server = std::make_unique<FakeS3>(open_to_all());
    server->put_object("bucket", "k", "body");
    const auto fetch = [&] {
        Client client(*server);
        return client.send("GET", "/bucket/k");
    };
    server->add_fault(fake_s3::stall_at(Point::answer_head, milliseconds{0}, 10).for_times(fake_s3::forever));
    Reply reply;
    std::thread waiting([&] { reply = fetch(); });
    REQUIRE(server->wait_for_stalled(1, milliseconds{10000}));
    server->release_stalls();
    waiting.join();
    CHECK(reply.body == "body");

    server->add_fault(fake_s3::stall_at(Point::before_effect).on("PUT"));
    std::thread cut_off([&] { reply = Client(*server).send("PUT", "/bucket/never", {}, "x"); });
    REQUIRE(server->wait_for_stalled(1, milliseconds{10000}));
    server->end_stalls();
    cut_off.join();
    CHECK(reply.result != CURLE_OK);
    CHECK_FALSE(server->object("bucket", "never"));

    Client lasting(*server);
    std::thread left_alone([&] { reply = lasting.send("GET", "/bucket/k"); });
    REQUIRE(server->wait_for_stalled(1, milliseconds{10000}));
    server.reset();
    left_alone.join();
    CHECK(reply.result != CURLE_OK);
}

TEST_CASE("fake: another writer between two steps", "[fake]") {
    FakeS3 server(open_to_all());
    server.put_object("bucket", "k", "old");
    Client client(server);
    const std::string etag = client.send("HEAD", "/bucket/k").header("ETag");
    server.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (request.method == "DELETE" && phase == fake_s3::Phase::before_effect)
            server.put_object("bucket", "k", "new");
    });
    CHECK(client.send("DELETE", "/bucket/k", {{"If-Match", etag}}).status == 412);
    CHECK(server.object("bucket", "k")->body == "new");
}

TEST_CASE("fake: quirks by name", "[fake]") {
    Options options = open_to_all();
    CHECK(fake_s3::apply_quirk(options, "metadata-capitals"));
    CHECK(fake_s3::apply_quirk(options, "close_each"));
    CHECK(fake_s3::apply_quirk(options, "page=3"));
    CHECK_FALSE(fake_s3::apply_quirk(options, "no-such-thing"));
    CHECK(options.list_page_max == 3);
    FakeS3 server(options);
    server.put_object("bucket", "k", "body", {{"x-amz-meta-expires_at", "1"}});
    Client client(server);
    CHECK(client.send("GET", "/bucket/k").says("X-Amz-Meta-Expires_at: 1"));
    CHECK(client.send("GET", "/bucket/k").header("Connection") == "close");
    CHECK(server.connection_count() == 2);

    fake_s3::Quirks quirks;
    quirks.no_date = quirks.empty_404 = quirks.ignore_range = quirks.ignore_conditional_delete = true;
    quirks.drop_underscore_headers = true;
    server.set_quirks(quirks);
    CHECK(client.send("GET", "/bucket/none").body.empty());
    const Reply whole = client.send("GET", "/bucket/k", {{"Range", "bytes=1-2"}});
    CHECK(whole.status == 200);
    CHECK(whole.header("Date").empty());
    client.send("PUT", "/bucket/dropped", {{"x-amz-meta-expires_at", "1"}, {"x-amz-meta-other", "2"}}, "x");
    CHECK(server.object("bucket", "dropped")->metadata == HeaderList{{"other", "2"}});
    CHECK(client.send("DELETE", "/bucket/k", {{"If-Match", "\"other\""}}).status == 204);
    CHECK_FALSE(server.object("bucket", "k"));
}

TEST_CASE("fake: lists as other stores give them", "[fake]") {
    Options options = open_to_all();
    options.list_page_max = 2;
    FakeS3 server(options);
    for (const char* key : {"a", "b\x01", "c"}) server.put_object("bucket", key, "x");
    Client client(server);
    const auto list = [&](fake_s3::Quirks quirks) {
        server.set_quirks(quirks);
        return client.send("GET", "/bucket?list-type=2&encoding-type=url");
    };
    CHECK(list({}).says("<Key>b%01</Key>"));
    fake_s3::Quirks quirks;
    quirks.capital_true = quirks.raw_controls = true;
    CHECK(list(quirks).says("<IsTruncated>True</IsTruncated>"));
    CHECK(list(quirks).says("<Key>b\x01</Key>"));
    quirks.reversed_lists = true;
    const Reply last = list(quirks);
    CHECK(last.says("<Key>c</Key>"));
    CHECK_FALSE(last.says("<Key>a</Key>"));
    server.set_list_page_max(10);
    quirks.endless_lists = true;
    CHECK(list(quirks).says("<NextContinuationToken>"));
}

TEST_CASE("fake: ETags, lengths, dates and copies as others give them", "[fake]") {
    FakeS3 server(open_to_all());
    server.put_object("bucket", "k", "body");
    Client client(server);
    const HeaderList replace{{"x-amz-copy-source", "/bucket/k"}, {"x-amz-metadata-directive", "REPLACE"}};
    const auto copy = [&](Header condition) {
        HeaderList headers = replace;
        headers.push_back(std::move(condition));
        return client.send("PUT", "/bucket/k", headers).status;
    };
    const std::string etag = client.send("GET", "/bucket/k").header("ETag");
    CHECK(copy({"x-amz-copy-source-if-unmodified-since", "Wed, 15 Jan 2025 12:00:00 GMT"}) == 412);
    fake_s3::Quirks quirks;
    quirks.weak_etags = quirks.head_without_length = quirks.copy_without_etag = true;
    server.set_quirks(quirks);
    CHECK(client.send("GET", "/bucket/k").header("ETag") == "W/" + etag);
    CHECK(client.send("GET", "/bucket/k", {{"If-Match", "W/" + etag}}).status == 412);
    CHECK(client.send("GET", "/bucket/k", {{"If-None-Match", "W/" + etag}}).status == 304);
    CHECK(client.send("HEAD", "/bucket/k").header("Content-Length").empty());
    CHECK(copy({"x-amz-copy-source-if-match", etag}) == 200);
    CHECK(client.send("GET", "/bucket/k").header("ETag").empty());
    quirks = {};
    quirks.refuse_copy_condition = true;
    server.set_quirks(quirks);
    server.put_object("bucket", "k", "body");
    CHECK(copy({"x-amz-copy-source-if-match", etag}) == 412);
    server.add_fault(fake_s3::other_date(-3600));
    CHECK(client.send("GET", "/bucket/k").header("Age") == "3600");
}

TEST_CASE("fake: a policy's demands, and keys that are refused within a list of them", "[fake]") {
    FakeS3 server(open_to_all());
    server.demand_header("PutObject", "x-amz-checksum-");
    Client client(server);
    CHECK(client.send("PUT", "/bucket/k", {}, "x").status == 403);
    CHECK(client.send("PUT", "/bucket/k", {{"x-amz-checksum-crc32c", "9uXx0w=="}}, "x").status != 403);
    server.put_object("bucket", "kept", "x");
    const std::string body = "<Delete><Object><Key>a&amp;b</Key></Object><Object><Key>kept</Key></Object></Delete>";
    for (const bool named : {true, false}) {
        server.refuse_in_bulk("kept", "SlowDown", 1, named);
        const Reply done = client.send("POST", "/bucket?delete", {{"Content-MD5", "bIPA/as5c6u88P2Nf0/GGw=="}}, body);
        CHECK(done.says(named ? "<Error><Key>kept</Key><Code>SlowDown</Code>" : "<Error><Code>SlowDown</Code>"));
        CHECK(server.object("bucket", "kept"));
    }
}

TEST_CASE("fake: checksums of parts are those that were announced", "[fake]") {
    FakeS3 server(open_to_all());
    Client client(server);
    for (const bool announced : {false, true}) {
        HeaderList headers;
        if (announced) headers = {{"x-amz-checksum-algorithm", "CRC32C"}, {"x-amz-checksum-type", "FULL_OBJECT"}};
        client.send("POST", "/bucket/big?uploads", headers);
        char* escaped = curl_easy_escape(nullptr, server.open_uploads()[0].id.c_str(), 0);
        const std::string target = "/bucket/big?partNumber=1&uploadId=" + std::string(escaped);
        curl_free(escaped);
        CHECK((client.send("PUT", target, {}, "").status == 200) == !announced);
        CHECK((client.send("PUT", target, {{"x-amz-checksum-crc32c", "AAAAAA=="}}, "").status == 200) == announced);
        server.erase_all();
    }
}

TEST_CASE("fake: a body that pauses too long ends the connection", "[fake]") {
    Options options = open_to_all();
    options.body_idle_limit = milliseconds{50};
    FakeS3 server(options);
    Client client(server);
    CHECK(client.send("PUT", "/bucket/k", {{"Content-Length", "10"}}, "x", false).status != 200);
    CHECK_FALSE(server.object("bucket", "k"));
}

TEST_CASE("fake: stops listening, listens again, swaps its certificate", "[fake]") {
    Options options = open_to_all();
    options.tls = true;
    FakeS3 server(options);
    server.put_object("bucket", "k", "body");
    CHECK(Client(server).send("GET", "/bucket/k").status == 200);
    server.set_listening(false);
    CHECK(Client(server).send("GET", "/bucket/k").result == CURLE_COULDNT_CONNECT);
    server.set_listening(true);
    CHECK(Client(server).send("GET", "/bucket/k").status == 200);
    Client lasting(server);
    CHECK(lasting.send("GET", "/bucket/k").status == 200);
    server.swap_certificate();
    CHECK(lasting.send("GET", "/bucket/k").status == 200);
    CHECK(Client(server).send("GET", "/bucket/k").result == CURLE_PEER_FAILED_VERIFICATION);
}
