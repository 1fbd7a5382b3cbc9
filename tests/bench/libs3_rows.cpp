// What libs3 takes for the same work. Debian's 2.0 signs with Signature Version 2 and does not hash payloads.
//     libs3_rows WORK ENDPOINT COUNT       prints "CPU WALL MEMORY": seconds of an operation, MiB
#include "measure.hpp"

#include <libs3.h>  // the peer

#include <cstdint>  // sizes
#include <cstring>  // memcpy, strcmp
#include <utility>  // pair

namespace {

struct Transfer {
    S3Status status = S3StatusOK;
    std::string value{};
    std::uint64_t left = 0, received = 0;
    bool keep = true;
};

const std::string& block() {
    static const std::string data(std::size_t{1} << 20, 'x');
    return data;
}

S3Status on_properties(const S3ResponseProperties* properties, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    if (transfer.keep) transfer.value.reserve(static_cast<std::size_t>(properties->contentLength));
    return S3StatusOK;
}
void on_end(S3Status status, const S3ErrorDetails*, void* self) { static_cast<Transfer*>(self)->status = status; }
S3Status on_get(int size, const char* data, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    transfer.received += static_cast<std::uint64_t>(size);
    if (transfer.keep) transfer.value.append(data, static_cast<std::size_t>(size));
    return S3StatusOK;
}
int on_put(int size, char* buffer, void* self) {
    Transfer& transfer = *static_cast<Transfer*>(self);
    const std::uint64_t count =
        (std::min)({static_cast<std::uint64_t>(size), transfer.left, std::uint64_t{block().size()}});
    std::memcpy(buffer, block().data(), static_cast<std::size_t>(count));
    transfer.left -= count;
    return static_cast<int>(count);
}

bool get(const S3BucketContext& bucket, const std::string& key, std::uint64_t size, bool keep) {
    S3GetObjectHandler handler{{on_properties, on_end}, on_get};
    Transfer transfer;
    transfer.keep = keep;
    S3_get_object(&bucket, key.c_str(), nullptr, 0, 0, nullptr, &handler, &transfer);
    return transfer.status == S3StatusOK && transfer.received == size;
}

bool put(const S3BucketContext& bucket, const std::string& key, std::uint64_t size) {
    S3PutObjectHandler handler{{on_properties, on_end}, on_put};
    Transfer transfer;
    transfer.left = size;
    transfer.keep = false;
    S3_put_object(&bucket, key.c_str(), size, nullptr, nullptr, &handler, &transfer);
    return transfer.status == S3StatusOK;
}

bool remove(const S3BucketContext& bucket, const std::string& key) {
    S3ResponseHandler handler{on_properties, on_end};
    Transfer transfer;
    transfer.keep = false;
    S3_delete_object(&bucket, key.c_str(), nullptr, &handler, &transfer);
    return transfer.status == S3StatusOK;
}

bool once(const S3BucketContext& bucket, const std::string& work, std::size_t i, std::uint64_t stream_bytes) {
    const std::string turn = std::to_string(i % 64);
    if (work == "get-small") return get(bucket, "small/" + turn, 4096, true);
    if (work == "set-small") return put(bucket, "put/" + turn, 4096);
    if (work == "remove") return remove(bucket, "peer/" + std::to_string(i));
    if (work == "get-mib") return get(bucket, "mib", 1 << 20, true);
    if (work == "set-mib") return put(bucket, "put/mib", 1 << 20);
    if (work == "get-stream") return get(bucket, "stream", stream_bytes, false);
    return work == "set-stream" && put(bucket, "multi", stream_bytes);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || std::strncmp(argv[2], "http://", 7) != 0) return 64;
    const std::string work = argv[1], host = argv[2] + 7;
    const auto count = static_cast<std::size_t>(std::strtoull(argv[3], nullptr, 10));
    const char* stream = std::getenv("BENCH_STREAM_BYTES");
    const std::uint64_t stream_bytes = stream ? std::strtoull(stream, nullptr, 10) : std::uint64_t{1} << 30;
    if (S3_initialize("bench", S3_INIT_ALL, host.c_str()) != S3StatusOK) return 1;
    const S3BucketContext bucket{host.c_str(), "bench", S3ProtocolHTTP, S3UriStylePath, "x", "x"};
    for (std::size_t i = 0; work == "remove" && i < count + 1; ++i) put(bucket, "peer/" + std::to_string(i), 0);
    bool fine = count == 1 || once(bucket, work, count, stream_bytes);  // makes the connection
    const measure::Cost cost = measure::timed(count, [&] {
        for (std::size_t i = 0; i < count && fine; ++i) fine = once(bucket, work, i, stream_bytes);
    });
    S3_deinitialize();
    if (!fine) return 1;
    std::printf("%.9f %.9f %.3f\n", cost.cpu, cost.wall, measure::peak_memory_mib());
    return 0;
}
