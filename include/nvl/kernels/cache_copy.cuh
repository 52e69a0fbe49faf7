#pragma once
/// Copies of whole blocks from one KV cache to another, over all layers. The caches may belong to two devices, if the one whose
/// kernel it is can read the other's memory (NVLink, or PCIe with peer access).

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/block_copy.cuh>
#include <nvl/kernels/detail/launch.cuh>

#include <algorithm>
#include <cstdint>
#include <string>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// Blocks copies[i].from of `from` to blocks copies[i].to of `to`. The caches do not overlap and no block of `to` is named twice,
/// so the order of the copies does not matter.
template <class T>
struct CacheCopyParams {
  T* to = nullptr;          // [num_layers] x to_layout, device
  const T* from = nullptr;  // [num_layers] x from_layout, device, or a peer's memory
  KvLayout to_layout;
  KvLayout from_layout;  // of blocks of the same size
  int num_layers = 0;
  const BlockCopy* copies = nullptr;  // [num_copies], device or pinned host memory
  int num_copies = 0;                 // 0 is legal: nothing is launched
};

#if defined(__CUDACC__)

/// Grid: x over (copy, layer); each block of threads moves one block of one layer at a time.
template <class T>
NVL_KERNEL void __launch_bounds__(detail::block_copy_threads) cache_copy_kernel(const __grid_constant__ CacheCopyParams<T> p) {
  const std::int64_t num_moves = static_cast<std::int64_t>(p.num_copies) * p.num_layers;
  const std::int64_t block_elements = p.from_layout.block_elements();
  for (std::int64_t move = blockIdx.x; move < num_moves; move += gridDim.x) {
    const BlockCopy copy = p.copies[move / p.num_layers];
    const std::int64_t layer = move % p.num_layers;
    const T* const from = p.from + layer * p.from_layout.layer_elements() + std::int64_t{index_of(copy.from)} * block_elements;
    T* const to = p.to + layer * p.to_layout.layer_elements() + std::int64_t{index_of(copy.to)} * block_elements;
    detail::move_block(to, from, block_elements);
  }
}

/// Runs on few multiprocessors, so that a step beside it keeps the others. Asynchronous on `stream`; allocates nothing.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_cache_copy(const CacheCopyParams<T>& p, cudaStream_t stream) {
  detail::expect_copyable_blocks<T>(p.from_layout, p.num_layers, p.num_copies);
  NVL_EXPECTS(p.to_layout.block_elements() == p.from_layout.block_elements(), "elements of a block of to_layout",
              p.to_layout.block_elements(), "those of from_layout (" + std::to_string(p.from_layout.block_elements()) + ")");
  if (p.num_copies == 0) { return; }
  constexpr std::int64_t max_blocks = 32;
  const std::int64_t num_moves = static_cast<std::int64_t>(p.num_copies) * p.num_layers;
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(num_moves, max_blocks))),
                                    .block = dim3(detail::block_copy_threads),
                                    .stream = stream,
                                    .overlap_previous = false};
  NVL_CUDA_CHECK(detail::launch(config, cache_copy_kernel<T>, p));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
