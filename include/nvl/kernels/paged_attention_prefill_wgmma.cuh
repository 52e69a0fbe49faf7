#pragma once
/// Prefill attention over paged K and V for Hopper (sm_90a), head dims 64 and 128, bf16 and fp16.
///
/// One block a multiprocessor draws tiles of the plan. Its first warpgroup moves data: one warp brings tiles of 128 keys, one
/// warp their values, each page by a tensor copy that swizzles it into place; one the packed query rows of the next tile. Two
/// warpgroups of 64 rows each compute, with scores, weights and output in registers. A warpgroup issues Q K^T of the next keys
/// before P V of the last ones and takes the softmax of the former while the latter runs; the two take turns at issuing, so that
/// the softmax of one runs under the products of the other.
/// Shah et al. 2024, arXiv:2407.08608.   Oracle: kernels/reference/attention.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/prefill_copy.cuh>
#include <nvl/kernels/detail/prefill_softmax.cuh>
#include <nvl/kernels/detail/tensor_map.cuh>
#include <nvl/kernels/detail/warpgroup_mma.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda.h>
#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

template <class T, std::int32_t kHeadDim, bool kHasSoftcap = false>
struct PagedPrefillWgmmaTraits {
  static_assert(sizeof(T) == 2 && !std::is_integral_v<T>, "nvl: PagedPrefillWgmmaTraits is for bf16 and fp16");
  static_assert(kHeadDim == 64 || kHeadDim == 128, "nvl: PagedPrefillWgmmaTraits is for head dims 64 and 128");
  using Element = T;
  static constexpr std::int32_t head_dim = kHeadDim;
  static constexpr bool has_softcap = kHasSoftcap;
  static constexpr int consumers = 2;  // warpgroups that compute
  static constexpr int threads = 128 * (1 + consumers);
  static constexpr int tile_rows = 64 * consumers;
  static constexpr int tile_keys = 128;  // of 64: 7 % slower at 512 tokens a prompt, 31 % at 2,048 (H200, 32/8 heads, d 128)
  static constexpr int stages = 2;       // buffers of K, and of V
  static constexpr int column_blocks = kHeadDim / 64;
  static constexpr int producer_registers = 40;  // of 65,536 for 384 threads
  static constexpr int consumer_registers = 232;
  static_assert(tile_rows == paged_prefill_tile_rows<T>(kHeadDim), "nvl: the plan and the kernel disagree about tiles");

  struct SharedStorage;
};

namespace detail::prefill {

/// K and V of a layer as rows of head_dim elements, read in boxes of 64 elements by min(block_size, tile_keys) rows; the queries
/// as [token][head][element], in boxes of 64 elements of the heads of a group of the tokens of a tile.
struct TensorMaps {
  CUtensorMap kv;
  CUtensorMap q;
};

#if defined(__CUDACC__)

inline constexpr std::int32_t no_tile = -1;

/// A tile and what follows from it.
template <class Traits>
struct Work {
  PagedPrefillTile tile;
  RowMap rows;
  KeyRange keys;
  std::int32_t first_tile, last_tile;  // of keys, both included; last_tile is no_tile: there is no work

  __device__ __forceinline__ Work(const PagedPrefillParams<typename Traits::Element>& p, const PagedPrefillTile& t)
      : tile(t),
        rows(tile, Traits::tile_rows, p.num_q_heads / p.layout.num_kv_heads),
        keys(keys_of(tile, rows, p.window)),
        first_tile(keys.begin / Traits::tile_keys),
        last_tile((keys.end - 1) / Traits::tile_keys) {}
};

}  // namespace detail::prefill

template <class T, std::int32_t kHeadDim, bool kHasSoftcap>
struct PagedPrefillWgmmaTraits<T, kHeadDim, kHasSoftcap>::SharedStorage {
  // Tiles as in warpgroup_mma.cuh: [column_blocks][rows][64].
  alignas(1024) T q[2][tile_rows * kHeadDim];  // later the output of the same rows
  alignas(1024) T k[stages][tile_keys * kHeadDim];
  alignas(1024) T v[stages][tile_keys * kHeadDim];
  detail::prefill::Work<PagedPrefillWgmmaTraits> work[2];  // of the queries in q
  std::int32_t next_tile[2];                               // of the plan, or no_tile: what the warps that move data take up next
  std::uint64_t next_full[2], next_empty[2];
  std::uint64_t q_full[2], q_empty[2];
  std::uint64_t k_full[stages], k_empty[stages];
  std::uint64_t v_full[stages], v_empty[stages];
};

