#pragma once
/// Attention of a few new tokens per sequence over the sequence's whole paged K and V:
/// out[t, h] = sum_j softmax_j(scale q[t, h] . k[j]) v[j] over the tokens j that query t sees, itself the last.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Oracle: kernels/reference/attention.hpp
///
/// Once a step `launch_paged_decode_plan`, then `launch_paged_decode` for every layer with the same workspace. Layers whose
/// `window` differs need a plan and a workspace of their own. Both may be captured into a CUDA graph: only pointers and the
/// number of rows are fixed in it, lengths and tables are read on the device.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/paged_attention_decode_compute.cuh>
#include <nvl/kernels/paged_attention_decode_plain.cuh>
#include <nvl/kernels/paged_attention_decode_plan.cuh>
#include <nvl/kernels/paged_attention_decode_workspace.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// How the split-KV kernel is built.
template <int kColumnTiles = 1, int kWarps = 4, int kBlocksPerSm = paged_decode_blocks_per_sm, int kCopyWarps = 4>
struct PagedDecodeOptions {
  static constexpr int column_tiles = kColumnTiles;  // [8 columns] query tokens x heads of a group that share loads of K and V
  static constexpr int warps = kWarps;               // that compute
  static constexpr int blocks_per_sm = kBlocksPerSm;
  static constexpr int copy_warps = kCopyWarps;  // each for its share of those that compute
};

/// The fastest measured on an H200. Tiles of wide heads are larger, so that fewer fit; two column tiles need the registers of two
/// warps.
template <int kHeadDim, int kColumnTiles = 1>
using PagedDecodeDefaults = PagedDecodeOptions<kColumnTiles, (kHeadDim > 128 ? 2 : 4), paged_decode_blocks_per_sm,
                                               (kHeadDim > 128 || kColumnTiles > 1 ? 2 : 4)>;

/// Split-KV attention on tensor cores.
template <class T, int kHeadDim, class Options = PagedDecodeDefaults<kHeadDim>>
struct PagedDecodeTraits {
  using Element = T;
  static constexpr bool split_kv = true;
  static constexpr int head_dim = kHeadDim;
  static constexpr int column_tiles = Options::column_tiles;
  static constexpr int columns = column_tiles * 8;
  static constexpr int warps = Options::warps;
  static constexpr int copy_warps = Options::copy_warps;
  static constexpr int threads = (warps + copy_warps) * 32;
  static constexpr int blocks_per_sm = Options::blocks_per_sm;
  static constexpr int tile_bytes = detail::paged_decode::RowLayout<kHeadDim>::bytes(detail::paged_decode::tile_tokens);
  static constexpr int stage_bytes = 2 * tile_bytes;
  static constexpr int q_bytes = detail::paged_decode::RowLayout<kHeadDim>::bytes(columns);
  static constexpr int max_depth = 8;
  static constexpr int max_stages = warps * max_depth;
  static constexpr bool q_in_registers = kHeadDim / 8 * column_tiles <= 32;  // [registers] that its fragments take
  static constexpr int partial_floats = detail::paged_decode::partial_floats(columns, kHeadDim);

  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, fp16>,
                "nvl: PagedDecodeTraits are for bf16 and fp16; PagedDecodePlainTraits take every type");
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= 256,
                "nvl: PagedDecodeTraits need a head_dim that is a multiple of 16, at most 256");
  static_assert(warps % copy_warps == 0, "nvl: PagedDecodeTraits need the same number of computing warps for each copying warp");
  static_assert(column_tiles == 1 || column_tiles == 2, "nvl: PagedDecodeTraits take 1 or 2 column tiles");
};

/// Attention on CUDA cores: every element type, every head_dim up to 256. Simple, not fast.
template <class T>
struct PagedDecodePlainTraits {
  using Element = T;
  static constexpr bool split_kv = false;
};

