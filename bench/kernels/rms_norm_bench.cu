/// RMSNorm and add + RMSNorm of bf16 rows.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/rms_norm_cases.hpp"

#include <nvl/kernels/reference/rms_norm.hpp>
#include <nvl/kernels/rms_norm.cuh>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using nvl::bf16;
using nvl_bench::DeviceBuffer;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "rms_norm", [](nvl_bench::KernelBench& bench) {
    for (const nvl_test::RmsNormCase& c : nvl_test::rms_norm_cases()) {
      const std::string op = c.adds_residual ? "add_rms_norm" : "rms_norm";
      const std::string shape = std::to_string(c.num_tokens) + " x " + std::to_string(c.hidden);
      if (!c.timed || !bench.wants(op + " " + shape)) { continue; }
      const auto width = static_cast<std::size_t>(c.hidden), size = width * static_cast<std::size_t>(c.num_tokens);
      const double pass = 2.0 * static_cast<double>(size);
      const double bytes_read = pass * (c.adds_residual ? 2 : 1) + 2.0 * static_cast<double>(width);
      const double bytes_written = pass * (c.adds_residual ? 2 : 1);
      const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
      const auto x = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed());
      auto residual = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed() + 1);
      const auto weight = nvl_bench::random_normal_buffer<bf16>(width, 1, bench.seed() + 2);
      DeviceBuffer<bf16> out(size, sets);
      const auto launch = [&](int call, cudaStream_t stream) {
        nvl::kernels::launch_rms_norm<bf16>({.out = out.set(call),
                                             .x = x.set(call),
                                             .residual = c.adds_residual ? residual.set(call) : nullptr,
                                             .weight = weight.data(),
                                             .num_tokens = c.num_tokens,
                                             .hidden = c.hidden},
                                            stream);
      };

      const std::size_t checked = std::min<std::size_t>(size, 64 * width);  // the first rows
      std::vector<bf16> old = residual.to_host(0, 0, checked);
      const std::vector<bf16> input = x.to_host(0, 0, checked), w16 = weight.to_host();
      std::vector<float> w;
      for (const bf16 value : w16) { w.push_back(static_cast<float>(value)); }
      launch(0, nullptr);
      const std::vector<double> expected = c.adds_residual
                                               ? nvl::reference::add_rms_norm<bf16>(old, std::span<const bf16>(input), w, 1e-6f)
                                               : nvl::reference::rms_norm(std::span<const bf16>(input), w, 1e-6f);
      nvl_bench::verify(op + " " + shape, out.to_host(0, 0, checked), expected, nvl::reference::max_nmse_of_few<bf16>);

      bench.add({.op = op, .dtype = "bfloat16", .shape = shape, .bytes_read = bytes_read, .bytes_written = bytes_written}, sets,
                launch);
    }
  });
}
