// EXPECT: nvl: a ParallelStrategy needs `void for_each_rank(f)` with f(Context&, std::uint32_t)
#include <nvl/parallel/parallel_strategy.hpp>

struct MyStrategy {
  using Context = nvl::RankContextArchetype;
  std::uint32_t num_local_ranks() const noexcept;
#ifdef NVL_FIXED
  template <class F>
  void for_each_rank(F&&);
#endif
};
static_assert(nvl::require_parallel_strategy<MyStrategy>());
