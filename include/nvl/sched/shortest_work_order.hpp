#pragma once
/// An Order by what is left to do, least first, in which waiting counts too.

#include <nvl/core/config.hpp>
#include <nvl/sched/keyed_order.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Remaining work: the known tokens that are not computed, and the output that max_tokens still allows, at what each costs
/// (SchedulingOptions). It is taken when a sequence comes and when it is preempted.
///
/// Bound: a sequence with work w that came in step t is overtaken by one with work v only if that came before step
/// t + (w - v) / work_aging_cost. So nothing starves.
class RemainingWorkKey {
 public:
  explicit RemainingWorkKey(const SchedulerOptions& options) noexcept
      : prompt_cost_(options.scheduling.prompt_token_cost),
        output_cost_(options.scheduling.output_token_cost),
        aging_cost_(options.scheduling.work_aging_cost) {}

  std::int64_t operator()(const Sequence& seq, std::int64_t step) const noexcept {
    return prompt_cost_ * seq.num_uncomputed() + output_cost_ * (seq.max_total_tokens - seq.num_tokens()) + aging_cost_ * step;
  }

 private:
  std::int64_t prompt_cost_, output_cost_, aging_cost_;
};

/// Shortest remaining work first: the least mean latency if lengths are known, which max_tokens only bounds. Nobody who runs is
/// pushed out for somebody shorter; who has most left loses its blocks first.
using ShortestWorkOrder = KeyedOrder<RemainingWorkKey>;
static_assert(Order<ShortestWorkOrder> && RankingOrder<ShortestWorkOrder> && !DisplacingOrder<ShortestWorkOrder>);

}  // namespace nvl::inline NVL_ABI
