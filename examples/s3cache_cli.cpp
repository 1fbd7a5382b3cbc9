// The command line `s3cache`: a bucket as a cache for shells and scripts, with everything the header can do to one.
// g++ -std=c++17 -I.. s3cache_cli.cpp -o s3cache -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <curl/curl.h>    // a socket that commands do not inherit
#include <fcntl.h>        // open
#include <openssl/evp.h>  // the hash of a command
#include <poll.h>         // an output that takes nothing more for now
#include <sys/wait.h>     // how a command ended
#include <unistd.h>       // read, write, isatty

#include <atomic>  // what a signal finds
#include <cerrno>
#include <climits>  // PIPE_BUF
#include <cmath>    // floor, HUGE_VAL
#include <cstdarg>  // formats
#include <csignal>  // a key press that ends a transfer
#include <cstdio>
#include <cstdlib>
#include <cstring>  // strerror
#include <ctime>    // dates for people
#include <future>   // renewing a lease, and what may not last
#include <map>
#include <random>  // a name that nobody has

namespace {

using namespace std::chrono_literals;
using namespace s3cache;
using SystemClock = std::chrono::system_clock;

enum Exit { done = 0, absent = 1, failed = 2, wrong_usage = 64 };
using WrongUsage = std::invalid_argument;  // the usage is printed, too

// --- the command line's words ----------------------------------------------------------------------------------------

struct Arguments {
    std::vector<std::string> words;    // what to do first
    std::vector<std::string> command;  // of `run`: what stands behind --
    std::map<std::string, std::vector<std::string>> options;

    bool has(const std::string& option) const { return options.count(option) != 0; }
    std::string get(const std::string& option, const std::string& otherwise = {}) const {
        return has(option) ? options.at(option).back() : otherwise;
    }
    std::vector<std::string> keys() const { return {words.begin() + 1, words.end()}; }
    std::string word(std::size_t number) const { return number < words.size() ? words[number] : ""; }
};

// 90s, 15m, 1h, 7d, or a number of seconds; fractions allowed.
Seconds duration(const std::string& text) {
    const std::map<std::string, double> units = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    const std::string number = text.substr(0, text.find_first_not_of("0123456789."));
    const auto unit = units.find(text.substr(number.size()));
    const bool has_digits = !number.empty() && number.front() != '.' && number.back() != '.';
    const bool fits = has_digits && number.find('.') == number.rfind('.') && unit != units.end();
    const double seconds = fits ? std::strtod(number.c_str(), nullptr) * unit->second : 0;
    if (!(seconds > 0 && seconds < HUGE_VAL)) throw WrongUsage("not a time such as 90s, 15m, 1h, 7d or 2.5: " + text);
    return Seconds(seconds);
}

// --- text out --------------------------------------------------------------------------------------------------------

// To standard output, whether that blocks or not: in pieces that a pipe with any room takes whole. False: see errno.
bool pass_on(std::string_view data) {
    while (!data.empty()) {
        pollfd ready = {STDOUT_FILENO, POLLOUT, 0};
        if (poll(&ready, 1, -1) <= 0) continue;
        const ssize_t count = write(STDOUT_FILENO, data.data(), (std::min)(data.size(), std::size_t{PIPE_BUF}));
        if (count >= 0)
            data.remove_prefix(static_cast<std::size_t>(count));
        else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
            return false;
    }
    return true;
}

// An error without a text: the reader has seen enough, and there is nobody to tell.
void put(std::string_view text) {
    if (pass_on(text)) return;
    if (errno == EPIPE || errno == EBADF) throw std::runtime_error("");
    throw std::system_error(errno, std::generic_category(), "standard output");
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
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        unsigned code = static_cast<unsigned char>(text[i]);
        const unsigned next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
        const bool is_c1 = code == 0xC2 && next >= 0x80 && next < 0xA0;  // two bytes of UTF-8
        if (is_c1) code = static_cast<unsigned char>(text[++i]);
        if (also_escaped.find(text[i]) != std::string_view::npos) out += '\\';
        out += is_c1 || code < 0x20 || code == 0x7F ? format("\\u%04x", code) : std::string(1, text[i]);
    }
    return out;
}

std::string in_quotes(std::string_view text) { return '"' + printable(text, "\"\\") + '"'; }
void say(std::string_view text) { std::fprintf(stderr, "s3cache: %s\n", printable(text).c_str()); }

