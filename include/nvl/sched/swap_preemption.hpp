#pragma once
/// The Preemption that keeps what was computed: the blocks of a victim move to a pool in host memory, and come back from there.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A victim's blocks are copied out beside the step that does without it, and are free in the next. They come back beside a step,
/// too, and the sequence computes from the one after it. What the prefix cache still has, or has again because others computed
/// the same tokens meanwhile, is shared and not copied (KsanaLLM merges such blocks when it swaps in). Nothing is computed twice,
/// so the output is that of a sequence that was never preempted.
///
/// Against thrash, two thresholds (KsanaLLM's are in blocks a sequence; here they are in time): victims leave already when the
/// blocks do not last for SchedulingOptions::swap_out_steps more steps of everybody, and one comes back only if they then last
/// for swap_in_steps.
///
/// A victim is recomputed instead if the host pool is full, if there is nothing to copy, or if there is no memory for the lists.
///
/// Works over any TieredAllocator; without host blocks it is RecomputePreemption. Costs O(blocks moved).
class SwapPreemption {
 public:
  explicit SwapPreemption(const SchedulerOptions& options)
      : block_size_(options.block_size),
        steps_ahead_(options.scheduling.swap_out_steps),
        steps_after_resume_(options.scheduling.swap_in_steps) {
    const auto most = static_cast<std::size_t>(options.max_num_seqs);
    leaving_.reserve(most);
    arriving_.reserve(most);
  }

  template <BlockAllocator A>
  void begin_step(A& allocator, ScheduledBatch&) noexcept {
    for (Sequence* seq : leaving_) {
      const std::int32_t num_computed = seq->num_computed;
      release_blocks(*seq, allocator);
      seq->num_computed = num_computed;
    }
    leaving_.clear();
    for (Sequence* seq : arriving_) { release_host_blocks(*seq, allocator); }
    arriving_.clear();
  }

  template <TieredAllocator A>
  bool preempt(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    if (try_swap_out(seq, allocator, batch)) { return false; }
    preempt_by_recompute(seq, allocator, batch);
    return true;
  }

  /// The first half of `preempt`; false: nothing changed.
  template <TieredAllocator A>
  bool try_swap_out(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    const std::size_t num_blocks = blocks_for(seq.num_computed, block_size_);
    // What a window has left behind cannot be brought back, and would be published.
    if (num_blocks == 0 || seq.num_released > 0 || num_blocks > allocator.num_free_host() ||
        leaving_.size() == leaving_.capacity()) {
      return false;
    }
    // What this step first brings into its blocks is not there yet.
    const bool is_filled_now = seq.status == SeqStatus::loading || std::ranges::any_of(batch.copies, [&](const BlockCopy& copy) {
                                 return std::ranges::count(seq.owned_blocks(), copy.to) > 0;
                               });
    if (is_filled_now || !detail::has_memory_for([&] {
          seq.host_table.resize(num_blocks);
          reserve_more(batch.swap_out, num_blocks);
          reserve_more(batch.swapped, 1);
        }) ||
        !allocator.try_allocate_host(seq.host_table)) {
      seq.host_table.clear();
      return false;
    }
    for (std::size_t i = 0; i < num_blocks; ++i) {
      batch.swap_out.push_back({.device = seq.block_table[i], .host = seq.host_table[i]});
    }
    batch.swapped.push_back(&seq);
    leaving_.push_back(&seq);
    seq.status = SeqStatus::swapped;
    ++seq.num_preemptions;
    return true;
  }

  template <TieredAllocator A>
  bool try_resume(Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) noexcept {
    const bool is_leaving = !seq.block_table.empty();
    if (is_leaving || arriving_.size() == arriving_.capacity()) { return false; }
    PrefixId prefix = seq.prefix_root;
    const bool has_memory = detail::has_memory_for([&] {
      seq.block_table.reserve(blocks_for(std::max(seq.num_tokens(), seq.max_total_tokens), block_size_));
      reserve_more(batch.swap_in, seq.host_table.size());
      if constexpr (PrefixCachingAllocator<A>) {
        const auto num_full =
            static_cast<std::size_t>(full_blocks(seq.num_computed, block_size_)) * static_cast<std::size_t>(block_size_);
        prefix = allocator.match(prefix, std::span<const TokenId>(seq.tokens).first(num_full), seq.block_table);
      }
    });
    if (!has_memory) { return false; }
    const std::size_t num_found = seq.block_table.size();
    if (!try_take_blocks(seq, allocator, batch, reserve)) {
      seq.block_table.resize(num_found);
      allocator.release(seq.block_table);
      seq.block_table.clear();
      return false;
    }
    for (std::size_t i = num_found; i < seq.host_table.size(); ++i) {
      batch.swap_in.push_back({.device = seq.block_table[i], .host = seq.host_table[i]});
    }
    seq.num_published = static_cast<std::int32_t>(num_found);
    seq.published_prefix = prefix;
    if (num_found == seq.host_table.size()) {
      release_host_blocks(seq, allocator);
      seq.status = SeqStatus::running;
    } else {
      arriving_.push_back(&seq);
      seq.status = SeqStatus::loading;
    }
    return true;
  }

  void remove(Sequence& seq) noexcept {
    std::erase(leaving_, &seq);
    std::erase(arriving_, &seq);
  }

  std::int32_t steps_ahead() const noexcept { return steps_ahead_; }
  std::int32_t steps_after_resume() const noexcept { return steps_after_resume_; }

 private:
  /// Blocks for all tokens of `seq`, behind those that it has. False: nothing but the size of its table may have changed.
  template <TieredAllocator A>
  bool try_take_blocks(Sequence& seq, A& allocator, const ScheduledBatch& batch, std::uint32_t reserve) const noexcept {
    const std::size_t have = seq.block_table.size();
    const std::size_t need = blocks_for(seq.num_tokens(), block_size_);
    const std::size_t num_transfers = batch.swap_in.size() + (seq.host_table.size() - have);
    if (need - have + reserve > allocator.num_free() || num_transfers > allocator.num_host_blocks()) { return false; }
    seq.block_table.resize(need);  // within the reserved capacity
    const std::span<BlockId> taken = std::span(seq.block_table).subspan(have);
    if (!allocator.try_allocate(taken)) { return false; }
    const bool is_read = batch.copies_from(taken);
    if (is_read) { allocator.release(taken); }
    return !is_read;
  }

  template <class T>
  static void reserve_more(std::vector<T>& list, std::size_t count) {
    const std::size_t need = list.size() + count;
    if (need > list.capacity()) { list.reserve(std::max(need, 2 * list.capacity())); }
  }

  std::int32_t block_size_;
  std::int32_t steps_ahead_, steps_after_resume_;
  std::vector<Sequence*> leaving_;   // their blocks on the device are free when the copies of the step planned last are done
  std::vector<Sequence*> arriving_;  // and so are the host blocks of these
};
static_assert(Preemption<SwapPreemption, FreeListAllocator> && ForesightedPreemption<SwapPreemption, FreeListAllocator>);

}  // namespace nvl::inline NVL_ABI