/// S sequences, T rows of tokens. The plan reads fields marked (plan), a layer's kernel those marked (layer), both the rest.
template <class T>
struct PagedDecodeParams {
  T* out = nullptr;               // (layer) [T, num_q_heads, head_dim], device, contiguous
  const T* q = nullptr;           // (layer) [T, num_q_heads, head_dim] at the head of rows of `q_row_stride`, 16-byte aligned
  std::int64_t q_row_stride = 0;  // (layer) [elements] from token to token
  const T* kv = nullptr;          // (layer) one layer of KvLayout, device; holds the new tokens already
  KvLayout layout;                // block_size: a power of two, at least 16
  const BlockId* block_tables = nullptr;        // (layer) [S, *block_stride], device
  const std::int32_t* block_stride = nullptr;   // [1], device: blocks from row to row of the tables
  const std::int32_t* seq_lens = nullptr;       // [S], device: tokens that the last query of a sequence sees; 0: no sequence
  const std::int32_t* cu_query_lens = nullptr;  // [S + 1], device: first row of a sequence in q and out
  std::int32_t num_seqs = 0;                    // S, with padding; nothing is written for rows of sequences that are skipped
  std::int32_t num_q_heads = 0;
  std::int32_t max_query_len = 1;  // sequences with more queries are skipped: they are the prefill kernel's
  std::int32_t window = 0;         // [tokens] visible to a query, itself included; 0: all
  float scale = 1.0f;              // (layer)
  float softcap = 0.0f;            // (layer) scores become softcap * tanh(score / softcap); 0: they do not
  std::int32_t split_tokens = 0;   // multiple of 16: sequences are cut there and nowhere else; 0: wherever it balances
  std::int32_t max_seqs = 0;       // the largest num_seqs that the workspace is for
  std::int64_t max_kv_tokens = 0;  // with split_tokens: the largest sum of seq_lens whose sequences are all cut
  void* workspace = nullptr;       // device, paged_decode_workspace_bytes, 256-byte aligned; zeroed once by the caller
  PagedDecodeTuning tuning{};      // (plan)
  std::int32_t max_depth = 8;      // (layer) [tiles] in flight of each warp, if shared memory allows
  bool overlap_previous = true;    // launched as programmatic dependent
  /// (layer) The plan, the tables and the K and V of tokens before this step are complete before the previous kernel of the
  /// stream can begin: a kernel launched without overlap comes after the plan and before that one. They are then read before
  /// the previous kernel has ended.
  bool history_is_complete = false;
};

namespace detail::paged_decode {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

template <class T>
std::int32_t group_size(const PagedDecodeParams<T>& p) {
  return p.num_q_heads / p.layout.num_kv_heads;
}

/// Places the arrays of the workspace at `base`; returns its size.
template <class Traits>
std::size_t place_workspace(const PagedDecodeParams<typename Traits::Element>& p, std::byte* base, Workspace& ws) {
  return place_workspace({.num_sms = device_attribute(cudaDevAttrMultiProcessorCount),
                          .blocks_per_sm = Traits::blocks_per_sm,
                          .num_kv_heads = p.layout.num_kv_heads,
                          .group_size = group_size(p),
                          .head_dim = Traits::head_dim,
                          .columns = Traits::columns,
                          .max_query_len = p.max_query_len,
                          .split_tokens = p.split_tokens,
                          .max_seqs = p.max_seqs,
                          .max_kv_tokens = p.max_kv_tokens},
                         base, ws);
}

template <class T>
Batch batch_of(const PagedDecodeParams<T>& p, int columns) {
  return {.seq_lens = p.seq_lens,
          .cu_query_lens = p.cu_query_lens,
          .block_stride = p.block_stride,
          .block_tables = p.block_tables,
          .num_seqs = p.num_seqs,
          .num_kv_heads = p.layout.num_kv_heads,
          .group_size = group_size(p),
          .group = Divisor(group_size(p)),
          .columns = columns,
          .max_query_len = p.max_query_len,
          .window = p.window,
          .block_size_log2 = std::countr_zero(static_cast<unsigned>(p.layout.block_size))};
}

/// The rules for shapes.
template <class Traits>
void check(const PagedDecodeParams<typename Traits::Element>& p) {
  NVL_EXPECTS(p.layout.num_kv_heads > 0, "paged_decode num_kv_heads", p.layout.num_kv_heads, "positive");
  NVL_EXPECTS(p.num_q_heads > 0 && p.num_q_heads % p.layout.num_kv_heads == 0, "paged_decode num_q_heads", p.num_q_heads,
              "a positive multiple of num_kv_heads (" + std::to_string(p.layout.num_kv_heads) + ")");
  NVL_EXPECTS(p.layout.block_size >= tile_tokens && std::has_single_bit(static_cast<unsigned>(p.layout.block_size)),
              "paged_decode block_size", p.layout.block_size, "a power of two, at least 16");
  NVL_EXPECTS(p.max_query_len > 0, "paged_decode max_query_len", p.max_query_len, "positive");
  NVL_EXPECTS(p.window >= 0, "paged_decode window", p.window, "0 or a number of tokens");
  NVL_EXPECTS(p.num_seqs >= 0, "paged_decode num_seqs", p.num_seqs, "0 or more");
  if constexpr (Traits::split_kv) {
    NVL_EXPECTS(p.layout.head_dim == Traits::head_dim, "paged_decode head_dim", p.layout.head_dim,
                "that of its traits (" + std::to_string(Traits::head_dim) + ")");
    NVL_EXPECTS(p.num_seqs <= p.max_seqs, "paged_decode num_seqs", p.num_seqs,
                "at most max_seqs (" + std::to_string(p.max_seqs) + ")");
    NVL_EXPECTS(p.split_tokens >= 0 && p.split_tokens % tile_tokens == 0, "paged_decode split_tokens", p.split_tokens,
                "a multiple of 16");
  } else {
    NVL_EXPECTS(p.layout.head_dim > 0 && p.layout.head_dim <= plain_max_head_dim, "paged_decode head_dim", p.layout.head_dim,
                "from 1 to 256");
  }
}

}  // namespace detail::paged_decode

