// Streams of unknown length: how their parts grow, and what they hold in memory at most.
#include "world.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>

using namespace s3cache;
using detail::transfer::equal_parts;
using detail::transfer::PartPlan;
using detail::transfer::parts_a_size;
using detail::transfer::parts_max;
using store::code_of;
using store::same;
using store::World;

namespace {

fake_s3::Options tiny_parts() {
    fake_s3::Options options;
    options.part_bytes_min = 1;
    return options;
}

Source source_of(std::string_view data) {
    return [data](char* buffer, std::size_t capacity) mutable {
        const std::size_t count = data.copy(buffer, capacity);
        data.remove_prefix(count);
        return count;
    };
}

// The most bytes of parts that the store had at once.
struct InFlight {
    std::atomic<std::uint64_t> now{0}, most{0};
    void watch(fake_s3::FakeS3& s3) {
        s3.on_request([this](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation != "UploadPart") return;
            if (phase == fake_s3::Phase::after_effect) return static_cast<void>(now -= request.body_size);
            const std::uint64_t sum = now += request.body_size;
            for (std::uint64_t seen = most; seen < sum && !most.compare_exchange_weak(seen, sum);) {
            }
        });
    }
};

std::vector<std::uint64_t> sizes_of_parts(const fake_s3::FakeS3& s3) {
    std::vector<std::uint64_t> sizes;
    for (const auto& request : s3.requests()) {
        if (request.operation != "UploadPart") continue;
        const std::size_t number = std::stoul(request.target.substr(request.target.find("partNumber=") + 11));
        sizes.resize((std::max)(sizes.size(), number));
        sizes[number - 1] = request.body_size;
    }
    return sizes;
}

std::uint64_t capacity_of(const PartPlan& plan) {
    std::uint64_t sum = 0;
    for (std::uint64_t number = 1; number <= parts_max; ++number) sum += plan.bytes_of(number);
    return sum;
}

}  // namespace

TEST_CASE("parts are equal at first and then double, up to the bound", "[parallel][parts]") {
    const PartPlan plan{8, 64};
    CHECK(plan.bytes_of(1) == 8);
    CHECK(plan.bytes_of(equal_parts) == 8);
    CHECK(plan.bytes_of(equal_parts + 1) == 16);
    CHECK(plan.bytes_of(equal_parts + parts_a_size) == 16);
    CHECK(plan.bytes_of(equal_parts + parts_a_size + 1) == 32);
    CHECK(plan.bytes_of(equal_parts + 2 * parts_a_size + 1) == 64);
    CHECK(plan.bytes_of(equal_parts + 3 * parts_a_size + 1) == 64);
    CHECK(plan.bytes_of(parts_max) == 64);
    CHECK(PartPlan{8, 50}.bytes_of(parts_max) == 50);  // a bound that is no power of two
    CHECK(PartPlan{8, 8}.bytes_of(parts_max) == 8);
}

TEST_CASE("10,000 parts hold the largest object of S3 where memory allows, and 300 GiB by default",
          "[parallel][parts]") {
    constexpr std::uint64_t gib = std::uint64_t{1} << 30;
    Config config;
    const auto plan = [&](std::optional<std::uint64_t> size, bool compress = false) {
        return detail::transfer::plan_parts(config, size, compress);
    };
    REQUIRE(plan(std::nullopt));
    CHECK(capacity_of(*plan(std::nullopt)) > 300 * gib);
    CHECK(plan(std::nullopt)->most == config.transfer_bytes_max);
    REQUIRE(plan(600 * gib));  // announced: all parts are equal
    CHECK(plan(600 * gib)->first == plan(600 * gib)->most);
    CHECK(capacity_of(*plan(600 * gib)) >= 600 * gib);
    CHECK_FALSE(plan(1024 * gib));    // it would need parts of 105 MiB
    REQUIRE(plan(1024 * gib, true));  // gzip may make it fit
    CHECK(plan(1024 * gib, true)->most == config.transfer_bytes_max);
    REQUIRE(plan(60 * gib, true));
    CHECK(plan(60 * gib, true)->most == config.part_bytes);
    if (sizeof(std::size_t) > 4) {
        config.transfer_bytes_max = static_cast<std::size_t>(5 * gib);
        CHECK(capacity_of(*plan(std::nullopt)) > 5 * 1024 * gib);
        config.transfer_bytes_max = static_cast<std::size_t>(50 * gib);
        CHECK(plan(std::nullopt)->most == 5 * gib);  // S3 takes no larger part
    }
    config.part_bytes = 16;
    config.transfer_bytes_max = 4;  // one part is always allowed
    CHECK(plan(std::nullopt)->most == 16);
}

TEST_CASE("the parts of a long stream grow on the wire, within the memory bound", "[parallel][parts]") {
    World world(tiny_parts());
    Config config = world.config();
    config.part_bytes = 16;
    config.transfer_bytes_max = 64;
    Cache cache = world.cache(config);
    const std::string data = store::random_bytes(16 * equal_parts + (32 + 64) * parts_a_size + 5 * 64 + 7, 1);
    InFlight flight;
    flight.watch(world.s3);
    CHECK(cache.set("long", source_of(data)));
    world.s3.on_request({});

    const auto sizes = sizes_of_parts(world.s3);
    REQUIRE(sizes.size() == equal_parts + 2 * parts_a_size + 6);
    const PartPlan plan{16, 64};
    for (std::size_t i = 0; i + 1 < sizes.size(); ++i) {
        if (sizes[i] != plan.bytes_of(i + 1)) FAIL("part " << i + 1 << " has " << sizes[i] << " bytes");
    }
    CHECK(sizes.back() == 7);
    CHECK(flight.most <= config.transfer_bytes_max);
    CHECK(same(world.body("long"), data));
    CHECK(world.s3.open_uploads().empty());
}

