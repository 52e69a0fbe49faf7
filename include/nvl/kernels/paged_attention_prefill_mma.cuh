#pragma once
/// Prefill attention over paged K and V with m16n8k16 tensor-core products: any GPU from sm_80, bf16 and fp16.
///
/// A block of four warps takes one tile of packed rows; a warp keeps 32 rows (16 for head dim 256) of output in
/// registers, so that a fragment of K or V read from shared memory serves two products. Keys come in tiles of 64 from the last
/// visible to the first; the copy of V runs under Q K^T and the softmax, that of the next K under P V.
/// Rows of shared memory are padded by 16 bytes: an odd number of 16-byte units, so ldmatrix meets no bank conflict.
/// Algorithm: Dao 2023, arXiv:2307.08691.   Oracle: kernels/reference/attention.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/prefill_copy.cuh>
#include <nvl/kernels/detail/prefill_softmax.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/detail/warp_mma.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>

#include <bit>
#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

template <class T, std::int32_t kHeadDim, bool kHasSoftcap = false>
struct PagedPrefillMmaTraits {
  static_assert(sizeof(T) == 2 && !std::is_integral_v<T>, "nvl: PagedPrefillMmaTraits is for bf16 and fp16");
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= 256, "nvl: PagedPrefillMmaTraits needs a head dim of whole 16s, at most 256");
  using Element = T;
  static constexpr std::int32_t head_dim = kHeadDim;
  static constexpr bool has_softcap = kHasSoftcap;
  static constexpr int tile_rows = paged_prefill_tile_rows<T>(kHeadDim);
  static constexpr int slabs = kHeadDim <= 128 ? 2 : 1;  // of 16 rows a warp
  static constexpr int warps = tile_rows / (16 * slabs);
  static constexpr int threads = 32 * warps;
  static constexpr int tile_keys = 64;
  static constexpr int row_stride = kHeadDim + 8;  // [elements] of a row in shared memory

  struct SharedStorage {
    alignas(16) T q[tile_rows * row_stride];  // later the output
    alignas(16) T k[tile_keys * row_stride];
    alignas(16) T v[tile_keys * row_stride];
  };
};

namespace detail::prefill {

#if defined(__CUDACC__)

/// The packed query rows of a tile, zeros past its end.
template <class Traits>
__device__ __forceinline__ void copy_queries(typename Traits::Element* to, const PagedPrefillParams<typename Traits::Element>& p,
                                             const PagedPrefillTile& tile, const RowMap& rows) {
  constexpr int units = Traits::head_dim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Traits::tile_rows * units; i += Traits::threads) {
    const std::int32_t row = i / units;
    const std::int32_t column = i % units * 8;
    const bool is_there = row < rows.num_rows;
    const std::int32_t query = rows.query(is_there ? row : 0);
    const std::int32_t head = rows.head(is_there ? row : 0, query);
    copy_16_async(shared_address(to + row * Traits::row_stride + column),
                  p.q + (tile.first_token + query) * p.q_row_stride + head * Traits::head_dim + column, is_there);
  }
}

/// Keys (or values: `source` is the layer at the head's offset in block 0) first .. first + tile_keys, zeros from `end` on.
template <class Traits>
__device__ __forceinline__ void copy_keys(typename Traits::Element* to, const typename Traits::Element* source,
                                          std::int64_t block_elements, const BlockId* table, int block_bits, std::int32_t first,
                                          std::int32_t end) {
  constexpr int units = Traits::head_dim / 8;
  constexpr int copies = Traits::tile_keys * units;
#pragma unroll
  for (int at = 0; at < copies; at += Traits::threads) {
    const int i = at + static_cast<int>(threadIdx.x);
    if (copies % Traits::threads != 0 && i >= copies) { break; }
    const std::int32_t row = i / units;
    const std::int32_t column = i % units * 8;
    const std::int32_t key = first + row;
    const bool is_there = key < end;
    const std::int64_t block = is_there ? index_of(table[key >> block_bits]) : 0u;
    const std::int32_t slot = key & ((1 << block_bits) - 1);
    copy_16_async(shared_address(to + row * Traits::row_stride + column),
                  source + block * block_elements + slot * Traits::head_dim + column, is_there);
  }
}

