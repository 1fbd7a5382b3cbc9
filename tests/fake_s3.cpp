// The fake S3 of the tests. Order: text, hashes, dates, XML, requests, signatures, store, operations, wire, server, faults.
#include "fake_s3.hpp"

#include <algorithm>           // sort, find_if
#include <array>               // hash tables and buffers
#include <atomic>              // clock offset, counters
#include <cerrno>              // EINTR
#include <condition_variable>  // stalls
#include <csignal>             // SIGPIPE off in our threads
#include <cstdio>              // snprintf
#include <cstdlib>             // strtoull, mkstemp
#include <cstring>             // memcpy
#include <ctime>               // gmtime_r, timegm
#include <deque>               // the log
#include <list>                // connections
#include <map>                 // the store
#include <mutex>               // one lock for store, log and faults
#include <set>                 // denied keys
#include <stdexcept>           // a fake that cannot start
#include <thread>              // one a connection

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

namespace fake_s3 {
namespace {

using std::chrono::milliseconds;

#ifndef _WIN32  // there matrix/windows_posix.hpp has one
int close_socket(int socket) { return ::close(socket); }
#endif

// ---- text ---------------------------------------------------------------------------------------------------------

std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return out;
}

std::string upper(std::string_view text) {
    std::string out(text);
    for (char& c : out) {
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    }
    return out;
}

bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

bool ends(std::string_view text, std::string_view with) {
    return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}

bool holds(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string_view trim(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
    return text;
}

std::optional<std::uint64_t> number(std::string_view text) {
    if (text.empty() || text.size() > 18) return std::nullopt;
    std::uint64_t value = 0;
    for (char c : text) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
}

std::vector<std::string> split(std::string_view text, char at) {
    std::vector<std::string> out;
    while (true) {
        const auto end = text.find(at);
        out.emplace_back(text.substr(0, end));
        if (end == std::string_view::npos) return out;
        text.remove_prefix(end + 1);
    }
}

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

std::optional<std::uint64_t> hex_number(std::string_view text) {
    if (text.empty() || text.size() > 15) return std::nullopt;
    std::uint64_t value = 0;
    for (char c : text) {
        const int digit = hex_digit(c);
        if (digit < 0) return std::nullopt;
        value = value * 16 + static_cast<std::uint64_t>(digit);
    }
    return value;
}

std::string hex(std::string_view bytes) {
    std::string out;
    for (char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        out += "0123456789abcdef"[byte >> 4];
        out += "0123456789abcdef"[byte & 15];
    }
    return out;
}

bool unreserved(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_' || c == '~';
}

std::string percent_encode(std::string_view raw, std::string_view also_kept = {}) {
    std::string out;
    for (char c : raw) {
        if (unreserved(c) || holds(also_kept, std::string_view(&c, 1))) {
            out += c;
        } else {
            out += '%';
            out += "0123456789ABCDEF"[static_cast<unsigned char>(c) >> 4];
            out += "0123456789ABCDEF"[static_cast<unsigned char>(c) & 15];
        }
    }
    return out;
}

std::optional<std::string> percent_decode(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        if (i + 2 >= text.size()) return std::nullopt;
        const int high = hex_digit(text[i + 1]);
        const int low = hex_digit(text[i + 2]);
        if (high < 0 || low < 0) return std::nullopt;
        out += static_cast<char>(high * 16 + low);
        i += 2;
    }
    return out;
}

bool is_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto lead = static_cast<unsigned char>(text[i]);
        const std::size_t length = lead < 0x80   ? 1
                                   : lead < 0xC2 ? 0
                                   : lead < 0xE0 ? 2
                                   : lead < 0xF0 ? 3
                                   : lead < 0xF5 ? 4
                                                 : 0;
        if (length == 0 || text.size() - i < length) return false;
        std::uint32_t point = length == 1 ? lead : lead & (0xFFU >> (length + 1));
        for (std::size_t j = 1; j < length; ++j) {
            const auto next = static_cast<unsigned char>(text[i + j]);
            if ((next & 0xC0) != 0x80) return false;
            point = (point << 6) | (next & 0x3FU);
        }
        if ((length == 3 && point < 0x800) || (length == 4 && (point < 0x10000 || point > 0x10FFFF))) return false;
        if (point >= 0xD800 && point <= 0xDFFF) return false;
        i += length;
    }
    return true;
}

const std::string* find_header(const HeaderList& headers, std::string_view name) {
    for (const Header& header : headers) {
        if (lower(header.first) == name) return &header.second;
    }
    return nullptr;
}

void set_header(HeaderList& headers, const std::string& name, const std::string& value) {
    for (Header& header : headers) {
        if (lower(header.first) == lower(name)) {
            header.second = value;
            return;
        }
    }
    headers.emplace_back(name, value);
}

void remove_header(HeaderList& headers, std::string_view name) {
    const std::string wanted = lower(name);
    headers.erase(std::remove_if(headers.begin(), headers.end(),
                                 [&](const Header& header) { return lower(header.first) == wanted; }),
                  headers.end());
}

// ---- hashes -------------------------------------------------------------------------------------------------------

std::string digest(const EVP_MD* kind, std::string_view data) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned int size = 0;
    EVP_Digest(data.data(), data.size(), out.data(), &size, kind, nullptr);
    return std::string(out.begin(), out.begin() + size);
}

std::string sha256(std::string_view data) { return digest(EVP_sha256(), data); }
std::string md5(std::string_view data) { return digest(EVP_md5(), data); }

std::string hmac(std::string_view key, std::string_view data) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned int size = 0;
    const std::vector<unsigned char> bytes(data.begin(), data.end());
    HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytes.data(), bytes.size(), out.data(), &size);
    return std::string(out.begin(), out.begin() + size);
}

std::string base64(std::string_view data) {
    std::vector<unsigned char> in(data.begin(), data.end());
    std::vector<unsigned char> out(4 * ((in.size() + 2) / 3) + 1);
    const int size = EVP_EncodeBlock(out.data(), in.data(), static_cast<int>(in.size()));
    return std::string(out.begin(), out.begin() + size);
}

std::string random_bytes(std::size_t count) {
    std::vector<unsigned char> out(count);
    RAND_bytes(out.data(), static_cast<int>(count));
    return std::string(out.begin(), out.end());
}

template <std::uint64_t Polynomial, std::size_t Bytes>
std::string crc(std::string_view data) {
    static const std::array<std::uint64_t, 256> table = [] {
        std::array<std::uint64_t, 256> made{};
        for (std::size_t i = 0; i < made.size(); ++i) {
            std::uint64_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? (value >> 1) ^ Polynomial : value >> 1;
            made[i] = value;
        }
        return made;
    }();
    constexpr std::uint64_t ones = Bytes == 8 ? ~0ULL : 0xFFFFFFFFULL;
    std::uint64_t value = ones;
    for (char c : data) value = (value >> 8) ^ table[(value ^ static_cast<unsigned char>(c)) & 0xFF];
    value ^= ones;
    std::string out;
    for (std::size_t i = Bytes; i-- > 0;) out += static_cast<char>((value >> (8 * i)) & 0xFF);
    return out;
}

constexpr std::array<const char*, 5> checksum_names{"crc32", "crc32c", "crc64nvme", "sha1", "sha256"};

std::string checksum(std::string_view name, std::string_view data) {
    if (name == "crc32") return base64(crc<0xEDB88320U, 4>(data));
    if (name == "crc32c") return base64(crc<0x82F63B78U, 4>(data));
    if (name == "crc64nvme") return base64(crc<0x9A6C9329AC4BC9B5ULL, 8>(data));
    if (name == "sha1") return base64(digest(EVP_sha1(), data));
    return base64(sha256(data));
}

// ---- dates --------------------------------------------------------------------------------------------------------

std::tm utc(std::int64_t seconds) {
    const auto time = static_cast<std::time_t>(seconds);
    std::tm out{};
    gmtime_r(&time, &out);
    return out;
}

