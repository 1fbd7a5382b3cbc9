// The command line `s3cache`: a bucket as a cache for shells and scripts, with everything the header can do to one.
// g++ -std=c++17 -I.. s3cache_cli.cpp -o s3cache -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <fcntl.h>        // open
#include <openssl/evp.h>  // the hash of a command
#include <poll.h>         // a command's output, and ours
#include <spawn.h>
#include <sys/resource.h>  // no core of ours beside a command's
#include <sys/stat.h>      // what kind of file a name stands for
#include <sys/wait.h>
#include <unistd.h>  // read, write, isatty

#include <cerrno>
#include <climits>  // PIPE_BUF
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

using namespace std::chrono_literals;
using s3cache::Cache;
using s3cache::Errc;
using s3cache::Info;
using s3cache::Kind;
using s3cache::Progress;
using SteadyClock = std::chrono::steady_clock;
using SystemClock = std::chrono::system_clock;

enum Exit { done = 0, absent = 1, failed = 2, wrong_usage = 64 };

// A kind that is named is checked before anything is sent, for input up to this size. A longer one cannot be held in
// memory just to be looked at: it streams, and is taken at the user's word.
constexpr std::size_t checked_bytes_max = std::size_t{16} << 20;

struct WrongUsage {
    std::string what;
};
struct OutputClosed {};  // by its reader, who has seen enough: nobody to tell

std::runtime_error system_error(const std::string& what) {
    return std::runtime_error(what + ": " + std::strerror(errno));
}

// --- the command line's words ----------------------------------------------------------------------------------------

struct Arguments {
    std::vector<std::string> words;    // what to do first
    std::vector<std::string> command;  // of `run`: what stands behind --
    std::map<std::string, std::vector<std::string>> options;

    bool has(const std::string& option) const { return options.count(option) != 0; }
    std::vector<std::string> all(const std::string& option) const {
        return has(option) ? options.at(option) : std::vector<std::string>();
    }
    std::string get(const std::string& option, const std::string& otherwise = {}) const {
        return has(option) ? options.at(option).back() : otherwise;
    }
    std::string word(std::size_t number) const { return number < words.size() ? words[number] : ""; }
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
void parse(Arguments& arguments, char** word, char** end) {
    for (; word != end; ++word) {
        const std::string text = *word;
        if (text == "--") {
            std::vector<std::string>& rest = arguments.word(0) == "run" ? arguments.command : arguments.words;
            rest.insert(rest.end(), word + 1, end);
            break;
        }
        if (text.size() < 2 || text[0] != '-')
            arguments.words.push_back(text);
        else
            word = take_option(arguments, word, end);
    }
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
    if (!(seconds > 0 && std::isfinite(seconds)))
        throw WrongUsage{"not a time such as 90s, 15m, 1h, 7d or 2.5: " + text};
    return s3cache::Seconds(seconds);
}

// --- text out --------------------------------------------------------------------------------------------------------

// Writes all of it to standard output, whether that blocks or not, and calls `idle` while nobody reads. What is written at
// once is so little that a pipe with any room takes it whole. False: the output is lost, and errno says why.
bool pass_on(std::string_view data, const std::function<void()>& idle = {}) {
    while (!data.empty()) {
        pollfd ready = {STDOUT_FILENO, POLLOUT, 0};
        if (poll(&ready, 1, 100) <= 0) {
            if (idle) idle();
            continue;
        }
        const ssize_t count = write(STDOUT_FILENO, data.data(), (std::min)(data.size(), std::size_t{PIPE_BUF}));
        if (count >= 0)
            data.remove_prefix(static_cast<std::size_t>(count));
        else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
            return false;
    }
    return true;
}

std::string unwritten;  // what is printed, until it is enough for a write

void flush() {
    const std::string text = std::exchange(unwritten, {});
    if (pass_on(text)) return;
    if (errno == EPIPE || errno == EBADF) throw OutputClosed{};
    throw system_error("standard output");
}

void put(std::string_view text) {
    unwritten += text;
    if (unwritten.size() >= std::size_t{64} << 10) flush();
}

// Text that cannot move a cursor or start a new line: a key is whatever its writer liked.
std::string printable(std::string_view text, std::string_view also_escaped = {}) {
    const auto octet = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool is_c1 = octet(i) == 0xC2 && octet(i + 1) >= 0x80 && octet(i + 1) < 0xA0;  // two bytes of UTF-8
        if (is_c1 || octet(i) < 0x20 || octet(i) == 0x7F) {
            char escape[16];
            std::snprintf(escape, sizeof escape, "\\u%04x", is_c1 ? octet(++i) : octet(i));
            out += escape;
        } else {
            if (also_escaped.find(text[i]) != std::string_view::npos) out += '\\';
            out += text[i];
        }
    }
    return out;
}

std::string quoted(std::string_view text) { return '"' + printable(text, "\"\\") + '"'; }

void say(std::string_view text) { std::fprintf(stderr, "s3cache: %s\n", printable(text).c_str()); }

std::string padded(std::string_view text, std::size_t width) {
    return std::string(text) + std::string(width > text.size() ? width - text.size() : 1, ' ');
}

std::string iso8601(s3cache::TimePoint when) {
    const std::time_t seconds = SystemClock::to_time_t(when);
    const std::tm* utc = std::gmtime(&seconds);
    char text[40] = "";
    if (utc) std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", utc);
    return text;
}

// Seconds since 1970 to the microsecond, without needless zeros.
std::string unix_seconds(s3cache::TimePoint when) {
    const double seconds = s3cache::Seconds(when.time_since_epoch()).count();
    char text[400];
    std::snprintf(text, sizeof text, "%.6f", seconds);
    std::string out = text;
    out.erase(out.find_last_not_of('0') + 1);
    if (out.back() == '.') out.pop_back();
    return out;
}

std::string amount(double number, const char* unit, bool is_fraction) {
    char text[400];
    std::snprintf(text, sizeof text, is_fraction ? "%.1f %s" : "%.0f %s", number, unit);
    return text;
}

std::string size_text(double bytes) {
    return bytes < 1e3   ? amount(bytes, "B", false)
           : bytes < 1e6 ? amount(bytes / 1e3, "kB", true)
           : bytes < 1e9 ? amount(bytes / 1e6, "MB", true)
                         : amount(bytes / 1e9, "GB", true);
}

std::string span_text(s3cache::Seconds span) {
    const double s = std::fabs(span.count());
    return s < 120      ? amount(s, "s", false)
           : s < 7200   ? amount(s / 60, "min", false)
           : s < 172800 ? amount(s / 3600, "h", false)
                        : amount(s / 86400, "d", false);
}

const char* name_of(Kind kind) { return kind == Kind::json ? "json" : kind == Kind::text ? "text" : "bytes"; }

bool is_known(s3cache::TimePoint when) { return when != s3cache::TimePoint{}; }

