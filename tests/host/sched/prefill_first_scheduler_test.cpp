#include "support/scheduler_plan.hpp"

#include <nvl/core/error.hpp>
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace prefill_first_scheduler_test {

using namespace nvl;

namespace {

template <class A>
using Harness = testing::SchedulerHarness<PrefillFirstScheduler, A>;

constexpr SchedulerOptions small{.max_num_seqs = 3, .max_num_batched_tokens = 8, .block_size = 4};

}  // namespace

TEST_CASE("options out of range are refused by name", "[sched][host]") {
  CHECK_THROWS_AS(PrefillFirstScheduler({.max_num_seqs = 0}), InvalidArgument);
  CHECK_THROWS_AS(PrefillFirstScheduler({.max_num_batched_tokens = 0}), InvalidArgument);
  CHECK_THROWS_AS(PrefillFirstScheduler({.block_size = 0}), InvalidArgument);
}

TEST_CASE("a sequence is added once, with a token, and may be removed twice", "[sched][host]") {
  PrefillFirstScheduler scheduler(small);
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

TEST_CASE("a step is either prefills, in order of arrival, or decodes", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(3), 3);
  harness.submit(prompt(4), 3);
  CHECK(next(harness) == Plan{{0, 3}, {1, 4}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});
  harness.submit(prompt(2), 2);
  CHECK(next(harness) == Plan{{2, 2}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 1}});
  CHECK(harness.num_live() == 0);
  CHECK_FALSE(harness.step());
}

TEST_CASE("a prompt that does not fit in the rest of a step waits for the next", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(5), 2);
  harness.submit(prompt(4), 2);
  harness.submit(prompt(1), 2);  // would fit, but nobody overtakes
  CHECK(next(harness) == Plan{{0, 5}});
  CHECK(next(harness) == Plan{{1, 4}, {2, 1}});
}

TEST_CASE("a prompt longer than a step is cut, and its last chunk shares a step with the next prompt", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(19), 2);
  harness.submit(prompt(5), 2);
  harness.submit(prompt(1), 2);
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 3}, {1, 5}});
  CHECK(next(harness) == Plan{{2, 1}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}, {2, 1}});
}

TEST_CASE("a last chunk of one token joins the decodes once nobody waits", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  harness.submit(prompt(9), 2);
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 1}});
  CHECK(harness.batch().seqs[0].needs_sample);
}

TEST_CASE("no more than max_num_seqs run, nor more than find room in a decode step", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 16);
  for (int i = 0; i < 5; ++i) { harness.submit(prompt(1), 2); }
  CHECK(next(harness).size() == 3);
  CHECK(next(harness).size() == 3);
  CHECK(next(harness).size() == 2);
  Harness<FreeListAllocator> narrow({.max_num_seqs = 8, .max_num_batched_tokens = 2, .block_size = 4}, 16);
  for (int i = 0; i < 5; ++i) { narrow.submit(prompt(1), 2); }
  CHECK(next(narrow) == Plan{{0, 1}, {1, 1}});
  CHECK(next(narrow) == Plan{{0, 1}, {1, 1}});
  narrow.drain();
  CHECK(narrow.violations().text().empty());
}

TEST_CASE("the youngest is preempted, is next in line, and its tokens are computed again", "[sched][host]") {
  Harness<FreeListAllocator> harness({.max_num_seqs = 3, .max_num_batched_tokens = 16, .block_size = 4}, 4);
  harness.submit(prompt(4), 6);
  harness.submit(prompt(4), 6);
  harness.submit(prompt(4), 6);
  CHECK(next(harness) == Plan{{0, 4}, {1, 4}, {2, 4}});
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});  // 0 takes the last free block, 1 that of 2
  CHECK(preempted(harness) == std::vector<std::uint64_t>{2});
  CHECK(harness.scheduler().num_waiting() == 1);
  harness.submit(prompt(1), 1);
  while (harness.num_live() > 2) { harness.step(); }  // 0 and 1 end; 2 goes before 3
  CHECK(next(harness) == Plan{{2, 5}, {3, 1}});
  CHECK(harness.batch().seqs[0].first_position == 0);
  harness.drain();
  CHECK(harness.violations().text().empty());
}

TEST_CASE("a preempted sequence whose blocks are still cached computes only what is lost", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness({.max_num_seqs = 2, .max_num_batched_tokens = 16, .block_size = 4}, 5);
  harness.submit(prompt(6, 1), 5);
  harness.submit(prompt(7, 2), 5);
  CHECK(next(harness) == Plan{{0, 6}, {1, 7}});
  while (harness.counts().preemptions == 0) { REQUIRE(harness.step()); }
  CHECK(preempted(harness) == std::vector<std::uint64_t>{1});
  harness.drain();
  CHECK(harness.violations().text().empty());
  CHECK(harness.counts().cached_tokens == 8);
}

TEST_CASE("a sequence alone may use the whole pool", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 4);
  CHECK_FALSE(harness.submit(prompt(16), 2));  // 17 tokens are stored
  REQUIRE(harness.submit(prompt(16), 1));
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(next(harness) == Plan{{0, 8}});
  CHECK(harness.num_live() == 0);
  REQUIRE(harness.submit(prompt(1), 16));
  harness.drain();
  CHECK(harness.violations().text().empty());
}

