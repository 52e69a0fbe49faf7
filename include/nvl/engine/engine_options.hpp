#pragma once
/// Options of an engine, and the memory that follows from them, known before anything is allocated.

#include <nvl/attention/context_attention.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/sampling_params.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/token_text.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/model/head.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/token_shares.hpp>
#include <nvl/sched/scheduling_options.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

namespace nvl::inline NVL_ABI {

struct EngineOptions {
  std::int32_t max_num_seqs = 64;              // sequences running at once
  std::int32_t max_num_batched_tokens = 2048;  // [tokens] computed in one step
  std::int32_t max_model_len = 0;              // [tokens] of prompt and output; 0 = what the model was made for
  std::int64_t kv_cache_memory_bytes =
      0;  // of each rank; 0 = CPU: up to a quarter of the host's memory; CUDA: what device.memory_utilization leaves; no more than can be used
  std::int64_t num_blocks = 0;                    // of the KV cache, instead of a size in bytes; 0 = from the size
  std::int64_t swap_space_bytes = 0;              // of host memory for KV blocks that make room on the device; 0 = none
  DeviceOptions device{};                         // where it runs
  std::optional<std::uint64_t> seed{};            // seeds of requests without one are drawn from it; none = from the system
  RequestLimits limits{};                         // what one request may ask for
  SchedulingOptions scheduling{};                 // of schedulers that mix prompts and decodes in a step
  std::shared_ptr<const TokenText> token_text{};  // turns ids into text; without it there is no text and no stop string
};

/// Every byte that one rank of an engine will hold on its device.
struct MemoryPlan {
  std::int32_t max_model_len = 0;  // [tokens]
  std::int32_t block_size = 0;     // [tokens] of a block of the allocator's
  FixedMemory fixed;
  std::int64_t kv_bytes_per_block = 0;  // K and V of all layers, of the rank's share of a block's tokens
  std::int64_t num_blocks = 0;
  std::int64_t kv_bytes = 0;
  std::int64_t num_host_blocks = 0;  // of the pool in host memory, which is not the device's: page-locked on CUDA
  std::int64_t activation_bytes = 0;
  std::int64_t logits_bytes = 0;

  /// What the engine allocates itself.
  std::int64_t allocated_bytes() const noexcept {
    return fixed.weight_bytes + fixed.workspace_bytes + kv_bytes + activation_bytes + logits_bytes;
  }
  std::int64_t total_bytes() const noexcept { return allocated_bytes() + fixed.graph_bytes; }
  std::int64_t swap_space_bytes() const noexcept { return num_host_blocks * kv_bytes_per_block; }
};

/// The plan as a table, a line an item.
inline std::string to_table(const MemoryPlan& plan) {
  std::string table;
  const auto row = [&](const char* what, std::int64_t bytes, const std::string& note = {}) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-12s %14lld bytes %10.1f MiB", what, static_cast<long long>(bytes),
                  static_cast<double>(bytes) / (1 << 20));
    table += line + (note.empty() ? std::string() : "  " + note) + "\n";
  };
  row("weights", plan.fixed.weight_bytes);
  row("KV cache", plan.kv_bytes,
      std::to_string(plan.num_blocks) + " blocks of " + std::to_string(plan.block_size) + " tokens, " +
          std::to_string(plan.kv_bytes_per_block) + " bytes each");
  row("activations", plan.activation_bytes);
  row("logits", plan.logits_bytes);
  row("workspace", plan.fixed.workspace_bytes);
  row("graphs", plan.fixed.graph_bytes, plan.fixed.graph_bytes > 0 ? "estimated" : "");
  row("total", plan.total_bytes());
  if (plan.num_host_blocks > 0) {
    row("swap space", plan.swap_space_bytes(), "host memory besides: " + std::to_string(plan.num_host_blocks) + " blocks");
  }
  return table;
}

/// Most likely tokens that one sampled row may be asked for: by log-probabilities or by a beam search with as many stop tokens.
inline std::int32_t max_row_logprobs(const RequestLimits& limits) noexcept {
  return std::max(limits.max_logprobs, 2 * limits.max_beam_width);
}

