#!/usr/bin/env bash
# static_libraries.sh windows|musl DIR: libcrypto, libssl (OpenSSL) and libcurl below DIR, static, for another system of x86_64, built from
# Debian's source packages. With what is there already: nothing.
#   windows   libcurl with Schannel; needs g++-mingw-w64-x86-64-posix and libz-mingw-w64-dev
#   musl      libcurl with OpenSSL, and zlib; ZIG is the compiler
#   JOBS=1 MIRROR=
set -euo pipefail

system=$1 dir=$2
jobs=${JOBS:-1}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
[ ! -e "$dir/.complete" ] || exit 0
sources=(openssl curl)
case $system in
    windows)
        host=x86_64-w64-mingw32
        for_openssl=(mingw64 --cross-compile-prefix=$host-)
        for_curl=(--with-schannel --with-zlib=/usr/$host)
        ;;
    musl)
        host=x86_64-linux-musl
        export CC="$ZIG cc -target $host" AR="$ZIG ar" RANLIB="$ZIG ranlib"
        sources+=(zlib)
        for_openssl=(linux-x86_64 no-async no-dso) # musl has no contexts to switch, a static program nothing to load
        for_curl=(--with-openssl="$dir" --with-zlib="$dir" --enable-ipv6) # whose probe is no C that this compiler takes
        ;;
    *) exit 2 ;;
esac

"$here/source.sh" "$dir/src" "${sources[@]}"
mkdir -p "$dir/include" "$dir/lib"
if [ ! -e "$dir/lib/libcrypto.a" ]; then
    cd "$dir/src/openssl"
    less=(no-shared no-tests no-legacy no-engine no-module --prefix="$dir" --libdir=lib)
    ./Configure "${for_openssl[@]}" "${less[@]}" no-docs no-apps || ./Configure "${for_openssl[@]}" "${less[@]}"
    make -j"$jobs" build_generated
    make -j"$jobs" libcrypto.a libssl.a
    cp -r include/openssl "$dir/include/"
    cp libcrypto.a libssl.a "$dir/lib/"
fi
if [ "$system" = musl ] && [ ! -e "$dir/lib/libz.a" ]; then
    cd "$dir/src/zlib"
    CHOST=$host ./configure --static
    make -j"$jobs" libz.a
    cp zlib.h zconf.h "$dir/include/"
    cp libz.a "$dir/lib/"
fi
if [ ! -e "$dir/lib/libcurl.a" ]; then
    cd "$dir/src/curl"
    [ -x configure ] || autoreconf -fi
    ./configure --host=$host --prefix="$dir" --disable-shared --enable-static "${for_curl[@]}" \
        --disable-ldap --disable-ftp --disable-telnet --disable-tftp --disable-pop3 --disable-imap --disable-smtp --disable-gopher \
        --disable-mqtt --disable-rtsp --disable-dict --disable-smb --disable-manual --without-libpsl --without-brotli --without-zstd \
        --without-nghttp2 --without-libidn2 --without-librtmp --without-libssh2
    make -j"$jobs" -C lib
    make -C lib install
    make -C include install
fi
touch "$dir/.complete"