constexpr std::array<const char*, 7> week_days{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
constexpr std::array<const char*, 12> months{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                             "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

std::string http_date(std::int64_t seconds) {
    const std::tm t = utc(seconds);
    std::array<char, 64> out{};
    std::snprintf(out.data(), out.size(), "%s, %02d %s %04d %02d:%02d:%02d GMT",
                  week_days[static_cast<std::size_t>(t.tm_wday)], t.tm_mday, months[static_cast<std::size_t>(t.tm_mon)],
                  t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
    return out.data();
}

std::string iso_date(std::int64_t seconds) {
    const std::tm t = utc(seconds);
    std::array<char, 64> out{};
    std::snprintf(out.data(), out.size(), "%04d-%02d-%02dT%02d:%02d:%02d.000Z", t.tm_year + 1900, t.tm_mon + 1,
                  t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec);
    return out.data();
}

std::int64_t seconds_of(int year, int month, int day, int hour, int minute, int second) {
    std::tm t{};
    t.tm_year = year - 1900;
    t.tm_mon = month - 1;
    t.tm_mday = day;
    t.tm_hour = hour;
    t.tm_min = minute;
    t.tm_sec = second;
    return static_cast<std::int64_t>(timegm(&t));
}

int digits(std::string_view text, std::size_t at, std::size_t count) {
    const auto value = at + count <= text.size() ? number(text.substr(at, count)) : std::nullopt;
    return value ? static_cast<int>(*value) : -1;
}

std::optional<std::int64_t> parse_amz_date(std::string_view text) {
    if (text.size() != 16 || text[8] != 'T' || text[15] != 'Z') return std::nullopt;
    const std::array<int, 6> f{digits(text, 0, 4), digits(text, 4, 2),  digits(text, 6, 2),
                               digits(text, 9, 2), digits(text, 11, 2), digits(text, 13, 2)};
    if (std::any_of(f.begin(), f.end(), [](int part) { return part < 0; })) return std::nullopt;
    if (f[1] < 1 || f[1] > 12 || f[2] < 1 || f[2] > 31 || f[3] > 23 || f[4] > 59 || f[5] > 60) return std::nullopt;
    return seconds_of(f[0], f[1], f[2], f[3], f[4], f[5]);
}

std::optional<std::int64_t> parse_http_date(std::string_view text) {
    if (text.size() != 29 || !ends(text, " GMT")) return std::nullopt;
    for (std::size_t month = 0; month < months.size(); ++month) {
        if (text.substr(8, 3) != months[month]) continue;
        const std::array<int, 5> f{digits(text, 5, 2), digits(text, 12, 4), digits(text, 17, 2), digits(text, 20, 2),
                                   digits(text, 23, 2)};
        if (std::any_of(f.begin(), f.end(), [](int part) { return part < 0; })) return std::nullopt;
        return seconds_of(f[1], static_cast<int>(month) + 1, f[0], f[2], f[3], f[4]);
    }
    return std::nullopt;
}

// ---- XML ----------------------------------------------------------------------------------------------------------

constexpr const char* xml_declaration = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
constexpr const char* xml_namespace = " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";

std::string xml_text(std::string_view raw) {
    std::string out;
    for (char c : raw) {
        if (c == '&')
            out += "&amp;";
        else if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '"')
            out += "&quot;";
        else if (static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n')
            out += "&#" + std::to_string(int{c}) + ";";
        else
            out += c;
    }
    return out;
}

std::string element(std::string_view name, std::string_view text) {
    const std::string tag(name);
    return "<" + tag + ">" + xml_text(text) + "</" + tag + ">";
}

std::string root(std::string_view name, std::string_view inside) {
    const std::string tag(name);
    return xml_declaration + ("<" + tag) + xml_namespace + ">" + std::string(inside) + "</" + tag + ">";
}

struct Node {
    std::string name, text;
    std::vector<Node> children;
    std::string child(std::string_view wanted) const {
        for (const Node& node : children) {
            if (node.name == wanted) return node.text;
        }
        return {};
    }
    bool has(std::string_view wanted) const {
        return std::any_of(children.begin(), children.end(), [&](const Node& node) { return node.name == wanted; });
    }
};

class XmlReader {
public:
    explicit XmlReader(std::string_view text) : rest(text) {}

    std::optional<Node> document() {
        skip_misc();
        Node node;
        if (!element_into(node, 0)) return std::nullopt;
        skip_misc();
        if (!rest.empty()) return std::nullopt;
        return node;
    }

private:
    std::string_view rest;

    void skip_misc() {
        while (true) {
            while (!rest.empty() && holds(" \t\r\n", rest.substr(0, 1))) rest.remove_prefix(1);
            const std::string_view stop = starts(rest, "<?") ? "?>" : starts(rest, "<!--") ? "-->" : "";
            const auto end = stop.empty() ? std::string_view::npos : rest.find(stop);
            if (end == std::string_view::npos) return;
            rest.remove_prefix(end + stop.size());
        }
    }

    bool element_into(Node& node, int depth) {
        const auto end = rest.find('>');
        if (depth > 20 || rest.size() < 2 || rest[0] != '<' || end == std::string_view::npos) return false;
        std::string_view tag = rest.substr(1, end - 1);
        rest.remove_prefix(end + 1);
        const bool empty = ends(tag, "/");
        if (empty) tag.remove_suffix(1);
        tag = tag.substr(0, tag.find_first_of(" \t\r\n"));
        const std::string close = "</" + std::string(tag);
        node.name = std::string(tag.substr(tag.find(':') == std::string_view::npos ? 0 : tag.find(':') + 1));
        return !node.name.empty() && (empty || content_into(node, close, depth));
    }

    bool content_into(Node& node, const std::string& close, int depth) {
        while (!rest.empty()) {
            if (starts(rest, "</")) {
                const auto end = rest.find('>');
                if (end == std::string_view::npos || trim(rest.substr(0, end)) != close) return false;
                rest.remove_prefix(end + 1);
                return true;
            }
            if (starts(rest, "<!--")) {
                const auto end = rest.find("-->");
                if (end == std::string_view::npos) return false;
                rest.remove_prefix(end + 3);
            } else if (rest[0] == '<') {
                node.children.emplace_back();
                if (!element_into(node.children.back(), depth + 1)) return false;
            } else if (!text_into(node.text)) {
                return false;
            }
        }
        return false;
    }

    bool text_into(std::string& out) {
        if (rest[0] != '&') {
            const auto end = rest.find_first_of("<&");
            out += rest.substr(0, end);
            rest.remove_prefix(end == std::string_view::npos ? rest.size() : end);
            return true;
        }
        const auto end = rest.find(';');
        if (end == std::string_view::npos || end > 10) return false;
        const std::string_view name = rest.substr(1, end - 1);
        rest.remove_prefix(end + 1);
        static const std::map<std::string_view, char> names{
            {"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}};
        const auto known = names.find(name);
        if (known != names.end()) {
            out += known->second;
            return true;
        }
        if (!starts(name, "#")) return false;
        const auto point = starts(name, "#x") ? hex_number(name.substr(2)) : number(name.substr(1));
        return point && point_into(out, static_cast<std::uint32_t>(*point));
    }

    static bool point_into(std::string& out, std::uint32_t point) {
        if (point == 0 || point > 0x10FFFF) return false;
        const auto tail = [&](unsigned shift) { out += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
        if (point < 0x80) {
            out += static_cast<char>(point);
        } else if (point < 0x800) {
            out += static_cast<char>(0xC0 | (point >> 6));
            tail(0);
        } else if (point < 0x10000) {
            out += static_cast<char>(0xE0 | (point >> 12));
            tail(6);
            tail(0);
        } else {
            out += static_cast<char>(0xF0 | (point >> 18));
            tail(12);
            tail(6);
            tail(0);
        }
        return true;
    }
};

// ---- requests -----------------------------------------------------------------------------------------------------

struct Failure {
    int status = 400;
    std::string code, message;
    HeaderList details{};  // further elements of the XML
    HeaderList headers{};  // further headers of the answer
};

struct Request {
    std::string method, target, path, raw_query;
    HeaderList headers;         // names as received
    std::vector<Header> query;  // decoded, in order
    std::string bucket, key, operation;
    std::string decoded_path;
    std::string body;  // after transfer and aws-chunked decoding
    std::uint64_t wire_bytes = 0;
    HeaderList trailers;  // of an aws-chunked body
    bool malformed_target = false;

    std::optional<std::string> header(std::string_view name) const {
        std::optional<std::string> out;
        for (const Header& header : headers) {
            if (lower(header.first) == name) out = out ? *out + "," + header.second : header.second;
        }
        return out;
    }
    std::string header_or(std::string_view name, std::string otherwise = {}) const {
        auto found = header(name);
        return found ? *found : std::move(otherwise);
    }
    bool asks(std::string_view name) const {
        return std::any_of(query.begin(), query.end(), [&](const Header& pair) { return pair.first == name; });
    }
    std::string parameter(std::string_view name) const {
        for (const Header& pair : query) {
            if (pair.first == name) return pair.second;
        }
        return {};
    }
    bool streaming() const { return starts(header_or("x-amz-content-sha256"), "STREAMING-"); }
};

std::optional<Request> parse_head(std::string_view head, const Quirks& quirks) {
    Request request;
    const auto first_end = head.find("\r\n");
    const std::string_view line = head.substr(0, first_end);
    const auto first_blank = line.find(' ');
    const auto last_blank = line.rfind(' ');
    if (first_blank == std::string_view::npos || first_blank == last_blank) return std::nullopt;
    if (line.substr(last_blank + 1) != "HTTP/1.1" && line.substr(last_blank + 1) != "HTTP/1.0") return std::nullopt;
    request.method = std::string(line.substr(0, first_blank));
    request.target = std::string(line.substr(first_blank + 1, last_blank - first_blank - 1));
    head.remove_prefix(first_end + 2);
    while (!head.empty() && head != "\r\n") {
        const auto end = head.find("\r\n");
        const std::string_view field = head.substr(0, end);
        const auto colon = field.find(':');
        if (colon == 0 || colon == std::string_view::npos || field[colon - 1] == ' ') return std::nullopt;
        if (field.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) return std::nullopt;
        const std::string_view name = field.substr(0, colon);
        if (!quirks.drop_underscore_headers || !holds(name, "_")) {
            request.headers.emplace_back(name, trim(field.substr(colon + 1)));
        }
        head.remove_prefix(end + 2);
    }
    return request;
}

void parse_query(Request& request) {
    if (request.raw_query.empty()) return;
    for (const std::string& piece : split(request.raw_query, '&')) {
        if (piece.empty()) continue;
        const auto equals = piece.find('=');
        const auto name = percent_decode(std::string_view(piece).substr(0, equals));
        const auto value = percent_decode(equals == std::string::npos ? std::string_view()
                                                                      : std::string_view(piece).substr(equals + 1));
        if (!name || !value)
            request.malformed_target = true;
        else
            request.query.emplace_back(*name, *value);
    }
}

// Splits the target, finds bucket and key. Nothing is normalised: dots and double slashes belong to the key.
void route(Request& request, const Options& options) {
    std::string_view target = request.target;
    if (starts(target, "http://")) {  // the absolute form, as sent to a proxy
        const auto slash = target.find('/', 7);
        target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
    }
    const auto mark = target.find('?');
    request.path = std::string(target.substr(0, mark));
    if (mark != std::string_view::npos) request.raw_query = std::string(target.substr(mark + 1));
    parse_query(request);
    const auto decoded = percent_decode(request.path);
    if (!decoded || !starts(request.path, "/")) {
        request.malformed_target = true;
        return;
    }
    request.decoded_path = *decoded;
    std::string_view rest = request.decoded_path;
    if (starts(rest, options.base_path)) rest.remove_prefix(options.base_path.size());
    if (starts(rest, "/")) rest.remove_prefix(1);
    const std::string whole_host = lower(request.header_or("host"));
    const std::string host = whole_host.substr(0, whole_host.rfind(':'));
    for (const std::string& suffix : options.virtual_host_suffixes) {
        if (!ends(host, "." + suffix)) continue;
        request.bucket = host.substr(0, host.size() - suffix.size() - 1);
        request.key = std::string(rest);
        return;
    }
    const auto slash = rest.find('/');
    request.bucket = std::string(rest.substr(0, slash));
    if (slash != std::string_view::npos) request.key = std::string(rest.substr(slash + 1));
}

std::string bucket_operation(const Request& r) {
    if (r.method == "HEAD") return "HeadBucket";
    if (r.method == "POST") return r.asks("delete") ? "DeleteObjects" : "Unknown";
    if (r.asks("lifecycle"))
        return r.method == "PUT"   ? "PutBucketLifecycle"
               : r.method == "GET" ? "GetBucketLifecycle"
                                   : "DeleteBucketLifecycle";
    if (r.method == "PUT") return "CreateBucket";
    if (r.method == "DELETE") return "DeleteBucket";
    if (r.method != "GET") return "Unknown";
    for (const char* unknown : {"acl", "policy", "cors", "tagging", "versioning", "versions", "object-lock"}) {
        if (r.asks(unknown)) return "Unknown";
    }
    if (r.asks("location")) return "GetBucketLocation";
    if (r.asks("uploads")) return "ListMultipartUploads";
    return r.parameter("list-type") == "2" ? "ListObjectsV2" : "ListObjects";
}

std::string operation_of(const Request& r) {
    if (r.bucket.empty()) return r.method == "GET" ? "ListBuckets" : "Unknown";
    if (r.key.empty()) return bucket_operation(r);
    for (const char* unknown : {"acl", "tagging", "retention", "torrent", "attributes", "select", "restore"}) {
        if (r.asks(unknown)) return "Unknown";
    }
    const bool upload = r.asks("uploadId");
    if (r.method == "GET") return upload ? "ListParts" : "GetObject";
    if (r.method == "HEAD") return "HeadObject";
    if (r.method == "DELETE") return upload ? "AbortMultipartUpload" : "DeleteObject";
    if (r.method == "POST")
        return upload ? "CompleteMultipartUpload" : r.asks("uploads") ? "CreateMultipartUpload" : "Unknown";
    if (r.method != "PUT") return "Unknown";
    const bool copy = r.header("x-amz-copy-source").has_value();
    if (upload) return copy ? "Unknown" : "UploadPart";
    return copy ? "CopyObject" : "PutObject";
}

// ---- signatures ---------------------------------------------------------------------------------------------------

struct Signature {
    bool presigned = false;
    std::string access_key, day, region, service, terminator, date, given;
    std::vector<std::string> signed_headers;
    std::uint64_t expires = 0;
    std::string key;  // the derived one, once known
    std::string scope() const { return day + "/" + region + "/" + service + "/" + terminator; }
    bool names(std::string_view header) const {
        return std::find(signed_headers.begin(), signed_headers.end(), header) != signed_headers.end();
    }
};

std::string collapse(std::string_view value) {
    std::string out;
    for (char c : trim(value)) {
        if (c != ' ' || out.empty() || out.back() != ' ') out += c;
    }
    return out;
}

std::string canonical_query(const Request& request) {
    std::vector<Header> pairs;
    for (const Header& pair : request.query) {
        if (pair.first != "X-Amz-Signature")
            pairs.emplace_back(percent_encode(pair.first), percent_encode(pair.second));
    }
    std::sort(pairs.begin(), pairs.end());
    std::string out;
    for (const Header& pair : pairs) out += (out.empty() ? "" : "&") + pair.first + "=" + pair.second;
    return out;
}

std::string canonical_request(const Request& request, const Signature& signature) {
    std::vector<std::string> names = signature.signed_headers;
    std::sort(names.begin(), names.end());
    std::string lines;
    std::string list;
    for (const std::string& name : names) {
        std::string value;
        bool first = true;
        for (const Header& header : request.headers) {
            if (lower(header.first) != name) continue;
            value += (first ? "" : ",") + collapse(header.second);
            first = false;
        }
        lines += name + ":" + value + "\n";
        list += (list.empty() ? "" : ";") + name;
    }
    const std::string payload = request.header_or("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    return request.method + "\n" + percent_encode(request.decoded_path, "/") + "\n" + canonical_query(request) + "\n" +
           lines + "\n" + list + "\n" + payload;
}

std::string signing_key(const Signature& signature, const std::string& secret) {
    std::string key = "AWS4" + secret;
    for (const std::string* part : {&signature.day, &signature.region, &signature.service, &signature.terminator}) {
        key = hmac(key, *part);
    }
    return key;
}

bool take_credential(Signature& out, std::string_view text) {
    std::array<std::string*, 4> parts{&out.terminator, &out.service, &out.region, &out.day};
    for (std::string* part : parts) {  // from the right: an access key may itself hold slashes
        const auto slash = text.rfind('/');
        if (slash == std::string_view::npos) return false;
        *part = std::string(text.substr(slash + 1));
        text = text.substr(0, slash);
    }
    out.access_key = std::string(text);
    return !text.empty();
}

std::optional<Signature> from_header(std::string_view text) {
    constexpr std::string_view algorithm = "AWS4-HMAC-SHA256 ";
    if (!starts(text, algorithm)) return std::nullopt;
    Signature out;
    int found = 0;
    for (const std::string& piece : split(text.substr(algorithm.size()), ',')) {
        const std::string_view part = trim(piece);
        const auto equals = part.find('=');
        if (equals == std::string_view::npos) return std::nullopt;
        const std::string_view value = part.substr(equals + 1);
        if (part.substr(0, equals) == "Credential" && take_credential(out, value))
            found |= 1;
        else if (part.substr(0, equals) == "SignedHeaders")
            out.signed_headers = split(value, ';'), found |= 2;
        else if (part.substr(0, equals) == "Signature")
            out.given = std::string(value), found |= 4;
        else
            return std::nullopt;
    }
    return found == 7 ? std::optional<Signature>(out) : std::nullopt;
}

std::optional<Signature> from_query(const Request& request) {
    Signature out;
    out.presigned = true;
    const auto expires = number(request.parameter("X-Amz-Expires"));
    if (request.parameter("X-Amz-Algorithm") != "AWS4-HMAC-SHA256" || !expires || *expires < 1 || *expires > 604800)
        return std::nullopt;
    if (!take_credential(out, request.parameter("X-Amz-Credential"))) return std::nullopt;
    out.expires = *expires;
    out.date = request.parameter("X-Amz-Date");
    out.signed_headers = split(request.parameter("X-Amz-SignedHeaders"), ';');
    out.given = request.parameter("X-Amz-Signature");
    return out;
}

struct Checked {
    std::optional<Failure> failure;
    std::optional<Signature> signature;  // absent: anonymous
};

Failure denied(std::string message, HeaderList details = {}) {
    return {403, "AccessDenied", std::move(message), std::move(details)};
}

class SignatureCheck {
public:
    SignatureCheck(const Request& r, const Options& o, std::int64_t time) : request(r), options(o), now(time) {}

    Checked run() {
        Checked out;
        const auto authorization = request.header("authorization");
        const bool presigned = request.asks("X-Amz-Algorithm");
        if (!authorization && !presigned) {
            if (!options.allow_anonymous) out.failure = denied("Access Denied");
            return out;
        }
        if (authorization && presigned) {
            out.failure = Failure{400, "InvalidArgument", "Only one auth mechanism allowed"};
            return out;
        }
        out.signature = presigned ? from_query(request) : from_header(*authorization);
        if (!out.signature) {
            out.failure = Failure{400, presigned ? "AuthorizationQueryParametersError" : "AuthorizationHeaderMalformed",
                                  "The authorization that you provided is not valid."};
            return out;
        }
        signature = &*out.signature;
        if (!presigned) signature->date = request.header_or("x-amz-date");
        for (const auto check : {&SignatureCheck::key, &SignatureCheck::scope, &SignatureCheck::time,
                                 &SignatureCheck::coverage, &SignatureCheck::payload, &SignatureCheck::match}) {
            out.failure = (this->*check)();
            if (out.failure) break;
        }
        return out;
    }

private:
    const Request& request;
    const Options& options;
    std::int64_t now;
    Signature* signature = nullptr;
    std::string secret;

    std::optional<Failure> key() {
        const auto found = std::find_if(options.keys.begin(), options.keys.end(),
                                        [&](const Key& k) { return k.access_key == signature->access_key; });
        if (found == options.keys.end()) {
            return Failure{403,
                           "InvalidAccessKeyId",
                           "The AWS Access Key Id you provided does not exist in our records.",
                           {{"AWSAccessKeyId", signature->access_key}}};
        }
        const std::string token = signature->presigned ? request.parameter("X-Amz-Security-Token")
                                                       : request.header_or("x-amz-security-token");
        if (found->expired)
            return Failure{400, "ExpiredToken", "The provided token has expired.", {{"Token-0", token}}};
        if (token != found->session_token) {
            return Failure{400, "InvalidToken", "The provided token is malformed or otherwise invalid."};
        }
        secret = found->secret_key;
        return std::nullopt;
    }

    std::optional<Failure> scope() {
        const char* code = signature->presigned ? "AuthorizationQueryParametersError" : "AuthorizationHeaderMalformed";
        if (signature->terminator != "aws4_request" || signature->service != "s3") {
            return Failure{400, code, "The credential scope must end in s3/aws4_request."};
        }
        if (signature->region == options.region) return std::nullopt;
        const HeaderList hint = {{"x-amz-bucket-region", options.region}};
        if (options.quirks.redirect_region) {
            return Failure{301,
                           "PermanentRedirect",
                           "The bucket you are attempting to access must be addressed using the specified endpoint.",
                           {{"Endpoint", "s3." + options.region + ".amazonaws.com"}, {"Bucket", request.bucket}},
                           hint};
        }
        if (!options.quirks.enforce_region) return std::nullopt;
        return Failure{400,
                       code,
                       "The authorization header is malformed; the region '" + signature->region +
                           "' is wrong; expecting '" + options.region + "'",
                       {{"Region", options.region}},
                       request.method == "HEAD" ? hint : HeaderList{}};
    }

    std::optional<Failure> time() {
        auto sent = parse_amz_date(signature->date);
        if (!sent && signature->date.empty() && !signature->presigned) {
            sent = parse_http_date(request.header_or("date"));
            if (sent) signature->date = amz_date(*sent);
        }
        if (!sent) return denied("AWS authentication requires a valid Date or x-amz-date header");
        if (signature->date.substr(0, 8) != signature->day) {
            return Failure{400, "AuthorizationHeaderMalformed", "The scope's day is not that of the request's date."};
        }
        if (signature->presigned) return presigned_time(*sent);
        if (*sent - now <= 900 && now - *sent <= 900) return std::nullopt;
        return Failure{403,
                       "RequestTimeTooSkewed",
                       "The difference between the request time and the current time is too large.",
                       {{"RequestTime", signature->date},
                        {"ServerTime", iso_date(now)},
                        {"MaxAllowedSkewMilliseconds", "900000"}}};
    }

    static std::string amz_date(std::int64_t seconds) {
        std::string out;
        for (char c : iso_date(seconds).substr(0, 19)) {
            if (c != '-' && c != ':') out += c;
        }
        return out + "Z";
    }

    std::optional<Failure> presigned_time(std::int64_t sent) const {
        if (sent - now > 900) return denied("Request is not yet valid", {{"ServerTime", iso_date(now)}});
        const auto end = sent + static_cast<std::int64_t>(signature->expires);
        if (end >= now) return std::nullopt;
        return denied("Request has expired", {{"X-Amz-Expires", std::to_string(signature->expires)},
                                              {"Expires", iso_date(end)},
                                              {"ServerTime", iso_date(now)}});
    }

    std::optional<Failure> coverage() {
        std::string missing;
        if (!signature->names("host")) missing = "host";
        for (const Header& header : request.headers) {
            const std::string name = lower(header.first);
            if (!starts(name, "x-amz-") || signature->names(name)) continue;
            missing += (missing.empty() ? "" : ", ") + name;
        }
        if (missing.empty()) return std::nullopt;
        return denied("There were headers present in the request which were not signed",
                      {{"HeadersNotSigned", missing}});
    }

    std::optional<Failure> payload() {
        const auto value = request.header("x-amz-content-sha256");
        if (!value) {
            if (signature->presigned) return std::nullopt;
            return Failure{400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"};
        }
        if (*value == "UNSIGNED-PAYLOAD") {
            if (signature->presigned || options.tls || options.allow_unsigned_payload_over_http) return std::nullopt;
            return Failure{400, "InvalidRequest", "UNSIGNED-PAYLOAD is not taken over http"};
        }
        if (request.streaming()) {
            if (!options.quirks.refuse_aws_chunked) return std::nullopt;
            return Failure{501, "NotImplemented", "aws-chunked payloads are not supported"};
        }
        const bool good =
            value->size() == 64 && std::all_of(value->begin(), value->end(), [](char c) { return hex_digit(c) >= 0; });
        if (good) return std::nullopt;
        return Failure{400, "InvalidArgument",
                       "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, or a valid "
                       "sha256 value."};
    }

    std::optional<Failure> match() {
        signature->key = signing_key(*signature, secret);
        const std::string canonical = canonical_request(request, *signature);
        const std::string text =
            "AWS4-HMAC-SHA256\n" + signature->date + "\n" + signature->scope() + "\n" + hex(sha256(canonical));
        if (hex(hmac(signature->key, text)) == signature->given) return std::nullopt;
        return Failure{403,
                       "SignatureDoesNotMatch",
                       "The request signature we calculated does not match the signature you provided. Check your key "
                       "and signing method.",
                       {{"AWSAccessKeyId", signature->access_key},
                        {"StringToSign", text},
                        {"SignatureProvided", signature->given},
                        {"CanonicalRequest", canonical}}};
    }
};

// Takes the frames of an aws-chunked body apart, checking chunk signatures where there are any.
class ChunkReader {
public:
    ChunkReader(std::string_view wire, const Signature* signature, bool is_signed)
        : rest(wire), signer(signature), previous(signature != nullptr ? signature->given : ""), check(is_signed) {}

    bool run(std::string& out, HeaderList& trailers) {
        while (true) {
            const auto end = rest.find("\r\n");
            if (end == std::string_view::npos) return false;
            const std::string_view line = rest.substr(0, end);
            rest.remove_prefix(end + 2);
            const auto size = hex_number(line.substr(0, line.find(';')));
            if (!size || rest.size() < *size) return false;
            const std::string_view data = rest.substr(0, static_cast<std::size_t>(*size));
            if (check && !signed_well(line, data)) return false;
            rest.remove_prefix(data.size());
            if (data.empty()) return tail(trailers);
            if (!starts(rest, "\r\n")) return false;
            rest.remove_prefix(2);
            out += data;
        }
    }

private:
    std::string_view rest;
    const Signature* signer;
    std::string previous;
    bool check;

    bool signed_well(std::string_view line, std::string_view data) {
        constexpr std::string_view mark = ";chunk-signature=";
        const auto at = line.find(mark);
        if (at == std::string_view::npos || signer == nullptr) return false;
        return next(line.substr(at + mark.size()), "AWS4-HMAC-SHA256-PAYLOAD",
                    hex(sha256("")) + "\n" + hex(sha256(data)));
    }

    bool next(std::string_view given, const std::string& kind, const std::string& what) {
        const std::string text = kind + "\n" + signer->date + "\n" + signer->scope() + "\n" + previous + "\n" + what;
        previous = hex(hmac(signer->key, text));
        return previous == given;
    }

    bool tail(HeaderList& trailers) {
        std::string covered;
        while (!rest.empty() && !starts(rest, "\r\n")) {
            auto end = rest.find("\r\n");
            if (end == std::string_view::npos) end = rest.size();
            const std::string_view line = rest.substr(0, end);
            const auto colon = line.find(':');
            if (colon == std::string_view::npos) return false;
            const std::string name = lower(line.substr(0, colon));
            const std::string value(trim(line.substr(colon + 1)));
            rest.remove_prefix((std::min)(end + 2, rest.size()));
            if (name == "x-amz-trailer-signature") {
                if (check && !next(value, "AWS4-HMAC-SHA256-TRAILER", hex(sha256(covered)))) return false;
                continue;
            }
            trailers.emplace_back(name, value);
            covered += name + ":" + value + "\n";
        }
        return rest.empty() || rest == "\r\n";
    }
};

Failure bad_digest(std::string_view name) {
    return {400, "BadDigest", "The " + std::string(name) + " you specified did not match the calculated checksum."};
}

// Everything that can be said about a body once it is there; decodes aws-chunked.
std::optional<Failure> check_body(Request& request, const Signature* signature) {
    const std::string payload = request.header_or("x-amz-content-sha256");
    if (request.streaming()) {
        std::string wire;
        wire.swap(request.body);
        ChunkReader reader(wire, signature,
                           signature != nullptr && starts(payload, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"));
        if (!reader.run(request.body, request.trailers)) {
            return Failure{403, "SignatureDoesNotMatch",
                           "The chunks of the body are malformed, or their signatures do not match."};
        }
        if (number(request.header_or("x-amz-decoded-content-length")) != request.body.size()) {
            return Failure{400, "IncompleteBody",
                           "x-amz-decoded-content-length is not the length of the decoded body."};
        }
    } else if (payload.size() == 64 && lower(payload) != hex(sha256(request.body))) {
        return Failure{
            400,
            "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
            {{"ClientComputedContentSHA256", payload}, {"S3ComputedContentSHA256", hex(sha256(request.body))}}};
    }
    const auto given_md5 = request.header("content-md5");
    if (given_md5 && given_md5->size() != 24)
        return Failure{400, "InvalidDigest", "The Content-MD5 you specified is not valid."};
    if (given_md5 && *given_md5 != base64(md5(request.body))) return bad_digest("Content-MD5");
    for (const char* name : checksum_names) {
        const std::string header = std::string("x-amz-checksum-") + name;
        auto given = request.header(header);
        const std::string* trailer = find_header(request.trailers, header);
        if (!given && trailer != nullptr) given = *trailer;
        if (given && request.operation != "CompleteMultipartUpload" && *given != checksum(name, request.body))
            return bad_digest(name);
    }
    return std::nullopt;
}

// ---- store --------------------------------------------------------------------------------------------------------

using Body = std::shared_ptr<const std::string>;

struct Entry {
    Body body = std::make_shared<const std::string>();
    HeaderList metadata, headers;
    std::string etag;
    std::int64_t modified = 0;
    std::size_t parts = 0;
    HeaderList checksums;  // x-amz-checksum-… as sent
};

struct Part {
    Body body;
    std::string etag;
    std::int64_t modified = 0;
};

struct Upload {
    std::string bucket, key;
    HeaderList metadata, headers;
    std::int64_t initiated = 0;
    std::string algorithm{};  // of the parts' checksums; empty: none was announced, and none may come
    bool composite = true;
    std::map<int, Part> parts;
};

struct Bucket {
    std::map<std::string, Entry> objects;
    std::optional<std::string> lifecycle;
};

struct Answer {
    int status = 200;
    HeaderList headers;
    std::string own_body;
    Body stored;             // instead of own_body
    std::size_t offset = 0;  // into `stored`
    std::size_t length = 0;
    bool no_length = false;       // HEAD errors, 204, 304: neither body nor Content-Length
    bool without_length = false;  // there is a body, and nobody says how long
    std::string_view body() const {
        return stored ? std::string_view(*stored).substr(offset, length) : std::string_view(own_body);
    }
};

std::string quoted(std::string_view etag) { return "\"" + std::string(etag) + "\""; }

bool same_etag(std::string_view given, const std::string& stored) {
    const std::string_view bare = trim(given);
    return bare == "*" || bare == stored || quoted(bare) == stored;
}

// If-None-Match compares weakly: W/ does not count.
bool weakly(std::string_view given, const std::string& stored) {
    if (starts(given, "W/")) given.remove_prefix(2);
    return same_etag(given, stored);
}

bool any_etag(const std::string& list, const std::string& stored) {
    const auto given = split(list, ',');
    return std::any_of(given.begin(), given.end(), [&](const std::string& one) { return same_etag(one, stored); });
}

Answer xml_answer(std::string body, int status = 200) {
    Answer out;
    out.status = status;
    out.headers = {{"Content-Type", "application/xml"}};
    out.own_body = std::move(body);
    return out;
}

std::string error_xml(const Failure& failure, const std::string& request_id) {
    std::string out =
        xml_declaration + ("<Error>" + element("Code", failure.code)) + element("Message", failure.message);
    for (const Header& detail : failure.details) out += element(detail.first, detail.second);
    return out + element("RequestId", request_id) + element("HostId", "ZmFrZSBob3N0IGlk/+=") + "</Error>";
}

Failure missing_key(const std::string& key) {
    return {404, "NoSuchKey", "The specified key does not exist.", {{"Key", key}}};
}

Failure precondition(const char* condition) {
    return {412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
            {{"Condition", condition}}};
}

struct Range {
    std::uint64_t first = 0, last = 0;
};

// A malformed or multiple range is ignored, as S3 does; `bad` tells that it lies outside.
std::optional<Range> parse_range(const std::string& text, std::uint64_t size, bool& bad) {
    if (!starts(text, "bytes=") || holds(text, ",")) return std::nullopt;
    const auto dash = text.find('-');
    if (dash == std::string::npos) return std::nullopt;
    const std::string left = text.substr(6, dash - 6);
    const std::string right = text.substr(dash + 1);
    const auto first = number(left);
    const auto last = number(right);
    if ((!first && !left.empty()) || (!last && !right.empty()) || (!first && !last)) return std::nullopt;
    if (first && last && *last < *first) return std::nullopt;
    bad = size == 0 || (first && *first >= size) || (!first && *last == 0);
    if (bad) return std::nullopt;
    if (!first) return Range{size - (std::min)(*last, size), size - 1};
    return Range{*first, last ? (std::min)(*last, size - 1) : size - 1};
}

// ---- operations ---------------------------------------------------------------------------------------------------

class Store {
public:
    std::map<std::string, Bucket> buckets;
    std::map<std::string, Upload> uploads;
    std::set<std::string> denied_keys;
    std::map<std::string, std::string> tokens;
    struct Refusal {
        std::string code;
        std::size_t times;
        bool named;
    };
    std::map<std::string, Refusal> bulk_refusals;
    HeaderList demands;  // operation, and how a header's name must begin
    std::size_t list_pages = 0;
    std::size_t writes = 0;

    std::string new_etag(std::string_view body, const Options& options) {
        ++writes;
        return quoted(hex(options.quirks.etag_not_md5 ? random_bytes(16) : md5(body)));
    }
};

// One request's effect. The caller holds the server's lock; an operation either answers or fails.
class Operation {
public:
    Operation(Store& s, const Options& o, const Request& r, std::int64_t time, const std::string& where)
        : store(s), options(o), request(r), now(time), endpoint(where) {}

    std::int64_t range_shift = 0;
    std::optional<Failure> failure;

    Answer run() {
        if (request.operation == "ListBuckets") return list_buckets();
        if (request.operation == "CreateBucket") return create_bucket();
        const auto found = store.buckets.find(request.bucket);
        if (found == store.buckets.end()) {
            return fail({404, "NoSuchBucket", "The specified bucket does not exist", {{"BucketName", request.bucket}}});
        }
        bucket = &found->second;
        if (!request.key.empty() && !key_allowed()) return {};
        for (const Header& demand : store.demands) {
            const auto begins = [&](const Header& header) { return starts(lower(header.first), demand.second); };
            if (demand.first == request.operation &&
                std::none_of(request.headers.begin(), request.headers.end(), begins))
                return fail(denied("The bucket's policy demands the header " + demand.second));
        }
        static const std::map<std::string_view, Answer (Operation::*)()> table{
            {"HeadBucket", &Operation::head_bucket},
            {"DeleteBucket", &Operation::delete_bucket},
            {"PutBucketLifecycle", &Operation::put_lifecycle},
            {"GetBucketLifecycle", &Operation::get_lifecycle},
            {"DeleteBucketLifecycle", &Operation::delete_lifecycle},
            {"GetBucketLocation", &Operation::location},
            {"ListObjects", &Operation::list_objects},
            {"ListObjectsV2", &Operation::list_objects},
            {"ListMultipartUploads", &Operation::list_uploads},
            {"DeleteObjects", &Operation::delete_objects},
            {"GetObject", &Operation::get_object},
            {"HeadObject", &Operation::get_object},
            {"PutObject", &Operation::put_object},
            {"CopyObject", &Operation::copy_object},
            {"DeleteObject", &Operation::delete_object},
            {"CreateMultipartUpload", &Operation::create_upload},
            {"UploadPart", &Operation::upload_part},
            {"CompleteMultipartUpload", &Operation::complete_upload},
            {"AbortMultipartUpload", &Operation::abort_upload},
            {"ListParts", &Operation::list_parts},
        };
        const auto handler = table.find(request.operation);
        if (handler == table.end()) {
            return fail({501, "NotImplemented",
                         "A header or query you provided implies functionality that is not implemented"});
        }
        return (this->*handler->second)();
    }

private:
    Store& store;
    const Options& options;
    const Request& request;
    std::int64_t now;
    const std::string& endpoint;
    Bucket* bucket = nullptr;

    Answer fail(Failure what) {
        failure = std::move(what);
        return {};
    }

    bool key_allowed() {
        const std::string& key = request.key;
        if (key.size() > 1024) {
            fail({400,
                  "KeyTooLongError",
                  "Your key is too long",
                  {{"Size", std::to_string(key.size())}, {"MaxSizeAllowed", "1024"}}});
        } else if (!is_utf8(key) || holds(key, std::string_view("\0", 1))) {
            fail({400, "InvalidURI", "Couldn't parse the specified URI."});
        } else if (store.denied_keys.count(key) != 0) {
            fail(denied("Access Denied"));
        } else if (options.quirks.refuse_dot_keys) {
            const auto segments = split(key, '/');
            const bool bad = std::any_of(segments.begin(), segments.end(), [&](const std::string& segment) {
                return segment == "." || segment == ".." || (segment.empty() && segments.size() > 1);
            });
            if (bad) fail({400, "XMinioInvalidObjectName", "Object name contains unsupported characters."});
        }
        return !failure;
    }

    Entry* find(const std::string& key) {
        const auto found = bucket->objects.find(key);
        return found == bucket->objects.end() ? nullptr : &found->second;
    }

    // ---- buckets

    Answer list_buckets() {
        std::string out = "<Owner><ID>fake</ID></Owner><Buckets>";
        for (const auto& pair : store.buckets) {
            out += "<Bucket>" + element("Name", pair.first) + element("CreationDate", iso_date(now)) + "</Bucket>";
        }
        return xml_answer(root("ListAllMyBucketsResult", out + "</Buckets>"));
    }

    Answer create_bucket() {
        if (!store.buckets.try_emplace(request.bucket).second) {
            return fail({409,
                         "BucketAlreadyOwnedByYou",
                         "Your previous request to create the named bucket succeeded and you already own it.",
                         {{"BucketName", request.bucket}}});
        }
        Answer out;
        out.headers = {{"Location", "/" + request.bucket}};
        return out;
    }

    Answer head_bucket() {
        Answer out;
        out.headers = {{"x-amz-bucket-region", options.region}, {"Content-Type", "application/xml"}};
        return out;
    }

    Answer delete_bucket() {
        if (!bucket->objects.empty())
            return fail({409, "BucketNotEmpty", "The bucket you tried to delete is not empty"});
        store.buckets.erase(request.bucket);
        return empty_answer(204);
    }

    static Answer empty_answer(int status) {
        Answer out;
        out.status = status;
        out.no_length = status == 204 || status == 304;
        return out;
    }

    Answer put_lifecycle() {
        bucket->lifecycle = request.body;
        return {};
    }

    Answer get_lifecycle() {
        if (bucket->lifecycle) return xml_answer(*bucket->lifecycle);
        return fail({404, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"});
    }

    Answer delete_lifecycle() {
        bucket->lifecycle.reset();
        return empty_answer(204);
    }

    Answer location() {
        const std::string region = options.region == "us-east-1" ? "" : options.region;
        return xml_answer(xml_declaration + std::string("<LocationConstraint") + xml_namespace + ">" +
                          xml_text(region) + "</LocationConstraint>");
    }

    // ---- lists

    bool url_encoded() const {
        return request.parameter("encoding-type") == "url" && !options.quirks.ignore_encoding_type &&
               !options.quirks.raw_controls;
    }

    std::string listed(const std::string& key) const {
        if (!url_encoded()) return key;
        std::string out;
        for (char c : percent_encode(key, "/ *")) out += c == ' ' ? '+' : c;
        return out;
    }

    std::string new_token(const std::string& after) {
        if (store.tokens.size() > 100000) store.tokens.clear();
        const std::string token = "1/" + base64(random_bytes(31)) + "+=";
        store.tokens[token] = after;
        return token;
    }

    Answer list_objects() {
        const bool v2 = request.operation == "ListObjectsV2";
        std::size_t most = 1000;
        if (request.asks("max-keys")) {
            const auto asked = number(request.parameter("max-keys"));
            if (!asked)
                return fail({400, "InvalidArgument", "Provided max-keys not an integer or within integer range"});
            most = static_cast<std::size_t>((std::min)(*asked, std::uint64_t{1000}));
        }
        most = (std::min)(most, options.list_page_max);
        std::string after = request.parameter(v2 ? "start-after" : "marker");
        if (v2 && request.asks("continuation-token")) {
            const auto known = store.tokens.find(request.parameter("continuation-token"));
            if (known == store.tokens.end())
                return fail({400, "InvalidArgument", "The continuation token provided is incorrect"});
            after = options.quirks.endless_lists ? "" : known->second;
        }
        if (v2 && options.quirks.empty_list_pages && store.list_pages++ % 2 == 0) return list_page(v2, 0, after, true);
        return list_page(v2, most, after, false);
    }

    using Order = std::vector<const std::pair<const std::string, Entry>*>;

    Order order(const std::string& prefix, const std::string& from) const {
        Order out;
        for (auto at = bucket->objects.lower_bound((std::max)(prefix, from)); at != bucket->objects.end(); ++at) {
            if (!starts(at->first, prefix)) break;
            out.push_back(&*at);
        }
        if (options.quirks.reversed_lists) std::reverse(out.begin(), out.end());
        return out;
    }

    std::string truncated(bool more) const {
        return element("IsTruncated", !more ? "false" : options.quirks.capital_true ? "True" : "true");
    }

    Answer list_page(bool v2, std::size_t most, std::string after, bool empty) {
        const std::string prefix = request.parameter("prefix");
        const std::string delimiter = request.parameter("delimiter");
        std::string contents;
        std::string groups;
        std::size_t count = 0;
        bool more = empty || options.quirks.endless_lists;
        const bool reversed = options.quirks.reversed_lists;
        for (const auto* entry : empty ? Order() : order(prefix, reversed ? "" : after)) {
            const std::string& key = entry->first;
            if (!after.empty() && (reversed ? key >= after : key <= after)) continue;
            const auto cut = delimiter.empty() ? std::string::npos : key.find(delimiter, prefix.size());
            const std::string group = cut == std::string::npos ? "" : key.substr(0, cut + delimiter.size());
            if (!group.empty() && starts(after, group)) continue;
            if (count == most) {
                more = most != 0;
                break;
            }
            if (group.empty())
                contents += content(key, entry->second, v2);
            else
                groups += "<CommonPrefixes>" + element("Prefix", listed(group)) + "</CommonPrefixes>";
            after = group.empty() ? key : group;
            ++count;
        }
        std::string out = element("Name", request.bucket) + element("Prefix", listed(prefix));
        if (v2) {
            if (request.asks("continuation-token"))
                out += element("ContinuationToken", request.parameter("continuation-token"));
            if (more) out += element("NextContinuationToken", new_token(after));
            if (request.asks("start-after")) out += element("StartAfter", listed(request.parameter("start-after")));
            out += element("KeyCount", std::to_string(count));
        } else {
            out += element("Marker", listed(request.parameter("marker")));
            if (more) out += element("NextMarker", listed(after));
        }
        out += element(
            "MaxKeys",
            std::to_string(request.asks("max-keys") ? number(request.parameter("max-keys")).value_or(0) : 1000));
        if (!delimiter.empty()) out += element("Delimiter", listed(delimiter));
        if (url_encoded()) out += element("EncodingType", "url");
        out += truncated(more) + contents + groups;
        return xml_answer(root("ListBucketResult", out));
    }

    std::string content(const std::string& key, const Entry& entry, bool v2) const {
        const bool raw = options.quirks.raw_controls;
        std::string out = "<Contents>" + (raw ? "<Key>" + key + "</Key>" : element("Key", listed(key))) +
                          element("LastModified", iso_date(entry.modified)) + element("ETag", entry.etag) +
                          element("Size", std::to_string(entry.body->size())) + element("StorageClass", "STANDARD");
        if (!v2) out += "<Owner><ID>fake</ID></Owner>";
        return out + "</Contents>";
    }

    Answer list_uploads() {
        if (options.quirks.refuse_upload_lists)
            return fail({501, "NotImplemented", "ListMultipartUploads is not implemented"});
        const std::string prefix = request.parameter("prefix");
        const bool endless = options.quirks.endless_lists;
        const std::string key_marker = endless ? "" : request.parameter("key-marker");
        const std::string id_marker = endless ? "" : request.parameter("upload-id-marker");
        const std::size_t asked = static_cast<std::size_t>(number(request.parameter("max-uploads")).value_or(1000));
        const std::size_t most = (std::min)({asked, std::size_t{1000}, options.list_page_max});
        std::vector<std::pair<std::string, std::string>> order;  // key, id
        for (const auto& pair : store.uploads) {
            const Upload& upload = pair.second;
            if (upload.bucket != request.bucket || !starts(upload.key, prefix)) continue;
            const bool past = id_marker.empty()
                                  ? upload.key > key_marker || key_marker.empty()
                                  : std::make_pair(upload.key, pair.first) > std::make_pair(key_marker, id_marker);
            if (past) order.emplace_back(upload.key, pair.first);
        }
        std::sort(order.begin(), order.end());
        const bool more = (order.size() > most && most > 0) || (endless && !order.empty());
        if (order.size() > most) order.resize(most);
        std::string out = element("Bucket", request.bucket) + element("KeyMarker", listed(key_marker)) +
                          element("UploadIdMarker", id_marker) + element("Prefix", listed(prefix));
        if (more) {
            const std::string& last = order.back().first;
            out += element("NextKeyMarker", options.quirks.raw_markers ? last : listed(last)) +
                   element("NextUploadIdMarker", endless ? hex(random_bytes(8)) : order.back().second);
        }
        if (url_encoded()) out += element("EncodingType", "url");
        out += element("MaxUploads", std::to_string(most)) + truncated(more);
        for (const auto& pair : order) {
            out += "<Upload>" + element("Key", listed(pair.first)) + element("UploadId", pair.second) +
                   "<Initiator><ID>fake</ID></Initiator><Owner><ID>fake</ID></Owner>" +
                   element("StorageClass", "STANDARD") +
                   element("Initiated", iso_date(store.uploads[pair.second].initiated)) + "</Upload>";
        }
        return xml_answer(root("ListMultipartUploadsResult", out));
    }

    // ---- objects

    Answer get_object() {
        Entry* entry = find(request.key);
        if (entry == nullptr && options.quirks.forbidden_for_missing) return fail(denied("Access Denied"));
        if (entry == nullptr) return fail(missing_key(request.key));
        Answer out;
        describe(out, *entry);
        if (!conditions_hold(*entry, out)) return out;
        out.stored = entry->body;
        out.length = entry->body->size();
        out.without_length = request.method == "HEAD" && options.quirks.head_without_length;
        const auto asked = request.header("range");
        if (!asked || options.quirks.ignore_range) return out;
        bool bad = false;
        const auto range = parse_range(*asked, entry->body->size(), bad);
        if (bad) {
            return fail({416,
                         "InvalidRange",
                         "The requested range is not satisfiable",
                         {{"RangeRequested", *asked}, {"ActualObjectSize", std::to_string(entry->body->size())}},
                         {{"Content-Range", "bytes */" + std::to_string(entry->body->size())}}});
        }
        if (range) serve_range(out, *range);
        return out;
    }

    static void drop_checksums(Answer& out) {
        for (const char* name : checksum_names) remove_header(out.headers, std::string("x-amz-checksum-") + name);
    }

    void serve_range(Answer& out, Range range) const {
        const auto size = static_cast<std::int64_t>(out.stored->size());
        const auto first =
            (std::min)((std::max)(static_cast<std::int64_t>(range.first) + range_shift, std::int64_t{0}), size - 1);
        const auto last = (std::min)((std::max)(static_cast<std::int64_t>(range.last) + range_shift, first), size - 1);
        out.status = 206;
        drop_checksums(out);  // they are those of the whole
        out.offset = static_cast<std::size_t>(first);
        out.length = static_cast<std::size_t>(last - first + 1);
        out.headers.emplace_back("Content-Range", "bytes " + std::to_string(first) + "-" + std::to_string(last) + "/" +
                                                      std::to_string(size));
    }

    void describe(Answer& out, const Entry& entry) const {
        out.headers = {{"Last-Modified", http_date(entry.modified)}};
        if (!options.quirks.ignore_range) out.headers.emplace_back("Accept-Ranges", "bytes");
        if (!entry.etag.empty()) out.headers.emplace_back("ETag", (options.quirks.weak_etags ? "W/" : "") + entry.etag);
        for (const Header& header : entry.headers) out.headers.emplace_back(answer_name(header.first), header.second);
        for (const Header& meta : entry.metadata) {
            std::string name = "x-amz-meta-" + meta.first;
            if (options.quirks.metadata_capitals) name = answer_name(name);
            out.headers.emplace_back(name, meta.second);
        }
        if (request.header("x-amz-checksum-mode") && entry.parts == 0) {
            out.headers.insert(out.headers.end(), entry.checksums.begin(), entry.checksums.end());
        }
        for (const char* name : {"content-type", "content-language", "expires", "cache-control", "content-disposition",
                                 "content-encoding"}) {
            const std::string parameter = std::string("response-") + name;
            if (request.asks(parameter)) set_header(out.headers, answer_name(name), request.parameter(parameter));
        }
    }

    static std::string answer_name(
        std::string name) {  // Content-Type; x-amz-* stay lower-case on AWS, MinIO raises all
        bool up = true;
        const bool amz = starts(name, "x-amz-") && !starts(name, "x-amz-meta-");
        for (char& c : name) {
            if (up && !amz && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
            up = c == '-';
        }
        return name;
    }

    bool conditions_hold(const Entry& entry, Answer& out) {
        const auto match = request.header("if-match");
        const auto none = request.header("if-none-match");
        const auto since = parse_http_date(request.header_or("if-modified-since"));
        const auto until = parse_http_date(request.header_or("if-unmodified-since"));
        if (match && !any_etag(*match, entry.etag)) return fail(precondition("If-Match")), false;
        if (!match && until && entry.modified > *until) return fail(precondition("If-Unmodified-Since")), false;
        const bool unchanged =
            none ? any_etag(*none, entry.etag) || weakly(*none, entry.etag) : since && entry.modified <= *since;
        if (!unchanged) return true;
        out.status = 304;
        out.no_length = true;
        drop_checksums(out);
        return false;
    }

    // Conditions of a write. True: go on.
    bool may_write() {
        const auto match = request.header("if-match");
        const auto none = request.header("if-none-match");
        const Quirks& quirks = options.quirks;
        if (!match && !none) return true;
        if (quirks.refuse_conditional_put || (none && trim(*none) != "*")) {
            return fail({501,
                         "NotImplemented",
                         "A header you provided implies functionality that is not implemented",
                         {{"Header", none ? "If-None-Match" : "If-Match"}}}),
                   false;
        }
        const bool complete = request.operation == "CompleteMultipartUpload";
        if (quirks.ignore_conditional_put || (complete && quirks.ignore_conditional_complete)) return true;
        const Entry* entry = find(request.key);
        if (none && entry != nullptr) return fail(precondition("If-None-Match")), false;
        if (match && entry == nullptr) return fail(missing_key(request.key)), false;
        if (match && !same_etag(*match, entry->etag)) return fail(precondition("If-Match")), false;
        return true;
    }

    // Metadata and headers to keep, from the request.
    bool take_headers(HeaderList& metadata, HeaderList& headers) {
        std::size_t bytes = 0;
        for (const Header& header : request.headers) {
            const std::string name = lower(header.first);
            if (starts(name, "x-amz-meta-")) {
                bytes += name.size() - 11 + header.second.size();
                take_metadata(metadata, name.substr(11), header.second);
            }
            for (const char* kept :
                 {"content-type", "cache-control", "content-disposition", "content-language", "expires",
                  "x-amz-storage-class", "x-amz-server-side-encryption", "x-amz-website-redirect-location",
                  "x-amz-server-side-encryption-aws-kms-key-id"}) {
                if (name == kept && header.second != "STANDARD") set_header(headers, name, header.second);
            }
            if (name == "content-encoding") take_encoding(headers, header.second);
        }
        if (find_header(headers, "content-type") == nullptr)
            headers.emplace_back("content-type", "binary/octet-stream");
        if (bytes > 2048) {
            return fail({400,
                         "MetadataTooLarge",
                         "Your metadata headers exceed the maximum allowed metadata size",
                         {{"Size", std::to_string(bytes)}, {"MaxSizeAllowed", "2048"}}}),
                   false;
        }
        return true;
    }

    void take_metadata(HeaderList& metadata, std::string name, const std::string& value) const {
        const bool join = options.quirks.join_metadata;
        if (options.quirks.metadata_dashes || join) std::replace(name.begin(), name.end(), '_', '-');
        for (Header& header : metadata) {
            if (header.first != name) continue;
            if (!options.quirks.metadata_dashes || join) header.second += "," + value;
            return;
        }
        metadata.emplace_back(name, value);
    }

    static void take_encoding(HeaderList& headers, const std::string& value) {
        std::string kept;
        for (const std::string& coding : split(value, ',')) {
            const std::string_view name = trim(coding);
            if (name != "aws-chunked" && !name.empty()) kept += (kept.empty() ? "" : ",") + std::string(name);
        }
        if (!kept.empty()) headers.emplace_back("content-encoding", kept);
    }

    HeaderList given_checksums() const {
        HeaderList out;
        for (const char* name : checksum_names) {
            const std::string header = std::string("x-amz-checksum-") + name;
            const std::string* trailer = find_header(request.trailers, header);
            if (const auto given = request.header(header))
                out.emplace_back(header, *given);
            else if (trailer != nullptr)
                out.emplace_back(header, *trailer);
        }
        return out;
    }

    std::string etag_for(std::string_view body) {
        const bool kms = starts(request.header_or("x-amz-server-side-encryption"), "aws:kms");
        return kms ? quoted(hex(random_bytes(16))) : store.new_etag(body, options);
    }

    Answer written(const Entry& entry) const {
        Answer out;
        out.headers = {{"ETag", entry.etag}};
        out.headers.insert(out.headers.end(), entry.checksums.begin(), entry.checksums.end());
        for (const Header& header : entry.headers) {
            if (starts(header.first, "x-amz-server-side")) out.headers.push_back(header);
        }
        return out;
    }

    Answer put_object() {
        if (!may_write()) return {};
        Entry entry;
        if (!take_headers(entry.metadata, entry.headers)) return {};
        entry.body = std::make_shared<const std::string>(request.body);
        entry.etag = etag_for(request.body);
        entry.modified = now;
        entry.checksums = given_checksums();
        const Answer out = written(entry);
        bucket->objects[request.key] = std::move(entry);
        return out;
    }

    bool find_source(Entry& source, std::string& from_bucket, std::string& from_key) {
        std::string text = request.header_or("x-amz-copy-source");
        text = text.substr(0, text.find('?'));
        const auto decoded = percent_decode(text);
        std::string_view path = decoded ? std::string_view(*decoded) : std::string_view();
        if (starts(path, "/")) path.remove_prefix(1);
        const auto slash = path.find('/');
        if (slash == std::string_view::npos) {
            return fail({400, "InvalidArgument",
                         "Copy Source must mention the source bucket and key: sourcebucket/sourcekey"}),
                   false;
        }
        from_bucket = std::string(path.substr(0, slash));
        from_key = std::string(path.substr(slash + 1));
        const auto found = store.buckets.find(from_bucket);
        if (found == store.buckets.end())
            return fail({404, "NoSuchBucket", "The specified bucket does not exist"}), false;
        const auto object = found->second.objects.find(from_key);
        if (object == found->second.objects.end()) return fail(missing_key(from_key)), false;
        source = object->second;
        return true;
    }

    Answer copy_object() {
        Entry entry;
        std::string from_bucket;
        std::string from_key;
        if (!find_source(entry, from_bucket, from_key)) return {};
        const auto match = request.header("x-amz-copy-source-if-match");
        const auto none = request.header("x-amz-copy-source-if-none-match");
        const bool refused = match && (options.quirks.refuse_copy_condition || !any_etag(*match, entry.etag));
        if (refused) return fail(precondition("x-amz-copy-source-If-Match"));
        const auto until = parse_http_date(request.header_or("x-amz-copy-source-if-unmodified-since"));
        if (until && entry.modified > *until && (!match || options.quirks.all_copy_conditions))
            return fail(precondition("x-amz-copy-source-If-Unmodified-Since"));
        if (none && any_etag(*none, entry.etag)) return fail(precondition("x-amz-copy-source-If-None-Match"));
        const std::string directive = request.header_or("x-amz-metadata-directive", "COPY");
        if (directive != "COPY" && directive != "REPLACE")
            return fail({400, "InvalidArgument", "Unknown metadata directive."});
        if (directive == "COPY" && from_bucket == request.bucket && from_key == request.key) {
            return fail(
                {400, "InvalidRequest",
                 "This copy request is illegal because it is trying to copy an object to itself without changing the "
                 "object's metadata, storage class, website redirect location or encryption attributes."});
        }
        if (!may_write()) return {};
        if (directive == "REPLACE") {
            entry.metadata.clear();
            entry.headers.clear();
            if (!take_headers(entry.metadata, entry.headers)) return {};
        }
        entry.etag = etag_for(*entry.body);  // a copy is written whole: a multipart source's ETag changes
        if (options.quirks.copy_without_etag) entry.etag.clear();
        entry.parts = 0;
        entry.modified = now;
        const std::string etag = entry.etag.empty() ? "" : element("ETag", entry.etag);
        const std::string out = element("LastModified", iso_date(now)) + etag;
        bucket->objects[request.key] = std::move(entry);
        return xml_answer(root("CopyObjectResult", out));
    }

    Answer delete_object() {
        const auto match = request.header("if-match");
        if (match && !options.quirks.ignore_conditional_delete) {
            const Entry* entry = find(request.key);
            if (entry == nullptr) return fail(missing_key(request.key));
            if (!same_etag(*match, entry->etag)) return fail(precondition("If-Match"));
        }
        bucket->objects.erase(request.key);
        return empty_answer(204);
    }

    Answer delete_objects() {
        if (options.quirks.refuse_delete_objects)
            return fail({501, "NotImplemented", "DeleteObjects is not implemented"});
        const bool summed = !given_checksums().empty() && !options.quirks.delete_objects_needs_md5;
        if (!request.header("content-md5") && !summed) {
            return fail({400, "InvalidRequest", "Missing required header for this request: Content-MD5"});
        }
        const auto document = XmlReader(request.body).document();
        const Failure malformed{
            400, "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema"};
        if (!document || document->name != "Delete") return fail(malformed);
        std::string out;
        std::size_t count = 0;
        for (const Node& node : document->children) {
            if (node.name != "Object") continue;
            if (!node.has("Key") || ++count > 1000) return fail(malformed);
            delete_one(node, document->child("Quiet") == "true", out);
        }
        if (count == 0) return fail(malformed);
        return xml_answer(root("DeleteResult", out));
    }

    void delete_one(const Node& node, bool quiet, std::string& out) {
        const std::string key = node.child("Key");
        const auto error = [&](const char* code, const char* message) {
            out += "<Error>" + element("Key", key) + element("Code", code) + element("Message", message) + "</Error>";
        };
        const auto refusal = store.bulk_refusals.find(key);
        if (refusal != store.bulk_refusals.end() && refusal->second.times > 0) {
            --refusal->second.times;
            out += "<Error>" + (refusal->second.named ? element("Key", key) : "") +
                   element("Code", refusal->second.code) + element("Message", "scripted") + "</Error>";
            return;
        }
        const Entry* entry = find(key);
        const bool conditional = node.has("ETag") && !options.quirks.ignore_conditional_delete;
        if (store.denied_keys.count(key) != 0) return error("AccessDenied", "Access Denied");
        if (conditional && entry == nullptr) return error("NoSuchKey", "The specified key does not exist.");
        if (conditional && !same_etag(node.child("ETag"), entry->etag)) {
            return error("PreconditionFailed", "At least one of the pre-conditions you specified did not hold");
        }
        bucket->objects.erase(key);
        if (!quiet) out += "<Deleted>" + element("Key", key) + "</Deleted>";
    }

    // ---- uploads

    Answer create_upload() {
        Upload upload;
        if (!take_headers(upload.metadata, upload.headers)) return {};
        upload.bucket = request.bucket;
        upload.key = request.key;
        upload.initiated = now;
        upload.algorithm = lower(request.header_or("x-amz-checksum-algorithm"));
        upload.composite = request.header_or("x-amz-checksum-type", "COMPOSITE") == "COMPOSITE";
        const std::string id = "2~" + base64(random_bytes(22)) + "+/&=";  // what must be encoded in a query
        store.uploads[id] = std::move(upload);
        return xml_answer(
            root(options.quirks.other_create_root ? "InitiateMultipartUpload" : "InitiateMultipartUploadResult",
                 element("Bucket", request.bucket) + element("Key", request.key) + element("UploadId", id)));
    }

    Upload* find_upload() {
        const auto found = store.uploads.find(request.parameter("uploadId"));
        if (found != store.uploads.end() && found->second.bucket == request.bucket &&
            found->second.key == request.key) {
            return &found->second;
        }
        fail({404,
              "NoSuchUpload",
              "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
              "or completed.",
              {{"UploadId", request.parameter("uploadId")}}});
        return nullptr;
    }

    Answer upload_part() {
        Upload* upload = find_upload();
        if (upload == nullptr) return {};
        const auto part_number = number(request.parameter("partNumber"));
        if (!part_number || *part_number < 1 || *part_number > 10000) {
            return fail({400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive"});
        }
        Part part{std::make_shared<const std::string>(request.body), store.new_etag(request.body, options), now};
        Answer out;
        out.headers = {{"ETag", part.etag}};
        const HeaderList sums = given_checksums();
        const std::string sum = sums.empty() ? "" : sums[0].first.substr(15);
        if (sum != upload->algorithm) {
            return fail({400, "InvalidRequest",
                         "Checksum Type mismatch occurred, expected checksum Type: " +
                             (upload->algorithm.empty() ? "null" : upload->algorithm) +
                             ", actual checksum Type: " + (sum.empty() ? "null" : sum)});
        }
        out.headers.insert(out.headers.end(), sums.begin(), sums.end());
        upload->parts[static_cast<int>(*part_number)] = std::move(part);
        return out;
    }

    bool chosen_parts(const Upload& upload, std::vector<const Part*>& parts) {
        const auto document = XmlReader(request.body).document();
        int previous = 0;
        for (const Node& node : document ? document->children : std::vector<Node>{}) {
            if (node.name != "Part") continue;
            const int at = static_cast<int>(number(node.child("PartNumber")).value_or(0));
            if (at <= previous)
                return fail({400, "InvalidPartOrder", "The list of parts was not in ascending order."}), false;
            previous = at;
            const auto found = upload.parts.find(at);
            if (found == upload.parts.end() || !same_etag(node.child("ETag"), found->second.etag)) {
                return fail({400,
                             "InvalidPart",
                             "One or more of the specified parts could not be found. The part may not have been "
                             "uploaded, or "
                             "the specified entity tag may not match the part's entity tag.",
                             {{"PartNumber", std::to_string(at)}, {"ETag", node.child("ETag")}}}),
                       false;
            }
            const std::string sum = "Checksum" + upper(upload.algorithm);
            if (!upload.algorithm.empty() && upload.composite && !node.has(sum)) {
                return fail({400, "InvalidRequest",
                             "The upload was created using a " + upload.algorithm +
                                 " checksum. The complete request must include the checksum for each part. It was "
                                 "missing for part " +
                                 std::to_string(at) + " in the request."}),
                       false;
            }
            parts.push_back(&found->second);
        }
        if (!document || document->name != "CompleteMultipartUpload" || parts.empty()) {
            return fail({400, "MalformedXML",
                         "The XML you provided was not well-formed or did not validate against our published schema"}),
                   false;
        }
        return sizes_allowed(parts);
    }

    bool sizes_allowed(const std::vector<const Part*>& parts) {
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            const std::size_t size = parts[i]->body->size();
            if (size < options.part_bytes_min) {
                return fail({400,
                             "EntityTooSmall",
                             "Your proposed upload is smaller than the minimum allowed size",
                             {{"ProposedSize", std::to_string(size)},
                              {"MinSizeAllowed", std::to_string(options.part_bytes_min)},
                              {"PartNumber", std::to_string(i + 1)},
                              {"ETag", parts[i]->etag}}}),
                       false;
            }
            if (options.quirks.equal_parts && size != parts[0]->body->size()) {
                return fail({400, "InvalidPart", "All non-trailing parts must have the same length."}), false;
            }
        }
        if (options.quirks.equal_parts && parts.back()->body->size() > parts[0]->body->size()) {
            return fail({400, "InvalidPart", "All non-trailing parts must have the same length."}), false;
        }
        return true;
    }

    Answer complete_upload() {
        Upload* upload = find_upload();
        if (upload == nullptr) return {};
        std::vector<const Part*> parts;
        if (!chosen_parts(*upload, parts) || !may_write()) return {};
        std::string whole;
        std::string hashes;
        for (const Part* part : parts) {
            whole += *part->body;
            hashes += md5(*part->body);
        }
        Entry entry;
        entry.etag = quoted(hex(options.quirks.etag_not_md5 ? random_bytes(16) : md5(hashes)) + "-" +
                            std::to_string(parts.size()));
        entry.parts = parts.size();
        entry.body = std::make_shared<const std::string>(std::move(whole));
        entry.metadata = upload->metadata;
        entry.headers = upload->headers;
        entry.modified = now;
        const std::string out =
            element("Location", endpoint + "/" + request.bucket + "/" + percent_encode(request.key, "/")) +
            element("Bucket", request.bucket) + element("Key", request.key) + element("ETag", entry.etag);
        bucket->objects[request.key] = std::move(entry);
        store.uploads.erase(request.parameter("uploadId"));
        return xml_answer(root("CompleteMultipartUploadResult", out));
    }

    Answer abort_upload() {
        if (find_upload() == nullptr) return {};
        store.uploads.erase(request.parameter("uploadId"));
        return empty_answer(204);
    }

    Answer list_parts() {
        const Upload* upload = find_upload();
        if (upload == nullptr) return {};
        std::string out = element("Bucket", request.bucket) + element("Key", request.key) +
                          element("UploadId", request.parameter("uploadId")) + element("IsTruncated", "false");
        for (const auto& pair : upload->parts) {
            out += "<Part>" + element("PartNumber", std::to_string(pair.first)) +
                   element("LastModified", iso_date(pair.second.modified)) + element("ETag", pair.second.etag) +
                   element("Size", std::to_string(pair.second.body->size())) + "</Part>";
        }
        return xml_answer(root("ListPartsResult", out));
    }
};

// ---- wire ---------------------------------------------------------------------------------------------------------

struct SslDeleter {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
    void operator()(X509* certificate) const { X509_free(certificate); }
    void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, SslDeleter>;

// A wait that the end of the server interrupts, and the book of connections that stand still on purpose.
class Pauses {
public:
    bool sleep(milliseconds time) {
        std::unique_lock<std::mutex> lock(mutex);
        return !changed.wait_for(lock, time, [&] { return stopping; });
    }
    bool stand_still(milliseconds time) {  // false: nothing more is to be done or sent
        std::unique_lock<std::mutex> lock(mutex);
        const std::size_t began = released, cut = broken_off;
        ++standing;
        changed.notify_all();
        const auto over = [&] { return stopping || released != began || broken_off != cut; };
        if (time.count() > 0)
            changed.wait_for(lock, time, over);
        else
            changed.wait(lock, over);
        --standing;
        return !stopping && broken_off == cut;
    }
    void break_off() {
        const std::lock_guard<std::mutex> lock(mutex);
        ++broken_off;
        changed.notify_all();
    }
    void release() {
        const std::lock_guard<std::mutex> lock(mutex);
        ++released;
        changed.notify_all();
    }
    void stop() {
        const std::lock_guard<std::mutex> lock(mutex);
        stopping = true;
        changed.notify_all();
    }
    std::size_t count() const {
        const std::lock_guard<std::mutex> lock(mutex);
        return standing;
    }
    bool wait_for(std::size_t wanted, milliseconds limit) {
        std::unique_lock<std::mutex> lock(mutex);
        return changed.wait_for(lock, limit, [&] { return standing >= wanted; });
    }

private:
    mutable std::mutex mutex;
    std::condition_variable changed;
    bool stopping = false;
    std::size_t released = 0;
    std::size_t broken_off = 0;
    std::size_t standing = 0;
};

class Connection {
public:
    Connection(int descriptor, std::size_t its_number, Pauses& p) : number(its_number), pauses(p), socket(descriptor) {}
    ~Connection() { hang_up(false); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    const std::size_t number;
    std::uint64_t bytes_per_second = 0;

    bool secure(SSL_CTX* context) {
        ssl.reset(SSL_new(context));
        SSL_set_fd(ssl.get(), socket);
        return SSL_accept(ssl.get()) == 1;
    }

    // At most `most` bytes appended to `out`; false at the end.
    bool read(std::string& out, std::size_t most) {
        if (!ahead.empty()) {
            const std::size_t taken = (std::min)(most, ahead.size());
            out.append(ahead, 0, taken);
            ahead.erase(0, taken);
            return true;
        }
        std::array<char, 65536> buffer{};
        std::size_t room = (std::min)(most, buffer.size());
        if (bytes_per_second > 0) room = (std::min)(room, slice());
        const long got = receive(buffer.data(), room);
        if (got <= 0) return false;
        out.append(buffer.data(), static_cast<std::size_t>(got));
        return pace(static_cast<std::size_t>(got));
    }

    bool read_until(std::string& out, std::string_view mark, std::size_t most) {
        std::string seen;
        while (true) {
            const auto end = seen.find(mark);
            if (end != std::string::npos) {
                out = seen.substr(0, end + mark.size());
                ahead.insert(0, seen, out.size(), std::string::npos);
                return true;
            }
            if (!ssl && !seen.empty() && seen[0] == '\x16') {  // a ClientHello: no server reads on
                out = seen;
                return true;
            }
            if (seen.size() > most || !read(seen, 65536)) return false;
        }
    }

    bool write(std::string_view data, std::size_t piece = 0, milliseconds wait = milliseconds{0}) {
        while (!data.empty()) {
            std::size_t size = (std::min)(data.size(), std::size_t{1} << 18);
            if (piece > 0) size = (std::min)(size, piece);
            if (bytes_per_second > 0) size = (std::min)(size, slice());
            const long sent = send(data.data(), size);
            if (sent <= 0) return false;
            data.remove_prefix(static_cast<std::size_t>(sent));
            if (!pace(static_cast<std::size_t>(sent))) return false;
            if (piece > 0 && !pauses.sleep(wait)) return false;
        }
        return true;
    }

    // Something to read within the limit? No limit if zero.
    bool readable(milliseconds limit) {
        if (!ahead.empty() || (ssl && SSL_pending(ssl.get()) > 0)) return true;
        pollfd one{socket, POLLIN, 0};
        int left;
        do left = poll(&one, 1, limit.count() > 0 ? static_cast<int>(limit.count()) : -1);
        while (left < 0 && errno == EINTR);
        return left > 0;
    }

    // Says the end and waits for the peer's, a moment at most: a socket closed over unread bytes sends a reset that can
    // destroy the answer under way.
    void finish() {
        if (socket < 0) return;
        if (ssl) SSL_shutdown(ssl.get());
        shutdown(socket, SHUT_WR);
        const auto end = std::chrono::steady_clock::now() + milliseconds{500};
        std::array<char, 65536> buffer{};
        while (std::chrono::steady_clock::now() < end) {
            pollfd one{socket, POLLIN, 0};
            if (poll(&one, 1, 50) > 0 && ::recv(socket, buffer.data(), buffer.size(), 0) <= 0) break;
        }
        hang_up(false);
    }

    void drop() {  // FIN and nothing else
        if (socket >= 0) shutdown(socket, SHUT_WR);
        ssl.reset();
        finish();
    }

    void hang_up(bool reset) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (socket < 0) return;
        if (reset) {
            const linger now{1, 0};
            setsockopt(socket, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        }
        close_socket(socket);
        socket = -1;
    }

    void interrupt() {  // from another thread
        const std::lock_guard<std::mutex> lock(mutex);
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
    }

private:
    Pauses& pauses;
    std::mutex mutex;  // of `socket`'s end
    int socket;
    Owned<SSL> ssl;
    std::string ahead;  // read, not used

    std::size_t slice() const { return static_cast<std::size_t>((std::max)(bytes_per_second / 20, std::uint64_t{1})); }

    bool pace(std::size_t bytes) {
        if (bytes_per_second == 0) return true;
        return pauses.sleep(milliseconds{static_cast<std::int64_t>(bytes * 1000 / bytes_per_second)});
    }

    long receive(char* to, std::size_t room) {
        if (ssl) return SSL_read(ssl.get(), to, static_cast<int>(room));
        long got;
        do got = static_cast<long>(::recv(socket, to, room, 0));
        while (got < 0 && errno == EINTR);
        return got;
    }

    long send(const char* from, std::size_t size) {
        if (ssl) return SSL_write(ssl.get(), from, static_cast<int>(size));
        long sent;
        do sent = static_cast<long>(::send(socket, from, size, 0));
        while (sent < 0 && errno == EINTR);
        return sent;
    }
};

// ---- certificates -------------------------------------------------------------------------------------------------

Owned<EVP_PKEY> new_key() {
    EVP_PKEY* key = nullptr;
    EVP_PKEY_CTX* context = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, nullptr);
    const bool made = context != nullptr && EVP_PKEY_keygen_init(context) == 1 &&
                      EVP_PKEY_CTX_set_ec_paramgen_curve_nid(context, NID_X9_62_prime256v1) == 1 &&
                      EVP_PKEY_keygen(context, &key) == 1;
    EVP_PKEY_CTX_free(context);
    if (!made) throw std::runtime_error("fake_s3: no key for TLS");
    return Owned<EVP_PKEY>(key);
}

void extend(X509* certificate, int kind, const std::string& value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, certificate, certificate, nullptr, nullptr, 0);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
    if (extension == nullptr) throw std::runtime_error("fake_s3: no extension " + value);
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
}

Owned<X509> new_certificate(EVP_PKEY* key, const Options& options) {
    Owned<X509> out(X509_new());
    X509_set_version(out.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(out.get()), static_cast<unsigned char>(random_bytes(1)[0]) + 1L);
    X509_gmtime_adj(X509_getm_notBefore(out.get()), 3600L * static_cast<long>(options.certificate_from.count()));
    X509_gmtime_adj(X509_getm_notAfter(out.get()), 86400L * 365);
    X509_set_pubkey(out.get(), key);
    X509_NAME* name = X509_get_subject_name(out.get());
    const std::string common = "fake s3 " + hex(random_bytes(4));  // told apart when swapped
    const std::vector<unsigned char> bytes(common.begin(), common.end());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, bytes.data(), static_cast<int>(bytes.size()), -1, 0);
    X509_set_issuer_name(out.get(), name);
    // libcurl with Schannel looks for an address among the names of hosts.
    std::string names = "DNS:localhost,DNS:127.0.0.1,IP:127.0.0.1,IP:::1";
    for (const std::string& bucket : options.buckets)
        names += ",DNS:" + bucket + ".localhost";  // "*.localhost" is too wide for verifiers
    extend(out.get(), NID_subject_alt_name, names);
    extend(out.get(), NID_basic_constraints, "critical,CA:TRUE");
    extend(out.get(), NID_subject_key_identifier, "hash");
    if (X509_sign(out.get(), key, EVP_sha256()) == 0) throw std::runtime_error("fake_s3: cannot sign a certificate");
    return out;
}

std::string write_pem(X509* certificate) {
    std::string path = "/tmp/fake_s3_XXXXXX";
    for (const char* name : {"TMPDIR", "TEMP"}) {  // of POSIX, of Windows
        const char* folder = std::getenv(name);
        if (folder != nullptr && *folder != '\0') path = std::string(folder) + "/fake_s3_XXXXXX";
    }
    const int file = mkstemp(path.data());
    FILE* stream = file < 0 ? nullptr : fdopen(file, "w");
    if (stream == nullptr) throw std::runtime_error("fake_s3: cannot write " + path);
    PEM_write_X509(stream, certificate);
    std::fclose(stream);
    return path;
}

const char* reason(int status) {
    static const std::map<int, const char*> reasons{{200, "OK"},
                                                    {204, "No Content"},
                                                    {206, "Partial Content"},
                                                    {301, "Moved Permanently"},
                                                    {304, "Not Modified"},
                                                    {307, "Temporary Redirect"},
                                                    {400, "Bad Request"},
                                                    {403, "Forbidden"},
                                                    {404, "Not Found"},
                                                    {405, "Method Not Allowed"},
                                                    {409, "Conflict"},
                                                    {411, "Length Required"},
                                                    {412, "Precondition Failed"},
                                                    {416, "Requested Range Not Satisfiable"},
                                                    {417, "Expectation Failed"},
                                                    {429, "Too Many Requests"},
                                                    {500, "Internal Server Error"},
                                                    {501, "Not Implemented"},
                                                    {502, "Bad Gateway"},
                                                    {503, "Slow Down"},
                                                    {504, "Gateway Timeout"}};
    const auto found = reasons.find(status);
    return found == reasons.end() ? "Status" : found->second;
}

enum class Next { go_on, answered, ended };

using Plan = std::vector<Fault>;

bool is_answer_point(Point at) {
    return at == Point::answer_head || at == Point::answer_body || at == Point::answer_end;
}

}  // namespace

// ---- server -------------------------------------------------------------------------------------------------------

struct FakeS3::Impl {
    struct Armed {
        std::size_t number;
        Fault fault;
        std::size_t seen = 0;
    };
    struct Logged {
        std::size_t id;
        Recorded what;
    };
    struct Peer {
        std::shared_ptr<Connection> connection;
        std::thread thread;
        std::shared_ptr<std::atomic<bool>> done;
    };

    mutable std::mutex mutex;  // of all below, up to `pauses`
    Options options;
    Store store;
    std::deque<Logged> log;
    std::size_t log_ids = 0;
    std::vector<Armed> faults;
    std::map<std::size_t, std::size_t> hits;
    std::size_t fault_numbers = 0;
    std::size_t connections = 0;
    std::uint64_t request_numbers = 0;
    std::function<void(const Recorded&, Phase)> hook;
    std::shared_ptr<SSL_CTX> tls;

    mutable Pauses pauses;
    std::atomic<std::int64_t> clock_offset{0};
    std::atomic<bool> stopping{false};
    std::uint16_t port = 0;
    std::string scheme_and_host;
    std::string certificate_path;

    std::mutex listening_mutex;
    std::condition_variable listening_changed;
    bool want_listening = true;
    bool is_listening = true;
    int listener = -1;
    std::array<int, 2> wake{{-1, -1}};
    std::thread acceptor;
    mutable std::mutex peers_mutex;
    std::list<Peer> peers;

    explicit Impl(Options given) : options(std::move(given)) {
        for (const std::string& bucket : options.buckets) store.buckets[bucket];
        if (options.tls) certificate_path = new_tls();
        if (pipe(wake.data()) != 0) throw std::runtime_error("fake_s3: no pipe");
        port = options.port;
        if (!open_listener())
            throw std::runtime_error("fake_s3: cannot listen on port " + std::to_string(options.port));
        scheme_and_host = (options.tls ? "https://127.0.0.1:" : "http://127.0.0.1:") + std::to_string(port);
        acceptor = std::thread([this] { accept_all(); });
    }

    ~Impl() {
        stopping = true;
        pauses.stop();
        wake_up();
        if (acceptor.joinable()) acceptor.join();
        for (Peer& peer : peers) peer.connection->interrupt();
        for (Peer& peer : peers) peer.thread.join();
        if (listener >= 0) close_socket(listener);
        for (int end : wake) close_socket(end);
        if (!certificate_path.empty()) unlink(certificate_path.c_str());
    }

    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    std::int64_t now() const {
        const auto since = std::chrono::system_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::seconds>(since).count() + clock_offset;
    }

    // ---- listening

    std::string new_tls() {  // the path of its certificate
        const auto key = new_key();
        const auto certificate = new_certificate(key.get(), options);
        std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SslDeleter());
        SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
        if (SSL_CTX_use_certificate(context.get(), certificate.get()) != 1 ||
            SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
            throw std::runtime_error("fake_s3: cannot use the certificate");
        }
        const std::lock_guard<std::mutex> lock(mutex);
        tls = std::move(context);
        return certificate_path.empty() ? write_pem(certificate.get()) : certificate_path;
    }

    bool open_listener() {
        listener = ::socket(AF_INET, SOCK_STREAM, 0);
        const int on = 1;
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (options.receive_buffer_bytes > 0) {
            setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &options.receive_buffer_bytes, sizeof(int));
        }
        fcntl(listener, F_SETFD, FD_CLOEXEC);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        sockaddr generic{};
        static_assert(sizeof generic == sizeof address, "both are 16 bytes");
        std::memcpy(&generic, &address, sizeof address);
        if (bind(listener, &generic, sizeof generic) != 0 || listen(listener, 512) != 0) return false;
        socklen_t size = sizeof generic;
        getsockname(listener, &generic, &size);
        std::memcpy(&address, &generic, sizeof address);
        if (port == 0) port = ntohs(address.sin_port);  // written once: other threads read it
        return true;
    }

    void wake_up() const {
        const char one = 1;
        if (::write(wake[1], &one, 1) < 0) return;
    }

    void accept_all() {
        sigset_t pipes;  // inherited by the threads of the connections
        sigemptyset(&pipes);
        sigaddset(&pipes, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &pipes, nullptr);
        while (!stopping) {
            follow_wish();
            std::array<pollfd, 2> both{{{wake[0], POLLIN, 0}, {listener, POLLIN, 0}}};
            if (poll(both.data(), listener < 0 ? 1 : 2, -1) < 0) continue;
            if (both[0].revents != 0) {
                char byte = 0;
                if (::read(wake[0], &byte, 1) < 0) continue;
            }
            if (listener >= 0 && both[1].revents != 0) accept_one();
        }
    }

    void follow_wish() {
        const std::lock_guard<std::mutex> lock(listening_mutex);
        if (want_listening == is_listening) return;
        if (want_listening) {
            open_listener();
        } else {
            close_socket(listener);
            listener = -1;
        }
        is_listening = want_listening;
        listening_changed.notify_all();
    }

    void set_listening(bool on) {
        std::unique_lock<std::mutex> lock(listening_mutex);
        want_listening = on;
        wake_up();
        listening_changed.wait(lock, [&] { return is_listening == on; });
    }

    void accept_one() {
        const int socket = ::accept(listener, nullptr, nullptr);
        if (socket < 0) return;
        fcntl(socket, F_SETFD, FD_CLOEXEC);
        const int on = 1;
        setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        std::size_t number = 0;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            number = ++connections;
        }
        Peer peer{std::make_shared<Connection>(socket, number, pauses), {}, std::make_shared<std::atomic<bool>>(false)};
        peer.thread = std::thread([this, connection = peer.connection, done = peer.done] {
            serve(*connection);
            connection->hang_up(false);
            OPENSSL_thread_stop();  // it takes locks, which no child that is forked behind `done` must inherit
            *done = true;
        });
        const std::lock_guard<std::mutex> lock(peers_mutex);
        for (auto it = peers.begin(); it != peers.end();) {
            const bool done =
                *it->done;  // asked once: it may end meanwhile, and a thread must be joined before it goes
            if (done) it->thread.join();
            it = done ? peers.erase(it) : std::next(it);
        }
        peers.push_back(std::move(peer));
    }

    // ---- faults and log

    Plan deal(const std::function<bool(const Fault&)>& matches) {
        Plan plan;
        const std::lock_guard<std::mutex> lock(mutex);
        for (Armed& armed : faults) {
            if (!matches(armed.fault)) continue;
            ++armed.seen;
            if (armed.seen < armed.fault.nth || armed.seen - armed.fault.nth >= armed.fault.times) continue;
            plan.push_back(armed.fault);
            ++hits[armed.number];
        }
        return plan;
    }

    Plan deal_for(const Request& request) {
        return deal([&](const Fault& fault) {
            return fault.at != Point::connect &&
                   (fault.operation.empty() || fault.operation == request.operation ||
                    fault.operation == request.method) &&
                   holds(request.key, fault.key) && holds(request.raw_query, fault.query);
        });
    }

    std::size_t record(const Request& request, std::size_t connection) {
        Recorded entry;
        entry.method = request.method;
        entry.target = request.target;
        entry.operation = request.operation;
        entry.bucket = request.bucket;
        entry.key = request.key;
        entry.headers = request.headers;
        entry.connection = connection;
        const std::lock_guard<std::mutex> lock(mutex);
        log.push_back({++log_ids, std::move(entry)});
        return log_ids;
    }

    template <typename Change>
    void amend(std::size_t id, Change change) {
        const std::lock_guard<std::mutex> lock(mutex);
        for (auto it = log.rbegin(); it != log.rend(); ++it) {
            if (it->id == id) return change(it->what);
        }
    }

    void call_hook(std::size_t id, Phase phase) {
        std::function<void(const Recorded&, Phase)> copy;
        std::optional<Recorded> what;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!hook) return;
            for (const Logged& logged : log) {
                if (logged.id == id) what = logged.what;
            }
            copy = hook;
        }
        if (what) copy(*what, phase);
    }

    // ---- one connection

    struct Turn {  // one request and what is to go wrong with it
        Connection& wire;
        const Options& options;
        Request request;
        Plan plan;
        std::size_t id = 0;
        bool body_read = false;
        bool keep = true;
    };

    Options snapshot() const {
        const std::lock_guard<std::mutex> lock(mutex);
        return options;
    }

    void serve(Connection& wire) {
        const Options first = snapshot();
        wire.bytes_per_second = first.connection_bytes_per_second;
        Turn greeting{wire, first, {}, deal([](const Fault& fault) { return fault.at == Point::connect; })};
        greeting.request.method = "GET";
        greeting.keep = false;
        if (!greeting.plan.empty() && apply_before_tls(greeting) == Next::ended) return;
        std::shared_ptr<SSL_CTX> context;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            context = tls;
        }
        if (context && !wire.secure(context.get())) return;
        for (const Fault& fault : greeting.plan) {
            if (fault.action == Action::respond || fault.action == Action::raw) {
                strike(greeting, fault);
                return wire.finish();
            }
        }
        bool open = true;
        while (open && !stopping) {
            if (first.idle_close.count() > 0 && !wire.readable(first.idle_close)) break;
            open = serve_one(wire);
        }
        wire.finish();
    }

    Next apply_before_tls(Turn& turn) {
        for (const Fault& fault : turn.plan) {
            if (fault.action == Action::respond || fault.action == Action::raw) continue;
            if (strike(turn, fault) == Next::ended) return Next::ended;
        }
        return Next::go_on;
    }

    // False: the connection is over.
    bool serve_one(Connection& wire) {
        std::string head;
        if (!wire.read_until(head, "\r\n\r\n", 65536)) return false;
        const Options given = snapshot();  // as they are when the request arrives, not when the one before was answered
        auto parsed = parse_head(std::string_view(head).substr(0, head.size() - 2), given.quirks);
        Turn turn{wire, given, parsed ? std::move(*parsed) : Request{}, {}};
        if (!parsed) {
            turn.keep = false;
            send_answer(turn, failed(turn, {400, "BadRequest", "An error occurred when parsing the HTTP request."}));
            return false;
        }
        Request& request = turn.request;
        route(request, given);
        request.operation = operation_of(request);
        turn.plan = deal_for(request);
        turn.id = record(request, wire.number);
        turn.keep = lower(request.header_or("connection")) != "close";
        const Next end = answer_one(turn);
        return end != Next::ended && turn.keep;
    }

    Next answer_one(Turn& turn) {
        Next next = apply(turn, Point::request_head);
        if (next != Next::go_on) return next;
        std::optional<Signature> signature;
        std::optional<Failure> failure = check_head(turn, signature);
        const bool expects = lower(turn.request.header_or("expect")) == "100-continue";
        if (failure &&
            (expects || failure->status == 501 || failure->status == 411 || failure->code == "EntityTooLarge")) {
            turn.keep = false;  // the body, if it comes, is not read
            return send_answer(turn, failed(turn, *failure));
        }
        for (std::size_t i = 0; i < continue_count(turn, expects); ++i) {
            if (!turn.wire.write("HTTP/1.1 100 Continue\r\n\r\n")) return Next::ended;
        }
        next = read_body(turn);
        if (next != Next::go_on) return next;
        turn.body_read = true;
        if (!failure) failure = check_body(turn.request, signature ? &*signature : nullptr);
        next = apply(turn, Point::before_effect);
        if (next != Next::go_on) return next;
        call_hook(turn.id, Phase::before_effect);
        Answer answer = failure ? failed(turn, *failure) : effect(turn);
        call_hook(turn.id, Phase::after_effect);
        next = apply(turn, Point::after_effect);
        return next == Next::go_on ? send_answer(turn, std::move(answer)) : next;
    }

    static std::size_t continue_count(const Turn& turn, bool expects) {
        for (const Fault& fault : turn.plan) {
            if (fault.action == Action::edit && fault.edit.continues) return *fault.edit.continues;
        }
        return expects ? 1 : 0;
    }

    std::optional<Failure> check_head(const Turn& turn, std::optional<Signature>& signature) const {
        const Request& request = turn.request;
        const bool chunked = request.header("transfer-encoding").has_value();
        if (chunked && !request.streaming()) {
            return Failure{501,
                           "NotImplemented",
                           "A header you provided implies functionality that is not implemented",
                           {{"Header", "Transfer-Encoding"}}};
        }
        const auto length = request.header("content-length");
        if (length && (chunked || !number(*length))) return Failure{400, "BadRequest", "Bad Content-Length"};
        if (!length && !chunked && (request.method == "PUT" || request.method == "POST")) {
            return Failure{411, "MissingContentLength", "You must provide the Content-Length HTTP header."};
        }
        if (!request.header("host")) return Failure{400, "InvalidRequest", "Missing Host header"};
        const bool odd = request.path != percent_encode(request.decoded_path, "/") || raw_query_odd(request);
        if (request.malformed_target || (odd && turn.options.strict_target_encoding)) {
            return Failure{400, "InvalidURI",
                           "Couldn't parse the specified URI: malformed, or not encoded as it must be signed."};
        }
        Checked checked = SignatureCheck(request, turn.options, now()).run();
        signature = std::move(checked.signature);
        if (checked.failure) return checked.failure;
        return check_sizes(turn, length ? number(*length).value_or(0) : 0);
    }

    static bool raw_query_odd(const Request& request) {
        if (request.raw_query.empty()) return false;
        for (const std::string& piece : split(request.raw_query, '&')) {
            const auto equals = piece.find('=');
            const std::string name = piece.substr(0, equals);
            const std::string value = equals == std::string::npos ? "" : piece.substr(equals + 1);
            for (const std::string* part : {&name, &value}) {
                const auto decoded = percent_decode(*part);
                if (!decoded || percent_encode(*decoded) != *part) return true;
            }
        }
        return false;
    }

    static std::optional<Failure> check_sizes(const Turn& turn, std::uint64_t length) {
        std::size_t head_bytes = 0;
        for (const Header& header : turn.request.headers) head_bytes += header.first.size() + header.second.size() + 4;
        if (head_bytes > 8192)
            return Failure{400, "RequestHeaderSectionTooLarge",
                           "Your request header section exceeds the maximum allowed size."};
        if (length > turn.options.object_bytes_max) {
            return Failure{400,
                           "EntityTooLarge",
                           "Your proposed upload exceeds the maximum allowed size",
                           {{"ProposedSize", std::to_string(length)},
                            {"MaxSizeAllowed", std::to_string(turn.options.object_bytes_max)}}};
        }
        return std::nullopt;
    }

    Next read_body(Turn& turn) {
        if (turn.request.header("transfer-encoding")) return read_chunked(turn);
        const std::uint64_t length = number(turn.request.header_or("content-length")).value_or(0);
        std::string& body = turn.request.body;
        std::vector<Fault> stops;
        for (const Fault& fault : turn.plan) {
            if (fault.at == Point::request_body && fault.action != Action::edit && fault.offset <= length)
                stops.push_back(fault);
        }
        std::stable_sort(stops.begin(), stops.end(),
                         [](const Fault& a, const Fault& b) { return a.offset < b.offset; });
        stops.emplace_back().offset = length;
        body.reserve(static_cast<std::size_t>((std::min)(length, std::uint64_t{1} << 26)));
        for (std::size_t i = 0; i < stops.size(); ++i) {
            while (body.size() < stops[i].offset) {
                const milliseconds idle = turn.options.body_idle_limit;
                if (idle.count() > 0 && !turn.wire.readable(idle)) {
                    turn.keep = false;
                    send_answer(turn, failed(turn, {400, "RequestTimeout",
                                                    "Your socket connection to the server was not read from or written "
                                                    "to within the timeout period."}));
                    return Next::ended;
                }
                const bool more = turn.wire.read(body, static_cast<std::size_t>(stops[i].offset) - body.size());
                note_body(turn, body.size());
                if (!more) return Next::ended;
            }
            if (i + 1 == stops.size()) break;
            const Next next = strike(turn, stops[i]);
            if (next != Next::go_on) return next;
        }
        return Next::go_on;
    }

    void note_body(const Turn& turn, std::uint64_t bytes) {
        amend(turn.id, [&](Recorded& entry) { entry.body_size = bytes; });
    }

    Next read_chunked(Turn& turn) {
        std::uint64_t wire_bytes = 0;
        while (true) {
            std::string line;
            if (!turn.wire.read_until(line, "\r\n", 1024)) return Next::ended;
            const auto size = hex_number(std::string_view(line).substr(0, line.find_first_of(";\r")));
            if (!size) return Next::ended;
            const std::size_t wanted = turn.request.body.size() + static_cast<std::size_t>(*size);
            while (turn.request.body.size() < wanted) {
                if (!turn.wire.read(turn.request.body, wanted - turn.request.body.size())) return Next::ended;
            }
            wire_bytes += line.size() + *size + 2;
            note_body(turn, wire_bytes);
            if (!turn.wire.read_until(line, "\r\n", 1024)) return Next::ended;
            if (*size == 0) return Next::go_on;
        }
    }

    Answer effect(const Turn& turn) {
        const std::lock_guard<std::mutex> lock(mutex);
        Operation operation(store, turn.options, turn.request, now(), scheme_and_host);
        for (const Fault& fault : turn.plan) operation.range_shift += fault.edit.range_shift;
        Answer out = operation.run();
        if (operation.failure) return failed_locked(turn, *operation.failure);
        return out;
    }

    Answer failed(const Turn& turn, const Failure& failure) {
        const std::lock_guard<std::mutex> lock(mutex);
        return failed_locked(turn, failure);
    }

    Answer failed_locked(const Turn& turn, Failure failure) {
        if (!turn.request.path.empty()) failure.details.emplace_back("Resource", turn.request.decoded_path);
        Answer out = xml_answer(error_xml(failure, request_id(request_numbers + 1)), failure.status);
        if (failure.status == 404 && turn.options.quirks.empty_404) out.own_body.clear();
        out.headers.insert(out.headers.end(), failure.headers.begin(), failure.headers.end());
        out.no_length = turn.request.method == "HEAD";
        return out;
    }

    static std::string request_id(std::uint64_t number) {
        std::array<char, 32> out{};
        std::snprintf(out.data(), out.size(), "FAKE%012llX", static_cast<unsigned long long>(number));
        return out.data();
    }

    // ---- answers

    Next apply(Turn& turn, Point at) {
        for (const Fault& fault : turn.plan) {
            if (fault.at != at || fault.action == Action::edit) continue;
            const Next next = strike(turn, fault);
            if (next != Next::go_on) return next;
        }
        return Next::go_on;
    }

    Next strike(Turn& turn, const Fault& fault) {
        switch (fault.action) {
        case Action::close:
            turn.wire.finish();
            return Next::ended;
        case Action::drop:
            turn.wire.drop();
            return Next::ended;
        case Action::reset:
            turn.wire.hang_up(true);
            return Next::ended;
        case Action::stall:
            return pauses.stand_still(fault.wait) ? Next::go_on : Next::ended;
        case Action::raw:
            turn.wire.write(fault.body);
            turn.wire.finish();
            return Next::ended;
        case Action::respond:
            return respond_with(turn, fault);
        case Action::edit:
            break;
        }
        return Next::go_on;
    }

    Next respond_with(Turn& turn, const Fault& fault) {
        Answer answer = xml_answer(fault.body, fault.status);
        if (fault.body.empty()) answer.headers.clear();
        answer.no_length = fault.status == 204 || fault.status == 304;
        for (const Header& header : fault.headers) set_header(answer.headers, header.first, header.second);
        const bool unread = !turn.body_read && turn.request.header_or("content-length", "0") != "0";
        const bool chunked = !turn.body_read && turn.request.header("transfer-encoding");
        if (unread || chunked) turn.keep = false;
        const Next next = send_answer(turn, std::move(answer), true);
        return next == Next::ended ? Next::ended : Next::answered;
    }

    std::string stamp(const Turn& turn, HeaderList& headers) {
        std::string id;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            id = request_id(++request_numbers);
        }
        HeaderList first = {{"x-amz-id-2", "ZmFrZSBob3N0IGlk/+="}, {"x-amz-request-id", id}};
        std::int64_t shift = 0;
        for (const Fault& fault : turn.plan) shift += fault.edit.date_shift;
        if (!turn.options.quirks.no_date) first.emplace_back("Date", http_date(now() + shift));
        if (shift < 0) first.emplace_back("Age", std::to_string(-shift));
        headers.insert(headers.begin(), first.begin(), first.end());
        set_header(headers, "Server", "FakeS3");
        return id;
    }

    static std::string edit_body(const Turn& turn, const Answer& answer, bool& edited) {
        std::string body;
        edited = false;
        for (const Fault& fault : turn.plan) {
            const Edit& edit = fault.edit;
            if (!edit.body && edit.body_prefix.empty() && !edit.cut_body && !edit.flip_bit) continue;
            if (!edited) body = std::string(answer.body());
            edited = true;
            if (edit.body) body = *edit.body;
            body.insert(0, edit.body_prefix);
            if (edit.cut_body && *edit.cut_body < body.size()) body.resize(*edit.cut_body);
            const std::uint64_t bit = edit.flip_bit.value_or(0);
            if (edit.flip_bit && bit / 8 < body.size()) {
                char& byte = body[static_cast<std::size_t>(bit / 8)];
                byte = static_cast<char>(static_cast<unsigned char>(byte) ^ (1U << (bit % 8)));
            }
        }
        return body;
    }

    struct Framing {
        bool length = true;
        bool chunked = false;
        std::string line_end = "\r\n";
        std::int64_t delta = 0;
    };

    static Framing edit_head(Turn& turn, Answer& answer) {
        Framing out;
        for (const Fault& fault : turn.plan) {
            const Edit& edit = fault.edit;
            if (edit.status) answer.status = *edit.status;
            for (const Header& header : edit.set_headers) set_header(answer.headers, header.first, header.second);
            for (const std::string& name : edit.remove_headers) remove_header(answer.headers, name);
            answer.headers.insert(answer.headers.end(), edit.add_headers.begin(), edit.add_headers.end());
            out.delta += edit.content_length_delta;
            if (edit.omit_content_length) out.length = false;
            if (edit.bare_lf) out.line_end = "\n";
            if (edit.close_after || edit.omit_content_length) turn.keep = false;
        }
        return out;
    }

    static std::string head_text(const Answer& answer, const Framing& framing) {
        std::string out = "HTTP/1.1 " + std::to_string(answer.status) + " " + reason(answer.status) + framing.line_end;
        for (const Header& header : answer.headers) out += header.first + ": " + header.second + framing.line_end;
        return out + framing.line_end;
    }

    Next send_answer(Turn& turn, Answer answer, bool scripted = false) {
        pauses.sleep(turn.options.answer_delay);
        const Quirks& quirks = turn.options.quirks;
        if (quirks.close_each || !turn.keep) {
            if (!(scripted && !turn.keep))
                set_header(answer.headers, "Connection", "close");  // a scripted early answer closes unannounced
            turn.keep = false;
        }
        if (quirks.close_each_silently) turn.keep = false;
        stamp(turn, answer.headers);
        bool edited = false;
        std::string other = edit_body(turn, answer, edited);
        Framing framing = edit_head(turn, answer);
        std::string_view body = edited ? std::string_view(other) : answer.body();
        framing.chunked = quirks.chunked_answers && !answer.stored && !body.empty() && !answer.no_length;
        if (framing.chunked) {
            set_header(answer.headers, "Transfer-Encoding", "chunked");
            std::array<char, 32> size{};
            std::snprintf(size.data(), size.size(), "%zx\r\n", body.size());
            other = size.data() + std::string(body) + "\r\n0\r\n\r\n";
            body = other;
        } else if (!answer.no_length && !answer.without_length && framing.length &&
                   find_header(answer.headers, "content-length") == nullptr) {
            const std::int64_t length = static_cast<std::int64_t>(body.size()) + framing.delta;
            answer.headers.emplace_back("Content-Length", std::to_string(length));
        }
        if (answer.no_length || turn.request.method == "HEAD") body = {};
        amend(turn.id, [&](Recorded& entry) { entry.status = answer.status; });
        const std::string head = head_text(answer, framing);
        return send_bytes(turn, head, body);
    }

    Next send_bytes(Turn& turn, std::string_view head, std::string_view body) {
        struct Stop {
            std::size_t at;
            const Fault* fault;
        };
        std::vector<Stop> stops;
        const Fault* dripping = nullptr;
        for (const Fault& fault : turn.plan) {
            if (fault.edit.drip_bytes > 0) dripping = &fault;
            if (fault.action == Action::edit || !is_answer_point(fault.at)) continue;
            const auto offset = static_cast<std::size_t>(fault.offset);
            const std::size_t at = fault.at == Point::answer_head   ? (std::min)(offset, head.size())
                                   : fault.at == Point::answer_body ? head.size() + (std::min)(offset, body.size())
                                                                    : head.size() + body.size();
            stops.push_back({at, &fault});
        }
        std::stable_sort(stops.begin(), stops.end(), [](const Stop& a, const Stop& b) { return a.at < b.at; });
        stops.push_back({head.size() + body.size(), nullptr});
        if (body.size() < 4096 && stops.size() == 1 && dripping == nullptr) {  // one packet
            const std::string whole = std::string(head) + std::string(body);
            return turn.wire.write(whole) ? Next::go_on : Next::ended;
        }
        std::size_t sent = 0;
        for (const Stop& stop : stops) {
            if (!send_piece(turn, head, body, sent, stop.at, dripping)) return Next::ended;
            sent = stop.at;
            if (stop.fault == nullptr) continue;
            if (strike(turn, *stop.fault) == Next::ended) return Next::ended;
        }
        return Next::go_on;
    }

    static bool send_piece(Turn& turn, std::string_view head, std::string_view body, std::size_t from, std::size_t to,
                           const Fault* dripping) {
        if (from < head.size()) {
            const bool slow = dripping != nullptr && dripping->at == Point::answer_head;
            const std::string_view piece = head.substr(from, (std::min)(to, head.size()) - from);
            if (!turn.wire.write(piece, slow ? dripping->edit.drip_bytes : 0,
                                 slow ? dripping->edit.drip_wait : milliseconds{0}))
                return false;
            from = (std::min)(to, head.size());
        }
        if (to <= head.size() || to <= from) return true;
        return turn.wire.write(body.substr(from - head.size(), to - from),
                               dripping != nullptr ? dripping->edit.drip_bytes : 0,
                               dripping != nullptr ? dripping->edit.drip_wait : milliseconds{0});
    }
};

// ---- the public face ----------------------------------------------------------------------------------------------

FakeS3::FakeS3(Options options) : impl(std::make_unique<Impl>(std::move(options))) {}
FakeS3::~FakeS3() = default;

std::string FakeS3::endpoint() const { return impl->scheme_and_host; }
std::string FakeS3::host_endpoint() const {
    return (impl->certificate_path.empty() ? "http://localhost:" : "https://localhost:") + std::to_string(impl->port);
}
std::uint16_t FakeS3::port() const { return impl->port; }
std::string FakeS3::ca_file() const { return impl->certificate_path; }
std::string FakeS3::access_key() const { return impl->snapshot().keys.at(0).access_key; }
std::string FakeS3::secret_key() const { return impl->snapshot().keys.at(0).secret_key; }
std::string FakeS3::region() const { return impl->snapshot().region; }

void FakeS3::create_bucket(const std::string& bucket) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->store.buckets[bucket];
}

void FakeS3::put_object(const std::string& bucket, const std::string& key, std::string body,
                        const HeaderList& headers) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    Entry entry;
    for (const Header& header : headers) {
        const std::string name = lower(header.first);
        if (starts(name, "x-amz-meta-"))
            entry.metadata.emplace_back(name.substr(11), header.second);
        else
            entry.headers.emplace_back(name, header.second);
    }
    if (find_header(entry.headers, "content-type") == nullptr)
        entry.headers.emplace_back("content-type", "binary/octet-stream");
    entry.etag = impl->store.new_etag(body, impl->options);
    entry.body = std::make_shared<const std::string>(std::move(body));
    entry.modified = impl->now();
    impl->store.buckets[bucket].objects[key] = std::move(entry);
}

std::optional<StoredObject> FakeS3::object(const std::string& bucket, const std::string& key) const {
    Entry entry;
    {
        const std::lock_guard<std::mutex> lock(impl->mutex);
        const auto found = impl->store.buckets.find(bucket);
        if (found == impl->store.buckets.end()) return std::nullopt;
        const auto object = found->second.objects.find(key);
        if (object == found->second.objects.end()) return std::nullopt;
        entry = object->second;
    }
    return StoredObject{*entry.body, entry.metadata, entry.headers, entry.etag, entry.modified, entry.parts};
}

std::vector<std::string> FakeS3::keys(const std::string& bucket) const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    std::vector<std::string> out;
    const auto found = impl->store.buckets.find(bucket);
    if (found == impl->store.buckets.end()) return out;
    for (const auto& pair : found->second.objects) out.push_back(pair.first);
    return out;
}

bool FakeS3::erase(const std::string& bucket, const std::string& key) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    return impl->store.buckets[bucket].objects.erase(key) != 0;
}

void FakeS3::erase_all() {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    for (auto& pair : impl->store.buckets) pair.second.objects.clear();
    impl->store.uploads.clear();
}

std::size_t FakeS3::object_count(const std::string& bucket) const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    std::size_t count = 0;
    for (const auto& pair : impl->store.buckets) {
        if (bucket.empty() || pair.first == bucket) count += pair.second.objects.size();
    }
    return count;
}

