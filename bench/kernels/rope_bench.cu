/// RoPE in place on rows of bf16 heads.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/rope_cases.hpp"

#include <nvl/kernels/reference/rope.hpp>
#include <nvl/kernels/rope.cuh>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using nvl::bf16;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "rope", [](nvl_bench::KernelBench& bench) {
    const int num_positions = 1024;
    const nvl::RopeConfig config{.theta = 1e6};
    for (const nvl_test::RopeCase& c : nvl_test::rope_cases()) {
      const std::string shape =
          std::to_string(c.num_tokens) + " x " + std::to_string(c.num_heads) + " x " + std::to_string(c.head_dim);
      if (!c.timed || !bench.wants("rope " + shape)) { continue; }
      const auto d = static_cast<std::size_t>(c.head_dim), tokens = static_cast<std::size_t>(c.num_tokens);
      const std::size_t width = static_cast<std::size_t>(c.num_heads) * d;
      const double bytes_written = 2.0 * static_cast<double>(tokens * width);
      const double angles = 4.0 * static_cast<double>(d * std::min<std::size_t>(tokens, static_cast<std::size_t>(num_positions)));
      const double bytes_read = bytes_written + angles + 4.0 * static_cast<double>(tokens);
      const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
      const nvl::RopeTable table(config, c.head_dim, num_positions);
      const nvl_bench::DeviceBuffer<float> cos_sin(nvl::kernels::pack_rope_table(table));
      std::vector<std::int32_t> host_positions;
      for (std::size_t i = 0; i < tokens; ++i) {
        host_positions.push_back(static_cast<std::int32_t>(i % static_cast<std::size_t>(num_positions)));
      }
      const nvl_bench::DeviceBuffer<std::int32_t> positions(host_positions);
      auto x = nvl_bench::random_normal_buffer<bf16>(tokens * width, sets, bench.seed());
      const auto launch = [&](int call, cudaStream_t stream) {
        nvl::kernels::launch_rope<bf16>({.x = x.set(call),
                                         .positions = positions.data(),
                                         .table = nvl::kernels::device_rope_table(table, cos_sin.data()),
                                         .num_tokens = c.num_tokens,
                                         .num_heads = c.num_heads},
                                        stream);
      };

      const std::vector<bf16> before = x.to_host(0, (tokens - 1) * width, width);  // the last token
      launch(0, nullptr);
      std::vector<double> expected;
      for (std::size_t head = 0; head < width; head += d) {
        const std::vector<double> rotated = nvl::reference::norm_and_rope(
            std::span<const bf16>(before).subspan(head, d), {}, 0.0, nvl::rope_inverse_frequencies(config, c.head_dim), 1.0,
            static_cast<double>(host_positions.back()), config.layout);
        expected.insert(expected.end(), rotated.begin(), rotated.end());
      }
      nvl_bench::verify("rope " + shape, x.to_host(0, (tokens - 1) * width, width), expected,
                        nvl::reference::max_nmse_of_few<bf16>);

      bench.add({.op = "rope", .dtype = "bfloat16", .shape = shape, .bytes_read = bytes_read, .bytes_written = bytes_written},
                sets, launch);
    }
  });
}
