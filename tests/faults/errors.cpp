// What an error tells a person: what happened, and what to do; never an advice that does not fit.
#include "world.hpp"

#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

using namespace s3cache;
using namespace std::chrono_literals;
using store::code_of;
using store::failure;
using store::holds;
using store::lower;
using store::ok;
using store::World;

namespace {

const std::string no_permission = "lack the permission";

// One of these words, whatever their case.
void tells(const Error& error, std::initializer_list<const char*> any_of) {
    CAPTURE(error.what());
    bool told = false;
    std::string wanted;
    for (const char* word : any_of) {
        told = told || holds(lower(error.what()), lower(word));
        wanted += std::string(word) + " | ";
    }
    CAPTURE(wanted);
    CHECK(told);
}

void does_not_tell(const Error& error, const std::string& word) {
    CAPTURE(error.what(), word);
    CHECK_FALSE(holds(lower(error.what()), lower(word)));
}

bool printable(std::string_view text) {
    return std::all_of(text.begin(), text.end(),
                       [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; });
}

Error refused(const fake_s3::Fault& fault) {
    World world;
    world.put("k", "v");
    world.always(fault);
    Config config = world.config();
    config.attempts_max = 1;
    return failure(world.cache(config).try_get("k"));
}

// A port that accepts and says what it is told to, whatever comes.
class Speaker {
public:
    explicit Speaker(std::string words) : words_(std::move(words)), socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto* const generic = reinterpret_cast<sockaddr*>(&address);
        REQUIRE(bind(socket_, generic, size) == 0);
        REQUIRE(listen(socket_, 16) == 0);
        REQUIRE(getsockname(socket_, generic, &size) == 0);
        port_ = ntohs(address.sin_port);
        thread_ = std::thread([this] {
            for (int peer; (peer = accept(socket_, nullptr, nullptr)) >= 0;) {
                char some[4096];
                if (recv(peer, some, sizeof some, 0) > 0) send(peer, words_.data(), words_.size(), MSG_NOSIGNAL);
                shutdown(peer, SHUT_WR);
                close(peer);
            }
        });
    }
    Speaker(const Speaker&) = delete;
    Speaker& operator=(const Speaker&) = delete;
    ~Speaker() {
        shutdown(socket_, SHUT_RDWR);
        thread_.join();
        close(socket_);
    }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

private:
    std::string words_;
    int socket_;
    std::uint16_t port_ = 0;
    std::thread thread_;
};

}  // namespace

// ---- refusals that are not about permission -------------------------------------------------------------------------

TEST_CASE("an object in the archive is to be restored, not to be permitted", "[errors][advice]") {
    const std::string xml =
        "<?xml version=\"1.0\"?><Error><Code>InvalidObjectState</Code><Message>The operation is not valid for the "
        "object's "
        "storage class</Message><StorageClass>GLACIER</StorageClass></Error>";
    const Error error = refused(fake_s3::respond(403, xml));
    CHECK(error.s3_code() == "InvalidObjectState");
    tells(error, {"archive"});
    tells(error, {"restore"});
    does_not_tell(error, no_permission);
    CHECK_FALSE(error.retryable());
}

