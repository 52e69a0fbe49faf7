// EXPECT: nvl: an AttentionBackend needs the types `Element` and `Ops`
#include <nvl/attention/attention_backend.hpp>

struct MyAttention {
  using Element = float;
#ifdef NVL_FIXED
  using Ops = nvl::DeviceOpsArchetype;
#endif
  static constexpr std::int32_t block_size = 16;
  static constexpr bool supports(std::int32_t) { return true; }
  MyAttention(const nvl::AttentionShape&, nvl::DeviceOpsArchetype&);
  void plan(const nvl::AttentionMetadata&);
  void run(const nvl::AttentionCall<float>&);
};
static_assert(nvl::require_attention_backend<MyAttention>());
