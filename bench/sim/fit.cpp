#include "bench/sim/fit.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace nvl_bench {

namespace {

/// What is fitted.
constexpr std::array<double DeviceCost::*, 12> fitted{
    &DeviceCost::weight_bytes,  &DeviceCost::kv_bytes,        &DeviceCost::matmul_flops,   &DeviceCost::attention_flops,
    &DeviceCost::row_bytes,     &DeviceCost::layer_us_2,      &DeviceCost::layer_us_16,    &DeviceCost::layer_us_128,
    &DeviceCost::layer_us_more, &DeviceCost::prompt_layer_us, &DeviceCost::mixed_layer_us, &DeviceCost::launch_layer_us};
constexpr std::size_t num_fitted = fitted.size();
using Vector = std::array<double, num_fitted>;
using Matrix = std::array<Vector, num_fitted>;

bool has_prompts(const LoggedStep& step) { return step.work.num_prefill_tokens() > 0; }

/// Of a step with prompts together with the one before it: the host launches it while that one runs, and if this takes longer than
/// the device, the border between the two is where the host happens to look.
double relative_error(const std::vector<double>& predicted, const std::vector<LoggedStep>& steps, std::size_t i) {
  const bool is_pair = i > 0 && has_prompts(steps[i]);
  const double before = is_pair ? predicted[i - 1] : 0, seconds_before = is_pair ? steps[i - 1].seconds : 0;
  return (predicted[i] + before) / (steps[i].seconds + seconds_before) - 1;
}

/// The numbers from their logarithms, relative to `start`.
DeviceCost at(const DeviceCost& start, const Vector& logs) {
  DeviceCost cost = start;
  for (std::size_t i = 0; i < num_fitted; ++i) { cost.*fitted[i] *= std::exp(logs[i]); }
  return cost;
}

class Problem {
 public:
  Problem(const std::vector<FitData>& data, const DeviceCost& start) : data_(data), start_(start) {
    double total[2] = {0, 0};
    for (const FitData& one : data) {
      for (const LoggedStep& step : one.steps) { total[has_prompts(step)] += step.seconds; }
    }
    for (const FitData& one : data) {
      for (const LoggedStep& step : one.steps) { weights_.push_back(std::sqrt(step.seconds / total[has_prompts(step)])); }
    }
  }

  /// Weighted relative errors, and how far the numbers are from where they started.
  std::vector<double> residuals(const Vector& logs) const {
    constexpr double most = 0.5;
    const DeviceCost cost = at(start_, logs);
    std::vector<double> all;
    all.reserve(weights_.size() + num_fitted);
    for (const FitData& one : data_) {
      const std::vector<double> predicted = predicted_seconds(StepCost(one.model, cost, 16), one.steps);
      for (std::size_t i = 0; i < predicted.size(); ++i) {
        const double error = relative_error(predicted, one.steps, i);
        all.push_back(weights_[all.size()] * std::clamp(error, -most, most));
      }
    }
    for (std::size_t i = 0; i < num_fitted; ++i) { all.push_back(pull(i) * logs[i]); }
    return all;
  }

 private:
  /// How strongly a number is held where it started. The steps of one model cannot tell the weights that it reads from what each
  /// layer takes anyway, nor its products from its activations.
  double pull(std::size_t i) const {
    const bool is_rate = fitted[i] == &DeviceCost::weight_bytes || fitted[i] == &DeviceCost::matmul_flops;
    return is_rate && data_.size() == 1 ? 1 : 0.003;
  }

  const std::vector<FitData>& data_;
  DeviceCost start_;
  std::vector<double> weights_;  // a step
};

double square_sum(const std::vector<double>& values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
}

/// Solves a x = b, a being symmetric and positive definite. (Gauss)
Vector solve(Matrix a, Vector b) {
  for (std::size_t i = 0; i < num_fitted; ++i) {
    for (std::size_t r = i + 1; r < num_fitted; ++r) {
      const double factor = a[r][i] / a[i][i];
      for (std::size_t c = i; c < num_fitted; ++c) { a[r][c] -= factor * a[i][c]; }
      b[r] -= factor * b[i];
    }
  }
  for (std::size_t i = num_fitted; i-- > 0;) {
    for (std::size_t c = i + 1; c < num_fitted; ++c) { b[i] -= a[i][c] * b[c]; }
    b[i] /= a[i][i];
  }
  return b;
}

Vector minimum(const Problem& problem) {
  Vector logs{};
  std::vector<double> now = problem.residuals(logs);
  double damping = 1e-3;
  for (int round = 0; round < 200; ++round) {
    constexpr double step = 1e-4;
    std::array<std::vector<double>, num_fitted> slopes;
    for (std::size_t i = 0; i < num_fitted; ++i) {
      Vector moved = logs;
      moved[i] += step;
      slopes[i] = problem.residuals(moved);
      for (std::size_t k = 0; k < now.size(); ++k) { slopes[i][k] = (slopes[i][k] - now[k]) / step; }
    }
    Matrix normal{};
    Vector gradient{};
    for (std::size_t i = 0; i < num_fitted; ++i) {
      for (std::size_t j = 0; j < num_fitted; ++j) {
        normal[i][j] = std::inner_product(slopes[i].begin(), slopes[i].end(), slopes[j].begin(), 0.0);
      }
      gradient[i] = -std::inner_product(slopes[i].begin(), slopes[i].end(), now.begin(), 0.0);
    }
    bool improved = false;
    while (!improved && damping < 1e9) {
      Matrix damped = normal;
      for (std::size_t i = 0; i < num_fitted; ++i) { damped[i][i] += damping * (normal[i][i] + 1e-12); }
      const Vector change = solve(damped, gradient);
      Vector next = logs;
      for (std::size_t i = 0; i < num_fitted; ++i) {
        next[i] = std::clamp(next[i] + std::clamp(change[i], -1.0, 1.0), -5.0, 5.0);
      }
      std::vector<double> there = problem.residuals(next);
      improved = square_sum(there) < square_sum(now) * (1 - 1e-9);
      if (improved) {
        logs = next;
        now = std::move(there);
        damping = std::max(damping / 4, 1e-9);
      } else {
        damping *= 4;
      }
    }
    if (!improved) { break; }
  }
  return logs;
}

}  // namespace