std::vector<OpenUpload> FakeS3::open_uploads() const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    std::vector<OpenUpload> out;
    for (const auto& pair : impl->store.uploads) {
        OpenUpload upload{pair.second.bucket, pair.second.key, pair.first, pair.second.initiated, {}};
        for (const auto& part : pair.second.parts) upload.parts.emplace_back(part.first, part.second.body->size());
        out.push_back(std::move(upload));
    }
    return out;
}

void FakeS3::deny_key(const std::string& key, bool is_denied) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    if (is_denied)
        impl->store.denied_keys.insert(key);
    else
        impl->store.denied_keys.erase(key);
}

void FakeS3::refuse_in_bulk(const std::string& key, const std::string& code, std::size_t times, bool named) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->store.bulk_refusals[key] = {code, times, named};
}

void FakeS3::demand_header(const std::string& operation, const std::string& name_begins) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->store.demands.emplace_back(operation, name_begins);
}

std::vector<Recorded> FakeS3::requests() const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    std::vector<Recorded> out;
    for (const auto& logged : impl->log) out.push_back(logged.what);
    return out;
}

std::size_t FakeS3::request_count(std::string_view operation) const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    return static_cast<std::size_t>(std::count_if(impl->log.begin(), impl->log.end(), [&](const auto& logged) {
        return operation.empty() || logged.what.operation == operation || logged.what.method == operation;
    }));
}

