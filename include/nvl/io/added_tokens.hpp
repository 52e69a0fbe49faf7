#pragma once
/// Tokens that are found in a text as they are spelled, before anything else looks at it: chat markers and other added tokens.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/utf8.hpp>

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct AddedToken {
  TokenId id = -1;
  std::string content;
  bool special = false;      // a control token: skipped in output, not parsed where special text is plain text
  bool normalized = false;   // looked for in the normalized text, not in the original
  bool left_strip = false;   // takes the white space before it along
  bool right_strip = false;  // takes the white space after it along
  bool single_word = false;  // only where no word character touches it
};

/// One part of a text: a token, or text (id < 0).
struct TextSegment {
  TokenId id = -1;
  std::size_t begin = 0, end = 0;  // [bytes]
};

/// Finds added tokens in one pass: leftmost first, the longest of those that begin together. Immutable after building.
/// Time is bytes of text times the longest content, which is bounded.
class AddedTokenMatcher {
 public:
  static constexpr std::size_t max_content_bytes = 1024;

  /// `tokens` have non-empty content of at most max_content_bytes; of two with the same content the first counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens = {}) : tokens_(std::move(tokens)) {
    nodes_.push_back({});
    for (std::size_t i = 0; i < tokens_.size(); ++i) { insert(tokens_[i].content, static_cast<std::int32_t>(i)); }
  }

  bool empty() const noexcept { return tokens_.empty(); }

  /// Cuts `text` (well-formed UTF-8) into tokens and the text between them. With `special_as_text`, special tokens count as text.
  std::vector<TextSegment> split(std::string_view text, bool special_as_text) const {
    std::vector<TextSegment> segments;
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size() && !tokens_.empty();) {
      const std::int32_t found = longest_at(text, at);
      if (found < 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[static_cast<std::size_t>(found)];
      std::size_t begin = at;
      std::size_t end = at + token.content.size();
      at = end;
      if (special_as_text && token.special) { continue; }
      if (token.single_word && (word_before(text, begin) || word_after(text, end))) { continue; }
      if (token.left_strip) { begin = std::max(done, space_start(text, begin)); }
      if (token.right_strip) { end = space_end(text, end); }
      if (done < begin) { segments.push_back({-1, done, begin}); }
      segments.push_back({token.id, begin, end});
      done = end;
    }
    if (done < text.size()) { segments.push_back({-1, done, text.size()}); }
    return segments;
  }

 private:
  struct Node {
    std::int32_t first_child = -1, sibling = -1, token = -1;
    unsigned char byte = 0;
  };

  std::int32_t child(std::int32_t node, unsigned char byte) const noexcept {
    std::int32_t c = nodes_[static_cast<std::size_t>(node)].first_child;
    while (c >= 0 && nodes_[static_cast<std::size_t>(c)].byte != byte) { c = nodes_[static_cast<std::size_t>(c)].sibling; }
    return c;
  }

  void insert(std::string_view content, std::int32_t token) {
    std::int32_t node = 0;
    for (const char c : content) {
      const auto byte = static_cast<unsigned char>(c);
      std::int32_t next = child(node, byte);
      if (next < 0) {
        next = static_cast<std::int32_t>(nodes_.size());
        nodes_.push_back({-1, nodes_[static_cast<std::size_t>(node)].first_child, -1, byte});
        nodes_[static_cast<std::size_t>(node)].first_child = next;
        if (node == 0) { roots_[byte] = next; }
      }
      node = next;
    }
    Node& last = nodes_[static_cast<std::size_t>(node)];
    if (last.token < 0) { last.token = token; }
  }

  std::int32_t longest_at(std::string_view text, std::size_t at) const noexcept {
    std::int32_t best = -1;
    std::int32_t node = roots_[static_cast<unsigned char>(text[at])];
    for (std::size_t i = at; node >= 0;) {
      if (nodes_[static_cast<std::size_t>(node)].token >= 0) { best = nodes_[static_cast<std::size_t>(node)].token; }
      if (++i == text.size()) { break; }
      node = child(node, static_cast<unsigned char>(text[i]));
    }
    return best;
  }

  /// The start of the character that ends at `end` > 0.
  static std::size_t character_start(std::string_view text, std::size_t end) noexcept {
    std::size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) { --at; }
    return at;
  }

  static std::size_t space_start(std::string_view text, std::size_t end) noexcept {
    std::size_t at = end;
    while (at > 0 && is_white_space(read_utf8(text, character_start(text, at)).code_point)) { at = character_start(text, at); }
    return at;
  }

  static std::size_t space_end(std::string_view text, std::size_t begin) noexcept {
    std::size_t at = begin;
    while (at < text.size() && is_white_space(read_utf8(text, at).code_point)) { at += read_utf8(text, at).length; }
    return at;
  }

  /// A character of \w: letters, marks, decimal digits, letter numbers, connectors and the two joiners (UTS #18, annex C).
  static bool is_word(char32_t c) noexcept {
    switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
      case UTF8PROC_CATEGORY_LU:
      case UTF8PROC_CATEGORY_LL:
      case UTF8PROC_CATEGORY_LT:
      case UTF8PROC_CATEGORY_LM:
      case UTF8PROC_CATEGORY_LO:
      case UTF8PROC_CATEGORY_MN:
      case UTF8PROC_CATEGORY_MC:
      case UTF8PROC_CATEGORY_ME:
      case UTF8PROC_CATEGORY_ND:
      case UTF8PROC_CATEGORY_NL:
      case UTF8PROC_CATEGORY_PC: return true;
      default: break;
    }
    const bool circled_letter = (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
                                (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
    return circled_letter || c == 0x200C || c == 0x200D;
  }

  static bool word_before(std::string_view text, std::size_t at) noexcept {
    return at > 0 && is_word(read_utf8(text, character_start(text, at)).code_point);
  }
  static bool word_after(std::string_view text, std::size_t at) noexcept {
    return at < text.size() && is_word(read_utf8(text, at).code_point);
  }

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<std::int32_t, 256> roots_ = [] {
    std::array<std::int32_t, 256> none{};
    none.fill(-1);
    return none;
  }();
};

}  // namespace nvl::inline NVL_ABI
