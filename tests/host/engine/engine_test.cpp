#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/tiny_model.hpp"

namespace engine_test {

using namespace nvl;
using namespace nvl_test;
using Catch::Matchers::ContainsSubstring;

namespace {

const ModelConfig& config() {
  static const ModelConfig config = tiny_config();
  return config;
}

const RandomWeights& weights() {
  static const RandomWeights weights(config(), 42);
  return weights;
}

/// Sixteen prompts of different lengths around block boundaries, some sharing a prefix.
std::vector<Request> sixteen_requests(std::int32_t max_tokens = 24) {
  std::vector<Request> requests;
  for (const int length : {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 5, 7}) {
    requests.push_back(greedy_request(tiny_prompt(length, length), max_tokens));
  }
  for (const int tail : {3, 20}) {
    std::vector<TokenId> ids = tiny_prompt(64, 64);
    const std::vector<TokenId> more = tiny_prompt(100 + tail, tail);
    ids.insert(ids.end(), more.begin(), more.end());
    requests.push_back(greedy_request(ids, max_tokens));
  }
  return requests;
}

/// Each request on an engine of its own: what every other way of running them has to equal.
const std::vector<Completion>& alone() {
  static const std::vector<Completion> results = [] {
    std::vector<Completion> all;
    for (Request& request : sixteen_requests()) {
      TinyEngine<> engine(config(), weights(), roomy_options());
      all.push_back(engine.generate({std::move(request)}).front());
    }
    return all;
  }();
  return results;
}

template <class E>
void check_equals_alone(E& engine) {
  const std::vector<Completion> results = engine.generate(sixteen_requests());
  REQUIRE(results.size() == alone().size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    INFO("request " << i);
    CHECK(results[i].output_ids == alone()[i].output_ids);
    CHECK(results[i].finish_reason == FinishReason::length);
  }
  const EngineStats stats = engine.stats();
  CHECK(stats.num_free_blocks == stats.num_blocks);
  CHECK(stats.num_running + stats.num_waiting == 0);
}

}  // namespace

TEST_CASE("greedy output is not degenerate, so that comparing it means something", "[engine][host]") {
  std::map<TokenId, int> seen;
  for (const Completion& done : alone()) {
    CHECK(done.output_ids.size() == 24);
    for (const TokenId id : done.output_ids) { ++seen[id]; }
  }
  CHECK(seen.size() > 40);
}

TEST_CASE("a batch of sixteen gives the tokens that each request gets alone", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  check_equals_alone(engine);
}

TEST_CASE("chunk size does not change the tokens", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = GENERATE(4, 7, 16, 17, 100);
  TinyEngine<> engine(config(), weights(), options);
  check_equals_alone(engine);
}

TEST_CASE("the number of threads does not change the tokens", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.device.num_threads = GENERATE(1, 3);
  TinyEngine<> engine(config(), weights(), options);
  check_equals_alone(engine);
}

TEST_CASE("a prefix hit gives the tokens of a miss, and is counted", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  check_equals_alone(engine);
  const EngineStats first = engine.stats();
  check_equals_alone(engine);
  const EngineStats second = engine.stats();
  CHECK(second.cached_prompt_tokens > first.cached_prompt_tokens + 300);
  CHECK(second.computed_tokens - first.computed_tokens < first.computed_tokens);
}

TEST_CASE("different salts share nothing", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  Request request = greedy_request(tiny_prompt(1, 64), 4);
  request.cache_salt = "tenant a";
  engine.generate({request});
  request.cache_salt = "tenant b";
  CHECK(engine.generate({request}).front().num_cached_tokens == 0);
  request.cache_salt = "tenant a";
  CHECK(engine.generate({request}).front().num_cached_tokens == 48);  // the last token is always computed
}

TEST_CASE("preempted sequences give the tokens of undisturbed ones", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.num_blocks = GENERATE(7, 9, 14);
  SECTION("with a prefix cache") {
    TinyEngine<> engine(config(), weights(), options);
    check_equals_alone(engine);
    CHECK(engine.stats().num_preemptions > 0);
  }
  SECTION("without") {
    TinyEngine<PrefillFirstScheduler, FreeListAllocator> engine(config(), weights(), options);
    check_equals_alone(engine);
    CHECK(engine.stats().num_preemptions > 0);
  }
}

TEST_CASE("a bf16 engine gives its own tokens alone and in a batch", "[engine][host]") {
  const std::vector<Request> requests = sixteen_requests(12);
  TinyEngine<PrefillFirstScheduler, PrefixCacheAllocator, bf16> together(config(), weights(), roomy_options());
  const std::vector<Completion> batched = together.generate(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    TinyEngine<PrefillFirstScheduler, PrefixCacheAllocator, bf16> one(config(), weights(), roomy_options());
    CHECK(one.generate({requests[i]}).front().output_ids == batched[i].output_ids);
  }
}

TEST_CASE("a seed gives the same tokens with and without batch mates", "[engine][host]") {
  Request request = greedy_request(tiny_prompt(3, 20), 30);
  request.sampling.temperature = 1.5f;
  request.sampling.top_p = 0.95f;
  request.sampling.seed = 77;
  TinyEngine<> lone(config(), weights(), roomy_options());
  const std::vector<TokenId> expected = lone.generate({request}).front().output_ids;

  std::vector<Request> crowd = sixteen_requests(30);
  for (Request& other : crowd) { other.sampling.temperature = 0.8f; }
  crowd.insert(crowd.begin() + 5, request);
  TinyEngine<> crowded(config(), weights(), roomy_options());
  CHECK(crowded.generate(crowd)[5].output_ids == expected);

  request.sampling.seed = 78;
  CHECK(lone.generate({request}).front().output_ids != expected);
}

TEST_CASE("requests that cannot run are refused by name and leave the engine as it was", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.num_blocks = 4;
  TinyEngine<> engine(config(), weights(), options);
  Request request = greedy_request(tiny_prompt(1, 10), 5);
  const auto refusal = [&] {
    try {
      engine.submit(request);
    } catch (const InvalidArgument& error) { return std::string(error.what()); }
    return std::string("accepted");
  };
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  SECTION("empty prompt") {
    request.prompt_ids.clear();
    CHECK_THAT(refusal(), ContainsSubstring("prompt_ids"));
  }
  SECTION("negative id") {
    request.prompt_ids[3] = -1;
    CHECK_THAT(refusal(), ContainsSubstring("prompt_ids[3] is -1"));
  }
  SECTION("id past the vocabulary") {
    request.prompt_ids[9] = 199;
    CHECK_THAT(refusal(), ContainsSubstring("prompt_ids[9] is 199"));
  }
  SECTION("prompt of max_model_len") {
    request.prompt_ids = tiny_prompt(1, 512);
    CHECK_THAT(refusal(), ContainsSubstring("max_model_len"));
  }
  SECTION("max_tokens 0") {
    request.sampling.max_tokens = 0;
    CHECK_THAT(refusal(), ContainsSubstring("max_tokens is 0"));
  }
  SECTION("max_tokens -1") {
    request.sampling.max_tokens = -1;
    CHECK_THAT(refusal(), ContainsSubstring("max_tokens is -1"));
  }
  SECTION("min_tokens above max_tokens") {
    request.sampling.min_tokens = 6;
    CHECK_THAT(refusal(), ContainsSubstring("min_tokens is 6"));
  }
  SECTION("larger than the KV cache") {
    request.sampling.max_tokens = 56;
    CHECK_THAT(refusal(),
               ContainsSubstring("10 prompt + 56 max_tokens - 1 = 65") && ContainsSubstring("KV blocks of the request is 5"));
    request.sampling.max_tokens = 55;
    CHECK(refusal() == "accepted");
    while (engine.step()) {}
  }
  SECTION("temperature") {
    request.sampling.temperature = GENERATE(-1.0f, std::numeric_limits<float>::quiet_NaN(), 1e30f);
    CHECK_THAT(refusal(), ContainsSubstring("temperature"));
  }
  SECTION("top_p") {
    request.sampling.top_p = GENERATE(0.0f, 2.0f, -1.0f);
    CHECK_THAT(refusal(), ContainsSubstring("top_p"));
  }
  SECTION("min_p") {
    request.sampling.min_p = GENERATE(-1.0f, 1.5f);
    CHECK_THAT(refusal(), ContainsSubstring("min_p"));
  }
  SECTION("top_k") {
    request.sampling.top_k = -2;
    CHECK_THAT(refusal(), ContainsSubstring("top_k is -2"));
  }
  SECTION("repetition_penalty") {
    request.sampling.repetition_penalty = 0;
    CHECK_THAT(refusal(), ContainsSubstring("repetition_penalty"));
  }
  SECTION("presence_penalty") {
    request.sampling.presence_penalty = nan;
    CHECK_THAT(refusal(), ContainsSubstring("presence_penalty"));
  }
  SECTION("logprobs") {
    request.sampling.logprobs = 1000000;
    CHECK_THAT(refusal(), ContainsSubstring("logprobs"));
  }
  SECTION("logit_bias id") {
    request.sampling.logit_bias = {{500, 1.0f}};
    CHECK_THAT(refusal(), ContainsSubstring("logit_bias"));
  }
  SECTION("stop ids") {
    request.sampling.stop_token_ids = {-5};
    CHECK_THAT(refusal(), ContainsSubstring("stop_token_ids"));
  }
  SECTION("stop strings without text") {
    request.sampling.stop = {"x"};
    CHECK_THAT(refusal(), ContainsSubstring("TokenText"));
  }
  const EngineStats stats = engine.stats();
  CHECK(stats.num_free_blocks == 4);
  CHECK(stats.num_waiting + stats.num_running == 0);
  CHECK(engine.generate({greedy_request(tiny_prompt(1, 10), 5)}).front().output_ids.size() == 5);
}

TEST_CASE("stop rules end a request where they say", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.token_text = std::make_shared<LetterText>(config().vocab_size);
  TinyEngine<> engine(config(), weights(), options);
  Request request = greedy_request(tiny_prompt(2, 12), 24);
  const Completion whole = engine.generate({request}).front();
  REQUIRE(whole.text.size() == 48);
  REQUIRE(whole.finish_reason == FinishReason::length);
  const TokenId fifth = whole.output_ids[4];
  std::size_t first_fifth = 0;
  while (whole.output_ids[first_fifth] != fifth) { ++first_fifth; }

  SECTION("a stop id is the last output id and gives no text") {
    request.sampling.stop_token_ids = {fifth};
    const Completion done = engine.generate({request}).front();
    CHECK(done.finish_reason == FinishReason::stop);
    CHECK(done.stop_token == fifth);
    CHECK(done.output_ids == std::vector<TokenId>(whole.output_ids.begin(),
                                                  whole.output_ids.begin() + static_cast<std::ptrdiff_t>(first_fifth) + 1));
    CHECK(done.text == whole.text.substr(0, 2 * first_fifth));
  }
  SECTION("min_tokens keeps it from being chosen") {
    request.sampling.stop_token_ids = {fifth};
    request.sampling.min_tokens = 10;
    const Completion done = engine.generate({request}).front();
    CHECK(done.output_ids.size() >= 10);
    for (std::size_t i = 0; i < 10; ++i) { CHECK(done.output_ids[i] != fifth); }
  }
  SECTION("a stop string over two tokens cuts exactly and leaks nothing") {
    const std::string stop = whole.text.substr(9, 4);
    const std::size_t at = whole.text.find(stop);
    request.sampling.stop = {stop};
    std::string streamed;
    Completion done;
    engine.submit(request, {.on_token = [&](const TokenEvent& event) { streamed += event.text; },
                            .on_finish = [&](const Completion& result) { done = result; }});
    while (engine.step()) {}
    CHECK(done.finish_reason == FinishReason::stop);
    CHECK(done.stop_string == stop);
    CHECK(done.text == whole.text.substr(0, at));
    CHECK(streamed == done.text);
    request.sampling.include_stop_str_in_output = true;
    CHECK(engine.generate({request}).front().text == whole.text.substr(0, at) + stop);
  }
  SECTION("an end-of-sequence id ends it unless ignored") {
    request.sampling.ignore_eos = false;
    request.sampling.logit_bias = {{7, 1000.0f}};
    const Completion done = engine.generate({request}).front();
    CHECK(done.output_ids == std::vector<TokenId>{7});
    CHECK(done.text.empty());
    request.sampling.ignore_eos = true;
    CHECK(engine.generate({request}).front().output_ids.size() == 24);
  }
}

TEST_CASE("log-probabilities come with each token when asked for", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  Request request = greedy_request(tiny_prompt(4, 9), 6);
  request.sampling.logprobs = 3;
  const Completion done = engine.generate({request}).front();
  REQUIRE(done.logprobs.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    const SampledToken& token = done.logprobs[i];
    CHECK(token.token == done.output_ids[i]);
    REQUIRE(token.top_logprobs.size() == 3);
    CHECK(token.top_logprobs[0].token == token.token);
    CHECK(token.top_logprobs[0].logprob == token.logprob);
    CHECK(token.top_logprobs[1].logprob <= token.top_logprobs[0].logprob);
    CHECK(token.logprob < 0.0f);
  }
}

TEST_CASE("an abort ends a request in every phase with one terminal event and frees its blocks", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  options.num_blocks = 12;
  TinyEngine<> engine(config(), weights(), options);
  const int steps_before = GENERATE(0, 1, 2, 3, 4, 6, 9, 14);
  std::map<RequestId, int> ends;
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(engine.submit(greedy_request(tiny_prompt(i, 40), 12),
                                {.on_token = {}, .on_finish = [&](const Completion& done) { ++ends[done.request]; }}));
  }
  for (int i = 0; i < steps_before; ++i) { engine.step(); }
  for (const RequestId id : ids) {
    const bool was_running = ends[id] == 0;
    CHECK(engine.abort(id) == was_running);
    CHECK_FALSE(engine.abort(id));
  }
  CHECK_FALSE(engine.abort(RequestId{999}));
  CHECK_FALSE(engine.step());
  for (const RequestId id : ids) { CHECK(ends[id] == 1); }
  CHECK(engine.stats().num_free_blocks == 12);
}

