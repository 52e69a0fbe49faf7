#include "support/scheduler_plan.hpp"

#include <nvl/core/error.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace token_budget_scheduler_test {

using namespace nvl;

namespace {

using Scheduler = TokenBudgetScheduler<>;
template <class A>
using Harness = testing::SchedulerHarness<Scheduler, A>;

constexpr SchedulerOptions small{.max_num_seqs = 3, .max_num_batched_tokens = 8, .block_size = 4};

SchedulerOptions with(SchedulingOptions scheduling, SchedulerOptions options = small) {
  options.scheduling = scheduling;
  return options;
}

}  // namespace

TEST_CASE("options of a mixed step that are out of range are refused by name", "[sched][host]") {
  CHECK_THROWS_AS(Scheduler({.max_num_seqs = 0}), InvalidArgument);
  CHECK_THROWS_AS(Scheduler({.max_num_batched_tokens = 0}), InvalidArgument);
  CHECK_THROWS_AS(Scheduler({.block_size = 0}), InvalidArgument);
  const auto refused = [](SchedulingOptions options, const std::string& field) {
    INFO(field);
    std::string message;
    try {
      Scheduler scheduler(with(options));
    } catch (const InvalidArgument& error) { message = error.what(); }
    CHECK(message.find(field) != std::string::npos);
  };
  refused({.max_prefill_tokens_beside_decodes = -1}, "max_prefill_tokens_beside_decodes");
  refused({.long_prefill_token_threshold = -1}, "long_prefill_token_threshold");
  refused({.max_num_partial_prefills = -1}, "max_num_partial_prefills");
  refused({.long_prefill_token_threshold = 4, .max_long_partial_prefills = -1}, "max_long_partial_prefills");
  refused({.max_long_partial_prefills = 1}, "max_long_partial_prefills");  // nothing says what is long
  refused({.priority_aging_steps = 0}, "priority_aging_steps");
  refused({.prompt_token_cost = -1}, "prompt_token_cost");
  refused({.output_token_cost = 0}, "output_token_cost");
  refused({.work_aging_cost = 0}, "work_aging_cost");
  refused({.longest_prefix_window = 0}, "longest_prefix_window");
  refused({.longest_prefix_patience = -1}, "longest_prefix_patience");
}

TEST_CASE("a sequence is added to a mixed schedule once, with a token, and may be removed twice", "[sched][host]") {
  Scheduler scheduler(small);
  Sequence seq;
  CHECK_THROWS_AS(scheduler.add(seq), InvalidArgument);
  seq.tokens = {1};
  scheduler.remove(seq);  // unknown
  scheduler.add(seq);
  CHECK_THROWS_AS(scheduler.add(seq), InvalidArgument);
  CHECK(scheduler.num_waiting() == 1);
  scheduler.remove(seq);
  scheduler.remove(seq);
  CHECK(scheduler.num_waiting() == 0);
  CHECK(scheduler.num_running() == 0);
}

TEST_CASE("a step decodes first and gives prompts what is left", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(3), 9);
  harness.submit(prompt(4), 9);
  CHECK(next(harness) == Plan{{0, 3}, {1, 4}});
  harness.submit(prompt(15), 2);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 6}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 6}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 3}});
  CHECK(harness.batch().seqs[2].needs_sample);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 1}});
}

TEST_CASE("the last part of a prompt and the first of the next share a step", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(11), 2);
  harness.submit(prompt(9), 2);
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 3}, {1, 5}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 4}});
  CHECK(next(harness) == Plan{{1, 1}});
  CHECK(harness.num_live() == 0);
}

TEST_CASE("prompts get no more than their share of a step that decodes", "[sched][host]") {
  Harness<FreeListAllocator> harness(with({.max_prefill_tokens_beside_decodes = 2}), 16);
  harness.submit(prompt(7), 9);
  harness.submit(prompt(5), 2);
  CHECK(next(harness) == Plan{{0, 7}, {1, 1}});  // nobody decodes
  CHECK(next(harness) == Plan{{0, 1}, {1, 2}});
  harness.submit(prompt(4), 2);
  CHECK(next(harness) == Plan{{0, 1}, {1, 2}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 2}});
}

TEST_CASE("a prompt is computed in chunks of a fixed length", "[sched][host]") {
  Harness<FreeListAllocator> harness(with({.long_prefill_token_threshold = 3}), 16);
  harness.submit(prompt(7, 1), 2);
  harness.submit(prompt(7, 2), 2);
  harness.submit(prompt(7, 3), 2);
  CHECK(next(harness) == Plan{{0, 3}, {1, 3}, {2, 2}});
  CHECK(next(harness) == Plan{{0, 3}, {1, 3}, {2, 2}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 3}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 1}});
}

