#pragma once
/// The tokenizer in a GGUF file's metadata: byte-level BPE (`tokenizer.ggml.model` = gpt2) or SentencePiece BPE (llama).

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/gguf_pre_tokenizers.hpp>
#include <nvl/io/tokenizer_parts.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// `tokenizer.ggml.token_type` of one token.
enum class GgufTokenType : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// Chat markers are control tokens whatever the file calls them: text must never pass for one.
inline bool is_chat_marker(std::string_view token) noexcept {
  constexpr std::array<std::string_view, 6> markers{"<|im_start|>",        "<|im_end|>",        "<|begin_of_text|>",
                                                    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  return std::find(markers.begin(), markers.end(), token) != markers.end();
}

class GgufTokenizerReader {
 public:
  explicit GgufTokenizerReader(const GgufFile& file) : file_(file) {}

  TokenizerParts read() {
    parts_.path = file_.path();
    const auto model = file_.find_string("tokenizer.ggml.model");
    if (!model) { raise(FileError(file_.path(), "tokenizer.ggml.model is missing: the file carries no tokenizer")); }
    if (*model != "gpt2" && *model != "llama") {
      raise(Unsupported(file_.path() + ": tokenizer.ggml.model is \"" + std::string(model->substr(0, 64)) +
                        "\": nvl knows gpt2, llama"));
    }
    read_tokens();
    if (*model == "gpt2") {
      read_byte_level();
    } else {
      read_sentencepiece();
    }
    parts_.chat_template = std::string(file_.find_string("tokenizer.chat_template").value_or(""));
    return std::move(parts_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { raise(FileError(file_.path(), what)); }

  void read_tokens() {
    auto tokens = file_.find_string_array("tokenizer.ggml.tokens");
    if (!tokens || tokens->empty()) { fail("tokenizer.ggml.tokens is missing or empty"); }
    tokens_ = std::move(*tokens);
    if (tokens_.size() > (1u << 24)) {
      fail("tokenizer.ggml.tokens has " + std::to_string(tokens_.size()) + " elements: must be at most 2^24");
    }
    if (const auto types = file_.find_int_array("tokenizer.ggml.token_type")) {
      require_size("tokenizer.ggml.token_type", types->size());
      types_.reserve(types->size());
      for (std::size_t i = 0; i < types->size(); ++i) {
        const std::int32_t type = (*types)[i];
        if (type < 1 || type > 6) {
          fail("tokenizer.ggml.token_type of token " + std::to_string(i) + " is " + std::to_string(type) + ": must be 1 to 6");
        }
        types_.push_back(is_chat_marker(tokens_[i]) ? GgufTokenType::control : static_cast<GgufTokenType>(type));
      }
    } else {
      types_.assign(tokens_.size(), GgufTokenType::normal);
    }
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const auto id = static_cast<TokenId>(i);
      const GgufTokenType type = types_[i];
      const bool special = type == GgufTokenType::control || type == GgufTokenType::unknown;
      if (special) { parts_.special.push_back(id); }
      if (special || type == GgufTokenType::user_defined) {
        if (tokens_[i].empty()) { fail("token " + std::to_string(i) + " is a control or user-defined token without text"); }
        if (tokens_[i].size() > AddedTokenMatcher::max_content_bytes || !is_valid_utf8(tokens_[i])) {
          fail("token " + std::to_string(i) + " is a control or user-defined token: must be UTF-8 text of at most " +
               std::to_string(AddedTokenMatcher::max_content_bytes) + " bytes");
        }
        parts_.added.push_back({.id = id, .content = std::string(tokens_[i]), .special = special});
      } else if (type == GgufTokenType::normal || type == GgufTokenType::byte) {
        ids_.emplace(tokens_[i], id);
      }
    }
  }

  void require_size(const char* key, std::size_t size) const {
    if (size != tokens_.size()) {
      fail(std::string(key) + " has " + std::to_string(size) + " elements: must be as many as tokenizer.ggml.tokens (" +
           std::to_string(tokens_.size()) + ")");
    }
  }

  bool is_added(std::size_t i) const noexcept {
    return types_[i] == GgufTokenType::control || types_[i] == GgufTokenType::unknown || types_[i] == GgufTokenType::user_defined;
  }

  /// Packs the tokens' bytes. Added tokens are looked up first, then those that text becomes.
  void build_vocabulary(const std::vector<std::string>& bytes) {
    parts_.vocabulary = Vocabulary(bytes);
    for (const AddedToken& token : parts_.added) { parts_.vocabulary.index(token.id); }
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (types_[i] == GgufTokenType::normal && !bytes[i].empty()) { parts_.vocabulary.index(static_cast<TokenId>(i)); }
    }
  }

  std::optional<TokenId> find_id(const char* key) const {
    const auto id = file_.find_uint(key);
    if (!id) { return std::nullopt; }
    if (*id >= tokens_.size()) {
      fail(std::string(key) + " is " + std::to_string(*id) + ": must be below the vocabulary size (" +
           std::to_string(tokens_.size()) + ")");
    }
    return static_cast<TokenId>(*id);
  }

  void read_ends(bool add_bos_by_default) {
    parts_.bos = find_id("tokenizer.ggml.bos_token_id");
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
      const auto id = find_id(key);
      if (id && std::find(parts_.eos.begin(), parts_.eos.end(), *id) == parts_.eos.end()) { parts_.eos.push_back(*id); }
    }
    if (file_.find_bool("tokenizer.ggml.add_bos_token").value_or(add_bos_by_default) && parts_.bos) {
      parts_.prefix = {*parts_.bos};
    }
    const auto eos = find_id("tokenizer.ggml.eos_token_id");
    if (file_.find_bool("tokenizer.ggml.add_eos_token").value_or(false) && eos) { parts_.suffix = {*eos}; }
  }

  void read_byte_level() {
    const GgufPreTokenizer& pre = find_gguf_pre_tokenizer(file_.find_string("tokenizer.ggml.pre").value_or(""), file_.path());
    parts_.pre_tokenizer = make_pre_tokenizer(pre, file_.path());
    if (pre.nfc) { parts_.normalizer = Normalizer({Normalizer::Nfc{}}); }
    if (file_.find_bool("tokenizer.ggml.add_space_prefix").value_or(false)) {
      raise(Unsupported(file_.path() +
                        ": tokenizer.ggml.add_space_prefix is true: byte-level vocabularies with it are not supported"));
    }
    std::vector<std::string> bytes;
    bytes.reserve(tokens_.size());
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      auto decoded = is_added(i) ? std::nullopt : ByteAlphabet::decode(tokens_[i]);
      bytes.push_back(decoded ? std::move(*decoded) : std::string(tokens_[i]));
    }
    build_vocabulary(bytes);

    const auto merges = file_.find_string_array("tokenizer.ggml.merges");
    if (!merges) { fail("tokenizer.ggml.merges is missing"); }
    MergeTable table(merges->size());
    for (std::size_t rank = 0; rank < merges->size(); ++rank) {
      const auto [left, right] = split_merge((*merges)[rank], rank, file_.path());
      add_merge(table, ids_, left, right, static_cast<std::uint32_t>(rank), file_.path());
    }
    ByteLevelBpe::Options options;
    options.whole_pieces_first = pre.whole_pieces_first;
    options.never_whole = parts_.special;
    parts_.model = ByteLevelBpe(parts_.vocabulary, std::move(table), std::move(options));
    read_ends(pre.add_bos);
  }

  void read_sentencepiece() {
    const auto scores = file_.find_float_array("tokenizer.ggml.scores");
    if (!scores) { fail("tokenizer.ggml.scores is missing"); }
    require_size("tokenizer.ggml.scores", scores->size());
    if (file_.find_bool("tokenizer.ggml.remove_extra_whitespaces").value_or(false)) {
      raise(Unsupported(file_.path() +
                        ": tokenizer.ggml.remove_extra_whitespaces is true: SentencePiece models with it are not supported"));
    }
    std::vector<std::string> bytes(tokens_.size());
    std::vector<SentencePieceBpe::Piece> pieces, byte_pieces;
    std::vector<float> piece_scores;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const auto id = static_cast<TokenId>(i);
      bytes[i] = with_blanks(tokens_[i]);
      if (types_[i] == GgufTokenType::byte) {
        const auto byte = parse_byte_piece(tokens_[i]);
        if (!byte) {
          fail("byte token " + std::to_string(i) + " is \"" + std::string(tokens_[i].substr(0, 32)) +
               "\": must be <0x00> to <0xFF>");
        }
        bytes[i].assign(1, static_cast<char>(*byte));
        parts_.byte_fallback.push_back(id);
        byte_pieces.emplace_back(tokens_[i], id);
      } else if (types_[i] == GgufTokenType::normal) {
        if (!std::isfinite((*scores)[i])) { fail("tokenizer.ggml.scores of token " + std::to_string(i) + " is not finite"); }
        pieces.emplace_back(tokens_[i], id);
        piece_scores.push_back((*scores)[i]);
      } else if (types_[i] == GgufTokenType::unused) {
        raise(Unsupported(file_.path() + ": token " + std::to_string(i) +
                          " has type unused (5): SentencePiece models with it are not supported"));
      }
    }
    build_vocabulary(bytes);
    SentencePieceBpe::Options options;
    options.unknown = find_id("tokenizer.ggml.unknown_token_id").value_or(0);
    parts_.model = SentencePieceBpe::from_scores(pieces, piece_scores, byte_pieces, options);

    const bool prefix_space = file_.find_bool("tokenizer.ggml.add_space_prefix").value_or(true);
    std::vector<Normalizer::Step> steps;
    if (prefix_space) { steps.emplace_back(Normalizer::Prepend{std::string(sentencepiece_space)}); }
    steps.emplace_back(Normalizer::ReplaceText{" ", std::string(sentencepiece_space)});
    parts_.normalizer = Normalizer(std::move(steps));
    parts_.drops_leading_space = prefix_space;
    read_ends(true);
  }

  const GgufFile& file_;
  TokenizerParts parts_;
  std::vector<std::string_view> tokens_;
  std::vector<GgufTokenType> types_;
  TokenIds ids_;  // of tokens that text may become, by their spelling in the file
};

}  // namespace detail

/// \throws FileError for a malformed tokenizer; Unsupported for one that nvl could not reproduce exactly.
inline TokenizerParts read_tokenizer_gguf(const GgufFile& file) { return detail::GgufTokenizerReader(file).read(); }

}  // namespace nvl::inline NVL_ABI
