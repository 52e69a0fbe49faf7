#pragma once
/// What one call of prefill attention is told, and the plan of its tiles: made once a step on the device, shared by all layers.
///
/// The query heads that share a KV head are packed: a tile is up to `tile_rows` / group tokens of one sequence, and its row r is
/// head r % group of token r / group. All rows read the same K and V, and a tile spans few tokens, so little of it is hidden by
/// the causal mask.
/// Order: sequences with the most keys first, in groups of about a thousand tiles, so that K and V of what runs at one time stay
/// in the L2 cache; in a group the tiles that see the most keys first, so that what is left at the end is short.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/paged_attention_prefill_workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// Device pointers; strides count elements. The queries of sequence s are rows cu_query_lens[s] .. cu_query_lens[s + 1] of q
/// and out; query i of `n` stands at position seq_lens[s] - n + i and sees the keys up to and including its own.
template <class T>
struct PagedPrefillParams {
  T* out = nullptr;      // [num_tokens, num_q_heads, head_dim], contiguous
  float* lse = nullptr;  // [num_tokens, num_q_heads] natural log of the sum of exp(scores); nullptr: not wanted
  const T* q = nullptr;  // [num_tokens, num_q_heads, head_dim], heads contiguous, rows `q_row_stride` apart, 16-byte aligned
  std::int64_t q_row_stride = 0;               // [elements]
  const T* kv = nullptr;                       // one layer in `layout`, 16-byte aligned; slots no sequence sees may hold NaN
  KvLayout layout;                             // block_size: a power of two, 16 to 256
  const BlockId* block_tables = nullptr;       // [num_seqs, max_blocks_per_seq]
  std::int32_t max_blocks_per_seq = 0;         // [blocks] row stride of block_tables
  const std::int32_t* block_stride = nullptr;  // [1] the same on the device; if not nullptr, it is used instead
  const std::int32_t* seq_lens = nullptr;  // [num_seqs] tokens that the last query sees; 0: padding, whose rows stay as they are
  const std::int32_t* cu_query_lens = nullptr;  // [num_seqs + 1], the first 0, the last at most num_tokens
  std::int32_t num_seqs = 0;
  std::int32_t num_tokens = 0;     // bounds the grid; rows past cu_query_lens[num_seqs] are not touched
  std::int32_t num_q_heads = 0;    // a multiple of layout.num_kv_heads, at most tile_rows times as many
  std::int32_t window = 0;         // [tokens] visible to a query, itself included; 0 = all
  std::int32_t min_query_len = 0;  // [tokens] shorter sequences are left out: rows of `out` and `lse` stay as they are
  float scale = 1.0f;              // of q k^T, positive
  float softcap = 0.0f;            // scores become softcap * tanh(score / softcap); 0 = off
  void* workspace = nullptr;       // paged_prefill_workspace_bytes(), 16-byte aligned; holds the plan
  bool overlap_previous = true;    // programmatic dependent launch
};

namespace detail::prefill {

/// The rules of a call, whichever kernel runs it.
template <class T>
void check(const PagedPrefillParams<T>& p) {
  const std::int32_t bs = p.layout.block_size;
  NVL_EXPECTS(is_supported_head_dim(p.layout.head_dim), "paged_prefill head_dim", p.layout.head_dim,
              "one of those compiled in: " + supported_head_dims_text());
  NVL_EXPECTS(bs >= 16 && bs <= 256 && (bs & (bs - 1)) == 0, "paged_prefill block_size", bs, "a power of two from 16 to 256");
  NVL_EXPECTS(p.layout.num_kv_heads > 0 && p.num_q_heads > 0 && p.num_q_heads % p.layout.num_kv_heads == 0,
              "paged_prefill num_q_heads", p.num_q_heads,
              "a positive multiple of num_kv_heads (" + std::to_string(p.layout.num_kv_heads) + ")");
  const std::int32_t max_group = paged_prefill_tile_rows<T>(p.layout.head_dim);
  NVL_EXPECTS(p.num_q_heads / p.layout.num_kv_heads <= max_group, "paged_prefill num_q_heads", p.num_q_heads,
              "at most " + std::to_string(max_group) + " times num_kv_heads (" + std::to_string(p.layout.num_kv_heads) + ")");
  NVL_EXPECTS(p.q_row_stride >= std::int64_t{p.num_q_heads} * p.layout.head_dim && p.q_row_stride % 8 == 0,
              "paged_prefill q_row_stride", p.q_row_stride, "a multiple of 8, at least num_q_heads * head_dim");
  NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(p.q) % 16 == 0, "paged_prefill q", reinterpret_cast<std::uintptr_t>(p.q),
              "16-byte aligned");
  NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(p.kv) % 16 == 0, "paged_prefill kv", reinterpret_cast<std::uintptr_t>(p.kv),
              "16-byte aligned");
  NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(p.workspace) % 16 == 0 && p.workspace != nullptr, "paged_prefill workspace",
              reinterpret_cast<std::uintptr_t>(p.workspace), "device memory, 16-byte aligned");
  NVL_EXPECTS(p.num_tokens >= 0 && std::int64_t{p.num_tokens} * p.num_q_heads < std::int64_t{1} << 31, "paged_prefill num_tokens",
              p.num_tokens, "at least 0 and below 2^31 / num_q_heads");
  NVL_EXPECTS(p.num_seqs >= 0, "paged_prefill num_seqs", p.num_seqs, "at least 0");
  NVL_EXPECTS(p.scale > 0.0f, "paged_prefill scale", p.scale, "positive");
  NVL_EXPECTS(p.softcap >= 0.0f, "paged_prefill softcap", p.softcap, "at least 0");
  NVL_EXPECTS(p.window >= 0, "paged_prefill window", p.window, "at least 0");
}

