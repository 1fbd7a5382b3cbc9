// An S3 server in memory for tests: it checks every signature from the bytes on the wire, refuses what AWS refuses, can
// behave like other stores (quirks) and can misbehave on request (faults). It shares no code with s3cache.hpp, so that
// a mistake there cannot hide here.
//
//     fake_s3::FakeS3 s3;                                              // listens on a free port of 127.0.0.1
//     s3.put_object("bucket", "key", "body", {{"x-amz-meta-kind", "text"}});
//     s3.add_fault(fake_s3::reset_at(fake_s3::Point::answer_body, 1000).on("GetObject").nth_time(2));
//
// Link with -lssl -lcrypto. All members may be called from any thread, also from a hook.
#pragma once

#include <chrono>       // waits and times of day
#include <cstddef>      // std::size_t
#include <cstdint>      // 64-bit sizes
#include <functional>   // hooks
#include <limits>       // `forever`
#include <memory>       // the implementation
#include <optional>     // what may be absent
#include <string>       // bodies
#include <string_view>  // names of quirks
#include <utility>      // header pairs
#include <vector>       // lists

namespace fake_s3 {

using Header = std::pair<std::string, std::string>;
using HeaderList = std::vector<Header>;

// Behaviour of other stores. All off is AWS.
struct Quirks {
    bool drop_underscore_headers = false;      // nginx in front: the header never arrives, the signature then fails
    bool metadata_dashes = false;              // Ceph: x-amz-meta-expires_at comes back as x-amz-meta-expires-at
    bool metadata_capitals = false;            // MinIO: X-Amz-Meta-Expires_at
    bool ignore_conditional_put = false;       // If-None-Match and If-Match on PUT, copy and Complete have no effect
    bool ignore_conditional_complete = false;  // Ceph: only on CompleteMultipartUpload they have none
    bool ignore_conditional_delete = false;    // If-Match on DELETE has no effect: it deletes
    bool refuse_conditional_put = false;       // Swift, B2: 501 NotImplemented
    bool refuse_delete_objects = false;        // Google: 501 NotImplemented
    bool refuse_upload_lists = false;          // ListMultipartUploads: 501 NotImplemented
    bool delete_objects_needs_md5 = false;     // no x-amz-checksum-* instead of Content-MD5
    bool ignore_encoding_type = false;         // s3rver: encoding-type=url is neither honoured nor echoed
    bool close_each = false;                   // moto: one answer a connection, said in `Connection: close`
    bool close_each_silently = false;          // the same without saying so
    bool enforce_region = false;               // 400 AuthorizationHeaderMalformed with <Region>
    bool redirect_region = false;              // 301 PermanentRedirect with x-amz-bucket-region
    bool ignore_range = false;                 // 200 with everything
    bool equal_parts = false;                  // R2: checked at Complete
    bool etag_not_md5 = false;                 // every write gets a random ETag
    bool no_date = false;                      // answers carry no Date
    bool empty_404 = false;                    // 404 without a body
    bool forbidden_for_missing = false;        // caller without ListBucket: 403 AccessDenied for a missing key
    bool refuse_dot_keys = false;              // MinIO: "." and ".." segments and "//" are 400
    bool refuse_aws_chunked = false;           // 501 for STREAMING-* payloads
    bool chunked_answers = false;              // answers with a body use Transfer-Encoding: chunked, as AWS's XML does
    bool empty_list_pages = false;             // every second list page is empty, with a token
    bool endless_lists = false;                // the token is ignored: the first page each time, with a fresh token
    bool reversed_lists = false;               // sorted from the last key to the first
    bool capital_true = false;                 // <IsTruncated>True</IsTruncated>
    bool raw_controls = false;                 // s3rver: a key's control characters stand in lists as they are
    bool raw_markers = false;                  // Swift: NextKeyMarker is not encoded though the keys are
    bool weak_etags = false;             // a proxy that compresses: W/"..." to GET and HEAD, and no If-Match holds
    bool head_without_length = false;    // HEAD answers without Content-Length
    bool copy_without_etag = false;      // a copy's answer has no ETag, and its object none afterwards
    bool refuse_copy_condition = false;  // Swift, of entries in parts: 412 to the very ETag that HEAD gave
    bool all_copy_conditions = false;    // each condition of a copy counts; on AWS If-Match beats unmodified-since
    bool join_metadata = false;          // names that differ in - and _ alone are one, their values joined `a,b`
    bool other_create_root = false;      // gofakes3: <InitiateMultipartUpload>
};

struct Key {
    std::string access_key;
    std::string secret_key;
    std::string session_token{};  // not empty: the request must carry it
    bool expired = false;         // 400 ExpiredToken
};

struct Options {
    bool tls = false;
    std::uint16_t port = 0;  // 0: any free one
    std::vector<Key> keys{{"AKIDFAKES3EXAMPLE", "fake/secret+key/of/the/tests"}};
    std::string region = "us-east-1";
    std::vector<std::string> buckets{"bucket"};
    std::vector<std::string> virtual_host_suffixes{"localhost", "s3.amazonaws.com"};
    std::string base_path{};  // "/gateway/s3": the store lives below it
    bool allow_anonymous = false;
    bool allow_unsigned_payload_over_http = false;
    bool strict_target_encoding = true;           // the target must be encoded as it is signed, else 400 InvalidURI
    std::uint64_t part_bytes_min = 5ULL << 20;    // of every part but the last
    std::uint64_t object_bytes_max = 5ULL << 30;  // of one PUT or part
    std::size_t list_page_max = 1000;             // a smaller one forces pages
    std::chrono::milliseconds answer_delay{0};
    std::uint64_t connection_bytes_per_second = 0;  // 0: as fast as it goes; both directions
    std::chrono::milliseconds idle_close{0};        // > 0: an idle connection is closed, as S3 does after some seconds
    std::chrono::milliseconds body_idle_limit{0};   // > 0: 400 RequestTimeout and the end, if a body pauses longer
    int receive_buffer_bytes = 0;                   // > 0: SO_RCVBUF, so that a stalled upload is felt soon
    std::chrono::hours certificate_from{-720};      // from now: since when it is valid
    Quirks quirks{};
};

// Names as in Quirks with '-' or '_' ("close-each"), and "page=N", "delay=MS", "bandwidth=BYTES", "part-min=BYTES",
// "idle-close=MS", "body-idle=MS", "region=NAME", "anonymous", "unsigned-payload". False: no such name.
bool apply_quirk(Options& options, std::string_view name);
std::vector<std::string> quirk_names();

struct StoredObject {
    std::string body;
    HeaderList metadata;             // names without x-amz-meta-, as stored
    HeaderList headers;              // Content-Type and the like, lower-case names
    std::string etag;                // with its quotes
    std::int64_t last_modified = 0;  // unix seconds
    std::size_t parts = 0;           // 0: written by one PUT
};

struct OpenUpload {
    std::string bucket, key, id;
    std::int64_t initiated = 0;
    std::vector<std::pair<int, std::size_t>> parts;  // number and size
};

struct Recorded {
    std::string method;
    std::string target;       // raw, as on the wire
    std::string operation;    // "GetObject", "PutObject", "UploadPart", ... "Unknown"
    std::string bucket, key;  // decoded
    HeaderList headers;
    std::uint64_t body_size = 0;                                     // bytes read of the body on the wire
    int status = 0;                                                  // of the answer that was begun; 0: none
    std::size_t connection = 0;                                      // from 1
    std::optional<std::string> header(std::string_view name) const;  // repeats joined with ","
};

// ---- faults -------------------------------------------------------------------------------------------------------
// Where in a request's life a fault strikes. `offset` counts bytes where the text says so.
enum class Point {
    connect,       // a connection was accepted, nothing was read; only `nth` and `times` match (they count connections)
    request_head,  // head read, body not
    request_body,  // `offset` bytes of the body read (never if the body is shorter)
    before_effect,  // whole request read, nothing done
    after_effect,   // done, nothing answered
    answer_head,    // `offset` bytes of the answer's head sent
    answer_body,    // head and `offset` bytes of the body sent (at the end of the body if it is shorter)
    answer_end      // all sent
};

enum class Action {
    close,    // FIN, over TLS after close_notify
    drop,     // FIN without close_notify (the same as close over http)
    reset,    // RST
    stall,    // waits `wait` (0: until release_stalls() or the end), then goes on
    respond,  // sends `status`, `headers`, `body` instead of the answer; not at answer_*
    raw,      // sends `body` as it is instead of an answer, then closes; not at answer_*
    edit      // changes the answer by `edit`; point does not matter but for drips
};

struct Edit {
    std::optional<int> status;
    HeaderList set_headers;  // replaced, or added where missing
    HeaderList add_headers;  // also where there is one already
    std::vector<std::string> remove_headers;
    std::optional<std::string> body;        // another body, Content-Length follows
    std::string body_prefix;                // Content-Length follows
    std::optional<std::size_t> cut_body;    // only so many bytes of it, Content-Length follows
    std::optional<std::uint64_t> flip_bit;  // bit 0 is the low bit of the body's first byte
    std::int64_t content_length_delta = 0;  // Content-Length lies by this
    bool omit_content_length = false;       // the end of the connection ends the body
    std::int64_t range_shift = 0;           // serves another range than asked, with the Content-Range of what it serves
    std::int64_t date_shift = 0;            // Date is so many seconds off
    bool bare_lf = false;                   // lines of the head end in LF alone
    std::optional<std::size_t> continues;   // how many 100 Continue are sent; asked for or not
    std::size_t drip_bytes = 0;             // body (with Point::answer_head: head too) in pieces of so many bytes …
    std::chrono::milliseconds drip_wait{0};  // … each followed by this wait
    bool close_after = false;                // closes after the answer without saying so
};

inline constexpr std::size_t forever = (std::numeric_limits<std::size_t>::max)();

struct Fault {
    // Which requests: empty means any. `operation` may also be a method ("PUT").
    std::string operation{};
    std::string key{};      // substring of the decoded key
    std::string query{};    // substring of the raw query
    std::size_t nth = 1;    // the first matching request that is hit
    std::size_t times = 1;  // how many, from there
    // What happens.
    Action action = Action::edit;
    Point at = Point::before_effect;
    std::uint64_t offset = 0;
    std::chrono::milliseconds wait{0};
    int status = 0;
    HeaderList headers{};
    std::string body{};
    Edit edit{};

