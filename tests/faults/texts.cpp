// Every kind of error, in the situations in which a user meets it: its text and its members, line by line as error_texts.txt has them.
// A text that changes is a change that users see: look at it, then record it.
//     S3CACHE_RECORD_TEXTS=1 build/unit '[texts]'
#include "world.hpp"

#include <array>
#include <regex>

using namespace s3cache;
using namespace std::chrono_literals;
using store::World;

namespace {

using fake_s3::Point;

constexpr std::array<const char*, 19> code_names = {
    "invalid_argument", "too_large",   "credentials", "denied",  "no_such_bucket", "timed_out", "network", "tls",
    "throttled",        "store",       "protocol",    "damaged", "changed",        "source",    "file",    "cancelled",
    "unsupported",      "unavailable", "read_only"};

// What differs from run to run, under names that do not.
std::string normalised(std::string text) {
    static const std::pair<std::regex, const char*> rules[] = {
        {std::regex("\\(request [^)]*\\)"), "(request ID)"},
        {std::regex("\\[?::1\\]?:[0-9]+|127\\.0\\.0\\.1:[0-9]+"), "HOST:PORT"},
        {std::regex("127\\.0\\.0\\.1 port [0-9]+"), "HOST port PORT"},
        {std::regex("(in|after|of) [0-9]+(\\.[0-9]+)? (s|ms)\\b"), "$1 T s"},
        {std::regex("[0-9]+ (ms|milliseconds)\\b"), "T ms"},
        {std::regex("'(?:/|[A-Z]:)[^ ,;:']*?s3cache-[-A-Za-z0-9]{6,}"), "'FOLDER"},
        {std::regex("s3cache-[A-Za-z0-9]{6,}"), "s3cache-RANDOM"},
        {std::regex("20[0-9]{2}-[0-9]{2}-[0-9]{2}T?[0-9:]*Z?"), "TIME"},
    };
    for (const auto& [pattern, name] : rules) text = std::regex_replace(text, pattern, name);
    return text;
}

class Texts {
public:
    template <class T>
    void add(Errc wanted, const std::string& situation, const Result<T>& result) {
        INFO(situation);
        if (result) {
            FAIL_CHECK("no error");
            return;
        }
        const Error& error = result.error();
        store::checked(error);
        CAPTURE(error.what());
        CHECK(error.code() == wanted);
        seen_.insert(error.code());
        const auto code = static_cast<std::size_t>(error.code());
        lines_.push_back(std::string(code_names[code]) + " | " + situation + " | status " +
                         std::to_string(error.status()) + ", " + (error.s3_code().empty() ? "-" : error.s3_code()) +
                         ", attempts " + std::to_string(error.attempts()) + (error.retryable() ? ", retryable" : "") +
                         " | " + normalised(error.what()));
    }
    const std::vector<std::string>& lines() const { return lines_; }
    std::size_t codes() const { return seen_.size(); }

private:
    std::vector<std::string> lines_;
    std::set<Errc> seen_;
};

Result<Cache> opened(World& world, std::string_view where) { return Cache::try_open(where, world.config()); }

SetOptions with_metadata(std::string name, std::string value) {
    SetOptions options;
    options.metadata = {{std::move(name), std::move(value)}};
    return options;
}

void arguments(Texts& texts) {
    World world;
    Cache cache = world.cache();
    const Errc wrong = Errc::invalid_argument;
    texts.add(wrong, "get of no key", cache.try_get(""));
    texts.add(wrong, "get of a key of 1025 bytes", cache.try_get(std::string(1025, 'k')));
    texts.add(wrong, "get of a key with NUL", cache.try_get(std::string_view("a\0b", 3)));
    texts.add(wrong, "get of a key that is not UTF-8", cache.try_get("\xFF"));
    texts.add(wrong, "set with a TTL below zero", cache.try_set("k", "v", {-1s}));
    texts.add(wrong, "set with a TTL that is not a number",
              cache.try_set("k", "v", {Seconds(std::numeric_limits<double>::quiet_NaN())}));
    texts.add(wrong, "set of JSON that is none", cache.try_set("k", json("{\"a\":")));
    texts.add(wrong, "set of a null pointer", cache.try_set("k", static_cast<const char*>(nullptr)));
    texts.add(wrong, "set with a line feed in metadata", cache.try_set("k", "v", with_metadata("name", "a\nb")));
    texts.add(wrong, "set with metadata of ours", cache.try_set("k", "v", with_metadata("expires_at", "1")));
    SetOptions both;
    both.if_absent = true;
    both.if_match = "\"x\"";
    texts.add(wrong, "set with if_absent and if_match", cache.try_set("k", "v", both));
    texts.add(wrong, "touch with no TTL", cache.try_touch("k", 0s));
    texts.add(wrong, "presign with another method", cache.try_presign("k", "DELETE", 1h));
    texts.add(wrong, "presign for eight days", cache.try_presign("k", "GET", 8 * 24h));
    texts.add(wrong, "open without a bucket", opened(world, ""));
    texts.add(wrong, "open with a parameter nobody knows", opened(world, "s3://bucket?regoin=x"));
    texts.add(wrong, "open with another scheme", opened(world, "gs://bucket"));
    Config config = world.config();
    config.endpoint = "ftp://127.0.0.1";
    texts.add(wrong, "open with an endpoint over FTP", Cache::try_open("bucket", config));
    config = world.config();
    config.region = "us east 1";
    texts.add(wrong, "open with a region that is none", Cache::try_open("bucket", config));
}

void limits(Texts& texts) {
    World world;
    Config config = world.config();
    config.value_bytes_max = 10;
    Cache cache = world.cache(config);
    world.put("large", std::string(11, 'x'));
    texts.add(Errc::too_large, "get of a value over value_bytes_max", cache.try_get("large"));
    texts.add(Errc::invalid_argument, "set with 3 KiB of metadata",
              cache.try_set("k", "v", with_metadata("name", std::string(3072, 'x'))));
    config = world.config();
    config.read_only = true;
    cache = world.cache(config);
    texts.add(Errc::read_only, "set of a cache that only reads", cache.try_set("k", "v"));
    texts.add(Errc::read_only, "remove of a cache that only reads", cache.try_remove("k"));
}

void identity(Texts& texts) {
    World world;
    Config config = world.config();
    config.credentials = {};
    config.seams.environment = [](const char* name) -> std::optional<std::string> {
        const std::string_view wanted = name;
        if (wanted == "AWS_EC2_METADATA_DISABLED") return "true";
        if (wanted == "AWS_CONFIG_FILE" || wanted == "AWS_SHARED_CREDENTIALS_FILE") return "/nowhere";
        return std::nullopt;
    };
    texts.add(Errc::credentials, "get with no source of credentials", world.cache(config).try_get("k"));
    config = world.config();
    config.credentials =
        CredentialsProvider([]() -> Result<Credentials> { return Error(Errc::credentials, "the vault is locked"); });
    texts.add(Errc::credentials, "get with a provider that fails", world.cache(config).try_get("k"));
    config.credentials =
        Credentials{"AKID", "secret", {}, std::chrono::system_clock::time_point(std::chrono::hours(1)), "the vault"};
    texts.add(Errc::credentials, "get with keys that have expired", world.cache(config).try_get("k"));
    config.credentials = Credentials{world.s3.access_key(), "wrong", {}, {}, "the tests"};
    texts.add(Errc::denied, "get with the wrong secret", world.cache(config).try_get("k"));
    config.credentials = Credentials{"AKIDUNKNOWN", "wrong", {}, {}, "the tests"};
    texts.add(Errc::denied, "get with a key nobody knows", world.cache(config).try_get("k"));
    world.s3.deny_key("denied");
    texts.add(Errc::denied, "get of what we may not", world.cache().try_get("denied"));
    texts.add(Errc::denied, "set of what we may not", world.cache().try_set("denied", "v"));
    auto other = opened(world, "missing");
    if (other) {
        texts.add(Errc::no_such_bucket, "get from a bucket that is not there", other->try_get("k"));
        texts.add(Errc::no_such_bucket, "set into a bucket that is not there", other->try_set("k", "v"));
    }
}

void network(Texts& texts) {
    World world;
    Cache cache = world.cache();
    world.put("k", std::string(100, 'v'));
    const auto each_time = [&](fake_s3::Fault fault) {
        world.s3.clear_faults();
        world.s3.add_fault(fault.for_times(fake_s3::forever));
    };
    each_time(fake_s3::slow_down());
    texts.add(Errc::throttled, "get while the store says slow down", cache.try_get("k"));
    texts.add(Errc::throttled, "set while the store says slow down", cache.try_set("k", "v"));
    each_time(fake_s3::respond_error(500, "InternalError", "We encountered an internal error. Please try again."));
    texts.add(Errc::store, "get while the store fails", cache.try_get("k"));
    each_time(fake_s3::respond_error(400, "InvalidStorageClass", "The storage class you specified is not valid"));
    texts.add(Errc::store, "get that the store refuses", cache.try_get("k"));
    each_time(fake_s3::html_page(502));
    texts.add(Errc::store, "get through a gateway that fails", cache.try_get("k"));
    each_time(fake_s3::respond(200, "<html>Please sign in</html>", {{"Content-Type", "text/html"}}));
    texts.add(Errc::protocol, "clear where a portal answers", cache.try_clear("prefix"));
    each_time(fake_s3::truncated_xml(60).on("ListObjectsV2"));
    texts.add(Errc::protocol, "clear where the list is cut", cache.try_clear("prefix"));
    each_time(fake_s3::reset_at(Point::request_head));
    texts.add(Errc::network, "get where each connection is reset", cache.try_get("k"));
    each_time(fake_s3::close_at(Point::answer_body, 10).on("GetObject"));
    texts.add(Errc::network, "get whose value is cut each time", cache.try_get("k"));
    world.s3.clear_faults();
    Config config = world.config();
    config.call_timeout = 50ms;
    world.s3.add_fault(fake_s3::stall_at(Point::before_effect).for_times(fake_s3::forever));
    auto late = world.cache(config).try_get("k");
    while (!late && late.error().attempts() == 0 && config.call_timeout < 10s) {  // it passed before the first one
        config.call_timeout *= 2;
        late = world.cache(config).try_get("k");
    }
    texts.add(Errc::timed_out, "get with a deadline that passes", late);
    world.s3.clear_faults();
    world.s3.end_stalls();
    config = world.config();
    config.breaker_failures = 1;
    config.attempts_max = 1;
    Cache careful = world.cache(config);
    each_time(fake_s3::respond_error(503, "ServiceUnavailable", "Please try again."));
    static_cast<void>(careful.try_get("k"));
    texts.add(Errc::unavailable, "get after too many failures", careful.try_get("k"));
    world.s3.clear_faults();
    world.s3.set_listening(false);
    world.s3.close_connections();
    texts.add(Errc::network, "get where nobody listens", cache.try_get("k"));
    World secure(store::over(true));
    config = secure.config();
    config.ca_bundle = world.s3.ca_file();
    secure.s3.swap_certificate();
    texts.add(Errc::tls, "get from a store whose certificate nobody vouches for",
              Cache("bucket", secure.config()).try_get("k"));
}

void entries(Texts& texts) {
    World world;
    Cache cache = world.cache();
    world.put("sum", "value", {{"crc32c", store::crc32c("other")}});
    texts.add(Errc::damaged, "get of a value with another checksum", cache.try_get("sum"));
    world.put("gzip", store::gzip("value").substr(0, 12), {{"compressed", "true"}});
    texts.add(Errc::damaged, "get of gzip that is cut", cache.try_get("gzip"));
    Config config = world.config();
    config.value_bytes_max = 1000;
    world.put("bomb", store::gzip(std::string(2000, 'x')), {{"compressed", "true"}});
    texts.add(Errc::too_large, "get of gzip that grows over value_bytes_max", world.cache(config).try_get("bomb"));
    world.put("changes", std::string(100000, 'a'));
    world.s3.add_fault(fake_s3::reset_at(Point::answer_body, 5000).on("GetObject").for_key("changes"));
    std::atomic<int> asked{0};
    world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
        if (request.operation == "GetObject" && phase == fake_s3::Phase::before_effect && ++asked == 2)
            world.put("changes", std::string(100000, 'b'));
    });
    if (auto stream = cache.try_get_stream("changes"); stream && *stream) {
        Result<std::string_view> chunk = std::string_view();
        do chunk = (*stream)->try_next();
        while (chunk && !chunk->empty());
        texts.add(Errc::changed, "a stream whose object is replaced", chunk);
    }
    world.s3.on_request({});
    Config strict = world.config();
    strict.conditions = Conditions::required;
    fake_s3::Quirks quirks;
    quirks.ignore_conditional_put = true;
    world.s3.set_quirks(quirks);
    SetOptions absent;
    absent.if_absent = true;
    texts.add(Errc::unsupported, "if_absent on a store that ignores conditions, with Conditions::required",
              world.cache(strict).try_set("new", "v", absent));
}