TEST_CASE("a callback may abort itself, its batch mates, and submit more", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  std::vector<RequestId> ids;
  std::map<RequestId, FinishReason> ends;
  RequestCallbacks callbacks;
  callbacks.on_finish = [&](const Completion& done) {
    CHECK(ends.count(done.request) == 0);
    ends[done.request] = done.finish_reason;
  };
  int tokens = 0;
  bool submitted = false;
  RequestCallbacks aborting = callbacks;
  aborting.on_token = [&](const TokenEvent&) {
    if (++tokens == 3) {
      for (const RequestId id : ids) { engine.abort(id); }
      engine.submit(greedy_request(tiny_prompt(50, 5), 3), callbacks);
      submitted = true;
    }
  };
  for (int i = 0; i < 5; ++i) {
    ids.push_back(engine.submit(greedy_request(tiny_prompt(i, 20), 10), i == 2 ? aborting : callbacks));
  }
  while (engine.step()) {}
  CHECK(submitted);
  CHECK(ends.size() == 6);
  for (const RequestId id : ids) { CHECK(ends[id] == FinishReason::abort); }
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
}

TEST_CASE("a callback that throws ends its own request only", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  std::vector<Completion> ends(3);
  for (std::size_t i = 0; i < 3; ++i) {
    RequestCallbacks callbacks;
    callbacks.on_finish = [&ends, i](const Completion& done) {
      ends[i] = done;
      if (i == 2) { throw std::runtime_error("from on_finish"); }
    };
    if (i == 1) {
      callbacks.on_token = [](const TokenEvent&) { throw std::runtime_error("the socket is gone"); };
    }
    engine.submit(greedy_request(tiny_prompt(static_cast<int>(i), 20), 6), callbacks);
  }
  while (engine.step()) {}
  CHECK(ends[0].finish_reason == FinishReason::length);
  CHECK(ends[1].finish_reason == FinishReason::error);
  CHECK_THAT(ends[1].error, ContainsSubstring("the socket is gone"));
  CHECK(ends[2].finish_reason == FinishReason::length);
  CHECK(engine.failure().empty());
}

