#pragma once
/// The requests of an engine, each from its admission to its one end: what becomes of the tokens that steps sample.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/accept_token.hpp>
#include <nvl/engine/beam_search.hpp>
#include <nvl/engine/block_lease.hpp>
#include <nvl/engine/choices.hpp>
#include <nvl/engine/completion.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/engine/step_builder.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A request whose prompt is computed and whose first token is chosen, for another engine to go on with.
template <BlockAllocator A>
struct ComputedPrompt {
  std::unique_ptr<RequestState> request;  // owns no blocks
  BlockLease<A> blocks;                   // with K and V of the prompt
};

/// Owns the requests that have not ended, and their choices, which a scheduler and steps in flight point at. Called by the
/// engine's thread, before and after each step:
///
///     schedule -> note_admissions -> (build the step) -> reserve_outputs -> launch ... collect -> commit
///
/// A request has one end, `complete`, whichever way it comes there: all its choices ended, or `finish` ended them.
template <class Scheduler, BlockAllocator Allocator>
class ActiveRequests {
 public:
  /// All of them outlive this; `stats` gets what is counted of requests.
  ActiveRequests(Scheduler& scheduler, Allocator& allocator, EngineStats& stats, const ModelConfig& config,
                 const EngineOptions& options, const MemoryPlan& plan)
      : scheduler_(scheduler),
        allocator_(allocator),
        stats_(stats),
        config_(config),
        options_(options),
        plan_(plan),
        block_size_(plan.block_size),
        random_(options.seed ? *options.seed : random_seed()) {}

  ActiveRequests(const ActiveRequests&) = delete;
  ActiveRequests& operator=(const ActiveRequests&) = delete;

  bool empty() const noexcept { return requests_.empty(); }

  /// Queues a request that is valid. Throws if the scheduler does or without memory; then nothing has changed.
  /// \param total_elsewhere > 0: it has one choice, and leaves when its prompt is computed, for another engine that will bring it
  ///        to so many tokens
  RequestId add(Request request, RequestCallbacks callbacks, std::int32_t total_elsewhere = 0) {
    reserve_for_end();
    reserve_for_one_more(computed_, computed_.size() + requests_.size());
    PrefixId prefix_root;
    std::string salt_elsewhere;
    if (total_elsewhere > 0) { salt_elsewhere = request.cache_salt; }
    if constexpr (PrefixCachingAllocator<Allocator>) { prefix_root = allocator_.root(request.cache_salt); }
    auto state = make_request(std::move(request), std::move(callbacks), config_, options_, plan_);
    const RequestId id = state->id = RequestId{next_id_};
    state->seed = state->sampling.seed ? *state->sampling.seed : random_();
    const std::size_t num_choices = state->num_choices();
    ChoiceState& first = *state->choices.front();
    first.id = SeqId{next_seq_id_};
    first.request = id;
    first.prefix_root = prefix_root;
    if (total_elsewhere > 0) {
      state->total_elsewhere = total_elsewhere;
      first.keeps_all_blocks = true;
      state->salt_elsewhere = std::move(salt_elsewhere);
      first.max_total_tokens = first.num_prompt + 1;  // here
    }
    requests_.emplace(id, std::move(state));
    std::string error;
    contain([&] { scheduler_.add(first); }, [&](const char* what) { error = what; });
    first.is_scheduled = error.empty();
    if (!error.empty()) {
      requests_.erase(id);
      raise(Error("the scheduler refused the request: " + error));
    }
    ++next_id_;
    next_seq_id_ += num_choices;
    ++stats_.num_submitted;
    ++stats_.num_queued;
    stats_.queued_tokens += static_cast<std::uint64_t>(first.num_prompt);
    return id;
  }

  /// False if it is unknown or has ended.
  bool abort(RequestId id) {
    const auto found = requests_.find(id);
    if (found != requests_.end()) {
      finish(*found->second, FinishReason::abort);
      return true;
    }
    const auto computed = std::ranges::find(computed_, id, [](const auto& prompt) { return prompt.request->id; });
    if (computed == computed_.end()) { return false; }
    ComputedPrompt<Allocator> prompt = std::move(*computed);
    computed_.erase(computed);
    end_apart(std::move(prompt.request), FinishReason::abort, {});
    return true;
  }

  void finish_all(FinishReason reason, std::string_view error) {
    while (!requests_.empty()) { finish(*requests_.begin()->second, reason, error); }
    while (!computed_.empty()) { end_apart(take_oldest_computed().request, reason, error); }
  }