void put_json(const std::string& key, const Info& info) {
    put("{\"key\":" + quoted(key) + ",\"size\":" + std::to_string(info.size));
    put(",\"etag\":" + (info.etag.empty() ? "null" : quoted(info.etag)));
    put(",\"last_modified\":" + (is_known(info.last_modified) ? quoted(iso8601(info.last_modified)) : "null"));
    put(",\"expires_at\":" + (info.expires_at ? unix_seconds(*info.expires_at) : "null"));
    put(std::string(",\"compressed\":") + (info.compressed ? "true" : "false"));
    put(",\"kind\":" + (info.kind ? quoted(name_of(*info.kind)) : "null") + "}\n");
}

void put_line(const char* label, const std::string& text) {
    if (!text.empty()) put(padded(label, 15) + printable(text) + "\n");
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

void put_short(const std::string& key, const Info& info) {
    char size[24];
    std::snprintf(size, sizeof size, "%12llu", static_cast<unsigned long long>(info.size));
    put(std::string(size) + "  " + iso8601(info.last_modified) + "  " + printable(key) + "\n");
}

void put_long(const std::string& key, const Info& info) {
    const auto now = SystemClock::now();
    const std::string age = is_known(info.last_modified) ? span_text(now - info.last_modified) + " old" : "";
    std::string expiry = "never expires";
    if (info.expires_at && *info.expires_at > now) expiry = "expires in " + span_text(*info.expires_at - now);
    if (info.expires_at && *info.expires_at <= now) expiry = "EXPIRED " + span_text(now - *info.expires_at) + " ago";
    const std::string kind = info.kind ? name_of(*info.kind) : "-";
    put(padded(kind, 7) + padded(size_text(static_cast<double>(info.size)), 10) +
        padded(info.compressed ? "gzip" : "", 6) + padded(age, 12) + padded(expiry, 21) + printable(key) + "\n");
}

// --- the cache that is meant -----------------------------------------------------------------------------------------

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

std::string place_of(const Arguments& arguments) {
    const char* url = std::getenv("S3CACHE_URL");
    std::string where = arguments.get("--bucket", url ? url : "");
    if (where.empty()) throw WrongUsage{"which bucket? Give --bucket, or set S3CACHE_URL"};
    for (const char* name : {"endpoint", "region"}) {
        if (arguments.has(std::string("--") + name)) where = without_parameter(where, name);
    }
    return where;
}

Cache open_cache(const Arguments& arguments, s3cache::Config config = {}) {
    config.endpoint = arguments.get("--endpoint");
    config.region = arguments.get("--region");
    return Cache(place_of(arguments), std::move(config));
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

// A line on the terminal for transfers that take over a second; nothing anywhere else. `#` is what has arrived, `+` what is
// on its way: of an upload the one is what the store has taken, the other may still lie in a buffer of this machine.
class Bar {
public:
    explicit Bar(bool is_upload, bool wanted = true)
        : shown_(wanted && isatty(STDERR_FILENO) == 1), is_upload_(is_upload) {}
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    ~Bar() {
        if (drawn_at_ != SteadyClock::time_point()) std::fputs("\r\033[K", stderr);
    }

    bool operator()(const Progress& progress) {
        const SteadyClock::time_point now = SteadyClock::now();
        if (shown_ && now - begun_ > 1s && now - drawn_at_ > 100ms) {
            std::fprintf(stderr, "\r%s\033[K", line(progress, s3cache::Seconds(now - begun_).count()).c_str());
            drawn_at_ = now;
        }
        return interrupted == 0;
    }
    // An upload's, of an attempt that the store has answered well: it has that part.
    void operator()(const s3cache::Event& event) {
        if (event.attempt > 0 && event.status / 100 == 2) taken_ += static_cast<double>(event.bytes);
    }

private:
    std::string line(const Progress& progress, double seconds) const {
        const auto sent = static_cast<double>(progress.done);
        const double arrived = is_upload_ ? (std::min)(sent, taken_) : sent, rate = arrived / seconds;
        const std::string numbers = size_text(arrived) + "  " + size_text(rate) + "/s";
        const double total = static_cast<double>(progress.total.value_or(0));
        if (!(total > 0)) return numbers;
        std::string bar(30, '.');
        for (std::size_t i = 0; i < bar.size(); ++i) {
            const double here = total * static_cast<double>(i + 1) / 30;
            bar[i] = here <= arrived ? '#' : here <= sent ? '+' : '.';
        }
        const std::string left = arrived > 0 ? span_text(s3cache::Seconds((total - arrived) / rate)) + " left" : "";
        return "[" + bar + "] " + amount(100 * (std::min)(1.0, arrived / total), "%  ", false) + numbers + "  " + left;
    }

    bool shown_, is_upload_;
    double taken_ = 0;
    SteadyClock::time_point begun_ = SteadyClock::now(), drawn_at_{};
};

// --- input -----------------------------------------------------------------------------------------------------------

class Input {
public:
    explicit Input(const std::string& path) : name_(path == "-" ? "standard input" : path) {
        if (path != "-") file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat status = {};
        if (file_ < 0 || fstat(file_, &status) != 0) throw system_error(name_);
        is_regular = path != "-" && S_ISREG(status.st_mode);
    }
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;
    ~Input() {
        if (file_ != STDIN_FILENO) close(file_);
    }

    std::size_t operator()(char* buffer, std::size_t capacity) {
        if (const std::size_t count = ahead.copy(buffer, capacity, ahead_used_)) {
            ahead_used_ += count;
            return count;
        }
        ssize_t count = -1;
        do count = read(file_, buffer, capacity);
        while (count < 0 && errno == EINTR && interrupted == 0);
        if (count < 0) throw system_error(name_);
        return static_cast<std::size_t>(count);
    }
    // Reads this much into `ahead`, from where it will be read again. False: there is more.
    bool look_ahead(std::size_t bytes_max) {
        std::string all, block(std::size_t{64} << 10, '\0');
        std::size_t count = 1;
        while (all.size() <= bytes_max && count != 0) all.append(block, 0, count = (*this)(block.data(), block.size()));
        ahead = std::move(all);
        return count == 0;
    }

    bool is_regular = false;
    std::string ahead{};

private:
    std::string name_;
    std::size_t ahead_used_ = 0;
    int file_ = STDIN_FILENO;
};

// --- commands: each returns its exit status --------------------------------------------------------------------------

// Scripts go by the exit status; a person at a terminal is told.
int found(bool yes, const std::string& key, const char* otherwise = "no such entry") {
    if (!yes && isatty(STDERR_FILENO) == 1) say(otherwise + (": " + key));
    return yes ? done : absent;
}

std::optional<Kind> wanted_kind(const Arguments& arguments) {
    std::optional<Kind> kind;
    for (const Kind each : {Kind::json, Kind::text, Kind::bytes}) {
        if (!arguments.has(std::string("--") + name_of(each))) continue;
        if (kind) throw WrongUsage{"only one of --json, --text, --bytes"};
        kind = each;
    }
    return kind;
}

int run_set(const Arguments& arguments) {
    const std::string key = arguments.word(1);
    const std::string path = arguments.words.size() > 2 ? arguments.word(2) : "-";
    Bar bar(true);
    s3cache::SetOptions options;
    if (arguments.has("--ttl")) options.ttl = duration(arguments.get("--ttl"));
    options.compress = arguments.has("--gzip");
    options.if_absent = arguments.has("--if-absent");
    options.kind = wanted_kind(arguments);
    options.progress = std::ref(bar);
    s3cache::Config config;
    config.on_event = std::ref(bar);
    Cache cache = open_cache(arguments, std::move(config));

    Input input(path);
    const Cancellable cancellable;
    const auto stored = [&] {
        if (options.kind && options.kind != Kind::bytes) {
            if (input.look_ahead(checked_bytes_max))
                return cache.set(key, {input.ahead.data(), input.ahead.size(), *options.kind}, options);
            say(std::string("over 16 MiB: stored as ") + name_of(*options.kind) + " without a check that it is");
        }
        return input.is_regular ? cache.set_file(key, path, options) : cache.set(key, input, options);
    };
    return found(stored(), key, "there is one already");
}

int run_get(const Arguments& arguments) {
    Cache cache = open_cache(arguments);
    const std::string key = arguments.word(1), target = arguments.get("-o", "-");
    Bar bar(false, target != "-" || isatty(STDOUT_FILENO) == 0);
    if (target != "-") {
        const Cancellable cancellable;
        return found(cache.get_file(key, target, {std::ref(bar)}).has_value(), key);
    }
    auto reader = cache.get_stream(key);
    if (!reader) return found(false, key);
    Progress progress;
    if (!reader->info().compressed) progress.total = reader->info().size;
    for (const std::string_view chunk : *reader) {
        put(chunk);
        progress.done += chunk.size();
        bar(progress);
    }
    return done;
}

int run_rm(const Arguments& arguments) {
    const std::vector<std::string> keys(arguments.words.begin() + 1, arguments.words.end());
    for (const auto& removed : open_cache(arguments).remove_many(keys)) removed.value();
    return done;
}

int run_stat(const Arguments& arguments) {
    Cache cache = open_cache(arguments);
    int status = done;
    for (std::size_t i = 1; i < arguments.words.size(); ++i) {
        const std::string& key = arguments.words[i];
        const std::optional<Info> info = cache.stat(key);
        if (info)
            (arguments.has("--json") ? put_json : put_text)(key, *info);
        else
            status = found(false, key);
    }
    return status;
}

int run_ls(const Arguments& arguments) {
    const auto show = arguments.has("--json") ? put_json : arguments.has("-l") ? put_long : put_short;
    // A store's listing tells neither expiry nor kind, so that the full record costs one more request an entry.
    const auto look = show == put_short ? s3cache::Look::shallow : s3cache::Look::deep;
    Cache cache = open_cache(arguments);
    for (const auto& [key, info] : cache.list(arguments.word(1), look)) show(key, info);
    return done;
}

int run_touch(const Arguments& arguments) {
    if (!arguments.has("--ttl")) throw WrongUsage{"touch wants --ttl"};
    const s3cache::Seconds ttl = duration(arguments.get("--ttl"));
    return found(open_cache(arguments).touch(arguments.word(1), ttl), arguments.word(1));
}

int removed(std::uint64_t count, const char* what) {
    put(std::to_string(count) + what + (count == 1 ? "entry removed\n" : "entries removed\n"));
    return done;
}

int run_purge(const Arguments& arguments) {
    return removed(open_cache(arguments).purge_expired(arguments.word(1)), " expired ");
}

// A variable that is not set makes an empty PREFIX of `clear "$PREFIX"`: that is never taken for the whole bucket.
int run_clear(const Arguments& arguments) {
    const bool is_all = arguments.has("--all");
    if (is_all != arguments.word(1).empty() || is_all != (arguments.words.size() == 1))
        throw WrongUsage{"clear wants a PREFIX that is not empty, or --all"};
    return removed(open_cache(arguments).clear(arguments.word(1)), " ");
}

int run_presign(const Arguments& arguments) {
    const char* method = arguments.has("--put") ? "PUT" : "GET";
    const s3cache::Seconds lifetime = duration(arguments.get("--expires", "1h"));
    put(open_cache(arguments).presign(arguments.word(1), method, lifetime) + "\n");
    return done;
}

// --- run: a command's standard output, cached ------------------------------------------------------------------------

// A store that hangs holds us up for ten seconds at most: five until an answer begins, five without a byte of it. After
// its first failure it is left alone: the command matters more.
constexpr std::chrono::seconds hanging_store_max(5);

enum CannotRun { not_executable = 126, not_found = 127 };  // what shells say; 2 is for what went wrong before

// SHA-256, in hex, of what comes until nothing comes.
std::string sha256(const std::function<std::string_view()>& next) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    bool fine = EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    for (std::string_view data = next(); fine && !data.empty(); data = next())
        fine = EVP_DigestUpdate(context.get(), data.data(), data.size()) == 1;
    if (!fine || EVP_DigestFinal_ex(context.get(), sum, &size) != 1)
        throw std::runtime_error("no SHA-256 in libcrypto");
    std::string out;
    for (unsigned i = 0; i < size; ++i) out.append({"0123456789abcdef"[sum[i] >> 4], "0123456789abcdef"[sum[i] & 15]});
    return out;
}

std::string sha256(std::string text) {
    return sha256([&, given = false]() mutable { return std::exchange(given, true) ? std::string_view() : text; });
}

// What the output depends on, as far as we are told. Each piece has its length, so that no two lists read as the same
// bytes. Without --key the command and its arguments count, too.
std::string key_of_run(const Arguments& arguments) {
    std::string pieces, block(std::size_t{64} << 10, '\0');
    const auto add = [&](const std::string& what, const std::string& piece) {
        pieces += what + " " + std::to_string(piece.size()) + "\n" + piece;
    };
    const std::string key = arguments.get("--key");
    if (key.empty()) {
        for (const std::string& word : arguments.command) add("word", word);
    }
    for (const std::string& name : arguments.all("--env")) {
        const char* value = std::getenv(name.c_str());
        add("variable", name);
        add(value ? "set" : "unset", value ? value : "");
    }
    for (const std::string& path : arguments.all("--input")) {
        Input input(path);
        add("input", sha256([&] { return std::string_view(block.data(), input(block.data(), block.size())); }));
    }
    if (key.empty()) return "run/" + sha256(pieces);
    return arguments.has("--env") || arguments.has("--input") ? key + "/" + sha256(pieces) : key;
}

// Output of any size, on disk under no name. What cannot be written there is not kept.
class Spool {
public:
    Spool() {
        const char* folder = std::getenv("TMPDIR");
        std::string path = std::string(folder && *folder ? folder : "/tmp") + "/s3cache-XXXXXX";
        const int file = mkstemp(path.data());
        if (file >= 0) static_cast<void>(unlink(path.c_str()));
        if (file >= 0) file_.reset(fdopen(file, "w+"));
    }
    explicit operator bool() const { return file_ != nullptr; }
    std::uint64_t size() const { return size_; }
    void add(std::string_view data) {
        size_ += data.size();
        if (file_ && std::fwrite(data.data(), 1, data.size(), file_.get()) != data.size()) file_.reset();  // disk full
    }
    void clear() {
        if (file_ && (std::fflush(file_.get()) != 0 || ftruncate(fileno(file_.get()), 0) != 0)) file_.reset();
        size_ = 0;
        rewind();
    }
    void rewind() {
        if (file_ && fseeko(file_.get(), 0, SEEK_SET) != 0) file_.reset();  // writes what is left, which may fail
    }
    std::size_t read(char* buffer, std::size_t capacity) {
        const std::size_t count = std::fread(buffer, 1, capacity, file_.get());
        if (std::ferror(file_.get())) throw std::runtime_error("the temporary file cannot be read");
        return count;
    }

private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    std::unique_ptr<std::FILE, Close> file_;
    std::uint64_t size_ = 0;
};

// The entry of a command's output, and the lease beside it: of parallel runs the one that puts it there runs the command,
// and renews it as long as that takes. It has the name that get_or_set gives it for the same key, so that programs and
// this one keep out of each other's way.
class Kept {
public:
    explicit Kept(const Arguments& arguments)
        : cache_(open_cache(arguments)), hasty_(open_hasty(arguments)), key_(key_of_run(arguments)) {
        if (arguments.has("--ttl")) options_.ttl = duration(arguments.get("--ttl"));
        lease_options_.ttl = duration(arguments.get("--lease", "60s"));
        lease_options_.if_absent = true;
        lease_ = ".s3cache/lease/" + sha256(key_).substr(0, 32);
        std::random_device random;
        owner_ = std::to_string(random()) + "-" + std::to_string(random()) + "-" + std::to_string(getpid());
        if (!spool) fail(s3cache::Error(Errc::file, "no temporary file can be made; is TMPDIR right?"));
    }
    Kept(const Kept&) = delete;
    Kept& operator=(const Kept&) = delete;
    ~Kept() { release(); }

    bool usable() const { return usable_; }
    void release() {
        if (std::exchange(leased_, false) && is_leased_here()) static_cast<void>(hasty_.try_remove(lease_));
    }
    // Into the spool as a whole before any of it is printed: half an output cannot be taken back.
    bool fetch() {
        spool.clear();
        auto reader = hasty_.try_get_stream(key_, {patience()});
        if (!reader) return fail(reader.error());
        if (!*reader) return false;
        for (;;) {
            const auto chunk = (*reader)->try_next();
            if (!chunk) return fail(chunk.error());
            if (chunk->empty()) return static_cast<bool>(spool);
            spool.add(*chunk);
        }
    }
    // What fits is looked at, and kept as text where it is text.
    void store() {
        spool.rewind();
        if (!spool) return static_cast<void>(fail(s3cache::Error(Errc::file, "no room for a copy of the output")));
        options_.progress = [&, patient = patience()](const Progress& progress) { return renew(), patient(progress); };
        const auto read = [&](char* buffer, std::size_t capacity) { return spool.read(buffer, capacity); };
        std::string whole(spool.size() > checked_bytes_max ? 0 : static_cast<std::size_t>(spool.size()), '\0');
        const auto stored = read(whole.data(), whole.size()) == spool.size()
                                ? cache_.try_set(key_, whole, options_)
                                : cache_.try_set(key_, s3cache::Source(read).sized(spool.size()), options_);
        if (!stored) fail(stored.error());
    }
    // Waits until the output is there (true), or running the command is up to us.
    bool wait_for_another() {
        std::minstd_rand random(std::random_device{}());
        for (auto pause = 100ms; usable_; pause = (std::min)(2 * pause, std::chrono::milliseconds(2000))) {
            const auto leased = hasty_.try_set(lease_, owner_, lease_options_);
            if (!leased) return fail(leased.error());
            leased_ = *leased;
            // Where the store does not honour conditions two may have written: who wrote last has it, once all is there.
            if (leased_ && hasty_.stats().unconditional != 0) std::this_thread::sleep_for(300ms);
            if (leased_ && hasty_.stats().unconditional != 0) leased_ = is_leased_here();
            renewed_ = SteadyClock::now();
            if (fetch()) return true;  // also when it is ours: it may have come just before
            if (leased_) return false;
            std::this_thread::sleep_for(pause * (50 + static_cast<int>(random() % 51)) / 100);
        }
        return false;
    }
    // To be called now and then while the command runs and its output is passed on and stored.
    void renew() {
        if (!leased_ || SteadyClock::now() - renewed_ < *lease_options_.ttl / 3) return;
        renewed_ = SteadyClock::now();
        leased_ = is_leased_here() && hasty_.try_touch(lease_, *lease_options_.ttl).value_or(false);
    }

    Spool spool{};

private:
    static Cache open_hasty(const Arguments& arguments) {
        s3cache::Config config;
        config.call_timeout = hanging_store_max;
        return open_cache(arguments, std::move(config));
    }
    // Cancels a transfer that stands still.
    static s3cache::ProgressCallback patience() {
        return [most = std::uint64_t{0}, since = SteadyClock::now()](const Progress& progress) mutable {
            if (progress.done > most) since = SteadyClock::now();
            most = (std::max)(most, progress.done);
            return SteadyClock::now() - since < hanging_store_max && interrupted == 0;
        };
    }
    bool is_leased_here() {
        const auto there = hasty_.try_get(lease_);
        return there && *there && (*there)->view() == owner_;
    }
    bool fail(const s3cache::Error& error) {
        const Errc code = error.code();
        if (code == Errc::invalid_argument) throw std::runtime_error(error.what());
        if (code == Errc::damaged) return false;  // to be replaced
        if (code == Errc::timed_out || code == Errc::network || code == Errc::cancelled) leased_ = false;  // it lapses
        if (usable_ && interrupted == 0)
            say(std::string("not cached: ") + (code == Errc::cancelled ? "the store stands still" : error.what()));
        return usable_ = false;
    }

    Cache cache_, hasty_;  // what is read is read in haste, what is stored may take its time
    const std::string key_;
    std::string lease_, owner_;
    s3cache::SetOptions options_, lease_options_;
    bool usable_ = true, leased_ = false;
    SteadyClock::time_point renewed_{};
};

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

int output_lost(int why) {
    say("standard output: " + std::string(std::strerror(why)) + ": not all of the output was passed on");
    return absent;
}

// Prints what the cache had. A reader who leaves early ends us as it would have ended the command.
int replay(Spool& spool) {
    std::string block(std::size_t{64} << 10, '\0');
    spool.rewind();
    while (const std::size_t count = spool.read(block.data(), block.size())) {
        if (!pass_on({block.data(), count}))
            return errno == EPIPE && !pipe_signal_was_ignored ? end_like(SIGPIPE) : output_lost(errno);
    }
    return done;
}

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

// A command inherits what we were started with and nothing that was opened since, such as libcurl's sockets.
std::vector<int> closed_files() {
    std::vector<int> closed;
    for (int file = 0; file < 256; ++file) {  // many more than we ever open
        if (fcntl(file, F_GETFD) < 0) closed.push_back(file);
    }
    return closed;
}

struct Unrunnable {
    int status;
    std::string what;
};

pid_t start(const std::vector<std::string>& command, int output) {
    std::vector<char*> words;
    for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    if (!pipe_signal_was_ignored) std::signal(SIGPIPE, SIG_DFL);  // for the command, which inherits it
    pid_t process = -1;
    const int failure = posix_spawnp(&process, words[0], &actions, nullptr, words.data(), environ);
    std::signal(SIGPIPE, SIG_IGN);
    posix_spawn_file_actions_destroy(&actions);
    if (failure == 0) return process;
    throw Unrunnable{failure == ENOENT ? not_found : not_executable, command[0] + ": " + std::strerror(failure)};
}

// Keeps and passes on what comes until nothing comes; else errno of what was lost.
int pass_through(int output, Kept& kept) {
    std::string block(std::size_t{64} << 10, '\0');
    for (;;) {
        pollfd ready = {output, POLLIN, 0};
        const int count = poll(&ready, 1, 100);
        kept.renew();
        if (count <= 0) continue;
        const ssize_t size = read(output, block.data(), block.size());
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return 0;
        const std::string_view said(block.data(), static_cast<std::size_t>(size));
        kept.spool.add(said);
        if (!pass_on(said, [&] { kept.renew(); })) return errno;
    }
}

// How it ended. Where that is not known it cannot have succeeded.
int wait_for(pid_t process, Kept& kept) {
    int status = 0;
    for (auto pause = 1ms;; pause = (std::min)(2 * pause, std::chrono::milliseconds(100))) {
        const pid_t ended = waitpid(process, &status, WNOHANG);
        if (ended < 0 && errno != EINTR) throw system_error("how the command ended is not known");
        if (ended > 0) return status;
        kept.renew();
        std::this_thread::sleep_for(pause);
    }
}

int run_run(const Arguments& arguments) {
    if (arguments.command.empty()) throw WrongUsage{"run wants -- and a command"};
    const std::vector<int> ours = closed_files();
    Kept kept(arguments);
    if (kept.usable() && (kept.fetch() || kept.wait_for_another())) {
        kept.release();
        return replay(kept.spool);
    }

    int ends[2];
    if (pipe(ends) != 0) throw system_error("pipe");
    for (const int file : ours) static_cast<void>(fcntl(file, F_SETFD, FD_CLOEXEC));
    kept.spool.clear();
    forward_signals();
    running_child = start(arguments.command, ends[1]);
    close(ends[1]);
    const int lost = pass_through(ends[0], kept);
    close(ends[0]);  // it learns from its next write that nobody reads
    const int status = wait_for(static_cast<pid_t>(running_child), kept);
    running_child = 0;
    const bool succeeded = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (succeeded && lost == 0 && interrupted == 0 && kept.usable()) kept.store();
    kept.release();
    // Where a reader left early, a command that went down with it ends as it would have without us.
    if (lost == 0 || (lost == EPIPE && !succeeded)) return end_like(status);
    const int loss = output_lost(lost);
    return succeeded || (WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE) ? loss : end_like(status);
}

// --- lifecycle: rules by which the store itself keeps the bucket small -----------------------------------------------

std::string days(const Arguments& arguments, const std::string& option, const std::string& otherwise) {
    const std::string text = arguments.get(option, otherwise);
    const std::string number = text.substr(0, text.size() - (!text.empty() && text.back() == 'd' ? 1 : 0));
    if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos)
        throw WrongUsage{option + " wants whole days, not " + text};
    return number;
}

