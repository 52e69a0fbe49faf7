#pragma once
/// Owns one rank's weights, KV bytes and scratch, and executes steps: block copies, the decoder, the sampler.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/core/step.hpp>
#include <nvl/model/decoder.hpp>
#include <nvl/model/weights.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// Sizes fixed for the life of a runner; every buffer is allocated from them before the first step.
struct RunnerShape {
  std::int64_t num_blocks = 0;       // of the KV cache
  std::int32_t block_size = 0;       // [tokens]
  std::int32_t max_num_tokens = 0;   // [tokens] of one step
  std::int32_t max_num_samples = 0;  // sampled rows of one step
  std::int32_t max_model_len = 0;    // [tokens] of one sequence
};

template <AttentionBackend Attention, ParallelStrategy Parallel>
class ModelRunner {
 public:
  using Element = typename Attention::Element;
  using Ops = typename Attention::Ops;
  using Device = typename Ops::Device;
  using Buffer = typename Device::Buffer;
  using Context = typename Parallel::Context;

  /// Loads and packs the weights and allocates everything. `config`, `device` and `context` outlive the runner; `source` need not.
  template <WeightSource Source>
  ModelRunner(const ModelConfig& config, const Source& source, const RunnerShape& shape, Device& device, Context& context,
              const LoadProgress& progress = {})
      : config_(config),
        shape_(shape),
        layout_{.num_blocks = shape.num_blocks,
                .block_size = shape.block_size,
                .num_kv_heads = context.slice(config.num_kv_heads).size(),
                .head_dim = config.head_dim},
        ops_(device),
        weights_(load_weights(config, source, ops_, context, progress)),
        rope_(config.rope, config.head_dim, shape.max_model_len),
        kv_(device, elements_to_bytes(layout_.layer_elements() * config.num_layers)),
        attention_(AttentionShape{.num_q_heads = context.slice(config.num_q_heads).size(), .kv = layout_}, ops_),
        decoder_(config_, weights_, rope_, ops_, attention_, context) {
    allocate_activations(device, context);
  }

  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  /// Starts a step. On an asynchronous device it returns before the step is done; `in` stays valid until `collect`.
  void launch(const StepInput& in) {
    forward(in);
    output_.step = in.step;
    ops_.sample(in, activations_.logits, config_.vocab_size, output_);
  }

  /// Waits for the launched step and returns what it sampled; valid until the next `launch`.
  const StepOutput& collect() { return output_; }

  /// Runs a step without sampling and returns the logits of its sampled rows, [R, vocab], valid until the next step.
  std::span<const float> logits(const StepInput& in) {
    forward(in);
    return {activations_.logits, static_cast<std::size_t>(in.num_samples()) * static_cast<std::size_t>(config_.vocab_size)};
  }

  const KvLayout& kv_layout() const noexcept { return layout_; }
  /// [num_layers] x KvLayout, device memory. For tests and for moving blocks.
  Element* kv() noexcept { return kv_.template as<Element>(); }

 private:
  void forward(const StepInput& in) {
    NVL_EXPECTS(in.num_tokens() <= shape_.max_num_tokens, "tokens of a step", in.num_tokens(),
                "at most " + std::to_string(shape_.max_num_tokens) + ", as planned");
    NVL_EXPECTS(in.num_samples() <= shape_.max_num_samples, "sampled rows of a step", in.num_samples(),
                "at most " + std::to_string(shape_.max_num_samples) + ", as planned");
    if (!in.copies.empty()) { ops_.copy_blocks(kv(), layout_, config_.num_layers, in.copies); }
    if (in.num_tokens() > 0) { decoder_.forward(in, layout_, kv(), activations_); }
  }

  static constexpr std::size_t elements_to_bytes(std::int64_t elements) {
    return static_cast<std::size_t>(elements) * sizeof(Element);
  }

  void allocate_activations(Device& device, const Context& context) {
    const std::int64_t tokens = shape_.max_num_tokens;
    const std::int64_t samples = shape_.max_num_samples;
    const std::int64_t q_size = std::int64_t{context.slice(config_.num_q_heads).size()} * config_.head_dim;
    const std::int64_t kv_size = std::int64_t{layout_.num_kv_heads} * config_.head_dim;
    const std::int64_t intermediate = context.slice(config_.intermediate_size).size();
    constexpr std::int64_t alignment = 64 / sizeof(Element);
    std::int64_t total = 0;
    const auto reserve = [&](std::int64_t elements) {
      const std::int64_t offset = total;
      total += ceil_div(elements, alignment) * alignment;
      return offset;
    };
    const std::int64_t residual = reserve(tokens * config_.hidden_size);
    const std::int64_t hidden = reserve(tokens * config_.hidden_size);
    const std::int64_t qkv = reserve(tokens * (q_size + 2 * kv_size));
    const std::int64_t attention = reserve(tokens * q_size);
    const std::int64_t gate_up = reserve(tokens * 2 * intermediate);
    const std::int64_t activated = reserve(tokens * intermediate);
    const std::int64_t sampled_residual = reserve(samples * config_.hidden_size);
    const std::int64_t sampled_attention = reserve(samples * q_size);
    scratch_ = Buffer(device, elements_to_bytes(total));
    logits_ = Buffer(device, static_cast<std::size_t>(samples) * static_cast<std::size_t>(config_.vocab_size) * sizeof(float));
    Element* const base = scratch_.template as<Element>();
    activations_ = {.residual = base + residual,
                    .hidden = base + hidden,
                    .qkv = base + qkv,
                    .attention = base + attention,
                    .gate_up = base + gate_up,
                    .activated = base + activated,
                    .sampled_residual = base + sampled_residual,
                    .sampled_attention = base + sampled_attention,
                    .logits = logits_.template as<float>()};
  }

  const ModelConfig& config_;
  RunnerShape shape_;
  KvLayout layout_;
  Ops ops_;
  ModelWeights<Ops> weights_;
  RopeTable rope_;
  Buffer kv_;
  Buffer scratch_;
  Buffer logits_;
  Activations<Element> activations_;
  Attention attention_;
  Decoder<Attention, Context> decoder_;
  StepOutput output_;
};

}  // namespace nvl::inline NVL_ABI
