// JSON. Held to: a reference of its own that reads by plain recursion and keeps a tree, for what is JSON and for the fields
// of an object; and every literal that is written here reads back.
#include "fuzz.hpp"

#include <utility>

namespace fuzz_json {

using fuzz::require;
namespace json = s3cache::detail::json;
namespace utf8 = s3cache::detail::utf8;

struct Literal {
    std::string text;
    bool readable = true;  // no half of a surrogate pair
};

struct Member {
    Literal name;
    char first = '\0';  // of its value
    Literal text;       // if that is a string
    std::string_view raw;
};

class Reference {
public:
    explicit Reference(std::string_view text) : text_(text) {}

    bool document() {
        blanks();
        is_object_ = at_ < text_.size() && text_[at_] == '{';
        if (!value(0, nullptr)) return false;
        blanks();
        return at_ == text_.size();
    }

    bool is_object() const { return is_object_; }
    const std::vector<Member>& members() const { return members_; }

private:
    void blanks() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    bool word(std::string_view wanted) {
        if (text_.substr(at_, wanted.size()) != wanted) return false;
        at_ += wanted.size();
        return true;
    }

    bool value(std::size_t depth, Literal* text) {
        blanks();
        Literal unused;
        switch (peek()) {
        case '{':
        case '[':
            return depth < json::depth_levels_max && container(depth, text_[at_++] == '{');
        case '"':
            return string(text ? *text : unused);
        case 't':
            return word("true");
        case 'f':
            return word("false");
        case 'n':
            return word("null");
        case 'N':
            return word("NaN");
        case 'I':
            return word("Infinity");
        default:
            return word("-Infinity") || number();
        }
    }

    bool container(std::size_t depth, bool object) {
        const char end = object ? '}' : ']';
        blanks();
        if (word(std::string_view(&end, 1))) return true;
        do {
            Member member;
            if (object && !name(member.name)) return false;
            blanks();
            const std::size_t begin = at_;
            member.first = peek();
            if (!value(depth + 1, &member.text)) return false;
            member.raw = text_.substr(begin, at_ - begin);
            if (depth == 0 && object) members_.push_back(std::move(member));
            blanks();
        } while (word(","));
        return word(std::string_view(&end, 1));
    }

    bool name(Literal& out) {
        blanks();
        if (!string(out)) return false;
        blanks();
        return word(":");
    }

    bool string(Literal& out) {
        if (!word("\"")) return false;
        std::vector<std::uint32_t> units;  // UTF-16 of what was escaped; the rest is copied
        while (at_ < text_.size()) {
            const char c = text_[at_++];
            if (c == '\\' && peek() == 'u') {
                ++at_;
                units.push_back(0);
                if (!hex(units.back())) return false;
                continue;
            }
            flush(units, out);
            if (c == '"') return true;
            if (static_cast<unsigned char>(c) < 0x20) return false;
            if (c != '\\') {
                out.text += c;
                continue;
            }
            const std::size_t letter = std::string_view("\"\\/bfnrt").find(peek());
            if (at_ == text_.size() || letter == std::string_view::npos) return false;
            out.text += "\"\\/\b\f\n\r\t"[letter];
            ++at_;
        }
        return false;
    }

    bool hex(std::uint32_t& unit) {
        for (int i = 0; i < 4; ++i) {
            const std::size_t digit = std::string_view("0123456789abcdefABCDEF").find(peek());
            if (at_ == text_.size() || digit == std::string_view::npos) return false;
            unit = unit * 16 + static_cast<std::uint32_t>(digit < 16 ? digit : digit - 6);
            ++at_;
        }
        return true;
    }

    static void flush(std::vector<std::uint32_t>& units, Literal& out) {
        for (std::size_t i = 0; i < units.size(); ++i) {
            std::uint32_t code = units[i];
            const bool high = code >= 0xD800 && code < 0xDC00;
            if (high && i + 1 < units.size() && units[i + 1] >= 0xDC00 && units[i + 1] < 0xE000) {
                code = 0x10000 + (code - 0xD800) * 0x400 + (units[++i] - 0xDC00);
            }
            if (code >= 0xD800 && code < 0xE000)
                out.readable = false;
            else
                utf8::append(out.text, code);
        }
        units.clear();
    }

    bool number() {
        word("-");
        const std::size_t begin = at_;
        const std::size_t whole = digits();
        if (whole == 0 || (whole > 1 && text_[begin] == '0')) return false;
        const std::size_t after_whole = at_;
        if (word(".") && digits() == 0) return false;
        if (word("e") || word("E")) {
            if (!word("+")) word("-");
            if (digits() == 0) return false;
        }
        return at_ != after_whole || whole <= json::integer_digits_max;
    }

    std::size_t digits() {
        const std::size_t begin = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ - begin;
    }

    std::string_view text_;
    std::size_t at_ = 0;
    bool is_object_ = false;
    std::vector<Member> members_;
};

inline void check_fields(std::string_view input, const Reference& reference, bool is_json) {
    std::vector<std::string> names = {"AccessKeyId", "Token", "", "a", "\xF0\x9F\x98\x80"};
    for (const Member& member : reference.members()) {
        if (names.size() < 16) names.push_back(member.name.text);
    }
    for (const std::string& name : names) {
        const Member* last = nullptr;
        for (const Member& member : reference.members()) {
            if (member.name.readable && member.name.text == name) last = &member;
        }
        if (!is_json || !reference.is_object()) last = nullptr;
        const auto text = json::string_field(input, name);
        const bool expected = last && last->first == '"' && last->text.readable;
        require(text.has_value() == expected && (!expected || *text == last->text.text), "the reference's string");
        require(json::member(input, name) == (last ? last->raw : std::string_view()), "the reference's member");
    }
}

// A string literal of any UTF-8 text, every other character escaped where that can be done with few letters.
inline std::string quoted(std::string_view text) {
    constexpr std::string_view controls = "\"\\/\b\f\n\r\t";
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view digits = "0123456789aBcDeF";
    std::string out = "\"";
    for (char c : text) {
        const std::size_t known = controls.find(c);
        if (known != std::string_view::npos)
            out.append(1, '\\').append(1, letters[known]);
        else if (utf8::octet(c) < 0x20 ||
                 (utf8::octet(c) > 0x20 && utf8::octet(c) < 0x80 && c % 2 != 0 && out.size() % 2 != 0))
            out.append("\\u00")
                .append(1, digits[static_cast<std::size_t>(c / 16)])
                .append(1, digits[static_cast<std::size_t>(c % 16)]);
        else
            out += c;
    }
    return out + '"';
}

inline void check_quoted(std::string_view input) {
    if (!utf8::valid(input)) return;
    const std::string literal = quoted(input);
    require(json::valid(literal), "a literal is JSON");
    const std::string object = "{\"a\":1," + literal + ":" + literal + "}";
    require(json::string_field(object, input) == std::string(input), "a literal reads back");
}

FUZZ_TARGET(json) {
    Reference reference(input);
    const bool is_json = utf8::valid(input) && reference.document();
    require(json::valid(input) == is_json, "JSON is what the reference reads");
    check_fields(input, reference, is_json);
    check_quoted(input);
}

}  // namespace fuzz_json
