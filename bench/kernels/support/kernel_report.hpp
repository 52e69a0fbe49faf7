#pragma once
/// What a kernel benchmark says about its numbers: each row with its resources and its share of what this GPU reached in the
/// same run, and the machine, clocks, versions, command and seed on top. Plain C++, so that it is compiled once.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nvl_bench {

/// [us] of one call. p10 and p90 are over the replays of a graph of `calls` calls.
struct KernelTime {
  double median_us = 0, p10_us = 0, p90_us = 0;
  int calls = 0, replays = 0;

  static KernelTime of(std::vector<double> us, int calls);
};

/// See KernelTimer::in_chain.
struct ChainTime {
  KernelTime neighbour, both;
  double added_us() const { return both.median_us - neighbour.median_us; }
};

struct HarnessOverhead {
  double empty_graph_us = 0;  // a graph of one empty kernel, from event to event
  double empty_call_us = 0;   // one of a hundred empty kernels in a graph, each overlapping the one before
};

struct KernelResources {
  std::string name;  // mangled; empty if the kernel is a library's
  unsigned grid[3] = {0, 0, 0}, block[3] = {0, 0, 0};
  int registers = 0;             // a thread
  std::size_t shared_bytes = 0;  // a block, static and dynamic
  std::size_t local_bytes = 0;   // a thread: spilled registers and arrays that are not in registers
};

/// What this GPU reached in this run; 0 where it was not measured.
struct Ceilings {
  double read_gbps = 0;              // a large array read once
  double copy_gbps = 0;              // a large array copied, bytes read and bytes written
  double bf16_tflops = 0;            // cuBLASLt, 8192 x 8192 x 8192, random normal values, with a pause before each product
  double bf16_sustained_tflops = 0;  // the same, back to back: the GPU lowers its clocks to keep to its power
  double datasheet_gbps = 0;         // of the GPU's name, 0 if it is not known here
  double datasheet_tflops = 0;       // dense bf16
};

/// By what a row is judged.
enum class Bound { automatic, read, copy, compute };

/// One op at one shape. Bytes are counted once for each tensor that is read or written.
struct KernelCase {
  std::string op = {}, dtype = {}, shape = {};
  double bytes_read = 0, bytes_written = 0, flops = 0;
  Bound bound = Bound::automatic;  // automatic: arithmetic if that alone takes longer, else reading or copying, by the writes
  std::string variant = {};        // of several implementations of the same op
};

struct KernelRow {
  KernelCase what = {};
  std::vector<KernelResources> kernels = {};
  KernelTime cold = {}, warm = {};
  double in_chain_us = 0;  // 0 if it was not measured

  double gbps() const { return (what.bytes_read + what.bytes_written) / cold.median_us * 1e-3; }
  double tflops() const { return what.flops / cold.median_us * 1e-6; }
};

/// Clocks, power and temperature; 0 where the driver's management library does not say.
struct GpuState {
  int sm_mhz = 0, memory_mhz = 0, watts = 0, celsius = 0;
};

/// The GPU that the rows were measured on.
struct GpuIdentity {
  std::string name = {};
  int driver_version = 0, runtime_version = 0, toolkit_version = 0;  // as CUDA numbers them: 13000 is 13.0
  int num_sms = 0;
  std::size_t l2_bytes = 0, memory_bytes = 0;
};

class KernelReport {
 public:
  KernelReport(std::string title, std::vector<std::string> command, std::uint64_t seed);

  Ceilings ceilings;
  HarnessOverhead overhead;
  GpuIdentity gpu;
  GpuState at_start, at_end;

  void add(KernelRow row) { rows_.push_back(std::move(row)); }
  const std::vector<KernelRow>& rows() const { return rows_; }

  Bound bound_of(const KernelRow& row) const;
  /// The least time that the bytes or the arithmetic of `row` take at the ceiling it is judged by, over its cold median; 0 if
  /// that ceiling was not measured.
  double share_of_ceiling(const KernelRow& row) const;
  double share_of_datasheet(const KernelRow& row) const;

  std::string markdown() const;
  /// \throws std::runtime_error if `path` cannot be written
  void write_json(const std::string& path) const;

 private:
  double share(const KernelRow& row, double read, double copy, double tflops) const;

  std::string title_;
  std::vector<std::string> command_;
  std::uint64_t seed_;
  std::vector<KernelRow> rows_;
};

}  // namespace nvl_bench