namespace detail::prefill {

// Without sm_90a code the kernel below is empty; its launch bound tells the host (has_wgmma_code).
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NVL_PREFILL_WGMMA_THREADS(threads) 32
#else
#define NVL_PREFILL_WGMMA_THREADS(threads) (threads)
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Position in a ring of buffers.
template <int kStages>
struct RingCursor {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

/// One thread: draws tiles of the plan for the warps that move data, one ahead of them.
template <class Traits>
__device__ __forceinline__ void draw_tiles(PagedPrefillPlan& plan, typename Traits::SharedStorage& shared) {
  RingCursor<2> cursor;
  auto at = static_cast<std::int32_t>(blockIdx.x);  // the first without asking
  while (true) {
    hopper::wait_phase(&shared.next_empty[cursor.stage], cursor.parity ^ 1u);
    shared.next_tile[cursor.stage] = at < plan.num_tiles ? at : no_tile;
    hopper::arrive(&shared.next_full[cursor.stage]);
    if (at >= plan.num_tiles) { break; }
    cursor.advance();
    at = static_cast<std::int32_t>(gridDim.x + atomicAdd(&plan.next, 1u));
  }
  // The last block leaves the counters as it found them.
  if (atomicAdd(&plan.finished, 1u) == gridDim.x - 1) {
    plan.next = 0;
    plan.finished = 0;
  }
}

/// A warp's view of what draw_tiles drew.
template <class Traits>
struct TileCursor {
  RingCursor<2> cursor;
  __device__ __forceinline__ std::int32_t next(typename Traits::SharedStorage& shared) {
    hopper::wait_phase(&shared.next_full[cursor.stage], cursor.parity);
    const std::int32_t at = shared.next_tile[cursor.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) { hopper::arrive(&shared.next_empty[cursor.stage]); }
    cursor.advance();
    return at;
  }
};

/// What a warp that brings pages needs to know of a unit of work. Loaded one unit ahead: behind every address is another load.
template <class Traits>
struct PageWork {
  const BlockId* table;
  std::int32_t seq_len;
  std::int32_t head_row;  // first row of the KV head in block 0
  std::int32_t first_tile, last_tile;

