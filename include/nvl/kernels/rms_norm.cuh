#pragma once
/// RMS normalisation of token rows, alone or fused with the residual addition in front of it:
///   out[t, i] = y[t, i] * weight[i] / sqrt(mean_i(y[t, i]^2) + eps)
/// y = x, or y = residual + x rounded to the residual's type, which then replaces the residual. A residual of float beside rows of
/// 16 bits may also be normalised as it is.
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.   Oracle: kernels/reference/rms_norm.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// A row stays in registers between the sum and the scaling, so it is read once.
template <class T, int kVectors, int kMaxThreads, bool kAddsResidual, class ResidualT = T>
struct RmsNormTraits {
  using Element = T;                                              // storage type; all arithmetic is float
  using Residual = ResidualT;                                     // T or float
  static constexpr bool is_wide = !std::is_same_v<T, ResidualT>;  // rows are of the residual, with or without x to add
  static constexpr int vectors = kVectors;                        // 16-byte vectors of a row that one thread keeps
  static constexpr int max_threads = kMaxThreads;                 // [threads per block]
  static constexpr bool adds_residual = kAddsResidual;
  static constexpr int vec = detail::vec_elements<T>;  // [elements per vector]
  static constexpr int max_chunks = kVectors * kMaxThreads / 32;
  static_assert(kVectors == 1 || kVectors == 2 || kVectors == 4 || kVectors == 8, "nvl: RmsNormTraits: 1, 2, 4 or 8 vectors");
  static_assert(kMaxThreads % 32 == 0 && kMaxThreads <= 1024, "nvl: RmsNormTraits needs whole warps, at most 1024 threads");

  struct SharedStorage {
    float chunk_sums[(max_chunks + 3) / 4 * 4];
  };
};

/// Run-time values, passed by value to the kernel. Strides count elements; 0 means `hidden`.
template <class T, class Residual = T>
struct RmsNormParams {
  static_assert(std::is_same_v<Residual, T> || std::is_same_v<Residual, float>, "nvl: RMSNorm takes a residual of T or float");

  T* out = nullptr;              // [num_tokens, hidden], device; may be the rows of x
  const T* x = nullptr;          // [num_tokens, hidden], device; nullptr: a residual that is not of T is normalised as it is
  Residual* residual = nullptr;  // [num_tokens, hidden], device; nullptr: nothing is added. Other rows than x and out
  const T* weight = nullptr;     // [hidden], device
  std::int64_t out_stride = 0;
  std::int64_t x_stride = 0;
  std::int64_t residual_stride = 0;
  int num_tokens = 0;  // 0 is legal: nothing is launched
  int hidden = 0;      // [elements], a multiple of 8
  float eps = 1e-6f;
};

/// How a row is spread over threads. The result does not depend on it: see detail::chunk_sums.
struct RmsNormShape {
  int vectors = 1;           // per thread
  int threads_per_row = 32;  // a multiple of 32
  int rows_per_block = 1;    // above 1 only for rows of one warp
};

/// \param row_vectors 16-byte vectors of a row
/// \param num_rows rows of the call
constexpr RmsNormShape rms_norm_shape(int row_vectors, int num_rows, const detail::RowTuning& tuning) noexcept {
  const auto threads_for = [&](int vectors) { return (row_vectors + 32 * vectors - 1) / (32 * vectors) * 32; };
  // Few rows: only latency counts, so every thread loads one vector. Many rows: four loads of a thread in flight.
  const bool few = std::int64_t{num_rows} * threads_for(1) <= tuning.max_latency_threads;
  if (few && threads_for(1) <= 1024) { return {1, threads_for(1), 1}; }
  if (threads_for(4) == 32) { return {4, 32, 4}; }
  if (threads_for(4) <= 256) { return {4, threads_for(4), 1}; }
  return {8, threads_for(8), 1};
}

#if defined(__CUDACC__)