TEST_CASE("no more than max_num_partial_prefills prompts are partly computed", "[sched][host]") {
  Harness<FreeListAllocator> harness(with({.long_prefill_token_threshold = 3, .max_num_partial_prefills = 1}), 16);
  harness.submit(prompt(7), 2);
  harness.submit(prompt(4), 2);
  harness.submit(prompt(2), 2);  // would fit, but nobody overtakes
  CHECK(next(harness) == Plan{{0, 3}});
  CHECK(next(harness) == Plan{{0, 3}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 3}, {2, 2}});  // 2 is whole
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 1}});
}

TEST_CASE("short prompts overtake long ones that may not start yet", "[sched][host]") {
  Harness<FreeListAllocator> harness(with({.long_prefill_token_threshold = 3, .max_long_partial_prefills = 1},
                                          {.max_num_seqs = 8, .max_num_batched_tokens = 16, .block_size = 4}),
                                     32);
  harness.submit(prompt(10), 1);
  harness.submit(prompt(11), 1);
  harness.submit(prompt(12), 1);
  harness.submit(prompt(3), 9);
  CHECK(next(harness) == Plan{{0, 3}, {3, 3}});
  harness.submit(prompt(2), 9);
  CHECK(next(harness) == Plan{{3, 1}, {0, 3}, {4, 2}});
  CHECK(next(harness) == Plan{{3, 1}, {4, 1}, {0, 3}});
  CHECK(next(harness) == Plan{{0, 1}, {3, 1}, {4, 1}, {1, 3}});  // one token is not long; 1 was passed over and is before 2
  harness.drain();
  CHECK(harness.violations().text() == "");
}

TEST_CASE("a prompt that is mostly cached is not long", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness(with({.long_prefill_token_threshold = 5, .max_long_partial_prefills = 1},
                                             {.max_num_seqs = 8, .max_num_batched_tokens = 16, .block_size = 4}),
                                        32);
  harness.submit(prompt(17, 1), 1);
  harness.drain();
  harness.submit(prompt(17, 2), 1);
  harness.submit(prompt(18, 1), 1);
  CHECK(next(harness) == Plan{{1, 5}, {2, 2}});
}

TEST_CASE("no more than max_num_seqs run, nor more than a step has tokens for", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  for (int i = 0; i < 5; ++i) { harness.submit(prompt(1), 2); }
  CHECK(next(harness).size() == 3);
  CHECK(next(harness).size() == 3);
  CHECK(next(harness).size() == 2);
  Harness<FreeListAllocator> narrow({.max_num_seqs = 8, .max_num_batched_tokens = 2, .block_size = 4}, 16);
  for (int i = 0; i < 5; ++i) { narrow.submit(prompt(1), 2); }
  CHECK(next(narrow) == Plan{{0, 1}, {1, 1}});
  narrow.drain();
  CHECK(narrow.violations().text() == "");
}

TEST_CASE("in a mixed step the youngest is preempted, is next in line, and nobody else is admitted", "[sched][host]") {
  Harness<FreeListAllocator> harness({.max_num_seqs = 4, .max_num_batched_tokens = 16, .block_size = 4}, 4);
  harness.submit(prompt(4, 1), 6);
  harness.submit(prompt(4, 2), 6);
  harness.submit(prompt(3, 3), 6);
  harness.submit(prompt(1, 4), 1);
  CHECK(next(harness) == Plan{{0, 4}, {1, 4}, {2, 3}});  // a block stays free
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});          // 0 takes it, 1 that of 2; 3 waits
  CHECK(preempted(harness) == std::vector<std::uint64_t>{2});
  CHECK(harness.live(2).status == SeqStatus::preempted);
  while (harness.num_live() > 2) { harness.step(); }  // 0 and 1 end; 2 goes before 3
  CHECK(next(harness) == Plan{{2, 4}, {3, 1}});
  CHECK(harness.batch().seqs[0].first_position == 0);
  harness.drain();
  CHECK(harness.violations().text() == "");
}

TEST_CASE("a step that preempts admits nobody, also if there would be room", "[sched][host]") {
  testing::SchedulerHarness<TokenBudgetScheduler<FairShareOrder>, FreeListAllocator> harness(
      {.max_num_seqs = 4, .max_num_batched_tokens = 32, .block_size = 4}, 6);
  harness.submit(prompt(4, 1), 6);
  harness.submit(prompt(4, 2), 6);
  harness.submit(prompt(11, 3), 6);
  CHECK(next(harness) == Plan{{0, 4}, {1, 4}, {2, 11}});
  harness.submit(prompt(1, 4), 2, "", 0, 1, 1);  // of another user, who was served least
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});
  CHECK(preempted(harness) == std::vector<std::uint64_t>{2});
  CHECK(harness.allocator().num_free() == 2);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {3, 1}});
}

