#pragma once
/// What one call of prefill attention is told, and the plan of its tiles: made once a step on the device, shared by all layers.
///
/// The query heads that share a KV head are packed: row r of a sequence is head r % group of its query token r / group, and a
/// tile is `tile_rows` such rows of one sequence. All of them read the same K and V, and a tile spans only tile_rows / group
/// tokens, so little of it is hidden by the causal mask. Tiles that see the most keys come first: what is left at the end of
/// the grid is short.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/kernels/detail/launch.cuh>

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
  std::int64_t q_row_stride = 0;                // [elements]
  const T* kv = nullptr;                        // one layer in `layout`, 16-byte aligned; slots no sequence sees may hold NaN
  KvLayout layout;                              // block_size: a power of two, 16 to 256
  const BlockId* block_tables = nullptr;        // [num_seqs, max_blocks_per_seq]
  std::int32_t max_blocks_per_seq = 0;          // [blocks] row stride of block_tables
  const std::int32_t* block_stride = nullptr;   // [1] the same on the device; if not nullptr, it is used instead
  const std::int32_t* seq_lens = nullptr;       // [num_seqs] tokens that the last query sees
  const std::int32_t* cu_query_lens = nullptr;  // [num_seqs + 1], the first 0, the last at most num_tokens
  std::int32_t num_seqs = 0;
  std::int32_t num_tokens = 0;     // bounds the grid; rows past cu_query_lens[num_seqs] are not touched
  std::int32_t num_q_heads = 0;    // a multiple of layout.num_kv_heads, at most 128 times as many
  std::int32_t window = 0;         // [tokens] visible to a query, itself included; 0 = all
  std::int32_t min_query_len = 0;  // [tokens] shorter sequences are left out: rows of `out` and `lse` stay as they are
  float scale = 1.0f;              // of q k^T, positive
  float softcap = 0.0f;            // scores become softcap * tanh(score / softcap); 0 = off
  void* workspace = nullptr;       // paged_prefill_workspace_bytes(), 16-byte aligned; holds the plan
  bool overlap_previous = true;    // programmatic dependent launch
};

/// One unit of work but for the KV head: `tile_rows` packed rows of one sequence.
struct alignas(16) PagedPrefillTile {
  std::int64_t table_offset;  // [entries] of the sequence's row of block_tables
  std::int32_t first_token;   // row of q that is the sequence's first query
  std::int32_t query_len;     // [tokens]
  std::int32_t seq_len;       // [tokens]
  std::int32_t first_row;     // packed row, below query_len * group
  std::int32_t unused[2];
};

/// The workspace: how many tiles there are, then the tiles, most keys first.
struct alignas(16) PagedPrefillPlan {
  std::int32_t num_tiles;
  std::int32_t unused[3];

  NVL_HOST_DEVICE const PagedPrefillTile* tiles() const { return reinterpret_cast<const PagedPrefillTile*>(this + 1); }
  NVL_HOST_DEVICE PagedPrefillTile* tiles() { return reinterpret_cast<PagedPrefillTile*>(this + 1); }
};

/// [packed rows] of a tile, the same on every architecture.
template <class T>
constexpr std::int32_t paged_prefill_tile_rows(std::int32_t head_dim) noexcept {
  return std::is_same_v<T, float> ? 32 : head_dim > 128 ? 64 : 128;
}

/// [tiles] at most, whatever the lengths are.
template <class T>
constexpr std::int64_t paged_prefill_max_tiles(std::int32_t num_tokens, std::int32_t num_seqs, std::int32_t num_q_heads,
                                               std::int32_t num_kv_heads, std::int32_t head_dim) noexcept {
  const std::int64_t rows = std::int64_t{num_tokens} * (num_q_heads / num_kv_heads);
  return rows / paged_prefill_tile_rows<T>(head_dim) + num_seqs;
}

template <class T>
constexpr std::size_t paged_prefill_workspace_bytes(std::int32_t num_tokens, std::int32_t num_seqs, std::int32_t num_q_heads,
                                                    std::int32_t num_kv_heads, std::int32_t head_dim) noexcept {
  return sizeof(PagedPrefillPlan) + sizeof(PagedPrefillTile) * static_cast<std::size_t>(paged_prefill_max_tiles<T>(
                                                                   num_tokens, num_seqs, num_q_heads, num_kv_heads, head_dim));
}

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
  NVL_EXPECTS(p.num_q_heads / p.layout.num_kv_heads <= 128, "paged_prefill num_q_heads", p.num_q_heads,
              "at most 128 times num_kv_heads (" + std::to_string(p.layout.num_kv_heads) + ")");
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

/// Tiles times KV heads, at most.
template <class T>
std::int64_t max_work(const PagedPrefillParams<T>& p) {
  return p.layout.num_kv_heads *
         paged_prefill_max_tiles<T>(p.num_tokens, p.num_seqs, p.num_q_heads, p.layout.num_kv_heads, p.layout.head_dim);
}