namespace detail {

/// Sums `kCount` values over the lanes of a warp, each like warp_sum, with fewer shuffles: at every step a lane keeps half of
/// the values and hands the other half to its partner. Lane i ends with the sum of value i * kCount / 32.
template <int kCount>
__device__ __forceinline__ float warp_sum_each(float (&values)[kCount]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int offset = 16;
#pragma unroll
  for (int count = kCount; count > 1; count /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float keep = upper ? values[i + count / 2] : values[i];
      const float give = upper ? values[i] : values[i + count / 2];
      values[i] = keep + __shfl_xor_sync(0xffffffffu, give, offset);
    }
    offset /= 2;
  }
  float sum = values[0];
#pragma unroll
  for (; offset > 0; offset /= 2) { sum += __shfl_xor_sync(0xffffffffu, sum, offset); }
  return sum;
}

/// Sum of a row from the partial sums of its vectors: `partial[j]` belongs to vector `threadIdx.x + j * blockDim.x` of the row.
/// Always in one order: a warp's tree over each chunk of 32 vectors, then the chunks from first to last. So a row's result is
/// the same bits for every number of threads, and does not change with the number of rows in the call.
template <class Traits>
__device__ __forceinline__ float row_sum(float (&partial)[Traits::vectors], typename Traits::SharedStorage& shared) {
  constexpr int lanes_per_chunk = 32 / Traits::vectors;
  const float chunk = warp_sum_each<Traits::vectors>(partial);
  float sum = 0.0f;
  if (blockDim.x == 32) {
#pragma unroll
    for (int j = 0; j < Traits::vectors; ++j) { sum += __shfl_sync(0xffffffffu, chunk, j * lanes_per_chunk); }
    return sum;
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int num_chunks = warps * Traits::vectors;
  if (lane % lanes_per_chunk == 0) {
    shared.chunk_sums[lane / lanes_per_chunk * warps + static_cast<int>(threadIdx.x / 32)] = chunk;
  }
  const int num_padding = (4 - num_chunks % 4) % 4;  // read below, four at a time
  if (static_cast<int>(threadIdx.x) < num_padding) { shared.chunk_sums[num_chunks + static_cast<int>(threadIdx.x)] = 0.0f; }
  __syncthreads();
  for (int i = 0; i < num_chunks; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(shared.chunk_sums + i);
    sum = (((sum + four.x) + four.y) + four.z) + four.w;
  }
  return sum;
}

/// A row of a float residual, to which x, if there is one, is added: sums stay in registers, unrounded.
template <class Traits, CacheUse kStore>
__device__ __forceinline__ void normalize_wide_row(const RmsNormParams<typename Traits::Element, float>& p, int row,
                                                   const RowVector<typename Traits::Element> (&weight)[Traits::vectors],
                                                   typename Traits::SharedStorage& shared) {
  using Vector = RowVector<typename Traits::Element>;
  constexpr int vec = Traits::vec;
  const auto column = [&](int j) { return static_cast<int>(threadIdx.x + j * blockDim.x) * vec; };
  float* const residual = p.residual + row * p.residual_stride;
  float y[Traits::vectors][vec] = {};
  [[maybe_unused]] Vector x[Traits::vectors];
#pragma unroll
  for (int j = 0; j < Traits::vectors; ++j) {
    if (column(j) < p.hidden) {
      load_floats_16(y[j], residual + column(j));
      if constexpr (Traits::adds_residual) { x[j] = Vector::load(p.x + row * p.x_stride + column(j)); }
    }
  }
  float partial[Traits::vectors];
#pragma unroll
  for (int j = 0; j < Traits::vectors; ++j) {
    if constexpr (Traits::adds_residual) {
      float values[vec];
      x[j].unpack(values);
#pragma unroll
      for (int i = 0; i < vec; ++i) { y[j][i] += values[i]; }
    }
    partial[j] = 0.0f;
#pragma unroll
    for (int i = 0; i < vec; ++i) { partial[j] = fmaf(y[j][i], y[j][i], partial[j]); }
  }
  const float scale = rsqrtf(row_sum<Traits>(partial, shared) / static_cast<float>(p.hidden) + p.eps);
#pragma unroll
  for (int j = 0; j < Traits::vectors; ++j) {
    if (column(j) < p.hidden) {
      float w[vec];
      weight[j].unpack(w);
      if constexpr (Traits::adds_residual) { store_floats<kStore>(residual + column(j), y[j]); }
#pragma unroll
      for (int i = 0; i < vec; ++i) { w[i] *= scale * y[j][i]; }
      Vector::pack(w).template store<kStore>(p.out + row * p.out_stride + column(j));
    }
  }
}

}  // namespace detail

