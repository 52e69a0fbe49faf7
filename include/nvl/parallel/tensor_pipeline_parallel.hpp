#pragma once
/// The ParallelStrategy that cuts a model between layers and splits these: stages of several ranks each.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/parallel/local_ranks.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/parallel/thread_group.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace nvl::inline NVL_ABI {

/// The ranks of a process are each on a thread of its own; rank = stage * num_slices + slice. The ranks of a stage are a group and add up
/// their parts as in TensorParallel; those with the same slice are a group, along which hidden states go as in PipelineParallel.
template <class Group = ThreadGroup>
  requires RankGroup<Group>
class TensorPipelineParallel {
 public:
  class Context {
   public:
    Context(Group slices, Group stages) : slices_(std::move(slices)), stages_(std::move(stages)) {}

    Rank rank() const noexcept { return Rank{stage_index() * num_slices() + slice_index()}; }
    std::uint32_t world_size() const noexcept { return num_stages() * num_slices(); }
    std::uint32_t num_slices() const noexcept { return slices_.size(); }
    std::uint32_t slice_index() const noexcept { return index_of(slices_.rank()); }
    std::uint32_t num_stages() const noexcept { return stages_.size(); }
    std::uint32_t stage_index() const noexcept { return index_of(stages_.rank()); }

    template <class T>
    void all_reduce_sum(T* data, std::int64_t n) {
      slices_.all_reduce_sum(data, n);
    }
    template <class T>
    void all_gather(const T* mine, T* all, std::int64_t n) {
      slices_.all_gather(mine, all, n);
    }
    template <class T>
    void send_next(const T* data, std::int64_t n) {
      stages_.send(data, n, Rank{stage_index() + 1});
    }
    template <class T>
    void recv_previous(T* data, std::int64_t n) {
      stages_.recv(data, n, Rank{stage_index() - 1});
    }
    /// Whoever waits in either group throws, and aborts the other one of its own.
    void abort(std::string_view why) noexcept {
      slices_.abort(why);
      stages_.abort(why);
    }

   private:
    Group slices_, stages_;
  };

  /// Ranks of new groups: `num_stages` stages of `num_slices` each.
  TensorPipelineParallel(std::uint32_t num_stages, std::uint32_t num_slices)
    requires requires { Group::make(num_slices); }
      : ranks_(LocalRanks<Context>::template grid<Group>(num_stages, num_slices, "stages")) {}

  /// This process has one rank. Ranks that are elsewhere: AcrossProcesses.
  /// \param slices those of its stage, by slice
  /// \param stages those with its slice, by stage
  TensorPipelineParallel(Group slices, Group stages)
      : ranks_(LocalRanks<Context>::of(Context(std::move(slices), std::move(stages)))) {}
  /// The same out of `world`, whose ranks all call this.
  static TensorPipelineParallel split(Group& world, std::uint32_t num_stages)
    requires requires { world.split(num_stages); }
  {
    NVL_EXPECTS(num_stages >= 1 && world.size() % num_stages == 0, "stages", num_stages,
                "a divisor of the " + std::to_string(world.size()) + " ranks");
    const std::uint32_t num_slices = world.size() / num_stages, rank = index_of(world.rank());
    Group slices = world.split(rank / num_slices);
    Group stages = world.split(rank % num_slices);
    return {std::move(slices), std::move(stages)};
  }

  std::uint32_t num_local_ranks() const noexcept { return ranks_.size(); }

  template <class F>
  void for_each_rank(F&& f) {
    ranks_.for_each(std::forward<F>(f));
  }

 private:
  LocalRanks<Context> ranks_;
};
static_assert(ParallelStrategy<TensorPipelineParallel<>> && GatheringContext<TensorPipelineParallel<>::Context> &&
              StagedContext<TensorPipelineParallel<>::Context>);

}  // namespace nvl::inline NVL_ABI
