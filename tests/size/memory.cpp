// What one get and one set of 4 KiB cost in memory: heap by whose it is, stack, descriptors. tests/size.sh runs it against
// a fake S3 in another process: S3CACHE_TEST_ENDPOINT and the AWS_* variables name it.
// Every line printed is `name value unit`.
//
// Heap is told apart without a look at call stacks: libcurl and OpenSSL take the allocators they are given, and the C++
// code allocates by operator new. What the C library allocates for itself (name resolution) is in none of the three.
#include "s3cache.hpp"

#include <dirent.h>   // open descriptors
#include <pthread.h>  // a thread on a stack of our own

#include <atomic>   // counts
#include <cstdio>   // the lines
#include <cstdlib>  // malloc
#include <cstring>  // memset
#include <new>      // the operators replaced

namespace {

struct Heap {
    const char* name;
    std::atomic<std::size_t> count{0}, now{0}, high{0};

    void took(std::size_t size) {
        ++count;
        const std::size_t total = now += size;
        if (total > high) high = total;  // one thread works at a time here
    }
    void begin() {
        count = 0;
        high = now.load();
    }
};

Heap own{"own"}, curl{"libcurl"}, openssl{"OpenSSL"};

// The size stands before the block.
constexpr std::size_t head = alignof(std::max_align_t) < 16 ? 16 : alignof(std::max_align_t);

void* take(Heap& heap, std::size_t size) {
    char* block = static_cast<char*>(std::malloc(size + head));
    if (!block) return nullptr;
    std::memcpy(block, &size, sizeof size);
    heap.took(size);
    return block + head;
}
std::size_t size_of(void* block) {
    std::size_t size = 0;
    std::memcpy(&size, static_cast<char*>(block) - head, sizeof size);
    return size;
}
void give(Heap& heap, void* block) {
    if (!block) return;
    heap.now -= size_of(block);
    std::free(static_cast<char*>(block) - head);
}
void* change(Heap& heap, void* block, std::size_t size) {
    void* other = take(heap, size);
    if (!other || !block) return other;
    std::memcpy(other, block, (std::min)(size, size_of(block)));
    give(heap, block);
    return other;
}

void* for_curl_malloc(std::size_t size) { return take(curl, size); }
void for_curl_free(void* block) { give(curl, block); }
void* for_curl_realloc(void* block, std::size_t size) { return change(curl, block, size); }
void* for_curl_calloc(std::size_t count, std::size_t size) {
    void* block = take(curl, count * size);
    return block ? std::memset(block, 0, count * size) : nullptr;
}
char* for_curl_strdup(const char* text) {
    const std::size_t size = std::strlen(text) + 1;
    void* block = take(curl, size);
    return block ? static_cast<char*>(std::memcpy(block, text, size)) : nullptr;
}
void* for_openssl_malloc(std::size_t size, const char*, int) { return take(openssl, size); }
void* for_openssl_realloc(void* block, std::size_t size, const char*, int) { return change(openssl, block, size); }
void for_openssl_free(void* block, const char*, int) { give(openssl, block); }

int descriptors() {
    int count = 0;
    DIR* folder = opendir("/proc/self/fd");
    if (!folder) return -1;
    while (readdir(folder)) ++count;
    closedir(folder);
    return count - 3;  // ".", "..", and the folder itself
}

template <class Work>
bool measured(const char* name, Work&& work) {
    std::size_t before[3];
    Heap* const heaps[] = {&own, &curl, &openssl};
    for (int i = 0; i < 3; ++i) {
        heaps[i]->begin();
        before[i] = heaps[i]->now;
    }
    const bool well = work();
    for (int i = 0; i < 3; ++i) {
        std::printf("%s.%s.high %zu bytes\n", name, heaps[i]->name, heaps[i]->high.load());
        std::printf("%s.%s.more %zu bytes\n", name, heaps[i]->name, heaps[i]->high - before[i]);
        std::printf("%s.%s.count %zu allocations\n", name, heaps[i]->name, heaps[i]->count.load());
    }
    return well;
}

bool set(s3cache::Cache& cache, const std::string& value) {
    return cache.try_set("size", value, {std::chrono::hours(1)}).value_or(false);
}
bool get(s3cache::Cache& cache, const std::string& value) {
    const auto hit = cache.try_get("size");
    return hit && *hit && (*hit)->view() == value;
}

bool heap_and_descriptors(const char* label, const s3cache::Config& config) {
    const std::string value(4096, 'v');
    const std::string name = label;
    const int before = descriptors();
    bool well = false;
    {
        std::optional<s3cache::Cache> cache;
        well = measured((name + ".open").c_str(), [&] {
            auto opened = s3cache::Cache::try_open("bucket", config);
            if (!opened) return std::fprintf(stderr, "memory: %s\n", opened.error().what()), false;
            cache.emplace(*std::move(opened));
            return true;
        });
        well = well && measured((name + ".first_set").c_str(), [&] { return set(*cache, value); }) &&
               measured((name + ".first_get").c_str(), [&] { return get(*cache, value); }) &&
               measured((name + ".set").c_str(), [&] { return set(*cache, value); }) &&
               measured((name + ".get").c_str(), [&] { return get(*cache, value); });
        std::printf("%s.open.descriptors %d descriptors\n", label, descriptors() - before);
    }
    std::printf("%s.closed.descriptors %d descriptors\n", label, descriptors() - before);
    std::printf("%s.closed.own %zu bytes\n", label, own.now.load());
    return well;
}

// ---- the stack: painted, then looked at

constexpr std::size_t stack_bytes = std::size_t{1} << 20;
constexpr unsigned char paint = 0xA5;
alignas(4096) unsigned char stack[stack_bytes];

struct Job {
    s3cache::Cache* cache;
    bool set = false, get = false, well = false;
};

void* run(void* argument) {
    Job& job = *static_cast<Job*>(argument);
    const std::string value(4096, 'v');
    job.well = (!job.set || set(*job.cache, value)) && (!job.get || get(*job.cache, value));
    return nullptr;
}

bool deepest(const char* name, Job job) {
    std::memset(stack, paint, sizeof stack);
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, stack_bytes) != 0)
        return false;
    if (pthread_create(&thread, &attributes, run, &job) != 0 || pthread_join(thread, nullptr) != 0) return false;
    std::size_t untouched = 0;
    while (untouched < stack_bytes && stack[untouched] == paint) ++untouched;
    std::printf("stack.%s %zu bytes\n", name, stack_bytes - untouched);
    return job.well;
}