template <class T>
std::int64_t max_tiles(const PagedPrefillParams<T>& p) {
  return paged_prefill_max_tiles<T>(p.num_tokens, p.num_seqs, p.num_q_heads, p.layout.num_kv_heads, p.layout.head_dim);
}

inline constexpr int plan_threads = 1024;
inline constexpr int plan_buckets = 2 * plan_threads;  // of sequences, by length: 64 keys each, the last without an end
inline constexpr int plan_bucket_keys = 64;
inline constexpr int plan_group_tiles = 1024;  // about 8 for every multiprocessor of an H200; K and V of d 128: 16 MB at 512 keys
inline constexpr int plan_groups = 32;         // at most; larger plans have larger groups
inline constexpr int plan_levels = 64;         // of tiles of a group, by visible keys

struct PlanInput {
  PagedPrefillPlan* plan;
  const std::int32_t* seq_lens;
  const std::int32_t* cu_query_lens;
  const std::int32_t* block_stride;
  std::int32_t max_blocks_per_seq;
  std::int32_t num_seqs;
  std::int32_t num_kv_heads;
  std::int32_t tile_tokens;
  std::int32_t min_query_len;
  std::int64_t max_tiles;
};

#if defined(__CUDACC__)

/// Tiles of a KV head of sequence `s`.
__device__ __forceinline__ std::int32_t num_tiles_of(const PlanInput& in, std::int32_t s) {
  const std::int32_t query_len = in.cu_query_lens[s + 1] - in.cu_query_lens[s];
  const bool is_left_out = query_len < in.min_query_len || in.seq_lens[s] <= 0;  // 0: padding, which sees no keys
  return is_left_out ? 0 : (query_len + in.tile_tokens - 1) / in.tile_tokens;
}

/// Turns counts into the sums of all counts before, for 2 kThreads counts; returns the sum of all. By the whole block.
template <int kThreads>
__device__ __forceinline__ int exclusive_scan(int (&counts)[2 * kThreads], int (&warp_totals)[kThreads / 32]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int first = counts[2 * thread];
  const int count = first + counts[2 * thread + 1];
  int before = count;  // inclusive so far
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, offset);
    if (lane >= offset) { before += other; }
  }
  if (lane == 31) { warp_totals[thread / 32] = before; }
  __syncthreads();
  int total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    if (warp < thread / 32) { before += warp_totals[warp]; }
    total += warp_totals[warp];
  }
  counts[2 * thread] = before - count;
  counts[2 * thread + 1] = before - count + first;
  __syncthreads();
  return total;
}

