// The command line `s3cache`: a bucket as a cache for shells and scripts, with everything the header can do to one.
// g++ -std=c++17 -I.. s3cache_cli.cpp -o s3cache -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <fcntl.h>        // open
#include <openssl/evp.h>  // the hash of a command
#include <poll.h>         // a command's output
#include <spawn.h>
#include <sys/resource.h>  // no core of ours beside a command's
#include <sys/stat.h>      // what kind of file a name stands for
#include <sys/wait.h>
#include <unistd.h>  // read, isatty

#include <cerrno>
#include <cmath>    // isfinite
#include <csignal>  // a pipe that closes, a key press that ends a transfer
#include <cstdio>
#include <cstdlib>
#include <cstring>  // strerror
#include <ctime>    // dates for people
#include <map>
#include <random>  // a name that nobody has
#include <thread>  // waiting

extern char** environ;

namespace {

using s3cache::Cache;
using s3cache::Info;
using s3cache::Kind;
using s3cache::Progress;

enum Exit { done = 0, absent = 1, failed = 2, wrong_usage = 64 };

// A kind that is named is checked before anything is sent, for input up to this size. A longer one cannot be held in
// memory just to be looked at: it streams, and is taken at the user's word.
constexpr std::size_t checked_bytes_max = std::size_t{16} << 20;

struct WrongUsage {
    std::string what;
};
struct OutputClosed {};  // by its reader, who has seen enough: nobody to tell

// --- the command line's words ----------------------------------------------------------------------------------------

struct Arguments {
    std::vector<std::string> words;    // what to do first
    std::vector<std::string> command;  // of `run`: what stands behind --
    std::map<std::string, std::vector<std::string>> options;

    bool has(const std::string& option) const { return options.count(option) != 0; }
    std::vector<std::string> all(const std::string& option) const {
        const auto found = options.find(option);
        return found == options.end() ? std::vector<std::string>() : found->second;
    }
    std::string get(const std::string& option, const std::string& otherwise = {}) const {
        const std::vector<std::string> given = all(option);
        return given.empty() ? otherwise : given.back();
    }
};

bool listed(std::string_view names, std::string_view name) {
    return (" " + std::string(names) + " ").find(" " + std::string(name) + " ") != std::string::npos;
}

// `--name value`, `--name=value`, `-o value`, `-ovalue`, `--input value value`; returns the last word that it took.
char** take_option(Arguments& arguments, char** word, char** end) {
    const std::string text = *word;
    const bool is_long = text[1] == '-';
    const std::string name = text.substr(0, is_long ? text.find('=') : 2);
    const bool takes_many = listed("--input --env", name);
    const bool takes_one =
        listed("--bucket --endpoint --region --ttl --expires -o --key --lease --expire --uploads", name);
    std::vector<std::string>& values = arguments.options[name];
    if (name.size() < text.size()) {
        if (!takes_one && !takes_many) throw WrongUsage{"no such option: " + text};
        values.push_back(text.substr(name.size() + (is_long ? 1 : 0)));
    } else if (takes_one || takes_many) {
        if (++word == end || (takes_many && **word == '-')) throw WrongUsage{name + " wants a value"};
        values.push_back(*word);
        while (takes_many && word + 1 != end && word[1][0] != '-') values.push_back(*++word);
    }
    return word;
}

// Options may stand anywhere before `--`. What stands behind it is never ours, whatever it looks like.
Arguments parse(char** word, char** end) {
    Arguments arguments;
    for (; word != end; ++word) {
        const std::string text = *word;
        if (text == "--") {
            const bool runs = !arguments.words.empty() && arguments.words[0] == "run";
            std::vector<std::string>& rest = runs ? arguments.command : arguments.words;
            rest.insert(rest.end(), word + 1, end);
            break;
        }
        if (text.size() < 2 || text[0] != '-')
            arguments.words.push_back(text);
        else
            word = take_option(arguments, word, end);
    }
    return arguments;
}

// 90s, 15m, 1h, 7d, or a number of seconds; fractions allowed.
s3cache::Seconds duration(const std::string& text) {
    const std::map<std::string, double> units = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    const std::size_t end = (std::min)(text.find_first_not_of("0123456789."), text.size());
    const std::string number = text.substr(0, end);
    const auto unit = units.find(text.substr(end));
    const bool is_number =
        !number.empty() && number.front() != '.' && number.back() != '.' && number.find('.') == number.rfind('.');
    const double seconds = is_number && unit != units.end() ? std::strtod(number.c_str(), nullptr) * unit->second : 0;
    if (!(seconds > 0) || !std::isfinite(seconds)) {
        throw WrongUsage{"not a time such as 90s, 15m, 1h, 7d or 2.5: " + text};
    }
    return s3cache::Seconds(seconds);
}

// --- text out --------------------------------------------------------------------------------------------------------

[[noreturn]] void output_failed() {
    if (errno == EPIPE || errno == EBADF) throw OutputClosed{};
    throw std::runtime_error(std::string("standard output: ") + std::strerror(errno));
}

void put(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
}

void flush() {
    if (std::fflush(stdout) != 0) output_failed();
}

// A code point with its length in UTF-8; a byte that is no UTF-8 stands for itself, as Python's surrogateescape has it.
struct Character {
    std::uint32_t code;
    std::size_t length;
};

Character character_at(std::string_view text) {
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const std::uint32_t first = byte(0);
    const std::size_t length = first < 0x80 ? 1 : first < 0xC0 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    bool valid = length != 0 && first != 0xC0 && first != 0xC1 && first < 0xF5;
    std::uint32_t code = length < 2 ? first : first & (0x7FU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        valid = valid && (byte(i) & 0xC0) == 0x80;
        code = code << 6 | (byte(i) & 0x3F);
    }
    valid = valid && !(length == 3 && (code < 0x800 || (code >= 0xD800 && code < 0xE000)));
    valid = valid && !(length == 4 && (code < 0x10000 || code > 0x10FFFF));
    return valid ? Character{code, length} : Character{0xDC00 + first, 1};
}

// Text that cannot move a cursor or start a new line: a key is whatever its writer liked.
std::string printable(std::string_view text, std::string_view also_escaped = {}) {
    std::string out;
    while (!text.empty()) {
        const Character character = character_at(text);
        const bool is_lone_byte = character.code >= 0xDC00 && character.code < 0xE000;
        if (character.code < 0x20 || (character.code >= 0x7F && character.code < 0xA0) || is_lone_byte) {
            char escape[16];
            std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(character.code));
            out += escape;
        } else {
            if (also_escaped.find(text[0]) != std::string_view::npos) out += '\\';
            out += text.substr(0, character.length);
        }
        text.remove_prefix(character.length);
    }
    return out;
}

std::string quoted(std::string_view text) { return '"' + printable(text, "\"\\") + '"'; }

std::string iso8601(s3cache::TimePoint when) {
    const std::time_t seconds = std::chrono::system_clock::to_time_t(when);
    const std::tm* utc = std::gmtime(&seconds);
    char text[40] = "";
    if (utc) std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", utc);
    return text;
}

// Seconds since 1970 to the microsecond, without needless zeros.
std::string unix_seconds(s3cache::TimePoint when) {
    const auto micros = std::chrono::round<std::chrono::microseconds>(when.time_since_epoch()).count();
    char text[40];
    const auto magnitude = static_cast<unsigned long long>(micros < 0 ? -micros : micros);
    std::snprintf(text, sizeof text, "%s%llu.%06llu", micros < 0 ? "-" : "", magnitude / 1000000, magnitude % 1000000);
    std::string out = text;
    out.erase(out.find_last_not_of('0') + 1);
    if (out.back() == '.') out.pop_back();
    return out;
}

