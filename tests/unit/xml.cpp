// Section xml.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xml = s3cache::detail::xml;
namespace bytes = s3cache::detail::bytes;

namespace {

// As much of JSON as the vectors' fields use: objects, arrays, strings, numbers and words.
struct Json {
    std::string name;  // of a member
    std::string text;  // of a string, or a number or word as written
    bool is_string = false;
    bool is_object = false;
    std::vector<Json> members;  // of an object, or of an array, without names
};

class JsonReader {
public:
    explicit JsonReader(std::string_view text) : rest_(text) {}

    Json read() {
        skip_blanks();
        if (take('{')) return read_members('}', true);
        if (take('[')) return read_members(']', false);
        Json out;
        out.is_string = !rest_.empty() && rest_.front() == '"';
        if (out.is_string)
            out.text = read_string();
        else
            while (!rest_.empty() && std::string_view(",]} ").find(rest_.front()) == std::string_view::npos)
                out.text += next();
        return out;
    }

private:
    Json read_members(char end, bool named) {
        Json out;
        out.is_object = named;
        while (skip_blanks(), !take(end)) {
            std::string name;
            if (named) {
                name = read_string();
                skip_blanks();
                if (!take(':')) throw std::runtime_error("vector: no colon");
            }
            out.members.push_back(read());
            out.members.back().name = std::move(name);
            skip_blanks();
            take(',');
        }
        return out;
    }

    std::string read_string() {
        if (!take('"')) throw std::runtime_error("vector: no string");
        std::string out;
        while (!take('"')) {
            char c = next();
            if (c == '\\') {
                c = next();
                const std::size_t at = std::string_view("nrtbf").find(c);
                if (c == 'u') {
                    std::string digits;
                    for (int i = 0; i < 4; ++i) digits += next();
                    s3cache::detail::utf8::append(out, static_cast<std::uint32_t>(std::stoul(digits, nullptr, 16)));
                    continue;
                }
                if (at != std::string_view::npos) c = "\n\r\t\b\f"[at];
            }
            out += c;
        }
        return out;
    }

    char next() {
        if (rest_.empty()) throw std::runtime_error("vector: cut JSON");
        const char c = rest_.front();
        rest_.remove_prefix(1);
        return c;
    }
    bool take(char c) {
        if (rest_.empty() || rest_.front() != c) return false;
        rest_.remove_prefix(1);
        return true;
    }
    void skip_blanks() {
        while (!rest_.empty() && rest_.front() == ' ') rest_.remove_prefix(1);
    }

