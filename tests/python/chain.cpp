// For chain.py: says where the chain finds keys in an environment and its files. Each line read is a case: the profile that
// is chosen in code, then the variables as NAME=VALUE, with tabs between; the answer is "SOURCE<TAB>ACCESS_KEY" or
// "error<TAB>WHY". Nothing goes over a network: STS and the container's agent are played here, and no instance metadata
// is there.
#include "s3cache.hpp"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

namespace cred = s3cache::detail::credentials;

static cred::WebAnswer play(const cred::WebRequest& request) {
    const auto has = [&request](const char* text) {
        return (request.url + request.body).find(text) != std::string::npos;
    };
    cred::WebAnswer answer;
    answer.body = "nobody is there";
    if (has("/container")) {
        answer.status = 200;
        answer.body =
            R"({"AccessKeyId":"CONTAINER","SecretAccessKey":"s","Token":"t","Expiration":"2100-01-01T00:00:00Z"})";
    } else if (has("Action=")) {
        const std::string operation = has("WebIdentity") ? "AssumeRoleWithWebIdentity" : "AssumeRole";
        answer.status = 200;
        answer.body = "<" + operation + "Response><" + operation +
                      "Result><Credentials><AccessKeyId>STS</AccessKeyId>" +
                      "<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>" +
                      "<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></" + operation + "Result></" +
                      operation + "Response>";
    }
    return answer;
}

struct Played : cred::Environment {
    cred::WebAnswer fetch(const cred::WebRequest& request, const cred::Limits&) override { return play(request); }
};

static std::vector<std::string> fields_of(const std::string& line) {
    std::vector<std::string> fields(1);
    for (char c : line) {
        if (c == '\t')
            fields.emplace_back();
        else
            fields.back() += c;
    }
    return fields;
}

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const std::vector<std::string> fields = fields_of(line);
        for (std::size_t i = 1; i < fields.size(); ++i) {
            const std::size_t equals = fields[i].find('=');
            setenv(fields[i].substr(0, equals).c_str(), fields[i].c_str() + equals + 1, 1);
        }
        Played environment;
        s3cache::Config config;
        config.profile = fields[0];
        cred::Provider chain(environment, config);
        const auto keys = chain.find({});
        if (keys)
            std::printf("%s\t%s\n", keys->source.c_str(), keys->access_key.c_str());
        else
            std::printf("error\t%s\n", keys.error().what());
        std::fflush(stdout);
        for (std::size_t i = 1; i < fields.size(); ++i) unsetenv(fields[i].substr(0, fields[i].find('=')).c_str());
    }
}
