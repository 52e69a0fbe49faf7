#pragma once
/// The engine: four policies, one type. It validates requests, asks the scheduler for a step, has the ranks run it, and turns
/// what they sampled into tokens, text and results.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/active_requests.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_ranks.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/generate.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_rules.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/engine/step_builder.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/prefix_cache.hpp>
#include <nvl/model/model_runner.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// One model on the ranks of one strategy. Not thread-safe: one thread calls it. Requests run only inside `step`.
template <class Scheduler, class Allocator, class Attention, class Parallel>
class Engine {
  // Each says which member is missing.
  static_assert(require_block_allocator<Allocator>());
  static_assert(require_scheduler_policy<Scheduler, Allocator>());
  static_assert(require_attention_backend<Attention>());
  static_assert(require_parallel_strategy<Parallel>());
  static_assert(std::is_same_v<typename Attention::Element, typename Attention::Ops::Element>,
                "nvl::Engine: the attention backend and its ops must have the same Element");
  static_assert(
      [] {
        if constexpr (requires { Allocator::block_size; }) { return Allocator::block_size == Attention::block_size; }
        return true;
      }(),
      "nvl::Engine: the allocator is made for another block size than the attention backend: change one of them");
  static_assert(
      !(TokenSharingContext<typename Parallel::Context> && requires { Allocator::block_size; }),
      "nvl::Engine: ranks that share tokens have blocks of as many times the backend's block_size as there are ranks: use an "
      "allocator without a block_size of its own, or another strategy");

 public:
  using Element = typename Attention::Element;
  using Device = typename Attention::Ops::Device;
  using SchedulerType = Scheduler;
  using AllocatorType = Allocator;
  using ParallelType = Parallel;
  template <class S>
  using with_scheduler = Engine<S, Allocator, Attention, Parallel>;
  template <class A>
  using with_allocator = Engine<Scheduler, A, Attention, Parallel>;
  template <class B>
  using with_attention = Engine<Scheduler, Allocator, B, Parallel>;
  template <class P>
  using with_parallel = Engine<Scheduler, Allocator, Attention, P>;

  static constexpr std::int32_t block_size = Attention::block_size;  // [tokens] of a block on a rank
  static constexpr bool runs_ahead = Attention::Ops::runs_ahead;
  static constexpr bool has_remote_ranks = RemoteRanks<Parallel>;  // then this is the engine of several processes

  /// Validates, plans memory, allocates it on every rank and loads the weights; `source` is not needed afterwards.
  /// \throws InvalidArgument, Unsupported or OutOfMemory before anything is allocated; what `source` throws.
  template <WeightSource Source>
  Engine(const ModelConfig& config, const Source& source, const EngineOptions& options = {}, const LoadProgress& progress = {},
         Parallel parallel = {})
      : config_(checked_config<Attention>(config)),
        options_(options),
        ranks_(config_, options_, std::move(parallel)),
        num_stages_(static_cast<std::int32_t>(ranks_.local().place().num_stages)),
        plan_(ranks_.local().plan()),
        allocator_(BlockPoolShape{.num_blocks = static_cast<std::uint32_t>(plan_.num_blocks),
                                  .block_size = static_cast<std::uint32_t>(plan_.block_size),
                                  .num_host_blocks = static_cast<std::uint32_t>(plan_.num_host_blocks)}),
        scheduler_(SchedulerOptions{.max_num_seqs = options_.max_num_seqs,
                                    .max_num_batched_tokens = options_.max_num_batched_tokens,
                                    .block_size = plan_.block_size,
                                    .num_micro_batches = num_stages_,
                                    .scheduling = options_.scheduling,
                                    .window = {.tokens = config_.has_full_layers() ? 0 : config_.sliding_window}}),
        requests_(scheduler_, allocator_, stats_, config_, options_, plan_) {
    flights_.resize(static_cast<std::size_t>(ranks_.local().limits().num_in_flight));
    ranks_.load(source, progress);
  }

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Requests that have not finished are aborted: each still gets its on_finish.
  ~Engine() {
    failure_ = "it is closing";  // so that an on_finish cannot submit; short enough to need no memory
    contain([&] { requests_.finish_all(FinishReason::abort, {}); }, [](const char*) {});
  }

