// The thread around an engine: admission, the way in and out of a request, and every way to end.

#include "support/scripted_engine.hpp"
#include "support/async_support.hpp"

#include <nvl/engine/async_engine.hpp>

#include <catch2/catch_test_macros.hpp>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace async_engine_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;

namespace {

constexpr auto long_enough = 60s;  // no test waits for it unless it fails

using Scripted = AsyncEngine<ScriptedEngine>;

}  // namespace

TEST_CASE("callbacks, futures and streams get the same tokens", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>());
  std::promise<Completion> called;
  std::vector<TokenId> tokens;
  const Submission first = engine.submit(request_of(3, 5), {.on_token = [&](const TokenEvent& e) { tokens.push_back(e.token); },
                                                            .on_finish = [&](const Completion& c) { called.set_value(c); }});
  REQUIRE(first);
  const Completion by_callback = called.get_future().get();
  CHECK(by_callback.request == first.request);
  CHECK(by_callback.prompt_ids.size() == 3);
  CHECK(tokens == by_callback.output_ids);
  CHECK(tokens == std::vector<TokenId>{0, 1, 2, 3, 4});

  FutureSubmission second = engine.submit_for_result(request_of(1, 5));
  REQUIRE(second);
  CHECK(second.request != first.request);
  const Completion by_future = second.completion.get();
  CHECK(by_future.request == second.request);
  CHECK(by_future.output_ids == tokens);

  StreamSubmission third = engine.submit_for_stream(request_of(1, 5));
  REQUIRE(third);
  REQUIRE(third.tokens);
  std::vector<TokenId> streamed;
  std::string text;
  while (const auto token = third.tokens.next()) {
    streamed.push_back(token->sampled.token);
    text += token->text;
  }
  CHECK(streamed == tokens);
  CHECK(text == "xxxxx");
  CHECK(third.tokens.result().finish_reason == FinishReason::length);
  CHECK_FALSE(third.tokens.overflowed());
}

TEST_CASE("a queue that is full refuses with the reason and takes again when requests were scheduled", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] { turnstile.pass(); };
  Scripted engine(std::move(scripted), {.max_num_queued_reqs = 4, .max_num_queued_tokens = 100});
  Ends ends;
  REQUIRE(engine.submit(request_of(500, 100), ends.callbacks()));  // an empty queue takes any length
  turnstile.wait_for_somebody();
  CHECK(engine.submit(request_of(1, 1), ends.callbacks()).admission == Admission::too_many_tokens);
  turnstile.let_in(1);
  turnstile.wait_for_somebody();  // the step that scheduled it is over
  REQUIRE(engine.submit(request_of(50, 1), ends.callbacks()));
  CHECK(engine.submit(request_of(51, 1), ends.callbacks()).admission == Admission::too_many_tokens);
  for (int i = 0; i < 3; ++i) { REQUIRE(engine.submit(request_of(1, 1), ends.callbacks())); }
  CHECK(engine.submit(request_of(1, 1), ends.callbacks()).admission == Admission::too_many_requests);
  FutureSubmission refused = engine.submit_for_result(request_of(1, 1));
  CHECK(refused.admission == Admission::too_many_requests);
  CHECK_FALSE(refused.completion.valid());
  CHECK_FALSE(engine.submit_for_stream(request_of(1, 1)).tokens);
  turnstile.let_in(2);  // the step at work ends, the next one takes the four
  turnstile.wait_for_somebody();
  REQUIRE(engine.submit(request_of(100, 1), ends.callbacks()));
  turnstile.open();
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(6));
  CHECK(ends.with(FinishReason::length) == 6);
}

TEST_CASE("an abort makes room in the queue", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] { turnstile.pass(); };
  Scripted engine(std::move(scripted), {.max_num_queued_reqs = 2});
  Ends ends;
  REQUIRE(engine.submit(request_of(1, 100), ends.callbacks()));
  turnstile.wait_for_somebody();
  turnstile.let_in(1);
  turnstile.wait_for_somebody();
  const Submission queued = engine.submit(request_of(1, 1), ends.callbacks());
  REQUIRE(engine.submit(request_of(1, 1), ends.callbacks()));
  CHECK_FALSE(engine.submit(request_of(1, 1), ends.callbacks()));
  CHECK(engine.abort(queued.request));
  turnstile.let_in(2);
  turnstile.wait_for_somebody();
  CHECK(ends.with(FinishReason::abort) == 1);
  CHECK(engine.submit(request_of(1, 1), ends.callbacks()));
  turnstile.open();
  CHECK(engine.drain(long_enough));
}

