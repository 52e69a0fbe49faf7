#pragma once
/// What an engine is made of when nobody says otherwise. docs/schedulers.md has the measurements behind the choice.

#include <nvl/core/config.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

namespace nvl::inline NVL_ABI {

using DefaultScheduler = TokenBudgetScheduler<>;
using DefaultAllocator = PrefixCacheAllocator;

}  // namespace nvl::inline NVL_ABI
