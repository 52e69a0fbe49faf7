/// K and V of new tokens to a paged cache, bf16: slots in random order (the hardest case, and what the peers' figures are of), and
/// whole pages in random order, as a prompt's tokens are stored.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/kv_store_cases.hpp"
#include "support/slots.hpp"

#include <nvl/kernels/kv_store.cuh>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

using nvl::bf16;
using nvl::KvLayout;
using nvl::SlotId;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "kv_store", [](nvl_bench::KernelBench& bench) {
    for (const bool whole_pages : {false, true}) {
      const std::string order = whole_pages ? "random pages" : "random slots";
      for (const nvl_test::KvStoreCase& c : nvl_test::kv_store_cases()) {
        const std::string shape =
            std::to_string(c.num_tokens) + " x " + std::to_string(c.num_kv_heads) + " x " + std::to_string(c.head_dim);
        if (!c.timed || !bench.wants("kv_store " + order + " " + shape)) { continue; }
        const auto width = static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
        const std::size_t size = width * static_cast<std::size_t>(c.num_tokens);
        const double bytes_written = 4.0 * static_cast<double>(size);
        const double bytes_read = bytes_written + 8.0 * c.num_tokens;
        const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
        const KvLayout layout = nvl_test::layout_for(4 * c.num_tokens, c.block_size, c.num_kv_heads, c.head_dim);
        const auto k = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed());
        const auto v = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed() + 1);
        const std::vector<SlotId> host_slots = whole_pages ? nvl_test::random_pages(c.num_tokens, layout, 1)
                                                           : nvl_test::random_slots(c.num_tokens, layout, false, 1);
        const nvl_bench::DeviceBuffer<SlotId> slots(host_slots);
        nvl_bench::DeviceBuffer<bf16> kv(static_cast<std::size_t>(layout.layer_elements()), sets);
        const auto launch = [&](int call, cudaStream_t stream) {
          nvl::kernels::launch_kv_store<bf16>({.k = k.set(call),
                                               .v = v.set(call),
                                               .slot_mapping = slots.data(),
                                               .layout = layout,
                                               .kv = kv.set(call),
                                               .num_tokens = c.num_tokens},
                                              stream);
        };

        launch(0, nullptr);
        const SlotId last = host_slots.back();
        const int head = c.num_kv_heads - 1;
        const std::size_t at =
            static_cast<std::size_t>(layout.v_offset(last / c.block_size, head, static_cast<std::int32_t>(last % c.block_size)));
        const auto d = static_cast<std::size_t>(c.head_dim);
        const std::vector<bf16> stored = kv.to_host(0, at, d), expected = v.to_host(0, size - d, d);
        if (std::memcmp(stored.data(), expected.data(), 2 * d) != 0) {
          throw std::runtime_error("kv_store " + shape + " is wrong");
        }

        bench.add({.op = "kv_store",
                   .dtype = "bfloat16",
                   .shape = shape,
                   .bytes_read = bytes_read,
                   .bytes_written = bytes_written,
                   .variant = order},
                  sets, launch);
      }
    }
  });
}
