#pragma once
/// Oracle of RMS normalisation: out[t, i] = x[t, i] * weight[i] / sqrt(mean_i(x[t, i]^2) + eps).
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.

#include <nvl/core/config.hpp>

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// \param x [rows, weight.size()]
template <class T>
std::vector<double> rms_norm(std::span<const T> x, std::span<const float> weight, double eps) {
  const std::size_t n = weight.size();
  std::vector<double> out(x.size());
  for (std::size_t row = 0; row < x.size(); row += n) {
    double squares = 0.0;
    for (std::size_t i = 0; i < n; ++i) { squares += std::pow(static_cast<double>(static_cast<float>(x[row + i])), 2); }
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
    for (std::size_t i = 0; i < n; ++i) {
      out[row + i] = static_cast<double>(static_cast<float>(x[row + i])) * scale * static_cast<double>(weight[i]);
    }
  }
  return out;
}

/// residual += x, rounded to T as it is stored; returns the norm of the sum.
template <class T>
std::vector<double> add_rms_norm(std::span<T> residual, std::span<const T> x, std::span<const float> weight, double eps) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    residual[i] = static_cast<T>(static_cast<float>(residual[i]) + static_cast<float>(x[i]));
  }
  return rms_norm(std::span<const T>(residual), weight, eps);
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
