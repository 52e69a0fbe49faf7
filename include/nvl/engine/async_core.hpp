#pragma once
/// What the threads that submit and the thread that steps share: admission, the way of a request to the engine, its one end.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/engine/engine_load.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct AsyncOptions {
  std::int64_t max_num_queued_reqs = 2048;         // requests accepted and never scheduled so far
  std::int64_t max_num_queued_tokens = 1 << 22;    // [tokens] of their prompts; an empty queue takes a request of any length
  std::int64_t max_num_stream_tokens = 4096;       // [tokens] that a stream keeps for its reader
  std::chrono::milliseconds stop_timeout{60'000};  // that the destructor waits for a step to come back
  // Requests are numbered first_request_id, then always request_id_step more: engines side by side give no id twice.
  std::uint64_t first_request_id = 0, request_id_step = 1;
};

/// What became of a submission. All are expected outcomes; only `accepted` will call the request's callbacks.
enum class Admission : std::uint8_t {
  accepted,
  too_many_requests,  // max_num_queued_reqs: try again later
  too_many_tokens,    // max_num_queued_tokens: likewise
  closed,             // by close, drain or stop
  failed,             // the engine is dead: its `failure` says why
};

constexpr std::string_view to_string(Admission admission) noexcept {
  switch (admission) {
    case Admission::accepted: return "accepted";
    case Admission::too_many_requests: return "too many requests are queued";
    case Admission::too_many_tokens: return "too many tokens are queued";
    case Admission::closed: return "the engine takes no more requests";
    case Admission::failed: return "the engine has failed";
  }
  return "";
}

struct Submission {
  Admission admission = Admission::closed;
  RequestId request{};  // if accepted

  explicit operator bool() const noexcept { return admission == Admission::accepted; }
};

/// What AsyncEngine asks of an engine; engine/engine.hpp says what each means.
template <class E>
concept SteppedEngine = requires(E engine, const E& constant, const Request& request, RequestCallbacks callbacks, RequestId id) {
  constant.validate(request);
  { engine.submit(request, std::move(callbacks)) } -> std::same_as<RequestId>;
  { engine.abort(id) } -> std::same_as<bool>;
  { engine.step() } -> std::same_as<bool>;
  { constant.has_work() } -> std::same_as<bool>;
  { constant.stats() } -> std::same_as<EngineStats>;
  { constant.failure() } -> std::convertible_to<std::string_view>;
};

namespace detail {

/// Shared by AsyncEngine and its thread, so that neither outlives what it uses.
template <class E>
class AsyncCore {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  AsyncCore(std::unique_ptr<E> engine, const AsyncOptions& options)
      : options_(options),
        next_id_(options.first_request_id),
        stats_(engine->stats()),
        engine_(std::move(engine)) {
    if constexpr (requires { engine_->memory_plan().max_model_len; }) { max_model_len_ = engine_->memory_plan().max_model_len; }
  }

  const AsyncOptions& options() const noexcept { return options_; }
  const E& engine() const noexcept { return *engine_; }
  bool is_on_thread() const noexcept { return thread_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

  // Any thread

  /// Takes the request and the callbacks only if they are accepted.
  Submission submit(Request&& request, RequestCallbacks&& callbacks) {
    engine_->validate(request);
    auto ticket = std::make_unique<Ticket>();
    ticket->num_tokens = static_cast<std::int64_t>(request.prompt_ids.size());
    ticket->num_outstanding = most_tokens(request, max_model_len_);
    const std::lock_guard lock(mutex_);
    if (const Admission refused = admission_of(ticket->num_tokens); refused != Admission::accepted) { return {refused, {}}; }
    const RequestId id{next_id_};
    ticket->id = id;
    Ticket* const accepted = ticket.get();
    if (inbox_.size() == inbox_.capacity()) { inbox_.reserve(2 * inbox_.size() + 16); }  // so that push_back cannot throw
    open_.emplace(id, std::move(ticket));
    inbox_.push_back(accepted);
    accepted->request = std::move(request);
    accepted->callbacks = std::move(callbacks);
    next_id_ += options_.request_id_step;
    ++num_open_;
    inbox_tokens_ += accepted->num_tokens;
    outstanding_tokens_.fetch_add(accepted->num_outstanding, std::memory_order_relaxed);
    work_.notify_one();
    return {Admission::accepted, id};
  }

  bool abort(RequestId id) {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(id);
    if (found == open_.end()) { return false; }
    Ticket& ticket = *found->second;
    if (!ticket.is_abort_wanted) {
      aborts_.push_back(id);
      ticket.is_abort_wanted = true;
      work_.notify_one();
    }
    return true;
  }

  void close() {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    is_closed_ = is_stopping_ = true;
    work_.notify_one();
  }

  bool wait_until_drained(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, [&] { return num_open_ == 0; });
  }

