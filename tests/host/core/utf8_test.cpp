#include <nvl/core/utf8.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace utf8_test {

using namespace nvl;

TEST_CASE("every code point survives being written and read, surrogates and larger numbers become U+FFFD", "[core][host]") {
  for (char32_t c = 0; c < 0x110400; ++c) {
    std::string text;
    append_utf8(text, c);
    const Utf8Char read = read_utf8(text, 0);
    const bool scalar = c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
    if (!read.valid || read.length != text.size() || read.code_point != (scalar ? c : replacement_character)) {
      CAPTURE(static_cast<unsigned>(c));
      FAIL("code point read back differently");
    }
  }
}

TEST_CASE("invalid UTF-8 is replaced as Unicode and the WHATWG say, one U+FFFD for each maximal part", "[core][host]") {
  const std::string r(replacement_utf8);
  struct Case {
    std::string_view in;
    std::string out;
  };
  // Unicode 16 tables 3-8 to 3-11, and the ends of each range.
  const std::vector<Case> cases{
      {"plain \xC3\xA9", "plain \xC3\xA9"},
      {"\x80", r},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
       "A",
       r + r + r + r + r + r + r + r + "A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
       "A",
       r + r + r + r + r + r + r + r + "A"},
      {"\xF4\x91\x92\x93\xFF"
       "A\x80\xBF"
       "B",
       r + r + r + r + r + "A" + r + r + "B"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
       "A",
       r + r + r + r + "A"},
      {"a\xE4\xB8", "a" + r},
      {"\xF0\x9F\x98", r},
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
      {"\xF4\x90\x80\x80", r + r + r + r},
      {"\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80", "\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80"},
      {std::string_view("\0\xC3", 2), std::string(1, '\0') + r},
  };
  for (const Case& c : cases) {
    CAPTURE(c.in.size(), c.out);
    CHECK(replace_invalid_utf8(c.in) == c.out);
    CHECK(is_valid_utf8(c.in) == (c.in == c.out));
    CHECK(is_valid_utf8(c.out));
  }
}

TEST_CASE("only a character that more bytes can complete counts as unfinished", "[core][host]") {
  CHECK(unfinished_utf8_suffix("") == 0);
  CHECK(unfinished_utf8_suffix("a") == 0);
  CHECK(unfinished_utf8_suffix("\xC3") == 1);
  CHECK(unfinished_utf8_suffix("a\xE4\xB8") == 2);
  CHECK(unfinished_utf8_suffix("\xF0\x9F\x98") == 3);
  CHECK(unfinished_utf8_suffix("\xF0\x9F\x98\x80") == 0);
  CHECK(unfinished_utf8_suffix("\xC0") == 0);
  CHECK(unfinished_utf8_suffix("\xE0\x80") == 0);
  CHECK(unfinished_utf8_suffix("\xED\xA0") == 0);
  CHECK(unfinished_utf8_suffix("\x80\x80\x80") == 0);
  CHECK(unfinished_utf8_suffix("\xE4\xE4") == 1);
  CHECK(count_code_points("a\xC3\xA9\xF0\x9F\x98\x80") == 3);
}

TEST_CASE("white space is Unicode's property, without U+180E and U+200B", "[core][host]") {
  const std::vector<char32_t> spaces{9,      10,     11,     12,     13,     32,     0x85,   0xA0,
                                     0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  for (const char32_t c : spaces) { CHECK(is_white_space(c)); }
  for (const char32_t c : {U'a', U'\x1C', U'\x180E', U'\x200B', U'\xFEFF', U'\x200D'}) { CHECK_FALSE(is_white_space(c)); }
}

}  // namespace utf8_test
