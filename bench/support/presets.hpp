#pragma once
/// Shapes of known models, for benchmarks with random weights. The numbers are those of each model's published config.json.

#include <nvl/core/model_config.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nvl_bench {

inline constexpr std::array<std::string_view, 9> preset_names{
    "tiny", "smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b", "llama-3.1-8b"};

/// "tiny, smollm2-135m, ..."
inline std::string preset_list() {
  std::string names;
  for (const std::string_view name : preset_names) { names += (names.empty() ? "" : ", ") + std::string(name); }
  return names;
}

namespace detail {

struct PresetShape {
  std::int32_t hidden, intermediate, layers, q_heads, kv_heads;
  bool tied;
};

inline nvl::ModelConfig preset_of(std::string_view architecture, std::int32_t vocab_size, std::int32_t head_dim,
                                  std::int32_t max_positions, double eps, double theta, const PresetShape& shape) {
  nvl::ModelConfig c;
  c.architecture = architecture;
  c.vocab_size = vocab_size;
  c.hidden_size = shape.hidden;
  c.intermediate_size = shape.intermediate;
  c.num_layers = shape.layers;
  c.num_q_heads = shape.q_heads;
  c.num_kv_heads = shape.kv_heads;
  c.head_dim = head_dim;
  c.max_position_embeddings = max_positions;
  c.rms_norm_eps = eps;
  c.rope.theta = theta;
  c.tie_word_embeddings = shape.tied;
  c.dtype = nvl::DType::bfloat16;
  return c;
}

inline nvl::ModelConfig qwen3_preset(const PresetShape& shape) {
  nvl::ModelConfig c = preset_of("qwen3", 151936, 128, 40960, 1e-6, 1e6, shape);
  c.qk_norm = true;
  return c;
}

inline nvl::ModelConfig llama3_preset(std::int32_t head_dim, double rope_factor, const PresetShape& shape) {
  nvl::ModelConfig c = preset_of("llama", 128256, head_dim, 131072, 1e-5, 5e5, shape);
  c.rope.scaling = nvl::RopeScaling::llama3;
  c.rope.factor = rope_factor;
  c.rope.low_freq_factor = 1;
  c.rope.high_freq_factor = 4;
  c.rope.original_max_positions = 8192;
  return c;
}

}  // namespace detail

/// Nothing for a name that is not in preset_names.
inline std::optional<nvl::ModelConfig> preset(std::string_view name) {
  if (name == "tiny") {  // no known model: for trying the program itself, with a vocabulary that the nano-vllm load fits into
    nvl::ModelConfig c = detail::preset_of("llama", 10240, 16, 4096, 1e-6, 1e4, {64, 128, 2, 4, 2, true});
    c.dtype = nvl::DType::float32;
    return c;
  }
  if (name == "smollm2-135m") { return detail::preset_of("llama", 49152, 64, 8192, 1e-5, 1e5, {576, 1536, 30, 9, 3, true}); }
  if (name == "qwen2.5-0.5b") {
    nvl::ModelConfig c = detail::preset_of("qwen2", 151936, 64, 32768, 1e-6, 1e6, {896, 4864, 24, 14, 2, true});
    c.qkv_bias = true;
    return c;
  }
  if (name == "qwen3-0.6b") { return detail::qwen3_preset({1024, 3072, 28, 16, 8, true}); }
  if (name == "qwen3-1.7b") { return detail::qwen3_preset({2048, 6144, 28, 16, 8, true}); }
  if (name == "qwen3-4b") { return detail::qwen3_preset({2560, 9728, 36, 32, 8, true}); }
  if (name == "qwen3-8b") { return detail::qwen3_preset({4096, 12288, 36, 32, 8, false}); }
  if (name == "llama-3.2-1b") { return detail::llama3_preset(64, 32, {2048, 8192, 16, 32, 8, true}); }
  if (name == "llama-3.1-8b") { return detail::llama3_preset(128, 8, {4096, 14336, 32, 32, 8, false}); }
  return std::nullopt;
}

}  // namespace nvl_bench
