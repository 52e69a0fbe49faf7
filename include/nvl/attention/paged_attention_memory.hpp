#pragma once
/// What PagedAttention will take of a device's memory, from sizes alone.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/kernels/paged_attention_decode_workspace.hpp>
#include <nvl/kernels/paged_attention_prefill_workspace.hpp>
#include <nvl/ops/cuda_memory.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Compile-time choices of PagedAttention.
struct PagedAttentionOptions {
  std::int32_t block_size = 16;  // [tokens] a power of two, 16 to 256
  bool batch_invariant = false;  // results of a sequence do not depend on the others of a step, bit for bit
};

/// [tokens] of a sequence that the decode kernel takes in one go, with the heads of a group, as the columns of its products.
constexpr std::int32_t most_decode_queries(const AttentionShape& shape) noexcept {
  return std::max(1, 16 * shape.kv.num_kv_heads / shape.num_q_heads);
}

/// [bytes] that PagedAttention will take of the device's reserve.
/// \tparam T element type \param num_sms multiprocessors of the device
template <class T>
std::int64_t paged_attention_workspace_bytes(const ModelConfig& config, const StepLimits& limits,
                                             const PagedAttentionOptions& options, std::int32_t num_sms) {
  const auto buffer = [](std::size_t num_bytes) { return cuda_buffer_bytes(static_cast<std::int64_t>(num_bytes)); };
  const auto decode_bytes = [&](std::int32_t max_query_len) {
    return buffer(kernels::paged_decode_workspace_bytes<T>(num_sms, config.num_q_heads, config.num_kv_heads, config.head_dim,
                                                           max_query_len, limits.max_num_seqs));
  };
  const AttentionShape shape{.num_q_heads = config.num_q_heads, .kv = {.num_kv_heads = config.num_kv_heads}};
  // The layers of one window share a plan; the batch-invariant variant decodes with the prefill kernel.
  const std::int64_t num_windows =
      options.batch_invariant ? 0 : (config.has_full_layers() ? 1 : 0) + (config.has_windowed_layers() ? 1 : 0);
  return buffer(kernels::paged_prefill_workspace_bytes<T>(limits.max_num_tokens, limits.max_num_seqs, config.num_q_heads,
                                                          config.num_kv_heads, config.head_dim)) +
         num_windows * (decode_bytes(1) + decode_bytes(most_decode_queries(shape)));
}

}  // namespace nvl::inline NVL_ABI