void FakeS3::clear_requests() {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->log.clear();
}

std::size_t FakeS3::connection_count() const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    return impl->connections;
}

std::size_t FakeS3::open_connection_count() const {
    const std::lock_guard<std::mutex> lock(impl->peers_mutex);
    return static_cast<std::size_t>(
        std::count_if(impl->peers.begin(), impl->peers.end(), [](const auto& peer) { return !*peer.done; }));
}

std::size_t FakeS3::add_fault(Fault fault) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->faults.push_back({++impl->fault_numbers, std::move(fault)});
    return impl->fault_numbers;
}

void FakeS3::clear_faults() {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->faults.clear();
}

std::size_t FakeS3::fault_hits(std::size_t fault_number) const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    const auto found = impl->hits.find(fault_number);
    return found == impl->hits.end() ? 0 : found->second;
}

std::size_t FakeS3::fault_hits() const {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    std::size_t count = 0;
    for (const auto& pair : impl->hits) count += pair.second;
    return count;
}

std::size_t FakeS3::stalled() const { return impl->pauses.count(); }
bool FakeS3::wait_for_stalled(std::size_t count, std::chrono::milliseconds limit) const {
    return impl->pauses.wait_for(count, limit);
}
void FakeS3::release_stalls() { impl->pauses.release(); }
void FakeS3::end_stalls() { impl->pauses.break_off(); }

