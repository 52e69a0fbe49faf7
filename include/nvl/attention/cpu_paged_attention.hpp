#pragma once
/// Attention over paged K and V on the CPU: prefill, chunks and decode, GQA, sliding window.
/// Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; tiles as in Dao et al. 2022, arXiv:2205.14135.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/simd.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/ops/cpu_ops.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// HeadDim of a backend that takes any of `supported_head_dims`, chosen at run time.
inline constexpr std::int32_t dynamic_head_dim = 0;

/// A query's keys are taken in tiles of 64 that start at absolute positions, so its sums do not depend on how its prompt was
/// cut into steps, on the other queries of the step or on which blocks hold the keys: results are equal bit for bit.
template <class T, std::int32_t HeadDim = dynamic_head_dim, std::int32_t BlockSize = 16>
class CpuPagedAttention {
  static_assert(HeadDim == dynamic_head_dim || is_supported_head_dim(HeadDim),
                "nvl: CpuPagedAttention is not compiled for this HeadDim (core/supported.hpp has the list)");
  static_assert(BlockSize > 0, "nvl: a KV block holds at least one token");

 public:
  using Element = T;
  using Ops = CpuOps<T>;
  static constexpr std::int32_t block_size = BlockSize;
  static constexpr bool gives_states = true;

  static constexpr bool supports(std::int32_t head_dim) noexcept {
    return HeadDim == dynamic_head_dim ? is_supported_head_dim(head_dim) : head_dim == HeadDim;
  }

  CpuPagedAttention(const AttentionShape& shape, Ops& ops)
      : shape_(shape),
        group_size_(shape.kv.num_kv_heads > 0 ? shape.num_q_heads / shape.kv.num_kv_heads : 0),
        threads_(ops.threads()) {
    NVL_EXPECTS(
        supports(shape.kv.head_dim), "head_dim", shape.kv.head_dim,
        "one of those compiled in: " + (HeadDim == dynamic_head_dim ? supported_head_dims_text() : std::to_string(HeadDim)));
    NVL_EXPECTS(shape.kv.block_size == BlockSize, "block_size of the KV cache", shape.kv.block_size,
                "that of the attention backend (" + std::to_string(BlockSize) + ")");
    NVL_EXPECTS(group_size_ > 0 && shape.num_q_heads % shape.kv.num_kv_heads == 0, "num_q_heads", shape.num_q_heads,
                "a positive multiple of num_kv_heads (" + std::to_string(shape.kv.num_kv_heads) + ")");
  }

  void plan(const AttentionMetadata& metadata) {
    metadata_ = metadata;
    items_.clear();
    // A work item is a few queries of the heads that share K and V: they share its loads too. A step with fewer such items
    // than threads (one sequence that decodes, on many threads) makes every head an item.
    const std::int64_t tokens = metadata.num_seqs() > 0 ? metadata.cu_query_lens.back() : 0;
    const bool few = tokens * shape_.kv.num_kv_heads < threads_.num_threads();
    const std::int32_t heads = few ? 1 : std::min(group_size_, max_rows);
    const std::int32_t queries = max_rows / heads;
    pairs_ = 0;
    for (std::int32_t s = 0; s < metadata.num_seqs(); ++s) {
      const auto at = static_cast<std::size_t>(s);
      const std::int32_t first_row = metadata.cu_query_lens[at];
      const std::int32_t num_queries = metadata.cu_query_lens[at + 1] - first_row;
      const std::int32_t first_position = metadata.seq_lens[at] - num_queries;
      pairs_ += std::int64_t{num_queries} * metadata.seq_lens[at];
      const std::int32_t first_key = metadata.key_begins.empty() ? 0 : metadata.key_begins[at];
      for (std::int32_t q = 0; q < num_queries; q += queries) {
        for (std::int32_t kv_head = 0; kv_head < shape_.kv.num_kv_heads; ++kv_head) {
          for (std::int32_t h = 0; h < group_size_; h += heads) {
            items_.push_back({.seq = s,
                              .first_row = first_row + q,
                              .first_position = first_position + q,
                              .num_queries = std::min(queries, num_queries - q),
                              .first_key = first_key,
                              .end_of_keys = metadata.seq_lens[at],
                              .kv_head = kv_head,
                              .first_head = kv_head * group_size_ + h,
                              .num_heads = std::min(heads, group_size_ - h)});
          }
        }
      }
    }
    // The last queries of a prompt see the most keys: begin with them, so that no thread is left with them at the end.
    std::ranges::stable_sort(items_, std::ranges::greater{}, [](const Item& item) { return item.first_position; });
  }

