#pragma once
/// What the command line of a kernel benchmark sets.

#include <cstdint>
#include <string>
#include <vector>

namespace nvl_bench {

struct TimerOptions {
  int min_calls = 20;  // in one graph
  int replays = 21;    // odd: the median is a measured value
  int warmup = 3;      // replays before the first that counts
};

struct KernelBenchOptions {
  std::string json, filter;
  std::uint64_t seed = 1;
  TimerOptions timer;
  bool measure_memory = true, measure_gemm = false;
};

/// Of the arguments after the program's name.
/// \throws std::runtime_error with the usage if one is not an option or has no value
KernelBenchOptions parse_kernel_bench_options(const std::vector<std::string>& arguments, bool gemm_by_default);

}  // namespace nvl_bench
