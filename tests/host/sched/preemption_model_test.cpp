/// Random requests, steps, aborts and damage under each way to preempt, with every invariant checked after every operation;
/// what moves between device and host is late, and read too early it is wrong.
#include "support/scheduler_model.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>

namespace preemption_model_test {

using namespace nvl;

TEMPLATE_TEST_CASE("sequences that are swapped keep every invariant in any sequence of operations", "[sched][host][slow]",
                   FreeListAllocator, PrefixCacheAllocator) {
  const ModelTotals totals = check_random_requests<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, TestType>("swap", 200);
  CHECK(totals.operations >= 100'000);
  CHECK(totals.swaps > 1000);
  CHECK(totals.preemptions > 100);  // when the host pool is full
  CHECK(totals.finished > 1000);
}

TEMPLATE_TEST_CASE("so do those that are swapped or recomputed by cost, for others of higher priority", "[sched][host][slow]",
                   FreeListAllocator, PrefixCacheAllocator) {
  const ModelTotals totals = check_random_requests<TokenBudgetScheduler<PriorityOrder, CostPreemption>, TestType>("cost", 200);
  CHECK(totals.operations >= 100'000);
  CHECK(totals.swaps > 100);
  CHECK(totals.preemptions > 100);
}

}  // namespace preemption_model_test
