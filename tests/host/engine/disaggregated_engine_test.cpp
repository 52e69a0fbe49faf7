// Two engines as one: the same results as of one, one end for every request, no block left behind, whatever goes wrong and when.

#include "support/ahead_ops.hpp"
#include "support/expect_error.hpp"
#include "support/late_transfer.hpp"
#include "support/tiny_model.hpp"

#include <nvl/engine/async_engine.hpp>
#include <nvl/engine/disaggregated_engine.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace disaggregated_engine_test {

using namespace nvl;
using namespace nvl_test;

namespace {

/// Which of two schedulers throws at which plan that has something to do, counted from 1; 0: none.
struct PlanFaults {
  int countdown[2] = {0, 0};
};
PlanFaults plan_faults;

template <int kEngine>
struct FailingScheduler : PrefillFirstScheduler {
  using PrefillFirstScheduler::PrefillFirstScheduler;
  template <BlockAllocator A>
  void schedule(A& allocator, ScheduledBatch& batch) {
    PrefillFirstScheduler::schedule(allocator, batch);
    if (!batch.empty() && plan_faults.countdown[kEngine] > 0 && --plan_faults.countdown[kEngine] == 0) {
      raise(Error("the test stops it"));
    }
  }
};

using PrefillEngine = TinyEngine<FailingScheduler<0>>;
using DecodeEngine = TinyEngine<FailingScheduler<1>>;
using Pair = DisaggregatedEngine<PrefillEngine, DecodeEngine, LateTransfer<float>>;

const RandomWeights& weights() {
  static const RandomWeights weights(tiny_config(), 42);
  return weights;
}

DisaggregatedOptions roomy_pair() {
  DisaggregatedOptions options;
  options.prefill = options.decode = roomy_options();
  return options;
}

/// Greedy and drawn, ended by length, stop id or stop string, with penalties and log-probabilities.
std::vector<Request> mixed_requests(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = greedy_request(tiny_prompt(i % 9, 1 + (i * 37) % 60), 1 + (i * 13) % 40);
    request.sampling.ignore_eos = i % 2 == 0;
    if (i % 3 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    if (i % 4 == 3) { request.sampling.stop_token_ids = {11, 50, 90, 120, 160}; }
    if (i % 5 == 2) { request.sampling.repetition_penalty = 1.3f; }
    if (i % 7 == 4) { request.sampling.logprobs = 2; }
    if (i % 6 == 5) { request.sampling.stop = {"ab", "cd", "ef", "b"}; }
    if (i % 8 == 6) { request.sampling.min_tokens = std::min(3, request.sampling.max_tokens); }
    requests.push_back(std::move(request));
  }
  return requests;
}

/// What became of requests that were submitted together.
struct Outcome {
  std::vector<RequestId> ids;
  std::vector<int> num_ends;
  std::vector<std::vector<TokenId>> streamed;
  std::vector<Completion> completions;

  bool all_ended() const {
    return std::all_of(num_ends.begin(), num_ends.end(), [](int n) { return n > 0; });
  }
};

template <class E>
std::shared_ptr<Outcome> submit_all(E& engine, const std::vector<Request>& requests) {
  auto outcome = std::make_shared<Outcome>();
  const std::size_t n = requests.size();
  outcome->num_ends.resize(n);
  outcome->streamed.resize(n);
  outcome->completions.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    outcome->ids.push_back(engine.submit(
        requests[i],
        {.on_token = [outcome = outcome.get(), i](const TokenEvent& event) { outcome->streamed[i].push_back(event.token); },
         .on_finish =
             [outcome = outcome.get(), i](const Completion& done) {
               ++outcome->num_ends[i];
               outcome->completions[i] = done;
             }}));
  }
  return outcome;
}