void callers(Texts& texts) {
    World world;
    Cache cache = world.cache();
    store::Folder folder;
    texts.add(Errc::file, "set_file of a file that is not there", cache.try_set_file("k", folder / "missing"));
    world.put("k", "value");
    texts.add(Errc::file, "get_file into a folder that is not there", cache.try_get_file("k", folder / "no/where"));
    texts.add(Errc::source, "set from a source that throws",
              cache.try_set("k", [](char*, std::size_t) -> std::size_t { throw std::runtime_error("tape broke"); }));
    texts.add(Errc::source, "get_or_set whose producer throws",
              cache.try_get_or_set("other", []() -> std::string { throw std::runtime_error("no model"); }));
    texts.add(Errc::invalid_argument, "get_or_set whose producer returns JSON that is none",
              cache.try_get_or_set("other", [] { return json("{"); }));
    SetOptions stopped;
    stopped.progress = [](const Progress&) { return false; };
    texts.add(Errc::cancelled, "set that the progress callback stops",
              cache.try_set("k", std::string(std::size_t{1} << 20, 'x'), stopped));
}

std::vector<std::string> lines_of(const std::string& path) {
    std::ifstream in(path);
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) {
        if (!line.empty() && line[0] != '#') out.push_back(line);
    }
    return out;
}