    std::string_view rest_;
};

Json json_of(const std::string& text) { return JsonReader(text).read(); }

std::string reason(const std::string& status) {
    static const std::map<std::string, std::string> reasons{{"200", "OK"},
                                                            {"204", "No Content"},
                                                            {"206", "Partial Content"},
                                                            {"301", "Moved Permanently"},
                                                            {"304", "Not Modified"},
                                                            {"307", "Temporary Redirect"},
                                                            {"400", "Bad Request"},
                                                            {"401", "Unauthorized"},
                                                            {"403", "Forbidden"},
                                                            {"404", "Not Found"},
                                                            {"405", "Method Not Allowed"},
                                                            {"408", "Request Timeout"},
                                                            {"409", "Conflict"},
                                                            {"411", "Length Required"},
                                                            {"412", "Precondition Failed"},
                                                            {"413", "Request Entity Too Large"},
                                                            {"416", "Requested Range Not Satisfiable"},
                                                            {"429", "Too Many Requests"},
                                                            {"500", "Internal Server Error"},
                                                            {"501", "Not Implemented"},
                                                            {"502", "Bad Gateway"},
                                                            {"503", "Service Unavailable"},
                                                            {"504", "Gateway Timeout"}};
    const auto at = reasons.find(status);
    return at == reasons.end() ? std::string() : at->second;
}

bool may_hide_an_error(const std::string& operation) {
    return operation == "CompleteMultipartUpload" || operation == "CopyObject" || operation == "UploadPartCopy" ||
           operation == "DeleteObjects";
}

// Neither a result nor an error stands for a 500, as does an error that came with 200.
bool counts_as_500(const std::string& operation, const std::string& body) {
    return operation == "DeleteObjects" ? !xml::list_result(body, "Error") : !xml::etag_result(body);
}

std::string header_of(const vectors::Case& c, std::string_view name) {
    for (const auto& row : c.rows("header")) {
        if (row.size() > 1 && bytes::iequal(row[0], name)) return row[1];
    }
    return {};
}

std::map<std::string, std::string> recommended(const vectors::Case& c) {
    std::map<std::string, std::string> out;
    if (!c.has("recommended")) return out;
    for (const Json& field : json_of(c.get("recommended")).members) out[field.name] = field.text;
    return out;
}

// The error in it, if it is one.
std::optional<xml::ErrorBody> error_body(std::string_view document) {
    xml::ErrorBody body;
    return xml::read_error(document, body) ? std::optional<xml::ErrorBody>(body) : std::nullopt;
}

// What is recommended is what we do; where nothing is, what botocore makes of the answer.
void check_error(const vectors::Case& c, const std::map<std::string, std::string>& better) {
    const auto body = error_body(c.get("body_base64"));
    std::string status = c.get("status");
    if (better.count("counts_as_500") != 0 && better.at("counts_as_500") == "false") return;  // then it is no error
    if (status == "200") status = "500";
    const bool by_status = !body || body->code.empty();
    const auto code = better.find("code");
    if (code != better.end()) {
        REQUIRE(body);
        CHECK(body->code == code->second);
    } else if (c.has("error_code") && !(body && c.get("error_code").empty())) {
        CHECK((by_status ? status : body->code) == c.get("error_code"));
    }
    if (c.has("error_message")) CHECK((body ? body->message : reason(status)) == c.get("error_message"));
    const std::string in_header = header_of(c, "x-amz-request-id");
    if (c.has("request_id"))
        CHECK((body && !body->request_id.empty() ? body->request_id : in_header) == c.get("request_id"));
}

void check_list(const vectors::Case& c) {
    const auto page = xml::list_result(c.get("body_base64"));
    REQUIRE(page.has_value() != (c.has("parse_error") && c.yes("parse_error")));
    if (!page) return;
    const auto keys = c.all("keys");
    if (!keys.empty() || !c.has("common_prefixes")) REQUIRE(page->entries.size() == keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        const Json row = json_of(keys[i]);
        REQUIRE(row.members.size() == 3);
        CHECK(page->entries[i].key == row.members[0].text);
        CHECK(std::to_string(page->entries[i].info.size) == row.members[1].text);
        const Json& etag = row.members[2];
        CHECK(page->entries[i].info.etag == (etag.is_string ? etag.text : std::string()));
    }
    if (c.has("truncated")) CHECK(page->truncated == c.yes("truncated"));
    for (const char* name : {"next_token", "next_continuation_token"}) {
        if (c.has(name)) CHECK(page->next_token == c.get(name));
    }
}

void check_delete(const vectors::Case& c) {
    const auto done = xml::list_result(c.get("body_base64"), "Error");
    if (!done) {
        CHECK((c.has("counts_as_500") && c.yes("counts_as_500")));
        return;
    }
    const auto errors = c.all("errors");
    REQUIRE(done->entries.size() == errors.size());
    for (std::size_t i = 0; i < errors.size(); ++i) {
        const Json row = json_of(errors[i]);
        REQUIRE(row.members.size() == 3);
        CHECK(done->entries[i].key == row.members[0].text);
    }
}

// Every field by its name, through the scanner that all parsers stand on.
void check_fields(const vectors::Case& c) {
    const std::string body = c.get("body_base64");
    std::map<std::string, std::string> found;
    xml::Scanner scanner(body);
    while (scanner.next()) found.emplace(scanner.path().substr(scanner.path().rfind('/') + 1), scanner.text());
    REQUIRE(scanner.whole());
    for (const Json& field : json_of(c.get("fields")).members) {
        if (field.is_object) continue;
        INFO(field.name);
        REQUIRE(found.count(field.name) == 1);
        CHECK(found[field.name] == field.text);
    }
    const std::string operation = c.get("operation");
    if (operation == "CreateMultipartUpload") CHECK(xml::upload_id(body) == found["UploadId"]);
    if (operation == "CompleteMultipartUpload" || operation == "CopyObject")
        CHECK(xml::etag_result(body) == found["ETag"]);
}

void check_s3_xml(const vectors::Case& c) {
    const std::string operation = c.get("operation");
    const auto better = recommended(c);
    if (c.has("error_code")) check_error(c, better);
    if (may_hide_an_error(operation) && c.get("status") == "200") {
        const auto told = better.find("counts_as_500");
        const bool expected = told != better.end() ? told->second == "true" : c.yes("counts_as_500");
        CHECK(counts_as_500(operation, c.get("body_base64")) == expected);
    }
    if (c.get("status") != "200") return;
    if (operation == "ListObjectsV2") check_list(c);
    if (operation == "DeleteObjects") check_delete(c);
    if (c.has("fields")) check_fields(c);
}

const vectors::Handler s3_xml_vectors{
    "s3_xml",
    {"operation",     "status",     "header",  "body_base64",   "error_code",
     "error_message", "request_id", "host_id", "counts_as_500", "recommended",
     "note",          "fields",     "keys",    "truncated",     "common_prefixes",
     "parse_error",   "deleted",    "errors",  "next_token",    "next_continuation_token"},
    check_s3_xml};

bool well_formed(std::string_view document) { return xml::Scanner(document).finish(); }

std::string text_of_root(std::string_view document) {
    std::string out;
    xml::Scanner scanner(document);
    while (scanner.next()) out = scanner.text();
    return scanner.whole() ? out : "(refused)";
}

std::string nested(std::size_t depth) {
    std::string open;
    std::string close;
    for (std::size_t i = 0; i < depth; ++i) {
        open += "<a>";
        close += "</a>";
    }
    return open + close;
}

}  // namespace

