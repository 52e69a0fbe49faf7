#pragma once
/// How paged decode attention cuts the keys of a step over thread blocks. Made once a step on the device, used by every layer.
///
/// Keys are taken in tiles of 16. A unit is one sequence, KV head and block of query columns; its work is the sequence's tiles.
/// All units stand in one line, sequence by sequence, and every thread block gets an equal run of it (as stream-K does for matrix
/// products, Osama et al. 2023, arXiv:2301.03598): at most the first and the last piece of a run are parts of a unit that others
/// share. A step with fewer units than thread blocks gives each thread block one piece of one unit. With fixed splits a unit is
/// cut at multiples of `split_tiles` and nowhere else, so that a sequence's sums do not depend on its neighbours.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/paged_attention_decode_workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// Numbers of the balance, chosen on an H200 (16/8 heads, head_dim 128): docs/kernels/paged_attention_decode.md.
struct PagedDecodeTuning {
  std::int32_t unit_cost = 6;          // [tiles] that the start and end of a unit cost
  std::int32_t min_piece = 4;          // [tiles] a unit is not cut so near to its ends
  std::int32_t min_span = 4;           // [tiles] a thread block gets at least; fewer thread blocks work if there are not as many
  std::int32_t second_piece_cost = 8;  // [tiles] more than an equal share that a thread block may get to have one piece only
};

namespace detail::paged_decode {

/// Division by a number that the host knows, of numerators below 2^32 / divisor.
struct Divisor {
  std::uint32_t value = 1;
  std::uint32_t inverse = 0;  // 2^32 / value, rounded up

  Divisor() = default;
  explicit Divisor(std::int32_t divisor)
      : value(static_cast<std::uint32_t>(divisor)),
        inverse(divisor > 1 ? static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + value - 1) / value) : 0) {}
#if defined(__CUDACC__)
  __device__ __forceinline__ std::int32_t divide(std::int32_t x) const {
    return value == 1 ? x : static_cast<std::int32_t>(__umulhi(static_cast<std::uint32_t>(x), inverse));
  }
#endif
};

/// The sequences of a step, as the plan and the kernels see them. Pointers are to device memory.
struct Batch {
  const std::int32_t* seq_lens;
  const std::int32_t* cu_query_lens;
  const std::int32_t* block_stride;
  const BlockId* block_tables;
  std::int32_t num_seqs;
  std::int32_t num_kv_heads;
  std::int32_t group_size;
  Divisor group;         // group_size
  std::int32_t columns;  // of one unit: queries x heads that share its loads
  std::int32_t max_query_len;
  std::int32_t window;
  std::int32_t block_size_log2;
};

/// One sequence: its tiles, and how many units have these tiles.
struct SeqWork {
  std::int32_t seq_len = 0, query_len = 0, query_row = 0;
  std::int32_t first_tile = 0;  // of those that its first query sees
  std::int32_t num_tiles = 0;   // 0: not decoded here
  std::int32_t num_units = 0;
};

/// Where a span begins.
struct Cut {
  std::int32_t seq, unit, tile;
};

#if defined(__CUDACC__)

__device__ __forceinline__ SeqWork seq_work(const Batch& batch, std::int32_t seq_len, std::int32_t query_len,
                                            std::int32_t query_row) {
  SeqWork w;
  w.seq_len = seq_len;
  w.query_len = query_len;
  w.query_row = query_row;
  if (w.seq_len <= 0 || w.query_len <= 0 || w.query_len > batch.max_query_len) { return w; }
  const std::int32_t first_token = batch.window > 0 ? max(0, w.seq_len - w.query_len + 1 - batch.window) : 0;
  w.first_tile = first_token / tile_tokens;
  w.num_tiles = (w.seq_len + tile_tokens - 1) / tile_tokens - w.first_tile;
  w.num_units = batch.num_kv_heads * ((w.query_len * batch.group_size + batch.columns - 1) / batch.columns);
  return w;
}

__device__ __forceinline__ SeqWork seq_work(const Batch& batch, std::int32_t seq) {
  const std::int32_t row = batch.cu_query_lens[seq];
  return seq_work(batch, batch.seq_lens[seq], batch.cu_query_lens[seq + 1] - row, row);
}

/// The first index of the sorted `values` whose value is above `x` (kAbove) or not below it.
template <bool kAbove>
__device__ inline std::int32_t search(const std::int64_t* values, std::int32_t count, std::int64_t x) {
  std::int32_t low = 0, high = count;
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    const bool right = kAbove ? values[middle] <= x : values[middle] < x;
    low = right ? middle + 1 : low;
    high = right ? high : middle;
  }
  return low;
}