  /// Ends the requests of a step that will not be computed.
  void fail(const ScheduledBatch& batch, std::string_view what) {
    for (const ScheduledSeq& entry : batch.seqs) {
      RequestState& request = *choice_of(*entry.seq).owner;
      if (!request.has_ended()) { finish(request, FinishReason::error, what); }
    }
  }

  /// What has ended may still be a row of the step in flight, which the next one collects.
  void begin_step() noexcept {
    retired_.clear();
    retired_.swap(finished_);
  }

  void note_admissions(const ScheduledBatch& batch) {
    const auto now = RequestState::Clock::now();
    for (const ScheduledSeq& entry : batch.seqs) {
      const ChoiceState& choice = choice_of(*entry.seq);
      stats_.kv_slots_allocated += choice.block_table.size() * static_cast<std::size_t>(block_size_);
      stats_.kv_slots_used += static_cast<std::uint64_t>(choice.num_computed);
      RequestState& request = *choice.owner;
      if (request.was_scheduled) { continue; }
      request.was_scheduled = true;
      request.scheduled = now;
      leave_queue(request);
      stats_.prompt_tokens += static_cast<std::uint64_t>(choice.num_prompt);
      request.num_cached_prompt = choice.num_cached;
      stats_.cached_prompt_tokens += static_cast<std::uint64_t>(choice.num_cached);
    }
    ++stats_.num_steps;
    stats_.scheduled_seqs += batch.seqs.size();
    stats_.computed_tokens += static_cast<std::uint64_t>(batch.num_tokens);
  }

  /// Puts a placeholder behind each sequence that will get a token, so that the scheduler can plan with it before it is known.
  /// A sequence that the token brings to its full length leaves the scheduler now: nothing has to be waited for.
  /// \param holds no step may name the placeholder: the sequence waits for the commit
  void reserve_outputs(const ScheduledBatch& batch, bool holds) {
    std::int32_t row = 0;
    for (const ScheduledSeq& entry : batch.seqs) {
      if (!entry.needs_sample) { continue; }
      ChoiceState& choice = choice_of(*entry.seq);
      choice.tokens.push_back(sampled_in_row(row));
      row += 1 + choice.num_forks;
      ++choice.num_pending;
      choice.num_held = holds ? 1 : 0;
      if (choice.num_tokens() >= choice.max_total_tokens) { leave_scheduler(choice); }
    }
  }

  /// True unless a row of the next step needs a token of `batch` on the host.
  static bool may_run_ahead(const ScheduledBatch& batch) {
    return std::none_of(batch.seqs.begin(), batch.seqs.end(), [](const ScheduledSeq& entry) {
      const RequestState& request = *choice_of(*entry.seq).owner;
      return entry.needs_sample && (request.beams || request.has_forks_pending() || detail::needs_history(request.sampling));
    });
  }

  /// Puts what was sampled in its place, publishes full blocks, applies the stop rules.
  void commit(const ScheduledBatch& batch, const StepOutput& output) {
    const auto now = RequestState::Clock::now();
    auto rows = std::span(output.sampled);
    for (const ScheduledSeq& entry : batch.seqs) {
      ChoiceState& choice = choice_of(*entry.seq);
      const auto num_rows = static_cast<std::size_t>(entry.needs_sample ? 1 + choice.num_forks : 0);
      const auto sampled = rows.first(num_rows);
      rows = rows.subspan(num_rows);
      if (choice.status == SeqStatus::finished) { continue; }  // it ended while this step ran
      contain([&] { commit(choice, entry.first_position + entry.num_tokens, sampled, now); },
              [&](const char* what) {
                if (!choice.owner->has_ended()) { finish(*choice.owner, FinishReason::error, what); }
              });
    }
    // What has nothing to compute is not for a scheduler.
    for (const ScheduledSeq& entry : batch.seqs) {
      ChoiceState& choice = choice_of(*entry.seq);
      if (choice.owner->beams && choice.num_uncomputed() == 0) { leave_scheduler(choice); }
    }
  }

  /// Takes the blocks of beams that wait for others. False: there are none.
  bool release_waiting_beams() {
    bool any = false;
    for (const auto& [id, request] : requests_) {
      for (const auto& choice : request->choices) {
        if (!request->beams || choice->is_scheduled || choice->block_table.empty()) { continue; }
        release_blocks(*choice, allocator_);
        any = true;
      }
    }
    return any;
  }

  // --- Requests that move between engines ---