  __device__ __forceinline__ PageWork(const PagedPrefillParams<typename Traits::Element>& p, const PagedPrefillTile& tile,
                                      int kv) {
    const Work<Traits> work(p, tile);
    table = p.block_tables + work.tile.table_offset;
    seq_len = work.tile.seq_len;
    head_row = (kv * p.layout.num_kv_heads + tile.kv_head) * p.layout.block_size;
    first_tile = work.first_tile;
    last_tile = work.last_tile;
  }
  /// The block that holds `key`, 0 if there is none.
  __device__ __forceinline__ std::int32_t block_of(std::int32_t key, int block_bits) const {
    return key < seq_len ? static_cast<std::int32_t>(index_of(table[key >> block_bits])) : 0;
  }
};

/// One warp: the pages of K (or of V: `kv` = 1) of every tile of keys of every unit of work, last tile first.
template <class Traits>
__device__ __forceinline__ void produce_pages(const PagedPrefillParams<typename Traits::Element>& p,
                                              typename Traits::SharedStorage& shared, const CUtensorMap* map, int kv) {
  auto& buffers = kv == 0 ? shared.k : shared.v;
  std::uint64_t* const full = kv == 0 ? shared.k_full : shared.v_full;
  std::uint64_t* const empty = kv == 0 ? shared.k_empty : shared.v_empty;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const int block_bits = __ffs(p.layout.block_size) - 1;
  const int box_rows = min(p.layout.block_size, Traits::tile_keys);
  const int boxes = Traits::tile_keys / box_rows;  // of a column block; at most 8
  const int column_block = lane / boxes;
  const int box_key = lane % boxes * box_rows;  // in the tile
  const bool has_box = column_block < Traits::column_blocks;
  RingCursor<Traits::stages> cursor;
  TileCursor<Traits> order;
  std::int32_t at = order.next(shared);
  if (at == no_tile) { return; }
  PageWork<Traits> work(p, plan.tiles()[at], kv);
  std::int32_t block = work.block_of(work.last_tile * Traits::tile_keys + box_key, block_bits);
  while (true) {
    PageWork<Traits> next = work;
    for (std::int32_t key_tile = work.last_tile; key_tile >= work.first_tile; --key_tile) {
      const std::int32_t key = key_tile * Traits::tile_keys + box_key;
      hopper::wait_phase(&empty[cursor.stage], cursor.parity ^ 1u);
      if (lane == 0) {
        const int present = min(boxes, (work.seq_len - key_tile * Traits::tile_keys + box_rows - 1) / box_rows);
        hopper::arrive_expecting(&full[cursor.stage],
                                 static_cast<std::uint32_t>(present * Traits::column_blocks * box_rows * 128));
      }
      __syncwarp();
      if (has_box && key < work.seq_len) {
        const std::int32_t row =
            block * 2 * p.layout.num_kv_heads * p.layout.block_size + work.head_row + (key & (p.layout.block_size - 1));
        hopper::copy_box(buffers[cursor.stage] + (column_block * Traits::tile_keys + box_key) * 64, map, column_block * 64, row,
                         &full[cursor.stage]);
      }
      cursor.advance();
      if (key_tile == work.last_tile) {
        at = order.next(shared);
        if (at != no_tile) { next = PageWork<Traits>(p, plan.tiles()[at], kv); }
      }
      block = key_tile > work.first_tile ? work.block_of((key_tile - 1) * Traits::tile_keys + box_key, block_bits)
                                         : next.block_of(next.last_tile * Traits::tile_keys + box_key, block_bits);
    }
    if (at == no_tile) { break; }
    work = next;
  }
}

/// Where 16-byte unit `unit` of row `row` of a tile of `tile_rows` queries lies.
template <class Traits>
__device__ __forceinline__ typename Traits::Element* swizzled(typename Traits::Element* tile, int row, int unit) {
  return tile + (unit / 8 * Traits::tile_rows + row) * 64 + (unit % 8 ^ row % 8) * 8;
}

/// One warp: the packed query rows of every unit of work, and what it is; after the last an empty one. Rows past the end of a
/// tile are those of other queries or old ones: nothing is done with their results.
template <class Traits>
__device__ __forceinline__ void produce_queries(const PagedPrefillParams<typename Traits::Element>& p,
                                                typename Traits::SharedStorage& shared, const CUtensorMap* map) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const std::int32_t group = p.num_q_heads / p.layout.num_kv_heads;
  const std::int32_t box_rows = Traits::tile_rows / group * group;
  RingCursor<2> cursor;
  TileCursor<Traits> order;
  for (std::int32_t at = order.next(shared); at != no_tile; at = order.next(shared)) {
    const Work<Traits> work(p, plan.tiles()[at]);
    hopper::wait_phase(&shared.q_empty[cursor.stage], cursor.parity ^ 1u);
    if (lane == 0) {
      shared.work[cursor.stage] = work;
      hopper::arrive_expecting(&shared.q_full[cursor.stage], static_cast<std::uint32_t>(Traits::column_blocks * box_rows * 128));
#pragma unroll
      for (int block = 0; block < Traits::column_blocks; ++block) {
        hopper::copy_box(shared.q[cursor.stage] + block * Traits::tile_rows * 64, map, block * 64, work.rows.first_head,
                         work.tile.first_token + work.rows.first_query, &shared.q_full[cursor.stage]);
      }
    }
    cursor.advance();
  }
  hopper::wait_phase(&shared.q_empty[cursor.stage], cursor.parity ^ 1u);
  if (lane == 0) {
    shared.work[cursor.stage].last_tile = no_tile;
    hopper::arrive(&shared.q_full[cursor.stage]);
  }
}

/// What one computing warpgroup keeps: 64 rows of scores or weights, and of output.
template <class Traits>
struct Accumulators {
  using T = typename Traits::Element;
  float s[Traits::tile_keys / 8][4];
  float out[Traits::head_dim / 8][4];
  std::uint32_t weights[Traits::tile_keys / 16][4];

