// Keys of every kind, lists, and operations on many keys.
#include "store.hpp"

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::failure;
using store::ok;
using store::same;
using store::Space;
using store::text_of;

namespace {

const std::vector<std::string>& odd_keys() {
    static const std::vector<std::string> all = [] {
        std::vector<std::string> keys{
            "plain",
            "A",
            "a",
            "a/b",
            "a/",
            "a//",
            "a//b",
            "/lead",
            "//lead2",
            "/",
            "//",
            "trail/",
            "trail//",
            ".",
            "..",
            "...",
            "./",
            "../",
            "./x",
            "../x",
            "x/.",
            "x/..",
            "x/./y",
            "x/../y",
            ".x",
            "..x",
            "x/.../y",
            " ",
            "  ",
            " lead",
            "trail ",
            "two words",
            "two  blanks",
            "+",
            "a+b",
            "%",
            "%%",
            "100%",
            "a%20b",
            "a%2Fb",
            "a%2fb",
            "%2e",
            "%2E%2E",
            "%00",
            "%zz",
            "a%",
            "?",
            "??",
            "a?b=c",
            "?uploads",
            "?delete",
            "?list-type=2",
            "#",
            "a#b",
            "&",
            "a=b&c=d",
            "=",
            "~",
            "*",
            "!",
            "'",
            "(x)",
            "@",
            "$",
            ",",
            ";",
            ":",
            "a:b",
            "[x]",
            "{x}",
            "|",
            "\\",
            "a\\b",
            "..\\x",
            "^",
            "`",
            "\"",
            "<",
            ">",
            "<Key>&amp;</Key>",
            "&#10;",
            "]]>",
            "-",
            "_",
            "0",
            "index.html",
            "soap",
            "x-amz-meta-x",
            "s3://bucket/key",
            "http://host/",
            "\xC3\xA9",
            "e\xCC\x81",
            "\xE6\x97\xA5\xE6\x9C\xAC/\xE8\xAA\x9E",
            "\xF0\x9F\x98\x80",
            "\xEF\xBB\xBFx",
            "\xE2\x80\xA8",
            "\xC2\x85",
            "\xC2\xA0",
            "\xEF\xBF\xBF",
            "\xEF\xBF\xBD",
            "\xF4\x8F\xBF\xBF",
            "\xC3\x85",
            "\xE2\x84\xAB",
        };
        std::string wide;
        for (int i = 0; i < 300; ++i) wide += "\xC3\xA9";
        keys.push_back(wide);
        return keys;
    }();
    return all;
}

// A store may refuse these, if its error is readable.
const std::vector<std::string>& control_keys() {
    static const std::vector<std::string> all{"\x01",   "a\x1F", "\x7F",   "\t", "a\tb",    "\n",
                                              "a\r\nb", "\x0B",  "x\x1By", "\r", "\xC2\x80"};
    return all;
}

std::string value_of(const std::string& key) {
    return "value of " + std::to_string(std::hash<std::string>()(key)) + key;
}

std::map<std::string, Info> listed(Cache& cache, std::string_view prefix = {}, Look look = Look::shallow) {
    std::map<std::string, Info> out;
    std::size_t count = 0;
    for (const Entry& entry : cache.list(prefix, look)) {
        out[entry.key] = entry.info;
        ++count;
    }
    CHECK(count == out.size());  // none twice
    return out;
}

std::vector<std::string> names(const std::map<std::string, Info>& entries) {
    std::vector<std::string> out;
    for (const auto& entry : entries) out.push_back(entry.first);
    return out;
}

// Sets all, reads all, so that two keys that meet in one object are found out.
void round_trip(Cache& cache, std::vector<std::string> keys, bool may_refuse) {
    std::set<std::string> stored;
    for (const std::string& key : keys) {
        CAPTURE(key);
        const Result<bool> set = cache.try_set(key, value_of(key));
        if (set) {
            stored.insert(key);
            continue;
        }
        const Error error = failure(set);
        INFO(error.what());
        CHECK(may_refuse);
        CHECK(error.status() >= 400);
        CHECK(error.status() < 502);
        CHECK(code_of(set) != Errc::denied);
    }
    for (const std::string& key : stored) {
        CAPTURE(key);
        const auto hit = cache.get(key);
        REQUIRE(hit);
        CHECK(hit->str() == value_of(key));
        CHECK(cache.stat(key)->etag == hit->info().etag);
    }
    const auto all = listed(cache);
    CHECK(names(all) == std::vector<std::string>(stored.begin(), stored.end()));
    for (const std::string& key : stored) {
        CAPTURE(key);
        cache.remove(key);
        CHECK_FALSE(cache.contains(key));
    }
    CHECK(listed(cache).empty());
}

}  // namespace

