#pragma once
/// Prefill attention over paged K and V for Hopper (sm_90a), head dims 64 and 128, bf16 and fp16.
///
/// One block a multiprocessor works through the plan. Its first warpgroup moves data: one warp brings tiles of 128 keys, one
/// warp their values, each page by a tensor copy that swizzles it into place; two warps gather the packed query rows of the next
/// tile. Two warpgroups of 64 rows each compute, with scores, weights and output in registers. A warpgroup issues Q K^T of the
/// next keys before P V of the last ones and takes the softmax of the former while the latter runs; the two take turns at
/// issuing, so that the softmax of one runs under the products of the other.
/// Shah et al. 2024, arXiv:2407.08608.   Oracle: kernels/reference/attention.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/prefill_copy.cuh>
#include <nvl/kernels/detail/prefill_softmax.cuh>
#include <nvl/kernels/detail/vec.cuh>
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
  static constexpr int tile_keys = 128;
  static constexpr int stages = 2;
  static constexpr int column_blocks = kHeadDim / 64;
  static constexpr int out_stride = kHeadDim + 8;  // [elements] of a staged output row: no bank conflicts
  static constexpr int producer_registers = 40;    // of 65,536 for 384 threads
  static constexpr int consumer_registers = 232;
  static_assert(tile_rows == paged_prefill_tile_rows<T>(kHeadDim), "nvl: the plan and the kernel disagree about tiles");

  struct SharedStorage {
    alignas(1024) T q[tile_rows * kHeadDim];  // tiles as in warpgroup_mma.cuh: [column_blocks][rows][64]
    alignas(1024) T k[stages][tile_keys * kHeadDim];
    alignas(1024) T v[stages][tile_keys * kHeadDim];
    alignas(16) T out[tile_rows * out_stride];
    std::uint64_t q_full, q_empty;
    std::uint64_t k_full[stages], k_empty[stages];
    std::uint64_t v_full[stages], v_empty[stages];
  };
};

namespace detail::prefill {

/// K and V of a layer as rows of head_dim elements, read in boxes of 64 elements by min(block_size, tile_keys) rows.
struct KvMap {
  CUtensorMap map;
};

#if defined(__CUDACC__)

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

/// The units of work of this block: round by round, every other round from the other end, so that no block gets the longest of
/// every round.
struct WorkCursor {
  std::int32_t round = 0;
  __device__ __forceinline__ std::int32_t next() {
    const auto blocks = static_cast<std::int32_t>(gridDim.x);
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const std::int32_t at = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
    ++round;
    return at;
  }
};

/// What every role derives from a unit of work.
template <class Traits>
struct Work {
  PagedPrefillTile tile;
  std::int32_t kv_head;
  RowMap rows;
  KeyRange keys;
  std::int32_t first_tile, last_tile;  // of keys, both included

