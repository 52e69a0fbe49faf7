#pragma once
/// From the output of the QKV projection to the inputs of attention, in one pass over each row: optional RMS norm of every Q
/// and K head, RoPE on Q (in place) and K, K and V to their slots of the paged cache. The row's own K and V stay as they were.
/// Oracles: kernels/reference/rope.hpp (norm_and_rope). Host twin: CpuOps::qk_norm_rope_store.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/reduce.cuh>
#include <nvl/kernels/detail/row_vector.cuh>
#include <nvl/kernels/kv_store.cuh>
#include <nvl/kernels/rope.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// A warp does `kSteps` times 32 / kLanesPerHead heads of one token; the lanes of a head are those of detail::lanes_per_head.
template <class T, int kLanesPerHead, int kSteps>
struct QkNormRopeStoreTraits {
  using Element = T;
  static constexpr int lanes_per_head = kLanesPerHead;
  static constexpr int heads_per_step = 32 / kLanesPerHead;
  static constexpr int steps = kSteps;
  static constexpr int heads_per_warp = heads_per_step * kSteps;
  static constexpr int vec = detail::vec_elements<T>;
  static constexpr int threads = 128;  // [per block]
  // With many tokens what counts is how many warps wait for memory at once: 28 on a multiprocessor at 72 registers. With 96
  // registers 8192 tokens of 16/8 heads of 128 take 44 us instead of 37 (H200).
  static constexpr int min_blocks = kSteps == 1 ? 1 : 7;
};

/// Run-time values, passed by value to the kernel.
template <class T>
struct QkNormRopeStoreParams {
  T* qkv = nullptr;                         // [num_tokens, num_q_heads + 2 num_kv_heads, head_dim], device: Q, then K, then V
  const std::int32_t* positions = nullptr;  // [num_tokens], device, each below rope.num_positions
  const SlotId* slot_mapping = nullptr;     // [num_tokens], device; no_slot: Q is computed, nothing is stored
  const T* q_norm = nullptr;                // [head_dim], device; nullptr: no norm
  const T* k_norm = nullptr;                // likewise
  DeviceRopeTable rope;
  KvLayout layout;              // KV heads, head_dim, block size
  T* kv = nullptr;              // cache of one layer, device
  std::int64_t row_stride = 0;  // [elements] of qkv; 0: (num_q_heads + 2 num_kv_heads) * head_dim
  int num_q_heads = 0;
  int num_tokens = 0;  // 0 is legal: nothing is launched
  float eps = 1e-6f;
  // positions and slot_mapping are fetched while the stream's previous kernels still run. Only where none of these writes them:
  // uploaded before the graph, say, or written by a kernel whose successor was launched without overlap_previous.
  // Saves 0.1 us (1 token) to 0.5 us (256). Has no effect on more tokens.
  bool indices_ready = false;
  detail::SlotSplit split{};  // this and the next are set by launch_qk_norm_rope_store
  float inverse_head_dim = 0.0f;
};

#if defined(__CUDACC__)

namespace detail {

/// One lane's share of a head: a vector of each half.
template <class T>
struct HeadPart {
  RowVector<T> first, second;

  /// \param p the lane's first element; `half`: head_dim / 2
  __device__ __forceinline__ static HeadPart load(const T* p, int half) {
    return {RowVector<T>::load(p), RowVector<T>::load(p + half)};
  }
  __device__ __forceinline__ static HeadPart load_weight(const T* p, int half) {
    return {RowVector<T>::load_weight(p), RowVector<T>::load_weight(p + half)};
  }
  template <CacheUse kUse>
  __device__ __forceinline__ void store(T* p, int half) const {
    first.template store<kUse>(p);
    second.template store<kUse>(p + half);
  }
};

/// RMS norm of a head, if `has_norm`, then RoPE. Called by whole warps; idle lanes hold zeros.
template <class T, int kLanesPerHead>
__device__ __forceinline__ void norm_and_rotate(HeadPart<T>& head, bool has_norm, const HeadPart<T>& weights,
                                                const LaneAngles<T>& angles, const QkNormRopeStoreParams<T>& p) {
  constexpr int vec = vec_elements<T>;
  float a[vec], b[vec];
  head.first.unpack(a);
  head.second.unpack(b);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < vec; ++i) { squares = fmaf(a[i], a[i], squares); }
#pragma unroll
  for (int i = 0; i < vec; ++i) { squares = fmaf(b[i], b[i], squares); }
  const float scale = rsqrtf(warp_sum<kLanesPerHead>(squares) * p.inverse_head_dim + p.eps);
  if (has_norm) {
    float wa[vec], wb[vec];
    weights.first.unpack(wa);
    weights.second.unpack(wb);
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      a[i] *= scale * wa[i];
      b[i] *= scale * wb[i];
    }
  }
  rotate<T>(a, b, angles, p.rope.layout);
  head = {RowVector<T>::pack(a), RowVector<T>::pack(b)};
}

}  // namespace detail

