#pragma once
/// Conformance suite of the concept ParallelStrategy.
///
///     MyStrategy strategy(...);
///     const auto broken = nvl::testing::check_parallel_strategy(strategy);
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/parallel_strategy.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

/// What one rank says of itself.
template <class Context>
struct RankFacts {
  int calls = 0;
  const Context* address = nullptr;
  std::uint32_t rank = 0, world_size = 0, num_slices = 0, slice_index = 0, num_stages = 0, stage_index = 0;
  std::uint32_t num_shares = 1, share_index = 0;
  Shard layers, heads;
};

/// Their shards of 0 layers and heads are not asked for.
template <class P>
auto ask_ranks(P& strategy, std::int32_t num_layers = 0, std::int32_t num_heads = 0) {
  std::vector<RankFacts<typename P::Context>> facts(strategy.num_local_ranks());
  strategy.for_each_rank([&](typename P::Context& context, std::uint32_t i) {
    if (i >= facts.size()) { raise(Error("rank index " + std::to_string(i) + " is out of range")); }
    auto& mine = facts[i];
    ++mine.calls;
    mine.address = &context;
    mine.rank = index_of(context.rank());
    mine.world_size = context.world_size();
    mine.num_slices = context.num_slices();
    mine.slice_index = context.slice_index();
    mine.num_stages = context.num_stages();
    mine.stage_index = context.stage_index();
    if constexpr (TokenSharingContext<typename P::Context>) {
      mine.num_shares = context.num_shares();
      mine.share_index = context.share_index();
    }
    if (num_layers > 0) { mine.layers = slice_of(num_layers, mine.stage_index, mine.num_stages); }
    if (num_heads > 0) { mine.heads = slice_of(num_heads, mine.slice_index, mine.num_slices); }
  });
  return facts;
}

/// Those of all ranks of the world, as far as they are known here: a process asks the others of its strategy's.
template <class P, class Facts>
Facts ask_world(P& strategy, const Facts& local) {
  if constexpr (RemoteRanks<P>) {
    using Fact = typename Facts::value_type;
    auto& processes = strategy.processes();
    const auto num_mine = static_cast<std::uint32_t>(local.size());
    std::vector<std::uint32_t> counts(processes.size());
    processes.all_gather(&num_mine, counts.data(), 1);
    const std::size_t most = *std::max_element(counts.begin(), counts.end());
    Facts mine = local, all(most * counts.size()), world;
    mine.resize(most);
    processes.all_gather(mine.data(), all.data(), static_cast<std::int64_t>(most));
    for (std::size_t p = 0; p < counts.size(); ++p) {
      const Fact* const first = all.data() + p * most;
      world.insert(world.end(), first, first + counts[p]);
    }
    return world;
  } else {
    return local;
  }
}

/// Together the ranks hold each head of each layer once for each share of the tokens.
template <class Facts>
void check_shards(Violations& broken, const Facts& facts, std::int32_t num_layers, std::int32_t num_heads) {
  const std::string of = std::to_string(num_layers) + " layers x " + std::to_string(num_heads) + " heads";
  std::vector<int> held(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_heads), 0);
  for (const auto& f : facts) {
    const bool sane = 0 <= f.layers.begin && f.layers.begin <= f.layers.end && f.layers.end <= num_layers && 0 <= f.heads.begin &&
                      f.heads.begin <= f.heads.end && f.heads.end <= num_heads;
    if (!broken.expect(sane, "a shard of " + of + " is out of range")) { return; }
    for (std::int32_t l = f.layers.begin; l < f.layers.end; ++l) {
      const std::size_t row = static_cast<std::size_t>(l) * static_cast<std::size_t>(num_heads);
      for (std::int32_t h = f.heads.begin; h < f.heads.end; ++h) { ++held[row + static_cast<std::size_t>(h)]; }
    }
  }
  const int num_shares = facts.empty() ? 1 : static_cast<int>(facts.front().num_shares);
  for (const int count : held) {
    if (!broken.expect(count == num_shares, "of " + of + ", one is held by " + std::to_string(count) + " ranks")) { return; }
  }
}

