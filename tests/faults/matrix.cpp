// The fault matrix: every operation, each request it sends, every fault, every point at which it can strike, once and for
// ever. A cell is right if the caller got the right value or a clear error of a kind that fits, the store holds the old
// value or the new one, whole, no upload is left open that was not counted, and as many requests were sent as the policy says.
#include "gzip_tools.hpp"
#include "world.hpp"

#include <array>

using namespace s3cache;
using namespace std::chrono_literals;
using fake_s3::Fault;
using fake_s3::Point;
using store::World;

namespace {

constexpr std::size_t piece = std::size_t{64}
                              << 10;  // of parts and ranges here: small, since there are thousands of cells
constexpr int attempts = 3;
constexpr auto short_call = 60ms;  // of calls that meet a stall: each such cell waits for its end

// ---- what a cell came to ----------------------------------------------------------------------------------------------

struct Outcome {
    bool right = false;
    std::string wrong{};  // a result that is neither right nor an error
    std::optional<Error> error{};
};

template <class T, class IsRight>
Outcome judged(const Result<T>& result, IsRight&& is_right, const char* wrong = "a wrong result") {
    if (!result) return {false, {}, result.error()};
    if (is_right(*result)) return {true};
    return {false, wrong};
}

Outcome stored(const Result<bool>& result) {
    return judged(
        result, [](bool yes) { return yes; }, "refused without a reason");
}

// Of many results: right if all are, else an error of one of them.
template <class T, class IsRight>
void add(Outcome& sum, const Result<T>& result, IsRight&& is_right) {
    Outcome one = judged(result, is_right);
    if (!one.wrong.empty()) sum.wrong = one.wrong;
    if (one.error) sum.error = one.error;
}

// ---- operations -------------------------------------------------------------------------------------------------------

struct Target {  // one request of an operation
    enum Answer {
        silent,
        xml,
        looked_at_xml,
        entry
    };  // looked at: the status alone is no success, a bad body is tried again

    std::string request;
    std::size_t nth = 1;
    Answer answer = silent;
    std::uint64_t sends = 0, brings = 0;  // bytes of bodies
    std::string key{};
    std::size_t follow = 0;   // requests that are sent all the same once this one has failed for good
    bool lenient = false;     // its failure is not the caller's
    bool lost_looks = false;  // where its answer got lost, a look at the entry settles what happened
    bool resumes = false;     // a body that breaks off goes on where it was
    bool head_tells = false;  // its body is not needed
    bool spread = false;      // over how many ranges, and over which, depends on how fast they come
    bool ranged = false;      // a range was asked for
    std::size_t repeats = 1;  // requests like it that may follow
    std::size_t loose = 0;    // requests that may be under way beside it
    bool part = false;        // its 200 is taken at its word until all parts are put together