inline StepLimits step_limits(const ModelConfig& config, const MemoryPlan& plan, const EngineOptions& options,
                              std::int32_t block_size) noexcept {
  const auto num_eos = static_cast<std::int32_t>(config.eos_token_ids.size());
  return {.num_blocks = plan.num_blocks,
          .num_host_blocks = plan.num_host_blocks,
          .block_size = block_size,
          .max_num_tokens = options.max_num_batched_tokens,
          .max_num_seqs = options.max_num_seqs,
          .max_model_len = plan.max_model_len,
          .max_logit_bias = options.limits.max_logit_bias,
          .max_banned = options.limits.max_stop_token_ids + num_eos,
          .max_logprobs = max_row_logprobs(options.limits)};
}

/// The ranks that an engine's model is on.
struct RankCount {
  std::uint32_t num_local = 1;   // in this process
  std::uint32_t num_slices = 1;  // that share a layer
  bool shares_tokens = false;    // of a step (TokenSharingContext)
  std::uint32_t num_shares = 1;  // ranks that do
};

/// What `options` mean for a model (of one rank) whose activations have `element_bytes` and whose K and V have `kv_element_bytes`, on a device
/// with `device` memory, of which `fixed_memory(limits)` is needed besides.
/// \throws InvalidArgument for an option out of range; OutOfMemory, with the arithmetic, if not even one block fits.
template <class FixedMemoryOf>
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, std::int32_t block_size,
                       std::int64_t element_bytes, std::int64_t kv_element_bytes, const DeviceMemory& device,
                       const RankCount& ranks, FixedMemoryOf&& fixed_memory) {
  NVL_EXPECTS(options.max_num_seqs >= 1 && options.max_num_seqs <= (1 << 16), "max_num_seqs", options.max_num_seqs, "1 to 65536");
  NVL_EXPECTS(options.max_num_batched_tokens >= 1 && options.max_num_batched_tokens <= (1 << 20), "max_num_batched_tokens",
              options.max_num_batched_tokens, "1 to 2^20");
  NVL_EXPECTS(
      options.max_num_batched_tokens >= options.max_num_seqs, "max_num_batched_tokens", options.max_num_batched_tokens,
      "at least max_num_seqs (" + std::to_string(options.max_num_seqs) + "): each running sequence computes a token a step");
  NVL_EXPECTS(options.max_model_len >= 0 && options.max_model_len <= config.max_position_embeddings, "max_model_len",
              options.max_model_len, "0 to the model's " + std::to_string(config.max_position_embeddings));
  validate(options.scheduling);
  NVL_EXPECTS(options.kv_cache_memory_bytes >= 0, "kv_cache_memory_bytes", options.kv_cache_memory_bytes, "not negative");
  NVL_EXPECTS(options.num_blocks >= 0 && options.num_blocks < (std::int64_t{1} << 31), "num_blocks", options.num_blocks,
              "0 to 2^31 - 1");
  NVL_EXPECTS(options.swap_space_bytes >= 0, "swap_space_bytes", options.swap_space_bytes, "not negative");

  MemoryPlan plan;
  plan.block_size = block_size * static_cast<std::int32_t>(ranks.num_shares);
  plan.max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  const std::int64_t tokens = max_share_rows(options.max_num_batched_tokens, options.max_num_seqs, ranks.num_shares);
  const std::int64_t row =
      2 * std::int64_t{config.hidden_size} + config.qkv_size() + config.q_size() + 3 * std::int64_t{config.intermediate_size};
  plan.activation_bytes =
      (tokens * row + options.max_num_seqs * std::int64_t{config.hidden_size + config.q_size()}) * element_bytes;
  if (ranks.shares_tokens) {
    const KvLayout layout{
        .num_blocks = 0, .block_size = block_size, .num_kv_heads = config.num_kv_heads, .head_dim = config.head_dim};
    plan.activation_bytes += ContextAttentionSizes::of({.num_q_heads = config.num_q_heads, .kv = layout},
                                                       options.max_num_batched_tokens, options.max_num_seqs, ranks.num_shares)
                                 .bytes(element_bytes) +
                             std::int64_t{ranks.num_shares} * options.max_num_seqs * config.hidden_size * element_bytes;
  }
  plan.logits_bytes = head_bytes(options.max_num_seqs, config.vocab_size, ranks.num_slices);
  plan.kv_bytes_per_block = std::int64_t{config.num_layers} * 2 * config.kv_size() * block_size * kv_element_bytes;

  plan.num_host_blocks = std::min(options.swap_space_bytes / plan.kv_bytes_per_block, (std::int64_t{1} << 31) - 1);
  NVL_EXPECTS(options.swap_space_bytes == 0 || plan.num_host_blocks > 0, "swap_space_bytes", options.swap_space_bytes,
              "0, or at least the " + std::to_string(plan.kv_bytes_per_block) + " bytes of one block");

  plan.fixed = fixed_memory(step_limits(config, plan, options, block_size));

  const std::int64_t blocks_per_seq = ceil_div<std::int64_t>(plan.max_model_len, plan.block_size);
  const std::int64_t most_useful = blocks_per_seq * options.max_num_seqs;
  const std::int64_t others = device.is_for_kv_only ? 0 : plan.total_bytes();
  if (options.num_blocks > 0) {
    plan.num_blocks = options.num_blocks;
  } else {
    const std::int64_t budget = options.kv_cache_memory_bytes > 0 ? options.kv_cache_memory_bytes : device.budget_bytes - others;
    plan.num_blocks = std::min({budget / plan.kv_bytes_per_block, most_useful, (std::int64_t{1} << 31) - 1});
    if (plan.num_blocks < 1) {
      raise(OutOfMemory(
          "no room for a KV cache: one block of " + std::to_string(block_size) + " tokens takes " +
          std::to_string(plan.kv_bytes_per_block) + " bytes (" + std::to_string(config.num_layers) + " layers x 2 x " +
          std::to_string(config.num_kv_heads) + " KV heads x " + std::to_string(config.head_dim) + " x " +
          std::to_string(kv_element_bytes) + " bytes x " + std::to_string(block_size) + " tokens), the budget is " +
          std::to_string(budget) + " bytes" +
          (others > 0 ? ": " + std::to_string(device.budget_bytes) + " less these:\n" + to_table(plan) : std::string())));
    }
  }
  plan.kv_bytes = plan.num_blocks * plan.kv_bytes_per_block;
  if (!device.is_for_kv_only && plan.total_bytes() > device.budget_bytes) {
    raise(OutOfMemory("the engine needs " + std::to_string(plan.total_bytes()) + " bytes and may have " +
                      std::to_string(device.budget_bytes) + ":\n" + to_table(plan)));
  }
  return plan;
}

