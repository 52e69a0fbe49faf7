#pragma once
/// Linear layer for few tokens: out[t, o] = sum_i x[t, i] w[o, i] + bias[o], bound by reading the weights once.
/// Oracle: kernels/reference/linear.hpp
///
/// Each warp streams its own part of K of the block's weight rows through a ring of shared memory that no other warp touches:
/// a lane copies 16 bytes asynchronously and later reads back exactly these, so the loop over K has no barrier. The ring is
/// filled before the wait for the previous kernel, as weights do not depend on it: of a small layer all weights are on chip by
/// the time its activations exist.
///
/// A lane's 16 bytes are 8 consecutive k of one row. The matrix instruction wants pairs of k that lie 8 apart; as a sum over k
/// may take them in any order, both operands use the order in which the bytes lie and nothing is shuffled.
///
/// Order of the sum over k: warp u takes elements [64 (u + warps i), 64 (u + warps i) + 64) for i = 0, 1, ...; the warps' sums
/// are added in order of u. It depends on K and the rows of a tile, which follow from the shape of the weight and the device,
/// not from the number of tokens: a token's result is the same whatever the other tokens are.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/gemm_instructions.cuh>
#include <nvl/kernels/detail/gemm_launch.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/reduce.cuh>
#include <nvl/kernels/detail/shared_barrier.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/detail/warp_mma.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// \tparam T bf16 or fp16, of weights and activations; sums are float
/// \tparam Out T or float
/// \tparam kRows weight rows of a tile, \tparam kTokens tokens of a tile, both multiples of 8
/// \tparam kStages depth of a warp's ring, in steps of 64 elements of K
template <class T, class Out, int kRows, int kTokens, int kStages>
struct GemvTraits {
  using Element = T;
  using Output = Out;
  static constexpr int rows = kRows;
  static constexpr int tokens = kTokens;
  static constexpr int stages = kStages;
  static constexpr int warps = 8;
  static constexpr int threads = 32 * warps;
  static constexpr int step_k = 64;           // [elements of K] a warp takes at a time: 128 bytes of each row
  static constexpr int row_tiles = rows / 8;  // of the matrix instruction
  static constexpr int token_groups = tokens / 8;
  static constexpr int token_tiles = (token_groups + 1) / 2;
  static constexpr int chains = rows <= 16 ? 2 : 1;  // sums of the halves of a step apart, so that their latencies overlap
  static constexpr int sum_stride = rows % 16 == 8 ? rows : rows + 8;  // [floats] 8 modulo 16: no bank conflicts
  static_assert(sizeof(T) == 2, "nvl: GemvTraits takes bf16 or fp16; launch_gemv has a kernel for float");
  static_assert(kRows % 8 == 0 && kRows > 0 && kTokens % 8 == 0 && kTokens > 0, "nvl: GemvTraits needs tiles of whole 8s");
  static_assert(kStages >= 2, "nvl: GemvTraits needs two stages to overlap copies and products");
};

/// All pointers are device memory that the caller owns.
template <class T, class Out = T>
struct GemvParams {
  Out* out = nullptr;            // [num_rows, out_features]
  const T* x = nullptr;          // [num_rows, in_features], 16-byte aligned
  const T* w = nullptr;          // [out_features, in_features], 16-byte aligned
  const Out* bias = nullptr;     // [out_features]; may be null
  int num_rows = 0;              // tokens; 0 is legal: nothing is launched
  int out_features = 0;          // N
  int in_features = 0;           // K
  bool overlap_previous = true;  // start while the previous kernel of the stream ends
};

namespace detail::gemm {

/// How a GEMV's dynamic shared memory is divided: a ring a warp, and the warps' sums. Where a block has one tile, the sums take
/// the place of the rings.
template <class Traits>
struct GemvLayout {
  int x_lanes;      // lanes whose 16 bytes of x are stored: all, or those of the tokens there are
  int stage_bytes;  // of one warp
  int stages;       // no more than a warp has steps
  int sum_tokens;
  bool sums_in_ring;
  int sums_at, bytes;

