#pragma once
/// Data parallelism behind the interface of one engine: callbacks run on the thread that steps it.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/any_engine.hpp>
#include <nvl/engine/async_core.hpp>
#include <nvl/engine/data_parallel_engine.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/generate.hpp>
#include <nvl/engine/least_tokens_router.hpp>
#include <nvl/engine/request.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// The replicas step by themselves; `step` waits for what they report and passes it on.
template <class Router>
class AnyDataParallelEngine final : public AnyEngine {
 public:
  AnyDataParallelEngine(std::vector<std::unique_ptr<AnyEngine>> engines, Router router) {
    for (const auto& engine : engines) {
      NVL_EXPECTS(engine != nullptr, "engine", "nullptr", "an engine");
      for (std::string& warning : engine->warnings()) {
        if (std::ranges::count(warnings_, warning) == 0) { warnings_.push_back(std::move(warning)); }
      }
    }
    // Without bounds, as an engine that is stepped.
    constexpr std::int64_t any = std::numeric_limits<std::int64_t>::max() / 4;
    replicas_.emplace(std::move(engines), AsyncOptions{.max_num_queued_reqs = any, .max_num_queued_tokens = any},
                      std::move(router));
  }

  ~AnyDataParallelEngine() override {
    replicas_.reset();
    while (!requests_.empty()) {
      const std::shared_ptr<Tracked> tracked = requests_.begin()->second;
      finish(*tracked);
    }
  }

  void validate(const Request& request) const override { first().validate(request); }

  RequestId submit(Request request, RequestCallbacks callbacks) override {
    if (!replicas_) { raise(Error("the engine takes no request: it is closing")); }
    const auto tracked = std::make_shared<Tracked>();
    tracked->callbacks = std::move(callbacks);
    // All memory that its end needs is taken now.
    Requests one;
    one.emplace(RequestId{}, tracked);
    auto node = one.extract(one.begin());
    requests_.reserve(requests_.size() + 1);
    const auto make_room = [&](std::vector<Tracked*>& list) {
      if (list.capacity() <= requests_.size()) { list.reserve(2 * requests_.size() + 16); }
    };
    make_room(taken_);
    {
      const std::lock_guard lock(mutex_);
      make_room(ready_);
    }
    RequestCallbacks reports;
    if (tracked->callbacks.on_token) {
      reports.on_token = [this, at = tracked.get()](const TokenEvent& event) { note_token(*at, event); };
    }
    reports.on_finish = [this, at = tracked.get()](const Completion& done) { note_end(*at, done); };
    const Submission answer = replicas_->submit(std::move(request), std::move(reports));
    if (!answer) {
      failure_ = replicas_->failure();
      raise(Error("the engine has failed and takes no request: " + failure_));
    }
    tracked->id = answer.request;
    node.key() = answer.request;
    requests_.insert(std::move(node));
    return answer.request;
  }

  bool abort(RequestId id) override {
    const auto found = requests_.find(id);
    if (found == requests_.end() || !replicas_) { return false; }
    const std::shared_ptr<Tracked> tracked = found->second;
    replicas_->abort(id);
    {
      std::unique_lock lock(mutex_);
      wait(lock, [&] { return tracked->has_ended; });
      std::erase(ready_, tracked.get());
    }
    finish(*tracked);
    return true;
  }