void FakeS3::set_clock_offset(std::int64_t seconds) { impl->clock_offset = seconds; }
void FakeS3::set_clock(std::int64_t unix_seconds) {
    impl->clock_offset = 0;
    impl->clock_offset = unix_seconds - impl->now();
}
std::int64_t FakeS3::now() const { return impl->now(); }

void FakeS3::set_keys(std::vector<Key> keys) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->options.keys = std::move(keys);
}

void FakeS3::set_quirks(Quirks quirks) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->options.quirks = quirks;
}

Quirks FakeS3::quirks() const { return impl->snapshot().quirks; }

void FakeS3::set_list_page_max(std::size_t keys_a_page) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->options.list_page_max = keys_a_page;
}

void FakeS3::set_listening(bool on) { impl->set_listening(on); }

void FakeS3::close_connections() {
    const std::lock_guard<std::mutex> lock(impl->peers_mutex);
    for (auto& peer : impl->peers) peer.connection->interrupt();
}

void FakeS3::swap_certificate() {
    if (!impl->certificate_path.empty()) impl->new_tls();
}

void FakeS3::on_request(std::function<void(const Recorded&, Phase)> hook) {
    const std::lock_guard<std::mutex> lock(impl->mutex);
    impl->hook = std::move(hook);
}

std::optional<std::string> Recorded::header(std::string_view name) const {
    std::optional<std::string> out;
    for (const Header& one : headers) {
        if (lower(one.first) == lower(name)) out = out ? *out + "," + one.second : one.second;
    }
    return out;
}

