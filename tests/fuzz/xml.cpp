// The XML scanner and every parser of an answer. Held to: a document is well-formed or nothing of it is believed, cutting
// one never gives another answer, and what we escape reads back as it was.
#include "fuzz.hpp"

namespace fuzz_xml {

using fuzz::require;
namespace xml = s3cache::detail::xml;
namespace bytes = s3cache::detail::bytes;
namespace utf8 = s3cache::detail::utf8;

// Everything a visitor sees, and whether the document was whole.
struct Seen {
    bool whole = false;
    std::vector<std::string> visits;
    bool operator==(const Seen& other) const { return whole == other.whole && visits == other.visits; }
};

inline Seen look(std::string_view document) {
    Seen seen;
    xml::Scanner scanner(document);
    while (scanner.next()) {
        std::string visit(scanner.root());
        visit.append("|").append(scanner.path()).append("|").append(scanner.text());
        seen.visits.push_back(std::move(visit));
    }
    seen.whole = scanner.whole();
    return seen;
}

inline void check_scanner(std::string_view document) {
    xml::Scanner scanner(document);
    while (scanner.next()) {
        std::size_t depth = scanner.path().empty() ? 1 : 2;
        for (char c : scanner.path()) depth += c == '/' ? 1U : 0U;
        require(depth <= xml::depth_max && !scanner.root().empty(), "no deeper than the limit");
        require(xml::representable(scanner.text()) && scanner.text().size() <= document.size(),
                "text is UTF-8 without control characters, and no bomb");
    }
    require(!scanner.next(), "the end is final");
    require(!scanner.whole() || xml::representable(document), "a whole document has no illegal character");
}

inline void check_cuts(std::string_view document) {
    const Seen seen = look(document);
    fuzz::Dice dice(document);
    for (int i = 0; i < 4; ++i) {
        const Seen cut = look(document.substr(0, dice.below(document.size() + 1)));
        require(!cut.whole || !seen.whole || cut == seen, "a cut document is damaged, or only lost what says nothing");
    }
    const std::size_t last = document.rfind("</");
    if (seen.whole && last != std::string_view::npos && document.find("<!") == std::string_view::npos &&
        document.find("<?") == std::string_view::npos && document.find("/>", last) == std::string_view::npos) {
        require(!look(document.substr(0, last)).whole, "without its last tag it is damaged");
    }
    require(
        !seen.whole || look(" \r\n" + std::string(document)) == seen || bytes::starts_with(document, "\xEF\xBB\xBF"),
        "blanks in front change nothing");
}

inline void check_trimmed(const std::string& text) { require(bytes::trim(text) == text, "no blanks at the ends"); }

// The error in it, if it is one.
inline std::optional<xml::ErrorBody> error_body(std::string_view document) {
    xml::ErrorBody body;
    return xml::read_error(document, body) ? std::optional<xml::ErrorBody>(body) : std::nullopt;
}

inline void check_error(std::string_view document, bool whole) {
    const auto error = error_body(document);
    require(whole || !error, "no error of a damaged document");
    if (!error) return;
    for (const std::string& field : {error->code, error->message, error->region, error->request_id}) {
        check_trimmed(field);
        require(utf8::valid(field), "UTF-8");
    }
    require(!xml::list_result(document) && !xml::upload_id(document) && !xml::etag_result(document) &&
                !xml::list_result(document, "Error") && !xml::list_result(document, "Upload"),
            "an error is no result");
}

inline void check_pages(std::string_view document, bool whole) {
    const auto page = xml::list_result(document);
    require(whole || !page, "no list of a damaged document");
    if (page) {
        // An element takes at least "<Contents/>", so a page is never much larger than its document.
        require(page->entries.size() <= document.size() / 11, "no more entries than there is text for");
        for (const s3cache::Entry& entry : page->entries) check_trimmed(entry.info.etag);
    }
    const auto uploads = xml::list_result(document, "Upload");
    require(whole || !uploads, "no uploads of a damaged document");
    if (uploads) require(uploads->entries.size() <= document.size() / 9, "no more uploads than there is text for");
    const auto id = xml::upload_id(document);
    require(!id || (whole && !id->empty()), "an upload id is not empty");
    const auto etag = xml::etag_result(document);
    require(whole || (!etag && !xml::list_result(document, "Error")), "no result of a damaged document");
    if (etag) check_trimmed(*etag);
}

inline void check_sts(std::string_view document, bool whole) {
    for (const char* action : {"AssumeRole", "AssumeRoleWithWebIdentity"}) {
        const auto keys = s3cache::detail::credentials::keys_in_xml(document, action, "STS");
        if (!keys) continue;
        require(whole, "no credentials of a damaged document");
        require(keys->expires.has_value(), "no half credentials");
        for (const std::string* field : {&keys->access_key, &keys->secret_key, &keys->session_token}) {
            check_trimmed(*field);
            require(!field->empty(), "no half credentials");
        }
    }
}

inline std::string element(std::string_view name, std::string_view text) {
    std::string out = "<" + std::string(name) + ">";
    xml::escape(out, text);
    return out + "</" + std::string(name) + ">";
}

// The input as keys: written as a store would, they must come back as they are.
inline void check_round_trip(std::string_view input) {
    if (!xml::representable(input)) return;
    const auto keys = fuzz::pieces(input, "/");
    std::string document = "<?xml version=\"1.0\"?>\n<l:ListBucketResult xmlns:l='urn:x'>";
    std::string encoded = "<ListBucketResult><EncodingType>url</EncodingType>";
    for (std::string_view key : keys) {
        document += "<l:Contents a=\">\"><l:Size>7</l:Size>" + element("l:Key", key) + "</l:Contents>";
        std::string percent;
        bytes::append_percent(percent, key, true);
        encoded += "<Contents>" + element("Key", percent) + "</Contents>";
    }
    for (std::string text : {document + "</l:ListBucketResult>", encoded + "</ListBucketResult>"}) {
        const auto page = xml::list_result(text);
        require(page && page->entries.size() == keys.size(), "every key comes back");
        for (std::size_t i = 0; i < keys.size(); ++i) require(page->entries[i].key == keys[i], "and as it was");
    }
    const auto id = xml::upload_id("<InitiateMultipartUploadResult>" + element("UploadId", input) +
                                   "</InitiateMultipartUploadResult>");
    require(id.value_or("") == input, "an upload id comes back as it was");
}

FUZZ_TARGET(xml) {
    const bool whole = look(input).whole;
    require(!whole || input.find("<!DOCTYPE") > input.find('<'), "no DTD in front");
    const std::string title = xml::html_title(input);
    require(title.size() <= input.size() && bytes::trim(title) == title, "a title is a part of the page");
    check_scanner(input);
    check_cuts(input);
    check_error(input, whole);
    check_pages(input, whole);
    check_sts(input, whole);
    check_round_trip(input);
}

}  // namespace fuzz_xml
