#pragma once
/// Weights of the CPU ops.

#include <nvl/core/config.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Weight of a norm, [size].
struct CpuVector {
  std::vector<float> values;
  std::int32_t size() const noexcept { return static_cast<std::int32_t>(values.size()); }
  const float* data() const noexcept { return values.data(); }
};

/// [out_features, in_features] with optional bias.
template <class T>
class CpuWeight {
 public:
  CpuWeight() = default;

  CpuWeight(std::span<const HostTensor* const> parts, std::span<const HostTensor* const> biases) {
    in_features_ = static_cast<std::int32_t>(parts.front()->shape.back());
    for (const HostTensor* part : parts) {
      const std::int64_t n = part->num_rows() * in_features_;
      const std::size_t at = values_.size();
      values_.resize(at + static_cast<std::size_t>(n));
      dequantize_row(part->dtype, part->data.data(), values_.data() + at, n);
      out_features_ += static_cast<std::int32_t>(part->num_rows());
    }
    for (const HostTensor* b : biases) {
      const std::size_t at = bias_.size();
      bias_.resize(at + static_cast<std::size_t>(b->shape.back()));
      dequantize_row(b->dtype, b->data.data(), bias_.data() + at, b->shape.back());
    }
  }

  std::int32_t in_features() const noexcept { return in_features_; }
  std::int32_t out_features() const noexcept { return out_features_; }
  const float* row(std::int64_t r) const noexcept { return values_.data() + r * in_features_; }
  float bias(std::int32_t r) const noexcept { return bias_.empty() ? 0.0f : bias_[static_cast<std::size_t>(r)]; }

 private:
  std::int32_t in_features_ = 0;
  std::int32_t out_features_ = 0;
  std::vector<float> values_;
  std::vector<float> bias_;
};

}  // namespace nvl::inline NVL_ABI
