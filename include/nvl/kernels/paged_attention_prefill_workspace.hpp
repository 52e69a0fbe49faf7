#pragma once
/// The workspace of paged prefill attention: the plan of a step's tiles, and how many bytes it takes at most.

#include <nvl/core/config.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// One unit of work: packed rows of one sequence and KV head.
struct alignas(16) PagedPrefillTile {
  std::int64_t table_offset;  // [entries] of the sequence's row of block_tables
  std::int32_t first_token;   // row of q that is the sequence's first query
  std::int32_t query_len;     // [tokens]
  std::int32_t seq_len;       // [tokens]
  std::int32_t first_query;   // token of the tile's first row, counted from first_token
  std::int32_t kv_head;
  std::int32_t unused;
};

/// The workspace: how many tiles there are, then the tiles in their order. The blocks of a persistent kernel draw from `next`;
/// the last to end sets both counters back to 0 for the next layer, so calls that share a plan must follow each other.
struct alignas(16) PagedPrefillPlan {
  std::int32_t num_tiles;
  std::uint32_t next;      // tile that nobody has taken yet
  std::uint32_t finished;  // blocks that found no more
  std::int32_t unused;

  NVL_HOST_DEVICE const PagedPrefillTile* tiles() const { return reinterpret_cast<const PagedPrefillTile*>(this + 1); }
  NVL_HOST_DEVICE PagedPrefillTile* tiles() { return reinterpret_cast<PagedPrefillTile*>(this + 1); }
};

/// [packed rows] of a tile at most, the same on every architecture.
template <class T>
constexpr std::int32_t paged_prefill_tile_rows(std::int32_t head_dim) noexcept {
  return std::is_same_v<T, float> ? 32 : head_dim > 128 ? 64 : 128;
}

/// [tokens] of a tile.
template <class T>
constexpr std::int32_t paged_prefill_tile_tokens(std::int32_t num_q_heads, std::int32_t num_kv_heads,
                                                 std::int32_t head_dim) noexcept {
  return paged_prefill_tile_rows<T>(head_dim) / (num_q_heads / num_kv_heads);
}

/// [tiles] at most, whatever the lengths are.
template <class T>
constexpr std::int64_t paged_prefill_max_tiles(std::int32_t num_tokens, std::int32_t num_seqs, std::int32_t num_q_heads,
                                               std::int32_t num_kv_heads, std::int32_t head_dim) noexcept {
  return num_kv_heads * (std::int64_t{num_tokens} / paged_prefill_tile_tokens<T>(num_q_heads, num_kv_heads, head_dim) + num_seqs);
}

template <class T>
constexpr std::size_t paged_prefill_workspace_bytes(std::int32_t num_tokens, std::int32_t num_seqs, std::int32_t num_q_heads,
                                                    std::int32_t num_kv_heads, std::int32_t head_dim) noexcept {
  const auto max_tiles =
      static_cast<std::size_t>(paged_prefill_max_tiles<T>(num_tokens, num_seqs, num_q_heads, num_kv_heads, head_dim));
  // The plan, its tiles, and while it is made the group of each sequence.
  return sizeof(PagedPrefillPlan) + sizeof(PagedPrefillTile) * max_tiles +
         sizeof(std::int32_t) * static_cast<std::size_t>(num_seqs);
}

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
