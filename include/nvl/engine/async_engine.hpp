#pragma once
/// An engine on a thread of its own: any thread submits and aborts, results come through callbacks, futures or streams.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/async_core.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/token_stream.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace nvl::inline NVL_ABI {

struct FutureSubmission : Submission {
  std::future<Completion> completion{};  // valid if accepted; always gets a value, never an exception
};

struct StreamSubmission : Submission {
  TokenStream tokens{};  // true if accepted
};

/// Owns an engine (AnyEngine, or any type with its calls) and the thread that steps it. Every function may be called from any
/// thread, callbacks included, unless it says so.
///
/// Every request that is accepted ends exactly once: its on_finish is called, its future gets its value, its stream ends;
/// whatever races with whatever, without host memory, and if the engine dies. Callbacks run on the engine's thread, one at a
/// time, so they should be short; they may submit and abort. A callback that throws ends its own request with
/// FinishReason::error.
///
/// Admission is bounded: what is accepted and has never been scheduled counts as queued, with the tokens of its prompts. A
/// request that finds the queue full is refused at once with an Admission, not an exception; requests that could never run
/// throw in the thread that submits them.
///
/// The thread sleeps while there is nothing to do. No signal handler is installed and none is needed: `close`, `drain` and
/// `stop` are what a handler's thread calls.
template <class E = AnyEngine>
class AsyncEngine {
  static_assert(
      SteppedEngine<E>,
      "nvl::AsyncEngine takes an engine with the calls of nvl::AnyEngine: validate, submit, abort, step, has_work, stats "
      "and failure");
  using Core = detail::AsyncCore<E>;
  using Clock = std::chrono::steady_clock;

 public:
  /// Takes an engine that has no requests. Nobody else may step it from now on.
  /// \throws InvalidArgument for an option out of range; OutOfMemory if the thread cannot be started.
  explicit AsyncEngine(std::unique_ptr<E> engine, const AsyncOptions& options = {}) {
    NVL_EXPECTS(engine != nullptr, "engine", "nullptr", "an engine");
    NVL_EXPECTS(!engine->has_work(), "engine", "at work", "without requests");
    NVL_EXPECTS(options.max_num_queued_reqs >= 1, "max_num_queued_reqs", options.max_num_queued_reqs, "at least 1");
    NVL_EXPECTS(options.max_num_queued_tokens >= 1, "max_num_queued_tokens", options.max_num_queued_tokens, "at least 1");
    NVL_EXPECTS(options.max_num_stream_tokens >= 1, "max_num_stream_tokens", options.max_num_stream_tokens, "at least 1");
    NVL_EXPECTS(options.request_id_step >= 1, "request_id_step", options.request_id_step, "at least 1");
    NVL_EXPECTS(options.stop_timeout.count() >= 0, "stop_timeout", options.stop_timeout.count(), "not negative [ms]");
    core_ = std::make_shared<Core>(std::move(engine), options);
    std::string error;
    contain([&] { thread_ = std::thread([core = core_] { core->run(); }); }, [&](const char* what) { error = what; });
    if (!error.empty()) { raise(OutOfMemory("the engine's thread cannot be started: " + error)); }
  }

  AsyncEngine(const AsyncEngine&) = delete;
  AsyncEngine& operator=(const AsyncEngine&) = delete;

  /// Aborts what is left, each with its on_finish, and ends the thread. Always returns: a step that has not come back after
  /// AsyncOptions::stop_timeout is left behind with the engine, its requests end with FinishReason::error here, and no callback
  /// runs any more. Called from a callback it does not wait: the thread ends by itself when the callback returns.
  ~AsyncEngine() {  // NOLINT(bugprone-exception-escape): join and detach throw for threads that are not there
    if (core_->is_on_thread()) {
      core_->stop();
      thread_.detach();
    } else if (stop(core_->options().stop_timeout)) {
      thread_.join();
    } else {
      core_->abandon();
      thread_.detach();
    }
  }

