// Several choices of one request (n, best_of) and beam search in an engine: shared blocks, one end, the same output whatever the
// policies are.
#include "support/ahead_ops.hpp"
#include "support/tiny_model.hpp"

#include <nvl/nvl.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace choices_test {

using namespace nvl;
using namespace nvl_test;
using Catch::Matchers::ContainsSubstring;

namespace {

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

EngineOptions options_with_text() {
  EngineOptions options = roomy_options();
  options.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  return options;
}

Request drawn_request(std::vector<TokenId> prompt, std::int32_t max_tokens, std::int32_t n) {
  Request request = greedy_request(std::move(prompt), max_tokens);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 5;
  request.sampling.n = n;
  return request;
}

Request beam_request(std::vector<TokenId> prompt, std::int32_t max_tokens, std::int32_t width) {
  Request request = greedy_request(std::move(prompt), max_tokens);
  request.sampling.ignore_eos = false;
  request.sampling.beam_width = width;
  request.sampling.n = width;
  return request;
}

std::vector<Choice> choices_of(const Completion& done) {
  std::vector<Choice> all{done};
  all.insert(all.end(), done.others.begin(), done.others.end());
  return all;
}

std::vector<std::vector<TokenId>> outputs_of(const Completion& done) {
  std::vector<std::vector<TokenId>> all;
  for (const Choice& choice : choices_of(done)) { all.push_back(choice.output_ids); }
  return all;
}

/// Requests with one to five choices and beams, ended by length, stop id and stop string.
std::vector<Request> mixed_requests(int count, bool with_beams = true) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = drawn_request(tiny_prompt(i % 7, 1 + (i * 37) % 60), 1 + (i * 13) % 30, 1 + i % 5);
    request.sampling.seed = 100u + static_cast<unsigned>(i);
    request.sampling.ignore_eos = i % 2 == 0;
    if (i % 4 == 3) {
      for (TokenId id = 8; id < 199; id += 9) { request.sampling.stop_token_ids.push_back(id); }
    }
    if (i % 5 == 2) { request.sampling.repetition_penalty = 1.3f; }
    if (i % 7 == 4) { request.sampling.logprobs = 2; }
    if (i % 6 == 5) { request.sampling.stop = {"ab", "cd", "ef", "b"}; }
    if (i % 3 == 1) { request.sampling.best_of = request.sampling.n + 1; }
    if (with_beams && i % 8 == 6) { request = beam_request(request.prompt_ids, 1 + (i * 13) % 30, 1 + i % 5); }
    requests.push_back(std::move(request));
  }
  return requests;
}

void check_equal(const std::vector<Completion>& actual, const std::vector<Completion>& expected) {
  REQUIRE(actual.size() == expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    INFO("request " << i);
    const std::vector<Choice> a = choices_of(actual[i]), b = choices_of(expected[i]);
    REQUIRE(a.size() == b.size());
    for (std::size_t c = 0; c < a.size(); ++c) {
      INFO("choice " << c);
      CHECK(a[c].index == b[c].index);
      CHECK(a[c].output_ids == b[c].output_ids);
      CHECK(a[c].text == b[c].text);
      CHECK(a[c].finish_reason == b[c].finish_reason);
      CHECK(a[c].cumulative_logprob == b[c].cumulative_logprob);
    }
  }
}

/// Of every request alone, step by step, with nothing scarce.
const std::vector<Completion>& expected() {
  static const std::vector<Completion> results = [] {
    std::vector<Completion> all;
    for (const Request& request : mixed_requests(32)) {
      TinyEngine<> engine(tiny_config(), weights(), options_with_text());
      all.push_back(engine.generate({request}).front());
    }
    return all;
  }();
  return results;
}

template <class Allocator = PrefixCacheAllocator, class Scheduler = PrefillFirstScheduler>
using AheadEngine = Engine<Scheduler, Allocator, AheadAttention, SingleDevice>;

template <class E>
void check_leftovers(const E& engine) {
  CHECK_FALSE(engine.has_work());
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
  CHECK(engine.stats().num_waiting + engine.stats().num_running == 0);
}

}  // namespace

TEST_CASE("the first of n choices is what a request for one gets, and the others differ", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  const Completion one = engine.generate({drawn_request(tiny_prompt(1, 21), 12, 1)}).front();
  const Completion four = engine.generate({drawn_request(tiny_prompt(1, 21), 12, 4)}).front();
  CHECK(one.others.empty());
  REQUIRE(four.others.size() == 3);
  CHECK(four.output_ids == one.output_ids);
  const auto outputs = outputs_of(four);
  CHECK(std::set(outputs.begin(), outputs.end()).size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(choices_of(four)[i].index == i);
    CHECK(outputs[i].size() == 12);
    CHECK(choices_of(four)[i].finish_reason == FinishReason::length);
  }
  check_leftovers(engine);
}

