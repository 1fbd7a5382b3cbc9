// Preloaded in front of OpenSSL 3: one that refuses a digest, as a FIPS configuration does. S3CACHE_REFUSE names it ("MD5").
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

#include <openssl/evp.h>

namespace {
bool refused(const EVP_MD* digest) {
    const char* name = std::getenv("S3CACHE_REFUSE");
    return digest && name && EVP_MD_is_a(digest, name) == 1;
}
}  // namespace

extern "C" {

int EVP_DigestInit_ex(EVP_MD_CTX* context, const EVP_MD* digest, ENGINE* engine) {
    using Function = int (*)(EVP_MD_CTX*, const EVP_MD*, ENGINE*);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "EVP_DigestInit_ex"));
    return refused(digest) ? 0 : real(context, digest, engine);
}
int EVP_DigestInit_ex2(EVP_MD_CTX* context, const EVP_MD* digest, const OSSL_PARAM* parameters) {
    using Function = int (*)(EVP_MD_CTX*, const EVP_MD*, const OSSL_PARAM*);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "EVP_DigestInit_ex2"));
    return refused(digest) ? 0 : real(context, digest, parameters);
}
int EVP_DigestInit(EVP_MD_CTX* context, const EVP_MD* digest) {
    using Function = int (*)(EVP_MD_CTX*, const EVP_MD*);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "EVP_DigestInit"));
    return refused(digest) ? 0 : real(context, digest);
}
int EVP_Digest(const void* data, size_t size, unsigned char* out, unsigned* length, const EVP_MD* digest,
               ENGINE* engine) {
    using Function = int (*)(const void*, size_t, unsigned char*, unsigned*, const EVP_MD*, ENGINE*);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "EVP_Digest"));
    return refused(digest) ? 0 : real(data, size, out, length, digest, engine);
}
}
