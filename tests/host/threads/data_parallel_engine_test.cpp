// Replicas behind a router: every request has one end, whatever dies, and the tokens are those of one engine.

#include "support/async_support.hpp"
#include "support/expect_error.hpp"
#include "support/scripted_engine.hpp"
#include "support/tiny_model.hpp"

#include <nvl/engine/any_data_parallel_engine.hpp>
#include <nvl/engine/data_parallel_engine.hpp>
#include <nvl/engine/prefix_affinity_router.hpp>
#include <nvl/engine/round_robin_router.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace data_parallel_engine_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;

namespace {

constexpr auto long_enough = 60s;  // no test waits for it unless it fails

template <class Router = RoundRobinRouter>
using Scripted = DataParallelEngine<ScriptedEngine, Router>;

std::vector<std::unique_ptr<ScriptedEngine>> scripted_engines(std::size_t count) {
  std::vector<std::unique_ptr<ScriptedEngine>> engines;
  for (std::size_t i = 0; i < count; ++i) { engines.push_back(std::make_unique<ScriptedEngine>()); }
  return engines;
}

/// Ends all requests of an engine in its next step, and says why, as Engine does it.
void kill(ScriptedEngine& engine) {
  engine.dead = "the device fell off the bus";
  for (std::uint64_t id = 1000; id < 1200; ++id) { engine.abort(RequestId{id}, FinishReason::error); }
}

template <class Engine>
void wait_until_idle(const Engine& engine) {
  while (engine.num_open() > 0) { std::this_thread::yield(); }
}

std::vector<std::unique_ptr<AnyEngine>> tiny_engines(std::int32_t count) {
  static const RandomWeights weights(tiny_config(), 42);
  EngineOptions options = roomy_options();
  options.device.num_threads = 1;
  return make_replicas(count, [&](std::int32_t) { return make_any_engine<TinyEngine<>>(tiny_config(), weights, options, {}); });
}

/// Greedy and drawn ones, of which some begin alike.
std::vector<Request> mixed_requests(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = greedy_request(tiny_prompt(i % 5, 20), 1 + (i * 7) % 12);
    const std::vector<TokenId> rest = tiny_prompt(100 + i, (i * 13) % 30);
    request.prompt_ids.insert(request.prompt_ids.end(), rest.begin(), rest.end());
    if (i % 3 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = 100u + static_cast<unsigned>(i);
    }
    if (i % 4 == 2) { request.sampling.logprobs = 1; }
    if (i % 9 == 5) { request.sampling.n = 2; }
    requests.push_back(std::move(request));
  }
  return requests;
}

void check_equal(const Completion& done, const Completion& expected) {
  CHECK(done.finish_reason == expected.finish_reason);
  CHECK(done.output_ids == expected.output_ids);
  REQUIRE(done.logprobs.size() == expected.logprobs.size());
  for (std::size_t t = 0; t < done.logprobs.size(); ++t) { CHECK(done.logprobs[t].logprob == expected.logprobs[t].logprob); }
  REQUIRE(done.others.size() == expected.others.size());
  for (std::size_t c = 0; c < done.others.size(); ++c) { CHECK(done.others[c].output_ids == expected.others[c].output_ids); }
}

}  // namespace

TEMPLATE_TEST_CASE("replicas give the tokens of one engine", "[engine][host]", RoundRobinRouter, LeastTokensRouter,
                   PrefixAffinityRouter) {
  const std::vector<Completion> expected = tiny_engines(1).front()->generate(mixed_requests(40));
  for (const std::int32_t count : {2, 4}) {
    DataParallelEngine<AnyEngine, TestType> engine(tiny_engines(count));
    std::vector<std::future<Completion>> results;
    for (const Request& request : mixed_requests(40)) { results.push_back(engine.submit_for_result(request).completion); }
    for (std::size_t i = 0; i < results.size(); ++i) {
      INFO(count << " replicas, request " << i);
      check_equal(results[i].get(), expected[i]);
    }
    CHECK(engine.drain(long_enough));
    const EngineStats stats = engine.stats();
    CHECK(stats.num_submitted == 40);
    CHECK(stats.num_free_blocks == stats.num_blocks);
    std::uint64_t num_busy = 0;
    for (std::size_t i = 0; i < engine.num_replicas(); ++i) { num_busy += engine.replica(i).stats().num_submitted > 0 ? 1 : 0; }
    CHECK(num_busy >= 2);

    const std::unique_ptr<AnyEngine> stepped = make_data_parallel_engine<TestType>(tiny_engines(count));
    const std::vector<Completion> done = stepped->generate(mixed_requests(40));
    for (std::size_t i = 0; i < done.size(); ++i) { check_equal(done[i], expected[i]); }
    CHECK(stepped->stats().num_submitted == 40);
    CHECK(stepped->stats().finished(FinishReason::length) == 40);
    CHECK(stepped->stats().num_free_blocks == stats.num_blocks);
  }
}

