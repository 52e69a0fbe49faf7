#pragma once
/// SentencePiece-style BPE (Llama 2, Mistral): a piece starts as its characters, blanks written as U+2581; a character
/// without a token becomes one token per byte ("<0x0A>"), or the unknown token. Kudo & Richardson 2018, arXiv:1808.06226.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/bpe_merges.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// The character that SentencePiece vocabularies have for a blank, U+2581.
inline constexpr std::string_view sentencepiece_space = "\xE2\x96\x81";

/// The byte that a piece such as "<0x0A>" stands for.
inline std::optional<std::uint8_t> parse_byte_piece(std::string_view piece) noexcept {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') { return std::nullopt; }
  const auto hex = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = hex(piece[3]);
  const int low = hex(piece[4]);
  if (high < 0 || low < 0) { return std::nullopt; }
  return static_cast<std::uint8_t>(high * 16 + low);
}

/// Immutable.
class SentencePieceBpe {
 public:
  struct Options {
    bool whole_pieces_first = false;  // text that is a piece is taken as such before any merge ("ignore_merges")
    std::optional<TokenId> unknown;   // for a character that has neither a token nor tokens for its bytes; else it is dropped
    bool fuse_unknown = true;         // one unknown token for a run of such characters
    bool byte_fallback = true;
  };

  /// The spelling of a piece and its id.
  using Piece = std::pair<std::string_view, TokenId>;

  /// `pieces` are those that text may become; if bytes fall back, "<0x..>" among them serve that. Merges come from the file.
  SentencePieceBpe(std::span<const Piece> pieces, MergeTable merges, Options options)
      : merges_(std::move(merges)),
        options_(options) {
    byte_tokens_.fill(-1);
    for (const auto& [text, id] : pieces) { add_piece(text, id); }
    first_inner_ = num_tokens_;
  }

  /// Merges follow from scores: two neighbours join if together they are a piece, the best-scored piece first.
  /// `scores[i]` belongs to `pieces[i]`; `byte_pieces` serve byte fallback only.
  static SentencePieceBpe from_scores(std::span<const Piece> pieces, std::span<const float> scores,
                                      std::span<const Piece> byte_pieces, Options options) {
    SentencePieceBpe bpe({}, MergeTable(pieces.size() * 2), options);
    std::unordered_map<std::string_view, TokenId> ids;
    ids.reserve(pieces.size());
    for (const auto& [text, id] : pieces) {
      ids.emplace(text, id);
      bpe.add_piece(text, id);
    }
    for (const auto& [text, id] : byte_pieces) { bpe.add_piece(text, id); }
    bpe.first_inner_ = bpe.num_tokens_;
    for (const auto& piece : pieces) { bpe.add_inner_characters(piece.first, ids); }

    std::vector<float> best_first(scores.begin(), scores.end());
    std::sort(best_first.begin(), best_first.end(), std::greater<>{});
    best_first.erase(std::unique(best_first.begin(), best_first.end()), best_first.end());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::string_view text = pieces[i].first;
      const auto rank = std::lower_bound(best_first.begin(), best_first.end(), scores[i], std::greater<>{}) - best_first.begin();
      for (std::size_t cut = 1; cut < text.size(); ++cut) {
        const auto left = ids.find(text.substr(0, cut));
        if (left == ids.end()) { continue; }
        const auto right = ids.find(text.substr(cut));
        if (right == ids.end()) { continue; }
        bpe.merges_.insert(left->second, right->second, {static_cast<std::uint32_t>(rank), pieces[i].second});
      }
    }
    return bpe;
  }

  /// Appends the ids of one piece of normalized text (blanks already U+2581). `text` must be well-formed UTF-8.
  void encode(std::string_view text, std::vector<TokenId>& out) const {
    if (options_.whole_pieces_first) {
      if (const auto whole = whole_pieces_.find(std::string(text)); whole != whole_pieces_.end()) {
        out.push_back(whole->second);
        return;
      }
    }
    std::vector<TokenId> symbols;
    symbols.reserve(text.size());
    for (std::size_t pos = 0; pos < text.size();) {
      const Utf8Char c = read_utf8(text, pos);
      const auto known = characters_.find(c.code_point);
      if (known != characters_.end()) {
        symbols.push_back(known->second);
      } else {
        fall_back(text.substr(pos, c.length), symbols, 0);
      }
      pos += c.length;
    }
    apply_merges(symbols, merges_);
    const std::size_t begin = out.size();
    for (const TokenId symbol : symbols) {
      if (symbol < first_inner_) {
        out.push_back(symbol);
      } else {
        fall_back(inner_characters_[static_cast<std::size_t>(symbol - first_inner_)], out, begin);
      }
    }
  }

 private:
  void add_piece(std::string_view text, TokenId id) {
    num_tokens_ = std::max(num_tokens_, id + 1);
    if (const auto byte = parse_byte_piece(text); byte && options_.byte_fallback) { byte_tokens_[*byte] = id; }
    if (options_.whole_pieces_first) { whole_pieces_.emplace(text, id); }
    if (text.empty()) { return; }
    const Utf8Char first = read_utf8(text, 0);
    if (first.valid && first.length == text.size()) { characters_.emplace(first.code_point, id); }
  }

  /// Characters that pieces consist of but that are no pieces take part in merges under ids above the vocabulary.
  void add_inner_characters(std::string_view piece, std::unordered_map<std::string_view, TokenId>& ids) {
    for (std::size_t pos = 0; pos < piece.size();) {
      const Utf8Char c = read_utf8(piece, pos);
      const std::string_view character = piece.substr(pos, c.length);
      pos += c.length;
      if (!c.valid) { continue; }
      const auto id = first_inner_ + static_cast<TokenId>(inner_characters_.size());
      if (ids.emplace(character, id).second) {
        characters_.emplace(c.code_point, id);
        inner_characters_.emplace_back(character);
      }
    }
  }

  /// Appends what stands for a character without a token. `begin`: where the symbols of this piece start in `out`.
  void fall_back(std::string_view character, std::vector<TokenId>& out, std::size_t begin) const {
    bool has_bytes = options_.byte_fallback;
    for (const char c : character) { has_bytes = has_bytes && byte_tokens_[static_cast<unsigned char>(c)] >= 0; }
    if (has_bytes) {
      for (const char c : character) { out.push_back(byte_tokens_[static_cast<unsigned char>(c)]); }
    } else if (options_.unknown && !(options_.fuse_unknown && out.size() > begin && out.back() == *options_.unknown)) {
      out.push_back(*options_.unknown);
    }
  }

  MergeTable merges_;
  Options options_;
  std::array<TokenId, 256> byte_tokens_{};  // -1: none
  std::unordered_map<char32_t, TokenId> characters_;
  std::unordered_map<std::string, TokenId> whole_pieces_;  // only with whole_pieces_first
  TokenId num_tokens_ = 0;
  TokenId first_inner_ = 0;
  std::vector<std::string> inner_characters_;  // of ids first_inner_, first_inner_ + 1, ...
};

}  // namespace nvl::inline NVL_ABI
