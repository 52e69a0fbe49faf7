#pragma once
/// Two engines of one process as one: the first computes prompts, the second goes on with them. Long prompts then hold up nobody's
/// next token (Zhong et al. 2024, DistServe, arXiv:2401.09670; Patel et al. 2024, Splitwise, arXiv:2311.18677).
///
/// A prompt's way: the prefill engine computes it and chooses its first token. Its blocks stay there under a lease. When the decode
/// engine has room it takes blocks of its own, those that its prefix cache knows among them, and a KvTransfer fills the rest beside
/// the steps of both. Then the lease ends and the request runs on in the decode engine.

#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/model_config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/engine/active_requests.hpp>
#include <nvl/engine/block_lease.hpp>
#include <nvl/engine/engine_options.hpp>
#include <nvl/engine/engine_stats.hpp>
#include <nvl/engine/generate.hpp>
#include <nvl/engine/request.hpp>
#include <nvl/engine/request_rules.hpp>
#include <nvl/engine/request_state.hpp>
#include <nvl/model/weights.hpp>
#include <nvl/sched/scheduler_policy.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// The two share limits and the TokenText, those of `decode`. On one GPU each needs a size of its own: kv_cache_memory_bytes,
/// num_blocks, or a device.memory_utilization of the second that counts what the first holds.
struct DisaggregatedOptions {
  EngineOptions prefill{};
  EngineOptions decode{};
  /// Computed prompts that may wait for room in the decode engine; with so many the prefill engine stops.
  std::int32_t max_waiting_prompts = 4;
};

/// What has gone from one engine to the other.
struct HandoverStats {
  std::uint64_t num_prompts = 0;        // that the decode engine has taken over
  std::uint64_t num_copied_blocks = 0;  // for them
  std::uint64_t num_cached_blocks = 0;  // that the decode engine's cache had, so that they were not copied
  std::uint32_t num_waiting = 0;        // prompts that wait for room, now
  std::uint32_t num_moving = 0;         // whose blocks are being copied, now
};

/// Used as Engine is, by one thread, or by AsyncEngine; with the same results, bit for bit on the CPU. Every request has one end,
/// whichever engine it is in, and whichever of them fails: what the prefill engine has not handed over ends with its failure, all
/// else with the decode engine's.
/// \tparam Prefill, Decode engines over the same Element, block size and device type
template <class Prefill, class Decode, class Transfer = HostKvTransfer<typename Prefill::Element>>
class DisaggregatedEngine {
  static_assert(require_kv_transfer<Transfer>());
  static_assert(std::is_same_v<typename Prefill::Element, typename Decode::Element>,
                "nvl::DisaggregatedEngine: both engines must have the same Element");
  static_assert(std::is_same_v<typename Prefill::Element, typename Transfer::Element>,
                "nvl::DisaggregatedEngine: the transfer must be for the Element of the engines");
  static_assert(std::is_same_v<typename Prefill::Device, typename Decode::Device>,
                "nvl::DisaggregatedEngine: both engines must be for the same kind of device");
  static_assert(std::is_same_v<typename Prefill::Device, typename Transfer::Device>,
                "nvl::DisaggregatedEngine: the transfer must be for the device of the engines: HostKvTransfer or CudaKvTransfer");
  static_assert(
      [] {
        if constexpr (requires { Transfer::waits_for_steps; }) { return Transfer::waits_for_steps || !Decode::runs_ahead; }
        return true;
      }(),
      "nvl::DisaggregatedEngine: the decode engine's ops run ahead, so its blocks may still be written by a step in flight: take "
      "a "
      "transfer that waits for it");
  static_assert(Prefill::block_size == Decode::block_size,
                "nvl::DisaggregatedEngine: both engines must have the same block size: change one attention backend");
  static_assert(!Prefill::has_remote_ranks && !Decode::has_remote_ranks,
                "nvl::DisaggregatedEngine: caches are moved within one process: use strategies without AcrossProcesses");
  static_assert(ForkingScheduler<typename Decode::SchedulerType, typename Decode::AllocatorType>,
                "nvl::DisaggregatedEngine: the decode engine's scheduler must take sequences that come with blocks "
                "(try_add_running, see nvl/sched/scheduler_policy.hpp)");

