/// Every allocation of host memory in turn fails, in add and in schedule: nothing is lost and nothing is half done.
#include "support/failing_new.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/swap_preemption.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace no_memory_test {

namespace {

using namespace nvl;
using namespace nvl_test;

std::vector<Sequence> some_sequences() {
  std::vector<Sequence> seqs(6);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    seqs[i].tokens.assign(3 + 4 * i, static_cast<TokenId>(i % 2));
    seqs[i].tokens.reserve(64);
    seqs[i].max_total_tokens = seqs[i].num_tokens() + 8;
    seqs[i].priority = -static_cast<std::int32_t>(i);  // the last displaces
    seqs[i].user = i / 2;
  }
  return seqs;
}

template <class S, class A>
struct Over {
  using Scheduler = S;
  using Allocator = A;
};

constexpr SchedulerOptions options{.max_num_seqs = 4, .max_num_batched_tokens = 16, .block_size = 4};

}  // namespace

TEMPLATE_TEST_CASE("a sequence whose addition runs out of memory is not there", "[sched][host]", PrefillFirstScheduler,
                   TokenBudgetScheduler<>, TokenBudgetScheduler<FairShareOrder>, TokenBudgetScheduler<LongestPrefixOrder>) {
  bool failed = true;
  for (std::int64_t n = 0; failed; ++n) {
    REQUIRE(n < 100);
    TestType scheduler(options);
    std::vector<Sequence> seqs = some_sequences();
    scheduler.add(seqs[0]);
    failed = fails_at(n, [&] { scheduler.add(seqs[1]); });
    CHECK(scheduler.num_waiting() == (failed ? 1 : 2));
    scheduler.remove(seqs[1]);
    CHECK(scheduler.num_waiting() == 1);
    CHECK((failed || n > 0));
    scheduler.add(seqs[1]);
    CHECK(scheduler.num_waiting() == 2);
  }
}

TEMPLATE_TEST_CASE("a step that runs out of memory leaves everything as it was or plans less", "[sched][host]",
                   (Over<PrefillFirstScheduler, FreeListAllocator>), (Over<PrefillFirstScheduler, PrefixCacheAllocator>),
                   (Over<TokenBudgetScheduler<>, FreeListAllocator>), (Over<TokenBudgetScheduler<>, PrefixCacheAllocator>),
                   (Over<TokenBudgetScheduler<PriorityOrder>, PrefixCacheAllocator>),
                   (Over<TokenBudgetScheduler<FairShareOrder>, FreeListAllocator>),
                   (Over<TokenBudgetScheduler<LongestPrefixOrder>, PrefixCacheAllocator>),
                   (Over<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, FreeListAllocator>),
                   (Over<TokenBudgetScheduler<PriorityOrder, SwapPreemption>, PrefixCacheAllocator>)) {
  // The allocation that fails is the n-th of all the steps of a run, preemptions included.
  bool any_thrown = false, any_in_time = true;
  for (std::int64_t n = 0; any_in_time; ++n) {
    REQUIRE(n < 1000);
    typename TestType::Allocator allocator({.num_blocks = 10, .block_size = 4, .num_host_blocks = 12});
    typename TestType::Scheduler scheduler(options);
    std::vector<Sequence> seqs = some_sequences();
    for (Sequence& seq : seqs) { scheduler.add(seq); }
    ScheduledBatch batch;
    std::int64_t left = n;
    std::size_t num_live = seqs.size();
    for (int step = 0; num_live > 0; ++step) {
      REQUIRE(step < 1000);
      batch.clear();
      const std::uint32_t free_before = allocator.num_free(), running_before = scheduler.num_running();
      std::vector<std::int32_t> computed_before;
      for (const Sequence& seq : seqs) { computed_before.push_back(seq.num_computed); }
      allocations_left = left;
      bool threw = false;
      try {
        scheduler.schedule(allocator, batch);
      } catch (const std::bad_alloc&) { threw = true; }
      left = allocations_left == 0 ? -1 : allocations_left;  // it fails once
      allocations_left = -1;
      if (threw) {
        any_thrown = true;
        CHECK(batch.empty());
        CHECK(batch.preempted.empty());
        CHECK(allocator.num_free() == free_before);
        CHECK(scheduler.num_running() == running_before);
        for (std::size_t i = 0; i < seqs.size(); ++i) { CHECK(seqs[i].num_computed == computed_before[i]); }
      }
      for (const ScheduledSeq& entry : batch.seqs) {
        publish_full_blocks(*entry.seq, allocator, options.block_size);
        if (!entry.needs_sample) { continue; }
        entry.seq->tokens.push_back(0);
        if (entry.seq->num_tokens() < entry.seq->max_total_tokens) { continue; }
        scheduler.remove(*entry.seq);
        release_all_blocks(*entry.seq, allocator);
        --num_live;
      }
    }
    CHECK(allocator.num_free() == 10);
    CHECK(allocator.num_free_host() == 12);
    CHECK(scheduler.num_waiting() + scheduler.num_running() == 0);
    any_in_time = left < 0;
  }
  CHECK(any_thrown);
}

}  // namespace no_memory_test