    bool head() const { return request == "HeadObject" || request == "HeadBucket"; }
};

struct Scene {  // what an operation works on
    World& world;
    Cache& cache;
    store::Folder& folder;
};

constexpr std::size_t requests_spread_max = 40;  // of a download in eight ranges, each tried three times

struct Operation {
    std::string name;
    std::vector<Target> targets;
    std::function<void(World&)> prepare;
    std::function<Outcome(Scene&)> run;
    // What is wrong with the store afterwards; `struck`: the effect of the failed request may be there.
    std::function<std::string(World&, const Outcome&, bool struck)> state;
    bool slow_line = false;    // so that a download is spread over several connections
    bool slow_to_end = false;  // the call's deadline covers its beginning only
};

constexpr auto deadline = 300ms;      // of the calls whose length is measured
constexpr auto overrun_max = 1000ms;  // what a busy machine and the cleaning up of an upload may add

const std::string& old_text() {
    static const std::string text = "the old value: " + store::text_lines(300);
    return text;
}
const std::string& new_text() {
    static const std::string text = "the new value: " + store::text_lines(3000);
    return text;
}
const std::string& large_text() {  // three parts and a bit
    static const std::string text = store::random_bytes(3 * piece + 1000, 77);
    return text;
}

void put_old(World& world) { world.put("k", old_text()); }
void put_nothing(World&) {}

// As the cache itself writes it, in one PUT and with its checksum.
void put_own(World& world, const std::string& key, const std::string& text, const SetOptions& options = {}) {
    Config config = world.config();
    config.part_bytes = std::size_t{1} << 20;
    world.cache(config).set(key, bytes(text.data(), text.size()), options);
}

std::string unchanged(World& world, const std::string& key, const std::string& before) {
    return world.body(key) == before ? "" : key + " was changed";
}

auto state_of_write(std::string before, std::string after, bool gzip = false) {
    return [=](World& world, const Outcome& outcome, bool struck) -> std::string {
        std::string body = world.body("k");
        if (gzip && body != before && body != "(nothing)") {
            std::string problem;
            body = gzip_tools::inflate_all(body, std::size_t{1} << 20, problem).value_or("damaged gzip");
        }
        const bool is_new = body == after, is_old = body == before;
        if (!is_new && !is_old) return "neither the old value nor the new one is there";
        if (outcome.right && !is_new) return "said to be stored, and is not";
        if (!outcome.right && is_new && !struck) return "the request that failed had an effect";
        return {};
    };
}

// The first conditional write asks the store, with an object of its own, whether it heeds conditions.
std::vector<Target> probe_targets() {
    std::vector<Target> out;
    for (Target probe : {Target{"PutObject", 1}, Target{"PutObject", 2}, Target{"DeleteObject", 1}}) {
        probe.key = "probe/";
        probe.lenient = true;  // what cannot be found out is looked at before each write
        probe.repeats = 4;
        out.push_back(probe);
    }
    return out;
}

std::vector<Target> put_target(std::size_t bytes, bool conditional = false) {
    Target put{"PutObject"};
    put.key = "k";
    put.sends = bytes;
    put.lost_looks = conditional;
    return {put};
}

std::vector<Target> upload_targets(std::size_t bytes, bool abort_follows = true) {
    std::vector<Target> out;
    Target create{"CreateMultipartUpload"};
    create.answer = Target::looked_at_xml;
    create.brings = 250;
    out.push_back(create);
    const std::size_t parts = (bytes + piece - 1) / piece;
    for (const std::size_t nth : {std::size_t{1}, parts}) {
        Target part{"UploadPart", nth};
        part.sends = nth == parts ? bytes - (parts - 1) * piece : piece;
        part.follow = abort_follows ? 1 : 0;
        part.part = true;
        out.push_back(part);
    }
    Target complete{"CompleteMultipartUpload"};
    complete.answer = Target::looked_at_xml;
    complete.sends = 300;
    complete.brings = 250;
    complete.follow = 1;
    complete.lost_looks = true;
    out.push_back(complete);
    return out;
}

Target read_target(std::uint64_t bytes, std::size_t nth = 1) {
    Target get{"GetObject", nth, Target::entry};
    get.brings = bytes;
    get.resumes = true;
    get.ranged = nth > 1;
    get.loose = get.ranged      ? 2 * attempts
                : bytes > piece ? attempts
                                : 0;  // how much is in ranges depends on how it arrives
    return get;
}

Target head_target(const char* request = "HeadObject") {
    Target head{request};
    if (request == std::string("HeadObject")) head.key = "k";
    head.lenient = request == std::string("HeadBucket");  // whatever it says but a 404, the bucket may be there
    return head;
}

SetOptions conditional(bool absent, const std::string& etag = {}) {
    SetOptions options;
    options.if_absent = absent;
    options.if_match = etag;
    return options;
}

void add_writes(std::vector<Operation>& all) {
    all.push_back({"set", put_target(new_text().size()), put_old,
                   [](Scene& on) { return stored(on.cache.try_set("k", new_text(), {1h})); },
                   state_of_write(old_text(), new_text())});
    all.push_back(
        {"set in parts", upload_targets(large_text().size()), put_old,
         [](Scene& on) { return stored(on.cache.try_set("k", bytes(large_text().data(), large_text().size()))); },
         state_of_write(old_text(), large_text())});
    all.push_back({"set a stream", upload_targets(large_text().size()), put_old,
                   [](Scene& on) { return stored(on.cache.try_set("k", std::istringstream(large_text()))); },
                   state_of_write(old_text(), large_text())});
    all.push_back({"set a short stream", put_target(new_text().size()), put_nothing,
                   [](Scene& on) { return stored(on.cache.try_set("k", std::istringstream(new_text()))); },
                   state_of_write("(nothing)", new_text())});
    all.push_back({"set gzip", put_target(900), put_old,
                   [](Scene& on) {
                       return stored(on.cache.try_set("k", new_text(), {1h, true}));
                   },
                   state_of_write(old_text(), new_text(), true)});
    all.push_back({"set a file", put_target(new_text().size()), put_old,
                   [](Scene& on) {
                       store::write(on.folder / "in", new_text());
                       return stored(on.cache.try_set_file("k", on.folder / "in"));
                   },
                   state_of_write(old_text(), new_text())});
    all.push_back({"set a file in parts", upload_targets(large_text().size()), put_old,
                   [](Scene& on) {
                       store::write(on.folder / "in", large_text());
                       return stored(on.cache.try_set_file("k", on.folder / "in"));
                   },
                   state_of_write(old_text(), large_text())});
}

void add_conditional_writes(std::vector<Operation>& all) {
    std::vector<Target> absent = put_target(new_text().size(), true);
    absent.push_back(head_target());
    for (const Target& probe : probe_targets()) absent.push_back(probe);
    all.push_back({"set if absent", absent, put_nothing,
                   [](Scene& on) { return stored(on.cache.try_set("k", new_text(), conditional(true))); },
                   state_of_write("(nothing)", new_text())});
    std::vector<Target> match = put_target(new_text().size(), true);
    match.push_back(head_target());
    all.push_back({"set if unchanged", match, put_old,
                   [](Scene& on) {
                       return stored(on.cache.try_set("k", new_text(),
                                                      conditional(false, on.world.s3.object("bucket", "k")->etag)));
                   },
                   state_of_write(old_text(), new_text())});
    std::vector<Target> parts = upload_targets(large_text().size());
    all.push_back({"set if absent in parts", parts, put_nothing,
                   [](Scene& on) {
                       return stored(
                           on.cache.try_set("k", bytes(large_text().data(), large_text().size()), conditional(true)));
                   },
                   state_of_write("(nothing)", large_text())});
    Target abort{"AbortMultipartUpload"};
    abort.lenient = true;
    all.push_back({"give up an upload",
                   {abort},
                   [](World& world) {
                       put_old(world);
                       world.s3.add_fault(fake_s3::respond_error(403, "AccessDenied")
                                              .on("UploadPart")
                                              .with_query("partNumber=2&")
                                              .for_times(fake_s3::forever));
                   },
                   [](Scene& on) {
                       const auto result = on.cache.try_set("k", bytes(large_text().data(), large_text().size()));
                       if (!result && result.error().code() == Errc::denied) return Outcome{true};
                       if (!result && result.error().code() == Errc::timed_out)
                           return Outcome{false, {}, result.error()};
                       return Outcome{false, "the error of the part got lost"};
                   },
                   [](World& world, const Outcome&, bool) { return unchanged(world, "k", old_text()); }});
}

auto reading(std::string key, std::string text) {
    return [=](World& world, const Outcome&, bool) { return unchanged(world, key, text); };
}

Outcome got(const Result<std::optional<Value>>& result, const std::string& wanted) {
    return judged(
        result, [&](const std::optional<Value>& hit) { return hit && hit->view() == wanted; },
        result && *result ? "a wrong value" : "a miss");
}

Outcome got_stream(Cache& cache, const std::string& wanted) {
    Result<std::optional<Reader>> reader = cache.try_get_stream("k");
    if (!reader) return {false, {}, reader.error()};
    if (!*reader) return {false, "a miss"};
    std::string text;
    for (;;) {
        const Result<std::string_view> chunk = (*reader)->try_next();
        if (!chunk) return {false, {}, chunk.error()};
        if (chunk->empty()) break;
        text += *chunk;
    }
    return text == wanted ? Outcome{true} : Outcome{false, "a wrong stream"};
}

Outcome got_file(Scene& on, const std::string& wanted) {
    const std::string path = on.folder / "out";
    store::write(path, "before");
    const auto result = on.cache.try_get_file("k", path);
    const std::string there = store::contents(path);
    std::filesystem::remove(path);
    if (on.folder.count() != 0) return {false, "a file was left beside the target"};
    if (!result && there != "before") return {false, "an error, and the file is not as it was"};
    if (result && *result && there != wanted) return {false, "a wrong file"};
    return judged(
        result, [](const std::optional<Info>& info) { return info.has_value(); }, "a miss");
}

void add_reads(std::vector<Operation>& all) {
    const auto own = [](World& world) { put_own(world, "k", new_text()); };
    const auto large = [](World& world) { put_own(world, "k", large_text()); };
    const Target whole = read_target(large_text().size());
    all.push_back({"get",
                   {read_target(new_text().size())},
                   own,
                   [](Scene& on) { return got(on.cache.try_get("k"), new_text()); },
                   reading("k", new_text())});
    std::vector<Target> ranges{read_target(piece + 1000), read_target(piece, 2)};
    for (Target& range : ranges) range.spread = true;
    static const std::string long_text = store::random_bytes(8 * piece + 1000, 78);
    all.push_back({"get in ranges", ranges, [](World& world) { put_own(world, "k", long_text); },
                   [](Scene& on) { return got(on.cache.try_get("k"), long_text); }, reading("k", long_text), true});
    all.push_back({"get gzip",
                   {read_target(900)},
                   [](World& world) {
                       put_own(world, "k", new_text(), {1h, true});
                   },
                   [](Scene& on) { return got(on.cache.try_get("k"), new_text()); },
                   [](World&, const Outcome&, bool) { return std::string(); }});
    all.push_back({"get as a stream",
                   {whole},
                   large,
                   [](Scene& on) { return got_stream(on.cache, large_text()); },
                   reading("k", large_text()),
                   false,
                   true});
    all.push_back({"get a file",
                   {whole},
                   large,
                   [](Scene& on) { return got_file(on, large_text()); },
                   reading("k", large_text())});
    const auto shown = [](const std::optional<Info>& info) {
        return info && info->size == new_text().size() && !info->etag.empty();
    };
    all.push_back({"stat",
                   {head_target()},
                   own,
                   [=](Scene& on) { return judged(on.cache.try_stat("k"), shown); },
                   reading("k", new_text())});
    all.push_back({"contains",
                   {head_target()},
                   own,
                   [](Scene& on) { return judged(on.cache.try_contains("k"), [](bool yes) { return yes; }); },
                   reading("k", new_text())});
    all.push_back({"contains, missing",
                   {head_target(), head_target("HeadBucket")},
                   put_nothing,
                   [](Scene& on) { return judged(on.cache.try_contains("k"), [](bool yes) { return !yes; }); },
                   reading("k", "(nothing)")});
    Target look = head_target(), remove{"DeleteObject"}, read = read_target(new_text().size());
    look.lenient = remove.lenient = true;
    read.loose = 2;  // to remove it
    read.head_tells = true;
    all.push_back({"get what has expired",
                   {read, look, remove},
                   [](World& world) { world.put_expiring("k", new_text(), -60); },
                   [](Scene& on) {
                       return judged(
                           on.cache.try_get("k"), [](const auto& hit) { return !hit; }, "an expired value");
                   },
                   [](World& world, const Outcome&, bool) {
                       return world.has("k") ? unchanged(world, "k", new_text()) : std::string();
                   }});
}

void add_changes(std::vector<Operation>& all) {
    Target copy{"CopyObject", 1, Target::looked_at_xml};
    copy.brings = 200;
    all.push_back(
        {"touch",
         {head_target(), copy},
         [](World& world) { put_own(world, "k", new_text()); },
         [](Scene& on) { return judged(on.cache.try_touch("k", 1h), [](bool yes) { return yes; }); },
         [](World& world, const Outcome& outcome, bool struck) -> std::string {
             const auto entry = world.s3.object("bucket", "k");
             const auto expires = [](const store::Headers::value_type& meta) { return meta.first == "expires_at"; };
             const bool touched = entry && std::any_of(entry->metadata.begin(), entry->metadata.end(), expires);
             if (outcome.right && !touched) return "said to be touched, and is not";
             if (!outcome.right && touched && !struck) return "the request that failed had an effect";
             return unchanged(world, "k", new_text());
         }});
    all.push_back({"remove",
                   {Target{"DeleteObject"}},
                   put_old,
                   [](Scene& on) {
                       const auto result = on.cache.try_remove("k");
                       return result ? Outcome{true} : Outcome{false, {}, result.error()};
                   },
                   [](World& world, const Outcome& outcome, bool struck) -> std::string {
                       if (outcome.right && world.has("k")) return "said to be removed, and is there";
                       if (!outcome.right && !world.has("k") && !struck) return "the request that failed had an effect";
                       return world.has("k") ? unchanged(world, "k", old_text()) : std::string();
                   }});
}

const std::vector<std::string>& some_keys() {
    static const std::vector<std::string> keys{"k1", "k2", "k3"};
    return keys;
}
void put_some(World& world) {
    for (const std::string& key : some_keys()) put_own(world, key, "value of " + key);
}

std::string whole_or_gone(World& world, const Outcome& outcome, bool) {
    for (const std::string& key : some_keys()) {
        if (!world.has(key)) continue;
        if (outcome.right) return "said to be removed, and is there";
        if (world.body(key) != "value of " + key) return key + " was changed";
    }
    return {};
}

Outcome listed(Cache& cache) {
    Result<Listing> listing = cache.try_list();
    if (!listing) return {false, {}, listing.error()};
    std::vector<std::string> keys;
    for (;;) {
        const Result<std::optional<Entry>> entry = listing->try_next();
        if (!entry) return {false, {}, entry.error()};
        if (!*entry) break;
        keys.push_back((*entry)->key);
    }
    return keys == some_keys() ? Outcome{true} : Outcome{false, "a wrong list"};
}

void add_lists(std::vector<Operation>& all) {
    Target first{"ListObjectsV2", 1, Target::xml}, second{"ListObjectsV2", 2, Target::xml};
    first.brings = second.brings = 400;
    const auto all_there = [](World& world, const Outcome&, bool) -> std::string {
        for (const std::string& key : some_keys()) {
            if (world.body(key) != "value of " + key) return key + " was changed";
        }
        return {};
    };
    all.push_back({"list", {first, second}, put_some, [](Scene& on) { return listed(on.cache); }, all_there});
    Target bulk{"DeleteObjects", 1, Target::looked_at_xml};
    bulk.sends = 200;
    bulk.brings = 100;
    bulk.lenient = true;  // keys may be removed one by one instead
    all.push_back(
        {"clear",
         {first, bulk},
         put_some,
         [](Scene& on) { return judged(on.cache.try_clear(""), [](std::uint64_t count) { return count == 3; }); },
         whole_or_gone});
    all.push_back({"remove many",
                   {bulk},
                   put_some,
                   [](Scene& on) {
                       Outcome sum{true};
                       for (const auto& result : on.cache.remove_many(some_keys())) {
                           if (!result) sum = {false, {}, result.error()};
                       }
                       return sum;
                   },
                   whole_or_gone});
    Target look{"HeadObject"}, remove{"DeleteObject"};
    look.key = remove.key = "k1";
    look.lenient = remove.lenient = true;
    all.push_back({"purge expired",
                   {first, look, remove},
                   [](World& world) {
                       world.put_expiring("k1", "value of k1", -60);
                       world.put_expiring("k2", "value of k2", 6000);
                   },
                   [](Scene& on) {
                       return judged(on.cache.try_purge_expired(),
                                     [&](std::uint64_t count) { return count <= 1 && !(count && on.world.has("k1")); });
                   },
                   [](World& world, const Outcome&, bool) { return unchanged(world, "k2", "value of k2"); }});
}

void add_sweep(std::vector<Operation>& all) {
    Target list{"ListMultipartUploads", 1, Target::xml}, abort{"AbortMultipartUpload"};
    list.brings = 400;
    abort.lenient = true;
    abort.repeats = 2;
    all.push_back({"sweep uploads",
                   {list, abort},
                   [](World& world) {
                       const store::Raw raw(world.s3.endpoint(), world.s3.ca_file(), world.s3.access_key(),
                                            world.s3.secret_key(), "us-east-1");
                       const std::int64_t off = world.s3.now() - std::time(nullptr);
                       world.s3.set_clock_offset(0);  // that client knows this machine's clock alone
                       for (const char* path : {"/bucket/a", "/bucket/b"})
                           store::expect(raw.request("POST", path, {{"uploads", ""}}).status == 200, "no upload");
                       world.s3.set_clock_offset(off);
                   },
                   [](Scene& on) {
                       return judged(on.cache.try_sweep_uploads("", -1h), [&](std::uint64_t count) {
                           return count + on.world.s3.open_uploads().size() <= 2;
                       });
                   },
                   [](World& world, const Outcome&, bool) {
                       world.s3.erase_all();  // those that are left lay there before
                       return std::string();
                   }});
}

void add_many(std::vector<Operation>& all) {
    Target get = read_target(11), put{"PutObject"};
    get.key = put.key = "k2";
    get.follow = put.follow = 1;
    put.sends = 11;
    all.push_back(
        {"get many",
         {get},
         put_some,
         [](Scene& on) {
             Outcome sum;
             std::size_t visits = 0;
             on.cache.get_many(some_keys(), [&](const std::string& key, const Result<std::optional<Value>>& result) {
                 ++visits;
                 add(sum, result,
                     [&](const std::optional<Value>& hit) { return hit && hit->view() == "value of " + key; });
             });
             if (visits != 3) sum.wrong = "not one result a key";
             sum.right = sum.wrong.empty() && !sum.error;
             return sum;
         },
         [](World& world, const Outcome&, bool) { return unchanged(world, "k2", "value of k2"); }});
    all.push_back({"set many",
                   {put},
                   put_nothing,
                   [](Scene& on) {
                       Outcome sum;
                       std::vector<std::string> values;
                       for (const std::string& key : some_keys()) values.push_back("value of " + key);
                       std::vector<Item> items;
                       for (std::size_t i = 0; i < values.size(); ++i) items.push_back({some_keys()[i], values[i], {}});
                       for (const auto& result : on.cache.set_many(items))
                           add(sum, result, [](bool yes) { return yes; });
                       sum.right = sum.wrong.empty() && !sum.error;
                       return sum;
                   },
                   [](World& world, const Outcome& outcome, bool struck) -> std::string {
                       // A busy machine may be out of time before the first of them is sent.
                       const bool had_time = !outcome.error || outcome.error->code() != Errc::timed_out;
                       for (const std::string& key : some_keys()) {
                           const bool there = world.has(key);
                           if (there && world.body(key) != "value of " + key) return "a wrong value";
                           if (!there && (outcome.right || (key == "k1" && had_time)))
                               return "said to be stored, and is not";
                           if (there && !outcome.right && key == "k2" && !struck)
                               return "the request that failed had an effect";
                       }
                       return {};
                   }});
    Target read = read_target(0), write{"PutObject"};
    read.resumes = false;
    read.answer = Target::silent;  // a 404
    read.lenient = true;           // a store that cannot be reached keeps nobody from computing
    write.sends = new_text().size();
    write.lenient = true;
    all.push_back({"get or set",
                   {read, write},
                   put_nothing,
                   [](Scene& on) {
                       return judged(on.cache.try_get_or_set("k", [] { return new_text(); }),
                                     [](const Value& value) { return value.view() == new_text(); });
                   },
                   [](World& world, const Outcome&, bool) {
                       return world.has("k") ? unchanged(world, "k", new_text()) : std::string();
                   }});
}

std::vector<Operation> operations() {
    std::vector<Operation> all;
    add_writes(all);
    add_conditional_writes(all);
    add_reads(all);
    add_changes(all);
    add_lists(all);
    add_sweep(all);
    add_many(all);
    return all;
}

// ---- faults -----------------------------------------------------------------------------------------------------------

enum class Policy {
    harmless,   // nothing is noticed
    retried,    // tried again until the attempts are used up
    corrected,  // tried again once, with what was wrong put right
    final,      // no other attempt
    tolerated,  // either right or an error, with no more requests than retries allow
};

struct Strike {
    std::string fault, point;
    Fault script;
    Policy policy = Policy::retried;
    std::vector<Errc> codes{};  // of the error that it may come to
    bool after = false;         // the request has had its effect
    bool unlogged = false;      // the fake sees no request
    bool gone = false;          // the store refuses connections after it
    bool clock = false;         // the store's clock is days off
    bool stall = false;         // until the call's deadline
};

const std::vector<Errc> cut_off{Errc::network, Errc::tls};
const std::vector<Errc> not_s3{Errc::protocol, Errc::network, Errc::store, Errc::damaged};
const std::vector<Errc> refused{Errc::store, Errc::throttled};
const std::vector<Errc> too_long{Errc::protocol, Errc::too_large};
const std::vector<Errc> two_answers{Errc::protocol, Errc::changed};

void add_connection_faults(std::vector<Strike>& out, const Target& on, bool first, bool tls) {
    struct Kind {
        const char* name;
        Fault (*make)(Point, std::uint64_t);
    };
    for (const Kind& kind :
         {Kind{"close", fake_s3::close_at}, Kind{"drop", fake_s3::drop_at}, Kind{"reset", fake_s3::reset_at}}) {
        if (!tls && kind.name == std::string("drop")) continue;  // the same as close
        const auto at = [&](const char* point, Point where, std::uint64_t offset, bool after,
                            Policy policy = Policy::retried) {
            Strike strike{kind.name, point, kind.make(where, offset), policy, cut_off};
            strike.after = after;
            strike.unlogged = where == Point::connect;
            out.push_back(strike);
        };
        if (first) at("connect", Point::connect, 0, false);
        at("request head", Point::request_head, 0, false);
        if (on.sends) at("mid request body", Point::request_body, on.sends / 2, false);
        at("before the effect", Point::before_effect, 0, false);
        at("after the effect", Point::after_effect, 0, true);
        at("answer head", Point::answer_head, 10, true);
        if (on.brings)
            at("answer body", Point::answer_body, on.brings / 2, true,
               on.resumes ? Policy::tolerated : Policy::retried);
        // Bytes that are still unread when the reset comes may be lost.
        at("answer end", Point::answer_end, 0, true,
           kind.name == std::string("reset") ? Policy::tolerated : Policy::harmless);
    }
    Strike gone{"refuse", "from here on", fake_s3::close_at(Point::before_effect),
                on.spread ? Policy::tolerated : Policy::retried, cut_off};  // of ranges in parallel any may meet it
    gone.gone = true;
    out.push_back(gone);
}

void add_stalls(std::vector<Strike>& out, const Target& on) {
    const auto at = [&](const char* point, Point where, std::uint64_t offset, bool after) {
        Strike strike{"stall",
                      point,
                      fake_s3::stall_at(where, 0ms, offset),
                      where == Point::answer_body && on.head_tells ? Policy::tolerated : Policy::final,
                      {Errc::timed_out}};
        strike.after = after;
        strike.stall = true;
        out.push_back(strike);
        out.push_back({"pause", point, fake_s3::stall_at(where, 3ms, offset), Policy::harmless});
    };
    at("request head", Point::request_head, 0, false);
    if (on.sends > 4096) at("mid request body", Point::request_body, on.sends / 2, false);
    at("before the effect", Point::before_effect, 0, false);
    at("after the effect", Point::after_effect, 0, true);
    at("answer head", Point::answer_head, 10, true);
    if (on.brings) at("answer body", Point::answer_body, on.brings / 2, true);
}

// An answer of another status, before or after the request had its effect.
void add_refusals(std::vector<Strike>& out, const Target& on) {
    const auto both = [&](const char* name, const Fault& fault, Policy policy, const std::vector<Errc>& codes) {
        out.push_back({name, "before the effect", fault, policy, codes});
        Strike late{name, "after the effect", fault.placed(Point::after_effect), policy, codes};
        late.after = true;
        out.push_back(late);
    };
    both("503 SlowDown", fake_s3::slow_down(), Policy::retried, refused);
    both("500 InternalError", fake_s3::respond_error(500, "InternalError"), Policy::retried, refused);
    both("503 HTML", fake_s3::html_page(503), Policy::retried, refused);
    both("429", fake_s3::respond(429), Policy::retried, refused);
    out.push_back({"503, Retry-After", "before the effect", fake_s3::slow_down("1"), Policy::retried, refused});
    // The answer to a HEAD cannot say why it is a refusal: fresh credentials may help.
    out.push_back({"403",
                   "before the effect",
                   fake_s3::respond_error(403, "AccessDenied"),
                   on.head() ? Policy::corrected : Policy::final,
                   {Errc::denied}});
    // The 404 to a HEAD cannot say what is missing; to an abort it says that there is nothing to abort.
    if (!on.head() && on.request != "AbortMultipartUpload") {
        out.push_back({"NoSuchBucket",
                       "before the effect",
                       fake_s3::respond_error(404, "NoSuchBucket"),
                       on.ranged ? Policy::tolerated : Policy::final,
                       {Errc::no_such_bucket, Errc::changed}});
    }
    // The answer to a HEAD cannot say what kind of 400 it is: on a connection that was kept it is tried once more.
    out.push_back({"expired token",
                   "before the effect",
                   fake_s3::expired_token(),
                   on.head() ? Policy::tolerated : Policy::corrected,
                   {Errc::credentials, Errc::store}});
}

Policy unfit_policy(const Target& on) {
    if (on.part || on.ranged) return Policy::tolerated;  // a store that ignores ranges answers with a 200
    // A PUT is sent again, because Swift answers so to one of two who write a key at once.
    return on.answer == Target::looked_at_xml || on.request == "PutObject" ? Policy::retried : Policy::final;
}

// A 200 that is not what the operation's answer looks like.
void add_unfit_answers(std::vector<Strike>& out, const Target& on) {
    const auto both = [&](const char* name, const Fault& fault) {
        for (const bool after : {false, true}) {
            Strike strike{name, after ? "after the effect" : "before the effect", fault, unfit_policy(on), not_s3};
            strike.after = after;
            if (after) strike.script = fault.placed(Point::after_effect);
            out.push_back(strike);
        }
    };
    both("error in a 200", fake_s3::error_in_200());
    both("HTML with a 200", fake_s3::html_page(200));
    const bool may_be_empty = on.request == "DeleteObject" || on.request == "AbortMultipartUpload";
    if (!may_be_empty) both("an empty 200", fake_s3::respond(200));
    out.push_back({"garbage", "before the effect", fake_s3::garbage(), Policy::tolerated, not_s3});
    out.push_back(
        {"half a status line", "before the effect", fake_s3::raw_bytes("HTTP/1.1 2"), Policy::tolerated, not_s3});
    if (on.answer == Target::silent || on.answer == Target::entry) return;
    Strike cut{"truncated XML", "answer body", fake_s3::truncated_xml(static_cast<std::size_t>(on.brings / 4)),
               unfit_policy(on), not_s3};
    cut.after = true;
    out.push_back(cut);
}

// The right answer with something wrong about it.
void add_odd_answers(std::vector<Strike>& out, const Target& on) {
    const auto edited = [&](const char* name, const Fault& fault, Policy policy,
                            const std::vector<Errc>& codes = not_s3) {
        Strike strike{name, "answer", fault, policy, codes};
        strike.after = true;
        out.push_back(strike);
    };
    edited("bare LF", fake_s3::bare_lf(), Policy::harmless);
    edited("three 100 Continue", fake_s3::continues(3), Policy::harmless);
    edited("drip", fake_s3::drip(static_cast<std::size_t>(on.brings / 20 + 1), 0ms), Policy::harmless);
    edited("drip", fake_s3::drip(40, 0ms).placed(Point::answer_head), Policy::harmless);
    edited("a large header", fake_s3::huge_header(std::size_t{80} << 10), Policy::tolerated);
    edited("a huge header", fake_s3::huge_header(std::size_t{2} << 20), Policy::tolerated, too_long);
    edited("two ETags", fake_s3::duplicate_header("ETag", "\"0123456789abcdef0123456789abcdef\""), Policy::tolerated,
           two_answers);
    fake_s3::Edit two;
    two.add_headers = {{"Content-Length", "5"}, {"Content-Length", "700"}};
    two.close_after = true;
    if (!on.head()) edited("two lengths", fake_s3::edit_answer(two), Policy::tolerated);
    if (!on.head()) edited("no length", fake_s3::no_length(), Policy::tolerated);
    if (!on.head() && on.brings) edited("a length too small", fake_s3::wrong_length(-1), Policy::tolerated);
    if (!on.head()) edited("a length too large", fake_s3::wrong_length(1), Policy::tolerated);
    if (on.answer == Target::entry && on.brings) {
        edited("a flipped bit", fake_s3::flip_bit(on.brings / 2 * 8 + 3), Policy::tolerated);
        edited("a cut body", fake_s3::cut_body(on.brings / 3), Policy::tolerated, cut_off);
        edited("a short body", fake_s3::truncated_xml(static_cast<std::size_t>(on.brings / 3)), Policy::tolerated);
    }
    if (!on.ranged) return;
    edited("Content-Range of another range", fake_s3::wrong_content_range("bytes 5-9/10"), Policy::final,
           {Errc::protocol});
    edited("another range", fake_s3::other_range(1), Policy::final, {Errc::protocol});
}

std::vector<Strike> strikes(const Target& on, bool first, bool tls) {
    std::vector<Strike> out;
    add_connection_faults(out, on, first, tls);
    if (tls) return out;
    add_stalls(out, on);
    add_refusals(out, on);
    add_unfit_answers(out, on);
    add_odd_answers(out, on);
    if (first) {
        Strike clock{"a clock three days off", "all along", {}, Policy::corrected, {}};
        clock.clock = true;
        out.push_back(clock);
    }
    return out;
}

// ---- cells ------------------------------------------------------------------------------------------------------------

struct Bounds {
    std::size_t least = 0, most = 0;
};

// How many requests the fake may see. `before`: those before the struck one; `usual`: all, when nothing is wrong.
Bounds allowed_requests(const Target& on, const Strike& strike, bool forever, std::size_t before, std::size_t usual) {
    const std::size_t libcurl =
        on.loose + (before ? 1 : 0);  // sends again by itself what met a connection that it had kept
    const std::size_t look =
        on.lost_looks && strike.after ? 2 : 0;  // by a store that compares without quotes, and by us
    const std::size_t logged = strike.unlogged ? 0 : 1;
    if (on.spread) return {0, usual + requests_spread_max};
    if (strike.stall && on.lenient) return {0, usual + attempts * on.repeats + libcurl + 3};  // the deadline decides
    if (strike.policy == Policy::harmless) return {usual - (std::min)(usual, on.loose), usual + on.loose};
    if (on.lenient) return {before + logged, usual + attempts * on.repeats + libcurl + 3};
    const std::size_t again = strike.policy == Policy::retried ? attempts : strike.policy == Policy::corrected ? 2 : 1;
    if (strike.stall) return {0, before + attempts + libcurl + on.follow + on.loose + 1};  // the deadline decides
    // A Complete that fails without saying why is looked into, one that says that there is no upload at once.
    const std::size_t doubt = on.request == "CompleteMultipartUpload" ? 1 : 0;
    if (doubt && strike.after && forever) return {before + 1, before + again + on.follow + libcurl + look + doubt};
    if (strike.policy == Policy::tolerated) return {before + 1, usual + attempts + libcurl + doubt + on.follow};
    if (strike.gone) return forever ? Bounds{before + 1, before + 1 + libcurl} : Bounds{usual + 1, usual + 1 + libcurl};
    if (strike.policy != Policy::final && !forever)
        return {usual + logged - (std::min)(usual, on.loose), usual + logged + look + on.loose};
    return {before + again * logged + on.follow,
            before + again * logged + on.follow + (strike.unlogged ? 0 : libcurl) + look + doubt};
}

struct Grid {  // what one thread found
    std::size_t cells = 0;
    std::set<std::string> faults{}, points{};
    std::vector<std::string> problems{};
    std::chrono::milliseconds longest{-1000000};
    std::string longest_at{};

