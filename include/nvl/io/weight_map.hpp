#pragma once
/// How Hugging Face and GGUF files call the weights of core/weight_names.hpp.
///
/// Names are built from the canonical ones and then looked up, never taken apart: a number inside a file's tensor name is
/// input like any other, and nothing is computed from it.

#include <nvl/core/config.hpp>
#include <nvl/core/weight_names.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace nvl::inline NVL_ABI::detail {

struct WeightAlias {
  std::string_view canonical;  // of one layer: without "layers.<n>."
  std::string_view hf;         // of one layer: without "layers.<n>."; otherwise without "model."
  std::string_view gguf;       // of one layer: without "blk.<n>."
};

inline constexpr std::array<WeightAlias, 3> model_weight_aliases{{
    {weight_names::embed, "embed_tokens.weight", "token_embd.weight"},
    {weight_names::final_norm, "norm.weight", "output_norm.weight"},
    {weight_names::lm_head, "lm_head.weight", "output.weight"},
}};

inline constexpr std::array<WeightAlias, 18> layer_weight_aliases{{
    {weight_names::attn_norm, "input_layernorm.weight", "attn_norm.weight"},
    {weight_names::q_proj, "self_attn.q_proj.weight", "attn_q.weight"},
    {weight_names::k_proj, "self_attn.k_proj.weight", "attn_k.weight"},
    {weight_names::v_proj, "self_attn.v_proj.weight", "attn_v.weight"},
    {weight_names::o_proj, "self_attn.o_proj.weight", "attn_output.weight"},
    {weight_names::q_bias, "self_attn.q_proj.bias", "attn_q.bias"},
    {weight_names::k_bias, "self_attn.k_proj.bias", "attn_k.bias"},
    {weight_names::v_bias, "self_attn.v_proj.bias", "attn_v.bias"},
    {weight_names::o_bias, "self_attn.o_proj.bias", "attn_output.bias"},
    {weight_names::q_norm, "self_attn.q_norm.weight", "attn_q_norm.weight"},
    {weight_names::k_norm, "self_attn.k_norm.weight", "attn_k_norm.weight"},
    {weight_names::mlp_norm, "post_attention_layernorm.weight", "ffn_norm.weight"},
    {weight_names::gate_proj, "mlp.gate_proj.weight", "ffn_gate.weight"},
    {weight_names::up_proj, "mlp.up_proj.weight", "ffn_up.weight"},
    {weight_names::down_proj, "mlp.down_proj.weight", "ffn_down.weight"},
    {weight_names::gate_bias, "mlp.gate_proj.bias", "ffn_gate.bias"},
    {weight_names::up_bias, "mlp.up_proj.bias", "ffn_up.bias"},
    {weight_names::down_bias, "mlp.down_proj.bias", "ffn_down.bias"},
}};

/// The name in a file of the weight `canonical`, e.g. "layers.7.q_proj" -> "blk.7.attn_q.weight" for member `alias` = gguf and
/// `layer_prefix` = "blk.". Empty if `canonical` is none of ours.
inline std::string weight_alias(std::string_view canonical, std::string_view WeightAlias::*alias, std::string_view layer_prefix) {
  constexpr std::string_view layers = "layers.";
  if (!canonical.starts_with(layers)) {
    for (const WeightAlias& row : model_weight_aliases) {
      if (row.canonical == canonical) { return std::string(row.*alias); }
    }
    return {};
  }
  const std::size_t dot = canonical.find('.', layers.size());
  for (const WeightAlias& row : layer_weight_aliases) {
    if (dot != std::string_view::npos && row.canonical == canonical.substr(dot + 1)) {
      return std::string(layer_prefix) + std::string(canonical.substr(layers.size(), dot + 1 - layers.size())) +
             std::string(row.*alias);
    }
  }
  return {};
}

}  // namespace nvl::inline NVL_ABI::detail
