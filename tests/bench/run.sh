#!/usr/bin/env bash
# Speed: this library against a bare libcurl loop, libs3 and boto3, on an nginx of its own; `make bench` is the way to call it.
#   tests/bench/run.sh [quick] [markdown] [only=TEXT]
#     quick      about a minute: fewer rounds, 256 MiB streams
#     markdown   also writes the table for README to build/bench/table.md
#     only=TEXT  just the rows whose name holds the text
# BENCH_CORE: the core that client and server share (default: the last one). BENCH_SHM: where the files are (/dev/shm).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

BUILD=${BUILD:-build}
programs=$BUILD/bench
quick='' markdown='' only=''
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- ${ARGS:-}
for argument in "$@"; do
    case $argument in
        quick) quick=yes ;;
        markdown) markdown=yes ;;
        only=*) only=${argument#only=} ;;
        *) sed -n '3,6s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
    esac
done

for program in nginx openssl taskset; do
    command -v $program >/dev/null || { echo "bench: $program is missing (Debian: nginx-light, openssl, util-linux)" >&2; exit 1; }
done
make -s --no-print-directory -f Makefile -f tests/bench/programs.mk BUILD="$BUILD" ${CXX:+CXX="$CXX"} bench-programs
libs3=''
if printf '#include <libs3.h>\n' | ${CXX:-c++} -x c++ -E - >/dev/null 2>&1; then
    make -s --no-print-directory -f Makefile -f tests/bench/programs.mk BUILD="$BUILD" ${CXX:+CXX="$CXX"} "$programs/libs3_rows"
    libs3=yes
fi
python=''
for candidate in ${PYTHON:-/usr/bin/python3 python3}; do
    "$candidate" -c 'import boto3' 2>/dev/null && { python=$candidate; break; }
done

# ---------------------------------------------------------------- where: one core, files in memory

cores=$(taskset -cp $$ | sed 's/.*: //; s/.*[,-]//') # the last one we may use
core=${BENCH_CORE:-$cores}
pinned=(taskset -c "$core")
stream_mib=1024
[ -z "$quick" ] || stream_mib=256
shm=${BENCH_SHM:-/dev/shm}
free_mib=$(df -Pm "$shm" 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ "${free_mib:-0}" -lt $((stream_mib * 2 + 512)) ]; then
    echo "bench: $shm has too little room, the files go to ${TMPDIR:-/tmp}" >&2
    shm=${TMPDIR:-/tmp}
fi
dir=$(mktemp -d "$shm/s3cache-bench.XXXXXX")
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

export BENCH_STREAM_BYTES=$((stream_mib * 1048576))
mkdir -p "$dir/www"
"$programs/bench" files "$dir/www" >"$dir/crc.map"
# A part is 8 MiB, eight times the same (bench.cpp): its MD5 is the ETag that a store would give it.
part_md5=$(for _ in 1 2 3 4 5 6 7 8; do cat "$dir/www/bench/mib"; done | md5sum | cut -c 1-32)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1 \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null

# ---------------------------------------------------------------- servers

