// What of POSIX the tests call, for Windows: in front of each of their files (-include) when they are compiled for that, so that
// they are the same everywhere. Sockets, the clock, variables and folders are real; what Windows has nothing like (fork, limits,
// devices) fails, and the tests of it are left out by name (windows_left_out.txt). s3cache.hpp is not for this: it does without.
#if defined(_WIN32) && !defined(WINDOWS_POSIX_HPP)  // not `pragma once`: precompiled headers hold it, too
#define WINDOWS_POSIX_HPP
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif

#include <winsock2.h>
#include <ws2tcpip.h>

#include <windows.h>

#include <afunix.h>
#include <direct.h>
#include <process.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#include <unistd.h>
#undef near
#undef far

// ---- sockets: their numbers fit into an int ---------------------------------------------------------------------------

namespace windows_posix {
struct Sockets {
    Sockets() {
        WSADATA about;
        WSAStartup(MAKEWORD(2, 2), &about);
    }
};
inline const Sockets sockets;  // never cleaned up: servers may be static objects
}  // namespace windows_posix

constexpr int SHUT_RD = SD_RECEIVE, SHUT_WR = SD_SEND, SHUT_RDWR = SD_BOTH, MSG_NOSIGNAL = 0, MSG_DONTWAIT = 0,
              SOCK_CLOEXEC = 0, FD_CLOEXEC = 1, F_SETFD = 2, F_SETFL = 4, O_NONBLOCK = 0x800;

#define pollfd windows_posix_pollfd  // whose `fd` is an int, as everything else here
struct pollfd {
    int fd;
    short events, revents;
};

inline int poll(pollfd* asked, std::size_t count, int timeout) {
    std::vector<WSAPOLLFD> all(count);
    for (std::size_t i = 0; i < count; ++i) all[i] = {static_cast<SOCKET>(asked[i].fd), asked[i].events, 0};
    const int ready = WSAPoll(all.data(), static_cast<ULONG>(count), timeout);
    for (std::size_t i = 0; i < count; ++i) asked[i].revents = all[i].revents;
    return ready;
}

inline int setsockopt(int socket, int level, int name, const void* value, int size) {
    return setsockopt(static_cast<SOCKET>(socket), level, name, static_cast<const char*>(value), size);
}
// One that listens is closed: that is what ends its accept() here.
inline int shutdown(int socket, int how) {
    int is_listening = 0, size = sizeof is_listening;
    getsockopt(static_cast<SOCKET>(socket), SOL_SOCKET, SO_ACCEPTCONN, reinterpret_cast<char*>(&is_listening), &size);
    return is_listening ? closesocket(static_cast<SOCKET>(socket)) : shutdown(static_cast<SOCKET>(socket), how);
}
inline int fcntl(int, int, int) { return 0; }
inline int close_socket(int socket) { return closesocket(static_cast<SOCKET>(socket)); }

// Two ends of a connection to oneself, so that poll() takes them, too.
inline int pipe(int* ends) {
    const SOCKET listening = ::socket(AF_INET, SOCK_STREAM, 0), writing = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* const where = reinterpret_cast<sockaddr*>(&address);
    int size = sizeof address;
    const bool is_made = ::bind(listening, where, size) == 0 && ::listen(listening, 1) == 0 &&
                         ::getsockname(listening, where, &size) == 0 && ::connect(writing, where, size) == 0;
    ends[0] = is_made ? static_cast<int>(::accept(listening, nullptr, nullptr)) : -1;
    ends[1] = static_cast<int>(writing);
    closesocket(listening);
    return ends[0] >= 0 ? 0 : -1;
}
inline int read(int socket, char* to, int room) { return ::recv(static_cast<SOCKET>(socket), to, room, 0); }
inline int write(int socket, const char* from, int size) { return ::send(static_cast<SOCKET>(socket), from, size, 0); }

// ---- time, variables, folders -------------------------------------------------------------------------------------------

#ifndef gmtime_r
inline std::tm* gmtime_r(const std::time_t* time, std::tm* out) { return gmtime_s(out, time) == 0 ? out : nullptr; }
#endif
inline std::time_t timegm(std::tm* time) { return _mkgmtime(time); }

inline int setenv(const char* name, const char* value, int) { return _putenv_s(name, value); }
inline int unsetenv(const char* name) { return _putenv_s(name, ""); }
inline char* mkdtemp(char* name) { return _mktemp(name) && _mkdir(name) == 0 ? name : nullptr; }

// ---- what there is nothing like -----------------------------------------------------------------------------------------

using sigset_type = unsigned;
#define sigset_t sigset_type
constexpr int SIGPIPE = 13, SIGKILL = 9, SIGXFSZ = 25;
inline int sigemptyset(sigset_t*) { return 0; }
inline int sigaddset(sigset_t*, int) { return 0; }
#undef pthread_sigmask
#define pthread_sigmask(...) static_cast<void>(0)

inline int not_here() { return errno = ENOSYS, -1; }
inline int fork() { return not_here(); }
inline int waitpid(int, int*, int) { return not_here(); }
#define WIFEXITED(status) ((status) == 0)
#define WEXITSTATUS(status) (status)

using rlim_t = unsigned long long;
struct rlimit {
    rlim_t rlim_cur, rlim_max;
};
constexpr int RLIMIT_FSIZE = 1, RLIMIT_NOFILE = 2, RUSAGE_THREAD = 1;
inline int getrlimit(int, rlimit*) { return not_here(); }
inline int setrlimit(int, const rlimit*) { return not_here(); }

struct rusage {
    timeval ru_utime, ru_stime;
};
inline int getrusage(int, rusage* out) {  // of this thread
    FILETIME began, ended, system, user;
    GetThreadTimes(GetCurrentThread(), &began, &ended, &system, &user);
    const auto of = [](const FILETIME& time) {
        const auto tenths = (static_cast<unsigned long long>(time.dwHighDateTime) << 32 | time.dwLowDateTime) / 10;
        return timeval{static_cast<long>(tenths / 1000000), static_cast<long>(tenths % 1000000)};
    };
    return *out = {of(user), of(system)}, 0;
}

inline unsigned alarm(unsigned) { return 0; }
#define S_ISLNK(mode) ((mode) == 0 && false)
inline int geteuid() { return 1; }
inline int getuid() { return 1; }
inline int chown(const char*, int, int) { return not_here(); }
inline int mkfifo(const char*, int) { return not_here(); }
inline int mknod(const char*, int, int) { return not_here(); }
inline int makedev(unsigned, unsigned) { return 0; }
inline int lstat(const char* path, struct stat* seen) { return ::stat(path, seen); }
#endif
