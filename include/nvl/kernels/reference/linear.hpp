#pragma once
/// Oracle of the linear layer and the embedding: out[r, o] = sum_i x[r, i] w[o, i] + bias[o], in double precision.

#include <nvl/core/config.hpp>

#include <cstddef>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// \param x [rows, in_features]; \param w [out_features, in_features]; \param bias [out_features] or empty
template <class T>
std::vector<double> linear(std::span<const T> x, std::span<const float> w, std::span<const float> bias, std::size_t rows,
                           std::size_t in_features, std::size_t out_features) {
  std::vector<double> out(rows * out_features);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < out_features; ++o) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[o]);
      for (std::size_t i = 0; i < in_features; ++i) {
        sum += static_cast<double>(static_cast<float>(x[r * in_features + i])) * static_cast<double>(w[o * in_features + i]);
      }
      out[r * out_features + o] = sum;
    }
  }
  return out;
}

/// out[t] = table row ids[t]; \param table [vocab, hidden]
template <class Id>
std::vector<double> embed(std::span<const Id> ids, std::span<const float> table, std::size_t hidden) {
  std::vector<double> out;
  out.reserve(ids.size() * hidden);
  for (const Id id : ids) {
    for (std::size_t i = 0; i < hidden; ++i) {
      out.push_back(static_cast<double>(table[static_cast<std::size_t>(id) * hidden + i]));
    }
  }
  return out;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
