#!/usr/bin/env bash
# A real S3 server for the tests: Ceph's RADOS Gateway from Debian's packages, one monitor and one in-memory OSD,
# on loopback only, as an ordinary user or as root, without systemd.
#
#   eval "$(tests/servers/ceph_rgw.sh start)"     start it (or find it running) and set the variables below
#   tests/servers/ceph_rgw.sh env                 print the same `export` lines again; fails if it is not running
#   tests/servers/ceph_rgw.sh status|stop|wipe    look; end it; end it and remove its files
#   tests/servers/ceph_rgw.sh gateway-stop|-kill|-freeze|-thaw|-start|-untrusted
#                                                 trouble for tests: the gateway ended (asked, or by SIGKILL), stopped and let
#                                                 go on, started again, started again with a certificate that nobody vouches
#                                                 for; what is stored stays
#   tests/servers/ceph_rgw.sh start --install     install missing Debian packages first (root does so without asking)
#
# Printed: S3CACHE_TEST_ENDPOINT (http), S3CACHE_TEST_TLS_ENDPOINT and S3CACHE_TEST_CA (https, checked), S3CACHE_TEST_BUCKET,
# AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION. Everything else goes to standard error.
#
# Environment (all optional):
#   S3CACHE_CEPH_DIR        where it lives; default ${TMPDIR:-/tmp}/s3cache-ceph-UID-CHECKSUM_OF_THIS_CHECKOUT
#   S3CACHE_CEPH_PORT       wanted http port, S3CACHE_CEPH_TLS_PORT wanted https port; another is taken if it is in use
#   S3CACHE_CEPH_BYTES      how much the store may hold, in bytes; default 8 GiB, which a 5 GiB object fits
#   S3CACHE_CEPH_STORE      memstore (default) or bluestore (a sparse file in the directory: for machines short of memory)
#   S3CACHE_CEPH_BUCKETS    buckets to make, by blanks; the first one becomes S3CACHE_TEST_BUCKET
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=$(cd "$here/../.." && pwd -P)
tag=$(printf '%s' "$checkout" | cksum | cut -d' ' -f1)
# The gateway's option line is split at blanks, so a directory with one in its name can't hold the certificate.
tmp=${TMPDIR:-/tmp}
case $tmp in *[[:space:]]*) tmp=/tmp ;; esac
base=${S3CACHE_CEPH_DIR:-$tmp/s3cache-ceph-$(id -u)-$tag}
store=${S3CACHE_CEPH_STORE:-memstore}
store_bytes=${S3CACHE_CEPH_BYTES:-8589934592}
buckets=${S3CACHE_CEPH_BUCKETS:-s3cache-test}
conf=$base/ceph.conf
programs=(ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin ceph openssl curl)
packages=(ceph-mon ceph-osd radosgw openssl curl)
export PATH=$PATH:/usr/sbin:/sbin CEPH_CONF=$conf
# Ceph's Python command line reads these and would talk to another cluster.
unset CEPH_ARGS CEPH_KEYRING 2>/dev/null || true