/// The plan of one rank of an engine with this attention backend.
/// \param config of the rank
template <class Attention>
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, const RankCount& ranks = {}) {
  using Ops = typename Attention::Ops;
  NVL_EXPECTS(TransferringOps<Ops> || options.swap_space_bytes == 0, "swap_space_bytes", options.swap_space_bytes,
              "0: the ops of this attention backend move no blocks to host memory (TransferringOps)");
  constexpr std::int64_t element_bytes = sizeof(typename Attention::Element);
  DeviceMemory memory = Ops::Device::memory(options.device);
  if (memory.is_for_kv_only) { memory.budget_bytes /= ranks.num_local; }  // all of them take it from the host's
  return plan_memory(config, options, Attention::block_size, element_bytes, element_bytes, memory, ranks,
                     [&](const StepLimits& limits) {
                       FixedMemory fixed;
                       if constexpr (requires { Ops::fixed_memory(config, limits, options.device); }) {
                         fixed = Ops::fixed_memory(config, limits, options.device);
                       }
                       if constexpr (requires { Attention::workspace_bytes(config, limits); }) {
                         fixed.workspace_bytes += Attention::workspace_bytes(config, limits);
                       }
                       return fixed;
                     });
}

/// The plan of an engine with this attention backend and this allocator.
template <class Attention, BlockAllocator Allocator>
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, const RankCount& ranks = {}) {
  NVL_EXPECTS(TieredAllocator<Allocator> || options.swap_space_bytes == 0, "swap_space_bytes", options.swap_space_bytes,
              "0: this engine's allocator has no host blocks (TieredAllocator)");
  return plan_memory<Attention>(config, options, ranks);
}

}  // namespace nvl::inline NVL_ABI
