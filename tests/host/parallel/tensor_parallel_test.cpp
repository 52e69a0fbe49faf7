#include <nvl/core/error.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/model/random_weights.hpp>
#include <nvl/model/tensor_slices.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/tensor_parallel.hpp>

#include "support/expect_error.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tensor_parallel_test {

using namespace nvl;
using Catch::Matchers::ContainsSubstring;
using nvl_test::greedy_request;
using nvl_test::roomy_options;
using nvl_test::tiny_prompt;

namespace {

template <class T, class Parallel>
using EngineOn = Engine<TokenBudgetScheduler<>, PrefixCacheAllocator, CpuPagedAttention<T>, Parallel>;
template <class T>
using Split = EngineOn<T, TensorParallel<>>;
template <class T>
using Whole = EngineOn<T, SingleDevice>;

/// Eight query heads on two KV heads, so that on four ranks two share a KV head; the vocabulary is shared out unevenly.
ModelConfig plain_config() {
  ModelConfig config = nvl_test::tiny_config();
  config.num_q_heads = 8;
  config.intermediate_size = 96;
  return config;
}
ModelConfig biased_config() {
  ModelConfig config = plain_config();
  config.architecture = "qwen2";
  config.qk_norm = false;
  config.qkv_bias = config.o_bias = config.mlp_bias = true;
  config.tie_word_embeddings = false;
  return config;
}

template <class E>
std::vector<float> logits_of(E& engine, std::span<const TokenId> prompt) {
  std::vector<float> all;
  engine.prompt_logits(prompt, [&](std::int32_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
  return all;
}

std::vector<Request> requests(std::int32_t max_tokens = 12) {
  std::vector<Request> all;
  for (int i = 0; i < 6; ++i) { all.push_back(greedy_request(tiny_prompt(i, 3 + 11 * i), max_tokens)); }
  return all;
}

template <class E>
std::vector<std::vector<TokenId>> tokens_of(E& engine, std::vector<Request> wanted) {
  std::vector<std::vector<TokenId>> tokens;
  for (const Completion& completion : engine.generate(std::move(wanted))) {
    REQUIRE(completion.error.empty());
    tokens.push_back(completion.output_ids);
  }
  return tokens;
}

}  // namespace

TEST_CASE("on any number of ranks the logits are those of one, and so is the greedy text", "[parallel][host]") {
  const std::vector<TokenId> prompt = tiny_prompt(0, 33);
  for (const ModelConfig& config : {plain_config(), biased_config()}) {
    const RandomWeights weights(config, 5);
    Whole<float> whole(config, weights, roomy_options());
    const std::vector<float> expected = logits_of(whole, prompt);
    const auto text = tokens_of(whole, requests());
    for (const std::uint32_t num_ranks : {1u, 2u, 4u, 8u}) {
      CAPTURE(config.architecture, num_ranks);
      Split<float> split(config, weights, roomy_options(), {}, TensorParallel<>(num_ranks));
      const std::vector<float> logits = logits_of(split, prompt);
      REQUIRE(logits.size() == expected.size());
      float error = 0;
      for (std::size_t i = 0; i < logits.size(); ++i) { error = std::max(error, std::abs(logits[i] - expected[i])); }
      CHECK(error < 2e-5f);
      CHECK(tokens_of(split, requests()) == text);
    }
  }
}

TEST_CASE("in bfloat16 the logits on two ranks are near those on one", "[parallel][host]") {
  const ModelConfig config = plain_config();
  const RandomWeights weights(config, 5);
  const std::vector<TokenId> prompt = tiny_prompt(0, 33);
  Whole<bf16> whole(config, weights, roomy_options());
  Split<bf16> split(config, weights, roomy_options(), {}, TensorParallel<>(2));
  const std::vector<float> expected = logits_of(whole, prompt), logits = logits_of(split, prompt);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    error += std::pow(double{logits[i]} - expected[i], 2);
    size += std::pow(double{expected[i]}, 2);
  }
  CHECK(error > 0);
  CHECK(error / size < 1e-3);
}

TEST_CASE("rows of all kinds may be sampled from a split vocabulary", "[parallel][host]") {
  const ModelConfig config = plain_config();
  const RandomWeights weights(config, 6);
  const auto wanted = [] {
    std::vector<Request> all = requests();
    all[1].sampling.temperature = 0.8f;
    all[1].sampling.seed = 3;
    all[2].sampling.logprobs = 4;
    all[3].sampling.repetition_penalty = 1.3f;
    all[4].sampling.temperature = 1.0f;
    all[4].sampling.top_k = 5;
    all[4].sampling.seed = 4;
    all[5].sampling.logit_bias = {{9, 2.0f}, {150, 1.5f}};
    return all;
  };
  Whole<float> whole(config, weights, roomy_options());
  Split<float> split(config, weights, roomy_options(), {}, TensorParallel<>(4));
  const std::vector<Completion> expected = whole.generate(wanted()), found = split.generate(wanted());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i].error.empty());
    CHECK(found[i].output_ids == expected[i].output_ids);
    REQUIRE(found[i].logprobs.size() == expected[i].logprobs.size());
  }
}

