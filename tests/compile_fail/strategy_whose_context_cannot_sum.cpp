// EXPECT: nvl: a ParallelStrategy needs the type `Context`, a RankContext
#include <nvl/parallel/parallel_strategy.hpp>

struct MyContext {
  nvl::Rank rank() const noexcept;
  std::uint32_t world_size() const noexcept;
  std::uint32_t num_slices() const noexcept;
  std::uint32_t slice_index() const noexcept;
  std::uint32_t num_stages() const noexcept;
  std::uint32_t stage_index() const noexcept;
#ifdef NVL_FIXED
  void all_reduce_sum(float*, std::int64_t);
#endif
};
struct MyStrategy {
  using Context = MyContext;
  std::uint32_t num_local_ranks() const noexcept;
  template <class F>
  void for_each_rank(F&&);
};
static_assert(nvl::require_parallel_strategy<MyStrategy>());
