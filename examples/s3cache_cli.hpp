// What the command line `s3cache` stands on: words and options, text, the cache that is meant, progress, input.
// Part of s3cache_cli.cpp.

#ifndef S3CACHE_CLI_HPP
#define S3CACHE_CLI_HPP

#include "s3cache.hpp"

#include <fcntl.h>   // open
#include <poll.h>    // an output that takes nothing more for now
#include <unistd.h>  // read, write, isatty

#include <cerrno>
#include <climits>  // PIPE_BUF
#include <cmath>    // isfinite
#include <cstdarg>  // formats
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

// 90s, 15m, 1h, 7d, or a number of seconds; fractions allowed.
s3cache::Seconds duration(const std::string& text) {
    const std::map<std::string, double> units = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    const std::size_t digits = (std::min)(text.find_first_not_of("0123456789."), text.size());
    char* end = nullptr;
    const double number = std::strtod(text.substr(0, digits).c_str(), &end);
    const auto unit = units.find(text.substr(digits));
    const double seconds = *end == '\0' && unit != units.end() ? number * unit->second : 0;
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

void put(std::string_view text) {
    if (pass_on(text)) return;
    if (errno == EPIPE || errno == EBADF) throw OutputClosed{};
    throw system_error("standard output");
}

// As printf.
__attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...) {
    char text[1 << 14];
    va_list values;
    va_start(values, pattern);
    std::vsnprintf(text, sizeof text, pattern, values);
    va_end(values);
    return text;
}

// Text that cannot move a cursor or start a new line: a key is whatever its writer liked.
std::string printable(std::string_view text, std::string_view also_escaped = {}) {
    const auto octet = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool is_c1 = octet(i) == 0xC2 && octet(i + 1) >= 0x80 && octet(i + 1) < 0xA0;  // two bytes of UTF-8
        if (is_c1 || octet(i) < 0x20 || octet(i) == 0x7F) {
            out += format("\\u%04x", is_c1 ? octet(++i) : octet(i));
        } else {
            if (also_escaped.find(text[i]) != std::string_view::npos) out += '\\';
            out += text[i];
        }
    }
    return out;
}

std::string in_quotes(std::string_view text) { return '"' + printable(text, "\"\\") + '"'; }

void say(std::string_view text) { std::fprintf(stderr, "s3cache: %s\n", printable(text).c_str()); }

bool is_known(s3cache::TimePoint when) { return when != s3cache::TimePoint{}; }

// Empty: not known.
std::string iso8601(s3cache::TimePoint when) {
    const std::time_t seconds = SystemClock::to_time_t(when);
    const std::tm* utc = std::gmtime(&seconds);
    char text[40] = "";
    if (utc && is_known(when)) std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", utc);
    return text;
}

// In the largest unit of which there are two.
std::string amount(double number, std::initializer_list<std::pair<double, const char*>> units) {
    auto unit = units.begin();
    while (unit + 1 != units.end() && number >= 2 * unit[1].first) ++unit;
    const double count = number / unit->first;
    return format("%.*f %s", count < 10 && unit != units.begin() ? 1 : 0, count, unit->second);
}

std::string size_text(double bytes) { return amount(bytes, {{1, "B"}, {1e3, "kB"}, {1e6, "MB"}, {1e9, "GB"}}); }

std::string span_text(s3cache::Seconds span) {
    return amount(std::fabs(span.count()), {{1, "s"}, {60, "min"}, {3600, "h"}, {86400, "d"}});
}

std::string name_of(std::optional<Kind> kind) {
    if (!kind) return "";
    return *kind == Kind::json ? "json" : *kind == Kind::text ? "text" : "bytes";
}