TEST_CASE("a full quota is told as one", "[errors][advice]") {
    for (const char* code : {"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "StorageQuotaExceeded"}) {
        CAPTURE(code);
        World world;
        world.always(fake_s3::respond_error(403, code, "Quota exceeded."));
        const Error error = failure(world.cache().try_set("k", "v"));
        CHECK(error.s3_code() == code);
        does_not_tell(error, no_permission);
        if (std::string_view(code) == "QuotaExceeded") tells(error, {"quota", "full", "space"});
    }
}

TEST_CASE("a bucket whose reader pays is told as one", "[errors][advice]") {
    for (const char* code : {"AccessDenied", "UserProjectMissing"}) {
        CAPTURE(code);
        const Error error = refused(
            fake_s3::respond_error(403, code, "Bucket is a requester pays bucket but no user project provided."));
        tells(error, {"requester pays", "x-amz-request-payer"});
        does_not_tell(error, no_permission);
    }
}

TEST_CASE("a proxy that wants a password is named, and no credentials of S3's are blamed", "[errors][advice]") {
    const Error error =
        refused(fake_s3::respond(407, "<html><title>Proxy Authentication Required</title></html>",
                                 {{"Content-Type", "text/html"}, {"Proxy-Authenticate", "Basic realm=\"x\""}}));
    CHECK(error.status() == 407);
    tells(error, {"proxy"});
    does_not_tell(error, no_permission);
    CHECK_FALSE(error.retryable());
    const Speaker proxy(
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: "
        "0\r\n\r\n");
    World tls(store::over(true));
    for (World* world : {&tls}) {  // CONNECT refused
        Config config = world->config();
        config.attempts_max = 1;
        config.proxy = proxy.url();
        tells(failure(world->cache(config).try_get("k")), {"proxy"});
    }
}

TEST_CASE("a body that something on the way finds too large is told as that", "[errors][advice]") {
    for (const auto& fault :
         {fake_s3::respond(413, "<html><head><title>413 Request Entity Too Large</title></head></html>",
                           {{"Content-Type", "text/html"}}),
          fake_s3::respond(413), fake_s3::respond_error(400, "EntityTooLarge")}) {
        World world;
        world.always(fault, "PutObject");
        const Error error = failure(world.cache().try_set("k", "v"));
        CHECK(error.status() == fault.status);
        CHECK((error.code() == Errc::too_large || error.code() == Errc::store));
        tells(error, {"large"});
        CHECK_FALSE(error.retryable());
    }
}

TEST_CASE("a redirect is told with where it leads, and without what it carries in secret", "[errors][advice]") {
    for (const int status : {301, 302, 303, 307, 308}) {
        CAPTURE(status);
        const Error error = refused(fake_s3::respond(
            status, "<html><title>Moved</title></html>",
            {{"Content-Type", "text/html"},
             {"Location", "https://user:hush-hush@elsewhere.example.org/bucket/k?X-Amz-Signature=feed"}}));
        CHECK(error.status() == status);
        tells(error, {"elsewhere.example.org"});
        does_not_tell(error, "hush-hush");
        does_not_tell(error, no_permission);
    }
    const Error odd = refused(fake_s3::respond(301, "", {{"Location", "\x1b[2Jnot a URL\x07"}}));
    CHECK(printable(odd.what()));
}

// ---- bodies that are not S3's ---------------------------------------------------------------------------------------

TEST_CASE("the title of a page and the message of a JSON body are told", "[errors][advice]") {
    for (const int status : {400, 403, 404, 500, 503}) {
        CAPTURE(status);
        tells(refused(fake_s3::respond(
                  status,
                  "<!DOCTYPE html>\n<html><head><meta charset=utf-8><TITLE>\n Blocked by the\n firewall "
                  "</TITLE></head><body>\n</body></html>",
                  {{"Content-Type", "text/html"}})),
              {"blocked by the firewall"});
        for (const char* body :
             {R"({"message":"no API key found in request"})", R"({"code":7,"message":"no API key found in request"})",
              R"({"error":{"message":"no API key found in request"}})"}) {
            CAPTURE(body);
            const Error error = refused(fake_s3::respond(status, body, {{"Content-Type", "application/json"}}));
            if (!holds(body, "\"error\"")) tells(error, {"no API key found in request"});
        }
    }
    const std::string long_title(100000, 't');
    const Error bounded =
        refused(fake_s3::respond(500, "<title>" + long_title + "</title>", {{"Content-Type", "text/html"}}));
    CHECK(std::string_view(bounded.what()).size() < 1500);
    const Error clean =
        refused(fake_s3::respond(500, "<title>a\x1b[31m\x07z</title>", {{"Content-Type", "text/html"}}));
    CHECK(printable(clean.what()));
}

TEST_CASE("a refusal for lack of permission says so still", "[errors][advice]") {
    tells(refused(fake_s3::respond_error(403, "AccessDenied", "Access Denied")), {"permission"});
    tells(refused(fake_s3::respond_error(403, "AllAccessDisabled", "All access to this object has been disabled")),
          {"all access"});
    for (const char* code : {"RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AccountProblem"}) {
        CAPTURE(code);
        does_not_tell(refused(fake_s3::respond_error(403, code)), no_permission);
    }
}

// ---- the wire -------------------------------------------------------------------------------------------------------

TEST_CASE("https spoken to an http port, and http to an https port, is named", "[errors][advice][tls]") {
    World tls(store::over(true)), plain;
    Config config = plain.config();
    config.attempts_max = 1;
    config.endpoint = "https" + plain.s3.endpoint().substr(4);
    const Error spoken_tls = failure(plain.cache(config).try_get("k"));
    tells(spoken_tls, {"http://", "speaks http", "plain http"});
    does_not_tell(spoken_tls, "ca_bundle");
    const Speaker web("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    config.endpoint = "https" + web.url().substr(4);
    const Error web_server = failure(plain.cache(config).try_get("k"));
    tells(web_server, {"http://", "speaks http", "plain http"});
    does_not_tell(web_server, "ca_bundle");

    config.endpoint = "http" + tls.s3.endpoint().substr(5);
    tells(failure(tls.cache(config).try_get("k")), {"https"});
    const Speaker alert(std::string("\x15\x03\x01\x00\x02\x02\x46", 7));  // a TLS alert, as to what is no ClientHello
    config.endpoint = alert.url();
    tells(failure(plain.cache(config).try_get("k")), {"https"});
    const Speaker nginx(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
        "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>\r\n");
    config.endpoint = nginx.url();
    tells(failure(plain.cache(config).try_get("k")), {"https"});
}

TEST_CASE("a certificate that is not valid yet, or no more, is a matter of the clock, not of ca_bundle",
          "[errors][advice][tls]") {
    for (const std::chrono::hours from : {std::chrono::hours(48), std::chrono::hours(24 * 3650)}) {
        fake_s3::Options options = store::over(true);
        options.certificate_from = from;
        World world(options);
        Config config = world.config();
        config.attempts_max = 1;
        const Error error = failure(world.cache(config).try_get("k"));
        CHECK(error.code() == Errc::tls);
        tells(error, {"clock"});
        does_not_tell(error, "ca_bundle");
    }
    World world(store::over(true));
    Config config = world.config();
    config.attempts_max = 1;
    world.s3.swap_certificate();
    const Error unknown = failure(world.cache(config).try_get("k"));
    CHECK(unknown.code() == Errc::tls);
    tells(unknown, {"ca_bundle"});
    does_not_tell(unknown, "clock");
}

TEST_CASE("no file descriptors left is told as that, and over when there are some again", "[errors][advice]") {
    World world;
    world.put("k", "v");
    Config config = world.config();
    config.attempts_max = 1;
    store::Folder folder;
    Cache cache = world.cache(config);
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    const int next = dup(0);
    REQUIRE(next >= 0);
    close(next);
    const rlimit none{static_cast<rlim_t>(next), before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    const auto result = cache.try_get("k");
    setrlimit(RLIMIT_NOFILE, &before);
    tells(failure(result), {"descriptor", "too many open files"});
    CHECK(failure(result).retryable());
    CHECK(cache.get("k"));
}

TEST_CASE("who says nothing, hangs up or is not there is told apart", "[errors][advice]") {
    World world;
    Config config = world.config();
    config.attempts_max = 1;
    world.always(fake_s3::close_at(fake_s3::Point::before_effect));
    const Error closed = failure(world.cache(config).try_get("k"));
    CHECK(closed.code() == Errc::network);
    world.s3.set_listening(false);
    const Error refused_connection = failure(world.cache(config).try_get("k"));
    CHECK(refused_connection.code() == Errc::network);
    tells(refused_connection, {"connect"});
    config.endpoint = "http://no-such-host.invalid";
    tells(failure(world.cache(config).try_get("k")), {"no-such-host.invalid", "resolve"});
}

// ---- every text -----------------------------------------------------------------------------------------------------

TEST_CASE("whatever a store answers, the text is one line of sane length with operation and key", "[errors][advice]") {
    const fake_s3::Fault faults[] = {
        fake_s3::respond(400),
        fake_s3::respond(418, "I am a teapot"),
        fake_s3::respond(500, std::string(1 << 20, 'x')),
        fake_s3::respond(403, "<Error><Code>Odd\nCode</Code><Message>two\nlines\r\n\tand\x01 more</Message></Error>"),
        fake_s3::respond(400, "<Error><Code>" + std::string(5000, 'C') + "</Code></Error>"),
        fake_s3::respond(400, "<Error><Message>only a message</Message></Error>"),
        fake_s3::respond(200, "not what it says", {{"Content-Length", "5"}}),
        fake_s3::html_page(503),
        fake_s3::garbage(),
    };
    for (std::size_t i = 0; i < std::size(faults); ++i) {
        CAPTURE(i);
        World world;
        Config config = world.config();
        config.attempts_max = 1;
        Cache cache = world.cache(config);
        world.always(faults[i]);
        for (const auto& result : {cache.try_get("the/key")}) {
            if (result) continue;
            const std::string text = failure(result).what();
            CHECK(text.size() < 1500);
            CHECK(holds(text, "the/key"));
            CHECK(text.compare(0, 4, "get ") == 0);
            CHECK(printable(text));
        }
    }
}
