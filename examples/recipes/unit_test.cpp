// A unit test of a program that caches: with Catch2, on a small S3 in the same process, which fails on demand.
// g++ -std=c++17 -I../.. -I../../tests unit_test.cpp ../../tests/main.cpp ../../tests/fake_s3.cpp -lssl -lcurl -lcrypto -lz -lpthread

#include "catch.hpp"  // of tests/: Catch2 in version 2 or 3
#include "fake_s3.hpp"
#include "s3cache.hpp"

// What is tested: a greeting that is slow to make.
static std::string greeting(s3cache::Cache& cache, const std::string& name, int& made) {
    const auto make = [&] { return ++made, "hello " + name; };
    return cache.get_or_set("greeting/" + name, make, {std::chrono::minutes(1)}).str();
}

static s3cache::Config config_of(const fake_s3::FakeS3& s3) {
    s3cache::Config config;
    config.endpoint = s3.endpoint();
    config.credentials = s3cache::Credentials{s3.access_key(), s3.secret_key()};
    config.backoff_base = std::chrono::milliseconds(1);  // retries that nobody waits for
    return config;
}

TEST_CASE("a greeting is made once") {
    fake_s3::FakeS3 s3;  // a bucket named "bucket", on a free port; gone at the end of the test
    s3cache::Cache cache("bucket", config_of(s3));
    int made = 0;
    REQUIRE(greeting(cache, "ann", made) == "hello ann");
    REQUIRE(greeting(cache, "ann", made) == "hello ann");
    REQUIRE(made == 1);
    REQUIRE(s3.keys("bucket") == std::vector<std::string>{"greeting/ann"});
}

TEST_CASE("a store that is slow for a moment does not matter") {
    fake_s3::FakeS3 s3;
    s3cache::Cache cache("bucket", config_of(s3));
    s3.add_fault(fake_s3::slow_down().on("PutObject").for_times(2));  // 503 twice, then well
    int made = 0;
    REQUIRE(greeting(cache, "bob", made) == "hello bob");
    REQUIRE(s3.request_count("PutObject") == 3);
}

TEST_CASE("it is made anew when its minute is over") {
    fake_s3::FakeS3 s3;
    s3cache::Config config = config_of(s3);
    auto now = std::chrono::system_clock::now();
    config.clock = [&] { return now; };
    s3cache::Cache cache("bucket", config);
    int made = 0;
    greeting(cache, "eve", made);
    now += std::chrono::minutes(2);
    greeting(cache, "eve", made);
    REQUIRE(made == 2);
}