void put_json(const std::string& key, const Info& info) {
    const auto or_null = [](const std::string& text) { return text.empty() ? "null" : in_quotes(text); };
    std::string expires_at = "null";
    if (info.expires_at) expires_at = format("%.16g", s3cache::Seconds(info.expires_at->time_since_epoch()).count());
    put("{\"key\":" + in_quotes(key) + ",\"size\":" + std::to_string(info.size) + ",\"etag\":" + or_null(info.etag) +
        ",\"last_modified\":" + or_null(iso8601(info.last_modified)) + ",\"expires_at\":" + expires_at +
        ",\"compressed\":" + (info.compressed ? "true" : "false") + ",\"kind\":" + or_null(name_of(info.kind)) + "}\n");
}

void put_line(const char* label, const std::string& text) {
    if (!text.empty()) put(format("%-15s", label) + printable(text) + "\n");
}

void put_text(const std::string& key, const Info& info) {
    put_line("key", key);
    put_line("size", std::to_string(info.size) + (info.compressed ? " bytes, gzip" : " bytes"));
    put_line("kind", info.kind ? name_of(info.kind) : "not recorded");
    put_line("last modified", iso8601(info.last_modified));
    put_line("expires", info.expires_at ? iso8601(*info.expires_at) : "never");
    put_line("etag", info.etag);
    put_line("content type", info.content_type);
    put_line("version", info.version_id);
    for (const auto& [name, value] : info.metadata) put_line("metadata", name + ": " + value);
}

void put_short(const std::string& key, const Info& info) {
    put(format("%12llu  ", static_cast<unsigned long long>(info.size)) + iso8601(info.last_modified) + "  " +
        printable(key) + "\n");
}

void put_long(const std::string& key, const Info& info) {
    const auto now = SystemClock::now();
    const std::string size = size_text(static_cast<double>(info.size));
    const std::string age = is_known(info.last_modified) ? span_text(now - info.last_modified) + " old" : "";
    std::string expiry = "never expires";
    if (info.expires_at && *info.expires_at > now) expiry = "expires in " + span_text(*info.expires_at - now);
    if (info.expires_at && *info.expires_at <= now) expiry = "EXPIRED " + span_text(now - *info.expires_at) + " ago";
    put(format("%-6s %-9s %-5s %-11s %-20s ", info.kind ? name_of(info.kind).c_str() : "-", size.c_str(),
               info.compressed ? "gzip" : "", age.c_str(), expiry.c_str()) +
        printable(key) + "\n");
}

// --- the cache that is meant -----------------------------------------------------------------------------------------

// What is typed stands in the URL's place of it, because that may come from the environment.
std::string with_parameter(std::string url, const std::string& name, const std::string& value) {
    const std::size_t query = url.find('?');
    for (const char* before : {"?", "&"}) {
        const std::size_t at = url.find(before + name + "=", query);
        if (at == std::string::npos) continue;
        const std::size_t begin = at + name.size() + 2;
        return url.replace(begin, url.find('&', begin) - begin, value);
    }
    return url + (query == std::string::npos ? "?" : "&") + name + "=" + value;
}

std::string place_of(const Arguments& arguments) {
    const char* url = std::getenv("S3CACHE_URL");
    std::string where = arguments.get("--bucket", url ? url : "");
    if (where.empty()) throw WrongUsage{"which bucket? Give --bucket, or set S3CACHE_URL"};
    for (const std::string name : {"endpoint", "region"}) {
        const std::string value = arguments.get("--" + name);
        if (!value.empty()) where = with_parameter(std::move(where), name, value);
    }
    return where;
}

Cache open_cache(const Arguments& arguments, s3cache::Config config = {}) {
    return Cache(place_of(arguments), std::move(config));
}

// --- progress, interruption ------------------------------------------------------------------------------------------

// Set by a signal while a transfer can be cancelled: parts sent so far, or a half-written file, are then removed.
volatile std::sig_atomic_t interrupted = 0;
volatile std::sig_atomic_t running_child = 0;
bool pipe_signal_was_ignored = false;  // by whoever started us: a command is to find it as we did