// One rule in both languages, which name the same things in the same order.
std::string rule(bool as_json, const std::string& id, const std::string& prefix, const std::string& action,
                 const std::string& unit, const std::string& count) {
    if (as_json)
        return "  {\"ID\":" + quoted(id) + ",\"Filter\":{\"Prefix\":" + quoted(prefix) + "},\"Status\":\"Enabled\",\"" +
               action + "\":{\"" + unit + "\":" + count + "}}";
    return "  <Rule>\n    <ID>" + id + "</ID>\n    <Filter><Prefix>" + prefix +
           "</Prefix></Filter>\n    <Status>Enabled</Status>\n    <" + action + "><" + unit + ">" + count + "</" +
           unit + "></" + action + ">\n  </Rule>";
}

// The rules go to standard output, ready for a file; the line that puts them into force goes beside them.
int run_lifecycle(const Arguments& arguments) {
    const bool as_json = arguments.has("--json");
    const std::string uploads = days(arguments, "--uploads", "1"), entries = days(arguments, "--expire", "0");
    open_cache(arguments);  // refuses what is no place for a cache
    std::string bucket = place_of(arguments), prefix;
    bucket = bucket.substr(0, bucket.find('?'));
    if (bucket.find("://") != std::string::npos) bucket.erase(0, bucket.find("://") + 3);
    if (const std::size_t slash = bucket.find('/'); slash != std::string::npos) {
        prefix = bucket.substr(slash + 1);
        bucket.resize(slash);
    }
    if (!prefix.empty() && prefix.back() != '/') prefix += '/';
    if (!as_json && prefix.find_first_of("<>&") != std::string::npos)
        throw WrongUsage{"a prefix with <, > or & wants --json"};

    std::string rules;
    const auto add = [&](const std::string& what, const std::string& action, const std::string& unit,
                         const std::string& count) {
        if (count.find_first_not_of('0') == std::string::npos) return;
        if (!rules.empty()) rules += as_json ? ",\n" : "\n";
        rules += rule(as_json, "s3cache " + what + " " + prefix, prefix, action, unit, count);
    };
    add("uploads", "AbortIncompleteMultipartUpload", "DaysAfterInitiation", uploads);
    add("entries", "Expiration", "Days", entries);
    const std::string space = "http://s3.amazonaws.com/doc/2006-03-01/";
    put(as_json ? "{\"Rules\":[\n" + rules + "\n]}\n"
                : "<LifecycleConfiguration xmlns=\"" + space + "\">\n" + rules + "\n</LifecycleConfiguration>\n");
    flush();
    const std::string endpoint = arguments.has("--endpoint") ? " --endpoint-url " + arguments.get("--endpoint") : "";
    say("these are in force, in place of all rules that the bucket has, after");
    say("  s3cache lifecycle --json --expire " + entries + " --uploads " + uploads + " >rules.json");
    say("  aws s3api put-bucket-lifecycle-configuration --bucket " + bucket +
        " --lifecycle-configuration file://rules.json" + endpoint);
    return done;
}

