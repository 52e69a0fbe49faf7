#pragma once
/// Hyper-parameters of one decoder-only transformer, whatever file they came from.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>

#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// How RoPE frequencies are stretched beyond the trained context.
/// linear: Chen et al. 2023, arXiv:2306.15595. llama3: the Llama 3.1 release. yarn: Peng et al. 2023, arXiv:2309.00071.
enum class RopeScaling : std::uint8_t { none, linear, llama3, yarn };

/// Which elements of a head rotate together: half = (i, i + d/2), as Hugging Face stores Q and K;
/// interleaved = (2i, 2i+1), as GGUF files of the llama architecture store them.
enum class RotaryLayout : std::uint8_t { half, interleaved };

/// Activation of the gated MLP: down(act(gate(x)) * up(x)).
enum class Activation : std::uint8_t { silu, gelu_tanh };

struct RopeConfig {
  double theta = 10000.0;
  RotaryLayout layout = RotaryLayout::half;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;                      // linear, llama3, yarn
  double low_freq_factor = 1.0;             // llama3
  double high_freq_factor = 4.0;            // llama3
  std::int32_t original_max_positions = 0;  // [tokens] llama3, yarn: the context that the model was trained on
  double beta_fast = 32.0;                  // yarn
  double beta_slow = 1.0;                   // yarn
  double attention_factor = 0.0;            // yarn: multiplies cos and sin; 0 = 0.1 ln(factor) + 1
  bool truncate = true;                     // yarn: round the correction range to whole dimensions
  std::vector<float> freq_factors{};        // [head_dim / 2] each inverse frequency is divided by its factor, after all
                                            // scaling above; empty = none. GGUF files store llama3 scaling like this.

  bool operator==(const RopeConfig&) const = default;
};

struct ModelConfig {
  std::string architecture;     // "llama", "mistral", "qwen2", "qwen3"
  std::int32_t vocab_size = 0;  // rows of the embedding
  std::int32_t hidden_size = 0;
  std::int32_t intermediate_size = 0;  // width of the MLP
  std::int32_t num_layers = 0;
  std::int32_t num_q_heads = 0;
  std::int32_t num_kv_heads = 0;             // divides num_q_heads
  std::int32_t head_dim = 0;                 // even; need not be hidden_size / num_q_heads
  std::int32_t max_position_embeddings = 0;  // [tokens] the longest context the model serves
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  Activation activation = Activation::silu;
  std::int32_t sliding_window = 0;        // [tokens] a query sees itself and window - 1 tokens before; 0 = all
  std::int32_t first_windowed_layer = 0;  // layers before this one see all tokens (Qwen2's max_window_layers)
  bool tie_word_embeddings = false;       // the output projection is the embedding
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;                // RMSNorm over head_dim of each Q and K head, before RoPE
  DType dtype = DType::float32;        // what the checkpoint is mostly stored in; "auto" picks from it
  std::vector<TokenId> eos_token_ids;  // any of them ends a sequence
  TokenId bos_token_id = -1;           // -1: none

  bool operator==(const ModelConfig&) const = default;

  std::int32_t q_size() const noexcept { return num_q_heads * head_dim; }
  std::int32_t kv_size() const noexcept { return num_kv_heads * head_dim; }
  std::int32_t qkv_size() const noexcept { return q_size() + 2 * kv_size(); }
  bool has_windowed_layers() const noexcept { return sliding_window > 0 && first_windowed_layer < num_layers; }
  bool has_full_layers() const noexcept { return sliding_window == 0 || first_windowed_layer > 0; }
  /// [tokens] of layer `layer`'s window, 0 = all
  std::int32_t window(std::int32_t layer) const noexcept { return layer >= first_windowed_layer ? sliding_window : 0; }
};

/// The element type of activations and KV for "auto" on a CUDA device: that of a 16-bit checkpoint, and fp16 for every other:
/// quantised weights and float32 keep more of their digits in it than in bf16.
inline DType auto_cuda_dtype(const ModelConfig& config) noexcept {
  return config.dtype == DType::bfloat16 ? DType::bfloat16 : DType::float16;
}

