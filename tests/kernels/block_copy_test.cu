#include "kernels/block_copy_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/block_copy.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using nvl::bf16;
using nvl::BlockCopy;
using nvl::BlockId;
using nvl::BlockTransfer;
using nvl::fp16;
using nvl::KvLayout;
using nvl_test::DeviceVector;
using nvl_test::to_floats;

BlockCopy copy_of(unsigned from, unsigned to) { return {.from = BlockId{from}, .to = BlockId{to}}; }

BlockTransfer transfer_of(unsigned device, unsigned host) { return {.device = BlockId{device}, .host = nvl::HostBlockId{host}}; }

std::size_t offset(const KvLayout& layout, int layer, BlockId block) {
  return static_cast<std::size_t>(layer * layout.layer_elements() + nvl::index_of(block) * layout.block_elements());
}

/// One copy after the other, block by block.
template <class T>
std::vector<T> copied_in_order(std::vector<T> kv, const KvLayout& layout, int num_layers, const std::vector<BlockCopy>& copies) {
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const BlockCopy& copy : copies) {
      const std::vector<T> block(
          kv.begin() + static_cast<std::ptrdiff_t>(offset(layout, layer, copy.from)),
          kv.begin() + static_cast<std::ptrdiff_t>(offset(layout, layer, copy.from)) + layout.block_elements());
      std::copy(block.begin(), block.end(), kv.begin() + static_cast<std::ptrdiff_t>(offset(layout, layer, copy.to)));
    }
  }
  return kv;
}

template <class T>
void check_copies(const KvLayout& layout, int num_layers, const std::vector<BlockCopy>& copies) {
  const std::vector<T> kv = nvl_test::random_values<T>(static_cast<std::size_t>(num_layers * layout.layer_elements()), 1);
  DeviceVector<T> device_kv(kv);
  const DeviceVector<BlockCopy> device_copies(copies);
  nvl::kernels::launch_block_copy<T>({.kv = device_kv.data(),
                                      .layout = layout,
                                      .num_layers = num_layers,
                                      .copies = device_copies.data(),
                                      .num_copies = static_cast<int>(copies.size())},
                                     nullptr);
  CHECK(to_floats(device_kv.to_host()) == to_floats(copied_in_order(kv, layout, num_layers, copies)));
}

TEMPLATE_TEST_CASE("blocks are copied in all layers", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const nvl_test::BlockCopyCase& c : nvl_test::block_copy_cases()) {
    if (c.timed) { continue; }
    CAPTURE(c.layout.block_elements(), c.num_layers, c.num_copies);
    std::mt19937 random(3);
    std::uniform_int_distribution<unsigned> block(0, static_cast<unsigned>(c.layout.num_blocks - 1));
    std::vector<BlockCopy> copies;  // with chains, swaps and repeated targets among them
    for (int i = 0; i < c.num_copies; ++i) { copies.push_back(copy_of(block(random), block(random))); }
    check_copies<TestType>(c.layout, c.num_layers, copies);
  }
}

TEST_CASE("a block copy sees what the copies before it wrote", "[kernel][gpu]") {
  nvl_test::require_device();
  const KvLayout layout{.num_blocks = 12, .block_size = 16, .num_kv_heads = 2, .head_dim = 64};
  SECTION("a chain") {
    check_copies<bf16>(layout, 2, {copy_of(0, 1), copy_of(1, 2), copy_of(2, 3), copy_of(3, 4), copy_of(4, 5), copy_of(5, 6)});
  }
  SECTION("a source that is overwritten later") { check_copies<bf16>(layout, 2, {copy_of(0, 1), copy_of(2, 0), copy_of(3, 2)}); }
  SECTION("a target that is written twice") { check_copies<bf16>(layout, 2, {copy_of(0, 5), copy_of(1, 5), copy_of(5, 6)}); }
  SECTION("two blocks changed with each other by way of a third") {
    check_copies<bf16>(layout, 2, {copy_of(0, 9), copy_of(1, 0), copy_of(9, 1)});
  }
  SECTION("a hazard between the last copy of one batch and the first of the next") {
    check_copies<bf16>(layout, 2, {copy_of(0, 8), copy_of(1, 9), copy_of(2, 10), copy_of(3, 11), copy_of(11, 4)});
  }
}

