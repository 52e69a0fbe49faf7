#pragma once
/// Linear layer for up to a few hundred tokens on sm_90: out[t, o] = sum_i x[t, i] w[o, i] + bias[o].
/// Oracle: kernels/reference/linear.hpp
///
/// Operands are swapped: weight rows lie along the 64 rows of wgmma, tokens along its columns (16 to 256), so that few tokens
/// waste little of the matrix unit. One warp has the copy engine fill a ring of stages (64 elements of K of the block's weight
/// rows and of the tokens); the other warps, four to 64 weight rows, multiply. The ring's weights are asked for before the wait
/// for the previous kernel, its tokens after.
///
/// A layer of a small model has fewer tiles than the GPU has multiprocessors, so K is split over the blocks of a cluster, whose
/// partial sums meet in shared memory: no workspace, no atomics, and an order that is fixed.
///
/// Order of the sum over k: split s of S takes the 64-element steps [steps s / S, steps (s + 1) / S) in order; the S partial
/// sums are added in order of s. It depends on K and S alone: a token's result is the same for every number of tokens and every
/// SkinnyGemmTraits of the same S.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/gemm_hopper.cuh>
#include <nvl/kernels/detail/gemm_instructions.cuh>
#include <nvl/kernels/detail/gemm_launch.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/gemv.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// How a product is cut into blocks.
struct SkinnyGemmTile {
  int rows = 64;    // weight rows of a block's tile: 64, 128, 192 or 256
  int tokens = 64;  // tokens of a block's tile: 16, 32, 64, 80, 96, 112 or 128, or twice 80 to 128
  int stages = 6;   // depth of the ring, in steps of 64 elements of K
  int splits = 1;   // blocks of a cluster among which K is divided
};

/// \tparam T bf16 or fp16, of weights and activations; sums are float
/// \tparam Out T or float
template <class T, class Out, SkinnyGemmTile kTile>
struct SkinnyGemmTraits {
  using Element = T;
  using Output = Out;
  static constexpr int rows = kTile.rows;
  static constexpr int tokens = kTile.tokens;
  static constexpr int stages = kTile.stages;
  static constexpr int splits = kTile.splits;
  static constexpr int step_k = detail::gemm::box_k;
  static constexpr int warps = rows / 16;  // that multiply
  static constexpr int multiplying_threads = 32 * warps;
  static constexpr int threads = multiplying_threads + 32;
  static constexpr int storing_threads = splits == 1 ? multiplying_threads : threads;
  static constexpr int products = tokens > 128 ? 2 : 1;  // wgmma instructions side by side
  static constexpr int columns = tokens / products;      // of one of them
  static constexpr int sum_stride = rows + 4;            // [floats] twice this is 8 modulo 32: no bank conflicts

  /// In dynamic shared memory. The sums take the place of the ring once the ring is empty.
  struct alignas(1024) SharedStorage {
    struct Ring {
      alignas(1024) T w[stages][rows * step_k];
      alignas(1024) T x[stages][tokens * step_k];
    };
    union {
      Ring ring;
      float sums[tokens * sum_stride];
    };
    alignas(8) std::uint64_t full[stages], empty[stages];
  };

  static_assert(sizeof(T) == 2, "nvl: SkinnyGemmTraits takes bf16 or fp16");
  static_assert(rows % 64 == 0 && rows >= 64 && rows <= 256, "nvl: SkinnyGemmTile needs rows in 64s");
  static_assert(tokens % 16 == 0 && tokens >= 16 && tokens <= 256, "nvl: SkinnyGemmTile needs tokens in 16s up to 256");
  static_assert(splits == 1 || splits == 2 || splits == 4 || splits == 8, "nvl: a cluster has 1, 2, 4 or 8 blocks");
  static_assert(sizeof(SharedStorage) <= 227 * 1024, "nvl: SkinnyGemmTile needs more shared memory than a block has");
};

/// All pointers are device memory that the caller owns.
template <class T, class Out = T>
using SkinnyGemmParams = GemvParams<T, Out>;

namespace detail::gemm {

/// What the kernel gets: the parameters, and the operands as the copy engine sees them.
template <class T, class Out>
struct SkinnyGemmArgs {
  CUtensorMap w, x;
  SkinnyGemmParams<T, Out> p;
  int tile_tokens;  // what there are of a tile's tokens: boxes that reach past the matrix are slow
};

#if defined(__CUDACC__)

/// What one block does.
template <class Traits>
struct BlockPlace {
  int split, first_row, first_token, first_step, num_steps;

