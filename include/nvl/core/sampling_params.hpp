#pragma once
/// What a request asks of the sampler and of the stop rules. Names and defaults are those users know from vLLM.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>

#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// When a beam search ends, as in Hugging Face's `early_stopping`. yes: as soon as beam_width hypotheses have ended; no: when the
/// best beam, with the length penalty of its present length, cannot better the worst of them; never: when none could, however
/// long it becomes.
enum class EarlyStopping : std::uint8_t { no, yes, never };

struct SamplingParams {
  float temperature = 1.0f;         // 0 = greedy
  std::int32_t top_k = 0;           // keep the k most likely; 0 or -1 = all
  float top_p = 1.0f;               // keep the smallest set whose probability reaches p
  float min_p = 0.0f;               // drop what is less likely than min_p * the most likely
  float repetition_penalty = 1.0f;  // of tokens in prompt and output: positive logits / penalty, negative * penalty
  float presence_penalty = 0.0f;    // subtracted once from tokens in the output
  float frequency_penalty = 0.0f;   // subtracted per occurrence in the output
  std::vector<std::pair<TokenId, float>> logit_bias{};  // added to the logits before everything else
  std::optional<std::uint64_t> seed{};                  // none: the engine draws one and reports it with the result
  std::int32_t max_tokens = 16;                         // [tokens] of output
  std::int32_t min_tokens = 0;  // [tokens] before which no stop rule holds; end-of-sequence and stop ids are masked
  std::vector<TokenId> stop_token_ids{};
  std::vector<std::string> stop{};  // byte strings; the output is cut before the first match
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool skip_special_tokens = true;         // special tokens produce no text
  std::optional<std::int32_t> logprobs{};  // with each token its log-probability and those of the n most likely; 0 = only its own
  std::int32_t n = 1;                      // choices to return, each with random numbers of its own
  std::int32_t best_of = 0;                // choices to sample, of which the n of the largest log-probability are returned; 0 = n
  std::int32_t beam_width = 0;  // beams of a beam search, of which the n best are returned; 0 or 1 = tokens are sampled
  float length_penalty = 1.0f;  // a beam's score is its log-probability / (its output tokens ^ this)
  EarlyStopping early_stopping = EarlyStopping::no;  // of a beam search

  bool is_beam_search() const noexcept { return beam_width > 1; }
  /// Sequences that are computed side by side.
  std::int32_t num_choices() const noexcept { return is_beam_search() ? beam_width : best_of > 0 ? best_of : n; }
  /// More are computed than returned, so that no token is sure to be returned before the end.
  bool has_rivals() const noexcept { return is_beam_search() || num_choices() > n; }
};

/// What protects an engine from one request. Every limit is a number that a host may change.
struct RequestLimits {
  std::int32_t max_stop_strings = 16;
  std::int32_t max_stop_bytes = 256;  // [bytes] of one stop string
  std::int32_t max_stop_token_ids = 1024;
  std::int32_t max_logit_bias = 1024;
  std::int32_t max_logprobs = 20;
  std::int32_t max_n = 128;  // choices of one request, best_of included
  std::int32_t max_beam_width = 16;
};

