#pragma once
/// UTF-8: reading one character, validity, replacement of invalid bytes, and the unfinished character at the end of a stream.
/// Well-formed sequences are those of Unicode 16, table 3-7 (no overlong forms, no surrogates, nothing above U+10FFFF).

#include <nvl/core/config.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nvl::inline NVL_ABI {

inline constexpr char32_t replacement_character = 0xFFFD;
inline constexpr std::string_view replacement_utf8 = "\xEF\xBF\xBD";

/// What stands at one position of a byte string.
struct Utf8Char {
  char32_t code_point = replacement_character;
  std::uint8_t length = 0;  // [bytes] of the character, or of the invalid part that one U+FFFD stands for; at least 1
  bool valid = false;
  bool truncated = false;  // not valid only because the string ends: more bytes could complete it
};

/// Reads the character at `pos` (below text.size()). An invalid sequence is taken up to, not including, the first byte that
/// cannot continue it ("maximal subpart", Unicode 16 §3.9), so replacing each such part by U+FFFD gives what browsers,
/// Python and Rust give.
constexpr Utf8Char read_utf8(std::string_view text, std::size_t pos) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(pos);
  if (lead < 0x80) { return {lead, 1, true, false}; }
  if (lead < 0xC2 || lead > 0xF4) { return {replacement_character, 1, false, false}; }
  const int continuation = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  // Only the second byte has a range of its own; it excludes overlong forms, surrogates and what is above U+10FFFF.
  std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0x3Fu >> continuation);
  for (int i = 1; i <= continuation; ++i) {
    const std::size_t at = pos + static_cast<std::size_t>(i);
    if (at >= text.size()) { return {replacement_character, static_cast<std::uint8_t>(i), false, true}; }
    if (byte(at) < low || byte(at) > high) { return {replacement_character, static_cast<std::uint8_t>(i), false, false}; }
    code_point = (code_point << 6) | (byte(at) & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, static_cast<std::uint8_t>(continuation + 1), true, false};
}

/// [bytes] of the longest prefix that is well-formed.
constexpr std::size_t valid_utf8_prefix(std::string_view text) noexcept {
  std::size_t pos = 0;
  while (pos < text.size()) {
    if (static_cast<std::uint8_t>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Utf8Char c = read_utf8(text, pos);
    if (!c.valid) { break; }
    pos += c.length;
  }
  return pos;
}

constexpr bool is_valid_utf8(std::string_view text) noexcept { return valid_utf8_prefix(text) == text.size(); }

/// Appends the UTF-8 form of `code_point`; what is no Unicode scalar value becomes U+FFFD.
inline void append_utf8(std::string& out, char32_t code_point) {
  char32_t c = code_point;
  if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) { c = replacement_character; }
  const auto put = [&](char32_t value) { out.push_back(static_cast<char>(static_cast<unsigned char>(value))); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

/// Appends `text` with every invalid part replaced by U+FFFD.
inline void append_with_replacement(std::string& out, std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::size_t good = valid_utf8_prefix(rest);
    out.append(rest.substr(0, good));
    rest.remove_prefix(good);
    if (rest.empty()) { break; }
    out.append(replacement_utf8);
    rest.remove_prefix(read_utf8(rest, 0).length);
  }
}

inline std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  append_with_replacement(out, text);
  return out;
}

/// [bytes] at the end of `text` that begin a character which later bytes may complete; 0 to 3.
constexpr std::size_t unfinished_utf8_suffix(std::string_view text) noexcept {
  const std::size_t longest = text.size() < 3 ? text.size() : 3;
  for (std::size_t n = longest; n > 0; --n) {
    const Utf8Char c = read_utf8(text, text.size() - n);
    if (c.truncated && c.length == n) { return n; }
  }
  return 0;
}

/// Unicode's property White_Space.
constexpr bool is_white_space(char32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// [characters] in a well-formed text.
constexpr std::size_t count_code_points(std::string_view text) noexcept {
  std::size_t count = 0;
  for (const char c : text) { count += (static_cast<std::uint8_t>(c) & 0xC0) != 0x80 ? 1u : 0u; }
  return count;
}

}  // namespace nvl::inline NVL_ABI