  __device__ __forceinline__ Work(const PagedPrefillParams<typename Traits::Element>& p, const PagedPrefillPlan& plan,
                                  std::int32_t at)
      : tile(plan.tiles()[at / p.layout.num_kv_heads]),
        kv_head(at % p.layout.num_kv_heads),
        rows(tile, Traits::tile_rows, p.num_q_heads / p.layout.num_kv_heads),
        keys(keys_of(tile, rows, p.window)),
        first_tile(keys.begin / Traits::tile_keys),
        last_tile((keys.end - 1) / Traits::tile_keys) {}
};

/// One warp: the pages of K (or of V: `kv` = 1) of every tile of keys of every unit of work, last tile first.
template <class Traits>
__device__ __forceinline__ void produce_pages(const PagedPrefillParams<typename Traits::Element>& p, const CUtensorMap* map,
                                              int kv, typename Traits::Element (*buffers)[Traits::tile_keys * Traits::head_dim],
                                              std::uint64_t* full, std::uint64_t* empty) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const std::int32_t num_work = plan.num_tiles * p.layout.num_kv_heads;
  const int block_bits = __ffs(p.layout.block_size) - 1;
  const int box_rows = min(p.layout.block_size, Traits::tile_keys);
  const int boxes = Traits::tile_keys / box_rows;  // of a column block; at most 8
  const int column_block = lane / boxes;
  const int box_key = lane % boxes * box_rows;  // in the tile
  const bool has_box = column_block < Traits::column_blocks;
  RingCursor<Traits::stages> cursor;
  WorkCursor order;
  for (std::int32_t at = order.next(); at < num_work; at = order.next()) {
    const Work<Traits> work(p, plan, at);
    const BlockId* table = p.block_tables + work.tile.table_offset;
    const std::int32_t head_row = (kv * p.layout.num_kv_heads + work.kv_head) * p.layout.block_size;
    const auto block_at = [&](std::int32_t key_tile) -> std::int32_t {
      const std::int32_t key = key_tile * Traits::tile_keys + box_key;
      return key_tile >= work.first_tile && key < work.tile.seq_len
                 ? static_cast<std::int32_t>(index_of(table[key >> block_bits]))
                 : 0;
    };
    std::int32_t block = block_at(work.last_tile);
    for (std::int32_t key_tile = work.last_tile; key_tile >= work.first_tile; --key_tile) {
      const std::int32_t next_block = block_at(key_tile - 1);
      const std::int32_t key = key_tile * Traits::tile_keys + box_key;
      const bool copies = has_box && key < work.tile.seq_len;
      hopper::wait_phase(&empty[cursor.stage], cursor.parity ^ 1u);
      if (lane == 0) {
        const int present = min(boxes, (work.tile.seq_len - key_tile * Traits::tile_keys + box_rows - 1) / box_rows);
        hopper::arrive_expecting(&full[cursor.stage],
                                 static_cast<std::uint32_t>(present * Traits::column_blocks * box_rows * 128));
      }
      __syncwarp();
      if (copies) {
        const std::int32_t row =
            block * 2 * p.layout.num_kv_heads * p.layout.block_size + head_row + (key & (p.layout.block_size - 1));
        hopper::copy_box(buffers[cursor.stage] + (column_block * Traits::tile_keys + box_key) * 64, map, column_block * 64, row,
                         &full[cursor.stage]);
      }
      block = next_block;
      cursor.advance();
    }
  }
}