std::string megabytes(double bytes) {
    char text[40];
    std::snprintf(text, sizeof text, "%.1f MB", bytes / 1e6);
    return text;
}

const char* name_of(Kind kind) { return kind == Kind::json ? "json" : kind == Kind::text ? "text" : "bytes"; }

bool is_known(s3cache::TimePoint when) { return when != s3cache::TimePoint{}; }

void put_json(std::string_view key, const Info& info) {
    put("{\"key\":" + quoted(key) + ",\"size\":" + std::to_string(info.size));
    put(",\"etag\":" + (info.etag.empty() ? "null" : quoted(info.etag)));
    put(",\"last_modified\":" + (is_known(info.last_modified) ? quoted(iso8601(info.last_modified)) : "null"));
    put(",\"expires_at\":" + (info.expires_at ? unix_seconds(*info.expires_at) : "null"));
    put(std::string(",\"compressed\":") + (info.compressed ? "true" : "false"));
    put(",\"kind\":" + (info.kind ? quoted(name_of(*info.kind)) : "null") + "}\n");
}

void put_line(const char* label, const std::string& text) {
    if (!text.empty()) put((label + std::string(15, ' ')).substr(0, 15) + printable(text) + "\n");
}

void put_text(const std::string& key, const Info& info) {
    put_line("key", key);
    put_line("size", std::to_string(info.size) + (info.compressed ? " bytes, gzip" : " bytes"));
    put_line("kind", info.kind ? name_of(*info.kind) : "not recorded");
    put_line("last modified", is_known(info.last_modified) ? iso8601(info.last_modified) : "");
    put_line("expires", info.expires_at ? iso8601(*info.expires_at) : "never");
    put_line("etag", info.etag);
    put_line("content type", info.content_type);
    put_line("version", info.version_id);
    for (const auto& [name, value] : info.metadata) put_line("metadata", name + ": " + value);
}

// --- the cache that is meant ----------------------------------------------------------------------------------------

// What is typed goes before what the URL says, which may come from the environment.
std::string without_parameter(const std::string& url, const std::string& name) {
    const std::size_t query = url.find('?');
    if (query == std::string::npos) return url;
    std::string kept = url.substr(0, query);
    for (std::size_t begin = query + 1, end = 0; begin < url.size(); begin = end + 1) {
        end = (std::min)(url.find('&', begin), url.size());
        const std::string parameter = url.substr(begin, end - begin);
        if (parameter.rfind(name + "=", 0) != 0) kept += (kept.size() == query ? "?" : "&") + parameter;
    }
    return kept;
}

Cache open_cache(const Arguments& arguments, s3cache::Config config = {}) {
    const char* url = std::getenv("S3CACHE_URL");
    std::string where = arguments.get("--bucket", url ? url : "");
    if (where.empty()) throw WrongUsage{"which bucket? Give --bucket, or set S3CACHE_URL"};
    for (const char* name : {"endpoint", "region"}) {
        if (arguments.has(std::string("--") + name)) where = without_parameter(where, name);
    }
    config.endpoint = arguments.get("--endpoint");
    config.region = arguments.get("--region");
    return Cache(where, std::move(config));
}

// --- progress, interruption ------------------------------------------------------------------------------------------

// Set by a signal while a transfer can be cancelled: parts sent so far, or a half-written file, are then removed. A
// second signal ends the program at once. What the caller chose to ignore (nohup) stays ignored.
volatile std::sig_atomic_t interrupted = 0;
bool pipe_signal_was_ignored = false;  // by whoever started us: a command is to find it as we did

struct Cancellable {
    Cancellable() {
        struct sigaction action = {}, before = {};
        action.sa_handler = [](int signal_number) { interrupted = signal_number; };
        action.sa_flags = static_cast<int>(SA_RESETHAND);  // without SA_RESTART: a read from a terminal ends too
        for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) {
            sigaction(signal_number, &action, &before);
            if (before.sa_handler == SIG_IGN) sigaction(signal_number, &before, nullptr);
        }
    }
};

// A line on the terminal for transfers that take over a second; nothing anywhere else.
class Bar {
public:
    explicit Bar(bool wanted = true) : shown_(wanted && isatty(STDERR_FILENO) == 1) {}
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    ~Bar() {
        if (drawn_) std::fputs("\r\033[K", stderr);
    }

    bool operator()(const Progress& progress) {
        const Clock::time_point now = Clock::now();
        if (shown_ && now - begun_ > std::chrono::seconds(1) && now - drawn_at_ > std::chrono::milliseconds(100)) {
            draw(progress, s3cache::Seconds(now - begun_).count());
            drawn_at_ = now;
        }
        return interrupted == 0;
    }

private:
    using Clock = std::chrono::steady_clock;

    void draw(const Progress& progress, double seconds) {
        const double bytes = static_cast<double>(progress.done), rate = bytes / seconds;
        std::string line = megabytes(bytes) + "  " + megabytes(rate) + "/s";
        if (progress.total && *progress.total > 0) {
            const double total = static_cast<double>(*progress.total), share = (std::min)(1.0, bytes / total);
            const auto filled = static_cast<std::size_t>(share * 30);
            line = "[" + std::string(filled, '#') + std::string(30 - filled, '.') + "] " +
                   std::to_string(static_cast<int>(share * 100)) + " %  " + megabytes(rate) + "/s  " +
                   std::to_string(static_cast<long>((total - share * total) / (std::max)(rate, 1.0))) + " s left";
        }
        std::fprintf(stderr, "\r%s\033[K", line.c_str());
        drawn_ = true;
    }

    bool shown_, drawn_ = false;
    Clock::time_point begun_ = Clock::now(), drawn_at_{};
};

// --- input -----------------------------------------------------------------------------------------------------------

class Input {
public:
    explicit Input(const std::string& path) : name_(path) {
        if (path == "-") name_ = "standard input";
        if (path != "-") file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat status = {};
        if (file_ < 0 || fstat(file_, &status) != 0) fail();
        is_regular_ = path != "-" && S_ISREG(status.st_mode);
    }
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;
    ~Input() {
        if (file_ != STDIN_FILENO) close(file_);
    }

    bool is_regular() const { return is_regular_; }

    std::size_t operator()(char* buffer, std::size_t capacity) {
        if (const std::size_t count = ahead_.copy(buffer, capacity, ahead_read_)) {
            ahead_read_ += count;
            return count;
        }
        ssize_t count = -1;
        do count = read(file_, buffer, capacity);
        while (count < 0 && errno == EINTR && interrupted == 0);
        if (count < 0) fail();
        return static_cast<std::size_t>(count);
    }

    // The whole input if it is no longer than this; else empty, and what was looked at will be read again.
    std::optional<std::string> whole(std::size_t bytes_max) {
        std::string all, block(std::size_t{64} << 10, '\0');
        while (const std::size_t count = (*this)(block.data(), block.size())) {
            all.append(block, 0, count);
            if (all.size() > bytes_max) {
                ahead_ = std::move(all);
                return {};
            }
        }
        return all;
    }

private:
    [[noreturn]] void fail() const { throw std::runtime_error(name_ + ": " + std::strerror(errno)); }

