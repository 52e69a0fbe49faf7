/// SiLU and GELU gated activations of bf16 rows.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/gated_activation_cases.hpp"

#include <nvl/kernels/gated_activation.cuh>
#include <nvl/kernels/reference/gated_activation.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using nvl::Activation;
using nvl::bf16;

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "gated_activation", [](nvl_bench::KernelBench& bench) {
    for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      const std::string op = activation == Activation::silu ? "silu_mul" : "gelu_mul";
      for (const nvl_test::GatedActivationCase& c : nvl_test::gated_activation_cases()) {
        const std::string shape = std::to_string(c.num_tokens) + " x " + std::to_string(c.n);
        if (!c.timed || !bench.wants(op + " " + shape)) { continue; }
        const auto n = static_cast<std::size_t>(c.n), size = n * static_cast<std::size_t>(c.num_tokens);
        const double bytes_read = 4.0 * static_cast<double>(size), bytes_written = 2.0 * static_cast<double>(size);
        const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_read + bytes_written));
        const auto gate_up = nvl_bench::random_normal_buffer<bf16>(2 * size, sets, bench.seed(), 2.0f);
        nvl_bench::DeviceBuffer<bf16> out(size, sets);
        const auto launch = [&](int call, cudaStream_t stream) {
          nvl::kernels::launch_gated_activation<bf16>({.out = out.set(call),
                                                       .gate_up = gate_up.set(call),
                                                       .num_tokens = c.num_tokens,
                                                       .n = c.n,
                                                       .activation = activation},
                                                      stream);
        };

        const std::size_t checked = std::min<std::size_t>(size, 16 * n);  // the first rows
        const std::vector<bf16> input = gate_up.to_host(0, 0, 2 * checked);
        launch(0, nullptr);
        nvl_bench::verify(op + " " + shape, out.to_host(0, 0, checked),
                          nvl::reference::gated_activation(std::span<const bf16>(input), n, activation),
                          nvl::reference::max_nmse_of_few<bf16>);

        bench.add({.op = op, .dtype = "bfloat16", .shape = shape, .bytes_read = bytes_read, .bytes_written = bytes_written}, sets,
                  launch);
      }
    }
  });
}
