#include "support/device.cuh"

#include <nvl/attention/cuda_kv_transfer.cuh>
#include <nvl/core/dtype.hpp>
#include <nvl/ops/cuda_device.cuh>
#include <nvl/testing/check_kv_transfer.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace {

/// Caches in the memory of one device, or of two.
template <class T>
struct DeviceCaches {
  explicit DeviceCaches(std::int32_t second) : from(nvl::DeviceOptions{}), to(nvl::DeviceOptions{.ordinal = second}) {
    from.reserve(reserve_bytes);
    to.reserve(reserve_bytes);
  }

  nvl::CudaDevice& device(int side) { return side == 0 ? from : to; }
  T* allocate(int side, std::size_t n) {
    device(side).make_current();
    return reinterpret_cast<T*>(device(side).take(n * sizeof(T)));
  }
  void write(T* memory, std::span<const T> values) {
    NVL_CUDA_CHECK(cudaMemcpy(memory, values.data(), values.size_bytes(), cudaMemcpyDefault));
  }
  std::vector<T> read(const T* memory, std::size_t n) {
    for (nvl::CudaDevice* one : {&from, &to}) {
      one->make_current();
      NVL_CUDA_CHECK(cudaDeviceSynchronize());
    }
    std::vector<T> values(n);
    NVL_CUDA_CHECK(cudaMemcpy(values.data(), memory, n * sizeof(T), cudaMemcpyDefault));
    return values;
  }

  static constexpr std::int64_t reserve_bytes = std::int64_t{32} << 20;
  nvl::CudaDevice from, to;
};

/// Something that keeps the stream busy for a while, then writes.
__global__ void write_late(float* memory, int n, float value, long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) { memory[i] = value; }
}

}  // namespace

TEMPLATE_TEST_CASE("CudaKvTransfer keeps the promises of KvTransfer on one device", "[kernel][gpu]", nvl::bf16, nvl::fp16,
                   float) {
  nvl_test::require_device();
  DeviceCaches<TestType> caches(0);
  CHECK(nvl::testing::check_kv_transfer<nvl::CudaKvTransfer<TestType>>(caches).text() == "");
}

TEST_CASE("CudaKvTransfer keeps the promises of KvTransfer between two devices", "[kernel][gpu]") {
  nvl_test::require_device();
  int count = 0;
  NVL_CUDA_CHECK(cudaGetDeviceCount(&count));
  if (count < 2) { SKIP("one CUDA device only"); }
  DeviceCaches<nvl::bf16> caches(1);
  CHECK(nvl::testing::check_kv_transfer<nvl::CudaKvTransfer<nvl::bf16>>(caches).text() == "");
}

TEST_CASE("a transfer writes behind the steps that were launched before it", "[kernel][gpu]") {
  nvl_test::require_device();
  DeviceCaches<float> caches(0);
  const nvl::KvLayout layout{.num_blocks = 4, .block_size = 16, .num_kv_heads = 1, .head_dim = 16};
  const auto n = static_cast<std::size_t>(layout.layer_elements());
  float* const from = caches.allocate(0, n);
  float* const to = caches.allocate(1, n);
  caches.write(from, std::vector<float>(n, 7.0f));
  caches.write(to, std::vector<float>(n, 0.0f));
  nvl::CudaKvTransfer<float> transfer(caches.from, {from, layout, 1}, caches.to, {to, layout, 1});
  caches.to.make_current();
  write_late<<<1, 256, 0, caches.to.stream()>>>(to, static_cast<int>(n), 1.0f, 50'000'000);
  transfer.start(std::vector<nvl::BlockCopy>{{nvl::BlockId{0}, nvl::BlockId{2}}});
  CHECK(transfer.num_done() == 0);
  const std::vector<float> values = caches.read(to, n);
  const auto block = static_cast<std::size_t>(layout.block_elements());
  CHECK(values[0] == 1.0f);
  CHECK(values[2 * block] == 7.0f);
  CHECK(values[3 * block - 1] == 7.0f);
  CHECK(values[3 * block] == 1.0f);
  CHECK(transfer.num_done() == 1);
}
