#pragma once
/// The largest step that an engine will ever run. What it needs is allocated from these numbers before the first step.

#include <nvl/core/config.hpp>

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

}  // namespace nvl::inline NVL_ABI
