#pragma once
/// What processes that run one model must have alike, and what they settle on before they load it.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/core/xxhash.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/version.hpp>

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Named values, the same names in the same order on every rank.
class RankFacts {
 public:
  static constexpr std::size_t max_count = 64;
  using Digests = std::array<std::uint64_t, max_count>;

  template <class T>
  void add(std::string_view name, const T& value) {
    names_.emplace_back(name);
    values_.push_back(text_of(value));
    digests_.at(names_.size() - 1) = XXH3_64bits(values_.back().data(), values_.back().size());
  }

  const Digests& digests() const noexcept { return digests_; }

  /// Empty, or what another rank has not alike.
  std::string difference_to(const Digests& others) const {
    for (std::size_t i = 0; i < names_.size(); ++i) {
      if (digests_[i] != others[i]) { return "another " + names_[i] + " than rank 0, which has " + values_[i]; }
    }
    return digests_ == others ? "" : "another version of the program than rank 0";
  }

 private:
  template <class T>
  static std::string text_of(const T& value) {
    if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      return std::string(std::string_view(value));
    } else if constexpr (std::is_enum_v<T>) {
      return text_of(static_cast<std::underlying_type_t<T>>(value));
    } else if constexpr (std::is_arithmetic_v<T>) {
      std::array<char, 64> digits{};
      if constexpr (std::is_same_v<T, bool>) {
        return value ? "1" : "0";
      } else {
        return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr};  // as many as it takes
      }
    } else {
      std::string list = "[";
      for (const auto& element : value) { list += (list.size() > 1 ? ", " : "") + text_of(element); }
      return list + "]";
    }
  }

  std::vector<std::string> names_, values_;
  Digests digests_{};
};

/// What every rank must have alike. `limits` without the number of blocks, on which they agree later.
inline RankFacts facts_of(const ModelConfig& config, const StepLimits& limits, DType element, std::uint32_t world_size,
                          const RankPlace& place) {
  RankFacts facts;
  facts.add("version of nvl", std::array{NVL_VERSION_MAJOR, NVL_VERSION_MINOR, NVL_VERSION_PATCH});
  facts.add("world size", world_size);
  facts.add("tensor_parallel_size", place.num_slices);
  facts.add("pipeline_parallel_size", place.num_stages);
  facts.add("context_parallel_size", place.num_shares);
  facts.add("element type", info(element).name);
  // A member more, and this does not compile.
  const auto& [architecture, vocab_size, hidden_size, intermediate_size, num_layers, num_q_heads, num_kv_heads, head_dim,
               max_positions, rms_norm_eps, rope, activation, sliding_window, first_windowed_layer, tie_word_embeddings, qkv_bias,
               o_bias, mlp_bias, qk_norm, dtype, eos_token_ids, bos_token_id] = config;
  facts.add("architecture", architecture);
  facts.add("vocab_size", vocab_size);
  facts.add("hidden_size", hidden_size);
  facts.add("intermediate_size", intermediate_size);
  facts.add("num_hidden_layers", num_layers);
  facts.add("num_attention_heads", num_q_heads);
  facts.add("num_key_value_heads", num_kv_heads);
  facts.add("head_dim", head_dim);
  facts.add("max_position_embeddings", max_positions);
  facts.add("rms_norm_eps", rms_norm_eps);
  facts.add("activation", activation);
  facts.add("sliding_window", sliding_window);
  facts.add("max_window_layers", first_windowed_layer);
  facts.add("tie_word_embeddings", tie_word_embeddings);
  facts.add("qkv_bias", qkv_bias);
  facts.add("o_bias", o_bias);
  facts.add("mlp_bias", mlp_bias);
  facts.add("qk_norm", qk_norm);
  facts.add("dtype of the checkpoint", dtype);
  facts.add("eos_token_id", eos_token_ids);
  facts.add("bos_token_id", bos_token_id);
  const auto& [theta, layout, scaling, factor, low_freq, high_freq, original_max, beta_fast, beta_slow, attention_factor,
               truncate, freq_factors] = rope;
  facts.add("rope_theta", theta);
  facts.add("RoPE layout", layout);
  facts.add("rope_scaling", scaling);
  facts.add("rope_scaling.factor", factor);
  facts.add("rope_scaling.low_freq_factor", low_freq);
  facts.add("rope_scaling.high_freq_factor", high_freq);
  facts.add("rope_scaling.original_max_position_embeddings", original_max);
  facts.add("rope_scaling.beta_fast", beta_fast);
  facts.add("rope_scaling.beta_slow", beta_slow);
  facts.add("rope_scaling.attention_factor", attention_factor);
  facts.add("rope_scaling.truncate", truncate);
  facts.add("list of rope frequency factors", freq_factors);
  const auto& [num_blocks, num_host_blocks, block_size, max_num_tokens, max_num_seqs, max_model_len, max_logit_bias, max_banned,
               max_logprobs, num_in_flight] = limits;
  facts.add("block size", block_size);
  facts.add("max_num_batched_tokens", max_num_tokens);
  facts.add("max_num_seqs", max_num_seqs);
  facts.add("max_model_len", max_model_len);
  facts.add("limit of logit biases", max_logit_bias);
  facts.add("limit of stop tokens", max_banned);
  facts.add("limit of logprobs", max_logprobs);
  facts.add("number of steps in flight", num_in_flight);
  static_cast<void>(num_blocks);
  static_cast<void>(num_host_blocks);
  return facts;
}

/// What a process says of itself at the start.
struct RankHello {
  RankFacts::Digests digests{};
  std::int64_t num_blocks = 0, num_host_blocks = 0;  // that it has room for
  std::uint32_t num_ranks = 0;                       // that it drives
  std::uint32_t has_last_stage = 0;
};
static_assert(std::has_unique_object_representations_v<RankHello>);

/// What all settle on.
struct RankWelcome {
  std::int64_t num_blocks = 0, num_host_blocks = 0;
};
static_assert(std::has_unique_object_representations_v<RankWelcome>);

}  // namespace nvl::inline NVL_ABI
