#pragma once
/// On which device a benchmark ran.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

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

/// From a line of `nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.mem --format=csv,noheader,nounits`.
inline DeviceReport parse_nvidia_smi(std::string_view line) {
  DeviceReport report;
  report.kind = "cuda";
  const std::vector<std::string> fields = detail::comma_separated(line);
  if (fields.size() < 3) { return report; }
  report.driver = fields[0];
  report.sm_clock_mhz = detail::clock_of(fields[1]);
  report.mem_clock_mhz = detail::clock_of(fields[2]);
  return report;
}

/// Driver and clocks of this moment. Takes up to a second; without the program the fields stay empty.
inline DeviceReport query_nvidia_smi(int ordinal) {
  const std::string command = "nvidia-smi -i " + std::to_string(ordinal) +
                              " --query-gpu=driver_version,clocks.sm,clocks.mem --format=csv,noheader,nounits 2>/dev/null";
  std::string line;
  if (std::FILE* const pipe = ::popen(command.c_str(), "r")) {
    std::array<char, 512> text{};
    if (std::fgets(text.data(), static_cast<int>(text.size()), pipe) != nullptr) { line = text.data(); }
    if (::pclose(pipe) != 0) { line.clear(); }
  }
  return parse_nvidia_smi(line);
}

}  // namespace nvl_bench