/// [bytes] of the workspace. Depends on the shapes in `p` and on the current device, not on pointers or `num_seqs`.
template <class Traits>
std::size_t paged_decode_workspace_bytes(const PagedDecodeParams<typename Traits::Element>& p) {
  detail::paged_decode::check<Traits>(p);
  if constexpr (Traits::split_kv) {
    detail::paged_decode::Workspace ws;
    return detail::paged_decode::place_workspace<Traits>(p, nullptr, ws);
  } else {
    return 0;
  }
}

#if defined(__CUDACC__)

/// Cuts the work of a step over thread blocks. Asynchronous on `stream`; allocates nothing; may be captured into a graph.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_paged_decode_plan(const PagedDecodeParams<typename Traits::Element>& p, cudaStream_t stream) {
  namespace impl = detail::paged_decode;
  impl::check<Traits>(p);
  if (p.num_seqs == 0) { return; }
  if constexpr (Traits::split_kv) {
    NVL_EXPECTS(p.tuning.unit_cost >= 0 && p.tuning.min_piece >= 0, "paged_decode tuning", p.tuning.unit_cost, "not negative");
    impl::Workspace ws;
    impl::place_workspace<Traits>(p, static_cast<std::byte*>(p.workspace), ws);
    const detail::LaunchConfig config{
        .grid = dim3(1), .block = dim3(impl::plan_threads), .stream = stream, .overlap_previous = p.overlap_previous};
    NVL_CUDA_CHECK(detail::launch(config, impl::paged_decode_plan_kernel<impl::plan_threads>, impl::batch_of(p, Traits::columns),
                                  ws, p.tuning));
  }
}

