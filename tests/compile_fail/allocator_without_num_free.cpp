// EXPECT: nvl: a BlockAllocator needs `std::uint32_t num_free() const noexcept`
#include <nvl/kv/block_allocator.hpp>

struct MyAllocator {
  explicit MyAllocator(const nvl::BlockPoolShape&);
  bool try_allocate(std::span<nvl::BlockId>) noexcept;
  void release(std::span<const nvl::BlockId>) noexcept;
  std::uint32_t num_blocks() const noexcept;
#ifdef NVL_FIXED
  std::uint32_t num_free() const noexcept;
#endif
};
static_assert(nvl::require_block_allocator<MyAllocator>());
