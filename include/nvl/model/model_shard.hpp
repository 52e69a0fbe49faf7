#pragma once
/// What one rank computes of a model whose layers are split: some heads, some features of the MLP, a part of the vocabulary.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <cstdint>
#include <string>

namespace nvl::inline NVL_ABI {

struct ModelShard {
  Shard q_heads;
  Shard kv_heads;  // those that its query heads read; several ranks have the same one where there are more ranks than KV heads
  Shard intermediate;  // features of the MLP
  Shard vocab;         // rows of the embedding and of the head
};

/// The shard of the `index`-th of `count` ranks that share every layer. A KV head that several of them need is in each of them
/// (Shoeybi et al. 2019, arXiv:1909.08053; replicated KV heads as in Pope et al. 2022, arXiv:2211.05102).
/// \throws InvalidArgument where the model cannot be divided so
inline ModelShard shard_of(const ModelConfig& config, std::uint32_t index, std::uint32_t count) {
  const auto num = static_cast<std::int32_t>(count);
  NVL_EXPECTS(num >= 1 && config.num_q_heads % num == 0, "tensor_parallel_size", num,
              "a divisor of the model's " + std::to_string(config.num_q_heads) + " query heads");
  NVL_EXPECTS(config.intermediate_size % num == 0, "tensor_parallel_size", num,
              "a divisor of the MLP's width (" + std::to_string(config.intermediate_size) + ")");
  NVL_EXPECTS(config.num_kv_heads % num == 0 || num % config.num_kv_heads == 0, "tensor_parallel_size", num,
              "a divisor or a multiple of the model's " + std::to_string(config.num_kv_heads) + " KV heads");
  NVL_EXPECTS(config.vocab_size >= num, "tensor_parallel_size", num,
              "at most the vocabulary's " + std::to_string(config.vocab_size) + " tokens");
  return {.q_heads = slice_of(config.num_q_heads, index, count),
          .kv_heads = slice_of(config.num_kv_heads, index, count),
          .intermediate = slice_of(config.intermediate_size, index, count),
          .vocab = slice_of(config.vocab_size, index, count)};
}

/// The model as one rank sees it: with its heads and features only. Hidden states and ids of the vocabulary are those of the whole.
inline ModelConfig config_of(const ModelShard& shard, ModelConfig config) {
  config.num_q_heads = shard.q_heads.size();
  config.num_kv_heads = shard.kv_heads.size();
  config.intermediate_size = shard.intermediate.size();
  return config;
}

}  // namespace nvl::inline NVL_ABI
