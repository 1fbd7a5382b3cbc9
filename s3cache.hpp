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
//            and files http retry credentials entry s3 transfer cache (I/O); each section uses only those above it
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
#else
#define S3CACHE_EXCEPTIONS 0
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
#define S3CACHE_ABI \
    S3CACHE_NAME(v0_1_0_throws, S3CACHE_EXCEPTIONS, S3CACHE_ABI_MODE, S3CACHE_ABI_GZIP, S3CACHE_ABI_CHAIN)

#include <chrono>       // TTLs, timeouts, time points
#include <cstddef>      // std::size_t, std::byte
#include <cstdint>      // 64-bit sizes on every platform
#include <cstdlib>      // std::abort, where there are no exceptions to throw
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
    Error(Details details, const std::string& message);  // which is kept without the passwords of URLs

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
struct Core;  // what a Cache holds, a Reader and a Listing
struct ReaderState;
struct ListingState;

[[noreturn]] inline void raise([[maybe_unused]] const Error& error) {
#if S3CACHE_EXCEPTIONS
    if (error.details().cause) std::rethrow_exception(error.details().cause);
    throw error;
#else
    std::abort();  // value() of an error is a bug of the caller; there is no other way to leave here
#endif
}

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
    ResultBase(Error&& error) noexcept : error_(std::move(error)) {}
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
        if (has_value()) ::new (static_cast<void*>(&value_)) T(other.value_);
    }
    Result(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) : ResultBase(std::move(other)) {
        if (has_value()) ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
    }
    Result& operator=(Result other) {
        if (has_value() && other.has_value())
            value_ = std::move(other.value_);
        else if (other.has_value())
            ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
        else if (has_value())
            value_.~T();
        ResultBase::operator=(std::move(other));  // last, because moving a value may throw
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
        T value_;  // alive if there is no error; std::optional and std::variant take much longer to compile
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
// Containers of bytes that lie in one piece: vector, array and span of char, unsigned char or std::byte.
template <class T, class Byte = std::decay_t<decltype(*std::declval<const T&>().data())>>
using IfBytes = std::enable_if_t<!std::is_convertible_v<const T&, std::string_view> && sizeof(Byte) == 1,
                                 decltype(std::declval<const T&>().size())>;

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
    reference operator*() const { return item_; }
    pointer operator->() const { return &item_; }
    Iterator& operator++() {
        auto next = range_->try_next().value();
        bool at_end = true;
        if constexpr (std::is_same_v<decltype(next), Item>)  // text, whose end is an empty one
            at_end = (item_ = next).empty();
        else if (!(at_end = !next))
            item_ = *std::move(next);
        if (at_end) range_ = nullptr;
        return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.range_ == b.range_; }
    friend bool operator!=(const Iterator& a, const Iterator& b) { return !(a == b); }

private:
    Range* range_ = nullptr;
    Item item_{};
};
}  // namespace detail

// A negative entry: "it was looked up, and there is nothing". A hit whose Value is negative(), and so no miss.
struct Nothing {};
inline Nothing nothing() { return {}; }

// What set() stores. Borrows: the data must live until the call returns; nothing is copied. A temporary string is kept.
class Payload {
public:
    Payload(const char* text) : data_(text ? std::string_view(text) : std::string_view()) {}
    Payload(const std::string& text) : data_(text) {}
    Payload(std::string&& text) : kept_(std::move(text)), data_("") {}
    Payload(std::string_view text) : data_(text.data() ? text : "") {}
    Payload(Nothing) : data_("null"), kind_(Kind::json), negative_(true) {}
    Payload(const Value& value) : data_(value.view()), kind_(value.kind()), negative_(value.negative()) {}
    template <class Bytes, class = detail::IfBytes<Bytes>>
    Payload(const Bytes& bytes) : Payload(bytes.data(), bytes.size(), Kind::bytes) {}
    Payload(const void* data, std::size_t size, Kind kind)
        : data_(size ? static_cast<const char*>(data) : "", data ? size : 0), kind_(kind) {}
    Payload(Payload data, Kind kind) : Payload(std::move(data)) { kind_ = kind; }

    std::string_view view() const noexcept { return kept_.empty() ? data_ : std::string_view(kept_); }
    std::optional<Kind> kind() const noexcept { return kind_; }  // empty: text, or bytes if it is not UTF-8
    bool present() const noexcept { return data_.data(); }       // false: made from a null pointer, refused by set()
    bool negative() const noexcept { return negative_; }         // nothing()

private:
    std::string kept_;
    std::string_view data_;
    std::optional<Kind> kind_;
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
    using Read = std::function<std::size_t(char* buffer, std::size_t capacity)>;  // one such callable; 0 at the end

    template <class T, class Plain = std::remove_reference_t<T>,
              class = std::enable_if_t<std::is_base_of_v<std::istream, Plain> ||
                                       std::is_invocable_r_v<std::size_t, Plain&, char*, std::size_t>>>
    Source(T&& from) {
        using From = std::conditional_t<std::is_function_v<Plain>, Plain*, Plain>;
        if constexpr (std::is_lvalue_reference_v<T> && std::is_object_v<Plain>)
            from_ = {std::shared_ptr<void>(), const_cast<void*>(static_cast<const void*>(std::addressof(from)))};
        else
            from_ = std::shared_ptr<void>(new std::remove_cv_t<From>(std::forward<T>(from)));
        read_ = [](void* in, char* to, std::size_t most) -> std::size_t {
            if constexpr (std::is_base_of_v<std::istream, Plain>)
                return read_stream(*static_cast<From*>(in), to, most);
            else
                return static_cast<std::size_t>((*static_cast<From*>(in))(to, most));
        };
    }

    // Announces the length in bytes: parts are then cut to fit, and a source that gives more or less is an error.
    Source sized(std::uint64_t bytes) && {
        size_ = bytes;
        return std::move(*this);
    }
    std::optional<std::uint64_t> size() const noexcept { return size_; }
    std::size_t read(char* buffer, std::size_t capacity) const { return read_(from_.get(), buffer, capacity); }

private:
    static std::size_t read_stream(std::istream& in, char* buffer, std::size_t capacity);

    std::shared_ptr<void> from_;  // which owns nothing if it is borrowed
    std::size_t (*read_)(void* from, char* buffer, std::size_t capacity);
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

// An entry as a stream of its decompressed bytes. Pull-based: what is not read is not downloaded, beyond a bounded
// buffer. Damage is reported before the end is: bytes already read of a damaged entry must not be used. Closing early
// costs one connection. Keeps what it needs of its Cache, which may go before it.
class Reader {
public:
    Reader(Reader&&) noexcept = default;
    Reader& operator=(Reader&&) noexcept = default;

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

