#pragma once
/// Rows picked by index: token ids to rows of the embedding table, and rows of a tensor to a shorter one.
///   embed:        out[t] = table[ids[t]], or table[sampled[-1 - ids[t]]] where ids[t] < 0; of the table's type, or float
///   gather_rows:  out[i] = x[rows[i]]
/// Oracle: kernels/reference/linear.hpp (embed)

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/row_vector.cuh>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// Run-time values, passed by value to the kernel.
template <class T, class Out = T>
struct EmbedParams {
  static_assert(std::is_same_v<Out, T> || std::is_same_v<Out, float>, "nvl: embed writes the type of its table, or float");

  Out* out = nullptr;            // [num_rows, hidden], device, contiguous
  const T* table = nullptr;      // [any, hidden], device, contiguous; not `out`
  const TokenId* ids = nullptr;  // [num_rows], device. -1 - i: the id that sampled[i] will hold by then
  const TokenId* sampled =
      nullptr;       // device; nullptr: every id is given. Tokens of the step before, which the host does not know
  int num_rows = 0;  // 0 is legal: nothing is launched
  int hidden = 0;    // [elements], a multiple of 8
};

#if defined(__CUDACC__)

namespace detail {
inline constexpr int embed_max_threads = 512;  // [per block]
}

/// Block: x over the 16-byte vectors of a row (looping if there are more), y over rows.
template <class T, class Out>
NVL_KERNEL void __launch_bounds__(detail::embed_max_threads) embed_kernel(const __grid_constant__ EmbedParams<T, Out> p) {
  using Vector = detail::RowVector<T>;
  const auto row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  detail::wait_for_previous();
  detail::let_next_start();
  if (row >= p.num_rows) { return; }
  TokenId id = p.ids[row];
  if (id < 0) { id = p.sampled[-1 - id]; }
  const T* const from = p.table + std::int64_t{id} * p.hidden;
  Out* const to = p.out + row * p.hidden;
  for (int i = static_cast<int>(threadIdx.x) * Vector::size; i < p.hidden; i += static_cast<int>(blockDim.x) * Vector::size) {
    const Vector vector = Vector::load(from + i);
    if constexpr (std::is_same_v<T, Out>) {
      vector.store(to + i);
    } else {
      float values[Vector::size];
      vector.unpack(values);
      detail::store_floats(to + i, values);
    }
  }
}

/// Copies the rows. Asynchronous on `stream`; allocates nothing; safe inside CUDA graph capture. Ids are not checked: each is
/// a row of the table.
/// \param overlap_previous start while the stream's previous kernel ends; see detail::LaunchConfig
/// \throws InvalidArgument that names the field, its value and the rule; CudaError if the launch is refused.
template <class T, class Out = T>
void launch_embed(const EmbedParams<T, Out>& p, cudaStream_t stream, bool overlap_previous = true) {
  NVL_EXPECTS(p.hidden > 0 && p.hidden % 8 == 0, "embed hidden", p.hidden, "a positive multiple of 8");
  NVL_EXPECTS(p.num_rows >= 0, "embed num_rows", p.num_rows, "not negative");
  if (p.num_rows == 0) { return; }
  const int row_vectors = p.hidden / detail::vec_elements<T>;
  const int threads_per_row = std::min((row_vectors + 31) / 32 * 32, detail::embed_max_threads);
  const int rows_per_block = std::max(1, 128 / threads_per_row);
  const detail::LaunchConfig config{.grid = dim3(static_cast<unsigned>((p.num_rows + rows_per_block - 1) / rows_per_block)),
                                    .block = dim3(static_cast<unsigned>(threads_per_row), static_cast<unsigned>(rows_per_block)),
                                    .stream = stream,
                                    .overlap_previous = overlap_previous};
  NVL_CUDA_CHECK(detail::launch(config, embed_kernel<T, Out>, p));
}

/// out[i] = x[rows[i]], i < num_rows. \param rows device, each a row of x. Else as launch_embed.
template <class T>
void launch_gather_rows(T* out, const T* x, const std::int32_t* rows, int num_rows, int hidden, cudaStream_t stream,
                        bool overlap_previous = true) {
  launch_embed<T>({.out = out, .table = x, .ids = rows, .num_rows = num_rows, .hidden = hidden}, stream, overlap_previous);
}

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
