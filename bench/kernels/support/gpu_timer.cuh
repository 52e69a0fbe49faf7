#pragma once
/// How long a kernel takes: a CUDA graph of many calls is replayed between two events, so that neither the host nor the launch
/// path is measured. Cold: each call works on the next set of buffers, and together these are larger than five L2 caches. Warm:
/// every call works on the same set. Nothing is subtracted; what an empty kernel costs in the same harness is reported beside.

#include "bench/kernels/support/device_buffer.cuh"
#include "bench/kernels/support/kernel_bench_options.hpp"
#include "bench/kernels/support/kernel_report.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace nvl_bench {

/// Reads `size` 16-byte words, eight loads of each thread in flight. `sink` is never written with real data. Loads are plain ones:
/// lines loaded as evict-first would leave what is in the L2 cache where it is.
template <int threads>
NVL_KERNEL void __launch_bounds__(threads) read_kernel(const uint4* data, std::size_t size, unsigned* sink) {
  constexpr int unroll = 8;
  const std::size_t first = std::size_t{blockIdx.x} * threads * unroll + threadIdx.x;
  uint4 words[unroll];
#pragma unroll
  for (int i = 0; i < unroll; ++i) {
    const std::size_t place = first + std::size_t{threads} * static_cast<std::size_t>(i);
    words[i] = place < size ? __ldcg(data + place) : make_uint4(0, 0, 0, 0);
  }
  unsigned sum = 0;
#pragma unroll
  for (int i = 0; i < unroll; ++i) { sum ^= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w; }
  if (sum == 0x9e3779b9u && sink != nullptr) { *sink = sum; }
}

/// Enqueues a read of `size` 16-byte words.
inline void launch_read(const uint4* data, std::size_t size, cudaStream_t stream) {
  constexpr std::size_t threads = 512, words_per_block = threads * 8;
  const auto blocks = static_cast<unsigned>((size + words_per_block - 1) / words_per_block);
  read_kernel<threads><<<blocks, threads, 0, stream>>>(data, size, nullptr);
  NVL_CUDA_CHECK(cudaGetLastError());
}

/// Takes `cycles` of the SM's clock: the host gets ahead of the device, so that no gap between an event and a graph
/// is the host's.
template <long long cycles>
NVL_KERNEL void delay_kernel() {
  const long long start = clock64();
  while (clock64() - start < cycles) { __nanosleep(500); }
}

template <int threads>
NVL_KERNEL void __launch_bounds__(threads) empty_kernel() {
  kernels::detail::wait_for_previous();
  kernels::detail::let_next_start();
}

