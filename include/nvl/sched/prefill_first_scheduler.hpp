#pragma once
/// The SchedulerPolicy that is easiest to reason about: a step is either prefills or decodes, first come, first served.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <unordered_map>

namespace nvl::inline NVL_ABI {

/// All sequences stand in one line in the order in which they came. The first `num_running()` of them have blocks; admission
/// moves the border one place back, preemption one place forward, so nobody overtakes and a victim is next in line again.
///
/// A step prefills if it can:
/// - The oldest waiting sequence is admitted while fewer than max_num_seqs run and there are free blocks for all tokens that it
///   has; while others run, 1 % of the pool (at least one block) must stay free, so that an admission does not at once cost a
///   preemption. The first that does not get in ends the admissions of this step.
/// - max_num_batched_tokens bounds the tokens of the step. A prompt that does not fit in what is left waits for the next
///   step; if it is the first of the step, it is cut: it gets the whole budget now and goes on first in the next step. So at
///   most one sequence is partly prefilled, and it is the last that runs.
///
/// Otherwise each running sequence computes one token. One that needs a block when none is free takes those of the youngest
/// running sequence (perhaps its own), which is recomputed later.
///
/// No deadlock, and every sequence ends: the oldest sequence is never preempted except by itself when it runs alone, and then
/// all blocks are its own or free, and the engine has checked that its longest form fits. So each decode step brings the
/// oldest one token nearer its end. Between two decode steps there are finitely many prefill steps: each computes tokens of
/// at most max_num_seqs admitted sequences, and nothing is preempted meanwhile. When the oldest has ended, the next is oldest.
///
/// Costs: O(1) for add and remove, O(sequences in the step) for schedule. A prompt that did not get blocks is not tried again
/// (its prefix not matched again) until there are more free blocks than there were.
class PrefillFirstScheduler {
 public:
  explicit PrefillFirstScheduler(const SchedulerOptions& options) : options_(options) {
    NVL_EXPECTS(options.max_num_seqs >= 1, "max_num_seqs", options.max_num_seqs, "at least 1");
    NVL_EXPECTS(options.max_num_batched_tokens >= 1, "max_num_batched_tokens", options.max_num_batched_tokens, "at least 1");
    NVL_EXPECTS(options.block_size >= 1, "block_size", options.block_size, "at least 1");
    // Every running sequence has to find room in a decode step.
    options_.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  }

  void add(Sequence& seq) {
    NVL_EXPECTS(!seq.tokens.empty(), "tokens of a sequence", seq.tokens.size(), "at least one");
    Line node(1, Member{&seq});
    const bool is_new = places_.try_emplace(&seq, node.begin()).second;
    NVL_EXPECTS(is_new, "sequence", index_of(seq.id), "added once");
    line_.splice(line_.end(), node);
  }

  /// It stands behind all that run, except for one that is partly prefilled, which stays the last of them.
  bool try_add_running(Sequence& seq) {
    if (num_running_ >= static_cast<std::uint32_t>(options_.max_num_seqs)) { return false; }
    const bool last_is_partial = num_running_ > 0 && last_running_->seq->num_uncomputed() > 1;
    const auto next = last_is_partial ? last_running_ : first_waiting();
    add(seq);
    const auto place = std::prev(line_.end());
    place->running = true;
    line_.splice(next, line_, place);
    if (!last_is_partial) { last_running_ = place; }
    ++num_running_;
    return true;
  }

  template <BlockAllocator A>
  void schedule(A& allocator, ScheduledBatch& batch) {
    // The memory for the answer comes first, so that running out of it leaves everything as it was.
    batch.seqs.reserve(static_cast<std::size_t>(options_.max_num_seqs));
    batch.preempted.reserve(num_running_);
    batch.copies.reserve(num_running_);
    auto next = line_.begin();
    for (std::uint32_t i = 0; options_.window.tokens > 0 && i < num_running_; ++i, ++next) {
      release_behind_window(*next->seq, allocator, options_.window, options_.block_size);
    }
    schedule_prefills(allocator, batch);
    if (batch.empty()) { schedule_decodes(allocator, batch); }
  }