TEST_CASE("step and generate called from a callback are refused", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  std::vector<std::string> errors;
  RequestCallbacks callbacks;
  callbacks.on_token = [&](const TokenEvent& event) {
    try {
      if (event.request == RequestId{0}) { engine.step(); }
      engine.generate({greedy_request(tiny_prompt(2, 4), 2)});
    } catch (const InvalidArgument& refused) { errors.push_back(refused.what()); }
  };
  engine.submit(greedy_request(tiny_prompt(1, 4), 1), callbacks);
  engine.submit(greedy_request(tiny_prompt(1, 4), 1), callbacks);
  while (engine.step()) {}
  REQUIRE(errors.size() == 2);
  CHECK_THAT(errors[0], ContainsSubstring("step is \"called from a callback\""));
  CHECK_THAT(errors[1], ContainsSubstring("generate is \"called from a callback\""));
  CHECK(engine.stats().num_submitted == 2);
}

TEST_CASE("the destructor ends what is left with one event each", "[engine][host]") {
  int ends = 0;
  {
    TinyEngine<> engine(config(), weights(), roomy_options());
    for (int i = 0; i < 3; ++i) {
      engine.submit(greedy_request(tiny_prompt(i, 20), 10), {.on_token = {}, .on_finish = [&](const Completion& done) {
                                                               CHECK(done.finish_reason == FinishReason::abort);
                                                               ++ends;
                                                               CHECK_THROWS_AS(engine.submit(greedy_request({1}, 1)), Error);
                                                             }});
    }
    engine.step();
  }
  CHECK(ends == 3);
}

