#!/usr/bin/env bash
# The conformance suite on stores that lack much: what they cannot do must be skipped by name, and nothing else may fail.
# Each is a fake S3 in a process of its own. Prints one line a store, then 'N passed, N failed'.
set -uo pipefail

build=${BUILD:-build}
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-lacking.XXXXXX")
fake_pid=
finish() {
    [ -z "$fake_pid" ] || kill "$fake_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
passed=0 failed=0
mkfifo "$work/pipe"

start() { # QUIRK...
    local quirk options=()
    for quirk; do options+=(--quirk "$quirk"); done
    "$build/fake_s3" "${options[@]}" >"$work/pipe" &
    fake_pid=$!
    # Its one line, or the end of it.
    timeout 60 head -n 1 "$work/pipe" >"$work/env"
    [ -s "$work/env" ] || { echo 'FAILED: fake_s3 does not start'; return 1; }
}

lacking() { # SKIPPED QUIRK...: how many tests as a whole
    local skipped=$1 found
    shift
    { start "$@" && (. "$work/env" && "$build/conformance"); } >"$work/log" 2>&1
    local status=$?
    found=$(sed -n 's/^skip  \(.*\), on .*/\1/p' "$work/log" | sort -u | wc -l)
    kill "$fake_pid" 2>/dev/null
    wait "$fake_pid" 2>/dev/null
    if [ $status = 0 ] && [ "$found" = "$skipped" ]; then
        passed=$((passed + 1))
        echo "ok    $*: $found skipped, the rest passes"
    else
        failed=$((failed + 1))
        echo "FAIL  $*: status $status, $found skipped, $skipped expected"
        grep -aE 'FAILED|^skip|^test cases' -A 4 "$work/log" | head -n 40
    fi
}

lacking 5 ignore-conditional-put refuse-upload-lists refuse-delete-objects anonymous empty-404 weak-etags
lacking 2 refuse-conditional-put forbidden-for-missing metadata-dashes head-without-length ignore-range
echo "$passed passed, $failed failed"
[ $failed = 0 ]