  void remove(Sequence& seq) {
    const auto entry = places_.find(&seq);
    if (entry == places_.end()) { return; }
    const auto place = entry->second;
    if (place->running) {
      if (place == last_running_ && num_running_ > 1) { last_running_ = std::prev(place); }
      --num_running_;
    }
    if (&seq == blocked_) { blocked_ = nullptr; }
    line_.erase(place);
    places_.erase(entry);
  }

  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(line_.size()) - num_running_; }
  std::uint32_t num_running() const noexcept { return num_running_; }

 private:
  struct Member {
    Sequence* seq;
    bool running = false;
  };
  using Line = std::list<Member>;

  Line::iterator first_waiting() noexcept { return num_running_ == 0 ? line_.begin() : std::next(last_running_); }

  template <BlockAllocator A>
  void schedule_prefills(A& allocator, ScheduledBatch& batch) {
    std::int32_t budget = options_.max_num_batched_tokens;
    if (num_running_ > 0 && last_running_->seq->num_uncomputed() > 1) {
      budget -= append_chunk(batch, *last_running_->seq, budget);
    }
    const auto limit = static_cast<std::uint32_t>(options_.max_num_seqs);
    for (auto next = first_waiting(); next != line_.end() && num_running_ < limit && budget > 0; ++next) {
      Sequence& seq = *next->seq;
      const bool must_fit = !batch.empty();
      if (must_fit && seq.num_tokens() > budget && uncached_tokens(seq, allocator) > budget) { break; }
      if (!try_start(seq, allocator)) { break; }
      next->running = true;
      last_running_ = next;
      ++num_running_;
      budget -= append_chunk(batch, seq, budget);
    }
  }

  template <BlockAllocator A>
  bool try_start(Sequence& seq, A& allocator) {
    const bool alone = num_running_ == 0;
    if (!alone && blocked_ == &seq && allocator.num_free() <= blocked_num_free_) { return false; }
    const std::uint32_t reserve = alone ? 0 : std::max(allocator.num_blocks() / 100, 1u);
    if (try_admit(seq, allocator, options_.block_size, reserve)) { return true; }
    blocked_ = &seq;
    blocked_num_free_ = allocator.num_free();
    return false;
  }

  template <BlockAllocator A>
  void schedule_decodes(A& allocator, ScheduledBatch& batch) {
    // The victim is the last that runs, so never one that is in the batch already.
    auto next = line_.begin();
    for (std::uint32_t planned = 0; planned < num_running_; ++planned, ++next) {
      Sequence& seq = *next->seq;
      while (next->running && !try_grow(seq, allocator, seq.num_tokens(), options_.block_size, batch)) {
        preempt_last(allocator, batch);
      }
      if (next->running && seq.num_uncomputed() > 0) { append_chunk(batch, seq, 1); }
    }
  }

  template <BlockAllocator A>
  void preempt_last(A& allocator, ScheduledBatch& batch) {
    preempt_by_recompute(*last_running_->seq, allocator, batch);
    last_running_->running = false;
    --num_running_;
    if (num_running_ > 0) { --last_running_; }
  }

  static std::int32_t append_chunk(ScheduledBatch& batch, Sequence& seq, std::int32_t budget) {
    const std::int32_t num_tokens = std::min(seq.num_uncomputed(), budget);
    append_to_batch(batch, seq, num_tokens);
    return num_tokens;
  }

  SchedulerOptions options_;
  Line line_;
  std::unordered_map<const Sequence*, Line::iterator> places_;
  Line::iterator last_running_{};  // meaningless while nothing runs
  std::uint32_t num_running_ = 0;
  const Sequence* blocked_ = nullptr;   // the waiting sequence that did not get its blocks ...
  std::uint32_t blocked_num_free_ = 0;  // ... when so many were free
};
static_assert(ForkingScheduler<PrefillFirstScheduler>);

}  // namespace nvl::inline NVL_ABI
