#!/usr/bin/env bash
# Installs what is missing for a target, by Debian package name; says what, how much to download, and how far it is.
#   tests/setup.sh [--check] unit|test|demo|bench|docs|ci
# --check installs nothing: it names what is missing and fails. Where nothing is missing, nothing happens.
set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
check=
[ "${1:-}" != --check ] || { check=yes; shift; }
target=${1:-}
missing=()

has_header() { # does the compiler find it?
    # shellcheck disable=SC2086
    printf '#include <%s>\n' "$1" |
        ${CXX:-c++} -x c++ -std=c++17 -E ${CPPFLAGS:-} ${CATCH2_INCLUDE:+-I$CATCH2_INCLUDE} - >/dev/null 2>&1
}
has_boto3() {
    local python
    for python in ${PYTHON:-python3 /usr/bin/python3}; do "$python" -c 'import boto3' 2>/dev/null && return 0; done
    return 1
}
need() { # PACKAGE TEST...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

for_building() {
    need g++ command -v "${CXX:-c++}"
    need make command -v make
    # Without a compiler nothing can be said about headers: then all of them are asked for, and apt knows better.
    need libcurl4-openssl-dev has_header curl/curl.h
    need libssl-dev has_header openssl/evp.h
    need zlib1g-dev has_header zlib.h
}
for_unit() {
    for_building
    has_header catch2/catch_test_macros.hpp || need catch2 has_header catch2/catch.hpp
}
for_ceph() {
    # Someone who brings a store doesn't need one installed.
    [ -z "${S3CACHE_TEST_ENDPOINT:-}" ] || return 0
    need ceph-mon command -v ceph-mon
    need ceph-osd command -v ceph-osd
    need radosgw command -v radosgw
    need openssl command -v openssl
    need curl command -v curl
}
for_python() {
    need python3 command -v python3
    need python3-boto3 has_boto3
}

for_budget() {
    for_building
    need python3 command -v python3
    need valgrind command -v valgrind
    need clang-format command -v clang-format
}

case $target in
    unit) for_unit ;;
    test)
        for_unit
        need nlohmann-json3-dev has_header nlohmann/json.hpp
        for_ceph
        for_python
        ;;
    demo)
        for_building
        [ -n "${S3CACHE_URL:-}" ] || [ "${STORE:-}" != ceph ] || for_ceph
        ;;
    bench)
        for_unit
        for_python
        need nginx-light command -v nginx
        need libs3-dev has_header libs3.h
        need valgrind command -v valgrind
        need openssl command -v openssl
        need util-linux command -v taskset
        ;;
    budget) for_budget ;;
    docs) need doxygen command -v doxygen ;;
    ci) # what .ci/run needs beyond `make test`
        "$0" ${check:+--check} test
        need cmake command -v cmake
        need pkg-config command -v pkg-config
        need meson command -v meson
        need ninja-build command -v ninja
        for_budget
        ;;
    *)
        echo "usage: $0 [--check] unit|test|demo|bench|budget|docs|ci" >&2
        exit 64
        ;;
esac

if [ "$target" = test ] && [ -z "$check" ]; then
    echo 'All tests take a quarter of an hour on two cores; `make unit` is their offline part alone.'
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ -n "$check" ]; then
    echo "Missing here: ${missing[*]} (names of Debian packages). To install: tests/setup.sh $target" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "Missing here: ${missing[*]} (names of Debian packages). There is no apt-get: please install their like." >&2
    exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo=sudo
    else
        echo "Missing here: ${missing[*]}. As root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi

log=$(mktemp "${TMPDIR:-/tmp}/s3cache-setup.XXXXXX")

# Runs it with its output in the log, and says every few seconds how far it is: silence looks like a hang.
watched() { # WHAT COMMAND...
    local what=$1 begun=$SECONDS pid status=0
    shift
    "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; exit 143' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        [ $(((SECONDS - begun) % 5)) != 4 ] || echo "  $what, $((SECONDS - begun)) s: $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)"
    done
    wait "$pid" || status=$?
    trap - INT TERM
    [ "$status" = 0 ] || { tail -n 8 "$log" >&2; echo "apt-get failed, its whole output is in $log" >&2; exit 1; }
}

apt() {
    $sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any \
        -o Acquire::Retries=3 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}
# Nothing waits for the locks of the lists and of the archives, and mirrors come back: five tries, with the lists anew before each.
# The lists by themselves get two and never fail: somebody's own repository may be broken for good, or silent, which is why they are
# not tried as often within either. The installation tells.
lists() { apt update -o Acquire::Retries=1; }
again() { # lists | apt ARGUMENTS
    local pause pauses='5 10 20 40'
    [ "$1" != lists ] || pauses=5
    "$@" && return 0
    for pause in $pauses; do
        sleep "$pause"
        [ "$1" = lists ] || lists || true
        "$@" && return 0
    done
    [ "$1" = lists ]
}

echo "For 'make $target' these Debian packages are missing and get installed now: ${missing[*]}"
watched 'asking for their lists' again lists
apt install --assume-no --no-install-recommends "${missing[@]}" 2>/dev/null </dev/null |
    sed -n 's/^Need to get \(.*\) of archives.*/  To download: \1./p; s/^After this operation, \(.*\) of additional.*/  On disk: \1./p' || true
watched 'installing' again apt install -y --no-install-recommends "${missing[@]}"
rm -f "$log"
echo "Installed, in $SECONDS s."
