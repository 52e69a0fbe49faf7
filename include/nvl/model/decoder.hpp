#pragma once
/// The one decoder-only transformer: Llama, Mistral, Qwen2 and Qwen3 are configurations of it.
///
///   residual = embed(ids);  x = norm(residual)
///   each layer:  qkv = x Wqkv;  (QK-norm) RoPE, store K and V;  a = attention;  x = a Wo
///                residual += x;  x = norm(residual);  x = (act(x Wgate) * x Wup) Wdown;  residual += x;  x = norm(residual)
///   logits = x Whead, for the rows that are sampled
///
/// After the last layer's attention only sampled rows go on: nothing reads the others.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/context_attention.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/model/weights.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Scratch of one forward pass; every pointer is to the device's memory. Rows are contiguous. T = tokens that the rank
/// computes, R = sampled rows of the step; sizes are the rank's. What has T rows has no fewer than R.
/// \tparam R type of the residual
template <class T, class R = T>
struct Activations {
  R* residual = nullptr;           // [T, hidden] sum of all layers so far
  T* hidden = nullptr;             // [T, hidden] input of the next projection, and output of the last
  T* qkv = nullptr;                // [T, qkv_size]
  T* attention = nullptr;          // [T, q_size]
  T* gate_up = nullptr;            // [T, 2 intermediate]
  T* activated = nullptr;          // [T, intermediate]
  R* sampled_residual = nullptr;   // [R, hidden] rows of the last layer that go on
  T* sampled_attention = nullptr;  // [R, q_size] likewise
  T* all_sampled = nullptr;        // [ranks that share tokens x R, hidden] last hidden states, if there are such ranks
  float* logits = nullptr;         // [R, vocab]
};

template <AttentionBackend Attention, RankContext Context>
class Decoder {
 public:
  using Element = typename Attention::Element;
  using Ops = typename Attention::Ops;
  using LayerAttention = AttentionOn<Attention, Context>;
  using Scratch = Activations<Element, Residual<Ops>>;

  /// All of them outlive the decoder.
  /// \param config of the rank (config_of)
  Decoder(const ModelConfig& config, const ModelWeights<Ops>& weights, const typename Ops::Rope& rope, Ops& ops,
          LayerAttention& attention, Context& context)
      : config_(config),
        weights_(weights),
        rope_(rope),
        ops_(ops),
        attention_(attention),
        context_(context) {}

  /// Computes the step's tokens, stores their K and V in `kv` ([num_layers] x KvLayout) and leaves the logits of the sampled
  /// rows in `a.logits`; of a stage before the last, the residual goes to the next one instead. A rank that shares tokens
  /// computes its share, and the logits of all. Asynchronous where the device is.
  void forward(const StepInput& whole, const KvLayout& layout, Element* kv, const Scratch& a) {
    const StepInput& in = plan(whole);
    const std::int32_t num_tokens = in.num_tokens();
    const float eps = static_cast<float>(config_.rms_norm_eps);
    begin(in, a);
    ops_.rms_norm(a.hidden, a.residual, weights_.layers.front().attn_norm, num_tokens, eps);

    std::int32_t rows = num_tokens;
    Residual<Ops>* residual = a.residual;
    const Element* attended = a.attention;
    for (std::int32_t layer = 0; layer < config_.num_layers; ++layer) {
      const LayerWeights<Ops>& w = weights_.layers[static_cast<std::size_t>(layer)];
      const bool is_end_of_stage = layer + 1 == config_.num_layers;
      const bool is_last = is_end_of_stage && is_last_stage();
      attend(in, layout, kv + layer * layout.layer_elements(), a, w, config_.window(layer));

      if (is_last) {
        if (whole.num_samples() == 0) { return; }
        rows = in.num_samples();
        ops_.gather_rows(a.sampled_residual, a.residual, in.sample_rows, config_.hidden_size);
        ops_.gather_rows(a.sampled_attention, a.attention, in.sample_rows, config_.q_size());
        residual = a.sampled_residual;
        attended = a.sampled_attention;
      }
      ops_.linear(a.hidden, attended, w.o, rows);
      context_.all_reduce_sum(a.hidden, std::int64_t{rows} * config_.hidden_size);
      ops_.add_rms_norm(a.hidden, residual, a.hidden, w.mlp_norm, rows, eps);
      ops_.linear(a.gate_up, a.hidden, w.gate_up, rows);
      ops_.gated_activation(a.activated, a.gate_up, rows, config_.intermediate_size, config_.activation);
      ops_.linear(a.hidden, a.activated, w.down, rows);
      context_.all_reduce_sum(a.hidden, std::int64_t{rows} * config_.hidden_size);
      if (is_end_of_stage && !is_last) {
        // Its norm is the next stage's: what is wanted is the residual.
        ops_.add_rms_norm(a.hidden, residual, a.hidden, w.attn_norm, rows, eps);
        send_residual(a, num_tokens);
        return;
      }
      const auto& next_norm = is_last ? weights_.final_norm : weights_.layers[static_cast<std::size_t>(layer) + 1].attn_norm;
      ops_.add_rms_norm(a.hidden, residual, a.hidden, next_norm, rows, eps);
    }
    gather_samples(a);
    ops_.logits(a.logits, a.hidden, weights_.head(), whole.num_samples());
  }

