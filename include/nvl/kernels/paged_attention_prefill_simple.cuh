#pragma once
/// Prefill attention over paged K and V without tensor cores: float, for small models and as a check of the others.
///
/// A block takes one tile of packed rows, a warp one row at a time. Of 32 keys a lane computes one score whole;
/// then the lanes turn to the columns of the output and every weight is broadcast. Nothing is shared between rows but the
/// caches, so this is many times slower than the tensor-core kernels.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/prefill_softmax.cuh>
#include <nvl/kernels/detail/reduce.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>

#include <cstdint>
#include <string>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

template <class T, std::int32_t kHeadDim>
struct PagedPrefillSimpleTraits {
  static_assert(kHeadDim % 8 == 0 && kHeadDim <= 256, "nvl: PagedPrefillSimpleTraits needs a head dim of whole 8s, at most 256");
  using Element = T;
  static constexpr std::int32_t head_dim = kHeadDim;
  static constexpr int warps = 8;
  static constexpr int threads = 32 * warps;
  static constexpr int tile_rows = paged_prefill_tile_rows<T>(kHeadDim);
};

namespace detail::prefill {

#if defined(__CUDACC__)

/// One packed row against its visible keys, by one warp.
template <class Traits>
__device__ __forceinline__ void attend_row(const PagedPrefillParams<typename Traits::Element>& p, const PagedPrefillTile& tile,
                                           const KeyRange& visible, std::int64_t token, std::int32_t head) {
  using T = typename Traits::Element;
  constexpr int columns = (Traits::head_dim + 31) / 32;  // of the output, a lane
  constexpr int vec = vec_elements<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* q = p.q + token * p.q_row_stride + std::int64_t{head} * Traits::head_dim;
  const BlockId* table = p.block_tables + tile.table_offset;
  const int block_bits = __ffs(p.layout.block_size) - 1;
  float max = -INFINITY;
  float sum = 0.0f;
  float out[columns] = {};
  for (std::int32_t first = visible.begin; first < visible.end; first += 32) {
    const std::int32_t key = first + lane;
    float score = -INFINITY;
    std::int64_t slot = 0;  // [elements] of this lane's key in K
    if (key < visible.end) {
      slot = p.layout.k_offset(index_of(table[key >> block_bits]), tile.kv_head, key & (p.layout.block_size - 1));
      score = 0.0f;
#pragma unroll 4
      for (int d = 0; d < Traits::head_dim; d += vec) {
        const auto a = Vec<T, vec>::load(q + d);
        const auto b = Vec<T, vec>::load(p.kv + slot + d);
#pragma unroll
        for (int j = 0; j < vec; ++j) { score += to_float(a[j]) * to_float(b[j]); }
      }
      score *= p.scale;
      if (p.softcap > 0.0f) { score = p.softcap * tanhf(score / p.softcap); }
    }
    const float new_max = fmaxf(max, warp_max(score));  // finite: lane 0 has a key
    const float rescale = expf(max - new_max);
    const float weight = expf(score - new_max);
    max = new_max;
    sum = sum * rescale + weight;
#pragma unroll
    for (int c = 0; c < columns; ++c) { out[c] *= rescale; }
    const int count = min(32, visible.end - first);
    for (int j = 0; j < count; ++j) {
      const float w = __shfl_sync(0xffffffffu, weight, j);
      const T* v = p.kv + __shfl_sync(0xffffffffu, slot, j) + p.layout.v_offset(0, 0, 0);
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        if (Traits::head_dim % 32 == 0 || lane + 32 * c < Traits::head_dim) { out[c] += w * to_float(v[lane + 32 * c]); }
      }
    }
  }
  sum = warp_sum(sum);
  const std::int64_t row = token * p.num_q_heads + head;
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    if (Traits::head_dim % 32 == 0 || lane + 32 * c < Traits::head_dim) {
      p.out[row * Traits::head_dim + lane + 32 * c] = from_float<T>(out[c] / sum);
    }
  }
  if (p.lse != nullptr && lane == 0) { p.lse[row] = max + logf(sum); }
}

template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    paged_prefill_simple_kernel(const __grid_constant__ PagedPrefillParams<typename Traits::Element> p) {
  wait_for_previous();
  let_next_start();
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const auto at = static_cast<std::int32_t>(blockIdx.x);
  if (at >= plan.num_tiles) { return; }
  const PagedPrefillTile tile = plan.tiles()[at];
  const RowMap rows(tile, Traits::tile_rows, p.num_q_heads / p.layout.num_kv_heads);
  for (std::int32_t row = static_cast<std::int32_t>(threadIdx.x) / 32; row < rows.num_rows; row += Traits::warps) {
    const std::int32_t query = rows.query(row);
    attend_row<Traits>(p, tile, keys_of_row(tile, rows, row, p.window), tile.first_token + query, rows.head(row, query));
  }
}

#endif

}  // namespace detail::prefill

#if defined(__CUDACC__)

/// Runs the plan in p.workspace. Asynchronous on `stream`; allocates nothing; safe inside graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_paged_prefill_simple(const PagedPrefillParams<typename Traits::Element>& p, cudaStream_t stream) {
  detail::prefill::check(p);
  NVL_EXPECTS(p.layout.head_dim == Traits::head_dim, "paged_prefill head_dim", p.layout.head_dim,
              "that of the traits (" + std::to_string(Traits::head_dim) + ")");
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(detail::prefill::max_tiles(p))),
                                    .block = dim3(Traits::threads),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_simple_kernel<Traits>, p));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
