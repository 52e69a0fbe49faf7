// Blocks that move between device and host beside a stream of steps: they come from what was there before, and what comes after
// waits for them.

#include "support/device.cuh"

#include <nvl/ops/cuda_transfers.cuh>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

using namespace nvl;

namespace {

constexpr KvLayout layout{.num_blocks = 96, .block_size = 16, .num_kv_heads = 8, .head_dim = 128};
constexpr std::int32_t num_layers = 8;
constexpr std::int32_t num_moved = 64;  // 32 MiB: half a millisecond of the link, far longer than a memset of them
constexpr std::size_t kv_bytes = static_cast<std::size_t>(layout.layer_elements()) * num_layers * sizeof(float);
constexpr auto host_elements = static_cast<std::size_t>(layout.whole_block_offset(num_moved, 0, num_layers));

/// Keeps the stream busy for some milliseconds.
__global__ void wait_a_while() {
  for (int i = 0; i < 4000; ++i) { __nanosleep(1000); }
}

struct Transfers {
  CudaDevice device{};
  nvl_test::DeviceVector<float> kv{kv_bytes / sizeof(float)};
  CudaDevice::HostBuffer host{device, host_elements * sizeof(float)};
  nvl_test::DeviceVector<BlockTransfer> list;
  CudaTransfers transfers{device};

  Transfers() {
    std::vector<BlockTransfer> moves;
    for (std::uint32_t i = 0; i < num_moved; ++i) { moves.push_back({.device = BlockId{i + 7}, .host = HostBlockId{i}}); }
    list = nvl_test::DeviceVector<BlockTransfer>(moves);
  }

  void fill(unsigned char byte) { NVL_CUDA_CHECK(cudaMemsetAsync(kv.data(), byte, kv_bytes, device.stream())); }
  void start(bool out) {
    const std::span<const BlockTransfer> moves(list.data(), num_moved);
    transfers.start<float>({.kv = kv.data(),
                            .layout = layout,
                            .num_layers = num_layers,
                            .host = host.as<float>(),
                            .out = out ? moves : std::span<const BlockTransfer>(),
                            .in = out ? std::span<const BlockTransfer>() : moves});
  }
  bool host_is(std::uint32_t word) const {
    const auto* const words = host.as<std::uint32_t>();
    return std::all_of(words, words + host_elements, [&](std::uint32_t w) { return w == word; });
  }
  /// Words of the moved blocks that are not `word`.
  std::size_t num_others(std::uint32_t word) {
    const std::vector<float> values = kv.to_host();
    const auto* const words = reinterpret_cast<const std::uint32_t*>(values.data());
    std::size_t others = 0;
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      const std::int64_t first = layer * layout.layer_elements() + 7 * layout.block_elements();
      for (std::int64_t i = first; i < first + num_moved * layout.block_elements(); ++i) { others += words[i] == word ? 0 : 1; }
    }
    return others;
  }
};

}  // namespace

TEST_CASE("blocks go out as the stream left them, and whatever overwrites them after join comes later", "[ops][gpu]") {
  nvl_test::require_device();
  Transfers t;
  for (int round = 0; round < 3; ++round) {
    const auto byte = static_cast<unsigned char>(0x11 * (round + 1));
    t.fill(0);
    wait_a_while<<<1, 1, 0, t.device.stream()>>>();
    t.fill(byte);
    t.start(true);
    t.transfers.join();
    t.fill(0xee);
    NVL_CUDA_CHECK(cudaStreamSynchronize(t.device.stream()));
    CHECK(t.host_is(0x01010101u * byte));
    CHECK(t.num_others(0xeeeeeeeeu) == 0);
  }
}

TEST_CASE("blocks come in after what the stream wrote before, and whatever reads them after join finds them", "[ops][gpu]") {
  nvl_test::require_device();
  Transfers t;
  t.fill(0x5a);
  t.start(true);
  t.transfers.join();
  nvl_test::DeviceVector<float> seen(kv_bytes / sizeof(float));
  for (int round = 0; round < 3; ++round) {
    wait_a_while<<<1, 1, 0, t.device.stream()>>>();
    t.fill(0);
    t.start(false);
    t.transfers.join();
    NVL_CUDA_CHECK(cudaMemcpyAsync(seen.data(), t.kv.data(), kv_bytes, cudaMemcpyDeviceToDevice, t.device.stream()));
    NVL_CUDA_CHECK(cudaStreamSynchronize(t.device.stream()));
    CHECK(t.num_others(0x5a5a5a5au) == 0);
    const std::vector<float> values = seen.to_host();
    const auto* const words = reinterpret_cast<const std::uint32_t*>(values.data());
    const auto last = static_cast<std::size_t>(7 + num_moved) * static_cast<std::size_t>(layout.block_elements()) - 1;
    CHECK(words[last] == 0x5a5a5a5au);
    CHECK(words[last + 1] == 0);
    CHECK(words[0] == 0);
  }
}

TEST_CASE("a host buffer is not given back while blocks move", "[ops][gpu]") {
  nvl_test::require_device();
  Transfers t;
  t.fill(1);
  wait_a_while<<<1, 1, 0, t.device.stream()>>>();
  t.start(true);
  t.host = CudaDevice::HostBuffer();
  CHECK(cudaStreamQuery(t.device.copy_stream()) == cudaSuccess);
}
