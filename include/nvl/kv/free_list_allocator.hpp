#pragma once
/// The plainest BlockAllocator: a stack of free ids. Every block has one owner; nothing is shared or remembered.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Both operations take time proportional to the ids that they move, and allocate no memory.
class FreeListAllocator {
 public:
  explicit FreeListAllocator(const BlockPoolShape& shape) : num_blocks_(shape.num_blocks) {
    free_.reserve(num_blocks_);
    // The lowest id is on top, so that a fresh pool is handed out in order and a long prompt gets neighbouring blocks.
    for (std::uint32_t id = num_blocks_; id > 0; --id) { free_.push_back(BlockId{id - 1}); }
  }

  bool try_allocate(std::span<BlockId> out) noexcept {
    if (out.size() > free_.size()) { return false; }
    for (BlockId& id : out) {
      id = free_.back();
      free_.pop_back();
    }
    return true;
  }

  void release(std::span<const BlockId> ids) noexcept {
    // Backwards, so that a block table that is released and allocated again comes back in its order.
    for (std::size_t i = ids.size(); i > 0; --i) {
      assert(index_of(ids[i - 1]) < num_blocks_ && free_.size() < num_blocks_);
      free_.push_back(ids[i - 1]);  // within the reserved capacity: cannot throw
    }
  }

  std::uint32_t num_free() const noexcept { return static_cast<std::uint32_t>(free_.size()); }
  std::uint32_t num_blocks() const noexcept { return num_blocks_; }

 private:
  std::vector<BlockId> free_;  // stack
  std::uint32_t num_blocks_ = 0;
};
static_assert(BlockAllocator<FreeListAllocator>);

}  // namespace nvl::inline NVL_ABI
