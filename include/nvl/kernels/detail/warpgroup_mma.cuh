#pragma once
/// The instructions of Hopper (sm_90a) that attention is built of: matrix products of a warpgroup, tensor copies of the bulk
/// copy engine, barriers in shared memory. PTX ISA 8.0, sections wgmma.mma_async, cp.async.bulk.tensor, mbarrier.
///
/// Tiles in shared memory are rows of 128 bytes (64 elements of 16 bits), swizzled: the 16-byte unit u of row r lies at unit
/// u ^ (r % 8). Wider tiles are several such column blocks one after the other. Tiles start at multiples of 1024 bytes.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/kernels/detail/shared_barrier.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::hopper {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using detail::publish_barriers;

__device__ __forceinline__ void init_barrier(std::uint64_t* barrier, int arrivals) {
  detail::init_barrier(shared_address(barrier), arrivals);
}
__device__ __forceinline__ void arrive(std::uint64_t* barrier) { detail::arrive(shared_address(barrier)); }
__device__ __forceinline__ void arrive_expecting(std::uint64_t* barrier, std::uint32_t bytes) {
  detail::arrive_expecting(shared_address(barrier), bytes);
}
__device__ __forceinline__ void wait_phase(std::uint64_t* barrier, std::uint32_t parity) {
  detail::wait_phase(shared_address(barrier), parity);
}

/// Orders this thread's writes to shared memory before what the copy engine and the matrix units read after a barrier.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Hardware barrier `id` (1 to 15) of `threads` threads: waits for them, or arrives without waiting.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

/// Copies the box of `map` at (column, row) to shared memory and reports its bytes to `barrier`.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, std::int32_t column, std::int32_t row,
                                         std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
               : "memory");
}
/// The same of a map of three dimensions.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, std::int32_t x, std::int32_t y, std::int32_t z,
                                         std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- Matrix products -----------------------------------------------------------------------------------------------------------

/// Descriptor of a swizzled tile. Row groups of 8 are 1024 bytes apart; `column_block_bytes` from one 64-element column block to
/// the next matters only where the columns are the N of a product.
__device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile, std::uint32_t column_block_bytes = 16) {
  constexpr std::uint64_t swizzle_128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t row_group = std::uint64_t{1024 / 16} << 32;
  return swizzle_128 | row_group | (std::uint64_t{column_block_bytes / 16} << 16) | ((shared_address(tile) & 0x3ffffu) >> 4);
}
/// The descriptor `bytes` further on.
__device__ __forceinline__ std::uint64_t advance(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + bytes / 16;
}

/// Before the first product that touches registers written since the last one.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until all but the latest `pending` groups are done.
template <int pending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Keeps the compiler from moving uses of accumulators across this point.
template <int kBlocks>
__device__ __forceinline__ void pin(float (&d)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) { asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory"); }
}

#define NVL_ACC_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define NVL_ACC_16(d, i) NVL_ACC_4(d, i), NVL_ACC_4(d, i + 1), NVL_ACC_4(d, i + 2), NVL_ACC_4(d, i + 3)
#define NVL_REGS_0_31                                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define NVL_REGS_32_63                                                                                                       \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define NVL_OUTPUTS NVL_ACC_16(d, 0), NVL_ACC_16(d, 4), NVL_ACC_16(d, 8), NVL_ACC_16(d, 12)
#define NVL_OUTPUTS_HALF NVL_ACC_16(d, 0), NVL_ACC_16(d, 4)

/// d (64 x 64 or 64 x 128, 64 rows a warpgroup) = a b^T + (accumulate ? d : 0) over 16 columns of tiles `a` and `b`, whose rows
/// are the M and the N of the product.
template <class T, int kBlocks>
__device__ __forceinline__ void multiply_tiles(float (&d)[kBlocks][4], std::uint64_t a, std::uint64_t b, int accumulate) {
  static_assert(kBlocks == 8 || kBlocks == 16);
  if constexpr (kBlocks == 16 && std::is_same_v<T, bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NVL_REGS_0_31 ", " NVL_REGS_32_63
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : NVL_OUTPUTS
        : "l"(a), "l"(b), "r"(accumulate));
  } else if constexpr (kBlocks == 16) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NVL_REGS_0_31 ", " NVL_REGS_32_63
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : NVL_OUTPUTS
        : "l"(a), "l"(b), "r"(accumulate));
  } else if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NVL_REGS_0_31 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : NVL_OUTPUTS_HALF
        : "l"(a), "l"(b), "r"(accumulate));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NVL_REGS_0_31 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : NVL_OUTPUTS_HALF
        : "l"(a), "l"(b), "r"(accumulate));
  }
}

/// d = a b + (accumulate ? d : 0): `a` 64 x 16 in registers (of a warp, as m16n8k16 has it), `b` 16 rows of a tile, whose columns
/// are the N.
template <class T, int kBlocks>
__device__ __forceinline__ void multiply_registers_tile(float (&d)[kBlocks][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                                        int accumulate) {
  static_assert(kBlocks == 8 || kBlocks == 16);
  if constexpr (kBlocks == 16 && std::is_same_v<T, bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NVL_REGS_0_31 ", " NVL_REGS_32_63
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
        : NVL_OUTPUTS
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  } else if constexpr (kBlocks == 16) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NVL_REGS_0_31 ", " NVL_REGS_32_63
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
        : NVL_OUTPUTS
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  } else if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NVL_REGS_0_31 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
        : NVL_OUTPUTS_HALF
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NVL_REGS_0_31 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
        : NVL_OUTPUTS_HALF
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
}

#undef NVL_OUTPUTS
#undef NVL_OUTPUTS_HALF
#undef NVL_ACC_4
#undef NVL_ACC_16
#undef NVL_REGS_0_31
#undef NVL_REGS_32_63

#endif

}  // namespace kernels::detail::hopper
}  // namespace nvl::inline NVL_ABI
