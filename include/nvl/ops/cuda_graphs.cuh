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
  /// \param planned_bytes what the memory plan has for all graphs
  /// \throws OutOfMemory with the bytes needed and free if there is no memory for a graph or for a kernel's first use; CudaError;
  ///         what `warm_up` and `record` throw
  template <class WarmUp, class Record>
  void capture(cudaStream_t stream, std::int64_t planned_bytes, WarmUp&& warm_up, Record&& record) {
    for (auto at = sizes_.rbegin(); at != sizes_.rend(); ++at) {
      const Size size = *at;
      explain_errors(size, planned_bytes, [&] {
        warm_up(size);
        Recording recording(stream);
        record(size);
        Graph& graph = (size.is_decode() ? decodes_ : prompts_).emplace_back(Graph{.size = size});
        NVL_CUDA_CHECK(cudaGraphInstantiate(&graph.exec, recording.end(), 0));
        NVL_CUDA_CHECK(cudaGraphUpload(graph.exec, stream));
      });
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
  /// A stream that is being recorded. Whatever happens, it no longer is when this ends.
  class Recording {
   public:
    explicit Recording(cudaStream_t stream) : stream_(stream) {
      NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() {
      if (stream_ != nullptr) { static_cast<void>(cudaStreamEndCapture(stream_, &graph_)); }
      if (graph_ != nullptr) { static_cast<void>(cudaGraphDestroy(graph_)); }
      static_cast<void>(cudaGetLastError());
    }
    /// What was recorded, until this ends.
    cudaGraph_t end() {
      NVL_CUDA_CHECK(cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph_));
      return graph_;
    }

   private:
    cudaStream_t stream_;
    cudaGraph_t graph_ = nullptr;
  };

  /// Calls `work` and says in its CUDA errors what for; those for lack of memory with the arithmetic.
  template <class Work>
  static void explain_errors(Size size, std::int64_t planned_bytes, Work&& work) {
#if defined(__cpp_exceptions)
    const std::string doing = "recording a step of " + std::to_string(size.num_tokens) + " tokens";
    try {
      work();
    } catch (const CudaError& error) {
      if (error.code() != static_cast<int>(cudaErrorMemoryAllocation)) { raise(CudaError(error.code(), doing, error.what())); }
      std::size_t free_bytes = 0, total_bytes = 0;
      static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
      raise(OutOfMemory(
          doing + ": the device gives no more memory. All graphs need about " + std::to_string(planned_bytes) + " bytes; " +
          std::to_string(free_bytes) + " of " + std::to_string(total_bytes) +
          " are free. Leave more with gpu_memory_utilization, or do without graphs (enforce_eager): " + error.what()));
    }
#else
    static_cast<void>(size), static_cast<void>(planned_bytes);
    work();
#endif
  }

  static const Graph* find(const std::vector<Graph>& graphs, std::int32_t num_tokens) noexcept {
    if (num_tokens <= 0) { return nullptr; }
    const auto at = std::lower_bound(graphs.begin(), graphs.end(), num_tokens,
                                     [](const Graph& graph, std::int32_t n) { return graph.size.num_tokens < n; });
    return at == graphs.end() ? nullptr : &*at;
  }

  void clear() noexcept {
    for (const std::vector<Graph>* graphs : {&decodes_, &prompts_}) {
      for (const Graph& graph : *graphs) {
        if (graph.exec != nullptr) { static_cast<void>(cudaGraphExecDestroy(graph.exec)); }
      }
    }
  }

  std::vector<Size> sizes_;
  std::vector<Graph> decodes_, prompts_;  // ascending
};

}  // namespace nvl::inline NVL_ABI