TEST_CASE("xml: text is decoded, with the five entities, references, CDATA and line ends") {
    CHECK(text_of_root("<a>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#x1F600;</a>") == "<>&\"'AB\xF0\x9F\x98\x80");
    CHECK(text_of_root("<a>x<![CDATA[<b>&amp;]]>y</a>") == "x<b>&amp;y");
    CHECK(text_of_root("<a>x<!-- <b> & -->y<?pi <b>?>z</a>") == "xyz");
    CHECK(text_of_root("<a>1\r\n2\r3\n4&#13;5</a>") == "1\n2\n3\n4\r5");
    CHECK(text_of_root("<a/>").empty());
    CHECK(text_of_root("\xEF\xBB\xBF <?xml version='1.0'?><!-- c --><a b='>' c:d=\"'/>\">t</a >\n<!-- d -->") == "t");
}

TEST_CASE("xml: what is not well-formed is refused") {
    for (const char* document : {"",
                                 " ",
                                 "text",
                                 "<a>",
                                 "<a></b>",
                                 "<a></a></a>",
                                 "<a/><b/>",
                                 "<a/>text",
                                 "text<a/>",
                                 "<a b='c></a>",
                                 "<1/>",
                                 "< a/>",
                                 "<a:/>",
                                 "<a><b:></b:></a>",
                                 "<a",
                                 "<a>&b;</a>",
                                 "<a>&</a>",
                                 "<a>&amp</a>",
                                 "<a>&#;</a>",
                                 "<a>&#x;</a>",
                                 "<a>&#0;</a>",
                                 "<a>&#x1;</a>",
                                 "<a>&#xD800;</a>",
                                 "<a>&#xFFFE;</a>",
                                 "<a>&#x110000;</a>",
                                 "<a>&#99999999999999999999;</a>",
                                 "<a>]]></a>",
                                 "<a>\x01</a>",
                                 "<a>\xFF</a>",
                                 "<a><!-- </a>",
                                 "<a><![CDATA[ </a>",
                                 "<![CDATA[x]]><a/>",
                                 "<!-- <a/>",
                                 "<?xml <a/>",
                                 "<a><></></a>"}) {
        INFO(document);
        CHECK_FALSE(well_formed(document));
    }
}