    void add(const Grid& other) {
        cells += other.cells;
        faults.insert(other.faults.begin(), other.faults.end());
        points.insert(other.points.begin(), other.points.end());
        problems.insert(problems.end(), other.problems.begin(), other.problems.end());
        if (other.longest > longest) longest = other.longest, longest_at = other.longest_at;
    }
};

bool fits(const Strike& strike, const Error& error) {
    return std::find(strike.codes.begin(), strike.codes.end(), error.code()) != strike.codes.end();
}

// What the outcome itself has wrong with it.
std::string verdict(const Target& on, const Strike& strike, bool forever, const Outcome& outcome) {
    if (!outcome.wrong.empty()) return outcome.wrong;
    const bool heals = strike.policy == Policy::harmless ||
                       (!forever && (strike.policy == Policy::retried || strike.policy == Policy::corrected));
    if (outcome.right) {
        const bool settled = on.lost_looks && strike.after;  // a look at the entry has shown that it is there
        if (!heals && strike.policy != Policy::tolerated && !on.lenient && !settled && !on.spread)
            return "success in spite of it";
        return {};
    }
    if (!outcome.error) return "neither right nor an error";
    const std::string text = outcome.error->what();
    if (heals) return "an error where another attempt would have helped: " + text;
    // What a lost or odd answer to an earlier attempt left behind may show in a later one.
    if (!fits(strike, *outcome.error))
        return "an error of another kind: " + std::to_string(static_cast<int>(outcome.error->code())) + " " + text;
    if (store::holds(text, "fake/secret")) return "a secret in an error";
    return {};
}

struct Stall {
    const char* point;
    Fault script;
    bool after_opening = false;
};

std::vector<Stall> stalls(const Target& on, bool first) {
    std::vector<Stall> out;
    if (first) out.push_back({"connect", fake_s3::stall_at(Point::connect)});
    out.push_back({"request head", fake_s3::stall_at(Point::request_head)});
    if (on.sends > 4096) out.push_back({"mid request body", fake_s3::stall_at(Point::request_body, 0ms, on.sends / 2)});
    out.push_back({"before the effect", fake_s3::stall_at(Point::before_effect)});
    out.push_back({"after the effect", fake_s3::stall_at(Point::after_effect)});
    out.push_back({"answer head", fake_s3::stall_at(Point::answer_head, 0ms, 10)});
    if (on.brings) out.push_back({"answer body", fake_s3::stall_at(Point::answer_body, 0ms, on.brings / 2), true});
    return out;
}

const std::vector<fake_s3::Key>& keys() {
    static const std::vector<fake_s3::Key> two{{"AKIDFAKES3EXAMPLE", "fake/secret+key/of/the/tests"},
                                               {"AKIDFAKES3SECOND", "fake/secret+key/of/the/tests/too"}};
    return two;
}

class Cell {
public:
    Cell(Operation& operation, World& world, store::Folder& folder)
        : operation_(operation), world_(world), folder_(folder) {}

