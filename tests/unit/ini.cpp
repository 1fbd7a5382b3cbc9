// Section ini.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ini = s3cache::detail::ini;
namespace json = s3cache::detail::json;

namespace {

using Variables = std::map<std::string, std::string>;

ini::Outcome resolve(const std::string& config, const std::string& credentials, const Variables& variables = {},
                     const std::string& profile = {}) {
    ini::Inputs inputs;
    inputs.config = config;
    inputs.credentials = credentials;
    inputs.profile = profile;
    inputs.environment = [&variables](const char* name) -> std::optional<std::string> {
        const auto at = variables.find(name);
        if (at == variables.end()) return std::nullopt;
        return at->second;
    };
    return ini::resolve(inputs);
}

Variables variables_of(const vectors::Case& c) {
    Variables out;
    for (const auto& row : c.rows("env")) out[row.at(0)] = row.size() > 1 ? row[1] : std::string();
    return out;
}

std::string error_name(ini::Trouble trouble) {
    switch (trouble) {
    case ini::Trouble::file:
        return "ConfigParseError";
    case ini::Trouble::profile:
        return "ProfileNotFound";
    case ini::Trouble::settings:
        return "InvalidConfigError";
    }
    return {};
}

// The vectors say what came out of the process, so it is run here: only echo and false occur in them.
std::optional<s3cache::Credentials> run_process(const std::string& command) {
    const auto words = ini::split_words(command);
    if (!words || words->empty() || (*words)[0] != "/bin/echo") return std::nullopt;
    std::string output;
    for (std::size_t i = 1; i < words->size(); ++i) output += (i == 1 ? "" : " ") + (*words)[i];
    const auto access_key = json::string_field(output, "AccessKeyId");
    const auto secret_key = json::string_field(output, "SecretAccessKey");
    if (json::number_field(output, "Version") != "1" || !access_key || !secret_key) return std::nullopt;
    s3cache::Credentials keys;
    keys.access_key = *access_key;
    keys.secret_key = *secret_key;
    keys.session_token = json::string_field(output, "SessionToken").value_or("");
    return keys;
}

struct Login {
    std::string method;
    s3cache::Credentials keys;
};

// What is left once the sources that this section only names have been asked; no network is there to be asked.
Login login_of(const ini::Resolved& resolved) {
    if (resolved.credentials_problem || resolved.method == ini::Method::nothing) return {};
    const bool by_role = resolved.method == ini::Method::role;
    Login login{std::string(ini::method_name(resolved.method)),
                by_role ? s3cache::Credentials() : resolved.source.keys};
    if (by_role && !resolved.source.credential_source.empty()) return {};
    if (resolved.source.method != ini::Method::process) return login;
    const auto keys = run_process(resolved.source.process);
    if (!keys) return {};
    if (!by_role) login.keys = *keys;
    return login;
}

// This library reads AWS_REGION, as most SDKs do, and before the name that botocore knows.
std::string expected_region(const vectors::Case& c, const Variables& variables) {
    const auto region = variables.find("AWS_REGION");
    if (region != variables.end() && !region->second.empty()) return region->second;
    return c.get_or("region", "");
}

void check_aws_config(const vectors::Case& c) {
    const Variables variables = variables_of(c);
    const auto outcome = resolve(c.get_or("config", ""), c.get_or("credentials", ""), variables);
    if (c.has("error")) {
        REQUIRE(outcome.problem);
        CHECK(error_name(outcome.problem->trouble) == c.get("error"));
        CHECK_FALSE(outcome.problem->where.empty());
        CHECK_FALSE(outcome.problem->message.empty());
        return;
    }
    REQUIRE(outcome.resolved);
    const ini::Resolved& resolved = *outcome.resolved;
    CHECK(resolved.profile == c.get_or("profile", "default"));
    CHECK(resolved.region == expected_region(c, variables));
    CHECK(resolved.endpoint_url == c.get_or("endpoint_url", ""));
    const Login login = login_of(resolved);
    CHECK(login.method == c.get_or("method", ""));
    CHECK(login.keys.access_key == c.get_or("access_key", ""));
    CHECK(login.keys.secret_key == c.get_or("secret_key", ""));
    CHECK(login.keys.session_token == c.get_or("token", ""));
}

const vectors::Handler aws_config_vectors{"aws_config",
                                          {"config", "credentials", "env", "profile", "region", "endpoint_url",
                                           "method", "access_key", "secret_key", "token", "error", "note"},
                                          check_aws_config};

std::string problem_in(const std::string& text) {
    const auto parsed = ini::parse(text);
    if (parsed.file) return "none";
    return std::to_string(parsed.line) + ": " + parsed.message;
}

const std::string keys = "aws_access_key_id = AKID\naws_secret_access_key = SECRET\n";
const std::string role = "role_arn = arn:aws:iam::1:role/r\n";

std::string credentials_problem(const std::string& config, const Variables& variables = {}) {
    const auto outcome = resolve(config, "", variables);
    REQUIRE(outcome.resolved);
    const auto& problem = outcome.resolved->credentials_problem;
    return problem ? problem->where + ": " + problem->message : "none";
}

}  // namespace

