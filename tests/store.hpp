// The store that a test runs on: a fake one in this process, over http and over TLS, or a real one that the environment
// names. A client of its own (Raw) looks at what is stored, and writes what other programs would: it signs for itself.
//
//   S3CACHE_TEST_ENDPOINT      an S3-compatible store, http or https; unset: the fake
//   S3CACHE_TEST_TLS_ENDPOINT  the same store over TLS, with S3CACHE_TEST_CA the certificate to trust
//   S3CACHE_TEST_HOST_ENDPOINT the same store by a name that BUCKET. may stand in front of; unset: virtual-host style is not tried
//   S3CACHE_TEST_BUCKET        a bucket to use, below a prefix of the run's own; unset: one is made and removed
//   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
//
// What a store lacks is found out by the plain client, and tests that need it are skipped by name, each with a line "skip  ...".
#pragma once

#include "catch.hpp"
#include "fake_s3.hpp"
#include "s3cache.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <curl/curl.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <unistd.h>
#include <zlib.h>

namespace store {
// As in the header: one program may hold both modes, whose inline functions must not be taken for each other.
inline namespace S3CACHE_ABI {

using Headers = std::vector<std::pair<std::string, std::string>>;

// ---- data ---------------------------------------------------------------------------------------------------------

inline std::string random_bytes(std::size_t size, std::uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::string out(size, '\0');
    for (std::size_t at = 0; at < size; at += sizeof(std::uint64_t)) {
        const std::uint64_t word = engine();
        std::memcpy(&out[at], &word, (std::min)(sizeof word, size - at));
    }
    return out;
}

// Lines of text that gzip makes a good deal smaller.
inline std::string text_lines(std::size_t size) {
    std::string out;
    out.reserve(size + 64);
    for (std::size_t line = 0; out.size() < size; ++line) {
        out += "line " + std::to_string(line) + ": the quick brown fox " +
               std::to_string(line * 2654435761U % 100000U) + "\n";
    }
    out.resize(size);
    return out;
}

// One gzip member, by zlib itself.
inline std::string gzip(std::string_view data, int level = 6) {
    z_stream stream = z_stream();
    REQUIRE(deflateInit2(&stream, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    std::string out(deflateBound(&stream, static_cast<uLong>(data.size())) + 64, '\0');
    std::string in(data);
    stream.next_in = reinterpret_cast<Bytef*>(in.data());
    stream.avail_in = static_cast<uInt>(in.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
}

inline std::string base64(std::string_view data) {
    static const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (std::size_t i = 0; i < data.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t j = 0; j < 3; ++j) {
            group = group << 8 | (i + j < data.size() ? static_cast<unsigned char>(data[i + j]) : 0U);
        }
        for (std::size_t j = 0; j < 4; ++j) {
            out += i + j <= data.size() ? alphabet[group >> (18 - 6 * j) & 63U] : '=';
        }
    }
    return out;
}

// As the cache writes it in the metadata of an entry: bit by bit, the slow way, so as not to share a mistake.
inline std::string crc32c(std::string_view data) {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (char c : data) {
        crc ^= static_cast<unsigned char>(c);
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) ? 0x82F63B78U : 0U);
    }
    crc = ~crc;
    const char big_endian[4] = {static_cast<char>(crc >> 24), static_cast<char>(crc >> 16), static_cast<char>(crc >> 8),
                                static_cast<char>(crc)};
    return base64({big_endian, 4});
}

inline std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return out;
}

inline bool holds(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// ---- a client that shares nothing with the cache ---------------------------------------------------------------------

struct Answer {
    int status = 0;     // 0: no answer
    Headers headers{};  // names in lower case
    std::string body{};

    std::optional<std::string> header(std::string_view name) const {
        for (const auto& [n, value] : headers) {
            if (n == name) return value;
        }
        return std::nullopt;
    }
    // Some stores give `expires_at` back as `expires-at`: both spellings are looked for.
    std::optional<std::string> meta(std::string_view name) const {
        for (const auto& [n, value] : headers) {
            std::string given = n, wanted = "x-amz-meta-" + std::string(name);
            std::replace(given.begin(), given.end(), '_', '-');
            std::replace(wanted.begin(), wanted.end(), '_', '-');
            if (given == wanted) return value;
        }
        return std::nullopt;
    }
};

class Raw {
public:
    Raw(std::string endpoint, std::string ca, std::string access, std::string secret, std::string region)
        : endpoint_(std::move(endpoint)),
          ca_(std::move(ca)),
          access_(std::move(access)),
          secret_(std::move(secret)),
          region_(std::move(region)) {}

    // `path` is decoded and starts with '/'; the query's names and values are decoded, too.
    Answer request(const std::string& method, const std::string& path, Headers query = {}, Headers headers = {},
                   std::string_view body = {}) const {
        const std::string target = encoded(path, true);
        std::sort(query.begin(), query.end());
        std::string query_text;
        for (const auto& [name, value] : query) {
            query_text += (query_text.empty() ? "" : "&") + encoded(name, false) + "=" + encoded(value, false);
        }
        sign(method, target, query_text, headers, body);
        return send(method, endpoint_ + target + (query_text.empty() ? "" : "?" + query_text), headers, body);
    }

    // No signature: what anyone without credentials would send.
    Answer send(const std::string& method, const std::string& url, const Headers& headers = {},
                std::string_view body = {}) const {
        Answer answer;
        CURL* curl = curl_easy_init();
        if (!curl) throw std::bad_alloc();  // not REQUIRE: buckets are removed when the session is over
        curl_slist* lines = curl_slist_append(nullptr, "Expect:");
        lines = curl_slist_append(lines, "Content-Type:");
        for (const auto& [name, value] : headers) {
            lines = curl_slist_append(lines, (value.empty() ? name + ";" : name + ": " + value).c_str());
        }
        curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
        curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_PROXY, "");
        curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, lines);
        if (!ca_.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, ca_.c_str());
        if (method == "HEAD") curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
        if (method == "PUT" || method == "POST") {
            curl_easy_setopt(curl, CURLOPT_POST, 1L);
            curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
            curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.empty() ? "" : body.data());
        }
        if (method != "HEAD") curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method.c_str());
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
        curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
        curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer);
        const CURLcode result = curl_easy_perform(curl);
        long status = 0;
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        answer.status = result == CURLE_OK ? static_cast<int>(status) : 0;
        if (result != CURLE_OK) answer.body = curl_easy_strerror(result);
        curl_slist_free_all(lines);
        curl_easy_cleanup(curl);
        return answer;
    }

    static std::string encoded(std::string_view text, bool keep_slash) {
        std::string out;
        for (char c : text) {
            const bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
                               c == '.' || c == '_' || c == '~' || (keep_slash && c == '/');
            const auto byte = static_cast<unsigned char>(c);
            if (plain) {
                out += c;
            } else {
                out += '%';
                out += "0123456789ABCDEF"[byte >> 4];
                out += "0123456789ABCDEF"[byte & 15];
            }
        }
        return out;
    }

