#pragma once
/// What the block that samples one row of logits works with, and its first pass over the row.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/sampling_adjust.cuh>
#include <nvl/kernels/detail/sampling_chunk.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

inline constexpr int num_bins = 2048;           // of keys
inline constexpr int num_value_bins = 4096;     // of 16-bit values
inline constexpr int max_candidates = 2048;     // that are sorted
inline constexpr int max_sorted_wanted = 1024;  // largest top-k and number of log-probabilities taken that way
inline constexpr int nucleus_guess = 256;       // tokens in which top-p is tried before the whole row is searched
inline constexpr std::uint32_t all_ties = ~0u;

#if defined(__CUDACC__)

/// What the block shares while it works on one row.
struct RowShared {
  RowSummary summary;
  double uniform;      // the row's random number
  int num_groups;      // with candidates
  int num_candidates;  // may exceed max_candidates: then not all were stored
  int num_kept;
  std::uint32_t low, high, ties;  // of a bracket
  double above;
  PickedToken picked;
  double double_scratch[33];
  std::uint32_t word_scratch[33];
};

/// The memory of the block, in shared memory, and the row it works on.
template <class T>
struct RowWork {
  LogitRow<T> row;
  RowAdjustments adjust;
  float scale;
  float* maxima;              // [num_chunks]
  float* sums;                // [num_chunks]
  float* group_max;           // [num_chunks * 32] of the logits that one lane holds of a chunk
  std::uint32_t* bins;        // [num_value_bins]
  std::uint64_t* candidates;  // [max_candidates] ordered as candidate_of()
  RowShared* shared;
  RowWork* mirror;  // a copy of this in shared memory, for functions that are not inlined: a stack would not stay in the cache

  /// The copy in registers, with what the compiler cannot know.
  __device__ __forceinline__ static RowWork of(const RowWork* mirror) {
    const RowWork work = *mirror;
    __builtin_assume(__isGlobal(work.row.logits));
    __builtin_assume(__isShared(work.maxima));
    __builtin_assume(__isShared(work.sums));
    __builtin_assume(__isShared(work.group_max));
    __builtin_assume(__isShared(work.bins));
    __builtin_assume(__isShared(work.candidates));
    __builtin_assume(__isShared(work.shared));
    return work;
  }
};

/// What the first pass keeps of chunk `c`. By one warp.
template <class T, class Value>
__device__ __forceinline__ void record_chunk(const RowWork<T>& work, int c, float lane_max, bool is_finite, bool wants_sum,
                                             Value&& value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ChunkStat stat = chunk_stat(lane_max, is_finite, wants_sum, work.scale, value);
  work.group_max[c * 32 + lane] = lane_max;
  if (lane == 0) {
    work.maxima[c] = stat.max;
    work.sums[c] = stat.sum;
  }
}

/// The first pass over a row. By the whole block.
template <int warps, class T>
__device__ __forceinline__ void scan_row(const RowWork<T>* mirror, bool wants_sum) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  const auto nothing = [] {};
  for_each_chunk(work.row, static_cast<int>(threadIdx.x) / 32, warps, num_chunks(work.row.vocab), nothing,
                 [&](int c, const LogitChunk<T>& chunk) {
                   record_chunk(work, c, chunk.max(), chunk.is_finite(), wants_sum, [&](int i) { return chunk.element(i); });
                 });
}
/// The same for a row of which some logits are changed.
template <int warps, class T>
__device__ __noinline__ void scan_adjusted_row(const RowWork<T>* mirror, bool wants_sum) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  for (int c = static_cast<int>(threadIdx.x) / 32; c < num_chunks(work.row.vocab); c += warps) {
    with_chunk<ChunkOrder::vectors>(work.row, work.adjust, c, [&](auto&& value, float lane_max, bool is_finite) {
      record_chunk(work, c, lane_max, is_finite, wants_sum, value);
    });
  }
}

/// Sum over the block in a fixed order; every thread gets it.
template <int threads>
__device__ __forceinline__ double block_total(double x, double* scratch) {
  double total = 0;
  block_prefix_sum<threads>(x, scratch, total);
  __syncthreads();
  return total;
}

__device__ __forceinline__ double warp_total(double x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) { x += __shfl_xor_sync(all_lanes, x, offset); }
  return x;
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
