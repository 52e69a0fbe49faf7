#pragma once
/// Weights of any configuration without a file: for benchmarks and tests.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/core/weight_names.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct RandomWeightsOptions {
  DType dtype = DType::float32;  // of all tensors: float32, float16 or bfloat16
  float deviation = 0;           // standard deviation of the matrices; 0 = 1 / sqrt(in_features): activations keep their scale
  std::int32_t num_threads = 0;  // that make the values; 0 = one per core
};

namespace detail {

/// Random values that many tensors share: each is a view at an offset of its own.
class RandomBank {
 public:
  struct Values {
    float center, deviation;
    auto operator<=>(const Values&) const = default;
  };

  /// Announces a tensor of `count` elements.
  void reserve(std::size_t count) noexcept {
    const std::size_t lines = ceil_div(count, line);
    largest_ = std::max(largest_, lines);
    total_ += lines;
  }

  std::size_t num_elements() const noexcept { return std::min(total_, largest_ + spare_lines) * line; }

  template <class T>
  void fill(const Values& values, std::uint64_t seed, ThreadPool& threads) {
    lines_ = num_elements() / line;
    element_bytes_ = sizeof(T);
    bytes_ = std::make_unique_for_overwrite<std::byte[]>(num_elements() * sizeof(T));  // pages are touched by who fills them
    threads.parallel_for(static_cast<std::int64_t>(lines_), 256, [&](std::int64_t begin, std::int64_t end) {
      const auto first = static_cast<std::uint64_t>(begin) * line;
      const auto last = static_cast<std::uint64_t>(end) * line;
      for (std::uint64_t i = first; i < last; ++i) {
        const T value(values.center + values.deviation * normal(mix(seed + i * 0x9e3779b97f4a7c15u)));
        std::memcpy(bytes_.get() + i * sizeof(T), &value, sizeof(T));
      }
    });
  }

  /// The next tensor's bytes, valid while the bank lives.
  std::span<const std::byte> take(std::size_t count) {
    const std::size_t lines = ceil_div(count, line);
    const std::size_t places = lines_ - lines + 1;
    std::size_t at = next_ < places ? next_ : 0;
    while (!taken_.insert(at).second) { at = (at + step_lines) % places; }
    next_ = at + lines;
    return {bytes_.get() + at * line * element_bytes_, count * element_bytes_};
  }

  /// SplitMix64's finaliser (Steele, Lea, Flood 2014).
  static constexpr std::uint64_t mix(std::uint64_t z) noexcept {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  static constexpr std::size_t line = 64;                           // [elements] tensors begin at multiples of it
  static constexpr std::size_t spare_lines = std::size_t{1} << 18;  // of a bank, beyond its largest tensor: 16 M elements
  static constexpr std::size_t step_lines = 1009;                   // between tensors that would begin at the same place

  /// Sum of the four 16-bit numbers in `bits`, brought to mean 0 and standard deviation 1: a bell that ends at +-3.46
  /// (Irwin-Hall distribution of order 4). Much cheaper than a true normal number and as random for a multiplier.
  static constexpr float normal(std::uint64_t bits) noexcept {
    const std::uint64_t pairs = (bits & 0x0000ffff0000ffffu) + ((bits >> 16) & 0x0000ffff0000ffffu);
    const auto sum = static_cast<std::int32_t>((pairs & 0xffffffffu) + (pairs >> 32));
    constexpr float deviation = 37837.226f;  // 65536 / sqrt(3)
    return static_cast<float>(sum - 2 * 65535) * (1.0f / deviation);
  }

  std::size_t largest_ = 0, total_ = 0;  // [lines] announced
  std::size_t lines_ = 0, next_ = 0, element_bytes_ = 0;
  std::unique_ptr<std::byte[]> bytes_;
  std::unordered_set<std::size_t> taken_;  // [lines] where tensors begin
};

}  // namespace detail

/// A WeightSource of bell-shaped random numbers: matrices around 0, norm weights around 1 and biases around 0, the last two with
/// a standard deviation of 0.05. A function of configuration and seed, rounded to the dtype, whatever the number of threads.
///
/// Large models cost little time and memory: the tensors of one distribution are views into one bank of values, which is hardly
/// longer than the largest of them. They overlap there, each at an offset of its own, so that no two are the same; a model that
/// fits as a whole has none that overlap. The 8.2 billion weights of Qwen3-8B in bfloat16 take 1.4 GB this way.
class RandomWeights {
 public:
  /// \throws InvalidArgument for a configuration that makes no model, or another dtype; OutOfMemory
  RandomWeights(const ModelConfig& config, std::uint64_t seed, const RandomWeightsOptions& options = {}) {
    validate(config);
    NVL_EXPECTS(options.dtype == DType::float32 || options.dtype == DType::float16 || options.dtype == DType::bfloat16,
                "dtype of random weights", info(options.dtype).name, "float32, float16 or bfloat16");
    NVL_EXPECTS(std::isfinite(options.deviation) && options.deviation >= 0, "deviation of random weights", options.deviation,
                "0 (by the number of input features) or positive");
    std::vector<WeightSpec> specs = expected_weights(config);
    for (const WeightSpec& spec : specs) { banks_[values_of(spec, options)].reserve(num_elements(spec)); }
    fill(seed, options);
    for (WeightSpec& spec : specs) {
      const std::span<const std::byte> data = banks_.at(values_of(spec, options)).take(num_elements(spec));
      tensors_.emplace(spec.name, HostTensor{spec.name, options.dtype, std::move(spec.shape), data});
    }
  }

