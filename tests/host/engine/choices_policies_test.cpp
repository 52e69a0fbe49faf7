// Choices and beams over the policies that move or merge blocks: the output is that of an engine in which nothing is scarce.
#include "support/tiny_model.hpp"

#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/nvl.hpp>
#include <nvl/sched/swap_preemption.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace choices_policies_test {

using namespace nvl;
using namespace nvl_test;

namespace {

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

/// Drawn choices, equal ones (greedy), the best of some, and beams.
std::vector<Request> requests() {
  std::vector<Request> all;
  for (int i = 0; i < 24; ++i) {
    Request request = greedy_request(tiny_prompt(i % 5, 1 + (i * 37) % 60), 1 + (i * 13) % 40);
    request.sampling.seed = 100u + static_cast<unsigned>(i);
    request.sampling.n = 1 + i % 4;
    if (i % 3 != 0) { request.sampling.temperature = 1.0f; }
    if (i % 4 == 1) { request.sampling.best_of = 5; }
    if (i % 6 == 5) {
      request.sampling.best_of = 0;
      request.sampling.beam_width = 4;
    }
    all.push_back(std::move(request));
  }
  return all;
}

std::vector<std::vector<TokenId>> outputs_of(const std::vector<Completion>& completions) {
  std::vector<std::vector<TokenId>> outputs;
  for (const Completion& done : completions) {
    outputs.push_back(done.output_ids);
    for (const Choice& other : done.others) { outputs.push_back(other.output_ids); }
  }
  return outputs;
}

template <class E>
void check_everywhere(const EngineOptions& scarce) {
  TinyEngine<> roomy(tiny_config(), weights(), roomy_options());
  const auto expected = outputs_of(roomy.generate(requests()));
  E engine(tiny_config(), weights(), scarce);
  for (int round = 0; round < 2; ++round) {
    CHECK(outputs_of(engine.generate(requests())) == expected);
    CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
    CHECK(engine.stats().num_free_host_blocks == engine.stats().num_host_blocks);
  }
  CHECK(engine.stats().num_preemptions > 0);
}

}  // namespace

TEMPLATE_TEST_CASE("choices over a cache that merges equal blocks", "[engine][host]", PrefillFirstScheduler,
                   TokenBudgetScheduler<>) {
  EngineOptions scarce = roomy_options();
  scarce.num_blocks = 14;
  check_everywhere<TinyEngine<TestType, RadixCacheAllocator>>(scarce);
}

TEST_CASE("choices that are swapped to host memory", "[engine][host]") {
  EngineOptions scarce = roomy_options();
  scarce.num_blocks = 14;
  scarce.swap_space_bytes = 1 << 20;
  check_everywhere<TinyEngine<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, PrefixCacheAllocator>>(scarce);
}

}  // namespace choices_policies_test
