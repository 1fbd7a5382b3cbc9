"""What operations on 4 KiB cost under valgrind's callgrind, by whose code it is in: figures that noise hardly moves.
instructions.py PROGRAM ENDPOINT [ARGUMENT]        gets by bench/one.cpp; two runs of different length, so that start and end
                                                  cancel out
"""

import collections
import os
import re
import subprocess
import sys
import tempfile

SHORT, LONG = 20, 120

# What a program gets from the kernel without a call of it (the vDSO), though not under valgrind.
NO_SYSTEM_CALLS = ("clock_gettime", "gettimeofday", "time")


def owner(path, program):
    name = os.path.basename(path)
    if name == os.path.basename(program):
        return "own"
    for prefix, text in (("libcurl", "libcurl"), ("libcrypto", "OpenSSL"), ("libssl", "OpenSSL"),
                         ("libc.so", "libc"), ("libc-", "libc"), ("libstdc++", "libstdc++")):
        if name.startswith(prefix):
            return text
    return "other"


def costs(path, program):
    """The cost of each object's own code (what its callees cost stands in lines after `calls=` and is left out), and under
    `allocations` how often `operator new` was called."""
    names, functions, sums = {}, {}, collections.Counter()
    current, called, skip = "", "", False
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            line = line.rstrip("\n")
            if (found := re.match(r"ob=\((\d+)\)(?: (.*))?$", line)):
                if found.group(2):
                    names[found.group(1)] = found.group(2)
                current = owner(names.get(found.group(1), ""), program)
            elif (found := re.match(r"cob=\((\d+)\) (.*)$", line)):
                names[found.group(1)] = found.group(2)
            elif (found := re.match(r"(c?)fn=\((\d+)\)(?: (.*))?$", line)):
                if found.group(3):
                    functions[found.group(2)] = found.group(3)
                called = functions.get(found.group(2), "")
            elif (found := re.match(r"calls=(\d+)", line)):
                skip = True
                if called.startswith("operator new"):
                    sums["allocations"] += int(found.group(1))
            elif (found := re.match(r"(?:[+-]?\d+|\*|0x[0-9a-f]+)(?: (?:[+-]?\d+|\*))* (\d+)$", line)):
                if not skip:
                    sums[current] += int(found.group(1))
                skip = False
    return sums


def system_calls(path):
    """The system calls between one getppid() of the program and the next: the median, which a busy machine does not move."""
    counts = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = re.match(r"SYSCALL\[\d+,\d+\]\(\s*\d+\) sys_(\w+)", line)
            if found and found.group(1) == "getppid":
                counts.append(0)
            elif found and counts and found.group(1) not in NO_SYSTEM_CALLS:
                counts[-1] += 1
    return sorted(counts[:-1])[len(counts) // 2] if len(counts) > 2 else 0


def callgrind(command):
    """The costs() of a command, and its system_calls()."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = os.path.join(folder, "out"), os.path.join(folder, "log")
        subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--log-file={log}", "--trace-syscalls=yes",
                        *command], check=True, stdout=subprocess.DEVNULL)
        return costs(out, command[0]), system_calls(log)


def difference(short, long, count):
    return {name: (long[name] - short[name]) / count for name in long}


def main():
    program, endpoint = sys.argv[1:3]
    command = lambda count: [program, endpoint, "bench", "small/0", str(count), *sys.argv[3:]]
    parts = difference(callgrind(command(SHORT))[0], callgrind(command(LONG))[0], LONG - SHORT)
    order = ["own", "libstdc++", "libc", "OpenSSL", "libcurl", "other"]
    print(f"{sum(parts.get(name, 0) for name in order):,.0f} in all: "
          + ", ".join(f"{name} {parts[name]:,.0f}" for name in order if parts.get(name)))


if __name__ == "__main__":
    main()