// Empty: not known.
std::string iso8601(TimePoint when) {
    const std::time_t seconds = SystemClock::to_time_t(when);
    const std::tm* utc = std::gmtime(&seconds);
    char text[40] = "";
    if (utc && when != TimePoint{}) std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", utc);
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
std::string span_text(Seconds span) {
    return amount(std::fabs(span.count()), {{1, "s"}, {60, "min"}, {3600, "h"}, {86400, "d"}});
}

std::string name_of(std::optional<Kind> kind) {
    return !kind ? "" : *kind == Kind::json ? "json" : *kind == Kind::text ? "text" : "bytes";
}

void put_json(const std::string& key, const Info& info) {
    const auto or_null = [](const std::string& text) { return text.empty() ? "null" : in_quotes(text); };
    std::string expires_at = "null";
    if (info.expires_at) expires_at = format("%.16g", Seconds(info.expires_at->time_since_epoch()).count());
    put("{\"key\":" + in_quotes(key) + ",\"size\":" + std::to_string(info.size) + ",\"etag\":" + or_null(info.etag) +
        ",\"last_modified\":" + or_null(iso8601(info.last_modified)) + ",\"expires_at\":" + expires_at +
        ",\"compressed\":" + (info.compressed ? "true" : "false") + ",\"kind\":" + or_null(name_of(info.kind)) + "}\n");
}

void put_short(const std::string& key, const Info& info) {
    put(format("%12llu  ", static_cast<unsigned long long>(info.size)) + iso8601(info.last_modified) + "  " +
        printable(key) + "\n");
}

void put_long(const std::string& key, const Info& info) {
    const auto now = SystemClock::now();
    const std::string age = info.last_modified != TimePoint{} ? span_text(now - info.last_modified) + " old" : "";
    std::string expiry = "never expires";
    if (info.expires_at && *info.expires_at > now) expiry = "expires in " + span_text(*info.expires_at - now);
    if (info.expires_at && *info.expires_at <= now) expiry = "EXPIRED " + span_text(now - *info.expires_at) + " ago";
    put(format("%-6s %7s  %-5s %10s  %-20s ", info.kind ? name_of(info.kind).c_str() : "-",
               size_text(static_cast<double>(info.size)).c_str(), info.compressed ? "gzip" : "", age.c_str(),
               expiry.c_str()) +
        printable(key) + "\n");
}

void put_text(const std::string& key, const Info& info) {
    put_long(key, info);
    put("  stored " + iso8601(info.last_modified) + (info.expires_at ? ", expires " + iso8601(*info.expires_at) : "") +
        printable(", etag " + info.etag + ", " + info.content_type) + "\n");
    for (const auto& [name, value] : info.metadata) put("  " + printable(name + ": " + value) + "\n");
}

// --- the cache that is meant -----------------------------------------------------------------------------------------

// What is typed goes before what the URL has behind its first question mark: that may come from the environment.
std::string with_parameter(const std::string& url, const std::string& name, const std::string& value) {
    if (value.empty()) return url;
    const std::size_t query = (std::min)(url.find('?'), url.size());
    const auto next = [&](std::size_t at) { return (std::min)(url.find('&', at + 1), url.size()); };
    std::size_t at = query;
    while (at < url.size() && url.compare(at + 1, name.size() + 1, name + "=") != 0) at = next(at);
    std::string out = url.substr(0, at) + (at == query ? "?" : "&") + name + "=";
    for (const char c : value) out += c == '%' ? "%25" : c == '&' ? "%26" : std::string(1, c);
    return out + url.substr(next(at));
}

std::string place_of(const Arguments& arguments) {
    const char* set = std::getenv("S3CACHE_URL");
    std::string url = arguments.get("--bucket", set ? set : "");
    if (url.empty()) throw WrongUsage("which bucket? Give --bucket, or set S3CACHE_URL");
    for (const std::string name : {"endpoint", "region"}) url = with_parameter(url, name, arguments.get("--" + name));
    return url;
}

// --- progress, interruption, input -----------------------------------------------------------------------------------

// Set by a signal while a transfer can be cancelled: parts sent so far, or a half-written file, are then removed.
volatile std::sig_atomic_t interrupted = 0, running_child = 0;
std::atomic<Cache*> in_use{nullptr};   // whose calls the signal cancels, whatever they wait for
bool pipe_signal_was_ignored = false;  // by whoever started us: a command is to find it as we did

// What is sent to us alone is meant for the command. What a terminal sends (Ctrl-C), the command gets by itself.
extern "C" void interrupt(int signal_number, siginfo_t* info, void*) {
    interrupted = signal_number;
    if (running_child > 0 && info->si_code <= 0) kill(static_cast<pid_t>(running_child), signal_number);
    if (Cache* const cache = in_use) return cache->cancel();
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
}

// As long as it lives a signal cancels what the cache does, and a second one ends the program at once. What the caller
// chose to ignore (nohup) stays ignored. Without SA_RESTART a read from a terminal ends, too.
struct Interruptible {
    explicit Interruptible(Cache& cache, unsigned flags = SA_RESETHAND) {
        in_use = &cache;
        struct sigaction action = {}, before = {};
        action.sa_sigaction = interrupt;
        action.sa_flags = static_cast<int>(SA_SIGINFO | flags);
        for (const int signal_number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
            sigaction(signal_number, nullptr, &before);
            if (before.sa_handler != SIG_IGN) sigaction(signal_number, &action, nullptr);
        }
    }
    Interruptible(const Interruptible&) = delete;
    ~Interruptible() { in_use = nullptr; }
};

void stop_if_interrupted() {
    if (interrupted != 0) throw std::runtime_error("interrupted");
}

// Does this whenever so much time has passed, as long as it lives. Never where no thread is to be had.
struct Every {
    Every(Seconds time, std::function<void()> work)
        : thread(std::async([time, work = std::move(work), ended = is_over.get_future()] {
              while (ended.wait_for(time) == std::future_status::timeout) work();
          })) {}
    ~Every() { is_over.set_value(); }
    std::promise<void> is_over{};
    std::future<void> thread;
};

// A line on the terminal for transfers that take over a second; nothing anywhere else.
struct Bar {
    explicit Bar(bool is_upload, bool wanted = true)
        : shown(wanted && isatty(STDERR_FILENO) == 1), taken(is_upload ? 0 : HUGE_VAL) {}
    ~Bar() { std::fputs(is_drawn ? "\r\033[K" : "", stderr); }
    bool operator()(const Progress& progress) {
        const double seconds = Seconds(std::chrono::steady_clock::now() - begun).count();
        is_drawn = shown && seconds > 1;
        if (!is_drawn) return interrupted == 0;
        const double total = static_cast<double>(progress.total.value_or(0));
        const double given = static_cast<double>(progress.done), arrived = (std::min)(given, taken);
        const auto share = [&](double bytes) { return total > 0 ? (std::min)(1.0, bytes / total) : 0; };
        std::string bar(static_cast<std::size_t>(30 * share(given)), '.');
        std::fill_n(bar.begin(), static_cast<std::size_t>(30 * share(arrived)), '#');
        const double percent = std::floor(100 * share(arrived));
        std::fputs(total > 0 ? format("\r[%-30s] %.0f %%  ", bar.c_str(), percent).c_str() : "\r", stderr);
        std::fputs((size_text(arrived) + "  " + size_text(arrived / seconds) + "/s\033[K").c_str(), stderr);
        return interrupted == 0;
    }
    // An upload's: what the store has answered well it has. What was sent beyond that, dots, may lie in our buffers.
    void operator()(const Event& event) {
        if (event.attempt > 0 && event.status / 100 == 2) taken += static_cast<double>(event.bytes);
    }
    bool shown, is_drawn = false;
    double taken;
    std::chrono::steady_clock::time_point begun = std::chrono::steady_clock::now();
};

// A file, or standard input.
Source source_of(const std::string& path) {
    if (path != "-" && access(path.c_str(), R_OK) != 0) throw std::system_error(errno, std::generic_category(), path);
    if (path != "-") return file(path);
    return [](char* buffer, std::size_t capacity) {
        const std::size_t count = std::fread(buffer, 1, capacity, stdin);
        if (count == 0 && std::ferror(stdin)) throw std::system_error(errno, std::generic_category(), "standard input");
        return count;
    };
}

Source source_of_text(const std::string_view& text) { return chunks(&text, &text + 1); }

// Gives `use` piece by piece what is left of the source, until that says no.
bool for_each_piece(const Source& source, const std::function<bool(std::string_view)>& use) {
    std::string block(std::size_t{64} << 10, '\0');
    while (const std::size_t count = source.read(block.data(), block.size())) {
        if (count == source_failed) throw std::runtime_error("a file cannot be read");
        if (!use({block.data(), count})) return false;
    }
    return true;
}

// A source whose beginning is looked at before it is read all the same.
struct Ahead {
    // Reads into `text`. False: there is more than that.
    bool holds_all(std::size_t bytes_max) {
        return for_each_piece(source, [&](std::string_view piece) { return (text += piece).size() <= bytes_max; });
    }
    std::size_t operator()(char* buffer, std::size_t capacity) {
        const std::size_t count = text.copy(buffer, capacity, used);
        used += count;
        return count != 0 ? count : source.read(buffer, capacity);
    }
    Source source;
    std::string text{};
    std::size_t used = 0;
};

// --- commands: each returns its exit status --------------------------------------------------------------------------

// Scripts go by the exit status; a person at a terminal is told.
int found(bool yes, const std::string& key, const char* otherwise = "no such entry") {
    if (!yes && isatty(STDERR_FILENO) == 1) say(otherwise + (": " + key));
    return yes ? done : absent;
}

// Input and output up to this size are looked at for their kind. What is longer streams, taken at the user's word.
constexpr std::size_t checked_bytes_max = std::size_t{16} << 20;

int run_set(const Arguments& arguments) {
    const std::string key = arguments.word(1), path = arguments.words.size() > 2 ? arguments.word(2) : "-";
    Bar bar(true);
    SetOptions options;
    if (arguments.has("--ttl")) options.ttl = duration(arguments.get("--ttl"));
    options.compress = arguments.has("--gzip");
    options.if_absent = arguments.has("--if-absent");
    for (const Kind kind : {Kind::json, Kind::text, Kind::bytes}) {
        if (arguments.has("--" + name_of(kind)) && std::exchange(options.kind, kind))
            throw WrongUsage("only one of --json, --text, --bytes");
    }
    options.progress = std::ref(bar);
    Config config;
    config.on_event = std::ref(bar);
    Cache cache(place_of(arguments), std::move(config));
    const char* otherwise = "there is one already";
    const bool is_checked = options.kind && options.kind != Kind::bytes;
    const Interruptible until_stored(cache);
    if (path != "-" && !is_checked) return found(cache.set_file(key, path, options), key, otherwise);
    Ahead input{source_of(path)};
    if (is_checked && input.holds_all(checked_bytes_max))
        return found(cache.set(key, {input.text, *options.kind}, options), key, otherwise);
    if (is_checked) say("over 16 MiB: stored as " + name_of(options.kind) + " without a check that it is");
    return found(cache.set(key, input, options), key, otherwise);
}

int run_get(const Arguments& arguments) {
    Cache cache(place_of(arguments));
    const std::string key = arguments.word(1), target = arguments.get("-o", "-");
    Bar bar(false, target != "-" || isatty(STDOUT_FILENO) == 0);
    if (target != "-") {
        const Interruptible until_written(cache);
        return found(cache.get_file(key, target, {std::ref(bar)}).has_value(), key);
    }
    auto reader = cache.get_stream(key, {std::ref(bar)});
    if (!reader) return found(false, key);
    for (const std::string_view chunk : *reader) put(chunk);
    return done;
}

int run_rm(const Arguments& arguments) {
    for (const auto& removed : Cache(place_of(arguments)).remove_many(arguments.keys())) removed.value();
    return done;
}

int run_stat(const Arguments& arguments) {
    Cache cache(place_of(arguments));
    int status = done;
    for (const std::string& key : arguments.keys()) {
        const std::optional<Info> info = cache.stat(key);
        if (info) (arguments.has("--json") ? put_json : put_text)(key, *info);
        if (!info) status = found(false, key);
    }
    return status;
}

int run_ls(const Arguments& arguments) {
    const auto show = arguments.has("--json") ? put_json : arguments.has("-l") ? put_long : put_short;
    // A store's listing tells neither expiry nor kind, so that the full record costs one more request an entry.
    const auto look = show == put_short ? Look::shallow : Look::deep;
    for (const auto& [key, info] : Cache(place_of(arguments)).list(arguments.word(1), look)) show(key, info);
    return done;
}

int run_touch(const Arguments& arguments) {
    if (!arguments.has("--ttl")) throw WrongUsage("touch wants --ttl");
    const Seconds ttl = duration(arguments.get("--ttl"));
    return found(Cache(place_of(arguments)).touch(arguments.word(1), ttl), arguments.word(1));
}

int run_purge_or_clear(const Arguments& arguments) {
    const std::string prefix = arguments.word(1);
    const bool is_clear = arguments.word(0) == "clear", is_all = arguments.has("--all");
    // A variable that is not set makes an empty PREFIX of `clear "$PREFIX"`: that is never taken for the whole bucket.
    if (is_clear && (is_all != prefix.empty() || is_all != (arguments.words.size() == 1)))
        throw WrongUsage("clear wants a PREFIX that is not empty, or --all");
    Cache cache(place_of(arguments));
    const std::uint64_t count = is_clear ? cache.clear(prefix) : cache.purge_expired(prefix);
    const std::string what = std::string(is_clear ? "" : " expired") + (count == 1 ? " entry" : " entries");
    return put(std::to_string(count) + what + " removed\n"), done;
}

int run_presign(const Arguments& arguments) {
    const char* method = arguments.has("--put") ? "PUT" : "GET";
    const Seconds lifetime = duration(arguments.get("--expires", "1h"));
    return put(Cache(place_of(arguments)).presign(arguments.word(1), method, lifetime) + "\n"), done;
}

// --- run: a command's standard output, cached ------------------------------------------------------------------------

std::string sha256(const Source& source) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> hash(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    const auto add = [&](std::string_view data) { return EVP_DigestUpdate(hash.get(), data.data(), data.size()) == 1; };
    if (EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr) != 1 || !for_each_piece(source, add) ||
        EVP_DigestFinal_ex(hash.get(), sum, &size) != 1)
        throw std::runtime_error("no SHA-256 in libcrypto");
    std::string hex;
    for (unsigned i = 0; i < size; ++i) hex += format("%02x", sum[i]);
    return hex;
}

