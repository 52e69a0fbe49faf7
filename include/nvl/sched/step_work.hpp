#pragma once
/// What one step has to compute and read: the quantities that its time depends on.

#include <nvl/core/config.hpp>
#include <nvl/sched/scheduled_batch.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Sequences with one token are decodes here, all others prefills. Sliding windows are not regarded.
struct StepWork {
  std::int32_t num_seqs = 0;
  std::int32_t num_tokens = 0;         // rows of every matrix product but the last
  std::int32_t num_samples = 0;        // rows of the last one, the output projection
  std::int32_t num_decodes = 0;        // sequences with one token
  std::int64_t decode_kv_tokens = 0;   // whose K and V they read, their own included
  std::int64_t prefill_kv_tokens = 0;  // the same of the others: all tokens up to the last one planned
  std::int64_t prefill_pairs = 0;      // (query, key that it sees) of the others
  std::int32_t num_copies = 0;         // blocks copied on the device before the step
  std::int32_t num_transfers = 0;      // blocks that move between device and host beside it

  std::int32_t num_prefill_tokens() const noexcept { return num_tokens - num_decodes; }
  friend bool operator==(const StepWork&, const StepWork&) = default;
};

inline StepWork work_of(const ScheduledBatch& batch) noexcept {
  StepWork work;
  work.num_seqs = static_cast<std::int32_t>(batch.seqs.size());
  work.num_tokens = batch.num_tokens;
  work.num_copies = static_cast<std::int32_t>(batch.copies.size());
  work.num_transfers = static_cast<std::int32_t>(batch.swap_out.size() + batch.swap_in.size());
  for (const ScheduledSeq& entry : batch.seqs) {
    const std::int64_t first = entry.first_position, count = entry.num_tokens;
    work.num_samples += entry.needs_sample ? 1 : 0;
    if (count == 1) {
      ++work.num_decodes;
      work.decode_kv_tokens += first + 1;
    } else {
      work.prefill_kv_tokens += first + count;
      work.prefill_pairs += count * first + count * (count + 1) / 2;
    }
  }
  return work;
}

}  // namespace nvl::inline NVL_ABI
