#!/usr/bin/env bash
# All test suites, one after the other, after `make programs`; `make test` is the way to call it.
# Where S3CACHE_TEST_ENDPOINT is set, the conformance suite meets that store instead of a Ceph started here.
# Every suite runs even if one before it failed; the exit status is non-zero if any did.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/servers/started.sh

# The background job of a script ignores SIGINT, and what it starts would do so for good: some tests send it and wait for its effect.
if [ -z "${S3CACHE_DEFAULT_SIGNALS:-}" ] && env --default-signal=INT,QUIT true 2>/dev/null; then
    S3CACHE_DEFAULT_SIGNALS=yes exec env --default-signal=INT,QUIT tests/run.sh "$@"
fi

export BUILD=${BUILD:-build} CXX=${CXX:-c++}
export S3CACHE_RESULTS=${S3CACHE_RESULTS:-$BUILD/results.txt}
failed=0
started_ceph=

suite() { # NAME COMMAND...
    tests/summary run "$@" || failed=1
}

# What only compiles and links goes on beside the other suites, which mostly wait, and so does what has a store of its own:
# jobs whose output comes at the end.
lacking_stores() {
    suite 'conformance, stores that lack much' "${offline[@]}" tests/conformance/lacking.sh
    return $failed
}
compiling_modes() {
    suite 'two modes, hostile macros' tests/split/run.sh
    return $failed
}
compiling_others() {
    suite 'recipes, fake S3' env CXX="$CXX" "${python/#false/python3}" tests/python/recipes.py "$BUILD/fake_s3"
    suite 'credentials beside botocore' env CXX="$CXX" "${python/#false/python3}" tests/python/chain.py
    suite 'README and examples compile' "${python/#false/python3}" tests/python/readme.py
    suite 'consumers' tests/consumer/run.sh
    # What it needs is installed for CI only.
    [ -z "${CI:-}" ] || suite 'budgets' "${python/#false/python3}" tests/budget.py
    return $failed
}
on_fake() {
    if start_fake; then
        suite_with "$BUILD/fake.env" http 'Python, fake S3' "$python" tests/python/interop.py "$BUILD/s3cache"
        suite_with "$BUILD/fake.env" http 'doctor, fake S3' "$python" tests/python/doctor.py "$BUILD/s3cache"
        suite_with "$BUILD/fake.env" http 'run and lifecycle, fake S3' "$python" tests/python/cli_run.py "$BUILD/s3cache"
        kill "$fake_pid"
    else
        cat "$BUILD/fake.log" >&2 || true
        suite 'fake S3 as a program starts' false
    fi
    return $failed
}
waiting_on_ceph() {
    suite_with "$ceph" http 'doctor, Ceph, http' "$python" tests/python/doctor.py "$BUILD/s3cache"
    suite_with "$ceph" http 'run and lifecycle, Ceph, http' "$python" tests/python/cli_run.py "$BUILD/s3cache"
    suite_with "$ceph" tls 'doctor, Ceph, TLS' "$python" tests/python/doctor.py "$BUILD/s3cache"
    return $failed
}
beside=() beside_logs=()
start_beside() { # JOB...
    local job
    for job in "$@"; do
        "$job" >"$BUILD/$job.log" 2>&1 &
        beside+=($!)
        beside_logs+=("$BUILD/$job.log")
    done
}
end_beside() {
    local pid
    for pid in "${beside[@]}"; do wait "$pid" || failed=1; done
    cat "${beside_logs[@]}"
}