TEST_CASE("the prompt of n choices is computed once, and its blocks are shared", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  const std::int32_t length = GENERATE(31, 32, 33);
  engine.submit(drawn_request(tiny_prompt(1, length), 8, 5));
  engine.step();
  engine.step();
  // Two whole blocks at most are shared by all; each choice writes in one of its own.
  const auto used = engine.stats().num_blocks - engine.stats().num_free_blocks;
  CHECK(used == static_cast<std::uint32_t>(length / 16 + 5));
  while (engine.step()) {}
  CHECK(engine.stats().computed_tokens == static_cast<std::uint64_t>(length + 5 * 7));
  CHECK(engine.stats().generated_tokens == 40);
  CHECK(engine.stats().num_steps == 8);
  check_leftovers(engine);
}

TEMPLATE_TEST_CASE("choices do not depend on policies, batch mates or scarcity", "[engine][host]",
                   (TinyEngine<PrefillFirstScheduler, PrefixCacheAllocator>),
                   (TinyEngine<PrefillFirstScheduler, FreeListAllocator>), (TinyEngine<TokenBudgetScheduler<>>),
                   (TinyEngine<TokenBudgetScheduler<>, FreeListAllocator>), (AheadEngine<>),
                   (AheadEngine<PrefixCacheAllocator, TokenBudgetScheduler<>>)) {
  constexpr bool shares = SharingAllocator<std::remove_cvref_t<decltype(std::declval<TestType&>().allocator())>>;
  std::vector<Request> requests = mixed_requests(32);
  std::vector<Completion> wanted = expected();
  if (!shares) {  // which is what beams need
    for (std::size_t i = 32; i > 0; --i) {
      if (!requests[i - 1].sampling.is_beam_search()) { continue; }
      requests.erase(requests.begin() + static_cast<std::ptrdiff_t>(i - 1));
      wanted.erase(wanted.begin() + static_cast<std::ptrdiff_t>(i - 1));
    }
  }
  EngineOptions options = options_with_text();
  SECTION("nothing is scarce") {
    TestType engine(tiny_config(), weights(), options);
    check_equal(engine.generate(requests), wanted);
    check_equal(engine.generate(requests), wanted);  // over prefix hits
    check_leftovers(engine);
  }
  SECTION("few blocks") {
    options.num_blocks = 12;
    TestType engine(tiny_config(), weights(), options);
    check_equal(engine.generate(requests), wanted);
    CHECK(engine.stats().num_preemptions > 0);
    check_leftovers(engine);
  }
  SECTION("fewer places than choices, and small steps") {
    options.max_num_seqs = 3;
    options.max_num_batched_tokens = 7;
    TestType engine(tiny_config(), weights(), options);
    check_equal(engine.generate(requests), wanted);
    check_leftovers(engine);
  }
  SECTION("one place") {
    options.max_num_seqs = 1;
    options.num_blocks = 6;
    TestType engine(tiny_config(), weights(), options);
    check_equal(engine.generate(requests), wanted);
    check_leftovers(engine);
  }
}

TEST_CASE("the first choice may end at once and leave the others the prompt's blocks", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  const auto outputs = outputs_of(engine.generate({drawn_request(tiny_prompt(1, 20), 6, 4)}).front());
  for (std::size_t ending = 0; ending < 4; ++ending) {
    Request request = drawn_request(tiny_prompt(1, 20), 6, 4);
    request.sampling.stop_token_ids = {outputs[ending][0]};
    const Completion done = engine.generate({request}).front();
    for (std::size_t i = 0; i < 4; ++i) {
      std::vector<TokenId> cut = outputs[i];
      const auto stop = std::find(cut.begin(), cut.end(), outputs[ending][0]);
      if (stop != cut.end()) { cut.erase(stop + 1, cut.end()); }
      CHECK(outputs_of(done)[i] == cut);
    }
    CHECK(choices_of(done)[ending].output_ids.size() == 1);
  }
  const Completion short_ones = engine.generate({drawn_request(tiny_prompt(1, 20), 1, 4)}).front();
  for (std::size_t i = 0; i < 4; ++i) { CHECK(outputs_of(short_ones)[i] == std::vector<TokenId>{outputs[i][0]}); }
  check_leftovers(engine);
}

