#!/usr/bin/env bash
# source.sh DIR PACKAGE...: Debian's source packages, unpacked below DIR/PACKAGE with Debian's patches; the machine's list of sources is
# left as it is. With what is there already: nothing.
#   MIRROR, SUITE   default: the first mirror that apt uses here, and the release that runs here
set -euo pipefail

dir=$1
shift
suite=${SUITE:-$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)}
signed=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$dir/lists/partial"
dir=$(cd "$dir" && pwd -P)
echo "deb-src [signed-by=$signed] ${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -vm1 security)} $suite main" >"$dir/sources.list"
apt=(apt-get -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$dir/lists"
     -o APT::Sandbox::User= -o Debug::NoLocking=true)
for package; do
    [ ! -e "$dir/$package" ] || continue
    [ -n "${updated:-}" ] || "${apt[@]}" update
    updated=yes
    (cd "$dir" && "${apt[@]}" source --download-only "$package")
    description=$(ls -t "$dir/${package}"_*.dsc | head -n 1)
    # dpkg-source needs patch; without it the plain upstream archive does as well.
    if command -v patch >/dev/null; then
        dpkg-source --no-check -x "$description" "$dir/$package"
    else
        mkdir "$dir/$package" && tar -C "$dir/$package" --strip-components=1 -xf "$dir/$package"_*.orig.tar.*z
    fi
done