TEST_CASE("blocks beyond 2^31 elements of the cache are copied", "[kernel][gpu]") {
  nvl_test::require_device();
  const KvLayout layout{.num_blocks = 1 << 20, .block_size = 16, .num_kv_heads = 2, .head_dim = 128};
  const unsigned first = (1u << 18) + 5;  // times 8192 elements of a block: 2^31 and more
  const auto size = static_cast<std::size_t>(layout.block_elements());
  const std::vector<bf16> blocks = nvl_test::random_values<bf16>(2 * size, 1);
  DeviceVector<bf16> device_blocks(blocks);
  const DeviceVector<BlockCopy> copies(std::vector<BlockCopy>{copy_of(first + 1, first)});
  // Where the cache would begin if it were all there.
  const std::uintptr_t kv = reinterpret_cast<std::uintptr_t>(device_blocks.data()) - sizeof(bf16) * std::int64_t{first} * size;
  nvl::kernels::launch_block_copy<bf16>(
      {.kv = reinterpret_cast<bf16*>(kv), .layout = layout, .num_layers = 1, .copies = copies.data(), .num_copies = 1}, nullptr);
  std::vector<bf16> expected(blocks.begin() + static_cast<std::ptrdiff_t>(size), blocks.end());
  expected.insert(expected.end(), blocks.begin() + static_cast<std::ptrdiff_t>(size), blocks.end());
  CHECK(to_floats(device_blocks.to_host()) == to_floats(expected));
}

TEMPLATE_TEST_CASE("blocks are swapped out to pinned host memory and back in", "[kernel][gpu]", bf16, float) {
  using T = TestType;
  nvl_test::require_device();
  const KvLayout layout{.num_blocks = 20, .block_size = 16, .num_kv_heads = 3, .head_dim = 80};
  const int num_layers = 3;
  const auto host_elements = static_cast<std::size_t>(layout.whole_block_offset(7, 0, num_layers));
  const std::vector<T> kv = nvl_test::random_values<T>(static_cast<std::size_t>(num_layers * layout.layer_elements()), 1);
  DeviceVector<T> device_kv(kv);
  T* host_kv = nullptr;
  NVL_CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&host_kv), host_elements * sizeof(T)));
  std::fill_n(host_kv, host_elements, static_cast<T>(-1.0f));

  const std::vector<BlockTransfer> out{transfer_of(19, 0), transfer_of(3, 6), transfer_of(8, 2)},
      in{transfer_of(5, 0), transfer_of(19, 6), transfer_of(0, 2)};
  const DeviceVector<BlockTransfer> device_out(out), device_in(in);
  for (const bool to_host : {true, false}) {
    nvl::kernels::launch_block_swap<T>({.kv = device_kv.data(),
                                        .host = host_kv,
                                        .layout = layout,
                                        .num_layers = num_layers,
                                        .transfers = to_host ? device_out.data() : device_in.data(),
                                        .num_transfers = 3,
                                        .to_host = to_host},
                                       nullptr);
  }
  const std::vector<T> actual = device_kv.to_host();

  std::vector<T> expected_host(host_elements, static_cast<T>(-1.0f)), expected = kv;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto from = kv.begin() + static_cast<std::ptrdiff_t>(offset(layout, layer, out[i].device));
      const auto size = static_cast<std::ptrdiff_t>(layout.block_elements());
      std::copy(from, from + size,
                expected_host.begin() + layout.whole_block_offset(nvl::index_of(out[i].host), layer, num_layers));
      std::copy(from, from + size, expected.begin() + static_cast<std::ptrdiff_t>(offset(layout, layer, in[i].device)));
    }
  }
  CHECK(to_floats(std::vector<T>(host_kv, host_kv + host_elements)) == to_floats(expected_host));
  CHECK(to_floats(actual) == to_floats(expected));
  NVL_CUDA_CHECK(cudaFreeHost(host_kv));
}

TEST_CASE("block_copy refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::BlockCopyParams<bf16> p{
      .layout = {.num_blocks = 4, .block_size = 1, .num_kv_heads = 1, .head_dim = 2}, .num_layers = 1, .num_copies = 1};
  CHECK_THROWS_AS(nvl::kernels::launch_block_copy(p, nullptr), nvl::InvalidArgument);
  p.layout.head_dim = 16;
  p.num_layers = 0;
  CHECK_THROWS_AS(nvl::kernels::launch_block_copy(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