TEST_CASE("a device that fails ends every request once, and the engine takes no more", "[engine][host]") {
  // An attention backend that breaks at its third step.
  class Breaking : public CpuPagedAttention<float> {
   public:
    using CpuPagedAttention<float>::CpuPagedAttention;
    void plan(const AttentionMetadata& metadata) {
      if (++steps_ == 3) { throw std::runtime_error("the device is gone"); }
      CpuPagedAttention<float>::plan(metadata);
    }

   private:
    int steps_ = 0;
  };
  Engine<PrefillFirstScheduler, PrefixCacheAllocator, Breaking, SingleDevice> engine(config(), weights(), roomy_options());
  const std::vector<Completion> done =
      engine.generate({greedy_request(tiny_prompt(1, 20), 9), greedy_request(tiny_prompt(2, 20), 9)});
  for (const Completion& each : done) {
    CHECK(each.finish_reason == FinishReason::error);
    CHECK(each.error == "the device is gone");
    CHECK(each.output_ids.size() == 2);
  }
  CHECK(engine.failure() == "the device is gone");
  CHECK_FALSE(engine.has_work());
  CHECK_THROWS_WITH(engine.submit(greedy_request(tiny_prompt(1, 5), 1)),
                    ContainsSubstring("has failed") && ContainsSubstring("the device is gone"));
}

