#pragma once
/// What a model and an engine's options mean on GPUs that need not be there: memory by the functions with which the engine plans
/// it, and limits of speed by the roofline.

#include "bench/support/gpus.hpp"
#include "bench/support/roofline.hpp"
#include "bench/support/workload.hpp"

#include <nvl/attention/paged_attention_memory.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/ops/cuda_memory.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nvl_bench {

/// An engine that is to be planned.
struct CapacityQuestion {
  nvl::ModelConfig model;
  nvl::EngineOptions options;
  Gpu gpu;
  PeakRates rates;                                    // of the GPU
  nvl::DType dtype = nvl::DType::bfloat16;            // of weights and activations: bfloat16 or float16
  std::int64_t kv_element_bytes = 2;                  // 1: FP8
  std::int32_t block_size = 16;                       // [tokens]
  std::int32_t num_ranks = 1;                         // GPUs that share every layer (tensor parallel)
  std::int64_t used_bytes = std::int64_t{512} << 20;  // of each GPU when the engine plans: what CUDA itself takes, and others
  double all_reduce_seconds = 15e-6;                  // of a small one; NCCL on eight H200 takes 14.8 us
};

/// What one rank of several holds of the layers. \throws InvalidArgument where the model cannot be divided so
inline nvl::ModelConfig rank_model(const nvl::ModelConfig& model, std::int32_t num_ranks) {
  return nvl::config_of(nvl::shard_of(model, {.num_slices = static_cast<std::uint32_t>(num_ranks)}), model);
}

/// The same with its rows of the vocabulary only, as embedding and output projection are held. Logits and sampling see them all.
inline nvl::ModelConfig rank_weights(const nvl::ModelConfig& model, std::int32_t num_ranks) {
  nvl::ModelConfig rank = rank_model(model, num_ranks);
  rank.vocab_size = nvl::ceil_div(model.vocab_size, num_ranks);
  return rank;
}

namespace detail {

template <class T>
nvl::MemoryPlan rank_plan(const CapacityQuestion& q) {
  const nvl::ModelConfig rank = rank_model(q.model, q.num_ranks);
  const double utilization = q.options.device.memory_utilization;
  NVL_EXPECTS(utilization > 0 && utilization <= 1, "gpu_memory_utilization", utilization, "in (0, 1]");
  const auto allowed = static_cast<std::int64_t>(static_cast<double>(q.gpu.memory_bytes) * utilization);
  const nvl::DeviceMemory memory{.budget_bytes = allowed - q.used_bytes, .is_for_kv_only = false};
  const auto fixed_memory = [&](const nvl::StepLimits& limits) {
    nvl::FixedMemory fixed = nvl::cuda_fixed_memory<T>(rank, limits, q.options.device);
    fixed.weight_bytes = nvl::cuda_fixed_memory<T>(rank_weights(q.model, q.num_ranks), limits, q.options.device).weight_bytes;
    fixed.workspace_bytes += nvl::paged_attention_workspace_bytes<T>(rank, limits, {.block_size = q.block_size}, q.gpu.num_sms);
    return fixed;
  };
  return nvl::plan_memory(rank, q.options, q.block_size, sizeof(T), q.kv_element_bytes, memory,
                          {.num_slices = static_cast<std::uint32_t>(q.num_ranks)}, fixed_memory);
}

}  // namespace detail

/// The memory of one rank. For one rank with K and V in 16 bits it is the plan that the engine makes.
/// \throws InvalidArgument, OutOfMemory
inline nvl::MemoryPlan rank_plan(const CapacityQuestion& q) {
  NVL_EXPECTS(q.block_size >= 16 && q.block_size <= 256 && (q.block_size & (q.block_size - 1)) == 0, "block_size", q.block_size,
              "a power of two, 16 to 256");
  if (q.dtype == nvl::DType::bfloat16) { return detail::rank_plan<nvl::bf16>(q); }
  NVL_EXPECTS(q.dtype == nvl::DType::float16, "dtype", nvl::info(q.dtype).name, "bfloat16 or float16");
  return detail::rank_plan<nvl::fp16>(q);
}

