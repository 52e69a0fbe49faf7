#pragma once
/// Blocks that are kept for something other than a sequence of the engine.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// While it lives nobody else is given its blocks and nobody writes them. They go back when it dies: on the engine's thread,
/// between two steps, and before the engine.
template <BlockAllocator A>
class BlockLease {
 public:
  BlockLease() = default;
  /// Takes over one reference to each of `blocks`. \param num_leased counts the blocks under a lease; outlives it, as `allocator` does
  BlockLease(A& allocator, std::uint32_t& num_leased, std::vector<BlockId> blocks) noexcept
      : allocator_(&allocator),
        num_leased_(&num_leased),
        blocks_(std::move(blocks)) {
    *num_leased_ += static_cast<std::uint32_t>(blocks_.size());
  }
  BlockLease(BlockLease&& other) noexcept { swap(other); }
  BlockLease& operator=(BlockLease&& other) noexcept {
    reset();
    swap(other);
    return *this;
  }
  ~BlockLease() { reset(); }

  std::span<const BlockId> blocks() const noexcept { return blocks_; }

  void reset() noexcept {
    if (allocator_ == nullptr) { return; }
    *num_leased_ -= static_cast<std::uint32_t>(blocks_.size());
    std::exchange(allocator_, nullptr)->release(blocks_);
    blocks_.clear();
  }

 private:
  void swap(BlockLease& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(num_leased_, other.num_leased_);
    blocks_.swap(other.blocks_);
  }

  A* allocator_ = nullptr;
  std::uint32_t* num_leased_ = nullptr;
  std::vector<BlockId> blocks_;
};

}  // namespace nvl::inline NVL_ABI
