#pragma once
/// An Order that serves first what the prefix cache holds most of, before it is evicted.
/// Source: the longest-prefix-match policy of SGLang (Zheng et al. 2024, arXiv:2312.07104), whose ranking of the whole queue in
/// each step is given up for a window and a fixed number of lookups.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/ticket_list.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Among the longest_prefix_window sequences that came first, the one with the most tokens in the prefix cache is next; the first
/// to come among equals. Preempted ones go in front.
///
/// Bound: when the first of the line has been passed over longest_prefix_patience times since it became first, it is next. So the
/// k-th of the line, counted from 0, is admitted after at most (k + 1) * (longest_prefix_patience + 1) admissions, not counting
/// those that max_long_partial_prefills lets overtake it.
///
/// A step looks at most `max_lookups` sequences up, and only as long as these found no more than `max_found_tokens` together:
/// first those never looked up, then those looked up longest ago. Only the first `max_ranked_tokens` of a sequence are looked at.
/// So a rank may be some steps old; what is really found is decided at admission.
class LongestPrefixOrder {
 public:
  static constexpr std::int32_t max_lookups = 8;                           // in a step
  static constexpr std::int32_t max_found_tokens = 1024;                   // in a step, by all but the last lookup
  static constexpr std::size_t max_ranked_tokens = std::size_t{8} * 1024;  // of a sequence

  struct Ticket {
    explicit Ticket(Sequence& sequence) : seq(&sequence) {}
    Sequence* seq;
    std::uint32_t num_found = 0;  // [tokens] at the last lookup
    std::uint64_t looked_up = 0;  // the number of that lookup; 0: never
    Ticket* before = nullptr;
    Ticket* after = nullptr;
  };

  explicit LongestPrefixOrder(const SchedulerOptions& options)
      : window_(options.scheduling.longest_prefix_window),
        patience_(options.scheduling.longest_prefix_patience) {}

  void add(Ticket& ticket) noexcept { line_.push_back(ticket); }

  template <PrefixCachingAllocator A>
  Ticket* next(const A& allocator) noexcept {
    if (line_.empty() || num_passed_over_ >= patience_) { return line_.first(); }
    while (lookups_left_ > 0) {
      Ticket& stalest = oldest_lookup();
      if (stalest.looked_up > last_step_) { break; }  // all are of this step
      look_up(stalest, allocator);
    }
    Ticket* best = line_.first();
    std::int32_t seen = 0;
    for (Ticket* t = best; t != nullptr && seen < window_; t = t->after, ++seen) {
      if (t->num_found > best->num_found) { best = t; }
    }
    return best;
  }

  void take(Ticket& ticket) noexcept {
    num_passed_over_ = &ticket == line_.first() ? 0 : num_passed_over_ + 1;
    line_.erase(ticket);
  }
  void put_back(Ticket& ticket) noexcept {
    ticket.looked_up = 0;
    line_.push_front(ticket);
  }
  void remove(Ticket& ticket) noexcept {
    if (!line_.contains(ticket)) { return; }
    if (&ticket == line_.first()) { num_passed_over_ = 0; }
    line_.erase(ticket);
  }

  void begin_step() noexcept {
    lookups_left_ = max_lookups;
    found_left_ = max_found_tokens;
    last_step_ = num_lookups_;
  }

 private:
  Ticket& oldest_lookup() noexcept {
    Ticket* oldest = line_.first();
    std::int32_t seen = 0;
    for (Ticket* t = oldest; t != nullptr && seen < window_; t = t->after, ++seen) {
      if (t->looked_up < oldest->looked_up) { oldest = t; }
    }
    return *oldest;
  }

  template <PrefixCachingAllocator A>
  void look_up(Ticket& ticket, const A& allocator) noexcept {
    const Sequence& seq = *ticket.seq;
    const auto known = std::span(seq.tokens).first(std::min(seq.tokens.size() - 1, max_ranked_tokens));
    ticket.num_found = static_cast<std::uint32_t>(allocator.lookup(seq.prefix_root, known));
    ticket.looked_up = ++num_lookups_;
    found_left_ -= static_cast<std::int32_t>(ticket.num_found);
    lookups_left_ = found_left_ > 0 ? lookups_left_ - 1 : 0;
  }

  std::int32_t window_, patience_;
  TicketList<Ticket> line_;           // that wait, in the order in which they came
  std::int32_t num_passed_over_ = 0;  // admissions since the first of the line became first
  std::uint64_t num_lookups_ = 0;
  std::uint64_t last_step_ = 0;  // the lookups that were done when this step began
  std::int32_t lookups_left_ = max_lookups;
  std::int32_t found_left_ = max_found_tokens;
};

}  // namespace nvl::inline NVL_ABI
