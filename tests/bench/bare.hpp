// What a careful programmer writes with libcurl alone: keep-alive, one handle used again, values into a string that is
// sized once, a small PUT as head and body in one send. Nothing is signed, retried, checked or parsed.
#pragma once

#include <curl/curl.h>    // the whole of it
#include <openssl/evp.h>  // SHA-256 of what is sent, which S3 asks for

#include <algorithm>    // min
#include <cstdio>       // the text of a failure
#include <cstdlib>      // exit
#include <cstring>      // memcpy
#include <functional>   // what to do with each of many
#include <memory>       // handles
#include <string>       // values
#include <string_view>  // payloads
#include <vector>       // keys

namespace bare {

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "bench: %s\n", what.c_str());
    std::exit(1);
}

struct Store {
    std::string url;  // of the bucket, with a slash behind
    std::string ca;   // PEM file; empty: the system's
};

enum class Buffers { standard, large };
inline constexpr long large_buffer_bytes = 512L << 10;
inline constexpr std::size_t one_send_bytes_max = std::size_t{60} << 10;  // libcurl sends up to 64 KiB with the head

class Sha256 {
public:
    Sha256() : context_(EVP_MD_CTX_new()) {}
    ~Sha256() { EVP_MD_CTX_free(context_); }
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;

    void of(std::string_view data) {
        unsigned char digest[32];
        const bool fine = EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1 &&
                          EVP_DigestUpdate(context_, data.data(), data.size()) == 1 &&
                          EVP_DigestFinal_ex(context_, digest, nullptr) == 1;
        if (!fine) fail("SHA-256 failed");
    }

private:
    EVP_MD_CTX* context_;
};

// The headers of an entry as the library stores it, and those of a signature that covers them and `names`: as long as real
// ones, but always the same. They show what libcurl's writing of headers costs.
inline std::vector<std::string> stored_lines() { return {"x-amz-meta-kind: bytes", "x-amz-meta-crc32c: AAAAAA=="}; }
inline std::vector<std::string> signed_lines(std::string names, std::vector<std::string> lines = {}) {
    names += ";x-amz-content-sha256;x-amz-date";
    for (const std::string& line : lines) names += ";" + line.substr(0, line.find(':'));
    const std::string digits(64, '0');
    lines.push_back("x-amz-content-sha256: " + digits);
    lines.push_back("x-amz-date: 20260101T000000Z");
    lines.push_back("authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=" +
                    names + ", Signature=" + digits);
    return lines;
}

// The hashes of a signature over such headers, with a key that is there: of the canonical request, and the two of an HMAC.
class Signature {
public:
    explicit Signature(const std::vector<std::string>& lines) {
        canonical_.assign("GET\n/bench/small/0\n\nhost:127.0.0.1:12345\n");
        for (const std::string& line : lines) {
            if (line.compare(0, 14, "authorization:") != 0) canonical_ += line + "\n";
        }
        canonical_ += "\nhost;x-amz-content-sha256;x-amz-date\n" + std::string(64, '0');
    }
    void make() {
        sha_.of(canonical_);
        sha_.of(inner_);
        sha_.of(outer_);
    }

private:
    static constexpr std::size_t block = 64, to_sign = 138;
    Sha256 sha_;
    std::string canonical_;
    const std::string inner_ = std::string(block + to_sign, '0'), outer_ = std::string(block + 32, '0');
};

// One easy handle for one kind of request; it keeps its connection.
class Handle {
public:
    enum class Kind { get, put, put_small, post, remove };

