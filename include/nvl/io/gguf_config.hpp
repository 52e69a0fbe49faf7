#pragma once
/// Metadata of a GGUF file -> ModelConfig, for the architectures that llama.cpp calls llama (which includes Mistral), qwen2 and
/// qwen3. What the metadata do not say (biases, tied head) is seen from which tensors there are.

#include <nvl/core/config.hpp>
#include <nvl/core/dequantize.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/io/gguf.hpp>
#include <nvl/io/printable.hpp>
#include <nvl/io/validated_config.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Reads "<architecture>.<key>" entries with the file's name and the whole key in every message.
class GgufArchitectureKeys {
 public:
  GgufArchitectureKeys(const GgufFile& file, std::string architecture) : file_(file), architecture_(std::move(architecture)) {}

  std::string name(std::string_view key) const { return architecture_ + "." + std::string(key); }

  std::optional<std::int32_t> optional_int(std::string_view key, std::int32_t low) const {
    const std::string full = name(key);
    const auto found = file_.find_int(full);
    if (!found) { return std::nullopt; }
    if (*found < low || *found > std::numeric_limits<std::int32_t>::max()) {
      file_.fail(*file_.find(full), std::to_string(*found),
                 std::to_string(low) + " to " + std::to_string(std::numeric_limits<std::int32_t>::max()));
    }
    return static_cast<std::int32_t>(*found);
  }

  std::int32_t required_int(std::string_view key, std::int32_t low) const {
    const auto found = optional_int(key, low);
    if (!found) { fail_missing(key); }
    return *found;
  }

  std::optional<double> optional_float(std::string_view key, double low, double high) const {
    const std::string full = name(key);
    const auto found = file_.find_float(full);
    if (found && !(*found >= low && *found <= high)) {
      file_.fail(*file_.find(full), to_text(*found), "from " + to_text(low) + " to " + to_text(high));
    }
    return found;
  }

  double required_float(std::string_view key, double low, double high) const {
    const auto found = optional_float(key, low, high);
    if (!found) { fail_missing(key); }
    return *found;
  }

 private:
  [[noreturn]] void fail_missing(std::string_view key) const {
    raise(FileError(file_.path(), name(key) + " is missing: must be given"));
  }

  const GgufFile& file_;
  std::string architecture_;
};

inline constexpr double gguf_max_factor = 1e6;

/// Key spellings and the meaning of attn_factor are those of llama.cpp's loader.
inline RopeConfig gguf_rope(const GgufFile& file, const GgufArchitectureKeys& keys, const ModelConfig& config) {
  RopeConfig rope;
  rope.layout = config.architecture == "llama" ? RotaryLayout::interleaved : RotaryLayout::half;
  rope.theta = keys.optional_float("rope.freq_base", 1, 1e18).value_or(rope.theta);
  if (const auto dims = keys.optional_int("rope.dimension_count", 1); dims && *dims != config.head_dim) {
    raise(Unsupported(file.path() + ": " + keys.name("rope.dimension_count") + " is " + std::to_string(*dims) + ", head_dim is " +
                      std::to_string(config.head_dim) + "; nvl rotates whole heads only"));
  }
  const std::string type_key = keys.name("rope.scaling.type");
  std::string_view type = file.find_string(type_key).value_or("none");
  auto factor = keys.optional_float("rope.scaling.factor", 0, gguf_max_factor);
  if (!file.find(type_key)) {
    // Files older than the scaling keys have only this one.
    factor = factor ? factor : keys.optional_float("rope.scale_linear", 0, gguf_max_factor);
    type = factor && *factor != 0 && *factor != 1 ? "linear" : "none";
  }
  if (type == "linear" || type == "yarn") {
    if (!factor || *factor < 1) {
      raise(FileError(file.path(), keys.name("rope.scaling.factor") + " is " + (factor ? to_text(*factor) : "missing") +
                                       ": must be at least 1 with rope.scaling.type " + std::string(type)));
    }
    rope.scaling = type == "linear" ? RopeScaling::linear : RopeScaling::yarn;
    rope.factor = *factor;
  } else if (type != "none") {
    raise(Unsupported(file.path() + ": " + type_key + " is " + in_quotes(type) + "; nvl knows none, linear and yarn"));
  }
  if (rope.scaling == RopeScaling::yarn) {
    rope.original_max_positions =
        keys.optional_int("rope.scaling.original_context_length", 1).value_or(config.max_position_embeddings);
    rope.beta_fast = keys.optional_float("rope.scaling.yarn_beta_fast", 1e-6, gguf_max_factor).value_or(rope.beta_fast);
    rope.beta_slow = keys.optional_float("rope.scaling.yarn_beta_slow", 1e-6, gguf_max_factor).value_or(rope.beta_slow);
    const double attn_factor = keys.optional_float("rope.scaling.attn_factor", 1e-6, gguf_max_factor).value_or(1);
    rope.attention_factor = attn_factor * (1 + 0.1 * std::log(rope.factor));
  }
  return rope;
}

/// "rope_freqs.weight", in which llama.cpp's converter stores what llama3 scaling does to each pair of dimensions.
inline std::vector<float> gguf_freq_factors(const GgufFile& file, std::int32_t head_dim) {
  const GgufTensor* const tensor = file.find_tensor("rope_freqs.weight");
  if (tensor == nullptr) { return {}; }
  if (tensor->dtype != DType::float32 || tensor->num_dims != 1 || tensor->dims[0] != head_dim / 2) {
    raise(FileError(file.path(), tensor->offset,
                    "tensor \"rope_freqs.weight\" must be float32 [" + std::to_string(head_dim / 2) + "], half of head_dim"));
  }
  std::vector<float> factors(static_cast<std::size_t>(head_dim / 2));
  dequantize_row(DType::float32, tensor->data.data(), factors.data(), head_dim / 2);
  return factors;
}