  bool step() override {
    NVL_EXPECTS(!in_step_, "step", "called from a callback", "called by the engine's owner only");
    if (requests_.empty()) { return false; }
    {
      std::unique_lock lock(mutex_);
      wait(lock, [&] { return !ready_.empty(); });
      taken_.swap(ready_);
      for (Tracked* const tracked : taken_) { tracked->is_ready = false; }
    }
    in_step_ = true;
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      if (taken_[i] == nullptr) { continue; }  // a callback has ended it
      const std::shared_ptr<Tracked> tracked = requests_.at(taken_[i]->id);
      report(*tracked);
    }
    taken_.clear();
    in_step_ = false;
    return true;
  }

  bool has_work() const override { return !requests_.empty(); }

  std::vector<Completion> generate(std::vector<Request> requests) override {
    NVL_EXPECTS(!in_step_, "generate", "called from a callback", "called by the engine's owner only");
    return detail::generate(*this, std::move(requests));
  }

  /// \throws Unsupported: the replicas' threads have their engines
  void prompt_logits(std::span<const TokenId>, const LogitsVisitor&, std::int32_t) override {
    raise(Unsupported("prompt_logits: not of a data-parallel engine; one engine has them"));
  }

  /// Complete while no request is open.
  EngineStats stats() const override {
    if (!replicas_) { return {}; }
    // The ends were reported inside the last steps, which are over in a moment.
    while (requests_.empty() && replicas_->num_open() > 0) { std::this_thread::sleep_for(std::chrono::microseconds(20)); }
    return replicas_->stats();
  }
  const std::string& failure() const override { return failure_; }
  const ModelConfig& config() const override { return first().config(); }
  const MemoryPlan& memory_plan() const override { return first().memory_plan(); }
  std::vector<std::string> warnings() const override { return warnings_; }

 private:
  struct Token {
    SampledToken sampled;
    std::string text;
    std::uint32_t choice;
  };
  struct Tracked {
    RequestId id{};              // the owner's thread only, as these two
    RequestCallbacks callbacks;  // of the owner
    std::string error;           // a callback has thrown: what
    // Under the mutex, until it has ended
    std::vector<Token> tokens;  // to report
    Completion done;
    bool has_ended = false;
    bool is_ready = false;  // in ready_
  };
  using Requests = std::unordered_map<RequestId, std::shared_ptr<Tracked>>;

  const AnyEngine& first() const noexcept { return replicas_->replica(0).engine(); }

  // The threads of the replicas

  void note_token(Tracked& tracked, const TokenEvent& event) {
    Token token{*event.sampled, std::string(event.text), event.choice};
    const std::lock_guard lock(mutex_);
    tracked.tokens.push_back(std::move(token));
    make_ready(tracked);
  }

  void note_end(Tracked& tracked, const Completion& done) {
    contain([&] { tracked.done = done; },
            [&](const char*) {
              tracked.done = {};
              tracked.done.finish_reason = FinishReason::error;
              tracked.done.error = "out of memory";  // short: needs none
            });
    const std::lock_guard lock(mutex_);
    tracked.has_ended = true;
    make_ready(tracked);
  }

  /// The mutex is held.
  void make_ready(Tracked& tracked) noexcept {
    if (!std::exchange(tracked.is_ready, true)) { ready_.push_back(&tracked); }  // has room for all
    if (std::exchange(is_waiting_, false)) { changed_.notify_one(); }
  }

  // The owner's thread. Whoever calls `report` or `finish` keeps `tracked` alive.

  template <class Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition&& condition) {
    while (!condition()) {
      is_waiting_ = true;
      changed_.wait(lock);
    }
    is_waiting_ = false;
  }

  void report(Tracked& tracked) {
    std::vector<Token> tokens;
    bool has_ended = false;
    {
      const std::lock_guard lock(mutex_);
      tokens.swap(tracked.tokens);
      has_ended = tracked.has_ended;
      if (has_ended && tracked.is_ready) { std::erase(ready_, &tracked); }
    }
    for (const Token& token : tokens) {
      if (!tracked.error.empty()) { break; }
      contain(
          [&] {
            tracked.callbacks.on_token({tracked.id, token.sampled.token, token.text, &token.sampled, token.choice});
          },
          [&](const char* what) { give_up(tracked, what); });
      if (!requests_.contains(tracked.id)) { return; }  // the callback has ended it
    }
    if (has_ended) { finish(tracked); }
  }

  void give_up(Tracked& tracked, const char* what) {
    contain([&] { tracked.error = std::string("on_token threw: ") + what; },
            [&](const char*) { tracked.error = "on_token threw"; });  // short: needs no memory
    replicas_->abort(tracked.id);
  }

  /// Of a request that has ended in its replica.
  void finish(Tracked& tracked) {
    std::ranges::replace(taken_, &tracked, static_cast<Tracked*>(nullptr));
    requests_.erase(tracked.id);
    if (!tracked.error.empty()) {
      tracked.done.finish_reason = FinishReason::error;
      tracked.done.error = std::move(tracked.error);
    }
    if (tracked.done.finish_reason == FinishReason::error && replicas_) {
      contain([&] { failure_ = replicas_->failure(); }, [](const char*) {});
    }
    if (tracked.callbacks.on_finish) {
      contain([&] { tracked.callbacks.on_finish(tracked.done); }, [](const char*) {});
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Tracked*> ready_;  // with something to report; has room for every request
  bool is_waiting_ = false;      // the owner, and nobody has woken it yet

  Requests requests_;  // that have not been reported to the end
  std::vector<Tracked*> taken_;
  std::vector<std::string> warnings_;
  std::string failure_;
  bool in_step_ = false;
  std::optional<DataParallelEngine<AnyEngine, Router>> replicas_;
};

}  // namespace detail

/// Engines that are replicas of each other as one AnyEngine, for LLM and for programs that step it: callbacks run in `step`, on the
/// thread that calls it. `step` waits for the next tokens; `abort` for the end of the step at work. What is said of one engine
/// (config, memory plan) is said of the first one.
template <RouterPolicy Router = LeastTokensRouter>
std::unique_ptr<AnyEngine> make_data_parallel_engine(std::vector<std::unique_ptr<AnyEngine>> replicas, Router router = Router()) {
  return std::make_unique<detail::AnyDataParallelEngine<Router>>(std::move(replicas), std::move(router));
}

}  // namespace nvl::inline NVL_ABI
