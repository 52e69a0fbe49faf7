#pragma once
/// What a benchmark says about its numbers: on which machine, with which build and command, and how they spread.

#include "bench/support/device_report.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/version.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if __has_include(<nvl_git_commit.hpp>)
#include <nvl_git_commit.hpp>
#else
#define NVL_GIT_COMMIT "unknown"
#endif

#ifndef NVL_BUILD_FLAGS
#define NVL_BUILD_FLAGS "unknown"
#endif

namespace nvl_bench {

using Json = nlohmann::ordered_json;

inline constexpr std::array<int, 6> percentiles{10, 25, 50, 75, 90, 99};

/// Numbers of one quantity, sorted.
class Samples {
 public:
  explicit Samples(std::vector<double> values) : values_(std::move(values)) { std::sort(values_.begin(), values_.end()); }

  bool empty() const { return values_.empty(); }
  double mean() const {
    double sum = 0;
    for (const double value : values_) { sum += value; }
    return values_.empty() ? 0 : sum / static_cast<double>(values_.size());
  }
  /// Of the population, as numpy's default.
  double std() const {
    const double center = mean();
    double sum = 0;
    for (const double value : values_) { sum += (value - center) * (value - center); }
    return values_.empty() ? 0 : std::sqrt(sum / static_cast<double>(values_.size()));
  }
  /// Between the two nearest values in proportion, as numpy's default. `p` in [0, 100]
  double percentile(double p) const {
    if (values_.empty()) { return 0; }
    const double place = p / 100 * static_cast<double>(values_.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, values_.size() - 1);
    return values_[below] + (place - static_cast<double>(below)) * (values_[above] - values_[below]);
  }
  double median() const { return percentile(50); }

 private:
  std::vector<double> values_;
};

/// mean_<name>, median_<name>, std_<name> and percentiles, with the values times `scale`.
inline void add_distribution(Json& json, const std::string& name, const Samples& samples, double scale) {
  json["mean_" + name] = scale * samples.mean();
  json["median_" + name] = scale * samples.median();
  json["std_" + name] = scale * samples.std();
  for (const int p : percentiles) { json["p" + std::to_string(p) + "_" + name] = scale * samples.percentile(p); }
}

inline std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) { return line.substr(colon + 2); }
  }
  return "unknown";
}

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

/// The part of the JSON report that is the same for every benchmark.
inline Json environment(const std::vector<std::string>& command, const std::string& model, nvl::DType dtype,
                        std::int32_t num_threads, const DeviceReport& device = {}) {
  std::string words;
  for (const std::string& word : command) { words += (words.empty() ? "" : " ") + word; }
  const std::time_t now = std::time(nullptr);
  char date[32] = "";
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  Json json;
  json["date"] = date;
  json["command"] = words;
  json["nvl_version"] =
      std::to_string(NVL_VERSION_MAJOR) + "." + std::to_string(NVL_VERSION_MINOR) + "." + std::to_string(NVL_VERSION_PATCH);
  json["git_commit"] = NVL_GIT_COMMIT;
  json["compiler"] = compiler() + " (" NVL_BUILD_FLAGS ")";
  json["cpu"] = cpu_model();
  json["device"] = device.kind;
  if (!device.name.empty()) {
    json["device_name"] = device.name;
    json["driver"] = device.driver;
    json["cuda_toolkit"] = device.toolkit;
    json["sm_clock_mhz"] = device.sm_clock_mhz;
    json["mem_clock_mhz"] = device.mem_clock_mhz;
  }
  json["num_threads"] = num_threads;
  json["model"] = model;
  json["dtype"] = std::string(nvl::info(dtype).name);
  return json;
}

/// A Markdown table of rows of the same length; the first row is the head.
inline std::string markdown_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows.front().size(), 3);
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) { widths[i] = std::max(widths[i], row[i].size()); }
  }
  std::string out;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t i = 0; i < widths.size(); ++i) {
      out += "| " + rows[r][i] + std::string(widths[i] - rows[r][i].size() + 1, ' ');
    }
    out += "|\n";
    if (r != 0) { continue; }
    for (const std::size_t width : widths) { out += "|" + std::string(width + 2, '-'); }
    out += "|\n";
  }
  return out;
}

/// The header of a printed report, from environment().
inline std::string markdown_header(const Json& environment, std::string_view title) {
  std::string out = "## nvl-bench " + std::string(title) + "\n\n";
  for (const char* key :
       {"command", "model", "dtype", "device_name", "driver", "cuda_toolkit", "sm_clock_mhz", "mem_clock_mhz", "cpu",
        "num_threads", "data_parallel_size", "router", "compiler", "nvl_version", "git_commit", "date"}) {
    if (!environment.contains(key)) { continue; }
    const Json& value = environment.at(key);
    out += "- " + std::string(key) + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
  }
  return out + "\n";
}

inline std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

/// Before a long run. \throws std::runtime_error if write_json could not write `path`
inline void require_writable(const std::filesystem::path& path) {
  const std::filesystem::path draft = path.string() + ".tmp";
  std::error_code ignored;
  if (!std::ofstream(draft) || std::filesystem::is_directory(path, ignored)) {
    throw std::runtime_error(path.string() + ": cannot be written");
  }
  std::filesystem::remove(draft, ignored);
}

/// \throws std::runtime_error if `path` cannot be written. The file is complete or as it was.
inline void write_json(const std::filesystem::path& path, const Json& json) {
  const std::filesystem::path draft = path.string() + ".tmp";
  {
    std::ofstream file(draft, std::ios::binary);
    file << json.dump(2) << '\n';
    file.close();
    if (!file) { throw std::runtime_error(path.string() + ": cannot be written"); }
  }
  std::error_code error;
  std::filesystem::rename(draft, path, error);
  if (error) { throw std::runtime_error(path.string() + ": cannot be written: " + error.message()); }
}

}  // namespace nvl_bench
