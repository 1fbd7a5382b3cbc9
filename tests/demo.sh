#!/usr/bin/env bash
# The command line at work on real files; `make demo` is the way to call it. Leaves nothing behind.
#
# Where: the bucket of S3CACHE_URL; else the one of S3CACHE_TEST_ENDPOINT and S3CACHE_TEST_BUCKET; else, with
# AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID set, a bucket made there and removed again; else the project's own small S3, in
# memory, started for this; with STORE=ceph a real one, Ceph's gateway.
# Nobody's bucket is guessed: credentials alone don't choose one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/servers/started.sh
export LC_ALL=C

build=${BUILD:-build}
s3cache=$build/s3cache
tmp=${TMPDIR:-/tmp}
case $tmp in *[[:space:]]*) tmp=/tmp ;; esac # the local server's directory must have no blank in its name
work=$(mktemp -d "$tmp/s3cache-demo.XXXXXX")
run=demo-$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n') # every key below goes under this
stream_bytes=150000000
begun=$SECONDS
started_server='' made_bucket='' wrote='' small_s3=''

fail() {
    echo "demo: $*" >&2
    exit 1
}

# ---------------------------------------------------------------- the end, however it comes

clean_up() {
    local status=$?
    trap '' INT TERM
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null || true
    [ -z "$small_s3" ] || wait "$small_s3" 2>/dev/null || true
    [ -z "$wrote" ] || [ -n "$started_server" ] || "$s3cache" clear "$run/" >"$work/cleared" 2>&1 || status=1
    [ -z "$made_bucket" ] || signed DELETE "$made_bucket" >/dev/null || status=1
    [ "$started_server" != ceph ] || S3CACHE_CEPH_DIR=$work/s3 tests/servers/ceph_rgw.sh wipe 2>/dev/null || status=1
    rm -rf "$work"
    [ "$status" != 0 ] || echo "Cleaned up: nothing of this is left, here or in the bucket. It took $((SECONDS - begun)) s."
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---------------------------------------------------------------- small tools

now_ms() { date +%s%3N; }

took() { # SINCE_MS -> 12 ms, 3.4 s
    local ms=$(($(now_ms) - $1))
    if [ "$ms" -lt 1000 ]; then echo "$ms ms"; else awk -v ms="$ms" 'BEGIN { printf "%.1f s", ms / 1000 }'; fi
}

human() { # BYTES
    awk -v n="$1" 'BEGIN { if (n < 1e3) printf "%d bytes", n
                           else if (n < 1e6) printf "%.1f kB", n / 1e3
                           else printf "%.1f MB", n / 1e6 }'
}

rate() { # BYTES SINCE_MS
    awk -v n="$1" -v ms="$(($(now_ms) - $2))" 'BEGIN { printf "%.0f MB/s", n / 1e3 / (ms > 0 ? ms : 1) }'
}

sum_of() { sha256sum "$1" | cut -d' ' -f1; }

stored_bytes() { "$s3cache" stat --json "$1" | sed -n 's/.*"size":\([0-9]*\),"etag".*/\1/p'; }

signed() { # METHOD URL: a request without a body that s3cache has no word for; the secret stays off curl's command line
    local nothing
    nothing=$(printf '' | sha256sum | cut -d' ' -f1)
    printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
        curl -q -K - -sS -f --max-time 20 --aws-sigv4 "aws:amz:${AWS_REGION:-${AWS_DEFAULT_REGION:-us-east-1}}:s3" \
            -H "x-amz-content-sha256: $nothing" \
            ${AWS_SESSION_TOKEN:+-H "x-amz-security-token: $AWS_SESSION_TOKEN"} -X "$1" "$2"
}

# Says every few seconds that it goes on, until `quiet`: silence looks like a hang.
talk() { # WHAT
    local begun=$SECONDS
    [ -p "$work/silence" ] || mkfifo "$work/silence"
    while ! read -rt 4 _ <>"$work/silence"; do echo "  $1, $((SECONDS - begun)) s"; done & # no `sleep` stays behind
    talker=$!
}
quiet() {
    kill "$talker" 2>/dev/null || true
    wait "$talker" 2>/dev/null || true
}

# ---------------------------------------------------------------- where

start_ceph() {
    echo 'Starting a local S3, Ceph: that takes some ten seconds.'
    S3CACHE_CEPH_DIR=$work/s3 S3CACHE_CEPH_BUCKETS=demo tests/servers/ceph_rgw.sh start --install \
        >"$work/server.env" 2>"$work/server.log" || { cat "$work/server.log" >&2; fail 'the local S3 did not start'; }
}

start_small_s3() {
    "$build/fake_s3" --bucket demo >"$work/server.env" 2>"$work/server.log" &
    small_s3=$!
    started $small_s3 "$work/server.env" || fail "$(cat "$work/server.log")"
}

