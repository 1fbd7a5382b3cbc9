// A whole answer, as it comes out of the socket, given to each operation at each of its requests. Held to: an operation ends in a
// value, a miss or an error; a value is bytes that the answer holds; an error can be shown to a person.
#include "fuzz.hpp"

#include <mutex>
#include <thread>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace fuzz_answers {

using fuzz::require;
using namespace s3cache;

#ifndef _WIN32  // there matrix/windows_posix.hpp has one
inline int close_socket(int socket) { return ::close(socket); }
#endif

// On loopback: whoever connects is sent the answer, before it was asked anything, and the end of it.
class Server {
public:
    Server() : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto* const any = reinterpret_cast<sockaddr*>(&address);
        require(::bind(listener_, any, size) == 0 && ::listen(listener_, 64) == 0 &&
                    ::getsockname(listener_, any, &size) == 0,
                "loopback is there");
        port_ = ntohs(address.sin_port);
        thread_ = std::thread([this] { serve(); });
    }
    ~Server() {
        ::shutdown(listener_, SHUT_RDWR);
        thread_.join();
        close_socket(listener_);
    }
    static Server& the() {
        static Server server;
        return server;
    }
    std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }

    // Until the next answer the connections stay, unread: closing one with requests in it would take the answer back.
    void answer(std::string_view text) {
        const std::lock_guard<std::mutex> hold(lock_);
        for (int peer : peers_) close_socket(peer);
        peers_.clear();
        answer_ = text;
    }

private:
    void serve() {
        for (;;) {
            const int peer = ::accept(listener_, nullptr, nullptr);
            if (peer < 0) return;
            const std::lock_guard<std::mutex> hold(lock_);
            static_cast<void>(::send(peer, answer_.data(), answer_.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
            ::shutdown(peer, SHUT_WR);
            peers_.push_back(peer);
        }
    }

    int listener_;
    std::uint16_t port_ = 0;
    std::mutex lock_;
    std::string answer_;
    std::vector<int> peers_;
    std::thread thread_;
};

constexpr std::size_t answer_bytes_max = 64 * 1024;  // what a socket takes without anybody reading

inline Config config() {
    Config config;
    config.region = "us-east-1";
    config.endpoint = Server::the().endpoint();
    config.credentials = Credentials{"AKID", "secret", {}, {}, "the fuzzer"};
    config.attempts_max = 2;
    config.call_timeout = std::chrono::milliseconds(5000);
    config.connections = 1;
    config.clock = [] { return TimePoint(std::chrono::seconds(1800000000)); };
    config.seams.sleep = [](std::chrono::milliseconds) {};
    config.seams.random = [] { return 0.0; };
    config.seams.environment = [](const char*) { return std::optional<std::string>(); };
    return config;
}

// The answer as text for comparisons: its framing may lie between two bytes of a value, and gzip hides them.
struct Answer {
    explicit Answer(std::string_view given) : text(given), lower(detail::bytes::lower(given)) {}

    bool is_plain() const {
        for (const char* word : {"chunked", "gzip", "compressed"}) {
            if (lower.find(word) != std::string::npos) return false;
        }
        return true;
    }
    void check(const Value& value) const {
        require(!is_plain() || text.find(value.view()) != std::string_view::npos, "a value is bytes of the answer");
    }
    template <class T>
    bool check(const Result<T>& result) const {
        if (result) return true;
        const std::string what = result.error().what();
        require(!what.empty() && !fuzz::has_control(what), "an error can be shown");
        const bool is_told = text.find("secret") != std::string_view::npos;  // by the answer itself
        require(is_told || what.find("secret") == std::string::npos, "an error holds no secret");
        return false;
    }

    std::string_view text;
    std::string lower;
};

inline void read_stream(Cache& cache, const Answer& answer) {
    auto stream = cache.try_get_stream("k");
    if (!answer.check(stream) || !*stream) return;
    for (;;) {
        const auto chunk = (*stream)->try_next();
        if (!answer.check(chunk) || chunk->empty()) return;
    }
}

inline void read_list(Cache& cache, const Answer& answer) {
    auto listing = cache.try_list("p/", Look::deep);
    if (!answer.check(listing)) return;
    for (int pages = 0; pages < 10000; ++pages) {
        const auto entry = listing->try_next();
        if (!answer.check(entry) || !*entry) return;
        require((*entry)->key.rfind("p/", 0) == 0, "a list holds what was asked for");
    }
}

FUZZ_TARGET(answers) {
    const Answer answer(input.substr(0, answer_bytes_max));
    Server::the().answer(answer.text);
    Cache cache("bucket", config());
    const auto hit = cache.try_get("k");
    if (answer.check(hit) && *hit) answer.check(**hit);
    read_stream(cache, answer);
    answer.check(cache.try_stat("k"));
    const auto newer = cache.try_get_if_changed("k", "\"e\"");
    answer.check(newer);
    answer.check(cache.try_set("k", "value"));
    SetOptions absent;
    absent.if_absent = true;
    answer.check(cache.try_set("k", "value", absent));
    answer.check(cache.try_touch("k", std::chrono::hours(1)));
    answer.check(cache.try_remove("k"));
    read_list(cache, answer);
    cache.get_many({"a", "b"}, [&](const std::string&, const Result<std::optional<Value>>& got) {
        if (answer.check(got) && *got) answer.check(**got);
    });
    for (const auto& removed : cache.remove_many({"a", "b"})) answer.check(removed);
    answer.check(cache.try_clear("p/"));
    answer.check(cache.try_purge_expired("p/"));
    answer.check(cache.try_sweep_uploads("p/", std::chrono::hours(1)));
    answer.check(cache.try_get_or_set("k", [] { return "made"; }));
}

}  // namespace fuzz_answers
