/// Any bytes as text, and any bytes as token ids, for a small tokenizer of each family.

#include <nvl/core/error.hpp>
#include <nvl/core/stream_decoder.hpp>
#include <nvl/core/utf8.hpp>
#include <nvl/io/chat_format.hpp>
#include <nvl/io/normalizer.hpp>
#include <nvl/io/tiktoken_vocab.hpp>
#include <nvl/io/tokenizer.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using nvl::TokenId;
using nvl::Tokenizer;

void require(bool condition) {
  if (!condition) { std::abort(); }
}

/// The 256 bytes and a few longer tokens, cut by the pattern of one model family.
Tokenizer byte_level(std::string_view pattern, bool nfc) {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) { tokens.emplace_back(1, static_cast<char>(static_cast<unsigned char>(b))); }
  for (const char* token :
       {"aa", "aaaa", "ab", "the", "th", "  ", "    ", "\n\n", "12", "\xC3\xA9", "\xE4\xB8\xAD", "he", "ell", "lo"}) {
    tokens.emplace_back(token);
  }
  nvl::RankedVocabularyOptions options;
  options.pattern = std::string(pattern);
  options.nfc = nfc;
  TokenId id = 1000;
  for (const char* marker : {"<|im_start|>", "<|im_end|>", "<|end|>"}) {
    options.added.push_back({.id = id++, .content = marker, .special = true});
  }
  options.added.push_back({.id = id++, .content = "<tool>", .left_strip = true, .right_strip = true});
  options.added.push_back({.id = id++, .content = "word", .single_word = true});
  return Tokenizer(nvl::make_ranked_tokenizer(tokens, options, "fuzz"));
}

/// Letters, blanks and byte fallback, with the legacy blank in front.
Tokenizer sentencepiece() {
  std::string json =
      R"({"model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": {"<unk>": 0, "\u2581": 257, "a": 258, "b": 259, )"
      R"("ab": 260, "\u2581a": 261, "\u2581\u2581": 262)";
  constexpr std::string_view hex = "0123456789ABCDEF";
  for (std::size_t b = 0; b < 256; ++b) {
    json += std::string(", \"<0x") + hex[b / 16] + hex[b % 16] + ">\": " + std::to_string(b + 1);
  }
  json +=
      R"(}, "merges": [["a", "b"], ["\u2581", "a"], ["\u2581", "\u2581"]]}, "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],)"
      R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},)"
      R"("decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},)"
      R"({"type": "Strip", "content": " ", "start": 1, "stop": 0}]}})";
  return Tokenizer(nvl::parse_tokenizer_json(json, "fuzz"));
}

void check(const Tokenizer& tokenizer, std::string_view text, bool exact) {
  const std::vector<TokenId> as_text = tokenizer.encode(text, Tokenizer::SpecialText::as_text);
  for (const TokenId id : as_text) { require(id >= 0 && id < tokenizer.vocab_size() && !tokenizer.is_special(id)); }
  const std::string decoded = tokenizer.decode(as_text);
  require(nvl::is_valid_utf8(decoded));
  if (exact) { require(decoded == nvl::replace_invalid_utf8(text)); }
  for (const TokenId id : tokenizer.encode(text)) { require(id >= 0 && id < tokenizer.vocab_size()); }

  // The bytes as ids, some of them out of range.
  std::vector<TokenId> ids;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    ids.push_back(static_cast<TokenId>(static_cast<unsigned char>(text[i])) +
                  5 * static_cast<TokenId>(static_cast<unsigned char>(text[i + 1])) - 3);
  }
  for (const bool skip_special : {true, false}) {
    nvl::StreamDecoder decoder(tokenizer, skip_special);
    std::string streamed;
    for (const TokenId id : ids) {
      const std::string piece = decoder.push(id);
      require(nvl::is_valid_utf8(piece));
      streamed += piece;
    }
    streamed += decoder.finish();
    require(streamed == tokenizer.decode(ids, skip_special));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer gpt2 = byte_level(nvl::split_patterns::gpt2, false);
  static const Tokenizer llama3 = byte_level(nvl::split_patterns::llama3, false);
  static const Tokenizer qwen2 = byte_level(nvl::split_patterns::qwen2, true);
  static const Tokenizer tekken = byte_level(nvl::split_patterns::tekken, false);
  static const Tokenizer pieces = sentencepiece();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // An added token that takes blanks along does not give them back, so only texts without one come back as they were.
  const bool plain = text.find("<tool>") == std::string_view::npos;
  check(gpt2, text, plain);
  check(llama3, text, plain);
  check(qwen2, text, false);
  check(tekken, text, plain);
  check(pieces, text, text.find("\xE2\x96\x81") == std::string_view::npos);

  const std::string valid = nvl::replace_invalid_utf8(text);
  const std::string nfc = nvl::to_nfc(valid);
  require(nvl::is_valid_utf8(nfc) && nvl::to_nfc(nfc) == nfc);

  const std::vector<nvl::ChatMessage> messages{{"user", std::string(text)}};
  const std::vector<TokenId> chat = nvl::format_chat(qwen2, nvl::ChatFormat{}, messages, true);
  int markers = 0;
  for (const TokenId id : chat) { markers += qwen2.is_special(id) ? 1 : 0; }
  require(markers == 3);
  return 0;
}
