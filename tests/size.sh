#!/usr/bin/env bash
# What the header costs: to compile, in a binary, in memory, on the stack, in descriptors; against what was promised.
# `make size` calls it. RUNS=5 is how often each compile is timed, the median counts. Times are processor time (user and
# system), so that a busy machine changes them little. CXX_ALL names the compilers; CPPFLAGS come first.
# Ends with 'N within budget, N over'; over budget is a failure.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/.." && pwd -P)
. "$here/servers/started.sh"
build=${BUILD:-$root/build}
case $build in /*) ;; *) build=$root/$build ;; esac
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-size.XXXXXX")
runs=${RUNS:-5}
fake_pid=
finish() {
    [ -z "$fake_pid" ] || kill "$fake_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
within=0 over=0

# The budgets. The times hold for a machine on which <string> alone costs about 0.2 s; the multiples hold anywhere.
full_seconds_max=2.5 full_times_max=12
declarations_seconds_max=0.5 declarations_times_max=3
stripped_bytes_max=$((300 << 10))
heap_bytes_max=$((256 << 10))

libs=(-lcurl -lcrypto -lz -lpthread)
read -r -a given <<<"${CPPFLAGS:-}"
flags=(-std="${STD:-c++17}" ${given[@]+"${given[@]}"} -I"$root")

row() { printf '  %-52s %12s   %-12s %s\n' "$@"; }
verdict() { # NAME VALUE_TEXT VALUE LIMIT LIMIT_TEXT
    if awk -v a="$3" -v b="$4" 'BEGIN { exit !(a != "" && a + 0 <= b + 0) }'; then
        within=$((within + 1))
        row "$1" "$2" "$5" ok
    else
        over=$((over + 1))
        row "$1" "$2" "$5" OVER
    fi
}
kib() { awk -v b="$1" 'BEGIN { printf "%.1f KiB", b / 1024 }'; }
size_of() { stat -c %s "$1"; }

once() { # COMMAND...: user and system seconds
    local TIMEFORMAT='%U %S'
    { time "$@" >"$work/log" 2>&1 || echo failed; } 2>&1 | awk '/failed/ { exit 1 } { print $1 + $2 }'
}
median() {
    local i
    for ((i = 0; i < runs; ++i)); do once "$@" || { tail -n 5 "$work/log" >&2; return 1; }; done |
        sort -n | awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] }'
}

compile_times() { # COMPILER
    local cxx=$1 what name seconds extra many limits
    declare -A times
    echo "compile time, $cxx ($("$cxx" -dumpfullversion -dumpversion 2>/dev/null | head -n 1)), -O0, median of $runs, processor time"
    for what in syntax object; do
        local how=(-fsyntax-only)
        [ $what = syntax ] || how=(-c -o "$work/o.o")
        for name in empty string_only declarations header implementation; do
            local source=$name
            local mode=()
            [ $name != declarations ] || source=header
            case $name in declarations | implementation) mode=(-DS3CACHE_DECLARATIONS_ONLY) ;; esac
            seconds=$(median "$cxx" "${flags[@]}" -O0 "${mode[@]}" "${how[@]}" "$here/size/$source.cpp")
            times[$name]=$seconds
        done
        local label='to an object file'
        [ $what = object ] || label='-fsyntax-only'
        row "<string> alone, $label" "${times[string_only]} s" '' ''
        for name in declarations header implementation; do
            extra=$(awk -v a="${times[$name]}" -v b="${times[empty]}" 'BEGIN { printf "%.2f", a - b }')
            many=$(awk -v a="${times[$name]}" -v b="${times[string_only]}" 'BEGIN { printf "%.1f", (b + 0 ? a / b : 0) }')
            case $name in
                declarations) limits=($declarations_seconds_max $declarations_times_max) ;;
                header) limits=($full_seconds_max $full_times_max) ;;
                implementation) # once a program: no promise
                    row "$name, $label" "$extra s" "$many x" ''
                    continue
                    ;;
            esac
            verdict "$name, $label, over an empty file" "$extra s" "$extra" "${limits[0]}" "<= ${limits[0]} s"
            verdict "$name, $label, times <string>" "$many x" "$many" "${limits[1]}" "<= ${limits[1]} x"
        done
    done
}

program() { # COMPILER FLAG...: examples/minimal.cpp, or what $minimal names, linked and stripped
    local cxx=$1
    shift
    "$cxx" "${flags[@]}" "$@" -c "${minimal:-$root/examples/minimal.cpp}" -o "$work/minimal.o" 2>"$work/log" &&
        "$cxx" "$@" "$work/minimal.o" -o "$work/minimal" "${libs[@]}" 2>>"$work/log" && strip "$work/minimal"
}
binaries() { # COMPILER
    local cxx=$1 level macro stripped
    local less=(-DS3CACHE_NO_GZIP -DS3CACHE_NO_CREDENTIAL_CHAIN)
    echo "size of examples/minimal.cpp, $cxx"
    for level in -Os -O2; do
        program "$cxx" $level || { over=$((over + 1)); echo "  $level does not build"; tail -n 5 "$work/log"; continue; }
        row "$level, object file, code and data" "$(kib "$(size -B "$work/minimal.o" | awk 'NR == 2 { print $1 + $2 }')")" '' ''
        stripped=$(size_of "$work/minimal")
        if [ $level = -Os ]; then
            verdict "$level, program, stripped" "$(kib "$stripped")" "$stripped" $stripped_bytes_max "<= $(kib $stripped_bytes_max)"
        else
            row "$level, program, stripped" "$(kib "$stripped")" '' ''
        fi
        if minimal=$here/size/constrained.cpp program "$cxx" $level -fno-exceptions -fno-rtti && [ $level = -Os ]; then
            stripped=$(size_of "$work/minimal")
            verdict "$level, stripped, without exceptions and RTTI" "$(kib "$stripped")" "$stripped" $stripped_bytes_max "<= $(kib $stripped_bytes_max)"
        fi
        for macro in "${less[@]}" "${less[*]}" -flto; do
            # shellcheck disable=SC2086
            if program "$cxx" $level $macro; then stripped=$(kib "$(size_of "$work/minimal")"); else stripped='no linker'; fi
            case $macro in *' '*) macro='both' ;; *) macro=${macro#-D} ;; esac
            row "$level, stripped, $macro" "$stripped" '' ''
        done
    done
}

frames() { # the largest stack frames, as the compiler knows them
    local level=$1
    (cd "$work" && g++ "${flags[@]}" "$level" -fstack-usage -DS3CACHE_DECLARATIONS_ONLY -c "$here/size/implementation.cpp" -o frames.o) || return 1
    echo "largest stack frames of the header's functions, g++ $level"
    local unbounded
    unbounded=$(grep -c 'dynamic$' "$work"/frames*.su)
    grep -h 's3cache\.hpp:' "$work"/frames*.su | awk -F '\t' '{ print $2 "\t" $1 }' | sort -rn | head -n 4 |
        sed -E 's/\t.*s3cache\.hpp:([0-9]+):[0-9]+:/\t\1\t/' | while IFS=$'\t' read -r bytes line name; do
        name=$(printf '%s' "$name" | sed -E 's/\[with .*//; s/s3cache::v[0-9_a-z]*:://g; s/\(.*//; s/^.* //')
        row "${name:0:38} (line $line)" "$bytes bytes" '' ''
    done
    verdict 'functions whose frame has no bound' "$unbounded" "$unbounded" 0 'none'
}

