#pragma once
/// Concept SchedulerPolicy: who computes how many tokens in the next step, who is admitted, who is preempted.

#include <nvl/core/config.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduling_options.hpp>
#include <nvl/sched/sequence.hpp>

#include <concepts>
#include <cstdint>

namespace nvl::inline NVL_ABI {

struct SchedulerOptions {
  std::int32_t max_num_seqs = 256;             // sequences running at once
  std::int32_t max_num_batched_tokens = 2048;  // [tokens] computed in one step
  std::int32_t block_size = 16;                // [tokens]
  std::int32_t num_micro_batches = 1;          // steps that are under way at once, of different sequences
  SchedulingOptions scheduling{};              // of policies that mix prompts and decodes
  SlidingWindow window{};                      // of the model, if none of its layers sees farther
};

namespace detail::scheduler_policy {

template <class S>
concept has_add = requires(S s, Sequence& seq) { s.add(seq); };
template <class S, class A>
concept has_schedule = requires(S s, A& allocator, ScheduledBatch& batch) { s.schedule(allocator, batch); };
template <class S>
concept has_remove = requires(S s, Sequence& seq) { s.remove(seq); };
template <class S>
concept has_num_waiting = requires(const S& s) {
  { s.num_waiting() } noexcept -> std::same_as<std::uint32_t>;
};
template <class S>
concept has_num_running = requires(const S& s) {
  { s.num_running() } noexcept -> std::same_as<std::uint32_t>;
};

}  // namespace detail::scheduler_policy

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
/// | `cs.num_running()`        | std::uint32_t | [sequences] running or loading                                                            |
/// | `cs.num_waiting()`        | std::uint32_t | [sequences] that are neither: waiting, preempted, swapped                                 |
///
/// The functions of sched/admission.hpp admit, grow and preempt, and keep the fields of Sequence right. A sequence that was
/// preempted is not in the batch of the same step. Once no more are added, every sequence ends. Without the memory to plan,
/// `schedule` may throw: if it leaves the batch empty and everything as it was, the engine calls it again.
template <class S, class A = BlockAllocatorArchetype>
concept SchedulerPolicy = std::movable<S> && std::constructible_from<S, const SchedulerOptions&> && BlockAllocator<A> &&
                          detail::scheduler_policy::has_add<S> && detail::scheduler_policy::has_schedule<S, A> &&
                          detail::scheduler_policy::has_remove<S> && detail::scheduler_policy::has_num_waiting<S> &&
                          detail::scheduler_policy::has_num_running<S>;

/// Refinement: a sequence may come with blocks, as a fork of one that runs. Forks of a scheduler that does not model it wait like
/// any other sequence and compute again what the prefix cache does not hold.
///
/// | expression              | returns | meaning                                                                                  |
/// |-------------------------|---------|------------------------------------------------------------------------------------------|
/// | `s.try_add_running(seq)`| bool    | `seq`, new to `s`, owns the blocks of its first num_computed tokens and runs from the     |
/// |                         |         | next `schedule` on; false: max_num_seqs run already, and nothing changed                 |
template <class S, class A = BlockAllocatorArchetype>
concept ForkingScheduler = SchedulerPolicy<S, A> && requires(S s, Sequence& seq) {
  { s.try_add_running(seq) } -> std::same_as<bool>;
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

/// True if S is a SchedulerPolicy over A; else the compiler says which member is missing. For use beside a policy of one's own:
/// `static_assert(nvl::require_scheduler_policy<MyScheduler>());`
template <class S, class A = BlockAllocatorArchetype>
consteval bool require_scheduler_policy() {
  namespace has = detail::scheduler_policy;
  static_assert(std::movable<S>, "nvl: a SchedulerPolicy must be movable");
  static_assert(std::constructible_from<S, const SchedulerOptions&>,
                "nvl: a SchedulerPolicy needs a constructor from `const SchedulerOptions&`");
  static_assert(has::has_add<S>, "nvl: a SchedulerPolicy needs `void add(Sequence&)`");
  if constexpr (requires { S::template require_allocator<A>(); }) { static_assert(S::template require_allocator<A>()); }
  static_assert(has::has_schedule<S, A>,
                "nvl: a SchedulerPolicy needs `void schedule(Allocator&, ScheduledBatch&)` for this allocator");
  static_assert(has::has_remove<S>, "nvl: a SchedulerPolicy needs `void remove(Sequence&)`");
  static_assert(has::has_num_waiting<S>, "nvl: a SchedulerPolicy needs `std::uint32_t num_waiting() const noexcept`");
  static_assert(has::has_num_running<S>, "nvl: a SchedulerPolicy needs `std::uint32_t num_running() const noexcept`");
  // A refinement with a spelling mistake would otherwise be left unused without a word.
  static_assert(
      !requires { &S::try_add_running; } || ForkingScheduler<S, A>,
      "nvl: the scheduler has `try_add_running` but is no ForkingScheduler: compare with the table in "
      "nvl/sched/scheduler_policy.hpp");
  return true;
}
static_assert(require_scheduler_policy<SchedulerPolicyArchetype>());

}  // namespace nvl::inline NVL_ABI