    Fault on(std::string operation_or_method) const;
    Fault for_key(std::string substring) const;
    Fault with_query(std::string substring) const;
    Fault nth_time(std::size_t first) const;
    Fault for_times(std::size_t count) const;
    Fault placed(Point point, std::uint64_t bytes = 0) const;
};

Fault close_at(Point at, std::uint64_t offset = 0);
Fault drop_at(Point at, std::uint64_t offset = 0);
Fault reset_at(Point at, std::uint64_t offset = 0);
Fault stall_at(Point at, std::chrono::milliseconds wait = std::chrono::milliseconds{0}, std::uint64_t offset = 0);
Fault lost_answer();  // takes effect, then closes without a word
Fault respond(int status, std::string body = {},
              HeaderList headers = {});  // before the effect; placed(after_effect): after it
Fault respond_error(int status, std::string_view code, std::string_view message = "scripted", HeaderList headers = {});
Fault slow_down(std::string retry_after = {});                // 503 SlowDown
Fault error_in_200(std::string_view code = "InternalError");  // 200 whose body is an <Error>
Fault expired_token();                                        // 400 ExpiredToken
Fault html_page(int status = 503);
Fault garbage();  // bytes that are not HTTP
Fault raw_bytes(std::string bytes);
Fault edit_answer(Edit edit);
Fault cut_body(std::uint64_t after);    // Content-Length unchanged, connection closed
Fault truncated_xml(std::size_t keep);  // Content-Length of what is left
Fault flip_bit(std::uint64_t bit);
Fault wrong_length(std::int64_t delta);
Fault no_length();  // no Content-Length, then close
Fault wrong_content_range(std::string value);
Fault other_range(std::int64_t shift);
Fault other_date(std::int64_t seconds_off);  // in the past with the Age that an HTTP cache would tell
Fault duplicate_header(std::string name, std::string value);
Fault huge_header(std::size_t bytes);
Fault bare_lf();
Fault continues(std::size_t how_many);  // 0: 100 Continue withheld
Fault drip(std::size_t bytes, std::chrono::milliseconds wait);

enum class Phase { before_effect, after_effect };

class FakeS3 {
public:
    explicit FakeS3(Options options = {});  // throws std::runtime_error if it cannot listen
    ~FakeS3();                              // ends stalls and connections, joins all threads
    FakeS3(const FakeS3&) = delete;
    FakeS3& operator=(const FakeS3&) = delete;

