// The one file that holds the functions where S3CACHE_DECLARATIONS_ONLY is defined for all.
#define S3CACHE_IMPLEMENTATION
#include "s3cache.hpp"
