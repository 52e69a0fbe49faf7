#pragma once
/// Oracle of the gated activations: out[r, i] = act(gate_up[r, i]) * gate_up[r, n + i].
/// silu(x) = x / (1 + e^-x); gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016, arXiv:1606.08415.

#include <nvl/core/config.hpp>
#include <nvl/core/model_config.hpp>

#include <cmath>
#include <cstddef>
#include <numbers>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

inline double activate(double x, Activation activation) {
  if (activation == Activation::silu) { return x / (1.0 + std::exp(-x)); }
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

/// \param gate_up [rows, 2 n]
template <class T>
std::vector<double> gated_activation(std::span<const T> gate_up, std::size_t n, Activation activation) {
  std::vector<double> out;
  for (std::size_t row = 0; row < gate_up.size(); row += 2 * n) {
    for (std::size_t i = 0; i < n; ++i) {
      out.push_back(activate(static_cast<double>(static_cast<float>(gate_up[row + i])), activation) *
                    static_cast<double>(static_cast<float>(gate_up[row + n + i])));
    }
  }
  return out;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