/// [bytes] of K and V of one token in all layers of a rank
inline std::int64_t kv_bytes_per_token(const nvl::MemoryPlan& plan) { return plan.kv_bytes_per_block / plan.block_size; }

/// [blocks] that a sequence of `length` tokens, prompt and output, holds at its end: K and V of the last token are never stored.
inline std::int64_t blocks_of_sequence(const nvl::MemoryPlan& plan, std::int64_t length) {
  return std::max<std::int64_t>(nvl::ceil_div<std::int64_t>(length - 1, plan.block_size), 1);
}

/// Sequences of `length` tokens whose K and V fit at once.
inline std::int64_t sequences_that_fit(const nvl::MemoryPlan& plan, std::int64_t length) {
  return plan.num_blocks / blocks_of_sequence(plan, length);
}

/// The shortest times that the ranks can take. Nothing overlaps; the logits' way between ranks is left out.
class CapacityLimits {
 public:
  explicit CapacityLimits(const CapacityQuestion& q)
      : bytes_(rank_weights(q.model, q.num_ranks), nvl::info(q.dtype).block_bytes, q.kv_element_bytes),
        rates_(q.rates),
        num_ranks_(q.num_ranks),
        num_all_reduces_(2 * q.model.num_layers),
        row_bytes_(static_cast<double>(q.model.hidden_size) * static_cast<double>(nvl::info(q.dtype).block_bytes)),
        link_bandwidth_(q.gpu.link_bandwidth),
        all_reduce_seconds_(q.all_reduce_seconds),
        max_step_tokens_(q.options.max_num_batched_tokens) {}

  /// [s] of a step that computes one token of each of `batch` sequences, each of which then has `context` tokens.
  double decode_step(std::int64_t batch, std::int64_t context) const {
    const auto n = static_cast<double>(batch);
    return std::max(bytes_.weight_bytes() / rates_.read_bytes, n * bytes_.flops_per_decoded_token() / rates_.matmul_flops) +
           n * bytes_.kv_read_bytes(context) / rates_.read_bytes + all_reduces(1, n);
  }

  /// [s] to the first token of a prompt that is computed alone.
  double first_token(std::int32_t prompt) const { return load(std::vector<RequestLengths>{{prompt, 1}}); }

  /// [s] of requests that start together.
  double load(std::span<const RequestLengths> requests) const {
    const LoadWork work = LoadWork::of(bytes_, requests);
    double prompt_tokens = 0, decoded_tokens = 0;
    for (const RequestLengths& request : requests) { prompt_tokens += request.input; }
    for (const std::int32_t batch : work.decode_batches) { decoded_tokens += batch; }
    const double prefill_steps = std::ceil(prompt_tokens / max_step_tokens_);
    return work.seconds(bytes_, rates_) + all_reduces(prefill_steps, prompt_tokens) +
           all_reduces(static_cast<double>(work.decode_batches.size()), decoded_tokens);
  }

 private:
  /// [s] of the sums over the ranks in `steps` steps of `tokens` tokens together: each byte crosses a link twice, in a ring.
  double all_reduces(double steps, double tokens) const {
    if (num_ranks_ == 1) { return 0; }
    const double share = 2.0 * (num_ranks_ - 1) / num_ranks_;
    return num_all_reduces_ * (steps * all_reduce_seconds_ + tokens * row_bytes_ * share / link_bandwidth_);
  }

  ModelBytes bytes_;  // of a rank
  PeakRates rates_;
  std::int32_t num_ranks_;
  double num_all_reduces_;  // of a step
  double row_bytes_;        // of one token's activations
  double link_bandwidth_, all_reduce_seconds_;
  double max_step_tokens_;
};

/// From a limit to what may be expected: two numbers with which nvl's measured Qwen3-0.6B on an H200 comes out, one request alone
/// (bench/results/latency_qwen3_0.6b.json) and many (throughput_qwen3_0.6b.json).
struct Efficiency {
  double share = 0.80;             // of the GPU's reachable rates
  double layer_seconds = 13.5e-6;  // of each layer in each step, on top

  double expected(double limit_seconds, double num_steps, std::int32_t num_layers) const {
    return limit_seconds / share + num_steps * num_layers * layer_seconds;
  }
};

}  // namespace nvl_bench
