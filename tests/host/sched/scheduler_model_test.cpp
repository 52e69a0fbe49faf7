/// Random requests, steps, aborts and damage on each scheduler over each allocator, in an engine without a model that checks
/// every invariant after every operation. Counter-examples are shrunk.
#include "support/colliding_hash.hpp"
#include "support/scheduler_model.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdint>

namespace scheduler_model_test {

using namespace nvl;

namespace {

constexpr std::uint64_t many = 300'000;

}  // namespace

TEST_CASE("prefill-first over the free list keeps every invariant in any sequence of operations", "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<PrefillFirstScheduler, FreeListAllocator>("free list", 400);
  // A run in which nothing happened proves nothing.
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.chunks > 1000);
  CHECK(totals.finished > 1000);
  CHECK(totals.cached_tokens == 0);
  CHECK(totals.forks > 1000);
  CHECK(totals.copies == 0);
  CHECK(totals.released > 1000);
}

TEST_CASE("prefill-first over the prefix cache keeps every invariant in any sequence of operations", "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<PrefillFirstScheduler, PrefixCacheAllocator>("prefix cache", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.chunks > 1000);
  CHECK(totals.finished > 1000);
  CHECK(totals.cached_tokens > 10'000);
  CHECK(totals.forks > 1000);
  CHECK(totals.copies > 1000);
  CHECK(totals.released > 1000);
}

TEST_CASE("no sequence ever reads another one's K and V when the hash has four bits", "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<PrefillFirstScheduler, FourBitCache>("four-bit hash", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.cached_tokens > 10'000);
}

TEST_CASE("token budget over the prefix cache and its host tier keeps every invariant in any sequence of operations",
          "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<TokenBudgetScheduler<>, PrefixCacheAllocator>("two tiers", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.cached_tokens > 10'000);
  CHECK(totals.loaded_tokens > 1000);
}

TEST_CASE("token budget over the radix cache and its host tier keeps every invariant in any sequence of operations",
          "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<TokenBudgetScheduler<>, RadixCacheAllocator>("radix cache", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.cached_tokens > 10'000);
  CHECK(totals.loaded_tokens > 1000);
  CHECK(totals.copies > 1000);
}

TEST_CASE("no sequence ever reads another one's K and V in a radix cache whose hash has four bits", "[sched][host][slow]") {
  const ModelTotals totals = check_random_requests<TokenBudgetScheduler<>, FourBitRadixCache>("four-bit hash", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.cached_tokens > 10'000);
}

}  // namespace scheduler_model_test