private:
    static std::size_t take_body(char* data, std::size_t one, std::size_t count, void* answer) {
        static_cast<Answer*>(answer)->body.append(data, one * count);
        return one * count;
    }
    static std::size_t take_header(char* data, std::size_t one, std::size_t count, void* answer) {
        std::string_view line(data, one * count);
        const std::size_t colon = line.find(':');
        if (colon != std::string_view::npos) {
            std::string_view value = line.substr(colon + 1);
            while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
            while (!value.empty() && (value.back() <= ' ')) value.remove_suffix(1);
            static_cast<Answer*>(answer)->headers.emplace_back(lower(line.substr(0, colon)), value);
        }
        return one * count;
    }

    static std::string hex(std::string_view data) {
        std::string out;
        for (char c : data) {
            const auto byte = static_cast<unsigned char>(c);
            out += "0123456789abcdef"[byte >> 4];
            out += "0123456789abcdef"[byte & 15];
        }
        return out;
    }
    static std::string sha256(std::string_view data) {
        unsigned char out[32];
        SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), out);
        return hex({reinterpret_cast<const char*>(out), 32});
    }
    static std::string hmac(std::string_view key, std::string_view data) {
        unsigned char out[32];
        unsigned size = 32;
        HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
             reinterpret_cast<const unsigned char*>(data.data()), data.size(), out, &size);
        return {reinterpret_cast<const char*>(out), size};
    }

    void sign(const std::string& method, const std::string& target, const std::string& query, Headers& headers,
              std::string_view body) const {
        const std::time_t now = std::time(nullptr);
        std::tm utc = std::tm();
#ifdef _WIN32
        gmtime_s(&utc, &now);
#else
        gmtime_r(&now, &utc);
#endif
        char text[32];
        const std::string stamp(text, std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &utc));
        const std::string day = stamp.substr(0, 8), hash = sha256(body);
        headers.emplace_back("x-amz-date", stamp);
        headers.emplace_back("x-amz-content-sha256", hash);
        std::map<std::string, std::string> sorted;
        for (const auto& [name, value] : headers) sorted[lower(name)] = value;
        sorted["host"] = endpoint_.substr(endpoint_.find("//") + 2);
        std::string lines, names;
        for (const auto& [name, value] : sorted) {
            lines += name + ":" + value + "\n";
            names += (names.empty() ? "" : ";") + name;
        }
        const std::string canonical = method + "\n" + target + "\n" + query + "\n" + lines + "\n" + names + "\n" + hash;
        const std::string scope = day + "/" + region_ + "/s3/aws4_request";
        const std::string to_sign = "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + sha256(canonical);
        const std::string key = hmac(hmac(hmac(hmac("AWS4" + secret_, day), region_), "s3"), "aws4_request");
        headers.emplace_back("Authorization", "AWS4-HMAC-SHA256 Credential=" + access_ + "/" + scope +
                                                  ", SignedHeaders=" + names +
                                                  ", Signature=" + hex(hmac(key, to_sign)));
    }

    std::string endpoint_, ca_, access_, secret_, region_;
};

