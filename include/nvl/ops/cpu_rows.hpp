#pragma once
/// What the CPU ops do to one row. A row's result depends on that row only.

#include <nvl/core/config.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace nvl::inline NVL_ABI::detail {

/// Calls f(i, lanes in use) for each run of up to 16 elements of [0, n).
template <class F>
NVL_ALWAYS_INLINE void for_each_vector(std::int32_t n, F&& f) {
  std::int32_t i = 0;
  for (; i + simd::lanes <= n; i += simd::lanes) { f(i, simd::lanes); }
  if (i < n) { f(i, n - i); }
}

/// out = x, [n], as another element type
template <class Out, class In>
void convert_row(Out* out, const In* x, std::int32_t n) noexcept {
  for_each_vector(n, [&](std::int32_t i, int lanes) { simd::store_first(out + i, simd::load_first(x + i, lanes), lanes); });
}

/// out = x * w / sqrt(mean(x^2) + eps), all [n]; out may be x. Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
template <class T>
void rms_norm_row(T* out, const T* x, const float* w, std::int32_t n, float eps) noexcept {
  simd::f32x16 squares = simd::zero();
  for_each_vector(n, [&](std::int32_t i, int lanes) {
    const simd::f32x16 v = simd::load_first(x + i, lanes);
    squares = simd::fma(v, v, squares);
  });
  const simd::f32x16 scale = simd::broadcast(1.0f / std::sqrt(simd::sum(squares) / static_cast<float>(n) + eps));
  for_each_vector(n, [&](std::int32_t i, int lanes) {
    simd::store_first(out + i, simd::load_first(x + i, lanes) * scale * simd::load_first(w + i, lanes), lanes);
  });
}

/// residual += x, both [n]
template <class T>
void add_row(T* residual, const T* x, std::int32_t n) noexcept {
  for_each_vector(n, [&](std::int32_t i, int lanes) {
    simd::store_first(residual + i, simd::load_first(residual + i, lanes) + simd::load_first(x + i, lanes), lanes);
  });
}

/// silu(g) = g / (1 + e^-g); gelu_tanh(g) = g / (1 + e^-2u) with u = sqrt(2/pi) (g + 0.044715 g^3): its tanh as an exponential.
template <Activation kActivation>
NVL_ALWAYS_INLINE simd::f32x16 activate(const simd::f32x16& g) noexcept {
  simd::f32x16 exponent;
  if constexpr (kActivation == Activation::silu) {
    exponent = simd::zero() - g;
  } else {
    const simd::f32x16 cubic = simd::fma(g * g, simd::broadcast(0.044715f), simd::broadcast(1.0f));
    exponent = g * cubic * simd::broadcast(-2.0f * 0.79788456080286536f);
  }
  return g / (simd::broadcast(1.0f) + simd::exp(exponent));
}

/// out[i] = activation(gate_up[i]) * gate_up[n + i]
template <class T>
void gated_activation_row(T* out, const T* gate_up, std::int32_t n, Activation activation) noexcept {
  const auto run = [&]<Activation kActivation>() {
    for_each_vector(n, [&](std::int32_t i, int lanes) {
      const simd::f32x16 gate = simd::load_first(gate_up + i, lanes);
      simd::store_first(out + i, activate<kActivation>(gate) * simd::load_first(gate_up + n + i, lanes), lanes);
    });
  };
  switch (activation) {
    case Activation::silu: run.template operator()<Activation::silu>(); return;
    case Activation::gelu_tanh: run.template operator()<Activation::gelu_tanh>(); return;
  }
}

/// Rotates the pairs of one head by the angles whose cosines and sines are given, [head_dim / 2].
inline void rotate_head(float* head, const float* cosines, const float* sines, std::int32_t head_dim,
                        RotaryLayout layout) noexcept {
  const std::int32_t half = head_dim / 2;
  if (layout == RotaryLayout::half) {
    for_each_vector(half, [&](std::int32_t i, int lanes) {
      const simd::f32x16 a = simd::load_first(head + i, lanes);
      const simd::f32x16 b = simd::load_first(head + half + i, lanes);
      const simd::f32x16 c = simd::load_first(cosines + i, lanes);
      const simd::f32x16 s = simd::load_first(sines + i, lanes);
      simd::store_first(head + i, simd::fma(a, c, simd::zero() - b * s), lanes);
      simd::store_first(head + half + i, simd::fma(b, c, a * s), lanes);
    });
    return;
  }
  for (std::int32_t i = 0; i < half; ++i) {
    const float a = head[2 * i];
    const float b = head[2 * i + 1];
    head[2 * i] = simd::fma(a, cosines[i], -(b * sines[i]));
    head[2 * i + 1] = simd::fma(b, cosines[i], a * sines[i]);
  }
}

/// out [n] becomes the weighted mean of `out` and `other`, whose weights' natural logs are given; returns the log of their sum.
/// One that has no weight (-infinity) is not read, and may be anything.
template <class T>
float merge_state(T* out, float lse, const T* other, float other_lse, std::int32_t n) noexcept {
  if (other_lse == -std::numeric_limits<float>::infinity()) { return lse; }
  if (lse == -std::numeric_limits<float>::infinity()) {
    std::copy_n(other, n, out);
    return other_lse;
  }
  const float max = std::max(lse, other_lse);
  const float a = std::exp(lse - max), b = std::exp(other_lse - max);
  const simd::f32x16 weight = simd::broadcast(a / (a + b)), other_weight = simd::broadcast(b / (a + b));
  for_each_vector(n, [&](std::int32_t i, int lanes) {
    simd::store_first(
        out + i, simd::fma(simd::load_first(out + i, lanes), weight, simd::load_first(other + i, lanes) * other_weight), lanes);
  });
  return max + std::log(a + b);
}

}  // namespace nvl::inline NVL_ABI::detail