TEST_CASE("while others run, an admission leaves a block free", "[sched][host]") {
  Harness<FreeListAllocator> harness(small, 4);
  harness.submit(prompt(8), 4);
  CHECK(next(harness) == Plan{{0, 8}});
  harness.submit(prompt(8), 4);
  CHECK(next(harness) == Plan{{0, 1}});  // 1 would take the last block, which 0 needs now
  CHECK(harness.counts().preemptions == 0);
}

TEST_CASE("a prompt that waits for blocks is admitted as soon as enough are free", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness(small, 6);
  harness.submit(prompt(7, 1), 3);
  harness.submit(prompt(7, 2), 6);
  CHECK(next(harness) == Plan{{0, 7}});
  CHECK(next(harness) == Plan{{1, 7}});
  harness.submit(prompt(8, 3), 2);
  const std::uint64_t queried = harness.allocator().stats().queried_tokens;
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});
  CHECK(harness.allocator().stats().queried_tokens == queried + 7);
  CHECK(next(harness) == Plan{{0, 1}, {1, 1}});                      // 0 ends
  CHECK(harness.allocator().stats().queried_tokens == queried + 7);  // its prefix was not searched for again
  CHECK(next(harness) == Plan{{2, 8}});
}

TEST_CASE("the whole prompt but its last token may come from the cache", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness(small, 8);
  harness.submit(prompt(9), 1);
  harness.drain();
  harness.submit(prompt(9), 1);
  CHECK(next(harness) == Plan{{1, 1}});
  harness.submit(prompt(8), 1);
  CHECK(next(harness) == Plan{{2, 4}});  // its last block is full and computed again, up to the last token
  CHECK(harness.counts().cached_tokens == 12);
}

TEST_CASE("a long prompt that is mostly cached fits in the rest of a step", "[sched][host]") {
  Harness<PrefixCacheAllocator> harness(small, 16);
  harness.submit(prompt(17, 1), 1);
  harness.drain();
  harness.submit(prompt(6, 2), 1);
  harness.submit(prompt(17, 1), 1);
  CHECK(next(harness) == Plan{{1, 6}, {2, 1}});
  harness.submit(prompt(6, 3), 1);
  harness.submit(prompt(20, 1), 1);  // four of its tokens are not cached
  CHECK(next(harness) == Plan{{3, 6}});
  CHECK(next(harness) == Plan{{4, 4}});
}

TEMPLATE_TEST_CASE("a sequence can be aborted in any phase, and the others go on", "[sched][host]", FreeListAllocator,
                   PrefixCacheAllocator) {
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

TEMPLATE_TEST_CASE("16 sequences on 8 blocks all end", "[sched][host]", FreeListAllocator, PrefixCacheAllocator) {
  Harness<TestType> harness({.max_num_seqs = 16, .max_num_batched_tokens = 16, .block_size = 4}, 8);
  for (TokenId i = 0; i < 16; ++i) { REQUIRE(harness.submit(prompt(static_cast<std::size_t>(1 + i % 6), i % 3), 20)); }
  harness.drain();
  CHECK(harness.violations().text().empty());
  CHECK(harness.counts().finished == 16);
  CHECK(harness.counts().preemptions > 0);
  CHECK(harness.allocator().num_free() == 8);
}

TEST_CASE("a scheduler that was moved goes on with its sequences", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 8, .block_size = 4});
  std::vector<Sequence> seqs(3);
  PrefillFirstScheduler first({.max_num_seqs = 2, .max_num_batched_tokens = 8, .block_size = 4});
  for (Sequence& seq : seqs) {
    seq.tokens = {1, 2, 3};
    first.add(seq);
  }
  ScheduledBatch batch;
  first.schedule(allocator, batch);
  PrefillFirstScheduler second(std::move(first));
  CHECK(second.num_running() == 2);
  CHECK(second.num_waiting() == 1);
  for (std::size_t i = 0; i < 2; ++i) { seqs[i].tokens.push_back(4); }
  second.remove(seqs[1]);
  release_blocks(seqs[1], allocator);
  batch.clear();
  second.schedule(allocator, batch);
  REQUIRE(batch.seqs.size() == 1);
  CHECK(batch.seqs[0].seq == &seqs[2]);
  batch.clear();
  seqs[2].tokens.push_back(4);
  second.schedule(allocator, batch);
  CHECK(batch.seqs.size() == 2);
}

TEST_CASE("what is known of a sequence that did not fit goes with it", "[sched][host]") {
  FreeListAllocator allocator({.num_blocks = 4, .block_size = 4});
  PrefillFirstScheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 16, .block_size = 4});
  Sequence first, second;
  first.tokens = prompt(4);
  second.tokens = prompt(16);
  scheduler.add(first);
  scheduler.add(second);
  ScheduledBatch batch;
  scheduler.schedule(allocator, batch);
  CHECK(scheduler.num_waiting() == 1);
  first.tokens.push_back(1);
  batch.clear();
  scheduler.schedule(allocator, batch);  // `second` does not fit with two blocks free
  scheduler.remove(second);
  second.tokens = prompt(1);  // another sequence in the same place of memory
  scheduler.add(second);
  batch.clear();
  first.tokens.push_back(1);
  scheduler.schedule(allocator, batch);
  REQUIRE(batch.seqs.size() == 1);
  CHECK(batch.seqs[0].seq == &second);
}

}  // namespace prefill_first_scheduler_test
