#pragma once
/// Random host tensors of any type that a checkpoint may hold, with the floats that their bytes mean.

#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/host_tensor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace nvl_test {

/// Values of a normal distribution, rounded to T.
template <class T>
std::vector<T> random_values(std::size_t count, std::uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<T> values(count);
  for (T& value : values) { value = static_cast<T>(normal(random)); }
  return values;
}

class RandomTensor {
 public:
  RandomTensor(nvl::DType type, std::vector<std::int64_t> shape, std::uint32_t seed) {
    const nvl::DTypeInfo& info = nvl::info(type);
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) { count *= extent; }
    bytes_.resize(static_cast<std::size_t>(count / info.block_elements * info.block_bytes));
    std::mt19937 random(seed);
    for (std::size_t at = 0; at < bytes_.size(); at += info.block_bytes) { fill_block(type, bytes_.data() + at, random); }
    floats_.resize(static_cast<std::size_t>(count));
    nvl::dequantize_row(type, bytes_.data(), floats_.data(), count);
    tensor_ = {.name = "random", .dtype = type, .shape = std::move(shape), .data = bytes_};
  }
  RandomTensor(const RandomTensor&) = delete;
  RandomTensor& operator=(const RandomTensor&) = delete;

  const nvl::HostTensor& tensor() const { return tensor_; }
  const std::vector<float>& floats() const { return floats_; }  ///< row-major

 private:
  /// Random integers everywhere, then scales of a sensible size where the block keeps its fp16 numbers.
  static void fill_block(nvl::DType type, std::byte* block, std::mt19937& random) {
    const nvl::DTypeInfo& info = nvl::info(type);
    std::uniform_int_distribution<int> byte(0, 255);
    std::uniform_real_distribution<float> scale(0.005f, 0.02f);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    for (std::uint32_t i = 0; i < info.block_bytes; ++i) { block[i] = static_cast<std::byte>(byte(random)); }
    const auto put = [&](std::size_t at, auto value) { std::memcpy(block + at, &value, sizeof(value)); };
    switch (type) {
      case nvl::DType::float32: put(0, normal(random)); break;
      case nvl::DType::float16: put(0, nvl::fp16(normal(random))); break;
      case nvl::DType::bfloat16: put(0, nvl::bf16(normal(random))); break;
      case nvl::DType::q4_0:
      case nvl::DType::q5_0:
      case nvl::DType::q8_0: put(0, nvl::fp16(scale(random))); break;
      case nvl::DType::q4_1:
      case nvl::DType::q5_1:
        put(0, nvl::fp16(scale(random)));
        put(2, nvl::fp16(-8.0f * scale(random)));
        break;
      case nvl::DType::q4_k:
      case nvl::DType::q5_k:
        put(0, nvl::fp16(scale(random) / 32));
        put(2, nvl::fp16(scale(random) / 4));
        break;
      case nvl::DType::q6_k: put(208, nvl::fp16(scale(random) / 64)); break;
      default: break;
    }
  }

  std::vector<std::byte> bytes_;
  std::vector<float> floats_;
  nvl::HostTensor tensor_;
};

}  // namespace nvl_test
