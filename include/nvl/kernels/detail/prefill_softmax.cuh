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

/// From a packed row of a tile to its query token and query head.
struct RowMap {
  std::int32_t first_query;  // token of the first row, in its sequence
  std::int32_t last_query;
  std::int32_t num_rows;
  std::int32_t first_head;  // query head of the first row
  std::int32_t group;
  std::uint32_t reciprocal;  // of the group, times 2^16, rounded up

  /// A tile and a group have at most 128 rows, so row * reciprocal >> 16 is the exact quotient.
  __device__ __forceinline__ RowMap(const PagedPrefillTile& tile, std::int32_t tile_rows, std::int32_t group_size)
      : group(group_size),
        reciprocal((65535u + static_cast<std::uint32_t>(group_size)) / static_cast<std::uint32_t>(group_size)) {
    first_query = tile.first_query;
    last_query = min(tile.query_len, first_query + tile_rows / group) - 1;
    num_rows = (last_query + 1 - first_query) * group;
    first_head = tile.kv_head * group;
  }
  __device__ __forceinline__ std::int32_t query(std::int32_t row) const {
    return first_query + static_cast<std::int32_t>((static_cast<std::uint32_t>(row) * reciprocal) >> 16);
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
    const std::int32_t end = visible[row].end - first_key;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (8 * i + j >= end) { s[i][2 * row + j] = -INFINITY; }
      }
    }
    if (begin > 0) {  // a sliding window
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (8 * i + j < begin) { s[i][2 * row + j] = -INFINITY; }
        }
      }
    }
  }
}

/// Rows lane / 4 and lane / 4 + 8: the score that weights are relative to, and this thread's share of the sum of weights.
/// Any score of the row would do. The largest so far is followed only when it gets ahead by `slack`, so that what was summed
/// before is seldom rescaled; weights then reach 2^slack, which costs no precision.
struct OnlineRows {
  static constexpr float slack = 8.0f;  // powers of two
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};

  /// Takes one more tile of scores and leaves exp2((s - max) * scale_log2) in `s`. What was summed before is to be multiplied by
  /// `rescale`. A row that has not seen a key yet keeps the maximum -inf and gets zeros.
  template <int kBlocks>
  __device__ __forceinline__ void step(float (&s)[kBlocks][4], float scale_log2, float (&rescale)[2]) {
    float m[2][2];  // two chains a row
#pragma unroll
    for (int j = 0; j < 4; ++j) { m[j / 2][j % 2] = fmaxf(s[0][j], s[1][j]); }
#pragma unroll
    for (int i = 2; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { m[j / 2][j % 2] = fmaxf(m[j / 2][j % 2], s[i][j]); }
    }
    float largest[2] = {fmaxf(m[0][0], m[0][1]), fmaxf(m[1][0], m[1][1])};
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
      for (int row = 0; row < 2; ++row) { largest[row] = fmaxf(largest[row], __shfl_xor_sync(0xffffffffu, largest[row], lanes)); }
    }
    float base[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool follow = (largest[row] - max[row]) * scale_log2 > slack;  // false if both are -inf
      const float reference = follow ? largest[row] : max[row];
      base[row] = reference == -INFINITY ? 0.0f : reference * scale_log2;
      rescale[row] = follow ? exp2_approx(max[row] * scale_log2 - base[row]) : 1.0f;
      max[row] = reference;
      sum[row] *= rescale[row];
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] = exp2_approx(s[i][j] * scale_log2 - base[j / 2]);
        sum[j / 2] += s[i][j];
      }
    }
  }

  /// After the last step: the factor that normalises a row's output, and its log-sum-exp (natural).
  __device__ __forceinline__ void finish(float scale_log2, float (&normalise)[2], float (&lse)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sum[row];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      normalise[row] = __frcp_rn(total);
      lse[row] = (max[row] * scale_log2 + log2f(total)) * ln_2;
    }
  }
};

/// Multiplies the two rows of `out` by what OnlineRows::step said, if that is not 1 for the whole warp.
template <int kBlocks>
__device__ __forceinline__ void apply_rescale(float (&out)[kBlocks][4], const float (&rescale)[2]) {
  if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { out[i][j] *= rescale[j / 2]; }
    }
  }
}

#endif

}  // namespace kernels::detail::prefill
}  // namespace nvl::inline NVL_ABI
