#pragma once
/// The copying warps of paged decode attention: they walk the tiles of their thread block, and a ring of places in shared memory
/// for each computing warp stays full of tiles on their way, across the ends of pieces and sequences. Every copying warp serves
/// the same number of computing ones; the first also describes the pieces and copies their queries.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/paged_decode_instructions.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/paged_attention_decode_plan.cuh>

#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail::paged_decode {

/// Arguments of the kernel of one layer.
template <class T>
struct KernelArgs {
  T* out;
  const T* q;
  const T* kv;
  std::int64_t q_row_stride;
  std::int64_t block_elements;  // of one KV block, K and V
  std::int64_t k_to_v;          // [elements] from a key to its value
  Batch batch;
  Workspace workspace;
  std::int32_t depth;  // tiles in flight of each warp
  Divisor depth_divisor;
  float scale_log2;    // of scores, with the factor from e to 2
  float softcap_log2;  // 0: none
  bool history_is_complete;
};

/// A run of tiles of one unit, from the first copying warp to those that compute.
struct Piece {
  std::int32_t num_tiles;  // 0: there is no piece
  std::int32_t first_token;
  std::int32_t seq_len, query_len, query_row;
  std::int32_t kv_head;
  std::int32_t first_column;
  std::int32_t num_pieces, index;            // of the unit, and which of them this is
  std::int32_t first_partial, next_partial;  // partial sums of piece i are at first_partial, or next_partial + i for i > 0
  std::int32_t arrivals;                     // which counter
  bool last;                                 // of this thread block
};

/// How rows of head_dim elements lie in shared memory so that eight rows of one 16-byte chunk are in different banks: in panels
/// of 64 elements whose chunks are permuted by row, or padded to an odd number of
/// chunks.
template <int kHeadDim>
struct RowLayout {
  static constexpr int chunks = kHeadDim / 8;  // [16 bytes] of a row
  static constexpr bool panels = kHeadDim % 64 == 0;
  static constexpr int padded_row_bytes = (chunks | 1) * 16;
  static constexpr int bytes(int rows) { return rows * (panels ? chunks * 16 : padded_row_bytes); }

#if defined(__CUDACC__)
  /// [bytes] of a chunk in a tile of `rows` rows
  template <int rows>
  __device__ __forceinline__ static std::uint32_t at(int row, int chunk) {
    if constexpr (panels) {
      return static_cast<std::uint32_t>(((chunk / 8) * rows + row) * 128 + ((chunk ^ row) & 7) * 16);
    } else {
      return static_cast<std::uint32_t>(row * padded_row_bytes + chunk * 16);
    }
  }
  /// The same for `chunk + 2^kLog2Step * i` from `start` = at(row, chunk), chunk < 2^kLog2Step: one instruction.
  template <int rows, int kLog2Step>
  __device__ __forceinline__ static std::uint32_t step(std::uint32_t start, int i) {
    if constexpr (panels) {
      constexpr int per_panel = 8 >> kLog2Step;
      return (start ^ static_cast<std::uint32_t>((i % per_panel) << (kLog2Step + 4))) +
             static_cast<std::uint32_t>(i / per_panel * rows * 128);
    } else {
      return start + static_cast<std::uint32_t>(i << (kLog2Step + 4));
    }
  }
#endif
};

template <class Traits>
struct alignas(1024) SharedStorage {
  unsigned char q[2][Traits::q_bytes];
  std::uint64_t full[Traits::max_stages];   // a tile has arrived
  std::uint64_t empty[Traits::max_stages];  // its place is free
  std::uint64_t piece_full[2];
  std::uint64_t piece_empty[2];
  Piece pieces[2];
  float maximum[Traits::warps][Traits::columns];
  float total[Traits::warps][Traits::columns];
  std::uint32_t sums[Traits::warps];  // where each warp left its sums
  bool merges;
  // then depth x warps stages: a tile of K, a tile of V
};

#if defined(__CUDACC__)

template <class Traits>
struct Producer {
  using T = typename Traits::Element;
  using Rows = RowLayout<Traits::head_dim>;

  const KernelArgs<T>& args;
  SharedStorage<Traits>& shared;
  std::uint32_t stages;
  int lane = static_cast<int>(threadIdx.x % 32);
  int copier = static_cast<int>(threadIdx.x / 32) - Traits::warps;  // each copies for its share of the computing warps
  std::uint64_t policy = evict_first_policy();

