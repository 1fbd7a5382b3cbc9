#!/usr/bin/env bash
# inside.sh ROOT SOURCE COMMAND...: a command inside a root that root.sh made, with the folder SOURCE as /source (and the
# folder to work in). What is mounted for it is seen by nobody else and gone with it.
set -euo pipefail

root=$1 source=$2
shift 2
mkdir -p "$root/source"
exec unshare --mount --propagation private -- bash -c '
    set -e
    root=$1 source=$2
    shift 2
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    mount --bind "$source" "$root/source"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        bash -c "cd /source && exec \"\$@\"" inside "$@"' inside "$root" "$source" "$@"