// --- doctor: why a cache does not work, and what to do about it ------------------------------------------------------

// What the trials work on: entries that nobody else has, and whose time is short should nobody remove them.
struct Scratch {
    Cache cache;
    std::string key{}, second_key{};
    s3cache::SetOptions options{s3cache::Seconds(600)};
    std::optional<s3cache::Seconds> clock_ahead{};  // of this machine's against the store's

    bool clean() { return cache.try_remove(key).has_value() & cache.try_remove(second_key).has_value(); }
};

constexpr std::size_t part_bytes = std::size_t{5} << 20;  // the least that S3 takes
constexpr std::string_view scratch_value = "written by s3cache doctor, to be removed at once\n";

struct Flaw {  // the store answered as if all were well, and it was not
    const char* what;
};

void expect(bool fine, const char* otherwise) {
    if (!fine) throw Flaw{otherwise};
}

// When it was stored is told by the store's clock, to the second.
void try_store(Scratch& scratch) {
    const auto before = SystemClock::now();
    expect(scratch.cache.set(scratch.key, scratch_value, scratch.options), "it was not stored");
    const auto between = before + (SystemClock::now() - before) / 2;
    const auto info = scratch.cache.try_stat(scratch.key);
    if (info && *info && is_known((*info)->last_modified))
        scratch.clock_ahead = between - ((*info)->last_modified + 500ms);
}

