// Where credentials come from: every source with stand-ins for files, STS, the container agent and instance metadata,
// and the cache of credentials in injected time. Whatever is secret here contains "SECRET-", and the helpers below fail
// a test as soon as that shows up in a text meant for people.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#ifndef _WIN32
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

using namespace std::chrono_literals;
namespace cred = s3cache::detail::credentials;
using cred::Limits;
using cred::Provider;
using cred::WebAnswer;
using cred::WebRequest;
using s3cache::Credentials;
using s3cache::Errc;
using s3cache::Error;
using s3cache::Finding;
using s3cache::Result;
using s3cache::TimePoint;
using s3cache::detail::http::Method;
using Verdict = Finding::Verdict;
using Keys = Result<Credentials>;

namespace {

const TimePoint noon{std::chrono::seconds{1736942400}};  // 2025-01-15T12:00:00Z

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void check_text(const std::string& text) {
    INFO(text);
    CHECK_FALSE(contains(text, "SECRET-"));
    CHECK(std::none_of(text.begin(), text.end(), [](char c) { return (c >= 0 && c < ' ' && c != '\t') || c == 0x7F; }));
    CHECK(text.size() < 2000);
}

using Text = Result<std::string>;

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
Text unreadable_file() { return Error(Errc::file, "permission denied"); }
#endif

WebAnswer no_answer() {
    WebAnswer out;
    out.body = "timed out";
    return out;
}

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
WebAnswer answer(int status, std::string body) {
    WebAnswer out;
    out.status = status;
    out.body = std::move(body);
    return out;
}

std::string header(const WebRequest& request, const std::string& name) {
    for (const auto& one : request.headers) {
        if (one.first == name) return one.second;
    }
    return {};
}
#endif

// An outside world that a test fills in; nothing in it unless it says so.
struct Fake {
    Fake() {
        settings.seams.environment = [this](const char* name) -> std::optional<std::string> {
            const auto at = env.find(name);
            return at == env.end() ? std::nullopt : std::optional<std::string>(at->second);
        };
    }
    Fake(const Fake&) = delete;
    Fake& operator=(const Fake&) = delete;

    s3cache::Config settings{};
    std::map<std::string, std::string> env{{"HOME", "/home/me"}};
    std::map<std::string, Text> files;
    Text other_files{std::string()};
    std::function<WebAnswer(const WebRequest&)> web;
    Text process{std::string()};
    std::function<Text(const std::vector<std::string>&)> program;
    TimePoint now = noon;
    std::vector<WebRequest> requests;
    std::vector<std::vector<std::string>> processes;
    int files_read = 0;
    std::chrono::milliseconds slept{0};
    bool limited = false;  // a request came with a deadline
    bool real_files = false, real_processes = false;
    std::atomic<std::uint32_t> cancels{0};  // goes up with each pause

    struct Outside : cred::Environment {
        explicit Outside(Fake& filled_in) : fake(filled_in) {}
        Text read_file(const std::string& path) override {
            ++fake.files_read;
            if (fake.real_files) return cred::read_file(path);
            const auto at = fake.files.find(path);
            return at == fake.files.end() ? fake.other_files : at->second;
        }
        WebAnswer fetch(const WebRequest& request, const Limits& limits) override {
            fake.requests.push_back(request);
            fake.limited = fake.limited || limits.deadline.has_value();
            return fake.web ? fake.web(request) : no_answer();
        }
        TimePoint now() const override { return fake.now; }
        void pause(std::chrono::milliseconds time, const Limits&) override {
            fake.slept += time;
            ++fake.cancels;
        }
        Text run_process(const std::vector<std::string>& argv, const Limits& limits) override {
            if (fake.real_processes) return cred::run_process(argv, limits);
            fake.processes.push_back(argv);
            return fake.program ? fake.program(argv) : fake.process;
        }
        Fake& fake;
    };
    Outside outside{*this};

    void file(const std::string& path, Text text) { files.insert_or_assign(path, std::move(text)); }
    void file(const std::string& path, const char* text) { file(path, std::string(text)); }
    void config(std::string text) { file("/home/me/.aws/config", std::move(text)); }
    void shared(std::string text) { file("/home/me/.aws/credentials", std::move(text)); }

    // Walks the chain twice: as a program would, and as the doctor does. All that is said must be free of secrets.
    Keys find() {
        Provider chain(outside, settings);
        Keys out = chain.find({});
        check_text(out ? out->source : out.error().what());
        Provider explained(outside, settings);
        notes.clear();
        for (const Finding& finding : explained.explain()) {
            check_text(finding.about);
            check_text(finding.text);
            notes += finding.text + "\n";
            CHECK(finding.text.empty() == (finding.verdict == Verdict::not_asked));
        }
        return out;
    }
    std::string notes{};  // what the doctor was told
    const std::string& told() {
        static_cast<void>(find());
        return notes;
    }

    std::string error() {
        const Keys out = find();
        CHECK_FALSE(out);
        return out ? std::string() : out.error().what();
    }
};

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
const char* const keys_json =
    R"({"Code":"Success","LastUpdated":"2025-01-15T11:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIAROLEROLEROLE",)"
    R"("SecretAccessKey":"SECRET-role","Token":"SECRET-token","Expiration":"2025-01-15T18:00:00Z"})";

std::string sts_answer(const std::string& operation, const std::string& expiration = "2025-01-15T13:00:00Z") {
    return "<" + operation + "Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <" + operation +
           "Result>\n    <AssumedRoleUser><AssumedRoleId>AROA123:x</AssumedRoleId>"
           "<Arn>arn:aws:sts::123456789012:assumed-role/deploy/x</Arn></AssumedRoleUser>\n"
           "    <Credentials><AccessKeyId>ASIASTSSTSSTSSTS</AccessKeyId><SecretAccessKey>SECRET-sts/+</SecretAccessKey>"
           "<SessionToken>SECRET-ststoken==</SessionToken><Expiration>" +
           expiration + "</Expiration></Credentials>\n  </" + operation +
           "Result>\n  <ResponseMetadata><RequestId>c6104cbe</RequestId></ResponseMetadata>\n</" + operation +
           "Response>\n";
}

std::string sts_error(const std::string& code, const std::string& message) {
    return "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>" +
           code + "</Code><Message>" + message + "</Message></Error><RequestId>1</RequestId></ErrorResponse>";
}

// The instance metadata service: version 2, a role, and what it says in `keys`.
struct Imds {
    std::string role = "web-server";
    std::string keys = keys_json;
    int keys_status = 200;

    WebAnswer operator()(const WebRequest& request) const {
        const std::string base = "http://169.254.169.254/latest/";
        CHECK(request.bypass_proxy);
        CHECK(request.timeout <= 1s);
        if (request.method == Method::put && request.url == base + "api/token") {
            CHECK(header(request, "x-aws-ec2-metadata-token-ttl-seconds") == "21600");
            return answer(200, "SECRET-session==");
        }
        if (header(request, "x-aws-ec2-metadata-token") != "SECRET-session==") return answer(401, "");
        if (request.url == base + "meta-data/iam/security-credentials/")
            return role.empty() ? answer(404, "") : answer(200, role);
        if (request.url == base + "meta-data/iam/security-credentials/" + role) return answer(keys_status, keys);
        return answer(404, "");
    }
};

#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

// --- environment ---

TEST_CASE("credentials: the environment comes first and costs nothing") {
    Fake fake;
    fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
    fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env";
    fake.env["AWS_SESSION_TOKEN"] = "SECRET-envtoken";
    fake.shared("[default]\naws_access_key_id = FILE\naws_secret_access_key = SECRET-file\n");
    Provider chain(fake.outside, fake.settings);
    const Keys out = chain.find({});
    REQUIRE(out.has_value());
    CHECK(out->access_key == "AKIDENVENVENVENV");
    CHECK(out->secret_key == "SECRET-env");
    CHECK(out->session_token == "SECRET-envtoken");
    CHECK(out->source == "environment");
    CHECK_FALSE(out->expires);
    CHECK(fake.files_read == 0);
    CHECK(fake.requests.empty());
    fake.told();
}

TEST_CASE("credentials: an access key without its secret is an error, not another identity") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = FILE\naws_secret_access_key = SECRET-file\n");
    fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
    CHECK(contains(fake.error(), "environment: the access key is set but the secret key is not"));
    fake.env["AWS_SECRET_ACCESS_KEY"] = "";
    CHECK(contains(fake.error(), "environment: the access key is set but the secret key is not"));
}

TEST_CASE("credentials: broken values in the environment are named") {
    Fake fake;
    fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
    fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env";
    SECTION("a Windows line end") {
        fake.env["AWS_SECRET_ACCESS_KEY"] += '\r';
        CHECK(contains(fake.error(), "environment: the secret key contains a line break"));
    }
    SECTION("an injected header") {
        fake.env["AWS_ACCESS_KEY_ID"] = "A\r\nX-Evil: 1";
        CHECK(contains(fake.error(), "environment: the access key contains a line break"));
    }
    SECTION("a control byte in the token") {
        fake.env["AWS_SESSION_TOKEN"] = "SECRET-\x01";
        CHECK(contains(fake.error(), "environment: the session token contains a byte that is not printable ASCII"));
    }
    SECTION("a token of any length") {
        fake.env["AWS_SESSION_TOKEN"] = "SECRET-" + std::string(cred::token_bytes_max, 'x');
        CHECK(contains(fake.error(), "environment: the session token is longer"));
    }
    SECTION("no time") {
        fake.env["AWS_CREDENTIAL_EXPIRATION"] = "tomorrow";
        CHECK(contains(fake.error(), "environment: the expiry is 'tomorrow', expected"));
    }
    SECTION("expired") {
        fake.env["AWS_CREDENTIAL_EXPIRATION"] = "2025-01-15T11:59:59Z";
        CHECK(contains(fake.error(), "expired at 2025-01-15T11:59:59Z"));
    }
}

TEST_CASE("credentials: a time in the environment is their expiry") {
    Fake fake;
    fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
    fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env";
    fake.env["AWS_CREDENTIAL_EXPIRATION"] = "2025-01-15T13:00:00+00:00";
    const Keys out = fake.find();
    REQUIRE(out.has_value());
    CHECK(out->expires == noon + 1h);
}

TEST_CASE("credentials: empty variables are unset ones") {
    Fake fake;
    for (const char* name :
         {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
          "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONFIG_FILE"}) {
        fake.env[name] = "";
    }
    const std::string error = fake.error();
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    for (const char* source : {"environment", "web identity", "profile", "container", "instance metadata"})
        CHECK(contains(error, source));
#else
    CHECK(contains(error, "S3CACHE_NO_CREDENTIAL_CHAIN"));
#endif
}

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN

// --- web identity ---

