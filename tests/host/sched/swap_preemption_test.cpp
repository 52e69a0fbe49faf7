#include <nvl/sched/swap_preemption.hpp>

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/cost_preemption.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace swap_preemption_test {

using namespace nvl;

namespace {

constexpr SchedulerOptions options{.max_num_seqs = 4, .max_num_batched_tokens = 64, .block_size = 4};

/// A sequence of `num_tokens`, all but the last computed, in blocks of `allocator`.
template <class A>
Sequence running(A& allocator, std::int32_t num_tokens, TokenId first = 0) {
  Sequence seq;
  seq.tokens.resize(static_cast<std::size_t>(num_tokens));
  std::iota(seq.tokens.begin(), seq.tokens.end(), first);
  seq.num_prompt = num_tokens;
  seq.max_total_tokens = num_tokens + 8;
  if constexpr (PrefixCachingAllocator<A>) { seq.prefix_root = allocator.root(""); }
  REQUIRE(try_admit(seq, allocator, options.block_size));
  seq.num_computed = num_tokens - 1;
  publish_full_blocks(seq, allocator, options.block_size);
  return seq;
}

}  // namespace

TEST_CASE("a victim keeps its blocks until the next step, then has host blocks alone", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 6, .block_size = 4, .num_host_blocks = 5});
  SwapPreemption preemption(options);
  ScheduledBatch batch;
  Sequence seq = running(allocator, 10);
  const std::vector<BlockId> table = seq.block_table;
  CHECK_FALSE(preemption.preempt(seq, allocator, batch));
  CHECK(seq.status == SeqStatus::swapped);
  CHECK(seq.num_preemptions == 1);
  CHECK(batch.swapped == std::vector<Sequence*>{&seq});
  CHECK(batch.preempted.empty());
  REQUIRE(batch.swap_out.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(batch.swap_out[i].device == table[i]);
    CHECK(batch.swap_out[i].host == seq.host_table[i]);
  }
  CHECK(seq.block_table == table);
  CHECK(allocator.num_free() == 3);
  CHECK(allocator.num_free_host() == 2);
  CHECK_FALSE(preemption.try_resume(seq, allocator, batch, 0));  // it is still on its way

  batch.clear();
  preemption.begin_step(allocator, batch);
  CHECK(seq.block_table.empty());
  CHECK(seq.num_computed == 9);
  CHECK(allocator.num_free() == 6);

  CHECK_FALSE(preemption.try_resume(seq, allocator, batch, 4));  // that would leave 3
  CHECK(allocator.num_free() == 6);
  REQUIRE(preemption.try_resume(seq, allocator, batch, 3));
  CHECK(seq.status == SeqStatus::loading);
  CHECK(seq.num_computed == 9);
  CHECK(batch.swap_in.size() == 3);
  CHECK(allocator.num_free_host() == 2);
  batch.clear();
  preemption.begin_step(allocator, batch);
  CHECK(seq.host_table.empty());
  CHECK(allocator.num_free_host() == 5);
}

TEST_CASE("only blocks with computed tokens are copied, and all tokens get blocks again", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 8, .block_size = 4, .num_host_blocks = 8});
  SwapPreemption preemption(options);
  ScheduledBatch batch;
  Sequence seq = running(allocator, 20);
  seq.num_computed = 5;  // of a long prompt
  CHECK_FALSE(preemption.preempt(seq, allocator, batch));
  CHECK(batch.swap_out.size() == 2);
  batch.clear();
  preemption.begin_step(allocator, batch);
  REQUIRE(preemption.try_resume(seq, allocator, batch, 0));
  CHECK(batch.swap_in.size() == 2);
  CHECK(seq.block_table.size() == 5);
}

