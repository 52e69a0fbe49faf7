#pragma once
/// What can be set about the order and the cutting of work: one struct for an engine's options and for its scheduler's.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/sched/preemption_costs.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

namespace nvl::inline NVL_ABI {

/// Read by TokenBudgetScheduler and its orders; PrefillFirstScheduler has no use for any of it.
struct SchedulingOptions {
  // How prompts share a step with decodes
  std::int32_t max_prefill_tokens_beside_decodes =
      0;                                          // [tokens] of prompts in a step that decodes too; 0 = what the step has left
  std::int32_t long_prefill_token_threshold = 0;  // [tokens] of one prompt in a step at most; 0 = what the step has left
  std::int32_t max_num_partial_prefills = 0;      // prompts that are computed in parts at once; 0 = any number
  std::int32_t max_long_partial_prefills = 0;  // of them with more than long_prefill_token_threshold tokens left; 0 = any number

  // What runs beside a step
  std::int32_t max_demotions = 32;  // [blocks] of the prefix cache that are copied to host memory beside one step

  // When sequences are swapped (SwapPreemption, CostPreemption)
  std::int32_t swap_out_steps = 1;  // victims leave as soon as free blocks do not last for so many steps after this one
  std::int32_t swap_in_steps = 32;  // one comes back when they then last for so many steps of all that run

  PreemptionCosts preemption_costs{};  // what CostPreemption compares

  // What the orders weigh
  std::int32_t priority_aging_steps = 256;    // waiting so many steps is worth one level of Sequence::priority
  std::int32_t prompt_token_cost = 1;         // of a computed prompt token, to fair shares and shortest work
  std::int32_t output_token_cost = 2;         // of a computed output token, likewise
  std::int32_t work_aging_cost = 16;          // waiting one step is worth so much of remaining work
  std::int32_t longest_prefix_window = 32;    // the prefixes of so many sequences, the first to come, are compared
  std::int32_t longest_prefix_patience = 64;  // so often the first to come is passed over
};

/// \throws InvalidArgument for a field out of range.
inline void validate(const SchedulingOptions& options) {
  const auto not_negative = [](const char* field, std::int32_t value) { NVL_EXPECTS(value >= 0, field, value, "not negative"); };
  const auto positive = [](const char* field, std::int32_t value) { NVL_EXPECTS(value >= 1, field, value, "at least 1"); };
  not_negative("max_prefill_tokens_beside_decodes", options.max_prefill_tokens_beside_decodes);
  not_negative("long_prefill_token_threshold", options.long_prefill_token_threshold);
  not_negative("max_num_partial_prefills", options.max_num_partial_prefills);
  not_negative("max_long_partial_prefills", options.max_long_partial_prefills);
  NVL_EXPECTS(options.max_long_partial_prefills == 0 || options.long_prefill_token_threshold > 0, "max_long_partial_prefills",
              options.max_long_partial_prefills, "0 unless long_prefill_token_threshold says what is long");
  not_negative("max_demotions", options.max_demotions);
  not_negative("swap_out_steps", options.swap_out_steps);
  NVL_EXPECTS(options.swap_in_steps >= options.swap_out_steps, "swap_in_steps", options.swap_in_steps,
              "at least swap_out_steps (" + std::to_string(options.swap_out_steps) + "): who comes back would leave at once");
  const PreemptionCosts& costs = options.preemption_costs;
  const std::size_t num_points = costs.num_points();
  NVL_EXPECTS(num_points >= 1, "points of preemption_costs", num_points, "at least 1");
  for (std::size_t i = 0; i < num_points; ++i) {
    const PreemptionCost& point = costs.points[i];
    NVL_EXPECTS(i == 0 || point.tokens > costs.points[i - 1].tokens, "tokens of preemption_costs", point.tokens, "ascending");
    NVL_EXPECTS(point.swap >= 0, "swap of preemption_costs", point.swap, "not negative");
    NVL_EXPECTS(point.recompute >= 0, "recompute of preemption_costs", point.recompute, "not negative");
  }
  positive("priority_aging_steps", options.priority_aging_steps);
  not_negative("prompt_token_cost", options.prompt_token_cost);
  positive("output_token_cost", options.output_token_cost);
  positive("work_aging_cost", options.work_aging_cost);
  positive("longest_prefix_window", options.longest_prefix_window);
  not_negative("longest_prefix_patience", options.longest_prefix_patience);
}

}  // namespace nvl::inline NVL_ABI
