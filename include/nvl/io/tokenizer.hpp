#pragma once
/// Text to token ids and back, with the ids that Hugging Face's `tokenizers` gives for the same model.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/stream_decoder.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/tokenizer_gguf.hpp>
#include <nvl/io/tokenizer_json.hpp>
#include <nvl/io/tokenizer_parts.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Immutable: any number of threads may use one at once. Share it as std::shared_ptr<const Tokenizer>.
class Tokenizer final : public TokenText {
 public:
  /// What text that spells a special token is: the token, or text like any other (for content that is not trusted).
  enum class SpecialText : std::uint8_t { parse, as_text };
  /// Whether the model's template (BOS, EOS) goes around the text.
  enum class AddSpecial : std::uint8_t { yes, no };

  explicit Tokenizer(TokenizerParts parts) : parts_(std::move(parts)) {
    NVL_EXPECTS(parts_.model.has_value(), "tokenizer model", false, "set");
    flags_.assign(static_cast<std::size_t>(vocab_size()), 0);
    for (const TokenId id : parts_.special) { flags_.at(static_cast<std::size_t>(id)) |= special_flag; }
    for (const TokenId id : parts_.byte_fallback) { flags_.at(static_cast<std::size_t>(id)) |= byte_flag; }
    std::vector<AddedToken> in_text, in_normalized;
    for (AddedToken& token : parts_.added) {
      if (token.normalized) { token.content = parts_.normalizer.apply(token.content); }
      (token.normalized ? in_normalized : in_text).push_back(std::move(token));
    }
    parts_.added.clear();
    in_text_ = AddedTokenMatcher(std::move(in_text));
    in_normalized_ = AddedTokenMatcher(std::move(in_normalized));
  }

  /// A GGUF file, a tokenizer.json, or a directory that holds tokenizer.json (and tokenizer_config.json).
  /// \throws FileError for a file that cannot be read or is malformed; Unsupported, by name, for what nvl could not reproduce exactly.
  static Tokenizer open(const std::filesystem::path& path) {
    if (std::error_code ignored; std::filesystem::is_directory(path, ignored) || path.extension() == ".json") {
      return Tokenizer(read_tokenizer_json(path));
    }
    return Tokenizer(read_tokenizer_gguf(GgufFile(path)));
  }

  static Tokenizer from_gguf(const GgufFile& file) { return Tokenizer(read_tokenizer_gguf(file)); }

  /// The ids of `text`. Bytes that are not UTF-8 count as U+FFFD, one for each maximal invalid part.
  /// \throws InvalidArgument if the text hits a limit of the pre-tokenizer's regular expression or has 2^31 bytes or more.
  std::vector<TokenId> encode(std::string_view text, SpecialText special = SpecialText::parse,
                              AddSpecial add = AddSpecial::yes) const {
    NVL_EXPECTS(text.size() < max_text_bytes, "text", std::to_string(text.size()) + " bytes", "below 2^31 bytes");
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = replace_invalid_utf8(text);
      text = repaired;
    }
    std::vector<TokenId> out;
    if (add == AddSpecial::yes) { out = parts_.prefix; }
    const bool as_text = special == SpecialText::as_text;
    for (const TextSegment& segment : in_text_.split(text, as_text)) {
      if (segment.id >= 0) {
        out.push_back(segment.id);
        continue;
      }
      encode_segment(text.substr(segment.begin, segment.end - segment.begin), segment.begin == 0, as_text, out);
    }
    if (add == AddSpecial::yes) { out.insert(out.end(), parts_.suffix.begin(), parts_.suffix.end()); }
    return out;
  }

  /// The text of `ids`, always valid UTF-8 (StreamDecoder's rules). Ids outside the vocabulary add nothing.
  std::string decode(std::span<const TokenId> ids, bool skip_special = true) const {
    StreamDecoder decoder(*this, skip_special);
    std::string out;
    for (const TokenId id : ids) { out += decoder.push(id); }
    return out += decoder.finish();
  }

  std::string_view bytes(TokenId id) const noexcept override { return parts_.vocabulary.bytes(id); }
  bool is_special(TokenId id) const noexcept override { return has_flag(id, special_flag); }
  bool is_byte_fallback(TokenId id) const noexcept override { return has_flag(id, byte_flag); }
  bool drops_leading_space() const noexcept override { return parts_.drops_leading_space; }

  std::int32_t vocab_size() const noexcept { return parts_.vocabulary.size(); }

  /// The token whose bytes are exactly `text`; added tokens (chat markers and so on) before others.
  std::optional<TokenId> find(std::string_view text) const noexcept { return parts_.vocabulary.find(text); }

  std::optional<TokenId> bos_id() const noexcept { return parts_.bos; }
  /// Any of them ends a sequence; empty if the file names none.
  std::span<const TokenId> eos_ids() const noexcept { return parts_.eos; }
  /// Jinja text; empty if the file has none.
  const std::string& chat_template() const noexcept { return parts_.chat_template; }
  /// Of the file that it was read from.
  const std::string& path() const noexcept { return parts_.path; }

 private:
  static constexpr std::size_t max_text_bytes = std::size_t{1} << 31;
  static constexpr std::uint8_t special_flag = 1;
  static constexpr std::uint8_t byte_flag = 2;

  bool has_flag(TokenId id, std::uint8_t flag) const noexcept {
    return id >= 0 && id < vocab_size() && (flags_[static_cast<std::size_t>(id)] & flag) != 0;
  }

  /// Text without tokens of in_text_.
  void encode_segment(std::string_view text, bool at_start, bool as_text, std::vector<TokenId>& out) const {
    std::string normalized;
    if (!parts_.normalizer.empty()) {
      normalized = parts_.normalizer.apply(text);
      text = normalized;
    }
    for (const TextSegment& segment : in_normalized_.split(text, as_text)) {
      if (segment.id >= 0) {
        out.push_back(segment.id);
        continue;
      }
      parts_.pre_tokenizer.for_each_piece(text.substr(segment.begin, segment.end - segment.begin), at_start && segment.begin == 0,
                                          [&](std::string_view piece) { encode_piece(piece, out); });
    }
  }

  void encode_piece(std::string_view piece, std::vector<TokenId>& out) const {
    if (const auto* bytes = std::get_if<ByteLevelBpe>(&*parts_.model)) {
      bytes->encode(piece, parts_.vocabulary, out);
    } else {
      std::get<SentencePieceBpe>(*parts_.model).encode(piece, out);
    }
  }

  TokenizerParts parts_;
  AddedTokenMatcher in_text_, in_normalized_;
  std::vector<std::uint8_t> flags_;  // by id
};

}  // namespace nvl::inline NVL_ABI