TEST_CASE("non-finite logits end their request, not its batch mates, and never enter the prefix cache", "[engine][host]") {
  // Token 100's embedding is NaN: a prompt that holds it poisons its own K and V.
  class Poisoned {
   public:
    Poisoned() {
      const HostTensor* embed = weights().find("embed");
      data_.assign(embed->data.begin(), embed->data.end());
      const float nan = std::numeric_limits<float>::quiet_NaN();
      for (std::size_t i = 0; i < 48; ++i) { std::memcpy(data_.data() + (100 * 48 + i) * 4, &nan, 4); }
      poisoned_ = *embed;
      poisoned_.data = data_;
    }
    const HostTensor* find(std::string_view name) const { return name == "embed" ? &poisoned_ : weights().find(name); }

   private:
    std::vector<std::byte> data_;
    HostTensor poisoned_;
  };
  ModelConfig untied = config();
  untied.tie_word_embeddings = false;
  const RandomWeights head(untied, 42);
  struct Source {
    Poisoned poisoned;
    const RandomWeights& head;
    const HostTensor* find(std::string_view name) const { return name == "lm_head" ? head.find(name) : poisoned.find(name); }
  };
  const Source source{{}, head};
  TinyEngine<> engine(untied, source, roomy_options());
  std::vector<TokenId> prompt = tiny_prompt(1, 40);
  std::replace(prompt.begin(), prompt.end(), TokenId{100}, TokenId{101});
  const std::vector<TokenId> clean = prompt;
  prompt[20] = 100;
  const Completion expected = engine.generate({greedy_request(clean, 8)}).front();
  const std::vector<Completion> done = engine.generate({greedy_request(prompt, 8), greedy_request(clean, 8)});
  CHECK(done[0].finish_reason == FinishReason::error);
  CHECK_THAT(done[0].error, ContainsSubstring("not finite"));
  CHECK(done[1].output_ids == expected.output_ids);
  const Completion again = engine.generate({greedy_request(prompt, 8)}).front();
  CHECK(again.num_cached_tokens <= 16);
  CHECK(engine.generate({greedy_request(clean, 8)}).front().output_ids == expected.output_ids);
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
}

