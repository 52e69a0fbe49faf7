#pragma once
/// Canonical names and shapes of a model's weights. Checkpoint readers map their files' names to these; the model asks for these.

#include <nvl/core/config.hpp>
#include <nvl/core/model_config.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace weight_names {
inline constexpr std::string_view embed = "embed";            // [vocab_size, hidden_size]
inline constexpr std::string_view final_norm = "final_norm";  // [hidden_size]
inline constexpr std::string_view lm_head = "lm_head";        // [vocab_size, hidden_size]; absent when the embedding is tied
// Of one layer, after "layers.<n>.":
inline constexpr std::string_view attn_norm = "attn_norm";  // [hidden_size]
inline constexpr std::string_view q_proj = "q_proj";        // [q_size, hidden_size]
inline constexpr std::string_view k_proj = "k_proj";        // [kv_size, hidden_size]
inline constexpr std::string_view v_proj = "v_proj";        // [kv_size, hidden_size]
inline constexpr std::string_view o_proj = "o_proj";        // [hidden_size, q_size]
inline constexpr std::string_view q_bias = "q_bias";        // [q_size]
inline constexpr std::string_view k_bias = "k_bias";        // [kv_size]
inline constexpr std::string_view v_bias = "v_bias";        // [kv_size]
inline constexpr std::string_view o_bias = "o_bias";        // [hidden_size]
inline constexpr std::string_view q_norm = "q_norm";        // [head_dim]
inline constexpr std::string_view k_norm = "k_norm";        // [head_dim]
inline constexpr std::string_view mlp_norm = "mlp_norm";    // [hidden_size]
inline constexpr std::string_view gate_proj = "gate_proj";  // [intermediate_size, hidden_size]
inline constexpr std::string_view up_proj = "up_proj";      // [intermediate_size, hidden_size]
inline constexpr std::string_view down_proj = "down_proj";  // [hidden_size, intermediate_size]
inline constexpr std::string_view gate_bias = "gate_bias";  // [intermediate_size]
inline constexpr std::string_view up_bias = "up_bias";      // [intermediate_size]
inline constexpr std::string_view down_bias = "down_bias";  // [hidden_size]

inline std::string of_layer(std::int32_t layer, std::string_view name) {
  return "layers." + std::to_string(layer) + "." + std::string(name);
}
}  // namespace weight_names

struct WeightSpec {
  std::string name;                 // canonical
  std::vector<std::int64_t> shape;  // [elements], outermost first
};

/// Every weight that a model of this configuration has, in the order in which a forward pass uses them.
inline std::vector<WeightSpec> expected_weights(const ModelConfig& c) {
  namespace n = weight_names;
  std::vector<WeightSpec> specs;
  specs.push_back({std::string(n::embed), {c.vocab_size, c.hidden_size}});
  for (std::int32_t layer = 0; layer < c.num_layers; ++layer) {
    const auto add = [&](std::string_view name, std::vector<std::int64_t> shape) {
      specs.push_back({n::of_layer(layer, name), std::move(shape)});
    };
    add(n::attn_norm, {c.hidden_size});
    add(n::q_proj, {c.q_size(), c.hidden_size});
    add(n::k_proj, {c.kv_size(), c.hidden_size});
    add(n::v_proj, {c.kv_size(), c.hidden_size});
    if (c.qkv_bias) {
      add(n::q_bias, {c.q_size()});
      add(n::k_bias, {c.kv_size()});
      add(n::v_bias, {c.kv_size()});
    }
    if (c.qk_norm) {
      add(n::q_norm, {c.head_dim});
      add(n::k_norm, {c.head_dim});
    }
    add(n::o_proj, {c.hidden_size, c.q_size()});
    if (c.o_bias) { add(n::o_bias, {c.hidden_size}); }
    add(n::mlp_norm, {c.hidden_size});
    add(n::gate_proj, {c.intermediate_size, c.hidden_size});
    add(n::up_proj, {c.intermediate_size, c.hidden_size});
    if (c.mlp_bias) {
      add(n::gate_bias, {c.intermediate_size});
      add(n::up_bias, {c.intermediate_size});
    }
    add(n::down_proj, {c.hidden_size, c.intermediate_size});
    if (c.mlp_bias) { add(n::down_bias, {c.hidden_size}); }
  }
  specs.push_back({std::string(n::final_norm), {c.hidden_size}});
  if (!c.tie_word_embeddings) { specs.push_back({std::string(n::lm_head), {c.vocab_size, c.hidden_size}}); }
  return specs;
}

}  // namespace nvl::inline NVL_ABI