  template <class Out>
  __device__ explicit BlockPlace(const SkinnyGemmArgs<typename Traits::Element, Out>& args) {
    split = static_cast<int>(blockIdx.x) % Traits::splits;
    first_row = static_cast<int>(blockIdx.x) / Traits::splits * Traits::rows;
    first_token = min(static_cast<int>(blockIdx.y) * args.tile_tokens, args.p.num_rows - args.tile_tokens);
    const int steps = ceil_div(args.p.in_features, box_k);
    first_step = steps * split / Traits::splits;
    num_steps = steps * (split + 1) / Traits::splits - first_step;
  }
};

/// A stage of the ring, and the parity of the phase of its barriers.
template <class Traits>
struct RingPosition {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == Traits::stages) { stage = 0, parity ^= 1; }
  }
  __device__ int previous_stage() const { return stage == 0 ? Traits::stages - 1 : stage - 1; }
};

/// One thread: asks for every stage, weights of the first stages before the previous kernel has ended.
template <class Traits>
__device__ void fill_ring(const SkinnyGemmArgs<typename Traits::Element, typename Traits::Output>& args,
                          typename Traits::SharedStorage& shared, const BlockPlace<Traits>& place) {
  const int stage_bytes = static_cast<int>(sizeof(shared.ring.w[0])) + args.tile_tokens * 128;
  const bool read_once = gridDim.y == 1;
  const std::uint64_t policy = evict_first_policy();
  const auto copy_weights = [&](int stage, int step) {
    const std::uint32_t to = shared_address(shared.ring.w[stage]), barrier = shared_address(&shared.full[stage]);
    const int k = (place.first_step + step) * box_k;
    arrive_expecting(barrier, stage_bytes);
    if (read_once) {
      copy_box(to, &args.w, k, place.first_row, barrier, policy);
    } else {
      copy_box(to, &args.w, k, place.first_row, barrier);
    }
  };
  const auto copy_tokens = [&](int stage, int step) {
    copy_box(shared_address(shared.ring.x[stage]), &args.x, (place.first_step + step) * box_k, place.first_token,
             shared_address(&shared.full[stage]));
  };
  const int ahead = min(Traits::stages, place.num_steps);
  for (int i = 0; i < ahead; ++i) { copy_weights(i, i); }
  wait_for_previous();
  for (int i = 0; i < ahead; ++i) { copy_tokens(i, i); }
  RingPosition<Traits> at;
  for (int i = ahead; i < place.num_steps; ++i, at.advance()) {
    wait_phase(shared_address(&shared.empty[at.stage]), at.parity);
    copy_weights(at.stage, i);
    copy_tokens(at.stage, i);
  }
}

/// Four warps: sums += the products of every step with their 64 weight rows.
template <class Traits>
__device__ void multiply_ring(typename Traits::SharedStorage& shared, const BlockPlace<Traits>& place,
                              float (&sums)[Traits::products][Traits::columns / 2]) {
  RingPosition<Traits> at;
  const bool elected = threadIdx.x % 32 == 0;
  for (int i = 0; i < place.num_steps; ++i, at.advance()) {
    wait_phase(shared_address(&shared.full[at.stage]), at.parity);
    const std::uint64_t w = tile_descriptor(shared_address(shared.ring.w[at.stage]) + threadIdx.x / 128 * 64 * 128);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < box_k / 16; ++k) {
#pragma unroll
      for (int c = 0; c < Traits::products; ++c) {
        const std::uint64_t x = tile_descriptor(shared_address(shared.ring.x[at.stage]) + c * Traits::columns * 128);
        wgmma_64x16<typename Traits::Element, Traits::columns>(sums[c], w + k * 2, x + k * 2);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();  // the stage before this one has been read
    if (i > 0 && elected) { arrive(shared_address(&shared.empty[at.previous_stage()])); }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int c = 0; c < Traits::products; ++c) { pin_registers(sums[c]); }
}

/// Puts a thread's sums where the whole cluster can read them: [token][row].
template <class Traits>
__device__ void share_sums(const float (&sums)[Traits::products][Traits::columns / 2], float* shared, int num_tokens) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float* const to = shared + warp * 16 + lane / 4;
#pragma unroll
  for (int c = 0; c < Traits::products; ++c) {
#pragma unroll
    for (int j = 0; j < Traits::columns / 8; ++j) {
      const int token = c * Traits::columns + j * 8 + lane % 4 * 2;
      if (c * Traits::columns + j * 8 >= num_tokens) { break; }
      const float* const four = &sums[c][j * 4];
      to[token * Traits::sum_stride] = four[0];
      to[(token + 1) * Traits::sum_stride] = four[1];
      to[token * Traits::sum_stride + 8] = four[2];
      to[(token + 1) * Traits::sum_stride + 8] = four[3];
    }
  }
}

