// EXPECT: nvl::DisaggregatedEngine: the decode engine's scheduler must take sequences that come with blocks
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/nvl.hpp>

struct TakesNoForks {
  explicit TakesNoForks(const nvl::SchedulerOptions& options) : base(options) {}
  void add(nvl::Sequence& seq) { base.add(seq); }
  template <nvl::BlockAllocator A>
  void schedule(A& allocator, nvl::ScheduledBatch& batch) {
    base.schedule(allocator, batch);
  }
  void remove(nvl::Sequence& seq) { base.remove(seq); }
  std::uint32_t num_waiting() const noexcept { return base.num_waiting(); }
  std::uint32_t num_running() const noexcept { return base.num_running(); }
#ifdef NVL_FIXED
  bool try_add_running(nvl::Sequence& seq) { return base.try_add_running(seq); }
#endif
  nvl::PrefillFirstScheduler base;
};

using Prefill = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, nvl::CpuPagedAttention<float>, nvl::SingleDevice>;
using Decode = Prefill::with_scheduler<TakesNoForks>;

std::size_t size() { return sizeof(nvl::DisaggregatedEngine<Prefill, Decode>); }
