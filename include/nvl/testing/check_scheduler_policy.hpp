#pragma once
/// Conformance suite of the concept SchedulerPolicy: tests the meaning column of its table on any scheduler.
///
///     const auto broken = nvl::testing::check_scheduler_policy<MyScheduler>();
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/testing/scheduler_harness.hpp>
#include <nvl/testing/violations.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

template <class S, class A>
void check_edges(Violations& broken) {
  constexpr std::int32_t block = 4;
  const SchedulerOptions options{.max_num_seqs = 4, .max_num_batched_tokens = 8, .block_size = block};
  const auto run = [&](const std::string& name, std::uint32_t num_blocks, auto&& submit) {
    SchedulerHarness<S, A> harness(options, num_blocks);
    submit(harness);
    harness.drain();
    if (!harness.violations().empty()) { broken.expect(false, name + ": " + harness.violations().text()); }
  };
  run("no sequences", 4, [](auto& h) { h.step(); });
  for (const std::int32_t length : {1, block - 1, block, block + 1, 2 * block, 3 * block}) {
    run("prompt of " + std::to_string(length), 4,
        [&](auto& h) { h.submit(std::vector<TokenId>(static_cast<std::size_t>(length), 1), 3); });
    run("twice the same prompt of " + std::to_string(length) + ", one after the other", 8, [&](auto& h) {
      h.submit(std::vector<TokenId>(static_cast<std::size_t>(length), 1), 3);
      h.drain();
      h.submit(std::vector<TokenId>(static_cast<std::size_t>(length), 1), 3);
    });
  }
  run("one sequence as large as the pool", 4, [](auto& h) { h.submit(std::vector<TokenId>(4 * block, 1), 1); });
  run("one sequence that grows to the pool's size", 4, [](auto& h) { h.submit({1}, 4 * block); });
  run("two sequences that each grow to the pool's size", 4, [](auto& h) {
    h.submit({1}, 4 * block);
    h.submit({2}, 4 * block);
  });
  run("16 sequences on 8 blocks", 8, [](auto& h) {
    for (TokenId i = 0; i < 16; ++i) { h.submit(std::vector<TokenId>(static_cast<std::size_t>(i % 7 + 1), i), 8); }
  });
  for (const std::int32_t length : {1, block - 1, block, block + 1, 2 * block}) {
    run("a prompt of " + std::to_string(length) + " that forks", 16,
        [&](auto& h) { h.submit(std::vector<TokenId>(static_cast<std::size_t>(length), 1), 6, "", 0, 4); });
  }
  run("more choices than may run", 16, [](auto& h) { h.submit({1, 2, 3, 4, 5}, 6, "", 0, 7); });
  run("three choices for which there are not blocks enough", 5, [](auto& h) { h.submit({1, 2, 3, 4, 5}, 14, "", 0, 3); });
  run("an abort in each state", 4, [](auto& h) {
    for (TokenId i = 0; i < 4; ++i) { h.submit(std::vector<TokenId>(12, i), 4); }
    h.abort(3);  // waiting
    h.step();    // a part of the first
    h.abort(0);
    h.step();
    h.step();
    h.abort(0);  // decoding
  });
}

/// Any values that are allowed; small, so that they matter.
template <class Below>
SchedulingOptions random_scheduling(Below&& below) {
  SchedulingOptions options;
  options.max_prefill_tokens_beside_decodes = below(6);
  options.long_prefill_token_threshold = below(6);
  options.max_num_partial_prefills = below(3);
  options.max_long_partial_prefills = options.long_prefill_token_threshold > 0 ? below(3) : 0;
  options.swap_out_steps = below(4);
  options.swap_in_steps = options.swap_out_steps + below(12);
  options.preemption_costs = PreemptionCosts::of(0.5 * below(4), below(20));
  options.priority_aging_steps = 1 + below(20);
  options.prompt_token_cost = below(3);
  options.output_token_cost = 1 + below(3);
  options.work_aging_cost = 1 + below(20);
  options.longest_prefix_window = 1 + below(6);
  options.longest_prefix_patience = below(6);
  return options;
}

/// `num_operations` random ones: sequences that come, steps, aborts, damage.
template <class S, class A>
void check_random_requests(Violations& broken, std::uint64_t seed, int num_operations) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return static_cast<std::int32_t>(random() % n); };
  const std::int32_t num_seqs = 1 + below(6);
  SchedulerOptions options{.max_num_seqs = num_seqs, .max_num_batched_tokens = num_seqs + below(12), .block_size = 1 + below(4)};
  if (below(2) == 0) { options.scheduling = random_scheduling(below); }
  if (below(4) == 0) { options.window = {.tokens = 1 + below(8), .alignment = 1 + below(4)}; }
  const auto num_blocks = static_cast<std::uint32_t>(1 + below(12));
  SchedulerHarness<S, A> harness(options, num_blocks, 2, static_cast<std::uint32_t>(below(16)));
  for (int i = 0; i < num_operations && harness.violations().empty(); ++i) {
    switch (below(8)) {
      case 0: harness.abort(random()); break;
      case 1:
      case 2: {
        std::vector<TokenId> prompt(static_cast<std::size_t>(1 + below(20)));
        for (TokenId& token : prompt) { token = below(2); }
        const char* const salt = below(8) == 0 ? "salt" : "";
        const std::int32_t num_choices = below(4) == 0 ? 1 + below(4) : 1;
        const auto user = static_cast<std::uint64_t>(below(3));
        harness.submit(prompt, 1 + below(12), salt, below(3), num_choices, user);
        break;
      }
      case 3:
        if (below(8) == 0) { harness.damage(random()); }
        break;
      default: harness.step();
    }
  }
  harness.drain();
  if (!harness.violations().empty()) {
    broken.expect(false, "random requests, seed " + std::to_string(seed) + ": " + harness.violations().text());
  }
}

}  // namespace detail

/// Everything that the table of SchedulerPolicy promises, over allocator A. Reproducible: randomness is of `seed` alone.
template <class S, BlockAllocator A = PrefixCacheAllocator>
  requires SchedulerPolicy<S, A>
Violations check_scheduler_policy(std::uint64_t seed = 1) {
  Violations broken;
  detail::check_edges<S, A>(broken);
  for (std::uint64_t run = 0; run < 50 && broken.empty(); ++run) {
    detail::check_random_requests<S, A>(broken, seed * 50 + run, 300);
  }
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
