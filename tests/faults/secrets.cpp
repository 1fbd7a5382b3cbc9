// What callers' own code says is told without passwords, and a forked child fetches its own credentials.
#include "world.hpp"

#include <sys/wait.h>
#include <unistd.h>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::failure;
using store::waiting;
using store::World;

namespace {

struct Thing {};

}  // namespace

template <>
struct s3cache::codec<Thing> {
    static constexpr Kind kind = Kind::text;
    static std::string encode(const Thing&) {
        throw std::runtime_error("no https://user:hush-hush@vault.example.org/");
    }
    static Result<Thing> decode(std::string_view) {
        return Error(Errc::source, "no https://user:hush-hush@vault.example.org/");
    }
};

TEST_CASE("what a callback says of a URL is told without its password", "[errors][secrets]") {
    const std::string words = "cannot reach https://user:hush-hush@vault.example.org/keys";
    World world;
    Cache cache = world.cache();
    const auto check = [](const Error& error) {
        CAPTURE(error.what());
        CHECK(store::holds(error.what(), "vault.example.org"));
        CHECK_FALSE(store::holds(error.what(), "hush-hush"));
    };
    check(failure(
        cache.try_set("k", Source([&](char*, std::size_t) -> std::size_t { throw std::runtime_error(words); }))));
    check(failure(cache.try_get_or_set("k", [&]() -> std::string { throw std::runtime_error(words); })));
    Config config = world.config();
    config.credentials = [&]() -> Result<Credentials> { return Error(Errc::credentials, words); };
    check(failure(world.cache(config).try_get("k")));
    check(failure(cache.try_get_or_set("k", [&]() -> Result<std::string> { return Error(Errc::source, words); })));
    check(failure(cache.try_set("k", Thing())));
    world.put("k", "v");
    check(failure(cache.try_get<Thing>("k")));
    config.credentials = [&]() -> Result<Credentials> { throw std::runtime_error(words); };
    check(failure(world.cache(config).try_get("k")));
    for (const Finding& finding : world.cache(config).explain()) CHECK_FALSE(store::holds(finding.text, "hush-hush"));
}

TEST_CASE("no message of a proxy tells user or password, be there a blank or a slash in it", "[errors][secrets]") {
    for (const char* proxy : {"http://wanderer:hush hush@127.0.0.1:1", "wanderer:h/hush@127.0.0.1:x",
                              "wanderer:hush hush@127.0.0.1:1", "http://wanderer:h/hush@127.0.0.1:x"}) {
        CAPTURE(proxy);
        World world;
        Config config = world.config();
        config.attempts_max = 2;
        config.proxy = proxy;
        std::string told;
        config.on_event = [&](const Event& event) { told += std::string(event.detail) + "\n"; };
        auto cache = Cache::try_open("bucket", config);
        const Error error = cache ? failure(cache->try_get("k")) : cache.error();
        told += error.what();
        CAPTURE(told);
        CHECK_FALSE(store::holds(told, "hush"));
        CHECK_FALSE(store::holds(told, "wanderer"));
        CHECK(world.s3.request_count() == 0);
    }
}

TEST_CASE("what a callback says is not cut, however long", "[errors][secrets]") {
    World world;
    Cache cache = world.cache();
    const std::string words = std::string(5000, 'x') + " https://user:hush-hush@host the end";
    const Error error = failure(cache.try_get_or_set("k", [&]() -> std::string { throw std::runtime_error(words); }));
    CHECK(store::holds(error.what(), std::string(5000, 'x') + " https://******@host the end"));
}

TEST_CASE("a child does not wait for the credentials that its parent is fetching", "[fork][credentials]") {
    World world;
    world.put("k", "v");
    Config config = waiting(world);
    std::atomic<bool> asked{false}, enough{false};
    const Credentials keys{world.s3.access_key(), world.s3.secret_key(), {}, {}, "the tests"};
    config.credentials = CredentialsProvider([&, parent = getpid()]() -> Result<Credentials> {
        asked = true;
        while (getpid() == parent && !enough) std::this_thread::sleep_for(1ms);
        return keys;
    });
    Cache cache = world.cache(config);
    std::thread other([&] { static_cast<void>(cache.try_get("k")); });
    while (!asked) std::this_thread::sleep_for(1ms);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        alarm(5);
        const auto hit = cache.try_get("k");
        _exit(hit && *hit && (*hit)->view() == "v" ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    enough = true;
    other.join();
}