// What the output depends on, as far as we are told; each piece has its length, so that no two lists read as the same.
std::string key_of_run(Arguments arguments) {
    std::string pieces;
    const auto add = [&](const std::string& what, const std::string& piece) {
        pieces += what + " " + std::to_string(piece.size()) + "\n" + piece;
    };
    const std::string key = arguments.get("--key");
    if (!key.empty()) arguments.command.clear();
    for (const std::string& word : arguments.command) add("word", word);
    for (const std::string& name : arguments.options["--env"]) {
        const char* value = std::getenv(name.c_str());
        add("variable", name);
        add(value ? "set" : "unset", value ? value : "");
    }
    for (const std::string& path : arguments.options["--input"]) add("input", sha256(source_of(path)));
    if (key.empty()) return "run/" + sha256(source_of_text(pieces));
    return pieces.empty() ? key : key + "/" + sha256(source_of_text(pieces));
}

// Ends as the command did, so that whoever waits for us sees what they would have seen of it.
int end_like(int wait_status) {
    if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
    const int signal_number = WTERMSIG(wait_status);
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
    return 128 + signal_number;
}

int output_lost(int why) {
    return say("standard output: " + std::string(std::strerror(why)) + ": not all of the output was passed on"), absent;
}

// Prints what the cache had. A reader who leaves early ends us as it would have ended the command.
int replay(const Source& source) {
    if (for_each_piece(source, [](std::string_view piece) { return pass_on(piece); })) return done;
    return errno == EPIPE && !pipe_signal_was_ignored ? end_like(SIGPIPE) : output_lost(errno);
}