/// Steps until nothing is left to do, `each` after each step.
template <class E>
void run_to_end(E& engine, const std::function<void(int)>& each = {}) {
  int steps = 0;
  while (engine.has_work()) {
    engine.step();
    REQUIRE(++steps < 20'000);
    if (each) { each(steps); }
  }
}

template <class E>
void check_nothing_is_left(const E& pair) {
  CHECK_FALSE(pair.has_work());
  CHECK(pair.prefill().stats().num_free_blocks == pair.prefill().stats().num_blocks);
  CHECK(pair.decode().stats().num_free_blocks == pair.decode().stats().num_blocks);
  CHECK(pair.handover_stats().num_waiting == 0);
  CHECK(pair.handover_stats().num_moving == 0);
}

void check_equal(const std::vector<Completion>& two, const std::vector<Completion>& one) {
  REQUIRE(two.size() == one.size());
  for (std::size_t i = 0; i < two.size(); ++i) {
    INFO("request " << i);
    CHECK(two[i].output_ids == one[i].output_ids);
    CHECK(two[i].prompt_ids == one[i].prompt_ids);
    CHECK(two[i].finish_reason == one[i].finish_reason);
    CHECK(two[i].text == one[i].text);
    CHECK(two[i].stop_string == one[i].stop_string);
    CHECK(two[i].stop_token == one[i].stop_token);
    CHECK(two[i].error == "");
    REQUIRE(two[i].logprobs.size() == one[i].logprobs.size());
    for (std::size_t t = 0; t < two[i].logprobs.size(); ++t) {
      CHECK(two[i].logprobs[t].logprob == one[i].logprobs[t].logprob);  // bit for bit
    }
  }
}

/// The results of one engine with nothing scarce.
std::vector<Completion> expected(const std::vector<Request>& requests, const EngineOptions& options = roomy_options()) {
  TinyEngine<> one(tiny_config(), weights(), options);
  return one.generate(requests);
}

template <class E>
void check_like_one_engine(const std::vector<Request>& requests, const DisaggregatedOptions& options,
                           const std::vector<Completion>& wanted) {
  E pair(tiny_config(), weights(), options);
  const auto outcome = submit_all(pair, requests);
  run_to_end(pair);
  check_equal(outcome->completions, wanted);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(outcome->num_ends[i] == 1);
    CHECK(outcome->streamed[i] == wanted[i].output_ids);
  }
  check_nothing_is_left(pair);
  const EngineStats stats = pair.stats();
  CHECK(stats.num_submitted == requests.size());
  CHECK(stats.e2e.count() == requests.size());
  CHECK(stats.num_queued == 0);
}

}  // namespace

TEST_CASE("two engines give what one gives, bit for bit", "[engine][host]") {
  const auto requests = mixed_requests(40);
  DisaggregatedOptions options = roomy_pair();
  options.decode.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  EngineOptions with_text = roomy_options();
  with_text.token_text = options.decode.token_text;
  const auto wanted = expected(requests, with_text);
  SECTION("with nothing scarce") { check_like_one_engine<Pair>(requests, options, wanted); }
  SECTION("with copies that take several steps") {
    const WithTransferFaults faults({.delay = 4});
    check_like_one_engine<Pair>(requests, options, wanted);
  }
  SECTION("with prompts in chunks and few blocks on either side") {
    const WithTransferFaults faults({.delay = 1});
    options.prefill.max_num_seqs = 3;
    options.prefill.max_num_batched_tokens = 7;
    options.prefill.num_blocks = 5;
    options.decode.num_blocks = 8;
    check_like_one_engine<Pair>(requests, options, wanted);
  }
  SECTION("with two sequences at a time on the decode side") {
    options.decode.max_num_seqs = 2;
    options.decode.num_blocks = 13;
    check_like_one_engine<Pair>(requests, options, wanted);
  }
  SECTION("with a prefill engine that runs ahead, and mixed steps without a cache on the decode side") {
    using Ahead = Engine<PrefillFirstScheduler, PrefixCacheAllocator, AheadAttention, SingleDevice>;
    using Mixed = TinyEngine<TokenBudgetScheduler<>, FreeListAllocator>;
    const WithTransferFaults faults({.delay = 2});
    options.decode.num_blocks = 16;
    check_like_one_engine<DisaggregatedEngine<Ahead, Mixed, LateTransfer<float>>>(requests, options, wanted);
  }
  SECTION("asked for the whole list") {
    Pair pair(tiny_config(), weights(), options);
    check_equal(pair.generate(requests), wanted);
  }
  SECTION("with the transfer that is shipped") {
    options.decode.num_blocks = 16;
    check_like_one_engine<DisaggregatedEngine<PrefillEngine, DecodeEngine>>(requests, options, wanted);
  }
}