void try_look(Scratch& scratch) {
    expect(scratch.cache.contains(scratch.key), "what was just stored is not found");
    expect(!scratch.cache.contains(scratch.second_key), "something is found that was never stored");
}

void try_read(Scratch& scratch) {
    const auto hit = scratch.cache.get(scratch.key);
    expect(hit && hit->view() == scratch_value, "what comes back is not what was stored");
    expect(hit->info().expires_at && hit->info().kind == Kind::text,
           "the metadata is lost: entries would never expire");
}

// A stream of unknown length, a byte too long for one part.
void try_parts(Scratch& scratch) {
    std::size_t left = part_bytes + 1;
    const auto read = [&](char* buffer, std::size_t capacity) {
        const std::size_t count = (std::min)(left, capacity);
        std::memset(buffer, 'x', count);
        left -= count;
        return count;
    };
    expect(scratch.cache.set(scratch.second_key, read, scratch.options), "it was not stored");
    const auto info = scratch.cache.stat(scratch.second_key);
    expect(info && info->size == part_bytes + 1, "what is stored is not whole");
    scratch.cache.remove(scratch.second_key);
}

// The cache asks for conditions that the store itself checks, and refuses where it does not.
void try_if_absent(Scratch& scratch) {
    s3cache::SetOptions options = scratch.options;
    options.if_absent = true;
    expect(scratch.cache.set(scratch.second_key, scratch_value, options), "it was not stored where nothing is");
    expect(!scratch.cache.set(scratch.second_key, scratch_value, options), "it was stored over what is there");
}

