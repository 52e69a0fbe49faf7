/// Sampling of bf16 logits: the plain kernel (most likely token, draw from all) and the general one. Warm is what the engine
/// sees: the LM head has just written the logits.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/sampling_cases.hpp"

#include <nvl/kernels/sampling.cuh>
#include <nvl/ops/cpu_sampler.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <span>
#include <string>
#include <vector>

using nvl::bf16;
using nvl_bench::DeviceBuffer;

namespace {

constexpr int vocab = 151936;  // Qwen3
constexpr int max_top = 20;

/// `deviation`: of the logits. 1 is the hardest, half of the vocabulary is in the nucleus of top-p 0.9; 3 is like a model's.
void run(nvl_bench::KernelBench& bench, const nvl_test::SamplingSetting& setting, int num_rows, float deviation) {
  const std::string shape = std::to_string(num_rows) + " x " + std::to_string(vocab);
  const std::string variant = setting.name + ", deviation " + std::to_string(static_cast<int>(deviation));
  if (!bench.wants(variant + " " + shape)) { return; }
  const auto rows = static_cast<std::size_t>(num_rows), size = rows * vocab;
  const int sets = nvl_bench::num_cold_sets(size * sizeof(bf16));
  auto logits = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed(), deviation);
  std::vector<nvl::SamplingRow> options;
  const nvl_test::SamplingExtras extras = setting.extras(vocab, 1);
  for (std::uint32_t r = 0; r < rows; ++r) {
    options.push_back(setting.row);
    options.back().output_index = r;
    options.back().bias.end = static_cast<std::uint32_t>(extras.bias.size());
    options.back().banned.end = static_cast<std::uint32_t>(extras.banned.size());
    options.back().history.end = static_cast<std::uint32_t>(extras.history.size());
  }
  const auto option_bytes = std::as_bytes(std::span<const nvl::SamplingRow>(options));
  DeviceBuffer<std::byte> device_options(option_bytes.size());
  device_options.upload(option_bytes);
  DeviceBuffer<nvl::LogitBias> bias(extras.bias);
  DeviceBuffer<nvl::TokenId> banned(extras.banned), history(extras.history), tokens(rows);
  DeviceBuffer<nvl::kernels::SampledRow> results(rows);
  DeviceBuffer<nvl::TokenLogprob> top(rows * max_top);
  DeviceBuffer<std::byte> workspace(nvl::kernels::sampling_workspace_bytes(num_rows, vocab));
  const auto launch = [&](int call, cudaStream_t stream) {
    nvl::kernels::SampleParams<bf16> p;
    p.logits = logits.set(call);
    p.row_stride = vocab;
    p.rows = reinterpret_cast<const nvl::SamplingRow*>(device_options.data());
    p.logit_bias = bias.data();
    p.banned = banned.data();
    p.history = history.data();
    p.tokens = tokens.data();
    p.results = results.data();
    p.top_logprobs = top.data();
    p.workspace = workspace.data();
    p.max_top_logprobs = max_top;
    p.num_rows = num_rows;
    p.vocab = vocab;
    if (setting.is_general()) {
      nvl::kernels::launch_sample_general<nvl::kernels::SampleGeneralTraits<bf16>>(p, stream);
    } else {
      nvl::kernels::launch_sample_plain<nvl::kernels::SamplePlainTraits<bf16>>(p, stream);
    }
  };

  launch(0, nullptr);
  const std::vector<nvl::TokenId> got = tokens.to_host();
  nvl::StepInput in;
  nvl_test::SamplingExtras lists = extras;
  in.sampling = options;
  in.logit_bias = lists.bias;
  in.banned = lists.banned;
  in.history = lists.history;
  nvl::SamplerScratch scratch;
  int num_different = 0;
  const std::size_t checked = std::min<std::size_t>(rows, 4);
  for (std::size_t r = 0; r < checked; ++r) {
    const std::vector<bf16> row = logits.to_host(0, r * vocab, vocab);
    std::vector<float> values;
    for (const bf16 l : row) { values.push_back(static_cast<float>(l)); }
    nvl::SampledToken expected;
    nvl::sample_row(values, in, options[r], scratch, expected);
    num_different += expected.token != got[r] ? 1 : 0;
  }
  if (num_different > 1) { throw std::runtime_error(variant + " " + shape + ": not the tokens of the CPU"); }
  const double bytes = static_cast<double>(size * sizeof(bf16));
  bench.add({.op = "sampling",
             .dtype = "bfloat16",
             .shape = shape,
             .bytes_read = bytes,
             .bound = nvl_bench::Bound::read,
             .variant = variant},
            sets, launch);
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(argc, argv, "sampling", [](nvl_bench::KernelBench& bench) {
    for (const nvl_test::SamplingSetting& setting : nvl_test::sampling_settings()) {
      if (!setting.is_timed()) { continue; }
      for (const int num_rows : {1, 8, 32, 64, 128, 256}) {
        const bool every_size = setting.name == "greedy" || setting.name == "plain" || setting.name == "top_k 50, top_p 0.9";
        if (!every_size && num_rows != 1 && num_rows != 128) { continue; }
        run(bench, setting, num_rows, 3.0f);
        if (setting.row.top_p < 1.0f && num_rows == 128) { run(bench, setting, num_rows, 1.0f); }
      }
    }
  });
}
