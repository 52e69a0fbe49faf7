// EXPECT: one that swaps: an allocator with host blocks, see TieredAllocator
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#ifdef NVL_FIXED
using Allocator = nvl::FreeListAllocator;
#else
using Allocator = nvl::BlockAllocatorArchetype;
#endif
static_assert(nvl::require_scheduler_policy<nvl::TokenBudgetScheduler<nvl::FcfsOrder, nvl::SwapPreemption>, Allocator>());
