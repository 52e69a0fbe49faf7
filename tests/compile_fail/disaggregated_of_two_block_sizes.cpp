// EXPECT: nvl::DisaggregatedEngine: both engines must have the same block size
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/nvl.hpp>

template <std::int32_t kBlockSize>
using Half = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator,
                         nvl::CpuPagedAttention<float, nvl::dynamic_head_dim, kBlockSize>, nvl::SingleDevice>;
#ifdef NVL_FIXED
using Pair = nvl::DisaggregatedEngine<Half<16>, Half<16>>;
#else
using Pair = nvl::DisaggregatedEngine<Half<16>, Half<32>>;
#endif

std::size_t size() { return sizeof(Pair); }
