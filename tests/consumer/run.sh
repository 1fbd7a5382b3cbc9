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
        printf 'ok    %-17s %s\n' "$1" "$(grep -a '^s3cache ' "$work/log" | tail -n 1)"
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

unset MAKEFLAGS MAKELEVEL
if have cmake; then
    consumer add_subdirectory add_subdirectory
    consumer find_package find_package
else
    skip add_subdirectory cmake required
    skip find_package cmake required
fi
if have pkg-config; then
    consumer 'pkg-config, make' pkg_config_make
    if have cmake; then consumer 'pkg-config, cmake' pkg_config_cmake; fi
else
    skip pkg-config pkg-config
fi
consumer makefile makefile
if have meson; then consumer meson meson_build; else skip meson meson; fi

if [ $skipped = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ $failed = 0 ]
