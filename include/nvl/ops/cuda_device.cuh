#pragma once
/// One CUDA device as an engine uses it: a stream for steps and one for copies beside them, one block of memory that everything
/// is cut from, and a clock on its steps.

#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/ops/cuda_memory.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

/// A CUDA event that is destroyed with its owner.
class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDisableTiming) { NVL_CUDA_CHECK(cudaEventCreateWithFlags(&event_, flags)); }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent() {
    if (event_ != nullptr) { static_cast<void>(cudaEventDestroy(event_)); }
  }
  cudaEvent_t get() const noexcept { return event_; }
  void record(cudaStream_t stream) { NVL_CUDA_CHECK(cudaEventRecord(event_, stream)); }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Page-locked host memory, which the device copies from and to without the CPU's help.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  /// \throws OutOfMemory
  explicit PinnedBuffer(std::size_t num_bytes) : size_(num_bytes) {
    if (num_bytes == 0) { return; }
    const cudaError_t status = cudaHostAlloc(&data_, num_bytes, cudaHostAllocDefault);
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      raise(OutOfMemory(std::to_string(num_bytes) +
                        " bytes of page-locked host memory are not to be had: " + cudaGetErrorString(status)));
    }
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) { static_cast<void>(cudaFreeHost(data_)); }
  }

  std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  std::size_t size_bytes() const noexcept { return size_; }
  /// Loses the memory: freeing it would wait for a device that hangs.
  void abandon() noexcept { data_ = nullptr; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Not copyable; buffers of it do not outlive it. Every member may be called from any one thread at a time: it makes the device
/// the calling thread's current one.
class CudaDevice {
 public:
  static constexpr std::string_view name = "cuda";
  static constexpr std::size_t alignment = cuda_buffer_alignment;

  /// Zeroed memory out of the device's reserve; goes back with the device.
  class Buffer {
   public:
    Buffer() = default;
    /// \throws OutOfMemory if the reserve is used up, with the arithmetic
    Buffer(CudaDevice& device, std::size_t num_bytes) : data_(device.take(num_bytes)), size_(num_bytes) {
      if (num_bytes > 0) { NVL_CUDA_CHECK(cudaMemsetAsync(data_, 0, num_bytes, device.stream())); }
    }
    template <class T>
    T* as() const noexcept {
      return reinterpret_cast<T*>(data_);
    }
    std::size_t size_bytes() const noexcept { return size_; }

   private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
  };

  /// Page-locked host memory, whose destruction waits for copies under way. \throws OutOfMemory
  class HostBuffer {
   public:
    HostBuffer() = default;
    HostBuffer(CudaDevice& device, std::size_t num_bytes) : device_(&device), memory_(num_bytes) {}
    HostBuffer(HostBuffer&& other) noexcept : device_(std::exchange(other.device_, nullptr)), memory_(std::move(other.memory_)) {}
    HostBuffer& operator=(HostBuffer&& other) noexcept {
      std::swap(device_, other.device_);
      std::swap(memory_, other.memory_);
      return *this;
    }
    ~HostBuffer() {
      if (device_ == nullptr) { return; }
      if (device_->has_hung()) {
        memory_.abandon();
      } else {
        static_cast<void>(cudaStreamSynchronize(device_->copy_stream()));
      }
    }
    template <class T>
    T* as() const noexcept {
      return reinterpret_cast<T*>(memory_.data());
    }

   private:
    CudaDevice* device_ = nullptr;
    PinnedBuffer memory_;
  };

  /// \throws Unsupported if there is no such device; CudaError if it cannot be used.
  explicit CudaDevice(const DeviceOptions& options = {}) : options_(options) {
    select(options.ordinal);
    NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    int least = 0, greatest = 0;
    NVL_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    NVL_CUDA_CHECK(cudaStreamCreateWithPriority(&copy_stream_, cudaStreamNonBlocking, least));
    NVL_CUDA_CHECK(cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, options.ordinal));
  }

  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  /// Waits for what runs, then gives everything back. After a hung step nothing is waited for, and the memory is lost.
  ~CudaDevice() {
    if (has_hung_) { return; }
    static_cast<void>(cudaSetDevice(options_.ordinal));
    for (const cudaStream_t stream : {copy_stream_, stream_}) { static_cast<void>(cudaStreamSynchronize(stream)); }
    static_cast<void>(cudaFree(memory_));
    for (const cudaStream_t stream : {copy_stream_, stream_}) { static_cast<void>(cudaStreamDestroy(stream)); }
  }

  /// The share of the memory that the options allow, less what is in use already.
  static DeviceMemory memory(const DeviceOptions& options) {
    NVL_EXPECTS(options.memory_utilization > 0.0 && options.memory_utilization <= 1.0, "gpu_memory_utilization",
                options.memory_utilization, "in (0, 1]");
    select(options.ordinal);
    std::size_t free_bytes = 0, total_bytes = 0;
    NVL_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    const auto allowed = static_cast<std::int64_t>(static_cast<double>(total_bytes) * options.memory_utilization);
    return {.budget_bytes = allowed - static_cast<std::int64_t>(total_bytes - free_bytes), .is_for_kv_only = false};
  }

  /// Allocates what all buffers together will take. Once, before the first of them.
  /// \throws OutOfMemory with the bytes wanted and free
  void reserve(std::int64_t num_bytes) {
    NVL_EXPECTS(memory_ == nullptr, "reserve", "called again", "called once");
    make_current();
    const cudaError_t status = cudaMalloc(&memory_, static_cast<std::size_t>(num_bytes));
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      std::size_t free_bytes = 0, total_bytes = 0;
      static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
      raise(OutOfMemory("the device does not give " + std::to_string(num_bytes) + " bytes in one piece (" +
                        std::to_string(free_bytes) + " of " + std::to_string(total_bytes) +
                        " are free): " + cudaGetErrorString(status)));
    }
    reserved_ = static_cast<std::size_t>(num_bytes);
  }

  /// Uninitialised memory out of the reserve.
  std::byte* take(std::size_t num_bytes) {
    const auto size = static_cast<std::size_t>(cuda_buffer_bytes(static_cast<std::int64_t>(num_bytes)));
    if (size > reserved_ - used_) {
      raise(OutOfMemory("a buffer of " + std::to_string(num_bytes) + " bytes was not planned: " + std::to_string(used_) +
                        " of the reserved " + std::to_string(reserved_) + " bytes are in use"));
    }
    std::byte* const data = static_cast<std::byte*>(memory_) + used_;
    used_ += size;
    return data;
  }

  const DeviceOptions& options() const noexcept { return options_; }
  cudaStream_t stream() const noexcept { return stream_; }
  /// For copies between device and host that run beside a step; of lower priority. Events tie it to `stream`.
  cudaStream_t copy_stream() const noexcept { return copy_stream_; }
  int num_sms() const noexcept { return num_sms_; }
  void make_current() const { NVL_CUDA_CHECK(cudaSetDevice(options_.ordinal)); }

  /// Returns when `event` has happened. \throws CudaError if the device has failed or the time of a step is over.
  void wait(const CudaEvent& event) {
    using Clock = std::chrono::steady_clock;
    const auto give_up = Clock::now() + std::chrono::duration<double>(options_.step_timeout_seconds);
    for (std::uint32_t spins = 0;; ++spins) {
      const cudaError_t status = cudaEventQuery(event.get());
      if (status == cudaSuccess) { return; }
      if (status != cudaErrorNotReady) { kernels::detail::check_cuda(status, "a step"); }
      if (spins % 1024 == 1023) {
        if (Clock::now() >= give_up) {
          has_hung_ = true;
          raise(CudaError(static_cast<int>(cudaErrorLaunchTimeout), "a step",
                          "not done after " + std::to_string(options_.step_timeout_seconds) + " s (step_timeout_seconds)"));
        }
        std::this_thread::yield();
      }
    }
  }

  /// A step did not end in its time. What would wait for the device is left behind.
  bool has_hung() const noexcept { return has_hung_; }

  /// [seconds] that the device spent between the end of a step and the start of the next, so far.
  double idle_seconds() const noexcept { return idle_seconds_; }
  /// Counts the time from `end` of one step to `begin` of the next, both past and recorded with timing.
  void add_idle(const CudaEvent& end, const CudaEvent& begin) {
    float milliseconds = 0.0f;
    NVL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, end.get(), begin.get()));
    idle_seconds_ += std::max(milliseconds, 0.0f) * 1e-3;
  }

 private:
  static void select(std::int32_t ordinal) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
      static_cast<void>(cudaGetLastError());
      raise(Unsupported(std::string("there is no CUDA device: ") +
                        (status == cudaSuccess ? "none is visible" : cudaGetErrorString(status))));
    }
    NVL_EXPECTS(ordinal >= 0 && ordinal < count, "device ordinal", ordinal, "below the " + std::to_string(count) + " devices");
    NVL_CUDA_CHECK(cudaSetDevice(ordinal));
  }

  DeviceOptions options_;
  cudaStream_t stream_ = nullptr, copy_stream_ = nullptr;
  int num_sms_ = 0;
  void* memory_ = nullptr;
  std::size_t reserved_ = 0;
  std::size_t used_ = 0;
  double idle_seconds_ = 0.0;
  bool has_hung_ = false;
};

}  // namespace nvl::inline NVL_ABI
