#pragma once
/// The most likely tokens of a row in order, without sorting the vocabulary: for top-k, top-p and min-p that leave few
/// tokens, and
/// for log-probabilities.
///
/// A lower bound of the n-th largest logit is the n-th largest of the maxima of the row's groups of 32 logits, which the first
/// pass leaves in shared memory. The logits that reach it, hardly more than n, are gathered from their groups and sorted.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/sampling_adjust.cuh>
#include <nvl/kernels/detail/sampling_chunk.cuh>
#include <nvl/kernels/detail/sampling_cut.cuh>
#include <nvl/kernels/detail/sampling_work.cuh>
#include <nvl/kernels/detail/vec.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

#if defined(__CUDACC__)

/// Ascending order: most likely first, equal logits by id.
__device__ __forceinline__ std::uint64_t candidate_of(float x, int id) {
  return (std::uint64_t{~logit_key(x)} << 32) | static_cast<std::uint32_t>(id);
}
__device__ __forceinline__ float candidate_logit(std::uint64_t c) { return logit_of_key(~static_cast<std::uint32_t>(c >> 32)); }
__device__ __forceinline__ int candidate_id(std::uint64_t c) { return static_cast<int>(static_cast<std::uint32_t>(c)); }

/// The item of [0, n) at which the cumulated mass exceeds the fraction `u` of all. By one warp.
template <class MassOf>
__device__ __forceinline__ int pick_item(double u, int n, MassOf&& mass_of) {
  if (n <= 32 * max_chunks_per_lane) {
    LaneMasses masses;
    masses.fill(n, mass_of);
    return masses.pick(u).index;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, per_lane = (n + 31) / 32;
  const int begin = min(lane * per_lane, n), end = min(begin + per_lane, n);
  double own = 0;
  for (int i = begin; i < end; ++i) { own += double{mass_of(i)}; }
  const double inclusive = warp_prefix_sum(own);
  const double target = u * __shfl_sync(all_lanes, inclusive, 31);
  const int source = lane_at(target, inclusive, own);
  double rest = target - (inclusive - own);
  int index = begin;
  for (int i = begin; i < end; ++i) {
    const double mass = mass_of(i);
    if (mass > 0) {
      index = i;
      rest -= mass;
      if (rest < 0) { break; }
    }
  }
  return __shfl_sync(all_lanes, index, source);
}

/// Sorts items[0, n) ascending. By the whole block; begins and ends with a barrier.
template <int threads>
__device__ __forceinline__ void sort_block(std::uint64_t* items, int n) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (n <= 128) {  // each thread finds the place of one item
    std::uint64_t own = 0;
    int place = 0;
    if (thread < n) {
      own = items[thread];
#pragma unroll 4
      for (int i = 0; i < n; ++i) { place += items[i] < own ? 1 : 0; }
    }
    __syncthreads();
    if (thread < n) { items[place] = own; }
    __syncthreads();
    return;
  }
  int size = 256;
  while (size < n) { size *= 2; }
  for (int i = n + thread; i < size; i += threads) { items[i] = ~std::uint64_t{0}; }
  __syncthreads();
  for (int width = 2; width <= size; width *= 2) {  // bitonic
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int t = thread; t < size / 2; t += threads) {
        const int i = 2 * t - (t & (stride - 1));
        const std::uint64_t a = items[i], b = items[i + stride];
        if ((a > b) == ((i & width) == 0)) {
          items[i] = b;
          items[i + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

/// From the top, the bin in which the count of `bins` reaches `wanted` (0 if it never does), the count above it and in it.
struct BinFound {
  std::uint32_t bin, above, count;
};
template <int threads>
__device__ __forceinline__ BinFound find_bin(const std::uint32_t* bins, std::uint32_t wanted, RowShared& shared) {
  constexpr int per_thread = num_bins / threads;
  static_assert(num_bins % threads == 0);
  const int top = num_bins - 1 - static_cast<int>(threadIdx.x) * per_thread;
  std::uint32_t own = 0, total = 0;
#pragma unroll
  for (int i = 0; i < per_thread; ++i) { own += bins[top - i]; }
  std::uint32_t above = block_prefix_sum<threads>(own, shared.word_scratch, total);
  const bool is_last = threadIdx.x == threads - 1;
  if ((above < wanted && above + own >= wanted) || (is_last && total < wanted)) {
    int bin = top;
    for (; bin > top - per_thread + 1 && above + bins[bin] < wanted; --bin) { above += bins[bin]; }
    shared.low = static_cast<std::uint32_t>(bin);
    shared.high = above;
    shared.ties = bins[bin];
  }
  __syncthreads();
  const BinFound found{shared.low, shared.high, shared.ties};
  __syncthreads();
  return found;
}

/// A key that at least `wanted` of the row's logits reach, and few more: from the maxima of its groups. By the whole block.
template <int threads, class T>
__device__ __forceinline__ std::uint32_t bound_from_groups(const RowWork<T>& work, std::uint32_t wanted) {
  const int thread = static_cast<int>(threadIdx.x);
  const int num_groups = num_chunks(work.row.vocab) * 32;
  std::uint32_t base = 0;  // keys in [base, base + 2^bits) are looked at
  int bits = 32;
  while (bits > 0) {
    const int shift = max(bits - 11, 0);
    for (int b = thread; b < num_bins; b += threads) { work.bins[b] = 0; }
    __syncthreads();
    for (int g = thread; g < num_groups; g += threads) {
      const std::uint32_t key = logit_key(work.group_max[g]);
      if (key > no_key && (bits == 32 || (key - base) >> bits == 0)) { atomicAdd(work.bins + ((key - base) >> shift), 1u); }
    }
    __syncthreads();
    const BinFound found = find_bin<threads>(work.bins, wanted, *work.shared);
    if (found.above + found.count < wanted) { return lowest_key; }  // fewer groups than wanted
    base += found.bin << shift;
    if (found.count <= 32 + wanted / 2) { break; }
    wanted -= found.above;
    bits = shift;
  }
  return max(base, lowest_key);
}

/// Gathers the logits whose keys reach `low` into candidates, in no order. By the whole block; ends with a barrier.
template <int threads, class T>
__device__ __forceinline__ void gather_from_groups(const RowWork<T>& work, std::uint32_t low) {
  using Chunk = LogitChunk<T>;
  constexpr int vectors = lane_logits / Chunk::vec;
  const int thread = static_cast<int>(threadIdx.x);
  const int num_groups = num_chunks(work.row.vocab) * 32;
  RowShared& shared = *work.shared;
  if (thread == 0) { shared.num_groups = shared.num_candidates = 0; }
  __syncthreads();
  std::uint32_t* const groups = work.bins;
  for (int g = thread; g < num_groups; g += threads) {
    if (logit_key(work.group_max[g]) >= low) {
      const int i = atomicAdd(&shared.num_groups, 1);
      if (i < num_bins) { groups[i] = static_cast<std::uint32_t>(g); }
    }
  }
  __syncthreads();
  if (shared.num_groups > num_bins) {
    if (thread == 0) { shared.num_candidates = shared.num_groups; }
    __syncthreads();
    return;
  }
  for (int i = thread; i < shared.num_groups * vectors; i += threads) {
    const auto g = static_cast<int>(groups[i / vectors]);
    const int id = g / 32 * chunk_logits + Chunk::offset_of(g % 32, i % vectors * Chunk::vec);
    Vec<T, Chunk::vec> x;
    if (work.row.is_aligned && id + Chunk::vec <= work.row.vocab) {
      x = Vec<T, Chunk::vec>::load(work.row.logits + id);
    } else {
#pragma unroll
      for (int e = 0; e < Chunk::vec; ++e) {
        x[e] = id + e < work.row.vocab ? work.row.logits[id + e] : from_float<T>(minus_infinity());
      }
    }
    const std::uint32_t changed = work.adjust.any() ? work.adjust.mask(id, Chunk::vec) : 0u;
#pragma unroll
    for (int e = 0; e < Chunk::vec; ++e) {
      const float logit = (changed >> e & 1) != 0 ? work.adjust.value(id + e) : to_float(x[e]);
      if (logit_key(logit) >= low) {
        const int place = atomicAdd(&shared.num_candidates, 1);
        if (place < max_candidates) { work.candidates[place] = candidate_of(logit, id + e); }
      }
    }
  }
  __syncthreads();
}

/// Gathers exactly the `wanted` most likely tokens, of which there are more, where the groups' maxima tell too little:
/// many equal
/// logits, or large ones side by side. By the whole block; ends with a barrier.
template <int threads, class T>
__device__ __noinline__ void gather_above_cut(const RowWork<T>* mirror, int wanted) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  constexpr int warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  RowShared& shared = *work.shared;
  const LogitCut cut = find_cut<threads, false>(work, double(wanted), lowest_key, logit_key(shared.summary.max));
  weigh_chunks<threads>(work.mirror, cut, nullptr);
  if (threadIdx.x == 0) { shared.num_candidates = 0; }
  __syncthreads();
  for (int c = warp; c < num_chunks(work.row.vocab); c += warps) {
    if (!__any_sync(all_lanes, logit_key(work.group_max[c * 32 + lane]) >= cut.key)) { continue; }
    with_chunk<ChunkOrder::runs>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
      std::uint32_t kept = kept_mask(value, cut, work.bins[c]);
      for (; kept != 0; kept &= kept - 1) {
        const int id = c * chunk_logits + lane * lane_logits + __ffs(static_cast<int>(kept)) - 1;
        const int place = atomicAdd(&shared.num_candidates, 1);
        if (place < max_candidates) { work.candidates[place] = candidate_of(logit_at(work.row, work.adjust, id), id); }
      }
    });
  }
  __syncthreads();
}

/// Gathers and sorts at least the `wanted` most likely tokens (all, if there are fewer); at most max_sorted_wanted may
/// be wanted.
/// Returns how many it holds, or 0 if those found weigh less than `least_mass`; `is_all`: every token that is not
/// banned is among
/// them. By the whole block.
template <int threads, class T>
__device__ __forceinline__ int sort_most_likely(const RowWork<T>& work, int wanted, double least_mass, bool& is_all) {
  RowShared& shared = *work.shared;
  const std::uint32_t low = bound_from_groups<threads>(work, static_cast<std::uint32_t>(wanted));
  gather_from_groups<threads>(work, low);
  is_all = low == lowest_key && shared.num_candidates <= max_candidates;
  if (shared.num_candidates > max_candidates) { gather_above_cut<threads>(work.mirror, wanted); }
  const int n = min(shared.num_candidates, max_candidates);
  if (least_mass > 0 && !is_all) {
    // In fixed point, so that the order of the candidates does not matter.
    std::uint64_t own = 0, total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += threads) {
      const float weight = logit_weight(candidate_logit(work.candidates[i]), shared.summary.max, work.scale);
      own += static_cast<std::uint64_t>(weight * 0x1p40f);
    }
    block_prefix_sum<threads>(own, reinterpret_cast<std::uint64_t*>(shared.double_scratch), total);
    if (double(total) * 0x1p-40 < least_mass) { return 0; }
  }
  sort_block<threads>(work.candidates, n);
  return n;
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
