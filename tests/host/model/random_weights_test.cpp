#include <nvl/model/random_weights.hpp>

#include "support/expect_error.hpp"
#include "support/tiny_model.hpp"

#include <nvl/core/dequantize.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace random_weights_test {

using namespace nvl;
using Catch::Matchers::WithinAbs;
using nvl_test::expect_error;
using nvl_test::tiny_config;

namespace {

std::vector<float> floats(const HostTensor& tensor) {
  std::vector<float> values(tensor.data.size() / info(tensor.dtype).block_bytes);
  dequantize_row(tensor.dtype, tensor.data.data(), values.data(), std::ssize(values));
  return values;
}

struct Moments {
  double mean = 0, deviation = 0;
};

Moments moments(const std::vector<float>& values) {
  Moments m;
  for (const float value : values) { m.mean += value / static_cast<double>(values.size()); }
  for (const float value : values) { m.deviation += (value - m.mean) * (value - m.mean) / static_cast<double>(values.size()); }
  m.deviation = std::sqrt(m.deviation);
  return m;
}

/// 19 M weights, so that tensors have to share the values of a bank.
ModelConfig sharing_config() {
  ModelConfig config = tiny_config();
  config.vocab_size = 20'000;
  config.hidden_size = 512;
  config.intermediate_size = 2048;
  config.num_layers = 12;
  config.qkv_bias = true;
  return config;
}

}  // namespace

TEST_CASE("random weights have what the configuration calls for, around 0 and around 1", "[model][host]") {
  const ModelConfig config = sharing_config();
  for (const float deviation : {0.0f, 0.02f}) {
    const RandomWeights weights(config, 1, {.deviation = deviation});
    for (const WeightSpec& spec : expected_weights(config)) {
      CAPTURE(spec.name);
      const HostTensor* const tensor = weights.find(spec.name);
      REQUIRE(tensor != nullptr);
      CHECK(tensor->name == spec.name);
      CHECK(tensor->shape == spec.shape);
      CHECK(tensor->dtype == DType::float32);
      const std::vector<float> values = floats(*tensor);
      if (values.size() < 1000) { continue; }
      const double expected = deviation > 0 ? deviation : 1 / std::sqrt(static_cast<double>(spec.shape.back()));
      CHECK_THAT(moments(values).mean, WithinAbs(0.0, 0.1 * expected));
      CHECK_THAT(moments(values).deviation, WithinAbs(expected, 0.02 * expected));
    }
    const Moments norm = moments(floats(*weights.find("final_norm"))), bias = moments(floats(*weights.find("layers.0.k_bias")));
    CHECK_THAT(norm.mean, WithinAbs(1.0, 0.02));
    CHECK_THAT(norm.deviation, WithinAbs(0.05, 0.02));
    CHECK_THAT(bias.mean, WithinAbs(0.0, 0.05));
    CHECK(weights.find("lm_head") == nullptr);
  }
}

TEST_CASE("no two random tensors are the same, shared values or not", "[model][host]") {
  for (const ModelConfig& config : {tiny_config(), sharing_config()}) {
    const RandomWeights weights(config, 1, {.deviation = 0.02f});
    std::set<std::vector<std::byte>> beginnings;
    std::size_t count = 0;
    for (const WeightSpec& spec : expected_weights(config)) {
      const auto data = weights.find(spec.name)->data;
      beginnings.emplace(data.begin(), data.begin() + 64);
      ++count;
    }
    CHECK(beginnings.size() == count);
  }
}

TEST_CASE("a model that fits into its banks shares nothing", "[model][host]") {
  const ModelConfig config = tiny_config();
  const RandomWeights weights(config, 1, {.deviation = 0.02f});
  std::vector<std::pair<const std::byte*, const std::byte*>> spans;
  for (const WeightSpec& spec : expected_weights(config)) {
    const auto data = weights.find(spec.name)->data;
    spans.emplace_back(data.data(), data.data() + data.size());
  }
  std::sort(spans.begin(), spans.end());
  for (std::size_t i = 1; i < spans.size(); ++i) { CHECK(spans[i - 1].second <= spans[i].first); }
}

TEST_CASE("random weights are a function of the seed, whatever the threads", "[model][host]") {
  const ModelConfig config = sharing_config();
  const RandomWeights one(config, 5, {.num_threads = 1}), three(config, 5, {.num_threads = 3}), other(config, 6);
  for (const char* const name : {"embed", "layers.7.q_proj", "layers.0.attn_norm", "layers.2.v_bias"}) {
    const auto a = one.find(name)->data, b = three.find(name)->data, c = other.find(name)->data;
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    CHECK(!std::equal(a.begin(), a.end(), c.begin(), c.end()));
  }
}

TEST_CASE("random weights of two bytes are the float32 ones, rounded", "[model][host]") {
  const ModelConfig config = tiny_config();
  const RandomWeights wide(config, 5), bfloat(config, 5, {.dtype = DType::bfloat16}), half(config, 5, {.dtype = DType::float16});
  for (const char* const name : {"embed", "layers.1.down_proj", "final_norm"}) {
    CHECK(bfloat.find(name)->dtype == DType::bfloat16);
    CHECK(half.find(name)->dtype == DType::float16);
    const std::vector<float> expected = floats(*wide.find(name)), b = floats(*bfloat.find(name)), h = floats(*half.find(name));
    REQUIRE(b.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CHECK(b[i] == static_cast<float>(bf16(expected[i])));
      CHECK(h[i] == static_cast<float>(fp16(expected[i])));
    }
  }
}

TEST_CASE("moved random weights keep their values, and exchanged ones change places", "[model][host]") {
  RandomWeights from(tiny_config(), 5);
  const auto k = from.find("layers.0.k_proj")->data, v = from.find("layers.0.v_proj")->data;
  RandomWeights weights = std::move(from);
  CHECK(weights.find("layers.0.k_proj")->data.data() == k.data());
  weights.exchange("layers.0.k_proj", "layers.0.v_proj");
  CHECK(weights.find("layers.0.k_proj")->data.data() == v.data());
  CHECK(weights.find("layers.0.k_proj")->name == "layers.0.k_proj");
  expect_error<InvalidArgument>([&] { weights.exchange("layers.0.k_proj", "layers.0.q_proj"); }, {"layers.0.q_proj", "shape"});
  expect_error<InvalidArgument>([&] { weights.exchange("layers.0.k_proj", "nothing"); }, {"nothing"});
}

TEST_CASE("random weights refuse types and configurations that make no model", "[model][host]") {
  expect_error<InvalidArgument>([] { RandomWeights(tiny_config(), 1, {.dtype = DType::q8_0}); }, {"dtype", "Q8_0"});
  expect_error<InvalidArgument>([] { RandomWeights(tiny_config(), 1, {.deviation = -1}); }, {"deviation"});
  ModelConfig config = tiny_config();
  config.hidden_size = 0;
  expect_error<InvalidArgument>([&] { RandomWeights(config, 1); }, {"hidden_size"});
}

}  // namespace random_weights_test