/// Scores of this warp's rows against a tile of keys. `q_lane` and `k_lane` are this lane's ldmatrix addresses of the tiles.
template <class Traits>
__device__ __forceinline__ void multiply_queries_keys(float (&s)[Traits::slabs][Traits::tile_keys / 8][4], std::uint32_t q_lane,
                                                      std::uint32_t k_lane) {
  constexpr int stride = 2 * Traits::row_stride;  // [bytes]
#pragma unroll
  for (int slab = 0; slab < Traits::slabs; ++slab) {
#pragma unroll
    for (int i = 0; i < Traits::tile_keys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { s[slab][i][j] = 0.0f; }
    }
  }
#pragma unroll
  for (int k = 0; k < Traits::head_dim; k += 16) {
    std::uint32_t a[Traits::slabs][4];
#pragma unroll
    for (int slab = 0; slab < Traits::slabs; ++slab) { load_matrices(a[slab], q_lane + slab * 16 * stride + k * 2); }
#pragma unroll
    for (int i = 0; i < Traits::tile_keys / 16; ++i) {
      std::uint32_t b[4];
      load_matrices(b, k_lane + i * 16 * stride + k * 2);
#pragma unroll
      for (int slab = 0; slab < Traits::slabs; ++slab) {
        multiply_add<typename Traits::Element>(s[slab][2 * i], a[slab], b[0], b[1]);
        multiply_add<typename Traits::Element>(s[slab][2 * i + 1], a[slab], b[2], b[3]);
      }
    }
  }
}

/// out += P V, where P is `s` rounded to the element type.
template <class Traits>
__device__ __forceinline__ void multiply_weights_values(float (&out)[Traits::slabs][Traits::head_dim / 8][4],
                                                        const float (&s)[Traits::slabs][Traits::tile_keys / 8][4],
                                                        std::uint32_t v_lane) {
  using T = typename Traits::Element;
  constexpr int stride = 2 * Traits::row_stride;
#pragma unroll
  for (int k = 0; k < Traits::tile_keys / 16; ++k) {
    std::uint32_t a[Traits::slabs][4];
#pragma unroll
    for (int slab = 0; slab < Traits::slabs; ++slab) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[slab][2 * half] = pack2<T>(s[slab][2 * k + half][0], s[slab][2 * k + half][1]);
        a[slab][2 * half + 1] = pack2<T>(s[slab][2 * k + half][2], s[slab][2 * k + half][3]);
      }
    }
#pragma unroll
    for (int i = 0; i < Traits::head_dim / 16; ++i) {
      std::uint32_t b[4];
      load_matrices_transposed(b, v_lane + k * 16 * stride + i * 32);
#pragma unroll
      for (int slab = 0; slab < Traits::slabs; ++slab) {
        multiply_add<T>(out[slab][2 * i], a[slab], b[0], b[1]);
        multiply_add<T>(out[slab][2 * i + 1], a[slab], b[2], b[3]);
      }
    }
  }
}

