#pragma once
/// K and V of new tokens to their slots of a paged cache: slot = block * block_size + offset.
/// Layout of the cache: core/kv_layout.hpp.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <algorithm>
#include <bit>
#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

namespace detail {

/// Splits slots into block and offset; by shifts where block_size is a power of two, as a 64-bit division takes longer than
/// all else that a thread does.
struct SlotSplit {
  std::int32_t block_size = 1;
  std::int32_t shift = 0;  // -1: not a power of two

  SlotSplit() = default;
  explicit constexpr SlotSplit(std::int32_t size) noexcept
      : block_size(size),
        shift(std::has_single_bit(unsigned(size)) ? std::countr_zero(unsigned(size)) : -1) {}

  /// [elements] from the start of the layer to the slot's K of head 0; `slot` is not no_slot
  NVL_HOST_DEVICE constexpr std::int64_t k_offset(SlotId slot, const KvLayout& layout) const noexcept {
    const std::int64_t block = shift >= 0 ? slot >> shift : slot / block_size;
    return layout.k_offset(block, 0, static_cast<std::int32_t>(slot - block * block_size));
  }
};

inline void expect_kv_layout(const KvLayout& layout) {
  NVL_EXPECTS(layout.block_size > 0, "KV block_size", layout.block_size, "positive");
  NVL_EXPECTS(layout.num_kv_heads > 0, "KV num_kv_heads", layout.num_kv_heads, "positive");
  NVL_EXPECTS(layout.head_dim > 0 && layout.head_dim % 8 == 0, "KV head_dim", layout.head_dim, "a positive multiple of 8");
}

}  // namespace detail

/// A thread moves one 16-byte vector of K and the same of V. Several tokens a thread are no faster (H200).
template <class T>
struct KvStoreTraits {
  using Element = T;
  static constexpr int vec = detail::vec_elements<T>;  // [elements per vector]
  static constexpr int max_threads = 512;              // [per block]
};

/// Run-time values, passed by value to the kernel. Strides count elements; 0: num_kv_heads * head_dim.
template <class T>
struct KvStoreParams {
  const T* k = nullptr;                  // [num_tokens, num_kv_heads, head_dim], device
  const T* v = nullptr;                  // likewise
  const SlotId* slot_mapping = nullptr;  // [num_tokens], device; no_slot: the token is not stored
  KvLayout layout;
  T* kv = nullptr;  // cache of one layer, device
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
  int num_tokens = 0;         // 0 is legal: nothing is launched
  detail::SlotSplit split{};  // set by launch_kv_store
};

#if defined(__CUDACC__)

/// Block: x over the vectors of a row (looping if there are more), y over tokens.
template <class Traits, detail::CacheUse kStore>
NVL_KERNEL void __launch_bounds__(Traits::max_threads)
    kv_store_kernel(const __grid_constant__ KvStoreParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Vector = detail::RowVector<T>;
  constexpr int vec = Traits::vec;
  const int row_elements = p.layout.num_kv_heads * p.layout.head_dim;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  detail::wait_for_previous();
  detail::let_next_start();
  if (token >= p.num_tokens) { return; }
  const SlotId slot = p.slot_mapping[token];
  for (int column = static_cast<int>(threadIdx.x) * vec; column < row_elements; column += static_cast<int>(blockDim.x) * vec) {
    const Vector k = Vector::load(p.k + token * p.k_stride + column);  // also of a token that is not stored: nothing waits
    const Vector v = Vector::load(p.v + token * p.v_stride + column);  // for the slot before it loads
    if (slot == no_slot) { continue; }
    const int head = column / p.layout.head_dim;
    T* const to = p.kv + p.split.k_offset(slot, p.layout) + p.layout.k_offset(0, head, 0) + (column - head * p.layout.head_dim);
    k.template store<kStore>(to);
    v.template store<kStore>(to + p.layout.v_offset(0, 0, 0));
  }
}

/// Stores `num_tokens` rows of K and V. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_kv_store(KvStoreParams<T> p, cudaStream_t stream, bool overlap_previous = true) {
  detail::expect_kv_layout(p.layout);
  NVL_EXPECTS(p.num_tokens >= 0, "kv_store num_tokens", p.num_tokens, "not negative");
  const int row_elements = p.layout.num_kv_heads * p.layout.head_dim;
  for (std::int64_t* const stride : {&p.k_stride, &p.v_stride}) {
    if (*stride == 0) { *stride = row_elements; }
    NVL_EXPECTS(*stride >= row_elements && *stride % 8 == 0, "kv_store row stride", *stride,
                "0, or a multiple of 8, at least num_kv_heads * head_dim");
  }
  if (p.num_tokens == 0) { return; }
  p.split = detail::SlotSplit(p.layout.block_size);
  constexpr int vec = detail::vec_elements<T>;
  const int threads_per_row = std::min((row_elements / vec + 31) / 32 * 32, KvStoreTraits<T>::max_threads);
  const int rows_per_block = std::max(1, 128 / threads_per_row);
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>((p.num_tokens + rows_per_block - 1) / rows_per_block)),
                                    .block = dim3(static_cast<unsigned>(threads_per_row), static_cast<unsigned>(rows_per_block)),
                                    .stream = stream,
                                    .overlap_previous = overlap_previous};
  const std::int64_t output_bytes = std::int64_t{p.num_tokens} * row_elements * 2 * static_cast<int>(sizeof(T));
  detail::dispatch_cache_use(output_bytes, detail::row_tuning(), [&]<detail::CacheUse kStore>() {
    NVL_CUDA_CHECK(detail::launch(config, kv_store_kernel<KvStoreTraits<T>, kStore>, p));
  });
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
