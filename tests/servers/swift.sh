#!/usr/bin/env bash
# A real S3 server for the tests: OpenStack Swift with its s3api middleware from Debian's python3-swift, one proxy and one
# account, container and object server, on loopback only, as an ordinary user or as root. The package starts nothing by itself.
#
#   eval "$(tests/servers/swift.sh start)"     start it (or find it running) and set the variables below
#   tests/servers/swift.sh env                 print the same `export` lines again; fails if it is not running
#   tests/servers/swift.sh status|stop|wipe    look; end it; end it and remove its files
#   tests/servers/swift.sh start --install     install the missing Debian package first (root does so without asking)
#
# Printed: S3CACHE_TEST_ENDPOINT (http), S3CACHE_TEST_HOST_ENDPOINT (the same, with BUCKET. in front), S3CACHE_TEST_BUCKET,
# AWS_ACCESS_KEY_ID (with a colon in it), AWS_SECRET_ACCESS_KEY, AWS_REGION (us-east-1; Swift takes no other). Everything else
# goes to standard error.
#
# Environment (all optional):
#   S3CACHE_SWIFT_DIR    where it lives, on a file system that keeps user attributes (ext4, xfs, btrfs);
#                        default ${TMPDIR:-/tmp}/s3cache-swift-UID-CHECKSUM_OF_THIS_CHECKOUT
#   S3CACHE_SWIFT_PORT   wanted port; another is taken if it is in use
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=$(cd "$here/../.." && pwd -P)
tag=$(printf '%s' "$checkout" | cksum | cut -d' ' -f1)
base=${S3CACHE_SWIFT_DIR:-${TMPDIR:-/tmp}/s3cache-swift-$(id -u)-$tag}

say() { printf 'swift: %s\n' "$*" >&2; }
die() {
    say "$*"
    [ ! -f "$base/log" ] || tail -n 5 "$base/log" >&2
    exit 1
}

# ---------------------------------------------------------------- the process: known by pid and by the moment it began

began_at() { # PID -> start time in clock ticks; a pid used again by a stranger has another one
    local line
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    line=${line##*) }
    # shellcheck disable=SC2086
    set -- $line
    [ "$1" != Z ] && printf '%s' "${20}"
}

pid_of() { # its pid, if it is alive and ours; the servers are children that do not outlive it
    local pid began
    [ -f "$base/pid" ] && read -r pid began <"$base/pid" || return 1
    [ "$(began_at "$pid" || true)" = "$began" ] && printf '%s' "$pid"
}

running() { pid_of >/dev/null && [ -f "$base/env" ]; }

end_it() { # asked first, forced after five seconds
    local pid i
    if pid=$(pid_of); then
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do pid_of >/dev/null || break; sleep 0.1; done
        pid_of >/dev/null && kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$base/pid" "$base/env"
}

clean_files() { rm -rf "${base:?}"/{devices,env,env.new,pid,probe,log,apt.log,*.conf,*.ring.gz}; }

# ---------------------------------------------------------------- set-up

# Debian's Python, whatever other one comes first here.
installed() { /usr/bin/python3 -c 'import swift.common.middleware.s3api' 2>/dev/null; }

ensure_installed() { # --install or nothing
    local sudo=''
    ! installed || return 0
    if [ "$(id -u)" != 0 ]; then
        [ "${1:-}" = --install ] || die 'install python3-swift, or say: start --install'
        sudo='sudo -n'
    fi
    command -v apt-get >/dev/null || die 'there is no apt-get here to install python3-swift with'
    say 'installing python3-swift'
    { $sudo apt-get -o DPkg::Lock::Timeout=300 update -q &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends \
            python3-swift; } >"$base/apt.log" 2>&1 || { tail -n 5 "$base/apt.log" >&2; die "apt-get failed: $base/apt.log"; }
    installed || die 'python3-swift is installed, but Python does not find it'
}

start_once() {
    local pid
    clean_files
    setsid nohup /usr/bin/python3 -B "$here/swift_servers.py" "$base" ${S3CACHE_SWIFT_PORT:-} </dev/null >"$base/log" 2>&1 9>&- &
    pid=$!
    printf '%s %s\n' "$pid" "$(began_at "$pid" || echo gone)" >"$base/pid"
    while pid_of >/dev/null; do
        [ ! -f "$base/env" ] || return 0
        sleep 0.1
    done
    return 1
}

start() {
    local attempt
    mkdir -p -m 700 "$base"
    [ -O "$base" ] || die "$base belongs to someone else"
    exec 9>"$base/lock"
    flock 9
    if running; then say 'already running'; cat "$base/env"; return 0; fi
    ensure_installed "${1:-}"
    end_it
    # A port may be taken between the look and the bind; a few tries with other ports settle that.
    for attempt in 1 2 3; do
        if start_once; then
            say "ready: $(sed -n "s/.*TEST_ENDPOINT='\(.*\)'/\1/p" "$base/env"), in $base"
            cat "$base/env"
            return 0
        fi
        say "attempt $attempt failed: $(tail -n 1 "$base/log")"
        end_it
    done
    die 'could not start'
}

locked() { # the same lock as start, where there is something to lock
    [ -d "$base" ] || { say 'nothing there'; exit 0; }
    exec 9>"$base/lock"
    flock 9
}

status() {
    local pid
    if pid=$(pid_of); then
        ps -o pid=,rss=,stat= --ppid "$pid" | awk '{ n++; kib += $2 } END { printf "%d servers, %d MiB\n", n, kib / 1024 }'
        running && grep TEST_ENDPOINT= "$base/env"
    else
        echo 'not running'
    fi
}

case ${1:-} in
    start) start "${2:-}" ;;
    env) running && cat "$base/env" || die 'not running' ;;
    status) status ;;
    stop) locked && end_it && say stopped ;;
    wipe) locked && end_it && clean_files && rm -f "$base/lock" && { rmdir "$base" || true; } && say 'stopped, files removed' ;;
    *) sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