/// Throws InvalidArgument unless every number is in range and the heads divide. Readers call it after mapping a file, and
/// Engine calls it again, so a host that fills the struct by hand gets the same messages.
inline void validate(const ModelConfig& c) {
  constexpr std::int32_t max_dim = 1 << 20;
  NVL_EXPECTS(c.vocab_size > 0 && c.vocab_size <= (1 << 24), "vocab_size", c.vocab_size, "1 to 2^24");
  NVL_EXPECTS(c.hidden_size > 0 && c.hidden_size <= max_dim, "hidden_size", c.hidden_size, "1 to 2^20");
  NVL_EXPECTS(c.intermediate_size > 0 && c.intermediate_size <= max_dim, "intermediate_size", c.intermediate_size, "1 to 2^20");
  NVL_EXPECTS(c.num_layers > 0 && c.num_layers <= 1024, "num_hidden_layers", c.num_layers, "1 to 1024");
  NVL_EXPECTS(c.num_q_heads > 0 && c.num_q_heads <= 4096, "num_attention_heads", c.num_q_heads, "1 to 4096");
  NVL_EXPECTS(c.num_kv_heads > 0 && c.num_q_heads % c.num_kv_heads == 0, "num_key_value_heads", c.num_kv_heads,
              "a positive divisor of num_attention_heads (" + std::to_string(c.num_q_heads) + ")");
  NVL_EXPECTS(c.head_dim > 0 && c.head_dim <= 1024 && c.head_dim % 2 == 0, "head_dim", c.head_dim, "even and 2 to 1024");
  NVL_EXPECTS(c.max_position_embeddings > 0 && c.max_position_embeddings <= (1 << 26), "max_position_embeddings",
              c.max_position_embeddings, "1 to 2^26");
  NVL_EXPECTS(std::isfinite(c.rms_norm_eps) && c.rms_norm_eps >= 0 && c.rms_norm_eps < 1, "rms_norm_eps", c.rms_norm_eps,
              "in [0, 1)");
  NVL_EXPECTS(c.sliding_window >= 0, "sliding_window", c.sliding_window, "0 (off) or positive");
  NVL_EXPECTS(c.first_windowed_layer >= 0, "max_window_layers", c.first_windowed_layer, "not negative");
  const RopeConfig& r = c.rope;
  NVL_EXPECTS(std::isfinite(r.theta) && r.theta > 1, "rope_theta", r.theta, "finite and above 1");
  if (r.scaling != RopeScaling::none) {
    NVL_EXPECTS(std::isfinite(r.factor) && r.factor >= 1 && r.factor <= 1e6, "rope_scaling.factor", r.factor, "in [1, 1e6]");
  }
  if (r.scaling == RopeScaling::llama3 || r.scaling == RopeScaling::yarn) {
    NVL_EXPECTS(r.original_max_positions > 0, "rope_scaling.original_max_position_embeddings", r.original_max_positions,
                "positive");
  }
  if (r.scaling == RopeScaling::llama3) {
    NVL_EXPECTS(std::isfinite(r.low_freq_factor) && r.low_freq_factor > 0, "rope_scaling.low_freq_factor", r.low_freq_factor,
                "positive");
    NVL_EXPECTS(std::isfinite(r.high_freq_factor) && r.high_freq_factor > r.low_freq_factor, "rope_scaling.high_freq_factor",
                r.high_freq_factor, "above low_freq_factor");
  }
  if (r.scaling == RopeScaling::yarn) {
    NVL_EXPECTS(std::isfinite(r.beta_fast) && std::isfinite(r.beta_slow) && r.beta_fast > r.beta_slow && r.beta_slow > 0,
                "rope_scaling.beta_fast", r.beta_fast, "above beta_slow, and both positive");
    NVL_EXPECTS(std::isfinite(r.attention_factor) && r.attention_factor >= 0, "rope_scaling.attention_factor", r.attention_factor,
                "not negative");
  }
  NVL_EXPECTS(r.freq_factors.empty() || std::ssize(r.freq_factors) == c.head_dim / 2, "number of rope frequency factors",
              r.freq_factors.size(), "0 or head_dim / 2 (" + std::to_string(c.head_dim / 2) + ")");
  for (const float f : r.freq_factors) {
    NVL_EXPECTS(std::isfinite(f) && f > 0, "rope frequency factor", f, "finite and positive");
  }
  for (const TokenId id : c.eos_token_ids) { NVL_EXPECTS(id >= 0 && id < c.vocab_size, "eos_token_id", id, "below vocab_size"); }
}

}  // namespace nvl::inline NVL_ABI