/// The width of the token embedding's first dimension, which is the vocabulary that the model computes with.
inline std::int32_t gguf_vocab_size(const GgufFile& file, const GgufArchitectureKeys& keys) {
  std::optional<std::int32_t> vocab = keys.optional_int("vocab_size", 1);
  if (!vocab) {
    const GgufTensor* const embed = file.find_tensor("token_embd.weight");
    if (embed == nullptr || embed->num_dims != 2) {
      raise(FileError(file.path(),
                      keys.name("vocab_size") + " and the matrix \"token_embd.weight\" are missing: one must be there"));
    }
    if (embed->dims[0] > std::numeric_limits<std::int32_t>::max()) {
      raise(FileError(file.path(),
                      "tensor \"token_embd.weight\" has " + std::to_string(embed->dims[0]) + " rows: must be below 2^31"));
    }
    vocab = static_cast<std::int32_t>(embed->dims[0]);
  }
  const GgufValue* const tokens = file.find("tokenizer.ggml.tokens");
  if (tokens != nullptr && tokens->is_array && tokens->count > static_cast<std::uint64_t>(*vocab)) {
    file.fail(*tokens, std::to_string(tokens->count) + " tokens", "at most the model's vocabulary, " + std::to_string(*vocab));
  }
  return *vocab;
}

inline std::optional<TokenId> gguf_token_id(const GgufFile& file, std::string_view key, std::int32_t vocab_size) {
  const auto id = file.find_int(key);
  if (!id) { return std::nullopt; }
  if (*id < 0 || *id >= vocab_size) {
    file.fail(*file.find(key), std::to_string(*id), "0 to " + std::to_string(vocab_size - 1) + ", a token of the vocabulary");
  }
  return static_cast<TokenId>(*id);
}

}  // namespace detail

/// \throws FileError that names key, value and rule; Unsupported for other architectures and for RoPE variants that nvl does not
///         compute
inline ModelConfig gguf_model_config(const GgufFile& file) {
  const auto architecture = file.find_string("general.architecture");
  if (!architecture) { raise(FileError(file.path(), "general.architecture is missing: must be given")); }
  if (*architecture != "llama" && *architecture != "qwen2" && *architecture != "qwen3") {
    raise(Unsupported(file.path() + ": general.architecture is " + detail::in_quotes(*architecture) +
                      "; nvl knows llama, qwen2 and qwen3"));
  }
  const detail::GgufArchitectureKeys keys(file, std::string(*architecture));
  if (keys.optional_int("expert_count", 0).value_or(0) > 0) {
    raise(Unsupported(file.path() + ": " + keys.name("expert_count") + " is set; nvl does not run mixtures of experts"));
  }
  ModelConfig config;
  config.architecture = *architecture;
  config.vocab_size = detail::gguf_vocab_size(file, keys);
  config.hidden_size = keys.required_int("embedding_length", 1);
  config.intermediate_size = keys.required_int("feed_forward_length", 1);
  config.num_layers = keys.required_int("block_count", 1);
  config.num_q_heads = keys.required_int("attention.head_count", 1);
  config.num_kv_heads = keys.optional_int("attention.head_count_kv", 1).value_or(config.num_q_heads);
  config.head_dim = keys.optional_int("attention.key_length", 1).value_or(config.hidden_size / config.num_q_heads);
  if (const auto value_length = keys.optional_int("attention.value_length", 1);
      value_length && *value_length != config.head_dim) {
    raise(Unsupported(file.path() + ": " + keys.name("attention.value_length") + " is " + std::to_string(*value_length) +
                      ", the keys' is " + std::to_string(config.head_dim) + "; nvl takes equal lengths only"));
  }
  config.max_position_embeddings = keys.required_int("context_length", 1);
  config.rms_norm_eps = keys.required_float("attention.layer_norm_rms_epsilon", 0, 1);
  config.sliding_window = keys.optional_int("attention.sliding_window", 0).value_or(0);
  config.rope = detail::gguf_rope(file, keys, config);
  config.rope.freq_factors = detail::gguf_freq_factors(file, config.head_dim);

  const auto has = [&](const char* name) { return file.find_tensor(name) != nullptr; };
  config.tie_word_embeddings = !has("output.weight");
  config.qkv_bias = has("blk.0.attn_q.bias");
  config.o_bias = has("blk.0.attn_output.bias");
  config.mlp_bias = has("blk.0.ffn_gate.bias");
  config.qk_norm = has("blk.0.attn_q_norm.weight");

  // End of turn and end of message end a generation like end of sequence does.
  for (const char* const key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = detail::gguf_token_id(file, key, config.vocab_size);
    if (id && std::find(config.eos_token_ids.begin(), config.eos_token_ids.end(), *id) == config.eos_token_ids.end()) {
      config.eos_token_ids.push_back(*id);
    }
  }
  config.bos_token_id = detail::gguf_token_id(file, "tokenizer.ggml.bos_token_id", config.vocab_size).value_or(-1);
  return detail::validated_config(std::move(config), file.path());
}

}  // namespace nvl::inline NVL_ABI
