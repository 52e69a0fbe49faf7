#pragma once
/// A scheduler and an allocator on a virtual clock: what an engine does with a trace, in the time that a cost model gives each step.
///
/// The steps are those of nvl::Engine, down to the one that it runs ahead: the next step is planned with a placeholder for each
/// token of the one that is still running, a sequence that this one brings to its full length leaves the scheduler at once and
/// gives its blocks up when the step has ended, and what arrives meanwhile is seen by the step after next. SchedulerHarness
/// (nvl/testing), which also drives a scheduler without a model, checks every promise and every slot after each operation; nothing
/// but the few lines of a commit would be common to the two, so each has its own.

#include "bench/sim/cost_model.hpp"
#include "bench/sim/log_histogram.hpp"
#include "bench/support/trace.hpp"

#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_table.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>
#include <nvl/sched/scheduled_batch.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace nvl_bench {

struct SimOptions {
  nvl::SchedulerOptions scheduler;
  nvl::BlockPoolShape pool;
  std::int64_t max_queued = 100'000;  // requests in the scheduler that have not begun; further ones wait outside, in their order
};

/// Times in seconds; tokens, requests, steps and blocks counted.
struct SimResult {
  double duration = 0;  // until the last token
  double busy = 0;      // of it, the device computed
  std::uint64_t requests = 0, refused = 0, steps = 0, preemptions = 0, swaps = 0;
  std::uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0, computed_tokens = 0;
  std::uint64_t transferred_blocks = 0, copied_blocks = 0;
  std::uint64_t scheduled_seqs = 0;                // sum over steps
  double kv_wasted = 0;                            // share of the allocated slots that hold no token, mean over time
  double kv_used = 0;                              // share of all blocks that have an owner, mean over the busy time
  std::uint32_t peak_blocks = 0, live_blocks = 0;  // with owners: the most at once, and after the end
  std::uint64_t peak_waiting = 0;                  // requests
  LogHistogram ttft, tpot, itl, e2el;
  LogHistogram ttft_urgent;  // of priority 0
  LogHistogram ttft_light;   // of all users but the one that sends most

  double output_throughput() const { return static_cast<double>(output_tokens) / duration; }
  double hit_rate() const {
    return prompt_tokens == 0 ? 0 : static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens);
  }
  double mean_batch() const { return steps == 0 ? 0 : static_cast<double>(scheduled_seqs) / static_cast<double>(steps); }
};

template <class Scheduler, nvl::BlockAllocator Allocator>
  requires nvl::SchedulerPolicy<Scheduler, Allocator>
class Simulator {
 public:
  Simulator(const SimOptions& options, const StepCost& cost, Trace& trace)
      : options_(options),
        runs_ahead_(cost.runs_ahead()),
        clock_(cost),
        trace_(trace),
        allocator_(options.pool),
        scheduler_(options.scheduler) {}

  /// Runs the trace to its end. \throws std::runtime_error if the scheduler plans nothing while requests wait
  SimResult run() {
    has_next_ = trace_.next(next_);
    Flight* current = &flights_[0];
    Flight* ahead = &flights_[1];
    for (;;) {
      submit_arrived();
      if (!current->is_launched && !launch(*current)) {
        if (num_live_ > 0) { throw std::runtime_error("the scheduler has requests but planned nothing"); }
        if (!has_next_ && turns_.empty()) { break; }
        clock_.wait_until(next_arrival());
        continue;
      }
      if (runs_ahead_) { launch(*ahead); }
      clock_.wait_until(current->end);
      commit(*current);
      std::swap(current, ahead);
    }
    result_.busy = clock_.busy();
    result_.live_blocks = allocator_.num_blocks() - allocator_.num_free();
    result_.kv_wasted = allocated_slot_seconds_ > 0 ? wasted_slot_seconds_ / allocated_slot_seconds_ : 0;
    result_.kv_used = result_.busy > 0 ? used_block_seconds_ / result_.busy / allocator_.num_blocks() : 0;
    return result_;
  }

