// The one file that compiles the functions, which had the declarations through another header before.
#include "use.hpp"
#define S3CACHE_IMPLEMENTATION
#include "s3cache.hpp"
#include "s3cache.hpp"
