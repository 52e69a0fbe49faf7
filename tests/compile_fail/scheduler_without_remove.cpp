// EXPECT: nvl: a SchedulerPolicy needs `void remove(Sequence&)`
#include <nvl/sched/scheduler_policy.hpp>

struct MyScheduler {
  explicit MyScheduler(const nvl::SchedulerOptions&);
  void add(nvl::Sequence&);
  template <nvl::BlockAllocator A>
  void schedule(A&, nvl::ScheduledBatch&);
#ifdef NVL_FIXED
  void remove(nvl::Sequence&);
#endif
  std::uint32_t num_waiting() const noexcept;
  std::uint32_t num_running() const noexcept;
};
static_assert(nvl::require_scheduler_policy<MyScheduler>());