/// Block (threads_per_row, rows_per_block) of RmsNormShape; grid: enough blocks for all rows.
template <class Traits, detail::CacheUse kStore>
NVL_KERNEL void __launch_bounds__(Traits::max_threads)
    rms_norm_kernel(const __grid_constant__ RmsNormParams<typename Traits::Element, typename Traits::Residual> p) {
  using T = typename Traits::Element;
  using Vector = detail::RowVector<T>;
  constexpr int vec = Traits::vec;
  __shared__ alignas(16) typename Traits::SharedStorage shared;

  const int row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
  const auto column = [&](int j) { return static_cast<int>(threadIdx.x + j * blockDim.x) * vec; };
  Vector weight[Traits::vectors];
#pragma unroll
  for (int j = 0; j < Traits::vectors; ++j) {
    if (column(j) < p.hidden) { weight[j] = Vector::load_weight(p.weight + column(j)); }
  }
  detail::wait_for_previous_and_let_next_start(p.num_tokens);
  if (row >= p.num_tokens) { return; }  // whole warps, and only in blocks whose rows need no barrier

  if constexpr (Traits::is_wide) {
    detail::normalize_wide_row<Traits, kStore>(p, row, weight, shared);
    return;
  } else {
    const T* const x = p.x + row * p.x_stride;
    T* const residual = Traits::adds_residual ? p.residual + row * p.residual_stride : nullptr;
    Vector y[Traits::vectors];
    [[maybe_unused]] Vector old[Traits::vectors];
#pragma unroll
    for (int j = 0; j < Traits::vectors; ++j) {
      if (column(j) < p.hidden) {
        y[j] = Vector::load(x + column(j));
        if constexpr (Traits::adds_residual) { old[j] = Vector::load(residual + column(j)); }
      }
    }

    float partial[Traits::vectors];
#pragma unroll
    for (int j = 0; j < Traits::vectors; ++j) {
      float values[vec];
      y[j].unpack(values);
      if constexpr (Traits::adds_residual) {
        float base[vec];
        old[j].unpack(base);
#pragma unroll
        for (int i = 0; i < vec; ++i) { values[i] += base[i]; }
        y[j] = Vector::pack(values);
        y[j].unpack(values);  // the norm is that of the stored sum
      }
      partial[j] = 0.0f;
#pragma unroll
      for (int i = 0; i < vec; ++i) { partial[j] = fmaf(values[i], values[i], partial[j]); }
      y[j].keep_packed();
    }
    const float scale = rsqrtf(detail::row_sum<Traits>(partial, shared) / static_cast<float>(p.hidden) + p.eps);

    T* const out = p.out + row * p.out_stride;
#pragma unroll
    for (int j = 0; j < Traits::vectors; ++j) {
      if (column(j) < p.hidden) {
        float values[vec], w[vec];
        y[j].unpack(values);
        weight[j].unpack(w);
#pragma unroll
        for (int i = 0; i < vec; ++i) { values[i] *= scale * w[i]; }
        // Not earlier: stores between the loads and the sum cost 1 % of a large call (66.5 instead of 65.9 us at 8192 x 4096).
        if constexpr (Traits::adds_residual) { y[j].template store<kStore>(residual + column(j)); }
        Vector::pack(values).template store<kStore>(out + column(j));
      }
    }
  }
}

