// EXPECT: nvl: a BlockAllocator needs `bool try_allocate(std::span<BlockId>) noexcept`
#include <nvl/kv/block_allocator.hpp>

#ifdef NVL_FIXED
#define MAY_THROW noexcept
#else
#define MAY_THROW
#endif

struct MyAllocator {
  explicit MyAllocator(const nvl::BlockPoolShape&);
  bool try_allocate(std::span<nvl::BlockId>) MAY_THROW;
  void release(std::span<const nvl::BlockId>) noexcept;
  std::uint32_t num_free() const noexcept;
  std::uint32_t num_blocks() const noexcept;
};
static_assert(nvl::require_block_allocator<MyAllocator>());
