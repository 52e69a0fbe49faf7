#pragma once
/// Exact merge of two attention states over different keys of the same queries (split KV, shared prefixes): with l_a, l_b the
/// natural logs of the sums of exp(scores),
///     lse = log(exp(l_a) + exp(l_b)),   out = exp(l_a - lse) out_a + exp(l_b - lse) out_b
/// Source: Rabe & Staats 2021, arXiv:2112.05682, section 2.   Oracle: kernels/reference/merge_states.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/vec.cuh>

#include <cstdint>
#include <initializer_list>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

template <class T, int kThreads = 256>
struct MergeStatesTraits {
  using Element = T;                                   // of the outputs; log-sum-exps and arithmetic are float
  static constexpr int threads = kThreads;             // [threads per block]
  static constexpr int vec = detail::vec_elements<T>;  // [elements per 16-byte access], one access a thread
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "nvl: MergeStatesTraits needs whole warps, at most 1024 threads");
};

/// Device pointers. A row is one head of one token; rows of outputs are contiguous and 16-byte aligned.
template <class T>
struct MergeStatesParams {
  T* out = nullptr;              // [num_rows, head_dim]; may be out_a or out_b
  float* lse = nullptr;          // [num_rows]; nullptr: not wanted; must be neither lse_a nor lse_b
  const T* out_a = nullptr;      // [num_rows, head_dim]
  const float* lse_a = nullptr;  // [num_rows] natural log; -inf: no keys, and that row of out_a is not used
  const T* out_b = nullptr;      // as out_a
  const float* lse_b = nullptr;  // as lse_a
  std::int64_t num_rows = 0;     // tokens * heads; 0 is legal: nothing is launched
  std::int32_t head_dim = 0;     // [elements], a multiple of Traits::vec
  bool overlap_previous = true;  // programmatic dependent launch
};

#if defined(__CUDACC__)

namespace detail {

/// Weights of two states, which sum to 1, and the merged log-sum-exp. A state without keys weighs 0; two such give 0, 0, -inf.
struct MergeWeights {
  float a, b, lse;
};
__device__ __forceinline__ MergeWeights merge_weights(float lse_a, float lse_b) {
  const float max = fmaxf(lse_a, lse_b);
  if (max == -INFINITY) { return {0.0f, 0.0f, -INFINITY}; }
  const float a = expf(lse_a - max);
  const float b = expf(lse_b - max);
  const float sum = a + b;
  return {a / sum, b / sum, max + logf(sum)};
}

/// A thread merges 16 bytes.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    merge_states_kernel(const __grid_constant__ MergeStatesParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Unit = Vec<T, Traits::vec>;
  wait_for_previous();
  let_next_start();
  const std::int32_t units = p.head_dim / Traits::vec;
  const std::int64_t at = std::int64_t{blockIdx.x} * Traits::threads + threadIdx.x;
  if (at >= p.num_rows * units) { return; }
  const std::int64_t row = at / units;
  const MergeWeights weights = merge_weights(p.lse_a[row], p.lse_b[row]);
  const Unit a = Unit::load(p.out_a + at * Traits::vec);
  const Unit b = Unit::load(p.out_b + at * Traits::vec);
  Unit out;
#pragma unroll
  for (int i = 0; i < Traits::vec; ++i) {
    // The output of a state without keys may be anything, NaN too.
    const float from_a = weights.a > 0.0f ? weights.a * to_float(a[i]) : 0.0f;
    const float from_b = weights.b > 0.0f ? weights.b * to_float(b[i]) : 0.0f;
    out[i] = from_float<T>(from_a + from_b);
  }
  out.store(p.out + at * Traits::vec);
  if (p.lse != nullptr && at % units == 0) { p.lse[row] = weights.lse; }
}

}  // namespace detail

/// Checks, launches. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_merge_states(const MergeStatesParams<typename Traits::Element>& p, cudaStream_t stream) {
  NVL_EXPECTS(p.head_dim > 0 && p.head_dim % Traits::vec == 0, "merge_states head_dim", p.head_dim,
              "a positive multiple of 16 bytes");
  NVL_EXPECTS(p.num_rows >= 0, "merge_states num_rows", p.num_rows, "at least 0");
  for (const typename Traits::Element* rows : {static_cast<const typename Traits::Element*>(p.out), p.out_a, p.out_b}) {
    NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(rows) % 16 == 0, "merge_states rows of outputs",
                reinterpret_cast<std::uintptr_t>(rows), "16-byte aligned");
  }
  NVL_EXPECTS(p.lse == nullptr || (p.lse != p.lse_a && p.lse != p.lse_b), "merge_states lse",
              reinterpret_cast<std::uintptr_t>(p.lse), "another array than lse_a and lse_b");
  if (p.num_rows == 0) { return; }
  const std::int64_t units = p.num_rows * (p.head_dim / Traits::vec);
  const std::int64_t blocks = (units + Traits::threads - 1) / Traits::threads;
  NVL_EXPECTS(blocks < std::int64_t{1} << 31, "merge_states num_rows", p.num_rows, "few enough for a grid of 2^31 blocks");
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(blocks)),
                                    .block = dim3(Traits::threads),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::merge_states_kernel<Traits>, p));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
