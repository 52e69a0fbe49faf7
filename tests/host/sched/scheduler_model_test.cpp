/// Random requests, steps, aborts and damage on each scheduler over each allocator, in an engine without a model that checks
/// every invariant after every operation. Counter-examples are shrunk.
#include "support/colliding_hash.hpp"
#include "support/property.hpp"

#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/prefill_first_scheduler.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

using namespace nvl;

namespace {

struct Operation {
  enum Kind : int { submit, submit_salted, submit_choices, abort, damage, step };
  int kind = step;
  std::int32_t a = 0, b = 0;  // prompt and output length, or which sequence
  std::uint32_t bits = 0;     // of the prompt's tokens
};

std::ostream& operator<<(std::ostream& out, const Operation& op) {
  switch (op.kind) {
    case Operation::submit:
    case Operation::submit_salted:
    case Operation::submit_choices:
      return out << (op.kind == Operation::submit          ? "submit"
                     : op.kind == Operation::submit_salted ? "submit_salted"
                                                           : "submit_choices")
                 << "(prompt " << op.a + 1 << ", output " << op.b + 1 << ", bits " << op.bits << ")";
    case Operation::abort: return out << "abort(" << op.a << ")";
    case Operation::damage: return out << "damage(" << op.a << ")";
    default: return out << "step";
  }
}

rc::Gen<Operation> operations() {
  const auto kinds = rc::gen::weightedElement<int>({{30, Operation::step},
                                                    {12, Operation::submit},
                                                    {3, Operation::submit_salted},
                                                    {4, Operation::submit_choices},
                                                    {2, Operation::abort},
                                                    {1, Operation::damage}});
  return rc::gen::build<Operation>(rc::gen::set(&Operation::kind, kinds), rc::gen::set(&Operation::a, rc::gen::inRange(0, 16)),
                                   rc::gen::set(&Operation::b, rc::gen::inRange(0, 12)),
                                   rc::gen::set(&Operation::bits, rc::gen::inRange(0u, 1u << 5)));
}

template <class Harness>
void apply(Harness& harness, const Operation& op) {
  switch (op.kind) {
    case Operation::submit:
    case Operation::submit_salted:
    case Operation::submit_choices: {
      std::vector<TokenId> prompt(static_cast<std::size_t>(op.a + 1));
      for (std::size_t i = 0; i < prompt.size(); ++i) { prompt[i] = static_cast<TokenId>(op.bits >> (i % 5) & 1u); }
      const std::int32_t num_choices = op.kind == Operation::submit_choices ? 2 + static_cast<std::int32_t>(op.bits % 4) : 1;
      harness.submit(prompt, op.b + 1, op.kind == Operation::submit_salted ? "salt" : "", 0, num_choices);
      break;
    }
    case Operation::abort: harness.abort(static_cast<std::size_t>(op.a)); break;
    case Operation::damage: harness.damage(static_cast<std::size_t>(op.a)); break;
    default: harness.step();
  }
}

struct Totals {
  std::uint64_t operations = 0, preemptions = 0, cached_tokens = 0, finished = 0, chunks = 0, forks = 0, copies = 0;
  std::uint64_t loaded_tokens = 0;
};

template <class S, class A>
Totals check_random_requests(const std::string& name, int num_cases) {
  Totals totals;
  check_property(name, num_cases, [&] {
    const std::int32_t num_seqs = *rc::gen::inRange(1, 17);
    const SchedulerOptions options{.max_num_seqs = num_seqs,
                                   .max_num_batched_tokens = num_seqs + *rc::gen::inRange(0, 24),
                                   .block_size = *rc::gen::inRange(1, 5)};
    const auto num_blocks = *rc::gen::inRange(2u, 24u);
    const auto list = *rc::gen::resize(2000, rc::gen::container<std::vector<Operation>>(operations()));
    const auto num_host_blocks = *rc::gen::inRange(0u, 32u);
    testing::SchedulerHarness<S, A> harness(options, num_blocks, 2, num_host_blocks);
    for (const Operation& op : list) {
      apply(harness, op);
      ++totals.operations;
      if (!harness.violations().empty()) { RC_FAIL(harness.violations().text()); }
    }
    harness.drain();
    if (!harness.violations().empty()) { RC_FAIL(harness.violations().text()); }
    totals.preemptions += harness.counts().preemptions;
    totals.cached_tokens += harness.counts().cached_tokens;
    totals.finished += harness.counts().finished;
    totals.chunks += harness.counts().chunks;
    totals.forks += harness.counts().forks;
    totals.copies += harness.counts().copies;
    totals.loaded_tokens += harness.counts().loaded_tokens;
  });
  return totals;
}

constexpr std::uint64_t many = 300'000;

}  // namespace

TEST_CASE("prefill-first over the free list keeps every invariant in any sequence of operations", "[sched][host][slow]") {
  const Totals totals = check_random_requests<PrefillFirstScheduler, FreeListAllocator>("free list", 400);
  // A run in which nothing happened proves nothing.
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.chunks > 1000);
  CHECK(totals.finished > 1000);
  CHECK(totals.cached_tokens == 0);
  CHECK(totals.forks > 1000);
  CHECK(totals.copies == 0);
}

TEST_CASE("prefill-first over the prefix cache keeps every invariant in any sequence of operations", "[sched][host][slow]") {
  const Totals totals = check_random_requests<PrefillFirstScheduler, PrefixCacheAllocator>("prefix cache", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.chunks > 1000);
  CHECK(totals.finished > 1000);
  CHECK(totals.cached_tokens > 10'000);
  CHECK(totals.forks > 1000);
  CHECK(totals.copies > 1000);
}

TEST_CASE("no sequence ever reads another one's K and V when the hash has four bits", "[sched][host][slow]") {
  const Totals totals = check_random_requests<PrefillFirstScheduler, FourBitCache>("four-bit hash", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.cached_tokens > 10'000);
}

TEST_CASE("token budget over the prefix cache and its host tier keeps every invariant in any sequence of operations",
          "[sched][host][slow]") {
  const Totals totals = check_random_requests<TokenBudgetScheduler<>, PrefixCacheAllocator>("two tiers", 400);
  CHECK(totals.operations >= many);
  CHECK(totals.preemptions > 1000);
  CHECK(totals.cached_tokens > 10'000);
  CHECK(totals.loaded_tokens > 1000);
}
