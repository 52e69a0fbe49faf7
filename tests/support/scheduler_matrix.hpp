#pragma once
/// Every order, preemption and allocator that nvl ships, by name: one list for the conformance matrix and for the table in
/// docs/policies.md.

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <string>
#include <string_view>

namespace nvl_test {

template <class T>
struct Named {
  using type = T;
  std::string_view name;
};

/// Calls `visit(Named<T>)` for each.
template <class Visit>
void for_each_order(Visit&& visit) {
  visit(Named<nvl::FcfsOrder>{"FcfsOrder"});
  visit(Named<nvl::PriorityOrder>{"PriorityOrder"});
  visit(Named<nvl::ShortestWorkOrder>{"ShortestWorkOrder"});
  visit(Named<nvl::FairShareOrder>{"FairShareOrder"});
  visit(Named<nvl::LongestPrefixOrder>{"LongestPrefixOrder"});
}

template <class Visit>
void for_each_preemption(Visit&& visit) {
  visit(Named<nvl::RecomputePreemption>{"RecomputePreemption"});
  visit(Named<nvl::SwapPreemption>{"SwapPreemption"});
}

template <class Visit>
void for_each_allocator(Visit&& visit) {
  visit(Named<nvl::FreeListAllocator>{"FreeListAllocator"});
  visit(Named<nvl::PrefixCacheAllocator>{"PrefixCacheAllocator"});
}

/// Calls `visit(Named<S>)` for each scheduler, with the name of its type.
template <class Visit>
void for_each_scheduler(Visit&& visit) {
  visit(Named<nvl::PrefillFirstScheduler>{"PrefillFirstScheduler"});
  for_each_order([&]<class O>(Named<O> order) {
    for_each_preemption([&]<class P>(Named<P> preemption) {
      const std::string name = "TokenBudgetScheduler<" + std::string(order.name) + ", " + std::string(preemption.name) + ">";
      visit(Named<nvl::TokenBudgetScheduler<O, P>>{name});
    });
  });
}

}  // namespace nvl_test