 public:
  static constexpr std::int32_t block_size = Prefill::block_size;  // [tokens]

  /// Makes both engines from the same weights.
  /// \throws what Engine throws; InvalidArgument for an option out of range, or engines whose caches differ
  template <WeightSource Source>
  DisaggregatedEngine(const ModelConfig& config, const Source& source, const DisaggregatedOptions& options = {},
                      const LoadProgress& progress = {})
      : max_waiting_prompts_(checked(options).max_waiting_prompts),
        prefill_(config, source, prefill_options(options), half(progress, 0.0)),
        decode_(config, source, options.decode, half(progress, 0.5)) {
    NVL_EXPECTS(prefill_.num_ranks() == decode_.num_ranks(), "ranks of the decode engine", decode_.num_ranks(),
                "as many as of the prefill engine (" + std::to_string(prefill_.num_ranks()) + ")");
    for (std::uint32_t rank = 0; rank < prefill_.num_ranks(); ++rank) {
      transfers_.push_back(std::make_unique<Transfer>(prefill_.device(rank), prefill_.kv_cache(rank), decode_.device(rank),
                                                      decode_.kv_cache(rank)));
    }
    num_started_.resize(transfers_.size());
    num_done_.resize(transfers_.size());
  }

  DisaggregatedEngine(const DisaggregatedEngine&) = delete;
  DisaggregatedEngine& operator=(const DisaggregatedEngine&) = delete;

  /// Requests that have not finished are aborted: each still gets its on_finish.
  ~DisaggregatedEngine() { end_all(FinishReason::abort, "it is closing"); }

  /// Throws what `submit` would for a request that can never run, and does nothing else. Any thread may call it at any time.
  void validate(const Request& request) const {
    prefill_.validate_prompt(request);
    decode_.validate(request);
  }

  /// Queues a request; it runs in `step`.
  /// \throws InvalidArgument that names the parameter, its value and the rule, also for a request of several choices; Error if an
  ///         engine has failed. Then nothing changed.
  RequestId submit(Request request, RequestCallbacks callbacks = {}) {
    if (!failure_.empty()) { raise(Error("the engine has failed and takes no request: " + failure_)); }
    decode_.validate(request);
    const std::int32_t max_total_tokens = total_tokens(request, decode_.memory_plan());
    return prefill_.submit_prompt(std::move(request), std::move(callbacks), max_total_tokens);
  }

  /// Ends a request wherever it is; its on_finish is called before this returns. False if it is unknown or has finished. Blocks
  /// that are being copied are free when the copy is done.
  bool abort(RequestId id) {
    if (prefill_.abort(id)) { return true; }
    for (Moving& one : moving_) {
      if (one.request && one.request->id == id) {
        end(one, FinishReason::abort, {});
        return true;
      }
    }
    return decode_.abort(id);
  }

  /// Hands over what can be, and runs a step of each engine that has work; the prefill engine stops while max_waiting_prompts
  /// wait. False if there was nothing to do.
  bool step() {
    NVL_EXPECTS(!in_step_, "step", "called from a callback", "called by the engine's owner only");
    in_step_ = true;
    bool worked = false;
    contain([&] { worked = run_step(); }, [&](const char* what) { end_all(FinishReason::error, what); });
    in_step_ = false;
    return worked;
  }

  /// True also while blocks of a request that has ended are being copied.
  bool has_work() const noexcept {
    return prefill_.has_work() || prefill_.num_computed() > 0 || !moving_.empty() || decode_.has_work();
  }

  /// Runs `requests` to the end, along with whatever else was submitted, and returns their results in order.
  std::vector<Completion> generate(std::vector<Request> requests) {
    NVL_EXPECTS(!in_step_, "generate", "called from a callback", "called by the engine's owner only");
    return detail::generate(*this, std::move(requests));
  }

  /// Of both engines together.
  EngineStats stats() const { return combined(prefill_.stats(), decode_.stats()); }
  HandoverStats handover_stats() const {
    HandoverStats stats = stats_;
    stats.num_waiting = static_cast<std::uint32_t>(prefill_.num_computed());
    stats.num_moving = static_cast<std::uint32_t>(moving_.size());
    return stats;
  }