// ---- results ------------------------------------------------------------------------------------------------------

// Every error that a test sees passes through here: none may carry a secret.
inline std::vector<std::string>& secrets() {
    static std::vector<std::string> all{"fake/secret+key/of/the/tests"};
    return all;
}

inline void check_no_secret(std::string_view text) {
    for (const std::string& secret : secrets()) {
        if (secret.empty() || !holds(text, secret)) continue;
        FAIL("an error's text holds a secret");  // without showing it
    }
}

inline const s3cache::Error& checked(const s3cache::Error& error) {
    check_no_secret(error.what());
    check_no_secret(error.s3_message());
    CHECK(std::string_view(error.what()).size() > 1);
    CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    return error;
}

template <class T>
s3cache::Error failure(const s3cache::Result<T>& result) {
    REQUIRE_FALSE(result.has_value());
    INFO(result.error().what());
    return checked(result.error());
}

inline constexpr s3cache::Errc no_error = static_cast<s3cache::Errc>(-1);

template <class T>
s3cache::Errc code_of(const s3cache::Result<T>& result) {
    if (result) return no_error;
    checked(result.error());
    UNSCOPED_INFO(result.error().what());
    return result.error().code();
}

template <class T>
T ok(s3cache::Result<T> result) {
    if (!result) FAIL(result.error().what());
    return *std::move(result);
}

inline void ok(const s3cache::Result<void>& result) {
    if (!result) FAIL(result.error().what());
}

// Compares without printing megabytes when they differ.
inline bool same(std::string_view got, std::string_view wanted) {
    if (got == wanted) return true;
    std::size_t at = 0;
    while (at < got.size() && at < wanted.size() && got[at] == wanted[at]) ++at;
    UNSCOPED_INFO("got " << got.size() << " bytes, wanted " << wanted.size() << ", first difference at " << at);
    return false;
}

// A miss is a value like others here, so that a test goes on.
inline std::string text_of(std::optional<s3cache::Value> hit) { return hit ? std::move(*hit).str() : "(a miss)"; }

inline std::string drained(s3cache::Reader&& reader) {
    std::string out;
    for (std::string_view chunk : reader) out += chunk;
    return out;
}
inline std::string drained(s3cache::Reader& reader) { return drained(std::move(reader)); }

// ---- stores -------------------------------------------------------------------------------------------------------

inline std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

