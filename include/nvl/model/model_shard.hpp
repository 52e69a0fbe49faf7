#pragma once
/// What one rank computes of a model: some layers, and of these some heads, some features of the MLP, a part of the vocabulary.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace nvl::inline NVL_ABI {

/// Where a rank stands: it has one slice of the layers of one stage, and one share of the tokens.
struct RankPlace {
  std::uint32_t slice_index = 0, num_slices = 1;
  std::uint32_t stage_index = 0, num_stages = 1;
  std::uint32_t share_index = 0, num_shares = 1;

  bool is_first_stage() const noexcept { return stage_index == 0; }
  bool is_last_stage() const noexcept { return stage_index + 1 == num_stages; }
};

template <RankContext Context>
RankPlace place_of(const Context& context) noexcept {
  RankPlace place{.slice_index = context.slice_index(),
                  .num_slices = context.num_slices(),
                  .stage_index = context.stage_index(),
                  .num_stages = context.num_stages()};
  if constexpr (TokenSharingContext<Context>) {
    place.share_index = context.share_index();
    place.num_shares = context.num_shares();
  }
  return place;
}

struct ModelShard {
  Shard layers;
  Shard q_heads;
  Shard kv_heads;  // those that its query heads read; several ranks have the same one where there are more ranks than KV heads
  Shard intermediate;  // features of the MLP
  Shard vocab;         // rows of the embedding, which the first stage has, and of the head, which the last one has
};

/// The layers of a stage, so that the slowest is as fast as can be. The last one has the head too, which costs as much as so many
/// layers as it has weights.
/// \throws InvalidArgument if there are more stages than layers
inline Shard stage_layers(const ModelConfig& config, std::uint32_t index, std::uint32_t count) {
  const std::int32_t n = config.num_layers;
  const auto num = static_cast<std::int32_t>(count);
  NVL_EXPECTS(num >= 1 && num <= n, "pipeline_parallel_size", num, "1 to the model's " + std::to_string(n) + " layers");
  if (num == 1) { return {0, n}; }
  const double hidden = config.hidden_size;
  const double layer = hidden * (config.qkv_size() + config.q_size() + 3.0 * config.intermediate_size);
  const double head = hidden * config.vocab_size / layer;  // [layers]
  std::int32_t last = 1;
  double best = 0;
  for (std::int32_t l = 1; l <= n - (num - 1); ++l) {
    const double slowest = std::max<double>(ceil_div(n - l, num - 1), l + head);
    if (l == 1 || slowest < best) {
      best = slowest;
      last = l;
    }
  }
  return index + 1 == count ? Shard{n - last, n} : slice_of(n - last, index, count - 1);
}

/// The shard of the rank at `place`. A KV head that several ranks need is in each of them
/// (Shoeybi et al. 2019, arXiv:1909.08053; replicated KV heads as in Pope et al. 2022, arXiv:2211.05102).
/// \throws InvalidArgument where the model cannot be divided so
inline ModelShard shard_of(const ModelConfig& config, const RankPlace& place) {
  const std::uint32_t index = place.slice_index, count = place.num_slices;
  const auto num = static_cast<std::int32_t>(count);
  NVL_EXPECTS(num >= 1 && config.num_q_heads % num == 0, "tensor_parallel_size", num,
              "a divisor of the model's " + std::to_string(config.num_q_heads) + " query heads");
  NVL_EXPECTS(config.intermediate_size % num == 0, "tensor_parallel_size", num,
              "a divisor of the MLP's width (" + std::to_string(config.intermediate_size) + ")");
  NVL_EXPECTS(config.num_kv_heads % num == 0 || num % config.num_kv_heads == 0, "tensor_parallel_size", num,
              "a divisor or a multiple of the model's " + std::to_string(config.num_kv_heads) + " KV heads");
  NVL_EXPECTS(config.vocab_size >= num, "tensor_parallel_size", num,
              "at most the vocabulary's " + std::to_string(config.vocab_size) + " tokens");
  NVL_EXPECTS(place.num_shares == 1 || !config.has_windowed_layers(), "context_parallel_size", place.num_shares,
              "1 for a model with a sliding window (" + std::to_string(config.sliding_window) +
                  " tokens): a query sees keys of few ranks only");
  return {.layers = stage_layers(config, place.stage_index, place.num_stages),
          .q_heads = slice_of(config.num_q_heads, index, count),
          .kv_heads = slice_of(config.num_kv_heads, index, count),
          .intermediate = slice_of(config.intermediate_size, index, count),
          .vocab = slice_of(config.vocab_size, index, count)};
}

/// The model as one rank sees it: with its layers, heads and features only. Hidden states and ids of the vocabulary are those of
/// the whole.
inline ModelConfig config_of(const ModelShard& shard, ModelConfig config) {
  config.num_layers = shard.layers.size();
  config.first_windowed_layer = std::max(config.first_windowed_layer - shard.layers.begin, 0);
  config.num_q_heads = shard.q_heads.size();
  config.num_kv_heads = shard.kv_heads.size();
  config.intermediate_size = shard.intermediate.size();
  return config;
}

}  // namespace nvl::inline NVL_ABI