  /// Empty, or why an engine died. The decode engine may still be finishing what it has.
  const std::string& failure() const noexcept { return failure_; }
  const ModelConfig& config() const noexcept { return decode_.config(); }
  const MemoryPlan& memory_plan() const noexcept { return decode_.memory_plan(); }  ///< of the decode engine
  const Prefill& prefill() const noexcept { return prefill_; }
  const Decode& decode() const noexcept { return decode_; }

 private:
  /// A prompt on its way.
  struct Moving {
    std::unique_ptr<RequestState> request;             // has its blocks in the decode engine; nullptr: it has ended
    BlockLease<typename Prefill::AllocatorType> from;  // until they are copied
    BlockLease<typename Decode::AllocatorType> to{};   // of a request that has ended, likewise
    std::vector<std::uint64_t> numbers{};              // calls of start that must be done, for each rank
    bool is_done = false;
  };

  static const DisaggregatedOptions& checked(const DisaggregatedOptions& options) {
    NVL_EXPECTS(options.max_waiting_prompts >= 1, "max_waiting_prompts", options.max_waiting_prompts, "at least 1");
    return options;
  }

  static EngineOptions prefill_options(const DisaggregatedOptions& options) {
    EngineOptions prefill = options.prefill;
    prefill.limits = options.decode.limits;
    prefill.token_text = options.decode.token_text;
    if (!prefill.seed) { prefill.seed = options.decode.seed; }
    return prefill;
  }

  static LoadProgress half(const LoadProgress& progress, double begin) {
    if (!progress) { return {}; }
    return [progress, begin](double share) { progress(begin + share / 2); };
  }

  bool run_step() {
    bool worked = finish_transfers();
    worked |= begin_transfers();
    if (prefill_.has_work() && prefill_.num_computed() < static_cast<std::size_t>(max_waiting_prompts_)) {
      prefill_.begin_step();
      // Nobody's next token waits for a prompt: while it is computed the decode engine goes on.
      if (prefill_.is_step_done() || !decode_.has_work()) {
        worked |= prefill_.step();
        worked |= begin_transfers();
      }
    }
    if (decode_.has_work()) { worked |= decode_.step(); }
    note_failures();
    worked |= !moving_.empty();
    num_idle_steps_ = worked || !has_work() ? 0 : num_idle_steps_ + 1;
    if (num_idle_steps_ == max_idle_steps) { raise(Error("no engine can go on with its requests")); }
    return worked;
  }

  void note_failures() {
    if (!decode_.failure().empty() && !decode_has_failed_) {
      decode_has_failed_ = true;
      end_all(FinishReason::error, "the decode engine has failed: " + decode_.failure());
    } else if (!prefill_.failure().empty() && failure_.empty()) {
      failure_ = "the prefill engine has failed: " + prefill_.failure();
    }
  }

  /// Prompts whose blocks are copied go on in the decode engine. True if anything was done.
  bool finish_transfers() {
    if (moving_.empty()) { return false; }
    std::string error;
    contain([&] { note_done(); }, [&](const char* what) { error = what; });
    if (!error.empty()) {
      lose_transfers("a transfer of K and V has failed: " + error);
      return true;
    }
    bool worked = false;
    for (std::size_t i = 0; i < moving_.size();) {
      if (!moving_[i].is_done) { break; }
      if (moving_[i].request && !adopt(moving_[i])) { break; }  // in their order
      moving_.erase(moving_.begin() + static_cast<std::ptrdiff_t>(i));
      worked = true;
    }
    return worked;
  }

  void note_done() {
    for (std::size_t rank = 0; rank < transfers_.size(); ++rank) { num_done_[rank] = transfers_[rank]->num_done(); }
    for (Moving& one : moving_) {
      if (one.is_done) { continue; }
      for (std::size_t rank = 0; rank < transfers_.size(); ++rank) {
        if (one.numbers[rank] > num_done_[rank]) { return; }
      }
      one.is_done = true;
      one.from.reset();
      one.to.reset();
    }
  }

  /// False: the decode engine has no place for it now.
  bool adopt(Moving& one) {
    bool is_settled = true;
    std::string error;
    contain([&] { is_settled = decode_.adopt(one.request); }, [&](const char* what) { error = what; });
    if (!error.empty()) {
      end(one, FinishReason::error, error);
    } else if (is_settled) {
      ++stats_.num_prompts;
    }
    return is_settled;
  }

