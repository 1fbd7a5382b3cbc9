#!/usr/bin/env bash
# Builds and runs each consumer in a temporary folder: the ways in which a project takes in the header.
# A tool that isn't installed is skipped with a message; where CI is set, cmake must be there.
# Prints one line a consumer, then 'N passed, N failed, N skipped'.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-consumer.XXXXXX")
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

consumer() { # NAME FUNCTION
    if (set -e; "$2") >"$work/log" 2>&1; then
        passed=$((passed + 1))
        printf 'ok    %-17s %s\n' "$1" "$(grep -a '^s3cache[ :]' "$work/log" | tail -n 1)"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s\n' "$1"
        tail -n 15 "$work/log"
    fi
}
skip() {
    if [ "${3:-}" = required ] && [ -n "${CI:-}" ]; then
        failed=$((failed + 1))
        echo "FAIL  $1: $2 is not installed"
    else
        skipped=$((skipped + 1))
        echo "skip  $1: $2 is not installed"
    fi
}
have() { command -v "$1" >/dev/null; }

# The sub-shell of `consumer` ends at the first failure, but only outside of conditions: hence the && chains.
add_subdirectory() {
    cmake -S "$here/add_subdirectory" -B "$work/sub" -DS3CACHE_SOURCE="$root" && cmake --build "$work/sub" && "$work/sub/app"
}
fetch_content() {
    cmake -S "$here/fetch_content" -B "$work/fetch" -DS3CACHE_SOURCE="$root" && cmake --build "$work/fetch" && "$work/fetch/app"
}
fake_s3() { # HOW: a project whose tests talk to the fake S3
    cmake -S "$here/fake_s3" -B "$work/fake-$1" -DS3CACHE_SOURCE="$root" -DHOW="$1" && cmake --build "$work/fake-$1" && "$work/fake-$1/app"
}
fake_s3_added() { fake_s3 add_subdirectory; }
fake_s3_fetched() { fake_s3 FetchContent; }
find_package() {
    cmake -S "$root" -B "$work/lib" -DCMAKE_INSTALL_PREFIX="$work/cmake-prefix" && cmake --install "$work/lib" &&
        cmake -S "$here/find_package" -B "$work/find" -DCMAKE_PREFIX_PATH="$work/cmake-prefix" &&
        cmake --build "$work/find" && "$work/find/app"
}
pkg_config_of() { PKG_CONFIG_PATH=$1/share/pkgconfig sh "$here/pkg_config/build.sh" "$work/app"  && "$work/app"; }
pkg_config_cmake() {
    cmake -S "$root" -B "$work/lib" -DCMAKE_INSTALL_PREFIX="$work/cmake-prefix" && cmake --install "$work/lib" &&
        pkg_config_of "$work/cmake-prefix"
}
pkg_config_make() { make -C "$root" --no-print-directory install PREFIX="$work/make-prefix" && pkg_config_of "$work/make-prefix"; }
makefile() {
    mkdir -p "$work/make" && make -C "$work/make" -f "$here/makefile/Makefile" S3CACHE="$root" VPATH="$here" && "$work/make/app"
}
meson_build() {
    # Meson wants include folders relative to the project.
    cp -r "$here" "$work/tree" && cp "$root/s3cache.hpp" "$work/tree/meson/" &&
        meson setup "$work/meson" "$work/tree/meson" -Ds3cache=. && meson compile -C "$work/meson" && "$work/meson/app"
}
meson_wrap() {
    # Nothing is fetched: the archive lies where Meson looks before it asks for an address.
    local tree=$work/wrap
    mkdir -p "$tree/subprojects" && cp "$here/meson_wrap/meson.build" "$here/app.cpp" "$tree" &&
        cp -r "$here/packaging/meson/." "$tree/subprojects" &&
        tar -C "$root" --transform 's|^|s3cache/|' -czf "$tree/subprojects/packagefiles/s3cache.tar.gz" s3cache.hpp LICENSE &&
        meson setup "$work/wrapped" "$tree" && meson compile -C "$work/wrapped" && "$work/wrapped/app"
}
recipes_are_well_formed() { # as far as can be told without the tools
    python3 -m json.tool "$here/packaging/vcpkg/vcpkg.json" >/dev/null &&
        python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' "$here/packaging/conan/conanfile.py" &&
        echo 's3cache: not tried, neither tool is here'
}
# Two libraries that brought the same header, in one program: inline, and each with the functions compiled in.
twice_inline() {
    local cxx=${CXX:-c++} name
    for name in old new; do
        "$cxx" -std=c++17 -I"$root" -DVERSION=$name -c "$here/../matrix/vendored.cpp" -o "$work/$name.o" || return 1
    done
    "$cxx" -std=c++17 "$here/../matrix/two_versions.cpp" "$work/old.o" "$work/new.o" -o "$work/twice" -lcurl -lcrypto -lz &&
        "$work/twice" && echo 's3cache twice, inline: links and runs'
}
twice_split() {
    local cxx=${CXX:-c++} name
    local declared=-DS3CACHE_DECLARATIONS_ONLY
    "$cxx" -std=c++17 -I"$root" $declared -c "$here/../size/implementation.cpp" -o "$work/functions.o" || return 1
    for name in old new; do
        "$cxx" -std=c++17 -I"$root" $declared -DVERSION=$name -c "$here/../matrix/vendored.cpp" -o "$work/$name.o" &&
            rm -f "$work/lib$name.a" && ar rcs "$work/lib$name.a" "$work/$name.o" "$work/functions.o" || return 1
    done
    "$cxx" -std=c++17 "$here/../matrix/two_versions.cpp" "$work/libold.a" "$work/libnew.a" -o "$work/twice" -lcurl -lcrypto -lz &&
        "$work/twice" && echo 's3cache twice, in two archives: links and runs'
}

unset MAKEFLAGS MAKELEVEL
if have cmake; then
    consumer add_subdirectory add_subdirectory
    consumer FetchContent fetch_content
    consumer find_package find_package
    consumer 'fake S3, added' fake_s3_added
    consumer 'fake S3, fetched' fake_s3_fetched
else
    skip add_subdirectory cmake required
    skip FetchContent cmake required
    skip find_package cmake required
    skip 'fake S3' cmake required
fi
if have pkg-config; then
    consumer 'pkg-config, make' pkg_config_make
    if have cmake; then consumer 'pkg-config, cmake' pkg_config_cmake; fi
else
    skip pkg-config pkg-config
fi
consumer makefile makefile
if have meson; then
    consumer meson meson_build
    consumer 'meson, wrap file' meson_wrap
else
    skip meson meson
    skip 'meson, wrap file' meson
fi
consumer 'conan, vcpkg' recipes_are_well_formed
consumer 'twice, inline' twice_inline
consumer 'twice, split' twice_split

if [ $skipped = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ $failed = 0 ]