TEST_CASE("ini: settings, blocks and values of several lines") {
    const auto parsed = ini::parse(
        "; c\n[a]\nX = 1 # kept\ny: \"q\"\ns3 =\n  Path = b = c\n  # no\n  n=\nz = 1\n  2\n\n  3\n\n[b c]\n");
    REQUIRE(parsed.file);
    REQUIRE(parsed.file->size() == 2);
    const ini::Section& a = parsed.file->at(0).entries;
    CHECK(ini::text_of(a, "x") == "1 # kept");
    CHECK(ini::text_of(a, "y") == "\"q\"");
    CHECK(ini::text_of(a, "z") == "1\n2\n\n3");
    CHECK(ini::text_of(a, "s3").empty());
    CHECK(a.find("s3")->second.block == ini::Block{{"Path", "b = c"}, {"n", ""}});
    CHECK(a.find("s3")->second.line == 5);
    CHECK(parsed.file->at(1).name == "b c");
}

TEST_CASE("ini: an error names the line") {
    CHECK(problem_in("[a]\nx = 1\njunk\n") == "3: a line without '=' or ':'");
    CHECK(problem_in("x = 1\n") == "1: a setting before the first [section]");
    CHECK(problem_in("\xEF\xBB\xBF[a]\n").substr(0, 2) == "1:");
    CHECK(problem_in("[a]\nx=1\nX=2\n") == "3: setting 'x' comes twice in its section");
    CHECK(problem_in("[a]\r\n[b]\r\n[a]\r\n") == "3: section [a] comes twice");
    CHECK(problem_in("[a]\n= 1\n") == "2: a setting without a name");
    CHECK(problem_in("[a]\nx = \xFF\n") == "2: not UTF-8 text");
    CHECK(problem_in("[a]\ny=1\ns3 =\n  p = 1\n  q\n") == "3: a line without '=' in the block under 's3'");
    CHECK(problem_in(std::string(ini::file_bytes_max + 1, '\n')).substr(0, 2) == "0:");
    CHECK(problem_in("") == "none");
}

TEST_CASE("ini: the section DEFAULT lends its settings to all others") {
    const auto parsed = ini::parse("[DEFAULT]\nr = 1\nq = 2\n[a]\nq = 3\n[DEFAULT]\ns = 4\n");
    REQUIRE(parsed.file);
    REQUIRE(parsed.file->size() == 1);
    const ini::Section& a = parsed.file->at(0).entries;
    CHECK(ini::text_of(a, "r") == "1");
    CHECK(ini::text_of(a, "q") == "3");
    CHECK(ini::text_of(a, "s") == "4");
}

TEST_CASE("ini: lines end in LF, CR LF or CR") {
    for (const char* end : {"\n", "\r\n", "\r"}) {
        const auto parsed = ini::parse(std::string("[a]") + end + "x = 1" + end + " 2" + end + "y = 3");
        REQUIRE(parsed.file);
        CHECK(ini::text_of(parsed.file->at(0).entries, "x") == "1\n2");
        CHECK(ini::text_of(parsed.file->at(0).entries, "y") == "3");
    }
}