  NVL_HOST_DEVICE constexpr GemvLayout(int num_rows, int in_features, int tiles_per_block) {
    const int steps = ceil_div(ceil_div(in_features, Traits::step_k), Traits::warps) * tiles_per_block;
    stages = steps < Traits::stages ? steps : Traits::stages;
    sum_tokens = num_rows < Traits::tokens ? num_rows : Traits::tokens;
    x_lanes = Traits::token_groups == 1 ? 4 * sum_tokens : 32;
    stage_bytes = 128 * Traits::rows + Traits::token_groups * x_lanes * 32;
    sums_in_ring = tiles_per_block == 1;
    const int ring = Traits::warps * stages * stage_bytes, sums = Traits::warps * sum_tokens * Traits::sum_stride * 4;
    sums_at = sums_in_ring ? 0 : ring;
    bytes = sums_in_ring ? (ring > sums ? ring : sums) : ring + sums;
  }
};

#if defined(__CUDACC__)

/// One lane's view of a warp's ring. A stage holds 64 elements of K: two halves of 32, of which the lane has 8 of row (or token)
/// lane / 4 of each group of 8.
template <class Traits>
class GemvRing {
  using T = typename Traits::Element;
  using Layout = GemvLayout<Traits>;

 public:
  __device__ GemvRing(const GemvParams<T, typename Traits::Output>& p, const Layout& layout, std::uint32_t ring, int first_token)
      : p_(p),
        layout_(layout),
        ring_(ring),
        lane_(static_cast<int>(threadIdx.x) % 32),
        tokens_left_(p.num_rows - first_token - lane_ / 4),
        w_(p.w + static_cast<std::int64_t>(lane_ / 4) * p.in_features + lane_ % 4 * 8),
        x_(p.x + static_cast<std::int64_t>(first_token + lane_ / 4) * p.in_features + lane_ % 4 * 8) {}

  /// Rows past the end are left as they are: they reach only outputs that nobody stores. Elements past K become zeros.
  __device__ void copy_weights(int stage, int tile, int step) const {
    const int row = tile * Traits::rows + lane_ / 4, k = step * Traits::step_k + lane_ % 4 * 8;
    const T* from = w_ + static_cast<std::int64_t>(tile * Traits::rows) * p_.in_features + step * Traits::step_k;
    const std::uint32_t to = address(stage) + static_cast<std::uint32_t>(lane_) * 16;
#pragma unroll
    for (int j = 0; j < Traits::row_tiles; ++j) {
      if (row + j * 8 < p_.out_features) {
        copy_or_clear(to + j * 1024, 512, from + static_cast<std::int64_t>(j) * 8 * p_.in_features, k);
      }
    }
  }

  /// The same for tokens.
  __device__ void copy_tokens(int stage, int step) const {
    const int k = step * Traits::step_k + lane_ % 4 * 8;
    const T* from = x_ + step * Traits::step_k;
#pragma unroll
    for (int g = 0; g < Traits::token_groups; ++g) {
      if (g * 8 < tokens_left_) {
        copy_or_clear(x_address(stage, g, 0), static_cast<std::uint32_t>(layout_.x_lanes) * 16,
                      from + static_cast<std::int64_t>(g) * 8 * p_.in_features, k);
      }
    }
  }

  /// sums += the products of a stage; lanes hold them as mma.m16n8k16 does: tokens down, weight rows across.
  __device__ void multiply(int stage, float (&sums)[Traits::chains][Traits::token_tiles][Traits::row_tiles][4]) const {
    const std::uint32_t weights = address(stage) + static_cast<std::uint32_t>(lane_) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 x[2 * Traits::token_tiles];
#pragma unroll
      for (int g = 0; g < 2 * Traits::token_tiles; ++g) {
        x[g] = make_uint4(0, 0, 0, 0);  // tokens that do not exist
        if (g < Traits::token_groups && g * 8 < tokens_left_) { x[g] = load_shared16(x_address(stage, g, half)); }
      }
#pragma unroll
      for (int j = 0; j < Traits::row_tiles; ++j) {
        const uint4 w = load_shared16(weights + (j * 2 + half) * 512);
#pragma unroll
        for (int t = 0; t < Traits::token_tiles; ++t) {
          float(&sum)[4] = sums[half % Traits::chains][t][j];
          const uint4 &low = x[2 * t], &high = x[2 * t + 1];
          multiply_add<T>(sum, {low.x, high.x, low.y, high.y}, w.x, w.y);
          multiply_add<T>(sum, {low.z, high.z, low.w, high.w}, w.z, w.w);
        }
      }
    }
  }