TEST_CASE("prompts longer than a sliding window are handed over whole", "[engine][host]") {
  ModelConfig config = tiny_config();
  config.sliding_window = 20;
  const RandomWeights windowed(config, 42);
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) { requests.push_back(greedy_request(tiny_prompt(i % 3, 15 + 20 * i), 40)); }
  DisaggregatedOptions options = roomy_pair();
  options.prefill.max_num_batched_tokens = 40;
  options.decode.num_blocks = 20;
  const WithTransferFaults faults({.delay = 1});
  TinyEngine<> one(config, windowed, roomy_options());
  Pair pair(config, windowed, options);
  check_equal(pair.generate(requests), one.generate(requests));
  run_to_end(pair);
  check_nothing_is_left(pair);
}

TEST_CASE("four prompts go through two blocks", "[engine][host]") {
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 10 + i), 20)); }  // two blocks at their end
  const auto wanted = expected(requests);
  DisaggregatedOptions options = roomy_pair();
  options.prefill.num_blocks = options.decode.num_blocks = 2;
  for (const int delay : {0, 3}) {
    for (const int max_waiting : {1, 4}) {
      const WithTransferFaults faults({.delay = delay});
      options.max_waiting_prompts = max_waiting;
      check_like_one_engine<Pair>(requests, options, wanted);
    }
  }
}

TEST_CASE("blocks that the decode engine's cache has are not copied", "[engine][host]") {
  Pair pair(tiny_config(), weights(), roomy_pair());
  const std::vector<Request> requests(3, greedy_request(tiny_prompt(1, 40), 5));
  for (int i = 0; i < 3; ++i) {
    const auto outcome = submit_all(pair, {requests[0]});
    run_to_end(pair);
    REQUIRE(outcome->num_ends[0] == 1);
  }
  const HandoverStats stats = pair.handover_stats();
  CHECK(stats.num_prompts == 3);
  CHECK(stats.num_copied_blocks == 3 + 1 + 1);  // 40 tokens: two full blocks and the third
  CHECK(stats.num_cached_blocks == 2 + 2);
}

TEST_CASE("a tenant's prompt is not found in the decode engine by another", "[engine][host]") {
  Pair pair(tiny_config(), weights(), roomy_pair());
  Request request = greedy_request(tiny_prompt(1, 40), 5);
  for (const char* salt : {"a", "b", "a"}) {
    request.cache_salt = salt;
    const auto outcome = submit_all(pair, {request});
    run_to_end(pair);
  }
  CHECK(pair.handover_stats().num_cached_blocks == 2);
}

TEST_CASE("the prefill engine stops while the decode engine has no room", "[engine][host]") {
  DisaggregatedOptions options = roomy_pair();
  options.decode.max_num_seqs = 2;
  options.prefill.max_num_seqs = 1;  // a prompt a step
  options.max_waiting_prompts = 3;
  Pair pair(tiny_config(), weights(), options);
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 20), 50)); }
  const auto outcome = submit_all(pair, requests);
  std::uint32_t most = 0;
  for (int i = 0; i < 30; ++i) {
    pair.step();
    most = std::max(most, pair.handover_stats().num_waiting);
  }
  CHECK(most == 3);
  CHECK(pair.prefill().stats().num_steps == 5);  // two run, three wait
  CHECK(pair.stats().num_queued == 15);
  run_to_end(pair, [&](int) { most = std::max(most, pair.handover_stats().num_waiting); });
  CHECK(most == 3);
  CHECK(outcome->all_ended());
  check_nothing_is_left(pair);
}

