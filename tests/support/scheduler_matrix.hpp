#pragma once
/// Every order, preemption and allocator that nvl ships, by name: one list for the conformance matrix and for the table in
/// docs/policies.md.

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <catch2/catch_test_macros.hpp>

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
  visit(Named<nvl::CostPreemption>{"CostPreemption"});
}

template <class Visit>
void for_each_allocator(Visit&& visit) {
  visit(Named<nvl::FreeListAllocator>{"FreeListAllocator"});
  visit(Named<nvl::PrefixCacheAllocator>{"PrefixCacheAllocator"});
  visit(Named<nvl::RadixCacheAllocator>{"RadixCacheAllocator"});
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

/// The suite on every order with preemption P, over every allocator that the two take.
template <class P>
void check_every_order() {
  int num_combinations = 0;
  for_each_order([&]<class O>(Named<O> order) {
    for_each_allocator([&]<class A>(Named<A> allocator) {
      using Scheduler = nvl::TokenBudgetScheduler<O, P>;
      if constexpr (nvl::SchedulerPolicy<Scheduler, A>) {
        INFO(order.name << " over " << allocator.name);
        CHECK(nvl::testing::check_scheduler_policy<Scheduler, A>().text() == "");
        ++num_combinations;
      }
    });
  });
  CHECK(num_combinations == 5 * 3 - 1);
}

}  // namespace nvl_test