struct WebIdentityFake : Fake {
    WebIdentityFake() {
        env["AWS_WEB_IDENTITY_TOKEN_FILE"] = "/var/run/token";
        env["AWS_ROLE_ARN"] = "arn:aws:iam::123456789012:role/deploy";
        env["AWS_REGION"] = "eu-west-1";
        file("/var/run/token", "SECRET-jwt.a-b_c.d\n");
        web = [](const WebRequest&) { return answer(200, sts_answer("AssumeRoleWithWebIdentity")); };
    }
};

TEST_CASE("credentials: a web identity token is exchanged for keys, unsigned, and read anew each time") {
    WebIdentityFake fake;
    fake.env["AWS_ROLE_SESSION_NAME"] = "ci@build";
    Provider chain(fake.outside, fake.settings);
    const Keys out = chain.find({});
    REQUIRE(out.has_value());
    CHECK(out->access_key == "ASIASTSSTSSTSSTS");
    CHECK(out->secret_key == "SECRET-sts/+");
    CHECK(out->session_token == "SECRET-ststoken==");
    CHECK(out->expires == noon + 1h);
    REQUIRE(fake.requests.size() == 1);
    CHECK(fake.requests[0].method == Method::post);
    CHECK(fake.requests[0].url == "https://sts.eu-west-1.amazonaws.com/");
    CHECK(
        fake.requests[0].body ==
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fdeploy"
        "&RoleSessionName=ci%40build&WebIdentityToken=SECRET-jwt.a-b_c.d");
    CHECK(header(fake.requests[0], "Authorization").empty());

    fake.file("/var/run/token", "SECRET-second");
    REQUIRE(chain.find({}).has_value());
    CHECK(contains(fake.requests[1].body, "WebIdentityToken=SECRET-second"));
    fake.told();
}

TEST_CASE("credentials: a token file without a role is an error") {
    WebIdentityFake fake;
    fake.env.erase("AWS_ROLE_ARN");
    CHECK(contains(fake.error(), "AWS_ROLE_ARN is not"));
}

TEST_CASE("credentials: token files that are no token") {
    WebIdentityFake fake;
    SECTION("missing") { fake.files.clear(); }
    SECTION("unreadable") { fake.file("/var/run/token", unreadable_file()); }
    SECTION("empty") { fake.file("/var/run/token", " \n"); }
    SECTION("a document") { fake.file("/var/run/token", "{\"token\": \"SECRET-x\"}"); }
    SECTION("binary") { fake.file("/var/run/token", std::string("SECRET-\0x", 9)); }
    SECTION("huge") { fake.file("/var/run/token", std::string(100000, 'x')); }
    CHECK(contains(fake.error(), "AWS_WEB_IDENTITY_TOKEN_FILE /var/run/token "));
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: what libcurl says of a proxy is passed on without its password") {
    WebIdentityFake fake;
    fake.web = [](const WebRequest&) {
        WebAnswer out;
        out.body = "Could not resolve proxy: http://user:SECRET-pw@proxy.example:3128";
        return out;
    };
    CHECK(contains(fake.error(), "@proxy.example:3128"));
}

TEST_CASE("credentials: what STS complains of is passed on, without our secrets") {
    WebIdentityFake fake;
    fake.web = [](const WebRequest&) {
        return answer(403,
                      sts_error("AccessDenied",
                                "Not authorized to perform sts:AssumeRoleWithWebIdentity with SECRET-jwt.a-b_c.d"));
    };
    const std::string error = fake.error();
    CHECK(contains(error, "https://sts.eu-west-1.amazonaws.com/"));
    CHECK(contains(error, "HTTP status 403, AccessDenied"));
    CHECK(fake.requests.size() == 2);  // find and explain: no retry of a refusal
    fake.web = [](const WebRequest&) { return answer(403, sts_error("AccessDenied", "Not authorized")); };
    CHECK(contains(fake.error(), "HTTP status 403, AccessDenied: Not authorized"));
}

TEST_CASE("credentials: STS is asked again when it, or the identity provider behind it, has a bad moment") {
    WebIdentityFake fake;
    int calls = 0;
    std::vector<WebAnswer> bad;
    SECTION("identity provider") { bad.assign(2, answer(400, sts_error("IDPCommunicationError", "try again"))); }
    SECTION("server") { bad.assign(2, answer(503, "<html>")); }
    SECTION("no answer") { bad.assign(2, no_answer()); }
    fake.web = [&](const WebRequest&) {
        const std::size_t call = static_cast<std::size_t>(calls++);
        return call < bad.size() ? bad[call] : answer(200, sts_answer("AssumeRoleWithWebIdentity"));
    };
    CHECK(Provider(fake.outside, fake.settings).find({}).has_value());
    CHECK(calls == 3);
    CHECK(fake.slept > 0s);
}

TEST_CASE("credentials: hostile answers of STS") {
    WebIdentityFake fake;
    const std::string good = sts_answer("AssumeRoleWithWebIdentity");
    std::string body;
    SECTION("empty") {}
    SECTION("cut") { body = good.substr(0, good.size() / 2); }
    SECTION("huge") { body = good + std::string(1 << 20, ' '); }
    SECTION("another operation's") { body = sts_answer("AssumeRole"); }
    SECTION("an error with status 200") { body = sts_error("AccessDenied", "no"); }
    SECTION("no time") { body = sts_answer("AssumeRoleWithWebIdentity", "never"); }
    SECTION("in the past") { body = sts_answer("AssumeRoleWithWebIdentity", "2025-01-15T11:00:00Z"); }
    SECTION("a header in the key") {
        body = good;
        body.replace(body.find("ASIASTS"), 7, "A&#13;&#10;X-Evil: 1");
    }
    SECTION("a page of a proxy") { body = "<html><body>Please sign in</body></html>"; }
    fake.web = [&](const WebRequest&) { return answer(200, body); };
    CHECK_FALSE(fake.error().empty());
}

// --- profiles ---

TEST_CASE("credentials: keys of the selected profile, from either file") {
    Fake fake;
    fake.shared(
        "# comment\r\n[default]\r\naws_access_key_id = AKIDDEFAULTDEFAU\r\naws_secret_access_key = "
        "SECRET-default\r\n\r\n"
        "[dev]\r\naws_access_key_id=AKIDDEVDEVDEVDEV\r\naws_secret_access_key=SECRET-dev\r\naws_session_token=SECRET-"
        "devtoken\r\n");
    fake.config("[profile ops]\naws_access_key_id = AKIDOPSOPSOPSOPS\naws_secret_access_key = SECRET-ops\n");
    CHECK(fake.find()->access_key == "AKIDDEFAULTDEFAU");
    fake.env["AWS_PROFILE"] = "dev";
    const Keys dev = fake.find();
    CHECK(dev->access_key == "AKIDDEVDEVDEVDEV");
    CHECK(dev->session_token == "SECRET-devtoken");
    CHECK(dev->source == "/home/me/.aws/credentials, profile dev");
    fake.settings.profile = "ops";
    CHECK(fake.find()->access_key == "AKIDOPSOPSOPSOPS");
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: a profile chosen in code beats keys in the environment") {
    Fake fake;
    fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
    fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env";
    fake.shared("[dev]\naws_access_key_id = AKIDDEVDEVDEVDEV\naws_secret_access_key = SECRET-dev\n");
    fake.env["AWS_PROFILE"] = "dev";
    CHECK(fake.find()->access_key == "AKIDENVENVENVENV");
    fake.settings.profile = "dev";
    CHECK(fake.find()->access_key == "AKIDDEVDEVDEVDEV");
}

TEST_CASE("credentials: malformed files are named with their line") {
    Fake fake;
    SECTION("no delimiter") {
        fake.shared("[default]\naws_access_key_id = A\nSECRET-garbage\n");
        CHECK(contains(fake.error(), "/home/me/.aws/credentials:3"));
    }
    SECTION("duplicate profile") {
        fake.config("[default]\nregion = x\n\n[default]\nregion = y\n");
        CHECK(contains(fake.error(), "/home/me/.aws/config:4"));
    }
    SECTION("duplicate key") {
        fake.shared("[default]\naws_secret_access_key = SECRET-a\naws_secret_access_key = SECRET-b\n");
        CHECK(contains(fake.error(), "/home/me/.aws/credentials:3"));
    }
    SECTION("unreadable") {
        fake.file("/home/me/.aws/credentials", unreadable_file());
        CHECK(contains(fake.error(), "/home/me/.aws/credentials cannot be read: permission denied"));
    }
    SECTION("keys and no section") {
        fake.shared("aws_secret_access_key = SECRET-a\n");
        CHECK(contains(fake.error(), "/home/me/.aws/credentials:1"));
    }
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: a profile that is named must exist, the default one need not") {
    Fake fake;
    fake.shared("[dev]\naws_access_key_id = AKIDDEVDEVDEVDEV\naws_secret_access_key = SECRET-dev\n");
    fake.env["AWS_PROFILE"] = "prod";
    const std::string error = fake.error();
    CHECK(contains(error, "AWS_PROFILE: there is no profile 'prod'"));
    CHECK(contains(error, "/home/me/.aws/config"));
    fake.env.erase("AWS_PROFILE");
    fake.web = Imds();
    CHECK(fake.find()->access_key == "ASIAROLEROLEROLE");
}

TEST_CASE("credentials: halves of keys in a file") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = AKIDDEFAULTDEFAU\n");
    fake.config("[default]\naws_secret_access_key = SECRET-elsewhere\n");
    const std::string error = fake.error();
    CHECK(contains(error, "/home/me/.aws/credentials"));
    CHECK(contains(error, "the secret key is not"));
}

TEST_CASE("credentials: other paths for the files, and a tilde in them") {
    Fake fake;
    fake.env["AWS_SHARED_CREDENTIALS_FILE"] = "~/keys";
    fake.env["AWS_CONFIG_FILE"] = "/etc/aws";
    fake.file("/home/me/keys",
              "[default]\naws_access_key_id = AKIDTILDETILDETI\naws_secret_access_key = SECRET-tilde\n");
    fake.file("/etc/aws", "[default]\nregion = eu-north-1\n");
    CHECK(fake.find()->access_key == "AKIDTILDETILDETI");
    CHECK(cred::Walk(fake.outside, fake.settings).region()->value == "eu-north-1");
}

// --- what is passed over, as by botocore ---