/// Owns a stream, two events and the buffer that is read to flush the L2 cache. Calls are `launch(call_index, stream)`, which
/// enqueue kernels on `stream` and nothing else, as capture into a graph demands.
class KernelTimer {
 public:
  explicit KernelTimer(TimerOptions options = {}) : options_(options), flush_buffer_(flush_words) {
    NVL_CUDA_CHECK(cudaMemset(flush_buffer_.data(), 1, flush_words * sizeof(uint4)));
    NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    NVL_CUDA_CHECK(cudaEventCreate(&begin_));
    NVL_CUDA_CHECK(cudaEventCreate(&end_));
  }
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;
  ~KernelTimer() {
    static_cast<void>(cudaEventDestroy(end_));
    static_cast<void>(cudaEventDestroy(begin_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  const TimerOptions& options() const { return options_; }
  cudaStream_t stream() const { return stream_; }

  /// Call i works on buffer set i % num_sets. Sets of fewer than five L2 caches together have the cache flushed before every
  /// replay, and then each set is used once in it. `bytes_per_call` is what one call touches.
  template <class Launch>
  KernelTime cold(Launch&& launch, int num_sets, std::size_t bytes_per_call) {
    const bool enough = bytes_per_call * static_cast<std::size_t>(num_sets) >= cold_bytes();
    // More calls than sets would find the data of the first round in the cache.
    const int rounds = enough ? (num_calls(launch) + num_sets - 1) / num_sets : 1;
    return measure(std::forward<Launch>(launch), num_sets * rounds, !enough);
  }

  /// Every call works on set 0.
  template <class Launch>
  KernelTime warm(Launch&& launch) {
    return measure([&](int, cudaStream_t stream) { launch(0, stream); }, num_calls(launch), false);
  }

  /// What the op adds to a chain of other kernels, each overlapping the end of the one before: the time of (neighbour, op)
  /// and that of the neighbour alone, in graphs of the same length. Cold if both use the call index to rotate buffers.
  template <class Neighbour, class Launch>
  ChainTime in_chain(Neighbour&& neighbour, Launch&& launch, int num_calls = 0) {
    const int calls = std::max(num_calls, options_.min_calls);
    ChainTime time;
    time.neighbour = measure(neighbour, calls, false);
    time.both = measure(
        [&](int i, cudaStream_t stream) {
          neighbour(i, stream);
          launch(i, stream);
        },
        calls, false);
    return time;
  }

  /// How many calls go into a graph: options().min_calls, but no more than 4 ms of them, where nothing is left to amortise and
  /// the GPU would only get hot. At least one.
  template <class Launch>
  int num_calls(Launch&& launch) {
    const double us = measure(launch, 1, false, 1).median_us;
    return static_cast<int>(std::clamp(4000.0 / us, 1.0, static_cast<double>(options_.min_calls)));
  }

  /// [us] of one call of `num_calls` in a graph, over options().replays replays or over `replays`.
  template <class Launch>
  KernelTime measure(Launch&& launch, int num_calls, bool flush_before_replay, int replays = 0) {
    const Graph graph(stream_, [&] {
      for (int i = 0; i < num_calls; ++i) { launch(i, stream_); }
    });
    std::vector<double> us;
    for (int replay = -options_.warmup; replay < (replays > 0 ? replays : options_.replays); ++replay) {
      if (flush_before_replay) { flush_l2(); }
      delay_kernel<50'000><<<1, 1, 0, stream_>>>();
      NVL_CUDA_CHECK(cudaEventRecord(begin_, stream_));
      NVL_CUDA_CHECK(cudaGraphLaunch(graph.exec, stream_));
      NVL_CUDA_CHECK(cudaEventRecord(end_, stream_));
      NVL_CUDA_CHECK(cudaEventSynchronize(end_));
      float ms = 0;
      NVL_CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      if (replay >= 0) { us.push_back(1000.0 * static_cast<double>(ms) / num_calls); }
    }
    return KernelTime::of(std::move(us), num_calls);
  }

  /// The kernels of one call, with what they take of the device.
  template <class Launch>
  std::vector<KernelResources> describe(Launch&& launch) {
    const Graph graph(stream_, [&] { launch(0, stream_); });
    std::size_t count = 0;
    NVL_CUDA_CHECK(cudaGraphGetNodes(graph.graph, nullptr, &count));
    std::vector<cudaGraphNode_t> nodes(count);
    NVL_CUDA_CHECK(cudaGraphGetNodes(graph.graph, nodes.data(), &count));
    std::vector<KernelResources> kernels;
    for (const cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      NVL_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
      if (type != cudaGraphNodeTypeKernel) { continue; }
      kernels.push_back(resources_of(node));
    }
    return kernels;
  }

  /// Enqueues a read of 1 GiB.
  void flush_l2() { launch_read(flush_buffer_.data(), flush_words, stream_); }

  /// One empty kernel in a graph, and one of a chain of empty kernels with overlap: the least that anything measures here.
  HarnessOverhead overhead() {
    const auto launch = [](int, cudaStream_t stream) {
      const kernels::detail::LaunchConfig config{.block = dim3(32), .stream = stream, .overlap_previous = true};
      NVL_CUDA_CHECK(kernels::detail::launch(config, empty_kernel<32>));
    };
    return {.empty_graph_us = measure(launch, 1, false).median_us, .empty_call_us = measure(launch, 100, false).median_us};
  }

 private:
  static constexpr std::size_t flush_words = (std::size_t{1} << 30) / sizeof(uint4);

  /// What `enqueue` puts on the stream, captured.
  struct Graph {
    template <class Enqueue>
    Graph(cudaStream_t stream, Enqueue&& enqueue) {
      NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      try {
        enqueue();
      } catch (...) {
        static_cast<void>(cudaStreamEndCapture(stream, &graph));
        if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
        throw;
      }
      NVL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
      NVL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() {
      static_cast<void>(cudaGraphExecDestroy(exec));
      static_cast<void>(cudaGraphDestroy(graph));
    }
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
  };

  static KernelResources resources_of(cudaGraphNode_t node) {
    KernelResources r;
    cudaKernelNodeParams params{};
    cudaFuncAttributes attributes{};
    if (cudaGraphKernelNodeGetParams(node, &params) != cudaSuccess) {  // a kernel of a library that loads its own modules
      static_cast<void>(cudaGetLastError());
      return r;
    }
    r.grid[0] = params.gridDim.x, r.grid[1] = params.gridDim.y, r.grid[2] = params.gridDim.z;
    r.block[0] = params.blockDim.x, r.block[1] = params.blockDim.y, r.block[2] = params.blockDim.z;
    r.shared_bytes = params.sharedMemBytes;
    if (cudaFuncGetAttributes(&attributes, params.func) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return r;
    }
    r.registers = attributes.numRegs;
    r.shared_bytes += attributes.sharedSizeBytes;
    r.local_bytes = attributes.localSizeBytes;
    const char* name = nullptr;
    if (cudaFuncGetName(&name, params.func) == cudaSuccess && name != nullptr) { r.name = name; }
    return r;
  }

  TimerOptions options_;
  DeviceBuffer<uint4> flush_buffer_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace nvl_bench
