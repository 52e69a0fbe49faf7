#pragma once
/// The weights of one rank, packed for its device: Q, K and V in one matrix, gate and up in another.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/host_tensor.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/weight_names.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <concepts>
#include <cstdint>
#include <functional>
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

  Weight embed;  // [vocab, hidden]
  std::vector<LayerWeights<Ops>> layers;
  Vector final_norm;              // [hidden]
  std::optional<Weight> lm_head;  // [vocab, hidden]; none: the embedding serves

  const Weight& head() const noexcept { return lm_head ? *lm_head : embed; }
};

/// Packs the weights of `config` for the device of `ops`.
/// \throws FileError or InvalidArgument that names a missing or misshapen tensor; Unsupported for more than one rank.
template <DeviceOps Ops, WeightSource Source, RankContext Context>
ModelWeights<Ops> load_weights(const ModelConfig& config, const Source& source, Ops& ops, const Context& context,
                               const LoadProgress& progress = {}) {
  namespace n = weight_names;
  if (context.world_size() != 1) {
    raise(Unsupported("this version loads whole weights: a ParallelStrategy of " + std::to_string(context.world_size()) +
                      " ranks needs sharded loading"));
  }
  using Tensors = std::vector<const HostTensor*>;
  const auto get = [&](const std::string& name) {
    const HostTensor* tensor = source.find(name);
    NVL_EXPECTS(tensor != nullptr, "weight " + name, "missing", "there: the configuration has it");
    return tensor;
  };
  const auto vector = [&](const std::string& name) { return ops.load_vector(*get(name)); };

  ModelWeights<Ops> weights;
  weights.embed = ops.load_weight(Tensors{get(std::string(n::embed))}, Tensors{});
  weights.layers.reserve(static_cast<std::size_t>(config.num_layers));
  for (std::int32_t layer = 0; layer < config.num_layers; ++layer) {
    const auto in_layer = [&](std::string_view name) { return n::of_layer(layer, name); };
    const auto all = [&](std::initializer_list<std::string_view> names, bool there) {
      Tensors tensors;
      if (there) {
        for (const std::string_view name : names) { tensors.push_back(get(in_layer(name))); }
      }
      return tensors;
    };
    LayerWeights<Ops>& w = weights.layers.emplace_back();
    w.attn_norm = vector(in_layer(n::attn_norm));
    w.qkv =
        ops.load_weight(all({n::q_proj, n::k_proj, n::v_proj}, true), all({n::q_bias, n::k_bias, n::v_bias}, config.qkv_bias));
    if (config.qk_norm) {
      w.q_norm = vector(in_layer(n::q_norm));
      w.k_norm = vector(in_layer(n::k_norm));
    }
    w.o = ops.load_weight(all({n::o_proj}, true), all({n::o_bias}, config.o_bias));
    w.mlp_norm = vector(in_layer(n::mlp_norm));
    w.gate_up = ops.load_weight(all({n::gate_proj, n::up_proj}, true), all({n::gate_bias, n::up_bias}, config.mlp_bias));
    w.down = ops.load_weight(all({n::down_proj}, true), all({n::down_bias}, config.mlp_bias));
    if (progress) { progress(static_cast<double>(layer + 1) / (config.num_layers + 1)); }
  }
  weights.final_norm = vector(std::string(n::final_norm));
  if (!config.tie_word_embeddings) { weights.lm_head = ops.load_weight(Tensors{get(std::string(n::lm_head))}, Tensors{}); }
  if (progress) { progress(1.0); }
  return weights;
}

}  // namespace nvl::inline NVL_ABI
