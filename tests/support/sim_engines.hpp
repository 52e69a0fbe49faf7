#pragma once
/// Engines over the fake model, one for each way to combine policies that is worth a test of its own, behind one interface.

#include "support/colliding_hash.hpp"
#include "support/sim_device.hpp"
#include "support/sim_requests.hpp"

#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/nvl.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <memory>
#include <type_traits>
#include <vector>

namespace nvl_test {

struct SimEngineKind {
  const char* name;
  bool shares_blocks;   // so it can search with beams
  bool uses_host_tier;  // swaps or keeps evicted blocks, if there are host blocks
  std::unique_ptr<nvl::AnyEngine> (*make)(const nvl::EngineOptions&);
};

/// kAhead: the device runs ahead.
template <class Scheduler, class Allocator, bool kAhead>
SimEngineKind sim_engine_kind(const char* name) {
  constexpr bool is_mixed = !std::is_same_v<Scheduler, nvl::PrefillFirstScheduler>;
  return {name, nvl::SharingAllocator<Allocator>, is_mixed && nvl::TieredPrefixCache<Allocator>,
          [](const nvl::EngineOptions& options) -> std::unique_ptr<nvl::AnyEngine> {
            using E = SimEngine<Scheduler, Allocator, kAhead>;
            return std::make_unique<nvl::detail::AnyEngineOf<E>>(sim_config(), sim_weights(), options);
          }};
}

inline std::vector<SimEngineKind> sim_engine_kinds() {
  using namespace nvl;
  return {
      sim_engine_kind<PrefillFirstScheduler, FreeListAllocator, true>("prefill first, free list, ahead"),
      sim_engine_kind<PrefillFirstScheduler, PrefixCacheAllocator, false>("prefill first, prefix cache"),
      sim_engine_kind<PrefillFirstScheduler, BasicRadixCacheAllocator<FourBitHash>, true>(
          "prefill first, radix cache of a 4-bit hash, ahead"),
      sim_engine_kind<TokenBudgetScheduler<>, FreeListAllocator, false>("mixed, free list"),
      sim_engine_kind<TokenBudgetScheduler<>, FourBitCache, true>("mixed, prefix cache of a 4-bit hash, ahead"),
      sim_engine_kind<TokenBudgetScheduler<>, OneBucketCache, false>("mixed, prefix cache of one bucket"),
      sim_engine_kind<TokenBudgetScheduler<PriorityOrder>, PrefixCacheAllocator, true>("mixed, priority, prefix cache, ahead"),
      sim_engine_kind<TokenBudgetScheduler<ShortestWorkOrder>, RadixCacheAllocator, false>("mixed, shortest work, radix cache"),
      sim_engine_kind<TokenBudgetScheduler<LongestPrefixOrder, SwapPreemption>, RadixCacheAllocator, true>(
          "mixed, longest prefix, swap, radix cache, ahead"),
      sim_engine_kind<TokenBudgetScheduler<FairShareOrder, CostPreemption>, FreeListAllocator, true>(
          "mixed, fair share, by cost, free list, ahead"),
      sim_engine_kind<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, FourBitCache, false>(
          "mixed, swap, prefix cache of a 4-bit hash"),
  };
}

}  // namespace nvl_test