TEST_CASE("the affinity of prefixes finds more of them in the caches than taking turns", "[engine][host]") {
  const auto cached_tokens = [](auto router) {
    DataParallelEngine<AnyEngine, decltype(router)> engine(tiny_engines(4), {}, std::move(router));
    for (int turn = 0; turn < 6; ++turn) {
      for (int family = 0; family < 9; ++family) {
        static_cast<void>(engine.submit_for_result(greedy_request(tiny_prompt(family, 65), 2)).completion.get());
      }
    }
    CHECK(engine.drain(long_enough));
    return engine.stats().cached_prompt_tokens;
  };
  CHECK(cached_tokens(PrefixAffinityRouter()) == 9 * 5 * 64);  // all but the first of each
  CHECK(cached_tokens(RoundRobinRouter()) == 9 * 2 * 64);      // each replica has to see it first
}

TEST_CASE("callbacks, futures and streams of all replicas carry ids that are of one request each", "[engine][host]") {
  Scripted<> engine(scripted_engines(3), {.first_request_id = 10});
  Ends ends;
  std::set<RequestId> ids;
  for (int i = 0; i < 12; ++i) {
    const Submission answer = engine.submit(request_of(1, 3), ends.callbacks());
    REQUIRE(answer);
    ids.insert(answer.request);
    CHECK(engine.replica_of(answer.request) == static_cast<std::size_t>(i % 3));
  }
  FutureSubmission future = engine.submit_for_result(request_of(1, 3));
  StreamSubmission stream = engine.submit_for_stream(request_of(1, 3));
  REQUIRE(future);
  REQUIRE(stream);
  ids.insert(future.request);
  ids.insert(stream.request);
  CHECK(ids.size() == 14);
  CHECK(future.completion.get().request == future.request);
  int num_tokens = 0;
  while (stream.tokens.next()) { ++num_tokens; }
  CHECK(num_tokens == 3);
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(12));
  CHECK(engine.submit(request_of(1, 3)).admission == Admission::closed);
  CHECK_THROWS_AS(engine.submit(request_of(0, 3)), InvalidArgument);
}

TEST_CASE("the load of a replica falls with every token and is nothing when all has ended", "[engine][host]") {
  Turnstile turnstile;
  auto engines = scripted_engines(1);
  engines[0]->on_step = [&] { turnstile.pass(); };
  Scripted<> engine(std::move(engines));
  const auto load = [&] { return engine.replica(0).load(); };
  const RequestId first = engine.submit(request_of(10, 5)).request;
  static_cast<void>(engine.submit(request_of(100, 50)).request);
  CHECK(load().num_tokens == 165);
  CHECK(load().num_reqs == 2);
  turnstile.wait_for_somebody();
  turnstile.let_in(2);  // the first step may have begun before the second request came
  turnstile.wait_for_somebody();
  const std::int64_t after_two = load().num_tokens;
  CHECK((after_two == 3 + 150 || after_two == 3 + 49 || after_two == 3 + 48));
  engine.abort(first);
  turnstile.let_in(1);
  turnstile.wait_for_somebody();
  CHECK(load().num_reqs == 1);
  turnstile.open();
  CHECK(engine.drain(long_enough));
  CHECK(load().num_tokens == 0);
  CHECK(load().num_reqs == 0);
  CHECK_FALSE(load().is_open);
}