  /// s = Q K^T, left running.
  __device__ __forceinline__ void begin_scores(std::uint64_t q, std::uint64_t k) {
#pragma unroll
    for (int step = 0; step < Traits::head_dim / 16; ++step) {
      const std::uint32_t in_block = static_cast<std::uint32_t>(step % 4 * 32);
      const auto block = static_cast<std::uint32_t>(step / 4);
      hopper::multiply_tiles<T>(s, hopper::advance(q, block * Traits::tile_rows * 128 + in_block),
                                hopper::advance(k, block * Traits::tile_keys * 128 + in_block), step != 0);
    }
    hopper::commit_products();
  }
  /// out = P V + (accumulate ? out : 0), left running.
  __device__ __forceinline__ void begin_output(std::uint64_t v, bool accumulate) {
#pragma unroll
    for (int step = 0; step < Traits::tile_keys / 16; ++step) {
      hopper::multiply_registers_tile<T>(out, weights[step], hopper::advance(v, static_cast<std::uint32_t>(step) * 16 * 128),
                                         accumulate || step != 0);
    }
    hopper::commit_products();
  }
  __device__ __forceinline__ void round_weights() {
#pragma unroll
    for (int step = 0; step < Traits::tile_keys / 16; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights[step][2 * half] = pack2<T>(s[2 * step + half][0], s[2 * step + half][1]);
        weights[step][2 * half + 1] = pack2<T>(s[2 * step + half][2], s[2 * step + half][3]);
      }
    }
  }
};

/// Zeros the rows of a tile of values from `first` on: nothing was copied there, or slots that no token fills. Every warpgroup
/// does it for itself.
template <class Traits>
__device__ __forceinline__ void clear_values(typename Traits::Element* values, int first, int group, int thread) {
  for (int i = first * 8 * Traits::column_blocks + thread; i < Traits::tile_keys * 8 * Traits::column_blocks; i += 128) {
    const int row = i / (8 * Traits::column_blocks);
    const int unit = i % (8 * Traits::column_blocks);
    *reinterpret_cast<uint4*>(values + (unit / 8 * Traits::tile_keys + row) * 64 + unit % 8 * 8) = uint4{0, 0, 0, 0};
  }
  hopper::fence_async_proxy();
  hopper::named_sync(3 + group, 128);
}

