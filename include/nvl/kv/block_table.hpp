#pragma once
/// Arithmetic of a sequence's block table: how many blocks hold n tokens, where a token's K and V lie.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// [blocks] that `num_tokens` tokens take.
constexpr std::size_t blocks_for(std::int32_t num_tokens, std::int32_t block_size) noexcept {
  return static_cast<std::size_t>(ceil_div(num_tokens, block_size));
}

/// [blocks] that `num_tokens` tokens fill to the last slot. Only these can be cached.
constexpr std::int32_t full_blocks(std::int32_t num_tokens, std::int32_t block_size) noexcept { return num_tokens / block_size; }

/// Slot of the token at `position`, whose block is in `block_table`.
constexpr SlotId slot_of(std::span<const BlockId> block_table, std::int32_t position, std::int32_t block_size) noexcept {
  const BlockId block = block_table[static_cast<std::size_t>(position / block_size)];
  return SlotId{index_of(block)} * block_size + position % block_size;
}

}  // namespace nvl::inline NVL_ABI
