#pragma once
/// A linear layer, computed by whichever kernel is fastest for its shape: out[t, o] = sum_i x[t, i] w[o, i] (+ bias[o]).
/// Oracle: kernels/reference/linear.hpp. How the choice is made: docs/kernels/linear.md.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/cublaslt_gemm.cuh>
#include <nvl/kernels/gemm_algo_cache.hpp>
#include <nvl/kernels/gemm_tuner.cuh>
#include <nvl/kernels/skinny_gemm.cuh>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

#if defined(__CUDACC__)

/// Where no search was made: is the kernel of skinny_gemm.cuh the faster one? As measured on an H200 with weights that no cache
/// holds, between kernels that overlap (docs/kernels/linear.md).
constexpr bool prefers_skinny_gemm(const GemmKey& key) noexcept {
  if (key.in == DType::float32) { return false; }
  if (key.out_features <= key.in_features) { return key.num_rows <= 128; }  // back to the width of the model: K is split
  if (key.out_features > 1 << 16) { return key.num_rows <= 32; }            // to a vocabulary
  return key.num_rows <= 16 && std::int64_t{key.out_features} * key.in_features <= 64 << 20;
}

/// Runs the linear layers of one stream; one thread at a time. The first call of a shape may load kernels: make it before the
/// stream is captured.
/// \tparam kBatchInvariant a row's result has the same bits whatever the other rows of the call are, at some cost in speed
template <bool kBatchInvariant = false>
class Linear {
 public:
  static constexpr std::size_t default_workspace_bytes = CublasLtGemm::default_workspace_bytes;

  /// \param workspace see CublasLtGemm
  explicit Linear(std::span<std::byte> workspace) : cublaslt_(workspace) {}

  /// For a device that hangs: see CublasLtGemm.
  void abandon() noexcept { cublaslt_.abandon(); }

  /// Pointers: device memory, aligned to 16 bytes. Asynchronous on `stream`; allocates no device memory; may be captured.
  /// \param out [num_rows, out_features], not overlapping the others \param x [num_rows, in_features]
  /// \param w [out_features, in_features] \param bias [out_features], or nullptr, as it has to be where Out is not T
  /// \param num_rows 0 launches nothing
  /// \throws InvalidArgument that names the field, its value and the rule; CudaError that names the call
  template <class T, class Out>
  void run(Out* out, const T* x, const T* w, const T* bias, std::int32_t num_rows, std::int32_t out_features,
           std::int32_t in_features, cudaStream_t stream) {
    const Out* out_bias = nullptr;
    if constexpr (std::is_same_v<T, Out>) {
      out_bias = bias;
    } else {
      NVL_EXPECTS(bias == nullptr, "linear bias", "there", "nullptr where the result is of another type than x");
    }
    const SkinnyGemmParams<T, Out> own{out, x, w, out_bias, num_rows, out_features, in_features};
    if constexpr (kBatchInvariant) {
      launch_skinny_gemm(own, stream, true);
    } else {
      const GemmParams<T, Out> params{out, x, w, out_bias, num_rows, out_features, in_features};
      check_gemm_params(params);
      if (num_rows == 0) { return; }
      const GemmKey key = gemm_key(params);
      if (uses_own_kernel(key)) { return launch_skinny_gemm(own, stream); }
      cublaslt_.run(key, num_rows, {out, x, w, bias}, stream);
    }
  }

  /// Measures, for each key, every algorithm there is, and uses the fastest from now on. Waits for the device.
  /// \tparam T of x and w in all keys; results are T or float
  /// \throws InvalidArgument for a key of other types; CudaError
  template <class T>
  GemmTuneReport tune(const GemmTuneOptions& options) {
    const auto begin = std::chrono::steady_clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
    GemmTuneReport report;
    GemmTuner tuner(options.scratch);
    for (const GemmKey& key : options.keys) {
      NVL_EXPECTS(key.in == dtype_of<T>, "input type of a gemm to tune", info(key.in).name, std::string(info(dtype_of<T>).name));
      NVL_EXPECTS(key.out == dtype_of<T> || (key.out == DType::float32 && !key.has_bias), "output type of a gemm to tune",
                  info(key.out).name, "that of the input, or float32 without a bias");
      if (records_.contains(key)) {
        ++report.num_known;
      } else if (elapsed() >= options.max_seconds) {
        ++report.num_left;
      } else if (!tuner.begin(key)) {
        ++report.num_skipped;
      } else {
        tune_key<T>(tuner, key, options.max_candidates);
        ++report.num_tuned;
      }
    }
    report.seconds = elapsed();
    return report;
  }

