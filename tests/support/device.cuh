#pragma once
/// What tests of kernels share: skipping without a device, and device memory that shows what was not written.

#include <nvl/kernels/detail/launch.cuh>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl_test {

/// Ends the test as skipped, not passed, where there is no GPU.
inline void require_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) { SKIP("no CUDA device"); }
}

/// Whether new device memory is filled with 0xff bytes. With NVL_TEST_NO_POISON in the environment it is not: a tool that finds
/// reads of memory that nobody wrote would count the filling as writing.
inline bool poisons_device_memory() {
  static const bool poisons = std::getenv("NVL_TEST_NO_POISON") == nullptr;
  return poisons;
}

/// `size` elements in device memory; what nobody wrote reads as 0xff bytes: NaN in every float type, -1 in integers. Filled and
/// uploaded when the constructor or `upload` returns, also for streams that do not wait for the null stream.
template <class T>
class DeviceVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceVector() = default;
  explicit DeviceVector(std::size_t size) : size_(size) {
    if (size == 0) { return; }
    NVL_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)));
    if (poisons_device_memory()) {
      NVL_CUDA_CHECK(cudaMemset(data_, 0xff, size * sizeof(T)));
      NVL_CUDA_CHECK(cudaStreamSynchronize(nullptr));
    }
  }
  explicit DeviceVector(std::span<const T> values) : DeviceVector(values.size()) { upload(values); }
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(std::span<const T>(values)) {}
  DeviceVector(DeviceVector&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  DeviceVector& operator=(DeviceVector&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceVector() { static_cast<void>(cudaFree(data_)); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

  void upload(std::span<const T> values) {
    if (values.empty()) { return; }
    NVL_CUDA_CHECK(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
    NVL_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }
  /// Waits for the device; throws what any kernel before it did wrong.
  std::vector<T> to_host() const {
    std::vector<T> values(size_);
    NVL_CUDA_CHECK(cudaDeviceSynchronize());
    if (size_ != 0) { NVL_CUDA_CHECK(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost)); }
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace nvl_test
