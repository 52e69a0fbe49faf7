#pragma once
/// Time of a kernel as it runs inside a step: in a graph, back to back with others.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {
namespace kernels::detail {

struct DestroyStream {
  void operator()(cudaStream_t stream) const noexcept { static_cast<void>(cudaStreamDestroy(stream)); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const noexcept { static_cast<void>(cudaEventDestroy(event)); }
};
struct DestroyGraph {
  void operator()(cudaGraph_t graph) const noexcept { static_cast<void>(cudaGraphDestroy(graph)); }
};
struct DestroyGraphExec {
  void operator()(cudaGraphExec_t graph) const noexcept { static_cast<void>(cudaGraphExecDestroy(graph)); }
};
template <class Handle, class Destroy>
using CudaOwner = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;
using StreamOwner = CudaOwner<cudaStream_t, DestroyStream>;
using EventOwner = CudaOwner<cudaEvent_t, DestroyEvent>;
using GraphOwner = CudaOwner<cudaGraph_t, DestroyGraph>;
using GraphExecOwner = CudaOwner<cudaGraphExec_t, DestroyGraphExec>;

/// On a stream of its own, which waits for nothing else and which nothing else waits for.
class GraphTimer {
 public:
  GraphTimer() {
    cudaStream_t stream = nullptr;
    NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
    for (EventOwner* event : {&begin_, &end_}) {
      cudaEvent_t raw = nullptr;
      NVL_CUDA_CHECK(cudaEventCreate(&raw));
      event->reset(raw);
    }
  }

  cudaStream_t stream() const noexcept { return stream_.get(); }

  /// Captures `launch(i, stream)` for i in [0, num_launches); `time_us` then measures that graph.
  template <class Launch>
  void capture(int num_launches, Launch&& launch) {
    NVL_CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
    bool launched = false;
    contain(
        [&] {
          for (int i = 0; i < num_launches; ++i) { launch(i, stream()); }
          launched = true;
        },
        [&](const char* message) { error_ = message; });
    cudaGraph_t graph = nullptr;
    const cudaError_t status = cudaStreamEndCapture(stream(), &graph);
    const GraphOwner owner(graph);
    if (!launched) { raise(CudaError(static_cast<int>(cudaErrorStreamCaptureInvalidated), "capture of a timed kernel", error_)); }
    NVL_CUDA_CHECK(status);
    cudaGraphExec_t exec = nullptr;
    NVL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    exec_.reset(exec);
    num_launches_ = num_launches;
  }

  /// [us] of one launch: the median over `num_replays` (>= 1) replays. Waits for the device.
  float time_us(int num_replays) {
    std::vector<float> times(static_cast<std::size_t>(num_replays));
    for (float& time : times) {
      NVL_CUDA_CHECK(cudaEventRecord(begin_.get(), stream()));
      NVL_CUDA_CHECK(cudaGraphLaunch(exec_.get(), stream()));
      NVL_CUDA_CHECK(cudaEventRecord(end_.get(), stream()));
      NVL_CUDA_CHECK(cudaEventSynchronize(end_.get()));
      NVL_CUDA_CHECK(cudaEventElapsedTime(&time, begin_.get(), end_.get()));
    }
    const auto middle = times.begin() + num_replays / 2;
    std::nth_element(times.begin(), middle, times.end());
    return *middle * 1000.0f / static_cast<float>(num_launches_);
  }

 private:
  StreamOwner stream_;
  EventOwner begin_;
  EventOwner end_;
  GraphExecOwner exec_;
  int num_launches_ = 1;
  std::string error_;
};

}  // namespace kernels::detail
}  // namespace nvl::inline NVL_ABI