TEST_CASE("xml: a DTD is refused, and with it every entity of its own") {
    CHECK_FALSE(well_formed("<!DOCTYPE a><a/>"));
    CHECK_FALSE(well_formed("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"));
    CHECK_FALSE(well_formed("<a><!ELEMENT b></a>"));
}

TEST_CASE("xml: depth and size have limits") {
    CHECK(well_formed(nested(xml::depth_max)));
    CHECK_FALSE(well_formed(nested(xml::depth_max + 1)));
    CHECK_FALSE(well_formed("<a>" + std::string(xml::document_bytes_max, 'x') + "</a>"));
}

TEST_CASE("xml: every cut of a listing is refused") {
    const std::string page =
        "<?xml version=\"1.0\"?><ListBucketResult><Contents><Key>a&amp;b</Key><Size>1</Size></Contents>"
        "<!-- c --><IsTruncated>false</IsTruncated></ListBucketResult>";
    REQUIRE(xml::list_result(page));
    for (std::size_t size = 0; size < page.size(); ++size) CHECK_FALSE(xml::list_result(page.substr(0, size)));
}

TEST_CASE("xml: what is escaped reads back as it was") {
    const std::string text = "a<b>&\"'\r\n\t]]>\xC3\xA9";
    std::string escaped = "<a>";
    xml::escape(escaped, text);
    CHECK(text_of_root(escaped + "</a>") == text);
    CHECK(xml::representable(text));
    for (const char* bad : {"a\x01", "\x1F", "\xFF", "\xEF\xBF\xBE", "\xED\xA0\x80"})
        CHECK_FALSE(xml::representable(bad));
    CHECK_FALSE(xml::representable(std::string_view("\0", 1)));
}

TEST_CASE("xml: an error body is known by its root alone") {
    CHECK_FALSE(error_body("<html><Error><Code>X</Code></Error></html>"));
    CHECK_FALSE(error_body("<DeleteResult><Error><Code>X</Code></Error></DeleteResult>"));
    REQUIRE(error_body("<Error/>"));
    CHECK(error_body("<Error/>")->code.empty());
    const auto full = error_body(
        "<e:Error xmlns:e='x'><e:Code> X </e:Code><Code>Y</Code><Message>m</Message><Region>r</Region>"
        "<RequestId>q</RequestId><HostId>h</HostId><Endpoint>p</Endpoint><Deep><Message>no</Message></Deep></e:Error>");
    REQUIRE(full);
    CHECK(full->code == "X");
    CHECK(full->message == "m");
    CHECK(full->region == "r");
    CHECK(full->request_id == "q");
}

TEST_CASE("xml: STS wraps its errors") {
    const auto error = error_body(
        "<ErrorResponse xmlns='x'><Error><Type>Sender</Type><Code>ExpiredToken</Code>"
        "<Message>m</Message></Error><RequestId>q</RequestId></ErrorResponse>");
    REQUIRE(error);
    CHECK(error->code == "ExpiredToken");
    CHECK(error->message == "m");
    CHECK(error->request_id == "q");
    CHECK_FALSE(error_body("<ErrorResponse><RequestId>q</RequestId></ErrorResponse>"));
}

TEST_CASE("xml: a page of a proxy is no result, however well-formed") {
    const char* page = "<html><body><ETag>x</ETag><UploadId>1</UploadId></body></html>";
    CHECK_FALSE(error_body(page));
    CHECK_FALSE(xml::etag_result(page));
    CHECK_FALSE(xml::list_result(page, "Error"));
    CHECK_FALSE(xml::list_result(page));
    CHECK_FALSE(xml::upload_id(page));
    CHECK_FALSE(xml::list_result(page, "Upload"));
}

