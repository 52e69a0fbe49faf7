/// Rows of the embedding table by token id, bf16.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/embed_cases.hpp"

#include <nvl/kernels/embed.cuh>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

using nvl::bf16;
using nvl::TokenId;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "embed", [](nvl_bench::KernelBench& bench) {
    for (const nvl_test::EmbedCase& c : nvl_test::embed_cases()) {
      const std::string shape = std::to_string(c.num_rows) + " x " + std::to_string(c.hidden);
      if (!c.timed || !bench.wants("embed " + shape)) { continue; }
      const auto hidden = static_cast<std::size_t>(c.hidden), rows = static_cast<std::size_t>(c.num_rows);
      const double bytes_written = 2.0 * static_cast<double>(rows * hidden);
      const double bytes_read = bytes_written + 4.0 * static_cast<double>(rows);
      const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
      const auto table = nvl_bench::random_normal_buffer<bf16>(hidden * static_cast<std::size_t>(c.table_rows), 1, bench.seed());
      nvl_bench::DeviceBuffer<TokenId> ids(rows, sets);
      nvl_bench::fill_random_ids(ids.data(), ids.total(), bench.seed() + 1, static_cast<std::uint32_t>(c.table_rows));
      nvl_bench::DeviceBuffer<bf16> out(rows * hidden, sets);
      const auto launch = [&](int call, cudaStream_t stream) {
        nvl::kernels::launch_embed<bf16>(
            {.out = out.set(call), .table = table.data(), .ids = ids.set(call), .num_rows = c.num_rows, .hidden = c.hidden},
            stream);
      };

      launch(0, nullptr);
      const std::vector<TokenId> first = ids.to_host(0, 0, 1);
      const std::vector<bf16> row = out.to_host(0, 0, hidden);
      const std::vector<bf16> expected = table.to_host(0, static_cast<std::size_t>(first[0]) * hidden, hidden);
      if (std::memcmp(row.data(), expected.data(), 2 * hidden) != 0) { throw std::runtime_error("embed " + shape + " is wrong"); }

      bench.add({.op = "embed", .dtype = "bfloat16", .shape = shape, .bytes_read = bytes_read, .bytes_written = bytes_written},
                sets, launch);
    }
  });
}
