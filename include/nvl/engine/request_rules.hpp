#pragma once
/// What an engine takes, checked before anything of a request is kept.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/engine/beam_search.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// [tokens] of prompt and output that the request may come to
inline std::int32_t total_tokens(const Request& request, const MemoryPlan& plan) noexcept {
  const std::int64_t wanted = static_cast<std::int64_t>(request.prompt_ids.size()) + request.sampling.max_tokens;
  return static_cast<std::int32_t>(std::min<std::int64_t>(wanted, plan.max_model_len));
}

/// The end-of-sequence ids, unless ignored, and the stop tokens.
inline std::vector<TokenId> stop_ids_of(const SamplingParams& sampling, const ModelConfig& config) {
  std::vector<TokenId> ids = sampling.stop_token_ids;
  if (!sampling.ignore_eos) { ids.insert(ids.end(), config.eos_token_ids.begin(), config.eos_token_ids.end()); }
  return ids;
}

/// \throws InvalidArgument
inline void validate_ids(std::span<const TokenId> ids, const ModelConfig& config, const MemoryPlan& plan) {
  NVL_EXPECTS(!ids.empty(), "prompt_ids", "empty", "at least one token");
  NVL_EXPECTS(std::ssize(ids) <= plan.max_model_len, "prompt_ids length", ids.size(),
              "at most max_model_len (" + std::to_string(plan.max_model_len) + ")");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    NVL_EXPECTS(ids[i] >= 0 && ids[i] < config.vocab_size, "prompt_ids[" + std::to_string(i) + "]", ids[i],
                "below the vocabulary size (" + std::to_string(config.vocab_size) + ")");
  }
}

/// \throws InvalidArgument for a request that is malformed or could never run, with the arithmetic
inline void validate(const Request& request, const ModelConfig& config, const EngineOptions& options, const MemoryPlan& plan) {
  validate_ids(request.prompt_ids, config, plan);
  NVL_EXPECTS(std::ssize(request.prompt_ids) < plan.max_model_len, "prompt_ids length", request.prompt_ids.size(),
              "below max_model_len (" + std::to_string(plan.max_model_len) + "), to leave room for an output token");
  validate(request.sampling, config.vocab_size, options.limits);
  NVL_EXPECTS(request.sampling.stop.empty() || options.token_text, "stop", request.sampling.stop.size(),
              "empty: this engine has no TokenText to match strings against");
  if (request.sampling.is_beam_search()) {
    const std::int32_t most = max_row_logprobs(options.limits);
    const std::size_t num_stop_ids = stop_ids_of(request.sampling, config).size();
    NVL_EXPECTS(beam_candidates(request.sampling.beam_width, num_stop_ids) <= most, "beam_width", request.sampling.beam_width,
                "at most " + std::to_string(most) + " (the larger of max_logprobs and 2 x max_beam_width) together with the " +
                    std::to_string(num_stop_ids) + " end-of-sequence and stop tokens");
  }
  // The last token's K and V are never stored.
  const std::int64_t stored = total_tokens(request, plan) - 1;
  const std::int64_t blocks = ceil_div<std::int64_t>(stored, plan.block_size);
  NVL_EXPECTS(blocks <= plan.num_blocks, "KV blocks of the request", blocks,
              "at most the " + std::to_string(plan.num_blocks) + " of the KV cache: " +
                  std::to_string(request.prompt_ids.size()) + " prompt + " + std::to_string(request.sampling.max_tokens) +
                  " max_tokens - 1 = " + std::to_string(stored) + " tokens in blocks of " + std::to_string(plan.block_size));
}

}  // namespace nvl::inline NVL_ABI
