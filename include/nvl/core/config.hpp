#pragma once
/// Compiler checks and the few macros that every header may use.

#include <nvl/version.hpp>

#if __cplusplus < 202002L
#error "nvl needs C++20: compile with -std=c++20 or later"
#endif

#if !defined(__GNUC__)
#error "nvl needs a compiler with GNU vector types: g++ 12 or later, clang++ 14 or later, or nvcc over one of them"
#endif

/// Everything in nvl lives in `namespace nvl::inline NVL_ABI`, so that two versions of nvl can be linked into one program.
#define NVL_ABI v0_1

/// Marks helpers that device code may call too.
#if defined(__CUDACC__)
#define NVL_HOST_DEVICE __host__ __device__
/// Device code that the host launches. Hidden: two shared objects may hold the same kernel for different architectures.
#define NVL_KERNEL __attribute__((visibility("hidden"))) __global__
#else
#define NVL_HOST_DEVICE
#endif

/// Hint for the few hot functions whose inlining the measured speed depends on.
#define NVL_ALWAYS_INLINE inline __attribute__((always_inline))

/// In front of a loop whose trip count is a small constant: arrays of registers stay registers only if it is unrolled.
/// NVL_NO_UNROLL where unrolling would need more registers than there are.
#if defined(__CUDACC__)
#define NVL_UNROLL
#define NVL_NO_UNROLL
#else
#define NVL_UNROLL _Pragma("GCC unroll 16")
#define NVL_NO_UNROLL _Pragma("GCC unroll 1")
#endif