TEST_CASE("tokens are streamed with their choice, and each choice's pieces are its text", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), options_with_text());
  std::map<std::uint32_t, std::string> streamed;
  std::map<std::uint32_t, std::vector<TokenId>> tokens;
  Completion done;
  engine.submit(drawn_request(tiny_prompt(3, 18), 9, 3), {.on_token =
                                                              [&](const TokenEvent& event) {
                                                                streamed[event.choice] += event.text;
                                                                tokens[event.choice].push_back(event.token);
                                                              },
                                                          .on_finish = [&](const Completion& result) { done = result; }});
  while (engine.step()) {}
  REQUIRE(done.others.size() == 2);
  for (const Choice& choice : choices_of(done)) {
    CHECK(streamed[choice.index] == choice.text);
    CHECK(tokens[choice.index] == choice.output_ids);
  }
}

TEST_CASE("best_of returns the n choices of the largest log-probability, and streams nothing", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  Request all = drawn_request(tiny_prompt(2, 17), 8, 6);
  all.sampling.logprobs = 0;
  std::vector<Choice> ranked = choices_of(engine.generate({all}).front());
  for (const Choice& choice : ranked) {
    double sum = 0;
    for (const SampledToken& token : choice.logprobs) { sum += double{token.logprob}; }
    CHECK(choice.cumulative_logprob == sum);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const Choice& a, const Choice& b) { return a.cumulative_logprob > b.cumulative_logprob; });
  Request best = drawn_request(tiny_prompt(2, 17), 8, 2);
  best.sampling.best_of = 6;
  int events = 0;
  Completion done;
  engine.submit(
      best, {.on_token = [&](const TokenEvent&) { ++events; }, .on_finish = [&](const Completion& result) { done = result; }});
  while (engine.step()) {}
  CHECK(events == 0);
  REQUIRE(done.others.size() == 1);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(choices_of(done)[i].index == ranked[i].index);
    CHECK(choices_of(done)[i].output_ids == ranked[i].output_ids);
    CHECK(choices_of(done)[i].cumulative_logprob == ranked[i].cumulative_logprob);
    CHECK(choices_of(done)[i].logprobs.empty());
  }
  CHECK(ranked[0].index != 0);  // else the order would show nothing
}

TEMPLATE_TEST_CASE("an abort ends all choices in every phase with one event", "[engine][host]", TinyEngine<>, AheadEngine<>) {
  EngineOptions options = roomy_options();
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.num_blocks = 12;
  TestType engine(tiny_config(), weights(), options);
  const int steps_before = GENERATE(0, 1, 2, 3, 4, 5, 6, 9, 14);
  std::map<RequestId, std::vector<Completion>> ends;
  std::vector<RequestId> ids;
  const auto note = [&](const Completion& done) { ends[done.request].push_back(done); };
  for (int i = 0; i < 3; ++i) {
    ids.push_back(engine.submit(drawn_request(tiny_prompt(i, 40), 12, 3), {.on_token = {}, .on_finish = note}));
  }
  ids.push_back(engine.submit(beam_request(tiny_prompt(4, 20), 12, 3), {.on_token = {}, .on_finish = note}));
  for (int i = 0; i < steps_before; ++i) { engine.step(); }
  for (const RequestId id : ids) {
    const bool was_running = ends[id].empty();
    CHECK(engine.abort(id) == was_running);
    CHECK_FALSE(engine.abort(id));
  }
  CHECK(engine.stats().num_free_blocks == 12);
  while (engine.step()) {}
  for (const RequestId id : ids) {
    REQUIRE(ends[id].size() == 1);
    CHECK(ends[id][0].others.size() == 2);
    for (const Choice& choice : choices_of(ends[id][0])) {
      CHECK(choice.finish_reason != FinishReason::none);
      for (const TokenId token : choice.output_ids) { CHECK(token >= 0); }
    }
  }
  check_leftovers(engine);
}

TEST_CASE("a callback that throws or aborts at any choice's token ends the whole request", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  const int at = GENERATE(1, 2, 3, 4, 5);
  const bool throws = GENERATE(true, false);
  int events = 0, ends = 0;
  RequestId id{};
  Completion done;
  id = engine.submit(drawn_request(tiny_prompt(3, 18), 9, 3), {.on_token =
                                                                   [&](const TokenEvent&) {
                                                                     if (++events < at) { return; }
                                                                     if (throws) { throw std::runtime_error("gone"); }
                                                                     engine.abort(id);
                                                                   },
                                                               .on_finish =
                                                                   [&](const Completion& result) {
                                                                     ++ends;
                                                                     done = result;
                                                                   }});
  const Completion mate = engine.generate({drawn_request(tiny_prompt(4, 18), 9, 2)}).front();
  CHECK(events == at);
  CHECK(ends == 1);
  CHECK(done.others.size() == 2);
  CHECK(done.finish_reason == (throws ? FinishReason::error : FinishReason::abort));
  CHECK(mate.others.size() == 1);
  check_leftovers(engine);
}