namespace detail {

/// One of the compiled kernels: kMaxThreads is the largest block that a RmsNormShape with this many vectors has.
template <class T, int kVectors, int kMaxThreads, bool kAddsResidual, CacheUse kStore, class Residual>
void launch_rms_norm_as(const RmsNormParams<T, Residual>& p, const RmsNormShape& shape, cudaStream_t stream,
                        bool overlap_previous) {
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>((p.num_tokens + shape.rows_per_block - 1) / shape.rows_per_block)),
      .block = dim3(static_cast<unsigned>(shape.threads_per_row), static_cast<unsigned>(shape.rows_per_block)),
      .stream = stream,
      .overlap_previous = overlap_previous};
  NVL_CUDA_CHECK(launch(config, rms_norm_kernel<RmsNormTraits<T, kVectors, kMaxThreads, kAddsResidual, Residual>, kStore>, p));
}

template <class T, bool kAddsResidual, class Residual>
void launch_rms_norm_shape(const RmsNormParams<T, Residual>& p, const RowTuning& tuning, cudaStream_t stream,
                           bool overlap_previous) {
  const RmsNormShape shape = rms_norm_shape(p.hidden / vec_elements<T>, p.num_tokens, tuning);
  if (shape.vectors == 1) {
    return launch_rms_norm_as<T, 1, 1024, kAddsResidual, CacheUse::again>(p, shape, stream, overlap_previous);
  }
  const std::int64_t output_bytes =
      std::int64_t{p.num_tokens} * p.hidden * static_cast<int>(sizeof(T) + (kAddsResidual ? sizeof(Residual) : 0));
  dispatch_cache_use(output_bytes, tuning, [&]<CacheUse kStore>() {
    if (shape.vectors == 4) {
      launch_rms_norm_as<T, 4, 256, kAddsResidual, kStore>(p, shape, stream, overlap_previous);
    } else {
      launch_rms_norm_as<T, 8, 512, kAddsResidual, kStore>(p, shape, stream, overlap_previous);
    }
  });
}

}  // namespace detail

/// Normalises `num_tokens` rows. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T, class Residual = T>
void launch_rms_norm(RmsNormParams<T, Residual> p, cudaStream_t stream, bool overlap_previous = true) {
  constexpr int max_hidden = 8 * 512 * detail::vec_elements<T>;
  NVL_EXPECTS(p.hidden > 0 && p.hidden % 8 == 0 && p.hidden <= max_hidden, "rms_norm hidden", p.hidden,
              "a positive multiple of 8, at most " + std::to_string(max_hidden));
  NVL_EXPECTS(p.num_tokens >= 0, "rms_norm num_tokens", p.num_tokens, "not negative");
  for (std::int64_t* const stride : {&p.out_stride, &p.x_stride, &p.residual_stride}) {
    if (*stride == 0) { *stride = p.hidden; }
    NVL_EXPECTS(*stride >= p.hidden && *stride % 8 == 0, "rms_norm row stride", *stride,
                "0, or a multiple of 8, at least hidden");
  }
  if (p.num_tokens == 0) { return; }
  const detail::RowTuning tuning = detail::row_tuning();
  constexpr bool is_wide = !std::is_same_v<T, Residual>;
  NVL_EXPECTS(is_wide ? p.residual != nullptr : p.x != nullptr, is_wide ? "rms_norm residual" : "rms_norm x", "nullptr",
              "rows in device memory");
  if (p.residual != nullptr && p.x != nullptr) {
    detail::launch_rms_norm_shape<T, true>(p, tuning, stream, overlap_previous);
  } else {
    detail::launch_rms_norm_shape<T, false>(p, tuning, stream, overlap_previous);
  }
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