    std::string name_, ahead_;
    std::size_t ahead_read_ = 0;
    int file_ = STDIN_FILENO;
    bool is_regular_ = false;
};

// --- commands: each returns its exit status --------------------------------------------------------------------------

// Scripts go by the exit status; a person at a terminal is told.
int found(bool yes, const char* otherwise, const std::string& key) {
    if (!yes && isatty(STDERR_FILENO) == 1)
        std::fprintf(stderr, "s3cache: %s: %s\n", otherwise, printable(key).c_str());
    return yes ? done : absent;
}

int found(bool yes, const std::string& key) { return found(yes, "no such entry", key); }

std::optional<Kind> wanted_kind(const Arguments& arguments) {
    std::optional<Kind> kind;
    for (const Kind each : {Kind::json, Kind::text, Kind::bytes}) {
        if (!arguments.has(std::string("--") + name_of(each))) continue;
        if (kind) throw WrongUsage{"only one of --json, --text, --bytes"};
        kind = each;
    }
    return kind;
}

int run_set(Cache& cache, const Arguments& arguments) {
    const std::string& key = arguments.words[1];
    const std::string path = arguments.words.size() > 2 ? arguments.words[2] : "-";
    Bar bar;
    s3cache::SetOptions options;
    if (arguments.has("--ttl")) options.ttl = duration(arguments.get("--ttl"));
    options.compress = arguments.has("--gzip");
    options.if_absent = arguments.has("--if-absent");
    options.kind = wanted_kind(arguments);
    options.progress = std::ref(bar);

    Input input(path);
    const Cancellable cancellable;
    const auto stored = [&] {
        if (options.kind && options.kind != Kind::bytes) {
            if (const auto all = input.whole(checked_bytes_max)) {
                return cache.set(key, s3cache::Payload(all->data(), all->size(), *options.kind), options);
            }
        }
        return input.is_regular() ? cache.set_file(key, path, options) : cache.set(key, input, options);
    };
    return found(stored(), "there is one already", key);
}

// A file is to appear whole or not at all; a device or a pipe must be written to instead of being replaced.
bool is_replaceable(const std::string& path) {
    struct stat status = {};
    return stat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode);
}

int run_get(Cache& cache, const Arguments& arguments) {
    const std::string& key = arguments.words[1];
    const std::string target = arguments.get("-o", "-");
    if (target != "-" && is_replaceable(target)) {
        Bar bar;
        const Cancellable cancellable;
        return found(cache.get_file(key, target, {std::ref(bar)}).has_value(), key);
    }
    auto reader = cache.get_stream(key);
    if (!reader) return found(false, key);
    if (target != "-" && !std::freopen(target.c_str(), "wb", stdout)) {
        throw std::runtime_error(target + ": " + std::strerror(errno));
    }
    Bar bar(isatty(STDOUT_FILENO) == 0);
    Progress progress;
    if (!reader->info().compressed) progress.total = reader->info().size;
    for (const std::string_view chunk : *reader) {
        put(chunk);
        progress.done += chunk.size();
        bar(progress);
    }
    return done;
}

int run_rm(Cache& cache, const Arguments& arguments) {
    const std::vector<std::string> keys(arguments.words.begin() + 1, arguments.words.end());
    for (const auto& removed : cache.remove_many(keys)) removed.value();
    return done;
}

int run_stat(Cache& cache, const Arguments& arguments) {
    int status = done;
    for (std::size_t i = 1; i < arguments.words.size(); ++i) {
        const std::string& key = arguments.words[i];
        const std::optional<Info> info = cache.stat(key);
        if (found(info.has_value(), key) == absent) {
            status = absent;
        } else if (arguments.has("--json")) {
            put_json(key, *info);
        } else {
            put_text(key, *info);
        }
    }
    return status;
}

std::string optional_word(const Arguments& arguments) { return arguments.words.size() > 1 ? arguments.words[1] : ""; }

int run_ls(Cache& cache, const Arguments& arguments) {
    const bool as_json = arguments.has("--json");
    // A store's listing tells neither expiry nor kind, so that the full record costs one more request an entry.
    auto listing = cache.list(optional_word(arguments), as_json ? s3cache::Look::deep : s3cache::Look::shallow);
    for (const auto& [key, info] : listing) {
        if (as_json) {
            put_json(key, info);
        } else {
            char size[24];
            std::snprintf(size, sizeof size, "%12llu", static_cast<unsigned long long>(info.size));
            put(std::string(size) + "  " + iso8601(info.last_modified) + "  " + printable(key) + "\n");
        }
    }
    return done;
}

int run_touch(Cache& cache, const Arguments& arguments) {
    if (!arguments.has("--ttl")) throw WrongUsage{"touch wants --ttl"};
    return found(cache.touch(arguments.words[1], duration(arguments.get("--ttl"))), arguments.words[1]);
}

int run_purge(Cache& cache, const Arguments& arguments) {
    put(std::to_string(cache.purge_expired(optional_word(arguments))) + " expired entries removed\n");
    return done;
}

int run_clear(Cache& cache, const Arguments& arguments) {
    put(std::to_string(cache.clear(arguments.words[1])) + " entries removed\n");
    return done;
}

int run_presign(Cache& cache, const Arguments& arguments) {
    const char* method = arguments.has("--put") ? "PUT" : "GET";
    put(cache.presign(arguments.words[1], method, duration(arguments.get("--expires", "1h"))) + "\n");
    return done;
}

// --- run: a command's standard output, cached -----------------------------------------------------------------------

// A store that hangs holds the command up for no longer than this.
constexpr std::chrono::seconds hanging_store_max(10);

enum CannotRun { not_executable = 126, not_found = 127 };  // what shells say; 2 is for what went wrong before

// SHA-256 of named pieces, each with its length, so that no two lists of pieces read as the same bytes.
class Digest {
public:
    Digest() { check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr)); }

    void update(std::string_view data) { check(EVP_DigestUpdate(context_.get(), data.data(), data.size())); }
    void add(std::string_view what, std::string_view piece) {
        update(std::string(what) + " " + std::to_string(piece.size()) + "\n");
        update(piece);
    }
    void add_file(const std::string& path) {
        Input input(path);
        Digest contents;
        std::string block(std::size_t{64} << 10, '\0');
        while (const std::size_t count = input(block.data(), block.size())) contents.update({block.data(), count});
        add("input", contents.hex());
    }
    std::string hex() {
        unsigned char sum[EVP_MAX_MD_SIZE];
        unsigned size = 0;
        check(EVP_DigestFinal_ex(context_.get(), sum, &size));
        std::string out;
        for (unsigned i = 0; i < size; ++i) {
            out += "0123456789abcdef"[sum[i] >> 4];
            out += "0123456789abcdef"[sum[i] & 15];
        }
        return out;
    }

private:
    static void check(int result) {
        if (result != 1) throw std::runtime_error("libcrypto has no SHA-256");
    }
    struct Free {
        void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    };
    std::unique_ptr<EVP_MD_CTX, Free> context_{EVP_MD_CTX_new()};
};

// What the output depends on, as far as we are told. Without --key that is the command and its arguments, too.
std::string key_of_run(const Arguments& arguments) {
    Digest digest;
    const std::string key = arguments.get("--key");
    if (key.empty()) {
        for (const std::string& word : arguments.command) digest.add("word", word);
    }
    for (const std::string& name : arguments.all("--env")) {
        const char* value = std::getenv(name.c_str());
        digest.add("variable", name);
        digest.add(value ? "set" : "unset", value ? value : "");
    }
    for (const std::string& path : arguments.all("--input")) digest.add_file(path);
    if (key.empty()) return "run/" + digest.hex();
    return arguments.has("--env") || arguments.has("--input") ? key + "/" + digest.hex() : key;
}

