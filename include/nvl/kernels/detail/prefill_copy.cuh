#pragma once
/// How the tensor-core prefill kernels read queries and write output: 16-byte accesses, by way of shared memory.

#include <nvl/core/config.hpp>
#include <nvl/kernels/detail/prefill_softmax.cuh>
#include <nvl/kernels/detail/shared_barrier.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::prefill {

#if defined(__CUDACC__)

/// Copies 16 bytes, or writes 16 zero bytes and reads nothing.
__device__ __forceinline__ void copy_16_async(std::uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

/// This thread's index, read anew: what is computed from it is not kept in registers from one use in a loop to the next.
__device__ __forceinline__ int thread_idx_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Normalises and stores 16 rows of output through shared memory of this warp's own, in 16-byte accesses. `staging(row, unit)`
/// is where 16-byte unit `unit` of row `row` of the 16 lies; `first_row` is the row of the tile that the first of them is.
template <class T, int kHeadDim, class Staging>
__device__ __forceinline__ void store_slab(const Staging& staging, const float (&out)[kHeadDim / 8][4], OnlineRows& state,
                                           const PagedPrefillParams<T>& p, const PagedPrefillTile& tile, const RowMap& rows,
                                           std::int32_t first_row, float scale_log2) {
  const int lane = thread_idx_anew() % 32;
  float normalise[2], lse[2];
  state.finish(scale_log2, normalise, lse);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      *reinterpret_cast<std::uint32_t*>(staging(lane / 4 + 8 * half, i) + lane % 4 * 2) =
          pack2<T>(out[i][2 * half] * normalise[half], out[i][2 * half + 1] * normalise[half]);
    }
    const std::int32_t row = first_row + lane / 4 + 8 * half;
    if (p.lse != nullptr && lane % 4 == 0 && row < rows.num_rows) {
      const std::int32_t query = rows.query(row);
      p.lse[std::int64_t{tile.first_token + query} * p.num_q_heads + rows.head(row, query)] = lse[half];
    }
  }
  __syncwarp();
  constexpr int units = kHeadDim / 8;
  constexpr int accesses = units / 2;  // a lane
  constexpr int batch = accesses % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int first = 0; first < accesses; first += batch) {
    Vec<T, 8> parts[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = (first + i) * 32 + lane;
      parts[i] = Vec<T, 8>::load(staging(at / units, at % units));
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = (first + i) * 32 + lane;
      const std::int32_t row = first_row + at / units;
      if (row < rows.num_rows) {
        const std::int32_t query = rows.query(row);
        const std::int32_t head = rows.head(row, query);
        parts[i].store(p.out + (std::int64_t{tile.first_token + query} * p.num_q_heads + head) * kHeadDim + at % units * 8);
      }
    }
  }
  __syncwarp();
}

#endif

}  // namespace kernels::detail::prefill
}  // namespace nvl::inline NVL_ABI
