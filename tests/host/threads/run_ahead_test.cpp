// The engine plans and launches a step before it knows what the step before it sampled. Nothing that a request sees may change.

#include "support/ahead_ops.hpp"
#include "support/tiny_model.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

namespace run_ahead_test {

using namespace nvl;
using namespace nvl_test;

namespace {

template <class Allocator = PrefixCacheAllocator>
using AheadEngine = Engine<PrefillFirstScheduler, Allocator, AheadAttention, SingleDevice>;

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

/// Requests of all kinds: greedy and drawn, ended by length, stop id or stop string, with penalties and log-probabilities.
std::vector<Request> mixed_requests(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = greedy_request(tiny_prompt(i, 1 + (i * 37) % 60), 1 + (i * 13) % 40);
    request.sampling.ignore_eos = i % 2 == 0;
    if (i % 3 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    if (i % 4 == 3) { request.sampling.stop_token_ids = {11, 50, 90, 120, 160}; }
    if (i % 5 == 2) { request.sampling.repetition_penalty = 1.3f; }
    if (i % 7 == 4) { request.sampling.logprobs = 2; }
    if (i % 6 == 5) { request.sampling.stop = {"ab", "cd", "ef", "b"}; }
    if (i % 8 == 6) { request.sampling.min_tokens = 3; }
    requests.push_back(std::move(request));
  }
  return requests;
}

EngineOptions options_with_text() {
  EngineOptions options = roomy_options();
  options.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  return options;
}

void check_equal(const std::vector<Completion>& ahead, const std::vector<Completion>& plain) {
  REQUIRE(ahead.size() == plain.size());
  for (std::size_t i = 0; i < ahead.size(); ++i) {
    INFO("request " << i);
    CHECK(ahead[i].output_ids == plain[i].output_ids);
    CHECK(ahead[i].finish_reason == plain[i].finish_reason);
    CHECK(ahead[i].text == plain[i].text);
    CHECK(ahead[i].stop_string == plain[i].stop_string);
    CHECK(ahead[i].stop_token == plain[i].stop_token);
    REQUIRE(ahead[i].logprobs.size() == plain[i].logprobs.size());
    for (std::size_t t = 0; t < ahead[i].logprobs.size(); ++t) {
      CHECK(ahead[i].logprobs[t].logprob == plain[i].logprobs[t].logprob);
    }
  }
}

}  // namespace

TEST_CASE("running ahead gives every request what it gets step by step", "[engine][host]") {
  TinyEngine<> plain(tiny_config(), weights(), options_with_text());
  AheadEngine<> ahead(tiny_config(), weights(), options_with_text());
  const std::vector<Completion> expected = plain.generate(mixed_requests(40));
  check_equal(ahead.generate(mixed_requests(40)), expected);
  CHECK_FALSE(ahead.has_work());
  CHECK(ahead.stats().num_free_blocks == ahead.stats().num_blocks);
  // Again, now over prefix hits.
  check_equal(ahead.generate(mixed_requests(40)), expected);
}

TEST_CASE("running ahead survives preemption", "[engine][host]") {
  EngineOptions scarce = options_with_text();
  scarce.num_blocks = 12;
  TinyEngine<> plain(tiny_config(), weights(), options_with_text());
  const std::vector<Completion> expected = plain.generate(mixed_requests(24));
  AheadEngine<> ahead(tiny_config(), weights(), scarce);
  check_equal(ahead.generate(mixed_requests(24)), expected);
  CHECK(ahead.stats().num_preemptions > 0);
  AheadEngine<FreeListAllocator> without_cache(tiny_config(), weights(), scarce);
  check_equal(without_cache.generate(mixed_requests(24)), expected);
  CHECK(without_cache.stats().num_free_blocks == without_cache.stats().num_blocks);
}

TEST_CASE("a sequence that ends by length costs no extra step, one that stops costs one row", "[engine][host]") {
  AheadEngine<> ahead(tiny_config(), weights(), roomy_options());
  ahead.generate({greedy_request(tiny_prompt(1, 20), 10)});
  CHECK(ahead.stats().num_steps == 10);
  CHECK(ahead.stats().computed_tokens == 29);

  TinyEngine<> plain(tiny_config(), weights(), roomy_options());
  const TokenId fourth = plain.generate({greedy_request(tiny_prompt(2, 20), 10)})[0].output_ids[3];
  Request stopping = greedy_request(tiny_prompt(2, 20), 10);
  stopping.sampling.stop_token_ids = {fourth};
  AheadEngine<> again(tiny_config(), weights(), roomy_options());
  const std::size_t length = again.generate({stopping})[0].output_ids.size();
  CHECK(length <= 4);
  CHECK(again.stats().num_steps == length + 1);
}

TEST_CASE("an abort while a step is in flight frees the blocks and ends the request once", "[engine][host]") {
  AheadEngine<> ahead(tiny_config(), weights(), roomy_options());
  int ends = 0;
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(ahead.submit(greedy_request(tiny_prompt(i, 30), 12), {.on_token = {}, .on_finish = [&](const Completion& done) {
                                                                          ++ends;
                                                                          for (const TokenId id : done.output_ids) {
                                                                            CHECK(id >= 0);
                                                                          }
                                                                        }}));
  }
  ahead.step();
  ahead.step();
  CHECK(ahead.abort(ids[1]));
  CHECK(ahead.abort(ids[2]));
  CHECK_FALSE(ahead.abort(ids[2]));
  const RequestId late = ahead.submit(greedy_request(tiny_prompt(9, 50), 3));
  while (ahead.has_work()) { ahead.step(); }
  CHECK(ends == 4);
  CHECK_FALSE(ahead.abort(late));
  CHECK(ahead.stats().num_free_blocks == ahead.stats().num_blocks);
}