start_local_server() {
    local since what="the project's own small S3, in memory; STORE=ceph takes a real one"
    since=$(now_ms)
    started_server=${STORE:-small}
    if [ "$started_server" = ceph ]; then start_ceph && what="Ceph's gateway, in memory"; else start_small_s3; fi
    # shellcheck disable=SC1091
    . "$work/server.env"
    : >"$work/empty"
    export AWS_CONFIG_FILE=$work/empty AWS_SHARED_CREDENTIALS_FILE=$work/empty no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
    export S3CACHE_URL="s3://demo?endpoint=$S3CACHE_TEST_ENDPOINT&region=us-east-1&path_style=true"
    echo "A local S3 was started for this in $(took "$since") ($what)."
}

has_credentials() { [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ] || [ -e ~/.aws/credentials ] || [ -e ~/.aws/config ]; }

choose_bucket() {
    local endpoint=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-}}
    if [ -n "${S3CACHE_URL:-}" ]; then
        echo "The bucket is the one of S3CACHE_URL."
    elif [ -n "${S3CACHE_TEST_ENDPOINT:-}" ] && [ -n "${S3CACHE_TEST_BUCKET:-}" ]; then
        export S3CACHE_URL="s3://$S3CACHE_TEST_BUCKET?endpoint=$S3CACHE_TEST_ENDPOINT"
        echo "The bucket is $S3CACHE_TEST_BUCKET at $S3CACHE_TEST_ENDPOINT."
    elif [ -n "$endpoint" ] && [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
        signed PUT "${endpoint%/}/s3cache-$run" >/dev/null ||
            fail "no bucket could be made at $endpoint; name one: S3CACHE_URL=s3://BUCKET"
        made_bucket=${endpoint%/}/s3cache-$run
        export S3CACHE_URL="s3://s3cache-$run"
        echo "The bucket s3cache-$run was made at $endpoint, for the time of this demo."
    else
        ! has_credentials || echo "You have AWS credentials, but S3CACHE_URL=s3://BUCKET names no bucket to use them on."
        start_local_server
    fi
}

# ---------------------------------------------------------------- real files

make_json() { # the packages of this machine; where there is no dpkg, its memory
    if command -v dpkg-query >/dev/null; then
        printf '['
        dpkg-query -W -f '{"package":"${Package}","version":"${Version}","kilobytes":"${Installed-Size}"},\n'
        printf 'null]\n'
    else
        awk -F'[: ]+' 'BEGIN { printf "{" } { printf "%s\"%s\":%d", sep, $1, $2; sep = ",\n" } END { print "}" }' /proc/meminfo
    fi
}

make_csv() {
    echo 'file,bytes,modified'
    find /usr/include /usr/share -type f -printf '"%p",%s,%TY-%Tm-%Td\n' 2>/dev/null | head -n 50000 || true
}

make_archive() { tar --exclude=./.git --exclude="./$build" -czf - . ; }

make_stream() { # this machine's programs as one long tar, cut off at a round number
    for _ in 1 2 3 4 5 6 7 8; do # a small machine's programs are too few for one round
        tar -C / -cf - usr/lib usr/bin usr/share 2>/dev/null || [ $? -lt 128 ] || break # over 128: nobody reads on
    done | head -c "$stream_bytes" || true
}

# ---------------------------------------------------------------- what is shown

try_file() { # NAME KIND WHAT
    local file=$work/$1 plain_time gzip_time since size packed
    size=$(stat -c %s "$file")
    echo
    echo "$1: $3, $(human "$size")."
    since=$(now_ms)
    "$s3cache" set --ttl 1h "--$2" "$run/plain/$1" "$file"
    plain_time=$(took "$since") since=$(now_ms)
    "$s3cache" set --ttl 1h "--$2" --gzip "$run/gzip/$1" "$file"
    gzip_time=$(took "$since")
    packed=$(stored_bytes "$run/gzip/$1")
    echo "  Stored as it is in $plain_time, and with --gzip in $gzip_time: $(human "$packed"), $((packed * 100 / size)) % of it."
    since=$(now_ms)
    "$s3cache" get -o "$work/back" "$run/plain/$1"
    "$s3cache" get "$run/gzip/$1" >"$work/back-gzip"
    echo "  Both were read back in $(took "$since")."
    if ! cmp -s "$file" "$work/back" || ! cmp -s "$file" "$work/back-gzip"; then fail "$1 came back changed"; fi
    echo "  They are the same, byte for byte (SHA-256 $(sum_of "$work/back" | head -c 16)...)."
}

watch_memory() { # PID_FILE OUT: the highest resident size seen, until the process ends
    local pid
    until [ -s "$1" ]; do sleep 0.05; done
    pid=$(cat "$1")
    while awk '/^VmHWM/ { print $2 * 1024 }' "/proc/$pid/status" >"$2.new" 2>/dev/null && [ -s "$2.new" ]; do
        mv "$2.new" "$2"
        sleep 0.05
    done
}

