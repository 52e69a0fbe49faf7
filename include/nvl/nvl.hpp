#pragma once
/// Everything but files and text: Engine, its policies, the CPU backend. Needs the standard library and xxHash; links nothing.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/cpu_paged_attention.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/async_engine.hpp>
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/engine/engine.hpp>
#include <nvl/engine/with_engine.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/model/random_weights.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/parallel/tensor_parallel.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/version.hpp>
