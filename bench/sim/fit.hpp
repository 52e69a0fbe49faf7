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
  double seconds = 0;
};

struct StepLog {
  std::string model;  // as nvl-bench names it
  std::vector<LoggedStep> steps;
};

/// \throws std::runtime_error if the file is not one that --step-log writes
StepLog read_step_log(const std::filesystem::path& path);

/// Steps of one model.
struct FitData {
  nvl::ModelConfig model;
  std::vector<LoggedStep> steps;
};

/// How far a model is off, by kind of step.
struct FitError {
  std::size_t num_steps = 0;
  double measured = 0, predicted = 0;  // [s] of all steps
  double mean_relative = 0;            // of single steps, without sign
};

struct FitReport {
  DeviceCost cost;
  FitError decode, prompt;  // steps without and with prompts
};

FitError fit_error(const DeviceCost& cost, const std::vector<FitData>& data, bool with_prompts);

/// Least squares of relative errors over the rates and times of the device: Levenberg and Marquardt's method on their logarithms.
/// Decode steps and steps with prompts count the same together, and within them each by the time that it took; errors beyond 50 %
/// (a step that was interrupted) count as that. Where the log says nothing of a number, it stays what it is in `start`.
FitReport fit_cost(const std::vector<FitData>& data, const DeviceCost& start = {});

}  // namespace nvl_bench