  /// A request that is not accepted stays whole where it was moved from, with its callbacks, for another attempt.
  /// \throws InvalidArgument for a request that could never run. Then nothing changed, and nothing will be called.
  [[nodiscard]] Submission submit(Request&& request, RequestCallbacks&& callbacks = {}) {
    return core_->submit(std::move(request), std::move(callbacks));
  }
  [[nodiscard]] Submission submit(const Request& request, RequestCallbacks callbacks = {}) {
    return submit(Request(request), std::move(callbacks));
  }

  /// As `submit`, with the result as a future.
  [[nodiscard]] FutureSubmission submit_for_result(Request&& request) {
    auto promise = std::make_shared<std::promise<Completion>>();
    FutureSubmission answer;
    answer.completion = promise->get_future();
    static_cast<Submission&>(answer) = submit(
        std::move(request), {.on_token = {}, .on_finish = [promise](const Completion& done) { promise->set_value(done); }});
    if (!answer) { answer.completion = {}; }
    return answer;
  }
  [[nodiscard]] FutureSubmission submit_for_result(const Request& request) { return submit_for_result(Request(request)); }

  /// As `submit`, with the tokens as a stream of at most AsyncOptions::max_num_stream_tokens that are not read yet.
  [[nodiscard]] StreamSubmission submit_for_stream(Request&& request) {
    auto buffer = std::make_shared<detail::StreamBuffer>(static_cast<std::size_t>(core_->options().max_num_stream_tokens));
    const auto on_token = [buffer, core = core_.get()](const TokenEvent& event) {
      if (!buffer->push(event)) { core->abort(event.request); }
    };
    const auto on_finish = [buffer](const Completion& done) { buffer->end(done); };
    StreamSubmission answer;
    static_cast<Submission&>(answer) = submit(std::move(request), {.on_token = on_token, .on_finish = on_finish});
    if (answer) {
      answer.tokens = TokenStream(std::move(buffer), [core = std::weak_ptr<Core>(core_), id = answer.request] {
        if (const auto alive = core.lock()) { alive->abort(id); }
      });
    }
    return answer;
  }
  [[nodiscard]] StreamSubmission submit_for_stream(const Request& request) { return submit_for_stream(Request(request)); }

  /// Ends a request wherever it is: its blocks are free before the engine's next step. True if it had not ended; it ends once,
  /// with FinishReason::abort unless it was ending by itself. Tokens of the step at work may still be reported.
  bool abort(RequestId id) { return core_->abort(id); }

  /// Takes no requests from now on.
  void close() { core_->close(); }

  /// As `stop`, without waiting for it; callbacks may call it.
  void request_stop() { core_->stop(); }

  /// Closes and waits until every request has ended. True if that came to pass within `timeout`. Not for callbacks.
  bool drain(Clock::duration timeout) {
    NVL_EXPECTS(!core_->is_on_thread(), "drain", "called from a callback", "called by another thread than the engine's");
    core_->close();
    return core_->wait_until_drained(deadline(timeout));
  }

  /// Closes, aborts every request and ends the thread. True if that came to pass within `timeout`; a step at work is not
  /// interrupted. Not for callbacks.
  bool stop(Clock::duration timeout) {
    NVL_EXPECTS(!core_->is_on_thread(), "stop", "called from a callback", "called by another thread than the engine's");
    core_->stop();
    return core_->wait_until_stopped(deadline(timeout));
  }

  /// As of the end of the last step; after `drain`, of all of them.
  EngineStats stats() const { return core_->stats(); }
  /// [requests] accepted and not ended when the last step ended
  std::size_t num_open() const { return core_->num_open(); }
  /// Of now; is_open as a request of so many prompt tokens would find it.
  EngineLoad load(std::int64_t num_prompt_tokens = 1) const { return core_->load(num_prompt_tokens); }
  /// True in a callback.
  bool is_on_thread() const noexcept { return core_->is_on_thread(); }
  /// Empty, or why the engine died.
  std::string failure() const { return core_->failure(); }
  /// For what of it never changes: its config, its memory plan.
  const E& engine() const noexcept { return core_->engine(); }

 private:
  static Clock::time_point deadline(Clock::duration timeout) {
    return Clock::now() + std::clamp<Clock::duration>(timeout, Clock::duration::zero(), std::chrono::hours(24 * 365));
  }

  std::shared_ptr<Core> core_;
  std::thread thread_;
};

}  // namespace nvl::inline NVL_ABI
