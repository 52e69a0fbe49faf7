#pragma once
/// The commands of nvl-bench: each declares its options on a parser, then runs.

#include "bench/engine/bench_model.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nvl_bench {

/// A batch of equal requests, again and again.
struct LatencyCommand {
  CommonOptions common;
  std::int32_t input_len = 512, output_len = 128, batch_size = 1, num_warmup = 2, num_iters = 9;

  void add_to(nvl_examples::OptionParser& parser);
  int run(const std::vector<std::string>& command);
};

/// Many requests, all submitted at the start or each when it arrives.
struct ThroughputCommand {
  CommonOptions common;
  std::optional<std::string> dataset;
  std::optional<std::int32_t> input_len, output_len, num_prompts, num_warmups;
  std::optional<double> range_ratio, temperature, request_rate;
  std::optional<std::filesystem::path> step_log;
  double think_time = 0;  // [s]
  std::int32_t num_runs = 1;
  bool fresh_ids = false;

  void add_to(nvl_examples::OptionParser& parser);
  int run(const std::vector<std::string>& command);

 private:
  void validate();
  /// \param run of a trace: another seed for each
  Workload make_load(const nvl::ModelConfig& config, std::uint64_t run) const;
  /// Whether requests have tokens in common, as the load's purpose.
  bool shares_prefixes() const { return dataset == "shared-prefix" || dataset == "chat" || dataset == "agents"; }
};

/// The time from the start of a process to its first token. Starts this program again as `startup_child`.
struct StartupCommand {
  CommonOptions common;
  std::int32_t input_len = 512, num_iters = 5;
  std::optional<std::filesystem::path> checkpoint_dir;

  void add_to(nvl_examples::OptionParser& parser);
  int run(const std::vector<std::string>& command);

 private:
  void validate();
};

/// A command that help does not show: it loads a model, generates one token and tells StartupCommand when it did what.
inline constexpr std::string_view startup_child = "startup-child";
/// \param main_seconds when main began
int run_startup_child(int argc, const char* const* argv, double main_seconds);

/// [seconds] of the monotonic clock, which all processes of a machine share
double monotonic_seconds();

}  // namespace nvl_bench