    explicit Reader(std::shared_ptr<detail::ReaderState> state) noexcept : state_(std::move(state)) {}

private:
    std::shared_ptr<detail::ReaderState> state_;  // not shared: a unique_ptr would need all of ReaderState here
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
inline constexpr bool is_object =
    has_codec<T>::value || !(std::is_convertible_v<const T&, Payload> || std::is_convertible_v<T, Source>);
template <template <class> class Wrapper, class T>
inline constexpr bool is_a = false;
template <template <class> class Wrapper, class T>
inline constexpr bool is_a<Wrapper, Wrapper<T>> = true;

Error thrown(const char* who);  // what is being caught

// Calls what the user gave us. An exception becomes an Error that carries it, which the throwing forms rethrow.
template <class F>
auto guarded(F&& call, [[maybe_unused]] const char* who) -> std::decay_t<decltype(call())> {
#if S3CACHE_EXCEPTIONS
    try {
        return call();
    } catch (...) {
        return thrown(who);
    }
#else
    return call();
#endif
}

template <class T>
Result<T> decoded(Value value) {
    if constexpr (std::is_same_v<T, Value>) {
        return value;
    } else if constexpr (is_a<std::optional, T>) {
        if (value.negative()) return T();
        return decoded<typename T::value_type>(std::move(value)).transform([](auto&& inner) {
            return T(std::move(inner));
        });
    } else {
        static_assert(has_codec<T>::value || std::is_same_v<T, std::string>,
                      "get<T>(): specialise s3cache::codec<T> for this type");
        if (value.negative())
            return Error(Errc::source, "the entry says that there is nothing: get an optional of the type");
        if constexpr (has_codec<T>::value)
            return guarded([&]() -> Result<T> { return codec<T>::decode(value.view()); }, "codec::decode");
        else
            return std::move(value).str();
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
    if constexpr (is_a<Result, T> || is_a<std::optional, T>) {
        if (result) return produced(*std::forward<R>(result));
        if constexpr (is_a<Result, T>)
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
    } else {
        static_assert(
            std::is_convertible_v<R, Source>,
            "get_or_set(): the producer returns no text, bytes, Value, Source, nothing() or type with a codec");
        if constexpr (std::is_convertible_v<R, Source>) return drain(Source(std::forward<R>(result)));
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
    std::string access_key{}, secret_key{};
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
// own: a CRC-32C in metadata, written where the body is known before it goes up, and checked. store: the store's
// x-amz-checksum-* too, checked where the entry has no CRC-32C of ours. none: lengths and gzip's sums alone.
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
    // what there is; the longer computing takes the earlier. 1 is usual. (XFetch: Vattani et al. 2015.)
    double early_refresh = 0;
    Seconds stale_if_error{0};  // over zero: if the producer fails, an entry expired no longer than this is returned
    std::optional<Seconds> negative_ttl{};  // of an entry that says "nothing"; empty: SetOptions::ttl
};

// One attempt of one request, or the outcome of one operation (`attempt` 0). The views live during the callback only.
struct Event {
    std::string_view operation{};  // such as get, set, abort_upload
    std::string_view key{};
    // hit miss expired unchanged done refused retry error damaged malformed leftover; and what was made of it: stale
    // early computed waited tolerated (an error reported as a miss) unconditional (the store honours no conditions)
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
    Listing(Listing&&) noexcept = default;
    Listing& operator=(Listing&&) noexcept = default;

    Result<std::optional<Entry>> try_next();  // empty: the end

    using Iterator = detail::Iterator<Listing, Entry>;
#if S3CACHE_EXCEPTIONS
    Iterator begin() { return Iterator(*this); }
    Iterator end() { return {}; }
#endif

    explicit Listing(std::shared_ptr<detail::ListingState> state) noexcept : state_(std::move(state)) {}

private:
    std::shared_ptr<detail::ListingState> state_;
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
//   errors   try_ forms and those on many keys return them, the others throw them (or what the caller's callback threw)
class Cache {
public:
    using Key = std::string_view;

    // `where`: "bucket", or "s3://bucket/prefix?region=...&endpoint=...&path_style=true&metadata_names=hyphen". It
    // goes before `config`. Sends nothing; a malformed bucket, region or endpoint is Errc::invalid_argument.
    static Result<Cache> try_open(std::string_view where, Config config = {});

    Cache(Cache&&) noexcept = default;
    Cache& operator=(Cache&&) noexcept = default;

    // Stores the payload under the key, replacing what was there at one stroke: readers see the old value or the new.
    // False only if a write condition of the options was not met. On an error what was stored before stays; the one
    // exception is a response that got lost (Errc::network, timed_out): then either value may be there.
    Result<bool> try_set(Key key, Payload payload, const SetOptions& options = {});
    // The same from a stream of any length: one PUT if it fits Config::part_bytes, else in parts. Memory is bounded by
    // Config::transfer_bytes_max. If the source fails or throws, nothing is stored and nothing is left behind.
    Result<bool> try_set(Key key, Source source, const SetOptions& options = {});
    // The file's bytes, of any size, without holding them. A file that changes meanwhile is Errc::source; one that is
    // rewritten within its size and its times is not noticed in every case.
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
    // Removes all entries under the prefix, or the expired; how many. What fails is passed over, and told in the end.
    Result<std::uint64_t> try_clear(std::string_view prefix);
    Result<std::uint64_t> try_purge_expired(std::string_view prefix = {});
    // Aborts uploads in parts that began longer ago than this: what crashed writers left. How many.
    Result<std::uint64_t> try_sweep_uploads(std::string_view prefix, Seconds older_than);

    // Many keys over Config::connections connections at once, in no order; one result a key. These never throw, with
    // exceptions or without. Memory holds one value a connection; `visit` runs on the calling thread, must not throw.
    using Visit = std::function<void(const std::string& key, Result<std::optional<Value>> result)>;
    void get_many(const std::vector<std::string>& keys, const Visit& visit);
    std::vector<Result<bool>> set_many(const std::vector<Item>& items);  // results in the order of the items
    std::vector<Result<void>> remove_many(const std::vector<std::string>& keys);

    // A URL that lets anyone GET or PUT the key until `lifetime` (1 s to 7 days) is over, or the credentials that
    // signed it are. Sends nothing, except to find credentials. `method`: "GET" or "PUT".
    Result<std::string> try_presign(Key key, std::string_view method, Seconds lifetime);

    // The value under the key; if there is none, what `producer` returns, stored first. Of this Cache one producer runs
    // for a key at a time, and whoever asks meanwhile waits for its value or error; `how` extends that to others and to
    // other processes, and says what becomes of entries near their end. `producer` returns a std::string (text), a
    // container of bytes, a Value made of data and kind, a Source, a type with a codec, nothing(), an optional (empty:
    // a negative entry) or a Result of these. A store that cannot be reached keeps nobody from computing, and a value
    // that cannot be stored is returned all the same: either is counted and an event. A producer that asks for its own
    // key is Errc::source. SetOptions::timeout is that of the storing.
    template <class T = Value, class F>
    Result<T> try_get_or_set(Key key, F&& producer, const SetOptions& options = {}, const ComputeOptions& how = {}) {
        static_assert(detail::is_producer<F>::value,
                      "get_or_set(): the producer takes no argument and returns what to store, or nothing()");
        const auto produce = [&] {
            return detail::guarded([&] { return detail::produced(producer()); }, "the producer");
        };
        Result<Value> value = compute(key, produce, options, how);
        if (!value) return std::move(value).error();
        return detail::decoded<T>(*std::move(value)).or_else([&](const Error& error) {
            return detail::about("get_or_set", key, error);
        });
    }

    // A user's type, through codec<T>. An optional of one may say that there is nothing: a negative entry, which a get
    // of the plain type refuses (Errc::source), because it could be taken for a miss.
    template <class T>
    std::enable_if_t<detail::is_object<T>, Result<bool>> try_set(Key key, const T& value,
                                                                 const SetOptions& options = {}) {
        static_assert(detail::has_codec<T>::value,
                      "set(): give text, bytes, json(...) or a Source, or specialise s3cache::codec<T> for this type");
        Result<std::string> data = detail::encode(value);
        if (!data) return detail::about("set", key, data.error());
        return try_set(key, Payload(data->data(), data->size(), codec<T>::kind), options);
    }
    template <class T>
    Result<std::optional<T>> try_get(Key key, const GetOptions& options = {}) {
        Result<std::optional<Value>> hit = try_get(key, options);
        if (!hit) return std::move(hit).error();
        if (!*hit) return std::optional<T>();
        Result<T> value = detail::decoded<T>(*std::move(*hit));
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
    // ends with Errc::cancelled within some 0.1 s, one that takes back an upload in parts within some 1.5 s; of a set()
    // either value may then be there. Calls that begin later are not concerned. Does not wait; good in signal handlers.
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
    explicit Cache(std::shared_ptr<detail::Core> core) noexcept : core_(std::move(core)) {}
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

#include <algorithm>           // min, max
#include <array>               // digests, tables
#include <atomic>              // counters
#include <cerrno>              // why a file could not be had
#include <charconv>            // from_chars of whole numbers
#include <clocale>             // the decimal point that strtod expects
#include <cmath>               // floor, ldexp
#include <condition_variable>  // waiting for another thread's credentials or value
#include <cstdio>              // files
#include <cstring>             // memcpy, strerror
#include <istream>             // Source and Reader as streams
#include <limits>              // overflow checks
#include <list>                // what others point at, and so stays in its place
#include <mutex>               // the pool, credentials, values in flight
#include <streambuf>           // Reader::istream
#include <thread>              // sleeping, thread ids
#include <sys/stat.h>          // sizes, times and modes of files
#if !defined(_WIN32)
#include <arpa/inet.h>  // the one way to write an address
#include <csignal>      // SIGPIPE
#include <fcntl.h>      // descriptors that a child does not inherit
#include <pwd.h>        // the home directory
#include <spawn.h>      // credential_process
#include <sys/wait.h>   // a child's exit status
#include <unistd.h>     // getpid, getuid
#if defined(__APPLE__)
#include <crt_externs.h>  // the environment, as a library may see it
#else
extern char** environ;
#endif
#else
#include <io.h>  // the handle of an open file
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

// 32 ASCII bytes at a time: most values have no others, and this check runs over texts and whatever has no `kind`.
inline bool valid(std::string_view text) {
    for (std::size_t at = 0;;) {
        for (std::uint64_t words[4]; text.size() - at >= sizeof words; at += sizeof words) {
            std::memcpy(words, text.data() + at, sizeof words);
            if (((words[0] | words[1] | words[2] | words[3]) & 0x8080808080808080U) != 0) break;
        }
        if (at == text.size()) return true;
        const std::size_t length = sequence(text, at);
        if (length == 0) return false;
        at += length;
    }
}

// For code points up to U+10FFFF. Of half a surrogate pair it makes bytes that are not valid().
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
inline constexpr char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
inline constexpr bool is_alnum(char c) { return is_digit(c) || (lower(c) >= 'a' && lower(c) <= 'z'); }

inline std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out) c = lower(c);
    return out;
}

inline bool iequal(std::string_view a, std::string_view b) {
    const auto is_same = [](char x, char y) { return x == y || lower(x) == lower(y); };
    return a.size() == b.size() && (a == b || std::equal(a.begin(), a.end(), b.begin(), is_same));
}

inline bool starts_with(std::string_view text, std::string_view prefix) {
    return text.substr(0, prefix.size()) == prefix;
}

inline bool ends_with(std::string_view text, std::string_view suffix) {
    return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

// CR and LF count as blanks because header lines arrive with their line end and hand-written files may be CRLF.
inline constexpr bool is_blank(char c) { return c <= ' ' && (c == ' ' || c == '\n' || c == '\r' || c == '\t'); }

inline std::string_view trim(std::string_view text) {
    std::size_t begin = 0, end = text.size();
    while (begin < end && is_blank(text[begin])) ++begin;
    while (begin < end && is_blank(text[end - 1])) --end;
    return {text.data() + begin, end - begin};
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

// The one encoder of the library: request URL and canonical URI must come from the same text, since some stores decode
// and encode again before they check the signature. Upper-case hex for the same reason.
inline void append_percent(std::string& out, std::string_view raw, bool keep_slash) {
    for (std::size_t i = 0; i < raw.size(); ++i) {
        const char c = raw[i];
        const bool is_kept = is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~' || (keep_slash && c == '/');
        out += is_kept ? c : '%';
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
    std::uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const std::from_chars_result read = std::from_chars(text.data(), end, value);
    if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return value;
}

// Takes what stands before the first separator; what is behind it is left.
inline std::string_view cut(std::string_view& text, char separator) {
    const std::string_view piece = text.substr(0, text.find(separator));
    text.remove_prefix((std::min)(piece.size() + 1, text.size()));
    return piece;
}

using Pairs = std::vector<std::pair<std::string, std::string>>;

// One function for all who name a header, a field or a parameter: emplace_back is compiled for each type it is given.
inline void add(Pairs& to, std::string_view name, std::string_view value) {
    to.emplace_back(std::string(name), std::string(value));
}

// std::to_string brings a table of digits for each type.
inline std::string decimal(std::uint64_t value) {
    std::string out;
    for (; value != 0 || out.empty(); value /= 10) out.insert(out.begin(), static_cast<char>('0' + value % 10));
    return out;
}
// Of what is not below zero.
template <class Integer>
std::string number(Integer value) {
    return decimal(static_cast<std::uint64_t>(value));
}

// A sum of strings is compiled anew for each of them.
using Words = std::initializer_list<std::string_view>;
inline std::string joined(Words words) {
    std::string out;
    for (const std::string_view word : words) out += word;
    return out;
}

// To be called where `text` ends before an '@': hides what stands before it in the same word if that may be the user
// info of a URL or a proxy. A secret key may hold a slash, so what looks like host:port and is none is hidden too.
inline void hide_user_info(std::string& text) {
    const std::size_t word = text.find_last_of(" \t\r\n\"'`<>") + 1;  // npos + 1 is 0
    const std::size_t scheme = text.find("://", word);
    const bool is_url = scheme != std::string::npos;
    const std::size_t begin = is_url ? text.rfind("://") + 3 : word;
    const std::size_t colon = text.find(':', begin), slash = text.find('/', begin);
    const bool has_port = text.find_first_not_of("0123456789", colon + 1) >= slash &&
                          !ends_with(std::string_view(text).substr(0, begin), "s3://");
    const bool is_user_info =
        slash == std::string::npos ? is_url || colon != slash : is_url && colon < slash && !has_port;
    if (is_user_info) text.replace(begin, std::string::npos, "******");
}

inline std::string without_passwords(std::string_view text) {
    std::string out;
    for (char c : text) {
        if (c == '@') hide_user_info(out);
        out += c;
    }
    return out;
}

inline constexpr std::size_t sanitized_bytes_max = 300;

// Foreign text in a message: one short line, no passwords of URLs. Bytes a terminal obeys or no UTF-8 become \xNN.
inline std::string sanitize(std::string_view text) {
    const std::string known = without_passwords(text.substr(0, 10 * sanitized_bytes_max));  // all up to an '@' is seen
    std::string out;
    for (std::size_t at = 0, length = 0; at < known.size(); at += length) {
        length = (std::max)(utf8::sequence(known, at), std::size_t{1});
        std::string piece = known.substr(at, length);
        const unsigned char first = octet(piece[0]);
        const bool is_control = first < 0x20 || first == 0x7F || (first == 0xC2 && octet(piece.back()) < 0xA0);
        if (is_control || (length == 1 && first >= 0x80)) {
            length = 1;  // the second byte of a control character is none that begins one
            piece = "\\x" + hex(known.substr(at, 1));
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

// CPython gives up at 995 levels (3.8 to 3.11) with no ValueError; a little less is readable as text on both sides.
inline constexpr std::size_t depth_levels_max = 990;

// CPython refuses longer integers because converting them takes quadratic time. Floats have no such limit.
inline constexpr std::size_t integer_digits_max = 4300;

// Walks a text that is known to be UTF-8. The functions stop after what they took; false: the text is not JSON.
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

    // A string, and what it stands for. Half a surrogate pair is not UTF-8; replaced, it would change a secret.
    bool string(std::string* meant = nullptr) {
        if (!take('"')) return false;
        while (!at_end()) {
            const char c = text_[at_++];
            if (c == '"') return true;
            if (bytes::octet(c) < 0x20 || (c == '\\' && !character(meant))) return false;
            if (c != '\\' && meant) *meant += c;
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
    // After a backslash: an escape, or a pair of them for what UTF-16 has in two halves.
    bool character(std::string* meant) {
        const auto unit = escape();
        if (!unit) return false;
        std::uint32_t code = *unit;
        const std::size_t after = at_;
        if (code >= 0xD800 && code <= 0xDBFF) {
            const std::uint32_t low = take('\\') ? escape().value_or(0) : 0;
            if (low >= 0xDC00 && low <= 0xDFFF)
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            else
                at_ = after;
        }
        if (meant) utf8::append(*meant, code);
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
        const std::size_t integer = digits(), end = at_;
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

// The raw text of a top-level member's value. Among members of one name the last wins, as in Python; empty if the
// text is not a JSON object or has no such member, and a value is never empty.
inline std::string_view member(std::string_view object, std::string_view name) {
    std::string_view found;
    Scanner scanner(object);
    if (!scanner.take_after_blanks('{') || !valid(object)) return found;
    do {
        scanner.blanks();
        std::string key;
        if (!scanner.string(&key)) return found;  // the object is empty
        scanner.take_after_blanks(':');
        scanner.blanks();
        const std::size_t value = scanner.position();
        scanner.value();
        if (key == name) found = object.substr(value, scanner.position() - value);
    } while (scanner.take_after_blanks(','));
    return found;
}

// Meant for the small answers of credential services, not for values of any size.
inline std::optional<std::string> string_field(std::string_view object, std::string_view name) {
    std::string text;
    if (!Scanner(member(object, name)).string(&text) || !utf8::valid(text)) return std::nullopt;
    return text;
}

}  // namespace detail::json

// --- dates: times as S3, HTTP and the Python class write them. No clock, no locale, no struct tm.

namespace detail::dates {

inline constexpr std::int64_t seconds_per_day = 86400;
inline constexpr std::int64_t ticks_per_second = TimePoint::period::den / TimePoint::period::num;

// In a pattern the digit n stands for a digit of Part n (0000-11-22: a date), any other character for itself.
enum Part : std::size_t { year, month, day, hour, minute, second, offset_hour, offset_minute, parts };

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

// A day that is not in the calendar comes back as another one. 60 is a leap second: as in POSIX, the next minute's 0.
inline bool is_real(const Parts& time) {
    const Parts same = parts_of(days_since_epoch(time[year], time[month], time[day]) * seconds_per_day);
    return time[year] >= 1 && time[month] == same[month] && time[day] == same[day] && time[hour] <= 23 &&
           time[minute] <= 59 && time[second] <= 60 && time[offset_hour] <= 23 && time[offset_minute] <= 59;
}

// The clock may count nanoseconds in 64 bits, which ends in 2262: what lies outside becomes the nearest end, so that
// credentials valid until the year 9999 are valid for long, and not expired.
inline TimePoint clamped(std::int64_t seconds, std::int64_t nanoseconds) {
    constexpr std::int64_t seconds_max = (TimePoint::duration::max)().count() / ticks_per_second;
    if (seconds >= seconds_max) return (TimePoint::max)();
    if (seconds < -seconds_max) return (TimePoint::min)();
    return TimePoint(TimePoint::duration(seconds * ticks_per_second + nanoseconds / (1000000000 / ticks_per_second)));
}

inline TimePoint to_time_point(double unix_seconds) {
    constexpr double most = 9e18;  // fits in 64 bits, and is past the end of every clock
    const double bounded = (std::max)(-most, (std::min)(most, unix_seconds)), whole = std::floor(bounded);
    return clamped(static_cast<std::int64_t>(whole), static_cast<std::int64_t>((bounded - whole) * 1e9));
}

inline std::int64_t unix_seconds(TimePoint when) { return when.time_since_epoch().count() / ticks_per_second; }

class Scanner {
public:
    explicit Scanner(std::string_view text) : rest_(bytes::trim(text)) {}

    // Takes what the pattern shows, or nothing.
    bool take(std::string_view pattern) {
        if (rest_.size() < pattern.size()) return false;
        Parts read = parts_;
        for (std::size_t i = 0; i < pattern.size(); ++i) {
            const bool is_part = bytes::is_digit(pattern[i]);
            if (is_part ? !bytes::is_digit(rest_[i]) : rest_[i] != pattern[i]) return false;
            if (!is_part) continue;
            std::int64_t& part = read[static_cast<std::size_t>(pattern[i] - '0')];
            part = part * 10 + (rest_[i] - '0');
        }
        parts_ = read;
        rest_.remove_prefix(pattern.size());
        return true;
    }

    // One of names of three letters each, as the month: a weekday's number is not kept.
    bool take_name(std::string_view names) {
        const std::size_t at = names.find(rest_.substr(0, 3));
        if (rest_.size() < 3 || at == std::string_view::npos || at % 3 != 0) return false;
        parts_[month] = static_cast<std::int64_t>(at / 3 + 1);
        rest_.remove_prefix(3);
        return true;
    }

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
    Scanner in(text);
    if (!in.take("0000-11-22") || !(in.take("T") || in.take("t") || in.take(" ")) || !in.take("33:44:55"))
        return std::nullopt;
    if ((in.take(".") || in.take(",")) && !in.take_fraction()) return std::nullopt;
    if (in.take("Z") || in.take("z")) return in.time(0);
    const std::int64_t east = in.take("+") ? 1 : in.take("-") ? -1 : 0;
    if (east != 0 && !in.take("66:77") && !in.take("6677") && !in.take("66")) return std::nullopt;
    return in.time(east);
}

// Sun, 06 Nov 1994 08:49:37 GMT: the one form of RFC 9110 that may be sent. Some servers write UTC, or 6 for 06.
// Whether the day's name is right is not checked: it carries no information.
inline std::optional<TimePoint> http_date(std::string_view text) {
    Scanner in(text);
    const bool read = in.take_name("MonTueWedThuFriSatSun") && in.take(", ") && (in.take("22 ") || in.take("2 ")) &&
                      in.take_name("JanFebMarAprMayJunJulAugSepOctNovDec") && in.take(" 0000 33:44:55 ") &&
                      (in.take("GMT") || in.take("UTC"));
    return read ? in.time(0) : std::nullopt;
}

// Signatures and answers know four-digit years only, so times outside 1970 to 9999 become the nearest one inside.
// The form is that of x-amz-date if no other is given: 20250115T123456Z.
inline void append_utc(std::string& out, std::int64_t unix_seconds, std::string_view pattern = "00001122T334455Z") {
    constexpr std::int64_t last = (days_since_epoch(9999, 12, 31) + 1) * seconds_per_day - 1;
    Parts time = parts_of((std::max)(std::int64_t{0}, (std::min)(unix_seconds, last)));
    out += pattern;
    for (std::size_t i = 1; i <= pattern.size(); ++i) {  // from the end, where the last digits are
        char& c = out[out.size() - i];
        if (!bytes::is_digit(c)) continue;
        std::int64_t& part = time[static_cast<std::size_t>(c - '0')];
        c = static_cast<char>('0' + part % 10);
        part /= 10;
    }
}

inline std::string iso8601_text(TimePoint when) {
    std::string out;
    append_utc(out, unix_seconds(when), "0000-11-22T33:44:55Z");
    return out;
}

// Python's float(text) of a plain decimal number; empty where that raises, and for its underscores and the digits of
// other scripts. May be infinite or nan: what those mean for an entry is the caller's to decide. strtod takes the
// program's decimal point, so it is given that; many libraries of C++17 programs have no from_chars for double.
inline std::optional<double> parse_float(std::string_view text) {
    constexpr std::string_view blanks = " \t\n\r\v\f";
    const std::size_t begin = (std::min)(text.find_first_not_of(blanks), text.size());
    std::string number(text.substr(begin, text.find_last_not_of(blanks) - begin + 1));
    const std::string_view word = std::string_view(number).substr(number[0] == '+' || number[0] == '-' ? 1 : 0);
    const auto may_be = [](char c) { return bytes::is_digit(c) || std::memchr(".eE+-", c, 5) != nullptr; };
    const bool is_word = bytes::iequal(word, "inf") || bytes::iequal(word, "infinity") || bytes::iequal(word, "nan");
    if (!is_word && !std::all_of(word.begin(), word.end(), may_be)) return std::nullopt;
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

// A digest over pieces. One OpenSSL context serves any number of digests in turn, because creating one costs more than
// hashing a small value. OpenSSL fails without memory, which is thrown, and the next digest begins anew; or because a
// FIPS setup refuses the algorithm, which is found when a cache is opened.
class Sha256 {
public:
    Sha256() = default;
    ~Sha256() { EVP_MD_CTX_free(context_); }
    Sha256(const Sha256&) = delete;

    void update(std::string_view data) {
        if (!is_begun_) begin();
        if (EVP_DigestUpdate(context_, data.data(), data.size()) != 1) fail();
    }
    // The digest of all updates since the last one.
    Sha256Digest finish() {
        Sha256Digest out;
        if (!is_begun_) begin();
        is_begun_ = false;
        if (EVP_DigestFinal_ex(context_, out.data(), nullptr) != 1) fail();
        return out;
    }
    Sha256& afresh() { return is_begun_ = false, *this; }  // whatever someone who did not come to the end has left

    // HMAC; only between two digests. OpenSSL's own interface is deprecated in one form and slow in the other.
    Sha256Digest hmac(std::string_view key, std::string_view data) {
        char block[64] = {};
        if (key.size() > sizeof block) update(key);
        const Sha256Digest hash = key.size() > sizeof block ? finish() : Sha256Digest{};
        (key.size() > sizeof block ? as_text(hash) : key).copy(block, sizeof block);
        for (char& byte : block) byte = static_cast<char>(byte ^ 0x36);
        update({block, sizeof block});
        update(data);
        const Sha256Digest inner = finish();
        for (char& byte : block) byte = static_cast<char>(byte ^ 0x36 ^ 0x5C);
        update({block, sizeof block});
        OPENSSL_cleanse(block, sizeof block);
        update(as_text(inner));
        return finish();
    }

private:
    // Naming no algorithm keeps the one in place; naming it would make OpenSSL 3 look it up again, under a lock.
    void begin() {
        if (!context_ && !(context_ = EVP_MD_CTX_new())) fail();
        is_known_ = is_begun_ = EVP_DigestInit_ex(context_, is_known_ ? nullptr : EVP_sha256(), nullptr) == 1;
        if (!is_begun_) fail();
    }
    [[noreturn]] void fail() {
        is_known_ = is_begun_ = false;
        EVP_MD_CTX_reset(context_);  // begun again, OpenSSL 1.1.1 would write to the memory that it did not get
#if S3CACHE_EXCEPTIONS
        throw std::bad_alloc();
#else
        std::abort();  // as operator new does there
#endif
    }

    EVP_MD_CTX* context_ = nullptr;
    bool is_known_ = false, is_begun_ = false;  // the algorithm is; a digest is
};

inline Sha256Digest sha256(std::string_view data) {
    Sha256 hasher;
    hasher.update(data);
    return hasher.finish();
}

// Empty where OpenSSL refuses this old algorithm, as a FIPS setup does.
inline std::string md5(std::string_view data) {
    std::string out(16, '\0');
    auto* to = reinterpret_cast<unsigned char*>(&out[0]);
    const bool ok = EVP_Digest(data.data(), data.size(), to, nullptr, EVP_md5(), nullptr) == 1;
    return ok ? out : std::string();
}

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
using SlicingTable = std::array<std::array<std::uint64_t, 256>, 8>;

inline SlicingTable slicing_table(std::uint64_t reflected_polynomial) {
    SlicingTable rows{};
    for (std::size_t i = 0; i < 8 * 256; ++i) {
        std::uint64_t crc = i < 256 ? i : rows[i / 256 - 1][i % 256];
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? reflected_polynomial : 0);
        rows[i / 256][i % 256] = crc;
    }
    return rows;
}

template <class Word, std::uint64_t reflected_polynomial>
Word crc_by_table(Word before, const char* data, std::size_t size) {
    static const SlicingTable rows = slicing_table(reflected_polynomial);
    std::uint64_t crc = static_cast<Word>(~before);  // the register holds the complement of the checksum
    for (; size >= 8; data += 8, size -= 8) {
        const std::uint64_t word = load_little_endian(data) ^ crc;
        crc = 0;
        for (std::size_t i = 0; i < 8; ++i) crc ^= rows[7 - i][(word >> (8 * i)) & 0xFF];
    }
    for (; size > 0; ++data, --size) crc = (crc >> 8) ^ rows[0][(crc ^ bytes::octet(*data)) & 0xFF];
    return static_cast<Word>(~crc);
}

inline constexpr auto crc64nvme = crc_by_table<std::uint64_t, 0x9A6C9329AC4BC9B5>;  // of the NVMe specification
inline constexpr auto crc32 = crc_by_table<std::uint32_t, 0xEDB88320>;              // zlib's
inline constexpr auto crc32c_portable = crc_by_table<std::uint32_t, 0x82F63B78>;    // Castagnoli's

// The processor's instruction is seven times faster than the table, three lanes twice that: one alone waits 3 cycles.
#if defined(__x86_64__) && defined(__GNUC__)

inline constexpr std::size_t crc_lane_bytes = 1360;  // three are nearly 4 KiB

// The CRC if as many zeros as a lane has bytes followed: times x^(8 * 1360), of which the instruction does x^32 and the
// product of two reflected numbers x. The attribute gives these two the instructions, and not all of the program.
__attribute__((target("sse4.2,pclmul"))) inline std::uint64_t skip_crc_lane(std::uint64_t crc) {
    using Pair = long long __attribute__((vector_size(16)));
    const Pair product = __builtin_ia32_pclmulqdq128(Pair{static_cast<long long>(crc), 0}, Pair{0x3F70CC6F, 0}, 0);
    return __builtin_ia32_crc32di(0, static_cast<std::uint64_t>(product[0]));
}

__attribute__((target("sse4.2,pclmul"))) inline std::uint32_t crc32c_hardware(std::uint32_t crc, const char* data,
                                                                              std::size_t size) {
    std::uint64_t wide = ~crc;
    for (constexpr std::size_t lane = crc_lane_bytes; size >= 3 * lane; data += 3 * lane, size -= 3 * lane) {
        std::uint64_t second = 0, third = 0;
        for (const char* at = data; at != data + lane; at += 8) {
            wide = __builtin_ia32_crc32di(wide, load_little_endian(at));
            second = __builtin_ia32_crc32di(second, load_little_endian(at + lane));
            third = __builtin_ia32_crc32di(third, load_little_endian(at + 2 * lane));
        }
        wide = skip_crc_lane(skip_crc_lane(wide) ^ second) ^ third;
    }
    for (; size >= 8; data += 8, size -= 8) wide = __builtin_ia32_crc32di(wide, load_little_endian(data));
    crc = static_cast<std::uint32_t>(wide);
    for (; size > 0; ++data, --size) crc = __builtin_ia32_crc32qi(crc, bytes::octet(*data));
    return ~crc;
}

inline std::uint32_t crc32c(std::uint32_t crc, const char* data, std::size_t size) {
    // __builtin_cpu_supports says it too, but brings 5 KiB of code into every program; <cpuid.h> of g++ 10 must not be
    // included twice, and a program may include it too.
    static const bool has_hardware = [] {
        unsigned a = 1, b = 0, c = 0, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return (c >> 20 & 1) != 0 && (c >> 1 & 1) != 0;
    }();
    return has_hardware ? crc32c_hardware(crc, data, size) : crc32c_portable(crc, data, size);
}

#else

inline constexpr auto crc32c = crc32c_portable;

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

// What Inflater and Deflater share: a stream of zlib's, and the input that it has not taken yet. Their pull() writes to
// `out` and returns how many bytes. Fewer than `capacity`: no input is left, the stream has ended, or it has a problem.
class Filter {
public:
    // Borrowed until pull() does not fill its buffer.
    void feed(std::string_view input) { input_ = input; }

    // Null while all is well. A failed allocation is a problem like any other.
    const char* problem() const { return problem_; }

protected:
    explicit Filter(int (*end)(z_stream*)) : end_(end) {}
    ~Filter() { end_(&stream_); }    // which passes over a stream that was never begun
    Filter(const Filter&) = delete;  // zlib's state points back at its z_stream

    // Takes what a function of zlib's returned.
    void check(int result) {
        if (result == Z_MEM_ERROR)
            problem_ = "zlib has no memory";
        else if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
            problem_ = stream_.msg != nullptr ? stream_.msg : "zlib reports an error";
    }

    // From the input straight into the caller's buffer, until the stream ends (true), the buffer is full, the input is
    // used up or something is wrong. zlib counts in 32 bits, so that long pieces take several steps.
    bool run(int (*step)(z_stream*, int), int flush, char* out, std::size_t capacity, std::size_t& produced) {
        constexpr std::size_t most = (std::numeric_limits<uInt>::max)();
        int result = Z_OK;
        while (result == Z_OK && problem_ == nullptr && produced < capacity) {
            // zlib's pointer is mutable unless ZLIB_CONST is set before its header, which the including file decides.
            stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(input_.data()));
            stream_.avail_in = static_cast<uInt>((std::min)(input_.size(), most));
            stream_.next_out = reinterpret_cast<Bytef*>(out + produced);
            stream_.avail_out = static_cast<uInt>((std::min)(capacity - produced, most));
            const std::size_t offered = stream_.avail_in, room = stream_.avail_out;
            result = step(&stream_, offered < input_.size() ? Z_NO_FLUSH : flush);
            check(result);
            input_.remove_prefix(offered - stream_.avail_in);
            produced += room - stream_.avail_out;
        }
        return result == Z_STREAM_END;
    }

    int (*const end_)(z_stream*);
    z_stream stream_{};
    std::string_view input_{};
    const char* problem_ = nullptr;
};

// Members one after the other, with zeros between and behind them, as Python's gzip module takes them.
class Inflater : public Filter {
public:
    Inflater() : Filter(inflateEnd) {}

    // A member's last bytes are given out before its checksum is known.
    std::size_t pull(char* out, std::size_t capacity) {
        std::size_t produced = 0;
        while (produced < capacity && begin_member() && run(inflate, Z_NO_FLUSH, out, capacity, produced)) {
            in_member_ = false;
        }
        return produced;
    }

    // To be called at the end of the input. False: that is too early. No input at all is an empty value.
    bool end_of_input() {
        if (in_member_ && problem_ == nullptr) problem_ = "cut short";
        return problem_ == nullptr;
    }

private:
    // False: no input is there to begin a member with, or a problem.
    bool begin_member() {
        if (in_member_ || problem_ != nullptr) return problem_ == nullptr;
        const bool is_first = stream_.state == nullptr;
        if (!is_first) input_.remove_prefix((std::min)(input_.find_first_not_of('\0'), input_.size()));
        if (input_.empty()) return false;
        in_member_ = true;
        check(is_first ? inflateInit2(&stream_, 16 + MAX_WBITS) : inflateReset(&stream_));
        return problem_ == nullptr;
    }

    bool in_member_ = false;
};

// Writes one member. Time 0 and system 255 ("unknown"), so that equal values give equal bytes on every machine.
class Deflater : public Filter {
public:
    explicit Deflater(int level) : Filter(deflateEnd), level_(level) {}

    // No input will follow: pull() until is_finished().
    void finish() { flush_ = Z_FINISH; }
    bool is_finished() const { return is_finished_; }

    std::size_t pull(char* out, std::size_t capacity) {
        if (stream_.state == nullptr && problem_ == nullptr) begin();
        std::size_t produced = 0;
        is_finished_ = is_finished_ || run(deflate, flush_, out, capacity, produced);
        return produced;
    }

private:
    void begin() {
        header_.os = 255;
        constexpr int memory_level = 8;  // zlib's default
        check(deflateInit2(&stream_, level_, Z_DEFLATED, 16 + MAX_WBITS, memory_level, Z_DEFAULT_STRATEGY));
        if (problem_ == nullptr) check(deflateSetHeader(&stream_, &header_));
    }

    const int level_;
    gz_header header_{};  // which zlib only reads
    int flush_ = Z_NO_FLUSH;
    bool is_finished_ = false;
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

// What stands for a character that markup would be taken for, or that would arrive as a line feed.
struct Entity {
    char meant;
    std::string_view name;
};
inline constexpr Entity entities[] = {{'&', "amp"},  {'<', "lt"},    {'>', "gt"},
                                      {'"', "quot"}, {'\'', "apos"}, {'\r', "#13"}};

// Appends what "&name;" stands for. False: only numbers and the five entities that need no DTD stand for something.
inline bool append_reference(std::string& out, std::string_view name) {
    std::uint32_t code = 0;
    for (const Entity& entity : entities) {
        if (name == entity.name) code = bytes::octet(entity.meant);
    }
    const int base = bytes::starts_with(name, "#x") ? 16 : 10;
    const std::string_view digits = bytes::starts_with(name, "#") ? name.substr(base == 16 ? 2 : 1) : "";
    for (char c : code == 0 ? digits : "") {
        const int digit = bytes::hex_value(c);
        if (digit < 0 || digit >= base || code > 0x10FFFF) return false;
        code = code * static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(digit);
    }
    std::string character;
    utf8::append(character, code);
    out += character;
    return code <= 0x10FFFF && representable(character);
}

// Writes `mark` over what XML cannot hold, be it a byte or a reference. True: there was some.
inline bool mark_illegal(std::string& text, char mark) {
    bool found = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        std::size_t size = bytes::octet(text[i]) < 0x20 && !bytes::is_blank(text[i]) ? 1 : 0;
        const std::string_view ahead = std::string_view(text).substr(i, 16);
        const std::size_t end = bytes::starts_with(ahead, "&#") ? ahead.find(';') : ahead.npos;
        std::string meant;
        if (end != ahead.npos && !append_reference(meant, ahead.substr(1, end - 1))) size = end + 1;
        text.replace(i, size, size, mark);
        found = found || size != 0;
    }
    return found;
}

inline void escape(std::string& out, std::string_view text) {
    for (char c : text) {
        std::string_view name;
        for (const Entity& entity : entities) {
            if (entity.meant == c) name = entity.name;
        }
        if (name.empty())
            out += c;
        else
            out.append(1, '&').append(name).append(1, ';');
    }
}

// Where an element's text goes. Known by the whole path below the root, not by name: stores nest keys in their own.
struct Field {
    std::string_view path;  // such as Contents/Key
    std::string* to;
    bool exact = false;  // keys and tokens keep blanks at their ends
};

// Walks the elements of one document and fills its fields. Attributes, comments and processing instructions are stepped
// over, namespace prefixes dropped, because stores disagree on them. A DTD is refused: attacks need entities of theirs.
class Scanner {
public:
    explicit Scanner(std::string_view document)
        : rest_(document), damaged_(document.size() > document_bytes_max || !representable(document)) {
        take("\xEF\xBB\xBF");
        rest_ = bytes::trim(rest_);  // blanks before the declaration keep a slow CompleteMultipartUpload alive
    }

    // Goes on to the end of the next element, children before parents. False: there is none, or damage.
    bool next(std::initializer_list<Field> fields = {}) {
        if (closing_) {
            text_.clear();
            --depth_;
            path_.resize(path_.rfind('/'));
        }
        closing_ = false;
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
        for (const Field& field : fields) {
            if (closing_ && field.path == path() && field.to->empty())
                *field.to = field.exact ? text_ : bytes::trim(text_);
        }
        return closing_;
    }

    // To the end of the document. False: it is not well-formed, and nothing of what was read may be believed.
    bool finish(std::initializer_list<Field> fields = {}) {
        while (next(fields)) continue;
        return whole();
    }
    bool whole() const { return !damaged_ && rest_.empty() && depth_ == 0 && !root_.empty(); }

    std::string_view root() const { return root_; }
    // The element that ends here, by its path below the root; the root itself has the empty path.
    std::string_view path() const { return std::string_view(path_).substr((std::min)(root_.size() + 2, path_.size())); }
    // What stood since the last tag, decoded: the content of an element without children.
    const std::string& text() const { return text_; }

private:
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
        append_raw(rest_.substr(0, rest_.find("]]>")));
        return skip_past("]]>");
    }

    bool take_text() {
        std::string_view run = rest_.substr(0, rest_.find('<'));
        rest_.remove_prefix(run.size());
        if (depth_ == 0) return bytes::trim(run).empty();
        if (run.find("]]>") != std::string_view::npos) return false;
        for (std::size_t at = run.find('&'); at != std::string_view::npos; at = run.find('&')) {
            append_raw(run.substr(0, at));
            const std::size_t end = run.substr(at, 16).find(';');  // "&#x10FFFF;" has ten; leading zeros are legal
            if (end == std::string_view::npos || !append_reference(text_, run.substr(at + 1, end - 1))) return false;
            run.remove_prefix(at + end + 1);
        }
        append_raw(run);
        return true;
    }

    // Line ends become LF, as XML asks; a carriage return that is meant arrives as a reference.
    void append_raw(std::string_view raw) {
        for (std::size_t i = 0; i < raw.size(); ++i) {
            if (raw.substr(i, 2) != "\r\n") text_ += raw[i] == '\r' ? '\n' : raw[i];
        }
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
        while (!(closing_ = take("/>")) && !take(">")) {
            const std::string_view first = rest_.substr(0, 1);
            if (first.empty() || first == "<") return false;
            rest_.remove_prefix(1);
            if ((first == "\"" || first == "'") && !skip_past(first)) return false;  // the value of an attribute
        }
        text_.clear();
        if (depth_ == 0) root_ = name;
        path_.append(1, '/').append(name);
        ++depth_;
        return true;
    }

    bool take_end_tag() {
        const std::string_view name = take_name();
        rest_ = rest_.substr((std::min)(rest_.find_first_not_of(" \t\r\n"), rest_.size()));
        return depth_ > 0 && name == std::string_view(path_).substr(path_.rfind('/') + 1) && take(">");
    }

    std::string_view rest_;
    std::size_t depth_ = 0;  // open elements
    std::string_view root_;
    std::string path_;  // of the open elements, the root among them, each with a slash before it
    std::string text_;
    bool closing_ = false;  // the innermost open element ends where the scanner stands
    bool damaged_;
};

struct ErrorBody {
    std::string code, message, region, request_id;
};

// S3 puts <Error> at the root, STS inside <ErrorResponse>. Of anything else, such as a proxy's page, the status counts.
inline bool read_error(std::string_view document, ErrorBody& body) {
    Scanner scanner(document);
    const bool is_whole = scanner.finish({{"Code", &body.code},
                                          {"Message", &body.message},
                                          {"Region", &body.region},
                                          {"RequestId", &body.request_id},
                                          {"Error/Code", &body.code},
                                          {"Error/Message", &body.message}});
    const bool is_of_sts = scanner.root() == "ErrorResponse" && !body.code.empty();
    if (is_whole && (scanner.root() == "Error" || is_of_sts)) return true;
    body = {};
    return false;
}

// The title of an HTML page, on one line: who answered, if it was not the store. Empty: there is none.
inline std::string html_title(std::string_view page) {
    const std::string lower = bytes::lower(page.substr(0, 4096));  // a head is short; the rest may be long
    const std::size_t tag = lower.find("<title"), begin = lower.find('>', tag);
    const std::size_t end = lower.find("</title", begin);  // nothing is behind npos
    std::string title;
    if (end == std::string::npos) return title;
    for (char c : bytes::trim(page.substr(begin + 1, end - begin - 1))) {
        if (!bytes::is_blank(c) || title.back() != ' ') title += bytes::is_blank(c) ? ' ' : c;
    }
    return title;
}

// The parsers below take any root that ends in "Result", because stores vary the word before it; a well-formed page of
// a proxy must not pass for one. They return nothing for an error, and for what was cut short, is empty or is no XML.
inline bool is_result(const Scanner& scanner) { return scanner.whole() && bytes::ends_with(scanner.root(), "Result"); }

// The root may have any name but that of an error: boto3 takes what holds an UploadId, and stores rely on it.
inline std::optional<std::string> upload_id(std::string_view document) {
    std::string id;
    Scanner scanner(document);
    if (!scanner.finish({{"UploadId", &id, true}}) || id.empty() || bytes::starts_with(scanner.root(), "Error"))
        return std::nullopt;
    return id;
}

// Of CompleteMultipartUpload and CopyObject. An empty text: the store left the ETag out, which is no failure.
inline std::optional<std::string> etag_result(std::string_view document) {
    std::string etag;
    Scanner scanner(document);
    if (!scanner.finish({{"ETag", &etag}}) || !is_result(scanner)) return std::nullopt;
    return etag;
}

// Objects, unfinished uploads (whose ids and beginnings are in the places of ETag and last change), or the keys of
// DeleteObjects' errors. What was not said is empty.
struct ListPage {
    std::vector<Entry> entries;
    bool truncated = false;
    std::string next_token;  // of objects
    std::string next_key_marker, next_upload_id_marker;
};

// For a list whose names are percent-encoded. False: the key of an object is not.
inline bool decode_keys(ListPage& page, bool is_of_objects) {
    page.next_key_marker = bytes::unpercent(page.next_key_marker, true).value_or(page.next_key_marker);
    for (Entry& listed : page.entries) {
        const auto key = bytes::unpercent(listed.key, true);
        if (!key && is_of_objects) return false;
        if (key) listed.key = *key;
    }
    return true;
}

// What elements of this name say: Contents (objects), Upload or Error. Keys are encoded only if the answer says so,
// whatever was asked for. An object's key that cannot be decoded, a size that is none, and a word that does not say
// whether the list goes on spoil the page: a listing would look complete that is not. Keys and markers of uploads stay
// as they are then, because OpenStack Swift leaves its markers unencoded whatever it says of them.
inline Result<ListPage> list_result(std::string_view document, std::string_view element = "Contents") {
    const Error spoilt(Errc::protocol, "the response is no list");
    ListPage page;
    Entry entry;
    std::string size, time, encoding;
    Scanner scanner(document);
    const std::initializer_list<Field> fields = {{"Contents/Key", &entry.key, true},
                                                 {"Contents/Size", &size},
                                                 {"Contents/ETag", &entry.info.etag},
                                                 {"Contents/LastModified", &time},
                                                 {"Upload/Key", &entry.key, true},
                                                 {"Upload/Initiated", &time},
                                                 {"Upload/UploadId", &entry.info.etag, true},
                                                 {"Error/Key", &entry.key, true},
                                                 {"NextContinuationToken", &page.next_token, true},
                                                 {"NextKeyMarker", &page.next_key_marker, true},
                                                 {"NextUploadIdMarker", &page.next_upload_id_marker, true},
                                                 {"EncodingType", &encoding}};
    while (scanner.next(fields)) {
        if (scanner.path() == element) {
            const auto count = bytes::to_u64(size.empty() ? "0" : size);
            if (!count) return spoilt;
            entry.info.size = *count;
            entry.info.last_modified = dates::iso8601(time).value_or(TimePoint());
            page.entries.push_back(std::move(entry));
        }
        if (scanner.path().find('/') == std::string_view::npos) {
            entry = {};
            size = time = {};
        }
        if (scanner.path() != "IsTruncated") continue;
        const std::string_view word = bytes::trim(scanner.text());
        page.truncated = bytes::iequal(word, "true") || word == "1";
        if (!page.truncated && !bytes::iequal(word, "false") && word != "0") return spoilt;
    }
    const bool is_of_objects = element == "Contents";
    if (!is_result(scanner) || (is_of_objects && !bytes::starts_with(scanner.root(), "ListBucket"))) return spoilt;
    if (encoding == "url" && !decode_keys(page, is_of_objects)) return spoilt;
    return page;
}

}  // namespace detail::xml

// --- ini: the config and credentials files of the AWS tools. Text comes in, sections go out: nothing is opened here.

namespace detail::ini {

// A thousand profiles fit. Names are looked for one by one, hence the next two limits; each section gets a copy of what
// [DEFAULT] sets, hence the last, which counts the copies.
inline constexpr std::size_t file_bytes_max = 1024 * 1024, sections_max = 10000, settings_max = 1000;
inline constexpr std::size_t defaults_max = 100000;

struct Section {
    std::string name{};
    bytes::Pairs settings{};  // raw: quotes, '%' and '#' stay; continuation lines are joined by a line feed

    ~Section() {
        for (auto& setting : settings) bytes::wipe(setting.second);  // which may be a secret
    }

    const std::string* find(std::string_view setting) const {
        for (const auto& [own, text] : settings) {
            if (own == setting) return &text;
        }
        return nullptr;
    }
};

using File = std::list<Section>;  // in the order of the file

using bytes::trim;

// The dialect of Python's RawConfigParser, as strict: what boto3 refuses must not work here with other settings.
class Parser {
public:
    // `file_name` is for messages, which begin with "NAME:LINE: " and hold no value of a setting.
    Result<File> parse(std::string_view text, const std::string& file_name) {
        if (text.size() > file_bytes_max) fail("the file is larger than a configuration file can be");
        while (!text.empty() && problem_.empty()) {
            const std::size_t end = (std::min)(text.find_first_of("\r\n"), text.size());
            ++line_;
            take_line(text.substr(0, end));
            text.remove_prefix((std::min)(end + (text.substr(end, 2) == "\r\n" ? 2 : 1), text.size()));
        }
        if (problem_.empty() && sections_.size() * defaults_.settings.size() > defaults_max)
            fail("too many settings in [DEFAULT] for so many sections");
        for (Section& section : sections_) {
            for (const auto& [name, value] : defaults_.settings) {
                if (problem_.empty() && !section.find(name)) bytes::add(section.settings, name, value);
            }
        }
        if (problem_.empty()) return std::move(sections_);
        return Error(Errc::credentials, bytes::joined({file_name, ":", bytes::number(line_), ": ", problem_}));
    }

private:
    void take_line(std::string_view line) {
        if (!utf8::valid(line)) return fail("not UTF-8 text");
        const std::string_view value = trim(line);
        if (!value.empty() && (value.front() == '#' || value.front() == ';')) return;
        const std::size_t indent = static_cast<std::size_t>(value.data() - line.data());
        if (in_setting_ && (value.empty() || indent > indent_)) return continue_setting(value);
        if (value.empty()) return;
        indent_ = indent;
        // As in Python, what follows the last ']' is ignored, because a comment may stand there.
        const std::size_t end = value.front() == '[' ? value.rfind(']') : std::string_view::npos;
        if (end != std::string_view::npos && end > 1) return begin_section(value.substr(1, end - 1));
        if (section_ == nullptr) return fail("a setting before the first [section]");
        take_setting(value);
    }

    void begin_section(std::string_view name) {
        in_setting_ = false;
        section_ = &defaults_;
        if (name == "DEFAULT") return;
        for (const Section& section : sections_) {
            if (section.name == name) return fail(bytes::joined({"section [", bytes::sanitize(name), "] comes twice"}));
        }
        if (sections_.size() == sections_max) return fail("too many sections for a configuration file");
        section_ = &sections_.emplace_back();
        section_->name = name;
    }

    void take_setting(std::string_view line) {
        const std::size_t delimiter = line.find_first_of("=:");
        if (delimiter == std::string_view::npos) return fail("a line without '=' or ':'");
        const std::string name = bytes::lower(trim(line.substr(0, delimiter)));
        if (name.empty()) return fail("a setting without a name");
        if (section_->find(name))
            return fail(bytes::joined({"setting '", bytes::sanitize(name), "' comes twice in its section"}));
        if (section_->settings.size() == settings_max) return fail("too many settings in one section");
        bytes::add(section_->settings, name, trim(line.substr(delimiter + 1)));
        in_setting_ = true;
        blank_lines_ = 0;
    }

    // Blank lines count only if another line follows. A value that begins on its setting's next line is a block.
    void continue_setting(std::string_view line) {
        if (line.empty()) return static_cast<void>(++blank_lines_);
        auto& [name, text] = section_->settings.back();
        text.append(1 + std::exchange(blank_lines_, 0), '\n').append(line);
        if (text[0] == '\n' && line.find('=') == std::string_view::npos)
            fail(bytes::joined({"a line without '=' in the block under '", bytes::sanitize(name), "'"}));
    }

    void fail(std::string problem) { problem_ = std::move(problem); }

    File sections_;
    Section defaults_;
    Section* section_ = nullptr;
    bool in_setting_ = false;  // the section's last, which an indented line would continue
    std::size_t indent_ = 0, blank_lines_ = 0;
    std::size_t line_ = 0;  // counted from 1
    std::string problem_;
};

// Words as a POSIX shell splits them, nothing expanded: section names, credential_process. Empty: a quote left open.
inline std::vector<std::string> split_words(std::string_view text) {
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
        if (escapes && i + 1 == text.size()) return {};
        const bool is_escaped = escapes && (quote == '\0' || text[i + 1] == '"' || text[i + 1] == '\\');
        const bool is_quote = quote != '\0' ? c == quote : c == '"' || c == '\'';
        if (is_quote)
            quote = quote != '\0' ? '\0' : c;
        else
            words.back() += is_escaped ? text[++i] : c;
    }
    if (quote != '\0') words.clear();
    return words;
}

// The section [KIND NAME] of a config file, such as [profile dev] or [services "my own"]; of a credentials file, whose
// `kind` is empty, [NAME]. As in botocore the first word need only begin with the kind, and of two the later counts.
inline const Section* find_section(const File& file, std::string_view kind, std::string_view name) {
    const Section* found = nullptr;
    for (const Section& section : file) {
        const bool is_default = kind != "services" && name == "default" && trim(section.name) == name;
        const auto words = split_words(kind.empty() ? "" : section.name);
        const bool is_named = words.size() == 2 && words[1] == name && bytes::starts_with(section.name, kind);
        if (is_default || is_named || (kind.empty() && section.name == name)) found = &section;
    }
    return found;
}

// A name's last value in a block, which is the text of a setting. Empty: it has none there, or that is no block.
inline std::string find_in_block(std::string_view text, std::string_view name) {
    std::string_view found;
    while (bytes::starts_with(text, "\n")) {
        text.remove_prefix(1);
        std::string_view value = text.substr(0, text.find('\n'));
        text.remove_prefix(value.size());
        if (trim(bytes::cut(value, '=')) == name) found = trim(value);
    }
    return std::string(found);
}

// What the two files say about one profile. Settings of the credentials file win; keys are taken from one file or the
// other, never half from each, so the sections stay apart.
struct Profile {
    const Section* credentials = nullptr;
    const Section* config = nullptr;
    std::string name{};
    std::string where{};  // for messages

    bool exists() const { return credentials != nullptr || config != nullptr; }
    const std::string* find(std::string_view setting) const {
        const std::string* found = credentials ? credentials->find(setting) : nullptr;
        return !found && config ? config->find(setting) : found;
    }
    bool has(std::string_view setting) const { return find(setting) != nullptr; }
    std::string get(std::string_view setting) const {
        const std::string* found = find(setting);
        return found && !bytes::starts_with(*found, "\n") ? *found : std::string();  // no block
    }
    bool assumes_role() const { return has("role_arn") && !has("web_identity_token_file"); }
    bool has_static_keys() const { return has("aws_access_key_id") || has("aws_secret_access_key"); }
};

inline Profile find_profile(const File& config, const File& credentials, const std::string& name) {
    return {find_section(credentials, "", name), find_section(config, "profile", name), name,
            "profile " + bytes::sanitize(name)};
}

}  // namespace detail::ini

// --- endpoint: bucket, region and options to scheme, host and path; where a cache lives, as text.

namespace detail::endpoint {

// Buckets of us-east-1 from before 2018 may have names this long; every other store stops at 63.
inline constexpr std::size_t bucket_bytes_max = 255;

struct Url {
    std::string scheme;
    std::string host;  // lower case, with its port unless that is the scheme's own: exactly what is signed and sent
    std::string path;  // encoded as we encode keys, without a slash at its end
    bool is_address = false;
};

struct Endpoint : Url {  // the path ends with the bucket, unless the host begins with it
    std::string signing_region;
    bool path_style;

    std::string url() const { return scheme + "://" + host + path; }
};

inline Error refuse(bytes::Words problem) { return Error(Errc::invalid_argument, bytes::joined(problem)); }

inline bool only(std::string_view text, std::string_view others) {
    for (char c : text) {
        if (!bytes::is_alnum(c) && others.find(c) == std::string_view::npos) return false;
    }
    return true;
}

// Any label of a host will do, because stores have regions of their own ("auto", "garage"). More than that would let a
// region from the environment choose the host that requests are sent to.
inline bool valid_region(std::string_view region) {
    return !region.empty() && region.size() <= 63 && region.front() != '-' && region.back() != '-' && only(region, "-");
}

// S3's own rule for the ends and the length; what is between them older buckets and other stores take more freely.
inline bool valid_bucket(std::string_view bucket) {
    return bucket.size() >= 3 && bucket.size() <= bucket_bytes_max && bytes::is_alnum(bucket.front()) &&
           bytes::is_alnum(bucket.back()) && only(bucket, ".-_");
}

struct Partition {
    std::string_view region_prefix, suffix;
};

// The last entry is also for names nobody has heard of yet. By prefix, because AWS adds regions, and hardly partitions.
inline constexpr Partition partitions[] = {
    {"cn-", "amazonaws.com.cn"},    {"us-iso-", "c2s.ic.gov"},      {"us-isob-", "sc2s.sgov.gov"},
    {"eu-isoe-", "cloud.adc-e.uk"}, {"us-isof-", "csp.hci.ic.gov"}, {"eusc-de-", "amazonaws.eu"},
    {"", "amazonaws.com"},
};

inline const Partition& partition_of(std::string_view region) {
    const Partition* found = partitions;
    while (!bytes::starts_with(region, found->region_prefix) ||
           !(found->region_prefix.empty() || bytes::is_digit(region.back())))
        ++found;
    return *found;
}

inline bool is_aws_host(std::string_view host) {
    bool is_aws = bytes::ends_with(host, ".api.aws");
    for (const Partition& partition : partitions)
        is_aws |= bytes::ends_with(host, bytes::joined({".", partition.suffix}));
    return is_aws;
}

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
    return bracketed ? bytes::joined({"[", plain, "]"}) : plain;
}

// "host", "host:port" or "[address]:port", as it is signed and sent; an '@' is refused with every other odd byte, so no
// password gets into a URL. '_' as in the names of Docker.
inline bool parse_authority(std::string_view authority, Url& url) {
    const std::size_t bracket = authority.rfind(']') + 1;  // 0: there is none
    const std::size_t end = (std::min)(authority.find(':', bracket), authority.size());
    url.host = bytes::lower(authority.substr(0, end));
    const std::string_view last = std::string_view(url.host).substr(url.host.rfind('.') + 1);
    const bool is_hexadecimal =
        bytes::starts_with(last, "0x") && last.find_first_not_of("0123456789abcdef", 2) == std::string_view::npos;
    const bool is_decimal = !last.empty() && last.find_first_not_of("0123456789") == std::string_view::npos;
    url.is_address = bracket != 0 || is_hexadecimal || is_decimal;
    if (url.is_address)
        url.host = plain_address(url.host);
    else if (!only(url.host, "-._"))
        return false;
    const std::string_view port = authority.substr(end);
    if (url.host.empty()) return false;
    if (port.empty() || port == ":") return true;  // "host:" is legal and means the default
    const std::uint64_t number = bytes::to_u64(port.substr(1)).value_or(0);
    if (number == 0 || number > 65535) return false;
    if (number != (url.scheme == "https" ? 443 : 80)) url.host.append(1, ':').append(bytes::number(number));
    return true;
}

inline Result<Url> parse_url(std::string_view text) {
    const Error malformed = refuse(
        {"the endpoint is not of the form http[s]://host[:port][/path], with a name, four numbers or [an IPv6 address] "
         "as host, without user, query, fragment or blanks"});
    for (char c : text) {
        if (bytes::octet(c) <= ' ' || c == 0x7F || c == '?' || c == '#') return malformed;
    }
    const std::size_t colon = text.find("://");
    if (colon == std::string_view::npos) return malformed;
    Url url;
    url.scheme = bytes::lower(text.substr(0, colon));
    if (url.scheme != "http" && url.scheme != "https") return malformed;
    text.remove_prefix(colon + 3);
    const std::size_t slash = (std::min)(text.find('/'), text.size());
    if (!parse_authority(text.substr(0, slash), url)) return malformed;
    // Decoded and encoded again, so that URL and canonical path agree on stores that do the same before they verify.
    const auto path = bytes::unpercent(text.substr(slash), false);
    if (!path) return malformed;
    bytes::append_percent(url.path, std::string_view(*path).substr(0, path->find_last_not_of('/') + 1), true);
    return url;
}

// The host of AWS itself: s3[-fips][.dualstack].region.suffix. "aws-global" stands for "no region in the host".
inline Url aws_url(const std::string& region, bool is_global, const Config& config) {
    Url url{"https", config.accelerate ? "s3-accelerate" : config.fips ? "s3-fips" : "s3", {}};
    if (config.dual_stack) url.host += ".dualstack";
    const bool names_region = !config.accelerate && (!is_global || config.fips || config.dual_stack);
    if (names_region) url.host.append(1, '.').append(region);
    url.host = bytes::lower(url.host.append(1, '.').append(partition_of(region).suffix));
    return url;
}

// Whether the bucket can be the first part of the host. Lower case only, because hosts don't tell the difference; no
// four numbers, because they are an address whatever their size. A wildcard certificate covers one label, so dots in
// the bucket need plain http; an address takes no label at all.
inline bool use_virtual_host(const std::string& bucket, Addressing addressing, const Url& base, bool is_custom) {
    if (addressing == Addressing::path || base.is_address) return false;
    if (addressing == Addressing::automatic && is_custom) return false;
    std::size_t labels = 0;
    for (std::string_view rest = bucket; !rest.empty(); ++labels) {
        if (!valid_region(bytes::cut(rest, '.'))) return false;  // which is any label
    }
    if (labels > 1 && !(is_custom && base.scheme == "http")) return false;
    if (labels == 4 && bucket.find_first_not_of("0123456789.") == std::string::npos) return false;
    return bucket.size() >= 3 && bucket == bytes::lower(bucket);
}

// `url` is the store's own; empty: AWS. Region and endpoint of `config` do not count: they may come from elsewhere.
inline Result<Endpoint> resolve(const std::string& bucket, const std::string& named_region, const std::string& url,
                                const Config& config) {
    if (!valid_region(named_region))
        return refuse({"'", bytes::sanitize(named_region), "' is not the name of a region"});
    const bool is_global = named_region == "aws-global";
    const std::string region = is_global ? "us-east-1" : named_region;
    // Combinations that AWS does not run.
    if (!url.empty() && (config.dual_stack || config.fips || config.accelerate))
        return refuse({"dualstack, fips and accelerate cannot be combined with a custom endpoint"});
    if (config.accelerate && config.fips) return refuse({"accelerate cannot be combined with fips"});
    if (bytes::starts_with(region, "cn-") && (config.fips || config.accelerate))
        return refuse({"there is no fips and no accelerate in China"});
    const Result<Url> base = url.empty() ? aws_url(region, is_global, config) : parse_url(url);
    if (!base) return base.error();
    Endpoint endpoint{*base, region, !use_virtual_host(bucket, config.addressing, *base, !url.empty())};
    if (endpoint.path_style && config.accelerate)
        return refuse({"accelerate needs a bucket name that fits into a host"});
    if (endpoint.path_style)
        bytes::append_percent(endpoint.path += '/', bucket, false);
    else
        endpoint.host.insert(0, bucket + '.');
    return endpoint;
}

struct Location {
    std::string bucket;
    std::string prefix;  // empty, or with a slash at its end: a key is put right behind it
};

// An unknown name is refused, because a misspelt "endpoint" would send data to AWS instead.
inline bool take_parameter(Config& to, std::string_view name, const std::string& value) {
    const auto is = [&](std::string_view option, std::string_view word) { return name == option && value == word; };
    const auto number = bytes::to_u64(value);
    if (name == "region")
        to.region = value;
    else if (name == "endpoint")
        to.endpoint = value;
    else if (name == "part_bytes" && number && static_cast<std::size_t>(*number) == *number)
        to.part_bytes = static_cast<std::size_t>(*number);
    else if (is("path_style", "true") || is("path_style", "false"))
        to.addressing = value == "true" ? Addressing::path : Addressing::virtual_host;
    else if (is("checksums", "own") || is("checksums", "store") || is("checksums", "none"))
        to.checksums = value == "own" ? Checksums::own : value == "store" ? Checksums::store : Checksums::none;
    else if (is("metadata_names", "underscore") || is("metadata_names", "hyphen"))
        to.metadata_names = value == "hyphen" ? MetadataNames::hyphen : MetadataNames::underscore;
    else
        return false;
    return true;
}

inline Result<void> take_parameters(Config& to, std::string_view query) {
    std::string seen;
    for (bool has_more = !query.empty(); has_more;) {
        has_more = query.find('&') != std::string_view::npos;
        std::string_view raw = bytes::cut(query, '&');
        const std::string_view name = bytes::cut(raw, '=');
        const auto value = bytes::unpercent(raw, false);
        const bool is_new = seen.find(bytes::joined({"&", name, "="})) == std::string::npos;
        seen.append(1, '&').append(name).append(1, '=');
        if (is_new && value && !value->empty() && take_parameter(to, name, *value)) continue;
        return refuse(
            {"'", (name.find('@') == std::string_view::npos ? bytes::sanitize(name) : "******"),
             "' comes twice, has no readable value, or is not one of region, endpoint, path_style=true|false, "
             "checksums=own|store|none, metadata_names=underscore|hyphen and part_bytes=NUMBER"});
    }
    return {};
}

// "bucket" or "s3://bucket/prefix", each with "?region=...&endpoint=..." behind if wanted, which goes before `config`.
// The prefix stands for itself, as in the AWS CLI: no %XX is decoded there.
inline Result<Location> parse_location(std::string_view text, Config& config) {
    constexpr std::string_view scheme = "s3://";
    const bool is_url = bytes::iequal(text.substr(0, scheme.size()), scheme);
    if (is_url) text.remove_prefix(scheme.size());
    std::string_view query = text;
    text = bytes::cut(query, '?');
    const std::string bucket(text.substr(0, text.find('/')));
    std::string prefix(text.substr(bucket.size()));

    // Some buckets need other hosts, services or signatures than ordinary ones.
    if (bytes::ends_with(bucket, "--x-s3") || bytes::ends_with(bucket, "--xa-s3"))
        return refuse({"directory buckets (S3 Express) are not supported"});
    if (bytes::starts_with(bucket, "arn:"))
        return refuse(
            {"ARNs (of access points, Outposts, Object Lambda) are not supported: use an access point's alias, which "
             "is the name of a bucket"});
    // What has these in it is a key and its secret, which must not be printed.
    if (bucket.find_first_of("@:") != std::string::npos)
        return refuse({"a location is s3://bucket/prefix: neither keys nor a host belong into it"});
    if (!valid_bucket(bucket)) return refuse({"'", bytes::sanitize(bucket), "' is not the name of a bucket"});
    if (!prefix.empty() && !is_url) return refuse({"a prefix needs the form s3://bucket/prefix"});
    if (!utf8::valid(prefix) || prefix.find('\0') != std::string::npos) return refuse({"the prefix is not UTF-8"});
    if (!prefix.empty()) prefix.erase(0, 1);
    if (!prefix.empty() && prefix.back() != '/') prefix += '/';
    if (Result<void> fine = take_parameters(config, query); !fine) return std::move(fine).error();
    return Location{bucket, prefix};
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
    std::string_view name;  // in lower case
    std::string_view value;
};

// Everything borrowed. `path` and `query` are encoded: what is signed must be the very bytes that go on the wire.
struct Request {
    std::string_view method, path, query, payload_hash;
};

// The day of the scope is cut from `amz_date`: taken from a second look at the clock, it would differ at midnight.
struct Scope {
    std::string_view amz_date;  // YYYYMMDDTHHMMSSZ
    std::string_view region, service;
};

// Encoded before they are sorted, and sorted as pairs: as joined text `a-b=` would come before `a=`, since '-' < '='.
inline std::string canonical_query(const bytes::Pairs& raw) {
    bytes::Pairs encoded;
    for (const auto& [name, value] : raw) {
        bytes::add(encoded, "", "");
        std::size_t at = encoded.size() - 1;
        bytes::append_percent(encoded[at].first, name, false);
        bytes::append_percent(encoded[at].second, value, false);
        for (; at > 0 && encoded[at] < encoded[at - 1]; --at) encoded[at].swap(encoded[at - 1]);
    }
    std::string out;
    for (const auto& [name, value] : encoded) {
        out.append(out.empty() ? "" : "&").append(name).append(1, '=').append(value);
    }
    return out;
}

// Outer blanks go and inner runs become one space, as at the server. Line breaks too: the published suites fold them.
inline void append_header_value(std::string& out, std::string_view value) {
    for (std::string_view rest = bytes::trim(value); !rest.empty();) {
        const auto blank = std::find_if(rest.begin(), rest.end(), [](char c) { return bytes::is_blank(c); });
        const auto size = static_cast<std::size_t>(blank - rest.begin());
        out.append(rest.data(), size);
        rest = bytes::trim(rest.substr(size));
        if (!rest.empty()) out += ' ';
    }
}

// The chain of four HMACs. It depends on the secret, the day, the region and the service only, hence the cache below.
inline digest::Sha256Digest signing_key(digest::Sha256& hash, const std::string& secret_key, const Scope& scope) {
    std::string seed;
    seed.reserve(secret_key.size() + 4);  // so that wiping it wipes all of it
    seed.append("AWS4").append(secret_key);
    auto key = hash.hmac(seed, scope.amz_date.substr(0, 8));
    bytes::wipe(seed);
    for (std::string_view part : {scope.region, scope.service, std::string_view("aws4_request")}) {
        key = hash.hmac(digest::as_text(key), part);
    }
    return key;
}

// Hops rewrite these: Google's front end accept-encoding, which makes a 403 of every request; proxies user-agent.
inline bool never_signed(std::string_view name) {
    for (std::string_view prefix : {"x-amz-", "host", "content-"}) {  // most of them
        if (bytes::starts_with(name, prefix)) return false;
    }
    constexpr std::string_view names =
        " accept-encoding authorization connection expect keep-alive te trailer transfer-encoding upgrade user-agent "
        "x-amzn-trace-id ";
    return bytes::starts_with(name, "proxy-") || bytes::starts_with(name, "sec-websocket-") ||
           names.find(std::string(1, ' ').append(name).append(1, ' ')) != std::string_view::npos;
}

// Signs request after request, and keeps its buffers and the key. Not to be shared between threads.
class Signer {
public:
    ~Signer() {
        bytes::wipe(key_secret_);
        OPENSSL_cleanse(key_.data(), key_.size());
    }

    // The value for the Authorization header, good until the next call. It covers every header given but the
    // never_signed ones, so `host`, `x-amz-date` and `x-amz-security-token` are the caller's to put into the list.
    std::string_view sign(const Request& request, const Credentials& credentials, const Scope& scope) {
        begin(scope);
        write_signature(request, request.query, credentials, scope);
        authorization_.assign(algorithm).append(" Credential=").append(credentials.access_key) += '/';
        authorization_.append(scope_).append(", SignedHeaders=").append(signed_headers_);
        authorization_.append(", Signature=").append(signature);
        return authorization_;
    }

    // The whole query string of a presigned URL, made of `query` and the signature's own parameters; `request.query` is
    // not looked at. Whoever uses the URL must send the signed headers unchanged.
    std::string presign(const Request& request, bytes::Pairs query, const Credentials& credentials, const Scope& scope,
                        std::uint32_t lifetime_seconds) {
        begin(scope);
        bytes::add(query, "X-Amz-Algorithm", algorithm);
        bytes::add(query, "X-Amz-Credential", credentials.access_key + '/' + scope_);
        bytes::add(query, "X-Amz-Date", scope.amz_date);
        bytes::add(query, "X-Amz-Expires", bytes::number(lifetime_seconds));
        bytes::add(query, "X-Amz-SignedHeaders", signed_headers_);
        if (!credentials.session_token.empty()) bytes::add(query, "X-Amz-Security-Token", credentials.session_token);
        std::string out = canonical_query(query);
        write_signature(request, out, credentials, scope);
        return out.append("&X-Amz-Signature=").append(signature);
    }

    // The value of x-amz-date, good until the next call. The requests of one second share it.
    std::string_view date(std::int64_t unix_seconds) {
        if (unix_seconds != date_second_) date_.clear();
        if (date_.empty()) dates::append_utc(date_, date_second_ = unix_seconds);
        return date_;
    }

    std::vector<Header> headers;  // borrowed; in sending order, since repeats join in it

    // What the last call signed: a server that answers SignatureDoesNotMatch prints its own two to compare with.
    std::string canonical_request, string_to_sign, signature;

private:
    // Names sorted, repeats in sending order; and the scope.
    void begin(const Scope& scope) {
        signed_.clear();
        for (const Header& header : headers) {
            if (never_signed(header.name)) continue;
            signed_.push_back(header);
            for (std::size_t i = signed_.size() - 1; i > 0 && header.name < signed_[i - 1].name; --i)
                std::swap(signed_[i], signed_[i - 1]);
        }
        signed_headers_.clear();
        for (std::size_t i = 0; i < signed_.size(); ++i) {
            if (!repeats(i)) signed_headers_.append(i != 0 ? ";" : "").append(signed_[i].name);
        }
        (scope_.assign(scope.amz_date.substr(0, 8)) += '/').append(scope.region) += '/';
        scope_.append(scope.service).append("/aws4_request");
    }

    bool repeats(std::size_t i) const { return i != 0 && signed_[i].name == signed_[i - 1].name; }

    void write_signature(const Request& request, std::string_view query, const Credentials& credentials,
                         const Scope& scope) {
        canonical_request.assign(request.method) += '\n';
        canonical_request.append(request.path.empty() ? std::string_view("/") : request.path) += '\n';
        canonical_request.append(query);
        for (std::size_t i = 0; i < signed_.size(); ++i) {
            canonical_request += repeats(i) ? ',' : '\n';
            if (!repeats(i)) canonical_request.append(signed_[i].name) += ':';
            append_header_value(canonical_request, signed_[i].value);
        }
        (canonical_request.append("\n\n").append(signed_headers_) += '\n').append(request.payload_hash);
        ((string_to_sign.assign(algorithm) += '\n').append(scope.amz_date) += '\n').append(scope_) += '\n';
        hash_.update(canonical_request);
        bytes::append_hex(string_to_sign, digest::as_text(hash_.finish()));
        signature.clear();
        bytes::append_hex(signature,
                          digest::as_text(hash_.hmac(key_for(credentials.secret_key, scope), string_to_sign)));
    }

    // Compared by the secret itself rather than by a generation number, which someone could forget to count up.
    std::string_view key_for(const std::string& secret, const Scope& scope) {
        if (key_scope_ != scope_ || key_secret_ != secret) {
            bytes::wipe(key_secret_);
            key_scope_ = scope_;
            key_ = signing_key(hash_, secret, scope);
            key_secret_ = secret;  // last: without memory for this copy, the key must not pass for another secret's
        }
        return digest::as_text(key_);
    }

    std::vector<Header> signed_;
    std::int64_t date_second_ = 0;
    std::string date_, signed_headers_, scope_, authorization_;
    digest::Sha256 hash_;
    digest::Sha256Digest key_{};
    std::string key_scope_, key_secret_;
};

}  // namespace detail::sigv4

// --- files: read as a source, written whole or not at all ------------------------------------------------------------

namespace detail::files {

// Where off_t has 32 bits (glibc on 32-bit machines, and this header cannot set _FILE_OFFSET_BITS for those included
// before it), the plain names refuse files over 2 GiB.
#if defined(__GLIBC__) && defined(__USE_LARGEFILE64)
using FileStat = struct stat64;
inline constexpr auto open_file = &::fopen64;
inline constexpr auto stat_path = &::stat64;
inline constexpr auto stat_open = &::fstat64;
inline constexpr auto number_of = &::fileno;
#elif defined(_WIN32)
// UTF-8, as paths are everywhere else. Not that: no path.
inline std::wstring wide(std::string_view path) {
    std::wstring out(path.size(), L'\0');
    const int size = static_cast<int>(path.size());
    out.resize(static_cast<std::size_t>(
        MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), size, out.data(), size)));
    return out;
}
inline std::string narrow(std::wstring_view text) {
    std::string out(3 * text.size(), '\0');
    const int size = static_cast<int>(text.size()), room = static_cast<int>(out.size());
    out.resize(static_cast<std::size_t>(
        WideCharToMultiByte(CP_UTF8, 0, text.data(), size, out.data(), room, nullptr, nullptr)));
    return out;
}
using FileStat = struct _stat64;
inline std::FILE* open_file(const char* path, const char* how) {
    return _wfopen(wide(path).c_str(), wide(how).c_str());
}
inline constexpr auto stat_open = &::_fstat64;
inline constexpr auto number_of = &::_fileno;
#else
using FileStat = struct stat;
inline constexpr auto open_file = &std::fopen;
inline constexpr auto stat_path = &::stat;
inline constexpr auto stat_open = &::fstat;
inline constexpr auto number_of = &::fileno;
#endif

// The length of an open file and when it was last written to; all zero: a pipe, a device, or a file that tells none.
inline std::array<std::int64_t, 3> state_of(std::FILE* file) {
    FileStat seen;
    if (!file || stat_open(number_of(file), &seen) != 0 || (seen.st_mode & S_IFMT) != S_IFREG || seen.st_size <= 0)
        return {};
#if defined(__APPLE__)
    return {seen.st_size, seen.st_mtimespec.tv_sec, seen.st_mtimespec.tv_nsec};
#elif defined(_WIN32)
    FILETIME written{};  // st_mtime counts in whole seconds
    GetFileTime(reinterpret_cast<HANDLE>(_get_osfhandle(number_of(file))), nullptr, nullptr, &written);
    return {seen.st_size, written.dwHighDateTime, written.dwLowDateTime};
#else
    return {seen.st_size, seen.st_mtim.tv_sec, seen.st_mtim.tv_nsec};
#endif
}

// Closes the file in the end, and fails if there is none (null), or if it is written to while it is read.
inline Source source_of(std::FILE* file) {
    const auto close = [](std::FILE* opened) { return opened ? std::fclose(opened) : 0; };
    const auto before = state_of(file);
    const std::shared_ptr<std::FILE> in(file, close);
    Source source([in, before](char* buffer, std::size_t capacity) {
        const std::size_t count = in ? std::fread(buffer, 1, capacity, in.get()) : source_failed;
        return count == 0 && (std::ferror(in.get()) || state_of(in.get()) != before) ? source_failed : count;
    });
    return before[0] > 0 ? std::move(source).sized(static_cast<std::uint64_t>(before[0])) : source;
}

inline Error failure(std::string_view what, std::string_view path) {
    return Error(Errc::file, bytes::joined({what, " '", path, "': ", std::strerror(errno)}));
}

inline std::string folder_of(const std::string& path) { return path.substr(0, path.find_last_of("/\\") + 1); }

// Written beside the target and renamed onto it, so that nobody ever sees half a file; under a short name of its own,
// since the target's may be as long as names can be. Links are followed, but what is no plain file (a device, a pipe)
// is written through: its link may lead to no name.
class NewFile {
public:
    explicit NewFile(std::string target) : target_(std::move(target)) {}
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile() {
        if (out_) std::fclose(out_);
        if (!is_beside_) return;
#if defined(_WIN32)
        static_cast<void>(_wremove(from_.c_str()));
#else
        static_cast<void>(std::remove(path_.c_str()));
#endif
    }

    // `id` tells it from the files of others that are written at once.
    Result<void> open(std::string_view id) {
        bool is_beside = true;
#if !defined(_WIN32)
        FileStat seen;
        const bool exists = stat_path(target_.c_str(), &seen) == 0;
        if (!exists && errno == ELOOP) return failure("cannot follow", target_);
        is_beside = !exists || S_ISREG(seen.st_mode);
        if (is_beside) follow_links();
#endif
        path_ = is_beside ? bytes::joined({folder_of(target_), ".s3cache-", id}) : target_;
#if defined(_WIN32)
        from_ = wide(path_);  // now, since there may be no memory when it is to be removed
        to_ = wide(target_);
#endif
        out_ = open_file(path_.c_str(), is_beside ? "wbx" : "wb");
        if (!out_) return failure("cannot create", path_);
        is_beside_ = is_beside;
#if !defined(_WIN32)
        if (exists && is_beside) {
            static_cast<void>(::fchown(number_of(out_), seen.st_uid, seen.st_gid) == 0);  // where that is allowed
            static_cast<void>(::fchmod(number_of(out_), seen.st_mode & 07777));
        }
#endif
        return {};
    }
    Result<void> write(std::string_view data) {
        if (std::fwrite(data.data(), 1, data.size(), out_) == data.size()) return {};
        return failure("cannot write", path_);
    }
    // All is written: it takes the target's place.
    Result<void> commit() {
        if (std::fclose(std::exchange(out_, nullptr)) != 0) return failure("cannot write", path_);
        if (is_beside_ && !replace_target()) return failure("cannot replace", target_);
        is_beside_ = false;
        return {};
    }

private:
#if defined(_WIN32)
    bool replace_target() const {  // rename() replaces nothing here
        errno = EACCES;            // as good as always: another program has it open
        return MoveFileExW(from_.c_str(), to_.c_str(), MOVEFILE_REPLACE_EXISTING) != 0;
    }
    std::wstring from_, to_;  // `path_` and `target_`
#else
    bool replace_target() const { return std::rename(path_.c_str(), target_.c_str()) == 0; }
    void follow_links() {
        char link[4096];
        for (;;) {
            const auto size = ::readlink(target_.c_str(), link, sizeof link);
            if (size <= 0) return;
            const std::string_view to(link, static_cast<std::size_t>(size));
            target_ = (link[0] == '/' ? std::string() : folder_of(target_)).append(to);
        }
    }
#endif

    std::string target_, path_;
    std::FILE* out_ = nullptr;
    bool is_beside_ = false;  // there is a file at `path_` that is to be renamed, or removed
};

}  // namespace detail::files

// --- http: easy and multi handles, the pool, sinks; the one place that knows libcurl ---------------------------------

namespace detail::http {

// S3 sends under 8 KiB of headers; these bounds only stop a hostile server from filling memory.
inline constexpr std::size_t header_bytes_max = (std::size_t{64} << 10) - 1, header_lines_max = 256;
// The largest answer that is not a value: a page of 1,000 keys of 1,024 bytes, each byte encoded as %XX.
inline constexpr std::size_t text_bytes_max = std::size_t{8} << 20;
// Receive buffers: a large one halves the cost of a large download, a small one is cheaper for a small answer over TLS.
inline constexpr long small_buffer_bytes = 32L << 10, large_buffer_bytes = 512L << 10;
// 256 KiB instead of libcurl's 64 saves a twelfth of a large upload.
inline constexpr long upload_buffer_bytes = 256L << 10;
// Stores close idle connections after 5 s to some minutes; an older one is likelier dead than useful.
inline constexpr long idle_seconds_max = 20;
// Connections that a Cache keeps between calls, or Config::connections if that is more.
inline constexpr unsigned idle_connections_max = 16;
inline constexpr const char* user_agent = "s3cache/" S3CACHE_VERSION;

// Why a response is not taken.
inline constexpr const char* no_memory = "no memory for the answer";
inline constexpr const char* too_large = "the answer is larger than any of S3's";
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// libcurl is initialised once and never cleaned up, because the application may use it too. Nor is OpenSSL, because
// destructors of static objects may use a cache. False: it has been, which whoever initialised it before us arranged.
inline bool is_ready() {
    static const bool ready =
        OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr) == 1 && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    return ready && OPENSSL_init_crypto(0, nullptr) == 1;
}

// What a forked child finds changed; never 0. It counts forks, because each getpid() would be a system call.
inline std::uint64_t process_id() {
#if defined(_WIN32)
    return 1;  // there is no fork
#else
    static std::atomic<std::uint64_t> forks{1};
    static const bool is_counted = pthread_atfork(nullptr, nullptr, [] { ++forks; }) == 0;
    return is_counted ? forks.load(std::memory_order_relaxed) : static_cast<std::uint64_t>(getpid());
#endif
}

// Null, unless the process may open no more files: libcurl does not say so where it fails because of that.
inline const char* why_no_descriptor() {
#if !defined(_WIN32)
    const int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (probe < 0 && (errno == EMFILE || errno == ENFILE)) return "no file descriptor is left (see ulimit -n)";
    if (probe >= 0) close(probe);
#endif
    return nullptr;
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

// The header lines of one response, one behind the other; there are so few that an index would cost more.
class Headers {
public:
    void clear() { text_.clear(), count_ = 0; }
    bool add(std::string_view line) {  // "Name: value", or it is none; false: over a limit
        const std::size_t colon = line.find(':');
        if (colon == std::string_view::npos || colon == 0 || bytes::is_blank(line[colon - 1])) return true;
        if (count_ == header_lines_max || text_.size() + line.size() > header_bytes_max) return false;
        const std::string_view value = bytes::trim(line.substr(colon + 1));
        const std::size_t at = text_.size(), value_at = at + static_cast<std::size_t>(value.data() - line.data());
        text_.append(line);  // first: it may find no memory
        fields_[count_++] = {static_cast<std::uint16_t>(at), static_cast<std::uint16_t>(colon),
                             static_cast<std::uint16_t>(value_at), static_cast<std::uint16_t>(value.size())};
        return true;
    }

    template <class F>
    void each(F&& visit) const {
        for (std::size_t i = 0; i < count_; ++i) visit(field(i).first, field(i).second);
    }
    // Of the first line of that name, since stores that repeat one repeat its value. Empty: there is none, or no value.
    std::string_view get(std::string_view name) const {
        for (std::size_t i = 0; i < count_; ++i) {
            if (fields_[i].name_size == name.size() && bytes::iequal(field(i).first, name)) return field(i).second;
        }
        return {};
    }

private:
    struct Field {
        std::uint16_t name_at, name_size, value_at, value_size;  // in the text
    };
    std::pair<std::string_view, std::string_view> field(std::size_t i) const {
        const Field& at = fields_[i];
        return {{text_.data() + at.name_at, at.name_size}, {text_.data() + at.value_at, at.value_size}};
    }

    std::string text_;
    Field fields_[header_lines_max];
    std::size_t count_ = 0;  // of this response
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
inline constexpr Milliseconds time_max = std::chrono::hours(24 * 20);  // libcurl takes them as long, often of 32 bits

// Of a response what begins anew with each request.
struct Response {
    CURLcode result = CURLE_OK;
    int status = 0;
    std::uint64_t received = 0;
    bool paused = false;
    bool reused = false;            // the connection was
    const char* refused = nullptr;  // why we did not take it: no_memory or too_large
};

// One easy handle with one request and its response. Its buffers live on from request to request.
class Transfer : public Response {
public:
    // Where the body of a successful response goes. A virtual call would bill every file that includes this.
    struct Sink {
        void* self = nullptr;
        SinkResult (*take)(void* self, const Transfer& from, const char* data, std::size_t size) = nullptr;
    };
    // What differs from request to request, apart from the URL and the headers.
    struct Request {
        Method method = Method::get;
        std::string_view body{};  // borrowed; of PUT and POST
        Sink sink{};
        bool large = false;  // a large response is likely
        bool bypass_proxy = false;
    };

    // the request
    const Request* request = nullptr;  // borrowed until the response is there
    std::string url;
    std::size_t path_at = 0;  // where the path begins in it; 0: unknown
    Limits limits{};
    // the response, with what Response says
    Headers headers;
    std::string text;     // the body, where no sink takes it
    bool broken = false;  // libcurl refused an option or has no memory: not to be used again
    char problem[CURL_ERROR_SIZE] = {};
    void* owner = nullptr;
    Transfer* next_idle = nullptr;  // in its Engine's list
    sigv4::Signer signer;           // keeps the key that it derived: one for each handle needs no lock
    CURL* const easy = curl_easy_init();

    Transfer() = default;
    ~Transfer() {
        while (lines_) delete std::exchange(lines_, lines_->next);
        if (easy) curl_easy_cleanup(easy);
#if LIBCURL_VERSION_NUM >= 0x073f00
        curl_url_cleanup(parts_);
#endif
    }
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

    template <class T>
    T info(CURLINFO which) const {
        T value{};
        curl_easy_getinfo(easy, which, &value);
        return value;
    }

    // What libcurl says of the failure. It quotes a proxy that it does not understand, and so perhaps a password.
    std::string trouble() const {
        const std::string_view said = bytes::trim(problem);
        return bytes::sanitize(bytes::starts_with(said, "Unsupported proxy") ? said.substr(0, said.find('\'')) : said);
    }

    void begin(const Request& what) {
        request = &what;
        last_line_ = nullptr;
        signer.headers.clear();
    }

    void add_header(std::string_view name, std::string_view value) {
        signer.headers.push_back({name, value});
        // A ';' is libcurl's way to write an empty value; with a colon it would drop the header.
        add_line(name, value.empty() ? ";" : ": ", value);
    }

    // Ready to be added to a multi handle. False: libcurl refused an option, or has no memory.
    bool prepare(const Config& config) {
        if (!easy) return false;
        broken = false;
        // Without TLS a large receive buffer costs a small answer nothing, and halves the cost of a megabyte.
        const bool large = request->large || (request->method == Method::get && bytes::starts_with(url, "http:"));
        const std::int64_t wanted[] = {static_cast<std::int64_t>(request->method), large, request->bypass_proxy,
                                       limits.connect.count(), limits.stall.count()};
        if (std::memcmp(setup_, wanted, sizeof setup_) != 0) {
            setup_[0] = -1;  // setup_curl may throw
            curl_easy_reset(easy);
            set_up(config, large);
            std::memcpy(setup_, wanted, sizeof setup_);
        }
        set_url();
        // An option's value is formatted anew for each request; it is one where setup_curl may replace it.
        if (!config.setup_curl) add_line("User-Agent", ": ", user_agent);
        // Without a value: libcurl's way to send no such header of its own. Accept says nothing, asking leave to send
        // (Expect) costs a second on the stores that do not answer it, Content-Type would say that the body is a form.
        add_line("Accept", ":", {});
        if (has_body()) {  // its size is always given: without it libcurl would send it chunked, which S3 refuses
            for (const char* unwanted : {"Expect", "Content-Type"}) add_line(unwanted, ":", {});
            set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request->body.size()));
            set(CURLOPT_POSTFIELDS, request->body.data() ? request->body.data() : "");
        }
        set(CURLOPT_HTTPHEADER, &lines_->node);
        set(CURLOPT_TIMEOUT_MS, static_cast<long>(limits.total.count()));
        static_cast<Response&>(*this) = {};
        headers.clear();
        text.clear();
        problem[0] = '\0';
        return !broken;
    }

private:
    // A header line to send, and its place in libcurl's list: curl_slist_append() would copy the line.
    struct Line {
        std::string text{};
        curl_slist node{};     // whose list ends with this request's last line
        Line* next = nullptr;  // in the list of all there are

        ~Line() { bytes::wipe(text); }  // session tokens and signatures
    };
    void add_line(std::string_view name, std::string_view colon, std::string_view value) {
        Line*& line = last_line_ ? last_line_->next : lines_;
        if (!line) line = new Line;
        line->text.assign(name).append(colon).append(value);
        line->node = {&line->text[0], nullptr};
        if (last_line_) last_line_->node.next = &line->node;
        last_line_ = line;
    }

    // Where only the path is another, libcurl need not parse the URL anew; but it would turn escapes to lower case.
    void set_url() {
#if LIBCURL_VERSION_NUM >= 0x073f00
        const std::string_view path = std::string_view(url).substr(path_at);
        if (parts_ && path_at != 0 && path.find('%') == path.npos && path.find('?') == path.npos) {
            if (url.compare(0, path_at, host_) != 0) {
                host_.assign(url, 0, path_at);
                broken |= curl_url_set(parts_, CURLUPART_URL, host_.c_str(), 0) != CURLUE_OK;
            }
            broken |= curl_url_set(parts_, CURLUPART_PATH, path.data(), 0) != CURLUE_OK;
            if (curl_easy_setopt(easy, CURLOPT_CURLU, parts_) == CURLE_OK) return;
        }
        curl_easy_setopt(easy, CURLOPT_CURLU, nullptr);  // which the libcurl that runs need not know
#endif
        set(CURLOPT_URL, url.c_str());
    }

    bool has_body() const { return request->method == Method::put || request->method == Method::post; }

    template <class T>
    void set(CURLoption option, T value) {
        if (curl_easy_setopt(easy, option, value) != CURLE_OK) broken = true;
    }
    void set_if_given(CURLoption option, const std::string& value) {
        if (!value.empty()) set(option, value.c_str());
    }

    void set_up(const Config& config, bool large) {
        const Method method = request->method;
        set(CURLOPT_PRIVATE, static_cast<void*>(this));
        set(CURLOPT_ERRORBUFFER, &problem[0]);
        for (const CURLoption on : {CURLOPT_NOSIGNAL, CURLOPT_SUPPRESS_CONNECT_HEADERS, CURLOPT_TCP_KEEPALIVE,
                                    CURLOPT_PATH_AS_IS})  // a key may hold `.` and `..`
            set(on, 1L);
        set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
        set(CURLOPT_HEADERFUNCTION, &Transfer::on_header);
        set(CURLOPT_HEADERDATA, static_cast<void*>(this));
        set(CURLOPT_WRITEFUNCTION, &Transfer::on_body);
        set(CURLOPT_WRITEDATA, static_cast<void*>(this));
        const Milliseconds connect = limits.connect.count() ? limits.connect : time_max;  // zero would be 300 s
        set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(connect.count()));
        // libcurl counts whole seconds of a transfer that moves less than a byte a second.
        set(CURLOPT_LOW_SPEED_LIMIT, limits.stall.count() ? 1L : 0L);
        set(CURLOPT_LOW_SPEED_TIME, static_cast<long>((limits.stall.count() + 999) / 1000));
        set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
        set_if_given(CURLOPT_CAINFO, config.ca_bundle);
        set_if_given(CURLOPT_SSLCERT, config.client_certificate);
        set_if_given(CURLOPT_SSLKEY, config.client_key);
        set_if_given(CURLOPT_PROXY, config.proxy);
        if (request->bypass_proxy) set(CURLOPT_NOPROXY, "*");
        if (method == Method::head) set(CURLOPT_NOBODY, 1L);
        if (has_body()) set(CURLOPT_POST, 1L);
        if (method == Method::put || method == Method::erase) set(CURLOPT_CUSTOMREQUEST, name_of(method));
        set(CURLOPT_BUFFERSIZE, large ? large_buffer_bytes : small_buffer_bytes);
        // What the libcurl that runs may not know, being older than the one that we are compiled with.
#if LIBCURL_VERSION_NUM >= 0x074100
        if (has_body()) curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, upload_buffer_bytes);
        curl_easy_setopt(easy, CURLOPT_HTTP09_ALLOWED, 0L);
        curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, idle_seconds_max);
#endif
#if LIBCURL_VERSION_NUM >= 0x075700
        curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);  // else who gives up waits for getaddrinfo() all the same
#endif
        if (!config.setup_curl) return;
        set(CURLOPT_USERAGENT, user_agent);
        config.setup_curl(easy);
    }

    static std::size_t on_header(char* data, std::size_t size, std::size_t count, void* self) {
        Transfer& transfer = *static_cast<Transfer*>(self);
        const std::string_view line(data, size * count);
        if (line.size() > 4 && line[4] == '/' && bytes::starts_with(line, "HTTP/")) {  // another response begins
            transfer.headers.clear();
            transfer.status = static_cast<int>(transfer.info<long>(CURLINFO_RESPONSE_CODE));
            return line.size();
        }
        const auto add = [&] { return transfer.headers.add(line) ? nullptr : too_large; };
        transfer.refused = shielded(add, no_memory);
        return transfer.refused ? 0 : line.size();
    }

    static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self) {
        Transfer& transfer = *static_cast<Transfer*>(self);
        const SinkResult said = shielded([&] { return transfer.take(data, size * count); }, SinkResult::stop);
        transfer.paused = said == SinkResult::pause;
        if (transfer.paused) return CURL_WRITEFUNC_PAUSE;
        if (said == SinkResult::stop) return 0;
        transfer.received += size * count;
        return size * count;
    }
    SinkResult take(const char* data, std::size_t size) {
        refused = no_memory;  // unless we come to the end
        if (request->sink.take && (status == 200 || status == 206)) {
            const SinkResult said = request->sink.take(request->sink.self, *this, data, size);
            refused = nullptr;
            return said;
        }
        const bool fits = text.size() + size <= text_bytes_max;
        if (fits) text.append(data, size);
        refused = fits ? nullptr : too_large;
        return fits ? SinkResult::consumed : SinkResult::stop;
    }

    // What the handle was last set up for; anything else needs a reset first, since options leak into the next request.
    std::int64_t setup_[5] = {-1};
    Line* lines_ = nullptr;
    Line* last_line_ = nullptr;  // of this request
#if LIBCURL_VERSION_NUM >= 0x073f00
    CURLU* const parts_ = curl_url();  // null: no memory
    std::string host_;                 // the scheme and the host in them
#endif
};

// Until libcurl 7.87 OpenSSL wrote to sockets itself, and a closed one raised SIGPIPE.
inline bool perform_without_sigpipe(CURLM* multi, int& running) {
#if !defined(_WIN32)
    static const bool is_old = curl_version_info(CURLVERSION_NOW)->version_num < 0x075700;
    sigset_t pipe, before, pending;
    const auto is_pending = [&] { return sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1; };
    if (is_old && !is_pending() && sigemptyset(&pipe) == 0 && sigaddset(&pipe, SIGPIPE) == 0 &&
        pthread_sigmask(SIG_BLOCK, &pipe, &before) == 0) {
        const CURLMcode result = curl_multi_perform(multi, &running);
        int taken = 0;
        if (is_pending()) sigwait(&pipe, &taken);
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return result == CURLM_OK;
    }
#endif
    return curl_multi_perform(multi, &running) == CURLM_OK;
}

// A multi handle with the connections it keeps, and idle transfers. One thread at a time. It belongs to the process
// that made it: a forked child must not even close the connections, because TLS would say goodbye on its parent's.
class Engine {
public:
    explicit Engine(unsigned connections) : multi_(curl_multi_init()) {
        if (multi_) curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(connections));
    }
    ~Engine() {
        if (is_of_parent()) return;  // all of it is leaked on purpose
        while (idle_) delete std::exchange(idle_, idle_->next_idle);
        if (multi_) curl_multi_cleanup(multi_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    bool works() const { return multi_ != nullptr; }
    bool is_of_parent() const { return process_ != process_id(); }

    Transfer* borrow() {
        if (idle_ == nullptr) return new Transfer;
        return std::exchange(idle_, idle_->next_idle);
    }
    // One that still runs is cut off, which closes its connection.
    void give_back(Transfer* transfer, bool running) noexcept {
        if (running && is_of_parent()) return;
        if (running) curl_multi_remove_handle(multi_, transfer->easy);
        if (transfer->text.capacity() > (std::size_t{1} << 20)) std::string().swap(transfer->text);
        if (transfer->broken) return delete transfer;
        transfer->next_idle = std::exchange(idle_, transfer);
    }

    bool start(Transfer& transfer, const Config& config) {
        transfer.broken =
            !works() || !transfer.prepare(config) || curl_multi_add_handle(multi_, transfer.easy) != CURLM_OK;
        return !transfer.broken;
    }
    // Takes out a transfer that is over, or that failed outside of perform().
    void stop(Transfer& transfer, CURLcode result) {
        curl_multi_remove_handle(multi_, transfer.easy);
        transfer.result = result;
    }

    // Moves bytes without waiting, and calls `finished` with each transfer that is over.
    template <class F>
    bool perform(F&& finished) {
        int running = 0;
        if (!perform_without_sigpipe(multi_, running)) return false;
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

    Engine* next_idle = nullptr;  // in the Pool's list
    digest::Sha256 body_hash;     // for whoever has a whole body: making one anew costs half of hashing 4 KiB

private:
    CURLM* multi_;
    const std::uint64_t process_ = process_id();
    Transfer* idle_ = nullptr;  // a list
};

// The idle engines of a cache. The lock is held to take one or give it back, never during I/O. Last in, first out: the
// engine used last has the warmest connections. After a fork those of the parent are let go of unclosed.
class Pool {
public:
    explicit Pool(const Config& config)
        : connections_(config.connections), idle_max_((std::max)(connections_, idle_connections_max)) {}
    ~Pool() {
        while (idle_) delete std::exchange(idle_, idle_->next_idle);
    }

    Engine* take() {
        const std::lock_guard<std::mutex> hold(lock_);
        if (idle_ && idle_->is_of_parent()) {
            idle_ = nullptr;
            idle_count_ = 0;
        }
        if (!idle_) return new Engine(connections_);
        --idle_count_;
        return std::exchange(idle_, idle_->next_idle);
    }
    void give_back(Engine* engine) noexcept {
        std::unique_lock<std::mutex> hold(lock_);
        if (engine->works() && !engine->is_of_parent() && idle_count_ < idle_max_) {
            engine->next_idle = std::exchange(idle_, engine);
            ++idle_count_;
            engine = nullptr;
        }
        hold.unlock();
        delete engine;
    }

private:
    const unsigned connections_, idle_max_;
    std::mutex lock_;
    Engine* idle_ = nullptr;  // a list
    unsigned idle_count_ = 0;
};

}  // namespace detail::http

// --- retry: what an answer means for the next attempt, waits between attempts, quota, circuit breaker ----------------

namespace detail::retry {

// A wait that the store asked for is honoured up to this; sccache's users waited for hours on an absurd one.
inline constexpr std::chrono::milliseconds retry_after_max{20000};
// An outage must not be multiplied: a cache has this many tokens, a retry takes five (ten after a timeout), a success
// gives one back and so does time. The numbers are botocore's standard mode, but for the refill by time.
inline constexpr double quota_tokens = 500, quota_per_retry = 5, quota_per_timeout = 10, quota_per_second = 5;

enum class Action {
    accept,               // none: there is an answer to look at, good or bad, or another attempt would not help
    retry,                // passing trouble
    refresh_credentials,  // once, with fresh ones
    correct_clock,        // once, with the store's time
    correct_region,       // once, signed for the region that the store named
    ask_again,            // once, because what was said is not about the request
};

// What the store says, what is done about it, and what a person can do where that is not plain from the store's words.
struct Rule {
    std::string_view words;  // codes of S3 and statuses, or results of libcurl; a blank around each
    Action action;
    Errc kind;
    std::string_view advice;
};

// The one table from answers to actions, kinds of errors and advice.
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

// The same for what libcurl says where there is no answer.
inline constexpr std::string_view for_tls =
    "set Config::ca_bundle to the authority that signed the store's certificate";
inline constexpr Rule curl_rules[] = {
    {" 28 ", Action::retry, Errc::timed_out, ""},
    {" 35 ", Action::retry, Errc::tls, for_tls},  // the handshake
    // Certificates and ciphers: the client's, the store's, the file of those who sign.
    {" 58 59 60 77 83 ", Action::accept, Errc::tls, for_tls},
    // A reply that is odd or too long for libcurl: before 8.6 it says that it is out of memory (27) and not 100.
    {" 8 27 61 100 ", Action::accept, Errc::protocol, ""},
    // Looking up, connecting, sending, receiving, an answer that is cut short or absent, HTTP/2.
    {" 5 6 7 16 18 52 55 56 65 92 ", Action::retry, Errc::network, ""},
    {"", Action::accept, Errc::network, ""},
};

// The one that has this word, or else the last one, which has none.
inline Rule find_rule(const Rule* rule, const std::string& word) {
    const std::string wanted = " " + word + " ";
    while (!rule->words.empty() && rule->words.find(wanted) == std::string_view::npos) ++rule;
    return *rule;
}

// A code counts before the status, whose advice (that permission is lacking) need not fit a code that nobody knows.
inline Rule rule_for(int status, std::string_view code) {
    const std::string number = bytes::number(status);
    const Rule by_code = find_rule(rules, std::string(code));
    if (!by_code.words.empty()) return by_code;
    Rule by_status = find_rule(rules, number);
    if (!code.empty() && code != number) by_status.advice = "";
    return by_status;
}
inline Rule rule_for(CURLcode result) { return find_rule(curl_rules, bytes::number(result)); }

// Whether there is an answer. A store may refuse and close while we still send: then that counts, not the broken pipe.
inline bool is_answered(CURLcode result, int status) {
    return result == CURLE_OK || (status >= 400 && (result == CURLE_SEND_ERROR || result == CURLE_RECV_ERROR));
}

// Full jitter: uniform in [0, base * 2^n], so that many clients do not come back together.
inline std::chrono::milliseconds backoff(const Config& config, int failures, double random) {
    const auto most = (std::min)(config.backoff_cap, config.backoff_base * (1 << (std::min)(failures, 20)));
    return std::chrono::milliseconds(static_cast<std::int64_t>(static_cast<double>(most.count()) * random));
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

// How the requests of a cache went: the tokens left for retries, and the breaker (off without breaker_failures).
class Health {
public:
    explicit Health(const Config& config) : failures_max_(config.breaker_failures), pause_(config.breaker_pause) {}

    // Whether a call may be sent. An open breaker lets one through each pause, which closes it if it goes well.
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
// files, clock, processes and HTTP come in from outside, so that all of it can be tested with none of them.

namespace detail::credentials {

using http::Milliseconds;

// -- sizes: real answers and files are far smaller, so what is larger is not what it claims to be
inline constexpr std::size_t answer_bytes_max = 64 * 1024;  // of a credential endpoint or process; real ones have 3 KiB
inline constexpr std::size_t key_bytes_max = 1024;          // AWS documents 128 for ids; MinIO takes any length
inline constexpr std::size_t token_bytes_max = 20000;       // STS takes no longer one; servers refuse such headers
inline constexpr std::size_t text_bytes_max = 2048;         // of a URL or ARN; HTTP software takes no more everywhere
inline constexpr std::size_t roles_max = 100;               // roles that lead to roles; a longer chain is a mistake

// -- times: a metadata service answers from the same host, STS from the same region
inline constexpr Milliseconds connect_timeout{3000};
inline constexpr Milliseconds container_timeout{2000};  // as the AWS SDKs
inline constexpr Milliseconds imds_timeout{1000};       // as the AWS CLI
inline constexpr Milliseconds sts_timeout{10000};
inline constexpr int attempts_max = 3;  // of STS, and of a container's agent, which may still be starting
inline constexpr Milliseconds between_attempts{1000};
inline constexpr Milliseconds process_timeout{60000};  // a helper may ask a person for a code
inline constexpr Milliseconds process_poll{5};         // there is no portable wait for its end with a timeout
inline constexpr Milliseconds cancel_poll{50};         // how often a wait looks at its limits
inline constexpr Milliseconds renewal_window{900000};  // one thread renews, the others go on
inline constexpr Milliseconds imds_extension{900000};  // use of overdue instance credentials in an outage
inline constexpr Milliseconds retry_first{1000};       // after a failed renewal; doubles
inline constexpr Milliseconds retry_most{60000};
inline constexpr Milliseconds retry_most_unserved{10000};  // nothing valid to go on with: ask sooner
inline constexpr Milliseconds forced_again_after{
    30000};  // a store that refuses whatever we send must not make us flood STS

// -- the outside

// How long the calling operation may still wait. Every wait of this section ends when that is over.
struct Limits {
    std::optional<http::Clock::time_point> deadline{};
    const std::atomic<std::uint32_t>* cancels = nullptr;  // goes up with each Cache::cancel(); null: nobody can
    std::uint32_t cancels_before = 0;

    bool cancelled() const { return cancels && cancels->load(std::memory_order_relaxed) != cancels_before; }
    bool over() const { return cancelled() || (deadline && http::Clock::now() >= *deadline); }
    // Why a wait ended before its time.
    Error error(const std::string& during) const {
        if (cancelled()) return Error(Errc::cancelled, "cancelled by Cache::cancel() while " + during);
        return Error(Errc::timed_out, "the call's time (call_timeout) was over while " + during);
    }
    void sleep(Milliseconds time) const {
        for (; time.count() > 0 && !over(); time -= cancel_poll)
            std::this_thread::sleep_for((std::min)(time, cancel_poll));
    }
};

struct Setting {
    std::string value{};  // empty: nothing is configured
    std::string why{};    // where it was found
};

// -- texts and checks

using Keys = Result<Credentials>;

inline Error broken(bytes::Words what) { return Error(Errc::credentials, bytes::joined(what)); }

// A source that is not configured: the next is asked. A broken one is an error: the next may be another identity.
inline Error passed_over(bytes::Words why) { return Error(Errc::unavailable, bytes::joined(why)); }
inline bool is_passed_over(const ResultBase& keys) { return !keys && keys.error().code() == Errc::unavailable; }

// What may be a URL, misspelt perhaps, for a message: tokens stand behind the '?', passwords before the '@'.
inline std::string shown_url(std::string_view url) {
    const std::size_t at = url.rfind('@');
    if (at == std::string_view::npos) return bytes::sanitize(url.substr(0, url.find('?')));
    url.remove_prefix(at);
    return bytes::sanitize(std::string("******").append(url.substr(0, url.find_first_of("/?#&"))));
}

inline Error unexpected(const Setting& set, const std::string& expected) {
    return Error(Errc::invalid_argument,
                 bytes::joined({set.why, " is '", shown_url(set.value), "', expected ", expected}));
}

// The last four characters tell one key from another, as the AWS CLI shows it; a short key would be half told by them.
inline std::string summary(const Credentials& keys) {
    const std::string shown = keys.access_key.size() < 12 ? "" : keys.access_key.substr(keys.access_key.size() - 4);
    return bytes::joined({keys.source, ": access key ****", shown, keys.expires ? ", until " : ", no expiry",
                          keys.expires ? dates::iso8601_text(*keys.expires) : std::string()});
}

// A value that goes into a header line or next to one; `name` begins the error.
inline Result<void> check_value(std::string_view value, const std::string& name, std::size_t bytes_max,
                                bool blanks_allowed = false) {
    if (value.size() > bytes_max) return broken({name, " is longer than ", bytes::number(bytes_max), " bytes"});
    for (char c : value) {
        if (c == '\r' || c == '\n')
            return broken({name, " contains a line break (a Windows line end, or a cut and paste of two lines?)"});
        if (c == ' ' && !blanks_allowed) return broken({name, " contains a blank"});
        if (c < ' ' || c > '~') return broken({name, " contains a byte that is not printable ASCII"});
    }
    return {};
}

// The keys that a source, or a user's provider, has returned, if they can be used.
inline Keys checked(Keys keys, TimePoint now) {
    if (!keys) return keys;
    if (keys->source.empty()) keys->source = "credentials";
    const std::string& where = keys->source;
    const char* half = keys->secret_key.empty() ? ": the access key is set but the secret key"
                                                : ": the secret key is set but the access key";
    if (keys->access_key.empty() != keys->secret_key.empty())
        return broken({where, half, " is not: set both or neither"});
    // Blanks in the secret are let through, because it never enters a header and some stores allow them.
    auto fine = check_value(keys->access_key, where + ": the access key", key_bytes_max);
    if (fine) fine = check_value(keys->secret_key, where + ": the secret key", key_bytes_max, true);
    if (fine) fine = check_value(keys->session_token, where + ": the session token", token_bytes_max);
    if (!fine) return std::move(fine).error();
    if (!keys->expires || *keys->expires > now) return keys;
    return broken({where, ": the credentials expired at ", dates::iso8601_text(*keys->expires), " and the clock says ",
                   dates::iso8601_text(now), ": renew them there, or set the clock"});
}

inline bool is_url(const std::string& url) { return check_value(url, {}, text_bytes_max) && endpoint::parse_url(url); }
inline bool switched_on(const Setting& set) { return bytes::iequal(bytes::trim(set.value), "true"); }

// -- the real outside: the only place here that touches files, processes and variables

// What a file holds; empty: nothing, or there is no such file.
inline Result<std::string> read_file(const std::string& path) {
#ifndef _WIN32
    if (path == "/dev/null") return std::string();  // how people say that there is none
    struct stat about {};
    if (::stat(path.c_str(), &about) == 0 && !S_ISREG(about.st_mode))
        return broken({"it is not a regular file"});  // a FIFO would be waited for for ever
#endif
    std::string text(ini::file_bytes_max + 1, '\0');  // first: behind it nothing throws
    std::FILE* file = files::open_file(path.c_str(), "rb");
    if (file == nullptr && (errno == ENOENT || errno == ENOTDIR)) return std::string();
    if (file == nullptr)
        return broken({errno == EACCES ? "permission denied" : "system error " + bytes::number(errno)});
    text.resize(std::fread(&text[0], 1, text.size(), file));
    const bool is_whole = std::ferror(file) == 0 && text.size() <= ini::file_bytes_max;
    std::fclose(file);
    if (is_whole) return text;
    return broken({"reading it failed, or it is longer than ", bytes::number(ini::file_bytes_max), " bytes"});
}

#if defined(_WIN32) || defined(S3CACHE_NO_CREDENTIAL_CHAIN)
inline Result<std::string> run_process(const std::vector<std::string>&, const Limits&) {
    return broken({"running it is not supported here"});
}
#else

// The helper reads nothing, writes to our pipe, and inherits no other descriptor where the C library can see to that.
// Its standard error stays the program's, because prompts and complaints are for a person, and may hold what our
// messages must not. Zero, or an error of the system's.
inline int spawn(std::vector<std::string> argv, int& output, ::pid_t& child) {
    char** const words = new char*[argv.size() + 1]();  // first: behind it nothing throws
    for (std::size_t i = 0; i < argv.size(); ++i) words[i] = &argv[i][0];
    int ends[2];
    int failed = ::pipe(ends) != 0 ? errno : 0;
    if (failed != 0) return delete[] words, failed;
    for (int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
    ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
#if defined(__APPLE__)
    char** environment = *_NSGetEnviron();
#else
    char** environment = ::environ;
#endif
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
#endif
    failed = ::posix_spawnp(&child, words[0], &actions, nullptr, words, environment);
    delete[] words;
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    output = ends[0];
    if (failed != 0) ::close(output);
    return failed;
}

// What the program wrote, if it ended well and in time.
inline Result<std::string> run_process(const std::vector<std::string>& argv, const Limits& limits) {
    int pipe = -1, status = 0;
    ::pid_t child = 0, ended = 0;
    std::string written(answer_bytes_max + 1, '\0');  // before the helper runs, so that nothing throws while it does
    if (const int failed = spawn(argv, pipe, child))
        return broken({failed == ENOENT ? "there is no such program"
                                        : "it does not start: system error " + bytes::number(failed)});
    std::size_t size = 0;
    const auto end = http::Clock::now() + process_timeout;
    bool in_time = true;
    while (ended == 0 && in_time && size < written.size()) {
        limits.sleep(process_poll);
        ended = ::waitpid(child, &status, WNOHANG);  // first: of one that has ended, the pipe then holds everything
        while (size < written.size()) {
            const auto got = ::read(pipe, &written[size], written.size() - size);
            if (got <= 0) break;
            size += static_cast<std::size_t>(got);
        }
        in_time = http::Clock::now() < end && !limits.over();
    }
    ::close(pipe);
    if (ended == 0) ::kill(child, SIGKILL);
    while (ended == 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    // A program that ignores SIGCHLD or waits for all children takes the status away: then what it wrote has to do.
    if (ended > 0 && WIFSIGNALED(status)) return broken({"it was ended by signal ", bytes::number(WTERMSIG(status))});
    if (ended > 0 && WIFEXITED(status) && WEXITSTATUS(status) != 0)
        return broken({"it ended with exit status ", bytes::number(WEXITSTATUS(status))});
    if (size == written.size())
        return broken({"its output is longer than ", bytes::number(answer_bytes_max), " bytes"});
    if (ended == 0) return broken({"it took too long"});
    written.resize(size);
    return written;
}
#endif

struct WebRequest {
    http::Method method = http::Method::get;
    std::string url{};
    bytes::Pairs headers{};
    std::string body{};
    Milliseconds timeout{};
    int attempts = attempts_max;
    bool bypass_proxy = false;  // link-local services: a proxy would answer with its own host's identity
    std::string secret{};       // that it carries: an error's text is not passed on where it repeats this
};

struct WebAnswer {
    int status = 0;      // 0: no answer
    std::string body{};  // or why there was none
};

// The outside as it is, but for HTTP and a corrected clock, which Core adds. Tests put another in its place.
class Environment {
public:
    virtual ~Environment() = default;
    virtual TimePoint now() const { return std::chrono::system_clock::now(); }
    virtual WebAnswer fetch(const WebRequest&, const Limits&) { return {}; }
    virtual Result<std::string> read_file(const std::string& path) { return credentials::read_file(path); }
    virtual Result<std::string> run_process(const std::vector<std::string>& argv, const Limits& limits) {
        return credentials::run_process(argv, limits);
    }
    virtual void pause(Milliseconds time, const Limits& limits) { limits.sleep(time); }
};

using ini::Profile;

inline Setting setting_of(const Profile& profile, const char* name) {
    return {profile.get(name), profile.where + ": " + name};
}

// -- endpoints: what they answer, and where they may be

// The keys with their expiry, which stands as text where they come from.
inline Keys with_expiry(Credentials keys, const std::string& expiration) {
    keys.expires = dates::iso8601(expiration);
    if (keys.expires || expiration.empty()) return keys;
    return unexpected({expiration, keys.source + ": the expiry"}, "a time such as 2025-01-15T12:34:56Z");
}

// Instance metadata says Token for a helper's SessionToken. A member of another type spoils all: a token would be lost.
inline Keys keys_in_json(const Result<std::string>& body, const std::string& where, bool must_expire) {
    if (!body) return body.error();
    Credentials keys{{}, {}, {}, {}, where};
    std::string expiration;
    const std::pair<const char*, std::string*> members[] = {{"AccessKeyId", &keys.access_key},
                                                            {"SecretAccessKey", &keys.secret_key},
                                                            {"SessionToken", &keys.session_token},
                                                            {"Token", &keys.session_token},
                                                            {"Expiration", &expiration}};
    for (const auto& [name, value] : members) {
        const std::string_view raw = json::member(*body, name);
        if (raw.empty() || raw == "null") continue;
        auto text = json::string_field(*body, name);
        if (!text) return broken({where, ": ", name, " is not a text"});
        *value = *std::move(text);
    }
    if (keys.access_key.empty() && keys.secret_key.empty())
        return broken({where, ": the answer is not a JSON object with AccessKeyId and SecretAccessKey"});
    if (must_expire && expiration.empty()) return broken({where, ": the keys have no Expiration"});
    return with_expiry(std::move(keys), expiration);
}

// What STS answers: ActionResponse/ActionResult/Credentials, with all four fields: half of it is no credential.
inline Keys keys_in_xml(std::string_view document, const std::string& action, const std::string& where) {
    Credentials keys{{}, {}, {}, {}, where};
    std::string expiration;
    const std::string in = action + "Result/Credentials/";
    xml::Scanner scanner(document);
    const bool is_whole = scanner.finish({{in + "AccessKeyId", &keys.access_key},
                                          {in + "SecretAccessKey", &keys.secret_key},
                                          {in + "SessionToken", &keys.session_token},
                                          {in + "Expiration", &expiration}});
    if (!is_whole || scanner.root() != action + "Response" || keys.access_key.empty() || keys.secret_key.empty() ||
        keys.session_token.empty() || expiration.empty())
        return broken({where, ": ", action, ": an answer without credentials"});
    return with_expiry(std::move(keys), expiration);
}

// Why an answer is of no use. What STS says about roles and policies is what the reader needs.
inline std::string complaint(const WebAnswer& answer, const std::string& secret) {
    if (answer.status == 0) return bytes::joined({"no answer (", bytes::sanitize(answer.body), ")"});
    const std::string text = "HTTP status " + bytes::number(answer.status);
    xml::ErrorBody error;
    if (!xml::read_error(answer.body, error) || error.code.empty()) return text + ", expected 200 with credentials";
    const bool repeats = !secret.empty() && error.message.find(secret) != std::string::npos;
    return bytes::joined({text, ", ", bytes::sanitize(repeats ? error.code : error.code + ": " + error.message)});
}

// Plain HTTP carries the keys and our token in the clear, so it goes only where nobody else can listen.
inline bool plain_http_allowed(const endpoint::Url& url) {
    for (const char* known : {"localhost:", "169.254.170.2:", "169.254.170.23:", "[fd00:ec2::23]:", "[::1]:"}) {
        if (bytes::starts_with(url.host + ":", known)) return true;
    }
    return url.is_address && bytes::starts_with(url.host, "127.");
}

// Strict where parsers differ, because what is checked here must be what the HTTP library connects to. The path is a
// secret: on ECS it is all that it takes to get the keys.
inline Result<std::string> container_url(const Setting& set) {
    const bool relative = bytes::ends_with(set.why, "RELATIVE_URI");
    const std::string url = (relative ? "http://169.254.170.2" : "") + set.value;
    const std::size_t authority = url.find("://") + 3, end = (std::min)(url.find_first_of("/?", authority), url.size());
    const bool fine = check_value(url, {}, text_bytes_max) && url.find_first_of("\\#") == std::string::npos;
    const auto base = endpoint::parse_url(fine ? std::string_view(url).substr(0, end) : "");
    const bool is_path = !relative || set.value[0] == '/';
    if (base && is_path && (base->scheme == "https" || plain_http_allowed(*base)))
        return bytes::joined(
            {base->scheme, "://", base->host, url.compare(end, 1, "/") == 0 ? "" : "/", url.substr(end)});
    if (relative) return broken({"container: ", set.why, " is no path such as /v2/credentials/ID"});
    return broken({"container: ", set.why, " is no https URL, nor one such as http://169.254.170.23/credentials for ",
                   "localhost, 127.0.0.0/8, [::1], 169.254.170.2, 169.254.170.23 or [fd00:ec2::23]"});
}

// -- the chain

// One caller's walk through the sources, and through what names a region and an endpoint. The files are read once in
// it, when they are first needed, and anew in the next, because other programs rewrite them.
class Walk {
public:
    Walk(Environment& environment, const Config& settings, const Limits& limits = {})
        : environment_(environment), settings_(settings), limits_(limits) {}

    std::optional<std::string> variable(const char* name) const {
        if (settings_.seams.environment) return settings_.seams.environment(name);
#if defined(_WIN32)
        const wchar_t* wide = _wgetenv(files::wide(name).c_str());
        const std::string utf8 = wide != nullptr ? files::narrow(wide) : std::string();
        const char* value = wide != nullptr ? utf8.c_str() : nullptr;
#else
        const char* value = std::getenv(name);
#endif
        return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
    }

    // The first of the variables that is set. Empty is unset, as in the AWS tools: containers leave variables blank.
    Setting first(std::initializer_list<const char*> names) const {
        for (const char* name : names) {
            auto value = variable(name);
            if (value && !value->empty()) return {*std::move(value), name};
        }
        return {};
    }

    // A variable, or else what the profile says. Files that cannot be read count as empty: who needs keys reports them.
    Setting in_profile(const char* variable, const char* name) {
        Setting set = first({variable});
        return set.value.empty() && load() ? setting_of(selected_, name) : set;
    }

    // Set but empty counts, unlike elsewhere: botocore, so the AWS CLI, looks for a profile without a name and fails.
    Setting chosen_profile() const {
        if (!settings_.profile.empty()) return {settings_.profile, "the configured profile"};
        for (const char* name : {"AWS_DEFAULT_PROFILE", "AWS_PROFILE"}) {
            if (auto value = variable(name)) return {*std::move(value), name};
        }
        return {"default", {}};
    }

    // Without asking instance metadata: the store corrects a wrong region.
    Result<Setting> region() {
        Setting set{settings_.region, "Config::region"};
        if (set.value.empty()) set = first({"AWS_REGION", "AWS_DEFAULT_REGION"});
        if (set.value.empty()) {
            if (auto read = load(); !read) return std::move(read).error();
            set = setting_of(selected_, "region");
        }
        if (set.value.empty() || endpoint::valid_region(set.value)) return set;
        return unexpected(set, "a region such as eu-west-1");
    }

    // Of "S3" or "STS": a service's own variable, the one for all, the profile's services section, the profile.
    Result<Setting> endpoint_url(const std::string& service) {
        const std::string own = "AWS_ENDPOINT_URL_" + service;
        Setting set{service == "S3" ? settings_.endpoint : std::string(), "Config::endpoint"};
        if (set.value.empty()) {
            if (auto read = load(); !read) return std::move(read).error();
            if (switched_on(in_profile("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls")))
                return Setting();
            set = first({own.c_str(), "AWS_ENDPOINT_URL"});
        }
        if (set.value.empty()) {
            set = setting_of(selected_, "endpoint_url");
            const ini::Section* services = ini::find_section(config_, "services", selected_.get("services"));
            const std::string* block = services ? services->find(bytes::lower(service)) : nullptr;
            const std::string own_url = block ? ini::find_in_block(*block, "endpoint_url") : std::string();
            if (!own_url.empty()) set.value = own_url;
        }
        if (set.value.empty() || is_url(set.value)) return set;
        return unexpected(set, "a URL such as https://s3.example.com");
    }

    // -- the sources

    // As in botocore a secret alone is passed over, and an access key alone is an error.
    Keys environment() {
        if (variables_are_ignored()) return passed_over({"a profile is chosen in code"});
        const std::string access_key = first({"AWS_ACCESS_KEY_ID"}).value;
        if (access_key.empty()) return passed_over({"AWS_ACCESS_KEY_ID is not set"});
        const std::string secret_key = first({"AWS_SECRET_ACCESS_KEY"}).value;
        const std::string token = first({"AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}).value;
        return with_expiry({access_key, secret_key, token, {}, "environment"},
                           first({"AWS_CREDENTIAL_EXPIRATION"}).value);
    }

    // The variables of Kubernetes and CI systems. A profile that names a role goes first, as in botocore.
    Keys web_identity() {
        if (variables_are_ignored()) return passed_over({"a profile is chosen in code"});
        if (first({"AWS_WEB_IDENTITY_TOKEN_FILE"}).value.empty())
            return passed_over({"AWS_WEB_IDENTITY_TOKEN_FILE is not set"});
        if (auto read = load(); !read) return std::move(read).error();
        if (selected_.assumes_role()) return passed_over({selected_.where, " names a role, which goes first"});
        return keys_by_web_identity(selected_);
    }

    Keys profile() {
        if (auto read = load(); !read) return std::move(read).error();
        return keys_of(selected_);
    }

    Keys container() {
        const Setting address = first({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"});
        if (address.value.empty())
            return passed_over(
                {"neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is set"});
        const auto url = container_url(address);
        if (!url) return url.error();
        Setting token = first({"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN"});
        token.why = "container: " + token.why;
        auto fine = bytes::ends_with(token.why, "_FILE") ? read_token(token, true)
                                                         : check_value(token.value, token.why, token_bytes_max, true);
        if (!fine) return std::move(fine).error();
        WebRequest request{http::Method::get, *url, {}, {}, container_timeout, attempts_max, true, token.value};
        bytes::add(request.headers, "Accept", "application/json");
        if (!token.value.empty()) bytes::add(request.headers, "Authorization", token.value);
        const std::string host = bytes::sanitize(url->substr(0, url->find('/', 8)));
        const std::string where = bytes::joined({"container (", address.why, ", ", host, ")"});
        return keys_in_json(ask(request, where), where, true);
    }

    // Somebody else's store takes no keys of an instance role; asking costs a second where there is no such service.
    // Private endpoints of AWS are AWS.
    Keys instance() {
        const auto set = endpoint_url("S3");
        if (!set) return set.error();
        const auto url = endpoint::parse_url(set->value);
        if (url && !endpoint::is_aws_host(url->host)) return passed_over({"the endpoint is not one of AWS"});
        return instance_metadata();
    }

private:
    // A profile that is chosen in code goes before the variables, unless its role names them as its source.
    bool variables_are_ignored() const { return roles_.empty() && !settings_.profile.empty(); }

    // -- the files

    Result<void> load() {
        if (is_loaded_) return {};
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
        auto fine = read(config_, config_path_, "AWS_CONFIG_FILE", "~/.aws/config");
        if (fine) fine = read(credentials_, credentials_path_, "AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
        if (!fine) return fine;
        const Setting chosen = chosen_profile();
        selected_ = ini::find_profile(config_, credentials_, chosen.value);
        if (!chosen.why.empty() && !selected_.exists())
            return broken({chosen.why, ": there is no profile '", bytes::sanitize(chosen.value), "' in ", config_path_,
                           " or ", credentials_path_});
        const std::string services = selected_.get("services");
        if (!services.empty() && ini::find_section(config_, "services", services) == nullptr)
            return broken({selected_.where, ": there is no [services ", bytes::sanitize(services), "]"});
#endif
        is_loaded_ = true;
        return {};
    }

    // A byte order mark, as Windows editors write it, is no part of the text.
    Result<void> read(ini::File& out, std::string& path, const char* variable, const char* otherwise) const {
        path = first({variable}).value;
        if (path.empty()) path = otherwise;
        if (bytes::starts_with(path, "~/")) path.replace(0, 1, home_directory());
        auto text = environment_.read_file(path);
        path = bytes::sanitize(path);
        if (!text) return broken({path, " cannot be read: ", text.error().what()});
        const bool marked = bytes::starts_with(*text, "\xEF\xBB\xBF");
        auto parsed = ini::Parser().parse(std::string_view(*text).substr(marked ? 3 : 0), path);
        bytes::wipe(*text);
        if (!parsed) return std::move(parsed).error();
        out = *std::move(parsed);
        return {};
    }

    // As Python's expanduser: HOME, or else what the password database says.
    std::string home_directory() const {
        const std::string home = first({"HOME", "USERPROFILE"}).value;
#ifndef _WIN32
        char buffer[16384];
        struct passwd entry {};
        struct passwd* found = nullptr;
        if (home.empty() && ::getpwuid_r(::getuid(), &entry, buffer, sizeof buffer, &found) == 0 && found)
            return found->pw_dir;
#endif
        return home;
    }

    // -- profiles and roles

    // What a profile leads to, in botocore's order. The first that is there decides, even if it is broken.
    Keys keys_of(const Profile& profile) {
        const Profile in_credentials{profile.credentials, nullptr}, in_config{nullptr, profile.config};
        if (profile.assumes_role() && (roles_.empty() || !profile.has_static_keys())) return assume_role(profile);
        if (profile.has("web_identity_token_file")) {
            Keys keys = keys_by_web_identity(profile);
            if (!is_passed_over(keys)) return keys;  // it is if a variable that goes first is empty
        }
        const bool sso = profile.has("sso_account_id") || profile.has("sso_role_name");
        if (in_credentials.has("aws_access_key_id") && !sso)
            return static_keys(in_credentials, credentials_path_ + ", " + profile.where);
        if (profile.has("credential_process")) return keys_by_process(profile);
        if (sso || profile.has("login_session"))
            return broken({profile.where, " signs in through a session that only the AWS CLI keeps: add this line to ",
                           "it in ", config_path_, ": ", export_line(profile.name)});
        if (in_config.has("aws_access_key_id")) return static_keys(in_config, config_path_ + ", " + profile.where);
        return passed_over({profile.where, ": neither aws_access_key_id nor role_arn is set"});
    }

    // The older name of the session token comes first, as in botocore.
    Keys static_keys(const Profile& only, const std::string& where) const {
        const std::string id = only.get("aws_access_key_id");
        const char* token = only.has("aws_security_token") ? "aws_security_token" : "aws_session_token";
        if (id.empty()) return broken({where, ": aws_access_key_id is empty"});
        return Credentials{id, only.get("aws_secret_access_key"), only.get(token), {}, where};
    }

    // An SSO or login session needs a client of its own size; the AWS CLI has it and can be asked for the keys.
    static std::string export_line(const std::string& profile) {
        const bool plain = profile.find_first_of(" '\"\\") == std::string::npos;
        return "credential_process = aws configure export-credentials --profile " +
               bytes::sanitize(plain ? profile : "\"" + profile + "\"") + " --format process";
    }

    Keys keys_by_process(const Profile& profile) const {
        const std::string command = profile.get("credential_process");
        const auto words = ini::split_words(command);
        if (words.empty() || words[0].empty() || command.find('\0') != std::string::npos)
            return broken({profile.where, ": credential_process has an open quote or names no program"});
        // Only the program is named in messages, because its arguments may hold a password.
        const std::string named = bytes::joined({profile.where, ": credential_process ", bytes::sanitize(words[0])});
        const auto output = environment_.run_process(words, limits_);
        if (!output)
            return limits_.over() ? limits_.error(named + " ran") : broken({named, ": ", output.error().what()});
        if (json::member(*output, "Version") != "1")
            return broken({named, ": the output is not a JSON object with \"Version\": 1"});
        return keys_in_json(output, named, false);
    }

    // A role is assumed with the keys of another profile, which may be a role's in turn; none is assumed twice.
    Keys assume_role(const Profile& profile) {
        const std::string arn = profile.get("role_arn");
        if (profile.has("source_profile") == profile.has("credential_source"))
            return broken({profile.where, ": role_arn needs source_profile or credential_source, and not both"});
        if (profile.has("mfa_serial"))
            return broken({profile.where, ": mfa_serial asks a person for a code; use a profile with this line: ",
                           export_line(profile.name)});
        roles_.push_back(profile.name);
        const Keys keys = checked(source_keys(profile), environment_.now());
        if (is_passed_over(keys))
            return broken({profile.where, ": no credentials to assume the role with: ", keys.error().what()});
        if (!keys) return keys;
        return ask_sts("AssumeRole",
                       {{"RoleArn", arn},
                        {"RoleSessionName", profile.get("role_session_name")},
                        {"ExternalId", profile.get("external_id")},
                        {"DurationSeconds", profile.get("duration_seconds")}},
                       &*keys, bytes::joined({profile.where, ", role ", bytes::sanitize(arn)}));
    }

    // A profile that holds keys beside its role may be its own source.
    Keys source_keys(const Profile& role) {
        const std::string named = role.get("credential_source");
        if (named == "EcsContainer") return container();
        if (named == "Ec2InstanceMetadata") return instance_metadata();
        if (named == "Environment") return environment();
        if (!role.has("source_profile"))
            return broken({role.where, ": credential_source must be Environment, Ec2InstanceMetadata or EcsContainer"});
        const Profile source = ini::find_profile(config_, credentials_, role.get("source_profile"));
        const std::string what = bytes::joined({role.where, ": source_profile ", bytes::sanitize(source.name)});
        if (!source.exists()) return broken({what, " does not exist"});
        bool again = false;
        for (const std::string& assumed : roles_) again = again || assumed == source.name;
        if (roles_.size() > roles_max || (again && !(source.name == role.name && source.has_static_keys())))
            return broken({what, " leads round in a circle, or through too many roles"});
        return keys_of(source);
    }

    // -- STS and instance metadata

    // Variables go before the selected profile, even if they are empty, as in botocore.
    Keys keys_by_web_identity(const Profile& profile) {
        const bool use_variables = roles_.empty() && !variables_are_ignored();
        const auto setting = [&](const char* name, const char* otherwise) {
            auto value = use_variables ? variable(name) : std::nullopt;
            if (!value) return setting_of(profile, otherwise);
            return Setting{*std::move(value), std::string("web identity: ") + name};
        };
        Setting token = setting("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file");
        const std::string arn = setting("AWS_ROLE_ARN", "role_arn").value;
        const std::string session = setting("AWS_ROLE_SESSION_NAME", "role_session_name").value;
        if (token.value.empty()) return passed_over({token.why, " is empty"});
        const char* role = bytes::ends_with(token.why, "FILE") ? "AWS_ROLE_ARN" : "role_arn";
        if (arn.empty()) return broken({token.why, " is set but ", role, " is not: set both or neither"});
        if (auto read = read_token(token, false); !read) return std::move(read).error();
        return ask_sts("AssumeRoleWithWebIdentity",
                       {{"RoleArn", arn}, {"RoleSessionName", session}, {"WebIdentityToken", token.value}}, nullptr,
                       token.why);
    }

    // Puts the token in place of the file's name: of a web identity, or of a container's agent, where "Bearer x" has a
    // blank in it. They are replaced while we run, so the file is read anew each time.
    Result<void> read_token(Setting& token, bool blanks_allowed) const {
        const std::string named = bytes::joined({token.why, " ", bytes::sanitize(token.value)});
        auto text = environment_.read_file(token.value);
        if (!text) return broken({named, " cannot be read: ", text.error().what()});
        token.value = bytes::trim(*text);
        bytes::wipe(*text);
        if (token.value.empty()) return broken({named, " does not exist or is empty, expected a file with a token"});
        return check_value(token.value, named, token_bytes_max, blanks_allowed);
    }

    // Without `keys` the call is not signed: the web identity token in it, the last field, speaks for itself.
    Keys ask_sts(const char* operation, std::initializer_list<sigv4::Header> fields, const Credentials* keys,
                 const std::string& where) {
        const auto configured = region();
        if (!configured) return configured.error();
        const auto place = endpoint_url("STS");
        if (!place) return place.error();
        // Stores have regions that AWS does not, such as auto; AWS's own all end in a number.
        const bool of_aws = !configured->value.empty() && bytes::is_digit(configured->value.back());
        const std::string signing_region = of_aws ? configured->value : "us-east-1";
        const std::string of_region = bytes::joined({"https://sts.", signing_region, "."});
        const auto url = endpoint::parse_url(
            place->value.empty() ? of_region + std::string(endpoint::partition_of(signing_region).suffix)
                                 : place->value);
        if (!url) return url.error();
        WebRequest request{http::Method::post, url->scheme + "://" + url->host + (url->path.empty() ? "/" : url->path)};
        request.timeout = sts_timeout;
        request.secret = keys != nullptr ? keys->session_token : std::string((fields.end() - 1)->value);
        bytes::add(request.headers, "content-type", "application/x-www-form-urlencoded; charset=utf-8");
        request.body = std::string("Action=") + operation + "&Version=2011-06-15";
        const std::string session = "s3cache-" + bytes::number(dates::unix_seconds(environment_.now()));
        for (const auto& [name, given] : fields) {
            const std::string_view value = given.empty() && name == "RoleSessionName" ? session : given;
            if (value.empty()) continue;
            bytes::append_percent(request.body.append(1, '&').append(name).append(1, '='), value, false);
        }
        if (keys != nullptr) sign(request, *url, *keys, signing_region);
        const std::string asked = bytes::joined({where, ": ", operation, " at ", request.url});
        const auto answer = ask(request, asked);
        return answer ? keys_in_xml(*answer, operation, where) : answer.error();
    }

    void sign(WebRequest& request, const endpoint::Url& url, const Credentials& keys, const std::string& region) const {
        std::string date;
        dates::append_utc(date, dates::unix_seconds(environment_.now()));
        bytes::add(request.headers, "x-amz-date", date);
        if (!keys.session_token.empty()) bytes::add(request.headers, "x-amz-security-token", keys.session_token);
        sigv4::Signer signer;
        signer.headers.push_back({"host", url.host});
        for (const auto& [name, value] : request.headers) signer.headers.push_back({name, value});
        const std::string hash = bytes::hex(digest::as_text(digest::sha256(request.body)));
        const sigv4::Request to_sign{"POST", url.path, {}, hash};
        bytes::add(request.headers, "Authorization", signer.sign(to_sign, keys, {date, region, "sts"}));
    }

    // Without a slash at its end.
    Result<std::string> imds_url() {
        Setting url = in_profile("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint");
        const Setting mode = in_profile("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode");
        const bool ipv6 = bytes::iequal(mode.value, "ipv6");
        if (!ipv6 && !mode.value.empty() && !bytes::iequal(mode.value, "ipv4")) return unexpected(mode, "IPv4 or IPv6");
        if (url.value.empty()) url.value = ipv6 ? "http://[fd00:ec2::254]" : "http://169.254.169.254";
        if (!is_url(url.value)) return unexpected(url, "a URL such as http://169.254.169.254");
        return url.value.substr(0, url.value.find_last_not_of('/') + 1);
    }

    // Version 2 only, because version 1 answers whoever can make the host fetch a URL.
    Keys instance_metadata() {
        if (switched_on(first({"AWS_EC2_METADATA_DISABLED"})))
            return passed_over({"AWS_EC2_METADATA_DISABLED is true"});
        if (auto read = load(); !read) return std::move(read).error();
        const auto base = imds_url();
        if (!base) return base.error();
        std::string where = bytes::joined({"instance metadata (", shown_url(*base), ")"});
        WebRequest request{http::Method::put, *base + "/latest/api/token", {}, {}, imds_timeout, 1, true};
        bytes::add(request.headers, "x-aws-ec2-metadata-token-ttl-seconds", "21600");
        const auto session = ask(request, where, " 0 403 404 405 ");
        if (!session) return session.error();
        if (session->empty() || !check_value(*session, {}, text_bytes_max))
            return broken({where, ": the answer is not a session token"});
        const std::string roles_url = *base + "/latest/meta-data/iam/security-credentials/";
        request = {http::Method::get, roles_url, {}, {}, imds_timeout, 1, true, *session};
        bytes::add(request.headers, "x-aws-ec2-metadata-token", *session);
        const auto roles = ask(request, where, " 404 ");
        if (is_passed_over(roles) || (roles && roles->empty()))
            return passed_over({"the instance has no role attached"});
        if (!roles) return roles.error();
        const std::string role(bytes::trim(roles->substr(0, roles->find('\n'))));
        bytes::append_percent(request.url, role, false);
        where += ", role " + bytes::sanitize(role);
        auto keys = keys_in_json(ask(request, where), where, true);
        // Overdue keys are handed out while they cannot be renewed, and S3 goes on taking those. The spread keeps a
        // fleet from coming back all at once; the clock's low digits differ enough between hosts for that.
        const TimePoint now = environment_.now();
        if (keys && keys->expires <= now)
            keys->expires = now + imds_extension + Milliseconds(now.time_since_epoch().count() / 1000 % 480000);
        return keys;
    }

    // What a credential endpoint answers, asked again where it had a bad moment. Passed over if there is no metadata
    // service, or not what was asked for: `absent` are the statuses that say so.
    Result<std::string> ask(const WebRequest& request, const std::string& where, std::string_view absent = {}) const {
        for (int attempt = 1; !limits_.over(); ++attempt) {
            WebAnswer answer = environment_.fetch(request, limits_);
            if (answer.body.size() > answer_bytes_max)
                answer = {0, "an answer longer than " + bytes::number(answer_bytes_max) + " bytes"};
            const bool again = answer.status == 0 || answer.status == 429 || answer.status >= 500 ||
                               answer.body.find("IDPCommunicationError") != std::string::npos;
            if (again && attempt < request.attempts) environment_.pause(between_attempts, limits_);
            if (again && (attempt < request.attempts || limits_.over())) continue;
            if (answer.status == 200) return std::string(bytes::trim(answer.body));
            const std::string text = bytes::joined({where, ": ", complaint(answer, request.secret)});
            const bool is_absent = absent.find(" " + bytes::number(answer.status) + " ") != absent.npos;
            return is_absent ? passed_over({text, "; in a container on EC2 the hop limit must be 2"}) : broken({text});
        }
        return limits_.error(where + " was asked");
    }

    Environment& environment_;
    const Config& settings_;
    const Limits limits_;
    ini::File config_, credentials_;
    std::string config_path_, credentials_path_;
    bool is_loaded_ = false;  // the files have been read
    Profile selected_;
    std::vector<std::string> roles_;  // the profiles whose roles are being assumed; none: the selected one is looked at
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

// Who we are: found in the sources, or by the user's own function, and kept for as long as it is good.
//
// Thread-safe, without a thread of its own: whoever comes first in the window before the expiry renews, and the others
// go on with what there is. One thread at a time asks, and what it asks must not use the provider itself.
//
//     time -------------- renew_at_ ------------------------ expires_
//     served from memory  one caller renews, others served   nobody is served before it has renewed
//
// After a refresh that failed, or was forced and brought the same keys, the source is left in peace until retry_at_.
class Provider {
public:
    Provider(Environment& environment, const Config& settings) : environment_(environment), settings_(settings) {}

    // Once a source has answered, only that is asked again: while its file is rewritten nobody becomes a role.
    Keys find(const Limits& limits, std::vector<Finding>* findings = nullptr) {
        Walk walk(environment_, settings_, limits);
        const Source* const before = answered_;
        std::string text = "no credentials found";
        for (const Source& source : sources) {
            if (before != nullptr && before != &source) continue;
            Keys keys = checked((walk.*source.ask)(), environment_.now());
            using Verdict = Finding::Verdict;
            const auto verdict = keys ? Verdict::used : is_passed_over(keys) ? Verdict::passed_over : Verdict::broken;
            const std::string said = keys ? summary(*keys) : keys.error().what();
            if (findings != nullptr) findings->push_back({std::string("credentials: ") + source.name, verdict, said});
            if (keys) answered_ = &source;
            if (!is_passed_over(keys)) return keys;
            text = before ? source.name + (", which gave credentials before: " + said)
                          : text + "; " + source.name + ": " + said;
        }
#ifdef S3CACHE_NO_CREDENTIAL_CHAIN
        text += "; built without the other sources (S3CACHE_NO_CREDENTIAL_CHAIN): give credentials in code";
#endif
        return broken({text});
    }

    // A walk of its own, told source by source.
    std::vector<Finding> explain() const {
        std::vector<Finding> findings;
        static_cast<void>(Provider(environment_, settings_).find({}, &findings));
        for (std::size_t i = findings.size(); i < std::size(sources); ++i)
            findings.push_back({std::string("credentials: ") + sources[i].name, Finding::Verdict::not_asked, {}});
        return findings;
    }

    // The keys to sign one request with. Waits for another thread only if there are none that are valid.
    Result<std::shared_ptr<const Credentials>> snapshot(const Limits& limits) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (current_ && expires_ == (TimePoint::max)()) return current_;  // the usual case asks no clock
        if (is_refreshing() && !is_usable(environment_.now()) && !wait(lock, limits))
            return limits.error("another thread fetched the credentials");
        const TimePoint when = environment_.now();
        if (is_refreshing() || (is_usable(when) && (when < renew_at_ || is_too_early(when)))) return current_;
        if (pause_.count() > 0 && is_too_early(when)) return broken({error_});
        auto done = refresh(lock, limits);  // once: keys that expire at once would be fetched for ever
        if (done || is_usable(environment_.now())) return current_;
        return std::move(done).error();
    }

    // The store refused these keys. True: there are others now, sign again with them.
    bool force_refresh(const Credentials& refused, const Limits& limits) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!wait(lock, limits) || !current_) return false;
        const TimePoint when = environment_.now();
        const bool is_due = is_current(refused) && !is_too_early(when);
        if (is_due && refresh(lock, limits) && is_current(refused)) retry_at_ = when + forced_again_after;
        return !is_current(refused);
    }

private:
    // False: the caller's time is over first.
    bool wait(std::unique_lock<std::mutex>& lock, const Limits& limits) {
        while (is_refreshing() && !limits.over()) done_.wait_for(lock, cancel_poll);
        return !is_refreshing();
    }

    // The child of a process that forked has none of the threads that may have been at it.
    bool is_refreshing() const { return refresher_ == http::process_id(); }
    bool is_usable(TimePoint when) const { return current_ && when < expires_; }
    // A clock set back must not turn a minute of patience into a day.
    bool is_too_early(TimePoint when) const { return when < retry_at_ && retry_at_ - when <= retry_most; }
    bool is_current(const Credentials& keys) const {
        return keys.access_key == current_->access_key && keys.secret_key == current_->secret_key &&
               keys.session_token == current_->session_token;
    }

    Result<void> refresh(std::unique_lock<std::mutex>& lock, const Limits& limits) {
        struct Turn {
            Provider& self;
            std::unique_lock<std::mutex>& lock;
            ~Turn() {  // however it ends, also by what a hook of the caller's throws
                lock.lock();
                self.refresher_ = 0;
                self.done_.notify_all();
            }
        };
        const auto ask = [&]() -> Keys {
            refresher_ = http::process_id();
            lock.unlock();
            const Turn turn{*this, lock};
            if (!settings_.credentials) return find(limits);
            return checked(guarded(settings_.credentials, "the credentials provider"), environment_.now());
        };
        Keys got = ask();
        const TimePoint when = environment_.now();
        // That there was no time left, or no memory, says nothing about the source: the next caller asks it.
        if (!got && (limits.over() || got.error().code() == Errc::too_large)) return got.error();
        if (!got) {
            const Milliseconds most = is_usable(when) ? retry_most : retry_most_unserved;
            pause_ = (std::max)(retry_first, (std::min)(2 * pause_, most));
            retry_at_ = when + pause_;
            error_ = got.error().what();
            return broken({error_});
        }
        pause_ = Milliseconds(0);
        current_.reset(new Credentials(*std::move(got)));
        expires_ = current_->expires.value_or((TimePoint::max)());
        // Of credentials that live less than an hour it is a part, because else they would be renewed all the time.
        const TimePoint::duration life = expires_ - when;
        renew_at_ = expires_ - (std::min)(TimePoint::duration(renewal_window), life / 4);
        return {};
    }

    Environment& environment_;
    const Config& settings_;
    const Source* answered_ = nullptr;
    std::mutex mutex_;
    std::condition_variable done_;
    std::shared_ptr<const Credentials> current_;
    std::uint64_t refresher_ = 0;  // the process that refreshes, while it does
    TimePoint expires_{}, renew_at_{}, retry_at_{};
    Milliseconds pause_{0};  // after the last refresh, if it failed
    std::string error_;      // of that
};

}  // namespace detail::credentials

// --- entry: what is stored: an object's headers in and out -----------------------------------------------------------

namespace detail::entry {

inline constexpr std::string_view meta_prefix = "x-amz-meta-";
// S3's own bound, names (without the prefix) and values together.
inline constexpr std::size_t metadata_bytes_max = 2048;
// A TTL past this (285 million years) is no date that anybody's arithmetic holds: the entry never expires.
inline constexpr double ttl_seconds_max = 9e15;
inline constexpr double never = std::numeric_limits<double>::infinity();

// What an answer's headers say of an entry, if there is one.
struct Facts {
    Info info{};
    double expires_at = never;              // unix time; not a number: malformed
    std::optional<std::uint64_t> length{};  // of the body of this answer
    std::string sum{};                      // of the body, in base64: our own, or else the store's
    std::string_view sum_type = "crc32c";   // of that, as in x-amz-checksum-*
    bool is_own_sum = false;
    double cost = 0;       // seconds that computing it took; 0: not known
    double lease = 0;      // seconds that a lease lasts; 0: it is none
    TimePoint answered{};  // by the store's clock; of a lease
    std::string write_id{};
    bool from_s3 = false;  // there is an ETag or metadata, as only a store of this kind sends

    explicit operator bool() const { return from_s3; }
    // A lease's age is told by two times of the store's own, so that no clock is compared with another.
    bool expired(double unix_now) const {
        if (lease > 0 && answered != TimePoint() && info.last_modified != TimePoint())
            return retry::seconds_between(info.last_modified, answered) > lease;
        return expires_at <= unix_now;
    }
    bool is_malformed() const { return std::isnan(expires_at); }
    // No condition and no range can rest on a weak ETag, which vouches for no byte (proxies that compress make it so).
    bool has_strong_etag() const { return !info.etag.empty() && !bytes::starts_with(info.etag, "W/"); }
    // Whether that ETag, of another answer, is this one's: a proxy may weaken it in one of the two.
    bool has_etag(std::string_view other) const {
        const auto opaque = [](std::string_view etag) { return etag.substr(bytes::starts_with(etag, "W/") ? 2 : 0); };
        return !info.etag.empty() && opaque(info.etag) == opaque(other);
    }
};

inline constexpr std::string_view kind_names[] = {"json", "text", "bytes"};  // by Kind, as is:
inline constexpr std::string_view content_types[] = {"application/json", "text/plain; charset=utf-8",
                                                     "application/octet-stream"};

// The rule of the Python class, for entries that do not say.
inline Kind classify(std::string_view data) {
    if (!utf8::valid(data)) return Kind::bytes;
    return json::valid(data) ? Kind::json : Kind::text;
}

// Some proxies join two headers of one name to "a,a".
inline std::string_view without_repeat(std::string_view text) {
    const std::size_t comma = text.find(',');
    if (comma == std::string_view::npos) return text;
    const std::string_view first = bytes::trim(text.substr(0, comma));
    return bytes::trim(text.substr(comma + 1)) == first ? first : text;
}

inline std::string crc32c_text(std::uint32_t crc) { return bytes::base64(digest::big_endian(crc)); }

// Whether that is 32 bits in base64, of which the sixth digit holds two; false: another program's header.
inline bool is_crc32c(std::string_view text) {
    const auto is_digit = [](char c) { return bytes::is_alnum(c) || c == '+' || c == '/'; };
    return text.size() == 8 && std::all_of(text.begin(), text.begin() + 6, is_digit) && text.substr(6) == "==" &&
           std::string_view("AQgw").find(text[5]) != std::string_view::npos;
}

inline double read_seconds(std::string_view text) {
    const double seconds = dates::parse_float(text).value_or(0);
    return seconds > 0 && seconds < ttl_seconds_max ? seconds : 0;
}

// The headers, in lower case, that a copy onto itself loses unless they are said again, but for the expiry.
inline bool is_lost_by_copy(const std::string& name) {
    static constexpr std::string_view lost =
        " content-type cache-control content-disposition content-encoding content-language expires x-amz-storage-class "
        "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id x-amz-website-redirect-location ";
    if (name == "x-amz-meta-expires_at" || name == "x-amz-meta-expires-at") return false;
    return bytes::starts_with(name, meta_prefix) || lost.find(" " + name + " ") != std::string_view::npos;
}

// An x-amz-meta- line that the cache itself keeps; false: it is the user's. Stores change case, and some turn _ into -.
inline bool read_own(Facts& facts, std::string_view name, std::string_view text) {
    bool is_own = false;
    const auto is = [&](std::string_view own) {
        const bool is_same = bytes::iequal(name, own);
        is_own |= is_same;
        return is_same;
    };
    const std::string_view value = without_repeat(text);
    if ((is("expires_at") || is("expires-at")) && facts.expires_at == never) {
        facts.expires_at = dates::parse_float(value).value_or(std::numeric_limits<double>::quiet_NaN());
        if (facts.expires_at < never) facts.info.expires_at = dates::to_time_point(facts.expires_at);
    }
    if (is("compressed")) facts.info.compressed = bytes::iequal(value, "true");
    if (is("negative")) facts.info.negative = bytes::iequal(value, "true");
    for (std::size_t i = 0; is("kind") && i < std::size(kind_names); ++i) {  // it may be another program's idea of it
        if (value == kind_names[i]) facts.info.kind = static_cast<Kind>(i);
    }
    if (is("crc32c") && is_crc32c(value)) facts.sum = value;
    if (is("write-id")) facts.write_id = value;
    if (is("cost")) facts.cost = read_seconds(value);
    if (is("lease-seconds")) facts.lease = read_seconds(value);
    return is_own || is("part-bytes") || is("parts-etag");  // of earlier versions, without meaning
}

inline Facts read(const http::Headers& headers) {
    Facts facts;
    Info& info = facts.info;
    headers.each([&](std::string_view name, std::string_view value) {
        constexpr std::size_t size = meta_prefix.size();
        const bool may_be = name.size() > size && name[size - 1] == meta_prefix.back();  // most are not
        if (!may_be || !bytes::iequal(name.substr(0, size), meta_prefix)) return;
        name.remove_prefix(size);
        if (!read_own(facts, name, value)) bytes::add(info.metadata, bytes::lower(name), value);
        facts.from_s3 = true;
    });
    info.etag = headers.get("etag");
    info.content_type = headers.get("content-type");
    info.last_modified = dates::http_date(headers.get("last-modified")).value_or(TimePoint());
    facts.length = bytes::to_u64(headers.get("content-length"));
    info.size = facts.length.value_or(0);
    if (const auto version = headers.get("x-amz-version-id"); version != "null") info.version_id = version;
    if (facts.lease > 0) facts.answered = dates::http_date(headers.get("date")).value_or(TimePoint());
    // Something before the store may add its headers to a page of its own, which has no ETag.
    if (bytes::starts_with(info.content_type, "text/html")) facts.from_s3 = false;
    facts.from_s3 |= !info.etag.empty();
    facts.is_own_sum = !facts.sum.empty();
    // Of the whole object: "-N" at the end marks a sum of sums of parts, which a reader cannot make. Any will do.
    for (std::string_view name : {"x-amz-checksum-crc32", "x-amz-checksum-crc32c", "x-amz-checksum-crc64nvme"}) {
        const std::string_view sum = facts.is_own_sum ? std::string_view() : headers.get(name);
        if (sum.empty() || sum.find('-') != std::string_view::npos) continue;
        facts.sum_type = name.substr(15);
        facts.sum = sum;
    }
    return facts;
}

// Milliseconds are enough for a TTL, and exact as decimals.
inline std::string seconds_text(double seconds) {
    const auto milliseconds = static_cast<std::uint64_t>((std::max)(seconds, 0.0) * 1000 + 0.5);
    return bytes::joined(
        {bytes::number(milliseconds / 1000), ".", bytes::number(1000 + milliseconds % 1000).substr(1)});
}

// Scratch objects and leases are no entries: lists leave them out, and only what removes everything meets them.
inline std::string scratch_name(std::string_view what, std::string_view id) {
    return std::string(".s3cache/").append(what).append("/").append(id);
}
inline bool is_scratch_name(std::string_view key) {
    const std::string_view folder = key.substr(0, 15), id = key.substr(folder.size());
    const bool may_be =
        (folder == ".s3cache/lease/" && id.size() == 32) || (folder == ".s3cache/probe/" && id.size() == 16);
    return may_be && id.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Why a header value would not arrive as it was sent, as the end of a sentence; null: it would.
inline const char* flaw_of(std::string_view value) {
    const auto is_odd = [](char c) { return bytes::octet(c) < 0x20 || bytes::octet(c) > 0x7E; };
    if (value != bytes::trim(value)) return "has blanks at an end";
    if (value.find("  ") != std::string_view::npos) return "has two blanks in a row, which stores fold";
    return std::any_of(value.begin(), value.end(), is_odd) ? "holds bytes that are not printable ASCII" : nullptr;
}

// Whether user metadata would be taken, and come back as it is.
inline Result<void> check_metadata(const Metadata& metadata) {
    using endpoint::refuse;
    const auto is_odd = [](char c) { return !bytes::is_alnum(c) && c != '-' && c != '_' && c != '.'; };
    std::size_t total = 0;
    Facts unused;
    for (const auto& own : metadata) {
        const std::string& name = own.first;
        const auto is_same = [&name](const auto& other) { return bytes::iequal(other.first, name); };
        if (name.empty() || std::any_of(name.begin(), name.end(), is_odd))
            return refuse({"a metadata name may hold letters, digits, '-', '_' and '.' only, and at least one"});
        const char* flaw = std::count_if(metadata.begin(), metadata.end(), is_same) > 1 ? "is there twice"
                           : read_own(unused, name, {})                                 ? "is the cache's own"
                                                                                        : flaw_of(own.second);
        if (flaw) return refuse({"metadata '", name, "' ", flaw});
        total += name.size() + own.second.size();
    }
    return total > metadata_bytes_max ? refuse({"metadata is over 2048 bytes"}) : Result<void>();
}

}  // namespace detail::entry

// --- s3: the state that calls share (Core), the loop that runs requests (Session), errors in the caller's terms ------

// What all copies of a handle, all readers and all threads of one Cache share.
struct detail::Core : credentials::Environment {
    Core(Config settings, endpoint::Location where)
        : config(std::move(settings)),
          bucket(std::move(where.bucket)),
          prefix(std::move(where.prefix)),
          pool(config),
          health(config),
          identity(*this, config) {}

    TimePoint local_now() const { return config.clock ? config.clock() : std::chrono::system_clock::now(); }
    // The local time, corrected once the store has refused a signed request as skewed.
    TimePoint now() const override {
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
    // Ends at cancel().
    void sleep(std::chrono::milliseconds time) const {
        if (config.seams.sleep) return config.seams.sleep(time);
        credentials::Limits{{}, &cancels, cancels.load()}.sleep(time);
    }

    void count(std::uint64_t Stats::*counter) {
        const std::lock_guard<std::mutex> hold(stats_lock);
        ++(stats.*counter);
    }
    // The object's name in the bucket.
    std::string object(std::string_view key) const { return std::string(prefix).append(key); }

    // Endpoint and region, found out once; the region may be corrected by an answer later.
    Result<const endpoint::Endpoint*> place(const credentials::Limits& limits = {}) {
        const std::lock_guard<std::mutex> hold(place_lock);
        if (place_now) return place_now;
        credentials::Walk walk(*this, config, limits);
        const auto url = walk.endpoint_url("S3");
        if (!url) return url.error();
        const auto region = walk.region();
        if (!region) return region.error();
        configured_url = url->value;
        return resolve_place(region->value.empty() ? "us-east-1" : region->value);
    }

    // The store named another region: on AWS another host, elsewhere only the signature changes.
    void set_region(const std::string& region) {
        const std::lock_guard<std::mutex> hold(place_lock);
        if (place_now && endpoint::valid_region(region) && region != place_now->signing_region)
            static_cast<void>(resolve_place(region));
    }

    const Config config;
    const std::string bucket;
    const std::string prefix;  // empty, or ends in a slash
    http::Pool pool;
    retry::Health health;
    credentials::Provider identity;
    std::mutex stats_lock;
    Stats stats;
    std::atomic<std::int64_t> clock_offset_ms{0};
    std::atomic<bool> store_seen{false};    // an answer has shown that there is an S3 store, and the bucket in it
    std::atomic<std::uint32_t> cancels{0};  // how often cancel() was called: a session that sees another number ends
    enum class Trait { unknown, no, yes };
    std::atomic<Trait> honours_conditions{Trait::unknown};  // If-Match and If-None-Match of PUT

    static constexpr std::size_t places_max = 100;  // AWS has some forty; a store that names ever new ones is none
    std::mutex place_lock;
    std::list<endpoint::Endpoint> places;  // one a region; calls point at them
    const endpoint::Endpoint* place_now = nullptr;
    std::string configured_url;  // once the place is known; empty: AWS

    struct InFlight {  // a value that a thread of this process computes, see get_or_set
        const std::string key;
        Result<Value> result;  // once it is done
        const std::thread::id owner = std::this_thread::get_id();
        const std::uint64_t process = http::process_id();
        std::optional<Value> stale_value{};  // still good while a new one is made
        bool is_done = false;
        std::list<std::thread::id> waiting{};
        std::condition_variable changed{};
    };
    std::mutex in_flight_lock;
    std::list<std::shared_ptr<InFlight>> in_flight;  // few at a time

    // With the lock held; null: no thread of this process (those of its parent are not here) is computing that key.
    std::shared_ptr<InFlight> find_in_flight(std::string_view key) const {
        for (const auto& one : in_flight) {
            if (one->key == key && one->process == http::process_id()) return one;
        }
        return nullptr;
    }
    bool is_computing(std::string_view key) {
        const std::lock_guard<std::mutex> hold(in_flight_lock);
        return find_in_flight(key) != nullptr;
    }
    // With the lock held: whether the owner waits, through others perhaps, for what this thread is to bring.
    bool waits_for_us(std::thread::id owner) const {
        if (owner == std::this_thread::get_id()) return true;
        for (const auto& one : in_flight) {
            const bool is_waiting = std::count(one->waiting.begin(), one->waiting.end(), owner) != 0;
            if (is_waiting && one->process == http::process_id()) return waits_for_us(one->owner);
        }
        return false;
    }

private:
    Result<const endpoint::Endpoint*> resolve_place(const std::string& region) {
        for (const endpoint::Endpoint& known : places) {
            if (known.signing_region == region) return place_now = &known;
        }
        if (places.size() == places_max) return Error(Errc::protocol, "the store names ever new regions");
        auto found = endpoint::resolve(bucket, region, configured_url, config);
        if (!found) return found.error();
        return place_now = &places.emplace_back(*std::move(found));
    }

    // Credential endpoints are asked with the same libcurl, but on a connection of its own.
    credentials::WebAnswer fetch(const credentials::WebRequest& request, const credentials::Limits& limits) override {
        const http::Transfer::Request out{request.method, request.body, {}, false, request.bypass_proxy};
        http::Engine engine(1);
        http::Transfer transfer;
        transfer.begin(out);
        transfer.url = request.url;
        transfer.limits = {credentials::connect_timeout, {}, request.timeout};
        for (const auto& [field, value] : request.headers) transfer.add_header(field, value);
        bool running = engine.start(transfer, config);
        if (!running) return {0, "libcurl refused the request"};
        while (running) {
            if (limits.over() || !engine.perform([&](http::Transfer&) { running = false; }))
                return {0, "the caller does not wait any longer"};
            if (running) engine.wait(std::chrono::milliseconds(50));
        }
        if (transfer.result != CURLE_OK) return {0, curl_easy_strerror(transfer.result)};
        return {transfer.status, transfer.text.substr(0, credentials::answer_bytes_max + 1)};
    }
};

namespace detail::s3 {

using http::Method;
using Milliseconds = std::chrono::milliseconds;

// How long cleaning up may take: a step without a deadline; all of it beyond the caller's deadline; after cancel().
inline constexpr Milliseconds cleanup_timeout{10000}, cleanup_overtime{500}, cleanup_after_cancel{1000};
// S3 refuses requests that are a quarter of an hour off, which a bare refusal may then be about.
inline constexpr double skew_seconds_min = 900;
inline constexpr double clock_offset_max = 4e9;  // a century: a clock may begin in 1970, but no store lives in 9999
// How often progress is reported and cancellation looked for.
inline constexpr Milliseconds tick{100}, step_most{1000};
inline constexpr const char* by_cancel = "cancelled by Cache::cancel()";

// "get reports/q3: <text>"
inline std::string about(std::string_view operation, std::string_view key, std::string_view text) {
    std::string out(operation);
    if (!key.empty()) out.append(" ").append(bytes::sanitize(key));
    return out.append(": ").append(text);
}
inline Error refusal(Errc kind, std::string_view operation, std::string_view key, std::string_view text) {
    Error::Details details;
    details.code = kind;
    details.retryable = kind == Errc::timed_out || kind == Errc::network;
    return Error(std::move(details), about(operation, key, text));
}

// What goes out, apart from what differs from attempt to attempt.
struct Request : http::Transfer::Request {
    const char* operation = "";
    std::string_view key{};  // as the caller knows it, for messages
    std::string object{};    // its name in the bucket; empty: the bucket itself
    std::string query{};     // canonical
    bytes::Pairs headers{};
    std::string payload_hash{};    // empty: that of no body
    std::string condition{};       // of a write; "*": if there is nothing, an ETag: over that only, empty: none
    std::string write_id{};        // names this very write, so that an answer that got lost can be made up for
    std::optional<Seconds> ttl{};  // becomes expires_at anew with each attempt, since an answer may correct the clock
    bool error_in_200 = false;     // the status alone is not success
    bool begins_upload = false;    // a cancellation waits for it, since only who knows its id can take it back
    bool rests_on_clock = false;   // not to be sent again once an answer has corrected the clock
    bool open_ended = false;       // the call's deadline covers its beginning only: libcurl is not told of it
    Milliseconds stall{0};         // Config::stall_timeout, but not less than this

    Request& header(std::string_view name, std::string_view value) { return bytes::add(headers, name, value), *this; }
    Error refuse(Errc kind, std::string_view why) const { return refusal(kind, operation, key, why); }
};

inline Request request(const Core& core, const char* operation, Method method, std::string_view key,
                       std::string query = {}) {
    return {{method}, operation, key, core.object(key), std::move(query)};
}

inline Request bucket_request(const char* operation, Method method, std::string query, std::string_view key = {}) {
    return {{method}, operation, key, {}, std::move(query)};
}

// What a person can do about words of the store, of libcurl or of the TLS library; empty: they do not tell.
inline std::string_view advice_for(std::string_view url, std::string_view text) {
    struct Hint {
        std::string_view scheme, advice, words[5];
    };
    constexpr Hint hints[] = {
        {"https:",
         "perhaps the port speaks plain http: try http:// in the endpoint",
         {"wrong version number", "packet length", "record layer", "unknown protocol", "SSL connection timeout"}},
        {"http:",
         "perhaps the port wants TLS: try https:// in the endpoint",
         {"Empty reply", "HTTP/0.9", "reset by peer", "HTTPS port"}},
        {"https:", "is this machine's clock right?", {"not yet valid", "has expired", "TIME_VALID"}},
        {"http", "a bucket whose requester pays wants x-amz-request-payer, which is not sent", {"equester pays"}}};
    for (const Hint& hint : hints) {
        for (const std::string_view words : hint.words) {
            const bool says_so = !words.empty() && text.find(words) != std::string_view::npos;
            if (says_so && bytes::starts_with(url, hint.scheme)) return hint.advice;
        }
    }
    return {};
}

// An engine for as long as one operation lasts, and the calls that run on it: any number at once, on this thread.
// Everything that waits, waits in step().
//
//   start ── attempt ──> running ── finish ──> done
//              ^            │                   (answered, given up, cancelled, out of time)
//              └── waiting <┘ passing trouble, or a mistake that the answer helps to correct
class Session {
public:
    // One request on its way, with all its attempts; of some, the requests that follow from its answer. It is cut off
    // and forgotten when it goes out of scope. Where it is made it stays.
    struct Call {
        Call(Session& on, Request what) : session(on), core(on.core), request(std::move(what)) {}
        virtual ~Call() { drop(); }

        void run() {
            start();
            while (tend()) session.step(step_most);
            session.woken_ = true;  // others may have ended meanwhile
        }
        // Called between steps; false: it is done.
        virtual bool tend() {
            if (!done) return true;
            if (!prepare_next()) return false;
            start();
            return true;
        }
        // Whether the answer asks for another request, which this makes of the one that was sent.
        virtual bool prepare_next() { return false; }
        // Undoes what an attempt delivered before there is another; false: no other attempt.
        virtual bool on_retry() { return true; }

        int status() const { return answer ? answer->status : 0; }
        bool stopped_by_sink() const { return answer && answer->result == CURLE_WRITE_ERROR && !answer->refused; }
        bool ok() const { return !error && status() / 100 == 2 && fault.code.empty(); }
        const http::Headers& headers() const { return answer->headers; }
        // The store may have done it: there was no memory for the answer, or it was not waited for any longer.
        bool is_unread() const {
            if (!answer) return attempts > 0 && error && error->code() == Errc::cancelled;
            return answer->refused || answer->result == CURLE_OUT_OF_MEMORY;
        }
        bool is_anonymous() const { return identity->access_key.empty(); }

        void start() {
            drop();
            following = std::exchange(session.calls_, this);
            done = false;
            corrections = 0;
            attempts = 0;
            clock_offset_ms = core.clock_offset_ms.load(std::memory_order_relaxed);
            began = http::Clock::now();
            if (session.is_cleaning_ || core.health.admits(core.local_now())) return attempt(began);
            core.count(&Stats::unavailable);
            constexpr std::string_view why = "not sent: the last calls failed, and Config::breaker_pause is not over";
            end(request.refuse(Errc::unavailable, why));
        }
        // Forgets the answer; what still runs is cut off.
        void drop() noexcept {
            Call** at = &session.calls_;
            while (*at && *at != this) at = &(*at)->following;
            if (*at) *at = following;
            if (answer) session.engine_->give_back(std::exchange(answer, nullptr), running);
            running = false;
            done = true;
        }
        void end(Error why) {
            drop();
            error = std::move(why);
            session.woken_ = true;
        }
        // Hands what was held back to the sink at once. What the sink says then ends the call here: libcurl would
        // report it to us alone, and go on with the next bytes as if these had been taken.
        void resume() {
            if (!answer || !answer->paused) return;
            answer->paused = false;
            const CURLcode result = curl_easy_pause(answer->easy, CURLPAUSE_CONT);
            if (result == CURLE_OK || !running) return;
            session.engine_->stop(*answer, result);
            finish_attempt();
        }
        // Finds out who signs, and where it goes.
        Result<void> address() {
            auto who = core.identity.snapshot(session.limits_);
            if (!who) return detail::about(request.operation, request.key, who.error());
            auto where = core.place(session.limits_);  // the instance that gave credentials may have to say where it is
            if (!where) return detail::about(request.operation, request.key, where.error());
            identity = *std::move(who);
            place = *where;
            return {};
        }

        // The answer as an error, for an operation that can make nothing of it.
        Error failure() const {
            if (error) return *error;
            Error::Details details = store_says();
            retry::Rule rule = rule_of_answer();
            const std::string_view hint = advice_for(answer->url, details.s3_message);
            if (!hint.empty()) rule.advice = hint;
            const bool underscore = request.ttl && core.config.metadata_names == MetadataNames::underscore;
            if (underscore && (details.s3_message.find("not signed") != std::string::npos ||
                               details.s3_code == "SignatureDoesNotMatch" || details.s3_code == "400"))
                rule.advice =
                    "if a proxy drops or refuses headers with an underscore, set Config::metadata_names to "
                    "MetadataNames::hyphen (?metadata_names=hyphen)";
            std::string text = bytes::number(details.status);
            if (text != details.s3_code) text += " " + details.s3_code;
            return told(rule, std::move(text), std::move(details));
        }

        Session& session;
        Core& core;
        Request request;
        bool done = false;
        http::Transfer* answer = nullptr;  // the engine's
        std::optional<Error> error{};      // there is no answer, or none to be understood
        xml::ErrorBody fault{};            // without a code: the store told none
        int attempts = 0;
        http::Clock::time_point began{};
        const endpoint::Endpoint* place = nullptr;
        std::shared_ptr<const Credentials> identity{};
        std::size_t index = 0;             // which of many this is
        Call* beside = nullptr;            // the next in the list of a Calls
        std::unique_ptr<char[]> buffer{};  // a part of an object; pages that a short one leaves out are never touched

    private:
        friend class Session;

        bool has_tried(retry::Action action) const { return corrections >> static_cast<unsigned>(action) & 1U; }

        void attempt(http::Clock::time_point now) {
            due = now;
            if (!fault.code.empty() || !fault.region.empty()) fault = {};
            error.reset();
            Result<void> fine = session.check_allowed(request.operation, request.key);
            if (!fine && request.begins_upload && fine.error().code() == Errc::cancelled) fine = {};
            if (fine) fine = address();
            if (!fine) return end(std::move(fine).error());
            if (!answer) answer = session.engine_->borrow();
            write_request();
            if (!session.engine_->start(*answer, core.config)) {
                const char* why = http::why_no_descriptor();
                const char* text = why ? why : "libcurl refused the request, or has no memory";
                return end(request.refuse(why ? Errc::network : Errc::unsupported, text));
            }
            running = true;
            core.count(&Stats::requests);
            if (++attempts > 1) core.count(&Stats::retries);
        }

        // The request as it goes out: everything that differs from attempt to attempt is made here.
        void write_request() {
            http::Transfer& out = *answer;
            out.begin(request);
            out.owner = this;
            out.limits = {core.config.connect_timeout, core.config.stall_timeout, {}};
            if (out.limits.stall.count() > 0) out.limits.stall = (std::max)(out.limits.stall, request.stall);
            if (session.limits_.deadline && !request.open_ended) {
                const auto left = std::chrono::ceil<Milliseconds>(*session.limits_.deadline - http::Clock::now());
                out.limits.total = (std::max)(left, Milliseconds(1));
            }
            out.url.assign(place->scheme).append("://").append(place->host);
            out.path_at = out.url.size();
            out.url.append(place->path);
            if (!request.object.empty() || place->path.empty()) out.url += '/';
            bytes::append_percent(out.url, request.object, true);
            add_headers(std::string_view(out.url).substr(out.path_at));
            if (!request.query.empty()) (out.url += '?').append(request.query);
        }
        void add_headers(std::string_view path) {
            http::Transfer& out = *answer;
            out.signer.headers.push_back({"host", place->host});
            for (const auto& [name, value] : request.headers) out.add_header(name, value);
            if (!request.condition.empty())
                out.add_header(request.condition == "*" ? "if-none-match" : "if-match", request.condition);
            if (!request.write_id.empty()) out.add_header("x-amz-meta-write-id", request.write_id);
            const TimePoint now = core.local_now() + Milliseconds(clock_offset_ms);
            const bool hyphen = core.config.metadata_names == MetadataNames::hyphen;
            std::string expiry;
            if (request.ttl) {
                expiry = entry::seconds_text(Seconds(now.time_since_epoch() + *request.ttl).count());
                out.add_header(hyphen ? "x-amz-meta-expires-at" : "x-amz-meta-expires_at", expiry);
            }
            if (is_anonymous()) return;
            const Credentials& keys = *identity;
            const std::string_view date = out.signer.date(dates::unix_seconds(now));
            const std::string_view hash =
                request.payload_hash.empty() ? sigv4::empty_payload_hash : std::string_view(request.payload_hash);
            out.add_header("x-amz-content-sha256", hash);
            out.add_header("x-amz-date", date);
            if (!keys.session_token.empty()) out.add_header("x-amz-security-token", keys.session_token);
            const sigv4::Request to_sign{http::name_of(request.method), path, request.query, hash};
            out.add_header("authorization", out.signer.sign(to_sign, keys, {date, place->signing_region, "s3"}));
        }

        void finish_attempt() {
            running = false;
            session.woken_ = true;
            {
                const std::lock_guard<std::mutex> hold(core.stats_lock);
                core.stats.bytes_in += answer->received;
                core.stats.bytes_out += request.body.size();
                if (!answer->reused) ++core.stats.connections;
            }
            read_answer();
            const bool answered = stopped_by_sink() || retry::is_answered(answer->result, answer->status);
            const retry::Action action = action_after_answer();
            if (goes_on(action)) return;
            done = true;
            if (!answered) error = no_answer();
            core.health.report(answered && action != retry::Action::retry, core.local_now());
            const bool was_signed_right = ok() || status() == 404;
            if (was_signed_right && has_tried(retry::Action::correct_clock))
                core.clock_offset_ms.store(clock_offset_ms);
            emit_event(ok() ? "done" : "error");
        }

        // The store's words about a failure. What is no S3 error (a proxy's page, nothing) goes by the status number.
        void read_answer() {
            const bool may_fail = answer->status >= 300 || request.error_in_200;
            if (may_fail && xml::read_error(answer->text, fault) && fault.code.empty())
                fault.code = bytes::number(answer->status);
            const bool has_code = !fault.code.empty();
            if (!core.store_seen) {  // a success may be some page of what stands before the store
                const bool is_page = bytes::starts_with(headers().get("content-type"), "text/html");
                const bool is_signed = !headers().get("etag").empty() || !headers().get("x-amz-request-id").empty();
                const bool is_fine = answer->status / 100 == 2 && is_signed && !is_page;
                if (has_code ? fault.code != "NoSuchBucket" : is_fine) core.store_seen = true;
            }
            if (request.error_in_200 && answer->result == CURLE_OK && answer->status == 200 && !has_code &&
                !xml::etag_result(answer->text) && !xml::upload_id(answer->text))  // empty, cut short, or no result
                fault = {"InternalError", "the body of the answer is no result", {}, {}};
            if (answer->status < 300) return;
            const std::string_view region = headers().get("x-amz-bucket-region");
            if (!region.empty()) fault.region = region;
            // To a HEAD the store cannot say more than that.
            if (!region.empty() && request.method == Method::head && (answer->status == 400 || answer->status == 301))
                fault.code = "PermanentRedirect";
        }
        // A store that closes an idle connection may answer on it with something that is not about the request: no HTTP
        // at all, or to a HEAD a bare 400 (RequestTimeout). A HEAD gets no reason: it may be the clock, or the keys.
        retry::Action action_after_answer() const {
            using retry::Action;
            const bool is_fine = answer->result == CURLE_OK && answer->status / 100 == 2 && fault.code.empty();
            if (is_fine || stopped_by_sink()) return Action::accept;
            const bool is_bare = request.method == Method::head && fault.code.empty();
            const bool is_denied = is_bare && answer->status == 403, is_bad = is_bare && answer->status == 400;
            if (is_denied && std::fabs(skew(core.now())) > skew_seconds_min) return Action::correct_clock;
            const bool is_odd =
                is_bad || answer->result == CURLE_UNSUPPORTED_PROTOCOL || answer->result == CURLE_WEIRD_SERVER_REPLY;
            if (is_odd && answer->reused && !has_tried(Action::ask_again)) return Action::ask_again;
            if (is_bad || (is_denied && !core.config.forbidden_is_miss)) return Action::refresh_credentials;
            return rule_of_answer().action;
        }
        // What an attempt without success means.
        retry::Rule rule_of_answer() const {
            const long refusal = answer->result == CURLE_OK ? 0 : answer->info<long>(CURLINFO_HTTP_CONNECTCODE);
            if (refusal < 300) {
                const bool answered = retry::is_answered(answer->result, answer->status);
                return answered ? retry::rule_for(answer->status, fault.code) : retry::rule_for(answer->result);
            }
            retry::Rule rule = retry::rule_for(static_cast<int>(refusal), {});  // of a proxy, to open a tunnel
            if (refusal != 407) rule.advice = "the proxy refuses: see Config::proxy";
            return rule;
        }

        bool goes_on(retry::Action action) {
            using retry::Action;
            if (action == Action::accept) return false;
            if (action == Action::retry) return retry_later();
            if (has_tried(action)) return false;
            corrections |= 1U << static_cast<unsigned>(action);
            const bool corrected = action == Action::refresh_credentials
                                       ? core.identity.force_refresh(*identity, session.limits_)
                                   : action == Action::correct_clock  ? correct_clock()
                                   : action == Action::correct_region ? correct_region()
                                                                      : true;
            return corrected && again_now();
        }
        // How far the store's clock is ahead, by the answer's Date; NaN: it has none.
        double skew(TimePoint now) const {
            const auto date = dates::http_date(headers().get("date"));
            return date ? retry::seconds_between(now, *date) : std::numeric_limits<double>::quiet_NaN();
        }
        // A signed refusal as skewed tells that the store's own clock matters, and its Date what that says. Where the
        // refusal gives no reason the date is tried, and counts for others only if the store then takes the signature.
        bool correct_clock() {
            const double off = skew(core.local_now());
            if (!(std::fabs(off) < clock_offset_max) || is_anonymous()) return false;  // nan: no date
            clock_offset_ms = static_cast<std::int64_t>(off * 1000);
            if (!fault.code.empty()) core.clock_offset_ms.store(clock_offset_ms);
            return !request.rests_on_clock;
        }
        // From the refusal, or else from the bucket, whose HEAD is answered with its region also by a host of another.
        bool correct_region() {
            const std::string& before = place->signing_region;
            if (fault.region == before) return false;
            core.set_region(fault.region);
            if (fault.region.empty() && (request.method != Method::head || !request.object.empty())) {
                Session other(core);
                other.limits_.deadline = session.limits_.deadline;
                Call(other, bucket_request(request.operation, Method::head, {}, request.key)).run();
            }
            const auto found = core.place(session.limits_);
            return found && (*found)->signing_region != before;
        }

        bool again_now() {
            // An upload that was begun and whose answer got lost has an id that nobody knows: only sweeping finds it.
            if (request.begins_upload && is_unread()) core.count(&Stats::leftover_uploads);
            if (!on_retry()) return false;
            emit_event("retry");
            due = http::Clock::now();
            return true;
        }
        bool retry_later() {
            const auto now = http::Clock::now();
            if (attempts >= core.config.attempts_max) return false;
            auto delay = retry::backoff(core.config, attempts, core.random());
            delay = (std::max)(delay, retry::retry_after(headers().get("retry-after"), core.now()));
            if (session.limits_.deadline && now + delay >= *session.limits_.deadline) return false;
            const bool timed_out = answer->result == CURLE_OPERATION_TIMEDOUT;
            if (!core.health.take(timed_out ? retry::quota_per_timeout : retry::quota_per_retry, now)) return false;
            if (!again_now()) return false;
            if (core.config.seams.sleep)
                core.config.seams.sleep(delay);
            else
                due = now + delay;
            return true;
        }
        void emit_event(std::string_view outcome) const {
            if (!core.config.on_event) return;
            const std::uint64_t size = request.method == Method::get ? answer->received : request.body.size();
            const bool has_failed = answer->result != CURLE_OK && !stopped_by_sink();
            const std::string problem = has_failed ? answer->trouble() : std::string();
            core.config.on_event({request.operation, request.key, outcome, attempts, answer->status, size,
                                  http::Clock::now() - due, answer->reused, problem});
        }

        // What the store said in XML, or what else can be made of the body for a person.
        Error::Details store_says() const {
            std::string message = fault.message;
            if (message.empty())
                message = json::string_field(answer->text, "message").value_or(xml::html_title(answer->text));
            Error::Details out;
            out.status = answer->status;
            out.s3_code = fault.code.empty() ? bytes::number(answer->status) : bytes::sanitize(fault.code);
            out.s3_message = bytes::sanitize(message);
            const std::string_view id = headers().get("x-amz-request-id"), second = headers().get("x-amz-id-2");
            out.request_id = bytes::sanitize(id.empty() ? fault.request_id : id);
            if (!second.empty())
                out.request_id.append(out.request_id.empty() ? "" : " ").append(bytes::sanitize(second));
            return out;
        }
        Error no_answer() const {
            retry::Rule rule = rule_of_answer();
            const auto& deadline = session.limits_.deadline;
            const bool timed_out = answer->result == CURLE_OPERATION_TIMEDOUT;
            if (timed_out && deadline && http::Clock::now() >= *deadline - Milliseconds(5))
                return told(rule, session.out_of_time_text());
            if (answer->refused) rule.kind = answer->refused == http::no_memory ? Errc::too_large : Errc::protocol;
            std::string text = answer->refused ? answer->refused : answer->trouble();
            if (text.empty()) text = curl_easy_strerror(answer->result);
            if (const char* why = http::why_no_descriptor()) text.append(", ").append(why);
            if (answer->result == CURLE_OUT_OF_MEMORY) text += ", or a header line longer than libcurl takes";
            const bool stalled = text.find("too slow") != std::string::npos;
            if (timed_out) text += stalled ? " (stall_timeout)" : " (connect_timeout)";
            const std::string_view hint = advice_for(answer->url, text);
            if (!hint.empty() && !core.store_seen) rule.advice = hint;  // what was a store before is one still
            return told(rule, std::move(text));
        }
        // What happened, after how many attempts, in the store's words, and what to do.
        Error told(const retry::Rule& rule, std::string text, Error::Details details = {}) const {
            details.code = rule.kind;
            details.retryable = rule.action == retry::Action::retry;
            details.attempts = attempts;
            const auto tenths = static_cast<std::uint64_t>((http::Clock::now() - began) / Milliseconds(100));
            text += bytes::joined({" after ", bytes::number(attempts), attempts == 1 ? " attempt in " : " attempts in ",
                                   bytes::number(tenths / 10), ".", bytes::number(tenths % 10), " s"});
            if (!details.request_id.empty()) text.append(" (request ").append(details.request_id).append(")");
            if (!details.s3_message.empty()) text.append(": ").append(details.s3_message);
            const std::string_view location = headers().get("location");
            if (!location.empty()) text.append("; it points to ").append(bytes::sanitize(location));
            if (!rule.advice.empty()) text.append("; ").append(rule.advice);
            return Error(std::move(details), about(request.operation, request.key, text));
        }

        Call* following = nullptr;         // the next in the list of its session
        http::Clock::time_point due{};     // of the attempt
        std::int64_t clock_offset_ms = 0;  // with which it is signed
        unsigned corrections = 0;          // those that were made, a bit for each Action
        bool running = false;
    };

    explicit Session(Core& shared, std::optional<Milliseconds> timeout = {})
        : core(shared), limits_{{}, &core.cancels, core.cancels.load()} {
        allow(timeout.value_or(core.config.call_timeout));
    }
    Session(const Session&) = delete;  // calls point at it
    ~Session() { core.pool.give_back(engine_); }

    // `report` is called some ten times a second; false cancels what runs, and every step() from then on.
    void on_progress(void* self, bool (*report)(void* self)) {
        reporter_ = self;
        report_progress_ = report;
    }
    // A new deadline, counted from now; zero: none.
    void allow(Milliseconds timeout) {
        timeout_ = std::clamp(timeout, Milliseconds(0), http::time_max);
        deadline_.reset();
        overtime_.reset();
        if (timeout.count() != 0) deadline_ = http::Clock::now() + timeout_;
        limits_.deadline = deadline_;
    }
    // What was cancelled before is over: cleaning up comes here first, and is tried even where the breaker is open.
    void allow_cleanup() {
        const auto now = http::Clock::now();
        if (why_cancelled_ || limits_.cancelled())
            overtime_ = now + cleanup_after_cancel;
        else if (deadline_ && !overtime_)
            overtime_ = (std::max)(*deadline_, now) + cleanup_overtime;
        limits_.deadline = overtime_.value_or(now + cleanup_timeout);
        limits_.cancels_before = core.cancels.load();
        report_progress_ = nullptr;
        why_cancelled_ = nullptr;
        is_cleaning_ = true;
    }
    // For a cleanup after which the call goes on.
    void end_cleanup() {
        limits_.deadline = deadline_;
        is_cleaning_ = false;
    }
    // Of the bodies of PUTs, what is on its way.
    std::uint64_t sent() const {
        curl_off_t sum = 0;
        for (const Call* call = calls_; call; call = call->following) {
            if (call->running && call->request.method == Method::put)
                sum += call->answer->info<curl_off_t>(CURLINFO_SIZE_UPLOAD_T);
        }
        return static_cast<std::uint64_t>(sum);
    }

    // Whether the operation may go on: for work between requests, such as reading a source.
    Result<void> check_allowed(std::string_view operation, std::string_view key) const {
        const char* cancelled = why_cancelled_ ? why_cancelled_ : limits_.cancelled() ? by_cancel : nullptr;
        if (cancelled) return refusal(Errc::cancelled, operation, key, cancelled);
        if (!limits_.deadline || http::Clock::now() < *limits_.deadline) return {};
        return refusal(Errc::timed_out, operation, key, out_of_time_text());
    }

    // Moves bytes; waits up to `most` if there are none to move, and nothing has ended that nobody has looked at.
    void step(Milliseconds most) {
        most = start_due((std::min)(most, tick));
        const bool fine =
            engine_->perform([](http::Transfer& done) { static_cast<Call*>(done.owner)->finish_attempt(); });
        if (!fine) end_all(Errc::network, "libcurl gave up on its connections");
        const char* why = limits_.cancelled() ? by_cancel : nullptr;
        if (report_progress_ && http::Clock::now() >= next_report_) {
            next_report_ = http::Clock::now() + tick;
            if (!report_progress_(reporter_)) why = "cancelled by the progress callback";
        }
        if (why && !why_cancelled_) {
            why_cancelled_ = why;
            uploads_until_ = http::Clock::now() + cleanup_overtime;
        }
        if (why_cancelled_) end_all(Errc::cancelled, why_cancelled_, http::Clock::now() >= uploads_until_);
        if (most.count() != 0 && !std::exchange(woken_, false)) engine_->wait(most);
    }
    // For a sink: the caller has what it waited for, so step() is not to wait for more.
    void wake() { woken_ = true; }

    digest::Sha256& body_hash() { return engine_->body_hash.afresh(); }

    Core& core;

private:
    http::Engine* const engine_ = core.pool.take();
    std::string out_of_time_text() const {
        return bytes::joined({"the call's time (call_timeout, ", bytes::number(timeout_.count()), " ms) is over"});
    }

    // Starts what is due. Returns how long nothing else will be, `most` at most: zero where only the caller can go on.
    Milliseconds start_due(Milliseconds most) {
        for (Call* call = calls_; call; call = call->following) {
            if (call->answer && call->answer->paused) most = Milliseconds(0);
            if (call->running && call->request.open_ended) {
                const Result<void> allowed = check_allowed(call->request.operation, call->request.key);
                if (!allowed) call->end(allowed.error());
            }
            if (call->done || call->running) continue;
            const auto now = http::Clock::now();
            if (call->due <= now)
                call->attempt(now);
            else
                most = (std::min)(most, std::chrono::ceil<Milliseconds>(call->due - now));
        }
        return most;
    }

    // Ends what runs with this error.
    void end_all(Errc code, const char* why, bool also_uploads = false) {
        for (Call* call = calls_; call; call = call->following) {
            if (!call->done && (also_uploads || !call->request.begins_upload))
                call->end(call->request.refuse(code, why));
        }
    }

    Call* calls_ = nullptr;
    void* reporter_ = nullptr;
    bool (*report_progress_)(void*) = nullptr;
    http::Clock::time_point next_report_{};
    Milliseconds timeout_{0};
    std::optional<http::Clock::time_point> deadline_, overtime_;  // the caller's; what cleaning up has beyond it
    credentials::Limits limits_;                                  // of what runs now
    bool woken_ = false, is_cleaning_ = false;
    const char* why_cancelled_ = nullptr;      // null: it is not
    http::Clock::time_point uploads_until_{};  // when it is: how long the beginning of an upload is waited for
};

using Call = Session::Call;

// Calls on their way at once, on bounded connections. `end` looks at each that is done, in add(), step() or finish().
class Calls {
public:
    Calls(Session& session, std::function<void(std::size_t, Call&)> end) : session_(session), end_(std::move(end)) {}
    Calls(const Calls&) = delete;
    // Cuts off what is on its way.
    ~Calls() {
        while (first_) delete std::exchange(first_, first_->beside);
    }

    // Takes it over and starts it, and waits until a connection is free for another.
    void add(std::size_t index, Call* call) {
        call->index = index;
        call->beside = std::exchange(first_, call);
        ++size_;
        call->start();
        while (size_ >= session_.core.config.connections) step(step_most);
    }
    void step(Milliseconds most) {
        session_.step(most);
        for (Call** at = &first_; *at;) {
            if ((*at)->tend()) {
                at = &(*at)->beside;
                continue;
            }
            const std::unique_ptr<Call> ended(std::exchange(*at, (*at)->beside));
            --size_;
            end_(ended->index, *ended);
        }
    }
    // Waits until all are done.
    void finish() {
        while (size_ != 0) step(step_most);
    }
    std::size_t size() const { return size_; }

private:
    Session& session_;
    const std::function<void(std::size_t, Call&)> end_;
    Call* first_ = nullptr;  // a list, by Call::beside
    std::size_t size_ = 0;
};

}  // namespace detail::s3

// --- transfer: sources to uploads, answers to checked and decoded bytes ----------------------------------------------

namespace detail::transfer {

using http::SinkResult;
using s3::Call;
using s3::Method;
using s3::Session;

// An expired entry's body is read to its end up to this, to keep the connection: beyond, a new one is cheaper.
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
// Others help a connection that has brought less than this after so long; a faster one waits for the processor.
inline constexpr std::chrono::milliseconds sample_time{20};
inline constexpr std::uint64_t fast_bytes = 4000000;
// An upload begins with so many: one carries a part while the next is gathered.
inline constexpr std::size_t first_lanes = 2;
// A source is read for so long between two turns of the network. One that takes longer is slow: what is on its way
// would stall meanwhile, and stores close such connections. So many parts without such a pause show that it is fast.
inline constexpr std::chrono::milliseconds turn_time{1}, slow_source_time{200};
inline constexpr int quick_parts_min = 2;
// How often a PUT whose answer is odd, or whose condition the store takes in another form, is sent again.
inline constexpr int puts_again_max = 2;
// The store may assemble parts for minutes, saying nothing.
inline constexpr std::chrono::milliseconds complete_stall{300000};

// Whether the answer says that there is nothing under the key. A 404 without words of S3 is believed only if it has no
// others, and a good answer has shown that this is an S3 store: a wrong endpoint would make a miss of every get.
inline bool is_absent(const Call& call) {
    if (call.error || call.ok()) return false;
    const std::string_view code = call.fault.code;
    const bool is_silent = code.empty() && call.answer->text.empty();
    if (call.status() == 403) return call.core.config.forbidden_is_miss && (code == "AccessDenied" || is_silent);
    const bool is_s3 = call.core.store_seen || !call.headers().get("x-amz-request-id").empty();
    return call.status() == 404 && code != "NoSuchBucket" &&
           (!code.empty() || call.request.method == Method::head || (is_silent && is_s3));
}

// The headers of an entry, expired or not, if there is one.
inline Result<entry::Facts> interpret_look(const Call& call) {
    if (call.ok()) {
        entry::Facts facts = entry::read(call.headers());
        if (facts) return facts;
        return call.request.refuse(Errc::protocol, "the answer has no ETag: is the endpoint an S3 store?");
    }
    if (!is_absent(call)) return call.failure();
    // A HEAD's 404 may mean that there is no bucket, or no S3 store: asked once, while nothing has shown otherwise.
    if (call.status() != 404 || call.core.store_seen) return entry::Facts();
    Call bucket(call.session, s3::bucket_request(call.request.operation, Method::head, {}, call.request.key));
    bucket.run();
    if (bucket.status() == 404) bucket.fault.code = "NoSuchBucket";
    if (!bucket.ok() && bucket.status() != 403) return bucket.failure();  // 403: the keys are for objects alone
    call.core.store_seen = true;
    return entry::Facts();
}
inline Result<entry::Facts> look(Session& session, const char* operation, std::string_view key,
                                 Method method = Method::head) {
    Call call(session, s3::request(session.core, operation, method, key));
    call.request.sink.take = [](void*, const http::Transfer&, const char*, std::size_t) { return SinkResult::stop; };
    call.run();
    return interpret_look(call);
}

// How many parts may be in flight: no more than connections, nor than fit the memory bound.
inline std::size_t lanes_for(const Config& config, std::uint64_t part) {
    const std::uint64_t fit = (std::max)(std::uint64_t{1}, std::uint64_t{config.transfer_bytes_max} / part);
    return static_cast<std::size_t>((std::min)(fit, std::uint64_t{config.connections}));
}

// What a body is checked against as it streams by.
struct Verifier {
    std::string_view type{}, expected{};  // empty: against nothing
    std::uint64_t sum = 0;

    void update(std::string_view data) {
        const auto crc = static_cast<std::uint32_t>(sum);
        if (type == "crc32c") sum = digest::crc32c(crc, data.data(), data.size());
        if (type == "crc64nvme") sum = digest::crc64nvme(sum, data.data(), data.size());
        if (type == "crc32") sum = digest::crc32(crc, data.data(), data.size());
    }
    // As far as can be told.
    bool fits() const {
        const std::size_t unused = type == "crc64nvme" ? 0 : sizeof sum / 2;
        return type.empty() || bytes::base64(digest::big_endian(sum).substr(unused)) == expected;
    }
};

// Bytes of one version of an object as they come on a connection of their own; a broken one is resumed where it broke,
// on the same version (If-Match) or not at all. A part of a large object is kept until those before it were handed on.
class Range : public Call {
public:
    Range(Session& on, std::string_view key) : Call(on, s3::request(on.core, "get", Method::get, key)) {
        request.sink = {this, [](void* self, const http::Transfer& from, const char* data, std::size_t size) {
                            return static_cast<Range*>(self)->receive(from, {data, size});
                        }};
    }

    // Once the call is done: whether all has come.
    Result<void> check() const {
        if (trouble_) return *trouble_;
        if (at_ == end_) return {};
        const bool is_gone = at_ > 0 && !error && (status() == 412 || status() == 404);
        if (is_gone) return request.refuse(Errc::changed, "the object was replaced while it was read");
        if (!ok()) return failure();
        if (at_ == 0 && status() != 200) return request.refuse(Errc::protocol, "the answer is none to a GET");
        const bool is_short = at_ < end_ && end_ != unknown;
        return is_short ? request.refuse(Errc::damaged, "the body is shorter than announced") : Result<void>();
    }
    // Asks for the bytes from `from` to before `end`, part_bytes at most.
    void fetch(std::string_view version, std::uint64_t from, std::uint64_t end) {
        if (!buffer) buffer.reset(new char[core.config.part_bytes]);
        request.large = true;
        version_ = version;
        from_ = at_ = from;
        end_ = end;
        on_retry();
        start();
    }
    // How much of what is behind `offset` has come; and the next of that.
    std::uint64_t bytes_behind(std::uint64_t offset) const { return at_ - (std::max)(from_, offset); }
    std::string_view piece_at(std::uint64_t offset) const {
        const auto count = static_cast<std::size_t>((std::min)(at_ - offset, std::uint64_t{piece_bytes}));
        return {buffer.get() + (offset - from_), count};
    }

protected:
    // Ends the reading with this error.
    SinkResult fail(Error why) {
        trouble_ = std::move(why);
        return SinkResult::stop;
    }

    static constexpr auto unknown = (std::numeric_limits<std::uint64_t>::max)();

    // Looks at the headers of the object, before its first bytes come.
    virtual void begin(const http::Headers&) {}
    // What comes. That which is not `consumed` comes again, or is the last.
    virtual SinkResult put(std::string_view data) {
        data.copy(buffer.get() + (at_ - from_), data.size());
        return SinkResult::consumed;
    }

    SinkResult receive(const http::Transfer& from, std::string_view data) {
        if (from.received == 0) {
            if (Result<void> fine = check_head(from); !fine) return fail(std::move(fine).error());
        }
        // A store that ignores ranges sends all of it again.
        const std::uint64_t known = from.status == 200 ? at_ - from.received : 0;
        const auto skipped = static_cast<std::size_t>((std::min)(known, std::uint64_t{data.size()}));
        const std::size_t left = data.size() - skipped;
        const auto wanted = static_cast<std::size_t>((std::min)(end_ - at_, std::uint64_t{left}));
        const SinkResult result = wanted ? put(data.substr(skipped, wanted)) : SinkResult::consumed;
        if (result != SinkResult::consumed) return result;
        at_ += wanted;
        return wanted < left ? SinkResult::stop : SinkResult::consumed;
    }

    // Prepares the request for what is missing. False: nothing is, or it may be of another version.
    bool on_retry() override {
        if (at_ == 0) return true;
        if (at_ == end_ || version_.empty()) return false;
        if (at_ - resumed_at_ >= progress_bytes_min) attempts = 0;
        resumed_at_ = at_;
        const std::string last = end_ == unknown ? std::string() : bytes::number(end_ - 1);
        request.headers = {{"range", bytes::joined({"bytes=", bytes::number(at_), "-", last})},
                           {"if-match", std::string(version_)}};
        return true;
    }

    // Whether an answer is the object, or carries on where the last one broke off.
    Result<void> check_head(const http::Transfer& from) {
        if (at_ == 0 && from.status == 200) begin(from.headers);
        if (at_ > 0 && from.headers.get("etag") != version_)
            return request.refuse(Errc::changed, "the object was replaced while it was read");
        if (from.status == 200) return {};
        const std::string_view range = from.headers.get("content-range");
        if (at_ > 0 && bytes::starts_with(range, bytes::joined({"bytes ", bytes::number(at_), "-"}))) return {};
        return request.refuse(Errc::protocol, "the store answered with another range than asked for");
    }

    std::string_view version_{};  // its strong ETag; empty: there is none
    std::uint64_t from_ = 0, at_ = 0, resumed_at_ = 0, end_ = unknown;
    std::optional<Error> trouble_{};
};

// Stored bytes to value bytes: inflated if the entry says so and the bytes look like it. (The Python class marks
// streams as compressed that it sends as they are; an entry with a kind is not its.)
class Decoder {
public:
    void begin(const Info& info) {
        has_begun_ = true;
        is_gzip_ = info.compressed;
        is_undecided_ = info.compressed && !info.kind;
    }
    bool has_begun() const { return has_begun_; }
    // What has come, borrowed until next() is empty; nothing: that was all.
    void feed(std::string_view data) {
        is_at_end_ = data.empty();
        input_ = data;
        if (!is_undecided_) return;
        input_ = head_.append(data);
        is_undecided_ = head_.size() < gzip_magic.size() && !is_at_end_;
        is_gzip_ = bytes::starts_with(head_, gzip_magic);
    }
    // The next bytes of the value, valid until the next call; empty: feed more, or it is the end.
    Result<std::string_view> next() {
        if (is_undecided_) return std::string_view();
        return is_gzip_ ? inflate() : std::exchange(input_, std::string_view());
    }

private:
    static constexpr std::string_view gzip_magic = "\x1f\x8b";

    Result<std::string_view> inflate() {
#ifdef S3CACHE_NO_GZIP
        return Error(Errc::unsupported, "the entry is compressed, and this build has no gzip (S3CACHE_NO_GZIP)");
#else
        if (!out_) out_.reset(new char[piece_bytes]);
        if (!input_.empty()) inflater_.feed(std::exchange(input_, std::string_view()));
        const std::size_t produced = inflater_.pull(out_.get(), piece_bytes);
        if (inflater_.problem() || (produced == 0 && is_at_end_ && !inflater_.end_of_input()))
            return Error(Errc::damaged, std::string("the gzip body is damaged: ") + inflater_.problem());
        return std::string_view(out_.get(), produced);
#endif
    }

#ifndef S3CACHE_NO_GZIP
    gzip::Inflater inflater_;
    std::unique_ptr<char[]> out_;
#endif
    bool has_begun_ = false, is_gzip_ = false, is_undecided_ = false, is_at_end_ = false;
    std::string_view input_;
    std::string head_;  // what has come of an entry that is undecided
};

// What a set() stores: a payload in memory, or a source, which may read a file.
struct Body {
    const Payload* payload = nullptr;
    const Source* source = nullptr;
    std::FILE* file = nullptr;
    std::string_view path{};

    bool is_negative() const { return payload && payload->negative(); }
    std::optional<std::uint64_t> size() const { return source ? source->size() : payload->view().size(); }
};

// One call of the user's function, which may do anything; `taken` counts what it has given.
inline Result<std::size_t> ask(const Source& source, char* buffer, std::size_t capacity, std::uint64_t& taken) {
    auto count = guarded([&]() -> Result<std::size_t> { return source.read(buffer, capacity); }, "the source");
    if (!count) return count;
    if (*count == source_failed) return Error(Errc::source, "the source failed");
    if (*count > capacity) return Error(Errc::source, "the source says it wrote more than the buffer holds");
    taken += *count;
    if (source.size() && (taken > *source.size() || (*count == 0 && taken < *source.size())))
        return Error(Errc::source, "the source is not as long as it announced");
    return count;
}

// How a stream is cut: the size of the first parts, and what later ones may grow to.
struct PartPlan {
    std::uint64_t first = 0, most = 0, parts = parts_max;

    std::uint64_t bytes_of(std::uint64_t number) const {
        const std::uint64_t doubled = number > equal_parts ? 1 + (number - equal_parts - 1) / parts_a_size : 0;
        return (std::min)(first << doubled, most);
    }
};

// Equal parts where the length is known, 10,000 at most; otherwise, or beyond the memory bound, parts grow up to that.
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

// Whether its condition was what kept a write from happening.
inline bool is_unmet(const Call& call) {
    return !call.request.condition.empty() && !call.error &&
           (call.status() == 412 || (call.status() == 404 && call.fault.code == "NoSuchKey"));
}

// True: the store (Swift, B2) refuses write conditions, and the look before has to do.
inline bool drops_condition(Call& call) {
    if (call.ok() || call.error || call.request.condition.empty()) return false;
    if (retry::rule_for(call.status(), call.fault.code).kind != Errc::unsupported) return false;
    if (call.core.honours_conditions == Core::Trait::yes) call.core.count(&Stats::unconditional);  // of PUT alone
    return call.request.condition.clear(), true;
}

// Whether the entry under the key is the one this write put there: asked when an answer may have been lost.
inline Result<bool> is_stored_by_us(Session& session, const s3::Request& write) {
    if (write.write_id.empty()) return false;
    session.allow_cleanup();
    const auto there = look(session, write.operation, write.key);
    session.end_cleanup();
    if (!there) return there.error();  // so nobody knows
    return there->write_id == write.write_id;
}

// What vouches for a body: hash and CRC-32C, made in one pass over pieces that the processor's cache still holds.
class BodySum {
public:
    explicit BodySum(Session& session)
        : has_crc(session.core.config.checksums != Checksums::none), core_(session.core), hash_(session.body_hash()) {}

    bool has_crc;

    void update(std::string_view data) {
        for (; !data.empty(); data.remove_prefix((std::min)(data.size(), piece_bytes))) {
            const std::string_view piece = data.substr(0, piece_bytes);
            if (is_hashed_) hash_.update(piece);
            if (has_crc) crc_ = digest::crc32c(crc_, piece.data(), piece.size());
        }
    }
    // Puts into the request what was summed since the last time, and returns the CRC.
    std::string seal(s3::Request& out) {
        std::string text = entry::crc32c_text(std::exchange(crc_, 0U));
        if (core_.config.checksums == Checksums::store) out.header("x-amz-checksum-crc32c", text);
        out.payload_hash =
            is_hashed_ ? bytes::hex(digest::as_text(hash_.finish())) : std::string(sigv4::unsigned_payload);
        return text;
    }

private:
    // Over plain http nothing but the hash would vouch for the bytes.
    static bool has_tls(Core& core) {
        const auto place = core.place();
        return place && (*place)->scheme == "https";
    }

    Core& core_;
    digest::Sha256& hash_;
    const bool is_hashed_ = !core_.config.unsigned_payload || !has_tls(core_);
    std::uint32_t crc_ = 0;
};

// One PUT of bytes that are all there; by itself, or among many.
struct Put : Call {
    Put(Session& on, s3::Request&& what, std::string_view body) : Put(on, std::move(what), body, BodySum(on), body) {}
    // `left` is what of the body was not summed yet.
    Put(Session& on, s3::Request&& what, std::string_view body, BodySum sum, std::string_view left)
        : Call(on, std::move(what)) {
        request.body = body;
        sum.update(left);
        const std::string crc = sum.seal(request);
        if (core.config.checksums != Checksums::none) request.header("x-amz-meta-crc32c", crc);
    }

    bool prepare_next() override {
        return sent_again < puts_again_max && (is_odd() || fits_condition()) && ++sent_again > 0;
    }
    // True: stored; false: the write condition was not met.
    Result<bool> result() {
        if (is_odd())
            return request.refuse(Errc::protocol, "the answer is not that to a PUT: is the endpoint an S3 store?");
        if (ok()) return true;
        // Our own write may be what is there, if its answer was lost and it was sent again.
        if (is_unmet(*this)) return is_stored_by_us(session, request);
        return failure();
    }
    Result<bool> store() { return run(), result(); }

    // S3 says 200 with an ETag, WebDAV 201 or 204, perhaps with none; Swift a page to one of two who write at once.
    bool is_odd() const {
        return ok() && (!answer->text.empty() || (status() == 200 && headers().get("etag").empty()));
    }
    // Puts the write condition as this store takes it; false: it is as it should be.
    bool fits_condition() {
        std::string& condition = request.condition;
        if (drops_condition(*this)) return true;
        if (ok() || !is_unmet(*this) || condition.front() != '"') return false;
        const auto there = look(session, request.operation, request.key);
        if (!there || there->info.etag != condition) return false;
        condition = condition.substr(1, condition.size() - 2);  // Ceph before 2025 compares without the quotes
        return true;
    }

    int sent_again = 0;
};

// Bytes in memory go up in parts only from twice a part's size on: one PUT is atomic and cheaper.
inline bool fits_one_put(const Config& config, std::string_view data) {
    return data.size() <= std::uint64_t{2} * config.part_bytes;
}

// One way up for memory, files and streams, each through gzip or not: a single PUT if it fits, or else
//
//   create ──> parts, several in flight while the next is gathered ──> complete ──> stored
//     └---------------┴- error, cancellation, out of time -----------------┴------> abort
//
// A link that one connection fills takes two lanes and their memory: one sends while the other's part is gathered.
class Upload {
public:
    // `write`: the PUT but for its body.
    Upload(Session& session, s3::Request&& write, PartPlan plan, const Body& body, const SetOptions& options)
        : request(std::move(write)), session_(session), plan_(plan), body_(body), options_(options) {
        if (!options.progress) return;
        session.on_progress(this, [](void* self) { return static_cast<Upload*>(self)->report(); });
    }
    ~Upload() {
        if (is_open_ && !http::shielded([this] { return abort(); }, false)) core_.count(&Stats::leftover_uploads);
    }

    // True: stored; false: a write condition was not met, nothing was stored.
    Result<bool> run() {
        const bool fits = !body_.source && fits_one_put(core_.config, memory_);
        Result<bool> stored = fits ? Put(session_, std::move(request), memory_).store() : run_parts();
        if (stored && *stored && options_.progress)  // what it says no longer matters
            options_.progress({body_.source ? taken_ : *body_.size(), body_.size()});
        return stored;
    }

    s3::Request request;

private:
    bool report() {
        // Of a source that is deflated progress is what was read of it: what goes over the wire is another count.
        const std::uint64_t now = is_deflated_ ? taken_ : stored_bytes_ + session_.sent();
        reported_ = (std::max)(reported_, now);  // a part that is sent again does not count backwards
        return options_.progress({reported_, body_.size()});
    }

    // -- parts

    Result<bool> run_parts() {
        Result<void> fine = sum_whole();
        s3::Calls parts(session_, [&](std::size_t number, Call& part) {
            if (fine) fine = take_in(number, part);
        });
        if (fine) fine = gather();
        if (!fine) return std::move(fine).error();
        if (!has_more_) return Put(session_, std::move(request), part_->request.body, sum_, {}).store();
        fine = create();
        if (fine) send(parts);
        while (fine && (has_more_ || parts.size() != 0)) {
            judge_speed(parts);
            parts.step(has_room(parts) ? s3::Milliseconds(0) : s3::step_most);
            if (has_room(parts) && quick_parts_ < quick_parts_min) parts.finish();
            if (!fine || !has_room(parts)) continue;
            fine = gather();
            if (fine) send(parts);
        }
        return fine ? complete() : Result<bool>(std::move(fine).error());
    }
    // The CRC-32C of the whole, where that can be read before it goes up in parts.
    Result<void> sum_whole() {
        if (core_.config.checksums == Checksums::none) return {};
        std::uint32_t crc = digest::crc32c(0, memory_.data(), memory_.size());
        if (body_.source) {
            if (!body_.file || is_deflated_ || body_.size().value_or(0) <= plan_.first) return {};
            std::vector<char> piece(8 * piece_bytes);
            while (const std::size_t count = std::fread(piece.data(), 1, piece.size(), body_.file)) {
                crc = digest::crc32c(crc, piece.data(), count);
                if (Result<void> allowed = check_turn(); !allowed) return allowed;
            }
            if (std::ferror(body_.file)) return Error(Errc::source, "the source failed");
            std::rewind(body_.file);
        }
        whole_crc_ = entry::crc32c_text(crc);
        return {};
    }
    bool has_room(const s3::Calls& parts) const {
        const std::size_t lanes = lanes_for(core_.config, plan_.bytes_of(begun_ + 1));
        return has_more_ && parts.size() < (are_lanes_slow_ ? lanes : (std::min)(lanes, first_lanes));
    }
    // Looks at the first lanes while all of them are busy; the time to gather a part does not count.
    void judge_speed(const s3::Calls& parts) {
        const bool is_new = std::exchange(sample_part_, begun_) != begun_;
        if (!is_new && http::Clock::now() - sample_began_ < sample_time) return;
        const std::uint64_t moved = stored_bytes_ + session_.sent();
        are_lanes_slow_ |= !is_new && parts.size() == first_lanes && moved - sample_from_ < fast_bytes;
        sample_began_ = http::Clock::now();
        sample_from_ = moved;
    }
    // Whether the operation may go on, once the network has had a turn.
    Result<void> check_turn() {
        session_.step(s3::Milliseconds(0));
        return session_.check_allowed(request.operation, request.key);
    }

    Result<void> create() {
        if (request.write_id.empty()) request.write_id = core_.random_id();
        s3::Request out = request;
        out.condition.clear();
        out.method = Method::post;
        out.query = "uploads=";
        if (!whole_crc_.empty()) out.header("x-amz-meta-crc32c", whole_crc_);
        if (core_.config.checksums == Checksums::store) out.header("x-amz-checksum-algorithm", "CRC32C");
        out.begins_upload = out.error_in_200 = true;
        sum_.has_crc = core_.config.checksums == Checksums::store;  // that of a part is of use to a store alone
        Call call(session_, std::move(out));
        if (Result<void> allowed = check_turn(); !allowed) return allowed;  // progress is told before anything is sent
        is_open_ = true;                                                    // until the answer says otherwise
        call.run();
        if (const auto id = call.ok() ? xml::upload_id(call.answer->text) : std::nullopt) {
            id_.reserve(3 * id->size());  // so that it is whole or empty
            bytes::append_percent(id_, *id, false);
            return session_.check_allowed(request.operation, request.key);
        }
        is_open_ = call.is_unread();
        return call.ok() ? request.refuse(Errc::protocol, "the store began no upload: its answer is not S3's")
                         : call.failure();
    }

    // Takes in the next part.
    Result<void> gather() {
        if (begun_ == plan_.parts)
            return request.refuse(
                Errc::too_large,
                "the stream is over 10,000 parts: announce its size, or raise part_bytes, transfer_bytes_max");
        ++quick_parts_;
        const auto size = static_cast<std::size_t>(plan_.bytes_of(++begun_));
        part_.reset(new Call(session_, s3::request(core_, request.operation, Method::put, request.key)));
        if (body_.source) return fill(size);
        std::string_view& piece = part_->request.body;
        piece = memory_.substr(0, size);
        sum_.update(piece);
        memory_.remove_prefix(piece.size());
        has_more_ = !memory_.empty();
        return {};
    }
    // Reads a part, and one byte more, which tells whether there is another. The network has turns meanwhile.
    Result<void> fill(std::size_t size) {
        part_->buffer = std::move(spare_);
        if (!part_->buffer) part_->buffer.reset(new char[size + 1]);
        char* const data = part_->buffer.get();
        std::size_t filled = 0, summed = 0;
        if (has_more_) data[filled++] = next_byte_;
        for (auto turn = http::Clock::now(); filled <= size && !is_at_end_;) {
            const auto count = read(data + filled, (std::min)(size + 1 - filled, piece_bytes));
            if (!count) return about(request.operation, request.key, count.error());
            filled += *count;
            sum_.update({data + summed, (std::min)(filled, size) - summed});
            summed = (std::min)(filled, size);
            const auto given = http::Clock::now();
            if (given - turn > slow_source_time) quick_parts_ = 0;
            if (given - turn < turn_time) continue;
            turn = given;
            if (Result<void> allowed = check_turn(); !allowed) return allowed;
        }
        has_more_ = filled > size;
        if (has_more_) next_byte_ = data[size];
        part_->request.body = {data, (std::min)(filled, size)};
        sum_.update(part_->request.body.substr(summed));
        return {};
    }

    // Some bytes of the source, asked once at most, deflated if wanted; none: more are to come unless it is at its end.
    Result<std::size_t> read(char* buffer, std::size_t capacity) {
#ifndef S3CACHE_NO_GZIP
        if (is_deflated_) {
            if (!raw_) raw_.reset(new char[piece_bytes]);
            const std::size_t produced = deflater_.pull(buffer, capacity);
            if (deflater_.problem()) return Error(Errc::too_large, std::string("gzip: ") + deflater_.problem());
            is_at_end_ = deflater_.is_finished();
            if (is_at_end_ || produced == capacity) return produced;
            const Result<std::size_t> count = ask(*body_.source, raw_.get(), piece_bytes, taken_);
            if (!count) return count;
            deflater_.feed({raw_.get(), *count});
            if (*count == 0) deflater_.finish();
            return produced;
        }
#endif
        Result<std::size_t> count = ask(*body_.source, buffer, capacity, taken_);
        is_at_end_ = count && *count == 0;
        return count;
    }

    // What was gathered goes out.
    void send(s3::Calls& parts) {
        part_->request.query = "partNumber=" + bytes::number(begun_) + "&uploadId=" + id_;
        static_cast<void>(sum_.seal(part_->request));
        parts.add(begun_, part_.release());
    }
    // Takes in the answer to a part.
    Result<void> take_in(std::size_t number, Call& part) {
        if (!part.ok()) return part.failure();
        const std::string_view etag = part.headers().get("etag");
        if (etag.empty())
            return request.refuse(Errc::protocol, "the answer to a part has no ETag: is the endpoint an S3 store?");
        stored_.resize((std::max)(stored_.size(), number));
        std::string& line = stored_[number - 1];
        line = bytes::joined({"<Part><PartNumber>", bytes::number(number), "</PartNumber><ETag>"});
        xml::escape(line, etag);
        line += "</ETag>";
        for (const auto& sum : part.request.headers)  // a part has no others
            line += bytes::joined({"<ChecksumCRC32C>", sum.second, "</ChecksumCRC32C>"});
        line += "</Part>";
        stored_bytes_ += part.request.body.size();
        if (plan_.bytes_of(number) == plan_.bytes_of(begun_ + 1)) spare_ = std::move(part.buffer);
        return {};
    }

    Result<bool> complete() {
        std::string list = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
        for (const std::string& line : stored_) list += line;
        list += "</CompleteMultipartUpload>";
        s3::Request out = s3::request(core_, request.operation, Method::post, request.key, "uploadId=" + id_);
        out.condition = request.condition;
        out.header("content-type", "application/xml");
        out.body = list;
        out.payload_hash = bytes::hex(digest::as_text(digest::sha256(list)));
        out.stall = complete_stall;
        out.error_in_200 = true;
        Call call(session_, std::move(out));
        call.run();
        if (core_.config.conditions != Conditions::required && drops_condition(call)) call.run();
        if (call.ok() && !xml::etag_result(call.answer->text))
            return request.refuse(Errc::protocol, "the store's answer does not say that the upload is complete");
        // A lost answer may have been a success: then the retry says 412 or NoSuchUpload, and the object itself tells.
        const Result<bool> by_us = call.ok() ? Result<bool>(true) : is_stored_by_us(session_, request);
        is_open_ = !by_us || !*by_us;
        return !is_open_ || is_unmet(call) ? by_us : call.failure();
    }

    // Once parts in flight are cut off, since one that arrives later would stay. False: something may still be there.
    bool abort() {
        std::string why = "its id did not arrive, or there was no memory for it";
        if (!id_.empty()) {
            session_.allow_cleanup();
            Call call(session_, s3::request(core_, "abort_upload", Method::erase, request.key, "uploadId=" + id_));
            call.run();
            const bool is_page = call.ok() && !call.answer->text.empty();  // of something that is no S3
            if ((call.ok() && !is_page) || call.status() == 404) return true;
            why = is_page ? "the answer to the abort is not S3's" : call.failure().what();
        }
        if (core_.config.on_event)
            core_.config.on_event({"abort_upload", request.key, "leftover", 0, 0, 0, {}, false, why});
        return false;
    }

    Session& session_;
    Core& core_ = session_.core;
    const PartPlan plan_;
    const Body& body_;
    const SetOptions& options_;
    const bool is_deflated_ = body_.source && options_.compress;
    std::string_view memory_ = body_.source ? std::string_view() : body_.payload->view();  // what is left of it
    BodySum sum_{session_};                                                                // of the next part
    std::uint64_t taken_ = 0;                                                              // of the source
    bool is_at_end_ = false;  // it is, and the deflater too
#ifndef S3CACHE_NO_GZIP
    gzip::Deflater deflater_{core_.config.compression_level};
    std::unique_ptr<char[]> raw_;
#endif
    std::string whole_crc_;                                                // in base64; empty: nobody knows
    bool has_more_ = false;                                                // than the parts begun
    char next_byte_ = 0;                                                   // the first of those
    int quick_parts_ = body_.source && !body_.file ? 0 : quick_parts_min;  // in a row; a file does not pause
    bool are_lanes_slow_ = false;                                          // so that others help
    http::Clock::time_point sample_began_{};
    std::uint64_t sample_from_ = 0, sample_part_ = 0;  // what had been moved then, and which part was the last
    std::size_t begun_ = 0;                            // parts
    std::unique_ptr<Call> part_;                       // gathered, but not on its way
    std::unique_ptr<char[]> spare_;                    // a buffer for the next
    std::vector<std::string> stored_;                  // what Complete says of each
    std::uint64_t stored_bytes_ = 0, reported_ = 0;
    bool is_open_ = false;  // an upload may be, at the store
    std::string id_;        // its, percent-encoded
};

}  // namespace detail::transfer

// --- cache: keys, expiry, conditions, many keys, single flight; what Cache's members do ------------------------------

namespace detail::cache {

using InFlight = Core::InFlight;
using http::Method;
using http::SinkResult;
using s3::Call;
using s3::refusal;
using s3::request;
using s3::Session;
using transfer::Body;
using transfer::interpret_look;
using transfer::is_absent;
using transfer::look;

// How often an entry that is replaced under our hands is read or touched again.
inline constexpr int versions_tried_max = 3;

// -- pages of a list

// What lies below a prefix, page by page. Of a listing these are the insides.
struct Pages {
    Pages(std::shared_ptr<Core> shared, std::string_view below, Look how, std::optional<Seconds> age = {})
        : core(std::move(shared)), session(*core), prefix(core->object(below)), look(how), older_than(age) {}

    // The entries that could be read come before the error about one that could not. Scratch objects are left out.
    Result<std::optional<Entry>> next() {
        for (;; ++at) {
            while (at == page.size()) {
                if (trouble) return *trouble;
                if (is_last) return std::optional<Entry>();
                if (std::exchange(is_turning, true)) return refuse("an earlier page was left by an exception");
                const Result<void> fine = next_page();
                is_turning = false;
                if (fine) continue;
                page.clear();
                trouble = fine.error();
            }
            if (!entry::is_scratch_name(page[at].key)) return std::optional<Entry>(std::move(page[at++]));
        }
    }

    Result<void> next_page() {
        session.allow(core->config.call_timeout);
        page.clear();
        at = 0;
        Call call(session, s3::bucket_request(operation(), Method::get, query(), prefix));
        call.run();
        if (!call.ok()) return call.failure();
        std::string& text = call.answer->text;
        const std::string_view element = older_than ? "Upload" : "Contents";
        auto got = xml::list_result(text, element);
        const bool has_illegal =
            !got && xml::mark_illegal(text, illegal_mark);  // of a store that ignores encoding-type
        if (has_illegal) got = xml::list_result(text, element);
        const char* wrong = got ? check(*got) : "the answer is no list: is the endpoint an S3 store?";
        if (wrong) return refuse(wrong);
        for (Entry& listed : got->entries) {
            if (has_illegal && listed.key.find(illegal_mark) != std::string::npos)
                trouble = refuse("a key holds a byte that XML cannot, unencoded: remove it by its name");
            else if (bytes::starts_with(listed.key, prefix))
                add(listed);
            else if (!older_than)
                return refuse("the store listed a key outside the prefix");
        }
        is_last = !got->truncated;
        return look == Look::deep ? look_deeper() : Result<void>();
    }

    std::shared_ptr<Core> core;
    Session session;
    std::string prefix;
    Look look;
    const std::optional<Seconds> older_than;  // uploads that began longer ago are listed; empty: entries are
    bytes::Pairs markers{};                   // by which the next page is asked for
    std::vector<Entry> page{};
    std::size_t at = 0;
    unsigned empty_pages = 0;
    std::uint64_t pages = 0;  // that held something
    std::string remembered{}, previous_last{};
    bool is_last = false;
    bool is_turning = false;         // outside of next(): an exception left it, and entries may be lost
    std::optional<Error> trouble{};  // about a key that is left out of its page, or why there are no more pages

private:
    static constexpr char illegal_mark = '\x7F';      // stands for bytes that XML cannot hold
    static constexpr unsigned empty_pages_max = 100;  // in a row; stores may send some where much was deleted

    const char* operation() const { return older_than ? "sweep_uploads" : "list"; }
    Error refuse(std::string_view text) const { return refusal(Errc::protocol, operation(), prefix, text); }

    std::string query() const {
        bytes::Pairs out = {{"encoding-type", "url"}, {"prefix", prefix}};
        bytes::add(out, older_than ? "uploads" : "list-type", older_than ? "" : "2");
        for (const auto& [name, value] : markers) {
            if (!value.empty()) bytes::add(out, name, value);
        }
        return sigv4::canonical_query(out);
    }
    // What is wrong with the page, if anything. A store that ignores the markers sends the same pages for ever: each
    // page's first name is compared with that of an earlier page, which is moved on at each power of two, so that any
    // circle is found, in whatever order a store sorts.
    const char* check(const xml::ListPage& got) {
        markers = {{"continuation-token", got.next_token},
                   {"key-marker", got.next_key_marker},
                   {"upload-id-marker", got.next_upload_id_marker}};
        empty_pages = got.entries.empty() ? empty_pages + 1 : 0;
        if (empty_pages != 0)
            return empty_pages > empty_pages_max ? "the store sends empty pages without end" : nullptr;
        const auto name = [](const Entry& listed) { return listed.key + '\n' + listed.info.etag; };
        const std::string first = name(got.entries.front());
        if (first == remembered || first == previous_last)
            return "the store sends the same page again instead of the next";
        if ((pages & (pages + 1)) == 0) remembered = first;
        ++pages;
        previous_last = name(got.entries.back());
        return nullptr;
    }

    void add(Entry& entry) {
        entry.key.erase(0, core->prefix.size());
        const Info& info = entry.info;
        // An upload without an id (in the place of an ETag) is left: to abort it would read as to remove an object.
        const bool is_left =
            older_than && (info.etag.empty() || info.last_modified == TimePoint() ||
                           retry::seconds_between(info.last_modified, core->now()) < older_than->count());
        if (!entry.key.empty() && !is_left) page.push_back(std::move(entry));
    }

    // An entry that has gone since it was listed stays as the list told it; one that cannot be looked at is an error.
    Result<void> look_deeper() {
        Result<void> out;
        s3::Calls looks(session, [&](std::size_t i, const Call& call) {
            if (call.ok()) {
                entry::Facts facts = entry::read(call.headers());
                if (!facts.length) facts.info.size = page[i].info.size;
                page[i].info = std::move(facts.info);
            } else if ((call.error || call.status() != 404) && out) {
                out = call.failure();
            }
        });
        for (std::size_t i = 0; i < page.size(); ++i) {
            looks.add(i, new Call(session, request(*core, "stat", Method::head, page[i].key)));
        }
        looks.finish();
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
    const char* wrong = is_utf8 ? nullptr : "the key is not UTF-8";
    if (key.find('\0') != std::string_view::npos) wrong = "the key holds a NUL";
    if (core.prefix.size() + key.size() > 1024) wrong = "the key, with its prefix, is over 1024 bytes";
    if (key.empty()) wrong = "the key is empty";
    if (wrong) return refusal(Errc::invalid_argument, operation, is_utf8 ? key : std::string_view(), wrong);
    if (!http::is_ready())
        return refusal(Errc::unsupported, operation, key, "the program is ending, and OpenSSL has shut down before");
    return to_write ? check_writable(core, operation, key) : Result<void>();
}

// A try_ form never throws: what the standard library may throw (no memory) becomes an Error, which is made ahead.
inline const Error& out_of_memory() {
    static const Error& error = *new Error(Errc::too_large, "out of memory");  // never destroyed: statics may call us
    return error;
}
#if S3CACHE_EXCEPTIONS
// Of what has just been caught.
inline Error error_of_exception() noexcept {
    return http::shielded([] { return thrown("a callback"); }, out_of_memory());
}
#endif
template <class F, class... Arguments>
auto never_throws(F&& call, Arguments&&... arguments) noexcept -> decltype(call(arguments...)) {
#if S3CACHE_EXCEPTIONS
    try {
        return call(arguments...);
    } catch (const std::bad_alloc&) {
        return out_of_memory();
    } catch (...) {
        return error_of_exception();
    }
#else
    return call(arguments...);
#endif
}

inline std::string_view key_of(std::string_view key) { return key; }
inline std::string_view key_of(const Item& item) { return item.key; }
// The results of many, each of which `work` puts into its place. What is thrown is the error of all that have none by
// then. There are none at all only if there is no memory for them.
template <class T, class List, class Work>
std::vector<Result<T>> result_of_each(const char* operation, const List& list, const Work& work) {
    std::vector<Result<T>> out;
    const Result<void> ran = never_throws([&]() -> Result<void> {
        out = std::vector<Result<T>>(list.size(), out_of_memory());
        work(out);
        return {};
    });
    for (std::size_t i = 0; !ran && i < out.size(); ++i) {
        // What has no result is still the very error that each began with.
        if (!out[i] && &out[i].error().details() == &out_of_memory().details())
            out[i] = never_throws([&]() -> Result<T> { return about(operation, key_of(list[i]), ran.error()); });
    }
    return out;
}

// -- outcomes: what an operation came to, as an event and in the counters

// What an operation moved and how long it took.
struct Timing {
    http::Clock::time_point began{};  // empty: not to be reported
    std::uint64_t bytes = 0;
    int status = 0;
};

inline void record(Core& core, const char* operation, std::string_view key, const char* outcome,
                   std::uint64_t Stats::*counter = nullptr, std::string_view detail = {}, const Timing& timing = {}) {
    if (counter) core.count(counter);
    if (counter == &Stats::expired || counter == &Stats::malformed) core.count(&Stats::misses);
    if (!core.config.on_event) return;
    const bool is_timed = timing.began != http::Clock::time_point();
    const Seconds duration = is_timed ? http::Clock::now() - timing.began : Seconds();
    core.config.on_event({operation, key, outcome, 0, timing.status, timing.bytes, duration, false, detail});
}

inline Error record_error(Core& core, const char* operation, std::string_view key, Error error, Timing timing = {}) {
    timing.status = error.status();
    const bool is_damage = error.code() == Errc::damaged;
    record(core, operation, key, is_damage ? "damaged" : "error", is_damage ? &Stats::damaged : &Stats::errors,
           error.what(), timing);
    return error;
}

// Of a write: false is that its condition was not met.
inline Result<bool> record_write(Core& core, const char* operation, std::string_view key, Result<bool> done,
                                 std::uint64_t Stats::*counter, const Timing& timing) {
    if (!done) return record_error(core, operation, key, std::move(done).error(), timing);
    record(core, operation, key, *done ? "done" : "refused", *done ? counter : &Stats::refused, {}, timing);
    return done;
}

// Says whether the entry is to be served, and records why not.
inline bool is_usable(Core& core, const char* operation, std::string_view key, const entry::Facts& facts) {
    if (facts.is_malformed())
        record(core, operation, key, "malformed", &Stats::malformed, "its expires_at is not a number");
    else if (!facts.expired(core.unix_now()))
        return true;
    else
        record(core, operation, key, "expired", &Stats::expired);
    return false;
}

// Errors of reading reported as misses, where that is the policy. What is wrong with the call itself stays an error.
template <class T>
Result<std::optional<T>> tolerated(Core& core, const char* operation, std::string_view key,
                                   Result<std::optional<T>> result) {
    if (result || !core.config.errors_are_misses) return result;
    const Errc code = result.error().code();
    if (code == Errc::invalid_argument || code == Errc::cancelled || code == Errc::file) return result;
    record(core, operation, key, "tolerated", &Stats::tolerated, result.error().what());
    return std::optional<T>();
}

// -- removing

// Whether this has removed something, or found it gone, which is the same for an entry. Of an upload in parts (the
// request has a query) only the one who ends it is told so. A look that was followed by no DELETE removed nothing.
inline Result<bool> interpret_removal(const Call& call) {
    const s3::Request& request = call.request;
    if (request.method == Method::head) return interpret_look(call).transform([](const auto&) { return false; });
    if (!call.error && call.status() == 412 && !request.headers.empty()) return false;  // replaced meanwhile
    if (is_absent(call) && call.status() == 404) return request.query.empty();
    if (!call.ok()) return call.failure();
    if (call.answer->text.empty()) return true;
    return refusal(Errc::protocol, request.operation, request.key,
                   "the answer to a DELETE has a body: is the endpoint an S3 store?");
}

// The next request of a call that removes an entry or aborts an upload; false: there is none. One that began with a
// look (a HEAD) goes on only if that finds the entry expired: nothing is removed because of one answer's date alone.
// If-Match then keeps the store from removing what another writer has put there, but for equal bytes, which have equal
// ETags, and for stores that ignore If-Match on DELETE: there one round trip is left.
inline bool prepare_removal(Call& call) {
    s3::Request& request = call.request;
    if (request.method == Method::head) {
        const auto found = interpret_look(call);
        if (!found || !found->expired(call.core.unix_now()) || call.core.is_computing(request.key)) return false;
        if (found->has_strong_etag()) request.header("if-match", found->info.etag);
        request.method = Method::erase;
        // Nor is it removed once the clock by which it was found expired has turned out to be wrong.
        return request.rests_on_clock = true;
    }
    if (call.status() == 501 && !request.headers.empty()) {  // a store that has no conditions
        request.headers.clear();
        return true;
    }
    if (call.status() != 404 || request.query.empty()) return false;
    // Some stores encode an upload's key without saying so: then there is none under the key as it stands.
    const auto decoded = bytes::unpercent(request.object, true);
    return decoded && std::exchange(request.object, *decoded) != *decoded;
}
struct RemovalCall : Call {
    using Call::Call;
    bool prepare_next() override { return prepare_removal(*this); }
};

// -- reading

// What a get may ask for beside the value.
struct GetRequest {
    GetOptions options{};
    Seconds grace{0};        // an entry that has expired no longer than this is returned too
    double* cost = nullptr;  // where to put the seconds that computing it took
};

// One entry being read: its bytes in order, whatever becomes of them, with length and checksums checked.
//
//   head --> one connection ------------------------------> checked end
//                  │ slow, and the object large                  ^
//                  └─> its first part, others' ranges behind it ─┘
//
// An expired one is removed once the reading is done, but never one that this process is about to replace; a failure of
// that is no concern of the reader's, since the entry will be met again.
class Reading : public transfer::Range {
public:
    // A large one that is alone, and comes slowly over one connection, is helped by others.
    Reading(Session& on, std::string_view key, GetRequest wanted, bool is_alone)
        : Range(on, key), wanted_(std::move(wanted)) {
        if (is_alone) lanes_ = transfer::lanes_for(core.config, core.config.part_bytes);
        if (core.config.checksums == Checksums::store) request.header("x-amz-checksum-mode", "ENABLED");
        if (!wanted_.options.progress) return;
        session.on_progress(this, [](void* self) { return static_cast<Reading*>(self)->report_progress(); });
    }

    bool tend() override {
        if (is_removing_) return Range::tend();
        if (done && ok() && status() == 200 && !decoder_.has_begun()) begin(headers());  // of an empty object
        if (planned_) tend_ranges();
        if (!is_over()) return true;
        const bool may_remove = core.config.expired == Expired::remove && !core.config.read_only;
        if (!is_refused_ || facts_.is_malformed() || !may_remove) return false;
        if (core.is_computing(request.key)) return false;
        is_removing_ = true;
        request = s3::request(core, "expire", Method::head, request.key);
        start();
        return true;
    }
    bool prepare_next() override { return is_removing_ && prepare_removal(*this); }
    bool on_retry() override { return is_removing_ || Range::on_retry(); }

protected:
    virtual SinkResult take(std::string_view data) = 0;

    // All has come, or nothing more will.
    bool is_over() const { return done && (!planned_ || trouble_ || at_ < end_ || taken_ == *facts_.length); }
    // Then: whether there is nothing to be served, whatever became of a body that nobody wants.
    bool is_missing() const {
        if (is_refused_) return true;
        const bool is_miss = is_absent(*this);
        if (is_miss) record(core, "get", request.key, "miss", &Stats::misses, {}, timing());
        return is_miss;
    }
    // Or else: whether what was taken is the whole object.
    Result<void> check() const {
        Result<void> fine = Range::check();
        if (!fine || verifier_.fits()) return fine;
        return request.refuse(Errc::damaged, bytes::joined({"the body does not match its ", verifier_.type,
                                                            ": the stored entry is damaged"}));
    }
    bool report_progress() const {
        std::uint64_t arrived = taken_;
        for (const auto& range : ranges_) arrived += range.bytes_behind(taken_);
        return wanted_.options.progress({arrived, facts_.length});
    }
    Timing timing() const { return {began, taken_, status()}; }

    const GetRequest wanted_;
    entry::Facts facts_;
    transfer::Decoder decoder_;
    std::uint64_t taken_ = 0;  // of the body, as it is stored
    bool is_refused_ = false, is_stale_ = false;
    http::Clock::time_point since_{};  // when bytes were last waited for: that time alone tells how fast they come

    void begin(const http::Headers& headers) override {
        facts_ = entry::read(headers);
        verifier_ = {};  // our own sum of it, or else the store's where that is asked for
        const Checksums policy = core.config.checksums;
        const bool is_to_check = policy == Checksums::store || (policy == Checksums::own && facts_.is_own_sum);
        if (is_to_check && !facts_.sum.empty()) verifier_ = {facts_.sum_type, facts_.sum};
        decoder_.begin(facts_.info);
        const bool is_endless = !facts_.length && !bytes::iequal(headers.get("transfer-encoding"), "chunked");
        const char* wrong = !facts_.from_s3 ? "the answer has no ETag: is the endpoint an S3 store?"
                            : is_endless    ? "the answer does not say how long it is"
                                            : nullptr;
        if (wrong) return void(fail(request.refuse(Errc::protocol, wrong)));
        end_ = facts_.length.value_or(unknown);
        if (facts_.has_strong_etag()) version_ = facts_.info.etag;
        const double grace = wanted_.grace.count();
        is_stale_ = grace > 0 && facts_.expired(core.unix_now()) && !facts_.expired(core.unix_now() - grace);
        is_refused_ = !is_stale_ && !is_usable(core, "get", request.key, facts_);
        if (lanes_ == 1 || facts_.length.value_or(0) / 2 < core.config.part_bytes || version_.empty()) return;
        if (headers.get("accept-ranges") != "bytes") return;
        sample_left_ = transfer::sample_time;
        since_ = http::Clock::now();
    }
    // Decides once whether others are to help: the first connection then ends with its part.
    void judge_speed() {
        since_ = http::Clock::now();  // what was done with the bytes is not the network's time
        const std::uint64_t part = core.config.part_bytes, part_end = (taken_ + part / 2) / part * part + part;
        if (sample_left_.count() > 0 || taken_ >= transfer::fast_bytes || part_end >= *facts_.length) return;
        end_ = planned_ = part_end;
    }

    // Hands out in order what the others have brought, and starts more of them; the first goes on to its part's end.
    void tend_ranges() {
        while (done && !is_over() && !ranges_.empty() && ranges_.front().done) {
            Range& range = ranges_.front();
            if (Result<void> fine = range.check(); !fine) return void(fail(std::move(fine).error()));
            if (hand_on(range.piece_at(taken_)) != SinkResult::consumed) break;
            if (range.bytes_behind(taken_) > 0) continue;
            spare_ = std::move(range.buffer);
            ranges_.pop_front();
        }
        const std::size_t at_once = done ? lanes_ : lanes_ - 1;
        while (!is_over() && ranges_.size() < at_once && planned_ < *facts_.length) {
            const std::uint64_t from =
                std::exchange(planned_, (std::min)(planned_ + core.config.part_bytes, *facts_.length));
            ranges_.emplace_back(session, request.key).buffer = std::move(spare_);
            ranges_.back().fetch(version_, from, planned_);
        }
    }
    SinkResult hand_on(std::string_view data) {
        const SinkResult result = take(data);
        if (result != SinkResult::consumed) return result;
        verifier_.update(data);
        taken_ += data.size();
        if (!facts_.length) facts_.info.size = taken_;
        return result;
    }
    SinkResult put(std::string_view data) override {
        if (trouble_) return SinkResult::stop;
        if (is_refused_) return end_ <= transfer::drained_bytes_max ? SinkResult::consumed : SinkResult::stop;
        const bool is_sampling = sample_left_.count() > 0;
        if (is_sampling) sample_left_ -= http::Clock::now() - since_;
        const SinkResult result = hand_on(data);
        if (is_sampling) judge_speed();
        return result;
    }

    std::size_t lanes_ = 1;
    transfer::Verifier verifier_;
    http::Clock::duration sample_left_{};  // of the time in which the connection's speed is looked at
    std::uint64_t planned_ = 0;            // where the last of the ranges ends; 0: one connection brings everything
    std::list<Range> ranges_;              // in order, behind what the first connection brings
    std::unique_ptr<char[]> spare_;        // the buffer of one that has been handed on
    bool is_removing_ = false;             // what was read has expired, and this has become the call that removes it
};

// One get of a whole value, by itself or among many.
class GetOperation : public Reading {
public:
    using Reading::Reading;

    // Once tend() has said that it is done.
    Result<std::optional<Value>> result() {
        if (is_missing()) return std::optional<Value>();
        Result<void> fine = check();
        if (fine) fine = decode({});
        if (!fine) return record_error(core, "get", request.key, fine.error(), timing());
        if (wanted_.options.progress) static_cast<void>(report_progress());
        record(core, "get", request.key, is_stale_ ? "expired" : "hit", is_stale_ ? &Stats::expired : &Stats::hits, {},
               timing());
        if (wanted_.cost) *wanted_.cost = facts_.cost;
        Info& info = facts_.info;
        if (!info.kind) info.kind = entry::classify(value_);
        const Kind kind = *info.kind;
        return std::optional<Value>(Value(std::move(value_), kind, std::move(info)));
    }

private:
    void begin(const http::Headers& headers) override {
        Reading::begin(headers);
        if (is_refused_ || trouble_) return;
        const std::uint64_t most = core.config.value_bytes_max, stored = facts_.length.value_or(0);
        if (!facts_.info.compressed && stored > most) fail(too_large());
        // A guess of what gzip will give: memory that is not written to costs nothing.
        const std::uint64_t likely = facts_.info.compressed ? 6 * stored : stored;
        value_.reserve(static_cast<std::size_t>((std::min)(likely, most)));
    }
    SinkResult take(std::string_view data) override {
        Result<void> fine = decode(data);
        return fine ? SinkResult::consumed : fail(std::move(fine).error());
    }
    Result<void> decode(std::string_view data) {
        decoder_.feed(data);
        for (;;) {
            const Result<std::string_view> chunk = decoder_.next();
            if (!chunk) return about("get", request.key, chunk.error());
            if (chunk->empty()) return {};
            if (chunk->size() > core.config.value_bytes_max - value_.size()) return too_large();
            value_.append(*chunk);
        }
    }
    Error too_large() const {
        return request.refuse(Errc::too_large,
                              "the value is over Config::value_bytes_max: use get_stream, or raise the limit");
    }

    std::string value_;
};

// An entry read piece by piece. While nobody reads, or the buffer is full, the transfer pauses and the store waits.
class Stream : public Reading {
public:
    using Reading::Reading;

    // Whether there is an entry to be read. What is `open_ended` may then be read for longer than the session allows.
    Result<bool> open(bool open_ended) {
        if (Result<void> fine = check_key(core, "get", request.key); !fine) return std::move(fine).error();
        request.open_ended = open_ended;
        request.large = true;
        start();
        while (tend() && buffer_.empty()) session.step(s3::step_most);
        if (open_ended) session.allow(std::chrono::milliseconds(0));
        if (is_missing()) return false;
        // A connection that broke after some bytes: what those are worth is told where they are read.
        const bool has_ended = is_over() && (buffer_.empty() || !error);
        if (const Result<void> fine = has_ended ? check() : Result<void>(); !fine)
            return record_error(core, "get", request.key, fine.error());
        record(core, "get", request.key, "hit", &Stats::hits);
        return true;
    }
    // The next bytes of the value, valid until the next call; empty at the checked end. Whoever goes on after an error
    // gets it again, and after an exception another, because bytes may be lost then.
    Result<std::string_view> next() {
        if (std::exchange(is_reading_, true))
            return trouble_ ? *trouble_ : request.refuse(Errc::source, "an earlier read was left by an exception");
        for (;;) {
            Result<std::string_view> chunk = decoder_.next();
            is_reading_ = !chunk || (chunk->empty() && !has_ended_);
            if (!is_reading_) return chunk;
            const Result<void> fine = chunk ? refill() : about("get", request.key, chunk.error());
            if (fine) continue;
            if (fine.error().code() == Errc::damaged) core.count(&Stats::damaged);
            fail(fine.error());
            return fine.error();
        }
    }
    const Info& info() const { return facts_.info; }

private:
    SinkResult take(std::string_view data) override {
        const std::uint64_t most =
            (std::min)(std::uint64_t{transfer::reader_buffer_bytes}, std::uint64_t{core.config.transfer_bytes_max} / 8);
        if (buffer_.empty())
            buffer_.reserve(static_cast<std::size_t>((std::min)(facts_.length.value_or(most), most)));
        else if (buffer_.size() + data.size() > most)
            return SinkResult::pause;
        buffer_.append(data);
        session.wake();
        return SinkResult::consumed;
    }
    // Feeds the decoder the stored bytes as they come, or tells it of their checked end.
    Result<void> refill() {
        buffer_.erase(0, fed_);
        since_ = http::Clock::now();
        resume();
        while (tend() && buffer_.empty()) session.step(s3::step_most);
        fed_ = buffer_.size();
        decoder_.feed(buffer_);
        Result<void> fine = buffer_.empty() ? check() : Result<void>();
        has_ended_ = buffer_.empty() && fine;
        return fine;
    }

    std::string buffer_;
    std::size_t fed_ = 0;  // of the buffer: the decoder has seen it
    bool has_ended_ = false;
    bool is_reading_ = false;  // outside of next(): it did not come to its end
};

// An entry that is replaced under our hands is read again, but not for ever.
inline Result<std::optional<Value>> get_one(Session& session, std::string_view key, const GetRequest& wanted) {
    if (Result<void> fine = check_key(session.core, "get", key); !fine) return std::move(fine).error();
    for (int tried = 1;; ++tried) {
        GetOperation job(session, key, wanted, true);
        job.run();
        auto got = job.result();
        if (got || got.error().code() != Errc::changed || tried == versions_tried_max) return got;
    }
}

inline Result<std::optional<Info>> stat(Core& core, std::string_view key, bool wants_size) {
    if (Result<void> fine = check_key(core, "stat", key); !fine) return std::move(fine).error();
    Session session(core);
    auto facts = look(session, "stat", key);
    const auto is_silent = [&] { return wants_size && facts && *facts && !facts->length; };
    // Some proxies leave the length out of the answer to a HEAD: then that to a GET tells it.
    if (is_silent()) facts = look(session, "stat", key, Method::get);
    if (is_silent()) facts = refusal(Errc::protocol, "stat", key, "the store does not tell how long the entry is");
    if (!facts) return tolerated<Info>(core, "stat", key, record_error(core, "stat", key, facts.error()));
    if (!*facts || !is_usable(core, "stat", key, *facts)) return std::optional<Info>();
    return std::optional<Info>(std::move(facts->info));
}

// -- touch

// S3 has no way to change metadata but to copy the object onto itself. If-Match keeps a replaced one from being undone.
// One of the same bytes has the same ETag: If-Unmodified-Since tells it apart, if it came in a later second, where the
// store looks at both; AWS lets If-Match win, so there the round trip between the look and the copy is left.
inline Result<bool> touch_entry(Core& core, std::string_view key, Seconds ttl) {
    constexpr std::uint64_t copy_bytes_max = std::uint64_t{5} << 30;  // S3 copies no more in one request
    Session session(core);
    std::string refused_etag, refused_since;
    for (int tried = 0; tried < versions_tried_max; ++tried) {
        Call there(session, request(core, "touch", Method::head, key));
        there.run();
        const auto found = interpret_look(there);
        if (!found) return found.error();
        if (!*found || !is_usable(core, "touch", key, *found)) return false;
        const entry::Facts& facts = *found;
        if (facts.info.size > copy_bytes_max)
            return refusal(Errc::too_large, "touch", key, "S3 copies no object over 5 GiB onto itself: set it anew");
        s3::Request copy = request(core, "touch", Method::put, key);
        there.headers().each([&](std::string_view name, std::string_view value) {
            if (entry::is_lost_by_copy(bytes::lower(name))) copy.header(bytes::lower(name), value);
        });
        std::string source;
        bytes::append_percent(source, "/" + core.bucket + "/" + copy.object, true);
        copy.header("x-amz-copy-source", source).header("x-amz-metadata-directive", "REPLACE");
        // A store may refuse the very ETag (OpenStack Swift) or time that it has just given: then that is left out.
        if (facts.has_strong_etag() && facts.info.etag != refused_etag)
            copy.header("x-amz-copy-source-if-match", facts.info.etag);
        const std::string_view since = there.headers().get("last-modified");
        if (!since.empty() && since != refused_since) copy.header("x-amz-copy-source-if-unmodified-since", since);
        if (ttl.count() < entry::ttl_seconds_max) copy.ttl = ttl;
        copy.error_in_200 = true;
        Call copied(session, std::move(copy));
        copied.run();
        if (copied.ok()) return true;
        const bool was_replaced =
            copied.status() == 412 || (copied.status() == 404 && copied.fault.code != "NoSuchBucket");
        if (!was_replaced) return copied.failure();
        if (std::exchange(refused_etag, facts.info.etag) == facts.info.etag) refused_since = since;
    }
    return refusal(Errc::changed, "touch", key, "the entry is being replaced again and again");
}

// -- writing

inline Result<void> check_set(const Core& core, std::string_view key, const SetOptions& options) {
    if (Result<void> fine = check_key(core, "set", key, true); !fine) return fine;
#ifdef S3CACHE_NO_GZIP
    if (options.compress) return refusal(Errc::unsupported, "set", key, "this build has no gzip (S3CACHE_NO_GZIP)");
#endif
    const auto refuse = [&](std::string_view text) { return refusal(Errc::invalid_argument, "set", key, text); };
    if (options.ttl && !(options.ttl->count() > 0))
        return refuse("a TTL must be over zero; s3cache::forever never expires");
    if (options.if_absent && !options.if_match.empty()) return refuse("if_absent and if_match exclude each other");
    if (entry::flaw_of(options.if_match) || options.if_match == "*") return refuse("if_match is no ETag");
    if (entry::flaw_of(options.content_type)) return refuse("content_type holds bytes that are not printable ASCII");
    Metadata all = core.config.metadata;
    for (const auto& [name, value] : options.metadata) bytes::add(all, name, value);
    if (const Result<void> fine = entry::check_metadata(all); !fine) return refuse(fine.error().what());
    return {};
}

// The kind under which a payload is stored, which must be what it says; an error before anything is sent.
inline Result<Kind> check_kind(std::string_view key, const Payload& payload, const SetOptions& options) {
    const auto refuse = [&](std::string_view text) { return refusal(Errc::invalid_argument, "set", key, text); };
    if (!payload.present()) return refuse("the payload is a null pointer");
    const std::optional<Kind> wanted = options.kind ? options.kind : payload.kind();
    if (wanted == Kind::json && !json::valid(payload.view())) return refuse("the payload is not JSON");
    if (wanted == Kind::bytes || wanted == Kind::json) return *wanted;
    if (utf8::valid(payload.view())) return Kind::text;
    return wanted ? Result<Kind>(refuse("the payload is not UTF-8, and so not text")) : Kind::bytes;
}

// What every object of ours must carry, scratch objects too: a bucket's policy may refuse those without.
inline void add_store_headers(const Config& config, s3::Request& write) {
    if (!config.server_side_encryption.empty())
        write.header("x-amz-server-side-encryption", config.server_side_encryption);
    if (!config.kms_key_id.empty()) write.header("x-amz-server-side-encryption-aws-kms-key-id", config.kms_key_id);
    if (!config.storage_class.empty()) write.header("x-amz-storage-class", config.storage_class);
}

// The PUT that a set() asks for, but for its bytes; an error if nothing must be sent. `cost`: seconds that computing it
// took, for those who will refresh it ahead of its time; 0: not to be told.
inline Result<s3::Request> write_of(const Core& core, std::string_view key, const Body& body, const SetOptions& options,
                                    double cost = 0) {
    if (Result<void> fine = check_set(core, key, options); !fine) return std::move(fine).error();
    const Result<Kind> kind =
        body.payload ? check_kind(key, *body.payload, options) : options.kind.value_or(Kind::bytes);
    if (!kind) return kind.error();
    const Config& config = core.config;
    s3::Request out = request(core, "set", Method::put, key);
    out.headers.reserve(8);
    const auto index = static_cast<std::size_t>(*kind);
    out.header("content-type", options.content_type.empty() ? entry::content_types[index] : options.content_type);
    out.header("x-amz-meta-kind", entry::kind_names[index]);
    if (options.compress && !body.is_negative()) out.header("x-amz-meta-compressed", "true");
    if (body.is_negative()) out.header("x-amz-meta-negative", "true");
    if (cost > 0) out.header("x-amz-meta-cost", entry::seconds_text(cost));
    for (const Metadata* metadata : {&config.metadata, &options.metadata}) {
        for (const auto& [name, value] : *metadata)
            out.header(bytes::joined({entry::meta_prefix, bytes::lower(name)}), value);
    }
    add_store_headers(config, out);
    out.condition = options.if_absent ? "*" : options.if_match;
    if (!out.condition.empty()) out.write_id = core.random_id();
    const std::optional<Seconds> ttl = options.ttl ? options.ttl : config.default_ttl;
    if (ttl && ttl->count() < entry::ttl_seconds_max)
        out.ttl = *ttl * (config.ttl_jitter > 0 ? 1 - config.ttl_jitter * core.random() : 1);
    return out;
}

// -- write conditions: what the store makes of them is found out once a cache, by trying

// A small object of the cache's own. False: the condition was not met.
inline Result<bool> put_scratch(Session& session, s3::Request write, std::string_view text) {
    add_store_headers(session.core.config, write);
    return transfer::Put(session, std::move(write), text).store();
}

// Whether conditions on PUT are honoured. An error: it could not be found out, this time.
inline Result<bool> honours_conditions(Session& session) {
    Core& core = session.core;
    using Trait = Core::Trait;
    const auto place = core.place();  // which also finds the configured URL
    if (place && core.configured_url.empty()) return true;
    if (core.honours_conditions != Trait::unknown) return core.honours_conditions == Trait::yes;
    const std::string key = entry::scratch_name("probe", core.random_id());
    Result<bool> stored = false;
    int times = 0;
    for (const char* condition : {"*", "*", "\"00000000000000000000000000000000\""}) {
        s3::Request write = request(core, "probe", Method::put, key);
        write.condition = condition;
        write.ttl = Seconds(600);                           // in case that it cannot be removed
        if (times == 0) write.write_id = core.random_id();  // of the first an answer may be lost, and it sent again
        if (stored) stored = put_scratch(session, std::move(write), "a scratch object: may be removed");
        times += stored && *stored ? 1 : 0;
    }
    Call erase(session, request(core, "probe", Method::erase, key));
    erase.run();
    if (!stored) return stored;
    core.honours_conditions = times == 1 ? Trait::yes : Trait::no;  // the first: it was there then, with another ETag
    return times == 1;
}

// Whether write conditions are sure to hold; an error where they are not and Config::conditions requires it.
inline Result<bool> are_conditions_safe(Session& session, const char* operation, std::string_view key,
                                        bool is_weak = false) {
    Core& core = session.core;
    if (core.config.conditions == Conditions::off) return false;
    const Result<bool> honours = is_weak ? Result<bool>(false) : honours_conditions(session);
    if (honours && *honours) return true;
    if (core.config.conditions == Conditions::automatic)
        return record(core, operation, key, "unconditional", &Stats::unconditional), false;
    if (!honours) return about(operation, key, honours.error());
    const char* why = is_weak ? "what is there has no strong ETag for a write condition to name"
                              : "the store does not honour write conditions (tried on a scratch object)";
    return refusal(Errc::unsupported, operation, key, bytes::joined({why, ", and Config::conditions requires it"}));
}
// Puts the condition for a write in the place of what a look has found, and returns whether it is sure to hold. Over a
// weak ETag none does, so none goes out. `is_safe`: whether the store is sure to honour conditions.
inline Result<bool> put_condition(Session& session, s3::Request& write, const entry::Facts& there, bool is_safe) {
    const bool is_weak = there && !there.has_strong_etag();
    write.condition = session.core.config.conditions == Conditions::off || is_weak ? "" : there ? there.info.etag : "*";
    if (!is_safe || !is_weak) return is_safe;
    return are_conditions_safe(session, write.operation, write.key, true);
}

// A right that one has at a time among all machines: a small object of unique content, made if no valid one is there.
class Lease {
    // Where the store does not honour conditions two may believe to have a lease. Whoever wrote last has it: that is
    // looked at once the others' writes, which began before ours was to be seen, have had this time to arrive.
    static constexpr std::chrono::milliseconds settling_time{300};

public:
    explicit Lease(Core& core) : core_(core) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
        if (is_ours_) http::shielded([this] { return give_back(); }, false);
    }

    bool is_ours() const { return is_ours_; }
    // False: another has it.
    Result<bool> take(Session& session, std::string_view what, Seconds time) {
        name_ = entry::scratch_name("lease", bytes::hex(digest::as_text(digest::sha256(what))).substr(0, 32));
        Result<bool> is_safe = are_conditions_safe(session, "lease", name_);
        if (!is_safe) return is_safe;
        const auto there = look(session, "lease", name_);
        if (!there) return there.error();
        if (*there && !there->expired(core_.unix_now())) return false;
        s3::Request write = request(core_, "lease", Method::put, name_);
        is_safe = put_condition(session, write, *there, *is_safe);
        if (!is_safe) return is_safe;
        write.write_id = write_id_ = core_.random_id();
        if (time.count() < entry::ttl_seconds_max) {
            write.ttl = time;
            write.header("x-amz-meta-lease-seconds", entry::seconds_text(time.count()));
        }
        const Result<bool> stored = put_scratch(session, std::move(write), write_id_);
        if (!stored || !*stored) return stored;
        if (!*is_safe) core_.sleep(settling_time);
        is_ours_ = *is_safe || look_if_ours(session).from_s3;
        return is_ours_;
    }

private:
    entry::Facts look_if_ours(Session& session) const {
        auto there = look(session, "lease", name_);
        return there && there->write_id == write_id_ ? *std::move(there) : entry::Facts();
    }
    // If that fails it lapses by itself. The look is for stores that delete whatever If-Match says.
    bool give_back() const {
        const auto time = core_.config.call_timeout.count() != 0 ? core_.config.call_timeout : s3::cleanup_timeout;
        Session session(core_, core_.cancels == cancels_before_ ? time : s3::cleanup_after_cancel);
        const auto ours = look_if_ours(session);
        if (!ours) return true;
        Call erase(session, request(core_, "lease", Method::erase, name_));
        if (ours.has_strong_etag()) erase.request.header("if-match", ours.info.etag);
        erase.run();
        return true;
    }

    Core& core_;
    const std::uint32_t cancels_before_ = core_.cancels;
    std::string name_, write_id_;
    bool is_ours_ = false;
};

// Looks before a conditional write: an entry that is in the way is found without sending the body, and a store that
// ignores conditions is kept from the plain mistakes. The condition of the write itself then settles what happens in
// between. Two who want the place of an expired entry may bring the bytes that it has had, and so its ETag: If-Match on
// that would let both pass. So they look once more with a lease on the place, which is to last until the write is over.
inline Result<bool> is_condition_met(Session& session, s3::Request& write, Lease& claim) {
    if (write.condition.empty()) return true;
    Core& core = session.core;
    Result<bool> is_safe = are_conditions_safe(session, write.operation, write.key);
    if (!is_safe) return is_safe;
    constexpr Seconds claim_time{60};  // whoever crashes blocks the place of an expired entry for no longer
    const std::string wanted = write.condition;
    for (;;) {
        const auto there = look(session, write.operation, write.key);
        if (!there) return there.error();
        const bool is_met = wanted == "*" ? !*there || there->expired(core.unix_now()) : there->has_etag(wanted);
        if (!is_met) return false;
        is_safe = put_condition(session, write, *there, *is_safe);
        if (!is_safe) return is_safe;
        if (wanted != "*" || !*there || core.config.conditions == Conditions::off || claim.is_ours()) return true;
        const Result<bool> taken = claim.take(session, "claim " + std::string(write.key), claim_time);
        if (!taken || !*taken) return taken;
    }
}

// -- set

inline Result<bool> set(Core& core, std::string_view key, Body body, const SetOptions& options, double cost = 0) {
    Result<s3::Request> write = write_of(core, key, body, options, cost);
    if (!write) return std::move(write).error();
    const Timing timing{http::Clock::now(), body.size().value_or(0)};
    const auto plan = transfer::plan_parts(core.config, body.size(), options.compress);
    if (!plan) return record_error(core, "set", key, about("set", key, plan.error()), timing);
    // Bytes in memory that are to be deflated are read like a stream's.
    std::string_view rest = body.source ? std::string_view() : body.payload->view();
    const auto read = [&rest](char* buffer, std::size_t capacity) {
        const std::size_t count = rest.copy(buffer, capacity);
        return rest.remove_prefix(count), count;
    };
    const Source memory = Source(read).sized(rest.size());
    if (!body.source && options.compress && !body.is_negative()) body.source = &memory;
    Session session(core, options.timeout);
    Lease claim(core);
    transfer::Upload upload(session, *std::move(write), *plan, body, options);
    Result<bool> stored = is_condition_met(session, upload.request, claim);
    if (stored && *stored) stored = upload.run();
    if (!stored && body.file && std::ferror(body.file))
        stored = about("set", key, files::failure("cannot read", body.path));
    return record_write(core, "set", key, std::move(stored), &Stats::sets, timing);
}

// -- removing many, and upkeep

// Of what a key names: the entry, the entry if it has expired, an upload in parts.
enum class Task { remove, purge, sweep };

// Removes keys, in bulk where the store does that; the rest one by one, with retries, and with a reason for each.
struct Removal {
    void run() {
        std::vector<std::size_t> batch;
        for (std::size_t i = 0; i < keys.size(); ++i) {
            const Result<void> fine = task == Task::remove ? check_key(core, "remove", keys[i], true) : Result<void>();
            if (!fine)
                results[i] = fine;
            else
                (task == Task::remove && xml::representable(core.object(keys[i])) ? batch : singly).push_back(i);
            if (batch.size() == bulk_keys_max) remove_in_bulk(std::exchange(batch, {}));
        }
        remove_in_bulk(batch);
        s3::Calls calls(session, [&](std::size_t i, const Call& call) {
            const Result<bool> removed = interpret_removal(call);
            if (call.error || (!removed && removed.error().code() == Errc::no_such_bucket)) outage = removed.error();
            finish(i, removed, {call.began, 0, call.status()});
        });
        for (const std::size_t i : singly) {
            if (outage) {
                finish(i, *outage, {});
                continue;
            }
            s3::Request single = request(core, "remove", Method::erase, keys[i]);
            if (task == Task::purge) single = request(core, "purge", Method::head, keys[i]);
            if (task == Task::sweep) {
                single.operation = "sweep_uploads";
                single.query = sigv4::canonical_query({{"uploadId", uploads[i].info.etag}});
            }
            calls.add(i, new RemovalCall(session, std::move(single)));
        }
        calls.finish();
    }
    static constexpr std::size_t bulk_keys_max = 1000;  // of one DeleteObjects
    void remove_in_bulk(const std::vector<std::size_t>& batch) {
        if (batch.size() < 2 || outage) return void(singly.insert(singly.end(), batch.begin(), batch.end()));
        std::string list = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>";
        for (const std::size_t i : batch) {
            list += "<Object><Key>";
            xml::escape(list, core.object(keys[i]));
            list += "</Key></Object>";
        }
        list += "</Delete>";
        Call call(session, s3::bucket_request("remove_many", Method::post, "delete="));
        const auto sha = digest::sha256(list);
        const std::string md5 = digest::md5(list);  // which old stores want, and a FIPS build of OpenSSL does not have
        call.request.body = list;
        call.request.payload_hash = bytes::hex(digest::as_text(sha));
        call.request.header("content-type", "application/xml")
            .header(md5.empty() ? "x-amz-checksum-sha256" : "content-md5",
                    bytes::base64(md5.empty() ? digest::as_text(sha) : md5));
        call.run();
        call.request.operation = "remove";  // what errors are about from here on
        const auto failed = xml::list_result(call.ok() ? std::string_view(call.answer->text) : "", "Error");
        if (failed && failed->entries.empty()) {
            for (const std::size_t i : batch) finish(i, true, {call.began, 0, call.status()});
            return;
        }
        const Error why = call.failure();
        if (!call.ok() &&
            (call.error || why.retryable() || why.code() == Errc::denied || why.code() == Errc::no_such_bucket))
            outage = why;
        // What is gone is removed again, and the others say why they stay: stores differ in how they name keys in such
        // errors. A store without a list of them does not do this, unless there is an outage.
        singly.insert(singly.end(), batch.begin(), batch.end());
    }
    void finish(std::size_t i, const Result<bool>& removed, const Timing& timing) {
        if (removed && *removed) ++count;
        if (task == Task::remove)
            static_cast<void>(record_write(core, "remove", keys[i], removed, &Stats::removes, timing));
        results[i] = removed ? Result<void>() : removed.error();
    }

    Session& session;
    const std::vector<std::string>& keys;
    std::vector<Result<void>>& results;
    const Task task = Task::remove;
    const Entry* uploads = nullptr;  // to be swept
    Core& core = session.core;
    std::vector<std::size_t> singly{};
    std::optional<Error> outage{};  // is not multiplied by the number of keys
    std::uint64_t count = 0;        // of what is gone by this
};

// Does a task for all below a prefix; how many are gone by that. What can be done is done, whatever fails but a page or
// the store; the first failure is what is returned in the end.
inline Result<std::uint64_t> tidy(const std::shared_ptr<Core>& core, Task task, std::string_view prefix,
                                  std::optional<Seconds> older_than) {
    const bool clears = task == Task::remove;
    const char* operation = clears ? "clear" : task == Task::purge ? "purge_expired" : "sweep_uploads";
    if (Result<void> fine = check_writable(*core, operation, prefix); !fine) return std::move(fine).error();
    std::uint64_t done = 0, failed = 0;
    std::optional<Error> first;
    const auto is_failure = [&](const Result<void>& one) {
        if (!one && failed++ == 0) first = one.error();
        return !one;
    };
    // What takes more than one page is cleared again until nothing is found, because a store may skip keys when what
    // lies before them goes; but not for ever, since others may be writing.
    for (int round = 0; round < (clears ? 3 : 1) && !first; ++round) {
        Pages pages(core, prefix, Look::shallow, older_than);
        const std::uint64_t before = done;
        while (!pages.is_last) {
            if (is_failure(pages.next_page())) break;
            std::vector<std::string> keys;
            for (const Entry& entry : pages.page) keys.push_back(entry.key);
            std::vector<Result<void>> results(keys.size());
            Removal removal{pages.session, keys, results, task, pages.page.data()};
            removal.run();
            done += removal.count;
            for (const Result<void>& result : results) is_failure(result);
            if (removal.outage) break;
        }
        if (pages.trouble) is_failure(*pages.trouble);
        if (done == before || pages.pages < 2) break;
    }
    if (!first) return done;
    if (done == 0 && failed == 1) return *first;
    return Error(first->details(), std::string(operation) + ": " + bytes::number(done) + " removed, " +
                                       bytes::number(failed) + " failed, the first with: " + first->what());
}

// -- computed once

inline bool is_fresh(const Core& core, const std::optional<Value>& found) {
    return found && (!found->info().expires_at || *found->info().expires_at > core.now());
}

// One computation of a key's value by this process, with what was there before.
struct Computation {
    using Producer = std::function<Result<Produced>()>;

    Core& core;
    const std::string_view key;
    const Producer& producer;
    const SetOptions& options;
    const ComputeOptions& how;
    const std::shared_ptr<InFlight> in_flight;
    std::optional<Value> before{};
    double cost = 0;
    bool is_early = false;

    Result<Value> run() {
        Lease lease(core);
        Result<std::optional<Value>> there = look_first(lease);
        if (!there) return std::move(there).error();
        if (*there) return **std::move(there);
        Result<Value> value = made();
        if (value || !before) return value;
        // What was there before may do.
        const bool is_stale = !is_fresh(core, before);
        record(core, "get_or_set", key, "stale", is_stale ? &Stats::stale : nullptr, value.error().what());
        return *std::move(before);
    }

    // The value that is there, or comes from another; none: to be computed here.
    Result<std::optional<Value>> look_first(Lease& lease) {
        Session session(core);
        Result<std::optional<Value>> found = recall(session);
        if (!found && !may_compute_after(found.error())) return found;
        if (found) before = *std::move(found);
        is_early = is_due_early();
        if (is_fresh(core, before) && !is_early) return std::move(before);
        if (is_early) {
            record(core, "get_or_set", key, "early");
            const std::lock_guard<std::mutex> hold(core.in_flight_lock);
            in_flight->stale_value = before;  // for those who ask meanwhile
            in_flight->changed.notify_all();
        }
        const bool has_lease = how.lease.count() > 0 && !core.config.read_only;
        return has_lease ? wait_for_turn(session, lease) : std::optional<Value>();
    }

    Result<std::optional<Value>> recall(Session& session) {
        session.allow(core.config.call_timeout);
        return get_one(session, key, {{}, how.stale_if_error, &cost});
    }
    // A store that cannot be reached does not keep the producer from answering, nor does an entry that is damaged: what
    // is computed will replace it. The error has been counted, and was an event.
    bool may_compute_after(const Error& error) const {
        const Errc code = error.code();
        return tolerated<Value>(core, "get", key, error) || code == Errc::damaged || code == Errc::network ||
               code == Errc::timed_out || code == Errc::throttled || code == Errc::unavailable || error.status() >= 500;
    }
    // XFetch: the nearer the end, and the longer computing takes, the likelier; the draw is each caller's own.
    bool is_due_early() const {
        if (!(how.early_refresh > 0) || !is_fresh(core, before) || !before->info().expires_at) return false;
        const double ahead = cost * how.early_refresh * -std::log((std::max)(1 - core.random(), 1e-300));
        return retry::seconds_between(core.now(), *before->info().expires_at) <= ahead;
    }

    // A value that came from another while we asked for the lease; none that we know already.
    std::optional<Value> others_value(Session& session) {
        Result<std::optional<Value>> found = recall(session);
        if (!found || !is_fresh(core, *found)) return {};
        const bool is_known = is_early && (*found)->info().expires_at == before->info().expires_at;
        return is_known ? std::optional<Value>() : *std::move(found);
    }

    // Waits until computing is ours (empty) or another's value is there. In the end it is ours all the same. What was
    // cancelled on the way stays so for the session.
    Result<std::optional<Value>> wait_for_turn(Session& session, Lease& lease) {
        const Seconds most = how.lease_wait.count() > 0 ? how.lease_wait : how.lease;
        Seconds waited{0};
        // Between two looks for another's value: doubles from the first to the most, with jitter.
        constexpr std::chrono::milliseconds lease_poll_first{50}, lease_poll_most{1000};
        for (auto wait = lease_poll_first;; wait = (std::min)(2 * wait, lease_poll_most)) {
            session.allow(core.config.call_timeout);
            const Result<bool> is_ours = lease.take(session, key, how.lease);
            if (!is_ours) {
                const Errc code = is_ours.error().code();
                if (code == Errc::cancelled ||
                    (code == Errc::unsupported && core.config.conditions == Conditions::required))
                    return about("get_or_set", key, is_ours.error());
                return std::optional<Value>();  // the store did not say: computing must not wait for that
            }
            if (*is_ours) return others_value(session);  // the one before us may have stored its value before
            if (is_early) return std::move(before);      // somebody is at it
            if (waited >= most) return std::optional<Value>();
            const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(wait * (0.5 + core.random() / 2));
            core.sleep(time);
            waited += time;
            // The value is likelier there than the lease is free, and cheaper to ask for.
            std::optional<Value> value = others_value(session);
            if (!value) continue;
            record(core, "get_or_set", key, "waited", &Stats::waited);
            return value;
        }
    }

    // The value is there, whatever becomes of storing it: a failure is counted and an event, and not returned.
    Result<Value> made() {
        const TimePoint began = core.local_now();
        Result<Produced> made = producer();
        if (!made) return core.count(&Stats::computed), about("get_or_set", key, made.error());
        const double seconds = (std::max)(retry::seconds_between(began, core.local_now()), 0.001);
        record(core, "get_or_set", key, "computed", &Stats::computed);
        const Payload payload = made->negative ? nothing()
                                : made->kind   ? Payload(made->data.data(), made->data.size(), *made->kind)
                                               : Payload(made->data);
        const Result<Kind> kind = check_kind(key, payload, options);
        if (!kind) return kind.error();
        SetOptions storing = options;
        if (made->negative && how.negative_ttl) storing.ttl = how.negative_ttl;
        if (!core.config.read_only)
            static_cast<void>(set(core, key, {&payload}, storing, how.early_refresh > 0 ? seconds : 0));
        Info info;
        info.size = made->data.size();
        info.negative = made->negative;
        info.kind = *kind;
        info.metadata = options.metadata;
        return Value(std::move(made->data), *kind, std::move(info));
    }
};

// Another thread is at it: what it brings, or what is still good meanwhile.
inline Result<Value> wait_for(Core& core, std::string_view key, const std::shared_ptr<InFlight>& in_flight,
                              std::unique_lock<std::mutex>& hold) {
    const auto cancels = core.cancels.load();
    const auto& stale = in_flight->stale_value;
    in_flight->waiting.push_back(std::this_thread::get_id());
    while (!in_flight->is_done && !is_fresh(core, stale) && core.cancels.load() == cancels)
        in_flight->changed.wait_for(hold, s3::tick);
    in_flight->waiting.remove(std::this_thread::get_id());
    if (!in_flight->is_done && !is_fresh(core, stale))
        return refusal(Errc::cancelled, "get_or_set", key, s3::by_cancel);
    const bool is_brought = in_flight->is_done;
    hold.unlock();  // what is brought does not change any more, and copying it takes a while
    if (is_brought) core.count(&Stats::waited);
    return is_brought ? in_flight->result : Result<Value>(*stale);
}

// -- opening

inline Result<void> check_config(const Config& config) {
    const auto refuse = [](std::string_view text) { return endpoint::refuse({"Config::", text}); };
    const Result<void> metadata = entry::check_metadata(config.metadata);
    if (!metadata) return endpoint::refuse({"Config::metadata: ", metadata.error().what()});
    for (const std::string* value : {&config.server_side_encryption, &config.kms_key_id, &config.storage_class}) {
        if (const char* flaw = entry::flaw_of(*value))
            return endpoint::refuse({"'", bytes::sanitize(*value), "' ", flaw});
    }
    for (const auto& time : {config.connect_timeout, config.stall_timeout, config.call_timeout, config.backoff_base,
                             config.backoff_cap, config.breaker_pause}) {
        if (time.count() < 0 || time > http::time_max)
            return endpoint::refuse({"a timeout of Config is negative or over 20 days"});
    }
    const bool has_parts = config.part_bytes >= 1 && std::uint64_t{config.part_bytes} <= transfer::part_bytes_max &&
                           config.part_bytes != (std::numeric_limits<std::size_t>::max)() &&
                           config.transfer_bytes_max >= 1;
    if (config.connections < 1 || config.connections > 1000) return refuse("connections is not within 1 and 1000");
    if (config.attempts_max < 1) return refuse("attempts_max is under 1");
    if (!(config.ttl_jitter >= 0 && config.ttl_jitter < 1)) return refuse("ttl_jitter is not within 0 and 1");
    if (!has_parts) return refuse("part_bytes is not within 1 and 5 GiB, or transfer_bytes_max is zero");
    if (config.compression_level < 0 || config.compression_level > 9)
        return refuse("compression_level is not within 0 and 9");
    if (config.default_ttl && !(config.default_ttl->count() > 0)) return refuse("default_ttl must be over zero");
    return {};
}

inline Result<std::shared_ptr<Core>> open(std::string_view where, Config& config) {
    Result<endpoint::Location> location = endpoint::parse_location(where, config);
    if (!location) return about("open", {}, location.error());
    if (const Result<void> fine = check_config(config); !fine) return about("open", {}, fine.error());
    if (config.ca_bundle.empty()) {  // empty in the end: libcurl's own certificates are trusted
        credentials::Environment outside;
        credentials::Walk walk(outside, config);
        config.ca_bundle = walk.in_profile("AWS_CA_BUNDLE", "ca_bundle").value;
        if (config.ca_bundle.empty()) config.ca_bundle = walk.first({"SSL_CERT_FILE"}).value;
    }
    const auto place = endpoint::resolve(location->bucket, config.region.empty() ? "us-east-1" : config.region,
                                         config.endpoint, config);
    if (!place) return about("open", {}, place.error());
    if (!http::is_ready()) return Error(Errc::unsupported, "open: libcurl could not be initialised");
    if (digest::Sha256Digest out; EVP_Digest("", 0, out.data(), nullptr, EVP_sha256(), nullptr) != 1)
        return Error(Errc::unsupported, "open: OpenSSL refuses SHA-256, which signing needs (its FIPS configuration?)");
    static_cast<void>(out_of_memory());
    return std::make_shared<Core>(std::move(config), *std::move(location));
}

}  // namespace detail::cache

// --- the members declared above --------------------------------------------------------------------------------------

struct detail::ListingState : cache::Pages {
    using Pages::Pages;
};

struct detail::ReaderState {
#if S3CACHE_EXCEPTIONS
    // For code that wants a std::istream. A thrown error becomes badbit, as of any stream buffer.
    struct Text : private std::streambuf, public std::istream {
        explicit Text(ReaderState& from) : std::istream(this), reader(from) {}
        std::streambuf::int_type underflow() override {
            const std::string_view chunk = reader.next().value();
            // Never written to: there is no overflow() and no pbackfail().
            char* data = const_cast<char*>(chunk.data());
            setg(data, data, data + chunk.size());
            return chunk.empty() ? std::streambuf::traits_type::eof() : std::streambuf::traits_type::to_int_type(*data);
        }

        ReaderState& reader;
    };
#endif

    Result<std::string_view> next() {
        if (!rest.empty()) return std::exchange(rest, std::string_view());
        return stream.next();
    }

    const std::shared_ptr<Core> core;
    const std::string key;
    const GetOptions options;
    s3::Session session{*core, options.timeout};
    cache::Stream stream{session, key, {options}, true};
    std::string_view rest{};  // of the chunk that try_read is cutting up
#if S3CACHE_EXCEPTIONS
    Text text{*this};
#endif
};

S3CACHE_FN Error::Error(Details details, const std::string& message)
    : std::runtime_error(detail::bytes::without_passwords(message)), details_(new Details(std::move(details))) {}
S3CACHE_FN Error detail::about(const char* operation, std::string_view key, const Error& error) {
    return Error(error.details(), s3::about(operation, key, error.what()));
}

#if S3CACHE_EXCEPTIONS
S3CACHE_FN Error detail::thrown(const char* who) {
    Error::Details details{Errc::source};
    details.cause = std::current_exception();
    try {
        throw;
    } catch (const std::exception& error) {
        return Error(std::move(details), std::string(who) + " threw: " + error.what());
    } catch (...) {
        return Error(std::move(details), std::string(who) + " threw something that is no std::exception");
    }
}
#endif

S3CACHE_FN Result<detail::Produced> detail::drain(const Source& source) {
    Produced out{{}, Kind::bytes};
    std::string piece(transfer::piece_bytes, 0);
    for (std::uint64_t taken = 0;;) {
        const Result<std::size_t> count = transfer::ask(source, piece.data(), piece.size(), taken);
        if (!count) return count.error();
        if (*count == 0) return out;
        out.data.append(piece, 0, *count);
    }
}

// Its buffer is read, because an istream may throw at its end (exceptions(failbit)), which is no error of a source.
S3CACHE_FN std::size_t Source::read_stream(std::istream& in, char* buffer, std::size_t capacity) {
    if (in.bad() || (in.fail() && !in.eof())) return source_failed;
    const auto count = static_cast<std::size_t>(in.rdbuf()->sgetn(buffer, static_cast<std::streamsize>(capacity)));
    if (count == 0) {
        in.exceptions(in.exceptions() & ~std::ios_base::eofbit);
        in.setstate(std::ios_base::eofbit);
    }
    return count;
}

S3CACHE_FN Source file(const std::string& path) {
    return detail::files::source_of(detail::files::open_file(path.c_str(), "rb"));
}

S3CACHE_FN Credentials::~Credentials() {
    detail::bytes::wipe(secret_key);
    detail::bytes::wipe(session_token);
}

S3CACHE_FN const Info& Reader::info() const noexcept { return state_->stream.info(); }

S3CACHE_FN Result<std::string_view> Reader::try_next() {
    return detail::cache::never_throws([&] { return state_->next(); });
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
S3CACHE_FN std::istream& Reader::istream() { return state_->text; }
#endif

S3CACHE_FN Result<std::optional<Entry>> Listing::try_next() {
    return detail::cache::never_throws([&] { return state_->next(); });
}

S3CACHE_FN Result<Cache> Cache::try_open(std::string_view where, Config config) {
    return detail::cache::never_throws(detail::cache::open, where, config)
        .transform([](std::shared_ptr<detail::Core>&& core) { return Cache(std::move(core)); });
}
S3CACHE_FN Result<bool> Cache::try_set(Key key, Payload payload, const SetOptions& options) {
    return detail::cache::never_throws([&] { return detail::cache::set(*core_, key, {&payload}, options); });
}
S3CACHE_FN Result<bool> Cache::try_set(Key key, Source source, const SetOptions& options) {
    return detail::cache::never_throws([&] { return detail::cache::set(*core_, key, {nullptr, &source}, options); });
}
S3CACHE_FN Result<bool> Cache::try_set_file(Key key, const std::string& path, const SetOptions& options) {
    return detail::cache::never_throws([&]() -> Result<bool> {
        using namespace detail::cache;
        if (Result<void> fine = check_set(*core_, key, options); !fine) return std::move(fine).error();
        std::FILE* const opened = detail::files::open_file(path.c_str(), "rb");
        if (!opened)
            return record_error(*core_, "set", key,
                                detail::about("set", key, detail::files::failure("cannot open", path)));
        const Source source = detail::files::source_of(opened);
        return detail::cache::set(*core_, key, {nullptr, &source, opened, path}, options);
    });
}
S3CACHE_FN Result<std::optional<Value>> Cache::try_get(Key key, const GetOptions& options) {
    return detail::cache::never_throws([&] {
        detail::s3::Session session(*core_, options.timeout);
        return detail::cache::tolerated(*core_, "get", key, detail::cache::get_one(session, key, {options}));
    });
}
// A look first, because most stores leave metadata, and so the expiry, out of a 304.
S3CACHE_FN Result<Revalidated> Cache::try_get_if_changed(Key key, std::string_view etag) {
    return detail::cache::never_throws([&]() -> Result<Revalidated> {
        using namespace detail::cache;
        if (Result<void> fine = check_key(*core_, "get", key); !fine) return std::move(fine).error();
        if (etag.empty() || detail::entry::flaw_of(etag))
            return refusal(Errc::invalid_argument, "get", key, "that is no ETag");
        Session session(*core_);
        const auto there = look(session, "get", key);
        if (!there) return record_error(*core_, "get", key, there.error());
        if (!there->has_etag(etag)) {
            auto got = get_one(session, key, {});
            return got ? Result<Revalidated>({false, *std::move(got)}) : std::move(got).error();
        }
        const bool is_unchanged = is_usable(*core_, "get", key, *there);
        if (is_unchanged) record(*core_, "get", key, "unchanged", &Stats::unchanged);
        return Revalidated{is_unchanged, {}};
    });
}
S3CACHE_FN Result<std::optional<Reader>> Cache::try_get_stream(Key key, const GetOptions& options) {
    return detail::cache::never_throws([&]() -> Result<std::optional<Reader>> {
        std::shared_ptr<detail::ReaderState> state(new detail::ReaderState{core_, std::string(key), options});
        const Result<bool> found = state->stream.open(true);
        if (!found) return detail::cache::tolerated<Reader>(*core_, "get", key, found.error());
        return *found ? std::optional<Reader>(Reader(std::move(state))) : std::nullopt;
    });
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_get_file(Key key, const std::string& path, const GetOptions& how) {
    return detail::cache::never_throws([&]() -> Result<std::optional<Info>> {
        detail::s3::Session session(*core_, how.timeout);
        detail::cache::Stream stream(session, key, {how}, true);
        const Result<bool> found = stream.open(false);
        if (!found) return detail::cache::tolerated<Info>(*core_, "get", key, found.error());
        if (!*found) return std::optional<Info>();
        detail::files::NewFile out(path);
        Result<void> fine = out.open(core_->random_id());
        for (bool has_more = true; fine && has_more;) {
            const Result<std::string_view> chunk = stream.next();
            if (!chunk) return detail::cache::tolerated<Info>(*core_, "get", key, chunk.error());
            has_more = !chunk->empty();
            fine = has_more ? out.write(*chunk) : out.commit();
        }
        if (!fine) return detail::about("get", key, fine.error());
        if (how.progress) static_cast<void>(how.progress({stream.info().size, stream.info().size}));
        return std::optional<Info>(stream.info());
    });
}
S3CACHE_FN Result<void> Cache::try_remove(Key key) {
    return detail::cache::never_throws([&]() -> Result<void> {
        using namespace detail::cache;
        if (Result<void> fine = check_key(*core_, "remove", key, true); !fine) return fine;
        Session session(*core_);
        Call call(session, request(*core_, "remove", Method::erase, key));
        call.run();
        const Result<bool> removed = record_write(*core_, "remove", key, interpret_removal(call), &Stats::removes,
                                                  {call.began, 0, call.status()});
        return removed ? Result<void>() : removed.error();
    });
}
S3CACHE_FN Result<std::optional<Info>> Cache::try_stat(Key key) {
    return detail::cache::never_throws(detail::cache::stat, *core_, key, true);
}
S3CACHE_FN Result<bool> Cache::try_contains(Key key) {
    return detail::cache::never_throws(detail::cache::stat, *core_, key, false)
        .transform([](std::optional<Info>&& info) { return info.has_value(); });
}
S3CACHE_FN Result<bool> Cache::try_touch(Key key, Seconds ttl) {
    return detail::cache::never_throws([&]() -> Result<bool> {
        using namespace detail::cache;
        if (Result<void> fine = check_key(*core_, "touch", key, true); !fine) return std::move(fine).error();
        if (!(ttl.count() > 0))
            return refusal(Errc::invalid_argument, "touch", key,
                           "a TTL must be over zero; s3cache::forever never expires");
        Result<bool> touched = touch_entry(*core_, key, ttl);
        return touched ? touched : Result<bool>(record_error(*core_, "touch", key, touched.error()));
    });
}
S3CACHE_FN Result<Listing> Cache::try_list(std::string_view prefix, Look look) {
    return detail::cache::never_throws([&]() -> Result<Listing> {
        std::shared_ptr<detail::ListingState> state(new detail::ListingState(core_, prefix, look));
        if (Result<void> fine = state->next_page(); !fine) return std::move(fine).error();
        return Listing(std::move(state));
    });
}
S3CACHE_FN Result<std::uint64_t> Cache::try_clear(std::string_view prefix) {
    return detail::cache::never_throws(detail::cache::tidy, core_, detail::cache::Task::remove, prefix, std::nullopt);
}
S3CACHE_FN Result<std::uint64_t> Cache::try_purge_expired(std::string_view prefix) {
    return detail::cache::never_throws(detail::cache::tidy, core_, detail::cache::Task::purge, prefix, std::nullopt);
}
S3CACHE_FN Result<std::uint64_t> Cache::try_sweep_uploads(std::string_view prefix, Seconds older_than) {
    return detail::cache::never_throws(detail::cache::tidy, core_, detail::cache::Task::sweep, prefix, older_than);
}
S3CACHE_FN Result<std::string> Cache::try_presign(Key key, std::string_view method, Seconds lifetime) {
    return detail::cache::never_throws([&]() -> Result<std::string> {
        using namespace detail::cache;
        if (Result<void> fine = check_key(*core_, "presign", key); !fine) return std::move(fine).error();
        const auto refuse = [&](Errc code, std::string_view text) { return refusal(code, "presign", key, text); };
        if (method != "GET" && method != "PUT") return refuse(Errc::invalid_argument, "the method is GET or PUT");
        if (!(lifetime.count() >= 1 && lifetime.count() <= detail::sigv4::presign_seconds_max))
            return refuse(Errc::invalid_argument, "the lifetime is over 7 days, or under a second");
        Session session(*core_);
        Call call(session, request(*core_, "presign", Method::get, key));
        if (Result<void> fine = call.address(); !fine) return std::move(fine).error();
        if (call.is_anonymous()) return refuse(Errc::credentials, "an anonymous cache has nothing to sign with");
        const detail::endpoint::Endpoint& place = *call.place;
        std::string path = place.path + "/", date;
        detail::bytes::append_percent(path, call.request.object, true);
        detail::dates::append_utc(date, detail::dates::unix_seconds(core_->now()));
        const detail::sigv4::Request to_sign{method, path, {}, detail::sigv4::unsigned_payload};
        detail::sigv4::Signer signer;
        signer.headers.push_back({"host", place.host});
        return place.scheme + "://" + place.host + path + "?" +
               signer.presign(to_sign, {}, *call.identity, {date, place.signing_region, "s3"},
                              static_cast<std::uint32_t>(lifetime.count()));
    });
}
// The first who asks for a key computes it; whoever asks meanwhile waits for what that brings.
S3CACHE_FN Result<Value> Cache::compute(Key key, const std::function<Result<detail::Produced>()>& producer,
                                        const SetOptions& options, const ComputeOptions& how) {
    return detail::cache::never_throws([&]() -> Result<Value> {
        using namespace detail::cache;
        detail::Core& core = *core_;
        const Result<void> fine =
            core.config.read_only ? check_key(core, "get_or_set", key) : check_set(core, key, options);
        if (!fine) return fine.error();
        const bool in_range = how.lease.count() >= 0 && how.lease_wait.count() >= 0 && how.early_refresh >= 0 &&
                              how.stale_if_error.count() >= 0 && (!how.negative_ttl || how.negative_ttl->count() > 0);
        if (!in_range)
            return refusal(Errc::invalid_argument, "get_or_set", key,
                           "a time or factor of ComputeOptions is below zero");
        std::unique_lock<std::mutex> hold(core.in_flight_lock);
        if (const std::shared_ptr<InFlight> others = core.find_in_flight(key)) {
            if (!core.waits_for_us(others->owner)) return wait_for(core, key, others, hold);
            return refusal(Errc::source, "get_or_set", key,
                           "the producer asks, itself or through others that wait, for what it is to produce");
        }
        const std::shared_ptr<InFlight> in_flight(new InFlight{std::string(key), out_of_memory()});
        core.in_flight.push_back(in_flight);
        hold.unlock();
        Result<Value> result =
            never_throws([&] { return Computation{core, key, producer, options, how, in_flight}.run(); });
        hold.lock();
        core.in_flight.remove(in_flight);
        if (in_flight->waiting.empty()) return result;
        in_flight->result = never_throws([&]() -> Result<Value> { return result; });
        in_flight->is_done = true;
        in_flight->changed.notify_all();
        return result;
    });
}
S3CACHE_FN void Cache::get_many(const std::vector<std::string>& keys, const Visit& visit) {
    using namespace detail::cache;
    detail::Core& core = *core_;
    if (!visit) return;
    const auto told = result_of_each<void>("get", keys, [&](std::vector<Result<void>>& done) {
        Session session(core);
        const auto finish = [&](std::size_t i, Result<std::optional<Value>> got) {
            done[i] = {};
            visit(keys[i], tolerated(core, "get", keys[i], std::move(got)));
        };
        detail::s3::Calls calls(session, [&](std::size_t i, Call& call) {
            auto got = static_cast<GetOperation&>(call).result();
            const bool is_replaced = !got && got.error().code() == Errc::changed;
            finish(i, is_replaced ? get_one(session, keys[i], {}) : std::move(got));
        });
        for (std::size_t i = 0; i < keys.size(); ++i) {
            if (const Result<void> fine = check_key(core, "get", keys[i]); !fine)
                finish(i, fine.error());
            else
                calls.add(i, new GetOperation(session, keys[i], {}, keys.size() == 1));
        }
        calls.finish();
    });
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i >= told.size() || !told[i])
            visit(keys[i], tolerated<Value>(core, "get", keys[i], i < told.size() ? told[i].error() : out_of_memory()));
    }
}
S3CACHE_FN std::vector<Result<bool>> Cache::set_many(const std::vector<Item>& items) {
    using namespace detail::cache;
    return result_of_each<bool>("set", items, [&](std::vector<Result<bool>>& results) {
        Session session(*core_);
        detail::s3::Calls calls(session, [&](std::size_t i, Call& call) {
            const Timing timing{call.began, items[i].payload.view().size(), call.status()};
            Result<bool> stored = static_cast<detail::transfer::Put&>(call).result();
            results[i] = record_write(*core_, "set", items[i].key, std::move(stored), &Stats::sets, timing);
        });
        for (std::size_t i = 0; i < items.size(); ++i) {
            const std::string& key = items[i].key;
            const Payload& payload = items[i].payload;
            const SetOptions& how = items[i].options;
            const bool is_plain = !how.compress && !how.if_absent && how.if_match.empty() && !how.progress &&
                                  !how.timeout && detail::transfer::fits_one_put(core_->config, payload.view());
            if (Result<void> allowed = session.check_allowed("set", key); !allowed)
                results[i] = std::move(allowed).error();
            else if (!is_plain)
                results[i] = detail::cache::set(*core_, key, {&payload}, how);
            else if (Result<detail::s3::Request> write = write_of(*core_, key, {&payload}, how); !write)
                results[i] = std::move(write).error();
            else
                calls.add(i, new detail::transfer::Put(session, *std::move(write), payload.view()));
        }
        calls.finish();
    });
}
S3CACHE_FN std::vector<Result<void>> Cache::remove_many(const std::vector<std::string>& keys) {
    return detail::cache::result_of_each<void>("remove", keys, [&](std::vector<Result<void>>& results) {
        detail::s3::Session session(*core_);
        detail::cache::Removal{session, keys, results}.run();
    });
}

S3CACHE_FN void Cache::cancel() noexcept { core_->cancels.fetch_add(1); }

S3CACHE_FN std::vector<Finding> Cache::explain() {
    using Verdict = Finding::Verdict;
    std::vector<Finding> out;
    const auto add = [&out](const char* about, const Result<std::string>& found, const char* otherwise = "") {
        const std::string text = found ? *found : found.error().what();
        const Verdict verdict = text.empty() ? Verdict::passed_over : found ? Verdict::used : Verdict::broken;
        out.push_back({about, verdict, text.empty() ? otherwise : text});
    };
    const auto text_of = [](detail::credentials::Setting&& found) {
        return found.value.empty() ? std::string() : found.value + " (" + found.why + ")";
    };
    if (core_->config.credentials)
        add("credentials: in code",
            core_->identity.snapshot({}).transform([](const auto& got) { return detail::credentials::summary(*got); }));
    else
        out = core_->identity.explain();
    detail::credentials::Walk walk(*core_, core_->config);
    add("region", walk.region().transform(text_of), "us-east-1 (none is configured)");
    add("endpoint", walk.endpoint_url("S3").transform(text_of), "Amazon S3 (none is configured)");
    add("requests go to", core_->place().transform([](const auto& place) {
        return place->url() + ", signed for " + place->signing_region;
    }));
    const std::int64_t offset = core_->clock_offset_ms.load() / 1000;
    const std::string off = detail::bytes::number(offset < 0 ? -offset : offset);
    add("clock", offset == 0 ? "the local one; the store has not refused it"
                             : "corrected: this machine's is " + off + (offset < 0 ? " s ahead of" : " s behind") +
                                   " the store's");
    return out;
}

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
