// EXPECT: nvl: a SchedulerPolicy needs `void schedule(Allocator&, ScheduledBatch&)` for this allocator
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/scheduler_policy.hpp>

struct MyScheduler {
  explicit MyScheduler(const nvl::SchedulerOptions&);
  void add(nvl::Sequence&);
#ifdef NVL_FIXED
  template <nvl::BlockAllocator A>
  void schedule(A&, nvl::ScheduledBatch&);
#else
  void schedule(nvl::FreeListAllocator&, nvl::ScheduledBatch&);
#endif
  void remove(nvl::Sequence&);
  std::uint32_t num_waiting() const noexcept;
  std::uint32_t num_running() const noexcept;
};
static_assert(nvl::require_scheduler_policy<MyScheduler, nvl::FreeListAllocator>());
static_assert(nvl::require_scheduler_policy<MyScheduler, nvl::PrefixCacheAllocator>());
