#pragma once
/// The ParallelStrategy of several ranks a share: tokens are shared out as in ContextParallel, and each layer is split as in
/// TensorParallel.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/context_parallel.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/local_ranks.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/thread_group.hpp>

#include <cstdint>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Ranks of one process, each on a thread of its own. Rank r has slice r % num_slices of share r / num_slices: the ranks of one
/// share are a group that adds up their parts, and those with the same slice are a group, along which K, V and queries of their
/// heads go.
template <class Group = ThreadGroup>
  requires RankGroup<Group>
class TensorContextParallel {
 public:
  class Context {
   public:
    Context(Group slices, Group shares) : slices_(std::move(slices)), shares_(std::move(shares)) {}

    Rank rank() const noexcept { return Rank{share_index() * num_slices() + slice_index()}; }
    std::uint32_t world_size() const noexcept { return num_shares() * num_slices(); }
    std::uint32_t num_slices() const noexcept { return slices_.size(); }
    std::uint32_t slice_index() const noexcept { return index_of(slices_.rank()); }
    static constexpr std::uint32_t num_stages() noexcept { return 1; }
    static constexpr std::uint32_t stage_index() noexcept { return 0; }
    std::uint32_t num_shares() const noexcept { return shares_.num_shares(); }
    std::uint32_t share_index() const noexcept { return shares_.share_index(); }

    template <class T>
    void all_reduce_sum(T* data, std::int64_t n) {
      slices_.all_reduce_sum(data, n);
    }
    template <class T>
    void all_gather(const T* mine, T* all, std::int64_t n) {
      slices_.all_gather(mine, all, n);
    }
    template <class T>
    void gather_shares(const T* mine, T* all, std::int64_t n) {
      shares_.gather_shares(mine, all, n);
    }
    template <class T>
    void exchange(const T* mine, std::int64_t n, std::uint32_t to, T* theirs, std::int64_t m, std::uint32_t from) {
      shares_.exchange(mine, n, to, theirs, m, from);
    }
    /// Whoever waits in either group throws, and aborts the other one of its own.
    void abort(std::string_view why) noexcept {
      slices_.abort(why);
      shares_.abort(why);
    }

   private:
    Group slices_;
    typename ContextParallel<Group>::Context shares_;
  };

  /// Ranks of new groups: `num_shares` shares of `num_slices` ranks each.
  TensorContextParallel(std::uint32_t num_shares, std::uint32_t num_slices)
    requires requires { Group::make(num_slices); }
      : ranks_(LocalRanks<Context>::template grid<Group>(num_shares, num_slices, "shares")) {}

  std::uint32_t num_local_ranks() const noexcept { return ranks_.size(); }

  template <class F>
  void for_each_rank(F&& f) {
    ranks_.for_each(std::forward<F>(f));
  }

 private:
  LocalRanks<Context> ranks_;
};
static_assert(ParallelStrategy<TensorContextParallel<>> && GatheringContext<TensorContextParallel<>::Context> &&
              TokenSharingContext<TensorContextParallel<>::Context>);

}  // namespace nvl::inline NVL_ABI
