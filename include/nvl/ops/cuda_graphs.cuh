#pragma once
/// Decode steps as CUDA graphs, one a batch size: recorded once, replayed with whatever lengths and tokens the step's arrays hold.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

class CudaGraphs {
 public:
  struct Graph {
    std::int32_t num_seqs = 0;  // rows of the recorded step; smaller batches are padded
    cudaGraphExec_t exec = nullptr;
  };

  static constexpr std::int32_t max_recorded_seqs = 512;  // larger batches keep the device busy without a graph

  /// 1, 2, 4, then every 8 up to `max_num_seqs`, which is the last: padding costs rows of matrix products but reads no KV.
  static std::vector<std::int32_t> sizes(std::int32_t max_num_seqs) {
    std::vector<std::int32_t> sizes;
    const std::int32_t last = std::min(max_num_seqs, max_recorded_seqs);
    for (const std::int32_t size : {1, 2, 4}) {
      if (size < last) { sizes.push_back(size); }
    }
    for (std::int32_t size = 8; size < last; size += 8) { sizes.push_back(size); }
    if (last > 0) { sizes.push_back(last); }
    return sizes;
  }

  /// [bytes] that the driver will hold for the graphs of a model; measured, not promised.
  static std::int64_t estimated_bytes(std::int32_t num_layers, std::int32_t max_num_seqs) {
    constexpr std::int64_t bytes_per_layer = 16 << 10;
    return static_cast<std::int64_t>(sizes(max_num_seqs).size()) * num_layers * bytes_per_layer;
  }

  /// \param max_num_seqs 0: no graphs
  explicit CudaGraphs(std::int32_t max_num_seqs) : sizes_(sizes(max_num_seqs)) {}
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;
  ~CudaGraphs() { clear(); }

  /// For a device that hangs: the graphs are lost, not waited for.
  void abandon() noexcept { graphs_.clear(); }

  /// Calls `warm_up(num_seqs)` and then, while `stream` is being recorded, `record(num_seqs)` for every size, largest first.
  template <class WarmUp, class Record>
  void capture(cudaStream_t stream, WarmUp&& warm_up, Record&& record) {
    for (auto size = sizes_.rbegin(); size != sizes_.rend(); ++size) {
      warm_up(*size);
      NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      std::string error;
      contain([&] { record(*size); }, [&](const char* what) { error = what; });
      cudaGraph_t graph = nullptr;
      const cudaError_t status = cudaStreamEndCapture(stream, &graph);
      if (!error.empty()) {
        static_cast<void>(cudaGetLastError());
        if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
        raise(Error("recording a decode step of " + std::to_string(*size) + " sequences: " + error));
      }
      kernels::detail::check_cuda(status, "cudaStreamEndCapture");
      Graph recorded{.num_seqs = *size};
      const cudaError_t made = cudaGraphInstantiate(&recorded.exec, graph, 0);
      static_cast<void>(cudaGraphDestroy(graph));
      kernels::detail::check_cuda(made, "cudaGraphInstantiate");
      graphs_.push_back(recorded);
      NVL_CUDA_CHECK(cudaGraphUpload(recorded.exec, stream));
    }
    std::reverse(graphs_.begin(), graphs_.end());
  }

  /// The graph of the least size that `num_seqs` fit in, or nullptr.
  const Graph* find(std::int32_t num_seqs) const noexcept {
    if (num_seqs <= 0) { return nullptr; }
    const auto at = std::lower_bound(graphs_.begin(), graphs_.end(), num_seqs,
                                     [](const Graph& graph, std::int32_t n) { return graph.num_seqs < n; });
    return at == graphs_.end() ? nullptr : &*at;
  }

  void launch(const Graph& graph, cudaStream_t stream) const { NVL_CUDA_CHECK(cudaGraphLaunch(graph.exec, stream)); }

 private:
  void clear() noexcept {
    for (const Graph& graph : graphs_) { static_cast<void>(cudaGraphExecDestroy(graph.exec)); }
    graphs_.clear();
  }

  std::vector<std::int32_t> sizes_;
  std::vector<Graph> graphs_;  // ascending
};

}  // namespace nvl::inline NVL_ABI