    // The requests of the operation when nothing is wrong.
    std::vector<fake_s3::Recorded> usual() {
        reset();
        Cache cache = world_.cache(config(nullptr, false));
        world_.s3.clear_requests();
        Scene scene{world_, cache, folder_};
        const Outcome outcome = operation_.run(scene);
        if (!outcome.right)
            throw std::runtime_error(operation_.name + ": fails by itself: " + outcome.wrong +
                                     (outcome.error ? outcome.error->what() : ""));
        return world_.s3.requests();
    }

    // Those of this cell: a connection that an earlier one gave up may be accepted late, on a busy machine.
    std::vector<fake_s3::Recorded> own_requests() const {
        std::vector<fake_s3::Recorded> own;
        for (fake_s3::Recorded& request : world_.s3.requests()) {
            if (request.header("user-agent") == agent_) own.push_back(std::move(request));
        }
        return own;
    }

    // What was sent, for whoever has to find out why it was too much.
    std::string told_requests() const {
        std::string out = ":";
        for (const fake_s3::Recorded& request : own_requests())
            out += " " + request.operation + " " + std::to_string(request.status);
        return out;
    }

    std::string run(const Target& on, const Strike& strike, bool forever, std::size_t before, std::size_t usual) {
        world_.s3.set_clock_offset(strike.clock ? 3 * 86400 : 0);
        reset();
        const std::size_t fault = strike.clock ? 0 : world_.s3.add_fault(placed(on, strike, forever, before));
        auto cache = std::make_unique<Cache>(world_.cache(config(&strike, forever)));
        world_.s3.clear_requests();
        Scene scene{world_, *cache, folder_};
        const auto began = std::chrono::steady_clock::now();
        const Outcome outcome = operation_.run(scene);
        const auto took = std::chrono::steady_clock::now() - began;
        const std::uint64_t counted = cache->stats().leftover_uploads;
        cache.reset();
        settle();
        const std::size_t sent = own_requests().size();
        const std::size_t hits = strike.clock ? 1 : world_.s3.fault_hits(fault);
        std::string problem = verdict(on, strike, forever, outcome);
        // A busy machine comes to the deadline before: an error, but where the request's failure is not the caller's.
        const bool too_late = on.spread || (strike.stall && (outcome.error || (on.lenient && took >= short_call)));
        if (problem.empty() && hits == 0 && !too_late) problem = "the fault was not met";
        if (problem.empty()) problem = operation_.state(world_, outcome, strike.after || (strike.stall && on.lenient));
        if (problem.empty()) problem = uploads(counted);
        const Bounds bounds = allowed_requests(on, strike, forever, before, usual);
        if (problem.empty() && (sent < bounds.least || sent > bounds.most))
            problem = std::to_string(sent) + " requests instead of " + std::to_string(bounds.least) + " to " +
                      std::to_string(bounds.most) + told_requests();
        return problem;
    }

