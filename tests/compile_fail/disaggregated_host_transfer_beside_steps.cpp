// EXPECT: nvl::DisaggregatedEngine: the decode engine's ops run ahead
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/nvl.hpp>

using Half = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, nvl::CpuPagedAttention<float>, nvl::SingleDevice>;

#ifdef NVL_FIXED
using Decode = Half;
#else
struct Decode : Half {
  using Half::Half;
  static constexpr bool runs_ahead = true;
};
#endif

std::size_t size() { return sizeof(nvl::DisaggregatedEngine<Half, Decode>); }
