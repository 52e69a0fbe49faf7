#pragma once
/// A scheduler's answer: what the next step computes.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/sched/sequence.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Tokens [first_position, first_position + num_tokens) of one sequence.
struct ScheduledSeq {
  Sequence* seq = nullptr;
  std::int32_t first_position = 0;
  std::int32_t num_tokens = 0;  // >= 1
  bool needs_sample = false;    // the last of them is the last token known: its logits give the next
};

struct ScheduledBatch {
  std::vector<ScheduledSeq> seqs;       // each sequence at most once
  std::vector<Sequence*> preempted;     // by this call, in the order in which they lost their blocks
  std::vector<Sequence*> swapped;       // by this call: on their way to host blocks
  std::vector<BlockCopy> copies;        // before the step's tokens are computed
  std::vector<BlockTransfer> swap_out;  // device to host
  std::vector<BlockTransfer> swap_in;   // host to device
  std::vector<BlockId> held;            // sources of `copies` that nobody else owns, while the plan is made (finish_plan)
  std::int32_t num_tokens = 0;          // sum over seqs

  /// Nothing for a device to do.
  bool empty() const noexcept { return seqs.empty() && copies.empty() && swap_out.empty() && swap_in.empty(); }
  /// True if one of `blocks` is the source of a copy. Transfers do not wait for copies, so nothing may come in from the host over a
  /// block that was given up after its copy was planned.
  bool copies_from(std::span<const BlockId> blocks) const noexcept {
    return std::ranges::any_of(copies, [&](const BlockCopy& copy) { return std::ranges::count(blocks, copy.from) > 0; });
  }
  void clear() noexcept {
    seqs.clear();
    preempted.clear();
    swapped.clear();
    copies.clear();
    swap_out.clear();
    swap_in.clear();
    held.clear();
    num_tokens = 0;
  }
};

}  // namespace nvl::inline NVL_ABI
