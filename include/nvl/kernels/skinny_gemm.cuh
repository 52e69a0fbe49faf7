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

/// \tparam T bf16 or fp16, of weights and activations; sums are float
/// \tparam Out T or float
/// \tparam kRows weight rows of a tile: 64, 128 or 192
/// \tparam kTokens tokens of a tile: 16, 32, 64, 80, 96, 112 or 128, or twice 80 to 128
/// \tparam kStages depth of the ring, in steps of 64 elements of K
/// \tparam kSplits blocks of a cluster, among which K is divided: 1, 2, 4 or 8
template <class T, class Out, int kRows, int kTokens, int kStages, int kSplits>
struct SkinnyGemmTraits {
  using Element = T;
  using Output = Out;
  static constexpr int rows = kRows;
  static constexpr int tokens = kTokens;
  static constexpr int stages = kStages;
  static constexpr int splits = kSplits;
  static constexpr int step_k = detail::gemm::box_k;
  static constexpr int warps = kRows / 16;  // that multiply
  static constexpr int multiplying_threads = 32 * warps;
  static constexpr int threads = multiplying_threads + 32;
  static constexpr int products = kTokens > 128 ? 2 : 1;  // wgmma instructions side by side
  static constexpr int columns = kTokens / products;      // of one of them
  static constexpr int sum_stride = kRows + 4;            // [floats] twice this is 8 modulo 32: no bank conflicts

  /// In dynamic shared memory. The sums take the place of the ring once the ring is empty.
  struct alignas(1024) SharedStorage {
    struct Ring {
      alignas(1024) T w[kStages][kRows * step_k];
      alignas(1024) T x[kStages][kTokens * step_k];
    };
    union {
      Ring ring;
      float sums[kTokens * sum_stride];
    };
    alignas(8) std::uint64_t full[kStages], empty[kStages];
  };

  static_assert(sizeof(T) == 2, "nvl: SkinnyGemmTraits takes bf16 or fp16");
  static_assert(kRows % 64 == 0 && kRows >= 64 && kRows <= 256, "nvl: SkinnyGemmTraits needs rows in 64s");
  static_assert(kTokens % 16 == 0 && kTokens >= 16 && kTokens <= 256, "nvl: SkinnyGemmTraits needs tokens in 16s up to 256");
  static_assert(kSplits == 1 || kSplits == 2 || kSplits == 4 || kSplits == 8, "nvl: a cluster has 1, 2, 4 or 8 blocks");
  static_assert(sizeof(SharedStorage) <= 227 * 1024, "nvl: SkinnyGemmTraits needs more shared memory than a block has");
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
};

#if defined(__CUDACC__)

/// The steps of K of one split.
struct StepRange {
  int begin, end;
  __device__ StepRange(int in_features, int split, int splits) {
    const int steps = ceil_div(in_features, box_k);
    begin = steps * split / splits;
    end = steps * (split + 1) / splits;
  }
};

/// One thread: asks for every stage of the block's tile, weights of the first stages before the previous kernel has ended.
template <class Traits>
__device__ void fill_ring(const SkinnyGemmArgs<typename Traits::Element, typename Traits::Output>& args,
                          typename Traits::SharedStorage& shared, StepRange steps, int first_row, int first_token) {
  constexpr int stage_bytes = static_cast<int>(sizeof(shared.ring.w[0]) + sizeof(shared.ring.x[0]));
  const bool read_once = gridDim.y == 1;
  const std::uint64_t policy = evict_first_policy();
  const auto copy_weights = [&](int stage, int step) {
    const std::uint32_t barrier = shared_address(&shared.full[stage]);
    arrive_expecting(barrier, stage_bytes);
    if (read_once) {
      copy_box(shared_address(shared.ring.w[stage]), &args.w, step * box_k, first_row, barrier, policy);
    } else {
      copy_box(shared_address(shared.ring.w[stage]), &args.w, step * box_k, first_row, barrier);
    }
  };
  const auto copy_tokens = [&](int stage, int step) {
    copy_box(shared_address(shared.ring.x[stage]), &args.x, step * box_k, first_token, shared_address(&shared.full[stage]));
  };
  const int ahead = min(Traits::stages, steps.end - steps.begin);
  for (int i = 0; i < ahead; ++i) { copy_weights(i, steps.begin + i); }
  wait_for_previous();
  for (int i = 0; i < ahead; ++i) { copy_tokens(i, steps.begin + i); }
  int stage = 0;
  std::uint32_t parity = 0;
  for (int step = steps.begin + ahead; step < steps.end; ++step) {
    wait_barrier(shared_address(&shared.empty[stage]), parity);
    copy_weights(stage, step);
    copy_tokens(stage, step);
    if (++stage == Traits::stages) { stage = 0, parity ^= 1; }
  }
}