/// Sums of `x` over the threads before this one, and over all. Two barriers.
template <int threads>
__device__ inline std::int64_t exclusive_sum(std::int64_t x, std::int64_t& total, std::int64_t* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  std::int64_t sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::int64_t below = __shfl_up_sync(0xffffffffu, sum, offset);
    sum += lane >= offset ? below : 0;
  }
  if (lane == 31) { scratch[warp] = sum; }
  __syncthreads();
  std::int64_t before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < threads / 32; ++i) {
    before += i < warp ? scratch[i] : 0;
    total += scratch[i];
  }
  __syncthreads();
  return before + sum - x;
}

inline constexpr int plan_threads = 512;

/// One thread block of plan_threads. A template only because a kernel in a header must be one.
template <int threads>
NVL_KERNEL void __launch_bounds__(threads)
    paged_decode_plan_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Workspace ws,
                             const __grid_constant__ PagedDecodeTuning tuning) {
  constexpr int few = 1024;
  __shared__ std::int64_t scratch[threads / 32];
  __shared__ std::int64_t small[2][few];
  __shared__ std::int64_t begin[max_blocks + 1];  // [tiles] of the line before the spans
  __shared__ Cut cuts[max_blocks + 1];            // where they begin
  __shared__ std::int32_t shortest;
  constexpr std::int32_t candidates = 64;
  detail::wait_for_previous();
  detail::let_next_start();

  std::int64_t* const cost_end = batch.num_seqs <= few ? small[0] : ws.cost_end;
  std::int64_t* const tile_end = batch.num_seqs <= few ? small[1] : ws.tile_end;
  const std::int32_t share = (batch.num_seqs + threads - 1) / threads;
  const std::int32_t first = min(static_cast<std::int32_t>(threadIdx.x) * share, batch.num_seqs);
  const std::int32_t last = min(first + share, batch.num_seqs);
  const std::int32_t block_stride = *batch.block_stride;

  std::int64_t cost = 0, tiles = 0, partials = 0;
  const auto cost_of = [&](const SeqWork& w) {
    return w.num_tiles > 0 ? std::int64_t{w.num_tiles + tuning.unit_cost} * w.num_units : 0;
  };
  const auto partials_of = [&](const SeqWork& w) {
    return ws.split_tiles > 0 && w.num_tiles > ws.split_tiles
               ? std::int64_t{(w.num_tiles + ws.split_tiles - 1) / ws.split_tiles} * w.num_units
               : 0;
  };
  for (std::int32_t s = first; s < last; ++s) {
    const SeqWork w = seq_work(batch, s);
    cost += cost_of(w);
    tiles += std::int64_t{w.num_tiles} * w.num_units;
    partials += partials_of(w);
  }
  std::int64_t total_cost, total_tiles, total_partials;
  cost = exclusive_sum<threads>(cost, total_cost, scratch);
  tiles = exclusive_sum<threads>(tiles, total_tiles, scratch);
  partials = exclusive_sum<threads>(partials, total_partials, scratch);
  for (std::int32_t s = first; s < last; ++s) {
    const SeqWork w = seq_work(batch, s);
    cost_end[s] = cost += cost_of(w);
    tile_end[s] = tiles += std::int64_t{w.num_tiles} * w.num_units;
    if (ws.split_tiles > 0) {
      const std::int64_t count = partials_of(w);
      ws.first_partial[s] = count > 0 && partials + count <= ws.num_partials ? static_cast<std::int32_t>(partials) : -1;
      partials += count;
    }
  }
  __syncthreads();

  // Spans of at least unit_cost + 2 min_piece are never empty, whichever way their ends are moved below.
  const std::int64_t least = max(tuning.min_span, tuning.unit_cost + 2 * tuning.min_piece);
  auto active = static_cast<std::int32_t>(
      max(std::int64_t{1}, min(static_cast<std::int64_t>(ws.num_blocks), total_cost / max(least, std::int64_t{1}))));

  // With few units a thread block is better off with one piece of one unit than with an equal share. Which is the shortest
  // piece that all units can be cut into for that?
  std::int32_t piece_tiles = 0;
  if (ws.split_tiles == 0 && total_tiles > 0) {
    if (threadIdx.x == 0) { shortest = candidates; }
    __syncthreads();
    const auto even = max(static_cast<std::int32_t>((total_tiles + ws.num_blocks - 1) / ws.num_blocks), max(tuning.min_span, 1));
    const auto tiles_of_candidate = [&](std::int32_t i) { return even + even * i / 16; };
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x) / 32; i < candidates; i += threads / 32) {
      const std::int32_t length = tiles_of_candidate(i);
      std::int64_t count = 0;
      for (std::int32_t s = static_cast<std::int32_t>(threadIdx.x) % 32; s < batch.num_seqs; s += 32) {
        const SeqWork w = seq_work(batch, s);
        count += std::int64_t{(w.num_tiles + length - 1) / length} * w.num_units;
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) { count += __shfl_xor_sync(0xffffffffu, count, offset); }
      if (threadIdx.x % 32 == 0 && count <= ws.num_blocks) { atomicMin(&shortest, i); }
    }
    __syncthreads();
    if (shortest < candidates) {
      const std::int32_t length = tiles_of_candidate(shortest);
      if (length <= max(std::int64_t{tuning.min_span}, total_cost / ws.num_blocks + tuning.second_piece_cost)) {
        piece_tiles = length;
      }
    }
  }
  if (piece_tiles > 0) {
    // From here on cost counts pieces.
    std::int64_t pieces = 0;
    const auto pieces_of = [&](const SeqWork& w) {
      return std::int64_t{(w.num_tiles + piece_tiles - 1) / piece_tiles} * w.num_units;
    };
    for (std::int32_t s = first; s < last; ++s) { pieces += pieces_of(seq_work(batch, s)); }
    pieces = exclusive_sum<threads>(pieces, total_cost, scratch);
    for (std::int32_t s = first; s < last; ++s) { cost_end[s] = pieces += pieces_of(seq_work(batch, s)); }
    active = static_cast<std::int32_t>(total_cost);
    __syncthreads();
  }
  for (std::int32_t b = threadIdx.x; b <= active; b += threads) {
    Cut cut{batch.num_seqs, 0, 0};
    begin[b] = total_tiles;
    const std::int64_t x = total_cost * b / active;
    if (x < total_cost) {
      std::int32_t s = search<true>(cost_end, batch.num_seqs, x);
      const SeqWork w = seq_work(batch, s);
      const std::int64_t within = x - (s > 0 ? cost_end[s - 1] : 0);
      const std::int32_t unit_cost =
          piece_tiles > 0 ? (w.num_tiles + piece_tiles - 1) / piece_tiles : w.num_tiles + tuning.unit_cost;
      auto unit = static_cast<std::int32_t>(within / unit_cost);
      std::int32_t tile = max(0, static_cast<std::int32_t>(within % unit_cost) - tuning.unit_cost);
      if (piece_tiles > 0) {
        tile = static_cast<std::int32_t>(within % unit_cost * w.num_tiles / unit_cost);
      } else if (ws.split_tiles > 0) {
        const std::int32_t step = ws.first_partial[s] < 0 ? w.num_tiles : ws.split_tiles;
        tile = min((tile + step / 2) / step * step, w.num_tiles);
      } else if (tile < tuning.min_piece) {
        tile = 0;
      } else if (w.num_tiles - tile < tuning.min_piece) {
        tile = w.num_tiles;
      }
      begin[b] = (s > 0 ? tile_end[s - 1] : 0) + std::int64_t{unit} * w.num_tiles + tile;
      if (tile == w.num_tiles) {
        tile = 0;
        if (++unit == w.num_units) {
          unit = 0;
          do { ++s; } while (s < batch.num_seqs && seq_work(batch, s).num_tiles == 0);
        }
      }
      cut = {s, unit, tile};
    }
    cuts[b] = cut;
  }
  __syncthreads();

  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  for (std::int32_t b = static_cast<std::int32_t>(threadIdx.x) / 32; b < ws.num_blocks; b += threads / 32) {
    PagedDecodeSpan span{};
    if (b < active && begin[b + 1] > begin[b]) {
      const SeqWork work = seq_work(batch, cuts[b].seq);
      span.seq = cuts[b].seq;
      span.unit = cuts[b].unit;
      span.tile = cuts[b].tile;
      span.num_tiles = static_cast<std::int32_t>(begin[b + 1] - begin[b]);
      span.block_stride = block_stride;
      span.seq_len = work.seq_len;
      span.query_len = work.query_len;
      span.query_row = work.query_row;
      if (span.tile + lane < work.num_tiles) {
        const std::int64_t token = std::int64_t{work.first_tile + span.tile + lane} * tile_tokens;
        ws.first_ids[b * 32 + lane] =
            index_of(batch.block_tables[std::int64_t{span.seq} * block_stride + (token >> batch.block_size_log2)]);
      }
      const auto last_block_of_unit_at = [&](std::int32_t at) {
        const std::int64_t end = begin[at] - cuts[at].tile + seq_work(batch, cuts[at].seq).num_tiles;
        return search<false>(begin, active, end) - 1;
      };
      span.first_block = b;
      span.last_block_of_first = b;
      if (span.tile > 0) {
        span.first_block = search<true>(begin, active, begin[b] - span.tile) - 1;
        span.last_block_of_first = last_block_of_unit_at(b);
      }
      span.last_block_of_last = cuts[b + 1].tile == 0 ? b : last_block_of_unit_at(b + 1);
    }
    if (lane == 0) { ws.spans[b] = span; }
  }
}

#endif

}  // namespace detail::paged_decode
}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
