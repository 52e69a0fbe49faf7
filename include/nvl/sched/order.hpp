#pragma once
/// Concept Order: of the sequences that wait, who is admitted next; of those that run, who loses its blocks first.

#include <nvl/core/config.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/sched/scheduler_policy.hpp>
#include <nvl/sched/sequence.hpp>

#include <concepts>
#include <cstdint>

namespace nvl::inline NVL_ABI {

namespace detail::order {

template <class O>
concept has_ticket = requires {
  typename O::Ticket;
  requires std::constructible_from<typename O::Ticket, Sequence&>;
};
template <class O>
concept has_add = requires(O o, typename O::Ticket& ticket) { o.add(ticket); };
template <class O, class A>
concept has_next = requires(O o, const A& allocator) {
  { o.next(allocator) } noexcept -> std::same_as<typename O::Ticket*>;
};
template <class O>
concept has_take = requires(O o, typename O::Ticket& ticket) {
  { o.take(ticket) } noexcept;
};
template <class O>
concept has_put_back = requires(O o, typename O::Ticket& ticket) {
  { o.put_back(ticket) } noexcept;
};
template <class O>
concept has_remove = requires(O o, typename O::Ticket& ticket) {
  { o.remove(ticket) } noexcept;
};

}  // namespace detail::order

/// Ranks sequences for a TokenBudgetScheduler, which keeps a `Ticket` for each: whatever the order notes of it, at one address
/// from `add` to `remove`. A sequence waits from `add` or `put_back` until `take`. Constructible from `SchedulerOptions`. Sees an
/// allocator of type A, to look into its prefix cache. KeyedOrder (sched/keyed_order.hpp) makes an order of a function.
///
/// | expression           | returns   | throws | meaning                                                                          |
/// |----------------------|-----------|--------|----------------------------------------------------------------------------------|
/// | `O::Ticket(seq)`     |           | may    | a note of `seq` that has not been added; `ticket.seq` points at it               |
/// | `o.add(ticket)`      | void      | may    | it waits; having thrown, the order is what it was                                |
/// | `o.next(ca)`         | Ticket*   | never  | of those that wait, who is admitted first; null: nobody waits                    |
/// | `o.take(ticket)`     | void      | never  | it waits no longer, whether it was next or not                                   |
/// | `o.put_back(ticket)` | void      | never  | it waits again: preempted, or passed over in one step; unless the order knows    |
/// |                      |           |        | better, it is in front, before those put back earlier                            |
/// | `o.remove(ticket)`   | void      | never  | forgets it, whether it waits or not                                              |
template <class O, class A = BlockAllocatorArchetype>
concept Order = std::movable<O> && std::constructible_from<O, const SchedulerOptions&> && BlockAllocator<A> &&
                detail::order::has_ticket<O> && detail::order::has_add<O> && detail::order::has_next<O, A> &&
                detail::order::has_take<O> && detail::order::has_put_back<O> && detail::order::has_remove<O>;

/// Refinement: running sequences have ranks too. The last in rank loses its blocks first, and prompts are computed in this order.
/// Without it both follow the order of admission.
///
/// | expression             | returns | meaning                                                                                |
/// |------------------------|---------|----------------------------------------------------------------------------------------|
/// | `co.runs_before(a, b)` | bool    | noexcept; a strict total order of tickets that does not change while they are taken    |
template <class O>
concept RankingOrder = requires(const O& o, const typename O::Ticket& ticket) {
  { o.runs_before(ticket, ticket) } noexcept -> std::same_as<bool>;
};

/// Refinement of RankingOrder: who waits may take the blocks of who runs.
///
/// | expression                | returns | meaning                                                                              |
/// |---------------------------|---------|--------------------------------------------------------------------------------------|
/// | `co.displaces(next, run)` | bool    | noexcept; `run` is preempted if `next` finds no room; implies `runs_before(next, run)` |
template <class O>
concept DisplacingOrder = RankingOrder<O> && requires(const O& o, const typename O::Ticket& ticket) {
  { o.displaces(ticket, ticket) } noexcept -> std::same_as<bool>;
};

/// Refinement: is told what each sequence gets.
///
/// | expression                      | returns | meaning                                                                   |
/// |---------------------------------|---------|---------------------------------------------------------------------------|
/// | `o.served(ticket, first, count)`| void    | noexcept; tokens [first, first + count) of the sequence are planned       |
template <class O>
concept MeteringOrder = requires(O o, typename O::Ticket& ticket, std::int32_t tokens) {
  { o.served(ticket, tokens, tokens) } noexcept;
};

/// Refinement: has a sense of time.
///
/// | expression       | returns | meaning                         |
/// |------------------|---------|---------------------------------|
/// | `o.begin_step()` | void    | noexcept; a step is planned now |
template <class O>
concept TimedOrder = requires(O o) {
  { o.begin_step() } noexcept;
};

/// The least Order. Declared, not defined.
struct OrderArchetype {
  struct Ticket {
    explicit Ticket(Sequence&);
    Sequence* seq;
  };
  explicit OrderArchetype(const SchedulerOptions&);
  void add(Ticket&);
  template <BlockAllocator A>
  Ticket* next(const A&) noexcept;
  void take(Ticket&) noexcept;
  void put_back(Ticket&) noexcept;
  void remove(Ticket&) noexcept;
};

/// True if O is an Order over A; else the compiler says which member is missing.
template <class O, class A = BlockAllocatorArchetype>
consteval bool require_order() {
  namespace has = detail::order;
  static_assert(std::movable<O>, "nvl: an Order must be movable");
  static_assert(std::constructible_from<O, const SchedulerOptions&>,
                "nvl: an Order needs a constructor from `const SchedulerOptions&`");
  static_assert(has::has_ticket<O>, "nvl: an Order needs a type `Ticket` with a constructor from `Sequence&`");
  static_assert(has::has_add<O>, "nvl: an Order needs `void add(Ticket&)`");
  static_assert(
      has::has_next<O, A>,
      "nvl: an Order needs `Ticket* next(const Allocator&) noexcept` for this allocator (LongestPrefixOrder: one with a "
      "prefix cache, such as PrefixCacheAllocator)");
  static_assert(has::has_take<O>, "nvl: an Order needs `void take(Ticket&) noexcept`");
  static_assert(has::has_put_back<O>, "nvl: an Order needs `void put_back(Ticket&) noexcept`");
  static_assert(has::has_remove<O>, "nvl: an Order needs `void remove(Ticket&) noexcept`");
  // A refinement with a spelling mistake would otherwise be left unused without a word.
  static_assert(
      !requires { &O::runs_before; } || RankingOrder<O>,
      "nvl: the order has `runs_before` but is no RankingOrder: compare with the table in nvl/sched/order.hpp");
  static_assert(
      !requires { &O::displaces; } || DisplacingOrder<O>,
      "nvl: the order has `displaces` but is no DisplacingOrder: compare with the table in nvl/sched/order.hpp");
  static_assert(
      !requires { &O::served; } || MeteringOrder<O>,
      "nvl: the order has `served` but is no MeteringOrder: compare with the table in nvl/sched/order.hpp");
  return true;
}
static_assert(require_order<OrderArchetype>());

}  // namespace nvl::inline NVL_ABI