class Store {
public:
    Store(std::string name, std::string endpoint, std::string ca, std::string access, std::string secret,
          std::string region, fake_s3::FakeS3* fake = nullptr)
        : raw(endpoint, ca, access, secret, region),
          name_(std::move(name)),
          endpoint_(std::move(endpoint)),
          ca_(std::move(ca)),
          access_(std::move(access)),
          secret_(std::move(secret)),
          region_(std::move(region)),
          fake_(fake) {
        // Where both are the same word, every text that names the access key would seem to tell the secret.
        if (secret_ != access_)
            secrets().push_back(secret_);
        else
            std::cout << "partly  texts are not searched for the secret, on " << name_ << ": it equals the access key"
                      << std::endl;
        // Now, so that OpenSSL's own end comes after ours.
        REQUIRE(OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CRYPTO_STRINGS, nullptr) == 1);
        if (std::string given = fake_ ? "bucket" : environment("S3CACHE_TEST_BUCKET"); !given.empty()) {
            bucket_ = given;
            if (!fake_) root_ = "s3cache-" + tag() + "/";
        } else {
            bucket_ = "s3cache-" + tag();
            if (!make_bucket(bucket_)) FAIL("cannot make a bucket on " << name_ << ": set S3CACHE_TEST_BUCKET");
        }
    }
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;

    const std::string& name() const { return name_; }
    const std::string& endpoint() const { return endpoint_; }
    const std::string& ca() const { return ca_; }
    const std::string& access() const { return access_; }
    const std::string& secret() const { return secret_; }
    const std::string& region() const { return region_; }
    const std::string& bucket() const { return bucket_; }
    const std::string& root() const { return root_; }
    bool tls() const { return endpoint_.compare(0, 6, "https:") == 0; }
    fake_s3::FakeS3* fake() const { return fake_; }

    // Nothing of the machine's own AWS set-up comes in.
    s3cache::Config config() const {
        s3cache::Config config;
        config.endpoint = endpoint_;
        config.region = region_;
        config.ca_bundle = ca_;
        config.credentials = s3cache::Credentials{access_, secret_, {}, {}, "the tests"};
        config.part_bytes = std::size_t{5} << 20;
        config.seams.environment = [](const char*) { return std::optional<std::string>(); };
        return config;
    }

    // False: this caller may not.
    bool make_bucket(const std::string& bucket) {
        if (fake_) return fake_->create_bucket(bucket), true;
        const Answer answer = raw.request("PUT", "/" + bucket);
        if (answer.status == 0) FAIL(name_ << ": " << answer.body);
        if (answer.status / 100 == 2) made_.push_back(bucket);
        return answer.status / 100 == 2;
    }

    // The stores of this run. Fakes live as long as the program; a real store's buckets go at its end.
    static const std::vector<Store*>& all() {
        static const std::vector<std::unique_ptr<Store>> owned = make();
        static const std::vector<Store*> pointers = [] {
            std::vector<Store*> out;
            for (const auto& store : owned) out.push_back(store.get());
            return out;
        }();
        return pointers;
    }

    ~Store() {
        for (const std::string& bucket : made_) {
            if (auto cache = s3cache::Cache::try_open(bucket, config())) static_cast<void>(cache->try_clear(""));
            static_cast<void>(raw.request("DELETE", "/" + bucket));
        }
    }

    static std::string tag() {
        static const std::string run = std::to_string(std::random_device()()) + "-" + std::to_string(getpid());
        static std::atomic<unsigned> count{0};
        return run + "-" + std::to_string(++count);
    }

    Raw raw;

private:
    static std::vector<std::unique_ptr<Store>> make() {
        std::vector<std::unique_ptr<Store>> out;
        const std::string endpoint = environment("S3CACHE_TEST_ENDPOINT"),
                          tls = environment("S3CACHE_TEST_TLS_ENDPOINT");
        if (!endpoint.empty() || !tls.empty()) {
            for (const std::string& url : {endpoint, tls}) {
                if (url.empty()) continue;
                const bool secure = url.compare(0, 6, "https:") == 0;
                out.push_back(std::make_unique<Store>(
                    url, url, secure ? environment("S3CACHE_TEST_CA") : "", environment("AWS_ACCESS_KEY_ID"),
                    environment("AWS_SECRET_ACCESS_KEY"),
                    environment("AWS_REGION").empty() ? "us-east-1" : environment("AWS_REGION")));
            }
            return out;
        }
        for (bool secure : {false, true}) {
            static std::vector<std::unique_ptr<fake_s3::FakeS3>> fakes;
            fake_s3::Options options;
            options.tls = secure;
            fakes.push_back(std::make_unique<fake_s3::FakeS3>(options));
            fake_s3::FakeS3& fake = *fakes.back();
            out.push_back(std::make_unique<Store>(secure ? "the fake, TLS" : "the fake, http", fake.endpoint(),
                                                  fake.ca_file(), fake.access_key(), fake.secret_key(), fake.region(),
                                                  &fake));
        }
        return out;
    }

    std::string name_, endpoint_, ca_, access_, secret_, region_, bucket_, root_;
    fake_s3::FakeS3* fake_;
    std::vector<std::string> made_;
};

// What some stores lack.
enum class Ability {
    lists_uploads,   // ListMultipartUploads
    conditions,      // a PUT with If-None-Match: * does not overwrite
    authentication,  // a wrong signature, or none, is refused
    tells_missing,   // an object that is not there is a 404, not a 403
    names_errors,    // a refusal has a body that names its code
    long_metadata,   // a metadata value of 1500 bytes, which S3 takes
};