// What is sent to us alone is meant for the command. What a terminal sends (Ctrl-C), the command gets by itself.
extern "C" void interrupt(int signal_number, siginfo_t* info, void*) {
    interrupted = signal_number;
    if (running_child > 0 && info->si_code <= 0) kill(static_cast<pid_t>(running_child), signal_number);
}

// What the caller chose to ignore (nohup) stays ignored. Without SA_RESTART a read from a terminal ends, too.
void catch_signals(unsigned flags) {
    struct sigaction action = {}, before = {};
    action.sa_sigaction = interrupt;
    action.sa_flags = static_cast<int>(SA_SIGINFO | flags);
    for (const int signal_number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        sigaction(signal_number, nullptr, &before);
        if (before.sa_handler != SIG_IGN) sigaction(signal_number, &action, nullptr);
    }
}

// A second signal ends the program at once.
void make_cancellable() { catch_signals(SA_RESETHAND); }

// A line on the terminal for transfers that take over a second; nothing anywhere else. `#` is what has arrived, `+` what is
// on its way: of an upload the one is what the store has taken, the other may still lie in a buffer of this machine.
class Bar {
public:
    explicit Bar(bool is_upload, bool wanted = true)
        : shown_(wanted && isatty(STDERR_FILENO) == 1), is_upload_(is_upload) {}
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    ~Bar() {
        if (is_drawn_) std::fputs("\r\033[K", stderr);
    }

    bool operator()(const Progress& progress) {
        const double seconds = s3cache::Seconds(SteadyClock::now() - begun_).count();
        if (shown_ && seconds > 1) {
            std::fprintf(stderr, "\r%s\033[K", line(progress, seconds).c_str());
            is_drawn_ = true;
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
        const auto share = [&](double bytes) { return (std::min)(1.0, bytes / total); };
        const auto cells = [&](double bytes) { return static_cast<std::size_t>(30 * share(bytes)); };
        const std::string bar = std::string(cells(arrived), '#') + std::string(cells(sent) - cells(arrived), '+');
        const std::string left = arrived > 0 ? span_text(s3cache::Seconds((total - arrived) / rate)) + " left" : "";
        return format("[%-30s] %.0f %%  ", bar.c_str(), std::floor(100 * share(arrived))) + numbers + "  " + left;
    }

    bool shown_, is_upload_, is_drawn_ = false;
    double taken_ = 0;
    SteadyClock::time_point begun_ = SteadyClock::now();
};

// --- input -----------------------------------------------------------------------------------------------------------

using Pieces = std::function<std::string_view()>;  // what comes next, until the next call; empty at the end

// A file, or standard input.
Pieces pieces_of(const std::string& path) {
    const std::string name = path == "-" ? "standard input" : path;
    const std::shared_ptr<std::FILE> file(path == "-" ? stdin : std::fopen(path.c_str(), "rbe"),
                                          [](std::FILE* open) { return open ? std::fclose(open) : 0; });
    if (!file) throw system_error(name);
    return [name, file, block = std::string(std::size_t{64} << 10, '\0')]() mutable {
        const std::size_t count = std::fread(block.data(), 1, block.size(), file.get());
        if (count == 0 && std::ferror(file.get())) throw system_error(name);
        return std::string_view(block.data(), count);
    };
}

// Pieces as a Source. What of it was looked at before is read from the beginning all the same.
class Ahead {
public:
    explicit Ahead(Pieces next) : next_(std::move(next)) {}

    // Reads into `text`. False: there is more than that.
    bool holds_all(std::size_t bytes_max) {
        while (text.size() <= bytes_max) {
            const std::string_view piece = next_();
            if (piece.empty()) return true;
            text += piece;
        }
        return false;
    }
    std::size_t operator()(char* buffer, std::size_t capacity) {
        if (used_ == text.size()) {
            text = next_();
            used_ = 0;
        }
        const std::size_t count = text.copy(buffer, capacity, used_);
        used_ += count;
        return count;
    }

    std::string text{};

private:
    Pieces next_;
    std::size_t used_ = 0;
};

}  // namespace

#endif  // S3CACHE_CLI_HPP