TEST_CASE("a victim is recomputed if there is nothing to copy, or no room for it", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 8, .block_size = 4, .num_host_blocks = 2});
  SwapPreemption preemption(options);
  ScheduledBatch batch;
  Sequence big = running(allocator, 10), fresh = running(allocator, 10);
  fresh.num_computed = 0;
  for (Sequence* seq : {&big, &fresh}) {
    CHECK(preemption.preempt(*seq, allocator, batch));
    CHECK(seq->status == SeqStatus::preempted);
    CHECK(seq->num_computed == 0);
    CHECK(seq->block_table.empty());
    CHECK(seq->host_table.empty());
  }
  CHECK(allocator.num_free() == 8);
  CHECK(allocator.num_free_host() == 2);
  CHECK(batch.preempted.size() == 2);
  CHECK(batch.swap_out.empty());
}

TEST_CASE("a sequence that comes back shares what is still on the device and copies the rest", "[sched][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 8, .block_size = 4, .num_host_blocks = 8});
  SwapPreemption preemption(options);
  ScheduledBatch batch;
  Sequence seq = running(allocator, 15);
  const std::vector<BlockId> table = seq.block_table;
  CHECK_FALSE(preemption.preempt(seq, allocator, batch));
  batch.clear();
  preemption.begin_step(allocator, batch);
  SECTION("all full blocks are there: the last, partly filled, is copied") {
    REQUIRE(preemption.try_resume(seq, allocator, batch, 0));
    CHECK(batch.swap_in.size() == 1);
    CHECK(std::equal(table.begin(), table.begin() + 3, seq.block_table.begin()));
    CHECK(seq.num_published == 3);
  }
  SECTION("others have taken two of them") {
    std::vector<BlockId> others(6);
    REQUIRE(allocator.try_allocate(others));
    allocator.release(std::span(others).first(4));
    REQUIRE(preemption.try_resume(seq, allocator, batch, 0));
    CHECK(seq.num_published < 3);
    CHECK(batch.swap_in.size() == 4 - static_cast<std::size_t>(seq.num_published));
    allocator.release(std::span(others).subspan(4));
  }
  release_all_blocks(seq, allocator);
  CHECK(allocator.num_free() == 8);
  CHECK(allocator.num_free_host() == 8);
}

TEST_CASE("who ends while it is moved gives everything back at once", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 6, .block_size = 4, .num_host_blocks = 5});
  SwapPreemption preemption(options);
  ScheduledBatch batch;
  Sequence seq = running(allocator, 10);
  CHECK_FALSE(preemption.preempt(seq, allocator, batch));
  SECTION("on its way out") {}
  SECTION("swapped") { preemption.begin_step(allocator, batch); }
  SECTION("on its way in") {
    preemption.begin_step(allocator, batch);
    REQUIRE(preemption.try_resume(seq, allocator, batch, 0));
  }
  preemption.remove(seq);
  release_all_blocks(seq, allocator);
  CHECK(allocator.num_free() == 6);
  CHECK(allocator.num_free_host() == 5);
  preemption.begin_step(allocator, batch);
  CHECK(allocator.num_free() == 6);
  CHECK(allocator.num_free_host() == 5);
}

TEST_CASE("victims leave a step before their blocks are needed, and come back when blocks last", "[sched][host]") {
  using S = TokenBudgetScheduler<FcfsOrder, SwapPreemption>;
  SchedulerOptions with_steps = options;
  with_steps.scheduling.swap_in_steps = 6;
  testing::SchedulerHarness<S, FreeListAllocator> harness(with_steps, 8, 2, 8);
  for (TokenId i = 0; i < 3; ++i) { harness.submit(std::vector<TokenId>(6, i), 24); }
  std::uint64_t stalled = 0;
  std::uint64_t step_of_swap = 0, steps_until_back = 0;
  for (std::uint64_t step = 0; harness.num_live() > 0 && step < 500; ++step) {
    const std::uint32_t running_before = harness.scheduler().num_running();
    REQUIRE(harness.step());
    // Nobody who runs goes without a token, but for the one that has just come in.
    const std::size_t planned = harness.batch().seqs.size() + harness.batch().swapped.size();
    stalled += planned < running_before ? 1 : 0;
    if (step_of_swap == 0 && !harness.batch().swapped.empty()) { step_of_swap = step; }
    if (step_of_swap > 0 && steps_until_back == 0 && !harness.batch().swap_in.empty()) { steps_until_back = step - step_of_swap; }
  }
  CHECK(harness.violations().text() == "");
  CHECK(harness.counts().swaps >= 1);
  CHECK(stalled == 0);
  CHECK(steps_until_back > 6);
}

