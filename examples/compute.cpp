// Computed once, however many threads and machines ask: get_or_set, its lease, early refresh, stale values, nothing.
// g++ -std=c++17 -I.. compute.cpp -o compute -lcurl -lcrypto -lz
// Usage: ./compute s3://my-bucket/prefix

#include "s3cache.hpp"

#include <iostream>

using namespace std::chrono_literals;

namespace {

std::string train() {
    std::cout << "training ...\n";
    return "a model";
}

// What a database would say; empty: there is no such user.
std::optional<std::string> look_up(int user) {
    std::cout << "looking up user " << user << "\n";
    return user == 1 ? std::optional<std::string>("Ada") : std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::cerr << "usage: compute s3://bucket/prefix\n";
        return 64;
    }
    s3cache::Cache cache(argv[1]);

    s3cache::ComputeOptions how;
    how.lease = 60s;           // of all machines one computes; should it die, another takes over after a minute
    how.early_refresh = 1;     // near the end of its time one caller computes anew, the others have the old value
    how.stale_if_error = 24h;  // should that fail, yesterday's will do
    how.negative_ttl = 30s;    // that there is nothing is worth knowing for a while, too

    for (int round = 1; round <= 2; ++round) {
        const s3cache::Value model = cache.get_or_set("model", train, {1h}, how);
        std::cout << "round " << round << ": " << model.str() << "\n";
        for (int user : {1, 2}) {
            const std::string key = "user/" + std::to_string(user);
            const s3cache::Value name = cache.get_or_set(
                key, [&] { return look_up(user); }, {1h}, how);
            std::cout << "  user " << user << ": " << (name.negative() ? "nobody" : name.str()) << "\n";
        }
    }
    const s3cache::Stats stats = cache.stats();
    std::cout << stats.computed << " computed, " << stats.hits << " hits\n";
    for (const auto& removed : cache.remove_many({"model", "user/1", "user/2"})) removed.value();
}