try_stream() { # NAME OPTION...
    local key=$run/$1 since watcher summer back
    shift
    rm -f "$work"/{fifo,pid,peak,peak.new}
    mkfifo "$work/fifo"
    sha256sum <"$work/fifo" >"$work/sum" &
    summer=$!
    watch_memory "$work/pid" "$work/peak" &
    watcher=$!
    since=$(now_ms)
    talk sending
    make_stream | tee "$work/fifo" | { echo "$BASHPID" >"$work/pid" && exec "$s3cache" set --ttl 1h "$@" "$key"; }
    echo "  Sent${*:+ with $*} in $(took "$since"), $(rate "$stream_bytes" "$since"):" \
        "$(human "$(stored_bytes "$key")") in the bucket."
    wait "$summer" "$watcher" || true
    quiet
    echo "  s3cache never held more than $(human "$(cat "$work/peak" 2>/dev/null || echo 0)") of memory for it."
    since=$(now_ms)
    back=$("$s3cache" get "$key" | sha256sum | cut -d' ' -f1)
    [ "$back" = "$(cut -d' ' -f1 "$work/sum")" ] || fail 'the stream came back changed'
    echo "  Read back through a pipe in $(took "$since"), $(rate "$stream_bytes" "$since"), and the same" \
        "(SHA-256 $(head -c 16 "$work/sum")...)."
    "$s3cache" rm "$key"
}

watch_ttl() {
    local since status=0 seconds
    echo
    echo 'A password reset token that lives for three seconds (set --ttl 3s):'
    printf 'f81d4fae-7dec' | "$s3cache" set --ttl 3s --text "$run/token"
    since=$(now_ms)
    while [ $status = 0 ] && [ $(($(now_ms) - since)) -lt 15000 ]; do
        seconds=$(took "$since")
        status=0
        "$s3cache" get "$run/token" >"$work/token" || status=$?
        case $status in
            0) echo "  after $seconds: $(cat "$work/token")" && sleep 0.9 ;;
            1) echo "  after $seconds: gone. get says so with exit status 1, and has removed it from the bucket." ;;
            *) fail 'get failed' ;;
        esac
    done
    [ $status = 1 ] || fail 'the token outlived its time'
}

show_condition() {
    local status=0
    echo
    echo 'Two programs want the same job; set --if-absent lets one have it:'
    if ! printf 'worker 1' | "$s3cache" set --ttl 1m --if-absent "$run/job" 2>"$work/says"; then
        echo "  not here: $(cat "$work/says")"
        return
    fi
    echo '  worker 1: exit status 0, the job is mine.'
    printf 'worker 2' | "$s3cache" set --ttl 1m --if-absent "$run/job" 2>"$work/says" || status=$?
    [ "$status" = 1 ] || fail "--if-absent ended with $status where there was an entry"
    echo '  worker 2: exit status 1, somebody has it.'
}

show_run() {
    local since first i runs=()
    slow() { "$s3cache" run --ttl 1m --key "$run/report" -- sh -c 'echo run >>"$0"; sleep 1; echo "a report of 1 s work"' "$work/runs"; }
    : >"$work/runs"
    echo
    echo 'A command that takes a second, ten times at once (s3cache run --ttl 1m -- COMMAND), and then once more:'
    since=$(now_ms)
    for i in 1 2 3 4 5 6 7 8 9 10; do slow >"$work/report.$i" & runs+=($!); done
    for i in "${runs[@]}"; do wait "$i" || fail 'run failed'; done
    first=$(took "$since") since=$(now_ms)
    slow >"$work/report"
    [ "$(cat "$work"/report.* | sort -u)" = "$(cat "$work/report")" ] || fail 'not all got the same'
    echo "  all ten have its output after $first; it ran $(wc -l <"$work/runs" | tr -d ' ') time. Once more: $(took "$since")."
}

# ----------------------------------------------------------------

tests/setup.sh demo
echo 'Compiling the command line and the small S3, where that is not done yet: half a minute, if nothing else runs.'
talk compiling
env -u MAKEFLAGS -u MAKELEVEL make --no-print-directory BUILD="$build" "$s3cache" "$build/fake_s3"
quiet
choose_bucket

make_json >"$work/packages.json"
make_csv >"$work/files.csv"
make_archive >"$work/checkout.tar.gz"
wrote=yes
try_file packages.json json 'the packages of this machine as JSON'
try_file files.csv text 'some of its files as CSV'
try_file checkout.tar.gz bytes 'this checkout as an archive'
echo
echo "A stream of $(human "$stream_bytes"): this machine's programs as a tar, through a pipe, so its length is not known:"
try_stream stream.tar
try_stream stream.tar.again --gzip
watch_ttl
show_condition
show_run
echo
echo "What is in the bucket now (s3cache ls -l):"
"$s3cache" ls -l "$run/" | sed 's/^/  /'
echo
