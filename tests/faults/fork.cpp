// What a forked child leaves to its parent: connections, readers, and what the parent is computing.
#include "world.hpp"

#include <sys/wait.h>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::ok;
using store::same;
using store::text_of;
using store::World;

namespace {

// A child keeps locks that the server's threads hold while it is forked: those of connections that have ended end first.
void wait_for_idle(World& world, std::size_t connections = 1) {
    while (world.s3.open_connection_count() > connections) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

// What `work` returns, in a child that is killed after ten seconds; -1: it was, or crashed.
template <class F>
int in_child(World& world, F&& work, std::size_t connections = 1) {
    wait_for_idle(world, connections);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        alarm(10);
        int answer = 99;
        try {
            answer = work();
        } catch (...) {
        }
        _exit(answer);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int hit(Cache& cache, const char* key, std::string_view wanted) {
    const auto got = cache.try_get(key);
    return got && *got && (*got)->view() == wanted ? 0 : 1;
}

}  // namespace

TEST_CASE("a child that destroys its copy of a cache leaves the parent's connections alone", "[fork]") {
    for (const bool tls : {false, true}) {
        for (const bool uses : {false, true}) {
            CAPTURE(tls, uses);
            World world(store::over(tls));
            Config config = world.config();
            config.attempts_max = 1;
            std::optional<Cache> cache(world.cache(config));
            cache->set("k", "v");
            std::size_t connections = world.s3.connection_count();
            for (int round = 0; round < 5; ++round) {
                CHECK(in_child(world, [&] {
                          const int answer = uses ? hit(*cache, "k", "v") : 0;
                          cache.reset();
                          return answer;
                      }) == 0);
                connections += uses;
                CHECK(text_of(cache->get("k")) == "v");
                CHECK(world.s3.connection_count() == connections);
            }
        }
    }
}

TEST_CASE("a child that drops a reader or a listing leaves the parent's to be read on", "[fork]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        fake_s3::Options options = store::over(tls);
        options.list_page_max = 2;
        World world(options);
        Config config = world.config();
        config.attempts_max = 1;
        Cache cache = world.cache(config);
        const std::string large = store::random_bytes(3 << 20, 1);
        world.put("k", large);
        for (const char* key : {"a", "b", "c", "d"}) world.put(key, "v");
        std::optional<Reader> reader(cache.get_stream("k"));
        std::optional<Listing> listing(cache.list());
        std::string whole;
        char byte = 0;
        REQUIRE(reader->read(&byte, 1) == 1);
        whole += byte;
        REQUIRE(ok(listing->try_next()));
        CHECK(in_child(
                  world,
                  [&] {
                      reader.reset();
                      listing.reset();
                      return 0;
                  },
                  2) == 0);
        CHECK(in_child(
                  world,
                  [&] {
                      char some[1000];
                      const auto count = reader->try_read(some, sizeof some);  // an error, or the right bytes
                      return !count || large.compare(1, *count, std::string_view(some, *count)) == 0 ? 0 : 1;
                  },
                  2) == 0);
        whole += store::drained(*reader);
        CHECK(same(whole, large));
        std::size_t left = 0;
        while (ok(listing->try_next())) ++left;
        CHECK(left == 4);
        CHECK(text_of(cache.get("a")) == "v");
    }
}

TEST_CASE("a child knows nothing of what its parent is computing", "[fork][compute]") {
    World world;
    Config config = world.config();
    config.on_event = {};
    Cache cache = world.cache(config);
    std::atomic<bool> computing{false}, enough{false};
    store::Crew crew;
    crew.start(1, [&](std::size_t) {
        const Value value = cache.get_or_set("k", [&] {
            computing = true;
            while (!enough) std::this_thread::sleep_for(1ms);
            return "the parent's";
        });
        store::expect(value.view() == "the parent's", "the parent's value");
    });
    while (!computing) std::this_thread::sleep_for(1ms);
    CHECK(in_child(world, [&] {
              const auto value = cache.try_get_or_set("k", [] { return "the child's"; });
              return value && value->view() == "the child's" ? 0 : 1;
          }) == 0);
    enough = true;
    for (const std::string& problem : crew.join()) FAIL_CHECK(problem);
}

TEST_CASE("a producer that forks leaves no child waiting for the parent", "[fork][compute]") {
    World world;
    Cache cache = world.cache();
    const Value value = cache.get_or_set("k", [&] {
        CHECK(in_child(world, [&] {
                  const auto mine = cache.try_get_or_set("k", [] { return "the child's"; });
                  return mine || mine.error().code() == Errc::source ? 0 : 1;
              }) == 0);
        CHECK(in_child(world, [&] { return cache.try_get_or_set("other", [] { return "v"; }) ? 0 : 1; }) == 0);
        return "the parent's";
    });
    CHECK(value.view() == "the parent's");
    CHECK(text_of(cache.get("other")) == "v");
    CHECK(cache.get_or_set("k", [] { return "again"; }).view() == world.body("k"));
}

TEST_CASE("children that work at once with their parent disturb nobody", "[fork]") {
    for (const bool tls : {false, true}) {
        CAPTURE(tls);
        World world(store::over(tls));
        Cache cache = world.cache();
        cache.set("k", "v");
        for (int round = 0; round < 3; ++round) {
            wait_for_idle(world);  // and all begin when the gate closes
            int gate[2];
            REQUIRE(pipe(gate) == 0);
            std::vector<pid_t> children;
            for (int i = 0; i < 4; ++i) {
                const pid_t child = fork();
                REQUIRE(child >= 0);
                if (child == 0) {
                    alarm(20);
                    char none = 0;
                    close(gate[1]);
                    int bad = read(gate[0], &none, 1) == 0 ? 0 : 100;
                    for (int j = 0; j < 10; ++j) bad += hit(cache, "k", "v");
                    _exit(bad);
                }
                children.push_back(child);
            }
            close(gate[0]);
            close(gate[1]);
            for (int j = 0; j < 10; ++j) CHECK(text_of(cache.get("k")) == "v");
            for (const pid_t child : children) {
                int status = 0;
                REQUIRE(waitpid(child, &status, 0) == child);
                CHECK(status == 0);
            }
        }
    }
}
