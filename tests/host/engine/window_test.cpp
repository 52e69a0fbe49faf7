// A model whose layers all have a sliding window gives back the blocks behind it while its sequences run.
#include "support/ahead_ops.hpp"
#include "support/tiny_model.hpp"

#include <nvl/nvl.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace window_test {

using namespace nvl;
using namespace nvl_test;

namespace {

constexpr std::int32_t window = 20;

ModelConfig windowed_config() {
  ModelConfig config = tiny_config();
  config.sliding_window = window;
  return config;
}

const RandomWeights& weights() {
  static const RandomWeights weights(windowed_config(), 42);
  return weights;
}

/// A scheduler that does not know of the window.
template <class S>
struct KeepsAll : S {
  explicit KeepsAll(SchedulerOptions options) : S(without_window(options)) {}
  static SchedulerOptions without_window(SchedulerOptions options) {
    options.window = {};
    return options;
  }
};

std::vector<Request> long_requests(std::int32_t n = 2) {
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {
    Request request = greedy_request(tiny_prompt(i % 3, 100 + 40 * (i % 5)), 60 + 40 * (i % 4));
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.seed = 7;
    request.sampling.n = i % 4 == 3 ? n : 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<std::vector<TokenId>> outputs_of(const std::vector<Completion>& completions) {
  std::vector<std::vector<TokenId>> outputs;
  for (const Completion& done : completions) {
    outputs.push_back(done.output_ids);
    for (const Choice& other : done.others) { outputs.push_back(other.output_ids); }
  }
  return outputs;
}

template <class S, class A>
using AheadEngine = Engine<S, A, AheadAttention, SingleDevice>;

}  // namespace

TEMPLATE_TEST_CASE("blocks behind the window come free while a sequence grows", "[engine][host]", PrefillFirstScheduler,
                   TokenBudgetScheduler<>) {
  TinyEngine<TestType, FreeListAllocator> engine(windowed_config(), weights(), roomy_options());
  TinyEngine<KeepsAll<TestType>, FreeListAllocator> keeping(windowed_config(), weights(), roomy_options());
  std::uint32_t most = 0, most_kept = 0;
  engine.submit(greedy_request(tiny_prompt(1, 30), 400));
  keeping.submit(greedy_request(tiny_prompt(1, 30), 400));
  for (int step = 0; engine.step(); ++step) {
    REQUIRE(keeping.step());
    most = std::max(most, 256 - engine.stats().num_free_blocks);
    most_kept = std::max(most_kept, 256 - keeping.stats().num_free_blocks);
  }
  CHECK(most_kept == 27);
  CHECK(most <= (window + 128) / 16 + 2);  // the window, what alignment adds to it, and the block that is filled
  CHECK(engine.stats().num_free_blocks == 256);
}

TEMPLATE_TEST_CASE("what a windowed model says does not depend on the blocks that it gave back", "[engine][host]",
                   (TinyEngine<PrefillFirstScheduler, FreeListAllocator>), (TinyEngine<PrefillFirstScheduler>),
                   (TinyEngine<TokenBudgetScheduler<>>), (AheadEngine<TokenBudgetScheduler<>, PrefixCacheAllocator>),
                   (AheadEngine<PrefillFirstScheduler, FreeListAllocator>)) {
  TinyEngine<KeepsAll<PrefillFirstScheduler>> keeping(windowed_config(), weights(), roomy_options());
  const auto expected = outputs_of(keeping.generate(long_requests()));
  EngineOptions options = roomy_options();
  options.max_num_batched_tokens = 50;
  for (const std::int64_t num_blocks : {256, 40, 28}) {
    options.num_blocks = num_blocks;
    TestType engine(windowed_config(), weights(), options);
    CHECK(outputs_of(engine.generate(long_requests())) == expected);
    CHECK(outputs_of(engine.generate(long_requests())) == expected);  // over what the cache still knows
    CHECK(engine.stats().num_free_blocks == static_cast<std::uint32_t>(num_blocks));
  }
}

TEST_CASE("a model with a layer that sees all keeps its blocks", "[engine][host]") {
  ModelConfig mixed = windowed_config();
  mixed.first_windowed_layer = 1;
  TinyEngine<PrefillFirstScheduler, FreeListAllocator> engine(mixed, weights(), roomy_options());
  engine.submit(greedy_request(tiny_prompt(1, 300), 4));
  engine.step();
  engine.step();
  engine.step();
  CHECK(engine.stats().num_free_blocks == 256 - 19);
}

}  // namespace window_test