/// A computing warpgroup, `group` 0 or 1. Units of work follow each other without a gap: the first scores of one are computed
/// beside the last output of the one before.
template <class Traits>
__device__ __forceinline__ void consume(const PagedPrefillParams<typename Traits::Element>& p,
                                        typename Traits::SharedStorage& shared, int group) {
  using T = typename Traits::Element;
  constexpr int tile_keys = Traits::tile_keys;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const float scale_log2 = p.scale * log2_e;
  const Softcap softcap{2.0f * log2_e * p.scale / p.softcap, p.softcap / p.scale};
  // Named barriers: 1 and 2 give the turn to group 0 and 1, 3 and 4 hold the group's own warps together.
  const auto take_turn = [&] { hopper::named_sync(1 + group, 256); };
  const auto pass_turn = [&] { hopper::named_arrive(2 - group, 256); };
  const auto release = [&](std::uint64_t* barrier) {
    if (thread % 32 == 0) { hopper::arrive(barrier); }
  };
  if (group == 1) { pass_turn(); }

  RingCursor<2> q_at;
  RingCursor<Traits::stages> k_at, v_at;
  OnlineRows state;
  Accumulators<Traits> acc;
  float rescale[2];
  // Of the tile of keys whose scores come next.
  std::int32_t key_tile, first_tile, unmasked_begin, unmasked_end;
  // Of the tile whose weights wait for the product with the values.
  bool is_first, values_end;

  // False: there is no more.
  const auto begin_work = [&] {
    hopper::wait_phase(&shared.q_full[q_at.stage], q_at.parity);
    const Work<Traits>& work = shared.work[q_at.stage];
    if (work.last_tile == no_tile) { return false; }
    const std::int32_t offset = work.tile.seq_len - work.tile.query_len;
    key_tile = work.last_tile;
    first_tile = work.first_tile;
    // Keys from `unmasked_begin` to `unmasked_end` are visible to every row.
    unmasked_end = offset + work.rows.first_query + 1;
    unmasked_begin = p.window > 0 ? max(0, offset + work.rows.last_query + 1 - p.window) : 0;
    state = OnlineRows{};
    return true;
  };
  const auto begin_scores = [&] {
    hopper::pin(acc.s);
    hopper::begin_products();
    acc.begin_scores(hopper::tile_descriptor(shared.q[q_at.stage] + group * 64 * 64),
                     hopper::tile_descriptor(shared.k[k_at.stage]));
  };
  const auto end_scores = [&] {
    hopper::pin(acc.s);
    release(&shared.k_empty[k_at.stage]);
    k_at.advance();
  };
  const auto begin_output = [&] {
    hopper::wait_phase(&shared.v_full[v_at.stage], v_at.parity);
    hopper::begin_products();
    acc.begin_output(hopper::tile_descriptor(shared.v[v_at.stage], tile_keys * 128), !is_first);
  };
  const auto end_output = [&] {
    hopper::wait_products<0>();
    hopper::pin(acc.out);
    release(&shared.v_empty[v_at.stage]);
    v_at.advance();
  };
  const auto soften = [&] {
    const std::int32_t first_key = key_tile * tile_keys;
    if constexpr (Traits::has_softcap) { apply_softcap(acc.s, softcap); }
    if (first_key < unmasked_begin || first_key + tile_keys > unmasked_end) {
      const Work<Traits>& work = shared.work[q_at.stage];
      const int thread_now = thread_idx_anew() - 128;
      const int row = thread_now / 32 * 16 + thread_now % 32 / 4;
      const KeyRange visible[2] = {keys_of_row(work.tile, work.rows, row, p.window),
                                   keys_of_row(work.tile, work.rows, row + 8, p.window)};
      apply_mask(acc.s, first_key + thread_now % 4 * 2, visible);
    }
    state.step(acc.s, scale_log2, rescale);
    asm volatile("" : "+f"(state.sum[0]), "+f"(state.sum[1]));  // summed here, beside the running product, not later
  };
  // The weights of `key_tile` wait from here on.
  const auto end_tile = [&](bool first_of_work) {
    acc.round_weights();
    is_first = first_of_work;
    values_end = first_of_work && (key_tile + 1) * tile_keys > shared.work[q_at.stage].tile.seq_len;
  };
  const auto end_work = [&](int stage, OnlineRows& done) {
    const Work<Traits>& work = shared.work[stage];
    T* const staging = shared.q[stage];
    const int row = (thread_idx_anew() - 128) / 32 * 16;  // of the tile; the first warpgroup moves data
    hopper::named_sync(3 + group, 128);                   // no warp of the group reads these queries any more
    store_slab<T, Traits::head_dim>([&](int r, int unit) { return swizzled<Traits>(staging, row + r, unit); }, acc.out, done, p,
                                    work.tile, work.rows, row, scale_log2);
    hopper::fence_async_proxy();  // the next queries come by the copy engine
    __syncwarp();
    release(&shared.q_empty[stage]);
  };
  const auto clear_past_the_end = [&] {
    if (values_end) {
      hopper::wait_phase(&shared.v_full[v_at.stage], v_at.parity);
      clear_values<Traits>(shared.v[v_at.stage], shared.work[q_at.stage].tile.seq_len - key_tile * tile_keys, group, thread);
    }
  };

  // The last output, beside nothing.
  const auto finish = [&](int stage, OnlineRows& done) {
    hopper::pin(acc.out);
    begin_output();
    end_output();
    end_work(stage, done);
  };

  if (!begin_work()) { return; }
  hopper::wait_phase(&shared.k_full[k_at.stage], k_at.parity);
  begin_scores();
  hopper::wait_products<0>();
  end_scores();
  soften();
  end_tile(true);
  while (true) {
    const bool same_work = key_tile > first_tile;
    clear_past_the_end();
    const int last_stage = q_at.stage;
    OnlineRows last_state = state;
    if (same_work) {
      --key_tile;
    } else {
      q_at.advance();
      if (!begin_work()) {
        finish(last_stage, last_state);
        return;
      }
    }
    hopper::wait_phase(&shared.k_full[k_at.stage], k_at.parity);
    take_turn();
    hopper::pin(acc.out);
    begin_scores();
    begin_output();
    pass_turn();
    hopper::wait_products<1>();
    end_scores();
    soften();
    // The wait for the output is in both branches, not before them: the assembler would move it up and the softmax after it.
    if (same_work) {
      end_output();
      apply_rescale(acc.out, rescale);
    } else {
      end_output();
      end_work(last_stage, last_state);
    }
    end_tile(!same_work);
  }
}

#endif

