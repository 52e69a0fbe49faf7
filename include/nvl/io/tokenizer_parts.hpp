#pragma once
/// What a tokenizer file says, whatever its format: the stages that Tokenizer runs, ready to run.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/added_tokens.hpp>
#include <nvl/io/byte_level_bpe.hpp>
#include <nvl/io/normalizer.hpp>
#include <nvl/io/pre_tokenizer.hpp>
#include <nvl/io/sentencepiece_bpe.hpp>
#include <nvl/io/vocabulary.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace nvl::inline NVL_ABI {

struct TokenizerParts {
  std::string path;                    // of the file, for messages
  Vocabulary vocabulary;               // indexed: every token that text may become, and the added tokens
  std::vector<AddedToken> added;       // found in the text as spelled
  std::vector<TokenId> special;        // produce no text when special tokens are skipped
  std::vector<TokenId> byte_fallback;  // SentencePiece's "<0x..>" tokens
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::optional<std::variant<ByteLevelBpe, SentencePieceBpe>> model;  // always set by a reader
  std::vector<TokenId> prefix, suffix;                                // what the model's template puts around one text (BOS, EOS)
  bool drops_leading_space = false;                                   // SentencePiece's dummy prefix
  std::optional<TokenId> bos;
  std::vector<TokenId> eos;   // any of them ends a sequence; the first is the file's eos_token
  std::string chat_template;  // Jinja text; empty if the file has none
};

namespace detail {

/// Ids by a token's spelling in its file; the texts live in the caller's storage.
using TokenIds = std::unordered_map<std::string_view, TokenId>;

/// Adds the merge "left right" of rank `rank`; all three tokens must exist.
inline void add_merge(MergeTable& table, const TokenIds& ids, std::string_view left, std::string_view right, std::uint32_t rank,
                      const std::string& path) {
  const auto id_of = [&](std::string_view token) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      raise(FileError(path, "merge " + std::to_string(rank) + " (\"" + std::string(left.substr(0, 64)) + "\", \"" +
                                std::string(right.substr(0, 64)) + "\") names \"" + std::string(token.substr(0, 128)) +
                                "\", which is not in the vocabulary"));
    }
    return found->second;
  };
  const TokenId left_id = id_of(left);
  const TokenId right_id = id_of(right);
  table.insert(left_id, right_id, {rank, id_of(std::string(left) + std::string(right))});
}

/// "a b" as the pair (a, b). A blank at the start belongs to the left token.
inline std::pair<std::string_view, std::string_view> split_merge(std::string_view merge, std::size_t rank,
                                                                 const std::string& path) {
  const std::size_t blank = merge.find(' ', 1);
  if (blank == std::string_view::npos || blank + 1 == merge.size()) {
    raise(FileError(path, "merge " + std::to_string(rank) + " is \"" + std::string(merge.substr(0, 64)) +
                              "\": must be two tokens with a blank between"));
  }
  return {merge.substr(0, blank), merge.substr(blank + 1)};
}

/// U+2581 as blanks: what a SentencePiece token looks like in text.
inline std::string with_blanks(std::string_view piece) { return replace_all(piece, sentencepiece_space, " "); }

}  // namespace detail

}  // namespace nvl::inline NVL_ABI