inline const char* lack_of(Ability ability) {
    switch (ability) {
    case Ability::lists_uploads:
        return "it does not list uploads";
    case Ability::conditions:
        return "it does not honour write conditions";
    case Ability::authentication:
        return "it does not check who asks";
    case Ability::tells_missing:
        return "it refuses what is not there";
    case Ability::names_errors:
        return "its errors have no names";
    case Ability::long_metadata:
        return "it takes no metadata value that long";
    }
    return "";
}

// Asked once, with requests of the plain client's own; a store that answers in another way than these is not excused.
inline bool has_ability(Store& store, Ability ability) {
    static std::map<std::pair<Store*, Ability>, bool> known;
    const auto found = known.find({&store, ability});
    if (found != known.end()) return found->second;
    const std::string path = "/" + store.bucket() + "/" + store.root() + "ability" + Store::tag();
    bool has = true;
    if (ability == Ability::lists_uploads) {
        const int status = store.raw.request("GET", "/" + store.bucket(), {{"uploads", ""}}).status;
        has = status != 501 && status != 405;
    } else if (ability == Ability::tells_missing) {
        has = store.raw.request("HEAD", path).status != 403;
    } else if (ability == Ability::names_errors) {
        const Answer answer = store.raw.request("GET", path);
        has = answer.status < 300 || !answer.body.empty();
    } else if (ability == Ability::long_metadata) {
        const Answer answer = store.raw.request("PUT", path, {}, {{"x-amz-meta-owner", std::string(1500, 'x')}}, "v");
        has = !holds(answer.body, "Metadata value longer than");
        static_cast<void>(store.raw.request("DELETE", path));
    } else {
        REQUIRE(store.raw.request("PUT", path, {}, {}, "first").status == 200);
        if (ability == Ability::conditions) {
            const int status = store.raw.request("PUT", path, {}, {{"If-None-Match", "*"}}, "second").status;
            has = status != 200 && status != 501;
        } else {
            const Raw stranger(store.endpoint(), store.ca(), store.access(), "a wrong secret", store.region());
            has = stranger.request("GET", path).status != 200 &&
                  store.raw.send("GET", store.endpoint() + Raw::encoded(path, true)).status != 200;
        }
        static_cast<void>(store.raw.request("DELETE", path));
    }
    return known[{&store, ability}] = has;
}

// What is the same for a strong ETag and a weak one; a store may weaken those of some answers.
inline std::string opaque(const std::string& etag) { return etag.substr(etag.rfind("W/", 0) == 0 ? 2 : 0); }

// A part of a store that one test has to itself.
class Space {
public:
    explicit Space(Store& where, const char* test = "")
        : store(where), test_(test), bucket_(where.bucket()), prefix_(where.root() + "t" + Store::tag() + "/") {}
    // A bucket of its own, with keys right at its root, if one can be made here.
    struct WholeBucket {};
    Space(Store& where, WholeBucket) : Space(where) {
        const std::string bucket = "s3cache-" + Store::tag();
        if (!store.make_bucket(bucket)) return;
        bucket_ = bucket;
        prefix_.clear();
    }
    Space(const Space&) = delete;
    Space& operator=(const Space&) = delete;
    ~Space() {
        if (store.fake())
            store.fake()->erase_all();
        else if (auto opened = s3cache::Cache::try_open(where(), store.config()))
            static_cast<void>(opened->try_clear(""));
    }

    std::string where() const { return prefix_.empty() ? bucket_ : "s3://" + bucket_ + "/" + prefix_; }
    const std::string& bucket() const { return bucket_; }
    const std::string& prefix() const { return prefix_; }
    s3cache::Config config() const {
        s3cache::Config config = store.config();
        config.forbidden_is_miss = !has_ability(store, Ability::tells_missing);
        return config;
    }
    s3cache::Cache cache() const { return s3cache::Cache(where(), config()); }
    s3cache::Cache cache(s3cache::Config config) const { return s3cache::Cache(where(), std::move(config)); }
    fake_s3::FakeS3* fake() const { return store.fake(); }

