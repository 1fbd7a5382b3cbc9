// Everything that credentials, region and endpoint are read from: variables, files, answers of services, a program's output.
// The sections of an input, separated by lines of "--": variables (NAME=value a line), the configuration file, the
// credentials file, any other file, a program's output, then answers of services, in the order in which they are asked for,
// each with its status in the first line. Held to: keys, or one reason that a terminal can show and that holds no secret;
// questions of a bounded number and with nothing in them that belongs into another part of a request.
#include "fuzz.hpp"

#include <map>

namespace fuzz_credentials {

using fuzz::require;
namespace cred = s3cache::detail::credentials;
namespace bytes = s3cache::detail::bytes;
namespace endpoint = s3cache::detail::endpoint;
using s3cache::TimePoint;
using Text = s3cache::Result<std::string>;

constexpr std::size_t secret_bytes_min = 12;  // a shorter one may be in a text by chance
constexpr std::size_t questions_max = 200;

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN

class Outside : public cred::Environment {
public:
    explicit Outside(std::string_view input) : input_(input), sections_(fuzz::pieces(input, "\n--\n")) {
        for (std::string_view line : fuzz::pieces(fuzz::piece(sections_, 0), "\n")) {
            const std::size_t equals = line.find('=');
            if (equals != std::string_view::npos)
                variables_[std::string(line.substr(0, equals))] = line.substr(equals + 1);
        }
    }

    s3cache::Config config() const {
        s3cache::Config out;
        out.seams.environment = [this](const char* name) -> std::optional<std::string> {
            const auto at = variables_.find(name);
            if (at == variables_.end()) return std::nullopt;
            return std::string(at->second.substr(0, at->second.find('\0')));  // no variable holds a NUL
        };
        return out;
    }

    Text read_file(const std::string& path) override { return file(path); }
    cred::WebAnswer fetch(const cred::WebRequest& request, const cred::Limits&) override { return answer(request); }
    TimePoint now() const override { return TimePoint{std::chrono::hours(24) * 20454}; }
    void pause(std::chrono::milliseconds, const cred::Limits&) override {}
    Text run_process(const std::vector<std::string>& argv, const cred::Limits&) override {
        require(!argv.empty() && !argv.front().empty(), "a program has a name");
        return std::string(fuzz::piece(sections_, 4));
    }

    // Whether a text of that length can only be the secret itself.
    bool only_once(std::string_view text) const {
        const std::size_t at = input_.find(text);
        return text.size() >= secret_bytes_min && at != std::string_view::npos &&
               input_.find(text, at + 1) == std::string_view::npos;
    }

private:
    Text file(const std::string& path) {
        const std::size_t section = bytes::ends_with(path, "config")        ? 1
                                    : bytes::ends_with(path, "credentials") ? 2
                                                                            : 3;
        return std::string(fuzz::piece(sections_, section));
    }

    cred::WebAnswer answer(const cred::WebRequest& request) {
        check(request);
        require(++asked_ < questions_max, "an end of asking");
        cred::WebAnswer out;
        const std::string_view text = fuzz::piece(sections_, 4 + asked_);
        const std::size_t line = (std::min)(text.find('\n'), text.size());
        out.status = static_cast<int>(bytes::to_u64(text.substr(0, line)).value_or(0) % 1000);
        out.body = text.substr((std::min)(line + 1, text.size()));
        return out;
    }

    static void check(const cred::WebRequest& request) {
        using s3cache::detail::http::Method;
        require(request.method != Method::head && request.method != Method::erase, "a method");
        for (char c : request.url)
            require(bytes::octet(c) > 0x20 && bytes::octet(c) != 0x7F, "a URL has no blanks and controls");
        require(bytes::starts_with(request.url, "http://") || bytes::starts_with(request.url, "https://"),
                "http or https");
        for (const auto& [name, value] : request.headers)
            require(!fuzz::has_control(name) && !fuzz::has_control(value), "a header is one line");
    }

    std::string_view input_;
    std::vector<std::string_view> sections_;
    std::map<std::string, std::string_view> variables_{};
    std::size_t asked_ = 0;
};

inline void check_text(std::string_view text) {
    require(!fuzz::has_control(text), "a text for a terminal");
    require(text.size() < 10000, "a text for a person");
}

inline void check_keys(const Outside& outside, const s3cache::Credentials& keys) {
    require(!keys.access_key.empty() && !keys.secret_key.empty(), "both halves");
    for (const std::string* part : {&keys.access_key, &keys.secret_key, &keys.session_token}) {
        require(!fuzz::has_control(*part), "keys go into headers");
    }
    for (const std::string* secret : {&keys.secret_key, &keys.session_token}) {
        if (outside.only_once(*secret))
            require(keys.source.find(*secret) == std::string::npos, "a source shows no secret");
    }
    check_text(keys.source);
}

FUZZ_TARGET(credentials) {
    Outside outside(input);
    const s3cache::Config config = outside.config();
    cred::Provider chain(outside, config);
    const auto keys = chain.find({});
    if (keys)
        check_keys(outside, *keys);
    else
        check_text(keys.error().what());
    const auto region = cred::Walk(outside, config).region();
    require(!region || region->value.empty() || endpoint::valid_region(region->value), "a region is one, or wrong");
    check_text(region ? region->why : region.error().what());
    const auto url = cred::Walk(outside, config).endpoint_url("S3");
    require(!url || url->value.empty() || endpoint::parse_url(url->value).has_value(), "an endpoint is one, or wrong");
    check_text(url ? url->why : url.error().what());
    for (const s3cache::Finding& finding : chain.explain()) {
        check_text(finding.text);
        if (!keys) continue;
        s3cache::Credentials others = *keys;  // a secret may read like our own words
        others.secret_key.clear();
        others.session_token.clear();
        if (finding.text == cred::summary(others)) continue;
        for (const std::string* secret : {&keys->secret_key, &keys->session_token})
            require(!outside.only_once(*secret) || finding.text.find(*secret) == std::string::npos,
                    "nor does the doctor");
    }
}

#else

FUZZ_TARGET(credentials) { static_cast<void>(input); }

#endif

}  // namespace fuzz_credentials
