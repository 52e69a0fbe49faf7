#pragma once
/// Which tokens of a row top-k and top-p leave when they are many (a flat distribution with top-p, a large top-k),
/// without sorting.
///
/// The cut is found by a histogram with a bin for each value of 16-bit logits, or by histograms over the bits of the
/// logits, 2048
/// bins a pass, where they are floats or changed. Such a bin holds its weight in fixed point, so that sums do not depend on the
/// order of atomics; what is above the bracket is summed in a fixed order. Exact, equal logits ordered by id.

#include <nvl/core/config.hpp>
#include <nvl/kernels/detail/sampling_adjust.cuh>
#include <nvl/kernels/detail/sampling_chunk.cuh>
#include <nvl/kernels/detail/sampling_work.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

/// What is kept: logits with a larger key, and of those with this key the first `ties` by id.
struct LogitCut {
  std::uint32_t key;
  std::uint32_t ties;
};

#if defined(__CUDACC__)

/// The cut that keeps `wanted` tokens (by_mass false), or the shortest run of the most likely whose weight reaches `wanted`.
/// It lies in the keys [low, high]; if these do not reach `wanted`, the cut keeps all of them. By the whole block.
template <int threads, bool by_mass, class T>
__device__ __noinline__ LogitCut find_cut_by_keys(const RowWork<T>* mirror, double wanted, std::uint32_t low,
                                                  std::uint32_t high) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  constexpr int warps = threads / 32, per_thread = num_bins / threads;
  constexpr float fixed_point = by_mass ? 8192.0f : 1.0f;  // of a weight of 1; 2^18 of them fit 32 bits
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  RowShared& shared = *work.shared;
  const float max = shared.summary.max;
  while (true) {
    const std::uint32_t span = high - low;
    const int shift = span < num_bins ? 0 : 21 - __clz(static_cast<int>(span));
    const float low_logit = logit_of_key(low), high_logit = logit_of_key(high);
    const auto bin_edge = [&](std::uint32_t bin) { return logit_of_key(min(low + ((bin + 1) << shift) - 1, high)); };
    for (int b = thread; b < num_bins; b += threads) { work.bins[b] = 0; }
    __syncthreads();
    double above = 0;
    for (int c = warp; c < num_chunks(work.row.vocab); c += warps) {
      if (!__any_sync(all_lanes, work.group_max[c * 32 + lane] >= low_logit)) { continue; }
      float chunk_above = 0.0f;
      with_chunk<ChunkOrder::vectors>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
#pragma unroll
        for (int i = 0; i < lane_logits; ++i) {
          const float x = value(i);
          if (x > high_logit) {
            chunk_above += by_mass ? logit_weight(x, max, work.scale) : 1.0f;
          } else if (x >= low_logit) {
            const std::uint32_t bin = (logit_key(x) - low) >> shift;
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

/// The same for a row of 16-bit logits as they are, with a bin for each value: one pass, but for values so near zero,
/// or so low,
/// that the bins do not reach them. Values are numbered by their bits as sign and magnitude; magnitudes up to `near_zero` share
/// a bin if the bracket holds both signs, and are weighed one by one.
template <int threads, bool by_mass, class T>
__device__ __noinline__ LogitCut find_cut_by_values(const RowWork<T>* mirror, double wanted, std::uint32_t low_key,
                                                    std::uint32_t high_key) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  constexpr int warps = threads / 32, per_thread = num_value_bins / threads;
  static_assert(num_value_bins % threads == 0);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  RowShared& shared = *work.shared;
  const float max = shared.summary.max;
  const auto number_of = [](float x) {  // rounded down
    const std::uint32_t bits = LogitWord<T>::bits_below(x);
    return (bits & 0x8000u) != 0 ? -static_cast<int>(bits & 0x7fffu) : static_cast<int>(bits);
  };
  const auto logit_of = [](int number) {
    return LogitWord<T>::element(number < 0 ? 0x8000u | static_cast<std::uint32_t>(-number) : static_cast<std::uint32_t>(number),
                                 0);
  };
  const int low = number_of(logit_of_key(low_key));
  int high = number_of(logit_of_key(high_key));
  double above = 0;
  while (true) {
    const bool has_both_signs = low < 0 && high > 0 && high - low >= num_value_bins;
    const int near_zero = has_both_signs ? ::max(high - num_value_bins / 2, 0) : 0;
    const auto squeezed = [&](int magnitude) { return ::max(magnitude - near_zero, 0); };
    const int top = high < 0 ? -squeezed(-high) : squeezed(high), bottom = low < 0 ? -squeezed(-low) : squeezed(low);
    const int num_used = min(top - bottom + 1, num_value_bins);
    const float low_logit = logit_of(low);
    for (int b = thread; b < num_value_bins; b += threads) { work.bins[b] = 0; }
    __syncthreads();
    double near_zero_mass = 0;
    for (int c = warp; c < num_chunks(work.row.vocab); c += warps) {
      if (!__any_sync(all_lanes, work.group_max[c * 32 + lane] >= low_logit)) { continue; }
      LogitChunk<T> chunk;
      chunk.load(work.row, c, lane);
      float near_zero_sum = 0.0f;
#pragma unroll
      for (int i = 0; i < lane_logits; ++i) {
        const std::uint32_t word = chunk.words[i / 2];
        const auto magnitude = static_cast<int>(i % 2 == 0 ? word & 0x7fffu : word >> 16 & 0x7fffu);
        const int distance = squeezed(magnitude);
        const bool is_negative = (word & (i % 2 == 0 ? 0x8000u : 0x80000000u)) != 0;
        const int bin = is_negative ? top + distance : top - distance;
        if (static_cast<unsigned>(bin) < static_cast<unsigned>(num_used)) {
          atomicAdd(work.bins + bin, 1u);
          if (by_mass && near_zero > 0 && distance == 0) { near_zero_sum += logit_weight(chunk.element(i), max, work.scale); }
        }
      }
      near_zero_mass += double{near_zero_sum};
    }
    near_zero_mass = block_total<threads>(near_zero_mass, shared.double_scratch);  // has barriers: bins are complete

    const auto mass_in = [&](int b) {
      const auto count = double(work.bins[b]);
      if (!by_mass || count == 0) { return count; }
      const int number = top - b;
      if (near_zero > 0 && number == 0) { return near_zero_mass; }
      const int moved = number > 0 ? number + near_zero : number < 0 ? number - near_zero : 0;
      return count * double{logit_weight(logit_of(moved), max, work.scale)};
    };
    double own = 0, total = 0;
#pragma unroll
    for (int i = 0; i < per_thread; ++i) { own += mass_in(thread * per_thread + i); }
    double before = above + block_prefix_sum<threads>(own, shared.double_scratch, total);
    if (thread == 0) {
      shared.low = num_value_bins;
      shared.above = above + total;
    }
    __syncthreads();
    if (before < wanted && before + own >= wanted) {
#pragma unroll
      for (int i = 0; i < per_thread; ++i) {
        const int b = thread * per_thread + i;
        const double mass = mass_in(b);
        if (before < wanted && (before + mass >= wanted || i + 1 == per_thread)) {
          shared.low = static_cast<std::uint32_t>(b);
          shared.above = before;
          const auto count = double(work.bins[b]);
          shared.ties = static_cast<std::uint32_t>(fmin(fmax(ceil((wanted - before) * count / mass), 1.0), count));
          before = wanted;
        }
        before += mass;
      }
    }
    __syncthreads();
    const auto bin = static_cast<int>(shared.low);
    const std::uint32_t ties = shared.ties;
    above = shared.above;
    __syncthreads();
    if (bin < num_value_bins) {
      const int number = top - bin;
      if (near_zero > 0 && number == 0) {  // look again between the nearest values that had bins
        return find_cut_by_keys<threads, by_mass>(work.mirror, wanted, logit_key(logit_of(-near_zero)),
                                                  logit_key(logit_of(near_zero)));
      }
      return {logit_key(logit_of(number > 0 ? number + near_zero : number < 0 ? number - near_zero : 0)), ties};
    }
    if (num_used == top - bottom + 1) { return {low_key, all_ties}; }  // not reached, by rounding
    const int next = top - num_used;                                   // below the last bin
    high = next > 0 ? next + near_zero : next < 0 ? next - near_zero : 0;
  }
}

/// The cut that keeps `wanted` tokens (by_mass false), or the shortest run of the most likely whose weight reaches `wanted`.
/// It lies in the keys [low, high], the latter that of the largest logit; if these do not reach `wanted`, the cut keeps all of
/// them. By the whole block.
template <int threads, bool by_mass, class T>
__device__ LogitCut find_cut(const RowWork<T>& work, double wanted, std::uint32_t low, std::uint32_t high) {
  if constexpr (sizeof(T) == 2) {
    if (!work.adjust.any()) { return find_cut_by_values<threads, by_mass>(work.mirror, wanted, low, high); }
  }
  return find_cut_by_keys<threads, by_mass>(work.mirror, wanted, low, high);
}

/// Fills sums with the weight above the cut of each chunk, and bins with how many of its tokens at the cut are kept.
/// By the whole
/// block; ends with a barrier.
template <int threads, class T>
__device__ __noinline__ void weigh_chunks(const RowWork<T>* mirror, LogitCut cut, float* sums) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  constexpr int warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = num_chunks(work.row.vocab);
  const float max = work.shared->summary.max, cut_logit = logit_of_key(cut.key);
  for (int c = warp; c < n; c += warps) {
    float sum = 0.0f;
    std::uint32_t ties = 0;
    if (__any_sync(all_lanes, work.group_max[c * 32 + lane] >= cut_logit)) {
      with_chunk<ChunkOrder::vectors>(work.row, work.adjust, c, [&](auto&& value, float, bool) {
#pragma unroll
        for (int i = 0; i < lane_logits; ++i) {
          const float x = value(i);
          sum += x > cut_logit ? logit_weight(x, max, work.scale) : 0.0f;
          ties += x == cut_logit ? 1u : 0u;
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
  const float cut_logit = logit_of_key(cut.key);
  std::uint32_t above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < lane_logits; ++i) {
    above |= (value(i) > cut_logit ? 1u : 0u) << i;
    equal |= (value(i) == cut_logit ? 1u : 0u) << i;
  }
  const auto own = static_cast<std::uint32_t>(__popc(equal));
  std::uint32_t rank = warp_prefix_sum(own) - own;
  for (; equal != 0 && rank < ties; equal &= equal - 1, ++rank) { above |= equal & (0u - equal); }
  return above;
}

/// A draw from what the cut leaves, into shared.picked. By the whole block; ends with a barrier.
template <int threads, class T>
__device__ __noinline__ void draw_above_cut(const RowWork<T>* mirror, LogitCut cut, double u) {
  const RowWork<T> work = RowWork<T>::of(mirror);
  weigh_chunks<threads>(work.mirror, cut, work.sums);
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    const float max = work.shared->summary.max;
    const float tie_weight = logit_weight(logit_of_key(cut.key), max, work.scale);
    LaneMasses masses;
    masses.fill(num_chunks(work.row.vocab), [&](int c) { return work.sums[c] + static_cast<float>(work.bins[c]) * tie_weight; });
    const Picked picked = masses.pick(u);
    with_chunk<ChunkOrder::runs>(work.row, work.adjust, picked.index, [&](auto&& value, float, bool) {
      const std::uint32_t kept = kept_mask(value, cut, work.bins[picked.index]);
      const PickedToken token = pick_token(picked.index, picked.rest, max, work.scale, kept, value,
                                           [&](int id) { return logit_at(work.row, work.adjust, id); });
      if (lane == 0) { work.shared->picked = token; }
    });
  }
  __syncthreads();
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
