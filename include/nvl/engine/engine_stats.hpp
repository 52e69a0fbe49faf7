#pragma once
/// What an engine counts.

#include <nvl/core/config.hpp>
#include <nvl/kv/prefix_cache.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/step_work.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Distribution of a duration in fixed memory: exact count, mean and extremes; percentiles within 9 % (eight buckets an octave,
/// from 1 us to over an hour).
class Distribution {
 public:
  void add(double seconds) noexcept {
    min_ = count_ == 0 ? seconds : std::min(min_, seconds);
    max_ = count_ == 0 ? seconds : std::max(max_, seconds);
    ++count_;
    sum_ += seconds;
    ++buckets_[bucket_of(seconds)];
  }

  /// As if all that `other` was told had been told to this one.
  void add(const Distribution& other) noexcept {
    if (other.count_ == 0) { return; }
    min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
    max_ = count_ == 0 ? other.max_ : std::max(max_, other.max_);
    count_ += other.count_;
    sum_ += other.sum_;
    for (std::size_t i = 0; i < num_buckets; ++i) { buckets_[i] += other.buckets_[i]; }
  }

  std::uint64_t count() const noexcept { return count_; }
  double mean() const noexcept { return count_ == 0 ? 0.0 : sum_ / static_cast<double>(count_); }
  double min() const noexcept { return min_; }
  double max() const noexcept { return max_; }

  /// `p` in [0, 100]; 0 while nothing was added.
  double percentile(double p) const noexcept {
    if (count_ == 0) { return 0.0; }
    const double wanted = p / 100.0 * static_cast<double>(count_);
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < num_buckets; ++i) {
      seen += buckets_[i];
      if (static_cast<double>(seen) >= wanted && seen > 0) {
        return std::clamp(smallest * std::exp2((static_cast<double>(i) + 0.5) / per_octave), min_, max_);
      }
    }
    return max_;
  }

 private:
  static constexpr double smallest = 1e-6;  // [seconds]
  static constexpr double per_octave = 8.0;
  static constexpr std::size_t num_buckets = 256;

  static std::size_t bucket_of(double seconds) noexcept {
    if (!(seconds > smallest)) { return 0; }
    return std::min(static_cast<std::size_t>(std::log2(seconds / smallest) * per_octave), num_buckets - 1);
  }

  std::array<std::uint64_t, num_buckets> buckets_{};
  std::uint64_t count_ = 0;
  double sum_ = 0, min_ = 0, max_ = 0;
};

struct EngineStats {
  std::uint64_t num_steps = 0;
  std::uint64_t num_submitted = 0;              // requests accepted
  std::array<std::uint64_t, 5> num_finished{};  // requests, by FinishReason
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_swaps = 0;             // of the preemptions, those to host memory
  std::uint64_t swapped_out_blocks = 0;    // copied to host memory
  std::uint64_t swapped_in_blocks = 0;     // and back; fewer, where blocks were found on the device
  std::uint64_t prompt_tokens = 0;         // of admitted requests: what the prefix cache was asked for
  std::uint64_t cached_prompt_tokens = 0;  // of them found there
  std::uint64_t computed_tokens = 0;       // rows that went through the model
  std::uint64_t generated_tokens = 0;
  std::uint64_t scheduled_seqs = 0;  // sum over steps; / num_steps = mean batch
  std::uint32_t num_waiting = 0;     // sequences, now
  std::uint32_t num_running = 0;
  std::uint32_t num_queued = 0;       // requests never scheduled so far, now
  std::uint64_t queued_tokens = 0;    // of their prompts
  std::uint32_t num_blocks = 0;       // of the KV cache
  std::uint32_t num_free_blocks = 0;  // now; cached ones that can be evicted count as free
  std::uint32_t num_host_blocks = 0;  // of the pool in host memory
  std::uint32_t num_free_host_blocks = 0;
  // Sums over steps and the sequences of each: slots of their blocks, and those of them that hold a token after the step. A shared
  // block counts for each sequence that has it.
  std::uint64_t kv_slots_allocated = 0;
  std::uint64_t kv_slots_used = 0;
  PrefixCacheStats prefix_cache;        // of an allocator that keeps some; admissions that did not succeed count too
  StepWork last_step;                   // the one whose tokens the last call of `step` reported
  double exposed_host_seconds = 0;      // that the device waited for the host between two steps; 0 where there is no device
  Distribution queue, ttft, tpot, e2e;  // of finished requests

  double prefix_hit_rate() const noexcept {
    return prompt_tokens == 0 ? 0.0 : static_cast<double>(cached_prompt_tokens) / static_cast<double>(prompt_tokens);
  }
  /// Share of the allocated slots of the KV cache that hold no token, on average over the steps.
  double kv_waste() const noexcept {
    return kv_slots_allocated == 0 ? 0.0 : 1.0 - static_cast<double>(kv_slots_used) / static_cast<double>(kv_slots_allocated);
  }
  std::uint64_t finished(FinishReason reason) const noexcept { return num_finished[static_cast<std::size_t>(reason)]; }
};

/// Of two engines together: what was counted is added up; last_step is the second one's.
inline EngineStats combined(const EngineStats& first, EngineStats second) noexcept {
  EngineStats& s = second;
  s.num_steps += first.num_steps;
  s.num_submitted += first.num_submitted;
  for (std::size_t i = 0; i < s.num_finished.size(); ++i) { s.num_finished[i] += first.num_finished[i]; }
  s.num_preemptions += first.num_preemptions;
  s.num_swaps += first.num_swaps;
  s.swapped_out_blocks += first.swapped_out_blocks;
  s.swapped_in_blocks += first.swapped_in_blocks;
  s.prompt_tokens += first.prompt_tokens;
  s.cached_prompt_tokens += first.cached_prompt_tokens;
  s.computed_tokens += first.computed_tokens;
  s.generated_tokens += first.generated_tokens;
  s.scheduled_seqs += first.scheduled_seqs;
  s.kv_slots_allocated += first.kv_slots_allocated;
  s.kv_slots_used += first.kv_slots_used;
  s.prefix_cache += first.prefix_cache;
  s.num_waiting += first.num_waiting;
  s.num_running += first.num_running;
  s.num_queued += first.num_queued;
  s.queued_tokens += first.queued_tokens;
  s.num_blocks += first.num_blocks;
  s.num_free_blocks += first.num_free_blocks;
  s.num_host_blocks += first.num_host_blocks;
  s.num_free_host_blocks += first.num_free_host_blocks;
  s.exposed_host_seconds += first.exposed_host_seconds;
  s.queue.add(first.queue);
  s.ttft.add(first.ttft);
  s.tpot.add(first.tpot);
  s.e2e.add(first.e2e);
  return second;
}

}  // namespace nvl::inline NVL_ABI
