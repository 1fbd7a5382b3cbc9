// Removing many: what is written meanwhile stays, what fails is told, and what a store skips is looked for once more.
#include "world.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Phase;
using store::code_of;
using store::failure;
using store::ok;
using store::text_of;
using store::World;

namespace {

std::string name(int i) { return "k" + std::to_string(1000 + i); }

void put_expired(World& world, int count) {
    for (int i = 0; i < count; ++i) world.put_expiring(name(i), "v", -100);
}

}  // namespace

// ---- purge and its rivals -------------------------------------------------------------------------------------------

TEST_CASE("who writes while the expired go loses nothing where conditions hold, and little where they do not",
          "[removing][race]") {
    struct Case {
        bool ignores_delete, equal_bytes;
        int page;
    };
    for (const Case c : {Case{false, false, 1000}, Case{false, true, 1000}, Case{true, false, 1000},
                         Case{true, true, 1000}, Case{true, false, 30}}) {
        CAPTURE(c.ignores_delete, c.equal_bytes, c.page);
        fake_s3::Options options;
        options.quirks.ignore_conditional_delete = c.ignores_delete;
        options.list_page_max = static_cast<std::size_t>(c.page);
        World world(options);
        Config config = world.config();
        config.connections = 4;
        Cache cache = world.cache(config);
        constexpr int count = 100;
        put_expired(world, count);
        std::set<std::string> written;  // by the rival, at the first removal of one of ours
        bool done = false;
        // All wait while the rival writes: each connection may then have looked at one entry that has changed since.
        std::mutex writing;
        world.s3.on_request([&](const fake_s3::Recorded& request, Phase phase) {
            const std::lock_guard<std::mutex> hold(writing);
            const bool removes = request.operation == "DeleteObjects" ||
                                 (request.operation == "DeleteObject" && request.key.compare(0, 1, "k") == 0);
            if (!removes || phase != Phase::before_effect || std::exchange(done, true)) return;
            for (int i = 0; i < count; ++i) {
                if (!world.has(name(i))) continue;
                world.put_expiring(name(i), c.equal_bytes ? "v" : "new", 1000);
                written.insert(name(i));
            }
        });
        static_cast<void>(cache.try_purge_expired());
        world.s3.on_request({});
        REQUIRE(done);
        std::size_t lost = 0;
        for (const std::string& key : written) lost += !world.has(key);
        const bool exact = !c.ignores_delete && !c.equal_bytes;
        CHECK(lost <= (exact ? 0 : config.connections));
    }
}

TEST_CASE("without rivals all that has expired goes, and nothing else, on every kind of store", "[removing]") {
    for (const bool ignores_delete : {false, true}) {
        for (const bool refuses_bulk : {false, true}) {
            CAPTURE(ignores_delete, refuses_bulk);
            fake_s3::Options options;
            options.quirks.ignore_conditional_delete = ignores_delete;
            options.quirks.refuse_delete_objects = refuses_bulk;
            options.list_page_max = 7;
            World world(options);
            Cache cache = world.cache();
            put_expired(world, 40);
            world.put("forever", "v");
            world.put_expiring("live", "v", 100);
            world.put("broken", "v", {{"expires_at", "soon"}});
            CHECK(cache.purge_expired() == 40);
            CHECK(world.s3.object_count() == 3);
            CHECK(cache.purge_expired() == 0);
        }
    }
}

// ---- purge and failure ----------------------------------------------------------------------------------------------