// Output of any size, on disk under no name. What cannot be written there is not kept.
class Spool {
public:
    Spool() {
        const char* folder = std::getenv("TMPDIR");
        std::string path = std::string(folder && *folder ? folder : "/tmp") + "/s3cache-XXXXXX";
        file_ = mkstemp(path.data());
        if (file_ >= 0) static_cast<void>(unlink(path.c_str()));
    }
    Spool(const Spool&) = delete;
    Spool& operator=(const Spool&) = delete;
    ~Spool() { drop(); }

    explicit operator bool() const { return file_ >= 0; }
    std::uint64_t size() const { return size_; }
    void add(std::string_view data) {
        while (!data.empty() && file_ >= 0) {
            const ssize_t count = pwrite(file_, data.data(), data.size(), static_cast<off_t>(size_));
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) return drop();  // the disk is full: the command goes on
            size_ += static_cast<std::uint64_t>(count);
            data.remove_prefix(static_cast<std::size_t>(count));
        }
    }
    // Zero: the end, or it cannot be read.
    std::size_t read_at(std::uint64_t offset, char* buffer, std::size_t capacity) const {
        ssize_t count = -1;
        do count = pread(file_, buffer, capacity, static_cast<off_t>(offset));
        while (count < 0 && errno == EINTR);
        return count < 0 ? 0 : static_cast<std::size_t>(count);
    }
    void clear() { size_ = 0; }

private:
    void drop() {
        if (file_ >= 0) close(file_);
        file_ = -1;
    }
    int file_ = -1;
    std::uint64_t size_ = 0;
};

