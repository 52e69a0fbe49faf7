#pragma once
/// Device memory of a benchmark: buffers that rotate so that no call finds its data in the L2 cache, filled with random normal
/// values (zeros run faster than real data), and the check that comes before every measurement.

#include <nvl/core/dtype.hpp>
#include <nvl/core/philox.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/detail/vec.cuh>
#include <nvl/kernels/reference/error_measure.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl_bench {

namespace kernels = nvl::kernels;

/// [bytes] that buffers rotating through the L2 cache must hold together: five times what the cache holds.
inline std::size_t cold_bytes() {
  int device = 0, l2 = 0;
  NVL_CUDA_CHECK(cudaGetDevice(&device));
  NVL_CUDA_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device));
  return std::size_t{5} * static_cast<std::size_t>(l2);
}

/// How many sets of buffers make every call cold when one call touches `bytes_per_call`. At most `max_sets`: calls that touch
/// so little that these are not enough have their cache flushed before each replay (KernelTimer sees to it).
inline int num_cold_sets(std::size_t bytes_per_call, int max_sets = 64) {
  const std::size_t bytes = std::max<std::size_t>(bytes_per_call, 1);
  return static_cast<int>(std::min<std::size_t>((cold_bytes() + bytes - 1) / bytes, static_cast<std::size_t>(max_sets)));
}

/// `num_sets` arrays of `size` elements in one allocation, each aligned to 256 bytes. What nobody wrote reads as 0xff bytes: NaN.
template <class T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t size, int num_sets = 1)
      : size_(size),
        stride_((size * sizeof(T) + 255) / 256 * 256 / sizeof(T)),
        num_sets_(num_sets) {
    static_assert(256 % sizeof(T) == 0, "elements fill the alignment");
    if (size == 0) { return; }
    NVL_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), total() * sizeof(T)));
    NVL_CUDA_CHECK(cudaMemset(data_, 0xff, total() * sizeof(T)));
  }
  explicit DeviceBuffer(const std::vector<T>& values, int num_sets = 1) : DeviceBuffer(values.size(), num_sets) {
    for (int i = 0; i < num_sets; ++i) { upload(values, i); }
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer() { static_cast<void>(cudaFree(data_)); }

  /// Array `call_index % num_sets()`.
  T* set(int call_index) { return data_ + static_cast<std::size_t>(call_index % num_sets_) * stride_; }
  const T* set(int call_index) const { return const_cast<DeviceBuffer&>(*this).set(call_index); }
  T* data() noexcept { return data_; }  ///< array 0
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }  ///< of one array
  int num_sets() const noexcept { return num_sets_; }
  std::size_t total() const noexcept { return stride_ * static_cast<std::size_t>(num_sets_); }  ///< of all arrays, with padding

  void upload(std::span<const T> values, int set_index = 0) {
    if (values.empty()) { return; }
    NVL_CUDA_CHECK(cudaMemcpy(set(set_index), values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  }
  /// Of one array. Waits for the device; throws what any kernel before it did wrong.
  std::vector<T> to_host(int set_index = 0) const { return to_host(set_index, 0, size_); }
  std::vector<T> to_host(int set_index, std::size_t first, std::size_t count) const {
    std::vector<T> values(count);
    NVL_CUDA_CHECK(cudaDeviceSynchronize());
    if (count != 0) {
      NVL_CUDA_CHECK(cudaMemcpy(values.data(), set(set_index) + first, count * sizeof(T), cudaMemcpyDeviceToHost));
    }
    return values;
  }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(stride_, other.stride_);
    std::swap(num_sets_, other.num_sets_);
  }

  T* data_ = nullptr;
  std::size_t size_ = 0, stride_ = 0;
  int num_sets_ = 1;
};

