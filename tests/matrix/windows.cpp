// A file of a Windows program that includes <windows.h>: before our header with -DWINDOWS_FIRST, else behind it. The macros that it brings
// with Microsoft's compiler, but not with every other one, are here with all of them. first.hpp is written by check_all.sh: the standard
// headers, which do not stand min and max either.
#ifdef WINDOWS_FIRST
#include "first.hpp"
#include <winsock2.h>

#include <windows.h>
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#undef DELETE
#define DELETE 0x00010000L
#undef ERROR
#define ERROR 0
#undef interface
#define interface struct
#undef GetObject
#define GetObject GetObjectA
#endif
#include "s3cache.hpp"
#ifndef WINDOWS_FIRST
#include <windows.h>
#endif

#ifdef _WINSOCKAPI_
#ifndef _WINSOCK2API_
#error "the old winsock.h came in"
#endif
#endif

int main() {
    auto cache = s3cache::Cache::try_open("s3://bucket?region=us-east-1&endpoint=http://127.0.0.1:1");
    if (!cache) return 1;
    const auto hit = cache->try_get("key");
    return hit || hit.error().code() != s3cache::Errc::network;
}
