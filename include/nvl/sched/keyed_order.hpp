#pragma once
/// An Order from a function: the smallest key first. First come, first served is the one whose keys are all equal.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/ticket_heap.hpp>

#include <concepts>
#include <cstdint>
#include <tuple>

namespace nvl::inline NVL_ABI {

/// `key(seq, step)`: the rank of a sequence that came before step `step`, smaller first. `step` counts the calls of `schedule`;
/// a key that grows with it ages: who came later needs to be so much better to overtake. Made from SchedulerOptions, if it can be.
/// `key.displaces(a, b)`, if it has that: the waiting `a`, of smaller key, may take the blocks of the running `b`.
template <class Key>
concept OrderKey =
    std::movable<Key> && (std::default_initializable<Key> || std::constructible_from<Key, const SchedulerOptions&>)&&requires(
                             const Key& key, const Sequence& seq, std::int64_t step) {
      { key(seq, step) } noexcept -> std::convertible_to<std::int64_t>;
    };

/// Sequences of equal keys in the order in which they came. The key is asked for when a sequence is added and when it is put back.
/// All costs O(log of the waiting).
template <OrderKey Key>
class KeyedOrder {
 public:
  struct Ticket {
    explicit Ticket(Sequence& sequence) : seq(&sequence) {}
    Sequence* seq;
    std::int64_t key = 0;
    std::int64_t step = 0;      // in which it came
    std::uint64_t arrival = 0;  // its number
    std::uint32_t heap_place = ~std::uint32_t{0};
  };

  explicit KeyedOrder(const SchedulerOptions& options) : key_(make_key(options)) {}

  void add(Ticket& ticket) {
    waiting_.reserve(num_known_ + 1);  // so that those that run can come back
    ++num_known_;
    ticket.arrival = num_added_++;
    ticket.step = step_;
    put_back(ticket);
  }
  template <BlockAllocator A>
  Ticket* next(const A&) noexcept {
    return waiting_.empty() ? nullptr : &waiting_.top();
  }
  void take(Ticket& ticket) noexcept { waiting_.erase(ticket); }
  void put_back(Ticket& ticket) noexcept {
    ticket.key = key_(*ticket.seq, ticket.step);
    waiting_.insert(ticket);
  }
  void remove(Ticket& ticket) noexcept {
    if (ticket.heap_place != Heap::nowhere) { waiting_.erase(ticket); }
    --num_known_;
  }

  bool runs_before(const Ticket& a, const Ticket& b) const noexcept { return Before{}(a, b); }
  bool displaces(const Ticket& next, const Ticket& running) const noexcept
    requires requires(const Key& key, const Sequence& seq) { key.displaces(seq, seq); }
  {
    return Before{}(next, running) && key_.displaces(*next.seq, *running.seq);
  }
  void begin_step() noexcept { ++step_; }

 private:
  struct Before {
    bool operator()(const Ticket& a, const Ticket& b) const noexcept {
      return a.key != b.key ? a.key < b.key : a.arrival < b.arrival;
    }
  };
  using Heap = TicketHeap<Ticket, Before>;

  static Key make_key(const SchedulerOptions& options) {
    if constexpr (std::constructible_from<Key, const SchedulerOptions&>) {
      return Key(options);
    } else {
      return Key();
    }
  }

  Key key_;
  Heap waiting_;
  std::size_t num_known_ = 0;
  std::uint64_t num_added_ = 0;
  std::int64_t step_ = 0;
};

struct ArrivalKey {
  constexpr std::int64_t operator()(const Sequence&, std::int64_t) const noexcept { return 0; }
};

/// First come, first served; the youngest loses its blocks first.
using FcfsOrder = KeyedOrder<ArrivalKey>;
static_assert(Order<FcfsOrder> && RankingOrder<FcfsOrder> && !DisplacingOrder<FcfsOrder>);

}  // namespace nvl::inline NVL_ABI
