#pragma once
/// What an engine needs to know of a vocabulary to turn ids into text. Tokenizers implement it; the engine links none.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <string_view>

namespace nvl::inline NVL_ABI {

class TokenText {
 public:
  virtual ~TokenText() = default;

  /// The bytes that `id` adds to a text; may be part of a UTF-8 character. Empty for ids outside the vocabulary.
  virtual std::string_view bytes(TokenId id) const noexcept = 0;

  /// Control tokens (end of sequence, chat markers), which produce no text when special tokens are skipped.
  virtual bool is_special(TokenId id) const noexcept = 0;

 protected:
  TokenText() = default;
  TokenText(const TokenText&) = default;
  TokenText& operator=(const TokenText&) = default;
};

}  // namespace nvl::inline NVL_ABI
