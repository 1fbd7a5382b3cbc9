#!/usr/bin/env bash
# Misuse that looks right, each with every compiler there is. `safe`: compiles and works, or does not compile and says why.
# `refused`: does not compile, and says why. To say why is a static_assert or a deleted function, and not a wall of templates:
# the first error is it, and all that is printed fits a screen.
# S3CACHE_TEST_ENDPOINT and friends name the store; without them BUILD/fake_s3 is started.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
build=${BUILD:-$root/build}
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-misuse.XXXXXX")
fake_pid=
finish() {
    [ -z "$fake_pid" ] || kill "$fake_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
passed=0 failed=0

if [ -z "${S3CACHE_TEST_ENDPOINT:-}" ]; then
    [ -x "$build/fake_s3" ] || { echo "no $build/fake_s3: make $build/fake_s3"; exit 1; }
    mkfifo "$work/pipe"
    "$build/fake_s3" >"$work/pipe" &
    fake_pid=$!
    # Its one line, or the end of it.
    timeout 60 head -n 1 "$work/pipe" >"$work/env"
    [ -s "$work/env" ] || { echo 'fake_s3 does not start'; exit 1; }
    . "$work/env"
fi

ok() { passed=$((passed + 1)); printf 'ok    %s %s: %s\n' "$cxx" "$1" "$2"; }
bad() { failed=$((failed + 1)); printf 'FAIL  %s %s: %s\n' "$cxx" "$1" "$2"; head -n "${3:-8}" "$work/log" | cut -c1-160; }

says_why() { # a sentence of ours among the first errors
    grep -m1 -E 'error: (static assertion failed|static_assert failed|.*static assertion failed).*[a-z]+ [a-z]+ [a-z]+' "$work/log" ||
        grep -m1 -E 'error: .*(deleted function|call to deleted|has been explicitly marked deleted|attempt to use a deleted)' "$work/log"
}

# The functions are compiled once; each case needs the declarations alone.
flags=(-std=c++17 ${CPPFLAGS:-} -I"$root" -DS3CACHE_DECLARATIONS_ONLY)
compiles() { $cxx "${flags[@]}" -DCASE="$1" "${@:2}" "$here/misuse.cpp" >"$work/log" 2>&1; }

safe() { # CASE NAME
    if compiles "$1" -fsyntax-only; then
        compiles "$1" -c -o "$work/case.o" && $cxx "$work"/{case,impl}.o -o "$work/program" -lcurl -lcrypto -lz -lpthread >"$work/log" 2>&1 ||
            { bad "$1" "$2: does not link"; return; }
        (cd "$work" && timeout 60 ./program) >"$work/log" 2>&1 && ok "$1" "$2: works" || bad "$1" "$2: compiles, and goes wrong"
    else
        refusal "$1" "$2"
    fi
}
refused() {
    if compiles "$1" -fsyntax-only; then bad "$1" "$2: compiles"; else refusal "$1" "$2"; fi
}
lines_allowed() { # g++ 16 draws where each step comes from
    case $($cxx --version | head -n 1) in
        *clang*) echo 40 ;;
        *) if [ "$($cxx -dumpversion | cut -d. -f1)" -lt 16 ]; then echo 40; else echo 45; fi ;;
    esac
}
refusal() {
    local lines
    lines=$(wc -l <"$work/log")
    if ! says_why >/dev/null; then
        bad "$1" "$2: does not compile, and does not say why"
    elif [ "$lines" -gt "$lines_max" ]; then
        bad "$1" "$2: says why, in $lines lines"
    else
        ok "$1" "$2: $(says_why | sed 's/.*failed[: "]*//' | cut -c1-120)"
    fi
}

for cxx in ${CXX_ALL:-g++ clang++}; do
    command -v "$cxx" >/dev/null || { echo "skip  $cxx is not installed"; continue; }
    lines_max=$(lines_allowed)
    $cxx "${flags[@]}" -c "$here/impl.cpp" -o "$work/impl.o" || exit 1
    safe 1 'a producer returns json of a local string'
    safe 2 'a producer returns bytes of a local vector'
    safe 3 'a producer returns a view of a local string'
    safe 4 'chunks over an istream_iterator'
    safe 5 'a Source of an ifstream that nobody keeps'
    safe 6 'json(nullptr)'
    refused 7 'set of a type without a codec'
    refused 8 'get of a type without a codec'
    refused 9 'a producer returns a type without a codec'
    refused 10 'set of a number'
    refused 11 'a producer that returns nothing'
    refused 12 'a producer that wants an argument'
    safe 13 'a Payload of a string that is gone'
    safe 14 'set of nullptr'
    refused 15 'set of a vector of int'
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