 private:
  /// Both halves of a step: 8 elements at `from`, 8 that lie 32 further on.
  __device__ void copy_or_clear(std::uint32_t to, std::uint32_t half_bytes, const T* from, int k) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (k + half * 32 < p_.in_features) {
        copy16_async(to + half * half_bytes, from + half * 32);
      } else {
        store_zeros16(to + half * half_bytes);
      }
    }
  }
  __device__ std::uint32_t address(int stage) const { return ring_ + static_cast<std::uint32_t>(stage * layout_.stage_bytes); }
  __device__ std::uint32_t x_address(int stage, int group, int half) const {
    return address(stage) + static_cast<std::uint32_t>(128 * Traits::rows + ((group * 2 + half) * layout_.x_lanes + lane_) * 16);
  }

  const GemvParams<T, typename Traits::Output>& p_;
  const Layout& layout_;
  std::uint32_t ring_;
  int lane_;
  int tokens_left_;  // of the lane's token and those after it
  const T *w_, *x_;  // the lane's first 8 elements of its row of the first tile, and of its token
};

/// Adds the warps' sums in order, adds the bias and stores a tile. Called by all threads after a barrier.
template <class Traits>
__device__ void store_gemv_tile(const GemvParams<typename Traits::Element, typename Traits::Output>& p, const float* sums,
                                int sum_tokens, int first_token, int tile) {
  const int num_tokens = min(Traits::tokens, p.num_rows - first_token);
  for (int i = static_cast<int>(threadIdx.x); i < num_tokens * Traits::rows; i += Traits::threads) {
    const int token = i / Traits::rows, row = i % Traits::rows, o = tile * Traits::rows + row;
    if (o >= p.out_features) { continue; }
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Traits::warps; ++warp) { sum += sums[(warp * sum_tokens + token) * Traits::sum_stride + row]; }
    if (p.bias != nullptr) { sum += to_float(p.bias[o]); }
    p.out[static_cast<std::int64_t>(first_token + token) * p.out_features + o] = from_float<typename Traits::Output>(sum);
  }
}

#endif

}  // namespace detail::gemm

#if defined(__CUDACC__)

