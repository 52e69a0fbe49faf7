#include <nvl/core/error.hpp>
#include <nvl/model/random_weights.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/context_parallel.hpp>
#include <nvl/parallel/tensor_context_parallel.hpp>

#include "support/expect_error.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace context_parallel_test {

using namespace nvl;
using nvl_test::greedy_request;
using nvl_test::roomy_options;
using nvl_test::tiny_config;
using nvl_test::tiny_prompt;

namespace {

using Whole = Engine<TokenBudgetScheduler<>, PrefixCacheAllocator, CpuPagedAttention<float>, SingleDevice>;
/// Its cache finds prefixes that end inside a block.
using Shared =
    Engine<TokenBudgetScheduler<FcfsOrder, SwapPreemption>, RadixCacheAllocator, CpuPagedAttention<float>, ContextParallel<>>;
template <class Parallel>
using InBfloat16 = Engine<PrefillFirstScheduler, PrefixCacheAllocator, CpuPagedAttention<bf16>, Parallel>;

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 5);
  return weights;
}

template <class E = Shared>
std::unique_ptr<E> shared_by(std::uint32_t num_ranks, const EngineOptions& options = roomy_options()) {
  return std::make_unique<E>(tiny_config(), weights(), options, LoadProgress{}, ContextParallel<>(num_ranks));
}

template <class E>
std::vector<float> logits_of(E& engine, std::span<const TokenId> prompt, std::int32_t first = 0) {
  std::vector<float> all;
  const auto add = [&](std::int32_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); };
  engine.prompt_logits(prompt, add, first);
  return all;
}

float largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float error = 0;
  for (std::size_t i = 0; i < a.size(); ++i) { error = std::max(error, std::abs(a[i] - b[i])); }
  return error;
}

std::vector<Request> requests(std::int32_t max_tokens = 12) {
  std::vector<Request> all;
  for (const int length : {1, 2, 3, 16, 33, 64, 71, 130}) {
    all.push_back(greedy_request(tiny_prompt(static_cast<int>(all.size()), length), max_tokens));
  }
  return all;
}

/// The first choice of each request, then the others.
template <class E>
std::vector<std::vector<TokenId>> tokens_of(E& engine, std::vector<Request> wanted) {
  std::vector<std::vector<TokenId>> tokens;
  for (const Completion& completion : engine.generate(std::move(wanted))) {
    REQUIRE(completion.error.empty());
    tokens.push_back(completion.output_ids);
    for (const auto& choice : completion.others) { tokens.push_back(choice.output_ids); }
  }
  return tokens;
}

const std::vector<std::vector<TokenId>>& whole_text() {
  static const auto text = [] {
    Whole whole(tiny_config(), weights(), roomy_options());
    return tokens_of(whole, requests(40));
  }();
  return text;
}

}  // namespace

TEST_CASE("on any number of ranks that share tokens the logits are those of one, and so is the greedy text", "[parallel][host]") {
  Whole whole(tiny_config(), weights(), roomy_options());
  for (const std::uint32_t num_ranks : {1u, 2u, 3u, 4u}) {
    const auto shared = shared_by(num_ranks);
    CHECK(shared->num_ranks() == num_ranks);
    for (const int length : {1, 2, 3, 7, 16, 33, 127, 200}) {
      CAPTURE(num_ranks, length);
      const std::vector<TokenId> prompt = tiny_prompt(0, length);
      CHECK(largest_difference(logits_of(*shared, prompt), logits_of(whole, prompt)) < 2e-5f);
    }
    CHECK(tokens_of(*shared, requests(40)) == whole_text());
    CHECK(shared->stats().num_free_blocks == shared->stats().num_blocks);
  }
}

