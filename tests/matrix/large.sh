#!/usr/bin/env bash
# large.sh PROGRAM...: large.cpp, built, as a command line (with an emulator in front where one is needed), against a server
# that holds its objects of over 4 GiB in little memory. Needs python3 and 4.1 GiB below TMPDIR.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
. "$here/../servers/started.sh"
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-large.XXXXXX")
mkfifo "$work/end"
cut=$(((4 << 30) + (1 << 20)))
python3 "$here/large_server.py" $cut <"$work/end" >"$work/endpoint" &
server=$!
exec 9>"$work/end" # the server ends when this does
finish() {
    exec 9>&- || true
    wait $server 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
started $server "$work/endpoint"
"$@" "$(head -n 1 "$work/endpoint")" "$work"
exec 9>&-
wait $server
tail -n 1 "$work/endpoint"
grep -q 'cut 2 answers' "$work/endpoint" # else nothing had to go on
