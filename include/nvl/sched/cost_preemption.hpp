#pragma once
/// The Preemption that chooses, for each victim, what costs less: moving its blocks out and back in, or computing its tokens anew.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/preemption_costs.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/swap_preemption.hpp>

#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Blocks that others own too will be there when the victim comes back: they are neither computed again nor copied in.
/// What is to be recomputed goes at once; what is to be swapped goes as with SwapPreemption, early and with its thresholds.
class CostPreemption {
 public:
  explicit CostPreemption(const SchedulerOptions& options)
      : swap_(options),
        costs_(options.scheduling.preemption_costs),
        block_size_(options.block_size) {}

  template <BlockAllocator A>
  void begin_step(A& allocator, ScheduledBatch& batch) noexcept {
    swap_.begin_step(allocator, batch);
  }

  template <TieredAllocator A>
  bool preempt(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    if (try_swap_out(seq, allocator, batch)) { return false; }
    preempt_by_recompute(seq, allocator, batch);
    return true;
  }

  template <TieredAllocator A>
  bool try_swap_out(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    return prefers_swap(seq, allocator) && swap_.try_swap_out(seq, allocator, batch);
  }

  template <TieredAllocator A>
  bool try_resume(Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) noexcept {
    return swap_.try_resume(seq, allocator, batch, reserve);
  }

  void remove(Sequence& seq) noexcept { swap_.remove(seq); }

  std::int32_t steps_ahead() const noexcept { return swap_.steps_ahead(); }
  std::int32_t steps_after_resume() const noexcept { return swap_.steps_after_resume(); }

  /// Whether moving the blocks of `seq` costs less than computing its tokens again.
  template <BlockAllocator A>
  bool prefers_swap(const Sequence& seq, const A& allocator) const noexcept {
    const std::size_t num_blocks = blocks_for(seq.num_computed, block_size_);
    std::size_t num_lasting = 0;
    if constexpr (SharingAllocator<A>) {
      const auto num_full = static_cast<std::size_t>(full_blocks(seq.num_computed, block_size_));
      while (num_lasting < num_full && allocator.num_owners(seq.block_table[num_lasting]) > 1) { ++num_lasting; }
    }
    const auto tokens_in = [&](std::size_t blocks) { return static_cast<double>(blocks) * block_size_; };
    const double swap = (costs_.swap(tokens_in(num_blocks)) + costs_.swap(tokens_in(num_blocks - num_lasting))) / 2;
    return swap < costs_.recompute(seq.num_computed) - costs_.recompute(tokens_in(num_lasting));
  }

 private:
  SwapPreemption swap_;
  PreemptionCosts costs_;
  std::int32_t block_size_;
};
static_assert(Preemption<CostPreemption, FreeListAllocator> && ForesightedPreemption<CostPreemption, FreeListAllocator>);

}  // namespace nvl::inline NVL_ABI