say() { printf 'ceph_rgw: %s\n' "$*" >&2; }
die() {
    say "$*"
    [ ! -d "$base/log" ] || tail -n 5 "$base"/log/*.out >&2 2>/dev/null || true
    exit 1
}

# ---------------------------------------------------------------- processes: known by pid and by the moment they began

began_at() { # PID -> start time in clock ticks; a pid used again by a stranger has another one
    local line
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    line=${line##*) }
    # shellcheck disable=SC2086
    set -- $line
    # Of a zombie other threads may still be at work, and hold its ports.
    { [ "$1" != Z ] || [ "${18}" -gt 1 ]; } && printf '%s' "${20}"
}

spawn() { # NAME COMMAND...
    local name=$1 pid
    shift
    setsid nohup "$@" </dev/null >>"$base/log/$name.out" 2>&1 9>&- &
    pid=$!
    printf '%s %s\n' "$pid" "$(began_at "$pid" || echo gone)" >"$base/$name.pid"
}

pid_of() { # NAME -> its pid, if it is alive and ours
    local pid began
    [ -f "$base/$1.pid" ] && read -r pid began <"$base/$1.pid" || return 1
    [ "$(began_at "$pid" || true)" = "$began" ] && printf '%s' "$pid"
}

alive() { pid_of "$1" >/dev/null; }

gone() { # TENTHS NAME
    local i
    for i in $(seq "$1"); do alive "$2" || return 0; sleep 0.1; done
    return 1
}

end_one() { # NAME SIGNAL (TERM): asked first, forced after five seconds. As long as it is there its ports are, and its pid file is.
    local pid
    if pid=$(pid_of "$1"); then
        kill "-${2:-TERM}" "$pid" 2>/dev/null || true
        gone 50 "$1" || kill -9 "$pid" 2>/dev/null || true
        gone 300 "$1" || { say "$1 does not end: pid $pid"; return 1; }
    fi
    rm -f "$base/$1.pid"
}

end_all() {
    local name status=0
    for name in rgw osd mon; do end_one "$name" || status=1; done
    return $status
}

wait_until() { # TENTHS NAME WHAT COMMAND...: until the command succeeds, or the process dies, or time is up
    local tenths=$1 name=$2 what=$3 i
    shift 3
    for i in $(seq "$tenths"); do
        "$@" >/dev/null 2>&1 && return 0
        alive "$name" || { say "$name ended before $what"; return 1; }
        sleep 0.1
    done
    say "$name: gave up waiting for $what"
    return 1
}

# ---------------------------------------------------------------- ports

port_taken() { # PORT: bound by anyone, in any state that keeps it from us
    local hex
    hex=$(printf '%04X' "$1")
    grep -qsE "^ *[0-9]+: [0-9A-F]+:$hex " /proc/net/tcp /proc/net/tcp6
}

block_free() {
    local port
    for port in $(seq "$1" $(($1 + 31))); do ! port_taken "$port" || return 1; done
}

# One block of 32 ports below the range that outgoing connections use, so that no client takes one from under us:
# +0 +1 the monitor, +2 http, +3 https, +8 to +31 for the OSD to pick from.
choose_ports() {
    local i
    for i in $(seq 200); do
        block=$((20000 + 32 * (RANDOM % 380)))
        block_free "$block" && break
    done
    mon_v2=$block mon_v1=$((block + 1)) port=$((block + 2)) tls_port=$((block + 3))
    osd_low=$((block + 8)) osd_high=$((block + 31))
    wanted_port port "${S3CACHE_CEPH_PORT:-}"
    wanted_port tls_port "${S3CACHE_CEPH_TLS_PORT:-}"
}

wanted_port() { # VARIABLE WANTED
    [ -n "$2" ] || return 0
    if port_taken "$2"; then say "port $2 is in use, taking ${!1}"; else printf -v "$1" '%s' "$2"; fi
}

# ---------------------------------------------------------------- set-up

missing_programs() {
    local program
    for program in "${programs[@]}"; do command -v "$program" >/dev/null || printf '%s ' "$program"; done
}

ensure_installed() { # --install or nothing
    local missing sudo=''
    missing=$(missing_programs)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        [ "${1:-}" = --install ] || die "not found: $missing- install ${packages[*]}, or say: start --install"
        sudo='sudo -n'
    fi
    command -v apt-get >/dev/null || die "not found: $missing- and there is no apt-get here to install them with"
    say "installing ${packages[*]} (about 70 MB to fetch)"
    { $sudo apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update -q &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install -y -q --no-install-recommends \
            "${packages[@]}"; } >"$base/apt.log" 2>&1 || { tail -n 5 "$base/apt.log" >&2; die "apt-get failed: $base/apt.log"; }
    missing=$(missing_programs)
    [ -z "$missing" ] || die "still not found: $missing"
}

make_certificate() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
        -addext 'subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1' \
        -keyout "$base/$1.key" -out "$base/$1.crt" 2>"$base/log/openssl.out" || die 'openssl could not make a certificate'
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

write_conf() {
    # Debian 13's OSD looks for its classes below the folder it was started in.
    local classes=
    for classes in /usr/lib/*/rados-classes /usr/lib/rados-classes ''; do [ ! -d "$classes" ] || break; done
    fsid=$(cat /proc/sys/kernel/random/uuid)
    cat >"$conf" <<CONF
[global]
fsid = $fsid
mon_initial_members = a
mon_host = [v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1]
# Loopback, and nothing but loopback.
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
ms_bind_ipv6 = false
ms_bind_port_min = $osd_low
ms_bind_port_max = $osd_high
# Between the three daemons of one user on one machine; S3 requests are signed all the same.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# Without keys there is no encryption between the daemons, which the gateway would otherwise ask of the monitor.
ms_mon_client_mode = crc
keyring = $base/keyring
# Nothing outside this directory; no admin sockets, whose paths a long TMPDIR would make too long.
admin_socket =
pid_file =
run_dir = $base/run
crash_dir = $base/run
log_file = $base/log/\$name.log
mon_cluster_log_file = $base/log/cluster.log
mon_data = $base/mon
osd_data = $base/osd
${classes:+osd_class_dir = $classes}
rgw_data = $base/rgw
debug_ms = 0
# One copy of everything on one OSD, few placement groups: what makes it start in seconds.
osd_crush_chooseleaf_type = 0
osd_crush_initial_weight = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[osd]
osd_objectstore = $store
osd_journal = $base/osd/journal
memstore_device_bytes = $store_bytes
bluestore_block_size = $store_bytes
osd_memory_target = 1073741824
osd_op_num_shards = 2
[client]
rgw_frontends = beast endpoint=127.0.0.1:$port ssl_endpoint=127.0.0.1:$tls_port ssl_certificate=$base/tls.crt ssl_private_key=$base/tls.key tcp_nodelay=1
rgw_dns_name = localhost
rgw_enable_apis = s3
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
rgw_run_sync_thread = false
rgw_crypt_require_ssl = false
# Removed objects give their memory back within seconds, not after the usual two hours: the store is the machine's memory.
rgw_gc_obj_min_wait = 2
rgw_gc_processor_period = 2
rgw_gc_processor_max_time = 2
CONF
}

