/// The suites on orders and preemptions with one defect each: every defect has to be reported.
#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/fair_share_order.hpp>
#include <nvl/sched/preemption.hpp>
#include <nvl/sched/priority_order.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/check_order.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>

namespace broken_orders_test {

using namespace nvl;

namespace {

struct HidesTheLast : FcfsOrder {
  using FcfsOrder::FcfsOrder;
  template <BlockAllocator A>
  Ticket* next(const A& allocator) noexcept {
    return num_waiting == 1 ? nullptr : FcfsOrder::next(allocator);
  }
  void add(Ticket& ticket) {
    FcfsOrder::add(ticket);
    ++num_waiting;
  }
  void take(Ticket& ticket) noexcept {
    FcfsOrder::take(ticket);
    --num_waiting;
  }
  void put_back(Ticket& ticket) noexcept {
    FcfsOrder::put_back(ticket);
    ++num_waiting;
  }
  void remove(Ticket& ticket) noexcept {
    num_waiting -= ticket.heap_place == ~0u ? 0 : 1;
    FcfsOrder::remove(ticket);
  }
  int num_waiting = 0;
};

struct ForgetsWhoComesBack : FairShareOrder {
  using FairShareOrder::FairShareOrder;
  void put_back(Ticket&) noexcept {}
};

/// Names the one that was taken last once more.
struct NamesWhoWasTaken : FcfsOrder {
  using FcfsOrder::FcfsOrder;
  template <BlockAllocator A>
  Ticket* next(const A& allocator) noexcept {
    Ticket* const next = FcfsOrder::next(allocator);
    return next == nullptr ? taken : next;
  }
  void take(Ticket& ticket) noexcept {
    if (ticket.heap_place != ~0u) { FcfsOrder::take(ticket); }
    taken = &ticket;
  }
  void remove(Ticket& ticket) noexcept {
    if (taken == &ticket) { taken = nullptr; }
    FcfsOrder::remove(ticket);
  }
  Ticket* taken = nullptr;
};

struct RanksByKeyAlone : PriorityOrder {
  using PriorityOrder::PriorityOrder;
  bool runs_before(const Ticket& a, const Ticket& b) const noexcept { return a.seq->priority <= b.seq->priority; }
};

struct DisplacesItsBetters : PriorityOrder {
  using PriorityOrder::PriorityOrder;
  bool displaces(const Ticket& next, const Ticket& running) const noexcept { return &next != &running; }
};

struct TicketOfNobody : FcfsOrder {
  using FcfsOrder::FcfsOrder;
  struct Ticket : FcfsOrder::Ticket {
    explicit Ticket(Sequence& sequence) : FcfsOrder::Ticket(sequence), seq(nullptr) {}
    Sequence* seq;
  };
  template <BlockAllocator A>
  Ticket* next(const A& allocator) noexcept {
    return static_cast<Ticket*>(FcfsOrder::next(allocator));
  }
};

// Preemptions

struct KeepsTheBlocks : RecomputePreemption {
  using RecomputePreemption::RecomputePreemption;
  template <BlockAllocator A>
  bool preempt(Sequence& seq, A&, ScheduledBatch& batch) noexcept {
    batch.preempted.push_back(&seq);
    seq.status = SeqStatus::preempted;
    return false;
  }
};

struct TellsNobody : RecomputePreemption {
  using RecomputePreemption::RecomputePreemption;
  template <BlockAllocator A>
  bool preempt(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    preempt_by_recompute(seq, allocator, batch);
    batch.preempted.pop_back();
    return true;
  }
};

struct LeavesItRunning : RecomputePreemption {
  using RecomputePreemption::RecomputePreemption;
  template <BlockAllocator A>
  bool preempt(Sequence& seq, A& allocator, ScheduledBatch& batch) noexcept {
    preempt_by_recompute(seq, allocator, batch);
    seq.status = SeqStatus::running;
    return true;
  }
};

/// Says that it swaps, without host blocks.
struct SwapsToNowhere : RecomputePreemption {
  using RecomputePreemption::RecomputePreemption;
  template <BlockAllocator A>
  bool preempt(Sequence& seq, A&, ScheduledBatch& batch) noexcept {
    batch.swapped.push_back(&seq);
    seq.status = SeqStatus::swapped;
    return false;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("the suite reports an order that breaks a promise", "[conformance][host]", HidesTheLast, ForgetsWhoComesBack,
                   NamesWhoWasTaken, RanksByKeyAlone, DisplacesItsBetters, TicketOfNobody) {
  CHECK_FALSE(testing::check_order<TestType>().empty());
}

TEMPLATE_TEST_CASE("the suite reports a preemption that breaks a promise", "[conformance][host]", KeepsTheBlocks, TellsNobody,
                   LeavesItRunning, SwapsToNowhere) {
  CHECK_FALSE(testing::check_scheduler_policy<TokenBudgetScheduler<FcfsOrder, TestType>, FreeListAllocator>().empty());
}

}  // namespace broken_orders_test
