// EXPECT: nvl: a Preemption needs `bool try_resume(Sequence&, Allocator&, ScheduledBatch&, std::uint32_t) noexcept`
#include <nvl/sched/token_budget_scheduler.hpp>

struct MyPreemption {
  explicit MyPreemption(const nvl::SchedulerOptions&);
  template <nvl::BlockAllocator A>
  void begin_step(A&, nvl::ScheduledBatch&) noexcept;
  template <nvl::BlockAllocator A>
  bool preempt(nvl::Sequence&, A&, nvl::ScheduledBatch&) noexcept;
#ifdef NVL_FIXED
  template <nvl::BlockAllocator A>
  bool try_resume(nvl::Sequence&, A&, nvl::ScheduledBatch&, std::uint32_t) noexcept;
#endif
  void remove(nvl::Sequence&) noexcept;
};
static_assert(nvl::require_scheduler_policy<nvl::TokenBudgetScheduler<nvl::FcfsOrder, MyPreemption>>());