/// Grid: x blocks share the row tiles, y is the tile of tokens.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads, Traits::tokens <= 16 ? 2 : 1)
    gemv_kernel(const __grid_constant__ GemvParams<typename Traits::Element, typename Traits::Output> p) {
  namespace gemm = detail::gemm;
  extern __shared__ __align__(16) unsigned char gemv_shared[];
  const int tiles = gemm::ceil_div(p.out_features, Traits::rows), steps = gemm::ceil_div(p.in_features, Traits::step_k);
  const int first_token = static_cast<int>(blockIdx.y) * Traits::tokens;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = static_cast<int>(gridDim.x);
  const gemm::GemvLayout<Traits> layout(p.num_rows, p.in_features, gemm::ceil_div(tiles, blocks));
  auto* const sums = reinterpret_cast<float*>(gemv_shared + layout.sums_at);
  const gemm::GemvRing<Traits> ring(
      p, layout, detail::shared_address(gemv_shared) + static_cast<std::uint32_t>(warp * layout.stages * layout.stage_bytes),
      first_token);
  detail::let_next_start();

  // The copies run ahead of the products by layout.stages steps, across tiles. Every iteration closes one group, so that the
  // oldest group is always the stage that comes next.
  int copy_tile = static_cast<int>(blockIdx.x), copy_step = warp;
  if (copy_step >= steps) { copy_tile = tiles; }
  const auto advance = [&] {
    copy_step += Traits::warps;
    if (copy_step >= steps) { copy_step = warp, copy_tile += blocks; }
  };
#pragma unroll 1  // unrolled, the kernel is longer and not faster
  for (int stage = 0; stage < Traits::stages; ++stage) {
    if (stage < layout.stages && copy_tile < tiles) { ring.copy_weights(stage, copy_tile, copy_step), advance(); }
    gemm::commit_copies();
  }
  detail::wait_for_previous();
  int x_tile = static_cast<int>(blockIdx.x), x_step = warp;
  if (x_step >= steps) { x_tile = tiles; }
#pragma unroll 1
  for (int stage = 0; stage < Traits::stages; ++stage) {
    if (stage < layout.stages && x_tile < tiles) {
      ring.copy_tokens(stage, x_step);
      x_step += Traits::warps;
      if (x_step >= steps) { x_step = warp, x_tile += blocks; }
    }
    gemm::commit_copies();
  }

  int stage = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += blocks) {
    float tile_sums[Traits::chains][Traits::token_tiles][Traits::row_tiles][4] = {};
    for (int step = warp; step < steps; step += Traits::warps) {
      gemm::wait_copies<Traits::stages - 1>();
      ring.multiply(stage, tile_sums);
      if (copy_tile < tiles) {
        ring.copy_weights(stage, copy_tile, copy_step);
        ring.copy_tokens(stage, copy_step);
        advance();
      }
      gemm::commit_copies();
      stage = stage + 1 == layout.stages ? 0 : stage + 1;
    }
    if (layout.sums_in_ring) { __syncthreads(); }
    float* const mine = sums + warp * layout.sum_tokens * Traits::sum_stride + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < 2 * Traits::token_tiles; ++t) {
      const int token = t * 8 + lane / 4;
      if (token >= layout.sum_tokens) { break; }
#pragma unroll
      for (int j = 0; j < Traits::row_tiles; ++j) {
        float2 sum = make_float2(tile_sums[0][t / 2][j][t % 2 * 2], tile_sums[0][t / 2][j][t % 2 * 2 + 1]);
#pragma unroll
        for (int chain = 1; chain < Traits::chains; ++chain) {
          sum.x += tile_sums[chain][t / 2][j][t % 2 * 2];
          sum.y += tile_sums[chain][t / 2][j][t % 2 * 2 + 1];
        }
        *reinterpret_cast<float2*>(mine + token * Traits::sum_stride + j * 8) = sum;
      }
    }
    __syncthreads();
    gemm::store_gemv_tile<Traits>(p, sums, layout.sum_tokens, first_token, tile);
    if (tile + blocks < tiles) { __syncthreads(); }
  }
}