TEST_CASE("the way with the lower cost is chosen", "[sched][host]") {
  // Swap is cheaper up to 12 tokens and from 28 on.
  SchedulerOptions by_cost = options;
  by_cost.scheduling.preemption_costs.points = {{{8, 4, 8}, {16, 20, 16}, {40, 44, 52}}};
  CostPreemption preemption(by_cost);
  PrefixCacheAllocator allocator({.num_blocks = 64, .block_size = 4, .num_host_blocks = 64});
  for (const std::int32_t num_computed : {4, 8, 12, 16, 24, 32, 40, 60}) {
    INFO(num_computed);
    Sequence seq = running(allocator, num_computed + 1, 1000 * num_computed);
    const bool is_cheaper = num_computed < 12 || num_computed > 28;
    CHECK(preemption.prefers_swap(seq, allocator) == is_cheaper);
    ScheduledBatch batch;
    CHECK(preemption.preempt(seq, allocator, batch) == !is_cheaper);
    preemption.begin_step(allocator, batch);
    preemption.remove(seq);
    release_all_blocks(seq, allocator);
  }
  SECTION("what others own too is there when it comes back") {
    Sequence seq = running(allocator, 41), other = running(allocator, 41);
    CHECK_FALSE(preemption.prefers_swap(seq, allocator));  // nothing to recompute, ten blocks to copy out
    release_all_blocks(other, allocator);
    CHECK(preemption.prefers_swap(seq, allocator));
    release_all_blocks(seq, allocator);
  }
}

TEST_CASE("costs lie on straight lines between the points, and go on past the last", "[sched][host]") {
  PreemptionCosts costs;
  costs.points = {{{10, 5, 20}, {20, 6, 60}, {40, 10, 70}}};
  CHECK(costs.num_points() == 3);
  CHECK(costs.swap(0) == 0);
  CHECK(costs.swap(4) == 2);
  CHECK(costs.swap(10) == 5);
  CHECK(costs.recompute(15) == 40);
  CHECK(costs.recompute(30) == 65);
  CHECK(costs.swap(60) == 14);
  const PreemptionCosts model = PreemptionCosts::of(1.5, 1000);
  CHECK(model.num_points() == 16);
  CHECK(std::abs(model.swap(5000) - 7500) < 1e-6);
  for (const double n : {256.0, 1000.0, 5000.0, 20000.0}) {
    INFO(n);
    CHECK(std::abs(model.recompute(n) / (n + n * n / 1000) - 1) < 0.05);
  }
}

TEST_CASE("thresholds and costs out of range are refused by name", "[sched][host]") {
  const auto refused = [](auto&& change, std::vector<std::string> words) {
    SchedulingOptions scheduling;
    change(scheduling);
    nvl_test::expect_error<InvalidArgument>([&] { validate(scheduling); }, words);
  };
  refused([](auto& s) { s.swap_out_steps = -1; }, {"swap_out_steps", "-1"});
  refused([](auto& s) { s.swap_in_steps = 0; }, {"swap_in_steps", "at least swap_out_steps (1)"});
  refused([](auto& s) { s.preemption_costs.points = {}; }, {"points of preemption_costs", "at least 1"});
  refused([](auto& s) { s.preemption_costs.points[1].tokens = 64; }, {"tokens of preemption_costs", "64", "ascending"});
  refused([](auto& s) { s.preemption_costs.points[2].swap = -3; }, {"swap of preemption_costs", "-3"});
  refused([](auto& s) { s.preemption_costs.points[0].recompute = -4; }, {"recompute of preemption_costs", "-4"});
}

}  // namespace swap_preemption_test
