#include "bench/kernels/support/kernel_report.hpp"

#include "bench/kernels/support/kernel_bench_options.hpp"
#include "bench/support/report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cxxabi.h>
#include <memory>
#include <stdexcept>

namespace nvl_bench {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string dims(const unsigned (&d)[3]) {
  std::string text = std::to_string(d[0]);
  if (d[1] > 1 || d[2] > 1) { text += "," + std::to_string(d[1]); }
  if (d[2] > 1) { text += "," + std::to_string(d[2]); }
  return text;
}

std::string percent(double share) { return share > 0 ? fixed(100 * share, 1) + " %" : "-"; }

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

/// One of `kernels` after the other, as `part` prints each.
template <class Part>
std::string each(const std::vector<KernelResources>& kernels, Part&& part) {
  std::string text;
  for (const KernelResources& kernel : kernels) {
    text += (text.empty() ? "" : " + ") + (kernel.registers == 0 ? std::string("library") : part(kernel));
  }
  return text.empty() ? "-" : text;
}

Json to_json(const KernelTime& time) {
  return {{"median_us", time.median_us},
          {"p10_us", time.p10_us},
          {"p90_us", time.p90_us},
          {"calls", time.calls},
          {"replays", time.replays}};
}
Json to_json(const GpuState& state) {
  return {{"sm_mhz", state.sm_mhz}, {"memory_mhz", state.memory_mhz}, {"watts", state.watts}, {"celsius", state.celsius}};
}

const char* name_of(Bound bound) {
  switch (bound) {
    case Bound::read: return "read";
    case Bound::copy: return "copy";
    case Bound::compute: return "compute";
    case Bound::automatic: break;
  }
  return "automatic";
}

}  // namespace

KernelTime KernelTime::of(std::vector<double> us, int calls) {
  const auto replays = static_cast<int>(us.size());
  const Samples samples(std::move(us));
  return {samples.median(), samples.percentile(10), samples.percentile(90), calls, replays};
}

KernelReport::KernelReport(std::string title, std::vector<std::string> command, std::uint64_t seed)
    : title_(std::move(title)),
      command_(std::move(command)),
      seed_(seed) {}

Bound KernelReport::bound_of(const KernelRow& row) const {
  const KernelCase& c = row.what;
  if (c.bound != Bound::automatic) { return c.bound; }
  const Bound memory = c.bytes_written * 8 < c.bytes_read ? Bound::read : Bound::copy;
  const double gbps = memory == Bound::read ? ceilings.read_gbps : ceilings.copy_gbps;
  const bool arithmetic = ceilings.bf16_tflops > 0 && gbps > 0 &&
                          c.flops / ceilings.bf16_tflops * 1e-12 > (c.bytes_read + c.bytes_written) / gbps * 1e-9;
  return arithmetic ? Bound::compute : memory;
}

double KernelReport::share(const KernelRow& row, double read, double copy, double tflops) const {
  if (row.cold.median_us <= 0) { return 0; }
  switch (bound_of(row)) {
    case Bound::read: return read > 0 ? row.gbps() / read : 0;
    case Bound::copy: return copy > 0 ? row.gbps() / copy : 0;
    case Bound::compute: return tflops > 0 ? row.tflops() / tflops : 0;
    case Bound::automatic: break;
  }
  return 0;
}
double KernelReport::share_of_ceiling(const KernelRow& row) const {
  return share(row, ceilings.read_gbps, ceilings.copy_gbps, ceilings.bf16_tflops);
}
double KernelReport::share_of_datasheet(const KernelRow& row) const {
  return share(row, ceilings.datasheet_gbps, ceilings.datasheet_gbps, ceilings.datasheet_tflops);
}

std::string KernelReport::markdown() const {
  std::string command;
  for (const std::string& word : command_) { command += (command.empty() ? "" : " ") + word; }
  std::string out = "## " + title_ + "\n\n";
  const auto line = [&](const std::string& name, const std::string& value) { out += "- " + name + ": " + value + "\n"; };
  line("command", command);
  line("GPU", gpu.name + ", " + std::to_string(gpu.num_sms) + " SMs, L2 " + std::to_string(gpu.l2_bytes >> 20) + " MiB");
  for (const auto& [when, state] : {std::pair{"at the start", at_start}, std::pair{"at the end", at_end}}) {
    line(std::string("clocks ") + when, std::to_string(state.sm_mhz) + " MHz SM, " + std::to_string(state.memory_mhz) +
                                            " MHz memory, " + std::to_string(state.watts) + " W, " +
                                            std::to_string(state.celsius) + " C");
  }
  line("CUDA", "driver " + version(gpu.driver_version) + ", runtime " + version(gpu.runtime_version) + ", toolkit " +
                   version(gpu.toolkit_version));
  line("nvl", std::string(NVL_GIT_COMMIT) + ", seed " + std::to_string(seed_));
  line("ceilings of this run",
       "read " + fixed(ceilings.read_gbps, 0) + " GB/s, copy " + fixed(ceilings.copy_gbps, 0) + " GB/s" +
           (ceilings.bf16_tflops > 0 ? ", bf16 " + fixed(ceilings.bf16_tflops, 0) + " TFLOP/s (back to back " +
                                           fixed(ceilings.bf16_sustained_tflops, 0) + ")"
                                     : ""));
  line("empty kernel", fixed(overhead.empty_graph_us, 2) + " us alone in a graph, " + fixed(overhead.empty_call_us, 2) +
                           " us in a chain (not subtracted)");
  out += "\n";

  std::vector<std::vector<std::string>> table{{"op", "dtype", "shape", "grid x block", "regs", "smem", "local", "cold us",
                                               "p10-p90", "warm us", "p10-p90", "in chain us", "GB/s", "TFLOP/s", "ceiling",
                                               "share", "of datasheet"}};
  for (const KernelRow& row : rows_) {
    const auto spread = [](const KernelTime& t) { return fixed(t.p10_us, 2) + "-" + fixed(t.p90_us, 2); };
    table.push_back({row.what.op + (row.what.variant.empty() ? "" : " " + row.what.variant), row.what.dtype, row.what.shape,
                     each(row.kernels, [](const KernelResources& k) { return dims(k.grid) + " x " + dims(k.block); }),
                     each(row.kernels, [](const KernelResources& k) { return std::to_string(k.registers); }),
                     each(row.kernels, [](const KernelResources& k) { return std::to_string(k.shared_bytes); }),
                     each(row.kernels, [](const KernelResources& k) { return std::to_string(k.local_bytes); }),
                     fixed(row.cold.median_us, 2), spread(row.cold), row.warm.calls > 0 ? fixed(row.warm.median_us, 2) : "-",
                     row.warm.calls > 0 ? spread(row.warm) : "-", row.in_chain_us != 0 ? fixed(row.in_chain_us, 2) : "-",
                     fixed(row.gbps(), 0), row.what.flops > 0 ? fixed(row.tflops(), 1) : "-", name_of(bound_of(row)),
                     percent(share_of_ceiling(row)), percent(share_of_datasheet(row))});
  }
  return out + markdown_table(table);
}