/// Sums over the ranks with the same layers, the same bits each time.
/// \param facts of the ranks of this process
template <class P, class Facts>
void check_all_reduce(Violations& broken, P& strategy, const Facts& facts, const Facts& world, std::int64_t count) {
  std::vector<std::vector<float>> first, second;
  for (auto* const results : {&first, &second}) {
    results->resize(facts.size());
    strategy.for_each_rank([&](typename P::Context& context, std::uint32_t i) {
      std::mt19937 random(index_of(context.rank()) + 1);
      std::vector<float>& data = (*results)[i];
      for (std::int64_t k = 0; k < count; ++k) { data.push_back(static_cast<float>(random() % 2001) - 1000.0f); }
      context.all_reduce_sum(data.data(), count);
    });
  }
  broken.expect(first == second, "all_reduce_sum of the same data gives other bits the second time");
  for (std::size_t i = 0; i < facts.size(); ++i) {
    std::vector<float> expected(static_cast<std::size_t>(count), 0.0f);  // whole numbers: exact in any order
    for (const auto& other : world) {
      if (other.stage_index != facts[i].stage_index || other.share_index != facts[i].share_index) { continue; }
      std::mt19937 random(other.rank + 1);
      for (float& sum : expected) { sum += static_cast<float>(random() % 2001) - 1000.0f; }
    }
    broken.expect(first[i] == expected,
                  "all_reduce_sum of " + std::to_string(count) + " numbers is not the sum over the ranks of a layer");
  }
}

/// Every rank of a layer gets what each of them has, by slice.
template <class P, class Facts>
void check_all_gather(Violations& broken, P& strategy, const Facts& facts, std::int64_t count) {
  // What each has: the layers that it is of, and its slice.
  const auto value = [](Shard layers, std::uint32_t slice) {
    return static_cast<float>(layers.begin * 1000) + static_cast<float>(slice);
  };
  std::vector<char> right(facts.size(), 0);
  strategy.for_each_rank([&](typename P::Context& context, std::uint32_t i) {
    const auto n = static_cast<std::size_t>(count);
    const std::vector<float> mine(n, value(facts[i].layers, facts[i].slice_index));
    std::vector<float> all(n * facts[i].num_slices, -1.0f), expected;
    for (std::uint32_t slice = 0; slice < facts[i].num_slices; ++slice) {
      expected.insert(expected.end(), n, value(facts[i].layers, slice));
    }
    context.all_gather(mine.data(), all.data(), count);
    right[i] = all == expected ? 1 : 0;
  });
  for (const char ok : right) {
    if (!broken.expect(ok != 0, "all_gather does not put the ranks' data side by side, by slice")) { return; }
  }
}

/// What a stage sends, the next one gets, in the order in which it was sent.
template <class P, class Facts>
void check_stages(Violations& broken, P& strategy, const Facts& facts, std::int64_t count) {
  const auto n = static_cast<std::size_t>(count);
  std::vector<char> right(facts.size(), 1);
  strategy.for_each_rank([&](typename P::Context& context, std::uint32_t i) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto value = [&](std::uint32_t stage) {
        return static_cast<float>(100 * repeat + 10 * static_cast<int>(stage)) + static_cast<float>(facts[i].slice_index);
      };
      std::vector<float> data(n, -1.0f);
      if (facts[i].stage_index > 0) {
        context.recv_previous(data.data(), count);
        if (data != std::vector<float>(n, value(facts[i].stage_index - 1))) { right[i] = 0; }
      }
      data.assign(n, value(facts[i].stage_index));
      if (facts[i].stage_index + 1 < facts[i].num_stages) { context.send_next(data.data(), count); }
    }
  });
  for (const char ok : right) {
    if (!broken.expect(ok != 0, "recv_previous does not get what the stage before has sent")) { return; }
  }
}

/// Ranks with the same weights get what each of them has, by share; and what those at each distance send them.
template <class P, class Facts>
void check_shares(Violations& broken, P& strategy, const Facts& facts, std::int64_t count) {
  std::vector<char> gathered(facts.size(), 0), exchanged(facts.size(), 1);
  // What each has: its layers, its slice and its share, and for exchanges whom it is for.
  const auto value = [&](std::size_t i, std::uint32_t share, std::uint32_t to) {
    return static_cast<float>(1000 * (10 * facts[i].stage_index + facts[i].slice_index) + 10 * share + to);
  };
  strategy.for_each_rank([&](typename P::Context& context, std::uint32_t i) {
    const auto n = static_cast<std::size_t>(count);
    const std::uint32_t num = facts[i].num_shares, mine = facts[i].share_index;
    std::vector<float> all(n * num, -1.0f), expected;
    for (std::uint32_t share = 0; share < num; ++share) { expected.insert(expected.end(), n, value(i, share, 0)); }
    context.gather_shares(std::vector<float>(n, value(i, mine, 0)).data(), all.data(), count);
    gathered[i] = all == expected ? 1 : 0;
    for (std::uint32_t distance = 1; distance < num; ++distance) {
      // Lengths differ: share s sends s elements more.
      const std::uint32_t to = (mine + distance) % num, from = (mine + num - distance) % num;
      const std::vector<float> outgoing(n + mine, value(i, mine, to));
      std::vector<float> incoming(n + from, -1.0f);
      context.exchange(outgoing.data(), count + mine, to, incoming.data(), count + from, from);
      if (incoming != std::vector<float>(n + from, value(i, from, mine))) { exchanged[i] = 0; }
    }
  });
  for (std::size_t i = 0; i < facts.size(); ++i) {
    broken.expect(gathered[i] != 0, "gather_shares does not put the ranks' data side by side, by share");
    broken.expect(exchanged[i] != 0, "exchange does not get what the rank with the share `from` has sent");
  }
}

}  // namespace detail

