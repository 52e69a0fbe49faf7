#pragma once
/// Host rows with poisoned gaps between them, and conversions, for tests of kernels that work on rows.

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

namespace nvl_test {

/// [rows, width] to rows that lie `stride` apart; what is between them is NaN.
template <class T>
std::vector<T> spread_rows(const std::vector<T>& dense, std::size_t width, std::size_t stride) {
  std::vector<T> spread(dense.size() / width * stride, static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
  for (std::size_t row = 0; row * width < dense.size(); ++row) {
    std::copy_n(dense.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                spread.begin() + static_cast<std::ptrdiff_t>(row * stride));
  }
  return spread;
}

/// The inverse. Checks that what is between the rows is still NaN.
template <class T>
std::vector<T> dense_rows(const std::vector<T>& spread, std::size_t width, std::size_t stride) {
  std::vector<T> dense;
  dense.reserve(spread.size() / stride * width);
  bool gaps_untouched = true;
  for (std::size_t at = 0; at < spread.size(); at += stride) {
    const auto row = spread.begin() + static_cast<std::ptrdiff_t>(at);
    dense.insert(dense.end(), row, row + static_cast<std::ptrdiff_t>(width));
    for (std::size_t i = width; i < stride; ++i) {
      const auto x = static_cast<float>(spread[at + i]);
      gaps_untouched = gaps_untouched && x != x;
    }
  }
  CHECK(gaps_untouched);
  return dense;
}

template <class T>
std::vector<float> to_floats(const std::vector<T>& values) {
  std::vector<float> floats(values.size());
  std::transform(values.begin(), values.end(), floats.begin(), [](const T& x) { return static_cast<float>(x); });
  return floats;
}

/// Equal, NaN to NaN as well: for memory that has to stay as it was.
template <class T>
bool same_values(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const T& x, const T& y) {
    const auto f = static_cast<float>(x), g = static_cast<float>(y);
    return f == g || (f != f && g != g);
  });
}

}  // namespace nvl_test