/// One tile.
template <class Traits>
__device__ __forceinline__ void attend_tile(typename Traits::SharedStorage& shared,
                                            const PagedPrefillParams<typename Traits::Element>& p, const PagedPrefillTile& tile) {
  using T = typename Traits::Element;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowMap rows(tile, Traits::tile_rows, p.num_q_heads / p.layout.num_kv_heads);
  const KeyRange keys = keys_of(tile, rows, p.window);
  const BlockId* table = p.block_tables + tile.table_offset;
  const int block_bits = __ffs(p.layout.block_size) - 1;
  const T* k_source = p.kv + p.layout.k_offset(0, tile.kv_head, 0);
  const T* v_source = p.kv + p.layout.v_offset(0, tile.kv_head, 0);
  const auto copy = [&](T* to, const T* source, std::int32_t first) {
    copy_keys<Traits>(to, source, p.layout.block_elements(), table, block_bits, first, keys.end);
    commit_copies();
  };

  const std::int32_t first_tile = keys.begin / Traits::tile_keys;
  std::int32_t key_tile = (keys.end - 1) / Traits::tile_keys;
  copy_queries<Traits>(shared.q, p, tile, rows);
  copy(shared.k, k_source, key_tile * Traits::tile_keys);

  const int first_row = warp * 16 * Traits::slabs;
  const std::uint32_t q_lane = shared_address(shared.q + (first_row + lane % 16) * Traits::row_stride + lane / 16 * 8);
  const std::uint32_t k_lane = shared_address(shared.k + (lane / 16 * 8 + lane % 8) * Traits::row_stride + lane / 8 % 2 * 8);
  const std::uint32_t v_lane = shared_address(shared.v + lane % 16 * Traits::row_stride + lane / 16 * 8);
  const float scale_log2 = p.scale * log2_e;
  const Softcap softcap{2.0f * log2_e * p.scale / p.softcap, p.softcap / p.scale};

  OnlineRows state[Traits::slabs];
  float out[Traits::slabs][Traits::head_dim / 8][4];
#pragma unroll
  for (int slab = 0; slab < Traits::slabs; ++slab) {
#pragma unroll
    for (int i = 0; i < Traits::head_dim / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) { out[slab][i][j] = 0.0f; }
    }
  }
  // Tiles from `unmasked_begin` to `unmasked_end` are seen whole by every row.
  const std::int32_t offset = tile.seq_len - tile.query_len;
  const std::int32_t unmasked_end = offset + rows.first_query + 1;
  const std::int32_t unmasked_begin = p.window > 0 ? max(0, offset + rows.last_query + 1 - p.window) : 0;

  for (; key_tile >= first_tile; --key_tile) {
    const std::int32_t first_key = key_tile * Traits::tile_keys;
    wait_for_copies();
    __syncthreads();
    copy(shared.v, v_source, first_key);
    float s[Traits::slabs][Traits::tile_keys / 8][4];
    multiply_queries_keys<Traits>(s, q_lane, k_lane);
    const bool masked = first_key < unmasked_begin || first_key + Traits::tile_keys > unmasked_end;
#pragma unroll
    for (int slab = 0; slab < Traits::slabs; ++slab) {
      if constexpr (Traits::has_softcap) { apply_softcap(s[slab], softcap); }
      if (masked) {
        const int row = first_row + 16 * slab + lane / 4;
        const KeyRange visible[2] = {keys_of_row(tile, rows, row, p.window), keys_of_row(tile, rows, row + 8, p.window)};
        apply_mask(s[slab], first_key + lane % 4 * 2, visible);
      }
      float rescale[2];
      state[slab].step(s[slab], scale_log2, rescale);
      apply_rescale(out[slab], rescale);
    }
    wait_for_copies();
    __syncthreads();
    if (key_tile > first_tile) { copy(shared.k, k_source, first_key - Traits::tile_keys); }
    multiply_weights_values<Traits>(out, s, v_lane);
  }
#pragma unroll
  for (int slab = 0; slab < Traits::slabs; ++slab) {
    T* const staging = shared.q + (first_row + 16 * slab) * Traits::row_stride;
    store_slab<T, Traits::head_dim>([&](int row, int unit) { return staging + row * Traits::row_stride + unit * 8; }, out[slab],
                                    state[slab], p, tile, rows, first_row + 16 * slab, scale_log2);
  }
}

/// A block a tile; blocks past the last tile end at once.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads)
    paged_prefill_mma_kernel(const __grid_constant__ PagedPrefillParams<typename Traits::Element> p) {
  extern __shared__ __align__(16) std::uint8_t prefill_shared[];
  wait_for_previous();
  let_next_start();
  const auto& plan = *static_cast<const PagedPrefillPlan*>(p.workspace);
  const auto at = static_cast<std::int32_t>(blockIdx.x);
  if (at >= plan.num_tiles) { return; }
  const PagedPrefillTile tile = plan.tiles()[at];
  attend_tile<Traits>(*reinterpret_cast<typename Traits::SharedStorage*>(prefill_shared), p, tile);
}

#endif

}  // namespace detail::prefill

#if defined(__CUDACC__)

/// Runs the plan in p.workspace. Asynchronous on `stream`; allocates nothing; safe inside graph capture.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_paged_prefill_mma(const PagedPrefillParams<typename Traits::Element>& p, cudaStream_t stream) {
  using T = typename Traits::Element;
  detail::prefill::check(p);
  NVL_EXPECTS(p.layout.head_dim == Traits::head_dim, "paged_prefill head_dim", p.layout.head_dim,
              "that of the traits (" + std::to_string(Traits::head_dim) + ")");
  if (p.num_tokens == 0 || p.num_seqs == 0) { return; }
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(detail::prefill::max_tiles(p))),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = sizeof(typename Traits::SharedStorage),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, detail::prefill::paged_prefill_mma_kernel<Traits>, p));
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