# What a process started, and what that did: ended from the leaves up, so that nobody is left to somebody else.
end_children() { # PID
    local child
    for child in $(cat "/proc/$1/task"/*/children 2>/dev/null); do
        end_children "$child"
        kill "$child" 2>/dev/null || true
    done
}

finish() {
    end_children $$
    # After a failure its logs stay.
    if [ -n "$started_ceph" ]; then
        if [ $failed = 0 ]; then tests/servers/ceph_rgw.sh wipe; else tests/servers/ceph_rgw.sh stop; fi || true
    fi
}
trap finish EXIT

python() { # the first Python that has boto3
    local candidate
    for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
        "$candidate" -c 'import boto3' 2>/dev/null && { echo "$candidate"; return 0; }
    done
    return 1
}

# A suite with the variables that a store's script printed, and none that could point elsewhere.
suite_with() { # FILE_OF_EXPORTS http|tls NAME COMMAND...
    (
        # shellcheck disable=SC1090
        . "$1"
        if [ "$2" = tls ]; then
            export S3CACHE_TEST_ENDPOINT=$S3CACHE_TEST_TLS_ENDPOINT AWS_CA_BUNDLE=$S3CACHE_TEST_CA
        fi
        unset S3CACHE_TEST_TLS_ENDPOINT # one at a time, so that each has counts of its own
        shift 2
        tests/summary run "$@"
    ) || failed=1
}

offline=(env -u S3CACHE_TEST_ENDPOINT -u S3CACHE_TEST_TLS_ENDPOINT -u S3CACHE_TEST_CA)

start_fake() { # a small S3 as a program of its own, for the Python side
    : >"$BUILD/fake.env" # of an earlier run
    "$BUILD/fake_s3" >"$BUILD/fake.env" 2>"$BUILD/fake.log" &
    fake_pid=$!
    started $fake_pid "$BUILD/fake.env"
}

tests/summary reset
python=$(python) || { echo 'no Python with boto3 found' >&2; python=false; }

start_beside compiling_modes compiling_others lacking_stores

suite 'unit tests, vectors' "${offline[@]}" "$BUILD/unit"
suite 'conformance, fake S3' "${offline[@]}" "$BUILD/conformance"
start_beside on_fake

if [ -n "${S3CACHE_TEST_ENDPOINT:-}" ]; then
    suite "conformance, $S3CACHE_TEST_ENDPOINT" "$BUILD/conformance"
    suite "Python, $S3CACHE_TEST_ENDPOINT" "$python" tests/python/interop.py "$BUILD/s3cache"
    suite "doctor, $S3CACHE_TEST_ENDPOINT" "$python" tests/python/doctor.py "$BUILD/s3cache"
    suite "run and lifecycle, $S3CACHE_TEST_ENDPOINT" "$python" tests/python/cli_run.py "$BUILD/s3cache"
    suite "stampede, $S3CACHE_TEST_ENDPOINT" "$python" tests/python/stampede.py "$BUILD/s3cache"
else
    ceph=$BUILD/ceph.env
    # One that was running before is left running.
    tests/servers/ceph_rgw.sh env >/dev/null 2>&1 || started_ceph=yes
    if exports=$(tests/servers/ceph_rgw.sh start); then
        (umask 077 && printf '%s\n' "$exports" >"$ceph")
        start_beside waiting_on_ceph
        on_ceph=$!
        suite_with "$ceph" http 'conformance, Ceph, http' "$BUILD/conformance"
        suite_with "$ceph" tls 'conformance, Ceph, TLS' "$BUILD/conformance"
        suite_with "$ceph" http 'Python, Ceph, http' "$python" tests/python/interop.py "$BUILD/s3cache"
        suite_with "$ceph" http 'stampede, Ceph, http' "$python" tests/python/stampede.py "$BUILD/s3cache"
        suite_with "$ceph" tls 'Python, Ceph, TLS' "$python" tests/python/interop.py "$BUILD/s3cache"
        wait "$on_ceph" || failed=1
        # Last, as it ends the gateway again and again.
        (
            # shellcheck disable=SC1090
            . "$ceph"
            S3CACHE_TEST_CONTROL=tests/servers/ceph_rgw.sh tests/summary run 'Ceph stopped, killed, frozen' "$BUILD/unit" '[outage]'
        ) || failed=1
    else
        suite 'Ceph starts' false
    fi
fi

end_beside

echo "== all suites, $((SECONDS / 60)) min $((SECONDS % 60)) s"
tests/summary print || failed=1
exit $failed
