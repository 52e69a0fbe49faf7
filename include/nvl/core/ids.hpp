#pragma once
/// Integer ids that do not mix: a BlockId is never an index into sequences.

#include <nvl/core/config.hpp>

#include <cstdint>
#include <type_traits>

namespace nvl::inline NVL_ABI {

/// A token of the vocabulary, 0 <= id < vocab_size. Plain integer: tensors are made of them.
using TokenId = std::int32_t;

/// A request, unique in its Engine for the life of the Engine.
enum class RequestId : std::uint64_t {};
/// A sequence (one choice of a request), unique in its Engine for the life of the Engine.
enum class SeqId : std::uint64_t {};
/// A physical block of the KV cache, 0 <= id < num_blocks.
enum class BlockId : std::uint32_t {};
/// A block of the pool in host memory, 0 <= id < num_host_blocks.
enum class HostBlockId : std::uint32_t {};
/// A device or host rank of a ParallelStrategy, 0 <= rank < world_size.
enum class Rank : std::uint32_t {};

/// Where a token's K and V are stored: block_id * block_size + offset. 64-bit: a slot times its elements passes 2^31.
using SlotId = std::int64_t;
/// slot_mapping entry of a token whose K and V are not stored (padding).
inline constexpr SlotId no_slot = -1;

template <class Id>
NVL_HOST_DEVICE constexpr auto index_of(Id id) noexcept {
  return static_cast<std::underlying_type_t<Id>>(id);
}

}  // namespace nvl::inline NVL_ABI
