// Section digest.
#include "s3cache.hpp"

#include "catch.hpp"
#include "vectors.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace digest = s3cache::detail::digest;
namespace bytes = s3cache::detail::bytes;

namespace {

template <class Digest>
std::string hex(const Digest& value) {
    return bytes::hex(digest::as_text(value));
}

template <class Word>
std::string base64(Word word) {
    return bytes::base64(digest::big_endian(word));
}

// Two cases of other people's files carry no bytes and only say in their name what the large body was. Taking the
// name at its word is safe: six checksums have to agree with it.
std::string body_of(const vectors::Case& c) {
    const std::string data = c.get("data_base64");
    if (data.empty() && c.name == "zero_5mib") return std::string(std::size_t{5} << 20, '\0');
    if (data.empty() && c.name == "a_66560") return std::string(66560, 'a');
    return data;
}

void check_checksums(const vectors::Case& c) {
    const std::string data = body_of(c);
    CHECK(base64(digest::crc32(0, data.data(), data.size())) == c.get("crc32"));
    CHECK(base64(digest::crc32c(0, data.data(), data.size())) == c.get("crc32c"));
    CHECK(base64(digest::crc32c_portable(0, data.data(), data.size())) == c.get("crc32c"));
    CHECK(base64(digest::crc64nvme(0, data.data(), data.size())) == c.get("crc64nvme"));
    CHECK(bytes::base64(digest::as_text(digest::sha256(data))) == c.get("sha256"));
    if (const auto md5 = digest::md5(data); !md5.empty()) CHECK(bytes::base64(md5) == c.get("md5"));
}

const vectors::Handler checksum_vectors{
    "checksums", {"data_base64", "crc32", "crc32c", "crc64nvme", "md5", "sha1", "sha256"}, check_checksums};

std::string noise(std::size_t size) {
    std::string out;
    std::uint32_t state = 12345;
    while (out.size() < size) {
        state = state * 1664525 + 1013904223;
        out += static_cast<char>(state >> 24);
    }
    return out;
}

}  // namespace

TEST_CASE("digest: SHA-256 of nothing and of abc") {
    CHECK(hex(digest::sha256("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hex(digest::sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("digest: one hasher serves any number of digests, in pieces or whole") {
    digest::Sha256 hasher;
    const std::string data = noise(1000);
    for (std::size_t cut = 0; cut <= data.size(); cut += 37) {
        hasher.update(std::string_view(data).substr(0, cut));
        hasher.update({});
        hasher.update(std::string_view(data).substr(cut));
        CHECK(hasher.finish() == digest::sha256(data));
    }
}

TEST_CASE("digest: MD5 of nothing and of abc, where OpenSSL has it") {
    if (const auto md5 = digest::md5(""); !md5.empty()) CHECK(bytes::hex(md5) == "d41d8cd98f00b204e9800998ecf8427e");
    if (const auto md5 = digest::md5("abc"); !md5.empty()) CHECK(bytes::hex(md5) == "900150983cd24fb0d6963f7d28e17f72");
}

TEST_CASE("digest: without SHA-256 nothing passes for one, and an object works once it is there") {
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
    const digest::Sha256Digest of_abc = digest::sha256("abc");
    digest::Sha256 hasher;
    REQUIRE(EVP_set_default_properties(nullptr, "provider=none") == 1);  // as where no provider has it
    const auto throws = [](auto&& call) {
        try {
            static_cast<void>(call());
        } catch (const std::bad_alloc&) {
            return true;
        }
        return false;
    };
    const bool refused = throws([] { return digest::sha256({}); });
    const bool refused_update = throws([&] { return hasher.update("abc"), 0; });
    const bool refused_finish = throws([&] { return hasher.finish(); });
    const auto md5 = digest::md5("abc");
    REQUIRE(EVP_set_default_properties(nullptr, "") == 1);
    CHECK((refused && refused_update && refused_finish));
    CHECK(md5.empty());
    hasher.update("abc");
    CHECK(hasher.finish() == of_abc);
#endif
}

TEST_CASE("digest: what was begun is forgotten where a hasher is taken afresh") {
    digest::Sha256 hasher;
    hasher.update("what somebody has left");
    CHECK(hasher.afresh().finish() == digest::sha256(""));
    hasher.afresh().update("abc");
    CHECK(hasher.finish() == digest::sha256("abc"));
}

TEST_CASE("digest: HMAC-SHA-256 has the vectors of RFC 4231") {
    CHECK(hex(digest::Sha256().hmac(std::string(20, '\x0b'), "Hi There")) ==
          "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    CHECK(hex(digest::Sha256().hmac("Jefe", "what do ya want for nothing?")) ==
          "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    CHECK(hex(digest::Sha256().hmac(std::string(20, '\xaa'), std::string(50, '\xdd'))) ==
          "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    CHECK(hex(digest::Sha256().hmac(std::string(131, '\xaa'),
                                    "Test Using Larger Than Block-Size Key - Hash Key First")) ==
          "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    CHECK(hex(digest::Sha256().hmac("", "")) == "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

TEST_CASE("digest: one hasher makes HMACs and digests in turn") {
    digest::Sha256 hasher;
    const auto expected = hasher.hmac("Jefe", "what do ya want for nothing?");
    CHECK(hasher.hmac("Jefe", "other") != expected);
    hasher.update("abc");
    CHECK(hasher.finish() == digest::sha256("abc"));
    CHECK(hasher.hmac("Jefe", "what do ya want for nothing?") == expected);
}

TEST_CASE("digest: CRC-32C is the same by table and by instruction, at any length and alignment") {
    const std::string data = noise(4 * 3 * 1024 + 100);
    std::size_t wrong = 0;
    for (std::size_t size = 0; size <= data.size(); size += size < 200 ? 1 : 41) {
        const char* begin = data.data() + size % 8 * (size < data.size() - 8 ? 1 : 0);
        const std::uint32_t expected = digest::crc32c_portable(0x1234ABCD, begin, size);
        wrong += digest::crc32c(0x1234ABCD, begin, size) == expected ? 0U : 1U;
    }
    CHECK(wrong == 0);
    CHECK(digest::crc32c(0, data.data(), data.size()) == digest::crc32c_portable(0, data.data(), data.size()));
}

TEST_CASE("digest: checksums go on where they stopped") {
    const std::string data = noise(10000);
    for (std::size_t cut : {0U, 1U, 7U, 8U, 9U, 1023U, 3072U, 9999U, 10000U}) {
        const char* rest = data.data() + cut;
        const std::size_t left = data.size() - cut;
        INFO(cut);
        CHECK(digest::crc32(digest::crc32(0, data.data(), cut), rest, left) ==
              digest::crc32(0, data.data(), data.size()));
        CHECK(digest::crc32c(digest::crc32c(0, data.data(), cut), rest, left) ==
              digest::crc32c_portable(0, data.data(), data.size()));
        CHECK(digest::crc64nvme(digest::crc64nvme(0, data.data(), cut), rest, left) ==
              digest::crc64nvme(0, data.data(), data.size()));
    }
}

TEST_CASE("digest: check values of the catalogue of CRCs") {
    const std::string check = "123456789";
    CHECK(digest::crc32(0, check.data(), check.size()) == 0xCBF43926U);
    CHECK(digest::crc32c(0, check.data(), check.size()) == 0xE3069283U);
    CHECK(digest::crc64nvme(0, check.data(), check.size()) == 0xAE8B14860A799888U);
    CHECK(base64(std::uint32_t{0x01020304}) == "AQIDBA==");
}