  void run(const AttentionCall<T>& call) {
    if constexpr (HeadDim != dynamic_head_dim) {
      run_items<HeadDim>(call);
    } else {
      dispatch_head_dim(shape_.kv.head_dim, [&](auto head_dim) { run_items<decltype(head_dim)::value>(call); });
    }
  }

 private:
  static constexpr std::int32_t tile = 4 * simd::lanes;  // [keys] of one round of the online softmax
  static constexpr std::int32_t max_rows = 32;           // queries x heads of one item; their sums stay in the first-level cache
  static constexpr std::int64_t inline_products = 1 << 14;  // fewer are not worth waking a thread

  struct Item {
    std::int32_t seq = 0;
    std::int32_t first_row = 0;       // of q and out
    std::int32_t first_position = 0;  // in the sequence
    std::int32_t num_queries = 0;
    std::int32_t first_key = 0;  // of the sequence that any query sees
    std::int32_t end_of_keys = 0;
    std::int32_t kv_head = 0;
    std::int32_t first_head = 0;
    std::int32_t num_heads = 0;
  };

  /// Running softmax of one query and head: out = sum / total once all keys are in.
  template <std::int32_t kHeadDim>
  struct Row {
    simd::f32x16 sum[kHeadDim / simd::lanes];
    simd::f32x16 total;  // lane i: weights of the keys start + i, start + 16 + i, ... of each tile
    float max;
    float scores[tile];  // of the tile at hand; then weights
    std::int32_t begin;  // keys of the tile that this row sees
    std::int32_t end;
  };

  /// Keys of one tile. Keys that the item does not see point to one that it does.
  struct Tile {
    const T* k[tile];
    std::int64_t k_to_v;  // [elements] from a key to its value
  };

  template <std::int32_t kHeadDim>
  void run_items(const AttentionCall<T>& call) {
    const auto count = static_cast<std::int64_t>(items_.size());
    const std::int64_t products = pairs_ * shape_.num_q_heads * kHeadDim;
    threads_.parallel_for(count, products < inline_products ? std::max<std::int64_t>(count, 1) : 1,
                          [&](std::int64_t begin, std::int64_t end) {
                            for (std::int64_t i = begin; i < end; ++i) {
                              const auto at = static_cast<std::size_t>(i);
                              attend<kHeadDim>(call, items_[at], i + 1 < end ? &items_[at + 1] : nullptr);
                            }
                          });
  }

  template <std::int32_t kHeadDim>
  void attend(const AttentionCall<T>& call, const Item& item, const Item* next) const noexcept {
    Row<kHeadDim> rows[max_rows];
    const std::int32_t num_rows = item.num_queries * item.num_heads;
    for (std::int32_t r = 0; r < num_rows; ++r) {
      for (simd::f32x16& s : rows[r].sum) { s = simd::zero(); }
      rows[r].total = simd::zero();
      rows[r].max = -std::numeric_limits<float>::infinity();
    }
    const std::int32_t begin = first_key(call, item, item.first_position);
    const std::int32_t end = end_of_keys(item, item.first_position + item.num_queries - 1);
    for (std::int32_t start = begin / tile * tile; start < end && begin < end; start += tile) {
      const Tile keys = tile_at(call, item, start, begin, end);
      if (start + tile < end) {
        prefetch<kHeadDim>(call, item, start + tile);
      } else if (next != nullptr) {
        prefetch<kHeadDim>(call, *next, first_key(call, *next, next->first_position));
      }
      // Each phase runs over all rows before the next begins: rows are independent, so their latencies overlap.
      for (std::int32_t r = 0; r < num_rows; ++r) {
        const std::int32_t q = r / item.num_heads;
        const std::int32_t position = item.first_position + q;
        rows[r].begin = std::max(first_key(call, item, position) - start, 0);
        rows[r].end = std::min(end_of_keys(item, position) - start, tile);
        const T* const query =
            call.q + (item.first_row + q) * call.q_row_stride + std::int64_t{item.first_head + r % item.num_heads} * kHeadDim;
        score_keys<kHeadDim>(rows[r], query, keys, call.scale);
      }
      for (std::int32_t r = 0; r < num_rows; ++r) { weigh_keys(rows[r]); }
      add_values<kHeadDim, value_rows<kHeadDim>>(rows, num_rows, keys);
    }
    for (std::int32_t r = 0; r < num_rows; ++r) {
      const std::int64_t row = item.first_row + r / item.num_heads;
      const std::int64_t state = row * shape_.num_q_heads + item.first_head + r % item.num_heads;
      T* const out = call.out + state * kHeadDim;
      const float total = simd::sum(rows[r].total);
      if (call.lse != nullptr) { call.lse[state] = rows[r].max + std::log(total); }
      const simd::f32x16 scale = simd::broadcast(total == 0.0f ? 0.0f : 1.0f / total);  // 0: there were no keys
      for (std::int32_t i = 0; i < kHeadDim / simd::lanes; ++i) { simd::store(out + i * simd::lanes, rows[r].sum[i] * scale); }
    }
  }

