#pragma once
/// Sums and maxima over the threads of a warp and of a block. The order is fixed, so results do not change from run to run.

#include <nvl/core/config.hpp>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

#if defined(__CUDACC__)

/// Over `width` neighbouring lanes (a power of two); every lane gets the result.
template <int width = 32>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2) { x += __shfl_xor_sync(0xffffffffu, x, offset); }
  return x;
}

template <int width = 32>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2) { x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset)); }
  return x;
}

/// Over all threads of the block (whole warps); every thread gets the result. `scratch` holds a float a warp and is free to use
/// again after the next __syncthreads().
template <int threads>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  static_assert(threads % 32 == 0 && threads <= 1024);
  x = warp_sum(x);
  if constexpr (threads > 32) {
    if (threadIdx.x % 32 == 0) { scratch[threadIdx.x / 32] = x; }
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < threads / 32; ++warp) { x += scratch[warp]; }
  }
  return x;
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