TEST_CASE("an abort after any step, of any request, ends it once and leaves nothing behind", "[engine][host]") {
  const auto requests = mixed_requests(5);
  DisaggregatedOptions options = roomy_pair();
  options.decode.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  options.prefill.max_num_batched_tokens = 20;
  options.prefill.max_num_seqs = 2;
  options.prefill.num_blocks = 6;
  options.decode.num_blocks = 7;
  EngineOptions with_text = roomy_options();
  with_text.token_text = options.decode.token_text;
  const auto wanted = expected(requests, with_text);
  const WithTransferFaults faults({.delay = 2});
  int num_aborted = 0;
  std::array<bool, 3> seen{};  // an abort of a prompt that is computed, waits, moves
  for (std::size_t victim = 0; victim < requests.size(); ++victim) {
    for (int when = 0;; ++when) {
      Pair pair(tiny_config(), weights(), options);
      const auto outcome = submit_all(pair, requests);
      bool was_there = false;
      for (int i = 0; i < when; ++i) { pair.step(); }
      const HandoverStats before = pair.handover_stats();
      const bool had_run_out = !pair.has_work();
      was_there = pair.abort(outcome->ids[victim]);
      CHECK(outcome->num_ends[victim] == 1);
      CHECK_FALSE(pair.abort(outcome->ids[victim]));
      const HandoverStats after = pair.handover_stats();
      seen[0] = seen[0] || (was_there && when > 0 && outcome->streamed[victim].empty());
      seen[1] = seen[1] || after.num_waiting < before.num_waiting;
      seen[2] = seen[2] || (was_there && before.num_moving > 0 && outcome->streamed[victim].size() == 1 &&
                            after.num_waiting == before.num_waiting);
      run_to_end(pair);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        INFO("victim " << victim << " after step " << when << ", request " << i);
        CHECK(outcome->num_ends[i] == 1);
        if (i == victim && was_there) {
          CHECK(outcome->completions[i].finish_reason == FinishReason::abort);
          CHECK(outcome->completions[i].output_ids.size() <= wanted[i].output_ids.size());
        } else {
          CHECK(outcome->completions[i].output_ids == wanted[i].output_ids);
        }
      }
      check_nothing_is_left(pair);
      num_aborted += was_there ? 1 : 0;
      if (had_run_out) { break; }
    }
  }
  CHECK(num_aborted > 50);
  CHECK(seen == std::array{true, true, true});
}

TEST_CASE("an engine that fails at any step ends each request once and leaves no block behind", "[engine][host]") {
  std::vector<Request> requests;
  for (int i = 0; i < 5; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 25), 4 + 6 * i)); }
  const auto wanted = expected(requests);
  DisaggregatedOptions options = roomy_pair();
  options.prefill.max_num_batched_tokens = 20;
  options.prefill.max_num_seqs = 2;
  options.decode.max_num_seqs = 2;
  const WithTransferFaults faults({.delay = 2});
  for (const int which : {0, 1}) {
    int num_whole = 0;
    for (int when = 1;; ++when) {
      INFO((which == 0 ? "prefill" : "decode") << " engine, plan " << when);
      Pair pair(tiny_config(), weights(), options);
      const auto outcome = submit_all(pair, requests);
      plan_faults.countdown[which] = when;
      run_to_end(pair);
      const bool has_failed = plan_faults.countdown[which] == 0;
      plan_faults = {};
      CHECK(pair.failure().empty() != has_failed);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        CHECK(outcome->num_ends[i] == 1);
        const Completion& done = outcome->completions[i];
        if (done.finish_reason == FinishReason::error) {
          CHECK(has_failed);
          CHECK(done.error.find("the test stops it") != std::string::npos);
        } else {
          CHECK(done.output_ids == wanted[i].output_ids);
          ++num_whole;
        }
      }
      check_nothing_is_left(pair);
      if (!has_failed) { break; }
      expect_error<Error>([&] { pair.submit(requests[0]); }, {which == 0 ? "prefill" : "decode", "the test stops it"});
    }
    CHECK(num_whole > 5);  // what a failed prefill engine had handed over went on
  }
}

TEST_CASE("a copy that cannot be started ends its request and no other", "[engine][host]") {
  const auto requests = mixed_requests(6);
  DisaggregatedOptions options = roomy_pair();
  options.decode.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  for (int when = 1; when <= 6; ++when) {
    const WithTransferFaults faults({.delay = 1, .failing_start = when});
    Pair pair(tiny_config(), weights(), options);
    const auto outcome = submit_all(pair, requests);
    run_to_end(pair);
    const auto num_errors = std::ranges::count(outcome->completions, FinishReason::error, &Completion::finish_reason);
    CHECK(num_errors == (transfer_faults.num_starts >= when ? 1 : 0));
    for (const int n : outcome->num_ends) { CHECK(n == 1); }
    CHECK(pair.failure().empty());
    check_nothing_is_left(pair);
  }
}

