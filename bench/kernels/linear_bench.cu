/// Linear layers of bf16 with few tokens: our kernels and cuBLASLt's first choice, alone and as the chain of a decoder layer's
/// four products.

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/linear_cases.hpp"

#include <nvl/kernels/cublaslt_gemm.cuh>
#include <nvl/kernels/reference/linear.hpp>
#include <nvl/kernels/skinny_gemm.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {

using nvl::bf16;
using nvl_bench::DeviceBuffer;
using nvl_test::LayerShape;

constexpr int token_counts[] = {1, 2, 4, 8, 16, 32, 64, 128, 192, 256};
constexpr std::string_view variants[] = {"nvl", "cuBLASLt"};

/// A weight matrix, an input and an output for each set.
struct Layer {
  Layer(const LayerShape& s, int num_sets, std::uint64_t seed)
      : shape(s),
        w(nvl_bench::random_normal_buffer<bf16>(
            static_cast<std::size_t>(s.out_features) * static_cast<std::size_t>(s.in_features), num_sets, seed, 0.02f)),
        x(nvl_bench::random_normal_buffer<bf16>(256 * static_cast<std::size_t>(s.in_features), num_sets, seed + 1)),
        out(256 * static_cast<std::size_t>(s.out_features), num_sets) {}

  double weight_bytes() const { return 2.0 * shape.out_features * shape.in_features; }
  double flops(int tokens) const { return weight_bytes() * tokens; }

  LayerShape shape;
  DeviceBuffer<bf16> w, x, out;
};

class Runner {
 public:
  Runner() : workspace_(nvl::kernels::CublasLtGemm::default_workspace_bytes), cublas_({workspace_.data(), workspace_.size()}) {}

  void run(std::string_view variant, Layer& layer, int tokens, int call, cudaStream_t stream) {
    if (variant == "nvl") {
      nvl::kernels::launch_skinny_gemm<bf16, bf16>({.out = layer.out.set(call),
                                                    .x = layer.x.set(call),
                                                    .w = layer.w.set(call),
                                                    .num_rows = tokens,
                                                    .out_features = layer.shape.out_features,
                                                    .in_features = layer.shape.in_features},
                                                   stream);
    } else {
      cublas_.run(nvl::kernels::GemmParams<bf16>{.out = layer.out.set(call),
                                                 .x = layer.x.set(call),
                                                 .w = layer.w.set(call),
                                                 .num_rows = tokens,
                                                 .out_features = layer.shape.out_features,
                                                 .in_features = layer.shape.in_features},
                  stream);
    }
  }

 private:
  DeviceBuffer<std::byte> workspace_;
  nvl::kernels::CublasLtGemm cublas_;
};

/// Outputs of a few weight rows, for all tokens, against the oracle.
void verify(Runner& runner, std::string_view variant, Layer& layer, int tokens) {
  runner.run(variant, layer, tokens, 0, nullptr);
  const auto width = static_cast<std::size_t>(layer.shape.in_features), n = static_cast<std::size_t>(layer.shape.out_features);
  const std::vector<bf16> x = layer.x.to_host(0, 0, static_cast<std::size_t>(tokens) * width);
  const std::vector<bf16> out = layer.out.to_host(0, 0, static_cast<std::size_t>(tokens) * n);
  std::vector<bf16> actual;
  std::vector<float> w;
  std::vector<std::size_t> rows;
  for (std::size_t row = 0; row < n; row += n / 13 + 1) {
    const std::vector<bf16> values = layer.w.to_host(0, row * width, width);
    for (const bf16 value : values) { w.push_back(static_cast<float>(value)); }
    rows.push_back(row);
  }
  for (std::size_t token = 0; token < static_cast<std::size_t>(tokens); ++token) {
    for (const std::size_t row : rows) { actual.push_back(out[token * n + row]); }
  }
  const std::vector<double> expected =
      nvl::reference::linear(std::span<const bf16>(x), std::span<const float>(w), std::span<const float>(),
                             static_cast<std::size_t>(tokens), width, rows.size());
  nvl_bench::verify(std::string(layer.shape.name) + " by " + std::string(variant), actual, expected,
                    nvl::reference::max_nmse_of_few<bf16>);
}

std::string row_name(std::string_view model, std::string_view name, int tokens, std::string_view variant) {
  return std::string(model) + " " + std::string(name) + " M=" + std::to_string(tokens) + " " + std::string(variant);
}

void time_layer(nvl_bench::KernelBench& bench, Runner& runner, const LayerShape& shape) {
  const double weight_bytes = 2.0 * shape.out_features * shape.in_features;
  const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(weight_bytes));
  Layer layer(shape, sets, bench.seed());
  for (const int tokens : token_counts) {
    for (const std::string_view variant : variants) {
      if (!bench.wants(row_name(shape.model, shape.name, tokens, variant))) { continue; }
      verify(runner, variant, layer, tokens);
      bench.add({.op = "linear " + std::string(shape.name),
                 .dtype = "bfloat16",
                 .shape = std::to_string(tokens) + " x " + std::to_string(shape.out_features) + " x " +
                          std::to_string(shape.in_features),
                 .bytes_read = weight_bytes + 2.0 * tokens * shape.in_features,
                 .bytes_written = 2.0 * tokens * shape.out_features,
                 .flops = layer.flops(tokens),
                 .variant = std::string(variant)},
                sets, [&](int call, cudaStream_t stream) { runner.run(variant, layer, tokens, call, stream); });
    }
  }
}

/// The four products of a decoder layer one after the other, each the predecessor of the next.
void time_chain(nvl_bench::KernelBench& bench, Runner& runner, std::string_view model) {
  double weight_bytes = 0;
  for (const LayerShape& shape : nvl_test::layer_shapes) {
    if (shape.model == model && shape.in_layer) { weight_bytes += 2.0 * shape.out_features * shape.in_features; }
  }
  const int sets = nvl_bench::num_cold_sets(static_cast<std::size_t>(weight_bytes));
  std::vector<Layer> layers;
  for (const LayerShape& shape : nvl_test::layer_shapes) {
    if (shape.model == model && shape.in_layer) { layers.emplace_back(shape, sets, bench.seed()); }
  }
  for (const int tokens : token_counts) {
    for (const std::string_view variant : variants) {
      if (!bench.wants(row_name(model, "chain", tokens, variant))) { continue; }
      for (Layer& layer : layers) { verify(runner, variant, layer, tokens); }
      double flops = 0, activations = 0;
      for (const Layer& layer : layers) {
        flops += layer.flops(tokens);
        activations += 2.0 * tokens * (layer.shape.in_features + layer.shape.out_features);
      }
      bench.add({.op = "linear layer of " + std::string(model),
                 .dtype = "bfloat16",
                 .shape = std::to_string(tokens) + " tokens",
                 .bytes_read = weight_bytes + activations / 2,
                 .bytes_written = activations / 2,
                 .flops = flops,
                 .variant = std::string(variant)},
                sets, [&](int call, cudaStream_t stream) {
                  for (Layer& layer : layers) { runner.run(variant, layer, tokens, call, stream); }
                });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return nvl_bench::kernel_bench_main(
      argc, argv, "linear",
      [](nvl_bench::KernelBench& bench) {
        Runner runner;
        for (const std::string_view model : {"Qwen3-0.6B", "Qwen3-8B"}) { time_chain(bench, runner, model); }
        for (const LayerShape& shape : nvl_test::layer_shapes) { time_layer(bench, runner, shape); }
      },
      true);
}
