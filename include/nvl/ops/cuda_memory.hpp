#pragma once
/// What CudaOps will take of a device's memory, from sizes alone: the engine reserves it before its first kernel, and a planner
/// adds it up where there is no GPU.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/kernels/gemm_workspace.hpp>
#include <nvl/kernels/sampling_result.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace nvl::inline NVL_ABI {

inline constexpr std::size_t cuda_buffer_alignment = 256;  // [bytes] of every buffer that is cut from a device's reserve

/// [bytes] that a buffer of `num_bytes` takes of the reserve
constexpr std::int64_t cuda_buffer_bytes(std::int64_t num_bytes) noexcept {
  return ceil_div(num_bytes, std::int64_t{cuda_buffer_alignment}) * std::int64_t{cuda_buffer_alignment};
}

/// The sizes of steps that are recorded as graphs.
struct CudaGraphSizes {
  static constexpr std::int32_t max_recorded_seqs = 512;     // larger batches keep the device busy without a graph
  static constexpr std::int32_t max_recorded_prompt = 1024;  // [tokens] so do longer prompts
  static constexpr std::int32_t min_recorded_prompt = 64;    // [tokens]

  /// Decode: 1, 2, 4, then every 8 sequences up to `max_num_seqs`, which is the last: padding costs rows of matrix products but
  /// reads no KV.
  static std::vector<std::int32_t> batch_sizes(std::int32_t max_num_seqs) {
    std::vector<std::int32_t> sizes;
    const std::int32_t last = std::min(max_num_seqs, max_recorded_seqs);
    for (const std::int32_t size : {1, 2, 4}) {
      if (size < last) { sizes.push_back(size); }
    }
    for (std::int32_t size = 8; size < last; size += 8) { sizes.push_back(size); }
    if (last > 0) { sizes.push_back(last); }
    return sizes;
  }

  /// Prompts: every 64 tokens up to 512, then every 128.
  static std::vector<std::int32_t> prompt_sizes(std::int32_t max_num_tokens) {
    std::vector<std::int32_t> sizes;
    for (std::int32_t size = min_recorded_prompt; size <= std::min(max_num_tokens, max_recorded_prompt);
         size += size < 512 ? 64 : 128) {
      sizes.push_back(size);
    }
    return sizes;
  }

  /// [bytes] that the driver will hold for the graphs of a model; measured, not promised.
  static std::int64_t estimated_bytes(std::int32_t num_layers, std::int32_t max_num_seqs) {
    constexpr std::int64_t bytes_per_layer = 16 << 10;
    const std::size_t num_graphs = batch_sizes(max_num_seqs).size() + prompt_sizes(max_recorded_prompt).size();
    return static_cast<std::int64_t>(num_graphs) * num_layers * bytes_per_layer;
  }
};

/// [bytes] of the device memory of a RoPE table
inline std::size_t cuda_rope_bytes(const ModelConfig& config, const StepLimits& limits) noexcept {
  return static_cast<std::size_t>(limits.max_model_len) * static_cast<std::size_t>(config.head_dim) * sizeof(float);
}

inline kernels::SamplingResultLayout sampling_results(const StepLimits& limits) noexcept {
  return {.max_rows = limits.max_num_seqs, .max_top_logprobs = limits.max_logprobs};
}

/// The type of the residual. Float for fp16, whose 11 bits its large elements use up: on SmolLM2 that halves the error of the logits.
template <class T>
using CudaResidual = std::conditional_t<std::is_same_v<T, fp16>, float, T>;

/// What CudaOps will take of the device's reserve, and what the driver will for the graphs.
/// \tparam T element type of weights and activations
template <class T>
FixedMemory cuda_fixed_memory(const ModelConfig& config, const StepLimits& limits, const DeviceOptions& options) {
  // What the plan does not round: eight arrays of activations, and the buffers of these, of the logits and of the KV cache.
  constexpr std::int64_t rounding_bytes = 12 * std::int64_t{cuda_buffer_alignment};
  FixedMemory memory;
  for (const WeightSpec& spec : expected_weights(config)) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : spec.shape) { elements *= extent; }
    memory.weight_bytes += cuda_buffer_bytes(elements * std::int64_t{sizeof(T)});
  }
  const auto buffer = [](std::size_t num_bytes) { return cuda_buffer_bytes(static_cast<std::int64_t>(num_bytes)); };
  const auto rows = static_cast<std::size_t>(limits.max_num_seqs);
  memory.workspace_bytes = buffer(step_bytes(largest_step(limits))) + buffer(cuda_rope_bytes(config, limits)) +
                           buffer(kernels::gemm_workspace_bytes) +
                           buffer(kernels::sampling_workspace_bytes(limits.max_num_seqs, config.vocab_size)) +
                           buffer(sampling_results(limits).bytes()) + buffer(rows * sizeof(TokenId)) + rounding_bytes;
  // The plan's activations are of T.
  memory.workspace_bytes += (std::int64_t{limits.max_num_tokens} + limits.max_num_seqs) * config.hidden_size *
                            static_cast<std::int64_t>(sizeof(CudaResidual<T>) - sizeof(T));
  if (options.use_graphs) { memory.graph_bytes = CudaGraphSizes::estimated_bytes(config.num_layers, limits.max_num_seqs); }
  return memory;
}

}  // namespace nvl::inline NVL_ABI