# nginx knows no uploads in parts: beginning and end are canned, and each part overwrites the one before.
write_conf() { # HTTP_PORT TLS_PORT
    cat >"$dir/nginx.conf" <<CONF
daemon off;
master_process off;
worker_processes 1;
pid $dir/nginx.pid;
error_log $dir/error.log;
events { worker_connections 512; }
http {
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    map_hash_max_size 4096;
    map_hash_bucket_size 128;
    map \$uri \$crc { include $dir/crc.map; }
    map \$uri \$packed { ~\.gz\$ true; }
    map \$request_method \$etag { PUT '"$part_md5"'; default \$sent_http_etag; }
    map \$args \$upload {
        ~^uploads '<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>multi</Key><UploadId>u</UploadId></InitiateMultipartUploadResult>';
        default '<CompleteMultipartUploadResult><Bucket>bench</Bucket><Key>multi</Key><ETag>"e"</ETag></CompleteMultipartUploadResult>';
    }
    server {
        listen 127.0.0.1:$1;
        listen 127.0.0.1:$2 ssl;
        ssl_certificate $dir/cert.pem;
        ssl_certificate_key $dir/key.pem;
        root $dir/www;
        location / {
            if (\$request_method = POST) { return 200 \$upload; }
            dav_methods PUT DELETE;
            create_full_put_path on;
            add_header x-amz-request-id 4442587FB7D0A2F9;
            add_header x-amz-id-2 vlR7PnpV2Ce81l0PRw6jlUpck7Jo5ZsQjryTjKlc5aLWGVHPZLj5NeC6qMa0emYBDXOo6QBU0Wo;
            add_header x-amz-meta-kind bytes;
            add_header x-amz-meta-crc32c \$crc;
            add_header x-amz-meta-compressed \$packed;
            add_header ETag \$etag;
        }
    }
}
CONF
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_nginx() {
    local pid
    for _ in 1 2 3 4 5; do
        http_port=$((12000 + RANDOM % 8000)) tls_port=$((22000 + RANDOM % 8000)) # below those that the kernel deals out
        write_conf $http_port $tls_port
        "${pinned[@]}" nginx -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf" &
        pid=$!
        for _ in $(seq 50); do
            sleep 0.1
            kill -0 $pid 2>/dev/null || continue 2
            if answers $http_port && answers $tls_port; then pids+=("$pid"); return 0; fi
        done
        kill $pid 2>/dev/null || true
    done
    cat "$dir/error.log" >&2
    return 1
}

start_link() { # DELAY_MS BYTES_PER_SECOND -> $port; on whatever core is free
    : >"$dir/link.$1"
    "$programs/link" "$http_port" "$1" "$2" >"$dir/link.$1" &
    pids+=($!)
    for _ in $(seq 50); do
        port=$(cat "$dir/link.$1")
        [ -z "$port" ] || return 0
        sleep 0.1
    done
    return 1
}

start_nginx || { echo 'bench: nginx does not start' >&2; exit 1; }
start_link 20 0
far=$port
start_link 0 50000000
narrow=$port

# ---------------------------------------------------------------- the table

# No file or service of this machine's user may have a say.
unset AWS_PROFILE AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_SESSION_TOKEN AWS_CA_BUNDLE SSL_CERT_FILE http_proxy https_proxy all_proxy \
    HTTPS_PROXY ALL_PROXY 2>/dev/null || true
export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null \
    AWS_SHARED_CREDENTIALS_FILE=/dev/null
export BENCH_ROOT=$dir/www BENCH_HTTP=http://127.0.0.1:$http_port BENCH_HTTPS=https://127.0.0.1:$tls_port \
    BENCH_FAR=http://127.0.0.1:$far BENCH_NARROW=http://127.0.0.1:$narrow BENCH_CA=$dir/cert.pem BENCH_PROGRAMS=$programs \
    BENCH_SOURCES=tests/bench BENCH_PYTHON=$python BENCH_LIBS3=$libs3 BENCH_QUICK=$quick BENCH_ONLY=$only \
    BENCH_MARKDOWN=$dir/rows.md

heading() {
    local cpu libs3_version
    cpu=$(lscpu 2>/dev/null | sed -n 's/^Model name: *//p' | head -n 1)
    echo "$(nproc) x ${cpu:-unknown CPU}, $(uname -sr); client and server on core $core, files in $shm; load $(cut -d" " -f1 /proc/loadavg)"
    echo "$(${CXX:-c++} --version | head -n 1); $("$programs/bench" versions)"
    echo "nginx $(nginx -v 2>&1 | sed 's/.*nginx.//')${python:+; boto3 $("$python" -c 'import boto3; print(boto3.__version__)')}"
    libs3_version=$(dpkg-query -W -f '${Version}' libs3-dev 2>/dev/null || true)
    [ -z "$libs3" ] || echo "libs3 ${libs3_version:-of unknown version} (2.0 signs with the older SigV2 and hashes no payload)"
    echo "CPU time of the client process per operation, median of the rounds; ratio to the bare loop of the same round."
}

instructions() {
    command -v valgrind >/dev/null && [ -n "$python" ] || return 0
    [ -z "$only" ] || return 0
    echo
    echo 'Instructions of one get of 4 KiB over http (callgrind), by whose code they are in; "own" is all of this library:'
    echo "  this library  $("$python" tests/bench/instructions.py "$programs/one" "$BENCH_HTTP")"
    echo "  bare          $("$python" tests/bench/instructions.py "$programs/one_bare" "$BENCH_HTTP")"
    echo "  bare, signed  $("$python" tests/bench/instructions.py "$programs/one_bare" "$BENCH_HTTP" signed)"
}

{ heading; } | tee "$dir/heading"
echo
"${pinned[@]}" "$programs/bench" table
instructions | tee "$dir/instructions"
if [ -n "$markdown" ]; then
    { sed 's/$/  /' "$dir/heading"; echo; cat "$dir/rows.md" "$dir/instructions"; } >"$programs/table.md"
    echo "$programs/table.md"
fi
# The picture of README is of a whole run.
if [ -n "$python" ] && [ -z "$quick$only" ]; then "$python" tests/bench/bars.py "$dir/rows.md" tests/bench/speed.svg; fi
