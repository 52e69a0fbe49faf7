#pragma once
/// One rank's shard of the weights, packed for its device: Q, K and V in one matrix, gate and up in another.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/model/tensor_slices.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Where weights come from: a checkpoint, or a generator. `find` takes a canonical name (core/weight_names.hpp) and returns
/// nullptr for a weight that it does not have. The tensor stays valid while the source lives.
template <class S>
concept WeightSource = requires(const S& source, std::string_view canonical_name) {
  { source.find(canonical_name) } -> std::convertible_to<const HostTensor*>;
};

/// Called while weights load, with the share that is done, 0 to 1.
using LoadProgress = std::function<void(double)>;

template <DeviceOps Ops>
struct LayerWeights {
  using Weight = typename Ops::Weight;
  using Vector = typename Ops::Vector;

  Vector attn_norm;              // [hidden]
  Weight qkv;                    // [q_size + 2 kv_size, hidden]
  std::optional<Vector> q_norm;  // [head_dim]
  std::optional<Vector> k_norm;  // [head_dim]
  Weight o;                      // [hidden, q_size]
  Vector mlp_norm;               // [hidden]
  Weight gate_up;                // [2 intermediate, hidden]
  Weight down;                   // [hidden, intermediate]
};

template <DeviceOps Ops>
struct ModelWeights {
  using Weight = typename Ops::Weight;
  using Vector = typename Ops::Vector;

  Weight embed;  // [vocab, hidden] of the first stage, and of the last if it is the head
  std::vector<LayerWeights<Ops>> layers;
  Vector final_norm;              // [hidden] of the last stage
  std::optional<Weight> lm_head;  // [vocab, hidden]; none: the embedding serves

  const Weight& head() const noexcept { return lm_head ? *lm_head : embed; }
};

/// Packs one rank's shard of the weights of `config` for the device of `ops`: heads and MLP features by output for the matrices
/// that a row enters, by input for those whose results are added up, rows of the vocabulary for embedding and head.
/// Layers are those of its stage; the first stage has the embedding, the last one the norm and the head after the layers.
/// \param slices what was cut lives there; it outlives ops.finish_loading()
/// \throws FileError or InvalidArgument that names a missing or misshapen tensor, or one that cannot be cut so
template <DeviceOps Ops, WeightSource Source>
ModelWeights<Ops> load_weights(const ModelConfig& config, const RankPlace& place, const Source& source, Ops& ops,
                               TensorSlices& slices, const LoadProgress& progress = {}) {
  namespace n = weight_names;
  const ModelShard shard = shard_of(config, place);
  using Tensors = std::vector<const HostTensor*>;
  const auto find = [&](const std::string& name) -> const HostTensor& {
    const HostTensor* tensor = source.find(name);
    NVL_EXPECTS(tensor != nullptr, "weight " + name, "missing", "there: the configuration has it");
    return *tensor;
  };
  const auto vector = [&](const std::string& name) { return ops.load_vector(find(name)); };
  const auto heads = [&](Shard of_heads) { return Shard{of_heads.begin * config.head_dim, of_heads.end * config.head_dim}; };
  const Shard q = heads(shard.q_heads), kv = heads(shard.kv_heads), mlp = shard.intermediate;
  const auto vocabulary = [&](std::string_view name) {
    return ops.load_weight(Tensors{slices.rows(find(std::string(name)), shard.vocab)}, Tensors{});
  };

  ModelWeights<Ops> weights;
  const bool has_tied_head = place.is_last_stage() && config.tie_word_embeddings;
  if (place.is_first_stage() || has_tied_head) { weights.embed = vocabulary(n::embed); }
  weights.layers.reserve(static_cast<std::size_t>(shard.layers.size()));
  for (std::int32_t layer = shard.layers.begin; layer < shard.layers.end; ++layer) {
    const auto in_layer = [&](std::string_view name) { return n::of_layer(layer, name); };
    struct Part {
      std::string_view name;
      Shard rows;
    };
    const auto rows = [&](std::initializer_list<Part> parts, bool there = true) {
      Tensors tensors;
      if (there) {
        for (const Part& part : parts) { tensors.push_back(slices.rows(find(in_layer(part.name)), part.rows)); }
      }
      return tensors;
    };
    // A bias is added once, by the first of the ranks whose results are added up.
    const auto columns = [&](std::string_view name, Shard wanted, std::string_view bias, bool has_bias) {
      const bool adds_bias = has_bias && wanted.begin == 0;
      return ops.load_weight(Tensors{slices.columns(find(in_layer(name)), wanted)},
                             adds_bias ? Tensors{&find(in_layer(bias))} : Tensors{});
    };
    LayerWeights<Ops>& w = weights.layers.emplace_back();
    w.attn_norm = vector(in_layer(n::attn_norm));
    w.qkv = ops.load_weight(rows({{n::q_proj, q}, {n::k_proj, kv}, {n::v_proj, kv}}),
                            rows({{n::q_bias, q}, {n::k_bias, kv}, {n::v_bias, kv}}, config.qkv_bias));
    if (config.qk_norm) {
      w.q_norm = vector(in_layer(n::q_norm));
      w.k_norm = vector(in_layer(n::k_norm));
    }
    w.o = columns(n::o_proj, q, n::o_bias, config.o_bias);
    w.mlp_norm = vector(in_layer(n::mlp_norm));
    w.gate_up = ops.load_weight(rows({{n::gate_proj, mlp}, {n::up_proj, mlp}}),
                                rows({{n::gate_bias, mlp}, {n::up_bias, mlp}}, config.mlp_bias));
    w.down = columns(n::down_proj, mlp, n::down_bias, config.mlp_bias);
    if (progress) { progress(static_cast<double>(layer - shard.layers.begin + 1) / (shard.layers.size() + 1)); }
  }
  if (place.is_last_stage()) { weights.final_norm = vector(std::string(n::final_norm)); }
  if (place.is_last_stage() && !config.tie_word_embeddings) { weights.lm_head = vocabulary(n::lm_head); }
  if (progress) { progress(1.0); }
  return weights;
}

}  // namespace nvl::inline NVL_ABI
