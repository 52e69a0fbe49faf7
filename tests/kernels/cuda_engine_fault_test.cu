// What a device that fails does to an engine. Tests of a failing step leave the process without a usable device: run them one by
// one.

#include "support/cuda_tiny_model.cuh"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

using namespace nvl;
using namespace nvl_test;
using Catch::Matchers::ContainsSubstring;

namespace {

__global__ void write_nowhere_kernel() { *reinterpret_cast<volatile int*>(8) = 1; }

/// Runs until the host says otherwise, at most ten seconds.
__global__ void hang_kernel(const volatile int* released) {
  const long long start = clock64();
  while (*released == 0 && clock64() - start < 20'000'000'000LL) { __nanosleep(1000); }
}

enum class Fault { none, illegal_write, hang, no_memory_in_warm_up, no_memory_in_recording };
Fault fault_to_come = Fault::none;
int* released = nullptr;

/// Breaks at the third step after a fault was chosen, or while graphs are recorded, at the second size.
class Faulty : public PagedAttention<float, cuda_head_dim> {
 public:
  Faulty(const AttentionShape& shape, Ops& ops) : PagedAttention(shape, ops), stream_(ops.stream()) {}
  void plan(const AttentionMetadata& metadata) {
    if (fault_to_come != Fault::none) { ++steps_; }
    if (steps_ == 3 && fault_to_come == Fault::illegal_write) { write_nowhere_kernel<<<1, 1, 0, stream_>>>(); }
    if (steps_ == 3 && fault_to_come == Fault::hang) { hang_kernel<<<1, 1, 0, stream_>>>(released); }
    refuse_memory();
    PagedAttention::plan(metadata);
  }

 private:
  /// As if a kernel of the plan had found no memory to be loaded into. Each size is one step of warm-up and one of recording.
  void refuse_memory() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    NVL_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
    const bool is_recording = status != cudaStreamCaptureStatusNone;
    const bool refuses = fault_to_come == Fault::no_memory_in_warm_up     ? steps_ == 3 && !is_recording
                         : fault_to_come == Fault::no_memory_in_recording ? steps_ == 4 && is_recording
                                                                          : false;
    if (refuses) { kernels::detail::check_cuda(cudaErrorMemoryAllocation, "loading a kernel"); }
  }

  cudaStream_t stream_;
  int steps_ = 0;
};

using FaultyEngine = Engine<PrefillFirstScheduler, PrefixCacheAllocator, Faulty, SingleDevice>;

EngineOptions eager_options() {
  EngineOptions options = cuda_options();
  options.device.use_graphs = false;
  return options;
}

/// Two requests on an engine that fails: each ends once, the engine says why and takes no more, and its destructor returns.
void check_failure(Fault fault, const EngineOptions& options, const char* words) {
  int ends = 0;
  fault_to_come = Fault::none;
  {
    FaultyEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
    fault_to_come = fault;
    for (int i = 0; i < 2; ++i) {
      gpu.submit(greedy_request(tiny_prompt(i, 20), 30), {.on_token = {}, .on_finish = [&](const Completion& done) {
                                                            CHECK(done.finish_reason == FinishReason::error);
                                                            for (const TokenId id : done.output_ids) { CHECK(id >= 0); }
                                                            ++ends;
                                                          }});
    }
    while (gpu.has_work()) { gpu.step(); }
    CHECK(ends == 2);
    CHECK_THAT(gpu.failure(), ContainsSubstring(words));
    CHECK_THROWS_AS(gpu.submit(greedy_request(tiny_prompt(1, 5), 1)), Error);
  }
  CHECK(ends == 2);
}

}  // namespace

TEST_CASE("memory that runs out while graphs are recorded is an error with the arithmetic and leaves nothing behind",
          "[engine][gpu][fault]") {
  require_device();
  fault_to_come = Fault::none;
  { FaultyEngine first(cuda_tiny_config(), cuda_tiny_weights(), cuda_options()); }  // what the libraries load stays
  const std::size_t before = device_bytes_in_use();
  for (const Fault fault : {Fault::no_memory_in_warm_up, Fault::no_memory_in_recording}) {
    fault_to_come = fault;
    std::string said = "accepted";
    try {
      FaultyEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
    } catch (const OutOfMemory& error) { said = error.what(); }
    fault_to_come = Fault::none;
    const auto needed =
        std::to_string(CudaGraphSizes::estimated_bytes(cuda_tiny_config().num_layers, cuda_options().max_num_seqs));
    CHECK_THAT(said, ContainsSubstring("recording a step of ") && ContainsSubstring("need about " + needed + " bytes") &&
                         ContainsSubstring(" are free") && ContainsSubstring("loading a kernel"));
    CHECK(device_bytes_in_use() <= before + (4 << 20));
    FaultyEngine next(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
    CHECK(next.generate({greedy_request(tiny_prompt(1, 20), 5)}).front().output_ids.size() == 5);
  }
}

TEST_CASE("a step that never ends is given up after the time that the options allow", "[engine][gpu][fault]") {
  require_device();
  NVL_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&released), sizeof(int), cudaHostAllocMapped));
  *released = 0;
  EngineOptions options = eager_options();
  options.device.step_timeout_seconds = 0.3;
  const auto begin = std::chrono::steady_clock::now();
  check_failure(Fault::hang, options, "step_timeout_seconds");
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(8));
  *const_cast<volatile int*>(released) = 1;
  static_cast<void>(cudaDeviceSynchronize());
}

TEST_CASE("an illegal address ends every request once and nothing hangs", "[engine][gpu][fault]") {
  require_device();
  check_failure(Fault::illegal_write, eager_options(), "illegal memory access");
}