// ---- quirks by name -----------------------------------------------------------------------------------------------

namespace {

const std::vector<std::pair<std::string, bool Quirks::*>>& quirk_table() {
    static const std::vector<std::pair<std::string, bool Quirks::*>> table{
        {"drop-underscore-headers", &Quirks::drop_underscore_headers},
        {"metadata-dashes", &Quirks::metadata_dashes},
        {"metadata-capitals", &Quirks::metadata_capitals},
        {"ignore-conditional-put", &Quirks::ignore_conditional_put},
        {"ignore-conditional-complete", &Quirks::ignore_conditional_complete},
        {"ignore-conditional-delete", &Quirks::ignore_conditional_delete},
        {"refuse-conditional-put", &Quirks::refuse_conditional_put},
        {"refuse-delete-objects", &Quirks::refuse_delete_objects},
        {"refuse-upload-lists", &Quirks::refuse_upload_lists},
        {"delete-objects-needs-md5", &Quirks::delete_objects_needs_md5},
        {"ignore-encoding-type", &Quirks::ignore_encoding_type},
        {"close-each", &Quirks::close_each},
        {"close-each-silently", &Quirks::close_each_silently},
        {"enforce-region", &Quirks::enforce_region},
        {"redirect-region", &Quirks::redirect_region},
        {"ignore-range", &Quirks::ignore_range},
        {"equal-parts", &Quirks::equal_parts},
        {"etag-not-md5", &Quirks::etag_not_md5},
        {"no-date", &Quirks::no_date},
        {"empty-404", &Quirks::empty_404},
        {"forbidden-for-missing", &Quirks::forbidden_for_missing},
        {"refuse-dot-keys", &Quirks::refuse_dot_keys},
        {"refuse-aws-chunked", &Quirks::refuse_aws_chunked},
        {"chunked-answers", &Quirks::chunked_answers},
        {"empty-list-pages", &Quirks::empty_list_pages},
        {"endless-lists", &Quirks::endless_lists},
        {"reversed-lists", &Quirks::reversed_lists},
        {"capital-true", &Quirks::capital_true},
        {"raw-controls", &Quirks::raw_controls},
        {"raw-markers", &Quirks::raw_markers},
        {"weak-etags", &Quirks::weak_etags},
        {"head-without-length", &Quirks::head_without_length},
        {"copy-without-etag", &Quirks::copy_without_etag},
        {"refuse-copy-condition", &Quirks::refuse_copy_condition},
        {"all-copy-conditions", &Quirks::all_copy_conditions},
        {"join-metadata", &Quirks::join_metadata},
        {"other-create-root", &Quirks::other_create_root},
    };
    return table;
}

}  // namespace