    // How long the call took.
    std::chrono::milliseconds length(const Fault& stall, std::size_t before) {
        reset();
        world_.s3.add_fault(stall.nth_time(before + 1).for_times(fake_s3::forever));
        Config given = config(nullptr, false);
        given.call_timeout = deadline;
        auto cache = std::make_unique<Cache>(world_.cache(given));
        Scene scene{world_, *cache, folder_};
        const auto began = std::chrono::steady_clock::now();
        static_cast<void>(operation_.run(scene));
        const auto took = std::chrono::steady_clock::now() - began;
        cache.reset();
        settle();
        return std::chrono::duration_cast<std::chrono::milliseconds>(took);
    }

private:
    // Nothing of this cell may reach into the next: what stands still breaks off, and every connection ends.
    void settle() {
        world_.s3.end_stalls();
        world_.s3.set_listening(true);
        const auto limit = std::chrono::steady_clock::now() + 10s;
        while (world_.s3.open_connection_count() > 0 && std::chrono::steady_clock::now() < limit) {
            world_.s3.end_stalls();
            std::this_thread::sleep_for(200us);
        }
        if (world_.s3.open_connection_count() > 0) throw std::runtime_error("a connection outlives its cache");
    }

    void reset() {
        world_.s3.clear_faults();
        world_.s3.erase_all();
        world_.waits.clear();
        world_.attempts.clear();
        world_.outcomes.clear();
        std::filesystem::remove(folder_ / "in");
        world_.s3.set_list_page_max(2);
        operation_.prepare(world_);
    }

