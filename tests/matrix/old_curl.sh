#!/usr/bin/env bash
# old_curl.sh DIR: libcurl's headers of this machine below DIR/curl without what came after 7.61, so that a use of any of it does not compile.
set -euo pipefail

from=/usr/include/$(gcc -print-multiarch)/curl
[ -d "$from" ] || from=/usr/include/curl
rm -rf "$1/curl"
mkdir -p "$1"
cp -rL "$from" "$1/curl"
cd "$1/curl"
sed -i -E 's/^(#define LIBCURL_VERSION_NUM) .*/\1 0x073D00/; s/^(#define LIBCURL_VERSION) .*/\1 "7.61.0"/;
    s/^(#define LIBCURL_VERSION_MAJOR) .*/\1 7/; s/^(#define LIBCURL_VERSION_MINOR) .*/\1 61/' curlver.h
# Functions that are newer, and the header of URLs (7.62) and others.
sed -i -E 's/\bcurl_multi_(poll|wakeup|get_handles|waitfds)\b/&_is_newer/' multi.h
sed -i -E 's/\bcurl_(easy_upkeep|global_sslset_is_newer|ws_[a-z]+|easy_option_[a-z_]+|easy_header|easy_nextheader)\b/&_is_newer/' ./*.h
for name in urlapi options header websockets; do [ ! -e $name.h ] || : >$name.h; done
# Options from 279 on, and what curl_easy_getinfo tells from 57 on.
awk '
    /^ *CURLOPT(DEPRECATED)?\(/ || part != "" {
        part = part $0 "\n"
        if ($0 !~ /\),?( |$)/) next
        number = match(part, /, *[0-9]+[,)]/) ? substr(part, RSTART + 1) + 0 : 0
        if (number <= 278) printf "%s", part
        part = ""
        next
    }
    /^ *CURLINFO_[A-Z0-9_]+ .*= *CURLINFO_[A-Z_]+ *\+ *[0-9]+/ { split($0, sum, "+"); if (sum[2] + 0 > 56) next }
    { print }' curl.h >curl.h.new
{ echo "#define CURL_DISABLE_DEPRECATION"; cat curl.h.new; } >curl.h
rm curl.h.new
