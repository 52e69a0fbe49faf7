#pragma once
/// The one measure by which an op is compared with its oracle, and the bound for each element type.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// Normalised mean square error: sum (a - e)^2 / sum e^2. Infinite if an element of `actual` is not finite or lengths differ.
template <class T>
double nmse(std::span<const T> actual, std::span<const double> expected) {
  if (actual.size() != expected.size()) { return std::numeric_limits<double>::infinity(); }
  double error = 0.0, signal = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(static_cast<float>(actual[i]));
    if (!std::isfinite(a)) { return std::numeric_limits<double>::infinity(); }
    error += (a - expected[i]) * (a - expected[i]);
    signal += expected[i] * expected[i];
  }
  return error == 0.0 ? 0.0 : error / signal;
}
template <class T>
double nmse(const std::vector<T>& actual, const std::vector<double>& expected) {
  return nmse(std::span<const T>(actual), std::span<const double>(expected));
}

/// What an op with float sums reaches when its inputs are exact values of T: the error is that of rounding the output.
template <class T>
inline constexpr double max_nmse = 1e-12;
template <>
inline constexpr double max_nmse<bf16> = 5e-6;
template <>
inline constexpr double max_nmse<fp16> = 1e-7;

/// The same for a few outputs, whose errors do not average out: half a unit in the last place of each, squared; of float,
/// what sums that cancel leave.
template <class T>
inline constexpr double max_nmse_of_few = 1e-11;
template <>
inline constexpr double max_nmse_of_few<bf16> = 0x1p-16;
template <>
inline constexpr double max_nmse_of_few<fp16> = 0x1p-22;

/// Products with block-quantised weights round the activations to 16-bit integers, one scale for 32 of them: for values spread
/// like a normal distribution (largest of 32 about 2.2 deviations) that is (2.2 / 32512)^2 / 12 = 4e-10.
inline constexpr double max_nmse_quantized = 2e-9;

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
