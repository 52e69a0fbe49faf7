#pragma once
/// Vocabularies of ranked byte strings: tiktoken files ("base64 rank" a line) and Mistral's tekken.json. They carry no merges:
/// two neighbours join if together they are a token, the lowest rank first.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/tokenizer_json.hpp>
#include <nvl/io/tokenizer_parts.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// How ranks become a tokenizer: what the file itself does not say.
struct RankedVocabularyOptions {
  std::string pattern;            // of the pre-tokenizer; the matches are the pieces
  bool nfc = false;               // normalise to form C first
  TokenId first_id = 0;           // id of rank 0
  std::vector<AddedToken> added;  // their ids lie outside the ranks
};

namespace detail {

/// RFC 4648 with padding; nothing for anything else.
inline std::optional<std::string> decode_base64(std::string_view text) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0) { return std::nullopt; }
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string out;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t value = i + padding >= text.size() ? 0 : alphabet.find(text[i]);
    if (value == std::string_view::npos) { return std::nullopt; }
    bits = (bits << 6) | static_cast<std::uint32_t>(value);
    if (i % 4 == 3) {
      for (int shift = 16; shift >= 0; shift -= 8) {
        out.push_back(static_cast<char>(static_cast<unsigned char>(bits >> shift)));
      }
      bits = 0;
    }
  }
  out.resize(out.size() - padding);
  return out;
}

}  // namespace detail

/// `tokens[rank]` are the bytes of each rank, none empty.
inline TokenizerParts make_ranked_tokenizer(const std::vector<std::string>& tokens, RankedVocabularyOptions options,
                                            std::string path) {
  TokenizerParts parts;
  parts.path = std::move(path);
  std::size_t size = static_cast<std::size_t>(options.first_id) + tokens.size();
  for (const AddedToken& token : options.added) { size = std::max(size, static_cast<std::size_t>(token.id) + 1); }
  std::vector<std::string> bytes(size);
  const auto first = static_cast<std::size_t>(options.first_id);
  std::copy(tokens.begin(), tokens.end(), bytes.begin() + options.first_id);
  for (const AddedToken& token : options.added) {
    bytes[static_cast<std::size_t>(token.id)] = token.content;
    if (token.special) { parts.special.push_back(token.id); }
  }
  parts.vocabulary = Vocabulary(bytes);
  for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
    const auto id = static_cast<TokenId>(first + rank);
    if (tokens[rank].empty() || parts.vocabulary.index(id) != id) {
      raise(FileError(parts.path, "rank " + std::to_string(rank) + " is empty or has the bytes of an earlier rank"));
    }
  }
  MergeTable merges(tokens.size() * 2);
  for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
    const std::string_view token = tokens[rank];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = parts.vocabulary.find(token.substr(0, cut));
      const auto right = left ? parts.vocabulary.find(token.substr(cut)) : std::nullopt;
      if (right) { merges.insert(*left, *right, {static_cast<std::uint32_t>(rank), static_cast<TokenId>(first + rank)}); }
    }
  }
  ByteLevelBpe::Options bpe;
  bpe.whole_pieces_first = true;
  bpe.never_whole = parts.special;
  parts.model = ByteLevelBpe(parts.vocabulary, std::move(merges), std::move(bpe));
  if (std::get<ByteLevelBpe>(*parts.model).num_missing_bytes() > 0) {
    raise(FileError(parts.path, "a byte has no token: all 256 must"));
  }
  for (const AddedToken& token : options.added) { parts.vocabulary.index(token.id); }
  parts.added = std::move(options.added);
  parts.pre_tokenizer = PreTokenizer({PreTokenizer::isolate(options.pattern, parts.path)});
  if (options.nfc) { parts.normalizer = Normalizer({Normalizer::Nfc{}}); }
  return parts;
}

/// A tiktoken file: "base64 rank" a line, ranks 0, 1, 2, ... in order.
inline TokenizerParts read_tiktoken(const std::filesystem::path& path, RankedVocabularyOptions options) {
  const MappedFile file(path);
  std::vector<std::string> tokens;
  const std::string_view text = file.text();
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    const std::size_t blank = line.find(' ');
    auto token = blank == std::string_view::npos ? std::nullopt : detail::decode_base64(line.substr(0, blank));
    std::size_t rank = 0;
    const char* const last = line.data() + line.size();
    if (!token || token->empty() || std::from_chars(line.data() + blank + 1, last, rank).ptr != last || rank != tokens.size()) {
      raise(FileError(
          file.path(), begin,
          "line " + std::to_string(tokens.size() + 1) + " is not \"base64 rank\" with rank " + std::to_string(tokens.size())));
    }
    tokens.push_back(std::move(*token));
    begin = end + 1;
  }
  return make_ranked_tokenizer(tokens, std::move(options), file.path());
}

/// Mistral's tekken.json: the first default_vocab_size - default_num_special_tokens ranks, after the special tokens.
inline TokenizerParts read_tekken(const std::filesystem::path& path) {
  const MappedFile file(path);
  const nlohmann::json root = detail::parse_tokenizer_json(file.text(), file.path());
  const nlohmann::json& config = json_object(root, "config", file.path());
  constexpr std::int64_t max_tokens = 1 << 24;
  const auto vocab_size = json_int(config, "default_vocab_size", 1, max_tokens, file.path());
  const auto num_special = json_int(config, "default_num_special_tokens", 0, vocab_size, file.path());
  const nlohmann::json& vocab = json_array(root, "vocab", file.path());
  const auto num_ranks = static_cast<std::size_t>(vocab_size - num_special);
  if (vocab.size() < num_ranks) {
    raise(FileError(file.path(),
                    "vocab has " + std::to_string(vocab.size()) + " elements: must be at least " + std::to_string(num_ranks)));
  }
  std::vector<std::string> tokens;
  tokens.reserve(num_ranks);
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    auto token = detail::decode_base64(json_string(vocab[rank], "token_bytes", file.path()));
    if (!token || json_int(vocab[rank], "rank", 0, max_tokens, file.path()) != static_cast<std::int64_t>(rank)) {
      raise(FileError(file.path(), "vocab[" + std::to_string(rank) + "] has a malformed token_bytes or another rank"));
    }
    tokens.push_back(std::move(*token));
  }
  RankedVocabularyOptions options;
  options.pattern = json_string(config, "pattern", file.path());
  options.first_id = static_cast<TokenId>(num_special);
  return make_ranked_tokenizer(tokens, std::move(options), file.path());
}

}  // namespace nvl::inline NVL_ABI
