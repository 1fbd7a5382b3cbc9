// The header and nothing else: what including it costs, with S3CACHE_DECLARATIONS_ONLY and without.
#include "s3cache.hpp"
int main() {}