/// Adds the bias to four outputs of a row and stores those that exist.
template <class T, class Out>
__device__ void store_four(const SkinnyGemmParams<T, Out>& p, float4 sum, int token, int o) {
  const float four[4] = {sum.x, sum.y, sum.z, sum.w};
  Vec<Out, 4> result;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const bool biased = p.bias != nullptr && o + j < p.out_features;
    result[j] = from_float<Out>(biased ? four[j] + to_float(p.bias[o + j]) : four[j]);
  }
  Out* const to = p.out + static_cast<std::int64_t>(token) * p.out_features + o;
  if (p.out_features % 4 == 0) {
    if (o < p.out_features) { result.store(to); }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (o + j < p.out_features) { to[j] = result[j]; }
    }
  }
}

/// Adds the splits' sums in order and stores this block's share of the tile. Reads of other blocks' memory take long, so several
/// are under way at once.
template <class Traits>
__device__ void store_tile(const SkinnyGemmParams<typename Traits::Element, typename Traits::Output>& p, const float* sums,
                           const BlockPlace<Traits>& place, int num_tokens) {
  constexpr int quads = Traits::rows / 4, step = Traits::splits * Traits::storing_threads;
  constexpr int most = ceil_div(Traits::tokens * quads, step), fits = Traits::splits == 8 ? 2 : 4;
  constexpr int unroll = most < fits ? most : fits;
  const int count = num_tokens * quads;
  for (int first = place.split * Traits::storing_threads + static_cast<int>(threadIdx.x); first < count; first += unroll * step) {
    float4 parts[unroll][Traits::splits];
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int i = min(first + u * step, count - 1);
      const float* const from = sums + i / quads * Traits::sum_stride + i % quads * 4;
#pragma unroll
      for (int s = 0; s < Traits::splits; ++s) {
        parts[u][s] = Traits::splits == 1 ? *reinterpret_cast<const float4*>(from) : load_cluster16(shared_address(from), s);
      }
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int i = first + u * step;
      if (i >= count) { break; }
      float4 sum = parts[u][0];
#pragma unroll
      for (int s = 1; s < Traits::splits; ++s) {
        const float4& part = parts[u][s];
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
      }
      store_four(p, sum, place.first_token + i / quads, place.first_row + i % quads * 4);
    }
  }
}

#endif

}  // namespace detail::gemm

#if defined(__CUDACC__)

