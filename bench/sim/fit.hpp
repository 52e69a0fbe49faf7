#pragma once
/// Finds the DeviceCost that explains a log of steps (nvl-bench throughput --step-log).

#include "bench/sim/cost_model.hpp"

#include <nvl/core/model_config.hpp>
#include <nvl/sched/step_work.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nvl_bench {

struct LoggedStep {
  nvl::StepWork work;
  double start = 0, seconds = 0;  // as nvl-bench logs them: the host's view
};

struct StepLog {
  std::string model;  // as nvl-bench names it
  std::vector<LoggedStep> steps;
};

/// \throws std::runtime_error if the file is not one that --step-log writes
StepLog read_step_log(const std::filesystem::path& path);

/// Steps of one model, in their order, of an engine that runs one ahead.
struct FitData {
  nvl::ModelConfig model;
  std::vector<LoggedStep> steps;
};

/// How far a model is off, by kind of step.
struct FitError {
  std::size_t num_steps = 0;
  double measured = 0, predicted = 0;  // [s] of all steps
  double mean_relative = 0;            // of single steps, without sign; of those with prompts, together with the step before
};

struct FitReport {
  DeviceCost cost;
  FitError decode, prompt;  // steps without and with prompts
};

/// [s] that a model takes for each of these steps as the host sees it: one that waits for the launch of the next takes longer, and
/// the next so much less.
std::vector<double> predicted_seconds(const StepCost& cost, const std::vector<LoggedStep>& steps);

FitError fit_error(const DeviceCost& cost, const std::vector<FitData>& data, bool with_prompts);

/// Least squares of relative errors over the rates and times of the device: Levenberg and Marquardt's method on their logarithms.
/// Decode steps and steps with prompts count the same together, and within them each by the time that it took; errors beyond 50 %
/// (a step that was interrupted) count as that. Where the log says nothing of a number, it stays what it is in `start`;
/// with the steps of one model, weight_bytes and matmul_flops do.
FitReport fit_cost(const std::vector<FitData>& data, const DeviceCost& start = {});

}  // namespace nvl_bench
