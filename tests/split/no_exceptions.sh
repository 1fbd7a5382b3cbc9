#!/usr/bin/env bash
# The conformance suite on a cache that was compiled with -fno-exceptions -fno-rtti.
#   tests/split/no_exceptions.sh [ARGUMENT_OF_THE_SUITE...]     CXX, STD, BUILD as for make; S3CACHE_TEST_ENDPOINT as ever
#
# The suite itself needs exceptions, for Catch2 and for its calls of get() instead of try_get(). So the functions are
# compiled apart, from the header as it is, without exceptions; the tests see declarations of that mode (its types, its
# namespace) to which only the throwing forms are added: one-line members that call the try_ forms. What is left out are
# the cases in which a callback of the user's throws: nobody can do that there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
build=${BUILD:-$root/build}
case $build in /*) ;; *) build=$root/$build ;; esac
out=$build/no_exceptions
cxx=${CXX:-g++} std=${STD:-c++17}
mkdir -p "$out/header"

awk '
    /^#if defined\(__cpp_exceptions\)/ { print "#if 0"; changed++; next }
    held { # an #if whose next line tells what it is about
        throwing = /begin\(\)|std::size_t read\(|explicit Cache\(|std::exception_ptr cause|std::rethrow/
        print throwing ? "#if 1" : "#if S3CACHE_EXCEPTIONS"
        changed += throwing
        held = 0
        if (/std::rethrow/) next # there is no such member, but for its name in the cases that are left out
        if (/std::exception_ptr cause/) $0 = "        static constexpr bool cause = false;"
    }
    /^#if S3CACHE_EXCEPTIONS$/ { held = 1; next }
    { print }
    END { if (changed != 6) exit 1 }
' "$root/s3cache.hpp" >"$out/header/new.hpp" || { echo 'the header has other #ifs than this script knows' >&2; exit 1; }
cmp -s "$out/header/new.hpp" "$out/header/s3cache.hpp" || cp "$out/header/new.hpp" "$out/header/s3cache.hpp"

# shellcheck disable=SC2086
$cxx -std="$std" -O1 -I"$root" -DS3CACHE_DECLARATIONS_ONLY -fno-exceptions -fno-rtti ${CXXFLAGS:-} -c "$here/impl.cpp" -o "$out/functions.o"
$cxx -std="$std" -O1 -I"$out/header" -DS3CACHE_DECLARATIONS_ONLY ${CXXFLAGS:-} -c "$here/reader_istream.cpp" -o "$out/istream.o"
make -C "$root" --no-print-directory BUILD="$out" CXX="$cxx" STD="$std" CPPFLAGS="-I$out/header -DS3CACHE_DECLARATIONS_ONLY" \
    LDFLAGS="$out/functions.o $out/istream.o ${LDFLAGS:-}" "$out/conformance" >"$out/log" 2>&1 || { tail -n 20 "$out/log"; exit 1; }

left_out=('~what a codec throws*' '~what a producer throws*' '~those that wait share the producer*' '~a source that fails leaves*')
"$out/conformance" "${left_out[@]}" "$@"