  /// Those that have left and wait to be taken. Steps that wrote their blocks have been collected.
  std::size_t num_computed() const noexcept { return computed_.size(); }
  RequestState& oldest_computed() noexcept { return *computed_.front().request; }
  ComputedPrompt<Allocator> take_oldest_computed() noexcept {
    ComputedPrompt<Allocator> prompt = std::move(computed_.front());
    computed_.erase(computed_.begin());
    return prompt;
  }

  /// Gives `request`, whose prompt another engine has computed, the blocks of its prompt and its first token; those that the
  /// cache knows are filled already (num_published of its sequence). False: not now, as the running sequences need what is free.
  bool reserve(RequestState& request) {
    ChoiceState& choice = *request.choices.front();
    const std::uint32_t num_rivals = scheduler_.num_running() + num_reserved_;
    // Sequences that lost their blocks go first.
    if (scheduler_.num_waiting() > 0 || num_rivals >= static_cast<std::uint32_t>(options_.max_num_seqs)) { return false; }
    if constexpr (PrefixCachingAllocator<Allocator>) {
      choice.prefix_root = choice.published_prefix = allocator_.root(request.salt_elsewhere);
    }
    if (!try_admit(choice, allocator_, block_size_, num_rivals)) { return false; }
    ++num_reserved_;
    return true;
  }

  /// The blocks that `reserve` gave to `request`, which will not run.
  BlockLease<Allocator> cancel(RequestState& request) noexcept {
    --num_reserved_;
    return take_blocks(*request.choices.front());
  }

  /// `request`, whose blocks are filled, runs from the next step on. False: there is no place for it now, and nothing changed.
  /// Throws if the scheduler does or without memory, and then nothing changed either.
  bool adopt(std::unique_ptr<RequestState>& request)
    requires ForkingScheduler<Scheduler, Allocator>
  {
    reserve_for_end();
    ChoiceState& choice = *request->choices.front();
    const auto place = requests_.try_emplace(request->id).first;
    std::string error;
    contain(
        [&] {
          choice.num_computed = choice.num_prompt;
          choice.is_scheduled = scheduler_.try_add_running(choice);
        },
        [&](const char* what) { error = what; });
    if (!choice.is_scheduled) {
      requests_.erase(place);
      if (!error.empty()) { raise(Error("the scheduler refused a computed prompt: " + error)); }
      return false;
    }
    --num_reserved_;
    request->total_elsewhere = 0;
    choice.keeps_all_blocks = false;
    place->second = std::move(request);
    contain([&] { publish_full_blocks(choice, allocator_, block_size_); },
            [&](const char* what) { finish(*choice.owner, FinishReason::error, what); });
    return true;
  }

  /// Ends a request that is of no engine now. Needs no memory.
  void end_apart(std::unique_ptr<RequestState> request, FinishReason reason, std::string_view error) {
    ChoiceState& choice = *request->choices.front();
    if (!choice.block_table.empty()) { --num_reserved_; }
    retire(choice, reason);
    request->num_live = 0;
    report_end(*request, reason, error);
  }

  /// Blocks are kept from the scheduler's sequences.
  bool withholds_blocks() const noexcept { return num_leased_ + num_reserved_ > 0; }

 private:
  static std::uint64_t random_seed() {
    std::random_device source;
    return (std::uint64_t{source()} << 32) | source();
  }

  /// It is scheduled for the first time, or never will be.
  void leave_queue(const RequestState& request) noexcept {
    --stats_.num_queued;
    stats_.queued_tokens -= static_cast<std::uint64_t>(request.choices.front()->num_prompt);
  }

  void leave_scheduler(ChoiceState& choice) {
    if (!choice.is_scheduled) { return; }
    choice.is_scheduled = false;
    scheduler_.remove(choice);
  }

  /// `choice` goes on with the blocks that it has; without them if the scheduler has no place for it now.
  void enter_scheduler(ChoiceState& choice) {
    if constexpr (ForkingScheduler<Scheduler, Allocator>) {
      choice.is_scheduled = !choice.block_table.empty() && scheduler_.try_add_running(choice);
      if (choice.is_scheduled) { return; }
    }
    release_blocks(choice, allocator_);
    choice.status = SeqStatus::waiting;
    scheduler_.add(choice);
    choice.is_scheduled = true;
  }

