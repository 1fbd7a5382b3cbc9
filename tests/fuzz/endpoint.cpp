// Locations and endpoints. The lines of an input are: a location, an endpoint URL, a region, switches. Held to: a host that
// is resolved has nothing in it that belongs into another part of a URL, a URL that is built reads back as it is, and every
// location that is written out reads back.
#include "fuzz.hpp"

namespace fuzz_endpoint {

using fuzz::require;
namespace endpoint = s3cache::detail::endpoint;
namespace bytes = s3cache::detail::bytes;
using s3cache::Addressing;

inline bool is_host_char(char c) {
    return (c >= 'a' && c <= 'z') || bytes::is_digit(c) || c == '-' || c == '.' || c == '_';
}

inline void check_port(std::string_view port, std::string_view scheme) {
    const auto number = bytes::to_u64(port);
    require(number && *number > 0 && *number <= 65535 && port.front() != '0', "a port is a port");
    require(*number != (scheme == "https" ? 443U : 80U), "the scheme's own port is not written");
}

// host[:port] or [address][:port] in lower case, and nothing else: this text is sent, signed and resolved.
inline void check_host(std::string_view host, std::string_view scheme) {
    std::size_t end = 0;
    if (bytes::starts_with(host, "[")) {
        end = host.find(']');
        require(end != std::string_view::npos && end > 1, "brackets come in pairs");
        for (char c : host.substr(1, end - 1)) {
            require(bytes::hex_value(c) >= 0 || c == ':' || c == '.', "an address holds nothing else");
        }
        ++end;
    } else {
        while (end < host.size() && is_host_char(host[end])) ++end;
        require(end > 0, "a host is not empty");
    }
    require(host == bytes::lower(host), "lower case");
    if (end == host.size()) return;
    require(host[end] == ':', "nothing but a port follows");
    check_port(host.substr(end + 1), scheme);
}

inline void check_path(std::string_view path) {
    require(path.empty() || (path.front() == '/' && path.back() != '/'), "a path begins with a slash and ends without");
    for (std::size_t i = 0; i < path.size(); ++i) {
        if (path[i] != '%') {
            require(fuzz::is_unreserved(path[i]) || path[i] == '/', "only unreserved bytes stand as they are");
        } else {
            require(i + 2 < path.size() && bytes::hex_value(path[i + 1]) >= 0 && bytes::hex_value(path[i + 2]) >= 0,
                    "escapes are whole");
        }
    }
}

// What resolve() is given, in one piece.
struct Options {
    std::string bucket{}, region{}, endpoint_url{};
    s3cache::Config config{};
};

inline void check_endpoint(const endpoint::Endpoint& found, const Options& options) {
    require(found.scheme == "http" || found.scheme == "https", "http or https");
    require(!options.endpoint_url.empty() || found.scheme == "https", "AWS is asked over TLS");
    check_host(found.host, found.scheme);
    check_path(found.path);
    require(endpoint::valid_region(found.signing_region), "what is signed is a region");
    const auto again = endpoint::parse_url(found.url());
    require(again && again->scheme == found.scheme && again->host == found.host, "the URL names the same host");
    // What is no bucket is encoded all the same, but then a slash of its own does not come back as one.
    require(!endpoint::valid_bucket(options.bucket) || again->path == found.path, "and the same path");
    if (!options.endpoint_url.empty()) return;
    require(found.host.find(':') == std::string::npos, "AWS has no ports");
    bool known = false;
    for (std::string_view suffix : {".amazonaws.com", ".amazonaws.com.cn", ".c2s.ic.gov", ".sc2s.sgov.gov",
                                    ".cloud.adc-e.uk", ".csp.hci.ic.gov", ".amazonaws.eu"}) {
        known = known || bytes::ends_with(found.host, suffix);
    }
    require(known, "without an endpoint of one's own, only AWS is asked");
}

inline void check_problem(const s3cache::Error& error) {
    const std::string_view text = error.what();
    require(!text.empty() && !fuzz::has_control(text) && text.size() < 1000, "a problem is one line for a person");
}

inline void check_resolve(const Options& options) {
    const auto result = endpoint::resolve(options.bucket, options.region, options.endpoint_url, options.config);
    if (!result) return check_problem(result.error());
    require(endpoint::valid_region(options.region), "a region that is none is refused");
    check_endpoint(*result, options);
    if (!endpoint::valid_bucket(options.bucket)) return;
    const std::string_view bucket = options.bucket;
    require(bucket != "." && bucket != "..", "a bucket is no step in a path");
    const endpoint::Endpoint& found = *result;
    if (found.path_style) {
        require(bytes::ends_with(found.path, "/" + options.bucket), "the bucket is the end of the path");
    } else {
        require(bytes::starts_with(found.host, options.bucket + "."), "the bucket is the front of the host");
        require(options.config.addressing != Addressing::path, "a path that was asked for");
    }
}

inline std::string percent(std::string_view raw) {
    std::string out;
    bytes::append_percent(out, raw, false);
    return out;
}

inline std::string written(const endpoint::Location& location, const s3cache::Config& config) {
    std::string out = "s3://" + location.bucket + (location.prefix.empty() ? "" : "/") + location.prefix + "?";
    if (!config.region.empty()) out += "region=" + percent(config.region) + "&";
    if (!config.endpoint.empty()) out += "endpoint=" + percent(config.endpoint) + "&";
    if (config.addressing != Addressing::automatic)
        out += std::string("path_style=") + (config.addressing == Addressing::path ? "true&" : "false&");
    return out + "part_bytes=" + std::to_string(config.part_bytes);
}

inline void check_location(std::string_view text) {
    s3cache::Config config, copy;
    const auto location = endpoint::parse_location(text, config);
    if (!location) return check_problem(location.error());
    require(endpoint::valid_bucket(location->bucket), "a bucket that is none is refused");
    require(!fuzz::has_control(location->bucket), "a bucket goes into headers and messages");
    require(location->prefix.empty() || location->prefix.back() == '/', "a prefix ends with a slash");
    require(text.find(location->bucket) != std::string_view::npos, "the bucket stands in the text");
    const std::string text_again = written(*location, config);
    const auto again = endpoint::parse_location(text_again, copy);
    require(again && again->bucket == location->bucket && again->prefix == location->prefix,
            "written out it is the same");
    require(copy.region == config.region && copy.endpoint == config.endpoint, "with its parameters");
    require(copy.addressing == config.addressing && copy.part_bytes == config.part_bytes, "all of them");
}

inline void check_url(std::string_view text) {
    const auto url = endpoint::parse_url(text);
    if (!url) return;
    check_host(url->host, url->scheme);
    check_path(url->path);
    const auto again = endpoint::parse_url(url->scheme + "://" + url->host + url->path + "/");
    require(again && again->host == url->host && again->path == url->path, "a URL reads back as it is");
    require(again->is_address == url->is_address, "an address stays one");
}

FUZZ_TARGET(endpoint) {
    const auto lines = fuzz::pieces(input, "\n");
    for (std::string_view line : lines) check_url(line), check_location(line);
    s3cache::Config config;
    const auto parsed = endpoint::parse_location(fuzz::piece(lines, 0), config);
    Options options;
    options.bucket = parsed ? parsed->bucket : std::string(fuzz::piece(lines, 0));
    options.endpoint_url = fuzz::piece(lines, 1);
    options.region = fuzz::piece(lines, 2).empty() ? "us-east-1" : std::string(fuzz::piece(lines, 2));
    if (parsed && !config.endpoint.empty()) options.endpoint_url = config.endpoint;
    if (parsed && !config.region.empty()) options.region = config.region;
    const auto has = [&](char c) { return fuzz::piece(lines, 3).find(c) != std::string_view::npos; };
    options.config.dual_stack = has('d');
    options.config.fips = has('f');
    options.config.accelerate = has('a');
    for (Addressing addressing : {Addressing::automatic, Addressing::path, Addressing::virtual_host}) {
        options.config.addressing = addressing;
        if (!options.bucket.empty()) check_resolve(options);
    }
}

}  // namespace fuzz_endpoint
