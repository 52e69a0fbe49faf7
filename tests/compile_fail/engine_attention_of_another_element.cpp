// EXPECT: nvl::Engine: the attention backend and its ops must have the same Element
#include <nvl/core/dtype.hpp>
#include <nvl/engine/engine.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>

struct MyAttention {
#ifdef NVL_FIXED
  using Element = nvl::DeviceOpsArchetype::Element;
#else
  using Element = nvl::bf16;
#endif
  using Ops = nvl::DeviceOpsArchetype;
  static constexpr std::int32_t block_size = 16;
  static constexpr bool supports(std::int32_t) { return true; }
  MyAttention(const nvl::AttentionShape&, Ops&);
  void plan(const nvl::AttentionMetadata&);
  void run(const nvl::AttentionCall<Element>&);
};
using MyEngine = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, MyAttention, nvl::SingleDevice>;
static_assert(sizeof(MyEngine) > 0);
