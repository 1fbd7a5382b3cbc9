// A long or a slow line, as a TCP relay on loopback: each byte arrives DELAY_MS later (half of it each way), and each
// connection carries BYTES_PER_SECOND at most in each direction (0: no limit). Prints its port and runs until SIGTERM.
//     link TARGET_PORT DELAY_MS BYTES_PER_SECOND
#include <arpa/inet.h>    // htons
#include <fcntl.h>        // O_NONBLOCK
#include <netinet/tcp.h>  // TCP_NODELAY
#include <poll.h>         // ppoll: waits of less than a millisecond
#include <sys/socket.h>   // the rest
#include <unistd.h>       // read, write, close

#include <algorithm>  // min, max
#include <cerrno>     // EAGAIN
#include <chrono>     // when bytes are due
#include <cstdio>     // the port
#include <cstdlib>    // strtol
#include <deque>      // bytes on their way
#include <memory>     // connections
#include <vector>     // bytes

namespace {

using Clock = std::chrono::steady_clock;

std::chrono::microseconds delay{0};
double rate = 0;
constexpr std::size_t chunk_bytes = 64 << 10;
// On the line at most; a little where the rate is the point, so that the sender feels it.
std::size_t line_bytes() { return rate > 0 ? std::size_t{256} << 10 : std::size_t{8} << 20; }
constexpr double burst_seconds = 0.002;

struct Chunk {
    Clock::time_point due;
    std::vector<char> data;
    std::size_t sent = 0;
};

struct Direction {
    int from = -1, to = -1;
    std::deque<Chunk> line{};
    std::size_t queued = 0;
    double allowance = 0;
    Clock::time_point paid = Clock::now();
    bool ended = false, blocked = false;

    void earn(Clock::time_point now) {
        const double most = (std::max)(rate * burst_seconds, static_cast<double>(chunk_bytes));
        allowance = (std::min)(most, allowance + rate * std::chrono::duration<double>(now - paid).count());
        paid = now;
    }
    bool wants_input() const { return !ended && queued < line_bytes(); }
    // When something can be done without the poll's help.
    Clock::time_point due() const {
        if (line.empty() || blocked) return (Clock::time_point::max)();
        if (rate <= 0) return line.front().due;
        const double wanted =
            static_cast<double>((std::min)(line.front().data.size() - line.front().sent, chunk_bytes / 2));
        const double lack = (std::max)(0.0, wanted - allowance) / rate;
        return (std::max)(line.front().due,
                          paid + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(lack)));
    }
    bool take(Clock::time_point now) {
        Chunk chunk{now + delay / 2, std::vector<char>(chunk_bytes)};
        const ssize_t count = read(from, chunk.data.data(), chunk.data.size());
        if (count < 0) return errno == EAGAIN || errno == EINTR;
        ended = count == 0;
        if (ended && line.empty()) shutdown(to, SHUT_WR);
        if (ended) return true;
        chunk.data.resize(static_cast<std::size_t>(count));
        queued += chunk.data.size();
        line.push_back(std::move(chunk));
        return true;
    }
    bool give(Clock::time_point now) {
        if (rate > 0) earn(now);
        while (!line.empty() && line.front().due <= now) {
            Chunk& chunk = line.front();
            std::size_t wanted = chunk.data.size() - chunk.sent;
            if (rate > 0) wanted = (std::min)(wanted, static_cast<std::size_t>((std::max)(0.0, allowance)));
            if (wanted == 0) return true;
            const ssize_t count = send(to, chunk.data.data() + chunk.sent, wanted, MSG_NOSIGNAL);
            if (count < 0) {
                blocked = errno == EAGAIN;
                return blocked || errno == EINTR;
            }
            allowance -= static_cast<double>(count);
            chunk.sent += static_cast<std::size_t>(count);
            queued -= static_cast<std::size_t>(count);
            if (chunk.sent == chunk.data.size()) line.pop_front();
        }
        if (ended && line.empty()) shutdown(to, SHUT_WR);
        return true;
    }
};

struct Connection {
    Direction up, down;
    bool over() const { return up.ended && down.ended && up.line.empty() && down.line.empty(); }
};

void tune(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(socket, F_SETFL, O_NONBLOCK);
    if (rate <= 0) return;
    const int small = 256 << 10;  // what the kernel holds is not on the line
    setsockopt(socket, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
}

sockaddr_in local(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
}

std::unique_ptr<Connection> accept_one(int listener, std::uint16_t target) {
    const int client = accept(listener, nullptr, nullptr);
    if (client < 0) return nullptr;
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = local(target);
    if (connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        close(client);
        close(server);
        return nullptr;
    }
    tune(client);
    tune(server);
    auto connection = std::make_unique<Connection>();
    connection->up.from = connection->down.to = client;
    connection->up.to = connection->down.from = server;
    return connection;
}

void add_polls(std::vector<pollfd>& polls, const Connection& connection) {
    const auto events = [](const Direction& in, const Direction& out) {
        return static_cast<short>((in.wants_input() ? POLLIN : 0) | (out.blocked ? POLLOUT : 0));
    };
    polls.push_back({connection.up.from, events(connection.up, connection.down), 0});
    polls.push_back({connection.down.from, events(connection.down, connection.up), 0});
}

bool serve(Connection& connection, short client, short server) {
    const auto now = Clock::now();
    Direction &up = connection.up, &down = connection.down;
    if (client & POLLOUT) down.blocked = false;
    if (server & POLLOUT) up.blocked = false;
    if ((client & (POLLIN | POLLHUP | POLLERR)) && up.wants_input() && !up.take(now)) return false;
    if ((server & (POLLIN | POLLHUP | POLLERR)) && down.wants_input() && !down.take(now)) return false;
    return up.give(now) && down.give(now) && !connection.over();
}

[[noreturn]] void run(int listener, std::uint16_t target) {
    std::vector<std::unique_ptr<Connection>> connections;
    std::vector<pollfd> polls;
    for (;;) {
        polls.assign(1, {listener, POLLIN, 0});
        auto due = (Clock::time_point::max)();
        for (const auto& connection : connections) {
            add_polls(polls, *connection);
            due = (std::min)({due, connection->up.due(), connection->down.due()});
        }
        const auto wait =
            (std::max)(Clock::duration(0), (std::min)(due, Clock::now() + std::chrono::hours(1)) - Clock::now());
        const timespec limit{wait.count() / 1000000000, wait.count() % 1000000000};
        if (ppoll(polls.data(), polls.size(), &limit, nullptr) < 0) continue;
        for (std::size_t i = connections.size(); i-- > 0;) {
            if (serve(*connections[i], polls[1 + 2 * i].revents, polls[2 + 2 * i].revents)) continue;
            close(connections[i]->up.from);
            close(connections[i]->up.to);
            connections.erase(connections.begin() + static_cast<std::ptrdiff_t>(i));
        }
        if (polls[0].revents & POLLIN) {
            if (auto connection = accept_one(listener, target)) connections.push_back(std::move(connection));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 64;
    const auto target = static_cast<std::uint16_t>(std::strtol(argv[1], nullptr, 10));
    delay = std::chrono::microseconds(std::strtol(argv[2], nullptr, 10) * 1000);
    rate = static_cast<double>(std::strtol(argv[3], nullptr, 10));
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = local(0);
    socklen_t size = sizeof address;
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 128) != 0 ||
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
        std::perror("link");
        return 1;
    }
    std::printf("%u\n", static_cast<unsigned>(ntohs(address.sin_port)));
    std::fflush(stdout);
    run(listener, target);
}