// With fewer parts than S3's 10,000, so as not to send those.
TEST_CASE("a stream that the parts do not hold is refused with a way out, and taken back", "[parallel][parts]") {
    World world(tiny_parts());
    Config config = world.config();
    auto core = detail::cache::open("bucket", config);
    REQUIRE(core);
    const auto set = [&](std::string_view data) {
        detail::s3::Session session(**core);
        const Source source = source_of(data);
        auto write = detail::cache::write_of(**core, "key", {nullptr, &source}, {});
        REQUIRE(write);
        const detail::transfer::Body body{nullptr, &source};
        const SetOptions options;
        detail::transfer::Upload upload(session, *std::move(write), {2, 2, 5}, body, options);
        return upload.run();
    };
    const auto refused = set("0123456789a");
    CHECK(code_of(refused) == Errc::too_large);
    CHECK(store::holds(store::failure(refused).what(), "announce its size"));
    CHECK_FALSE(world.has("key"));
    CHECK(world.s3.open_uploads().empty());
    CHECK(set("0123456789"));
    CHECK(world.body("key") == "0123456789");
}

TEST_CASE("a stream for a store that wants equal parts has equal parts", "[parallel][parts]") {
    fake_s3::Options options = tiny_parts();
    options.quirks.equal_parts = true;
    World world(options);
    Config config = world.config();
    config.part_bytes = 1000;
    Cache cache = world.cache(config);
    const std::string data = store::random_bytes(123456, 3);
    CHECK(cache.set("unknown", source_of(data)));
    CHECK(cache.set("announced", source_of(data).sized(data.size())));
    CHECK(cache.set("memory", bytes(data.data(), data.size())));
    CHECK(same(world.body("unknown"), data));
    CHECK(same(world.body("announced"), data));
    CHECK(same(world.body("memory"), data));
}

TEST_CASE("what cannot pause goes up on two connections from the start", "[parallel][parts]") {
    World world(tiny_parts());
    Config config = world.config();
    config.part_bytes = 1000;
    Cache cache = world.cache(config);
    const std::string data = store::random_bytes(5000, 1);
    store::Folder folder;
    store::write(folder / "in", data);
    for (const bool of_file : {false, true}) {
        CAPTURE(of_file);
        std::mutex lock;
        std::condition_variable arrived;
        int parts = 0;
        bool first_met_second = false;
        world.s3.on_request([&](const fake_s3::Recorded& request, fake_s3::Phase phase) {
            if (request.operation != "UploadPart" || phase != fake_s3::Phase::before_effect) return;
            std::unique_lock<std::mutex> hold(lock);
            arrived.notify_all();
            if (++parts == 1)
                first_met_second = arrived.wait_for(hold, std::chrono::seconds(20), [&] { return parts >= 2; });
        });
        CHECK(store::ok(of_file ? cache.try_set_file("k", folder / "in") : cache.try_set("k", data)));
        world.s3.on_request({});
        CHECK(first_met_second);
        CHECK(same(store::text_of(cache.get("k")), data));
    }
}

TEST_CASE("parts over the 5 GiB that S3 takes are refused when the cache is opened", "[parts]") {
    constexpr std::uint64_t most = std::uint64_t{5} << 30;
    World world;
    const auto opened = [&](const std::string& where, std::uint64_t bytes) {
        Config config = world.config();
        if (bytes > 0) config.part_bytes = static_cast<std::size_t>(bytes);
        CAPTURE(where, bytes);
        return code_of(Cache::try_open(where, config));
    };
    for (const std::uint64_t bytes : {most + 1, 2 * most, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
        CHECK(opened("s3://bucket?part_bytes=" + std::to_string(bytes), 0) == Errc::invalid_argument);
        if (sizeof(std::size_t) > 4) CHECK(opened("bucket", bytes) == Errc::invalid_argument);
    }
    if (sizeof(std::size_t) > 4) {
        CHECK(opened("s3://bucket?part_bytes=" + std::to_string(most), 0) == store::no_error);
        CHECK(opened("bucket", most) == store::no_error);
    }
    CHECK(opened("bucket", most / 2) == store::no_error);
}

// The sum of a file comes first, and is of all that is sent then.
TEST_CASE("a file that cannot be read while it is summed is an error of the file, and nothing is stored",
          "[parts][files]") {
    World world(tiny_parts());
    Config config = world.config();
    config.part_bytes = 1000;
    auto core = detail::cache::open("bucket", config);
    REQUIRE(core);
    const store::Folder folder;
    const std::string path = folder / "in", data = store::random_bytes(5000, 1);
    store::write(path, data);
    std::FILE* const unreadable = std::fopen(path.c_str(), "ab");  // as good as a disk that fails, and once
    REQUIRE(unreadable);
    const Source source = source_of(data).sized(data.size());
    const SetOptions options;
    const auto stored = detail::cache::set(**core, "k", {nullptr, &source, unreadable, path}, options);
    std::fclose(unreadable);
    CHECK(code_of(stored) == Errc::file);
    CHECK_FALSE(world.has("k"));
    CHECK(world.s3.open_uploads().empty());
}