start_fake() {
    [ -x "$build/fake_s3" ] || make -C "$root" --no-print-directory BUILD="$build" "$build/fake_s3" >"$work/log" 2>&1 ||
        { tail "$work/log"; return 1; }
    "$build/fake_s3" >"$work/env" &
    fake_pid=$!
    started $fake_pid "$work/env" && . "$work/env"
}

of() { awk -v name="$1" '$1 == name { print $2 }' "$work/memory.txt"; }

memory() {
    g++ "${flags[@]}" -O2 "$here/size/memory.cpp" -o "$work/memory" "${libs[@]}" || return 1
    (start_fake_variables; "$work/memory") >"$work/memory.txt" || { cat "$work/memory.txt"; return 1; }
    echo 'heap of one set and get of 4 KiB (the value itself included), http, g++ -O2'
    local operation who high
    printf '  %-30s %22s %22s %22s\n' '' 'own: high, allocs' 'libcurl' 'OpenSSL'
    for operation in config.first_set config.first_get config.set config.get small.set small.get; do
        printf '  %-30s' "$operation"
        for who in own libcurl OpenSSL; do
            printf ' %14s %7s' "$(kib "$(of $operation.$who.high)")" "$(of $operation.$who.count)"
        done
        printf '\n'
    done
    high=$(awk '/^small\.(first_)?[sg]et\.own\.high / && $2 > m { m = $2 } END { print m }' "$work/memory.txt")
    verdict 'own heap at its highest, small_memory()' "$(kib "$high")" "$high" $heap_bytes_max "<= $(kib $heap_bytes_max)"
    echo 'stack in use, libcurl and OpenSSL below included'
    row 'a thread that does nothing' "$(kib "$(of stack.thread)")" '' ''
    row 'one set' "$(kib "$(of stack.set)")" '' ''
    row 'one get' "$(kib "$(of stack.get)")" '' ''
    echo 'descriptors'
    row 'with an open Cache, after use' "$(of config.open.descriptors)" '' ''
    verdict 'left when the Cache is gone' "$(of config.closed.descriptors)" "$(of config.closed.descriptors)" 0 none
}
start_fake_variables() { . "$work/env"; unset http_proxy https_proxy; }

for cxx in ${CXX_ALL:-g++ clang++}; do
    command -v "$cxx" >/dev/null || { echo "$cxx is not installed: not measured"; continue; }
    compile_times "$cxx"
    binaries "$cxx"
done
if command -v g++ >/dev/null; then
    frames -Os || over=$((over + 1))
    start_fake && memory || { over=$((over + 1)); echo 'memory was not measured'; }
fi

echo "$within within budget, $over over"
[ $over = 0 ] && [ $within -gt 0 ]