TEST_CASE("prompts in chunks of any length have the same logits on ranks that share tokens", "[parallel][host]") {
  const std::vector<TokenId> prompt = tiny_prompt(3, 151);
  Whole whole(tiny_config(), weights(), roomy_options());
  const std::vector<float> expected = logits_of(whole, prompt);
  for (const std::uint32_t num_ranks : {2u, 4u}) {
    for (const int budget : {1, 3, 16, 37, 64}) {
      CAPTURE(num_ranks, budget);
      EngineOptions options = roomy_options();
      options.max_num_batched_tokens = budget;
      options.max_num_seqs = std::min(budget, 32);
      const auto shared = shared_by(num_ranks, options);
      CHECK(largest_difference(logits_of(*shared, prompt), expected) < 2e-5f);
    }
  }
}

TEST_CASE("a prompt of thousands of tokens has the same end on ranks that share it", "[parallel][host][slow]") {
  ModelConfig config = tiny_config();
  config.max_position_embeddings = 4096;
  const std::vector<TokenId> prompt = tiny_prompt(1, 3001);
  EngineOptions options = roomy_options();
  options.max_num_batched_tokens = 1100;
  Whole whole(config, weights(), options);
  Shared shared(config, weights(), options, {}, ContextParallel<>(4));
  const std::int32_t first = 2980;
  CHECK(largest_difference(logits_of(shared, prompt, first), logits_of(whole, prompt, first)) < 2e-5f);
  CHECK(tokens_of(shared, {greedy_request(prompt, 40)}) == tokens_of(whole, {greedy_request(prompt, 40)}));
}

TEST_CASE("in bfloat16 the logits on ranks that share tokens are near those on one", "[parallel][host]") {
  const std::vector<TokenId> prompt = tiny_prompt(0, 150);
  EngineOptions options = roomy_options();
  options.max_num_batched_tokens = 64;
  InBfloat16<SingleDevice> whole(tiny_config(), weights(), options);
  const auto shared = shared_by<InBfloat16<ContextParallel<>>>(4, options);
  const std::vector<float> expected = logits_of(whole, prompt), logits = logits_of(*shared, prompt);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    error += std::pow(double{logits[i]} - expected[i], 2);
    size += std::pow(double{expected[i]}, 2);
  }
  CHECK(error > 0);
  CHECK(error / size < 1e-3);
}

TEST_CASE("chunks beside decodes, prefix hits and recomputation change no token on ranks that share them", "[parallel][host]") {
  for (const std::uint32_t num_ranks : {2u, 4u}) {
    CAPTURE(num_ranks);
    const auto roomy = shared_by(num_ranks);
    CHECK(tokens_of(*roomy, requests(40)) == whole_text());
    CHECK(tokens_of(*roomy, requests(40)) == whole_text());
    CHECK(roomy->stats().prefix_cache.hit_tokens > 0);
    EngineOptions scarce = roomy_options();
    scarce.max_num_seqs = 6;
    scarce.max_num_batched_tokens = 13;
    scarce.num_blocks = 12 / num_ranks + 2;
    const auto narrow = shared_by(num_ranks, scarce);
    CHECK(tokens_of(*narrow, requests(40)) == whole_text());
    CHECK(narrow->stats().num_preemptions > 0);
  }
}

TEST_CASE("a prefix that ends inside a block is copied on each rank that has a part of it", "[parallel][host]") {
  Whole whole(tiny_config(), weights(), roomy_options());
  const auto shared = shared_by(2);
  for (const int common : {150, 90, 37, 120}) {
    std::vector<TokenId> prompt = tiny_prompt(0, 150);
    prompt.resize(static_cast<std::size_t>(common));
    prompt.push_back(static_cast<TokenId>(common));
    CHECK(tokens_of(*shared, {greedy_request(prompt, 20)}) == tokens_of(whole, {greedy_request(prompt, 20)}));
  }
  CHECK(shared->stats().prefix_cache.hit_tokens > 0);
}

