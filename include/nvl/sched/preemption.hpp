#pragma once
/// Concept Preemption: how a running sequence gives up its blocks, and how it gets them back. The least: forget and recompute.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <concepts>
#include <cstdint>

namespace nvl::inline NVL_ABI {

namespace detail::preemption {

template <class P, class A>
concept has_begin_step = requires(P p, A& allocator, ScheduledBatch& batch) {
  { p.begin_step(allocator, batch) } noexcept;
};
template <class P, class A>
concept has_preempt = requires(P p, Sequence& seq, A& allocator, ScheduledBatch& batch) {
  { p.preempt(seq, allocator, batch) } noexcept -> std::same_as<bool>;
};
template <class P, class A>
concept has_try_resume = requires(P p, Sequence& seq, A& allocator, ScheduledBatch& batch, std::uint32_t reserve) {
  { p.try_resume(seq, allocator, batch, reserve) } noexcept -> std::same_as<bool>;
};
template <class P>
concept has_remove = requires(P p, Sequence& seq) {
  { p.remove(seq) } noexcept;
};

}  // namespace detail::preemption

/// The way out and back in of sequences that lose their blocks, over an allocator of type A. The scheduler decides who goes and
/// when; a victim that is `preempted` comes back by try_admit, one that is `swapped` by `try_resume`. Constructible from
/// `SchedulerOptions`.
///
/// | expression                       | returns | throws | meaning                                                               |
/// |----------------------------------|---------|--------|-----------------------------------------------------------------------|
/// | `p.begin_step(a, batch)`         | void    | never  | first in each `schedule`: the transfers of the batch before are done  |
/// |                                  |         |        | by the time this one's begin; releases what waited for them           |
/// | `p.preempt(seq, a, batch)`       | bool    | never  | `seq` runs no longer: its status is preempted or swapped, it is in    |
/// |                                  |         |        | `batch.preempted` or `batch.swapped`; true: its blocks are free now;  |
/// |                                  |         |        | false: they will be after the next `begin_step`                       |
/// | `p.try_resume(seq, a, batch, r)` | bool    | never  | the swapped `seq` has blocks for all its tokens and is running, or    |
/// |                                  |         |        | loading until the next step; at least `r` blocks stay free; 0: nobody |
/// |                                  |         |        | runs, so no threshold may keep it out; false: nothing changed         |
/// | `p.remove(seq)`                  | void    | never  | forgets `seq`, in whatever state; its blocks are the caller's         |
template <class P, class A = BlockAllocatorArchetype>
concept Preemption = std::movable<P> && std::constructible_from<P, const SchedulerOptions&> && BlockAllocator<A> &&
                     detail::preemption::has_begin_step<P, A> && detail::preemption::has_preempt<P, A> &&
                     detail::preemption::has_try_resume<P, A> && detail::preemption::has_remove<P>;

/// Refinement: looks ahead, so that blocks are free when they are needed, and nobody comes back only to leave again.
///
/// | expression                      | returns      | meaning                                                                    |
/// |---------------------------------|--------------|----------------------------------------------------------------------------|
/// | `cp.steps_ahead()`              | std::int32_t | noexcept; [steps] after the one that is planned for which the free blocks  |
/// |                                 |              | have to last; if they do not, the last of the line leaves early            |
/// | `cp.steps_after_resume()`       | std::int32_t | noexcept; [steps] for which they have to last when a swapped one is back   |
/// | `p.try_swap_out(seq, a, batch)` | bool         | noexcept; as `preempt` with false; or false: nothing changed, to leave     |
/// |                                 |              | early would gain nothing                                                   |
template <class P, class A>
concept ForesightedPreemption =
    Preemption<P, A> && requires(P p, const P& cp, Sequence& seq, A& allocator, ScheduledBatch& batch) {
      { cp.steps_ahead() } noexcept -> std::same_as<std::int32_t>;
      { cp.steps_after_resume() } noexcept -> std::same_as<std::int32_t>;
      { p.try_swap_out(seq, allocator, batch) } noexcept -> std::same_as<bool>;
    };

/// The least Preemption. Declared, not defined.
struct PreemptionArchetype {
  explicit PreemptionArchetype(const SchedulerOptions&);
  template <BlockAllocator A>
  void begin_step(A&, ScheduledBatch&) noexcept;
  template <BlockAllocator A>
  bool preempt(Sequence&, A&, ScheduledBatch&) noexcept;
  template <BlockAllocator A>
  bool try_resume(Sequence&, A&, ScheduledBatch&, std::uint32_t reserve) noexcept;
  void remove(Sequence&) noexcept;
};

/// True if P is a Preemption over A; else the compiler says which member is missing.
template <class P, class A = BlockAllocatorArchetype>
consteval bool require_preemption() {
  namespace has = detail::preemption;
  static_assert(std::movable<P>, "nvl: a Preemption must be movable");
  static_assert(std::constructible_from<P, const SchedulerOptions&>,
                "nvl: a Preemption needs a constructor from `const SchedulerOptions&`");
  static_assert(has::has_begin_step<P, A>,
                "nvl: a Preemption needs `void begin_step(Allocator&, ScheduledBatch&) noexcept` for this allocator");
  static_assert(has::has_preempt<P, A>,
                "nvl: a Preemption needs `bool preempt(Sequence&, Allocator&, ScheduledBatch&) noexcept` for this allocator (one "
                "that swaps: an allocator with host blocks, see TieredAllocator)");
  static_assert(has::has_try_resume<P, A>,
                "nvl: a Preemption needs `bool try_resume(Sequence&, Allocator&, ScheduledBatch&, std::uint32_t) noexcept` for "
                "this allocator");
  static_assert(has::has_remove<P>, "nvl: a Preemption needs `void remove(Sequence&) noexcept`");
  static_assert(
      !requires(const P& p) { p.steps_ahead(); } || ForesightedPreemption<P, A>,
      "nvl: the preemption has `steps_ahead` but is no ForesightedPreemption: compare with the table in "
      "nvl/sched/preemption.hpp");
  return true;
}
static_assert(require_preemption<PreemptionArchetype>());

/// Blocks are given up at once and their tokens computed again, from the first that the prefix cache has lost.
class RecomputePreemption {
 public:
  explicit RecomputePreemption(const SchedulerOptions&) noexcept {}

  template <BlockAllocator A>
  void begin_step(A&, ScheduledBatch&) noexcept {}

  template <BlockAllocator A>
  bool preempt(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    preempt_by_recompute(seq, allocator, batch);  // the scheduler has reserved the place in the batch
    return true;
  }

  /// Nobody is ever swapped.
  template <BlockAllocator A>
  bool try_resume(Sequence&, A&, ScheduledBatch&, std::uint32_t) noexcept {
    return false;
  }

  void remove(Sequence&) noexcept {}
};
static_assert(Preemption<RecomputePreemption>);

}  // namespace nvl::inline NVL_ABI
