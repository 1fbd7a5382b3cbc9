// The command line `s3cache`: a bucket as a cache for shells and scripts, with everything the header can do to one.
// g++ -std=c++17 -I.. s3cache_cli.cpp -o s3cache -lcurl -lcrypto -lz

#include "s3cache_cli.hpp"
#include "s3cache_doctor.hpp"

#include <openssl/evp.h>   // the hash of a command
#include <spawn.h>         // a command
#include <sys/resource.h>  // no core of ours beside a command's
#include <sys/wait.h>      // how it ended

#include <thread>  // waiting

extern char** environ;

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
        lease_time_ = duration(arguments.get("--lease", "60s"));
        lease_ = ".s3cache/lease/" + sha256(key_).substr(0, 32);
        owner_ = unique_text() + "-" + std::to_string(getpid());
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
            const auto leased = take_lease();
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
        if (!leased_ || SteadyClock::now() - renewed_ < lease_time_ / 3) return;
        renewed_ = SteadyClock::now();
        leased_ = is_leased_here() && hasty_.try_touch(lease_, lease_time_ + clocks_differ_max).value_or(false);
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
    // Ours if there is none; or if its owner has not renewed it for its time, measured here: whose clock is right does
    // not matter, and by no clock is it over before that.
    s3cache::Result<bool> take_lease() {
        s3cache::SetOptions options{lease_time_ + clocks_differ_max};
        options.if_absent = true;
        auto taken = hasty_.try_set(lease_, owner_, options);
        if (!taken || *taken) return taken;
        const auto info = hasty_.try_stat(lease_);
        if (!info || !*info) return false;
        const std::string seen = (*info)->etag + iso8601((*info)->last_modified);
        if (std::exchange(lease_seen_, seen) != seen) seen_since_ = SteadyClock::now();
        if (SteadyClock::now() - seen_since_ < lease_time_) return false;
        options.if_absent = false;
        options.if_match = (*info)->etag;
        return hasty_.try_set(lease_, owner_, options);
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
    std::string lease_, owner_, lease_seen_;
    s3cache::Seconds lease_time_{};
    static constexpr std::chrono::minutes clocks_differ_max{20};  // S3 refuses who is off by more than 15
    s3cache::SetOptions options_;
    bool usable_ = true, leased_ = false;
    SteadyClock::time_point renewed_{}, seen_since_{};
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
    return number.find_first_not_of('0') == std::string::npos ? "" : number;
}

// The rules go to standard output, ready for a file; the lines that put them into force go beside them. Both languages
// name the same things in the same order.
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
    const auto add = [&](const std::string& what, const std::string& days, const char* json, const char* xml) {
        if (days.empty()) return;
        const std::string id = "s3cache " + what + " " + prefix, action = as_json ? json : xml;
        if (!rules.empty()) rules += as_json ? ",\n" : "\n";
        rules += as_json ? "  {\"ID\":" + quoted(id) + ",\"Filter\":{\"Prefix\":" + quoted(prefix) +
                               "},\"Status\":\"Enabled\","
                         : "  <Rule>\n    <ID>" + id + "</ID>\n    <Filter><Prefix>" + prefix +
                               "</Prefix></Filter>\n    <Status>Enabled</Status>\n    ";
        rules += action.substr(0, action.find('N')) + days + action.substr(action.find('N') + 1);
        rules += as_json ? "}" : "\n  </Rule>";
    };
    add("uploads", uploads, "\"AbortIncompleteMultipartUpload\":{\"DaysAfterInitiation\":N}",
        "<AbortIncompleteMultipartUpload><DaysAfterInitiation>N</DaysAfterInitiation></"
        "AbortIncompleteMultipartUpload>");
    add("entries", entries, "\"Expiration\":{\"Days\":N}", "<Expiration><Days>N</Days></Expiration>");
    put(as_json ? "{\"Rules\":[\n" + rules + "\n]}\n"
                : "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n" + rules +
                      "\n</LifecycleConfiguration>\n");
    flush();
    const std::string endpoint = arguments.has("--endpoint") ? " --endpoint-url " + arguments.get("--endpoint") : "";
    say("to put the rules, as --json has them, into force in place of all that the bucket has:");
    say("aws s3api put-bucket-lifecycle-configuration --bucket " + bucket +
        " --lifecycle-configuration file://rules.json" + endpoint);
    return done;
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