/// Two warps: the packed query rows of every unit of work. `thread` counts from 0 to 63.
template <class Traits>
__device__ __forceinline__ void produce_queries(const PagedPrefillParams<typename Traits::Element>& p,
                                                typename Traits::SharedStorage& shared, int thread) {
  constexpr int units = Traits::head_dim / 8;
  constexpr int rows_at_once = 64 / units;
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const std::int32_t num_work = plan.num_tiles * p.layout.num_kv_heads;
  const int unit = thread % units;
  std::uint32_t parity = 1;
  WorkCursor order;
  for (std::int32_t at = order.next(); at < num_work; at = order.next()) {
    const Work<Traits> work(p, plan, at);
    const typename Traits::Element* source = p.q + work.tile.first_token * p.q_row_stride +
                                             static_cast<std::int64_t>(work.kv_head) * work.rows.group * Traits::head_dim +
                                             unit * 8;
    hopper::wait_phase(&shared.q_empty, parity);
    parity ^= 1u;
#pragma unroll 4
    for (int row = thread / units; row < Traits::tile_rows; row += rows_at_once) {
      const bool is_there = row < work.rows.num_rows;
      const std::int32_t query = work.rows.query(is_there ? row : 0);
      const std::int32_t head = work.rows.head(is_there ? row : 0, query);
      const typename Traits::Element* to = shared.q + (unit / 8 * Traits::tile_rows + row) * 64 + (unit % 8 ^ row % 8) * 8;
      copy_16_async(shared_address(to), source + query * p.q_row_stride + head * Traits::head_dim, is_there);
    }
    commit_copies();
    wait_for_copies();
    hopper::fence_async_proxy();
    hopper::arrive(&shared.q_full);
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
  /// out += P V, left running.
  __device__ __forceinline__ void begin_output(std::uint64_t v) {
#pragma unroll
    for (int step = 0; step < Traits::tile_keys / 16; ++step) {
      hopper::multiply_registers_tile<T>(out, weights[step], hopper::advance(v, static_cast<std::uint32_t>(step) * 16 * 128));
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

/// A computing warpgroup, `group` 0 or 1.
template <class Traits>
__device__ __forceinline__ void consume(const PagedPrefillParams<typename Traits::Element>& p,
                                        typename Traits::SharedStorage& shared, int group) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  const int warp_row = 64 * group + thread / 32 * 16;  // of the tile
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const std::int32_t num_work = plan.num_tiles * p.layout.num_kv_heads;
  const float scale_log2 = p.scale * log2_e;
  const Softcap softcap{2.0f * log2_e * p.scale / p.softcap, p.softcap / p.scale};
  const std::uint64_t q = hopper::tile_descriptor(shared.q + group * 64 * 64);
  const std::uint64_t k = hopper::tile_descriptor(shared.k[0]);
  const std::uint64_t v = hopper::tile_descriptor(shared.v[0], Traits::tile_keys * 128);
  constexpr std::uint32_t buffer_bytes = Traits::tile_keys * Traits::head_dim * 2;

  const auto take_turn = [&] { hopper::named_sync(1 + group, 256); };
  const auto pass_turn = [&] { hopper::named_arrive(2 - group, 256); };
  const auto release = [&](std::uint64_t* barrier) {
    if (lane == 0) { hopper::arrive(barrier); }
  };
  if (group == 1) { pass_turn(); }

  RingCursor<Traits::stages> k_at, v_at;
  std::uint32_t q_parity = 0;
  WorkCursor order;
  for (std::int32_t at = order.next(); at < num_work; at = order.next()) {
    const Work<Traits> work(p, plan, at);
    const std::int32_t offset = work.tile.seq_len - work.tile.query_len;
    // Tiles from `unmasked_begin` to `unmasked_end` are seen whole by every row.
    const std::int32_t unmasked_end = offset + work.rows.first_query + 1;
    const std::int32_t unmasked_begin = p.window > 0 ? max(0, offset + work.rows.last_query + 1 - p.window) : 0;
    OnlineRows state;
    Accumulators<Traits> acc;
    float rescale[2];

    const auto soften = [&](std::int32_t key_tile) {
      const std::int32_t first_key = key_tile * Traits::tile_keys;
      if constexpr (Traits::has_softcap) { apply_softcap(acc.s, softcap); }
      if (first_key < unmasked_begin || first_key + Traits::tile_keys > unmasked_end) {
        const int row = warp_row + lane / 4;
        const KeyRange visible[2] = {keys_of_row(work.tile, work.rows, row, p.window),
                                     keys_of_row(work.tile, work.rows, row + 8, p.window)};
        apply_mask(acc.s, first_key + lane % 4 * 2, visible);
      }
      state.step(acc.s, scale_log2, rescale);
    };

    hopper::wait_phase(&shared.q_full, q_parity);
    q_parity ^= 1u;
    hopper::wait_phase(&shared.k_full[k_at.stage], k_at.parity);
    hopper::pin(acc.s);
    hopper::begin_products();
    acc.begin_scores(q, hopper::advance(k, static_cast<std::uint32_t>(k_at.stage) * buffer_bytes));
    hopper::wait_products<0>();
    hopper::pin(acc.s);
    release(&shared.k_empty[k_at.stage]);
    k_at.advance();
    soften(work.last_tile);
    acc.round_weights();
#pragma unroll
    for (int i = 0; i < Traits::head_dim / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { acc.out[i][j] = 0.0f; }
    }
    if ((work.last_tile + 1) * Traits::tile_keys > work.tile.seq_len) {
      hopper::wait_phase(&shared.v_full[v_at.stage], v_at.parity);
      clear_values<Traits>(shared.v[v_at.stage], work.tile.seq_len - work.last_tile * Traits::tile_keys, group, thread);
    }

    for (std::int32_t key_tile = work.last_tile - 1; key_tile >= work.first_tile; --key_tile) {
      hopper::wait_phase(&shared.k_full[k_at.stage], k_at.parity);
      take_turn();
      hopper::pin(acc.s);
      hopper::pin(acc.out);
      hopper::begin_products();
      acc.begin_scores(q, hopper::advance(k, static_cast<std::uint32_t>(k_at.stage) * buffer_bytes));
      hopper::wait_phase(&shared.v_full[v_at.stage], v_at.parity);
      acc.begin_output(hopper::advance(v, static_cast<std::uint32_t>(v_at.stage) * buffer_bytes));
      pass_turn();
      hopper::wait_products<1>();
      hopper::pin(acc.s);
      release(&shared.k_empty[k_at.stage]);
      k_at.advance();
      soften(key_tile);
      hopper::wait_products<0>();
      hopper::pin(acc.out);
      release(&shared.v_empty[v_at.stage]);
      v_at.advance();
      acc.round_weights();
#pragma unroll
      for (int i = 0; i < Traits::head_dim / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) { acc.out[i][j] *= rescale[j / 2]; }
      }
    }
    release(&shared.q_empty);

    hopper::wait_phase(&shared.v_full[v_at.stage], v_at.parity);
    hopper::pin(acc.out);
    hopper::begin_products();
    acc.begin_output(hopper::advance(v, static_cast<std::uint32_t>(v_at.stage) * buffer_bytes));
    hopper::wait_products<0>();
    hopper::pin(acc.out);
    release(&shared.v_empty[v_at.stage]);
    v_at.advance();
    store_slab<typename Traits::Element, Traits::head_dim, Traits::out_stride>(
        shared.out + warp_row * Traits::out_stride, acc.out, state, p, work.tile, work.rows, work.kv_head, warp_row, scale_log2);
  }
}

#endif

template <class Traits>
NVL_KERNEL void __launch_bounds__(NVL_PREFILL_WGMMA_THREADS(Traits::threads), 1)
    paged_prefill_wgmma_kernel(const __grid_constant__ PagedPrefillParams<typename Traits::Element> p,
                               const __grid_constant__ KvMap kv) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) std::uint8_t prefill_wgmma_shared[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(prefill_wgmma_shared);
  if (threadIdx.x == 0) {
    hopper::prefetch_map(&kv.map);
    hopper::init_barrier(&shared.q_full, 64);
    hopper::init_barrier(&shared.q_empty, 4 * Traits::consumers);
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
    if (warp == 0) {
      produce_pages<Traits>(p, &kv.map, 0, shared.k, shared.k_full, shared.k_empty);
    } else if (warp == 1) {
      produce_pages<Traits>(p, &kv.map, 1, shared.v, shared.v_full, shared.v_empty);
    } else {
      produce_queries<Traits>(p, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else {
    hopper::take_registers<Traits::consumer_registers>();
    consume<Traits>(p, shared, group - 1);
  }
#else
  static_cast<void>(p);
  static_cast<void>(kv);
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

/// \throws CudaError if the driver refuses the map.
template <class Traits>
KvMap make_kv_map(const PagedPrefillParams<typename Traits::Element>& p) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    NVL_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  if (encode == nullptr) {
    raise(CudaError(static_cast<int>(cudaErrorNotSupported), "cuTensorMapEncodeTiled", "the driver does not have it"));
  }
  const KvLayout& l = p.layout;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(l.head_dim), static_cast<cuuint64_t>(l.layer_elements() / l.head_dim)};
  const cuuint64_t row_bytes[1] = {static_cast<cuuint64_t>(l.head_dim) * sizeof(typename Traits::Element)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(std::min(l.block_size, std::int32_t{Traits::tile_keys}))};
  const cuuint32_t steps[2] = {1, 1};
  KvMap kv{};
  const CUresult status =
      encode(&kv.map,
             std::is_same_v<typename Traits::Element, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             2, const_cast<typename Traits::Element*>(p.kv), extents, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) { raise(CudaError(static_cast<int>(status), "cuTensorMapEncodeTiled", "map of the KV cache")); }
  return kv;
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
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  int device = 0, processors = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(processors, detail::prefill::max_work(p)));
  const detail::LaunchConfig config{.grid = dim3(blocks),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = sizeof(typename Traits::SharedStorage),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  const detail::prefill::KvMap kv = detail::prefill::make_kv_map<Traits>(p);
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_wgmma_kernel<Traits>, p, kv));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
