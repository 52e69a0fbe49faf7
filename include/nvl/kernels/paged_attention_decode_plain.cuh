#pragma once
/// Paged decode attention without tensor cores: float, and head dims that the split-KV kernel is not compiled for. A thread block
/// for each query and head; no plan, no workspace, and sums that depend on nothing but the query's own sequence.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/reduce.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/paged_attention_decode_copy.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::paged_decode {

inline constexpr int plain_warps = 4;
inline constexpr int plain_max_head_dim = 256;

#if defined(__CUDACC__)

/// Grid: sequences x heads x queries. Every warp takes 32 keys at a time, a lane each for the scores.
template <class T>
NVL_KERNEL void __launch_bounds__(plain_warps * 32)
    paged_decode_plain_kernel(const __grid_constant__ KernelArgs<T> args, int head_dim, float softcap) {
  constexpr int per_lane = plain_max_head_dim / 32;
  __shared__ float query[plain_max_head_dim];
  __shared__ float sums[plain_warps][plain_max_head_dim];
  __shared__ float maximum[plain_warps], totals[plain_warps];
  wait_for_previous();
  let_next_start();
  const SeqWork work = seq_work(args.batch, static_cast<std::int32_t>(blockIdx.x));
  const auto q_index = static_cast<std::int32_t>(blockIdx.z);
  if (work.num_tiles == 0 || q_index >= work.query_len) { return; }
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = work.query_row + q_index;
  for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += plain_warps * 32) {
    query[i] = to_float(args.q[row * args.q_row_stride + std::int64_t{head} * head_dim + i]) * args.scale_log2;
  }
  __syncthreads();

  const std::int32_t last = work.seq_len - work.query_len + q_index;
  const std::int32_t first = args.batch.window > 0 ? max(0, last - args.batch.window + 1) : 0;
  const BlockId* const table = args.batch.block_tables + std::int64_t{blockIdx.x} * *args.batch.block_stride;
  const std::int64_t head_at = (std::int64_t{head / args.batch.group_size} << args.batch.block_size_log2) * head_dim;
  const auto key_at = [&](std::int32_t token) {
    const std::int64_t block = index_of(table[token >> args.batch.block_size_log2]);
    const std::int32_t offset = token & ((1 << args.batch.block_size_log2) - 1);
    return args.kv + block * args.block_elements + head_at + std::int64_t{offset} * head_dim;
  };
  float sum[per_lane] = {};
  float total = 0.0f, highest = -1e30f;
  for (std::int32_t start = first + warp * 32; start <= last; start += plain_warps * 32) {
    float score = -INFINITY;
    if (start + lane <= last) {
      const T* const k = key_at(start + lane);
      score = 0.0f;
      for (int i = 0; i < head_dim; ++i) { score += query[i] * to_float(k[i]); }
      if (softcap > 0.0f) { score = softcap * tanhf(score / softcap); }
    }
    const float raised = fmaxf(highest, warp_max(score));
    const float factor = exp2f(highest - raised);
    const float weight = exp2f(score - raised);
    highest = raised;
    total = total * factor + warp_sum(weight);
#pragma unroll
    for (int i = 0; i < per_lane; ++i) { sum[i] *= factor; }
    const std::int32_t count = min(32, last + 1 - start);
    for (std::int32_t j = 0; j < count; ++j) {
      const T* const v = key_at(start + j) + args.k_to_v;
      const float w = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
      for (int i = 0; i < per_lane; ++i) {
        if (lane + i * 32 < head_dim) { sum[i] += w * to_float(v[lane + i * 32]); }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    if (lane + i * 32 < head_dim) { sums[warp][lane + i * 32] = sum[i]; }
  }
  if (lane == 0) {
    maximum[warp] = highest;
    totals[warp] = total;
  }
  __syncthreads();
  const std::int32_t q_heads = args.batch.num_kv_heads * args.batch.group_size;
  highest = maximum[0];
#pragma unroll
  for (int w = 1; w < plain_warps; ++w) { highest = fmaxf(highest, maximum[w]); }
  for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += plain_warps * 32) {
    float x = 0.0f, weight = 0.0f;
#pragma unroll
    for (int w = 0; w < plain_warps; ++w) {
      const float factor = exp2f(maximum[w] - highest);
      x += factor * sums[w][i];
      weight += factor * totals[w];
    }
    args.out[(row * q_heads + head) * head_dim + i] = from_float<T>(x / weight);
  }
}

#endif

}  // namespace kernels::detail::paged_decode
}  // namespace nvl::inline NVL_ABI
