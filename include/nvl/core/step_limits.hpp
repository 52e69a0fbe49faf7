#pragma once
/// The largest step that an engine will ever run. What it needs is allocated from these numbers before the first step.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/step.hpp>

#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

struct StepLimits {
  std::int64_t num_blocks = 0;       // of the KV cache
  std::int64_t num_host_blocks = 0;  // of the pool in host memory; as many may move a step, each way
  std::int32_t block_size = 0;       // [tokens]
  std::int32_t max_num_tokens = 0;   // [tokens] of one step
  std::int32_t max_num_seqs = 0;     // sequences, and sampled rows, of one step
  std::int32_t max_model_len = 0;    // [tokens] of one sequence
  std::int32_t max_logit_bias = 0;   // entries of one sampled row
  std::int32_t max_banned = 0;       // tokens of one sampled row
  std::int32_t max_logprobs = 0;     // most likely tokens that one sampled row reports
  std::int32_t num_in_flight = 2;    // steps that may be launched and not collected
};

/// The step whose arrays are the longest.
inline StepShape largest_step(const StepLimits& limits) {
  const auto seqs = static_cast<std::size_t>(limits.max_num_seqs);
  const auto length = static_cast<std::size_t>(limits.max_model_len);
  return {.num_tokens = static_cast<std::size_t>(limits.max_num_tokens),
          .num_seqs = seqs,
          .max_blocks_per_seq = ceil_div(length, static_cast<std::size_t>(limits.block_size)),
          .num_samples = seqs,
          .num_logit_bias = seqs * static_cast<std::size_t>(limits.max_logit_bias),
          .num_banned = seqs * static_cast<std::size_t>(limits.max_banned),
          .num_history = seqs * length,
          .num_copies = seqs,
          .num_swap_out = static_cast<std::size_t>(limits.num_host_blocks),
          .num_swap_in = static_cast<std::size_t>(limits.num_host_blocks)};
}

}  // namespace nvl::inline NVL_ABI