// Straight to the descriptor: what a command says is to be seen as it says it. False: nobody listens any more.
bool pass_on(std::string_view data) {
    while (!data.empty()) {
        const ssize_t count = write(STDOUT_FILENO, data.data(), data.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno != EPIPE && errno != EBADF)
            std::fprintf(stderr, "s3cache: standard output: %s\n", std::strerror(errno));
        if (count < 0) return false;
        data.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
}

// Ends as the command did, so that whoever waits for us sees what they would have seen of it.
int end_like(int wait_status) {
    if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
    const int signal_number = WTERMSIG(wait_status);
    const rlimit no_core = {0, 0};  // the command has dumped its own, if any
    setrlimit(RLIMIT_CORE, &no_core);
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
    return 128 + signal_number;
}

// Prints what the cache had. A reader who leaves early ends us as it would have ended the command.
int replay(const Spool& spool) {
    std::string block(std::size_t{64} << 10, '\0');
    for (std::uint64_t at = 0; at < spool.size();) {
        const std::size_t count = spool.read_at(at, block.data(), block.size());
        if (count == 0) throw std::runtime_error("the temporary file cannot be read");
        if (!pass_on({block.data(), count})) return end_like(SIGPIPE);
        at += count;
    }
    return done;
}

// The entry of a command's output. After the first failure of the store it is left alone: the command matters more.
class Kept {
public:
    // What is read is read in haste, what is stored may take its time.
    Kept(Cache& cache, Cache& hasty, const Arguments& arguments)
        : cache_(cache), hasty_(hasty), key_(key_of_run(arguments)) {
        if (arguments.has("--ttl")) options_.ttl = duration(arguments.get("--ttl"));
    }

    const std::string& key() const { return key_; }
    bool usable() const { return usable_; }
    // Into the spool as a whole before any of it is printed: half an output cannot be taken back.
    bool fetch(Spool& spool) {
        spool.clear();
        auto reader = hasty_.try_get_stream(key_);
        if (!reader) return fail(reader.error());
        if (!*reader) return false;
        for (;;) {
            const auto chunk = (*reader)->try_next();
            if (!chunk) return fail(chunk.error());
            if (chunk->empty()) return static_cast<bool>(spool);
            spool.add(*chunk);
        }
    }
    // Calls `meanwhile` some ten times a second.
    void store(const Spool& spool, const std::function<void()>& meanwhile) {
        options_.progress = [&](const Progress&) { return meanwhile(), interrupted == 0; };
        if (!spool)
            return static_cast<void>(
                fail(s3cache::Error(s3cache::Errc::file, "no room for a temporary copy of the output")));
        const auto stored = spool.size() <= checked_bytes_max ? store_whole(spool) : store_stream(spool);
        if (!stored && interrupted == 0) fail(stored.error());
    }
    bool fail(const s3cache::Error& error) {
        if (error.code() == s3cache::Errc::invalid_argument) throw std::runtime_error(error.what());
        if (error.code() == s3cache::Errc::damaged) return false;  // to be replaced
        if (usable_) std::fprintf(stderr, "s3cache: not cached: %s\n", printable(error.what()).c_str());
        return usable_ = false;
    }

private:
    // What fits is looked at, and kept as text where it is text.
    s3cache::Result<bool> store_whole(const Spool& spool) {
        std::string all(static_cast<std::size_t>(spool.size()), '\0');
        for (std::size_t at = 0; at < all.size();) {
            const std::size_t count = spool.read_at(at, all.data() + at, all.size() - at);
            if (count == 0) return s3cache::Error(s3cache::Errc::file, "the temporary file cannot be read");
            at += count;
        }
        return cache_.try_set(key_, all, options_);
    }
    s3cache::Result<bool> store_stream(const Spool& spool) {
        std::uint64_t at = 0;
        s3cache::Source source([&](char* buffer, std::size_t capacity) {
            const std::size_t count = spool.read_at(at, buffer, capacity);
            at += count;
            return count;
        });
        return cache_.try_set(key_, std::move(source).sized(spool.size()), options_);
    }

    Cache& cache_;
    Cache& hasty_;
    const std::string key_;
    s3cache::SetOptions options_;
    bool usable_ = true;
};

// Parallel runs of one command: who puts this entry there runs it, and gives the entry more time as long as it does.
// The name is the one that get_or_set uses for the same key, so that programs and this one keep out of each other's way.
class Lease {
public:
    Lease(Cache& hasty, const Arguments& arguments, const std::string& key)
        : cache_(hasty), time_(duration(arguments.get("--lease", "60s"))) {
        Digest digest;
        digest.update(key);
        name_ = ".s3cache/lease/" + digest.hex().substr(0, 32);
        std::random_device random;
        owner_ = std::to_string(random()) + "-" + std::to_string(random()) + "-" + std::to_string(getpid());
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { release(); }

    void release() {
        if (is_ours_ && still_ours()) static_cast<void>(cache_.try_remove(name_));
        is_ours_ = false;
    }

    // False: another has it. If the store does not say, nobody waits for it.
    bool take() {
        s3cache::SetOptions options;
        options.ttl = time_;
        options.if_absent = true;
        const auto stored = cache_.try_set(name_, owner_, options);
        if (!stored) return true;
        is_ours_ = *stored;
        if (is_ours_ && cache_.stats().unconditional != 0) settle();
        renewed_ = Clock::now();
        return is_ours_;
    }
    // To be called now and then while the command runs and its output is stored.
    void renew() {
        if (!is_ours_ || Clock::now() - renewed_ < time_ / 3) return;
        renewed_ = Clock::now();
        is_ours_ = still_ours() && cache_.try_touch(name_, time_).value_or(false);
    }
    std::chrono::milliseconds until_renewal() const {
        return std::chrono::duration_cast<std::chrono::milliseconds>(time_ / 3) + std::chrono::milliseconds(1);
    }

private:
    using Clock = std::chrono::steady_clock;

    bool still_ours() {
        const auto there = cache_.try_get(name_);
        return there && *there && (*there)->view() == owner_;
    }
    // Where the store does not honour conditions two may have written. Who wrote last has it, once all writes are there.
    void settle() {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        is_ours_ = still_ours();
    }

    Cache& cache_;
    s3cache::Seconds time_;
    std::string name_, owner_;
    bool is_ours_ = false;
    Clock::time_point renewed_{};
};

// A command inherits what we were started with and nothing that was opened since, such as libcurl's sockets.
class Inherited {
public:
    Inherited() {
        for (int file = 0; file < files_max; ++file) was_open_.push_back(fcntl(file, F_GETFD) >= 0);
    }
    void close_others_on_exec() const {
        for (int file = 0; file < files_max; ++file) {
            if (!was_open_[static_cast<std::size_t>(file)]) static_cast<void>(fcntl(file, F_SETFD, FD_CLOEXEC));
        }
    }

private:
    static constexpr int files_max = 256;  // many more than we ever open
    std::vector<bool> was_open_;
};

volatile std::sig_atomic_t running_child = 0;

// What is sent to us alone is meant for the command. What a terminal sends (Ctrl-C), the command gets by itself.
extern "C" void forward(int signal_number, siginfo_t* info, void*) {
    interrupted = signal_number;
    if (running_child > 0 && info->si_code <= 0) kill(static_cast<pid_t>(running_child), signal_number);
}

void forward_signals() {
    struct sigaction action = {}, before = {};
    action.sa_sigaction = forward;
    action.sa_flags = SA_SIGINFO;
    for (const int signal_number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        sigaction(signal_number, nullptr, &before);
        if (before.sa_handler != SIG_IGN) sigaction(signal_number, &action, nullptr);
    }
}

struct Unrunnable {
    int status;
    std::string what;
};

// The command with its standard output in our hands.
class Child {
public:
    Child(const std::vector<std::string>& command, const Inherited& inherited) {
        int ends[2];
        if (pipe(ends) != 0) throw std::runtime_error(std::string("pipe: ") + std::strerror(errno));
        output_ = ends[0];
        inherited.close_others_on_exec();
        const int failure = spawn(command, ends[1]);
        close(ends[1]);
        if (failure != 0) {
            close_output();
            throw Unrunnable{failure == ENOENT ? not_found : not_executable,
                             command[0] + ": " + std::strerror(failure)};
        }
        running_child = process_;
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() { close_output(); }

    // What it has said since; empty: it will say no more. Calls `idle` while it is silent, and at least every so often.
    std::string_view listen(std::chrono::milliseconds every, const std::function<void()>& idle) {
        for (;;) {
            pollfd ready = {output_, POLLIN, 0};
            const int count =
                poll(&ready, 1, static_cast<int>((std::min)(every, std::chrono::milliseconds(60000)).count()));
            idle();
            if (count <= 0) continue;
            const ssize_t size = read(output_, buffer_.data(), buffer_.size());
            if (size < 0 && errno == EINTR) continue;
            return {buffer_.data(), size < 0 ? 0 : static_cast<std::size_t>(size)};
        }
    }
    // It learns from its next write that nobody reads.
    void close_output() {
        if (output_ >= 0) close(output_);
        output_ = -1;
    }
    int wait() {
        int status = 0;
        while (waitpid(process_, &status, 0) < 0 && errno == EINTR) {
        }
        running_child = 0;
        return status;
    }

private:
    int spawn(const std::vector<std::string>& command, int standard_output) {
        std::vector<char*> words;
        for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
        words.push_back(nullptr);
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, standard_output, STDOUT_FILENO);
        posix_spawnattr_init(&attributes);
        sigset_t defaults;
        sigemptyset(&defaults);
        if (!pipe_signal_was_ignored) sigaddset(&defaults, SIGPIPE);
        posix_spawnattr_setsigdefault(&attributes, &defaults);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
        const int failure = posix_spawnp(&process_, words[0], &actions, &attributes, words.data(), environ);
        posix_spawnattr_destroy(&attributes);
        posix_spawn_file_actions_destroy(&actions);
        return failure;
    }

    pid_t process_ = -1;
    int output_ = -1;
    std::string buffer_ = std::string(std::size_t{64} << 10, '\0');
};

// Runs it, and shows and keeps what it says; its wait status.
int run_command(const Arguments& arguments, const Inherited& inherited, Spool& spool, Lease& lease) {
    spool.clear();
    forward_signals();
    Child child(arguments.command, inherited);
    for (;;) {
        const std::string_view said = child.listen(lease.until_renewal(), [&] { lease.renew(); });
        if (said.empty()) break;
        spool.add(said);
        if (pass_on(said)) continue;
        child.close_output();
        break;
    }
    return child.wait();
}

// Waits until the output is there (true), or running the command is up to us.
bool wait_for_another(Kept& kept, Spool& spool, Lease& lease) {
    std::minstd_rand random(std::random_device{}());
    auto pause = std::chrono::milliseconds(100);
    constexpr std::chrono::milliseconds pause_most(2000);
    while (kept.usable()) {
        const bool ours = lease.take();
        if (kept.fetch(spool)) return true;  // also when it is ours: it may have come just before
        if (ours) return false;
        std::this_thread::sleep_for(pause * (50 + random() % 51) / 100);
        pause = (std::min)(2 * pause, pause_most);
    }
    return false;
}

// The command's wait status; empty: its output is in the spool, from the cache.
std::optional<int> run_unless_kept(const Arguments& arguments, const Inherited& inherited, Kept& kept, Lease& lease,
                                   Spool& spool) {
    if (kept.usable() && (kept.fetch(spool) || wait_for_another(kept, spool, lease))) return std::nullopt;
    const int status = run_command(arguments, inherited, spool, lease);
    const bool succeeded = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (succeeded && kept.usable()) kept.store(spool, [&] { lease.renew(); });
    lease.release();
    return status;
}

int run_run(Cache& cache, const Arguments& arguments) {
    if (arguments.command.empty()) throw WrongUsage{"run wants -- and a command"};
    const Inherited inherited;
    s3cache::Config config;
    config.call_timeout = hanging_store_max;
    Cache hasty = open_cache(arguments, std::move(config));
    Kept kept(cache, hasty, arguments);
    Lease lease(hasty, arguments, kept.key());
    Spool spool;
    if (!spool) kept.fail(s3cache::Error(s3cache::Errc::file, "no temporary file can be made; is TMPDIR right?"));
    const std::optional<int> status = run_unless_kept(arguments, inherited, kept, lease, spool);
    return status ? end_like(*status) : replay(spool);
}

// --- lifecycle: rules by which the store itself keeps the bucket small ----------------------------------------------

unsigned days(const Arguments& arguments, const std::string& option, unsigned otherwise) {
    if (!arguments.has(option)) return otherwise;
    const std::string text = arguments.get(option);
    const std::string number = text.substr(0, text.size() - (!text.empty() && text.back() == 'd' ? 1 : 0));
    if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos) {
        throw WrongUsage{option + " wants whole days, not " + text};
    }
    return static_cast<unsigned>(std::stoul(number));
}

std::string escaped(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (c == '&')
            out += "&amp;";
        else if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '\r')
            out += "&#13;";
        else
            out += c;
    }
    return out;
}

