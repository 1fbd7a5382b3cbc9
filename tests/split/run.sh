#!/usr/bin/env bash
# The ways in which files can take in the header, built with every compiler there is and run against a store:
# declarations in many files and the functions in one, twice, first, last, among hostile macros, without exceptions.
# S3CACHE_TEST_ENDPOINT and friends name the store; without them BUILD/fake_s3 is started (and built if it isn't there).
# Prints one line for each compiler and test, then 'N passed, N failed'.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
build=${BUILD:-$root/build}
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-split.XXXXXX")
fake_pid=
finish() {
    [ -z "$fake_pid" ] || kill "$fake_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
passed=0 failed=0

warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Wcast-qual -Wformat=2
          -Wnull-dereference -Werror)
libs=(-lcurl -lcrypto -lz -lpthread)
# CPPFLAGS come first so that another header can be put in front of this one.
flags() { printf '%s\n' ${CPPFLAGS:-} -I"$root" -I"$work" "${warnings[@]}"; }

check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
        printf 'ok    %s: %s\n' "$label" "$name"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s: %s\n' "$label" "$name"
        tail -n 20 "$work/log"
    fi
}

compile() { # OUT SOURCE FLAGS...: an object file, made once for each way of compiling it
    local out=$1 source=$2 known
    shift 2
    known=$work/known-$(printf '%s ' "$cxx" "$std" "$source" "$@" | cksum | tr -d ' ').o
    [ -e "$known" ] || $cxx -std="$std" $(flags) "$@" -c "$here/$source" -o "$known" || { rm -f "$known"; return 1; }
    cp "$known" "$work/$out.o"
}
program() { # FLAGS -- SOURCES: compiled apart, linked, run
    local options=() objects=() source
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    for source; do
        compile "$source" "$source" "${options[@]}" || return 1
        objects+=("$work/$source.o")
    done
    $cxx "${objects[@]}" -o "$work/program" "${libs[@]}" && "$work/program"
}

# Whoever only wants declarations gets no header of curl, OpenSSL or zlib.
free_of_libraries() {
    ! $cxx -std="$std" $(flags) -DS3CACHE_DECLARATIONS_ONLY -E "$here/include_only.cpp" |
        grep -E '^# [0-9]+ ".*/(curl/|openssl/|zlib\.h)'
}
# Files in different modes must not link: their types may differ.
modes_do_not_mix() {
    compile a_split a.cpp -DS3CACHE_DECLARATIONS_ONLY && compile impl_split impl.cpp -DS3CACHE_DECLARATIONS_ONLY && compile b_plain b.cpp &&
        ! $cxx "$work"/{a_split,impl_split,b_plain}.o -o "$work/program" "${libs[@]}" 2>"$work/link" && grep -q works_elsewhere "$work/link"
}
# Nor must files that leave out different things, whichever comes first. No functions are linked here, so that much is missing in
# any case; what tells is whether one file finds what the other promised it.
promise_kept() { # A.o B.o
    ! $cxx "$work/$1.o" "$work/$2.o" -o "$work/program" "${libs[@]}" 2>"$work/link" &&
        ! grep -qE 'undefined (reference|symbol).*works_elsewhere' "$work/link"
}
switches_do_not_mix() { # SWITCH
    compile a_less a.cpp "$1" $declared && compile b_plain b.cpp $declared && compile a_plain a.cpp $declared &&
        compile b_less b.cpp "$1" $declared && promise_kept a_plain b_plain && promise_kept a_less b_less &&
        ! promise_kept a_less b_plain && ! promise_kept a_plain b_less
}
# One definition of each function, in the file that asked for them.
declarations_define_nothing() {
    compile a_split a.cpp -DS3CACHE_DECLARATIONS_ONLY &&
        ! $cxx "$work/a_split.o" -o "$work/program" "${libs[@]}" 2>"$work/link" && grep -q try_open "$work/link"
}

# For hostile.cpp: what the header includes, where it is to be had.
# (those for one kind of processor bring more than they should elsewhere)
sed -n 's/^# *include *\(<[^>]*>\).*/\1/p' "$root/s3cache.hpp" | sort -u | grep -v -e nmmintrin | while read -r include; do
    printf '#if __has_include(%s)\n#include %s\n#endif\n' "$include" "$include"
done >"$work/first.hpp"
[ -s "$work/first.hpp" ] || { echo 'no header found'; exit 1; }

if [ -z "${S3CACHE_TEST_ENDPOINT:-}" ]; then
    label=setup
    [ -x "$build/fake_s3" ] || make -C "$root" --no-print-directory BUILD="$build" "$build/fake_s3" >"$work/log" 2>&1 ||
        { tail "$work/log"; exit 1; }
    mkfifo "$work/pipe"
    "$build/fake_s3" >"$work/pipe" &
    fake_pid=$!
    # Its one line, or the end of it.
    timeout 60 head -n 1 "$work/pipe" >"$work/env"
    [ -s "$work/env" ] || { echo 'fake_s3 does not start'; exit 1; }
    . "$work/env"
fi

declared=-DS3CACHE_DECLARATIONS_ONLY
misuse() { CXX_ALL=$cxx BUILD=$build "$here/misuse.sh"; }

for cxx in ${CXX_ALL:-g++ clang++}; do
    command -v "$cxx" >/dev/null || { echo "skip  $cxx is not installed"; continue; }
    std=c++17 label="$cxx $std"
    check 'three files: two with declarations, one with the functions' program $declared -- a.cpp b.cpp impl.cpp
    check 'the functions where the declarations were before' program $declared -- a.cpp b.cpp impl_late.cpp
    check 'two files, functions inline' program -- a.cpp b.cpp
    check 'functions inline, without exceptions and RTTI' program -fno-exceptions -fno-rtti -- no_exceptions.cpp
    check 'three files, without exceptions and RTTI' program -fno-exceptions -fno-rtti $declared -- a.cpp b.cpp impl.cpp
    check 'declarations need no library' free_of_libraries
    check 'declarations define nothing' declarations_define_nothing
    check 'modes do not mix' modes_do_not_mix
    for switch in S3CACHE_NO_GZIP S3CACHE_NO_CREDENTIAL_CHAIN; do
        check "$switch here and not there does not mix" switches_do_not_mix -D$switch
    done
    check 'alone and first' program -- include_only.cpp
    check 'twice' program -- include_twice.cpp
    check 'last' program -- include_last.cpp
    check 'among hostile macros' program -- hostile.cpp
    check 'among hostile macros, declarations' program $declared -- hostile.cpp impl.cpp
    check 'a static Cache' program -- static_cache.cpp
    check 'a static object that uses a Cache when it is destroyed' program -- static_destructor.cpp
    check 'the same, functions in one file' program $declared -- static_destructor.cpp impl.cpp
    check 'misuse works or does not compile' misuse
    check 'what a newcomer writes' program -- newcomer.cpp
    check 'without gzip and credential chain' program -DS3CACHE_NO_GZIP -DS3CACHE_NO_CREDENTIAL_CHAIN -- include_only.cpp
    for std in c++20 c++23 c++2b; do
        label="$cxx $std"
        $cxx -std=$std -x c++ -fsyntax-only - </dev/null 2>/dev/null || continue
        check 'alone and first' program -- include_only.cpp
        [ $std != c++23 ] || break
    done
done

echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
