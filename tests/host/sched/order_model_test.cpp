/// Every order over each allocator that it works with, in any sequence of operations.
#include "support/colliding_hash.hpp"
#include "support/scheduler_model.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <type_traits>

namespace order_model_test {

using namespace nvl;

namespace {

template <class O, class A, class P = RecomputePreemption>
struct Over {
  using Scheduler = TokenBudgetScheduler<O, P>;
  using Allocator = A;
  static constexpr bool swaps = !std::is_same_v<P, RecomputePreemption>;
};

}  // namespace

TEMPLATE_TEST_CASE("a mixed scheduler keeps every invariant in any sequence of operations", "[sched][host][slow]",
                   (Over<FcfsOrder, FreeListAllocator>), (Over<FcfsOrder, FourBitCache>),
                   (Over<PriorityOrder, FreeListAllocator>), (Over<PriorityOrder, PrefixCacheAllocator>),
                   (Over<ShortestWorkOrder, FreeListAllocator>), (Over<ShortestWorkOrder, PrefixCacheAllocator>),
                   (Over<FairShareOrder, FreeListAllocator>), (Over<FairShareOrder, PrefixCacheAllocator>),
                   (Over<LongestPrefixOrder, PrefixCacheAllocator>), (Over<LongestPrefixOrder, FourBitCache>),
                   (Over<PriorityOrder, FreeListAllocator, SwapPreemption>),
                   (Over<PriorityOrder, PrefixCacheAllocator, SwapPreemption>),
                   (Over<FairShareOrder, PrefixCacheAllocator, SwapPreemption>),
                   (Over<ShortestWorkOrder, FreeListAllocator, SwapPreemption>),
                   (Over<LongestPrefixOrder, PrefixCacheAllocator, SwapPreemption>)) {
  using Allocator = typename TestType::Allocator;
  const ModelTotals totals = check_random_requests<typename TestType::Scheduler, Allocator>("mixed", 70);
  // A run in which nothing happened proves nothing.
  CHECK(totals.operations >= 45'000);
  CHECK(totals.preemptions + totals.swaps > 1000);
  CHECK(totals.chunks > 1000);
  CHECK(totals.finished > 1000);
  CHECK(totals.forks > 1000);
  CHECK((totals.swaps > 100) == TestType::swaps);
  if (PrefixCachingAllocator<Allocator>) { CHECK(totals.cached_tokens > 10'000); }
}

}  // namespace order_model_test
