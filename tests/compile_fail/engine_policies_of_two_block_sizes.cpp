// EXPECT: nvl::Engine: the allocator is made for another block size than the attention backend
#include <nvl/engine/engine.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>

struct MyAllocator : nvl::FreeListAllocator {
  using FreeListAllocator::FreeListAllocator;
#ifdef NVL_FIXED
  static constexpr std::int32_t block_size = nvl::AttentionBackendArchetype::block_size;
#else
  static constexpr std::int32_t block_size = 2 * nvl::AttentionBackendArchetype::block_size;
#endif
};
using MyEngine = nvl::Engine<nvl::PrefillFirstScheduler, MyAllocator, nvl::AttentionBackendArchetype, nvl::SingleDevice>;
static_assert(sizeof(MyEngine) > 0);