TEST_CASE("credentials: a half that says nothing by itself is passed over for a profile that has keys") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n");
    SECTION("AWS_SECRET_ACCESS_KEY") { fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env"; }
    SECTION("AWS_SESSION_TOKEN") { fake.env["AWS_SESSION_TOKEN"] = "SECRET-env"; }
    SECTION("AWS_ROLE_ARN") { fake.env["AWS_ROLE_ARN"] = "arn:aws:iam::123456789012:role/deploy"; }
    SECTION("AWS_ROLE_SESSION_NAME") { fake.env["AWS_ROLE_SESSION_NAME"] = "me"; }
    SECTION("source_profile") { fake.config("[default]\nsource_profile = base\n"); }
    SECTION("a secret in the config file") { fake.config("[default]\naws_secret_access_key = SECRET-elsewhere\n"); }
    const Keys keys = fake.find();
    REQUIRE(keys);
    CHECK(keys->access_key == "AKIDDEFAULTDEFAU");
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: halves in a profile are told to whoever finds no credentials") {
    Fake fake;
    SECTION("a source without a role") { fake.config("[default]\nsource_profile = base\n"); }
    SECTION("a secret without its key") { fake.shared("[default]\naws_secret_access_key = SECRET-x\n"); }
    CHECK(contains(fake.error(), "profile default: neither aws_access_key_id nor role_arn is set"));
}

TEST_CASE("credentials: keys that are there but empty are not passed over") {
    Fake fake;
    fake.web = Imds();
    fake.shared("[default]\naws_access_key_id =\naws_secret_access_key =\n");
    CHECK(contains(fake.error(), "/home/me/.aws/credentials, profile default: aws_access_key_id is empty"));
}

TEST_CASE("credentials: a byte order mark and blanks around default do not hide the keys") {
    Fake fake;
    const std::string keys = "aws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n";
    SECTION("in the credentials file") { fake.shared("\xEF\xBB\xBF[default]\r\n" + keys); }
    SECTION("in the config file") { fake.config("\xEF\xBB\xBF[default]\n" + keys); }
    SECTION("blanks in the credentials file") { fake.shared("[ default ]\n" + keys); }
    SECTION("blanks in the config file") { fake.config("[ default ]\n" + keys); }
    const Keys found = fake.find();
    REQUIRE(found);
    CHECK(found->access_key == "AKIDDEFAULTDEFAU");
}

#ifndef _WIN32
TEST_CASE("credentials: without HOME the password database tells where the files are") {
    const struct passwd* me = ::getpwuid(::getuid());
    REQUIRE(me != nullptr);
    Fake fake;
    fake.file(std::string(me->pw_dir) + "/.aws/credentials",
              "[default]\naws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n");
    SECTION("unset") { fake.env.clear(); }
    SECTION("empty") { fake.env["HOME"] = ""; }
    const Keys keys = fake.find();
    REQUIRE(keys);
    CHECK(keys->access_key == "AKIDDEFAULTDEFAU");
}
#endif

struct RoleFake : Fake {
    RoleFake() {
        env["AWS_REGION"] = "eu-west-1";
        shared(
            "[base]\naws_access_key_id = AKIDBASEBASEBASE\naws_secret_access_key = SECRET-base/key+\naws_session_token "
            "= SECRET-base+token/==\n");
        web = [](const WebRequest&) { return answer(200, sts_answer("AssumeRole")); };
    }
    void role(const std::string& lines) {
        config("[default]\nrole_arn = arn:aws:iam::123456789012:role/deploy\n" + lines);
    }
};

TEST_CASE("credentials: a role is assumed with the keys of the source profile, signed for STS") {
    RoleFake fake;
    fake.role("source_profile = base\nrole_session_name = ci@build\nexternal_id = a b+c\nduration_seconds = 900\n");
    Provider chain(fake.outside, fake.settings);
    const Keys out = chain.find({});
    REQUIRE(out.has_value());
    CHECK(out->access_key == "ASIASTSSTSSTSSTS");
    REQUIRE(fake.requests.size() == 1);
    const WebRequest& request = fake.requests[0];
    CHECK(request.url == "https://sts.eu-west-1.amazonaws.com/");
    CHECK(request.body ==
          "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fdeploy"
          "&RoleSessionName=ci%40build&ExternalId=a%20b%2Bc&DurationSeconds=900");
    CHECK(header(request, "x-amz-date") == "20250115T120000Z");
    CHECK(header(request, "x-amz-security-token") == "SECRET-base+token/==");
    // Computed with botocore for the same request.
    CHECK(header(request, "Authorization") ==
          "AWS4-HMAC-SHA256 Credential=AKIDBASEBASEBASE/20250115/eu-west-1/sts/aws4_request, "
          "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, "
          "Signature=b30bb8f3d38998dc701872033b69406e27a7ab0a887f7ff259b9bfd8f8f32953");
    fake.told();
}

TEST_CASE("credentials: roles through roles") {
    RoleFake fake;
    fake.role(
        "source_profile = middle\n\n[profile middle]\nrole_arn = arn:aws:iam::123456789012:role/middle\nsource_profile "
        "= base\n");
    REQUIRE(Provider(fake.outside, fake.settings).find({}).has_value());
    REQUIRE(fake.requests.size() == 2);
    CHECK(contains(fake.requests[0].body, "role%2Fmiddle"));
    CHECK(contains(header(fake.requests[0], "Authorization"), "Credential=AKIDBASEBASEBASE/"));
    CHECK(contains(fake.requests[1].body, "role%2Fdeploy"));
    CHECK(contains(header(fake.requests[1], "Authorization"), "Credential=ASIASTSSTSSTSSTS/"));
    CHECK(header(fake.requests[1], "x-amz-security-token") == "SECRET-ststoken==");
}

TEST_CASE("credentials: roles whose source is wrong") {
    RoleFake fake;
    SECTION("none") {
        fake.role("");
        CHECK(contains(fake.error(), "source_profile or credential_source"));
    }
    SECTION("two") {
        fake.role("source_profile = base\ncredential_source = Environment\n");
        CHECK(contains(fake.error(), "not both"));
    }
    SECTION("missing") {
        fake.role("source_profile = nobody\n");
        CHECK(contains(fake.error(), "source_profile nobody does not exist"));
    }
    SECTION("empty") {
        fake.role("source_profile = bare\n[profile bare]\nregion = eu-west-1\n");
        CHECK(
            contains(fake.error(), "no credentials to assume the role with: profile bare: neither aws_access_key_id"));
    }
    SECTION("itself without keys") {
        fake.role("source_profile = default\n");
        CHECK(contains(fake.error(), "circle"));
    }
    SECTION("a loop of three") {
        fake.role(
            "source_profile = a\n[profile a]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = b\n"
            "[profile b]\nrole_arn = arn:aws:iam::1:role/b\nsource_profile = a\n");
        CHECK(contains(fake.error(), "circle"));
    }
    SECTION("unknown word") {
        fake.role("credential_source = Ec2Metadata\n");
        CHECK(contains(fake.error(), "credential_source must be Environment"));
    }
    SECTION("named source not there") {
        fake.role("credential_source = EcsContainer\n");
        CHECK(contains(fake.error(), "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"));
    }
    SECTION("a code is asked for") {
        fake.role("source_profile = base\nmfa_serial = arn:aws:iam::1:mfa/me\n");
        CHECK(contains(fake.error(),
                       "credential_process = aws configure export-credentials --profile default --format process"));
    }
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: a profile may be its own source when keys stand beside its role") {
    RoleFake fake;
    fake.role(
        "source_profile = default\naws_access_key_id = AKIDBESIDEBESIDE\naws_secret_access_key = SECRET-beside\n");
    REQUIRE(fake.find().has_value());
    CHECK(contains(header(fake.requests[0], "Authorization"), "Credential=AKIDBESIDEBESIDE/"));
}

TEST_CASE("credentials: named sources for a role") {
    RoleFake fake;
    SECTION("environment, which must not win by itself") {
        fake.config(
            "[profile dev]\nrole_arn = arn:aws:iam::123456789012:role/deploy\ncredential_source = Environment\n");
        fake.env["AWS_ACCESS_KEY_ID"] = "AKIDENVENVENVENV";
        fake.env["AWS_SECRET_ACCESS_KEY"] = "SECRET-env";
        fake.settings.profile = "dev";
        REQUIRE(fake.find().has_value());
        CHECK(contains(header(fake.requests[0], "Authorization"), "Credential=AKIDENVENVENVENV/"));
    }
    SECTION("instance") {
        fake.role("credential_source = Ec2InstanceMetadata\n");
        fake.web = [](const WebRequest& request) {
            return contains(request.url, "sts.") ? answer(200, sts_answer("AssumeRole")) : Imds()(request);
        };
        REQUIRE(Provider(fake.outside, fake.settings).find({}).has_value());
        CHECK(contains(header(fake.requests.back(), "Authorization"), "Credential=ASIAROLEROLEROLE/"));
    }
}

TEST_CASE("credentials: a web identity in a profile") {
    RoleFake fake;
    fake.web = [](const WebRequest&) { return answer(200, sts_answer("AssumeRoleWithWebIdentity")); };
    fake.file("/token", "SECRET-jwt");
    fake.role("web_identity_token_file = /token\nrole_session_name = here\n");
    REQUIRE(fake.find().has_value());
    CHECK(contains(fake.requests[0].body, "RoleSessionName=here&WebIdentityToken=SECRET-jwt"));
    fake.config("[default]\nweb_identity_token_file = /token\n");
    CHECK(contains(fake.error(), "role_arn is not"));
}

TEST_CASE("credentials: a profile that names a role goes before the environment's web identity") {
    RoleFake fake;
    fake.config(
        "[profile ops]\nrole_arn = arn:aws:iam::123456789012:role/ops\nsource_profile = base\n"
        "[profile plain]\nregion = eu-west-1\n");
    fake.env["AWS_WEB_IDENTITY_TOKEN_FILE"] = "/token";
    fake.env["AWS_ROLE_ARN"] = "arn:aws:iam::123456789012:role/pod";
    fake.file("/token", "SECRET-jwt");
    fake.web = [](const WebRequest& request) {
        const bool web = contains(request.body, "AssumeRoleWithWebIdentity");
        return answer(200, sts_answer(web ? "AssumeRoleWithWebIdentity" : "AssumeRole"));
    };
    fake.env["AWS_PROFILE"] = "ops";
    REQUIRE(fake.find());
    CHECK(contains(fake.requests[0].body, "Action=AssumeRole&"));
    CHECK(contains(fake.requests[0].body, "role%2Fops"));

    fake.requests.clear();
    fake.env["AWS_PROFILE"] = "base";  // keys only, which come after
    REQUIRE(fake.find());
    CHECK(contains(fake.requests[0].body, "role%2Fpod"));

    fake.requests.clear();
    fake.env.erase("AWS_ROLE_ARN");
    CHECK(contains(fake.error(), "AWS_ROLE_ARN is not"));
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: a web identity's role may be named by the variable, its file by the profile") {
    RoleFake fake;
    fake.web = [](const WebRequest&) { return answer(200, sts_answer("AssumeRoleWithWebIdentity")); };
    fake.file("/token", "SECRET-jwt");
    fake.config("[default]\nweb_identity_token_file = /token\nrole_arn = arn:aws:iam::1:role/file\n");
    fake.env["AWS_ROLE_ARN"] = "arn:aws:iam::1:role/variable";
    REQUIRE(fake.find());
    CHECK(contains(fake.requests[0].body, "role%2Fvariable"));
    fake.settings.profile = "default";  // chosen in code: the variables are not looked at
    fake.requests.clear();
    REQUIRE(fake.find());
    CHECK(contains(fake.requests[0].body, "role%2Ffile"));
}

