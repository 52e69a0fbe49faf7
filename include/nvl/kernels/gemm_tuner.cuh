#pragma once
/// The stopwatch of the search for the fastest GEMM: what a linear layer takes inside a step, where its weights come from memory
/// because other layers have used the caches since.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/cublaslt_gemm.cuh>
#include <nvl/kernels/detail/graph_timer.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/gemm_algo_cache.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// What to search for.
struct GemmTuneOptions {
  std::span<const GemmKey> keys;    // the most important first; a key whose algorithm is known already is left as it is
  std::span<std::byte> scratch;     // device memory, aligned to 256 bytes, that is overwritten. 256 MiB or more keep weights cold
  double max_seconds = 2.0;         // the search ends after this long; what it has not come to keeps the default
  std::int32_t max_candidates = 8;  // of cuBLASLt, for each key
};

struct GemmTuneReport {
  std::int32_t num_known = 0;    // keys that had an algorithm
  std::int32_t num_tuned = 0;    // keys for which the search was made
  std::int32_t num_skipped = 0;  // keys that do not fit the scratch memory
  std::int32_t num_left = 0;     // keys that the time did not suffice for
  double seconds = 0.0;
};

#if defined(__CUDACC__)

namespace detail {

/// Values that spread like a normal distribution: matrix units draw less power, and run faster, on zeros.
template <class T>
NVL_KERNEL void fill_random_kernel(T* out, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    std::uint32_t bits = static_cast<std::uint32_t>(i) * 0x9e3779b9u + 0x7f4a7c15u;
    float sum = 0.0f;
#pragma unroll
    for (int draw = 0; draw < 4; ++draw) {
      bits = (bits ^ (bits >> 16)) * 0x7feb352du;
      bits ^= bits >> 15;
      sum += static_cast<float>(bits >> 8) * 0x1p-24f - 0.5f;
    }
    out[i] = from_float<T>(sum * 0.1f);
  }
}

/// Stands for the small kernels between the linear layers of a step, which overlap with what allows it.
template <class T>
NVL_KERNEL void neighbour_kernel(T* out) {
  wait_for_previous();
  let_next_start();
  if (threadIdx.x == 0) { out[blockIdx.x] = static_cast<T>(blockIdx.x); }
}

}  // namespace detail

