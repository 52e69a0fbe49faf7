#pragma once
/// Cosines and sines of rotary position embedding, one row a position.
/// RoPE: Su et al. 2021, arXiv:2104.09864. Scaling: linear, Chen et al. 2023, arXiv:2306.15595; llama3, the Llama 3.1 release
/// (Grattafiori et al. 2024, arXiv:2407.21783); yarn, Peng et al. 2023, arXiv:2309.00071.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Radians per position of each pair of a head, [head_dim / 2], after scaling.
inline std::vector<double> rope_inverse_frequencies(const RopeConfig& config, std::int32_t head_dim) {
  NVL_EXPECTS(head_dim > 0 && head_dim % 2 == 0, "head_dim", head_dim, "even and positive");
  const auto num_pairs = static_cast<std::size_t>(head_dim / 2);
  const double dim = head_dim;
  const double two_pi = 2.0 * std::numbers::pi;
  std::vector<double> inverse(num_pairs);
  for (std::size_t i = 0; i < num_pairs; ++i) { inverse[i] = std::pow(config.theta, -2.0 * static_cast<double>(i) / dim); }

  switch (config.scaling) {
    case RopeScaling::none: break;
    case RopeScaling::linear:
      for (double& f : inverse) { f /= config.factor; }
      break;
    case RopeScaling::llama3: {
      // Long waves are stretched, short ones kept, those between blended.
      const double old_context = config.original_max_positions;
      for (double& f : inverse) {
        const double wavelength = two_pi / f;
        if (wavelength > old_context / config.low_freq_factor) {
          f /= config.factor;
        } else if (wavelength >= old_context / config.high_freq_factor) {
          const double smooth =
              (old_context / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
          f = (1.0 - smooth) * f / config.factor + smooth * f;
        }
      }
      break;
    }
    case RopeScaling::yarn: {
      // The pair that makes `rotations` turns over the trained context; eq. 23 of the paper's "NTK-by-parts".
      const auto pair_of = [&](double rotations) {
        return dim * std::log(config.original_max_positions / (rotations * two_pi)) / (2.0 * std::log(config.theta));
      };
      double low = pair_of(config.beta_fast);
      double high = pair_of(config.beta_slow);
      if (config.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
      }
      low = std::max(low, 0.0);
      high = std::min(high, dim - 1.0);
      if (low == high) { high += 0.001; }  // a ramp of no width would divide by zero
      for (std::size_t i = 0; i < num_pairs; ++i) {
        const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        inverse[i] = inverse[i] / config.factor * stretched + inverse[i] * (1.0 - stretched);
      }
      break;
    }
  }
  if (!config.freq_factors.empty()) {
    NVL_EXPECTS(config.freq_factors.size() == num_pairs, "number of rope frequency factors", config.freq_factors.size(),
                "head_dim / 2 (" + std::to_string(num_pairs) + ")");
    for (std::size_t i = 0; i < num_pairs; ++i) { inverse[i] /= static_cast<double>(config.freq_factors[i]); }
  }
  return inverse;
}

/// What cos and sin are multiplied by: 1, except for yarn's attention temperature.
inline double rope_magnitude(const RopeConfig& config) {
  if (config.scaling != RopeScaling::yarn) { return 1.0; }
  if (config.attention_factor > 0.0) { return config.attention_factor; }
  return config.factor <= 1.0 ? 1.0 : 0.1 * std::log(config.factor) + 1.0;
}

/// Computed in double once, stored as float: position p, pair i at [p * head_dim / 2 + i]. Immutable.
class RopeTable {
 public:
  /// \throws InvalidArgument for an odd head_dim, num_positions < 1 or a wrong number of frequency factors.
  RopeTable(const RopeConfig& config, std::int32_t head_dim, std::int32_t num_positions)
      : layout_(config.layout),
        head_dim_(head_dim),
        num_positions_(num_positions) {
    NVL_EXPECTS(num_positions >= 1, "positions of the RoPE table", num_positions, "positive");
    const std::vector<double> inverse = rope_inverse_frequencies(config, head_dim);
    const double magnitude = rope_magnitude(config);
    const std::size_t size = static_cast<std::size_t>(num_positions) * inverse.size();
    cos_.resize(size);
    sin_.resize(size);
    for (std::size_t p = 0, at = 0; p < static_cast<std::size_t>(num_positions); ++p) {
      for (const double frequency : inverse) {
        const double angle = static_cast<double>(p) * frequency;
        cos_[at] = static_cast<float>(magnitude * std::cos(angle));
        sin_[at] = static_cast<float>(magnitude * std::sin(angle));
        ++at;
      }
    }
  }

  RotaryLayout layout() const noexcept { return layout_; }
  std::int32_t head_dim() const noexcept { return head_dim_; }
  std::int32_t num_positions() const noexcept { return num_positions_; }

  /// [head_dim / 2] of position `p`, 0 <= p < num_positions.
  const float* cos(std::int32_t p) const noexcept { return cos_.data() + offset(p); }
  const float* sin(std::int32_t p) const noexcept { return sin_.data() + offset(p); }

 private:
  std::size_t offset(std::int32_t p) const noexcept {
    return static_cast<std::size_t>(p) * static_cast<std::size_t>(head_dim_ / 2);
  }

  RotaryLayout layout_;
  std::int32_t head_dim_;
  std::int32_t num_positions_;
  std::vector<float> cos_, sin_;  // [num_positions, head_dim / 2]
};

}  // namespace nvl::inline NVL_ABI
