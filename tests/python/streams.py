#!/usr/bin/env python3
"""Large streams through the command line and back: equal, and in how much memory.

    streams.py PATH_OF_S3CACHE [SIZE_MIB ...]        sizes default to 20 and 5120

The store is the one that S3CACHE_TEST_ENDPOINT and S3CACHE_TEST_BUCKET name, the keys those of the environment. Prints a
line a transfer with its rate and the peak memory of the process, then 'N passed, N failed'.
"""
import hashlib
import os
import subprocess
import sys
import time

BLOCK = 1 << 20
# Parts in flight (Config::transfer_bytes_max) and a few MiB: what README promises.
PEAK_MIB_MAX = 64 + 16


def blocks(mebibytes):
    """Bytes that no two MiB of which are alike, and that gzip cannot shrink much."""
    seed = os.urandom(BLOCK)
    for i in range(mebibytes):
        yield i.to_bytes(8, "big") + seed[8:]


def finish(process):
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024


def put(program, key, mebibytes, options):
    process = subprocess.Popen([program, "set", *options, key, "-"], stdin=subprocess.PIPE)
    digest = hashlib.sha256()
    for block in blocks(mebibytes):
        digest.update(block)
        process.stdin.write(block)
    process.stdin.close()
    return finish(process), digest.hexdigest()


def get(program, key):
    process = subprocess.Popen([program, "get", key], stdout=subprocess.PIPE)
    digest = hashlib.sha256()
    while chunk := process.stdout.read(BLOCK):
        digest.update(chunk)
    return finish(process), digest.hexdigest()


def main():
    program = sys.argv[1]
    sizes = [int(size) for size in sys.argv[2:]] or [20, 5120]
    os.environ["AWS_ENDPOINT_URL"] = os.environ["S3CACHE_TEST_ENDPOINT"]
    os.environ["S3CACHE_URL"] = "s3://" + os.environ.get("S3CACHE_TEST_BUCKET", "s3cache-test")
    passed = failed = 0
    for size in sizes:
        for options in ([], ["--gzip"]) if size < 1024 else ([],):
            key = f"streams/{os.getpid()}-{size}"
            began = time.monotonic()
            (put_status, put_peak), sent = put(program, key, size, options)
            middle = time.monotonic()
            (get_status, get_peak), received = get(program, key)
            end = time.monotonic()
            subprocess.run([program, "rm", key], check=False)
            fine = put_status == get_status == 0 and sent == received and max(put_peak, get_peak) < PEAK_MIB_MAX
            passed, failed = passed + fine, failed + (not fine)
            print(f"{'ok  ' if fine else 'FAIL'} {size} MiB {' '.join(options) or 'as is'}: "
                  f"up {size / (middle - began):.0f} MiB/s, peak {put_peak:.0f} MiB; "
                  f"down {size / (end - middle):.0f} MiB/s, peak {get_peak:.0f} MiB; "
                  f"{'equal' if sent == received else 'NOT EQUAL'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