  /// Throws what `submit` would for a request that can never run, and does nothing else. Any thread may call it at any time.
  void validate(const Request& request) const {
    nvl::validate(request, config_, options_, plan_);
    NVL_EXPECTS(SharingAllocator<Allocator> || !request.sampling.is_beam_search(), "beam_width", request.sampling.beam_width,
                "0 or 1: beams share blocks, which this engine's allocator cannot do (SharingAllocator)");
  }

  /// Queues a request; it runs in `step`.
  /// \throws InvalidArgument that names the parameter, its value and the rule; Error if the engine has failed. Then nothing changed.
  RequestId submit(Request request, RequestCallbacks callbacks = {}) {
    if (!failure_.empty()) { raise(Error("the engine has failed and takes no request: " + failure_)); }
    validate(request);
    return requests_.add(std::move(request), std::move(callbacks));
  }

  /// Ends a request wherever it is; its on_finish is called before this returns. False if it is unknown or has finished.
  bool abort(RequestId id) { return requests_.abort(id); }

  /// Plans and runs one step and reports what came of it through the requests' callbacks. False if there was nothing to do.
  /// Where the ops run ahead, the next step is planned and launched before this one is waited for; a sequence that this one
  /// ends then costs a row whose token nobody gets.
  /// If the device fails, every request finishes with FinishReason::error and `failure` says why.
  bool step() {
    NVL_EXPECTS(!in_step_, "step", "called from a callback", "called by the engine's owner only");
    in_step_ = true;
    requests_.begin_step();
    bool worked = false;
    contain([&] { worked = run_step(); }, [&](const char* what) { fail(what); });
    in_step_ = false;
    return worked;
  }

  /// Where the ops run ahead: launches the step that the next call of `step` will wait for, unless it is under way.
  void begin_step() {
    NVL_EXPECTS(!in_step_, "begin_step", "called from a callback", "called by the engine's owner only");
    if constexpr (Ops::runs_ahead) {
      in_step_ = true;
      contain([&] { launch_current(); }, [&](const char* what) { fail(what); });
      in_step_ = false;
    }
  }

  /// False if `step` would wait for a step that is under way, as far as the ranks of this process know; for an engine to do something
  /// else meanwhile.
  bool is_step_done() {
    if (!flights_[current_].is_launched) { return true; }
    return ranks_.local().is_done();
  }

  bool has_work() const noexcept { return !requests_.empty(); }

  /// Runs `requests` to the end, along with whatever else was submitted, and returns their results in order.
  std::vector<Completion> generate(std::vector<Request> requests) {
    NVL_EXPECTS(!in_step_, "generate", "called from a callback", "called by the engine's owner only");
    return detail::generate(*this, std::move(requests));
  }

