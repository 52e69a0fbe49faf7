#pragma once
/// Weights of any configuration without a file: for benchmarks and tests.

#include <nvl/core/config.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A WeightSource of float32 tensors: matrices uniform with standard deviation 1 / sqrt(in_features), so that activations keep
/// their scale; norm weights near 1, biases near 0. A function of the seed and the tensor's name only.
class RandomWeights {
 public:
  RandomWeights(const ModelConfig& config, std::uint64_t seed) {
    for (const WeightSpec& spec : expected_weights(config)) { add(spec, seed); }
  }

  const HostTensor* find(std::string_view canonical_name) const {
    const auto found = tensors_.find(std::string(canonical_name));
    return found == tensors_.end() ? nullptr : &found->second;
  }

 private:
  void add(const WeightSpec& spec, std::uint64_t seed) {
    std::size_t count = 1;
    for (const std::int64_t extent : spec.shape) { count *= static_cast<std::size_t>(extent); }
    const bool is_matrix = spec.shape.size() > 1;
    const bool is_bias = spec.name.ends_with("_bias");
    const float center = is_matrix || is_bias ? 0.0f : 1.0f;
    const float half_width = is_matrix ? std::sqrt(3.0f / static_cast<float>(spec.shape.back())) : 0.1f;

    std::uint64_t state = seed;
    for (const char c : spec.name) { state = mix(state ^ static_cast<unsigned char>(c)); }
    std::vector<float>& values = values_.emplace_back(count);
    for (float& value : values) {
      state += 0x9e3779b97f4a7c15u;
      const float unit = static_cast<float>(mix(state) >> 40) * 0x1p-24f;  // [0, 1)
      value = center + half_width * (2.0f * unit - 1.0f);
    }
    tensors_.emplace(spec.name, HostTensor{spec.name, DType::float32, spec.shape, std::as_bytes(std::span<const float>(values))});
  }

  /// SplitMix64's finaliser (Steele, Lea, Flood 2014).
  static constexpr std::uint64_t mix(std::uint64_t z) noexcept {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::vector<std::vector<float>> values_;  // moving a vector keeps its elements where they are
  std::unordered_map<std::string, HostTensor> tensors_;
};

}  // namespace nvl::inline NVL_ABI
