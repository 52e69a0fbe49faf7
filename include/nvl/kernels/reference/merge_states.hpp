#pragma once
/// Oracle of the merge of two attention states: what attention over both sets of keys at once would have given.

#include <nvl/core/config.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

struct AttentionState {
  std::vector<double> out;  // of one query and head
  double lse = 0.0;         // natural log of the sum of exp(scores); -inf: no keys, and `out` means nothing
};

template <class T>
AttentionState merge_states(std::span<const T> out_a, double lse_a, std::span<const T> out_b, double lse_b) {
  AttentionState merged{std::vector<double>(out_a.size(), 0.0), -std::numeric_limits<double>::infinity()};
  const double max = std::max(lse_a, lse_b);
  if (std::isinf(max) && max < 0.0) { return merged; }
  const double weight_a = std::exp(lse_a - max), weight_b = std::exp(lse_b - max);
  merged.lse = max + std::log(weight_a + weight_b);
  for (std::size_t i = 0; i < merged.out.size(); ++i) {
    if (weight_a > 0.0) { merged.out[i] += weight_a / (weight_a + weight_b) * static_cast<double>(static_cast<float>(out_a[i])); }
    if (weight_b > 0.0) { merged.out[i] += weight_b / (weight_a + weight_b) * static_cast<double>(static_cast<float>(out_b[i])); }
  }
  return merged;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