TEST_CASE("chunks, prefix hits and recomputation change nothing on two ranks", "[parallel][host]") {
  const ModelConfig config = plain_config();
  const RandomWeights weights(config, 7);
  Split<float> roomy(config, weights, roomy_options(), {}, TensorParallel<>(2));
  const auto expected = tokens_of(roomy, requests(40));
  CHECK(tokens_of(roomy, requests(40)) == expected);
  CHECK(roomy.stats().prefix_cache.hit_tokens > 0);
  EngineOptions scarce = roomy_options();
  scarce.max_num_seqs = scarce.max_num_batched_tokens = 7;
  scarce.num_blocks = 8;
  Split<float> narrow(config, weights, scarce, {}, TensorParallel<>(2));
  CHECK(tokens_of(narrow, requests(40)) == expected);
  CHECK(narrow.stats().num_preemptions > 0);
}

TEST_CASE("a model that cannot be shared out is refused before anything is loaded", "[parallel][host]") {
  const ModelConfig config = plain_config();
  const RandomWeights weights(config, 5);
  const auto refused = [&](std::uint32_t num_ranks, ModelConfig model, std::vector<std::string> words) {
    nvl_test::expect_error<InvalidArgument>(
        [&] { Split<float>(model, weights, roomy_options(), {}, TensorParallel<>(num_ranks)); }, words);
  };
  refused(3, config, {"tensor_parallel_size", "3", "divisor", "8 query heads"});
  ModelConfig model = config;
  model.intermediate_size = 98;
  refused(4, model, {"tensor_parallel_size", "4", "MLP", "98"});
  model = config;
  model.num_q_heads = 12;
  model.num_kv_heads = 4;
  refused(6, model, {"tensor_parallel_size", "6", "4 KV heads"});
  model = config;
  model.num_layers = 4;  // one layer more than there are weights
  refused(2, model, {"layers.3.attn_norm", "missing"});
}

TEST_CASE("shards of all ranks make the whole; a KV head that several need is in each of them", "[parallel][host]") {
  const ModelConfig config = plain_config();
  std::int32_t q = 0, vocab = 0;
  for (std::uint32_t r = 0; r < 4; ++r) {
    const ModelShard shard = shard_of(config, {.slice_index = r, .num_slices = 4});
    CHECK(shard.q_heads == Shard{q, q + 2});
    CHECK(shard.kv_heads == Shard{static_cast<std::int32_t>(r / 2), static_cast<std::int32_t>(r / 2) + 1});
    CHECK(shard.vocab.begin == vocab);
    q = shard.q_heads.end;
    vocab = shard.vocab.end;
  }
  CHECK(vocab == config.vocab_size);
}

TEST_CASE("a tensor is cut by rows without a copy, and by columns where no block is cut", "[parallel][host]") {
  std::vector<float> values(6 * 4);
  for (std::size_t i = 0; i < values.size(); ++i) { values[i] = static_cast<float>(i); }
  const HostTensor whole{"w", DType::float32, {6, 4}, std::as_bytes(std::span(values))};
  TensorSlices slices;
  CHECK(slices.rows(whole, {0, 6}) == &whole);
  CHECK(slices.columns(whole, {0, 4}) == &whole);
  const HostTensor& rows = *slices.rows(whole, {2, 5});
  CHECK(rows.shape == std::vector<std::int64_t>{3, 4});
  CHECK(rows.data.data() == whole.data.data() + 2 * 4 * sizeof(float));
  const HostTensor& columns = *slices.columns(whole, {1, 3});
  CHECK(columns.shape == std::vector<std::int64_t>{6, 2});
  std::vector<float> copied(12);
  std::ranges::copy(columns.data, std::as_writable_bytes(std::span(copied)).begin());
  CHECK(copied[0] == 1);
  CHECK(copied[11] == 22);

  const std::vector<std::byte> blocks(2 * 2 * 18);  // Q4_0: 18 bytes for 32 elements
  const HostTensor quantised{"q", DType::q4_0, {2, 64}, blocks};
  CHECK(slices.columns(quantised, {32, 64})->data.size() == 2 * 18);
  nvl_test::expect_error<InvalidArgument>([&] { slices.columns(quantised, {0, 16}); }, {"columns of weight q", "16", "32"});
  nvl_test::expect_error<InvalidArgument>([&] { slices.rows(whole, {4, 7}); }, {"rows of weight w", "6", "7"});
  const HostTensor cut{"c", DType::float32, {6, 5}, std::as_bytes(std::span(values))};
  nvl_test::expect_error<InvalidArgument>([&] { slices.columns(cut, {0, 2}); }, {"bytes of weight c", "96", "120"});
}

TEST_CASE("the plan of a rank is of its own heads and features", "[parallel][host]") {
  const ModelConfig config = plain_config();
  const RandomWeights weights(config, 5);
  Whole<float> whole(config, weights, roomy_options());
  Split<float> split(config, weights, roomy_options(), {}, TensorParallel<>(2));
  CHECK(split.memory_plan().kv_bytes_per_block == whole.memory_plan().kv_bytes_per_block / 2);
  CHECK(split.memory_plan().activation_bytes < whole.memory_plan().activation_bytes);
  CHECK(split.num_ranks() == 2);
}

}  // namespace tensor_parallel_test