TEST_CASE("xml: an upload without an id is no upload") {
    CHECK(xml::upload_id("<InitiateMultipartUploadResult><UploadId>a/+=</UploadId></InitiateMultipartUploadResult>") ==
          "a/+=");
    CHECK_FALSE(xml::upload_id("<InitiateMultipartUploadResult><UploadId></UploadId></InitiateMultipartUploadResult>"));
    CHECK_FALSE(xml::upload_id("<InitiateMultipartUploadResult/>"));
}

TEST_CASE("xml: an upload begins under a root of any name, but not under that of an error") {
    CHECK(xml::upload_id("<InitiateMultipartUpload><UploadId>u</UploadId></InitiateMultipartUpload>") == "u");
    CHECK_FALSE(xml::upload_id("<Error><Code>NoSuchUpload</Code><UploadId>u</UploadId></Error>"));
    CHECK_FALSE(xml::upload_id("<ErrorResponse><Error/><UploadId>u</UploadId></ErrorResponse>"));
    CHECK_FALSE(xml::upload_id("<InitiateMultipartUpload><UploadId>u</UploadId>"));
}

TEST_CASE("xml: a result without an ETag is a result, an error is none") {
    CHECK(xml::etag_result("<CopyObjectResult><LastModified/></CopyObjectResult>") == "");
    CHECK(xml::etag_result("<CompleteMultipartUploadResult><ETag> e </ETag></CompleteMultipartUploadResult>") == "e");
    for (const char* bad : {"", "<Error><ETag>e</ETag></Error>", "<CopyObjectResult><ETag>e</ETag>"})
        CHECK_FALSE(xml::etag_result(bad));
}

TEST_CASE("xml: whether a list goes on is said by a boolean in any spelling, or the page is refused") {
    const auto truncated = [](const std::string& word) -> std::optional<bool> {
        const std::string inside = "<IsTruncated>" + word + "</IsTruncated>";
        const auto page = xml::list_result("<ListBucketResult>" + inside + "</ListBucketResult>");
        const auto uploads =
            xml::list_result("<ListMultipartUploadsResult>" + inside + "</ListMultipartUploadsResult>", "Upload");
        CHECK(page.has_value() == uploads.has_value());
        if (!page || !uploads) return std::nullopt;
        CHECK(page->truncated == uploads->truncated);
        return page->truncated;
    };
    for (const char* word : {"true", "True", "TRUE", "1", " true\n"}) CHECK(truncated(word) == true);
    for (const char* word : {"false", "False", "FALSE", "0", " false "}) CHECK(truncated(word) == false);
    for (const char* word : {"", "yes", "tru", "truefalse", "2", "null", "01"}) CHECK(truncated(word) == std::nullopt);
    const auto silent = xml::list_result("<ListBucketResult></ListBucketResult>");
    REQUIRE(silent);
    CHECK_FALSE(silent->truncated);
}

TEST_CASE("xml: an error of a deletion is kept, whether or not it says for which key") {
    const auto done = xml::list_result(
        "<DeleteResult><Error><Key>a</Key><Code>SlowDown</Code></Error>"
        "<Error><Code> AccessDenied </Code><Message>no</Message></Error><Error/>"
        "<Deleted><Key> b </Key></Deleted></DeleteResult>",
        "Error");
    REQUIRE(done);
    REQUIRE(done->entries.size() == 3);
    CHECK(done->entries[0].key == "a");
    CHECK(done->entries[1].key.empty());
    CHECK(done->entries[2].key.empty());
}

TEST_CASE("xml: a list that holds a character XML cannot is refused") {
    const auto page = [](const std::string& key) {
        return "<ListBucketResult><Contents><Key>" + key + "</Key></Contents></ListBucketResult>";
    };
    for (const char* key :
         {"a\x01", "a&#x1;", "a&#0;", "\xFF", "\xC3", "<![CDATA[\x02]]>", "\xEF\xBF\xBE", "&#xFFFF;"}) {
        INFO(key);
        CHECK_FALSE(xml::list_result(page(key)));
    }
    CHECK(xml::list_result(page("a\r&#13;")));
}