bool stack_depth(const s3cache::Config& config) {
    auto cache = s3cache::Cache::try_open("bucket", config);
    if (!cache) return false;
    return deepest("thread", Job{&*cache, false, false}) && deepest("set", Job{&*cache, true, false}) &&
           deepest("get", Job{&*cache, false, true});
}

}  // namespace

void* operator new(std::size_t size) {
    if (void* block = take(own, size)) return block;
    std::abort();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return take(own, size); }
void* operator new[](std::size_t size) { return ::operator new(size); }
void operator delete(void* block) noexcept { give(own, block); }
void operator delete[](void* block) noexcept { give(own, block); }
void operator delete(void* block, std::size_t) noexcept { give(own, block); }
void operator delete[](void* block, std::size_t) noexcept { give(own, block); }

int main() {
    if (CRYPTO_set_mem_functions(for_openssl_malloc, for_openssl_realloc, for_openssl_free) != 1) return 1;
    if (curl_global_init_mem(CURL_GLOBAL_DEFAULT, for_curl_malloc, for_curl_free, for_curl_realloc, for_curl_strdup,
                             for_curl_calloc) != CURLE_OK) {
        return 1;
    }
    const char* endpoint = std::getenv("S3CACHE_TEST_ENDPOINT");
    if (!endpoint) return std::fprintf(stderr, "memory: S3CACHE_TEST_ENDPOINT names no store\n"), 64;
    s3cache::Config config;
    config.endpoint = endpoint;
    const bool plain = heap_and_descriptors("config", config);
    s3cache::Config small = s3cache::small_memory();
    small.endpoint = endpoint;
    return plain && heap_and_descriptors("small", small) && stack_depth(small) ? 0 : 1;
}