  __device__ void run() {
    bool waited = !args.history_is_complete;
    if (waited) { wait_for_previous(); }
    const PagedDecodeSpan span = args.workspace.spans[blockIdx.x];
    std::uint32_t ids = args.workspace.first_ids[blockIdx.x * 32 + static_cast<unsigned>(lane)];
    bool has_ids = true;
    if (span.num_tiles == 0) {
      if (copier == 0) {
        if (lane == 0) { shared.pieces[0].num_tiles = 0; }
        announce(&shared.piece_full[0]);
      }
      if (!waited) { wait_for_previous(); }
      return;
    }
    std::int32_t seq = span.seq, unit = span.unit, tile = span.tile, left = span.num_tiles;
    SeqWork work = seq_work(args.batch, span.seq_len, span.query_len, span.query_row);
    std::int32_t issued = 0;  // tiles of this thread block so far
    const std::int32_t num_stages = args.depth * Traits::warps;
    for (std::uint32_t count = 0; left > 0; ++count) {
      while (unit == work.num_units) {  // also sequences that have none
        unit = 0;
        work = seq_work(args.batch, ++seq);
      }
      const Piece piece = piece_at(span, work, seq, unit, tile, left);
      const std::uint32_t entry = count % 2;
      if (copier == 0) { wait_phase(shared_address(&shared.piece_empty[entry]), (count / 2 % 2) ^ 1); }
      // The first tiles of the thread block are on their way before its queries: they take longer.
      bool published = waited && count > 0;
      if (published) { publish(piece, entry); }

      const BlockId* const table = args.batch.block_tables + std::int64_t{seq} * span.block_stride;
      const auto id_at = [&](std::int32_t i) -> std::uint32_t {
        if (i + lane >= piece.num_tiles) { return 0; }
        return index_of(table[(piece.first_token + (i + lane) * tile_tokens) >> args.batch.block_size_log2]);
      };
      if (!has_ids) { ids = id_at(0); }
      has_ids = false;
      // Some tiles at a time, each the business of one lane.
      for (std::int32_t i = 0; i < piece.num_tiles;) {
        std::int32_t batch = min(min(piece.num_tiles - i, num_stages), 32 - Traits::warps);
        if (!waited) {
          // What an earlier step stored may be read before the previous kernel is done, the tokens of this step may not.
          const std::int32_t old = (work.seq_len - work.query_len - piece.first_token) / tile_tokens - i;
          const std::int32_t early = min(old, num_stages - issued);
          if (early > 0) {
            batch = min(batch, early);
          } else {
            wait_for_previous();
            waited = true;
          }
        }
        const bool first = issued == 0;
        if (first) {
          batch = min(batch, Traits::warps);
        } else if (waited && !published) {
          published = true;
          publish(piece, entry);
        }
        const std::uint32_t next_ids =
            first ? __shfl_down_sync(0xffffffffu, ids, static_cast<unsigned>(batch)) : id_at(i + batch);
        copy_tiles(work, piece, i, batch, issued, ids);
        issued += batch;
        i += batch;
        ids = next_ids;
      }
      if (!published) {
        if (!waited) { wait_for_previous(); }
        waited = true;
        publish(piece, entry);
      }
      left -= piece.num_tiles;
      tile += piece.num_tiles;
      if (tile == work.num_tiles) {
        tile = 0;
        ++unit;
      }
    }
  }

 private:
  __device__ Piece piece_at(const PagedDecodeSpan& span, const SeqWork& work, std::int32_t seq, std::int32_t unit,
                            std::int32_t tile, std::int32_t left) const {
    const Workspace& ws = args.workspace;
    const std::int32_t column_blocks = work.num_units == args.batch.num_kv_heads ? 1 : work.num_units / args.batch.num_kv_heads;
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    Piece p;
    p.num_tiles = min(left, work.num_tiles - tile);
    p.first_token = (work.first_tile + tile) * tile_tokens;
    p.seq_len = work.seq_len;
    p.query_len = work.query_len;
    p.query_row = work.query_row;
    p.kv_head = column_blocks == 1 ? unit : unit / column_blocks;
    p.first_column = (unit - p.kv_head * column_blocks) * Traits::columns;
    p.num_pieces = 1;
    p.index = 0;
    p.first_partial = p.next_partial = p.arrivals = 0;
    if (ws.split_tiles > 0) {
      const std::int32_t base = ws.first_partial[seq];
      if (base >= 0) {
        p.num_tiles = min(p.num_tiles, ws.split_tiles - tile % ws.split_tiles);
        p.num_pieces = ceil_div(work.num_tiles, ws.split_tiles);
        p.index = tile / ws.split_tiles;
        p.first_partial = p.next_partial = p.arrivals = base + unit * p.num_pieces;
      }
    } else if (p.num_tiles < work.num_tiles) {
      const std::int32_t first = tile > 0 ? span.first_block : block;
      const std::int32_t last = tile > 0 ? span.last_block_of_first : span.last_block_of_last;
      p.num_pieces = last - first + 1;
      p.index = block - first;
      p.first_partial = ws.num_blocks + first;
      p.next_partial = first;
      p.arrivals = first;
    }
    p.last = p.num_tiles == left;
    return p;
  }

  /// Ends the phase of a piece when the copies of all lanes are done, and shows what lane 0 has written.
  __device__ __forceinline__ void announce(std::uint64_t* piece_full) const {
    const std::uint32_t barrier = shared_address(piece_full);
    arrive_after_copies(barrier);
    if (lane == 0) { arrive(barrier); }
  }

