#pragma once
/// An Order that serves users equally: whoever has been given least is next.
/// Source: the virtual token counter of Sheng et al. 2024, "Fairness in Serving Large Language Models", arXiv:2401.00588.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/ticket_heap.hpp>
#include <nvl/sched/ticket_list.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Each Sequence::user has a counter. A token that is computed for the first time is charged to it: prompt_token_cost or
/// output_token_cost of SchedulingOptions (1 and 2 in the paper); tokens from the prefix cache and tokens that are computed again
/// after a preemption are free. The user with the smallest counter among those that wait is next, with its oldest sequence; a
/// preempted one counts as its oldest. A user that begins to wait starts at the smallest counter of those that wait already (or,
/// if nobody does, at that of the last that did), so idleness earns no credit.
///
/// Bound. Let f and g both have sequences waiting in each step of an interval, and let U be the most that the sequences which run
/// at once may cost: max_num_seqs * (prompt_token_cost * longest prompt + output_token_cost * longest output). Then their
/// counters never differ by more than U, nor what they were served in the interval by more than 2 U: after f was named last its
/// counter was at most that of g, and only the sequences of f that ran then can have raised it since.
///
/// O(log users) to name a sequence, O(1) to charge. A user without sequences is forgotten as soon as its counter would be raised
/// anyway if it came back, so memory follows the users that are served, not all that there ever were.
class FairShareOrder {
  struct User;

 public:
  struct Ticket {
    explicit Ticket(Sequence& sequence) : seq(&sequence) {}
    Sequence* seq;
    User* user = nullptr;
    std::int32_t num_charged = 0;  // [tokens] at the head of the sequence
    Ticket* before = nullptr;
    Ticket* after = nullptr;
  };

  explicit FairShareOrder(const SchedulerOptions& options)
      : prompt_cost_(options.scheduling.prompt_token_cost),
        output_cost_(options.scheduling.output_token_cost) {}

  void add(Ticket& ticket) {
    waiting_.reserve(users_.size() + 1);
    idle_.reserve(users_.size() + 1);
    User& user = users_.try_emplace(ticket.seq->user).first->second;  // the last that can throw
    user.id = ticket.seq->user;
    if (user.num_seqs++ == 0 && user.heap_place != Users::nowhere) { idle_.erase(user); }
    ticket.user = &user;
    if (user.line.empty()) { begin_to_wait(user); }
    user.line.push_back(ticket);
    forget_idle_users();
  }

  template <BlockAllocator A>
  Ticket* next(const A&) noexcept {
    return waiting_.empty() ? nullptr : least().line.first();
  }

  void take(Ticket& ticket) noexcept {
    User& user = *ticket.user;
    user.line.erase(ticket);
    if (user.line.empty()) { stop_waiting(user); }
  }

  /// To the front of its user's line.
  void put_back(Ticket& ticket) noexcept {
    User& user = *ticket.user;
    if (user.line.empty()) { begin_to_wait(user); }
    user.line.push_front(ticket);
  }

  void remove(Ticket& ticket) noexcept {
    User& user = *ticket.user;
    if (user.line.contains(ticket)) { take(ticket); }
    if (--user.num_seqs > 0) { return; }
    user.rank = user.counter;
    idle_.insert(user);
    forget_idle_users();
  }

  void served(Ticket& ticket, std::int32_t first, std::int32_t count) const noexcept {
    const std::int32_t end = first + count;
    const std::int32_t from = std::max(first, ticket.num_charged);
    if (from >= end) { return; }
    ticket.num_charged = end;
    const std::int32_t num_prompt = std::clamp(ticket.seq->num_prompt, from, end) - from;
    ticket.user->counter += prompt_cost_ * num_prompt + output_cost_ * (end - from - num_prompt);
  }

  void begin_step() noexcept { ++step_; }

  /// What `user` has been charged; 0 if it is not known (any more).
  std::int64_t counter(std::uint64_t user) const noexcept {
    const auto found = users_.find(user);
    return found == users_.end() ? 0 : found->second.counter;
  }
  std::size_t num_users() const noexcept { return users_.size(); }

 private:
  struct User {
    std::uint64_t id = 0;
    std::int64_t counter = 0;
    std::int64_t rank = 0;  // its counter when its place in a heap was last set; counters only grow
    std::uint64_t num_seqs = 0;
    std::int64_t left_in_step = 0;                 // when it stopped waiting; 0: never
    TicketList<Ticket> line;                       // that wait
    std::uint32_t heap_place = ~std::uint32_t{0};  // of waiting_, or of idle_ while it has no sequence
  };
  struct Before {
    bool operator()(const User& a, const User& b) const noexcept { return a.rank != b.rank ? a.rank < b.rank : a.id < b.id; }
  };
  using Users = TicketHeap<User, Before>;

  /// Of those that wait. Places in the heap are set right only as far as they show at its top.
  User& least() noexcept {
    for (;;) {
      User& top = waiting_.top();
      if (top.rank == top.counter) { return top; }
      top.rank = top.counter;
      waiting_.update(top);
    }
  }

  /// The smallest counter that a user may come with. It never falls.
  std::int64_t floor() noexcept {
    if (!waiting_.empty()) { return least().counter; }
    return last_user_ != nullptr ? last_user_->counter : last_counter_;
  }

  void begin_to_wait(User& user) noexcept {
    // Who was passed over in this step was not idle.
    if (user.left_in_step != step_) { user.counter = std::max(user.counter, floor()); }
    user.rank = user.counter;
    waiting_.insert(user);
  }

  void stop_waiting(User& user) noexcept {
    waiting_.erase(user);
    user.left_in_step = step_;
    last_user_ = &user;
  }

  void forget_idle_users() noexcept {
    while (!idle_.empty() && idle_.top().counter <= floor()) {
      User& user = idle_.top();
      idle_.erase(user);
      if (last_user_ == &user) {
        last_user_ = nullptr;
        last_counter_ = user.counter;
      }
      users_.erase(user.id);
    }
  }

  std::int64_t prompt_cost_, output_cost_;
  std::unordered_map<std::uint64_t, User> users_;
  Users waiting_;                  // those with sequences that wait
  Users idle_;                     // those without sequences
  User* last_user_ = nullptr;      // that stopped waiting; null: it is forgotten ...
  std::int64_t last_counter_ = 0;  // ... with this counter
  std::int64_t step_ = 1;
};
static_assert(Order<FairShareOrder> && MeteringOrder<FairShareOrder> && !RankingOrder<FairShareOrder>);

}  // namespace nvl::inline NVL_ABI
