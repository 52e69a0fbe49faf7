#pragma once
/// Makes the blocks that a step filled findable.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/sequence.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// Publishes the blocks of `seq` that are full and not yet published. Called when the steps that computed the first
/// `num_computed` tokens have finished; a block whose K and V are still being written must not be found by others.
/// Does nothing for an allocator without a prefix cache.
template <BlockAllocator A>
void publish_full_blocks(Sequence& seq, A& allocator, std::int32_t block_size, std::int32_t num_computed) {
  if constexpr (PrefixCachingAllocator<A>) {
    if (seq.num_published == 0) { seq.published_prefix = seq.prefix_root; }
    for (; seq.num_published < full_blocks(num_computed, block_size); ++seq.num_published) {
      const auto i = static_cast<std::size_t>(seq.num_published);
      const auto size = static_cast<std::size_t>(block_size);
      const auto content = std::span<const TokenId>(seq.tokens).subspan(i * size, size);
      seq.published_prefix = allocator.publish(seq.published_prefix, content, seq.block_table[i]);
    }
  }
}

/// As above, when every planned token of `seq` has been computed.
template <BlockAllocator A>
void publish_full_blocks(Sequence& seq, A& allocator, std::int32_t block_size) {
  publish_full_blocks(seq, allocator, block_size, seq.num_computed);
}

}  // namespace nvl::inline NVL_ABI