start_monitor() {
    monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1]" "$base/monmap" \
        >"$base/log/monmap.out" 2>&1 || return 1
    ceph-authtool --create-keyring "$base/keyring" --gen-key -n mon. --cap mon 'allow *' >>"$base/log/monmap.out" 2>&1 || return 1
    ceph-mon --conf "$conf" -i a --mkfs --monmap "$base/monmap" --keyring "$base/keyring" >>"$base/log/monmap.out" 2>&1 || return 1
    spawn mon ceph-mon --conf "$conf" -f -i a
    wait_until 300 mon 'the monitor answered' ceph --conf "$conf" --connect-timeout 2 mon stat
}

osd_is_up() { ceph --conf "$conf" --connect-timeout 2 osd stat 2>/dev/null | grep -q ' 1 up'; }

start_osd() {
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph --conf "$conf" --connect-timeout 5 osd new "$uuid" >>"$base/log/mkfs.out" 2>&1 || return 1
    ceph-osd --conf "$conf" -i 0 --mkfs --osd-uuid "$uuid" >>"$base/log/mkfs.out" 2>&1 || return 1
    spawn osd ceph-osd --conf "$conf" -f -i 0
    wait_until 300 osd 'the OSD was up' osd_is_up
}

# From what was written at the start.
read_ports() {
    port=$(sed -n 's/.*endpoint=127\.0\.0\.1:\([0-9]*\) ssl_endpoint.*/\1/p' "$conf")
    tls_port=$(sed -n 's/.*ssl_endpoint=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$conf")
}

gateway_answers() { curl -q --noproxy '*' -s -o /dev/null --max-time 2 "http://127.0.0.1:$port/"; }

tls_answers() { # NAME of its certificate
    curl -q --noproxy '*' -s -o /dev/null --max-time 2 --cacert "$base/$1.crt" "https://127.0.0.1:$tls_port/"
}

make_user() {
    timeout 120 radosgw-admin --conf "$conf" --no-mon-config user create --uid=tests --display-name=tests \
        --access-key="$access_key" --secret-key="$secret_key" >"$base/log/user.out" 2>&1
}

start_gateway() { # NAME of the certificate
    sed -i "s|ssl_certificate=[^ ]* ssl_private_key=[^ ]*|ssl_certificate=$base/$1.crt ssl_private_key=$base/$1.key|" "$conf"
    spawn rgw radosgw --conf "$conf" -f -n client.rgw.a --no-mon-config
    wait_until 600 rgw 'the gateway answered' gateway_answers && wait_until 100 rgw 'https answered' tls_answers "$1"
}

make_bucket() { # NAME: signed the old way (HMAC-SHA1 of the date and the path), which takes one line of shell
    local date signature
    date=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S GMT')
    signature=$(printf 'PUT\n\n\n%s\n/%s' "$date" "$1" | openssl dgst -sha1 -hmac "$secret_key" -binary | openssl base64)
    curl -q --noproxy '*' -s --max-time 20 -o "$base/log/bucket.out" -w '%{http_code}' -X PUT -H "Date: $date" \
        -H 'Content-Length: 0' -H "Authorization: AWS $access_key:$signature" "http://127.0.0.1:$port/$1"
}

make_buckets() {
    local bucket status
    for bucket in $buckets; do
        status=$(make_bucket "$bucket") || status=none
        [ "$status" = 200 ] || { say "making bucket $bucket: answer $status"; return 1; }
    done
}

write_exports() {
    local first=${buckets%% *}
    (
        umask 077
        cat >"$base/env" <<EXPORTS
export S3CACHE_TEST_ENDPOINT='http://127.0.0.1:$port'
export S3CACHE_TEST_TLS_ENDPOINT='https://127.0.0.1:$tls_port'
export S3CACHE_TEST_CA='$base/tls.crt'
export S3CACHE_TEST_BUCKET='$first'
export S3CACHE_TEST_REGION='us-east-1'
export AWS_ACCESS_KEY_ID='$access_key'
export AWS_SECRET_ACCESS_KEY='$secret_key'
export AWS_REGION='us-east-1'
unset AWS_SESSION_TOKEN AWS_PROFILE AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_CA_BUNDLE
EXPORTS
    )
}

running() {
    alive mon && alive osd && alive rgw && [ -f "$base/env" ] && read_ports &&
        wait_until 15 rgw 'the gateway answered' gateway_answers
}

# A gateway that a test left frozen is alive and answers nobody: before it is counted on, it is let go on.
running_thawed() {
    local pid
    pid=$(pid_of rgw) && kill -CONT "$pid" && running
}

clean_files() { rm -rf "${base:?}"/{mon,osd,rgw,run,log,env,keyring,monmap,ceph.conf,tls.crt,tls.key,untrusted.crt,untrusted.key,apt.log}; }

start_once() {
    clean_files
    mkdir -p "$base"/{mon,osd,rgw,run,log}
    choose_ports
    access_key=s3cache$(random_hex 6) secret_key=$(random_hex 20)
    write_conf
    make_certificate tls
    start_monitor && start_osd && make_user && start_gateway tls && make_buckets && write_exports
}

start() {
    local attempt
    case $base in *[[:space:]]*) say "no blanks, please: $base" && exit 64 ;; esac
    mkdir -p -m 700 "$base"
    [ -O "$base" ] || die "$base belongs to someone else"
    exec 9>"$base/lock"
    flock 9
    if running_thawed; then say 'already running'; cat "$base/env"; return 0; fi
    ensure_installed "${1:-}"
    end_all
    # A port may be taken between the look and the bind; a few tries with other ports settle that.
    for attempt in 1 2 3; do
        if start_once; then
            say "ready: http://127.0.0.1:$port and https://127.0.0.1:$tls_port, in $base"
            cat "$base/env"
            return 0
        fi
        end_all
        say "attempt $attempt failed"
    done
    die 'could not start'
}