TEST_CASE("ini: words are split as by a shell, without expansion") {
    using Words = std::vector<std::string>;
    CHECK(ini::split_words("") == Words{});
    CHECK(ini::split_words("  a\tb  ") == Words{"a", "b"});
    CHECK(ini::split_words("a\\ b 'c \\ d' \"e \\\" \\n \\\\\" ''") == Words{"a b", "c \\ d", "e \" \\n \\", ""});
    CHECK(ini::split_words("x'y'\"z\" $HOME *") == Words{"xyz", "$HOME", "*"});
    CHECK_FALSE(ini::split_words("'a"));
    CHECK_FALSE(ini::split_words("\"a"));
    CHECK_FALSE(ini::split_words("a\\"));
}

TEST_CASE("ini: a profile that someone asked for must exist, the default one need not") {
    CHECK(resolve("", "").resolved->method == ini::Method::nothing);
    for (const char* name : {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"}) {
        const auto outcome = resolve("", "[a]\n" + keys, {{name, "b"}});
        REQUIRE(outcome.problem);
        CHECK(outcome.problem->where == name);
        CHECK(outcome.problem->message == "there is no profile 'b'");
    }
    CHECK(resolve("", "[a]\n" + keys, {}, "b").problem);
}

TEST_CASE("ini: a profile named in code keeps the environment's keys out") {
    const Variables variables{{"AWS_ACCESS_KEY_ID", "E"}, {"AWS_SECRET_ACCESS_KEY", "ES"}, {"AWS_PROFILE", "other"}};
    const auto outcome = resolve("", "[a]\n" + keys, variables, "a");
    REQUIRE(outcome.resolved);
    CHECK(outcome.resolved->profile == "a");
    CHECK(outcome.resolved->method == ini::Method::credentials_file);
    CHECK(outcome.resolved->source.keys.access_key == "AKID");
    CHECK(outcome.resolved->source.keys.source == "the credentials file, profile a");
}

TEST_CASE("ini: half of a pair of keys names itself") {
    CHECK(credentials_problem("", {{"AWS_ACCESS_KEY_ID", "E"}}) ==
          "AWS_SECRET_ACCESS_KEY: is not set although AWS_ACCESS_KEY_ID is");
    CHECK(credentials_problem("[default]\naws_access_key_id = E\n") ==
          "the config file, profile default: aws_access_key_id is set but aws_secret_access_key is not");
}

TEST_CASE("ini: keys of the environment may expire") {
    Variables variables{{"AWS_ACCESS_KEY_ID", "E"},
                        {"AWS_SECRET_ACCESS_KEY", "S"},
                        {"AWS_CREDENTIAL_EXPIRATION", "2030-01-01T00:00:00Z"}};
    const auto outcome = resolve("", "", variables);
    REQUIRE(outcome.resolved);
    CHECK(outcome.resolved->source.keys.expires);
    variables["AWS_CREDENTIAL_EXPIRATION"] = "tomorrow";
    CHECK(credentials_problem("", variables) ==
          "AWS_CREDENTIAL_EXPIRATION: is not a time such as 2025-01-15T12:34:56Z");
}

TEST_CASE("ini: roles are listed in the order in which they are assumed") {
    const auto outcome = resolve(
        "[default]\nrole_arn = outer\nsource_profile = mid\nexternal_id = x\nduration_seconds = 900\n"
        "[profile mid]\nrole_arn = inner\nsource_profile = base\nrole_session_name = me\nmfa_serial = m\n",
        "[base]\n" + keys);
    REQUIRE(outcome.resolved);
    CHECK_FALSE(outcome.resolved->credentials_problem);
    const auto& roles = outcome.resolved->roles;
    REQUIRE(roles.size() == 2);
    CHECK(roles[0].role_arn == "inner");
    CHECK(roles[0].session_name == "me");
    CHECK(roles[0].mfa_serial == "m");
    CHECK(roles[0].profile == "mid");
    CHECK(roles[1].role_arn == "outer");
    CHECK(roles[1].external_id == "x");
    CHECK(roles[1].duration_seconds == "900");
    CHECK(outcome.resolved->source.method == ini::Method::credentials_file);
    CHECK(outcome.resolved->source.keys.secret_key == "SECRET");
}

TEST_CASE("ini: a role needs one source that leads somewhere") {
    CHECK(credentials_problem("[default]\n" + role).find("and not both") != std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "source_profile = nope\n").find("nope does not exist") !=
          std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "source_profile = default\n").find("circle") != std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "source_profile = a\n[profile a]\n" + role +
                              "source_profile = default\n")
              .find("circle") != std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "source_profile = a\n[profile a]\nregion = r\n")
              .find("no credentials") != std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "source_profile = default\n" + keys) == "none");
    CHECK(credentials_problem("[default]\n" + role + "credential_source = Environment\n").find("AWS_ACCESS_KEY_ID") !=
          std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "credential_source = elsewhere\n").find("must be") !=
          std::string::npos);
    CHECK(credentials_problem("[default]\n" + role + "credential_source = Ec2InstanceMetadata\n") == "none");
}

