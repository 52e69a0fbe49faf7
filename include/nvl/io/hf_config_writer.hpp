#pragma once
/// ModelConfig -> config.json of Hugging Face transformers.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/io/hf_config.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <string>

namespace nvl::inline NVL_ABI {

namespace detail {

inline nlohmann::ordered_json hf_rope_json(const RopeConfig& rope) {
  switch (rope.scaling) {
    case RopeScaling::linear: return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeScaling::llama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_max_positions}};
    case RopeScaling::yarn:
      return {{"rope_type", "yarn"},
              {"factor", rope.factor},
              {"beta_fast", rope.beta_fast},
              {"beta_slow", rope.beta_slow},
              {"attention_factor", rope.attention_factor},
              {"truncate", rope.truncate},
              {"original_max_position_embeddings", rope.original_max_positions}};
    default: return nullptr;
  }
}

inline nlohmann::ordered_json hf_config_words(const ModelConfig& c) {
  nlohmann::ordered_json json;
  for (const HfFamily& family : hf_families) {
    if (family.model_type == c.architecture) { json["architectures"] = {family.class_name}; }
  }
  json["model_type"] = c.architecture;
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_layers;
  json["num_attention_heads"] = c.num_q_heads;
  json["num_key_value_heads"] = c.num_kv_heads;
  json["head_dim"] = c.head_dim;
  json["max_position_embeddings"] = c.max_position_embeddings;
  json["rms_norm_eps"] = c.rms_norm_eps;
  json["hidden_act"] = c.activation == Activation::silu ? "silu" : "gelu_pytorch_tanh";
  json["rope_theta"] = c.rope.theta;
  json["rope_scaling"] = hf_rope_json(c.rope);
  json["use_sliding_window"] = c.sliding_window > 0;
  json["sliding_window"] = c.sliding_window > 0 ? nlohmann::ordered_json(c.sliding_window) : nlohmann::ordered_json(nullptr);
  if (c.sliding_window > 0) { json["max_window_layers"] = c.first_windowed_layer; }
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  json["attention_bias"] = c.o_bias;
  json["mlp_bias"] = c.mlp_bias;
  json["torch_dtype"] = info(c.dtype).name;
  if (c.bos_token_id >= 0) { json["bos_token_id"] = c.bos_token_id; }
  if (!c.eos_token_ids.empty()) { json["eos_token_id"] = c.eos_token_ids; }
  return json;
}

}  // namespace detail

/// The configuration as transformers writes it. parse_hf_config gives it back.
/// \throws InvalidArgument for a configuration that makes no model; Unsupported for one that config.json has no words for
inline nlohmann::ordered_json to_hf_config(ModelConfig config) {
  validate(config);
  if (config.rope.scaling == RopeScaling::yarn && config.rope.attention_factor == 0) {
    config.rope.attention_factor = 0.1 * std::log(config.rope.factor) + 1;
  }
  nlohmann::ordered_json json = detail::hf_config_words(config);
  // What a family's modelling code does cannot be switched by the file, so reading it back is the check.
  if (!(parse_hf_config(nlohmann::json::parse(json.dump()), "config.json") == config)) {
    raise(
        Unsupported("config.json of architecture \"" + config.architecture +
                    "\" has no words for this configuration: its biases, norms, attention window or rotary layout are not those "
                    "of the family"));
  }
  return json;
}

}  // namespace nvl::inline NVL_ABI