    std::string endpoint() const;       // "http://127.0.0.1:PORT"
    std::string host_endpoint() const;  // "http://localhost:PORT": the one for virtual-host style
    std::uint16_t port() const;
    std::string ca_file() const;     // PEM of the self-signed certificate; empty without TLS
    std::string access_key() const;  // of the first key
    std::string secret_key() const;
    std::string region() const;

    // The store, past signatures, quirks and log.
    void create_bucket(const std::string& bucket);
    void put_object(const std::string& bucket, const std::string& key, std::string body,
                    const HeaderList& headers = {});
    std::optional<StoredObject> object(const std::string& bucket, const std::string& key) const;
    std::vector<std::string> keys(const std::string& bucket) const;
    bool erase(const std::string& bucket, const std::string& key);
    void erase_all();                                                // objects and uploads of all buckets
    std::size_t object_count(const std::string& bucket = {}) const;  // empty: all buckets
    std::vector<OpenUpload> open_uploads() const;
    void deny_key(const std::string& key, bool denied = true);  // every operation on it: 403 AccessDenied
    // Within DeleteObjects alone, so many times: an <Error> for this key. Not `named`: it has no <Key>.
    void refuse_in_bulk(const std::string& key, const std::string& code, std::size_t times, bool named = true);
    // A bucket policy: that operation without a header whose name begins so is 403 AccessDenied.
    void demand_header(const std::string& operation, const std::string& name_begins);

