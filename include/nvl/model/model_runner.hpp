#pragma once
/// Owns one rank's weights, KV bytes and scratch, and executes steps: block copies and transfers, the decoder, the sampler.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/context_attention.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/model/decoder.hpp>
#include <nvl/model/head.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/model/tensor_slices.hpp>
#include <nvl/model/weights.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/token_shares.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Ops that record the kernels of a step once and replay them: `o.capture_graphs(run)` calls `run(step)` for staged steps of
/// the sizes that it will replay.
template <class O>
concept GraphCapturingOps = requires(O o, void (*run)(const StepInput&)) { o.capture_graphs(run); };

/// Ops that look for the fastest way to run a model's layers: `o.tune(config, scratch)` may overwrite the zeros of `scratch`
/// meanwhile.
template <class O, class Buffer>
concept TuningOps = requires(O o, const ModelConfig& config, Buffer& scratch) { o.tune(config, scratch); };

/// Ops that say what was odd at their start but did no harm: `o.warnings()`, one line each.
template <class O>
concept WarningOps = requires(const O o) {
  { o.warnings() } -> std::convertible_to<std::vector<std::string>>;
};

namespace detail {

/// Of ops that move no blocks: nothing.
template <class Ops>
struct HostPool {
  using Buffer = std::monostate;
};
template <TransferringOps Ops>
struct HostPool<Ops> {
  using Buffer = typename Ops::Device::HostBuffer;
};

}  // namespace detail

template <AttentionBackend Attention, ParallelStrategy Parallel>
class ModelRunner {
 public:
  using Element = typename Attention::Element;
  using Ops = typename Attention::Ops;
  using Device = typename Ops::Device;
  using Buffer = typename Device::Buffer;
  using Context = typename Parallel::Context;

  /// Loads and packs this rank's weights and allocates everything. `device` and `context` outlive the runner; `source` need not.
  /// \param config of the whole model
  template <WeightSource Source>
  ModelRunner(const ModelConfig& config, const Source& source, const StepLimits& limits, Device& device, Context& context,
              const LoadProgress& progress = {})
      : place_(place_of(context)),
        config_(config_of(shard_of(config, place_), config)),
        limits_(limits),
        layout_{.num_blocks = limits.num_blocks,
                .block_size = limits.block_size,
                .num_kv_heads = config_.num_kv_heads,
                .head_dim = config_.head_dim},
        ops_(device, config_, limits_),
        weights_(load_weights(config, place_, source, ops_, slices_, progress)),
        rope_(ops_.load_rope(RopeTable(config.rope, config.head_dim, limits.max_model_len))),
        kv_(device, elements_to_bytes(layout_.layer_elements() * config_.num_layers)),
        head_(device, place_.is_last_stage() ? limits.max_num_seqs : 0, config_.vocab_size, context),
        outputs_(static_cast<std::size_t>(limits.num_in_flight)),
        attention_(make_attention(device, context)),
        decoder_(config_, weights_, rope_, ops_, attention_, context) {
    allocate_activations(device);
    allocate_host_pool(device);
    ops_.finish_loading();
    slices_ = {};
    if constexpr (TuningOps<Ops, Buffer>) { ops_.tune(config_, kv_); }
    if constexpr (GraphCapturingOps<Ops>) {
      ops_.capture_graphs([this](const StepInput& step) { run(step, outputs_[0], false); });
      warm_up();
    }
  }

  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  /// Starts a step; `in` stays valid until its `collect`. Where the ops run ahead it returns before the step is done, and
  /// StepLimits::num_in_flight steps may be launched before the first is collected.
  void launch(const StepInput& in) {
    check(in);
    StepOutput& out = outputs_[num_launched_++ % outputs_.size()];
    out.step = in.step;
    const StepInput& step = ops_.stage(in);
    if constexpr (TransferringOps<Ops>) {
      if (!step.swap_out.empty() || !step.swap_in.empty()) {
        ops_.transfer_blocks({.kv = kv(),
                              .layout = layout_,
                              .num_layers = config_.num_layers,
                              .host = host_kv(),
                              .out = step.swap_out,
                              .in = step.swap_in});
      }
    }
    ops_.execute(step, out, [&, maxima_only = wants_maxima_only(in)] { run(step, out, maxima_only); });
  }

  /// False if `collect` would wait.
  bool is_done() {
    if constexpr (requires { ops_.is_done(); }) { return ops_.is_done(); }
    return true;
  }