  /// The first `end` tokens of `choice` are computed. `rows`: the one after them, and the first tokens of choices that begin;
  /// empty if none was sampled
  void commit(ChoiceState& choice, std::int32_t end, std::span<const SampledToken> rows, RequestState::Clock::time_point now) {
    RequestState& request = *choice.owner;
    if (!rows.empty() && !rows.front().finite) {
      forget_blocks(choice);
      finish(request, FinishReason::error, "the model's logits are not finite (NaN or infinity)");
      return;
    }
    if (!rows.empty()) {
      choice.tokens[static_cast<std::size_t>(end)] = rows.front().token;
      choice.num_held = 0;
      --choice.num_pending;
    }
    // A sequence that was preempted meanwhile has less.
    publish_full_blocks(choice, allocator_, block_size_, std::min(end, choice.num_computed));
    if (rows.empty()) { return; }
    if (end == choice.num_prompt && request.choices.size() == 1) { request.first_token = now; }
    request.last_token = now;
    stats_.generated_tokens += rows.size();
    if (request.beams) {
      choice.tokens.pop_back();  // which tokens follow is known when all beams have been computed
      advance_beam(choice, rows.front().top_logprobs);
      return;
    }
    if (request.total_elsewhere > 0) {
      choice.max_total_tokens = request.total_elsewhere;  // it has left the scheduler
      accept(choice, rows.front(), end + 1);
      if (choice.status != SeqStatus::finished) { send_away(request); }
      return;
    }
    const bool has_forks = request.has_forks_pending();
    if (has_forks) { add_forks(choice, rows.subspan(1)); }  // before the first may end and give up its blocks
    accept(choice, rows.front(), end + 1);
    if (has_forks) { start_forks(request, rows, end + 1); }
  }

  void send_away(RequestState& request) noexcept {
    auto node = requests_.extract(request.id);
    computed_.push_back({std::move(node.mapped()), take_blocks(*request.choices.front())});
  }

  BlockLease<Allocator> take_blocks(ChoiceState& choice) noexcept {
    BlockLease<Allocator> lease(allocator_, num_leased_, std::exchange(choice.block_table, {}));
    choice.num_computed = choice.num_published = 0;
    choice.status = SeqStatus::waiting;
    return lease;
  }

  /// The prompt of `first` is computed. The other choices begin: those of `rows` with a token and the blocks of the prompt.
  void add_forks(const ChoiceState& first, std::span<const SampledToken> rows) {
    RequestState& request = *first.owner;
    while (request.has_forks_pending()) {
      ChoiceState& choice = add_choice(request, options_.token_text.get());
      if (choice.index > rows.size()) { continue; }
      choice.tokens.push_back(rows[choice.index - 1].token);
      if constexpr (SharingAllocator<Allocator>) { fork_blocks(first, choice, allocator_, block_size_); }
    }
  }

  /// \param rows of all choices that have a token
  void start_forks(RequestState& request, std::span<const SampledToken> rows, std::int32_t num_known) {
    for (std::size_t i = 1; i < request.choices.size(); ++i) {
      ChoiceState& choice = *request.choices[i];
      if (i < rows.size() && choice.status != SeqStatus::finished) { accept(choice, rows[i], num_known); }
      if (choice.status != SeqStatus::finished) { enter_scheduler(choice); }
    }
  }

  /// `next`: the most likely tokens after those of `beam`
  void advance_beam(ChoiceState& beam, std::span<const TokenLogprob> next) {
    RequestState& request = *beam.owner;
    request.beams->offer(beam.index, next);
    if (!request.beams->is_round_complete()) { return; }
    const auto extensions = request.beams->advance();
    if (extensions.empty()) {
      end_beams(request);
      return;
    }
    if constexpr (SharingAllocator<Allocator>) {
      extend_beams(request, extensions, allocator_, block_size_, options_.token_text.get());
    }
    for (const auto& choice : request.choices) {
      if (choice->block_table.empty()) { leave_scheduler(*choice); }
      if (choice->index != ChoiceState::no_beam && !choice->is_scheduled) { enter_scheduler(*choice); }
    }
  }

  /// The choices become the hypotheses that the search has found.
  void end_beams(RequestState& request) {
    const std::vector<BeamSearch::Hypothesis> found = request.beams->hypotheses();
    while (request.choices.size() < request.num_choices()) { add_choice(request, options_.token_text.get()); }
    for (std::size_t i = 0; i < request.choices.size(); ++i) {
      ChoiceState& choice = *request.choices[i];
      choice.index = static_cast<std::uint32_t>(i);
      choice.tokens.resize(static_cast<std::size_t>(choice.num_prompt));
      FinishReason reason = FinishReason::stop;
      if (i < found.size()) {
        for (const TokenId token : found[i].tokens) {
          SampledToken known;
          known.token = token;
          choice.tokens.push_back(token);
          reason = accept_token(choice, known, choice.num_tokens()).reason;
        }
        choice.cumulative_logprob = found[i].logprob;
      }
      end(choice, reason);
    }
  }

