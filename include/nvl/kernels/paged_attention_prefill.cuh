#pragma once
/// Prefill attention over paged K and V: out = softmax(scale * q k^T + mask) v for the query tokens of many sequences, causal,
/// with an optional sliding window and soft-cap; prompts whole or cut into chunks.
///
/// Plan once a step, then one call a layer:
///     launch_paged_prefill_plan(params, stream);
///     launch_paged_prefill(params, stream);
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.   Oracle: kernels/reference/attention.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/kernels/paged_attention_prefill_mma.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>
#include <nvl/kernels/paged_attention_prefill_simple.cuh>
#include <nvl/kernels/paged_attention_prefill_wgmma.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

#if defined(__CUDACC__)

namespace detail::prefill {

template <class T, std::int32_t kHeadDim, bool kHasSoftcap>
void launch_tensor_cores(const PagedPrefillParams<T>& p, cudaStream_t stream) {
  if constexpr (kHeadDim == 64 || kHeadDim == 128) {
    using Traits = PagedPrefillWgmmaTraits<T, kHeadDim, kHasSoftcap>;
    if (can_launch_paged_prefill_wgmma<Traits>(p)) { return launch_paged_prefill_wgmma<Traits>(p, stream); }
  }
  launch_paged_prefill_mma<PagedPrefillMmaTraits<T, kHeadDim, kHasSoftcap>>(p, stream);
}

}  // namespace detail::prefill

/// The fastest kernel for a head dim that is known when compiling. Needs the plan of launch_paged_prefill_plan in p.workspace.
/// Asynchronous on `stream`; allocates nothing; safe inside graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T, std::int32_t kHeadDim>
void launch_paged_prefill(const PagedPrefillParams<T>& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.num_seqs == 0) {
    detail::prefill::check(p);
  } else if constexpr (std::is_same_v<T, float>) {
    launch_paged_prefill_simple<PagedPrefillSimpleTraits<T, kHeadDim>>(p, stream);
  } else if (p.softcap > 0.0f) {
    detail::prefill::launch_tensor_cores<T, kHeadDim, true>(p, stream);
  } else {
    detail::prefill::launch_tensor_cores<T, kHeadDim, false>(p, stream);
  }
}

/// The same with the head dim of p.layout, any of `supported_head_dims`: compiles the kernels of all of them.
template <class T>
void launch_paged_prefill(const PagedPrefillParams<T>& p, cudaStream_t stream) {
  dispatch_head_dim(p.layout.head_dim, [&](auto head_dim) { launch_paged_prefill<T, decltype(head_dim)::value>(p, stream); });
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