void try_if_match(Scratch& scratch) {
    s3cache::SetOptions options = scratch.options;
    const auto info = scratch.cache.stat(scratch.key);
    options.if_match = info ? info->etag : "";
    expect(scratch.cache.set(scratch.key, "changed", options), "it was not stored over what is unchanged");
    expect(!scratch.cache.set(scratch.key, "again", options), "it was stored over what has changed");
}

void try_touch(Scratch& scratch) {
    expect(scratch.cache.touch(scratch.key, s3cache::Seconds(600)), "the entry is not found");
}

void try_list(Scratch& scratch) {
    bool is_there = false;  // in which order is the store's own affair
    for (const auto& entry : scratch.cache.list(scratch.key)) is_there = is_there || entry.key == scratch.key;
    expect(is_there, "what was just stored is not listed");
}

void try_remove(Scratch& scratch) {
    scratch.cache.remove(scratch.key);
    expect(!scratch.cache.try_contains(scratch.key).value_or(false), "the entry is still there");
}

struct Trial {
    const char* name;
    bool is_needed;          // without the others it is still a cache
    const char* permission;  // as AWS's policies name it
    const char* do_without;
    void (*run)(Scratch&);
};

constexpr Trial trials[] = {
    {"store an entry", true, "s3:PutObject", "", try_store},
    {"find it, miss another", true, "s3:ListBucket (or set Config::forbidden_is_miss)", "", try_look},
    {"read it back", true, "s3:GetObject", "a proxy or the store drops headers: try metadata_names=hyphen", try_read},
    {"store a stream in parts", false, "s3:PutObject and s3:AbortMultipartUpload",
     "store nothing longer than Config::part_bytes", try_parts},
    {"store only if absent", false, "s3:PutObject and s3:ListBucket", "let no machines compete by if_absent",
     try_if_absent},
    {"store only if unchanged", false, "s3:PutObject and s3:GetObject", "let no machines compete by if_match",
     try_if_match},
    {"give it more time", false, "s3:GetObject and s3:PutObject", "set entries again instead of touch", try_touch},
    {"list", false, "s3:ListBucket", "do without ls, purge and clear here", try_list},
    {"remove it", true, "s3:DeleteObject", "", try_remove},
};

using Findings = std::vector<s3cache::Finding>;

std::string text_about(const Findings& findings, std::string_view about) {
    for (const s3cache::Finding& finding : findings) {
        if (finding.about == about) return finding.text;
    }
    return {};
}

Cache without_keys(const Arguments& arguments) {
    s3cache::Config config;
    config.credentials = s3cache::anonymous();
    config.attempts_max = 1;
    config.call_timeout = 3s;
    return open_cache(arguments, std::move(config));
}

// The endpoint as it was written, where one was: without the parenthesis that says by whom.
std::string endpoint_written(const Arguments& arguments) {
    const std::string text = text_about(without_keys(arguments).explain(), "endpoint");
    return text.rfind("http", 0) == 0 ? text.substr(0, text.find(' ')) : "";
}

// HTTP and HTTPS mixed up: whoever is there speaks the other one.
std::string fix_of_scheme(const s3cache::Error& error, Arguments arguments) {
    const std::string endpoint = endpoint_written(arguments);
    const std::size_t host = endpoint.find("://");
    if (host == std::string::npos || std::strstr(error.what(), "certificate")) return "";
    const std::string other = (host == 5 ? "http" : "https") + endpoint.substr(host);
    arguments.options["--endpoint"] = {other};
    const auto looked = without_keys(arguments).try_contains("s3cache-doctor");
    const bool speaks_it = looked || looked.error().status() != 0 || std::strstr(looked.error().what(), "certificate");
    return speaks_it ? "that port speaks " + std::string(host == 5 ? "HTTP" : "HTTPS") + ": write " + other : "";
}

std::string fix_of_bucket(const Arguments& arguments) {
    const std::string endpoint = endpoint_written(arguments);
    const std::size_t path = endpoint.find('/', endpoint.find("://") + 3);
    if (endpoint.empty() || path == std::string::npos || path + 1 == endpoint.size())
        return "make the bucket, or correct its name, the region or the endpoint";
    return "take the path " + endpoint.substr(path) +
           " off the endpoint, unless the store lives there, or make the bucket";
}

// What comes without metadata of ours, as a removal does, arrives as it was signed even where a proxy drops headers.
std::string fix_of_signature(Scratch& scratch, const Arguments& arguments) {
    const auto removed = scratch.cache.try_remove(scratch.key);
    if (removed)
        return "a proxy drops headers with an underscore (nginx: underscores_in_headers on), or add "
               "?metadata_names=hyphen to the URL of the bucket";
    if (removed.error().code() == Errc::no_such_bucket) return fix_of_bucket(arguments);
    return "the secret key does not fit the access key: copy both anew";
}

// Credentials that may not write are enough for a cache that others fill.
bool may_read(Scratch& scratch) {
    if (scratch.cache.try_contains(scratch.second_key)) return true;
    auto listing = scratch.cache.try_list();
    if (!listing) return false;
    const auto entry = listing->try_next();
    return entry && *entry && scratch.cache.try_stat((*entry)->key);
}

