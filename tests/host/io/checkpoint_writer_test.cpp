#include <nvl/io/checkpoint_writer.hpp>

#include "support/checkpoint_builder.hpp"
#include "support/expect_error.hpp"
#include "support/temp_dir.hpp"

#include <nvl/io/checkpoint.hpp>
#include <nvl/model/random_weights.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace checkpoint_writer_test {

using namespace nvl;
using nvl_test::expect_error;
using nvl_test::small_llama;
using nvl_test::TempDir;

namespace {

ModelConfig small(std::string architecture) {
  ModelConfig config = small_llama();
  config.architecture = std::move(architecture);
  config.qkv_bias = config.architecture == "qwen2";
  config.qk_norm = config.architecture == "qwen3";
  config.dtype = DType::bfloat16;
  config.rope.theta = 1e6;
  config.eos_token_ids = {2, 3};
  config.bos_token_id = 1;
  return config;
}

ModelConfig read_back(const ModelConfig& config) {
  return parse_hf_config(nlohmann::json::parse(to_hf_config(config).dump()), "config.json");
}

}  // namespace

TEST_CASE("a configuration comes back from the config.json that was written of it", "[io][host]") {
  std::vector<ModelConfig> configs;
  for (const char* const architecture : {"llama", "mistral", "qwen2", "qwen3"}) {
    configs.push_back(small(architecture));
    configs.push_back(configs.back());
    configs.back().tie_word_embeddings = true;
    configs.back().activation = Activation::gelu_tanh;
    configs.back().rms_norm_eps = 1e-5;
  }
  ModelConfig config = small("llama");
  config.qkv_bias = config.o_bias = config.mlp_bias = true;
  configs.push_back(config);
  config = small("mistral");
  config.sliding_window = 17;
  configs.push_back(config);
  config = small("qwen2");
  config.sliding_window = 17;
  config.first_windowed_layer = 1;
  configs.push_back(config);
  config = small("llama");
  config.rope.factor = 8;
  for (const RopeScaling scaling : {RopeScaling::linear, RopeScaling::llama3, RopeScaling::yarn}) {
    config.rope.scaling = scaling;
    config.rope.original_max_positions = scaling == RopeScaling::linear ? 0 : 16;
    config.rope.attention_factor = scaling == RopeScaling::yarn ? 1.25 : 0;
    configs.push_back(config);
  }
  for (const ModelConfig& expected : configs) {
    CAPTURE(to_hf_config(expected).dump());
    CHECK(read_back(expected) == expected);
  }
}

TEST_CASE("YaRN's own attention factor is written out", "[io][host]") {
  ModelConfig config = small("qwen3");
  config.rope.scaling = RopeScaling::yarn;
  config.rope.factor = 4;
  config.rope.original_max_positions = 16;
  CHECK(read_back(config).rope.attention_factor == 0.1 * std::log(4.0) + 1);
}

TEST_CASE("what config.json cannot say is refused, not written wrongly", "[io][host]") {
  const auto refuses = [](const char* architecture, auto&& change) {
    ModelConfig config = small(architecture);
    change(config);
    expect_error<Unsupported>([&] { static_cast<void>(to_hf_config(config)); }, {architecture});
  };
  refuses("llama", [](ModelConfig& c) { c.qk_norm = true; });
  refuses("llama", [](ModelConfig& c) { c.sliding_window = 4; });
  refuses("qwen2", [](ModelConfig& c) { c.qkv_bias = false; });
  refuses("qwen3", [](ModelConfig& c) { c.mlp_bias = true; });
  refuses("mistral", [](ModelConfig& c) { c.sliding_window = 4, c.first_windowed_layer = 1; });
  refuses("llama", [](ModelConfig& c) { c.rope.layout = RotaryLayout::interleaved; });
  refuses("llama", [](ModelConfig& c) { c.rope.freq_factors = {1, 2}; });
  refuses("gpt9", [](ModelConfig&) {});
  ModelConfig broken = small("llama");
  broken.num_kv_heads = 3;
  expect_error<InvalidArgument>([&] { static_cast<void>(to_hf_config(broken)); }, {"num_key_value_heads"});
}

TEST_CASE("a checkpoint that was written opens with the same weights", "[io][host]") {
  for (const char* const architecture : {"llama", "qwen2", "qwen3"}) {
    for (const bool tied : {false, true}) {
      ModelConfig config = small(architecture);
      config.tie_word_embeddings = tied;
      const RandomWeights weights(config, 3, {.dtype = DType::bfloat16});
      const TempDir folder;
      write_checkpoint(folder.path() / "new" / "model", config, weights);
      const Checkpoint checkpoint = Checkpoint::open(folder.path() / "new" / "model");
      CHECK(checkpoint.config() == config);
      CHECK(checkpoint.warnings().empty());
      for (const HostTensor& tensor : checkpoint.tensors()) {
        const HostTensor& expected = *weights.find(tensor.name);
        CHECK(tensor.dtype == expected.dtype);
        CHECK(tensor.shape == expected.shape);
        CHECK(std::equal(tensor.data.begin(), tensor.data.end(), expected.data.begin(), expected.data.end()));
      }
    }
  }
}

TEST_CASE("a checkpoint needs every weight in its shape, and a place", "[io][host]") {
  const ModelConfig config = small("llama");
  const RandomWeights weights(config, 3);
  struct Source {
    const RandomWeights& weights;
    bool misshapen;
    HostTensor other = *weights.find("final_norm");
    const HostTensor* find(std::string_view name) const {
      if (name != "layers.1.up_proj") { return weights.find(name); }
      return misshapen ? &other : nullptr;
    }
  };
  const TempDir folder;
  expect_error<InvalidArgument>(
      [&] {
        write_checkpoint(folder.path(), config, Source{weights, false});
      },
      {"layers.1.up_proj", "missing"});
  expect_error<InvalidArgument>(
      [&] {
        write_checkpoint(folder.path(), config, Source{weights, true});
      },
      {"shape of weight layers.1.up_proj"});
  CHECK(std::filesystem::is_empty(folder.path()));
  const auto file = folder.write("file", "x");
  expect_error<FileError>([&] { write_checkpoint(file / "model", config, weights); }, {"file/model", "cannot be made"});
}

}  // namespace checkpoint_writer_test