  /// Calls `visit(position, logits)` for each token of `ids` from `first` on, logits being a std::span<const float> of vocab_size
  /// that predicts the token after it. Takes free blocks of the KV cache while it runs and leaves the prefix cache alone.
  /// \throws InvalidArgument for ids out of range or more than the cache has room for.
  template <class Visit>
  void prompt_logits(std::span<const TokenId> ids, Visit&& visit, std::int32_t first = 0) {
    validate_ids(ids, config_, plan_);
    NVL_EXPECTS(first >= 0 && first < std::ssize(ids), "first position", first,
                "below the prompt's " + std::to_string(ids.size()) + " tokens");
    const std::size_t num_blocks = ceil_div(ids.size(), static_cast<std::size_t>(plan_.block_size));
    ChoiceState probe;
    probe.tokens.assign(ids.begin(), ids.end());
    probe.num_prompt = probe.num_tokens();
    probe.block_table.resize(num_blocks);
    const bool allocated = allocator_.try_allocate(probe.block_table);
    NVL_EXPECTS(allocated, "prompt of " + std::to_string(ids.size()) + " tokens", num_blocks,
                "blocks at most (" + std::to_string(allocator_.num_free()) + " are free)");
    std::string error;
    contain(
        [&] {
          const std::int32_t budget = options_.max_num_batched_tokens;
          std::int32_t done = 0;
          for (std::int32_t count = 0; done < first; done += count) {
            count = std::min(budget, first - done);
            run_probe(probe, done, count, 0);
          }
          const auto vocab = static_cast<std::size_t>(config_.vocab_size);
          for (std::int32_t count = 0; done < probe.num_prompt; done += count) {
            count = std::min({budget, options_.max_num_seqs, probe.num_prompt - done});
            const std::span<const float> rows = run_probe(probe, done, count, count);
            for (std::int32_t i = 0; i < count; ++i) {
              visit(done + i, rows.subspan(static_cast<std::size_t>(i) * vocab, vocab));
            }
          }
        },
        [&](const char* what) { error = what; });
    allocator_.release(probe.block_table);
    if (!error.empty()) { raise(Error("prompt_logits: " + error)); }
  }

  // --- Requests that move from one engine to another: see engine/disaggregated_engine.hpp ---------------------------------------

  /// Throws what `submit_prompt` would, and does nothing else. Any thread may call it at any time.
  void validate_prompt(const Request& request) const {
    Request prompt = request;
    prompt.sampling.max_tokens = 1;
    prompt.sampling.min_tokens = std::min(request.sampling.min_tokens, 1);
    validate(prompt);
    NVL_EXPECTS(request.sampling.num_choices() == 1, request.sampling.is_beam_search() ? "beam_width" : "choices of the request",
                request.sampling.num_choices(), "1: a request that another engine goes on with has no others (n, best_of)");
  }

  /// As `submit`, for a request that leaves this engine with its first token, unless that ends it: see oldest_computed.
  /// \param max_total_tokens [tokens] of prompt and output where it goes
  /// \throws also InvalidArgument for a request of several choices
  RequestId submit_prompt(Request request, RequestCallbacks callbacks, std::int32_t max_total_tokens) {
    if (!failure_.empty()) { raise(Error("the engine has failed and takes no request: " + failure_)); }
    validate_prompt(request);
    return requests_.add(std::move(request), std::move(callbacks), max_total_tokens);
  }

  /// Requests that have left and wait to be taken; until then `abort` ends them, and so does the engine's end.
  std::size_t num_computed() const noexcept { return requests_.num_computed(); }
  RequestState& oldest_computed() noexcept { return requests_.oldest_computed(); }
  /// With its blocks under a lease that dies before the engine.
  ComputedPrompt<Allocator> take_oldest_computed() noexcept { return requests_.take_oldest_computed(); }

  /// Gives the sequence of a request that has left another engine the blocks that its tokens need, of which the first num_published
  /// are filled. False: there is no room for it now.
  bool reserve(RequestState& request) { return requests_.reserve(request); }
  /// The blocks that `reserve` gave, of a request that will not run.
  BlockLease<Allocator> cancel(RequestState& request) noexcept { return requests_.cancel(request); }
  /// The blocks are filled: the request is this engine's. False: it has no place for it now, and nothing changed.
  /// \throws Error if the scheduler refuses it, and then nothing changed
  bool adopt(std::unique_ptr<RequestState>& request) { return requests_.adopt(request); }
  /// Ends a request that has left an engine and is of no other; its on_finish is called before this returns.
  void end_apart(std::unique_ptr<RequestState> request, FinishReason reason, std::string_view error = {}) {
    requests_.end_apart(std::move(request), reason, error);
  }
  /// Ends every request with `reason` and takes no more: it has failed, because of `why`.
  void give_up(FinishReason reason, const std::string& why) {
    contain([&] { failure_ = why; }, [&](const char*) { failure_ = "out of memory"; });
    for (Flight& flight : flights_) { flight.is_launched = false; }
    requests_.finish_all(reason, reason == FinishReason::error ? failure_ : std::string_view());
  }