    static Fault placed(const Target& on, const Strike& strike, bool forever, std::size_t before) {
        Fault fault = strike.script;
        if (fault.at != Point::connect)
            fault = fault.on(on.request == "HeadBucket" ? "HEAD" : on.request).for_key(on.key).nth_time(on.nth);
        if (on.request == "HeadBucket") fault = fault.nth_time(2);
        return fault.for_times(forever ? fake_s3::forever : strike.gone && before ? 2 : 1);
    }

    Config config(const Strike* strike, bool forever) {
        Config config = world_.config();
        config.part_bytes = piece;
        config.attempts_max = attempts;
        config.connections = operation_.slow_line ? 2 : 1;
        config.seams.random = {};
        agent_ = "cell " + std::to_string(++cells_);
        config.setup_curl = [agent = agent_](void* curl) { curl_easy_setopt(curl, CURLOPT_USERAGENT, agent.c_str()); };
        config.credentials = CredentialsProvider([this]() -> Result<Credentials> {
            const fake_s3::Key& key = keys()[asked_++ % 2];
            return Credentials{key.access_key, key.secret_key, {}, {}, "the matrix"};
        });
        if (strike && strike->gone) {
            config.seams.sleep = [this, forever, waits = 0](std::chrono::milliseconds) mutable {
                world_.s3.set_listening(++waits > 1 && !forever);
            };
        }
        if (strike && strike->stall) {
            config.call_timeout = short_call;
            config.stall_timeout = operation_.slow_to_end ? 1000ms : 0ms;
            config.attempts_max = operation_.slow_to_end ? 1 : attempts;
        }
        return config;
    }