// A bucket and the prefix that this cache's keys have there, as --bucket or S3CACHE_URL names them.
std::pair<std::string, std::string> bucket_and_prefix(const Arguments& arguments) {
    const char* url = std::getenv("S3CACHE_URL");
    std::string where = arguments.get("--bucket", url ? url : "");
    where.resize((std::min)(where.find('?'), where.size()));
    if (where.size() > 5 && where.compare(2, 3, "://") == 0) where.erase(0, 5);
    const std::size_t slash = (std::min)(where.find('/'), where.size());
    std::string prefix = where.substr((std::min)(slash + 1, where.size()));
    if (!prefix.empty() && prefix.back() != '/') prefix += '/';
    return {where.substr(0, slash), prefix};
}

struct Rule {
    std::string id, action;  // action: the element that S3's XML has, and what stands in it
    std::string days_name;
    unsigned days;
};

std::string rules_xml(const std::vector<Rule>& rules, const std::string& prefix) {
    std::string out = "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n";
    for (const Rule& rule : rules) {
        out += "  <Rule>\n    <ID>" + escaped(rule.id) + "</ID>\n    <Filter><Prefix>" + escaped(prefix);
        out += "</Prefix></Filter>\n    <Status>Enabled</Status>\n    <" + rule.action + "><" + rule.days_name + ">";
        out += std::to_string(rule.days) + "</" + rule.days_name + "></" + rule.action + ">\n  </Rule>\n";
    }
    return out + "</LifecycleConfiguration>\n";
}

// As `aws s3api put-bucket-lifecycle-configuration` takes them.
std::string rules_json(const std::vector<Rule>& rules, const std::string& prefix) {
    std::string out;
    for (const Rule& rule : rules) {
        out += (out.empty() ? "\n" : ",\n") + std::string("  {\"ID\":") + quoted(rule.id);
        out += ",\"Filter\":{\"Prefix\":" + quoted(prefix) + "},\"Status\":\"Enabled\",";
        out += "\"" + rule.action + "\":{\"" + rule.days_name + "\":" + std::to_string(rule.days) + "}}";
    }
    return "{\"Rules\":[" + out + "]}\n";
}

int run_lifecycle(Cache&, const Arguments& arguments) {
    const auto [bucket, prefix] = bucket_and_prefix(arguments);
    const unsigned uploads = days(arguments, "--uploads", 1), entries = days(arguments, "--expire", 0);
    std::vector<Rule> rules;
    if (uploads != 0)
        rules.push_back(
            {"s3cache uploads " + prefix, "AbortIncompleteMultipartUpload", "DaysAfterInitiation", uploads});
    if (entries != 0) rules.push_back({"s3cache entries " + prefix, "Expiration", "Days", entries});
    put(arguments.has("--json") ? rules_json(rules, prefix) : rules_xml(rules, prefix));
    // On standard error, so that standard output is the document alone. S3 replaces all rules of a bucket at once.
    std::fprintf(stderr,
                 "to install (it replaces the bucket's other rules): s3cache lifecycle --json ... >rules.json && "
                 "aws s3api put-bucket-lifecycle-configuration --bucket %s --lifecycle-configuration "
                 "file://rules.json\n",
                 bucket.c_str());
    return done;
}

// --- doctor: why a cache does not work, and what to do about it -----------------------------------------------------

// Two entries that nobody else has, removed whatever happens; should even that fail, their time is short.
class Scratch {
public:
    Scratch(Cache& its_cache, const Arguments& arguments) : cache(its_cache), watched(open_watched(arguments)) {
        std::random_device random;
        char name[40];
        std::snprintf(name, sizeof name, "s3cache-doctor-%08x%08x", random(), random());
        key = name;
        second_key = key + "-2";
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (!is_clean_) clean();
    }

    bool clean() {
        is_clean_ = true;
        for (const std::string& each : {key, second_key}) is_clean_ = cache.try_remove(each).has_value() && is_clean_;
        return is_clean_;
    }

    Cache& cache;
    std::function<void(const s3cache::Event&)> watch{};  // told of what `watched` does; may use `cache` meanwhile
    Cache watched;
    std::string key, second_key;

private:
    Cache open_watched(const Arguments& arguments) {
        s3cache::Config config;
        config.on_event = [this](const s3cache::Event& event) {
            if (watch) watch(event);
        };
        return open_cache(arguments, std::move(config));
    }

    bool is_clean_ = false;
};

const s3cache::SetOptions scratch_options{s3cache::Seconds(600)};
constexpr std::string_view scratch_value = "written by s3cache doctor, to be removed at once\n";

// Neither: it works. A flaw: the store answered as if all were well, and it was not.
struct Outcome {
    std::optional<s3cache::Error> error;
    std::string flaw;
};

template <class T, class Check>
Outcome judged(const s3cache::Result<T>& result, Check is_right, const char* flaw) {
    if (!result) return {result.error(), ""};
    return {{}, is_right(*result) ? "" : flaw};
}

bool is_true(bool value) { return value; }
bool is_false(bool value) { return !value; }

Outcome try_store(Scratch& scratch) {
    return judged(scratch.cache.try_set(scratch.key, scratch_value, scratch_options), is_true, "it was not stored");
}

Outcome try_look(Scratch& scratch) {
    Outcome there = judged(scratch.cache.try_contains(scratch.key), is_true, "what was just stored is not found");
    if (there.error || !there.flaw.empty()) return there;
    return judged(scratch.cache.try_contains(scratch.second_key), is_false, "something is found that was never stored");
}

Outcome try_read(Scratch& scratch) {
    const auto same = [](const auto& hit) { return hit && hit->view() == scratch_value; };
    const auto expires = [](const auto& hit) { return hit->info().expires_at && hit->info().kind == Kind::text; };
    const auto hit = scratch.cache.try_get(scratch.key);
    Outcome outcome = judged(hit, same, "what comes back is not what was stored");
    if (outcome.error || !outcome.flaw.empty()) return outcome;
    return judged(hit, expires, "the metadata is lost: entries would never expire");
}

// Another writer comes between the look at what is there and the write: then only the store itself can refuse it.
Outcome try_against_rival(Scratch& scratch, const std::string& key, const s3cache::SetOptions& options) {
    bool came = false;
    scratch.watch = [&](const s3cache::Event& event) {
        const bool is_look = event.operation == "set" && (event.status == 200 || event.status == 404);
        if (came || event.attempt == 0 || !is_look) return;
        came = true;
        static_cast<void>(scratch.cache.try_set(key, "by another writer", scratch_options));
    };
    const Outcome outcome =
        judged(scratch.watched.try_set(key, scratch_value, options), is_false,
               "the store does not check it: of two writers at the same moment both may believe to be the one");
    scratch.watch = {};
    return outcome;
}

Outcome try_if_absent(Scratch& scratch) {
    s3cache::SetOptions options = scratch_options;
    options.if_absent = true;
    return try_against_rival(scratch, scratch.second_key, options);
}

Outcome try_if_match(Scratch& scratch) {
    s3cache::SetOptions options = scratch_options;
    const auto info = scratch.cache.try_stat(scratch.key);
    if (!info) return {info.error(), ""};
    options.if_match = *info ? (*info)->etag : "";
    return try_against_rival(scratch, scratch.key, options);
}

