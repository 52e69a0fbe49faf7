#pragma once
/// Random requests, steps, aborts and damage on a scheduler over an allocator, in an engine without a model that checks every
/// invariant after every operation. Counter-examples are shrunk.

#include "support/property.hpp"

#include <nvl/core/ids.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>
#include <nvl/testing/scheduler_harness.hpp>

#include <catch2/catch_test_macros.hpp>
#include <rapidcheck.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

struct ModelOperation {
  enum Kind : int { submit, submit_salted, submit_choices, abort, damage, step };
  int kind = step;
  std::int32_t a = 0, b = 0;  // prompt and output length, or which sequence
  std::uint32_t bits = 0;     // of the prompt's tokens
};

inline std::ostream& operator<<(std::ostream& out, const ModelOperation& op) {
  switch (op.kind) {
    case ModelOperation::submit:
    case ModelOperation::submit_salted:
    case ModelOperation::submit_choices:
      return out << (op.kind == ModelOperation::submit          ? "submit"
                     : op.kind == ModelOperation::submit_salted ? "submit_salted"
                                                                : "submit_choices")
                 << "(prompt " << op.a + 1 << ", output " << op.b + 1 << ", bits " << op.bits << ")";
    case ModelOperation::abort: return out << "abort(" << op.a << ")";
    case ModelOperation::damage: return out << "damage(" << op.a << ")";
    default: return out << "step";
  }
}

inline rc::Gen<ModelOperation> model_operations() {
  const auto kinds = rc::gen::weightedElement<int>({{30, ModelOperation::step},
                                                    {12, ModelOperation::submit},
                                                    {3, ModelOperation::submit_salted},
                                                    {4, ModelOperation::submit_choices},
                                                    {2, ModelOperation::abort},
                                                    {1, ModelOperation::damage}});
  return rc::gen::build<ModelOperation>(rc::gen::set(&ModelOperation::kind, kinds),
                                        rc::gen::set(&ModelOperation::a, rc::gen::inRange(0, 16)),
                                        rc::gen::set(&ModelOperation::b, rc::gen::inRange(0, 12)),
                                        rc::gen::set(&ModelOperation::bits, rc::gen::inRange(0u, 1u << 5)));
}

template <class Harness>
void apply(Harness& harness, const ModelOperation& op) {
  switch (op.kind) {
    case ModelOperation::submit:
    case ModelOperation::submit_salted:
    case ModelOperation::submit_choices: {
      std::vector<nvl::TokenId> prompt(static_cast<std::size_t>(op.a + 1));
      for (std::size_t i = 0; i < prompt.size(); ++i) { prompt[i] = static_cast<nvl::TokenId>(op.bits >> (i % 5) & 1u); }
      const std::int32_t num_choices = op.kind == ModelOperation::submit_choices ? 2 + static_cast<std::int32_t>(op.bits % 4) : 1;
      harness.submit(prompt, op.b + 1, op.kind == ModelOperation::submit_salted ? "salt" : "", (op.a + op.b) % 3, num_choices,
                     op.bits % 3);
      break;
    }
    case ModelOperation::abort: harness.abort(static_cast<std::size_t>(op.a)); break;
    case ModelOperation::damage: harness.damage(static_cast<std::size_t>(op.a)); break;
    default: harness.step();
  }
}

struct ModelTotals {
  std::uint64_t operations = 0, preemptions = 0, cached_tokens = 0, finished = 0, chunks = 0, forks = 0, copies = 0;
  std::uint64_t loaded_tokens = 0, swaps = 0, released = 0;
};

template <class S, class A>
ModelTotals check_random_requests(const std::string& name, int num_cases) {
  ModelTotals totals;
  check_property(name, num_cases, [&] {
    const std::int32_t num_seqs = *rc::gen::inRange(1, 17);
    nvl::SchedulerOptions options{.max_num_seqs = num_seqs,
                                  .max_num_batched_tokens = num_seqs + *rc::gen::inRange(0, 24),
                                  .block_size = *rc::gen::inRange(1, 5)};
    const auto below = [](int n) { return *rc::gen::inRange(0, n); };
    if (below(2) == 1) { options.scheduling = nvl::testing::detail::random_scheduling(below); }
    if (below(4) == 3) { options.window = {.tokens = 1 + below(8), .alignment = 1 + below(4)}; }
    const auto num_blocks = *rc::gen::inRange(2u, 24u);
    const auto list = *rc::gen::resize(2000, rc::gen::container<std::vector<ModelOperation>>(model_operations()));
    const auto num_host_blocks = *rc::gen::inRange(0u, 32u);
    nvl::testing::SchedulerHarness<S, A> harness(options, num_blocks, 2, num_host_blocks);
    for (const ModelOperation& op : list) {
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
    totals.released += harness.counts().released;
    totals.loaded_tokens += harness.counts().loaded_tokens;
    totals.swaps += harness.counts().swaps;
  });
  return totals;
}