  RandomWeights(RandomWeights&&) = default;
  RandomWeights& operator=(RandomWeights&&) = default;

  const HostTensor* find(std::string_view canonical_name) const {
    const auto found = tensors_.find(std::string(canonical_name));
    return found == tensors_.end() ? nullptr : &found->second;
  }

  /// Exchanges the values of two tensors of one shape: a model with a fault, for controls of checks.
  /// \throws InvalidArgument if one is not there or the shapes differ
  void exchange(std::string_view first, std::string_view second) {
    const auto one = tensors_.find(std::string(first)), other = tensors_.find(std::string(second));
    NVL_EXPECTS(one != tensors_.end(), "tensor", first, "one of the model's");
    NVL_EXPECTS(other != tensors_.end(), "tensor", second, "one of the model's");
    NVL_EXPECTS(one->second.shape == other->second.shape, "tensor", second, "of the shape of " + std::string(first));
    std::swap(one->second.data, other->second.data);
  }

 private:
  using Bank = detail::RandomBank;

  static std::size_t num_elements(const WeightSpec& spec) noexcept {
    std::size_t count = 1;
    for (const std::int64_t extent : spec.shape) { count *= static_cast<std::size_t>(extent); }
    return count;
  }

  static Bank::Values values_of(const WeightSpec& spec, const RandomWeightsOptions& options) {
    if (spec.shape.size() > 1) {
      return {0.0f, options.deviation > 0 ? options.deviation : 1.0f / std::sqrt(static_cast<float>(spec.shape.back()))};
    }
    return {spec.name.ends_with("_bias") ? 0.0f : 1.0f, 0.05f};
  }

  void fill(std::uint64_t seed, const RandomWeightsOptions& options) {
    constexpr std::size_t worth_threads = std::size_t{1} << 18;  // [elements]
    std::size_t total = 0;
    for (const auto& [values, bank] : banks_) { total += bank.num_elements(); }
    ThreadPool threads(total < worth_threads ? 1 : options.num_threads);
    std::uint64_t number = 0;
    for (auto& [values, bank] : banks_) {
      const std::uint64_t bank_seed = Bank::mix(seed ^ Bank::mix(++number));
      switch (options.dtype) {
        case DType::float16: bank.fill<fp16>(values, bank_seed, threads); break;
        case DType::bfloat16: bank.fill<bf16>(values, bank_seed, threads); break;
        default: bank.fill<float>(values, bank_seed, threads); break;
      }
    }
  }

  std::map<Bank::Values, Bank> banks_;  // moving a map keeps its elements where they are
  std::unordered_map<std::string, HostTensor> tensors_;
};

}  // namespace nvl::inline NVL_ABI
