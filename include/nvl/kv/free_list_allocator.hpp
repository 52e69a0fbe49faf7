#pragma once
/// The plainest BlockAllocator: a stack of free ids. Every block has one owner; nothing is shared or remembered.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/host_block_pool.hpp>

#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// Both operations take time proportional to the ids that they move, and allocate no memory.
class FreeListAllocator : public HostBlockPool {
 public:
  explicit FreeListAllocator(const BlockPoolShape& shape) : HostBlockPool(shape), free_(shape.num_blocks) {}

  bool try_allocate(std::span<BlockId> out) noexcept { return free_.try_take(out); }
  void release(std::span<const BlockId> ids) noexcept { free_.give_back(ids); }
  std::uint32_t num_free() const noexcept { return free_.size(); }
  std::uint32_t num_blocks() const noexcept { return free_.capacity(); }

 private:
  FreeIds<BlockId> free_;
};
static_assert(TieredAllocator<FreeListAllocator>);

}  // namespace nvl::inline NVL_ABI
