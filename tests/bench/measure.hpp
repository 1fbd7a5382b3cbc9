// Taking times by turns, running other programs, and the table of what came out.
#pragma once

#include <sys/resource.h>  // rusage
#include <sys/wait.h>      // wait4
#include <spawn.h>         // programs of their own
#include <time.h>          // clock_gettime
#include <unistd.h>        // pipes

#include <algorithm>   // sort, min
#include <cstddef>     // std::size_t
#include <cstdio>      // the table
#include <cstdlib>     // strtod
#include <functional>  // what is measured
#include <string>      // names
#include <vector>      // samples

extern char** environ;

namespace measure {

// Seconds for one operation, and what the process held at most.
struct Cost {
    double cpu = 0, wall = 0, memory_mib = 0;
};

inline double seconds(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

template <class F>
Cost timed(std::size_t operations, F&& work) {
    const double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), wall = seconds(CLOCK_MONOTONIC);
    work();
    const double count = static_cast<double>(operations);
    return {(seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / count, (seconds(CLOCK_MONOTONIC) - wall) / count, 0};
}

inline double median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// One way to do the work; `run` does it once and says what an operation cost.
struct Variant {
    std::string name;
    std::function<Cost()> run;
    std::vector<Cost> samples{};

    template <class F>
    std::vector<double> each(F&& field) const {
        std::vector<double> out;
        for (const Cost& cost : samples) out.push_back(field(cost));
        return out;
    }
    double cpu() const {
        return median(each([](const Cost& cost) { return cost.cpu; }));
    }
    double wall() const {
        return median(each([](const Cost& cost) { return cost.wall; }));
    }
    double memory() const {
        return median(each([](const Cost& cost) { return cost.memory_mib; }));
    }
};

// All variants in each round, a different one first each time. The round before the first warms up and is not counted.
inline void take_turns(std::vector<Variant>& variants, int rounds) {
    for (Variant& variant : variants) variant.run();
    for (int round = 0; round < rounds; ++round) {
        for (std::size_t i = 0; i < variants.size(); ++i) {
            Variant& variant = variants[(i + static_cast<std::size_t>(round)) % variants.size()];
            variant.samples.push_back(variant.run());
        }
    }
}

// Standard output of a program that ends well, and what it cost by the kernel's account; empty text: it did not.
struct Ran {
    std::string text;
    Cost cost;
    bool fine = false;
};

inline Ran run_program(const std::vector<std::string>& command) {
    Ran out;
    int ends[2];
    if (pipe(ends) != 0) return out;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    std::vector<char*> arguments;
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    pid_t child = 0;
    const double wall = seconds(CLOCK_MONOTONIC);
    const int spawned = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    char buffer[4096];
    for (ssize_t count = 0; (count = read(ends[0], buffer, sizeof buffer)) > 0;)
        out.text.append(buffer, static_cast<std::size_t>(count));
    close(ends[0]);
    int status = 0;
    rusage usage{};
    if (spawned != 0 || wait4(child, &status, 0, &usage) != child) return out;
    const auto time = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    };
    out.cost = {time(usage.ru_utime) + time(usage.ru_stime), seconds(CLOCK_MONOTONIC) - wall, 0};
    out.fine = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return out;
}

// A program that measures itself and prints "CPU WALL MEMORY": seconds of an operation, MiB.
inline Cost run_measured(const std::vector<std::string>& command, bool& fine) {
    const Ran ran = run_program(command);
    const char* at = ran.text.c_str();
    char* end = nullptr;
    Cost cost;
    for (double* field : {&cost.cpu, &cost.wall, &cost.memory_mib}) {
        *field = std::strtod(at, &end);
        fine = ran.fine && end != at;
        if (!fine) return {};
        at = end;
    }
    return cost;
}

// The most this program held in memory. From /proc, since rusage of a child counts what its parent held before exec.
inline double peak_memory_mib() {
    double kib = 0;
    if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
        char line[256];
        while (std::fgets(line, sizeof line, file)) {
            const std::string text = line;
            if (text.compare(0, 6, "VmHWM:") == 0) kib = std::strtod(line + 6, nullptr);
        }
        std::fclose(file);
    }
    return kib / 1024;
}

// ---------------------------------------------------------------- the table

enum class Unit { time, mib, mb_per_second };

struct Row {
    std::string work, scheme;
    Unit unit = Unit::time;
    double library = 0, bare = 0;         // 0: there is none
    double value = 0, low = 0, high = 0;  // what is held against the target; usually the ratio
    double target = 0;
    bool at_least = false;  // the target is a least, not a most
    bool plain = false;     // `value` is no ratio: memory
    std::string others{};   // libs3, boto3

    bool reached() const { return at_least ? value >= target : value <= target; }
};

inline std::string number(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

inline std::string three_digits(double value) { return number(value, value < 10 ? 2 : value < 100 ? 1 : 0); }

inline std::string show(double value, Unit unit) {
    if (value <= 0) return "-";
    if (unit == Unit::mib) return three_digits(value) + " MiB";
    if (unit == Unit::mb_per_second) return three_digits(value) + " MB/s";
    if (value < 1e-3) return three_digits(value * 1e6) + " us";
    if (value < 1) return three_digits(value * 1e3) + " ms";
    return three_digits(value) + " s";
}

class Table {
public:
    void add(Row row) {
        rows_.push_back(std::move(row));
        std::printf("%s\n", line(rows_.back(), false).c_str());
        std::fflush(stdout);
    }
    void print_head() const { std::printf("%s\n", head(false).c_str()); }
    // As Markdown, into the file.
    void write(std::FILE* out) const {
        std::fprintf(out, "%s\n", head(true).c_str());
        for (const Row& row : rows_) std::fprintf(out, "%s\n", line(row, true).c_str());
    }
    std::size_t missed() const {
        return static_cast<std::size_t>(
            std::count_if(rows_.begin(), rows_.end(), [](const Row& row) { return !row.reached(); }));
    }
    std::size_t size() const { return rows_.size(); }

private:
    static constexpr int widths[] = {52, 5, 10, 10, 20, 8, 6, 0};

    static std::string join(const std::vector<std::string>& cells, bool markdown) {
        std::string out = markdown ? "|" : "";
        for (std::size_t i = 0; i < cells.size(); ++i) {
            if (markdown) {
                out += " " + cells[i] + " |";
                continue;
            }
            const auto width = static_cast<std::size_t>(widths[i]);
            const std::string pad(width > cells[i].size() ? width - cells[i].size() : 0, ' ');
            const bool left = i < 2 || i + 1 == cells.size();
            out += (left ? cells[i] + pad : pad + cells[i]) + "  ";
        }
        return out;
    }
    static std::string head(bool markdown) {
        const std::vector<std::string> names{"work",   "over", "library", "bare", "ratio (of rounds)",
                                             "target", "",     "others"};
        std::string out = join(names, markdown);
        if (markdown) out += "\n|---|---|---:|---:|---:|---:|---|---|";
        return out;
    }
    static std::string line(const Row& row, bool markdown) {
        const std::string value = row.plain ? show(row.value, row.unit) : number(row.value, 2);
        const bool range = row.low > 0 && row.high > row.low;
        const std::string spread = range ? " (" + number(row.low, 2) + "-" + number(row.high, 2) + ")" : "";
        const std::string target = row.plain ? number(row.target, 0) + " MiB" : number(row.target, 2);
        return join({row.work, row.scheme, show(row.library, row.unit), show(row.bare, row.unit), value + spread,
                     target, row.reached() ? "ok" : "MISSED", row.others},
                    markdown);
    }
    std::vector<Row> rows_;
};

}  // namespace measure
