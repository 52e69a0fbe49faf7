// EXPECT: nvl: CpuPagedAttention is not compiled for this HeadDim
#include <nvl/attention/cpu_paged_attention.hpp>

#ifdef NVL_FIXED
using MyAttention = nvl::CpuPagedAttention<float, 64>;
#else
using MyAttention = nvl::CpuPagedAttention<float, 63>;
#endif
static_assert(MyAttention::block_size == 16);
