// One of many processes that want the same value at once: stampede.py starts them and counts who computed it.
//     worker WHERE KEY LOG LEASE_SECONDS COMPUTING_SECONDS CLOCK_AHEAD_SECONDS
// Waits for the end of its standard input, prints the value and, behind it, what became of the call.
// Of a negative time the first in the log goes on until it is killed, and the others are done at once.
#include "s3cache.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

namespace {

// Whole lines, in whatever order: O_APPEND makes each write one.
void note_down(const char* log) {
    const std::string line = std::to_string(getpid()) + "\n";
    const int file = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) std::abort();
    close(file);
}

void compute(double seconds, const char* log) {
    if (seconds < 0) {
        pid_t first = 0;
        std::ifstream(log) >> first;
        seconds = first == getpid() ? 600 : 0;
    }
    std::this_thread::sleep_for(s3cache::Seconds(seconds));
}

void wait_for_the_start() {
    char byte = 0;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
}

}  // namespace

int main(int count, char** words) {
    if (count != 7) return 64;
    const auto seconds = [&](int i) { return s3cache::Seconds(std::atof(words[i])); };
    s3cache::Config config;
    const auto ahead = std::chrono::duration_cast<std::chrono::system_clock::duration>(seconds(6));
    config.clock = [ahead] { return std::chrono::system_clock::now() + ahead; };
    s3cache::Cache cache(words[1], config);
    s3cache::ComputeOptions how;
    how.lease = seconds(4);
    how.lease_wait = s3cache::Seconds(60);
    wait_for_the_start();
    const auto value = cache.try_get_or_set(
        words[2],
        [&] {
            note_down(words[3]);
            compute(seconds(5).count(), words[3]);
            return "computed by " + std::to_string(getpid());
        },
        {s3cache::Seconds(120)}, how);
    if (!value) return std::fprintf(stderr, "%s\n", value.error().what()), 2;
    const s3cache::Stats stats = cache.stats();
    std::printf("%s\n%llu computed, %llu waited, %llu hits, %llu requests\n", value->str().c_str(),
                static_cast<unsigned long long>(stats.computed), static_cast<unsigned long long>(stats.waited),
                static_cast<unsigned long long>(stats.hits), static_cast<unsigned long long>(stats.requests));
    return 0;
}
