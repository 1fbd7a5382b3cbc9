// What the files of a program that uses the cache in several of them share.
#pragma once
#include "s3cache.hpp"

#include <cstdlib>
#include <string>

namespace use {

inline s3cache::Result<s3cache::Cache> open() {
    const auto set = [](const char* name, const char* otherwise) {
        const char* value = std::getenv(name);
        return std::string(value && *value ? value : otherwise);
    };
    s3cache::Config config;
    config.endpoint = set("S3CACHE_TEST_ENDPOINT", "http://127.0.0.1:1");
    config.ca_bundle = set("S3CACHE_TEST_CA", "");
    return s3cache::Cache::try_open("s3://" + set("S3CACHE_TEST_BUCKET", "bucket") + "/split", config);
}

// Defined in b.cpp: a Cache made in one file is used in another.
bool works_elsewhere(s3cache::Cache& cache);

}  // namespace use
