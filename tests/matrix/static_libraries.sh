#!/usr/bin/env bash
# mingw_libraries.sh DIR: libcrypto, libssl (static, OpenSSL) and libcurl (static, with Schannel) for 64-bit Windows below DIR, built from
# Debian's source packages. With what is there already: nothing. Needs g++-mingw-w64-x86-64-posix and libz-mingw-w64-dev.
#   JOBS=1 MIRROR=
set -euo pipefail

dir=$1
host=x86_64-w64-mingw32
jobs=${JOBS:-1}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
[ ! -e "$dir/.complete" ] || exit 0

"$here/source.sh" "$dir/src" openssl curl
if [ ! -e "$dir/lib/libcrypto.a" ]; then
    cd "$dir/src/openssl"
    ./Configure mingw64 no-shared no-tests no-docs no-apps no-legacy no-engine no-module --cross-compile-prefix=$host- \
        --prefix="$dir" --libdir=lib || ./Configure mingw64 no-shared no-tests no-legacy no-engine no-module \
        --cross-compile-prefix=$host- --prefix="$dir" --libdir=lib
    make -j"$jobs" build_generated
    make -j"$jobs" libcrypto.a libssl.a
    mkdir -p "$dir/include" "$dir/lib"
    cp -r include/openssl "$dir/include/"
    cp libcrypto.a libssl.a "$dir/lib/"
fi
if [ ! -e "$dir/lib/libcurl.a" ]; then
    cd "$dir/src/curl"
    [ -x configure ] || autoreconf -fi
    ./configure --host=$host --prefix="$dir" --disable-shared --enable-static --with-schannel --with-zlib=/usr/$host \
        --disable-ldap --disable-ftp --disable-telnet --disable-tftp --disable-pop3 --disable-imap --disable-smtp --disable-gopher \
        --disable-mqtt --disable-rtsp --disable-dict --disable-smb --disable-manual --without-libpsl --without-brotli --without-zstd \
        --without-nghttp2 --without-libidn2 --without-librtmp --without-libssh2
    make -j"$jobs" -C lib
    make -C lib install
    make -C include install
fi
touch "$dir/.complete"