/// Four warps: sums += the products of every stage with their 64 weight rows.
template <class Traits>
__device__ void multiply_ring(typename Traits::SharedStorage& shared, int num_steps, int first_row,
                              float (&sums)[Traits::products][Traits::columns / 2]) {
  int stage = 0;
  std::uint32_t parity = 0;
  const bool elected = threadIdx.x % 32 == 0;
  for (int i = 0; i < num_steps; ++i) {
    wait_barrier(shared_address(&shared.full[stage]), parity);
    const std::uint64_t w = tile_descriptor(shared_address(shared.ring.w[stage]) + static_cast<std::uint32_t>(first_row) * 128);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < box_k / 16; ++k) {
#pragma unroll
      for (int c = 0; c < Traits::products; ++c) {
        const std::uint64_t x = tile_descriptor(shared_address(shared.ring.x[stage]) + c * Traits::columns * 128);
        wgmma_64x16<typename Traits::Element, Traits::columns>(sums[c], w + k * 2, x + k * 2);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();  // the stage before this one has been read
    if (i > 0 && elected) { arrive(shared_address(&shared.empty[stage == 0 ? Traits::stages - 1 : stage - 1])); }
    if (++stage == Traits::stages) { stage = 0, parity ^= 1; }
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
                           int rank, int first_row, int first_token, int num_tokens) {
  constexpr int quads = Traits::rows / 4, step = Traits::splits * Traits::threads;
  constexpr int most = ceil_div(Traits::tokens * quads, step), fits = Traits::splits == 8 ? 2 : 4;
  constexpr int unroll = most < fits ? most : fits;
  const int count = num_tokens * quads;
  for (int first = rank * Traits::threads + static_cast<int>(threadIdx.x); first < count; first += unroll * step) {
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
      store_four(p, sum, first_token + i / quads, first_row + i % quads * 4);
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
  using namespace detail::gemm;
  extern __shared__ __align__(1024) unsigned char skinny_gemm_shared[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(skinny_gemm_shared);
  const int rank = static_cast<int>(blockIdx.x) % Traits::splits;
  const int first_row = static_cast<int>(blockIdx.x) / Traits::splits * Traits::rows;
  const int first_token = static_cast<int>(blockIdx.y) * Traits::tokens;
  const int num_tokens = min(Traits::tokens, args.p.num_rows - first_token);
  const StepRange steps(args.p.in_features, rank, Traits::splits);
  const bool multiplies = threadIdx.x < Traits::multiplying_threads;

  detail::let_next_start();
  if (threadIdx.x == Traits::multiplying_threads) {
    prefetch_map(&args.w);
    prefetch_map(&args.x);
    for (int i = 0; i < Traits::stages; ++i) {
      init_barrier(shared_address(&shared.full[i]), 1);
      init_barrier(shared_address(&shared.empty[i]), Traits::warps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (multiplies) {
    float sums[Traits::products][Traits::columns / 2] = {};
    multiply_ring<Traits>(shared, steps.end - steps.begin, static_cast<int>(threadIdx.x) / 128 * 64, sums);
    asm volatile("bar.sync 1, %0;" ::"n"(Traits::multiplying_threads) : "memory");  // the ring has been read by all
    share_sums<Traits>(sums, shared.sums, num_tokens);
  } else if (threadIdx.x == Traits::multiplying_threads) {
    fill_ring<Traits>(args, shared, steps, first_row, first_token);
  }
  __syncwarp();
  if constexpr (Traits::splits > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
  detail::wait_for_previous();  // the ring did already; here for the stores
  store_tile<Traits>(args.p, shared.sums, rank, first_row, first_token, num_tokens);
  if constexpr (Traits::splits > 1) { cluster_barrier(); }  // nobody leaves while its sums are read
#endif
}

/// With the configuration given; any number of tokens. Needs sm_90. Asynchronous on `stream`; allocates nothing; may be captured.
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused
template <class Traits>
void launch_skinny_gemm_with(const SkinnyGemmParams<typename Traits::Element, typename Traits::Output>& p, cudaStream_t stream) {
  using namespace detail::gemm;
  check_linear("skinny_gemm", p);
  NVL_EXPECTS(p.in_features % 8 == 0, "skinny_gemm in_features", p.in_features, "a multiple of 8 (16-byte rows)");
  if (p.num_rows == 0) { return; }
  const int token_tiles = ceil_div(p.num_rows, Traits::tokens);
  NVL_EXPECTS(token_tiles <= 65535, "skinny_gemm num_rows", p.num_rows, "at most 65535 tiles of tokens");
  const SkinnyGemmArgs<typename Traits::Element, typename Traits::Output> args{
      .w = make_box_map(p.w, p.out_features, p.in_features, Traits::rows),
      .x = make_box_map(p.x, p.num_rows, p.in_features, Traits::tokens),
      .p = p};
  const auto blocks = static_cast<unsigned>(ceil_div(p.out_features, Traits::rows) * Traits::splits);
  const detail::LaunchConfig config{.grid = dim3(blocks, static_cast<unsigned>(token_tiles)),
                                    .block = dim3(Traits::threads),
                                    .shared_bytes = sizeof(typename Traits::SharedStorage),
                                    .stream = stream,
                                    .cluster_size = Traits::splits,
                                    .overlap_previous = p.overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, skinny_gemm_kernel<Traits>, args));
}

/// The configuration for one shape. `splits` comes from the shape of the weight alone, so that results do not depend on the
/// number of tokens as long as `gemv` is the same.
struct SkinnyGemmChoice {
  bool gemv = false;  // the kernel of gemv.cuh; the rest does not count
  int rows = 64, tokens = 64, splits = 1;
};

/// Splits of K that fill the multiprocessors with tiles of 64 weight rows, each at least 4 steps of 64 long.
constexpr int skinny_gemm_splits(int out_features, int in_features, int num_multiprocessors) {
  const int tiles = detail::gemm::ceil_div(out_features, 64), steps = detail::gemm::ceil_div(in_features, detail::gemm::box_k);
  int splits = 1;
  while (splits < 8 && tiles * splits * 2 <= num_multiprocessors + num_multiprocessors / 8 && steps >= splits * 2 * 4) {
    splits *= 2;
  }
  return splits;
}

/// \param fixed_order one order of the sum over k whatever the number of tokens: never `gemv` on sm_90
constexpr SkinnyGemmChoice choose_skinny_gemm(int num_rows, int out_features, int in_features, int num_multiprocessors,
                                              bool fixed_order = false) {
  SkinnyGemmChoice choice;
  choice.gemv = !fixed_order && num_rows <= 16;
  choice.splits = skinny_gemm_splits(out_features, in_features, num_multiprocessors);
  for (const int tokens : {16, 32, 64, 128}) {
    choice.tokens = tokens;
    if (num_rows <= tokens) { break; }
  }
  // More rows a tile where there are tiles enough: each tile reads all tokens.
  choice.rows = detail::gemm::ceil_div(out_features, 128) * choice.splits >= num_multiprocessors ? 128 : 64;
  return choice;
}

namespace detail::gemm {

/// Depth of the ring: what leaves room for a block of the next kernel beside this one.
constexpr int skinny_gemm_stages(int rows, int tokens) { return std::clamp(104 * 1024 / (128 * (rows + tokens)), 3, 8); }

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
  using namespace detail::gemm;
  if constexpr (sizeof(T) == 2) {
    if (p.in_features % 8 == 0 && is_hopper()) {
      const SkinnyGemmChoice choice =
          choose_skinny_gemm(p.num_rows, p.out_features, p.in_features, num_multiprocessors(), fixed_order);
      if (!choice.gemv) {
        return with_at_least<64, 128>(choice.rows, [&]<int kRows>() {
          with_at_least<16, 32, 64, 128>(choice.tokens, [&]<int kTokens>() {
            with_at_least<1, 2, 4, 8>(choice.splits, [&]<int kSplits>() {
              launch_skinny_gemm_with<SkinnyGemmTraits<T, Out, kRows, kTokens, skinny_gemm_stages(kRows, kTokens), kSplits>>(
                  p, stream);
            });
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
