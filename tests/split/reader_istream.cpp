// For no_exceptions.sh: Reader::istream(), which a build without exceptions lacks, made of try_next() for the suite's sake.
#include "s3cache.hpp"

#include <istream>
#include <map>
#include <streambuf>

namespace {

class Pulled : public std::streambuf {
public:
    explicit Pulled(s3cache::Reader& reader) : reader_(reader) {}
    bool over() const { return over_; }

private:
    int_type underflow() override {
        const auto chunk = reader_.try_next();
        over_ = !chunk || chunk->empty();
        if (!chunk) throw chunk.error();  // the stream catches it, and is bad from then on
        if (chunk->empty()) return traits_type::eof();
        data_ = *chunk;
        setg(data_.data(), data_.data(), data_.data() + data_.size());
        return traits_type::to_int_type(data_.front());
    }

    s3cache::Reader& reader_;
    std::string data_{};
    bool over_ = false;
};

struct Stream {
    explicit Stream(s3cache::Reader& reader) : buffer(reader), in(&buffer) {}
    Pulled buffer;
    std::istream in;
};

}  // namespace

std::istream& s3cache::Reader::istream() {
    // One for each reader, until it has come to its end: the address is another's then.
    static std::map<const void*, std::unique_ptr<Stream>> streams;
    auto& stream = streams[state_.get()];
    if (!stream || stream->buffer.over()) stream = std::make_unique<Stream>(*this);
    return stream->in;
}