TEST_CASE("choices that part from one prompt, and beams, are those of one rank", "[parallel][host]") {
  const auto wanted = [] {
    std::vector<Request> all = requests(24);
    for (std::size_t i = 0; i < all.size(); ++i) {
      SamplingParams& sampling = all[i].sampling;
      if (i % 2 == 0) {
        sampling.n = 3;
        sampling.temperature = 0.8f;
        sampling.seed = i;
      } else {
        sampling.beam_width = 2;
        sampling.n = 2;
      }
    }
    all.back().sampling = requests(24).back().sampling;
    all.back().sampling.repetition_penalty = 1.3f;
    all.back().sampling.logprobs = 4;
    return all;
  };
  Whole whole(tiny_config(), weights(), roomy_options());
  const auto expected = tokens_of(whole, wanted());
  CHECK(tokens_of(*shared_by(2), wanted()) == expected);
  CHECK(tokens_of(*shared_by(4), wanted()) == expected);
}

TEST_CASE("shares of several ranks have the logits of one rank, and its greedy text", "[parallel][host]") {
  using Product = Engine<TokenBudgetScheduler<>, PrefixCacheAllocator, CpuPagedAttention<float>, TensorContextParallel<>>;
  Whole whole(tiny_config(), weights(), roomy_options());
  const std::vector<TokenId> prompt = tiny_prompt(0, 77);
  EngineOptions options = roomy_options();
  options.max_num_batched_tokens = 50;
  Product product(tiny_config(), weights(), options, {}, TensorContextParallel<>(3, 2));
  CHECK(product.num_ranks() == 6);
  CHECK(largest_difference(logits_of(product, prompt), logits_of(whole, prompt)) < 2e-5f);
  CHECK(tokens_of(product, requests(40)) == whole_text());
}

TEST_CASE("blocks that are swapped take the part of each rank with them", "[parallel][host]") {
  EngineOptions scarce = roomy_options();
  scarce.max_num_seqs = 6;
  scarce.num_blocks = 8;
  scarce.swap_space_bytes = 1 << 20;
  const auto shared = shared_by(2, scarce);
  CHECK(tokens_of(*shared, requests(40)) == whole_text());
  CHECK(shared->stats().num_swaps > 0);
}

TEST_CASE("a rank keeps its part of each block", "[parallel][host]") {
  Whole whole(tiny_config(), weights(), roomy_options());
  const auto shared = shared_by(4);
  CHECK(shared->memory_plan().kv_bytes_per_block == whole.memory_plan().kv_bytes_per_block);
  CHECK(shared->memory_plan().block_size == 4 * whole.memory_plan().block_size);
  CHECK(shared->memory_plan().activation_bytes < whole.memory_plan().activation_bytes);
  EngineOptions sized = roomy_options();
  sized.num_blocks = 0;
  sized.max_num_seqs = 1;
  const auto needed = [&](auto& engine) { return engine.memory_plan().kv_bytes; };  // by one sequence of the longest
  Whole one(tiny_config(), weights(), sized);
  CHECK(needed(*shared_by(4, sized)) == needed(one) / 4);

  // K and V of 100 tokens: positions 0 to 15 are on rank 0, 16 to 31 on rank 1, and so on; nothing is kept twice.
  static_cast<void>(logits_of(*shared, tiny_prompt(0, 100)));
  const std::vector<int> expected{32, 32, 20, 16};
  for (std::uint32_t rank = 0; rank < 4; ++rank) {
    const auto cache = shared->kv_cache(rank);
    int num_kept = 0;
    for (std::int64_t block = 0; block < cache.layout.num_blocks; ++block) {
      for (std::int32_t offset = 0; offset < cache.layout.block_size; ++offset) {
        num_kept += cache.kv[cache.layout.k_offset(block, 0, offset)] != 0.0f ? 1 : 0;
      }
    }
    CHECK(num_kept == expected[rank]);
  }
}

TEST_CASE("a model with a sliding window is not shared by tokens", "[parallel][host]") {
  ModelConfig config = tiny_config();
  config.sliding_window = 64;
  nvl_test::expect_error<InvalidArgument>([&] { Shared(config, weights(), roomy_options(), {}, ContextParallel<>(2)); },
                                          {"context_parallel_size", "2", "sliding window (64 tokens)"});
  CHECK(shared_by(1)->num_ranks() == 1);
}

}  // namespace context_parallel_test
