// EXPECT: LongestPrefixOrder: one with a prefix cache, such as PrefixCacheAllocator
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#ifdef NVL_FIXED
using Allocator = nvl::PrefixCacheAllocator;
#else
using Allocator = nvl::FreeListAllocator;
#endif
static_assert(nvl::require_scheduler_policy<nvl::TokenBudgetScheduler<nvl::LongestPrefixOrder>, Allocator>());