    // Of the uploads left open those count of which the cache knew: one whose id nobody was told, as that answer got lost,
    // is found by sweep_uploads alone.
    std::string uploads(std::uint64_t counted) {
        const auto requests = world_.s3.requests();
        std::size_t open = 0;
        for (const auto& upload : world_.s3.open_uploads()) {
            const auto names_it = [&](const fake_s3::Recorded& request) {
                return store::holds(request.target, "uploadId=" + upload.id);
            };
            open += std::any_of(requests.begin(), requests.end(), names_it) ? 1U : 0U;
        }
        if (open <= counted) return {};
        return std::to_string(open) + " uploads left open, " + std::to_string(counted) + " counted";
    }

    Operation& operation_;
    World& world_;
    store::Folder& folder_;
    std::size_t asked_ = 0;  // each asking brings other credentials
    std::size_t cells_ = 0;
    std::string agent_;
};

std::size_t place_of(const std::vector<fake_s3::Recorded>& requests, const Target& on) {
    std::size_t seen = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
        const bool same = requests[i].operation == on.request && store::holds(requests[i].key, on.key);
        if (same && ++seen == on.nth) return i;
    }
    if (on.spread) return 1;
    throw std::runtime_error("no such request: " + on.request);
}

fake_s3::Options options_for(const Operation& operation, bool tls) {
    fake_s3::Options options = store::over(tls);
    options.keys = keys();
    options.part_bytes_min = 1;
    if (operation.slow_line)
        options.connection_bytes_per_second = 10000000;  // far below what one connection is left alone with
    options.receive_buffer_bytes = 4096;
    return options;
}

