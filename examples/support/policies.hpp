#pragma once
/// The schedulers and caches that the programs offer: the one list of their names and types.

#include "support/model_options.hpp"
#include "support/options.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace nvl_examples {

template <class Scheduler_, class Allocator_>
struct Policies {
  using Scheduler = Scheduler_;
  using Allocator = Allocator_;
};

/// Calls `visit(names, Policies<...>())` with each combination that is compiled in.
template <class Visit>
void for_each_policies(Visit&& visit) {
  using namespace nvl;
  const auto with_caches = [&]<class S>(const char* scheduler, const char* preemption, std::type_identity<S>) {
    visit(PolicyOptions{scheduler, preemption, "hash"}, Policies<S, PrefixCacheAllocator>());
    visit(PolicyOptions{scheduler, preemption, "radix"}, Policies<S, RadixCacheAllocator>());
    visit(PolicyOptions{scheduler, preemption, "none"}, Policies<S, FreeListAllocator>());
  };
  with_caches("prefill-first", "recompute", std::type_identity<PrefillFirstScheduler>());
  with_caches("token-budget", "recompute", std::type_identity<TokenBudgetScheduler<>>());
  with_caches("token-budget", "swap", std::type_identity<TokenBudgetScheduler<FcfsOrder, SwapPreemption>>());
  visit(PolicyOptions{"token-budget", "cost", "hash"},
        Policies<TokenBudgetScheduler<FcfsOrder, CostPreemption>, PrefixCacheAllocator>());
}

/// Calls `use(Policies<...>())` with those of these names and returns what it returns.
/// \throws UsageError, with the list, if there are none
template <class Use>
auto with_policies(const PolicyOptions& wanted, Use&& use) {
  using Result = std::invoke_result_t<Use&, Policies<nvl::PrefillFirstScheduler, nvl::PrefixCacheAllocator>>;
  std::optional<Result> result;
  std::string known;
  for_each_policies([&](const PolicyOptions& offered, auto policies) {
    known += (known.empty() ? "" : "; ") + to_string(offered);
    if (!result && wanted == offered) { result.emplace(use(policies)); }
  });
  if (!result) { throw UsageError(to_string(wanted) + " is not compiled in; these are: " + known); }
  return std::move(*result);
}

}  // namespace nvl_examples
