#pragma once
/// The second pool of a TieredAllocator: blocks in host memory, for the K and V of sequences that are swapped out.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/free_ids.hpp>

#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// Base of allocators that have such a pool: `class MyAllocator : public HostBlockPool` is a TieredAllocator as soon as it is a
/// BlockAllocator. Deals in ids; the memory is the ModelRunner's. Every host block has one owner. A pool of 0 blocks refuses
/// every allocation but the empty one. Movable; nothing allocates after construction.
class HostBlockPool {
 public:
  explicit HostBlockPool(const BlockPoolShape& shape) : free_host_(shape.num_host_blocks) {}

  bool try_allocate_host(std::span<HostBlockId> out) noexcept { return free_host_.try_take(out); }
  void release_host(std::span<const HostBlockId> ids) noexcept { free_host_.give_back(ids); }
  std::uint32_t num_free_host() const noexcept { return free_host_.size(); }
  std::uint32_t num_host_blocks() const noexcept { return free_host_.capacity(); }

 private:
  FreeIds<HostBlockId> free_host_;
};

}  // namespace nvl::inline NVL_ABI