  /// Computed prompts for which the decode engine has room begin to move, oldest first. True if any did.
  bool begin_transfers() {
    bool worked = false;
    while (prefill_.num_computed() > 0 && has_memory_for_one_more()) {
      RequestState& request = prefill_.oldest_computed();
      if (!decode_.reserve(request)) { break; }
      begin_transfer(prefill_.take_oldest_computed());
      worked = true;
    }
    return worked;
  }

  bool has_memory_for_one_more() {
    bool has_memory = false;
    contain(
        [&] {
          moving_.reserve(moving_.size() + 1);
          copies_.reserve(static_cast<std::size_t>(decode_.memory_plan().num_blocks));
          has_memory = true;
        },
        [](const char*) {});
    return has_memory;
  }

  void begin_transfer(ComputedPrompt<typename Prefill::AllocatorType> prompt) {
    const ChoiceState& choice = *prompt.request->choices.front();
    const auto source = prompt.blocks.blocks();
    copies_.clear();
    for (auto i = static_cast<std::size_t>(choice.num_published); i < source.size(); ++i) {
      copies_.push_back({.from = source[i], .to = choice.block_table[i]});
    }
    stats_.num_cached_blocks += static_cast<std::uint64_t>(choice.num_published);
    moving_.push_back({.request = std::move(prompt.request), .from = std::move(prompt.blocks)});
    std::string error;
    contain(
        [&] {
          moving_.back().numbers.resize(transfers_.size());
          for (std::size_t rank = 0; rank < transfers_.size(); ++rank) {
            transfers_[rank]->start(copies_);
            moving_.back().numbers[rank] = ++num_started_[rank];
          }
          stats_.num_copied_blocks += copies_.size();
        },
        [&](const char* what) { error = what; });
    if (error.empty()) { return; }
    // Ranks that did begin keep the leases.
    if (moving_.back().numbers.empty()) { moving_.back().is_done = true; }
    end(moving_.back(), FinishReason::error, "the transfer of K and V could not be started: " + error);
  }

  /// Its blocks in the decode engine stay as long as they may be written.
  void end(Moving& one, FinishReason reason, std::string_view error) {
    one.to = decode_.cancel(*one.request);
    if (one.is_done) { one.to.reset(); }
    decode_.end_apart(std::move(one.request), reason, error);  // the last: its callback may do anything
  }

  /// Nothing can be handed over any more; the decode engine finishes what it has.
  void lose_transfers(const std::string& why) {
    if (failure_.empty()) { failure_ = why; }
    end_moving(FinishReason::error, why);
    prefill_.give_up(FinishReason::error, why);
  }

  void end_moving(FinishReason reason, std::string_view error) {
    for (std::size_t i = 0; i < moving_.size(); ++i) {
      if (moving_[i].request) { end(moving_[i], reason, error); }
    }
    moving_.clear();
  }

  void end_all(FinishReason reason, const std::string& why) {
    contain(
        [&] {
          if (failure_.empty()) { failure_ = why; }
        },
        [&](const char*) { failure_ = "out of memory"; });
    decode_has_failed_ = true;
    const std::string_view error = reason == FinishReason::error ? failure_ : std::string_view();
    contain([&] { end_moving(reason, error); }, [](const char*) {});
    contain([&] { prefill_.give_up(reason, failure_); }, [](const char*) {});
    contain([&] { decode_.give_up(reason, failure_); }, [](const char*) {});
  }

  static constexpr int max_idle_steps = 3;

  const std::int32_t max_waiting_prompts_;
  Prefill prefill_;
  Decode decode_;
  std::vector<std::unique_ptr<Transfer>> transfers_;  // one a rank
  std::vector<std::uint64_t> num_started_;            // calls of start, for each rank
  std::vector<std::uint64_t> num_done_;               // of them, as of the last step
  std::vector<Moving> moving_;                        // oldest first
  std::vector<BlockCopy> copies_;                     // of the transfer that begins
  HandoverStats stats_;
  std::string failure_;
  bool decode_has_failed_ = false;
  bool in_step_ = false;
  int num_idle_steps_ = 0;  // in a row, with work
};

}  // namespace nvl::inline NVL_ABI