Outcome try_touch(Scratch& scratch) {
    return judged(scratch.cache.try_touch(scratch.key, scratch_options.ttl.value()), is_true, "the entry is not found");
}

Outcome try_list(Scratch& scratch) {
    auto listing = scratch.cache.try_list(scratch.key);
    if (!listing) return {listing.error(), ""};
    const auto is_ours = [&](const auto& entry) { return entry && entry->key == scratch.key; };
    return judged(listing->try_next(), is_ours, "what was just stored is not listed");
}

Outcome try_remove(Scratch& scratch) {
    const auto removed = scratch.cache.try_remove(scratch.key);
    if (!removed) return {removed.error(), ""};
    const bool is_there = scratch.cache.try_contains(scratch.key).value_or(false);
    return {{}, is_there ? "the entry is still there" : ""};
}

struct Trial {
    std::string_view name;
    bool is_needed;               // without the others it is still a cache
    std::string_view permission;  // as AWS's policies name it
    std::string_view do_without;
    Outcome (*run)(Scratch&);
};

constexpr Trial trials[] = {
    {"store an entry", true, "s3:PutObject", "", try_store},
    {"find it, miss another", true, "s3:ListBucket (or set Config::forbidden_is_miss)", "", try_look},
    {"read it back", true, "s3:GetObject", "a proxy or the store drops headers: try Config::metadata_names", try_read},
    {"store only if absent", false, "s3:PutObject and s3:ListBucket", "let no machines compete by if_absent",
     try_if_absent},
    {"store only if unchanged", false, "s3:PutObject and s3:GetObject", "let no machines compete by if_match",
     try_if_match},
    {"give it more time", false, "s3:GetObject and s3:PutObject", "set entries again instead of touch", try_touch},
    {"list", false, "s3:ListBucket", "do without ls, purge and clear here", try_list},
    {"remove it", true, "s3:DeleteObject", "", try_remove},
};

// What comes without metadata of ours, as a removal does, arrives as it was signed even where a proxy drops headers.
std::string fix_of_signature(Scratch& scratch) {
    if (!scratch.clean()) return "the secret key does not fit the access key: copy both anew";
    return "a proxy drops headers with an underscore (nginx: underscores_in_headers on), or set Config::metadata_names";
}

std::string fix_by_store_code(std::string_view code) {
    if (code == "InvalidAccessKeyId") return "this store does not know the access key: is it another store's?";
    if (listed("ExpiredToken InvalidToken TokenRefreshRequired", code)) return "log in again: the session is over";
    if (code == "RequestTimeTooSkewed") return "set this machine's clock (timedatectl set-ntp true)";
    return "";
}

std::string fix_by_kind(const s3cache::Error& error, const Trial& trial) {
    using s3cache::Errc;
    switch (error.code()) {
    case Errc::credentials:
        return "see the credentials above: mend what is BROKEN, or set AWS_ACCESS_KEY_ID and "
               "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE";
    case Errc::denied:
        return "allow these credentials " + std::string(trial.permission);
    case Errc::no_such_bucket:
        return "make the bucket, or correct its name, the region or the endpoint";
    case Errc::timed_out:
    case Errc::network:
        return "is the endpoint right, the server up, no firewall or proxy in the way?";
    case Errc::tls:
        return "name the PEM file of the store's authority in AWS_CA_BUNDLE";
    case Errc::protocol:
        return "what answers is no S3: check the endpoint and its port";
    case Errc::invalid_argument:
        return "correct what it names: an option, a variable or a line of a file";
    default:
        return std::string(trial.do_without);
    }
}

std::string fix_for(const Outcome& outcome, const Trial& trial, Scratch& scratch) {
    if (!outcome.error) return std::string(trial.do_without);
    if (outcome.error->s3_code() == "SignatureDoesNotMatch") return fix_of_signature(scratch);
    const std::string fix = fix_by_store_code(outcome.error->s3_code());
    return fix.empty() ? fix_by_kind(*outcome.error, trial) : fix;
}

std::string padded(std::string_view text, std::size_t width) {
    return std::string(text) + std::string(width > text.size() ? width - text.size() : 1, ' ');
}

std::string row(std::string_view name, std::string_view verdict, std::string_view text = {}) {
    const std::string rest = text.empty() ? std::string(verdict) : padded(verdict, 13) + printable(text);
    return "  " + padded(name, 32) + rest + "\n";
}

std::string fix_line(std::string_view fix) { return fix.empty() ? "" : "    fix: " + printable(fix) + "\n"; }

// The store's own words where there are some: what the library advises stands below, said for a command line.
std::string cause_of(const Outcome& outcome) {
    if (!outcome.error) return outcome.flaw;
    const s3cache::Error& error = *outcome.error;
    const std::string status = std::to_string(error.status());
    if (error.s3_code().empty() || error.s3_code() == status) return error.what();
    return status + " " + error.s3_code() + (error.s3_message().empty() ? "" : ": ") + error.s3_message();
}

const char* verdict_of(const s3cache::Finding& finding) {
    using Verdict = s3cache::Finding::Verdict;
    switch (finding.verdict) {
    case Verdict::used:
        return "used";
    case Verdict::broken:
        return "BROKEN";
    case Verdict::not_asked:
        return "not asked";
    default:
        return finding.about.rfind("credentials", 0) == 0 ? "passed over" : "default";
    }
}

std::string text_about(const std::vector<s3cache::Finding>& findings, std::string_view about) {
    for (const s3cache::Finding& finding : findings) {
        if (finding.about == about) return finding.text;
    }
    return {};
}

// Where requests would go by what is configured; credentials are not asked for that.
std::string place_configured(const Arguments& arguments) {
    s3cache::Config config;
    config.credentials = s3cache::anonymous();
    return text_about(open_cache(arguments, std::move(config)).explain(), "requests go to");
}

// What the store's answers have taught: where it is, and what time it is there.
void put_learnt(const std::vector<s3cache::Finding>& findings, const std::string& place_before) {
    const std::string place = text_about(findings, "requests go to"), clock = text_about(findings, "clock");
    if (place != place_before) {
        put(row("requests went to", "corrected", place));
        put(fix_line("name that region, which spares each start a request"));
    }
    const bool is_off = clock.rfind("this machine", 0) == 0;
    put(row("clock", is_off ? "OFF" : "good", clock));
    if (is_off) put(fix_line("set it (timedatectl set-ntp true); s3cache reckons with it, other programs may not"));
}

struct Diagnosis {
    std::string report;
    bool stored = false;    // something, at least
    bool answered = false;  // by the store, whatever it said
    bool is_whole = true;   // no trial failed
    bool works = true;      // none that a cache needs
};

