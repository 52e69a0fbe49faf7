// EXPECT: nvl: a KvTransfer needs `std::uint64_t num_done()`
#include <nvl/attention/kv_transfer.hpp>

struct MyTransfer {
  using Element = float;
  using Device = nvl::CpuDevice;
  MyTransfer(Device&, const nvl::KvCache<float>&, Device&, const nvl::KvCache<float>&);
  void start(std::span<const nvl::BlockCopy>);
#ifdef NVL_FIXED
  std::uint64_t num_done();
#endif
};
static_assert(nvl::require_kv_transfer<MyTransfer>());