  /// Waits for the oldest launched step that was not collected and returns what it sampled; valid until num_in_flight launches later.
  const StepOutput& collect() {
    StepOutput& out = outputs_[num_collected_++ % outputs_.size()];
    ops_.await(out);
    return out;
  }

  /// Runs a step without sampling and returns the logits of its sampled rows, [R, vocab], valid until the next step; nothing if
  /// that is another stage's business.
  std::span<const float> logits(const StepInput& in) {
    check(in);
    forward(ops_.stage(in));
    if (!place_.is_last_stage()) { return {}; }
    return ops_.read(head_.gather(ops_, in.num_samples()),
                     static_cast<std::size_t>(in.num_samples()) * static_cast<std::size_t>(config_.vocab_size));
  }

  /// What was odd at the start but did no harm: one line each.
  std::vector<std::string> warnings() const {
    if constexpr (WarningOps<Ops>) {
      return ops_.warnings();
    } else {
      return {};
    }
  }

  const RankPlace& place() const noexcept { return place_; }
  const ModelConfig& config() const noexcept { return config_; }  ///< of this rank
  const KvLayout& kv_layout() const noexcept { return layout_; }
  /// [num_layers] x KvLayout, device memory. For tests and for moving blocks.
  Element* kv() noexcept { return kv_.template as<Element>(); }
  /// [num_host_blocks][num_layers] x block, host memory.
  Element* host_kv() noexcept
    requires TransferringOps<Ops>
  {
    return host_kv_.template as<Element>();
  }

 private:
  void check(const StepInput& in) const {
    NVL_EXPECTS(in.num_tokens() <= limits_.max_num_tokens, "tokens of a step", in.num_tokens(),
                "at most " + std::to_string(limits_.max_num_tokens) + ", as planned");
    NVL_EXPECTS(in.num_samples() <= limits_.max_num_seqs, "sampled rows of a step", in.num_samples(),
                "at most " + std::to_string(limits_.max_num_seqs) + ", as planned");
    const auto num_transfers = static_cast<std::int64_t>(std::max(in.swap_out.size(), in.swap_in.size()));
    NVL_EXPECTS(num_transfers <= limits_.num_host_blocks, "blocks moved one way in a step", num_transfers,
                "at most the " + std::to_string(limits_.num_host_blocks) + " host blocks, as planned");
  }

  void run(const StepInput& step, StepOutput& out, bool maxima_only) {
    forward(step);
    if (place_.is_last_stage()) { head_.sample(ops_, step, maxima_only, out); }
  }

  void forward(const StepInput& step) {
    if (!step.copies.empty()) { ops_.copy_blocks(kv(), layout_, config_.num_layers, step.copies); }
    if (step.num_tokens() > 0) { decoder_.forward(step, layout_, kv(), activations_); }
  }

  /// Runs prompts of several lengths that store nothing: what the libraries load at the first use of a shape is there when the
  /// first request comes.
  void warm_up() {
    StepBuffer buffer;
    for (std::int32_t num_tokens = 16;; num_tokens *= 2) {
      num_tokens = std::min(num_tokens, limits_.max_num_tokens);
      const std::int32_t length = std::min(num_tokens, limits_.max_model_len);
      const auto num_seqs = static_cast<std::size_t>(std::min(ceil_div(num_tokens, length), limits_.max_num_seqs));
      StepInput& in = buffer.layout({.num_tokens = static_cast<std::size_t>(num_tokens),
                                     .num_seqs = num_seqs,
                                     .max_blocks_per_seq = static_cast<std::size_t>(ceil_div(length, limits_.block_size)),
                                     .num_samples = num_seqs});
      in.min_query_len = in.max_query_len = length;
      std::fill(in.token_ids.begin(), in.token_ids.end(), 0);
      std::fill(in.slot_mapping.begin(), in.slot_mapping.end(), no_slot);
      std::fill(in.block_tables.begin(), in.block_tables.end(), BlockId{0});
      for (std::int32_t t = 0; t < num_tokens; ++t) { in.positions[static_cast<std::size_t>(t)] = t % length; }
      for (std::size_t s = 0; s <= num_seqs; ++s) {
        in.cu_query_lens[s] = std::min(static_cast<std::int32_t>(s) * length, num_tokens);
      }
      for (std::size_t s = 0; s < num_seqs; ++s) {
        in.seq_lens[s] = in.cu_query_lens[s + 1] - in.cu_query_lens[s];
        in.sample_rows[s] = in.cu_query_lens[s + 1] - 1;
        in.sampling[s].top_k = 2;  // the sampler of all kinds of rows
      }
      run(ops_.stage(in), outputs_[0], false);
      static_cast<void>(ops_.read(head_.mine(), 1));  // waits: memory for staging is there for two steps
      if (num_tokens == limits_.max_num_tokens) { break; }
    }
  }

