#pragma once
/// Oracle of rotary position embedding, and of the fused step that normalises and rotates Q and K.
/// Source: Su et al. 2021, arXiv:2104.09864, eq. 34.

#include <nvl/core/config.hpp>
#include <nvl/core/model_config.hpp>

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// Rotates one head, [head_dim], by `position` times each of `frequencies`, [head_dim / 2] radians.
inline void rope(std::span<double> head, std::span<const double> frequencies, double magnitude, double position,
                 RotaryLayout layout) {
  const std::size_t half = head.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    double& a = head[layout == RotaryLayout::half ? i : 2 * i];
    double& b = head[layout == RotaryLayout::half ? i + half : 2 * i + 1];
    const double c = magnitude * std::cos(position * frequencies[i]);
    const double s = magnitude * std::sin(position * frequencies[i]);
    const double rotated = a * c - b * s;
    b = b * c + a * s;
    a = rotated;
  }
}

/// One head of Q or K on its way to attention: RMS norm over head_dim unless `norm` is empty, then RoPE.
template <class T>
std::vector<double> norm_and_rope(std::span<const T> head, std::span<const float> norm, double eps,
                                  std::span<const double> frequencies, double magnitude, double position, RotaryLayout layout) {
  std::vector<double> out;
  double squares = 0.0;
  for (const T x : head) {
    out.push_back(static_cast<double>(static_cast<float>(x)));
    squares += out.back() * out.back();
  }
  if (!norm.empty()) {
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(head.size()) + eps);
    for (std::size_t i = 0; i < out.size(); ++i) { out[i] *= scale * static_cast<double>(norm[i]); }
  }
  rope(out, frequencies, magnitude, position, layout);
  return out;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
