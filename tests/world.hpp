// One fake store to a test, and a cache on it whose waits, jitter and events are the test's to see.
#pragma once

#include "store.hpp"

namespace store {
// As in the header: one program may hold both modes, whose inline functions must not be taken for each other.
inline namespace S3CACHE_ABI {

struct World {
    explicit World(fake_s3::Options options = {}) : s3(std::move(options)) {}

    fake_s3::FakeS3 s3;
    double random = 0.5;
    std::vector<std::chrono::milliseconds> waits;  // between attempts; none is waited for
    std::vector<std::string> outcomes;             // "operation outcome", of operations
    std::vector<std::string> attempts;             // "operation status", of attempts

    s3cache::Config config() {
        s3cache::Config config;
        config.endpoint = s3.endpoint();
        config.region = "us-east-1";
        config.ca_bundle = s3.ca_file();
        config.credentials = s3cache::Credentials{s3.access_key(), s3.secret_key(), {}, {}, "the tests"};
        config.part_bytes = std::size_t{5} << 20;
        config.seams.sleep = [this](std::chrono::milliseconds wait) { waits.push_back(wait); };
        config.seams.random = [this] { return random; };
        config.seams.environment = [](const char*) { return std::optional<std::string>(); };
        config.on_event = [this](const s3cache::Event& event) {
            check_no_secret(event.detail);
            if (event.attempt == 0)
                outcomes.push_back(std::string(event.operation) + " " + std::string(event.outcome));
            else
                attempts.push_back(std::string(event.operation) + " " + std::to_string(event.status));
        };
        return config;
    }
    s3cache::Cache cache() { return s3cache::Cache("bucket", config()); }
    s3cache::Cache cache(s3cache::Config config) { return s3cache::Cache("bucket", std::move(config)); }

    // How many requests `work` sends.
    template <class F>
    std::size_t requests(F&& work) {
        s3.clear_requests();
        work();
        return s3.request_count();
    }
    void put(const std::string& key, std::string body, const Headers& metadata = {}) {
        fake_s3::HeaderList headers;
        for (const auto& [name, value] : metadata) headers.emplace_back("x-amz-meta-" + name, value);
        s3.put_object("bucket", key, std::move(body), headers);
    }
    void put_expiring(const std::string& key, std::string body, std::int64_t seconds) {
        put(key, std::move(body), {{"expires_at", std::to_string(s3.now() + seconds)}});
    }
    std::string body(const std::string& key) {
        const auto object = s3.object("bucket", key);
        return object ? object->body : "(nothing)";
    }
    // That fault strikes every request of that operation.
    void always(const fake_s3::Fault& fault, const std::string& operation = {}) {
        s3.add_fault(fault.on(operation).for_times(fake_s3::forever));
    }
    // Once, when a request of that operation reaches that phase.
    template <class F>
    void once(const std::string& operation, fake_s3::Phase when, F work) {
        auto done = std::make_shared<std::atomic<bool>>(false);
        s3.on_request([=](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation == operation && phase == when && !done->exchange(true)) work();
        });
    }
    bool has(const std::string& key) { return s3.object("bucket", key).has_value(); }
    std::string meta(const std::string& key, const std::string& name) {
        const auto object = s3.object("bucket", key);
        REQUIRE(object);
        for (const auto& [n, value] : object->metadata) {
            if (n == name) return value;
        }
        return {};
    }
};

inline fake_s3::Options over(bool tls) {
    fake_s3::Options options;
    options.tls = tls;
    return options;
}

inline fake_s3::Options with(const fake_s3::Quirks& quirks) {
    fake_s3::Options options;
    options.quirks = quirks;
    return options;
}

// Real waits; nothing of World's that another thread could meet.
inline s3cache::Config waiting(World& world) {
    s3cache::Config config = world.config();
    config.on_event = {};
    config.seams.sleep = {};
    config.seams.random = {};
    return config;
}

inline s3cache::Config limited(World& world, std::chrono::milliseconds limit = std::chrono::milliseconds(300)) {
    s3cache::Config config = waiting(world);
    config.call_timeout = limit;
    config.stall_timeout = config.connect_timeout = std::chrono::milliseconds(0);
    return config;
}

// Credentials come from a helper process that takes twenty seconds.
inline s3cache::Config with_slow_helper(s3cache::Config config, const Folder& folder) {
    const std::string path = folder / "config";
    write(path, "[default]\ncredential_process = sleep 20\n");
    config.credentials = {};
    config.seams.environment = [path](const char* name) -> std::optional<std::string> {
        if (std::string_view(name) == "AWS_CONFIG_FILE") return path;
        if (std::string_view(name) == "AWS_SHARED_CREDENTIALS_FILE") return "/nonexistent";
        if (std::string_view(name) == "AWS_EC2_METADATA_DISABLED") return "true";
        if (std::string_view(name) == "PATH") return "/usr/bin:/bin";
        return std::nullopt;
    };
    return config;
}

inline std::chrono::milliseconds since(std::chrono::steady_clock::time_point began) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began);
}

}  // namespace S3CACHE_ABI
}  // namespace store
