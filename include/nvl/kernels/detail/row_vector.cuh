#pragma once
/// 16 bytes of a row in registers: the unit in which the memory-bound kernels read and write.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_tuning.hpp>
#include <nvl/kernels/detail/vec.cuh>

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

/// What a store tells the caches.
enum class CacheUse {
  again,  // the next kernel wants these bytes: they stay in L2 like any other
  once,   // more bytes than L2 keeps pass by before anybody wants them: evicted first
};

/// Calls f.operator()<CacheUse>() for a call that writes `output_bytes`.
template <class F>
void dispatch_cache_use(std::int64_t output_bytes, const RowTuning& tuning, F&& f) {
  if (output_bytes <= tuning.max_cached_output) {
    f.template operator()<CacheUse::again>();
  } else {
    f.template operator()<CacheUse::once>();
  }
}

/// The numbers for the current device.
inline RowTuning row_tuning() {
  int device = 0, major = 0, minor = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return row_tuning(major * 10 + minor);
}

#if defined(__CUDACC__)

/// 16-byte aligned `p`. Not kept in L1: no row is read twice by one multiprocessor. Volatile, so that it stays behind
/// wait_for_previous(); order among ordinary accesses is left open.
__device__ __forceinline__ uint4 load_16_bytes(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
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

  __device__ __forceinline__ static RowVector load(const T* p) { return {load_16_bytes(p)}; }
  /// For weights, which all blocks read: stays in L1, and may be moved in front of wait_for_previous().
  __device__ __forceinline__ static RowVector load_weight(const T* p) { return {*reinterpret_cast<const uint4*>(p)}; }
  template <CacheUse kUse = CacheUse::again>
  __device__ __forceinline__ void store(T* p) const {
    store_16_bytes<kUse>(p, bits);
  }

  /// Keeps the 16 bytes and forgets what was unpacked from them: unpacking again is cheaper than the registers.
  __device__ __forceinline__ void keep_packed() { asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w)); }

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

/// Neighbouring floats, a multiple of four, in accesses of 16 bytes.
template <int kCount>
__device__ __forceinline__ void load_floats_16(float (&values)[kCount], const float* p) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    float four[4];
    RowVector<float>::load(p + i).unpack(four);
#pragma unroll
    for (int j = 0; j < 4; ++j) { values[i + j] = four[j]; }
  }
}
template <CacheUse kUse = CacheUse::again, int kCount>
__device__ __forceinline__ void store_floats(float* p, const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float four[4] = {values[i], values[i + 1], values[i + 2], values[i + 3]};
    RowVector<float>::pack(four).template store<kUse>(p + i);
  }
}

#endif

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
