#pragma once
/// The ParallelStrategy for long prompts: every rank has the whole model, a share of each step's tokens, and a share of the K
/// and V of each sequence.

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

/// Ranks of one process, each on a thread of its own. New K and V go round the ranks as a ring (Liu et al. 2023, ring
/// attention, arXiv:2310.01889), queries go to the K and V of earlier steps (Yang et al. 2024, arXiv:2411.01783):
/// attention/context_attention.hpp.
template <class Group = ThreadGroup>
  requires RankGroup<Group>
class ContextParallel {
 public:
  class Context {
   public:
    explicit Context(Group group) : group_(std::move(group)) {}

    Rank rank() const noexcept { return group_.rank(); }
    std::uint32_t world_size() const noexcept { return group_.size(); }
    static constexpr std::uint32_t num_slices() noexcept { return 1; }
    static constexpr std::uint32_t slice_index() noexcept { return 0; }
    static constexpr std::uint32_t num_stages() noexcept { return 1; }
    static constexpr std::uint32_t stage_index() noexcept { return 0; }
    std::uint32_t num_shares() const noexcept { return group_.size(); }
    std::uint32_t share_index() const noexcept { return index_of(rank()); }

    template <class T>
    static constexpr void all_reduce_sum(T*, std::int64_t) noexcept {}  // nobody has another slice of its layers
    template <class T>
    void gather_shares(const T* mine, T* all, std::int64_t n) {
      group_.all_gather(mine, all, n);
    }
    /// `send` waits for its `recv`, so somebody has to receive first: of any circle of ranks, those whose data goes to a lower
    /// one.
    template <class T>
    void exchange(const T* mine, std::int64_t n, std::uint32_t to, T* theirs, std::int64_t m, std::uint32_t from) {
      const bool sends_first = share_index() < to;
      if (sends_first) { group_.send(mine, n, Rank{to}); }
      group_.recv(theirs, m, Rank{from});
      if (!sends_first) { group_.send(mine, n, Rank{to}); }
    }
    void abort(std::string_view why) noexcept { group_.abort(why); }

   private:
    Group group_;
  };

  /// \param ends all ranks' ends of one group, by rank; at least one
  explicit ContextParallel(std::vector<Group> ends) : ranks_(LocalRanks<Context>::of(std::move(ends))) {}
  /// Ranks of a new group.
  explicit ContextParallel(std::uint32_t num_ranks)
    requires requires { Group::make(num_ranks); }
      : ContextParallel(Group::make(num_ranks)) {}

  std::uint32_t num_local_ranks() const noexcept { return ranks_.size(); }

  template <class F>
  void for_each_rank(F&& f) {
    ranks_.for_each(std::forward<F>(f));
  }

 private:
  LocalRanks<Context> ranks_;
};
static_assert(ParallelStrategy<ContextParallel<>> && TokenSharingContext<ContextParallel<>::Context>);

}  // namespace nvl::inline NVL_ABI
