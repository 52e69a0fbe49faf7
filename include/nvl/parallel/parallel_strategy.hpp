#pragma once
/// Concept ParallelStrategy: which rank computes which shard, and how ranks add up their parts.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>

#include <chrono>
#include <concepts>
#include <cstdint>
#include <type_traits>

namespace nvl::inline NVL_ABI {

/// Half-open range of heads, columns, rows or layers.
struct Shard {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  constexpr std::int32_t size() const noexcept { return end - begin; }
  friend constexpr bool operator==(const Shard&, const Shard&) = default;
};

/// What one rank knows of the others. Used by the thread that drives that rank only.
///
/// | expression                  | returns       | meaning                                                                     |
/// |-----------------------------|---------------|-----------------------------------------------------------------------------|
/// | `cc.rank()`                 | Rank          | 0 <= rank < world_size                                                      |
/// | `cc.world_size()`           | std::uint32_t | ranks that share one model                                                  |
/// | `cc.num_slices()`           | std::uint32_t | ranks that share a layer, each with its slice of it                         |
/// | `cc.slice_index()`          | std::uint32_t | which of them this is                                                       |
/// | `cc.num_stages()`           | std::uint32_t | parts of consecutive layers that the model is cut into                      |
/// | `cc.stage_index()`          | std::uint32_t | which of them this rank holds, in the order of the layers                   |
/// | `c.all_reduce_sum(data, n)` | void          | data[i] becomes the sum over the ranks that share a layer, in a fixed order |
///
/// The ranks that share a layer have one slice of it each; ranks with the same slice of the same stage share tokens
/// (TokenSharingContext).
template <class C, class Element = float>
concept RankContext = requires(C c, const C& cc, Element* data, std::int64_t count) {
  { cc.rank() } noexcept -> std::same_as<Rank>;
  { cc.world_size() } noexcept -> std::same_as<std::uint32_t>;
  { cc.num_slices() } noexcept -> std::same_as<std::uint32_t>;
  { cc.slice_index() } noexcept -> std::same_as<std::uint32_t>;
  { cc.num_stages() } noexcept -> std::same_as<std::uint32_t>;
  { cc.stage_index() } noexcept -> std::same_as<std::uint32_t>;
  c.all_reduce_sum(data, count);
};

/// Layers that are not split, as the compiler knows it: a rank has the whole of its layers and of the vocabulary.
template <class C>
concept WholeLayers = requires { requires C::num_slices() == 1; };

/// Refinement: hidden states cross from stage to stage.
///
/// | expression                  | returns | meaning                                                                        |
/// |-----------------------------|---------|--------------------------------------------------------------------------------|
/// | `c.send_next(data, n)`      | void    | `data` goes to the next stage's rank with the same slice                        |
/// | `c.recv_previous(data, n)`  | void    | what that of the stage before has sent                                          |
template <class C, class Element = float>
concept StagedContext = RankContext<C, Element> && requires(C c, const Element* from, Element* to, std::int64_t n) {
  c.send_next(from, n);
  c.recv_previous(to, n);
};

/// Refinement: ranks that share a layer put their slices of its result side by side.
///
/// | expression                   | returns | meaning                                                              |
/// |------------------------------|---------|----------------------------------------------------------------------|
/// | `c.all_gather(mine, all, n)` | void    | all[i * n + k] becomes `mine[k]` of the rank with the i-th slice      |
template <class C, class Element = float>
concept GatheringContext =
    RankContext<C, Element> && requires(C c, const Element* mine, Element* all, std::int64_t n) { c.all_gather(mine, all, n); };

/// Refinement: ranks with the same weights share out the tokens of each step, and the K and V of each sequence.
///
/// | expression                                | returns       | meaning                                                       |
/// |-------------------------------------------|---------------|---------------------------------------------------------------|
/// | `cc.num_shares()`                         | std::uint32_t | ranks that share the tokens                                   |
/// | `cc.share_index()`                        | std::uint32_t | which of them this is                                         |
/// | `c.gather_shares(mine, all, n)`           | void          | all[i * n + k] becomes `mine[k]` of the rank with the i-th    |
/// |                                           |               | share                                                         |
/// | `c.exchange(mine, n, to, theirs, m, from)`| void          | `mine` goes to the rank with share `to`, `theirs` comes from  |
/// |                                           |               | that with share `from`; all of them call it, each with the    |
/// |                                           |               | same distance from its own share to `to`, and from `from` to it|
template <class C, class Element = float>
concept TokenSharingContext = RankContext<C, Element> && requires(C c, const C& cc, const Element* mine, Element* theirs,
                                                                  std::int64_t n, std::uint32_t share) {
  { cc.num_shares() } noexcept -> std::same_as<std::uint32_t>;
  { cc.share_index() } noexcept -> std::same_as<std::uint32_t>;
  c.gather_shares(mine, theirs, n);
  c.exchange(mine, n, share, theirs, n, share);
};

/// Of n heads, columns or rows of the vocabulary, the part of the `index`-th of `count` ranks: as even as can be. Of fewer than `count`, one, and several ranks have
/// the same.
constexpr Shard slice_of(std::int32_t n, std::uint32_t index, std::uint32_t count) noexcept {
  const auto bound = [&](std::uint32_t i) { return static_cast<std::int32_t>(std::int64_t{n} * i / count); };
  const std::int32_t begin = bound(index);
  return {begin, n > 0 && n < static_cast<std::int32_t>(count) ? begin + 1 : bound(index + 1)};
}

namespace detail::parallel_strategy {

template <class P>
concept has_context = RankContext<typename P::Context>;
template <class P>
concept has_num_local_ranks = requires(const P& p) {
  { p.num_local_ranks() } noexcept -> std::same_as<std::uint32_t>;
};
template <class P>
concept has_for_each_rank = requires(P p, void (*f)(typename P::Context&, std::uint32_t)) { p.for_each_rank(f); };

}  // namespace detail::parallel_strategy

/// | expression            | returns       | meaning                                                                               |
/// |-----------------------|---------------|---------------------------------------------------------------------------------------|
/// | `P::Context`          |               | a RankContext; lives at one address as long as the strategy does                      |
/// | `cp.num_local_ranks()`| std::uint32_t | ranks that this process drives                                                        |
/// | `p.for_each_rank(f)`  | void          | calls `f(context, i)`, 0 <= i < num_local_ranks, once a rank and side by side; returns|
/// |                       |               | when all did; the first exception of any rank is thrown again here                    |
template <class P>
concept ParallelStrategy = std::movable<P> && detail::parallel_strategy::has_context<P> &&
                           detail::parallel_strategy::has_num_local_ranks<P> && detail::parallel_strategy::has_for_each_rank<P>;

/// Refinement: there are ranks in other processes. That with rank 0 of the group of processes has the engine; the others follow it
/// (nvl/engine/rank_follower.hpp). Together they drive each rank of the world once.
///
/// | expression      | returns                   | meaning                                                           |
/// |-----------------|---------------------------|-------------------------------------------------------------------|
/// | `p.processes()` | EagerRankGroup&           | of what processes tell each other, not of what ranks compute      |
/// | `cp.pulse()`    | std::chrono::milliseconds | so often, a few times within the group's deadline, a process says |
/// |                 |                           | that it lives if it says nothing else                             |
template <class P>
concept RemoteRanks = ParallelStrategy<P> && requires(P p, const P& cp) {
  requires EagerRankGroup<std::remove_reference_t<decltype(p.processes())>>;
  { cp.pulse() } noexcept -> std::same_as<std::chrono::milliseconds>;
};

/// The least RankContext and ParallelStrategy. Declared, not defined.
struct RankContextArchetype {
  Rank rank() const noexcept;
  std::uint32_t world_size() const noexcept;
  std::uint32_t num_slices() const noexcept;
  std::uint32_t slice_index() const noexcept;
  std::uint32_t num_stages() const noexcept;
  std::uint32_t stage_index() const noexcept;
  template <class T>
  void all_reduce_sum(T*, std::int64_t);
};
struct ParallelStrategyArchetype {
  using Context = RankContextArchetype;
  std::uint32_t num_local_ranks() const noexcept;
  template <class F>
  void for_each_rank(F&&);
};

/// True if P is a ParallelStrategy; else the compiler says which member is missing. For use beside a strategy of one's own:
/// `static_assert(nvl::require_parallel_strategy<MyStrategy>());`
template <class P>
consteval bool require_parallel_strategy() {
  namespace has = detail::parallel_strategy;
  static_assert(std::movable<P>, "nvl: a ParallelStrategy must be movable");
  static_assert(has::has_context<P>,
                "nvl: a ParallelStrategy needs the type `Context`, a RankContext (nvl/parallel/parallel_strategy.hpp)");
  static_assert(has::has_num_local_ranks<P>, "nvl: a ParallelStrategy needs `std::uint32_t num_local_ranks() const noexcept`");
  static_assert(has::has_for_each_rank<P>,
                "nvl: a ParallelStrategy needs `void for_each_rank(f)` with f(Context&, std::uint32_t)");
  return true;
}
static_assert(require_parallel_strategy<ParallelStrategyArchetype>());

}  // namespace nvl::inline NVL_ABI
