"""Instructions of one get of 4 KiB by valgrind's callgrind, by whose code they are in.
instructions.py PROGRAM ENDPOINT [ARGUMENT]        two runs of different length, so that start and end cancel out
"""

import collections
import os
import re
import subprocess
import sys
import tempfile

SHORT, LONG = 20, 120


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
    """The cost of each object's own code; what its callees cost stands in lines after `calls=` and is left out."""
    names, sums = {}, collections.Counter()
    current, skip = "", False
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = re.match(r"ob=\((\d+)\)(?: (.*))?$", line.rstrip("\n"))
            if found:
                if found.group(2):
                    names[found.group(1)] = found.group(2)
                current = owner(names.get(found.group(1), ""), program)
            elif (found := re.match(r"cob=\((\d+)\) (.*)$", line.rstrip("\n"))):
                names[found.group(1)] = found.group(2)
            elif line.startswith("calls="):
                skip = True
            elif (found := re.match(r"(?:[+-]?\d+|\*|0x[0-9a-f]+)(?: (?:[+-]?\d+|\*))* (\d+)$", line.rstrip("\n"))):
                if not skip:
                    sums[current] += int(found.group(1))
                skip = False
    return sums


def run(program, endpoint, count):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q", program, endpoint, "bench",
                        "small/0", str(count), *sys.argv[3:]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return costs(out, program)


program, endpoint = sys.argv[1:3]
short, long = run(program, endpoint, SHORT), run(program, endpoint, LONG)
parts = {name: (long[name] - short[name]) // (LONG - SHORT) for name in long}
order = ["own", "libstdc++", "libc", "OpenSSL", "libcurl", "other"]
print(f"{sum(parts.values()):,} in all: " + ", ".join(f"{name} {parts[name]:,}" for name in order if parts.get(name)))
