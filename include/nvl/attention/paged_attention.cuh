#pragma once
/// AttentionBackend on a CUDA device: a split-KV kernel for sequences with few new tokens, a tiled one for prompts.
///
/// The batch-invariant variant runs the tiled kernel for all of them: it takes a query's keys in the same order wherever the
/// query stands in a chunk, so that decoding, prefill, recomputation and prefix hits agree in every bit.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/paged_attention_memory.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/kernels/detail/trace.cuh>
#include <nvl/kernels/paged_attention_decode.cuh>
#include <nvl/kernels/paged_attention_prefill.cuh>
#include <nvl/ops/cuda_device.cuh>
#include <nvl/ops/cuda_ops.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Element types: bf16, fp16, float. `kHeadDim` 0 compiles all of `supported_head_dims` and picks at run time.
template <class T, std::int32_t kHeadDim = 0, PagedAttentionOptions kOptions = PagedAttentionOptions{}>
class PagedAttention {
 public:
  using Element = T;
  using Ops = CudaOps<T, kOptions.batch_invariant>;
  static constexpr std::int32_t block_size = kOptions.block_size;
  static_assert(kHeadDim == 0 || is_supported_head_dim(kHeadDim), "nvl: PagedAttention: head dim not in supported_head_dims");

  static constexpr bool supports(std::int32_t head_dim) {
    return kHeadDim == 0 ? is_supported_head_dim(head_dim) : head_dim == kHeadDim;
  }

  /// [bytes] that it will take of the device's reserve
  static std::int64_t workspace_bytes(const ModelConfig& config, const StepLimits& limits) {
    return paged_attention_workspace_bytes<T>(config, limits, kOptions,
                                              kernels::detail::paged_decode::device_attribute(cudaDevAttrMultiProcessorCount));
  }

  PagedAttention(const AttentionShape& shape, Ops& ops)
      : shape_(shape),
        ops_(ops),
        prefill_workspace_(ops.device(), prefill_bytes(shape, ops.limits())) {
    NVL_EXPECTS(supports(shape.kv.head_dim), "head_dim", shape.kv.head_dim,
                kHeadDim == 0 ? "one of those compiled in: " + supported_head_dims_text() : std::to_string(kHeadDim));
    NVL_EXPECTS(shape.kv.block_size == block_size, "block_size", shape.kv.block_size, std::to_string(block_size));
    if constexpr (!kOptions.batch_invariant) {
      if (shape.has_full_layers) { add_window(0); }
      if (shape.window > 0) { add_window(shape.window); }
    }
  }

  void plan(const AttentionMetadata& metadata) {
    const kernels::detail::TraceSpan span("attention plan");
    metadata_ = metadata;
    if (has_decodes()) {
      for (const Window& window : windows_) {
        const auto params = decode_params({.window = window.tokens}, window);
        kernels::with_paged_decode_traits<T, kHeadDim>(
            params, [&]<class Traits>() { kernels::launch_paged_decode_plan<Traits>(params, ops_.stream()); });
      }
    }
    if (has_prefills()) { kernels::launch_paged_prefill_plan<T>(prefill_params({.q_row_stride = q_size()}), ops_.stream()); }
  }

  void run(const AttentionCall<T>& call) {
    const kernels::detail::TraceSpan span("attention");
    if (has_decodes()) {
      const auto params = decode_params(call, window_of(call.window));
      kernels::with_paged_decode_traits<T, kHeadDim>(
          params, [&]<class Traits>() { kernels::launch_paged_decode<Traits>(params, ops_.stream()); });
    }
    if (!has_prefills()) { return; }
    if constexpr (kHeadDim == 0) {
      kernels::launch_paged_prefill<T>(prefill_params(call), ops_.stream());
    } else {
      kernels::launch_paged_prefill<T, kHeadDim>(prefill_params(call), ops_.stream());
    }
  }

 private:
  /// A plan serves the layers of one window.
  struct Window {
    std::int32_t tokens = 0;
    CudaDevice::Buffer single, several;  // workspaces of steps with one query a sequence, and with more
  };

  static std::size_t prefill_bytes(const AttentionShape& shape, const StepLimits& limits) {
    return kernels::paged_prefill_workspace_bytes<T>(limits.max_num_tokens, limits.max_num_seqs, shape.num_q_heads,
                                                     shape.kv.num_kv_heads, shape.kv.head_dim);
  }

