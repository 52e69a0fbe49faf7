#include <nvl/core/error.hpp>
#include <nvl/model/model_shard.hpp>
#include <nvl/model/random_weights.hpp>
#include <nvl/nvl.hpp>
#include <nvl/parallel/pipeline_parallel.hpp>
#include <nvl/parallel/tensor_pipeline_parallel.hpp>

#include "support/expect_error.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace pipeline_parallel_test {

using namespace nvl;
using nvl_test::greedy_request;
using nvl_test::roomy_options;
using nvl_test::tiny_prompt;

namespace {

template <class T, class Parallel>
using EngineOn = Engine<TokenBudgetScheduler<>, PrefixCacheAllocator, CpuPagedAttention<T>, Parallel>;

ModelConfig config_of_layers(std::int32_t num_layers) {
  ModelConfig config = nvl_test::tiny_config();
  config.num_layers = num_layers;
  return config;
}

template <class E>
std::vector<float> logits_of(E& engine, std::span<const TokenId> prompt) {
  std::vector<float> all;
  engine.prompt_logits(prompt, [&](std::int32_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
  return all;
}

template <class E>
std::vector<std::vector<TokenId>> tokens_of(E& engine) {
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(greedy_request(tiny_prompt(i, 3 + 11 * i), 12));
    if (i % 2 == 1) {
      requests.back().sampling.temperature = 0.9f;
      requests.back().sampling.seed = 5;
    }
  }
  std::vector<std::vector<TokenId>> tokens;
  for (const Completion& completion : engine.generate(std::move(requests))) {
    REQUIRE(completion.error.empty());
    tokens.push_back(completion.output_ids);
  }
  return tokens;
}

}  // namespace

TEMPLATE_TEST_CASE("on any number of stages every logit is that of one rank, bit for bit, and so is the text", "[parallel][host]",
                   float, bf16) {
  for (const bool is_tied : {true, false}) {
    for (const std::int32_t first_windowed_layer : {0, 3}) {
      ModelConfig config = config_of_layers(5);
      config.tie_word_embeddings = is_tied;
      config.sliding_window = 20;
      config.first_windowed_layer = first_windowed_layer;
      const RandomWeights weights(config, 5);
      const std::vector<TokenId> prompt = tiny_prompt(0, 41);
      EngineOn<TestType, SingleDevice> whole(config, weights, roomy_options());
      const std::vector<float> logits = logits_of(whole, prompt);
      const auto text = tokens_of(whole);
      for (const std::uint32_t num_stages : {1u, 2u, 4u, 5u}) {
        CAPTURE(is_tied, first_windowed_layer, num_stages);
        EngineOn<TestType, PipelineParallel<>> cut(config, weights, roomy_options(), {}, PipelineParallel<>(num_stages));
        CHECK(logits_of(cut, prompt) == logits);
        CHECK(tokens_of(cut) == text);
        CHECK(cut.num_ranks() == num_stages);
      }
    }
  }
}

TEST_CASE("stages of several ranks have the logits of one rank, and its greedy text", "[parallel][host]") {
  ModelConfig config = config_of_layers(4);
  config.num_q_heads = 8;
  const RandomWeights weights(config, 5);
  const std::vector<TokenId> prompt = tiny_prompt(0, 41);
  EngineOn<float, SingleDevice> whole(config, weights, roomy_options());
  const std::vector<float> expected = logits_of(whole, prompt);
  const auto text = tokens_of(whole);
  for (const auto& [num_stages, num_slices] : {std::pair(2u, 2u), std::pair(4u, 2u), std::pair(1u, 4u)}) {
    CAPTURE(num_stages, num_slices);
    EngineOn<float, TensorPipelineParallel<>> cut(config, weights, roomy_options(), {},
                                                  TensorPipelineParallel<>(num_stages, num_slices));
    const std::vector<float> logits = logits_of(cut, prompt);
    REQUIRE(logits.size() == expected.size());
    float error = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) { error = std::max(error, std::abs(logits[i] - expected[i])); }
    CHECK(error < 2e-5f);
    CHECK(tokens_of(cut) == text);
  }
}

TEST_CASE("a pipeline is no longer than the model", "[parallel][host]") {
  const ModelConfig config = config_of_layers(3);
  const RandomWeights weights(config, 5);
  nvl_test::expect_error<InvalidArgument>(
      [&] { EngineOn<float, PipelineParallel<>>(config, weights, roomy_options(), {}, PipelineParallel<>(4)); },
      {"pipeline_parallel_size", "4", "3 layers"});
}

TEST_CASE("stages make the whole, and the last one has fewer layers for its head", "[parallel][host]") {
  for (const std::int32_t num_layers : {1, 2, 7, 28, 80}) {
    for (const std::uint32_t num_stages : {1u, 2u, 3u, 4u, 8u}) {
      const ModelConfig config = config_of_layers(num_layers);
      if (num_stages > static_cast<std::uint32_t>(num_layers)) { continue; }
      std::int32_t next = 0;
      for (std::uint32_t s = 0; s < num_stages; ++s) {
        const Shard layers = stage_layers(config, s, num_stages);
        CHECK(layers.begin == next);
        CHECK(layers.size() >= 1);
        next = layers.end;
      }
      CHECK(next == num_layers);
    }
  }
  ModelConfig qwen = config_of_layers(28);  // Qwen3-0.6B: the head is worth ten of its layers
  qwen.vocab_size = 151936;
  qwen.hidden_size = 1024;
  qwen.intermediate_size = 3072;
  qwen.num_q_heads = 16;
  qwen.num_kv_heads = 8;
  qwen.head_dim = 128;
  CHECK(stage_layers(qwen, 0, 2) == Shard{0, 19});
  CHECK(stage_layers(qwen, 1, 2) == Shard{19, 28});
  CHECK(stage_layers(qwen, 3, 4).size() == 1);
}

TEST_CASE("a stage plans the KV cache of its own layers", "[parallel][host]") {
  const ModelConfig config = config_of_layers(4);
  const RandomWeights weights(config, 5);
  EngineOn<float, SingleDevice> whole(config, weights, roomy_options());
  EngineOn<float, PipelineParallel<>> cut(config, weights, roomy_options(), {}, PipelineParallel<>(2));
  CHECK(cut.memory_plan().kv_bytes_per_block < whole.memory_plan().kv_bytes_per_block);
  CHECK(cut.kv_cache(0).num_layers + cut.kv_cache(1).num_layers == 4);
}

TEST_CASE("steps of different sequences fill the pipeline, and nothing that a request gets changes", "[parallel][host]") {
  const ModelConfig config = config_of_layers(4);
  const RandomWeights weights(config, 9);
  for (const bool is_scarce : {false, true}) {
    EngineOptions options = roomy_options();
    if (is_scarce) {
      options.num_blocks = 9;
      options.max_num_batched_tokens = 9;
      options.max_num_seqs = 6;
    }
    EngineOn<float, SingleDevice> whole(config, weights, options);
    const auto text = tokens_of(whole);
    for (const std::uint32_t num_stages : {2u, 4u}) {
      CAPTURE(is_scarce, num_stages);
      EngineOn<float, PipelineParallel<>> cut(config, weights, options, {}, PipelineParallel<>(num_stages));
      CHECK(tokens_of(cut) == text);
      CHECK(cut.stats().num_free_blocks == cut.stats().num_blocks);
      // Six requests at once need more steps where each takes a part of them.
      CHECK(cut.stats().num_steps > whole.stats().num_steps);
    }
  }
}

}  // namespace pipeline_parallel_test