/// Grid: x is the split of K within the tile of weight rows (a cluster has one tile), y the tile of tokens.
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads, 1) skinny_gemm_kernel(
    const __grid_constant__ detail::gemm::SkinnyGemmArgs<typename Traits::Element, typename Traits::Output> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  namespace gemm = detail::gemm;
  extern __shared__ __align__(1024) unsigned char skinny_gemm_shared[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(skinny_gemm_shared);
  const gemm::BlockPlace<Traits> place(args);

  detail::let_next_start();
  if (threadIdx.x == Traits::multiplying_threads) {
    gemm::prefetch_map(&args.w);
    gemm::prefetch_map(&args.x);
    for (int i = 0; i < Traits::stages; ++i) {
      detail::init_barrier(detail::shared_address(&shared.full[i]), 1);
      detail::init_barrier(detail::shared_address(&shared.empty[i]), Traits::warps);
    }
    detail::publish_barriers();
  }
  __syncthreads();
  const auto sync_multiplying = [] { asm volatile("bar.sync 1, %0;" ::"n"(Traits::multiplying_threads) : "memory"); };
  if (threadIdx.x < Traits::multiplying_threads) {
    float sums[Traits::products][Traits::columns / 2] = {};
    gemm::multiply_ring<Traits>(shared, place, sums);
    sync_multiplying();  // the ring has been read by all
    gemm::share_sums<Traits>(sums, shared.sums, args.tile_tokens);
  } else if (threadIdx.x == Traits::multiplying_threads) {
    gemm::fill_ring<Traits>(args, shared, place);
  }
  if constexpr (Traits::splits > 1) {
    __syncwarp();
    gemm::cluster_barrier();
  } else {
    if (threadIdx.x >= Traits::storing_threads) { return; }
    sync_multiplying();
  }
  detail::wait_for_previous();  // the ring did already; here for the stores
  gemm::store_tile<Traits>(args.p, shared.sums, place, args.tile_tokens);
  if constexpr (Traits::splits > 1) { gemm::cluster_barrier(); }  // no block leaves while its sums are read
#endif
}

/// With the configuration given; any number of tokens. Needs sm_90. Asynchronous on `stream`; allocates nothing; may be captured.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused
template <class Traits>
void launch_skinny_gemm_with(const SkinnyGemmParams<typename Traits::Element, typename Traits::Output>& p, cudaStream_t stream) {
  namespace gemm = detail::gemm;
  gemm::check_linear("skinny_gemm", p);
  NVL_EXPECTS(p.in_features % 8 == 0, "skinny_gemm in_features", p.in_features, "a multiple of 8 (16-byte rows)");
  if (p.num_rows == 0) { return; }
  const int token_tiles = gemm::ceil_div(p.num_rows, Traits::tokens);
  NVL_EXPECTS(token_tiles <= 65535, "skinny_gemm num_rows", p.num_rows, "at most 65535 tiles of tokens");
  // Tiles of equal size; the last begins where it ends with the last token, and both it and its neighbour compute what they
  // share, to the same bits.
  const int tile_tokens = gemm::ceil_div(p.num_rows, token_tiles);
  const gemm::SkinnyGemmArgs<typename Traits::Element, typename Traits::Output> args{
      .w = gemm::make_box_map(p.w, p.out_features, p.in_features, Traits::rows),
      .x = gemm::make_box_map(p.x, p.num_rows, p.in_features, tile_tokens),
      .p = p,
      .tile_tokens = tile_tokens};
  const int blocks = gemm::ceil_div(p.out_features, Traits::rows) * Traits::splits;
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(token_tiles)),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = sizeof(typename Traits::SharedStorage),
                                    .stream = stream,
                                    .cluster_size = Traits::splits,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, skinny_gemm_kernel<Traits>, args));
}

/// The configuration for one shape.
struct SkinnyGemmChoice {
  bool gemv = false;  // the kernel of gemv.cuh; the rest does not count
  int rows = 64, tokens = 64, splits = 1;
  bool deep = true;  // a ring that fills the shared memory; else two blocks share a multiprocessor
};

/// Splits of K for `tiles` tiles. Measured on an H200 (132 multiprocessors) with the layers of Qwen3-0.6B and 8B: 64 to 96 blocks
/// are best, each with all of its K in the ring (o, 1024 x 2048, 64 tokens: 4 splits 3.9 us, 2 splits 5.0, 8 splits 4.8), while the
/// other multiprocessors take the next layer's weights; where K is long, bandwidth counts and all multiprocessors are wanted
/// (4096 x 12288: 2 splits 26.5 us, 1 split 32.9).
constexpr int skinny_gemm_splits(int tiles, int in_features, int num_multiprocessors) {
  const int steps = detail::gemm::ceil_div(in_features, detail::gemm::box_k);
  int splits = 1;
  while (splits < 4 && steps >= 16 * splits) {
    const int blocks = tiles * splits * 2;
    const bool long_k = steps >= 24 * splits * 2;
    if (blocks > (long_k ? num_multiprocessors : num_multiprocessors * 3 / 4)) { break; }
    splits *= 2;
  }
  return splits;
}

