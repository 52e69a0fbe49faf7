#pragma once
/// Which tokens of a row top-k, top-p and min-p leave, without sorting the vocabulary; and the most likely tokens in order.
///
/// Few tokens: a lower bound of the n-th largest logit is the n-th largest of the maxima of the row's groups of 32 logits, which
/// the first pass leaves in shared memory. The logits that reach it, hardly more than n, are gathered from their groups and sorted.
/// Many tokens (a flat distribution with top-p, a large top-k): the cut is found by histograms over the bits of the logits,
/// 2048 bins a pass, two passes for 16-bit logits and three for floats. A bin holds its weight in fixed point, so sums do not depend
/// on the order of atomics; what is above the bracket is summed in a fixed order.
/// Both are exact, equal logits ordered by id.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/sampling_adjust.cuh>
#include <nvl/kernels/detail/sampling_chunk.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

inline constexpr int num_bins = 2048;
inline constexpr int max_candidates = 2048;     // that are sorted
inline constexpr int max_sorted_wanted = 1024;  // largest top-k and number of log-probabilities taken that way
inline constexpr int nucleus_guess = 256;       // tokens in which top-p is tried before the whole row is searched
inline constexpr std::uint32_t all_ties = ~0u;

/// What is kept: logits with a larger key, and of those with this key the first `ties` by id.
struct LogitCut {
  std::uint32_t key;
  std::uint32_t ties;
};

#if defined(__CUDACC__)

/// What the block shares while it works on one row.
struct RowShared {
  RowSummary summary;
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
  std::uint32_t* bins;        // [num_bins]
  std::uint64_t* candidates;  // [max_candidates] ordered as candidate_of()
  RowShared* shared;
};

/// Ascending order: most likely first, equal logits by id.
__device__ __forceinline__ std::uint64_t candidate_of(float x, int id) {
  return (std::uint64_t{~logit_key(x)} << 32) | static_cast<std::uint32_t>(id);
}
__device__ __forceinline__ float candidate_logit(std::uint64_t c) { return logit_of_key(~static_cast<std::uint32_t>(c >> 32)); }
__device__ __forceinline__ int candidate_id(std::uint64_t c) { return static_cast<int>(static_cast<std::uint32_t>(c)); }

/// Sum over the block in a fixed order; every thread gets it.
template <int threads>
__device__ __forceinline__ double block_total(double x, double* scratch) {
  double total = 0;
  block_prefix_sum<threads>(x, scratch, total);
  __syncthreads();
  return total;
}