/// Times launches of one GEMM at a time in scratch memory: a few activations, and as many copies of the weight as fit, one after
/// another, so that none is in a cache when its turn comes. Between them runs a small kernel that starts early where it may, as in
/// a step: a kernel that cannot overlap with its neighbours pays for it here too.
class GemmTuner {
 public:
  /// \param scratch device memory, aligned to 256 bytes
  explicit GemmTuner(std::span<std::byte> scratch) : scratch_(scratch) {
    NVL_EXPECTS(reinterpret_cast<std::uintptr_t>(scratch.data()) % 256 == 0, "gemm scratch",
                reinterpret_cast<std::uintptr_t>(scratch.data()), "aligned to 256 bytes");
    int device = 0, l2_bytes = 0;
    NVL_CUDA_CHECK(cudaGetDevice(&device));
    NVL_CUDA_CHECK(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device));
    cold_bytes_ = 2 * static_cast<std::size_t>(l2_bytes);
    if (scratch_.size() < neighbour_bytes) { return; }
    timer_.capture(max_launches, [&](int, cudaStream_t stream) { launch_neighbour(stream); });
    static_cast<void>(timer_.time_us(1));
    neighbour_us_ = timer_.time_us(num_replays);
  }

  cudaStream_t stream() const noexcept { return timer_.stream(); }

  /// The next `measure` is about `key`. \returns false if one of its problems does not fit the scratch memory
  bool begin(const GemmKey& key) {
    const std::size_t in_bytes = info(key.in).block_bytes, out_bytes = info(key.out).block_bytes;
    const auto rows = static_cast<std::size_t>(key.num_rows), n = static_cast<std::size_t>(key.out_features),
               k = static_cast<std::size_t>(key.in_features);
    out_offset_ = neighbour_bytes;
    x_offset_ = out_offset_ + align(rows * n * out_bytes);
    bias_offset_ = x_offset_ + align(rows * k * in_bytes);
    w_offset_ = bias_offset_ + align(n * out_bytes);
    weight_bytes_ = align(n * k * in_bytes);
    if (w_offset_ + weight_bytes_ > scratch_.size()) { return false; }
    const std::size_t fit = (scratch_.size() - w_offset_) / weight_bytes_;
    const std::size_t wanted = cold_bytes_ / weight_bytes_ + 1;
    num_copies_ = static_cast<int>(std::min({fit, wanted, std::size_t{max_launches}}));
    key_ = key;
    best_us_ = 0.0f;
    fill(key.in);
    return true;
  }

  /// [us] that one launch adds to a chain of its neighbours, or nothing if it is clearly slower than the best of this key so far.
  /// \param launch called as launch(operands, stream), operands in scratch memory: gives one launch to the stream
  template <class Launch>
  std::optional<float> measure(Launch&& launch) {
    launch(operands(0), stream());  // loads the kernel, which a capture may not do
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream()));
    const int num_launches = std::max(num_copies_, key_.num_rows > 512 ? 2 : min_launches);
    timer_.capture(num_launches, [&](int i, cudaStream_t stream) {
      launch_neighbour(stream);
      launch(operands(i % num_copies_), stream);
    });
    static_cast<void>(timer_.time_us(1));
    float time = timer_.time_us(1) - neighbour_us_;
    if (best_us_ > 0.0f && time > best_us_ * 1.2f) { return std::nullopt; }
    time = std::max(timer_.time_us(num_replays) - neighbour_us_, 0.01f);
    best_us_ = best_us_ > 0.0f ? std::min(best_us_, time) : time;
    return time;
  }

 private:
  static constexpr int max_launches = 24;  // of one graph
  static constexpr int min_launches = 6;
  static constexpr int num_replays = 5;
  static constexpr int neighbour_blocks = 64;
  static constexpr std::size_t neighbour_bytes = neighbour_blocks * sizeof(float);

  static std::size_t align(std::size_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  GemmOperands operands(int copy) const noexcept {
    std::byte* const base = scratch_.data();
    return {base + out_offset_, base + x_offset_, base + w_offset_ + static_cast<std::size_t>(copy) * weight_bytes_,
            key_.has_bias ? base + bias_offset_ : nullptr};
  }

  void launch_neighbour(cudaStream_t stream) const {
    const detail::LaunchConfig config{
        .grid = dim3(neighbour_blocks), .block = dim3(128), .stream = stream, .overlap_previous = true};
    NVL_CUDA_CHECK(detail::launch(config, detail::neighbour_kernel<float>, reinterpret_cast<float*>(scratch_.data())));
  }

  void fill(DType type) {
    std::byte* const begin = scratch_.data() + x_offset_;
    const std::size_t num_bytes = w_offset_ - x_offset_ + static_cast<std::size_t>(num_copies_) * weight_bytes_;
    const auto fill_as = [&]<class T>(T* out) {
      detail::fill_random_kernel<T><<<1024, 256, 0, stream()>>>(out, num_bytes / sizeof(T));
      NVL_CUDA_CHECK(cudaGetLastError());
    };
    switch (type) {
      case DType::bfloat16: return fill_as(reinterpret_cast<bf16*>(begin));
      case DType::float16: return fill_as(reinterpret_cast<fp16*>(begin));
      default: return fill_as(reinterpret_cast<float*>(begin));
    }
  }

  std::span<std::byte> scratch_;
  std::size_t cold_bytes_ = 0;
  detail::GraphTimer timer_;
  GemmKey key_;
  float neighbour_us_ = 0.0f;
  std::size_t out_offset_ = 0, x_offset_ = 0, bias_offset_ = 0, w_offset_ = 0, weight_bytes_ = 0;
  int num_copies_ = 1;
  float best_us_ = 0.0f;  // 0: nothing was measured yet
};

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
