#pragma once
/// Short words for tests of schedulers in a SchedulerHarness.

#include <nvl/core/ids.hpp>
#include <nvl/sched/scheduled_batch.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

inline std::vector<nvl::TokenId> prompt(std::size_t length, nvl::TokenId token = 1) {
  return std::vector<nvl::TokenId>(length, token);
}

/// (sequence, number of tokens) of each entry of the last step
using Plan = std::vector<std::pair<std::uint64_t, std::int32_t>>;
template <class H>
Plan plan_of(const H& harness) {
  Plan plan;
  for (const nvl::ScheduledSeq& entry : harness.batch().seqs) { plan.emplace_back(index_of(entry.seq->id), entry.num_tokens); }
  return plan;
}

template <class H>
Plan next(H& harness) {
  harness.step();
  return plan_of(harness);
}

/// Who lost its blocks in the last step, in this order
template <class H>
std::vector<std::uint64_t> preempted(const H& harness) {
  std::vector<std::uint64_t> ids;
  for (const nvl::Sequence* seq : harness.batch().preempted) { ids.push_back(index_of(seq->id)); }
  return ids;
}