TEST_CASE("a purge that could not look at an entry, or not remove it, is an error that tells what was removed",
          "[removing][errors]") {
    struct Case {
        const char* name;
        fake_s3::Fault fault;
        std::vector<const char*> operations;
        bool retryable;
    };
    const Case cases[] = {
        {"looks denied", fake_s3::respond(403), {"HeadObject"}, false},
        {"looks too many", fake_s3::respond(503), {"HeadObject"}, true},
        {"removals denied", fake_s3::respond_error(403, "AccessDenied"), {"DeleteObject", "DeleteObjects"}, false},
        {"removals too many", fake_s3::slow_down(), {"DeleteObject", "DeleteObjects"}, true},
    };
    for (const Case& c : cases) {
        for (const bool ignores_delete : {false, true}) {
            CAPTURE(c.name, ignores_delete);
            fake_s3::Quirks quirks;
            quirks.ignore_conditional_delete = ignores_delete;
            World world(store::with(quirks));
            Config config = world.config();
            Cache cache = world.cache(config);
            put_expired(world, 5);
            for (const char* operation : c.operations) world.always(c.fault, operation);
            const Error error = failure(cache.try_purge_expired());
            CHECK((error.status() == c.fault.status));
            CHECK(error.retryable() == c.retryable);
            CHECK(world.s3.object_count() == 5);
            world.s3.clear_faults();
            CHECK(cache.purge_expired() == 5);
        }
    }
}

TEST_CASE("one entry that cannot be looked at or removed does not keep a purge from the others", "[removing][errors]") {
    for (const bool ignores_delete : {false, true}) {
        CAPTURE(ignores_delete);
        fake_s3::Options options;
        options.quirks.ignore_conditional_delete = ignores_delete;
        options.list_page_max = 3;
        World world(options);
        Cache cache = world.cache();
        put_expired(world, 9);
        world.s3.deny_key(name(1));
        const Error error = failure(cache.try_purge_expired());
        CHECK(error.code() == Errc::denied);
        CHECK(store::holds(error.what(), "8"));
        CHECK(world.s3.object_count() == 1);
    }
}

TEST_CASE("an entry that a deep listing cannot look at is an error, not an entry that never expires",
          "[removing][list]") {
    World world;
    Cache cache = world.cache();
    put_expired(world, 3);
    for (const int status : {403, 503}) {
        CAPTURE(status);
        world.s3.add_fault(fake_s3::respond(status).on("HeadObject").for_key(name(1)).for_times(fake_s3::forever));
        Result<Listing> listing = cache.try_list({}, Look::deep);
        std::optional<Error> error;
        if (!listing) error = listing.error();
        for (int i = 0; i < 4 && !error; ++i) {
            auto next = listing->try_next();
            if (!next)
                error = store::checked(next.error());
            else if (!*next)
                break;
            else
                CHECK((*next)->info.expires_at);
        }
        REQUIRE(error);
        CHECK(error->status() == status);
        world.s3.clear_faults();
    }
}

// ---- many keys in one request ---------------------------------------------------------------------------------------

TEST_CASE("a key that DeleteObjects could not remove just now is tried again", "[removing][many]") {
    for (const char* code : {"SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"}) {
        for (const bool named : {true, false}) {
            CAPTURE(code, named);
            World world;
            Cache cache = world.cache();
            for (int i = 0; i < 5; ++i) world.put(name(i), "v");
            world.s3.refuse_in_bulk(name(2), code, 1, named);
            const auto results = cache.remove_many({name(0), name(1), name(2), name(3), name(4)});
            REQUIRE(results.size() == 5);
            for (const auto& result : results) {
                if (!result) FAIL_CHECK(result.error().what());
            }
            CHECK(world.s3.object_count() == 0);
        }
    }
}

TEST_CASE("a key that DeleteObjects never removes is an error of its own, that says whether to try again",
          "[removing][many]") {
    struct Case {
        const char* code;
        int status;  // of the same, asked for alone
        Errc errc;
        bool retryable;
    };
    for (const Case c : {Case{"SlowDown", 503, Errc::throttled, true}, Case{"InternalError", 500, Errc::store, true},
                         Case{"AccessDenied", 403, Errc::denied, false}}) {
        CAPTURE(c.code);
        World world;
        Cache cache = world.cache();
        for (int i = 0; i < 5; ++i) world.put(name(i), "v");
        world.s3.refuse_in_bulk(name(2), c.code, fake_s3::forever);
        world.always(fake_s3::respond_error(c.status, c.code).for_key(name(2)), "DeleteObject");
        const auto results = cache.remove_many({name(0), name(1), name(2), name(3), name(4)});
        for (std::size_t i = 0; i < results.size(); ++i) {
            CAPTURE(i);
            CHECK(results[i].has_value() == (i != 2));
            CHECK(world.has(name(static_cast<int>(i))) == (i == 2));
        }
        const Error error = store::checked(results.at(2).error());
        CHECK(error.code() == c.errc);
        CHECK(error.s3_code() == c.code);
        CHECK(error.retryable() == c.retryable);
    }
}