TEST_CASE("a request that its replica has no room for is offered to the others, and stays whole if all refuse",
          "[engine][host]") {
  Turnstile turnstile;
  auto engines = scripted_engines(2);
  for (auto& engine : engines) {
    engine->on_step = [&] { turnstile.pass(); };
  }
  Scripted<PrefixAffinityRouter> engine(std::move(engines), {.max_num_queued_reqs = 2});
  Ends ends;
  std::vector<std::size_t> counts(2);
  for (int i = 0; i < 4; ++i) {  // one prefix, so one replica is the first choice of all
    const Submission answer = engine.submit(request_of(20, 2), ends.callbacks());
    REQUIRE(answer);
    ++counts[engine.replica_of(answer.request)];
  }
  CHECK(counts == std::vector<std::size_t>{2, 2});
  Request request = request_of(20, 2);
  RequestCallbacks callbacks = ends.callbacks();
  CHECK(engine.submit(std::move(request), std::move(callbacks)).admission == Admission::too_many_requests);
  CHECK(request.prompt_ids.size() == 20);
  REQUIRE(callbacks.on_finish);
  turnstile.open();
  Submission again;
  while (!again) { again = engine.submit(std::move(request), std::move(callbacks)); }
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(5));
}

TEST_CASE("a replica that dies ends its own requests once, and the others and what comes later go on", "[engine][host]") {
  for (const bool throws : {false, true}) {
    Turnstile turnstile;
    auto engines = scripted_engines(3);
    ScriptedEngine& victim = *engines[1];
    for (auto& engine : engines) {
      engine->on_step = [&turnstile, &victim, at = engine.get(), throws] {
        turnstile.pass();
        if (at != &victim || victim.num_steps < 2) { return; }
        if (throws) { throw std::runtime_error("the device fell off the bus"); }
        kill(victim);
      };
    }
    Scripted<> engine(std::move(engines));
    Ends ends, again;
    RequestCallbacks callbacks = ends.callbacks();
    const auto count_end = callbacks.on_finish;
    std::atomic<int> num_again{0}, num_at_dead{0};
    callbacks.on_finish = [&](const Completion& done) {
      count_end(done);
      if (done.finish_reason != FinishReason::error) { return; }
      // At once, inside the step in which the replica died.
      const Submission answer = engine.submit(request_of(1, 2), again.callbacks());
      if (answer) { ++num_again; }
      if (engine.replica_of(answer.request) == 1) { ++num_at_dead; }
    };
    for (int i = 0; i < 30; ++i) { REQUIRE(engine.submit(request_of(1, 4), callbacks)); }
    turnstile.open();
    wait_until_idle(engine);
    CHECK(ends.are_one_each(30));
    CHECK(ends.with(FinishReason::error) == 10);
    CHECK(ends.with(FinishReason::length) == 20);
    CHECK(ends.errors().size() == (throws ? 10u : 0u));
    CHECK(num_again == 10);
    CHECK(num_at_dead == 0);
    CHECK(again.are_one_each(10));
    CHECK(again.with(FinishReason::length) == 10);
    CHECK(engine.failure().empty());
    CHECK(engine.replica(1).failure() == "the device fell off the bus");
    for (int i = 0; i < 10; ++i) {
      const Submission answer = engine.submit(request_of(1, 2), ends.callbacks());
      REQUIRE(answer);
      CHECK(engine.replica_of(answer.request) != 1);
    }
    CHECK(engine.drain(long_enough));
    CHECK(ends.are_one_each(40));
  }
}

TEST_CASE("when the last replica is dead, requests are refused and the failure names all", "[engine][host]") {
  auto engines = scripted_engines(2);
  Turnstile turnstile;
  for (auto& engine : engines) {
    engine->on_step = [&turnstile, at = engine.get()] {
      turnstile.pass();
      kill(*at);
    };
  }
  Scripted<> engine(std::move(engines));
  Ends ends;
  for (int i = 0; i < 4; ++i) { REQUIRE(engine.submit(request_of(1, 100), ends.callbacks())); }
  turnstile.open();
  while (engine.failure().empty()) { std::this_thread::yield(); }
  CHECK(engine.failure() == "replica 0: the device fell off the bus; replica 1: the device fell off the bus");
  CHECK(engine.submit(request_of(1, 100), ends.callbacks()).admission == Admission::failed);
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(4));
  CHECK(ends.with(FinishReason::error) == 4);
}