TEST_CASE("logits of a prompt may be asked for while a step is in flight", "[engine][host]") {
  TinyEngine<> plain(tiny_config(), weights(), roomy_options());
  AheadEngine<> ahead(tiny_config(), weights(), roomy_options());
  const std::vector<TokenId> expected = plain.generate({greedy_request(tiny_prompt(3, 25), 12)})[0].output_ids;
  std::vector<TokenId> tokens;
  ahead.submit(greedy_request(tiny_prompt(3, 25), 12),
               {.on_token = {}, .on_finish = [&](const Completion& done) { tokens = done.output_ids; }});
  ahead.step();
  std::vector<float> of_plain, of_ahead;
  plain.prompt_logits(tiny_prompt(5, 20), [&](std::int32_t, std::span<const float> row) { of_plain.push_back(row[3]); });
  ahead.prompt_logits(tiny_prompt(5, 20), [&](std::int32_t, std::span<const float> row) { of_ahead.push_back(row[3]); });
  CHECK(of_ahead == of_plain);
  while (ahead.has_work()) { ahead.step(); }
  CHECK(tokens == expected);
}

// Not run by default: `host_threads "[benchmark]"`.
TEST_CASE("what running ahead gains on the CPU", "[.][benchmark]") {
  ModelConfig config = tiny_config();  // of the shape of SmolLM2-135M
  config.vocab_size = 49152;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_layers = 30;
  config.num_q_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.qk_norm = false;
  const RandomWeights source(config, 1);
  for (const int batch : {1, 16}) {
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < 6; ++round) {
      const auto measure = [&](auto&& engine) {
        std::vector<Request> requests;
        for (int i = 0; i < batch; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 16), 33)); }
        const auto begin = std::chrono::steady_clock::now();
        engine.generate(std::move(requests));
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 33;
      };
      EngineOptions options = roomy_options();
      options.device.num_threads = 0;
      best[0] = std::min(best[0], measure(TinyEngine<>(config, source, options)));
      best[1] = std::min(best[1], measure(AheadEngine<>(config, source, options)));
    }
    std::printf("batch %d: %.3f ms a step, %.3f ms a step one step ahead\n", batch, best[0] * 1e3, best[1] * 1e3);
  }
}

}  // namespace run_ahead_test
