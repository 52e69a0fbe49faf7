#pragma once
/// The engine: four policies, one type. It validates requests, asks the scheduler for a step, has the ranks run it, and turns
/// what they sampled into tokens, text and results.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/engine/completion.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_rules.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/engine/step_builder.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/model/model_runner.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
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

 public:
  using Element = typename Attention::Element;
  using Device = typename Attention::Ops::Device;
  template <class S>
  using with_scheduler = Engine<S, Allocator, Attention, Parallel>;
  template <class A>
  using with_allocator = Engine<Scheduler, A, Attention, Parallel>;
  template <class B>
  using with_attention = Engine<Scheduler, Allocator, B, Parallel>;
  template <class P>
  using with_parallel = Engine<Scheduler, Allocator, Attention, P>;

  static constexpr std::int32_t block_size = Attention::block_size;  // [tokens]

  /// Validates, plans memory, allocates it and loads the weights; `source` is not needed afterwards.
  /// \throws InvalidArgument, Unsupported or OutOfMemory before anything is allocated; what `source` throws.
  template <WeightSource Source>
  Engine(const ModelConfig& config, const Source& source, const EngineOptions& options = {}, const LoadProgress& progress = {},
         Parallel parallel = {})
      : config_(checked(config)),
        options_(options),
        plan_(plan_memory<Attention, Allocator>(config_, options_)),
        allocator_(BlockPoolShape{.num_blocks = static_cast<std::uint32_t>(plan_.num_blocks),
                                  .block_size = block_size,
                                  .num_host_blocks = static_cast<std::uint32_t>(plan_.num_host_blocks)}),
        scheduler_(SchedulerOptions{.max_num_seqs = options_.max_num_seqs,
                                    .max_num_batched_tokens = options_.max_num_batched_tokens,
                                    .block_size = block_size,
                                    .scheduling = options_.scheduling}),
        parallel_(std::move(parallel)),
        random_(options_.seed ? *options_.seed : random_seed()) {
    ranks_.resize(parallel_.num_local_ranks());
    const StepLimits limits = step_limits(config_, plan_, options_, block_size);
    parallel_.for_each_rank([&](typename Parallel::Context& context, std::uint32_t i) {
      ranks_[i] = std::make_unique<RankState>(config_, source, limits, options_.device, plan_.allocated_bytes(), context,
                                              i == 0 ? progress : LoadProgress{});
    });
  }

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Requests that have not finished are aborted: each still gets its on_finish.
  ~Engine() {
    failure_ = "it is closing";  // so that an on_finish cannot submit; short enough to need no memory
    contain([&] { finish_all(FinishReason::abort, {}); }, [](const char*) {});
  }

  /// Throws what `submit` would for a request that can never run, and does nothing else. Any thread may call it at any time.
  void validate(const Request& request) const { nvl::validate(request, config_, options_, plan_); }

  /// Queues a request; it runs in `step`.
  /// \throws InvalidArgument that names the parameter, its value and the rule; Error if the engine has failed. Then nothing changed.
  RequestId submit(Request request, RequestCallbacks callbacks = {}) {
    if (!failure_.empty()) { raise(Error("the engine has failed and takes no request: " + failure_)); }
    validate(request);
    // From here to its end nothing that frees its blocks needs memory.
    reserve_for_one_more(finished_, finished_.size() + requests_.size());
    reserve_for_one_more(retired_, requests_.size());
    auto state = std::make_unique<RequestState>();
    state->id = SeqId{next_id_};
    state->request = RequestId{next_id_};
    state->num_prompt = static_cast<std::int32_t>(request.prompt_ids.size());
    state->max_total_tokens = total_tokens(request, plan_);
    state->priority = request.priority;
    state->seed = request.sampling.seed ? *request.sampling.seed : random_();
    state->stop_ids = request.sampling.stop_token_ids;
    if (!request.sampling.ignore_eos) {
      state->stop_ids.insert(state->stop_ids.end(), config_.eos_token_ids.begin(), config_.eos_token_ids.end());
    }
    state->tokens = std::move(request.prompt_ids);
    state->tokens.reserve(static_cast<std::size_t>(std::min(state->max_total_tokens, state->num_prompt + 1024)));
    state->sampling = std::move(request.sampling);
    if (options_.token_text) { state->text_stream.emplace(*options_.token_text, state->sampling); }
    if constexpr (PrefixCachingAllocator<Allocator>) { state->prefix_root = allocator_.root(request.cache_salt); }
    state->callbacks = std::move(callbacks);
    state->submitted = RequestState::Clock::now();
    RequestState& queued = *state;
    const RequestId id = queued.request;
    requests_.emplace(id, std::move(state));
    std::string error;
    contain([&] { scheduler_.add(queued); }, [&](const char* what) { error = what; });
    queued.is_scheduled = error.empty();
    if (!error.empty()) {
      requests_.erase(id);
      raise(Error("the scheduler refused the request: " + error));
    }
    ++next_id_;
    ++stats_.num_submitted;
    ++stats_.num_queued;
    stats_.queued_tokens += static_cast<std::uint64_t>(queued.num_prompt);
    return id;
  }

  /// Ends a request wherever it is; its on_finish is called before this returns. False if it is unknown or has finished.
  bool abort(RequestId id) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) { return false; }
    finish(*found->second, FinishReason::abort);
    return true;
  }

  /// Plans and runs one step and reports what came of it through the requests' callbacks. False if there was nothing to do.
  /// Where the ops run ahead, the next step is planned and launched before this one is waited for; a sequence that this one
  /// ends then costs a row whose token nobody gets.
  /// If the device fails, every request finishes with FinishReason::error and `failure` says why.
  bool step() {
    NVL_EXPECTS(!in_step_, "step", "called from a callback", "called by the engine's owner only");
    in_step_ = true;
    // What has finished may still be a row of the step in flight, which this call collects.
    retired_.clear();
    retired_.swap(finished_);
    bool worked = false;
    contain([&] { worked = run_step(); }, [&](const char* what) { fail(what); });
    in_step_ = false;
    return worked;
  }

  bool has_work() const noexcept { return !requests_.empty(); }

  /// Runs `requests` to the end, along with whatever else was submitted, and returns their results in order.
  std::vector<Completion> generate(std::vector<Request> requests) {
    NVL_EXPECTS(!in_step_, "generate", "called from a callback", "called by the engine's owner only");
    for (const Request& request : requests) { validate(request); }
    struct Results {
      std::vector<Completion> completions;
      std::size_t remaining;
    };
    // Shared: should a submit throw, the requests before it outlive this call.
    const auto results = std::make_shared<Results>(Results{std::vector<Completion>(requests.size()), requests.size()});
    for (std::size_t i = 0; i < requests.size(); ++i) {
      submit(std::move(requests[i]), {.on_token = {}, .on_finish = [results, i](const Completion& done) {
                                        --results->remaining;
                                        results->completions[i].finish_reason = FinishReason::error;  // if there is no memory
                                        results->completions[i] = done;
                                      }});
    }
    while (results->remaining > 0) { step(); }
    return std::move(results->completions);
  }

  /// Calls `visit(position, logits)` for each token of `ids` from `first` on, logits being a std::span<const float> of vocab_size
  /// that predicts the token after it. Takes free blocks of the KV cache while it runs and leaves the prefix cache alone.
  /// \throws InvalidArgument for ids out of range or more than the cache has room for.
  template <class Visit>
  void prompt_logits(std::span<const TokenId> ids, Visit&& visit, std::int32_t first = 0) {
    validate_ids(ids, config_, plan_);
    NVL_EXPECTS(first >= 0 && first < std::ssize(ids), "first position", first,
                "below the prompt's " + std::to_string(ids.size()) + " tokens");
    const std::size_t num_blocks = ceil_div(ids.size(), static_cast<std::size_t>(block_size));
    RequestState probe;
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
    return stats;
  }

  /// Empty, or why the engine died.
  const std::string& failure() const noexcept { return failure_; }
  const ModelConfig& config() const noexcept { return config_; }
  const EngineOptions& options() const noexcept { return options_; }
  const MemoryPlan& memory_plan() const noexcept { return plan_; }
  const Allocator& allocator() const noexcept { return allocator_; }

 private:
  using Ops = typename Attention::Ops;

  struct RankState {
    template <class Source>
    RankState(const ModelConfig& config, const Source& source, const StepLimits& limits, const DeviceOptions& options,
              std::int64_t num_bytes, typename Parallel::Context& context, const LoadProgress& progress)
        : device(options),
          runner(config, source, limits, reserved(device, num_bytes), context, progress) {}

    static Device& reserved(Device& device, std::int64_t num_bytes) {
      if constexpr (requires { device.reserve(num_bytes); }) { device.reserve(num_bytes); }
      return device;
    }

    Device device;
    ModelRunner<Attention, Parallel> runner;
    const StepOutput* output = nullptr;
  };

  /// A step that was launched and not yet collected.
  struct Flight {
    ScheduledBatch batch;
    StepBuffer buffer;
    bool is_launched = false;
  };

  static const ModelConfig& checked(const ModelConfig& config) {
    nvl::validate(config);
    if (!Attention::supports(config.head_dim)) {
      raise(Unsupported("head_dim " + std::to_string(config.head_dim) +
                        " is not one that this engine's attention backend is compiled for"));
    }
    return config;
  }

  static std::uint64_t random_seed() {
    std::random_device source;
    return (std::uint64_t{source()} << 32) | source();
  }

  bool run_step() {
    Flight& current = flights_[current_];
    Flight& next = flights_[1 - current_];
    if (!current.is_launched) {
      if (!launch(current)) {
        if (has_work()) { raise(Error("the scheduler has requests but planned nothing")); }
        return false;
      }
      if (!current.is_launched) { return true; }
    }
    if constexpr (Ops::runs_ahead) {
      if (may_run_ahead(current.batch)) { launch(next); }
    }
    parallel_.for_each_rank(
        [&](typename Parallel::Context&, std::uint32_t i) { ranks_[i]->output = &ranks_[i]->runner.collect(); });
    current.is_launched = false;
    current_ = 1 - current_;
    stats_.last_step = work_of(current.batch);
    commit(current.batch, *ranks_.front()->output);
    if constexpr (requires(Device& device) { device.idle_seconds(); }) {
      stats_.exposed_host_seconds = ranks_.front()->device.idle_seconds();
    }
    return true;
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
    note_admissions(batch);
    StepInput* in = nullptr;
    contain(
        [&] {
          StepInput& built = build_step_input(batch, block_size, next_step_, flight.buffer);
          reserve_outputs(batch);
          in = &built;
        },
        [&](const char* what) { drop(batch, what); });
    if (in == nullptr) { return true; }
    ++next_step_;
    parallel_.for_each_rank([&](typename Parallel::Context&, std::uint32_t i) { ranks_[i]->runner.launch(*in); });
    flight.is_launched = true;
    return true;
  }

  /// False if the scheduler threw and has changed nothing.
  bool plan(ScheduledBatch& batch) {
    std::string error;
    bool planned = false;
    contain(
        [&] {
          scheduler_.schedule(allocator_, batch);
          planned = true;
        },
        [&](const char* what) { error = what; });
    num_failed_plans_ = planned ? 0 : num_failed_plans_ + 1;
    const bool unchanged = batch.empty() && batch.preempted.empty() && batch.swapped.empty();
    if (!planned && (!unchanged || num_failed_plans_ == max_failed_plans)) { raise(Error("the scheduler threw: " + error)); }
    return planned;
  }

  /// `batch` will not be computed.
  void drop(const ScheduledBatch& batch, const char* what) {
    const bool has_others = !batch.copies.empty() || !batch.swap_out.empty() || !batch.swap_in.empty();
    if (has_others) { raise(Error(what)); }  // blocks of requests that are not in the batch have lost their content
    for (const ScheduledSeq& entry : batch.seqs) { finish(state_of(*entry.seq), FinishReason::error, what); }
  }

  /// Puts a placeholder behind each sequence that will get a token, so that the scheduler can plan with it before it is known.
  /// A sequence that the token brings to its full length leaves the scheduler now: nothing has to be waited for.
  void reserve_outputs(const ScheduledBatch& batch) {
    std::int32_t row = 0;
    for (const ScheduledSeq& entry : batch.seqs) {
      if (!entry.needs_sample) { continue; }
      RequestState& request = state_of(*entry.seq);
      request.tokens.push_back(sampled_in_row(row++));
      ++request.num_pending;
      if (request.num_tokens() >= request.max_total_tokens) { leave_scheduler(request); }
    }
  }

  /// True unless a row of the next step needs a token of `batch` on the host.
  static bool may_run_ahead(const ScheduledBatch& batch) {
    return std::none_of(batch.seqs.begin(), batch.seqs.end(), [](const ScheduledSeq& entry) {
      return entry.needs_sample && detail::needs_history(detail::request_of(*entry.seq).sampling);
    });
  }

  /// It is scheduled for the first time, or never will be.
  void leave_queue(const RequestState& request) noexcept {
    --stats_.num_queued;
    stats_.queued_tokens -= static_cast<std::uint64_t>(request.num_prompt);
  }

  void leave_scheduler(RequestState& request) {
    if (!request.is_scheduled) { return; }
    request.is_scheduled = false;
    scheduler_.remove(request);
  }

  void note_admissions(const ScheduledBatch& batch) {
    const auto now = RequestState::Clock::now();
    for (const ScheduledSeq& entry : batch.seqs) {
      RequestState& request = state_of(*entry.seq);
      if (request.was_scheduled) { continue; }
      request.was_scheduled = true;
      request.scheduled = now;
      leave_queue(request);
      stats_.prompt_tokens += static_cast<std::uint64_t>(request.num_prompt);
      request.num_cached_prompt = request.num_cached;
      stats_.cached_prompt_tokens += static_cast<std::uint64_t>(request.num_cached);
    }
    ++stats_.num_steps;
    stats_.scheduled_seqs += batch.seqs.size();
    stats_.computed_tokens += static_cast<std::uint64_t>(batch.num_tokens);
  }

  /// Puts what was sampled in its place, publishes full blocks, applies the stop rules.
  void commit(const ScheduledBatch& batch, const StepOutput& output) {
    const auto now = RequestState::Clock::now();
    std::size_t row = 0;
    for (const ScheduledSeq& entry : batch.seqs) {
      RequestState& request = state_of(*entry.seq);
      const SampledToken* sampled = entry.needs_sample ? &output.sampled[row++] : nullptr;
      if (request.status == SeqStatus::finished) { continue; }  // it ended while this step ran
      contain([&] { commit(request, entry.first_position + entry.num_tokens, sampled, now); },
              [&](const char* what) {
                if (request.status != SeqStatus::finished) { finish(request, FinishReason::error, what); }
              });
    }
  }

  /// The first `end` tokens of `request` are computed. `sampled`: the one after them, or nullptr
  void commit(RequestState& request, std::int32_t end, const SampledToken* sampled, RequestState::Clock::time_point now) {
    if (sampled != nullptr && !sampled->finite) {
      forget_blocks(request);
      finish(request, FinishReason::error, "the model's logits are not finite (NaN or infinity)");
      return;
    }
    if (sampled != nullptr) {
      request.tokens[static_cast<std::size_t>(end)] = sampled->token;
      --request.num_pending;
    }
    // A sequence that was preempted meanwhile has less.
    publish_full_blocks(request, allocator_, block_size, std::min(end, request.num_computed));
    if (sampled != nullptr) { accept(request, *sampled, end + 1, now); }
  }

  /// `num_known`: [tokens] of the sequence up to `sampled`
  void accept(RequestState& request, const SampledToken& sampled, std::int32_t num_known, RequestState::Clock::time_point now) {
    const std::int32_t num_output = num_known - request.num_prompt;
    if (num_output == 1) { request.first_token = now; }
    request.last_token = now;
    ++stats_.generated_tokens;
    if (request.sampling.logprobs) { request.logprobs.push_back(sampled); }

    const bool at_stop_id = std::find(request.stop_ids.begin(), request.stop_ids.end(), sampled.token) != request.stop_ids.end();
    const bool at_length = num_known >= request.max_total_tokens;
    std::string piece;
    bool at_stop_string = false;
    if (request.text_stream) {
      TextStream& text = *request.text_stream;
      if (!at_stop_id) { piece = text.push(sampled.token, num_output >= request.sampling.min_tokens); }
      if (at_stop_id || at_length) { piece += text.finish(); }
      at_stop_string = text.stopped();
      request.text += piece;
    }
    if (!report_token(request, sampled, piece) || request.status == SeqStatus::finished) { return; }
    if (at_stop_id || at_stop_string) {
      if (at_stop_id) { request.stop_token = sampled.token; }
      finish(request, FinishReason::stop);
    } else if (at_length) {
      finish(request, FinishReason::length);
    }
  }

  /// False if the callback threw, which has ended the request.
  bool report_token(RequestState& request, const SampledToken& sampled, const std::string& piece) {
    if (!request.callbacks.on_token) { return true; }
    bool ok = true;
    contain(
        [&] {
          request.callbacks.on_token({request.request, sampled.token, piece, &sampled});
        },
        [&](const char* what) {
          ok = false;
          if (request.status != SeqStatus::finished) {
            finish(request, FinishReason::error, std::string("on_token threw: ") + what);
          }
        });
    return ok;
  }

  /// The one way out of the engine. Needs no memory: without it the result is an error that says so.
  void finish(RequestState& request, FinishReason reason, std::string_view error = {}) {
    leave_scheduler(request);
    if (!request.was_scheduled) { leave_queue(request); }
    release_blocks(request, allocator_);
    request.tokens.resize(request.tokens.size() - static_cast<std::size_t>(request.num_pending));
    request.num_pending = 0;
    request.status = SeqStatus::finished;
    request.finish_reason = reason;
    auto node = requests_.extract(request.request);
    finished_.push_back(std::move(node.mapped()));  // kept for two steps, those that may still hold a reference
    Completion done;
    contain([&] { done = completion_of(request, error); },
            [&](const char*) {
              done = Completion();
              done.request = request.request;
              done.finish_reason = FinishReason::error;
              done.error = "out of memory";  // short enough to need none
            });
    count_finished(request, done);
    if (request.callbacks.on_finish) {
      contain([&] { request.callbacks.on_finish(done); },
              [](const char*) {});  // the request has ended already: nothing is left to do
    }
  }

  void count_finished(const RequestState& request, const Completion& done) noexcept {
    ++stats_.num_finished[static_cast<std::size_t>(done.finish_reason)];
    stats_.e2e.add(done.timings.e2e);
    if (request.was_scheduled) { stats_.queue.add(done.timings.queue); }
    if (request.num_output() > 0) { stats_.ttft.add(done.timings.ttft); }
    if (request.num_output() > 1) { stats_.tpot.add(done.timings.tpot); }
  }

  /// So that `list` takes one more than `size` without asking for memory.
  template <class T>
  static void reserve_for_one_more(std::vector<T>& list, std::size_t size) {
    if (list.capacity() <= size) { list.reserve(2 * size + 16); }
  }

  void forget_blocks(RequestState& request) {
    if constexpr (PrefixCachingAllocator<Allocator>) {
      for (const BlockId block : request.block_table) { allocator_.forget(block); }
    }
  }

  void fail(const char* what) {
    contain([&] { failure_ = what; }, [&](const char*) { failure_ = "out of memory"; });
    for (Flight& flight : flights_) { flight.is_launched = false; }
    finish_all(FinishReason::error, failure_);
  }

  void finish_all(FinishReason reason, std::string_view error) {
    while (!requests_.empty()) { finish(*requests_.begin()->second, reason, error); }
  }

  /// Computes `count` tokens of `probe` and returns the logits of the first `num_rows` of them, [num_rows, vocab].
  std::span<const float> run_probe(RequestState& probe, std::int32_t first, std::int32_t count, std::int32_t num_rows) {
    ScheduledBatch batch;
    batch.seqs.push_back({.seq = &probe, .first_position = first, .num_tokens = count, .needs_sample = false});
    batch.num_tokens = count;
    StepInput& in = build_step_input(batch, block_size, next_step_++, probe_buffer_, num_rows);
    std::iota(in.sample_rows.begin(), in.sample_rows.end(), 0);
    std::span<const float> rows;
    parallel_.for_each_rank([&](typename Parallel::Context&, std::uint32_t i) {
      const std::span<const float> logits = ranks_[i]->runner.logits(in);
      if (i == 0) { rows = logits; }
    });
    return rows;
  }

  static RequestState& state_of(Sequence& seq) noexcept { return static_cast<RequestState&>(seq); }

  const ModelConfig config_;
  const EngineOptions options_;
  const MemoryPlan plan_;
  Allocator allocator_;
  Scheduler scheduler_;
  Parallel parallel_;
  std::vector<std::unique_ptr<RankState>> ranks_;
  std::mt19937_64 random_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;  // not finished
  std::vector<std::unique_ptr<RequestState>> finished_;                    // since the last step began
  std::vector<std::unique_ptr<RequestState>> retired_;                     // before that
  std::array<Flight, 2> flights_;                                          // the oldest step not yet collected, and the next
  std::size_t current_ = 0;
  StepBuffer probe_buffer_;
  EngineStats stats_;
  std::string failure_;
  std::uint64_t next_id_ = 0;
  std::uint64_t next_step_ = 0;
  static constexpr int max_failed_plans = 3;
  int num_failed_plans_ = 0;  // in a row
  bool in_step_ = false;
};

}  // namespace nvl::inline NVL_ABI
