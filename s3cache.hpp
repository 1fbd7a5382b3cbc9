// s3cache.hpp: an S3 bucket as a cache. One header, four verbs: set, get, get_stream, remove.
//
//     #include "s3cache.hpp"
//     #include <iostream>
//
//     int main() {
//         using namespace std::chrono_literals;
//         s3cache::Cache cache("my-bucket");            // region, credentials, endpoint: as the AWS CLI finds them
//         cache.set("report", s3cache::json(R"({"rows":1042})"), {1h, /*compress=*/true});
//         if (auto hit = cache.get("report"))           // std::optional<Value>: empty = missing or expired
//             std::cout << hit->str() << "\n";
//         cache.remove("report");
//     }
//
// compile    g++ -std=c++17 app.cpp -lcurl -lcrypto -lz
// prints     {"rows":1042}
//
// Stored as  an S3 object named by the key; the TTL lies in its metadata (`expires_at`, unix time in seconds), so that an
//            entry set here is read by the Python class S3Cache and the other way round.
// Errors     a miss is not an error. Every operation comes twice: `get` throws s3cache::Error, `try_get` returns
//            Result<...> and never throws. With -fno-exceptions only the try_ forms exist.
// Threads    one Cache may be used from any number of threads at once. A Reader, a Listing and a Source belong to one
//            thread at a time. Every operation blocks until it is done. No thread is ever started.
// Never      prints, aborts, installs a handler, follows a redirect, turns TLS verification off, reads ~/.netrc, or
//            needs an init or shutdown call.
//
// Modes      default: include this file anywhere and link. To keep libcurl, OpenSSL and zlib out of all files but one:
//              S3CACHE_DECLARATIONS_ONLY   define globally (on the command line of every file)
//              S3CACHE_IMPLEMENTATION      define in one .cpp, before the include: the functions are compiled there
// Leave out  define globally; a call that needs what was left out returns Errc::unsupported, no type changes:
//              S3CACHE_NO_GZIP, S3CACHE_NO_CREDENTIAL_CHAIN, S3CACHE_NO_MANY_KEYS
//
// Contents   public half: version, errors, values, options, Cache
//            then, behind the line: utf8 bytes json dates digest gzip xml ini endpoint sigv4 (pure)
//            and http retry credentials entry s3 transfer cache (I/O); each section uses only those above it
//
// Licence    MIT, see the end of this file.

#ifndef S3CACHE_HPP
#define S3CACHE_HPP

// --- mode, version ---------------------------------------------------------------------------------------------------

#define S3CACHE_VERSION "0.1.0"
#define S3CACHE_VERSION_NUMBER 100  // 10000 * first + 100 * second + third

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define S3CACHE_EXCEPTIONS 1
#else
#define S3CACHE_EXCEPTIONS 0
#endif

// The inline namespace names the version and the mode, so that files compiled differently fail to link instead of
// sharing a type whose layout differs (Error derives from std::runtime_error only where there are exceptions).
#if defined(S3CACHE_DECLARATIONS_ONLY) && S3CACHE_EXCEPTIONS
#define S3CACHE_ABI v0_1_0_split
#elif defined(S3CACHE_DECLARATIONS_ONLY)
#define S3CACHE_ABI v0_1_0_split_noexcept
#elif S3CACHE_EXCEPTIONS
#define S3CACHE_ABI v0_1_0
#else
#define S3CACHE_ABI v0_1_0_noexcept
#endif

#if defined(S3CACHE_DECLARATIONS_ONLY)
#define S3CACHE_FN  // compiled once, beside S3CACHE_IMPLEMENTATION
#else
#define S3CACHE_FN inline
#endif

#include <chrono>       // TTLs, timeouts, time points
#include <cstddef>      // std::size_t, std::byte
#include <cstdint>      // 64-bit sizes on every platform
#include <cstdlib>      // std::abort, for value() of an error where there are no exceptions
#include <exception>    // what a callback threw, kept for the throwing forms
#include <functional>   // hooks, sources
#include <iosfwd>       // std::istream by name only
#include <memory>       // the pimpls
#include <optional>     // a miss
#include <stdexcept>    // the base of Error
#include <string>       // values, keys; and the tags of iterators, for which <iterator> would bring all stream buffers
#include <string_view>  // what is only looked at
#include <type_traits>  // constraints of Payload, Source and codec
#include <utility>      // std::move
#include <vector>       // metadata, many keys
#if defined(__has_include) && __cplusplus >= 202002L
#if __has_include(<span>)
#include <span>  // Payload from std::span
#endif
#endif

namespace s3cache {
inline namespace S3CACHE_ABI {

namespace detail {
struct Core;         // what a Cache holds
struct ReaderState;  // what a Reader holds
struct ListingState;
}  // namespace detail

using TimePoint = std::chrono::system_clock::time_point;
using Seconds = std::chrono::duration<double>;  // any std::chrono duration converts to it

// --- errors ----------------------------------------------------------------------------------------------------------

enum class Errc {
    invalid_argument,  // key, option, URL, header value or payload refused before anything was sent
    too_large,         // over a limit of Config, of S3, or of memory
    credentials,       // none found, or a source of them is broken; the message names it
    denied,            // 401 or 403: the store knows who asks, or does not, and refuses
    no_such_bucket,
    timed_out,    // connect, stall or the whole call's deadline
    network,      // name resolution, connection, reset, answer cut short
    tls,          // the certificate is not trusted, or no common protocol
    throttled,    // the store asked to slow down, and still did after the retries
    store,        // any other error status of the store
    protocol,     // an answer that is not S3's: not XML, too large, out of its own rules
    damaged,      // checksum, length, gzip body or metadata of the stored entry is wrong: not returned as a value
    changed,      // the object was replaced while it was being read
    source,       // the caller's Source, producer or codec failed
    file,         // a local file could not be read or written
    cancelled,    // by a progress callback, or by Cache::cancel()
    unsupported,  // by this build, this libcurl or this store
    unavailable,  // not sent: the store failed too often a moment ago (Config::breaker_failures)
    read_only,    // not sent: Config::read_only
};

// What went wrong, for a person (`what()`: operation, key, attempts, cause, what to do; never a secret) and for a
// program (the members). Copying does not throw.
class Error
#if S3CACHE_EXCEPTIONS
    : public std::runtime_error
#endif
{
public:
    struct Details {
        Errc code = Errc::invalid_argument;
        int status = 0;            // HTTP status; 0 if there was no answer
        std::string s3_code{};     // such as SlowDown; the status number if the store named none
        std::string s3_message{};  // the store's own words
        std::string request_id{};  // x-amz-request-id, and x-amz-id-2 after a blank
        int attempts = 0;          // requests sent
        bool retryable = false;    // whether the same call may succeed later
#if S3CACHE_EXCEPTIONS
        std::exception_ptr cause{};  // what a Source, producer or codec threw; the throwing forms throw that instead
#endif
    };

    Error(Errc code, const std::string& message) : Error(with_code(code), message) {}
    Error(Details details, const std::string& message)
#if S3CACHE_EXCEPTIONS
        : std::runtime_error(message),
#else
        : message_(std::make_shared<const std::string>(message)),
#endif
          details_(std::make_shared<const Details>(std::move(details))) {
    }

    Errc code() const noexcept { return details_->code; }
    int status() const noexcept { return details_->status; }
    const std::string& s3_code() const noexcept { return details_->s3_code; }
    const std::string& s3_message() const noexcept { return details_->s3_message; }
    const std::string& request_id() const noexcept { return details_->request_id; }
    int attempts() const noexcept { return details_->attempts; }
    bool retryable() const noexcept { return details_->retryable; }
    const Details& details() const noexcept { return *details_; }
#if !S3CACHE_EXCEPTIONS
    const char* what() const noexcept { return message_->c_str(); }
#endif

private:
    static Details with_code(Errc code) {
        Details details;
        details.code = code;
        return details;
    }
#if !S3CACHE_EXCEPTIONS
    std::shared_ptr<const std::string> message_;
#endif
    std::shared_ptr<const Details> details_;
};

namespace detail {
[[noreturn]] inline void raise(const Error& error) {
#if S3CACHE_EXCEPTIONS
    if (error.details().cause) std::rethrow_exception(error.details().cause);
    throw error;
#else
    static_cast<void>(error);
    std::abort();  // value() of an error is a bug of the caller; there is no other way to leave here
#endif
}
}  // namespace detail

// A value or an Error, with the members of std::expected. value() of an error throws it (without exceptions: aborts).
template <class T>
class [[nodiscard]] Result {
public:
    using value_type = T;
    using error_type = Error;

    Result(T value) : value_(std::move(value)) {}
    Result(Error error) : error_(std::move(error)) {}

    bool has_value() const noexcept { return value_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }

    T& value() & { return checked(), **this; }
    const T& value() const& { return checked(), **this; }
    T&& value() && { return checked(), *std::move(*this); }

    T& operator*() & noexcept { return *value_; }
    const T& operator*() const& noexcept { return *value_; }
    T&& operator*() && noexcept { return *std::move(value_); }
    T* operator->() noexcept { return &*value_; }
    const T* operator->() const noexcept { return &*value_; }

    Error& error() & noexcept { return *error_; }
    const Error& error() const& noexcept { return *error_; }
    Error&& error() && noexcept { return *std::move(error_); }

    template <class U>
    T value_or(U&& otherwise) const& {
        return has_value() ? **this : static_cast<T>(std::forward<U>(otherwise));
    }
    template <class U>
    T value_or(U&& otherwise) && {
        return has_value() ? *std::move(*this) : static_cast<T>(std::forward<U>(otherwise));
    }
    template <class F>
    auto and_then(F&& next) && -> std::invoke_result_t<F, T&&> {
        if (has_value()) return std::forward<F>(next)(*std::move(*this));
        return std::move(*this).error();
    }
    template <class F>
    auto transform(F&& change) && -> Result<std::decay_t<std::invoke_result_t<F, T&&>>> {
        if (has_value()) return std::forward<F>(change)(*std::move(*this));
        return std::move(*this).error();
    }
    template <class F>
    Result or_else(F&& repair) && {
        return has_value() ? std::move(*this) : std::forward<F>(repair)(std::move(*this).error());
    }

private:
    void checked() const {
        if (!has_value()) detail::raise(error());
    }
    std::optional<T> value_;  // one of the two is there; a variant of them would take much longer to compile
    std::optional<Error> error_;
};

template <>
class [[nodiscard]] Result<void> {
public:
    using value_type = void;
    using error_type = Error;

    Result() noexcept = default;
    Result(Error error) : error_(std::move(error)) {}

    bool has_value() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const {
        if (error_) detail::raise(*error_);
    }
    const Error& error() const& noexcept { return *error_; }
    Error&& error() && noexcept { return std::move(*error_); }

private:
    std::optional<Error> error_;
};

// --- values ----------------------------------------------------------------------------------------------------------

enum class Kind { json, text, bytes };

using Metadata =
    std::vector<std::pair<std::string, std::string>>;  // names without `x-amz-meta-`, lower case on reading

// What the store says of an entry.
struct Info {
    std::uint64_t size = 0;                 // bytes stored: the compressed size of a compressed entry
    std::string etag{};                     // opaque, quotes included, ready for SetOptions::if_match
    TimePoint last_modified{};              // by the store's clock
    std::optional<TimePoint> expires_at{};  // empty: never
    bool compressed = false;                // stored as gzip
    bool negative = false;                  // says that there is nothing: see nothing()
    std::optional<Kind> kind{};             // empty: not recorded (entries of other programs) and not read
    std::string content_type{};
    Metadata metadata{};       // the user's own; what the cache itself keeps there is left out
    std::string version_id{};  // empty: the bucket keeps no versions
};

// A whole value in memory, decompressed.
class Value {
public:
    Value(std::string data, Kind kind, Info info) : data_(std::move(data)), kind_(kind), info_(std::move(info)) {}

    Kind kind() const noexcept { return kind_; }
    const std::string& str() const& noexcept { return data_; }
    std::string str() && noexcept { return std::move(data_); }
    std::string_view view() const noexcept { return data_; }
    const Info& info() const noexcept { return info_; }
    // The entry says that there is nothing (see nothing()). Its JSON is then `null`, which Python reads as None.
    bool negative() const noexcept { return info_.negative; }

private:
    std::string data_;
    Kind kind_;
    Info info_;
};

// What set() stores. Borrows: the data must live until the call returns; nothing is copied.
class Payload {
public:
    Payload(const char* text) : data_(text ? text : ""), present_(text != nullptr) {}
    Payload(const std::string& text) : data_(text) {}
    Payload(std::string_view text) : data_(text) {}
    Payload(const std::vector<std::byte>& bytes) : Payload(bytes.data(), bytes.size(), Kind::bytes) {}
    Payload(const std::vector<unsigned char>& bytes) : Payload(bytes.data(), bytes.size(), Kind::bytes) {}
#if defined(__cpp_lib_span)
    template <class T, std::size_t N, class = std::enable_if_t<sizeof(T) == 1 && std::is_trivially_copyable_v<T>>>
    Payload(std::span<T, N> bytes) : Payload(bytes.data(), bytes.size(), Kind::bytes) {}
#endif
    Payload(const void* data, std::size_t size, Kind kind)
        : data_(size ? static_cast<const char*>(data) : "", size), kind_(kind), present_(data || !size) {}

    std::string_view view() const noexcept { return data_; }
    std::optional<Kind> kind() const noexcept { return kind_; }  // empty: text, or bytes if it is not UTF-8
    bool present() const noexcept { return present_; }           // false: made from a null pointer, refused by set()
    bool negative() const noexcept { return negative_; }         // nothing()

private:
    friend Payload nothing();
    std::string_view data_;
    std::optional<Kind> kind_;
    bool present_ = true;
    bool negative_ = false;
};

// JSON text. Refused by set() with Errc::invalid_argument unless Python's json.loads would take it.
inline Payload json(std::string_view text) { return {text.data(), text.size(), Kind::json}; }
inline Payload bytes(const void* data, std::size_t size) { return {data, size, Kind::bytes}; }
// A negative entry: "it was looked up, and there is nothing". A hit whose Value is negative(), and so no miss.
inline Payload nothing() {
    Payload out("null", 4, Kind::json);
    out.negative_ = true;
    return out;
}

// What a Source's callable returns to say that it failed; the upload is then aborted and nothing is stored.
inline constexpr std::size_t source_failed = static_cast<std::size_t>(-1);

// A stream for set(): read once, from front to end. An lvalue stream or callable is borrowed, an rvalue is kept.
class Source {
public:
    using Read = std::function<std::size_t(char* buffer, std::size_t capacity)>;  // 0 at the end

    Source(std::istream& in);
    Source(std::istream&& in) : Source(in) {}
    template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Source> &&
                                                std::is_invocable_r_v<std::size_t, F&, char*, std::size_t>>>
    Source(F&& read) : read_(keep(std::forward<F>(read))) {}

    // Announces the length in bytes: parts are then cut to fit, and a source that gives more or less is an error.
    Source sized(std::uint64_t bytes) && {
        size_ = bytes;
        return std::move(*this);
    }
    std::optional<std::uint64_t> size() const noexcept { return size_; }
    std::size_t read(char* buffer, std::size_t capacity) const { return read_(buffer, capacity); }

private:
    template <class F>
    static Read keep(F&& read) {
        if constexpr (std::is_lvalue_reference_v<F>) {
            return std::ref(read);
        } else {  // std::function wants a copy constructor, which a lambda that owns its stream lacks
            auto held = std::make_shared<std::decay_t<F>>(std::forward<F>(read));
            return [held](char* buffer, std::size_t capacity) { return (*held)(buffer, capacity); };
        }
    }
    Read read_;
    std::optional<std::uint64_t> size_;
};

// The file's bytes. A file that cannot be read fails the set() with Errc::source.
Source file(const std::string& path);

// The concatenation of a range of string-likes, which must outlive the call.
template <class Iterator>
Source chunks(Iterator first, Iterator last) {
    return [first, last, rest = std::string_view()](char* buffer, std::size_t capacity) mutable -> std::size_t {
        while (rest.empty()) {
            if (first == last) return 0;
            rest = std::string_view(*first);
            ++first;
        }
        const std::size_t count = rest.size() < capacity ? rest.size() : capacity;
        rest.copy(buffer, count);
        rest.remove_prefix(count);
        return count;
    };
}

// An entry as a stream of its decompressed bytes. Pull-based: what is not read is not downloaded, beyond a bounded
// buffer. Damage is reported before the end is: bytes already read of a damaged entry must not be used. Closing early
// costs one connection. Keeps what it needs of its Cache, which may go before it.
class Reader {
public:
    Reader(Reader&&) noexcept;
    Reader& operator=(Reader&&) noexcept;
    ~Reader();

    // Up to `capacity` bytes, at least one, blocking until there are some; 0 only at the checked end.
    Result<std::size_t> try_read(char* buffer, std::size_t capacity);
    // The next bytes as they come, valid until the next call on this Reader; empty only at the checked end.
    Result<std::string_view> try_next();
    const Info& info() const noexcept;

    class Iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = std::string_view;
        using difference_type = std::ptrdiff_t;
        using pointer = const std::string_view*;
        using reference = const std::string_view&;

        Iterator() = default;
        explicit Iterator(Reader& reader) : reader_(&reader) { ++*this; }
        reference operator*() const { return chunk_; }
        pointer operator->() const { return &chunk_; }
        Iterator& operator++() {
            chunk_ = reader_->try_next().value();
            if (chunk_.empty()) reader_ = nullptr;
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(const Iterator& a, const Iterator& b) { return a.reader_ == b.reader_; }
        friend bool operator!=(const Iterator& a, const Iterator& b) { return !(a == b); }

    private:
        Reader* reader_ = nullptr;
        std::string_view chunk_;
    };

#if S3CACHE_EXCEPTIONS
    std::size_t read(char* buffer, std::size_t capacity) { return try_read(buffer, capacity).value(); }
    Iterator begin() { return Iterator(*this); }
    Iterator end() { return {}; }
    // For code that wants a stream; owned by the Reader. An error sets badbit: check bad() after reading.
    std::istream& istream();
#endif

    explicit Reader(std::unique_ptr<detail::ReaderState> state) noexcept;

private:
    std::unique_ptr<detail::ReaderState> state_;
};

// Teaches the cache a type: specialise it with
//     static constexpr s3cache::Kind kind = s3cache::Kind::json;
//     static std::string encode(const T&);      // may throw: the set() then throws the same, and nothing is sent
//     static T decode(std::string_view);        // may throw; or return Result<T>, for builds without exceptions
template <class T>
struct codec;

namespace detail {
template <class T, class = void>
struct has_codec : std::false_type {};
template <class T>
struct has_codec<T, std::void_t<decltype(codec<T>::kind)>> : std::true_type {};
}  // namespace detail

// --- options ---------------------------------------------------------------------------------------------------------

inline constexpr Seconds forever{1e300};  // a TTL: never expires, whatever Config::default_ttl says

struct Credentials {
    std::string access_key{};
    std::string secret_key{};
    std::string session_token{};         // empty: none
    std::optional<TimePoint> expires{};  // empty: never
    std::string source{};                // where they came from, for people; never a secret

    ~Credentials();  // overwrites what is secret
};

// Where credentials come from. Empty: the chain (environment, web identity, profiles, container, instance metadata).
class CredentialsProvider {
public:
    using Function = std::function<Result<Credentials>()>;

    CredentialsProvider() = default;
    CredentialsProvider(Credentials fixed)
        : get_([fixed = std::move(fixed)]() -> Result<Credentials> { return fixed; }) {}
    // Called from the thread that needs them, one call at a time; again when `expires` draws near.
    template <class F, class = std::enable_if_t<std::is_invocable_r_v<Result<Credentials>, F&>>>
    CredentialsProvider(F get) : get_(std::move(get)) {
        // An empty function is a mistake, and must not silently stand for the chain.
        if (!get_)
            get_ = [] { return Result<Credentials>(Error(Errc::credentials, "the provider is an empty function")); };
    }

    explicit operator bool() const noexcept { return static_cast<bool>(get_); }
    Result<Credentials> operator()() const { return get_(); }

private:
    Function get_;
};

// Requests go out unsigned: for public buckets.
inline CredentialsProvider anonymous() { return Credentials{{}, {}, {}, {}, "anonymous"}; }

enum class Addressing { automatic, path, virtual_host };
enum class Expired { remove, keep };                    // what get() does with an expired entry it came upon
enum class MetadataNames { both, underscore, hyphen };  // expires_at, expires-at: see README, "What is stored"
enum class Conditions { automatic, required, off };     // if_absent and if_match: see Config::conditions
// own: a CRC-32C in metadata, written and checked; of uploads in parts the MD5s that make up the ETag, where the store's
// are MD5s. store: that, and the store's own x-amz-checksum-*, sent and checked. none: lengths and gzip's sums alone.
enum class Checksums { own, store, none };

struct Progress {
    std::uint64_t done = 0;                // payload bytes so far, as they go over the wire
    std::optional<std::uint64_t> total{};  // empty: not known
};
using ProgressCallback =
    std::function<bool(const Progress&)>;  // false cancels; called some ten times a second; must not throw

struct SetOptions {
    std::optional<Seconds> ttl{};  // empty: Config::default_ttl; `forever`: never expires; else over zero
    bool compress = false;         // gzip
    bool if_absent = false;        // store only if there is nothing under the key
    std::string if_match{};        // store only over the entry with this ETag
    Metadata metadata{};           // the user's own; names of letters, digits, - and _, values of printable ASCII
    std::string content_type{};    // empty: by kind
    std::optional<Kind> kind{};    // of a Source, whose bytes are taken at the caller's word; empty: bytes
    ProgressCallback progress{};
};

struct GetOptions {
    ProgressCallback progress{};  // of a Reader, while it is read
};

// How get_or_set deals with many callers, failures and the end of an entry's time. All is off by default.
struct ComputeOptions {
    // Over zero: one producer at a time among all processes and machines. A small entry beside the value is held by who
    // computes; it lapses after this long, so that a crash blocks nobody beyond that, and a producer that takes longer
    // may run twice. Not under some five seconds: clocks are known to within two. Needs the store to honour write
    // conditions, or else is a best effort (see Config::conditions).
    Seconds lease{0};
    Seconds lease_wait{0};  // for another's value before it is computed here after all; zero: `lease`
    // Over zero: an entry is computed anew before it expires, by one caller drawn at random while the others go on with
    // what there is; the longer computing takes the earlier. 1 is usual, more is earlier. (XFetch: Vattani et al. 2015.)
    double early_refresh = 0;
    Seconds stale_if_error{0};  // over zero: if the producer fails, an entry expired no longer than this is returned
    std::optional<Seconds> negative_ttl{};  // of an entry that says "nothing"; empty: SetOptions::ttl
};

// One attempt of one request, or the outcome of one operation (`attempt` 0). The views live during the callback only.
struct Event {
    std::string_view operation{};  // such as get, set, abort_upload
    std::string_view key{};
    // hit miss expired unchanged done refused retry error damaged malformed leftover; and what was made of it: tolerated
    // (an error told as a miss) unconditional (the store does not honour conditions) stale early computed waited
    std::string_view outcome{};
    int attempt = 0;            // from 1; 0: the operation's outcome
    int status = 0;             // HTTP
    std::uint64_t bytes = 0;    // of body, received or sent; of a set the payload's, 0 where its length is not known
    Seconds duration{};         // of the attempt, or of a whole get, set or remove
    bool reused = false;        // the connection was
    std::string_view detail{};  // the error's text, if there was one
};

// What a test may replace; leave empty otherwise.
struct Seams {
    std::function<void(std::chrono::milliseconds)> sleep{};  // between attempts
    std::function<double()> random{};                        // [0, 1): jitter
    std::function<std::optional<std::string>(const char* name)> environment{};
};

struct Config {
    // where
    std::string region{};    // empty: environment, profile, else us-east-1; corrected by what the store answers
    std::string endpoint{};  // such as http://127.0.0.1:9000; empty: environment, profile, else AWS
    Addressing addressing = Addressing::automatic;
    bool dual_stack = false;
    bool fips = false;
    bool accelerate = false;
    CredentialsProvider credentials{};
    std::string profile{};  // of the AWS configuration files; empty: AWS_PROFILE, else default

    // what
    std::optional<Seconds> default_ttl{};  // empty: never expires
    Expired expired = Expired::remove;
    MetadataNames metadata_names = MetadataNames::both;
    Metadata metadata{};                   // put on every entry
    std::string server_side_encryption{};  // such as AES256 or aws:kms
    std::string kms_key_id{};
    std::string storage_class{};
    std::uint64_t value_bytes_max = std::uint64_t{1}
                                    << 30;  // get() refuses more, compressed or not; get_stream has no limit
    Checksums checksums = Checksums::own;
    // Some stores ignore If-Match and If-None-Match without a word. The first conditional write finds out, on a scratch
    // key. automatic: a look before the write then has to do, which leaves the time between the two (counted in
    // stats().unconditional); required: such a write is Errc::unsupported; off: only the look, ever.
    Conditions conditions = Conditions::automatic;
    double ttl_jitter = 0;  // in [0, 1): each TTL is cut by up to this share, so that not all end at once
    std::optional<Seconds> sliding_ttl{};  // a get that hits gives the entry this long anew, without sending it again …
    Seconds sliding_interval{60};          // … unless less than this has passed since it last got that
    bool read_only = false;                // what writes is Errc::read_only; get_or_set computes and does not store
    // Errors of get, get_stream, get_file, get_many, stat and contains are told as misses, for callers that rather compute
    // again: counted in stats().tolerated. Wrong arguments and a cancellation stay errors.
    bool errors_are_misses = false;
    bool unsigned_payload = false;   // over https: bodies are not hashed, which saves 0.6 ms a MiB
    bool forbidden_is_miss = false;  // 403 to get and stat is a miss: for callers without s3:ListBucket

    // how long: zero is no limit
    std::chrono::milliseconds connect_timeout{3000};  // name resolution, TCP and TLS
    std::chrono::milliseconds stall_timeout{20000};   // without a byte, either way
    // A whole call with all its attempts; of get_stream the opening, of get_or_set, clear and purge_expired each step. What
    // cleans up after it takes 0.5 s more at most.
    std::chrono::milliseconds call_timeout{0};
    int attempts_max = 3;
    std::chrono::milliseconds backoff_base{50};  // the n-th wait is random in [0, base * 2^n], at most backoff_cap
    std::chrono::milliseconds backoff_cap{5000};
    // After so many calls in a row that failed for the network's or the store's fault all others are Errc::unavailable at
    // once; after the pause one is let through to try. A miss is an answer like any other. Zero: never.
    unsigned breaker_failures = 0;
    std::chrono::milliseconds breaker_pause{10000};

    // how much
    std::size_t part_bytes = std::size_t{8} << 20;  // of uploads in parts and ranged downloads; grows when it must
    std::size_t transfer_bytes_max = std::size_t{64}
                                     << 20;  // buffers of one transfer: parts in flight times their size
    unsigned connections = 8;                // of one call at once: parts, ranges, many keys
    unsigned idle_connections_max = 16;      // kept by the Cache between calls
    int compression_level = 6;               // zlib's
    std::size_t buffer_bytes = 0;            // libcurl's, of one connection; 0: 32 to 512 KiB by what is sent

    // the network
    std::string ca_bundle{};  // PEM file; empty: AWS_CA_BUNDLE, the profile's, SSL_CERT_FILE, libcurl's, the system's
    std::string client_certificate{};  // PEM file
    std::string client_key{};          // PEM file
    std::string proxy{};               // empty: the environment's, as libcurl reads it
    std::function<void(void* curl)>
        setup_curl{};  // on each CURL* after our options, before each request that resets it

    // seen from outside
    std::function<TimePoint()> clock{};            // local time; empty: std::chrono::system_clock
    std::function<void(const Event&)> on_event{};  // from the calling thread; must not throw or call the Cache
    Seams seams{};
};

// Settings for a machine with little memory: one connection, small buffers, parts of the least size that S3 takes.
// About 50 KiB of heap for a small get or set beside TLS's own; a stream takes one part of 5 MiB.
inline Config small_memory() {
    Config config;
    config.part_bytes = config.transfer_bytes_max = std::size_t{5} << 20;
    config.connections = config.idle_connections_max = 1;
    config.buffer_bytes = std::size_t{16} << 10;
    config.value_bytes_max = std::uint64_t{16} << 20;
    return config;
}

struct Stats {
    // Every get that was no hit is a miss; `expired` and `malformed` tell how many of those lay there all the same.
    std::uint64_t hits = 0, misses = 0, expired = 0, malformed = 0, damaged = 0, errors = 0;
    std::uint64_t unchanged = 0;    // get_if_changed; neither hits nor misses
    std::uint64_t tolerated = 0;    // errors told as misses: Config::errors_are_misses
    std::uint64_t unavailable = 0;  // calls that the breaker kept back
    std::uint64_t computed = 0, waited = 0,
                  stale = 0;  // of get_or_set: producers run, values of others, expired ones served
    std::uint64_t sets = 0, removes = 0, refused = 0;  // refused: a write condition was not met
    std::uint64_t unconditional = 0;                   // conditional writes that the store could not vouch for
    std::uint64_t requests = 0, retries = 0, connections = 0, leftover_uploads = 0;
    std::uint64_t bytes_in = 0, bytes_out = 0;  // bodies
};

// --- Cache -----------------------------------------------------------------------------------------------------------

struct Entry {
    std::string key{};  // without the cache's prefix
    Info info{};
};

enum class Look { shallow, deep };  // deep: one more request an entry, for what a listing does not tell

// A range of entries in the store's order (UTF-8 bytes on AWS), one page of the store's in memory at a time.
class Listing {
public:
    Listing(Listing&&) noexcept;
    Listing& operator=(Listing&&) noexcept;
    ~Listing();

    Result<std::optional<Entry>> try_next();  // empty: the end

    class Iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Entry;
        using difference_type = std::ptrdiff_t;
        using pointer = const Entry*;
        using reference = const Entry&;

        Iterator() = default;
        explicit Iterator(Listing& listing) : listing_(&listing) { ++*this; }
        reference operator*() const { return *entry_; }
        pointer operator->() const { return &*entry_; }
        Iterator& operator++() {
            entry_ = listing_->try_next().value();
            if (!entry_) listing_ = nullptr;
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(const Iterator& a, const Iterator& b) { return a.listing_ == b.listing_; }
        friend bool operator!=(const Iterator& a, const Iterator& b) { return !(a == b); }

    private:
        Listing* listing_ = nullptr;
        std::optional<Entry> entry_;
    };
#if S3CACHE_EXCEPTIONS
    Iterator begin() { return Iterator(*this); }
    Iterator end() { return {}; }
#endif

    explicit Listing(std::unique_ptr<detail::ListingState> state) noexcept;

private:
    std::unique_ptr<detail::ListingState> state_;
};

struct Item {  // of set_many; the payload is borrowed
    std::string key;
    Payload payload;
    SetOptions options{};
};

// What get_if_changed found. Unchanged: the entry has that ETag still, and its time is not up. Else as get().
struct Revalidated {
    bool unchanged = false;
    std::optional<Value> value{};
};

// Rules by which the store itself keeps a bucket small, in whole days. Zero: no such rule.
struct Lifecycle {
    unsigned abort_uploads_after = 1;  // uploads in parts that nobody completed: what a crash leaves
    unsigned expire_after = 0;  // entries, counted from when they were written, whatever their TTL: the longest in use
};

// One line of what Cache::explain() found; never a secret.
struct Finding {
    enum class Verdict { used, passed_over, broken, not_asked };
    std::string about;  // such as "credentials: environment", "region", "endpoint", "clock"
    Verdict verdict = Verdict::not_asked;
    std::string text;
};

namespace detail {
// A producer's result, owned: what get_or_set stores and returns.
struct Produced {
    std::string data;
    std::optional<Kind> kind;  // empty: text, or bytes if it is not UTF-8
    bool negative = false;
};
template <class T>
struct optional_in {};  // what an optional holds
template <class T>
struct optional_in<std::optional<T>> {
    using type = T;
};
template <class T, class = void>
struct is_optional : std::false_type {};
template <class T>
struct is_optional<T, std::void_t<typename optional_in<T>::type>> : std::true_type {};
Error about(const char* operation, std::string_view key, const Error& error);  // the same, told of what it happened to
template <class T>
Result<std::string> encode(const T& value);
template <class T>
Result<T> decode(std::string_view data);
template <class T>
Result<T> decoded(const Value& value);
template <class R>
Result<Produced> produced(R&& result);
template <class F>
auto guarded(F&& call, const char* who) -> std::decay_t<decltype(call())>;
}  // namespace detail

// A bucket as a cache. Movable; thread-safe; cheap to make: nothing is sent before the first operation. What every
// operation has in common:
//   key      1 to 1024 bytes of UTF-8 without NUL, the prefix included; anything else is Errc::invalid_argument
//   expired  an entry past its `expires_at`, by the store's clock, counts as absent
//   blocks   until done, or until Config's timeouts and attempts are used up
//   errors   try_ forms return them, the others throw the same Error (or what the caller's own callback threw)
class Cache {
public:
    // `where`: "bucket", or "s3://bucket/prefix?region=...&endpoint=...&path_style=true". What the URL says goes before
    // `config`. Sends nothing; a malformed bucket, region or endpoint is Errc::invalid_argument.
    static Result<Cache> try_open(std::string_view where, Config config = {});

    Cache(Cache&&) noexcept;
    Cache& operator=(Cache&&) noexcept;
    ~Cache();

    // Stores the payload under the key, replacing what was there at one stroke: readers see the old value or the new.
    // False only if a write condition of the options was not met. On an error what was stored before stays; the one
    // exception is an answer that got lost (Errc::network, timed_out): then either value may be there.
    Result<bool> try_set(std::string_view key, Payload payload, const SetOptions& options = {});
    // The same from a stream of any length: one PUT if it fits Config::part_bytes, else in parts. Memory is bounded by
    // Config::transfer_bytes_max. If the source fails or throws, nothing is stored and nothing is left behind.
    Result<bool> try_set(std::string_view key, Source source, const SetOptions& options = {});
    // The file's bytes, of any size, without holding them. A file that changes meanwhile is Errc::source.
    Result<bool> try_set_file(std::string_view key, const std::string& path, const SetOptions& options = {});

    // The whole value, decompressed and checked; empty: missing or expired.
    Result<std::optional<Value>> try_get(std::string_view key, const GetOptions& options = {});
    // The same, unless the entry still has this ETag (of an earlier Value or Info): then nothing is sent again.
    Result<Revalidated> try_get_if_changed(std::string_view key, std::string_view etag);
    // The same as a stream.
    Result<std::optional<Reader>> try_get_stream(std::string_view key, const GetOptions& options = {});
    // Into a file, which appears whole (written beside the target, then renamed) or not at all. Empty: no such entry.
    Result<std::optional<Info>> try_get_file(std::string_view key, const std::string& path,
                                             const GetOptions& options = {});

    // No error if there is nothing under the key.
    Result<void> try_remove(std::string_view key);
    // What is known without the body; empty: missing or expired.
    Result<std::optional<Info>> try_stat(std::string_view key);
    Result<bool> try_contains(std::string_view key);
    // A new TTL counted from now, without sending the body; false: missing or expired. The rest of the entry is kept.
    // S3 copies an object onto itself for that, which it does up to 5 GiB.
    Result<bool> try_touch(std::string_view key, Seconds ttl);

    // Everything under the cache's prefix and this one, expired entries included; pages are fetched as one goes.
    Result<Listing> try_list(std::string_view prefix = {}, Look look = Look::shallow);
    // Removes all entries under the prefix, or only those that have expired; how many were removed.
    Result<std::uint64_t> try_clear(std::string_view prefix);
    Result<std::uint64_t> try_purge_expired(std::string_view prefix = {});
    // Aborts uploads in parts that began longer ago than this: what crashed writers left. How many.
    Result<std::uint64_t> try_sweep_uploads(std::string_view prefix, Seconds older_than);

    // Many keys over Config::connections connections at once, in no order; one result a key. Memory holds no more
    // values than there are connections; `visit` runs on the calling thread and must not throw.
    using Visit = std::function<void(const std::string& key, Result<std::optional<Value>> result)>;
    void try_get_many(const std::vector<std::string>& keys, const Visit& visit);
    std::vector<Result<bool>> try_set_many(const std::vector<Item>& items);  // results in the order of the items
    std::vector<Result<void>> try_remove_many(const std::vector<std::string>& keys);

    // A URL that lets anyone GET or PUT the key until `lifetime` (1 s to 7 days) is over, or the credentials that
    // signed it are. Sends nothing, except to find credentials. `method`: "GET" or "PUT".
    Result<std::string> try_presign(std::string_view key, std::string_view method, Seconds lifetime);

    // The value under the key; if there is none, what `producer` returns, stored first. In this process one producer
    // runs for a key at a time, and whoever asks meanwhile waits for its value or error; `how` extends that to other
    // processes, and says what becomes of entries near their end. `producer` returns what a Payload is made from, a
    // Source, a type with a codec, an optional (empty: a negative entry) or a Result of these. A value that cannot be
    // stored is returned all the same: the failure is counted and an event. A producer that asks for its own key:
    // Errc::source.
    template <class F>
    Result<Value> try_get_or_set(std::string_view key, F&& producer, const SetOptions& options = {},
                                 const ComputeOptions& how = {}) {
        return compute(
            key, [&] { return detail::guarded([&] { return detail::produced(producer()); }, "the producer"); }, options,
            how);
    }

    // A user's type, through codec<T>. An optional of one may say that there is nothing: a negative entry, which a get of
    // the plain type refuses (Errc::source), lest it be taken for a miss.
    template <class T>
    std::enable_if_t<detail::has_codec<T>::value, Result<bool>> try_set(std::string_view key, const T& value,
                                                                        const SetOptions& options = {}) {
        Result<std::string> data = detail::encode(value);
        if (!data) return detail::about("set", key, data.error());
        return try_set(key, Payload(data->data(), data->size(), codec<T>::kind), options);
    }
    template <class T>
    std::enable_if_t<detail::has_codec<T>::value, Result<bool>> try_set(std::string_view key,
                                                                        const std::optional<T>& value,
                                                                        const SetOptions& options = {}) {
        return value ? try_set(key, *value, options) : try_set(key, nothing(), options);
    }
    template <class T>
    Result<std::optional<T>> try_get(std::string_view key, const GetOptions& options = {}) {
        Result<std::optional<Value>> hit = try_get(key, options);
        if (!hit) return std::move(hit).error();
        if (!*hit) return std::optional<T>();
        Result<T> value = detail::decoded<T>(**hit);
        if (!value) return detail::about("get", key, value.error());
        return std::optional<T>(*std::move(value));
    }

    // The rules as S3's XML, for this cache's bucket and prefix; and the same put into force beside what other rules the
    // bucket has (needs s3:PutLifecycleConfiguration).
    std::string lifecycle_xml(const Lifecycle& rules) const;
    Result<void> try_install_lifecycle(const Lifecycle& rules);

    // From any thread: every call that is under way on this cache, in whatever thread, and every Reader that is open, ends
    // with Errc::cancelled within some 0.1 s; of a set() either value may then be there. Calls that begin later are not
    // concerned. Does not wait.
    void cancel() noexcept;

    Stats stats() const;
    // Where credentials, region and endpoint come from, source by source, and how far the clock is off. Asks the sources
    // anew (files, metadata services), and the store nothing.
    std::vector<Finding> explain();

#if S3CACHE_EXCEPTIONS
    explicit Cache(std::string_view where, Config config = {}) : Cache(try_open(where, std::move(config)).value()) {}

    bool set(std::string_view key, Payload payload, const SetOptions& options = {}) {
        return try_set(key, payload, options).value();
    }
    bool set(std::string_view key, Source source, const SetOptions& options = {}) {
        return try_set(key, std::move(source), options).value();
    }
    template <class T>
    std::enable_if_t<detail::has_codec<T>::value, bool> set(std::string_view key, const T& value,
                                                            const SetOptions& options = {}) {
        return try_set(key, value, options).value();
    }
    bool set_file(std::string_view key, const std::string& path, const SetOptions& options = {}) {
        return try_set_file(key, path, options).value();
    }
    template <class T>
    std::enable_if_t<detail::has_codec<T>::value, bool> set(std::string_view key, const std::optional<T>& value,
                                                            const SetOptions& options = {}) {
        return try_set(key, value, options).value();
    }
    std::optional<Value> get(std::string_view key, const GetOptions& options = {}) {
        return try_get(key, options).value();
    }
    template <class T>
    std::optional<T> get(std::string_view key, const GetOptions& options = {}) {
        return try_get<T>(key, options).value();
    }
    Revalidated get_if_changed(std::string_view key, std::string_view etag) {
        return try_get_if_changed(key, etag).value();
    }
    std::optional<Reader> get_stream(std::string_view key, const GetOptions& options = {}) {
        return try_get_stream(key, options).value();
    }
    std::optional<Info> get_file(std::string_view key, const std::string& path, const GetOptions& options = {}) {
        return try_get_file(key, path, options).value();
    }
    void remove(std::string_view key) { try_remove(key).value(); }
    std::optional<Info> stat(std::string_view key) { return try_stat(key).value(); }
    bool contains(std::string_view key) { return try_contains(key).value(); }
    bool touch(std::string_view key, Seconds ttl) { return try_touch(key, ttl).value(); }
    Listing list(std::string_view prefix = {}, Look look = Look::shallow) { return try_list(prefix, look).value(); }
    std::uint64_t clear(std::string_view prefix) { return try_clear(prefix).value(); }
    std::uint64_t purge_expired(std::string_view prefix = {}) { return try_purge_expired(prefix).value(); }
    std::uint64_t sweep_uploads(std::string_view prefix, Seconds older_than) {
        return try_sweep_uploads(prefix, older_than).value();
    }
    void get_many(const std::vector<std::string>& keys, const Visit& visit) { try_get_many(keys, visit); }
    std::vector<Result<bool>> set_many(const std::vector<Item>& items) { return try_set_many(items); }
    std::vector<Result<void>> remove_many(const std::vector<std::string>& keys) { return try_remove_many(keys); }
    std::string presign(std::string_view key, std::string_view method, Seconds lifetime) {
        return try_presign(key, method, lifetime).value();
    }
    template <class F>
    Value get_or_set(std::string_view key, F&& producer, const SetOptions& options = {},
                     const ComputeOptions& how = {}) {
        return try_get_or_set(key, std::forward<F>(producer), options, how).value();
    }
    void install_lifecycle(const Lifecycle& rules) { try_install_lifecycle(rules).value(); }
#endif

private:
    explicit Cache(std::shared_ptr<detail::Core> core) noexcept;
    Result<Value> compute(std::string_view key, const std::function<Result<detail::Produced>()>& producer,
                          const SetOptions& options, const ComputeOptions& how);
    std::shared_ptr<detail::Core> core_;
};

namespace detail {

// Calls what the user gave us. An exception becomes an Error that carries it, so that the throwing forms can rethrow it.
template <class F>
auto guarded(F&& call, const char* who) -> std::decay_t<decltype(call())> {
#if S3CACHE_EXCEPTIONS
    Error::Details details;
    details.code = Errc::source;
    try {
        return call();
    } catch (const std::exception& error) {
        details.cause = std::current_exception();
        return Error(std::move(details), std::string(who) + " threw: " + error.what());
    } catch (...) {
        details.cause = std::current_exception();
        return Error(std::move(details), std::string(who) + " threw something that is no std::exception");
    }
#else
    static_cast<void>(who);
    return call();
#endif
}

template <class T>
struct is_result : std::false_type {};
template <class T>
struct is_result<Result<T>> : std::true_type {};

template <class T>
Result<std::string> encode(const T& value) {
    return guarded([&]() -> Result<std::string> { return codec<T>::encode(value); }, "codec::encode");
}

template <class T>
Result<T> decode(std::string_view data) {
    return guarded([&]() -> Result<T> { return codec<T>::decode(data); }, "codec::decode");
}

template <class T>
Result<T> decoded(const Value& value) {
    if constexpr (is_optional<T>::value) {
        if (value.negative()) return T();
        return decode<typename optional_in<T>::type>(value.view()).transform([](auto&& inner) {
            return T(std::move(inner));
        });
    } else {
        if (value.negative())
            return Error(Errc::source, "the entry says that there is nothing: get an optional of the type");
        return decode<T>(value.view());
    }
}

Result<Produced> drained(const Source& source);  // the whole source in memory

template <class R>
Result<Produced> produced(R&& result) {
    using T = std::decay_t<R>;
    if constexpr (is_result<T>::value) {
        if (!result) return std::forward<R>(result).error();
        return produced(*std::forward<R>(result));
    } else if constexpr (is_optional<T>::value) {
        if (!result) return Produced{"null", Kind::json, true};
        return produced(*std::forward<R>(result));
    } else if constexpr (std::is_same_v<T, std::string>) {
        return Produced{std::forward<R>(result), {}};
    } else if constexpr (has_codec<T>::value) {
        return encode(result).transform([](std::string&& data) { return Produced{std::move(data), codec<T>::kind}; });
    } else if constexpr (std::is_convertible_v<R, Payload>) {
        const Payload payload = result;
        if (!payload.present()) return Error(Errc::source, "the producer returned a null pointer");
        return Produced{std::string(payload.view()), payload.kind(), payload.negative()};
    } else {
        return drained(Source(std::forward<R>(result)));
    }
}

}  // namespace detail
}  // namespace S3CACHE_ABI
}  // namespace s3cache

#endif  // S3CACHE_HPP

// =====================================================================================================================
// IMPLEMENTATION. Nothing above this line knows libcurl, OpenSSL or zlib. Each section uses only those above it.
// =====================================================================================================================

#if (!defined(S3CACHE_DECLARATIONS_ONLY) || defined(S3CACHE_IMPLEMENTATION)) && !defined(S3CACHE_HPP_IMPLEMENTATION)
#define S3CACHE_HPP_IMPLEMENTATION

#include <curl/curl.h>       // http
#include <openssl/crypto.h>  // wiping secrets
#include <openssl/evp.h>     // digests
#include <openssl/rand.h>    // ids, jitter
#ifndef S3CACHE_NO_GZIP
#include <zlib.h>  // gzip
#endif

#include <algorithm>           // min, max, sort, find
#include <array>               // digests, tables
#include <atomic>              // counters
#include <cerrno>              // why a file could not be had
#include <condition_variable>  // waiting for another thread's credentials or value
#include <cstdio>              // files
#include <cstring>             // memcpy, strerror
#include <initializer_list>    // short lists of names
#include <istream>             // Source and Reader as streams
#include <limits>              // overflow checks
#include <cmath>               // floor, ldexp
#include <map>                 // sections of configuration files
#include <mutex>               // the pool, credentials, flights
#include <new>                 // std::nothrow
#include <streambuf>           // Reader::istream
#include <thread>              // sleeping, thread ids
#if defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>  // the CRC-32C instruction
#endif
#if !defined(_WIN32)
#include <arpa/inet.h>  // the one way to write an address
#include <csignal>      // SIGPIPE
#include <fcntl.h>      // descriptors that a child does not inherit
#include <poll.h>       // waiting for a child's output
#include <pwd.h>        // the home directory
#include <spawn.h>      // credential_process
#include <sys/stat.h>   // whether others may read a credentials file
#include <sys/wait.h>   // a child's exit status
#include <unistd.h>     // getpid, getuid
#if defined(__APPLE__)
#include <crt_externs.h>  // the environment, as a library may see it
#else
extern char** environ;
#endif
#endif

namespace s3cache {
inline namespace S3CACHE_ABI {

// --- utf8: is a value text? RFC 3629, which is what Python's bytes.decode('utf-8') enforces.

namespace detail::utf8 {

// A char may be signed, and a negative one must never index a table or be compared with 0x7F.
inline constexpr unsigned char octet(char c) { return static_cast<unsigned char>(c); }

inline constexpr bool is_continuation(char c) { return (octet(c) & 0xC0) == 0x80; }

// The second byte's range is what rules out overlong forms (E0, F0), surrogates (ED) and values past U+10FFFF (F4).
inline constexpr bool second_fits(unsigned char first, char second) {
    const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return octet(second) >= low && octet(second) <= high;
}

// Length of the sequence that starts at `at`, or 0 where none does. `at` must be inside the text.
inline std::size_t sequence(std::string_view text, std::size_t at) {
    const unsigned char first = octet(text[at]);
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || text.size() - at < length) return 0;
    if (!second_fits(first, text[at + 1])) return 0;
    for (std::size_t i = 2; i < length; ++i) {
        if (!is_continuation(text[at + i])) return 0;
    }
    return length;
}

// Eight bytes at a time: most values are ASCII throughout, and this check runs over every value that has no `kind`.
inline std::size_t ascii_run(std::string_view text, std::size_t at) {
    const std::size_t begin = at;
    while (text.size() - at >= sizeof(std::uint64_t)) {
        std::uint64_t word = 0;
        std::memcpy(&word, text.data() + at, sizeof word);
        if ((word & 0x8080808080808080U) != 0) break;
        at += sizeof word;
    }
    while (at < text.size() && octet(text[at]) < 0x80) ++at;
    return at - begin;
}

inline bool valid(std::string_view text) {
    std::size_t at = ascii_run(text, 0);
    while (at < text.size()) {
        const std::size_t length = sequence(text, at);
        if (length == 0) return false;
        at += length;
        if (length == 1) at += ascii_run(text, at);
    }
    return true;
}

// For code points that UTF-8 can carry: at most U+10FFFF and no surrogate.
inline void append(std::string& out, std::uint32_t code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
        return;
    }
    const unsigned more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(lead[more] | (code >> (6 * more)));
    for (unsigned i = more; i-- > 0;) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
}

}  // namespace detail::utf8

// --- bytes: hex, base64, percent-encoding, ASCII case, trimming, checked numbers. Nothing here asks the locale.

namespace detail::bytes {

using utf8::octet;

inline constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

inline constexpr bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

inline constexpr char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

inline std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out) c = lower(c);
    return out;
}

inline bool iequal(std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (a[i] != b[i] && lower(a[i]) != lower(b[i])) return false;
    }
    return true;
}

inline bool starts_with(std::string_view text, std::string_view prefix) {
    return text.size() >= prefix.size() && std::string_view(text.data(), prefix.size()) == prefix;
}

inline bool ends_with(std::string_view text, std::string_view suffix) {
    return text.size() >= suffix.size() &&
           std::string_view(text.data() + text.size() - suffix.size(), suffix.size()) == suffix;
}

// CR and LF count as blanks because header lines arrive with their line end and hand-written files may be CRLF.
inline constexpr bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

inline std::string_view trim(std::string_view text) {
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    return text;
}

// A header with such a byte would let its author add headers of their own, so callers refuse it before signing.
inline bool has_control(std::string_view text) {
    for (char c : text) {
        if ((octet(c) < 0x20 && c != '\t') || octet(c) == 0x7F) return true;
    }
    return false;
}

// The value of a hexadecimal digit of either case, or -1.
inline constexpr int hex_value(char c) {
    if (is_digit(c)) return c - '0';
    const char letter = lower(c);
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

// Lower case, because that is what SigV4 signs.
inline void append_hex(std::string& out, std::string_view raw) {
    constexpr std::string_view digits = "0123456789abcdef";
    const std::size_t size = out.size();
    out.resize(size + 2 * raw.size());
    char* at = &out[0] + size;
    for (char c : raw) {
        *at++ = digits[octet(c) >> 4];
        *at++ = digits[octet(c) & 15];
    }
}

inline std::string hex(std::string_view raw) {
    std::string out;
    out.reserve(raw.size() * 2);
    append_hex(out, raw);
    return out;
}

// For short texts such as checksums: OpenSSL counts bytes in an int.
inline std::string base64(std::string_view raw) {
    std::string out((raw.size() + 2) / 3 * 4, '\0');
    EVP_EncodeBlock(reinterpret_cast<unsigned char*>(&out[0]), reinterpret_cast<const unsigned char*>(raw.data()),
                    static_cast<int>(raw.size()));
    return out;
}

// Strict RFC 4648: what does not encode to the same text again is refused, since OpenSSL skips blanks and takes whatever
// bits the padding leaves over. Two texts never decode to the same bytes.
inline std::optional<std::string> unbase64(std::string_view text) {
    const std::size_t pads = ends_with(text, "==") ? 2 : ends_with(text, "=") ? 1 : 0;
    if (text.size() % 4 != 0) return std::nullopt;
    std::string out(text.size() / 4 * 3, '\0');
    if (EVP_DecodeBlock(reinterpret_cast<unsigned char*>(&out[0]), reinterpret_cast<const unsigned char*>(text.data()),
                        static_cast<int>(text.size())) < 0)
        return std::nullopt;
    out.resize(out.size() - pads);
    if (base64(out) != text) return std::nullopt;
    return out;
}

inline constexpr bool is_unreserved(char c) {
    return is_alpha(c) || is_digit(c) || c == '-' || c == '.' || c == '_' || c == '~';
}

// The one encoder of the library: request URL and canonical URI must come from the same text, since some stores decode
// and encode again before they check the signature. Upper-case hex for the same reason.
inline void append_percent(std::string& out, std::string_view raw, bool keep_slash) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (char c : raw) {
        if (is_unreserved(c) || (keep_slash && c == '/')) {
            out += c;
        } else {
            out += '%';
            out += digits[octet(c) >> 4];
            out += digits[octet(c) & 15];
        }
    }
}

// A stray or cut escape is refused: guessing what was meant could name another object.
inline std::optional<std::string> unpercent(std::string_view text, bool plus_is_space) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += plus_is_space && text[i] == '+' ? ' ' : text[i];
            continue;
        }
        if (text.size() - i < 3) return std::nullopt;
        const int high = hex_value(text[i + 1]);
        const int low = hex_value(text[i + 2]);
        if (high < 0 || low < 0) return std::nullopt;
        out += static_cast<char>(high * 16 + low);
        i += 2;
    }
    return out;
}

// One or more ASCII digits and nothing else. strtoull would take blanks, signs and "-1" as a huge number.
inline std::optional<std::uint64_t> to_u64(std::string_view text) {
    constexpr std::uint64_t most = (std::numeric_limits<std::uint64_t>::max)();
    if (text.empty()) return std::nullopt;
    std::uint64_t value = 0;
    for (char c : text) {
        if (!is_digit(c)) return std::nullopt;
        const std::uint64_t digit = static_cast<std::uint64_t>(c - '0');
        if (value > (most - digit) / 10) return std::nullopt;
        value = value * 10 + digit;
    }
    return value;
}

using Pairs = std::vector<std::pair<std::string, std::string>>;

// One function for all who name a header, a field or a parameter: emplace_back is compiled anew for each type of argument.
inline void add(Pairs& to, std::string_view name, std::string_view value) {
    to.emplace_back(std::string(name), std::string(value));
}

inline void append_number(std::string& out, std::uint64_t value) {
    char digits[20];  // 2^64 - 1 has twenty of them
    std::size_t at = sizeof digits;
    do {
        digits[--at] = static_cast<char>('0' + value % 10);
        value /= 10;
    } while (value != 0);
    out.append(digits + at, sizeof digits - at);
}

inline std::string number(std::uint64_t value) {
    std::string out;
    append_number(out, value);
    return out;
}

// To be called where `text` ends before an '@': hides what stands before it in the same word if that may be the user info
// of a URL, or of a proxy named without a scheme. A secret key may hold a slash, so what looks like a host and a port
// whose port is no number is hidden too.
inline void hide_user_info(std::string& text) {
    const std::size_t word = text.find_last_of(" \t\r\n\"'`<>") + 1;  // npos + 1 is 0
    const std::size_t scheme = text.find("://", word);
    const bool is_url = scheme != std::string::npos;
    const std::size_t begin = is_url ? text.rfind("://") + 3 : word;
    const std::size_t colon = text.find(':', begin);
    const std::size_t slash = text.find('/', begin);
    const bool has_port = text.find_first_not_of("0123456789", colon + 1) >= slash &&
                          !ends_with(std::string_view(text).substr(0, begin), "s3://");
    const bool is_user_info =
        slash == std::string::npos ? is_url || colon != slash : is_url && colon < slash && !has_port;
    if (is_user_info) text.replace(begin, std::string::npos, "******");
}

inline constexpr std::size_t sanitized_bytes_max = 300;

// Foreign text in a message: one line, not a long one, and without the passwords of URLs. Bytes that a terminal would
// obey or that are no UTF-8 are written as \xNN.
inline std::string sanitize(std::string_view text) {
    std::string known;
    for (char c : text.substr(0, 10 * sanitized_bytes_max)) {  // before it is cut, so that every '@' is seen
        if (c == '@') hide_user_info(known);
        known += c;
    }
    std::string out;
    for (std::size_t at = 0; at < known.size();) {
        const std::size_t length = (std::max)(utf8::sequence(known, at), std::size_t{1});
        std::string piece = known.substr(at, length);
        const unsigned char first = octet(piece[0]);
        const bool is_control = first < 0x20 || first == 0x7F || (first == 0xC2 && octet(piece.back()) < 0xA0);
        if (is_control || (length == 1 && first >= 0x80)) {
            piece = "\\x" + hex(piece.substr(0, 1));
            if (length == 2) piece += "\\x" + hex(known.substr(at + 1, 1));
        }
        if (out.size() + piece.size() > sanitized_bytes_max) return out + "...";
        out += piece;
        at += length;
    }
    return out;
}

// Overwrites a secret before its memory goes back; a plain loop may be removed as a dead store. The bytes between size
// and capacity are covered too, since an earlier, longer value may still lie there.
inline void wipe(std::string& secret) {
    secret.resize(secret.capacity());
    if (!secret.empty()) OPENSSL_cleanse(&secret[0], secret.size());
    secret.clear();
}

}  // namespace detail::bytes

// --- json: what Python's json.loads would take, and a field of a small answer. No tree is ever built.

namespace detail::json {

// CPython gives up at 995 levels (3.8 to 3.11) with an error that is not a ValueError; stopping a little earlier keeps
// such a value readable as text on both sides, and keeps our own stack flat.
inline constexpr std::size_t depth_levels_max = 990;

// CPython refuses longer integers because converting them takes quadratic time. Floats have no such limit.
inline constexpr std::size_t integer_digits_max = 4300;

// Walks a text that is known to be UTF-8. The functions return false where the text is not JSON, and leave the position
// after what they took.
class Scanner {
public:
    explicit Scanner(std::string_view text) : text_(text) {}

    std::size_t position() const { return at_; }
    bool at_end() const { return at_ == text_.size(); }
    char peek() const { return at_end() ? '\0' : text_[at_]; }
    char next() { return at_end() ? '\0' : text_[at_++]; }

    void blanks() {
        while (!at_end() && bytes::is_blank(text_[at_])) ++at_;
    }

    bool take(char wanted) {
        if (at_end() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    // After a backslash: the UTF-16 unit that the escape stands for.
    std::optional<std::uint32_t> escape() {
        constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const char c = next();
        const std::size_t letter = letters.find(c);
        if (letter != std::string_view::npos) return bytes::octet(meanings[letter]);
        std::uint32_t unit = 0;
        for (int i = 0; i < 4; ++i) {
            const int digit = c == 'u' ? bytes::hex_value(next()) : -1;
            if (digit < 0) return std::nullopt;
            unit = unit * 16 + static_cast<std::uint32_t>(digit);
        }
        return unit;
    }

    bool string() {
        if (!take('"')) return false;
        while (!at_end()) {
            const char c = text_[at_++];
            if (c == '"') return true;
            if (bytes::octet(c) < 0x20) return false;
            if (c == '\\' && !escape()) return false;
        }
        return false;
    }

    // A value of any depth, by a loop: recursion would let a stored value choose how much stack we use.
    bool value() {
        std::size_t depth = 0;
        std::array<bool, depth_levels_max> is_object;  // of the containers still open; written before it is read
        for (;;) {
            blanks();
            const char opening = peek();
            if (opening == '{' || opening == '[') {
                if (depth == depth_levels_max) return false;
                is_object[depth++] = opening == '{';
                ++at_;
                blanks();
                if (!take(opening == '{' ? '}' : ']')) {
                    if (opening == '{' && !key()) return false;
                    continue;
                }
                --depth;
            } else if (!scalar()) {
                return false;
            }
            if (!close(is_object, depth)) return false;
            if (depth == 0) return true;
        }
    }

    bool key() {
        blanks();
        if (!string()) return false;
        blanks();
        return take(':');
    }

private:
    // After a value: closes what ends here. On success another value follows, or, at depth 0, nothing more is open.
    bool close(const std::array<bool, depth_levels_max>& is_object, std::size_t& depth) {
        while (depth > 0) {
            blanks();
            const bool object = is_object[depth - 1];
            if (take(',')) return !object || key();
            if (!take(object ? '}' : ']')) return false;
            --depth;
        }
        return true;
    }

    bool scalar() {
        if (peek() == '"') return string();
        for (std::string_view word : {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
            if (peek() != word[0] || !bytes::starts_with(text_.substr(at_), word)) continue;
            at_ += word.size();
            return true;
        }
        return number();
    }

    bool number() {
        take('-');
        const bool zero = peek() == '0';
        const std::size_t integer = digits();
        if (integer == 0 || (zero && integer > 1)) return false;
        bool is_float = false;
        if (take('.')) {
            if (digits() == 0) return false;
            is_float = true;
        }
        if (take('e') || take('E')) {
            if (!take('-')) take('+');
            if (digits() == 0) return false;
            is_float = true;
        }
        return is_float || integer <= integer_digits_max;
    }

    std::size_t digits() {
        const std::size_t begin = at_;
        while (!at_end() && bytes::is_digit(text_[at_])) ++at_;
        return at_ - begin;
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

inline bool valid(std::string_view text) {
    if (!utf8::valid(text)) return false;
    Scanner scanner(text);
    if (!scanner.value()) return false;
    scanner.blanks();
    return scanner.at_end();
}

// The inside of a string literal that a scanner has taken. Half of a surrogate pair is no character and UTF-8 cannot carry
// it, so it is refused; replacing it would quietly change what may be a secret.
inline std::optional<std::string> unescape(std::string_view inside) {
    Scanner scanner(inside);
    std::string out;
    while (!scanner.at_end()) {
        if (!scanner.take('\\')) {
            out += scanner.next();
            continue;
        }
        std::uint32_t code = scanner.escape().value_or(0);
        if (code >= 0xD800 && code <= 0xDFFF) {
            const std::uint32_t low = scanner.take('\\') ? scanner.escape().value_or(0) : 0;
            if (code > 0xDBFF || low < 0xDC00 || low > 0xDFFF) return std::nullopt;
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        utf8::append(out, code);
    }
    return out;
}

// The raw text of a top-level member's value. Among members of one name the last wins, as in Python; empty if the
// text is not a JSON object or has no such member, and a value is never empty.
inline std::string_view member(std::string_view object, std::string_view name) {
    std::string_view found;
    Scanner scanner(object);
    scanner.blanks();
    if (scanner.peek() != '{' || !valid(object)) return found;
    scanner.take('{');
    do {
        scanner.blanks();
        const std::size_t begin = scanner.position();
        if (!scanner.string()) return found;  // the object is empty
        const std::string_view literal = object.substr(begin + 1, scanner.position() - begin - 2);
        scanner.blanks();
        scanner.take(':');
        scanner.blanks();
        const std::size_t value = scanner.position();
        scanner.value();
        if (unescape(literal) == name) found = object.substr(value, scanner.position() - value);
        scanner.blanks();
    } while (scanner.take(','));
    return found;
}

// Meant for the small answers of credential services, not for values of any size.
inline std::optional<std::string> string_field(std::string_view object, std::string_view name) {
    const std::string_view value = member(object, name);
    if (value.empty() || value.front() != '"') return std::nullopt;
    return unescape(value.substr(1, value.size() - 2));
}

// The number's own text, since only the caller knows whether it is a count or a time. NaN and Infinity are no numbers.
inline std::optional<std::string> number_field(std::string_view object, std::string_view name) {
    const std::string_view value = member(object, name);
    if (value.empty() || !bytes::is_digit(value.back()) || value.front() == '"') return std::nullopt;
    return std::string(value);
}

}  // namespace detail::json

// --- dates: times as S3, HTTP and the Python class write them. No clock, no locale, no struct tm.

namespace detail::dates {

using TimePoint = std::chrono::system_clock::time_point;

inline constexpr std::int64_t seconds_per_day = 86400;

// -- calendar

enum Part : std::size_t { year, month, day, hour, minute, second, offset_hour, offset_minute, parts };
inline constexpr std::string_view part_letters = "yndhmsHN";  // one digit of each in the patterns below

// In numbers as people write them: 2025, 1, 15, 12, 34, 56, and the offset from UTC.
using Parts = std::array<std::int64_t, parts>;

// Years are counted from March, so that the leap day is a year's last and months have one simple formula.
inline constexpr std::int64_t days_from_epoch_to_march_0 = -719468;

inline constexpr std::int64_t days_since_epoch(std::int64_t of_year, std::int64_t of_month, std::int64_t of_day) {
    const std::int64_t years = of_year - (of_month <= 2 ? 1 : 0);
    const std::int64_t day_of_year = (153 * ((of_month + 9) % 12) + 2) / 5 + of_day - 1;
    return years * 365 + years / 4 - years / 100 + years / 400 + day_of_year + days_from_epoch_to_march_0;
}

// Inverse of days_since_epoch, with the time of day; for times from year 0 on.
inline Parts parts_of(std::int64_t unix_seconds) {
    constexpr std::int64_t era = 146097, century = 36524, leap_cycle = 1461;  // days in 400, 100 and 4 years
    std::int64_t rest = unix_seconds / seconds_per_day - days_from_epoch_to_march_0;
    const std::int64_t in_day = unix_seconds % seconds_per_day;
    std::int64_t years = rest / era * 400;
    rest %= era;
    const std::int64_t centuries = (std::min)(rest / century, std::int64_t{3});  // an era's last day is a century's too
    rest -= centuries * century;
    years += centuries * 100 + rest / leap_cycle * 4;
    rest %= leap_cycle;
    const std::int64_t single = (std::min)(rest / 365, std::int64_t{3});
    rest -= single * 365;
    const std::int64_t months = (5 * rest + 2) / 153;  // since March
    return {years + single + (months >= 10 ? 1 : 0),
            months < 10 ? months + 3 : months - 9,
            rest - (153 * months + 2) / 5 + 1,
            in_day / 3600,
            in_day / 60 % 60,
            in_day % 60};
}

// A day that is not in the calendar comes back as another one. 60 is a leap second; it counts as the first second of the
// next minute, as in POSIX time.
inline bool is_real(const Parts& time) {
    if (time[year] < 1 || time[month] < 1 || time[month] > 12 || time[day] < 1 || time[day] > 31) return false;
    const std::int64_t days = days_since_epoch(time[year], time[month], time[day]);
    const bool in_month = days_since_epoch(time[year] + (time[month] == 12), time[month] % 12 + 1, 1) > days;
    return in_month && time[hour] <= 23 && time[minute] <= 59 && time[second] <= 60 && time[offset_hour] <= 23 &&
           time[offset_minute] <= 59;
}

// The clock may count nanoseconds in 64 bits, which ends in 2262: what lies outside becomes the nearest end, so that
// credentials valid until the year 9999 are valid for long, and not expired.
inline TimePoint clamped(std::int64_t seconds, std::int64_t nanoseconds) {
    using Duration = TimePoint::duration;
    using Seconds = std::chrono::seconds;
    if (seconds >= std::chrono::duration_cast<Seconds>((Duration::max)()).count()) return (TimePoint::max)();
    if (seconds < std::chrono::duration_cast<Seconds>((Duration::min)()).count()) return (TimePoint::min)();
    return TimePoint(std::chrono::duration_cast<Duration>(Seconds(seconds)) +
                     std::chrono::duration_cast<Duration>(std::chrono::nanoseconds(nanoseconds)));
}

inline TimePoint to_time_point(double unix_seconds) {
    constexpr double most = 9e18;  // fits in 64 bits, and is past the end of every clock
    const double bounded = (std::max)(-most, (std::min)(most, unix_seconds));
    const double whole = std::floor(bounded);
    return clamped(static_cast<std::int64_t>(whole), static_cast<std::int64_t>((bounded - whole) * 1e9));
}

inline std::int64_t unix_seconds(TimePoint when) {
    return std::chrono::duration_cast<std::chrono::seconds>(when.time_since_epoch()).count();
}

// -- reading

class Scanner {
public:
    explicit Scanner(std::string_view text) : rest_(bytes::trim(text)) {}

    // Takes what the pattern shows, or nothing. A letter of part_letters is a digit of that part; others are themselves.
    bool take(std::string_view pattern) {
        if (rest_.size() < pattern.size()) return false;
        Parts read = parts_;
        for (std::size_t i = 0; i < pattern.size(); ++i) {
            const std::size_t part = part_letters.find(pattern[i]);
            const bool is_part = part != std::string_view::npos;
            if (is_part ? !bytes::is_digit(rest_[i]) : rest_[i] != pattern[i]) return false;
            if (is_part) read[part] = read[part] * 10 + (rest_[i] - '0');
        }
        parts_ = read;
        rest_.remove_prefix(pattern.size());
        return true;
    }

    bool take_any(std::initializer_list<std::string_view> patterns) {
        for (std::string_view pattern : patterns) {
            if (take(pattern)) return true;
        }
        return false;
    }

    // One of names of three letters each.
    bool take_name(std::string_view names, std::int64_t& number) {
        const std::size_t at = names.find(rest_.substr(0, 3));
        if (rest_.size() < 3 || at == std::string_view::npos || at % 3 != 0) return false;
        number = static_cast<std::int64_t>(at / 3 + 1);
        rest_.remove_prefix(3);
        return true;
    }
    bool take_month() { return take_name("JanFebMarAprMayJunJulAugSepOctNovDec", parts_[month]); }

    // Digits beyond the ninth are read and dropped: no clock here counts them.
    bool take_fraction() {
        std::int64_t unit = 100000000;
        const std::size_t before = rest_.size();
        for (; !rest_.empty() && bytes::is_digit(rest_.front()); rest_.remove_prefix(1), unit /= 10) {
            nanosecond_ += unit * (rest_.front() - '0');
        }
        return rest_.size() < before;
    }

    // `east` is the offset's sign. Empty: something is left over, or there is no such time.
    std::optional<TimePoint> time(std::int64_t east) const {
        if (!rest_.empty() || !is_real(parts_)) return std::nullopt;
        const std::int64_t minutes = parts_[hour] * 60 + parts_[minute];
        const std::int64_t offset = parts_[offset_hour] * 60 + parts_[offset_minute];
        const std::int64_t days = days_since_epoch(parts_[year], parts_[month], parts_[day]);
        return clamped(days * seconds_per_day + (minutes - east * offset) * 60 + parts_[second], nanosecond_);
    }

private:
    std::string_view rest_;
    Parts parts_{};
    std::int64_t nanosecond_ = 0;
};

// 2025-01-15T12:34:56Z, with a fraction or an offset: credentials' Expiration and S3's LastModified. A time without either
// Z or offset is read as UTC, because AWS never means a local time.
inline std::optional<TimePoint> iso8601(std::string_view text) {
    Scanner scanner(text);
    if (!scanner.take("yyyy-nn-dd") || !scanner.take_any({"T", "t", " "}) || !scanner.take("hh:mm:ss"))
        return std::nullopt;
    if (scanner.take_any({".", ","}) && !scanner.take_fraction()) return std::nullopt;
    const std::int64_t east = scanner.take("+") ? 1 : scanner.take("-") ? -1 : 0;
    if (!scanner.take_any({"HH:NN", "HHNN", "HH"}) && east != 0) return std::nullopt;
    if (east == 0) scanner.take_any({"Z", "z"});
    return scanner.time(east);
}

// Sun, 06 Nov 1994 08:49:37 GMT: the one form of RFC 9110 that may be sent. Some servers write UTC, or 6 for 06. Whether
// the day's name is right is not checked: it carries no information.
inline std::optional<TimePoint> http_date(std::string_view text) {
    Scanner scanner(text);
    std::int64_t weekday = 0;
    const bool read = scanner.take_name("MonTueWedThuFriSatSun", weekday) && scanner.take(", ") &&
                      scanner.take_any({"dd ", "d "}) && scanner.take_month() && scanner.take(" yyyy hh:mm:ss ") &&
                      scanner.take_any({"GMT", "UTC"});
    return read ? scanner.time(0) : std::nullopt;
}

// -- writing

// Signatures and answers know four-digit years only, so times outside 1970 to 9999 become the nearest one inside.
inline void append_utc(std::string& out, std::int64_t unix_seconds, std::string_view pattern) {
    constexpr std::int64_t last = (days_since_epoch(9999, 12, 31) + 1) * seconds_per_day - 1;
    Parts time = parts_of((std::max)(std::int64_t{0}, (std::min)(unix_seconds, last)));
    std::string text(pattern);
    for (std::size_t i = text.size(); i-- > 0;) {
        const std::size_t part = part_letters.find(text[i]);
        if (part == std::string_view::npos) continue;
        text[i] = static_cast<char>('0' + time[part] % 10);
        time[part] /= 10;
    }
    out += text;
}

// The form of x-amz-date: 20250115T123456Z.
inline void append_amz_date(std::string& out, std::int64_t unix_seconds) {
    append_utc(out, unix_seconds, "yyyynnddThhmmssZ");
}

// 2025-01-15T12:34:56Z
inline std::string iso8601_text(std::int64_t unix_seconds) {
    std::string out;
    append_utc(out, unix_seconds, "yyyy-nn-ddThh:mm:ssZ");
    return out;
}

// -- expires_at: Python's float(text), for plain decimal numbers. strtod asks the locale for the decimal point, and
// from_chars for double is missing from many libraries that C++17 programs are built with.

// e5, E-10. An exponent that no number of so few digits needs becomes a large one, which decides alone.
inline std::optional<std::int64_t> read_exponent(std::string_view text) {
    constexpr std::int64_t most = 1000000;
    if (text.empty() || bytes::lower(text[0]) != 'e') return std::nullopt;
    text.remove_prefix(1);
    const bool is_negative = bytes::starts_with(text, "-");
    if (is_negative || bytes::starts_with(text, "+")) text.remove_prefix(1);
    if (text.empty()) return std::nullopt;
    std::int64_t exponent = 0;
    for (char c : text) {
        if (!bytes::is_digit(c)) return std::nullopt;
        exponent = (std::min)(exponent * 10 + (c - '0'), most);
    }
    return is_negative ? -exponent : exponent;
}

// Exact where the digits are below 2^53 and the exponent is within 22, since 10^22 is a double and one operation rounds
// once. Elsewhere the last bits may differ from Python's, which is far below a microsecond for any time near ours.
inline double scaled(std::uint64_t digits, std::int64_t exponent) {
    for (; digits != 0 && digits % 10 == 0; digits /= 10) ++exponent;
    double value = static_cast<double>(digits);
    for (std::int64_t left = (std::min)(std::abs(exponent), std::int64_t{400}); left > 0; left -= 22) {
        double power = 1;
        for (std::int64_t i = (std::min)(left, std::int64_t{22}); i > 0; --i) power *= 10;
        value = exponent < 0 ? value / power : value * power;
    }
    return value;
}

inline std::optional<double> read_magnitude(std::string_view text) {
    if (bytes::iequal(text, "inf") || bytes::iequal(text, "infinity")) return std::numeric_limits<double>::infinity();
    if (bytes::iequal(text, "nan")) return std::numeric_limits<double>::quiet_NaN();
    constexpr std::uint64_t enough = 100000000000000000;  // digits beyond 18 are below a double's precision
    std::uint64_t digits = 0;
    std::int64_t exponent = 0;
    bool has_digit = false, has_point = false;
    for (; !text.empty() && (bytes::is_digit(text[0]) || (text[0] == '.' && !has_point)); text.remove_prefix(1)) {
        if (text[0] == '.') {
            has_point = true;
            continue;
        }
        has_digit = true;
        const bool is_kept = digits < enough;
        if (is_kept) digits = digits * 10 + static_cast<std::uint64_t>(text[0] - '0');
        exponent += (is_kept ? 0 : 1) - (has_point ? 1 : 0);
    }
    const auto more = text.empty() ? std::optional<std::int64_t>(0) : read_exponent(text);
    if (!has_digit || !more) return std::nullopt;
    return scaled(digits, exponent + *more);
}

// Empty where float() raises, and for its underscores and the digits of other scripts. May be infinite or nan: what those
// mean for an entry is the caller's to decide.
inline std::optional<double> parse_float(std::string_view text) {
    constexpr std::string_view blanks = " \t\n\r\v\f";
    const std::size_t begin = (std::min)(text.find_first_not_of(blanks), text.size());
    text = text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
    const bool is_negative = bytes::starts_with(text, "-");
    if (is_negative || bytes::starts_with(text, "+")) text.remove_prefix(1);
    const auto magnitude = read_magnitude(text);
    if (!magnitude) return std::nullopt;
    return is_negative ? -*magnitude : *magnitude;
}

}  // namespace detail::dates

// --- digest: SHA-256 and HMAC for signatures, the checksums that S3 knows for bodies.

namespace detail::digest {

inline std::string_view as_text(const unsigned char* data, std::size_t size) {
    return std::string_view(reinterpret_cast<const char*>(data), size);
}

template <std::size_t size>
std::string_view as_text(const std::array<unsigned char, size>& digest) {
    return as_text(digest.data(), size);
}

// -- cryptographic digests

struct FreeContext {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

using Context = std::unique_ptr<EVP_MD_CTX, FreeContext>;

// A digest over pieces. One OpenSSL context serves any number of digests in turn, because creating one costs more than
// hashing a small value. OpenSSL fails only without memory, or when a FIPS setup refuses the algorithm: finish() then
// returns zeros, and ok() is false from then on. Whoever opens a cache asks available(), so that nothing is signed so.
template <const EVP_MD* (*algorithm)(), std::size_t size_bytes>
class Hasher {
public:
    using Digest = std::array<unsigned char, size_bytes>;

    Hasher() : context_(EVP_MD_CTX_new()) {
        ok_ = context_ != nullptr && EVP_DigestInit_ex(context_.get(), algorithm(), nullptr) == 1;
    }

    bool ok() const { return ok_; }

    void update(std::string_view data) { ok_ = ok_ && EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1; }

    // The digest of all updates since the last finish(); the object is then ready for the next one.
    Digest finish() {
        const Digest out = last();
        reset();
        return out;
    }
    // The same, where reset() or copy_from() comes next anyway.
    Digest last() {
        Digest out{};
        unsigned int length = 0;
        ok_ = ok_ && EVP_DigestFinal_ex(context_.get(), out.data(), &length) == 1 && length == out.size();
        return ok_ ? out : Digest{};
    }

    // Naming no algorithm keeps the one in place; naming it would make OpenSSL 3 look it up again, under a lock.
    void reset() { ok_ = ok_ && EVP_DigestInit_ex(context_.get(), nullptr, nullptr) == 1; }

    // Continues where the other stands. Both must be of the same algorithm, which the type sees to.
    void copy_from(const Hasher& other) {
        ok_ = ok_ && other.ok_ && EVP_MD_CTX_copy_ex(context_.get(), other.context_.get()) == 1;
    }

private:
    Context context_;
    bool ok_ = false;
};

using Sha256 = Hasher<EVP_sha256, 32>;
using Md5 = Hasher<EVP_md5, 16>;
using Sha256Digest = Sha256::Digest;

inline Sha256Digest sha256(std::string_view data) {
    Sha256 hasher;
    hasher.update(data);
    return hasher.finish();
}

// Whether OpenSSL computes SHA-256 here, without which there is no signature.
inline bool available() {
    Sha256 hasher;
    hasher.finish();
    return hasher.ok();
}

// Empty where OpenSSL refuses this old algorithm, as a FIPS setup does.
inline std::optional<Md5::Digest> md5(std::string_view data) {
    Md5 hasher;
    hasher.update(data);
    const Md5::Digest digest = hasher.finish();
    return hasher.ok() ? std::optional<Md5::Digest>(digest) : std::nullopt;
}

// The key's two padded blocks are hashed once, and each signature continues from copies of those states: half the work
// for short data. OpenSSL's own HMAC interface is deprecated in one form and slow in the other.
class HmacSha256Key {
public:
    explicit HmacSha256Key(std::string_view key) { set(key); }

    // A new key in the same contexts.
    void set(std::string_view key) {
        const bool is_long = key.size() > block_bytes;
        const Sha256Digest hash = is_long ? sha256(key) : Sha256Digest{};
        std::string block(is_long ? as_text(hash) : key);
        block.resize(block_bytes);
        for (char& byte : block) byte = static_cast<char>(byte ^ 0x36);
        inner_.reset();
        inner_.update(block);
        for (char& byte : block) byte = static_cast<char>(byte ^ 0x36 ^ 0x5C);
        outer_.reset();
        outer_.update(block);
        bytes::wipe(block);
    }

    // Zeros after a failure of OpenSSL, as Sha256.
    Sha256Digest sign(std::string_view data) {
        work_.copy_from(inner_);
        work_.update(data);
        const Sha256Digest inner = work_.last();
        work_.copy_from(outer_);
        work_.update(as_text(inner));
        return work_.last();
    }

private:
    static constexpr std::size_t block_bytes = 64;

    Sha256 inner_;
    Sha256 outer_;
    Sha256 work_;
};

inline Sha256Digest hmac_sha256(std::string_view key, std::string_view data) { return HmacSha256Key(key).sign(data); }

// -- checksums
//
// Each takes the checksum of what came before (0 at the start) and returns the one that includes the new bytes.

// A copy is one instruction; compilers do not reliably see that the loop, which any byte order understands, is one too.
inline std::uint64_t load_little_endian(const char* data) {
    std::uint64_t word = 0;
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    std::memcpy(&word, data, sizeof word);
#else
    for (unsigned i = 0; i < 8; ++i) word |= std::uint64_t{bytes::octet(data[i])} << (8 * i);
#endif
    return word;
}

// Slicing by eight: row n holds the effect of a byte that n more bytes follow, so eight lookups replace eight dependent
// steps. Built on first use: 16 KiB that most programs never need would otherwise slow every compilation.
template <class Word>
class SlicingTable {
public:
    explicit SlicingTable(Word reflected_polynomial) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            Word crc = static_cast<Word>(byte);
            for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? reflected_polynomial : Word{0});
            rows_[0][byte] = crc;
        }
        for (std::size_t row = 1; row < 8; ++row) {
            for (std::size_t byte = 0; byte < 256; ++byte) {
                const Word crc = rows_[row - 1][byte];
                rows_[row][byte] = (crc >> 8) ^ rows_[0][crc & 0xFF];
            }
        }
    }

    // Works on the register itself, which holds the complement of the checksum.
    Word update(Word crc, const char* data, std::size_t size) const {
        for (; size >= 8; data += 8, size -= 8) {
            const std::uint64_t word = load_little_endian(data) ^ crc;
            crc = 0;
            for (std::size_t i = 0; i < 8; ++i) crc ^= rows_[7 - i][(word >> (8 * i)) & 0xFF];
        }
        for (; size > 0; ++data, --size) crc = (crc >> 8) ^ rows_[0][(crc ^ bytes::octet(*data)) & 0xFF];
        return crc;
    }

private:
    std::array<std::array<Word, 256>, 8> rows_{};
};

inline constexpr std::uint32_t crc32c_polynomial = 0x82F63B78;             // Castagnoli, reflected
inline constexpr std::uint64_t crc64nvme_polynomial = 0x9A6C9329AC4BC9B5;  // of the NVMe specification, reflected

inline std::uint32_t crc32c_portable(std::uint32_t crc, const char* data, std::size_t size) {
    static const SlicingTable<std::uint32_t> table(crc32c_polynomial);
    return ~table.update(~crc, data, size);
}

#if defined(__x86_64__) && defined(__GNUC__)

// The attribute lets these functions use the instruction without -msse4.2 for the program, which must run elsewhere too.
// They work on the register itself.
__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_serial(std::uint32_t crc, const char* data,
                                                                     std::size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        crc = static_cast<std::uint32_t>(__builtin_ia32_crc32di(crc, load_little_endian(data)));
    }
    for (; size > 0; ++data, --size) crc = __builtin_ia32_crc32qi(crc, bytes::octet(*data));
    return crc;
}

// The instruction takes three cycles but one may start each cycle: three lanes side by side keep it busy. Longer lanes
// would gain little, and small values would not fill them.
inline constexpr std::size_t crc32c_lane_bytes = 1024;

// What a lane of zeros does to the register. It is linear, so four lookups give the effect on any value, and a lane's
// result can be moved past the lane that follows it.
class LaneShift {
public:
    LaneShift() {
        const std::array<char, crc32c_lane_bytes> zeros{};
        for (unsigned row = 0; row < 4; ++row) {
            for (unsigned byte = 1; byte < 256; ++byte) {
                const unsigned rest = byte & (byte - 1);
                rows_[row][byte] = rest != 0 ? rows_[row][rest] ^ rows_[row][byte ^ rest]
                                             : crc32c_serial(byte << (8 * row), zeros.data(), zeros.size());
            }
        }
    }

    std::uint32_t operator()(std::uint64_t crc) const {
        return rows_[0][crc & 0xFF] ^ rows_[1][(crc >> 8) & 0xFF] ^ rows_[2][(crc >> 16) & 0xFF] ^ rows_[3][crc >> 24];
    }

private:
    std::array<std::array<std::uint32_t, 256>, 4> rows_{};
};

__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_hardware(std::uint32_t crc, const char* data,
                                                                       std::size_t size) {
    static const LaneShift shift;
    crc = ~crc;
    for (; size >= 3 * crc32c_lane_bytes; data += 3 * crc32c_lane_bytes, size -= 3 * crc32c_lane_bytes) {
        std::uint64_t first = crc, second = 0, third = 0;
        for (std::size_t i = 0; i < crc32c_lane_bytes; i += 8) {
            first = __builtin_ia32_crc32di(first, load_little_endian(data + i));
            second = __builtin_ia32_crc32di(second, load_little_endian(data + i + crc32c_lane_bytes));
            third = __builtin_ia32_crc32di(third, load_little_endian(data + i + 2 * crc32c_lane_bytes));
        }
        crc = shift(shift(first) ^ second) ^ static_cast<std::uint32_t>(third);
    }
    return ~crc32c_serial(crc, data, size);
}

// __builtin_cpu_supports says it too, but brings 5 KiB of code into every program; <cpuid.h> of g++ 10 must not be included
// twice, and a program may include it too.
inline bool has_crc32c_hardware() {
    static const bool has = [] {
        unsigned a = 1, b = 0, c = 0, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return (c >> 20 & 1) != 0;
    }();
    return has;
}

inline std::uint32_t crc32c(std::uint32_t crc, const char* data, std::size_t size) {
    return has_crc32c_hardware() ? crc32c_hardware(crc, data, size) : crc32c_portable(crc, data, size);
}

#elif defined(__ARM_FEATURE_CRC32)

inline std::uint32_t crc32c(std::uint32_t crc, const char* data, std::size_t size) {
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) crc = __crc32cd(crc, load_little_endian(data));
    for (; size > 0; ++data, --size) crc = __crc32cb(crc, bytes::octet(*data));
    return ~crc;
}

#else

inline std::uint32_t crc32c(std::uint32_t crc, const char* data, std::size_t size) {
    return crc32c_portable(crc, data, size);
}

#endif

#ifndef S3CACHE_NO_GZIP
inline std::uint32_t crc32(std::uint32_t crc, const char* data, std::size_t size) {
    return static_cast<std::uint32_t>(::crc32_z(crc, reinterpret_cast<const Bytef*>(data), size));
}
#endif

inline std::uint64_t crc64nvme(std::uint64_t crc, const char* data, std::size_t size) {
    static const SlicingTable<std::uint64_t> table(crc64nvme_polynomial);
    return ~table.update(~crc, data, size);
}

// Checksums travel as base64 of their big-endian bytes.
template <class Word>
std::string big_endian(Word word) {
    std::string out(sizeof word, '\0');
    for (std::size_t i = out.size(); i-- > 0; word = static_cast<Word>(word >> 8)) {
        out[i] = static_cast<char>(word & 0xFF);
    }
    return out;
}

}  // namespace detail::digest

#ifndef S3CACHE_NO_GZIP
// --- gzip: inflate and deflate as push-pull filters, on zlib's own gzip mode.

namespace detail::gzip {

// One byte of deflate data stands for at most this many: two bits for a match of 258. What a trailer claims beyond that
// is a lie, and must not make us allocate.
inline constexpr std::size_t expansion_max = 1032;

enum class Step {
    output,       // the buffer is full: pull again
    needs_input,  // all input is used up: feed more, or end_of_input()
    finished,     // a Deflater has given its last byte
    damaged,      // problem() says how; nothing more will come
};

struct Pulled {
    std::size_t produced;
    Step step;
};

inline bool looks_like_gzip(std::string_view data) { return bytes::starts_with(data, "\x1f\x8b") && data.size() >= 2; }

// What the last member says it holds: with one member, the whole value unless it has 4 GiB. A first guess, no more.
inline std::size_t claimed_size(std::string_view data) {
    std::uint64_t size = 0;
    for (std::size_t i = 0; i < 4 && data.size() >= 4; ++i) {
        size |= std::uint64_t{bytes::octet(data[data.size() - 4 + i])} << (8 * i);
    }
    const std::uint64_t most = std::uint64_t{data.size()} * expansion_max;
    return static_cast<std::size_t>((std::min)(size, most));
}

// What Inflater and Deflater share: a stream of zlib's, and the input that it has not taken yet.
class Filter {
public:
    // Borrowed until pull() answers needs_input.
    void feed(std::string_view input) { input_ = input; }

    // Null while all is well. A failed allocation is a problem like any other.
    const char* problem() const { return problem_; }

protected:
    using Function = int (*)(z_stream*);

    // zlib's state points back at its z_stream, so that one stays where it is when a filter moves.
    struct End {
        Function end;
        void operator()(z_stream* stream) const {
            end(stream);
            delete stream;
        }
    };

    // Sets problem() if zlib's `begin` does not succeed.
    template <class Begin>
    void open(Function end, Begin begin) {
        stream_ = std::unique_ptr<z_stream, End>(new (std::nothrow) z_stream(), End{end});
        if (!stream_ || begin(stream_.get()) != Z_OK) problem_ = "zlib has no memory, or does not know the level";
    }

    // One step of zlib's, from the input straight into the caller's buffer; adds to `produced`. zlib counts in 32 bits, so
    // that long pieces take several steps.
    int run(int (*step)(z_stream*, int), int flush, char* out, std::size_t capacity, std::size_t& produced) {
        constexpr std::size_t most = (std::numeric_limits<uInt>::max)();
        // zlib takes a mutable pointer unless ZLIB_CONST is set before its header, and that is the including file's choice.
        stream_->next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(input_.data()));
        stream_->avail_in = static_cast<uInt>((std::min)(input_.size(), most));
        stream_->next_out = reinterpret_cast<Bytef*>(out + produced);
        stream_->avail_out = static_cast<uInt>((std::min)(capacity - produced, most));
        const std::size_t offered = stream_->avail_in;
        const std::size_t room = stream_->avail_out;
        const int result = step(stream_.get(), offered < input_.size() ? Z_NO_FLUSH : flush);
        input_.remove_prefix(offered - stream_->avail_in);
        produced += room - stream_->avail_out;
        if (result == Z_MEM_ERROR)
            problem_ = "zlib has no memory";
        else if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
            problem_ = stream_->msg != nullptr ? stream_->msg : "zlib reports an error";
        return result;
    }

    std::unique_ptr<z_stream, End> stream_{};
    std::string_view input_{};
    const char* problem_ = nullptr;
};

// Members one after the other, with zeros between and behind them, as Python's gzip module takes them.
class Inflater : public Filter {
public:
    // Writes at most `capacity` bytes to `out`; a member's last bytes are given out before its checksum is known.
    Pulled pull(char* out, std::size_t capacity) {
        std::size_t produced = 0;
        while (produced < capacity && begin_member()) {
            const std::size_t before = produced;
            in_member_ = run(inflate, Z_NO_FLUSH, out, capacity, produced) != Z_STREAM_END;
            if (problem_ != nullptr || (produced == before && input_.empty())) break;
        }
        if (problem_ != nullptr) return {produced, Step::damaged};
        return {produced, produced == capacity ? Step::output : Step::needs_input};
    }

    // To be called once pull() has asked for input that does not exist. False: the data ends too early. No input at all is
    // an empty value.
    bool end_of_input() {
        if (in_member_ && problem_ == nullptr) problem_ = "cut short";
        return problem_ == nullptr;
    }

private:
    // False: no input is there to begin a member with, or a problem.
    bool begin_member() {
        if (in_member_ || problem_ != nullptr) return problem_ == nullptr;
        if (stream_) input_.remove_prefix((std::min)(input_.find_first_not_of('\0'), input_.size()));
        if (input_.empty()) return false;
        in_member_ = true;
        if (!stream_)
            open(inflateEnd, [](z_stream* stream) { return inflateInit2(stream, 16 + MAX_WBITS); });
        else if (inflateReset(stream_.get()) != Z_OK)
            problem_ = "zlib cannot start again";
        return problem_ == nullptr;
    }

    bool in_member_ = false;
};

// Writes one member. Time 0 and system 255 ("unknown"), so that equal values give equal bytes on every machine.
class Deflater : public Filter {
public:
    explicit Deflater(int level) {
        static gz_header header = [] {  // which zlib only reads
            gz_header unknown{};
            unknown.os = 255;
            return unknown;
        }();
        constexpr int memory_level = 8;  // zlib's default
        open(deflateEnd, [level](z_stream* stream) {
            const int result =
                deflateInit2(stream, level, Z_DEFLATED, 16 + MAX_WBITS, memory_level, Z_DEFAULT_STRATEGY);
            return result == Z_OK ? deflateSetHeader(stream, &header) : result;
        });
    }

    // No input will follow: pull() until finished.
    void finish() { finishing_ = true; }

    Pulled pull(char* out, std::size_t capacity) {
        std::size_t produced = 0;
        while (problem_ == nullptr && !done_ && produced < capacity) {
            const std::size_t before = produced;
            done_ = run(deflate, finishing_ ? Z_FINISH : Z_NO_FLUSH, out, capacity, produced) == Z_STREAM_END;
            if (produced == before && input_.empty()) break;
        }
        if (problem_ != nullptr) return {produced, Step::damaged};
        if (done_) return {produced, Step::finished};
        return {produced, produced == capacity ? Step::output : Step::needs_input};
    }

private:
    bool finishing_ = false;
    bool done_ = false;
};

}  // namespace detail::gzip

#endif  // S3CACHE_NO_GZIP

// --- xml: a bounded pull scanner for what S3 and STS answer, the parsers built on it, escaping for what we send.

namespace detail::xml {

// The deepest answer of S3 has five levels; the rest is room for elements that stores add. It bounds the path.
inline constexpr std::size_t depth_max = 32;

// A page of 1,000 keys of 1,024 bytes, each byte an entity or escape of six, with all that stands around them.
inline constexpr std::size_t document_bytes_max = 16 * 1024 * 1024;

// "&#x10FFFF;" has ten; leading zeros are legal but no store writes them by the dozen.
inline constexpr std::size_t reference_bytes_max = 16;

// XML 1.0 knows no control characters but these three, not even as references.
inline bool is_legal(std::uint32_t code) {
    if (code < 0x20) return code == '\t' || code == '\n' || code == '\r';
    return code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF) && code != 0xFFFE && code != 0xFFFF;
}

// A text with bytes that no XML 1.0 document can hold, or that are no UTF-8, is not: such a key can be deleted alone, not
// in a list.
inline bool representable(std::string_view text) {
    for (char c : text) {
        if (!is_legal(bytes::octet(c))) return false;
    }
    return utf8::valid(text) && text.find("\xEF\xBF\xBE") == std::string_view::npos &&
           text.find("\xEF\xBF\xBF") == std::string_view::npos;
}

// The code point that "&name;" stands for. Only the five entities that need no DTD exist.
inline std::optional<std::uint32_t> reference(std::string_view name) {
    constexpr std::string_view entities[] = {"amp", "lt", "gt", "quot", "apos"};
    for (std::size_t i = 0; i < 5; ++i) {
        if (name == entities[i]) return bytes::octet("&<>\"'"[i]);
    }
    const int base = bytes::starts_with(name, "#x") ? 16 : 10;
    if (!bytes::starts_with(name, "#")) return std::nullopt;
    name.remove_prefix(base == 16 ? 2 : 1);
    if (name.empty()) return std::nullopt;
    std::uint32_t code = 0;
    for (char c : name) {
        const int digit = bytes::hex_value(c);
        if (digit < 0 || digit >= base || code > 0x10FFFF) return std::nullopt;
        code = code * static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(digit);
    }
    return code;
}

// Where the text of an element goes. Elements are known by their whole path below the root, never by their name alone,
// because stores nest keys in elements of their own making.
struct Field {
    std::string_view path;  // such as Contents/Key
    std::string* to;
    bool exact = false;  // keys and tokens keep blanks at their ends
};

// Walks the elements of one document and fills its fields. Attributes, comments and processing instructions are stepped
// over, and namespace prefixes are dropped, because stores disagree on namespaces. A DTD is refused, because attacks by
// XML need entities of their own.
class Scanner {
public:
    explicit Scanner(std::string_view document, std::initializer_list<Field> fields = {})
        : rest_(document), fields_(fields), damaged_(document.size() > document_bytes_max) {
        take("\xEF\xBB\xBF");
        rest_ = bytes::trim(rest_);  // blanks before the declaration keep a slow CompleteMultipartUpload alive
    }

    // Goes on to the end of the next element, children before parents. False: there is none, or the document is damaged.
    bool next() {
        if (closing_) leave();
        while (!closing_ && !damaged_ && !rest_.empty()) {
            if (rest_.front() != '<')
                damaged_ = !take_text();
            else if (bytes::starts_with(rest_, "</"))
                damaged_ = !(closing_ = take_end_tag());
            else if (bytes::starts_with(rest_, "<!") || bytes::starts_with(rest_, "<?"))
                damaged_ = !take_aside();
            else
                damaged_ = !take_start_tag();
        }
        if (closing_) fill_field();
        return closing_;
    }

    // To the end of the document. False: it is not well-formed, and nothing of what was read may be believed.
    bool finish() {
        while (next()) {
        }
        return whole();
    }
    bool whole() const { return !damaged_ && rest_.empty() && depth_ == 0 && !root_.empty(); }

    // Whether a character that XML cannot hold is what damaged the document.
    bool found_illegal() const { return illegal_; }

    std::string_view root() const { return root_; }
    // The element that ends here, by its path below the root; the root itself has the empty path.
    std::string_view path() const { return path_; }
    // What stood since the last tag, decoded: the content of an element without children.
    const std::string& text() const { return text_; }

private:
    static std::string_view local(std::string_view qualified) {
        return qualified.substr(qualified.find(':') + 1);  // npos + 1 is 0
    }

    // The first of repeated elements wins: a store that forwards another's error appends its own.
    void fill_field() {
        for (const Field& field : fields_) {
            if (field.path == path_ && field.to->empty()) *field.to = field.exact ? text_ : bytes::trim(text_);
        }
    }

    void leave() {
        closing_ = false;
        text_.clear();
        --depth_;
        const std::size_t slash = path_.rfind('/');
        path_.resize(slash == std::string::npos ? 0 : slash);
    }

    bool take(std::string_view wanted) {
        if (!bytes::starts_with(rest_, wanted)) return false;
        rest_.remove_prefix(wanted.size());
        return true;
    }

    bool skip_past(std::string_view end) {
        const std::size_t at = rest_.find(end);
        if (at == std::string_view::npos) return false;
        rest_.remove_prefix(at + end.size());
        return true;
    }

    // Comments, processing instructions and CDATA. Anything else that begins with "<!" belongs to a DTD.
    bool take_aside() {
        if (take("<?")) return skip_past("?>");
        if (take("<!--")) return skip_past("-->");
        if (depth_ == 0 || !take("<![CDATA[")) return false;
        const std::string_view content = rest_.substr(0, rest_.find("]]>"));
        return skip_past("]]>") && append_raw(content);
    }

    bool take_text() {
        std::string_view run = rest_.substr(0, rest_.find('<'));
        rest_.remove_prefix(run.size());
        if (depth_ == 0) return bytes::trim(run).empty();
        if (run.find("]]>") != std::string_view::npos) return false;
        for (;;) {
            const std::size_t raw = (std::min)(run.find('&'), run.size());
            if (!append_raw(run.substr(0, raw))) return false;
            run.remove_prefix(raw);
            if (run.empty()) return true;
            const std::size_t end = run.substr(0, reference_bytes_max).find(';');
            const auto code = end == std::string_view::npos ? std::nullopt : reference(run.substr(1, end - 1));
            if (!code) return false;
            illegal_ = !is_legal(*code);
            if (illegal_) return false;
            utf8::append(text_, *code);
            run.remove_prefix(end + 1);
        }
    }

    // Line ends become LF, as XML asks; a carriage return that is meant arrives as a reference.
    bool append_raw(std::string_view raw) {
        illegal_ = !representable(raw);
        for (std::size_t i = 0; i < raw.size(); ++i) {
            if (raw[i] != '\r')
                text_ += raw[i];
            else if (i + 1 == raw.size() || raw[i + 1] != '\n')
                text_ += '\n';
        }
        return !illegal_;
    }

    std::string_view take_name() {
        const std::string_view name = rest_.substr(0, rest_.find_first_of(" \t\r\n/>=<&;\"'"));
        if (name.empty() || bytes::is_digit(name[0]) || name[0] == '-' || name[0] == '.') return {};
        rest_.remove_prefix(name.size());
        return name;
    }

    void skip_blanks() {
        while (!rest_.empty() && bytes::is_blank(rest_.front())) rest_.remove_prefix(1);
    }

    bool take_start_tag() {
        rest_.remove_prefix(1);
        const std::string_view name = take_name();
        if (local(name).empty() || depth_ == depth_max || (depth_ == 0 && !root_.empty())) return false;
        if (!skip_attributes()) return false;
        text_.clear();
        if (depth_ == 0)
            root_ = local(name);
        else
            path_.append(path_.empty() ? "" : "/").append(local(name));
        open_[depth_++] = name;
        return true;
    }

    // Up to and with the end of the tag.
    bool skip_attributes() {
        for (;;) {
            const std::size_t before = rest_.size();
            skip_blanks();
            closing_ = take("/>");
            if (closing_ || take(">")) return true;
            if (rest_.size() == before || !skip_attribute()) return false;
        }
    }

    bool skip_attribute() {
        if (take_name().empty()) return false;
        skip_blanks();
        if (!take("=")) return false;
        skip_blanks();
        const std::string_view quote = rest_.substr(0, 1);
        if (!take("\"") && !take("'")) return false;
        return rest_.substr(0, rest_.find(quote)).find('<') == std::string_view::npos && skip_past(quote);
    }

    bool take_end_tag() {
        rest_.remove_prefix(2);
        const std::string_view name = take_name();
        skip_blanks();
        return depth_ > 0 && name == open_[depth_ - 1] && take(">");
    }

    std::string_view rest_;
    std::vector<Field> fields_;
    std::array<std::string_view, depth_max> open_{};  // the open elements from the root down, with prefixes
    std::size_t depth_ = 0;
    std::string_view root_;
    std::string path_;
    std::string text_;
    bool closing_ = false;  // the innermost open element ends where the scanner stands
    bool damaged_ = false;
    bool illegal_ = false;
};

// Whether this is a good list but for a character that XML cannot hold: a store that ignores encoding-type=url writes such
// keys as they are. It tells a key to be blamed from an answer that is no list at all.
inline bool has_illegal_character(std::string_view document) {
    Scanner scanner(document);
    return !scanner.finish() && scanner.found_illegal();
}

// For content and attribute values. A raw carriage return would arrive as a line feed.
inline void escape(std::string& out, std::string_view text) {
    constexpr std::string_view special = "&<>\"\r";
    constexpr std::string_view escapes[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#13;"};
    for (char c : text) {
        const std::size_t at = special.find(c);
        if (at == std::string_view::npos)
            out += c;
        else
            out += escapes[at];
    }
}

struct ErrorBody {
    std::string code;
    std::string message;
    std::string region;
    std::string request_id;
    std::string host_id;
    std::string endpoint;  // where a 301 says that the bucket is
};

// S3 puts <Error> at the root, STS inside <ErrorResponse>. Anything else, an HTML page of a proxy for one, is no error
// body: the caller goes by the status.
inline std::optional<ErrorBody> error_body(std::string_view document) {
    ErrorBody body;
    Scanner scanner(document, {{"Code", &body.code},
                               {"Message", &body.message},
                               {"Region", &body.region},
                               {"RequestId", &body.request_id},
                               {"HostId", &body.host_id},
                               {"Endpoint", &body.endpoint},
                               {"Error/Code", &body.code},
                               {"Error/Message", &body.message}});
    bool wraps_error = false;
    while (scanner.next()) wraps_error = wraps_error || scanner.path() == "Error";
    const bool is_error = scanner.root() == "Error" || (scanner.root() == "ErrorResponse" && wraps_error);
    if (!scanner.whole() || !is_error) return std::nullopt;
    return body;
}

// The title of an HTML page: who answered, if it was not the store. Empty: there is none.
inline std::string_view html_title(std::string_view page) {
    const std::string lower = bytes::lower(page.substr(0, 4096));  // a head is short; the rest may be long
    const std::size_t tag = lower.find("<title");
    const std::size_t begin = lower.find('>', tag);
    const std::size_t end = lower.find("</title", begin);
    if (tag == std::string::npos || begin == std::string::npos || end == std::string::npos) return {};
    return bytes::trim(page.substr(begin + 1, end - begin - 1));
}

// The parsers below take any root that ends in "Result", because stores vary the word before it; a well-formed page of a
// proxy must not pass for one. They return nothing for an error, and for what was cut short, is empty or is no XML.
inline bool is_result(const Scanner& scanner) { return scanner.whole() && bytes::ends_with(scanner.root(), "Result"); }

// The root may have any name but that of an error: boto3 takes what holds an UploadId, and stores rely on it.
inline std::optional<std::string> upload_id(std::string_view document) {
    std::string id;
    Scanner scanner(document, {{"UploadId", &id, true}});
    const bool good = scanner.finish() && !id.empty() && !bytes::starts_with(scanner.root(), "Error");
    return good ? std::optional<std::string>(std::move(id)) : std::nullopt;
}

// Of CompleteMultipartUpload and CopyObject. An empty text: the store left the ETag out, which is no failure.
inline std::optional<std::string> etag_result(std::string_view document) {
    std::string etag;
    Scanner scanner(document, {{"ETag", &etag}});
    return scanner.finish() && is_result(scanner) ? std::optional<std::string>(std::move(etag)) : std::nullopt;
}

struct DeleteError {
    std::string key;  // empty: the store did not say which
    std::string code;
    std::string message;
};

struct Deleted {
    std::vector<std::string> keys;
    std::vector<DeleteError> errors;
};

inline std::optional<Deleted> delete_result(std::string_view document) {
    Deleted done;
    DeleteError failed;
    Scanner scanner(
        document, {{"Error/Key", &failed.key, true}, {"Error/Code", &failed.code}, {"Error/Message", &failed.message}});
    while (scanner.next()) {
        if (scanner.path() == "Deleted/Key")
            done.keys.push_back(scanner.text());
        else if (scanner.path() == "Error")
            done.errors.push_back(std::exchange(failed, {}));
    }
    return is_result(scanner) ? std::optional<Deleted>(std::move(done)) : std::nullopt;
}

// A list that is taken for complete although it is not would make its reader believe that the rest is not there, so a word
// that is no boolean spoils the page.
inline bool read_boolean(std::string_view text, bool& out) {
    text = bytes::trim(text);
    out = bytes::iequal(text, "true") || text == "1";
    return out || bytes::iequal(text, "false") || text == "0";
}

// Keys are encoded only if the answer says so, whatever was asked for, and '+' is a space then.
inline bool decode(std::string& text) {
    auto decoded = bytes::unpercent(text, true);
    if (decoded) text = std::move(*decoded);
    return decoded.has_value();
}

struct ListEntry {
    std::string key;
    std::uint64_t size = 0;
    std::string etag;           // with its quotes; empty: the store gave none
    std::string last_modified;  // ISO 8601, as given
};

struct ListPage {
    std::vector<ListEntry> entries;
    std::vector<std::string> common_prefixes;
    bool truncated = false;
    std::string next_token;
};

// A key that cannot be decoded spoils the page: leaving it out would make a listing look complete that is not.
inline std::optional<ListPage> list_result(std::string_view document) {
    ListPage page;
    ListEntry entry;
    std::string encoding;
    Scanner scanner(document, {{"Contents/Key", &entry.key, true},
                               {"Contents/ETag", &entry.etag},
                               {"Contents/LastModified", &entry.last_modified},
                               {"NextContinuationToken", &page.next_token, true},
                               {"EncodingType", &encoding}});
    bool good = true;
    while (good && scanner.next()) {
        if (scanner.path() == "Contents/Size") {
            const auto size = bytes::to_u64(bytes::trim(scanner.text()));
            entry.size = size.value_or(0);
            good = size.has_value();
        } else if (scanner.path() == "Contents") {
            page.entries.push_back(std::exchange(entry, {}));
        } else if (scanner.path() == "CommonPrefixes/Prefix") {
            page.common_prefixes.push_back(scanner.text());
        } else if (scanner.path() == "IsTruncated") {
            good = read_boolean(scanner.text(), page.truncated);
        }
    }
    if (!good || !is_result(scanner) || !bytes::starts_with(scanner.root(), "ListBucket")) return std::nullopt;
    if (encoding != "url") return page;
    for (ListEntry& listed : page.entries) good = decode(listed.key) && good;
    for (std::string& prefix : page.common_prefixes) good = decode(prefix) && good;
    return good ? std::optional<ListPage>(std::move(page)) : std::nullopt;
}

struct Upload {
    std::string key;
    std::string id;
    std::string initiated;  // ISO 8601, as given
};

struct UploadsPage {
    std::vector<Upload> uploads;
    bool truncated = false;
    std::string next_key_marker;
    std::string next_upload_id_marker;
};

// A key or marker that cannot be decoded stays as it is, because OpenStack Swift leaves its markers unencoded whatever it
// says of them.
inline std::optional<UploadsPage> list_uploads_result(std::string_view document) {
    UploadsPage page;
    Upload upload;
    std::string encoding;
    Scanner scanner(document, {{"Upload/Key", &upload.key, true},
                               {"Upload/UploadId", &upload.id, true},
                               {"Upload/Initiated", &upload.initiated},
                               {"NextKeyMarker", &page.next_key_marker, true},
                               {"NextUploadIdMarker", &page.next_upload_id_marker, true},
                               {"EncodingType", &encoding}});
    bool good = true;
    while (good && scanner.next()) {
        if (scanner.path() == "Upload")
            page.uploads.push_back(std::exchange(upload, {}));
        else if (scanner.path() == "IsTruncated")
            good = read_boolean(scanner.text(), page.truncated);
    }
    if (!good || !is_result(scanner)) return std::nullopt;
    if (encoding == "url") {
        decode(page.next_key_marker);
        for (Upload& listed : page.uploads) decode(listed.key);
    }
    return page;
}

struct StsCredentials {
    std::string access_key;
    std::string secret_key;
    std::string session_token;
    std::string expiration;  // ISO 8601, as given
};

// `action` is AssumeRole or AssumeRoleWithWebIdentity; credentials stand in ActionResponse/ActionResult/Credentials.
// Nothing is returned unless all four fields are there, so a half answer can't become a half-set credential.
inline std::optional<StsCredentials> sts_result(std::string_view document, std::string_view action) {
    StsCredentials keys;
    const std::string in = std::string(action) + "Result/Credentials/";
    const std::string paths[] = {in + "AccessKeyId", in + "SecretAccessKey", in + "SessionToken", in + "Expiration"};
    Scanner scanner(document, {{paths[0], &keys.access_key},
                               {paths[1], &keys.secret_key},
                               {paths[2], &keys.session_token},
                               {paths[3], &keys.expiration}});
    if (!scanner.finish() || scanner.root() != std::string(action) + "Response") return std::nullopt;
    for (const std::string* field : {&keys.access_key, &keys.secret_key, &keys.session_token, &keys.expiration}) {
        if (field->empty()) return std::nullopt;
    }
    return keys;
}

}  // namespace detail::xml

// --- ini: the config and credentials files of the AWS tools. Text comes in, sections go out: nothing is opened here.

namespace detail::ini {

// A thousand profiles fit. Names are looked for one by one, hence the second limit.
inline constexpr std::size_t file_bytes_max = 1024 * 1024;
inline constexpr std::size_t sections_max = 10000;

// Settings of [DEFAULT] become part of every section, so a file within the limit could fill memory with their copies.
inline constexpr std::size_t inherited_bytes_max = 16 * 1024 * 1024;

struct Setting {
    std::string name;
    std::string text;      // raw: quotes, '%' and '#' stay; continuation lines joined by a line feed
    bytes::Pairs block{};  // settings below this one, in place of text if the value began on the next line
    std::size_t line = 0;
};

struct Section {
    std::string name;
    std::vector<Setting> settings{};

    const Setting* find(std::string_view setting) const {
        const auto at =
            std::find_if(settings.begin(), settings.end(), [&](const Setting& s) { return s.name == setting; });
        return at == settings.end() ? nullptr : &*at;
    }
};

using File = std::vector<Section>;  // in the order of the file

// Python's str.strip() also takes these, and a form feed before a section name is easy to overlook.
inline bool is_space(char c) { return bytes::is_blank(c) || c == '\v' || c == '\f' || (c >= '\x1c' && c <= '\x1f'); }

inline std::string_view strip(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

// The dialect of Python's RawConfigParser, with its strictness, because what boto3 refuses must not silently work here
// with other settings than the user believes in.
class Parser {
public:
    Result<File> parse(std::string_view text, const std::string& file_name) {
        if (text.size() > file_bytes_max) fail("the file is larger than a configuration file can be");
        while (!text.empty() && problem_.empty()) {
            const std::size_t end = (std::min)(text.find_first_of("\r\n"), text.size());
            ++line_;
            take_line(text.substr(0, end));
            text.remove_prefix((std::min)(end + (text.substr(end, 2) == "\r\n" ? 2 : 1), text.size()));
        }
        if (problem_.empty()) finish();
        if (problem_.empty()) return std::move(sections_);
        return Error(Errc::credentials, file_name + ":" + bytes::number(line_) + ": " + problem_);
    }

private:
    void take_line(std::string_view line) {
        if (!utf8::valid(line)) return fail("not UTF-8 text");
        const std::string_view value = strip(line);
        if (!value.empty() && (value.front() == '#' || value.front() == ';')) return;
        if (value.empty()) {
            if (setting_ != nullptr) setting_->text += '\n';  // a blank line inside a value belongs to it
            return;
        }
        const std::size_t indent = static_cast<std::size_t>(value.data() - line.data());
        if (setting_ != nullptr && indent > indent_) {
            setting_->text.append(1, '\n').append(value);
            return;
        }
        indent_ = indent;
        // As in Python, what follows the last ']' is ignored, because a comment may stand there.
        const std::size_t end = value.front() == '[' ? value.rfind(']') : std::string_view::npos;
        if (end != std::string_view::npos && end > 1) return begin_section(value.substr(1, end - 1));
        if (section_ == nullptr) return fail("a setting before the first [section]");
        take_setting(value);
    }

    void begin_section(std::string_view name) {
        setting_ = nullptr;
        section_ = &defaults_;
        if (name == "DEFAULT") return;  // its settings are part of every section
        for (const Section& section : sections_) {
            if (section.name == name) return fail("section [" + bytes::sanitize(name) + "] comes twice");
        }
        if (sections_.size() == sections_max) return fail("too many sections for a configuration file");
        sections_.push_back({std::string(name)});
        section_ = &sections_.back();
    }

    void take_setting(std::string_view line) {
        const std::size_t delimiter = line.find_first_of("=:");
        if (delimiter == std::string_view::npos) return fail("a line without '=' or ':'");
        const std::string name = bytes::lower(strip(line.substr(0, delimiter)));
        if (name.empty()) return fail("a setting without a name");
        if (section_->find(name) != nullptr)
            return fail("setting '" + bytes::sanitize(name) + "' comes twice in its section");
        section_->settings.push_back({name, std::string(strip(line.substr(delimiter + 1))), {}, line_});
        setting_ = &section_->settings.back();
    }

    void finish() {
        std::size_t inherited_bytes = 0;  // by each section
        for (const Setting& setting : defaults_.settings)
            inherited_bytes += setting.name.size() + setting.text.size() + sizeof setting;
        if (inherited_bytes > inherited_bytes_max / (sections_.size() + 1))
            return fail("[DEFAULT] says too much for so many sections");
        for (Section& section : sections_) {
            for (const Setting& setting : defaults_.settings) {
                if (section.find(setting.name) == nullptr) section.settings.push_back(setting);
            }
            for (Setting& setting : section.settings) finish_setting(setting);
        }
    }

    void finish_setting(Setting& setting) {
        while (!setting.text.empty() && is_space(setting.text.back())) setting.text.pop_back();
        if (!bytes::starts_with(setting.text, "\n")) return;
        for (std::string_view rest = setting.text; !rest.empty();) {
            const std::size_t end = (std::min)(rest.find('\n'), rest.size());
            const std::string_view line = strip(rest.substr(0, end));
            rest.remove_prefix((std::min)(end + 1, rest.size()));
            const std::size_t equals = line.find('=');
            if (line.empty()) continue;
            if (equals == std::string_view::npos) {
                line_ = setting.line;
                return fail("a line without '=' in the block under '" + bytes::sanitize(setting.name) + "'");
            }
            bytes::add(setting.block, strip(line.substr(0, equals)), strip(line.substr(equals + 1)));
        }
        setting.text.clear();
    }

    void fail(std::string problem) {
        if (problem_.empty()) problem_ = std::move(problem);
    }

    File sections_;
    Section defaults_{};
    Section* section_ = nullptr;  // into sections_, and good until the next one is added
    Setting* setting_ = nullptr;  // the value that an indented line would continue
    std::size_t indent_ = 0;
    std::size_t line_ = 0;  // counted from 1
    std::string problem_;
};

// `file_name` is for messages, which begin with "NAME:LINE: " and hold no value of a setting.
inline Result<File> parse(std::string_view text, const std::string& file_name) {
    return Parser().parse(text, file_name);
}

// Words as a POSIX shell splits them, without expanding anything: for section names, and for credential_process. Empty:
// a quote or escape is left open.
inline std::optional<std::vector<std::string>> split_words(std::string_view text) {
    std::vector<std::string> words;
    bool in_word = false;
    char quote = '\0';
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quote == '\0' && bytes::is_blank(c)) {
            in_word = false;
            continue;
        }
        if (!in_word) words.emplace_back();
        in_word = true;
        const bool escapes = c == '\\' && quote != '\'';
        if (escapes && i + 1 == text.size()) return std::nullopt;
        if (escapes && (quote == '\0' || text[i + 1] == '"' || text[i + 1] == '\\')) {
            words.back() += text[++i];
        } else if (quote == '\0' && (c == '"' || c == '\'')) {
            quote = c;
        } else if (c == quote && quote != '\0') {
            quote = '\0';
        } else {
            words.back() += c;
        }
    }
    if (quote != '\0') return std::nullopt;
    return words;
}

// The section [KIND NAME] of a config file, such as [profile dev] or [services "my own"]. As in botocore only the start
// of the first word is looked at, and of two sections for one name the later one counts.
inline const Section* find_section(const File& config, std::string_view kind, std::string_view name) {
    for (auto section = config.rbegin(); section != config.rend(); ++section) {
        if (kind == "profile" && name == "default" && strip(section->name) == name) return &*section;
        if (!bytes::starts_with(section->name, kind)) continue;
        const auto words = split_words(section->name);
        if (words && words->size() == 2 && (*words)[1] == name) return &*section;
    }
    return nullptr;
}

// What the two files say about one profile. Settings of the credentials file win; keys are taken from one file or the
// other, never half from each, so the sections stay apart.
struct Profile {
    const Section* credentials = nullptr;
    const Section* config = nullptr;

    bool exists() const { return credentials != nullptr || config != nullptr; }
    const Setting* find(std::string_view name) const {
        const Setting* found = credentials != nullptr ? credentials->find(name) : nullptr;
        return found == nullptr && config != nullptr ? config->find(name) : found;
    }
    bool has(std::string_view name) const { return find(name) != nullptr; }
    std::string get(std::string_view name) const {
        const Setting* found = find(name);
        return found != nullptr ? found->text : std::string();
    }
};

inline Profile find_profile(const File& config, const File& credentials, std::string_view name) {
    Profile out;
    out.config = find_section(config, "profile", name);
    for (const Section& section : credentials) {  // bare names here
        if (section.name == name || (name == "default" && strip(section.name) == name)) out.credentials = &section;
    }
    return out;
}

}  // namespace detail::ini

// --- endpoint: bucket, region and options to scheme, host and path; where a cache lives, as text.

namespace detail::endpoint {

// The limit of one DNS label.
inline constexpr std::size_t label_bytes_max = 63;
inline constexpr std::size_t bucket_label_bytes_min = 3;

// Buckets of us-east-1 from before 2018 may have names this long; every other store stops at 63.
inline constexpr std::size_t bucket_bytes_max = 255;

inline constexpr unsigned port_max = 65535;

struct Options {
    std::string bucket;
    std::string region;
    std::string endpoint_url;  // empty: AWS
    Addressing addressing = Addressing::automatic;
    bool dualstack = false;
    bool fips = false;
    bool accelerate = false;
};

struct Endpoint {
    std::string scheme;
    std::string host;  // lower case, with a port only if it isn't the scheme's own: exactly what is signed and sent
    std::string base_path;  // encoded, without a slash at its end: "" or "/bucket" or "/gateway/bucket"
    std::string signing_region;
    bool path_style = false;

    std::string url() const { return scheme + "://" + host + base_path; }
};

inline Error refuse(const std::string& problem) { return Error(Errc::invalid_argument, problem); }

inline bool valid_label(std::string_view text) {
    if (text.empty() || text.size() > label_bytes_max || text.front() == '-' || text.back() == '-') return false;
    return std::all_of(text.begin(), text.end(),
                       [](char c) { return bytes::is_alpha(c) || bytes::is_digit(c) || c == '-'; });
}

// Any host label will do, because stores have regions of their own ("auto", "garage"). More than that would let a region
// from the environment choose the host that requests are sent to.
inline bool valid_region(std::string_view region) { return valid_label(region); }

// What S3 has ever allowed.
inline bool valid_bucket(std::string_view bucket) {
    const auto allowed = [](char c) {
        return bytes::is_alpha(c) || bytes::is_digit(c) || c == '.' || c == '-' || c == '_';
    };
    if (bucket == "." || bucket == "..") return false;  // in a path, a step to somewhere else
    return !bucket.empty() && bucket.size() <= bucket_bytes_max && std::all_of(bucket.begin(), bucket.end(), allowed);
}

// Buckets that need other hosts, services or signatures than ordinary ones. The text says which; empty: an ordinary one.
inline std::string unsupported_kind(std::string_view bucket) {
    const auto named = [bucket](std::string_view part) { return bucket.find(part) != std::string_view::npos; };
    if (bytes::ends_with(bucket, "--x-s3") || bytes::ends_with(bucket, "--xa-s3"))
        return "directory buckets (S3 Express) are not supported";
    if (!bytes::starts_with(bucket, "arn:")) return {};
    if (named(":s3::")) return "multi-region access points are not supported";
    const char* kind = named(":s3-outposts:")        ? "access points on Outposts"
                       : named(":s3-object-lambda:") ? "Object Lambda access points"
                                                     : "ARNs of access points";
    return std::string(kind) + " are not supported: use the access point's alias, which is the name of a bucket";
}

inline std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
    std::vector<std::string_view> parts;
    for (;;) {
        const std::size_t end = text.find_first_of(separators);
        parts.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return parts;
        text.remove_prefix(end + 1);
    }
}

inline bool all_digits(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), bytes::is_digit);
}

// Four numbers are an address whatever their size: no certificate names 300.1.1.1 either.
inline bool looks_like_ipv4(std::string_view host) {
    const auto parts = split(host, ".");
    return parts.size() == 4 && std::all_of(parts.begin(), parts.end(), all_digits);
}

// A bucket whose name can be the first part of a host. Lower case only, because hosts don't tell the difference.
inline bool fits_host(std::string_view bucket, bool dots_allowed) {
    if (bucket.size() < bucket_label_bytes_min || looks_like_ipv4(bucket)) return false;
    if (bucket != bytes::lower(bucket)) return false;
    const auto labels = split(bucket, ".");
    return (dots_allowed || labels.size() == 1) && std::all_of(labels.begin(), labels.end(), valid_label);
}

struct Partition {
    std::string_view name;
    std::string_view region_prefix;
    std::string_view suffix;
};

// The first entry doubles as the answer for names nobody has heard of yet. The table goes by prefix, because AWS adds
// regions every year and partitions hardly ever.
inline constexpr Partition partitions[] = {
    {"aws", "", "amazonaws.com"},
    {"aws-cn", "cn-", "amazonaws.com.cn"},
    {"aws-us-gov", "us-gov-", "amazonaws.com"},
    {"aws-iso", "us-iso-", "c2s.ic.gov"},
    {"aws-iso-b", "us-isob-", "sc2s.sgov.gov"},
    {"aws-iso-e", "eu-isoe-", "cloud.adc-e.uk"},
    {"aws-iso-f", "us-isof-", "csp.hci.ic.gov"},
    {"aws-eusc", "eusc-de-", "amazonaws.eu"},
};

inline const Partition& partition_of(std::string_view region) {
    for (const Partition& partition : partitions) {
        const bool named = !partition.region_prefix.empty() && bytes::starts_with(region, partition.region_prefix);
        if (!named) continue;
        // "cn-north-1" belongs there, "cn-x" does not: a place and a number must follow.
        const auto rest = split(region.substr(partition.region_prefix.size()), "-");
        if (rest.size() == 2 && !rest[0].empty() && all_digits(rest[1])) return partition;
    }
    return partitions[0];
}

inline bool is_aws_host(std::string_view host) {
    if (bytes::ends_with(host, ".api.aws")) return true;
    return std::any_of(std::begin(partitions), std::end(partitions), [host](const Partition& partition) {
        return bytes::ends_with(host, std::string(".").append(partition.suffix));
    });
}

struct Url {
    std::string scheme;
    std::string host;  // lower case, with its port unless that is the scheme's own
    std::string path;  // encoded as we encode keys, without a slash at its end
    bool is_address = false;
};

// The one way to write an address, because libcurl rewrites others ("127.1", "[0::1]") before it sends the host, and
// then it is not the host that was signed. Empty: not an address.
inline std::string plain_address(int family, const std::string& text) {
    unsigned char address[16];
    char plain[64];
    if (::inet_pton(family, text.c_str(), address) != 1) return {};
    return ::inet_ntop(family, address, plain, sizeof plain) != nullptr ? plain : "";
}

// "name", "1.2.3.4" or "[address]", as it is signed and sent. '_' as in the names of Docker.
inline std::string plain_host(std::string_view host, Url& url) {
    const std::string lower = bytes::lower(host);
    if (bytes::starts_with(lower, "[")) {
        const std::string address = plain_address(AF_INET6, lower.substr(1, lower.size() - 2));
        url.is_address = true;
        return address.empty() ? address : '[' + address + ']';
    }
    const auto allowed = [](char c) {
        return bytes::is_alpha(c) || bytes::is_digit(c) || c == '-' || c == '.' || c == '_';
    };
    if (!std::all_of(lower.begin(), lower.end(), allowed)) return {};
    const std::string_view last = std::string_view(lower).substr(lower.rfind('.') + 1);
    const bool numeric = all_digits(last) || (bytes::starts_with(last, "0x") &&
                                              last.find_first_not_of("0123456789abcdef", 2) == std::string_view::npos);
    url.is_address = numeric;
    return numeric ? plain_address(AF_INET, lower) : lower;
}

// "host", "host:port" or "[address]:port"; an '@' is refused with every other odd byte, so no password gets into a URL.
inline bool parse_authority(std::string_view authority, Url& url) {
    const bool bracketed = bytes::starts_with(authority, "[");
    const std::size_t end = (std::min)(bracketed ? authority.find(']') : authority.find(':'), authority.size());
    if (bracketed && end == authority.size()) return false;
    const std::size_t host_bytes = end + (bracketed ? 1 : 0);
    url.host = plain_host(authority.substr(0, host_bytes), url);
    std::string_view port = authority.substr(host_bytes);
    if (url.host.empty()) return false;
    if (port.empty() || port == ":") return true;  // "host:" is legal and means the default
    const auto number = bytes::to_u64(port.substr(1));
    if (port.front() != ':' || !number || *number == 0 || *number > port_max) return false;
    if (*number == (url.scheme == "https" ? 443 : 80)) return true;
    url.host += ':';
    bytes::append_number(url.host, *number);
    return true;
}

inline std::optional<Url> parse_url(std::string_view text) {
    const std::size_t colon = text.find("://");
    if (colon == std::string_view::npos || text.find_first_of("?#") != std::string_view::npos) return std::nullopt;
    Url url;
    url.scheme = bytes::lower(text.substr(0, colon));
    if (url.scheme != "http" && url.scheme != "https") return std::nullopt;
    text.remove_prefix(colon + 3);
    const std::size_t slash = (std::min)(text.find('/'), text.size());
    if (!parse_authority(text.substr(0, slash), url)) return std::nullopt;
    // Decoded and encoded again, so that URL and canonical path agree on stores that do the same before they verify.
    const auto path = bytes::unpercent(text.substr(slash), false);
    if (!path) return std::nullopt;
    std::string_view kept = *path;
    while (bytes::ends_with(kept, "/")) kept.remove_suffix(1);
    bytes::append_percent(url.path, kept, true);
    return url;
}

// Combinations that AWS does not run.
inline Result<void> check_options(const Options& options) {
    if (options.bucket.empty()) return refuse("no bucket given");
    const std::string kind = unsupported_kind(options.bucket);
    if (!kind.empty()) return refuse(kind);
    if (!valid_region(options.region))
        return refuse("'" + bytes::sanitize(options.region) + "' is not the name of a region");
    if (!options.endpoint_url.empty() && (options.dualstack || options.fips || options.accelerate))
        return refuse("dualstack, fips and accelerate cannot be combined with a custom endpoint");
    if (options.accelerate && options.fips) return refuse("accelerate cannot be combined with fips");
    const bool china = partition_of(options.region).name == "aws-cn";
    if (china && (options.fips || options.accelerate)) return refuse("there is no fips and no accelerate in China");
    return {};
}

// The host of AWS itself: s3[-fips][.dualstack].region.suffix. "aws-global" stands for "no region in the host".
inline Url aws_url(const Options& options, const std::string& region) {
    Url url;
    url.scheme = "https";
    url.host = options.accelerate ? "s3-accelerate" : options.fips ? "s3-fips" : "s3";
    if (options.dualstack) url.host += ".dualstack";
    const bool global = options.region == "aws-global" && !options.fips && !options.dualstack;
    if (!options.accelerate && !global) url.host.append(1, '.').append(region);
    url.host = bytes::lower(url.host.append(1, '.').append(partition_of(region).suffix));
    return url;
}

// A wildcard certificate covers one label, so dots in the bucket need plain http; an address takes no label at all.
inline bool use_virtual_host(const Options& options, const Url& base, bool is_custom) {
    if (options.addressing == Addressing::path || base.is_address) return false;
    if (options.addressing == Addressing::automatic && is_custom) return false;
    return fits_host(options.bucket, is_custom && base.scheme == "http");
}

inline Result<Endpoint> resolve(const Options& options) {
    if (auto fine = check_options(options); !fine) return std::move(fine).error();
    const bool is_custom = !options.endpoint_url.empty();
    const std::string region = options.region == "aws-global" ? "us-east-1" : options.region;
    const auto base = is_custom ? parse_url(options.endpoint_url) : aws_url(options, region);
    if (!base) {
        return refuse(
            "the endpoint is not of the form http[s]://host[:port][/path], with a name, four numbers or [an IPv6 "
            "address] as host, without user, query or fragment");
    }
    Endpoint endpoint;
    endpoint.path_style = !use_virtual_host(options, *base, is_custom);
    if (endpoint.path_style && options.accelerate)
        return refuse("accelerate needs a bucket name that fits into a host");
    endpoint.scheme = base->scheme;
    endpoint.host = endpoint.path_style ? base->host : options.bucket + '.' + base->host;
    endpoint.base_path = base->path;
    if (endpoint.path_style) bytes::append_percent(endpoint.base_path += '/', options.bucket, false);
    endpoint.signing_region = region;
    return endpoint;
}

// What a user writes to say where a cache lives, and how.
struct Location {
    std::string bucket;
    std::string prefix;  // empty, or with a slash at its end: a key is put right behind it
    std::optional<std::string> region{};
    std::optional<std::string> endpoint_url{};
    std::optional<bool> path_style{};
    std::optional<Checksums> checksums{};
    std::optional<MetadataNames> metadata_names{};
    std::optional<std::uint64_t> part_bytes{};
};

// Every name may come once; an unknown one is refused, because a misspelt "endpoint" would send data to AWS instead.
inline bool take_parameter(Location& to, std::string_view name, std::string value) {
    const auto is = [&](const char* word) { return value == word; };
    const auto number = bytes::to_u64(value);
    if (name == "region" && !to.region)
        to.region = std::move(value);
    else if (name == "endpoint" && !to.endpoint_url)
        to.endpoint_url = std::move(value);
    else if (name == "path_style" && !to.path_style && (is("true") || is("false")))
        to.path_style = is("true");
    else if (name == "checksums" && !to.checksums && (is("own") || is("store") || is("none")))
        to.checksums = is("own") ? Checksums::own : is("store") ? Checksums::store : Checksums::none;
    else if (name == "metadata_names" && !to.metadata_names && (is("underscore") || is("hyphen")))
        to.metadata_names = is("hyphen") ? MetadataNames::hyphen : MetadataNames::underscore;
    else if (name == "part_bytes" && !to.part_bytes && number)
        to.part_bytes = number;
    else
        return false;
    return true;
}

inline Result<void> take_parameters(Location& location, std::string_view query) {
    for (std::string_view pair : split(query, "&")) {
        const std::size_t equals = (std::min)(pair.find('='), pair.size());
        const std::string_view name = pair.substr(0, equals);
        auto value = bytes::unpercent(pair.substr((std::min)(equals + 1, pair.size())), false);
        if (value && !value->empty() && take_parameter(location, name, *std::move(value))) continue;
        return refuse("'" + bytes::sanitize(name) +
                      "' comes twice, has no readable value, or is not one of region, endpoint, path_style=true|false, "
                      "checksums=own|store|none, metadata_names=underscore|hyphen and part_bytes=NUMBER");
    }
    return {};
}

// "bucket" or "s3://bucket/prefix", each with "?region=…&endpoint=…" behind it if wanted. The prefix stands for itself,
// as in the AWS CLI: no %XX is decoded there.
inline Result<Location> parse_location(std::string_view text) {
    constexpr std::string_view scheme = "s3://";
    const bool is_url = bytes::iequal(text.substr(0, scheme.size()), scheme);
    if (is_url) text.remove_prefix(scheme.size());
    const std::string kind = bytes::starts_with(text, "arn:") ? unsupported_kind(text) : std::string();
    if (!kind.empty()) return refuse(kind);
    const std::size_t question = (std::min)(text.find('?'), text.size());
    const std::string_view query = text.substr((std::min)(question + 1, text.size()));
    text = text.substr(0, question);

    Location location;
    location.bucket = text.substr(0, text.find('/'));
    std::string_view prefix = text.substr(location.bucket.size());
    // What has these in it is a key and its secret, which must not be printed.
    if (location.bucket.find_first_of("@:") != std::string::npos)
        return refuse("a location is s3://bucket/prefix: neither keys nor a host belong into it");
    if (!valid_bucket(location.bucket))
        return refuse("'" + bytes::sanitize(location.bucket) + "' is not the name of a bucket");
    if (!prefix.empty() && !is_url) return refuse("a prefix needs the form s3://bucket/prefix");
    if (!prefix.empty()) prefix.remove_prefix(1);
    location.prefix = prefix;
    if (!prefix.empty() && !bytes::ends_with(prefix, "/")) location.prefix += '/';
    if (query.empty()) return location;
    if (auto fine = take_parameters(location, query); !fine) return std::move(fine).error();
    return location;
}

}  // namespace detail::endpoint

// --- sigv4: AWS Signature Version 4 under the rules of S3 (one encoding, no path normalisation).

namespace detail::sigv4 {

inline constexpr std::string_view algorithm = "AWS4-HMAC-SHA256";
inline constexpr std::string_view unsigned_payload = "UNSIGNED-PAYLOAD";
inline constexpr std::string_view empty_payload_hash =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// S3 answers 400 to anything longer than seven days, so such a URL would be dead on arrival.
inline constexpr std::uint32_t presign_seconds_max = 604800;

struct Header {
    std::string_view name;
    std::string_view value;
};

// Everything borrowed. `path` and `query` are already encoded: signing the very bytes that go on the wire is the only
// way to agree with stores that decode and encode again. Headers come in sending order, since repeats join in it.
struct Request {
    std::string_view method;
    std::string_view path;
    std::string_view query;
    const Header* headers = nullptr;
    std::size_t header_count = 0;
    std::string_view payload_hash;
};

// The day of the scope is cut from `amz_date`: taken from a second look at the clock, it would differ at midnight.
struct Scope {
    std::string_view amz_date;  // YYYYMMDDTHHMMSSZ
    std::string_view region;
    std::string_view service;
};

using QueryPairs = bytes::Pairs;

// Hops rewrite these on their way. accept-encoding is here because Google's front end changes it, which turns every
// request into a 403; user-agent because proxies add to it.
inline bool never_signed(std::string_view lower_name) {
    if (bytes::starts_with(lower_name, "x-amz-")) return false;  // most of them
    constexpr std::array<std::string_view, 11> names = {
        "accept-encoding", "authorization", "connection",        "expect",         "keep-alive", "te", "trailer",
        "upgrade",         "user-agent",    "transfer-encoding", "x-amzn-trace-id"};
    if (std::find(names.begin(), names.end(), lower_name) != names.end()) return true;
    return bytes::starts_with(lower_name, "proxy-") || bytes::starts_with(lower_name, "sec-websocket-");
}

// Names and values are encoded before they are sorted, and sorted as pairs: joined `name=value` text would put `a-b`
// before `a`, because '-' is less than '='.
inline std::string canonical_query(const QueryPairs& raw) {
    QueryPairs encoded(raw.size());
    for (std::size_t i = 0; i < raw.size(); ++i) {
        bytes::append_percent(encoded[i].first, raw[i].first, false);
        bytes::append_percent(encoded[i].second, raw[i].second, false);
    }
    std::sort(encoded.begin(), encoded.end());
    std::string out;
    for (const auto& [name, value] : encoded) {
        if (!out.empty()) out += '&';
        out.append(name).append(1, '=').append(value);
    }
    return out;
}

// Outer blanks go and inner runs become one space, as the server does before it compares. Line breaks count as blanks:
// the published suites fold them, and whoever sends headers refuses them long before.
inline void append_header_value(std::string& out, std::string_view value) {
    const auto is_blank = [](char c) { return c <= ' ' && bytes::is_blank(c); };
    value = bytes::trim(value);
    for (;;) {
        const auto blank = std::find_if(value.begin(), value.end(), is_blank);
        const std::size_t word = static_cast<std::size_t>(blank - value.begin());
        out.append(value.data(), word);
        value.remove_prefix(word);
        if (value.empty()) return;
        out += ' ';
        while (bytes::is_blank(value.front())) value.remove_prefix(1);  // ends, because it does not end in a blank
    }
}

// The chain of four HMACs. It depends on the secret, the day, the region and the service only, hence the cache below.
inline digest::Sha256Digest signing_key(std::string_view secret_key, const Scope& scope) {
    std::string seed = "AWS4";
    seed.reserve(seed.size() + secret_key.size());
    seed.append(secret_key);
    auto key = digest::hmac_sha256(seed, scope.amz_date.substr(0, 8));
    bytes::wipe(seed);
    key = digest::hmac_sha256(digest::as_text(key), scope.region);
    key = digest::hmac_sha256(digest::as_text(key), scope.service);
    return digest::hmac_sha256(digest::as_text(key), "aws4_request");
}

// Signs request after request without touching the heap once its buffers have grown. What stays the same from one to the
// next is kept: the order of the headers, the scope, the key. One for each connection handle: it keeps state and is not
// to be shared between threads.
class Signer {
public:
    Signer() = default;
    Signer(Signer&&) = default;
    Signer& operator=(Signer&&) = default;
    Signer(const Signer&) = delete;
    Signer& operator=(const Signer&) = delete;
    ~Signer() { bytes::wipe(key_secret_); }

    // The value for the Authorization header, good until the next call. It covers every header given but the
    // never_signed ones, so `host`, `x-amz-date` and `x-amz-security-token` are the caller's to put into the list.
    std::string_view sign(const Request& request, const Credentials& credentials, const Scope& scope) {
        select_headers(request);
        write_scope(scope);
        write_canonical_request(request, request.query);
        write_signature(credentials, scope);
        authorization_.assign(algorithm).append(" Credential=").append(credentials.access_key) += '/';
        authorization_.append(scope_).append(", SignedHeaders=").append(signed_headers_);
        authorization_.append(", Signature=").append(signature_);
        return authorization_;
    }

    // The whole query string of a presigned URL, made of `query` and the signature's own parameters; `request.query` is
    // not looked at. Whoever uses the URL must send the signed headers unchanged. Empty: the lifetime is not allowed.
    std::string presign(const Request& request, QueryPairs query, const Credentials& credentials, const Scope& scope,
                        std::uint32_t lifetime_seconds) {
        if (lifetime_seconds == 0 || lifetime_seconds > presign_seconds_max) return {};
        select_headers(request);
        write_scope(scope);
        bytes::add(query, "X-Amz-Algorithm", algorithm);
        bytes::add(query, "X-Amz-Credential", credentials.access_key + '/' + scope_);
        bytes::add(query, "X-Amz-Date", scope.amz_date);
        bytes::add(query, "X-Amz-Expires", std::string());
        bytes::append_number(query.back().second, lifetime_seconds);
        bytes::add(query, "X-Amz-SignedHeaders", signed_headers_);
        if (!credentials.session_token.empty()) bytes::add(query, "X-Amz-Security-Token", credentials.session_token);
        std::string out = canonical_query(query);
        write_canonical_request(request, out);
        write_signature(credentials, scope);
        return out.append("&X-Amz-Signature=").append(signature_);
    }

    // What the last call signed: a server that answers SignatureDoesNotMatch prints its own two to compare with.
    const std::string& canonical_request() const { return canonical_; }
    const std::string& string_to_sign() const { return to_sign_; }
    const std::string& signature() const { return signature_; }

private:
    // The lower-case name of the header at that place in the request.
    std::string_view name_of(std::size_t header) const {
        return std::string_view(names_).substr(ends_[header], ends_[header + 1] - ends_[header]);
    }

    bool has_same_names(const Request& request) const {
        if (ends_.size() != request.header_count + 1) return false;
        for (std::size_t i = 0; i < request.header_count; ++i) {
            if (request.headers[i].name != name_of(i)) return false;
        }
        return true;
    }

    // Sorted by name, repeats in sending order. The place breaks the tie because std::stable_sort allocates.
    void select_headers(const Request& request) {
        if (has_same_names(request)) return;
        names_.clear();
        ends_.assign(1, 0);
        order_.clear();
        for (std::size_t i = 0; i < request.header_count; ++i) {
            for (char c : request.headers[i].name) names_ += bytes::lower(c);
            ends_.push_back(names_.size());
            if (!never_signed(name_of(i))) order_.push_back(i);
        }
        std::sort(order_.begin(), order_.end(), [this](std::size_t a, std::size_t b) {
            const int order = name_of(a).compare(name_of(b));
            return order != 0 ? order < 0 : a < b;
        });
        signed_headers_.clear();
        for (std::size_t i = 0; i < order_.size(); ++i) {
            if (!repeats(i)) signed_headers_.append(i != 0 ? ";" : "").append(name_of(order_[i]));
        }
    }

    bool repeats(std::size_t i) const { return i != 0 && name_of(order_[i]) == name_of(order_[i - 1]); }

    void write_scope(const Scope& scope) {
        (scope_.assign(scope.amz_date.substr(0, 8)) += '/').append(scope.region) += '/';
        scope_.append(scope.service).append("/aws4_request");
    }

    void write_canonical_request(const Request& request, std::string_view query) {
        canonical_.assign(request.method) += '\n';
        canonical_.append(request.path.empty() ? std::string_view("/") : request.path) += '\n';
        canonical_.append(query);
        for (std::size_t i = 0; i < order_.size(); ++i) {
            canonical_ += repeats(i) ? ',' : '\n';
            if (!repeats(i)) canonical_.append(name_of(order_[i])) += ':';
            append_header_value(canonical_, request.headers[order_[i]].value);
        }
        (canonical_.append("\n\n").append(signed_headers_) += '\n').append(request.payload_hash);
    }

    void write_signature(const Credentials& credentials, const Scope& scope) {
        ((to_sign_.assign(algorithm) += '\n').append(scope.amz_date) += '\n').append(scope_) += '\n';
        hash_.update(canonical_);
        bytes::append_hex(to_sign_, digest::as_text(hash_.finish()));
        signature_.clear();
        bytes::append_hex(signature_, digest::as_text(key_for(credentials, scope).sign(to_sign_)));
    }

    // Compared by the secret itself rather than by a generation number, which someone could forget to count up.
    digest::HmacSha256Key& key_for(const Credentials& credentials, const Scope& scope) {
        if (key_ && key_scope_ == scope_ && key_secret_ == credentials.secret_key) return *key_;
        auto key = signing_key(credentials.secret_key, scope);
        key_.emplace(digest::as_text(key));
        OPENSSL_cleanse(key.data(), key.size());
        bytes::wipe(key_secret_);
        key_secret_ = credentials.secret_key;
        key_scope_ = scope_;
        return *key_;
    }

    std::string names_;               // lower-case, one behind the other
    std::vector<std::size_t> ends_;   // of the names; the first is 0
    std::vector<std::size_t> order_;  // the headers that are signed, sorted
    std::string signed_headers_;
    std::string scope_;
    std::string canonical_;
    std::string to_sign_;
    std::string signature_;
    std::string authorization_;
    digest::Sha256 hash_;
    std::optional<digest::HmacSha256Key> key_;
    std::string key_scope_;
    std::string key_secret_;
};

}  // namespace detail::sigv4

// --- http: easy and multi handles, the pool, sinks; the one place that knows libcurl -----------------------------------

namespace detail::http {

// S3 sends under 8 KiB of headers; these bounds only stop a hostile server from filling memory.
inline constexpr std::size_t header_bytes_max = std::size_t{64} << 10;
inline constexpr std::size_t header_lines_max = 256;
// The largest answer that is not a value: a page of 1,000 keys of 1,024 bytes, each byte encoded as %XX.
inline constexpr std::size_t text_bytes_max = std::size_t{8} << 20;
// A body up to this is taken in with the head in one send, which costs a sixth less CPU; libcurl does it up to 64 KiB.
inline constexpr std::size_t one_send_bytes_max = std::size_t{60} << 10;
// The receive buffer: a large one halves the cost of a large download, a small one is cheaper for a small answer over TLS.
inline constexpr long small_buffer_bytes = 32L << 10;
inline constexpr long large_buffer_bytes = 512L << 10;
// What Config::buffer_bytes may be: libcurl takes no smaller one for sending, and no larger one before 7.88.
inline constexpr std::size_t buffer_bytes_min = std::size_t{16} << 10;
inline constexpr std::size_t buffer_bytes_max = std::size_t{512} << 10;
// Of a body that does not go out with the head: 256 KiB instead of libcurl's 64 saves a twelfth of a large upload.
inline constexpr long upload_buffer_bytes = 256L << 10;
inline constexpr long tls_upload_buffer_bytes = 128L << 10;  // its records are 16 KiB anyway
// Stores close idle connections after 5 s to some minutes; an older one is likelier dead than useful.
inline constexpr long idle_seconds_max = 20;

using Clock = std::chrono::steady_clock;

// What the process knows of its libcurl. Initialised once and never cleaned up: the application may use libcurl too.
struct Library {
    Library() : ready(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK) {
        if (const curl_version_info_data* info = curl_version_info(CURLVERSION_NOW)) version = info->version_num;
    }
    bool ready;
    unsigned version = 0;
};
inline const Library& library() {
    static const Library instance;
    return instance;
}

// Where systems keep the certificates that they trust, for a libcurl that was built for another one and looks in vain.
inline constexpr std::array<const char*, 6> ca_bundles = {
    "/etc/ssl/certs/ca-certificates.crt",                 // Debian, Alpine, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",                   // Red Hat, Fedora
    "/etc/ssl/ca-bundle.pem",                             // SUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  // CentOS
    "/usr/local/share/certs/ca-root-nss.crt",             // FreeBSD
    "/etc/ssl/cert.pem"};                                 // OpenBSD, Alpine

// Empty: libcurl's own choice stands. `is_there` looks at a path; null paths are what libcurl was built without.
inline std::string ca_bundle_for(const char* own_file, const char* own_folder,
                                 const std::function<bool(const char*)>& is_there) {
    if ((own_file && is_there(own_file)) || (own_folder && is_there(own_folder))) return {};
    if (!own_file && !own_folder) return {};  // it has another source, such as the system's own store
    for (const char* path : ca_bundles) {
        if (is_there(path)) return path;
    }
    return {};
}

inline std::string find_ca_bundle() {
#if LIBCURL_VERSION_NUM >= 0x074600 && !defined(_WIN32)
    const curl_version_info_data* info = curl_version_info(CURLVERSION_NOW);
    if (info && info->age >= CURLVERSION_SEVENTH)
        return ca_bundle_for(info->cainfo, info->capath, [](const char* path) { return access(path, R_OK) == 0; });
#endif
    return {};
}

// Runs what a C library called back, through which no exception may pass.
template <class F, class R>
R shielded(F&& call, R otherwise) noexcept {
#if S3CACHE_EXCEPTIONS
    try {
        return call();
    } catch (...) {
        return otherwise;
    }
#else
    static_cast<void>(otherwise);
    return call();
#endif
}

// The header lines of one answer, in one block of text that is used again.
class Headers {
public:
    void clear() {
        text_.clear();
        lines_.clear();
    }

    bool add(std::string_view line) {  // "Name: value" with its line end; false: over a limit
        const std::size_t colon = line.find(':');
        if (colon == std::string_view::npos) return true;
        if (lines_.size() == header_lines_max || text_.size() + line.size() > header_bytes_max) return false;
        const std::string_view name = bytes::trim(line.substr(0, colon));
        const std::string_view value = bytes::trim(line.substr(colon + 1));
        const auto at = [&](std::string_view piece) {  // in text_, where the line goes as it is
            return text_.size() + static_cast<std::size_t>(piece.data() - line.data());
        };
        lines_.push_back({at(name), name.size(), at(value), value.size()});
        text_.append(line);
        return true;
    }

    // The first line of that name; stores that repeat one repeat its value.
    std::optional<std::string_view> find(std::string_view name) const {
        for (const Line& line : lines_) {
            if (line.name_size == name.size() && bytes::iequal(name_of(line), name)) return value_of(line);
        }
        return std::nullopt;
    }
    std::string_view get(std::string_view name) const { return find(name).value_or(std::string_view()); }

    template <class F>
    void each(F&& visit) const {
        for (const Line& line : lines_) visit(name_of(line), value_of(line));
    }

private:
    struct Line {
        std::size_t name_at, name_size, value_at, value_size;
    };
    std::string_view name_of(const Line& line) const { return {text_.data() + line.name_at, line.name_size}; }
    std::string_view value_of(const Line& line) const { return {text_.data() + line.value_at, line.value_size}; }
    std::string text_;
    std::vector<Line> lines_;
};

enum class Method { get, head, put, post, erase };

inline std::string_view name_of(Method method) {
    switch (method) {
    case Method::get:
        return "GET";
    case Method::head:
        return "HEAD";
    case Method::put:
        return "PUT";
    case Method::post:
        return "POST";
    case Method::erase:
        break;
    }
    return "DELETE";
}

// What is sent: memory, or a function that reads at any offset, so that libcurl can go back and send it again.
struct Body {
    using ReadAt = std::function<std::size_t(std::uint64_t offset, char* buffer, std::size_t capacity)>;
    std::string_view memory{};
    ReadAt read_at{};
    std::uint64_t size = 0;
};

struct Transfer;

// Where the body of a successful answer goes. Two plain pointers: a virtual call would bill every file that includes this.
struct Sink {
    enum class Took { all, none_yet, enough };  // none_yet: pause and offer the same again; enough: end the transfer
    void* self = nullptr;
    Took (*take)(void* self, const Transfer& from, const char* data, std::size_t size) = nullptr;
};

struct Limits {
    std::chrono::milliseconds connect{0}, stall{0}, total{0};  // zero: none
};

// One easy handle with one request and its answer. Its buffers live on from request to request.
struct Transfer {
    // the request
    Method method = Method::get;
    bool large = false;  // a large answer is likely
    bool bypass_proxy = false;
    std::string url;
    const Body* body = nullptr;
    Sink sink{};
    Limits limits{};
    // the answer
    CURLcode result = CURLE_OK;
    int status = 0;
    Headers headers;
    std::string text;  // the body, where no sink takes it
    std::uint64_t received = 0, sent = 0;
    bool paused = false;
    bool reused = false;
    bool overflow = false;   // more headers or text than we take
    bool no_memory = false;  // a sink threw
    char problem[CURL_ERROR_SIZE] = {};
    void* owner = nullptr;
    Clock::time_point answered_at{};  // when the status line came
    std::string date_learned;         // the Date that the clock was last set by
    std::string amz_date;
    std::int64_t amz_date_of = 0;  // the second that it tells
    std::vector<sigv4::Header> to_sign;
    sigv4::Signer signer;  // keeps the key that it derived: one for each handle needs no lock

    Transfer() : easy(curl_easy_init()) {}
    ~Transfer() {
        for (std::string& line : lines_) bytes::wipe(line);  // session tokens and signatures
        if (easy) curl_easy_cleanup(easy);
    }
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

    void clear_request() {
        used_ = 0;
        body = nullptr;
        sink = {};
        large = bypass_proxy = false;
    }

    // Appends a header exactly as it will be sent; the signer reads it back from here.
    void add_header(std::string_view name, std::string_view value) {
        if (used_ == lines_.size()) lines_.emplace_back(), names_.push_back(0);
        names_[used_] = name.size();
        std::string& line = lines_[used_++];
        line.assign(name);
        if (value.empty()) {
            line += ';';  // libcurl's way to write an empty value; with a colon it would drop the header
        } else {
            line.append(": ").append(value);
        }
    }
    std::size_t header_count() const { return used_; }
    std::string_view header_name(std::size_t i) const { return std::string_view(lines_[i]).substr(0, names_[i]); }
    std::string_view header_value(std::size_t i) const {
        return std::string_view(lines_[i]).substr((std::min)(lines_[i].size(), names_[i] + 2));
    }

    bool prepare(const Config& config, CURLSH* share);

    CURL* easy;

private:
    // What a handle was last set up for. The same again needs a few options only; anything else a reset first, since
    // options of a method leak into the next request.
    struct Shape {
        Method method = Method::get;
        bool one_send = false, large = false, bypass_proxy = false;
        std::chrono::milliseconds connect{-1}, stall{-1};
        bool operator==(const Shape& other) const {
            return method == other.method && one_send == other.one_send && large == other.large &&
                   bypass_proxy == other.bypass_proxy && connect == other.connect && stall == other.stall;
        }
    };
    template <class T>
    void set(CURLoption option, T value) {
        if (curl_easy_setopt(easy, option, value) != CURLE_OK) refused_ = true;
    }
    template <class T>
    void try_set(CURLoption option, T value) {  // what an older libcurl may lack, or be built without
        static_cast<void>(curl_easy_setopt(easy, option, value));
    }
    void set_up(const Config& config, CURLSH* share);
    void set_protocols();
    void set_network(const Config& config);
    void set_method();
    void set_body();
    void set_headers();

    static std::size_t on_header(char* data, std::size_t size, std::size_t count, void* self);
    static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self);
    static std::size_t on_read(char* buffer, std::size_t size, std::size_t count, void* self);
    static int on_seek(void* self, curl_off_t offset, int origin);
    std::size_t take_body(const char* data, std::size_t size);

    Shape shape_;
    bool set_up_ = false, refused_ = false, names_itself_ = false;
    std::vector<std::string> lines_;
    std::vector<std::size_t> names_;
    std::size_t used_ = 0;
    std::vector<curl_slist> list_;  // points into lines_: building libcurl's own list would copy every line again
};

// Ready to be added to a multi handle. False: libcurl refused an option, or has no memory.
inline bool Transfer::prepare(const Config& config, CURLSH* share) {
    if (!easy) return false;
    Shape wanted{method,         body && body->read_at == nullptr && body->size <= one_send_bytes_max,
                 large,          bypass_proxy,
                 limits.connect, limits.stall};
    refused_ = false;
    if (!set_up_ || !(wanted == shape_)) {
        shape_ = wanted;
        curl_easy_reset(easy);
        set_up(config, share);
        set_up_ = true;
    }
    set(CURLOPT_URL, url.c_str());
    set_headers();
    set_body();
    set(CURLOPT_TIMEOUT_MS, static_cast<long>(limits.total.count()));
    result = CURLE_OK;
    status = 0;
    headers.clear();
    text.clear();
    received = sent = 0;
    paused = reused = overflow = no_memory = false;
    problem[0] = '\0';
    if (refused_) set_up_ = false;
    return !refused_;
}

inline void Transfer::set_up(const Config& config, CURLSH* share) {
    set(CURLOPT_PRIVATE, static_cast<void*>(this));
    set(CURLOPT_ERRORBUFFER, &problem[0]);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_PATH_AS_IS, 1L);  // a key may hold `.` and `..`
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    names_itself_ = !config.setup_curl;
    if (!names_itself_) set(CURLOPT_USERAGENT, "s3cache/" S3CACHE_VERSION);  // which the hook may replace
    set(CURLOPT_HEADERFUNCTION, &Transfer::on_header);
    set(CURLOPT_HEADERDATA, static_cast<void*>(this));
    set(CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    set(CURLOPT_WRITEDATA, static_cast<void*>(this));
    set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    set(CURLOPT_TCP_KEEPALIVE, 1L);
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(limits.connect.count()));
    // libcurl counts whole seconds of a transfer that moves less than a byte a second.
    set(CURLOPT_LOW_SPEED_LIMIT, limits.stall.count() ? 1L : 0L);
    set(CURLOPT_LOW_SPEED_TIME, static_cast<long>((limits.stall.count() + 999) / 1000));
    const long chosen = static_cast<long>(config.buffer_bytes);
    set(CURLOPT_BUFFERSIZE, chosen ? chosen : large ? large_buffer_bytes : small_buffer_bytes);
    if (share) try_set(CURLOPT_SHARE, share);
#if LIBCURL_VERSION_NUM >= 0x073e00
    const bool tls = bytes::starts_with(url, "https:");
    if (!shape_.one_send)
        try_set(CURLOPT_UPLOAD_BUFFERSIZE, chosen ? chosen : tls ? tls_upload_buffer_bytes : upload_buffer_bytes);
#endif
#if LIBCURL_VERSION_NUM >= 0x074000
    try_set(CURLOPT_HTTP09_ALLOWED, 0L);
#endif
#if LIBCURL_VERSION_NUM >= 0x074100
    try_set(CURLOPT_MAXAGE_CONN, idle_seconds_max);
#endif
    set_protocols();
    set_network(config);
    set_method();
    if (config.setup_curl) config.setup_curl(easy);
}

inline void Transfer::set_protocols() {
#if LIBCURL_VERSION_NUM >= 0x075500
    if (library().version >= 0x075500) return set(CURLOPT_PROTOCOLS_STR, "http,https");
#endif
#if LIBCURL_VERSION_NUM < 0x075500
    set(CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

inline void Transfer::set_network(const Config& config) {
    set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    if (!config.ca_bundle.empty()) set(CURLOPT_CAINFO, config.ca_bundle.c_str());
    if (!config.client_certificate.empty()) set(CURLOPT_SSLCERT, config.client_certificate.c_str());
    if (!config.client_key.empty()) set(CURLOPT_SSLKEY, config.client_key.c_str());
    if (bypass_proxy) {
        set(CURLOPT_NOPROXY, "*");
    } else if (!config.proxy.empty()) {
        set(CURLOPT_PROXY, config.proxy.c_str());
    }
}

inline void Transfer::set_method() {
    switch (method) {
    case Method::get:
        return set(CURLOPT_HTTPGET, 1L);
    case Method::head:
        return set(CURLOPT_NOBODY, 1L);
    case Method::post:
        return set(CURLOPT_POST, 1L);
    case Method::erase:
        return set(CURLOPT_CUSTOMREQUEST, "DELETE");
    case Method::put:
        break;
    }
    if (shape_.one_send) return set(CURLOPT_CUSTOMREQUEST, "PUT");  // with POSTFIELDS, see set_body
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_READFUNCTION, &Transfer::on_read);
    set(CURLOPT_READDATA, static_cast<void*>(this));
    set(CURLOPT_SEEKFUNCTION, &Transfer::on_seek);  // a reused connection that turns out dead makes libcurl start again
    set(CURLOPT_SEEKDATA, static_cast<void*>(this));
}

// The size is always given: without it libcurl would send the body chunked, which S3 refuses.
inline void Transfer::set_body() {
    if (!body) return;
    const auto size = static_cast<curl_off_t>(body->size);
    if (method == Method::put && !shape_.one_send) return set(CURLOPT_INFILESIZE_LARGE, size);
    set(CURLOPT_POSTFIELDSIZE_LARGE, size);
    set(CURLOPT_POSTFIELDS, body->memory.data() ? body->memory.data() : "");
}

inline void Transfer::set_headers() {
    const std::size_t signed_count = used_;
    const auto leave_out = [this](std::string_view name) {
        add_header(name, "");
        lines_[used_ - 1].back() = ':';  // libcurl's way to send no such header
    };
    if (body) leave_out("Expect");  // asking leave to send costs a second on the stores that do not answer it
    leave_out("Accept");            // it says nothing, and libcurl takes its time to write it
    if (names_itself_) add_header("User-Agent", "s3cache/" S3CACHE_VERSION);  // as an option libcurl writes it twice
    bool typed = false;
    for (std::size_t i = 0; i < signed_count; ++i) typed |= bytes::iequal(header_name(i), "content-type");
    if (body && !typed) leave_out("Content-Type");  // it would say that the body is a form
    list_.resize(used_);
    for (std::size_t i = 0; i < used_; ++i) list_[i] = {&lines_[i][0], i + 1 < used_ ? &list_[i + 1] : nullptr};
    used_ = signed_count;
    set(CURLOPT_HTTPHEADER, list_.data());
}

inline std::size_t Transfer::on_header(char* data, std::size_t size, std::size_t count, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    const std::string_view line(data, size * count);
    if (bytes::starts_with(line, "HTTP/")) {  // each answer, 100 Continue too, begins anew
        transfer.headers.clear();
        const std::size_t blank = line.find(' ');
        const auto code = bytes::to_u64(blank == std::string_view::npos ? line : line.substr(blank + 1, 3));
        transfer.status = static_cast<int>(code.value_or(0));
        transfer.answered_at = Clock::now();
        return line.size();
    }
    transfer.overflow |= !shielded([&] { return transfer.headers.add(line); }, false);
    return transfer.overflow ? 0 : line.size();
}

inline std::size_t Transfer::on_body(char* data, std::size_t size, std::size_t count, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    constexpr std::size_t threw = static_cast<std::size_t>(-1);
    const std::size_t taken = shielded([&] { return transfer.take_body(data, size * count); }, threw);
    transfer.no_memory |= taken == threw;
    return taken == threw ? 0 : taken;
}

inline std::size_t Transfer::take_body(const char* data, std::size_t size) {
    if (sink.take && (status == 200 || status == 206)) {
        switch (sink.take(sink.self, *this, data, size)) {
        case Sink::Took::none_yet:
            paused = true;
            return CURL_WRITEFUNC_PAUSE;
        case Sink::Took::enough:
            return 0;
        case Sink::Took::all:
            break;
        }
    } else if (text.size() + size > text_bytes_max) {
        overflow = true;
        return 0;
    } else {
        text.append(data, size);
    }
    received += size;
    return size;
}

inline std::size_t Transfer::on_read(char* buffer, std::size_t size, std::size_t count, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    const Body& body = *transfer.body;
    const std::uint64_t left = body.size - (std::min)(body.size, transfer.sent);
    auto wanted = static_cast<std::size_t>((std::min)(left, std::uint64_t{size} * count));
    if (wanted && body.read_at) {
        wanted = shielded([&] { return body.read_at(transfer.sent, buffer, wanted); }, std::size_t{0});
        if (!wanted) return CURL_READFUNC_ABORT;  // the file became shorter
    } else if (wanted) {
        body.memory.copy(buffer, wanted, static_cast<std::size_t>(transfer.sent));
    }
    transfer.sent += wanted;
    return wanted;
}

inline int Transfer::on_seek(void* self, curl_off_t offset, int origin) {
    if (origin != SEEK_SET || offset < 0) return CURL_SEEKFUNC_CANTSEEK;
    static_cast<Transfer*>(self)->sent = static_cast<std::uint64_t>(offset);
    return CURL_SEEKFUNC_OK;
}

// Until libcurl 7.87 OpenSSL wrote to sockets itself, and a closed one raised SIGPIPE in a program that did not expect it.
class SigpipeGuard {
public:
#if defined(_WIN32)
    SigpipeGuard() {}
#else
    SigpipeGuard() : active_(library().version < 0x075700) {
        if (!active_) return;
        sigset_t pending;
        sigpending(&pending);
        was_pending_ = sigismember(&pending, SIGPIPE) == 1;
        sigset_t pipe;
        sigemptyset(&pipe);
        sigaddset(&pipe, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &pipe, &before_);
    }
    ~SigpipeGuard() {
        if (!active_) return;
        sigset_t pending;
        sigpending(&pending);
        int taken = 0;
        sigset_t pipe;
        sigemptyset(&pipe);
        sigaddset(&pipe, SIGPIPE);
        if (!was_pending_ && sigismember(&pending, SIGPIPE) == 1) sigwait(&pipe, &taken);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
#endif
    SigpipeGuard(const SigpipeGuard&) = delete;
    SigpipeGuard& operator=(const SigpipeGuard&) = delete;

#if !defined(_WIN32)
private:
    bool active_ = false, was_pending_ = false;
    sigset_t before_{};
#endif
};

// A multi handle with the connections it keeps, and idle transfers. One thread at a time.
class Engine {
public:
    explicit Engine(unsigned connections) : multi_(curl_multi_init()) {
        if (multi_) curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(connections));
    }
    ~Engine() {
        idle_.clear();
        if (multi_) curl_multi_cleanup(multi_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    Transfer* borrow() {
        if (idle_.empty()) idle_.push_back(std::make_unique<Transfer>());
        Transfer* transfer = idle_.back().release();
        idle_.pop_back();
        transfer->clear_request();
        return transfer;
    }
    // Takes the transfer back; one that still runs is cut off, which closes its connection.
    void give_back(Transfer* transfer, bool running) {
        std::unique_ptr<Transfer> owned(transfer);
        if (running) curl_multi_remove_handle(multi_, transfer->easy);
        if (transfer->text.capacity() > (std::size_t{1} << 20)) std::string().swap(transfer->text);
        idle_.push_back(std::move(owned));
    }

    bool start(Transfer& transfer, const Config& config, CURLSH* share) {
        return multi_ && transfer.prepare(config, share) && curl_multi_add_handle(multi_, transfer.easy) == CURLM_OK;
    }

    // Takes a transfer out that has failed outside of perform().
    void stop(Transfer& transfer, CURLcode result) {
        curl_multi_remove_handle(multi_, transfer.easy);
        transfer.result = result;
    }

    // Moves bytes without waiting, and calls `finished` with each transfer that is over.
    template <class F>
    bool perform(F&& finished) {
        const SigpipeGuard guard;
        int running = 0;
        if (curl_multi_perform(multi_, &running) != CURLM_OK) return false;
        int left = 0;
        while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
            if (message->msg != CURLMSG_DONE) continue;
            void* owner = nullptr;
            const CURLcode result = message->data.result;  // the message goes with the handle
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &owner);
            Transfer& transfer = *static_cast<Transfer*>(owner);
            long connects = 0;
            curl_easy_getinfo(transfer.easy, CURLINFO_NUM_CONNECTS, &connects);
            transfer.reused = connects == 0;
            transfer.result = result;
            curl_multi_remove_handle(multi_, transfer.easy);
            finished(transfer);
        }
        return true;
    }

    digest::Sha256 body_hash;  // for whoever has a whole body: making one anew costs half of hashing 4 KiB

    void wait(std::chrono::milliseconds most) {
        curl_multi_wait(multi_, nullptr, 0, static_cast<int>(most.count()), nullptr);
    }

private:
    CURLM* multi_;
    std::vector<std::unique_ptr<Transfer>> idle_;
};

// DNS answers and TLS sessions, shared by all engines of a cache. Connections are not: libcurl forbids that between threads.
class Share {
public:
    Share() : share_(curl_share_init()) {
        if (!share_) return;
        curl_share_setopt(share_, CURLSHOPT_LOCKFUNC, &Share::lock);
        curl_share_setopt(share_, CURLSHOPT_UNLOCKFUNC, &Share::unlock);
        curl_share_setopt(share_, CURLSHOPT_USERDATA, static_cast<void*>(this));
        curl_share_setopt(share_, CURLSHOPT_SHARE, CURL_LOCK_DATA_DNS);
        curl_share_setopt(share_, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
    }
    ~Share() {
        if (share_) curl_share_cleanup(share_);
    }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    CURLSH* get() const { return share_; }

private:
    static void lock(CURL*, curl_lock_data data, curl_lock_access, void* self) {
        static_cast<Share*>(self)->locks_[static_cast<std::size_t>(data)].lock();
    }
    static void unlock(CURL*, curl_lock_data data, void* self) {
        static_cast<Share*>(self)->locks_[static_cast<std::size_t>(data)].unlock();
    }
    std::array<std::mutex, CURL_LOCK_DATA_LAST> locks_;
    CURLSH* share_;
};

inline std::uint64_t process_id() {
#if defined(_WIN32)
    return 0;  // there is no fork
#else
    return static_cast<std::uint64_t>(getpid());
#endif
}

// The idle engines of a cache. The lock is held to take one or give it back, never during I/O. Last in, first out: the
// engine used last has the warmest connections.
class Pool {
public:
    Pool(unsigned connections, unsigned idle_max)
        : connections_(connections), idle_max_(idle_max), owner_(process_id()) {}

    // Also tells the process that takes it, for give_back.
    std::unique_ptr<Engine> take(std::uint64_t& taken_by) {
        const std::lock_guard<std::mutex> hold(lock_);
        leave_to_parent();
        taken_by = owner_;
        if (idle_.empty()) return std::make_unique<Engine>(connections_);
        std::unique_ptr<Engine> engine = std::move(idle_.back());
        idle_.pop_back();
        return engine;
    }
    // Asks no process id, a system call: one taken before a fork and given back in the child differs from the pool's
    // owner, or the owner is still the parent, and then the child's first take() leaves them all to it.
    void give_back(std::unique_ptr<Engine> engine, std::uint64_t taken_by) {
        const std::lock_guard<std::mutex> hold(lock_);
        if (taken_by != owner_) return static_cast<void>(engine.release());  // made before a fork
        if (idle_.size() < idle_max_) idle_.push_back(std::move(engine));
    }

private:
    // After a fork the connections belong to the parent: using or even closing them here (TLS says goodbye) would break
    // its requests. They are leaked on purpose.
    void leave_to_parent() {
        const std::uint64_t here = process_id();
        if (owner_ == here) return;
        for (auto& engine : idle_) static_cast<void>(engine.release());
        idle_.clear();
        owner_ = here;
    }
    std::mutex lock_;
    std::vector<std::unique_ptr<Engine>> idle_;
    unsigned connections_, idle_max_;
    std::uint64_t owner_;
};

}  // namespace detail::http

// --- retry: classify, back off, quota ---------------------------------------------------------------------------------

namespace detail::retry {

// A wait that the store asked for is honoured up to this; sccache's users waited for hours on an absurd one.
inline constexpr std::chrono::milliseconds retry_after_max{20000};
// An outage must not be multiplied: a cache has this many tokens, a retry takes five (ten after a timeout), a success
// gives one back and so does time. The numbers are botocore's standard mode, but for the refill by time.
inline constexpr double quota_tokens = 500;
inline constexpr double quota_per_retry = 5;
inline constexpr double quota_per_timeout = 10;
inline constexpr double quota_per_second = 5;

enum class Verdict {
    answered,         // an answer for the operation to look at, good or bad
    again,            // passing trouble
    new_credentials,  // once, with fresh ones
    new_clock,        // once, with the store's time
    new_region,       // once, signed for the region that the store named
    broken,           // no answer, and another attempt would not help
};

struct Seen {
    CURLcode result = CURLE_OK;
    int status = 0;
    std::string_view code{};  // the S3 code, if there was one
};

inline bool one_of(std::string_view text, std::initializer_list<std::string_view> list) {
    return std::find(list.begin(), list.end(), text) != list.end();
}

inline bool passing(CURLcode result) {
    switch (result) {
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_HTTP2:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_HTTP2_STREAM:
        return true;
    default:
        return false;
    }
}

inline bool throttling(int status, std::string_view code) {
    return status == 429 || bytes::starts_with(code, "SlowDown") || bytes::starts_with(code, "Throttl") ||
           one_of(code, {"RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests"});
}

inline Verdict classify(const Seen& seen) {
    // A store may refuse and close while we still send: then the answer counts, not the broken pipe.
    const bool refused_early =
        seen.status >= 400 && (seen.result == CURLE_SEND_ERROR || seen.result == CURLE_RECV_ERROR);
    if (seen.result != CURLE_OK && !refused_early) return passing(seen.result) ? Verdict::again : Verdict::broken;
    if (seen.status / 100 == 2 && seen.code.empty()) return Verdict::answered;
    if (one_of(seen.code,
               {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}))
        return Verdict::new_credentials;
    if (seen.code == "RequestTimeTooSkewed") return Verdict::new_clock;
    if (seen.status == 301 || seen.status == 307 ||
        one_of(seen.code, {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}))
        return Verdict::new_region;
    if (throttling(seen.status, seen.code)) return Verdict::again;
    if (one_of(seen.code, {"InternalError", "InternalErrors", "ServiceUnavailable", "RequestTimeout",
                           "PriorRequestNotComplete", "BadDigest", "OperationAborted", "ConditionalRequestConflict"}))
        return Verdict::again;
    switch (seen.status) {
    case 408:
    case 500:
    case 502:
    case 503:
    case 504:
    case 509:
    case 522:
    case 524:
        return Verdict::again;
    default:
        return Verdict::answered;
    }
}

// Full jitter: uniform in [0, base * 2^n], so that many clients do not come back together.
inline std::chrono::milliseconds backoff(const Config& config, int failures, double random) {
    const double base = static_cast<double>(config.backoff_base.count());
    const double cap = static_cast<double>(config.backoff_cap.count());
    const double most = (std::min)(cap, base * static_cast<double>(1u << (std::min)(failures, 20)));
    return std::chrono::milliseconds(static_cast<std::int64_t>(most * random));
}

// As doubles, since a date in an answer may be so far off that the difference of two time points overflows.
inline double seconds_between(TimePoint from, TimePoint to) {
    using Span = std::chrono::duration<double>;
    return Span(to.time_since_epoch()).count() - Span(from.time_since_epoch()).count();
}

// Retry-After: seconds or an HTTP date.
inline std::optional<std::chrono::milliseconds> retry_after(std::string_view text, TimePoint now) {
    std::chrono::milliseconds wait{0};
    if (const auto seconds = bytes::to_u64(text)) {
        wait = std::chrono::seconds((std::min)(*seconds, std::uint64_t{3600}));
    } else if (const auto when = dates::http_date(text)) {
        const double ahead = (std::min)(seconds_between(now, *when), 3600.0);
        wait = std::chrono::milliseconds(static_cast<std::int64_t>((std::max)(ahead, 0.0) * 1000));
    } else {
        return std::nullopt;
    }
    return (std::max)(std::chrono::milliseconds{0}, (std::min)(wait, retry_after_max));
}

// The token bucket of one cache.
class Quota {
public:
    bool take(double tokens, http::Clock::time_point now) {
        const std::lock_guard<std::mutex> hold(lock_);
        const double idle = std::chrono::duration<double>(now - last_).count();
        tokens_ = (std::min)(quota_tokens, tokens_ + idle * quota_per_second);
        last_ = now;
        if (tokens_ < tokens) return false;
        tokens_ -= tokens;
        full_ = false;
        return true;
    }
    void succeeded() {
        if (full_.load(std::memory_order_relaxed)) return;  // the usual case takes no lock
        const std::lock_guard<std::mutex> hold(lock_);
        tokens_ = (std::min)(quota_tokens, tokens_ + 1);
        full_ = tokens_ >= quota_tokens;
    }

private:
    std::mutex lock_;
    double tokens_ = quota_tokens;
    http::Clock::time_point last_ = http::Clock::now();
    std::atomic<bool> full_{true};
};

// The circuit breaker of one cache, off unless `failures_max` is over zero. Once open it lets one call through each pause,
// which closes it if it goes well: half open is no state of its own, only the call that came first after the pause.
class Breaker {
public:
    Breaker(unsigned failures_max, std::chrono::milliseconds pause) : failures_max_(failures_max), pause_(pause) {}

    bool on() const { return failures_max_ != 0; }
    bool admits(TimePoint now) {
        const std::lock_guard<std::mutex> hold(lock_);
        // A clock that was set back must not turn a pause into a day.
        const bool open = failures_ >= failures_max_ && now < until_ && until_ - now <= pause_;
        if (!open && failures_ >= failures_max_) until_ = now + pause_;
        return !open;
    }
    void report(bool healthy, TimePoint now) {
        const std::lock_guard<std::mutex> hold(lock_);
        failures_ = healthy ? 0 : (std::min)(failures_ + 1, failures_max_);
        if (failures_ == failures_max_) until_ = now + pause_;
    }

private:
    const unsigned failures_max_;
    const std::chrono::milliseconds pause_;
    std::mutex lock_;
    unsigned failures_ = 0;
    TimePoint until_{};
};

}  // namespace detail::retry

// --- credentials: who we are, and the region and endpoint that the same files and variables name. Environment,
// files, clock, processes and HTTP come in as functions, so that all of it can be tested with none of them.

namespace detail::credentials {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

// -- sizes: real answers and files are far smaller, so what is larger is not what it claims to be
inline constexpr std::size_t answer_bytes_max = 64 * 1024;  // of a credential endpoint or process; real ones have 3 KiB
inline constexpr std::size_t jwt_bytes_max = 20000;         // STS takes no longer web identity token
inline constexpr std::size_t key_bytes_max = 1024;          // AWS documents 128 for ids; MinIO takes any length
inline constexpr std::size_t token_bytes_max = 16 * 1024;   // servers refuse longer headers
inline constexpr std::size_t text_bytes_max = 2048;         // of a URL or ARN; HTTP software takes no more everywhere
inline constexpr std::size_t roles_max = 100;               // roles that lead to roles; a longer chain is a mistake

// -- times: a metadata service answers from the same host, STS from the same region
inline constexpr milliseconds imds_timeout{1000};       // as the AWS CLI; AWS_METADATA_SERVICE_TIMEOUT changes it
inline constexpr milliseconds container_timeout{2000};  // as the AWS SDKs
inline constexpr milliseconds sts_connect_timeout{3000};
inline constexpr milliseconds sts_timeout{10000};
inline constexpr int attempts_max = 3;  // of STS, and of a container's agent, which may still be starting
inline constexpr milliseconds between_attempts{1000};
inline constexpr milliseconds process_timeout{60000};  // a helper may ask a person for a code
inline constexpr milliseconds cancel_poll{50};         // how often a wait looks for a cancellation
inline constexpr seconds imds_absent_first{10};        // a host without the service is left alone so long; doubles
inline constexpr seconds imds_absent_most{600};
inline constexpr seconds files_fresh{1};        // one call's looks at the files share one reading of them
inline constexpr minutes advisory_window{15};   // one thread renews, the others go on
inline constexpr minutes mandatory_window{10};  // the others wait for it, unless it has failed before
inline constexpr minutes imds_extension{15};    // use of overdue instance credentials in an outage
inline constexpr seconds retry_first{1};        // after a failed renewal; doubles
inline constexpr seconds retry_most{60};
inline constexpr seconds retry_most_unserved{10};  // nothing valid to go on with: ask sooner
inline constexpr seconds forced_again_after{30};   // a store that refuses fresh keys must not flood STS

// -- the outside

// How long the calling operation may still wait. Every wait of this section ends when that is over.
struct Limits {
    std::optional<std::chrono::steady_clock::time_point> deadline{};
    std::function<bool()> cancelled{};

    bool over() const {
        return (cancelled && cancelled()) || (deadline && std::chrono::steady_clock::now() >= *deadline);
    }
    // As much of `most` as may be waited for at once, so that a deadline and a cancellation are noticed.
    milliseconds slice(milliseconds most) const {
        if (cancelled) most = (std::min)(most, cancel_poll);
        if (!deadline) return most;
        const auto left = std::chrono::duration_cast<milliseconds>(*deadline - std::chrono::steady_clock::now());
        return (std::max)(milliseconds(1), (std::min)(most, left));
    }
    // Why a wait ended before its time.
    Error error(const std::string& during) const {
        if (cancelled && cancelled()) return Error(Errc::cancelled, "cancelled while " + during);
        return Error(Errc::timed_out, "the time of the call was over while " + during);
    }
};

struct WebRequest {
    const char* method = "GET";
    std::string url{};
    bytes::Pairs headers{};
    std::string body{};
    milliseconds connect_timeout{1000};
    milliseconds timeout{1000};
    bool bypass_proxy = false;  // link-local services: a proxy would answer with its own host's identity
    std::size_t answer_bytes_max = credentials::answer_bytes_max;
};

struct WebAnswer {
    int status = 0;  // 0: no answer
    std::string body{};
    std::string problem{};  // why there was none
};

enum class FileState { missing, unreadable, text };

struct FileText {
    FileState state = FileState::missing;
    std::string text{};
    std::string problem{};            // why it is unreadable
    bool readable_by_others = false;  // worth a hint where keys are in it
};

struct ProcessResult {
    int exit_status = -1;
    std::string output{};
    std::string problem{};  // it did not run to its end
};

struct Environment {
    std::function<std::optional<std::string>(const char* name)> variable{};
    std::function<FileText(const std::string& path)> read_file{};
    std::function<WebAnswer(const WebRequest&, const Limits&)> fetch{};
    std::function<TimePoint()> now{};
    std::function<void(milliseconds, const Limits&)> sleep{};
    std::function<ProcessResult(const std::vector<std::string>& argv, milliseconds timeout,
                                std::size_t output_bytes_max, const Limits&)>
        run_process{};
};

// What was chosen in code; empty: discovered. A profile keeps the environment's keys out, as in the AWS SDKs.
struct Settings {
    std::string profile{};
    std::string region{};
    std::string endpoint_url{};
};

// An empty value: nothing is configured, and `why` says where it was looked for.
struct Setting {
    std::string value{};
    std::string why{};
};

// -- texts

inline Error broken(const std::string& what) { return Error(Errc::credentials, what); }

// The last four characters tell one key from another, as the AWS CLI shows it; a short key would be half told by them.
inline std::string masked(std::string_view access_key) {
    return access_key.size() < 12 ? "****" : "****" + std::string(access_key.substr(access_key.size() - 4));
}

// A URL for a message: tokens stand behind the question mark, passwords before the '@'.
inline std::string shown_url(std::string_view url) { return bytes::sanitize(url.substr(0, url.find('?'))); }

inline std::int64_t unix_seconds(TimePoint when) {
    return std::chrono::duration_cast<seconds>(when.time_since_epoch()).count();
}

inline std::string time_text(TimePoint when) { return dates::iso8601_text(unix_seconds(when)); }

inline std::string summary(const Credentials& keys) {
    const std::string until = keys.expires ? "until " + time_text(*keys.expires) : "no expiry";
    return keys.source + ": access key " + masked(keys.access_key) + ", " + until;
}

// -- checks

// A value that goes into a header line or next to one; `name` begins the error.
inline Result<void> check_value(std::string_view value, const std::string& name, std::size_t bytes_max,
                                bool blanks_allowed = false) {
    if (value.size() > bytes_max) return broken(name + " is longer than " + bytes::number(bytes_max) + " bytes");
    for (char c : value) {
        if (c == '\r' || c == '\n')
            return broken(name + " contains a line break (a Windows line end, or a cut and paste of two lines?)");
        if (c == ' ' && !blanks_allowed) return broken(name + " contains a blank");
        if (c < ' ' || c > '~') return broken(name + " contains a byte that is not printable ASCII");
    }
    return {};
}

// How a source calls the parts of its keys.
struct Names {
    const char* access_key;
    const char* secret_key;
    const char* token;
};

inline constexpr Names variable_names{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"};
inline constexpr Names setting_names{"aws_access_key_id", "aws_secret_access_key", "aws_session_token"};
inline constexpr Names answer_names{"AccessKeyId", "SecretAccessKey", "SessionToken"};
inline constexpr Names metadata_names{"AccessKeyId", "SecretAccessKey", "Token"};
inline constexpr Names member_names{"the access key", "the secret key", "the session token"};

// Whether keys that a source, or a user's provider, has returned can be used. `where` becomes their source.
inline Result<Credentials> check(Credentials keys, const std::string& where, const Names& names, TimePoint now) {
    const bool lacks_secret = keys.secret_key.empty();
    if (keys.access_key.empty() != lacks_secret) {
        return broken(where + ": " + (lacks_secret ? names.access_key : names.secret_key) + " is set but " +
                      (lacks_secret ? names.secret_key : names.access_key) + " is not: set both or neither");
    }
    const std::string name = where + ": ";
    // Blanks in the secret are let through, because it never enters a header and some stores allow them.
    auto fine = check_value(keys.access_key, name + names.access_key, key_bytes_max);
    if (fine) fine = check_value(keys.secret_key, name + names.secret_key, key_bytes_max, true);
    if (fine) fine = check_value(keys.session_token, name + names.token, token_bytes_max);
    if (!fine) return std::move(fine).error();
    keys.source = where;
    if (!keys.expires || *keys.expires > now) return keys;
    return broken(where + ": the credentials expired at " + time_text(*keys.expires) + " and the clock says " +
                  time_text(now) + ": renew them there, or set the clock");
}

// `text` as the expiry of keys; empty: none.
inline Result<std::optional<TimePoint>> check_expiry(const std::string& text, const std::string& name) {
    const auto time = dates::iso8601(text);
    if (time || text.empty()) return time;
    return broken(name + " is '" + bytes::sanitize(text) + "', expected a time such as 2025-01-15T12:34:56Z");
}

inline Result<Setting> check_region(Setting region, const std::string& name) {
    if (region.value.empty() || endpoint::valid_region(region.value)) return region;
    return endpoint::refuse(name + " is '" + bytes::sanitize(region.value) + "', expected a region such as eu-west-1");
}

inline Result<Setting> check_url(Setting url, const std::string& name) {
    if (url.value.empty()) return url;
    if (check_value(url.value, {}, text_bytes_max) && endpoint::parse_url(url.value)) return url;
    return endpoint::refuse(name + " is '" + shown_url(url.value) + "', expected a URL such as https://s3.example.com");
}

inline Result<void> check_arn(const std::string& arn, const std::string& name) {
    if (bytes::starts_with(arn, "arn:") && check_value(arn, {}, text_bytes_max)) return {};
    return broken(name + " is '" + bytes::sanitize(arn) + "', expected arn:aws:iam::ACCOUNT:role/NAME");
}

// -- the environment

// The first of the variables that is set. Empty is unset, as everywhere in the AWS tools, because containers often
// declare variables that they leave blank.
inline Setting first_variable(const Environment& environment, std::initializer_list<const char*> names) {
    for (const char* name : names) {
        auto value = environment.variable ? environment.variable(name) : std::nullopt;
        if (value && !value->empty()) return {*std::move(value), name};
    }
    return {};
}

inline std::string variable(const Environment& environment, const char* name) {
    return first_variable(environment, {name}).value;
}

inline bool switched_on(const std::string& value) { return bytes::iequal(bytes::trim(value), "true"); }

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN

// -- the files

struct SettingsFile {
    std::string path{};
    ini::File sections{};
    std::string hint{};  // for people, if keys lie open
    bool exists = false;

    SettingsFile() = default;
    SettingsFile(const SettingsFile&) = delete;
    SettingsFile& operator=(const SettingsFile&) = delete;
    ~SettingsFile() {
        for (ini::Section& section : sections) {
            for (ini::Setting& setting : section.settings) bytes::wipe(setting.text);
        }
    }
};

// Both files as one reading found them, and the profile that is selected.
struct Files {
    SettingsFile config{}, credentials{};
    std::string profile{};
    TimePoint read_at{};

    ini::Profile find(const std::string& name) const {
        return ini::find_profile(config.sections, credentials.sections, name);
    }
};

// As Python's expanduser: HOME, or else what the password database says.
inline std::string home_directory(const Environment& environment) {
    const std::string home = first_variable(environment, {"HOME", "USERPROFILE"}).value;
#ifndef _WIN32
    std::vector<char> buffer(16384);
    struct passwd entry {};
    struct passwd* found = nullptr;
    if (home.empty() && ::getpwuid_r(::getuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found)
        return found->pw_dir;
#endif
    return home;
}

// A byte order mark, as Windows editors write it, is no part of the text.
inline Result<void> read_settings(SettingsFile& out, const Environment& environment, const char* name,
                                  const char* otherwise) {
    std::string path = variable(environment, name);
    if (path.empty()) path = otherwise;
    if (bytes::starts_with(path, "~/")) path = home_directory(environment) + path.substr(1);
    FileText file = environment.read_file ? environment.read_file(path) : FileText();
    out.path = bytes::sanitize(path);
    out.exists = file.state == FileState::text;
    if (file.state == FileState::missing) return {};
    if (file.state == FileState::unreadable) return broken(out.path + " cannot be read: " + file.problem);
    if (file.readable_by_others) out.hint = "; others may read the file: chmod 600 " + out.path;
    std::string_view text = file.text;
    if (bytes::starts_with(text, "\xEF\xBB\xBF")) text.remove_prefix(3);
    auto parsed = ini::parse(text, out.path);
    bytes::wipe(file.text);
    if (!parsed) return std::move(parsed).error();
    out.sections = *std::move(parsed);
    return {};
}

// Set but empty counts for the profile, unlike elsewhere: botocore looks for a profile without a name then and fails,
// and so would the AWS CLI on the same machine.
inline Setting chosen_profile(const Environment& environment, const Settings& settings) {
    if (!settings.profile.empty()) return {settings.profile, "the configured profile"};
    for (const char* name : {"AWS_DEFAULT_PROFILE", "AWS_PROFILE"}) {
        auto value = environment.variable ? environment.variable(name) : std::nullopt;
        if (value) return {*std::move(value), name};
    }
    return {"default", {}};
}

inline Result<std::shared_ptr<const Files>> read_files(const Environment& environment, const Settings& settings) {
    auto files = std::make_shared<Files>();
    files->read_at = environment.now();
    auto read = read_settings(files->config, environment, "AWS_CONFIG_FILE", "~/.aws/config");
    if (read)
        read = read_settings(files->credentials, environment, "AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
    if (!read) return std::move(read).error();
    const Setting chosen = chosen_profile(environment, settings);
    files->profile = chosen.value;
    const ini::Profile profile = files->find(files->profile);
    const std::string name = bytes::sanitize(files->profile), services = profile.get("services");
    if (!chosen.why.empty() && !profile.exists()) {
        return broken(chosen.why + ": there is no profile '" + name + "' in " + files->config.path + " or " +
                      files->credentials.path);
    }
    if (!services.empty() && ini::find_section(files->config.sections, "services", services) == nullptr)
        return broken("profile " + name + ": there is no [services " + bytes::sanitize(services) + "]");
    return std::shared_ptr<const Files>(std::move(files));
}

// -- answers of endpoints and processes

// Absent and null are empty; a value of another type makes the answer unusable, because else a token could go missing.
inline std::string text_member(std::string_view body, const char* name, std::string& wrong) {
    const std::string_view raw = json::member(body, name);
    if (raw.empty() || raw == "null") return {};
    auto text = json::string_field(body, name);
    if (!text) wrong = std::string(name) + " is not a text";
    return text ? std::move(*text) : std::string();
}

// Error documents name a code, which is shown if it looks like one. Free text in them is not shown, because it may
// repeat what we sent.
inline std::string code_in(std::string_view body) {
    for (const char* name : {"Code", "code"}) {
        const std::string code = json::string_field(body, name).value_or(std::string());
        const bool plain = code.size() <= 64 && std::all_of(code.begin(), code.end(), bytes::is_alpha);
        if (plain && !code.empty()) return ", it says " + code;
    }
    return {};
}

inline Result<Credentials> keys_in_json(std::string_view body, const std::string& where, const Names& names) {
    const std::size_t open = (std::min)(body.find_first_not_of(" \t\r\n"), body.size());
    if (!bytes::starts_with(body.substr(open), "{") || !json::valid(body))
        return broken(where + ": the answer is not a JSON object, expected one with AccessKeyId and SecretAccessKey");
    std::string wrong;
    Credentials keys;
    keys.access_key = text_member(body, names.access_key, wrong);
    keys.secret_key = text_member(body, names.secret_key, wrong);
    keys.session_token = text_member(body, names.token, wrong);
    auto expires = check_expiry(text_member(body, "Expiration", wrong).substr(0, 40), where + ": Expiration");
    if (!wrong.empty()) return broken(where + ": " + wrong);
    if (keys.access_key.empty() && keys.secret_key.empty())
        return broken(where + ": the answer has no AccessKeyId and SecretAccessKey" + code_in(body));
    if (!expires) return std::move(expires).error();
    keys.expires = *expires;
    return keys;
}

// Instance metadata hands out overdue keys while it cannot renew them, and S3 goes on taking those. The spread keeps a
// fleet from coming back all at once; the clock's low digits differ enough between hosts for that.
inline TimePoint extended(TimePoint now) {
    return now + imds_extension + seconds(now.time_since_epoch().count() / 1000 % 480);
}

inline std::string told(const WebAnswer& answer) {
    if (answer.status > 0) return "HTTP status " + bytes::number(static_cast<std::uint64_t>(answer.status));
    return "no answer" + (answer.problem.empty() ? std::string() : " (" + bytes::sanitize(answer.problem) + ")");
}

// What STS says about roles and policies is what the reader needs, but it may repeat the token that it was sent.
inline std::string sts_complaint(const WebAnswer& answer, const std::string& token) {
    if (answer.status == 200) return "an answer without credentials";
    const auto error = answer.status != 0 ? xml::error_body(answer.body) : std::nullopt;
    if (!error || error->code.empty()) return told(answer);
    std::string text = error->message;
    for (std::size_t at = 0; token.size() >= 4 && (at = text.find(token, at)) != std::string::npos;)
        text.replace(at, token.size(), "******");
    return told(answer) + ", " + bytes::sanitize(error->code + ": " + text);
}

// -- addresses

// The host in an authority such as [::1]:80, without its brackets and port.
inline std::string_view host_in(std::string_view authority) {
    const std::size_t end = authority.find(']');
    return end != std::string_view::npos ? authority.substr(1, end - 1) : authority.substr(0, authority.find(':'));
}

// Plain HTTP carries the keys and our token in the clear, so it goes only where nobody else can listen.
inline bool plain_http_allowed(const endpoint::Url& url) {
    const std::string_view host = host_in(url.host);
    for (std::string_view known : {"localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23", "::1"}) {
        if (host == known) return true;
    }
    return url.is_address && bytes::starts_with(host, "127.");
}

// Strict where parsers differ, because what is checked here must be what the HTTP library connects to. The path is a
// secret: on ECS it is all that it takes to get the keys.
inline Result<std::string> container_url(const Setting& set) {
    const bool relative = bytes::ends_with(set.why, "RELATIVE_URI");
    const std::string url = (relative ? "http://169.254.170.2" : "") + set.value;
    const std::size_t authority = url.find("://") + 3, end = (std::min)(url.find_first_of("/?", authority), url.size());
    const bool odd = url.find_first_of("\\#<>\"{}|^`") != std::string::npos || !check_value(url, {}, text_bytes_max);
    const auto base = odd ? std::nullopt : endpoint::parse_url(std::string_view(url).substr(0, end));
    if (!base || (relative && set.value[0] != '/'))
        return broken("container: " + set.why +
                      (relative ? " is no path such as /v2/credentials/ID"
                                : " is no URL such as http://169.254.170.23/v1/credentials"));
    const std::string shown = base->scheme + "://" + base->host;
    if (base->scheme == "https" || plain_http_allowed(*base))
        return shown + (url.compare(end, 1, "/") == 0 ? "" : "/") + url.substr(end);
    return broken("container: " + set.why + " names " + shown +
                  ", but plain http is used only for localhost, 127.0.0.0/8, [::1], 169.254.170.2, 169.254.170.23 and "
                  "[fd00:ec2::23]; expected one of them, or https");
}

struct ImdsSettings {
    std::string base = "http://169.254.169.254";  // no slash at its end
    std::string token{};                          // of a session; empty: nothing that speaks version 2 is there
    milliseconds timeout = imds_timeout;
    int attempts = 1;
};

#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

// -- the chain

// One caller's walk through the sources. Keys are nothing where a source is not configured and the next one is to be
// asked, and an error where it is configured but broken, because falling through could then use another identity.
using Found = Result<std::optional<Credentials>>;

struct Look {
    const Limits& limits;
    bool for_keys = false;         // then the files are read anew, because other programs rewrite them
    std::string note{};            // of the last source, for people: why it was passed over, or a hint
    bool imds_absent = false;      // it did not answer
    bool imds_left_alone = false;  // because it did not a moment ago
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    std::shared_ptr<const Files> files{};
#endif

    Found pass_over(std::string why) {
        note = std::move(why);
        return std::optional<Credentials>();
    }
};

inline Found found(Result<Credentials> keys) {
    if (!keys) return std::move(keys).error();
    return std::optional<Credentials>(*std::move(keys));
}

// The sources in botocore's order. Thread-safe.
class Chain {
public:
    Chain(Environment environment, Settings settings)
        : environment_(std::move(environment)), settings_(std::move(settings)) {}

    // Once a source has answered, only that one is asked again: a profile file that is just being rewritten must not
    // turn a person into the instance's role.
    Result<Credentials> find(const Limits& limits) {
        Look look{limits, true};
        look.imds_left_alone = environment_.now() < TimePoint(seconds(imds_absent_until_));
        const int before = answered_;
        std::string seen;
        for (int i = (std::max)(before, 0); i < source_count; ++i) {
            const Source& source = sources[i];
            Found keys = (this->*source.ask)(look);
            if (look.imds_absent && before < 0) leave_imds_alone();
            if (!keys) return std::move(keys).error();
            if (*keys) {
                answered_ = i;
                return **std::move(keys);
            }
            if (before >= 0) return broken(std::string(source.name) + ", which gave credentials before: " + look.note);
            seen += std::string("; ") + source.name + ": " + look.note;
        }
        return broken("no credentials found" + seen + other_sources);
    }

    // The same walk, told source by source. Changes nothing in what find() does next.
    std::vector<Finding> explain() {
        const Limits limits;
        Look look{limits, true};
        std::vector<Finding> findings;
        bool decided = false;
        for (const Source& source : sources) {
            findings.push_back({std::string("credentials: ") + source.name, Finding::Verdict::not_asked, {}});
            if (decided) continue;
            look.note.clear();
            const Found keys = (this->*source.ask)(look);
            decided = !keys || *keys;
            Finding& finding = findings.back();
            finding.verdict = !keys   ? Finding::Verdict::broken
                              : *keys ? Finding::Verdict::used
                                      : Finding::Verdict::passed_over;
            finding.text = !keys ? keys.error().what() : *keys ? summary(**keys) + look.note : look.note;
        }
        return findings;
    }

    // Instance metadata is asked only after it gave the credentials, because elsewhere it may be another network's.
    Result<Setting> region(const Limits& limits) {
        Look look{limits};
        auto out = configured_region(look);
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
        if (out && out->value.empty() && answered_ == source_count - 1 && !foreign_endpoint(look))
            return imds_region(look);
#endif
        return out;
    }

    // An empty value: AWS's own.
    Result<Setting> endpoint_url() {
        const Limits limits;
        Look look{limits};
        return configured_endpoint(look, "S3");
    }

    // Of the selected profile; empty where it has none, or the files cannot be read, which is reported by who needs keys.
    std::string profile_setting(const char* name) {
        const Limits limits;
        Look look{limits};
        return load(look) ? profile_value(look, name) : std::string();
    }

private:
    struct Source {
        const char* name;
        Found (Chain::*ask)(Look&);
    };

    // -- what needs no files

    // As in botocore a secret alone is passed over, and an access key alone is an error.
    Found environment_keys(Look& look) {
        if (!settings_.profile.empty()) return look.pass_over("a profile is chosen in code");
        return keys_in_environment(look);
    }

    Found keys_in_environment(Look& look) {
        Credentials keys;
        keys.access_key = variable(environment_, "AWS_ACCESS_KEY_ID");
        if (keys.access_key.empty()) return look.pass_over("AWS_ACCESS_KEY_ID is not set");
        keys.secret_key = variable(environment_, "AWS_SECRET_ACCESS_KEY");
        keys.session_token = first_variable(environment_, {"AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}).value;
        auto expires =
            check_expiry(variable(environment_, "AWS_CREDENTIAL_EXPIRATION"), "environment: AWS_CREDENTIAL_EXPIRATION");
        if (!expires) return std::move(expires).error();
        keys.expires = *expires;
        return found(check(std::move(keys), "environment", variable_names, environment_.now()));
    }

    // Without asking instance metadata.
    Result<Setting> configured_region(Look& look) {
        if (!settings_.region.empty()) return check_region({settings_.region, "set in code"}, "the region");
        Setting set = first_variable(environment_, {"AWS_REGION", "AWS_DEFAULT_REGION"});
        if (!set.value.empty()) return check_region(set, set.why);
        if (auto read = load(look); !read) return std::move(read).error();
        set = {profile_value(look, "region"), selected_text(look)};
        if (!set.value.empty()) return check_region(set, set.why + ": region");
        return Setting{{}, "neither AWS_REGION nor the profile sets one"};
    }

    // Of "S3" or "STS": a service's own variable, the one for all, the profile's services section, the profile.
    Result<Setting> configured_endpoint(Look& look, const std::string& service) {
        const std::string own = "AWS_ENDPOINT_URL_" + service;
        if (service == "S3" && !settings_.endpoint_url.empty())
            return check_url({settings_.endpoint_url, "set in code"}, "the endpoint");
        Setting set = first_variable(environment_, {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"});
        if (switched_on(set.value)) return Setting{{}, set.why + " is true"};
        if (auto read = load(look); !read) return std::move(read).error();
        if (set.value.empty() && switched_on(profile_value(look, "ignore_configured_endpoint_urls")))
            return Setting{{}, "the profile says ignore_configured_endpoint_urls"};
        set = first_variable(environment_, {own.c_str(), "AWS_ENDPOINT_URL"});
        if (!set.value.empty()) return check_url(set, set.why);
        set = {endpoint_in_files(look, bytes::lower(service)), selected_text(look)};
        if (!set.value.empty()) return check_url(set, set.why + ": endpoint_url");
        return Setting{{}, "neither " + own + ", AWS_ENDPOINT_URL nor the profile sets one"};
    }

    // Shortly at first, because a service that is slow once must not cost minutes of credentials.
    void leave_imds_alone() {
        const std::int64_t wait = imds_absent_for_;
        imds_absent_until_ = unix_seconds(environment_.now()) + wait;
        imds_absent_for_ = (std::min)(2 * wait, std::int64_t{imds_absent_most.count()});
    }

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    // -- the files

    Result<void> load(Look& look) {
        if (look.files) return {};
        const std::lock_guard<std::mutex> lock(files_lock_);
        const TimePoint now = environment_.now();
        const bool fresh = files_ && now >= files_->read_at && now - files_->read_at < files_fresh;
        if (!fresh || (look.for_keys && keys_taken_)) {
            auto read = read_files(environment_, settings_);
            if (!read) return std::move(read).error();
            files_ = *std::move(read);
            keys_taken_ = false;
        }
        keys_taken_ = keys_taken_ || look.for_keys;
        look.files = files_;
        return {};
    }

    static ini::Profile selected(const Look& look) { return look.files->find(look.files->profile); }
    static std::string profile_text(const std::string& name) { return "profile " + bytes::sanitize(name); }
    static std::string selected_text(const Look& look) { return profile_text(look.files->profile); }
    static std::string profile_value(const Look& look, const char* name) { return selected(look).get(name); }

    static std::string endpoint_in_files(const Look& look, const std::string& service) {
        const ini::Profile profile = selected(look);
        const ini::Section* services =
            ini::find_section(look.files->config.sections, "services", profile.get("services"));
        const ini::Setting* own = services != nullptr ? services->find(service) : nullptr;
        std::string url = profile.get("endpoint_url");
        for (const auto& [name, value] : own != nullptr ? own->block : bytes::Pairs()) {
            if (name == "endpoint_url" && !value.empty()) url = value;
        }
        return url;
    }

    // -- profiles

    // The variables of Kubernetes and CI systems. A profile that names a role goes first, as in botocore.
    Found web_identity(Look& look) {
        if (!settings_.profile.empty()) return look.pass_over("a profile is chosen in code");
        if (variable(environment_, "AWS_WEB_IDENTITY_TOKEN_FILE").empty())
            return look.pass_over("AWS_WEB_IDENTITY_TOKEN_FILE is not set");
        if (auto read = load(look); !read) return std::move(read).error();
        const std::string& name = look.files->profile;
        if (assumes_role(selected(look))) return look.pass_over(profile_text(name) + " names a role, which goes first");
        return keys_by_web_identity(look, name, true);
    }

    Found selected_profile(Look& look) {
        if (auto read = load(look); !read) return std::move(read).error();
        std::vector<std::string> visited;
        return keys_of(look, look.files->profile, visited);
    }

    static bool assumes_role(const ini::Profile& profile) {
        return profile.has("role_arn") && !profile.has("web_identity_token_file");
    }
    static bool has_static_keys(const ini::Profile& profile) {
        return profile.has("aws_access_key_id") || profile.has("aws_secret_access_key");
    }

    // What a profile leads to, in botocore's order. The first that is there decides, even if it then turns out to be
    // broken. `visited` are the profiles whose roles are assumed with these keys; without any it is the selected one.
    Found keys_of(Look& look, const std::string& name, std::vector<std::string>& visited) {
        const Files& files = *look.files;
        const ini::Profile profile = files.find(name);
        const std::string where = profile_text(name);
        const bool is_source = !visited.empty();
        const auto in = [](const ini::Section* file) { return file != nullptr && file->find("aws_access_key_id"); };
        if (assumes_role(profile) && !(is_source && has_static_keys(profile)))
            return assume_role(look, name, profile, visited);
        if (profile.has("web_identity_token_file")) {
            Found keys = keys_by_web_identity(look, name, !is_source && settings_.profile.empty());
            if (!keys || *keys) return keys;  // nothing if a variable that goes first is empty
        }
        const bool sso = profile.has("sso_account_id") || profile.has("sso_role_name");
        if (in(profile.credentials) && !sso) return static_keys(look, *profile.credentials, files.credentials, where);
        if (profile.has("credential_process")) return keys_by_process(look, profile.get("credential_process"), where);
        if (sso || profile.has("login_session")) {
            return broken(where +
                          " signs in through a session that only the AWS CLI keeps: add this line to the "
                          "profile in " +
                          files.config.path + ": " + export_line(name));
        }
        if (in(profile.config)) return static_keys(look, *profile.config, files.config, where);
        if (!files.config.exists && !files.credentials.exists)
            return look.pass_over(where + ": there are no configuration files");
        const bool half =
            profile.has("aws_secret_access_key") || profile.has("source_profile") || profile.has("credential_source");
        return look.pass_over(where +
                              (half ? ": aws_access_key_id or role_arn is not set, although what belongs to it is"
                                    : " has no credentials"));
    }

    // The older name of the session token comes first, as in botocore.
    Found static_keys(Look& look, const ini::Section& section, const SettingsFile& file, const std::string& profile) {
        const std::string where = file.path + ", " + profile;
        ini::Profile only;
        only.config = &section;
        Credentials keys;
        keys.access_key = only.get("aws_access_key_id");
        keys.secret_key = only.get("aws_secret_access_key");
        keys.session_token = only.get(only.has("aws_security_token") ? "aws_security_token" : "aws_session_token");
        if (keys.access_key.empty()) return broken(where + ": aws_access_key_id is empty");
        look.note = file.hint;
        return found(check(std::move(keys), where, setting_names, environment_.now()));
    }

    // An SSO or login session needs a client of its own size; the AWS CLI has it and can be asked for the keys.
    static std::string export_line(const std::string& profile) {
        const bool plain = profile.find_first_of(" '\"\\") == std::string::npos;
        return "credential_process = aws configure export-credentials --profile " +
               bytes::sanitize(plain ? profile : "\"" + profile + "\"") + " --format process";
    }

    Found keys_by_process(Look& look, const std::string& command, const std::string& where) {
        const auto words = ini::split_words(command);
        if (!words || words->empty() || (*words)[0].empty() || command.find('\0') != std::string::npos)
            return broken(where + ": credential_process has an open quote or names no program");
        if (!environment_.run_process) return broken(where + ": credential_process cannot be run here");
        // Only the program is named in messages, because its arguments may hold a password.
        const std::string named = where + ": credential_process " + bytes::sanitize((*words)[0]);
        ProcessResult result = environment_.run_process(*words, process_timeout, answer_bytes_max, look.limits);
        if (!result.problem.empty() && look.limits.over()) return look.limits.error(named + " ran");
        if (!result.problem.empty()) return broken(named + ": " + result.problem);
        if (result.exit_status != 0)
            return broken(named + " ended with exit status " + std::to_string(result.exit_status));
        if (json::number_field(result.output, "Version") != "1")
            return broken(named + ": the output is not a JSON object with \"Version\": 1");
        auto keys = keys_in_json(result.output, named, answer_names);
        bytes::wipe(result.output);
        if (!keys) return std::move(keys).error();
        return found(check(*std::move(keys), named, answer_names, environment_.now()));
    }

    // -- roles

    // A profile whose role is assumed with the keys of another, which may be assumed in turn. It ends, because no profile
    // is visited twice but one that holds keys beside its role.
    Found assume_role(Look& look, const std::string& name, const ini::Profile& profile,
                      std::vector<std::string>& visited) {
        const std::string where = profile_text(name), arn = profile.get("role_arn");
        if (auto fine = check_role(name, profile); !fine) return std::move(fine).error();
        if (visited.empty()) visited.push_back(name);
        Found keys = profile.has("source_profile") ? source_keys(look, name, profile.get("source_profile"), visited)
                                                   : named_source(look, profile.get("credential_source"), where);
        if (!keys) return keys;
        if (!*keys) return broken(where + ": no credentials to assume the role with: " + look.note);
        bytes::Pairs fields{{"RoleArn", arn}, {"RoleSessionName", session_name(profile.get("role_session_name"))}};
        if (profile.has("external_id")) bytes::add(fields, "ExternalId", profile.get("external_id"));
        if (profile.has("duration_seconds")) bytes::add(fields, "DurationSeconds", profile.get("duration_seconds"));
        return ask_sts(look, "AssumeRole", fields, &**keys, where + ", role " + bytes::sanitize(arn));
    }

    static Result<void> check_role(const std::string& name, const ini::Profile& profile) {
        const std::string where = profile_text(name) + ": ", duration = profile.get("duration_seconds");
        if (profile.has("source_profile") == profile.has("credential_source"))
            return broken(where + "role_arn needs source_profile or credential_source, and not both");
        if (profile.has("mfa_serial")) {
            return broken(where +
                          "mfa_serial asks a person for a code, which this library does not do. Use another "
                          "profile with this line: " +
                          export_line(name));
        }
        const auto lifetime = bytes::to_u64(duration);
        if (!duration.empty() && !(lifetime && *lifetime >= 900 && *lifetime <= 43200))
            return broken(where + "duration_seconds is '" + bytes::sanitize(duration) + "', expected 900 to 43200");
        return check_arn(profile.get("role_arn"), where + "role_arn");
    }

    Found source_keys(Look& look, const std::string& profile, const std::string& source,
                      std::vector<std::string>& visited) {
        const std::string what = profile_text(profile) + ": source_profile " + bytes::sanitize(source);
        const ini::Profile origin = look.files->find(source);
        if (!origin.exists()) return broken(what + " does not exist");
        const bool again = std::find(visited.begin(), visited.end(), source) != visited.end();
        if (again && !(source == profile && has_static_keys(origin))) return broken(what + " leads round in a circle");
        if (visited.size() > roles_max) return broken(what + " comes after too many roles");
        visited.push_back(source);
        Found keys = keys_of(look, source, visited);
        return keys && !*keys ? Found(broken(what + " has no credentials")) : keys;
    }

    Found named_source(Look& look, const std::string& source, const std::string& where) {
        if (source == "EcsContainer") return container(look);
        if (source == "Ec2InstanceMetadata") return instance_metadata(look);
        if (source == "Environment") return keys_in_environment(look);
        return broken(where + ": credential_source must be Environment, Ec2InstanceMetadata or EcsContainer");
    }

    // -- STS

    std::string session_name(const std::string& wanted) const {
        return wanted.empty() ? "s3cache-" + std::to_string(unix_seconds(environment_.now())) : wanted;
    }

    // The file is read anew each time, because Kubernetes and CI systems replace it long before the role's credentials
    // end. A variable counts even if it is empty, as in botocore.
    Found keys_by_web_identity(Look& look, const std::string& name, bool use_variables) {
        const ini::Profile profile = look.files->find(name);
        const auto setting = [&](const char* in_environment, const char* in_profile) {
            auto value = use_variables && environment_.variable ? environment_.variable(in_environment) : std::nullopt;
            return value ? Setting{*std::move(value), in_environment} : Setting{profile.get(in_profile), in_profile};
        };
        const Setting path = setting("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file");
        const Setting arn = setting("AWS_ROLE_ARN", "role_arn");
        const bool by_variable = bytes::starts_with(path.why, "AWS_");
        const std::string where = by_variable ? "web identity" : profile_text(name);
        if (path.value.empty()) return look.pass_over(where + ": " + path.why + " is empty");
        if (arn.value.empty()) {
            return broken(where + ": " + path.why + " is set but " + (by_variable ? "AWS_ROLE_ARN" : "role_arn") +
                          " is not: set both or neither");
        }
        if (auto fine = check_arn(arn.value, where + ": " + arn.why); !fine) return std::move(fine).error();
        const auto token = token_in(path.value, where + ": " + path.why, jwt_bytes_max, false);
        if (!token) return token.error();
        const bytes::Pairs fields{
            {"RoleArn", arn.value},
            {"RoleSessionName", session_name(setting("AWS_ROLE_SESSION_NAME", "role_session_name").value)},
            {"WebIdentityToken", *token}};
        return ask_sts(look, "AssumeRoleWithWebIdentity", fields, nullptr, where);
    }

    // Of a container's agent, where "Bearer x" has a blank in it, or of a web identity.
    Result<std::string> token_in(const std::string& path, const std::string& setting, std::size_t bytes_max,
                                 bool blanks_allowed) const {
        const std::string named = setting + " " + bytes::sanitize(path);
        const FileText file = environment_.read_file ? environment_.read_file(path) : FileText();
        if (file.state == FileState::missing) return broken(named + " does not exist, expected a file with a token");
        if (file.state == FileState::unreadable) return broken(named + " cannot be read: " + file.problem);
        std::string token(bytes::trim(file.text));
        if (token.empty()) return broken(named + " is empty, expected a token");
        if (auto fine = check_value(token, named, bytes_max, blanks_allowed); !fine) return std::move(fine).error();
        return token;
    }

    // Without `keys` the call is not signed: the web identity token in it, the last field, speaks for itself.
    Found ask_sts(Look& look, const char* operation, const bytes::Pairs& fields, const Credentials* keys,
                  const std::string& where) {
        const auto region = configured_region(look);
        if (!region) return region.error();
        const auto place = configured_endpoint(look, "STS");
        if (!place) return place.error();
        // Stores have regions that AWS does not, such as auto; AWS's own all end in a number.
        const bool of_aws = !region->value.empty() && bytes::is_digit(region->value.back());
        const std::string signing_region = of_aws ? region->value : "us-east-1";
        std::string base = "https://sts." + signing_region + ".";
        base.append(endpoint::partition_of(signing_region).suffix);
        const auto url = endpoint::parse_url(place->value.empty() ? base : place->value);
        if (!url) return broken(where + ": there is no STS endpoint");
        WebRequest request;
        request.method = "POST";
        request.url = url->scheme + "://" + url->host + (url->path.empty() ? "/" : url->path);
        request.connect_timeout = sts_connect_timeout;
        request.timeout = sts_timeout;
        bytes::add(request.headers, "Content-Type", "application/x-www-form-urlencoded; charset=utf-8");
        request.body = std::string("Action=") + operation + "&Version=2011-06-15";
        for (const auto& [name, value] : fields)
            bytes::append_percent(request.body.append(1, '&').append(name).append(1, '='), value, false);
        if (keys != nullptr) sign(request, *url, *keys, signing_region);
        const auto answer = endpoint_request(look, request, attempts_max);
        if (!answer) return answer.error();
        return keys_in_xml(*answer, operation, where, request.url,
                           keys != nullptr ? keys->session_token : fields.back().second);
    }

    void sign(WebRequest& request, const endpoint::Url& url, const Credentials& keys, const std::string& region) const {
        std::string date;
        dates::append_amz_date(date, unix_seconds(environment_.now()));
        bytes::add(request.headers, "x-amz-date", date);
        if (!keys.session_token.empty()) bytes::add(request.headers, "x-amz-security-token", keys.session_token);
        std::vector<sigv4::Header> headers{{"host", url.host}};
        for (const auto& [name, value] : request.headers) headers.push_back({name, value});
        const std::string hash = bytes::hex(digest::as_text(digest::sha256(request.body)));
        const std::string path = url.path.empty() ? "/" : url.path;
        const sigv4::Request to_sign{"POST", path, {}, headers.data(), headers.size(), hash};
        sigv4::Signer signer;
        bytes::add(request.headers, "Authorization", signer.sign(to_sign, keys, {date, region, "sts"}));
    }

    Found keys_in_xml(const WebAnswer& answer, const char* operation, const std::string& where, const std::string& url,
                      const std::string& token) const {
        const std::string asked = where + ": " + operation + " at " + url + ": ";
        const auto result = answer.status == 200 ? xml::sts_result(answer.body, operation) : std::nullopt;
        if (!result) return broken(asked + sts_complaint(answer, token));
        auto expires = check_expiry(result->expiration, asked + "Expiration");
        if (!expires) return std::move(expires).error();
        if (!*expires) return broken(asked + "the keys have no Expiration");
        Credentials got{result->access_key, result->secret_key, result->session_token, *expires};
        return found(check(std::move(got), where, answer_names, environment_.now()));
    }

    // -- container and instance metadata

    Found container(Look& look) {
        const Setting address = first_variable(
            environment_, {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"});
        if (address.value.empty())
            return look.pass_over(
                "neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is set");
        const auto url = container_url(address);
        if (!url) return url.error();
        const auto token = container_token();
        if (!token) return token.error();
        WebRequest request = link_local("GET", *url, container_timeout);
        bytes::add(request.headers, "Accept", "application/json");
        if (!token->empty()) bytes::add(request.headers, "Authorization", *token);
        return metadata_keys(endpoint_request(look, request, attempts_max),
                             "container (" + address.why + ", " + host_of(*url) + ")", false);
    }

    // Read anew each time, because the agent replaces it. Empty where none is configured.
    Result<std::string> container_token() const {
        const Setting token = first_variable(
            environment_, {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN"});
        if (bytes::ends_with(token.why, "_FILE"))
            return token_in(token.value, "container: " + token.why, token_bytes_max, true);
        if (auto fine = check_value(token.value, "container: " + token.why, token_bytes_max, true); !fine)
            return std::move(fine).error();
        return token.value;
    }

    // A store of somebody else's takes no keys of an instance role, and asking for them costs a second where there is
    // no metadata service. Private endpoints of AWS are AWS.
    bool foreign_endpoint(Look& look) {
        const auto set = configured_endpoint(look, "S3");
        const auto url = set ? endpoint::parse_url(set->value) : std::nullopt;
        return !set || (!set->value.empty() && !(url && endpoint::is_aws_host(host_in(url->host))));
    }

    Found instance(Look& look) {
        if (foreign_endpoint(look)) return look.pass_over("the endpoint is not one of AWS");
        return instance_metadata(look);
    }

    // Version 2 only, because version 1 answers whoever can make the host fetch a URL.
    Found instance_metadata(Look& look) {
        if (switched_on(variable(environment_, "AWS_EC2_METADATA_DISABLED")))
            return look.pass_over("AWS_EC2_METADATA_DISABLED is true");
        if (look.imds_left_alone) return look.pass_over("nothing answered there a moment ago");
        if (auto read = load(look); !read) return std::move(read).error();
        const auto imds = imds_session(look);
        if (!imds) return imds.error();
        if (imds->token.empty()) return look.pass_over(look.note);
        std::string path = "/latest/meta-data/iam/security-credentials/", where = imds_text(*imds);
        const auto roles = ask_imds(look, *imds, path);
        if (!roles) return roles.error();
        const std::string role(bytes::trim(roles->body.substr(0, roles->body.find('\n'))));
        if (roles->status == 404 || (roles->status == 200 && role.empty()))
            return look.pass_over("the instance has no role attached");
        if (roles->status != 200) return broken(where + ": " + told(*roles) + " to the question for the role");
        if (role.find_first_of("/?#%\\") != std::string::npos || !check_value(role, {}, 128))
            return broken(where + ": '" + bytes::sanitize(role) + "' is no role name");
        bytes::append_percent(path, role, false);
        return metadata_keys(ask_imds(look, *imds, path), where + ", role " + bytes::sanitize(role), true);
    }

    // The last answer of a container's agent or an instance's metadata.
    Found metadata_keys(const Result<WebAnswer>& answer, const std::string& where, bool overdue_too) const {
        if (!answer) return answer.error();
        if (answer->status != 200) return broken(where + ": " + told(*answer) + ", expected 200 with credentials");
        auto keys = keys_in_json(answer->body, where, metadata_names);
        if (!keys) return std::move(keys).error();
        if (!keys->expires) return broken(where + ": the answer has no Expiration");
        const TimePoint now = environment_.now();
        if (overdue_too && *keys->expires <= now) keys->expires = extended(now);
        return found(check(*std::move(keys), where, metadata_names, now));
    }

    // A variable, or else what the profile says.
    Setting variable_or_profile(const Look& look, const char* name, const char* in_profile) const {
        const Setting set = first_variable(environment_, {name});
        return set.value.empty() ? Setting{selected(look).get(in_profile), in_profile} : set;
    }

    Result<ImdsSettings> imds_settings(const Look& look) const {
        const auto wrong = [](const Setting& set, const char* expected) {
            return broken("instance metadata: " + set.why + " is '" + shown_url(set.value) + "', expected " + expected);
        };
        std::uint64_t numbers[2] = {1, 1};
        for (std::size_t i = 0; i < 2; ++i) {
            const Setting set = first_variable(
                environment_, {i == 0 ? "AWS_METADATA_SERVICE_TIMEOUT" : "AWS_METADATA_SERVICE_NUM_ATTEMPTS"});
            if (!set.value.empty()) numbers[i] = bytes::to_u64(bytes::trim(set.value)).value_or(0);
            if (numbers[i] < 1 || numbers[i] > 100) return wrong(set, "a whole number from 1 to 100");
        }
        ImdsSettings place;
        place.timeout = imds_timeout * static_cast<int>(numbers[0]);
        place.attempts = static_cast<int>(numbers[1]);
        const Setting url =
            variable_or_profile(look, "AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint");
        const Setting mode =
            variable_or_profile(look, "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode");
        const bool ipv6 = bytes::iequal(mode.value, "ipv6");
        if (!ipv6 && !mode.value.empty() && !bytes::iequal(mode.value, "ipv4")) return wrong(mode, "IPv4 or IPv6");
        if (ipv6) place.base = "http://[fd00:ec2::254]";
        if (!check_url(url, {})) return wrong(url, "a URL such as http://169.254.169.254");
        if (!url.value.empty()) place.base = url.value.substr(0, url.value.find_last_not_of('/') + 1);
        return place;
    }

    static std::string imds_text(const ImdsSettings& imds) {
        return "instance metadata (" + shown_url(imds.base) + ")";
    }

    Result<ImdsSettings> imds_session(Look& look) const {
        auto imds = imds_settings(look);
        if (!imds) return imds;
        WebRequest request = link_local("PUT", imds->base + "/latest/api/token", imds->timeout);
        bytes::add(request.headers, "x-aws-ec2-metadata-token-ttl-seconds", "21600");
        const auto answer = endpoint_request(look, request, imds->attempts);
        if (!answer) return answer.error();
        const int status = answer->status;
        imds->token = bytes::trim(answer->body);
        if (status == 200 && !imds->token.empty() && check_value(imds->token, {}, text_bytes_max)) return imds;
        imds->token.clear();
        look.note = imds_text(*imds) + ": " + (status == 200 ? "the answer is no session token" : told(*answer));
        look.imds_absent = status == 0 || status == 403 || status == 404 || status == 405;
        if (!look.imds_absent) return broken(look.note);
        // Inside a container the answer dies on its second hop, which looks like a host without the service.
        if (status == 0) look.note += "; in a container on EC2 the hop limit must be 2";
        return imds;
    }

    Result<WebAnswer> ask_imds(Look& look, const ImdsSettings& imds, const std::string& path) const {
        WebRequest request = link_local("GET", imds.base + path, imds.timeout);
        bytes::add(request.headers, "x-aws-ec2-metadata-token", imds.token);
        return endpoint_request(look, request, imds.attempts);
    }

    Result<Setting> imds_region(Look& look) const {
        const Setting unknown{{}, "instance metadata does not tell one"};
        const auto imds = imds_session(look);
        if (!imds && look.limits.over()) return imds.error();
        if (!imds || imds->token.empty()) return unknown;
        const auto answer = ask_imds(look, *imds, "/latest/meta-data/placement/region");
        if (!answer) return answer.error();
        const std::string region(bytes::trim(answer->body));
        return answer->status == 200 && endpoint::valid_region(region) ? Setting{region, "instance metadata"} : unknown;
    }

    // -- HTTP

    static WebRequest link_local(const char* method, const std::string& url, milliseconds timeout) {
        WebRequest request;
        request.method = method;
        request.url = url;
        request.connect_timeout = request.timeout = timeout;
        request.bypass_proxy = true;
        return request;
    }

    static std::string host_of(const std::string& url) { return bytes::sanitize(url.substr(0, url.find('/', 8))); }

    // One question to a credential endpoint, asked again where it had a bad moment. An error only if the time is over.
    Result<WebAnswer> endpoint_request(const Look& look, const WebRequest& request, int attempts) const {
        for (int attempt = 1;; ++attempt) {
            WebAnswer answer{0, {}, "no HTTP client"};
            if (environment_.fetch && !look.limits.over()) answer = environment_.fetch(request, look.limits);
            if (answer.body.size() > request.answer_bytes_max)
                answer = {0, {}, "an answer longer than " + bytes::number(request.answer_bytes_max) + " bytes"};
            const bool again = answer.status == 0 || answer.status == 429 || answer.status >= 500 ||
                               answer.body.find("IDPCommunicationError") != std::string::npos;
            if (again && attempt < attempts && !look.limits.over()) environment_.sleep(between_attempts, look.limits);
            if (again && look.limits.over())
                return look.limits.error(host_of(request.url) + " was asked for credentials");
            if (!again || attempt >= attempts) return answer;
        }
    }

    static constexpr const char* other_sources = "";
    static constexpr int source_count = 5;
    static const Source sources[source_count];
    std::mutex files_lock_;
    std::shared_ptr<const Files> files_;
    bool keys_taken_ = false;
#else
    static Result<void> load(Look&) { return {}; }
    static std::string selected_text(const Look&) { return {}; }
    static std::string profile_value(const Look&, const char*) { return {}; }
    static std::string endpoint_in_files(const Look&, const std::string&) { return {}; }
    static constexpr const char* other_sources =
        "; this program was built without the other sources (S3CACHE_NO_CREDENTIAL_CHAIN): set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or give credentials in code";
    static constexpr int source_count = 1;
    static const Source sources[source_count];
#endif

    const Environment environment_;
    const Settings settings_;
    std::atomic<int> answered_{-1};                   // the source that answered
    std::atomic<std::int64_t> imds_absent_until_{0};  // in seconds since 1970
    std::atomic<std::int64_t> imds_absent_for_{imds_absent_first.count()};
};

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
inline const Chain::Source Chain::sources[source_count] = {{"environment", &Chain::environment_keys},
                                                           {"web identity", &Chain::web_identity},
                                                           {"profile", &Chain::selected_profile},
                                                           {"container", &Chain::container},
                                                           {"instance metadata", &Chain::instance}};
#else
inline const Chain::Source Chain::sources[source_count] = {{"environment", &Chain::environment_keys}};
#endif

// -- the real outside: the only place here that touches files, processes and variables

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
inline FileText read_file(const std::string& path) {
    FileText out;
    out.state = FileState::unreadable;
#ifndef _WIN32
    struct stat about {};
    const bool there = ::stat(path.c_str(), &about) == 0;
    if (there && !S_ISREG(about.st_mode)) {  // opening a FIFO would wait for a writer for ever
        out.problem = "it is not a regular file";
        if (path == "/dev/null") out.state = FileState::missing;  // how people say that there is none
        return out;
    }
    out.readable_by_others = there && (about.st_mode & (S_IRGRP | S_IROTH)) != 0;
#endif
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (!file) {
        if (errno == ENOENT || errno == ENOTDIR) out.state = FileState::missing;
        out.problem = errno == EACCES ? "permission denied" : "system error " + std::to_string(errno);
        return out;
    }
    char buffer[4096];
    std::size_t got = 0;
    while (out.text.size() <= ini::file_bytes_max && (got = std::fread(buffer, 1, sizeof buffer, file)) > 0)
        out.text.append(buffer, got);
    if (std::ferror(file)) out.problem = "system error " + std::to_string(errno);
    if (out.text.size() > ini::file_bytes_max)
        out.problem = "it is longer than " + bytes::number(ini::file_bytes_max) + " bytes";
    std::fclose(file);
    if (out.problem.empty()) out.state = FileState::text;
    return out;
}

#ifdef _WIN32
inline ProcessResult run_process(const std::vector<std::string>&, milliseconds, std::size_t, const Limits&) {
    return {-1, {}, "running it is not supported on Windows"};
}
#else

// The helper reads nothing, writes to our pipe, and inherits no other descriptor where the C library can see to that. Its
// standard error stays the program's, because prompts and complaints are for a person, and may hold what our messages
// must not. Returns an errno.
inline int spawn(const std::vector<std::string>& argv, int output, ::pid_t& child) {
    std::vector<std::string> words(argv);
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(&word[0]);
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t signals;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    int flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
#if defined(__APPLE__)
    posix_spawn_file_actions_addinherit_np(&actions, 2);
    flags |= POSIX_SPAWN_CLOEXEC_DEFAULT;
#elif defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 34)
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
#endif
#endif
    posix_spawnattr_init(&attributes);
    sigemptyset(&signals);  // a macro on some systems, as the next one
    posix_spawnattr_setsigmask(&attributes, &signals);
    sigaddset(&signals, SIGPIPE);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, static_cast<short>(flags));
#if defined(__APPLE__)
    char** environment = *_NSGetEnviron();
#else
    char** environment = ::environ;
#endif
    const int failed = ::posix_spawnp(&child, pointers[0], &actions, &attributes, pointers.data(), environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failed;
}

// Waits, with WNOHANG just looks: true once the child has ended. A program that ignores SIGCHLD or waits for all children
// takes the status away from us; what the helper wrote is then all there is to judge by.
inline bool reap(::pid_t child, int flags, ProcessResult& result) {
    int status = 0;
    ::pid_t got = 0;
    do {
        got = ::waitpid(child, &status, flags);
    } while (got < 0 && errno == EINTR);
    if (got == 0) return false;
    const bool exited = got < 0 || WIFEXITED(status);
    if (exited) result.exit_status = got < 0 ? 0 : WEXITSTATUS(status);
    if (!exited && result.problem.empty())
        result.problem = "it was ended by signal " + std::to_string(WTERMSIG(status));
    return true;
}

// False at the end of what the helper writes.
inline bool read_some(int fd, milliseconds wait, std::size_t bytes_max, ProcessResult& result) {
    struct pollfd ready = {fd, POLLIN, 0};
    char buffer[4096];
    if (::poll(&ready, 1, static_cast<int>(wait.count())) <= 0) return true;
    const auto got = ::read(fd, buffer, sizeof buffer);
    if (got > 0) result.output.append(buffer, static_cast<std::size_t>(got));
    if (got < 0 && errno != EINTR) result.problem = "its output cannot be read";
    if (result.output.size() > bytes_max)
        result.problem = "its output is longer than " + bytes::number(bytes_max) + " bytes";
    return got != 0;
}

inline ProcessResult run_process(const std::vector<std::string>& argv, milliseconds timeout,
                                 std::size_t output_bytes_max, const Limits& limits) {
    ProcessResult result;
    int ends[2] = {-1, -1};
    ::pid_t child = 0;
    int failed = ::pipe(ends) != 0 ? errno : 0;
    for (int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
    if (failed == 0) failed = spawn(argv, ends[1], child);
    ::close(ends[1]);
    if (failed != 0)
        result.problem =
            failed == ENOENT ? "there is no such program" : "it does not start: system error " + std::to_string(failed);
    const auto end = std::chrono::steady_clock::now() + timeout;
    bool ended = failed != 0, open = true;
    while (!ended && result.problem.empty()) {
        const auto left = std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0 || limits.over())
            result.problem = "it took too long";
        else if (open)
            open = read_some(ends[0], limits.slice((std::min)(left, milliseconds(1000))), output_bytes_max, result);
        else if (!(ended = reap(child, WNOHANG, result)))
            ::poll(nullptr, 0, 5);  // a helper ends right after its output; there is no portable wait with a timeout
    }
    ::close(ends[0]);
    if (ended) return result;
    ::kill(child, SIGKILL);
    reap(child, 0, result);
    return result;
}
#endif
#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

// The process's own environment, files, clock and children; HTTP is the caller's.
inline Environment real_environment(std::function<WebAnswer(const WebRequest&, const Limits&)> fetch) {
    Environment out;
    out.variable = [](const char* name) -> std::optional<std::string> {
        const char* value = std::getenv(name);
        if (!value) return {};
        return std::string(value);
    };
    out.fetch = std::move(fetch);
    out.now = [] { return std::chrono::system_clock::now(); };
    out.sleep = [](milliseconds time, const Limits& limits) {
        const auto end = std::chrono::steady_clock::now() + time;
        while (std::chrono::steady_clock::now() < end && !limits.over())
            std::this_thread::sleep_for(limits.slice(time));
    };
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    out.read_file = read_file;
    out.run_process = run_process;
#endif
    return out;
}

// -- the cache of credentials

struct Snapshot {
    Credentials credentials;
    std::uint64_t generation = 0;  // counts changes of the keys
};

// Thread-safe, without a thread of its own: whoever comes first in the window before the expiry renews, and the others
// go on with what there is. The source is called by one thread at a time and must not use the provider itself.
//
//     time ────────────── advisory_at_ ────────────── mandatory_at_ ─────────────── expires
//     served from memory  one caller renews, the      the others wait for it,       nobody is served
//                         others are served           unless it has failed before   before it has renewed
class Provider {
public:
    using Source = std::function<Result<Credentials>(const Limits&)>;

    Provider(Source source, std::function<TimePoint()> now) : source_(std::move(source)), now_(std::move(now)) {}
    Provider(const Provider&) = delete;
    Provider& operator=(const Provider&) = delete;

    // The keys to sign one request with. Blocks only if there are none that are valid, or for the first try to renew
    // those that are in their last minutes.
    Result<std::shared_ptr<const Snapshot>> snapshot(const Limits& limits) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (current_ && !current_->credentials.expires) return current_;  // the usual case asks no clock
        for (;;) {
            const TimePoint now = now_();
            const Plan next = plan(now);
            if (next == Plan::serve) return current_;
            if (next == Plan::fail) return broken(error_);
            Result<void> done;
            if (next == Plan::wait) {
                if (wait(lock, limits)) continue;
                done = limits.error("another thread fetched the credentials");
            } else {
                done = refresh(lock, limits);  // once, because keys that expire at once would be fetched for ever
            }
            if (done || valid(now)) return current_;
            return std::move(done).error();
        }
    }

    // The store refused the keys of this generation. True: there are others now, sign again with them.
    bool force_refresh(std::uint64_t generation, const Limits& limits) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!wait(lock, limits)) return false;
        if (current_ && current_->generation != generation) return true;
        const TimePoint now = now_();
        const bool again = forced_ == generation && now >= forced_at_ && now - forced_at_ < forced_again_after;
        if (!current_ || again) return false;
        forced_ = generation;
        forced_at_ = now;
        static_cast<void>(refresh(lock, limits));
        return current_->generation != generation;
    }

private:
    enum class Plan { serve, fail, wait, refresh };

    // False: the caller's time is over first.
    bool wait(std::unique_lock<std::mutex>& lock, const Limits& limits) {
        while (refreshing_ && !limits.over()) done_.wait_for(lock, limits.slice(std::chrono::seconds(60)));
        return !refreshing_;
    }

    bool valid(TimePoint now) const {
        return current_ && (!current_->credentials.expires || now < *current_->credentials.expires);
    }

    Plan plan(TimePoint now) const {
        const bool usable = valid(now);
        if (usable && (!current_->credentials.expires || now < advisory_at_)) return Plan::serve;
        if (refreshing_) return usable && (now < mandatory_at_ || failures_ > 0) ? Plan::serve : Plan::wait;
        // A clock set back must not turn a minute of patience into a day.
        const bool too_early = failures_ > 0 && now < retry_at_ && retry_at_ - now <= retry_most;
        if (too_early) return usable ? Plan::serve : Plan::fail;
        return Plan::refresh;
    }

    // The lock is held again before anybody can see that the refresh has ended, however the source is left: a user's
    // function may throw.
    Result<void> refresh(std::unique_lock<std::mutex>& lock, const Limits& limits) {
        struct Refreshing {
            Provider& owner;
            std::unique_lock<std::mutex>& lock;
            ~Refreshing() {
                lock.lock();
                owner.refreshing_ = false;
                owner.done_.notify_all();
            }
        };
        refreshing_ = true;
        lock.unlock();
        std::optional<Result<Credentials>> got;
        {
            const Refreshing guard{*this, lock};
            got.emplace(source_(limits));
        }
        return store_refresh_result(*std::move(got), limits, now_());
    }

    Result<void> store_refresh_result(Result<Credentials> got, const Limits& limits, TimePoint now) {
        if (got) {
            const std::string where = got->source.empty() ? std::string("credentials") : got->source;
            got = check(*std::move(got), where, member_names, now);
        }
        // That the caller had no time left says nothing about the source: the next caller asks it.
        if (!got && limits.over()) return std::move(got).error();
        if (!got) return fail(got.error().what(), now);
        failures_ = 0;
        const bool same = current_ && same_keys(current_->credentials, *got);
        if (!same) ++generation_;
        current_ = std::make_shared<const Snapshot>(Snapshot{*std::move(got), generation_});
        if (current_->credentials.expires) plan_renewal(*current_->credentials.expires, now);
        return {};
    }

    Error fail(const std::string& problem, TimePoint now) {
        const std::chrono::seconds most = valid(now) ? retry_most : retry_most_unserved;
        const int doublings = (std::min)(failures_, 6);
        retry_at_ = now + (std::min)(most, std::chrono::seconds(retry_first.count() << doublings));
        failures_ = (std::min)(failures_ + 1, 1000);
        error_ = problem;
        return broken(problem);
    }

    // Of credentials that live less than an hour from now the windows are parts, because else they would be renewed all
    // the time.
    void plan_renewal(TimePoint expires, TimePoint now) {
        using Duration = TimePoint::duration;
        const auto life = expires - now;
        advisory_at_ = expires - (std::min)(Duration(advisory_window), Duration(life / 4));
        mandatory_at_ = expires - (std::min)(Duration(mandatory_window), Duration(life / 6));
    }

    static bool same_keys(const Credentials& a, const Credentials& b) {
        return a.access_key == b.access_key && a.secret_key == b.secret_key && a.session_token == b.session_token;
    }

    const Source source_;
    const std::function<TimePoint()> now_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::shared_ptr<const Snapshot> current_;
    std::uint64_t generation_ = 0;
    bool refreshing_ = false;
    int failures_ = 0;
    std::string error_;
    TimePoint advisory_at_{}, mandatory_at_{}, retry_at_{}, forced_at_{};
    std::uint64_t forced_ = 0;
};

}  // namespace detail::credentials

// --- entry: what is stored: an object's headers in and out ---------------------------------------------------------------

namespace detail::entry {

inline constexpr std::string_view meta_prefix = "x-amz-meta-";
inline constexpr std::size_t metadata_bytes_max = 2048;  // S3's own bound, names and values together
// A TTL past this (285 million years) is no date that anybody's arithmetic holds: the entry never expires.
inline constexpr double ttl_seconds_max = 9e15;

enum class Expiry { never, at, malformed };

// What an answer's headers say of an entry.
struct Facts {
    Info info{};
    Expiry expiry = Expiry::never;
    double expires_at = 0;                  // unix time
    std::optional<std::uint64_t> length{};  // of the body of this answer
    std::optional<std::uint32_t> crc32c{};
    std::uint64_t part_bytes = 0;  // of an upload in parts whose ETag is made of MD5s; 0: not known
    std::string parts_etag{};  // that ETag, without quotes, where a copy onto itself has given the entry another one
    double cost = 0;           // seconds that computing it took; 0: not known
    std::string write_id{};
    std::string store_sum{}, store_sum_type{};  // the strongest x-amz-checksum-* there is, and its name behind that

    bool expired(double unix_now) const { return expiry == Expiry::at && expires_at <= unix_now; }
};

inline std::string_view word(Kind kind) { return kind == Kind::json ? "json" : kind == Kind::text ? "text" : "bytes"; }

inline std::optional<Kind> kind_of(std::string_view text) {
    if (text == "json") return Kind::json;
    if (text == "text") return Kind::text;
    if (text == "bytes") return Kind::bytes;
    return std::nullopt;  // another program's idea of a kind
}

// The rule of the Python class, for entries that do not say.
inline Kind classify(std::string_view data) {
    if (!utf8::valid(data)) return Kind::bytes;
    return json::valid(data) ? Kind::json : Kind::text;
}

inline std::string_view content_type(Kind kind) {
    if (kind == Kind::json) return "application/json";
    return kind == Kind::text ? "text/plain; charset=utf-8" : "application/octet-stream";
}

inline void read_expiry(Facts& facts, std::string_view text) {
    const std::optional<double> seconds = dates::parse_float(text);
    if (!seconds || *seconds != *seconds) {
        facts.expiry = Expiry::malformed;
    } else if (*seconds > (std::numeric_limits<double>::max)()) {
        facts.expiry = Expiry::never;
    } else {
        facts.expiry = Expiry::at;
        facts.expires_at = *seconds;
        facts.info.expires_at = dates::to_time_point(*seconds);
    }
}

inline void read_crc32c(Facts& facts, std::string_view text) {
    const auto raw = bytes::unbase64(text);
    if (!raw || raw->size() != 4) return;  // another program's header of the same name
    std::uint32_t crc = 0;
    for (const char c : *raw) crc = crc << 8 | bytes::octet(c);
    facts.crc32c = crc;
}

inline void read_cost(Facts& facts, std::string_view text) {
    const double seconds = dates::parse_float(text).value_or(0);
    if (seconds > 0 && seconds < ttl_seconds_max) facts.cost = seconds;
}

// One x-amz-meta- line. Stores change the case of names, and some turn _ into -.
inline void read_meta(Facts& facts, std::string name, std::string_view value) {
    if (name == "expires_at" || name == "expires-at") {
        if (facts.expiry == Expiry::never && !facts.info.expires_at) read_expiry(facts, value);
    } else if (name == "compressed") {
        facts.info.compressed = bytes::iequal(value, "true");
    } else if (name == "kind") {
        facts.info.kind = kind_of(value);
    } else if (name == "crc32c") {
        read_crc32c(facts, value);
    } else if (name == "write-id") {
        facts.write_id = value;
    } else if (name == "part-bytes") {
        facts.part_bytes = bytes::to_u64(value).value_or(0);
    } else if (name == "parts-etag") {
        facts.parts_etag = value;
    } else if (name == "negative") {
        facts.info.negative = bytes::iequal(value, "true");
    } else if (name == "cost") {
        read_cost(facts, value);
    } else {
        bytes::add(facts.info.metadata, name, value);
    }
}

// The sum of a whole object; "-N" at the end marks a sum of sums of parts, which a reader cannot make. Of several any
// will do.
inline void read_store_sum(Facts& facts, std::string_view name, std::string_view value) {
    constexpr std::string_view prefix = "x-amz-checksum-";
    if (name.size() <= prefix.size() || !bytes::iequal(name.substr(0, prefix.size()), prefix)) return;
    std::string type = bytes::lower(name.substr(prefix.size()));
    if (!retry::one_of(type, {"crc32", "crc32c", "crc64nvme"}) || value.find('-') != std::string_view::npos) return;
    facts.store_sum_type = std::move(type);
    facts.store_sum = value;
}

inline Facts read(const http::Headers& headers) {
    Facts facts;
    headers.each([&](std::string_view name, std::string_view value) {
        if (name.size() > meta_prefix.size() && bytes::iequal(name.substr(0, meta_prefix.size()), meta_prefix)) {
            read_meta(facts, bytes::lower(name.substr(meta_prefix.size())), value);
        } else if (bytes::iequal(name, "etag")) {
            if (facts.info.etag.empty()) facts.info.etag = value;  // the first of several, as for all headers
        } else if (bytes::iequal(name, "content-length")) {
            if (!facts.length) facts.length = bytes::to_u64(value);
        } else if (bytes::iequal(name, "content-type")) {
            facts.info.content_type = value;
        } else if (bytes::iequal(name, "last-modified")) {
            facts.info.last_modified = dates::http_date(value).value_or(TimePoint());
        } else if (bytes::iequal(name, "x-amz-version-id")) {
            if (value != "null") facts.info.version_id = value;
        } else {
            read_store_sum(facts, name, value);
        }
    });
    facts.info.size = facts.length.value_or(0);
    return facts;
}

inline std::string crc32c_text(std::uint32_t crc) {
    const char raw[4] = {static_cast<char>(crc >> 24), static_cast<char>(crc >> 16), static_cast<char>(crc >> 8),
                         static_cast<char>(crc)};
    return bytes::base64(std::string_view(raw, 4));
}

// Milliseconds are enough for a TTL, and exact as decimals.
inline std::string expiry_text(double unix_seconds) {
    const auto milliseconds = static_cast<std::uint64_t>((std::max)(unix_seconds, 0.0) * 1000 + 0.5);
    std::string out;
    bytes::append_number(out, milliseconds / 1000);
    const std::uint64_t rest = milliseconds % 1000;
    const char fraction[4] = {'.', static_cast<char>('0' + rest / 100), static_cast<char>('0' + rest / 10 % 10),
                              static_cast<char>('0' + rest % 10)};
    return out.append(fraction, 4);
}

// Why a header value would not arrive as it was sent; empty: it will.
inline const char* value_flaw(std::string_view value) {
    if (value != bytes::trim(value)) return "has blanks at an end";
    for (std::size_t i = 0; i < value.size(); ++i) {
        if (bytes::octet(value[i]) < 0x20 || bytes::octet(value[i]) > 0x7E)
            return "holds bytes that are not printable ASCII";
        if (value[i] == ' ' && value[i - 1] == ' ') return "has two blanks in a row, which stores fold";
    }
    return "";
}

inline bool reserved(std::string_view lower_name) {
    return retry::one_of(lower_name, {"expires_at", "expires-at", "compressed", "kind", "crc32c", "write-id",
                                      "part-bytes", "parts-etag", "negative", "cost"});
}

// Why user metadata would be refused, or not come back as it is; empty: it is fine.
inline std::string metadata_flaw(const Metadata& metadata) {
    std::size_t total = 0;
    for (const auto& [name, value] : metadata) {
        const std::string shown = "metadata name '" + name + "'";
        if (name.empty()) return "a metadata name is empty";
        for (const char c : name) {
            if (!bytes::is_alpha(c) && !bytes::is_digit(c) && c != '-' && c != '_' && c != '.')
                return "a metadata name may hold letters, digits, '-', '_' and '.' only";
        }
        for (const auto& other : metadata) {
            if (&other.first != &name && bytes::iequal(other.first, name)) return shown + " is there twice";
        }
        if (reserved(bytes::lower(name))) return shown + " is the cache's own";
        if (const char* flaw = value_flaw(value); *flaw) return "the value of " + shown + " " + flaw;
        total += meta_prefix.size() + name.size() + value.size();
    }
    if (total > metadata_bytes_max) return "metadata is over 2048 bytes";
    return {};
}

}  // namespace detail::entry

// --- s3: one private execute (Session), one status-to-error map, the state that calls share -----------------------------

namespace detail {

// Where requests go.
struct Place : endpoint::Endpoint {
    std::string configured_url;  // empty: AWS
    bool aws() const { return configured_url.empty(); }
};

// What all copies of a handle, all readers and all threads of one Cache share.
struct Core {
    Core(Config settings, endpoint::Location where);

    TimePoint local_now() const { return config.clock ? config.clock() : std::chrono::system_clock::now(); }
    // The store's time, as far as its answers have told.
    TimePoint now() const {
        return local_now() + std::chrono::milliseconds(clock_offset_ms.load(std::memory_order_relaxed));
    }
    double unix_now() const { return std::chrono::duration<double>(now().time_since_epoch()).count(); }
    double random() const;
    Result<std::shared_ptr<const Place>> place();
    Result<std::shared_ptr<const Place>> settle_place(const std::string& url, const std::string& region);
    bool sign_for(const std::string& region, const std::string& signed_before);
    void learn_clock(TimePoint server, TimePoint local);
    void tell(const Event& event) const {
        if (config.on_event) config.on_event(event);
    }
    // The object's name in the bucket.
    std::string object(std::string_view key) const { return std::string(prefix).append(key); }

    struct Counters {
        std::atomic<std::uint64_t> hits{0}, misses{0}, expired{0}, malformed{0}, damaged{0}, errors{0}, unchanged{0},
            tolerated{0}, unavailable{0}, computed{0}, waited{0}, stale{0}, sets{0}, removes{0}, refused{0},
            unconditional{0}, requests{0}, retries{0}, connections{0}, leftover_uploads{0}, bytes_in{0}, bytes_out{0};
    };

    const Config config;
    const std::string bucket;
    const std::string prefix;  // empty, or ends in a slash
    http::Share share;         // before the pool: handles let go of it before it goes
    http::Pool pool;
    retry::Quota quota;
    retry::Breaker breaker;
    credentials::Chain chain;
    credentials::Provider identity;
    Counters counters;
    std::atomic<std::int64_t> clock_offset_ms{0};
    std::atomic<bool> bucket_seen{false};   // an answer has shown that the bucket is there
    std::atomic<std::uint64_t> cancels{0};  // how often cancel() was called: a session that sees another number ends
    // What the store does, as far as its answers have shown.
    enum class Trait { unknown, no, yes };
    std::atomic<Trait> honours_put{Trait::unknown}, honours_delete{Trait::unknown};  // If-Match, If-None-Match
    std::atomic<Trait> md5_etags{Trait::unknown};

    std::mutex place_lock;
    std::shared_ptr<const Place> place_now;

    struct Flight {  // a value on its way, see get_or_set
        std::thread::id pilot = std::this_thread::get_id();
        std::optional<Value> meanwhile;  // still good while a new one is made
        std::optional<Result<Value>> brought;
        std::condition_variable landed;
    };
    std::mutex flights_lock;
    // Few at a time: a list of pairs is quicker to search than a map to compile.
    std::vector<std::pair<std::string, std::shared_ptr<Flight>>> flights;
    std::vector<std::pair<std::thread::id, std::shared_ptr<Flight>>> waiting;  // for whose landing a thread waits
};

inline void count(std::atomic<std::uint64_t>& counter, std::uint64_t by = 1) {
    counter.fetch_add(by, std::memory_order_relaxed);
}

}  // namespace detail

namespace detail::s3 {

// How long cleaning up (aborting an upload, looking whether a write arrived) may take: a step of it where the caller set
// no deadline; all of it, beyond the caller's deadline, where there is one.
inline constexpr std::chrono::milliseconds cleanup_timeout{10000};
inline constexpr std::chrono::milliseconds cleanup_overtime{500};
// S3 refuses requests that are a quarter of an hour off; a silent refusal is put down to the clock from here on.
inline constexpr std::chrono::milliseconds skew_min = std::chrono::minutes(5);
// How often progress is told and cancellation asked for.
inline constexpr std::chrono::milliseconds tick{100};
inline constexpr std::size_t shown_bytes_max = 300;

class Session;
struct Call;

// Ties a started call to its session: whichever way the operation is left, the call is dropped with it. A call that has
// not been started may be moved; one that has must not.
class Tie {
public:
    Tie() = default;
    Tie(Tie&&) noexcept {}
    Tie& operator=(Tie&&) noexcept;
    ~Tie() { cut(); }
    void bind(Session& session, Call& call) { session_ = &session, call_ = &call; }
    void unbind() { session_ = nullptr; }
    void cut();

private:
    Session* session_ = nullptr;
    Call* call_ = nullptr;
};

// One REST request with all its attempts. The operation fills in the first half and reads the second.
struct Call {
    const char* operation = "";
    std::string_view key{};  // as the caller knows it, for messages
    http::Method method = http::Method::get;
    std::string object{};  // its name in the bucket; empty: the bucket itself
    std::string query{};   // canonical
    std::vector<std::pair<std::string, std::string>> headers{};
    http::Body body{};
    std::string payload_hash{};  // empty: that of no body
    http::Sink sink{};
    std::function<bool(const Call&)> again{};  // undoes what an attempt delivered; false: no other attempt
    std::optional<Seconds> ttl{};  // becomes expires_at anew with each attempt, since an answer may correct the clock
    bool large = false;            // a large answer is likely
    bool error_in_200 = false;     // the status alone is not success
    bool asks_region = false;      // the answer to this very question: it is not asked again
    bool must_finish = false;      // a cancellation waits for it, since what it makes must be known to be removed
    std::optional<std::chrono::milliseconds> stall{};

    bool done = false;
    bool cut = false;  // the sink had enough
    http::Transfer* answer = nullptr;
    std::optional<Error> error{};  // there is no answer, or none to be understood
    std::optional<xml::ErrorBody> fault{};
    int attempts = 0;

    int status() const { return answer ? answer->status : 0; }
    bool ok() const { return !error && status() / 100 == 2 && !fault; }
    std::string_view code() const { return fault ? std::string_view(fault->code) : std::string_view(); }

    // For Session.
    std::string encoded{}, signed_for{};  // path, region
    std::shared_ptr<const credentials::Snapshot> identity{};
    http::Clock::time_point began{}, attempt_began{}, due{};
    bool skewed = false;  // the last answer showed that the clock had been far off
    bool running = false, new_credentials = false, new_clock = false, new_region = false;
    Tie tie{};  // last, so that it goes first
};

// Foreign text in a message: one line, and not a long one.
inline std::string printable(std::string_view text) {
    const bool cut = text.size() > shown_bytes_max;
    std::string out;
    for (const char c : text.substr(0, shown_bytes_max)) {
        if (bytes::octet(c) < 0x20 || c == 0x7F) {
            out += "\\x";
            bytes::append_hex(out, std::string_view(&c, 1));
        } else {
            out += c;
        }
    }
    return cut ? out + "..." : out;
}

inline std::string request_id(const http::Headers& headers, const std::optional<xml::ErrorBody>& fault) {
    std::string id = printable(headers.get("x-amz-request-id"));
    if (id.empty() && fault) id = printable(fault->request_id);
    const std::string_view second = headers.get("x-amz-id-2");
    if (!second.empty()) id.append(id.empty() ? "" : " ").append(printable(second));
    return id;
}

// The one map from what the store said to what the caller can do about it.
inline Errc kind_of(int status, std::string_view code) {
    if (code == "NoSuchBucket") return Errc::no_such_bucket;
    if (retry::throttling(status, code)) return Errc::throttled;
    if (retry::one_of(code, {"EntityTooLarge", "KeyTooLongError", "MetadataTooLarge", "RequestHeaderSectionTooLarge"}))
        return Errc::too_large;
    if (retry::one_of(code, {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}))
        return Errc::credentials;
    if (code == "NotImplemented" || status == 501) return Errc::unsupported;
    if (code == "BadDigest" || code == "XAmzContentSHA256Mismatch") return Errc::network;  // damaged on its way
    if (status == 401 || status == 403 || code == "AccessDenied") return Errc::denied;
    return Errc::store;
}

// CURLE_TOO_LARGE, since 8.6, which the headers at hand may not know: what was CURLE_OUT_OF_MEMORY before.
inline constexpr int curl_too_large = 100;

inline Errc kind_of(CURLcode result, bool overflow) {
    if (static_cast<int>(result) == curl_too_large) return Errc::protocol;
    switch (result) {
    case CURLE_OPERATION_TIMEDOUT:
        return Errc::timed_out;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        return Errc::tls;
    case CURLE_URL_MALFORMAT:
        return Errc::invalid_argument;
    case CURLE_UNSUPPORTED_PROTOCOL:  // our URLs are http or https: this is an answer that is neither
    case CURLE_WRITE_ERROR:
        return overflow ? Errc::protocol : Errc::network;
    case CURLE_OUT_OF_MEMORY:  // how libcurl names a header line that is too long for it
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        return Errc::protocol;
    case CURLE_ABORTED_BY_CALLBACK:
        return Errc::source;
    default:
        return Errc::network;
    }
}

// What a person can do about it, where that is not plain from the store's words.
inline const char* advice(Errc kind, std::string_view code, std::string_view message) {
    if (code == "SignatureDoesNotMatch") return "check the secret key, and that no proxy changes headers";
    if (code == "InvalidAccessKeyId") return "the store does not know this access key: check it, and the endpoint";
    if (message.find("not signed") != std::string_view::npos)
        return "a proxy dropped headers with an underscore: set Config::metadata_names to MetadataNames::hyphen";
    if (code == "RequestTimeTooSkewed") return "this machine's clock is off";
    switch (kind) {
    case Errc::no_such_bucket:
        return "create the bucket, or check its name, the region and the endpoint";
    case Errc::denied:
        return "these credentials lack the permission, or the bucket is another's";
    case Errc::tls:
        return "set Config::ca_bundle to the authority that signed the store's certificate";
    case Errc::throttled:
        return "ask less often, or spread the keys over more prefixes";
    default:
        return "";
    }
}

inline std::string spent(int attempts, http::Clock::duration time) {
    const auto tenths = std::chrono::duration_cast<std::chrono::milliseconds>(time).count() / 100;
    std::string out = " after ";
    bytes::append_number(out, static_cast<std::uint64_t>(attempts));
    out += attempts == 1 ? " attempt in " : " attempts in ";
    bytes::append_number(out, static_cast<std::uint64_t>(tenths / 10));
    out += '.';
    bytes::append_number(out, static_cast<std::uint64_t>(tenths % 10));
    return out + " s";
}

// "get reports/q3: <text>"
inline std::string about(std::string_view operation, std::string_view key, std::string_view text) {
    std::string out(operation);
    if (!key.empty()) out.append(" ").append(printable(key));
    return out.append(": ").append(text);
}
inline Error refusal(Errc kind, std::string_view operation, std::string_view key, std::string_view text) {
    return Error(kind, about(operation, key, text));
}

// An engine for as long as one operation lasts, and the calls that run on it: any number at once, on this thread.
class Session {
public:
    explicit Session(Core& core) : Session(core, core.config.call_timeout) {}
    Session(Core& core, std::chrono::milliseconds timeout)
        : core_(core), engine_(core.pool.take(owner_)), cancels_(core.cancels.load(std::memory_order_relaxed)) {
        allow(timeout);
    }
    ~Session() {
        while (!calls_.empty()) drop(*calls_.back());
        core_.pool.give_back(std::move(engine_), owner_);
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    Core& core() { return core_; }
    std::string sha256_text(std::string_view data) {
        engine_->body_hash.update(data);
        const digest::Sha256Digest hash = engine_->body_hash.finish();
        return bytes::hex(digest::as_text(hash));
    }
    // `ask` is called some ten times a second; false cancels what runs, and every step() from then on. What was cancelled
    // before is over: cleaning up comes here first.
    void on_tick(std::function<bool()> ask) {
        on_tick_ = std::move(ask);
        cancelled_ = false;
        cancels_ = core_.cancels.load(std::memory_order_relaxed);
    }
    bool cancelled() const { return cancelled_; }
    // A new deadline, counted from now; zero: none.
    void allow(std::chrono::milliseconds timeout) {
        deadline_.reset();
        if (timeout.count() > 0) deadline_ = http::Clock::now() + timeout;
        is_callers_ = deadline_.has_value();
    }
    void allow_cleanup() {
        if (!is_callers_) return void(deadline_ = http::Clock::now() + cleanup_timeout);
        if (!overtime_) overtime_ = (std::max)(*deadline_, http::Clock::now()) + cleanup_overtime;
        deadline_ = overtime_;
    }

    void start(Call& call) {
        call.done = call.cut = call.new_credentials = call.new_clock = call.new_region = false;
        call.attempts = 0;
        call.began = http::Clock::now();
        calls_.push_back(&call);
        call.tie.bind(*this, call);
        if (!core_.breaker.on() || core_.breaker.admits(core_.local_now())) return attempt(call, call.began);
        count(core_.counters.unavailable);
        call.error = refusal(Errc::unavailable, call.operation, call.key,
                             "not sent: the last calls failed, and Config::breaker_pause is not over");
        call.done = finished_one_ = true;
    }
    // Moves bytes; waits up to `most` if there are none to move. False once the caller's callback has cancelled.
    bool step(std::chrono::milliseconds most);
    void run(Call& call) {
        start(call);
        while (!call.done) step(std::chrono::milliseconds(1000));
    }
    // Forgets the call and its answer; one that still runs is cut off.
    void drop(Call& call);
    // Hands what was held back to the sink at once. What the sink says then ends the call here: libcurl would report it to
    // us alone, and go on with the next bytes as if these had been taken.
    void resume(Call& call) {
        if (!call.answer || !call.answer->paused) return;
        call.answer->paused = false;
        const CURLcode result = curl_easy_pause(call.answer->easy, CURLPAUSE_CONT);
        if (result == CURLE_OK || !call.running) return;
        engine_->stop(*call.answer, result);
        finish(call);
    }
    void cancel_all(const Error& why);
    // For a sink: the caller has what it waited for, so step() is not to wait for more.
    void hurry() { finished_one_ = true; }

    // Takes from an answer's headers what all calls need to know: the store's clock, and that the bucket is there.
    void learn(Call& call);

    // The answer as an error, for an operation that can make nothing of it.
    Error failure(const Call& call) const;

private:
    void attempt(Call& call, http::Clock::time_point now);
    Result<void> prepare(Call& call);
    void add_headers(Call& call, const endpoint::Endpoint& place, std::string_view amz_date);
    void add_expiry(Call& call);
    void finish(Call& call);
    void read_answer(Call& call);
    void settle(Call& call, retry::Verdict verdict);
    bool correct(Call& call, retry::Verdict verdict);
    bool learns_region(const Call& call);
    bool retry_later(Call& call);
    std::chrono::milliseconds patience(Call& call) const;
    void ask_leave();
    void cancel(const char* why);
    void report_health(bool healthy) {
        if (core_.breaker.on()) core_.breaker.report(healthy, core_.local_now());
    }
    void start_due();
    void tell(const Call& call, std::string_view outcome) const;
    http::Limits limits(const Call& call) const;
    Error no_answer(const Call& call) const;

    Core& core_;
    std::uint64_t owner_ = 0;  // before the engine, which is taken with it
    std::unique_ptr<http::Engine> engine_;
    std::vector<Call*> calls_;
    std::function<bool()> on_tick_;
    http::Clock::time_point next_tick_{};
    std::optional<http::Clock::time_point> deadline_, overtime_;
    bool is_callers_ = false;  // the deadline: the caller has set it
    bool finished_one_ = false, cancelled_ = false;
    std::uint64_t cancels_;  // of the cache, when this session began
};

inline void Session::attempt(Call& call, http::Clock::time_point now) {
    call.attempt_began = now;
    call.fault.reset();
    call.error.reset();
    call.cut = false;
    const Result<void> ready = prepare(call);
    if (ready && engine_->start(*call.answer, core_.config, core_.share.get())) {
        call.running = true;
        count(core_.counters.requests);
        if (++call.attempts > 1) count(core_.counters.retries);
        return;
    }
    if (ready) {
        call.error =
            refusal(Errc::unsupported, call.operation, call.key, "libcurl refused the request or has no memory");
    } else {
        call.error = ready.error();
    }
    call.done = finished_one_ = true;
}

inline http::Limits Session::limits(const Call& call) const {
    http::Limits out{core_.config.connect_timeout, call.stall.value_or(core_.config.stall_timeout), {}};
    if (!deadline_) return out;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(*deadline_ - http::Clock::now());
    out.total = (std::max)(left, std::chrono::milliseconds(1));
    return out;
}

// The request as it goes out: everything that differs from attempt to attempt is made here.
inline Result<void> Session::prepare(Call& call) {
    auto who = core_.identity.snapshot({});
    if (!who) return refusal(who.error().code(), call.operation, call.key, who.error().what());
    call.identity = *std::move(who);
    auto place = core_.place();  // after the credentials: the instance that gave them may have to say where it is
    if (!place) return refusal(place.error().code(), call.operation, call.key, place.error().what());
    if (!call.answer) call.answer = engine_->borrow();
    http::Transfer& out = *call.answer;
    out.clear_request();
    out.owner = &call;
    out.method = call.method;
    out.large = call.large;
    out.sink = call.sink;
    out.limits = limits(call);
    if (call.method == http::Method::put || call.method == http::Method::post) out.body = &call.body;

    const endpoint::Endpoint& where = **place;
    call.signed_for = where.signing_region;
    // Without TLS a large receive buffer costs a small answer nothing, and halves the cost of a megabyte.
    out.large |= call.method == http::Method::get && where.scheme == "http";
    call.encoded.assign(where.base_path).append(1, '/');
    bytes::append_percent(call.encoded, call.object, true);
    if (call.object.empty() && !where.base_path.empty()) call.encoded.pop_back();
    out.url.assign(where.scheme).append("://").append(where.host).append(call.encoded);
    if (!call.query.empty()) out.url.append(1, '?').append(call.query);

    const auto now = std::chrono::duration_cast<std::chrono::seconds>(core_.now().time_since_epoch()).count();
    if (out.amz_date.empty() || out.amz_date_of != now) {
        out.amz_date.clear();
        dates::append_amz_date(out.amz_date, now);
        out.amz_date_of = now;
    }
    add_headers(call, where, out.amz_date);
    return {};
}

inline void Session::add_headers(Call& call, const endpoint::Endpoint& place, std::string_view amz_date) {
    http::Transfer& out = *call.answer;
    for (const auto& [name, value] : call.headers) out.add_header(name, value);
    if (call.ttl) add_expiry(call);
    const Credentials& keys = call.identity->credentials;
    if (keys.access_key.empty()) return;  // anonymous
    const std::string_view hash =
        call.payload_hash.empty() ? sigv4::empty_payload_hash : std::string_view(call.payload_hash);
    out.add_header("x-amz-content-sha256", hash);
    out.add_header("x-amz-date", amz_date);
    if (!keys.session_token.empty()) out.add_header("x-amz-security-token", keys.session_token);
    out.to_sign.clear();
    out.to_sign.push_back({"host", place.host});
    for (std::size_t i = 0; i < out.header_count(); ++i)
        out.to_sign.push_back({out.header_name(i), out.header_value(i)});
    const sigv4::Request request{http::name_of(call.method), call.encoded,       call.query,
                                 out.to_sign.data(),         out.to_sign.size(), hash};
    out.add_header("authorization", out.signer.sign(request, keys, {amz_date, place.signing_region, "s3"}));
}

inline void Session::add_expiry(Call& call) {
    const std::string text = entry::expiry_text(core_.unix_now() + call.ttl->count());
    const MetadataNames names = core_.config.metadata_names;
    if (names != MetadataNames::hyphen) call.answer->add_header("x-amz-meta-expires_at", text);
    if (names != MetadataNames::underscore) call.answer->add_header("x-amz-meta-expires-at", text);
}

inline bool Session::step(std::chrono::milliseconds most) {
    finished_one_ = false;
    start_due();
    const bool fine =
        engine_->perform([this](http::Transfer& transfer) { finish(*static_cast<Call*>(transfer.owner)); });
    if (!fine) cancel_all(Error(Errc::network, "libcurl gave up on its connections"));
    if (core_.cancels.load(std::memory_order_relaxed) != cancels_) cancel("cancelled by Cache::cancel()");
    if (on_tick_) ask_leave();
    if (cancelled_ || finished_one_ || most.count() == 0) return !cancelled_;
    for (const Call* call : calls_) {
        if (call->done) continue;
        if (call->answer && call->answer->paused) return !cancelled_;
        if (call->running) continue;
        const auto until = std::chrono::duration_cast<std::chrono::milliseconds>(call->due - http::Clock::now());
        most = (std::min)(most, (std::max)(until, std::chrono::milliseconds(0)) + std::chrono::milliseconds(1));
    }
    engine_->wait((std::min)(most, tick));
    return !cancelled_;
}

inline void Session::ask_leave() {
    const auto now = http::Clock::now();
    if (now < next_tick_) return;
    next_tick_ = now + tick;
    if (!on_tick_()) cancel("cancelled by the progress callback");
}

inline void Session::cancel(const char* why) {
    cancelled_ = true;
    cancel_all(Error(Errc::cancelled, why));
}

inline void Session::start_due() {
    std::optional<http::Clock::time_point> now;  // asked only if a call waits: usually none does
    for (std::size_t i = 0; i < calls_.size(); ++i) {
        Call& call = *calls_[i];
        if (call.done || call.running) continue;
        if (!now) now = http::Clock::now();
        if (call.due <= *now) attempt(call, *now);
    }
}

inline void Tie::cut() {
    if (session_) session_->drop(*call_);
}

inline Tie& Tie::operator=(Tie&&) noexcept {
    cut();
    return *this;
}

inline void Session::drop(Call& call) {
    call.tie.unbind();
    calls_.erase(std::remove(calls_.begin(), calls_.end(), &call), calls_.end());
    if (call.answer) engine_->give_back(call.answer, call.running);
    call.answer = nullptr;
    call.running = false;
    call.done = true;
}

inline void Session::cancel_all(const Error& why) {
    for (Call* call : calls_) {
        if (call->done || call->must_finish) continue;
        call->error = Error(why.details(), about(call->operation, call->key, why.what()));
        if (call->answer) engine_->give_back(call->answer, call->running);
        call->answer = nullptr;
        call->running = false;
        call->done = true;
    }
    finished_one_ = true;
}

inline void Session::finish(Call& call) {
    call.running = false;
    finished_one_ = true;
    http::Transfer& answer = *call.answer;
    count(core_.counters.bytes_in, answer.received);
    count(core_.counters.bytes_out, call.body.size);
    if (!answer.reused) count(core_.counters.connections);
    learn(call);
    read_answer(call);
    if (answer.result == CURLE_WRITE_ERROR && !answer.overflow && !answer.no_memory) {
        call.cut = call.done = true;
        report_health(true);
        return tell(call, "done");
    }
    settle(call, retry::classify({answer.result, answer.status, call.code()}));
}

// The store's words about a failure. What is no S3 error (a proxy's page, nothing at all) goes by the status number.
inline void Session::read_answer(Call& call) {
    const http::Transfer& answer = *call.answer;
    if (answer.status >= 300 || call.error_in_200) call.fault = xml::error_body(answer.text);
    if (call.fault && call.fault->code.empty())
        bytes::append_number(call.fault->code, static_cast<std::uint64_t>(answer.status));
    if (call.error_in_200 && answer.result == CURLE_OK && answer.status == 200 && !call.fault &&
        !xml::etag_result(answer.text)) {
        call.fault.emplace();  // empty, cut, or no result at all: as good as a 500
        call.fault->code = "InternalError";
        call.fault->message = "the body of the answer is no result";
    }
    const bool silent =
        call.method == http::Method::head && answer.status >= 300;  // what a body would say is to be guessed
    const auto region = answer.status >= 300 ? answer.headers.find("x-amz-bucket-region") : std::nullopt;
    if (region) {
        if (!call.fault) call.fault.emplace();
        call.fault->region = std::string(*region);
        if (silent && (answer.status == 400 || answer.status == 301)) call.fault->code = "PermanentRedirect";
    }
    if (silent && answer.status == 403 && call.skewed) {
        call.fault.emplace();
        call.fault->code = "RequestTimeTooSkewed";
    }
}

inline void Session::learn(Call& call) {
    http::Transfer& answer = *call.answer;
    if (answer.status == 0) return;
    const auto date = answer.headers.find("date");
    // Good answers teach once a second at most, as the date has no finer grain; a refusal may be about this very clock.
    if (date && (answer.status >= 300 || *date != answer.date_learned)) {
        answer.date_learned.assign(*date);
        const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(http::Clock::now() - answer.answered_at);
        const auto before = core_.clock_offset_ms.load(std::memory_order_relaxed);
        if (const auto server = dates::http_date(*date)) core_.learn_clock(*server, core_.local_now() - age);
        const auto change = std::chrono::milliseconds(core_.clock_offset_ms.load(std::memory_order_relaxed) - before);
        call.skewed = change > skew_min || change < -skew_min;
    }
    if (answer.status / 100 == 2) core_.bucket_seen.store(true, std::memory_order_relaxed);
}

inline void Session::settle(Call& call, retry::Verdict verdict) {
    using retry::Verdict;
    if (verdict == Verdict::answered) {
        core_.quota.succeeded();
        report_health(true);
        call.done = true;
        return tell(call, call.ok() ? "done" : "error");
    }
    const bool goes_on =
        verdict == Verdict::again ? retry_later(call) : verdict != Verdict::broken && correct(call, verdict);
    if (goes_on) return tell(call, "retry");
    report_health(verdict != Verdict::again && verdict != Verdict::broken);
    call.done = true;
    if (call.answer->result != CURLE_OK) call.error = no_answer(call);
    tell(call, "error");
}

// Three mistakes that the store's answer helps to mend, each once a call and beside the count of attempts.
inline bool Session::correct(Call& call, retry::Verdict verdict) {
    bool& once = verdict == retry::Verdict::new_credentials ? call.new_credentials
                 : verdict == retry::Verdict::new_clock     ? call.new_clock
                                                            : call.new_region;
    if (once) return false;
    once = true;
    if (verdict == retry::Verdict::new_credentials && !core_.identity.force_refresh(call.identity->generation, {}))
        return false;
    if (verdict == retry::Verdict::new_region && !learns_region(call)) return false;
    if (call.again && !call.again(call)) return false;
    call.due = http::Clock::now();
    return true;
}

// From the refusal, or else from the bucket, whose HEAD is answered with its region also by a host of another one.
inline bool Session::learns_region(const Call& call) {
    if (call.fault && core_.sign_for(call.fault->region, call.signed_for)) return true;
    if (call.asks_region || (call.fault && !call.fault->region.empty())) return false;
    Session other(core_);
    other.deadline_ = deadline_;
    Call look;
    look.operation = call.operation;
    look.key = call.key;
    look.method = http::Method::head;
    look.asks_region = true;
    other.run(look);
    const auto place = core_.place();
    return place && (*place)->signing_region != call.signed_for;
}

inline bool Session::retry_later(Call& call) {
    const auto now = http::Clock::now();
    if (call.attempts >= core_.config.attempts_max) return false;
    const double price =
        call.answer->result == CURLE_OPERATION_TIMEDOUT ? retry::quota_per_timeout : retry::quota_per_retry;
    const auto wait = patience(call);
    if (deadline_ && now + wait >= *deadline_) return false;
    if (!core_.quota.take(price, now)) return false;
    if (call.again && !call.again(call)) return false;
    call.due = now + wait;
    if (core_.config.seams.sleep) {
        core_.config.seams.sleep(wait);
        call.due = now;
    }
    return true;
}

inline std::chrono::milliseconds Session::patience(Call& call) const {
    const auto wait = retry::backoff(core_.config, call.attempts, core_.random());
    const auto asked = call.answer->headers.find("retry-after");
    if (!asked) return wait;
    return (std::max)(wait, retry::retry_after(*asked, core_.now()).value_or(std::chrono::milliseconds(0)));
}

inline void Session::tell(const Call& call, std::string_view outcome) const {
    if (!core_.config.on_event) return;
    Event event;
    event.operation = call.operation;
    event.key = call.key;
    event.outcome = outcome;
    event.attempt = call.attempts;
    event.status = call.status();
    event.duration = http::Clock::now() - call.attempt_began;
    event.bytes = call.method == http::Method::get ? call.answer->received : call.body.size;
    event.reused = call.answer->reused;
    if (call.answer->result != CURLE_OK && !call.cut) event.detail = bytes::trim(call.answer->problem);
    core_.tell(event);
}

inline Error Session::no_answer(const Call& call) const {
    const http::Transfer& answer = *call.answer;
    Error::Details details;
    details.code = answer.no_memory ? Errc::too_large : kind_of(answer.result, answer.overflow);
    details.attempts = call.attempts;
    details.retryable = retry::passing(answer.result);
    std::string text = answer.no_memory ? "no memory for the answer"
                       : answer.overflow
                           ? "the answer is larger than any of S3's"
                           : printable(bytes::trim(answer.problem));  // older libcurls end it with a newline
    if (text.empty()) text = curl_easy_strerror(answer.result);
    if (answer.result == CURLE_OUT_OF_MEMORY) text += ", or a header line longer than libcurl takes";
    text += spent(call.attempts, http::Clock::now() - call.began);
    const char* hint = advice(details.code, {}, {});
    if (*hint) text.append("; ").append(hint);
    return Error(std::move(details), about(call.operation, call.key, text));
}

inline Error Session::failure(const Call& call) const {
    if (call.error) return *call.error;
    Error::Details details;
    details.status = call.status();
    details.s3_code = printable(call.code());
    if (details.s3_code.empty()) bytes::append_number(details.s3_code, static_cast<std::uint64_t>(details.status));
    if (call.fault) details.s3_message = printable(call.fault->message);
    if (call.answer) details.request_id = request_id(call.answer->headers, call.fault);
    details.attempts = call.attempts;
    details.code = kind_of(details.status, details.s3_code);
    details.retryable = retry::classify({CURLE_OK, details.status, details.s3_code}) == retry::Verdict::again;
    std::string text;
    bytes::append_number(text, static_cast<std::uint64_t>(details.status));
    if (details.s3_code != text) text.append(" ").append(details.s3_code);
    text += spent(call.attempts, http::Clock::now() - call.began);
    if (!details.request_id.empty()) text.append(" (request ").append(details.request_id).append(")");
    if (!details.s3_message.empty()) text.append(": ").append(details.s3_message);
    const char* hint = advice(details.code, details.s3_code, details.s3_message);
    if (*hint) text.append("; ").append(hint);
    return Error(std::move(details), about(call.operation, call.key, text));
}

}  // namespace detail::s3

namespace detail {

// What credential endpoints answer is fetched with the same libcurl, but on a connection of its own.
inline credentials::WebAnswer fetch_web(const Core& core, const credentials::WebRequest& request,
                                        const credentials::Limits& limits) {
    http::Engine engine(1);
    http::Transfer& transfer = *engine.borrow();
    const http::Body body{request.body, {}, request.body.size()};
    const std::string_view method = request.method;
    transfer.method = method == "GET" ? http::Method::get : method == "PUT" ? http::Method::put : http::Method::post;
    transfer.url = request.url;
    transfer.bypass_proxy = request.bypass_proxy;
    transfer.limits = {request.connect_timeout, {}, request.timeout};
    if (transfer.method != http::Method::get) transfer.body = &body;
    for (const auto& [name, value] : request.headers) transfer.add_header(name, value);
    credentials::WebAnswer answer;
    bool running = engine.start(transfer, core.config, nullptr);
    if (!running) answer.problem = "libcurl refused the request";
    while (running) {
        const bool fine = engine.perform([&](http::Transfer& done) {
            running = false;
            answer.status = done.result == CURLE_OK ? done.status : 0;
            if (answer.status == 0) answer.problem = curl_easy_strerror(done.result);
            answer.body = done.text.substr(0, request.answer_bytes_max + 1);
        });
        if (!fine) return {0, {}, "libcurl gave up"};
        if (running && limits.over()) return {0, {}, "stopped"};
        if (running) engine.wait(limits.slice(std::chrono::milliseconds(1000)));
    }
    engine.give_back(&transfer, false);
    return answer;
}

inline credentials::Environment environment_for(Core& core) {
    credentials::Environment environment = credentials::real_environment(
        [&core](const credentials::WebRequest& request, const credentials::Limits& limits) {
            return fetch_web(core, request, limits);
        });
    if (core.config.seams.environment) environment.variable = core.config.seams.environment;
    environment.now = [&core] { return core.now(); };
    return environment;
}

// The user's own provider, which may throw or return what must not enter a header.
inline Result<Credentials> ask_provider(const Core& core) {
    Result<Credentials> got = guarded([&] { return core.config.credentials(); }, "the credentials provider");
    if (!got) return got;
    const std::string source = got->source.empty() ? "Config::credentials" : got->source;
    return credentials::check(*std::move(got), source, credentials::member_names, core.now());
}

inline Core::Core(Config settings, endpoint::Location where)
    : config(std::move(settings)),
      bucket(std::move(where.bucket)),
      prefix(std::move(where.prefix)),
      pool(config.connections, config.idle_connections_max),
      breaker(config.breaker_failures, config.breaker_pause),
      chain(environment_for(*this), {config.profile, config.region, config.endpoint}),
      identity(
          [this](const credentials::Limits& limits) {
              return config.credentials ? ask_provider(*this) : chain.find(limits);
          },
          [this] { return now(); }) {}

// OpenSSL's generator: after a fork a child draws other numbers than its parent and its siblings, which ids must.
inline double Core::random() const {
    if (config.seams.random) return config.seams.random();
    std::uint64_t bits = 0;
    if (RAND_bytes(reinterpret_cast<unsigned char*>(&bits), sizeof bits) != 1)
        bits = static_cast<std::uint64_t>(http::Clock::now().time_since_epoch().count()) * 0x9E3779B97F4A7C15U;
    return std::ldexp(static_cast<double>(bits >> 11), -53);
}

// Endpoint and region, found out once; the region may be corrected by an answer later.
inline Result<std::shared_ptr<const Place>> Core::place() {
    const std::lock_guard<std::mutex> hold(place_lock);
    if (place_now) return place_now;
    const auto url = chain.endpoint_url();
    if (!url) return url.error();
    const auto region = chain.region({});
    if (!region) return region.error();
    return settle_place(url->value, region->value.empty() ? "us-east-1" : region->value);
}

inline Result<std::shared_ptr<const Place>> Core::settle_place(const std::string& url, const std::string& region) {
    auto found =
        endpoint::resolve({bucket, region, url, config.addressing, config.dual_stack, config.fips, config.accelerate});
    if (!found) return std::move(found).error();
    auto place = std::make_shared<Place>();
    static_cast<endpoint::Endpoint&>(*place) = *std::move(found);
    place->configured_url = url;
    place_now = std::move(place);
    return place_now;
}

// The store named another region. On AWS that is another host, of the same suffix; elsewhere only the signature changes.
inline bool Core::sign_for(const std::string& region, const std::string& signed_before) {
    const std::lock_guard<std::mutex> hold(place_lock);
    if (!place_now || !endpoint::valid_region(region) || region == signed_before) return false;
    if (region == place_now->signing_region) return true;  // another thread was told the same meanwhile
    if (place_now->aws()) return settle_place({}, region).has_value();
    auto place = std::make_shared<Place>(*place_now);
    place->signing_region = region;
    place_now = std::move(place);
    return true;
}

// A machine that has lost its clock starts in 1970; nothing honest is a century off.
inline constexpr double clock_seconds_off_max = 100.0 * 366 * 86400;

// HTTP dates have whole seconds and answers take their time: within that, the local clock is as good and finer.
inline void Core::learn_clock(TimePoint server, TimePoint local) {
    using std::chrono::milliseconds;
    const double seconds = retry::seconds_between(local, server);
    if (seconds > clock_seconds_off_max || seconds < -clock_seconds_off_max) return;  // the store's is the wrong one
    const milliseconds ahead(static_cast<std::int64_t>(seconds * 1000));
    const bool agrees = ahead > milliseconds(-2000) && ahead < milliseconds(1000);
    const auto offset = agrees ? milliseconds(0) : ahead + milliseconds(500);
    const auto known = milliseconds(clock_offset_ms.load(std::memory_order_relaxed));
    if (offset - known > milliseconds(1500) || known - offset > milliseconds(1500) || (agrees && known.count() != 0))
        clock_offset_ms.store(offset.count(), std::memory_order_relaxed);
}

}  // namespace detail

// --- transfer: sources to parts, answers to values and readers --------------------------------------------------------

namespace detail::transfer {

// The body of an entry that will not be served (expired) is read to its end up to this, which keeps the connection;
// a longer one is cut off, since a new connection is cheaper.
inline constexpr std::uint64_t drained_bytes_max = std::uint64_t{64} << 10;
// An attempt that moved this much has proved the connection good: the next failure counts as the first.
inline constexpr std::uint64_t progress_bytes_min = std::uint64_t{1} << 20;
// How much of a source is read between two looks at the network.
inline constexpr std::size_t piece_bytes = std::size_t{256} << 10;
inline constexpr std::string_view gzip_magic = "\x1f\x8b";
inline constexpr std::size_t reader_buffer_bytes = std::size_t{512} << 10;
inline constexpr std::uint64_t parts_max = 10000;
inline constexpr std::uint64_t part_bytes_max = std::uint64_t{5} << 30;  // both are S3's
// A stream whose length nobody knows begins with this many equal parts, since some stores take no others (Cloudflare's R2).
// Beyond them the size doubles again and again, so that 10,000 parts hold whatever S3 takes.
inline constexpr std::uint64_t equal_parts = 5000;
inline constexpr std::uint64_t parts_a_size = 500;
// A connection that brings this much is left alone; a slower one is helped by others. So much of an object, or so long a
// time, shows how fast a connection is: more would be time lost, less might be the burst of a buffer or a busy moment.
inline constexpr double fast_bytes_per_second = 200e6;
inline constexpr std::uint64_t sample_bytes = std::uint64_t{1} << 20;
inline constexpr std::chrono::milliseconds sample_time{20};
// The store may assemble parts for minutes, saying nothing.
inline constexpr std::chrono::milliseconds complete_stall{300000};

// How many parts may be in flight: no more than connections, nor than fit the memory bound.
inline std::size_t slots_for(const Config& config, std::uint64_t part) {
    const std::uint64_t fit = (std::max)(std::uint64_t{1}, std::uint64_t{config.transfer_bytes_max} / part);
    return static_cast<std::size_t>((std::min)(fit, std::uint64_t{config.connections}));
}

// How a stream is cut: the size of the first parts, and what later ones may grow to.
struct PartPlan {
    std::uint64_t first = 0, most = 0, parts = parts_max;

    std::uint64_t bytes_of(std::uint64_t number) const {
        std::uint64_t size = first;
        if (number <= equal_parts) return size;
        for (std::uint64_t i = 0; i <= (number - equal_parts - 1) / parts_a_size && size < most; ++i)
            size = (std::min)(2 * size, most);
        return size;
    }
};

// The rest of a large object over several connections: ranges of one version (If-Match), each into a buffer of its own,
// handed out in order. No more than the lanes' buffers is ever held.
class Window {
public:
    Window(s3::Session& session, const s3::Call& like, const entry::Facts& facts, std::uint64_t from,
           std::uint64_t part, std::size_t lanes)
        : session_(session),
          like_(like),
          etag_(facts.info.etag),
          end_(*facts.length),
          asked_(from),
          part_(part),
          slots_(lanes) {}
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

    // Starts as many ranges as may be on their way at once.
    void fill(std::size_t at_once);
    // The next range, valid until the next call; empty at the end.
    Result<std::string_view> next();
    // What has come of ranges that were not handed out yet.
    std::uint64_t waiting_bytes() const;

private:
    struct Slot {
        std::unique_ptr<char[]> buffer{};
        s3::Call call{};
        std::uint64_t offset = 0, size = 0, received = 0;
        bool busy = false, misplaced = false;
    };
    static http::Sink::Took take(void* self, const http::Transfer& from, const char* data, std::size_t size);
    static std::string range(const Slot& slot);
    void start(Slot& slot);
    Result<void> check(const Slot& slot) const;

    s3::Session& session_;
    const s3::Call& like_;
    const std::string etag_;
    const std::uint64_t end_;
    std::uint64_t asked_, part_, next_ = 0, given_ = 0;  // next_ and given_ count ranges: lanes are used in turn
    std::vector<Slot> slots_;
};

inline std::string Window::range(const Slot& slot) {
    std::string text = "bytes=";
    bytes::append_number(text, slot.offset + slot.received);
    text += '-';
    bytes::append_number(text, slot.offset + slot.size - 1);
    return text;
}

inline void Window::start(Slot& slot) {
    slot.offset = asked_;
    slot.size = (std::min)(part_, end_ - asked_);
    slot.received = 0;
    slot.busy = true;
    slot.misplaced = false;
    asked_ += slot.size;
    if (!slot.buffer) slot.buffer.reset(new char[static_cast<std::size_t>(part_)]);
    s3::Call& call = slot.call;
    call.operation = like_.operation;
    call.key = like_.key;
    call.object = like_.object;
    call.headers = {{"range", range(slot)}, {"if-match", etag_}};
    call.sink = {&slot, &Window::take};
    call.large = true;
    call.again = [&slot](const s3::Call&) {  // only what is missing is asked for again
        slot.call.headers.front().second = range(slot);
        return !slot.misplaced;
    };
    session_.start(call);
}

inline http::Sink::Took Window::take(void* self, const http::Transfer& from, const char* data, std::size_t size) {
    Slot& slot = *static_cast<Slot*>(self);
    if (from.received == 0) {
        std::string expected = range(slot);
        expected[5] = ' ';
        slot.misplaced = from.status != 206 || !bytes::starts_with(from.headers.get("content-range"), expected + '/');
    }
    if (slot.misplaced || size > slot.size - slot.received) return http::Sink::Took::enough;
    std::memcpy(slot.buffer.get() + slot.received, data, size);
    slot.received += size;
    return http::Sink::Took::all;
}

inline Result<void> Window::check(const Slot& slot) const {
    const auto refuse = [&](Errc code, std::string_view text) {
        return s3::refusal(code, like_.operation, like_.key, text);
    };
    if (slot.call.status() == 412 || slot.call.status() == 404)
        return refuse(Errc::changed, "the object was replaced while it was read");
    if (slot.misplaced && slot.call.status() == 200)
        return refuse(Errc::unsupported, "the store does not answer ranges");
    if (slot.misplaced) return refuse(Errc::protocol, "the store answered with another range than asked for");
    if (!slot.call.ok() || slot.call.cut) return session_.failure(slot.call);
    if (slot.received != slot.size) return refuse(Errc::damaged, "a range is shorter than announced");
    return {};
}

inline void Window::fill(std::size_t at_once) {
    for (std::size_t i = 0; i < at_once && i < slots_.size() && asked_ < end_; ++i) {
        Slot& slot = slots_[static_cast<std::size_t>((next_ + i) % slots_.size())];
        if (!slot.busy) start(slot);
    }
}

inline std::uint64_t Window::waiting_bytes() const {
    std::uint64_t sum = 0;
    for (std::uint64_t i = next_; i < next_ + slots_.size(); ++i) {
        const Slot& slot = slots_[static_cast<std::size_t>(i % slots_.size())];
        if (slot.busy && !(given_ != next_ && i % slots_.size() == given_ % slots_.size())) sum += slot.received;
    }
    return sum;
}

inline Result<std::string_view> Window::next() {
    if (given_ != next_) slots_[static_cast<std::size_t>(given_++ % slots_.size())].busy = false;
    fill(slots_.size());
    Slot& slot = slots_[static_cast<std::size_t>(next_ % slots_.size())];
    if (!slot.busy) return std::string_view();
    while (!slot.call.done) session_.step(std::chrono::milliseconds(1000));
    if (Result<void> fine = check(slot); !fine) return std::move(fine).error();
    session_.drop(slot.call);
    ++next_;
    return std::string_view(slot.buffer.get(), static_cast<std::size_t>(slot.size));
}

// What a body is checked against as it streams by, by what its entry and Config::checksums offer.
class Verifier {
public:
    Verifier(const entry::Facts& facts, Checksums policy) : facts_(facts) {  // borrowed: they must live as long
        if (policy == Checksums::none) return;
        crc_wanted_ = facts.crc32c.has_value();
        if (policy == Checksums::store) store_wanted_ = begin_store_sum();
        // A gzip body brings a sum of its own, which inflating it checks. MD5 takes 1.5 ms a MiB.
        if (!crc_wanted_ && !store_wanted_ && !facts.info.compressed && has_parts_etag()) md5_.emplace();
    }

    void update(const char* data, std::size_t size) {
        if (crc_wanted_) crc_ = digest::crc32c(crc_, data, size);
        if (store_wanted_) update_store_sum(data, size);
        if (md5_) update_parts(data, size);
    }
    // Why the body is not what was stored; null: it is, as far as can be told.
    const char* flaw() {
        if (crc_wanted_ && crc_ != *facts_.crc32c)
            return "the body does not match its CRC-32C: the stored entry is damaged";
        if (store_wanted_ && store_sum() != facts_.store_sum)
            return "the body does not match the store's own checksum of it";
        if (md5_ && parts_etag() != wanted_etag())
            return "the body does not match the MD5s of its parts: the stored entry is damaged";
        return nullptr;
    }

    // ETags are opaque but for the quotes that most stores put around them.
    static std::string_view bare(std::string_view etag) {
        return etag.size() > 1 && etag.front() == '"' && etag.back() == '"' ? etag.substr(1, etag.size() - 2) : etag;
    }
    // What S3 makes of the MD5s of parts.
    static std::string etag_of_parts(std::string_view md5s, std::uint64_t parts) {
        const auto sum = digest::md5(md5s);
        std::string out = sum ? bytes::hex(digest::as_text(*sum)) : std::string();
        out += '-';
        bytes::append_number(out, parts);
        return out;
    }

private:
    std::string_view wanted_etag() const {
        return facts_.parts_etag.empty() ? bare(facts_.info.etag) : std::string_view(facts_.parts_etag);
    }
    // An ETag of another form (encrypted with KMS, parts that grew) is nothing to compare with.
    bool has_parts_etag() const {
        if (facts_.part_bytes == 0 || !facts_.length) return false;
        const std::uint64_t parts = *facts_.length / facts_.part_bytes + (*facts_.length % facts_.part_bytes ? 1 : 0);
        std::string ending = "-";
        bytes::append_number(ending, parts);
        const std::string_view etag = wanted_etag();
        return etag.size() == 32 + ending.size() && bytes::ends_with(etag, ending);
    }
    void update_parts(const char* data, std::size_t size) {
        while (size) {
            const std::size_t piece =
                static_cast<std::size_t>((std::min)(std::uint64_t{size}, facts_.part_bytes - in_part_));
            md5_->update({data, piece});
            data += piece, size -= piece, in_part_ += piece;
            if (in_part_ == facts_.part_bytes) end_part();
        }
    }
    void end_part() {
        const auto sum = md5_->finish();
        if (!md5_->ok()) return md5_.reset();  // a FIPS build has no MD5
        md5s_.append(digest::as_text(sum));
        in_part_ = 0;
    }
    std::string parts_etag() {
        if (in_part_) end_part();
        return md5_ ? etag_of_parts(md5s_, md5s_.size() / 16) : std::string(wanted_etag());
    }
    bool begin_store_sum() {
#ifdef S3CACHE_NO_GZIP
        if (facts_.store_sum_type == "crc32") return false;  // zlib has that one
#endif
        return !facts_.store_sum_type.empty();
    }
    void update_store_sum(const char* data, std::size_t size) {
        if (facts_.store_sum_type == "crc64nvme") store_crc_ = digest::crc64nvme(store_crc_, data, size);
        if (facts_.store_sum_type == "crc32c")
            store_crc_ = digest::crc32c(static_cast<std::uint32_t>(store_crc_), data, size);
#ifndef S3CACHE_NO_GZIP
        if (facts_.store_sum_type == "crc32")
            store_crc_ = digest::crc32(static_cast<std::uint32_t>(store_crc_), data, size);
#endif
    }
    std::string store_sum() {
        if (facts_.store_sum_type == "crc64nvme") return bytes::base64(digest::big_endian(store_crc_));
        return bytes::base64(digest::big_endian(static_cast<std::uint32_t>(store_crc_)));
    }

    const entry::Facts& facts_;
    bool crc_wanted_ = false, store_wanted_ = false;
    std::uint32_t crc_ = 0;
    std::uint64_t store_crc_ = 0, in_part_ = 0;
    std::optional<digest::Md5> md5_{};
    std::string md5s_{};
};

// The bytes of one object as they come, whatever becomes of them: length and checksums checked, and a broken connection
// resumed where it broke, on the same version of the object (If-Match) or not at all.
class Incoming {
public:
    using Take = std::function<http::Sink::Took(const char* data, std::size_t size)>;
    // Looks at the headers once they are there; false: the body is not wanted.
    using Open = std::function<bool(const entry::Facts&)>;

    Incoming(s3::Session& session, std::string_view key, Open open, Take take)
        : session_(session), open_(std::move(open)), take_(std::move(take)) {
        call.operation = "get";
        call.key = key;
        call.object = session.core().object(key);
        call.sink = {this, &Incoming::on_data};
        if (session.core().config.checksums == Checksums::store)
            bytes::add(call.headers, "x-amz-checksum-mode", "ENABLED");
        call.again = [this](const s3::Call&) { return rewind(); };
    }
    Incoming(const Incoming&) = delete;
    Incoming& operator=(const Incoming&) = delete;

    // After the call is done: whether what was taken is the whole object. A status that is no success is not looked at.
    Result<void> check();
    Result<void> check_answer();
    const entry::Facts& facts() const { return facts_; }
    Info take_info() { return std::move(facts_.info); }  // at the end: until then a broken connection is resumed by it
    std::uint64_t taken() const { return taken_; }

    // For whoever calls tend() between steps: a large object that comes slowly over one connection may be helped by others.
    void allow_spreading() { may_spread_ = true; }
    // Starts those, once it has shown that they would help. The first one goes on to the end of its part meanwhile.
    void tend() {
        if (limit_ && !window_ && !call.done) spread();
    }
    // Bytes are waited for from now on: how fast they come is measured by that time alone.
    void wait_begins() { since_ = http::Clock::now(); }
    // Of the body, as it is stored: what has come in so far.
    std::uint64_t arrived() const { return taken_ + (window_ ? window_->waiting_bytes() : 0); }

    // The first connection has brought its part of a large object, for rest() to go on with.
    bool limited() const { return limited_; }
    // The next bytes of the rest, valid until the next call; empty at its end. Empty, too, once the store has turned out
    // to ignore ranges: then limited() is over, and the call goes on by itself where it was.
    Result<std::string_view> rest();

    s3::Call call;

private:
    static http::Sink::Took on_data(void* self, const http::Transfer& from, const char* data, std::size_t size) {
        return static_cast<Incoming*>(self)->take(from, data, size);
    }
    http::Sink::Took take(const http::Transfer& from, const char* data, std::size_t size);
    void open(const http::Headers& headers);
    bool continues(const http::Transfer& from);
    bool rewind();
    void spread();
    void look_at_speed();
    Error damage(std::string_view text) const { return s3::refusal(Errc::damaged, call.operation, call.key, text); }

    s3::Session& session_;
    Open open_;
    Take take_;
    entry::Facts facts_;
    std::uint64_t taken_ = 0, attempt_start_ = 0, skip_ = 0;
    std::uint64_t limit_ = 0;  // where the first connection ends and others go on; 0: it brings everything
    std::optional<Verifier> verifier_;
    bool opened_ = false, wanted_ = true, joined_ = true, limited_ = false, may_spread_ = false;
    bool sampling_ = false;  // the connection's speed is looked at
    std::uint64_t sample_start_ = 0, sample_least_ = 0;
    http::Clock::time_point since_{};
    http::Clock::duration waited_{};  // for the bytes of the sample
    std::optional<Error> trouble_;
    std::optional<Window> window_;
};

inline void Incoming::open(const http::Headers& headers) {
    facts_ = entry::read(headers);
    opened_ = true;
    wanted_ = open_(facts_);
    const Config& config = session_.core().config;
    verifier_.emplace(facts_, config.checksums);
    const bool worth_it =
        slots_for(config, config.part_bytes) > 1 && facts_.length.value_or(0) / 2 >= config.part_bytes;
    sampling_ = may_spread_ && worth_it && !facts_.info.etag.empty();
    sample_least_ = (std::min)(sample_bytes, std::uint64_t{config.part_bytes});
    limit_ = 0;
    if (sampling_) wait_begins();
}

// What one connection brings at this rate, several could not bring much faster: the processor is the limit then. It is
// looked at again with each part.
inline void Incoming::look_at_speed() {
    const std::uint64_t part = session_.core().config.part_bytes;
    waited_ += http::Clock::now() - since_;
    const std::uint64_t sample = taken_ - sample_start_;
    if (sample < sample_least_ && waited_ < sample_time) return;
    const bool fast =
        static_cast<double>(sample) > fast_bytes_per_second * std::chrono::duration<double>(waited_).count();
    const std::uint64_t limit = (taken_ + part / 2) / part * part + part;
    sampling_ = fast && limit < *facts_.length;
    if (!fast && limit < *facts_.length) limit_ = limit;
    sample_start_ = taken_;
    sample_least_ = part;
    waited_ = {};
}

inline void Incoming::spread() {
    const Config& config = session_.core().config;
    const std::size_t lanes = slots_for(config, config.part_bytes);
    window_.emplace(session_, call, facts_, limit_, config.part_bytes, lanes);
    window_->fill(lanes - 1);  // and the first connection
}

inline Result<std::string_view> Incoming::rest() {
    if (!window_) spread();
    session_.drop(call);
    Result<std::string_view> data = window_->next();
    if (!data && data.error().code() == Errc::unsupported) {
        window_.reset();
        limited_ = sampling_ = false;
        limit_ = 0;
        rewind();
        session_.start(call);
        return std::string_view();
    }
    if (!data) return data;
    verifier_->update(data->data(), data->size());
    taken_ += data->size();
    return data;
}

inline http::Sink::Took Incoming::take(const http::Transfer& from, const char* data, std::size_t size) {
    using Took = http::Sink::Took;
    if (!opened_) {
        if (from.status != 200) {  // a part of the object, which nobody asked for
            trouble_ = s3::refusal(Errc::protocol, call.operation, call.key,
                                   "the store answered with a range that was not asked for");
            return Took::enough;
        }
        session_.learn(call);  // the entry's age is judged by the clock of the very store that sends it
        open(from.headers);
    }
    if (!wanted_) return facts_.length.value_or(drained_bytes_max + 1) <= drained_bytes_max ? Took::all : Took::enough;
    if (!joined_ && !continues(from)) return Took::enough;
    if (sampling_) look_at_speed();
    const auto skipped = static_cast<std::size_t>((std::min)(skip_, std::uint64_t{size}));
    std::size_t fresh = size - skipped;
    if (limit_) fresh = static_cast<std::size_t>((std::min)(std::uint64_t{fresh}, limit_ - taken_));
    const Took took = fresh ? take_(data + skipped, fresh) : Took::all;
    if (sampling_) wait_begins();  // what was done with the bytes is not the network's time
    if (took != Took::all) return took;
    skip_ -= skipped;
    taken_ += fresh;
    verifier_->update(data + skipped, fresh);
    limited_ = limit_ && taken_ == limit_;
    return limited_ ? Took::enough : Took::all;
}

// Whether a resumed answer carries on the same object where the last one broke off.
inline bool Incoming::continues(const http::Transfer& from) {
    joined_ = true;
    skip_ = 0;
    if (from.headers.get("etag") != facts_.info.etag) {
        trouble_ = s3::refusal(Errc::changed, call.operation, call.key, "the object was replaced while it was read");
        return false;
    }
    if (from.status == 200) {  // the store ignores ranges
        skip_ = taken_;
        return true;
    }
    std::string expected = "bytes ";
    bytes::append_number(expected, taken_);
    expected += '-';
    if (bytes::starts_with(from.headers.get("content-range"), expected)) return true;
    trouble_ =
        s3::refusal(Errc::protocol, call.operation, call.key, "the store answered with another range than asked for");
    return false;
}

inline bool Incoming::rewind() {
    if (taken_ == 0) {
        opened_ = false;
        return true;
    }
    if (facts_.info.etag.empty()) return false;
    if (taken_ - attempt_start_ >= progress_bytes_min) call.attempts = 0;
    attempt_start_ = taken_;
    joined_ = false;
    std::string range = "bytes=";
    bytes::append_number(range, taken_);
    call.headers = {{"range", range + "-"}, {"if-match", facts_.info.etag}};
    return true;
}

inline Result<void> Incoming::check() {
    if (trouble_) return *trouble_;
    if (!limited_) {
        if (Result<void> fine = check_answer(); !fine) return fine;
    }
    if (!wanted_) return {};
    if (facts_.length && taken_ != *facts_.length) return damage("the body is shorter than announced");
    if (const char* flaw = verifier_->flaw()) return damage(flaw);
    return {};
}

inline Result<void> Incoming::check_answer() {
    const auto refuse = [&](Errc code, std::string_view text) {
        return s3::refusal(code, call.operation, call.key, text);
    };
    if (call.error) return *call.error;
    if (call.status() == 412 && taken_) return refuse(Errc::changed, "the object was replaced while it was read");
    if (!call.ok()) return session_.failure(call);
    if (!opened_) open(call.answer->headers);
    if (!wanted_) return {};
    if (facts_.info.etag.empty()) return refuse(Errc::protocol, "the answer has no ETag: is the endpoint an S3 store?");
    if (!facts_.length && !call.answer->headers.find("transfer-encoding"))
        return refuse(Errc::protocol, "the answer does not say how long it is");
    return {};
}

// The bytes that a set() sends: a Source, deflated on the way if asked to.
class Intake {
public:
    Intake(const Source& source, std::optional<int> level) : source_(source) {
#ifndef S3CACHE_NO_GZIP
        if (!level) return;
        deflater_.emplace(*level);
        raw_.resize(
            static_cast<std::size_t>((std::min)(source.size().value_or(piece_bytes), std::uint64_t{piece_bytes})) + 1);
#else
        static_cast<void>(level);
#endif
    }

    // Fills the buffer unless the end comes first; the count.
    Result<std::size_t> read(char* buffer, std::size_t capacity) {
#ifndef S3CACHE_NO_GZIP
        if (deflater_) return deflate(*deflater_, buffer, capacity);
#endif
        return pull(buffer, capacity);
    }
    std::uint64_t taken() const { return taken_; }
    bool deflates() const {
#ifndef S3CACHE_NO_GZIP
        return deflater_.has_value();
#else
        return false;
#endif
    }
    // Whether all has been read. Needs to look one byte ahead.
    Result<bool> at_end() {
        if (ahead_) return false;
        char next = 0;
        const Result<std::size_t> count = read(&next, 1);
        if (!count) return count.error();
        if (*count) ahead_ = next;
        return *count == 0;
    }

private:
    Result<std::size_t> pull(char* buffer, std::size_t capacity);
    Result<std::size_t> ask(char* buffer, std::size_t capacity);
    const Source& source_;
    std::uint64_t taken_ = 0;
    bool ended_ = false;
    std::optional<char> ahead_;
#ifndef S3CACHE_NO_GZIP
    Result<std::size_t> deflate(gzip::Deflater& deflater, char* buffer, std::size_t capacity);
    std::optional<gzip::Deflater> deflater_;
    std::string raw_;
#endif
};

// One call of the user's function, which may do anything.
inline Result<std::size_t> Intake::ask(char* buffer, std::size_t capacity) {
    auto count = guarded([&]() -> Result<std::size_t> { return source_.read(buffer, capacity); }, "the source");
    if (!count) return count;
    if (*count == source_failed) return Error(Errc::source, "the source failed");
    if (*count > capacity) return Error(Errc::source, "the source says it wrote more than the buffer holds");
    taken_ += *count;
    if (source_.size() && (taken_ > *source_.size() || (*count == 0 && taken_ < *source_.size())))
        return Error(Errc::source, "the source is not as long as it announced");
    return count;
}

inline Result<std::size_t> Intake::pull(char* buffer, std::size_t capacity) {
    std::size_t filled = 0;
    if (ahead_ && capacity) {
        buffer[filled++] = *ahead_;
        ahead_.reset();
    }
    while (filled < capacity && !ended_) {
        const Result<std::size_t> count = ask(buffer + filled, capacity - filled);
        if (!count) return count;
        ended_ = *count == 0;
        filled += *count;
    }
    return filled;
}

#ifndef S3CACHE_NO_GZIP
inline Result<std::size_t> Intake::deflate(gzip::Deflater& deflater, char* buffer, std::size_t capacity) {
    std::size_t filled = 0;
    if (ahead_ && capacity) {
        buffer[filled++] = *ahead_;
        ahead_.reset();
    }
    while (filled < capacity) {
        const gzip::Pulled pulled = deflater.pull(buffer + filled, capacity - filled);
        filled += pulled.produced;
        if (pulled.step == gzip::Step::damaged)
            return Error(Errc::too_large, std::string("gzip: ") + deflater.problem());
        if (pulled.step == gzip::Step::finished) break;
        if (pulled.step == gzip::Step::output) continue;
        const Result<std::size_t> count = ask(&raw_[0], raw_.size());
        if (!count) return count;
        deflater.feed(std::string_view(raw_).substr(0, *count));
        if (*count == 0) deflater.finish();
    }
    return filled;
}
#endif

// What goes up, apart from its bytes.
struct Target {
    const char* operation = "set";
    std::string_view key{};
    std::string object{};
    std::vector<std::pair<std::string, std::string>> headers{};     // of the entry: type, metadata, encryption
    std::vector<std::pair<std::string, std::string>> conditions{};  // If-Match, If-None-Match
    std::optional<Seconds> ttl{};
    std::string write_id{};
    std::uint64_t part_bytes = 0;  // over zero: parts of this size, whose MD5s are to vouch for the whole
};

inline s3::Call call_for(const Target& target, http::Method method, std::string query) {
    s3::Call call;
    call.operation = target.operation;
    call.key = target.key;
    call.object = target.object;
    call.method = method;
    call.query = std::move(query);
    return call;
}

inline std::string hash_text(const digest::Sha256Digest& hash) {
    return bytes::hex(std::string_view(reinterpret_cast<const char*>(hash.data()), hash.size()));
}

// Parts in parallel over one session. Each slot owns one part's bytes (or a view of them) until the store has it.
class Upload {
public:
    struct Slot {
        std::unique_ptr<char[]> buffer;  // left uninitialised: pages that a short part does not use are never touched
        std::size_t capacity = 0;
        s3::Call call;
        std::uint64_t number = 0;
        bool busy = false;
    };
    // Puts the next part into the slot's body and payload_hash; false: there are no more.
    using Next = std::function<Result<bool>(Slot&)>;

    Upload(s3::Session& session, const Target& target, std::size_t lanes)
        : session_(session), target_(target), slots_(lanes) {}
    ~Upload() {
        if (!id_.empty()) static_cast<void>(http::shielded([this] { return abandon(), true; }, false));
    }
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;

    std::vector<Slot>& lanes() { return slots_; }
    std::uint64_t stored_bytes() const { return stored_bytes_; }
    // How many parts may be in flight together with the one of this number; empty: as many as there are lanes.
    std::function<std::size_t(std::uint64_t number)> at_once{};
    std::uint64_t parts_most = parts_max;
    // True: stored; false: a write condition was not met, nothing was stored.
    Result<bool> run(const Next& next);

private:
    Result<void> create();
    Result<bool> begin(const Next& next);
    Result<void> begin_untagged();
    bool has_room() const;
    Result<bool> send(const Next& next, Slot& slot);
    Result<void> collect();
    Result<bool> complete();
    Result<bool> settle(s3::Call& call);
    Result<bool> vouched(std::string_view etag);
    bool ours();
    void abandon();
    void abort();
    void left_over(std::string_view why);
    void tell_leftover(std::string_view why);
    std::string part_query(std::uint64_t number) const;

    s3::Session& session_;
    const Target& target_;
    std::vector<Slot> slots_;
    std::vector<std::string> etags_;
    std::uint64_t count_ = 0, stored_bytes_ = 0;
    bool tagged_ = false;     // the metadata tells the size of the parts
    bool encrypted_ = false;  // in a way that makes ETags something else than MD5s, as the store said at the beginning
    std::string id_;          // of the upload, percent-encoded; empty: none is open
};

inline Result<void> Upload::create() {
    s3::Call call = call_for(target_, http::Method::post, "uploads=");
    call.headers = target_.headers;
    if (tagged_) {
        bytes::add(call.headers, "x-amz-meta-part-bytes", std::string());
        bytes::append_number(call.headers.back().second, target_.part_bytes);
    }
    call.ttl = target_.ttl;
    call.must_finish = call.error_in_200 = true;
    // An upload that was begun and whose answer got lost has an id that nobody knows: only sweeping finds it.
    call.again = [this](const s3::Call& lost) {
        const CURLcode result = lost.answer->result;
        const bool sent = result != CURLE_OK && result != CURLE_COULDNT_CONNECT && result != CURLE_COULDNT_RESOLVE_HOST;
        if (sent)
            tell_leftover("the answer to the beginning of an upload was lost: if it began, sweep_uploads removes it");
        return true;
    };
    session_.run(call);
    Result<void> made;
    if (!call.ok()) {
        made = session_.failure(call);
    } else if (const auto id = xml::upload_id(call.answer->text)) {
        bytes::append_percent(id_, *id, false);
        const std::string_view encryption = call.answer->headers.get("x-amz-server-side-encryption");
        encrypted_ = bytes::starts_with(encryption, "aws:kms");
    } else {
        made = s3::refusal(Errc::protocol, target_.operation, target_.key,
                           "the store began no upload: its answer is not S3's");
    }
    return made;
}

inline std::string Upload::part_query(std::uint64_t number) const {
    std::string query = "partNumber=";
    bytes::append_number(query, number);
    return query.append("&uploadId=").append(id_);
}

inline bool Upload::has_room() const {
    if (!at_once) return true;
    const auto busy = std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.busy; });
    return static_cast<std::size_t>(busy) < at_once(count_ + 1);
}

inline Result<bool> Upload::send(const Next& next, Slot& slot) {
    slot.call = call_for(target_, http::Method::put, {});
    const Result<bool> more = next(slot);
    if (!more || !*more) return more;
    if (count_ == parts_most)
        return s3::refusal(Errc::too_large, target_.operation, target_.key,
                           "the stream is longer than 10,000 parts: announce its size, or raise Config::part_bytes or "
                           "transfer_bytes_max");
    slot.number = ++count_;
    slot.call.query = part_query(slot.number);
    slot.busy = true;
    session_.start(slot.call);
    return true;
}

// Takes in the parts that are done.
inline Result<void> Upload::collect() {
    for (Slot& slot : slots_) {
        if (!slot.busy || !slot.call.done) continue;
        slot.busy = false;
        if (!slot.call.ok()) return session_.failure(slot.call);
        if (slot.call.answer->headers.get("etag").empty())
            return s3::refusal(Errc::protocol, target_.operation, target_.key,
                               "the answer to a part has no ETag: is the endpoint an S3 store?");
        stored_bytes_ += slot.call.body.size;
        etags_.resize((std::max)(etags_.size(), static_cast<std::size_t>(slot.number)));
        etags_[static_cast<std::size_t>(slot.number - 1)] = std::string(slot.call.answer->headers.get("etag"));
        session_.drop(slot.call);
    }
    return {};
}

inline std::string md5_text(const http::Body& body) {
    digest::Md5 md5;
    std::vector<char> buffer(body.read_at ? piece_bytes : 0);
    for (std::uint64_t at = 0; at < body.size;) {
        std::string_view piece = body.memory;
        if (body.read_at) piece = {buffer.data(), body.read_at(at, buffer.data(), buffer.size())};
        if (piece.empty()) return {};
        md5.update(piece.substr(0, static_cast<std::size_t>((std::min)(std::uint64_t{piece.size()}, body.size - at))));
        at += piece.size();
    }
    const auto sum = md5.finish();
    return md5.ok() ? bytes::hex(digest::as_text(sum)) : std::string();
}

// Creates the upload. While it is not known whether the store's ETags are MD5s, no lane takes a second part before the
// answer to the first has told, so that all that was sent can be sent again.
inline Result<bool> Upload::begin(const Next& next) {
    auto& trait = session_.core().md5_etags;
    tagged_ = target_.part_bytes != 0 && trait != Core::Trait::no;
    if (Result<void> made = create(); !made) return std::move(made).error();
    if (session_.cancelled())
        return s3::refusal(Errc::cancelled, target_.operation, target_.key, "cancelled while the upload began");
    if (tagged_ && encrypted_) {
        trait = Core::Trait::no;
        const Result<void> again = begin_untagged();
        return again ? Result<bool>(true) : Result<bool>(again.error());
    }
    if (!tagged_ || trait == Core::Trait::yes) return true;
    Result<bool> more = send(next, slots_.front());
    if (!more || !*more) return more;
    const s3::Call& first = slots_.front().call;
    for (std::size_t i = 1; i < slots_.size() && *more && !first.done && has_room(); ++i) {
        more = send(next, slots_[i]);
        if (!more) return more;
    }
    while (!first.done) session_.step(std::chrono::milliseconds(1000));
    if (!first.ok()) return session_.failure(first);
    const std::string_view etag = Verifier::bare(first.answer->headers.get("etag"));
    if (etag.empty()) return more;  // no answer of a store, for collect() to refuse
    trait = md5_text(first.body) == etag ? Core::Trait::yes : Core::Trait::no;
    if (trait == Core::Trait::yes) return more;
    const Result<void> again = begin_untagged();
    return again ? more : Result<bool>(again.error());
}

// The metadata has promised what this store does not keep: the upload begins anew, with the parts that are at hand.
inline Result<void> Upload::begin_untagged() {
    for (Slot& slot : slots_) {
        if (slot.busy) session_.drop(slot.call);
    }
    abort();
    tagged_ = false;
    if (Result<void> made = create(); !made) return made;
    for (Slot& slot : slots_) {
        if (!slot.busy) continue;
        const http::Body body = slot.call.body;
        const std::string hash = slot.call.payload_hash;
        slot.call = call_for(target_, http::Method::put, part_query(slot.number));
        slot.call.body = body;
        slot.call.payload_hash = hash;
        session_.start(slot.call);
    }
    return {};
}

inline Result<bool> Upload::run(const Next& next) {
    const Result<bool> begun = begin(next);
    if (!begun) return begun;
    bool more = *begun;
    for (;;) {
        bool busy = false, sent = false;
        for (Slot& slot : slots_) {
            if (more && !slot.busy && has_room()) {
                const Result<bool> started = send(next, slot);
                if (!started) return started;
                more = sent = *started;
            }
            busy |= slot.busy;
        }
        if (!busy) break;
        session_.step(std::chrono::milliseconds(sent ? 0 : 1000));
        if (Result<void> fine = collect(); !fine) return std::move(fine).error();
    }
    return complete();
}

inline Result<bool> Upload::complete() {
    std::string list = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
    for (std::size_t i = 0; i < etags_.size(); ++i) {
        list += "<Part><PartNumber>";
        bytes::append_number(list, i + 1);
        list += "</PartNumber><ETag>";
        xml::escape(list, etags_[i]);
        list += "</ETag></Part>";
    }
    list += "</CompleteMultipartUpload>";
    s3::Call call = call_for(target_, http::Method::post, "uploadId=" + id_);
    call.headers = target_.conditions;
    bytes::add(call.headers, "content-type", "application/xml");
    call.body = {list, {}, list.size()};
    call.payload_hash = hash_text(digest::sha256(list));
    call.stall = complete_stall;
    call.error_in_200 = true;
    session_.run(call);
    Result<bool> stored = settle(call);
    return stored;
}

// An answer that got lost may have been a success: then the retry says 412 or NoSuchUpload, and the object itself tells.
inline Result<bool> Upload::settle(s3::Call& call) {
    const bool unmet = call.status() == 412 || (call.status() == 404 && call.code() == "NoSuchKey");
    const auto completed = call.ok() ? xml::etag_result(call.answer->text) : std::nullopt;
    if (completed) {
        id_.clear();
        return vouched(*completed);
    }
    const bool unclear = unmet || call.error || call.status() == 404 || call.code() == "InternalError";
    if (unclear && ours()) {
        id_.clear();
        return true;
    }
    if (unmet && !target_.conditions.empty()) return false;
    if (call.ok())
        return s3::refusal(Errc::protocol, target_.operation, target_.key,
                           "the store's answer does not say that the upload is complete");
    return session_.failure(call);
}

// The whole is what its parts were: their ETags are MD5s, as the first has shown, and the whole's is made of them.
inline Result<bool> Upload::vouched(std::string_view etag) {
    std::string md5s;
    for (const std::string& part : etags_) {
        const std::string_view text = Verifier::bare(part);
        for (std::size_t i = 0; i + 1 < text.size(); i += 2)
            md5s += static_cast<char>(bytes::hex_value(text[i]) * 16 + bytes::hex_value(text[i + 1]));
    }
    const std::string_view bare = Verifier::bare(etag);
    const std::string expected = Verifier::etag_of_parts(md5s, etags_.size());
    // An ETag of another form (encrypted with KMS, or none in the answer) says nothing, and is not looked at on reading.
    if (!tagged_ || bare.size() != expected.size() || bare.find('-') != expected.find('-') || bare == expected)
        return true;
    return s3::refusal(
        Errc::damaged, target_.operation, target_.key,
        "the store's ETag of the whole is not that of its parts: it lost or mixed some, or makes its ETags "
        "its own way (then set Config::checksums to Checksums::none)");
}

inline bool Upload::ours() {
    session_.allow_cleanup();
    s3::Call look = call_for(target_, http::Method::head, {});
    session_.run(look);
    const bool same = look.ok() && entry::read(look.answer->headers).write_id == target_.write_id;
    return same && !target_.write_id.empty();
}

// Nothing may be left behind: parts in flight are cut off first, since one that arrives later would stay for ever.
inline void Upload::abandon() {
    for (Slot& slot : slots_) {
        if (slot.busy) session_.drop(slot.call);
        slot.busy = false;
    }
    session_.on_tick({});
    session_.allow_cleanup();
    abort();
}

inline void Upload::abort() {
    Target target = target_;
    target.operation = "abort_upload";
    s3::Call call = call_for(target, http::Method::erase, "uploadId=" + id_);
    session_.run(call);
    const bool is_page = call.ok() && !call.answer->text.empty();  // of something that is no S3
    if (is_page)
        left_over("the answer to the abort is not S3's");
    else if (!call.ok() && call.status() != 404)
        left_over(session_.failure(call).what());
    id_.clear();
}

inline void Upload::left_over(std::string_view why) {
    count(session_.core().counters.leftover_uploads);
    tell_leftover(why);
}

inline void Upload::tell_leftover(std::string_view why) {
    Event event;
    event.operation = "abort_upload";
    event.key = target_.key;
    event.outcome = "leftover";
    event.detail = why;
    session_.core().tell(event);
}

}  // namespace detail::transfer

namespace detail::transfer {

// Stored bytes to value bytes: inflated if the entry says so and the bytes look like it. (The Python class marks streams
// as compressed that it sends as they are.)
class Decoder {
public:
    Decoder(bool compressed, std::uint64_t bytes_max)
        : mode_(compressed ? Mode::sniff : Mode::plain), bytes_max_(bytes_max) {}

    // Appends what becomes of the data; false: problem() says why not.
    bool push(std::string& out, std::string_view data) {
        if (mode_ == Mode::sniff) {
            head_.append(data);
            if (head_.size() < 2) return true;
            mode_ = bytes::starts_with(head_, gzip_magic) ? Mode::gzip : Mode::plain;
            const std::string head = std::move(head_);
            return push(out, head);
        }
        if (mode_ == Mode::gzip) return inflate(out, data);
        if (data.size() > bytes_max_ - (std::min)(bytes_max_, std::uint64_t{out.size()}))
            return fails("too large", true);
        out.append(data);
        return true;
    }
    bool finish(std::string& out) {
        if (mode_ == Mode::sniff) mode_ = Mode::plain, out.append(head_);
#ifndef S3CACHE_NO_GZIP
        if (mode_ == Mode::gzip && !inflate_pending(out)) return false;
        if (mode_ == Mode::gzip && !inflater_.end_of_input()) return fails(inflater_.problem(), false);
#endif
        return true;
    }
    const char* problem() const { return problem_; }
    bool too_large() const { return too_large_; }

private:
    enum class Mode { sniff, plain, gzip };
    bool fails(const char* why, bool too_large) {
        problem_ = why;
        too_large_ = too_large;
        return false;
    }
    bool inflate(std::string& out, std::string_view data);

    Mode mode_;
    std::uint64_t bytes_max_;
    std::string head_;
    const char* problem_ = nullptr;
    bool too_large_ = false;
#ifndef S3CACHE_NO_GZIP
    bool inflate_pending(std::string& out);
    gzip::Inflater inflater_;
    std::string pending_;  // not inflated yet
#endif
};

#ifdef S3CACHE_NO_GZIP
inline bool Decoder::inflate(std::string&, std::string_view) {
    return fails("this build has no gzip (S3CACHE_NO_GZIP)", false);
}
#else
// Each call of zlib ends with a copy of its window, so it is called for more than the 16 KiB that libcurl brings at a time.
inline constexpr std::size_t inflate_input_bytes = std::size_t{64} << 10;
// What is cleared before zlib writes over it: so much that it is called seldom, so little that it stays in the cache.
inline constexpr std::size_t inflate_step_bytes = std::size_t{256} << 10;

inline bool Decoder::inflate(std::string& out, std::string_view data) {
    pending_.append(data);
    return pending_.size() < inflate_input_bytes || inflate_pending(out);
}

// Straight into the value. It grows by doubling: a gzip body does not say at its front how long it will be.
inline bool Decoder::inflate_pending(std::string& out) {
    inflater_.feed(pending_);
    for (;;) {
        const std::size_t used = out.size();
        if (used > bytes_max_) return fails("too large", true);
        const std::uint64_t room = bytes_max_ - used + 1;
        std::size_t grow = static_cast<std::size_t>((std::min)(room, std::uint64_t{inflate_step_bytes}));
        if (used == 0) grow = (std::min)(grow, gzip::claimed_size(pending_) + 1);  // right, if that is all of the body
        if (out.capacity() - used < grow)
            out.reserve((std::max)(used + grow, 2 * used));  // doubles: else it is quadratic
#if defined(__cpp_lib_string_resize_and_overwrite)
        gzip::Pulled pulled{};                               // C++23 writes without clearing first
        out.resize_and_overwrite(used + grow, [&](char* text, std::size_t size) {
            pulled = inflater_.pull(text + used, size - used);
            return used + pulled.produced;
        });
#else
        out.resize(used + grow);
        const gzip::Pulled pulled = inflater_.pull(&out[used], out.size() - used);
        out.resize(used + pulled.produced);
#endif
        if (pulled.step == gzip::Step::damaged) return fails(inflater_.problem(), false);
        if (out.size() > bytes_max_) return fails("too large", true);
        if (pulled.step == gzip::Step::needs_input) break;
    }
    pending_.clear();
    return true;
}
#endif

}  // namespace detail::transfer

namespace detail {

// A Reader's insides. Two buffers: the caller looks at the front one while the network may fill the back one up to its
// size; then the transfer pauses, and TCP tells the store to wait.
struct ReaderState {
    ReaderState(std::shared_ptr<Core> shared, std::string_view name, transfer::Incoming::Open open)
        : core(std::move(shared)),
          key(name),
          session(*core, std::chrono::milliseconds(0)),
          incoming(session, key, std::move(open),
                   [this](const char* data, std::size_t size) { return keep(data, size); }) {
        incoming.call.large = true;
        incoming.allow_spreading();
    }
    ReaderState(const ReaderState&) = delete;
    ReaderState& operator=(const ReaderState&) = delete;

    bool begun() const { return incoming.call.done || back.size > 0; }
    Result<std::string_view> next();

    std::shared_ptr<Core> core;
    std::string key;
    s3::Session session;
    transfer::Incoming incoming;
    std::string_view rest{};  // of the chunk that try_read is cutting up
    std::unique_ptr<std::istream> stream{};
    std::unique_ptr<std::streambuf> stream_buffer{};

private:
    struct Buffer {
        std::unique_ptr<char[]> data{};
        std::size_t size = 0, capacity = 0;
    };
    http::Sink::Took keep(const char* data, std::size_t size);
    Result<std::string_view> raw();
    Result<std::string_view> decoded();
    Result<std::string_view> failed(Error why) {
        trouble = std::move(why);
        return *trouble;
    }
    Buffer front{}, back{};
    bool ended = false;
    std::optional<Error> trouble{};
#ifndef S3CACHE_NO_GZIP
    gzip::Inflater inflater{};
    bool sniffed = false, gzipped = false, inflating = false;
    std::unique_ptr<char[]> out{};
#endif
};

inline http::Sink::Took ReaderState::keep(const char* data, std::size_t size) {
    if (back.size + size > back.capacity) {
        if (back.size) return http::Sink::Took::none_yet;
        const std::uint64_t most =
            core->config.buffer_bytes ? core->config.buffer_bytes : transfer::reader_buffer_bytes;
        const std::uint64_t expected = incoming.facts().length.value_or(most);
        back.capacity = (std::max)(size, static_cast<std::size_t>((std::min)(expected, most)));
        back.data.reset(new char[back.capacity]);
    }
    std::memcpy(back.data.get() + back.size, data, size);
    back.size += size;
    session.hurry();
    return http::Sink::Took::all;
}

// The stored bytes as they come; empty at the checked end.
inline Result<std::string_view> ReaderState::raw() {
    front.size = 0;
    incoming.wait_begins();
    session.resume(incoming.call);
    while (back.size == 0 && !incoming.call.done) {
        session.step(std::chrono::milliseconds(1000));
        incoming.tend();
    }
    std::swap(front, back);
    if (front.size) return std::string_view(front.data.get(), front.size);
    if (incoming.limited()) {
        front = Buffer(), back = Buffer();  // the ranges have buffers of their own
        Result<std::string_view> ranged = incoming.rest();
        if (!ranged || !ranged->empty()) return ranged;
        if (!incoming.limited()) return raw();
    }
    if (Result<void> whole = incoming.check(); !whole) return std::move(whole).error();
    return std::string_view();
}

inline Result<std::string_view> ReaderState::next() {
    if (trouble) return *trouble;
    if (ended) return std::string_view();
    Result<std::string_view> chunk = incoming.facts().info.compressed ? decoded() : raw();
    if (!chunk) {
        if (chunk.error().code() == Errc::damaged) count(core->counters.damaged);
        return failed(std::move(chunk).error());
    }
    ended = chunk->empty();
    return chunk;
}

#ifdef S3CACHE_NO_GZIP
inline Result<std::string_view> ReaderState::decoded() {
    return s3::refusal(Errc::unsupported, "get", key,
                       "the entry is compressed, and this build has no gzip (S3CACHE_NO_GZIP)");
}
#else
inline Result<std::string_view> ReaderState::decoded() {
    if (!sniffed) {
        Result<std::string_view> first = raw();
        if (!first) return first;
        while (first->size() == 1 && !incoming.call.done && back.size == 0)
            session.step(std::chrono::milliseconds(1000));
        if (first->size() == 1 && back.size) {  // a first chunk of one byte: put it before the next
            Buffer joined{std::unique_ptr<char[]>(new char[back.size + 1]), back.size + 1, back.size + 1};
            joined.data[0] = first->front();
            std::memcpy(joined.data.get() + 1, back.data.get(), back.size);
            back.size = 0;
            front = std::move(joined);
            first = std::string_view(front.data.get(), front.size);
        }
        sniffed = true;
        gzipped = bytes::starts_with(*first, transfer::gzip_magic);
        if (!gzipped) return first;
        out.reset(new char[transfer::piece_bytes]);
        inflater.feed(*first);
        inflating = true;
    }
    if (!gzipped) return raw();
    for (;;) {
        if (!inflating) {
            const Result<std::string_view> more = raw();
            if (!more) return more;
            if (more->empty() && !inflater.end_of_input())
                return s3::refusal(Errc::damaged, "get", key,
                                   std::string("the gzip body is damaged: ") + inflater.problem());
            if (more->empty()) return more;
            inflater.feed(*more);
        }
        const gzip::Pulled pulled = inflater.pull(out.get(), transfer::piece_bytes);
        inflating = pulled.step == gzip::Step::output;
        if (pulled.step == gzip::Step::damaged)
            return s3::refusal(Errc::damaged, "get", key,
                               std::string("the gzip body is damaged: ") + inflater.problem());
        if (pulled.produced) return std::string_view(out.get(), pulled.produced);
    }
}
#endif

}  // namespace detail

// --- cache: keys, expiry, conditions, many keys, single flight; what Cache's members do --------------------------------

namespace detail::ops {

inline constexpr std::size_t key_bytes_max = 1024;  // S3's bound on an object's name

using s3::Call;
using s3::refusal;
using s3::Session;

// Everything that public operations check before anything is sent.
inline std::optional<Error> key_flaw(const Core& core, const char* operation, std::string_view key) {
    const char* flaw = key.empty() ? "the key is empty"
                       : core.prefix.size() + key.size() > key_bytes_max
                           ? "the key, with its prefix, is over 1024 bytes"
                       : key.find('\0') != std::string_view::npos ? "the key holds a NUL"
                       : !utf8::valid(key)                        ? "the key is not UTF-8"
                                                                  : nullptr;
    if (!flaw) return std::nullopt;
    return refusal(Errc::invalid_argument, operation, utf8::valid(key) ? key : std::string_view(), flaw);
}

inline std::string random_id(const Core& core) {
    std::string id;
    for (int i = 0; i < 16; ++i) id += "0123456789abcdef"[static_cast<std::size_t>(core.random() * 16) & 15];
    return id;
}

inline std::optional<Error> write_flaw(const Core& core, const char* operation, std::string_view key) {
    if (!core.config.read_only) return std::nullopt;
    return refusal(Errc::read_only, operation, key, "this cache is for reading only (Config::read_only)");
}

inline std::optional<Error> removal_flaw(const Core& core, std::string_view key) {
    auto flaw = key_flaw(core, "remove", key);
    return flaw ? flaw : write_flaw(core, "remove", key);
}

// A try_ form never throws: what the standard library may throw (no memory) becomes an Error.
template <class F>
auto never_throws(F&& call) -> decltype(call()) {
#if S3CACHE_EXCEPTIONS
    try {
        return call();
    } catch (const std::exception& error) {
        return Error(Errc::too_large, std::string("out of memory? ") + error.what());
    }
#else
    return call();
#endif
}

// -- reading

inline bool absent(const Core& core, const Call& call) {
    if (call.error) return false;
    if (call.status() == 404) return call.code() != "NoSuchBucket";
    return call.status() == 403 && core.config.forbidden_is_miss;
}

// What an operation moved and how long it took, for its outcome's event.
struct Effort {
    http::Clock::time_point began{};  // empty: not to be told
    std::uint64_t bytes = 0;
    int status = 0;
};

inline Effort effort_of(const Call& call, std::uint64_t bytes) { return {call.began, bytes, call.status()}; }

inline void tell(const Core& core, const char* operation, std::string_view key, std::string_view outcome,
                 std::string_view detail = {}, const Effort& effort = {}) {
    if (!core.config.on_event) return;
    Event event;
    event.operation = operation;
    event.key = key;
    event.outcome = outcome;
    event.detail = detail;
    event.bytes = effort.bytes;
    event.status = effort.status;
    if (effort.began != http::Clock::time_point()) event.duration = http::Clock::now() - effort.began;
    core.tell(event);
}

// Counts what a read came to, and says whether the entry is to be served.
inline bool servable(Core& core, const char* operation, std::string_view key, const entry::Facts& facts) {
    if (facts.expiry == entry::Expiry::malformed) {
        count(core.counters.malformed);
        count(core.counters.misses);
        tell(core, operation, key, "malformed", "its expires_at is not a number");
        return false;
    }
    if (facts.expiry == entry::Expiry::never || !facts.expired(core.unix_now())) return true;
    count(core.counters.expired);
    count(core.counters.misses);
    tell(core, operation, key, "expired");
    return false;
}

inline Error counted(Core& core, const char* operation, std::string_view key, Error error, Effort effort = {}) {
    count(error.code() == Errc::damaged ? core.counters.damaged : core.counters.errors);
    effort.status = error.status();
    tell(core, operation, key, error.code() == Errc::damaged ? "damaged" : "error", error.what(), effort);
    return error;
}

// A HEAD's 404 has no body and may mean that the bucket is not there. Asked once, while nothing has shown that it is.
inline Result<void> check_bucket(Session& session, const char* operation, std::string_view key) {
    Core& core = session.core();
    if (core.bucket_seen.load(std::memory_order_relaxed)) return {};
    Call look;
    look.operation = operation;
    look.key = key;
    look.method = http::Method::head;
    session.run(look);
    Result<void> fine;
    if (look.error) fine = *look.error;
    if (look.status() == 404) {
        Error::Details details;
        details.code = Errc::no_such_bucket;
        details.status = 404;
        details.s3_code = "NoSuchBucket";
        details.attempts = look.attempts;
        fine =
            Error(details, s3::about(operation, key, "404 NoSuchBucket; ") + s3::advice(Errc::no_such_bucket, {}, {}));
    } else if (!look.error) {
        core.bucket_seen.store(true, std::memory_order_relaxed);
    }
    return fine;
}

// The headers of an entry, expired or not; empty: there is none.
inline Result<std::optional<entry::Facts>> look(Session& session, const char* operation, std::string_view key) {
    Call call;
    call.operation = operation;
    call.key = key;
    call.object = session.core().object(key);
    call.method = http::Method::head;
    session.run(call);
    Result<std::optional<entry::Facts>> out = std::optional<entry::Facts>();
    if (call.ok() && call.answer->headers.get("etag").empty()) {
        out = refusal(Errc::protocol, operation, key, "the answer has no ETag: is the endpoint an S3 store?");
    } else if (call.ok()) {
        out = std::optional<entry::Facts>(entry::read(call.answer->headers));
    } else if (!absent(session.core(), call)) {
        out = session.failure(call);
    } else if (call.status() == 404) {
        if (Result<void> fine = check_bucket(session, operation, key); !fine) return std::move(fine).error();
        return out;
    }
    return out;
}

// Leaves it to the store to see whether the entry is still the one with this ETag.
inline bool erase_if_same(Session& session, std::string_view key, const std::string& etag) {
    Call call;
    call.operation = "expire";
    call.key = key;
    call.object = session.core().object(key);
    call.method = http::Method::erase;
    call.headers = {{"if-match", etag}};
    session.run(call);
    return call.ok() && call.answer->text.empty();
}

// Removes the entry only if it is still the one with this ETag, and still expired: the same bytes, stored anew, have the
// same ETag. Some stores ignore If-Match on DELETE and would remove what another writer has just put there. So it is
// looked at first, which leaves a window of one round trip, and on stores that honour If-Match only for equal bytes.
// True: it was removed. A failure is no concern of the caller: the entry is expired and will be met again.
inline bool remove_if_same(Session& session, std::string_view key, const std::string& etag) {
    Core& core = session.core();
    if (etag.empty()) return false;
    const auto now_there = look(session, "expire", key);
    if (!now_there || !*now_there || (*now_there)->info.etag != etag || !(*now_there)->expired(core.unix_now()))
        return false;
    return erase_if_same(session, key, etag);
}

// -- touch

inline constexpr int changed_tried_max =
    3;  // an entry that is replaced under our hands is looked at again, but not for ever

// The headers that a copy onto itself would lose unless they are said again.
inline std::vector<std::pair<std::string, std::string>> kept_headers(const http::Headers& headers) {
    std::vector<std::pair<std::string, std::string>> kept;
    headers.each([&](std::string_view name, std::string_view value) {
        const std::string lower = bytes::lower(name);
        const bool meta = bytes::starts_with(lower, entry::meta_prefix);
        const std::string_view own =
            meta ? std::string_view(lower).substr(entry::meta_prefix.size()) : std::string_view();
        if (meta && (own == "expires_at" || own == "expires-at")) return;
        if (meta ||
            retry::one_of(lower, {"content-type", "cache-control", "content-disposition", "content-encoding",
                                  "content-language", "expires", "x-amz-storage-class", "x-amz-server-side-encryption",
                                  "x-amz-server-side-encryption-aws-kms-key-id", "x-amz-website-redirect-location"}))
            bytes::add(kept, lower, value);
    });
    return kept;
}

// One try; empty: the entry was replaced between the look and the copy. With an ETag: only the entry that has it.
inline Result<std::optional<bool>> touch_once(Session& session, std::string_view key, Seconds ttl,
                                              std::string_view only = {}) {
    Core& core = session.core();
    Call look_call;
    look_call.operation = "touch";
    look_call.key = key;
    look_call.object = core.object(key);
    look_call.method = http::Method::head;
    session.run(look_call);
    if (absent(core, look_call)) {
        if (Result<void> fine = check_bucket(session, "touch", key); !fine) return std::move(fine).error();
        return std::optional<bool>(false);
    }
    if (!look_call.ok()) return session.failure(look_call);
    const entry::Facts facts = entry::read(look_call.answer->headers);
    if (facts.info.etag.empty())
        return refusal(Errc::protocol, "touch", key, "the answer has no ETag: is the endpoint an S3 store?");
    Call copy;
    copy.headers = kept_headers(look_call.answer->headers);
    if (!only.empty() && only != facts.info.etag) return std::optional<bool>(false);
    if (!servable(core, "touch", key, facts)) return std::optional<bool>(false);

    copy.operation = "touch";
    copy.key = key;
    copy.object = core.object(key);
    copy.method = http::Method::put;
    copy.error_in_200 = true;
    std::string source = "/" + core.bucket + "/";
    bytes::append_percent(source, copy.object, true);
    bytes::add(copy.headers, "x-amz-copy-source", source);
    bytes::add(copy.headers, "x-amz-copy-source-if-match", facts.info.etag);
    bytes::add(copy.headers, "x-amz-metadata-directive", "REPLACE");
    // The copy of an upload in parts may get another ETag; the old one goes on to vouch for the bytes, which stay the same.
    const std::string_view etag = transfer::Verifier::bare(facts.info.etag);
    if (facts.part_bytes != 0 && facts.parts_etag.empty() && etag.find('-') != std::string_view::npos)
        bytes::add(copy.headers, "x-amz-meta-parts-etag", etag);
    if (ttl.count() < entry::ttl_seconds_max) copy.ttl = ttl;
    session.run(copy);
    Result<std::optional<bool>> out = std::optional<bool>();
    if (copy.ok()) {
        out = xml::etag_result(copy.answer->text)
                  ? Result<std::optional<bool>>(true)
                  : refusal(Errc::protocol, "touch", key, "the store's answer does not say that the copy was made");
    } else if (copy.status() != 412 && !(copy.status() == 404 && copy.code() != "NoSuchBucket")) {
        out = session.failure(copy);
    }
    return out;
}

inline Result<bool> touch(Core& core, std::string_view key, Seconds ttl) {
    if (auto flaw = key_flaw(core, "touch", key)) return *flaw;
    if (!(ttl.count() > 0))
        return refusal(Errc::invalid_argument, "touch", key, "a TTL must be over zero; s3cache::forever never expires");
    if (auto flaw = write_flaw(core, "touch", key)) return *flaw;
    Session session(core);
    for (int tried = 0; tried < changed_tried_max; ++tried) {
        const Result<std::optional<bool>> touched = touch_once(session, key, ttl);
        if (!touched) return counted(core, "touch", key, touched.error());
        if (*touched) return **touched;
    }
    return counted(core, "touch", key,
                   refusal(Errc::changed, "touch", key, "the entry is being replaced again and again"));
}

// Sliding expiry: an entry that was read gets its whole time again, at most once an interval. How long ago it last got
// that is told by the time it has left. A failure is no concern of the reader's, who has the value; it is an event.
inline void slide(Session& session, std::string_view key, const Info& info) {
    Core& core = session.core();
    if (!core.config.sliding_ttl || core.config.read_only || !info.expires_at) return;
    const Seconds ttl = *core.config.sliding_ttl;
    if (retry::seconds_between(core.now(), *info.expires_at) > (ttl - core.config.sliding_interval).count()) return;
    const auto touched = touch_once(session, key, ttl, info.etag);
    if (!touched) tell(core, "touch", key, "error", touched.error().what());
}

// What a get may ask for beside the value.
struct Ask {
    Seconds grace{0};  // an entry that has expired no longer than this is returned too
    std::string_view if_none_match{};
    bool leaves_expired = false;  // to be replaced by the caller, or wanted again if that fails
    const ProgressCallback* progress = nullptr;
};

// Room for a gzip value at a guess; what is not written to is never touched, so too much of it costs nothing.
inline constexpr std::uint64_t gzip_ratio_likely = 6;

// One get of a whole value; started by itself or among many.
class Fetch {
public:
    Fetch(Session& session, std::string_view key, const Ask& ask = {})
        : session_(session),
          core_(session.core()),
          ask_(ask),
          incoming_(
              session, key, [this](const entry::Facts& facts) { return open(facts); },
              [this](const char* data, std::size_t size) { return take(data, size); }) {
        if (!ask.if_none_match.empty()) bytes::add(call().headers, "if-none-match", ask.if_none_match);
        if (ask.progress && *ask.progress) session.on_tick([this] { return tell_progress(); });
    }
    Fetch(const Fetch&) = delete;
    Fetch& operator=(const Fetch&) = delete;
    ~Fetch() {
        if (ask_.progress && *ask_.progress) session_.on_tick({});
    }

    Call& call() { return incoming_.call; }
    // By itself, not among others: with as many connections as help.
    void run() {
        incoming_.allow_spreading();
        session_.start(call());
        while (!call().done) {
            session_.step(std::chrono::milliseconds(1000));
            incoming_.tend();
        }
    }
    // Once the call is done.
    Result<std::optional<Value>> result();
    // The ETag of an expired entry that the policy wants removed; empty: there is none.
    const std::string& expired_etag() const { return expired_etag_; }
    const entry::Facts& facts() const { return incoming_.facts(); }  // without its info once there is a result()
    bool stale() const { return stale_; }
    bool unchanged() const { return unchanged_; }

private:
    bool open(const entry::Facts& facts) {
        value_.clear();
        const double now = core_.unix_now();
        stale_ = facts.expired(now) && !facts.expired(now - ask_.grace.count());
        if (!stale_ && !servable(core_, "get", call().key, facts)) {
            refused_ = true;
            const bool expired = facts.expiry == entry::Expiry::at;
            const bool removes =
                core_.config.expired == Expired::remove && !core_.config.read_only && !ask_.leaves_expired;
            if (expired && removes) expired_etag_ = facts.info.etag;
            return false;
        }
        too_large_ = !facts.info.compressed && facts.length.value_or(0) > core_.config.value_bytes_max;
        if (too_large_) return false;
        decoder_.emplace(facts.info.compressed, core_.config.value_bytes_max);
        const std::uint64_t likely = facts.length.value_or(0) * (facts.info.compressed ? gzip_ratio_likely : 1);
        value_.reserve(static_cast<std::size_t>((std::min)(likely, core_.config.value_bytes_max)));
        return true;
    }
    http::Sink::Took take(const char* data, std::size_t size) {
        return decoder_->push(value_, {data, size}) ? http::Sink::Took::all : http::Sink::Took::enough;
    }
    Error trouble(Errc code, std::string_view text) const { return refusal(code, "get", incoming_.call.key, text); }
    Result<std::optional<Value>> value();
    Result<std::optional<Value>> settle_unchanged();
    Result<void> take_rest();
    bool tell_progress() const { return (*ask_.progress)({incoming_.arrived(), incoming_.facts().length}); }

    Session& session_;
    Core& core_;
    const Ask ask_;
    std::optional<transfer::Decoder> decoder_;
    std::string value_, expired_etag_;
    bool refused_ = false, too_large_ = false, stale_ = false, unchanged_ = false;
    transfer::Incoming incoming_;
};

inline Result<std::optional<Value>> Fetch::result() {
    if (absent(core_, call())) {
        count(core_.counters.misses);
        tell(core_, "get", call().key, "miss", {}, effort_of(call(), 0));
        return std::optional<Value>();
    }
    if (call().status() == 304 && !call().error && !ask_.if_none_match.empty()) return settle_unchanged();
    Result<std::optional<Value>> out = value();
    const Effort effort = effort_of(call(), incoming_.taken());
    if (!out) return counted(core_, "get", call().key, out.error(), effort);
    if (*out && ask_.progress && *ask_.progress) static_cast<void>(tell_progress());
    if (*out && stale_) {
        count(core_.counters.expired);
        count(core_.counters.misses);
        tell(core_, "get", call().key, "expired", {}, effort);
    } else if (*out) {
        count(core_.counters.hits);
        tell(core_, "get", call().key, "hit", {}, effort);
    }
    return out;
}

// Not replaced since, but its time may be up. Most stores leave metadata out of this answer, so it is looked for.
inline Result<std::optional<Value>> Fetch::settle_unchanged() {
    const auto there = look(session_, "get", call().key);
    if (!there) return counted(core_, "get", call().key, there.error());
    if (!*there) {
        count(core_.counters.misses);
        tell(core_, "get", call().key, "miss");
    } else if (servable(core_, "get", call().key, **there)) {
        unchanged_ = true;
        count(core_.counters.unchanged);
        tell(core_, "get", call().key, "unchanged");
    }
    return std::optional<Value>();
}

inline Result<void> Fetch::take_rest() {
    while (incoming_.limited() && !decoder_->problem()) {
        const Result<std::string_view> data = incoming_.rest();
        if (!data) return data.error();
        if (!data->empty())
            static_cast<void>(decoder_->push(value_, *data));
        else if (incoming_.limited())
            return {};
        while (!call().done) session_.step(std::chrono::milliseconds(1000));
    }
    return {};
}

inline Result<std::optional<Value>> Fetch::value() {
    if (Result<void> rest = take_rest(); !rest) return std::move(rest).error();
    if (refused_) return std::optional<Value>();  // whatever became of a body that nobody wants
    const bool gzip_trouble = decoder_ && decoder_->problem();
    if (!gzip_trouble) {
        if (Result<void> whole = incoming_.check(); !whole) return std::move(whole).error();
    }
    const bool whole = !too_large_ && !gzip_trouble && decoder_->finish(value_);
    if (too_large_ || decoder_->too_large())
        return trouble(Errc::too_large,
                       "the value is over Config::value_bytes_max: use get_stream, or raise the limit");
    if (!whole) return trouble(Errc::damaged, std::string("the gzip body is damaged: ") + decoder_->problem());
    Info info = incoming_.take_info();
    const Kind kind = info.kind ? *info.kind : entry::classify(value_);
    info.kind = kind;
    return std::optional<Value>(Value(std::move(value_), kind, std::move(info)));
}

// Errors of reading told as misses, where that is the policy. What is wrong with the call itself stays an error.
template <class T>
Result<std::optional<T>> tolerated(Core& core, const char* operation, std::string_view key,
                                   Result<std::optional<T>> result) {
    if (result || !core.config.errors_are_misses) return result;
    const Errc code = result.error().code();
    if (code == Errc::invalid_argument || code == Errc::cancelled || code == Errc::file) return result;
    count(core.counters.tolerated);
    tell(core, operation, key, "tolerated", result.error().what());
    return std::optional<T>();
}

// A value with what its headers said; and whether it is past its time, which only a caller who asks for that gets.
struct Recalled {
    std::optional<Value> value{};
    entry::Expiry expiry = entry::Expiry::never;
    double expires_at = 0, cost = 0;  // as in entry::Facts
    bool stale = false, unchanged = false;
};

inline Result<Recalled> recall(Core& core, std::string_view key, const Ask& ask) {
    if (auto flaw = key_flaw(core, "get", key)) return *flaw;
    Session session(core);
    constexpr int versions_tried_max =
        3;  // an object that is replaced while it is read is read again, but not for ever
    for (int tried = 1;; ++tried) {
        Fetch fetch(session, key, ask);
        fetch.run();
        Result<std::optional<Value>> out = fetch.result();
        session.drop(fetch.call());
        if (!fetch.expired_etag().empty()) remove_if_same(session, key, fetch.expired_etag());
        if (out) {
            if (*out && !fetch.stale()) slide(session, key, (*out)->info());
            const entry::Facts& facts = fetch.facts();
            return Recalled{*std::move(out), facts.expiry,  facts.expires_at,
                            facts.cost,      fetch.stale(), fetch.unchanged()};
        }
        if (out.error().code() != Errc::changed || tried == versions_tried_max) return std::move(out).error();
    }
}

inline Result<std::optional<Value>> get(Core& core, std::string_view key, const GetOptions& options) {
    Ask ask;
    ask.progress = &options.progress;
    return tolerated(core, "get", key,
                     recall(core, key, ask).transform([](Recalled&& found) { return std::move(found.value); }));
}

// `limited_whole`: Config::call_timeout covers the reading too, and not the opening alone.
inline Result<std::optional<Reader>> open_stream(const std::shared_ptr<Core>& core, std::string_view key,
                                                 const GetOptions& options, bool limited_whole = false) {
    if (auto flaw = key_flaw(*core, "get", key)) return *flaw;
    bool serve = true;
    auto state = std::make_unique<ReaderState>(core, key, [&core, &serve, key](const entry::Facts& facts) {
        return serve = servable(*core, "get", key, facts);
    });
    Call& call = state->incoming.call;
    const auto limit = core->config.call_timeout;
    const auto deadline = http::Clock::now() + limit;
    Error::Details late;
    late.code = Errc::timed_out;
    late.retryable = true;
    if (options.progress) {
        state->session.on_tick([reader = state.get(), progress = options.progress] {
            return progress({reader->incoming.arrived(), reader->incoming.facts().length});
        });
    }
    if (limited_whole) state->session.allow(limit);
    state->session.start(call);
    while (!state->begun()) {
        state->session.step(limit.count() ? (std::min)(limit, s3::tick) : std::chrono::milliseconds(1000));
        if (limit.count() && !state->begun() && http::Clock::now() > deadline)
            state->session.cancel_all(Error(late, "no answer within Config::call_timeout"));
    }
    if (absent(*core, call)) {
        count(core->counters.misses);
        tell(*core, "get", key, "miss");
        return std::optional<Reader>();
    }
    if (call.done && !state->incoming.limited()) {  // it was short enough to be here already, or it failed
        if (Result<void> whole = state->incoming.check(); !whole) return counted(*core, "get", key, whole.error());
    }
    if (!serve) {
        const entry::Facts facts = state->incoming.facts();
        state->session.drop(call);
        if (facts.expiry == entry::Expiry::at && core->config.expired == Expired::remove && !core->config.read_only)
            remove_if_same(state->session, key, facts.info.etag);
        return std::optional<Reader>();
    }
    count(core->counters.hits);
    tell(*core, "get", key, "hit");
    // A copy onto itself changes the ETag of an upload in parts, to which readers of its ranges are pinned.
    const Info& info = state->incoming.facts().info;
    if (core->config.sliding_ttl && info.etag.find('-') == std::string::npos) {
        Session session(*core);
        slide(session, key, info);
    }
    return std::optional<Reader>(Reader(std::move(state)));
}

inline Result<std::optional<Reader>> get_stream(const std::shared_ptr<Core>& core, std::string_view key,
                                                const GetOptions& options) {
    return tolerated(*core, "get", key, open_stream(core, key, options));
}

inline Result<std::optional<Info>> stat(Core& core, std::string_view key) {
    if (auto flaw = key_flaw(core, "stat", key)) return *flaw;
    Session session(core);
    auto facts = look(session, "stat", key);
    if (!facts)
        return tolerated(core, "stat", key, Result<std::optional<Info>>(counted(core, "stat", key, facts.error())));
    if (!*facts || !servable(core, "stat", key, **facts)) return std::optional<Info>();
    return std::optional<Info>(std::move((*facts)->info));
}

inline Result<Revalidated> get_if_changed(Core& core, std::string_view key, std::string_view etag) {
    if (etag.empty() || *entry::value_flaw(etag)) return refusal(Errc::invalid_argument, "get", key, "that is no ETag");
    Ask ask;
    ask.if_none_match = etag;
    return recall(core, key, ask).transform([&](Recalled&& found) {
        // A store that ignores the header sends the value again, which is the same one.
        const bool same = found.unchanged || (found.value && found.value->info().etag == etag);
        return same ? Revalidated{true, {}} : Revalidated{false, std::move(found.value)};
    });
}

// -- writing

inline Result<void> removed(Session& session, const Call& call) {
    const bool is_done = call.ok() || (!call.error && call.status() == 404 && call.code() != "NoSuchBucket");
    if (!is_done) return session.failure(call);
    if (call.ok() && !call.answer->text.empty())
        return refusal(Errc::protocol, "remove", call.key,
                       "the answer to a DELETE has a body: is the endpoint an S3 store?");
    return {};
}

inline Result<void> remove(Core& core, Session& session, std::string_view key) {
    Call call;
    call.operation = "remove";
    call.key = key;
    call.object = core.object(key);
    call.method = http::Method::erase;
    session.run(call);
    Result<void> out = removed(session, call);
    if (!out) {
        out = counted(core, "remove", key, out.error(), effort_of(call, 0));
    } else {
        count(core.counters.removes);
        tell(core, "remove", key, "done", {}, effort_of(call, 0));
    }
    return out;
}

inline std::optional<Error> options_flaw(const Core& core, std::string_view key, const SetOptions& options) {
    const auto refuse = [&](std::string_view text) { return refusal(Errc::invalid_argument, "set", key, text); };
    const std::optional<Seconds> ttl = options.ttl ? options.ttl : core.config.default_ttl;
    if (ttl && !(ttl->count() > 0)) return refuse("a TTL must be over zero; s3cache::forever never expires");
    if (options.if_absent && !options.if_match.empty()) return refuse("if_absent and if_match exclude each other");
    if (*entry::value_flaw(options.if_match)) return refuse("if_match is no ETag");
    if (*entry::value_flaw(options.content_type))
        return refuse("content_type holds bytes that are not printable ASCII");
    Metadata all = core.config.metadata;
    all.insert(all.end(), options.metadata.begin(), options.metadata.end());
    const std::string flaw = entry::metadata_flaw(all);
    if (!flaw.empty()) return refuse(flaw);
    return std::nullopt;
}

inline transfer::Target target_for(const Core& core, std::string_view key, Kind kind, bool compressed,
                                   const SetOptions& options) {
    transfer::Target out;
    out.key = key;
    out.object = core.object(key);
    auto& headers = out.headers;
    bytes::add(headers, "content-type",
               options.content_type.empty() ? std::string(entry::content_type(kind)) : options.content_type);
    bytes::add(headers, "x-amz-meta-kind", entry::word(kind));
    if (compressed) bytes::add(headers, "x-amz-meta-compressed", "true");
    for (const Metadata* metadata : {&core.config.metadata, &options.metadata}) {
        for (const auto& [name, value] : *metadata)
            bytes::add(headers, std::string(entry::meta_prefix) + bytes::lower(name), value);
    }
    const Config& config = core.config;
    if (!config.server_side_encryption.empty())
        bytes::add(headers, "x-amz-server-side-encryption", config.server_side_encryption);
    if (!config.kms_key_id.empty())
        bytes::add(headers, "x-amz-server-side-encryption-aws-kms-key-id", config.kms_key_id);
    if (!config.storage_class.empty()) bytes::add(headers, "x-amz-storage-class", config.storage_class);
    if (options.if_absent) bytes::add(out.conditions, "if-none-match", "*");
    if (!options.if_match.empty()) bytes::add(out.conditions, "if-match", options.if_match);
    const std::optional<Seconds> ttl = options.ttl ? options.ttl : config.default_ttl;
    if (ttl && ttl->count() < entry::ttl_seconds_max)
        out.ttl = *ttl * (config.ttl_jitter > 0 ? 1 - config.ttl_jitter * core.random() : 1);
    return out;
}

inline void name_write(const Core& core, transfer::Target& target) {
    target.write_id = random_id(core);
    bytes::add(target.headers, "x-amz-meta-write-id", target.write_id);
}

// Whether bodies are hashed for the signature.
inline bool hashes(Core& core) {
    if (!core.config.unsigned_payload) return true;
    const auto place = core.place();
    return !place || (*place)->scheme != "https";  // over plain http nothing else would vouch for the bytes
}

// Calls the progress callback of a transfer; installed as the session's tick.
class Meter {
public:
    Meter(Session& session, const ProgressCallback& callback, std::optional<std::uint64_t> total)
        : callback_(callback), total_(total) {
        if (callback_) session.on_tick([this] { return tell(); });
    }
    std::uint64_t done = 0;
    std::vector<const Call*> running{};

    bool tell() {
        std::uint64_t sum = done;
        for (const Call* call : running) sum += call->answer && !call->done ? call->answer->sent : 0;
        most_ = (std::max)(most_, sum);  // a part that is sent again does not count backwards
        return callback_({most_, total_});
    }
    // All is stored; what the callback says no longer matters.
    void finish(std::uint64_t bytes) {
        if (callback_) callback_({bytes, total_});
    }

private:
    const ProgressCallback& callback_;
    std::optional<std::uint64_t> total_;
    std::uint64_t most_ = 0;
};

// Whether the entry under the key is the one this write put there: asked when an answer may have been lost.
inline bool is_ours(Session& session, const transfer::Target& target) {
    const auto facts = look(session, target.operation, target.key);
    return facts && *facts && !target.write_id.empty() && (*facts)->write_id == target.write_id;
}

inline Result<bool> finish_put(Session& session, const transfer::Target& target, const Call& call) {
    if (call.ok()) {
        // S3 says 200 with an ETag; a server that says 201 or 204, as WebDAV does, need not have ETags.
        const bool is_put =
            call.answer->text.empty() && (call.status() != 200 || !call.answer->headers.get("etag").empty());
        if (is_put) return true;
        return refusal(Errc::protocol, target.operation, target.key,
                       "the answer is not that to a PUT: is the endpoint an S3 store?");
    }
    const bool unmet = !call.error && (call.status() == 412 || (call.status() == 404 && call.code() == "NoSuchKey"));
    if (!unmet || target.conditions.empty()) return session.failure(call);
    return is_ours(session, target);  // our own write, if its answer was lost and libcurl or we sent it again
}

// The PUT of bytes that are all there, ready to run by itself or among many.
inline Call put_call(Core& core, transfer::Target& target, http::Body body, std::uint32_t crc, std::string hash) {
    if (core.config.checksums != Checksums::none)
        bytes::add(target.headers, "x-amz-meta-crc32c", entry::crc32c_text(crc));
    if (core.config.checksums == Checksums::store)
        bytes::add(target.headers, "x-amz-checksum-crc32c", entry::crc32c_text(crc));
    if (!target.conditions.empty() && target.write_id.empty()) name_write(core, target);
    Call call = transfer::call_for(target, http::Method::put, {});
    call.headers = target.headers;
    call.headers.insert(call.headers.end(), target.conditions.begin(), target.conditions.end());
    call.body = std::move(body);
    call.payload_hash = std::move(hash);
    call.ttl = target.ttl;
    return call;
}

inline Call put_call(Session& session, transfer::Target& target, std::string_view data) {
    Core& core = session.core();
    const std::uint32_t crc =
        core.config.checksums == Checksums::none ? 0 : digest::crc32c(0, data.data(), data.size());
    std::string hash(sigv4::unsigned_payload);
    if (hashes(core)) hash = session.sha256_text(data);
    return put_call(core, target, {data, {}, data.size()}, crc, std::move(hash));
}

inline std::string bare_etag(std::string_view etag) {
    if (etag.size() > 1 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
    return std::string(etag);
}

// Ceph before 2025 compares If-Match with the ETag without its quotes, and so refuses every one that has them.
inline bool bare_etag_helps(Session& session, const transfer::Target& target) {
    if (target.conditions.empty() || target.conditions.front().first != "if-match") return false;
    const auto there = look(session, target.operation, target.key);
    return there && *there && (*there)->info.etag == target.conditions.front().second;
}

inline Result<bool> send_put(Session& session, const transfer::Target& target, Call& call, Meter& meter) {
    meter.running = {&call};
    session.run(call);
    Result<bool> stored = finish_put(session, target, call);
    session.drop(call);
    meter.running.clear();
    return stored;
}

inline Result<bool> put(Session& session, const transfer::Target& target, Call call, Meter& meter) {
    Result<bool> stored = send_put(session, target, call, meter);
    if (target.conditions.empty()) return stored;
    if (!stored && stored.error().code() == Errc::unsupported) {  // Swift, B2: the look before has to do
        call.headers.pop_back();
    } else if (stored && !*stored && bare_etag_helps(session, target)) {
        call.headers.back().second = bare_etag(call.headers.back().second);
    } else {
        return stored;
    }
    return send_put(session, target, call, meter);
}

// All parts equal, at most 10,000 of them.
inline std::uint64_t part_bytes_for(const Config& config, std::optional<std::uint64_t> size) {
    constexpr std::uint64_t round = std::uint64_t{1} << 20;
    if (!size || *size / transfer::parts_max < config.part_bytes) return config.part_bytes;
    return (*size / transfer::parts_max / round + 1) * round;
}

// What gzip makes of bytes that it can't make smaller: five bytes more for each block, and the members' heads and trailers.
inline constexpr std::uint64_t gzip_expansion_part = 1024;
inline constexpr std::uint64_t gzip_expansion_bytes = std::uint64_t{64} << 10;

// Equal parts where the length is known. Where it isn't, or the plan would need more memory than is allowed, parts grow to
// what the memory bound takes, one at a time then. Empty: that is known to be too little.
inline std::optional<transfer::PartPlan> plan_parts(const Config& config, std::optional<std::uint64_t> size,
                                                    bool compress) {
    const std::uint64_t first = config.part_bytes;
    const std::uint64_t most =
        (std::max)(first, (std::min)(std::uint64_t{config.transfer_bytes_max}, transfer::part_bytes_max));
    if (!size) return transfer::PartPlan{first, most};
    const std::uint64_t bound = compress ? *size + *size / gzip_expansion_part + gzip_expansion_bytes : *size;
    const std::uint64_t equal = part_bytes_for(config, bound);
    if (equal <= most) return transfer::PartPlan{equal, equal};
    if (compress) return transfer::PartPlan{most, most};  // it will hardly be as long
    return std::nullopt;
}

// A body that can be read at any place (memory, a file), cut into parts without holding a copy.
class SlicedUpload {
public:
    SlicedUpload(Core& core, http::Body whole, std::uint64_t part)
        : whole_(std::move(whole)), part_(part), hashes_(hashes(core)) {}

    Result<bool> next(transfer::Upload::Slot& slot) {
        if (at_ >= whole_.size) return false;
        const std::uint64_t offset = at_;
        http::Body& body = slot.call.body;
        body.size = (std::min)(part_, whole_.size - at_);
        at_ += body.size;
        if (whole_.read_at) {
            body.read_at = [this, offset](std::uint64_t at, char* buffer, std::size_t capacity) {
                return whole_.read_at(offset + at, buffer, capacity);
            };
        } else {
            body.memory = whole_.memory.substr(static_cast<std::size_t>(offset), static_cast<std::size_t>(body.size));
        }
        return sum(body, slot.call.payload_hash, nullptr);
    }

    // Hash and CRC of a body. They go out before it, so a file is read twice: it need not fit in memory.
    Result<bool> sum(const http::Body& body, std::string& hash, std::uint32_t* crc) {
        if (hashes_ && !hash_) hash_.emplace();
        std::vector<char> buffer(body.read_at ? transfer::piece_bytes : 0);
        for (std::uint64_t at = 0; at < body.size && (hashes_ || crc);) {
            std::string_view piece = body.memory;
            if (body.read_at) {
                const auto wanted = static_cast<std::size_t>((std::min)(std::uint64_t{buffer.size()}, body.size - at));
                piece = {buffer.data(), body.read_at(at, buffer.data(), wanted)};
                if (piece.empty()) return Error(Errc::source, "the file became shorter while it was read");
            }
            if (hashes_) hash_->update(piece);
            if (crc) *crc = digest::crc32c(*crc, piece.data(), piece.size());
            at += piece.size();
        }
        hash = hashes_ ? transfer::hash_text(hash_->finish()) : std::string(sigv4::unsigned_payload);
        return true;
    }

private:
    http::Body whole_;
    std::uint64_t part_, at_ = 0;
    const bool hashes_;
    std::optional<digest::Sha256> hash_{};  // made for the first part: one PUT of memory does without
};

// -- what the store makes of write conditions: found out once a cache, by doing it

inline std::string own_name(const char* what, std::string_view id) {
    return std::string(".s3cache/") + what + "/" + std::string(id);
}

// Scratch objects and leases are no entries: lists leave them out, and only what removes everything meets them.
inline bool is_own_name(std::string_view key) {
    const bool lease = bytes::starts_with(key, ".s3cache/lease/") && key.size() == own_name("lease", {}).size() + 32;
    const bool probe = bytes::starts_with(key, ".s3cache/probe/") && key.size() == own_name("probe", {}).size() + 16;
    return (lease || probe) &&
           key.find_first_not_of("0123456789abcdef", own_name("lease", {}).size()) == std::string_view::npos;
}

// They have a time to live in case that they cannot be removed.
inline constexpr Seconds scratch_ttl{600};

// One request on the scratch object; its status, or why there is none worth that name.
inline Result<int> try_scratch(Session& session, const std::string& key, http::Method method, const char* condition,
                               const char* value) {
    constexpr std::string_view text = "a scratch object: may be removed";
    Call call;
    call.operation = "probe";
    call.key = key;
    call.object = session.core().object(key);
    call.method = method;
    if (condition) bytes::add(call.headers, condition, value);
    if (method == http::Method::put) {
        call.ttl = scratch_ttl;
        call.body = {text, {}, text.size()};
        call.payload_hash = session.sha256_text(text);
    }
    session.run(call);
    const bool told = call.ok() || call.status() == 412 || call.status() == 409 || call.status() == 501;
    Result<int> out = call.status();
    if (!told) out = session.failure(call);
    return out;
}

// Whether conditions on PUT are honoured, and on DELETE on the way. An error: it could not be found out, this time.
inline Result<bool> honours_conditions(Session& session) {
    Core& core = session.core();
    using Trait = Core::Trait;
    const auto place = core.place();
    if (place && (*place)->aws()) return true;
    if (core.honours_put != Trait::unknown) return core.honours_put == Trait::yes;
    constexpr const char* wrong_etag = "\"00000000000000000000000000000000\"";
    const std::string key = own_name("probe", random_id(core));
    const Result<int> first = try_scratch(session, key, http::Method::put, "if-none-match", "*");
    if (!first) return first.error();
    if (*first / 100 != 2) return core.honours_put = Trait::no, false;  // refused as such: nothing is there
    const Result<int> second = try_scratch(session, key, http::Method::put, "if-none-match", "*");
    const Result<int> third = try_scratch(session, key, http::Method::put, "if-match", wrong_etag);
    const Result<int> fourth = try_scratch(session, key, http::Method::erase, "if-match", wrong_etag);
    if (!fourth || *fourth / 100 != 2)
        static_cast<void>(try_scratch(session, key, http::Method::erase, nullptr, nullptr));
    for (const Result<int>* answer : {&second, &third}) {
        if (!*answer) return answer->error();
    }
    const bool honours = *second / 100 != 2 && *third / 100 != 2;
    if (fourth) core.honours_delete = *fourth == 412 ? Trait::yes : Trait::no;
    core.honours_put = honours ? Trait::yes : Trait::no;
    return honours;
}

// What the policy says of a conditional write: it goes ahead, or an error. Takes the headers away where they are not to be sent.
inline Result<void> condition_policy(Session& session, const transfer::Target& target) {
    Core& core = session.core();
    if (core.config.conditions == Conditions::off) return {};
    const Result<bool> honours = honours_conditions(session);
    if (honours && *honours) return {};
    if (core.config.conditions == Conditions::required) {
        if (!honours) return about(target.operation, target.key, honours.error());
        return refusal(Errc::unsupported, target.operation, target.key,
                       "the store does not honour write conditions (tried on a scratch object), and Config::conditions "
                       "requires it");
    }
    count(core.counters.unconditional);
    tell(core, target.operation, target.key, "unconditional");
    return {};
}

// Looks before a conditional write: an entry that is in the way is found without sending the body, an expired one is
// not in the way but must be the one that is replaced, and a store that ignores conditions is kept from the plain
// mistakes. The headers of the write itself then settle what happens in between.
inline Result<bool> condition_met(Session& session, transfer::Target& target) {
    if (target.conditions.empty()) return true;
    if (Result<void> allowed = condition_policy(session, target); !allowed) return std::move(allowed).error();
    const auto there = look(session, target.operation, target.key);
    if (!there) return there.error();
    auto& [name, value] = target.conditions.front();
    const bool expired = *there && (*there)->expired(session.core().unix_now());
    const bool met = name == "if-match" ? *there && (*there)->info.etag == value : !*there || expired;
    if (met && name == "if-none-match" && expired) target.conditions.front() = {"if-match", (*there)->info.etag};
    if (session.core().config.conditions == Conditions::off) target.conditions.clear();
    return met;
}

// Parts only from twice a part's size on: one PUT is atomic by itself, cheaper, and carries a CRC-32C.
inline Result<bool> send_whole(Session& session, transfer::Target& target, http::Body body, Meter& meter) {
    Core& core = session.core();
    const std::uint64_t part = part_bytes_for(core.config, body.size);
    SlicedUpload slices(core, body, part);
    if (body.size > std::uint64_t{2} * core.config.part_bytes) {
        name_write(core, target);
        if (core.config.checksums != Checksums::none) target.part_bytes = part;
        transfer::Upload upload(session, target, transfer::slots_for(core.config, part));
        for (const auto& slot : upload.lanes()) meter.running.push_back(&slot.call);
        return upload.run([&](transfer::Upload::Slot& slot) {
            meter.done = upload.stored_bytes();
            return slices.next(slot);
        });
    }
    if (!body.read_at) return put(session, target, put_call(session, target, body.memory), meter);
    std::uint32_t crc = 0;
    std::string hash;
    if (const Result<bool> summed = slices.sum(body, hash, &crc); !summed) return summed;
    return put(session, target, put_call(core, target, std::move(body), crc, std::move(hash)), meter);
}

inline Result<bool> set_whole(Session& session, transfer::Target& target, http::Body body, Meter& meter) {
    Result<bool> allowed = condition_met(session, target);
    if (!allowed || !*allowed) return allowed;
    const std::uint64_t size = body.size;
    Result<bool> stored = send_whole(session, target, std::move(body), meter);
    if (stored && *stored) meter.finish(size);
    return stored;
}

// A stream: its parts are gathered into the lanes' buffers while the parts before them are on their way.
class StreamUpload {
public:
    StreamUpload(Session& session, transfer::Target& target, transfer::Intake& intake, transfer::PartPlan plan,
                 Meter& meter)
        : session_(session),
          core_(session.core()),
          target_(target),
          intake_(intake),
          plan_(plan),
          hashes_(hashes(core_)),
          meter_(meter) {}

    Result<bool> run() {
        const std::size_t part = bytes_of(1);
        first_.reset(new char[part]);
        const Result<std::size_t> size = gather(first_.get(), part);
        if (!size) return about(size.error());
        const Result<bool> all = *size < part ? Result<bool>(true) : intake_.at_end();
        if (!all) return about(all.error());
        if (*all) return put(session_, target_, whole({first_.get(), *size}), meter_);
        name_write(core_, target_);
        // A gzip body carries a checksum of its own.
        if (core_.config.checksums != Checksums::none && !intake_.deflates()) target_.part_bytes = part;
        transfer::Upload upload(session_, target_, transfer::slots_for(core_.config, part));
        upload.at_once = [this](std::uint64_t number) {
            return transfer::slots_for(core_.config, plan_.bytes_of(number));
        };
        upload.parts_most = plan_.parts;
        first_size_ = *size;
        return upload.run([&](transfer::Upload::Slot& slot) { return next(upload.lanes(), slot); });
    }

private:
    Error about(const Error& error) const { return detail::about(target_.operation, target_.key, error); }

    std::string payload_hash() {
        return hashes_ ? transfer::hash_text(hash_.finish()) : std::string(sigv4::unsigned_payload);
    }

    Call whole(std::string_view data) {
        const std::uint32_t crc =
            core_.config.checksums == Checksums::none ? 0 : digest::crc32c(0, data.data(), data.size());
        return put_call(core_, target_, {data, {}, data.size()}, crc, payload_hash());
    }

    std::size_t bytes_of(std::uint64_t number) const { return static_cast<std::size_t>(plan_.bytes_of(number)); }

    // Lanes that rest lend a buffer that is large enough, and give up their smaller ones before a new one is made: so all
    // buffers there are keep within the bound.
    static void make_room(std::vector<transfer::Upload::Slot>& lanes, transfer::Upload::Slot& slot, std::size_t size) {
        for (auto& lane : lanes) {
            if (slot.capacity >= size) return;
            if (lane.busy) continue;
            std::swap(lane.buffer, slot.buffer);
            std::swap(lane.capacity, slot.capacity);
        }
        if (slot.capacity >= size) return;
        for (auto& lane : lanes) {
            if (!lane.busy) lane.buffer.reset(), lane.capacity = 0;
        }
        slot.buffer.reset(new char[size]);
        slot.capacity = size;
    }

    Result<bool> next(std::vector<transfer::Upload::Slot>& lanes, transfer::Upload::Slot& slot) {
        std::size_t size = first_size_;
        const std::size_t part = bytes_of(++begun_);
        if (first_) {  // what was read before it was known that there would be parts
            slot.buffer = std::move(first_);
            slot.capacity = part;
        } else {
            make_room(lanes, slot, part);
            const Result<std::size_t> gathered = gather(slot.buffer.get(), part);
            if (!gathered) return about(gathered.error());
            size = *gathered;
        }
        if (size == 0) return false;
        slot.call.body = {std::string_view(slot.buffer.get(), size), {}, size};
        slot.call.payload_hash = payload_hash();
        return true;
    }

    // Reading, hashing and sending overlap: after each piece the network gets its turn.
    Result<std::size_t> gather(char* buffer, std::size_t part) {
        std::size_t filled = 0;
        while (filled < part) {
            const std::size_t wanted = (std::min)(part - filled, transfer::piece_bytes);
            const Result<std::size_t> count = intake_.read(buffer + filled, wanted);
            if (!count) return count;
            if (hashes_) hash_.update(std::string_view(buffer + filled, *count));
            filled += *count;
            meter_.done = intake_.taken();
            if (!session_.step(std::chrono::milliseconds(0)))
                return Error(Errc::cancelled, "cancelled by the progress callback");
            if (*count < wanted) break;
        }
        return filled;
    }

    Session& session_;
    Core& core_;
    transfer::Target& target_;
    transfer::Intake& intake_;
    const transfer::PartPlan plan_;
    const bool hashes_;
    Meter& meter_;
    digest::Sha256 hash_{};
    std::unique_ptr<char[]> first_{};
    std::size_t first_size_ = 0;
    std::uint64_t begun_ = 0;  // parts
};

inline Result<bool> concluded(Core& core, std::string_view key, Result<bool> stored, const Effort& effort) {
    if (!stored) return counted(core, "set", key, std::move(stored).error(), effort);
    count(*stored ? core.counters.sets : core.counters.refused);
    tell(core, "set", key, *stored ? "done" : "refused", {}, effort);
    return stored;
}

// The kind under which a payload is stored, which must be what it says; an error before anything is sent.
inline Result<Kind> payload_kind(std::string_view key, const Payload& payload, const SetOptions& options) {
    const auto refuse = [&](std::string_view text) { return refusal(Errc::invalid_argument, "set", key, text); };
    if (!payload.present()) return refuse("the payload is a null pointer");
    const std::optional<Kind> wanted = options.kind ? options.kind : payload.kind();
    if (wanted == Kind::bytes) return Kind::bytes;
    if (wanted == Kind::json)
        return json::valid(payload.view()) ? Result<Kind>(Kind::json) : refuse("the payload is not JSON");
    const bool is_text = utf8::valid(payload.view());
    if (wanted == Kind::text && !is_text) return refuse("the payload is not UTF-8, and so not text");
    return is_text ? Kind::text : Kind::bytes;
}

inline std::optional<Error> set_flaw(const Core& core, std::string_view key, const SetOptions& options) {
    if (auto flaw = key_flaw(core, "set", key)) return flaw;
#ifdef S3CACHE_NO_GZIP
    if (options.compress) return refusal(Errc::unsupported, "set", key, "this build has no gzip (S3CACHE_NO_GZIP)");
#endif
    if (auto flaw = write_flaw(core, "set", key)) return flaw;
    return options_flaw(core, key, options);
}

inline void tell_cost(transfer::Target& target, double seconds) {
    if (seconds > 0) bytes::add(target.headers, "x-amz-meta-cost", entry::expiry_text(seconds));
}

inline Result<bool> stream(Core& core, std::string_view key, const Source& source, Kind kind, const SetOptions& options,
                           double cost = 0) {
    const std::optional<transfer::PartPlan> plan = plan_parts(core.config, source.size(), options.compress);
    if (!plan)
        return refusal(Errc::too_large, "set", key,
                       "a part of this stream is over Config::transfer_bytes_max: raise it");
    Session session(core);
    transfer::Target target = target_for(core, key, kind, options.compress, options);
    tell_cost(target, cost);
    Meter meter(session, options.progress, source.size());
    transfer::Intake intake(source,
                            options.compress ? std::optional<int>(core.config.compression_level) : std::nullopt);
    Result<bool> allowed = condition_met(session, target);
    if (!allowed || !*allowed) return allowed;
    StreamUpload upload(session, target, intake, *plan, meter);
    Result<bool> stored = upload.run();
    if (stored && *stored) meter.finish(intake.taken());
    return stored;
}

inline Source source_of(std::string_view data) {
    return Source([data](char* buffer, std::size_t capacity) mutable {
               const std::size_t count = data.copy(buffer, capacity);
               data.remove_prefix(count);
               return count;
           })
        .sized(data.size());
}

// `cost`: seconds that computing it took, for those who will refresh it ahead of its time; 0: not to be told.
inline Result<bool> set(Core& core, std::string_view key, const Payload& payload, const SetOptions& options,
                        double cost = 0) {
    if (auto flaw = set_flaw(core, key, options)) return *flaw;
    const Result<Kind> kind = payload_kind(key, payload, options);
    if (!kind) return kind.error();
    const Effort effort{http::Clock::now(), payload.view().size()};
    if (options.compress && !payload.negative()) {
        return concluded(core, key, stream(core, key, source_of(payload.view()), *kind, options, cost), effort);
    }
    Session session(core);
    transfer::Target target = target_for(core, key, *kind, false, options);
    if (payload.negative()) bytes::add(target.headers, "x-amz-meta-negative", "true");
    tell_cost(target, cost);
    Meter meter(session, options.progress, payload.view().size());
    return concluded(core, key, set_whole(session, target, {payload.view(), {}, payload.view().size()}, meter), effort);
}

inline Result<bool> set(Core& core, std::string_view key, const Source& source, const SetOptions& options) {
    if (auto flaw = set_flaw(core, key, options)) return *flaw;
    const Effort effort{http::Clock::now(), source.size().value_or(0)};
    return concluded(core, key, stream(core, key, source, options.kind.value_or(Kind::bytes), options), effort);
}

// -- files

// Where off_t has 32 bits (glibc on 32-bit machines, and this header cannot set _FILE_OFFSET_BITS for those included before
// it), the plain names refuse files over 2 GiB. std::fopen elsewhere.
inline std::FILE* open_file(const std::string& path, const char* mode) {
#if defined(__GLIBC__) && defined(__USE_LARGEFILE64)
    return fopen64(path.c_str(), mode);
#else
    return std::fopen(path.c_str(), mode);
#endif
}

inline bool seek(std::FILE* file, std::uint64_t offset) {
#if defined(_WIN32)
    return _fseeki64(file, static_cast<long long>(offset), SEEK_SET) == 0;
#elif defined(__GLIBC__) && defined(__USE_LARGEFILE64)
    return fseeko64(file, static_cast<off64_t>(offset), SEEK_SET) == 0;
#else
    return fseeko(file, static_cast<off_t>(offset), SEEK_SET) == 0;
#endif
}

inline std::optional<std::uint64_t> size_of(std::FILE* file) {  // empty: a pipe, a device, or a file without a length
#if defined(_WIN32)
    if (_fseeki64(file, 0, SEEK_END) != 0) return std::nullopt;
    const long long size = _ftelli64(file);
#else
#if defined(__GLIBC__) && defined(__USE_LARGEFILE64)
    struct stat64 seen;
    if (fstat64(fileno(file), &seen) != 0 || !S_ISREG(seen.st_mode)) return std::nullopt;
#else
    struct stat seen;
    if (fstat(fileno(file), &seen) != 0 || !S_ISREG(seen.st_mode)) return std::nullopt;
#endif
    const auto size = seen.st_size;
#endif
    if (size <= 0 || !seek(file, 0)) return std::nullopt;  // files of /proc say 0 and hold something
    return static_cast<std::uint64_t>(size);
}

struct FileCloser {
    void operator()(std::FILE* file) const { static_cast<void>(std::fclose(file)); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

inline Error file_error(const char* operation, std::string_view key, const std::string& path, const char* what) {
    return refusal(Errc::file, operation, key, std::string(what) + " '" + path + "': " + std::strerror(errno));
}

inline Result<bool> set_file(Core& core, std::string_view key, const std::string& path, const SetOptions& options) {
    if (auto flaw = set_flaw(core, key, options)) return *flaw;
    const File opened(open_file(path, "rb"));
    if (!opened) return counted(core, "set", key, file_error("set", key, path, "cannot open"));
    std::FILE* in = opened.get();
    const std::optional<std::uint64_t> size = size_of(in);
    const Kind kind = options.kind.value_or(Kind::bytes);
    const Effort effort{http::Clock::now(), size.value_or(0)};
    if (options.compress || !size) {
        Source source([in](char* buffer, std::size_t capacity) {
            const std::size_t count = std::fread(buffer, 1, capacity, in);
            return count == 0 && std::ferror(in) ? source_failed : count;
        });
        if (size) source = std::move(source).sized(*size);
        Result<bool> stored = stream(core, key, source, kind, options);
        if (!stored && std::ferror(in)) stored = file_error("set", key, path, "cannot read");
        return concluded(core, key, std::move(stored), effort);
    }
    Session session(core);
    transfer::Target target = target_for(core, key, kind, false, options);
    Meter meter(session, options.progress, size);
    const auto read_at = [in](std::uint64_t offset, char* buffer, std::size_t capacity) {
        return seek(in, offset) ? std::fread(buffer, 1, capacity, in) : 0;
    };
    return concluded(core, key, set_whole(session, target, {{}, read_at, *size}, meter), effort);
}

// Written beside the target and renamed onto it, so that nobody ever sees half a file.
inline Result<void> write_file(Reader& reader, const std::string& path, const std::string& beside,
                               std::string_view key) {
    File out(open_file(beside, "wbx"));
    if (!out) return file_error("get", key, beside, "cannot create");
    for (;;) {
        const Result<std::string_view> chunk = reader.try_next();
        if (!chunk) return chunk.error();
        if (chunk->empty()) break;
        if (std::fwrite(chunk->data(), 1, chunk->size(), out.get()) != chunk->size())
            return file_error("get", key, beside, "cannot write");
    }
    if (std::fclose(out.release()) != 0) return file_error("get", key, beside, "cannot write");
#if defined(_WIN32)
    std::remove(path.c_str());  // rename replaces nothing there
#endif
    if (std::rename(beside.c_str(), path.c_str()) != 0) return file_error("get", key, path, "cannot replace");
    return {};
}

inline Result<std::optional<Info>> get_file(const std::shared_ptr<Core>& core, std::string_view key,
                                            const std::string& path, const GetOptions& options) {
    Result<std::optional<Reader>> reader = tolerated(*core, "get", key, open_stream(core, key, options, true));
    if (!reader) return std::move(reader).error();
    if (!*reader) return std::optional<Info>();
    const std::string beside = path + ".s3cache-" + random_id(*core);
    if (Result<void> written = write_file(**reader, path, beside, key); !written) {
        static_cast<void>(std::remove(beside.c_str()));
        return std::move(written).error();
    }
    if (options.progress) static_cast<void>(options.progress({(*reader)->info().size, (*reader)->info().size}));
    return std::optional<Info>((*reader)->info());
}

}  // namespace detail::ops

namespace detail::ops {

// -- many keys

// Runs any number of calls over a bounded number of connections: `begin(i)` gives the i-th call to start, `end(i)` looks
// at it once it is done and lets go of it.
template <class Job, class Begin, class End>
void run_many(Session& session, std::size_t total, std::size_t at_once, Begin&& begin, End&& end) {
    struct Running {
        std::size_t index;
        std::unique_ptr<Job> job;
    };
    std::vector<Running> running;
    std::size_t next = 0;
    while (next < total || !running.empty()) {
        while (next < total && running.size() < at_once) {
            std::unique_ptr<Job> job = begin(next);
            if (job) {
                session.start(job->call());
                running.push_back({next, std::move(job)});
            }
            ++next;
        }
        if (running.empty()) continue;
        session.step(std::chrono::milliseconds(1000));
        for (std::size_t i = 0; i < running.size();) {
            if (!running[i].job->call().done) {
                ++i;
                continue;
            }
            end(running[i].index, *running[i].job);
            running[i] = std::move(running.back());
            running.pop_back();
        }
    }
}

#ifndef S3CACHE_NO_MANY_KEYS
inline void get_many(Core& core, const std::vector<std::string>& keys, const Cache::Visit& visit) {
    Session session(core);
    std::vector<std::pair<std::size_t, std::string>> expired;  // removed after the reading is done
    std::vector<std::size_t> changed;
    std::vector<std::pair<std::size_t, Info>> read;  // for sliding expiry, if that is on
    run_many<Fetch>(
        session, keys.size(), core.config.connections,
        [&](std::size_t i) -> std::unique_ptr<Fetch> {
            if (auto flaw = key_flaw(core, "get", keys[i])) return visit(keys[i], *flaw), nullptr;
            return std::make_unique<Fetch>(session, keys[i]);
        },
        [&](std::size_t i, Fetch& fetch) {
            Result<std::optional<Value>> result = fetch.result();
            if (!fetch.expired_etag().empty()) expired.emplace_back(i, fetch.expired_etag());
            if (!result && result.error().code() == Errc::changed) return changed.push_back(i);
            if (result && *result && core.config.sliding_ttl) read.emplace_back(i, (*result)->info());
            visit(keys[i], tolerated(core, "get", keys[i], std::move(result)));
        });
    for (const std::size_t i : changed) visit(keys[i], get(core, keys[i], {}));
    for (const auto& [i, info] : read) slide(session, keys[i], info);
    for (const auto& [i, etag] : expired) remove_if_same(session, keys[i], etag);
}

struct PutJob {
    transfer::Target target;
    Call running;
    Call& call() { return running; }
};

inline std::vector<Result<bool>> set_many(Core& core, const std::vector<Item>& items) {
    Session session(core);
    std::vector<Result<bool>> results(items.size(), Result<bool>(false));
    const auto whole = [&](const Item& item) {  // what goes out in one PUT, as it is
        const SetOptions& options = item.options;
        return !options.compress && !options.if_absent && options.if_match.empty() && !options.progress &&
               item.payload.view().size() <= 2 * core.config.part_bytes;
    };
    run_many<PutJob>(
        session, items.size(), core.config.connections,
        [&](std::size_t i) -> std::unique_ptr<PutJob> {
            const Item& item = items[i];
            if (!whole(item)) return results[i] = set(core, item.key, item.payload, item.options), nullptr;
            if (auto flaw = set_flaw(core, item.key, item.options)) return results[i] = *flaw, nullptr;
            const Result<Kind> kind = payload_kind(item.key, item.payload, item.options);
            if (!kind) return results[i] = kind.error(), nullptr;
            auto job = std::make_unique<PutJob>();
            job->target = target_for(core, item.key, *kind, false, item.options);
            job->running = put_call(session, job->target, item.payload.view());
            return job;
        },
        [&](std::size_t i, PutJob& job) {
            results[i] = concluded(core, items[i].key, finish_put(session, job.target, job.running),
                                   effort_of(job.running, job.running.body.size));
        });
    return results;
}

#endif  // S3CACHE_NO_MANY_KEYS

struct PlainJob {
    Call running;
    Call& call() { return running; }
};

// A request without a body on one of many entries, whose key is borrowed.
inline std::unique_ptr<PlainJob> plain_job(const Core& core, const char* operation, std::string_view key,
                                           http::Method method) {
    auto job = std::make_unique<PlainJob>();
    job->running.operation = operation;
    job->running.key = key;
    job->running.object = core.object(key);
    job->running.method = method;
    return job;
}

#ifndef S3CACHE_NO_MANY_KEYS
// One request a key, for stores without DeleteObjects and for names that XML cannot hold.
inline void remove_singly(Session& session, const std::vector<std::string>& keys, const std::vector<std::size_t>& which,
                          std::vector<Result<void>>& results) {
    Core& core = session.core();
    run_many<PlainJob>(
        session, which.size(), core.config.connections,
        [&](std::size_t i) { return plain_job(core, "remove", keys[which[i]], http::Method::erase); },
        [&](std::size_t i, PlainJob& job) { results[which[i]] = removed(session, job.running); });
}

inline constexpr std::size_t bulk_keys_max = 1000;  // of one DeleteObjects

inline Call bulk_call(const Core& core, const std::vector<std::string>& keys, const std::vector<std::size_t>& which,
                      std::string& list) {
    list = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>";
    for (const std::size_t i : which) {
        list += "<Object><Key>";
        xml::escape(list, core.object(keys[i]));
        list += "</Key></Object>";
    }
    list += "</Delete>";
    Call call;
    call.operation = "remove_many";
    call.method = http::Method::post;
    call.query = "delete=";
    call.body = {list, {}, list.size()};
    call.payload_hash = transfer::hash_text(digest::sha256(list));
    call.error_in_200 = true;
    bytes::add(call.headers, "content-type", "application/xml");
    if (const auto md5 = digest::md5(list)) {  // old stores want it; a FIPS build of OpenSSL has none
        bytes::add(call.headers, "content-md5",
                   bytes::base64(std::string_view(reinterpret_cast<const char*>(md5->data()), md5->size())));
    } else {
        const auto sha = digest::sha256(list);
        bytes::add(call.headers, "x-amz-checksum-sha256",
                   bytes::base64(std::string_view(reinterpret_cast<const char*>(sha.data()), sha.size())));
    }
    return call;
}

// False: the store does not do this; nothing is known of any key.
inline bool remove_bulk(Session& session, const std::vector<std::string>& keys, const std::vector<std::size_t>& which,
                        std::vector<Result<void>>& results) {
    Core& core = session.core();
    std::string list;
    Call call = bulk_call(core, keys, which, list);
    session.run(call);
    const auto answer = call.ok() ? xml::delete_result(call.answer->text) : std::nullopt;
    const bool done = answer.has_value();
    if (done) {
        for (const xml::DeleteError& error : answer->errors) {
            for (const std::size_t i : which) {
                if (core.object(keys[i]) != error.key || error.code == "NoSuchKey") continue;
                results[i] = Error(s3::kind_of(0, error.code),
                                   s3::about("remove", keys[i], error.code + ": " + s3::printable(error.message)));
            }
        }
    } else if (call.error || call.code() == "NoSuchBucket" || call.status() == 403 ||
               retry::throttling(call.status(), call.code()) ||
               (call.status() >= 500 && call.status() != 501)) {  // an outage is not multiplied by the number of keys
        const Error why = session.failure(call);
        for (const std::size_t i : which) results[i] = why;
        return true;
    }
    return done;
}

inline std::vector<Result<void>> remove_many(Session& session, const std::vector<std::string>& keys) {
    Core& core = session.core();
    std::vector<Result<void>> results(keys.size());
    std::vector<std::size_t> singly, batch;
    bool bulk = true;
    const auto flush = [&] {
        if (batch.size() < 2 || !bulk || !(bulk = remove_bulk(session, keys, batch, results)))
            singly.insert(singly.end(), batch.begin(), batch.end());
        batch.clear();
    };
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (auto flaw = removal_flaw(core, keys[i])) {
            results[i] = *flaw;
            continue;
        }
        (xml::representable(core.object(keys[i])) ? batch : singly).push_back(i);
        if (batch.size() == bulk_keys_max) flush();
    }
    flush();
    remove_singly(session, keys, singly, results);
    for (std::size_t i = 0; i < results.size(); ++i) {
        if (results[i])
            count(core.counters.removes);
        else
            results[i] = counted(core, "remove", keys[i], results[i].error());
    }
    return results;
}

#endif  // S3CACHE_NO_MANY_KEYS

// -- lists

inline Result<xml::ListPage> list_page(Session& session, const std::string& prefix, const std::string& token) {
    sigv4::QueryPairs query = {{"list-type", "2"}, {"encoding-type", "url"}, {"max-keys", "1000"}};
    if (!prefix.empty()) bytes::add(query, "prefix", prefix);
    if (!token.empty()) bytes::add(query, "continuation-token", token);
    Call call;
    call.operation = "list";
    call.key = prefix;
    call.query = sigv4::canonical_query(query);
    session.run(call);
    Result<xml::ListPage> out = xml::ListPage();
    std::optional<xml::ListPage> page;
    if (!call.ok()) {
        out = session.failure(call);
    } else if (!(page = xml::list_result(call.answer->text))) {
        out = refusal(Errc::protocol, "list", prefix, "the answer is no list: is the endpoint an S3 store?");
    } else if (page->truncated && (page->next_token.empty() || page->next_token == token)) {
        out = refusal(Errc::protocol, "list", prefix, "the store says there is more, but not how to go on");
    } else {
        out = std::move(*page);
    }
    return out;
}

}  // namespace detail::ops

namespace detail {

struct ListingState {
    ListingState(std::shared_ptr<Core> shared, std::string_view below, Look how)
        : core(std::move(shared)), session(*core), prefix(core->object(below)), look(how) {}

    Result<void> next_page();
    Result<std::optional<Entry>> next();

    std::shared_ptr<Core> core;
    s3::Session session;
    std::string prefix, token{};
    Look look;
    std::vector<Entry> page{};
    std::size_t at = 0;
    bool last = false, hides_own = true;
    std::optional<Error> trouble{};

private:
    void look_deeper();
};

inline Result<void> ListingState::next_page() {
    session.allow(core->config.call_timeout);
    Result<xml::ListPage> got = ops::list_page(session, prefix, token);
    if (!got) return std::move(got).error();
    page.clear();
    at = 0;
    for (xml::ListEntry& listed : got->entries) {
        if (!bytes::starts_with(listed.key, prefix))
            return s3::refusal(Errc::protocol, "list", prefix, "the store listed a key outside the prefix");
        Entry entry;
        entry.key = listed.key.substr(core->prefix.size());
        entry.info.size = listed.size;
        entry.info.etag = std::move(listed.etag);
        entry.info.last_modified = dates::iso8601(listed.last_modified).value_or(TimePoint());
        if (!entry.key.empty() && !(hides_own && ops::is_own_name(entry.key))) page.push_back(std::move(entry));
    }
    token = std::move(got->next_token);
    last = !got->truncated;
    if (look == Look::deep) look_deeper();
    return {};
}

// An entry that has gone since it was listed, or cannot be looked at, stays as the list told it.
inline void ListingState::look_deeper() {
    ops::run_many<ops::PlainJob>(
        session, page.size(), core->config.connections,
        [&](std::size_t i) { return ops::plain_job(*core, "stat", page[i].key, http::Method::head); },
        [&](std::size_t i, ops::PlainJob& job) {
            if (job.running.ok()) page[i].info = entry::read(job.running.answer->headers).info;
        });
}

inline Result<std::optional<Entry>> ListingState::next() {
    if (trouble) return *trouble;
    while (at == page.size()) {
        if (last) return std::optional<Entry>();
        if (Result<void> fine = next_page(); !fine) {
            trouble = std::move(fine).error();
            return *trouble;
        }
    }
    return std::optional<Entry>(std::move(page[at++]));
}

}  // namespace detail

namespace detail::ops {

#ifndef S3CACHE_NO_MANY_KEYS
inline Result<std::uint64_t> clear(const std::shared_ptr<Core>& core, std::string_view prefix) {
    if (auto flaw = write_flaw(*core, "clear", prefix)) return *flaw;
    ListingState listing(core, prefix, Look::shallow);
    listing.hides_own = false;
    std::uint64_t gone = 0;
    while (!listing.last) {
        if (Result<void> fine = listing.next_page(); !fine) return std::move(fine).error();
        std::vector<std::string> keys;
        for (Entry& entry : listing.page) keys.push_back(std::move(entry.key));
        for (const Result<void>& result : remove_many(listing.session, keys)) {
            if (!result) return result.error();
            ++gone;
        }
    }
    return gone;
}

// Looks at each of these entries over several connections and keeps those that are still what they were and have expired.
inline std::vector<Entry> still_expired(Session& session, std::vector<Entry> entries) {
    Core& core = session.core();
    std::vector<Entry> kept;
    run_many<PlainJob>(
        session, entries.size(), core.config.connections,
        [&](std::size_t i) { return plain_job(core, "purge", entries[i].key, http::Method::head); },
        [&](std::size_t i, PlainJob& job) {
            if (!job.running.ok()) return;
            const entry::Facts facts = entry::read(job.running.answer->headers);
            if (facts.info.etag == entries[i].info.etag && facts.expired(core.unix_now()))
                kept.push_back(std::move(entries[i]));
        });
    return kept;
}

// One request an entry, each with If-Match, where the store honours that.
inline std::uint64_t remove_conditionally(Session& session, const std::vector<Entry>& entries) {
    Core& core = session.core();
    std::uint64_t gone = 0;
    run_many<PlainJob>(
        session, entries.size(), core.config.connections,
        [&](std::size_t i) {
            auto job = plain_job(core, "purge", entries[i].key, http::Method::erase);
            job->running.headers = {{"if-match", entries[i].info.etag}};
            return job;
        },
        [&](std::size_t, PlainJob& job) { gone += job.running.ok() ? 1U : 0U; });
    return gone;
}

// Elsewhere one request for all.
inline std::uint64_t remove_in_bulk(Session& session, std::vector<Entry> entries) {
    std::vector<std::string> keys;
    for (Entry& entry : entries) keys.push_back(std::move(entry.key));
    std::uint64_t gone = 0;
    for (const Result<void>& result : remove_many(session, keys)) gone += result ? 1U : 0U;
    return gone;
}

inline Result<std::uint64_t> purge_expired(const std::shared_ptr<Core>& core, std::string_view prefix) {
    if (auto flaw = write_flaw(*core, "purge_expired", prefix)) return *flaw;
    ListingState listing(core, prefix, Look::deep);
    listing.hides_own = false;
    const auto place = core->place();
    const bool honoured = core->honours_delete == Core::Trait::yes || (place && (*place)->aws());
    std::uint64_t gone = 0;
    while (!listing.last) {
        if (Result<void> fine = listing.next_page(); !fine) return std::move(fine).error();
        std::vector<Entry> expired;
        for (Entry& entry : listing.page) {
            const bool over =
                entry.info.expires_at && *entry.info.expires_at <= core->now() && !entry.info.etag.empty();
            if (over) expired.push_back(std::move(entry));
        }
        // The page's looks may lie back a while: a second one, over many connections at once, narrows the window.
        expired = still_expired(listing.session, std::move(expired));
        gone += honoured ? remove_conditionally(listing.session, expired)
                         : remove_in_bulk(listing.session, std::move(expired));
    }
    return gone;
}

#endif  // S3CACHE_NO_MANY_KEYS

inline Result<xml::UploadsPage> uploads_page(Session& session, const std::string& prefix,
                                             const xml::UploadsPage& before) {
    sigv4::QueryPairs query = {{"uploads", ""}, {"encoding-type", "url"}, {"prefix", prefix}};
    if (before.truncated) {
        bytes::add(query, "key-marker", before.next_key_marker);
        bytes::add(query, "upload-id-marker", before.next_upload_id_marker);
    }
    Call call;
    call.operation = "sweep_uploads";
    call.key = prefix;
    call.query = sigv4::canonical_query(query);
    session.run(call);
    Result<xml::UploadsPage> out = xml::UploadsPage();
    std::optional<xml::UploadsPage> page;
    if (!call.ok()) {
        out = session.failure(call);
    } else if (!(page = xml::list_uploads_result(call.answer->text)) ||
               (page->truncated && page->next_key_marker == before.next_key_marker &&
                page->next_upload_id_marker == before.next_upload_id_marker)) {
        out = refusal(Errc::protocol, "sweep_uploads", prefix, "the answer is no list of uploads, or leads nowhere");
    } else {
        out = std::move(*page);
    }
    return out;
}

// The status of the answer; 0: none, or none of S3's.
inline int abort_upload(Session& session, const std::string& object, const std::string& id) {
    Call call;
    call.operation = "sweep_uploads";
    call.key = object;
    call.object = object;
    call.method = http::Method::erase;
    call.query = sigv4::canonical_query({{"uploadId", id}});
    session.run(call);
    return call.ok() && !call.answer->text.empty() ? 0 : call.status();
}

inline Result<std::uint64_t> sweep_uploads(Core& core, std::string_view prefix, Seconds older_than) {
    if (auto flaw = write_flaw(core, "sweep_uploads", prefix)) return *flaw;
    Session session(core);
    const std::string below = core.object(prefix);
    std::uint64_t swept = 0;
    xml::UploadsPage page;
    do {
        Result<xml::UploadsPage> got = uploads_page(session, below, page);
        if (!got) return std::move(got).error();
        page = *std::move(got);
        for (const xml::Upload& upload : page.uploads) {
            const auto began = dates::iso8601(upload.initiated);
            // Without a key or an id the request to abort would read as one to remove an object, or the bucket.
            if (upload.key.empty() || upload.id.empty()) continue;
            if (!began || !bytes::starts_with(upload.key, below) ||
                retry::seconds_between(*began, core.now()) < older_than.count())
                continue;
            // Some stores encode the key without saying so: then there is no such upload under the key as it stands.
            const auto decoded = bytes::unpercent(upload.key, true);
            int status = abort_upload(session, upload.key, upload.id);
            if (status == 404 && decoded && *decoded != upload.key) status = abort_upload(session, *decoded, upload.id);
            if (status / 100 == 2) ++swept;
        }
    } while (page.truncated);
    return swept;
}

// -- rules that the store applies by itself

inline constexpr std::string_view lifecycle_id = "s3cache";  // and the prefix: by it our rules are found again

inline void append_rule(std::string& out, const std::string& prefix, std::string_view what, std::string_view action) {
    out.append("  <Rule>\n    <ID>").append(lifecycle_id).append(" ").append(what).append(" ");
    xml::escape(out, prefix);
    out.append("</ID>\n    <Filter><Prefix>");
    xml::escape(out, prefix);
    out.append("</Prefix></Filter>\n    <Status>Enabled</Status>\n    ").append(action).append("\n  </Rule>\n");
}

inline std::string days(unsigned count) {
    std::string out;
    bytes::append_number(out, count);
    return out;
}

inline std::string lifecycle_rules(const Core& core, const Lifecycle& rules) {
    std::string out;
    if (rules.abort_uploads_after != 0) {
        append_rule(out, core.prefix, "uploads",
                    "<AbortIncompleteMultipartUpload><DaysAfterInitiation>" + days(rules.abort_uploads_after) +
                        "</DaysAfterInitiation></AbortIncompleteMultipartUpload>");
    }
    if (rules.expire_after != 0)
        append_rule(out, core.prefix, "entries",
                    "<Expiration><Days>" + days(rules.expire_after) + "</Days></Expiration>");
    return out;
}

inline std::string lifecycle_document(std::string_view rules) {
    std::string out = "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n";
    return out.append(rules).append("</LifecycleConfiguration>\n");
}

// The rules that others have made, as they stand. They go by as text: a rule holds more than we know of. Empty: it is no
// list of rules.
inline std::optional<std::string> foreign_rules(const Core& core, std::string_view document) {
    std::string kept;
    for (std::size_t at = 0; (at = document.find("<Rule>", at)) != std::string_view::npos;) {
        const std::size_t end = document.find("</Rule>", at);
        if (end == std::string_view::npos) return std::nullopt;
        const std::string_view rule = document.substr(at, end + 7 - at);
        std::string uploads = "<ID>", entries = "<ID>";
        xml::escape(uploads, "s3cache uploads " + core.prefix);
        xml::escape(entries, "s3cache entries " + core.prefix);
        const bool ours = rule.find(uploads + "</ID>") != std::string_view::npos ||
                          rule.find(entries + "</ID>") != std::string_view::npos;
        if (!ours) kept.append("  ").append(rule).append("\n");
        at = end;
    }
    if (kept.empty() && document.find("LifecycleConfiguration") == std::string_view::npos) return std::nullopt;
    return kept;
}

inline Call lifecycle_call(http::Method method) {
    Call call;
    call.operation = "install_lifecycle";
    call.method = method;
    call.query = "lifecycle=";
    return call;
}

// S3 replaces all rules of a bucket at once, so the others are read first and go along. Two who do this in the same
// moment may lose one's: it is a thing for setting up.
inline Result<void> install_lifecycle(Core& core, const Lifecycle& rules) {
    if (auto flaw = write_flaw(core, "install_lifecycle", {})) return *flaw;
    Session session(core);
    Call there = lifecycle_call(http::Method::get);
    session.run(there);
    const bool none = there.status() == 404 && there.code() == "NoSuchLifecycleConfiguration";
    if (!there.ok() && !none) return session.failure(there);
    const std::optional<std::string> others = none ? std::string() : foreign_rules(core, there.answer->text);
    if (!others)
        return refusal(Errc::protocol, "install_lifecycle", {},
                       "the store's rules cannot be read, and so are left as they are");
    const std::string all = *others + lifecycle_rules(core, rules);
    Call put = lifecycle_call(all.empty() ? http::Method::erase : http::Method::put);
    const std::string document = lifecycle_document(all);
    if (!all.empty()) {
        const auto md5 = digest::md5(document);
        put.body = {document, {}, document.size()};
        put.payload_hash = session.sha256_text(document);
        bytes::add(put.headers, "content-type", "application/xml");
        if (md5)
            bytes::add(put.headers, "content-md5", bytes::base64(digest::as_text(*md5)));
        else
            bytes::add(put.headers, "x-amz-checksum-sha256", bytes::base64(digest::as_text(digest::sha256(document))));
    }
    session.run(put);
    return put.ok() ? Result<void>() : Result<void>(session.failure(put));
}

// -- presigned URLs

inline Result<std::string> presign(Core& core, std::string_view key, std::string_view method, Seconds lifetime) {
    if (auto flaw = key_flaw(core, "presign", key)) return *flaw;
    const auto refuse = [&](Errc code, std::string_view text) { return refusal(code, "presign", key, text); };
    if (method != "GET" && method != "PUT") return refuse(Errc::invalid_argument, "the method is GET or PUT");
    if (!(lifetime.count() >= 1 && lifetime.count() <= sigv4::presign_seconds_max))
        return refuse(Errc::invalid_argument, "the lifetime is over 7 days, or under a second");
    const auto who = core.identity.snapshot({});
    if (!who) return refuse(who.error().code(), who.error().what());
    const Credentials& keys = (*who)->credentials;
    if (keys.access_key.empty()) return refuse(Errc::credentials, "an anonymous cache has nothing to sign with");
    const auto place = core.place();
    if (!place) return place.error();
    std::string path = (*place)->base_path + "/", date;
    bytes::append_percent(path, core.object(key), true);
    dates::append_amz_date(date,
                           std::chrono::duration_cast<std::chrono::seconds>(core.now().time_since_epoch()).count());
    const sigv4::Header host{"host", (*place)->host};
    const sigv4::Request request{method, path, {}, &host, 1, sigv4::unsigned_payload};
    sigv4::Signer signer;
    return (*place)->scheme + "://" + (*place)->host + path + "?" +
           signer.presign(request, {}, keys, {date, (*place)->signing_region, "s3"},
                          static_cast<std::uint32_t>(lifetime.count()));
}

// -- computed once

// Between two looks for another's value: doubles from the first to the most, with jitter.
inline constexpr std::chrono::milliseconds lease_poll_first{50};
inline constexpr std::chrono::milliseconds lease_poll_most{1000};
// Where the store does not honour conditions two may believe to have the lease. Whoever wrote last has it: that is looked
// at once the others' writes, which began before ours was to be seen, have had this time to arrive.
inline constexpr std::chrono::milliseconds lease_settles{300};

inline void pause(const Core& core, std::chrono::milliseconds time) {
    if (core.config.seams.sleep) return core.config.seams.sleep(time);
    std::this_thread::sleep_for(time);
}

// The right to compute a key, for a time: an entry beside the value, made only if there is none that has not lapsed.
class Lease {
public:
    Lease(Core& core, std::string_view key, Seconds time)
        : core_(core),
          name_(own_name("lease", bytes::hex(digest::as_text(digest::sha256(key))).substr(0, 32))),
          time_(time) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
        static_cast<void>(http::shielded([this] { return release(), true; }, false));  // it lapses by itself
    }

    enum class Held { ours, others, unknown };  // unknown: the store did not say, and computing must not wait for that
    // An error only where Config::conditions requires what the store does not do.
    Result<Held> take();
    void release();

private:
    bool settled(Session& session) const;

    Core& core_;
    const std::string name_;
    const Seconds time_;
    std::string write_id_;  // not empty: ours
};

inline Result<Lease::Held> Lease::take() {
    Session session(core_);
    SetOptions options;
    options.ttl = time_;
    options.if_absent = true;
    transfer::Target target = target_for(core_, name_, Kind::text, false, options);
    target.operation = "lease";
    if (target.ttl) target.ttl = time_;  // without jitter; it is empty for a lease that never lapses
    const ProgressCallback silent{};
    Meter meter(session, silent, std::nullopt);
    const std::string owner = random_id(core_);
    name_write(core_, target);
    const Result<bool> stored = set_whole(session, target, {owner, {}, owner.size()}, meter);
    const bool required = core_.config.conditions == Conditions::required;
    if (!stored && required && stored.error().code() == Errc::unsupported) return stored.error();
    if (!stored) return Held::unknown;
    if (!*stored) return Held::others;
    write_id_ = target.write_id;
    const bool in_doubt = core_.honours_put == Core::Trait::no || core_.config.conditions == Conditions::off;
    if (in_doubt && !settled(session)) {
        write_id_.clear();
        return Held::others;
    }
    return Held::ours;
}

inline bool Lease::settled(Session& session) const {
    pause(core_, lease_settles);
    const auto there = look(session, "lease", name_);
    return there && *there && (*there)->write_id == write_id_;
}

inline void Lease::release() {
    if (write_id_.empty()) return;
    Session session(core_);
    const auto there = look(session, "lease", name_);
    if (there && *there && (*there)->write_id == write_id_) erase_if_same(session, name_, (*there)->info.etag);
    write_id_.clear();
}

// One computation of a key's value by this process, with what was there before.
class Computation {
public:
    using Producer = std::function<Result<Produced>()>;
    // Told of a value that is still good while a new one is made.
    using Meanwhile = std::function<void(const Value&)>;

    Computation(Core& core, std::string_view key, const Producer& producer, const SetOptions& options,
                const ComputeOptions& how)
        : core_(core), key_(key), producer_(producer), options_(options), how_(how) {}

    Result<Value> run(const Meanwhile& meanwhile);

private:
    Result<Recalled> recalled() const;
    bool fresh(const Recalled& found) const { return found.value && !found.stale; }
    bool due_early() const;
    Result<std::optional<Value>> turn(Lease& lease);
    std::optional<Value> of_another(const Result<Recalled>& found) const;
    Result<Value> made();
    Result<Value> made_or_old();
    void store(const Produced& made, double seconds);

    Core& core_;
    const std::string_view key_;
    const Producer& producer_;
    const SetOptions& options_;
    const ComputeOptions& how_;
    Recalled before_{};
    bool early_ = false;
};

inline Result<Recalled> Computation::recalled() const {
    Ask ask;
    ask.grace = how_.stale_if_error;
    ask.leaves_expired = true;
    Result<Recalled> found = recall(core_, key_, ask);
    if (!found && found.error().code() == Errc::damaged) return Recalled();  // to be replaced by what is computed
    if (found || !core_.config.errors_are_misses) return found;
    if (!tolerated(core_, "get", key_, Result<std::optional<Value>>(found.error()))) return found;
    return Recalled();
}

// XFetch: the nearer the end, and the longer computing takes, the likelier; the draw is each caller's own.
inline bool Computation::due_early() const {
    if (!(how_.early_refresh > 0) || before_.expiry != entry::Expiry::at || !fresh(before_)) return false;
    const double ahead = before_.cost * how_.early_refresh * -std::log((std::max)(1 - core_.random(), 1e-300));
    return core_.unix_now() + ahead >= before_.expires_at;
}

inline Result<Value> Computation::run(const Meanwhile& meanwhile) {
    Result<Recalled> found = recalled();
    if (!found) return std::move(found).error();
    before_ = *std::move(found);
    early_ = due_early();
    if (fresh(before_) && !early_) return *std::move(before_.value);
    if (early_) {
        tell(core_, "get_or_set", key_, "early");
        meanwhile(*before_.value);
    }
    if (!(how_.lease.count() > 0) || core_.config.read_only) return made_or_old();
    Lease lease(core_, key_, how_.lease);
    Result<std::optional<Value>> others = turn(lease);
    if (!others) return std::move(others).error();
    return *others ? Result<Value>(**std::move(others)) : made_or_old();
}

// A value that came from another while we asked for the lease; none that we know already.
inline std::optional<Value> Computation::of_another(const Result<Recalled>& found) const {
    if (!found || !fresh(*found)) return std::nullopt;
    if (early_ && found->value->info().etag == before_.value->info().etag && found->expires_at <= before_.expires_at)
        return std::nullopt;
    return found->value;
}

// Waits until computing is ours (empty) or another's value is there. Patience ends, and then it is ours all the same.
inline Result<std::optional<Value>> Computation::turn(Lease& lease) {
    const Seconds patience = how_.lease_wait.count() > 0 ? how_.lease_wait : how_.lease;
    const auto cancels = core_.cancels.load();
    Seconds waited{0};
    for (auto wait = lease_poll_first;; wait = (std::min)(2 * wait, lease_poll_most)) {
        // After a wait the value is likelier there than the lease is free, and cheaper to ask for.
        std::optional<Value> value = waited.count() > 0 ? of_another(recalled()) : std::nullopt;
        Lease::Held held = Lease::Held::others;
        if (!value) {
            const Result<Lease::Held> took = lease.take();
            if (!took) return took.error();
            held = *took;
            if (held == Lease::Held::unknown) return std::optional<Value>();
            // Also before computing: the one before us may have stored its value between our look and our lease.
            if (held == Lease::Held::ours || waited.count() == 0) value = of_another(recalled());
        }
        if (value && (held == Lease::Held::others || waited.count() > 0)) {
            count(core_.counters.waited);
            tell(core_, "get_or_set", key_, "waited");
        }
        if (value || held == Lease::Held::ours) return value;
        if (early_) return before_.value;  // somebody is at it
        if (waited >= patience) return std::optional<Value>();
        if (core_.cancels.load() != cancels)
            return refusal(Errc::cancelled, "get_or_set", key_, "cancelled by Cache::cancel()");
        const auto time = std::chrono::milliseconds(
            static_cast<std::int64_t>(static_cast<double>(wait.count()) * (0.5 + core_.random() / 2)));
        pause(core_, time);
        waited += time;
    }
}

// If the producer fails, what was there before may do.
inline Result<Value> Computation::made_or_old() {
    Result<Value> value = made();
    if (value || !before_.value) return value;
    tell(core_, "get_or_set", key_, "stale", value.error().what());
    if (before_.stale) count(core_.counters.stale);
    return *std::move(before_.value);
}

inline Result<Value> Computation::made() {
    const TimePoint began = core_.local_now();
    count(core_.counters.computed);
    Result<Produced> made = producer_();
    if (!made) return about("get_or_set", key_, made.error());
    const double seconds = retry::seconds_between(began, core_.local_now());
    tell(core_, "get_or_set", key_, "computed");
    Payload payload(made->data);
    if (made->kind) payload = Payload(made->data.data(), made->data.size(), *made->kind);
    const Result<Kind> kind = payload_kind(key_, payload, options_);
    if (!kind) return kind.error();
    store(*made, seconds);
    Info info;
    info.size = made->data.size();
    info.negative = made->negative;
    info.kind = *kind;
    info.metadata = options_.metadata;
    return Value(std::move(made->data), *kind, std::move(info));
}

// The value is there, whatever becomes of storing it: a failure is counted and told as an event, not returned.
inline void Computation::store(const Produced& made, double seconds) {
    if (core_.config.read_only) return;
    SetOptions options = options_;
    if (made.negative && how_.negative_ttl) options.ttl = how_.negative_ttl;
    Payload payload(made.data);
    if (made.kind) payload = Payload(made.data.data(), made.data.size(), *made.kind);
    if (made.negative) payload = nothing();
    static_cast<void>(set(core_, key_, payload, options, how_.early_refresh > 0 ? (std::max)(seconds, 0.001) : 0));
}

inline std::optional<Error> compute_flaw(const Core& core, std::string_view key, const SetOptions& options,
                                         const ComputeOptions& how) {
    if (auto flaw = key_flaw(core, "get_or_set", key)) return flaw;
    if (!core.config.read_only) {
        if (auto flaw = set_flaw(core, key, options)) return flaw;
    }
    const bool fine = how.lease.count() >= 0 && how.lease_wait.count() >= 0 && how.early_refresh >= 0 &&
                      how.stale_if_error.count() >= 0 && (!how.negative_ttl || how.negative_ttl->count() > 0);
    if (fine) return std::nullopt;
    return refusal(Errc::invalid_argument, "get_or_set", key, "a time or factor of ComputeOptions is below zero");
}

using FlightLock = std::unique_lock<std::mutex>;

template <class List, class Key>
auto found(const List& list, const Key& key) -> decltype(&list.front().second) {
    for (const auto& entry : list) {
        if (entry.first == key) return &entry.second;
    }
    return nullptr;
}
template <class List, class Key>
void forget(List& list, const Key& key) {
    for (auto entry = list.begin(); entry != list.end(); ++entry) {
        if (entry->first == key) return static_cast<void>(list.erase(entry));
    }
}

// Whether the flight waits, through others perhaps, for one that this thread is to bring: nobody would ever land.
inline bool waits_for_us(const Core& core, const Core::Flight* flight) {
    while (flight->pilot != std::this_thread::get_id()) {
        const std::shared_ptr<Core::Flight>* next = found(core.waiting, flight->pilot);
        if (!next || (*next)->brought) return false;  // landed: that thread is about to go on
        flight = next->get();
    }
    return true;
}

// Another thread is at it: what it brings, or what is still good meanwhile.
inline Result<Value> landing(Core& core, std::string_view key, const std::shared_ptr<Core::Flight>& flight,
                             FlightLock& hold) {
    const auto cancels = core.cancels.load();
    const auto& meanwhile = flight->meanwhile;
    core.waiting.emplace_back(std::this_thread::get_id(), flight);
    std::optional<Result<Value>> out;
    while (!out) {
        if (flight->brought)
            out = *flight->brought;
        else if (meanwhile && (!meanwhile->info().expires_at || *meanwhile->info().expires_at > core.now()))
            out = *meanwhile;
        else if (core.cancels.load() != cancels)
            out = refusal(Errc::cancelled, "get_or_set", key, "cancelled by Cache::cancel()");
        else
            flight->landed.wait_for(hold, s3::tick);
    }
    forget(core.waiting, std::this_thread::get_id());
    if (flight->brought) count(core.counters.waited);
    return *std::move(out);
}

// The first who asks for a key flies; whoever asks meanwhile waits for what it brings.
inline Result<Value> compute(Core& core, std::string_view key, const std::function<Result<Produced>()>& producer,
                             const SetOptions& options, const ComputeOptions& how) {
    if (auto flaw = compute_flaw(core, key, options, how)) return *flaw;
    FlightLock hold(core.flights_lock);
    if (const std::shared_ptr<Core::Flight>* others = found(core.flights, key)) {
        if (waits_for_us(core, others->get()))
            return refusal(Errc::source, "get_or_set", key,
                           "the producer asks, itself or through others that wait, for what it is to produce");
        return landing(core, key, std::shared_ptr<Core::Flight>(*others), hold);
    }
    const std::shared_ptr<Core::Flight> flight = std::make_shared<Core::Flight>();
    core.flights.emplace_back(std::string(key), flight);
    hold.unlock();
    Result<Value> brought = never_throws([&] {
        return Computation(core, key, producer, options, how).run([&](const Value& meanwhile) {
            const FlightLock again(core.flights_lock);
            flight->meanwhile = meanwhile;
            flight->landed.notify_all();
        });
    });
    hold.lock();
    flight->brought = brought;
    forget(core.flights, key);
    flight->landed.notify_all();
    return brought;
}

// -- what a person wants to know when it does not work

inline Finding finding_of(const char* about, const Result<credentials::Setting>& found, std::string_view otherwise) {
    using Verdict = Finding::Verdict;
    if (!found) return {about, Verdict::broken, found.error().what()};
    if (found->value.empty()) return {about, Verdict::passed_over, std::string(otherwise)};
    return {about, Verdict::used, found->value + " (" + found->why + ")"};
}

inline std::vector<Finding> explain(Core& core) {
    using Verdict = Finding::Verdict;
    std::vector<Finding> out;
    if (core.config.credentials) {
        const auto got = ask_provider(core);
        out.push_back({"credentials: in code", got ? Verdict::used : Verdict::broken,
                       got ? credentials::summary(*got) : got.error().what()});
    } else {
        out = core.chain.explain();
    }
    out.push_back(finding_of("region", core.chain.region({}), "us-east-1 (none is configured)"));
    out.push_back(finding_of("endpoint", core.chain.endpoint_url(), "Amazon S3 (none is configured)"));
    const auto place = core.place();
    out.push_back(
        {"requests go to", place ? Verdict::used : Verdict::broken,
         place ? (*place)->url() + ", signed for " + (*place)->signing_region : std::string(place.error().what())});
    const auto offset = core.clock_offset_ms.load();
    std::string text = "as far as is known, agrees with the store's";
    if (offset != 0) {
        text = "this machine's is ";
        bytes::append_number(text, static_cast<std::uint64_t>(offset < 0 ? -offset : offset) / 1000);
        text += offset < 0 ? " s ahead of the store's" : " s behind the store's";
    }
    out.push_back({"clock", Verdict::used, std::move(text)});
    return out;
}

// -- opening

inline std::string config_flaw(const Config& config) {
    if (bytes::has_control(config.endpoint)) return "the endpoint holds control characters";
    const std::string metadata = entry::metadata_flaw(config.metadata);
    if (!metadata.empty()) return "Config::metadata: " + metadata;
    for (const std::string* value : {&config.server_side_encryption, &config.kms_key_id, &config.storage_class}) {
        if (*entry::value_flaw(*value)) return "'" + s3::printable(*value) + "' " + entry::value_flaw(*value);
    }
    if (config.connections < 1 || config.connections > 1000) return "Config::connections is not within 1 and 1000";
    if (config.attempts_max < 1) return "Config::attempts_max is under 1";
    if (!(config.ttl_jitter >= 0 && config.ttl_jitter < 1)) return "Config::ttl_jitter is not within 0 and 1";
    if (config.sliding_ttl && !(config.sliding_ttl->count() > 0)) return "Config::sliding_ttl must be over zero";
    if (!(config.sliding_interval.count() >= 0)) return "Config::sliding_interval is below zero";
    if (config.buffer_bytes != 0 &&
        (config.buffer_bytes < http::buffer_bytes_min || config.buffer_bytes > http::buffer_bytes_max))
        return "Config::buffer_bytes is not within 16 KiB and 512 KiB";
    if (config.part_bytes < 1 || config.transfer_bytes_max < 1)
        return "Config::part_bytes and transfer_bytes_max must be over zero";
    if (config.compression_level < 0 || config.compression_level > 9)
        return "Config::compression_level is not within 0 and 9";
    if (config.default_ttl && !(config.default_ttl->count() > 0)) return "Config::default_ttl must be over zero";
    for (const auto& time : {config.connect_timeout, config.stall_timeout, config.call_timeout, config.backoff_base,
                             config.backoff_cap, config.breaker_pause}) {
        if (time.count() < 0 || time > std::chrono::hours(24 * 20))
            return "a timeout of Config is negative or over 20 days";
    }
    return {};
}

// S3's own rule for the ends and the length; what is between them older buckets and other stores take more freely.
inline bool plausible_bucket(std::string_view name) {
    const auto fine = [](char c) { return bytes::is_alpha(c) || bytes::is_digit(c); };
    return name.size() >= 3 && fine(name.front()) && fine(name.back());
}

inline std::string environment(const Config& config, const char* name) {
    if (config.seams.environment) return config.seams.environment(name).value_or(std::string());
    const char* value = std::getenv(name);
    return value ? value : "";
}

// The file of certificates to trust, where the environment or the profile names one, or libcurl's own is not there.
inline std::string trusted(const Config& config) {
    std::string path = environment(config, "AWS_CA_BUNDLE");
    if (path.empty()) {
        credentials::Environment environment = credentials::real_environment({});
        if (config.seams.environment) environment.variable = config.seams.environment;
        path = credentials::Chain(std::move(environment), {config.profile, {}, {}}).profile_setting("ca_bundle");
    }
    if (path.empty()) path = environment(config, "SSL_CERT_FILE");
    return path.empty() ? http::find_ca_bundle() : path;
}

inline Result<std::shared_ptr<Core>> open(std::string_view where, Config config) {
    const auto refuse = [](const std::string& text) {
        return Error(Errc::invalid_argument, "open: " + s3::printable(text));
    };
    auto parsed = endpoint::parse_location(where);
    if (!parsed) return refuse(parsed.error().what());
    endpoint::Location& location = *parsed;
    if (!plausible_bucket(location.bucket)) return refuse("'" + location.bucket + "' is not the name of a bucket");
    if (!utf8::valid(location.prefix) || location.prefix.find('\0') != std::string::npos)
        return refuse("the prefix is not UTF-8");
    if (location.region) config.region = *location.region;
    if (location.endpoint_url) config.endpoint = *location.endpoint_url;
    if (location.path_style) config.addressing = *location.path_style ? Addressing::path : Addressing::virtual_host;
    const std::string flaw = config_flaw(config);
    if (!flaw.empty()) return refuse(flaw);
    if (config.ca_bundle.empty()) config.ca_bundle = trusted(config);
    const auto place =
        endpoint::resolve({location.bucket, config.region.empty() ? "us-east-1" : config.region, config.endpoint,
                           config.addressing, config.dual_stack, config.fips, config.accelerate});
    if (!place) return refuse(place.error().what());
    if (!http::library().ready) return Error(Errc::unsupported, "open: libcurl could not be initialised");
    return std::make_shared<Core>(std::move(config), std::move(location));
}

}  // namespace detail::ops

// --- the members declared above

namespace detail {

S3CACHE_FN Error about(const char* operation, std::string_view key, const Error& error) {
    return Error(error.details(), s3::about(operation, key, error.what()));
}

S3CACHE_FN Result<Produced> drained(const Source& source) {
    Produced out{{}, Kind::bytes};
    std::vector<char> piece(transfer::piece_bytes);
    transfer::Intake intake(source, std::nullopt);
    for (;;) {
        const Result<std::size_t> count = intake.read(piece.data(), piece.size());
        if (!count) return count.error();
        if (*count == 0) return out;
        out.data.append(piece.data(), *count);
    }
}

#if S3CACHE_EXCEPTIONS
// Lets code that wants a std::istream read a Reader. A thrown error becomes badbit, as of any stream buffer.
class ReaderBuffer : public std::streambuf {
public:
    explicit ReaderBuffer(ReaderState& state) : state_(state) {}

protected:
    int_type underflow() override {
        const std::string_view chunk = state_.next().value();
        if (chunk.empty()) return traits_type::eof();
        char* data = const_cast<char*>(chunk.data());  // never written to: there is no overflow() and no pbackfail()
        setg(data, data, data + chunk.size());
        return traits_type::to_int_type(*data);
    }

private:
    ReaderState& state_;
};
#endif

}  // namespace detail

S3CACHE_FN Source::Source(std::istream& in)
    : read_([&in](char* buffer, std::size_t capacity) {
          in.read(buffer, static_cast<std::streamsize>(capacity));
          const auto count = static_cast<std::size_t>(in.gcount());
          return count == 0 && (in.bad() || !in.eof()) ? source_failed : count;
      }) {}

S3CACHE_FN Source file(const std::string& path) {
    const std::shared_ptr<std::FILE> opened(detail::ops::open_file(path, "rb"), [](std::FILE* file) {
        if (file) static_cast<void>(std::fclose(file));
    });
    Source source([opened](char* buffer, std::size_t capacity) {
        if (!opened) return source_failed;
        const std::size_t count = std::fread(buffer, 1, capacity, opened.get());
        return count == 0 && std::ferror(opened.get()) ? source_failed : count;
    });
    const auto size = opened ? detail::ops::size_of(opened.get()) : std::nullopt;
    return size ? std::move(source).sized(*size) : source;
}

S3CACHE_FN Credentials::~Credentials() {
    detail::bytes::wipe(secret_key);
    detail::bytes::wipe(session_token);
}

S3CACHE_FN Reader::Reader(std::unique_ptr<detail::ReaderState> state) noexcept : state_(std::move(state)) {}
S3CACHE_FN Reader::Reader(Reader&&) noexcept = default;
S3CACHE_FN Reader& Reader::operator=(Reader&&) noexcept = default;
S3CACHE_FN Reader::~Reader() = default;
S3CACHE_FN const Info& Reader::info() const noexcept { return state_->incoming.facts().info; }

S3CACHE_FN Result<std::string_view> Reader::try_next() {
    return detail::ops::never_throws([&]() -> Result<std::string_view> {
        if (!state_->rest.empty()) return std::exchange(state_->rest, std::string_view());
        return state_->next();
    });
}

S3CACHE_FN Result<std::size_t> Reader::try_read(char* buffer, std::size_t capacity) {
    if (capacity == 0) return std::size_t{0};
    Result<std::string_view> chunk = try_next();
    if (!chunk) return std::move(chunk).error();
    const std::size_t count = chunk->copy(buffer, capacity);
    state_->rest = chunk->substr(count);
    return count;
}

#if S3CACHE_EXCEPTIONS
S3CACHE_FN std::istream& Reader::istream() {
    if (!state_->stream) {
        state_->stream_buffer = std::make_unique<detail::ReaderBuffer>(*state_);
        state_->stream = std::make_unique<std::istream>(state_->stream_buffer.get());
    }
    return *state_->stream;
}
#endif

S3CACHE_FN Listing::Listing(std::unique_ptr<detail::ListingState> state) noexcept : state_(std::move(state)) {}
S3CACHE_FN Listing::Listing(Listing&&) noexcept = default;
S3CACHE_FN Listing& Listing::operator=(Listing&&) noexcept = default;
S3CACHE_FN Listing::~Listing() = default;
S3CACHE_FN Result<std::optional<Entry>> Listing::try_next() {
    return detail::ops::never_throws([&] { return state_->next(); });
}

S3CACHE_FN Cache::Cache(std::shared_ptr<detail::Core> core) noexcept : core_(std::move(core)) {}
S3CACHE_FN Cache::Cache(Cache&&) noexcept = default;
S3CACHE_FN Cache& Cache::operator=(Cache&&) noexcept = default;
S3CACHE_FN Cache::~Cache() = default;

S3CACHE_FN Result<Cache> Cache::try_open(std::string_view where, Config config) {
    return detail::ops::never_throws([&]() -> Result<Cache> {
        Result<std::shared_ptr<detail::Core>> core = detail::ops::open(where, std::move(config));
        if (!core) return std::move(core).error();
        return Cache(*std::move(core));
    });
}
S3CACHE_FN Result<bool> Cache::try_set(std::string_view key, Payload payload, const SetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::set(*core_, key, payload, options); });
}
S3CACHE_FN Result<bool> Cache::try_set(std::string_view key, Source source, const SetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::set(*core_, key, source, options); });
}
S3CACHE_FN Result<bool> Cache::try_set_file(std::string_view key, const std::string& path, const SetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::set_file(*core_, key, path, options); });
}
S3CACHE_FN Result<std::optional<Value>> Cache::try_get(std::string_view key, const GetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::get(*core_, key, options); });
}
S3CACHE_FN Result<Revalidated> Cache::try_get_if_changed(std::string_view key, std::string_view etag) {
    return detail::ops::never_throws([&] { return detail::ops::get_if_changed(*core_, key, etag); });
}
S3CACHE_FN Result<std::optional<Reader>> Cache::try_get_stream(std::string_view key, const GetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::get_stream(core_, key, options); });
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_get_file(std::string_view key, const std::string& path,
                                                           const GetOptions& options) {
    return detail::ops::never_throws([&] { return detail::ops::get_file(core_, key, path, options); });
}
S3CACHE_FN Result<void> Cache::try_remove(std::string_view key) {
    return detail::ops::never_throws([&]() -> Result<void> {
        if (auto flaw = detail::ops::removal_flaw(*core_, key)) return *flaw;
        detail::s3::Session session(*core_);
        return detail::ops::remove(*core_, session, key);
    });
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_stat(std::string_view key) {
    return detail::ops::never_throws([&] { return detail::ops::stat(*core_, key); });
}
S3CACHE_FN Result<bool> Cache::try_contains(std::string_view key) {
    return try_stat(key).transform([](std::optional<Info>&& info) { return info.has_value(); });
}
S3CACHE_FN Result<bool> Cache::try_touch(std::string_view key, Seconds ttl) {
    return detail::ops::never_throws([&] { return detail::ops::touch(*core_, key, ttl); });
}
S3CACHE_FN Result<Listing> Cache::try_list(std::string_view prefix, Look look) {
    return detail::ops::never_throws([&]() -> Result<Listing> {
        auto state = std::make_unique<detail::ListingState>(core_, prefix, look);
        if (Result<void> fine = state->next_page(); !fine) return std::move(fine).error();
        return Listing(std::move(state));
    });
}
#ifdef S3CACHE_NO_MANY_KEYS
namespace detail {
inline Error without_many(const char* operation, std::string_view key) {
    return s3::refusal(Errc::unsupported, operation, key,
                       "this build is without operations on many keys (S3CACHE_NO_MANY_KEYS)");
}
}  // namespace detail
S3CACHE_FN Result<std::uint64_t> Cache::try_clear(std::string_view prefix) {
    return detail::without_many("clear", prefix);
}
S3CACHE_FN Result<std::uint64_t> Cache::try_purge_expired(std::string_view prefix) {
    return detail::without_many("purge_expired", prefix);
}
S3CACHE_FN void Cache::try_get_many(const std::vector<std::string>& keys, const Visit& visit) {
    for (const std::string& key : keys) visit(key, detail::without_many("get", key));
}
S3CACHE_FN std::vector<Result<bool>> Cache::try_set_many(const std::vector<Item>& items) {
    return std::vector<Result<bool>>(items.size(), detail::without_many("set", {}));
}
S3CACHE_FN std::vector<Result<void>> Cache::try_remove_many(const std::vector<std::string>& keys) {
    return std::vector<Result<void>>(keys.size(), detail::without_many("remove", {}));
}
#else
S3CACHE_FN Result<std::uint64_t> Cache::try_clear(std::string_view prefix) {
    return detail::ops::never_throws([&] { return detail::ops::clear(core_, prefix); });
}
S3CACHE_FN Result<std::uint64_t> Cache::try_purge_expired(std::string_view prefix) {
    return detail::ops::never_throws([&] { return detail::ops::purge_expired(core_, prefix); });
}
S3CACHE_FN void Cache::try_get_many(const std::vector<std::string>& keys, const Visit& visit) {
    detail::ops::get_many(*core_, keys, visit);
}
S3CACHE_FN std::vector<Result<bool>> Cache::try_set_many(const std::vector<Item>& items) {
    return detail::ops::set_many(*core_, items);
}
S3CACHE_FN std::vector<Result<void>> Cache::try_remove_many(const std::vector<std::string>& keys) {
    detail::s3::Session session(*core_);
    return detail::ops::remove_many(session, keys);
}
#endif
S3CACHE_FN Result<std::uint64_t> Cache::try_sweep_uploads(std::string_view prefix, Seconds older_than) {
    return detail::ops::never_throws([&] { return detail::ops::sweep_uploads(*core_, prefix, older_than); });
}
S3CACHE_FN Result<std::string> Cache::try_presign(std::string_view key, std::string_view method, Seconds lifetime) {
    return detail::ops::never_throws([&] { return detail::ops::presign(*core_, key, method, lifetime); });
}
S3CACHE_FN Result<Value> Cache::compute(std::string_view key, const std::function<Result<detail::Produced>()>& producer,
                                        const SetOptions& options, const ComputeOptions& how) {
    return detail::ops::never_throws([&] { return detail::ops::compute(*core_, key, producer, options, how); });
}

S3CACHE_FN std::string Cache::lifecycle_xml(const Lifecycle& rules) const {
    return detail::ops::lifecycle_document(detail::ops::lifecycle_rules(*core_, rules));
}
S3CACHE_FN Result<void> Cache::try_install_lifecycle(const Lifecycle& rules) {
    return detail::ops::never_throws([&] { return detail::ops::install_lifecycle(*core_, rules); });
}

S3CACHE_FN void Cache::cancel() noexcept { core_->cancels.fetch_add(1); }

S3CACHE_FN std::vector<Finding> Cache::explain() { return detail::ops::explain(*core_); }

S3CACHE_FN Stats Cache::stats() const {
    const detail::Core::Counters& from = core_->counters;
    const auto read = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
    Stats out;
    out.hits = read(from.hits);
    out.misses = read(from.misses);
    out.expired = read(from.expired);
    out.malformed = read(from.malformed);
    out.damaged = read(from.damaged);
    out.errors = read(from.errors);
    out.unchanged = read(from.unchanged);
    out.tolerated = read(from.tolerated);
    out.unavailable = read(from.unavailable);
    out.computed = read(from.computed);
    out.waited = read(from.waited);
    out.stale = read(from.stale);
    out.unconditional = read(from.unconditional);
    out.sets = read(from.sets);
    out.removes = read(from.removes);
    out.refused = read(from.refused);
    out.requests = read(from.requests);
    out.retries = read(from.retries);
    out.connections = read(from.connections);
    out.leftover_uploads = read(from.leftover_uploads);
    out.bytes_in = read(from.bytes_in);
    out.bytes_out = read(from.bytes_out);
    return out;
}

}  // namespace S3CACHE_ABI
}  // namespace s3cache

#endif  // IMPLEMENTATION

// MIT License
//
// Copyright (c) 2026 s3cache contributors
//
// Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
// documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
// rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
// persons to whom the Software is furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
// Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
// WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
// COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
// OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
