#!/usr/bin/env bash
# warnings.sh [--everything] COMPILER [FLAG...]: every way to take in the header under the strict warnings, one compiler and
# standard library at a time: standards x modes x what can be left out, only looked at (-fsyntax-only), then for GCC with
# its optimiser, which is where -Wnull-dereference and -Wmaybe-uninitialized come from.
# Prints a line for each cell with anything to say, then 'N cells, N warnings, N errors'. Any of the two is a failure.
#
# --everything (clang): all warnings there are. Prints what kinds were seen, how often, and why they may stay; a kind
# without a reason is a failure.
#   JOBS=2   cells at a time;   ONLY=   cells that match this grep -E expression, all without;   CPPFLAGS come first
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-warnings.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Kind, and why it stays.
stays='c++98-compat                        this is C++17
c++98-compat-pedantic               this is C++17
c++98-compat-local-type-template-args this is C++17
pre-c++14-compat                    this is C++17
pre-c++17-compat                    this is C++17
pre-c++20-compat-pedantic           said of C++17 alone: the same source is read as C++20 too
padded                              members stand in an order for readers
switch-enum                         a default is there on purpose
switch-default                      the opposite of covered-switch-default: all values are named
covered-switch-default              an enum can hold other values than it names
unsafe-buffer-usage                 a pointer and a size are what the C libraries hand over
unsafe-buffer-usage-in-libc-call    memcpy and its like, for the same reason
unsafe-buffer-usage-in-container    string_view of a pointer and a size, for the same reason
nrvo                                a copy that is a move
comma                               `return fail(...), false`
float-equal                         `x != x` is what asks for NaN, and a zero that was never added to
shadow-uncaptured-local             `[fixed = std::move(fixed)]`: the captured one under its name
deprecated-copy-with-user-provided-dtor Credentials wipe themselves, and must stay an aggregate: no constructor may be declared
exit-time-destructors               an empty map in a function-local static, to which a reference is returned
thread-safety-negative              locks of newer libc++ are annotated: every caller of one would have to be, too
disabled-macro-expansion            curl_easy_setopt in the header of libcurl
weak-vtables                        a single header has no file of its own to put a vtable in'

everything=
if [ "${1:-}" = --everything ]; then everything=yes; shift; fi
cxx=$1
shift
read -r -a given <<<"${CPPFLAGS:-}"
flags=(${given[@]+"${given[@]}"} -I"$root" -I"$root/tests" "$@")
strict='-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Wcast-qual -Wformat=2
        -Wnull-dereference'

if [ -n "$everything" ]; then
    # Both files, for what is only seen where templates are used.
    for source in split/a.cpp split/impl.cpp; do
        mode=()
        [ $source != split/impl.cpp ] || mode=(-DS3CACHE_DECLARATIONS_ONLY)
        "$cxx" -std=c++17 -fsyntax-only -Weverything ${mode[@]+"${mode[@]}"} "${flags[@]}" "$root/tests/$source" >>"$work/log" 2>&1 || { tail "$work/log"; exit 1; }
    done
    grep -aoE 'warning: .*\[-W[^],]+' "$work/log" | sed 's/.*\[-W//' | sort | uniq -c | sort -rn >"$work/kinds"
    unknown=0
    while read -r count kind; do
        reason=$(awk -v kind="$kind" '$1 == kind { $1 = ""; print substr($0, 2) }' <<<"$stays")
        [ -n "$reason" ] || unknown=$((unknown + 1))
        printf '%6s  %-40s %s\n' "$count" "$kind" "${reason:-NO REASON KNOWN: $(grep -am1 -F "[-W$kind" "$work/log")}"
    done <"$work/kinds"
    echo "$(wc -l <"$work/kinds") kinds, $unknown without a reason"
    [ $unknown = 0 ]
    exit
fi

bare='-fno-exceptions -fno-rtti'
declared=-DS3CACHE_DECLARATIONS_ONLY
all_cells() { # SOURCE|FLAGS, one a line
    local std macro
    for std in c++17 c++20 c++2b; do
        "$cxx" -std=$std -x c++ -fsyntax-only - </dev/null 2>/dev/null || continue # older than that standard
        echo "split/a.cpp|-std=$std"
        echo "split/a.cpp|-std=$std $declared"
        echo "split/impl.cpp|-std=$std $declared"
        echo "split/a.cpp|-std=$std $bare"
        echo "split/a.cpp|-std=$std $bare $declared"
        echo "split/impl.cpp|-std=$std $bare $declared"
        for macro in GZIP CREDENTIAL_CHAIN; do echo "split/impl.cpp|-std=$std -DS3CACHE_NO_$macro $declared"; done
        echo "split/impl.cpp|-std=$std -DS3CACHE_NO_GZIP -DS3CACHE_NO_CREDENTIAL_CHAIN $declared"
    done | sed 's/$/ -fsyntax-only/'
    "$cxx" --version | grep -qi clang || {
        echo "split/impl.cpp|-std=c++17 -O2 $declared -c"
        echo "split/impl.cpp|-std=c++20 -O2 $bare $declared -c"
        echo "split/a.cpp|-std=c++17 -O2 -c"
    }
}
cells() { all_cells | grep -E -e "${ONLY:-.}"; }
one() { # SOURCE|FLAGS: what it says goes to a file of its own, and how it ended
    local source=${1%%|*} own=${1#*|} log
    log=$(mktemp "$work/cell.XXXXXX")
    # shellcheck disable=SC2086
    "$cxx" $strict "${flags[@]}" $own -o "$log.o" "$root/tests/$source" >"$log" 2>&1 || echo 'cell error: it ended badly' >>"$log"
    rm -f "$log.o"
    if [ -s "$log" ]; then
        echo "== $own $source"
        grep -aE 'warning:|error:' "$log" | sort -u | head -n 20
    fi
}
running=0
while read -r cell; do
    one "$cell" &
    running=$((running + 1))
    if [ $running -ge "${JOBS:-2}" ]; then
        wait -n
        running=$((running - 1))
    fi
done < <(cells)
wait

count() { cat "$work"/cell.?????? | grep -acE "$1"; }
warned=$(count 'warning:') errors=$(count 'error: ')
echo "$(cells | wc -l) cells, $warned warnings, $errors errors"
[ "$warned" = 0 ] && [ "$errors" = 0 ]