/// Any element type and any K: a warp per weight row, four tokens at a time. For float weights and for K that is no multiple of
/// 8; not for speed.
template <class T, class Out>
NVL_KERNEL void __launch_bounds__(256) plain_linear_kernel(const __grid_constant__ GemvParams<T, Out> p) {
  constexpr int tokens = 4;
  detail::wait_for_previous();
  detail::let_next_start();
  const int row = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32), lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= p.out_features) { return; }
  const T* const w = p.w + static_cast<std::int64_t>(row) * p.in_features;
  for (int first = static_cast<int>(blockIdx.y) * tokens; first < p.num_rows; first += static_cast<int>(gridDim.y) * tokens) {
    const int num_tokens = min(tokens, p.num_rows - first);
    const T* const x = p.x + static_cast<std::int64_t>(first) * p.in_features;
    float sums[tokens] = {};
    for (int k = lane; k < p.in_features; k += 32) {
      const float weight = detail::to_float(w[k]);
#pragma unroll
      for (int t = 0; t < tokens; ++t) {
        if (t < num_tokens) {
          sums[t] = fmaf(weight, detail::to_float(x[static_cast<std::int64_t>(t) * p.in_features + k]), sums[t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < tokens; ++t) {
      const float sum = detail::warp_sum(sums[t]);
      if (lane == 0 && t < num_tokens) {
        p.out[static_cast<std::int64_t>(first + t) * p.out_features + row] =
            detail::from_float<Out>(sum + (p.bias != nullptr ? detail::to_float(p.bias[row]) : 0.0f));
      }
    }
  }
}

/// Any shape and element type. Asynchronous on `stream`.
/// \throws InvalidArgument, CudaError
template <class T, class Out>
void launch_plain_linear(const GemvParams<T, Out>& p, cudaStream_t stream) {
  detail::gemm::check_linear("linear", p);
  if (p.num_rows == 0) { return; }
  const auto blocks_x = static_cast<unsigned>(detail::gemm::ceil_div(p.out_features, 8));
  const auto blocks_y = static_cast<unsigned>(std::min(detail::gemm::ceil_div(p.num_rows, 4), 65535));
  const detail::LaunchConfig config{
      .grid = dim3(blocks_x, blocks_y), .block = dim3(256), .stream = stream, .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, plain_linear_kernel<T, Out>, p));
}

/// With the configuration given; any number of tokens. Asynchronous on `stream`; allocates nothing; may be captured.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused
template <class Traits>
void launch_gemv_with(const GemvParams<typename Traits::Element, typename Traits::Output>& p, cudaStream_t stream,
                      int blocks_per_multiprocessor = 1) {
  namespace gemm = detail::gemm;
  gemm::check_linear("gemv", p);
  NVL_EXPECTS(p.in_features % 8 == 0, "gemv in_features", p.in_features, "a multiple of 8 (16-byte copies)");
  NVL_EXPECTS(gemm::is_aligned16(p.x) && gemm::is_aligned16(p.w), "gemv x and w", reinterpret_cast<std::uintptr_t>(p.w),
              "16-byte aligned");
  if (p.num_rows == 0) { return; }
  const int tiles = gemm::ceil_div(p.out_features, Traits::rows), token_tiles = gemm::ceil_div(p.num_rows, Traits::tokens);
  NVL_EXPECTS(token_tiles <= 65535, "gemv num_rows", p.num_rows, "at most 65535 tiles of tokens");
  const int blocks = std::min(tiles, gemm::num_multiprocessors() * blocks_per_multiprocessor);
  const gemm::GemvLayout<Traits> layout(p.num_rows, p.in_features, gemm::ceil_div(tiles, blocks));
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(token_tiles)),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = static_cast<std::size_t>(layout.bytes),
                                    .stream = stream,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, gemv_kernel<Traits>, p));
}

namespace detail::gemm {

/// Weight rows of a tile: the size that leaves the busiest multiprocessor the fewest rows, the largest of those.
constexpr int gemv_tile_rows(int out_features, int num_multiprocessors) {
  int best = 8, best_load = 0;
  for (const int rows : {8, 16, 32, 48}) {
    const int load = ceil_div(ceil_div(out_features, rows), num_multiprocessors) * rows;
    if (best_load == 0 || load <= best_load) { best = rows, best_load = load; }
  }
  return best;
}

/// Depth of a warp's ring: what leaves room for a block of the next kernel beside this one, so that its weights can arrive
/// while this one ends.
constexpr int gemv_stages(int rows, int tokens) { return std::clamp(120 * 1024 / (8 * 128 * (rows + tokens)), 2, 6); }

template <class T, class Out, int kTokens>
void launch_gemv_tokens(const GemvParams<T, Out>& p, cudaStream_t stream) {
  const auto with_rows = [&]<int kRows>(std::integral_constant<int, kRows>) {
    launch_gemv_with<GemvTraits<T, Out, kRows, kTokens, gemv_stages(kRows, kTokens)>>(p, stream);
  };
  switch (gemv_tile_rows(p.out_features, num_multiprocessors())) {
    case 8: return with_rows(std::integral_constant<int, 8>{});
    case 16: return with_rows(std::integral_constant<int, 16>{});
    case 32: return with_rows(std::integral_constant<int, 32>{});
    default: return with_rows(std::integral_constant<int, 48>{});
  }
}

}  // namespace detail::gemm

/// Chooses the configuration by shape and device. Any number of tokens is right; meant for at most 32.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused
template <class T, class Out>
void launch_gemv(const GemvParams<T, Out>& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (p.in_features % 8 == 0) {
      if (p.num_rows <= 8) { return detail::gemm::launch_gemv_tokens<T, Out, 8>(p, stream); }
      if (p.num_rows <= 16) { return detail::gemm::launch_gemv_tokens<T, Out, 16>(p, stream); }
      return detail::gemm::launch_gemv_tokens<T, Out, 32>(p, stream);
    }
  }
  launch_plain_linear(p, stream);
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
