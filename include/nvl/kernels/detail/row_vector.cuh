#pragma once
/// 16 bytes of a row in registers: the unit in which the memory-bound kernels read and write.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/kernels/detail/vec.cuh>

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

#if defined(__CUDACC__)

/// What a load or store tells the caches. The loads never stay in L1: no row is read twice by one multiprocessor.
enum class CacheUse {
  again,  // the next kernel wants these bytes: they stay in L2 like any other
  once,   // more bytes than L2 holds pass by before anybody wants them: evicted first
};

/// 16-byte aligned `p`. Volatile, so that it stays behind wait_for_previous(); order among ordinary accesses is left open.
template <CacheUse kUse>
__device__ __forceinline__ uint4 load_16_bytes(const void* p) {
  uint4 v;
  if constexpr (kUse == CacheUse::again) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  } else {
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  }
  return v;
}

template <CacheUse kUse>
__device__ __forceinline__ void store_16_bytes(void* p, const uint4& v) {
  if constexpr (kUse == CacheUse::again) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  } else {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  }
}

/// Both halves of a register as floats; the inverse of pack2<T>.
template <class T>
__device__ __forceinline__ float2 unpack2(std::uint32_t bits);
template <>
__device__ __forceinline__ float2 unpack2<bf16>(std::uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack2<fp16>(std::uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

/// `vec_elements<T>` neighbouring elements of a row, as stored.
template <class T>
struct RowVector {
  static constexpr int size = vec_elements<T>;

  uint4 bits{0, 0, 0, 0};

  template <CacheUse kUse = CacheUse::again>
  __device__ __forceinline__ static RowVector load(const T* p) {
    return {load_16_bytes<kUse>(p)};
  }
  /// For weights, which all blocks read: stays in L1, and may be moved in front of wait_for_previous().
  __device__ __forceinline__ static RowVector load_weight(const T* p) { return {*reinterpret_cast<const uint4*>(p)}; }
  template <CacheUse kUse = CacheUse::again>
  __device__ __forceinline__ void store(T* p) const {
    store_16_bytes<kUse>(p, bits);
  }

  __device__ __forceinline__ void unpack(float (&values)[size]) const {
    const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        values[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = unpack2<T>(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
  /// Rounds each value to T.
  __device__ __forceinline__ static RowVector pack(const float (&values)[size]) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(values[i]);
      } else {
        words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
      }
    }
    return {{words[0], words[1], words[2], words[3]}};
  }
};

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
