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

  /// SentencePiece's byte fallback: `id` stands for one raw byte ("<0xE2>"). A run of such tokens is text only as a whole
  /// (StreamDecoder has the rule). False for byte-level vocabularies, all of whose tokens are raw bytes.
  virtual bool is_byte_fallback(TokenId) const noexcept { return false; }

  /// SentencePiece's dummy prefix: one blank at the very start of a decoded text was added by the encoder and is dropped.
  virtual bool drops_leading_space() const noexcept { return false; }

 protected:
  TokenText() = default;
  TokenText(const TokenText&) = default;
  TokenText& operator=(const TokenText&) = default;
};

}  // namespace nvl::inline NVL_ABI