StepLog read_step_log(const std::filesystem::path& path) {
  std::ifstream file(path);
  const auto fail = [&](const std::string& what) -> std::runtime_error {
    return std::runtime_error(path.string() + ": no log of nvl-bench --step-log: " + what);
  };
  StepLog log;
  std::string line;
  constexpr std::string_view model = "# model ";
  if (!std::getline(file, line) || !line.starts_with(model)) { throw fail("its first line does not name a model"); }
  log.model = line.substr(model.size());
  std::getline(file, line);  // the names of the columns
  while (std::getline(file, line)) {
    std::istringstream in(line);
    std::vector<double> values;
    for (std::string cell; std::getline(in, cell, ',');) {
      std::istringstream text(cell);
      if (!(text >> values.emplace_back())) { throw fail("\"" + cell + "\" is no number"); }
    }
    if (values.size() != 14) { throw fail(std::to_string(values.size()) + " columns instead of 14"); }
    const auto count = [&](std::size_t i) { return static_cast<std::int32_t>(values[i]); };
    const auto large = [&](std::size_t i) { return static_cast<std::int64_t>(values[i]); };
    const nvl::StepWork work{.num_seqs = count(3),
                             .num_tokens = count(4),
                             .num_samples = count(5),
                             .num_decodes = count(6),
                             .decode_kv_tokens = large(7),
                             .prefill_kv_tokens = large(8),
                             .prefill_pairs = large(9),
                             .num_copies = count(10),
                             .num_transfers = count(11)};
    if (work.num_tokens > 0 && values[2] > 0) { log.steps.push_back({work, values[1], 1e-6 * values[2]}); }
  }
  return log;
}

std::vector<double> predicted_seconds(const StepCost& cost, const std::vector<LoggedStep>& steps) {
  constexpr double pause = 1e-6;  // [s] that the engine had nothing to do for
  std::vector<double> predicted(steps.size());
  Timeline clock(cost);
  double end = 0, last_end = 0, logged_end = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const LoggedStep& step = steps[i];
    const bool begins = i == 0 || step.start < logged_end - pause || step.start > logged_end + pause;
    if (begins) {  // of a run, or after a pause: nothing was launched ahead
      clock.wait_until(end + 1);
      last_end = clock.now();
      end = clock.launch(step.work);
    }
    logged_end = step.start + step.seconds;
    const bool goes_on = i + 1 < steps.size() && std::abs(steps[i + 1].start - logged_end) <= pause;
    const double next_end = goes_on && cost.runs_ahead() ? clock.launch(steps[i + 1].work) : end;
    clock.wait_until(end);
    predicted[i] = clock.now() - last_end;
    last_end = clock.now();
    if (goes_on && !cost.runs_ahead()) {
      end = clock.launch(steps[i + 1].work);
    } else {
      end = next_end;
    }
  }
  return predicted;
}

FitError fit_error(const DeviceCost& cost, const std::vector<FitData>& data, bool with_prompts) {
  FitError error;
  for (const FitData& one : data) {
    const std::vector<double> predicted = predicted_seconds(StepCost(one.model, cost, 16), one.steps);
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      if (has_prompts(one.steps[i]) != with_prompts) { continue; }
      ++error.num_steps;
      error.measured += one.steps[i].seconds;
      error.predicted += predicted[i];
      error.mean_relative += std::abs(relative_error(predicted, one.steps, i));
    }
  }
  if (error.num_steps > 0) { error.mean_relative /= static_cast<double>(error.num_steps); }
  return error;
}

FitReport fit_cost(const std::vector<FitData>& data, const DeviceCost& start) {
  FitReport report;
  report.cost = at(start, minimum(Problem(data, start)));
  report.decode = fit_error(report.cost, data, false);
  report.prompt = fit_error(report.cost, data, true);
  return report;
}

}  // namespace nvl_bench
