#pragma once
/// The instructions that paged decode attention is built of, besides barriers in shared memory and the products of a warp:
/// asynchronous copies that arrive on barriers, and some of its own. All exist from sm_80 on.

#include <nvl/core/config.hpp>
#include <nvl/kernels/detail/shared_barrier.cuh>
#include <nvl/kernels/detail/warp_mma.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::paged_decode {

#if defined(__CUDACC__)

// --- Barriers ------------------------------------------------------------------------------------------------------------------

/// One arrival, as soon as all copies that this thread has started are done. Says nothing of other writes of the thread.
__device__ __forceinline__ void arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
/// __syncthreads() of the first `threads` threads of the block.
template <int threads>
__device__ __forceinline__ void sync_first() {
  asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
}

// --- Copies --------------------------------------------------------------------------------------------------------------------

/// An L2 policy for data that is read once: it goes before anything else does.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Copies 16 bytes past L1.
__device__ __forceinline__ void copy16(std::uint32_t to, const void* from, std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy) : "memory");
}
/// Writes zeros, and does not read, if `valid` is false.
__device__ __forceinline__ void copy16_or_zero(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// --- Matrices ------------------------------------------------------------------------------------------------------------------

/// Transposes a matrix that is spread over the warp like one of load_matrices.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// Adds 1 and returns what was there. What the thread block wrote before, up to a barrier, is visible to whoever sees the sum.
__device__ __forceinline__ unsigned count_arrival(unsigned* counter) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

/// 2^x, 0 for -infinity.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

}  // namespace kernels::detail::paged_decode
}  // namespace nvl::inline NVL_ABI
