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
// Stored as  an S3 object named by the key; the TTL lies in its metadata (`expires_at`, unix time in seconds), so that
//            an entry set here is read by the Python class S3Cache and the other way round.
// Errors     a miss is not an error. Every operation comes twice: `get` throws s3cache::Error, `try_get` returns
//            Result<...> and never throws. With -fno-exceptions only the try_ forms exist. Those on many keys come
//            once, give a Result for each key, and never throw.
// Threads    one Cache may be used from any number of threads at once. A Reader, a Listing and a Source belong to one
//            thread at a time. Every operation blocks until it is done. No thread is ever started.
// Never      prints, aborts, installs a handler, follows a redirect, turns TLS verification off, reads ~/.netrc, or
//            needs an init or shutdown call.
//
// Modes      default: include this file anywhere and link. To keep libcurl, OpenSSL and zlib out of all files but one:
//              S3CACHE_DECLARATIONS_ONLY   define globally (on the command line of every file)
//              S3CACHE_IMPLEMENTATION      define in one .cpp, before the include: the functions are compiled there
// Leave out  define globally; a call that needs what was left out returns Errc::unsupported, no type changes:
//              S3CACHE_NO_GZIP, S3CACHE_NO_CREDENTIAL_CHAIN
//
// Contents   public half: version, errors, values, options, Cache
//            then, behind the line: utf8 bytes json dates digest gzip xml ini endpoint sigv4 (pure)
//            and http retry credentials entry s3 transfer cache (I/O); each section uses only those above it
//
// Licence    MIT, see the end of this file.

#ifndef S3CACHE_HPP
#define S3CACHE_HPP

#if __cplusplus < 201703L && (!defined(_MSVC_LANG) || _MSVC_LANG < 201703L)
#error "s3cache.hpp needs C++17 or later: compile with -std=c++17"
#endif

// --- mode, version ---------------------------------------------------------------------------------------------------

#define S3CACHE_VERSION "0.1.0"
#define S3CACHE_VERSION_NUMBER 100  // 10000 * first + 100 * second + third

// The inline namespace names the version and everything that is compiled differently, so that files of two kinds fail
// to link instead of sharing a type whose layout differs, or the functions of whichever comes first.
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define S3CACHE_EXCEPTIONS 1
#define S3CACHE_ABI_THROWS
#else
#define S3CACHE_EXCEPTIONS 0
#define S3CACHE_ABI_THROWS _noexcept
#endif
#if defined(S3CACHE_DECLARATIONS_ONLY)
#define S3CACHE_FN  // compiled once, beside S3CACHE_IMPLEMENTATION
#define S3CACHE_ABI_MODE _split
#else
#define S3CACHE_FN inline
#define S3CACHE_ABI_MODE
#endif
#if defined(S3CACHE_NO_GZIP)
#define S3CACHE_ABI_GZIP _nogzip
#else
#define S3CACHE_ABI_GZIP
#endif
#if defined(S3CACHE_NO_CREDENTIAL_CHAIN)
#define S3CACHE_ABI_CHAIN _nochain
#else
#define S3CACHE_ABI_CHAIN
#endif
#define S3CACHE_JOIN(a, b, c, d, e) a##b##c##d##e
#define S3CACHE_NAME(a, b, c, d, e) S3CACHE_JOIN(a, b, c, d, e)
#define S3CACHE_ABI S3CACHE_NAME(v0_1_0, S3CACHE_ABI_MODE, S3CACHE_ABI_THROWS, S3CACHE_ABI_GZIP, S3CACHE_ABI_CHAIN)

#include <chrono>       // TTLs, timeouts, time points
#include <cstddef>      // std::size_t, std::byte
#include <cstdint>      // 64-bit sizes on every platform
#include <cstdlib>      // std::abort, for value() of an error where there are no exceptions
#include <exception>    // what a callback threw, kept for the throwing forms
#include <functional>   // hooks, sources
#include <iosfwd>       // std::istream by name only
#include <memory>       // the pimpls
#include <new>          // a Result's value
#include <optional>     // a miss
#include <stdexcept>    // the base of Error
#include <string>       // values, keys; and the tags of iterators, for which <iterator> would bring all stream buffers
#include <string_view>  // what is only looked at
#include <type_traits>  // constraints of Payload, Source and codec
#include <utility>      // std::move
#include <vector>       // metadata, many keys

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
    network,      // name resolution, connection, reset, response cut short
    tls,          // the certificate is not trusted, or no common protocol
    throttled,    // the store asked to slow down, and still did after the retries
    store,        // any other error status of the store
    protocol,     // the response is not a valid S3 response: not XML, too large, out of its own rules
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
class Error : public std::runtime_error {
public:
    struct Details {
        Errc code = Errc::invalid_argument;
        int status = 0;            // HTTP status; 0 if there was no response
        std::string s3_code{};     // such as SlowDown; the status number if the store named none
        std::string s3_message{};  // the store's own words
        std::string request_id{};  // x-amz-request-id, and x-amz-id-2 after a blank
        int attempts = 0;          // requests sent
        bool retryable = false;    // whether the same call may succeed later
#if S3CACHE_EXCEPTIONS
        std::exception_ptr cause{};  // what a Source, producer or codec threw; the throwing forms throw that instead
#endif
    };

    Error(Errc code, const std::string& message) : Error(Details{code}, message) {}
    Error(Details details, const std::string& message)
        : std::runtime_error(message), details_(std::make_shared<const Details>(std::move(details))) {}

    Error(const Error&) noexcept = default;  // and no moving, which would leave one without details
    Error& operator=(const Error&) noexcept = default;

    Errc code() const noexcept { return details_->code; }
    int status() const noexcept { return details_->status; }
    const std::string& s3_code() const noexcept { return details_->s3_code; }
    const std::string& s3_message() const noexcept { return details_->s3_message; }
    const std::string& request_id() const noexcept { return details_->request_id; }
    int attempts() const noexcept { return details_->attempts; }
    bool retryable() const noexcept { return details_->retryable; }
    const Details& details() const noexcept { return *details_; }

private:
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

// What a Result is beside its value.
class ResultBase {
public:
    using error_type = Error;

    bool has_value() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return has_value(); }

    Error& error() & noexcept { return *error_; }
    const Error& error() const& noexcept { return *error_; }
    Error&& error() && noexcept { return *std::move(error_); }

protected:
    ResultBase() noexcept = default;
    ResultBase(Error error) : error_(std::move(error)) {}
    void check() const {
        if (error_) raise(*error_);
    }

private:
    std::optional<Error> error_;
};
}  // namespace detail

// A value or an Error, with the members of std::expected. value() of an error throws it (without exceptions: aborts).
template <class T>
class [[nodiscard]] Result : public detail::ResultBase {
public:
    using value_type = T;

    Result(T value) : value_(std::move(value)) {}
    Result(Error error) : ResultBase(std::move(error)) {}
    Result(const Result& other) : ResultBase(other) {
        if (has_value()) new (&value_) T(other.value_);
    }
    Result(Result&& other) noexcept : ResultBase(std::move(other)) {
        if (has_value()) new (&value_) T(std::move(other.value_));
    }
    Result& operator=(Result other) noexcept {
        if (has_value()) value_.~T();
        ResultBase::operator=(std::move(other));
        if (has_value()) new (&value_) T(std::move(other.value_));
        return *this;
    }
    ~Result() {
        if (has_value()) value_.~T();
    }

    T& value() & { return check(), value_; }
    const T& value() const& { return check(), value_; }
    T&& value() && { return check(), std::move(value_); }

    T& operator*() & noexcept { return value_; }
    const T& operator*() const& noexcept { return value_; }
    T&& operator*() && noexcept { return std::move(value_); }
    T* operator->() noexcept { return &value_; }
    const T* operator->() const noexcept { return &value_; }

    T value_or(T otherwise) const& { return has_value() ? **this : std::move(otherwise); }
    T value_or(T otherwise) && { return has_value() ? *std::move(*this) : std::move(otherwise); }
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
    union {
        T value_;  // there where no error is; std::optional and std::variant take much longer to compile
    };
};

template <>
class [[nodiscard]] Result<void> : public detail::ResultBase {
public:
    using value_type = void;

    Result() noexcept = default;
    Result(Error error) : ResultBase(std::move(error)) {}

    void value() const { check(); }
};

// --- values ----------------------------------------------------------------------------------------------------------

enum class Kind { json, text, bytes };

// Names without `x-amz-meta-`, lower case on reading.
using Metadata = std::vector<std::pair<std::string, std::string>>;

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
    Value(std::string data, Kind kind, Info info = {}) : data_(std::move(data)), kind_(kind), info_(std::move(info)) {}

    Kind kind() const noexcept { return kind_; }
    const std::string& str() const& noexcept { return data_; }
    std::string str() && noexcept { return std::move(data_); }
    std::string_view view() const noexcept { return data_; }
    const std::byte* data() const noexcept { return reinterpret_cast<const std::byte*>(data_.data()); }
    std::size_t size() const noexcept { return data_.size(); }
    const Info& info() const noexcept { return info_; }
    // The entry says that there is nothing (see nothing()). Its JSON is then `null`, which Python reads as None.
    bool negative() const noexcept { return info_.negative; }

private:
    std::string data_;
    Kind kind_;
    Info info_;
};

namespace detail {
inline const void* octets(const char* data) { return data; }
inline const void* octets(const unsigned char* data) { return data; }
inline const void* octets(const std::byte* data) { return data; }
// Containers of bytes that lie in one piece: vector, array and span of char, unsigned char or std::byte.
template <class T>
using IfBytes = std::enable_if_t<!std::is_convertible_v<const T&, std::string_view>,
                                 decltype(octets(std::declval<const T&>().data()), std::declval<const T&>().size())>;
}  // namespace detail

// A negative entry: "it was looked up, and there is nothing". A hit whose Value is negative(), and so no miss.
struct Nothing {};
inline Nothing nothing() { return {}; }

// What set() stores. Borrows: the data must live until the call returns; nothing is copied. A temporary string is kept.
class Payload {
public:
    Payload(const char* text) : data_(text ? text : ""), present_(text != nullptr) {}
    Payload(const std::string& text) : data_(text) {}
    Payload(std::string&& text) : kept_(std::make_shared<const std::string>(std::move(text))), data_(*kept_) {}
    Payload(std::string_view text) : data_(text) {}
    Payload(Nothing) : data_("null"), kind_(Kind::json), negative_(true) {}
    Payload(const Value& value) : data_(value.view()), kind_(value.kind()), negative_(value.negative()) {}
    template <class Bytes, class = detail::IfBytes<Bytes>>
    Payload(const Bytes& bytes) : Payload(bytes.data(), bytes.size(), Kind::bytes) {}
    Payload(const void* data, std::size_t size, Kind kind)
        : data_(size && data ? static_cast<const char*>(data) : "", data ? size : 0),
          kind_(kind),
          present_(data || !size) {}
    Payload(Payload data, Kind kind) : Payload(std::move(data)) { kind_ = kind; }

    std::string_view view() const noexcept { return data_; }
    std::optional<Kind> kind() const noexcept { return kind_; }  // empty: text, or bytes if it is not UTF-8
    bool present() const noexcept { return present_; }           // false: made from a null pointer, refused by set()
    bool negative() const noexcept { return negative_; }         // nothing()

private:
    std::shared_ptr<const std::string> kept_;
    std::string_view data_;
    std::optional<Kind> kind_;
    bool present_ = true;
    bool negative_ = false;
};

// One made of a string literal, which outlives every call: a producer may return it.
struct Literal : Payload {
    using Payload::Payload;
};

// JSON text. Refused by set() with Errc::invalid_argument unless Python's json.loads would take it.
template <class Text>
auto json(Text&& text) {
    using Plain = std::remove_reference_t<Text>;
    constexpr bool is_literal = std::is_array_v<Plain> && std::is_const_v<std::remove_extent_t<Plain>>;
    return std::conditional_t<is_literal, Literal, Payload>(Payload(std::forward<Text>(text)), Kind::json);
}
inline Payload bytes(const void* data, std::size_t size) { return {data, size, Kind::bytes}; }

// What a Source's callable returns to say that it failed; the upload is then aborted and nothing is stored.
inline constexpr std::size_t source_failed = static_cast<std::size_t>(-1);

// A stream for set(): read once, from front to end. An lvalue stream or callable is borrowed, an rvalue is kept.
class Source {
public:
    using Read = std::function<std::size_t(char* buffer, std::size_t capacity)>;  // 0 at the end

    Source(std::istream& in);
    template <class Stream, std::enable_if_t<std::is_base_of_v<std::istream, Stream>, int> = 0>
    Source(Stream&& in) {  // lvalues match the constructor above
        auto held = std::make_shared<Stream>(std::move(in));
        read_ = [held, inner = Source(static_cast<std::istream&>(*held))](char* buffer, std::size_t capacity) {
            return inner.read(buffer, capacity);
        };
    }
    template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Source> &&
                                                std::is_invocable_r_v<std::size_t, F&, char*, std::size_t>>>
    Source(F&& read) {
        if constexpr (std::is_lvalue_reference_v<F>)
            read_ = std::ref(read);
        else  // std::function wants a copy constructor, which a lambda that owns its stream lacks
            read_ = [held = std::make_shared<F>(std::move(read))](char* to, std::size_t most) {
                return (*held)(to, most);
            };
    }

    // Announces the length in bytes: parts are then cut to fit, and a source that gives more or less is an error.
    Source sized(std::uint64_t bytes) && {
        size_ = bytes;
        return std::move(*this);
    }
    std::optional<std::uint64_t> size() const noexcept { return size_; }
    std::size_t read(char* buffer, std::size_t capacity) const { return read_(buffer, capacity); }

private:
    Read read_;
    std::optional<std::uint64_t> size_;
};

// The file's bytes. A file that cannot be read fails the set() with Errc::source.
Source file(const std::string& path);

// The concatenation of a range of string-likes, which must outlive the call.
template <class Iterator>
Source chunks(Iterator first, Iterator last) {
    static_assert(
        std::is_reference_v<decltype(*first)> || !std::is_same_v<std::decay_t<decltype(*first)>, std::string>,
        "chunks(): this iterator makes a new std::string each time, which nobody keeps: keep them in a container");
    // The iterator moves on only when its piece is used up, since some (istream_iterator) keep the piece themselves.
    return [first, last, taken = std::size_t{0}](char* buffer, std::size_t capacity) mutable -> std::size_t {
        for (; first != last; ++first, taken = 0) {
            const std::string_view piece(*first);
            const std::size_t count = piece.substr(taken).copy(buffer, capacity);
            taken += count;
            if (count) return count;
        }
        return 0;
    };
}

namespace detail {
// Walks a Reader or a Listing by its try_next(). Throws what that returns as an error.
template <class Range, class Item>
class Iterator {
public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Item;
    using difference_type = std::ptrdiff_t;
    using pointer = const Item*;
    using reference = const Item&;

    Iterator() = default;
    explicit Iterator(Range& range) : range_(&range) { ++*this; }
    reference operator*() const { return *item_; }
    pointer operator->() const { return &*item_; }
    Iterator& operator++() {
        auto next = range_->try_next().value();
        if constexpr (std::is_same_v<decltype(next), Item>)  // text, whose end is an empty one
            item_ = next.empty() ? std::optional<Item>() : next;
        else
            item_ = std::move(next);
        if (!item_) range_ = nullptr;
        return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.range_ == b.range_; }
    friend bool operator!=(const Iterator& a, const Iterator& b) { return !(a == b); }

private:
    Range* range_ = nullptr;
    std::optional<Item> item_{};
};
}  // namespace detail

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

    using Iterator = detail::Iterator<Reader, std::string_view>;
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
// What set() takes through codec<T>, or refuses.
template <class T>
struct is_object : std::bool_constant<has_codec<T>::value ||
                                      !(std::is_convertible_v<const T&, Payload> || std::is_convertible_v<T, Source>)> {
};
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_result = false;
template <class T>
inline constexpr bool is_result<Result<T>> = true;

// Calls what the user gave us. An exception becomes an Error that carries it, so that the throwing forms can rethrow
// it.
template <class F>
auto guarded(F&& call, const char* who) -> std::decay_t<decltype(call())> {
#if S3CACHE_EXCEPTIONS
    Error::Details details{Errc::source};
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
Result<T> decoded(const Value& value) {
    if constexpr (std::is_same_v<T, Value>) {
        return value;
    } else if constexpr (is_optional<T>) {
        if (value.negative()) return T();
        return decoded<typename T::value_type>(value).transform([](auto&& inner) { return T(std::move(inner)); });
    } else {
        static_assert(has_codec<T>::value || std::is_same_v<T, std::string>,
                      "get<T>(): specialise s3cache::codec<T> for this type");
        if (value.negative())
            return Error(Errc::source, "the entry says that there is nothing: get an optional of the type");
        if constexpr (has_codec<T>::value)
            return guarded([&]() -> Result<T> { return codec<T>::decode(value.view()); }, "codec::decode");
        else
            return value.str();
    }
}

template <class T>
Result<std::string> encode(const T& value) {
    return guarded([&]() -> Result<std::string> { return codec<T>::encode(value); }, "codec::encode");
}

// A producer's result, owned: what get_or_set stores and returns.
struct Produced {
    std::string data;
    std::optional<Kind> kind;  // empty: text, or bytes if it is not UTF-8
    bool negative = false;
};

Result<Produced> drain(const Source& source);                                  // the whole source in memory
Error about(const char* operation, std::string_view key, const Error& error);  // the same, naming operation and key

template <class R>
Result<Produced> produced(R&& result) {
    using T = std::decay_t<R>;
    if constexpr (is_result<T> || is_optional<T>) {
        if (result) return produced(*std::forward<R>(result));
        if constexpr (is_result<T>)
            return std::forward<R>(result).error();
        else
            return Produced{"null", Kind::json, true};
    } else if constexpr (std::is_same_v<T, std::string>) {
        return Produced{std::forward<R>(result), {}};
    } else if constexpr (has_codec<T>::value) {
        return encode(result).transform([](std::string&& data) { return Produced{std::move(data), codec<T>::kind}; });
    } else if constexpr (std::is_convertible_v<R, Payload>) {
        static_assert(
            !std::is_same_v<T, Payload> && !std::is_same_v<T, std::string_view>,
            "the producer's json(), bytes() or string_view only borrows data that is gone when it returns: return "
            "a std::string, a container of bytes, or s3cache::Value(std::string, s3cache::Kind::json)");
        const Payload payload = result;
        if (!payload.present()) return Error(Errc::source, "the producer returned a null pointer");
        return Produced{std::string(payload.view()), payload.kind(), payload.negative()};
    } else if constexpr (std::is_convertible_v<R, Source>) {
        return drain(Source(std::forward<R>(result)));
    } else {
        static_assert(
            has_codec<T>::value,
            "get_or_set(): the producer returns no text, bytes, Value, Source, nothing() or type with a codec");
    }
}

template <class F, class = void>
struct is_producer : std::false_type {};
template <class F>
struct is_producer<F, std::enable_if_t<!std::is_void_v<std::invoke_result_t<F&>>>> : std::true_type {};
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
    CredentialsProvider() = default;
    CredentialsProvider(Credentials fixed) : get_([fixed = std::move(fixed)] { return Result<Credentials>(fixed); }) {}
    // Called from the thread that needs them, one call at a time; again when `expires` draws near. An empty function is
    // a mistake, and does not silently stand for the chain.
    template <class F, class = std::enable_if_t<std::is_invocable_r_v<Result<Credentials>, F&>>>
    CredentialsProvider(F get) : get_(std::move(get)) {
        if (!get_) get_ = [] { return Error(Errc::credentials, "the provider is an empty function"); };
    }

    explicit operator bool() const noexcept { return static_cast<bool>(get_); }
    Result<Credentials> operator()() const { return get_(); }

private:
    std::function<Result<Credentials>()> get_;
};

// Requests go out unsigned: for public buckets.
inline CredentialsProvider anonymous() { return Credentials{{}, {}, {}, {}, "anonymous"}; }

enum class Addressing { automatic, path, virtual_host };
enum class Expired { remove, keep };                 // what get() does with an expired entry it came upon
enum class MetadataNames { underscore, hyphen };     // expires_at, which Python reads, or expires-at
enum class Conditions { automatic, required, off };  // if_absent and if_match: see Config::conditions
// own: a CRC-32C in metadata, written where the body is known before it goes up, and checked. store: that, and the
// store's own x-amz-checksum-*, sent and checked. none: lengths and gzip's sums alone.
enum class Checksums { own, store, none };

struct Progress {
    std::uint64_t done = 0;                // payload bytes so far, as they go over the wire
    std::optional<std::uint64_t> total{};  // empty: not known
};
// False cancels. Called some ten times a second; must not throw.
using ProgressCallback = std::function<bool(const Progress&)>;

struct SetOptions {
    std::optional<Seconds> ttl{};  // empty: Config::default_ttl; `forever`: never expires; else over zero
    bool compress = false;         // gzip
    bool if_absent = false;        // store only if there is nothing under the key
    std::string if_match{};        // store only over the entry with this ETag
    Metadata metadata{};           // the user's own; names of letters, digits, - and _, values of printable ASCII
    std::string content_type{};    // empty: by kind
    std::optional<Kind> kind{};    // of a Source, whose bytes are taken at the caller's word; empty: bytes
    ProgressCallback progress{};
    std::optional<std::chrono::milliseconds> timeout{};  // of this call; empty: Config::call_timeout
};

struct GetOptions {
    ProgressCallback progress{};                         // of a Reader, while it is read
    std::optional<std::chrono::milliseconds> timeout{};  // of this call; empty: Config::call_timeout
};

// How get_or_set deals with many callers, failures and the end of an entry's time. All is off by default.
struct ComputeOptions {
    // Over zero: one producer at a time among all processes and machines. A small entry beside the value is held by who
    // computes; it lapses after this long, so that a crash blocks nobody beyond that, and a producer that takes longer
    // may run twice. Not under some five seconds: the store tells times in whole ones. Needs the store to honour write
    // conditions, or else is a best effort (see Config::conditions).
    Seconds lease{0};
    Seconds lease_wait{0};  // for another's value before it is computed here after all; zero: `lease`
    // Over zero: an entry is computed anew before it expires, by one caller drawn at random while the others go on with
    // what there is; the longer computing takes the earlier. 1 is usual, more is earlier. (XFetch: Vattani et al.
    // 2015.)
    double early_refresh = 0;
    Seconds stale_if_error{0};  // over zero: if the producer fails, an entry expired no longer than this is returned
    std::optional<Seconds> negative_ttl{};  // of an entry that says "nothing"; empty: SetOptions::ttl
};

// One attempt of one request, or the outcome of one operation (`attempt` 0). The views live during the callback only.
struct Event {
    std::string_view operation{};  // such as get, set, abort_upload
    std::string_view key{};
    // hit miss expired unchanged done refused retry error damaged malformed leftover; and what was made of it:
    // tolerated
    // (an error reported as a miss) unconditional (the store does not honour conditions) stale early computed waited
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
    bool dual_stack = false, fips = false, accelerate = false;  // AWS's other endpoints
    CredentialsProvider credentials{};
    std::string profile{};  // of the AWS configuration files; empty: AWS_PROFILE, else default

    // what
    std::optional<Seconds> default_ttl{};  // empty: never expires
    double ttl_jitter = 0;  // in [0, 1): each TTL is cut by up to this share, so that not all end at once
    Expired expired = Expired::remove;
    MetadataNames metadata_names = MetadataNames::underscore;  // hyphen: where a proxy drops names with an underscore
    Metadata metadata{};                                       // put on every entry
    std::string server_side_encryption{}, kms_key_id{};        // such as AES256 or aws:kms; empty: the bucket's
    std::string storage_class{};                               // empty: STANDARD
    std::uint64_t value_bytes_max = std::uint64_t{1} << 30U;   // get() refuses more, compressed or not
    Checksums checksums = Checksums::own;
    // Some stores ignore If-Match and If-None-Match without a word. The first conditional write finds out, on a scratch
    // key. automatic: a look before the write then has to do, which leaves the time between the two (counted in
    // stats().unconditional); required: such a write is Errc::unsupported; off: only the look, ever.
    Conditions conditions = Conditions::automatic;
    bool read_only = false;          // what writes is Errc::read_only; get_or_set computes and does not store
    bool unsigned_payload = false;   // over https: bodies are not hashed, which saves 0.6 ms a MiB
    bool forbidden_is_miss = false;  // 403 to get and stat is a miss: for callers without s3:ListBucket
    // Errors of get, get_stream, get_file, get_many, stat and contains are reported as misses, counted in
    // stats().tolerated. Wrong arguments and a cancellation stay errors.
    bool errors_are_misses = false;

    // how long: zero is no limit
    std::chrono::milliseconds connect_timeout{3000};  // name resolution, TCP and TLS
    std::chrono::milliseconds stall_timeout{20000};   // without a byte, either way
    // A whole call with all its attempts; of get_stream the opening, of get_or_set, clear and purge_expired each step.
    // What cleans up after it takes 0.5 s more at most.
    std::chrono::milliseconds call_timeout{0};
    int attempts_max = 3;
    std::chrono::milliseconds backoff_base{50}, backoff_cap{5000};  // the n-th wait is random in [0, base * 2^n]
    // After so many calls in a row that failed for the network's or the store's fault all others are Errc::unavailable
    // at once; after the pause one is let through to try. A miss is a success here. Zero: never.
    unsigned breaker_failures = 0;
    std::chrono::milliseconds breaker_pause{10000};

    // how much
    std::size_t part_bytes = std::size_t{8} << 20;  // of uploads in parts and ranged downloads; grows when it must
    std::size_t transfer_bytes_max = std::size_t{64} << 20;  // of one transfer's buffers: parts in flight
    unsigned connections = 8;                                // of one call at once: parts, ranges, many keys
    int compression_level = 6;                               // zlib's

    // the network
    std::string ca_bundle{};  // PEM file; empty: AWS_CA_BUNDLE, the profile's, SSL_CERT_FILE, libcurl's, the system's
    std::string client_certificate{}, client_key{};  // PEM files
    std::string proxy{};                             // empty: the environment's, as libcurl reads it
    std::function<void(void* curl)> setup_curl{};    // on each CURL* after our options, as often as these are set

    // seen from outside
    std::function<TimePoint()> clock{};            // local time; empty: std::chrono::system_clock
    std::function<void(const Event&)> on_event{};  // from the calling thread; must not throw or call the Cache
    Seams seams{};
};

// Settings for a machine with little memory: one connection, small buffers, parts of the least size that S3 takes.
// About 50 KiB of heap for a small get or set beside TLS's own; a stream takes one part of 5 MiB. The buffers are small
// wherever `connections` is 1 and `transfer_bytes_max` at most 5 MiB.
inline Config small_memory() {
    Config config;
    config.part_bytes = config.transfer_bytes_max = std::size_t{5} << 20;
    config.connections = 1;
    config.value_bytes_max = std::uint64_t{16} << 20;
    return config;
}

struct Stats {
    // Every get that was no hit is a miss; `expired` and `malformed` tell how many of those lay there all the same.
    std::uint64_t hits = 0, misses = 0, expired = 0, malformed = 0, damaged = 0, errors = 0;
    std::uint64_t unchanged = 0;                        // get_if_changed; neither hits nor misses
    std::uint64_t tolerated = 0;                        // errors reported as misses: Config::errors_are_misses
    std::uint64_t unavailable = 0;                      // calls that the breaker kept back
    std::uint64_t computed = 0, waited = 0, stale = 0;  // get_or_set: producers run, others' values, expired ones
    std::uint64_t sets = 0, removes = 0, refused = 0;   // refused: a write condition was not met
    std::uint64_t unconditional = 0;                    // conditional writes that the store could not vouch for
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

    using Iterator = detail::Iterator<Listing, Entry>;
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

// One line of what Cache::explain() found; never a secret.
struct Finding {
    enum class Verdict { used, passed_over, broken, not_asked };
    std::string about;  // such as "credentials: environment", "region", "endpoint", "clock"
    Verdict verdict = Verdict::not_asked;
    std::string text;
};

// A bucket as a cache. Movable; thread-safe; cheap to make: nothing is sent before the first operation. What every
// operation has in common:
//   key      1 to 1024 bytes of UTF-8 without NUL, the prefix included; anything else is Errc::invalid_argument
//   expired  an entry past its `expires_at`, by the local clock, counts as absent
//   blocks   until done, or until Config's timeouts and attempts are used up
//   errors   try_ forms and those on many keys return them, the others throw the same Error (or what the caller's own
//            callback threw)
class Cache {
public:
    using Key = std::string_view;

    // `where`: "bucket", or "s3://bucket/prefix?region=...&endpoint=...&path_style=true&metadata_names=hyphen". What
    // the
    // URL says goes before `config`. Sends nothing; a malformed bucket, region or endpoint is Errc::invalid_argument.
    static Result<Cache> try_open(std::string_view where, Config config = {});

    Cache(Cache&&) noexcept;
    Cache& operator=(Cache&&) noexcept;
    ~Cache();

    // Stores the payload under the key, replacing what was there at one stroke: readers see the old value or the new.
    // False only if a write condition of the options was not met. On an error what was stored before stays; the one
    // exception is a response that got lost (Errc::network, timed_out): then either value may be there.
    Result<bool> try_set(Key key, Payload payload, const SetOptions& options = {});
    // The same from a stream of any length: one PUT if it fits Config::part_bytes, else in parts. Memory is bounded by
    // Config::transfer_bytes_max. If the source fails or throws, nothing is stored and nothing is left behind.
    Result<bool> try_set(Key key, Source source, const SetOptions& options = {});
    // The file's bytes, of any size, without holding them. A file that changes meanwhile is Errc::source.
    Result<bool> try_set_file(Key key, const std::string& path, const SetOptions& options = {});

    // The whole value, decompressed and checked; empty: missing or expired.
    Result<std::optional<Value>> try_get(Key key, const GetOptions& options = {});
    // The same, unless the entry still has this ETag (of an earlier Value or Info): then nothing is sent again.
    Result<Revalidated> try_get_if_changed(Key key, std::string_view etag);
    // The same as a stream.
    Result<std::optional<Reader>> try_get_stream(Key key, const GetOptions& options = {});
    // Into a file, which appears whole (written beside the target, then renamed) or not at all. Empty: no such entry.
    Result<std::optional<Info>> try_get_file(Key key, const std::string& path, const GetOptions& options = {});

    // No error if there is nothing under the key.
    Result<void> try_remove(Key key);
    // What is known without the body; empty: missing or expired.
    Result<std::optional<Info>> try_stat(Key key);
    Result<bool> try_contains(Key key);
    // A new TTL counted from now, without sending the body; false: missing or expired. The rest of the entry is kept.
    // S3 copies an object onto itself for that, which it does up to 5 GiB. Another writer of the very same bytes may be
    // undone, metadata and TTL, if it writes within the round trip between the look and the copy.
    Result<bool> try_touch(Key key, Seconds ttl);

    // Everything under the cache's prefix and this one, expired entries included; pages are fetched as one goes. An
    // entry that a deep look cannot look at is an error, one that has gone meanwhile is reported as listed.
    Result<Listing> try_list(std::string_view prefix = {}, Look look = Look::shallow);
    // Removes all entries under the prefix, or only those that a look finds expired; how many were removed. What fails
    // is passed over, and is an error in the end.
    Result<std::uint64_t> try_clear(std::string_view prefix);
    Result<std::uint64_t> try_purge_expired(std::string_view prefix = {});
    // Aborts uploads in parts that began longer ago than this: what crashed writers left. How many.
    Result<std::uint64_t> try_sweep_uploads(std::string_view prefix, Seconds older_than);

    // Many keys over Config::connections connections at once, in no order; one result a key. These never throw, with
    // exceptions or without. Memory holds no more values than there are connections; `visit` runs on the calling thread
    // and must not throw.
    using Visit = std::function<void(const std::string& key, Result<std::optional<Value>> result)>;
    void get_many(const std::vector<std::string>& keys, const Visit& visit);
    std::vector<Result<bool>> set_many(const std::vector<Item>& items);  // results in the order of the items
    std::vector<Result<void>> remove_many(const std::vector<std::string>& keys);

    // A URL that lets anyone GET or PUT the key until `lifetime` (1 s to 7 days) is over, or the credentials that
    // signed it are. Sends nothing, except to find credentials. `method`: "GET" or "PUT".
    Result<std::string> try_presign(Key key, std::string_view method, Seconds lifetime);

    // The value under the key; if there is none, what `producer` returns, stored first. In this process one producer
    // runs for a key at a time, and whoever asks meanwhile waits for its value or error; `how` extends that to other
    // processes, and says what becomes of entries near their end. `producer` returns a std::string (text), a container
    // of bytes, a Value made of data and kind, a Source, a type with a codec, nothing(), an optional (empty: a negative
    // entry) or a Result of these. A store that cannot be reached keeps nobody from computing, and a value that cannot
    // be stored is returned all the same: either is counted and an event. A producer that asks for its own key:
    // Errc::source. SetOptions::timeout is that of the storing.
    template <class T = Value, class F>
    Result<T> try_get_or_set(Key key, F&& producer, const SetOptions& options = {}, const ComputeOptions& how = {}) {
        static_assert(detail::is_producer<F>::value,
                      "get_or_set(): the producer takes no argument and returns what to store, or nothing()");
        const auto produce = [&]() -> Result<detail::Produced> {
            if constexpr (detail::is_producer<F>::value)
                return detail::guarded([&] { return detail::produced(producer()); }, "the producer");
        };
        Result<Value> value = compute(key, produce, options, how);
        if constexpr (std::is_same_v<T, Value>) {
            return value;
        } else {
            if (!value) return std::move(value).error();
            return detail::decoded<T>(*value).or_else(
                [&](const Error& e) { return detail::about("get_or_set", key, e); });
        }
    }

    // A user's type, through codec<T>. An optional of one may say that there is nothing: a negative entry, which a get
    // of the plain type refuses (Errc::source), because it could be taken for a miss.
    template <class T>
    std::enable_if_t<detail::is_object<T>::value, Result<bool>> try_set(Key key, const T& value,
                                                                        const SetOptions& options = {}) {
        static_assert(detail::has_codec<T>::value,
                      "set(): give text, bytes, json(...) or a Source, or specialise s3cache::codec<T> for this type");
        if constexpr (detail::has_codec<T>::value) {
            Result<std::string> data = detail::encode(value);
            if (!data) return detail::about("set", key, data.error());
            return try_set(key, Payload(data->data(), data->size(), codec<T>::kind), options);
        }
        return false;
    }
    template <class T>
    Result<std::optional<T>> try_get(Key key, const GetOptions& options = {}) {
        Result<std::optional<Value>> hit = try_get(key, options);
        if (!hit) return std::move(hit).error();
        if (!*hit) return std::optional<T>();
        Result<T> value = detail::decoded<T>(**hit);
        if (!value) return detail::about("get", key, value.error());
        return std::optional<T>(*std::move(value));
    }

    // A TTL alone may stand for the options, as in set("k", "v", 1h).
    template <class What, class Rep, class Period>
    Result<bool> try_set(Key key, What&& what, std::chrono::duration<Rep, Period> ttl) {
        return try_set(key, std::forward<What>(what), SetOptions{ttl});
    }
    template <class T = Value, class F, class Rep, class Period>
    Result<T> try_get_or_set(Key key, F&& producer, std::chrono::duration<Rep, Period> ttl,
                             const ComputeOptions& how = {}) {
        return try_get_or_set<T>(key, std::forward<F>(producer), SetOptions{ttl}, how);
    }

    // From any thread: every call that is under way on this cache, in whatever thread, and every Reader that is open,
    // ends with Errc::cancelled within some 0.1 s; of a set() either value may then be there. Calls that begin later
    // are not concerned. Does not wait.
    void cancel() noexcept;

    Stats stats() const;
    // Where credentials, region and endpoint come from, source by source, and how far the clock is off. Asks the
    // sources anew (files, metadata services), and the store nothing.
    std::vector<Finding> explain();

#if S3CACHE_EXCEPTIONS
    explicit Cache(std::string_view where, Config config = {}) : Cache(try_open(where, std::move(config)).value()) {}

    // Takes what try_set() takes: a payload, a source or a type with a codec; with options or a TTL.
    template <class What, class Options = SetOptions>
    bool set(Key key, What&& what, const Options& options = {}) {
        return try_set(key, std::forward<What>(what), options).value();
    }
    bool set(Key key, Payload payload, const SetOptions& options = {}) {
        return try_set(key, std::move(payload), options).value();
    }
    bool set_file(Key key, const std::string& path, const SetOptions& options = {}) {
        return try_set_file(key, path, options).value();
    }
    std::optional<Value> get(Key key, const GetOptions& options = {}) { return try_get(key, options).value(); }
    template <class T>
    std::optional<T> get(Key key, const GetOptions& options = {}) {
        return try_get<T>(key, options).value();
    }
    Revalidated get_if_changed(Key key, std::string_view etag) { return try_get_if_changed(key, etag).value(); }
    std::optional<Reader> get_stream(Key key, const GetOptions& how = {}) { return try_get_stream(key, how).value(); }
    std::optional<Info> get_file(Key key, const std::string& path, const GetOptions& options = {}) {
        return try_get_file(key, path, options).value();
    }
    void remove(Key key) { try_remove(key).value(); }
    std::optional<Info> stat(Key key) { return try_stat(key).value(); }
    bool contains(Key key) { return try_contains(key).value(); }
    bool touch(Key key, Seconds ttl) { return try_touch(key, ttl).value(); }
    Listing list(std::string_view prefix = {}, Look look = Look::shallow) { return try_list(prefix, look).value(); }
    std::uint64_t clear(std::string_view prefix) { return try_clear(prefix).value(); }
    std::uint64_t purge_expired(std::string_view prefix = {}) { return try_purge_expired(prefix).value(); }
    std::uint64_t sweep_uploads(std::string_view prefix, Seconds age) { return try_sweep_uploads(prefix, age).value(); }
    std::string presign(Key key, std::string_view method, Seconds ttl) { return try_presign(key, method, ttl).value(); }
    template <class T = Value, class F, class Options = SetOptions>
    T get_or_set(Key key, F&& producer, const Options& options = {}, const ComputeOptions& how = {}) {
        return try_get_or_set<T>(key, std::forward<F>(producer), options, how).value();
    }
#endif

private:
    explicit Cache(std::shared_ptr<detail::Core> core) noexcept;
    Result<Value> compute(Key key, const std::function<Result<detail::Produced>()>& producer, const SetOptions& options,
                          const ComputeOptions& how);
    std::shared_ptr<detail::Core> core_;
};

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
#include <clocale>             // the decimal point that strtod expects
#include <condition_variable>  // waiting for another thread's credentials or value
#include <cstdio>              // files
#include <cstring>             // memcpy, strerror
#include <initializer_list>    // short lists of names
#include <istream>             // Source and Reader as streams
#include <limits>              // overflow checks
#include <cmath>               // floor, ldexp
#include <mutex>               // the pool, credentials, values in flight
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

// Length of the sequence that starts at `at`, or 0 where none does. `at` must be inside the text.
inline std::size_t sequence(std::string_view text, std::size_t at) {
    const unsigned char first = octet(text[at]);
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || text.size() - at < length) return 0;
    // The second byte's range rules out overlong forms (E0, F0), surrogates (ED) and values past U+10FFFF (F4).
    unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    for (std::size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
        if (octet(text[at + i]) < low || octet(text[at + i]) > high) return 0;
    }
    return length;
}

// Eight ASCII bytes at a time: most values have no others, and this check runs over every value that has no `kind`.
inline bool valid(std::string_view text) {
    constexpr std::uint64_t high_bits = 0x8080808080808080U;
    for (std::size_t at = 0; at < text.size();) {
        std::uint64_t word = high_bits;
        if (text.size() - at >= sizeof word) std::memcpy(&word, text.data() + at, sizeof word);
        const std::size_t length = (word & high_bits) == 0 ? sizeof word : sequence(text, at);
        if (length == 0) return false;
        at += length;
    }
    return true;
}

// For code points that UTF-8 can carry: at most U+10FFFF and no surrogate.
inline void append(std::string& out, std::uint32_t code) {
    const unsigned more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
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
    return text.substr(0, prefix.size()) == prefix;
}

inline bool ends_with(std::string_view text, std::string_view suffix) {
    return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
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
inline void append_hex(std::string& out, std::string_view raw, std::string_view digits = "0123456789abcdef") {
    out.resize(out.size() + 2 * raw.size());
    char* at = out.data() + out.size() - 2 * raw.size();
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

// Strict RFC 4648: what does not encode to the same text again is refused, since OpenSSL skips blanks and takes
// whatever bits the padding leaves over. Two texts never decode to the same bytes.
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
    for (std::size_t i = 0; i < raw.size(); ++i) {
        const bool is_kept = is_unreserved(raw[i]) || (keep_slash && raw[i] == '/');
        out += is_kept ? raw[i] : '%';
        if (!is_kept) append_hex(out, raw.substr(i, 1), "0123456789ABCDEF");
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
        const int high = text.size() - i < 3 ? -1 : hex_value(text[i + 1]);
        const int low = high < 0 ? -1 : hex_value(text[i + 2]);
        if (low < 0) return std::nullopt;
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

// One function for all who name a header, a field or a parameter: emplace_back is compiled anew for each type of
// argument.
inline void add(Pairs& to, std::string_view name, std::string_view value) {
    to.emplace_back(std::string(name), std::string(value));
}

inline std::string number(std::uint64_t value) { return std::to_string(value); }

inline void append_number(std::string& out, std::uint64_t value) { out += number(value); }

// To be called where `text` ends before an '@': hides what stands before it in the same word if that may be the user
// info of a URL, or of a proxy named without a scheme. A secret key may hold a slash, so what looks like a host and a
// port whose port is no number is hidden too.
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
    for (std::size_t at = 0, length = 0; at < known.size(); at += length) {
        length = (std::max)(utf8::sequence(known, at), std::size_t{1});
        std::string piece = known.substr(at, length);
        const unsigned char first = octet(piece[0]);
        const bool is_control = first < 0x20 || first == 0x7F || (first == 0xC2 && octet(piece.back()) < 0xA0);
        if (is_control || (length == 1 && first >= 0x80)) {
            piece.clear();
            for (std::size_t i = 0; i < length; ++i) piece += "\\x" + hex(known.substr(at + i, 1));
        }
        if (out.size() + piece.size() > sanitized_bytes_max) return out + "...";
        out += piece;
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
// such a value readable as text on both sides.
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
    bool take_after_blanks(char wanted) {
        blanks();
        return take(wanted);
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

    bool key() {
        blanks();
        return string() && take_after_blanks(':');
    }

    // A value of any depth, by a loop: recursion would let a stored value choose how much stack we use.
    bool value() {
        std::string closers;  // of the containers that are open
        for (;;) {
            blanks();
            const char opening = peek();
            if (opening == '{' || opening == '[') {
                if (closers.size() == depth_levels_max) return false;
                ++at_;
                closers += opening == '{' ? '}' : ']';
                if (!take_after_blanks(closers.back())) {
                    if (opening == '{' && !key()) return false;
                    continue;
                }
                closers.pop_back();
            } else if (!scalar()) {
                return false;
            }
            while (!closers.empty() && !take_after_blanks(',')) {
                if (!take(closers.back())) return false;
                closers.pop_back();
            }
            if (closers.empty()) return true;
            if (closers.back() == '}' && !key()) return false;
        }
    }

private:
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
        const std::size_t end = at_;
        if (integer == 0 || (zero && integer > 1)) return false;
        if (take('.') && digits() == 0) return false;
        if (take('e') || take('E')) {
            if (!take('-')) take('+');
            if (digits() == 0) return false;
        }
        return at_ > end || integer <= integer_digits_max;
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

// The inside of a string literal that a scanner has taken. Half of a surrogate pair is no character and UTF-8 cannot
// carry it, so it is refused; replacing it would quietly change what may be a secret.
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
    if (!scanner.take_after_blanks('{') || !valid(object)) return found;
    do {
        scanner.blanks();
        const std::size_t begin = scanner.position();
        if (!scanner.string()) return found;  // the object is empty
        const std::string_view literal = object.substr(begin + 1, scanner.position() - begin - 2);
        scanner.take_after_blanks(':');
        scanner.blanks();
        const std::size_t value = scanner.position();
        scanner.value();
        if (unescape(literal) == name) found = object.substr(value, scanner.position() - value);
    } while (scanner.take_after_blanks(','));
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
    constexpr std::int64_t era_days = 146097;  // 400 years
    const std::int64_t days = unix_seconds / seconds_per_day - days_from_epoch_to_march_0;
    const std::int64_t in_era = days % era_days;
    const std::int64_t in_day = unix_seconds % seconds_per_day;
    // Without the leap days before it, every year of the era has 365 days.
    const std::int64_t years = (in_era - in_era / 1460 + in_era / 36524 - in_era / (era_days - 1)) / 365;
    const std::int64_t in_year = in_era - (years * 365 + years / 4 - years / 100);
    const std::int64_t months = (5 * in_year + 2) / 153;  // since March
    return {days / era_days * 400 + years + (months >= 10 ? 1 : 0),
            months < 10 ? months + 3 : months - 9,
            in_year - (153 * months + 2) / 5 + 1,
            in_day / 3600,
            in_day / 60 % 60,
            in_day % 60};
}

// A day that is not in the calendar comes back as another one. 60 is a leap second; it counts as the first second of
// the next minute, as in POSIX time.
inline bool is_real(const Parts& time) {
    const Parts same = parts_of(days_since_epoch(time[year], time[month], time[day]) * seconds_per_day);
    return time[year] >= 1 && std::equal(time.begin(), time.begin() + hour, same.begin()) && time[hour] <= 23 &&
           time[minute] <= 59 && time[second] <= 60 && time[offset_hour] <= 23 && time[offset_minute] <= 59;
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

class Scanner {
public:
    explicit Scanner(std::string_view text) : rest_(bytes::trim(text)) {}

    // Takes what the pattern shows, or nothing. A letter of part_letters is a digit of that part; others are
    // themselves.
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

// 2025-01-15T12:34:56Z, with a fraction or an offset: credentials' Expiration and S3's LastModified. A time without
// either Z or offset is read as UTC, because AWS never means a local time.
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

// Sun, 06 Nov 1994 08:49:37 GMT: the one form of RFC 9110 that may be sent. Some servers write UTC, or 6 for 06.
// Whether the day's name is right is not checked: it carries no information.
inline std::optional<TimePoint> http_date(std::string_view text) {
    Scanner scanner(text);
    std::int64_t weekday = 0;
    const bool read = scanner.take_name("MonTueWedThuFriSatSun", weekday) && scanner.take(", ") &&
                      scanner.take_any({"dd ", "d "}) && scanner.take_month() && scanner.take(" yyyy hh:mm:ss ") &&
                      scanner.take_any({"GMT", "UTC"});
    return read ? scanner.time(0) : std::nullopt;
}

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

// Python's float(text) of a plain decimal number; empty where that raises, and for its underscores and the digits of
// other scripts. May be infinite or nan: what those mean for an entry is the caller's to decide. strtod takes the
// program's decimal point, so it is given that; from_chars for double is missing from many libraries that C++17
// programs are built with.
inline std::optional<double> parse_float(std::string_view text) {
    constexpr std::string_view blanks = " \t\n\r\v\f";
    const std::size_t begin = (std::min)(text.find_first_not_of(blanks), text.size());
    std::string number = bytes::lower(text.substr(begin, text.find_last_not_of(blanks) - begin + 1));
    const std::string word = number.substr(number.find_first_of("+-") == 0 ? 1 : 0);
    const bool is_word = word == "inf" || word == "infinity" || word == "nan";
    if (!is_word && word.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
    const std::size_t point = number.find('.');
    if (point != std::string::npos) number.replace(point, 1, std::localeconv()->decimal_point);
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    if (number.empty() || end != number.c_str() + number.size()) return std::nullopt;
    return value;
}

}  // namespace detail::dates

// --- digest: SHA-256 and HMAC for signatures, the checksums that S3 knows for bodies.

namespace detail::digest {

template <std::size_t size>
std::string_view as_text(const std::array<unsigned char, size>& digest) {
    return std::string_view(reinterpret_cast<const char*>(digest.data()), size);
}

using Sha256Digest = std::array<unsigned char, 32>;
using Md5Digest = std::array<unsigned char, 16>;

// A digest over pieces. One OpenSSL context serves any number of digests in turn, because creating one costs more than
// hashing a small value. OpenSSL fails only without memory, or when a FIPS setup refuses the algorithm: finish() then
// returns zeros, and ok() is false from then on. Whoever opens a cache asks available(), so that nothing is signed so.
class Sha256 {
public:
    Sha256() : context_(EVP_MD_CTX_new()) {
        ok_ = context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1;
    }

    bool ok() const { return ok_; }

    void update(std::string_view data) { ok_ = ok_ && EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1; }

    // The digest of all updates since the last finish(); the object is then ready for the next one.
    Sha256Digest finish() {
        Sha256Digest out{};
        ok_ = ok_ && EVP_DigestFinal_ex(context_.get(), out.data(), nullptr) == 1;
        reset();
        return ok_ ? out : Sha256Digest{};
    }

    // Naming no algorithm keeps the one in place; naming it would make OpenSSL 3 look it up again, under a lock.
    void reset() { ok_ = ok_ && EVP_DigestInit_ex(context_.get(), nullptr, nullptr) == 1; }

    // Continues where the other stands.
    void copy_from(const Sha256& other) {
        ok_ = ok_ && other.ok_ && EVP_MD_CTX_copy_ex(context_.get(), other.context_.get()) == 1;
    }

private:
    struct Free {
        void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    };
    std::unique_ptr<EVP_MD_CTX, Free> context_;
    bool ok_ = false;
};

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
inline std::optional<Md5Digest> md5(std::string_view data) {
    Md5Digest out{};
    const bool ok = EVP_Digest(data.data(), data.size(), out.data(), nullptr, EVP_md5(), nullptr) == 1;
    return ok ? std::optional<Md5Digest>(out) : std::nullopt;
}

// The key's two padded blocks are hashed once, and each signature continues from copies of those states: half the work
// for short data. OpenSSL's own HMAC interface is deprecated in one form and slow in the other.
class HmacSha256Key {
public:
    explicit HmacSha256Key(std::string_view key) { set(key); }

    // A new key in the same contexts.
    void set(std::string_view key) {
        const Sha256Digest hash = key.size() > block_bytes ? sha256(key) : Sha256Digest{};
        std::string block(key.size() > block_bytes ? as_text(hash) : key);
        block.resize(block_bytes);
        begin(inner_, block, 0x36);
        begin(outer_, block, 0x5C);
        bytes::wipe(block);
    }

    // Zeros after a failure of OpenSSL, as Sha256.
    Sha256Digest sign(std::string_view data) {
        work_.copy_from(inner_);
        work_.update(data);
        const Sha256Digest inner = work_.finish();
        work_.copy_from(outer_);
        work_.update(as_text(inner));
        return work_.finish();
    }

private:
    static constexpr std::size_t block_bytes = 64;

    static void begin(Sha256& hasher, std::string block, char pad) {
        for (char& byte : block) byte = static_cast<char>(byte ^ pad);
        hasher.reset();
        hasher.update(block);
        bytes::wipe(block);
    }

    Sha256 inner_, outer_, work_;
};

inline Sha256Digest hmac_sha256(std::string_view key, std::string_view data) { return HmacSha256Key(key).sign(data); }

// Checksums: each takes that of what came before (0 at the start) and returns the one that includes the new bytes.

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
        for (std::size_t i = 256; i < 8 * 256; ++i) {
            const Word crc = rows_[i / 256 - 1][i % 256];
            rows_[i / 256][i % 256] = (crc >> 8) ^ rows_[0][crc & 0xFF];
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

inline std::uint64_t crc64nvme(std::uint64_t crc, const char* data, std::size_t size) {
    static const SlicingTable<std::uint64_t> table(0x9A6C9329AC4BC9B5);  // of the NVMe specification, reflected
    return ~table.update(~crc, data, size);
}

#ifndef S3CACHE_NO_GZIP
inline std::uint32_t crc32(std::uint32_t crc, const char* data, std::size_t size) {
    return static_cast<std::uint32_t>(::crc32_z(crc, reinterpret_cast<const Bytef*>(data), size));
}
#endif

inline std::uint32_t crc32c_portable(std::uint32_t crc, const char* data, std::size_t size) {
    static const SlicingTable<std::uint32_t> table(0x82F63B78);  // Castagnoli, reflected
    return ~table.update(~crc, data, size);
}

// The processor's instruction is seven times faster than the table. Three of them side by side would be faster by half
// again, but one already outruns any network.
#if defined(__x86_64__) && defined(__GNUC__)

// The attribute lets this function use the instruction without -msse4.2 for the program, which must run elsewhere too.
__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_hardware(std::uint32_t crc, const char* data,
                                                                       std::size_t size) {
    std::uint64_t wide = ~crc;
    for (; size >= 8; data += 8, size -= 8) wide = __builtin_ia32_crc32di(wide, load_little_endian(data));
    crc = static_cast<std::uint32_t>(wide);
    for (; size > 0; ++data, --size) crc = __builtin_ia32_crc32qi(crc, bytes::octet(*data));
    return ~crc;
}

// __builtin_cpu_supports says it too, but brings 5 KiB of code into every program; <cpuid.h> of g++ 10 must not be
// included twice, and a program may include it too.
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

    bool allocate(Function end) {
        stream_ = std::unique_ptr<z_stream, End>(new (std::nothrow) z_stream(), End{end});
        if (!stream_) problem_ = "zlib has no memory";
        return stream_ != nullptr;
    }

    // Takes what a function of zlib's returned.
    void check(int result) {
        if (result == Z_MEM_ERROR)
            problem_ = "zlib has no memory";
        else if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
            problem_ = stream_->msg != nullptr ? stream_->msg : "zlib reports an error";
    }

    // From the input straight into the caller's buffer, until the stream ends (true), the buffer is full, the input is
    // used up or something is wrong. zlib counts in 32 bits, so that long pieces take several steps.
    bool run(int (*step)(z_stream*, int), int flush, char* out, std::size_t capacity, std::size_t& produced) {
        constexpr std::size_t most = (std::numeric_limits<uInt>::max)();
        int result = Z_OK;
        while (result == Z_OK && problem_ == nullptr && produced < capacity) {
            // zlib's pointer is mutable unless ZLIB_CONST is set before its header, and that is the including file's
            // choice.
            stream_->next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(input_.data()));
            stream_->avail_in = static_cast<uInt>((std::min)(input_.size(), most));
            stream_->next_out = reinterpret_cast<Bytef*>(out + produced);
            stream_->avail_out = static_cast<uInt>((std::min)(capacity - produced, most));
            const std::size_t offered = stream_->avail_in, room = stream_->avail_out;
            result = step(stream_.get(), offered < input_.size() ? Z_NO_FLUSH : flush);
            check(result);
            input_.remove_prefix(offered - stream_->avail_in);
            produced += room - stream_->avail_out;
        }
        return result == Z_STREAM_END;
    }

    Pulled pulled(std::size_t produced, std::size_t capacity) const {
        if (problem_ != nullptr) return {produced, Step::damaged};
        return {produced, produced == capacity ? Step::output : Step::needs_input};
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
            in_member_ = !run(inflate, Z_NO_FLUSH, out, capacity, produced);
            if (in_member_) break;
        }
        return pulled(produced, capacity);
    }

    // To be called once pull() has asked for input that does not exist. False: the data ends too early. No input at all
    // is an empty value.
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
        if (stream_)
            check(inflateReset(stream_.get()));
        else if (allocate(inflateEnd))
            check(inflateInit2(stream_.get(), 16 + MAX_WBITS));
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
        if (!allocate(deflateEnd)) return;
        check(deflateInit2(stream_.get(), level, Z_DEFLATED, 16 + MAX_WBITS, memory_level, Z_DEFAULT_STRATEGY));
        if (problem_ == nullptr) check(deflateSetHeader(stream_.get(), &header));
    }

    // No input will follow: pull() until finished.
    void finish() { finishing_ = true; }

    Pulled pull(char* out, std::size_t capacity) {
        std::size_t produced = 0;
        done_ = done_ || run(deflate, finishing_ ? Z_FINISH : Z_NO_FLUSH, out, capacity, produced);
        return done_ ? Pulled{produced, Step::finished} : pulled(produced, capacity);
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

// XML 1.0 knows no control characters but three, not even as references, and neither U+FFFE nor U+FFFF. A key with one
// of them, or that is no UTF-8, can be deleted alone but not in a list.
inline bool representable(std::string_view text) {
    for (char c : text) {
        if (bytes::octet(c) < 0x20 && !bytes::is_blank(c)) return false;
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
    const std::size_t digits = base == 16 ? 2 : 1;
    if (!bytes::starts_with(name, "#") || name.size() == digits) return std::nullopt;
    std::uint32_t code = 0;
    for (char c : name.substr(digits)) {
        const int digit = bytes::hex_value(c);
        if (digit < 0 || digit >= base || code > 0x10FFFF) return std::nullopt;
        code = code * static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(digit);
    }
    return code <= 0x10FFFF ? std::optional<std::uint32_t>(code) : std::nullopt;
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

    // Goes on to the end of the next element, children before parents. False: there is none, or the document is
    // damaged.
    bool next() {
        if (closing_) leave();
        while (!closing_ && !damaged_ && !rest_.empty()) {
            if (rest_.front() != '<')
                damaged_ = !take_text();
            else if (take("</"))
                damaged_ = !(closing_ = take_end_tag());
            else if (bytes::starts_with(rest_, "<!") || bytes::starts_with(rest_, "<?"))
                damaged_ = !take_aside();
            else
                damaged_ = !take_start_tag();
        }
        // The first of repeated elements wins: a store that forwards another's error appends its own.
        for (std::size_t i = 0; closing_ && i < fields_.size(); ++i) {
            const Field& field = fields_[i];
            if (field.path == path_ && field.to->empty()) *field.to = field.exact ? text_ : bytes::trim(text_);
        }
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
    void leave() {
        closing_ = false;
        text_.clear();
        --depth_;
        path_.resize((std::min)(path_.rfind('/'), path_.size()));
        if (depth_ <= 1) path_.clear();
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

    bool skip_blanks() {
        const std::size_t before = rest_.size();
        while (!rest_.empty() && bytes::is_blank(rest_.front())) rest_.remove_prefix(1);
        return rest_.size() < before;
    }

    // Comments, processing instructions and CDATA. Anything else that begins with "<!" belongs to a DTD.
    bool take_aside() {
        if (take("<?")) return skip_past("?>");
        if (take("<!--")) return skip_past("-->");
        if (depth_ == 0 || !take("<![CDATA[")) return false;
        const std::size_t begin = text_.size();
        append_raw(rest_.substr(0, rest_.find("]]>")));
        return skip_past("]]>") && is_legal_from(begin);
    }

    bool take_text() {
        std::string_view run = rest_.substr(0, rest_.find('<'));
        rest_.remove_prefix(run.size());
        if (depth_ == 0) return bytes::trim(run).empty();
        if (run.find("]]>") != std::string_view::npos) return false;
        const std::size_t begin = text_.size();
        for (std::size_t at = run.find('&'); at != std::string_view::npos; at = run.find('&')) {
            append_raw(run.substr(0, at));
            const std::size_t end = run.substr(at, 16).find(';');  // "&#x10FFFF;" has ten; leading zeros are legal
            const auto code = end == std::string_view::npos ? std::nullopt : reference(run.substr(at + 1, end - 1));
            if (!code) return false;
            utf8::append(text_, *code);
            run.remove_prefix(at + end + 1);
        }
        append_raw(run);
        return is_legal_from(begin);
    }

    // Line ends become LF, as XML asks; a carriage return that is meant arrives as a reference.
    void append_raw(std::string_view raw) {
        for (std::size_t i = 0; i < raw.size(); ++i) {
            if (raw.substr(i, 2) != "\r\n") text_ += raw[i] == '\r' ? '\n' : raw[i];
        }
    }

    bool is_legal_from(std::size_t begin) {
        illegal_ = !representable(std::string_view(text_).substr(begin));
        return !illegal_;
    }

    // Without its prefix. Empty: no name is here.
    std::string_view take_name() {
        const std::string_view name = rest_.substr(0, rest_.find_first_of(" \t\r\n/>=<&;\"'"));
        if (name.empty() || bytes::is_digit(name[0]) || name[0] == '-' || name[0] == '.') return {};
        rest_.remove_prefix(name.size());
        return name.substr(name.find(':') + 1);  // npos + 1 is 0
    }

    bool take_start_tag() {
        rest_.remove_prefix(1);
        const std::string_view name = take_name();
        if (name.empty() || depth_ == depth_max || (depth_ == 0 && !root_.empty())) return false;
        bool spaced = skip_blanks();
        while (!(closing_ = take("/>")) && !take(">")) {
            if (!spaced || !take_attribute()) return false;
            spaced = skip_blanks();
        }
        text_.clear();
        if (depth_ == 0)
            root_ = name;
        else
            path_.append(depth_ == 1 ? "" : "/").append(name);
        ++depth_;
        return true;
    }

    bool take_attribute() {
        if (take_name().empty()) return false;
        skip_blanks();
        if (!take("=")) return false;
        skip_blanks();
        const std::string_view quote = rest_.substr(0, 1);
        if (!take("\"") && !take("'")) return false;
        return rest_.substr(0, rest_.find(quote)).find('<') == std::string_view::npos && skip_past(quote);
    }

    bool take_end_tag() {
        const std::string_view name = take_name();
        skip_blanks();
        const std::string_view open = depth_ == 1 ? root_ : std::string_view(path_).substr(path_.rfind('/') + 1);
        return depth_ > 0 && name == open && take(">");
    }

    std::string_view rest_;
    std::vector<Field> fields_;
    std::size_t depth_ = 0;  // open elements
    std::string_view root_;
    std::string path_;
    std::string text_;
    bool closing_ = false;  // the innermost open element ends where the scanner stands
    bool damaged_ = false;
    bool illegal_ = false;
};

// Whether this is a good list but for a character that XML cannot hold: a store that ignores encoding-type=url writes
// such keys as they are. It tells a key to be blamed from an answer that is no list at all.
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
        out += at == std::string_view::npos ? std::string_view(&c, 1) : escapes[at];
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

// The parsers below take any root that ends in "Result", because stores vary the word before it; a well-formed page of
// a proxy must not pass for one. They return nothing for an error, and for what was cut short, is empty or is no XML.
inline bool is_result(const Scanner& scanner) { return scanner.whole() && bytes::ends_with(scanner.root(), "Result"); }

// The root may have any name but that of an error: boto3 takes what holds an UploadId, and stores rely on it.
inline std::optional<std::string> upload_id(std::string_view document) {
    std::string id;
    Scanner scanner(document, {{"UploadId", &id, true}});
    if (!scanner.finish() || id.empty() || bytes::starts_with(scanner.root(), "Error")) return std::nullopt;
    return id;
}

// Of CompleteMultipartUpload and CopyObject. An empty text: the store left the ETag out, which is no failure.
inline std::optional<std::string> etag_result(std::string_view document) {
    std::string etag;
    Scanner scanner(document, {{"ETag", &etag}});
    if (!scanner.finish() || !is_result(scanner)) return std::nullopt;
    return etag;
}

// Reads a document with repeated elements: `record`, which the scanner fills, goes to `out` where such an element ends.
// False: it is no result, or says in a word that is no boolean whether it goes on; a list that is taken for complete
// although it is not would make its reader believe that the rest is not there.
template <class Record>
bool read_records(Scanner& scanner, std::string_view path, Record& record, std::vector<Record>& out, bool& truncated) {
    while (scanner.next()) {
        if (scanner.path() == path) out.push_back(std::exchange(record, {}));
        if (scanner.path() != "IsTruncated") continue;
        const std::string_view word = bytes::trim(scanner.text());
        truncated = bytes::iequal(word, "true") || word == "1";
        if (!truncated && !bytes::iequal(word, "false") && word != "0") return false;
    }
    return is_result(scanner);
}

// False: it cannot be decoded, and stays as it is. '+' is a space here.
inline bool decode(std::string& text) {
    auto decoded = bytes::unpercent(text, true);
    if (decoded) text = std::move(*decoded);
    return decoded.has_value();
}

struct DeleteError {
    std::string key;  // empty: the store did not say which
    std::string code;
    std::string message;
};

struct Deleted {  // all that was asked for, but for these
    std::vector<DeleteError> errors;
};

inline std::optional<Deleted> delete_result(std::string_view document) {
    Deleted done;
    DeleteError failed;
    bool truncated = false;
    Scanner scanner(
        document, {{"Error/Key", &failed.key, true}, {"Error/Code", &failed.code}, {"Error/Message", &failed.message}});
    if (!read_records(scanner, "Error", failed, done.errors, truncated)) return std::nullopt;
    return done;
}

struct ListEntry {
    std::string key;
    std::uint64_t size = 0;
    std::string size_text;
    std::string etag;           // with its quotes; empty: the store gave none
    std::string last_modified;  // ISO 8601, as given
};

struct ListPage {
    std::vector<ListEntry> entries;
    bool truncated = false;
    std::string next_token;
};

// A key that cannot be decoded, or a size that is none, spoils the page: leaving it out would make a listing look
// complete that is not. Keys are encoded only if the answer says so, whatever was asked for.
inline std::optional<ListPage> list_result(std::string_view document) {
    ListPage page;
    ListEntry entry;
    std::string encoding;
    Scanner scanner(document, {{"Contents/Key", &entry.key, true},
                               {"Contents/Size", &entry.size_text},
                               {"Contents/ETag", &entry.etag},
                               {"Contents/LastModified", &entry.last_modified},
                               {"NextContinuationToken", &page.next_token, true},
                               {"EncodingType", &encoding}});
    if (!read_records(scanner, "Contents", entry, page.entries, page.truncated)) return std::nullopt;
    for (ListEntry& listed : page.entries) {
        const auto size = bytes::to_u64(listed.size_text.empty() ? "0" : listed.size_text);
        if (!size || (encoding == "url" && !decode(listed.key))) return std::nullopt;
        listed.size = *size;
    }
    return bytes::starts_with(scanner.root(), "ListBucket") ? std::optional<ListPage>(std::move(page)) : std::nullopt;
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

// A key or marker that cannot be decoded stays as it is, because OpenStack Swift leaves its markers unencoded whatever
// it says of them.
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
    if (!read_records(scanner, "Upload", upload, page.uploads, page.truncated)) return std::nullopt;
    if (encoding != "url") return page;
    decode(page.next_key_marker);
    for (Upload& listed : page.uploads) decode(listed.key);
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
    if (!scanner.finish() || scanner.root() != std::string(action) + "Response" || keys.access_key.empty() ||
        keys.secret_key.empty() || keys.session_token.empty() || keys.expiration.empty())
        return std::nullopt;
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

using bytes::trim;

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
        const std::string_view value = trim(line);
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
        const std::string name = bytes::lower(trim(line.substr(0, delimiter)));
        if (name.empty()) return fail("a setting without a name");
        if (section_->find(name) != nullptr)
            return fail("setting '" + bytes::sanitize(name) + "' comes twice in its section");
        section_->settings.push_back({name, std::string(trim(line.substr(delimiter + 1))), {}, line_});
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
        while (!setting.text.empty() && bytes::is_blank(setting.text.back())) setting.text.pop_back();
        if (!bytes::starts_with(setting.text, "\n")) return;
        for (std::string_view rest = setting.text; !rest.empty();) {
            const std::size_t end = (std::min)(rest.find('\n'), rest.size());
            const std::string_view line = trim(rest.substr(0, end));
            rest.remove_prefix((std::min)(end + 1, rest.size()));
            const std::size_t equals = line.find('=');
            if (line.empty()) continue;
            if (equals == std::string_view::npos) {
                line_ = setting.line;
                return fail("a line without '=' in the block under '" + bytes::sanitize(setting.name) + "'");
            }
            bytes::add(setting.block, trim(line.substr(0, equals)), trim(line.substr(equals + 1)));
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
        if (kind == "profile" && name == "default" && trim(section->name) == name) return &*section;
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
        if (section.name == name || (name == "default" && trim(section.name) == name)) out.credentials = &section;
    }
    return out;
}

}  // namespace detail::ini

// --- endpoint: bucket, region and options to scheme, host and path; where a cache lives, as text.

namespace detail::endpoint {

// Buckets of us-east-1 from before 2018 may have names this long; every other store stops at 63.
inline constexpr std::size_t bucket_bytes_max = 255;

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

inline bool only(std::string_view text, std::string_view others) {
    return std::all_of(text.begin(), text.end(), [others](char c) {
        return bytes::is_alpha(c) || bytes::is_digit(c) || others.find(c) != std::string_view::npos;
    });
}

inline bool all_digits(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), bytes::is_digit);
}

// Any label of a host will do, because stores have regions of their own ("auto", "garage"). More than that would let a
// region from the environment choose the host that requests are sent to.
inline bool valid_region(std::string_view region) {
    return !region.empty() && region.size() <= 63 && region.front() != '-' && region.back() != '-' && only(region, "-");
}

// What S3 has ever allowed.
inline bool valid_bucket(std::string_view bucket) {
    if (bucket == "." || bucket == "..") return false;  // in a path, a step to somewhere else
    return !bucket.empty() && bucket.size() <= bucket_bytes_max && only(bucket, ".-_");
}

// Buckets that need other hosts, services or signatures than ordinary ones. The text says which; empty: an ordinary
// one.
inline std::string unsupported_kind(std::string_view bucket) {
    if (bytes::ends_with(bucket, "--x-s3") || bytes::ends_with(bucket, "--xa-s3"))
        return "directory buckets (S3 Express) are not supported";
    if (!bytes::starts_with(bucket, "arn:")) return {};
    return "ARNs (of access points, Outposts, Object Lambda) are not supported: use an access point's alias, which is "
           "the name of a bucket";
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

struct Partition {
    std::string_view region_prefix;
    std::string_view suffix;
};

// The last entry is also the answer for names nobody has heard of yet. The table goes by prefix, because AWS adds
// regions every year and partitions hardly ever.
inline constexpr Partition partitions[] = {
    {"cn-", "amazonaws.com.cn"},    {"us-iso-", "c2s.ic.gov"},      {"us-isob-", "sc2s.sgov.gov"},
    {"eu-isoe-", "cloud.adc-e.uk"}, {"us-isof-", "csp.hci.ic.gov"}, {"eusc-de-", "amazonaws.eu"},
    {"", "amazonaws.com"},
};

inline const Partition& partition_of(std::string_view region) {
    return *std::find_if(std::begin(partitions), std::end(partitions) - 1, [region](const Partition& partition) {
        return bytes::starts_with(region, partition.region_prefix) && bytes::is_digit(region.back());
    });
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

// The one way to write "1.2.3.4" or "[::1]", because libcurl rewrites others ("127.1", "[0::1]") before it sends the
// host, and then it is not the host that was signed. Empty: not an address.
inline std::string plain_address(const std::string& host) {
    const bool bracketed = host[0] == '[';
    const int family = bracketed ? AF_INET6 : AF_INET;
    const std::string text = bracketed ? host.substr(1, host.size() - 2) : host;
    unsigned char address[16];
    char plain[64];
    if (::inet_pton(family, text.c_str(), address) != 1 || !::inet_ntop(family, address, plain, sizeof plain))
        return {};
    return bracketed ? '[' + std::string(plain) + ']' : plain;
}

// "host", "host:port" or "[address]:port", as it is signed and sent; an '@' is refused with every other odd byte, so no
// password gets into a URL. '_' as in the names of Docker.
inline bool parse_authority(std::string_view authority, Url& url) {
    const std::size_t bracket = authority.rfind(']') + 1;  // 0: there is none
    const std::size_t end = (std::min)(authority.find(':', bracket), authority.size());
    url.host = bytes::lower(authority.substr(0, end));
    const std::string_view last = std::string_view(url.host).substr(url.host.rfind('.') + 1);
    const bool hexadecimal =
        bytes::starts_with(last, "0x") && last.find_first_not_of("0123456789abcdef", 2) == std::string_view::npos;
    url.is_address = bracket != 0 || hexadecimal || all_digits(last);
    if (url.is_address)
        url.host = plain_address(url.host);
    else if (!only(url.host, "-._"))
        return false;
    const std::string_view port = authority.substr(end);
    if (url.host.empty()) return false;
    if (port.empty() || port == ":") return true;  // "host:" is legal and means the default
    const std::uint64_t number = bytes::to_u64(port.substr(1)).value_or(0);
    if (number == 0 || number > 65535) return false;
    if (number != (url.scheme == "https" ? 443 : 80)) bytes::append_number(url.host += ':', number);
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
    const bool china = partition_of(options.region).region_prefix == "cn-";
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

// Whether the bucket can be the first part of the host. Lower case only, because hosts don't tell the difference; no
// four numbers, because they are an address whatever their size. A wildcard certificate covers one label, so dots in
// the bucket need plain http; an address takes no label at all.
inline bool use_virtual_host(const Options& options, const Url& base, bool is_custom) {
    const std::string& bucket = options.bucket;
    if (options.addressing == Addressing::path || base.is_address) return false;
    if (options.addressing == Addressing::automatic && is_custom) return false;
    const auto labels = split(bucket, ".");
    if (labels.size() == 4 && std::all_of(labels.begin(), labels.end(), all_digits)) return false;
    if (labels.size() > 1 && !(is_custom && base.scheme == "http")) return false;
    return bucket.size() >= 3 && bucket == bytes::lower(bucket) &&
           std::all_of(labels.begin(), labels.end(), valid_region);  // which is any label
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
        return refuse("'" + (name.find('@') == std::string_view::npos ? bytes::sanitize(name) : "******") +
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
inline std::string canonical_query(const bytes::Pairs& raw) {
    bytes::Pairs encoded(raw.size());
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
    for (std::string_view rest = bytes::trim(value); !rest.empty();) {
        std::size_t size = 0;
        while (size < rest.size() && (rest[size] > ' ' || !bytes::is_blank(rest[size]))) ++size;
        out.append(rest.data(), size);
        rest = bytes::trim(rest.substr(size));
        if (!rest.empty()) out += ' ';
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

// Signs request after request, and keeps its buffers and the key. Not to be shared between threads.
class Signer {
public:
    // The value for the Authorization header, good until the next call. It covers every header given but the
    // never_signed ones, so `host`, `x-amz-date` and `x-amz-security-token` are the caller's to put into the list.
    std::string_view sign(const Request& request, const Credentials& credentials, const Scope& scope) {
        begin(request, scope);
        write_canonical_request(request, request.query);
        write_signature(credentials, scope);
        authorization_.assign(algorithm).append(" Credential=").append(credentials.access_key) += '/';
        authorization_.append(scope_).append(", SignedHeaders=").append(signed_headers_);
        authorization_.append(", Signature=").append(signature_);
        return authorization_;
    }

    // The whole query string of a presigned URL, made of `query` and the signature's own parameters; `request.query` is
    // not looked at. Whoever uses the URL must send the signed headers unchanged.
    std::string presign(const Request& request, bytes::Pairs query, const Credentials& credentials, const Scope& scope,
                        std::uint32_t lifetime_seconds) {
        begin(request, scope);
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

    // The value of x-amz-date. The requests of one second share it.
    std::string_view date(std::int64_t unix_seconds) {
        if (date_.empty() || unix_seconds != date_second_) {
            date_.clear();
            dates::append_amz_date(date_, unix_seconds);
            date_second_ = unix_seconds;
        }
        return date_;
    }

    // What the last call signed: a server that answers SignatureDoesNotMatch prints its own two to compare with.
    const std::string& canonical_request() const { return canonical_; }
    const std::string& string_to_sign() const { return to_sign_; }
    const std::string& signature() const { return signature_; }

private:
    // Names sorted, repeats in sending order; and the scope.
    void begin(const Request& request, const Scope& scope) {
        signed_ = 0;
        for (std::size_t i = 0; i < request.header_count; ++i) {
            if (signed_ == names_.size()) names_.emplace_back();
            auto& [name, place] = names_[signed_];
            name.assign(request.headers[i].name);
            for (char& c : name) c = bytes::lower(c);
            place = i;
            if (!never_signed(name)) ++signed_;
        }
        std::sort(names_.begin(), names_.begin() + static_cast<std::ptrdiff_t>(signed_));
        signed_headers_.clear();
        for (std::size_t i = 0; i < signed_; ++i) {
            if (!repeats(i)) signed_headers_.append(i != 0 ? ";" : "").append(names_[i].first);
        }
        (scope_.assign(scope.amz_date.substr(0, 8)) += '/').append(scope.region) += '/';
        scope_.append(scope.service).append("/aws4_request");
    }

    bool repeats(std::size_t i) const { return i != 0 && names_[i].first == names_[i - 1].first; }

    void write_canonical_request(const Request& request, std::string_view query) {
        canonical_.assign(request.method) += '\n';
        canonical_.append(request.path.empty() ? std::string_view("/") : request.path) += '\n';
        canonical_.append(query);
        for (std::size_t i = 0; i < signed_; ++i) {
            canonical_ += repeats(i) ? ',' : '\n';
            if (!repeats(i)) canonical_.append(names_[i].first) += ':';
            append_header_value(canonical_, request.headers[names_[i].second].value);
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
        if (key_ && key_scope_ == scope_ && key_owner_.secret_key == credentials.secret_key) return *key_;
        auto key = signing_key(credentials.secret_key, scope);
        key_.emplace(digest::as_text(key));
        OPENSSL_cleanse(key.data(), key.size());
        bytes::wipe(key_owner_.secret_key);
        key_owner_.secret_key = credentials.secret_key;
        key_scope_ = scope_;
        return *key_;
    }

    // What is signed, in lower case and sorted, and where it stands in the request. Strings behind are only kept.
    std::vector<std::pair<std::string, std::size_t>> names_;
    std::size_t signed_ = 0;
    std::string date_;
    std::int64_t date_second_ = 0;
    std::string signed_headers_;
    std::string scope_;
    std::string canonical_;
    std::string to_sign_;
    std::string signature_;
    std::string authorization_;
    digest::Sha256 hash_;
    std::optional<digest::HmacSha256Key> key_;
    std::string key_scope_;
    Credentials key_owner_;  // whose destructor overwrites the secret
};

}  // namespace detail::sigv4

// --- http: easy and multi handles, the pool, sinks; the one place that knows libcurl ---------------------------------

namespace detail::http {

// S3 sends under 8 KiB of headers; these bounds only stop a hostile server from filling memory.
inline constexpr std::size_t header_bytes_max = std::size_t{64} << 10;
inline constexpr std::size_t header_lines_max = 256;
// The largest answer that is not a value: a page of 1,000 keys of 1,024 bytes, each byte encoded as %XX.
inline constexpr std::size_t text_bytes_max = std::size_t{8} << 20;
// Receive buffers: a large one halves the cost of a large download, a small one is cheaper for a small answer over TLS.
inline constexpr long small_buffer_bytes = 32L << 10;
inline constexpr long large_buffer_bytes = 512L << 10;
// 256 KiB instead of libcurl's 64 saves a twelfth of a large upload.
inline constexpr long upload_buffer_bytes = 256L << 10;
// Stores close idle connections after 5 s to some minutes; an older one is likelier dead than useful.
inline constexpr long idle_seconds_max = 20;
// Connections that a Cache keeps between calls, or Config::connections if that is more.
inline constexpr unsigned idle_connections_max = 16;

inline constexpr const char* user_agent = "s3cache/" S3CACHE_VERSION;

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// libcurl is initialised once and never cleaned up, because the application may use it too. OpenSSL is asked not to
// clean up at exit, so that a destructor of a static object may still use a Cache.
inline bool is_ready() {
    static const bool ready =
        OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr) == 1 && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    return ready;
}
// False once OpenSSL has cleaned up all the same, because something else had initialised it before us.
inline bool can_still_run() { return OPENSSL_init_crypto(0, nullptr) == 1; }

// What a forked child finds changed. It counts forks, because each getpid() would be a system call.
inline std::uint64_t process_id() {
#if defined(_WIN32)
    return 0;  // there is no fork
#else
    static std::atomic<std::uint64_t> forks{0};
    static const bool is_counted = pthread_atfork(nullptr, nullptr, [] { ++forks; }) == 0;
    return is_counted ? forks.load(std::memory_order_relaxed) : static_cast<std::uint64_t>(getpid());
#endif
}

// libcurl does not say so where it cannot connect for that.
inline bool no_descriptor_is_left() {
#if !defined(_WIN32)
    const int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (probe < 0) return errno == EMFILE || errno == ENFILE;
    close(probe);
#endif
    return false;
}

// Runs what a C library called back, through which no exception may pass.
template <class F, class R>
R shielded(F&& call, [[maybe_unused]] R otherwise) noexcept {
#if S3CACHE_EXCEPTIONS
    try {
        return call();
    } catch (...) {
        return otherwise;
    }
#else
    return call();
#endif
}

// The header lines of one response, in one block of text that is used again. They are few, so looking through them for
// a name costs less than an index.
class Headers {
public:
    void clear() {
        text_.clear();
        fields_.clear();
    }
    bool add(std::string_view line) {  // "Name: value"; false: over a limit
        const std::size_t colon = line.find(':');
        if (colon == std::string_view::npos) return true;
        if (fields_.size() == header_lines_max || text_.size() + line.size() > header_bytes_max) return false;
        const std::string_view name = bytes::trim(line.substr(0, colon)), value = bytes::trim(line.substr(colon + 1));
        const std::size_t at = text_.size();
        text_.append(name).append(value);
        fields_.push_back({at, name.size(), value.size()});  // last: what is not there must not be looked at
        return true;
    }

    template <class F>
    void each(F&& visit) const {
        for (const Field& field : fields_) {
            const char* name = text_.data() + field.at;
            visit(std::string_view(name, field.name), std::string_view(name + field.name, field.value));
        }
    }
    // Of the first line of that name, since stores that repeat one repeat its value. Empty: there is none.
    std::string_view get(std::string_view name) const {
        std::string_view found;
        each([&](std::string_view other, std::string_view value) {
            if (found.empty() && other.size() == name.size() && bytes::iequal(other, name)) found = value;
        });
        return found;
    }

private:
    struct Field {
        std::size_t at, name, value;  // where it begins in the text; sizes
    };
    std::string text_;
    std::vector<Field> fields_;
};

enum class Method { get, head, put, post, erase };

inline const char* name_of(Method method) {
    constexpr const char* names[] = {"GET", "HEAD", "PUT", "POST", "DELETE"};
    return names[static_cast<std::size_t>(method)];
}

enum class SinkResult { consumed, pause, stop };  // pause: offer the same again; stop: end the transfer

struct Limits {
    Milliseconds connect{0}, stall{0}, total{0};  // zero: none
};

// One easy handle with one request and its response. Its buffers live on from request to request.
class Transfer {
public:
    // Where the body of a successful response goes. A virtual call would bill every file that includes this.
    struct Sink {
        void* self = nullptr;
        SinkResult (*take)(void* self, const Transfer& from, const char* data, std::size_t size) = nullptr;
    };

    // the request
    Method method = Method::get;
    bool large = false;  // a large response is likely
    bool bypass_proxy = false;
    std::string url;
    std::size_t path_at = 0;  // where the path begins in it; 0: unknown
    std::string_view body;    // borrowed; of PUT and POST
    Sink sink{};
    Limits limits{};
    // the response
    CURLcode result = CURLE_OK;
    int status = 0;
    Headers headers;
    std::string text;  // the body, where no sink takes it
    std::uint64_t received = 0;
    bool paused = false;
    bool reused = false;     // the connection was
    bool overflow = false;   // more headers or text than we take
    bool no_memory = false;  // a sink threw
    bool broken = false;     // libcurl refused an option or has no memory: not to be used again
    char problem[CURL_ERROR_SIZE] = {};
    void* owner = nullptr;
    // kept from request to request
    std::vector<sigv4::Header> to_sign;
    sigv4::Signer signer;  // keeps the key that it derived: one for each handle needs no lock
    CURL* easy;

    Transfer() : easy(curl_easy_init()) {}
    ~Transfer() {
        for (std::string& line : lines_) bytes::wipe(line);  // session tokens and signatures
        if (easy) curl_easy_cleanup(easy);
    }
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

    template <class T>
    T info(CURLINFO which) const {
        T value{};
        curl_easy_getinfo(easy, which, &value);
        return value;
    }

    std::uint64_t sent() const { return static_cast<std::uint64_t>(info<curl_off_t>(CURLINFO_SIZE_UPLOAD_T)); }

    void clear_request() {
        used_ = 0;
        body = {};
        sink = {};
        large = bypass_proxy = false;
    }

    void add_header(std::string_view name, std::string_view value) {
        std::string& line = next_line();
        line.assign(name);
        // A ';' is libcurl's way to write an empty value; with a colon it would drop the header.
        if (value.empty())
            line += ';';
        else
            line.append(": ").append(value);
    }

    // Ready to be added to a multi handle. False: libcurl refused an option, or has no memory.
    bool prepare(const Config& config) {
        if (!easy) return false;
        broken = false;
        const Setup wanted{static_cast<std::int64_t>(method), large, bypass_proxy, limits.connect.count(),
                           limits.stall.count()};
        if (wanted != setup_) {
            setup_ = wanted;
            curl_easy_reset(easy);
            set_up(config);
        }
        set_url();
        set_headers(config);
        if (has_body()) {  // its size is always given: without it libcurl would send it chunked, which S3 refuses
            set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
            set(CURLOPT_POSTFIELDS, body.data() ? body.data() : "");
        }
        set(CURLOPT_TIMEOUT_MS, static_cast<long>(limits.total.count()));
        result = CURLE_OK;
        status = 0;
        headers.clear();
        text.clear();
        received = 0;
        paused = reused = overflow = no_memory = false;
        problem[0] = '\0';
        return !broken;
    }

private:
    // What a handle was last set up for. The same again needs a few options only; anything else a reset first, since
    // options of a method leak into the next request.
    using Setup = std::array<std::int64_t, 5>;
    bool has_body() const { return method == Method::put || method == Method::post; }

    template <class T>
    void set(CURLoption option, T value) {
        if (curl_easy_setopt(easy, option, value) != CURLE_OK) broken = true;
    }
    template <class T>
    void set_if_known(CURLoption option, T value) {  // to this libcurl
        static_cast<void>(curl_easy_setopt(easy, option, value));
    }
    void set_if_given(CURLoption option, const std::string& value) {
        if (!value.empty()) set(option, value.c_str());
    }

    void set_up(const Config& config) {
        set(CURLOPT_PRIVATE, static_cast<void*>(this));
        set(CURLOPT_ERRORBUFFER, &problem[0]);
        set(CURLOPT_NOSIGNAL, 1L);
        set(CURLOPT_PATH_AS_IS, 1L);  // a key may hold `.` and `..`
        set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
        if (config.setup_curl) set(CURLOPT_USERAGENT, user_agent);  // which it may replace
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
        set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
        set_if_given(CURLOPT_CAINFO, config.ca_bundle);
        set_if_given(CURLOPT_SSLCERT, config.client_certificate);
        set_if_given(CURLOPT_SSLKEY, config.client_key);
        set_if_given(CURLOPT_PROXY, config.proxy);
        if (bypass_proxy) set(CURLOPT_NOPROXY, "*");
        if (method == Method::get) set(CURLOPT_HTTPGET, 1L);
        if (method == Method::head) set(CURLOPT_NOBODY, 1L);
        if (has_body()) set(CURLOPT_POST, 1L);
        if (method == Method::put || method == Method::erase) set(CURLOPT_CUSTOMREQUEST, name_of(method));
        set(CURLOPT_BUFFERSIZE, large ? large_buffer_bytes : small_buffer_bytes);
#if LIBCURL_VERSION_NUM >= 0x073e00
        if (has_body()) set_if_known(CURLOPT_UPLOAD_BUFFERSIZE, upload_buffer_bytes);
#endif
#if LIBCURL_VERSION_NUM >= 0x074000
        set_if_known(CURLOPT_HTTP09_ALLOWED, 0L);
#endif
#if LIBCURL_VERSION_NUM >= 0x074100
        set_if_known(CURLOPT_MAXAGE_CONN, idle_seconds_max);
#endif
        if (config.setup_curl) config.setup_curl(easy);
    }

    // Where only the path is another one than last time, libcurl need not parse the URL anew. Escapes go the long way,
    // because libcurl would turn them to lower case, which is not what was signed.
    void set_url() {
#if LIBCURL_VERSION_NUM >= 0x073f00
        const std::string_view path = std::string_view(url).substr(path_at);
        if (path_at != 0 && path.find('%') == path.npos && path.find('?') == path.npos) {
            if (url.compare(0, path_at, host_) != 0) {
                host_.assign(url, 0, path_at);
                broken |= curl_url_set(parts_.get(), CURLUPART_URL, host_.c_str(), 0) != CURLUE_OK;
            }
            broken |= curl_url_set(parts_.get(), CURLUPART_PATH, path.data(), 0) != CURLUE_OK;
            return set(CURLOPT_CURLU, parts_.get());
        }
        set(CURLOPT_CURLU, static_cast<CURLU*>(nullptr));
#endif
        set(CURLOPT_URL, url.c_str());
    }

    std::string& next_line() {
        if (used_ == lines_.size()) lines_.emplace_back();
        return lines_[used_++];
    }
    void set_headers(const Config& config) {
        // Without a value: libcurl's way to send no such header of its own. Accept says nothing, asking leave to send
        // (Expect) costs a second on the stores that do not answer it, Content-Type would say that the body is a form.
        const std::size_t given = used_;
        next_line().assign("Accept:");
        // As an option it would be written twice.
        if (!config.setup_curl) next_line().assign("User-Agent: ").append(user_agent);
        for (const char* of_body : {"Expect:", "Content-Type:"}) {
            if (has_body()) next_line().assign(of_body);
        }
        list_.resize(used_);
        for (std::size_t i = 0; i < used_; ++i) list_[i] = {&lines_[i][0], i + 1 < used_ ? &list_[i + 1] : nullptr};
        used_ = given;
        set(CURLOPT_HTTPHEADER, list_.data());
    }

    static std::size_t on_header(char* data, std::size_t size, std::size_t count, void* self) {
        Transfer& transfer = *static_cast<Transfer*>(self);
        const std::string_view line(data, size * count);
        if (bytes::starts_with(line, "HTTP/")) {  // each response, 100 Continue too, begins anew
            transfer.headers.clear();
            transfer.status = static_cast<int>(transfer.info<long>(CURLINFO_RESPONSE_CODE));
            return line.size();
        }
        transfer.overflow |= !shielded([&] { return transfer.headers.add(line); }, false);
        return transfer.overflow ? 0 : line.size();
    }

    static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self) {
        Transfer& transfer = *static_cast<Transfer*>(self);
        constexpr std::size_t threw = static_cast<std::size_t>(-1);
        const std::size_t taken = shielded([&] { return transfer.take_body(data, size * count); }, threw);
        transfer.no_memory |= taken == threw;
        return taken == threw ? 0 : taken;
    }

    std::size_t take_body(const char* data, std::size_t size) {
        if (sink.take && (status == 200 || status == 206)) {
            const SinkResult said = sink.take(sink.self, *this, data, size);
            paused = said == SinkResult::pause;
            if (paused) return CURL_WRITEFUNC_PAUSE;
            if (said == SinkResult::stop) return 0;
        } else {
            overflow = text.size() + size > text_bytes_max;
            if (overflow) return 0;
            text.append(data, size);
        }
        received += size;
        return size;
    }

    std::optional<Setup> setup_;
    std::vector<std::string> lines_;
    std::size_t used_ = 0;
#if LIBCURL_VERSION_NUM >= 0x073f00
    std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parts_{curl_url(), &curl_url_cleanup};
    std::string host_;  // the scheme and the host in them
#endif
    std::vector<curl_slist> list_;  // points into lines_: building libcurl's own list would copy every line again
};

// Until libcurl 7.87 OpenSSL wrote to sockets itself, and a closed one raised SIGPIPE.
class SigpipeGuard {
#if !defined(_WIN32)
public:
    SigpipeGuard() {
        static const bool is_old = curl_version_info(CURLVERSION_NOW)->version_num < 0x075700;
        if (!is_old || is_pending()) return;
        sigemptyset(&pipe_);
        sigaddset(&pipe_, SIGPIPE);
        is_blocked_ = pthread_sigmask(SIG_BLOCK, &pipe_, &before_) == 0;
    }
    ~SigpipeGuard() {
        if (!is_blocked_) return;
        int taken = 0;
        if (is_pending()) sigwait(&pipe_, &taken);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    SigpipeGuard(const SigpipeGuard&) = delete;
    SigpipeGuard& operator=(const SigpipeGuard&) = delete;

private:
    static bool is_pending() {
        sigset_t pending;
        sigpending(&pending);
        return sigismember(&pending, SIGPIPE) == 1;
    }
    sigset_t pipe_{}, before_{};
    bool is_blocked_ = false;
#endif
};

// A multi handle with the connections it keeps, and idle transfers. One thread at a time. It belongs to the process
// that made it: a forked child must not even close the connections, because TLS would say goodbye on its parent's.
class Engine {
public:
    explicit Engine(unsigned connections) : multi_(curl_multi_init()) {
        if (multi_) curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(connections));
    }
    ~Engine() {
        if (is_of_parent()) {
            for (auto& transfer : idle_) static_cast<void>(transfer.release());  // leaked on purpose
            return;
        }
        idle_.clear();
        if (multi_) curl_multi_cleanup(multi_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    bool is_of_parent() const { return process_ != process_id(); }

    std::unique_ptr<Transfer> borrow() {
        if (idle_.empty()) {
            idle_.reserve(++made_);  // so that giving back needs no memory
            return std::make_unique<Transfer>();
        }
        std::unique_ptr<Transfer> transfer = std::move(idle_.back());
        idle_.pop_back();
        transfer->clear_request();
        return transfer;
    }
    // One that still runs is cut off, which closes its connection.
    void give_back(std::unique_ptr<Transfer> transfer, bool running) noexcept {
        if (running && is_of_parent()) return static_cast<void>(transfer.release());
        if (running) curl_multi_remove_handle(multi_, transfer->easy);
        if (transfer->text.capacity() > (std::size_t{1} << 20)) std::string().swap(transfer->text);
        if (idle_.size() < idle_.capacity() && !transfer->broken) idle_.push_back(std::move(transfer));
    }

    bool start(Transfer& transfer, const Config& config) {
        transfer.broken =
            !multi_ || !transfer.prepare(config) || curl_multi_add_handle(multi_, transfer.easy) != CURLM_OK;
        return !transfer.broken;
    }
    // Takes a transfer out that has failed outside of perform().
    void stop(Transfer& transfer, CURLcode result) {
        curl_multi_remove_handle(multi_, transfer.easy);
        transfer.result = result;
    }

    // Moves bytes without waiting, and calls `finished` with each transfer that is over.
    template <class F>
    bool perform(F&& finished) {
        [[maybe_unused]] const SigpipeGuard guard;
        int running = 0;
        if (curl_multi_perform(multi_, &running) != CURLM_OK) return false;
        while (CURLMsg* message = curl_multi_info_read(multi_, &running)) {
            if (message->msg != CURLMSG_DONE) continue;
            void* self = nullptr;
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &self);
            Transfer& transfer = *static_cast<Transfer*>(self);
            transfer.reused = transfer.info<long>(CURLINFO_NUM_CONNECTS) == 0;
            transfer.broken = message->data.result == CURLE_OUT_OF_MEMORY;
            stop(transfer, message->data.result);  // the message goes with the handle
            finished(transfer);
        }
        return true;
    }

    // Waits for a socket, or for the time to pass: also where there is no socket, which curl_multi_wait does not.
    void wait(Milliseconds most) {
#if LIBCURL_VERSION_NUM >= 0x074200
        curl_multi_poll(multi_, nullptr, 0, static_cast<int>(most.count()), nullptr);
#else
        int sockets = 0;
        curl_multi_wait(multi_, nullptr, 0, static_cast<int>(most.count()), &sockets);
        if (sockets == 0) std::this_thread::sleep_for((std::min)(most, Milliseconds(10)));
#endif
    }

    digest::Sha256 body_hash;  // for whoever has a whole body: making one anew costs half of hashing 4 KiB

private:
    CURLM* multi_;
    const std::uint64_t process_ = process_id();
    std::size_t made_ = 0;  // transfers
    std::vector<std::unique_ptr<Transfer>> idle_;
};

// The idle engines of a cache. The lock is held to take one or give it back, never during I/O. Last in, first out: the
// engine used last has the warmest connections. After a fork those of the parent are let go of unclosed.
class Pool {
public:
    explicit Pool(const Config& config) : connections_(config.connections) {
        idle_.reserve((std::max)(connections_, idle_connections_max));  // so that giving back needs no memory
    }

    std::unique_ptr<Engine> take() {
        const std::lock_guard<std::mutex> hold(lock_);
        while (!idle_.empty()) {
            std::unique_ptr<Engine> engine = std::move(idle_.back());
            idle_.pop_back();
            if (!engine->is_of_parent()) return engine;
        }
        return std::make_unique<Engine>(connections_);
    }
    void give_back(std::unique_ptr<Engine> engine) noexcept {
        const std::lock_guard<std::mutex> hold(lock_);
        if (!engine->is_of_parent() && idle_.size() < idle_.capacity()) idle_.push_back(std::move(engine));
    }

private:
    std::mutex lock_;
    std::vector<std::unique_ptr<Engine>> idle_;
    const unsigned connections_;
};

}  // namespace detail::http

// --- retry: what an answer means for the next attempt, waits between attempts, quota, circuit breaker ----------------

namespace detail::retry {

// A wait that the store asked for is honoured up to this; sccache's users waited for hours on an absurd one.
inline constexpr std::chrono::milliseconds retry_after_max{20000};
// An outage must not be multiplied: a cache has this many tokens, a retry takes five (ten after a timeout), a success
// gives one back and so does time. The numbers are botocore's standard mode, but for the refill by time.
inline constexpr double quota_tokens = 500;
inline constexpr double quota_per_retry = 5;
inline constexpr double quota_per_timeout = 10;
inline constexpr double quota_per_second = 5;

enum class Action {
    accept,               // an answer for the operation to look at, good or bad
    retry,                // passing trouble
    refresh_credentials,  // once, with fresh ones
    correct_clock,        // once, with the store's time
    correct_region,       // once, signed for the region that the store named
    ask_again,            // once, because what was said is not about the request
    give_up,              // no answer, and another attempt would not help
};

// What the store says, what is done about it, and what a person can do where that is not plain from the store's words.
struct Rule {
    std::string_view words;  // codes of S3 and statuses, a blank around each
    Action action;
    Errc kind;
    const char* advice;
};

// The one table from answers to actions, kinds of errors and advice. A code counts before the status, whose advice
// (that permission is lacking) need not fit a code that nobody knows.
inline constexpr Rule rules[] = {
    {" InternalError InternalErrors OperationAborted PriorRequestNotComplete RequestTimeout ServiceUnavailable "
     "ConditionalRequestConflict 408 500 502 503 504 509 "
     "520 521 522 523 524 ",  // of Cloudflare's front, about the store behind it
     Action::retry, Errc::store, ""},
    {" BadDigest XAmzContentSHA256Mismatch ", Action::retry, Errc::network, ""},  // damaged on its way
    {" SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException ThrottledException TooManyRequests "
     "RequestLimitExceeded BandwidthLimitExceeded 429 ",
     Action::retry, Errc::throttled, "ask less often, or spread the keys over more prefixes"},
    {" ExpiredToken ExpiredTokenException InvalidToken RequestExpired TokenRefreshRequired ",
     Action::refresh_credentials, Errc::credentials, ""},
    {" InvalidAccessKeyId ", Action::refresh_credentials, Errc::denied,
     "the store does not know this access key: check it, and the endpoint"},
    {" SignatureDoesNotMatch ", Action::refresh_credentials, Errc::denied,
     "check the secret key, and that no proxy changes headers"},
    {" RequestTimeTooSkewed ", Action::correct_clock, Errc::denied, "this machine's clock is off"},
    {" AuthorizationHeaderMalformed IllegalLocationConstraintException PermanentRedirect 301 307 ",
     Action::correct_region, Errc::store,
     "the request went to another region's host: check the region and the endpoint"},
    {" AccessDenied 401 403 ", Action::accept, Errc::denied,
     "these credentials lack the permission, or the bucket is another's"},
    {" InvalidObjectState ", Action::accept, Errc::denied,
     "the object is archived: restore it (aws s3api restore-object), or remove it"},
    {" QuotaExceeded QuotaExceededException StorageQuotaExceeded XMinioStorageFull InsufficientCapacity ",
     Action::accept, Errc::store, "the store's quota or space is used up: remove entries, or raise it"},
    {" NoSuchBucket ", Action::accept, Errc::no_such_bucket,
     "create the bucket, or check its name, the region and the endpoint"},
    {" EntityTooLarge KeyTooLongError MetadataTooLarge RequestHeaderSectionTooLarge ", Action::accept, Errc::too_large,
     ""},
    {" 413 ", Action::accept, Errc::too_large, "something on the way takes no body as large: lower Config::part_bytes"},
    {" 407 ", Action::accept, Errc::denied, "the proxy wants a user and a password: see Config::proxy"},
    {" NotImplemented 501 ", Action::accept, Errc::unsupported, ""},
    {"", Action::accept, Errc::store, ""},
};

inline Rule rule_for(int status, std::string_view code) {
    const auto find = [](std::string_view word) {
        const std::string wanted = " " + std::string(word) + " ";
        const auto fits = [&](const Rule& rule) { return rule.words.find(wanted) != std::string_view::npos; };
        return *std::find_if(std::begin(rules), std::end(rules) - 1, fits);
    };
    const std::string number = bytes::number(static_cast<std::uint64_t>(status));
    if (const Rule by_code = find(code); !by_code.words.empty()) return by_code;
    Rule by_status = find(number);
    if (!code.empty() && code != number) by_status.advice = "";
    return by_status;
}

// What libcurl's result means where there is no answer: the kind of error, and whether another attempt may help.
struct Failure {
    Errc kind;
    bool is_passing;
};
inline Failure failure_of(int result) {
    constexpr int curl_too_large = 100;  // since 8.6; before, CURLE_OUT_OF_MEMORY: a header line too long for it
    const struct {
        Failure meaning;
        std::initializer_list<int> results;
    } known[] = {
        {{Errc::timed_out, true}, {CURLE_OPERATION_TIMEDOUT}},
        {{Errc::tls, true}, {CURLE_SSL_CONNECT_ERROR}},
        {{Errc::tls, false},
         {CURLE_SSL_CERTPROBLEM, CURLE_SSL_CIPHER, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CACERT_BADFILE,
          CURLE_SSL_ISSUER_ERROR}},
        {{Errc::protocol, false},
         {CURLE_OUT_OF_MEMORY, curl_too_large, CURLE_WEIRD_SERVER_REPLY, CURLE_BAD_CONTENT_ENCODING}},
        {{Errc::network, true},
         {CURLE_COULDNT_RESOLVE_PROXY, CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_CONNECT, CURLE_HTTP2,
          CURLE_PARTIAL_FILE, CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR, CURLE_SEND_FAIL_REWIND,
          CURLE_HTTP2_STREAM}},
    };
    for (const auto& row : known) {
        if (std::find(row.results.begin(), row.results.end(), result) != row.results.end()) return row.meaning;
    }
    return {Errc::network, false};
}

// Whether there is an answer. A store may refuse and close while we still send: then that counts, not the broken pipe.
inline bool is_answered(CURLcode result, int status) {
    return result == CURLE_OK || (status >= 400 && (result == CURLE_SEND_ERROR || result == CURLE_RECV_ERROR));
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
    return Seconds(to.time_since_epoch()).count() - Seconds(from.time_since_epoch()).count();
}

// Retry-After: seconds or an HTTP date; zero if it is neither.
inline std::chrono::milliseconds retry_after(std::string_view text, TimePoint now) {
    double wait = 0;
    if (const auto seconds = bytes::to_u64(text))
        wait = static_cast<double>(*seconds);
    else if (const auto when = dates::http_date(text))
        wait = seconds_between(now, *when);
    wait = (std::max)(0.0, (std::min)(wait, Seconds(retry_after_max).count()));
    return std::chrono::milliseconds(static_cast<std::int64_t>(wait * 1000));
}

// What a cache remembers of how its requests went: the tokens left for retries, and the circuit breaker, which is off
// unless Config::breaker_failures is over zero.
class Health {
public:
    explicit Health(const Config& config) : failures_max_(config.breaker_failures), pause_(config.breaker_pause) {}

    // Whether a call may be sent. An open breaker lets one through each pause, which closes it if it goes well: half
    // open is no state of its own, only the call that came first after the pause.
    bool admits(TimePoint now) {
        const std::lock_guard<std::mutex> hold(lock_);
        // A clock that was set back must not turn a pause into a day.
        const bool tripped = failures_max_ != 0 && failures_ >= failures_max_;
        const bool open = tripped && now < until_ && until_ - now <= pause_;
        if (tripped && !open) until_ = now + pause_;
        return !open;
    }
    // Whether there may be another attempt.
    bool take(double tokens, http::Clock::time_point now) {
        const std::lock_guard<std::mutex> hold(lock_);
        tokens_ = (std::min)(quota_tokens, tokens_ + Seconds(now - last_).count() * quota_per_second);
        last_ = now;
        if (tokens_ < tokens) return false;
        tokens_ -= tokens;
        return true;
    }
    // The store answered; or it did not, or with passing trouble.
    void report(bool is_healthy, TimePoint now) {
        const std::lock_guard<std::mutex> hold(lock_);
        if (is_healthy) tokens_ = (std::min)(quota_tokens, tokens_ + 1);
        failures_ = is_healthy ? 0 : (std::min)(failures_ + 1, failures_max_);
        if (failures_ == failures_max_) until_ = now + pause_;
    }

private:
    const unsigned failures_max_;
    const std::chrono::milliseconds pause_;
    std::mutex lock_;
    double tokens_ = quota_tokens;
    http::Clock::time_point last_ = http::Clock::now();
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
inline constexpr std::size_t key_bytes_max = 1024;          // AWS documents 128 for ids; MinIO takes any length
inline constexpr std::size_t token_bytes_max = 20000;       // STS takes no longer one; servers refuse such headers
inline constexpr std::size_t text_bytes_max = 2048;         // of a URL or ARN; HTTP software takes no more everywhere
inline constexpr std::size_t roles_max = 100;               // roles that lead to roles; a longer chain is a mistake

// -- times: a metadata service answers from the same host, STS from the same region
inline constexpr milliseconds container_timeout{2000};  // as the AWS SDKs
inline constexpr milliseconds sts_timeout{10000};
inline constexpr int attempts_max = 3;  // of STS, and of a container's agent, which may still be starting
inline constexpr milliseconds between_attempts{1000};
inline constexpr milliseconds process_timeout{60000};  // a helper may ask a person for a code
inline constexpr milliseconds cancel_poll{50};         // how often a wait looks for a cancellation
inline constexpr minutes renewal_window{15};           // one thread renews, the others go on
inline constexpr minutes imds_extension{15};           // use of overdue instance credentials in an outage
inline constexpr seconds retry_first{1};               // after a failed renewal; doubles
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
    milliseconds connect_timeout{3000};
    milliseconds timeout{1000};  // of instance metadata, as in the AWS CLI
    int attempts = attempts_max;
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
    std::string problem{};  // why it is unreadable
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

struct Setting {
    std::string value{};  // empty: nothing is configured
    std::string why{};    // where it was found
};

// -- texts

using Keys = Result<Credentials>;

inline Error broken(const std::string& what) { return Error(Errc::credentials, what); }

// A source that is not configured: the next one is asked. One that is configured but broken is an error, because
// falling through could use another identity.
inline Error passed_over(const std::string& why) { return Error(Errc::unavailable, why); }
inline bool is_passed_over(const Keys& keys) { return !keys && keys.error().code() == Errc::unavailable; }

// The last four characters tell one key from another, as the AWS CLI shows it; a short key would be half told by them.
inline std::string masked(std::string_view access_key) {
    return access_key.size() < 12 ? "****" : "****" + std::string(access_key.substr(access_key.size() - 4));
}

// What may be a URL, for a message: tokens stand behind the question mark, passwords before the '@', even where the
// scheme is misspelt.
inline std::string shown_url(std::string_view url) {
    const std::size_t at = url.rfind('@');
    if (at == std::string_view::npos) return bytes::sanitize(url.substr(0, url.find('?')));
    url.remove_prefix(at);
    return bytes::sanitize(std::string("******").append(url.substr(0, url.find_first_of("/?#&"))));
}

// `name` is where the value was found.
inline Error unexpected(const std::string& name, const std::string& value, const std::string& expected,
                        Errc code = Errc::credentials) {
    return Error(code, name + " is '" + shown_url(value) + "', expected " + expected);
}

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

// Whether keys that a source, or a user's provider, has returned can be used. `where` becomes their source.
inline Keys check(Credentials keys, const std::string& where, TimePoint now) {
    const bool lacks_secret = keys.secret_key.empty();
    if (keys.access_key.empty() != lacks_secret)
        return broken(where + (lacks_secret
                                   ? ": the access key is set but the secret key is not: set both or neither"
                                   : ": the secret key is set but the access key is not: set both or neither"));
    // Blanks in the secret are let through, because it never enters a header and some stores allow them.
    auto fine = check_value(keys.access_key, where + ": the access key", key_bytes_max);
    if (fine) fine = check_value(keys.secret_key, where + ": the secret key", key_bytes_max, true);
    if (fine) fine = check_value(keys.session_token, where + ": the session token", token_bytes_max);
    if (!fine) return std::move(fine).error();
    keys.source = where;
    if (!keys.expires || *keys.expires > now) return keys;
    return broken(where + ": the credentials expired at " + time_text(*keys.expires) + " and the clock says " +
                  time_text(now) + ": renew them there, or set the clock");
}

// The first of the variables that is set. Empty is unset, as everywhere in the AWS tools, because containers often
// declare variables that they leave blank.
inline Setting first_variable(const Environment& environment, std::initializer_list<const char*> names) {
    for (const char* name : names) {
        auto value = environment.variable(name);
        if (value && !value->empty()) return {*std::move(value), name};
    }
    return {};
}

inline bool is_url(const std::string& text) {
    return check_value(text, {}, text_bytes_max) && endpoint::parse_url(text);
}

inline bool switched_on(const std::string& value) { return bytes::iequal(bytes::trim(value), "true"); }

// -- the files

// Both files as one reading found them, and the profile that is selected.
struct Files {
    ini::File config{}, credentials{};
    std::string config_path{}, credentials_path{};
    std::string profile{};
    ini::Profile find(const std::string& name) const { return ini::find_profile(config, credentials, name); }
};

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN

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
inline Result<void> read_settings(ini::File& out, std::string& path, const Environment& environment,
                                  const char* variable, const char* otherwise) {
    path = first_variable(environment, {variable}).value;
    if (path.empty()) path = otherwise;
    if (bytes::starts_with(path, "~/")) path = home_directory(environment) + path.substr(1);
    const FileText file = environment.read_file(path);
    path = bytes::sanitize(path);
    if (file.state == FileState::unreadable) return broken(path + " cannot be read: " + file.problem);
    const bool marked = bytes::starts_with(file.text, "\xEF\xBB\xBF");
    auto parsed = ini::parse(std::string_view(file.text).substr(marked ? 3 : 0), path);
    if (!parsed) return std::move(parsed).error();
    out = *std::move(parsed);
    return {};
}

// Set but empty counts for the profile, unlike elsewhere: botocore looks for a profile without a name then and fails,
// and so would the AWS CLI on the same machine.
inline Setting chosen_profile(const Environment& environment, const Settings& settings) {
    if (!settings.profile.empty()) return {settings.profile, "the configured profile"};
    for (const char* name : {"AWS_DEFAULT_PROFILE", "AWS_PROFILE"}) {
        if (auto value = environment.variable(name)) return {*std::move(value), name};
    }
    return {"default", {}};
}

inline Result<void> read_files(Files& files, const Environment& environment, const Settings& settings) {
    auto read = read_settings(files.config, files.config_path, environment, "AWS_CONFIG_FILE", "~/.aws/config");
    if (read)
        read = read_settings(files.credentials, files.credentials_path, environment, "AWS_SHARED_CREDENTIALS_FILE",
                             "~/.aws/credentials");
    if (!read) return read;
    const Setting chosen = chosen_profile(environment, settings);
    files.profile = chosen.value;
    const ini::Profile profile = files.find(files.profile);
    const std::string name = bytes::sanitize(files.profile), services = profile.get("services");
    if (!chosen.why.empty() && !profile.exists())
        return broken(chosen.why + ": there is no profile '" + name + "' in " + files.config_path + " or " +
                      files.credentials_path);
    if (!services.empty() && ini::find_section(files.config, "services", services) == nullptr)
        return broken("profile " + name + ": there is no [services " + bytes::sanitize(services) + "]");
    return {};
}

// -- answers of endpoints and processes

// Instance metadata says Token for what a helper program calls SessionToken. A member of another type makes the answer
// unusable, because else a token could go missing.
inline Result<xml::StsCredentials> keys_in_json(std::string_view body, const std::string& where) {
    const std::size_t open = (std::min)(body.find_first_not_of(" \t\r\n"), body.size());
    if (!bytes::starts_with(body.substr(open), "{") || !json::valid(body))
        return broken(where + ": the answer is not a JSON object, expected one with AccessKeyId and SecretAccessKey");
    xml::StsCredentials keys;
    const std::pair<const char*, std::string*> members[] = {{"AccessKeyId", &keys.access_key},
                                                            {"SecretAccessKey", &keys.secret_key},
                                                            {"SessionToken", &keys.session_token},
                                                            {"Token", &keys.session_token},
                                                            {"Expiration", &keys.expiration}};
    for (const auto& [name, value] : members) {
        const std::string_view raw = json::member(body, name);
        if (raw.empty() || raw == "null") continue;
        auto text = json::string_field(body, name);
        if (!text) return broken(where + ": " + name + " is not a text");
        *value = *std::move(text);
    }
    if (!keys.access_key.empty() || !keys.secret_key.empty()) return keys;
    return broken(where + ": the answer has no AccessKeyId and SecretAccessKey");
}

inline std::string told(const WebAnswer& answer) {
    if (answer.status > 0) return "HTTP status " + bytes::number(static_cast<std::uint64_t>(answer.status));
    return "no answer" + (answer.problem.empty() ? std::string() : " (" + bytes::sanitize(answer.problem) + ")");
}

// What STS says about roles and policies is what the reader needs, unless it repeats the token that it was sent.
inline std::string sts_complaint(const WebAnswer& answer, const std::string& token) {
    if (answer.status == 200) return "an answer without credentials";
    const auto error = answer.status != 0 ? xml::error_body(answer.body) : std::nullopt;
    if (!error || error->code.empty()) return told(answer);
    const bool repeats = !token.empty() && error->message.find(token) != std::string::npos;
    return told(answer) + ", " + bytes::sanitize(error->code + (repeats ? "" : ": " + error->message));
}

// -- addresses

// Plain HTTP carries the keys and our token in the clear, so it goes only where nobody else can listen.
inline bool plain_http_allowed(const endpoint::Url& url) {
    const std::string host = url.host.substr(0, url.host.find(':', url.host.find(']') + 1));  // npos + 1 is 0
    for (const char* known : {"localhost", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]", "[::1]"}) {
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
    const bool fine = check_value(url, {}, text_bytes_max) && url.find_first_of("\\#") == std::string::npos;
    const auto base = fine ? endpoint::parse_url(std::string_view(url).substr(0, end)) : std::nullopt;
    if (!base || (relative && set.value[0] != '/'))
        return broken("container: " + set.why + " is no " +
                      (relative ? "path such as /v2/credentials/ID" : "URL such as http://169.254.170.23/credentials"));
    const std::string shown = base->scheme + "://" + base->host;
    if (base->scheme == "https" || plain_http_allowed(*base))
        return shown + (url.compare(end, 1, "/") == 0 ? "" : "/") + url.substr(end);
    return broken("container: " + set.why + " names " + shown +
                  ", but plain http is used only for localhost, 127.0.0.0/8, [::1], 169.254.170.2, 169.254.170.23 and "
                  "[fd00:ec2::23]; expected one of them, or https");
}

#else
inline Result<void> read_files(Files&, const Environment&, const Settings&) { return {}; }
#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

// -- the chain

// One caller's walk through the sources, and through what names a region and an endpoint. The files are read once in
// it, when they are first needed, and anew in the next, because other programs rewrite them.
class Walk {
public:
    Walk(const Environment& environment, const Settings& settings, Limits limits = {})
        : environment_(environment), settings_(settings), limits_(std::move(limits)) {}

    Result<void> load() {
        if (files_) return {};
        files_.emplace();
        auto read = read_files(*files_, environment_, settings_);
        if (!read) files_.reset();
        return read;
    }

    std::string profile_value(const char* name) const { return files_->find(files_->profile).get(name); }

    // Without asking instance metadata: the store corrects a wrong region.
    Result<Setting> region() {
        Setting set{settings_.region, "Config::region"};
        if (set.value.empty()) set = first({"AWS_REGION", "AWS_DEFAULT_REGION"});
        if (set.value.empty()) {
            if (auto read = load(); !read) return std::move(read).error();
            set = {profile_value("region"), profile_text(files_->profile) + ": region"};
        }
        if (set.value.empty() || endpoint::valid_region(set.value)) return set;
        return unexpected(set.why, set.value, "a region such as eu-west-1", Errc::invalid_argument);
    }

    // Of "S3" or "STS": a service's own variable, the one for all, the profile's services section, the profile.
    Result<Setting> endpoint_url(const std::string& service) {
        const std::string own = "AWS_ENDPOINT_URL_" + service;
        Setting set{service == "S3" ? settings_.endpoint_url : std::string(), "Config::endpoint"};
        if (set.value.empty()) {
            if (auto read = load(); !read) return std::move(read).error();
            const Setting ignore = in_profile("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls");
            if (switched_on(ignore.value)) return Setting();
            set = first({own.c_str(), "AWS_ENDPOINT_URL"});
        }
        if (set.value.empty()) set = endpoint_in_files(bytes::lower(service));
        if (set.value.empty() || is_url(set.value)) return set;
        return unexpected(set.why, set.value, "a URL such as https://s3.example.com", Errc::invalid_argument);
    }

    // -- the sources

    // As in botocore a secret alone is passed over, and an access key alone is an error.
    Keys environment() {
        if (!settings_.profile.empty()) return passed_over("a profile is chosen in code");
        return keys_in_environment();
    }

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN

    // The variables of Kubernetes and CI systems. A profile that names a role goes first, as in botocore.
    Keys web_identity() {
        if (!settings_.profile.empty()) return passed_over("a profile is chosen in code");
        if (first({"AWS_WEB_IDENTITY_TOKEN_FILE"}).value.empty())
            return passed_over("AWS_WEB_IDENTITY_TOKEN_FILE is not set");
        if (auto read = load(); !read) return std::move(read).error();
        const std::string& name = files_->profile;
        if (assumes_role(files_->find(name)))
            return passed_over(profile_text(name) + " names a role, which goes first");
        return keys_by_web_identity(name, true);
    }

    Keys profile() {
        if (auto read = load(); !read) return std::move(read).error();
        return keys_of(files_->profile);
    }

    Keys container() {
        const Setting address = first({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"});
        if (address.value.empty())
            return passed_over(
                "neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is set");
        const auto url = container_url(address);
        if (!url) return url.error();
        Setting token = first({"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN"});
        if (bytes::ends_with(token.why, "_FILE")) {
            auto read = token_in(token.value, "container: " + token.why, true);
            if (!read) return std::move(read).error();
            token.value = *std::move(read);
        }
        auto fine = check_value(token.value, "container: " + token.why, token_bytes_max, true);
        if (!fine) return std::move(fine).error();
        WebRequest request{"GET", *url, {{"Accept", "application/json"}}};
        request.timeout = container_timeout;
        request.bypass_proxy = true;
        if (!token.value.empty()) bytes::add(request.headers, "Authorization", token.value);
        return metadata_keys(request, "container (" + address.why + ", " + host_of(*url) + ")");
    }

    // A store of somebody else's takes no keys of an instance role, and asking for them costs a second where there is
    // no metadata service. Private endpoints of AWS are AWS.
    Keys instance() {
        const auto set = endpoint_url("S3");
        const auto url = set ? endpoint::parse_url(set->value) : std::nullopt;
        if (!set || (!set->value.empty() && !(url && endpoint::is_aws_host(url->host))))
            return passed_over("the endpoint is not one of AWS");
        return instance_metadata();
    }

private:
    // -- profiles

    static bool assumes_role(const ini::Profile& profile) {
        return profile.has("role_arn") && !profile.has("web_identity_token_file");
    }
    static bool has_static_keys(const ini::Profile& profile) {
        return profile.has("aws_access_key_id") || profile.has("aws_secret_access_key");
    }

    // What a profile leads to, in botocore's order. The first that is there decides, even if it then turns out to be
    // broken. visited_ are the profiles whose roles are assumed with these keys; without any it is the selected one.
    Keys keys_of(const std::string& name) {
        const ini::Profile profile = files_->find(name);
        const std::string where = profile_text(name);
        const bool is_source = !visited_.empty();
        const auto in = [](const ini::Section* file) { return file != nullptr && file->find("aws_access_key_id"); };
        if (assumes_role(profile) && !(is_source && has_static_keys(profile))) return assume_role(name, profile);
        if (profile.has("web_identity_token_file")) {
            Keys keys = keys_by_web_identity(name, !is_source && settings_.profile.empty());
            if (!is_passed_over(keys)) return keys;  // it is if a variable that goes first is empty
        }
        const bool sso = profile.has("sso_account_id") || profile.has("sso_role_name");
        if (in(profile.credentials) && !sso)
            return static_keys(*profile.credentials, files_->credentials_path + ", " + where);
        if (profile.has("credential_process")) return keys_by_process(profile.get("credential_process"), where);
        if (sso || profile.has("login_session"))
            return broken(where + " signs in through a session that only the AWS CLI keeps: add this line to it in " +
                          files_->config_path + ": " + export_line(name));
        if (in(profile.config)) return static_keys(*profile.config, files_->config_path + ", " + where);
        return passed_over(where + ": neither aws_access_key_id nor role_arn is set");
    }

    // The older name of the session token comes first, as in botocore.
    Keys static_keys(const ini::Section& section, const std::string& where) const {
        const ini::Profile only{nullptr, &section};
        const char* token = only.has("aws_security_token") ? "aws_security_token" : "aws_session_token";
        if (only.get("aws_access_key_id").empty()) return broken(where + ": aws_access_key_id is empty");
        return finish(
            xml::StsCredentials{only.get("aws_access_key_id"), only.get("aws_secret_access_key"), only.get(token), {}},
            where, false);
    }

    // An SSO or login session needs a client of its own size; the AWS CLI has it and can be asked for the keys.
    static std::string export_line(const std::string& profile) {
        const bool plain = profile.find_first_of(" '\"\\") == std::string::npos;
        return "credential_process = aws configure export-credentials --profile " +
               bytes::sanitize(plain ? profile : "\"" + profile + "\"") + " --format process";
    }

    Keys keys_by_process(const std::string& command, const std::string& where) const {
        const auto words = ini::split_words(command);
        if (!words || words->empty() || (*words)[0].empty() || command.find('\0') != std::string::npos)
            return broken(where + ": credential_process has an open quote or names no program");
        // Only the program is named in messages, because its arguments may hold a password.
        const std::string named = where + ": credential_process " + bytes::sanitize((*words)[0]);
        const ProcessResult result = environment_.run_process(*words, process_timeout, answer_bytes_max, limits_);
        if (!result.problem.empty())
            return limits_.over() ? limits_.error(named + " ran") : broken(named + ": " + result.problem);
        if (result.exit_status != 0)
            return broken(named + " ended with exit status " + std::to_string(result.exit_status));
        if (json::number_field(result.output, "Version") != "1")
            return broken(named + ": the output is not a JSON object with \"Version\": 1");
        return finish(keys_in_json(result.output, named), named, false);
    }

    // -- roles

    // A profile whose role is assumed with the keys of another, which may be assumed in turn. It ends, because no
    // profile is visited twice but one that holds keys beside its role.
    Keys assume_role(const std::string& name, const ini::Profile& profile) {
        const std::string where = profile_text(name), arn = profile.get("role_arn");
        if (profile.has("source_profile") == profile.has("credential_source"))
            return broken(where + ": role_arn needs source_profile or credential_source, and not both");
        if (profile.has("mfa_serial"))
            return broken(where +
                          ": mfa_serial asks a person for a code, which this library does not do. Use another " +
                          "profile with this line: " + export_line(name));
        if (visited_.empty()) visited_.push_back(name);
        const Keys keys = profile.has("source_profile") ? source_keys(name, profile.get("source_profile"))
                                                        : named_source(profile.get("credential_source"), where);
        if (is_passed_over(keys))
            return broken(where + ": no credentials to assume the role with: " + keys.error().what());
        if (!keys) return keys;
        return ask_sts("AssumeRole",
                       {{"RoleArn", arn},
                        {"RoleSessionName", profile.get("role_session_name")},
                        {"ExternalId", profile.get("external_id")},
                        {"DurationSeconds", profile.get("duration_seconds")}},
                       &*keys, where + ", role " + bytes::sanitize(arn));
    }

    Keys source_keys(const std::string& profile, const std::string& source) {
        const std::string what = profile_text(profile) + ": source_profile " + bytes::sanitize(source);
        const ini::Profile origin = files_->find(source);
        if (!origin.exists()) return broken(what + " does not exist");
        const bool again = std::find(visited_.begin(), visited_.end(), source) != visited_.end();
        if (again && !(source == profile && has_static_keys(origin))) return broken(what + " leads round in a circle");
        if (visited_.size() > roles_max) return broken(what + " comes after too many roles");
        visited_.push_back(source);
        Keys keys = keys_of(source);
        if (is_passed_over(keys)) return broken(what + " has no credentials");
        return keys;
    }

    Keys named_source(const std::string& source, const std::string& where) {
        if (source == "EcsContainer") return container();
        if (source == "Ec2InstanceMetadata") return instance_metadata();
        if (source == "Environment") return keys_in_environment();
        return broken(where + ": credential_source must be Environment, Ec2InstanceMetadata or EcsContainer");
    }

    // -- STS

    // A variable counts even if it is empty, as in botocore.
    Keys keys_by_web_identity(const std::string& name, bool use_variables) {
        const ini::Profile profile = files_->find(name);
        const auto setting = [&](const char* variable, const char* otherwise) {
            auto value = use_variables ? environment_.variable(variable) : std::nullopt;
            return value ? Setting{*std::move(value), variable} : Setting{profile.get(otherwise), otherwise};
        };
        const Setting path = setting("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file");
        const Setting arn = setting("AWS_ROLE_ARN", "role_arn");
        const bool by_variable = bytes::starts_with(path.why, "AWS_");
        const std::string where = by_variable ? "web identity" : profile_text(name);
        if (path.value.empty()) return passed_over(where + ": " + path.why + " is empty");
        if (arn.value.empty())
            return broken(where + ": " + path.why + " is set but " + (by_variable ? "AWS_ROLE_ARN" : "role_arn") +
                          " is not: set both or neither");
        const auto token = token_in(path.value, where + ": " + path.why, false);
        if (!token) return token.error();
        const std::string session = setting("AWS_ROLE_SESSION_NAME", "role_session_name").value;
        return ask_sts("AssumeRoleWithWebIdentity",
                       {{"RoleArn", arn.value}, {"RoleSessionName", session}, {"WebIdentityToken", *token}}, nullptr,
                       where);
    }

    // Of a web identity, or of a container's agent, where "Bearer x" has a blank in it. They are replaced while we run,
    // so the file is read anew each time.
    Result<std::string> token_in(const std::string& path, const std::string& setting, bool blanks_allowed) const {
        const std::string named = setting + " " + bytes::sanitize(path);
        const FileText file = environment_.read_file(path);
        if (file.state == FileState::unreadable) return broken(named + " cannot be read: " + file.problem);
        std::string token(bytes::trim(file.text));
        if (token.empty()) return broken(named + " does not exist or is empty, expected a file with a token");
        if (auto fine = check_value(token, named, token_bytes_max, blanks_allowed); !fine)
            return std::move(fine).error();
        return token;
    }

    // Without `keys` the call is not signed: the web identity token in it, the last field, speaks for itself.
    Keys ask_sts(const char* operation, bytes::Pairs fields, const Credentials* keys, const std::string& where) {
        const TimePoint now = environment_.now();
        const auto configured = region();
        if (!configured) return configured.error();
        const auto place = endpoint_url("STS");
        if (!place) return place.error();
        // Stores have regions that AWS does not, such as auto; AWS's own all end in a number.
        const bool of_aws = !configured->value.empty() && bytes::is_digit(configured->value.back());
        const std::string signing_region = of_aws ? configured->value : "us-east-1";
        const std::string suffix(endpoint::partition_of(signing_region).suffix);
        const auto url =
            endpoint::parse_url(place->value.empty() ? "https://sts." + signing_region + "." + suffix : place->value);
        if (!url) return broken(where + ": there is no STS endpoint");
        WebRequest request{"POST", url->scheme + "://" + url->host + (url->path.empty() ? "/" : url->path)};
        request.timeout = sts_timeout;
        bytes::add(request.headers, "Content-Type", "application/x-www-form-urlencoded; charset=utf-8");
        request.body = std::string("Action=") + operation + "&Version=2011-06-15";
        for (auto& [name, value] : fields) {
            if (name == "RoleSessionName" && value.empty()) value = "s3cache-" + std::to_string(unix_seconds(now));
            if (value.empty()) continue;
            bytes::append_percent(request.body.append(1, '&').append(name).append(1, '='), value, false);
        }
        if (keys != nullptr) sign(request, *url, *keys, signing_region);
        const auto answer = ask(request);
        if (!answer) return answer.error();
        auto result = answer->status == 200 ? xml::sts_result(answer->body, operation) : std::nullopt;
        if (result) return finish(*std::move(result), where, true);
        return broken(where + ": " + operation + " at " + request.url + ": " +
                      sts_complaint(*answer, keys != nullptr ? keys->session_token : fields.back().second));
    }

    void sign(WebRequest& request, const endpoint::Url& url, const Credentials& keys, const std::string& region) const {
        std::string date;
        dates::append_amz_date(date, unix_seconds(environment_.now()));
        bytes::add(request.headers, "x-amz-date", date);
        if (!keys.session_token.empty()) bytes::add(request.headers, "x-amz-security-token", keys.session_token);
        std::vector<sigv4::Header> headers{{"host", url.host}};
        for (const auto& [name, value] : request.headers) headers.push_back({name, value});
        const std::string hash = bytes::hex(digest::as_text(digest::sha256(request.body)));
        const sigv4::Request to_sign{"POST", url.path, {}, headers.data(), headers.size(), hash};
        sigv4::Signer signer;
        bytes::add(request.headers, "Authorization", signer.sign(to_sign, keys, {date, region, "sts"}));
    }

    // -- container and instance metadata

    // The last question to a container's agent or an instance's metadata.
    Keys metadata_keys(const WebRequest& request, const std::string& where, bool overdue_too = false) const {
        const auto answer = ask(request);
        if (!answer) return answer.error();
        if (answer->status != 200) return broken(where + ": " + told(*answer) + ", expected 200 with credentials");
        return finish(keys_in_json(answer->body, where), where, true, overdue_too);
    }

    // The question for a session; its URL is that of the service still.
    Result<WebRequest> imds_request() const {
        Setting url = in_profile("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint");
        const Setting mode = in_profile("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode");
        const bool ipv6 = bytes::iequal(mode.value, "ipv6");
        if (!ipv6 && !mode.value.empty() && !bytes::iequal(mode.value, "ipv4"))
            return unexpected(mode.why, mode.value, "IPv4 or IPv6");
        if (url.value.empty()) url.value = ipv6 ? "http://[fd00:ec2::254]" : "http://169.254.169.254";
        if (!is_url(url.value)) return unexpected(url.why, url.value, "a URL such as http://169.254.169.254");
        WebRequest request{"PUT", url.value.substr(0, url.value.find_last_not_of('/') + 1)};
        request.headers = {{"x-aws-ec2-metadata-token-ttl-seconds", "21600"}};
        request.attempts = 1;
        request.bypass_proxy = true;
        return request;
    }

    // Version 2 only, because version 1 answers whoever can make the host fetch a URL.
    Keys instance_metadata() {
        if (switched_on(first({"AWS_EC2_METADATA_DISABLED"}).value))
            return passed_over("AWS_EC2_METADATA_DISABLED is true");
        if (auto read = load(); !read) return std::move(read).error();
        auto request = imds_request();
        if (!request) return std::move(request).error();
        const std::string base = request->url, where = "instance metadata (" + shown_url(base) + ")";
        request->url += "/latest/api/token";
        const auto session = ask(*request);
        if (!session) return session.error();
        const int status = session->status;
        if (status == 0 || status == 403 || status == 404 || status == 405)
            return passed_over(where + ": " + told(*session) +
                               (status == 0 ? "; in a container on EC2 the hop limit must be 2" : ""));
        const std::string token(bytes::trim(session->body));
        if (status != 200 || token.empty() || !check_value(token, {}, text_bytes_max))
            return broken(where + ": " + told(*session) + ", expected 200 with a session token");
        request->method = "GET";
        request->headers = {{"x-aws-ec2-metadata-token", token}};
        request->url = base + "/latest/meta-data/iam/security-credentials/";
        const auto roles = ask(*request);
        if (!roles) return roles.error();
        const std::string role(bytes::trim(roles->body.substr(0, roles->body.find('\n'))));
        if (roles->status == 404 || (roles->status == 200 && role.empty()))
            return passed_over("the instance has no role attached");
        if (roles->status != 200 || role.find_first_of("/?#%\\") != std::string::npos || !check_value(role, {}, 128))
            return broken(where + ": " + told(*roles) + ", expected 200 with the name of a role");
        bytes::append_percent(request->url, role, false);
        return metadata_keys(*request, where + ", role " + bytes::sanitize(role), true);
    }

    // -- HTTP

    static std::string host_of(const std::string& url) { return bytes::sanitize(url.substr(0, url.find('/', 8))); }

    // One question to a credential endpoint, asked again where it had a bad moment. An error only if the time is over.
    Result<WebAnswer> ask(const WebRequest& request) const {
        for (int attempt = 1;; ++attempt) {
            WebAnswer answer;
            if (!limits_.over()) answer = environment_.fetch(request, limits_);
            if (answer.body.size() > request.answer_bytes_max)
                answer = {0, {}, "an answer longer than " + bytes::number(request.answer_bytes_max) + " bytes"};
            const bool again = answer.status == 0 || answer.status == 429 || answer.status >= 500 ||
                               answer.body.find("IDPCommunicationError") != std::string::npos;
            if (again && attempt < request.attempts && !limits_.over()) environment_.sleep(between_attempts, limits_);
            if (again && limits_.over()) return limits_.error(host_of(request.url) + " was asked for credentials");
            if (!again || attempt >= request.attempts) return answer;
        }
    }

    std::vector<std::string> visited_;
#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

private:
    static std::string profile_text(const std::string& name) { return "profile " + bytes::sanitize(name); }

    // A time after which they are no use must be told by whoever renews them.
    Keys finish(Result<xml::StsCredentials> got, const std::string& where, bool must_expire,
                bool overdue_too = false) const {
        if (!got) return std::move(got).error();
        Credentials keys{got->access_key, got->secret_key, got->session_token, dates::iso8601(got->expiration)};
        if (!keys.expires && !got->expiration.empty())
            return unexpected(where + ": the expiry", got->expiration, "a time such as 2025-01-15T12:34:56Z");
        if (!keys.expires && must_expire) return broken(where + ": the keys have no Expiration");
        // Instance metadata hands out overdue keys while it cannot renew them, and S3 goes on taking those. The spread
        // keeps a fleet from coming back all at once; the clock's low digits differ enough between hosts for that.
        const TimePoint now = environment_.now();
        if (overdue_too && *keys.expires <= now)
            keys.expires = now + imds_extension + seconds(now.time_since_epoch().count() / 1000 % 480);
        return check(std::move(keys), where, now);
    }

    Keys keys_in_environment() const {
        const std::string access_key = first({"AWS_ACCESS_KEY_ID"}).value;
        if (access_key.empty()) return passed_over("AWS_ACCESS_KEY_ID is not set");
        return finish(xml::StsCredentials{access_key, first({"AWS_SECRET_ACCESS_KEY"}).value,
                                          first({"AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}).value,
                                          first({"AWS_CREDENTIAL_EXPIRATION"}).value},
                      "environment", false);
    }

    Setting first(std::initializer_list<const char*> names) const { return first_variable(environment_, names); }

    // A variable, or else what the profile says.
    Setting in_profile(const char* variable, const char* name) const {
        const Setting set = first({variable});
        return set.value.empty() ? Setting{profile_value(name), profile_text(files_->profile) + ": " + name} : set;
    }

    Setting endpoint_in_files(const std::string& service) const {
        const ini::Profile profile = files_->find(files_->profile);
        const ini::Section* services = ini::find_section(files_->config, "services", profile.get("services"));
        const ini::Setting* own = services != nullptr ? services->find(service) : nullptr;
        Setting url{profile.get("endpoint_url"), profile_text(files_->profile) + ": endpoint_url"};
        for (const auto& [name, value] : own != nullptr ? own->block : bytes::Pairs()) {
            if (name == "endpoint_url" && !value.empty()) url.value = value;
        }
        return url;
    }

    const Environment& environment_;
    const Settings& settings_;
    const Limits limits_;
    std::optional<Files> files_;
};

// In botocore's order.
struct Source {
    const char* name;
    Keys (Walk::*ask)();
};

inline constexpr Source sources[] = {
    {"environment", &Walk::environment},
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    {"web identity", &Walk::web_identity}, {"profile", &Walk::profile},
    {"container", &Walk::container},       {"instance metadata", &Walk::instance},
#endif
};

// Thread-safe.
class Chain {
public:
    Chain(Environment environment, Settings settings)
        : environment_(std::move(environment)), settings_(std::move(settings)) {}

    // Once a source has answered, only that one is asked again: a profile file that is just being rewritten must not
    // turn a person into the instance's role.
    Keys find(const Limits& limits) {
        Walk walk(environment_, settings_, limits);
        const Source* const before = answered_;
        std::string seen;
        for (const Source& source : sources) {
            if (before != nullptr && before != &source) continue;
            Keys keys = (walk.*source.ask)();
            if (keys) answered_ = &source;
            if (!is_passed_over(keys)) return keys;
            if (before != nullptr)
                return broken(std::string(source.name) + ", which gave credentials before: " + keys.error().what());
            seen += std::string("; ") + source.name + ": " + keys.error().what();
        }
#ifdef S3CACHE_NO_CREDENTIAL_CHAIN
        seen += "; built without the other sources (S3CACHE_NO_CREDENTIAL_CHAIN): give credentials in code";
#endif
        return broken("no credentials found" + seen);
    }

    // The same walk, told source by source. Changes nothing in what find() does next.
    std::vector<Finding> explain() const {
        Walk walk(environment_, settings_);
        std::vector<Finding> findings;
        bool decided = false;
        for (const Source& source : sources) {
            findings.push_back({std::string("credentials: ") + source.name, Finding::Verdict::not_asked, {}});
            if (decided) continue;
            const Keys keys = (walk.*source.ask)();
            decided = !is_passed_over(keys);
            findings.back().verdict = keys      ? Finding::Verdict::used
                                      : decided ? Finding::Verdict::broken
                                                : Finding::Verdict::passed_over;
            findings.back().text = keys ? summary(*keys) : std::string(keys.error().what());
        }
        return findings;
    }

    Result<Setting> region(const Limits&) const { return Walk(environment_, settings_).region(); }

    // An empty value: AWS's own.
    Result<Setting> endpoint_url() const { return Walk(environment_, settings_).endpoint_url("S3"); }

    // Of the selected profile; empty where it has none, or the files cannot be read, which is reported by who needs
    // keys.
    std::string profile_setting(const char* name) const {
        Walk walk(environment_, settings_);
        return walk.load() ? walk.profile_value(name) : std::string();
    }

private:
    const Environment environment_;
    const Settings settings_;
    std::atomic<const Source*> answered_{nullptr};
};

// -- the real outside: the only place here that touches files, processes and variables

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
inline FileText read_file(const std::string& path) {
    FileText out;
    out.state = FileState::unreadable;
#ifndef _WIN32
    struct stat about {};
    if (::stat(path.c_str(), &about) == 0 && !S_ISREG(about.st_mode)) {  // a FIFO would be waited for for ever
        out.problem = "it is not a regular file";
        if (path == "/dev/null") out.state = FileState::missing;  // how people say that there is none
        return out;
    }
#endif
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (file != nullptr) {
        out.text.resize(ini::file_bytes_max + 1);
        out.text.resize(std::fread(&out.text[0], 1, out.text.size(), file));
    }
    if (file == nullptr && (errno == ENOENT || errno == ENOTDIR))
        out.state = FileState::missing;
    else if (file == nullptr || std::ferror(file))
        out.problem = errno == EACCES ? "permission denied" : "system error " + std::to_string(errno);
    else if (out.text.size() > ini::file_bytes_max)
        out.problem = "it is longer than " + bytes::number(ini::file_bytes_max) + " bytes";
    else
        out.state = FileState::text;
    if (file != nullptr) std::fclose(file);
    return out;
}

#ifdef _WIN32
inline ProcessResult run_process(const std::vector<std::string>&, milliseconds, std::size_t, const Limits&) {
    return {-1, {}, "running it is not supported on Windows"};
}
#else

// The helper reads nothing, writes to our pipe, and inherits no other descriptor where the C library can see to that.
// Its standard error stays the program's, because prompts and complaints are for a person, and may hold what our
// messages must not. Returns an errno.
inline int spawn(std::vector<std::string> argv, int output, ::pid_t& child) {
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(&word[0]);
    words.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
#if defined(__APPLE__)
    char** environment = *_NSGetEnviron();
#else
    char** environment = ::environ;
#endif
#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 34)
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
#endif
#endif
    const int failed = ::posix_spawnp(&child, words[0], &actions, nullptr, words.data(), environment);
    posix_spawn_file_actions_destroy(&actions);
    return failed;
}

inline ProcessResult run_process(const std::vector<std::string>& argv, milliseconds timeout,
                                 std::size_t output_bytes_max, const Limits& limits) {
    int ends[2] = {-1, -1}, status = 0;
    ::pid_t child = 0, ended = 0;
    int failed = ::pipe(ends) != 0 ? errno : 0;
    for (int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
    if (failed == 0) failed = spawn(argv, ends[1], child);
    ::close(ends[1]);
    ProcessResult result;
    if (failed != 0) result.problem = "it does not start: system error " + std::to_string(failed);
    if (failed == ENOENT) result.problem = "there is no such program";
    const auto end = std::chrono::steady_clock::now() + timeout;
    struct pollfd output = {ends[0], POLLIN, 0};
    while (ended == 0 && result.problem.empty()) {
        char buffer[4096];
        // A helper ends right after its output; there is no portable wait for that with a timeout.
        const bool ready =
            ::poll(&output, 1, output.fd < 0 ? 5 : static_cast<int>(limits.slice(cancel_poll).count())) > 0;
        const auto got = ready ? ::read(output.fd, buffer, sizeof buffer) : -1;
        if (got > 0) result.output.append(buffer, static_cast<std::size_t>(got));
        if (got == 0) output.fd = -1;  // which poll passes over
        if (output.fd < 0) ended = ::waitpid(child, &status, WNOHANG);
        if (result.output.size() > output_bytes_max)
            result.problem = "its output is longer than " + bytes::number(output_bytes_max) + " bytes";
        else if (ended == 0 && (std::chrono::steady_clock::now() >= end || limits.over()))
            result.problem = "it took too long";
    }
    ::close(ends[0]);
    if (failed == 0 && ended == 0) ::kill(child, SIGKILL);
    while (failed == 0 && ended == 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    // A program that ignores SIGCHLD or waits for all children takes the status away from us; what the helper wrote is
    // then all there is to judge by.
    if (ended < 0 || (ended > 0 && WIFEXITED(status))) result.exit_status = ended < 0 ? 0 : WEXITSTATUS(status);
    if (ended > 0 && WIFSIGNALED(status)) result.problem = "it was ended by signal " + std::to_string(WTERMSIG(status));
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
//     time ────────────── renew_at_ ──────────────────────── expires_
//     served from memory  one caller renews, others served   nobody is served before it has renewed
class Provider {
public:
    using Source = std::function<Keys(const Limits&)>;

    Provider(Source source, std::function<TimePoint()> now) : source_(std::move(source)), now_(std::move(now)) {}
    Provider(const Provider&) = delete;
    Provider& operator=(const Provider&) = delete;

    // The keys to sign one request with. Waits for another thread only if there are none that are valid.
    Result<std::shared_ptr<const Snapshot>> snapshot(const Limits& limits) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            if (current_ && expires_ == (TimePoint::max)()) return current_;  // the usual case asks no clock
            const TimePoint now = now_();
            const bool usable = current_ && now < expires_;
            if (usable && now < renew_at_) return current_;
            if (!refreshing_) {
                // A clock set back must not turn a minute of patience into a day.
                const bool too_early = failures_ > 0 && now < retry_at_ && retry_at_ - now <= retry_most;
                if (too_early && !usable) return broken(error_);
                if (too_early) return current_;
                auto done = refresh(lock, limits);  // once: keys that expire at once would be fetched for ever
                if (done || (current_ && now_() < expires_)) return current_;
                return std::move(done).error();
            }
            if (usable) return current_;
            if (!wait(lock, limits)) return limits.error("another thread fetched the credentials");
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
    // False: the caller's time is over first.
    bool wait(std::unique_lock<std::mutex>& lock, const Limits& limits) {
        while (refreshing_ && !limits.over()) done_.wait_for(lock, limits.slice(std::chrono::seconds(60)));
        return !refreshing_;
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
        std::optional<Keys> got;
        {
            const Refreshing guard{*this, lock};
            got.emplace(source_(limits));
        }
        return store_refresh_result(*std::move(got), limits, now_());
    }

    Result<void> store_refresh_result(Keys got, const Limits& limits, TimePoint now) {
        if (got) {
            const std::string where = got->source.empty() ? std::string("credentials") : got->source;
            got = check(*std::move(got), where, now);
        }
        // That the caller had no time left says nothing about the source: the next caller asks it.
        if (!got && limits.over()) return std::move(got).error();
        if (!got) return fail(got.error().what(), now);
        failures_ = 0;
        const auto parts = [](const Credentials& keys) {
            return std::tie(keys.access_key, keys.secret_key, keys.session_token);
        };
        if (!current_ || parts(current_->credentials) != parts(*got)) ++generation_;
        expires_ = got->expires.value_or((TimePoint::max)());
        current_ = std::make_shared<const Snapshot>(Snapshot{*std::move(got), generation_});
        // Of credentials that live less than an hour it is a part, because else they would be renewed all the time.
        const TimePoint::duration life = expires_ - now;
        renew_at_ = expires_ - (std::min)(TimePoint::duration(renewal_window), life / 4);
        return {};
    }

    Error fail(const std::string& problem, TimePoint now) {
        const std::chrono::seconds most = current_ && now < expires_ ? retry_most : retry_most_unserved;
        retry_at_ = now + (std::min)(most, std::chrono::seconds(retry_first.count() << failures_));
        failures_ = (std::min)(failures_ + 1, 6);
        error_ = problem;
        return broken(problem);
    }

    const Source source_;
    const std::function<TimePoint()> now_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::shared_ptr<const Snapshot> current_;
    std::uint64_t generation_ = 0;
    bool refreshing_ = false;
    int failures_ = 0;  // at most six, which are a minute
    std::string error_;
    TimePoint expires_{}, renew_at_{}, retry_at_{}, forced_at_{};
    std::uint64_t forced_ = 0;
};

}  // namespace detail::credentials

// --- entry: what is stored: an object's headers in and out -----------------------------------------------------------

namespace detail::entry {

inline constexpr std::string_view meta_prefix = "x-amz-meta-";
// S3's own bound, names (without the prefix) and values together.
inline constexpr std::size_t metadata_bytes_max = 2048;
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
    double cost = 0;       // seconds that computing it took; 0: not known
    double lease = 0;      // seconds that a lease lasts; 0: it is none
    TimePoint answered{};  // by the store's clock; of a lease
    std::string write_id{};
    std::string store_sum{}, store_sum_type{};  // an x-amz-checksum-* there is, and its name behind that
    bool from_s3 = false;                       // there is an ETag or metadata, as only a store of this kind sends

    // A lease's age is told by two times of the store's own, so that no clock is compared with another.
    bool expired(double unix_now) const {
        if (lease > 0 && answered != TimePoint() && info.last_modified != TimePoint())
            return retry::seconds_between(info.last_modified, answered) > lease;
        return expiry == Expiry::at && expires_at <= unix_now;
    }
    // No condition and no range can rest on a weak ETag, which vouches for no byte (a proxy that compresses makes it so).
    bool has_strong_etag() const { return !info.etag.empty() && !bytes::starts_with(info.etag, "W/"); }
    // Whether this is still what was seen before.
    bool is_same_as(const Facts& seen) const {
        return info.etag == seen.info.etag && info.last_modified == seen.info.last_modified &&
               write_id == seen.write_id;
    }
};

inline constexpr std::string_view kind_names[] = {"json", "text", "bytes"};

inline std::string_view kind_name(Kind kind) { return kind_names[static_cast<std::size_t>(kind)]; }

inline std::optional<Kind> kind_of(std::string_view text) {
    for (const Kind kind : {Kind::json, Kind::text, Kind::bytes}) {
        if (text == kind_name(kind)) return kind;
    }
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

// Some proxies join two headers of one name to "a,a".
inline std::string_view without_repeats(std::string_view text) {
    const std::string_view first = bytes::trim(text.substr(0, text.find(',')));
    for (std::string_view rest = text; first.size() < text.size();) {
        const std::size_t comma = (std::min)(rest.find(','), rest.size());
        if (bytes::trim(rest.substr(0, comma)) != first) return text;
        if (comma == rest.size()) break;
        rest.remove_prefix(comma + 1);
    }
    return first;
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

inline std::optional<std::uint32_t> read_crc32c(std::string_view text) {
    const auto raw = bytes::unbase64(text);
    if (!raw || raw->size() != 4) return std::nullopt;  // another program's header of the same name
    std::uint32_t crc = 0;
    for (const char c : *raw) crc = crc << 8 | bytes::octet(c);
    return crc;
}

inline double read_seconds(std::string_view text) {
    const double seconds = dates::parse_float(text).value_or(0);
    return seconds > 0 && seconds < ttl_seconds_max ? seconds : 0;
}

// What the cache itself keeps in metadata. The last two are of earlier versions, and without meaning.
inline bool is_own_name(std::string_view name) {
    constexpr std::string_view names[] = {"expires_at",    "expires-at", "compressed", "kind",
                                          "crc32c",        "write-id",   "negative",   "cost",
                                          "lease-seconds", "part-bytes", "parts-etag"};
    return std::any_of(std::begin(names), std::end(names), [name](auto own) { return bytes::iequal(name, own); });
}

// One x-amz-meta- line. Stores change the case of names, and some turn _ into -.
inline void read_meta(Facts& facts, std::string_view name, std::string_view text) {
    if (name.empty()) return;
    if (!is_own_name(name)) return bytes::add(facts.info.metadata, bytes::lower(name), text);
    const auto is = [name](std::string_view own) { return name.size() == own.size() && bytes::iequal(name, own); };
    const std::string_view value = without_repeats(text);
    const bool is_expiry = is("expires_at") || is("expires-at");
    if (is_expiry && facts.expiry == Expiry::never && !facts.info.expires_at) read_expiry(facts, value);
    if (is("compressed")) facts.info.compressed = bytes::iequal(value, "true");
    if (is("negative")) facts.info.negative = bytes::iequal(value, "true");
    if (is("kind")) facts.info.kind = kind_of(value);
    if (is("crc32c")) facts.crc32c = read_crc32c(value);
    if (is("write-id")) facts.write_id = value;
    if (is("cost")) facts.cost = read_seconds(value);
    if (is("lease-seconds")) facts.lease = read_seconds(value);
}

// The sum of a whole object: "-N" at the end marks a sum of sums of parts, which a reader cannot make. Any will do.
inline void read_store_sum(Facts& facts, std::string_view name, std::string_view value) {
    if (value.find('-') != std::string_view::npos) return;
    for (std::string_view type : {"crc32", "crc32c", "crc64nvme"}) {
        if (!bytes::iequal(name, type)) continue;
        facts.store_sum_type = type;
        facts.store_sum = value;
    }
}

inline void read_header(Facts& facts, std::string_view name, std::string_view value) {
    constexpr std::string_view sum_prefix = "x-amz-checksum-";
    // Sizes first, because most names are none of these.
    const auto is = [name](std::string_view it) { return name.size() == it.size() && bytes::iequal(name, it); };
    const auto begins = [name](std::string_view with) {
        const bool may = name.size() >= with.size() && name[with.size() - 1] == with.back();
        return may && bytes::iequal(name.substr(0, with.size()), with);
    };
    Info& info = facts.info;
    if (begins(meta_prefix)) {
        read_meta(facts, name.substr(meta_prefix.size()), value);
        facts.from_s3 = true;
    }
    if (begins(sum_prefix)) read_store_sum(facts, name.substr(sum_prefix.size()), value);
    if (is("x-amz-version-id") && value != "null") info.version_id = value;
    if (is("etag") && info.etag.empty()) info.etag = value;  // the first of several, as for all headers
    if (is("content-length") && !facts.length) facts.length = bytes::to_u64(value);
    if (is("content-type")) info.content_type = value;
    if (is("last-modified")) info.last_modified = dates::http_date(value).value_or(TimePoint());
}

inline Facts read(const http::Headers& headers) {
    Facts facts;
    headers.each([&](std::string_view name, std::string_view value) { read_header(facts, name, value); });
    if (facts.lease > 0) facts.answered = dates::http_date(headers.get("date")).value_or(TimePoint());
    // Something before the store may add its headers to a page of its own, which has no ETag.
    if (bytes::starts_with(facts.info.content_type, "text/html")) facts.from_s3 = false;
    facts.from_s3 |= !facts.info.etag.empty();
    facts.info.size = facts.length.value_or(0);
    return facts;
}

inline std::string crc32c_text(std::uint32_t crc) { return bytes::base64(digest::big_endian(crc)); }

// Milliseconds are enough for a TTL, and exact as decimals.
inline std::string seconds_text(double seconds) {
    const auto milliseconds = static_cast<std::uint64_t>((std::max)(seconds, 0.0) * 1000 + 0.5);
    return bytes::number(milliseconds / 1000) + "." + bytes::number(1000 + milliseconds % 1000).substr(1);
}

// Scratch objects and leases are no entries: lists leave them out, and only what removes everything meets them.
inline std::string scratch_name(std::string_view what, std::string_view id) {
    return std::string(".s3cache/").append(what).append("/").append(id);
}
inline bool is_scratch_name(std::string_view key) {
    const std::size_t begin = scratch_name("lease", {}).size();  // as long as that of "probe"
    const bool is_ours = (key.size() == begin + 32 && bytes::starts_with(key, scratch_name("lease", {}))) ||
                         (key.size() == begin + 16 && bytes::starts_with(key, scratch_name("probe", {})));
    return is_ours && key.find_first_not_of("0123456789abcdef", begin) == std::string_view::npos;
}

// Whether a header value would arrive as it was sent. The error's text is the end of a sentence.
inline Result<void> check_value(std::string_view value) {
    const auto refuse = [](const char* why) { return Error(Errc::invalid_argument, why); };
    if (value != bytes::trim(value)) return refuse("has blanks at an end");
    for (std::size_t i = 0; i < value.size(); ++i) {
        if (bytes::octet(value[i]) < 0x20 || bytes::octet(value[i]) > 0x7E)
            return refuse("holds bytes that are not printable ASCII");
        if (value[i] == ' ' && value[i - 1] == ' ') return refuse("has two blanks in a row, which stores fold");
    }
    return {};
}

// Whether user metadata would be taken, and come back as it is.
inline Result<void> check_metadata(const Metadata& metadata) {
    const auto refuse = [](const std::string& why) { return Error(Errc::invalid_argument, why); };
    std::size_t total = 0;
    for (const auto& [name, value] : metadata) {
        const std::string quoted = "metadata name '" + name + "'";
        const bool is_plain = std::all_of(name.begin(), name.end(), [](char c) {
            return bytes::is_alpha(c) || bytes::is_digit(c) || c == '-' || c == '_' || c == '.';
        });
        if (name.empty()) return refuse("a metadata name is empty");
        if (!is_plain) return refuse("a metadata name may hold letters, digits, '-', '_' and '.' only");
        for (const auto& other : metadata) {
            if (&other.first != &name && bytes::iequal(other.first, name)) return refuse(quoted + " is there twice");
        }
        if (is_own_name(name)) return refuse(quoted + " is the cache's own");
        if (const Result<void> fine = check_value(value); !fine)
            return refuse("the value of " + quoted + " " + fine.error().what());
        total += name.size() + value.size();
    }
    if (total > metadata_bytes_max) return refuse("metadata is over 2048 bytes");
    return {};
}

}  // namespace detail::entry

// --- s3: the state that calls share (Core), the loop that runs requests (Session), errors in the caller's terms ------

// What all copies of a handle, all readers and all threads of one Cache share.
struct detail::Core {
    using Place = endpoint::Endpoint;  // where requests go

    Core(Config settings, endpoint::Location where)
        : config(std::move(settings)),
          bucket(std::move(where.bucket)),
          prefix(std::move(where.prefix)),
          pool(config),
          health(config),
          chain(make_environment(), {config.profile, config.region, config.endpoint}),
          identity([this](const credentials::Limits& limits) { return find_credentials(limits); },
                   [this] { return now(); }) {}

    TimePoint local_now() const { return config.clock ? config.clock() : std::chrono::system_clock::now(); }
    // The local time, corrected once the store has refused a signed request as skewed.
    TimePoint now() const {
        return local_now() + std::chrono::milliseconds(clock_offset_ms.load(std::memory_order_relaxed));
    }
    double unix_now() const { return Seconds(now().time_since_epoch()).count(); }

    // OpenSSL's generator: after a fork a child draws other numbers than its parent and its siblings, which ids must.
    double random() const {
        if (config.seams.random) return config.seams.random();
        std::uint64_t bits = 0;
        if (RAND_bytes(reinterpret_cast<unsigned char*>(&bits), sizeof bits) != 1)
            bits = static_cast<std::uint64_t>(http::Clock::now().time_since_epoch().count()) * 0x9E3779B97F4A7C15U;
        return std::ldexp(static_cast<double>(bits >> 11), -53);
    }
    std::string random_id() const {
        std::string id;
        for (int i = 0; i < 16; ++i) id += "0123456789abcdef"[static_cast<std::size_t>(random() * 16) & 15];
        return id;
    }
    void sleep(std::chrono::milliseconds time) const {
        if (config.seams.sleep) return config.seams.sleep(time);
        std::this_thread::sleep_for(time);
    }

    void count(std::uint64_t Stats::*counter, std::uint64_t by = 1) {
        const std::lock_guard<std::mutex> hold(stats_lock);
        stats.*counter += by;
    }
    // The object's name in the bucket.
    std::string object(std::string_view key) const { return std::string(prefix).append(key); }

    // Endpoint and region, found out once; the region may be corrected by an answer later.
    Result<std::shared_ptr<const Place>> place(const credentials::Limits& limits = {}) {
        const std::lock_guard<std::mutex> hold(place_lock);
        if (place_now) return place_now;
        const auto url = chain.endpoint_url();
        if (!url) return url.error();
        const auto region = chain.region(limits);
        if (!region) return region.error();
        configured_url = url->value;
        return resolve_place(region->value.empty() ? "us-east-1" : region->value);
    }

    // The store named another region: on AWS another host, elsewhere only the signature changes. False: no news.
    bool correct_region(const std::string& region, const std::string& signed_before) {
        const std::lock_guard<std::mutex> hold(place_lock);
        if (!place_now || !endpoint::valid_region(region) || region == signed_before) return false;
        if (region == place_now->signing_region) return true;  // another thread was told the same meanwhile
        return resolve_place(region).has_value();
    }

    const Config config;
    const std::string bucket;
    const std::string prefix;  // empty, or ends in a slash
    http::Pool pool;
    retry::Health health;
    credentials::Chain chain;
    credentials::Provider identity;
    std::mutex stats_lock;
    Stats stats;
    std::atomic<std::int64_t> clock_offset_ms{0};
    std::atomic<bool> store_seen{false};    // an answer has shown that there is an S3 store, and the bucket in it
    std::atomic<std::uint64_t> cancels{0};  // how often cancel() was called: a session that sees another number ends
    enum class Trait { unknown, no, yes };
    std::atomic<Trait> honours_conditions{Trait::unknown};  // If-Match and If-None-Match of PUT

    std::mutex place_lock;
    std::shared_ptr<const Place> place_now;
    std::string configured_url;  // once the place is known; empty: AWS

    struct InFlight {  // a value that a thread of this process computes, see get_or_set
        std::thread::id owner = std::this_thread::get_id();
        std::uint64_t process = http::process_id();
        std::optional<Value> stale_value;  // still good while a new one is made
        std::optional<Result<Value>> result;
        std::size_t waiting = 0;
        std::condition_variable done;
    };
    std::mutex in_flight_lock;
    // Few at a time: a list of pairs is quicker to search than a map to compile.
    std::vector<std::pair<std::string, std::shared_ptr<InFlight>>> in_flight;
    std::vector<std::pair<std::thread::id, std::shared_ptr<InFlight>>> waits;  // for what a thread waits

    // Whether a thread of this process is computing that key.
    bool is_computing(std::string_view key) {
        const std::lock_guard<std::mutex> hold(in_flight_lock);
        return std::any_of(in_flight.begin(), in_flight.end(), [key](const auto& entry) { return entry.first == key; });
    }

private:
    Result<std::shared_ptr<const Place>> resolve_place(const std::string& region) {
        auto found = endpoint::resolve(
            {bucket, region, configured_url, config.addressing, config.dual_stack, config.fips, config.accelerate});
        if (!found) return found.error();
        place_now = std::make_shared<const Place>(*std::move(found));
        return place_now;
    }

    credentials::Environment make_environment() {
        using namespace credentials;
        Environment out = real_environment(
            [this](const WebRequest& request, const Limits& limits) { return fetch(request, limits); });
        if (config.seams.environment) out.variable = config.seams.environment;
        out.now = [this] { return now(); };
        return out;
    }

    // The user's own provider, which may throw, or else the chain.
    Result<Credentials> find_credentials(const credentials::Limits& limits) {
        if (!config.credentials) return chain.find(limits);
        return guarded([&] { return config.credentials(); }, "the credentials provider");
    }

    // Credential endpoints are asked with the same libcurl, but on a connection of its own.
    credentials::WebAnswer fetch(const credentials::WebRequest& request, const credentials::Limits& limits) const {
        http::Engine engine(1);
        std::unique_ptr<http::Transfer> transfer = engine.borrow();
        for (const http::Method method : {http::Method::put, http::Method::post}) {
            if (request.method == std::string_view(http::name_of(method))) transfer->method = method;
        }
        transfer->url = request.url;
        transfer->bypass_proxy = request.bypass_proxy;
        transfer->limits = {request.connect_timeout, {}, request.timeout};
        transfer->body = request.body;
        for (const auto& [name, value] : request.headers) transfer->add_header(name, value);
        bool running = engine.start(*transfer, config);
        if (!running) return {0, {}, "libcurl refused the request"};
        while (running) {
            if (limits.over() || !engine.perform([&](http::Transfer&) { running = false; }))
                return {0, {}, "the caller does not wait any longer"};
            if (running) engine.wait(std::chrono::milliseconds(50));
        }
        if (transfer->result != CURLE_OK) return {0, {}, curl_easy_strerror(transfer->result)};
        return {transfer->status, transfer->text.substr(0, request.answer_bytes_max + 1)};
    }
};

namespace detail::s3 {

using http::Method;
using Milliseconds = std::chrono::milliseconds;

// How long cleaning up (aborting an upload, looking whether a write arrived) may take: a step of it where the caller
// set no deadline; all of it, beyond the caller's deadline, where there is one.
inline constexpr Milliseconds cleanup_timeout{10000};
inline constexpr Milliseconds cleanup_overtime{500};
// S3 refuses requests that are a quarter of an hour off, which a bare refusal may then be about.
inline constexpr double skew_seconds_min = 900;
// How often progress is reported and cancellation looked for.
inline constexpr Milliseconds tick{100};
inline constexpr Milliseconds step_most{1000};

// What goes out, apart from what differs from attempt to attempt.
struct Request {
    const char* operation = "";
    std::string_view key{};  // as the caller knows it, for messages
    Method method = Method::get;
    std::string object{};  // its name in the bucket; empty: the bucket itself
    std::string query{};   // canonical
    bytes::Pairs headers{};
    std::string_view body{};     // borrowed; of PUT and POST
    std::string payload_hash{};  // empty: that of no body
    http::Transfer::Sink sink{};
    std::optional<Seconds> ttl{};  // becomes expires_at anew with each attempt, since an answer may correct the clock
    bool large = false;            // a large answer is likely
    bool error_in_200 = false;     // the status alone is not success
    bool is_correction = false;    // asked to find out the region, which is not asked for again
    bool not_cancellable = false;  // what it makes must be known to be removed: a cancellation waits for it
    std::optional<Milliseconds> stall{};

    Request& header(std::string_view name, std::string_view value) & { return bytes::add(headers, name, value), *this; }
    Request&& header(std::string_view name, std::string_view value) && {
        return bytes::add(headers, name, value), std::move(*this);
    }
};

inline Request request(const Core& core, const char* operation, Method method, std::string_view key) {
    return {operation, key, method, core.object(key)};
}

inline Request bucket_request(const char* operation, Method method, std::string query, std::string_view key = {}) {
    return {operation, key, method, {}, std::move(query)};
}

// One request on its way, with all its attempts. Tied to a session by Call.
struct Exchange {
    Request request;
    // Undoes what an attempt delivered before there is another; false: no other attempt.
    std::function<bool(const Exchange&)> on_retry{};

    bool done = false;
    bool stopped_by_sink = false;
    std::unique_ptr<http::Transfer> answer{};
    std::optional<Error> error{};  // there is no answer, or none to be understood
    std::optional<xml::ErrorBody> fault{};
    int attempts = 0;

    int status() const { return answer ? answer->status : 0; }
    bool ok() const { return !error && status() / 100 == 2 && !fault; }
    std::string_view code() const { return fault ? std::string_view(fault->code) : std::string_view(); }
    const http::Headers& headers() const { return answer->headers; }

    // For Session.
    Exchange* next = nullptr;
    std::shared_ptr<const Core::Place> place{};
    std::shared_ptr<const credentials::Snapshot> identity{};
    http::Clock::time_point began{}, attempt_began{}, due{};
    std::int64_t clock_offset_ms = 0;  // with which it is signed
    unsigned corrections = 0;          // those that were made, a bit for each Action
    bool running = false;

    bool has_tried(retry::Action action) const { return corrections >> static_cast<unsigned>(action) & 1U; }
    bool is_anonymous() const { return identity->credentials.access_key.empty(); }
};

// "get reports/q3: <text>"
inline std::string about(std::string_view operation, std::string_view key, std::string_view text) {
    std::string out(operation);
    if (!key.empty()) out.append(" ").append(bytes::sanitize(key));
    return out.append(": ").append(text);
}
inline Error refusal(Errc kind, std::string_view operation, std::string_view key, std::string_view text) {
    Error::Details details;
    details.code = kind;
    details.retryable = kind == Errc::timed_out;
    return Error(std::move(details), about(operation, key, text));
}

inline Error refusal(Errc kind, const Request& request, std::string_view text) {
    return refusal(kind, request.operation, request.key, text);
}

// What a person can do about words of the store, of libcurl or of the TLS library; empty: they do not tell.
inline std::string_view advice_for(std::string_view url, std::string_view text) {
    const struct {
        std::string_view scheme, advice;
        std::initializer_list<std::string_view> words;
    } hints[] = {
        {"https:",
         "perhaps the port speaks plain http: try http:// in the endpoint",
         {"wrong version number", "packet length", "record layer", "unknown protocol", "SSL connection timeout"}},
        {"http:",
         "perhaps the port wants TLS: try https:// in the endpoint",
         {"Empty reply", "HTTP/0.9", "reset by peer", "HTTPS port"}},
        {"https:", "is this machine's clock right?", {"not yet valid", "has expired"}},
        {"http", "a bucket whose requester pays wants x-amz-request-payer, which is not sent", {"equester pays"}},
    };
    for (const auto& hint : hints) {
        for (std::string_view words : hint.words) {
            if (bytes::starts_with(url, hint.scheme) && text.find(words) != std::string_view::npos) return hint.advice;
        }
    }
    return {};
}

// What the store said, where it speaks XML, or what else can be made of the body for a person.
inline std::string words_of(const Exchange& exchange) {
    const std::string_view text = exchange.answer->text;
    if (exchange.fault && !exchange.fault->message.empty()) return bytes::sanitize(exchange.fault->message);
    if (const auto message = json::string_field(text, "message")) return bytes::sanitize(*message);
    std::string title;
    sigv4::append_header_value(title, xml::html_title(text));  // on one line
    return bytes::sanitize(title);
}

inline std::string request_id(const Exchange& exchange) {
    std::string id = bytes::sanitize(exchange.headers().get("x-amz-request-id"));
    if (id.empty() && exchange.fault) id = bytes::sanitize(exchange.fault->request_id);
    const std::string_view second = exchange.headers().get("x-amz-id-2");
    if (!second.empty()) id.append(id.empty() ? "" : " ").append(bytes::sanitize(second));
    return id;
}

// What happened, after how many attempts, in the store's words, and what to do.
inline Error told(const Exchange& exchange, Error::Details details, std::string text, std::string_view advice) {
    details.attempts = exchange.attempts;
    const Milliseconds time = std::chrono::duration_cast<Milliseconds>(http::Clock::now() - exchange.began);
    const auto tenths = static_cast<std::uint64_t>(time.count() / 100);
    text += " after " + bytes::number(static_cast<std::uint64_t>(exchange.attempts));
    text += exchange.attempts == 1 ? " attempt in " : " attempts in ";
    text += bytes::number(tenths / 10) + "." + bytes::number(tenths % 10) + " s";
    if (!details.request_id.empty()) text.append(" (request ").append(details.request_id).append(")");
    if (!details.s3_message.empty()) text.append(": ").append(details.s3_message);
    const std::string_view location = exchange.headers().get("location");
    if (!location.empty()) text.append("; it points to ").append(bytes::sanitize(location));
    if (!advice.empty()) text.append("; ").append(advice);
    return Error(std::move(details), about(exchange.request.operation, exchange.request.key, text));
}

// An engine for as long as one operation lasts, and the exchanges that run on it: any number at once, on this thread.
// Everything that waits, waits in step().
//
//   start ── attempt ──> running ── finish ──> done
//              ^            │                   (answered, given up, cancelled, out of time)
//              └── waiting <┘ passing trouble, or a mistake that the answer helps to correct
class Session {
public:
    explicit Session(Core& core, std::optional<Milliseconds> timeout = {})
        : core_(core), engine_(core.pool.take()), cancels_(core.cancels.load(std::memory_order_relaxed)) {
        limits_.cancelled = [this] { return core_.cancels.load() != cancels_; };
        allow(timeout.value_or(core.config.call_timeout));
    }
    ~Session() { core_.pool.give_back(std::move(engine_)); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    Core& core() { return core_; }
    digest::Sha256& body_hash() { return engine_->body_hash; }

    // `report` is called some ten times a second; false cancels what runs, and every step() from then on. What was
    // cancelled before is over: cleaning up comes here first.
    void on_progress(std::function<bool()> report) {
        report_progress_ = std::move(report);
        why_cancelled_ = nullptr;
        cancels_ = core_.cancels.load(std::memory_order_relaxed);
    }
    // A new deadline, counted from now; zero: none.
    void allow(Milliseconds timeout) {
        timeout_ = timeout;
        limits_.deadline.reset();
        if (timeout.count() > 0) limits_.deadline = http::Clock::now() + timeout;
    }
    void allow_cleanup() {
        on_progress({});
        const auto now = http::Clock::now();
        if (timeout_.count() <= 0) return void(limits_.deadline = now + cleanup_timeout);
        if (!overtime_) overtime_ = (std::max)(*limits_.deadline, now) + cleanup_overtime;
        limits_.deadline = overtime_;
    }

    // Whether the operation may go on: for work between requests, such as reading a source.
    Result<void> check_allowed(std::string_view operation, std::string_view key) const {
        if (why_cancelled_) return refusal(Errc::cancelled, operation, key, why_cancelled_);
        return check_deadline(operation, key);
    }

    void start(Exchange& exchange) {
        const Request& request = exchange.request;
        forget(exchange);
        exchange.next = std::exchange(exchanges_, &exchange);
        exchange.done = exchange.stopped_by_sink = false;
        exchange.corrections = 0;
        exchange.attempts = 0;
        exchange.clock_offset_ms = core_.clock_offset_ms.load(std::memory_order_relaxed);
        exchange.began = http::Clock::now();
        if (why_cancelled_ && !request.not_cancellable)
            return end(exchange, refusal(Errc::cancelled, request, why_cancelled_));
        if (core_.health.admits(core_.local_now())) return attempt(exchange, exchange.began);
        core_.count(&Stats::unavailable);
        constexpr std::string_view why = "not sent: the last calls failed, and Config::breaker_pause is not over";
        end(exchange, refusal(Errc::unavailable, request, why));
    }

    // Moves bytes; waits up to `most` if there are none to move. False once something has cancelled.
    bool step(Milliseconds most) {
        woken_ = false;
        start_due();
        const bool fine =
            engine_->perform([this](http::Transfer& done) { finish_attempt(*static_cast<Exchange*>(done.owner)); });
        if (!fine) end_all(Errc::network, "libcurl gave up on its connections");
        if (core_.cancels.load(std::memory_order_relaxed) != cancels_) cancel("cancelled by Cache::cancel()");
        if (report_progress_) report_progress();
        if (why_cancelled_ && http::Clock::now() >= cancelled_at_ + cleanup_timeout)
            end_all(Errc::cancelled, why_cancelled_, true);
        if (!woken_ && most.count() != 0) wait((std::min)(most, tick));
        return !why_cancelled_;
    }
    void run(Exchange& exchange) {
        start(exchange);
        wait_for(exchange);
    }
    void wait_for(const Exchange& exchange) {
        while (!exchange.done) step(step_most);
    }
    // For a sink: the caller has what it waited for, so step() is not to wait for more.
    void wake() { woken_ = true; }

    // Forgets the exchange and its answer; one that still runs is cut off.
    void drop(Exchange& exchange) noexcept {
        forget(exchange);
        let_go(exchange);
    }
    // Hands what was held back to the sink at once. What the sink says then ends the exchange here: libcurl would
    // report it to us alone, and go on with the next bytes as if these had been taken.
    void resume(Exchange& exchange) {
        if (!exchange.answer || !exchange.answer->paused) return;
        exchange.answer->paused = false;
        const CURLcode result = curl_easy_pause(exchange.answer->easy, CURLPAUSE_CONT);
        if (result == CURLE_OK || !exchange.running) return;
        engine_->stop(*exchange.answer, result);
        finish_attempt(exchange);
    }
    // Ends what runs with this error.
    void end_all(Errc code, const std::string& why, bool also_not_cancellable = false) {
        for (Exchange* exchange = exchanges_; exchange; exchange = exchange->next) {
            if (!exchange->done && (also_not_cancellable || !exchange->request.not_cancellable))
                end(*exchange, refusal(code, exchange->request, why));
        }
    }

    // The answer as an error, for an operation that can make nothing of it.
    Error failure(const Exchange& exchange) const {
        if (exchange.error) return *exchange.error;
        Error::Details details;
        details.status = exchange.status();
        const std::string status = bytes::number(static_cast<std::uint64_t>(details.status));
        details.s3_code = exchange.code().empty() ? status : bytes::sanitize(exchange.code());
        details.s3_message = words_of(exchange);
        details.request_id = request_id(exchange);
        const retry::Rule rule = retry::rule_for(details.status, details.s3_code);
        details.code = rule.kind;
        details.retryable = rule.action == retry::Action::retry;
        const std::string text = details.s3_code == status ? status : status + " " + details.s3_code;
        std::string_view advice = advice_for(exchange.answer->url, details.s3_message);
        if (advice.empty()) advice = rule.advice;
        const bool underscore = exchange.request.ttl && core_.config.metadata_names == MetadataNames::underscore;
        if (underscore && (details.s3_message.find("not signed") != std::string::npos ||
                           details.s3_code == "SignatureDoesNotMatch" || details.s3_code == "400"))
            advice =
                "if a proxy drops or refuses headers with an underscore, set Config::metadata_names to "
                "MetadataNames::hyphen (?metadata_names=hyphen)";
        return told(exchange, std::move(details), text, advice);
    }

private:
    void attempt(Exchange& exchange, http::Clock::time_point now) {
        exchange.attempt_began = now;
        exchange.fault.reset();
        exchange.error.reset();
        exchange.stopped_by_sink = false;
        if (const Result<void> ready = prepare(exchange); !ready) return end(exchange, ready.error());
        if (!engine_->start(*exchange.answer, core_.config))
            return end(exchange,
                       refusal(Errc::unsupported, exchange.request, "libcurl refused the request or has no memory"));
        exchange.running = true;
        core_.count(&Stats::requests);
        if (++exchange.attempts > 1) core_.count(&Stats::retries);
    }

    // The request as it goes out: everything that differs from attempt to attempt is made here.
    Result<void> prepare(Exchange& exchange) {
        const Request& request = exchange.request;
        if (Result<void> fine = check_deadline(request.operation, request.key); !fine) return fine;
        auto who = core_.identity.snapshot(limits_);
        if (!who) return not_found_out(request, who.error());
        exchange.identity = *std::move(who);
        auto place = core_.place(limits_);  // the instance that gave credentials may have to say where it is
        if (!place) return not_found_out(request, place.error());
        exchange.place = *std::move(place);
        if (!exchange.answer) exchange.answer = engine_->borrow();
        http::Transfer& out = *exchange.answer;
        const endpoint::Endpoint& where = *exchange.place;
        out.clear_request();
        out.owner = &exchange;
        out.method = request.method;
        out.sink = request.sink;
        out.limits = {core_.config.connect_timeout, request.stall.value_or(core_.config.stall_timeout), time_left()};
        out.body = request.body;
        // Without TLS a large receive buffer costs a small answer nothing, and halves the cost of a megabyte.
        out.large = request.large || (request.method == Method::get && where.scheme == "http");

        out.url.assign(where.scheme).append("://").append(where.host);
        out.path_at = out.url.size();
        out.url.append(where.base_path);
        if (!request.object.empty() || where.base_path.empty()) out.url += '/';
        bytes::append_percent(out.url, request.object, true);
        add_headers(exchange, std::string_view(out.url).substr(out.path_at));
        if (!request.query.empty()) (out.url += '?').append(request.query);
        return {};
    }

    Result<void> check_deadline(std::string_view operation, std::string_view key) const {
        if (!limits_.deadline || http::Clock::now() < *limits_.deadline) return {};
        return refusal(Errc::timed_out, operation, key, out_of_time_text());
    }
    Milliseconds time_left() const {
        if (!limits_.deadline) return Milliseconds(0);
        const auto left = std::chrono::duration_cast<Milliseconds>(*limits_.deadline - http::Clock::now());
        return (std::max)(left, Milliseconds(1));
    }
    // Who we are, or where the store is. What ended the wait for it is named as the caller knows it.
    Error not_found_out(const Request& request, const Error& why) const {
        const char* limit = why.code() == Errc::timed_out && limits_.deadline ? " (call_timeout)"
                            : why.code() == Errc::cancelled                   ? " (by Cache::cancel())"
                                                                              : "";
        return Error(why.details(), about(request.operation, request.key, std::string(why.what()) + limit));
    }
    std::string out_of_time_text() const {
        return "the call's time (call_timeout, " + bytes::number(static_cast<std::uint64_t>(timeout_.count())) +
               " ms) is over";
    }

    void add_headers(Exchange& exchange, std::string_view path) {
        const endpoint::Endpoint& place = *exchange.place;
        const Request& request = exchange.request;
        http::Transfer& out = *exchange.answer;
        out.to_sign.clear();
        out.to_sign.push_back({"host", place.host});
        const auto add = [&out](std::string_view name, std::string_view value) {
            out.add_header(name, value);
            out.to_sign.push_back({name, value});
        };
        for (const auto& [name, value] : request.headers) add(name, value);
        const TimePoint now = core_.local_now() + Milliseconds(exchange.clock_offset_ms);
        const bool hyphen = core_.config.metadata_names == MetadataNames::hyphen;
        std::string expiry;
        if (request.ttl) {
            expiry = entry::seconds_text(Seconds(now.time_since_epoch() + *request.ttl).count());
            add(hyphen ? "x-amz-meta-expires-at" : "x-amz-meta-expires_at", expiry);
        }
        if (exchange.is_anonymous()) return;
        const Credentials& keys = exchange.identity->credentials;
        const std::string_view date = out.signer.date(dates::unix_seconds(now));
        const std::string_view hash =
            request.payload_hash.empty() ? sigv4::empty_payload_hash : std::string_view(request.payload_hash);
        add("x-amz-content-sha256", hash);
        add("x-amz-date", date);
        if (!keys.session_token.empty()) add("x-amz-security-token", keys.session_token);
        const sigv4::Request to_sign{
            http::name_of(request.method), path, request.query, out.to_sign.data(), out.to_sign.size(), hash};
        out.add_header("authorization", out.signer.sign(to_sign, keys, {date, place.signing_region, "s3"}));
    }

    void start_due() {
        std::optional<http::Clock::time_point> now;  // asked only if an exchange waits: usually none does
        for (Exchange* exchange = exchanges_; exchange; exchange = exchange->next) {
            if (exchange->done || exchange->running) continue;
            if (!now) now = http::Clock::now();
            if (exchange->due <= *now) attempt(*exchange, *now);
        }
    }

    // Until a transfer moves, an attempt is due or `most` is over; not at all where only the caller can go on.
    void wait(Milliseconds most) {
        bool any = false;
        for (const Exchange* exchange = exchanges_; exchange; exchange = exchange->next) {
            if (exchange->done) continue;
            any = true;
            if (exchange->answer && exchange->answer->paused) return;
            if (exchange->running) continue;
            const auto until = std::chrono::duration_cast<Milliseconds>(exchange->due - http::Clock::now());
            most = (std::min)(most, (std::max)(until, Milliseconds(0)) + Milliseconds(1));
        }
        if (any || !why_cancelled_) engine_->wait(most);
    }

    void report_progress() {
        const auto now = http::Clock::now();
        if (now < next_report_) return;
        next_report_ = now + tick;
        if (!report_progress_()) cancel("cancelled by the progress callback");
    }
    void cancel(const char* why) {
        if (why_cancelled_) return;
        cancelled_at_ = http::Clock::now();
        why_cancelled_ = why;
        end_all(Errc::cancelled, why);
    }

    void forget(Exchange& exchange) noexcept {
        Exchange** at = &exchanges_;
        while (*at && *at != &exchange) at = &(*at)->next;
        if (*at) *at = exchange.next;
    }
    void let_go(Exchange& exchange) noexcept {
        if (exchange.answer) engine_->give_back(std::move(exchange.answer), exchange.running);
        exchange.running = false;
        exchange.done = true;
    }
    void end(Exchange& exchange, Error why) {
        exchange.error = std::move(why);
        let_go(exchange);
        woken_ = true;
    }

    void finish_attempt(Exchange& exchange) {
        exchange.running = false;
        woken_ = true;
        const http::Transfer& answer = *exchange.answer;
        {
            const std::lock_guard<std::mutex> hold(core_.stats_lock);
            core_.stats.bytes_in += answer.received;
            core_.stats.bytes_out += exchange.request.body.size();
            if (!answer.reused) ++core_.stats.connections;
        }
        read_answer(exchange);
        exchange.stopped_by_sink = answer.result == CURLE_WRITE_ERROR && !answer.overflow && !answer.no_memory;
        const bool answered = exchange.stopped_by_sink || retry::is_answered(answer.result, answer.status);
        const retry::Action action = action_for(exchange);
        if (goes_on(exchange, action)) return emit_event(exchange, "retry");
        exchange.done = true;
        if (!answered) exchange.error = no_answer(exchange);
        core_.health.report(answered && action != retry::Action::retry, core_.local_now());
        const bool was_signed_right = exchange.ok() || exchange.status() == 404;
        if (was_signed_right && exchange.has_tried(retry::Action::correct_clock))
            core_.clock_offset_ms.store(exchange.clock_offset_ms);
        emit_event(exchange, exchange.ok() ? "done" : "error");
    }

    // The store's words about a failure. What is no S3 error (a proxy's page, nothing) goes by the status number.
    void read_answer(Exchange& exchange) {
        const http::Transfer& answer = *exchange.answer;
        const Request& request = exchange.request;
        std::optional<xml::ErrorBody>& fault = exchange.fault;
        if (answer.status >= 300 || request.error_in_200) fault = xml::error_body(answer.text);
        if (fault && fault->code.empty()) fault->code = bytes::number(static_cast<std::uint64_t>(answer.status));
        if (answer.status / 100 == 2 || (fault && fault->code != "NoSuchBucket"))
            core_.store_seen.store(true, std::memory_order_relaxed);
        if (request.error_in_200 && answer.result == CURLE_OK && answer.status == 200 && !fault &&
            !xml::etag_result(answer.text) && !xml::upload_id(answer.text)) {
            fault.emplace();  // empty, cut short, or no result at all: treated as 500 InternalError
            fault->code = "InternalError";
            fault->message = "the body of the answer is no result";
        }
        const std::string_view region = answer.headers.get("x-amz-bucket-region");
        if (region.empty() || answer.status < 300) return;
        if (!fault) fault.emplace();
        fault->region = region;
        // To a HEAD the store cannot say more than that.
        if (request.method == Method::head && (answer.status == 400 || answer.status == 301))
            fault->code = "PermanentRedirect";
    }

    // A store that closes an idle connection may answer on it with something that is not about the request: no HTTP at
    // all, or to a HEAD a bare 400 (RequestTimeout). A bare 403 to a HEAD may be about the clock.
    retry::Action action_for(const Exchange& exchange) const {
        const http::Transfer& answer = *exchange.answer;
        if (exchange.stopped_by_sink) return retry::Action::accept;
        const bool is_bare = exchange.request.method == Method::head && exchange.code().empty();
        if (is_bare && answer.status == 403 && std::fabs(skew(answer, core_.now()).value_or(0)) > skew_seconds_min)
            return retry::Action::correct_clock;
        const bool is_odd = answer.result == CURLE_UNSUPPORTED_PROTOCOL || answer.result == CURLE_WEIRD_SERVER_REPLY ||
                            (is_bare && answer.status == 400);
        if (is_odd && answer.reused) return retry::Action::ask_again;
        if (const int refusal = refused_by_proxy(answer)) return retry::rule_for(refusal, {}).action;
        if (!retry::is_answered(answer.result, answer.status))
            return retry::failure_of(answer.result).is_passing ? retry::Action::retry : retry::Action::give_up;
        if (answer.status / 100 == 2 && exchange.code().empty()) return retry::Action::accept;
        return retry::rule_for(answer.status, exchange.code()).action;
    }
    // The status with which a proxy refused to open a tunnel; 0: none did.
    static int refused_by_proxy(const http::Transfer& answer) {
        const long status = answer.result == CURLE_OK ? 0 : answer.info<long>(CURLINFO_HTTP_CONNECTCODE);
        return status >= 300 ? static_cast<int>(status) : 0;
    }

    bool goes_on(Exchange& exchange, retry::Action action) {
        using retry::Action;
        if (action == Action::accept || action == Action::give_up) return false;
        if (action == Action::retry) return retry_later(exchange);
        if (exchange.has_tried(action)) return false;
        exchange.corrections |= 1U << static_cast<unsigned>(action);
        const bool corrected = action == Action::refresh_credentials
                                   ? core_.identity.force_refresh(exchange.identity->generation, limits_)
                               : action == Action::correct_clock  ? correct_clock(exchange)
                               : action == Action::correct_region ? correct_region(exchange)
                                                                  : true;
        return corrected && again_now(exchange);
    }

    // How far the store's clock is ahead, by an answer's Date.
    static std::optional<double> skew(const http::Transfer& answer, TimePoint now) {
        const auto date = dates::http_date(answer.headers.get("date"));
        if (!date) return std::nullopt;
        return retry::seconds_between(now, *date);
    }
    // A signed refusal as skewed tells that the store's own clock matters, and its Date what that says. Where the refusal
    // gives no reason the date is tried, and counts for others only if the store then takes the signature.
    bool correct_clock(Exchange& exchange) {
        const auto off = skew(*exchange.answer, core_.local_now());
        if (!off || exchange.is_anonymous()) return false;
        exchange.clock_offset_ms = static_cast<std::int64_t>(*off * 1000);
        if (!exchange.code().empty()) core_.clock_offset_ms.store(exchange.clock_offset_ms);
        return true;
    }
    // From the refusal, or else from the bucket, whose HEAD is answered with its region also by a host of another one.
    bool correct_region(const Exchange& exchange) {
        if (exchange.fault && core_.correct_region(exchange.fault->region, exchange.place->signing_region)) return true;
        if (exchange.request.is_correction || (exchange.fault && !exchange.fault->region.empty())) return false;
        Session other(core_);
        other.limits_.deadline = limits_.deadline;
        Exchange look{bucket_request(exchange.request.operation, Method::head, {}, exchange.request.key)};
        look.request.is_correction = true;
        other.run(look);
        other.drop(look);
        const auto place = core_.place(limits_);
        return place && (*place)->signing_region != exchange.place->signing_region;
    }

    bool again_now(Exchange& exchange) {
        if (exchange.on_retry && !exchange.on_retry(exchange)) return false;
        exchange.due = http::Clock::now();
        return true;
    }
    bool retry_later(Exchange& exchange) {
        const auto now = http::Clock::now();
        const http::Transfer& answer = *exchange.answer;
        if (exchange.attempts >= core_.config.attempts_max) return false;
        auto delay = retry::backoff(core_.config, exchange.attempts, core_.random());
        delay = (std::max)(delay, retry::retry_after(exchange.headers().get("retry-after"), core_.now()));
        if (limits_.deadline && now + delay >= *limits_.deadline) return false;
        const bool timed_out = answer.result == CURLE_OPERATION_TIMEDOUT;
        if (!core_.health.take(timed_out ? retry::quota_per_timeout : retry::quota_per_retry, now)) return false;
        if (!again_now(exchange)) return false;
        if (core_.config.seams.sleep)
            core_.config.seams.sleep(delay);
        else
            exchange.due = now + delay;
        return true;
    }
    void emit_event(const Exchange& exchange, std::string_view outcome) const {
        if (!core_.config.on_event) return;
        const http::Transfer& answer = *exchange.answer;
        Event event;
        event.operation = exchange.request.operation;
        event.key = exchange.request.key;
        event.outcome = outcome;
        event.attempt = exchange.attempts;
        event.status = answer.status;
        event.duration = http::Clock::now() - exchange.attempt_began;
        event.bytes = exchange.request.method == Method::get ? answer.received : exchange.request.body.size();
        event.reused = answer.reused;
        const std::string problem = bytes::sanitize(bytes::trim(answer.problem));
        if (answer.result != CURLE_OK && !exchange.stopped_by_sink) event.detail = problem;
        core_.config.on_event(event);
    }

    Error no_answer(const Exchange& exchange) const {
        const http::Transfer& answer = *exchange.answer;
        Error::Details details;
        const retry::Failure met = retry::failure_of(answer.result);
        const bool is_odd = answer.overflow && met.kind == Errc::network;
        details.code = answer.no_memory ? Errc::too_large : is_odd ? Errc::protocol : met.kind;
        details.retryable = met.is_passing;
        const bool timed_out = answer.result == CURLE_OPERATION_TIMEDOUT;
        if (timed_out && limits_.deadline && http::Clock::now() >= *limits_.deadline - Milliseconds(5))
            return told(exchange, std::move(details), out_of_time_text(), {});
        std::string text = answer.no_memory  ? "no memory for the answer"
                           : answer.overflow ? "the answer is larger than any of S3's"
                                             : bytes::sanitize(bytes::trim(answer.problem));
        if (answer.result == CURLE_COULDNT_CONNECT && http::no_descriptor_is_left())
            text = "no file descriptor is left (see ulimit -n)";
        if (text.empty()) text = curl_easy_strerror(answer.result);
        if (answer.result == CURLE_OUT_OF_MEMORY) text += ", or a header line longer than libcurl takes";
        const bool stalled = text.find("too slow") != std::string::npos;
        if (timed_out) text += stalled ? " (stall_timeout)" : " (connect_timeout)";
        // What was a store before is one still.
        std::string_view advice = core_.store_seen ? std::string_view() : advice_for(answer.url, text);
        if (advice.empty() && details.code == Errc::tls)
            advice = "set Config::ca_bundle to the authority that signed the store's certificate";
        if (const int refusal = refused_by_proxy(answer)) {
            const retry::Rule rule = retry::rule_for(refusal, {});
            details.code = rule.kind;
            details.retryable = rule.action == retry::Action::retry;
            advice = refusal == 407 ? rule.advice : "the proxy refuses: see Config::proxy";
        }
        return told(exchange, std::move(details), std::move(text), advice);
    }

    Core& core_;
    std::unique_ptr<http::Engine> engine_;
    Exchange* exchanges_ = nullptr;  // a list, by Exchange::next
    std::function<bool()> report_progress_;
    http::Clock::time_point next_report_{};
    Milliseconds timeout_{0};
    credentials::Limits limits_;
    std::optional<http::Clock::time_point> overtime_;
    bool woken_ = false;
    const char* why_cancelled_ = nullptr;  // null: it is not
    http::Clock::time_point cancelled_at_{};
    std::uint64_t cancels_;  // of the cache, when this session began
};

// An exchange that its session forgets, and cuts off, when it goes out of scope. Where it is made it stays.
struct Call : Exchange {
    Call(Session& on, Request what) : Exchange{std::move(what)}, session(on) {}
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() { session.drop(*this); }
    void run() { session.run(*this); }

    Session& session;
};

// One of many: a call, and what follows from its answer.
struct Job {
    Job() = default;
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;
    virtual ~Job() = default;
    virtual Call& call() = 0;                     // what is on its way now
    virtual bool tend() { return !call().done; }  // called between steps; false: the job is done

    // For run_all.
    std::size_t index = 0;
    std::unique_ptr<Job> next{};
};

inline void run_jobs(Session& session, std::size_t total, std::size_t at_once,
                     const std::function<std::unique_ptr<Job>(std::size_t)>& begin,
                     const std::function<void(std::size_t, Job&)>& end) {
    std::unique_ptr<Job> running;  // a list, by Job::next
    std::size_t count = 0;
    for (std::size_t next = 0; next < total || running;) {
        for (; next < total && count < at_once; ++next) {
            std::unique_ptr<Job> job = begin(next);
            if (!job) continue;
            job->index = next;
            session.start(job->call());
            job->next = std::exchange(running, nullptr);
            running = std::move(job);
            ++count;
        }
        bool any_done = false;
        for (Job* job = running.get(); job; job = job->next.get()) any_done = any_done || job->call().done;
        if (running && !any_done) session.step(step_most);
        for (std::unique_ptr<Job>* at = &running; *at;) {
            if ((*at)->tend()) {
                at = &(*at)->next;
                continue;
            }
            const std::unique_ptr<Job> ended = std::move(*at);
            *at = std::move(ended->next);
            --count;
            end(ended->index, *ended);
        }
    }
}

// Runs any number of jobs over a bounded number of connections: `begin(i)` makes the i-th (null: it needs no request),
// `end(i, job)` looks at it once it is done. They are borrowed: a std::function of a reference needs no memory.
template <class Begin, class End>
void run_all(Session& session, std::size_t total, std::size_t at_once, const Begin& begin, const End& end) {
    run_jobs(session, total, at_once, std::ref(begin), std::ref(end));
}

}  // namespace detail::s3

// --- transfer: sources to uploads, answers to checked and decoded bytes ----------------------------------------------

namespace detail::transfer {

using http::SinkResult;
using s3::Call;
using s3::Exchange;
using s3::Method;
using s3::refusal;
using s3::Session;

// The body of an entry that will not be served (expired) is read to its end up to this, which keeps the connection;
// a longer one is cut off, since a new connection is cheaper.
inline constexpr std::uint64_t drained_bytes_max = std::uint64_t{64} << 10;
// An attempt that moved this much has proved the connection good: the next failure counts as the first.
inline constexpr std::uint64_t progress_bytes_min = std::uint64_t{1} << 20;
// How much of a source is read between two looks at the network; and what is hashed at once, while it is in the cache.
inline constexpr std::size_t piece_bytes = std::size_t{64} << 10;
inline constexpr std::size_t reader_buffer_bytes = std::size_t{512} << 10;
inline constexpr std::uint64_t parts_max = 10000;
inline constexpr std::uint64_t part_bytes_max = std::uint64_t{5} << 30;  // both are S3's
// A stream whose length nobody knows begins with this many equal parts, since some stores take no others (Cloudflare's
// R2). Beyond them the size doubles again and again, so that 10,000 parts hold whatever S3 takes.
inline constexpr std::uint64_t equal_parts = 5000;
inline constexpr std::uint64_t parts_a_size = 500;
// A connection that has brought less than this after so long a wait is helped by others; with a faster one it is the
// processor that sets the pace.
inline constexpr std::chrono::milliseconds sample_time{20};
inline constexpr std::uint64_t fast_bytes = 4000000;
// A source is asked for so long between two turns of the network. One that takes longer is slow: what is on its way
// would stall meanwhile, and stores close such connections. So many parts without such a pause show that it is fast.
inline constexpr std::chrono::milliseconds turn_time{10}, slow_source_time{200};
inline constexpr int fast_parts_min = 2;
// How often a PUT whose answer is odd, or whose condition the store takes in another form, is sent again.
inline constexpr int puts_again_max = 2;
// The store may assemble parts for minutes, saying nothing.
inline constexpr std::chrono::milliseconds complete_stall{300000};

// How many parts may be in flight: no more than connections, nor than fit the memory bound.
inline std::size_t lanes_for(const Config& config, std::uint64_t part) {
    const std::uint64_t fit = (std::max)(std::uint64_t{1}, std::uint64_t{config.transfer_bytes_max} / part);
    return static_cast<std::size_t>((std::min)(fit, std::uint64_t{config.connections}));
}

// The bytes first to last, both inclusive, as a Range header and (but for the first letters) Content-Range have them.
inline std::string range_text(std::uint64_t first, std::optional<std::uint64_t> last = {}) {
    return bytes::number(first) + "-" + (last ? bytes::number(*last) : std::string());
}

// What a body is checked against as it streams by, by what its entry and Config::checksums offer.
class Verifier {
public:
    Verifier(const entry::Facts& facts, Checksums policy)  // borrowed: they must live as long
        : facts_(facts),
          has_crc_(policy != Checksums::none && facts.crc32c),
          has_store_sum_(policy == Checksums::store && add_to_store_sum({})) {}

    void update(std::string_view data) {
        if (has_crc_) crc_ = digest::crc32c(crc_, data.data(), data.size());
        if (has_store_sum_) static_cast<void>(add_to_store_sum(data));
    }
    // Why the body is not what was stored; null: it is, as far as can be told.
    const char* mismatch() const {
        if (has_crc_ && crc_ != *facts_.crc32c)
            return "the body does not match its CRC-32C: the stored entry is damaged";
        if (has_store_sum_ && store_text() != facts_.store_sum)
            return "the body does not match the store's own checksum of it";
        return nullptr;
    }

private:
    // False: a kind of sum that is none of ours.
    bool add_to_store_sum(std::string_view data) {
        const auto crc = static_cast<std::uint32_t>(store_sum_);
        if (facts_.store_sum_type == "crc64nvme")
            store_sum_ = digest::crc64nvme(store_sum_, data.data(), data.size());
        else if (facts_.store_sum_type == "crc32c")
            store_sum_ = digest::crc32c(crc, data.data(), data.size());
#ifndef S3CACHE_NO_GZIP  // zlib has this one
        else if (facts_.store_sum_type == "crc32")
            store_sum_ = digest::crc32(crc, data.data(), data.size());
#endif
        else
            return false;
        return true;
    }
    std::string store_text() const {
        const std::string text = digest::big_endian(store_sum_);
        return bytes::base64(facts_.store_sum_type == "crc64nvme" ? text : text.substr(sizeof crc_));
    }

    const entry::Facts& facts_;
    std::uint32_t crc_ = 0;
    std::uint64_t store_sum_ = 0;
    const bool has_crc_, has_store_sum_;
};

// Whether an answer holds the bytes from `first` on of the version that the rest is from.
inline Result<void> check_range(const http::Transfer& from, std::string_view key, std::string_view etag,
                                std::uint64_t first) {
    if (from.headers.get("etag") != etag)
        return refusal(Errc::changed, "get", key, "the object was replaced while it was read");
    if (from.status == 206 && bytes::starts_with(from.headers.get("content-range"), "bytes " + range_text(first)))
        return {};
    return refusal(Errc::protocol, "get", key, "the store answered with another range than asked for");
}

// The answer as an error, where the beginning of the object has been there.
inline Error range_failure(const Session& session, const Exchange& call) {
    if (!call.error && (call.status() == 412 || call.status() == 404))
        return refusal(Errc::changed, "get", call.request.key, "the object was replaced while it was read");
    return session.failure(call);
}

// A part of a large object, that comes on a connection of its own.
struct Range {
    Range(Session& session, std::string_view key, std::string_view version)
        : etag(version),
          buffer(new char[session.core().config.part_bytes]),
          call(session, s3::request(session.core(), "get", Method::get, key)) {
        call.request.large = true;
        call.request.sink = {this, [](void* self, const http::Transfer& from, const char* data, std::size_t count) {
                                 return static_cast<Range*>(self)->take(from, {data, count});
                             }};
        call.on_retry = [this](const Exchange&) { return ask(), placed.has_value(); };
    }
    void start(std::uint64_t from, std::uint64_t bytes) {
        offset = from, size = bytes, received = 0;
        ask();
        call.session.drop(call);
        call.session.start(call);
    }
    Result<void> check() const {
        if (!placed) return placed;
        if (!call.ok() || call.stopped_by_sink) return range_failure(call.session, call);
        if (received == size) return {};
        return refusal(Errc::damaged, "get", call.request.key, "a range is shorter than announced");
    }
    std::string_view body() const { return {buffer.get(), static_cast<std::size_t>(size)}; }

    const std::string etag;
    const std::unique_ptr<char[]> buffer;
    std::uint64_t offset = 0, size = 0, received = 0;
    Result<void> placed{};
    Call call;

private:
    void ask() {  // for what is missing
        call.request.headers = {{"range", "bytes=" + range_text(offset + received, offset + size - 1)},
                                {"if-match", etag}};
    }
    SinkResult take(const http::Transfer& from, std::string_view data) {
        if (from.received == 0) placed = check_range(from, call.request.key, etag, offset + received);
        if (!placed || data.size() > size - received) return SinkResult::stop;
        data.copy(buffer.get() + received, data.size());
        received += data.size();
        return SinkResult::consumed;
    }
};

// The bytes of one object as they come, whatever becomes of them: length and checksums checked, and a broken connection
// resumed where it broke, on the same version of the object (If-Match) or not at all.
//
//   head ──> one connection ──────────────────────────────> checked end
//                  │ slow, and the object large                  ^
//                  └─> its first part, others' ranges behind it ─┘
class Download {
public:
    // Takes what comes. `open` looks at the headers; false: the body is not wanted.
    struct Consumer {
        void* self;
        bool (*open)(void* self, const entry::Facts& facts);
        SinkResult (*take)(void* self, std::string_view data);
    };

    Download(Session& session, std::string_view key, Consumer consumer)
        : call(session, s3::request(session.core(), "get", Method::get, key)), session_(session), consumer_(consumer) {
        call.request.sink = {this, [](void* self, const http::Transfer& from, const char* data, std::size_t size) {
                                 return static_cast<Download*>(self)->take(from, {data, size});
                             }};
        if (config().checksums == Checksums::store) call.request.header("x-amz-checksum-mode", "ENABLED");
        call.on_retry = [this](const Exchange&) { return rewind(); };
    }
    Download(const Download&) = delete;
    Download& operator=(const Download&) = delete;

    const entry::Facts& facts() const { return facts_; }
    Info take_info() { return std::move(facts_.info); }  // at the end: a broken connection is resumed by it
    std::uint64_t taken() const { return taken_; }
    // Of the body, as it is stored: what has come in so far.
    std::uint64_t arrived() const {
        std::uint64_t sum = taken_ - delivered_;
        for (const auto& range : ranges_) sum += range->received;
        return sum;
    }

    // For whoever calls tend() between steps: a large object that comes slowly over one connection may be helped by
    // others.
    void allow_parallel() { may_be_parallel_ = true; }
    // Starts those once it has shown that they would help. The first one goes on to the end of its part meanwhile; then
    // what they have brought is handed out in order.
    void tend() {
        if (!first_part_end_ || done()) return;
        fill(call.done ? lanes() : lanes() - 1);
        while (call.done && !done() && ranges_.front()->call.done && hand_out(*ranges_.front())) fill(lanes());
    }
    // Bytes are waited for from now on: how fast they come is measured by that time alone.
    void wait_begins() { since_ = http::Clock::now(); }
    // All has come, or nothing more will.
    bool done() const {
        return call.done && (!first_part_done() || is_stopped_ || trouble_ || taken_ == *facts_.length);
    }
    Call& waited_for() { return call.done && !ranges_.empty() ? ranges_.front()->call : call; }

    // Once done(): whether what was taken is the whole object.
    Result<void> check() {
        if (trouble_) return *trouble_;
        if (!first_part_done()) {
            if (Result<void> fine = check_answer(); !fine) return fine;
        }
        if (!is_wanted_) return {};
        if (facts_.length && taken_ != *facts_.length)
            return refuse(Errc::damaged, "the body is shorter than announced");
        if (const char* mismatch = verifier_->mismatch()) return refuse(Errc::damaged, mismatch);
        return {};
    }

    Call call;

private:
    const Config& config() const { return session_.core().config; }
    std::size_t lanes() const { return lanes_for(config(), config().part_bytes); }
    Error refuse(Errc code, std::string_view why) const { return refusal(code, "get", call.request.key, why); }
    // The first connection has brought its part of a large object.
    bool first_part_done() const { return first_part_end_ && taken_ >= first_part_end_; }

    Result<void> check_answer() {
        if (call.error) return *call.error;
        if (!call.ok()) return taken_ ? range_failure(session_, call) : session_.failure(call);
        if (!is_open_) open(call.headers());
        if (!is_wanted_) return {};
        if (!facts_.from_s3) return refuse(Errc::protocol, "the answer has no ETag: is the endpoint an S3 store?");
        if (!facts_.length && call.headers().get("transfer-encoding").empty())
            return refuse(Errc::protocol, "the answer does not say how long it is");
        return {};
    }

    void open(const http::Headers& headers) {
        facts_ = entry::read(headers);
        is_open_ = true;
        is_wanted_ = consumer_.open(consumer_.self, facts_);
        verifier_.emplace(facts_, config().checksums);
        is_sampling_ = may_be_parallel_ && lanes() > 1 && facts_.length.value_or(0) / 2 >= config().part_bytes &&
                       facts_.has_strong_etag() && headers.get("accept-ranges") == "bytes";
        if (is_sampling_) wait_begins();
    }
    // Decides once whether others are to help.
    void look_at_speed() {
        waited_ += http::Clock::now() - since_;
        if (waited_ < sample_time) return;
        is_sampling_ = false;
        const std::uint64_t part = config().part_bytes, part_end = (taken_ + part / 2) / part * part + part;
        if (taken_ < fast_bytes && part_end < *facts_.length) first_part_end_ = next_offset_ = part_end;
    }
    // Starts as many ranges as may be on their way at once: no more than the lanes' buffers is ever held.
    void fill(std::size_t at_once) {
        while (ranges_.size() < at_once && next_offset_ < *facts_.length) {
            if (!spare_) spare_ = std::make_unique<Range>(session_, call.request.key, facts_.info.etag);
            ranges_.push_back(std::move(spare_));
            const std::uint64_t from = next_offset_;
            next_offset_ = (std::min)(from + config().part_bytes, *facts_.length);
            ranges_.back()->start(from, next_offset_ - from);
        }
    }

    // False: the consumer takes no more for now, or at all.
    bool hand_out(Range& range) {
        if (Result<void> fine = range.check(); !fine) return stop(std::move(fine).error()), false;
        const std::string_view piece = range.body().substr(delivered_, piece_bytes);
        const SinkResult result = consumer_.take(consumer_.self, piece);
        is_stopped_ = result == SinkResult::stop;
        if (result != SinkResult::consumed) return false;
        verifier_->update(piece);
        taken_ += piece.size();
        delivered_ += piece.size();
        if (delivered_ < range.size) return true;
        delivered_ = 0;
        spare_ = std::move(ranges_.front());
        ranges_.erase(ranges_.begin());
        return true;
    }

    SinkResult take(const http::Transfer& from, std::string_view data) {
        if (!is_open_) {
            if (from.status != 200)
                return stop(refuse(Errc::protocol, "the store answered with a range that was not asked for"));
            open(from.headers);
        }
        if (!is_wanted_)
            return facts_.length.value_or(drained_bytes_max + 1) <= drained_bytes_max ? SinkResult::consumed
                                                                                      : SinkResult::stop;
        if (taken_ && from.received == 0) {
            if (Result<void> fine = resume(from); !fine) return stop(std::move(fine).error());
        }
        if (is_sampling_) look_at_speed();
        const auto skipped = static_cast<std::size_t>((std::min)(skip_, std::uint64_t{data.size()}));
        std::string_view fresh = data.substr(skipped);
        if (first_part_end_)
            fresh = fresh.substr(
                0, static_cast<std::size_t>((std::min)(std::uint64_t{fresh.size()}, first_part_end_ - taken_)));
        const SinkResult result = fresh.empty() ? SinkResult::consumed : consumer_.take(consumer_.self, fresh);
        if (is_sampling_) wait_begins();  // what was done with the bytes is not the network's time
        if (result != SinkResult::consumed) return result;
        skip_ -= skipped;
        taken_ += fresh.size();
        verifier_->update(fresh);
        return first_part_done() ? SinkResult::stop : SinkResult::consumed;
    }
    SinkResult stop(Error why) {
        trouble_ = std::move(why);
        return SinkResult::stop;
    }

    // Whether an answer carries on the same object where the last one broke off.
    Result<void> resume(const http::Transfer& from) {
        const bool is_whole = from.status == 200 && from.headers.get("etag") == facts_.info.etag;
        skip_ = is_whole ? taken_ : 0;  // a store that ignores ranges sends all of it again
        return is_whole ? Result<void>() : check_range(from, call.request.key, facts_.info.etag, taken_);
    }
    bool rewind() {
        if (taken_ == 0) {
            is_open_ = false;
            return true;
        }
        if (!facts_.has_strong_etag()) return false;
        if (taken_ - attempt_start_ >= progress_bytes_min) call.attempts = 0;
        attempt_start_ = taken_;
        call.request.headers = {{"range", "bytes=" + range_text(taken_)}, {"if-match", facts_.info.etag}};
        return true;
    }

    Session& session_;
    const Consumer consumer_;
    entry::Facts facts_;
    std::uint64_t taken_ = 0, attempt_start_ = 0, skip_ = 0;
    std::optional<Verifier> verifier_;
    bool is_open_ = false, is_wanted_ = true;
    std::optional<Error> trouble_;

    bool may_be_parallel_ = false, is_sampling_ = false;  // the connection's speed is looked at
    http::Clock::time_point since_{};
    http::Clock::duration waited_{};
    std::uint64_t first_part_end_ = 0;  // where the first connection ends and others go on; 0: it brings everything
    std::uint64_t next_offset_ = 0;     // of the next range
    std::vector<std::unique_ptr<Range>> ranges_;  // on their way, in order
    std::unique_ptr<Range> spare_;
    std::size_t delivered_ = 0;  // of the first of them
    bool is_stopped_ = false;    // by the consumer, meanwhile
};

// Stored bytes to value bytes: inflated if the entry says so and the bytes look like it. (The Python class marks
// streams as compressed that it sends as they are; an entry with a kind is not its.) feed() and next() until that is
// empty, in the end finish() and once more.
class Decoder {
public:
    // zlib ends each call with a copy of its window, so `batch` bytes are gathered for one.
    Decoder(const Info& info, std::size_t batch)
        : mode_(!info.compressed ? Mode::plain
                : info.kind      ? Mode::gzip
                                 : Mode::undecided),
          batch_(batch) {}

    void feed(std::string_view data) {
        if (mode_ == Mode::plain) return void(plain_ = data);
        pending_.append(data);
        if (mode_ == Mode::undecided && pending_.size() >= gzip_magic.size()) decide();
    }
    void finish() {
        is_finished_ = true;
        if (mode_ == Mode::undecided) decide();
    }
    // The next bytes of the value, valid until the next call; empty: feed more, or it is the end.
    Result<std::string_view> next() {
        if (mode_ == Mode::gzip) return inflate();
        return std::exchange(plain_, std::string_view());
    }

private:
    enum class Mode { undecided, plain, gzip };
    static constexpr std::string_view gzip_magic = "\x1f\x8b";

    void decide() {
        mode_ = bytes::starts_with(pending_, gzip_magic) ? Mode::gzip : Mode::plain;
        if (mode_ == Mode::plain) plain_ = pending_;
    }

#ifdef S3CACHE_NO_GZIP
    Result<std::string_view> inflate() {
        return Error(Errc::unsupported, "the entry is compressed, and this build has no gzip (S3CACHE_NO_GZIP)");
    }
#else
    Result<std::string_view> inflate() {
        if (!out_) out_.reset(new char[piece_bytes]);
        for (;;) {
            if (!is_fed_ && (pending_.empty() || (pending_.size() < batch_ && !is_finished_))) break;
            if (!is_fed_) inflater_.feed(pending_);
            is_fed_ = true;
            const gzip::Pulled pulled = inflater_.pull(out_.get(), piece_bytes);
            if (pulled.step == gzip::Step::damaged) return damage();
            if (pulled.step == gzip::Step::needs_input) {
                is_fed_ = false;
                pending_.clear();
            }
            if (pulled.produced) return std::string_view(out_.get(), pulled.produced);
        }
        if (is_finished_ && !inflater_.end_of_input()) return damage();
        return std::string_view();
    }
    Error damage() const {
        return Error(Errc::damaged, std::string("the gzip body is damaged: ") + inflater_.problem());
    }

    gzip::Inflater inflater_;
    std::unique_ptr<char[]> out_;
    bool is_fed_ = false;  // what is pending, and not all of it inflated
#endif

    Mode mode_;
    [[maybe_unused]] const std::size_t batch_;
    bool is_finished_ = false;
    std::string_view plain_;
    std::string pending_;
};

// The bytes that a set() sends: a Source, deflated on the way if asked to.
class UploadSource {
public:
    UploadSource(const Source& source, std::optional<int> level) : source_(source) {
#ifndef S3CACHE_NO_GZIP
        if (!level) return;
        deflater_.emplace(*level);
        raw_.reset(new char[piece_bytes]);
#else
        static_cast<void>(level);
#endif
    }

    // Some bytes, or none: more are to come unless at_end(). The source is asked once at most.
    Result<std::size_t> read(char* buffer, std::size_t capacity) {
#ifndef S3CACHE_NO_GZIP
        if (deflater_) {
            const gzip::Pulled pulled = deflater_->pull(buffer, capacity);
            if (pulled.step == gzip::Step::damaged)
                return Error(Errc::too_large, std::string("gzip: ") + deflater_->problem());
            is_at_end_ = pulled.step == gzip::Step::finished;
            if (pulled.step != gzip::Step::needs_input) return pulled.produced;
            const Result<std::size_t> count = ask(raw_.get(), piece_bytes);
            if (!count) return count;
            deflater_->feed({raw_.get(), *count});
            if (*count == 0) deflater_->finish();
            return pulled.produced;
        }
#endif
        Result<std::size_t> count = ask(buffer, capacity);
        is_at_end_ = count && *count == 0;
        return count;
    }
    bool at_end() const { return is_at_end_; }
    std::uint64_t taken() const { return taken_; }
    bool is_deflated() const {
#ifndef S3CACHE_NO_GZIP
        return deflater_.has_value();
#else
        return false;
#endif
    }

private:
    // One call of the user's function, which may do anything.
    Result<std::size_t> ask(char* buffer, std::size_t capacity) {
        auto count = guarded([&]() -> Result<std::size_t> { return source_.read(buffer, capacity); }, "the source");
        if (!count) return count;
        if (*count == source_failed) return Error(Errc::source, "the source failed");
        if (*count > capacity) return Error(Errc::source, "the source says it wrote more than the buffer holds");
        taken_ += *count;
        if (source_.size() && (taken_ > *source_.size() || (*count == 0 && taken_ < *source_.size())))
            return Error(Errc::source, "the source is not as long as it announced");
        return count;
    }

    const Source& source_;
    std::uint64_t taken_ = 0;
    bool is_at_end_ = false;
#ifndef S3CACHE_NO_GZIP
    std::optional<gzip::Deflater> deflater_;
    std::unique_ptr<char[]> raw_;
#endif
};

// Calls the progress callback of a transfer; installed in the session.
struct ProgressMeter {
    ProgressMeter(Session& session, const ProgressCallback& to, std::optional<std::uint64_t> size)
        : callback(to), total(size) {
        if (!callback) return;
        session.on_progress([this] {
            std::uint64_t sum = done;
            for (const Exchange* call : running) sum += call->answer && !call->done ? call->answer->sent() : 0;
            most = (std::max)(most, sum);  // a part that is sent again does not count backwards
            return callback({most, total});
        });
    }
    // All is stored; what the callback says no longer matters.
    void finish(std::uint64_t bytes) {
        if (callback) callback({bytes, total});
    }

    const ProgressCallback& callback;
    const std::optional<std::uint64_t> total;
    std::uint64_t done = 0, most = 0;  // without and with what is on its way
    std::vector<const Exchange*> running{};
};

// What goes up, apart from its bytes.
struct Target {
    const char* operation = "set";
    std::string_view key{};
    bytes::Pairs headers{};                                          // of the entry: type, metadata, encryption
    std::optional<std::pair<std::string, std::string>> condition{};  // If-Match or If-None-Match
    std::optional<Seconds> ttl{};
    std::string write_id{};  // names this very write, so that an answer that got lost can be made up for
    std::optional<std::string> replaced_id{};  // of the write that the condition is about, where that is known
};

// How a stream is cut: the size of the first parts, and what later ones may grow to.
struct PartPlan {
    std::uint64_t first = 0, most = 0, parts = parts_max;

    std::uint64_t bytes_of(std::uint64_t number) const {
        std::uint64_t size = first;
        for (std::uint64_t i = equal_parts; i < number && size < most; i += parts_a_size)
            size = (std::min)(2 * size, most);
        return size;
    }
};

// Equal parts where the length is known, at most 10,000. Where it isn't, or the plan would need more memory than is
// allowed, parts grow to what the memory bound takes, one at a time then.
inline Result<PartPlan> plan_parts(const Config& config, std::optional<std::uint64_t> size, bool compress) {
    constexpr std::uint64_t round = std::uint64_t{1} << 20;
    const std::uint64_t first = config.part_bytes;
    const std::uint64_t most = (std::max)(first, (std::min)(std::uint64_t{config.transfer_bytes_max}, part_bytes_max));
    if (!size) return PartPlan{first, most};
    // What gzip makes of bytes that it can't make smaller: five bytes more for each block, and head and trailer.
    const std::uint64_t bound = compress ? *size + *size / 1024 + (std::uint64_t{64} << 10) : *size;
    const std::uint64_t equal = bound / parts_max < first ? first : (bound / parts_max / round + 1) * round;
    if (equal <= most) return PartPlan{equal, equal};
    if (compress) return PartPlan{most, most};  // it will hardly be as long
    return Error(Errc::too_large, "a part of this stream is over Config::transfer_bytes_max: raise it");
}

// SHA-256 and CRC-32C of a body in one pass, piece by piece while it is in the cache.
class BodySum {
public:
    BodySum(Session& session, bool hashes) : hash_(session.body_hash()), hashes_(hashes) {
        if (hashes_) hash_.reset();  // of what an upload that was given up has left there
    }
    void update(std::string_view data) {
        for (; !data.empty(); data.remove_prefix((std::min)(data.size(), piece_bytes))) {
            const std::string_view piece = data.substr(0, piece_bytes);
            if (hashes_) hash_.update(piece);
            crc_ = digest::crc32c(crc_, piece.data(), piece.size());
        }
    }
    // Of what came since the last finish().
    std::uint32_t crc() const { return crc_; }
    std::string finish() {
        crc_ = 0;
        if (!hashes_) return std::string(sigv4::unsigned_payload);
        const digest::Sha256Digest hash = hash_.finish();
        return bytes::hex(digest::as_text(hash));
    }

private:
    digest::Sha256& hash_;
    const bool hashes_;
    std::uint32_t crc_ = 0;
};

// Whether a write condition was what kept the write from happening.
inline bool is_unmet(const Target& target, const Exchange& call) {
    return target.condition && !call.error &&
           (call.status() == 412 || (call.status() == 404 && call.code() == "NoSuchKey"));
}

// Whether the entry under the key is the one this write put there: asked when an answer may have been lost.
inline Result<bool> is_stored_by_us(Session& session, const Target& target) {
    if (target.write_id.empty()) return false;
    session.allow_cleanup();
    Call look(session, s3::request(session.core(), target.operation, Method::head, target.key));
    look.run();
    if (look.status() == 404 && !look.error) return false;
    if (!look.ok()) return session.failure(look);  // so nobody knows
    const entry::Facts there = entry::read(look.headers());
    if (there.from_s3) return there.write_id == target.write_id;
    return refusal(Errc::protocol, target.operation, target.key, "the answer to a look is cut short, or not a store's");
}

// One PUT of bytes that are all there; by itself, or among many.
class Put {
public:
    // `sum` has seen the body, and nothing else since its last finish().
    Put(Session& session, const Target& target, std::string_view body, BodySum& sum)
        : session_(session), target_(target), call_(session, request(session.core(), target, body, sum)) {}

    Call& call() { return call_; }
    // To be called when the call is done; true: it goes on, once more or in a form that this store takes.
    bool tend() {
        if (!call_.done) return true;
        if (sent_again_ == puts_again_max || !(is_odd() || fits_condition())) return false;
        ++sent_again_;
        session_.drop(call_);
        session_.start(call_);
        return true;
    }
    // True: stored; false: the write condition was not met.
    Result<bool> result() {
        if (is_odd())
            return refusal(Errc::protocol, target_.operation, target_.key,
                           "the answer is not that to a PUT: is the endpoint an S3 store?");
        if (call_.ok()) return true;
        // Our own write may be what is there, if its answer was lost and it was sent again.
        if (is_unmet(target_, call_)) return is_stored_by_us(session_, target_);
        return session_.failure(call_);
    }
    Result<bool> run() {
        session_.start(call_);
        while (tend()) session_.step(s3::step_most);
        return result();
    }

private:
    static s3::Request request(Core& core, const Target& target, std::string_view body, BodySum& sum) {
        s3::Request out = s3::request(core, target.operation, Method::put, target.key);
        out.headers = target.headers;
        out.body = body;
        out.ttl = target.ttl;
        const std::string crc = entry::crc32c_text(sum.crc());
        if (core.config.checksums != Checksums::none) out.header("x-amz-meta-crc32c", crc);
        if (core.config.checksums == Checksums::store) out.header("x-amz-checksum-crc32c", crc);
        if (target.condition) out.header(target.condition->first, target.condition->second);
        out.payload_hash = sum.finish();
        return out;
    }
    // S3 says 200 with an ETag; a server that says 201 or 204, as WebDAV does, need not have ETags. OpenStack Swift
    // answers with a page to one of two who write a key at once.
    bool is_odd() const {
        return call_.ok() &&
               (!call_.answer->text.empty() || (call_.status() == 200 && call_.headers().get("etag").empty()));
    }
    // Puts the write condition as this store takes it; false: it is as it should be.
    bool fits_condition() {
        bytes::Pairs& headers = call_.request.headers;
        if (!target_.condition || headers.back().first != target_.condition->first || call_.ok() || call_.error)
            return false;
        std::string& condition = headers.back().second;
        if (retry::rule_for(call_.status(), call_.code()).kind == Errc::unsupported) {
            headers.pop_back();  // Swift, B2: the look before has to do
        } else if (is_unmet(target_, call_) && bytes::starts_with(condition, "\"") && is_still_there()) {
            condition = condition.substr(1, condition.size() - 2);  // Ceph before 2025 compares without the quotes
        } else {
            return false;
        }
        return true;
    }
    bool is_still_there() {
        Call look(session_, s3::request(session_.core(), target_.operation, Method::head, target_.key));
        look.run();
        if (!look.ok() || look.headers().get("etag") != target_.condition->second) return false;
        return !target_.replaced_id || entry::read(look.headers()).write_id == *target_.replaced_id;
    }

    Session& session_;
    const Target& target_;
    int sent_again_ = 0;
    Call call_;
};

// One way up for memory, files and streams, each through gzip or not: a single PUT if it fits, or else
//
//   create ──> parts, several in flight while the next is gathered ──> complete ──> stored
//     └───────────────┴─ error, cancellation, out of time ─────────────────┴──────> abort
//
// A lane is used for the next part once it is free, so a link that one connection fills takes one lane and its memory.
class Upload {
public:
    Upload(Session& session, Target& target, ProgressMeter& meter, PartPlan plan, bool hashes)
        : session_(session),
          core_(session.core()),
          target_(target),
          meter_(meter),
          plan_(plan),
          sum_(session, hashes) {}
    ~Upload() {
        if (is_open_ && !http::shielded([this] { return abort(); }, false)) core_.count(&Stats::leftover_uploads);
    }
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;

    // True: stored; false: a write condition was not met, nothing was stored.
    // Bytes in memory: nothing is copied. Parts only from twice a part's size on: one PUT is atomic and cheaper.
    Result<bool> run(std::string_view data) {
        if (data.size() <= std::uint64_t{2} * core_.config.part_bytes) {
            sum_.update(data);
            return put(data);
        }
        memory_ = data;
        whole_crc_ = digest::crc32c(0, data.data(), data.size());
        return run_parts();
    }
    // A source. `whole_crc`: of all its bytes, where they could be read before.
    Result<bool> run(UploadSource& source, std::optional<std::uint32_t> whole_crc) {
        source_ = &source;
        whole_crc_ = whole_crc;
        return run_parts();
    }

private:
    struct Part {
        Part(Session& session, s3::Request request) : call(session, std::move(request)) {}
        std::unique_ptr<char[]> buffer{};  // left uninitialised: pages that a short part does not use are never touched
        std::size_t capacity = 0;
        std::string_view body{};  // in the buffer, or in the caller's memory
        std::uint64_t number = 0;
        std::string crc{};
        bool is_sent = false;
        Call call;
    };

    Result<bool> put(std::string_view body) {
        Put put(session_, target_, body, sum_);
        meter_.running = {&put.call()};
        Result<bool> stored = put.run();
        meter_.running.clear();
        return stored;
    }
    bool has_store_sums() const { return core_.config.checksums == Checksums::store; }
    Error refuse(Errc code, std::string_view text) const { return refusal(code, target_.operation, target_.key, text); }

    s3::Request request(Method method, std::string query) const {
        s3::Request out = s3::request(core_, target_.operation, method, target_.key);
        out.query = std::move(query);
        return out;
    }

    // -- parts

    Result<bool> run_parts() {
        if (Result<void> fine = gather(); !fine) return std::move(fine).error();
        if (!has_more_) return put(parts_.front()->body);
        if (Result<void> made = create(); !made) return std::move(made).error();
        prepare(*parts_.front());
        while (has_more_ || !parts_.empty()) {
            if (has_room()) {
                if (Result<void> fine = gather(); !fine) return std::move(fine).error();
                prepare(*parts_.back());
            }
            for (const auto& part : parts_) {
                if (!part->is_sent) send(*part);
            }
            session_.step(has_room() ? s3::Milliseconds(0) : s3::step_most);
            if (Result<void> fine = collect(); !fine) return std::move(fine).error();
        }
        return complete();
    }
    bool has_room() const { return has_more_ && parts_.size() < lanes_for(core_.config, plan_.bytes_of(begun_ + 1)); }

    Result<void> create() {
        s3::Request out = request(Method::post, "uploads=");
        out.headers = target_.headers;
        if (whole_crc_ && core_.config.checksums != Checksums::none)
            out.header("x-amz-meta-crc32c", entry::crc32c_text(*whole_crc_));
        if (has_store_sums()) out.header("x-amz-checksum-algorithm", "CRC32C");
        out.ttl = target_.ttl;
        out.not_cancellable = out.error_in_200 = true;
        Call call(session_, std::move(out));
        // An upload that was begun and whose answer got lost has an id that nobody knows: only sweeping finds it.
        call.on_retry = [this](const Exchange& lost) {
            const CURLcode result = lost.answer->result;
            if (is_unread(lost)) core_.count(&Stats::leftover_uploads);
            if (result != CURLE_OK && result != CURLE_COULDNT_CONNECT && result != CURLE_COULDNT_RESOLVE_HOST)
                emit_leftover(
                    "the answer to the beginning of an upload was lost: if it began, sweep_uploads removes it");
            return true;
        };
        session_.step(s3::Milliseconds(0));  // progress is told before anything is sent
        if (Result<void> allowed = session_.check_allowed(target_.operation, target_.key); !allowed) return allowed;
        is_open_ = true;  // until the answer says otherwise
        Result<void> allowed = run_to_the_id(call);
        const auto id = call.ok() ? xml::upload_id(call.answer->text) : std::nullopt;
        if (id) {
            std::string encoded;
            bytes::append_percent(encoded, *id, false);
            id_ = std::move(encoded);
            return allowed;
        }
        is_open_ = !call.done || is_unread(call);
        if (!call.done) return allowed;
        return call.ok() ? refuse(Errc::protocol, "the store began no upload: its answer is not S3's")
                         : session_.failure(call);
    }
    // Waits a little longer than it may, since only who knows the id can take the upload back.
    Result<void> run_to_the_id(Call& call) {
        session_.start(call);
        while (!call.done && session_.step(s3::step_most)) {
        }
        Result<void> allowed = session_.check_allowed(target_.operation, target_.key);
        if (!call.done) session_.allow_cleanup();
        for (const auto end = http::Clock::now() + s3::cleanup_overtime; !call.done && http::Clock::now() < end;)
            session_.step(s3::tick);
        return allowed;
    }
    // There was no memory for an answer.
    static bool is_unread(const Exchange& call) {
        if (!call.answer) return false;
        return call.answer->no_memory || call.answer->overflow || call.answer->result == CURLE_OUT_OF_MEMORY;
    }

    // Of a source that is deflated progress is what was read of it: what goes over the wire is another count.
    bool reports_taken() const { return source_ && source_->is_deflated(); }

    // Takes in and sums the next part.
    Result<void> gather() {
        if (begun_ == plan_.parts)
            return refuse(Errc::too_large,
                          "the stream is longer than 10,000 parts: announce its size, or raise Config::part_bytes or "
                          "transfer_bytes_max");
        const auto size = static_cast<std::size_t>(plan_.bytes_of(++begun_));
        auto part = spare_ ? std::move(spare_) : std::make_unique<Part>(session_, request(Method::put, {}));
        if (!source_) {
            part->body = memory_.substr(0, size);
            memory_.remove_prefix(part->body.size());
            has_more_ = !memory_.empty();
            sum_.update(part->body);
        } else if (Result<void> filled = fill(*part, size); !filled) {
            return filled;
        }
        part->number = begun_;
        part->is_sent = false;
        parts_.push_back(std::move(part));
        return {};
    }
    // Reads a part, and one byte further, which tells whether there is another.
    Result<void> fill(Part& part, std::size_t size) {
        if (part.capacity <= size) {
            part.capacity = 0;
            part.buffer.reset();  // before there is another
            part.buffer.reset(new char[size + 1]);
            part.capacity = size + 1;
        }
        char* const data = part.buffer.get();
        std::size_t filled = 0, summed = 0;
        if (has_more_) data[filled++] = next_byte_;
        for (;;) {
            const std::string_view fresh(data + summed, (std::min)(filled, size) - summed);
            sum_.update(fresh);
            summed += fresh.size();
            if (filled > size || source_->at_end()) break;
            const Result<std::size_t> count = read(data + filled, (std::min)(size + 1 - filled, piece_bytes));
            if (!count) return count.error();
            filled += *count;
        }
        part.body = {data, summed};
        has_more_ = filled > size;
        if (has_more_) next_byte_ = data[size];
        ++fast_parts_;
        return {};
    }
    // Asks the source for a while, then lets the network have its turn.
    Result<std::size_t> read(char* to, std::size_t most) {
        for (std::size_t i = 0; i < parts_.size() && fast_parts_ < fast_parts_min; ++i) {
            if (parts_[i]->is_sent) session_.wait_for(parts_[i]->call);
        }
        const auto began = http::Clock::now();
        http::Clock::duration took{};
        std::size_t filled = 0;
        while (filled < most && !source_->at_end() && took < turn_time) {
            const Result<std::size_t> count = source_->read(to + filled, most - filled);
            if (!count) return about(target_.operation, target_.key, count.error());
            filled += *count;
            took = http::Clock::now() - began;
        }
        if (took > slow_source_time) fast_parts_ = -1;
        if (reports_taken()) meter_.done = source_->taken();
        session_.step(s3::Milliseconds(0));
        if (Result<void> allowed = session_.check_allowed(target_.operation, target_.key); !allowed)
            return std::move(allowed).error();
        return filled;
    }

    // What was summed last becomes a request.
    void prepare(Part& part) {
        s3::Request& out = part.call.request;
        out.query = "partNumber=" + bytes::number(part.number) + "&uploadId=" + id_;
        out.body = part.body;
        part.crc = has_store_sums() ? entry::crc32c_text(sum_.crc()) : std::string();
        out.payload_hash = sum_.finish();
        out.headers.clear();
        if (has_store_sums()) out.header("x-amz-checksum-crc32c", part.crc);
    }
    void send(Part& part) {
        part.is_sent = true;
        if (!reports_taken()) meter_.running.push_back(&part.call);
        session_.start(part.call);
    }
    // Takes in the answers of the parts that are done.
    Result<void> collect() {
        for (std::size_t i = 0; i < parts_.size();) {
            Part& part = *parts_[i];
            if (!part.call.done) {
                ++i;
                continue;
            }
            if (!part.call.ok()) return session_.failure(part.call);
            const std::string_view etag = part.call.headers().get("etag");
            if (etag.empty())
                return refuse(Errc::protocol, "the answer to a part has no ETag: is the endpoint an S3 store?");
            stored_.resize((std::max)(stored_.size(), static_cast<std::size_t>(part.number)));
            std::string& line = stored_[static_cast<std::size_t>(part.number - 1)];
            line = "<Part><PartNumber>" + bytes::number(part.number) + "</PartNumber><ETag>";
            xml::escape(line, etag);
            line += "</ETag>";
            if (has_store_sums()) line += "<ChecksumCRC32C>" + part.crc + "</ChecksumCRC32C>";
            line += "</Part>";
            if (!reports_taken()) {
                meter_.done += part.body.size();
                meter_.running.erase(std::find(meter_.running.begin(), meter_.running.end(), &part.call));
            }
            session_.drop(part.call);
            spare_ = std::move(parts_[i]);
            parts_.erase(parts_.begin() + static_cast<std::ptrdiff_t>(i));
        }
        return {};
    }

    Result<bool> complete() {
        std::string list = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
        for (const std::string& line : stored_) list += line;
        list += "</CompleteMultipartUpload>";
        s3::Request out = request(Method::post, "uploadId=" + id_);
        if (target_.condition) out.header(target_.condition->first, target_.condition->second);
        out.header("content-type", "application/xml");
        out.body = list;
        out.payload_hash = bytes::hex(digest::as_text(digest::sha256(list)));
        out.stall = complete_stall;
        out.error_in_200 = true;
        Call call(session_, std::move(out));
        call.run();
        return interpret_completion(call);
    }

    // An answer that got lost may have been a success: then the retry says 412 or NoSuchUpload, and the object itself
    // tells.
    Result<bool> interpret_completion(Call& call) {
        if (call.ok() && !xml::etag_result(call.answer->text))
            return refuse(Errc::protocol, "the store's answer does not say that the upload is complete");
        const bool unmet = is_unmet(target_, call);
        const bool unclear = unmet || call.error || call.status() == 404 || call.code() == "InternalError";
        const Result<bool> by_us = unclear ? is_stored_by_us(session_, target_) : Result<bool>(false);
        is_open_ = !call.ok() && !(by_us && *by_us);
        if (!is_open_) return true;
        if (unmet) return by_us;
        return session_.failure(call);
    }

    // Nothing may be left behind: parts in flight are cut off first, since one that arrives later would stay for ever.
    // False: it may still be there.
    bool abort() {
        parts_.clear();
        meter_.running.clear();
        if (id_.empty()) return emit_leftover("there was no memory to take in its id"), false;
        session_.allow_cleanup();
        s3::Request out = request(Method::erase, "uploadId=" + id_);
        out.operation = "abort_upload";
        Call call(session_, std::move(out));
        call.run();
        const bool is_page = call.ok() && !call.answer->text.empty();  // of something that is no S3
        if ((call.ok() && !is_page) || call.status() == 404) return true;
        emit_leftover(is_page ? "the answer to the abort is not S3's" : session_.failure(call).what());
        return false;
    }
    void emit_leftover(std::string_view why) {
        if (!core_.config.on_event) return;
        Event event;
        event.operation = "abort_upload";
        event.key = target_.key;
        event.outcome = "leftover";
        event.detail = why;
        core_.config.on_event(event);
    }

    Session& session_;
    Core& core_;
    Target& target_;
    ProgressMeter& meter_;
    const PartPlan plan_;
    BodySum sum_;
    std::string_view memory_;  // what is left of it
    UploadSource* source_ = nullptr;
    bool has_more_ = false;  // than the parts begun
    char next_byte_ = 0;     // the first of those
    int fast_parts_ = 0;     // in a row that the source has given without a pause
    std::optional<std::uint32_t> whole_crc_;
    std::uint64_t begun_ = 0;                   // parts
    std::vector<std::unique_ptr<Part>> parts_;  // gathered, or on their way
    std::unique_ptr<Part> spare_;
    std::vector<std::string> stored_;  // what Complete says of each
    bool is_open_ = false;             // an upload may be, at the store
    std::string id_;                   // its, percent-encoded
};

}  // namespace detail::transfer

// A Reader's insides. Two buffers: the caller looks at the front one while the network may fill the back one up to its
// size; then the transfer pauses, and TCP tells the store to wait.
struct detail::ReaderState {
    ReaderState(std::shared_ptr<Core> shared, std::string_view name)
        : core(std::move(shared)),
          key(name),
          session(*core, std::chrono::milliseconds(0)),
          download(session, key,
                   {this, [](void*, const entry::Facts&) { return true; },
                    [](void* self, std::string_view data) { return static_cast<ReaderState*>(self)->keep(data); }}) {
        download.call.request.large = true;
        download.allow_parallel();
    }
    ReaderState(const ReaderState&) = delete;
    ReaderState& operator=(const ReaderState&) = delete;

    bool has_begun() const { return download.call.done || !back.empty(); }
    // The connection broke after some bytes: what they are worth is told where they are read.
    bool broke_later() const { return download.call.error && !back.empty(); }
    // The next bytes of the value, valid until the next call; empty at the checked end.
    Result<std::string_view> next() {
        if (trouble) return *trouble;
        if (!decoder) decoder.emplace(download.facts().info, 0);
        Result<std::string_view> chunk = decoder->next();
        while (chunk && chunk->empty() && !has_ended) {
            const Result<std::string_view> data = stored_bytes();
            if (!data) return fail(data.error());
            has_ended = data->empty();
            if (has_ended)
                decoder->finish();
            else
                decoder->feed(*data);
            chunk = decoder->next();
        }
        if (!chunk) return fail(about("get", key, chunk.error()));
        return chunk;
    }

#if S3CACHE_EXCEPTIONS
    // Lets code that wants a std::istream read a Reader. A thrown error becomes badbit, as of any stream buffer.
    class StreamBuffer : public std::streambuf {
    public:
        explicit StreamBuffer(ReaderState& state) : state_(state) {}

    protected:
        int_type underflow() override {
            const std::string_view chunk = state_.next().value();
            if (chunk.empty()) return traits_type::eof();
            char* data =
                const_cast<char*>(chunk.data());  // never written to: there is no overflow() and no pbackfail()
            setg(data, data, data + chunk.size());
            return traits_type::to_int_type(*data);
        }

    private:
        ReaderState& state_;
    };
#endif

    std::shared_ptr<Core> core;
    std::string key;
    s3::Session session;
    transfer::Download download;
    std::string_view rest{};  // of the chunk that try_read is cutting up
    std::unique_ptr<std::streambuf> stream_buffer{};
    std::unique_ptr<std::istream> stream{};

private:
    Error fail(Error why) {
        if (why.code() == Errc::damaged) core->count(&Stats::damaged);
        trouble = why;
        return why;
    }
    http::SinkResult keep(std::string_view data) {
        if (back.empty()) {
            const std::uint64_t most = (std::min)(std::uint64_t{transfer::reader_buffer_bytes},
                                                  std::uint64_t{core->config.transfer_bytes_max} / 8);
            const std::uint64_t expected = (std::min)(download.facts().length.value_or(most), most);
            back.reserve((std::max)(data.size(), static_cast<std::size_t>(expected)));
        } else if (back.size() + data.size() > back.capacity()) {
            return http::SinkResult::pause;
        }
        back.append(data);
        session.wake();
        return http::SinkResult::consumed;
    }
    // The stored bytes as they come; empty at the checked end.
    Result<std::string_view> stored_bytes() {
        front.clear();
        download.wait_begins();
        session.resume(download.call);
        for (download.tend(); back.empty() && !download.done(); download.tend()) session.step(s3::step_most);
        std::swap(front, back);
        if (!front.empty()) return std::string_view(front);
        if (Result<void> whole = download.check(); !whole) return std::move(whole).error();
        return std::string_view();
    }

    std::string front, back;
    bool has_ended = false;
    std::optional<transfer::Decoder> decoder{};
    std::optional<Error> trouble{};
};

// --- cache: keys, expiry, conditions, many keys, single flight; what Cache's members do ------------------------------

namespace detail::cache {

using http::Method;
using s3::Call;
using s3::Exchange;
using s3::refusal;
using s3::request;
using s3::Session;
using transfer::Target;

inline constexpr std::size_t key_bytes_max = 1024;  // S3's bound on an object's name
// An entry that is replaced under our hands is read or touched again, but not for ever.
inline constexpr int versions_tried_max = 3;

// -- pages of a list

// A request without a body on one of many entries.
struct PlainJob : s3::Job {
    PlainJob(Session& session, s3::Request what) : plain(session, std::move(what)) {}
    Call& call() override { return plain; }
    Call plain;
};

// A store that ignores the marker sends the same pages for ever. Each page's first name is compared with the last of
// the page before, and with that of an earlier page, which is moved on at each power of two: so any circle is found, in
// whatever order a store sorts.
struct PageOrder {
    static constexpr unsigned empty_pages_max = 100;  // in a row; stores may send some where much was deleted

    // What is wrong with the page, if anything.
    const char* check(std::size_t size, const std::string& first, const std::string& last) {
        if (size == 0) return ++empty_pages > empty_pages_max ? "the store sends empty pages without end" : nullptr;
        empty_pages = 0;
        if (pages != 0 && (first == remembered || first == previous_last))
            return "the store sends the same page again instead of the next";
        if ((pages & (pages + 1)) == 0) remembered = first;
        previous_last = last;
        ++pages;
        return nullptr;
    }

    std::uint64_t pages = 0;
    unsigned empty_pages = 0;
    std::string remembered{}, previous_last{};
};

// The entries below a prefix, page by page: a Listing's insides.
struct Pages {
    Pages(std::shared_ptr<Core> shared, std::string_view below, Look how)
        : core(std::move(shared)), session(*core), prefix(core->object(below)), look(how) {}

    Result<std::optional<Entry>> next() {
        if (trouble) return *trouble;
        while (at == page.size()) {
            if (is_last) return std::optional<Entry>();
            Result<void> fine = next_page();
            if (fine && unreadable) fine = *unreadable;
            if (!fine) return trouble.emplace(std::move(fine).error());
        }
        return std::optional<Entry>(std::move(page[at++]));
    }

    Result<void> next_page() {
        session.allow(core->config.call_timeout);
        Result<xml::ListPage> got = fetch_page();
        if (!got) return std::move(got).error();
        page.clear();
        at = 0;
        const auto& entries = got->entries;
        const char* wrong = entries.empty() ? order.check(0, {}, {})
                                            : order.check(entries.size(), entries.front().key, entries.back().key);
        if (wrong) return refuse(wrong);
        for (xml::ListEntry& listed : got->entries) {
            if (!bytes::starts_with(listed.key, prefix)) return refuse("the store listed a key outside the prefix");
            Entry entry;
            entry.key = listed.key.substr(core->prefix.size());
            entry.info.size = listed.size;
            entry.info.etag = std::move(listed.etag);
            entry.info.last_modified = dates::iso8601(listed.last_modified).value_or(TimePoint());
            if (!entry.key.empty() && !(hides_scratch && entry::is_scratch_name(entry.key)))
                page.push_back(std::move(entry));
        }
        token = std::move(got->next_token);
        is_last = !got->truncated;
        return look == Look::deep ? look_deeper() : Result<void>();
    }
    // From the first page again.
    void rewind() {
        token.clear();
        order = {};
        is_last = false;
    }

    std::shared_ptr<Core> core;
    Session session;
    std::string prefix, token{};
    Look look;
    std::vector<Entry> page{};
    std::size_t at = 0;
    PageOrder order{};
    bool is_last = false, hides_scratch = true;
    std::optional<Error> trouble{}, unreadable{};  // unreadable: the page had a key that is left out of it

private:
    static constexpr char illegal_mark = '\x7F';  // stands for bytes that XML cannot hold

    Error refuse(std::string_view text) const { return refusal(Errc::protocol, "list", prefix, text); }

    Result<xml::ListPage> fetch_page() {
        bytes::Pairs query = {{"list-type", "2"}, {"encoding-type", "url"}, {"max-keys", "1000"}};
        if (!prefix.empty()) bytes::add(query, "prefix", prefix);
        if (!token.empty()) bytes::add(query, "continuation-token", token);
        Call call(session, s3::bucket_request("list", Method::get, sigv4::canonical_query(query), prefix));
        call.run();
        if (!call.ok()) return session.failure(call);
        std::optional<xml::ListPage> got = xml::list_result(call.answer->text);
        if (!got && xml::has_illegal_character(call.answer->text)) got = readable_part(call.answer->text);
        if (!got) return refuse("the answer is no list: is the endpoint an S3 store?");
        if (got->truncated && (got->next_token.empty() || got->next_token == token))
            return refuse("the store says there is more, but not how to go on");
        return *std::move(got);
    }
    // Without the keys that stand raw in it with bytes that XML cannot hold.
    std::optional<xml::ListPage> readable_part(std::string text) {
        for (char& c : text) {
            if (bytes::octet(c) < 0x20 && c != '\n' && c != '\r' && c != '\t') c = illegal_mark;
        }
        std::optional<xml::ListPage> got = xml::list_result(text);
        if (!got) return got;
        auto& entries = got->entries;
        entries.erase(std::remove_if(entries.begin(), entries.end(),
                                     [](const auto& one) { return one.key.find(illegal_mark) != std::string::npos; }),
                      entries.end());
        unreadable =
            refuse("a key holds a byte that XML cannot, and the store does not encode it: remove that key by its name");
        return got;
    }

    // An entry that has gone since it was listed stays as the list told it; one that cannot be looked at is an error.
    Result<void> look_deeper() {
        Result<void> out;
        s3::run_all(
            session, page.size(), core->config.connections,
            [&](std::size_t i) {
                return std::make_unique<PlainJob>(session, request(*core, "stat", Method::head, page[i].key));
            },
            [&](std::size_t i, s3::Job& job) {
                const Call& call = job.call();
                if (call.ok()) {
                    entry::Facts facts = entry::read(call.headers());
                    if (!facts.length) facts.info.size = page[i].info.size;
                    page[i].info = std::move(facts.info);
                } else if ((call.error || call.status() != 404) && out) {
                    out = session.failure(call);
                }
            });
        return out;
    }
};

// -- checks before anything is sent

inline Result<void> check_writable(const Core& core, const char* operation, std::string_view key) {
    if (!core.config.read_only) return {};
    return refusal(Errc::read_only, operation, key, "this cache is for reading only (Config::read_only)");
}

inline Result<void> check_key(const Core& core, const char* operation, std::string_view key, bool to_write = false) {
    const bool is_utf8 = utf8::valid(key);
    const char* wrong = key.empty() ? "the key is empty"
                        : core.prefix.size() + key.size() > key_bytes_max
                            ? "the key, with its prefix, is over 1024 bytes"
                        : key.find('\0') != std::string_view::npos ? "the key holds a NUL"
                        : !is_utf8                                 ? "the key is not UTF-8"
                                                                   : nullptr;
    if (wrong) return refusal(Errc::invalid_argument, operation, is_utf8 ? key : std::string_view(), wrong);
    if (!http::can_still_run())
        return refusal(Errc::unsupported, operation, key, "the program is ending, and OpenSSL has shut down before");
    return to_write ? check_writable(core, operation, key) : Result<void>();
}

// A try_ form never throws: what the standard library may throw (no memory) becomes an Error, which is made ahead.
inline const Error& out_of_memory() {
    static const Error& error = *new Error(Errc::too_large, "out of memory");  // never destroyed: statics may call us
    return error;
}
template <class F, class... Arguments>
auto never_throws(F&& call, Arguments&&... arguments) noexcept -> decltype(call(arguments...)) {
#if S3CACHE_EXCEPTIONS
    using R = decltype(call(arguments...));
    const auto error = [](const char* text) {
        return http::shielded([&]() -> R { return Error(Errc::source, text); }, R(out_of_memory()));
    };
    try {
        return call(arguments...);
    } catch (const std::bad_alloc&) {
        return out_of_memory();
    } catch (const std::exception& thrown) {
        return error(thrown.what());
    } catch (...) {
        return error("a callback threw");
    }
#else
    return call(arguments...);
#endif
}

// Does `work`, which tells of each key once; what is thrown on the way is the error of all that it did not tell of.
inline std::string_view key_of(std::string_view key) { return key; }
inline std::string_view key_of(const Item& item) { return item.key; }
template <class T, class List, class Tell, class Work>
void tell_each(const char* operation, const List& list, Tell&& tell, Work&& work) {
    std::vector<bool> is_told;
    const Result<void> ran = never_throws([&]() -> Result<void> {
        is_told.resize(list.size());
        work([&](std::size_t i, Result<T> result) {
            is_told[i] = true;
            tell(i, std::move(result));
        });
        return {};
    });
    for (std::size_t i = 0; !ran && i < list.size(); ++i) {
        if (!is_told.empty() && is_told[i]) continue;
        tell(i, never_throws([&]() -> Result<T> { return about(operation, key_of(list[i]), ran.error()); }));
    }
}
// The same with the results in order. There are none only if there is no memory for them.
template <class T, class List, class Work>
std::vector<Result<T>> result_of_each(const char* operation, const List& list, Work&& work) {
    using Results = std::vector<Result<T>>;
    Result<Results> out = never_throws([&]() -> Result<Results> { return Results(list.size(), out_of_memory()); });
    if (!out) return {};
    tell_each<T>(
        operation, list, [&](std::size_t i, Result<T> one) { (*out)[i] = std::move(one); }, work);
    return *std::move(out);
}

// -- outcomes: what an operation came to, as an event and in the counters

struct Outcome {
    const char* name;
    std::uint64_t Stats::*counter = nullptr;
    std::uint64_t Stats::*also = nullptr;
};
namespace outcomes {
inline constexpr Outcome hit{"hit", &Stats::hits}, miss{"miss", &Stats::misses};
inline constexpr Outcome expired{"expired", &Stats::expired, &Stats::misses};
inline constexpr Outcome malformed{"malformed", &Stats::malformed, &Stats::misses};
inline constexpr Outcome unchanged{"unchanged", &Stats::unchanged}, tolerated{"tolerated", &Stats::tolerated};
inline constexpr Outcome stored{"done", &Stats::sets}, removed{"done", &Stats::removes};
inline constexpr Outcome refused{"refused", &Stats::refused}, unconditional{"unconditional", &Stats::unconditional};
inline constexpr Outcome error{"error", &Stats::errors}, damaged{"damaged", &Stats::damaged};
inline constexpr Outcome early{"early"}, computed{"computed", &Stats::computed}, waited{"waited", &Stats::waited};
inline constexpr Outcome stale{"stale", &Stats::stale};
}  // namespace outcomes

// What an operation moved and how long it took.
struct Timing {
    http::Clock::time_point began{};  // empty: not to be reported
    std::uint64_t bytes = 0;
    int status = 0;
};
inline Timing timing_of(const Exchange& call, std::uint64_t bytes) { return {call.began, bytes, call.status()}; }

inline void record(Core& core, const char* operation, std::string_view key, const Outcome& outcome,
                   std::string_view detail = {}, const Timing& timing = {}) {
    if (outcome.counter) core.count(outcome.counter);
    if (outcome.also) core.count(outcome.also);
    if (!core.config.on_event) return;
    Event event;
    event.operation = operation;
    event.key = key;
    event.outcome = outcome.name;
    event.detail = detail;
    event.bytes = timing.bytes;
    event.status = timing.status;
    if (timing.began != http::Clock::time_point()) event.duration = http::Clock::now() - timing.began;
    core.config.on_event(event);
}

inline Error record_error(Core& core, const char* operation, std::string_view key, Error error, Timing timing = {}) {
    timing.status = error.status();
    record(core, operation, key, error.code() == Errc::damaged ? outcomes::damaged : outcomes::error, error.what(),
           timing);
    return error;
}

// Says whether the entry is to be served, and records why not.
inline bool is_usable(Core& core, const char* operation, std::string_view key, const entry::Facts& facts) {
    if (facts.expiry == entry::Expiry::malformed) {
        record(core, operation, key, outcomes::malformed, "its expires_at is not a number");
        return false;
    }
    if (facts.expiry == entry::Expiry::never || !facts.expired(core.unix_now())) return true;
    record(core, operation, key, outcomes::expired);
    return false;
}

// Errors of reading reported as misses, where that is the policy. What is wrong with the call itself stays an error.
template <class T>
Result<std::optional<T>> tolerated(Core& core, const char* operation, std::string_view key,
                                   Result<std::optional<T>> result) {
    if (result || !core.config.errors_are_misses) return result;
    const Errc code = result.error().code();
    if (code == Errc::invalid_argument || code == Errc::cancelled || code == Errc::file) return result;
    record(core, operation, key, outcomes::tolerated, result.error().what());
    return std::optional<T>();
}

// -- absence

// A HEAD's 404 has no body and may mean that the bucket is not there, or that the endpoint is no S3 store. Asked once,
// while nothing has shown otherwise.
inline Result<void> check_bucket(Session& session, const char* operation, std::string_view key) {
    Core& core = session.core();
    if (core.store_seen.load(std::memory_order_relaxed)) return {};
    Call look(session, s3::bucket_request(operation, Method::head, {}, key));
    look.run();
    if (look.error) return *look.error;
    if (look.status() != 404) {
        core.store_seen.store(true, std::memory_order_relaxed);
        return {};
    }
    look.fault.emplace();
    look.fault->code = "NoSuchBucket";
    return session.failure(look);
}

// Whether the answer says that there is nothing under the key. A 404 without the words of S3 is believed only if it has
// no others either, and this is an S3 store, as a good answer has shown: a wrong endpoint would turn every get into a
// miss.
inline bool is_absent(const Core& core, const Exchange& call) {
    if (call.error || call.ok()) return false;
    const std::string_view code = call.code();
    const bool is_s3 =
        core.store_seen.load(std::memory_order_relaxed) || !call.headers().get("x-amz-request-id").empty();
    if (call.status() == 404)
        return code != "NoSuchBucket" &&
               (call.fault || call.request.method == Method::head || (call.answer->text.empty() && is_s3));
    const bool is_forbidden =
        call.status() == 403 && (code == "AccessDenied" || (code.empty() && call.answer->text.empty()));
    return is_forbidden && core.config.forbidden_is_miss;
}

// The headers of an entry, expired or not; empty: there is none.
inline Result<std::optional<entry::Facts>> interpret_look(Session& session, const Exchange& call) {
    const char* operation = call.request.operation;
    if (call.ok()) {
        entry::Facts facts = entry::read(call.headers());
        if (facts.from_s3) return std::optional<entry::Facts>(std::move(facts));
        return refusal(Errc::protocol, operation, call.request.key,
                       "the answer has no ETag: is the endpoint an S3 store?");
    }
    if (!is_absent(session.core(), call)) return session.failure(call);
    if (call.status() == 404) {
        if (Result<void> fine = check_bucket(session, operation, call.request.key); !fine)
            return std::move(fine).error();
    }
    return std::optional<entry::Facts>();
}
inline Result<std::optional<entry::Facts>> look(Session& session, const char* operation, std::string_view key) {
    Call call(session, request(session.core(), operation, Method::head, key));
    call.run();
    return interpret_look(session, call);
}

// -- removing

inline Result<void> interpret_removal(Session& session, const Exchange& call) {
    if (is_absent(session.core(), call) && call.status() == 404) return {};
    if (!call.ok()) return session.failure(call);
    if (call.answer->text.empty()) return {};
    return refusal(Errc::protocol, "remove", call.request.key,
                   "the answer to a DELETE has a body: is the endpoint an S3 store?");
}

// Removes an entry only if a look finds it expired: nothing is removed because of one answer's date alone. If-Match
// then keeps the store from removing what another writer has put there, but for equal bytes, which have equal ETags,
// and for stores that ignore If-Match on DELETE: there a window of one round trip is left.
class ExpiredRemoval : public s3::Job {
public:
    ExpiredRemoval(Session& session, const char* operation, std::string_view key, std::optional<entry::Facts> seen = {})
        : session_(session),
          seen_(std::move(seen)),
          look_(session, request(session.core(), operation, Method::head, key)),
          erase_(session, request(session.core(), operation, Method::erase, key)) {}

    Call& call() override { return is_looked_at_ ? erase_ : look_; }
    bool tend() override {
        if (!call().done) return true;
        if (!is_looked_at_) return should_erase() && begin_erase();
        const bool refused = !erase_.error && erase_.status() == 501 && !erase_.request.headers.empty();
        if (!refused) return false;
        erase_.request.headers.clear();  // a store that has no conditional DELETE
        return begin_erase();
    }
    // Whether it was removed. An error: it could not be looked at or removed.
    Result<bool> result() {
        if (trouble_) return *trouble_;
        if (!is_looked_at_) return false;
        if (!erase_.error && erase_.status() == 412) return false;
        const Result<void> removed = interpret_removal(session_, erase_);
        if (!removed) return removed.error();
        return true;
    }

private:
    bool should_erase() {
        const auto found = interpret_look(session_, look_);
        if (!found) trouble_ = found.error();
        if (!found || !*found || (seen_ && !(*found)->is_same_as(*seen_))) return false;
        if (!(*found)->expired(session_.core().unix_now())) return false;
        if ((*found)->has_strong_etag()) erase_.request.header("if-match", (*found)->info.etag);
        return true;
    }
    bool begin_erase() {
        is_looked_at_ = true;
        session_.drop(erase_);
        session_.start(erase_);
        return true;
    }

    Session& session_;
    const std::optional<entry::Facts> seen_;
    bool is_looked_at_ = false;
    std::optional<Error> trouble_;
    Call look_, erase_;
};
// -- reading

// What a get may ask for beside the value.
struct GetRequest {
    GetOptions options{};
    Seconds grace{0};            // an entry that has expired no longer than this is returned too
    bool keeps_expired = false;  // to be replaced by the caller, or wanted again if that fails
};

// A value with what its headers said; and whether it is past its time, which only a caller who asks for that gets.
struct GetResult {
    std::optional<Value> value{};
    entry::Facts facts{};  // without the Info, which the value has
    bool is_stale = false;
};

// Room for a gzip value at a guess; what is not written to is never touched, so too much of it costs nothing.
inline constexpr std::uint64_t gzip_ratio_likely = 6;
inline constexpr std::size_t inflate_batch_bytes = std::size_t{64} << 10;

// Whether a reader removes an entry that it has found expired: never one that this process is about to replace.
inline bool removes_expired(Core& core, std::string_view key, const entry::Facts& facts) {
    return core.config.expired == Expired::remove && !core.config.read_only && facts.expiry == entry::Expiry::at &&
           !core.is_computing(key);
}

// One get of a whole value, by itself or among many. An expired entry is removed once the reading is done; a failure of
// that is no concern of the reader's, since the entry will be met again.
class GetOperation : public s3::Job {
public:
    GetOperation(Session& session, std::string_view key, const GetRequest& wanted, bool is_alone)
        : session_(session),
          core_(session.core()),
          wanted_(wanted),
          key_(key),
          download_(
              session, key,
              {this,
               [](void* self, const entry::Facts& facts) { return static_cast<GetOperation*>(self)->open(facts); },
               [](void* self, std::string_view data) { return static_cast<GetOperation*>(self)->take(data); }}) {
        if (is_alone) download_.allow_parallel();  // with as many connections as help
        if (wanted.options.progress) session.on_progress([this] { return report_progress(); });
    }
    ~GetOperation() override {
        if (wanted_.options.progress) session_.on_progress({});
    }

    Call& call() override { return removal_ ? removal_->call() : download_.waited_for(); }
    bool tend() override {
        if (removal_) return removal_->tend();
        download_.tend();
        if (!download_.done()) return true;
        if (download_.taken() == 0 && download_.call.ok()) static_cast<void>(download_.check());  // opens an empty body
        if (!is_refused_ || wanted_.keeps_expired || !removes_expired(core_, key_, download_.facts())) return false;
        session_.start(removal_.emplace(session_, "expire", key_, download_.facts()).call());
        return true;
    }
    // Once tend() has said that it is done.
    Result<GetResult> result() {
        const Call& call = download_.call;
        if (is_absent(core_, call)) {
            record(core_, "get", key_, outcomes::miss, {}, timing_of(call, 0));
            return GetResult();
        }
        Result<std::optional<Value>> got = value();
        const Timing timing = timing_of(call, download_.taken());
        if (!got) return record_error(core_, "get", key_, got.error(), timing);
        GetResult out{*std::move(got), download_.facts(), is_stale_};
        if (!out.value) return out;
        if (wanted_.options.progress) static_cast<void>(report_progress());
        record(core_, "get", key_, is_stale_ ? outcomes::expired : outcomes::hit, {}, timing);
        return out;
    }

private:
    bool open(const entry::Facts& facts) {
        value_.clear();
        const double now = core_.unix_now();
        is_stale_ = facts.expired(now) && !facts.expired(now - wanted_.grace.count());
        is_refused_ = !is_stale_ && !is_usable(core_, "get", key_, facts);
        const std::uint64_t most = core_.config.value_bytes_max;
        is_too_large_ = !facts.info.compressed && facts.length.value_or(0) > most;
        if (is_refused_ || is_too_large_) return false;
        decoder_.emplace(facts.info, inflate_batch_bytes);
        const std::uint64_t likely = facts.length.value_or(0) * (facts.info.compressed ? gzip_ratio_likely : 1);
        value_.reserve(static_cast<std::size_t>((std::min)(likely, most)));
        return true;
    }
    http::SinkResult take(std::string_view data) {
        decoder_->feed(data);
        return drain_decoder() ? http::SinkResult::consumed : http::SinkResult::stop;
    }
    bool drain_decoder() {
        for (;;) {
            const Result<std::string_view> chunk = decoder_->next();
            if (!chunk) return decoding_error_ = chunk.error(), false;
            if (chunk->empty()) return true;
            is_too_large_ = chunk->size() > core_.config.value_bytes_max - value_.size();
            if (is_too_large_) return false;
            value_.append(*chunk);
        }
    }
    bool report_progress() const { return wanted_.options.progress({download_.arrived(), download_.facts().length}); }
    bool is_broken() const { return is_too_large_ || decoding_error_; }

    Result<std::optional<Value>> value() {
        if (is_refused_) return std::optional<Value>();  // whatever became of a body that nobody wants
        if (!is_broken()) {
            if (Result<void> whole = download_.check(); !whole) return std::move(whole).error();
            decoder_->finish();
            static_cast<void>(drain_decoder());
        }
        if (is_too_large_)
            return refusal(Errc::too_large, "get", key_,
                           "the value is over Config::value_bytes_max: use get_stream, or raise the limit");
        if (decoding_error_) return about("get", key_, *decoding_error_);
        Info info = download_.take_info();
        const Kind kind = info.kind ? *info.kind : entry::classify(value_);
        info.kind = kind;
        return std::optional<Value>(Value(std::move(value_), kind, std::move(info)));
    }

    Session& session_;
    Core& core_;
    const GetRequest& wanted_;
    const std::string_view key_;
    std::optional<transfer::Decoder> decoder_;
    std::string value_;
    std::optional<Error> decoding_error_;
    bool is_refused_ = false, is_too_large_ = false, is_stale_ = false;
    transfer::Download download_;
    std::optional<ExpiredRemoval> removal_;
};

// One get or many: a single one is a run of one. `tell` is given an index and a Result<GetResult>.
template <class Tell>
void get_all(Core& core, const std::vector<std::string_view>& keys, const GetRequest& wanted, Tell&& tell) {
    Session session(core, wanted.options.timeout);
    std::vector<std::size_t> todo, changed;
    for (std::size_t i = 0; i < keys.size(); ++i) todo.push_back(i);
    for (int tried = 1; !todo.empty(); ++tried, todo = std::exchange(changed, {})) {
        s3::run_all(
            session, todo.size(), core.config.connections,
            [&](std::size_t i) -> std::unique_ptr<s3::Job> {
                const std::string_view key = keys[todo[i]];
                if (const Result<void> fine = check_key(core, "get", key); !fine)
                    return tell(todo[i], fine.error()), nullptr;
                return std::make_unique<GetOperation>(session, key, wanted, keys.size() == 1);
            },
            [&](std::size_t i, s3::Job& job) {
                Result<GetResult> result = static_cast<GetOperation&>(job).result();
                const bool was_replaced = !result && result.error().code() == Errc::changed;
                if (was_replaced && tried < versions_tried_max) return changed.push_back(todo[i]);
                tell(todo[i], std::move(result));
            });
    }
}
inline Result<GetResult> get_one(Core& core, std::string_view key, const GetRequest& wanted) {
    Result<GetResult> out = GetResult();
    get_all(core, {key}, wanted, [&](std::size_t, Result<GetResult> got) { out = std::move(got); });
    return out;
}
inline Result<std::optional<Value>> value_of(Core& core, std::string_view key, Result<GetResult> got) {
    return tolerated(core, "get", key, std::move(got).transform([](GetResult&& one) { return std::move(one.value); }));
}

inline Result<std::optional<Value>> get(Core& core, std::string_view key, const GetOptions& options) {
    return value_of(core, key, get_one(core, key, {options}));
}

inline void get_many(Core& core, const std::vector<std::string>& keys, const Cache::Visit& visit) {
    tell_each<GetResult>(
        "get", keys,
        [&](std::size_t i, Result<GetResult> got) { visit(keys[i], value_of(core, keys[i], std::move(got))); },
        [&](const auto& tell) {
            get_all(core, {keys.begin(), keys.end()}, {}, tell);
        });
}

// A look first: If-None-Match would need one after it, since most stores leave metadata, and so the expiry, out of a
// 304.
inline Result<Revalidated> get_if_changed(Core& core, std::string_view key, std::string_view etag) {
    if (Result<void> fine = check_key(core, "get", key); !fine) return std::move(fine).error();
    if (etag.empty() || !entry::check_value(etag))
        return refusal(Errc::invalid_argument, "get", key, "that is no ETag");
    Session session(core);
    const auto there = look(session, "get", key);
    if (!there) return record_error(core, "get", key, there.error());
    if (!*there || (*there)->info.etag != etag)
        return get_one(core, key, {}).transform([](GetResult&& got) {
            return Revalidated{false, std::move(got.value)};
        });
    const bool is_unchanged = is_usable(core, "get", key, **there);
    if (is_unchanged) record(core, "get", key, outcomes::unchanged);
    return Revalidated{is_unchanged, {}};
}

// The limit covers the reading too with `whole`, and otherwise the opening alone.
inline Result<std::optional<Reader>> open_stream(const std::shared_ptr<Core>& core, std::string_view key,
                                                 const GetOptions& options, bool whole = false) {
    if (Result<void> fine = check_key(*core, "get", key); !fine) return std::move(fine).error();
    auto state = std::make_unique<ReaderState>(core, key);
    Session& session = state->session;
    Call& call = state->download.call;
    if (options.progress) {
        session.on_progress([reader = state.get(), progress = options.progress] {
            return progress({reader->download.arrived(), reader->download.facts().length});
        });
    }
    const auto limit = options.timeout.value_or(core->config.call_timeout);
    const auto deadline = http::Clock::now() + limit;
    if (whole) session.allow(limit);
    session.start(call);
    while (!state->has_begun()) {
        session.step(limit.count() ? (std::min)(limit, s3::tick) : s3::tick);
        if (limit.count() && !state->has_begun() && http::Clock::now() > deadline)
            session.end_all(Errc::timed_out, "no answer within call_timeout");
    }
    if (is_absent(*core, call)) {
        record(*core, "get", key, outcomes::miss);
        return std::optional<Reader>();
    }
    if (state->download.done() && !state->broke_later()) {  // it was short enough to be here already, or it failed
        if (Result<void> fine = state->download.check(); !fine) return record_error(*core, "get", key, fine.error());
    }
    const entry::Facts facts = state->download.facts();
    if (is_usable(*core, "get", key, facts)) {
        record(*core, "get", key, outcomes::hit);
        return std::optional<Reader>(Reader(std::move(state)));
    }
    session.drop(call);
    if (removes_expired(*core, key, facts)) {
        ExpiredRemoval removal(session, "expire", key, facts);
        session.start(removal.call());
        while (removal.tend()) session.step(s3::step_most);
    }
    return std::optional<Reader>();
}

inline Result<std::optional<Reader>> get_stream(const std::shared_ptr<Core>& core, std::string_view key,
                                                const GetOptions& options) {
    return tolerated(*core, "get", key, open_stream(core, key, options));
}

// Some proxies leave the length out of the answer to a HEAD: then that to a range of one byte tells it.
inline std::uint64_t size_by_range(Session& session, std::string_view key) {
    Call call(session, request(session.core(), "stat", Method::get, key).header("range", "bytes=0-0"));
    call.request.sink.take = [](void*, const http::Transfer&, const char*, std::size_t) {
        return http::SinkResult::stop;
    };
    call.run();
    const std::string_view range = call.answer ? call.headers().get("content-range") : std::string_view();
    const std::string_view length = call.answer ? call.headers().get("content-length") : std::string_view();
    return bytes::to_u64(range.empty() ? length : range.substr(range.find('/') + 1)).value_or(0);
}

inline Result<std::optional<Info>> stat(Core& core, std::string_view key) {
    if (Result<void> fine = check_key(core, "stat", key); !fine) return std::move(fine).error();
    Session session(core);
    auto facts = look(session, "stat", key);
    if (!facts) return tolerated<Info>(core, "stat", key, record_error(core, "stat", key, facts.error()));
    if (!*facts || !is_usable(core, "stat", key, **facts)) return std::optional<Info>();
    if (!(*facts)->length) (*facts)->info.size = size_by_range(session, key);
    return std::optional<Info>(std::move((*facts)->info));
}

// -- touch

// The headers that a copy onto itself would lose unless they are said again.
inline void keep_headers(s3::Request& copy, const http::Headers& headers) {
    static constexpr std::string_view kept =
        " content-type cache-control content-disposition content-encoding content-language expires x-amz-storage-class "
        "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id x-amz-website-redirect-location ";
    headers.each([&](std::string_view name, std::string_view value) {
        const std::string lower = bytes::lower(name);
        if (lower == "x-amz-meta-expires_at" || lower == "x-amz-meta-expires-at") return;
        if (bytes::starts_with(lower, entry::meta_prefix) || kept.find(" " + lower + " ") != std::string_view::npos)
            copy.header(lower, value);
    });
}

inline constexpr std::uint64_t copy_bytes_max = std::uint64_t{5} << 30;  // S3 copies no more in one request

// S3 has no way to change metadata but to copy the object onto itself. If-Match keeps a replaced one from being undone.
// One of the same bytes has the same ETag: If-Unmodified-Since tells it apart, if it came in a later second, where the
// store looks at both; AWS lets If-Match win, so there the round trip between the look and the copy is left.
inline Result<bool> touch_unrecorded(Core& core, std::string_view key, Seconds ttl) {
    Session session(core);
    std::string refused_etag;
    for (int tried = 0; tried < versions_tried_max; ++tried) {
        Call there(session, request(core, "touch", Method::head, key));
        there.run();
        const auto found = interpret_look(session, there);
        if (!found) return found.error();
        if (!*found) return false;
        const entry::Facts& facts = **found;
        if (!is_usable(core, "touch", key, facts)) return false;
        if (facts.info.size > copy_bytes_max)
            return refusal(Errc::too_large, "touch", key, "S3 copies no object over 5 GiB onto itself: set it anew");
        s3::Request copy = request(core, "touch", Method::put, key);
        keep_headers(copy, there.headers());
        std::string source = "/" + core.bucket + "/";
        bytes::append_percent(source, copy.object, true);
        copy.header("x-amz-copy-source", source).header("x-amz-metadata-directive", "REPLACE");
        // OpenStack Swift refuses the very ETag that it has just given: then the copy goes without the condition.
        if (facts.has_strong_etag() && facts.info.etag != refused_etag) {
            copy.header("x-amz-copy-source-if-match", facts.info.etag);
            const std::string_view since = there.headers().get("last-modified");
            if (!since.empty()) copy.header("x-amz-copy-source-if-unmodified-since", since);
        }
        if (ttl.count() < entry::ttl_seconds_max) copy.ttl = ttl;
        copy.error_in_200 = true;
        Call copied(session, std::move(copy));
        copied.run();
        if (copied.ok()) return true;
        const bool was_replaced = copied.status() == 412 || (copied.status() == 404 && copied.code() != "NoSuchBucket");
        if (!was_replaced) return session.failure(copied);
        refused_etag = facts.info.etag;
    }
    return refusal(Errc::changed, "touch", key, "the entry is being replaced again and again");
}

inline Result<bool> touch(Core& core, std::string_view key, Seconds ttl) {
    if (Result<void> fine = check_key(core, "touch", key, true); !fine) return std::move(fine).error();
    if (!(ttl.count() > 0))
        return refusal(Errc::invalid_argument, "touch", key, "a TTL must be over zero; s3cache::forever never expires");
    Result<bool> touched = touch_unrecorded(core, key, ttl);
    if (!touched) return record_error(core, "touch", key, touched.error());
    return touched;
}

// -- files

// Where off_t has 32 bits (glibc on 32-bit machines, and this header cannot set _FILE_OFFSET_BITS for those included
// before it), the plain names refuse files over 2 GiB.
#if defined(__GLIBC__) && defined(__USE_LARGEFILE64)
using FileStat = struct stat64;
inline std::FILE* open_file(const std::string& path, const char* mode) { return fopen64(path.c_str(), mode); }
inline bool stat_file(const std::string& path, FileStat& seen) { return stat64(path.c_str(), &seen) == 0; }
inline bool stat_file(std::FILE* file, FileStat& seen) { return fstat64(fileno(file), &seen) == 0; }
#else
inline std::FILE* open_file(const std::string& path, const char* mode) { return std::fopen(path.c_str(), mode); }
#if !defined(_WIN32)
using FileStat = struct stat;
inline bool stat_file(const std::string& path, FileStat& seen) { return ::stat(path.c_str(), &seen) == 0; }
inline bool stat_file(std::FILE* file, FileStat& seen) { return ::fstat(fileno(file), &seen) == 0; }
#endif
#endif

// The length of an open file and when it was last written to; all zero: a pipe, a device, or a file without a length
// (those of /proc say 0 and hold something).
inline std::array<std::int64_t, 3> state_of(std::FILE* file) {
#if defined(_WIN32)
    const long long at = _ftelli64(file);
    const bool is_plain = _fseeki64(file, 0, SEEK_END) == 0;
    const long long size = is_plain ? _ftelli64(file) : 0;
    return static_cast<void>(_fseeki64(file, at, SEEK_SET)), std::array<std::int64_t, 3>{(std::max)(size, 0LL), 0, 0};
#else
    FileStat seen;
    if (!stat_file(file, seen) || !S_ISREG(seen.st_mode) || seen.st_size <= 0) return {};
#if defined(__APPLE__)
    return {seen.st_size, seen.st_mtimespec.tv_sec, seen.st_mtimespec.tv_nsec};
#else
    return {seen.st_size, seen.st_mtim.tv_sec, seen.st_mtim.tv_nsec};
#endif
#endif
}

struct FileCloser {
    void operator()(std::FILE* file) const { static_cast<void>(std::fclose(file)); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

// A file that is written to while it is read fails: what was read is of no one moment.
inline Source source_of(std::FILE* in) {
    const auto before = state_of(in);
    Source source([in, before](char* buffer, std::size_t capacity) {
        const std::size_t count = std::fread(buffer, 1, capacity, in);
        return count == 0 && (std::ferror(in) || state_of(in) != before) ? source_failed : count;
    });
    return before[0] > 0 ? std::move(source).sized(static_cast<std::uint64_t>(before[0])) : source;
}

inline Error file_error(const char* operation, std::string_view key, const std::string& path, const char* what) {
    return refusal(Errc::file, operation, key, std::string(what) + " '" + path + "': " + std::strerror(errno));
}

// Of a whole file that will go up in parts: what is sent must then have the same sum.
inline Result<std::uint32_t> sum_file(Session& session, std::string_view key, std::FILE* in) {
    std::vector<char> piece(transfer::piece_bytes);
    std::uint32_t crc = 0;
    while (const std::size_t count = std::fread(piece.data(), 1, piece.size(), in)) {
        crc = digest::crc32c(crc, piece.data(), count);
        if (Result<void> allowed = session.check_allowed("set", key); !allowed) return std::move(allowed).error();
    }
    std::rewind(in);
    return crc;
}

// -- writing

inline Result<void> check_set(const Core& core, std::string_view key, const SetOptions& options) {
    if (Result<void> fine = check_key(core, "set", key, true); !fine) return fine;
#ifdef S3CACHE_NO_GZIP
    if (options.compress) return refusal(Errc::unsupported, "set", key, "this build has no gzip (S3CACHE_NO_GZIP)");
#endif
    const auto refuse = [&](std::string_view text) { return refusal(Errc::invalid_argument, "set", key, text); };
    const std::optional<Seconds> ttl = options.ttl ? options.ttl : core.config.default_ttl;
    if (ttl && !(ttl->count() > 0)) return refuse("a TTL must be over zero; s3cache::forever never expires");
    if (options.if_absent && !options.if_match.empty()) return refuse("if_absent and if_match exclude each other");
    if (!entry::check_value(options.if_match)) return refuse("if_match is no ETag");
    if (!entry::check_value(options.content_type))
        return refuse("content_type holds bytes that are not printable ASCII");
    Metadata all = core.config.metadata;
    all.insert(all.end(), options.metadata.begin(), options.metadata.end());
    if (const Result<void> fine = entry::check_metadata(all); !fine) return refuse(fine.error().what());
    return {};
}

// The kind under which a payload is stored, which must be what it says; an error before anything is sent.
inline Result<Kind> check_kind(std::string_view key, const Payload& payload, const SetOptions& options) {
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

// What every object of ours must carry, scratch objects too: a bucket's policy may refuse those without.
inline void add_store_headers(const Config& config, bytes::Pairs& headers) {
    if (!config.server_side_encryption.empty())
        bytes::add(headers, "x-amz-server-side-encryption", config.server_side_encryption);
    if (!config.kms_key_id.empty())
        bytes::add(headers, "x-amz-server-side-encryption-aws-kms-key-id", config.kms_key_id);
    if (!config.storage_class.empty()) bytes::add(headers, "x-amz-storage-class", config.storage_class);
}

inline void name_write(const Core& core, Target& target) {
    if (!target.write_id.empty()) return;
    target.write_id = core.random_id();
    bytes::add(target.headers, "x-amz-meta-write-id", target.write_id);
}

// `cost`: seconds that computing it took, for those who will refresh it ahead of its time; 0: not to be told.
inline Target target_for(const Core& core, std::string_view key, Kind kind, const SetOptions& options,
                         bool is_negative = false, double cost = 0) {
    const Config& config = core.config;
    Target out;
    out.key = key;
    bytes::Pairs& headers = out.headers;
    bytes::add(headers, "content-type",
               options.content_type.empty() ? entry::content_type(kind) : options.content_type);
    bytes::add(headers, "x-amz-meta-kind", entry::kind_name(kind));
    if (options.compress) bytes::add(headers, "x-amz-meta-compressed", "true");
    if (is_negative) bytes::add(headers, "x-amz-meta-negative", "true");
    if (cost > 0) bytes::add(headers, "x-amz-meta-cost", entry::seconds_text(cost));
    for (const Metadata* metadata : {&config.metadata, &options.metadata}) {
        for (const auto& [name, value] : *metadata)
            bytes::add(headers, std::string(entry::meta_prefix) + bytes::lower(name), value);
    }
    add_store_headers(config, headers);
    if (options.if_absent) out.condition.emplace("if-none-match", "*");
    if (!options.if_match.empty()) out.condition.emplace("if-match", options.if_match);
    if (out.condition) name_write(core, out);
    const std::optional<Seconds> ttl = options.ttl ? options.ttl : config.default_ttl;
    if (ttl && ttl->count() < entry::ttl_seconds_max)
        out.ttl = *ttl * (config.ttl_jitter > 0 ? 1 - config.ttl_jitter * core.random() : 1);
    return out;
}

// Whether bodies are hashed for the signature.
inline bool hashes_bodies(Core& core) {
    if (!core.config.unsigned_payload) return true;
    const auto place = core.place();
    return !place || (*place)->scheme != "https";  // over plain http nothing else would vouch for the bytes
}
inline transfer::BodySum sum_of(Session& session, std::string_view data) {
    transfer::BodySum sum(session, hashes_bodies(session.core()));
    sum.update(data);
    return sum;
}

// -- write conditions: what the store makes of them is found out once a cache, by trying

// A small object of the cache's own. False: the condition was not met. `etag` is that of what was stored.
inline Result<bool> put_small(Session& session, Target& target, std::string_view text, std::string* etag = nullptr) {
    add_store_headers(session.core().config, target.headers);
    transfer::BodySum sum = sum_of(session, text);
    transfer::Put put(session, target, text, sum);
    const Result<bool> stored = put.run();
    if (etag && stored && *stored && put.call().answer) *etag = put.call().headers().get("etag");
    return stored;
}

// Whether conditions on PUT are honoured. An error: it could not be found out, this time.
inline Result<bool> honours_conditions(Session& session) {
    Core& core = session.core();
    using Trait = Core::Trait;
    const auto place = core.place();
    if (place && core.configured_url.empty()) return true;
    if (core.honours_conditions != Trait::unknown) return core.honours_conditions == Trait::yes;
    const std::string key = entry::scratch_name("probe", core.random_id());
    const auto is_stored = [&](const char* condition, const char* etag) {
        Target target;
        target.operation = "probe";
        target.key = key;
        target.condition.emplace(condition, etag);
        target.ttl = Seconds(600);  // in case that it cannot be removed
        return put_small(session, target, "a scratch object: may be removed");
    };
    const Result<bool> first = is_stored("if-none-match", "*");
    if (!first) return first;
    const Result<bool> second = is_stored("if-none-match", "*");
    const Result<bool> third = second ? is_stored("if-match", "\"00000000000000000000000000000000\"") : second;
    Call erase(session, request(core, "probe", Method::erase, key));
    erase.run();
    if (!third) return third;
    core.honours_conditions = *second || *third ? Trait::no : Trait::yes;
    return !*second && !*third;
}

// How long the place of an expired entry may be claimed; whoever crashes blocks nobody for longer.
inline constexpr Seconds claim_time{60};

// The right to store an entry in the place of an expired one. Two who want it may bring the bytes that it has had, and
// so its ETag: If-Match on that would let both pass. So the place is claimed by a small unique object beside it, which
// only one can make, and given up when the write is over.
class Claim {
public:
    explicit Claim(Session& session) : session_(session) {}
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    ~Claim() {
        if (etag_.empty()) return;
        static_cast<void>(http::shielded([this] { return release(), true; }, false));  // it lapses by itself
    }

    // False: another has it.
    Result<bool> take(std::string_view key) {
        const std::string name = "claim " + std::string(key);
        name_ = entry::scratch_name("lease", bytes::hex(digest::as_text(digest::sha256(name))).substr(0, 32));
        const Result<bool> made = make("if-none-match", "*");
        if (!made || *made) return made;
        const auto there = look(session_, "claim", name_);
        if (!there) return there.error();
        if (!*there) return make("if-none-match", "*");
        if (!(*there)->expired(session_.core().unix_now())) return false;
        return make("if-match", (*there)->info.etag);
    }

private:
    Result<bool> make(const char* condition, const std::string& value) {
        Target target;
        target.operation = "claim";
        target.key = name_;
        target.condition.emplace(condition, value);
        target.ttl = claim_time;
        name_write(session_.core(), target);
        bytes::add(target.headers, "x-amz-meta-lease-seconds", entry::seconds_text(claim_time.count()));
        return put_small(session_, target, target.write_id, &etag_);
    }
    void release() {
        session_.allow_cleanup();
        Call erase(session_, request(session_.core(), "claim", Method::erase, name_).header("if-match", etag_));
        erase.run();
    }

    Session& session_;
    std::string name_, etag_;
};

// Looks before a conditional write: an entry that is in the way is found without sending the body, and a store that
// ignores conditions is kept from the plain mistakes. The headers of the write itself then settle what happens in
// between.
inline Result<bool> is_condition_met(Session& session, Target& target, Claim& claim) {
    if (!target.condition) return true;
    Core& core = session.core();
    const Conditions policy = core.config.conditions;
    const Result<bool> honours = policy == Conditions::off ? false : honours_conditions(session);
    const bool is_safe = honours && *honours;
    if (!is_safe && policy == Conditions::required) {
        if (!honours) return about(target.operation, target.key, honours.error());
        return refusal(Errc::unsupported, target.operation, target.key,
                       "the store does not honour write conditions (tried on a scratch object), and Config::conditions "
                       "requires it");
    }
    if (!is_safe && policy == Conditions::automatic)
        record(core, target.operation, target.key, outcomes::unconditional);
    auto there = look(session, target.operation, target.key);
    if (!there) return there.error();
    const bool wants_match = target.condition->first == "if-match";
    const auto is_expired = [&] { return *there && (*there)->expired(core.unix_now()); };
    if (wants_match ? !*there || (*there)->info.etag != target.condition->second : *there && !is_expired())
        return false;
    // A weak ETag holds for no server, so the look has to do, as where conditions are off.
    if (policy == Conditions::off || (*there && !(*there)->has_strong_etag())) return target.condition.reset(), true;
    if (wants_match || !*there) return true;
    if (!entry::is_scratch_name(target.key)) {  // those have unique contents
        const Result<bool> claimed = claim.take(target.key);
        if (!claimed || !*claimed) return claimed;
        there = look(session, target.operation, target.key);  // another may have been there before the claim was ours
        if (!there) return there.error();
        if (*there && !is_expired()) return false;
    }
    if (!*there) return true;
    target.condition.emplace("if-match", (*there)->info.etag);
    target.replaced_id = (*there)->write_id;
    return true;
}

// -- set

// What a set() stores: bytes in memory, or a source, which may be a file.
struct Body {
    std::string_view memory{};
    const Source* source = nullptr;
    std::FILE* file = nullptr;
    std::string path{};

    std::optional<std::uint64_t> size() const { return source ? source->size() : memory.size(); }
};

inline Result<bool> send(Session& session, Target& target, const Body& body, const SetOptions& options) {
    Core& core = session.core();
    const auto size = body.size();
    const Result<transfer::PartPlan> plan = transfer::plan_parts(core.config, size, options.compress);
    if (!plan) return about("set", target.key, plan.error());
    // What is sent of a file in parts must have the sum that the whole has now.
    std::optional<std::uint32_t> whole_crc;
    if (body.file && size.value_or(0) > core.config.part_bytes && !options.compress &&
        core.config.checksums != Checksums::none) {
        const Result<std::uint32_t> summed = sum_file(session, target.key, body.file);
        if (!summed) return summed.error();
        whole_crc = *summed;
    }
    transfer::ProgressMeter meter(session, options.progress, size);
    Claim claim(session);
    Result<bool> is_met = is_condition_met(session, target, claim);
    if (!is_met || !*is_met) return is_met;
    const bool is_named = !target.write_id.empty();  // as conditional writes are
    if (!is_named && (body.source || *size > std::uint64_t{2} * core.config.part_bytes)) name_write(core, target);
    transfer::Upload upload(session, target, meter, *plan, hashes_bodies(core));
    if (!body.source) {
        Result<bool> stored = upload.run(body.memory);
        if (stored && *stored) meter.finish(*size);
        return stored;
    }
    transfer::UploadSource reading(*body.source,
                                   options.compress ? std::optional<int>(core.config.compression_level) : std::nullopt);
    Result<bool> stored = upload.run(reading, whole_crc);
    if (stored && *stored) meter.finish(reading.taken());
    if (!stored && body.file && std::ferror(body.file)) return file_error("set", target.key, body.path, "cannot read");
    return stored;
}

inline Result<bool> record_set(Core& core, std::string_view key, Result<bool> stored, const Timing& timing) {
    if (!stored) return record_error(core, "set", key, std::move(stored).error(), timing);
    record(core, "set", key, *stored ? outcomes::stored : outcomes::refused, {}, timing);
    return stored;
}

inline Result<bool> set(Core& core, std::string_view key, Kind kind, const Body& body, const SetOptions& options,
                        bool is_negative = false, double cost = 0) {
    const Timing timing{http::Clock::now(), body.size().value_or(0)};
    Session session(core, options.timeout);
    Target target = target_for(core, key, kind, options, is_negative, cost);
    return record_set(core, key, send(session, target, body, options), timing);
}

inline Result<bool> set_payload(Core& core, std::string_view key, const Payload& payload, const SetOptions& options,
                                double cost = 0) {
    if (Result<void> fine = check_set(core, key, options); !fine) return std::move(fine).error();
    const Result<Kind> kind = check_kind(key, payload, options);
    if (!kind) return kind.error();
    std::string_view data = payload.view();
    if (!options.compress || payload.negative()) {
        SetOptions plain = options;
        plain.compress = false;
        return set(core, key, *kind, {data}, plain, payload.negative(), cost);
    }
    const Source source = Source([&data](char* buffer, std::size_t capacity) {
                              const std::size_t count = data.copy(buffer, capacity);
                              data.remove_prefix(count);
                              return count;
                          }).sized(data.size());
    return set(core, key, *kind, {{}, &source}, options, false, cost);
}

inline Result<bool> set_source(Core& core, std::string_view key, const Source& source, const SetOptions& options) {
    if (Result<void> fine = check_set(core, key, options); !fine) return std::move(fine).error();
    return set(core, key, options.kind.value_or(Kind::bytes), {{}, &source}, options);
}

inline Result<bool> set_file(Core& core, std::string_view key, const std::string& path, const SetOptions& options) {
    if (Result<void> fine = check_set(core, key, options); !fine) return std::move(fine).error();
    const File opened(open_file(path, "rb"));
    if (!opened) return record_error(core, "set", key, file_error("set", key, path, "cannot open"));
    const Source source = source_of(opened.get());
    return set(core, key, options.kind.value_or(Kind::bytes), {{}, &source, opened.get(), path}, options);
}

// One of many that goes out in one PUT, as it is.
struct PutOperation : s3::Job {
    PutOperation(Session& session, const Item& item, Kind kind, transfer::BodySum sum)
        : target(target_for(session.core(), item.key, kind, item.options, item.payload.negative())),
          put(session, target, item.payload.view(), sum) {}
    Call& call() override { return put.call(); }
    bool tend() override { return put.tend(); }

    Target target;
    transfer::Put put;
};

inline bool fits_one_put(const Config& config, const Item& item) {
    const SetOptions& options = item.options;
    return !options.compress && !options.if_absent && options.if_match.empty() && !options.progress &&
           !options.timeout && item.payload.view().size() <= std::uint64_t{2} * config.part_bytes;
}

// The operation for one of many, or else what became of it already.
inline Result<std::unique_ptr<PutOperation>> begin_put(Session& session, const Item& item) {
    if (Result<void> fine = check_set(session.core(), item.key, item.options); !fine) return std::move(fine).error();
    const Result<Kind> kind = check_kind(item.key, item.payload, item.options);
    if (!kind) return kind.error();
    return std::make_unique<PutOperation>(session, item, *kind, sum_of(session, item.payload.view()));
}

inline std::vector<Result<bool>> set_many(Core& core, const std::vector<Item>& items) {
    const auto work = [&](const auto& tell) {
        Session session(core);
        s3::run_all(
            session, items.size(), core.config.connections,
            [&](std::size_t i) -> std::unique_ptr<s3::Job> {
                const Item& item = items[i];
                if (Result<void> allowed = session.check_allowed("set", item.key); !allowed)
                    return tell(i, std::move(allowed).error()), nullptr;
                if (!fits_one_put(core.config, item))
                    return tell(i, set_payload(core, item.key, item.payload, item.options)), nullptr;
                auto operation = begin_put(session, item);
                if (!operation) return tell(i, operation.error()), nullptr;
                return *std::move(operation);
            },
            [&](std::size_t i, s3::Job& job) {
                PutOperation& one = static_cast<PutOperation&>(job);
                const Timing timing = timing_of(one.call(), items[i].payload.view().size());
                tell(i, record_set(core, items[i].key, one.put.result(), timing));
            });
    };
    return result_of_each<bool>("set", items, work);
}

// -- get_file

inline Result<void> copy_to(Reader& reader, std::FILE* out, std::string_view key, const std::string& path) {
    for (;;) {
        const Result<std::string_view> chunk = reader.try_next();
        if (!chunk) return chunk.error();
        if (chunk->empty()) return {};
        if (std::fwrite(chunk->data(), 1, chunk->size(), out) != chunk->size())
            return file_error("get", key, path, "cannot write");
    }
}

inline constexpr int links_max = 40;  // to follow: as many as Linux does

inline std::string folder_of(const std::string& path) { return path.substr(0, path.find_last_of("/\\") + 1); }

// What a path means for writing: links are followed, and what is no plain file (a device, a pipe) is written through.
struct FileTarget {
    std::string path;
    bool is_written_through = false;
    std::optional<unsigned> mode{};  // of the file that will be replaced
};
inline Result<FileTarget> file_target(std::string_view key, std::string path) {
#if !defined(_WIN32)
    char link[4096];
    for (int followed = 0;; ++followed) {
        const auto size = ::readlink(path.c_str(), link, sizeof link);
        if (size <= 0) break;
        if (followed == links_max) return errno = ELOOP, file_error("get", key, path, "cannot follow");
        path = (link[0] == '/' ? std::string() : folder_of(path)).append(link, static_cast<std::size_t>(size));
    }
    FileStat seen;
    if (stat_file(path, seen))
        return FileTarget{path, !S_ISREG(seen.st_mode) && !S_ISDIR(seen.st_mode), unsigned{seen.st_mode} & 07777U};
#endif
    return FileTarget{std::move(path)};
}

inline bool replace_file(const std::string& from, const std::string& to) {
#if defined(_WIN32)
    std::remove(to.c_str());  // rename replaces nothing there
#endif
    return std::rename(from.c_str(), to.c_str()) == 0;
}

// Written beside the target and renamed onto it, so that nobody ever sees half a file; under a short name of its own,
// since the target's may be as long as names can be.
inline Result<void> write_file(const Core& core, Reader& reader, const FileTarget& target, std::string_view key) {
    const std::string path =
        target.is_written_through ? target.path : folder_of(target.path) + ".s3cache-" + core.random_id();
    File out(open_file(path, target.is_written_through ? "wb" : "wbx"));
    if (!out) return file_error("get", key, path, "cannot create");
#if !defined(_WIN32)
    if (target.mode && !target.is_written_through)
        static_cast<void>(::fchmod(fileno(out.get()), static_cast<::mode_t>(*target.mode)));
#endif
    Result<void> written = copy_to(reader, out.get(), key, path);
    if (std::fclose(out.release()) != 0 && written) written = file_error("get", key, path, "cannot write");
    if (target.is_written_through) return written;
    if (written && !replace_file(path, target.path)) written = file_error("get", key, target.path, "cannot replace");
    if (!written) static_cast<void>(std::remove(path.c_str()));
    return written;
}

inline Result<std::optional<Info>> get_file(const std::shared_ptr<Core>& core, std::string_view key,
                                            const std::string& path, const GetOptions& options) {
    Result<std::optional<Reader>> reader = open_stream(core, key, options, true);
    if (!reader) return tolerated<Info>(*core, "get", key, std::move(reader).error());
    if (!*reader) return std::optional<Info>();
    const Result<FileTarget> target = file_target(key, path);
    if (!target) return target.error();
    if (Result<void> written = write_file(*core, **reader, *target, key); !written)
        return tolerated<Info>(*core, "get", key, std::move(written).error());
    if (options.progress) static_cast<void>(options.progress({(*reader)->info().size, (*reader)->info().size}));
    return std::optional<Info>((*reader)->info());
}

// -- removing many

inline constexpr std::size_t bulk_keys_max = 1000;  // of one DeleteObjects

inline s3::Request bulk_request(const std::string& list) {
    s3::Request out = s3::bucket_request("remove_many", Method::post, "delete=");
    out.body = list;
    const auto sha = digest::sha256(list);
    out.payload_hash = bytes::hex(digest::as_text(sha));
    out.header("content-type", "application/xml");
    // Old stores want an MD5, which a FIPS build of OpenSSL does not have.
    if (const auto md5 = digest::md5(list))
        return std::move(out).header("content-md5", bytes::base64(digest::as_text(*md5)));
    return std::move(out).header("x-amz-checksum-sha256", bytes::base64(digest::as_text(sha)));
}

// Removes keys, in bulk where the store does that. Keys of which a bulk answer says nothing certain, or that failed in
// passing, are asked for one by one: that repeats what is worth repeating.
template <class Tell>
class Removal {
public:
    Removal(Session& session, const std::vector<std::string>& keys, Tell& tell)
        : session_(session), core_(session.core()), keys_(keys), tell_(tell) {}

    void run() {
        std::vector<std::size_t> batch;
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            if (Result<void> fine = check_key(core_, "remove", keys_[i], true); !fine) {
                tell_(i, std::move(fine));
                continue;
            }
            (xml::representable(core_.object(keys_[i])) ? batch : singly_).push_back(i);
            if (batch.size() == bulk_keys_max) remove_in_bulk(std::exchange(batch, {}));
        }
        remove_in_bulk(batch);
        remove_singly();
    }

private:
    void finish(std::size_t i, Result<void> removed, const Timing& timing) {
        if (removed)
            record(core_, "remove", keys_[i], outcomes::removed, {}, timing);
        else
            removed = record_error(core_, "remove", keys_[i], removed.error(), timing);
        tell_(i, std::move(removed));
    }
    // An outage is not multiplied by the number of keys.
    void remove_singly() {
        std::optional<Error> outage;
        s3::run_all(
            session_, singly_.size(), core_.config.connections,
            [&](std::size_t i) -> std::unique_ptr<s3::Job> {
                if (outage) return finish(singly_[i], *outage, {}), nullptr;
                return std::make_unique<PlainJob>(session_, request(core_, "remove", Method::erase, keys_[singly_[i]]));
            },
            [&](std::size_t i, s3::Job& job) {
                Result<void> removed = interpret_removal(session_, job.call());
                if (job.call().error || (!removed && removed.error().code() == Errc::no_such_bucket))
                    outage = removed.error();
                finish(singly_[i], std::move(removed), timing_of(job.call(), 0));
            });
    }
    void remove_in_bulk(const std::vector<std::size_t>& batch) {
        if (batch.size() < 2 || !bulk_works_) return ask_singly(batch);
        std::string list = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>";
        for (const std::size_t i : batch) {
            list += "<Object><Key>";
            xml::escape(list, core_.object(keys_[i]));
            list += "</Key></Object>";
        }
        list += "</Delete>";
        Call call(session_, bulk_request(list));
        call.run();
        const Timing timing = timing_of(call, 0);
        if (const auto deleted = call.ok() ? xml::delete_result(call.answer->text) : std::nullopt)
            return take_in(batch, *deleted, timing);
        const Error why = session_.failure(call);
        const bool is_outage = call.error || why.code() == Errc::no_such_bucket || why.code() == Errc::throttled ||
                               call.status() == 403 || (call.status() >= 500 && call.status() != 501);
        bulk_works_ = is_outage;  // otherwise the store does not do this, and nothing is known of any key
        if (!is_outage) return ask_singly(batch);
        for (const std::size_t i : batch) finish(i, why, timing);
    }
    void ask_singly(const std::vector<std::size_t>& which) {
        singly_.insert(singly_.end(), which.begin(), which.end());
    }

    void take_in(const std::vector<std::size_t>& batch, const xml::Deleted& deleted, const Timing& timing) {
        const auto error_of = [&](std::string_view object) {
            return std::find_if(deleted.errors.begin(), deleted.errors.end(), [&](const xml::DeleteError& one) {
                return one.key == object && one.code != "NoSuchKey";
            });
        };
        if (error_of("") != deleted.errors.end()) return ask_singly(batch);
        for (const std::size_t i : batch) {
            const auto error = error_of(core_.object(keys_[i]));
            if (error == deleted.errors.end()) {
                finish(i, {}, timing);
                continue;
            }
            Error::Details details;
            const retry::Rule& rule = retry::rule_for(0, error->code);
            details.code = rule.kind;
            details.s3_code = bytes::sanitize(error->code);
            details.s3_message = bytes::sanitize(error->message);
            const std::string text = details.s3_code + ": " + details.s3_message;
            if (rule.action == retry::Action::retry)
                singly_.push_back(i);
            else
                finish(i, Error(details, s3::about("remove", keys_[i], text)), timing);
        }
    }

    Session& session_;
    Core& core_;
    const std::vector<std::string>& keys_;
    Tell& tell_;
    std::vector<std::size_t> singly_;
    bool bulk_works_ = true;
};

template <class Tell>
void remove_all(Session& session, const std::vector<std::string>& keys, Tell&& tell) {
    Removal<std::remove_reference_t<Tell>>(session, keys, tell).run();
}

inline Result<void> remove(Core& core, std::string_view key) {
    Result<void> out;
    Session session(core);
    remove_all(session, {std::string(key)}, [&](std::size_t, Result<void> removed) { out = std::move(removed); });
    return out;
}

inline std::vector<Result<void>> remove_many(Core& core, const std::vector<std::string>& keys) {
    return result_of_each<void>("remove", keys, [&](const auto& tell) {
        Session session(core);
        remove_all(session, keys, tell);
    });
}

// What could be done is done, whatever fails; the first failure is what is returned in the end.
struct Tally {
    std::uint64_t done = 0, failed = 0;
    std::optional<Error> first{};

    void add(const Result<void>& result) {
        ++(result ? done : failed);
        if (!result && !first) first = result.error();
    }
    Result<std::uint64_t> result(const char* what) const {
        if (!first) return done;
        return Error(first->details(), std::string(what) + ": " + bytes::number(done) + " removed, " +
                                           bytes::number(failed) + " failed, the first with: " + first->what());
    }
};

// More than one page is gone through again until nothing is found, because a store may skip keys when what lies before
// them goes; but not for ever, since others may be writing.
inline constexpr int clear_rounds_max = 3;

inline Result<std::uint64_t> clear(const std::shared_ptr<Core>& core, std::string_view prefix) {
    if (Result<void> fine = check_writable(*core, "clear", prefix); !fine) return std::move(fine).error();
    Pages pages(core, prefix, Look::shallow);
    pages.hides_scratch = false;
    Tally tally;
    for (int round = 0; round < clear_rounds_max; ++round, pages.rewind()) {
        const std::uint64_t before = tally.done;
        while (!pages.is_last) {
            if (Result<void> fine = pages.next_page(); !fine) return std::move(fine).error();
            std::vector<std::string> keys;
            for (Entry& entry : pages.page) keys.push_back(std::move(entry.key));
            remove_all(pages.session, keys, [&](std::size_t, const Result<void>& one) { tally.add(one); });
        }
        if (tally.first || tally.done == before || pages.order.pages < 2) break;
    }
    if (pages.unreadable) tally.add(*pages.unreadable);
    return tally.result("clear");
}

inline Result<std::uint64_t> purge_expired(const std::shared_ptr<Core>& core, std::string_view prefix) {
    if (Result<void> fine = check_writable(*core, "purge_expired", prefix); !fine) return std::move(fine).error();
    Pages pages(core, prefix, Look::shallow);
    pages.hides_scratch = false;
    Tally tally;
    while (!pages.is_last) {
        if (Result<void> fine = pages.next_page(); !fine) return std::move(fine).error();
        s3::run_all(
            pages.session, pages.page.size(), core->config.connections,
            [&](std::size_t i) { return std::make_unique<ExpiredRemoval>(pages.session, "purge", pages.page[i].key); },
            [&](std::size_t, s3::Job& job) {
                const Result<bool> removed = static_cast<ExpiredRemoval&>(job).result();
                if (!removed || *removed) tally.add(removed ? Result<void>() : removed.error());
            });
    }
    if (pages.unreadable) tally.add(*pages.unreadable);
    return tally.result("purge_expired");
}

inline Result<xml::UploadsPage> uploads_page(Session& session, const std::string& prefix,
                                             const xml::UploadsPage& before, PageOrder& order) {
    bytes::Pairs query = {{"uploads", ""}, {"encoding-type", "url"}, {"prefix", prefix}};
    if (before.truncated) {
        bytes::add(query, "key-marker", before.next_key_marker);
        bytes::add(query, "upload-id-marker", before.next_upload_id_marker);
    }
    Call call(session, s3::bucket_request("sweep_uploads", Method::get, sigv4::canonical_query(query), prefix));
    call.run();
    if (!call.ok()) return session.failure(call);
    std::optional<xml::UploadsPage> page = xml::list_uploads_result(call.answer->text);
    const auto name = [](const xml::Upload& upload) { return upload.key + '\n' + upload.id; };
    const char* wrong = "the answer is no list of uploads";
    if (page)
        wrong = page->uploads.empty() ? order.check(0, {}, {})
                                      : order.check(1, name(page->uploads.front()), name(page->uploads.back()));
    if (wrong) return refusal(Errc::protocol, "sweep_uploads", prefix, wrong);
    return *std::move(page);
}

// Whether it is gone by this. Empty: there is no such upload.
inline std::optional<Result<void>> abort_upload(Session& session, const std::string& object, const std::string& id) {
    s3::Request out =
        s3::bucket_request("sweep_uploads", Method::erase, sigv4::canonical_query({{"uploadId", id}}), object);
    out.object = object;
    Call call(session, std::move(out));
    call.run();
    if (call.status() == 404 && !call.error) return std::nullopt;
    if (!call.ok()) return session.failure(call);
    if (call.answer->text.empty()) return Result<void>();
    return refusal(Errc::protocol, "sweep_uploads", object, "the answer to the abort is not S3's");
}

inline Result<std::uint64_t> sweep_uploads(Core& core, std::string_view prefix, Seconds older_than) {
    if (Result<void> fine = check_writable(core, "sweep_uploads", prefix); !fine) return std::move(fine).error();
    Session session(core);
    const std::string below = core.object(prefix);
    Tally tally;
    xml::UploadsPage page;
    PageOrder order;
    do {
        Result<xml::UploadsPage> got = uploads_page(session, below, page, order);
        if (!got) return std::move(got).error();
        page = *std::move(got);
        for (const xml::Upload& upload : page.uploads) {
            // Without a key or an id the request to abort would read as one to remove an object, or the bucket.
            if (upload.key.empty() || upload.id.empty() || !bytes::starts_with(upload.key, below)) continue;
            const auto began = dates::iso8601(upload.initiated);
            if (!began || retry::seconds_between(*began, core.now()) < older_than.count()) continue;
            // Some stores encode the key without saying so: then there is no such upload under the key as it stands.
            const auto decoded = bytes::unpercent(upload.key, true);
            auto aborted = abort_upload(session, upload.key, upload.id);
            if (!aborted && decoded && *decoded != upload.key) aborted = abort_upload(session, *decoded, upload.id);
            if (aborted) tally.add(*aborted);
        }
    } while (page.truncated);
    return tally.result("sweep_uploads");
}

// -- presigned URLs

inline Result<std::string> presign(Core& core, std::string_view key, std::string_view method, Seconds lifetime) {
    if (Result<void> fine = check_key(core, "presign", key); !fine) return std::move(fine).error();
    const auto refuse = [&](Errc code, std::string_view text) { return refusal(code, "presign", key, text); };
    if (method != "GET" && method != "PUT") return refuse(Errc::invalid_argument, "the method is GET or PUT");
    if (!(lifetime.count() >= 1 && lifetime.count() <= sigv4::presign_seconds_max))
        return refuse(Errc::invalid_argument, "the lifetime is over 7 days, or under a second");
    const auto who = core.identity.snapshot({});
    if (!who) return about("presign", key, who.error());
    const Credentials& keys = (*who)->credentials;
    if (keys.access_key.empty()) return refuse(Errc::credentials, "an anonymous cache has nothing to sign with");
    const auto place = core.place();
    if (!place) return about("presign", key, place.error());
    std::string path = (*place)->base_path + "/", date;
    bytes::append_percent(path, core.object(key), true);
    dates::append_amz_date(date, dates::unix_seconds(core.now()));
    const sigv4::Header host{"host", (*place)->host};
    const sigv4::Request to_sign{method, path, {}, &host, 1, sigv4::unsigned_payload};
    sigv4::Signer signer;
    return (*place)->scheme + "://" + (*place)->host + path + "?" +
           signer.presign(to_sign, {}, keys, {date, (*place)->signing_region, "s3"},
                          static_cast<std::uint32_t>(lifetime.count()));
}

// -- computed once

// Between two looks for another's value: doubles from the first to the most, with jitter.
inline constexpr std::chrono::milliseconds lease_poll_first{50};
inline constexpr std::chrono::milliseconds lease_poll_most{1000};
// Where the store does not honour conditions two may believe to have the lease. Whoever wrote last has it: that is
// looked at once the others' writes, which began before ours was to be seen, have had this time to arrive.
inline constexpr std::chrono::milliseconds lease_settles{300};

// The right to compute a key, for a time: an entry beside the value, made only if there is none that has not lapsed.
class Lease {
public:
    Lease(Core& core, std::string_view key, Seconds time)
        : core_(core),
          name_(entry::scratch_name("lease", bytes::hex(digest::as_text(digest::sha256(key))).substr(0, 32))),
          time_(time) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
        static_cast<void>(http::shielded([this] { return release(), true; }, false));  // it lapses by itself
    }

    // Whether it is ours now; empty: the store did not say, and computing must not wait for that. An error only where
    // Config::conditions requires what the store does not do.
    Result<std::optional<bool>> take() {
        Session session(core_);
        SetOptions options;
        options.ttl = time_;
        options.if_absent = true;
        Target target = target_for(core_, name_, Kind::text, options);
        target.operation = "lease";
        if (target.ttl) target.ttl = time_;  // without jitter; it is empty for a lease that never lapses
        if (target.ttl) bytes::add(target.headers, "x-amz-meta-lease-seconds", entry::seconds_text(time_.count()));
        const Result<bool> stored = send(session, target, {target.write_id}, options);
        const bool required = core_.config.conditions == Conditions::required;
        if (!stored && required && stored.error().code() == Errc::unsupported) return stored.error();
        if (!stored) return std::optional<bool>();
        const bool in_doubt = core_.honours_conditions == Core::Trait::no || core_.config.conditions == Conditions::off;
        if (*stored && in_doubt) core_.sleep(lease_settles);
        is_ours_ = *stored;
        write_id_ = target.write_id;
        if (in_doubt) is_ours_ = etag_if_ours(session).has_value();
        return std::optional<bool>(is_ours_);
    }

private:
    std::optional<std::string> etag_if_ours(Session& session) const {
        const auto there = look(session, "lease", name_);
        const bool is_ours = is_ours_ && there && *there && (*there)->write_id == write_id_;
        return is_ours ? std::optional<std::string>((*there)->info.etag) : std::nullopt;
    }
    void release() {
        if (!is_ours_) return;
        Session session(core_);
        const auto etag = etag_if_ours(session);
        if (!etag) return;
        Call erase(session, request(core_, "lease", Method::erase, name_).header("if-match", *etag));
        erase.run();
    }

    Core& core_;
    const std::string name_;
    const Seconds time_;
    std::string write_id_;
    bool is_ours_ = false;
};

// One computation of a key's value by this process, with what was there before.
struct Computation {
    using Producer = std::function<Result<Produced>()>;

    Core& core;
    const std::string_view key;
    const Producer& producer;
    const SetOptions& options;
    const ComputeOptions& how;
    const std::shared_ptr<Core::InFlight> in_flight;
    GetResult before{};
    bool is_early = false;

    Result<Value> run() {
        Result<GetResult> found = recall();
        if (!found && !may_compute_after(found.error())) return std::move(found).error();
        if (found) before = *std::move(found);
        is_early = is_due_early();
        if (is_fresh(before) && !is_early) return *std::move(before.value);
        if (is_early) {
            record(core, "get_or_set", key, outcomes::early);
            const std::lock_guard<std::mutex> hold(core.in_flight_lock);
            in_flight->stale_value = before.value;  // for those who ask meanwhile
            in_flight->done.notify_all();
        }
        if (!(how.lease.count() > 0) || core.config.read_only) return made_or_old();
        Lease lease(core, key, how.lease);
        Result<std::optional<Value>> others = wait_for_turn(lease);
        if (!others) return std::move(others).error();
        return *others ? Result<Value>(**std::move(others)) : made_or_old();
    }

    static bool is_fresh(const GetResult& found) { return found.value && !found.is_stale; }

    Result<GetResult> recall() const { return get_one(core, key, {{}, how.stale_if_error, true}); }
    // A store that cannot be reached does not keep the producer from answering, nor does an entry that is damaged: what
    // is computed will replace it. The error has been counted, and was an event.
    bool may_compute_after(const Error& error) const {
        const Errc code = error.code();
        return tolerated<Value>(core, "get", key, error) || code == Errc::damaged || code == Errc::network ||
               code == Errc::timed_out || code == Errc::throttled || code == Errc::unavailable || error.status() >= 500;
    }
    // XFetch: the nearer the end, and the longer computing takes, the likelier; the draw is each caller's own.
    bool is_due_early() const {
        if (!(how.early_refresh > 0) || before.facts.expiry != entry::Expiry::at || !is_fresh(before)) return false;
        const double ahead = before.facts.cost * how.early_refresh * -std::log((std::max)(1 - core.random(), 1e-300));
        return core.unix_now() + ahead >= before.facts.expires_at;
    }

    // A value that came from another while we asked for the lease; none that we know already.
    std::optional<Value> others_value() const {
        Result<GetResult> found = recall();
        if (!found || !is_fresh(*found)) return std::nullopt;
        const bool is_known = is_early && found->value->info().etag == before.value->info().etag &&
                              found->facts.expires_at <= before.facts.expires_at;
        return is_known ? std::nullopt : std::move(found->value);
    }

    // Waits until computing is ours (empty) or another's value is there. In the end it is ours all the same.
    Result<std::optional<Value>> wait_for_turn(Lease& lease) {
        const Seconds most = how.lease_wait.count() > 0 ? how.lease_wait : how.lease;
        const auto cancels = core.cancels.load();
        Seconds waited{0};
        for (auto wait = lease_poll_first;; wait = (std::min)(2 * wait, lease_poll_most)) {
            // After a wait the value is likelier there than the lease is free, and cheaper to ask for.
            std::optional<Value> value = waited.count() > 0 ? others_value() : std::nullopt;
            bool is_ours = false;
            if (!value) {
                const Result<std::optional<bool>> took = lease.take();
                if (!took) return took.error();
                if (!*took) return std::optional<Value>();
                is_ours = **took;
                // Also before computing: the one before us may have stored its value between our look and our lease.
                if (is_ours || waited.count() == 0) value = others_value();
            }
            if (value && (!is_ours || waited.count() > 0)) record(core, "get_or_set", key, outcomes::waited);
            if (value || is_ours) return value;
            if (is_early) return before.value;  // somebody is at it
            if (waited >= most) return std::optional<Value>();
            if (core.cancels.load() != cancels)
                return refusal(Errc::cancelled, "get_or_set", key, "cancelled by Cache::cancel()");
            const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(wait * (0.5 + core.random() / 2));
            core.sleep(time);
            waited += time;
        }
    }

    // If the producer fails, what was there before may do.
    Result<Value> made_or_old() {
        Result<Value> value = made();
        if (value || !before.value) return value;
        record(core, "get_or_set", key, before.is_stale ? outcomes::stale : Outcome{"stale"}, value.error().what());
        return *std::move(before.value);
    }
    // The value is there, whatever becomes of storing it: a failure is counted and an event, and not returned.
    Result<Value> made() {
        const TimePoint began = core.local_now();
        Result<Produced> made = producer();
        if (!made) return core.count(&Stats::computed), about("get_or_set", key, made.error());
        const double seconds = (std::max)(retry::seconds_between(began, core.local_now()), 0.001);
        record(core, "get_or_set", key, outcomes::computed);
        const Payload payload = made->negative ? nothing()
                                : made->kind   ? Payload(made->data.data(), made->data.size(), *made->kind)
                                               : Payload(made->data);
        const Result<Kind> kind = check_kind(key, payload, options);
        if (!kind) return kind.error();
        SetOptions storing = options;
        if (made->negative && how.negative_ttl) storing.ttl = how.negative_ttl;
        if (!core.config.read_only)
            static_cast<void>(set_payload(core, key, payload, storing, how.early_refresh > 0 ? seconds : 0));
        Info info;
        info.size = made->data.size();
        info.negative = made->negative;
        info.kind = *kind;
        info.metadata = options.metadata;
        return Value(std::move(made->data), *kind, std::move(info));
    }
};

inline Result<void> check_compute(const Core& core, std::string_view key, const SetOptions& options,
                                  const ComputeOptions& how) {
    Result<void> fine = check_key(core, "get_or_set", key);
    if (fine && !core.config.read_only) fine = check_set(core, key, options);
    const bool in_range = how.lease.count() >= 0 && how.lease_wait.count() >= 0 && how.early_refresh >= 0 &&
                          how.stale_if_error.count() >= 0 && (!how.negative_ttl || how.negative_ttl->count() > 0);
    if (!fine || in_range) return fine;
    return refusal(Errc::invalid_argument, "get_or_set", key, "a time or factor of ComputeOptions is below zero");
}

using InFlight = Core::InFlight;

template <class List, class Key>
auto find_in(List& list, const Key& key) {
    return std::find_if(list.begin(), list.end(), [&](const auto& entry) { return entry.first == key; });
}

// Whether the owner waits, through others perhaps, for what this thread is to bring: nobody would ever be done.
inline bool waits_for_us(const Core& core, const InFlight* in_flight) {
    while (in_flight->owner != std::this_thread::get_id()) {
        const auto next = find_in(core.waits, in_flight->owner);
        if (next == core.waits.end() || next->second->result) return false;  // done: that thread is about to go on
        in_flight = next->second.get();
    }
    return true;
}

// Another thread is at it: what it brings, or what is still good meanwhile.
inline Result<Value> wait_for(Core& core, std::string_view key, const std::shared_ptr<InFlight>& in_flight,
                              std::unique_lock<std::mutex>& hold) {
    const auto cancels = core.cancels.load();
    const auto& stale = in_flight->stale_value;
    core.waits.emplace_back(std::this_thread::get_id(), in_flight);
    ++in_flight->waiting;
    const auto is_good = [&] { return stale && (!stale->info().expires_at || *stale->info().expires_at > core.now()); };
    while (!in_flight->result && !is_good() && core.cancels.load() == cancels) in_flight->done.wait_for(hold, s3::tick);
    core.waits.erase(find_in(core.waits, std::this_thread::get_id()));
    --in_flight->waiting;
    const bool is_brought = in_flight->result.has_value();
    if (!is_brought && !is_good()) return refusal(Errc::cancelled, "get_or_set", key, "cancelled by Cache::cancel()");
    hold.unlock();  // what is brought does not change any more, and copying it takes a while
    if (is_brought) core.count(&Stats::waited);
    return is_brought ? *in_flight->result : Result<Value>(*stale);
}

// The first who asks for a key computes it; whoever asks meanwhile waits for what that brings.
inline Result<Value> compute(Core& core, std::string_view key, const Computation::Producer& producer,
                             const SetOptions& options, const ComputeOptions& how) {
    if (Result<void> fine = check_compute(core, key, options, how); !fine) return std::move(fine).error();
    std::unique_lock<std::mutex> hold(core.in_flight_lock);
    auto others = find_in(core.in_flight, key);
    if (others != core.in_flight.end() && others->second->process != http::process_id()) {
        core.in_flight.clear();  // of the parent: no thread of it is here
        others = core.in_flight.end();
    }
    if (others != core.in_flight.end()) {
        const std::shared_ptr<InFlight> at_it = others->second;
        if (!waits_for_us(core, at_it.get())) return wait_for(core, key, at_it, hold);
        return refusal(Errc::source, "get_or_set", key,
                       "the producer asks, itself or through others that wait, for what it is to produce");
    }
    const auto in_flight = std::make_shared<InFlight>();
    core.in_flight.emplace_back(std::string(key), in_flight);
    hold.unlock();
    Result<Value> result =
        never_throws([&] { return Computation{core, key, producer, options, how, in_flight}.run(); });
    hold.lock();
    core.in_flight.erase(find_in(core.in_flight, key));
    if (in_flight->waiting == 0) return result;
    in_flight->result = never_throws([&]() -> Result<Value> { return result; });
    in_flight->done.notify_all();
    return result;
}

// -- what a person wants to know when it does not work

inline Finding finding_of(const char* about, const Result<std::string>& found, std::string_view otherwise = {}) {
    using Verdict = Finding::Verdict;
    if (!found) return {about, Verdict::broken, found.error().what()};
    return {about, found->empty() ? Verdict::passed_over : Verdict::used,
            found->empty() ? std::string(otherwise) : *found};
}

inline std::vector<Finding> explain(Core& core) {
    const auto setting = [](const Result<credentials::Setting>& found) -> Result<std::string> {
        if (!found) return found.error();
        return found->value.empty() ? std::string() : found->value + " (" + found->why + ")";
    };
    std::vector<Finding> out;
    if (core.config.credentials)
        out.push_back(finding_of("credentials: in code", core.identity.snapshot({}).transform([](const auto& got) {
            return credentials::summary(got->credentials);
        })));
    else
        out = core.chain.explain();
    out.push_back(finding_of("region", setting(core.chain.region({})), "us-east-1 (none is configured)"));
    out.push_back(finding_of("endpoint", setting(core.chain.endpoint_url()), "Amazon S3 (none is configured)"));
    out.push_back(finding_of("requests go to", core.place().transform([](const auto& place) {
        return place->url() + ", signed for " + place->signing_region;
    })));
    const std::int64_t offset = core.clock_offset_ms.load() / 1000;
    const std::string off = bytes::number(static_cast<std::uint64_t>(offset < 0 ? -offset : offset));
    out.push_back({"clock", Finding::Verdict::used,
                   offset == 0 ? "the local one; the store has not refused it"
                               : "corrected: this machine's is " + off +
                                     (offset < 0 ? " s ahead of the store's" : " s behind the store's")});
    return out;
}

// -- opening

inline Result<void> check_config(const Config& config) {
    const auto refuse = [](const std::string& text) { return Error(Errc::invalid_argument, text); };
    const Result<void> metadata = entry::check_metadata(config.metadata);
    if (!metadata) return refuse(std::string("Config::metadata: ") + metadata.error().what());
    for (const std::string* value : {&config.server_side_encryption, &config.kms_key_id, &config.storage_class}) {
        if (const Result<void> fine = entry::check_value(*value); !fine)
            return refuse("'" + bytes::sanitize(*value) + "' " + fine.error().what());
    }
    bool are_times_fine = true;
    for (const auto& time : {config.connect_timeout, config.stall_timeout, config.call_timeout, config.backoff_base,
                             config.backoff_cap, config.breaker_pause})
        are_times_fine &= time.count() >= 0 && time <= std::chrono::hours(24 * 20);
    const std::pair<bool, const char*> rules[] = {
        {!bytes::has_control(config.endpoint), "the endpoint holds control characters"},
        {config.connections >= 1 && config.connections <= 1000, "Config::connections is not within 1 and 1000"},
        {config.attempts_max >= 1, "Config::attempts_max is under 1"},
        {config.ttl_jitter >= 0 && config.ttl_jitter < 1, "Config::ttl_jitter is not within 0 and 1"},
        {config.part_bytes >= 1 && config.transfer_bytes_max >= 1,
         "Config::part_bytes and transfer_bytes_max must be over zero"},
        {config.compression_level >= 0 && config.compression_level <= 9,
         "Config::compression_level is not within 0 and 9"},
        {!config.default_ttl || config.default_ttl->count() > 0, "Config::default_ttl must be over zero"},
        {are_times_fine, "a timeout of Config is negative or over 20 days"}};
    for (const auto& [is_met, text] : rules) {
        if (!is_met) return refuse(text);
    }
    return {};
}

// S3's own rule for the ends and the length; what is between them older buckets and other stores take more freely.
inline bool is_plausible_bucket(std::string_view name) {
    const auto fine = [](char c) { return bytes::is_alpha(c) || bytes::is_digit(c); };
    return name.size() >= 3 && fine(name.front()) && fine(name.back());
}

// The file of certificates to trust, where the environment or the profile names one; empty: libcurl's own.
inline std::string find_trusted(const Config& config) {
    credentials::Environment outside = credentials::real_environment({});
    if (config.seams.environment) outside.variable = config.seams.environment;
    std::string path = outside.variable("AWS_CA_BUNDLE").value_or("");
    const std::string other = outside.variable("SSL_CERT_FILE").value_or("");
    if (path.empty())
        path = credentials::Chain(std::move(outside), {config.profile, {}, {}}).profile_setting("ca_bundle");
    return path.empty() ? other : path;
}

// What the location says goes before the configuration.
inline void apply_location(Config& config, const endpoint::Location& location) {
    if (location.region) config.region = *location.region;
    if (location.endpoint_url) config.endpoint = *location.endpoint_url;
    if (location.path_style) config.addressing = *location.path_style ? Addressing::path : Addressing::virtual_host;
    if (location.checksums) config.checksums = *location.checksums;
    if (location.metadata_names) config.metadata_names = *location.metadata_names;
    if (location.part_bytes) config.part_bytes = static_cast<std::size_t>(*location.part_bytes);
}

inline Result<std::shared_ptr<Core>> open(std::string_view where, Config config) {
    const auto refuse = [](std::string_view text) {
        return Error(Errc::invalid_argument, "open: " + bytes::sanitize(text));
    };
    Result<endpoint::Location> location = endpoint::parse_location(where);
    if (!location) return refuse(location.error().what());
    if (!is_plausible_bucket(location->bucket)) return refuse("'" + location->bucket + "' is not the name of a bucket");
    if (!utf8::valid(location->prefix) || location->prefix.find('\0') != std::string::npos)
        return refuse("the prefix is not UTF-8");
    apply_location(config, *location);
    if (const Result<void> fine = check_config(config); !fine) return refuse(fine.error().what());
    if (config.ca_bundle.empty()) config.ca_bundle = find_trusted(config);
    const auto place =
        endpoint::resolve({location->bucket, config.region.empty() ? "us-east-1" : config.region, config.endpoint,
                           config.addressing, config.dual_stack, config.fips, config.accelerate});
    if (!place) return refuse(place.error().what());
    if (!http::is_ready()) return Error(Errc::unsupported, "open: libcurl could not be initialised");
    if (!digest::available())
        return Error(Errc::unsupported, "open: OpenSSL refuses SHA-256, which signing needs (its FIPS configuration?)");
    static_cast<void>(out_of_memory());
    return std::make_shared<Core>(std::move(config), *std::move(location));
}

}  // namespace detail::cache

// --- the members declared above --------------------------------------------------------------------------------------

struct detail::ListingState : cache::Pages {
    using Pages::Pages;
};

S3CACHE_FN Error detail::about(const char* operation, std::string_view key, const Error& error) {
    return Error(error.details(), s3::about(operation, key, error.what()));
}

S3CACHE_FN Result<detail::Produced> detail::drain(const Source& source) {
    Produced out{{}, Kind::bytes};
    std::vector<char> piece(transfer::piece_bytes);
    transfer::UploadSource reading(source, std::nullopt);
    for (;;) {
        const Result<std::size_t> count = reading.read(piece.data(), piece.size());
        if (!count) return count.error();
        out.data.append(piece.data(), *count);
        if (reading.at_end()) return out;
    }
}

// An istream that throws at its end (exceptions(failbit)) must not: the end of a source is no error.
S3CACHE_FN Source::Source(std::istream& in)
    : read_([&in](char* buffer, std::size_t capacity) {
          const std::ios_base::iostate throwing = in.exceptions();
          in.exceptions(std::ios_base::goodbit);
          in.read(buffer, static_cast<std::streamsize>(capacity));
          const auto count = static_cast<std::size_t>(in.gcount());
          const bool failed = count == 0 && (in.bad() || !in.eof());
          if (in.eof() && !in.bad()) in.clear(std::ios_base::eofbit);
          if (!failed) in.exceptions(throwing & ~std::ios_base::eofbit);
          return failed ? source_failed : count;
      }) {}

S3CACHE_FN Source file(const std::string& path) {
    const std::shared_ptr<std::FILE> opened(detail::cache::open_file(path, "rb"), [](std::FILE* file) {
        if (file) static_cast<void>(std::fclose(file));
    });
    if (!opened) return Source([](char*, std::size_t) { return source_failed; });
    Source inner = detail::cache::source_of(opened.get());
    const auto size = inner.size();
    Source source([opened, inner](char* buffer, std::size_t capacity) { return inner.read(buffer, capacity); });
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
S3CACHE_FN const Info& Reader::info() const noexcept { return state_->download.facts().info; }

S3CACHE_FN Result<std::string_view> Reader::try_next() {
    return detail::cache::never_throws([&]() -> Result<std::string_view> {
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
        state_->stream_buffer = std::make_unique<detail::ReaderState::StreamBuffer>(*state_);
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
    return detail::cache::never_throws([&] { return state_->next(); });
}

S3CACHE_FN Cache::Cache(std::shared_ptr<detail::Core> core) noexcept : core_(std::move(core)) {}
S3CACHE_FN Cache::Cache(Cache&&) noexcept = default;
S3CACHE_FN Cache& Cache::operator=(Cache&&) noexcept = default;
S3CACHE_FN Cache::~Cache() = default;

S3CACHE_FN Result<Cache> Cache::try_open(std::string_view where, Config config) {
    return detail::cache::never_throws([&] {
        return detail::cache::open(where, std::move(config)).transform([](auto&& core) {
            return Cache(std::move(core));
        });
    });
}
S3CACHE_FN Result<bool> Cache::try_set(std::string_view key, Payload payload, const SetOptions& options) {
    return detail::cache::never_throws(detail::cache::set_payload, *core_, key, payload, options, 0);
}
S3CACHE_FN Result<bool> Cache::try_set(std::string_view key, Source source, const SetOptions& options) {
    return detail::cache::never_throws(detail::cache::set_source, *core_, key, source, options);
}
S3CACHE_FN Result<bool> Cache::try_set_file(std::string_view key, const std::string& path, const SetOptions& options) {
    return detail::cache::never_throws(detail::cache::set_file, *core_, key, path, options);
}
S3CACHE_FN Result<std::optional<Value>> Cache::try_get(std::string_view key, const GetOptions& options) {
    return detail::cache::never_throws(detail::cache::get, *core_, key, options);
}
S3CACHE_FN Result<Revalidated> Cache::try_get_if_changed(std::string_view key, std::string_view etag) {
    return detail::cache::never_throws(detail::cache::get_if_changed, *core_, key, etag);
}
S3CACHE_FN Result<std::optional<Reader>> Cache::try_get_stream(std::string_view key, const GetOptions& options) {
    return detail::cache::never_throws(detail::cache::get_stream, core_, key, options);
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_get_file(std::string_view key, const std::string& path,
                                                           const GetOptions& options) {
    return detail::cache::never_throws(detail::cache::get_file, core_, key, path, options);
}
S3CACHE_FN Result<void> Cache::try_remove(std::string_view key) {
    return detail::cache::never_throws(detail::cache::remove, *core_, key);
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_stat(std::string_view key) {
    return detail::cache::never_throws(detail::cache::stat, *core_, key);
}
S3CACHE_FN Result<bool> Cache::try_contains(std::string_view key) {
    return try_stat(key).transform([](std::optional<Info>&& info) { return info.has_value(); });
}
S3CACHE_FN Result<bool> Cache::try_touch(std::string_view key, Seconds ttl) {
    return detail::cache::never_throws(detail::cache::touch, *core_, key, ttl);
}
S3CACHE_FN Result<Listing> Cache::try_list(std::string_view prefix, Look look) {
    return detail::cache::never_throws([&]() -> Result<Listing> {
        auto state = std::make_unique<detail::ListingState>(core_, prefix, look);
        if (Result<void> fine = state->next_page(); !fine) return std::move(fine).error();
        return Listing(std::move(state));
    });
}
S3CACHE_FN Result<std::uint64_t> Cache::try_clear(std::string_view prefix) {
    return detail::cache::never_throws(detail::cache::clear, core_, prefix);
}
S3CACHE_FN Result<std::uint64_t> Cache::try_purge_expired(std::string_view prefix) {
    return detail::cache::never_throws(detail::cache::purge_expired, core_, prefix);
}
S3CACHE_FN Result<std::uint64_t> Cache::try_sweep_uploads(std::string_view prefix, Seconds older_than) {
    return detail::cache::never_throws(detail::cache::sweep_uploads, *core_, prefix, older_than);
}
S3CACHE_FN Result<std::string> Cache::try_presign(std::string_view key, std::string_view method, Seconds lifetime) {
    return detail::cache::never_throws(detail::cache::presign, *core_, key, method, lifetime);
}
S3CACHE_FN Result<Value> Cache::compute(std::string_view key, const std::function<Result<detail::Produced>()>& producer,
                                        const SetOptions& options, const ComputeOptions& how) {
    return detail::cache::never_throws(detail::cache::compute, *core_, key, producer, options, how);
}
S3CACHE_FN void Cache::get_many(const std::vector<std::string>& keys, const Visit& visit) {
    detail::cache::get_many(*core_, keys, visit);
}
S3CACHE_FN std::vector<Result<bool>> Cache::set_many(const std::vector<Item>& items) {
    return detail::cache::set_many(*core_, items);
}
S3CACHE_FN std::vector<Result<void>> Cache::remove_many(const std::vector<std::string>& keys) {
    return detail::cache::remove_many(*core_, keys);
}

S3CACHE_FN void Cache::cancel() noexcept { core_->cancels.fetch_add(1); }

S3CACHE_FN std::vector<Finding> Cache::explain() { return detail::cache::explain(*core_); }

S3CACHE_FN Stats Cache::stats() const {
    const std::lock_guard<std::mutex> hold(core_->stats_lock);
    return core_->stats;
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
// rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
// permit persons to whom the Software is furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
// Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
// WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
// COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
// OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
