// Section http, ways to the store: a proxy, an IPv6 address, a Unix socket, a TLS server that wants to know who calls.
#include "world.hpp"

#include <stdexcept>
#include <thread>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

using namespace s3cache;
using store::code_of;
using store::same;
using store::text_of;
using store::World;

namespace {

#ifndef _WIN32  // there matrix/windows_posix.hpp has one
int close_socket(int socket) { return close(socket); }
#endif

// ---- a certificate and its key, as PEM files --------------------------------------------------------------------------

struct Identity {
    std::string certificate, key;
};

EVP_PKEY* new_key() {
    EVP_PKEY* key = nullptr;
    EVP_PKEY_CTX* context = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, nullptr);
    REQUIRE(EVP_PKEY_keygen_init(context) == 1);
    REQUIRE(EVP_PKEY_CTX_set_ec_paramgen_curve_nid(context, NID_X9_62_prime256v1) == 1);
    REQUIRE(EVP_PKEY_keygen(context, &key) == 1);
    EVP_PKEY_CTX_free(context);
    return key;
}

Identity self_signed(const store::Folder& folder, const std::string& name) {
    EVP_PKEY* key = new_key();
    X509* certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    X509_set_pubkey(certificate, key);
    X509_NAME* subject = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1,
                               -1, 0);
    X509_set_issuer_name(certificate, subject);
    X509_EXTENSION* where = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
    REQUIRE(where);
    X509_add_ext(certificate, where, -1);
    X509_EXTENSION_free(where);
    REQUIRE(X509_sign(certificate, key, EVP_sha256()) > 0);
    const Identity out{folder / (name + ".crt"), folder / (name + ".key")};
    std::FILE* file = std::fopen(out.certificate.c_str(), "w");
    REQUIRE(file);
    PEM_write_X509(file, certificate);
    std::fclose(file);
    file = std::fopen(out.key.c_str(), "w");
    REQUIRE(file);
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return out;
}

// ---- a relay to the fake store ------------------------------------------------------------------------------------------