TEST_CASE("a link that breaks ends what was not handed over; the decode engine finishes what it has", "[engine][host]") {
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 20), 30)); }
  const auto wanted = expected(requests);
  DisaggregatedOptions options = roomy_pair();
  options.prefill.max_num_seqs = 1;
  bool has_both = false;
  for (int when = 1; when <= 20; ++when) {
    const WithTransferFaults faults({.delay = 2, .failing_answer = when});
    Pair pair(tiny_config(), weights(), options);
    const auto outcome = submit_all(pair, requests);
    run_to_end(pair);
    int num_whole = 0, num_errors = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CHECK(outcome->num_ends[i] == 1);
      const Completion& done = outcome->completions[i];
      if (done.finish_reason == FinishReason::error) {
        CHECK(done.error.find("the test breaks the link") != std::string::npos);
        ++num_errors;
      } else {
        CHECK(done.output_ids == wanted[i].output_ids);
        ++num_whole;
      }
    }
    CHECK(pair.failure().empty() == (num_errors == 0));
    has_both = has_both || (num_whole > 0 && num_errors > 0);
    check_nothing_is_left(pair);
  }
  CHECK(has_both);
}

TEST_CASE("requests in every phase are aborted with the engines", "[engine][host]") {
  DisaggregatedOptions options = roomy_pair();
  options.decode.max_num_seqs = 1;
  options.prefill.max_num_seqs = 1;
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) { requests.push_back(greedy_request(tiny_prompt(i, 20), 30)); }
  for (int steps = 0; steps < 12; ++steps) {
    const WithTransferFaults faults({.delay = 3});
    std::shared_ptr<Outcome> outcome;
    int num_refused = 0;
    {
      Pair pair(tiny_config(), weights(), options);
      outcome = submit_all(pair, requests);
      pair.submit(greedy_request(tiny_prompt(9, 5), 3), {.on_token = {}, .on_finish = [&](const Completion& done) {
                                                           if (done.finish_reason != FinishReason::abort) { return; }
                                                           try {
                                                             pair.submit(requests[0]);
                                                           } catch (const Error&) { ++num_refused; }
                                                         }});
      for (int i = 0; i < steps; ++i) { pair.step(); }
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CHECK(outcome->num_ends[i] == 1);
      CHECK(outcome->completions[i].finish_reason == FinishReason::abort);
    }
    CHECK(num_refused == 1);
  }
}

TEST_CASE("callbacks may abort, submit and throw, on either side", "[engine][host]") {
  const Request request = greedy_request(tiny_prompt(2, 20), 10);
  for (const std::size_t at :
       {std::size_t{1}, std::size_t{2}, std::size_t{5}}) {  // the first token comes from the prefill engine
    Pair pair(tiny_config(), weights(), roomy_pair());
    int num_tokens = 0, num_ends = 0, num_others = 0;
    Completion aborted, thrown;
    RequestId id{};
    id = pair.submit(request, {.on_token =
                                   [&](const TokenEvent&) {
                                     if (static_cast<std::size_t>(++num_tokens) == at) {
                                       pair.abort(id);
                                       pair.submit(request,
                                                   {.on_token = {}, .on_finish = [&](const Completion&) { ++num_others; }});
                                     }
                                   },
                               .on_finish =
                                   [&](const Completion& done) {
                                     ++num_ends;
                                     aborted = done;
                                   }});
    std::size_t num_seen = 0;
    pair.submit(request, {.on_token =
                              [&](const TokenEvent&) {
                                if (++num_seen == at) { throw std::runtime_error("no more"); }
                              },
                          .on_finish =
                              [&](const Completion& done) {
                                ++num_ends;
                                thrown = done;
                              }});
    run_to_end(pair);
    CHECK(num_ends == 2);
    CHECK(num_others == 1);
    CHECK(aborted.finish_reason == FinishReason::abort);
    CHECK(aborted.output_ids.size() == at);
    CHECK(thrown.finish_reason == FinishReason::error);
    CHECK(thrown.error.find("no more") != std::string::npos);
    check_nothing_is_left(pair);
  }
}