/// Four values of a standard normal distribution (Box & Muller 1958) from one Philox block.
template <class T>
NVL_KERNEL void random_normal_kernel(T* out, std::size_t size, std::uint64_t seed, float mean, float deviation) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t quad = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; quad * 4 < size; quad += step) {
    const auto low = static_cast<std::uint32_t>(quad), high = static_cast<std::uint32_t>(quad >> 32);
    const nvl::PhiloxBlock r = nvl::philox4x32({{low, high, 0, 1}}, seed);
    float normal[4];
    for (int i = 0; i < 4; i += 2) {
      const float u = (static_cast<float>(r.word[i]) + 0.5f) * 0x1p-32f;
      const float radius = sqrtf(-2.0f * logf(fminf(u, 1.0f - 0x1p-24f)));
      sincospif(2.0f * (static_cast<float>(r.word[i + 1]) * 0x1p-32f), &normal[i], &normal[i + 1]);
      normal[i] *= radius;
      normal[i + 1] *= radius;
    }
    for (std::size_t i = 0; i < 4 && quad * 4 + i < size; ++i) {
      out[quad * 4 + i] = kernels::detail::from_float<T>(mean + deviation * normal[i]);
    }
  }
}

/// Integers evenly from [0, bound).
template <class T>
NVL_KERNEL void random_ids_kernel(T* out, std::size_t size, std::uint64_t seed, std::uint32_t bound) {
  const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) { return; }
  const nvl::PhiloxBlock r = nvl::philox4x32({{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), 0, 2}}, seed);
  out[i] = static_cast<T>((std::uint64_t{r.word[0]} * bound) >> 32);
}

/// Waits until `out` is filled. The same values for the same seed on every GPU.
template <class T>
void fill_random_normal(T* out, std::size_t size, std::uint64_t seed, float deviation = 1.0f, float mean = 0.0f) {
  if (size == 0) { return; }
  const std::size_t blocks = std::min<std::size_t>((size / 4 + 255) / 256 + 1, 132 * 16);
  random_normal_kernel<T><<<static_cast<unsigned>(blocks), 256>>>(out, size, seed, mean, deviation);
  NVL_CUDA_CHECK(cudaGetLastError());
  NVL_CUDA_CHECK(cudaDeviceSynchronize());
}
template <class T>
void fill_random_ids(T* out, std::size_t size, std::uint64_t seed, std::uint32_t bound) {
  if (size == 0) { return; }
  random_ids_kernel<T><<<static_cast<unsigned>((size + 255) / 256), 256>>>(out, size, seed, bound);
  NVL_CUDA_CHECK(cudaGetLastError());
  NVL_CUDA_CHECK(cudaDeviceSynchronize());
}

/// `num_sets` arrays of random normal values, each different from the others.
template <class T>
DeviceBuffer<T> random_normal_buffer(std::size_t size, int num_sets, std::uint64_t seed, float deviation = 1.0f) {
  DeviceBuffer<T> buffer(size, num_sets);
  fill_random_normal(buffer.data(), buffer.total(), seed, deviation);
  return buffer;
}

/// `count` elements of device memory at `data`. Waits for the device.
template <class T>
std::vector<T> copy_to_host(const T* data, std::size_t count) {
  std::vector<T> values(count);
  NVL_CUDA_CHECK(cudaDeviceSynchronize());
  if (count != 0) { NVL_CUDA_CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost)); }
  return values;
}

/// The check before a measurement. \throws std::runtime_error if `error` is NaN or above `bound`: a wrong kernel has no speed
inline void verify(const std::string& what, double error, double bound) {
  if (error <= bound) { return; }
  char numbers[96];
  std::snprintf(numbers, sizeof numbers, ": NMSE %.3g, at most %.3g is right", error, bound);
  throw std::runtime_error(what + " is wrong" + numbers);
}
template <class T>
void verify(const std::string& what, const std::vector<T>& actual, const std::vector<double>& expected,
            double bound = nvl::reference::max_nmse<T>) {
  verify(what, nvl::reference::nmse(actual, expected), bound);
}

}  // namespace nvl_bench
