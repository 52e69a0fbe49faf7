#pragma once
/// Bias, penalties and bans of one row: the few logits they change, found by id while the row is streamed.
///
/// A bit a token marks the changed logits; the set bits before an id number its value. So a row costs a bit and a half
/// a token in
/// shared memory and a float for each changed token, whatever the length of the history, and nothing is written to the logits.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/detail/sampling_chunk.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

inline constexpr int chunk_bit_words = chunk_logits / 32;

#if defined(__CUDACC__)

/// Exclusive prefix sum over the threads of the block, and the sum of all. `scratch`: [warps + 1]; free again after the next
/// __syncthreads().
template <int threads, class Number>
__device__ __forceinline__ Number block_prefix_sum(Number x, Number* scratch, Number& total) {
  constexpr int warps = threads / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Number inclusive = warp_prefix_sum(x);
  if (lane == 31) { scratch[warp] = inclusive; }
  __syncthreads();
  if (warp == 0) {
    const Number own = lane < warps ? scratch[lane] : Number(0);
    const Number sum = warp_prefix_sum(own);
    if (lane < warps) { scratch[lane] = sum - own; }
    if (lane == warps - 1) { scratch[warps] = sum; }
  }
  __syncthreads();
  total = scratch[warps];
  return scratch[warp] + inclusive - x;
}

/// The changed logits of one row.
struct RowAdjustments {
  const std::uint32_t* bits = nullptr;   // [vocab / 32] a bit a token; null: nothing is changed
  const std::uint32_t* ranks = nullptr;  // [vocab / 32] set bits before the word
  const float* values = nullptr;         // by rank; -infinity: banned

  __device__ bool any() const { return bits != nullptr; }
  /// Of the `count` tokens from `id` on, which lie in one word, those that are changed.
  __device__ std::uint32_t mask(int id, int count) const {
    return (bits[id / 32] >> (id % 32)) & (count == 32 ? all_lanes : (1u << count) - 1u);
  }
  /// Changed tokens below `id`: the index of its value.
  __device__ std::uint32_t rank(int id) const {
    return ranks[id / 32] + static_cast<std::uint32_t>(__popc(bits[id / 32] & ((1u << (id % 32)) - 1u)));
  }
  __device__ float value(int id) const { return values[rank(id)]; }
};

/// Calls `f(value, max, is_finite)` with this lane's logits of a chunk after adjustment: `value(i)`, their largest, and whether
/// the logits were finite before. All lanes of the warp call it.
template <ChunkOrder order, class T, class F>
__device__ __forceinline__ void with_chunk(const LogitRow<T>& row, const RowAdjustments& adjust, int chunk, F&& f) {
  using Chunk = LogitChunk<T, order>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Chunk c;
  c.load(row, chunk, lane);
  float x[lane_logits];
#pragma unroll
  for (int i = 0; i < lane_logits; ++i) { x[i] = c.element(i); }
  if (adjust.any()) {
    constexpr int run = order == ChunkOrder::runs ? lane_logits : Chunk::vec;  // of consecutive ids: their values are neighbours
#pragma unroll
    for (int i = 0; i < lane_logits; i += run) {
      const int id = chunk * chunk_logits + Chunk::offset_of(lane, i);
      const std::uint32_t changed = adjust.mask(id, run);
      if (changed != 0) {
        const float* values = adjust.values + adjust.rank(id);
#pragma unroll
        for (int e = 0; e < run; ++e) {
          if ((changed >> e & 1) != 0) { x[i + e] = *values++; }
        }
      }
    }
  }
  float max[4] = {x[0], x[1], x[2], x[3]};
#pragma unroll
  for (int i = 4; i < lane_logits; ++i) { max[i % 4] = fmaxf(max[i % 4], x[i]); }
  f([&](int i) { return x[i]; }, fmaxf(fmaxf(max[0], max[1]), fmaxf(max[2], max[3])), c.is_finite());
}

/// Logit `id` after adjustment.
template <class T>
__device__ __forceinline__ float logit_at(const LogitRow<T>& row, const RowAdjustments& adjust, int id) {
  return adjust.any() && adjust.mask(id, 1) != 0 ? adjust.value(id) : row.at(id);
}

/// What a row's request names, in device memory.
struct RowLists {
  const LogitBias* bias;
  const TokenId* banned;
  const TokenId* history;
  int num_bias, num_banned, num_history;  // history only if there is a penalty
  int num_prompt;                         // of the history
  bool has_penalty;
};