STORE_TEST("every odd key names an entry of its own", "[keys]") {
    SECTION("below a prefix") {
        Cache cache = space.cache();
        round_trip(cache, odd_keys(), !space.fake());
    }
    SECTION("at the root of a bucket") {
        Space root(space.store, Space::WholeBucket());
        Cache cache = root.cache();
        std::vector<std::string> keys = odd_keys();
        keys.push_back(std::string(1024 - root.prefix().size(), 'k'));
        std::string wide;
        while (wide.size() + 2 <= 1024 - root.prefix().size()) wide += "\xC3\xA9";
        keys.push_back(wide);
        round_trip(cache, keys, !space.fake());
    }
}

STORE_TEST("keys with control characters work, or the store's refusal is readable", "[keys]") {
    Cache cache = space.cache();
    round_trip(cache, control_keys(), !space.fake());
}

STORE_TEST("an odd key goes through streams, files, touch and conditions as well", "[keys]") {
    Cache cache = space.cache();
    store::Folder folder;
    store::write(folder / "in", "from a file");
    for (const std::string key : {"a b+c%20d?e#f&g", "/../x//", "\xF0\x9F\x98\x80/e\xCC\x81", "a=b&c=d;e,f:g"}) {
        CAPTURE(key);
        cache.set_file(key, folder / "in");
        CHECK(store::drained(*cache.get_stream(key)) == "from a file");
        CHECK(cache.get_file(key, folder / "out"));
        CHECK(store::contents(folder / "out") == "from a file");
        CHECK(cache.touch(key, 1h));
        CHECK(cache.stat(key)->expires_at);
        SetOptions options;
        options.if_absent = true;
        CHECK_FALSE(cache.set(key, "other", options));
        CHECK(text_of(cache.get(key)) == "from a file");
    }
}

STORE_TEST("a key that no store can hold is refused before anything is sent", "[keys][refused]") {
    Cache cache = space.cache();
    const std::string bad_keys[] = {"",
                                    std::string(1025, 'x'),
                                    std::string(1025 - space.prefix().size(), 'x'),
                                    std::string("a\0b", 3),
                                    "\xFF",
                                    "caf\xE9",
                                    "\xC0\x80",
                                    "\xED\xA0\x80",
                                    "cut \xE2\x82",
                                    "\xF4\x90\x80\x80"};
    store::Folder folder;
    store::write(folder / "in", "x");
    for (const std::string& key : bad_keys) {
        CAPTURE(key);
        CHECK(code_of(cache.try_set(key, "v")) == Errc::invalid_argument);
        std::istringstream in("v");
        CHECK(code_of(cache.try_set(key, in)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_set_file(key, folder / "in")) == Errc::invalid_argument);
        CHECK(code_of(cache.try_get(key)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_get_stream(key)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_get_file(key, folder / "out")) == Errc::invalid_argument);
        CHECK(code_of(cache.try_remove(key)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_stat(key)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_contains(key)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_touch(key, 1h)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_presign(key, "GET", 1h)) == Errc::invalid_argument);
        CHECK(code_of(cache.try_get_or_set(key, [] { return "v"; })) == Errc::invalid_argument);
    }
    CHECK(cache.stats().requests == 0);
    CHECK(folder.count() == 1);
}

// ---- lists ----------------------------------------------------------------------------------------------------------

STORE_TEST("a list gives every entry once, page after page", "[list]") {
    if (space.fake()) space.fake()->set_list_page_max(3);
    Cache cache = space.cache();
    std::vector<std::string> wanted;
    for (int i = 0; i < 30; ++i) wanted.push_back("k" + std::to_string(i / 10) + std::to_string(i % 10));
    for (const std::string& key : wanted) cache.set(key, key + std::string(wanted.size(), '.'));
    CHECK(names(listed(cache)) == wanted);
    const auto some = listed(cache, "k1");
    CHECK(names(some) == std::vector<std::string>(wanted.begin() + 10, wanted.begin() + 20));
    for (const auto& [key, info] : some) {
        CAPTURE(key);
        const auto told = cache.stat(key);
        REQUIRE(told);
        CHECK(info.size == 33);
        CHECK(store::opaque(info.etag) == store::opaque(told->etag));
        CHECK(info.last_modified > std::chrono::system_clock::now() - 1h);
        CHECK(info.last_modified < std::chrono::system_clock::now() + 1h);
    }
    CHECK(listed(cache, "k12").size() == 1);
    CHECK(listed(cache, "nothing").empty());
    CHECK(listed(cache, "k122").empty());

    std::vector<std::string> in_order;
    Listing listing = cache.list();
    while (auto entry = ok(listing.try_next())) in_order.push_back(entry->key);
    CHECK(in_order == wanted);
    CHECK_FALSE(ok(listing.try_next()));
    if (space.fake()) space.fake()->set_list_page_max(1000);
}