    // What other programs see and do. Metadata names without x-amz-meta-; any other header as it is, with a leading ':'.
    Answer look(const std::string& key) const { return store.raw.request("GET", path(key)); }
    bool has(const std::string& key) const { return store.raw.request("HEAD", path(key)).status == 200; }
    void put(const std::string& key, std::string_view body, const Headers& metadata = {}) const {
        Headers headers;
        for (const auto& [name, value] : metadata) {
            if (name[0] == ':')
                headers.emplace_back(name.substr(1), value);
            else
                headers.emplace_back("x-amz-meta-" + name, value);
        }
        const Answer answer = store.raw.request("PUT", path(key), {}, headers, body);
        INFO(answer.body);
        REQUIRE(answer.status == 200);
    }
    // As an entry of the Python class that ran out, or runs out, so many seconds from now.
    void put_expiring(const std::string& key, std::string_view body, int seconds) const {
        const std::string at = std::to_string(std::time(nullptr) + seconds);
        put(key, body, {{"expires_at", at}, {"expires-at", at}});
    }
    // True: the test cannot be made here, and a line says so. `what`: only this part of it.
    bool lacks(Ability ability, const char* what = nullptr) const {
        if (has_ability(store, ability)) return false;
        std::cout << (what ? "partly  " : "skip  ") << test_ << (what ? ", " : "") << (what ? what : "") << ", on "
                  << store.name() << ": " << lack_of(ability) << std::endl;
        return true;
    }
    std::size_t open_uploads() const {
        if (lacks(Ability::lists_uploads, "what is left open")) return 0;
        const Answer answer = store.raw.request("GET", "/" + bucket_, {{"uploads", ""}, {"prefix", prefix_}});
        REQUIRE(answer.status == 200);
        std::size_t count = 0;
        for (std::size_t at = 0; (at = answer.body.find("<Upload>", at)) != std::string::npos; ++at) ++count;
        return count;
    }
    std::string path(const std::string& key) const { return "/" + bucket_ + "/" + prefix_ + key; }

    Store& store;

private:
    const char* test_;
    std::string bucket_, prefix_;
};

inline void on_every_store(const char* name, void (*test)(Space&)) {
    for (Store* store : Store::all()) {
        DYNAMIC_SECTION(store->name()) {
            Space space(*store, name);
            test(space);
        }
    }
}

// A folder that goes with the test.
class Folder {
public:
    Folder() : path_((std::filesystem::temp_directory_path() / ("s3cache-" + Store::tag())).string()) {
        REQUIRE(std::filesystem::create_directory(path_));
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
    std::size_t count() const {
        const std::filesystem::directory_iterator first(path_);
        return static_cast<std::size_t>(std::distance(first, std::filesystem::directory_iterator()));
    }

private:
    std::string path_;
};

// Names of files are UTF-8, whatever the system takes.
inline std::filesystem::path path_of(const std::string& name) {
#ifdef _WIN32
    return std::filesystem::u8path(name);
#else
    return name;
#endif
}

inline std::string contents(const std::string& path) {
    std::ifstream in(path_of(path), std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
}

inline void write(const std::string& path, std::string_view data) {
    std::ofstream(path_of(path), std::ios::binary).write(data.data(), static_cast<std::streamsize>(data.size()));
}

// Threads whose failures reach the test: Catch's own macros may be used by one thread only.
class Crew {
public:
    template <class F>
    void start(std::size_t count, F work) {
        for (std::size_t i = 0; i < count; ++i) {
            threads_.emplace_back([this, work, i] {
                try {
                    work(i);
                } catch (const std::exception& error) {
                    std::lock_guard<std::mutex> lock(mutex_);
                    problems_.emplace_back(error.what());
                }
            });
        }
    }
    std::vector<std::string> join() {
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
        return std::move(problems_);
    }
    ~Crew() {
        for (std::thread& thread : threads_) thread.join();
    }

private:
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::vector<std::string> problems_;
};

inline void expect(bool truth, const std::string& what) {
    if (!truth) throw std::runtime_error(what);
}

inline s3cache::SetOptions if_absent(std::optional<s3cache::Seconds> ttl = {}) {
    s3cache::SetOptions options;
    options.ttl = ttl;
    options.if_absent = true;
    return options;
}

}  // namespace S3CACHE_ABI
}  // namespace store

// A test case that runs once for each store, with `space` to itself.
#define STORE_TEST_JOIN_(a, b) a##b
#define STORE_TEST_NAME_(a, b) STORE_TEST_JOIN_(a, b)
#define STORE_TEST(name, tags)                                                                      \
    static void STORE_TEST_NAME_(store_test_, __LINE__)(store::Space & space);                      \
    TEST_CASE(name, tags) { store::on_every_store(name, STORE_TEST_NAME_(store_test_, __LINE__)); } \
    static void STORE_TEST_NAME_(store_test_, __LINE__)([[maybe_unused]] store::Space & space)
