// EXPECT: nvl: an Order needs `void put_back(Ticket&) noexcept`
#include <nvl/sched/token_budget_scheduler.hpp>

struct MyOrder {
  struct Ticket {
    explicit Ticket(nvl::Sequence&);
    nvl::Sequence* seq;
  };
  explicit MyOrder(const nvl::SchedulerOptions&);
  void add(Ticket&);
  template <nvl::BlockAllocator A>
  Ticket* next(const A&) noexcept;
  void take(Ticket&) noexcept;
#ifdef NVL_FIXED
  void put_back(Ticket&) noexcept;
#else
  void put_back(Ticket&);
#endif
  void remove(Ticket&) noexcept;
};
static_assert(nvl::require_scheduler_policy<nvl::TokenBudgetScheduler<MyOrder>>());
