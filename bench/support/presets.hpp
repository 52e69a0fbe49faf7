#pragma once
/// Shapes of known models, for benchmarks with random weights. The numbers are those of each model's published config.json.

#include <nvl/core/model_config.hpp>

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace nvl_bench {

inline constexpr std::array<std::string_view, 4> preset_names{"tiny", "smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b"};

/// Nothing for a name that is not in preset_names.
inline std::optional<nvl::ModelConfig> preset(std::string_view name) {
  nvl::ModelConfig c;
  c.tie_word_embeddings = true;
  if (name == "tiny") {  // no known model: for trying the program itself
    c.architecture = "llama";
    c.vocab_size = 512;
    c.hidden_size = 64;
    c.intermediate_size = 128;
    c.num_layers = 2;
    c.num_q_heads = 4;
    c.num_kv_heads = 2;
    c.head_dim = 16;
    c.max_position_embeddings = 4096;
  } else if (name == "smollm2-135m") {
    c.architecture = "llama";
    c.vocab_size = 49152;
    c.hidden_size = 576;
    c.intermediate_size = 1536;
    c.num_layers = 30;
    c.num_q_heads = 9;
    c.num_kv_heads = 3;
    c.head_dim = 64;
    c.max_position_embeddings = 8192;
    c.rms_norm_eps = 1e-5;
    c.rope.theta = 100000;
  } else if (name == "qwen2.5-0.5b") {
    c.architecture = "qwen2";
    c.vocab_size = 151936;
    c.hidden_size = 896;
    c.intermediate_size = 4864;
    c.num_layers = 24;
    c.num_q_heads = 14;
    c.num_kv_heads = 2;
    c.head_dim = 64;
    c.max_position_embeddings = 32768;
    c.rope.theta = 1e6;
    c.qkv_bias = true;
  } else if (name == "qwen3-0.6b") {
    c.architecture = "qwen3";
    c.vocab_size = 151936;
    c.hidden_size = 1024;
    c.intermediate_size = 3072;
    c.num_layers = 28;
    c.num_q_heads = 16;
    c.num_kv_heads = 8;
    c.head_dim = 128;
    c.max_position_embeddings = 40960;
    c.rope.theta = 1e6;
    c.qk_norm = true;
  } else {
    return std::nullopt;
  }
  return c;
}

}  // namespace nvl_bench
