// Macros that platform headers are known to define. The standard library and the libraries underneath come first (they
// have their own quarrel with such macros, and their own guards), then the macros, then the header.
#include "first.hpp"  // made by run.sh: every header that s3cache.hpp includes

// <windows.h>
#define min(a, b) min_is_a_macro
#define max(a, b) max_is_a_macro
#define ERROR 0
#define DELETE (0x00010000L)
#define IN
#define OUT
#define OPTIONAL
#define TRUE 1
#define FALSE 0
#define CONST const
#define VOID void
#define BOOL int
#define STRICT 1
#define NO_ERROR 0L
#define NO_DATA 11004L
#define PASCAL
#define CALLBACK
#define near
#define far
#define small char
#define hyper hostile_hyper
#define interface struct
#define GetObject GetObjectA
#define GetMessage GetMessageA
#define SendMessage SendMessageA
#define CreateFile CreateFileA
#define DeleteFile DeleteFileA
#define GetCurrentTime hostile_GetCurrentTime
#define CopyFile CopyFileA
#define PutObject hostile_PutObject
// X11
#define None 0L
#define Success 0
#define Status int
#define Bool int
#define True 1
#define False 0
#define Always 2
#define Above 0
#define Below 1
#define KeyPress 2
#define Unsorted 0
#define CurrentTime 0L
#define Complex 0
// C libraries and systems
#define major hostile_major
#define minor hostile_minor
#define makedev hostile_makedev
#define _res hostile_res
#define unix 1
#undef linux
#define linux 1
#define h_addr hostile_h_addr
#define I hostile_I
#define B0 0000000
#define ECHO 0000010
#define DOMAIN 1
#define OVERFLOW 3
#define LOG_ERR 3
#define HUGE 3.40282347e+38F
// Qt and others
#define emit
#define slots
#define signals public
#define foreach hostile_foreach
#define YES 1
#define NO 0
#define likely hostile_likely
#define unlikely hostile_unlikely
#define DEBUG 1
#define debug hostile_debug

#include "s3cache.hpp"

int main() {
    auto cache = s3cache::Cache::try_open("bucket?endpoint=http://127.0.0.1:1");
    auto refused = s3cache::Cache::try_open("not a bucket");
    return refused ? 1 : cache || !cache.error().attempts() ? 0 : 1;
}