/// Sorts items[0, n) ascending. By the whole block; begins and ends with a barrier.
template <int threads>
__device__ void sort_block(std::uint64_t* items, int n) {
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
__device__ BinFound find_bin(const std::uint32_t* bins, std::uint32_t wanted, RowShared& shared) {
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
__device__ std::uint32_t bound_from_groups(const RowWork<T>& work, std::uint32_t wanted) {
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
__device__ void gather_from_groups(const RowWork<T>& work, std::uint32_t low) {
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

/// The cut that keeps `wanted` tokens (by_mass false), or the shortest run of the most likely whose weight reaches `wanted`.
/// It lies in the keys [low, high]; if these do not reach `wanted`, the cut keeps all of them. By the whole block.
template <int threads, bool by_mass, class T>
__device__ LogitCut find_cut(const RowWork<T>& work, double wanted, std::uint32_t low, std::uint32_t high) {
  constexpr int warps = threads / 32, per_thread = num_bins / threads;
  constexpr float fixed_point = by_mass ? 8192.0f : 1.0f;  // of a weight of 1; 2^18 of them fit 32 bits
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  RowShared& shared = *work.shared;
  const float max = shared.summary.max;
  while (true) {
    const std::uint32_t span = high - low;
    const int shift = span < num_bins ? 0 : 21 - __clz(static_cast<int>(span));
    const auto bin_edge = [&](std::uint32_t bin) { return logit_of_key(min(low + ((bin + 1) << shift) - 1, high)); };
    for (int b = thread; b < num_bins; b += threads) { work.bins[b] = 0; }
    __syncthreads();
    double above = 0;
    for (int c = warp; c < num_chunks(work.row.vocab); c += warps) {
      if (!__any_sync(all_lanes, logit_key(work.group_max[c * 32 + lane]) >= low)) { continue; }
      float chunk_above = 0.0f;
      with_chunk<ChunkOrder::vectors>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
#pragma unroll
        for (int i = 0; i < lane_logits; ++i) {
          const float x = value(i);
          const std::uint32_t key = logit_key(x);
          if (key > high) {
            chunk_above += by_mass ? logit_weight(x, max, work.scale) : 1.0f;
          } else if (key >= low) {
            const std::uint32_t bin = (key - low) >> shift;
            std::uint32_t amount = 1;
            if constexpr (by_mass) {
              amount = static_cast<std::uint32_t>(logit_weight(x, bin_edge(bin), work.scale) * fixed_point);
            }
            atomicAdd(work.bins + bin, amount);
          }
        }
      });
      above += double{chunk_above};
    }
    above = block_total<threads>(above, shared.double_scratch);  // has barriers: bins are complete

    if (above >= wanted) { return {high, 0}; }  // by rounding

    // From the top: the first bin in which the sum may reach `wanted`, and the first in which it surely does.
    const int top = num_bins - 1 - thread * per_thread;
    const auto bounds = [&](int b, double& lower, double& upper) {
      const std::uint32_t amount = work.bins[b];
      lower = upper = 0;
      if (low + (static_cast<std::uint32_t>(b) << shift) > high || (span >> shift) < static_cast<std::uint32_t>(b)) { return; }
      if (!by_mass) {
        lower = upper = double(amount);
        return;
      }
      const float edge = bin_edge(static_cast<std::uint32_t>(b));
      const double unit = double{logit_weight(edge, max, work.scale)} / double{fixed_point};
      lower = upper = double(amount) * unit;
      if (shift > 0) {
        // Rounding down took less than a unit from each logit of the bin.
        const float least = logit_weight(logit_of_key(low + (static_cast<std::uint32_t>(b) << shift)), edge, work.scale);
        const float least_amount = floorf(least * fixed_point * 0.9999f);
        const double at_most = least_amount >= 1.0f ? double(amount) / double{least_amount} : double(work.row.vocab);
        lower *= 0.999995;
        upper = (upper + at_most * unit) * 1.000005;
      }
    };
    double own_lower = 0, own_upper = 0, lower_total = 0, upper_total = 0;
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
      double lower, upper;
      bounds(top - i, lower, upper);
      own_lower += lower;
      own_upper += upper;
    }
    double lower_before = above + block_prefix_sum<threads>(own_lower, shared.double_scratch, lower_total);
    __syncthreads();
    double upper_before = above + block_prefix_sum<threads>(own_upper, shared.double_scratch, upper_total);
    if (thread == 0) {
      shared.low = low;
      shared.high = high;
      shared.ties = all_ties;
      shared.num_kept = above + upper_total < wanted ? 1 : 0;  // not reached
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
      const auto b = static_cast<std::uint32_t>(top - i);
      double lower, upper;
      bounds(top - i, lower, upper);
      if (upper_before < wanted && upper_before + upper >= wanted) {
        shared.high = min(low + ((b + 1) << shift) - 1, high);
        if (shift == 0) {
          const double weight = by_mass ? double{logit_weight(logit_of_key(low + b), max, work.scale)} : 1.0;
          const double count = double(work.bins[b]) / double{fixed_point};
          shared.ties = static_cast<std::uint32_t>(fmin(fmax(ceil((wanted - upper_before) / weight), 1.0), count));
        }
      }
      if (lower_before < wanted && lower_before + lower >= wanted) { shared.low = low + (b << shift); }
      lower_before += lower;
      upper_before += upper;
    }
    __syncthreads();
    const std::uint32_t new_low = shared.low, new_high = shared.high, ties = shared.ties;
    const bool is_missed = shared.num_kept != 0;
    __syncthreads();
    if (is_missed) { return {low, all_ties}; }
    if (shift == 0) { return {new_high, ties}; }
    if (new_high - new_low >= span) { return {new_low, all_ties}; }  // cannot be: a bin is a small part of the bracket
    low = new_low;
    high = new_high;
  }
}

/// Fills sums with the weight above the cut of each chunk, and bins with how many of its tokens at the cut are kept. By the whole
/// block; ends with a barrier.
template <int threads, class T>
__device__ void weigh_chunks(const RowWork<T>& work, const LogitCut& cut, float* sums) {
  constexpr int warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = num_chunks(work.row.vocab);
  const float max = work.shared->summary.max;
  for (int c = warp; c < n; c += warps) {
    float sum = 0.0f;
    std::uint32_t ties = 0;
    if (__any_sync(all_lanes, logit_key(work.group_max[c * 32 + lane]) >= cut.key)) {
      with_chunk<ChunkOrder::vectors>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
#pragma unroll
        for (int i = 0; i < lane_logits; ++i) {
          const float x = value(i);
          const std::uint32_t key = logit_key(x);
          if (key > cut.key) { sum += logit_weight(x, max, work.scale); }
          if (key == cut.key) { ++ties; }
        }
      });
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) { sum += __shfl_xor_sync(all_lanes, sum, offset); }
    ties = __reduce_add_sync(all_lanes, ties);
    if (lane == 0) {
      if (sums != nullptr) { sums[c] = sum; }
      work.bins[c] = ties;
    }
  }
  __syncthreads();
  if (warp == 0 && cut.ties != all_ties) {
    const int per_lane = (n + 31) / 32;
    const int begin = min(lane * per_lane, n), end = min(begin + per_lane, n);
    std::uint32_t own = 0;
    for (int c = begin; c < end; ++c) { own += work.bins[c]; }
    std::uint32_t before = warp_prefix_sum(own) - own;
    for (int c = begin; c < end; ++c) {
      const std::uint32_t ties = work.bins[c];
      work.bins[c] = min(ties, cut.ties - min(cut.ties, before));
      before += ties;
    }
  }
  __syncthreads();
}

