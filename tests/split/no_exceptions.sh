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

python3 "$here/no_exceptions.py" "$root/s3cache.hpp" >"$out/header/new.hpp"
cmp -s "$out/header/new.hpp" "$out/header/s3cache.hpp" || cp "$out/header/new.hpp" "$out/header/s3cache.hpp"

# shellcheck disable=SC2086
$cxx -std="$std" -O1 -I"$root" -DS3CACHE_DECLARATIONS_ONLY -fno-exceptions -fno-rtti ${CXXFLAGS:-} -c "$here/impl.cpp" -o "$out/functions.o"
$cxx -std="$std" -O1 -I"$out/header" -DS3CACHE_DECLARATIONS_ONLY ${CXXFLAGS:-} -c "$here/reader_istream.cpp" -o "$out/istream.o"
make -C "$root" --no-print-directory BUILD="$out" CXX="$cxx" STD="$std" CPPFLAGS="-I$out/header -DS3CACHE_DECLARATIONS_ONLY" \
    FUNCTIONS="$out/functions.o" LDFLAGS="$out/istream.o ${LDFLAGS:-}" "$out/conformance" >"$out/log" 2>&1 ||
    { tail -n 20 "$out/log"; exit 1; }

left_out=('~what a codec throws*' '~what a producer throws*' '~those that wait share the producer*' '~a source that fails leaves*'
          '~an istream that goes bad*')
"$out/conformance" "${left_out[@]}" "$@"