TEMPLATE_TEST_CASE("submissions, aborts and a death that race give each request one end", "[engine][host]", RoundRobinRouter,
                   LeastTokensRouter, PrefixAffinityRouter) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    Ends ends;
    std::atomic<std::size_t> num_accepted{0};
    {
      auto engines = scripted_engines(4);
      engines[2]->on_step = [at = engines[2].get()] {
        if (at->num_steps > 20) { throw std::runtime_error("the device fell off the bus"); }
      };
      Scripted<TestType> engine(std::move(engines));
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < 3; ++t) {
        threads.emplace_back([&, t] {
          std::mt19937 random(10 * seed + t);
          std::vector<RequestId> ids;
          for (int i = 0; i < 150; ++i) {
            Request request = request_of(1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 4));
            request.prompt_ids[0] = static_cast<TokenId>(random() % 8);
            const Submission answer = engine.submit(std::move(request), ends.callbacks());
            if (!answer) { continue; }
            ++num_accepted;
            ids.push_back(answer.request);
            if (random() % 2 == 0) { engine.abort(ids[random() % ids.size()]); }
            if (random() % 16 == 0) { static_cast<void>(engine.stats()); }
          }
        });
      }
      for (std::thread& thread : threads) { thread.join(); }
      if (seed % 2 == 0) {
        CHECK(engine.drain(long_enough));
        CHECK(engine.num_open() == 0);
        for (std::size_t i = 0; i < 4; ++i) { CHECK(engine.replica(i).load().num_tokens == 0); }
      }
    }
    CHECK(num_accepted == 450);
    CHECK(ends.are_one_each(num_accepted));
  }
}

TEST_CASE("stop aborts what all replicas have, without waiting for one after the other", "[engine][host]") {
  Turnstile turnstile;
  auto engines = scripted_engines(3);
  for (auto& engine : engines) {
    engine->on_step = [&] { turnstile.pass(); };
  }
  Scripted<> engine(std::move(engines));
  Ends ends;
  for (int i = 0; i < 9; ++i) { REQUIRE(engine.submit(request_of(1, 1'000'000), ends.callbacks())); }
  turnstile.wait_for_somebody();
  CHECK_FALSE(engine.drain(0ms));
  CHECK_FALSE(engine.stop(0ms));  // steps are at work
  CHECK(engine.submit(request_of(1, 1)).admission == Admission::closed);
  turnstile.open();
  CHECK(engine.stop(long_enough));
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(9));
  CHECK(ends.with(FinishReason::abort) == 9);
}