 private:
  bool is_last_stage() const noexcept { return context_.stage_index() + 1 == context_.num_stages(); }

  /// What this rank computes of the step.
  const StepInput& plan(const StepInput& whole) {
    if constexpr (TokenSharingContext<Context>) {
      return attention_.plan(whole).mine();
    } else {
      attention_.plan(metadata_of(whole));
      return whole;
    }
  }

  /// The sampled rows of all ranks that share tokens, in the order of the step, so that each rank knows every token.
  void gather_samples([[maybe_unused]] const Scratch& a) {
    if constexpr (TokenSharingContext<Context>) {
      const SharedStep::Samples& samples = attention_.step().samples();
      context_.gather_shares(a.hidden, a.all_sampled, std::int64_t{samples.max_rows} * config_.hidden_size);
      ops_.gather_rows(a.hidden, a.all_sampled, samples.sources, config_.hidden_size);
    }
  }

  /// The residual before this stage's layers.
  void begin(const StepInput& in, const Scratch& a) {
    if constexpr (StagedContext<Context, Residual<Ops>>) {
      if (context_.stage_index() > 0) {
        context_.recv_previous(a.residual, std::int64_t{in.num_tokens()} * config_.hidden_size);
        return;
      }
    }
    if constexpr (WholeLayers<Context>) {
      ops_.embed(a.residual, in.token_ids, weights_.embed);
    } else {
      ops_.embed_shard(a.residual, in.token_ids, weights_.embed,
                       slice_of(config_.vocab_size, context_.slice_index(), context_.num_slices()).begin);
      context_.all_reduce_sum(a.residual, std::int64_t{in.num_tokens()} * config_.hidden_size);
    }
  }

  void send_residual([[maybe_unused]] const Scratch& a, [[maybe_unused]] std::int32_t num_tokens) {
    if constexpr (StagedContext<Context, Residual<Ops>>) {
      context_.send_next(a.residual, std::int64_t{num_tokens} * config_.hidden_size);
    }
  }

  /// a.hidden -> a.attention, and K and V into their slots.
  void attend(const StepInput& in, const KvLayout& layout, Element* kv, const Scratch& a, const LayerWeights<Ops>& w,
              std::int32_t window) {
    ops_.linear(a.qkv, a.hidden, w.qkv, in.num_tokens());
    QkNormRopeStore<Ops> store{
        .qkv = a.qkv,
        .positions = in.positions,
        .slot_mapping = in.slot_mapping,
        .num_q_heads = config_.num_q_heads,
        .q_norm = w.q_norm ? &*w.q_norm : nullptr,
        .k_norm = w.k_norm ? &*w.k_norm : nullptr,
        .eps = static_cast<float>(config_.rms_norm_eps),
        .rope = &rope_,
        .layout = layout,
        .kv = kv,
    };
    const AttentionCall<Element> call{.out = a.attention,
                                      .q = a.qkv,
                                      .q_row_stride = config_.qkv_size(),
                                      .kv = kv,
                                      .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                                      .window = window};
    if constexpr (TokenSharingContext<Context>) {
      store.layout = attention_.part_layout();
      store.kv = attention_.part();
      ops_.qk_norm_rope_store(store);
      attention_.run(call, kv);
    } else {
      ops_.qk_norm_rope_store(store);
      attention_.run(call);
    }
  }

  const ModelConfig& config_;
  const ModelWeights<Ops>& weights_;
  const typename Ops::Rope& rope_;
  Ops& ops_;
  LayerAttention& attention_;
  Context& context_;
};

}  // namespace nvl::inline NVL_ABI