TEST_CASE("credentials: where STS is asked") {
    RoleFake fake;
    fake.role("source_profile = base\n");
    const auto url = [&fake] {
        fake.requests.clear();
        CHECK(Provider(fake.outside, fake.settings).find({}).has_value());
        return fake.requests.empty() ? std::string() : fake.requests[0].url;
    };
    fake.env["AWS_REGION"] = "cn-north-1";
    CHECK(url() == "https://sts.cn-north-1.amazonaws.com.cn/");
    fake.env["AWS_REGION"] = "auto";  // a store's region, not one of AWS
    CHECK(url() == "https://sts.us-east-1.amazonaws.com/");
    fake.env.erase("AWS_REGION");
    CHECK(url() == "https://sts.us-east-1.amazonaws.com/");
    fake.role("source_profile = base\nregion = us-gov-west-1\n");
    CHECK(url() == "https://sts.us-gov-west-1.amazonaws.com/");
    fake.env["AWS_ENDPOINT_URL"] = "http://minio:9000";
    CHECK(url() == "http://minio:9000/");
    fake.env["AWS_ENDPOINT_URL_STS"] = "https://STS.example.com:443/sts";
    CHECK(url() == "https://sts.example.com/sts");
    fake.env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true";
    CHECK(url() == "https://sts.us-gov-west-1.amazonaws.com/");
    fake.env.erase("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    fake.env["AWS_ENDPOINT_URL_STS"] = "https://me:SECRET-pw@sts.example.com/";
    CHECK(contains(fake.error(), "AWS_ENDPOINT_URL_STS is "));
}

TEST_CASE("credentials: a sign-in session is served by the AWS CLI, and the error says how") {
    Fake fake;
    std::string lines;
    SECTION("session") { lines = "sso_session = corp\nsso_account_id = 1\nsso_role_name = dev\n"; }
    SECTION("legacy") {
        lines = "sso_start_url = https://x.awsapps.com/start\nsso_account_id = 1\nsso_role_name = dev\n";
    }
    SECTION("login") { lines = "login_session = arn:aws:iam::1:user/me\n"; }
    fake.env["AWS_PROFILE"] = "my dev";
    fake.config("[profile \"my dev\"]\n" + lines +
                "\n[sso-session corp]\nsso_start_url = https://x.awsapps.com/start\n");
    const std::string error = fake.error();
    CHECK(
        contains(error, "credential_process = aws configure export-credentials --profile \"my dev\" --format process"));
    CHECK(contains(error, "/home/me/.aws/config"));

    fake.config("[profile \"my dev\"]\n" + lines +
                "credential_process = aws configure export-credentials --profile \"my dev\" --format process\n");
    fake.process =
        std::string(R"({"Version": 1, "AccessKeyId": "ASIAPROCESSPROCE", "SecretAccessKey": "SECRET-process"})");
    REQUIRE(fake.find().has_value());
    CHECK(fake.processes[0] == std::vector<std::string>{"aws", "configure", "export-credentials", "--profile", "my dev",
                                                        "--format", "process"});
}

// --- credential_process ---

TEST_CASE("credentials: credential_process") {
    Fake fake;
    fake.config("[default]\ncredential_process = \"/opt/my helper\" --password SECRET-argument\n");
    fake.process =
        std::string(R"({"Version": 1, "AccessKeyId": "ASIAPROCESSPROCE", "SecretAccessKey": "SECRET-process",)"
                    R"( "SessionToken": "SECRET-ptoken", "Expiration": "2025-01-15T13:00:00Z"})");
    SECTION("serves") {
        const Keys out = fake.find();
        REQUIRE(out.has_value());
        CHECK(out->access_key == "ASIAPROCESSPROCE");
        CHECK(out->session_token == "SECRET-ptoken");
        CHECK(out->expires == noon + 1h);
        CHECK(fake.processes[0] == std::vector<std::string>{"/opt/my helper", "--password", "SECRET-argument"});
    }
    SECTION("need not state an expiry") {
        fake.process = std::string(
            R"({"Version": 1, "AccessKeyId": "ASIAPROCESSPROCE", "SecretAccessKey": "SECRET-x", "Expiration": null})");
        const Keys out = fake.find();
        REQUIRE(out.has_value());
        CHECK_FALSE(out->expires);
    }
    SECTION("comes after keys of the credentials file") {
        fake.shared("[default]\naws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n");
        CHECK(fake.find()->access_key == "AKIDDEFAULTDEFAU");
        CHECK(fake.processes.empty());
    }
    SECTION("fails") {
        fake.process = Error(Errc::credentials, "it took too long");
        CHECK(contains(fake.error(), "credential_process /opt/my helper: it took too long"));
    }
    SECTION("says something else") {
        for (const char* output :
             {"", "[]", "SECRET-plain", "{\"Version\": 1",
              "{\"Version\": 2, \"AccessKeyId\": \"A\", \"SecretAccessKey\": \"SECRET-x\"}", "{\"Version\": \"1\"}",
              "{\"Version\": 1}", "{\"Version\": 1, \"AccessKeyId\": \"PA\"}",
              "{\"Version\": 1, \"AccessKeyId\": 7, \"SecretAccessKey\": \"SECRET-x\"}",
              "{\"Version\": 1, \"AccessKeyId\": \"A\\r\\nX: 1\", \"SecretAccessKey\": \"SECRET-x\"}",
              "{\"Version\": 1, \"AccessKeyId\": \"A\", \"SecretAccessKey\": \"SECRET-x\", \"SessionToken\": []}",
              "{\"Version\": 1, \"AccessKeyId\": \"A\", \"SecretAccessKey\": \"SECRET-x\", \"Expiration\": 1736946000}",
              "{\"Version\": 1, \"AccessKeyId\": \"A\", \"SecretAccessKey\": \"SECRET-x\", \"Expiration\": "
              "\"soon\"}"}) {
            fake.process = std::string(output);
            CHECK(contains(fake.error(), "credential_process /opt/my helper"));
        }
    }
    SECTION("has an open quote") {
        fake.config("[default]\ncredential_process = \"/opt/helper SECRET-argument\n");
        CHECK(contains(fake.error(), "open quote"));
    }
}

#ifndef _WIN32
TEST_CASE("credentials: processes are run without a shell, within bounds") {
    const auto run = [](const std::vector<std::string>& argv, std::chrono::milliseconds time = 20s) {
        const Text output = cred::run_process(argv, Limits{std::chrono::steady_clock::now() + time});
        return output ? *output : std::string("no: ") + output.error().what();
    };
    CHECK(run({"echo", "$HOME", "a b"}) == "$HOME a b\n");
    CHECK(run({"false"}) == "no: it ended with exit status 1");
    CHECK(run({"/bin/sh", "-c", "exit 7"}) == "no: it ended with exit status 7");
    CHECK(run({"/bin/sh", "-c", "kill -9 $$"}) == "no: it was ended by signal 9");
    CHECK(contains(run({"/"}), "no: "));
    CHECK(run({"sleep", "1000"}, 50ms) == "no: it took too long");
    CHECK(run({"/bin/sh", "-c", "exec >&-; exec sleep 1000"}, 50ms) == "no: it took too long");
    CHECK(run({"yes"}) == "no: its output is longer than 65536 bytes");
    CHECK(run({"cat"}).empty());  // its input is empty, not ours
}

TEST_CASE("credentials: a program that is not there is named as that", "[spawn]") {
    const Text output = cred::run_process({"no-such-program-anywhere"}, Limits{std::chrono::steady_clock::now() + 20s});
    REQUIRE_FALSE(output);
    CHECK(output.error().what() == std::string("there is no such program"));
}

TEST_CASE("credentials: a child inherits no descriptor but the standard three") {
    const int leak =
        ::fcntl(0, F_DUPFD, 100);  // without FD_CLOEXEC, as many programs do; a number the shell won't take
    REQUIRE(leak >= 100);
    const Text shown =
        cred::run_process({"/bin/sh", "-c", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done; true"}, {});
    REQUIRE(shown);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
    CHECK_FALSE(contains("\n" + *shown, "\n" + std::to_string(leak) + "\n"));
#else
    WARN("this C library closes no descriptors for a child");
#endif
    ::close(leak);
}
#endif

#ifndef _WIN32
TEST_CASE("credentials: what is no file does not block, and /dev/null is none") {
    const std::string folder = "/tmp/s3cache-fifo-" + std::to_string(::getpid());
    const std::string fifo = folder + "/config";
    REQUIRE(::mkdir(folder.c_str(), 0700) == 0);
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    const Text text = cred::read_file(fifo);
    REQUIRE_FALSE(text);
    CHECK(text.error().what() == std::string("it is not a regular file"));
    CHECK(cred::read_file("/dev/null").value_or("?").empty());
    Fake fake;
    fake.env["AWS_CONFIG_FILE"] = fifo;
    fake.real_files = true;
    const Keys keys = Provider(fake.outside, fake.settings).find({});
    REQUIRE_FALSE(keys);
    CHECK(contains(keys.error().what(), fifo + " cannot be read: it is not a regular file"));
    ::unlink(fifo.c_str());
    ::rmdir(folder.c_str());
}
#endif

TEST_CASE("credentials: files are read within bounds") {
    CHECK(cred::read_file("/no/such/file").value_or("?").empty());
    CHECK_FALSE(cred::read_file("/"));
#ifdef __linux__
    CHECK_FALSE(cred::read_file("/dev/zero"));
#endif
    const Text own = cred::read_file(__FILE__);
    if (own && !own->empty()) CHECK(contains(*own, "read within bounds"));
}

// --- container ---

struct ContainerFake : Fake {
    ContainerFake() {
        web = [](const WebRequest&) { return answer(200, keys_json); };
    }
};

TEST_CASE("credentials: the container agent's two addresses and two tokens") {
    ContainerFake fake;
    fake.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://169.254.170.23/v1/credentials";
    fake.env["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = "Basic SECRET-auth";
    const Keys out = fake.find();
    REQUIRE(out.has_value());
    CHECK(out->access_key == "ASIAROLEROLEROLE");
    CHECK(out->session_token == "SECRET-token");
    CHECK(out->expires == noon + 6h);
    CHECK(fake.requests[0].method == Method::get);
    CHECK(fake.requests[0].url == "http://169.254.170.23/v1/credentials");
    CHECK(fake.requests[0].bypass_proxy);
    CHECK(fake.requests[0].timeout == 2s);
    CHECK(header(fake.requests[0], "Authorization") == "Basic SECRET-auth");

    fake.requests.clear();
    fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/SECRET-path?id=SECRET-id";
    fake.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = "/var/token";
    fake.file("/var/token", "SECRET-file");
    REQUIRE(fake.find().has_value());
    CHECK(fake.requests[0].url == "http://169.254.170.2/v2/credentials/SECRET-path?id=SECRET-id");
    CHECK(header(fake.requests[0], "Authorization") == "SECRET-file");
}

TEST_CASE("credentials: hosts that a container's address may name") {
    ContainerFake fake;
    for (const char* url : {"http://localhost/x", "http://LOCALHOST:8080/x", "http://127.0.0.1/x",
                            "http://127.1.2.3:1/x", "http://[::1]:9/x", "http://169.254.170.2/x",
                            "http://169.254.170.23/x", "http://[fd00:ec2::23]/x", "https://example.com/x"}) {
        INFO(url);
        fake.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = url;
        CHECK(fake.find().has_value());
    }
    fake.requests.clear();
    for (const char* url : {"http://example.com/x",
                            "http://127.0.0.1.example.com/x",
                            "http://127.0.0/x",
                            "http://127.0.0.256/x",
                            "http://127.0.0.1.2/x",
                            "http://169.254.169.254/x",
                            "http://localhost@example.com/x",
                            "http://localhost:80@example.com/x",
                            "http://[::2]/x",
                            "http://localhost\\@example.com/x",
                            "http://example.com#@localhost/x",
                            "http://localhost.example.com/x",
                            "http:///x",
                            "ftp://localhost/x",
                            "localhost/x",
                            "http://local host/x",
                            "http://localhost/x\r\nX: 1",
                            "http://localhost:99999/x",
                            "http://localhost:1:2/x",
                            "http://[::1/x",
                            "http://2130706433/x",
                            "http://0/x"}) {
        INFO(url);
        fake.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = url;
        CHECK(contains(fake.error(), "AWS_CONTAINER_CREDENTIALS_FULL_URI"));
    }
    for (const char* path : {"v2/x", "@example.com/x", ".example.com/", ":80/x", "/x y", "/x\r\nX: 1"}) {
        INFO(path);
        fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = path;
        CHECK(contains(fake.error(), "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"));
    }
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: container tokens that cannot be sent") {
    ContainerFake fake;
    fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/x";
    fake.env["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = "SECRET-a\r\nX-Evil: 1";
    CHECK(contains(fake.error(), "AWS_CONTAINER_AUTHORIZATION_TOKEN contains a line break"));
    fake.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = "/var/token";
    CHECK(contains(fake.error(), "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE /var/token does not exist or is empty"));
    fake.file("/var/token", unreadable_file());
    CHECK(contains(fake.error(), "cannot be read"));
    fake.file("/var/token", "");
    CHECK(contains(fake.error(), "is empty"));
    fake.file("/var/token", "SECRET-a\nSECRET-b");
    CHECK(contains(fake.error(), "line break"));
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: a container agent that is slow, starting or refusing") {
    ContainerFake fake;
    fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/x";
    int calls = 0;
    SECTION("starting") {
        fake.web = [&](const WebRequest&) { return ++calls < 3 ? no_answer() : answer(200, keys_json); };
        CHECK(Provider(fake.outside, fake.settings).find({}).has_value());
        CHECK(calls == 3);
        CHECK(fake.slept == 2s);
    }
    SECTION("never there") {
        fake.web = [&](const WebRequest&) { return ++calls, no_answer(); };
        CHECK(contains(Provider(fake.outside, fake.settings).find({}).error().what(), "no answer (timed out)"));
        CHECK(calls == 3);
        fake.error();
    }
    SECTION("refusing") {
        fake.web = [&](const WebRequest&) {
            return ++calls, answer(401, R"({"code":"InvalidToken","message":"SECRET-auth"})");
        };
        CHECK(contains(Provider(fake.outside, fake.settings).find({}).error().what(), "HTTP status 401"));
        CHECK(calls == 1);
        fake.error();
    }
}

TEST_CASE("credentials: hostile answers of the container agent") {
    ContainerFake fake;
    fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/x";
    const std::string good = keys_json;
    std::string body;
    SECTION("empty") {}
    SECTION("cut") { body = good.substr(0, 90); }
    SECTION("an array") { body = "[" + good + "]"; }
    SECTION("huge") { body = good + std::string(1 << 20, ' '); }
    SECTION("deep") { body = std::string(60000, '['); }
    SECTION("no keys") { body = R"({"Code":"AssumeRoleUnauthorizedAccess","Message":"SECRET-x"})"; }
    SECTION("half") { body = R"({"AccessKeyId":"A","Token":"SECRET-t","Expiration":"2025-01-15T18:00:00Z"})"; }
    SECTION("wrong types") {
        body = R"({"AccessKeyId":{"a":1},"SecretAccessKey":["SECRET-x"],"Token":null,)"
               R"("Expiration":"2025-01-15T18:00:00Z"})";
    }
    SECTION("no expiry") { body = R"({"AccessKeyId":"A","SecretAccessKey":"SECRET-x","Token":"SECRET-t"})"; }
    SECTION("expired") {
        body = R"({"AccessKeyId":"A","SecretAccessKey":"SECRET-x","Token":"SECRET-t",)"
               R"("Expiration":"2025-01-15T11:00:00Z"})";
    }
    SECTION("a header in the token") {
        body = R"({"AccessKeyId":"A","SecretAccessKey":"SECRET-x","Token":"SECRET-t\r\nX-Evil: 1",)"
               R"("Expiration":"2025-01-15T18:00:00Z"})";
    }
    SECTION("NUL in the key") {
        body = R"({"AccessKeyId":"A\u0000B","SecretAccessKey":"SECRET-x","Token":"t",)"
               R"("Expiration":"2025-01-15T18:00:00Z"})";
    }
    SECTION("not UTF-8") {
        body = "{\"AccessKeyId\":\"A\xFF\",\"SecretAccessKey\":\"SECRET-x\",\"Expiration\":\"2025-01-15T18:00:00Z\"}";
    }
    SECTION("a code that forges a line") { body = R"({"Code":"a\nERROR SECRET-x"})"; }
    fake.web = [&](const WebRequest&) { return answer(200, body); };
    CHECK(contains(fake.error(), "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"));
}

// --- instance metadata ---

TEST_CASE("credentials: instance metadata, version 2") {
    Fake fake;
    fake.web = Imds();
    Provider chain(fake.outside, fake.settings);
    const Keys out = chain.find({});
    REQUIRE(out.has_value());
    CHECK(out->access_key == "ASIAROLEROLEROLE");
    CHECK(out->secret_key == "SECRET-role");
    CHECK(out->session_token == "SECRET-token");
    CHECK(out->expires == noon + 6h);
    CHECK(contains(out->source, "web-server"));
    CHECK(fake.requests.size() == 3);
    fake.told();
}

TEST_CASE("credentials: instance metadata is not asked where it cannot help") {
    Fake fake;
    fake.web = Imds();
    SECTION("disabled") { fake.env["AWS_EC2_METADATA_DISABLED"] = "True"; }
    SECTION("a store of one's own, by variable") { fake.env["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9000"; }
    SECTION("a store of one's own, by profile") { fake.config("[default]\nendpoint_url = https://r2.example.com\n"); }
    fake.error();
    CHECK(fake.requests.empty());
    fake.settings.endpoint = "https://minio.example.com";
    fake.error();
    CHECK(fake.requests.empty());
}

TEST_CASE("credentials: private endpoints of AWS are AWS") {
    Fake fake;
    fake.web = Imds();
    fake.settings.endpoint = "https://bucket.vpce-1a2b.s3.eu-west-1.vpce.amazonaws.com";
    CHECK(fake.find().has_value());
    fake.settings.endpoint = "https://amazonaws.com.example.com";
    CHECK_FALSE(fake.find().has_value());
}

TEST_CASE("credentials: an outage of instance metadata after it has answered is looked at again and again") {
    Fake fake;
    fake.web = Imds();
    Provider chain(fake.outside, fake.settings);
    REQUIRE(chain.find({}));
    fake.web = nullptr;
    CHECK_FALSE(chain.find({}));
    fake.web = Imds();
    CHECK(chain.find({}));
}

TEST_CASE("credentials: a host without instance metadata is not asked by every call, nor for more than seconds") {
    Fake fake;
    Provider provider(fake.outside, fake.settings);
    const auto none = provider.snapshot({});
    REQUIRE_FALSE(none);
    CHECK(contains(none.error().what(), "no answer"));
    for (int i = 0; i < 100; ++i) CHECK_FALSE(provider.snapshot({}));
    CHECK(fake.requests.size() == 1);
    CHECK(fake.requests[0].timeout == 1s);
    for (int second = 0; second < 600; ++second, fake.now += 1s) CHECK_FALSE(provider.snapshot({}));
    CHECK(fake.requests.size() < 70);
    fake.now += cred::retry_most_unserved;  // a host that was still booting is not lost for ever
    fake.web = Imds();
    CHECK(provider.explain()[4].verdict == Verdict::used);
    CHECK(provider.snapshot({}));
}

TEST_CASE("credentials: the files are read anew by each call") {
    Fake fake;
    fake.config("[default]\nregion = eu-north-1\nca_bundle = /etc/ca.pem\n");
    Provider chain(fake.outside, fake.settings);
    CHECK(cred::Walk(fake.outside, fake.settings).in_profile("AWS_CA_BUNDLE", "ca_bundle").value == "/etc/ca.pem");
    CHECK(cred::Walk(fake.outside, fake.settings).region()->value == "eu-north-1");
    fake.config("[default]\nregion = eu-north-2\n");
    CHECK(cred::Walk(fake.outside, fake.settings).region()->value == "eu-north-2");
    CHECK(cred::Walk(fake.outside, fake.settings).in_profile("AWS_CA_BUNDLE", "ca_bundle").value.empty());
    fake.config("junk\n");
    CHECK(cred::Walk(fake.outside, fake.settings).in_profile("AWS_CA_BUNDLE", "ca_bundle").value.empty());
}

TEST_CASE("credentials: version 1 is never used") {
    Fake fake;
    for (int status : {403, 404, 405}) {
        fake.requests.clear();
        fake.web = [status](const WebRequest& request) {
            return request.method == Method::put ? answer(status, "") : answer(200, keys_json);
        };
        CHECK_FALSE(Provider(fake.outside, fake.settings).find({}).has_value());
        CHECK(fake.requests.size() == 1);
    }
}

TEST_CASE("credentials: where instance metadata is") {
    Fake fake;
    const auto first = [&fake] {
        fake.requests.clear();
        static_cast<void>(Provider(fake.outside, fake.settings).find({}));
        return fake.requests.empty() ? WebRequest() : fake.requests[0];
    };
    CHECK(first().timeout == 1s);
    CHECK(fake.requests.size() == 1);
    fake.env["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"] = "IPv6";
    CHECK(first().url == "http://[fd00:ec2::254]/latest/api/token");
    fake.env["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = "http://localhost:1338/";
    CHECK(first().url == "http://localhost:1338/latest/api/token");
    fake.env["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = "localhost";
    CHECK(contains(fake.error(), "AWS_EC2_METADATA_SERVICE_ENDPOINT is 'localhost'"));
    fake.env.erase("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    fake.env["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"] = "six";
    CHECK(contains(fake.error(), "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE is 'six'"));
    fake.env.erase("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
    fake.config("[default]\nec2_metadata_service_endpoint_mode = ipv6\n");
    CHECK(first().url == "http://[fd00:ec2::254]/latest/api/token");
}

TEST_CASE("credentials: odd answers of instance metadata") {
    Fake fake;
    Imds imds;
    SECTION("no role") { imds.role = ""; }
    SECTION("a role with a path") { imds.role = "../../user-data"; }
    SECTION("a role with a query") { imds.role = "x?y"; }
    SECTION("an error document") { imds.keys = R"({"Code":"AssumeRoleUnauthorizedAccess","Message":"SECRET-x"})"; }
    SECTION("status") { imds.keys_status = 500; }
    SECTION("html") { imds.keys = "<html>SECRET-x</html>"; }
    SECTION("no expiry") { imds.keys = R"({"AccessKeyId":"A","SecretAccessKey":"SECRET-x","Token":"t"})"; }
    fake.web = imds;
    CHECK_FALSE(fake.error().empty());
}

TEST_CASE("credentials: overdue instance credentials are used on while their service cannot renew them") {
    Fake fake;
    fake.now = noon + 7h;
    fake.web = Imds();
    const Keys out = fake.find();
    REQUIRE(out.has_value());
    CHECK(*out->expires >= fake.now + 15min);
    CHECK(*out->expires <= fake.now + 25min);
}

// --- how long a call may wait ---

struct CancelledSoon {
    std::atomic<std::uint32_t> cancels{0};
    Limits limits{{}, &cancels, 0};
    std::thread thread{[this] {
        std::this_thread::sleep_for(20ms);
        ++cancels;
    }};
    ~CancelledSoon() { thread.join(); }
};

Limits until(std::chrono::milliseconds time) { return Limits{std::chrono::steady_clock::now() + time}; }

TEST_CASE("credentials: a call whose time is over asks nobody, and learns nothing about the sources") {
    Fake fake;
    Provider chain(fake.outside, fake.settings);
    const Keys late = chain.find(until(-1ms));
    REQUIRE_FALSE(late);
    CHECK(late.error().code() == Errc::timed_out);
    CHECK(contains(late.error().what(), "http://169.254.169.254"));
    CHECK(fake.requests.empty());
    fake.web = Imds();
    CHECK(chain.find(until(1h)));  // not taken for a host without the service
    CHECK(fake.limited);
}

TEST_CASE("credentials: a cancellation ends the attempts") {
    WebIdentityFake sts;
    ContainerFake container;
    container.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/x";
    for (Fake* fake : {static_cast<Fake*>(&sts), static_cast<Fake*>(&container)}) {
        fake->web = [](const WebRequest&) { return no_answer(); };
        const Limits cancelled_soon{{}, &fake->cancels, 0};  // by the first pause
        const Keys keys = Provider(fake->outside, fake->settings).find(cancelled_soon);
        REQUIRE_FALSE(keys);
        CHECK(keys.error().code() == Errc::cancelled);
        CHECK(fake->requests.size() == 1);
        CHECK(fake->slept == cred::between_attempts);
    }
}

TEST_CASE("credentials: an answer that came in time counts, even if the time is over then") {
    ContainerFake fake;
    fake.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/x";
    fake.web = [&](const WebRequest&) { return ++fake.cancels, answer(200, keys_json); };
    CHECK(Provider(fake.outside, fake.settings).find(Limits{{}, &fake.cancels, 0}));
}

#ifndef _WIN32
TEST_CASE("credentials: the wait for a helper program ends with the call") {
    Fake fake;
    fake.config("[default]\ncredential_process = sleep 1000\n");
    fake.real_processes = true;
    Provider chain(fake.outside, fake.settings);
    const auto began = std::chrono::steady_clock::now();
    const Keys late = chain.find(until(50ms));
    REQUIRE_FALSE(late);
    CHECK(late.error().code() == Errc::timed_out);
    CHECK(contains(late.error().what(), "credential_process sleep"));
    const Keys cancelled = chain.find(CancelledSoon().limits);
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code() == Errc::cancelled);
    CHECK(std::chrono::steady_clock::now() - began < 500s);  // and not when the helper would have ended
}
#endif

TEST_CASE("credentials: real waits end with the call") {
    cred::Environment environment;
    environment.pause(1000h, until(20ms));
    environment.pause(1000h, CancelledSoon().limits);
    environment.pause(1ms, {});
}

// --- keys that change ---

TEST_CASE("credentials: static keys that were rotated in the file are read when the store refuses the old ones") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = AKIDOLDOLDOLDOLD\naws_secret_access_key = SECRET-old\n");
    Provider provider(fake.outside, fake.settings);
    const auto old = *provider.snapshot({});
    CHECK_FALSE(provider.force_refresh(*old, {}));  // not rotated
    fake.shared("[default]\naws_access_key_id = AKIDNEWNEWNEWNEW\naws_secret_access_key = SECRET-new\n");
    CHECK((*provider.snapshot({}))->access_key == "AKIDOLDOLDOLDOLD");
    fake.now += cred::forced_again_after;
    CHECK(provider.force_refresh(*old, {}));
    CHECK((*provider.snapshot({}))->access_key == "AKIDNEWNEWNEWNEW");
}

// --- the chain as a whole ---

TEST_CASE("credentials: a source that has answered is not exchanged for another") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n");
    fake.web = Imds();
    Provider chain(fake.outside, fake.settings);
    REQUIRE(chain.find({}).has_value());
    fake.files.clear();  // as while another program rewrites it
    const Keys out = chain.find({});
    CHECK_FALSE(out.has_value());
    CHECK(contains(out.error().what(), "profile, which gave credentials before"));
    CHECK(fake.requests.empty());
    fake.shared("[default]\naws_access_key_id = AKIDOTHEROTHEROT\naws_secret_access_key = SECRET-other\n");
    CHECK(chain.find({})->access_key == "AKIDOTHEROTHEROT");
}

TEST_CASE("credentials: the explanation names each source once") {
    Fake fake;
    fake.shared("[default]\naws_access_key_id = AKIDDEFAULTDEFAU\naws_secret_access_key = SECRET-default\n");
    const auto findings = Provider(fake.outside, fake.settings).explain();
    REQUIRE(findings.size() == 5);
    CHECK(findings[0].verdict == Verdict::passed_over);
    CHECK(findings[1].verdict == Verdict::passed_over);
    CHECK(findings[2].verdict == Verdict::used);
    CHECK(contains(findings[2].text, "/home/me/.aws/credentials"));
    CHECK(contains(findings[2].text, "****EFAU"));
    CHECK(findings[3].verdict == Verdict::not_asked);
    CHECK(findings[4].verdict == Verdict::not_asked);
}

// --- the vectors ---

// As botocore calls the source that the keys came from.
std::string method_of(const std::string& source) {
    const auto begins = [&source](const char* text) { return source.rfind(text, 0) == 0; };
    if (source == "environment") return "env";
    if (begins("/home/me/.aws/credentials, ")) return "shared-credentials-file";
    if (begins("/home/me/.aws/config, ")) return "config-file";
    if (contains(source, ": credential_process ")) return "custom-process";
    return contains(source, ", role ") ? "assume-role" : "assume-role-with-web-identity";
}

// Only echo and false occur in the vectors.
Text run_vector(const std::vector<std::string>& argv) {
    if (argv[0] != "/bin/echo") return Error(Errc::credentials, "it ended with exit status 1");
    std::string result;
    for (std::size_t i = 1; i < argv.size(); ++i) result += (i == 1 ? "" : " ") + argv[i];
    return result;
}

struct VectorFake : Fake {
    explicit VectorFake(const vectors::Case& c) {
        if (c.has("config")) config(c.get("config"));
        if (c.has("credentials")) shared(c.get("credentials"));
        for (const auto& row : c.rows("env")) env[row.at(0)] = row.size() > 1 ? row[1] : std::string();
        files.insert({{"/home/me/.aws/config", std::string()}, {"/home/me/.aws/credentials", std::string()}});
        other_files = std::string("SECRET-jwt");
        program = run_vector;
        web = [](const WebRequest& request) {
            if (!contains(request.url, "sts")) return no_answer();
            const bool web_identity = contains(request.body, "AssumeRoleWithWebIdentity");
            return answer(200, sts_answer(web_identity ? "AssumeRoleWithWebIdentity" : "AssumeRole"));
        };
    }
};

std::string error_name(const std::string& message) {
    if (contains(message, "there is no profile")) return "ProfileNotFound";
    return contains(message, "/home/me/.aws/") ? "ConfigParseError" : "InvalidConfigError";
}

// This library reads AWS_REGION, as most SDKs do, and before the name that botocore knows.
std::string expected_region(const vectors::Case& c, const Fake& fake) {
    const auto region = fake.env.find("AWS_REGION");
    return region != fake.env.end() && !region->second.empty() ? region->second : c.get_or("region", "");
}

void check_keys(const vectors::Case& c, const Keys& keys) {
    const std::string method = c.get_or("method", "");
    const bool empty = c.get_or("access_key", "").empty() && method.rfind("assume-role", 0) != 0;
    INFO((keys ? keys->source : keys.error().what()));
    REQUIRE(keys.has_value() == !(method.empty() || empty));  // botocore signs with empty keys; here they are refused
    if (!keys) {
        if (method == "shared-credentials-file") CHECK(contains(keys.error().what(), "/home/me/.aws/credentials"));
        return;
    }
    CHECK(method_of(keys->source) == method);
    if (empty || method.rfind("assume-role", 0) == 0) return;  // STS gave these
    CHECK(keys->access_key == c.get("access_key"));
    CHECK(keys->secret_key == c.get("secret_key"));
    CHECK(keys->session_token == c.get_or("token", ""));
}

void check_aws_config(const vectors::Case& c) {
    VectorFake fake(c);
    Provider chain(fake.outside, fake.settings);
    // The parser's dialect knows no byte order mark, as botocore; whoever opens the files takes it off.
    const bool parses = s3cache::detail::ini::Parser().parse(c.get_or("config", ""), "file").has_value() &&
                        s3cache::detail::ini::Parser().parse(c.get_or("credentials", ""), "file").has_value();
    CHECK(parses == (c.get_or("error", "") != "ConfigParseError"));
    const bool marked = contains(c.get_or("config", "") + c.get_or("credentials", ""), "\xEF\xBB\xBF");
    if (!parses && marked) return;
    if (c.has("error")) {
        const auto endpoint = cred::Walk(fake.outside, fake.settings).endpoint_url("S3");
        REQUIRE_FALSE(endpoint);
        CHECK(error_name(endpoint.error().what()) == c.get("error"));
        return;
    }
    CHECK(cred::Walk(fake.outside, fake.settings).chosen_profile().value == c.get_or("profile", "default"));
    check_keys(c, chain.find({}));
    const auto region = cred::Walk(fake.outside, fake.settings).region();
    const std::string expected = expected_region(c, fake);
    const bool valid = expected.empty() || s3cache::detail::endpoint::valid_region(expected);
    REQUIRE(region.has_value() == valid);
    if (valid) CHECK(region->value == expected);
    const auto endpoint = cred::Walk(fake.outside, fake.settings).endpoint_url("S3");
    REQUIRE(endpoint);
    CHECK(endpoint->value == c.get_or("endpoint_url", ""));
}

const vectors::Handler aws_config_vectors{"aws_config",
                                          {"config", "credentials", "env", "profile", "region", "endpoint_url",
                                           "method", "access_key", "secret_key", "token", "error", "note"},
                                          check_aws_config};

#endif  // S3CACHE_NO_CREDENTIAL_CHAIN

std::string text_of(const Result<cred::Setting>& setting) {
    check_text(setting ? setting->why : setting.error().what());
    return setting ? setting->value : setting.error().what();
}

TEST_CASE("credentials: those of STS come whole or not at all") {
    const auto answer = [](const std::string& keys) {
        return "<AssumeRoleResponse xmlns='x'><AssumeRoleResult><Credentials>" + keys +
               "</Credentials></AssumeRoleResult></AssumeRoleResponse>";
    };
    const std::string keys =
        "<AccessKeyId>A</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>";
    const std::string expiration = "<Expiration>2025-01-15T00:00:00Z</Expiration>";
    const auto full = cred::keys_in_xml(answer(keys + expiration), "AssumeRole", "here");
    REQUIRE(full);
    CHECK(full->access_key == "A");
    CHECK(full->secret_key == "S");
    CHECK(full->session_token == "T");
    CHECK(full->expires == noon - 12h);
    CHECK(full->source == "here");
    CHECK_FALSE(cred::keys_in_xml(answer(keys), "AssumeRole", "here"));
    CHECK_FALSE(cred::keys_in_xml(answer(keys + expiration), "AssumeRoleWithWebIdentity", "here"));
}

TEST_CASE("credentials: region") {
    Fake fake;
    const auto region = [&fake] { return text_of(cred::Walk(fake.outside, fake.settings).region()); };
    CHECK(region().empty());
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    fake.config("[default]\nregion = eu-north-1\n");
    CHECK(region() == "eu-north-1");
    CHECK(cred::Walk(fake.outside, fake.settings).region()->why == "profile default: region");
    fake.config("[default]\nregion = a\n  b\n");
    CHECK(contains(region(), "profile default: region is 'a\\x0ab'"));
#endif
    fake.env["AWS_DEFAULT_REGION"] = "eu-west-2";
    CHECK(region() == "eu-west-2");
    fake.env["AWS_REGION"] = "eu-west-1";
    CHECK(region() == "eu-west-1");
    fake.env["AWS_REGION"] = "evil.example.com/";
    CHECK(contains(region(), "AWS_REGION is 'evil.example.com/', expected"));
    fake.settings.region = "auto";
    CHECK(region() == "auto");
}

TEST_CASE("credentials: endpoint") {
    Fake fake;
    const auto endpoint = [&fake] { return text_of(cred::Walk(fake.outside, fake.settings).endpoint_url("S3")); };
    CHECK(endpoint().empty());
#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
    fake.config("[default]\nendpoint_url = http://profile:1\n");
    CHECK(endpoint() == "http://profile:1");
    fake.config(
        "[default]\nservices = mine\nendpoint_url = http://profile:1\n\n[services mine]\ns3 =\n  endpoint_url = "
        "http://services:2\nsts =\n  endpoint_url = http://sts:2\n");
    CHECK(endpoint() == "http://services:2");
#endif
    fake.env["AWS_ENDPOINT_URL"] = "http://all:3";
    CHECK(endpoint() == "http://all:3");
    fake.env["AWS_ENDPOINT_URL_S3"] = "http://s3:4";
    CHECK(endpoint() == "http://s3:4");
    fake.env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true";
    CHECK(endpoint().empty());
    fake.env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "false";
    fake.env["AWS_ENDPOINT_URL_S3"] = "https://key:SECRET-pw@s3.example.com/?token=SECRET-q";
    CHECK(contains(endpoint(), "AWS_ENDPOINT_URL_S3 is '"));
    CHECK(contains(endpoint(), "@s3.example.com'"));
    for (const char* url : {"http//key:SECRET-pw@s3.example.com", "http:/key:SECRET-pw@s3.example.com/p",
                            "key:SECRET-/pw@s3.example.com", "http://key:SECRET-?x@s3.example.com#SECRET-y",
                            "https://s3.example.com/?mail=a@s3.example.com&token=SECRET-z"}) {
        INFO(url);
        fake.env["AWS_ENDPOINT_URL_S3"] = url;
        CHECK(contains(endpoint(), "AWS_ENDPOINT_URL_S3 is '******@s3.example.com', expected"));
        Provider chain(fake.outside, fake.settings);
        for (const Finding& finding : chain.explain()) check_text(finding.text);
    }
}

TEST_CASE("credentials: keys and secrets are masked in messages") {
    CHECK(cred::summary({"short", {}, {}, {}, "here"}) == "here: access key ****, no expiry");
    CHECK(cred::summary({"AKIAIOSFODNN7EXAMPLE", {}, {}, noon, "here"}) ==
          "here: access key ****MPLE, until 2025-01-15T12:00:00Z");
}

// --- the cache of credentials ---

// A source that hands out new keys each time, valid for `life`, unless it is out of order.
struct Issuer {
    TimePoint now = noon;
    std::chrono::seconds life = 1h;
    bool out_of_order = false;
    int calls = 0;

    Keys operator()() {
        ++calls;
        if (out_of_order) return Error(Errc::credentials, "the source is out of order");
        Credentials keys;
        keys.access_key = "ASIA" + std::to_string(calls);
        keys.secret_key = "SECRET-" + std::to_string(calls);
        keys.expires = now + life;
        return keys;
    }
};

// A provider on a source and a clock of the test.
struct OwnOutside : cred::Environment {
    OwnOutside(std::function<Keys()> source, std::function<TimePoint()> time) : clock(std::move(time)) {
        settings.credentials = std::move(source);
    }
    TimePoint now() const override { return clock(); }

    std::function<TimePoint()> clock;
    s3cache::Config settings{};
};
struct OwnProvider : OwnOutside, Provider {
    OwnProvider(std::function<Keys()> source, std::function<TimePoint()> time)
        : OwnOutside(std::move(source), std::move(time)), Provider(*this, settings) {}
};

std::string why(Provider& provider) {
    const auto got = provider.snapshot({});
    return got ? std::string() : got.error().what();
}

#define ISSUER_PROVIDER(name) OwnProvider name([&] { return issuer(); }, [&] { return issuer.now; })

TEST_CASE("credentials: a day of hourly expiry passes without a failure or a needless renewal") {
    Issuer issuer;
    ISSUER_PROVIDER(provider);
    for (int second = 0; second < 24 * 3600; second += 7) {
        issuer.now = noon + std::chrono::seconds(second);
        const auto got = provider.snapshot({});
        REQUIRE(got.has_value());
        REQUIRE(*(*got)->expires > issuer.now);
    }
    CHECK(issuer.calls == 32);  // one each 45 minutes: a quarter of an hour ahead of the expiry
}

TEST_CASE("credentials: short lives are not renewed at each request") {
    Issuer issuer;
    issuer.life = 5min;
    ISSUER_PROVIDER(provider);
    for (int second = 0; second < 3600; ++second) {
        issuer.now = noon + std::chrono::seconds(second);
        REQUIRE(provider.snapshot({}).has_value());
    }
    CHECK(issuer.calls <= 20);
    CHECK(issuer.calls >= 12);
}

TEST_CASE("credentials: the same keys handed out again are no new generation, and not asked for all the time") {
    Issuer issuer;
    Credentials keys;
    keys.access_key = "ASIA";
    keys.secret_key = "SECRET-same";
    keys.expires = noon + 1h;
    int calls = 0;
    OwnProvider provider(
        [&] {
            ++calls;
            return Keys(keys);
        },
        [&] { return issuer.now; });
    for (int second = 0; second < 3590; ++second) {
        issuer.now = noon + std::chrono::seconds(second);
        REQUIRE((*provider.snapshot({}))->access_key == "ASIA");
    }
    CHECK(calls < 10);
}

TEST_CASE("credentials: an outage of the source leaves valid keys in use, and the source in peace") {
    Issuer issuer;
    ISSUER_PROVIDER(provider);
    REQUIRE(provider.snapshot({}).has_value());
    issuer.out_of_order = true;
    int calls_at_expiry = 0;
    for (int second = 0; second < 3600; ++second) {
        issuer.now = noon + std::chrono::seconds(second);
        const auto got = provider.snapshot({});
        REQUIRE(got.has_value());
        CHECK((*got)->access_key == "ASIA1");
        calls_at_expiry = issuer.calls;
    }
    CHECK(calls_at_expiry > 5);
    CHECK(calls_at_expiry < 40);

    issuer.now = noon + 1h;
    CHECK(why(provider) == "the source is out of order");
    issuer.out_of_order = false;
    issuer.now += 70s;
    CHECK((*provider.snapshot({}))->access_key != "ASIA1");
}

TEST_CASE("credentials: a source that has nothing is not asked by every request") {
    Issuer issuer;
    issuer.out_of_order = true;
    ISSUER_PROVIDER(provider);
    for (int i = 0; i < 1000; ++i) CHECK(why(provider) == "the source is out of order");
    CHECK(issuer.calls == 1);
    issuer.now += 1s;
    issuer.out_of_order = false;
    CHECK(provider.snapshot({}).has_value());
}

TEST_CASE("credentials: a clock set back does not turn patience into a standstill") {
    Issuer issuer;
    issuer.out_of_order = true;
    ISSUER_PROVIDER(provider);
    issuer.now = noon + 24h;
    CHECK_FALSE(provider.snapshot({}).has_value());
    issuer.now = noon;
    issuer.out_of_order = false;
    CHECK(provider.snapshot({}).has_value());
}

TEST_CASE("credentials: keys that are refused as expired are renewed once") {
    Issuer issuer;
    ISSUER_PROVIDER(provider);
    const auto first = *provider.snapshot({});
    CHECK(provider.force_refresh(*first, {}));
    const auto second = *provider.snapshot({});
    CHECK(second->access_key == "ASIA2");
    CHECK(first->access_key == "ASIA1");        // the old snapshot is whole for whoever still holds it
    CHECK(provider.force_refresh(*first, {}));  // somebody else was late: they have been renewed
    CHECK(issuer.calls == 2);
    issuer.out_of_order = true;
    for (int i = 0; i < 100; ++i) CHECK_FALSE(provider.force_refresh(*second, {}));
    CHECK(issuer.calls == 3);
    CHECK((*provider.snapshot({}))->access_key == "ASIA2");
}

TEST_CASE("credentials: forcing static keys gains nothing and says so") {
    Credentials keys{"AKID", "SECRET-static", {}, {}, "code"};
    int calls = 0;
    OwnProvider provider(
        [&] {
            ++calls;
            return Keys(keys);
        },
        [] { return noon; });
    const auto got = provider.snapshot({});
    REQUIRE(got.has_value());
    CHECK_FALSE(provider.force_refresh(**got, {}));
    CHECK((*provider.snapshot({}))->access_key == "AKID");
    CHECK(calls == 2);
}

TEST_CASE("credentials: what a user's function returns is checked like everything else") {
    Credentials keys{"AKID", "SECRET-mine", {}, {}, "my vault"};
    std::string part;
    SECTION("half") {
        keys.secret_key.clear();
        part = "my vault: the access key is set but the secret key is not";
    }
    SECTION("line break") {
        keys.session_token = "SECRET-a\r\nX: 1";
        part = "my vault: the session token contains a line break";
    }
    SECTION("expired") {
        keys.expires = noon;
        part = "my vault: the credentials expired";
    }
    OwnProvider provider([&] { return Keys(keys); }, [] { return noon; });
    const auto got = provider.snapshot({});
    CHECK_FALSE(got.has_value());
    CHECK(contains(got.error().what(), part));
    check_text(got.error().what());
}

TEST_CASE("credentials: an empty function as provider is an error, not the chain") {
    using s3cache::CredentialsProvider;
    Keys (*none)() = nullptr;
    for (const CredentialsProvider& provider :
         {CredentialsProvider(std::function<Keys()>()), CredentialsProvider(std::function<Credentials()>()),
          CredentialsProvider(none)}) {
        CHECK(provider);
        const Keys keys = provider();
        REQUIRE_FALSE(keys);
        CHECK(keys.error().code() == Errc::credentials);
    }
    CHECK_FALSE(CredentialsProvider());
    CHECK(CredentialsProvider([] { return Keys(Credentials{"A", "SECRET-x", {}, {}, {}}); })()->access_key == "A");
}

TEST_CASE("credentials: empty ones are anonymous") {
    OwnProvider provider([] { return Keys(Credentials()); }, [] { return noon; });
    REQUIRE(provider.snapshot({}).has_value());
    CHECK((*provider.snapshot({}))->access_key.empty());
}

TEST_CASE("credentials: extreme expiries overflow nothing") {
    for (const TimePoint when : {(TimePoint::max)(), noon + TimePoint::duration(1)}) {
        Credentials keys{"AKID", "SECRET-x", {}, when, ""};
        int calls = 0;
        OwnProvider provider(
            [&] {
                ++calls;
                return Keys(keys);
            },
            [] { return noon; });
        CHECK(provider.snapshot({}).has_value());
        CHECK(calls == 1);
    }
    Credentials keys{"AKID", "SECRET-x", {}, (TimePoint::min)(), ""};
    OwnProvider provider([&] { return Keys(keys); }, [] { return noon; });
    CHECK_FALSE(provider.snapshot({}).has_value());
}

// A gate that holds the source until the test lets it go.
class Gate {
public:
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        ++waiting_;
        changed_.notify_all();
        changed_.wait(lock, [this] { return open_; });
    }
    void await_waiter() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return waiting_ > 0; });
    }
    void open() {
        const std::lock_guard<std::mutex> lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int waiting_ = 0;
    bool open_ = false;
};

TEST_CASE("credentials: one thread renews while the others go on") {
    Gate gate;
    std::atomic<int> calls{0};
    std::atomic<long> minutes{0};
    const auto now = [&] { return noon + std::chrono::minutes(minutes.load()); };
    OwnProvider provider(
        [&] {
            if (++calls > 1) gate.wait();
            return Keys(Credentials{"ASIA" + std::to_string(calls), "SECRET-x", {}, now() + 1h, ""});
        },
        now);
    REQUIRE(provider.snapshot({}).has_value());
    minutes = 47;
    std::thread renewing([&] { static_cast<void>(provider.snapshot({})); });
    gate.await_waiter();
    for (int i = 0; i < 100; ++i)
        CHECK((*provider.snapshot({}))->access_key == "ASIA1");  // would hang here if it waited
    gate.open();
    renewing.join();
    CHECK((*provider.snapshot({}))->access_key == "ASIA2");
    CHECK(calls == 2);
}

TEST_CASE("credentials: who waits for another thread's renewal goes when the own call's time is over") {
    Gate gate;
    std::atomic<long> minutes{0};
    std::atomic<int> calls{0};
    const auto now = [&] { return noon + std::chrono::minutes(minutes.load()); };
    OwnProvider provider(
        [&]() -> Keys {
            const int call = ++calls;
            gate.wait();
            return Credentials{"ASIA" + std::to_string(call), "SECRET-x", {}, now() + 1h, ""};
        },
        now);
    std::thread first([&] { static_cast<void>(provider.snapshot({})); });
    gate.await_waiter();
    const auto late = provider.snapshot(Limits{std::chrono::steady_clock::now() + 20ms});
    REQUIRE_FALSE(late);
    CHECK(late.error().code() == Errc::timed_out);
    const auto cancelled = provider.snapshot(CancelledSoon().limits);
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code() == Errc::cancelled);
    CHECK_FALSE(provider.force_refresh(Credentials(), Limits{std::chrono::steady_clock::now()}));
    gate.open();
    first.join();
    CHECK((*provider.snapshot({}))->access_key == "ASIA1");
    CHECK(calls == 1);
}

TEST_CASE("credentials: a refresh that the caller had no time for is no failure of the source") {
    int calls = 0;
    TimePoint now = noon;
    const Limits over{std::chrono::steady_clock::now()};
    const Limits* limits = &over;  // what the source runs into
    OwnProvider provider(
        [&]() -> Keys {
            ++calls;
            if (limits) return limits->error("it was asked");
            return Credentials{"ASIA" + std::to_string(calls), "SECRET-x", {}, now + 1h, ""};
        },
        [&] { return now; });
    for (int i = 0; i < 3; ++i) {
        const auto late = provider.snapshot(over);
        REQUIRE_FALSE(late);
        CHECK(late.error().code() == Errc::timed_out);
    }
    limits = nullptr;
    CHECK(provider.snapshot({}));  // at once, without a pause after failures
    CHECK(calls == 4);
    now += 50min;
    limits = &over;
    CHECK((*provider.snapshot(over))->access_key == "ASIA4");  // keys that are still good are served
    limits = nullptr;
    CHECK((*provider.snapshot({}))->access_key == "ASIA6");
}

TEST_CASE("credentials: many threads that need the first keys cause one call") {
    Gate gate;
    std::atomic<int> calls{0};
    OwnProvider provider(
        [&] {
            ++calls;
            gate.wait();
            return Keys(Credentials{"ASIA", "SECRET-x", {}, {}, ""});
        },
        [] { return noon; });
    std::atomic<int> served{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) threads.emplace_back([&] { served += provider.snapshot({}) ? 1 : 0; });
    gate.await_waiter();
    gate.open();
    for (std::thread& thread : threads) thread.join();
    CHECK(served == 8);
    CHECK(calls == 1);
}

TEST_CASE("credentials: a source that throws, whose exception passes but for the user's own, blocks nobody after it") {
    Fake fake;
    bool throws = true;
    Provider provider(fake.outside, fake.settings);
    SECTION("a user's own, whose exception becomes an error") {
        fake.settings.credentials = [&]() -> Keys {
            if (throws) throw std::runtime_error("no vault");
            return Credentials{"ASIA", "SECRET-x", {}, {}, ""};
        };
        CHECK(why(provider) == "the credentials provider threw: no vault");
        fake.now += 1s;
    }
    SECTION("the chain") {
        fake.settings.seams.environment = [&](const char* name) -> std::optional<std::string> {
            if (throws) throw std::bad_alloc();
            if (!contains(name, "ACCESS_KEY")) return std::nullopt;
            return name;
        };
        CHECK_THROWS_AS(provider.snapshot({}), std::bad_alloc);
    }
    throws = false;
    CHECK(provider.snapshot({}).has_value());
}

#ifndef S3CACHE_NO_CREDENTIAL_CHAIN
TEST_CASE("credentials: a day on an instance, through the provider") {
    Fake fake;
    Imds imds;
    bool imds_is_there = true;
    fake.web = [&](const WebRequest& request) {
        if (!imds_is_there) return no_answer();
        // New keys each hour on the hour, valid for six hours, as the service hands them out.
        const auto hours = std::chrono::duration_cast<std::chrono::hours>(fake.now - noon).count();
        const auto until = std::chrono::duration_cast<std::chrono::seconds>(
            (noon + std::chrono::hours(hours) + 6h).time_since_epoch());
        imds.keys = R"({"Code":"Success","AccessKeyId":"ASIA)" + std::to_string(hours) +
                    R"(","SecretAccessKey":"SECRET-x","Token":"SECRET-y","Expiration":")" +
                    s3cache::detail::dates::iso8601_text(s3cache::TimePoint(until)) + R"("})";
        return imds(request);
    };
    Provider provider(fake.outside, fake.settings);
    for (int minute = 0; minute < 24 * 60; ++minute) {
        fake.now = noon + std::chrono::minutes(minute);
        const bool outage = minute > 640 && minute < 660;  // about the last quarter of an hour of the second keys
        imds_is_there = !outage;
        REQUIRE(provider.snapshot({}).has_value());
    }
    CHECK(fake.requests.size() < 50);
}
#endif

}  // namespace