/// Warps of the grid, in order: all warps of token 0, of token 1, ...
template <class Traits, detail::CacheUse kStore>
NVL_KERNEL void __launch_bounds__(Traits::threads, Traits::min_blocks)
    qk_norm_rope_store_kernel(const __grid_constant__ QkNormRopeStoreParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Part = detail::HeadPart<T>;
  const int head_dim = p.layout.head_dim;
  const int half = head_dim / 2;
  const int num_rotated = p.num_q_heads + p.layout.num_kv_heads;
  const int num_heads = num_rotated + p.layout.num_kv_heads;
  const auto warps_per_token = static_cast<unsigned>((num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp);
  const unsigned warp = blockIdx.x * (Traits::threads / 32) + threadIdx.x / 32;
  const int token = static_cast<int>(warp / warps_per_token);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int column = lane % Traits::lanes_per_head * Traits::vec;
  const bool idle = column >= half;
  const int warp_head = static_cast<int>(warp % warps_per_token) * Traits::heads_per_warp;
  const auto head_of = [&](int j) { return warp_head + j * Traits::heads_per_step + lane / Traits::lanes_per_head; };
  const auto norm_of = [&](int head) { return head < p.num_q_heads ? p.q_norm : p.k_norm; };

  const auto load_weights = [&](int head) {
    const T* const norm = norm_of(head);
    return norm != nullptr && head < num_rotated && !idle ? Part::load_weight(norm + column, half) : Part{};
  };
  Part only_weights;
  if constexpr (Traits::steps == 1) { only_weights = load_weights(head_of(0)); }
  std::int32_t position = 0;
  SlotId slot = no_slot;
  detail::LaneAngles<T> angles{};
  const auto load_indices = [&] {
    position = p.positions[token];
    slot = p.slot_mapping[token];
  };
  const auto load_angles = [&] {
    if (!idle) { angles = detail::LaneAngles<T>::load(p.rope, position, column / Traits::vec); }
  };
  const bool is_ready = Traits::steps == 1 && p.indices_ready;
  if (is_ready && token < p.num_tokens) {
    load_indices();
    load_angles();
  }
  detail::wait_for_previous_and_let_next_start(p.num_tokens);
  if (token >= p.num_tokens) { return; }

  if (!is_ready) { load_indices(); }  // in front of the row: the angles wait for the position
  T* const row = p.qkv + token * p.row_stride + column;
  Part parts[Traits::steps];
#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    if (head_of(j) < num_heads && !idle) { parts[j] = Part::load(row + head_of(j) * head_dim, half); }
  }
  if (!is_ready) { load_angles(); }
  T* const cache = p.kv + (slot == no_slot ? 0 : p.split.k_offset(slot, p.layout)) + column;

#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    const int head = head_of(j);
    if (warp_head + j * Traits::heads_per_step < num_rotated) {  // the same for the whole warp: it shuffles
      Part rotated = parts[j];
      // With several steps registers are scarce: each fetches its own, from L1.
      const Part weights = Traits::steps == 1 ? only_weights : load_weights(head);
      detail::norm_and_rotate<T, Traits::lanes_per_head>(rotated, norm_of(head) != nullptr, weights, angles, p);
      if (head < num_rotated) { parts[j] = rotated; }
    }
    const bool is_q = head < p.num_q_heads;
    if (head >= num_heads || idle || (!is_q && slot == no_slot)) { continue; }
    const int kv_head = head - p.num_q_heads;  // K heads, then V heads: so they lie in a block of the cache, too
    parts[j].template store<kStore>(is_q ? row + head * head_dim : cache + kv_head * p.layout.head_elements(), half);
  }
}

/// Prepares `num_tokens` rows. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_qk_norm_rope_store(QkNormRopeStoreParams<T> p, cudaStream_t stream, bool overlap_previous = true) {
  detail::expect_kv_layout(p.layout);
  detail::expect_head_dim<T>("qk_norm_rope_store head_dim", p.layout.head_dim);
  NVL_EXPECTS(p.rope.head_dim == p.layout.head_dim, "head_dim of the RoPE table", p.rope.head_dim, "that of the KV cache");
  NVL_EXPECTS(p.num_q_heads > 0, "qk_norm_rope_store num_q_heads", p.num_q_heads, "positive");
  NVL_EXPECTS(p.num_tokens >= 0, "qk_norm_rope_store num_tokens", p.num_tokens, "not negative");
  const int num_heads = p.num_q_heads + 2 * p.layout.num_kv_heads;
  const std::int64_t row = std::int64_t{num_heads} * p.layout.head_dim;
  if (p.row_stride == 0) { p.row_stride = row; }
  NVL_EXPECTS(p.row_stride >= row && p.row_stride % 8 == 0, "qk_norm_rope_store row_stride", p.row_stride,
              "0, or a multiple of 8, at least a row");
  if (p.num_tokens == 0) { return; }
  p.split = detail::SlotSplit(p.layout.block_size);
  p.inverse_head_dim = 1.0f / static_cast<float>(p.layout.head_dim);
  const detail::RowTuning tuning = detail::row_tuning();
  const std::int64_t output_bytes = p.num_tokens * row * static_cast<int>(sizeof(T));
  detail::dispatch_lanes_per_head<T>(p.layout.head_dim, [&]<int kLanes>() {
    const auto run = [&]<int kSteps, detail::CacheUse kStore>() {
      using Traits = QkNormRopeStoreTraits<T, kLanes, kSteps>;
      const std::int64_t warps_per_token = (num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp;
      const std::int64_t threads = p.num_tokens * warps_per_token * 32;
      const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>((threads + Traits::threads - 1) / Traits::threads)),
                                        .block = dim3(Traits::threads),
                                        .stream = stream,
                                        .overlap_previous = overlap_previous};
      NVL_CUDA_CHECK(detail::launch(config, qk_norm_rope_store_kernel<Traits, kStore>, p));
    };
    // Few tokens: one step a warp, for latency. Many: angles and indices are loaded once for two steps.
    if (p.num_tokens <= tuning.max_latency_tokens) { return run.template operator()<1, detail::CacheUse::again>(); }
    detail::dispatch_cache_use(output_bytes, tuning, [&]<detail::CacheUse kStore>() { run.template operator()<2, kStore>(); });
  });
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