TEST_CASE("what a request may ask for in choices is bounded", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), options_with_text());
  TinyEngine<PrefillFirstScheduler, FreeListAllocator> plain(tiny_config(), weights(), roomy_options());
  Request request = greedy_request(tiny_prompt(1, 4), 2);
  const auto refusal = [&](auto& of) {
    try {
      of.submit(request);
    } catch (const InvalidArgument& error) { return std::string(error.what()); }
    return std::string("accepted");
  };
  SECTION("n") {
    request.sampling.n = GENERATE(0, -1, 129, 1 << 30);
    CHECK_THAT(refusal(engine), ContainsSubstring("n is " + std::to_string(request.sampling.n)));
  }
  SECTION("best_of") {
    request.sampling.n = 3;
    request.sampling.best_of = GENERATE(2, 129, -1);
    CHECK_THAT(refusal(engine), ContainsSubstring("best_of is"));
  }
  SECTION("beam_width") {
    request.sampling.beam_width = GENERATE(-1, 17);
    CHECK_THAT(refusal(engine), ContainsSubstring("beam_width is"));
  }
  SECTION("more choices than beams") {
    request.sampling.beam_width = 2;
    request.sampling.n = 3;
    CHECK_THAT(refusal(engine), ContainsSubstring("n is 3"));
  }
  SECTION("rules that a search has not") {
    request.sampling.beam_width = 2;
    request.sampling.stop = {"a"};
    CHECK_THAT(refusal(engine), ContainsSubstring("stop is"));
    request.sampling.stop.clear();
    request.sampling.logprobs = 1;
    CHECK_THAT(refusal(engine), ContainsSubstring("logprobs is"));
    request.sampling.logprobs.reset();
    request.sampling.stop_token_ids.assign(40, 9);
    CHECK_THAT(refusal(engine), ContainsSubstring("beam_width is") && ContainsSubstring("40 end-of-sequence and stop tokens"));
  }
  SECTION("an allocator that cannot share") {
    request.sampling.beam_width = 2;
    CHECK_THAT(refusal(plain), ContainsSubstring("SharingAllocator"));
    request.sampling.beam_width = 1;
    request.sampling.n = 2;
    CHECK(refusal(plain) == "accepted");
  }
}

TEST_CASE("beams are ranked, distinct, and share their blocks", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), options_with_text());
  const Completion done = engine.generate({beam_request(tiny_prompt(5, 30), 20, 4)}).front();
  const auto outputs = outputs_of(done);
  CHECK(std::set(outputs.begin(), outputs.end()).size() == 4);
  double last = 0;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const Choice choice = choices_of(done)[i];
    CHECK(choice.index == i);
    CHECK(choice.cumulative_logprob < 0);
    const double score = choice.cumulative_logprob / static_cast<double>(choice.output_ids.size());
    if (i > 0) { CHECK(score <= last); }
    last = score;
    CHECK(choice.text.size() == 2 * (choice.output_ids.size() - (choice.finish_reason == FinishReason::stop ? 1 : 0)));
  }
  CHECK(engine.stats().computed_tokens <= 30 + 4 * 19);
  check_leftovers(engine);
}

TEST_CASE("a beam's log-probability is that of its tokens", "[engine][host]") {
  TinyEngine<> engine(tiny_config(), weights(), roomy_options());
  const std::vector<TokenId> prompt = tiny_prompt(5, 30);
  const Completion done = engine.generate({beam_request(prompt, 9, 3)}).front();
  for (const Choice& choice : choices_of(done)) {
    std::vector<TokenId> ids = prompt;
    ids.insert(ids.end(), choice.output_ids.begin(), choice.output_ids.end());
    double sum = 0;
    engine.prompt_logits(ids, [&](std::int32_t position, std::span<const float> logits) {
      if (position + 1 < std::ssize(prompt) || position + 1 == std::ssize(ids)) { return; }
      double total = 0;
      for (const float logit : logits) { total += std::exp(double{logit}); }
      sum += double{logits[static_cast<std::size_t>(ids[static_cast<std::size_t>(position) + 1])]} - std::log(total);
    });
    CHECK(std::abs(choice.cumulative_logprob - sum) < 1e-4);
  }
}

}  // namespace choices_test
