#pragma once
/// An Order by Sequence::priority, lower first, in which waiting counts too.

#include <nvl/core/config.hpp>
#include <nvl/sched/keyed_order.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

/// The key is fixed when a sequence comes: all that wait age at the same rate, so their order does not change with time.
///
/// Bound: a sequence of priority p that came in step t is overtaken by sequences of priority q < p only if they came before step
/// t + (p - q) * priority_aging_steps, and by none of priority >= p that came later. So nothing starves.
class PriorityKey {
 public:
  explicit PriorityKey(const SchedulerOptions& options) noexcept : aging_steps_(options.scheduling.priority_aging_steps) {}

  std::int64_t operator()(const Sequence& seq, std::int64_t step) const noexcept {
    return std::int64_t{seq.priority} * aging_steps_ + step;
  }

  /// The smaller key alone takes nobody's blocks: that needs a better priority. So equals do not push each other out.
  bool displaces(const Sequence& next, const Sequence& running) const noexcept { return next.priority < running.priority; }

 private:
  std::int64_t aging_steps_;
};

/// By priority, then arrival. The last in rank loses its blocks first, and a waiting sequence takes those of running ones of lower
/// priority if it finds no room otherwise.
using PriorityOrder = KeyedOrder<PriorityKey>;
static_assert(Order<PriorityOrder> && DisplacingOrder<PriorityOrder>);

}  // namespace nvl::inline NVL_ABI
