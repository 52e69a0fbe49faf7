#pragma once
/// Attention of ranks that share the tokens of a step and the K and V of each sequence.
///
/// The step's new K and V go round the ranks, so that each rank's queries meet them and each rank keeps those of its positions
/// (ring attention: Liu et al. 2023, arXiv:2310.01889). Queries of sequences that have a past go to all ranks instead, each of
/// which has a part of it, and what they found comes back (pass-Q: Yang et al. 2024, arXiv:2411.01783; as decode context
/// parallelism does). States are merged by their log-sum-exp.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/shared_step.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/token_shares.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

/// How much of everything a rank needs for the largest step.
struct ContextAttentionSizes {
  std::int64_t part = 0;         // [elements] of K and V of the rank's tokens in one layer
  std::int64_t queries = 0;      // [elements] of the rank's tokens
  std::int64_t all_queries = 0;  // [elements] of all ranks' tokens
  std::int64_t states = 0;       // log-sum-exps of the rank's tokens
  std::int64_t all_states = 0;   // of all ranks' tokens

  /// \param shape of the rank: heads, blocks
  static constexpr ContextAttentionSizes of(const AttentionShape& shape, std::int32_t max_num_tokens, std::int32_t max_num_seqs,
                                            std::uint32_t num_shares) {
    const std::int64_t rows = max_share_rows(max_num_tokens, max_num_seqs, num_shares);
    const std::int64_t q_size = std::int64_t{shape.num_q_heads} * shape.kv.head_dim;
    return {.part = ceil_div<std::int64_t>(rows, shape.kv.block_size) * shape.kv.block_elements(),
            .queries = rows * q_size,
            .all_queries = num_shares * rows * q_size,
            .states = rows * shape.num_q_heads,
            .all_states = num_shares * rows * shape.num_q_heads};
  }
  constexpr std::int64_t bytes(std::int64_t element_bytes) const noexcept {
    return (2 * part + queries + 2 * all_queries) * element_bytes + (2 * states + all_states) * std::int64_t{sizeof(float)};
  }
};

template <AttentionBackend Attention, class Context>
class ContextAttention {
  static_assert(StatefulAttentionBackend<Attention>,
                "nvl: ranks that share tokens merge attention states, which this attention backend does not give "
                "(StatefulAttentionBackend): use SingleDevice, or the CPU's");
  static_assert(
      TokenSharingOps<typename Attention::Ops>,
      "nvl: the ops of this attention backend cannot share tokens over ranks (TokenSharingOps): use SingleDevice, or the "
      "CPU's");

 public:
  using Element = typename Attention::Element;
  using Ops = typename Attention::Ops;
  using Device = typename Ops::Device;
  using Buffer = typename Device::Buffer;

  /// \param shape of the rank; `ops` and `context` outlive the object
  ContextAttention(const AttentionShape& shape, const StepLimits& limits, Device& device, Ops& ops, Context& context)
      : shape_(shape),
        part_layout_(shape.kv),
        ops_(ops),
        context_(context),
        share_(context.share_index()),
        num_shares_(context.num_shares()),
        step_(share_, {.block_size = shape.kv.block_size, .count = num_shares_}),
        past_(shape, ops) {
    const auto sizes = ContextAttentionSizes::of(shape, limits.max_num_tokens, limits.max_num_seqs, num_shares_);
    part_layout_.num_blocks = sizes.part / shape.kv.block_elements();
    AttentionShape part_shape = shape;
    part_shape.kv = part_layout_;
    for (std::uint32_t k = 0; k < num_shares_; ++k) { rounds_.emplace_back(part_shape, ops); }
    part_ = elements(device, sizes.part);
    next_part_ = elements(device, sizes.part);
    queries_ = elements(device, sizes.queries);
    all_queries_ = elements(device, sizes.all_queries);
    found_ = elements(device, sizes.all_queries);
    lse_ = floats(device, sizes.states);
    received_lse_ = floats(device, sizes.states);
    found_lse_ = floats(device, sizes.all_states);
  }

  /// Once a step. Returns this rank's share of it.
  const SharedStep& plan(const StepInput& whole) {
    step_.derive(whole);
    for (std::uint32_t k = 0; k < num_rounds(); ++k) { rounds_[k].plan(step_.metadata_of_round(k)); }
    if (step_.past().max_rows > 0) { past_.plan(step_.metadata_of_past(whole.max_blocks_per_seq)); }
    return step_;
  }

  const SharedStep& step() const noexcept { return step_; }  ///< the one planned last

  /// Where the K and V of this rank's tokens go before `run`, at the slots of SharedStep::mine.
  const KvLayout& part_layout() const noexcept { return part_layout_; }
  Element* part() noexcept { return part_.template as<Element>(); }