  /// `num_known`: [tokens] of the choice up to `sampled`
  void accept(ChoiceState& choice, const SampledToken& sampled, std::int32_t num_known) {
    const AcceptedToken accepted = accept_token(choice, sampled, num_known);
    report_token(choice, sampled, accepted.piece);
    if (accepted.reason != FinishReason::none && choice.status != SeqStatus::finished) { end(choice, accepted.reason); }
  }

  /// A callback that throws ends the request.
  void report_token(ChoiceState& choice, const SampledToken& sampled, const std::string& piece) {
    RequestState& request = *choice.owner;
    if (!request.callbacks.on_token || request.sampling.has_rivals()) { return; }
    contain(
        [&] {
          request.callbacks.on_token({request.id, sampled.token, piece, &sampled, choice.index});
        },
        [&](const char* what) {
          if (!request.has_ended()) { finish(request, FinishReason::error, std::string("on_token threw: ") + what); }
        });
  }

  /// One choice ends, and with the last of them the request.
  void end(ChoiceState& choice, FinishReason reason) {
    retire(choice, reason);
    if (--choice.owner->num_live == 0) { complete(*choice.owner, reason, {}); }
  }

  /// Ends all choices that have not ended. Needs no memory: without it the result is an error that says so.
  void finish(RequestState& request, FinishReason reason, std::string_view error = {}) {
    for (const auto& choice : request.choices) {
      if (choice->status != SeqStatus::finished) { retire(*choice, reason); }
    }
    request.num_live = 0;
    complete(request, reason, error);
  }

  void retire(ChoiceState& choice, FinishReason reason) {
    leave_scheduler(choice);
    release_all_blocks(choice, allocator_);
    choice.tokens.resize(choice.tokens.size() - static_cast<std::size_t>(choice.num_pending));
    choice.num_pending = choice.num_held = 0;
    choice.status = SeqStatus::finished;
    choice.finish_reason = reason;
  }

  /// The one way out of the engine.
  void complete(RequestState& request, FinishReason reason, std::string_view error) {
    if (!request.was_scheduled) { leave_queue(request); }
    auto node = requests_.extract(request.id);
    finished_.push_back(std::move(node.mapped()));  // kept for two steps, those that may still hold a reference
    report_end(request, reason, error);
  }

  void report_end(RequestState& request, FinishReason reason, std::string_view error) {
    Completion done;
    contain([&] { done = completion_of(request, reason, error); },
            [&](const char*) {
              done = Completion();
              done.request = request.id;
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
    if (done.timings.ttft > 0) { stats_.ttft.add(done.timings.ttft); }
    if (done.timings.tpot > 0) { stats_.tpot.add(done.timings.tpot); }
  }

  /// From here to the end of one more request nothing that frees its blocks needs memory.
  void reserve_for_end() {
    reserve_for_one_more(finished_, finished_.size() + requests_.size());
    reserve_for_one_more(retired_, requests_.size());
  }

  /// So that `list` takes one more than `size` without asking for memory.
  template <class T>
  static void reserve_for_one_more(std::vector<T>& list, std::size_t size) {
    if (list.capacity() <= size) { list.reserve(2 * size + 16); }
  }

  void forget_blocks(ChoiceState& choice) {
    if constexpr (PrefixCachingAllocator<Allocator>) {
      for (const BlockId block : choice.owned_blocks()) { allocator_.forget(block); }
    }
  }

  Scheduler& scheduler_;
  Allocator& allocator_;
  EngineStats& stats_;
  const ModelConfig& config_;
  const EngineOptions& options_;
  const MemoryPlan& plan_;
  const std::int32_t block_size_;
  std::mt19937_64 random_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;  // not ended
  std::vector<std::unique_ptr<RequestState>> finished_;                    // since the last step began
  std::vector<std::unique_ptr<RequestState>> retired_;                     // before that
  std::uint32_t num_leased_ = 0;                                           // [blocks] under a lease
  std::uint32_t num_reserved_ = 0;                                         // requests that have blocks and are not adopted yet
  std::vector<ComputedPrompt<Allocator>> computed_;                        // that nobody has taken yet
  std::uint64_t next_id_ = 0;
  std::uint64_t next_seq_id_ = 0;
};

}  // namespace nvl::inline NVL_ABI
