// `s3cache doctor`: why a cache does not work, and what to do about it. Tries what a cache needs on entries of its own.
// Part of s3cache_cli.cpp.

#ifndef S3CACHE_DOCTOR_HPP
#define S3CACHE_DOCTOR_HPP

#include "s3cache_cli.hpp"

namespace {

// What the trials work on: entries that nobody else has, and whose time is short should nobody remove them.
struct Scratch {
    const Arguments& arguments;
    Cache cache;
    std::string key{}, second_key{};
    s3cache::SetOptions options{s3cache::Seconds(600)}, if_absent{options}, if_match{options};
    std::optional<s3cache::Seconds> clock_ahead{};  // of this machine's against the store's
};

constexpr std::size_t part_bytes = std::size_t{5} << 20;  // the least that S3 takes
constexpr std::string_view scratch_value = "written by s3cache doctor, to be removed at once\n";

void expect(bool fine, const char* otherwise) {
    if (!fine) throw std::runtime_error(otherwise);
}

struct Trial {
    const char* name;
    bool is_needed;          // without the others it is still a cache
    const char* permission;  // as AWS's policies name it
    const char* do_without;
    void (*run)(Scratch&);
};

const Trial trials[] = {
    {"store an entry", true, "s3:PutObject", "",
     [](Scratch& scratch) {
         const auto before = SystemClock::now();
         scratch.cache.set(scratch.key, scratch_value, scratch.options);
         const auto between = before + (SystemClock::now() - before) / 2;
         const auto info = scratch.cache.try_stat(scratch.key);
         // When it was stored is told by the store's clock, to the second.
         if (info && *info && is_known((*info)->last_modified))
             scratch.clock_ahead = between - ((*info)->last_modified + 500ms);
     }},
    {"find it, miss another", true, "s3:ListBucket (or set Config::forbidden_is_miss)", "",
     [](Scratch& scratch) {
         expect(scratch.cache.contains(scratch.key), "what was just stored is not found");
         expect(!scratch.cache.contains(scratch.second_key), "something is found that was never stored");
     }},
    {"read it back", true, "s3:GetObject", "a proxy or the store drops headers: try metadata_names=hyphen",
     [](Scratch& scratch) {
         const auto hit = scratch.cache.get(scratch.key);
         expect(hit && hit->view() == scratch_value, "what comes back is not what was stored");
         expect(hit->info().expires_at && hit->info().kind == Kind::text,
                "the metadata is lost: nothing would ever expire");
     }},
    {"store a stream in parts", false, "s3:PutObject and s3:AbortMultipartUpload",
     "store nothing longer than Config::part_bytes",
     [](Scratch& scratch) {
         const std::string body(part_bytes + 1, 'x');
         scratch.cache.set(scratch.second_key, s3cache::chunks(&body, &body + 1), scratch.options);
         const auto info = scratch.cache.stat(scratch.second_key);
         expect(info && info->size == body.size(), "what is stored is not whole");
         scratch.cache.remove(scratch.second_key);
     }},
    // This cache wants conditions that the store itself checks, and refuses where it does not.
    {"store only if absent", false, "s3:PutObject", "let no machines compete by if_absent",
     [](Scratch& scratch) {
         scratch.if_absent.if_absent = true;
         const auto stores = [&] { return scratch.cache.set(scratch.second_key, scratch_value, scratch.if_absent); };
         expect(stores(), "it was not stored where nothing is");
         expect(!stores(), "it was stored over what is there");
     }},
    {"store only if unchanged", false, "s3:PutObject", "let no machines compete by if_match",
     [](Scratch& scratch) {
         scratch.if_match.if_match = scratch.cache.stat(scratch.key).value_or(Info()).etag;
         const auto stores = [&](const char* text) { return scratch.cache.set(scratch.key, text, scratch.if_match); };
         expect(stores("changed"), "it was not stored over what is unchanged");
         expect(!stores("again"), "it was stored over what has changed");
     }},
    {"give it more time", false, "s3:GetObject and s3:PutObject", "set entries again instead of touch",
     [](Scratch& scratch) {
         expect(scratch.cache.touch(scratch.key, s3cache::Seconds(600)), "the entry is not found");
     }},
    {"list", false, "s3:ListBucket", "do without ls, purge and clear here",
     [](Scratch& scratch) {
         bool is_there = false;  // in which order is the store's own affair
         for (const auto& entry : scratch.cache.list(scratch.key)) is_there = is_there || entry.key == scratch.key;
         expect(is_there, "what was just stored is not listed");
     }},
    {"remove it", true, "s3:DeleteObject", "",
     [](Scratch& scratch) {
         scratch.cache.remove(scratch.key);
         expect(!scratch.cache.try_contains(scratch.key).value_or(false), "the entry is still there");
     }},
};

// --- what helps ------------------------------------------------------------------------------------------------------

Cache without_keys(const Arguments& arguments) {
    s3cache::Config config;
    config.credentials = s3cache::anonymous();
    config.attempts_max = 1;
    config.call_timeout = 3s;
    return open_cache(arguments, std::move(config));
}

// What is set, before any answer of the store has corrected it.
std::string configured(const Arguments& arguments, std::string_view about) {
    for (const s3cache::Finding& finding : without_keys(arguments).explain()) {
        if (finding.about == about) return finding.text;
    }
    return "";
}

// The endpoint as it was written, where one was: without the parenthesis that says by whom.
std::string endpoint_written(const Arguments& arguments) {
    const std::string text = configured(arguments, "endpoint");
    return text.find("://") != std::string::npos ? text.substr(0, text.find(' ')) : "";
}

// HTTP and HTTPS mixed up: whoever is there speaks the other one.
std::string fix_of_scheme(const s3cache::Error& error, Arguments arguments) {
    const std::string endpoint = endpoint_written(arguments);
    const bool is_tls = endpoint.rfind("https", 0) == 0;
    if (endpoint.empty() || std::strstr(error.what(), "certificate")) return "";
    const std::string other = (is_tls ? "http" : "https") + endpoint.substr(endpoint.find("://"));
    arguments.options["--endpoint"] = {other};
    const auto looked = without_keys(arguments).try_contains("s3cache-doctor");
    const bool speaks_it = looked || looked.error().status() != 0 || std::strstr(looked.error().what(), "certificate");
    return speaks_it ? std::string("that port speaks ") + (is_tls ? "HTTP" : "HTTPS") + ": write " + other : "";
}

std::string fix_of_bucket(const Arguments& arguments) {
    const std::string endpoint = endpoint_written(arguments);
    const std::size_t path = endpoint.find('/', endpoint.find("://") + 3);
    if (path == std::string::npos || path + 1 == endpoint.size())
        return "make the bucket, or correct its name, the region or the endpoint";
    return "take the path " + endpoint.substr(path) +
           " off the endpoint unless the store lives there, or make the bucket";
}

// What comes without metadata of ours, as a removal does, arrives as it was signed even where a proxy drops headers.
std::string fix_of_signature(Scratch& scratch) {
    const auto removed = scratch.cache.try_remove(scratch.key);
    if (!removed && removed.error().code() == Errc::no_such_bucket) return fix_of_bucket(scratch.arguments);
    if (!removed) return "the secret key does not fit the access key: copy both anew";
    return "a proxy drops headers with an underscore (nginx: underscores_in_headers on), or add "
           "?metadata_names=hyphen to the URL of the bucket";
}

std::string fix_for(const s3cache::Error& error, const Trial& trial, Scratch& scratch) {
    const std::string& name = error.s3_code();
    const Errc code = error.code();
    const bool is_talk =
        code == Errc::network || code == Errc::timed_out || code == Errc::tls || code == Errc::protocol;
    const std::string fix = is_talk || error.status() == 400 ? fix_of_scheme(error, scratch.arguments) : "";
    if (!fix.empty()) return fix;
    if (name == "SignatureDoesNotMatch") return fix_of_signature(scratch);
    if (name == "InvalidAccessKeyId") return "this store does not know the access key: is it another store's?";
    if (name == "ExpiredToken" || name == "InvalidToken") return "log in again: the session is over";
    if (name == "RequestTimeTooSkewed") return "set this machine's clock (timedatectl set-ntp true)";
    if (code == Errc::credentials)
        return "mend what is BROKEN above, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE";
    if (code == Errc::denied) return "allow these credentials " + std::string(trial.permission);
    if (code == Errc::no_such_bucket) return fix_of_bucket(scratch.arguments);
    if (code == Errc::timed_out || code == Errc::network)
        return "is the endpoint right, the server up, no firewall or proxy in the way?";
    if (code == Errc::tls) return "name the PEM file of the store's authority in AWS_CA_BUNDLE";
    if (code == Errc::protocol) return "what answers is no S3: check the endpoint and its port";
    if (code == Errc::invalid_argument) return "correct what it names: an option, a variable or a line of a file";
    return trial.do_without;
}

// --- the report ------------------------------------------------------------------------------------------------------

std::string row(const std::string& name, const std::string& verdict, const std::string& text = {}) {
    return format("  %-32s", name.c_str()) + (text.empty() ? verdict : format("%-13s", verdict.c_str())) +
           printable(text) + "\n";
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

enum Health { works, works_in_part, only_reads, broken };
constexpr const char* conclusions[] = {"The cache would work.", "The cache would work, but for what is marked NO.",
                                       "Reading would work, storing would not: set read_only.",
                                       "The cache would not work."};

struct Diagnosis {
    std::string report{};
    bool stored = false;  // something, at least
    Health health = works;
};

void try_out(const Trial& trial, Scratch& scratch, Diagnosis& diagnosis) {
    std::string cause, fix = trial.do_without;
    Health health = diagnosis.stored && !trial.is_needed ? works_in_part : broken;
    try {
        trial.run(scratch);
        diagnosis.stored = true;
        diagnosis.report += row(trial.name, "yes");
        return;
    } catch (const s3cache::Error& error) {
        cause = cause_of(error);
        const bool is_known_here =
            error.s3_code() != "SignatureDoesNotMatch" && error.s3_code() != "InvalidAccessKeyId";
        if (!diagnosis.stored && error.code() == Errc::denied && is_known_here &&
            scratch.cache.try_contains(scratch.second_key))
            health = only_reads;  // credentials that may not write are enough for a cache that others fill
        fix = health == only_reads ? "reading works: set read_only (Config::read_only), or allow s3:PutObject"
                                   : fix_for(error, trial, scratch);
    } catch (const std::exception& flaw) {  // the store answered as if all were well
        cause = flaw.what();
    }
    diagnosis.health = (std::max)(diagnosis.health, health);
    diagnosis.report += row(trial.name, "NO") + "    " + printable(cause) + "\n" + fix_line(fix);
}

Diagnosis try_all(Scratch& scratch) {
    make_cancellable();
    Diagnosis diagnosis;
    for (const Trial& trial : trials) {
        if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\rtrying: %s\033[K", trial.name);
        try_out(trial, scratch, diagnosis);
        if (diagnosis.stored && interrupted == 0) continue;
        diagnosis.report += "  the rest was not tried\n";
        break;
    }
    for (const std::string& key : {scratch.key, scratch.second_key}) {
        if (!scratch.cache.try_remove(key) && diagnosis.stored)
            diagnosis.report += "  left behind for ten minutes: " + key + "\n";
    }
    if (isatty(STDERR_FILENO) == 1) std::fputs("\r\033[K", stderr);
    return diagnosis;
}

std::string clock_row(const std::optional<s3cache::Seconds>& ahead) {
    if (!ahead) return row("clock", "not known", "nothing was stored that the store could have dated");
    const long seconds = std::lround(ahead->count());
    if (std::labs(seconds) <= 2) return row("clock", "good", "within two seconds of the store's");
    const std::string text = std::to_string(std::labs(seconds)) + (seconds > 0 ? " s ahead of" : " s behind");
    return row("clock", "OFF", "this machine's is " + text + " the store's") +
           fix_line("set it (timedatectl set-ntp true): by it entries end");
}

// What was found is asked after the trials, when it is known as well what the store's answers have taught.
int run_doctor(const Arguments& arguments) {
    std::random_device random;
    const std::string name = format("s3cache-doctor-%08x%08x", random(), random());
    s3cache::Config config;
    config.conditions = s3cache::Conditions::required;
    const std::string where = with_parameter(place_of(arguments), "part_bytes", std::to_string(part_bytes));
    Scratch scratch{arguments, Cache(where, std::move(config)), name, name + "-2"};
    const Diagnosis diagnosis = try_all(scratch);

    const std::string place = configured(arguments, "requests go to");
    std::string corrected;
    put("What was found (s3cache " S3CACHE_VERSION ")\n");
    for (const s3cache::Finding& finding : scratch.cache.explain()) {
        if (finding.about == "clock") continue;  // told below, as it was measured
        const bool is_place = finding.about == "requests go to";
        if (is_place && finding.text != place) corrected = finding.text;
        put(row(finding.about, verdict_of(finding), is_place ? place : finding.text));
    }
    put("\nWhat the store does, tried with " + scratch.key + "\n" + diagnosis.report + "\nWhat its answers tell\n");
    if (!corrected.empty())
        put(row("requests went to", "corrected", corrected) + fix_line("name that region: it spares a request"));
    put(clock_row(scratch.clock_ahead) + "\n" + conclusions[diagnosis.health] + "\n");
    return diagnosis.health <= works_in_part ? done : failed;
}

}  // namespace

#endif  // S3CACHE_DOCTOR_HPP
