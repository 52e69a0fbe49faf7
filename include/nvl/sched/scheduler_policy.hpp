#pragma once
/// Concept SchedulerPolicy: who computes how many tokens in the next step, who is admitted, who is preempted.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/sequence.hpp>

#include <concepts>
#include <cstdint>

namespace nvl::inline NVL_ABI {

struct SchedulerOptions {
  std::int32_t max_num_seqs = 256;             // sequences running at once
  std::int32_t max_num_batched_tokens = 2048;  // [tokens] computed in one step
  std::int32_t block_size = 16;                // [tokens]
};

/// Plans steps. Never touches a device or a token's value. Sequences belong to the engine; a policy keeps pointers from `add`
/// to `remove`. Called by the engine thread only. Constructible from `SchedulerOptions`.
///
/// | expression                | returns       | meaning                                                                                   |
/// |---------------------------|---------------|-------------------------------------------------------------------------------------------|
/// | `s.add(seq)`              | void          | `seq` waits; it owns no blocks; its longest form fits the whole pool (the engine checked) |
/// | `s.schedule(alloc, batch)`| void          | fills the cleared `batch`; for each entry the blocks of its tokens are in                 |
/// |                           |               | `seq.block_table` and `seq.num_computed` is past them; a sequence that gets nothing keeps |
/// |                           |               | what it had; empty only if no sequence has tokens to compute                              |
/// | `s.remove(seq)`           | void          | forgets `seq`, in whatever state; its blocks are the caller's to release                  |
/// | `cs.num_waiting()`        | std::uint32_t | [sequences] without blocks                                                                |
/// | `cs.num_running()`        | std::uint32_t | [sequences] admitted                                                                      |
template <class S, class A = BlockAllocatorArchetype>
concept SchedulerPolicy = std::movable<S> && std::constructible_from<S, const SchedulerOptions&> && BlockAllocator<A> &&
                          requires(S s, const S& cs, Sequence& seq, A& allocator, ScheduledBatch& batch) {
                            s.add(seq);
                            s.schedule(allocator, batch);
                            s.remove(seq);
                            { cs.num_waiting() } noexcept -> std::same_as<std::uint32_t>;
                            { cs.num_running() } noexcept -> std::same_as<std::uint32_t>;
                          };

/// The least SchedulerPolicy. Declared, not defined.
struct SchedulerPolicyArchetype {
  explicit SchedulerPolicyArchetype(const SchedulerOptions&);
  void add(Sequence&);
  template <BlockAllocator A>
  void schedule(A&, ScheduledBatch&);
  void remove(Sequence&);
  std::uint32_t num_waiting() const noexcept;
  std::uint32_t num_running() const noexcept;
};
static_assert(SchedulerPolicy<SchedulerPolicyArchetype>);

}  // namespace nvl::inline NVL_ABI
