#pragma once
/// The schedulers and caches that the programs offer: the one list of their names and types.

#include "support/options.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
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

/// Calls `visit(scheduler, cache, Policies<...>())` with each pair that is compiled in.
template <class Visit>
void for_each_policies(Visit&& visit) {
  using namespace nvl;
  visit("prefill-first", "hash", Policies<PrefillFirstScheduler, PrefixCacheAllocator>());
  visit("prefill-first", "none", Policies<PrefillFirstScheduler, FreeListAllocator>());
  visit("token-budget", "hash", Policies<TokenBudgetScheduler<>, PrefixCacheAllocator>());
  visit("token-budget", "none", Policies<TokenBudgetScheduler<>, FreeListAllocator>());
}

/// Calls `use(Policies<...>())` with those of these names and returns what it returns.
/// \throws UsageError, with the list, if there are none
template <class Use>
auto with_policies(const std::string& scheduler, const std::string& cache, Use&& use) {
  using Result = std::invoke_result_t<Use&, Policies<nvl::PrefillFirstScheduler, nvl::PrefixCacheAllocator>>;
  std::optional<Result> result;
  std::string known;
  for_each_policies([&](const char* a_scheduler, const char* a_cache, auto policies) {
    known += (known.empty() ? "" : ", ") + std::string(a_scheduler) + " with " + a_cache;
    if (!result && scheduler == a_scheduler && cache == a_cache) { result.emplace(use(policies)); }
  });
  if (!result) {
    throw UsageError("--scheduler " + scheduler + " with --prefix-cache " + cache + " is not compiled in; these are: " + known);
  }
  return std::move(*result);
}

}  // namespace nvl_examples
