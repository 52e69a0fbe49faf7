// EXPECT: nvl::Engine: ranks that share tokens have blocks of as many times the backend's block_size as there are ranks
#include <nvl/nvl.hpp>

struct MyAllocator : nvl::FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
#ifndef NVL_FIXED
  static constexpr std::int32_t block_size = 16;
#endif
};
using MyEngine = nvl::Engine<nvl::PrefillFirstScheduler, MyAllocator, nvl::CpuPagedAttention<float>, nvl::ContextParallel<>>;
static_assert(sizeof(MyEngine) > 0);
