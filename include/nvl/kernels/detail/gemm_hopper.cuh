#pragma once
/// The instructions of sm_90 that the wide kernel of linear layers is built of: barriers on which copies complete, copies of
/// boxes of a matrix by the copy engine (TMA), matrix products of four warps (wgmma), and memory of the other blocks of a
/// cluster. Formats are those of the PTX ISA, chapters "mbarrier", "cp.async.bulk.tensor", "wgmma" and "barrier.cluster".

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/gemm_instructions.cuh>
#include <nvl/kernels/detail/gemm_launch.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/shared_barrier.cuh>
#include <nvl/kernels/detail/tensor_map.cuh>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::gemm {

/// Elements of K in a box: 128 bytes, the width that the copy engine swizzles and the matrix unit expects.
inline constexpr int box_k = 64;

/// How the copy engine sees `data`, a row-major matrix of 16-bit elements: boxes of `box_rows` x 64 elements, 16-byte pieces
/// permuted within each 8 rows x 128 bytes (128-byte swizzle), zeros outside of the matrix. Host only; touches no memory.
/// \throws InvalidArgument if `data` is not aligned to 16 bytes; CudaError if the driver refuses the rest
template <class T>
CUtensorMap make_box_map(const T* data, int rows, int row_elements, int box_rows) {
  static_assert(sizeof(T) == 2);
  NVL_EXPECTS(is_aligned16(data), "linear operand", reinterpret_cast<std::uintptr_t>(data), "aligned to 16 bytes");
  return make_tensor_map<T, 2>(data, {row_elements, rows}, {row_elements}, {box_k, box_rows});
}

#if defined(__CUDACC__)

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Starts the copy of the box whose first element is (row, k) to shared memory; completes on `barrier`.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, int k, int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(k), "r"(row)
      : "memory");
}
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, int k, int row, std::uint32_t barrier,
                                         std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], "
      "%5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(k), "r"(row), "l"(policy)
      : "memory");
}

/// All threads of all blocks of the cluster; what they wrote before is visible to each other after.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Reads shared memory of block `rank` of the cluster, at the place that is `address` in this block.
__device__ __forceinline__ float4 load_cluster16(std::uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{\n\t.reg .u32 there;\n\t"
      "mapa.shared::cluster.u32 there, %4, %5;\n\t"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n\t}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

/// Describes a tile in shared memory to wgmma: rows of 128 bytes, swizzled by 128 bytes, 8 rows every 1024 bytes.
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 |
         std::uint64_t{1} << 62;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Keeps the compiler from moving uses of `d` across wgmma's waits.
template <int size>
__device__ __forceinline__ void pin_registers(float (&d)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) { asm volatile("" : "+f"(d[i])::"memory"); }
}

/// d += a b^T by four warps: a is 64 x 16, b is columns x 16, both described by tile_descriptor. Thread t holds of d rows
/// 16 (t / 32) + t % 32 / 4 (+ 8 in d[4 j + 2], d[4 j + 3]), columns 8 j + t % 4 * 2 and the next.
template <class T, int columns>
__device__ __forceinline__ void wgmma_64x16(float (&d)[columns / 2], std::uint64_t a, std::uint64_t b) = delete;

#define NVL_WGMMA_16(type)                                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                                      \
               " {"                                                                                             \
               "%0, %1, %2, %3, %4, %5, %6, %7}, "                                                              \
               "%8, %9, 1, 1, 1, 0, 0;"                                                                         \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]) \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 16>(float (&d)[8], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_16("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 16>(float (&d)[8], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_16("f16");
}

#undef NVL_WGMMA_16

#define NVL_WGMMA_32(type)                                                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                                   \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "                                     \
               "%16, %17, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                    \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 32>(float (&d)[16], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_32("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 32>(float (&d)[16], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_32("f16");
}

#undef NVL_WGMMA_32

#define NVL_WGMMA_64(type)                                                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                   \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                           \
               "%32, %33, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
                 "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                   \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 64>(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_64("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 64>(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_64("f16");
}

#undef NVL_WGMMA_64

#define NVL_WGMMA_80(type)                                                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32." type "." type                                                   \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
               "%32, %33, %34, %35, %36, %37, %38, %39}, "                                                                   \
               "%40, %41, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
                 "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
                 "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])                   \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 80>(float (&d)[40], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_80("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 80>(float (&d)[40], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_80("f16");
}

#undef NVL_WGMMA_80

#define NVL_WGMMA_96(type)                                                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type                                                   \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "                           \
               "%48, %49, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
                 "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
                 "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
                 "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])                   \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 96>(float (&d)[48], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_96("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 96>(float (&d)[48], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_96("f16");
}

#undef NVL_WGMMA_96

#define NVL_WGMMA_112(type)                                                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n112k16.f32." type "." type                                                  \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
               "%48, %49, %50, %51, %52, %53, %54, %55}, "                                                                   \
               "%56, %57, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
                 "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
                 "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
                 "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),     \
                 "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])                   \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 112>(float (&d)[56], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_112("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 112>(float (&d)[56], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_112("f16");
}

#undef NVL_WGMMA_112

#define NVL_WGMMA_128(type)                                                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                  \
               " {"                                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                           \
               "%64, %65, 1, 1, 1, 0, 0;"                                                                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
                 "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
                 "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
                 "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
                 "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),     \
                 "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),     \
                 "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                   \
               : "l"(a), "l"(b))

template <>
__device__ __forceinline__ void wgmma_64x16<bf16, 128>(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_128("bf16");
}

template <>
__device__ __forceinline__ void wgmma_64x16<fp16, 128>(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  NVL_WGMMA_128("f16");
}

#undef NVL_WGMMA_128

#endif

}  // namespace kernels::detail::gemm
}  // namespace nvl::inline NVL_ABI
