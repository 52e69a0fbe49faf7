#pragma once
/// Elements in device code: conversion to and from float, and vectors that are loaded and stored in one access.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

/// The toolkit's type with the same bits, for its intrinsics.
template <class T>
struct NativeOf;
template <>
struct NativeOf<float> {
  using type = float;
};
template <>
struct NativeOf<bf16> {
  using type = __nv_bfloat16;
};
template <>
struct NativeOf<fp16> {
  using type = __half;
};
template <class T>
using Native = typename NativeOf<T>::type;

#if defined(__CUDACC__)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(std::uint32_t{x.bits} << 16); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(__ushort_as_half(x.bits)); }

/// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  bf16 r;
  r.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return r;
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
  fp16 r;
  r.bits = __half_as_ushort(__float2half_rn(x));
  return r;
}

/// `x` and `y` as two 16-bit elements of one register, `x` in the low half.
template <class T>
__device__ __forceinline__ std::uint32_t pack2(float x, float y);
template <>
__device__ __forceinline__ std::uint32_t pack2<bf16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ std::uint32_t pack2<fp16>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

#endif

/// N elements in one register group. Loads and stores of 16 bytes or less are one access if the address is aligned to them.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T values[N];

#if defined(__CUDACC__)
  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }

  __device__ __forceinline__ static Vec load(const T* p) { return *reinterpret_cast<const Vec*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Vec*>(p) = *this; }
#endif
};

/// [elements] of a 16-byte access.
template <class T>
inline constexpr int vec_elements = 16 / static_cast<int>(sizeof(T));

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
