#pragma once
/// What the tensor-core prefill kernels share: packed rows, masks, and the online softmax of one warp's 16 rows of scores.
///
/// Scores lie as the accumulators of m16n8k16 (and of wgmma, a warp of which has the same layout): s[i][0..1] is row lane / 4,
/// columns 8 i + 2 (lane % 4) and the next; s[i][2..3] the same of row lane / 4 + 8.
/// Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; in tiles: Dao et al. 2022, arXiv:2205.14135.

#include <nvl/core/config.hpp>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::prefill {

#if defined(__CUDACC__)

inline constexpr float log2_e = 1.4426950408889634f;
inline constexpr float ln_2 = 0.6931471805599453f;

/// 2^x to 2 ulp; 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// From a packed row of a tile to its token and head.
struct RowMap {
  std::int32_t first_query;  // query token, in its sequence, of the tile's first row
  std::int32_t first_head;   // head, in its group, of the tile's first row
  std::int32_t last_query;   // of the tile
  std::int32_t num_rows;     // in this tile
  std::int32_t group;
  std::uint32_t reciprocal;  // of the group, times 2^16, rounded up

  /// `tile_rows` is at most 128 and the group too, so (first_head + row) * reciprocal >> 16 is the exact quotient.
  __device__ __forceinline__ RowMap(const PagedPrefillTile& tile, std::int32_t tile_rows, std::int32_t group_size)
      : group(group_size),
        reciprocal((65535u + static_cast<std::uint32_t>(group_size)) / static_cast<std::uint32_t>(group_size)) {
    first_query = tile.first_row / group;
    first_head = tile.first_row - first_query * group;
    num_rows = min(tile_rows, tile.query_len * group - tile.first_row);
    last_query = query(num_rows - 1);
  }
  __device__ __forceinline__ std::int32_t query(std::int32_t row) const {
    return first_query + static_cast<std::int32_t>((static_cast<std::uint32_t>(first_head + row) * reciprocal) >> 16);
  }
  __device__ __forceinline__ std::int32_t head(std::int32_t row, std::int32_t query_of_row) const {
    return first_head + row - (query_of_row - first_query) * group;
  }
};

/// The keys that a tile needs, and those that row sees: [begin, end).
struct KeyRange {
  std::int32_t begin, end;
};
__device__ __forceinline__ KeyRange keys_of(const PagedPrefillTile& tile, const RowMap& rows, std::int32_t window) {
  const std::int32_t offset = tile.seq_len - tile.query_len;
  return {window > 0 ? max(0, offset + rows.first_query + 1 - window) : 0, offset + rows.last_query + 1};
}
/// Rows past the end of the tile count as its last one: finite, and never stored.
__device__ __forceinline__ KeyRange keys_of_row(const PagedPrefillTile& tile, const RowMap& rows, std::int32_t row,
                                                std::int32_t window) {
  const std::int32_t end = tile.seq_len - tile.query_len + rows.query(min(row, rows.num_rows - 1)) + 1;
  return {window > 0 ? max(0, end - window) : 0, end};
}

/// softcap * tanh(score / softcap) in units of `scale`, so that what follows multiplies by `scale` as without a cap.
struct Softcap {
  float in, out;  // scale / softcap * 2 log2(e), softcap / scale
  __device__ __forceinline__ float operator()(float score) const {
    const float x = fminf(score * in, 126.0f);  // tanh(y) = 1 - 2 / (e^2y + 1)
    return out - __fdividef(2.0f * out, exp2_approx(x) + 1.0f);
  }
};

template <int kBlocks>
__device__ __forceinline__ void apply_softcap(float (&s)[kBlocks][4], const Softcap& cap) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) { s[i][j] = cap(s[i][j]); }
  }
}

/// Hides what a row does not see. `first_key` is the key of this thread's first column.
template <int kBlocks>
__device__ __forceinline__ void apply_mask(float (&s)[kBlocks][4], std::int32_t first_key, const KeyRange (&visible)[2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const std::int32_t begin = visible[row].begin - first_key;
    const std::uint32_t length = static_cast<std::uint32_t>(visible[row].end - visible[row].begin);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (static_cast<std::uint32_t>(8 * i + j - begin) >= length) { s[i][2 * row + j] = -INFINITY; }
      }
    }
  }
}

/// Running maximum (of unscaled scores) and this thread's share of the sum, of rows lane / 4 and lane / 4 + 8.
struct OnlineRows {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};

  /// Takes one more tile of scores and leaves exp2((s - max) * scale_log2) in `s`. What was summed before is to be multiplied by
  /// `rescale`. A row that has not seen a key yet keeps the maximum -inf and gets zeros.
  template <int kBlocks>
  __device__ __forceinline__ void step(float (&s)[kBlocks][4], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float m = max[row];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) { m = fmaxf(m, fmaxf(s[i][2 * row], s[i][2 * row + 1])); }
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      const float base = m == -INFINITY ? 0.0f : m * scale_log2;
      rescale[row] = exp2_approx(max[row] * scale_log2 - base);
      max[row] = m;
      float total = sum[row] * rescale[row];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          s[i][2 * row + j] = exp2_approx(s[i][2 * row + j] * scale_log2 - base);
          total += s[i][2 * row + j];
        }
      }
      sum[row] = total;
    }
  }

  /// After the last step: the factor that normalises a row's output, and its log-sum-exp (natural).
  __device__ __forceinline__ void finish(float scale_log2, float (&normalise)[2], float (&lse)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sum[row];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      normalise[row] = 1.0f / total;
      lse[row] = (max[row] * scale_log2 + log2f(total)) * ln_2;
    }
  }
};

#endif

}  // namespace kernels::detail::prefill
}  // namespace nvl::inline NVL_ABI