// Takes connections on a socket of any family, and passes on what comes to a port of 127.0.0.1; one after the other, which
// is as many as these tests make. With a TLS context it speaks that to the caller.
class Relay {
public:
    Relay(int listening, std::uint16_t port, SSL_CTX* tls = nullptr) : listening_(listening), port_(port), tls_(tls) {
        REQUIRE(listen(listening_, 8) == 0);
        thread_ = std::thread([this] { serve(); });
    }
    Relay(const Relay&) = delete;
    Relay& operator=(const Relay&) = delete;
    ~Relay() {
        over_ = true;
        thread_.join();
        close_socket(listening_);
    }
    std::size_t connections() const { return connections_; }

private:
    static bool readable(int a, int b, bool& from_a) {
        pollfd both[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
        if (poll(both, b < 0 ? 1 : 2, 50) <= 0) return false;
        from_a = both[0].revents != 0;
        return true;
    }
    void serve() {
        bool ready = false;
        while (!over_) {
            if (!readable(listening_, -1, ready)) continue;
            const int caller = accept(listening_, nullptr, nullptr);
            if (caller < 0) continue;
            ++connections_;
            SSL* speech = tls_ ? SSL_new(tls_) : nullptr;
            if (speech) SSL_set_fd(speech, caller);
            if (!speech || SSL_accept(speech) == 1) pass_on(caller, speech);
            if (speech) SSL_free(speech);
            close_socket(caller);
        }
    }
    void pass_on(int caller, SSL* speech) {
        const int store = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(port_);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        char buffer[16384];
        bool from_caller = false;
        bool open = connect(store, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
        while (open && !over_) {
            if (!(speech && SSL_pending(speech) > 0) && !readable(caller, store, from_caller)) continue;
            if (speech && SSL_pending(speech) > 0) from_caller = true;
            const auto got = from_caller ? (speech ? SSL_read(speech, buffer, sizeof buffer)
                                                   : recv(caller, buffer, sizeof buffer, 0))
                                         : recv(store, buffer, sizeof buffer, 0);
            if (got <= 0) break;
            const auto size = static_cast<std::size_t>(got);
            if (from_caller)
                open = send(store, buffer, size, MSG_NOSIGNAL) == got;
            else
                open = (speech ? SSL_write(speech, buffer, static_cast<int>(size))
                               : send(caller, buffer, size, MSG_NOSIGNAL)) == got;
        }
        close_socket(store);
    }

    const int listening_;
    const std::uint16_t port_;
    SSL_CTX* const tls_;
    std::atomic<bool> over_{false};
    std::atomic<std::size_t> connections_{0};
    std::thread thread_;
};

int bound_loopback(int family, std::uint16_t& port) {
    const int made = socket(family, SOCK_STREAM, 0);
    if (made < 0) return -1;
    sockaddr_storage address = {};
    socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (family == AF_INET) {
        auto& four = reinterpret_cast<sockaddr_in&>(address);
        four.sin_family = AF_INET;
        four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else {
        auto& six = reinterpret_cast<sockaddr_in6&>(address);
        six.sin6_family = AF_INET6;
        six.sin6_addr = in6addr_loopback;
    }
    if (bind(made, reinterpret_cast<sockaddr*>(&address), size) != 0) return close_socket(made), -1;
    getsockname(made, reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                   : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
    return made;
}

void check_everyday_work(Cache& cache) {
    const std::string body = store::random_bytes(200000, 1);
    CHECK(cache.set("a key/\xC3\xA9", body));
    CHECK(same(text_of(cache.get("a key/\xC3\xA9")), body));
    CHECK_FALSE(cache.get("missing"));
    cache.remove("a key/\xC3\xA9");
}

// A variable of this process, which libcurl itself looks at, for as long as the test lasts.
struct Variable {
    Variable(const char* variable, const std::string& value) : name(variable) { setenv(name, value.c_str(), 1); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;
    ~Variable() { unsetenv(name); }
    const char* name;
};

}  // namespace

TEST_CASE("requests go through the proxy that Config or the environment names, and past it where it is told so",
          "[networks]") {
    World world;  // which takes the form of a request that a proxy gets
    Config config = world.config();
    config.endpoint = "http://store.invalid:9000";  // resolved by the proxy, or not at all
    config.attempts_max = 1;
    SECTION("of Config") {
        config.proxy = world.s3.endpoint();
        Cache cache = world.cache(config);
        check_everyday_work(cache);
        CHECK(world.s3.requests().front().target.rfind("http://store.invalid:9000/", 0) == 0);
    }
    SECTION("of the environment") {
        const Variable proxy("http_proxy", world.s3.endpoint());
        Cache cache = world.cache(config);
        check_everyday_work(cache);
    }
    SECTION("but for hosts that are to be met directly") {
        const Variable proxy("http_proxy", world.s3.endpoint());
        const Variable direct("no_proxy", "store.invalid");
        Cache cache = world.cache(config);
        CHECK(code_of(cache.try_get("k")) == Errc::network);
        CHECK(world.s3.request_count() == 0);
    }
}

TEST_CASE("an endpoint may be an IPv6 address", "[networks]") {
    World world;
    std::uint16_t port = 0;
    const int listening = bound_loopback(AF_INET6, port);
    if (listening < 0) {
        WARN("this machine has no IPv6 loopback: only the name in requests is checked");
    }
    Config config = world.config();
    config.endpoint = "http://[::1]:" + std::to_string(listening < 0 ? 9000 : port);
    std::unique_ptr<Relay> relay;
    curl_slist* around = nullptr;
    if (listening >= 0) {
        relay = std::make_unique<Relay>(listening, world.s3.port());
    } else {
        around = curl_slist_append(nullptr, ("[::1]:9000:127.0.0.1:" + std::to_string(world.s3.port())).c_str());
        config.setup_curl = [&](void* curl) { curl_easy_setopt(curl, CURLOPT_CONNECT_TO, around); };
    }
    {
        Cache cache = world.cache(config);
        check_everyday_work(cache);
    }
    CHECK(world.s3.requests().front().header("host").value_or("").rfind("[::1]:", 0) == 0);
    curl_slist_free_all(around);
}

TEST_CASE("a handle whose setup_curl threw is set up anew", "[networks]") {
    World world;
    Config config = world.config();
    auto left = std::make_shared<int>(0);
    config.setup_curl = [left](void* curl) {
        if ((*left)-- > 0) throw std::runtime_error("not now");
        curl_easy_setopt(curl, CURLOPT_USERAGENT, "hooked");
    };
    Cache cache = world.cache(config);
    cache.set("k", "v");
    *left = 1;
    CHECK_THROWS(cache.get("k"));  // another method than before, so that the handle is reset
    CHECK(cache.get("k"));
    for (const auto& request : world.s3.requests()) CHECK(request.header("user-agent") == std::string("hooked"));
}

TEST_CASE("what setup_curl throws reaches the caller, also while credentials are fetched", "[networks][credentials]") {
    for (const bool fetched : {false, true}) {
        CAPTURE(fetched);
        World world, container;
        const std::string uri = container.s3.endpoint() + "/credentials";
        Config config = world.config();
        if (fetched) config.credentials = {};
        config.seams.environment = [uri](const char* name) -> std::optional<std::string> {
            if (std::string_view(name) == "AWS_CONTAINER_CREDENTIALS_FULL_URI") return uri;
            if (std::string_view(name) == "AWS_EC2_METADATA_DISABLED") return "true";
            if (std::string_view(name) == "HOME") return "/nonexistent";
            return std::nullopt;
        };
        config.setup_curl = [](void*) { throw std::runtime_error("my hook"); };
        Cache cache = world.cache(config);
        CHECK_THROWS_WITH(cache.get("k"), "my hook");
        CHECK_THROWS_WITH(cache.set("k", "v"), "my hook");
        CHECK(world.s3.request_count() + container.s3.request_count() == 0);
    }
}

TEST_CASE("a store behind a Unix socket is reached through setup_curl", "[networks]") {
    World world;
    const store::Folder folder;
    const std::string path = folder / "store.sock";
    const int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    Relay relay(listening, world.s3.port());
    Config config = world.config();
    config.endpoint = "http://localhost";
    config.setup_curl = [path](void* curl) { curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, path.c_str()); };
    Cache cache = world.cache(config);
    check_everyday_work(cache);
    CHECK(relay.connections() >= 1);
}

TEST_CASE("a client certificate is shown to a server that asks for one", "[networks][tls]") {
    World world;
    const store::Folder folder;
    const Identity server = self_signed(folder, "server"), client = self_signed(folder, "client"),
                   stranger = self_signed(folder, "stranger");
    SSL_CTX* tls = SSL_CTX_new(TLS_server_method());
    REQUIRE(SSL_CTX_use_certificate_file(tls, server.certificate.c_str(), SSL_FILETYPE_PEM) == 1);
    REQUIRE(SSL_CTX_use_PrivateKey_file(tls, server.key.c_str(), SSL_FILETYPE_PEM) == 1);
    REQUIRE(SSL_CTX_load_verify_locations(tls, client.certificate.c_str(), nullptr) == 1);
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    SSL_CTX_set_max_proto_version(tls, TLS1_2_VERSION);  // the refusal then comes in the handshake
    std::uint16_t port = 0;
    const int listening = bound_loopback(AF_INET, port);
    REQUIRE(listening >= 0);
    {
        Relay relay(listening, world.s3.port(), tls);
        Config config = world.config();
        config.endpoint = "https://127.0.0.1:" + std::to_string(port);
        config.ca_bundle = server.certificate;
        config.attempts_max = 1;
        const auto try_with = [&](const std::string& certificate, const std::string& key) {
            config.client_certificate = certificate;
            config.client_key = key;
            Cache cache = world.cache(config);
            return code_of(cache.try_get("k"));
        };
        for (const Errc refused : {try_with("", ""), try_with(stranger.certificate, stranger.key)})
            CHECK((refused == Errc::tls || refused == Errc::network));
        CHECK(try_with(folder / "missing.crt", client.key) == Errc::tls);
        CHECK(world.s3.request_count() == 0);
        config.client_certificate = client.certificate;
        config.client_key = client.key;
        Cache cache = world.cache(config);
        check_everyday_work(cache);
    }
    SSL_CTX_free(tls);
}
