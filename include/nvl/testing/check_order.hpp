#pragma once
/// Conformance suite of the concept Order: tests the meaning columns of its tables on any order, by itself and in a scheduler.
///
///     const auto broken = nvl::testing::check_order<MyOrder>();
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/sched/order.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>
#include <nvl/sched/token_budget_scheduler.hpp>
#include <nvl/testing/check_scheduler_policy.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

/// Random operations on an order of at most 12 sequences, beside the sets of those that wait and of those that were taken.
template <class O, class A>
class OrderModel {
 public:
  explicit OrderModel(std::uint64_t seed) : random_(seed), allocator_({.num_blocks = 8, .block_size = 2}) {
    options_.scheduling =
        random_scheduling([&](int n) { return static_cast<std::int32_t>(below(static_cast<std::uint64_t>(n))); });
    order_ = std::make_unique<O>(options_);
  }

  void run(int num_operations) {
    for (int i = 0; i < num_operations && broken_.empty(); ++i) {
      switch (below(6)) {
        case 0: add(); break;
        case 1: take_next(); break;
        case 2: pass_over(); break;
        case 3: put_back(); break;
        case 4: remove(); break;
        default:
          if constexpr (TimedOrder<O>) { order_->begin_step(); }
      }
      check();
    }
    while (!known_.empty()) { forget(known_.back().get()); }
    check();
  }

  const Violations& violations() const noexcept { return broken_; }

 private:
  using Ticket = typename O::Ticket;
  struct Known {
    explicit Known(Sequence sequence) : seq(std::move(sequence)), ticket(seq) {}
    Sequence seq;
    Ticket ticket;
    bool waits = true;
  };

  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  void add() {
    if (known_.size() == 12) { return; }
    Sequence seq;
    seq.id = SeqId{next_id_++};
    seq.tokens.assign(1 + below(9), static_cast<TokenId>(below(2)));
    seq.num_prompt = seq.num_tokens();
    seq.max_total_tokens = seq.num_prompt + 1 + static_cast<std::int32_t>(below(9));
    seq.priority = static_cast<std::int32_t>(below(3));
    seq.user = below(3);
    if constexpr (PrefixCachingAllocator<A>) { seq.prefix_root = allocator_.root(""); }
    known_.push_back(std::make_unique<Known>(std::move(seq)));
    broken_.expect(known_.back()->ticket.seq == &known_.back()->seq, "Ticket(seq): ticket.seq does not point at seq");
    order_->add(known_.back()->ticket);
  }

  void take_next() {
    if (Ticket* const next = order_->next(std::as_const(allocator_))) { take(*known_of(*next)); }
  }

  void take(Known& k) {
    order_->take(k.ticket);
    k.waits = false;
    k.seq.status = SeqStatus::running;
    if constexpr (MeteringOrder<O>) { order_->served(k.ticket, 0, static_cast<std::int32_t>(1 + below(4))); }
  }

  /// As a scheduler passes over long prompts: taken one after the other, put back in reverse.
  void pass_over() {
    std::vector<Known*> passed;
    for (std::uint64_t n = 1 + below(3); n > 0; --n) {
      Ticket* const next = order_->next(std::as_const(allocator_));
      if (next == nullptr) { break; }
      Known* const k = known_of(*next);
      if (k == nullptr) { return; }
      order_->take(k->ticket);
      k->waits = false;
      passed.push_back(k);
      check();
    }
    for (; !passed.empty(); passed.pop_back()) { give_back(*passed.back()); }
  }

  void give_back(Known& k) {
    order_->put_back(k.ticket);
    k.waits = true;
  }

  void put_back() {
    if (Known* const k = any(false)) {
      k->seq.status = SeqStatus::preempted;
      give_back(*k);
    }
  }

  void remove() {
    if (Known* const k = any(below(2) == 0)) { forget(k); }
  }

  void forget(Known* k) {
    order_->remove(k->ticket);
    std::erase_if(known_, [&](const auto& other) { return other.get() == k; });
  }

  Known* any(bool waits) {
    std::vector<Known*> all;
    for (const auto& k : known_) {
      if (k->waits == waits) { all.push_back(k.get()); }
    }
    return all.empty() ? nullptr : all[below(all.size())];
  }

  Known* known_of(const Ticket& ticket) {
    for (const auto& k : known_) {
      if (&k->ticket == &ticket) { return k.get(); }
    }
    broken_.expect(false, "next: a ticket that was not added, or was removed");
    return nullptr;
  }

  void check() {
    Ticket* const next = order_->next(std::as_const(allocator_));
    const bool any_waits = std::ranges::any_of(known_, [](const auto& k) { return k->waits; });
    broken_.expect(next != nullptr || !any_waits, "next: null, and somebody waits");
    if (next != nullptr) {
      const Known* const k = known_of(*next);
      broken_.expect(k == nullptr || k->waits, "next: somebody who was taken");
    }
    if constexpr (RankingOrder<O>) { check_ranks(); }
  }

  void check_ranks()
    requires RankingOrder<O>
  {
    for (const auto& a : known_) {
      for (const auto& b : known_) {
        const bool before = order_->runs_before(a->ticket, b->ticket);
        broken_.expect(before != order_->runs_before(b->ticket, a->ticket) || a == b, "runs_before: two are not in an order");
        broken_.expect(a != b || !before, "runs_before: a sequence is before itself");
        if constexpr (DisplacingOrder<O>) {
          broken_.expect(before || !order_->displaces(a->ticket, b->ticket), "displaces: somebody who runs before");
        }
        for (const auto& c : known_) {
          broken_.expect(!before || !order_->runs_before(b->ticket, c->ticket) || order_->runs_before(a->ticket, c->ticket),
                         "runs_before: not transitive");
        }
      }
    }
  }

  std::mt19937_64 random_;
  A allocator_;
  SchedulerOptions options_;
  std::unique_ptr<O> order_;
  std::vector<std::unique_ptr<Known>> known_;
  std::uint64_t next_id_ = 0;
  Violations broken_;
};

}  // namespace detail

/// Everything that the tables of Order promise, with an allocator A to look into; then a TokenBudgetScheduler with this order.
/// Reproducible: randomness is of `seed` alone.
template <class O, BlockAllocator A = PrefixCacheAllocator>
  requires Order<O, A>
Violations check_order(std::uint64_t seed = 1) {
  Violations broken;
  for (std::uint64_t run = 0; run < 50 && broken.empty(); ++run) {
    detail::OrderModel<O, A> model(seed * 50 + run);
    model.run(200);
    if (!model.violations().empty()) {
      broken.expect(false, "random operations, seed " + std::to_string(seed * 50 + run) + ": " + model.violations().text());
    }
  }
  if (broken.empty()) { broken.append(check_scheduler_policy<TokenBudgetScheduler<O>, A>(seed)); }
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