  /// Takes over what an earlier search found. \returns how many records this device can use
  std::int32_t use(std::span<const GemmRecord> records) {
    std::int32_t used = 0;
    for (const GemmRecord& record : records) { used += use(record) ? 1 : 0; }
    return used;
  }

  /// Of `keys`, those that a search or a cache file has an algorithm for.
  std::int32_t num_known(std::span<const GemmKey> keys) const {
    return static_cast<std::int32_t>(
        std::count_if(keys.begin(), keys.end(), [&](const GemmKey& key) { return records_.contains(key); }));
  }

  /// What is known by search, in no order.
  std::vector<GemmRecord> records() const {
    std::vector<GemmRecord> all;
    all.reserve(records_.size());
    for (const auto& [key, record] : records_) { all.push_back(record); }
    return all;
  }

  /// use() of a cache file. \returns what read_gemm_cache did: never throws for what the file holds
  GemmCacheContents load_cache(const std::filesystem::path& path) {
    GemmCacheContents contents = read_gemm_cache(path, CublasLtGemm::identity());
    use(contents.records);
    return contents;
  }
  /// \throws FileError
  void save_cache(const std::filesystem::path& path) const { write_gemm_cache(path, CublasLtGemm::identity(), records()); }

 private:
  static constexpr std::int32_t skinny_variant = 0;     // GemmAlgo::own_variant: launch_skinny_gemm
  static constexpr std::int32_t max_skinny_rows = 256;  // for which it is worth a try

  bool use(const GemmRecord& record) {
    const bool is_own = record.algo.own_variant == skinny_variant;
    if (!is_own && !cublaslt_.set_algo(record.key, record.algo)) { return false; }
    records_.insert_or_assign(record.key, record);
    return true;
  }

  bool uses_own_kernel(const GemmKey& key) const {
    const auto found = records_.find(key);
    return found != records_.end() ? found->second.algo.own_variant == skinny_variant : prefers_skinny_gemm(key);
  }

  template <class T, class Out>
  static void launch_own(const GemmKey& key, const GemmOperands& at, cudaStream_t stream) {
    launch_skinny_gemm(
        SkinnyGemmParams<T, Out>{static_cast<Out*>(at.out), static_cast<const T*>(at.x), static_cast<const T*>(at.w),
                                 static_cast<const Out*>(at.bias), key.num_rows, key.out_features, key.in_features},
        stream);
  }

  template <class T>
  void tune_key(GemmTuner& tuner, const GemmKey& key, std::int32_t max_candidates) {
    GemmRecord best{key, {}, 0.0f};
    const auto consider = [&](const GemmAlgo& algo, auto&& launch) {
      const std::optional<float> time = tuner.measure(launch);
      if (time && (best.time_us == 0.0f || *time < best.time_us)) {
        best.algo = algo;
        best.time_us = *time;
      }
    };
    if (key.num_rows <= max_skinny_rows) {
      consider({.own_variant = skinny_variant}, [&](const GemmOperands& at, cudaStream_t stream) {
        key.out == key.in ? launch_own<T, T>(key, at, stream) : launch_own<T, float>(key, at, stream);
      });
    }
    for (const GemmAlgo& algo : cublaslt_.candidates(key, max_candidates)) {
      if (!cublaslt_.set_algo(key, algo)) { continue; }
      consider(algo, [&](const GemmOperands& at, cudaStream_t stream) { cublaslt_.run(key, key.num_rows, at, stream); });
    }
    if (best.time_us > 0.0f) { use(best); }
  }

  CublasLtGemm cublaslt_;
  std::unordered_map<GemmKey, GemmRecord, detail::GemmKeyHash> records_;
};

#endif

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