TEST_CASE("the destructor ends every request once, also from a callback and while one replica hangs", "[engine][host]") {
  Ends ends;
  {
    Scripted<> engine(scripted_engines(3));
    RequestCallbacks callbacks = ends.callbacks();
    const auto count_end = callbacks.on_finish;
    callbacks.on_finish = [&](const Completion& done) {
      count_end(done);
      static_cast<void>(engine.abort(done.request));  // what callbacks may call, while replicas go
      static_cast<void>(engine.stats());
      CHECK(engine.failure().empty());
      CHECK(engine.submit(request_of(1, 1)).admission == Admission::closed);
    };
    for (int i = 0; i < 30; ++i) { REQUIRE(engine.submit(request_of(1, 1'000'000), callbacks)); }
  }
  CHECK(ends.are_one_each(30));

  Turnstile turnstile;
  std::promise<void> gone;
  struct Flag {
    std::promise<void>& gone;
    ~Flag() { gone.set_value(); }
  };
  Ends stuck;
  {
    auto engines = scripted_engines(2);
    engines[0]->on_step = [&turnstile, flag = std::make_shared<Flag>(gone)] { turnstile.pass(); };
    Scripted<> engine(std::move(engines), {.stop_timeout = 0ms});
    for (int i = 0; i < 4; ++i) { REQUIRE(engine.submit(request_of(1, 1'000'000), stuck.callbacks())); }
    turnstile.wait_for_somebody();
  }
  CHECK(stuck.are_one_each(4));
  CHECK(stuck.with(FinishReason::error) >= 2);
  turnstile.open();
  gone.get_future().get();
  CHECK(stuck.are_one_each(4));

  auto engine = std::make_unique<Scripted<>>(scripted_engines(2));
  std::promise<void> ready, destroyed, ended;
  std::shared_future<void> is_ready = ready.get_future().share();
  REQUIRE(engine->submit(request_of(1, 1'000'000), {.on_token =
                                                        [&](const TokenEvent& event) {
                                                          is_ready.wait();
                                                          if (event.token != 2) { return; }
                                                          engine.reset();
                                                          destroyed.set_value();
                                                        },
                                                    .on_finish = [&](const Completion&) { ended.set_value(); }}));
  ready.set_value();
  destroyed.get_future().get();
  ended.get_future().get();
}

TEST_CASE("what waits for the replicas is refused on their threads", "[engine][host]") {
  Scripted<> engine(scripted_engines(2));
  std::promise<int> refusals;
  REQUIRE(engine.submit(request_of(1, 1), {.on_token = {}, .on_finish = [&](const Completion&) {
                                             int count = 0;
                                             try {
                                               engine.drain(1s);
                                             } catch (const InvalidArgument&) { ++count; }
                                             try {
                                               engine.stop(1s);
                                             } catch (const InvalidArgument&) { ++count; }
                                             refusals.set_value(count);
                                           }}));
  CHECK(refusals.get_future().get() == 2);
}

TEST_CASE("replicas are made side by side, and the error of one comes out", "[engine][host]") {
  constexpr std::int32_t count = 4;
  std::atomic<int> num_there{0}, num_alive{0};
  struct Counted {
    explicit Counted(std::atomic<int>& alive) : alive_(alive) { ++alive_; }
    ~Counted() { --alive_; }
    std::atomic<int>& alive_;
  };
  const auto make = [&](std::int32_t) {
    ++num_there;
    while (num_there < count) { std::this_thread::yield(); }  // for ever, unless all are made at once
    return std::make_unique<Counted>(num_alive);
  };
  CHECK(make_replicas<Counted>(count, make).size() == 4);
  const auto fail = [&](std::int32_t i) {
    if (i == 2) { raise(OutOfMemory("device 2 has no memory left")); }
    return std::make_unique<Counted>(num_alive);
  };
  expect_error<OutOfMemory>([&] { make_replicas<Counted>(count, fail); }, {"device 2 has no memory left"});
  CHECK(num_alive == 0);
  expect_error<InvalidArgument>([&] { make_replicas<Counted>(0, make); }, {"num_replicas is 0"});
  expect_error<InvalidArgument>([] { Scripted<>({}); }, {"engines is 0", "at least 1"});
  expect_error<InvalidArgument>([] { Scripted<>(scripted_engines(2), {.request_id_step = 2}); }, {"request_id_step is 2"});
}