/// Attention of one layer, after the plan of the step. Asynchronous on `stream`; allocates nothing; may be captured into a graph.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class Traits>
void launch_paged_decode(const PagedDecodeParams<typename Traits::Element>& p, cudaStream_t stream) {
  namespace impl = detail::paged_decode;
  using T = typename Traits::Element;
  impl::check<Traits>(p);
  if (p.num_seqs == 0) { return; }
  impl::KernelArgs<T> args{.out = p.out,
                           .q = p.q,
                           .kv = p.kv,
                           .q_row_stride = p.q_row_stride,
                           .block_elements = p.layout.block_elements(),
                           .k_to_v = p.layout.v_offset(0, 0, 0),
                           .batch = {},
                           .workspace = {},
                           .depth = 0,
                           .depth_divisor = {},
                           .scale_log2 = p.scale * 1.4426950408889634f,
                           .softcap_log2 = p.softcap * 1.4426950408889634f,
                           .history_is_complete = p.history_is_complete};
  detail::LaunchConfig config{.stream = stream, .overlap_previous = p.overlap_previous};
  if constexpr (Traits::split_kv) {
    NVL_EXPECTS(p.q_row_stride % 8 == 0, "paged_decode q_row_stride", p.q_row_stride, "a multiple of 16 bytes");
    args.batch = impl::batch_of(p, Traits::columns);
    impl::place_workspace<Traits>(p, static_cast<std::byte*>(p.workspace), args.workspace);
    constexpr int fixed = static_cast<int>(sizeof(impl::SharedStorage<Traits>));
    constexpr int per_depth = Traits::warps * Traits::stage_bytes;
    const int whole = impl::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    // 1 KiB of each thread block is the driver's. Thread blocks never wait for each other, so where a share is too small they
    // may take turns.
    const int share = impl::device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / Traits::blocks_per_sm - 1024;
    const int per_block = share >= fixed + per_depth ? std::min(share, whole) : whole;
    const int fits = (per_block - fixed) / per_depth;
    NVL_EXPECTS(fits > 0, "paged_decode shared memory of the device", per_block, "enough for a tile of each warp");
    args.depth = std::min({fits, p.max_depth, Traits::max_depth});
    args.depth_divisor = impl::Divisor(args.depth);
    config.grid = dim3(static_cast<unsigned>(args.workspace.num_blocks));
    config.block = dim3(Traits::threads);
    config.shared_bytes =
        static_cast<std::size_t>(fixed) + static_cast<std::size_t>(args.depth) * Traits::warps * Traits::stage_bytes;
    NVL_CUDA_CHECK(detail::launch(config, impl::paged_decode_kernel<Traits>, args));
  } else {
    args.batch = impl::batch_of(p, 1);
    config.grid =
        dim3(static_cast<unsigned>(p.num_seqs), static_cast<unsigned>(p.num_q_heads), static_cast<unsigned>(p.max_query_len));
    config.block = dim3(impl::plain_warps * 32);
    NVL_CUDA_CHECK(
        detail::launch(config, impl::paged_decode_plain_kernel<T>, args, static_cast<int>(p.layout.head_dim), args.softcap_log2));
  }
}

#endif

/// Calls `f.template operator()<Traits>()` with the traits for these shapes: split-KV for bf16 and fp16 at head_dim 64, 80, 96,
/// 128 and 256, plain for everything else. `kHeadDim` other than 0 is the only one that is compiled.
template <class T, int kHeadDim = 0, class F>
decltype(auto) with_paged_decode_traits(const PagedDecodeParams<T>& p, F&& f) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, fp16>) {
    const bool wide = paged_decode_column_tiles(detail::paged_decode::group_size(p), p.max_query_len) > 1;
    const auto with = [&]<int kDim>(std::integral_constant<int, kDim>) {
      return wide ? f.template operator()<PagedDecodeTraits<T, kDim, PagedDecodeDefaults<kDim, 2>>>()
                  : f.template operator()<PagedDecodeTraits<T, kDim, PagedDecodeDefaults<kDim, 1>>>();
    };
    if constexpr (kHeadDim == 0) {
      switch (p.layout.head_dim) {
        case 64: return with(std::integral_constant<int, 64>{});
        case 80: return with(std::integral_constant<int, 80>{});
        case 96: return with(std::integral_constant<int, 96>{});
        case 128: return with(std::integral_constant<int, 128>{});
        case 256: return with(std::integral_constant<int, 256>{});
        default: break;
      }
    } else if constexpr (paged_decode_splits_kv<T>(kHeadDim)) {
      return with(std::integral_constant<int, kHeadDim>{});
    }
  }
  return f.template operator()<PagedDecodePlainTraits<T>>();
}

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