std::vector<std::string> quirk_names() {
    std::vector<std::string> out;
    for (const auto& pair : quirk_table()) out.push_back(pair.first);
    for (const char* name : {"anonymous", "unsigned-payload", "region=NAME", "page=KEYS", "delay=MS", "bandwidth=BYTES",
                             "part-min=BYTES", "idle-close=MS", "body-idle=MS"}) {
        out.emplace_back(name);
    }
    return out;
}

bool apply_quirk(Options& options, std::string_view name) {
    const auto equals = name.find('=');
    std::string wanted(name.substr(0, equals));
    std::replace(wanted.begin(), wanted.end(), '_', '-');
    if (equals == std::string_view::npos) {
        for (const auto& pair : quirk_table()) {
            if (pair.first == wanted) return options.quirks.*pair.second = true;
        }
        if (wanted == "anonymous") return options.allow_anonymous = true;
        if (wanted == "unsigned-payload") return options.allow_unsigned_payload_over_http = true;
        return false;
    }
    const std::string_view text = name.substr(equals + 1);
    if (wanted == "region") return !(options.region = std::string(text)).empty();
    const auto value = number(text);
    if (!value) return false;
    const auto time = milliseconds{static_cast<std::int64_t>(*value)};
    if (wanted == "page")
        options.list_page_max = static_cast<std::size_t>(*value);
    else if (wanted == "delay")
        options.answer_delay = time;
    else if (wanted == "bandwidth")
        options.connection_bytes_per_second = *value;
    else if (wanted == "part-min")
        options.part_bytes_min = *value;
    else if (wanted == "idle-close")
        options.idle_close = time;
    else if (wanted == "body-idle")
        options.body_idle_limit = time;
    else
        return false;
    return true;
}