  /// Keys [first_key, end_of_keys) are seen by the query at `position`.
  static std::int32_t first_key(const AttentionCall<T>& call, const Item& item, std::int32_t position) noexcept {
    return call.window > 0 ? std::max(item.first_key, position - call.window + 1) : item.first_key;
  }
  std::int32_t end_of_keys(const Item& item, std::int32_t position) const noexcept {
    return metadata_.is_causal ? position + 1 : item.end_of_keys;
  }

  const T* key_at(const AttentionCall<T>& call, const Item& item, std::int32_t position) const noexcept {
    const BlockId* const blocks = metadata_.block_tables.data() + std::int64_t{item.seq} * metadata_.max_blocks_per_seq;
    return call.kv + shape_.kv.k_offset(index_of(blocks[position / BlockSize]), item.kv_head, position % BlockSize);
  }

  /// Keys start .. start + tile - 1; only those in [begin, end) are looked up.
  Tile tile_at(const AttentionCall<T>& call, const Item& item, std::int32_t start, std::int32_t begin,
               std::int32_t end) const noexcept {
    Tile keys;
    keys.k_to_v = shape_.kv.v_offset(0, 0, 0);
    const std::int32_t first = std::max(start, begin);
    const T* key = key_at(call, item, first);
    for (std::int32_t i = 0; i < tile; ++i) { keys.k[i] = key; }
    for (std::int32_t position = first + 1; position < std::min(start + tile, end); ++position) {
      key = position % BlockSize == 0 ? key_at(call, item, position) : key + shape_.kv.head_dim;
      keys.k[position - start] = key;
    }
    return keys;
  }

  /// Asks for a tile of keys and values from `start` on.
  template <std::int32_t kHeadDim>
  void prefetch(const AttentionCall<T>& call, const Item& item, std::int32_t start) const noexcept {
    constexpr std::int32_t line = 64 / sizeof(T);  // [elements]
    const T* key = nullptr;
    const std::int32_t end = end_of_keys(item, item.first_position + item.num_queries - 1);
    for (std::int32_t position = start; position < std::min(start + tile, end); ++position) {
      key = key == nullptr || position % BlockSize == 0 ? key_at(call, item, position) : key + kHeadDim;
      const T* const value = key + shape_.kv.v_offset(0, 0, 0);
      for (std::int32_t i = 0; i < kHeadDim; i += line) {
        __builtin_prefetch(key + i, 0, 2);
        __builtin_prefetch(value + i, 0, 2);
      }
    }
  }

  /// row.scores = scale * q k^T, 16 keys at a time where the row sees any of them; -infinity for those that it does not see.
  template <std::int32_t kHeadDim>
  static void score_keys(Row<kHeadDim>& row, const T* query, const Tile& keys, float scale) noexcept {
    constexpr int vectors = kHeadDim / simd::lanes;
    for (std::int32_t first = row.begin / simd::lanes * simd::lanes; first < row.end; first += simd::lanes) {
      simd::f32x16 dots[simd::lanes];
      NVL_UNROLL
      for (int key = 0; key < simd::lanes; ++key) {
        dots[key] = simd::load(query) * simd::load(keys.k[first + key]);
        NVL_UNROLL
        for (int i = 1; i < vectors; ++i) {
          dots[key] =
              simd::fma(simd::load(query + i * simd::lanes), simd::load(keys.k[first + key] + i * simd::lanes), dots[key]);
        }
      }
      const simd::f32x16 hidden = simd::broadcast(-std::numeric_limits<float>::infinity());
      const int from = std::max(row.begin - first, 0);
      const int to = std::min(row.end - first, simd::lanes);
      simd::store(row.scores + first, simd::select_range(from, to, simd::sums(dots) * simd::broadcast(scale), hidden));
    }
  }