TEST_CASE("a request that could never run throws where it is submitted and is not heard of again", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>());
  Ends ends;
  CHECK_THROWS_AS(engine.submit(request_of(0, 1), ends.callbacks()), InvalidArgument);
  CHECK_THROWS_AS(engine.submit_for_result(request_of(0, 1)), InvalidArgument);
  CHECK(engine.num_open() == 0);
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(0));
}

TEST_CASE("an abort ends a request once, wherever it is, and says whether there was one to end", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] { turnstile.pass(); };
  Scripted engine(std::move(scripted));
  Ends ends;
  const RequestId running = engine.submit(request_of(1, 100), ends.callbacks()).request;
  turnstile.wait_for_somebody();
  const RequestId waiting = engine.submit(request_of(1, 100), ends.callbacks()).request;
  CHECK(engine.abort(waiting));  // the engine has not seen it yet
  CHECK(engine.abort(waiting));
  CHECK(engine.abort(running));
  CHECK_FALSE(engine.abort(RequestId{12345}));
  turnstile.open();
  CHECK(engine.drain(long_enough));
  CHECK_FALSE(engine.abort(running));
  CHECK_FALSE(engine.abort(waiting));
  CHECK(ends.are_one_each(2));
  CHECK(ends.with(FinishReason::abort) == 2);
}

TEST_CASE("aborts from many threads that race with the end give each request one end", "[engine][host]") {
  Ends ends;
  std::size_t num_accepted = 0;
  {
    Scripted engine(std::make_unique<ScriptedEngine>());
    constexpr int num_threads = 4, per_thread = 300;
    std::atomic<std::size_t> accepted{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(static_cast<unsigned>(t));
        std::vector<RequestId> ids;
        for (int i = 0; i < per_thread; ++i) {
          const Submission answer = engine.submit(request_of(1, 1 + static_cast<int>(random() % 4)), ends.callbacks());
          if (!answer) { continue; }
          ++accepted;
          ids.push_back(answer.request);
          if (random() % 2 == 0) { engine.abort(ids[random() % ids.size()]); }
          if (random() % 16 == 0) { static_cast<void>(engine.stats()); }
        }
      });
    }
    for (std::thread& thread : threads) { thread.join(); }
    CHECK(engine.drain(long_enough));
    num_accepted = accepted;
    CHECK(engine.num_open() == 0);
  }
  CHECK(num_accepted > 0);
  CHECK(ends.are_one_each(num_accepted));
}

TEST_CASE("a callback may submit and abort, its own request too", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>());
  Ends ends;
  std::promise<RequestId> child;
  RequestCallbacks callbacks = ends.callbacks();
  const auto count_end = callbacks.on_finish;
  std::atomic<int> num_right{0};
  callbacks.on_token = [&](const TokenEvent& event) {
    if (event.token == 1 && engine.abort(event.request)) { ++num_right; }
    if (event.token == 0) { child.set_value(engine.submit(request_of(1, 2), ends.callbacks()).request); }
  };
  callbacks.on_finish = [&](const Completion& done) {
    count_end(done);
    if (!engine.abort(done.request)) { ++num_right; }  // it has ended
    if (engine.submit(request_of(1, 2), ends.callbacks())) { ++num_right; }
  };
  const Submission parent = engine.submit(request_of(1, 1'000'000), callbacks);
  CHECK(child.get_future().get() != parent.request);
  while (engine.num_open() > 0) { std::this_thread::yield(); }
  CHECK(num_right == 3);
  CHECK(ends.are_one_each(3));
  CHECK(ends.with(FinishReason::abort) == 1);
  CHECK(ends.with(FinishReason::length) == 2);
}

TEST_CASE("callbacks that throw touch nobody else", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>());
  Ends ends;
  REQUIRE(engine.submit(request_of(1, 2), {.on_token = {}, .on_finish = [](const Completion&) { throw 7; }}));
  REQUIRE(engine.submit(request_of(1, 2), ends.callbacks()));
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(1));
}

TEST_CASE("drain finishes what is there, takes nothing new and gives up when told to", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] { turnstile.pass(); };
  Scripted engine(std::move(scripted));
  Ends ends;
  REQUIRE(engine.submit(request_of(1, 3), ends.callbacks()));
  turnstile.wait_for_somebody();
  REQUIRE(engine.submit(request_of(1, 3), ends.callbacks()));
  CHECK_FALSE(engine.drain(0ms));
  CHECK(engine.submit(request_of(1, 3), ends.callbacks()).admission == Admission::closed);
  turnstile.open();
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(2));
  CHECK(ends.with(FinishReason::length) == 2);
}

