#pragma once
/// Runs loads on an engine and turns what they took into rows and JSON.

#include "bench/engine/bench_model.hpp"
#include "bench/support/report.hpp"
#include "bench/support/verify.hpp"
#include "bench/support/workload.hpp"
#include "support/progress.hpp"

#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/sched/step_work.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nvl_bench {

using Clock = std::chrono::steady_clock;
using TableRows = std::vector<std::vector<std::string>>;

inline double seconds(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

/// One step of an engine, as its caller sees it.
struct StepRecord {
  double start = 0;    // [s] since the round began
  double seconds = 0;  // from the end of the step before; of a step after a pause: from its own start
  nvl::StepWork work;
  std::uint32_t num_waiting = 0, num_running = 0;  // when it ended
};

struct RoundOptions {
  bool may_hit_cache = false;  // whether the prefix cache may have parts of the prompts
  bool log_steps = false;
  nvl_examples::Progress* bar = nullptr;
};

/// One round of requests, each submitted when it arrives; it ends when all are done.
struct Round {
  double elapsed = 0;       // [seconds] until the last token
  double first_tokens = 0;  // [seconds] until every request has its first token
  std::int64_t input_tokens = 0, output_tokens = 0, cached_tokens = 0;
  std::uint64_t num_steps = 0, num_preemptions = 0;
  double mean_batch = 0;                     // sequences of a step
  double kv_waste = 0;                       // share of the allocated slots of the KV cache that hold no token
  double exposed_host_us = 0;                // a step: the device waited for the host
  std::vector<nvl::RequestTimings> timings;  // from the arrival, not from the submission, which may have to wait for a step
  std::vector<double> itl;                   // [seconds] between two tokens of one request
  std::vector<StepRecord> steps;             // if they were to be logged
};

/// \throws std::runtime_error if a request fails
Round run_round(nvl::AnyEngine& engine, const Workload& load, const RoundOptions& options = {});

/// Writes the steps of all rounds as comma-separated values, under a line "# model NAME" and one of the columns' names.
/// \throws std::runtime_error if `path` cannot be written
void write_step_log(const std::filesystem::path& path, const std::string& model, std::span<const Round> rounds);

/// What the CPU engine promises: two requests give the same tokens together and alone. \throws std::runtime_error
void check_together_and_alone(nvl::AnyEngine& engine, RequestLengths lengths, RandomIds& random);

/// Adds ttft, tpot, itl and e2el of all requests in milliseconds, and their rows of the table.
void add_request_times(Json& json, TableRows& rows, std::span<const Round> rounds);

/// name, mean, std, median and the outer percentiles of values times `scale`
std::vector<std::string> distribution_row(const std::string& name, const Samples& samples, double scale, int digits);
inline const std::vector<std::string> distribution_head{"quantity", "mean", "std", "median", "p10", "p90", "p99"};

/// The report's beginning. Asks the device for its clocks: call it right after the measurement.
Json report_head(const std::vector<std::string>& command, const BenchModel& model, const CommonOptions& common,
                 const DeviceReport& device);

void add_verdict(Json& json, const std::optional<Verdict>& verdict);
/// One sentence.
std::string verdict_text(const std::optional<Verdict>& verdict);

/// The rates that were given, else those known of the device.
PeakRates peak_rates(const CommonOptions& common, const DeviceReport& device);

/// Prints the tables under a head from `json` and writes the file, if one was asked for.
void finish_report(const CommonOptions& common, std::string_view title, const Json& json, const std::string& tables);

}  // namespace nvl_bench
