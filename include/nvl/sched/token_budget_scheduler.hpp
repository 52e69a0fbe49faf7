#pragma once
/// The SchedulerPolicy that mixes: one step under one token budget, decodes first, then parts of prompts.

#include <nvl/core/config.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/keyed_order.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Running sequences stand in a line: by rank if the order ranks them (RankingOrder), else as they were admitted. A step is
/// planned in this order:
/// 1. If the order lets a waiting sequence take blocks of running ones (DisplacingOrder) and it finds no room, victims are
///    preempted from the end of the line; none if all of them together were not enough.
/// 2. Along the line, each sequence gets the blocks of all its tokens; one with a single token left decodes. If there are no
///    blocks, the last of the line is preempted (perhaps the sequence itself). If a victim's blocks come free only with the next
///    step (they are being copied out), the sequence gets nothing in this one.
/// 3. What is left of max_num_batched_tokens goes to prompts, in chunks: first those along the line, then, as long as fewer than
///    max_num_seqs run, whoever the order names next (before those of the line whom it outranks). While others run, 1 % of the
///    pool (at least one block) stays free, so that an admission does not at once cost a preemption. The first that finds no
///    blocks ends the admissions of the step, so that small ones do not starve a large one. A step that preempts admits only the
///    sequence that it made room for.
///
/// SchedulingOptions bounds step 3: the prompt tokens of a step that decodes too, the chunk of one prompt, the number of prompts
/// that are partly computed, and of long ones among them. Long prompts that may not start yet are passed over in the step, at
/// most `max_passed_over` of them, so that shorter ones can overtake.
///
/// Chunked prefill is Sarathi's (Agrawal et al. 2023, arXiv:2308.16369); DeepSpeed-FastGen and KsanaLLM call it split-fuse:
/// KsanaLLM's split_fuse_token_num is long_prefill_token_threshold, a chunk of fixed length for each prompt.
///
/// No deadlock, and every sequence ends: the first of the line is preempted by nobody but a sequence that displaces it, of which
/// an order allows finitely many, or itself when it is alone; then all blocks are its own, free, or free with the next step, and
/// the engine has checked that its longest form fits. It gets at least a token in each step: its decode comes first, and all
/// decodes together leave max_num_batched_tokens >= max_num_seqs a token for the first prompt.
///
/// A step is a transaction: the memory for the answer comes first, and after that nothing throws. Costs O(running) a step and
/// what the order takes to name a sequence, however many wait.
template <class Order_ = FcfsOrder, class Preemption_ = RecomputePreemption>
class TokenBudgetScheduler {
 public:
  using Order = Order_;
  using Preemption = Preemption_;
  static constexpr std::size_t max_passed_over = 16;  // long prompts in one step

  explicit TokenBudgetScheduler(const SchedulerOptions& options)
      : options_(checked(options)),
        order_(options),
        preemption_(options) {
    line_.reserve(static_cast<std::size_t>(options_.max_num_seqs));
    passed_over_.reserve(max_passed_over);
  }

  void add(Sequence& seq) {
    NVL_EXPECTS(!seq.tokens.empty(), "tokens of a sequence", seq.tokens.size(), "at least one");
    const auto [entry, is_new] = tickets_.try_emplace(&seq, seq);
    NVL_EXPECTS(is_new, "sequence", index_of(seq.id), "added once");
    ForgetUnless forget{*this, entry};
    order_.add(entry->second);
    forget.is_added = true;
  }

  /// It stands where the order ranks it, else last.
  bool try_add_running(Sequence& seq) {
    if (!has_free_place()) { return false; }
    add(seq);
    Ticket& ticket = tickets_.find(&seq)->second;
    order_.take(ticket);
    line_.insert(place_of(ticket), Runner{&seq, &ticket});  // within the reserved capacity: cannot throw
    return true;
  }

