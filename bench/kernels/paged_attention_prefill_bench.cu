/// Prefill attention over paged K and V in bf16: the peers' table of 16,384 prompt tokens.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/paged_attention_prefill_problem.cuh"

#include <nvl/kernels/paged_attention_prefill.cuh>

#include <cstdio>
#include <string>
#include <vector>

using nvl::bf16;

namespace {

template <class T>
using Buffer = nvl_bench::DeviceBuffer<T>;

struct Compared {
  std::string shape;
  double us = 0, peer_us = 0, flops = 0;
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<Compared> rows;
  const auto work = [&](nvl_bench::KernelBench& bench) {
    for (const nvl_test::PrefillBenchCase& c : nvl_test::prefill_bench_cases()) {
      const nvl_test::PrefillCase& shape = c.shape;
      const std::string name = std::to_string(shape.num_q_heads) + "/" + std::to_string(shape.num_kv_heads) + " d" +
                               std::to_string(shape.head_dim) + " " + shape.name;
      if (!bench.wants("paged_prefill " + name)) { continue; }
      nvl_test::PrefillProblem<bf16, Buffer> problem(shape, static_cast<std::uint32_t>(bench.seed()));
      auto params = problem.params();
      nvl::kernels::launch_paged_prefill_plan<bf16>(params, nullptr);
      nvl::kernels::launch_paged_prefill<bf16>(params, nullptr);
      const auto errors = problem.check(8);
      nvl_bench::verify("paged_prefill " + name, errors.unwritten == 0 ? errors.out : 1.0, 2.0 * nvl::reference::max_nmse<bf16>);

      params.lse = nullptr;
      const double q_bytes = 2.0 * 16384.0 * shape.num_q_heads * shape.head_dim;
      const double kv_bytes = 2.0 * 2.0 * 16384.0 * shape.num_kv_heads * shape.head_dim;
      // One set: a call's q, K, V and out are several L2 caches.
      const auto& row = bench.add({.op = "paged_prefill",
                                   .dtype = "bfloat16",
                                   .shape = name,
                                   .bytes_read = q_bytes + kv_bytes,
                                   .bytes_written = q_bytes,
                                   .flops = problem.flops(),
                                   .bound = nvl_bench::Bound::compute},
                                  1, [&](int, cudaStream_t stream) { nvl::kernels::launch_paged_prefill<bf16>(params, stream); });
      rows.push_back({name, row.cold.median_us, c.peer_us, problem.flops()});
    }
    if (bench.wants("paged_prefill plan")) {
      // 256 prompts of 64 tokens: the plan that a step makes once for all layers.
      nvl_test::PrefillCase shape{.name = "plan", .num_q_heads = 16, .num_kv_heads = 8, .head_dim = 128};
      shape.sequences.assign(256, {64, 64});
      nvl_test::PrefillProblem<bf16, Buffer> problem(shape);
      const auto params = problem.params();
      bench.add({.op = "paged_prefill", .dtype = "bfloat16", .shape = "plan of 256 sequences"}, 1,
                [&](int, cudaStream_t stream) { nvl::kernels::launch_paged_prefill_plan<bf16>(params, stream); });
    }
  };
  const int status = nvl_bench::kernel_bench_main(argc, argv, "paged_attention_prefill", work, true);
  std::printf("\nBeside FlashAttention 3 on an H200, pages of 16, metadata made outside (measured once, elsewhere):\n\n");
  std::printf("| heads, head dim, length | us | TFLOP/s | FA3 us | FA3 TFLOP/s | speed-up |\n|---|---|---|---|---|---|\n");
  for (const Compared& row : rows) {
    std::printf("| %s | %.0f | %.0f | %.0f | %.0f | %.2f |\n", row.shape.c_str(), row.us, row.flops / row.us * 1e-6, row.peer_us,
                row.flops / row.peer_us * 1e-6, row.peer_us / row.us);
  }
  return status;
}