TEST_CASE("what two engines cannot do is refused with the reason", "[engine][host]") {
  DisaggregatedOptions options = roomy_pair();
  options.prefill.num_blocks = 2;
  options.decode.num_blocks = 3;
  Pair pair(tiny_config(), weights(), options);
  Request request = greedy_request(tiny_prompt(1, 20), 5);
  const auto refuses = [&](const std::vector<std::string>& words) {
    expect_error<InvalidArgument>([&] { pair.validate(request); }, words);
    expect_error<InvalidArgument>([&] { pair.submit(request); }, words);
  };
  request.sampling.n = 2;
  refuses({"choices of the request is 2", "must be 1"});
  request.sampling.n = 1;
  request.sampling.best_of = 3;
  refuses({"choices of the request is 3"});
  request.sampling.best_of = 0;
  request.sampling.beam_width = 2;
  refuses({"beam_width is 2"});
  request.sampling.beam_width = 0;
  request.sampling.max_tokens = 40;  // of 20 + 39 tokens the decode engine has no room
  refuses({"KV blocks of the request is 4", "3"});
  request.sampling.max_tokens = 20;  // 39 tokens: three blocks there, and the prefill engine need not hold them
  CHECK_NOTHROW(pair.validate(request));
  request.prompt_ids = tiny_prompt(1, 33);
  request.sampling.max_tokens = 2;
  refuses({"KV blocks of the request is 3", "2"});
  request.prompt_ids = {500};
  refuses({"prompt_ids[0] is 500"});
  CHECK_FALSE(pair.has_work());

  options.max_waiting_prompts = 0;
  expect_error<InvalidArgument>([&] { Pair(tiny_config(), weights(), options); }, {"max_waiting_prompts is 0", "at least 1"});
}

namespace {

/// The steps of the ops that run ahead are done when a test lets them go on.
class SlowAttention : public AheadAttention {
 public:
  using AheadAttention::AheadAttention;
  void run(const AttentionCall<float>& call) {
    while (is_held) { std::this_thread::yield(); }
    AheadAttention::run(call);
  }
  static inline std::atomic<bool> is_held = false;
};

}  // namespace

TEST_CASE("while a prompt is computed the decode engine goes on", "[engine][host]") {
  using Slow = Engine<PrefillFirstScheduler, PrefixCacheAllocator, SlowAttention, SingleDevice>;
  DisaggregatedEngine<Slow, DecodeEngine, LateTransfer<float>> pair(tiny_config(), weights(), roomy_pair());
  const std::vector<Request> requests{greedy_request(tiny_prompt(1, 20), 30), greedy_request(tiny_prompt(2, 50), 5)};
  const auto first = submit_all(pair, {requests[0]});
  while (first->streamed[0].size() < 3) { pair.step(); }
  SlowAttention::is_held = true;
  const auto second = submit_all(pair, {requests[1]});
  while (first->num_ends[0] == 0) { pair.step(); }
  CHECK(second->streamed[0].empty());
  CHECK(pair.prefill().has_work());
  SlowAttention::is_held = false;
  run_to_end(pair);
  check_equal({first->completions[0], second->completions[0]}, expected(requests));
  check_nothing_is_left(pair);
}

TEST_CASE("an AsyncEngine drives two engines as it drives one", "[engine][host]") {
  const auto requests = mixed_requests(24);
  DisaggregatedOptions options = roomy_pair();
  options.decode.token_text = std::make_shared<LetterText>(tiny_config().vocab_size);
  options.decode.num_blocks = 20;
  EngineOptions with_text = roomy_options();
  with_text.token_text = options.decode.token_text;
  const auto wanted = expected(requests, with_text);
  using Shipped = DisaggregatedEngine<PrefillEngine, DecodeEngine>;
  AsyncEngine<Shipped> engine(std::make_unique<Shipped>(tiny_config(), weights(), options));
  std::vector<std::future<Completion>> results;
  for (const Request& request : requests) {
    FutureSubmission submission = engine.submit_for_result(request);
    REQUIRE(submission);
    results.push_back(std::move(submission.completion));
  }
  std::vector<Completion> completions;
  for (auto& result : results) { completions.push_back(result.get()); }
  check_equal(completions, wanted);
  CHECK(engine.stop(std::chrono::seconds(60)));
  CHECK(engine.stats().num_free_blocks == engine.stats().num_blocks);
}

TEST_CASE("progress of loading goes from nothing to all over both engines", "[engine][host]") {
  std::vector<double> seen;
  const Pair pair(tiny_config(), weights(), roomy_pair(), [&](double share) { seen.push_back(share); });
  REQUIRE(!seen.empty());
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.front() < 0.5);
  CHECK(seen.back() == 1.0);
}

}  // namespace disaggregated_engine_test
