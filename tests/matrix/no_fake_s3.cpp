// In the place of fake_s3.cpp where there is none (it is written for POSIX): the conformance suite then meets only the store that the
// environment names. What it calls of the fake is here, and never reached.
#include "fake_s3.hpp"

#include <cstdlib>  // abort
#include <stdexcept>

namespace fake_s3 {

struct FakeS3::Impl {};

FakeS3::FakeS3(Options) {
    throw std::runtime_error("no fake S3 on this system: name a store in S3CACHE_TEST_ENDPOINT");
}
FakeS3::~FakeS3() = default;
std::string FakeS3::endpoint() const { std::abort(); }
std::string FakeS3::host_endpoint() const { std::abort(); }
std::string FakeS3::access_key() const { std::abort(); }
std::string FakeS3::secret_key() const { std::abort(); }
std::string FakeS3::region() const { std::abort(); }
std::string FakeS3::ca_file() const { std::abort(); }
void FakeS3::create_bucket(const std::string&) { std::abort(); }
void FakeS3::erase_all() { std::abort(); }
void FakeS3::set_list_page_max(std::size_t) { std::abort(); }
std::size_t FakeS3::connection_count() const { std::abort(); }

}  // namespace fake_s3
