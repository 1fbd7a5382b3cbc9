// A test as a project of its own would write it: a value goes into a store in memory, and comes back from there.
#include <fake_s3.hpp>
#include <s3cache.hpp>

#include <cstdio>

int main() {
    fake_s3::FakeS3 s3;
    s3cache::Config config;
    config.endpoint = s3.endpoint();
    config.region = s3.region();
    config.credentials = s3cache::Credentials{s3.access_key(), s3.secret_key()};
    s3cache::Cache cache("bucket", config);
    cache.set("key", "value");
    const auto hit = cache.get("key");
    const bool found = hit && hit->view() == "value" && s3.object("bucket", "key").has_value();
    std::printf("s3cache %s, %s\n", S3CACHE_VERSION,
                found ? "stored in and read from the fake S3" : "nothing came back?");
    return found ? 0 : 1;
}
