// A refinement that is almost one is reported, not silently left unused.
// EXPECT: nvl: the scheduler has `try_add_running` but is no ForkingScheduler
#include <nvl/sched/prefill_first_scheduler.hpp>

struct MyScheduler : nvl::PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
#ifndef NVL_FIXED
  void try_add_running(nvl::Sequence&);
#endif
};
static_assert(nvl::require_scheduler_policy<MyScheduler>());