TEST_CASE("stop aborts what is there and the thread ends", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] { turnstile.pass(); };
  Scripted engine(std::move(scripted));
  Ends ends;
  for (int i = 0; i < 10; ++i) { REQUIRE(engine.submit(request_of(1, 1'000'000), ends.callbacks())); }
  turnstile.wait_for_somebody();
  REQUIRE(engine.submit(request_of(1, 3), ends.callbacks()));
  CHECK_FALSE(engine.stop(0ms));  // a step is at work
  CHECK(engine.submit(request_of(1, 3), ends.callbacks()).admission == Admission::closed);
  turnstile.open();
  CHECK(engine.stop(long_enough));
  CHECK(engine.stop(long_enough));
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(11));
  CHECK(ends.with(FinishReason::abort) == 11);
}

TEST_CASE("the destructor ends every request once, from a callback too", "[engine][host]") {
  Ends ends;
  {
    Scripted engine(std::make_unique<ScriptedEngine>());
    for (int i = 0; i < 10; ++i) { REQUIRE(engine.submit(request_of(1, 1'000'000), ends.callbacks())); }
  }
  CHECK(ends.are_one_each(10));

  auto engine = std::make_unique<Scripted>(std::make_unique<ScriptedEngine>());
  std::promise<void> destroyed, ended;
  std::promise<void> ready;
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

TEST_CASE("an engine that dies ends every request once and says why to whoever comes later", "[engine][host]") {
  for (const bool throws : {false, true}) {
    Turnstile turnstile;
    auto scripted = std::make_unique<ScriptedEngine>();
    ScriptedEngine& inside = *scripted;
    inside.on_step = [&] {
      turnstile.pass();
      if (inside.num_steps < 3) { return; }
      if (throws) { throw std::runtime_error("the device fell off the bus"); }
      inside.dead = "the device fell off the bus";  // and its requests, as Engine does it
      for (std::uint64_t id = 1000; id < 1100; ++id) { inside.abort(RequestId{id}); }
    };
    Scripted engine(std::move(scripted));
    Ends ends;
    for (int i = 0; i < 5; ++i) { REQUIRE(engine.submit(request_of(1, 100), ends.callbacks())); }
    FutureSubmission future = engine.submit_for_result(request_of(1, 100));
    StreamSubmission stream = engine.submit_for_stream(request_of(1, 100));
    turnstile.open();
    CHECK(future.completion.get().finish_reason != FinishReason::none);
    CHECK(stream.tokens.result().finish_reason != FinishReason::none);
    while (engine.num_open() > 0 || engine.failure().empty()) { std::this_thread::yield(); }
    CHECK(ends.are_one_each(5));
    CHECK(engine.failure() == "the device fell off the bus");
    CHECK(engine.submit(request_of(1, 1), ends.callbacks()).admission == Admission::failed);
    if (throws) {
      CHECK(ends.with(FinishReason::error) == 5);
      CHECK(ends.errors().at(0) == "the device fell off the bus");
    }
    CHECK(engine.drain(long_enough));
    CHECK(engine.stop(long_enough));
  }
}

TEST_CASE("requests that come during the step in which the engine dies end with it", "[engine][host]") {
  Turnstile turnstile;
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_step = [&] {
    turnstile.pass();
    throw std::runtime_error("the device fell off the bus");
  };
  Scripted engine(std::move(scripted));
  Ends ends;
  REQUIRE(engine.submit(request_of(1, 100), ends.callbacks()));
  turnstile.wait_for_somebody();
  for (int i = 0; i < 5; ++i) { REQUIRE(engine.submit(request_of(1, 100), ends.callbacks())); }
  turnstile.open();
  CHECK(engine.drain(long_enough));
  CHECK(ends.are_one_each(6));
  CHECK(ends.errors() == std::vector<std::string>(6, "the device fell off the bus"));
  CHECK(engine.stop(long_enough));
}

TEST_CASE("a request that the engine refuses after all ends with its words", "[engine][host]") {
  auto scripted = std::make_unique<ScriptedEngine>();
  scripted->on_submit = [] { throw std::bad_alloc(); };
  Scripted engine(std::move(scripted));
  const Completion done = engine.submit_for_result(request_of(1, 1)).completion.get();
  CHECK(done.finish_reason == FinishReason::error);
  CHECK(done.error == "std::bad_alloc");
  CHECK(engine.failure().empty());
}

TEST_CASE("the thread sleeps while there is nothing to do", "[engine][host]") {
  auto scripted = std::make_unique<ScriptedEngine>();
  ScriptedEngine& inside = *scripted;
  Scripted engine(std::move(scripted));
  static_cast<void>(engine.submit_for_result(request_of(1, 3)).completion.get());
  std::this_thread::sleep_for(20ms);
  const int num_steps = inside.num_steps, num_looks = inside.num_looks;
  std::this_thread::sleep_for(50ms);
  CHECK(inside.num_steps == num_steps);
  CHECK(inside.num_looks <= num_looks + 2);  // a condition variable may wake without a reason
}

TEST_CASE("the destructor returns while a step hangs, and nothing is called after it", "[engine][host]") {
  Turnstile turnstile;
  std::promise<void> gone;
  struct Flag {
    std::promise<void>& gone;
    ~Flag() { gone.set_value(); }
  };
  Ends ends;
  std::atomic<int> num_tokens{0};
  {
    auto scripted = std::make_unique<ScriptedEngine>();
    scripted->on_step = [&turnstile, flag = std::make_shared<Flag>(gone)] { turnstile.pass(); };
    Scripted engine(std::move(scripted), {.stop_timeout = 0ms});
    for (int i = 0; i < 3; ++i) {
      RequestCallbacks callbacks = ends.callbacks();
      callbacks.on_token = [&](const TokenEvent&) { ++num_tokens; };
      REQUIRE(engine.submit(request_of(1, 1), std::move(callbacks)));
    }
    turnstile.wait_for_somebody();
  }
  CHECK(ends.are_one_each(3));
  CHECK(ends.with(FinishReason::error) == 3);
  turnstile.open();
  gone.get_future().get();  // the engine is destroyed by the thread that came back
  CHECK(ends.are_one_each(3));
  CHECK(num_tokens == 0);
}

TEST_CASE("a stream whose reader falls behind ends its request", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>(), {.max_num_stream_tokens = 8});
  StreamSubmission slow = engine.submit_for_stream(request_of(1, 1'000'000));
  CHECK(slow.tokens.result().finish_reason == FinishReason::abort);
  CHECK(slow.tokens.overflowed());
  int num_tokens = 0;
  while (const auto token = slow.tokens.next()) { CHECK(token->sampled.token == num_tokens++); }
  CHECK(num_tokens == 8);
}

