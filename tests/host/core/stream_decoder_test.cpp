#include <nvl/core/stream_decoder.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stream_decoder_test {

using namespace nvl;

namespace {

/// Tokens as they stand in a list; a leading '!' marks a special token and '#' a byte-fallback token.
class Words final : public TokenText {
 public:
  Words(std::vector<std::string> words, bool drops_space) : words_(std::move(words)), drops_space_(drops_space) {}
  std::string_view bytes(TokenId id) const noexcept override {
    if (id < 0 || static_cast<std::size_t>(id) >= words_.size()) { return {}; }
    std::string_view word = words_[static_cast<std::size_t>(id)];
    if (is_special(id) || is_byte_fallback(id)) { word.remove_prefix(1); }
    return word;
  }
  bool is_special(TokenId id) const noexcept override { return starts(id, '!'); }
  bool is_byte_fallback(TokenId id) const noexcept override { return starts(id, '#'); }
  bool drops_leading_space() const noexcept override { return drops_space_; }

 private:
  bool starts(TokenId id, char c) const noexcept {
    return id >= 0 && static_cast<std::size_t>(id) < words_.size() && words_[static_cast<std::size_t>(id)].starts_with(c);
  }
  std::vector<std::string> words_;
  bool drops_space_;
};

}  // namespace

TEST_CASE("a character split over tokens comes out whole with its last byte", "[core][host]") {
  const Words words({"a", "\xF0\x9F", "\x98", "\x80", "b"}, false);
  StreamDecoder decoder(words);
  CHECK(decoder.push(0) == "a");
  CHECK(decoder.push(1).empty());
  CHECK(decoder.holds_text());
  CHECK(decoder.push(2).empty());
  CHECK(decoder.push(3) == "\xF0\x9F\x98\x80");
  CHECK_FALSE(decoder.holds_text());
  CHECK(decoder.push(1).empty());
  CHECK(decoder.push(4) ==
        "\xEF\xBF\xBD"
        "b");
  CHECK(decoder.push(2) == "\xEF\xBF\xBD");
  CHECK(decoder.push(1).empty());
  CHECK(decoder.finish() == "\xEF\xBF\xBD");
  CHECK(decoder.finish().empty());
}

TEST_CASE("special tokens are left out or shown as asked, unknown ids add nothing and end nothing", "[core][host]") {
  const Words words({"!<end>", "\xC3", "\xA9"}, false);
  StreamDecoder skipping(words), showing(words, false);
  CHECK(skipping.push(0).empty());
  CHECK(showing.push(0) == "<end>");
  CHECK(skipping.push(1).empty());
  CHECK(skipping.push(0).empty());
  CHECK(skipping.push(-1).empty());
  CHECK(skipping.push(99).empty());
  CHECK(skipping.push(2) == "\xC3\xA9");
}

TEST_CASE("a run of byte-fallback tokens is text as a whole or not at all", "[core][host]") {
  const Words words({"#\xE4", "#\xB8", "#\xAD", "x", "#A"}, false);
  const std::string r = "\xEF\xBF\xBD";
  StreamDecoder decoder(words);
  CHECK(decoder.push(0).empty());
  CHECK(decoder.push(1).empty());
  CHECK(decoder.push(2).empty());
  CHECK(decoder.push(3) == "\xE4\xB8\xADx");
  CHECK(decoder.push(4).empty());
  CHECK(decoder.push(0).empty());
  CHECK(decoder.push(3) == r + r + "x");
  CHECK(decoder.push(0).empty());
  CHECK(decoder.finish() == r);
}

TEST_CASE("one blank at the very start is dropped for vocabularies that add one", "[core][host]") {
  const Words words({" a", "!s", "", "  b", "# "}, true);
  StreamDecoder decoder(words);
  CHECK(decoder.push(1).empty());
  CHECK(decoder.push(2).empty());
  CHECK(decoder.push(0) == "a");
  CHECK(decoder.push(0) == " a");
  CHECK(decoder.finish().empty());
  CHECK(decoder.push(3) == " b");  // a new sequence
  StreamDecoder bytes(words);
  CHECK(bytes.push(4).empty());
  CHECK(bytes.push(0) == " a");
  StreamDecoder showing(words, false);
  CHECK(showing.push(1) == "s");
  CHECK(showing.push(0) == " a");
}

}  // namespace stream_decoder_test
