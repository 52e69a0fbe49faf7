#pragma once
/// Stored elements to the element type of the ops: out[i] = T(source[i]), from plain types and from the block-quantised types of
/// GGUF. Oracle: dequantize_row (core/dequantize.hpp), which also says what the blocks hold.
///
/// Used while weights are uploaded, at the speed of the bus: a thread computes one element, whose block its neighbours read too.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/vec.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

template <class T>
struct ConvertParams {
  T* out = nullptr;                   // [count], device
  const std::byte* source = nullptr;  // device, aligned to 4 bytes; whole blocks, `count` elements
  DType type = DType::float32;        // of the source: any but the integer types
  std::int64_t count = 0;             // [elements] 0 is legal: nothing is launched
};

#if defined(__CUDACC__)

namespace detail {

/// The bytes of one block. Blocks have even addresses; nothing more is known of their alignment.
class StoredBlock {
 public:
  __device__ explicit StoredBlock(const std::byte* bytes) : bytes_(reinterpret_cast<const std::uint8_t*>(bytes)) {}
  __device__ int byte(int at) const { return bytes_[at]; }
  __device__ int signed_byte(int at) const { return static_cast<std::int8_t>(bytes_[at]); }
  __device__ int nibble(int at, bool high) const { return high ? bytes_[at] >> 4 : bytes_[at] & 15; }
  __device__ int bit(int at, int i) const { return bytes_[at + i / 8] >> (i % 8) & 1; }
  __device__ float half(int at) const { return to_float(*reinterpret_cast<const fp16*>(bytes_ + at)); }

  /// The 6-bit scale and minimum of sub-block `j` of Q4_K and Q5_K, whose 12 bytes begin at 4.
  __device__ float k_scale(int j) const {
    return static_cast<float>(j < 4 ? byte(4 + j) & 63 : (byte(8 + j) & 15) | byte(j) >> 6 << 4);
  }
  __device__ float k_min(int j) const {
    return static_cast<float>(j < 4 ? byte(8 + j) & 63 : byte(8 + j) >> 4 | byte(4 + j) >> 6 << 4);
  }

 private:
  const std::uint8_t* bytes_;
};

/// Element `i` of a block.
template <DType kType>
__device__ __forceinline__ float stored_value(const StoredBlock& b, int i) {
  if constexpr (kType == DType::q4_0) {
    return static_cast<float>(b.nibble(2 + i % 16, i >= 16) - 8) * b.half(0);
  } else if constexpr (kType == DType::q4_1) {
    return static_cast<float>(b.nibble(4 + i % 16, i >= 16)) * b.half(0) + b.half(2);
  } else if constexpr (kType == DType::q5_0) {
    return static_cast<float>((b.nibble(6 + i % 16, i >= 16) | b.bit(2, i) << 4) - 16) * b.half(0);
  } else if constexpr (kType == DType::q5_1) {
    return static_cast<float>(b.nibble(8 + i % 16, i >= 16) | b.bit(4, i) << 4) * b.half(0) + b.half(2);
  } else if constexpr (kType == DType::q8_0) {
    return static_cast<float>(b.signed_byte(2 + i)) * b.half(0);
  } else if constexpr (kType == DType::q4_k) {
    const int sub = i / 32;
    const int q = b.nibble(16 + i / 64 * 32 + i % 32, sub % 2 != 0);
    return b.half(0) * b.k_scale(sub) * static_cast<float>(q) - b.half(2) * b.k_min(sub);
  } else if constexpr (kType == DType::q5_k) {
    const int sub = i / 32;
    const int q = b.nibble(48 + i / 64 * 32 + i % 32, sub % 2 != 0) | (b.byte(16 + i % 32) >> sub & 1) << 4;
    return b.half(0) * b.k_scale(sub) * static_cast<float>(q) - b.half(2) * b.k_min(sub);
  } else {
    static_assert(kType == DType::q6_k);
    const int half = i / 128, quarter = i / 32 % 4, l = i % 32;
    const int low = b.nibble(half * 64 + quarter % 2 * 32 + l, quarter >= 2);
    const int q = low | (b.byte(128 + half * 32 + l) >> (2 * quarter) & 3) << 4;
    const int scale = b.signed_byte(192 + half * 8 + quarter * 2 + l / 16);
    return b.half(208) * static_cast<float>(scale) * static_cast<float>(q - 32);
  }
}

inline constexpr int convert_threads = 256;

// Constants, as device code may not call info().
template <DType kType>
inline constexpr int stored_block_elements = static_cast<int>(info(kType).block_elements);
template <DType kType>
inline constexpr int stored_block_bytes = static_cast<int>(info(kType).block_bytes);

}  // namespace detail