std::string fix_for(const s3cache::Error& error, const Trial& trial, Scratch& scratch, const Arguments& arguments) {
    const std::string& name = error.s3_code();
    const Errc code = error.code();
    if (name == "SignatureDoesNotMatch") return fix_of_signature(scratch, arguments);
    if (name == "InvalidAccessKeyId") return "this store does not know the access key: is it another store's?";
    if (listed("ExpiredToken InvalidToken TokenRefreshRequired", name)) return "log in again: the session is over";
    if (name == "RequestTimeTooSkewed") return "set this machine's clock (timedatectl set-ntp true)";
    if (code == Errc::network || code == Errc::tls || code == Errc::protocol || error.status() == 400) {
        const std::string fix = fix_of_scheme(error, arguments);
        if (!fix.empty()) return fix;
    }
    if (code == Errc::credentials)
        return "see the credentials above: mend what is BROKEN, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
               "AWS_PROFILE";
    if (code == Errc::denied) return "allow these credentials " + std::string(trial.permission);
    if (code == Errc::no_such_bucket) return fix_of_bucket(arguments);
    if (code == Errc::timed_out || code == Errc::network)
        return "is the endpoint right, the server up, no firewall or proxy in the way?";
    if (code == Errc::tls) return "name the PEM file of the store's authority in AWS_CA_BUNDLE";
    if (code == Errc::protocol) return "what answers is no S3: check the endpoint and its port";
    if (code == Errc::invalid_argument) return "correct what it names: an option, a variable or a line of a file";
    return trial.do_without;
}

std::string row(std::string_view name, std::string_view verdict, std::string_view text = {}) {
    const std::string rest = text.empty() ? std::string(verdict) : padded(verdict, 13) + printable(text);
    return "  " + padded(name, 32) + rest + "\n";
}

std::string fix_line(std::string_view fix) { return fix.empty() ? "" : "    fix: " + printable(fix) + "\n"; }

// The store's own words where there are some: what the library advises stands below, said for a command line.
std::string cause_of(const s3cache::Error& error) {
    const std::string status = std::to_string(error.status());
    if (error.s3_code().empty() || error.s3_code() == status) return error.what();
    return status + " " + error.s3_code() + (error.s3_message().empty() ? "" : ": ") + error.s3_message();
}

const char* verdict_of(const s3cache::Finding& finding) {
    using Verdict = s3cache::Finding::Verdict;
    if (finding.verdict == Verdict::used) return "used";
    if (finding.verdict == Verdict::broken) return "BROKEN";
    if (finding.verdict == Verdict::not_asked) return "not asked";
    return finding.about.rfind("credentials", 0) == 0 ? "passed over" : "default";
}

struct Diagnosis {
    std::string report;
    bool stored = false;   // something, at least
    bool reads = false;    // though nothing could be stored
    bool is_whole = true;  // no trial failed
    bool works = true;     // none that a cache needs
};