  /// Describes `piece` and copies its queries, zeros for columns that it does not have.
  __device__ void publish(const Piece& piece, std::uint32_t entry) const {
    if (copier != 0) { return; }
    if (lane == 0) { shared.pieces[entry] = piece; }
    const std::uint32_t to = shared_address(&shared.q[entry][0]);
    const std::int32_t group = args.batch.group_size;
    constexpr int count = Traits::columns * Rows::chunks;
#pragma unroll 4
    for (int i = lane; i < count; i += 32) {
      const int row = i / Rows::chunks, chunk = i % Rows::chunks;
      const std::int32_t column = piece.first_column + row;
      const bool valid = column < piece.query_len * group;
      const std::int32_t query = valid ? args.batch.group.divide(column) : 0;
      const std::int32_t q_head = piece.kv_head * group + (valid ? column - query * group : 0);
      const T* const from =
          args.q + (piece.query_row + query) * args.q_row_stride + std::int64_t{q_head} * Traits::head_dim + chunk * 8;
      copy16_or_zero(to + Rows::template at<Traits::columns>(row, chunk), from, valid);
    }
    announce(&shared.piece_full[entry]);
  }

  /// Starts the copies of tiles [first, first + count) of the piece, as tiles `issued` and following of the thread block. Lane i
  /// knows the KV block `id` of tile first + i. `count` is at most the number of stages.
  __device__ __forceinline__ void copy_tiles(const SeqWork& work, const Piece& piece, std::int32_t first, std::int32_t count,
                                             std::int32_t issued, std::uint32_t id) const {
    const std::int32_t round = (issued + lane) / Traits::warps;
    const std::int32_t lap = args.depth_divisor.divide(round);
    const int stage = (round - lap * args.depth) * Traits::warps + (issued + lane) % Traits::warps;
    const std::uint32_t parity = (static_cast<std::uint32_t>(lap) & 1) ^ 1;
    const std::int32_t first_valid = args.batch.window > 0 ? max(0, work.seq_len - work.query_len + 1 - args.batch.window) : 0;
    for (std::int32_t i = 0; i < count; ++i) {
      if ((issued + i) % Traits::warps / (Traits::warps / Traits::copy_warps) != copier) { continue; }
      const int to_stage = __shfl_sync(0xffffffffu, stage, i);
      const std::int32_t token = piece.first_token + (first + i) * tile_tokens;
      wait_phase(shared_address(&shared.empty[to_stage]), __shfl_sync(0xffffffffu, parity, i));
      copy_tile(to_stage, __shfl_sync(0xffffffffu, id, i), token & ((1 << args.batch.block_size_log2) - 1), piece.kv_head,
                token - first_valid, work.seq_len - token);
    }
  }

  /// Copies one tile, `offset` tokens into its block. Row -minus_first is the first that is there, row `end` the first that is
  /// not. The others become zeros: a NaN in a value that no query sees would else reach the sums, as 0 x NaN.
  __device__ __forceinline__ void copy_tile(int stage, std::uint32_t block, std::int32_t offset, std::int32_t kv_head,
                                            std::int32_t minus_first, std::int32_t end) const {
    constexpr int count = tile_tokens * Rows::chunks;
    const std::uint32_t to = stages + static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
    const T* const k = args.kv + block * args.block_elements +
                       ((std::int64_t{kv_head} << args.batch.block_size_log2) + offset) * Traits::head_dim;
    const T* const v = k + args.k_to_v;
    if (minus_first >= 0 && end >= tile_tokens) {
      copy_whole(to, k);
      copy_whole(to + Traits::tile_bytes, v);
    } else {
#pragma unroll 1
      for (int i = lane; i < count; i += 32) {
        const int row = i / Rows::chunks, chunk = i % Rows::chunks;
        const bool valid = row + minus_first >= 0 && row < end;
        const std::uint32_t at = to + Rows::template at<tile_tokens>(row, chunk);
        copy16_or_zero(at, k + i * 8, valid);
        copy16_or_zero(at + Traits::tile_bytes, v + i * 8, valid);
      }
    }
    arrive_after_copies(shared_address(&shared.full[stage]));
  }

  __device__ __forceinline__ void copy_whole(std::uint32_t to, const T* from) const {
    constexpr int count = tile_tokens * Rows::chunks;
#pragma unroll
    for (int i = 0; i < count; i += 32) {
      if (count % 32 != 0 && i + lane >= count) { break; }
      const int row = (i + lane) / Rows::chunks, chunk = (i + lane) % Rows::chunks;
      copy16(to + Rows::template at<tile_tokens>(row, chunk), from + (i + lane) * 8, policy);
    }
  }
};

#endif

}  // namespace kernels::detail::paged_decode
}  // namespace nvl::inline NVL_ABI