  /// Those of this process.
  std::uint32_t num_ranks() const noexcept { return ranks_.local().size(); }
  Device& device(std::uint32_t rank) noexcept { return ranks_.local().device(rank); }
  KvCache<Element> kv_cache(std::uint32_t rank) noexcept {
    auto& runner = ranks_.local().runner(rank);
    return {.kv = runner.kv(), .layout = runner.kv_layout(), .num_layers = runner.config().num_layers};
  }

  EngineStats stats() const {
    EngineStats stats = stats_;
    stats.num_waiting = scheduler_.num_waiting();
    stats.num_running = scheduler_.num_running();
    stats.num_blocks = allocator_.num_blocks();
    stats.num_free_blocks = allocator_.num_free();
    if constexpr (TieredAllocator<Allocator>) {
      stats.num_host_blocks = allocator_.num_host_blocks();
      stats.num_free_host_blocks = allocator_.num_free_host();
    }
    if constexpr (ManagedPrefixCache<Allocator>) { stats.prefix_cache = allocator_.stats(); }
    return stats;
  }

  /// Empty, or why the engine died.
  const std::string& failure() const noexcept { return failure_; }
  const ModelConfig& config() const noexcept { return config_; }
  const EngineOptions& options() const noexcept { return options_; }
  const MemoryPlan& memory_plan() const noexcept { return plan_; }
  std::vector<std::string> warnings() const { return ranks_.local().runner(0).warnings(); }
  const Allocator& allocator() const noexcept { return allocator_; }
  /// To pin or reset a prefix cache and to drain its events (ManagedPrefixCache), between two steps. Blocks are the engine's.
  Allocator& allocator() noexcept { return allocator_; }

 private:
  using Ops = typename Attention::Ops;
  using Requests = ActiveRequests<Scheduler, Allocator>;

  /// A step that was launched and not yet collected.
  struct Flight {
    ScheduledBatch batch;
    StepBuffer buffer;
    bool is_launched = false;
  };

  /// Sees to it that a step is under way, if there is one to be had. False if there is nothing to do.
  bool launch_current() {
    Flight& current = flights_[current_];
    if (current.is_launched || launch(current)) { return true; }
    if (!has_work() || requests_.withholds_blocks()) { return false; }
    // Beams that wait for others may hold the blocks that those need.
    if (!requests_.release_waiting_beams() || !launch(current)) { note_failed_plan("it has requests and planned nothing"); }
    return true;
  }

  bool run_step() {
    if (!launch_current()) { return false; }
    Flight& current = flights_[current_];
    if (!current.is_launched) { return true; }
    if (num_stages_ > 1) {
      fill_pipeline();
    } else if constexpr (Ops::runs_ahead) {
      if (Requests::may_run_ahead(current.batch)) { launch(flights_[1 - current_]); }
    }
    const StepOutput& output = ranks_.collect();
    current.is_launched = false;
    current_ = (current_ + 1) % flights_.size();
    stats_.last_step = work_of(current.batch);
    requests_.commit(current.batch, output);
    if constexpr (requires(Device& device) { device.idle_seconds(); }) {
      stats_.exposed_host_seconds = ranks_.local().device(0).idle_seconds();
    }
    return true;
  }

  /// While one stage computes a step, the others compute steps of other sequences: as many as there are stages.
  void fill_pipeline() {
    for (std::size_t i = 1; i < flights_.size(); ++i) {
      Flight& flight = flights_[(current_ + i) % flights_.size()];
      if (!flight.is_launched) { launch(flight); }
      if (!flight.is_launched) { return; }
    }
  }

