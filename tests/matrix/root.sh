#!/usr/bin/env bash
# root.sh ARCH SUITE DIR PACKAGE...: a whole Debian of another architecture or release below DIR, to compile against, to run
# programs of (`qemu-ARCH-static -L DIR`) and to work in (inside.sh). With what is there already: nothing. Needs root.
#
# A whole one, because half of one misleads: packages that are unpacked but not set up have no /etc/ld.so.cache, no
# nsswitch.conf and no /etc/ssl of their own, and an emulated program then reads those of the machine it runs on.
#   MIRROR   default: the first one that apt uses here
set -euo pipefail

arch=$1 suite=$2 dir=$3
shift 3
wanted="$suite $arch $*"
stamp=$dir/.complete
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -vm1 security)}

# Packages are set up by programs of that architecture: the kernel must know who runs those.
register() { # NAME_OF_QEMU
    local misc=/proc/sys/fs/binfmt_misc
    [ -e $misc/register ] || mount -t binfmt_misc binfmt_misc $misc
    [ -e "$misc/qemu-$1" ] || cat "/usr/lib/binfmt.d/qemu-$1.conf" >$misc/register
}
case $arch in
    "$(dpkg --print-architecture)") ;;
    i386) ;; # runs as it is on amd64
    armhf) register arm ;;
    arm64) register aarch64 ;;
    *) register "$arch" ;;
esac

rm -rf --one-file-system "$dir" # an interrupted run may have left the machine's /sys mounted in it
mkdir -p "$dir"
packages=$*
# The package that apt's signatures are checked with knows the keys of its own release and of those before.
mmdebstrap --quiet --mode=root --variant=apt --architectures="$arch" --include="${packages// /,}" \
    --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$dir" "$mirror"
rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir/var/lib/apt/lists"
echo "$wanted" >"$stamp"
