#pragma once
/// Copies of whole blocks of the KV cache, over all layers: inside one cache (copy-on-write), in the order of the list, so that
/// a later copy may read what an earlier one wrote; and between the cache and a pool in pinned host memory (swap).

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <algorithm>
#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// Run-time values, passed by value to the kernel.
template <class T>
struct BlockCopyParams {
  T* kv = nullptr;  // [num_layers] x layout, device
  KvLayout layout;
  int num_layers = 0;
  const BlockCopy* copies = nullptr;  // [num_copies], device
  int num_copies = 0;                 // 0 is legal: nothing is launched
};

/// Blocks between the cache and a pool in host memory. No block is written twice, or written and read: the order does not
/// matter.
template <class T>
struct BlockSwapParams {
  T* kv = nullptr;    // [num_layers] x layout, device
  T* host = nullptr;  // [host blocks][num_layers] x block (KvLayout::whole_block_offset), pinned
  KvLayout layout;
  int num_layers = 0;
  const BlockTransfer* transfers = nullptr;  // [num_transfers], device or pinned host memory
  int num_transfers = 0;                     // 0 is legal: nothing is launched
  bool to_host = false;                      // else from the host
};

#if defined(__CUDACC__)

namespace detail {
inline constexpr int block_copy_threads = 256;
inline constexpr int block_copy_batch = 4;  // copies whose loads are in flight together

/// True if copy j reads what an earlier one of the batch writes.
__device__ __forceinline__ bool reads_earlier_copy(const BlockCopy (&batch)[block_copy_batch], int size) {
  bool found = false;
#pragma unroll
  for (int j = 1; j < block_copy_batch; ++j) {
#pragma unroll
    for (int i = 0; i < j; ++i) { found = found || (j < size && batch[j].from == batch[i].to); }
  }
  return found;
}
}  // namespace detail

/// A thread owns one 16-byte place of a block in one layer and takes it through all copies, one after the other. Nobody else
/// touches that place of any block, so the order of the list holds without a barrier. Grid: x over the places of a block, y
/// over layers.
template <class T>
NVL_KERNEL void __launch_bounds__(detail::block_copy_threads) block_copy_kernel(const __grid_constant__ BlockCopyParams<T> p) {
  using Vector = detail::RowVector<T>;
  constexpr int batch_size = detail::block_copy_batch;
  const std::int64_t place = (static_cast<std::int64_t>(blockIdx.x) * detail::block_copy_threads + threadIdx.x) * Vector::size;
  detail::wait_for_previous();
  detail::let_next_start();
  const std::int64_t block_elements = p.layout.block_elements();
  if (place >= block_elements) { return; }
  T* const base = p.kv + blockIdx.y * p.layout.layer_elements() + place;
  const auto at = [&](BlockId block) { return base + std::int64_t{index_of(block)} * block_elements; };

  for (int first = 0; first < p.num_copies; first += batch_size) {
    const int size = min(batch_size, p.num_copies - first);
    BlockCopy batch[batch_size];
#pragma unroll
    for (int j = 0; j < batch_size; ++j) {
      if (j < size) { batch[j] = p.copies[first + j]; }
    }
    if (detail::reads_earlier_copy(batch, size)) {
      for (int j = 0; j < size; ++j) { Vector::load(at(p.copies[first + j].from)).store(at(p.copies[first + j].to)); }
      continue;
    }
    Vector values[batch_size];
#pragma unroll
    for (int j = 0; j < batch_size; ++j) {
      if (j < size) { values[j] = Vector::load(at(batch[j].from)); }
    }
#pragma unroll
    for (int j = 0; j < batch_size; ++j) {
      if (j < size) { values[j].store(at(batch[j].to)); }
    }
  }
}

namespace detail {

/// One block of one layer, by a block of threads.
template <class T>
__device__ __forceinline__ void move_block(T* to, const T* from, std::int64_t block_elements) {
  using Vector = RowVector<T>;
  constexpr int stride = block_copy_threads * Vector::size;
  constexpr int in_flight = 4;
  for (std::int64_t i = threadIdx.x * Vector::size; i < block_elements; i += in_flight * stride) {
    Vector values[in_flight];
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      if (i + j * stride < block_elements) { values[j] = Vector::load(from + i + j * stride); }
    }
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      if (i + j * stride < block_elements) { values[j].store(to + i + j * stride); }
    }
  }
}

}  // namespace detail

/// Grid: x over (transfer, layer); each block of threads moves one block of one layer at a time.
template <class T>
NVL_KERNEL void __launch_bounds__(detail::block_copy_threads) block_swap_kernel(const __grid_constant__ BlockSwapParams<T> p) {
  detail::wait_for_previous();
  detail::let_next_start();
  const std::int64_t num_moves = static_cast<std::int64_t>(p.num_transfers) * p.num_layers;
  const std::int64_t block_elements = p.layout.block_elements();
  for (std::int64_t move = blockIdx.x; move < num_moves; move += gridDim.x) {
    const BlockTransfer transfer = p.transfers[move / p.num_layers];
    const auto layer = static_cast<std::int32_t>(move % p.num_layers);
    T* const device = p.kv + layer * p.layout.layer_elements() + std::int64_t{index_of(transfer.device)} * block_elements;
    T* const host = p.host + p.layout.whole_block_offset(index_of(transfer.host), layer, p.num_layers);
    detail::move_block(p.to_host ? host : device, p.to_host ? device : host, block_elements);
  }
}

namespace detail {

template <class T>
void expect_copyable_blocks(const KvLayout& layout, int num_layers, int num_copies) {
  NVL_EXPECTS(layout.block_elements() > 0 && layout.block_elements() % vec_elements<T> == 0, "elements of a KV block",
              layout.block_elements(), "a positive multiple of 16 bytes");
  NVL_EXPECTS(num_layers > 0 && num_layers <= 65535, "block_copy num_layers", num_layers, "1 to 65535");
  NVL_EXPECTS(num_copies >= 0, "block_copy num_copies", num_copies, "not negative");
}

}  // namespace detail

/// Copies blocks inside one cache, each copy seeing the ones before it. Asynchronous on `stream`; allocates nothing; safe
/// inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_block_copy(const BlockCopyParams<T>& p, cudaStream_t stream, bool overlap_previous = true) {
  detail::expect_copyable_blocks<T>(p.layout, p.num_layers, p.num_copies);
  if (p.num_copies == 0) { return; }
  const std::int64_t vectors = p.layout.block_elements() / detail::vec_elements<T>;
  const detail::LaunchConfig config{
      .grid = dim3(static_cast<unsigned>((vectors + detail::block_copy_threads - 1) / detail::block_copy_threads),
                   static_cast<unsigned>(p.num_layers)),
      .block = dim3(detail::block_copy_threads),
      .stream = stream,
      .overlap_previous = overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, block_copy_kernel<T>, p));
}

/// Moves blocks between the cache and host memory in one call; pinned memory (cudaHostAlloc) is read and written in place. Runs
/// on few multiprocessors, as the host link is the limit. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph
/// capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_block_swap(const BlockSwapParams<T>& p, cudaStream_t stream, bool overlap_previous = true) {
  detail::expect_copyable_blocks<T>(p.layout, p.num_layers, p.num_transfers);
  if (p.num_transfers == 0) { return; }
  constexpr std::int64_t max_blocks = 32;
  const std::int64_t num_moves = static_cast<std::int64_t>(p.num_transfers) * p.num_layers;
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(num_moves, max_blocks))),
                                    .block = dim3(detail::block_copy_threads),
                                    .stream = stream,
                                    .overlap_previous = overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, block_swap_kernel<T>, p));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