TEST_CASE("xml: the title of an HTML page") {
    CHECK(xml::html_title("<!DOCTYPE html><html><head><TITLE lang='en'>\n 502 \r\n Bad\tGateway </Title></head>") ==
          "502 Bad Gateway");
    for (const char* page : {"", "<html>", "<title", "<title>", "<title>a", "<title</title>", "plain title"})
        CHECK(xml::html_title(page).empty());
}

TEST_CASE("xml: listings are decoded only where the store says that it encoded") {
    const std::string head = "<ListBucketResult><Contents><Key>a+b%2Fc</Key></Contents>";
    const std::string tail =
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t+%41</NextContinuationToken></ListBucketResult>";
    const auto plain = xml::list_result(head + tail);
    const auto encoded = xml::list_result(head + "<EncodingType>url</EncodingType>" + tail);
    REQUIRE(plain);
    REQUIRE(encoded);
    CHECK(plain->entries.at(0).key == "a+b%2Fc");
    CHECK(encoded->entries.at(0).key == "a b/c");
    CHECK(encoded->next_token == "t+%41");
    CHECK(encoded->truncated);
}

TEST_CASE("xml: a listing that cannot be understood is refused whole") {
    const auto page = [](const std::string& inside) {
        return xml::list_result("<ListBucketResult><EncodingType>url</EncodingType>" + inside + "</ListBucketResult>")
            .has_value();
    };
    CHECK(page("<Contents><Key>a</Key><Size> 1 </Size></Contents>"));
    CHECK_FALSE(page("<Contents><Key>%zz</Key></Contents>"));
    CHECK_FALSE(page("<Contents><Key>a</Key><Size>-1</Size></Contents>"));
    CHECK_FALSE(page("<Contents><Key>a</Key><Size>99999999999999999999</Size></Contents>"));
}

TEST_CASE("xml: fields of one entry do not leak into the next") {
    const auto page = xml::list_result(
        "<ListBucketResult><Contents><Key>a</Key><Size>5</Size><ETag>\"e\"</ETag></Contents>"
        "<Contents><Key>b</Key></Contents></ListBucketResult>");
    REQUIRE(page);
    CHECK(page->entries.at(0).info.size == 5);
    CHECK(page->entries.at(1).info.size == 0);
    CHECK(page->entries.at(1).info.etag.empty());
}

TEST_CASE("xml: unfinished uploads") {
    const auto page = xml::list_result(
        "<ListMultipartUploadsResult><EncodingType>url</EncodingType><NextKeyMarker>k+1</NextKeyMarker>"
        "<NextUploadIdMarker>u+1</NextUploadIdMarker><IsTruncated>true</IsTruncated><Upload><Key>a%20b</Key>"
        "<UploadId>u</UploadId><Initiator><ID>x</ID></Initiator><Initiated>2025-01-15T00:00:00.000Z</Initiated></"
        "Upload>"
        "</ListMultipartUploadsResult>",
        "Upload");
    REQUIRE(page);
    REQUIRE(page->entries.size() == 1);
    CHECK(page->entries[0].key == "a b");
    CHECK(page->entries[0].info.etag == "u");
    CHECK(page->entries[0].info.last_modified == s3cache::detail::dates::iso8601("2025-01-15T00:00:00.000Z"));
    CHECK(page->truncated);
    CHECK(page->next_key_marker == "k 1");
    CHECK(page->next_upload_id_marker == "u+1");
}

TEST_CASE("xml: what cannot be decoded in a list of uploads is left as it stands") {
    const auto page = xml::list_result(
        "<ListMultipartUploadsResult><EncodingType>url</EncodingType><NextKeyMarker>100%</NextKeyMarker>"
        "<IsTruncated>true</IsTruncated><Upload><Key>50%zz</Key><UploadId>u</UploadId></Upload>"
        "<Upload><Key>a%20b</Key><UploadId>v</UploadId></Upload></ListMultipartUploadsResult>",
        "Upload");
    REQUIRE(page);
    CHECK(page->next_key_marker == "100%");
    REQUIRE(page->entries.size() == 2);
    CHECK(page->entries[0].key == "50%zz");
    CHECK(page->entries[1].key == "a b");
}
