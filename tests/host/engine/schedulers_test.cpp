// Every scheduler and order gives every request the same tokens, however steps are cut and whoever is preempted.
#include "support/tiny_model.hpp"

#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/longest_prefix_order.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/shortest_work_order.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <utility>
#include <vector>

namespace schedulers_test {

using namespace nvl;
using namespace nvl_test;

namespace {

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

/// Greedy and drawn, of all lengths, with beginnings in common, of three users and priorities.
std::vector<Request> requests() {
  std::vector<Request> all;
  for (int i = 0; i < 24; ++i) {
    std::vector<TokenId> ids = tiny_prompt(i % 5, (i % 3) * 24);
    for (const TokenId id : tiny_prompt(100 + i, 1 + (i * 37) % 60)) { ids.push_back(id); }
    Request request = greedy_request(std::move(ids), 1 + (i * 13) % 40);
    if (i % 3 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    request.sampling.logprobs = 1;
    request.priority = i % 4;
    request.user = static_cast<std::uint64_t>(i % 3);
    all.push_back(std::move(request));
  }
  return all;
}

const std::vector<Completion>& expected() {
  static const std::vector<Completion> completions = [] {
    TinyEngine<> engine(tiny_config(), weights(), roomy_options());
    return engine.generate(requests());
  }();
  return completions;
}

/// Four prompts at a time are cut, and a pool of which the largest request takes nearly half is fought over.
EngineOptions scarce_options() {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 24;
  options.num_blocks = 20;
  return options;
}

}  // namespace

TEMPLATE_TEST_CASE("a mixed scheduler gives every request what separate steps give it", "[engine][host]", TokenBudgetScheduler<>,
                   TokenBudgetScheduler<PriorityOrder>, TokenBudgetScheduler<ShortestWorkOrder>,
                   TokenBudgetScheduler<FairShareOrder>, TokenBudgetScheduler<LongestPrefixOrder>) {
  EngineOptions chunked = scarce_options();
  chunked.scheduling = {.max_prefill_tokens_beside_decodes = 7,
                        .long_prefill_token_threshold = 10,
                        .max_num_partial_prefills = 3,
                        .max_long_partial_prefills = 1};
  int num_preempted = 0;
  for (const EngineOptions& options : {roomy_options(), scarce_options(), chunked}) {
    TinyEngine<TestType> engine(tiny_config(), weights(), options);
    const std::vector<Completion> completions = engine.generate(requests());
    REQUIRE(completions.size() == expected().size());
    for (std::size_t i = 0; i < completions.size(); ++i) {
      INFO("request " << i);
      CHECK(completions[i].output_ids == expected()[i].output_ids);
      REQUIRE(completions[i].logprobs.size() == expected()[i].logprobs.size());
      for (std::size_t t = 0; t < completions[i].logprobs.size(); ++t) {
        REQUIRE(completions[i].logprobs[t].logprob == expected()[i].logprobs[t].logprob);
      }
      num_preempted += completions[i].num_preemptions;
    }
    CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
  }
  CHECK(num_preempted > 0);
}

TEST_CASE("an engine refuses scheduling options out of range", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.scheduling.max_long_partial_prefills = 1;
  CHECK_THROWS_AS(TinyEngine<>(tiny_config(), weights(), options), InvalidArgument);
}

}  // namespace schedulers_test
