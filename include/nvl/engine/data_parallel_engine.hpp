#pragma once
/// Data parallelism: several engines with the same model, each on a thread of its own, behind one way in.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/async_core.hpp>
#include <nvl/engine/async_engine.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/router_policy.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Calls `make(i)`, which returns a std::unique_ptr<E>, for each i below `num_replicas`, side by side, and returns what they made.
/// They may read one weight source: `find` of those that nvl has may be called by many threads.
/// \throws the first exception of any, when all that began have come back; InvalidArgument for a number out of range
template <class E = AnyEngine, class Make>
std::vector<std::unique_ptr<E>> make_replicas(std::int32_t num_replicas, Make&& make) {
  NVL_EXPECTS(num_replicas >= 1 && num_replicas <= ThreadPool::max_threads, "num_replicas", num_replicas,
              "1 to " + std::to_string(ThreadPool::max_threads));
  std::vector<std::unique_ptr<E>> replicas(static_cast<std::size_t>(num_replicas));
  ThreadPool(num_replicas).parallel_for(num_replicas, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) { replicas[static_cast<std::size_t>(i)] = make(static_cast<std::int32_t>(i)); }
  });
  return replicas;
}

/// Replicas of one engine: the same model and the same options, on devices of their own or on shares of one. Each steps on the
/// thread of an AsyncEngine; a Router chooses who gets a request. Every function may be called from any thread, callbacks
/// included, unless it says so.
///
/// What AsyncEngine promises of a request holds here: it ends exactly once. Callbacks run on the thread of the request's replica,
/// so those of different requests run side by side. A replica that dies ends its own requests with FinishReason::error and gets
/// no new ones; the others go on. Admission is bounded in each replica (AsyncOptions); a request that its replica refuses is
/// offered to the others.
template <class E = AnyEngine, class Router = LeastTokensRouter>
class DataParallelEngine {
  static_assert(require_router_policy<Router>());
  using Clock = std::chrono::steady_clock;

 public:
  using Replica = AsyncEngine<E>;

  /// Takes engines that have no requests. Nobody else may step them from now on.
  /// \param options of each replica; the numbers of requests are shared out: first_request_id + i, then always by as many as there
  ///                are replicas
  /// \throws InvalidArgument for no engine, or an option out of range; OutOfMemory if a thread cannot be started.
  explicit DataParallelEngine(std::vector<std::unique_ptr<E>> engines, AsyncOptions options = {}, Router router = Router())
      : router_(std::move(router)),
        first_request_id_(options.first_request_id),
        loads_(engines.size()) {
    NVL_EXPECTS(!engines.empty(), "engines", engines.size(), "at least 1");
    NVL_EXPECTS(options.request_id_step == 1, "request_id_step", options.request_id_step, "1: it becomes the number of replicas");
    options.request_id_step = engines.size();
    replicas_.reserve(engines.size());
    for (std::unique_ptr<E>& engine : engines) {
      replicas_.push_back(std::make_unique<Replica>(std::move(engine), options));
      ++options.first_request_id;
    }
  }

  DataParallelEngine(const DataParallelEngine&) = delete;
  DataParallelEngine& operator=(const DataParallelEngine&) = delete;

  /// Aborts what is left and ends the threads, as ~AsyncEngine does; stop_timeout is for each replica that does not come back.
  ~DataParallelEngine() {
    {
      const std::lock_guard lock(mutex_);
      is_going_ = true;
    }
    for (const auto& replica : replicas_) { replica->request_stop(); }
  }

  /// As AsyncEngine's. A request that nobody accepts stays whole where it was moved from, with its callbacks. The answer is then
  /// that of the first replica that has not failed: `failed` says that all have.
  [[nodiscard]] Submission submit(Request&& request, RequestCallbacks&& callbacks = {}) {
    return offer<Submission>(request, [&](Replica& to) { return to.submit(std::move(request), std::move(callbacks)); });
  }
  [[nodiscard]] Submission submit(const Request& request, RequestCallbacks callbacks = {}) {
    return submit(Request(request), std::move(callbacks));
  }
  [[nodiscard]] FutureSubmission submit_for_result(Request&& request) {
    return offer<FutureSubmission>(request, [&](Replica& to) { return to.submit_for_result(std::move(request)); });
  }
  [[nodiscard]] FutureSubmission submit_for_result(const Request& request) { return submit_for_result(Request(request)); }
  [[nodiscard]] StreamSubmission submit_for_stream(Request&& request) {
    return offer<StreamSubmission>(request, [&](Replica& to) { return to.submit_for_stream(std::move(request)); });
  }
  [[nodiscard]] StreamSubmission submit_for_stream(const Request& request) { return submit_for_stream(Request(request)); }

