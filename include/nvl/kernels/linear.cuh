#pragma once
/// A linear layer, computed by whichever kernel is fastest for its shape: out[t, o] = sum_i x[t, i] w[o, i] (+ bias[o]).
/// Oracle: kernels/reference/linear.hpp. How the choice is made: docs/kernels/linear.md.

#include <nvl/core/config.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/cublaslt_gemm.cuh>
#include <nvl/kernels/gemm_algo_cache.hpp>
#include <nvl/kernels/gemm_tuner.cuh>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels {

#if defined(__CUDACC__)

/// Runs the linear layers of one stream; one thread at a time. The first call of a shape may load kernels: make it before the
/// stream is captured.
/// \tparam kBatchInvariant a row's result has the same bits whatever the other rows of the call are, at some cost in speed
template <bool kBatchInvariant = false>
class Linear {
 public:
  static constexpr std::size_t default_workspace_bytes = CublasLtGemm::default_workspace_bytes;

  /// \param workspace see CublasLtGemm
  explicit Linear(std::span<std::byte> workspace) : cublaslt_(workspace) {}

  /// Pointers: device memory, aligned to 16 bytes. Asynchronous on `stream`; allocates no device memory; may be captured.
  /// \param out [num_rows, out_features], not overlapping the others \param x [num_rows, in_features]
  /// \param w [out_features, in_features] \param bias [out_features] or nullptr \param num_rows 0 launches nothing
  /// \throws InvalidArgument that names the field, its value and the rule; CudaError that names the call
  template <class T, class Out>
  void run(Out* out, const T* x, const T* w, const T* bias, std::int32_t num_rows, std::int32_t out_features,
           std::int32_t in_features, cudaStream_t stream) {
    if constexpr (std::is_same_v<T, Out>) {
      cublaslt_.run(GemmParams<T, Out>{out, x, w, bias, num_rows, out_features, in_features}, stream);
    } else {
      NVL_EXPECTS(bias == nullptr, "linear bias", "there", "nullptr where the result is float and x is not");
      cublaslt_.run(GemmParams<T, Out>{out, x, w, nullptr, num_rows, out_features, in_features}, stream);
    }
  }

  /// Measures, for each key, every algorithm there is, and uses the fastest from now on. Waits for the device.
  GemmTuneReport tune(const GemmTuneOptions& options) {
    const auto begin = std::chrono::steady_clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
    GemmTuneReport report;
    GemmTuner tuner(options.scratch);
    for (const GemmKey& key : options.keys) {
      if (records_.contains(key)) {
        ++report.num_known;
      } else if (elapsed() >= options.max_seconds) {
        ++report.num_left;
      } else if (!tuner.begin(key)) {
        ++report.num_skipped;
      } else {
        tune_key(tuner, key, options.max_candidates);
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
  bool use(const GemmRecord& record) {
    if (!cublaslt_.set_algo(record.key, record.algo)) { return false; }
    records_.insert_or_assign(record.key, record);
    return true;
  }

  void tune_key(GemmTuner& tuner, const GemmKey& key, std::int32_t max_candidates) {
    GemmRecord best{key, {}, 0.0f};
    const auto consider = [&](const GemmAlgo& algo, auto&& launch) {
      const std::optional<float> time = tuner.measure(launch);
      if (time && (best.time_us == 0.0f || *time < best.time_us)) {
        best.algo = algo;
        best.time_us = *time;
      }
    };
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