void KernelReport::write_json(const std::string& path) const {
  Json json = environment(command_, title_, nvl::DType::float32, 0);
  for (const char* key : {"cpu", "num_threads", "model", "dtype"}) { json.erase(key); }
  json["benchmark"] = title_;
  json["device"] = gpu.name;
  json["seed"] = seed_;
  json["gpu"] = {{"num_sms", gpu.num_sms},
                 {"l2_bytes", gpu.l2_bytes},
                 {"memory_bytes", gpu.memory_bytes},
                 {"driver", version(gpu.driver_version)},
                 {"runtime", version(gpu.runtime_version)},
                 {"toolkit", version(gpu.toolkit_version)},
                 {"at_start", to_json(at_start)},
                 {"at_end", to_json(at_end)}};
  json["ceilings"] = {{"read_gbps", ceilings.read_gbps},           {"copy_gbps", ceilings.copy_gbps},
                      {"bf16_tflops", ceilings.bf16_tflops},       {"bf16_sustained_tflops", ceilings.bf16_sustained_tflops},
                      {"datasheet_gbps", ceilings.datasheet_gbps}, {"datasheet_bf16_tflops", ceilings.datasheet_tflops}};
  json["overhead"] = {{"empty_graph_us", overhead.empty_graph_us}, {"empty_call_us", overhead.empty_call_us}};
  json["rows"] = Json::array();
  for (const KernelRow& row : rows_) {
    Json kernels = Json::array();
    for (const KernelResources& k : row.kernels) {
      kernels.push_back({{"name", demangled(k.name)},
                         {"grid", {k.grid[0], k.grid[1], k.grid[2]}},
                         {"block", {k.block[0], k.block[1], k.block[2]}},
                         {"registers", k.registers},
                         {"shared_bytes", k.shared_bytes},
                         {"local_bytes", k.local_bytes}});
    }
    Json entry{{"op", row.what.op}, {"variant", row.what.variant}, {"dtype", row.what.dtype}, {"shape", row.what.shape}};
    entry["bytes_read"] = row.what.bytes_read;
    entry["bytes_written"] = row.what.bytes_written;
    entry["flops"] = row.what.flops;
    entry["kernels"] = kernels;
    entry["cold"] = to_json(row.cold);
    entry["warm"] = to_json(row.warm);
    if (row.in_chain_us != 0) { entry["in_chain_us"] = row.in_chain_us; }
    entry["gbps"] = row.gbps();
    entry["tflops"] = row.tflops();
    entry["ceiling"] = name_of(bound_of(row));
    entry["share_of_ceiling"] = share_of_ceiling(row);
    entry["share_of_datasheet"] = share_of_datasheet(row);
    json["rows"].push_back(std::move(entry));
  }
  nvl_bench::write_json(path, json);
}

KernelBenchOptions parse_kernel_bench_options(const std::vector<std::string>& arguments, bool gemm_by_default) {
  KernelBenchOptions options;
  options.measure_gemm = gemm_by_default;
  const auto usage = [](const std::string& problem) {
    throw std::runtime_error(problem +
                             "\noptions: --json FILE, --filter TEXT, --seed N, --replays N, --ceilings none|memory|all");
  };
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const std::string& name = arguments[i];
    if (i + 1 == arguments.size()) { usage(name + " needs a value, or is no option"); }
    const std::string& value = arguments[i + 1];
    const auto number = [&] {
      std::size_t used = 0;
      unsigned long long n = 0;
      try {
        n = std::stoull(value, &used);
      } catch (const std::exception&) { used = 0; }
      if (used == 0 || used != value.size()) { usage(name + " " + value + ": a number is needed"); }
      return n;
    };
    if (name == "--json") {
      options.json = value;
      require_writable(value);
    } else if (name == "--filter") {
      options.filter = value;
    } else if (name == "--seed") {
      options.seed = number();
    } else if (name == "--replays") {
      options.timer.replays = static_cast<int>(std::clamp<unsigned long long>(number(), 1, 100000));
    } else if (name == "--ceilings" && (value == "none" || value == "memory" || value == "all")) {
      options.measure_memory = value != "none";
      options.measure_gemm = value == "all";
    } else {
      usage(name + " " + value + ": no such option");
    }
  }
  return options;
}

}  // namespace nvl_bench