    Handle(const Store& store, Kind kind, Buffers buffers, const std::vector<std::string>& lines = {})
        : easy(curl_easy_init()), store_(store), kind_(kind) {
        if (!easy) fail("curl_easy_init");
        set(CURLOPT_NOSIGNAL, 1L);
        set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
        set(CURLOPT_PRIVATE, static_cast<void*>(this));
        set(CURLOPT_WRITEFUNCTION, &Handle::on_write);
        set(CURLOPT_WRITEDATA, static_cast<void*>(this));
        if (!store.ca.empty()) set(CURLOPT_CAINFO, store.ca.c_str());
        if (buffers == Buffers::large) {
            set(CURLOPT_BUFFERSIZE, large_buffer_bytes);
            set(CURLOPT_UPLOAD_BUFFERSIZE, large_buffer_bytes);
        }
        if (kind == Kind::remove) set(CURLOPT_CUSTOMREQUEST, "DELETE");
        if (kind == Kind::put_small) set(CURLOPT_CUSTOMREQUEST, "PUT");
        if (kind == Kind::put) {
            set(CURLOPT_UPLOAD, 1L);
            set(CURLOPT_READFUNCTION, &Handle::on_read);
            set(CURLOPT_READDATA, static_cast<void*>(this));
        }
        if (kind == Kind::put || kind == Kind::put_small || kind == Kind::post) {
            headers_ =
                curl_slist_append(curl_slist_append(nullptr, "Expect:"), "Content-Type: application/octet-stream");
        }
        for (const std::string& line : lines) headers_ = curl_slist_append(headers_, line.c_str());
        if (headers_) set(CURLOPT_HTTPHEADER, headers_);
    }
    ~Handle() {
        curl_easy_cleanup(easy);
        curl_slist_free_all(headers_);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;

    void prepare(const std::string& key, std::string_view body = {}) {
        url_.assign(store_.url).append(key);
        set(CURLOPT_URL, url_.c_str());
        value = std::string();
        body_ = body;
        sent_ = received = 0;
        if (kind_ == Kind::put) set(CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(body.size()));
        if (kind_ == Kind::put_small || kind_ == Kind::post) {
            set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
            set(CURLOPT_POSTFIELDS, body.data() ? body.data() : "");
        }
    }
    void finish(CURLcode result) {
        long status = 0;
        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
        if (result != CURLE_OK || status / 100 != 2)
            fail(url_ + ": " + curl_easy_strerror(result) + ", status " + std::to_string(status));
    }
    void run(const std::string& key, std::string_view body = {}) {
        prepare(key, body);
        finish(curl_easy_perform(easy));
    }

    CURL* easy;
    std::string value;
    bool keep = true;  // false: the bytes are only counted
    std::size_t received = 0;

private:
    template <class T>
    void set(CURLoption option, T argument) {
        if (curl_easy_setopt(easy, option, argument) != CURLE_OK) fail("curl_easy_setopt");
    }
    static std::size_t on_write(char* data, std::size_t size, std::size_t count, void* self) {
        Handle& handle = *static_cast<Handle*>(self);
        if (handle.received == 0 && handle.keep) {
            curl_off_t length = 0;
            curl_easy_getinfo(handle.easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
            if (length > 0) handle.value.reserve(static_cast<std::size_t>(length));
        }
        handle.received += size * count;
        if (handle.keep) handle.value.append(data, size * count);
        return size * count;
    }
    static std::size_t on_read(char* buffer, std::size_t size, std::size_t count, void* self) {
        Handle& handle = *static_cast<Handle*>(self);
        const std::size_t wanted = (std::min)(size * count, handle.body_.size() - handle.sent_);
        if (wanted) std::memcpy(buffer, handle.body_.data() + handle.sent_, wanted);
        handle.sent_ += wanted;
        return wanted;
    }

    const Store& store_;
    Kind kind_;
    std::string url_;
    std::string_view body_;
    std::size_t sent_ = 0;
    curl_slist* headers_ = nullptr;
};

// Many requests over a few connections: the usual loop around one multi handle.
class Many {
public:
    Many(const Store& store, Handle::Kind kind, Buffers buffers, unsigned connections,
         const std::vector<std::string>& lines = {})
        : multi_(curl_multi_init()) {
        curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(connections));
        for (unsigned i = 0; i < connections; ++i)
            handles_.push_back(std::make_unique<Handle>(store, kind, buffers, lines));
    }
    ~Many() {
        handles_.clear();
        curl_multi_cleanup(multi_);
    }
    Many(const Many&) = delete;
    Many& operator=(const Many&) = delete;

    // `prepare` sets a handle up for the i-th request, `done` takes what it brought.
    void run(std::size_t total, const std::function<void(Handle&, std::size_t)>& prepare,
             const std::function<void(Handle&)>& done) {
        std::size_t next = 0, finished = 0;
        for (const auto& handle : handles_) {
            if (next < total) start(*handle, next++, prepare);
        }
        while (finished < total) {
            int running = 0, left = 0;
            if (curl_multi_perform(multi_, &running) != CURLM_OK) fail("curl_multi_perform");
            bool any = false;
            while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
                void* owner = nullptr;
                const CURLcode result = message->data.result;
                curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &owner);
                Handle& handle = *static_cast<Handle*>(owner);
                curl_multi_remove_handle(multi_, handle.easy);
                handle.finish(result);
                done(handle);
                ++finished;
                any = true;
                if (next < total) start(handle, next++, prepare);
            }
            if (!any) curl_multi_wait(multi_, nullptr, 0, 1000, nullptr);
        }
    }

private:
    void start(Handle& handle, std::size_t index, const std::function<void(Handle&, std::size_t)>& prepare) {
        prepare(handle, index);
        curl_multi_add_handle(multi_, handle.easy);
    }
    CURLM* multi_;
    std::vector<std::unique_ptr<Handle>> handles_;
};

}  // namespace bare