  /// Scores to weights relative to the largest score so far; what was summed before is made relative to it too.
  template <std::int32_t kHeadDim>
  static void weigh_keys(Row<kHeadDim>& row) noexcept {
    const std::int32_t first = row.begin / simd::lanes * simd::lanes;
    if (row.begin >= row.end) { return; }
    simd::f32x16 largest = simd::load(row.scores + first);
    for (std::int32_t i = first + simd::lanes; i < row.end; i += simd::lanes) {
      largest = simd::max(largest, simd::load(row.scores + i));
    }
    const float max = std::max(row.max, simd::horizontal_max(largest));
    if (max != row.max) {
      const simd::f32x16 keep = simd::exp(simd::broadcast(row.max - max));
      for (simd::f32x16& s : row.sum) { s = s * keep; }
      row.total = row.total * keep;
      row.max = max;
    }
    for (std::int32_t i = first; i < row.end; i += simd::lanes) {
      const simd::f32x16 weights = simd::exp(simd::load(row.scores + i) - simd::broadcast(max));
      row.total = row.total + weights;
      simd::store(row.scores + i, weights);
    }
  }

  /// Rows that share the loads of values: as many as leave their sums in registers.
  template <std::int32_t kHeadDim>
  static constexpr std::int32_t value_rows = simd::parts > 1 ? 1 : (kHeadDim <= 80 ? 4 : (kHeadDim <= 128 ? 2 : 1));

  template <std::int32_t kHeadDim, std::int32_t kRows>
  static void add_values(Row<kHeadDim>* rows, std::int32_t num_rows, const Tile& keys) noexcept {
    std::int32_t r = 0;
    for (; r + kRows <= num_rows; r += kRows) {
      // Keys that all of them see are added together, those before and after row by row. Keys of which a row sees none must
      // not be touched, not even with weight zero: they may be infinite.
      std::int32_t begin = rows[r].begin, end = rows[r].end;
      for (std::int32_t i = 1; i < kRows; ++i) {
        begin = std::max(begin, rows[r + i].begin);
        end = std::min(end, rows[r + i].end);
      }
      end = std::max(begin, end);
      if constexpr (kRows > 1) {
        for (std::int32_t i = 0; i < kRows; ++i) {
          add_value_range<kHeadDim, 1>(rows + r + i, keys, rows[r + i].begin, std::min(begin, rows[r + i].end));
        }
      }
      add_value_range<kHeadDim, kRows>(rows + r, keys, begin, end);
      if constexpr (kRows > 1) {
        for (std::int32_t i = 0; i < kRows; ++i) {
          add_value_range<kHeadDim, 1>(rows + r + i, keys, std::max(end, rows[r + i].begin), rows[r + i].end);
        }
      }
    }
    if constexpr (kRows > 1) { add_values<kHeadDim, kRows / 2>(rows + r, num_rows - r, keys); }
  }

  /// row.sum += weight * value for keys [begin, end) of the tile, in ascending order.
  template <std::int32_t kHeadDim, std::int32_t kRows>
  static void add_value_range(Row<kHeadDim>* rows, const Tile& keys, std::int32_t begin, std::int32_t end) noexcept {
    if (begin >= end) { return; }
    constexpr int vectors = kHeadDim / simd::lanes;
    simd::f32x16 sum[kRows][vectors];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < vectors; ++i) { sum[r][i] = rows[r].sum[i]; }
    }
    for (std::int32_t key = begin; key < end; ++key) {
      const T* const value = keys.k[key] + keys.k_to_v;
      simd::f32x16 weight[kRows];
      NVL_UNROLL
      for (int r = 0; r < kRows; ++r) { weight[r] = simd::broadcast(rows[r].scores[key]); }
      NVL_UNROLL
      for (int i = 0; i < vectors; ++i) {
        const simd::f32x16 v = simd::load(value + i * simd::lanes);
        NVL_UNROLL
        for (int r = 0; r < kRows; ++r) { sum[r][i] = simd::fma(weight[r], v, sum[r][i]); }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < vectors; ++i) { rows[r].sum[i] = sum[r][i]; }
    }
  }

  AttentionShape shape_;
  std::int32_t group_size_;  // query heads that share a KV head
  ThreadPool& threads_;
  AttentionMetadata metadata_;
  std::vector<Item> items_;
  std::int64_t pairs_ = 0;  // queries x keys of the step, an upper bound
};

static_assert(StatefulAttentionBackend<CpuPagedAttention<float>>);
static_assert(StatefulAttentionBackend<CpuPagedAttention<bf16, 128>>);

}  // namespace nvl::inline NVL_ABI
