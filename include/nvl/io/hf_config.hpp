#pragma once
/// config.json of Hugging Face transformers -> ModelConfig. Keys that a file leaves out get the defaults of the family's
/// configuration class in transformers 5; old (`rope_scaling`, `rope_theta`) and new (`rope_parameters`) spellings are read.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/io/json.hpp>
#include <nvl/io/mapped_file.hpp>
#include <nvl/io/printable.hpp>
#include <nvl/io/validated_config.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// [bytes] no configuration file is near this size.
inline constexpr std::uint64_t max_config_bytes = 4u << 20;

namespace detail {

/// What a family's configuration class assumes, and what its modelling code does whatever the file says.
struct HfFamily {
  std::string_view class_name;
  std::string_view model_type;
  std::int32_t num_kv_heads;             // when the key is missing; 0 = as many as query heads
  std::int32_t head_dim;                 // when the key is missing; 0 = hidden_size / num_attention_heads
  std::int32_t max_position_embeddings;  // [tokens] when the key is missing
  std::int32_t sliding_window;           // [tokens] when the key is missing
  bool always_windowed;                  // otherwise only with use_sliding_window
  bool qkv_bias_always;
  bool reads_attention_bias;
  bool reads_mlp_bias;
  bool qk_norm;
};

inline constexpr std::array<HfFamily, 4> hf_families{{
    {.class_name = "LlamaForCausalLM",
     .model_type = "llama",
     .num_kv_heads = 0,
     .head_dim = 0,
     .max_position_embeddings = 2048,
     .sliding_window = 0,
     .always_windowed = false,
     .qkv_bias_always = false,
     .reads_attention_bias = true,
     .reads_mlp_bias = true,
     .qk_norm = false},
    {.class_name = "MistralForCausalLM",
     .model_type = "mistral",
     .num_kv_heads = 8,
     .head_dim = 0,
     .max_position_embeddings = 131072,
     .sliding_window = 4096,
     .always_windowed = true,
     .qkv_bias_always = false,
     .reads_attention_bias = false,
     .reads_mlp_bias = false,
     .qk_norm = false},
    {.class_name = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .num_kv_heads = 32,
     .head_dim = 0,
     .max_position_embeddings = 32768,
     .sliding_window = 4096,
     .always_windowed = false,
     .qkv_bias_always = true,
     .reads_attention_bias = false,
     .reads_mlp_bias = false,
     .qk_norm = false},
    {.class_name = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .num_kv_heads = 32,
     .head_dim = 128,
     .max_position_embeddings = 32768,
     .sliding_window = 4096,
     .always_windowed = false,
     .qkv_bias_always = false,
     .reads_attention_bias = true,
     .reads_mlp_bias = false,
     .qk_norm = true},
}};

inline const HfFamily& hf_family(const nlohmann::json& root, const std::string& path) {
  std::string found;
  const nlohmann::json* const architectures = json_find(root, "architectures");
  if (architectures != nullptr) {
    const nlohmann::json& list = json_array(root, "architectures", path);
    if (list.size() != 1) { fail_json(path, "architectures", std::to_string(list.size()) + " names", "one name"); }
    found = json_to_string(list[0], "architectures", path);
  } else {
    found = json_string(root, "model_type", path);
  }
  std::string known;
  for (const HfFamily& family : hf_families) {
    if (found == (architectures != nullptr ? family.class_name : family.model_type)) { return family; }
    known += (known.empty() ? "" : ", ") + std::string(family.class_name);
  }
  const char* const note = json_find(root, "auto_map") != nullptr ? " (its auto_map names code, which nvl never runs)" : "";
  raise(Unsupported(path + ": the architecture is " + in_quotes(found) + note + "; nvl knows " + known));
}

/// Token ids as configuration files give them: a number or a list of numbers.
inline std::vector<TokenId> json_token_ids(const nlohmann::json& object, std::string_view key, std::int32_t vocab_size,
                                           const std::string& path) {
  std::vector<TokenId> ids;
  const nlohmann::json* const value = json_find(object, key);
  if (value == nullptr) { return ids; }
  const auto add = [&](const nlohmann::json& id) {
    ids.push_back(static_cast<TokenId>(json_to_int(id, key, 0, vocab_size - 1, path)));
  };
  if (!value->is_array()) {
    add(*value);
    return ids;
  }
  constexpr std::size_t max_ids = 1024;
  if (value->size() > max_ids) { fail_json(path, key, std::to_string(value->size()) + " ids", "at most 1024"); }
  for (const nlohmann::json& id : *value) { add(id); }
  return ids;
}

inline std::int32_t json_int32(const nlohmann::json& object, std::string_view key, std::int32_t low, const std::string& path) {
  return static_cast<std::int32_t>(json_int(object, key, low, std::numeric_limits<std::int32_t>::max(), path));
}

inline std::int32_t json_int32_or(const nlohmann::json& object, std::string_view key, std::int32_t low, std::int32_t otherwise,
                                  const std::string& path) {
  return json_find(object, key) != nullptr ? json_int32(object, key, low, path) : otherwise;
}

/// The scaling of YaRN's cos and sin, as transformers infers it when the file does not say.
inline double yarn_attention_factor(const nlohmann::json& rope, double factor, const std::string& path) {
  if (const auto given = json_optional_float(rope, "attention_factor", 0, 1e3, path)) {
    if (*given == 0) { fail_json(path, "rope_scaling.attention_factor", "0", "positive"); }
    return *given;
  }
  const auto mscale_of = [&](double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; };
  const double mscale = json_optional_float(rope, "mscale", 0, 1e3, path).value_or(0);
  const double mscale_all_dim = json_optional_float(rope, "mscale_all_dim", 0, 1e3, path).value_or(0);
  return mscale > 0 && mscale_all_dim > 0 ? mscale_of(mscale) / mscale_of(mscale_all_dim) : mscale_of(1);
}

/// `root` is the whole configuration; its max_position_embeddings is already in `config`.
inline RopeConfig hf_rope(const nlohmann::json& root, const ModelConfig& config, const std::string& path) {
  constexpr double max_theta = 1e18;
  RopeConfig rope;
  rope.theta = json_optional_float(root, "rope_theta", 1, max_theta, path).value_or(rope.theta);
  const char* const key = json_find(root, "rope_scaling") != nullptr ? "rope_scaling" : "rope_parameters";
  const auto refuse_partial = [&](const nlohmann::json& object) {
    if (json_optional_float(object, "partial_rotary_factor", 0, 1, path).value_or(1) != 1) {
      raise(Unsupported(path + ": partial_rotary_factor is not 1; nvl rotates whole heads only"));
    }
  };
  refuse_partial(root);
  if (json_find(root, key) == nullptr) { return rope; }

  const nlohmann::json& scaling = json_object(root, key, path);
  refuse_partial(scaling);
  for (const auto& [name, value] : scaling.items()) {
    if (value.is_object()) {
      raise(Unsupported(path + ": " + key + " has its own entry for " + in_quotes(name) + "; nvl takes one for all layers"));
    }
  }
  rope.theta = json_optional_float(scaling, "rope_theta", 1, max_theta, path).value_or(rope.theta);
  const std::string type =
      json_optional_string(scaling, json_find(scaling, "rope_type") != nullptr ? "rope_type" : "type", path).value_or("default");
  if (type == "default") { return rope; }
  const bool is_linear = type == "linear";
  if (!is_linear && type != "llama3" && type != "yarn") {
    const char* const reason =
        type == "dynamic" ? ": with it old keys would depend on the final length, so they cannot be cached" : "";
    raise(
        Unsupported(path + ": " + key + " type is " + in_quotes(type) + reason + "; nvl knows default, linear, llama3 and yarn"));
  }
  rope.scaling = is_linear ? RopeScaling::linear : type == "yarn" ? RopeScaling::yarn : RopeScaling::llama3;
  if (!is_linear) {
    // A value outside of the dictionary wins over one inside.
    const nlohmann::json& owner = json_find(root, "original_max_position_embeddings") != nullptr ? root : scaling;
    rope.original_max_positions =
        json_int32_or(owner, "original_max_position_embeddings", 1, config.max_position_embeddings, path);
  }
  if (type == "yarn" && json_find(scaling, "factor") == nullptr) {
    rope.factor = static_cast<double>(config.max_position_embeddings) / rope.original_max_positions;
  } else {
    rope.factor = json_float(scaling, "factor", 1, 1e6, path);
  }
  if (type == "llama3") {
    rope.low_freq_factor = json_float(scaling, "low_freq_factor", 1e-6, 1e6, path);
    rope.high_freq_factor = json_float(scaling, "high_freq_factor", 1e-6, 1e6, path);
  }
  if (type == "yarn") {
    rope.beta_fast = json_optional_float(scaling, "beta_fast", 1e-6, 1e6, path).value_or(rope.beta_fast);
    rope.beta_slow = json_optional_float(scaling, "beta_slow", 1e-6, 1e6, path).value_or(rope.beta_slow);
    rope.truncate = json_optional_bool(scaling, "truncate", path).value_or(true);
    rope.attention_factor = yarn_attention_factor(scaling, rope.factor, path);
  }
  return rope;
}

/// Sets sliding_window and first_windowed_layer.
inline void read_window(const nlohmann::json& root, const HfFamily& family, ModelConfig& config, const std::string& path) {
  const bool windowed = family.always_windowed ||
                        (family.sliding_window > 0 && json_optional_bool(root, "use_sliding_window", path).value_or(false));
  if (!windowed) { return; }
  if (root.contains("sliding_window") && json_find(root, "sliding_window") == nullptr) { return; }  // null: no window
  config.sliding_window = json_int32_or(root, "sliding_window", 1, family.sliding_window, path);

  if (json_find(root, "layer_types") != nullptr) {
    const nlohmann::json& types = json_array(root, "layer_types", path);
    if (std::ssize(types) != config.num_layers) {
      fail_json(path, "length of layer_types", std::to_string(types.size()),
                "num_hidden_layers (" + std::to_string(config.num_layers) + ")");
    }
    std::int32_t first = config.num_layers;
    for (std::int32_t layer = 0; layer < config.num_layers; ++layer) {
      const std::string& type = json_to_string(types[static_cast<std::size_t>(layer)], "layer_types", path);
      const bool slides = type == "sliding_attention";
      if (!slides && type != "full_attention") {
        raise(Unsupported(path + ": layer_types has " + in_quotes(type) + "; nvl knows full_attention and sliding_attention"));
      }
      if (slides && first == config.num_layers) { first = layer; }
      if (!slides && first < layer) {
        raise(
            Unsupported(path + ": layer_types mixes kinds of attention; nvl takes full_attention layers before all others only"));
      }
    }
    config.first_windowed_layer = first;
  } else if (!family.always_windowed) {
    config.first_windowed_layer = json_int32_or(root, "max_window_layers", 0, 28, path);
  }
  if (config.first_windowed_layer >= config.num_layers) { config.sliding_window = config.first_windowed_layer = 0; }
}

inline Activation hf_activation(const nlohmann::json& root, const std::string& path) {
  const std::string name = json_optional_string(root, "hidden_act", path).value_or("silu");
  if (name == "silu" || name == "swish") { return Activation::silu; }
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") { return Activation::gelu_tanh; }
  raise(Unsupported(path + ": hidden_act is " + in_quotes(name) + "; nvl knows silu and gelu_pytorch_tanh"));
}

inline DType hf_dtype(const nlohmann::json& root, const std::string& path) {
  const auto name = json_optional_string(root, json_find(root, "dtype") != nullptr ? "dtype" : "torch_dtype", path);
  const auto dtype = name ? dtype_from_name(*name) : std::nullopt;
  return dtype.value_or(DType::float32);
}

}  // namespace detail

