// The one file that compiles the functions.
#define S3CACHE_IMPLEMENTATION
#include "s3cache.hpp"
