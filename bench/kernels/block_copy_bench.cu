/// Copies of KV blocks over all layers inside one cache, and swaps with pinned host memory, bf16.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/block_copy_cases.hpp"

#include <nvl/kernels/block_copy.cuh>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

using nvl::bf16;
using nvl::BlockCopy;
using nvl::BlockId;
using nvl::BlockTransfer;
using nvl::HostBlockId;

namespace {

void expect_same(const std::string& what, const std::vector<bf16>& actual, const std::vector<bf16>& expected) {
  if (std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(bf16)) != 0) {
    throw std::runtime_error(what + " is wrong");
  }
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "block_copy", [](nvl_bench::KernelBench& bench) {
    for (const nvl_test::BlockCopyCase& c : nvl_test::block_copy_cases()) {
      if (!c.timed) { continue; }
      const auto block = static_cast<std::size_t>(c.layout.block_elements());
      const std::string shape = std::to_string(c.num_copies) + " blocks of " + std::to_string(2 * block / 1024) + " KiB x " +
                                std::to_string(c.num_layers) + " layers";
      const auto size = static_cast<std::size_t>(c.layout.layer_elements() * c.num_layers);
      const double bytes = 2.0 * static_cast<double>(block) * c.num_copies * c.num_layers;
      std::vector<BlockCopy> host_copies;
      std::vector<BlockTransfer> host_transfers;
      for (unsigned i = 0; i < static_cast<unsigned>(c.num_copies); ++i) {
        host_copies.push_back({.from = BlockId{i}, .to = BlockId{i + 64}});
        host_transfers.push_back({.device = BlockId{i}, .host = HostBlockId{i}});
      }
      const nvl_bench::DeviceBuffer<BlockCopy> copies(host_copies);
      auto kv = nvl_bench::random_normal_buffer<bf16>(size, 2, bench.seed());
      if (bench.wants("block_copy " + shape)) {
        const auto launch = [&](int call, cudaStream_t stream) {
          nvl::kernels::launch_block_copy<bf16>({.kv = kv.set(call),
                                                 .layout = c.layout,
                                                 .num_layers = c.num_layers,
                                                 .copies = copies.data(),
                                                 .num_copies = c.num_copies},
                                                stream);
        };
        launch(0, nullptr);
        expect_same("block_copy", kv.to_host(0, 64 * block, block), kv.to_host(0, 0, block));
        bench.add({.op = "block_copy", .dtype = "bfloat16", .shape = shape, .bytes_read = bytes, .bytes_written = bytes}, 2,
                  launch);
      }
      if (bench.wants("block_swap " + shape)) {
        const nvl_bench::DeviceBuffer<BlockTransfer> transfers(host_transfers);
        bf16* host = nullptr;
        NVL_CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&host), size * sizeof(bf16)));
        std::memset(static_cast<void*>(host), 0, size * sizeof(bf16));
        for (const bool to_host : {true, false}) {
          const auto launch = [&](int, cudaStream_t stream) {
            nvl::kernels::launch_block_swap<bf16>({.kv = kv.data(),
                                                   .host = host,
                                                   .layout = c.layout,
                                                   .num_layers = c.num_layers,
                                                   .transfers = transfers.data(),
                                                   .num_transfers = c.num_copies,
                                                   .to_host = to_host},
                                                  stream);
          };
          if (!to_host) { std::memset(static_cast<void*>(host), 0x3c, size * sizeof(bf16)); }
          launch(0, nullptr);
          NVL_CUDA_CHECK(cudaDeviceSynchronize());
          expect_same("block_swap", kv.to_host(0, 0, block), std::vector<bf16>(host, host + block));
          bench.add({.op = "block_swap",
                     .dtype = "bfloat16",
                     .shape = shape,
                     .bytes_read = to_host ? bytes : 0,
                     .bytes_written = to_host ? 0 : bytes,
                     .variant = to_host ? "to the host" : "from the host"},
                    1, launch);
        }
        NVL_CUDA_CHECK(cudaFreeHost(host));
      }
    }
  });
}