/// \param fixed_order one order of the sum over k whatever the number of tokens: `splits` follows from the weight's shape alone,
///        and `gemv` is not chosen. Two splits at most: many tokens fill the GPU without.
constexpr SkinnyGemmChoice choose_skinny_gemm(int num_rows, int out_features, int in_features, int num_multiprocessors,
                                              bool fixed_order = false) {
  using detail::gemm::ceil_div;
  const int row_tiles = ceil_div(out_features, 64);
  SkinnyGemmChoice choice;
  // Above 16 MB wide reads of the copy engine beat many small ones (4096 x 4096: 9.5 us, 11.8 by GEMV).
  choice.gemv = !fixed_order && num_rows <= 8 && std::int64_t{out_features} * in_features <= 8 << 20;
  const int weight_splits = std::min(2, skinny_gemm_splits(row_tiles, in_features, num_multiprocessors));
  if (num_rows > 256) {  // bound by arithmetic and reads of L2: the largest tile
    choice.rows = 128, choice.tokens = 256, choice.splits = weight_splits;
    if (!fixed_order && row_tiles / 2 * ceil_div(num_rows, 256) >= num_multiprocessors / 2) { choice.splits = 1; }
    return choice;
  }
  const int longest = num_rows <= 128 ? num_rows : ceil_div(num_rows, ceil_div(num_rows, 128));
  for (const int tokens : {16, 32, 64, 96, 128}) {
    choice.tokens = tokens;
    if (longest <= tokens) { break; }
  }
  const int tiles = row_tiles * ceil_div(num_rows, choice.tokens);
  choice.splits = fixed_order ? weight_splits : skinny_gemm_splits(tiles, in_features, num_multiprocessors);
  // With more tiles than multiprocessors, two blocks share one, so that one reads while the other ends; not where K is long.
  choice.deep = choice.splits > 1 || tiles <= num_multiprocessors || in_features >= 48 * detail::gemm::box_k;
  return choice;
}

namespace detail::gemm {

/// Depth of the ring for tiles of 64 weight rows.
constexpr int skinny_gemm_stages(int tokens, bool deep) {
  return std::min((deep ? 200 : 104) * 1024 / (128 * (64 + tokens)), 16);
}

/// Calls `f.template operator()<value>()` with the first of `values` that is at least `wanted`, or with the last.
template <int value, int... values, class F>
void with_at_least(int wanted, const F& f) {
  if constexpr (sizeof...(values) == 0) {
    f.template operator()<value>();
  } else {
    if (wanted <= value) { return f.template operator()<value>(); }
    with_at_least<values...>(wanted, f);
  }
}

inline bool is_hopper() {
  int device = 0, major = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
}

}  // namespace detail::gemm

/// The linear layer, by the kernel and configuration that suit its shape and the device; right for any shape and type, meant for
/// at most 256 tokens. Asynchronous on `stream`; allocates nothing; may be captured.
/// \param fixed_order a token's result has the same bits for every number of tokens (always so but on sm_90)
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused
template <class T, class Out>
void launch_skinny_gemm(const SkinnyGemmParams<T, Out>& p, cudaStream_t stream, bool fixed_order = false) {
  namespace gemm = detail::gemm;
  if constexpr (sizeof(T) == 2) {
    if (p.num_rows > 0 && p.in_features % 8 == 0 && gemm::is_hopper()) {
      gemm::check_linear("skinny_gemm", p);
      const SkinnyGemmChoice choice =
          choose_skinny_gemm(p.num_rows, p.out_features, p.in_features, gemm::num_multiprocessors(), fixed_order);
      if (choice.rows == 128) {
        return gemm::with_at_least<1, 2>(choice.splits, [&]<int kSplits>() {
          constexpr SkinnyGemmTile tile{.rows = 128, .tokens = 256, .stages = 4, .splits = kSplits};
          launch_skinny_gemm_with<SkinnyGemmTraits<T, Out, tile>>(p, stream);
        });
      }
      if (!choice.gemv) {
        return gemm::with_at_least<16, 32, 64, 96, 128>(choice.tokens, [&]<int kTokens>() {
          if (!choice.deep) {
            constexpr SkinnyGemmTile tile{.tokens = kTokens, .stages = gemm::skinny_gemm_stages(kTokens, false)};
            return launch_skinny_gemm_with<SkinnyGemmTraits<T, Out, tile>>(p, stream);
          }
          gemm::with_at_least<1, 2, 4>(choice.splits, [&]<int kSplits>() {
            constexpr SkinnyGemmTile tile{
                .tokens = kTokens, .stages = gemm::skinny_gemm_stages(kTokens, true), .splits = kSplits};
            launch_skinny_gemm_with<SkinnyGemmTraits<T, Out, tile>>(p, stream);
          });
        });
      }
    }
  }
  launch_gemv(p, stream);
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