bool try_out(const Trial& trial, Scratch& scratch, Diagnosis& diagnosis) {
    if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\rtrying: %s\033[K", std::string(trial.name).c_str());
    const Outcome outcome = trial.run(scratch);
    const bool succeeded = !outcome.error && outcome.flaw.empty();
    diagnosis.answered = diagnosis.answered || !outcome.error || outcome.error->status() != 0;
    diagnosis.is_whole = diagnosis.is_whole && succeeded;
    diagnosis.works = diagnosis.works && (succeeded || !trial.is_needed);
    diagnosis.report += row(trial.name, succeeded ? "yes" : "NO");
    if (succeeded) return true;
    diagnosis.report += "    " + printable(cause_of(outcome)) + "\n" + fix_line(fix_for(outcome, trial, scratch));
    return false;
}

Diagnosis try_all(Cache& cache, const Arguments& arguments) {
    const Cancellable cancellable;
    Scratch scratch(cache, arguments);
    Diagnosis diagnosis;
    diagnosis.report = "\nWhat the store does, tried with " + scratch.key + "\n";
    for (const Trial& trial : trials) {
        diagnosis.stored = try_out(trial, scratch, diagnosis) || diagnosis.stored;
        if (diagnosis.stored && interrupted == 0) continue;
        diagnosis.report += "  the rest was not tried\n";
        diagnosis.works = false;
        break;
    }
    if (!scratch.clean() && diagnosis.stored) diagnosis.report += "  left behind; it expires in ten minutes\n";
    if (isatty(STDERR_FILENO) == 1) std::fputs("\r\033[K", stderr);
    return diagnosis;
}

// The sources are asked once, after the trials, when it is known as well what the store's answers have taught: a
// credential_process may want something of a person each time.
int run_doctor(Cache& cache, const Arguments& arguments) {
    const Diagnosis diagnosis = try_all(cache, arguments);
    const std::vector<s3cache::Finding> findings = cache.explain();
    const std::string place_before = place_configured(arguments);
    put("What was found (s3cache " S3CACHE_VERSION ")\n");
    for (const s3cache::Finding& finding : findings) {
        if (finding.about == "clock") continue;
        const bool is_place = finding.about == "requests go to";
        put(row(finding.about, verdict_of(finding), is_place ? place_before : finding.text));
    }
    put(diagnosis.report + "\nWhat its answers tell\n");
    if (diagnosis.answered)
        put_learnt(findings, place_before);
    else
        put(row("clock", "not known", "the store did not answer"));
    put(!diagnosis.works     ? "\nThe cache would not work.\n"
        : diagnosis.is_whole ? "\nThe cache would work.\n"
                             : "\nThe cache would work, but for what is marked NO.\n");
    return diagnosis.works ? done : failed;
}

// --- the list of commands -------------------------------------------------------------------------------------------

struct Command {
    std::string_view name;
    std::string_view synopsis, help;
    std::string_view options;          // besides the general ones
    std::size_t words_min, words_max;  // after the name
    int (*run)(Cache&, const Arguments&);
};

constexpr std::size_t any_number = static_cast<std::size_t>(-1);

constexpr Command commands[] = {
    {"set", "set [--ttl T] [--gzip] [--json|--text|--bytes] [--if-absent] KEY [FILE|-]",
     "store a file or standard input", "--ttl --gzip --json --text --bytes --if-absent", 1, 2, run_set},
    {"get", "get [-o FILE] KEY", "print the value, or write it to a file", "-o", 1, 1, run_get},
    {"rm", "rm KEY...", "remove", "", 1, any_number, run_rm},
    {"stat", "stat [--json] KEY...", "what is known of an entry", "--json", 1, any_number, run_stat},
    {"ls", "ls [--json] [PREFIX]", "size, date and key of each entry", "--json", 0, 1, run_ls},
    {"touch", "touch --ttl T KEY", "a new time to live, from now", "--ttl", 1, 1, run_touch},
    {"purge", "purge [PREFIX]", "remove what has expired", "", 0, 1, run_purge},
    {"clear", "clear PREFIX", "remove everything under the prefix", "", 1, 1, run_clear},
    {"presign", "presign [--put] [--expires T] KEY", "a URL for someone without credentials", "--put --expires", 1, 1,
     run_presign},
    {"run", "run [--ttl T] [--key K] [--input FILE...] [--env NAME...] [--lease T] -- COMMAND ARG...",
     "print COMMAND's output from the cache; run it if there is none, once however many ask",
     "--ttl --key --input --env --lease", 0, 0, run_run},
    {"lifecycle", "lifecycle [--expire DAYS] [--uploads DAYS] [--json]",
     "rules by which the store itself removes what is old, and the AWS tool's line that installs them",
     "--expire --uploads --json", 0, 0, run_lifecycle},
    {"doctor", "doctor", "why it does not work: credentials, endpoint, what the bucket takes, with fixes", "", 0, 0,
     run_doctor},
};

std::string usage() {
    std::string text = "usage: s3cache [--bucket s3://BUCKET/PREFIX] [--endpoint URL] [--region R] COMMAND ...\n\n";
    for (const Command& command : commands) {
        text += "  " + std::string(command.synopsis) + "\n        " + std::string(command.help) + "\n";
    }
    return text +
           "\nT is 90s, 15m, 1h, 7d or a number of seconds. S3CACHE_URL stands for --bucket; -- ends the options.\n"
           "--json prints one object a line. JSON and text up to 16 MiB are checked before they are stored.\n"
           "run keeps the output of a COMMAND that succeeds under its words, the contents of each FILE and the value "
           "of\n"
           "each NAME, or under K; a cache that fails does not keep COMMAND from running.\n"
           "Exit status: 0 hit or done, 1 miss or condition not met, 2 error, 64 wrong usage; run: COMMAND's, or 126, "
           "127.\n";
}

// --- the program -----------------------------------------------------------------------------------------------------

const Command& command_of(const Arguments& arguments) {
    if (arguments.words.empty()) throw WrongUsage{"no command"};
    for (const Command& command : commands) {
        if (command.name != arguments.words[0]) continue;
        const std::size_t words = arguments.words.size() - 1;
        if (words < command.words_min || words > command.words_max) throw WrongUsage{std::string(command.synopsis)};
        for (const auto& [option, value] : arguments.options) {
            if (!listed(command.options, option) && !listed("--bucket --endpoint --region", option)) {
                throw WrongUsage{"no such option: " + option};
            }
        }
        return command;
    }
    throw WrongUsage{"no such command: " + arguments.words[0]};
}

int run(const Arguments& arguments) {
    if (arguments.has("--help") || arguments.has("-h")) {
        put(usage());
        return done;
    }
    if (arguments.has("--version")) {
        put("s3cache " S3CACHE_VERSION "\n");
        return done;
    }
    const Command& command = command_of(arguments);
    Cache cache = open_cache(arguments);
    return command.run(cache, arguments);
}

// A stream closed by the caller must not be the number of our next socket: it gets a file on which using it fails.
void hold_standard_streams() {
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(file, F_GETFD) < 0) static_cast<void>(open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY));
    }
}

int report(const std::string& text, int status) {
    if (!text.empty()) std::fprintf(stderr, "s3cache: %s\n", text.c_str());
    return status;
}

}  // namespace

int main(int argc, char** argv) {
    hold_standard_streams();
    pipe_signal_was_ignored = std::signal(SIGPIPE, SIG_IGN) == SIG_IGN;  // a closed pipe is then an error of the write
    try {
        const int status = run(parse(argv + 1, argv + argc));
        flush();
        return status;
    } catch (const WrongUsage& wrong) {
        report(printable(wrong.what), 0);
        std::fputs(("\n" + usage()).c_str(), stderr);
        return wrong_usage;
    } catch (const Unrunnable& command) {
        return report(printable(command.what), command.status);
    } catch (const OutputClosed&) {
        return failed;
    } catch (const std::exception& error) {
        if (interrupted != 0) std::raise(interrupted);  // its handler is gone: whoever waits sees how we ended
        return report(printable(error.what()), failed);
    }
}