  /// As AsyncEngine's.
  bool abort(RequestId id) {
    const std::lock_guard lock(mutex_);
    return !is_going_ && replicas_[replica_of(id)]->abort(id);
  }

  /// Takes no requests from now on.
  void close() {
    for_each([](Replica& replica) { replica.close(); });
  }

  /// Closes and waits until every request has ended. True if that came to pass within `timeout`. Not for callbacks.
  bool drain(Clock::duration timeout) {
    close();
    return each_within(timeout, [](Replica& replica, Clock::duration left) { return replica.drain(left); });
  }

  /// Closes, aborts every request and ends the threads. True if that came to pass within `timeout`; a step at work is not
  /// interrupted. Not for callbacks.
  bool stop(Clock::duration timeout) {
    for_each([](Replica& replica) { replica.request_stop(); });
    return each_within(timeout, [](Replica& replica, Clock::duration left) { return replica.stop(left); });
  }

  std::size_t num_replicas() const noexcept { return replicas_.size(); }
  /// For the statistics, the load and the failure of one; not while this is being destroyed.
  const Replica& replica(std::size_t i) const noexcept { return *replicas_[i]; }
  /// Whose request it is.
  std::size_t replica_of(RequestId id) const noexcept {
    return static_cast<std::size_t>((index_of(id) - first_request_id_) % replicas_.size());
  }

  /// Of all replicas together (`combined`), each as of the end of its last step.
  EngineStats stats() const {
    EngineStats total;
    for_each([&](const Replica& replica) { total = combined(total, replica.stats()); });
    return total;
  }
  /// [requests] accepted and not ended when the last steps ended
  std::size_t num_open() const {
    std::size_t total = 0;
    for_each([&](const Replica& replica) { total += replica.num_open(); });
    return total;
  }
  /// Empty while a replica is alive; else why all died.
  std::string failure() const {
    std::string all;
    std::size_t index = 0, num_dead = 0;
    for_each([&](const Replica& replica) {
      const std::string why = replica.failure();
      all += (index == 0 ? "replica " : "; replica ") + std::to_string(index) + ": " + why;
      num_dead += why.empty() ? 0 : 1;
      ++index;
    });
    return num_dead == index ? all : std::string();
  }

 private:
  /// Gives the request to whom the router says, or to the next one that it says. `submit(replica)` takes it only if it is accepted.
  template <class Answer, class Submit>
  Answer offer(const Request& request, Submit&& submit) {
    // Held to the end, so that the router sees what it has given away, and no replica goes while it is asked.
    const std::lock_guard lock(mutex_);
    if (is_going_) { return {}; }
    const auto num_prompt = static_cast<std::int64_t>(request.prompt_ids.size());
    std::size_t num_left = 0;
    for (std::size_t i = 0; i < replicas_.size(); ++i) {
      loads_[i] = replicas_[i]->load(num_prompt);
      num_left += loads_[i].is_open ? 1 : 0;
    }
    for (; num_left > 0; --num_left) {
      const std::size_t chosen = router_.route(request, loads_);
      NVL_EXPECTS(chosen < loads_.size() && loads_[chosen].is_open, "replica that the router chose", chosen,
                  "one that takes requests");
      if (Answer answer = submit(*replicas_[chosen]); answer) { return answer; }
      loads_[chosen].is_open = false;  // it has failed this moment
    }
    Answer answer;
    for (const auto& replica : replicas_) {
      answer = submit(*replica);
      if (answer.admission != Admission::failed) { break; }
    }
    return answer;
  }

  /// Calls `use(replica)` for each, unless this is being destroyed: callbacks may still come.
  template <class Use>
  void for_each(Use&& use) const {
    const std::lock_guard lock(mutex_);
    if (is_going_) { return; }
    for (const auto& replica : replicas_) { use(*replica); }
  }

  /// True if `wait(replica, time left)` is for all.
  template <class Wait>
  bool each_within(Clock::duration timeout, Wait&& wait) {
    for (const auto& replica : replicas_) {
      NVL_EXPECTS(!replica->is_on_thread(), "waiting for the replicas", "called from a callback",
                  "called by another thread than theirs");
    }
    const auto start = Clock::now();
    bool all = true;
    for (const auto& replica : replicas_) {
      all = wait(*replica, std::max(Clock::duration::zero(), timeout - (Clock::now() - start))) && all;
    }
    return all;
  }

  mutable std::mutex mutex_;  // before that of a replica; never held where callbacks run
  Router router_;
  const std::uint64_t first_request_id_;
  std::vector<EngineLoad> loads_;  // as the router is told
  bool is_going_ = false;
  std::vector<std::unique_ptr<Replica>> replicas_;  // go first: they may call back
};

}  // namespace nvl::inline NVL_ABI