void record(const std::string& path, const std::vector<std::string>& lines) {
    std::ofstream out(path, std::ios::binary);
    out << "# Kind | situation | members | text, of every kind of error: faults/texts.cpp compares them on each run, "
           "and writes this file\n"
           "# with S3CACHE_RECORD_TEXTS=1 build/unit '[texts]'\n";
    for (const std::string& line : lines) out << line << "\n";
}

// Words of libcurl and OpenSSL are not ours: with another version they may be others.
std::string ours(const std::string& line) {
    const bool theirs = line.compare(0, 7, "network") == 0 || line.compare(0, 3, "tls") == 0;
    return theirs ? line.substr(0, line.rfind(" | ")) : line;
}

}  // namespace

TEST_CASE("every kind of error has the text that is recorded", "[texts]") {
    Texts texts;
    arguments(texts);
    limits(texts);
    identity(texts);
    network(texts);
    entries(texts);
    callers(texts);
    CHECK(texts.codes() == code_names.size());
    const std::string path = S3CACHE_TEST_DIR "/error_texts.txt";
    if (std::getenv("S3CACHE_RECORD_TEXTS")) record(path, texts.lines());
    const std::vector<std::string> recorded = lines_of(path);
    for (std::size_t i = 0; i < std::max(recorded.size(), texts.lines().size()); ++i) {
        const std::string now = i < texts.lines().size() ? texts.lines()[i] : "(nothing)";
        const std::string before = i < recorded.size() ? recorded[i] : "(nothing)";
        CHECK(ours(now) == ours(before));
    }
}
