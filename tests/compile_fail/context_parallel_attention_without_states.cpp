// EXPECT: nvl: ranks that share tokens merge attention states, which this attention backend does not give
#include <nvl/nvl.hpp>

#ifdef NVL_FIXED
using MyAttention = nvl::CpuPagedAttention<float>;
#else
struct MyAttention : nvl::CpuPagedAttention<float> {
  using CpuPagedAttention::CpuPagedAttention;
  static constexpr bool gives_states = false;
};
#endif
static_assert(sizeof(nvl::ModelRunner<MyAttention, nvl::ContextParallel<>>) > 0);
