#pragma once
/// Descriptions of tensors for Hopper's bulk copy engine, made on the host. The driver's function is found at run time: nothing
/// is linked.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

/// A tensor of 16-bit elements that is read in boxes; a box is rows of 128 bytes or less, swizzled over 128 bytes. Extents count
/// elements, the first dimension first; so do strides, that of the first dimension is 1. Zeros are read outside of the tensor.
/// \throws CudaError if the driver refuses it
template <class T, int kRank>
CUtensorMap make_tensor_map(const T* data, const std::int64_t (&extents)[kRank], const std::int64_t (&strides)[kRank - 1],
                            const std::int32_t (&box)[kRank]) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    NVL_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  if (encode == nullptr) {
    raise(CudaError(static_cast<int>(cudaErrorNotSupported), "cuTensorMapEncodeTiled", "the driver does not have it"));
  }
  cuuint64_t sizes[kRank], stride_bytes[kRank - 1];
  cuuint32_t box_sizes[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(extents[i]);
    box_sizes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
    if (i + 1 < kRank) { stride_bytes[i] = static_cast<cuuint64_t>(strides[i]) * sizeof(T); }
  }
  CUtensorMap map{};
  const CUresult status =
      encode(&map, std::is_same_v<T, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kRank,
             const_cast<T*>(data), sizes, stride_bytes, box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) { raise(CudaError(static_cast<int>(status), "cuTensorMapEncodeTiled", "refused")); }
  return map;
}

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
