#pragma once
/// The ParallelStrategy that cuts a model between layers: each rank has a stage, and only hidden states cross.

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

/// The ranks of a process are each on a thread of its own and have the whole of their layers (Huang et al. 2019, GPipe, arXiv:1811.06965).
/// Between two stages go hidden_size numbers a token, and nothing else.
template <class Group = ThreadGroup>
  requires RankGroup<Group>
class PipelineParallel {
 public:
  class Context {
   public:
    explicit Context(Group group) : group_(std::move(group)) {}

    Rank rank() const noexcept { return group_.rank(); }
    std::uint32_t world_size() const noexcept { return group_.size(); }
    static constexpr std::uint32_t num_slices() noexcept { return 1; }
    static constexpr std::uint32_t slice_index() noexcept { return 0; }
    std::uint32_t num_stages() const noexcept { return group_.size(); }
    std::uint32_t stage_index() const noexcept { return index_of(rank()); }

    template <class T>
    static constexpr void all_reduce_sum(T*, std::int64_t) noexcept {}  // nobody shares its layers
    template <class T>
    void send_next(const T* data, std::int64_t n) {
      group_.send(data, n, Rank{stage_index() + 1});
    }
    template <class T>
    void recv_previous(T* data, std::int64_t n) {
      group_.recv(data, n, Rank{stage_index() - 1});
    }
    void abort(std::string_view why) noexcept { group_.abort(why); }

   private:
    Group group_;
  };

  /// \param ends of this process's ranks, all of one group, by rank; at least one. Ranks that are elsewhere: AcrossProcesses.
  explicit PipelineParallel(std::vector<Group> ends) : ranks_(LocalRanks<Context>::of(std::move(ends))) {}
  /// This process has one rank.
  explicit PipelineParallel(Group end) : ranks_(LocalRanks<Context>::of(Context(std::move(end)))) {}
  /// Ranks of a new group.
  explicit PipelineParallel(std::uint32_t num_ranks)
    requires requires { Group::make(num_ranks); }
      : PipelineParallel(Group::make(num_ranks)) {}

  std::uint32_t num_local_ranks() const noexcept { return ranks_.size(); }

  template <class F>
  void for_each_rank(F&& f) {
    ranks_.for_each(std::forward<F>(f));
  }

 private:
  LocalRanks<Context> ranks_;
};
static_assert(ParallelStrategy<PipelineParallel<>> && StagedContext<PipelineParallel<>::Context>);

}  // namespace nvl::inline NVL_ABI