  /// One layer: attention of this rank's queries, and the K and V that this rank keeps into `kv`.
  /// \param call its `kv` is not read
  void run(AttentionCall<Element> call, Element* kv) {
    call.lse = lse_.template as<float>();
    attend_new(call, kv);
    if (step_.past().max_rows > 0) { attend_past(call, kv); }
  }

 private:
  static Buffer elements(Device& device, std::int64_t n) { return Buffer(device, static_cast<std::size_t>(n) * sizeof(Element)); }
  static Buffer floats(Device& device, std::int64_t n) { return Buffer(device, static_cast<std::size_t>(n) * sizeof(float)); }
  std::uint32_t num_rounds() const noexcept { return step_.has_rounds() ? num_shares_ : 1; }
  std::int64_t q_size() const noexcept { return std::int64_t{shape_.num_q_heads} * shape_.kv.head_dim; }
  std::int64_t elements_of(const SharedStep::Round& round) const noexcept {
    return ceil_div(round.num_rows, part_layout_.block_size) * part_layout_.block_elements();
  }

  void attend_new(AttentionCall<Element> call, Element* kv) {
    Element* part = part_.template as<Element>();
    Element* next = next_part_.template as<Element>();
    for (std::uint32_t k = 0; k < num_rounds(); ++k) {
      const SharedStep::Round& round = step_.round(k);
      if (k > 0) {
        context_.exchange(part, elements_of(step_.round(k - 1)), (share_ + 1) % num_shares_, next, elements_of(round),
                          (share_ + num_shares_ - 1) % num_shares_);
        std::swap(part, next);
      }
      ops_.copy_slots(kv, shape_.kv, part, part_layout_, round.kept);
      AttentionCall<Element> mine = call;
      mine.kv = part;
      if (k == 0) {
        rounds_[k].run(mine);
      } else if (round.has_keys) {
        mine.out = found_.template as<Element>();
        mine.lse = found_lse_.template as<float>();
        rounds_[k].run(mine);
        merge(call, mine.out, mine.lse, step_.all_rows());
      }
    }
  }

  void attend_past(const AttentionCall<Element>& call, const Element* kv) {
    const SharedStep::Past& past = step_.past();
    Element* const queries = queries_.template as<Element>();
    Element* const all = all_queries_.template as<Element>();
    ops_.gather_rows(queries, call.q, call.q_row_stride, past.rows, static_cast<std::int32_t>(q_size()));
    context_.gather_shares(queries, all, past.max_rows * q_size());
    Element* const found = found_.template as<Element>();
    float* const found_lse = found_lse_.template as<float>();
    past_.run({.out = found, .q = all, .q_row_stride = q_size(), .kv = kv, .scale = call.scale, .window = 0, .lse = found_lse});

    const auto num_rows = static_cast<std::int64_t>(past.rows.size());
    const auto first_row_of = [&](std::uint32_t share) { return std::int64_t{share} * past.max_rows; };
    merge(call, found + first_row_of(share_) * q_size(), found_lse + first_row_of(share_) * shape_.num_q_heads, past.rows);
    Element* const theirs = queries;  // they have gone out
    float* const their_lse = received_lse_.template as<float>();
    for (std::uint32_t k = 1; k < num_shares_; ++k) {
      const std::uint32_t to = (share_ + k) % num_shares_, from = (share_ + num_shares_ - k) % num_shares_;
      context_.exchange(found + first_row_of(to) * q_size(), past.num_rows[to] * q_size(), to, theirs, num_rows * q_size(), from);
      context_.exchange(found_lse + first_row_of(to) * shape_.num_q_heads, std::int64_t{past.num_rows[to]} * shape_.num_q_heads,
                        to, their_lse, num_rows * shape_.num_q_heads, from);
      merge(call, theirs, their_lse, past.rows);
    }
  }

  void merge(const AttentionCall<Element>& call, const Element* other, const float* other_lse,
             std::span<const std::int32_t> rows) {
    ops_.merge_states({.out = call.out,
                       .lse = call.lse,
                       .other = other,
                       .other_lse = other_lse,
                       .rows = rows,
                       .num_heads = shape_.num_q_heads,
                       .head_dim = shape_.kv.head_dim});
  }

  AttentionShape shape_;
  KvLayout part_layout_;
  Ops& ops_;
  Context& context_;
  std::uint32_t share_, num_shares_;
  SharedStep step_;
  std::deque<Attention> rounds_;  // each keeps its plan over the layers of a step
  Attention past_;
  Buffer part_, next_part_, queries_, all_queries_, found_, lse_, received_lse_, found_lse_;
};

/// What a rank's layers attend with.
template <AttentionBackend Attention, RankContext Context>
using AttentionOn = std::conditional_t<TokenSharingContext<Context>, ContextAttention<Attention, Context>, Attention>;

}  // namespace nvl::inline NVL_ABI
