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
  detail::SlotSplit split{};  // set by launch_qk_norm_rope_store
};

#if defined(__CUDACC__)

/// Warps of the grid, in order: all warps of token 0, of token 1, ...
template <class Traits, detail::CacheUse kLoad = detail::CacheUse::again, detail::CacheUse kStore = detail::CacheUse::again>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    qk_norm_rope_store_kernel(const __grid_constant__ QkNormRopeStoreParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Vector = detail::RowVector<T>;
  constexpr int vec = Traits::vec;
  detail::let_next_start();
  const int head_dim = p.layout.head_dim;
  const int half = head_dim / 2;
  const int num_rotated = p.num_q_heads + p.layout.num_kv_heads;
  const int num_heads = num_rotated + p.layout.num_kv_heads;
  const int warps_per_token = (num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp;
  const unsigned warp = blockIdx.x * (Traits::threads / 32) + threadIdx.x / 32;
  const int token = static_cast<int>(warp / static_cast<unsigned>(warps_per_token));
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int column = lane % Traits::lanes_per_head * vec;
  const bool idle = column >= half;
  const int first_head =
      static_cast<int>(warp % static_cast<unsigned>(warps_per_token)) * Traits::heads_per_warp + lane / Traits::lanes_per_head;

  // Norm weights: those of Q and those of K, both halves of a head each.
  Vector weights[2][2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const T* const norm = k == 0 ? p.q_norm : p.k_norm;
    if (norm != nullptr && !idle) {
      weights[k][0] = Vector::load_weight(norm + column);
      weights[k][1] = Vector::load_weight(norm + half + column);
    }
  }
  detail::wait_for_previous();
  if (token >= p.num_tokens) { return; }

  T* const row = p.qkv + token * p.row_stride + column;
  Vector first[Traits::steps], second[Traits::steps];
#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    const int head = first_head + j * Traits::heads_per_step;
    if (head < num_heads && !idle) {
      first[j] = Vector::template load<kLoad>(row + head * head_dim);
      second[j] = Vector::template load<kLoad>(row + head * head_dim + half);
    }
  }
  const SlotId slot = p.slot_mapping[token];
  detail::LaneAngles<T> angles{};
  if (!idle) { angles = detail::LaneAngles<T>::load(p.rope, p.positions[token], column / vec); }
  T* const cache = p.kv + (slot == no_slot ? 0 : p.split.k_offset(slot, p.layout)) + column;

#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    const int head = first_head + j * Traits::heads_per_step;
    const bool is_q = head < p.num_q_heads;
    if (head - lane / Traits::lanes_per_head < num_rotated) {  // the same for the whole warp: it shuffles
      float a[vec], b[vec];
      first[j].unpack(a);
      second[j].unpack(b);
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < vec; ++i) { squares = fmaf(a[i], a[i], squares); }
#pragma unroll
      for (int i = 0; i < vec; ++i) { squares = fmaf(b[i], b[i], squares); }
      const float scale = rsqrtf(detail::warp_sum<Traits::lanes_per_head>(squares) / static_cast<float>(head_dim) + p.eps);
      if ((is_q ? p.q_norm : p.k_norm) != nullptr) {
        float wa[vec], wb[vec];
        (is_q ? weights[0][0] : weights[1][0]).unpack(wa);
        (is_q ? weights[0][1] : weights[1][1]).unpack(wb);
#pragma unroll
        for (int i = 0; i < vec; ++i) {
          a[i] *= scale * wa[i];
          b[i] *= scale * wb[i];
        }
      }
      detail::rotate<T>(a, b, angles, p.rope.layout);
      if (head < num_rotated) {
        first[j] = Vector::pack(a);
        second[j] = Vector::pack(b);
      }
    }
    if (head >= num_heads || idle || (!is_q && slot == no_slot)) { continue; }
    const int kv_head = head - p.num_q_heads;  // K heads, then V heads: so they lie in a block of the cache, too
    T* const to = is_q ? row + head * head_dim : cache + kv_head * p.layout.head_elements();
    first[j].template store<kStore>(to);
    second[j].template store<kStore>(to + half);
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
  detail::dispatch_lanes_per_head<T>(p.layout.head_dim, [&]<int kLanes>() {
    const auto run = [&]<int kSteps>() {
      using Traits = QkNormRopeStoreTraits<T, kLanes, kSteps>;
      const std::int64_t warps_per_token = (num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp;
      const std::int64_t threads = p.num_tokens * warps_per_token * 32;
      const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>((threads + Traits::threads - 1) / Traits::threads)),
                                        .block = dim3(Traits::threads),
                                        .stream = stream,
                                        .overlap_previous = overlap_previous};
      NVL_CUDA_CHECK(detail::launch(config, qk_norm_rope_store_kernel<Traits>, p));
    };
    // Few tokens: one step a warp, for latency. Many: angles and weights are loaded once for several steps.
    if (p.num_tokens <= 256) {
      run.template operator()<1>();
    } else {
      run.template operator()<4>();
    }
  });
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