/// Everything that the tables of ParallelStrategy, RankContext, its refinements and RemoteRanks promise. Where there are ranks in
/// other processes, each process calls it at the same time. Shards and sums are checked if all ranks of the world are there.
template <ParallelStrategy P>
Violations check_parallel_strategy(P& strategy) {
  Violations broken;
  const auto facts = detail::ask_ranks(strategy);
  if (!broken.expect(!facts.empty(), "there is no local rank")) { return broken; }
  const std::uint32_t world = facts.front().world_size;
  std::vector<bool> seen(world, false);
  const auto all = detail::ask_world(strategy, facts);
  for (const auto& f : all) {
    broken.expect(f.calls == 1, "for_each_rank called the function " + std::to_string(f.calls) + " times for one rank");
    broken.expect(f.world_size == world, "ranks disagree on world_size");
    if (!broken.expect(f.slice_index < f.num_slices, "a slice_index is not below num_slices")) { return broken; }
    if (!broken.expect(f.stage_index < f.num_stages, "a stage_index is not below num_stages")) { return broken; }
    if (!broken.expect(f.share_index < f.num_shares, "a share_index is not below num_shares")) { return broken; }
    if (!broken.expect(f.rank < world, "a rank is not below world_size")) { return broken; }
    broken.expect(!seen[f.rank], "two contexts have the same rank");
    seen[f.rank] = true;
  }
  broken.expect(facts.size() <= world, "there are more local ranks than world_size");
  if constexpr (RemoteRanks<P>) {
    broken.expect(all.size() == world, "the processes do not drive all ranks of the world");
    broken.expect(strategy.pulse().count() > 0, "a pulse that is not positive");
  }
  const auto again = detail::ask_ranks(strategy);
  for (std::size_t i = 0; i < facts.size(); ++i) {
    broken.expect(again[i].address == facts[i].address && again[i].rank == facts[i].rank, "a context moved, or changed its rank");
  }
  if (all.size() == world) {
    const auto n = static_cast<std::int32_t>(world);
    for (const std::int32_t factor : {1, 2, 12}) {
      const auto held = detail::ask_world(strategy, detail::ask_ranks(strategy, factor * n, factor * n));
      detail::check_shards(broken, held, factor * n, factor * n);
    }
    const auto shards = detail::ask_ranks(strategy, n, n), all_shards = detail::ask_world(strategy, shards);
    for (const std::int64_t count : {0, 1, 7, 4096}) {
      detail::check_all_reduce(broken, strategy, shards, all_shards, count);
      if constexpr (GatheringContext<typename P::Context>) { detail::check_all_gather(broken, strategy, shards, count); }
      if constexpr (StagedContext<typename P::Context>) { detail::check_stages(broken, strategy, shards, count); }
      if constexpr (TokenSharingContext<typename P::Context>) { detail::check_shares(broken, strategy, shards, count); }
    }
  }
#if defined(__cpp_exceptions)
  if constexpr (RemoteRanks<P>) { strategy.processes().barrier(); }  // what comes ends the ranks' groups
  std::atomic<std::uint32_t> returned{0};
  std::string message;
  contain(
      [&] {
        strategy.for_each_rank([&](typename P::Context&, std::uint32_t i) {
          if (i + 1 == facts.size()) { raise(Error("on purpose")); }
          ++returned;
        });
      },
      [&](const char* what) { message = what; });
  broken.expect(message == "on purpose", "the exception of a rank did not come out of for_each_rank");
  broken.expect(returned == facts.size() - 1, "for_each_rank returned before every rank did");
  broken.expect(detail::ask_ranks(strategy).size() == facts.size(), "the strategy is unusable after an exception");
#endif
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
