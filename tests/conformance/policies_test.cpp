/// The conformance suites on every policy that nvl ships.
#include "support/colliding_hash.hpp"
#include "support/host_caches.hpp"

#include <nvl/attention/cpu_paged_attention.hpp>
#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/dtype.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/prefix_affinity_router.hpp>
#include <nvl/engine/round_robin_router.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/parallel/context_parallel.hpp>
#include <nvl/parallel/pipeline_parallel.hpp>
#include <nvl/parallel/single_device.hpp>
#include <nvl/parallel/tensor_context_parallel.hpp>
#include <nvl/parallel/tensor_parallel.hpp>
#include <nvl/parallel/tensor_pipeline_parallel.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/check_attention_backend.hpp>
#include <nvl/testing/check_block_allocator.hpp>
#include <nvl/testing/check_kv_transfer.hpp>
#include <nvl/testing/check_order.hpp>
#include <nvl/testing/check_parallel_strategy.hpp>
#include <nvl/testing/check_router.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>

namespace policies_test {

using namespace nvl;

TEMPLATE_TEST_CASE("an allocator keeps the promises of BlockAllocator", "[conformance][host]", FreeListAllocator,
                   PrefixCacheAllocator, FourBitCache, OneBucketCache, RadixCacheAllocator, FourBitRadixCache,
                   OneBucketRadixCache) {
  for (const std::uint32_t num_blocks : {4u, 5u, 8u}) {
    for (const std::uint32_t block_size : {1u, 2u, 3u, 16u}) {
      const auto broken =
          testing::check_block_allocator<TestType>({.num_blocks = num_blocks, .block_size = block_size}, num_blocks);
      INFO(num_blocks << " blocks of " << block_size);
      CHECK(broken.text() == "");
    }
  }
}

TEMPLATE_TEST_CASE("PrefillFirstScheduler keeps the promises of SchedulerPolicy", "[conformance][host]", FreeListAllocator,
                   PrefixCacheAllocator, FourBitCache, RadixCacheAllocator, FourBitRadixCache) {
  CHECK(testing::check_scheduler_policy<PrefillFirstScheduler, TestType>().text() == "");
}

TEMPLATE_TEST_CASE("TokenBudgetScheduler keeps the promises of SchedulerPolicy when hashes collide", "[conformance][host]",
                   FourBitCache, FourBitRadixCache) {
  CHECK(testing::check_scheduler_policy<TokenBudgetScheduler<>, TestType>().text() == "");
}

TEMPLATE_TEST_CASE("swapping keeps the promises of SchedulerPolicy", "[conformance][host]", FreeListAllocator,
                   PrefixCacheAllocator, FourBitCache) {
  CHECK(testing::check_scheduler_policy<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, TestType>().text() == "");
}

TEMPLATE_TEST_CASE("an order keeps the promises of Order", "[conformance][host]", FcfsOrder, PriorityOrder, ShortestWorkOrder,
                   FairShareOrder, LongestPrefixOrder) {
  CHECK(testing::check_order<TestType>().text() == "");
}

TEMPLATE_TEST_CASE("CpuPagedAttention keeps the promises of AttentionBackend", "[conformance][host]", CpuPagedAttention<float>,
                   CpuPagedAttention<bf16>, (CpuPagedAttention<float, 64>), (CpuPagedAttention<bf16, 128, 32>),
                   (CpuPagedAttention<float, dynamic_head_dim, 4>), (CpuPagedAttention<float, 16, 1>)) {
  CHECK(testing::check_attention_backend<TestType>().text() == "");
}

TEST_CASE("SingleDevice keeps the promises of ParallelStrategy", "[conformance][host]") {
  SingleDevice strategy;
  CHECK(testing::check_parallel_strategy(strategy).text() == "");
}

TEMPLATE_TEST_CASE("strategies of several ranks keep the promises of ParallelStrategy", "[conformance][host]", TensorParallel<>,
                   PipelineParallel<>, ContextParallel<>) {
  for (const std::uint32_t num_ranks : {1u, 2u, 3u, 4u}) {
    TestType strategy(num_ranks);
    CHECK(testing::check_parallel_strategy(strategy).text() == "");
  }
}

TEMPLATE_TEST_CASE("products of two strategies keep the promises of ParallelStrategy", "[conformance][host]",
                   TensorPipelineParallel<>, TensorContextParallel<>) {
  for (const auto& [num_others, num_slices] : {std::pair(1u, 1u), std::pair(2u, 1u), std::pair(1u, 3u), std::pair(3u, 2u)}) {
    TestType strategy(num_others, num_slices);
    CHECK(testing::check_parallel_strategy(strategy).text() == "");
  }
}

TEMPLATE_TEST_CASE("HostKvTransfer keeps the promises of KvTransfer", "[conformance][host]", float, bf16, fp16) {
  nvl_test::HostCaches<TestType> caches;
  CHECK(testing::check_kv_transfer<HostKvTransfer<TestType>>(caches).text() == "");
}

TEMPLATE_TEST_CASE("a router keeps the promises of RouterPolicy", "[conformance][host]", RoundRobinRouter, LeastTokensRouter,
                   PrefixAffinityRouter) {
  CHECK(testing::check_router<TestType>().text() == "");
}

TEST_CASE("PrefixAffinityRouter keeps the promises of RouterPolicy with every bound", "[conformance][host]") {
  for (const double epsilon : {0.0, 0.1, 1e6}) {
    for (const std::int64_t slack : {0, 100}) {
      const auto make = [&] { return PrefixAffinityRouter({.block_size = 4, .epsilon = epsilon, .slack_tokens = slack}); };
      CHECK(testing::check_router<PrefixAffinityRouter>(make).text() == "");
    }
  }
}

}  // namespace policies_test
