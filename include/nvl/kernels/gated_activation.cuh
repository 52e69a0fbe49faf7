#pragma once
/// Gated activation of the MLP: out[t, i] = act(gate_up[t, i]) * gate_up[t, n + i].
/// silu(g) = g / (1 + e^-g); gelu_tanh(g) = g / (1 + e^-2u), u = sqrt(2/pi) (g + 0.044715 g^3): its tanh as an exponential
/// (Hendrycks & Gimpel 2016, arXiv:1606.08415).   Oracle: kernels/reference/gated_activation.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// A thread makes one 16-byte vector of `out`. More of them a thread, or larger blocks, are no faster at any size (H200).
template <class T, Activation kActivation>
struct GatedActivationTraits {
  using Element = T;
  static constexpr Activation activation = kActivation;
  static constexpr int vec = detail::vec_elements<T>;  // [elements per vector]
  static constexpr int threads = 128;                  // [per block]
  static constexpr int elements_per_block = threads * vec;
};

/// Run-time values, passed by value to the kernel. Strides count elements.
template <class T>
struct GatedActivationParams {
  T* out = nullptr;                 // [num_tokens, n], device
  const T* gate_up = nullptr;       // [num_tokens, 2 n], device: gate, then up
  std::int64_t out_stride = 0;      // 0: n
  std::int64_t gate_up_stride = 0;  // 0: 2 n
  int num_tokens = 0;               // 0 is legal: nothing is launched
  int n = 0;                        // [elements], a multiple of 8
  Activation activation = Activation::silu;
};

#if defined(__CUDACC__)

namespace detail {

template <Activation kActivation>
__device__ __forceinline__ float activate(float g) {
  float exponent = -g;
  if constexpr (kActivation == Activation::gelu_tanh) {
    exponent = g * fmaf(g * g, 0.044715f, 1.0f) * (-2.0f * 0.79788456080286536f);
  }
  return __fdividef(g, 1.0f + __expf(exponent));
}

}  // namespace detail

/// Blocks of the grid, in order: those of token 0, of token 1, ...
template <class Traits, detail::CacheUse kStore>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    gated_activation_kernel(const __grid_constant__ GatedActivationParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Vector = detail::RowVector<T>;
  constexpr int vec = Traits::vec;
  const unsigned blocks_per_row = static_cast<unsigned>(p.n + Traits::elements_per_block - 1) / Traits::elements_per_block;
  const std::int64_t token = blockIdx.x / blocks_per_row;
  const int column =
      static_cast<int>(blockIdx.x % blocks_per_row) * Traits::elements_per_block + static_cast<int>(threadIdx.x) * vec;
  detail::wait_for_previous_and_let_next_start(p.num_tokens);
  if (column >= p.n) { return; }

  const T* const gate = p.gate_up + token * p.gate_up_stride + column;
  const Vector gate_vector = Vector::load(gate), up_vector = Vector::load(gate + p.n);
  float g[vec], u[vec];
  gate_vector.unpack(g);
  up_vector.unpack(u);
#pragma unroll
  for (int i = 0; i < vec; ++i) { g[i] = detail::activate<Traits::activation>(g[i]) * u[i]; }
  Vector::pack(g).template store<kStore>(p.out + token * p.out_stride + column);
}

/// Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_gated_activation(GatedActivationParams<T> p, cudaStream_t stream, bool overlap_previous = true) {
  NVL_EXPECTS(p.n > 0 && p.n % 8 == 0, "gated_activation n", p.n, "a positive multiple of 8");
  NVL_EXPECTS(p.num_tokens >= 0, "gated_activation num_tokens", p.num_tokens, "not negative");
  if (p.out_stride == 0) { p.out_stride = p.n; }
  if (p.gate_up_stride == 0) { p.gate_up_stride = 2 * std::int64_t{p.n}; }
  NVL_EXPECTS(p.out_stride >= p.n && p.out_stride % 8 == 0, "gated_activation out_stride", p.out_stride,
              "0, or a multiple of 8, at least n");
  NVL_EXPECTS(p.gate_up_stride >= 2 * std::int64_t{p.n} && p.gate_up_stride % 8 == 0, "gated_activation gate_up_stride",
              p.gate_up_stride, "0, or a multiple of 8, at least 2 n");
  if (p.num_tokens == 0) { return; }
  const auto run = [&]<Activation kActivation>() {
    using Traits = GatedActivationTraits<T, kActivation>;
    const int blocks_per_row = (p.n + Traits::elements_per_block - 1) / Traits::elements_per_block;
    const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(p.num_tokens) * static_cast<unsigned>(blocks_per_row)),
                                      .block = dim3(Traits::threads),
                                      .stream = stream,
                                      .overlap_previous = overlap_previous};
    const std::int64_t output_bytes = std::int64_t{p.num_tokens} * p.n * static_cast<int>(sizeof(T));
    detail::dispatch_cache_use(output_bytes, detail::row_tuning(), [&]<detail::CacheUse kStore>() {
      NVL_CUDA_CHECK(detail::launch(config, gated_activation_kernel<Traits, kStore>, p));
    });
  };
  switch (p.activation) {
    case Activation::silu: return run.template operator()<Activation::silu>();
    case Activation::gelu_tanh: return run.template operator()<Activation::gelu_tanh>();
  }
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
