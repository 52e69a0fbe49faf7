#include "bench/sim/simulate.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <stdexcept>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace nvl_bench {

namespace {

template <class T>
struct Named {
  std::string_view name;
  using type = T;
};

/// Stands for the TokenBudgetScheduler, which takes an order and a preemption; every other scheduler has its own.
struct TokenBudget {};

constexpr auto schedulers = std::tuple(Named<nvl::PrefillFirstScheduler>{"prefill-first"}, Named<TokenBudget>{"token-budget"});
constexpr auto orders =
    std::tuple(Named<nvl::FcfsOrder>{"fcfs"}, Named<nvl::PriorityOrder>{"priority"}, Named<nvl::FairShareOrder>{"fair-share"},
               Named<nvl::ShortestWorkOrder>{"shortest-work"}, Named<nvl::LongestPrefixOrder>{"longest-prefix"});
constexpr auto preemptions = std::tuple(Named<nvl::RecomputePreemption>{"recompute"}, Named<nvl::SwapPreemption>{"swap"},
                                        Named<nvl::CostPreemption>{"cost"});
constexpr auto caches = std::tuple(Named<nvl::PrefixCacheAllocator>{"hash"}, Named<nvl::RadixCacheAllocator>{"radix"},
                                   Named<nvl::FreeListAllocator>{"none"});

template <class List>
std::vector<std::string> names_of(const List& list) {
  return std::apply([](const auto&... named) { return std::vector<std::string>{std::string(named.name)...}; }, list);
}

/// Calls `use(std::type_identity<T>())` with the type called `name`.
template <class List, class Use>
void with_named(const List& list, const std::string& kind, const std::string& name, Use&& use) {
  const bool found = std::apply(
      [&](const auto&... named) {
        return ((named.name == name ? (use(std::type_identity<typename std::remove_cvref_t<decltype(named)>::type>()), true)
                                    : false) ||
                ...);
      },
      list);
  if (found) { return; }
  std::string known;
  for (const std::string& one : names_of(list)) { known += (known.empty() ? "" : ", ") + one; }
  throw std::invalid_argument("--" + kind + " is \"" + name + "\": must be one of " + known);
}

}  // namespace

std::vector<std::string> policy_names(const std::string& kind) {
  if (kind == "scheduler") { return names_of(schedulers); }
  if (kind == "order") { return names_of(orders); }
  if (kind == "preemption") { return names_of(preemptions); }
  if (kind == "cache") { return names_of(caches); }
  throw std::invalid_argument("no policies are called " + kind);
}

SimResult simulate(const PolicyChoice& choice, const SimOptions& options, const StepCost& cost, Trace& trace) {
  SimResult result;
  const auto run = [&]<class S, class A>(std::type_identity<S>, std::type_identity<A>) {
    result = Simulator<S, A>(options, cost, trace).run();
  };
  with_named(caches, "prefix-cache", choice.cache, [&]<class A>(std::type_identity<A> cache) {
    with_named(schedulers, "scheduler", choice.scheduler, [&]<class S>(std::type_identity<S> scheduler) {
      if constexpr (std::is_same_v<S, TokenBudget>) {
        with_named(orders, "order", choice.order, [&]<class O>(std::type_identity<O>) {
          with_named(preemptions, "preemption", choice.preemption, [&]<class P>(std::type_identity<P>) {
            if constexpr (nvl::Order<O, A> && nvl::Preemption<P, A>) {
              run(std::type_identity<nvl::TokenBudgetScheduler<O, P>>(), cache);
            } else {
              throw std::invalid_argument("--order " + choice.order + " and --preemption " + choice.preemption +
                                          " do not go with --prefix-cache " + choice.cache);
            }
          });
        });
      } else {
        if (choice.order != "fcfs" || choice.preemption != "recompute") {
          throw std::invalid_argument("--scheduler " + choice.scheduler +
                                      " goes with --order fcfs and --preemption recompute only");
        }
        run(scheduler, cache);
      }
    });
  });
  return result;
}

}  // namespace nvl_bench