  AttentionOn<Attention, Context> make_attention([[maybe_unused]] Device& device, [[maybe_unused]] Context& context) {
    const AttentionShape shape{.num_q_heads = config_.num_q_heads,
                               .kv = layout_,
                               .window = config_.has_windowed_layers() ? config_.sliding_window : 0,
                               .has_full_layers = config_.has_full_layers()};
    if constexpr (TokenSharingContext<Context>) {
      return AttentionOn<Attention, Context>(shape, limits_, device, ops_, context);
    } else {
      return Attention(shape, ops_);
    }
  }

  static constexpr std::size_t elements_to_bytes(std::int64_t elements) {
    return static_cast<std::size_t>(elements) * sizeof(Element);
  }

  void allocate_host_pool(Device& device) {
    if (limits_.num_host_blocks == 0) { return; }
    if constexpr (TransferringOps<Ops>) {
      host_kv_ = typename detail::HostPool<Ops>::Buffer(
          device, elements_to_bytes(layout_.whole_block_offset(limits_.num_host_blocks, 0, config_.num_layers)));
    } else {
      raise(Unsupported(std::to_string(limits_.num_host_blocks) +
                        " host blocks are planned, but the ops of this attention backend move no blocks (TransferringOps)"));
    }
  }

  void allocate_activations(Device& device) {
    const std::int64_t tokens = max_share_rows(limits_.max_num_tokens, limits_.max_num_seqs, place_.num_shares);
    const std::int64_t samples = limits_.max_num_seqs;
    const std::int64_t q_size = config_.q_size();
    const std::int64_t intermediate = config_.intermediate_size;
    constexpr std::int64_t alignment = 64 / sizeof(Element);
    std::int64_t total = 0;
    const auto reserve = [&](std::int64_t elements) {
      const std::int64_t offset = total;
      total += ceil_div(elements, alignment) * alignment;
      return offset;
    };
    // that one of the residual takes. NOLINTNEXTLINE(bugprone-sizeof-expression): types of numbers, here the same one
    constexpr std::int64_t residual_elements = sizeof(Residual<Ops>) / sizeof(Element);
    const std::int64_t residual = reserve(tokens * config_.hidden_size * residual_elements);
    const std::int64_t hidden = reserve(tokens * config_.hidden_size);
    const std::int64_t qkv = reserve(tokens * config_.qkv_size());
    const std::int64_t attention = reserve(tokens * q_size);
    const std::int64_t gate_up = reserve(tokens * 2 * intermediate);
    const std::int64_t activated = reserve(tokens * intermediate);
    const std::int64_t sampled_residual = reserve(samples * config_.hidden_size * residual_elements);
    const std::int64_t sampled_attention = reserve(samples * q_size);
    const std::int64_t all_sampled =
        TokenSharingContext<Context> ? reserve(place_.num_shares * samples * config_.hidden_size) : 0;
    scratch_ = Buffer(device, elements_to_bytes(total));
    Element* const base = scratch_.template as<Element>();
    activations_ = {.residual = reinterpret_cast<Residual<Ops>*>(base + residual),
                    .hidden = base + hidden,
                    .qkv = base + qkv,
                    .attention = base + attention,
                    .gate_up = base + gate_up,
                    .activated = base + activated,
                    .sampled_residual = reinterpret_cast<Residual<Ops>*>(base + sampled_residual),
                    .sampled_attention = base + sampled_attention,
                    .all_sampled = base + all_sampled,
                    .logits = head_.mine()};
  }

  const RankPlace place_;
  const ModelConfig config_;  // of this rank
  StepLimits limits_;
  KvLayout layout_;
  Ops ops_;
  TensorSlices slices_;  // until the weights are loaded
  ModelWeights<Ops> weights_;
  typename Ops::Rope rope_;
  Buffer kv_;
  Buffer scratch_;
  typename detail::HostPool<Ops>::Buffer host_kv_;
  typename Decoder<Attention, Context>::Scratch activations_;
  HeadOf<Ops, Context> head_;
  std::vector<StepOutput> outputs_;            // of the steps in flight
  AttentionOn<Attention, Context> attention_;  // its end waits for them
  Decoder<Attention, Context> decoder_;
  std::uint64_t num_launched_ = 0;
  std::uint64_t num_collected_ = 0;
};

}  // namespace nvl::inline NVL_ABI