/// Which of this lane's logits of a chunk in runs are kept, a bit each, if the first `ties` at the cut are. By one warp.
template <class Value>
__device__ __forceinline__ std::uint32_t kept_mask(Value&& value, const LogitCut& cut, std::uint32_t ties) {
  std::uint32_t above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < lane_logits; ++i) {
    const std::uint32_t key = logit_key(value(i));
    above |= (key > cut.key ? 1u : 0u) << i;
    equal |= (key == cut.key ? 1u : 0u) << i;
  }
  const auto own = static_cast<std::uint32_t>(__popc(equal));
  std::uint32_t rank = warp_prefix_sum(own) - own;
  for (; equal != 0 && rank < ties; equal &= equal - 1, ++rank) { above |= equal & (0u - equal); }
  return above;
}

/// A draw from what the cut leaves, into shared.picked. By the whole block; ends with a barrier.
template <int threads, class T>
__device__ void draw_above_cut(const RowWork<T>& work, const LogitCut& cut, double u) {
  weigh_chunks<threads>(work, cut, work.sums);
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    const float max = work.shared->summary.max;
    const double tie_weight = logit_weight(logit_of_key(cut.key), max, work.scale);
    const PickedChunk picked = pick_chunk(u, num_chunks(work.row.vocab),
                                          [&](int c) { return double{work.sums[c]} + double(work.bins[c]) * tie_weight; });
    with_chunk<ChunkOrder::runs>(work.row, work.adjust, picked.chunk, [&](auto&& value, float, bool) {
      const std::uint32_t kept = kept_mask(value, cut, work.bins[picked.chunk]);
      const PickedToken token = pick_token(picked.chunk, static_cast<float>(picked.rest), value, [&](int i) {
        return (kept >> i & 1) != 0 ? logit_weight(value(i), max, work.scale) : 0.0f;
      });
      if (lane == 0) { work.shared->picked = token; }
    });
  }
  __syncthreads();
}

/// Gathers and sorts at least the `wanted` most likely tokens (all, if there are fewer); at most max_sorted_wanted may be wanted.
/// Returns how many it holds; `is_all`: every token that is not banned is among them. By the whole block.
template <int threads, class T>
__device__ int sort_most_likely(const RowWork<T>& work, int wanted, bool& is_all) {
  constexpr int warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  RowShared& shared = *work.shared;
  const std::uint32_t low = bound_from_groups<threads>(work, static_cast<std::uint32_t>(wanted));
  gather_from_groups<threads>(work, low);
  int n = shared.num_candidates;
  is_all = low == lowest_key && n <= max_candidates;
  if (n > max_candidates) {  // many equal logits, or a maximum in few of many groups
    const LogitCut cut = find_cut<threads, false>(work, double(wanted), lowest_key, logit_key(shared.summary.max));
    weigh_chunks<threads>(work, cut, nullptr);
    if (threadIdx.x == 0) { shared.num_candidates = 0; }
    __syncthreads();
    for (int c = warp; c < num_chunks(work.row.vocab); c += warps) {
      if (!__any_sync(all_lanes, logit_key(work.group_max[c * 32 + lane]) >= cut.key)) { continue; }
      with_chunk<ChunkOrder::runs>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
        const std::uint32_t kept = kept_mask(value, cut, work.bins[c]);
#pragma unroll
        for (int i = 0; i < lane_logits; ++i) {
          if ((kept >> i & 1) != 0) {
            const int place = atomicAdd(&shared.num_candidates, 1);
            if (place < max_candidates) {
              work.candidates[place] = candidate_of(value(i), c * chunk_logits + lane * lane_logits + i);
            }
          }
        }
      });
    }
    __syncthreads();
    n = min(shared.num_candidates, max_candidates);
  }
  sort_block<threads>(work.candidates, n);
  return n;
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