/// Memory for the adjustments of one row.
struct AdjustMemory {
  std::uint32_t* bits;   // [num_chunks * chunk_bit_words] shared
  std::uint32_t* ranks;  // the same
  float* values;         // [capacity] shared
  int capacity;
  float* overflow;         // [vocab] global, for rows that change more
  std::uint32_t* scratch;  // [warps + 1] shared
};

/// By the whole block. What it returns may be used after it without another barrier.
template <int threads, class T>
__device__ __noinline__ RowAdjustments build_adjustments(LogitRow<T> row, const SamplingRow& options, RowLists lists,
                                                         AdjustMemory memory) {
  constexpr std::uint32_t in_history = 1, has_bias = 2, is_banned = 4, one_output = 8;  // of a token's marks
  const int thread = static_cast<int>(threadIdx.x);
  const int num_words = num_chunks(row.vocab) * chunk_bit_words;
  const auto in_vocab = [&](TokenId id) { return id >= 0 && id < row.vocab; };  // others have no logit to change
  const auto for_each_id = [&](auto&& f) {
    for (int i = thread; i < lists.num_bias; i += threads) {
      if (in_vocab(lists.bias[i].token)) { f(lists.bias[i].token, has_bias); }
    }
    for (int i = thread; i < lists.num_history; i += threads) {
      if (in_vocab(lists.history[i])) { f(lists.history[i], i < lists.num_prompt ? in_history : one_output); }
    }
    for (int i = thread; i < lists.num_banned; i += threads) {
      if (in_vocab(lists.banned[i])) { f(lists.banned[i], is_banned); }
    }
  };

  for (int w = thread; w < num_words; w += threads) { memory.bits[w] = 0; }
  __syncthreads();
  for_each_id([&](TokenId id, std::uint32_t) { atomicOr(memory.bits + id / 32, 1u << (id % 32)); });
  __syncthreads();

  const int per_thread = (num_words + threads - 1) / threads;
  const int begin = min(thread * per_thread, num_words), end = min(begin + per_thread, num_words);
  std::uint32_t own = 0, num_changed = 0;
  for (int w = begin; w < end; ++w) { own += static_cast<std::uint32_t>(__popc(memory.bits[w])); }
  std::uint32_t rank = block_prefix_sum<threads>(own, memory.scratch, num_changed);
  for (int w = begin; w < end; ++w) {
    memory.ranks[w] = rank;
    rank += static_cast<std::uint32_t>(__popc(memory.bits[w]));
  }
  float* const values = num_changed <= static_cast<std::uint32_t>(memory.capacity) ? memory.values : memory.overflow;
  auto* const marks = reinterpret_cast<std::uint32_t*>(values);  // a token's marks until its value is known
  for (std::uint32_t i = static_cast<std::uint32_t>(thread); i < num_changed; i += threads) { marks[i] = 0; }
  __syncthreads();
  const RowAdjustments adjust{memory.bits, memory.ranks, values};
  for_each_id([&](TokenId id, std::uint32_t mark) {
    if (mark == one_output) {
      atomicAdd(marks + adjust.rank(id), one_output);
    } else {
      atomicOr(marks + adjust.rank(id), mark);
    }
  });
  __syncthreads();

  // The arithmetic of ops/cpu_sampler.hpp, operation by operation. Only a ban may make a logit infinite.
  const auto clamped = [](float x) { return fminf(fmaxf(x, lowest_logit), -lowest_logit); };
  for (int w = thread; w < num_words; w += threads) {
    std::uint32_t r = memory.ranks[w];
    for (std::uint32_t rest = memory.bits[w]; rest != 0; rest &= rest - 1, ++r) {
      const int id = w * 32 + __ffs(static_cast<int>(rest)) - 1;
      const std::uint32_t mark = marks[r];
      float x = to_float(row.logits[id]);
      if ((mark & has_bias) != 0) {
        for (int i = 0; i < lists.num_bias; ++i) {
          if (lists.bias[i].token == id) { x = clamped(__fadd_rn(x, lists.bias[i].bias)); }
        }
      }
      const std::uint32_t count = mark / one_output;
      if (count > 0 || (mark & in_history) != 0) {
        x = x > 0.0f ? __fdiv_rn(x, options.repetition_penalty) : __fmul_rn(x, options.repetition_penalty);
        const float presence = count > 0 ? options.presence_penalty : 0.0f;
        const float frequency = __fmul_rn(options.frequency_penalty, static_cast<float>(count));
        x = clamped(__fsub_rn(__fsub_rn(x, frequency), presence));
      }
      values[r] = (mark & is_banned) != 0 ? minus_infinity() : x;
    }
  }
  __syncthreads();
  return adjust;
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
