#pragma once
/// The ParallelStrategy of one rank: every shard is the whole, every sum is what it was.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <cstdint>
#include <utility>

namespace nvl::inline NVL_ABI {

class SingleDevice {
 public:
  struct Context {
    static constexpr Rank rank() noexcept { return Rank{0}; }
    static constexpr std::uint32_t world_size() noexcept { return 1; }
    static constexpr std::uint32_t num_slices() noexcept { return 1; }
    static constexpr std::uint32_t slice_index() noexcept { return 0; }
    static constexpr std::uint32_t num_stages() noexcept { return 1; }
    static constexpr std::uint32_t stage_index() noexcept { return 0; }
    template <class T>
    static constexpr void all_reduce_sum(T*, std::int64_t) noexcept {}
  };

  static constexpr std::uint32_t num_local_ranks() noexcept { return 1; }

  template <class F>
  void for_each_rank(F&& f) {
    std::forward<F>(f)(context_, std::uint32_t{0});
  }

 private:
  Context context_;
};
static_assert(ParallelStrategy<SingleDevice> && WholeLayers<SingleDevice::Context>);

}  // namespace nvl::inline NVL_ABI
