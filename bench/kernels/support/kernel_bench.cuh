#pragma once
/// The frame of a kernel benchmark:
///
///     int main(int argc, char** argv) {
///       return nvl_bench::kernel_bench_main(argc, argv, "rms_norm", [](nvl_bench::KernelBench& bench) {
///         for (const auto& c : cases) {
///           if (!bench.wants(name_of(c))) { continue; }
///           const int sets = nvl_bench::num_cold_sets(bytes of one call);
///           auto x = nvl_bench::random_normal_buffer<bf16>(size, sets, bench.seed());
///           ... one call, then nvl_bench::verify(...)
///           bench.add({.op = "rms_norm", .dtype = "bfloat16", .shape = "8192 x 4096", .bytes_read = r, .bytes_written = w}, sets,
///                     [&](int call, cudaStream_t stream) { launch_rms_norm(params with x.set(call), stream); });
///         }
///       });
///     }
///
/// Options of every program: --json FILE, --filter TEXT, --seed N, --replays N, --ceilings none|memory|all.

#include "bench/kernels/support/gpu_ceilings.cuh"
#include "bench/kernels/support/gpu_timer.cuh"
#include "bench/kernels/support/kernel_bench_options.hpp"
#include "bench/kernels/support/kernel_report.hpp"

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_bench {

class KernelBench {
 public:
  KernelBench(KernelBenchOptions options, KernelReport& report)
      : options_(std::move(options)),
        report_(report),
        timer_(options_.timer) {}

  KernelTimer& timer() { return timer_; }
  std::uint64_t seed() const { return options_.seed; }
  /// False if --filter leaves out rows of this name.
  bool wants(std::string_view name) const { return name.find(options_.filter) != std::string_view::npos; }

  /// Measures cold over `num_sets` sets of buffers and warm, prints a line and adds the row. \returns the row, valid until the
  /// next call
  template <class Launch>
  const KernelRow& add(const KernelCase& what, int num_sets, Launch&& launch) {
    const auto bytes = static_cast<std::size_t>(what.bytes_read + what.bytes_written);
    KernelRow row{.what = what, .kernels = timer_.describe(launch)};
    row.cold = timer_.cold(launch, num_sets, bytes);
    row.warm = timer_.warm(launch);
    return keep(std::move(row));
  }
  /// As above, and what the op adds to a chain after `neighbour`.
  template <class Neighbour, class Launch>
  const KernelRow& add_in_chain(const KernelCase& what, int num_sets, Neighbour&& neighbour, Launch&& launch) {
    const auto bytes = static_cast<std::size_t>(what.bytes_read + what.bytes_written);
    KernelRow row{.what = what, .kernels = timer_.describe(launch)};
    row.cold = timer_.cold(launch, num_sets, bytes);
    row.warm = timer_.warm(launch);
    row.in_chain_us = timer_.in_chain(neighbour, launch, num_sets).added_us();
    return keep(std::move(row));
  }

 private:
  const KernelRow& keep(KernelRow row) {
    report_.add(std::move(row));
    const KernelRow& added = report_.rows().back();
    std::fprintf(stderr, "%s %s %s %s: %.2f us cold, %.2f us warm\n", added.what.op.c_str(), added.what.variant.c_str(),
                 added.what.dtype.c_str(), added.what.shape.c_str(), added.cold.median_us, added.warm.median_us);
    return added;
  }

  KernelBenchOptions options_;
  KernelReport& report_;
  KernelTimer timer_;
};

/// Runs `work(KernelBench&)` between two readings of the clocks, prints the table and writes --json. With `gemm` the ceiling of
/// matrix products is measured too, for ops that are bound by arithmetic. \returns what main returns: 1 on an error, 0 without a
/// device after saying so
template <class Work>
int kernel_bench_main(int argc, char** argv, const std::string& title, Work&& work, bool gemm = false) {
  try {
    const KernelBenchOptions options = parse_kernel_bench_options({argv + 1, argv + argc}, gemm);
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      std::fprintf(stderr, "no CUDA device: nothing is measured\n");
      return 0;
    }
    KernelReport report(title, {argv, argv + argc}, options.seed);
    KernelBench bench(options, report);
    report.gpu = gpu_identity();
    report.overhead = bench.timer().overhead();
    if (options.measure_memory) { report.ceilings = measure_ceilings(bench.timer(), options.measure_gemm); }
    report.at_start = busy_gpu_state(bench.timer());
    work(bench);
    report.at_end = busy_gpu_state(bench.timer());
    std::printf("%s", report.markdown().c_str());
    if (!options.json.empty()) { report.write_json(options.json); }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", title.c_str(), error.what());
    return 1;
  }
}

}  // namespace nvl_bench
