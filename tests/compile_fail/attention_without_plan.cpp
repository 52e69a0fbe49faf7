// EXPECT: nvl: an AttentionBackend needs `void plan(const AttentionMetadata&)`
#include <nvl/attention/attention_backend.hpp>

struct MyAttention {
  using Element = float;
  using Ops = nvl::DeviceOpsArchetype;
  static constexpr std::int32_t block_size = 16;
  static constexpr bool supports(std::int32_t) { return true; }
  MyAttention(const nvl::AttentionShape&, Ops&);
#ifdef NVL_FIXED
  void plan(const nvl::AttentionMetadata&);
#endif
  void run(const nvl::AttentionCall<float>&);
};
static_assert(nvl::require_attention_backend<MyAttention>());