void try_out(const Trial& trial, Scratch& scratch, const Arguments& arguments, Diagnosis& diagnosis) {
    std::string cause, fix;
    try {
        if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\rtrying: %s\033[K", trial.name);
        trial.run(scratch);
        diagnosis.stored = true;
        diagnosis.report += row(trial.name, "yes");
        return;
    } catch (const Flaw& flaw) {
        cause = flaw.what;
        fix = trial.do_without;
    } catch (const s3cache::Error& error) {
        diagnosis.reads = !diagnosis.stored && error.code() == Errc::denied && may_read(scratch);
        cause = cause_of(error);
        fix = diagnosis.reads ? "reading works: set read_only (Config::read_only), or allow s3:PutObject"
                              : fix_for(error, trial, scratch, arguments);
    }
    diagnosis.is_whole = false;
    diagnosis.works = diagnosis.works && !trial.is_needed;
    diagnosis.report += row(trial.name, "NO") + "    " + printable(cause) + "\n" + fix_line(fix);
}

Diagnosis try_all(Scratch& scratch, const Arguments& arguments) {
    const Cancellable cancellable;
    Diagnosis diagnosis;
    for (const Trial& trial : trials) {
        try_out(trial, scratch, arguments, diagnosis);
        if (diagnosis.stored && interrupted == 0) continue;
        diagnosis.report += "  the rest was not tried\n";
        diagnosis.works = false;
        break;
    }
    if (!scratch.clean() && diagnosis.stored) diagnosis.report += "  left behind; it expires in ten minutes\n";
    if (isatty(STDERR_FILENO) == 1) std::fputs("\r\033[K", stderr);
    return diagnosis;
}

std::string clock_row(const std::optional<s3cache::Seconds>& ahead) {
    if (!ahead) return row("clock", "not known", "nothing was stored that the store could have dated");
    const double seconds = std::fabs(ahead->count());
    if (seconds <= 2) return row("clock", "good", "within two seconds of the store's");
    const std::string text =
        amount(seconds, "s", false) + (ahead->count() > 0 ? " ahead of" : " behind") + " the store's";
    return row("clock", "OFF", "this machine's is " + text) +
           fix_line("set it (timedatectl set-ntp true): by it entries end");
}

// What was found is asked after the trials, when it is known as well what the store's answers have taught.
int run_doctor(const Arguments& arguments) {
    std::random_device random;
    char name[40];
    std::snprintf(name, sizeof name, "s3cache-doctor-%08x%08x", random(), random());
    s3cache::Config config;
    config.conditions = s3cache::Conditions::required;
    config.part_bytes = part_bytes;
    Arguments with_parts = arguments;
    with_parts.options["--bucket"] = {without_parameter(place_of(arguments), "part_bytes")};
    Scratch scratch{open_cache(with_parts, std::move(config)), name, std::string(name) + "-2"};
    const Diagnosis diagnosis = try_all(scratch, arguments);

    const std::string configured = text_about(without_keys(arguments).explain(), "requests go to");
    std::string corrected;
    put("What was found (s3cache " S3CACHE_VERSION ")\n");
    for (const s3cache::Finding& finding : scratch.cache.explain()) {
        const bool is_place = finding.about == "requests go to";
        if (is_place && finding.text != configured) corrected = finding.text;
        put(row(finding.about, verdict_of(finding), is_place ? configured : finding.text));
    }
    put("\nWhat the store does, tried with " + scratch.key + "\n" + diagnosis.report + "\nWhat its answers tell\n");
    if (!corrected.empty()) put(row("requests went to", "corrected", corrected));
    if (!corrected.empty()) put(fix_line("name that region, which spares each start a request"));
    put(clock_row(scratch.clock_ahead));
    put(diagnosis.reads      ? "\nReading would work, storing would not: set read_only.\n"
        : !diagnosis.works   ? "\nThe cache would not work.\n"
        : diagnosis.is_whole ? "\nThe cache would work.\n"
                             : "\nThe cache would work, but for what is marked NO.\n");
    return diagnosis.works ? done : failed;
}

// --- the list of commands --------------------------------------------------------------------------------------------

struct Command {
    std::string_view name;
    std::string_view synopsis, help;
    std::string_view options;          // besides the general ones
    std::size_t words_min, words_max;  // after the name
    int (*run)(const Arguments&);
    std::string_view details;  // what `help COMMAND` adds
};

constexpr std::size_t any_number = static_cast<std::size_t>(-1);

constexpr Command commands[] = {
    {"set", "set [--ttl T] [--gzip] [--json|--text|--bytes] [--if-absent] KEY [FILE|-]",
     "store a file or standard input", "--ttl --gzip --json --text --bytes --if-absent", 1, 2, run_set,
     "JSON and text up to 16 MiB are checked before they are stored. Exit status 1: --if-absent, and there is one.\n"},
    {"get", "get [-o FILE] KEY", "print the value, or write it to a file", "-o", 1, 1, run_get,
     "The file appears whole or not at all. Exit status 1: missing or expired.\n"},
    {"rm", "rm KEY...", "remove", "", 1, any_number, run_rm, "No error where there is nothing.\n"},
    {"stat", "stat [--json] KEY...", "what is known of an entry", "--json", 1, any_number, run_stat,
     "Exit status 1: one of them is missing or expired.\n"},
    {"ls", "ls [-l|--json] [PREFIX]", "size, date and key of each entry", "-l --json", 0, 1, run_ls,
     "-l shows kind, size, age and expiry, and marks what has EXPIRED; like --json it sends a request an entry.\n"},
    {"touch", "touch --ttl T KEY", "a new time to live, from now", "--ttl", 1, 1, run_touch,
     "Exit status 1: missing or expired.\n"},
    {"purge", "purge [PREFIX]", "remove what has expired", "", 0, 1, run_purge, ""},
    {"clear", "clear PREFIX | clear --all", "remove everything under the prefix, or everything", "--all", 0, 1,
     run_clear, ""},
    {"presign", "presign [--put] [--expires T] KEY", "a URL for someone without credentials", "--put --expires", 1, 1,
     run_presign, "T is 1h, and 7d at most. It outlives the entry's TTL, and hands out gzip where --gzip made it.\n"},
    {"run", "run [--ttl T] [--key K] [--input FILE...] [--env NAME...] [--lease T] -- COMMAND ARG...",
     "print COMMAND's output from the cache; run it if there is none, once however many ask",
     "--ttl --key --input --env --lease", 0, 0, run_run,
     "Kept is the output of a COMMAND that succeeded, if all of it could be passed on: under its words, the contents "
     "of\n"
     "each FILE and the value of each NAME, or under K. A cache that fails does not keep COMMAND from running.\n"
     "Exit status: COMMAND's; 126, 127 if it cannot be run; 1 if its output was lost on the way to standard output.\n"},
    {"lifecycle", "lifecycle [--expire DAYS] [--uploads DAYS] [--json]",
     "rules by which the store itself removes what is old, as S3's XML or the AWS tool's JSON",
     "--expire --uploads --json", 0, 0, run_lifecycle,
     "It installs nothing: the line that does stands on standard error. Entries go DAYS after they were written,\n"
     "uploads that nobody completed DAYS after they began (1 unless you say so; 0: no such rule).\n"},
    {"doctor", "doctor", "why it does not work: credentials, endpoint, what the bucket takes, with fixes", "", 0, 0,
     run_doctor, "Exit status 0: the cache would work.\n"},
};

constexpr std::string_view general = "s3cache [--bucket s3://BUCKET/PREFIX] [--endpoint URL] [--region R] ";

std::string usage() {
    std::string text = "usage: " + std::string(general) + "COMMAND ...\n\n";
    for (const Command& command : commands) {
        text += "  " + std::string(command.synopsis) + "\n        " + std::string(command.help) + "\n";
    }
    return text +
           "  help [COMMAND]\n"
           "\nT is 90s, 15m, 1h, 7d or a number of seconds. S3CACHE_URL stands for --bucket; -- ends the options.\n"
           "A bucket's URL may end in ?region=R&endpoint=URL&path_style=true&checksums=own|store|none&\n"
           "metadata_names=underscore|hyphen&part_bytes=N. --json prints one object a line.\n"
           "Exit status: 0 hit or done, 1 miss or condition not met, 2 error, 64 wrong usage.\n";
}

std::string usage(const Command& command) {
    return "usage: " + std::string(general) + "\n           " + std::string(command.synopsis) + "\n";
}

// --- the program -----------------------------------------------------------------------------------------------------

const Command* command_named(std::string_view name) {
    for (const Command& command : commands) {
        if (command.name == name) return &command;
    }
    return nullptr;
}

int help(const std::string& name) {
    if (name.empty()) return put(usage()), done;
    const Command* command = command_named(name);
    if (!command) throw WrongUsage{"no such command: " + name};
    put(usage(*command) + "\n" + std::string(command->help) + "\n" + std::string(command->details));
    return done;
}

int run(const Arguments& arguments) {
    const std::string name = arguments.word(0);
    if (name == "help" && arguments.words.size() <= 2) return help(arguments.word(1));
    if (arguments.has("--help") || arguments.has("-h")) return help(name);
    if (arguments.has("--version")) return put("s3cache " S3CACHE_VERSION "\n"), done;
    const Command* command = command_named(name);
    if (!command) throw WrongUsage{name.empty() ? "no command" : "no such command: " + name};
    const std::size_t words = arguments.words.size() - 1;
    if (words < command->words_min) throw WrongUsage{name + " wants more than that"};
    if (words > command->words_max) throw WrongUsage{name + " does not want " + arguments.word(command->words_max + 1)};
    for (const auto& [option, value] : arguments.options) {
        if (!listed(command->options, option) && !listed("--bucket --endpoint --region", option))
            throw WrongUsage{name + " has no option " + option};
    }
    return command->run(arguments);
}

// A stream closed by the caller must not be the number of our next socket: it gets a file on which using it fails.
void hold_standard_streams() {
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(file, F_GETFD) < 0) static_cast<void>(open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY));
    }
}

}  // namespace

int main(int argc, char** argv) {
    hold_standard_streams();
    pipe_signal_was_ignored = std::signal(SIGPIPE, SIG_IGN) == SIG_IGN;  // a closed pipe is then an error of the write
    std::signal(SIGCHLD, SIG_DFL);  // where it is ignored, nobody learns how a command ended
    Arguments arguments;
    try {
        parse(arguments, argv + 1, argv + argc);
        const int status = run(arguments);
        flush();
        return status;
    } catch (const WrongUsage& wrong) {
        say(wrong.what);
        const Command* command = command_named(arguments.word(0));
        std::fputs(
            (command ? usage(*command) : "usage: " + std::string(general) + "COMMAND ...; see s3cache help\n").c_str(),
            stderr);
        return wrong_usage;
    } catch (const Unrunnable& command) {
        say(command.what);
        return command.status;
    } catch (const OutputClosed&) {
        return failed;
    } catch (const std::exception& error) {
        if (interrupted != 0) std::raise(interrupted);  // its handler is gone: whoever waits sees how we ended
        say(error.what());
        return failed;
    }
}