  template <BlockAllocator A>
    requires nvl::Order<Order_, A> && nvl::Preemption<Preemption_, A>
  void schedule(A& allocator, ScheduledBatch& batch) {
    batch.seqs.reserve(static_cast<std::size_t>(options_.max_num_seqs));
    batch.preempted.reserve(line_.size());
    batch.copies.reserve(line_.size());
    preemption_.begin_step(allocator, batch);
    if constexpr (TimedOrder<Order_>) { order_.begin_step(); }
    if (any_loading_) { end_loading(); }
    for (const Runner& runner : line_) { release_behind_window(*runner.seq, allocator, options_.window, options_.block_size); }
    Step step;
    if constexpr (DisplacingOrder<Order_>) { step.urgent = displace(step, allocator, batch); }
    if constexpr (ForesightedPreemption<Preemption_, A>) { swap_out_early(step, allocator, batch); }
    plan_decodes(step, allocator, batch);
    plan_prompts(step, allocator, batch);
    finish_plan(allocator, batch, static_cast<std::size_t>(options_.scheduling.max_demotions));
  }

  void remove(Sequence& seq) {
    const auto entry = tickets_.find(&seq);
    if (entry == tickets_.end()) { return; }
    const auto place = std::find_if(line_.begin(), line_.end(), [&](const Runner& r) { return r.seq == &seq; });
    if (place != line_.end()) { line_.erase(place); }
    if (&seq == blocked_) { blocked_ = nullptr; }
    order_.remove(entry->second);
    preemption_.remove(seq);
    tickets_.erase(entry);
  }

  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(tickets_.size() - line_.size()); }
  std::uint32_t num_running() const noexcept { return static_cast<std::uint32_t>(line_.size()); }
  const Order_& order() const noexcept { return order_; }
  const Preemption_& preemption() const noexcept { return preemption_; }

  /// What the engine asks, so that a wrong combination says what to change.
  template <class A>
  static consteval bool require_allocator() {
    return require_order<Order_, A>() && require_preemption<Preemption_, A>();
  }

 private:
  using Ticket = typename Order_::Ticket;

  struct Runner {
    Sequence* seq;
    Ticket* ticket;
    bool is_ready = false;  // has the blocks for this step's tokens
  };

  /// What is known of the step that is being planned.
  struct Step {
    const Ticket* urgent = nullptr;  // the sequence that room was made for
    std::size_t blocks_to_come = 0;  // of victims, with the next step, and not spoken for
    std::int32_t num_decodes = 0;
    std::int64_t decode_load = 0;  // [tokens] that they attend to
    std::int32_t num_partial = 0;  // sequences of the line that this step, so far, leaves partly computed
    std::int32_t num_long = 0;     // that had more than the threshold to compute
    std::int32_t prompt_tokens_left = 0;
  };

  /// The order ran out of memory: the sequence is not known.
  struct ForgetUnless {
    TokenBudgetScheduler& scheduler;
    typename std::unordered_map<const Sequence*, Ticket>::iterator entry;
    bool is_added = false;
    ~ForgetUnless() {
      if (!is_added) { scheduler.tickets_.erase(entry); }
    }
  };

  static SchedulerOptions checked(SchedulerOptions options) {
    NVL_EXPECTS(options.max_num_seqs >= 1, "max_num_seqs", options.max_num_seqs, "at least 1");
    NVL_EXPECTS(options.max_num_batched_tokens >= 1, "max_num_batched_tokens", options.max_num_batched_tokens, "at least 1");
    NVL_EXPECTS(options.block_size >= 1, "block_size", options.block_size, "at least 1");
    NVL_EXPECTS(options.num_micro_batches >= 1, "num_micro_batches", options.num_micro_batches, "at least 1");
    validate(options.scheduling);
    options.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);  // each decodes in each step
    return options;
  }

  static std::int32_t or_any(std::int32_t limit) noexcept { return limit > 0 ? limit : std::numeric_limits<std::int32_t>::max(); }
  std::int32_t longest_chunk() const noexcept { return or_any(options_.scheduling.long_prefill_token_threshold); }
  bool has_free_place() const noexcept { return line_.size() < static_cast<std::size_t>(options_.max_num_seqs); }

  template <BlockAllocator A>
  std::size_t growth_of(Sequence& seq, const A& allocator) const noexcept {
    return missing_blocks(seq, allocator, seq.num_tokens(), options_.block_size);
  }

  std::int32_t prompt_budget(std::int32_t num_planned, std::int32_t num_decodes) const noexcept {
    const std::int32_t left = options_.max_num_batched_tokens - num_planned;
    return num_decodes > 0 ? std::min(left, or_any(options_.scheduling.max_prefill_tokens_beside_decodes)) : left;
  }

  void end_loading() noexcept {
    for (const Runner& runner : line_) {
      if (runner.seq->status == SeqStatus::loading) { runner.seq->status = SeqStatus::running; }
    }
    any_loading_ = false;
  }

  void plan(ScheduledBatch& batch, const Runner& runner, std::int32_t num_tokens) noexcept {
    if constexpr (MeteringOrder<Order_>) { order_.served(*runner.ticket, runner.seq->num_computed, num_tokens); }
    append_to_batch(batch, *runner.seq, num_tokens);
  }

  template <BlockAllocator A>
  void preempt_last(Step& step, A& allocator, ScheduledBatch& batch) noexcept {
    const Runner victim = line_.back();
    const std::size_t num_blocks = victim.seq->owned_blocks().size();
    if (!preemption_.preempt(*victim.seq, allocator, batch)) { step.blocks_to_come += num_blocks; }
    line_.pop_back();
    order_.put_back(*victim.ticket);
  }

  /// The next waiting sequence, if victims had to make room for it.
  template <BlockAllocator A>
  const Ticket* displace(Step& step, A& allocator, ScheduledBatch& batch) noexcept {
    const Ticket* const next = order_.next(std::as_const(allocator));
    if (next == nullptr || line_.empty() || !order_.displaces(*next, *line_.back().ticket)) { return nullptr; }
    // Who stays is served first: with the blocks of this step, and with tokens where it outranks `next`.
    std::size_t needed = blocks_for(uncached_tokens(*next->seq, allocator), options_.block_size) + 1;
    std::size_t available = allocator.num_free();
    std::int32_t num_decodes = 0;
    std::int64_t prompt_tokens = 0;
    for (const Runner& runner : line_) {
      if (order_.displaces(*next, *runner.ticket)) {
        available += runner.seq->owned_blocks().size();
        continue;
      }
      needed += growth_of(*runner.seq, allocator);
      const std::int32_t left = runner.seq->num_uncomputed();
      num_decodes += left == 1 ? 1 : 0;
      if (left > 1 && order_.runs_before(*runner.ticket, *next)) { prompt_tokens += std::min(left, longest_chunk()); }
    }
    if (available < needed || prompt_budget(num_decodes, num_decodes) <= prompt_tokens) { return nullptr; }
    const std::size_t before = line_.size();
    const auto lacks_blocks = [&] {
      std::size_t growth = 0;
      for (const Runner& runner : line_) { growth += growth_of(*runner.seq, allocator); }
      const std::size_t own = blocks_for(uncached_tokens(*next->seq, allocator), options_.block_size);
      return allocator.num_free() + step.blocks_to_come < own + growth + reserve(allocator);
    };
    while (!line_.empty() && order_.displaces(*next, *line_.back().ticket) && (!has_free_place() || lacks_blocks())) {
      preempt_last(step, allocator, batch);
    }
    return line_.size() < before ? next : nullptr;
  }

  /// [blocks] that those who run take in this step and the `num_steps` after it
  template <BlockAllocator A>
  std::size_t growth_in(std::int32_t num_steps, const A& allocator) const noexcept {
    std::size_t growth = 0;
    for (const Runner& runner : line_) {
      const std::int32_t num_tokens = runner.seq->num_tokens();
      const std::int32_t longest = std::max(num_tokens, runner.seq->max_total_tokens - 1);  // the last token is never stored
      const std::int32_t after = num_steps < longest - num_tokens ? num_tokens + num_steps : longest;
      growth += missing_blocks(*runner.seq, allocator, after, options_.block_size);
    }
    return growth;
  }

  /// Victims whose blocks come free with the next step leave before those who run have to wait for them.
  template <BlockAllocator A>
  void swap_out_early(Step& step, A& allocator, ScheduledBatch& batch) noexcept {
    while (line_.size() > 1 && growth_in(preemption_.steps_ahead(), allocator) > allocator.num_free() + step.blocks_to_come) {
      const Runner victim = line_.back();
      if (!preemption_.try_swap_out(*victim.seq, allocator, batch)) { return; }
      step.blocks_to_come += victim.seq->block_table.size();
      line_.pop_back();
      order_.put_back(*victim.ticket);
    }
  }

  template <BlockAllocator A>
  void plan_decodes(Step& step, A& allocator, ScheduledBatch& batch) {
    const std::int64_t most_load = micro_batch_load();
    for (std::size_t i = 0; i < line_.size(); ++i) {
      const bool is_ready = find_blocks(*line_[i].seq, i, step, allocator, batch);
      if (i == line_.size()) { break; }  // it was the victim itself
      line_[i].is_ready = is_ready;
      if (!is_ready) { continue; }
      const Runner runner = line_[i];
      const std::int32_t left = runner.seq->num_uncomputed();
      if (left == 1) {
        if (step.decode_load >= most_load) {
          line_[i].is_ready = false;  // for the next step, which does not wait for this one
          continue;
        }
        plan(batch, runner, 1);
        ++step.num_decodes;
        step.decode_load += runner.seq->num_tokens();
      } else if (left > 1) {
        ++step.num_partial;
        step.num_long += left > longest_chunk() ? 1 : 0;
      }
    }
  }

  /// [tokens] of context that a step decodes over: its share, where several steps are under way
  std::int64_t micro_batch_load() const noexcept {
    std::int64_t total = 0;
    for (const Runner& runner : line_) { total += runner.seq->num_tokens(); }
    return ceil_div<std::int64_t>(total, options_.num_micro_batches);
  }

  /// Blocks for all tokens of the i-th of the line, if need be those of the last, which may be itself.
  template <BlockAllocator A>
  bool find_blocks(Sequence& seq, std::size_t i, Step& step, A& allocator, ScheduledBatch& batch) {
    while (!try_grow(seq, allocator, seq.num_tokens(), options_.block_size, batch)) {
      const std::size_t missing = growth_of(seq, allocator);
      if (missing <= step.blocks_to_come) {
        step.blocks_to_come -= missing;
        return false;
      }
      preempt_last(step, allocator, batch);
      if (i == line_.size()) { return false; }
    }
    return true;
  }

  template <BlockAllocator A>
  void plan_prompts(Step& step, A& allocator, ScheduledBatch& batch) {
    step.prompt_tokens_left = prompt_budget(batch.num_tokens, step.num_decodes);
    Ticket* next = next_admissible(step, allocator, batch);
    for (std::size_t i = step.num_partial > 0 ? 0 : line_.size(); step.prompt_tokens_left > 0;) {
      while (i < line_.size() && !wants_chunk(line_[i])) { ++i; }
      if (next != nullptr && (i == line_.size() || goes_before(*next, *line_[i].ticket))) {
        const Admission done = try_start(*next, step, allocator, batch);
        if (done == Admission::started) { ++i; }  // it is at or before this place of the line now
        next = done == Admission::blocked ? nullptr : next_admissible(step, allocator, batch);
      } else if (i < line_.size()) {
        plan_chunk(step, line_[i++], batch);
      } else {
        break;
      }
    }
    while (!passed_over_.empty()) {
      order_.put_back(*passed_over_.back());
      passed_over_.pop_back();
    }
  }

  /// Something to compute, room for it, and it was not planned yet.
  static bool wants_chunk(const Runner& runner) noexcept { return runner.is_ready && runner.seq->num_uncomputed() > 0; }

  bool goes_before(const Ticket& next, const Ticket& runs) const noexcept {
    if constexpr (RankingOrder<Order_>) { return order_.runs_before(next, runs); }
    return false;
  }

  template <BlockAllocator A>
  Ticket* next_admissible(const Step& step, const A& allocator, const ScheduledBatch& batch) noexcept {
    if (!has_free_place()) { return nullptr; }
    Ticket* const next = order_.next(allocator);
    const bool is_calm = batch.preempted.empty() && batch.swapped.empty();
    return is_calm || next == step.urgent ? next : nullptr;
  }

  void plan_chunk(Step& step, const Runner& runner, ScheduledBatch& batch) noexcept {
    const std::int32_t left = runner.seq->num_uncomputed();
    const std::int32_t chunk = std::min({left, step.prompt_tokens_left, longest_chunk()});
    plan(batch, runner, chunk);
    step.prompt_tokens_left -= chunk;
    if (left > 1 && chunk == left) { --step.num_partial; }
  }

  enum class Admission : std::uint8_t { started, passed_over, blocked };

  template <BlockAllocator A>
  Admission try_start(Ticket& ticket, Step& step, A& allocator, ScheduledBatch& batch) {
    Sequence& seq = *ticket.seq;
    const bool alone = line_.empty();
    if (!alone && blocked_ == &seq && allocator.num_free() <= blocked_num_free_) { return Admission::blocked; }
    const bool is_limited = options_.scheduling.max_num_partial_prefills > 0 || options_.scheduling.max_long_partial_prefills > 0;
    const std::int32_t uncached = is_limited && seq.status != SeqStatus::swapped ? uncached_tokens(seq, allocator) : 1;
    if (uncached > longest_chunk() && step.num_long >= or_any(options_.scheduling.max_long_partial_prefills)) {
      if (passed_over_.size() == max_passed_over) { return Admission::blocked; }
      order_.take(ticket);
      passed_over_.push_back(&ticket);
      return Admission::passed_over;
    }
    if (uncached > std::min(step.prompt_tokens_left, longest_chunk()) &&
        step.num_partial >= or_any(options_.scheduling.max_num_partial_prefills)) {
      return Admission::blocked;
    }
    const bool is_resumed = seq.status == SeqStatus::swapped;
    std::uint32_t num_reserved = alone ? 0 : reserve(allocator);
    if constexpr (ForesightedPreemption<Preemption_, A>) {
      if (is_resumed && !alone) {
        const std::int32_t num_steps = preemption_.steps_after_resume();
        const std::size_t growth = growth_in(num_steps, allocator) + blocks_for(num_steps, options_.block_size);
        num_reserved = std::max(num_reserved, static_cast<std::uint32_t>(growth));
      }
    }
    if (!(is_resumed ? preemption_.try_resume(seq, allocator, batch, num_reserved)
                     : try_admit(seq, allocator, options_.block_size, num_reserved))) {
      blocked_ = &seq;
      blocked_num_free_ = allocator.num_free();
      return Admission::blocked;
    }
    if (!is_resumed) { extend_hit(seq, allocator, options_.block_size, batch); }
    order_.take(ticket);
    const Runner runner{&seq, &ticket};
    line_.insert(place_of(ticket), runner);  // within the reserved capacity: cannot throw
    const std::int32_t left = seq.num_uncomputed();
    step.num_partial += left > 1 ? 1 : 0;
    step.num_long += left > longest_chunk() ? 1 : 0;
    if (seq.status == SeqStatus::loading) {
      any_loading_ = true;
    } else if (left > 0) {
      plan_chunk(step, runner, batch);
    }
    return Admission::started;
  }

  typename std::vector<Runner>::iterator place_of(const Ticket& ticket) noexcept {
    if constexpr (RankingOrder<Order_>) {
      return std::upper_bound(line_.begin(), line_.end(), ticket,
                              [&](const Ticket& a, const Runner& b) { return order_.runs_before(a, *b.ticket); });
    }
    return line_.end();
  }

  /// [blocks] that an admission leaves free while others run
  template <BlockAllocator A>
  static std::uint32_t reserve(const A& allocator) noexcept {
    return std::max(allocator.num_blocks() / 100, 1u);
  }

  SchedulerOptions options_;
  Order_ order_;
  Preemption_ preemption_;
  std::unordered_map<const Sequence*, Ticket> tickets_;
  std::vector<Runner> line_;            // those that run; its capacity is max_num_seqs
  std::vector<Ticket*> passed_over_;    // in this step
  const Sequence* blocked_ = nullptr;   // the waiting sequence that did not get its blocks ...
  std::uint32_t blocked_num_free_ = 0;  // ... when so many were free
  bool any_loading_ = false;
};
static_assert(ForkingScheduler<TokenBudgetScheduler<>>);
static_assert(SchedulerPolicy<TokenBudgetScheduler<OrderArchetype, PreemptionArchetype>>);

}  // namespace nvl::inline NVL_ABI