STORE_TEST("a prefix is a prefix of the key, and what lies beside the cache's own is not seen", "[list]") {
    Cache outer = space.cache();
    Cache inner("s3://" + space.bucket() + "/" + space.prefix() + "in", space.config());
    for (const char* key : {"in/a", "in/ab", "in/b/c", "inner", "in", "other"}) outer.set(key, "v");
    CHECK(names(listed(inner)) == std::vector<std::string>{"a", "ab", "b/c"});
    CHECK(names(listed(inner, "a")) == std::vector<std::string>{"a", "ab"});
    CHECK(names(listed(inner, "b/")) == std::vector<std::string>{"b/c"});
    CHECK(names(listed(outer, "in")).size() == 5);
    CHECK(inner.clear("") == 3);
    CHECK(names(listed(outer)) == std::vector<std::string>{"in", "inner", "other"});
}

STORE_TEST("odd prefixes find the odd keys below them", "[list][keys]") {
    Cache cache = space.cache();
    for (const std::string prefix :
         {"a b+", "%2F", "?x=", "#", "//", "../", "\xC3\xA9", "e\xCC\x81", "&<>\"", "+", " "}) {
        CAPTURE(prefix);
        cache.set(prefix + "1", "v");
        cache.set(prefix + "2", "v");
        CHECK(names(listed(cache, prefix)) == std::vector<std::string>{prefix + "1", prefix + "2"});
        CHECK(cache.clear(prefix) == 2);
    }
    CHECK(listed(cache).empty());
}

STORE_TEST("a deep look tells kind, TTL and metadata, and lists show expired entries too", "[list]") {
    Cache cache = space.cache();
    SetOptions options{1h, true};
    options.metadata = {{"owner", "alice"}};
    cache.set("a", json("[1]"), options);
    space.put_expiring("old", "x", -100);
    const auto deep = listed(cache, {}, Look::deep);
    REQUIRE(names(deep) == std::vector<std::string>{"a", "old"});
    const Info& a = deep.at("a");
    CHECK(a.kind == Kind::json);
    CHECK(a.compressed);
    CHECK(a.expires_at);
    CHECK(a.metadata == options.metadata);
    CHECK(a.content_type == "application/json");
    REQUIRE(deep.at("old").expires_at);
    CHECK(*deep.at("old").expires_at < std::chrono::system_clock::now());
    CHECK(names(listed(cache)) == std::vector<std::string>{"a", "old"});
    CHECK(space.has("old"));
}

STORE_TEST("clear removes what lies under the prefix, and tells how many", "[list][clear]") {
    if (space.fake()) space.fake()->set_list_page_max(3);
    Cache cache = space.cache();
    for (int i = 0; i < 12; ++i) cache.set("x/" + std::to_string(i), "v");
    for (const char* key : {"x/a b", "x/a+b", "x/%20", "x//", "x/\xC3\xA9"}) cache.set(key, "v");
    static_cast<void>(cache.try_set("x/\x01", "v"));  // if the store takes it
    cache.set("y", "v");
    const auto before = listed(cache, "x/").size();
    CHECK(cache.clear("x/") == before);
    CHECK(names(listed(cache)) == std::vector<std::string>{"y"});
    CHECK(cache.clear("x/") == 0);
    CHECK(cache.clear("") == 1);
    CHECK(listed(cache).empty());
    if (space.fake()) space.fake()->set_list_page_max(1000);
}

STORE_TEST("purge_expired removes what has run out and nothing else", "[list][purge]") {
    if (space.fake()) space.fake()->set_list_page_max(3);
    Cache cache = space.cache();
    for (int i = 0; i < 7; ++i) {
        space.put_expiring("x/old" + std::to_string(i), "v", -100 - i);
        space.put_expiring("x/new" + std::to_string(i), "v", 1000 + i);
    }
    space.put_expiring("y/old", "v", -1);
    space.put("x/foreign", "v");
    space.put("x/malformed", "v", {{"expires_at", "soon"}, {"expires-at", "soon"}});
    CHECK(cache.purge_expired("x/") == 7);
    CHECK(listed(cache, "x/").size() == 9);
    CHECK(space.has("y/old"));
    CHECK(space.has("x/malformed"));
    CHECK(cache.purge_expired() == 1);
    CHECK(cache.purge_expired() == 0);
    CHECK(listed(cache).size() == 9);
    if (space.fake()) space.fake()->set_list_page_max(1000);
}