TEST_CASE("prompt_logits predicts what greedy decoding chooses", "[engine][host]") {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 5;  // chunks of five positions
  TinyEngine<> engine(config(), weights(), options);
  const std::vector<TokenId> prompt = tiny_prompt(6, 21);
  const Completion done = engine.generate({greedy_request(prompt, 10)}).front();
  std::vector<TokenId> ids = prompt;
  ids.insert(ids.end(), done.output_ids.begin(), done.output_ids.end());
  std::vector<TokenId> best;
  engine.prompt_logits(ids, [&](std::int32_t position, std::span<const float> logits) {
    CHECK(position == static_cast<std::int32_t>(best.size()));
    best.push_back(static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  });
  REQUIRE(best.size() == ids.size());
  for (std::size_t i = 0; i < done.output_ids.size(); ++i) { CHECK(best[prompt.size() - 1 + i] == done.output_ids[i]); }
  std::vector<TokenId> tail;
  engine.prompt_logits(
      ids,
      [&](std::int32_t position, std::span<const float> logits) {
        CHECK(position == 23 + static_cast<std::int32_t>(tail.size()));
        tail.push_back(static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      },
      23);
  CHECK(tail == std::vector<TokenId>(best.begin() + 23, best.end()));
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
  CHECK_THROWS_AS(engine.prompt_logits(
                      ids, [](std::int32_t, std::span<const float>) {}, 31),
                  InvalidArgument);
  CHECK_THROWS_AS(engine.prompt_logits(std::vector<TokenId>{}, [](std::int32_t, std::span<const float>) {}), InvalidArgument);
}

TEST_CASE("options out of range are refused before anything is allocated", "[engine][host]") {
  EngineOptions options = roomy_options();
  const auto refusal = [&] {
    try {
      TinyEngine<> engine(config(), weights(), options);
    } catch (const Error& error) { return std::string(error.what()); }
    return std::string("accepted");
  };
  SECTION("max_num_seqs") {
    options.max_num_seqs = 0;
    CHECK_THAT(refusal(), ContainsSubstring("max_num_seqs is 0"));
  }
  SECTION("budget") {
    options.max_num_batched_tokens = 31;
    CHECK_THAT(refusal(), ContainsSubstring("max_num_batched_tokens is 31"));
  }
  SECTION("context") {
    options.max_model_len = 513;
    CHECK_THAT(refusal(), ContainsSubstring("max_model_len is 513"));
  }
  SECTION("no room") {
    options.num_blocks = 0;
    options.kv_cache_memory_bytes = 1000;
    CHECK_THAT(refusal(), ContainsSubstring("no room for a KV cache") && ContainsSubstring("1000 bytes"));
  }
  SECTION("blocks") {
    options.num_blocks = -3;
    CHECK_THAT(refusal(), ContainsSubstring("num_blocks is -3"));
  }
}

TEST_CASE("two engines live in one process and do not touch each other", "[engine][host]") {
  TinyEngine<> first(config(), weights(), roomy_options());
  const RandomWeights other_weights(config(), 43);
  TinyEngine<> second(config(), other_weights, roomy_options());
  const Completion expected = first.generate({greedy_request(tiny_prompt(1, 30), 8)}).front();
  const Completion other = second.generate({greedy_request(tiny_prompt(1, 30), 8)}).front();
  CHECK(expected.output_ids != other.output_ids);
  first.submit(greedy_request(tiny_prompt(1, 30), 8));
  second.submit(greedy_request(tiny_prompt(1, 30), 8));
  std::vector<TokenId> again;
  first.submit(greedy_request(tiny_prompt(1, 30), 8),
               {.on_token = [&](const TokenEvent& event) { again.push_back(event.token); }, .on_finish = {}});
  while (first.step() | second.step()) {}
  CHECK(again == expected.output_ids);
}

TEST_CASE("with_engine picks the element type and names what it has", "[engine][host]") {
  const auto element = [&](std::optional<DType> dtype) {
    return with_engine(
        config(), weights(), roomy_options(), []<class E>(E&) { return dtype_of<typename E::Element>; }, dtype);
  };
  CHECK(element(std::nullopt) == DType::float32);
  CHECK(element(DType::bfloat16) == DType::bfloat16);
  CHECK_THROWS_WITH(element(DType::float16), ContainsSubstring("float16") && ContainsSubstring("float32, bfloat16"));
}

TEST_CASE("timings and counts are reported", "[engine][host]") {
  TinyEngine<> engine(config(), weights(), roomy_options());
  const Completion done = engine.generate({greedy_request(tiny_prompt(1, 30), 8)}).front();
  CHECK(done.timings.ttft > 0);
  CHECK(done.timings.tpot > 0);
  CHECK(done.timings.queue >= 0);
  CHECK(done.timings.e2e >= done.timings.ttft + 7 * done.timings.tpot - 1e-6);
  const EngineStats stats = engine.stats();
  CHECK(stats.num_submitted == 1);
  CHECK(stats.finished(FinishReason::length) == 1);
  CHECK(stats.prompt_tokens == 30);
  CHECK(stats.generated_tokens == 8);
  CHECK(stats.computed_tokens == 37);
  CHECK(stats.num_steps == 8);
  CHECK(stats.ttft.count() == 1);
  CHECK(stats.ttft.percentile(50) == stats.ttft.max());
}

}  // namespace engine_test
