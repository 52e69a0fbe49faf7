#pragma once
/// GGUF files name their pre-tokenizer (`tokenizer.ggml.pre`) instead of carrying it. Each known name with what the model's
/// own tokenizer.json says under normalizer and pre_tokenizer. A name is listed only if its pipeline was checked against real
/// vocabularies or follows from one that was; falcon, for one, cannot be: its digit split acts on the letters that stand for bytes.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/io/normalizer.hpp>
#include <nvl/io/pre_tokenizer.hpp>

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace split_patterns {
inline constexpr std::string_view deepseek_newline = R"([\r\n])";
inline constexpr std::string_view deepseek_llm_letters =
    R"(\s?[)"
    R"(A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373})"
    R"(\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481})"
    R"(\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf})"
    R"(\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45})"
    R"(\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc})"
    R"(\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4})"
    R"(\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d})"
    R"(\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b})"
    R"(\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787})"
    R"(\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a})"
    R"(\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df})"
    R"(\x{1e900}-\x{1e943}]+)";
inline constexpr std::string_view deepseek_llm_punctuation =
    R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)";
inline constexpr std::string_view deepseek_llm_trailing_space = R"(\s+$)";
inline constexpr std::string_view deepseek_cjk = R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)";
inline constexpr std::string_view deepseek_coder_letters = R"(\s?\p{L}+)";
inline constexpr std::string_view deepseek_coder_punctuation = R"(\s?\p{P}+)";
}  // namespace split_patterns

/// One value of `tokenizer.ggml.pre`.
struct GgufPreTokenizer {
  std::string_view name;
  std::array<std::string_view, 6> splits;  // isolated one after the other; empty: no more
  bool nfc = false;
  bool whole_pieces_first = false;
  bool add_bos = false;  // unless tokenizer.ggml.add_bos_token says otherwise
};

inline constexpr auto gguf_pre_tokenizers = [] {
  namespace p = split_patterns;
  return std::array<GgufPreTokenizer, 13>{{
      {"gpt-2", {p::gpt2}},
      {"mpt", {p::gpt2}, true},
      {"smollm", {p::digit, p::gpt2}},
      {"starcoder", {p::digit, p::gpt2}},
      {"refact", {p::digit, p::gpt2}},
      {"command-r", {p::digit, p::gpt2}, true},
      {"llama3", {p::llama3}, false, true, true},
      {"llama-v3", {p::llama3}, false, true, true},
      {"llama-bpe", {p::llama3}, false, true, true},
      {"qwen2", {p::qwen2}, true},
      {"tekken", {p::tekken}, false, true, true},
      {"deepseek-llm",
       {p::deepseek_newline, p::deepseek_llm_letters, p::deepseek_llm_punctuation, p::deepseek_llm_trailing_space,
        p::deepseek_cjk, p::digit}},
      {"deepseek-coder",
       {p::deepseek_newline, p::deepseek_coder_letters, p::deepseek_coder_punctuation, p::deepseek_cjk, p::digit}},
  }};
}();

/// \throws Unsupported that lists the known names.
inline const GgufPreTokenizer& find_gguf_pre_tokenizer(std::string_view name, const std::string& path) {
  std::string known;
  for (const GgufPreTokenizer& pre : gguf_pre_tokenizers) {
    if (pre.name == name) { return pre; }
    known += (known.empty() ? "" : ", ") + std::string(pre.name);
  }
  raise(Unsupported(path + ": tokenizer.ggml.pre is " +
                    (name.empty() ? "missing" : "\"" + std::string(name.substr(0, 64)) + "\"") + ": nvl knows " + known));
}

inline PreTokenizer make_pre_tokenizer(const GgufPreTokenizer& pre, const std::string& path) {
  std::vector<PreTokenizer::Step> steps;
  for (const std::string_view pattern : pre.splits) {
    if (!pattern.empty()) { steps.emplace_back(PreTokenizer::isolate(pattern, path)); }
  }
  return PreTokenizer(std::move(steps));
}

}  // namespace nvl::inline NVL_ABI
