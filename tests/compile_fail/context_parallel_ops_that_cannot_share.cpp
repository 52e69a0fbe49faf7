// EXPECT: nvl: the ops of this attention backend cannot share tokens over ranks (TokenSharingOps)
#include <nvl/nvl.hpp>

struct MyAttention : nvl::AttentionBackendArchetype {
  using AttentionBackendArchetype::AttentionBackendArchetype;
  static constexpr bool gives_states = true;
};
#ifdef NVL_FIXED
using MyStrategy = nvl::SingleDevice;
#else
using MyStrategy = nvl::ContextParallel<>;
#endif
static_assert(sizeof(nvl::ModelRunner<MyAttention, MyStrategy>) > 0);
