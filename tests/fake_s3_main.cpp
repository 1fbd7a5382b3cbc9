// A small S3 in memory, for trying things out. It prints one line for a shell to source, with its endpoint and keys.
//     g++ -std=c++17 fake_s3_main.cpp fake_s3.cpp -o fake_s3 -lssl -lcrypto -pthread
#include "fake_s3.hpp"

#include <csignal>  // waits for SIGTERM or SIGINT
#include <cstdio>   // the one line it prints
#include <cstdlib>  // strtol
#include <ctime>    // timespec

namespace {

int usage() {
    std::fprintf(stderr,
                 "usage: fake_s3 [--port N] [--tls] [--access-key K --secret-key S] [--bucket B]... [--quirk NAME]... "
                 "[--seconds N] [--clock-offset SECONDS]\nquirks:");
    for (const std::string& name : fake_s3::quirk_names()) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 64;
}

struct Run {
    long seconds = 0;       // until it ends by itself; 0: never
    long clock_offset = 0;  // of the store's clock against the real one
};

bool take(fake_s3::Options& options, Run& run, const std::string& name, const std::string& value) {
    if (name == "--port")
        options.port = static_cast<std::uint16_t>(std::strtol(value.c_str(), nullptr, 10));
    else if (name == "--access-key")
        options.keys[0].access_key = value;
    else if (name == "--secret-key")
        options.keys[0].secret_key = value;
    else if (name == "--bucket")
        options.buckets.push_back(value);
    else if (name == "--seconds")
        run.seconds = std::strtol(value.c_str(), nullptr, 10);
    else if (name == "--clock-offset")
        run.clock_offset = std::strtol(value.c_str(), nullptr, 10);
    else
        return name == "--quirk" && fake_s3::apply_quirk(options, value);
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    fake_s3::Options options;
    Run run;
    const std::string given_bucket = options.buckets[0];
    options.buckets.clear();
    for (int i = 1; i < count; ++i) {
        const std::string name = arguments[i];
        if (name == "--tls")
            options.tls = true;
        else if (i + 1 >= count || !take(options, run, name, arguments[i + 1]))
            return usage();
        else
            ++i;
    }
    if (options.buckets.empty()) options.buckets.push_back(given_bucket);
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, nullptr);  // before the server's threads begin, so that only we get them
    try {
        fake_s3::FakeS3 s3(options);
        s3.set_clock_offset(run.clock_offset);
        const std::string endpoint = s3.endpoint();
        std::printf(
            "export S3CACHE_TEST_ENDPOINT=%s AWS_ENDPOINT_URL=%s AWS_ACCESS_KEY_ID='%s' AWS_SECRET_ACCESS_KEY='%s' "
            "AWS_REGION=%s",
            endpoint.c_str(), endpoint.c_str(), s3.access_key().c_str(), s3.secret_key().c_str(), s3.region().c_str());
        if (options.tls)
            std::printf(" S3CACHE_TEST_CA=%s AWS_CA_BUNDLE=%s", s3.ca_file().c_str(), s3.ca_file().c_str());
        std::printf("\n");
        std::fflush(stdout);
        int signal = 0;
        const timespec limit{run.seconds, 0};
        if (run.seconds > 0)
            sigtimedwait(&ends, nullptr, &limit);
        else
            sigwait(&ends, &signal);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fake_s3: %s\n", error.what());
        return 2;
    }
    return 0;
}
