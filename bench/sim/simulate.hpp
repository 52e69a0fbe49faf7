#pragma once
/// Simulations whose policies are named at run time.

#include "bench/sim/simulator.hpp"

#include <string>
#include <vector>

namespace nvl_bench {

/// One of each list that `policy_names` gives.
struct PolicyChoice {
  std::string scheduler = "token-budget", order = "fcfs", preemption = "recompute", cache = "hash";
};

/// "scheduler", "order", "preemption" or "cache": the names there are.
std::vector<std::string> policy_names(const std::string& kind);

/// \throws std::invalid_argument for a name that there is not, or names that do not go together
SimResult simulate(const PolicyChoice& choice, const SimOptions& options, const StepCost& cost, Trace& trace);

}  // namespace nvl_bench
