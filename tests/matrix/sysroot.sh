#!/usr/bin/env bash
# sysroot.sh ARCH DIR: Debian's libraries of another architecture, unpacked below DIR/root and installed nowhere: neither
# the machine's packages nor its list of architectures change, and no root is needed. With what is there already: nothing.
#   ARCH         armhf, arm64, s390x, or the machine's own with PACKAGES set to what is wanted
#   PACKAGES     default: what a program with s3cache.hpp links and runs with
#   MIRROR, SUITE, SECURITY_MIRROR   default: those of Debian 12
set -euo pipefail

arch=$1 dir=$2
suite=${SUITE:-$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)}
packages=${PACKAGES:-libcurl4-openssl-dev libssl-dev zlib1g-dev libstdc++6 libc6}
stamp=$dir/root/.complete
[ "$(cat "$stamp" 2>/dev/null)" != "$suite $packages" ] || exit 0

rm -rf "$dir"
mkdir -p "$dir"/apt/{lists/partial,cache/archives/partial,etc/preferences.d} "$dir/root"
dir=$(cd "$dir" && pwd -P)
stamp=$dir/root/.complete
: >"$dir/apt/status"
signed=/usr/share/keyrings/debian-archive-keyring.gpg
{
    echo "deb [signed-by=$signed] ${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -vm1 security)} $suite main"
    # Only for a compiler newer than the release: an index that is just being changed must not stop the others.
    [ -z "${SECURITY_MIRROR:-}" ] || echo "deb [signed-by=$signed] $SECURITY_MIRROR $suite-security main"
} >"$dir/apt/etc/sources.list"
cat >"$dir/apt/conf" <<END
APT::Architecture "$arch"; APT::Architectures { "$arch"; }; APT::Install-Recommends "false"; APT::Sandbox::User "";
Dir::State "$dir/apt"; Dir::State::lists "$dir/apt/lists"; Dir::State::status "$dir/apt/status"; Dir::Cache "$dir/apt/cache";
Dir::Etc "$dir/apt/etc"; Dir::Etc::sourcelist "$dir/apt/etc/sources.list"; Dir::Etc::sourceparts "-";
Acquire::Languages "none"; Debug::NoLocking "true";
END
export APT_CONFIG=$dir/apt/conf
apt-get update -q
# shellcheck disable=SC2086
apt-get install -y -q --download-only $packages
for package in "$dir"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$dir/root"; done
# Links that say where the library would be if this were the root.
find "$dir/root" -type l -lname '/*' | while read -r link; do
    target=$dir/root$(readlink "$link")
    [ ! -e "$target" ] || ln -sfn "$target" "$link"
done
# A libc to run with, not to link with: the linker scripts name paths of a root, and the cross compiler has its own.
find "$dir/root/usr/lib" -name 'libc.so' -delete -o -name 'libm.so' -delete
rm -rf "$dir/apt"
echo "$suite $packages" >"$stamp"