template <class Traits>
NVL_KERNEL void __launch_bounds__(NVL_PREFILL_WGMMA_THREADS(Traits::threads), 1)
    paged_prefill_wgmma_kernel(const __grid_constant__ PagedPrefillParams<typename Traits::Element> p,
                               const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) std::uint8_t prefill_wgmma_shared[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(prefill_wgmma_shared);
  if (threadIdx.x == 0) {
    hopper::prefetch_map(&maps.kv);
    hopper::prefetch_map(&maps.q);
    for (int stage = 0; stage < 2; ++stage) {
      hopper::init_barrier(&shared.next_full[stage], 1);
      hopper::init_barrier(&shared.next_empty[stage], 3);
      hopper::init_barrier(&shared.q_full[stage], 1);
      hopper::init_barrier(&shared.q_empty[stage], 4 * Traits::consumers);
    }
    for (int stage = 0; stage < Traits::stages; ++stage) {
      hopper::init_barrier(&shared.k_full[stage], 1);
      hopper::init_barrier(&shared.v_full[stage], 1);
      hopper::init_barrier(&shared.k_empty[stage], 4 * Traits::consumers);
      hopper::init_barrier(&shared.v_empty[stage], 4 * Traits::consumers);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  let_next_start();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    hopper::give_registers<Traits::producer_registers>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp < 2) {
      produce_pages<Traits>(p, shared, &maps.kv, warp);
    } else if (warp == 2) {
      produce_queries<Traits>(p, shared, &maps.q);
    } else if (threadIdx.x % 32 == 0) {
      draw_tiles<Traits>(*static_cast<PagedPrefillPlan*>(p.workspace), shared);
    }
  } else {
    hopper::take_registers<Traits::consumer_registers>();
    consume<Traits>(p, shared, group - 1);
  }
#else
  static_cast<void>(p);
  static_cast<void>(maps);
#endif
}

#undef NVL_PREFILL_WGMMA_THREADS

/// True if the program holds sm_90a code of the kernel and the current device runs it.
template <class Traits>
bool has_wgmma_code() {
  cudaFuncAttributes attributes{};
  NVL_CUDA_CHECK(cudaFuncGetAttributes(&attributes, paged_prefill_wgmma_kernel<Traits>));
  return attributes.maxThreadsPerBlock >= Traits::threads;
}

template <class Traits>
TensorMaps make_tensor_maps(const PagedPrefillParams<typename Traits::Element>& p) {
  const KvLayout& l = p.layout;
  const std::int64_t head_dim = l.head_dim;
  const std::int32_t group = p.num_q_heads / l.num_kv_heads;
  return {
      .kv = detail::make_tensor_map<typename Traits::Element, 2>(p.kv, {head_dim, l.layer_elements() / head_dim}, {head_dim},
                                                                 {64, std::min(l.block_size, std::int32_t{Traits::tile_keys})}),
      .q = detail::make_tensor_map<typename Traits::Element, 3>(
          p.q, {head_dim, p.num_q_heads, p.num_tokens}, {head_dim, p.q_row_stride}, {64, group, Traits::tile_rows / group})};
}

#endif

}  // namespace detail::prefill

#if defined(__CUDACC__)

/// True if launch_paged_prefill_wgmma can run here: a Hopper GPU, sm_90a code in the program, rows of K and V below 2^31.
template <class Traits>
bool can_launch_paged_prefill_wgmma(const PagedPrefillParams<typename Traits::Element>& p) {
  return p.layout.layer_elements() / Traits::head_dim < std::int64_t{1} << 31 && detail::prefill::has_wgmma_code<Traits>();
}

/// Runs the plan in p.workspace. Asynchronous on `stream`; allocates nothing; safe inside graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_paged_prefill_wgmma(const PagedPrefillParams<typename Traits::Element>& p, cudaStream_t stream) {
  detail::prefill::check(p);
  NVL_EXPECTS(p.layout.head_dim == Traits::head_dim, "paged_prefill head_dim", p.layout.head_dim,
              "that of the traits (" + std::to_string(Traits::head_dim) + ")");
  NVL_EXPECTS(p.layout.layer_elements() / Traits::head_dim < std::int64_t{1} << 31, "paged_prefill num_blocks",
              p.layout.num_blocks, "few enough for 2^31 rows of K and V");
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  int device = 0, processors = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(processors, detail::prefill::max_tiles(p)));
  const detail::LaunchConfig config{.grid = dim3(blocks),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = sizeof(typename Traits::SharedStorage),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  const detail::prefill::TensorMaps maps = detail::prefill::make_tensor_maps<Traits>(p);
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_wgmma_kernel<Traits>, p, maps));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
