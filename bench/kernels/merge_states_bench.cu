/// Merge of two attention states in bf16.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/merge_states_cases.hpp"

#include <nvl/kernels/merge_states.cuh>
#include <nvl/kernels/reference/merge_states.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using nvl::bf16;
using nvl_bench::DeviceBuffer;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "merge_states", [](nvl_bench::KernelBench& bench) {
    for (const nvl_test::MergeStatesCase& c : nvl_test::merge_states_bench_cases()) {
      const std::string shape = std::to_string(c.num_rows) + " x " + std::to_string(c.head_dim);
      if (!bench.wants("merge_states " + shape)) { continue; }
      const auto rows = static_cast<std::size_t>(c.num_rows), d = static_cast<std::size_t>(c.head_dim);
      const double out_bytes = 2.0 * static_cast<double>(rows * d), lse_bytes = 4.0 * static_cast<double>(rows);
      const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(3 * (out_bytes + lse_bytes)));
      const auto out_a = nvl_bench::random_normal_buffer<bf16>(rows * d, sets, bench.seed());
      const auto out_b = nvl_bench::random_normal_buffer<bf16>(rows * d, sets, bench.seed() + 1);
      const auto lse_a = nvl_bench::random_normal_buffer<float>(rows, sets, bench.seed() + 2);
      const auto lse_b = nvl_bench::random_normal_buffer<float>(rows, sets, bench.seed() + 3);
      DeviceBuffer<bf16> out(rows * d, sets);
      DeviceBuffer<float> lse(rows, sets);
      const auto launch = [&](int call, cudaStream_t stream) {
        nvl::kernels::launch_merge_states<nvl::kernels::MergeStatesTraits<bf16>>({.out = out.set(call),
                                                                                  .lse = lse.set(call),
                                                                                  .out_a = out_a.set(call),
                                                                                  .lse_a = lse_a.set(call),
                                                                                  .out_b = out_b.set(call),
                                                                                  .lse_b = lse_b.set(call),
                                                                                  .num_rows = c.num_rows,
                                                                                  .head_dim = c.head_dim},
                                                                                 stream);
      };

      const std::size_t checked = std::min<std::size_t>(rows, 64);
      launch(0, nullptr);
      const auto a = out_a.to_host(0, 0, checked * d), b = out_b.to_host(0, 0, checked * d);
      const auto la = lse_a.to_host(0, 0, checked), lb = lse_b.to_host(0, 0, checked);
      std::vector<double> expected;
      for (std::size_t row = 0; row < checked; ++row) {
        const auto merged = nvl::reference::merge_states<bf16>(std::span(a).subspan(row * d, d), double{la[row]},
                                                               std::span(b).subspan(row * d, d), double{lb[row]});
        expected.insert(expected.end(), merged.out.begin(), merged.out.end());
      }
      nvl_bench::verify("merge_states " + shape, out.to_host(0, 0, checked * d), expected, nvl::reference::max_nmse_of_few<bf16>);

      bench.add({.op = "merge_states",
                 .dtype = "bfloat16",
                 .shape = shape,
                 .bytes_read = 2 * (out_bytes + lse_bytes),
                 .bytes_written = out_bytes + lse_bytes},
                sets, launch);
    }
  });
}