TEST_CASE("as one engine, callbacks run in step on the owner's thread, and may submit, abort and throw", "[engine][host]") {
  const std::unique_ptr<AnyEngine> engine = make_data_parallel_engine(tiny_engines(2));
  CHECK_FALSE(engine->step());
  CHECK_FALSE(engine->has_work());
  const std::thread::id owner = std::this_thread::get_id();
  std::vector<TokenId> tokens;
  int num_ends = 0, num_others = 0;
  bool is_here = true;
  const auto submit = [&](int index, int max_tokens, std::function<void(const TokenEvent&)> on_token,
                          std::function<void(const Completion&)> on_finish = {}) {
    return engine->submit(
        greedy_request(tiny_prompt(index, 9), max_tokens),
        {.on_token = std::move(on_token), .on_finish = [&num_ends, &is_here, owner, on_finish](const Completion& done) {
           ++num_ends;
           is_here = is_here && std::this_thread::get_id() == owner;
           if (on_finish) { on_finish(done); }
         }});
  };
  submit(
      1, 20,
      [&](const TokenEvent& event) {
        is_here = is_here && std::this_thread::get_id() == owner;
        tokens.push_back(event.token);
      },
      [&](const Completion& done) {
        CHECK(done.output_ids == tokens);
        submit(2, 3, {}, [&](const Completion&) { ++num_others; });
      });
  RequestId own{};
  own = submit(
      3, 400,
      [&](const TokenEvent& event) {
        CHECK(event.request == own);
        CHECK(engine->abort(own));
        CHECK_FALSE(engine->abort(own));
      },
      [](const Completion& done) { CHECK(done.finish_reason == FinishReason::abort); });
  submit(
      4, 400, [](const TokenEvent&) { throw std::runtime_error("no"); },
      [](const Completion& done) {
        CHECK(done.finish_reason == FinishReason::error);
        CHECK(done.error == "on_token threw: no");
      });
  submit(5, 4, {}, [](const Completion&) { throw 7; });
  const RequestId aborted = submit(6, 400, {}, [](const Completion& done) { CHECK(done.finish_reason == FinishReason::abort); });
  CHECK(engine->abort(aborted));
  CHECK(num_ends == 1);  // before abort returned
  CHECK_FALSE(engine->abort(RequestId{12345}));
  while (engine->has_work()) { CHECK(engine->step()); }
  CHECK(num_ends == 6);
  CHECK(num_others == 1);
  CHECK(is_here);
  CHECK(tokens.size() == 20);
  CHECK(engine->failure().empty());
  CHECK_THROWS_AS(engine->validate(Request()), InvalidArgument);
  CHECK_THROWS_AS(engine->submit(Request(), {}), InvalidArgument);
  const std::vector<TokenId> ids{1, 2};
  CHECK_THROWS_AS(engine->prompt_logits(ids, {}), Unsupported);
  CHECK(engine->config().vocab_size == tiny_config().vocab_size);
  CHECK(engine->stats().num_submitted == 6);
  CHECK_FALSE(engine->has_work());
}

TEST_CASE("as one engine, a callback may end requests that were to be reported after it", "[engine][host]") {
  const std::unique_ptr<AnyEngine> engine = make_data_parallel_engine(tiny_engines(2));
  std::vector<RequestId> ids;
  int num_tokens = 0, num_ends = 0;
  for (int i = 0; i < 12; ++i) {
    ids.push_back(engine->submit(greedy_request(tiny_prompt(i, 9), 400), {.on_token =
                                                                              [&](const TokenEvent& event) {
                                                                                if (++num_tokens == 1) {
                                                                                  std::this_thread::sleep_for(
                                                                                      20ms);  // so that all have some
                                                                                } else if (num_tokens == 2) {
                                                                                  for (const RequestId id : ids) {
                                                                                    if (id != event.request) {
                                                                                      CHECK(engine->abort(id));
                                                                                    }
                                                                                  }
                                                                                }
                                                                              },
                                                                          .on_finish = [&](const Completion&) { ++num_ends; }}));
  }
  while (engine->step()) {}
  CHECK(num_ends == 12);
}

TEST_CASE("as one engine, what is left when it goes is aborted and reported", "[engine][host]") {
  int num_ends = 0;
  {
    const std::unique_ptr<AnyEngine> engine = make_data_parallel_engine(tiny_engines(2));
    for (int i = 0; i < 5; ++i) {
      engine->submit(greedy_request(tiny_prompt(i, 9), 400), {.on_token = {}, .on_finish = [&](const Completion& done) {
                                                                ++num_ends;
                                                                CHECK(done.finish_reason == FinishReason::abort);
                                                                CHECK_THROWS_AS(engine->submit(Request(), {}), Error);
                                                                CHECK_FALSE(engine->abort(done.request));
                                                              }});
    }
  }
  CHECK(num_ends == 5);
}

}  // namespace data_parallel_engine_test
