#pragma once
/// Byte-level BPE (GPT-2 and its descendants): a piece starts as its bytes, each a token, and merges join them.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/bpe_merges.hpp>
#include <nvl/io/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// The printable characters by which files of byte-level vocabularies write bytes (`bytes_to_unicode` of the GPT-2 release):
/// bytes that print as Latin-1 stand for themselves, the other 68 for U+0100, U+0101, ... in order.
class ByteAlphabet {
 public:
  static constexpr int characters = 0x144;  // code points from U+0000 to U+0143 that the alphabet may use

  /// The byte that `code_point` stands for, or -1.
  static constexpr int byte_of(char32_t code_point) noexcept { return code_point < characters ? bytes_[code_point] : -1; }

  /// The bytes that `text` stands for; nothing if it holds a character outside the alphabet or is not UTF-8.
  static std::optional<std::string> decode(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t pos = 0; pos < text.size();) {
      const Utf8Char c = read_utf8(text, pos);
      const int byte = c.valid ? byte_of(c.code_point) : -1;
      if (byte < 0) { return std::nullopt; }
      out.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
      pos += c.length;
    }
    return out;
  }

 private:
  static constexpr auto bytes_ = [] {
    std::array<std::int16_t, characters> table{};
    table.fill(-1);
    std::int16_t next = 0x100;
    for (std::int16_t b = 0; b < 256; ++b) {
      const bool prints = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      table[static_cast<std::size_t>(prints ? b : next++)] = b;
    }
    return table;
  }();
};

/// Immutable; the vocabulary that is passed to encode() is the one it was built for.
class ByteLevelBpe {
 public:
  struct Options {
    bool whole_pieces_first = false;   // a piece that is a token is taken as such before any merge ("ignore_merges")
    std::optional<TokenId> unknown;    // for a byte without a token; without it such bytes are dropped, as Hugging Face does
    bool fuse_unknown = false;         // one unknown token for a run of such bytes
    std::vector<TokenId> never_whole;  // control tokens: a piece that spells one does not become it
  };

  /// The vocabulary's index must hold every token that pieces may become.
  ByteLevelBpe(const Vocabulary& vocabulary, MergeTable merges, Options options)
      : merges_(std::move(merges)),
        options_(std::move(options)) {
    std::sort(options_.never_whole.begin(), options_.never_whole.end());
    for (std::size_t b = 0; b < byte_tokens_.size(); ++b) {
      const char byte = static_cast<char>(static_cast<unsigned char>(b));
      byte_tokens_[b] = vocabulary.find(std::string_view(&byte, 1)).value_or(-1);
      num_missing_bytes_ += byte_tokens_[b] < 0 ? 1 : 0;
    }
  }

  /// Of the 256 bytes, how many have no token.
  int num_missing_bytes() const noexcept { return num_missing_bytes_; }

  /// Appends the ids of one pre-tokenized piece.
  void encode(std::string_view piece, const Vocabulary& vocabulary, std::vector<TokenId>& out) const {
    if (options_.whole_pieces_first) {
      const auto id = vocabulary.find(piece);
      if (id && !std::binary_search(options_.never_whole.begin(), options_.never_whole.end(), *id)) {
        out.push_back(*id);
        return;
      }
    }
    std::vector<TokenId> symbols;
    symbols.reserve(piece.size());
    bool after_unknown = false;
    for (const char c : piece) {
      const TokenId id = byte_tokens_[static_cast<unsigned char>(c)];
      if (id >= 0) {
        symbols.push_back(id);
      } else if (options_.unknown && !(options_.fuse_unknown && after_unknown)) {
        symbols.push_back(*options_.unknown);
      }
      after_unknown = id < 0;
    }
    apply_merges(symbols, merges_);
    out.insert(out.end(), symbols.begin(), symbols.end());
  }

 private:
  MergeTable merges_;
  Options options_;
  std::array<TokenId, 256> byte_tokens_{};
  int num_missing_bytes_ = 0;
};

}  // namespace nvl::inline NVL_ABI
