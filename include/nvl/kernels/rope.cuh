#pragma once
/// Rotary position embedding in place: each pair (a, b) of a head becomes (a cos - b sin, b cos + a sin).
/// Cosines and sines come from a table (core/rope_table.hpp), so every frequency scaling works without a line here.
/// Source: Su et al. 2021, arXiv:2104.09864, eq. 34.   Oracle: kernels/reference/rope.hpp

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// A RopeTable in device memory: position p has its head_dim / 2 cosines at [p * head_dim], its sines right behind them.
struct DeviceRopeTable {
  const float* cos_sin = nullptr;  // [num_positions, 2, head_dim / 2], device, 16-byte aligned
  std::int32_t num_positions = 0;
  std::int32_t head_dim = 0;
  RotaryLayout layout = RotaryLayout::half;
};

/// The numbers that DeviceRopeTable::cos_sin points to, to be uploaded by the caller.
inline std::vector<float> pack_rope_table(const RopeTable& table) {
  const std::size_t half = static_cast<std::size_t>(table.head_dim() / 2);
  std::vector<float> packed;
  packed.reserve(static_cast<std::size_t>(table.num_positions()) * 2 * half);
  for (std::int32_t p = 0; p < table.num_positions(); ++p) {
    packed.insert(packed.end(), table.cos(p), table.cos(p) + half);
    packed.insert(packed.end(), table.sin(p), table.sin(p) + half);
  }
  return packed;
}

/// \param cos_sin device copy of pack_rope_table(table)
inline DeviceRopeTable device_rope_table(const RopeTable& table, const float* cos_sin) noexcept {
  return {.cos_sin = cos_sin, .num_positions = table.num_positions(), .head_dim = table.head_dim(), .layout = table.layout()};
}

namespace detail {

/// How heads are spread over a warp. A lane holds vector `column` of the first and of the second half of a head, so that with
/// either layout both elements of every pair are in one lane. `lanes_per_head` lanes share a head; where head_dim is no power
/// of two (80, 96), the last of them are idle.
template <class T>
constexpr int lanes_per_head(int head_dim) noexcept {
  int lanes = 1;
  while (lanes * 2 * vec_elements<T> < head_dim) { lanes *= 2; }
  return lanes;
}

/// Calls f.operator()<kLanes>() for the number of lanes of this head_dim; the one list of what is compiled.
template <class T, class F>
void dispatch_lanes_per_head(int head_dim, F&& f) {
  switch (lanes_per_head<T>(head_dim)) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 4: return f.template operator()<4>();
    case 8: return f.template operator()<8>();
    case 16: return f.template operator()<16>();
    default: return f.template operator()<32>();
  }
}

template <class T>
void expect_head_dim(const char* field, int head_dim) {
  constexpr int max = 64 * vec_elements<T>;
  NVL_EXPECTS(head_dim > 0 && head_dim % 16 == 0 && head_dim <= max, field, head_dim,
              "a positive multiple of 16, at most " + std::to_string(max));
}

#if defined(__CUDACC__)

/// N floats of a table, aligned to min(4 N, 16) bytes.
template <int N>
__device__ __forceinline__ void load_floats(float* to, const float* from) {
  static_assert(N % 2 == 0);
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float2 v = *reinterpret_cast<const float2*>(from + i);
      to[i] = v.x, to[i + 1] = v.y;
    }
  }
}

/// The angles of the pairs that one lane holds, the same for every head of a token.
template <class T>
struct LaneAngles {
  static constexpr int vec = vec_elements<T>;
  float cosines[vec];
  float sines[vec];

  /// \param column which vector of each half; the lane is not idle
  __device__ __forceinline__ static LaneAngles load(const DeviceRopeTable& table, std::int32_t position, int column) {
    const int half = table.head_dim / 2;
    const float* const row = table.cos_sin + std::int64_t{position} * table.head_dim;
    LaneAngles angles;
    if (table.layout == RotaryLayout::half) {
      load_floats<vec>(angles.cosines, row + column * vec);
      load_floats<vec>(angles.sines, row + half + column * vec);
    } else {
      const int first = column * vec / 2, second = first + half / 2;  // pairs of the two vectors
      load_floats<vec / 2>(angles.cosines, row + first);
      load_floats<vec / 2>(angles.cosines + vec / 2, row + second);
      load_floats<vec / 2>(angles.sines, row + half + first);
      load_floats<vec / 2>(angles.sines + vec / 2, row + half + second);
    }
    return angles;
  }
};

/// Rotates the pairs of `first` and `second`, vectors of the two halves of a head.
template <class T>
__device__ __forceinline__ void rotate(float (&first)[vec_elements<T>], float (&second)[vec_elements<T>],
                                       const LaneAngles<T>& angles, RotaryLayout layout) {
  constexpr int vec = vec_elements<T>;
  const auto turn = [&](float& a, float& b, int i) {
    const float c = angles.cosines[i], s = angles.sines[i];
    const float rotated = fmaf(a, c, -(b * s));
    b = fmaf(b, c, a * s);
    a = rotated;
  };
  if (layout == RotaryLayout::half) {
#pragma unroll
    for (int i = 0; i < vec; ++i) { turn(first[i], second[i], i); }
  } else {
#pragma unroll
    for (int i = 0; i < vec / 2; ++i) {
      turn(first[2 * i], first[2 * i + 1], i);
      turn(second[2 * i], second[2 * i + 1], vec / 2 + i);
    }
  }
}