TEST_CASE("ini: a web identity needs its role, from the environment or the profile") {
    const auto outcome = resolve("[default]\n" + role + "web_identity_token_file = /t\nrole_session_name = s\n", "",
                                 {{"AWS_ROLE_ARN", "arn:env"}});
    REQUIRE(outcome.resolved);
    CHECK(outcome.resolved->method == ini::Method::web_identity);
    CHECK(outcome.resolved->source.web_identity.role_arn == "arn:env");
    CHECK(outcome.resolved->source.web_identity.token_file == "/t");
    CHECK(outcome.resolved->source.web_identity.session_name == "s");
    CHECK(credentials_problem("", {{"AWS_WEB_IDENTITY_TOKEN_FILE", "/t"}}) ==
          "/t: a web identity token needs a role_arn");
}

TEST_CASE("ini: sso is refused with a way out") {
    CHECK(credentials_problem("[default]\nsso_account_id = 1\nsso_role_name = r\n" + keys).find("export-credentials") !=
          std::string::npos);
}

TEST_CASE("ini: no problem text holds a secret") {
    const auto outcome = resolve("[default]\naws_secret_access_key = HUSH\naws_session_token = HUSH\njunk HUSH\n", "");
    REQUIRE(outcome.problem);
    CHECK(outcome.problem->message.find("HUSH") == std::string::npos);
}

TEST_CASE("ini: where the endpoint comes from, first to last") {
    const std::string config =
        "[default]\nservices = v\nendpoint_url = http://profile\n[services v]\ns3 =\n  endpoint_url = http://service\n";
    Variables variables{{"AWS_ENDPOINT_URL_S3", "http://own"},
                        {"AWS_ENDPOINT_URL", "http://all"},
                        {"AWS_ENDPOINT_URL_STS", "http://sts"}};
    CHECK(resolve(config, "", variables).resolved->endpoint_url == "http://own");
    variables["AWS_ENDPOINT_URL_S3"] = "";
    CHECK(resolve(config, "", variables).resolved->endpoint_url == "http://all");
    variables.erase("AWS_ENDPOINT_URL");
    CHECK(resolve(config, "", variables).resolved->endpoint_url == "http://service");
    CHECK(resolve("[default]\nendpoint_url = http://profile\n", "").resolved->endpoint_url == "http://profile");
    variables["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "True";
    CHECK(resolve(config, "", variables).resolved->endpoint_url.empty());
    CHECK(resolve("[default]\nservices = gone\n", "").problem);
}

TEST_CASE("ini: the region comes from AWS_REGION, AWS_DEFAULT_REGION or the profile") {
    const std::string config = "[default]\nregion = r3\n";
    CHECK(resolve(config, "", {{"AWS_REGION", "r1"}, {"AWS_DEFAULT_REGION", "r2"}}).resolved->region == "r1");
    CHECK(resolve(config, "", {{"AWS_REGION", ""}, {"AWS_DEFAULT_REGION", "r2"}}).resolved->region == "r2");
    CHECK(resolve(config, "").resolved->region == "r3");
}

TEST_CASE("ini: a broken block in DEFAULT harms only where there are sections to lend it to") {
    CHECK(problem_in("[DEFAULT]\ns3 =\n  x\n") == "none");
    CHECK(problem_in("[DEFAULT]\ns3 =\n  x\n[a]\n") == "2: a line without '=' in the block under 's3'");
}