  /// Plans a step and starts it. False if there is nothing to do. Without the host memory for it nothing is started: a plan is
  /// tried again by the next step, a step that is planned ends its requests.
  bool launch(Flight& flight) {
    ScheduledBatch& batch = flight.batch;
    batch.clear();
    if (!plan(batch)) { return true; }
    stats_.num_preemptions += batch.preempted.size() + batch.swapped.size();
    stats_.num_swaps += batch.swapped.size();
    stats_.swapped_out_blocks += batch.swap_out.size();
    stats_.swapped_in_blocks += batch.swap_in.size();
    if (batch.empty()) { return false; }
    num_failed_plans_ = 0;
    requests_.note_admissions(batch);
    StepInput* in = nullptr;
    contain(
        [&] {
          plan_forks(batch, options_.max_num_seqs);
          StepInput& built = build_step_input(batch, plan_.block_size, next_step_, flight.buffer);
          requests_.reserve_outputs(batch, num_stages_ > 1);
          in = &built;
        },
        [&](const char* what) { drop(batch, what); });
    if (in == nullptr) { return true; }
    ++next_step_;
    ranks_.launch(*in);
    flight.is_launched = true;
    return true;
  }

  /// False if the scheduler threw and has changed nothing.
  bool plan(ScheduledBatch& batch) {
    bool planned = false;
    contain(
        [&] {
          scheduler_.schedule(allocator_, batch);
          planned = true;
        },
        [&](const char* what) {
          const bool unchanged = batch.empty() && batch.preempted.empty() && batch.swapped.empty();
          if (!unchanged) { num_failed_plans_ = max_failed_plans; }
          note_failed_plan(what);
        });
    return planned;
  }

  /// A scheduler that found no memory may find some the next time.
  void note_failed_plan(const char* what) {
    if (++num_failed_plans_ >= max_failed_plans) { raise(Error(std::string("the scheduler failed: ") + what)); }
  }

  /// `batch` will not be computed.
  void drop(const ScheduledBatch& batch, const char* what) {
    const bool has_others = !batch.copies.empty() || !batch.swap_out.empty() || !batch.swap_in.empty();
    if (has_others) { raise(Error(what)); }  // blocks of requests that are not in the batch have lost their content
    requests_.fail(batch, what);
  }

  void fail(const char* what) { give_up(FinishReason::error, what); }

  /// Computes `count` tokens of `probe` and returns the logits of the first `num_rows` of them, [num_rows, vocab].
  std::span<const float> run_probe(ChoiceState& probe, std::int32_t first, std::int32_t count, std::int32_t num_rows) {
    ScheduledBatch batch;
    batch.seqs.push_back({.seq = &probe, .first_position = first, .num_tokens = count, .needs_sample = false});
    batch.num_tokens = count;
    StepInput& in = build_step_input(batch, plan_.block_size, next_step_++, probe_buffer_, num_rows);
    std::iota(in.sample_rows.begin(), in.sample_rows.end(), 0);
    return ranks_.logits(in);
  }

  const ModelConfig config_;
  const EngineOptions options_;
  std::vector<Flight>
      flights_;  // a ring: the oldest step not yet collected is flights_[current_]; outlive the ranks, which read them
  StepBuffer probe_buffer_;
  EngineRanks<Attention, Allocator, Parallel> ranks_;
  const std::int32_t num_stages_;
  const MemoryPlan plan_;
  Allocator allocator_;
  Scheduler scheduler_;
  EngineStats stats_;
  Requests requests_;
  std::size_t current_ = 0;
  std::string failure_;
  std::uint64_t next_step_ = 0;
  static constexpr int max_failed_plans = 3;
  int num_failed_plans_ = 0;  // in a row
  bool in_step_ = false;
};

}  // namespace nvl::inline NVL_ABI
