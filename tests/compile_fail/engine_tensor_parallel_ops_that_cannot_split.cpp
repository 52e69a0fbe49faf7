// EXPECT: nvl: the ops of this attention backend cannot split a vocabulary over ranks (ShardingOps)
#include <nvl/nvl.hpp>

#ifdef NVL_FIXED
using MyStrategy = nvl::SingleDevice;
#else
using MyStrategy = nvl::TensorParallel<>;
#endif
using MyEngine = nvl::Engine<nvl::PrefillFirstScheduler, nvl::FreeListAllocator, nvl::AttentionBackendArchetype, MyStrategy>;

void construct(MyEngine&& engine) { static_cast<void>(engine.has_work()); }
static_assert(sizeof(nvl::ModelRunner<nvl::AttentionBackendArchetype, MyStrategy>) > 0);