template <DType kType, class T>
NVL_KERNEL void __launch_bounds__(detail::convert_threads) convert_kernel(const __grid_constant__ ConvertParams<T> p) {
  constexpr int block_elements = detail::stored_block_elements<kType>;
  detail::wait_for_previous();
  const std::int64_t step = std::int64_t{gridDim.x} * detail::convert_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * detail::convert_threads + threadIdx.x; i < p.count; i += step) {
    float value;
    if constexpr (kType == DType::float32) {
      value = reinterpret_cast<const float*>(p.source)[i];
    } else if constexpr (kType == DType::float16) {
      value = detail::to_float(reinterpret_cast<const fp16*>(p.source)[i]);
    } else if constexpr (kType == DType::bfloat16) {
      value = detail::to_float(reinterpret_cast<const bf16*>(p.source)[i]);
    } else {
      const detail::StoredBlock block(p.source + i / block_elements * detail::stored_block_bytes<kType>);
      value = detail::stored_value<kType>(block, static_cast<int>(i % block_elements));
    }
    p.out[i] = detail::from_float<T>(value);
  }
}

/// Converts. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument for an integer type, a count that is not whole blocks or an unaligned source; CudaError if the launch
///         is refused
template <class T>
void launch_convert(const ConvertParams<T>& p, cudaStream_t stream, bool overlap_previous = true) {
  const DTypeInfo& type = info(p.type);
  NVL_EXPECTS(p.count >= 0 && p.count % type.block_elements == 0, "convert count", p.count,
              "a multiple of " + std::to_string(type.block_elements));
  const std::uintptr_t misaligned = reinterpret_cast<std::uintptr_t>(p.source) % 4;
  NVL_EXPECTS(p.count == 0 || misaligned == 0, "convert source modulo 4", misaligned, "0");
  const auto run = [&](void (*kernel)(const ConvertParams<T>)) {
    constexpr std::int64_t max_blocks = 4096;
    if (p.count == 0) { return; }
    const std::int64_t blocks = std::min(max_blocks, (p.count + detail::convert_threads - 1) / detail::convert_threads);
    const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(blocks)),
                                      .block = dim3(detail::convert_threads),
                                      .stream = stream,
                                      .overlap_previous = overlap_previous};
    NVL_CUDA_CHECK(detail::launch(config, kernel, p));
  };
  switch (p.type) {
    case DType::float32: return run(convert_kernel<DType::float32, T>);
    case DType::float16: return run(convert_kernel<DType::float16, T>);
    case DType::bfloat16: return run(convert_kernel<DType::bfloat16, T>);
    case DType::q4_0: return run(convert_kernel<DType::q4_0, T>);
    case DType::q4_1: return run(convert_kernel<DType::q4_1, T>);
    case DType::q5_0: return run(convert_kernel<DType::q5_0, T>);
    case DType::q5_1: return run(convert_kernel<DType::q5_1, T>);
    case DType::q8_0: return run(convert_kernel<DType::q8_0, T>);
    case DType::q4_k: return run(convert_kernel<DType::q4_k, T>);
    case DType::q5_k: return run(convert_kernel<DType::q5_k, T>);
    case DType::q6_k: return run(convert_kernel<DType::q6_k, T>);
    case DType::int8:
    case DType::int32:
    case DType::int64: break;
  }
  raise(InvalidArgument("convert type", std::string(type.name), "a floating-point or block-quantised type"));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