  const Allocator& allocator() const { return allocator_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Simulated : nvl::Sequence {
    double arrival = 0, first_token = 0, last_token = 0;  // [s]
    std::uint64_t session = 0;
    std::int32_t turn = 0;
    bool was_scheduled = false;
    std::size_t seen_blocks = 0;  // of block_table and num_computed, when they were last added up
    std::int64_t seen_tokens = 0;
  };

  struct Flight {
    nvl::ScheduledBatch batch;
    double end = 0;  // [s]
    bool is_launched = false;
  };

  double next_arrival() const {
    const double turn = turns_.empty() ? std::numeric_limits<double>::infinity() : turns_.front().arrival;
    return has_next_ ? std::min(turn, next_.arrival) : turn;
  }

  static bool is_later(const TraceRequest& a, const TraceRequest& b) {
    return a.arrival != b.arrival ? a.arrival > b.arrival : a.session > b.session;
  }

  void submit_arrived() {
    while (next_arrival() <= clock_.now() && static_cast<std::int64_t>(scheduler_.num_waiting()) < options_.max_queued) {
      if (has_next_ && (turns_.empty() || next_.arrival <= turns_.front().arrival)) {
        submit(next_);
        has_next_ = trace_.next(next_);
      } else {
        std::pop_heap(turns_.begin(), turns_.end(), is_later);
        submit(turns_.back());
        turns_.pop_back();
      }
    }
    result_.peak_waiting = std::max<std::uint64_t>(result_.peak_waiting, scheduler_.num_waiting());
  }

  void submit(const TraceRequest& request) {
    const std::int32_t num_prompt = static_cast<std::int32_t>(request.prompt.size());
    const std::int32_t total = num_prompt + request.output_len;
    if (nvl::blocks_for(total - 1, options_.scheduler.block_size) > allocator_.num_blocks()) {  // as an engine refuses it
      ++result_.refused;
      return;
    }
    if (free_.empty()) {
      all_.push_back(std::make_unique<Simulated>());
      free_.push_back(all_.back().get());
    }
    Simulated& seq = *free_.back();
    free_.pop_back();
    seq.id = nvl::SeqId{num_submitted_};
    seq.request = nvl::RequestId{num_submitted_++};
    seq.tokens.reserve(static_cast<std::size_t>(total));
    seq.tokens.assign(request.prompt.begin(), request.prompt.end());
    seq.num_prompt = num_prompt;
    seq.max_total_tokens = total;
    seq.status = nvl::SeqStatus::waiting;
    seq.num_preemptions = 0;
    seq.num_cached = 0;
    seq.priority = request.priority;
    seq.user = request.user;
    seq.arrival = request.arrival;
    seq.session = request.session;
    seq.turn = request.turn;
    seq.was_scheduled = false;
    if constexpr (nvl::PrefixCachingAllocator<Allocator>) { seq.prefix_root = seq.published_prefix = allocator_.root({}); }
    scheduler_.add(seq);
    ++num_live_;
  }

  /// Plans a step and starts it as soon as the device is free. False if there is nothing to do.
  bool launch(Flight& flight) {
    nvl::ScheduledBatch& batch = flight.batch;
    batch.clear();
    scheduler_.schedule(allocator_, batch);
    result_.preemptions += batch.preempted.size();
    result_.swaps += batch.swapped.size();
    if (batch.empty()) { return false; }
    for (const auto* victims : {&batch.preempted, &batch.swapped}) {
      for (nvl::Sequence* victim : *victims) { count_blocks(static_cast<Simulated&>(*victim), 0, 0); }
    }
    const nvl::StepWork work = nvl::work_of(batch);
    std::int64_t shared_tokens = 0;
    for (const nvl::ScheduledSeq& entry : batch.seqs) {
      if (entry.num_tokens == 1) { shared_tokens += num_shared_tokens(*entry.seq); }
      plan(entry);
    }
    ++result_.steps;
    result_.scheduled_seqs += batch.seqs.size();
    result_.computed_tokens += static_cast<std::uint64_t>(work.num_tokens);
    result_.transferred_blocks += static_cast<std::uint64_t>(work.num_transfers);
    result_.copied_blocks += static_cast<std::uint64_t>(work.num_copies);

    const double busy_before = clock_.busy();
    flight.end = clock_.launch(work, shared_tokens);
    flight.is_launched = true;
    const double seconds = clock_.busy() - busy_before;
    const double slots = static_cast<double>(total_blocks_) * options_.scheduler.block_size;
    allocated_slot_seconds_ += slots * seconds;
    wasted_slot_seconds_ += (slots - static_cast<double>(total_tokens_)) * seconds;
    const std::uint32_t used = allocator_.num_blocks() - allocator_.num_free();
    used_block_seconds_ += used * seconds;
    result_.peak_blocks = std::max(result_.peak_blocks, used);
    return true;
  }

  /// [tokens] of `seq` in blocks that others own too. These are at the head of its table: who shares a block shares all before it.
  std::int64_t num_shared_tokens(const nvl::Sequence& seq) const {
    if constexpr (nvl::SharingAllocator<Allocator>) {
      const auto end =
          std::ranges::partition_point(seq.block_table, [&](nvl::BlockId block) { return allocator_.num_owners(block) > 1; });
      return (end - seq.block_table.begin()) * std::int64_t{options_.scheduler.block_size};
    }
    return 0;
  }

  void plan(const nvl::ScheduledSeq& entry) {
    auto& seq = static_cast<Simulated&>(*entry.seq);
    if (!seq.was_scheduled) {
      seq.was_scheduled = true;
      result_.prompt_tokens += static_cast<std::uint64_t>(seq.num_prompt);
      result_.cached_tokens += static_cast<std::uint64_t>(seq.num_cached);
    }
    count_blocks(seq, seq.block_table.size(), seq.num_computed);
    if (!entry.needs_sample) { return; }
    seq.tokens.push_back(sampled(seq));
    if (seq.num_tokens() >= seq.max_total_tokens) { scheduler_.remove(seq); }
  }

  /// Some token that no other sequence is likely to have at the same place.
  static nvl::TokenId sampled(const Simulated& seq) {
    return static_cast<nvl::TokenId>((seq.session * 2654435761u + static_cast<std::uint64_t>(seq.num_tokens()) * 40503u) &
                                     0xffff);
  }

  void count_blocks(Simulated& seq, std::size_t blocks, std::int64_t tokens) {
    total_blocks_ += static_cast<std::int64_t>(blocks) - static_cast<std::int64_t>(seq.seen_blocks);
    total_tokens_ += tokens - seq.seen_tokens;
    seq.seen_blocks = blocks;
    seq.seen_tokens = tokens;
  }

  /// The tokens of a step are there.
  void commit(Flight& flight) {
    const double now = clock_.now();
    flight.is_launched = false;
    for (const nvl::ScheduledSeq& entry : flight.batch.seqs) {
      auto& seq = static_cast<Simulated&>(*entry.seq);
      const std::int32_t end = entry.first_position + entry.num_tokens;
      nvl::publish_full_blocks(seq, allocator_, options_.scheduler.block_size, std::min(end, seq.num_computed));
      if (!entry.needs_sample) { continue; }
      ++result_.output_tokens;
      if (end == seq.num_prompt) {
        note_first_token(seq, now);
      } else {
        result_.itl.add(now - seq.last_token);
      }
      seq.last_token = now;
      if (end + 1 == seq.max_total_tokens) { finish(seq, now); }
    }
  }

  void note_first_token(Simulated& seq, double now) {
    const double ttft = now - seq.arrival;
    seq.first_token = now;
    result_.ttft.add(ttft);
    if (seq.priority == 0) { result_.ttft_urgent.add(ttft); }
    if (seq.user != 0) { result_.ttft_light.add(ttft); }
  }

  void finish(Simulated& seq, double now) {
    nvl::release_blocks(seq, allocator_);
    count_blocks(seq, 0, 0);
    seq.status = nvl::SeqStatus::finished;
    if (seq.num_output() > 1) { result_.tpot.add((seq.last_token - seq.first_token) / (seq.num_output() - 1)); }
    result_.e2el.add(now - seq.arrival);
    result_.duration = now;
    ++result_.requests;
    --num_live_;
    if (trace_.next_turn(seq.session, seq.turn, seq.tokens, turn_)) {
      turn_.arrival += now;
      turn_.priority = seq.priority;
      turn_.user = seq.user;
      turns_.push_back(std::move(turn_));
      std::push_heap(turns_.begin(), turns_.end(), is_later);
    }
    free_.push_back(&seq);
  }

  const SimOptions options_;
  const bool runs_ahead_;
  Timeline clock_;
  Trace& trace_;
  Allocator allocator_;
  Scheduler scheduler_;
  Flight flights_[2];
  TraceRequest next_;  // the first that has not come yet
  bool has_next_ = false;
  std::vector<TraceRequest> turns_;  // heap: further turns that have not come yet
  TraceRequest turn_;
  std::vector<std::unique_ptr<Simulated>> all_;
  std::vector<Simulated*> free_;  // those of `all_` that can be used again
  std::uint64_t num_submitted_ = 0, num_live_ = 0;
  std::int64_t total_blocks_ = 0, total_tokens_ = 0;  // in the tables of sequences, and stored there
  double allocated_slot_seconds_ = 0, wasted_slot_seconds_ = 0, used_block_seconds_ = 0;
  SimResult result_;
};

}  // namespace nvl_bench
