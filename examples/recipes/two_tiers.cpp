// Two tiers: a bounded map in the process, in front of the bucket; what it holds is asked after, and sent only if changed.
// g++ -std=c++17 -I../.. two_tiers.cpp -o two_tiers -lcurl -lcrypto -lz

#include "s3cache.hpp"

#include <iostream>
#include <list>
#include <map>
#include <mutex>

// Keeps the values used last. Each is believed for a second; then the bucket is asked, which sends nothing if it is the same.
class TwoTiers {
public:
    TwoTiers(s3cache::Cache& far, std::size_t values_max) : far_(far), values_max_(values_max) {}

    std::optional<s3cache::Value> get(const std::string& key) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto there = index_.find(key);
        if (there != index_.end()) near_.splice(near_.begin(), near_, there->second);  // used last: to the front
        if (there != index_.end() && Clock::now() < near_.front().believed_until) return near_.front().value;
        s3cache::Revalidated answer =
            far_.get_if_changed(key, there != index_.end() ? near_.front().value.info().etag : "none");
        if (there != index_.end() && answer.unchanged) near_.front().believed_until = Clock::now() + believed;
        if (answer.unchanged) return near_.front().value;
        if (there != index_.end()) index_.erase(near_.front().key), near_.pop_front();
        if (answer.value) {
            near_.push_front({key, *answer.value, Clock::now() + believed});
            index_[key] = near_.begin();
        }
        if (near_.size() > values_max_) index_.erase(near_.back().key), near_.pop_back();
        return std::move(answer.value);
    }

private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::seconds believed{1};
    struct Near {
        std::string key;
        s3cache::Value value;
        Clock::time_point believed_until;
    };
    s3cache::Cache& far_;
    const std::size_t values_max_;
    std::mutex mutex_;
    std::list<Near> near_;
    std::map<std::string, std::list<Near>::iterator> index_;
};

int main(int argc, char** argv) {
    if (argc != 2) return std::cerr << "usage: two_tiers my-bucket   (or s3://my-bucket/some/prefix)\n", 64;
    s3cache::Cache cache(argv[1]);
    TwoTiers tiers(cache, 1000);
    cache.set("price", "42", {std::chrono::hours(1)});
    for (int i = 0; i < 1000; ++i) tiers.get("price");
    std::cout << tiers.get("price")->str() << ", with " << cache.stats().hits << " hit in the bucket\n";
    cache.remove("price");
}