// The command as a producer of get_or_set, whose lease is renewed as long as it runs, is passed on and is stored. Each
// piece of its output is passed on as it comes, whatever becomes of the cache.
class Run {
public:
    explicit Run(const Arguments& arguments)
        : command_(arguments.command), key_(key_of_run(arguments)), cache_(place_of(arguments), configured()) {
        if (command_.empty()) throw WrongUsage("run wants -- and a command");
        if (arguments.has("--ttl")) options_.ttl = duration(arguments.get("--ttl"));
        how_.lease = duration(arguments.get("--lease", "60s"));
        how_.lease_wait = forever;
    }

    int run() {
        const auto made = [this] { return produce(); };
        const auto kept =
            has_credentials() ? cache_.try_get_or_set(key_, made, options_, how_) : Error(Errc::timed_out, flaw_);
        cache_.cancel();  // the renewal of a lease that nobody needs any more
        renewer_.reset();
        if (child_ == 0) {
            if (kept) return replay(source_of_text(kept->view()));
            if (kept.error().code() == Errc::invalid_argument) throw std::runtime_error(kept.error().what());
            if (kept.error().code() == Errc::too_large && fetch()) return replay(*fetched_);
            begin();
        }
        char rest[4096];
        while (next(rest, sizeof rest) != 0) continue;
        if (!flaw_.empty() && interrupted == 0) say("not cached: " + flaw_);
        // Where a reader left early, a command that went down with it ends as it would have without us.
        const bool by_pipe = WIFSIGNALED(status_) && WTERMSIG(status_) == SIGPIPE;
        if (lost_ != 0 && (succeeded() || (by_pipe && lost_ != EPIPE))) return output_lost(lost_);
        return end_like(status_);
    }

private:
    // A store that hangs holds us up for ten seconds: three attempts that stand still. After that it is left alone.
    Config configured() {
        Config config;
        config.connect_timeout = config.stall_timeout = 3s;
        config.breaker_failures = 1;
        config.breaker_pause = 24h;
        config.value_bytes_max = checked_bytes_max;
        config.transfer_bytes_max = 2 * checked_bytes_max;
        config.setup_curl = [](void* curl) {  // the command inherits no socket of ours
            const auto hide = [](void*, curl_socket_t s, curlsocktype) { return fcntl(s, F_SETFD, FD_CLOEXEC) & 1; };
            curl_easy_setopt(static_cast<CURL*>(curl), CURLOPT_SOCKOPTFUNCTION, +hide);
        };
        config.on_event = [this](const Event& event) {
            if (event.operation == "touch") return;  // of another thread
            if (event.attempt == 0 && event.outcome == "error" && flaw_.empty()) flaw_ = event.detail;
        };
        return config;
    }
    // A source of credentials that hangs holds us up as long: it is asked by a call that may be cut off. False: it was.
    bool has_credentials() {
        std::atomic<bool> is_late{false};
        const Every limit(10s, [&] { is_late = true, cache_.cancel(); });
        static_cast<void>(cache_.try_presign(key_, "GET", 60s));
        if (is_late) flaw_ = "the credentials did not come within ten seconds";
        return !is_late && interrupted == 0;
    }
    bool succeeded() const { return WIFEXITED(status_) && WEXITSTATUS(status_) == 0; }
    // What get_or_set is to store; an error if it is nothing. Too long for it: stored here, or there already.
    Result<std::string> produce() {
        const Error too_large(Errc::too_large, "longer than get_or_set may hold");
        const Info there = cache_.try_stat(key_).value_or(std::nullopt).value_or(Info());
        if (there.size > checked_bytes_max) return too_large;
        begin();
        // The lease is an entry of this name beside the value. It is renewed until the output is stored.
        const std::string lease = ".s3cache/lease/" + sha256(source_of_text(key_)).substr(0, 32);
        renewer_.emplace(how_.lease / 3, [this, lease] { static_cast<void>(cache_.try_touch(lease, how_.lease)); });
        Ahead output{[this](char* buffer, std::size_t capacity) {
            const std::size_t count = next(buffer, capacity);
            if (count == 0 && (!succeeded() || lost_ != 0 || interrupted != 0)) throw std::runtime_error("not kept");
            return count;
        }};
        const bool is_whole = output.holds_all(checked_bytes_max);
        if (!has_credentials()) return Error(Errc::timed_out, flaw_);  // those we had may be over
        if (is_whole) return std::move(output.text);
        static_cast<void>(cache_.try_set(key_, output, options_));
        return too_large;
    }
    void begin() {
        std::vector<char*> words;
        for (const std::string& word : command_) words.push_back(const_cast<char*>(word.c_str()));
        words.push_back(nullptr);
        int ends[2];
        if (pipe(ends) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
        caught_.emplace(cache_, 0);
        running_child = child_ = fork();
        if (child_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
        if (child_ == 0) {
            dup2(ends[1], STDOUT_FILENO);
            close(ends[0]);
            close(ends[1]);
            if (!pipe_signal_was_ignored) std::signal(SIGPIPE, SIG_DFL);
            execvp(words[0], words.data());
            const int why = errno;
            say(command_[0] + ": " + std::strerror(why));
            _exit(why == ENOENT ? 127 : 126);  // as shells do
        }
        close(ends[1]);
        output_ = ends[0];
    }
    // The next of the output, passed on. Zero: there is no more, and it is known how the command ended.
    std::size_t next(char* buffer, std::size_t capacity) {
        while (output_ >= 0) {
            const ssize_t size = read(output_, buffer, capacity);
            if (size < 0 && errno == EINTR) continue;
            const std::size_t said = static_cast<std::size_t>((std::max)(size, ssize_t{0}));
            const bool passed = pass_on({buffer, said});
            if (passed && said != 0) return said;
            if (!passed) lost_ = errno;
            close(std::exchange(output_, -1));  // the command learns from its next write that nobody reads
            while (waitpid(child_, &status_, 0) < 0 && errno == EINTR) continue;
            running_child = 0;
        }
        return 0;
    }
    // Output too long for memory goes into a file first, because half of it cannot be taken back.
    bool fetch() {
        const char* folder = std::getenv("TMPDIR");
        std::string path = std::string(folder && *folder ? folder : "/tmp") + "/s3cache-XXXXXX";
        close(mkstemp(path.data()));  // where that fails, so does the next line
        const Interruptible until_written(cache_);
        const auto got = cache_.try_get_file(key_, path, {[](const Progress&) { return interrupted == 0; }});
        if (got && *got) fetched_ = file(path);
        unlink(path.c_str());
        stop_if_interrupted();
        flaw_ = got ? "" : got.error().what();
        return fetched_.has_value();
    }

    const std::vector<std::string>& command_;
    const std::string key_;
    std::string flaw_{};  // why it is not cached
    Cache cache_;
    std::optional<Interruptible> caught_{};
    SetOptions options_{};
    ComputeOptions how_{};
    std::optional<Source> fetched_{};
    pid_t child_ = 0;
    int output_ = -1, status_ = failed << 8, lost_ = 0;  // errno of output that could not be passed on
    std::optional<Every> renewer_{};
};

// --- lifecycle: rules by which the store itself keeps the bucket small -----------------------------------------------

// The rules go to standard output, ready for a file; the lines that put them into force go beside them.
int run_lifecycle(const Arguments& arguments) {
    const bool as_json = arguments.has("--json");
    const auto days = [&](const std::string& option, const std::string& otherwise) {
        const std::string text = arguments.get(option, otherwise);
        const std::string number = text.substr(0, text.find_first_not_of("0123456789"));
        const unsigned long count = std::strtoul(number.c_str(), nullptr, 10);  // the largest one if it is too long
        if (!number.empty() && (text == number || text == number + "d") && count < 1000000)
            return std::to_string(count);
        throw WrongUsage(option + " wants whole days, not " + text);
    };
    static_cast<void>(Cache(place_of(arguments)));  // refuses what is no place for a cache
    std::string where = place_of(arguments), rules;
    where = where.substr(0, where.find('?'));
    if (where.find("://") == 2) where.erase(0, 5);
    if (where.back() != '/') where += '/';
    const std::string bucket = where.substr(0, where.find('/')), prefix = where.substr(bucket.size() + 1);
    if (!as_json && prefix.find_first_of("<>&") != std::string::npos)
        throw WrongUsage("a prefix with <, > or & wants --json");
    const auto add = [&](std::string id, const std::string& count, const std::string& action, const std::string& unit) {
        if (count == "0") return;
        id += prefix;
        if (!rules.empty()) rules += as_json ? ",\n" : "\n";
        rules += as_json ? "  {\"ID\":" + in_quotes(id) + ",\"Filter\":{\"Prefix\":" + in_quotes(prefix) +
                               "},\"Status\":\"Enabled\",\"" + action + "\":{\"" + unit + "\":" + count + "}}"
                         : "  <Rule>\n    <ID>" + id + "</ID>\n    <Filter><Prefix>" + prefix +
                               "</Prefix></Filter>\n    <Status>Enabled</Status>\n    <" + action + "><" + unit + ">" +
                               count + "</" + unit + "></" + action + ">\n  </Rule>";
    };
    add("s3cache uploads ", days("--uploads", "1"), "AbortIncompleteMultipartUpload", "DaysAfterInitiation");
    add("s3cache entries ", days("--expire", "0"), "Expiration", "Days");
    put(as_json ? "{\"Rules\":[\n" + rules + "\n]}\n"
                : "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n" + rules +
                      "\n</LifecycleConfiguration>\n");
    const std::string endpoint = arguments.has("--endpoint") ? " --endpoint-url " + arguments.get("--endpoint") : "";
    say("to put the rules, as --json has them, into force in place of all that the bucket has:");
    say("aws s3api put-bucket-lifecycle-configuration --bucket " + bucket +
        " --lifecycle-configuration file://rules.json" + endpoint);
    return done;
}

// --- doctor: why a cache does not work. Tries what it needs on entries of its own ------------------------------------

// What the trials work on: entries that nobody else has, removed however the trials end. Should that fail, they lapse.
struct Scratch {
    ~Scratch() {  // a store that hangs, or was asked for nothing, is not waited for
        const Every limit(5s, [this] { cache.cancel(); });
        if (cache.stats().requests != 0) static_cast<void>(cache.remove_many({key, other}));
    }
    Cache& cache;
    std::optional<Seconds>& clock_ahead;  // of this machine's against the store's
    const std::string key = format("s3cache-doctor-%08x%08x", std::random_device()(), std::random_device()());
    const std::string other = key + "-2";
    SetOptions options{Seconds(600)};
    Interruptible until_removed{cache};
};

constexpr std::size_t part_bytes = std::size_t{5} << 20;  // the least that S3 takes
constexpr std::string_view scratch_value = "written by s3cache doctor, to be removed at once\n";

struct Trial {
    const char* name;
    bool is_needed;          // without the others it is still a cache
    const char* permission;  // as AWS's policies name it
    const char* flaw;        // where the store answers as if all were well
    const char* do_without;
    bool (*run)(Scratch&);
};

const Trial trials[] = {
    {"store an entry", true, "s3:PutObject", "", "",
     [](Scratch& on) {
         const auto before = SystemClock::now();
         on.cache.set(on.key, scratch_value, on.options);
         const auto between = before + (SystemClock::now() - before) / 2;
         const Info info = on.cache.try_stat(on.key).value_or(std::nullopt).value_or(Info());
         // When it was stored is told by the store's clock, to the second.
         if (info.last_modified != TimePoint{}) on.clock_ahead = between - (info.last_modified + 500ms);
         return true;
     }},
    {"find it, miss another", true, "s3:ListBucket (or set Config::forbidden_is_miss)",
     "what was just stored is not found, or what was never stored is", "",
     [](Scratch& on) { return on.cache.contains(on.key) && !on.cache.contains(on.other); }},
    {"read it back", true, "s3:GetObject", "what comes back is not what was stored, or has lost its metadata",
     "a proxy or the store drops headers: try metadata_names=hyphen",
     [](Scratch& on) {
         const auto hit = on.cache.get(on.key);
         return hit && hit->view() == scratch_value && hit->info().expires_at && hit->info().kind == Kind::text;
     }},
    {"store a stream in parts", false, "s3:PutObject and s3:AbortMultipartUpload", "what is stored is not whole",
     "store nothing longer than Config::part_bytes",
     [](Scratch& on) {
         const std::string body(part_bytes + 1, 'x');
         on.cache.set(on.other, chunks(&body, &body + 1), on.options);
         const auto info = on.cache.stat(on.other);
         on.cache.remove(on.other);
         return info && info->size == body.size();
     }},
    // This cache wants conditions that the store itself checks, and refuses where it does not.
    {"store only if absent", false, "s3:PutObject", "it was stored over what is there, or not where nothing is",
     "let no machines compete by if_absent",
     [](Scratch& on) {
         on.options.if_absent = true;
         return on.cache.set(on.other, scratch_value, on.options) && !on.cache.set(on.other, scratch_value, on.options);
     }},
    {"store only if unchanged", false, "s3:PutObject", "it was stored over what has changed, or not over what has not",
     "let no machines compete by if_match",
     [](Scratch& on) {
         on.options.if_absent = false;
         on.options.if_match = on.cache.stat(on.key).value_or(Info()).etag;
         return on.cache.set(on.key, "changed", on.options) && !on.cache.set(on.key, "again", on.options);
     }},
    {"give it more time", false, "s3:GetObject and s3:PutObject", "the entry is not found",
     "set entries again instead of touch", [](Scratch& on) { return on.cache.touch(on.key, Seconds(600)); }},
    {"list", false, "s3:ListBucket", "what was just stored is not listed", "do without ls, purge and clear here",
     [](Scratch& on) {
         bool is_there = false;  // in which order is the store's own affair
         for (const auto& entry : on.cache.list(on.key)) is_there = is_there || entry.key == on.key;
         return is_there;
     }},
    {"remove it", true, "s3:DeleteObject", "the entry is still there", "",
     [](Scratch& on) { return on.cache.remove(on.key), !on.cache.try_contains(on.key).value_or(false); }},
};

// The endpoint as it was written, where one was: without the parenthesis that says by whom.
std::string endpoint_written(Scratch& scratch) {
    for (const Finding& finding : scratch.cache.explain()) {
        if (finding.about == "endpoint" && finding.text.find("://") != std::string::npos)
            return finding.text.substr(0, finding.text.find(' '));
    }
    return "";
}

std::string fix_of_bucket(Scratch& scratch) {
    const std::string endpoint = endpoint_written(scratch);
    const std::size_t path = endpoint.find('/', endpoint.find("://") + 3);
    if (path == std::string::npos || path + 1 == endpoint.size())
        return "make the bucket, or correct its name, the region or the endpoint";
    return "take the path " + endpoint.substr(path) +
           " off the endpoint unless the store lives there, or make the bucket";
}

// What comes without metadata of ours, as a removal does, arrives as it was signed even where a proxy drops headers.
std::string fix_of_signature(Scratch& scratch) {
    const auto removed = scratch.cache.try_remove(scratch.key);
    if (!removed && removed.error().code() == Errc::no_such_bucket) return fix_of_bucket(scratch);
    if (!removed) return "the secret key does not fit the access key: copy both anew";
    return "a proxy drops headers with an underscore (nginx: underscores_in_headers on), or add "
           "?metadata_names=hyphen to the URL of the bucket";
}

std::string fix_for(const Error& error, const Trial& trial, Scratch& scratch) {
    const std::string& name = error.s3_code();
    const Errc code = error.code();
    // HTTP and HTTPS mixed up: the library has noticed, and here it can be said what to write.
    const bool http = std::strstr(error.what(), "try http://"), https = std::strstr(error.what(), "try https://");
    const std::string endpoint = http || https ? endpoint_written(scratch) : "";
    if (!endpoint.empty())
        return "that port speaks " + std::string(http ? "HTTP: write http" : "HTTPS: write https") +
               endpoint.substr(endpoint.find("://"));
    if (name == "SignatureDoesNotMatch") return fix_of_signature(scratch);
    if (name == "InvalidAccessKeyId") return "this store does not know the access key: is it another store's?";
    if (name == "ExpiredToken" || name == "InvalidToken") return "log in again: the session is over";
    if (code == Errc::credentials)
        return "mend what is BROKEN below, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE";
    if (code == Errc::denied) return "allow these credentials " + std::string(trial.permission);
    if (code == Errc::no_such_bucket) return fix_of_bucket(scratch);
    if (code == Errc::timed_out || code == Errc::network)
        return "is the endpoint right, the server up, no firewall or proxy in the way?";
    if (code == Errc::tls) return "name the PEM file of the store's authority in AWS_CA_BUNDLE";
    return trial.do_without;
}

std::string row(const std::string& name, const std::string& verdict, const std::string& text = {}) {
    return format("  %-32s%-*s", name.c_str(), text.empty() ? 0 : 13, verdict.c_str()) + printable(text) + "\n";
}

std::string fix_line(std::string_view fix) { return fix.empty() ? "" : "    fix: " + printable(fix) + "\n"; }

enum Health { works, works_in_part, broken, only_reads, cannot_store };
constexpr const char* conclusions[] = {
    "The cache would work.", "The cache would work, but for what is marked NO.", "The cache would not work.",
    "Reading would work, storing would not: set read_only.", "The cache would not work: the rest was not tried."};

Health try_out(const Trial& trial, Scratch& scratch) {
    const bool is_first = &trial == trials;
    Health health = is_first ? cannot_store : trial.is_needed ? broken : works_in_part;
    std::string cause = trial.flaw, fix = trial.do_without;
    try {
        if (trial.run(scratch)) return put(row(trial.name, "yes")), works;
    } catch (const Error& error) {
        stop_if_interrupted();
        cause = error.what();
        cause.erase(0, cause.find(": ") + 2);  // the operation and the key, which is of no interest
        // Credentials that may not write are enough for a cache that others fill.
        const bool may_not = error.code() == Errc::denied && error.s3_code() != "SignatureDoesNotMatch";
        if (is_first && may_not && scratch.cache.try_contains(scratch.other)) health = only_reads;
        fix = health == only_reads ? "reading works: set read_only (Config::read_only), or allow s3:PutObject"
                                   : fix_for(error, trial, scratch);
    }
    put(row(trial.name, "NO") + "    " + printable(cause) + "\n" + fix_line(fix));
    return health;
}

std::string clock_row(const std::optional<Seconds>& ahead) {
    if (!ahead) return row("clock", "not known", "nothing was stored that the store could have dated");
    const long seconds = std::lround(ahead->count());
    if (std::labs(seconds) <= 2) return row("clock", "good", "within two seconds of the store's");
    const std::string text = std::to_string(std::labs(seconds)) + (seconds > 0 ? " s ahead of" : " s behind");
    return row("clock", "OFF", "this machine's is " + text + " the store's") +
           fix_line("set it (timedatectl set-ntp true): by it entries end");
}

Health try_all(Scratch scratch) {
    put("What the store does (s3cache " S3CACHE_VERSION ", tried with " + scratch.key + ")\n");
    Health health = works;
    for (const Trial& trial : trials) {
        if (interrupted == 0 && health < only_reads) health = (std::max)(health, try_out(trial, scratch));
    }
    return health;
}

// What was found is asked after the trials, when it is known as well what the store's answers have taught.
int run_doctor(const Arguments& arguments) {
    Config config;
    config.conditions = Conditions::required;
    Cache cache(with_parameter(place_of(arguments), "part_bytes", std::to_string(part_bytes)), std::move(config));
    std::optional<Seconds> clock_ahead;
    const Health health = try_all({cache, clock_ahead});
    stop_if_interrupted();  // what was tried is removed
    put("\nWhat was found\n");
    std::string region;
    for (const Finding& finding : cache.explain()) {
        const bool is_source = finding.about.rfind("credentials", 0) == 0;
        const char* verdicts[] = {"used", is_source ? "passed over" : "default", "BROKEN", "not asked"};
        const std::string& text = finding.text;
        if (finding.about == "region") region = text.substr(0, text.find(' '));
        const bool is_place = finding.about == "requests go to" && finding.verdict == Finding::Verdict::used;
        if (finding.about == "clock")
            put(clock_row(clock_ahead));
        else if (is_place && text.substr(text.rfind(' ') + 1) != region)
            put(row("requests went to", "corrected", text) + fix_line("name that region: it spares a request"));
        else
            put(row(finding.about, verdicts[static_cast<std::size_t>(finding.verdict)], text));
    }
    put(std::string("\n") + conclusions[health] + "\n");
    return health <= works_in_part ? done : failed;
}

// --- the list of commands --------------------------------------------------------------------------------------------

struct Command {
    std::string_view synopsis;         // its name, and the options that it has besides the general ones
    std::size_t words_min, words_max;  // after the name
    int (*run)(const Arguments&);
    std::string_view help, details;  // the other is what `help COMMAND` adds
};

constexpr std::size_t any_number = static_cast<std::size_t>(-1);
constexpr std::string_view general = "s3cache [--bucket s3://BUCKET/PREFIX] [--endpoint URL] [--region R] COMMAND ...";

constexpr Command commands[] = {
    {"set [--ttl T] [--gzip] [--json|--text|--bytes] [--if-absent] KEY [FILE|-]", 1, 2, run_set,
     "store a file or standard input",
     "JSON and text up to 16 MiB are checked before they are stored. Exit status 1: --if-absent, and there is one.\n"},
    {"get [-o FILE] KEY", 1, 1, run_get, "print the value, or write it to a file",
     "The file appears whole or not at all. Exit status 1: missing or expired.\n"},
    {"rm KEY...", 1, any_number, run_rm, "remove; no error where there is nothing", ""},
    {"stat [--json] KEY...", 1, any_number, run_stat, "what is known of an entry",
     "Exit status 1: one of them is missing or expired.\n"},
    {"ls [-l|--json] [PREFIX]", 0, 1, run_ls, "size, date and key of each entry",
     "-l shows kind, size, age and expiry, and marks what has EXPIRED; like --json it sends a request an entry.\n"},
    {"touch --ttl T KEY", 1, 1, run_touch, "a new time to live, from now", "Exit status 1: missing or expired.\n"},
    {"purge [PREFIX]", 0, 1, run_purge_or_clear, "remove what has expired", ""},
    {"clear PREFIX | clear --all", 0, 1, run_purge_or_clear, "remove everything under the prefix, or everything", ""},
    {"presign [--put] [--expires T] KEY", 1, 1, run_presign, "a URL for someone without credentials",
     "T is 1h, and 7d at most. It outlives the entry's TTL, and hands out gzip where --gzip made it.\n"},
    {"run [--ttl T] [--key K] [--input FILE...] [--env NAME...] [--lease T] -- COMMAND ARG...", 0, 0,
     [](const Arguments& arguments) { return Run(arguments).run(); },
     "print COMMAND's output from the cache; run it if there is none, once however many ask",
     "Kept is the output of a COMMAND that succeeded, if all of it could be passed on: under its words, the contents\n"
     "of each FILE and the value of each NAME, or under K. A cache that fails does not keep COMMAND from running.\n"
     "Exit status: COMMAND's; 126, 127 if it cannot be run; 1 if its output was lost on the way to standard output.\n"},
    {"lifecycle [--expire DAYS] [--uploads DAYS] [--json]", 0, 0, run_lifecycle,
     "rules by which the store itself removes what is old, as S3's XML or the AWS tool's JSON",
     "It installs nothing: the line that does stands on standard error. Entries go DAYS after they were written,\n"
     "uploads that nobody completed DAYS after they began (1 unless you say so; 0: no such rule).\n"},
    {"doctor", 0, 0, run_doctor, "why it does not work: credentials, endpoint, what the bucket takes, with fixes",
     "Exit status 0: the cache would work.\n"},
    {"help [COMMAND]", 0, 1, nullptr, "this, or more of one command", ""},
};

const Command* command_named(std::string_view name) {
    for (const Command& command : commands) {
        if (command.synopsis.substr(0, command.synopsis.find(' ')) == name) return &command;
    }
    return nullptr;
}

std::string usage_of(const Command* command) {
    if (!command) return "usage: " + std::string(general) + "; see s3cache help\n";
    return "usage: " + std::string(general.substr(0, general.find(" COMMAND"))) + "\n           " +
           std::string(command->synopsis) + "\n";
}

int run_help(const Arguments& arguments) {
    const std::string name = arguments.word(arguments.word(0) == "help" ? 1 : 0);
    const Command* one = command_named(name);
    if (!one && !name.empty()) throw WrongUsage("no such command: " + name);
    if (one) return put(usage_of(one) + "\n" + std::string(one->help) + "\n" + std::string(one->details)), done;
    put("usage: " + std::string(general) + "\n\n");
    for (const Command& command : commands)
        put("  " + std::string(command.synopsis) + "\n        " + std::string(command.help) + "\n");
    put("\nT is 90s, 15m, 1h, 7d or a number of seconds. S3CACHE_URL stands for --bucket; -- ends the options.\n"
        "A bucket's URL may end in ?region=R&endpoint=URL&path_style=true&checksums=own|store|none&\n"
        "metadata_names=underscore|hyphen&part_bytes=N. --json prints one object a line.\n"
        "Exit status: 0 hit or done, 1 miss or condition not met, 2 error, 64 wrong usage.\n");
    return done;
}

// --- the program -----------------------------------------------------------------------------------------------------

// `--name value`, `--name=value`, `-o value`, `-ovalue`, `--input value value`, anywhere; behind `--` nothing is ours.
void parse(Arguments& arguments, const std::vector<std::string>& words) {
    std::string synopses(general);
    for (const Command& command : commands) synopses += "|" + std::string(command.synopsis);
    for (auto word = words.begin(); word != words.end(); ++word) {
        if (*word == "--") {
            std::vector<std::string>& rest = arguments.word(0) == "run" ? arguments.command : arguments.words;
            rest.insert(rest.end(), word + 1, words.end());
            break;
        }
        if (word->size() < 2 || word->front() != '-') {
            arguments.words.push_back(*word);
            continue;
        }
        const bool is_long = (*word)[1] == '-';
        const std::string text = *word, name = text.substr(0, is_long ? text.find('=') : 2);
        // What stands behind a blank in a synopsis is its value.
        const bool takes_many = name == "--input" || name == "--env";
        const std::size_t most = takes_many ? any_number : synopses.find(name + " ") != std::string::npos ? 1 : 0;
        std::vector<std::string> values;
        if (name.size() < text.size()) values.push_back(text.substr(name.size() + (is_long ? 1 : 0)));
        const std::size_t wanted = values.empty() ? most : 0;
        while (values.size() < wanted && word + 1 != words.end() && (most == 1 || word[1][0] != '-'))
            values.push_back(*++word);
        if (values.empty() != (most == 0))
            throw WrongUsage(most == 0 ? "no such option: " + text : name + " wants a value");
        arguments.options[name].insert(arguments.options[name].end(), values.begin(), values.end());
    }
}

int run(const Arguments& arguments) {
    const std::string name = arguments.word(0);
    if (arguments.has("--help") || arguments.has("-h")) return run_help(arguments);
    if (arguments.has("--version")) return put("s3cache " S3CACHE_VERSION "\n"), done;
    const Command* command = command_named(name);
    if (!command) throw WrongUsage(name.empty() ? "no command" : "no such command: " + name);
    const std::size_t words = arguments.words.size() - 1, most = command->words_max;
    if (words < command->words_min) throw WrongUsage(name + " wants more than that");
    if (words > most) throw WrongUsage(name + " does not want " + arguments.word(most + 1));
    const std::string synopsis = std::string(general) + std::string(command->synopsis) + "]";
    for (const auto& [option, value] : arguments.options) {
        bool is_here = false;
        for (const char next : {' ', ']', '|'}) is_here = is_here || synopsis.find(option + next) != std::string::npos;
        if (!is_here) throw WrongUsage(name + " has no option " + option);
    }
    return command->run ? command->run(arguments) : run_help(arguments);
}

}  // namespace

int main(int argc, char** argv) {
    // A stream closed by the caller must not be the number of our next socket: it gets a file on which using it fails.
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(file, F_GETFD) < 0) static_cast<void>(open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY));
    }
    pipe_signal_was_ignored = std::signal(SIGPIPE, SIG_IGN) == SIG_IGN;  // a closed pipe is then an error of the write
    std::signal(SIGCHLD, SIG_DFL);  // where it is ignored, nobody learns how a command ended
    Arguments arguments;
    try {
        parse(arguments, {argv + 1, argv + argc});
        return run(arguments);
    } catch (const WrongUsage& wrong) {
        say(wrong.what());
        std::fputs(usage_of(command_named(arguments.word(0))).c_str(), stderr);
        return wrong_usage;
    } catch (const std::exception& error) {
        if (interrupted != 0) std::raise(interrupted);  // its handler is gone: whoever waits sees how we ended
        if (*error.what() != '\0') say(error.what());
        return failed;
    }
}