// ---- scripted faults ----------------------------------------------------------------------------------------------

Fault Fault::on(std::string operation_or_method) const {
    Fault out = *this;
    out.operation = std::move(operation_or_method);
    return out;
}

Fault Fault::for_key(std::string substring) const {
    Fault out = *this;
    out.key = std::move(substring);
    return out;
}

Fault Fault::with_query(std::string substring) const {
    Fault out = *this;
    out.query = std::move(substring);
    return out;
}

Fault Fault::nth_time(std::size_t first) const {
    Fault out = *this;
    out.nth = first;
    return out;
}

Fault Fault::for_times(std::size_t count) const {
    Fault out = *this;
    out.times = count;
    return out;
}

Fault Fault::placed(Point point, std::uint64_t bytes) const {
    Fault out = *this;
    out.at = point;
    out.offset = bytes;
    return out;
}

namespace {

Fault acting(Action action, Point at, std::uint64_t offset) {
    Fault out;
    out.action = action;
    out.at = at;
    out.offset = offset;
    return out;
}

}  // namespace

Fault close_at(Point at, std::uint64_t offset) { return acting(Action::close, at, offset); }
Fault drop_at(Point at, std::uint64_t offset) { return acting(Action::drop, at, offset); }
Fault reset_at(Point at, std::uint64_t offset) { return acting(Action::reset, at, offset); }

Fault stall_at(Point at, std::chrono::milliseconds wait, std::uint64_t offset) {
    Fault out = acting(Action::stall, at, offset);
    out.wait = wait;
    return out;
}

Fault lost_answer() { return close_at(Point::after_effect); }

Fault respond(int status, std::string body, HeaderList headers) {
    Fault out = acting(Action::respond, Point::before_effect, 0);
    out.status = status;
    out.body = std::move(body);
    out.headers = std::move(headers);
    return out;
}

Fault respond_error(int status, std::string_view code, std::string_view message, HeaderList headers) {
    return respond(status, error_xml({status, std::string(code), std::string(message)}, "FAKESCRIPTED"),
                   std::move(headers));
}

Fault slow_down(std::string retry_after) {
    HeaderList headers;
    if (!retry_after.empty()) headers.emplace_back("Retry-After", std::move(retry_after));
    return respond_error(503, "SlowDown", "Please reduce your request rate.", std::move(headers));
}

Fault error_in_200(std::string_view code) {
    return respond_error(200, code, "We encountered an internal error. Please try again.");
}
Fault expired_token() { return respond_error(400, "ExpiredToken", "The provided token has expired."); }

Fault html_page(int status) {
    return respond(
        status,
        "<!DOCTYPE html><html><head><title>Gateway</title></head><body><p>Not S3 &mdash; sorry<br></body></html>",
        {{"Content-Type", "text/html; charset=utf-8"}});
}

Fault raw_bytes(std::string bytes) {
    Fault out = acting(Action::raw, Point::before_effect, 0);
    out.body = std::move(bytes);
    return out;
}

Fault garbage() { return raw_bytes("\x16\x03\x01\xff\xfe SSH-2.0-nothing\r\n\x01\x02\r\n\r\n"); }

Fault edit_answer(Edit edit) {
    Fault out;
    out.edit = std::move(edit);
    return out;
}

Fault cut_body(std::uint64_t after) { return close_at(Point::answer_body, after); }

Fault truncated_xml(std::size_t keep) {
    Edit edit;
    edit.cut_body = keep;
    return edit_answer(std::move(edit));
}

Fault flip_bit(std::uint64_t bit) {
    Edit edit;
    edit.flip_bit = bit;
    return edit_answer(std::move(edit));
}

Fault wrong_length(std::int64_t delta) {
    Edit edit;
    edit.content_length_delta = delta;
    edit.close_after = true;  // else a client waits for what never comes
    return edit_answer(std::move(edit));
}

Fault no_length() {
    Edit edit;
    edit.omit_content_length = true;
    return edit_answer(std::move(edit));
}

Fault wrong_content_range(std::string value) {
    Edit edit;
    edit.set_headers = {{"Content-Range", std::move(value)}};
    return edit_answer(std::move(edit));
}

Fault other_range(std::int64_t shift) {
    Edit edit;
    edit.range_shift = shift;
    return edit_answer(std::move(edit));
}

Fault other_date(std::int64_t seconds_off) {
    Edit edit;
    edit.date_shift = seconds_off;
    return edit_answer(std::move(edit));
}

Fault duplicate_header(std::string name, std::string value) {
    Edit edit;
    edit.add_headers = {{std::move(name), std::move(value)}};
    return edit_answer(std::move(edit));
}

Fault huge_header(std::size_t bytes) { return duplicate_header("X-Filler", std::string(bytes, 'x')); }

Fault bare_lf() {
    Edit edit;
    edit.bare_lf = true;
    return edit_answer(std::move(edit));
}

Fault continues(std::size_t how_many) {
    Edit edit;
    edit.continues = how_many;
    return edit_answer(std::move(edit));
}

Fault drip(std::size_t bytes, std::chrono::milliseconds wait) {
    Edit edit;
    edit.drip_bytes = bytes;
    edit.drip_wait = wait;
    return edit_answer(std::move(edit));
}

}  // namespace fake_s3
