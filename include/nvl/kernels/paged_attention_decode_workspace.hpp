#pragma once
/// The workspace of paged decode attention: what lies in it, and how many bytes it takes on a device that need not be there.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// What one thread block does: `num_tiles` tiles, from `tile` of `unit` of `seq` on.
struct alignas(16) PagedDecodeSpan {
  std::int32_t seq, unit, tile;                // `tile` counts from the sequence's first visible one
  std::int32_t num_tiles;                      // 0: nothing
  std::int32_t first_block;                    // thread block that has the first tile of the unit that the span begins in
  std::int32_t last_block_of_first;            // that has the last tile of that unit
  std::int32_t last_block_of_last;             // that has the last tile of the unit that the span ends in
  std::int32_t block_stride;                   // [blocks] from row to row of the block tables
  std::int32_t seq_len, query_len, query_row;  // of `seq`
  std::int32_t padding;
};

/// The split-KV kernel is compiled for 16-bit elements from this head_dim on; what it does not take, the plain kernel does, which
/// needs no workspace.
template <class T>
constexpr bool paged_decode_splits_kv(std::int32_t head_dim) noexcept {
  return (std::is_same_v<T, bf16> || std::is_same_v<T, fp16>)&&head_dim >= 64;
}

/// Columns of 8, that is query tokens x heads of a group, that share loads of K and V.
constexpr int paged_decode_column_tiles(std::int32_t group_size, std::int32_t max_query_len) noexcept {
  return group_size * max_query_len > 8 ? 2 : 1;
}

inline constexpr int paged_decode_blocks_per_sm = 2;

namespace detail::paged_decode {

inline constexpr int tile_tokens = 16;
inline constexpr int max_blocks = 1024;  // thread blocks of one launch

/// Where things are in the caller's workspace.
struct Workspace {
  unsigned* arrivals;           // [num_partials] pieces of a unit that are done; zero between kernels
  PagedDecodeSpan* spans;       // [num_blocks]
  std::uint32_t* first_ids;     // [num_blocks, 32] KV blocks of a span's first tiles, so that its copies begin one read earlier
  std::int32_t* first_partial;  // [max_seqs] with fixed splits: where a sequence's partial sums begin, -1: it is not cut
  std::int64_t* cost_end;       // [max_seqs] scratch of the plan
  std::int64_t* tile_end;       // [max_seqs] likewise
  float* partials;              // [num_partials, columns x (head_dim + 2)]
  std::int32_t num_blocks;      // thread blocks of the attention kernel
  std::int32_t num_partials;
  std::int32_t split_tiles;  // 0: balanced
};

NVL_HOST_DEVICE constexpr std::int32_t ceil_div(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

/// [floats] of the sums of one piece: its output, and maximum and total of its scores.
constexpr int partial_floats(int columns, int head_dim) { return columns * (head_dim + 2); }

/// What the size depends on.
struct WorkspaceShape {
  std::int32_t num_sms = 0;  // multiprocessors of the device
  std::int32_t blocks_per_sm = paged_decode_blocks_per_sm;
  std::int32_t num_kv_heads = 0;
  std::int32_t group_size = 0;
  std::int32_t head_dim = 0;
  std::int32_t columns = 0;
  std::int32_t max_query_len = 1;
  std::int32_t split_tokens = 0;
  std::int32_t max_seqs = 0;
  std::int64_t max_kv_tokens = 0;
};

/// Places the arrays of the workspace at `base`; returns its size.
inline std::size_t place_workspace(const WorkspaceShape& s, std::byte* base, Workspace& ws) {
  ws.num_blocks = std::min(s.num_sms * s.blocks_per_sm, max_blocks);
  ws.split_tiles = s.split_tokens / tile_tokens;
  ws.num_partials = 2 * ws.num_blocks;
  if (ws.split_tiles > 0) {
    const std::int64_t units = s.num_kv_heads * ceil_div(s.group_size * s.max_query_len, s.columns);
    const std::int64_t pieces = (s.max_kv_tokens / s.split_tokens + s.max_seqs) * units;
    NVL_EXPECTS(pieces < (std::int64_t{1} << 31), "paged_decode max_kv_tokens", s.max_kv_tokens,
                "so small that its partial sums can be counted in 31 bits");
    ws.num_partials = static_cast<std::int32_t>(pieces);
  }
  std::size_t bytes = 0;
  const auto place = [&]<class U>(U*& array, std::size_t count) {
    array = reinterpret_cast<U*>(base + bytes);
    bytes += (count * sizeof(U) + 255) / 256 * 256;
  };
  const auto max_seqs = static_cast<std::size_t>(s.max_seqs);
  place(ws.arrivals, static_cast<std::size_t>(ws.num_partials));
  place(ws.spans, static_cast<std::size_t>(ws.num_blocks));
  place(ws.first_ids, static_cast<std::size_t>(ws.num_blocks) * 32);
  place(ws.first_partial, ws.split_tiles > 0 ? max_seqs : 0);
  place(ws.cost_end, max_seqs);
  place(ws.tile_end, max_seqs);
  place(ws.partials, static_cast<std::size_t>(ws.num_partials) * static_cast<std::size_t>(partial_floats(s.columns, s.head_dim)));
  return bytes;
}

}  // namespace detail::paged_decode

/// [bytes] that the kernel of these shapes needs on a device of `num_sms` multiprocessors, where sequences are cut wherever it
/// balances.
template <class T>
std::size_t paged_decode_workspace_bytes(std::int32_t num_sms, std::int32_t num_q_heads, std::int32_t num_kv_heads,
                                         std::int32_t head_dim, std::int32_t max_query_len, std::int32_t max_seqs) {
  if (!paged_decode_splits_kv<T>(head_dim)) { return 0; }
  const std::int32_t group_size = num_q_heads / num_kv_heads;
  detail::paged_decode::Workspace ws;
  return detail::paged_decode::place_workspace({.num_sms = num_sms,
                                                .num_kv_heads = num_kv_heads,
                                                .group_size = group_size,
                                                .head_dim = head_dim,
                                                .columns = 8 * paged_decode_column_tiles(group_size, max_query_len),
                                                .max_query_len = max_query_len,
                                                .max_seqs = max_seqs},
                                               nullptr, ws);
}

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