TEST_CASE("a stream that is given up ends its request, and one may outlive the engine", "[engine][host]") {
  StreamSubmission left;
  {
    Scripted engine(std::make_unique<ScriptedEngine>(), {.max_num_stream_tokens = 1 << 20});
    {
      StreamSubmission dropped = engine.submit_for_stream(request_of(1, 1'000'000'000));
      CHECK(dropped.tokens.next());
    }
    while (engine.num_open() > 0) { std::this_thread::yield(); }
    left = engine.submit_for_stream(request_of(1, 1000));
    StreamSubmission cancelled = engine.submit_for_stream(request_of(1, 1'000'000'000));
    cancelled.tokens.cancel();
    cancelled.tokens.cancel();
    CHECK(cancelled.tokens.result().finish_reason == FinishReason::abort);
    while (engine.num_open() > 0) { std::this_thread::yield(); }
  }
  int num_tokens = 0;
  while (left.tokens.next()) { ++num_tokens; }
  CHECK(num_tokens == 1000);
  CHECK(left.tokens.result().finish_reason == FinishReason::length);
}

TEST_CASE("what waits for the engine's thread is refused on it", "[engine][host]") {
  Scripted engine(std::make_unique<ScriptedEngine>());
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

TEST_CASE("options out of range are refused by name before the thread starts", "[engine][host]") {
  const auto make = [](const AsyncOptions& options) { Scripted(std::make_unique<ScriptedEngine>(), options); };
  CHECK_THROWS_AS(make({.max_num_queued_reqs = 0}), InvalidArgument);
  CHECK_THROWS_AS(make({.max_num_queued_tokens = 0}), InvalidArgument);
  CHECK_THROWS_AS(make({.max_num_stream_tokens = 0}), InvalidArgument);
  CHECK_THROWS_AS(make({.stop_timeout = -1ms}), InvalidArgument);
  CHECK_THROWS_AS(Scripted(nullptr), InvalidArgument);
}

}  // namespace async_engine_test
