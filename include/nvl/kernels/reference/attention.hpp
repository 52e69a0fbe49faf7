#pragma once
/// Oracle of attention: softmax over the visible keys, all at once, in double precision.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.

#include <nvl/core/config.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// One query and head against keys and values [num_keys, head_dim] of its KV head; key i is visible if first <= i <= position.
/// `softcap` turns a scaled score x into softcap * tanh(x / softcap), 0 leaves it; `lse`, if not null, receives the natural log
/// of the sum of exp(scores).
template <class T>
std::vector<double> attention(std::span<const T> query, std::span<const T> keys, std::span<const T> values, std::size_t first,
                              std::size_t position, double scale, double softcap = 0.0, double* lse = nullptr) {
  const std::size_t d = query.size();
  const auto at = [](const T& x) { return static_cast<double>(static_cast<float>(x)); };
  std::vector<double> scores;
  for (std::size_t key = first; key <= position; ++key) {
    double dot = 0.0;
    for (std::size_t i = 0; i < d; ++i) { dot += at(query[i]) * at(keys[key * d + i]); }
    dot *= scale;
    scores.push_back(softcap > 0.0 ? softcap * std::tanh(dot / softcap) : dot);
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  for (double& s : scores) {
    s = std::exp(s - max);
    total += s;
  }
  if (lse != nullptr) { *lse = max + std::log(total); }
  std::vector<double> out(d, 0.0);
  for (std::size_t k = 0; k < scores.size(); ++k) {
    for (std::size_t i = 0; i < d; ++i) { out[i] += scores[k] / total * at(values[(first + k) * d + i]); }
  }
  return out;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