locked() { # the same lock as start, where there is something to lock
    [ -d "$base" ] || { say 'nothing there'; exit 0; }
    exec 9>"$base/lock"
    flock 9
}

gateway() { # WHAT: the rest of the cluster, and what is stored, stay
    local pid
    [ -f "$base/env" ] && alive mon && alive osd || die 'not running'
    read_ports
    pid=$(pid_of rgw) || pid=
    case $1 in
        stop) end_one rgw ;;
        kill) end_one rgw KILL ;;
        freeze) kill -STOP "${pid:?}" ;;
        thaw) kill -CONT "${pid:?}" ;;
        start) if grep -q "$base/untrusted.crt" "$conf" || ! running_thawed; then end_one rgw; start_gateway tls; fi ;;
        untrusted) end_one rgw; make_certificate untrusted; start_gateway untrusted ;;
    esac
}

status() {
    local name pid
    for name in mon osd rgw; do
        if pid=$(pid_of "$name"); then
            echo "$name: pid $pid, $(awk '/^VmRSS/ { printf "%d MiB", $2 / 1024 }' "/proc/$pid/status")"
        else
            echo "$name: not running"
        fi
    done
    running && grep ENDPOINT= "$base/env"
}

case ${1:-} in
    start) start "${2:-}" ;;
    env) running_thawed && cat "$base/env" || die 'not running' ;;
    status) status ;;
    gateway-stop|gateway-kill|gateway-freeze|gateway-thaw|gateway-start|gateway-untrusted) locked && gateway "${1#gateway-}" ;;
    stop) locked && end_all && rm -f "$base/env" && say stopped ;;
    wipe) locked && end_all && clean_files && rm -f "$base/lock" && { rmdir "$base" || true; } && say 'stopped, files removed' ;;
    *) sed -n '2,26s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