/// One block: a counting sort of the sequences by length, which cuts them into groups, then one of the tiles by group and
/// visible keys. The order of equals may change from run to run: it decides only which of them starts first.
template <int kThreads = plan_threads>
NVL_KERNEL void __launch_bounds__(kThreads) paged_prefill_plan_kernel(const __grid_constant__ PlanInput in) {
  static_assert(plan_buckets == 2 * kThreads && plan_groups * plan_levels == 2 * kThreads);
  wait_for_previous();
  let_next_start();
  __shared__ int next[2 * kThreads];  // tiles of a bucket, then the place of its next one
  __shared__ int warp_totals[kThreads / 32];
  __shared__ int longest;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  auto* const group_of = reinterpret_cast<std::int32_t*>(in.plan->tiles() + in.max_tiles);  // [num_seqs]
  const auto clear = [&] {
    next[thread] = 0;
    next[thread + kThreads] = 0;
  };

  clear();
  if (thread == 0) { longest = 1; }
  __syncthreads();
  const auto bucket_of = [&](std::int32_t s) {
    return plan_buckets - 1 - min(in.seq_lens[s] / plan_bucket_keys, plan_buckets - 1);
  };
  for (std::int32_t s = thread; s < in.num_seqs; s += kThreads) {
    const std::int32_t tiles = num_tiles_of(in, s);
    if (tiles > 0) {
      atomicAdd(&next[bucket_of(s)], tiles * in.num_kv_heads);
      atomicMax(&longest, in.seq_lens[s]);
    }
  }
  __syncthreads();
  const int total = exclusive_scan<kThreads>(next, warp_totals);
  const int group_tiles = max(plan_group_tiles, total / plan_groups + 1);
  for (std::int32_t s = thread; s < in.num_seqs; s += kThreads) {
    group_of[s] = atomicAdd(&next[bucket_of(s)], num_tiles_of(in, s) * in.num_kv_heads) / group_tiles;
  }
  __syncthreads();

  clear();
  __syncthreads();
  // A warp a sequence, a lane a tile of all KV heads.
  const auto for_each_tile = [&](auto&& f) {
    for (std::int32_t s = thread / 32; s < in.num_seqs; s += kThreads / 32) {
      const std::int32_t tiles = num_tiles_of(in, s);
      const std::int32_t seq_len = in.seq_lens[s];
      const std::int32_t query_len = in.cu_query_lens[s + 1] - in.cu_query_lens[s];
      for (std::int32_t i = lane; i < tiles; i += 32) {
        const std::int64_t keys = seq_len - query_len + min((i + 1) * in.tile_tokens, query_len);
        const auto level = static_cast<int>((longest - keys) * plan_levels / longest);
        f(s, i, group_of[s] * plan_levels + level);
      }
    }
  };
  for_each_tile([&](std::int32_t, std::int32_t, int bucket) { atomicAdd(&next[bucket], in.num_kv_heads); });
  __syncthreads();
  exclusive_scan<kThreads>(next, warp_totals);
  const std::int64_t stride = in.block_stride != nullptr ? *in.block_stride : in.max_blocks_per_seq;
  for_each_tile([&](std::int32_t s, std::int32_t i, int bucket) {
    PagedPrefillTile tile{
        s * stride, in.cu_query_lens[s], in.cu_query_lens[s + 1] - in.cu_query_lens[s], in.seq_lens[s], i * in.tile_tokens, 0, 0};
    PagedPrefillTile* const to = in.plan->tiles() + atomicAdd(&next[bucket], in.num_kv_heads);
    for (tile.kv_head = 0; tile.kv_head < in.num_kv_heads; ++tile.kv_head) { to[tile.kv_head] = tile; }
  });
  if (thread == 0) {
    in.plan->num_tiles = total;
    in.plan->next = 0;
    in.plan->finished = 0;
  }
}

#endif

}  // namespace detail::prefill

#if defined(__CUDACC__)

/// Plans the calls of one step. Reads only the lengths, heads, head dim, min_query_len, block strides, workspace and
/// overlap_previous of `p`, and every launch_paged_prefill with equal values of these may use the result, one after the other,
/// until the next plan in the same workspace. Asynchronous on `stream`; safe inside graph capture.
/// \throws InvalidArgument as launch_paged_prefill does; CudaError if the launch is refused.
template <class T>
void launch_paged_prefill_plan(const PagedPrefillParams<T>& p, cudaStream_t stream) {
  detail::prefill::check(p);
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  const detail::prefill::PlanInput in{
      .plan = static_cast<PagedPrefillPlan*>(p.workspace),
      .seq_lens = p.seq_lens,
      .cu_query_lens = p.cu_query_lens,
      .block_stride = p.block_stride,
      .max_blocks_per_seq = p.max_blocks_per_seq,
      .num_seqs = p.num_seqs,
      .num_kv_heads = p.layout.num_kv_heads,
      .tile_tokens = paged_prefill_tile_tokens<T>(p.num_q_heads, p.layout.num_kv_heads, p.layout.head_dim),
      .min_query_len = p.min_query_len,
      .max_tiles = detail::prefill::max_tiles(p)};
  const detail::LaunchConfig config{
      .block = dim3(detail::prefill::plan_threads), .stream = stream, .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_plan_kernel<>, in));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
