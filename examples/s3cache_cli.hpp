// What the command line `s3cache` stands on: words and options, text, the cache that is meant, progress, input.
// Part of s3cache_cli.cpp.

#ifndef S3CACHE_CLI_HPP
#define S3CACHE_CLI_HPP

#include "s3cache.hpp"

#include <fcntl.h>     // open
#include <poll.h>      // an output that takes nothing more for now
#include <sys/stat.h>  // what kind of file a name stands for
#include <unistd.h>    // read, write, isatty

#include <cerrno>
#include <climits>  // PIPE_BUF
#include <cmath>    // isfinite
#include <csignal>  // a key press that ends a transfer
#include <cstdio>
#include <cstdlib>
#include <cstring>  // strerror
#include <ctime>    // dates for people
#include <map>
#include <random>  // a name that nobody has

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

// In the largest unit of which there are two.
std::string amount(double number, std::initializer_list<std::pair<double, const char*>> units) {
    auto unit = units.begin();
    while (unit + 1 != units.end() && number >= 2 * unit[1].first) ++unit;
    const double count = number / unit->first;
    char text[400];
    std::snprintf(text, sizeof text, "%.*f %s", count < 10 && unit != units.begin() ? 1 : 0, count, unit->second);
    return text;
}

std::string size_text(double bytes) { return amount(bytes, {{1, "B"}, {1e3, "kB"}, {1e6, "MB"}, {1e9, "GB"}}); }

std::string span_text(s3cache::Seconds span) {
    return amount(std::fabs(span.count()), {{1, "s"}, {60, "min"}, {3600, "h"}, {86400, "d"}});
}

// What nobody else comes up with.
std::string unique_text() {
    std::random_device random;
    char text[40];
    std::snprintf(text, sizeof text, "%08x%08x", static_cast<unsigned>(random()), static_cast<unsigned>(random()));
    return text;
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
        const int percent = static_cast<int>(100 * (std::min)(1.0, arrived / total));
        return "[" + bar + "] " + std::to_string(percent) + " %  " + numbers + "  " + left;
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

}  // namespace

#endif  // S3CACHE_CLI_HPP