  /// The part of a decode call that does not change from step to step.
  static kernels::PagedDecodeParams<T> decode_shape(const AttentionShape& shape, const StepLimits& limits,
                                                    std::int32_t max_query_len) {
    return {
        .layout = shape.kv, .num_q_heads = shape.num_q_heads, .max_query_len = max_query_len, .max_seqs = limits.max_num_seqs};
  }

  static std::size_t decode_bytes(const AttentionShape& shape, const StepLimits& limits, std::int32_t max_query_len) {
    const auto params = decode_shape(shape, limits, max_query_len);
    return kernels::with_paged_decode_traits<T, kHeadDim>(
        params, [&]<class Traits>() { return kernels::paged_decode_workspace_bytes<Traits>(params); });
  }

  void add_window(std::int32_t tokens) {
    const auto workspace = [&](std::int32_t max_query_len) {
      return CudaDevice::Buffer(ops_.device(), decode_bytes(shape_, ops_.limits(), max_query_len));
    };
    windows_.push_back({tokens, workspace(1), workspace(most_decode_queries(shape_))});
  }

  const Window& window_of(std::int32_t tokens) const {
    for (const Window& window : windows_) {
      if (window.tokens == tokens) { return window; }
    }
    raise(InvalidArgument("window", std::to_string(tokens), "one that the attention was made for"));
  }

  std::int64_t q_size() const noexcept { return std::int64_t{shape_.num_q_heads} * shape_.kv.head_dim; }
  /// [tokens] that a sequence computes at most in this step for the decode kernel to take it; longer ones are the prefill kernel's.
  std::int32_t max_decode_query_len() const noexcept { return metadata_.max_query_len == 1 ? 1 : most_decode_queries(shape_); }
  bool has_decodes() const noexcept {
    return !kOptions.batch_invariant && metadata_.num_seqs() > 0 && metadata_.min_query_len <= max_decode_query_len();
  }
  bool has_prefills() const noexcept { return kOptions.batch_invariant || metadata_.max_query_len > max_decode_query_len(); }

  kernels::PagedDecodeParams<T> decode_params(const AttentionCall<T>& call, const Window& window) const {
    auto params = decode_shape(shape_, ops_.limits(), max_decode_query_len());
    params.out = call.out;
    params.q = call.q;
    params.q_row_stride = call.q_row_stride;
    params.kv = call.kv;
    params.block_tables = metadata_.block_tables.data();
    params.block_stride = metadata_.block_stride.data();
    params.seq_lens = metadata_.seq_lens.data();
    params.cu_query_lens = metadata_.cu_query_lens.data();
    params.num_seqs = metadata_.num_seqs();
    params.window = call.window;
    params.scale = call.scale;
    params.workspace = (params.max_query_len == 1 ? window.single : window.several).template as<void>();
    params.history_is_complete = true;  // CudaOps::embed comes after the plan and does not overlap it
    return params;
  }

  kernels::PagedPrefillParams<T> prefill_params(const AttentionCall<T>& call) const {
    return {.out = call.out,
            .q = call.q,
            .q_row_stride = call.q_row_stride,
            .kv = call.kv,
            .layout = shape_.kv,
            .block_tables = metadata_.block_tables.data(),
            .max_blocks_per_seq = metadata_.max_blocks_per_seq,
            .block_stride = metadata_.block_stride.data(),
            .seq_lens = metadata_.seq_lens.data(),
            .cu_query_lens = metadata_.cu_query_lens.data(),
            .num_seqs = metadata_.num_seqs(),
            .num_tokens = metadata_.num_tokens,
            .num_q_heads = shape_.num_q_heads,
            .window = call.window,
            .min_query_len = kOptions.batch_invariant ? 0 : max_decode_query_len() + 1,
            .scale = call.scale,
            .workspace = prefill_workspace_.template as<void>()};
  }

  AttentionShape shape_;
  Ops& ops_;
  CudaDevice::Buffer prefill_workspace_;
  std::vector<Window> windows_;
  AttentionMetadata metadata_;
};
static_assert(require_attention_backend<PagedAttention<float, 64>>());

}  // namespace nvl::inline NVL_ABI
