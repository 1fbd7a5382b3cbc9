// Numbers for Prometheus: totals from stats(), durations and statuses from events, as the text that it scrapes.
// g++ -std=c++17 -I.. metrics.cpp -o metrics -lcurl -lcrypto -lz
// Usage: ./metrics s3://my-bucket/prefix
#include "s3cache.hpp"

#include <iostream>
#include <map>
#include <mutex>

class Metrics {
public:
    // Called by every thread that uses the cache, and while it waits: to be short.
    void operator()(const s3cache::Event& event) {
        if (event.attempt == 0) return;  // outcomes are in stats()
        const std::lock_guard<std::mutex> hold(lock_);
        const std::string operation(event.operation), status = std::to_string(event.status);
        Line& line = lines_["operation=\"" + operation + "\",status=\"" + status + "\""];
        line.seconds += event.duration.count();
        ++line.count;
    }
    void print(std::ostream& out, const s3cache::Stats& stats) {
        total(out, "hits", stats.hits);
        total(out, "misses", stats.misses);
        total(out, "expired", stats.expired);
        total(out, "errors", stats.errors);
        total(out, "retries", stats.retries);
        total(out, "computed", stats.computed);
        total(out, "received_bytes", stats.bytes_in);
        total(out, "sent_bytes", stats.bytes_out);
        const std::lock_guard<std::mutex> hold(lock_);
        out << "# TYPE s3cache_request_seconds summary\n";
        for (const auto& [labels, line] : lines_) {
            out << "s3cache_request_seconds_sum{" << labels << "} " << line.seconds << "\n";
            out << "s3cache_request_seconds_count{" << labels << "} " << line.count << "\n";
        }
    }

private:
    struct Line {
        double seconds = 0;
        std::uint64_t count = 0;
    };
    static void total(std::ostream& out, const char* name, std::uint64_t value) {
        out << "# TYPE s3cache_" << name << "_total counter\ns3cache_" << name << "_total " << value << "\n";
    }
    std::mutex lock_;
    std::map<std::string, Line> lines_;
};

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: metrics s3://bucket/prefix\n", 64;
    Metrics metrics;
    s3cache::Config config;
    config.on_event = std::ref(metrics);
    s3cache::Cache cache(argv[1], config);
    cache.set("k", "a value");
    for (const char* key : {"k", "k", "missing"}) static_cast<void>(cache.get(key));
    cache.remove("k");
    metrics.print(std::cout, cache.stats());
}
