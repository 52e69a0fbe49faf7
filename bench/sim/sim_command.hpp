#pragma once
/// The options of nvl-sim, and what it does with them.

#include "bench/sim/cost_model.hpp"
#include "bench/sim/simulate.hpp"
#include "bench/support/report.hpp"
#include "bench/support/traces.hpp"
#include "support/options.hpp"

#include <nvl/core/model_config.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nvl_bench {

/// One simulation of a sweep.
struct SimCase {
  std::vector<std::string> varied;  // values of the options that the sweep varies
  PolicyChoice policies;
  std::string trace;
  TraceOptions load;
  std::int32_t block_size = 16;
  std::int32_t max_num_seqs = 256, max_num_batched_tokens = 16384;
  nvl::SchedulingOptions scheduling;
};

/// Options that take a list, "a,b,c", are varied: every combination is simulated.
struct SimCommand {
  // The load
  std::string traces = "sharegpt", request_rates = "inf";
  std::optional<std::int64_t> num_prompts;
  std::int32_t input_len = 512, output_len = 128;
  double range_ratio = 0, think_time = 0;
  std::uint64_t seed = 0;
  // The policies
  std::string schedulers = "token-budget", orders = "fcfs", preemptions = "recompute", caches = "hash";
  std::string block_sizes = "16", max_num_seqs = "256", max_num_batched_tokens = "16384";
  std::string max_prefill_tokens_beside_decodes = "0", long_prefill_token_threshold = "0";
  // The device
  std::string model = "qwen3-0.6b";
  std::optional<std::int64_t> kv_tokens;
  double swap_space = 0;  // [GiB]
  std::optional<std::filesystem::path> cost_file, output_json, output_cost;
  std::vector<std::filesystem::path> fit_logs;
  bool no_run_ahead = false;

  void add_to(nvl_examples::OptionParser& parser);
  int run(const std::vector<std::string>& command);

 private:
  int fit(const DeviceCost& start) const;
  std::vector<SimCase> cases(std::vector<std::string>& varied_names) const;
  nvl::BlockPoolShape pool(const nvl::ModelConfig& config, const StepCost& cost, std::int32_t block_size) const;
};

/// \throws std::runtime_error if the file is not one that `--fit` writes
DeviceCost read_cost(const std::filesystem::path& path);
Json to_json(const DeviceCost& cost);

}  // namespace nvl_bench