  bool wait_until_stopped(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, [&] { return has_stopped_; });
  }

  EngineStats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  std::size_t num_open() const {
    const std::lock_guard lock(mutex_);
    return num_open_;
  }
  std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  EngineLoad load(std::int64_t num_prompt_tokens) const {
    const std::lock_guard lock(mutex_);
    return {.num_reqs = static_cast<std::int64_t>(open_.size()),
            .num_tokens = outstanding_tokens_.load(std::memory_order_relaxed),
            .is_open = admission_of(num_prompt_tokens) == Admission::accepted};
  }

  /// Takes the requests from a thread that does not come back from the engine, and ends them here. No callback runs after it.
  void abandon() {
    // A callback that runs at this moment gets time to end. One that never returns cannot be helped.
    for (int i = 0; i < 1000 && !pass(Gate::open, Gate::shut); ++i) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }
    gate_.store(Gate::shut);
    {
      const std::lock_guard lock(mutex_);
      abandoned_ = std::move(open_);  // kept: the thread has pointers to them
      open_.clear();
    }
    for (auto& [id, ticket] : abandoned_) {
      Completion done = ended(FinishReason::error, "stuck in a step");
      done.request = id;
      if (ticket->callbacks.on_finish) {
        contain([&] { ticket->callbacks.on_finish(done); }, [](const char*) {});
      }
    }
  }

  // The engine's thread

  void run() {
    thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    while (wait_for_work()) {
      for (Ticket* const ticket : taken_) { hand_over(*ticket); }
      for (const RequestId id : taken_aborts_) { abort_now(id); }
      if (is_last_round_) {
        end_all(FinishReason::abort, {});
      } else if (has_work()) {
        bool worked = false;
        contain([&] { worked = engine_->step(); }, [&](const char* what) { fail(what); });
        if (!worked) { std::this_thread::yield(); }  // it waits for something beside the steps, a copy say
      }
      publish();
    }
  }

 private:
  struct Ticket {
    RequestId id{};
    RequestId engine_id{};  // the engine's own
    Request request;
    RequestCallbacks callbacks;
    std::int64_t num_tokens = 0;       // of the prompt
    std::int64_t num_outstanding = 0;  // tokens: see EngineLoad
    bool has_token = false;
    bool is_handed_over = false;  // the engine has it
    bool is_abort_wanted = false;
  };
  using Tickets = std::unordered_map<RequestId, std::unique_ptr<Ticket>>;

  /// Callbacks run behind it: busy while one does, shut once the requests have been ended without the engine's thread.
  enum class Gate : std::uint8_t { open, busy, shut };

  bool pass(Gate from, Gate to) noexcept { return gate_.compare_exchange_strong(from, to, std::memory_order_acq_rel); }

  /// Calls `callback()` unless the gate is shut; lets its exceptions through.
  template <class Callback>
  void call(Callback&& callback) {
    if (!pass(Gate::open, Gate::busy)) { return; }
    struct Leave {
      AsyncCore& core;
      ~Leave() { core.pass(Gate::busy, Gate::open); }
    } const leave{*this};
    callback();
  }

  Admission admission_of(std::int64_t num_tokens) const noexcept {
    if (has_failed_) { return Admission::failed; }
    if (is_closed_) { return Admission::closed; }
    const auto reqs = queued_reqs_ + static_cast<std::int64_t>(inbox_.size());
    const std::int64_t tokens = queued_tokens_ + inbox_tokens_;
    if (reqs >= options_.max_num_queued_reqs) { return Admission::too_many_requests; }
    if (reqs > 0 && tokens + num_tokens > options_.max_num_queued_tokens) { return Admission::too_many_tokens; }
    return Admission::accepted;
  }

  bool has_work() const { return !is_broken_ && engine_->has_work(); }

  /// Sleeps until there is something to do and takes what came. False when it is time to end.
  bool wait_for_work() {
    taken_.clear();
    taken_aborts_.clear();
    std::unique_lock lock(mutex_);
    work_.wait(lock, [&] { return !inbox_.empty() || !aborts_.empty() || is_stopping_ || has_work(); });
    if (is_last_round_) {
      has_stopped_ = true;
      changed_.notify_all();
      return false;
    }
    is_last_round_ = is_stopping_;
    taken_.swap(inbox_);
    taken_aborts_.swap(aborts_);
    queued_reqs_ += static_cast<std::int64_t>(taken_.size());
    queued_tokens_ += inbox_tokens_;
    inbox_tokens_ = 0;
    return true;
  }

  void hand_over(Ticket& ticket) {
    if (is_broken_) {
      end(ticket, ended(FinishReason::error, "the engine has failed"));
      return;
    }
    contain(
        [&] {
          RequestCallbacks callbacks;
          callbacks.on_token = [this, at = &ticket](const TokenEvent& event) {
            settle(*at, std::exchange(at->has_token, true) ? 1 : at->num_tokens + 1);
            if (!at->callbacks.on_token) { return; }
            call([&] {
              TokenEvent mine = event;
              mine.request = at->id;
              at->callbacks.on_token(mine);
            });
          };
          callbacks.on_finish = [this, at = &ticket](const Completion& done) { end(*at, done); };
          ticket.engine_id = engine_->submit(std::move(ticket.request), std::move(callbacks));
          ticket.is_handed_over = true;
        },
        [&](const char* what) { end(ticket, ended(FinishReason::error, what)); });
  }

  /// `count` tokens of a request are outstanding no more.
  void settle(Ticket& ticket, std::int64_t count) noexcept {
    const std::int64_t settled = std::min(count, ticket.num_outstanding);
    ticket.num_outstanding -= settled;
    outstanding_tokens_.fetch_sub(settled, std::memory_order_relaxed);
  }

  void abort_now(RequestId id) {
    Ticket* ticket = nullptr;
    {
      const std::lock_guard lock(mutex_);
      const auto found = open_.find(id);
      if (found == open_.end()) { return; }  // it has ended meanwhile
      ticket = found->second.get();
    }
    abort_now(*ticket, FinishReason::abort, {});
  }

  /// If the engine does not know `ticket`, or throws, it ends here.
  void abort_now(Ticket& ticket, FinishReason reason, std::string_view error) {
    bool has_ended = false;
    if (!is_broken_) {
      contain([&] { has_ended = ticket.is_handed_over && engine_->abort(ticket.engine_id); }, [](const char*) {});
    }
    if (!has_ended) { end(ticket, ended(reason, error), ticket.is_handed_over); }
  }

  void end_all(FinishReason reason, std::string_view error) {
    while (true) {
      Ticket* ticket = nullptr;
      {
        const std::lock_guard lock(mutex_);
        if (open_.empty()) { return; }
        ticket = open_.begin()->second.get();
      }
      abort_now(*ticket, reason, error);
    }
  }

  /// The one end of a request. `engine_has_it`: it may call back, so the ticket is kept.
  void end(Ticket& ticket, const Completion& done, bool engine_has_it = false) {
    typename Tickets::node_type node;
    call([&] {
      {
        const std::lock_guard lock(mutex_);
        // Now, not when the step is over: a callback that submits again is not told that the engine takes it.
        if (done.finish_reason == FinishReason::error && !is_broken_) { note_failure(engine_->failure()); }
        node = open_.extract(ticket.id);
      }
      if (!node.empty()) { settle(ticket, ticket.num_outstanding); }
      if (node.empty() || !ticket.callbacks.on_finish) { return; }
      contain([&] { report(ticket, done); }, [](const char*) {});  // it has ended already: nothing is left to do
    });
    if (node.empty()) { return; }
    ++num_ended_;
    if (engine_has_it) {
      ticket.callbacks = {};
      contain([&] { kept_.push_back(std::move(node.mapped())); },
              [&](const char*) { static_cast<void>(node.mapped().release()); });  // rather lost than pointed at
    }
  }

  static void report(Ticket& ticket, const Completion& done) {
    Completion mine;
    contain([&] { mine = done; }, [&](const char*) { mine = ended(FinishReason::error, "out of memory"); });
    mine.request = ticket.id;
    ticket.callbacks.on_finish(mine);
  }

  static Completion ended(FinishReason reason, std::string_view error) {
    Completion done;
    done.finish_reason = reason;
    contain([&] { done.error = error; }, [&](const char*) { done.error = "out of memory"; });  // short: needs none
    return done;
  }

  /// The engine threw where it should not. It is not called any more.
  void fail(std::string_view what) {
    is_broken_ = true;
    {
      const std::lock_guard lock(mutex_);
      note_failure(what);
      inbox_.clear();  // those who came during the step are ended with the others
      inbox_tokens_ = 0;
    }
    end_all(FinishReason::error, what);
  }

  void note_failure(std::string_view what) {
    if (has_failed_ || what.empty()) { return; }
    has_failed_ = true;
    contain([&] { failure_ = what; }, [&](const char*) { failure_ = "out of memory"; });
  }

  /// Tells the other threads what they may know.
  void publish() {
    const EngineStats stats = engine_->stats();
    const std::lock_guard lock(mutex_);
    stats_ = stats;
    num_open_ -= std::exchange(num_ended_, 0);
    if (num_open_ == 0) { changed_.notify_all(); }
    queued_reqs_ = static_cast<std::int64_t>(stats_.num_queued);
    queued_tokens_ = static_cast<std::int64_t>(stats_.queued_tokens);
    note_failure(engine_->failure());
  }

  const AsyncOptions options_;
  std::int64_t max_model_len_ = 0;                   // [tokens] 0: the engine does not say
  std::atomic<std::int64_t> outstanding_tokens_{0};  // of the requests in open_
  mutable std::mutex mutex_;
  std::condition_variable work_;     // for the engine's thread
  std::condition_variable changed_;  // for those who wait for it

  // Under the mutex
  Tickets open_;                // accepted and not ended
  std::size_t num_open_ = 0;    // and those that ended in the step at work
  std::vector<Ticket*> inbox_;  // accepted and not taken
  std::vector<RequestId> aborts_;
  std::int64_t inbox_tokens_ = 0;
  std::int64_t queued_reqs_ = 0;  // taken, and not scheduled when that was last published
  std::int64_t queued_tokens_ = 0;
  std::uint64_t next_id_;
  EngineStats stats_;
  std::string failure_;
  bool has_failed_ = false;
  bool is_closed_ = false;
  bool is_stopping_ = false;
  bool has_stopped_ = false;

  // The engine's thread
  std::vector<Ticket*> taken_;
  std::vector<RequestId> taken_aborts_;
  std::size_t num_ended_ = 0;  // since the last publication
  bool is_last_round_ = false;
  bool is_broken_ = false;

  std::atomic<std::thread::id> thread_{};
  std::atomic<Gate> gate_{Gate::open};
  Tickets abandoned_;
  std::vector<std::unique_ptr<Ticket>> kept_;
  std::unique_ptr<E> engine_;  // goes first: it may call back
};

}  // namespace detail

}  // namespace nvl::inline NVL_ABI
