#pragma once
/// The ParallelStrategy that splits every layer: each rank has some heads, some features of the MLP and a part of the vocabulary.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/local_ranks.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/thread_group.hpp>

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// The ranks of a process are each on a thread of its own. Two sums over the ranks a layer: after attention and after the MLP
/// (Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053).
template <class Group = ThreadGroup>
  requires RankGroup<Group>
class TensorParallel {
 public:
  class Context {
   public:
    explicit Context(Group group) : group_(std::move(group)) {}

    Rank rank() const noexcept { return group_.rank(); }
    std::uint32_t world_size() const noexcept { return group_.size(); }
    std::uint32_t num_slices() const noexcept { return group_.size(); }
    std::uint32_t slice_index() const noexcept { return index_of(rank()); }
    static constexpr std::uint32_t num_stages() noexcept { return 1; }
    static constexpr std::uint32_t stage_index() noexcept { return 0; }

    template <class T>
    void all_reduce_sum(T* data, std::int64_t n) {
      group_.all_reduce_sum(data, n);
    }
    template <class T>
    void all_gather(const T* mine, T* all, std::int64_t n) {
      group_.all_gather(mine, all, n);
    }
    void abort(std::string_view why) noexcept { group_.abort(why); }

   private:
    Group group_;
  };

  /// \param ends of this process's ranks, all of one group, by rank; at least one. Ranks that are elsewhere: AcrossProcesses.
  explicit TensorParallel(std::vector<Group> ends) : ranks_(LocalRanks<Context>::of(std::move(ends))) {}
  /// This process has one rank.
  explicit TensorParallel(Group end) : ranks_(LocalRanks<Context>::of(Context(std::move(end)))) {}
  /// Ranks of a new group.
  explicit TensorParallel(std::uint32_t num_ranks)
    requires requires { Group::make(num_ranks); }
      : TensorParallel(Group::make(num_ranks)) {}

  std::uint32_t num_local_ranks() const noexcept { return ranks_.size(); }

  template <class F>
  void for_each_rank(F&& f) {
    ranks_.for_each(std::forward<F>(f));
  }

 private:
  LocalRanks<Context> ranks_;
};
static_assert(ParallelStrategy<TensorParallel<>> && GatheringContext<TensorParallel<>::Context>);

}  // namespace nvl::inline NVL_ABI