STORE_TEST("uploads that crashed writers left are swept by age", "[sweep]") {
    if (space.lacks(store::Ability::lists_uploads)) return;
    Cache cache = space.cache();
    REQUIRE(space.store.raw.request("POST", space.path("x/left"), {{"uploads", ""}}).status == 200);
    REQUIRE(space.store.raw.request("POST", space.path("y/left ?+%"), {{"uploads", ""}}).status == 200);
    REQUIRE(space.open_uploads() == 2);
    CHECK(cache.sweep_uploads("", 1h) == 0);
    // "Longer ago than 0 s" waits for the store's clock to move on, however coarse that is.
    const auto swept = [&](std::string_view prefix) {
        std::uint64_t count = 0;
        for (int i = 0; i < 100 && count == 0; ++i) {
            count = cache.sweep_uploads(prefix, 0s);
            if (count == 0) std::this_thread::sleep_for(100ms);
        }
        return count;
    };
    CHECK(swept("x/") == 1);
    CHECK(space.open_uploads() == 1);
    CHECK(swept("") == 1);
    CHECK(space.open_uploads() == 0);
}

// ---- many keys ------------------------------------------------------------------------------------------------------

STORE_TEST("get_many visits every key once with its own result", "[many]") {
    Config config = space.config();
    for (const unsigned connections : {1U, 2U, 8U}) {
        CAPTURE(connections);
        config.connections = connections;
        Cache cache = space.cache(config);
        std::vector<std::string> keys;
        for (int i = 0; i < 20; ++i) {
            const std::string key = "many " + std::to_string(i);
            if (i % 4 != 3) cache.set(key, value_of(key), {1h, i % 2 == 0});
            keys.push_back(key);
        }
        space.put_expiring("many old", "x", -10);
        keys.emplace_back("many old");
        keys.emplace_back("");
        keys.emplace_back("many 0");  // asked for twice
        std::map<std::string, int> visits;
        cache.get_many(keys, [&](const std::string& key, Result<std::optional<Value>> result) {
            CAPTURE(key);
            ++visits[key];
            if (key.empty()) {
                CHECK(code_of(result) == Errc::invalid_argument);
                return;
            }
            REQUIRE(result);
            const bool there = key != "many old" && std::stoi(key.substr(5)) % 4 != 3;
            REQUIRE(result->has_value() == there);
            if (there) CHECK((*result)->str() == value_of(key));
        });
        CHECK(visits.size() == 22);
        for (const auto& [key, count] : visits) CHECK(count == (key == "many 0" ? 2 : 1));
        cache.get_many({}, [](const std::string&, const Result<std::optional<Value>>&) { FAIL("there was no key"); });
    }
}

STORE_TEST("set_many stores every item that can be, and tells of each", "[many]") {
    Config config = space.config();
    for (const unsigned connections : {1U, 8U}) {
        CAPTURE(connections);
        config.connections = connections;
        Cache cache = space.cache(config);
        cache.clear("");
        cache.set("taken", "old");
        std::vector<std::string> values;
        for (int i = 0; i < 20; ++i)
            values.push_back("value " + std::to_string(i) + store::text_lines(static_cast<std::size_t>(i) * 100));
        std::vector<Item> items;
        for (int i = 0; i < 20; ++i) {
            items.push_back({"k" + std::to_string(i), values[static_cast<std::size_t>(i)], {1h, i % 2 == 0}});
        }
        items.push_back({"", "no key", {}});
        items.push_back({"bad", json("{"), {}});
        Item refused{"taken", "new", {}};
        refused.options.if_absent = true;
        items.push_back(refused);
        const auto results = cache.set_many(items);
        REQUIRE(results.size() == items.size());
        for (std::size_t i = 0; i < 20; ++i) {
            CAPTURE(i);
            CHECK(ok(results[i]));
            const auto hit = cache.get("k" + std::to_string(i));
            REQUIRE(hit);
            CHECK(hit->str() == values[i]);
            CHECK(hit->info().compressed == (i % 2 == 0));
            CHECK(hit->info().expires_at);
        }
        CHECK(code_of(results[20]) == Errc::invalid_argument);
        CHECK(code_of(results[21]) == Errc::invalid_argument);
        CHECK_FALSE(ok(results[22]));
        CHECK(text_of(cache.get("taken")) == "old");
        CHECK_FALSE(cache.contains("bad"));
        CHECK(cache.set_many({}).empty());
    }
}