#endif

}  // namespace detail

/// A warp rotates `kSteps` times 32 / kLanesPerHead heads of one token.
template <class T, int kLanesPerHead, int kSteps>
struct RopeTraits {
  using Element = T;
  static constexpr int lanes_per_head = kLanesPerHead;
  static constexpr int heads_per_step = 32 / kLanesPerHead;
  static constexpr int steps = kSteps;
  static constexpr int heads_per_warp = heads_per_step * kSteps;
  static constexpr int vec = detail::vec_elements<T>;
  static constexpr int threads = 128;  // [per block]
};

/// Run-time values, passed by value to the kernel.
template <class T>
struct RopeParams {
  T* x = nullptr;                           // [num_tokens, num_heads, head_dim], device; rotated in place
  const std::int32_t* positions = nullptr;  // [num_tokens], device, each below table.num_positions
  DeviceRopeTable table;
  std::int64_t row_stride = 0;  // [elements] from token to token; 0: num_heads * head_dim
  int num_tokens = 0;           // 0 is legal: nothing is launched
  int num_heads = 0;
};

#if defined(__CUDACC__)

/// Warps of the grid, in order: all warps of token 0, of token 1, ...
template <class Traits>
NVL_KERNEL void __launch_bounds__(Traits::threads) rope_kernel(const __grid_constant__ RopeParams<typename Traits::Element> p) {
  using T = typename Traits::Element;
  using Vector = detail::RowVector<T>;
  constexpr int vec = Traits::vec;
  const int half = p.table.head_dim / 2;
  const int warps_per_token = (p.num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp;
  const auto warp = static_cast<std::int64_t>(blockIdx.x) * (Traits::threads / 32) + threadIdx.x / 32;
  const auto token = static_cast<int>(warp / warps_per_token);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int column = lane % Traits::lanes_per_head;
  const int first_head = static_cast<int>(warp % warps_per_token) * Traits::heads_per_warp + lane / Traits::lanes_per_head;
  detail::wait_for_previous();
  detail::let_next_start();
  if (token >= p.num_tokens || column * vec >= half) { return; }

  T* const row = p.x + token * p.row_stride + column * vec;
  Vector first[Traits::steps], second[Traits::steps];
#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    const int head = first_head + j * Traits::heads_per_step;
    if (head < p.num_heads) {
      first[j] = Vector::load(row + head * p.table.head_dim);
      second[j] = Vector::load(row + head * p.table.head_dim + half);
    }
  }
  const auto angles = detail::LaneAngles<T>::load(p.table, p.positions[token], column);
#pragma unroll
  for (int j = 0; j < Traits::steps; ++j) {
    const int head = first_head + j * Traits::heads_per_step;
    float a[vec], b[vec];
    first[j].unpack(a);
    second[j].unpack(b);
    detail::rotate<T>(a, b, angles, p.table.layout);
    if (head < p.num_heads) {
      Vector::pack(a).store(row + head * p.table.head_dim);
      Vector::pack(b).store(row + head * p.table.head_dim + half);
    }
  }
}

/// Rotates every head of `num_tokens` rows. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T>
void launch_rope(RopeParams<T> p, cudaStream_t stream, bool overlap_previous = true) {
  detail::expect_head_dim<T>("rope head_dim", p.table.head_dim);
  NVL_EXPECTS(p.num_heads > 0, "rope num_heads", p.num_heads, "positive");
  NVL_EXPECTS(p.num_tokens >= 0, "rope num_tokens", p.num_tokens, "not negative");
  const std::int64_t row = std::int64_t{p.num_heads} * p.table.head_dim;
  if (p.row_stride == 0) { p.row_stride = row; }
  NVL_EXPECTS(p.row_stride >= row && p.row_stride % 8 == 0, "rope row_stride", p.row_stride,
              "0, or a multiple of 8, at least num_heads * head_dim");
  if (p.num_tokens == 0) { return; }
  detail::dispatch_lanes_per_head<T>(p.table.head_dim, [&]<int kLanes>() {
    const auto run = [&]<int kSteps>() {
      using Traits = RopeTraits<T, kLanes, kSteps>;
      const std::int64_t warps_per_token = (p.num_heads + Traits::heads_per_warp - 1) / Traits::heads_per_warp;
      const std::int64_t threads = p.num_tokens * warps_per_token * 32;
      const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>((threads + Traits::threads - 1) / Traits::threads)),
                                        .block = dim3(Traits::threads),
                                        .stream = stream,
                                        .overlap_previous = overlap_previous};
      NVL_CUDA_CHECK(detail::launch(config, rope_kernel<Traits>, p));
    };
    // Few tokens: one step a warp, for latency. Many: angles are loaded once for several steps.
    if (p.num_tokens <= detail::row_tuning().max_latency_tokens) {
      run.template operator()<1>();
    } else {
      run.template operator()<4>();
    }
  });
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
