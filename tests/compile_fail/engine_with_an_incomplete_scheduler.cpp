// An engine says which of its policies lacks what.
// EXPECT: nvl: a SchedulerPolicy needs `void add(Sequence&)`
#include <nvl/engine/engine.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/parallel/single_device.hpp>

struct MyScheduler {
  explicit MyScheduler(const nvl::SchedulerOptions&);
#ifdef NVL_FIXED
  void add(nvl::Sequence&);
#endif
  template <nvl::BlockAllocator A>
  void schedule(A&, nvl::ScheduledBatch&);
  void remove(nvl::Sequence&);
  std::uint32_t num_waiting() const noexcept;
  std::uint32_t num_running() const noexcept;
};
using MyEngine = nvl::Engine<MyScheduler, nvl::FreeListAllocator, nvl::AttentionBackendArchetype, nvl::SingleDevice>;
static_assert(sizeof(MyEngine) > 0);