STORE_TEST("remove_many removes them all, absent ones included, with a result each", "[many]") {
    Cache cache = space.cache();
    std::vector<std::string> keys;
    for (const std::string& key : odd_keys()) {
        if (cache.try_set(key, "v")) keys.push_back(key);
    }
    for (const std::string& key : control_keys()) {
        if (cache.try_set(key, "v")) keys.push_back(key);
    }
    cache.set("stays", "v");
    keys.emplace_back("was never there");
    keys.emplace_back("");
    keys.emplace_back("plain");  // twice
    const auto results = cache.remove_many(keys);
    REQUIRE(results.size() == keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        CAPTURE(keys[i]);
        if (keys[i].empty())
            CHECK(code_of(results[i]) == Errc::invalid_argument);
        else
            ok(results[i]);
    }
    CHECK(names(listed(cache)) == std::vector<std::string>{"stays"});
    CHECK(cache.remove_many({}).empty());
}

STORE_TEST("large values go through many-key calls as well", "[many]") {
    Cache cache = space.cache();
    const std::string large = store::random_bytes((std::size_t{11} << 20) + 3, 5);
    std::vector<Item> items{{"large", bytes(large.data(), large.size()), {}}, {"small", "s", {}}};
    for (const auto& result : cache.set_many(items)) CHECK(ok(result));
    int visits = 0;
    cache.get_many({"large", "small"}, [&](const std::string& key, const Result<std::optional<Value>>& result) {
        ++visits;
        REQUIRE(result);
        REQUIRE(*result);
        CHECK(same((*result)->view(), key == "large" ? std::string_view(large) : "s"));
    });
    CHECK(visits == 2);
}

// ---- presigned URLs -------------------------------------------------------------------------------------------------

STORE_TEST("a presigned URL lets anyone get and put, and no one else", "[presign]") {
    Cache cache = space.cache();
    for (const std::string key : {"k", "a b+c%20d?e#f&g", "../\xC3\xA9//"}) {
        CAPTURE(key);
        cache.set(key, "for you", {1h});
        const std::string url = cache.presign(key, "GET", 10min);
        CHECK(url.compare(0, space.store.endpoint().size(), space.store.endpoint()) == 0);
        store::check_no_secret(url);
        const store::Answer got = space.store.raw.send("GET", url);
        CHECK(got.status == 200);
        CHECK(got.body == "for you");
        if (!space.lacks(store::Ability::authentication, "a stranger's requests")) {
            CHECK(space.store.raw.send("PUT", url, {}, "evil").status == 403);
            // 400 by Swift, to which it is no request of S3's
            const store::Answer unsigned_get = space.store.raw.send("GET", url.substr(0, url.find('?')));
            CHECK((unsigned_get.status == 403 || unsigned_get.status == 400));
            CHECK_FALSE(store::holds(unsigned_get.body, "for you"));
        }
        CHECK(text_of(cache.get(key)) == "for you");

        const std::string put = cache.presign(key, "PUT", 1s * 604800);
        CHECK(space.store.raw.send("PUT", put, {}, "{\"a\":1}").status == 200);
        const auto hit = cache.get(key);
        REQUIRE(hit);
        CHECK(hit->str() == "{\"a\":1}");
        CHECK(hit->kind() == Kind::json);
    }
}

STORE_TEST("a presigned URL's lifetime and method are checked, and nothing is sent for it", "[presign][refused]") {
    Cache cache = space.cache();
    for (const double bad : {0.0, 0.5, -1.0, 604801.0, 1e300, std::numeric_limits<double>::quiet_NaN()}) {
        CAPTURE(bad);
        CHECK(code_of(cache.try_presign("k", "GET", Seconds(bad))) == Errc::invalid_argument);
    }
    for (const char* method : {"", "get", "DELETE", "HEAD", "GET\r\n"}) {
        CAPTURE(method);
        CHECK(code_of(cache.try_presign("k", method, 1h)) == Errc::invalid_argument);
    }
    CHECK(cache.try_presign("k", "GET", 1s));
    CHECK(cache.stats().requests == 0);
}
