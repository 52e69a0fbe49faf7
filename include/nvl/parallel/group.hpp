#pragma once
/// Concept RankGroup: ranks that exchange data, each through its own end.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace nvl::inline NVL_ABI {

/// One rank's end of a group. Used by the thread that drives that rank only; `abort` may come from any thread.
///
/// Every call of one rank is matched by the same call of all others, in the same order (`send` by the `recv` of its peer). If a
/// rank fails, is late or calls something else, the calls of all others throw nvl::Error with the rank and the reason, and so
/// does every later one: the group is dead.
///
/// | expression                 | returns       | meaning                                                                       |
/// |----------------------------|---------------|-------------------------------------------------------------------------------|
/// | `cg.rank()`                | Rank          | 0 <= rank < size                                                              |
/// | `cg.size()`                | std::uint32_t | ranks of the group                                                            |
/// | `g.all_reduce_sum(data, n)`| void          | data[i] becomes the sum over the ranks, added in the order of the ranks and   |
/// |                            |               | rounded to the element once: the same bits on each of them                    |
/// | `g.all_gather(mine, all, n)`| void         | all[r * n + i] becomes `mine[i]` of rank r                                    |
/// | `g.broadcast(data, n, root)`| void         | data[i] becomes that of `root`                                                |
/// | `g.send(data, n, to)`      | void          | `data` goes to rank `to`, which receives as much; it may be reused then       |
/// | `g.recv(data, n, from)`    | void          |                                                                               |
/// | `g.barrier()`              | void          | returns when all ranks have called it                                         |
/// | `g.abort(why)`             | void          | the group is dead; whoever waits in it throws                                 |
template <class G, class T = float>
concept RankGroup = requires(G g, const G& cg, T* data, const T* mine, std::int64_t n, Rank rank, std::string_view why) {
  { cg.rank() } noexcept -> std::same_as<Rank>;
  { cg.size() } noexcept -> std::same_as<std::uint32_t>;
  g.all_reduce_sum(data, n);
  g.all_gather(mine, data, n);
  g.broadcast(data, n, rank);
  g.send(mine, n, rank);
  g.recv(data, n, rank);
  g.barrier();
  { g.abort(why) } noexcept;
};

/// Refinement: `send` of a few hundred bytes does not wait for the rank that receives them. What processes tell each other goes
/// over such a group: one may have something to say while the other computes.
///
/// | expression    | returns | meaning      |
/// |---------------|---------|--------------|
/// | `G::is_eager` | bool    | true         |
template <class G>
concept EagerRankGroup = RankGroup<G> && requires { requires G::is_eager; };

}  // namespace nvl::inline NVL_ABI