TEST_CASE("a prompt in parts loses its blocks before a decode that is older does", "[sched][host]") {
  Harness<FreeListAllocator> harness({.max_num_seqs = 4, .max_num_batched_tokens = 4, .block_size = 4}, 4);
  harness.submit(prompt(4, 1), 10);
  CHECK(next(harness) == Plan{{0, 4}});
  harness.submit(prompt(8, 2), 2);
  CHECK(next(harness) == Plan{{0, 1}});  // no block would stay free for the admission of 1
  CHECK(harness.counts().preemptions == 0);
  Harness<FreeListAllocator> full({.max_num_seqs = 4, .max_num_batched_tokens = 4, .block_size = 4}, 5);
  full.submit(prompt(4, 1), 10);
  CHECK(next(full) == Plan{{0, 4}});
  full.submit(prompt(12, 2), 2);
  CHECK(next(full) == Plan{{0, 1}});
  full.submit(prompt(1), 1);  // nobody overtakes
  CHECK(next(full) == Plan{{0, 1}});
  full.drain();
  CHECK(full.violations().text() == "");
}

TEST_CASE("a sequence alone may use the whole pool in a mixed schedule", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 4);
  REQUIRE(harness.submit(prompt(16), 1));
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(harness.num_live() == 0);
  REQUIRE(harness.submit(prompt(1), 16));
  harness.drain();
  CHECK(harness.violations().text() == "");
}

TEST_CASE("a prompt that waits for blocks is tried again when more are free than before", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness(small, 6);
  harness.submit(prompt(7, 1), 3);
  CHECK(next(harness) == Plan{{0, 7}});
  harness.submit(prompt(6, 2), 7);
  harness.submit(prompt(8, 3), 2);
  const std::uint64_t queried = harness.allocator().stats().queried_tokens;
  CHECK(next(harness) == Plan{{0, 1}, {1, 6}});
  CHECK(harness.allocator().stats().queried_tokens == queried + 5 + 7);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});  // 0 ends
  CHECK(harness.allocator().stats().queried_tokens == queried + 5 + 7);
  CHECK(next(harness) == Plan{{1, 1}, {2, 7}});
  CHECK(harness.allocator().stats().queried_tokens == queried + 5 + 14);
}

TEST_CASE("a mixed scheduler that was moved goes on with its sequences", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 8, .block_size = 4});
  std::vector<Sequence> seqs(3);
  Scheduler first({.max_num_seqs = 2, .max_num_batched_tokens = 8, .block_size = 4});
  for (Sequence& seq : seqs) {
    seq.tokens = {1, 2, 3};
    first.add(seq);
  }
  ScheduledBatch batch;
  first.schedule(allocator, batch);
  Scheduler second(std::move(first));
  CHECK(second.num_running() == 2);
  CHECK(second.num_waiting() == 1);
  for (std::size_t i = 0; i < 2; ++i) { seqs[i].tokens.push_back(4); }
  second.remove(seqs[1]);
  release_blocks(seqs[1], allocator);
  batch.clear();
  second.schedule(allocator, batch);
  REQUIRE(batch.seqs.size() == 2);
  CHECK(batch.seqs[0].seq == &seqs[0]);
  CHECK(batch.seqs[1].seq == &seqs[2]);
}

TEST_CASE("what a mixed schedule knew of a sequence that did not fit goes with it", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 4, .block_size = 4});
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 16, .block_size = 4});
  Sequence first, second;
  first.tokens = prompt(4);
  second.tokens = prompt(16);
  scheduler.add(first);
  scheduler.add(second);
  ScheduledBatch batch;
  scheduler.schedule(allocator, batch);
  CHECK(scheduler.num_waiting() == 1);
  scheduler.remove(second);
  second.tokens = prompt(1);  // another sequence in the same place of memory
  scheduler.add(second);
  batch.clear();
  first.tokens.push_back(1);
  scheduler.schedule(allocator, batch);
  REQUIRE(batch.seqs.size() == 2);
  CHECK(batch.seqs[1].seq == &second);
}

TEMPLATE_TEST_CASE("a sequence of a mixed schedule can be aborted in any phase, and the others go on", "[sched][host]",
                   FreeListAllocator, PrefixCacheAllocator) {
  for (std::size_t which = 0; which < 3; ++which) {
    for (int steps = 0; steps < 12; ++steps) {
      Harness<TestType> harness(small, 5);
      harness.submit(prompt(13, 1), 4);
      harness.submit(prompt(4, 2), 8);
      harness.submit(prompt(4, 3), 8);
      for (int i = 0; i < steps; ++i) { harness.step(); }
      harness.abort(which);
      harness.submit(prompt(2), 2);
      harness.drain();
      INFO("abort of " << which << " after " << steps << " steps: " << harness.violations().text());
      CHECK(harness.violations().empty());
    }
  }
}

}  // namespace token_budget_scheduler_test
