#pragma once
/// GPUs that a plan can be made for: what their data sheets say, and what the driver leaves of the memory.

#include "bench/support/roofline.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nvl_bench {

struct Gpu {
  std::string_view name;          // as --gpu takes it
  std::string_view title;         // as its driver gives it
  std::int64_t memory_bytes = 0;  // that cudaMemGetInfo calls total; differs by some MiB between drivers
  std::int32_t num_sms = 0;       // multiprocessors
  double bandwidth = 0;           // [bytes/s] of its memory
  double flops = 0;               // [1/s] of bf16 matrix products, dense, summed in float
  double link_bandwidth = 0;      // [bytes/s] to its peers, in one direction: NVLink, or the PCIe bus where there is none
};

namespace detail {
constexpr std::int64_t gib(double count) { return static_cast<std::int64_t>(count * (1 << 30)); }
}  // namespace detail

/// Rates: NVIDIA's data sheets. Memory: as programs on these GPUs report it.
inline constexpr std::array<Gpu, 10> gpus{{
    {"h200", "NVIDIA H200", detail::gib(139.80), 132, 4.8e12, 989e12, 450e9},
    {"h100", "NVIDIA H100 80GB HBM3", detail::gib(79.19), 132, 3.35e12, 989e12, 450e9},
    {"h100-pcie", "NVIDIA H100 PCIe", detail::gib(79.19), 114, 2.0e12, 756e12, 64e9},
    {"b200", "NVIDIA B200", detail::gib(178.35), 148, 8.0e12, 2250e12, 900e9},
    {"a100", "NVIDIA A100-SXM4-80GB", detail::gib(79.25), 108, 2.039e12, 312e12, 300e9},
    {"a100-40gb", "NVIDIA A100-SXM4-40GB", detail::gib(39.39), 108, 1.555e12, 312e12, 300e9},
    {"l40s", "NVIDIA L40S", detail::gib(44.40), 142, 864e9, 362e12, 32e9},
    {"l4", "NVIDIA L4", detail::gib(22.05), 58, 300e9, 121e12, 32e9},
    {"rtx-4090", "NVIDIA GeForce RTX 4090", detail::gib(23.65), 128, 1008e9, 165e12, 32e9},
    {"rtx-3090", "NVIDIA GeForce RTX 3090", detail::gib(23.69), 82, 936e9, 71e12, 32e9},
}};

/// "h200, h100, ..."
inline std::string gpu_list() {
  std::string names;
  for (const Gpu& gpu : gpus) { names += (names.empty() ? "" : ", ") + std::string(gpu.name); }
  return names;
}

inline std::optional<Gpu> find_gpu(std::string_view name) {
  for (const Gpu& gpu : gpus) {
    if (gpu.name == name) { return gpu; }
  }
  return std::nullopt;
}

/// What it was measured to reach; where nobody measured, the shares of the data sheet that an H200 reaches.
inline PeakRates reachable_rates(const Gpu& gpu) {
  if (const PeakRates measured = known_peak_rates(gpu.title); measured.known()) { return measured; }
  const Gpu h200 = *find_gpu("h200");
  const PeakRates reached = known_peak_rates(h200.title);
  return {.read_bytes = gpu.bandwidth * (reached.read_bytes / h200.bandwidth),
          .matmul_flops = gpu.flops * (reached.matmul_flops / h200.flops),
          .attention_flops = gpu.flops * (reached.attention_flops / h200.flops)};
}

}  // namespace nvl_bench
