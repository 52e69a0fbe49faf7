#pragma once
/// Steps as CUDA graphs, recorded once and replayed with whatever lengths and tokens the step's arrays hold: decode steps, one
/// graph a batch size, and prompts that come alone, one graph a length. Both are steps in which the host would be the slower.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/ops/cuda_memory.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

class CudaGraphs : public CudaGraphSizes {
 public:
  /// What a recorded step computes; smaller steps are padded.
  struct Size {
    std::int32_t num_tokens = 0, num_seqs = 0;
    bool is_decode() const noexcept { return num_tokens == num_seqs; }
  };
  struct Graph {
    Size size;
    cudaGraphExec_t exec = nullptr;
  };

  /// \param max_num_seqs of a step, 0: no graphs \param max_num_tokens of a step
  CudaGraphs(std::int32_t max_num_seqs, std::int32_t max_num_tokens) {
    if (max_num_seqs == 0) { return; }
    for (const std::int32_t n : batch_sizes(max_num_seqs)) { sizes_.push_back({n, n}); }
    for (const std::int32_t n : prompt_sizes(max_num_tokens)) { sizes_.push_back({n, 1}); }
  }
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;
  ~CudaGraphs() { clear(); }

  /// For a device that hangs: the graphs are lost, not waited for.
  void abandon() noexcept {
    decodes_.clear();
    prompts_.clear();
  }

  /// Calls `warm_up(size)` and then, while `stream` is being recorded, `record(size)` for every size, largest first.
  template <class WarmUp, class Record>
  void capture(cudaStream_t stream, WarmUp&& warm_up, Record&& record) {
    for (auto at = sizes_.rbegin(); at != sizes_.rend(); ++at) {
      const Size size = *at;
      warm_up(size);
      NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      std::string error;
      contain([&] { record(size); }, [&](const char* what) { error = what; });
      cudaGraph_t graph = nullptr;
      const cudaError_t status = cudaStreamEndCapture(stream, &graph);
      if (!error.empty()) {
        static_cast<void>(cudaGetLastError());
        if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
        raise(Error("recording a step of " + std::to_string(size.num_tokens) + " tokens: " + error));
      }
      kernels::detail::check_cuda(status, "cudaStreamEndCapture");
      Graph recorded{.size = size};
      const cudaError_t made = cudaGraphInstantiate(&recorded.exec, graph, 0);
      static_cast<void>(cudaGraphDestroy(graph));
      kernels::detail::check_cuda(made, "cudaGraphInstantiate");
      (size.is_decode() ? decodes_ : prompts_).push_back(recorded);
      NVL_CUDA_CHECK(cudaGraphUpload(recorded.exec, stream));
    }
    std::reverse(decodes_.begin(), decodes_.end());
    std::reverse(prompts_.begin(), prompts_.end());
  }

  /// The graph for `num_seqs` sequences of one token each, or nullptr.
  const Graph* find_decode(std::int32_t num_seqs) const noexcept { return find(decodes_, num_seqs); }
  /// The graph for `num_tokens` new tokens of one sequence, or nullptr; also where padding would cost more than an eighth.
  const Graph* find_prompt(std::int32_t num_tokens) const noexcept {
    const Graph* const graph = find(prompts_, num_tokens);
    const bool is_close = graph != nullptr && graph->size.num_tokens - num_tokens <= std::max(num_tokens / 8, 1);
    return is_close && num_tokens > min_recorded_prompt / 2 ? graph : nullptr;
  }

  void launch(const Graph& graph, cudaStream_t stream) const { NVL_CUDA_CHECK(cudaGraphLaunch(graph.exec, stream)); }

 private:
  static const Graph* find(const std::vector<Graph>& graphs, std::int32_t num_tokens) noexcept {
    if (num_tokens <= 0) { return nullptr; }
    const auto at = std::lower_bound(graphs.begin(), graphs.end(), num_tokens,
                                     [](const Graph& graph, std::int32_t n) { return graph.size.num_tokens < n; });
    return at == graphs.end() ? nullptr : &*at;
  }

  void clear() noexcept {
    for (const std::vector<Graph>* graphs : {&decodes_, &prompts_}) {
      for (const Graph& graph : *graphs) { static_cast<void>(cudaGraphExecDestroy(graph.exec)); }
    }
  }

  std::vector<Size> sizes_;
  std::vector<Graph> decodes_, prompts_;  // ascending
};

}  // namespace nvl::inline NVL_ABI