inline constexpr int plan_threads = 1024;
inline constexpr int plan_buckets = 2 * plan_threads;  // of 64 keys; what sees more than 131,008 keys is in the last
inline constexpr int plan_bucket_keys = 64;

struct PlanInput {
  PagedPrefillPlan* plan;
  const std::int32_t* seq_lens;
  const std::int32_t* cu_query_lens;
  const std::int32_t* block_stride;
  std::int32_t max_blocks_per_seq;
  std::int32_t num_seqs;
  std::int32_t group;
  std::int32_t tile_rows;
  std::int32_t window;
  std::int32_t min_query_len;
};

#if defined(__CUDACC__)

/// Calls f(tile, bucket) for every tile: a warp per sequence, a lane per tile.
template <class F>
__device__ __forceinline__ void for_each_tile(const PlanInput& in, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t stride = in.block_stride != nullptr ? *in.block_stride : in.max_blocks_per_seq;
  for (int s = static_cast<int>(threadIdx.x) / 32; s < in.num_seqs; s += plan_threads / 32) {
    const std::int32_t first_token = in.cu_query_lens[s];
    const std::int32_t query_len = in.cu_query_lens[s + 1] - first_token;
    const std::int32_t seq_len = in.seq_lens[s];
    if (query_len < in.min_query_len) { continue; }
    const std::int32_t rows = query_len * in.group;
    for (std::int32_t row = lane * in.tile_rows; row < rows; row += 32 * in.tile_rows) {
      const std::int32_t last_row = min(row + in.tile_rows, rows) - 1;
      const std::int32_t end = seq_len - query_len + last_row / in.group + 1;
      const std::int32_t first = in.window > 0 ? max(0, seq_len - query_len + row / in.group + 1 - in.window) : 0;
      f(PagedPrefillTile{s * stride, first_token, query_len, seq_len, row, {0, 0}},
        min((end - first) / plan_bucket_keys, plan_buckets - 1));
    }
  }
}

/// One block. Counting sort by the number of visible keys, descending. The order of equal tiles may change from run to run: it
/// decides only which of them starts first.
template <int kThreads = plan_threads>
NVL_KERNEL void __launch_bounds__(kThreads) paged_prefill_plan_kernel(const __grid_constant__ PlanInput in) {
  wait_for_previous();
  let_next_start();
  __shared__ int next[plan_buckets];  // tiles of a bucket, then the place of its next one
  __shared__ int warp_totals[plan_threads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  next[thread] = 0;
  next[thread + plan_threads] = 0;
  __syncthreads();
  for_each_tile(in, [&](const PagedPrefillTile&, int bucket) { atomicAdd(&next[bucket], 1); });
  __syncthreads();

  // Thread t has buckets high and high - 1, the first thread the two highest; scan over the threads.
  const int high = plan_buckets - 1 - 2 * thread;
  const int count_high = next[high];
  const int count = count_high + next[high - 1];
  int before = count;  // inclusive so far
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, offset);
    if (lane >= offset) { before += other; }
  }
  if (lane == 31) { warp_totals[thread / 32] = before; }
  __syncthreads();
  for (int warp = 0; warp < thread / 32; ++warp) { before += warp_totals[warp]; }
  before -= count;
  next[high] = before;
  next[high - 1] = before + count_high;
  if (thread == plan_threads - 1) { in.plan->num_tiles = before + count; }
  __syncthreads();
  for_each_tile(in, [&](const PagedPrefillTile& tile, int bucket) { in.plan->tiles()[atomicAdd(&next[bucket], 1)] = tile; });
}

#endif

}  // namespace detail::prefill

#if defined(__CUDACC__)

/// Plans the calls of one step. Reads only the lengths, heads, head dim, window, min_query_len, block strides, workspace and
/// overlap_previous of `p`, and every launch_paged_prefill with equal values of these may use the result until the next plan in
/// the same workspace (`window` may differ: it only sets the order). Asynchronous on `stream`; safe inside graph capture.
/// \throws InvalidArgument as launch_paged_prefill does; CudaError if the launch is refused.
template <class T>
void launch_paged_prefill_plan(const PagedPrefillParams<T>& p, cudaStream_t stream) {
  detail::prefill::check(p);
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  const detail::prefill::PlanInput in{.plan = static_cast<PagedPrefillPlan*>(p.workspace),
                                      .seq_lens = p.seq_lens,
                                      .cu_query_lens = p.cu_query_lens,
                                      .block_stride = p.block_stride,
                                      .max_blocks_per_seq = p.max_blocks_per_seq,
                                      .num_seqs = p.num_seqs,
                                      .group = p.num_q_heads / p.layout.num_kv_heads,
                                      .tile_rows = paged_prefill_tile_rows<T>(p.layout.head_dim),
                                      .window = p.window,
                                      .min_query_len = p.min_query_len};
  const detail::LaunchConfig config{
      .block = dim3(detail::prefill::plan_threads), .stream = stream, .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_plan_kernel<>, in));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
