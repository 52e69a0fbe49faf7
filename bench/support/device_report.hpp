#pragma once
/// On which device a benchmark ran.

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#ifndef NVL_CUDA_TOOLKIT
#define NVL_CUDA_TOOLKIT "unknown"
#endif

namespace nvl_bench {

struct DeviceReport {
  std::string kind = "cpu";  // as --device names it
  std::string name;          // empty for the CPU, whose name the report has anyway
  std::string driver, toolkit;
  int sm_clock_mhz = 0, mem_clock_mhz = 0;  // when the report was made; 0 = not known
};

namespace detail {

/// "a, b,c" -> {"a", "b", "c"}
inline std::vector<std::string> comma_separated(std::string_view line) {
  std::vector<std::string> fields;
  while (true) {
    const std::size_t comma = std::min(line.find(','), line.size());
    std::string_view field = line.substr(0, comma);
    while (!field.empty() && (field.front() == ' ' || field.front() == '\n')) { field.remove_prefix(1); }
    while (!field.empty() && (field.back() == ' ' || field.back() == '\n')) { field.remove_suffix(1); }
    fields.emplace_back(field);
    if (comma == line.size()) { return fields; }
    line.remove_prefix(comma + 1);
  }
}

inline int clock_of(const std::string& field) {
  int mhz = 0;
  return std::sscanf(field.c_str(), "%d", &mhz) == 1 ? mhz : 0;
}

}  // namespace detail

/// From a line of `nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader,nounits`.
inline DeviceReport parse_nvidia_smi(std::string_view line) {
  DeviceReport report{.kind = "cuda", .name = "unknown", .driver = "unknown", .toolkit = NVL_CUDA_TOOLKIT};
  const std::vector<std::string> fields = detail::comma_separated(line);
  if (fields.size() < 4 || fields[0].empty()) { return report; }
  report.name = fields[0];
  report.driver = fields[1];
  report.sm_clock_mhz = detail::clock_of(fields[2]);
  report.mem_clock_mhz = detail::clock_of(fields[3]);
  return report;
}

/// The device that `--device` names. Asks nvidia-smi, so that this needs no CUDA; takes up to a second. Clocks are those of this
/// moment: call it while the device is busy or just has been.
inline DeviceReport device_report(std::string_view kind, int ordinal = 0) {
  if (kind != "cuda") { return {}; }
  const std::string command = "nvidia-smi -i " + std::to_string(ordinal) +
                              " --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader,nounits 2>/dev/null";
  std::string line;
  if (std::FILE* const pipe = ::popen(command.c_str(), "r")) {
    std::array<char, 512> text{};
    if (std::fgets(text.data(), static_cast<int>(text.size()), pipe) != nullptr) { line = text.data(); }
    ::pclose(pipe);
  }
  return parse_nvidia_smi(line);
}

}  // namespace nvl_bench