/// Maps a parsed config.json; `path` is used in messages.
/// \throws FileError that names key, value and rule; Unsupported for other architectures, quantised weights, and RoPE or window
///         variants that nvl does not compute
inline ModelConfig parse_hf_config(const nlohmann::json& root, const std::string& path) {
  if (!root.is_object()) { detail::fail_json(path, "the file", detail::describe(root), "an object"); }
  const detail::HfFamily& family = detail::hf_family(root, path);
  if (json_find(root, "quantization_config") != nullptr) {
    raise(Unsupported(path + ": has a quantization_config; nvl reads unquantised safetensors and quantised GGUF files"));
  }
  ModelConfig config;
  config.architecture = family.model_type;
  config.vocab_size = detail::json_int32(root, "vocab_size", 1, path);
  config.hidden_size = detail::json_int32(root, "hidden_size", 1, path);
  config.intermediate_size = detail::json_int32(root, "intermediate_size", 1, path);
  config.num_layers = detail::json_int32(root, "num_hidden_layers", 1, path);
  config.num_q_heads = detail::json_int32(root, "num_attention_heads", 1, path);
  const bool kv_is_null = root.contains("num_key_value_heads") && json_find(root, "num_key_value_heads") == nullptr;
  config.num_kv_heads = detail::json_int32_or(
      root, "num_key_value_heads", 1, kv_is_null || family.num_kv_heads == 0 ? config.num_q_heads : family.num_kv_heads, path);
  config.head_dim = detail::json_int32_or(root, "head_dim", 1, family.head_dim, path);
  if (config.head_dim == 0) {
    if (config.hidden_size % config.num_q_heads != 0) {
      detail::fail_json(
          path, "hidden_size", std::to_string(config.hidden_size),
          "a multiple of num_attention_heads (" + std::to_string(config.num_q_heads) + ") when head_dim is not given");
    }
    config.head_dim = config.hidden_size / config.num_q_heads;
  }
  config.max_position_embeddings =
      detail::json_int32_or(root, "max_position_embeddings", 1, family.max_position_embeddings, path);
  config.rms_norm_eps = json_optional_float(root, "rms_norm_eps", 0, 1, path).value_or(1e-6);
  config.activation = detail::hf_activation(root, path);
  config.rope = detail::hf_rope(root, config, path);
  detail::read_window(root, family, config, path);
  config.tie_word_embeddings = json_optional_bool(root, "tie_word_embeddings", path).value_or(false);
  const bool attention_bias = family.reads_attention_bias && json_optional_bool(root, "attention_bias", path).value_or(false);
  config.qkv_bias = family.qkv_bias_always || attention_bias;
  config.o_bias = attention_bias;
  config.mlp_bias = family.reads_mlp_bias && json_optional_bool(root, "mlp_bias", path).value_or(false);
  config.qk_norm = family.qk_norm;
  config.dtype = detail::hf_dtype(root, path);
  config.eos_token_ids = detail::json_token_ids(root, "eos_token_id", config.vocab_size, path);
  const std::vector<TokenId> bos = detail::json_token_ids(root, "bos_token_id", config.vocab_size, path);
  if (!bos.empty()) { config.bos_token_id = bos.front(); }
  return detail::validated_config(std::move(config), path);
}

/// Reads and maps the file `path`.
inline ModelConfig read_hf_config(const std::filesystem::path& path) {
  const MappedFile file(path, MapMode::read, max_config_bytes);
  return parse_hf_config(parse_json(file.text(), file.path()), file.path());
}

}  // namespace nvl::inline NVL_ABI