/// Throws InvalidArgument that names the parameter, its value and the rule. `vocab_size` bounds token ids.
inline void validate(const SamplingParams& p, std::int32_t vocab_size, const RequestLimits& limits = {}) {
  const auto finite_in = [](float v, float low, float high) { return std::isfinite(v) && v >= low && v <= high; };
  const auto below = [](const char* what, std::int32_t limit) { return "at most " + std::to_string(limit) + " " + what; };
  NVL_EXPECTS(finite_in(p.temperature, 0.0f, 100.0f), "temperature", p.temperature, "in [0, 100]");
  NVL_EXPECTS(p.top_k >= -1, "top_k", p.top_k, "-1, 0 (both: all) or positive");
  NVL_EXPECTS(finite_in(p.top_p, 0.0f, 1.0f) && p.top_p > 0.0f, "top_p", p.top_p, "in (0, 1]");
  NVL_EXPECTS(finite_in(p.min_p, 0.0f, 1.0f), "min_p", p.min_p, "in [0, 1]");
  NVL_EXPECTS(finite_in(p.repetition_penalty, 1e-3f, 100.0f), "repetition_penalty", p.repetition_penalty, "in [0.001, 100]");
  NVL_EXPECTS(finite_in(p.presence_penalty, -100.0f, 100.0f), "presence_penalty", p.presence_penalty, "in [-100, 100]");
  NVL_EXPECTS(finite_in(p.frequency_penalty, -100.0f, 100.0f), "frequency_penalty", p.frequency_penalty, "in [-100, 100]");
  NVL_EXPECTS(p.max_tokens >= 1, "max_tokens", p.max_tokens, "at least 1");
  NVL_EXPECTS(p.min_tokens >= 0 && p.min_tokens <= p.max_tokens, "min_tokens", p.min_tokens,
              "0 to max_tokens (" + std::to_string(p.max_tokens) + ")");
  NVL_EXPECTS(std::ssize(p.logit_bias) <= limits.max_logit_bias, "logit_bias", p.logit_bias.size(),
              below("entries", limits.max_logit_bias));
  for (const auto& [id, bias] : p.logit_bias) {
    NVL_EXPECTS(id >= 0 && id < vocab_size, "logit_bias token id", id,
                "below the vocabulary size (" + std::to_string(vocab_size) + ")");
    NVL_EXPECTS(finite_in(bias, -1e4f, 1e4f), "logit_bias of token " + std::to_string(id), bias, "in [-10000, 10000]");
  }
  NVL_EXPECTS(std::ssize(p.stop_token_ids) <= limits.max_stop_token_ids, "stop_token_ids", p.stop_token_ids.size(),
              below("ids", limits.max_stop_token_ids));
  for (const TokenId id : p.stop_token_ids) {
    NVL_EXPECTS(id >= 0 && id < vocab_size, "stop_token_ids", id,
                "below the vocabulary size (" + std::to_string(vocab_size) + ")");
  }
  NVL_EXPECTS(std::ssize(p.stop) <= limits.max_stop_strings, "stop", p.stop.size(), below("strings", limits.max_stop_strings));
  for (const std::string& s : p.stop) {
    NVL_EXPECTS(!s.empty() && std::ssize(s) <= limits.max_stop_bytes, "length of a stop string", s.size(),
                "1 to " + std::to_string(limits.max_stop_bytes) + " bytes");
  }
  if (p.logprobs) {
    NVL_EXPECTS(*p.logprobs >= 0 && *p.logprobs <= limits.max_logprobs, "logprobs", *p.logprobs,
                "0 to " + std::to_string(limits.max_logprobs));
  }
  NVL_EXPECTS(p.n >= 1 && p.n <= limits.max_n, "n", p.n, "1 to " + std::to_string(limits.max_n));
  NVL_EXPECTS(p.best_of == 0 || (p.best_of >= p.n && p.best_of <= limits.max_n), "best_of", p.best_of,
              "0, or n (" + std::to_string(p.n) + ") to " + std::to_string(limits.max_n));
  NVL_EXPECTS(p.beam_width >= 0 && p.beam_width <= limits.max_beam_width, "beam_width", p.beam_width,
              "0 to " + std::to_string(limits.max_beam_width));
  if (!p.is_beam_search()) { return; }
  NVL_EXPECTS(p.n <= p.beam_width, "n", p.n, "at most beam_width (" + std::to_string(p.beam_width) + ")");
  NVL_EXPECTS(p.best_of == 0, "best_of", p.best_of, "0 in a beam search");
  NVL_EXPECTS(finite_in(p.length_penalty, -10.0f, 10.0f), "length_penalty", p.length_penalty, "in [-10, 10]");
  NVL_EXPECTS(p.stop.empty(), "stop", p.stop.size(), "empty in a beam search");
  NVL_EXPECTS(!p.logprobs, "logprobs", *p.logprobs, "none in a beam search: a choice has the sum of its log-probabilities");
}

}  // namespace nvl::inline NVL_ABI