void run_operation(Grid& grid, Operation& operation, store::Folder& folder, bool tls) {
    World world(options_for(operation, tls));
    Cell cell(operation, world, folder);
    const auto requests = cell.usual();
    for (const Target& on : operation.targets) {
        const std::size_t before = place_of(requests, on);
        for (const Strike& strike : strikes(on, before == 0, tls)) {
            for (const bool forever : {false, true}) {
                if (forever ? strike.policy == Policy::harmless || strike.clock : strike.stall) continue;
                ++grid.cells;
                grid.faults.insert(strike.fault);
                grid.points.insert(strike.point);
                const std::string problem = cell.run(on, strike, forever, before, requests.size());
                if (problem.empty()) continue;
                grid.problems.push_back(operation.name + ", " + on.request + " " + std::to_string(on.nth) +
                                        (tls ? " over TLS, " : ", ") + strike.fault + " at " + strike.point +
                                        (forever ? ", for ever: " : ", once: ") + problem);
            }
        }
    }
}

// The operations, each over http and over TLS, dealt out to threads: most of a cell's time is waiting.
template <class Work>
Grid in_parallel(const std::vector<Operation>& all, std::size_t threads, Work work) {
    std::mutex lock;
    Grid sum;
    std::atomic<std::size_t> next{0};
    std::vector<std::unique_ptr<store::Folder>> folders(threads);
    for (auto& folder : folders) folder = std::make_unique<store::Folder>();
    store::Crew crew;
    crew.start(threads, [&](std::size_t worker) {
        for (std::size_t i = next++; i < 2 * all.size(); i = next++) {
            Operation operation = all[i / 2];
            Grid grid;
            try {
                work(grid, operation, *folders[worker], i % 2 == 1);
            } catch (const std::exception& problem) {
                grid.problems.push_back(operation.name + ": " + problem.what());
            }
            const std::lock_guard<std::mutex> hold(lock);
            sum.add(grid);
        }
    });
    for (const std::string& problem : crew.join()) sum.problems.push_back(problem);
    return sum;
}

// ---- deadlines ----------------------------------------------------------------------------------------------------------

// From the struck request on, every request stands still: also those that clean up.
void stall_operation(Grid& grid, Operation& operation, store::Folder& folder, bool tls) {
    World world(options_for(operation, tls));
    Cell cell(operation, world, folder);
    const auto requests = cell.usual();
    for (const Target& on : operation.targets) {
        const std::size_t before = place_of(requests, on);
        for (const Stall& stall : stalls(on, before == 0)) {
            if (operation.slow_to_end && stall.after_opening) continue;
            ++grid.cells;
            const std::string cell_name = operation.name + ", " + on.request + " " + std::to_string(on.nth) + ", " +
                                          stall.point + (tls ? ", TLS" : "");
            // What keeps a busy machine keeps one try; a call that waits for the stall does so in each.
            auto over = cell.length(stall.script, before) - deadline;
            for (int tries = 1; over > overrun_max && tries < 4; ++tries)
                over = (std::min)(over, cell.length(stall.script, before) - deadline);
            if (over > grid.longest) grid.longest = over, grid.longest_at = cell_name;
            if (over > overrun_max)
                grid.problems.push_back(cell_name + ": " + std::to_string(over.count()) + " ms over its deadline");
        }
    }
}

}  // namespace

TEST_CASE("the fault matrix: every operation, every fault, every point", "[matrix]") {
    const std::vector<Operation> all = operations();
    const Grid sum = in_parallel(all, 4, run_operation);
    std::printf("fault matrix: %zu operations x %zu faults x %zu points, %zu cells\n", all.size(), sum.faults.size(),
                sum.points.size(), sum.cells);
    for (const std::string& problem : sum.problems) FAIL_CHECK(problem);
    CHECK(sum.cells > 2000);
}

TEST_CASE("no stall keeps a call longer than its deadline allows", "[matrix][timeout]") {
    const Grid sum = in_parallel(operations(), 12, stall_operation);
    std::printf("stalls: %zu cells, the longest call ended %d ms after its deadline (%s)\n", sum.cells,
                static_cast<int>(sum.longest.count()), sum.longest_at.c_str());
    for (const std::string& problem : sum.problems) FAIL_CHECK(problem);
    CHECK(sum.cells > 200);
}