    // The log of requests whose head arrived whole.
    std::vector<Recorded> requests() const;
    std::size_t request_count(std::string_view operation_or_method = {}) const;
    void clear_requests();
    std::size_t connection_count() const;  // accepted since the start
    std::size_t open_connection_count() const;

    // Faults. Those that match the same request are all applied, in the order they were added.
    std::size_t add_fault(Fault fault);  // its number
    void clear_faults();
    std::size_t fault_hits(std::size_t number) const;  // how often it was dealt out
    std::size_t fault_hits() const;                    // all, since the start
    std::size_t stalled() const;                       // connections that stand still now
    bool wait_for_stalled(std::size_t count, std::chrono::milliseconds limit) const;
    void release_stalls();  // those that stand still now go on
    void end_stalls();      // those that stand still now break off: what was not yet done or sent never is

    // The machine.
    void set_clock_offset(std::int64_t seconds);  // against the real clock
    void set_clock(std::int64_t unix_seconds);    // the same, as a time of day
    std::int64_t now() const;
    void set_keys(std::vector<Key> keys);
    void set_quirks(Quirks quirks);
    Quirks quirks() const;
    void set_list_page_max(std::size_t keys_a_page);
    void set_listening(bool on);  // off: connections are refused; open ones live on
    void close_connections();     // all open ones, as a restart does
    void swap_certificate();      // new connections get one that ca_file() does not vouch for
    // Called on the connection's thread with nothing locked; an empty function removes it.
    void on_request(std::function<void(const Recorded&, Phase)> hook);

private:
    struct Impl;
    std::unique_ptr<Impl> impl;
};

}  // namespace fake_s3
