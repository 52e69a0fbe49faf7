#pragma once
/// How kernels are launched, and how one kernel of a stream overlaps the end of the kernel before it.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <cstddef>
#include <string>
#include <utility>

#include <cuda_runtime.h>

/// Throws CudaError if `call`, a CUDA runtime call, fails. Clears the error unless it is one that stays.
#define NVL_CUDA_CHECK(call) ::nvl::kernels::detail::check_cuda((call), #call)

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]] { return; }
  static_cast<void>(cudaGetLastError());
  raise(CudaError(static_cast<int>(status), call, cudaGetErrorString(status)));
}

struct LaunchConfig {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  std::size_t shared_bytes = 0;  // dynamic; more than 48 KiB is asked for here
  cudaStream_t stream = nullptr;
  unsigned cluster_size = 1;      // blocks along x; above 1 needs sm_90
  bool overlap_previous = false;  // programmatic dependent launch: the kernel calls wait_for_previous() before it reads or
                                  // writes anything that an earlier kernel of the stream touches
};

/// Launches `kernel` with `args`. Asynchronous; allocates nothing; safe while the stream is captured.
template <class... Params, class... Args>
[[nodiscard]] cudaError_t launch(const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(config.shared_bytes));
    if (status != cudaSuccess) { return status; }
  }
  cudaLaunchAttribute attributes[2];
  unsigned num_attributes = 0;
  if (config.overlap_previous) {
    attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster_size > 1) {
    attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[num_attributes].val.clusterDim.x = config.cluster_size;
    attributes[num_attributes].val.clusterDim.y = 1;
    attributes[num_attributes++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t c{};
  c.gridDim = config.grid;
  c.blockDim = config.block;
  c.dynamicSmemBytes = config.shared_bytes;
  c.stream = config.stream;
  c.attrs = attributes;
  c.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&c, kernel, std::forward<Args>(args)...);
}

#if defined(__CUDACC__)

/// Blocks until every earlier kernel of the stream has finished and its writes are visible. A kernel launched with
/// `overlap_previous` calls it in every thread block, even one that has nothing to do; what does not depend on earlier kernels
/// (weights, indices) may be fetched before. Free in a kernel that was launched without.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream begin to launch once every block has called this or ended. Does not make writes visible:
/// the next kernel's wait_for_previous does.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Both, for a small kernel of `num_rows` rows. With few rows the next kernel starts first: it is a matrix product, say, that
/// fetches its weights meanwhile. With many its waiting blocks would be in the way of this kernel's predecessor (add + RMSNorm
/// of 256 x 1024 in a chain: 2.5 us with the next in front, 1.3 behind).
__device__ __forceinline__ void wait_for_previous_and_let_next_start(int num_rows) {
  constexpr int few = 16;
  if (num_rows <= few) {
    if (threadIdx.x == 0) { let_next_start(); }  // one thread speaks for its block
    wait_for_previous();
  } else {
    wait_for_previous();
    let_next_start();
  }
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
