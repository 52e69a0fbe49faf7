#pragma once
/// Small whole models on disk, as a GGUF file or a Hugging Face directory, for tests that then break one thing in them.

#include "support/gguf_builder.hpp"
#include "support/safetensors_builder.hpp"
#include "support/temp_dir.hpp"

#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/io/weight_map.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace nvl_test {

/// Llama: 2 layers, hidden 8, 2/1 heads of 4, MLP 12, 10 tokens.
inline nvl::ModelConfig small_llama() {
  nvl::ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 10;
  config.hidden_size = 8;
  config.intermediate_size = 12;
  config.num_layers = 2;
  config.num_q_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.max_position_embeddings = 64;
  return config;
}

/// Float32 bytes of a tensor of this shape; element i is `first` + i / 1000.
inline std::string float_data(const std::vector<std::int64_t>& shape, float first) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) { count *= extent; }
  std::string bytes(static_cast<std::size_t>(count) * sizeof(float), '\0');
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = first + static_cast<float>(i) / 1000.0f;
    std::memcpy(bytes.data() + static_cast<std::size_t>(i) * sizeof(float), &value, sizeof(float));
  }
  return bytes;
}

/// The weights that `config` calls for, in float32, the n-th one beginning with the value n.
inline SafetensorsBuilder hf_weights(const nvl::ModelConfig& config) {
  SafetensorsBuilder builder;
  float first = 0;
  for (const nvl::WeightSpec& spec : nvl::expected_weights(config)) {
    const std::string alias = nvl::detail::weight_alias(spec.name, &nvl::detail::WeightAlias::hf, "layers.");
    builder.add(spec.name == nvl::weight_names::lm_head ? alias : "model." + alias, "F32", spec.shape,
                float_data(spec.shape, first));
    first += 1;
  }
  return builder;
}

inline nlohmann::json hf_config_json() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 10},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float32"},
          {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

/// A file with all metadata and weights of small_llama().
inline GgufBuilder gguf_llama() {
  GgufBuilder builder;
  builder.set_string("general.architecture", "llama");
  builder.set("llama.vocab_size", std::uint32_t{10});
  builder.set("llama.context_length", std::uint32_t{64});
  builder.set("llama.embedding_length", std::uint32_t{8});
  builder.set("llama.feed_forward_length", std::uint32_t{12});
  builder.set("llama.block_count", std::uint32_t{2});
  builder.set("llama.attention.head_count", std::uint32_t{2});
  builder.set("llama.attention.head_count_kv", std::uint32_t{1});
  builder.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  builder.set("llama.rope.freq_base", 10000.0f);
  builder.set("llama.rope.dimension_count", std::uint32_t{4});
  builder.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  builder.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  float first = 0;
  for (const nvl::WeightSpec& spec : nvl::expected_weights(small_llama())) {
    const std::vector<std::uint64_t> dims(spec.shape.rbegin(), spec.shape.rend());
    builder.add_tensor(nvl::detail::weight_alias(spec.name, &nvl::detail::WeightAlias::gguf, "blk."), dims, 0,
                       float_data(spec.shape, first));
    first += 1;
  }
  return builder;
}

}  // namespace nvl_test
