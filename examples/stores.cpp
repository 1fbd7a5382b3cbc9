// Settings for stores that speak S3. Only Ceph's is tested; the others follow their makers' documentation.
// g++ -std=c++17 -I.. stores.cpp -o stores -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <string_view>

using s3cache::Config;

// All find their keys as usual: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile.
static Config at(std::string endpoint, std::string region) {
    Config config;
    config.endpoint = std::move(endpoint);
    config.region = std::move(region);
    return config;
}

// Any region will do. Tested: http and https.
static Config ceph(const std::string& url) { return at(url, "us-east-1"); }

// Any region, unless the server was given one. Untested here.
static Config minio(const std::string& url) { return at(url, "us-east-1"); }

// The account's own host; keys from an API token that may read and write objects. Untested here.
static Config r2(const std::string& account) { return at("https://" + account + ".r2.cloudflarestorage.com", "auto"); }

// HMAC keys of a service account (Cloud Storage, Settings, Interoperability). Let no machines compete by if_absent or
// if_match: that store checks headers of its own instead. Untested here.
static Config google(const std::string&) { return at("https://storage.googleapis.com", "auto"); }

// An application key (keyID, applicationKey), not the master key; the region is in the bucket's endpoint: us-west-004.
// No write conditions; what is removed is only hidden: have a lifecycle rule end it. Untested here.
static Config b2(const std::string& region) { return at("https://s3." + region + ".backblazeb2.com", region); }

// The bucket's region, such as eu-central-1. May charge a minimum time of storage for each entry. Untested here.
static Config wasabi(const std::string& region) { return at("https://s3." + region + ".wasabisys.com", region); }

struct Store {
    std::string_view name, wants;
    Config (*config)(const std::string&);
};

static const Store stores[] = {
    {"ceph", "http://HOST:PORT", ceph},
    {"minio", "http://HOST:PORT", minio},
    {"r2", "ACCOUNT", r2},
    {"google", "-", google},
    {"b2", "REGION", b2},
    {"wasabi", "REGION", wasabi},
};

static int greet(const Config& config, const std::string& bucket) {
    s3cache::Cache cache(bucket, config);
    cache.set("hello", "from s3cache", {std::chrono::minutes(1)});
    const auto hit = cache.get("hello");
    std::cout << (hit ? hit->str() : "nothing?") << "\n";
    return hit ? 0 : 2;
}

int main(int argc, char** argv) {
    for (const Store& store : stores) {
        if (argc != 4 || store.name != argv[1]) continue;
        try {
            return greet(store.config(argv[2]), argv[3]);
        } catch (const s3cache::Error& error) {
            std::cerr << "stores: " << error.what() << "\n";
            return 2;
        }
    }
    for (const Store& store : stores) std::cerr << "usage: stores " << store.name << " " << store.wants << " BUCKET\n";
    return 64;
}
