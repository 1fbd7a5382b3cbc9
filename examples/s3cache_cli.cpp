// The command line `s3cache`: a bucket as a cache for shells and scripts, with everything the header can do to one.
// g++ -std=c++17 -I.. s3cache_cli.cpp -o s3cache -lcurl -lcrypto -lz

#include "s3cache_cli.hpp"
#include "s3cache_doctor.hpp"

#include <openssl/evp.h>   // the hash of a command
#include <sys/resource.h>  // no core of ours beside a command's
#include <sys/wait.h>      // how it ended

#include <filesystem>  // what kind of file a name stands for
#include <thread>      // waiting

namespace {

// --- commands: each returns its exit status --------------------------------------------------------------------------

// Scripts go by the exit status; a person at a terminal is told.
int found(bool yes, const std::string& key, const char* otherwise = "no such entry") {
    if (!yes && isatty(STDERR_FILENO) == 1) say(otherwise + (": " + key));
    return yes ? done : absent;
}

std::optional<Kind> wanted_kind(const Arguments& arguments) {
    std::optional<Kind> kind;
    for (const Kind each : {Kind::json, Kind::text, Kind::bytes}) {
        if (!arguments.has("--" + name_of(each))) continue;
        if (kind) throw WrongUsage{"only one of --json, --text, --bytes"};
        kind = each;
    }
    return kind;
}

// A kind that is named is checked before anything is sent, for input up to this size. A longer one cannot be held in
// memory just to be looked at: it streams, and is taken at the user's word.
constexpr std::size_t checked_bytes_max = std::size_t{16} << 20;

int run_set(const Arguments& arguments) {
    const std::string key = arguments.word(1), path = arguments.words.size() > 2 ? arguments.word(2) : "-";
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

    Ahead input(pieces_of(path));
    make_cancellable();
    const auto stored = [&] {
        if (options.kind && options.kind != Kind::bytes) {
            if (input.holds_all(checked_bytes_max)) return cache.set(key, {input.text, *options.kind}, options);
            say("over 16 MiB: stored as " + name_of(options.kind) + " without a check that it is");
        }
        const bool is_file = path != "-" && std::filesystem::is_regular_file(path);
        return is_file ? cache.set_file(key, path, options) : cache.set(key, input, options);
    };
    return found(stored(), key, "there is one already");
}

int run_get(const Arguments& arguments) {
    Cache cache = open_cache(arguments);
    const std::string key = arguments.word(1), target = arguments.get("-o", "-");
    Bar bar(false, target != "-" || isatty(STDOUT_FILENO) == 0);
    make_cancellable();
    if (target != "-") return found(cache.get_file(key, target, {std::ref(bar)}).has_value(), key);
    auto reader = cache.get_stream(key, {std::ref(bar)});
    if (!reader) return found(false, key);
    for (const std::string_view chunk : *reader) put(chunk);
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
        if (info) (arguments.has("--json") ? put_json : put_text)(key, *info);
        if (!info) status = found(false, key);
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

// Output up to this length is looked at, and kept as text where it is text. What is longer cannot be held in memory.
constexpr std::size_t whole_bytes_max = std::size_t{8} << 20;

Pieces once(std::string_view text) {
    return [text]() mutable { return std::exchange(text, {}); };
}

// SHA-256, in hex, of what comes until nothing comes.
std::string sha256(const Pieces& next) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    bool fine = EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    for (std::string_view data = next(); fine && !data.empty(); data = next())
        fine = EVP_DigestUpdate(context.get(), data.data(), data.size()) == 1;
    if (!fine || EVP_DigestFinal_ex(context.get(), sum, &size) != 1)
        throw std::runtime_error("no SHA-256 in libcrypto");
    std::string out;
    for (unsigned i = 0; i < size; ++i) out += format("%02x", sum[i]);
    return out;
}

// What the output depends on, as far as we are told. Each piece has its length, so that no two lists read as the same
// bytes. Without --key the command and its arguments count, too.
std::string key_of_run(const Arguments& arguments) {
    std::string pieces;
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
    for (const std::string& path : arguments.all("--input")) add("input", sha256(pieces_of(path)));
    if (key.empty()) return "run/" + sha256(once(pieces));
    return pieces.empty() ? key : key + "/" + sha256(once(pieces));
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

int output_lost(int why) {
    say("standard output: " + std::string(std::strerror(why)) + ": not all of the output was passed on");
    return absent;
}

// Prints what the cache had. A reader who leaves early ends us as it would have ended the command.
int replay(const Pieces& next) {
    for (std::string_view piece = next(); !piece.empty(); piece = next()) {
        if (!pass_on(piece)) return errno == EPIPE && !pipe_signal_was_ignored ? end_like(SIGPIPE) : output_lost(errno);
    }
    return done;
}

// What a command inherits is what we were started with, and none of our sockets.
int close_on_exec(void*, curl_socket_t file, curlsocktype) { return fcntl(file, F_SETFD, FD_CLOEXEC) == 0 ? 0 : 1; }

// The child: becomes the command. What it says and how it ends where it cannot is what shells do.
[[noreturn]] void become(const std::vector<std::string>& command, int output) {
    std::vector<char*> words;
    for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    dup2(output, STDOUT_FILENO);
    close(output);
    if (!pipe_signal_was_ignored) std::signal(SIGPIPE, SIG_DFL);
    execvp(words[0], words.data());
    say(command[0] + ": " + std::strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

// The command as a producer of get_or_set, whose lease is renewed as long as it runs, is passed on and is stored. Each
// piece of its output is passed on as it comes, whatever becomes of the cache.
class Run {
public:
    explicit Run(const Arguments& arguments)
        : command_(arguments.command), key_(key_of_run(arguments)), cache_(open_cache(arguments, configured())) {
        if (arguments.has("--ttl")) options_.ttl = duration(arguments.get("--ttl"));
        options_.progress = [this](const Progress&) { return renew(), interrupted == 0; };
        how_.lease = duration(arguments.get("--lease", "60s"));
        how_.lease_wait = s3cache::forever;
    }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;

    int run() {
        const auto kept = cache_.try_get_or_set(
            key_, [this] { return produce(); }, options_, how_);
        renewing_ = false;
        if (child_ == 0) {
            if (kept) return replay(once(kept->view()));
            if (kept.error().code() == Errc::invalid_argument) throw std::runtime_error(kept.error().what());
            if (kept.error().code() == Errc::too_large && fetch()) return replay(fetched_);
            begin();
        }
        while (!next().empty()) continue;
        if (!flaw_.empty() && interrupted == 0) say("not cached: " + flaw_);
        // Where a reader left early, a command that went down with it ends as it would have without us.
        const bool by_pipe = WIFSIGNALED(status_) && WTERMSIG(status_) == SIGPIPE;
        if (lost_ != 0 && (succeeded() || (by_pipe && lost_ != EPIPE))) return output_lost(lost_);
        return end_like(status_);
    }

private:
    // A store that hangs holds us up for ten seconds at most: three attempts that stand still. After its first failure
    // it is left alone: the command matters more.
    s3cache::Config configured() {
        s3cache::Config config;
        config.connect_timeout = config.stall_timeout = 3s;
        config.attempts_max = 3;
        config.breaker_failures = 1;
        config.breaker_pause = 24h;
        config.value_bytes_max = whole_bytes_max;
        config.setup_curl = [](void* curl) {
            curl_easy_setopt(static_cast<CURL*>(curl), CURLOPT_SOCKOPTFUNCTION, close_on_exec);
        };
        config.on_event = [this](const s3cache::Event& event) {
            if (event.attempt == 0 && event.outcome == "error" && flaw_.empty()) flaw_ = event.detail;
        };
        return config;
    }
    bool succeeded() const { return WIFEXITED(status_) && WEXITSTATUS(status_) == 0; }

    // What get_or_set is to store; an error if it is nothing. Too long for it: stored here, or there already.
    s3cache::Result<std::string> produce() {
        const s3cache::Error too_large(Errc::too_large, "longer than get_or_set may hold");
        const auto there = cache_.try_stat(key_);
        if (there && *there && (*there)->size > whole_bytes_max) return too_large;
        begin();
        renewing_ = true;
        Ahead output([this] {
            const std::string_view piece = next();
            if (piece.empty() && (!succeeded() || lost_ != 0 || interrupted != 0))
                throw std::runtime_error("not to be kept");
            return piece;
        });
        if (output.holds_all(whole_bytes_max)) return std::move(output.text);
        static_cast<void>(cache_.try_set(key_, output, options_));
        return too_large;
    }
    void begin() {
        int ends[2];
        if (pipe(ends) != 0) throw system_error("pipe");
        fcntl(ends[0], F_SETFD, FD_CLOEXEC);
        catch_signals(0);
        running_child = child_ = fork();
        if (child_ < 0) throw system_error("fork");
        if (child_ == 0) become(command_, ends[1]);
        close(ends[1]);
        output_ = ends[0];
    }
    // The next piece of output, passed on. Empty: there is no more, and it is known how the command ended.
    std::string_view next() {
        while (output_ >= 0) {
            pollfd ready = {output_, POLLIN, 0};
            const int count = poll(&ready, 1, 100);
            renew();
            if (count <= 0) continue;
            const ssize_t size = read(output_, block_.data(), block_.size());
            if (size < 0 && errno == EINTR) continue;
            const std::string_view said(block_.data(), static_cast<std::size_t>((std::max)(size, ssize_t{0})));
            const bool passed = pass_on(said, [this] { renew(); });
            if (passed && !said.empty()) return said;
            if (!passed) lost_ = errno;
            close(output_);  // it learns from its next write that nobody reads
            output_ = -1;
            wait();
        }
        return {};
    }
    // Where it is not known how it ended it cannot have succeeded.
    void wait() {
        for (auto pause = 1ms; running_child != 0; pause = (std::min)(2 * pause, std::chrono::milliseconds(100))) {
            const pid_t ended = waitpid(child_, &status_, WNOHANG);
            if (ended < 0 && errno != EINTR) throw system_error("how the command ended is not known");
            if (ended > 0) running_child = 0;
            renew();
            std::this_thread::sleep_for(pause);
        }
    }
    // The lease is an entry of this name beside the value.
    void renew() {
        if (!renewing_ || SteadyClock::now() - renewed_ < how_.lease / 3) return;
        renewed_ = SteadyClock::now();
        renewing_ = cache_.try_touch(".s3cache/lease/" + sha256(once(key_)).substr(0, 32), how_.lease).value_or(false);
    }

    // Output too long for memory goes into a file first, because half of it cannot be taken back.
    bool fetch() {
        const char* folder = std::getenv("TMPDIR");
        std::string path = std::string(folder && *folder ? folder : "/tmp") + "/s3cache-XXXXXX";
        close(mkstemp(path.data()));  // where that fails, so does the next line
        make_cancellable();
        const auto got = cache_.try_get_file(key_, path, {[](const Progress&) { return interrupted == 0; }});
        if (got && *got) fetched_ = pieces_of(path);
        unlink(path.c_str());
        if (interrupted != 0) throw std::runtime_error("interrupted");
        flaw_ = got ? "" : got.error().what();
        return static_cast<bool>(fetched_);
    }

    const std::vector<std::string>& command_;
    const std::string key_;
    std::string flaw_{};  // why it is not cached
    Cache cache_;
    s3cache::SetOptions options_{};
    s3cache::ComputeOptions how_{};
    std::string block_ = std::string(std::size_t{64} << 10, '\0');
    Pieces fetched_{};
    pid_t child_ = 0;
    int output_ = -1, status_ = 0, lost_ = 0;  // errno of output that could not be passed on
    bool renewing_ = false;
    SteadyClock::time_point renewed_ = SteadyClock::now();
};

int run_run(const Arguments& arguments) {
    if (arguments.command.empty()) throw WrongUsage{"run wants -- and a command"};
    return Run(arguments).run();
}

// --- lifecycle: rules by which the store itself keeps the bucket small -----------------------------------------------

std::string days(const Arguments& arguments, const std::string& option, const std::string& otherwise) {
    const std::string text = arguments.get(option, otherwise);
    const std::string number = text.substr(0, text.size() - (!text.empty() && text.back() == 'd' ? 1 : 0));
    if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos)
        throw WrongUsage{option + " wants whole days, not " + text};
    return number.find_first_not_of('0') == std::string::npos ? "" : number;
}

std::string rule_text(bool as_json, const std::string& id, const std::string& prefix, const char* action,
                      const char* unit, const std::string& days) {
    if (as_json)
        return format("  {\"ID\":%s,\"Filter\":{\"Prefix\":%s},\"Status\":\"Enabled\",\"%s\":{\"%s\":%s}}",
                      in_quotes(id).c_str(), in_quotes(prefix).c_str(), action, unit, days.c_str());
    return format(
        "  <Rule>\n    <ID>%s</ID>\n    <Filter><Prefix>%s</Prefix></Filter>\n    <Status>Enabled</Status>\n"
        "    <%s><%s>%s</%s></%s>\n  </Rule>",
        id.c_str(), prefix.c_str(), action, unit, days.c_str(), unit, action);
}

// The rules go to standard output, ready for a file; the lines that put them into force go beside them.
int run_lifecycle(const Arguments& arguments) {
    const bool as_json = arguments.has("--json");
    const std::string uploads = days(arguments, "--uploads", "1"), entries = days(arguments, "--expire", "0");
    open_cache(arguments);  // refuses what is no place for a cache
    std::string where = place_of(arguments);
    where = where.substr(0, where.find('?'));
    if (where.find("://") != std::string::npos) where.erase(0, where.find("://") + 3);
    const std::size_t slash = (std::min)(where.find('/'), where.size());
    const std::string bucket = where.substr(0, slash);
    std::string rules, prefix = slash < where.size() ? where.substr(slash + 1) : "";
    if (!prefix.empty() && prefix.back() != '/') prefix += '/';
    if (!as_json && prefix.find_first_of("<>&") != std::string::npos)
        throw WrongUsage{"a prefix with <, > or & wants --json"};
    const auto add = [&](const char* what, const std::string& days, const char* action, const char* unit) {
        if (days.empty()) return;
        if (!rules.empty()) rules += as_json ? ",\n" : "\n";
        rules += rule_text(as_json, what + prefix, prefix, action, unit, days);
    };
    add("s3cache uploads ", uploads, "AbortIncompleteMultipartUpload", "DaysAfterInitiation");
    add("s3cache entries ", entries, "Expiration", "Days");
    put(as_json ? "{\"Rules\":[\n" + rules + "\n]}\n"
                : "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n" + rules +
                      "\n</LifecycleConfiguration>\n");
    const std::string endpoint = arguments.has("--endpoint") ? " --endpoint-url " + arguments.get("--endpoint") : "";
    say("to put the rules, as --json has them, into force in place of all that the bucket has:");
    say("aws s3api put-bucket-lifecycle-configuration --bucket " + bucket +
        " --lifecycle-configuration file://rules.json" + endpoint);
    return done;
}

// --- the list of commands --------------------------------------------------------------------------------------------

int run_help(const Arguments& arguments);

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
    {"rm KEY...", 1, any_number, run_rm, "remove", "No error where there is nothing.\n"},
    {"stat [--json] KEY...", 1, any_number, run_stat, "what is known of an entry",
     "Exit status 1: one of them is missing or expired.\n"},
    {"ls [-l|--json] [PREFIX]", 0, 1, run_ls, "size, date and key of each entry",
     "-l shows kind, size, age and expiry, and marks what has EXPIRED; like --json it sends a request an entry.\n"},
    {"touch --ttl T KEY", 1, 1, run_touch, "a new time to live, from now", "Exit status 1: missing or expired.\n"},
    {"purge [PREFIX]", 0, 1, run_purge, "remove what has expired", ""},
    {"clear PREFIX | clear --all", 0, 1, run_clear, "remove everything under the prefix, or everything", ""},
    {"presign [--put] [--expires T] KEY", 1, 1, run_presign, "a URL for someone without credentials",
     "T is 1h, and 7d at most. It outlives the entry's TTL, and hands out gzip where --gzip made it.\n"},
    {"run [--ttl T] [--key K] [--input FILE...] [--env NAME...] [--lease T] -- COMMAND ARG...", 0, 0, run_run,
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
    {"help [COMMAND]", 0, 1, run_help, "", ""},
};

const Command* command_named(std::string_view name) {
    for (const Command& command : commands) {
        if (command.synopsis.substr(0, command.synopsis.find(' ')) == name) return &command;
    }
    return nullptr;
}

// Whether a synopsis has the option, or has it followed by that.
bool has_option(std::string_view synopsis, const std::string& option, std::string_view followed_by = " ]|") {
    for (const char next : followed_by) {
        if ((std::string(synopsis) + "|").find(option + next) != std::string::npos) return true;
    }
    return false;
}

std::string usage_of(const Command* command) {
    if (!command) return "usage: " + std::string(general) + "; see s3cache help\n";
    return "usage: " + std::string(general.substr(0, general.find("COMMAND"))) + "\n           " +
           std::string(command->synopsis) + "\n";
}

int run_help(const Arguments& arguments) {
    const std::string name = arguments.word(arguments.word(0) == "help" ? 1 : 0);
    const Command* one = command_named(name);
    if (!one && !name.empty()) throw WrongUsage{"no such command: " + name};
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

// `--name value`, `--name=value`, `-o value`, `-ovalue`, `--input value value`; returns the last word that it took.
char** take_option(Arguments& arguments, char** word, char** end) {
    const std::string text = *word;
    const bool is_long = text[1] == '-';
    const std::string name = text.substr(0, is_long ? text.find('=') : 2);
    bool takes_value = has_option(general, name, " ");
    for (const Command& command : commands) takes_value = takes_value || has_option(command.synopsis, name, " ");
    const bool takes_many = name == "--input" || name == "--env";
    std::vector<std::string>& values = arguments.options[name];
    if (name.size() < text.size()) {
        if (!takes_value) throw WrongUsage{"no such option: " + text};
        values.push_back(text.substr(name.size() + (is_long ? 1 : 0)));
    } else if (takes_value) {
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

int run(const Arguments& arguments) {
    const std::string name = arguments.word(0);
    if (arguments.has("--help") || arguments.has("-h")) return run_help(arguments);
    if (arguments.has("--version")) return put("s3cache " S3CACHE_VERSION "\n"), done;
    const Command* command = command_named(name);
    if (!command) throw WrongUsage{name.empty() ? "no command" : "no such command: " + name};
    const std::size_t words = arguments.words.size() - 1;
    if (words < command->words_min) throw WrongUsage{name + " wants more than that"};
    if (words > command->words_max) throw WrongUsage{name + " does not want " + arguments.word(command->words_max + 1)};
    for (const auto& [option, value] : arguments.options) {
        if (!has_option(command->synopsis, option) && !has_option(general, option))
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
        return run(arguments);
    } catch (const WrongUsage& wrong) {
        say(wrong.what);
        std::fputs(usage_of(command_named(arguments.word(0))).c_str(), stderr);
        return wrong_usage;
    } catch (const OutputClosed&) {
        return failed;
    } catch (const std::exception& error) {
        if (interrupted != 0) std::raise(interrupted);  // its handler is gone: whoever waits sees how we ended
        say(error.what());
        return failed;
    }
}