TEST_CASE("an error of DeleteObjects that names no key is never taken for success", "[removing][many]") {
    World world;
    Cache cache = world.cache();
    for (int i = 0; i < 3; ++i) world.put(name(i), "v");
    world.s3.refuse_in_bulk(name(1), "AccessDenied", fake_s3::forever, false);
    const auto results = cache.remove_many({name(0), name(1), name(2)});
    for (std::size_t i = 0; i < results.size(); ++i) {
        CAPTURE(i);
        if (results[i]) CHECK_FALSE(world.has(name(static_cast<int>(i))));
    }
}

TEST_CASE("what a store removes without a word in a list of keys stays removed, be its answer what it may",
          "[removing][many]") {
    World world;
    Cache cache = world.cache();
    for (const int status : {500, 503, 502}) {
        CAPTURE(status);
        for (int i = 0; i < 3; ++i) world.put(name(i), "v");
        world.s3.add_fault(fake_s3::html_page(status).on("DeleteObjects").placed(fake_s3::Point::after_effect));
        for (const auto& result : cache.remove_many({name(0), name(1), name(2)})) CHECK(result);
        CHECK(world.s3.object_count() == 0);
        world.s3.clear_faults();
    }
}

// ---- clear ----------------------------------------------------------------------------------------------------------

TEST_CASE("clear goes on after a key that cannot be removed, and tells it at the end", "[removing][clear]") {
    for (const char* code : {"AccessDenied", "InternalError"}) {
        for (const bool refuses_bulk : {false, true}) {
            CAPTURE(code, refuses_bulk);
            fake_s3::Options options;
            options.list_page_max = 3;
            options.quirks.refuse_delete_objects = refuses_bulk;
            World world(options);
            Cache cache = world.cache();
            for (int i = 0; i < 10; ++i) world.put(name(i), "v");
            if (refuses_bulk)
                world.s3.deny_key(name(1));
            else
                world.s3.refuse_in_bulk(name(1), code, fake_s3::forever);
            world.always(fake_s3::respond_error(403, code).for_key(name(1)), "DeleteObject");
            const Error error = failure(cache.try_clear(""));
            CHECK(store::holds(error.what(), "9"));
            CHECK(world.s3.object_count() == 1);
            CHECK(world.s3.request_count() < 60);
        }
    }
}

TEST_CASE("clear looks once more at what comes first before it says done", "[removing][clear]") {
    fake_s3::Options options;
    options.list_page_max = 4;
    World world(options);
    Cache cache = world.cache();
    for (int i = 0; i < 10; ++i) world.put(name(i), "v");
    world.once("DeleteObjects", Phase::before_effect, [&] { world.put("a skipped key", "v"); });
    CHECK(cache.clear("") == 11);
    CHECK(world.s3.object_count() == 0);
}

TEST_CASE("clear of a prefix removes what is under it page by page, whatever the store calls true",
          "[removing][clear]") {
    for (const bool capital : {false, true}) {
        CAPTURE(capital);
        fake_s3::Options options;
        options.list_page_max = 2;
        options.quirks.capital_true = capital;
        World world(options);
        Cache cache = world.cache();
        for (int i = 0; i < 5; ++i) world.put("mine/" + name(i), "v");
        world.put("theirs", "v");
        std::size_t entries = 0;
        for (const Entry& entry : cache.list()) entries += !entry.key.empty();
        CHECK(entries == 6);
        CHECK(cache.clear("mine/") == 5);
        CHECK(world.s3.object_count() == 1);
    }
}
