#pragma once
/// Conformance suite of the concept PrefixCachingAllocator and its refinements, one promise at a time. check_block_allocator runs it too.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/prefix_cache.hpp>
#include <nvl/testing/violations.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

/// A pool, and the two things a test does with it: store a sequence of tokens, look one up.
template <class A>
class PrefixCacheFixture {
 public:
  explicit PrefixCacheFixture(const BlockPoolShape& shape) : allocator(shape), block_size_(shape.block_size) {}

  /// Blocks of a sequence that computes `tokens` (whole blocks) from the start and publishes them.
  std::vector<BlockId> store(std::string_view salt, std::span<const TokenId> tokens) {
    std::vector<BlockId> table(tokens.size() / block_size_);
    if (!allocator.try_allocate(table)) { return {}; }
    publish(salt, tokens, table);
    return table;
  }

  PrefixId publish(std::string_view salt, std::span<const TokenId> tokens, std::span<BlockId> table) {
    PrefixId prefix = allocator.root(salt);
    for (std::size_t i = 0; i < table.size(); ++i) {
      prefix = allocator.publish(prefix, tokens.subspan(i * block_size_, block_size_), table[i]);
    }
    return prefix;
  }

  std::vector<BlockId> find(std::string_view salt, std::span<const TokenId> tokens) {
    std::vector<BlockId> table;
    allocator.match(allocator.root(salt), tokens, table);
    return table;
  }

  std::uint32_t lookup(std::string_view salt, std::span<const TokenId> tokens) const {
    return allocator.lookup(allocator.root(salt), tokens);
  }

  A allocator;

 private:
  std::size_t block_size_;
};

/// What the tables of ManagedPrefixCache, TieredPrefixCache and PartialMatchAllocator promise. `ab`: two different blocks.
template <ManagedPrefixCache A>
void check_managed_cache(Violations& broken, const BlockPoolShape& shape, std::span<const TokenId> ab) {
  const std::uint32_t size = shape.block_size;
  broken.during("adapters");
  {
    PrefixCacheFixture<A> pool(shape);
    const A& cache = pool.allocator;
    broken.expect(cache.root("x", "") == cache.root("x"), "no adapter is not the same as an empty one");
    broken.expect(cache.root("x", "a") == cache.root("x", "a"), "the root of an adapter changes");
    broken.expect(cache.root("x", "a") != cache.root("x") && cache.root("x", "a") != cache.root("x", "b") &&
                      cache.root("", "a") != cache.root("a", ""),
                  "adapters or salts share a root");
  }
  broken.during("pinned");
  {
    PrefixCacheFixture<A> pool(shape);
    pool.allocator.set_max_pinned(2);
    pool.allocator.release(pool.store("", ab));
    broken.expect(pool.allocator.pin(pool.allocator.root(""), ab) == 2 * size, "pin did not reach what is cached");
    broken.expect(pool.allocator.num_free() == shape.num_blocks, "a pinned block that nobody owns does not count as free");
    std::vector<BlockId> others(shape.num_blocks - 2), last(2);
    // Cached later, so evicted later if nothing were pinned.
    std::vector<TokenId> other(ab.begin(), ab.begin() + size);
    pool.allocator.release(pool.store("other", other));
    broken.expect(pool.allocator.try_allocate(others), "pinned blocks keep others from being allocated");
    broken.expect(pool.lookup("", ab) == 2 * size, "a pinned block was evicted while another could go");
    broken.expect(pool.allocator.try_allocate(last), "pinned blocks are not given up when nothing else is left");
    pool.allocator.release(others);
    pool.allocator.release(last);
    pool.allocator.release(pool.store("", ab));
    pool.allocator.set_max_pinned(1);
    broken.expect(pool.allocator.pin(pool.allocator.root(""), ab) == size, "more is pinned than max_pinned allows, or less");
    broken.expect(pool.allocator.unpin(pool.allocator.root(""), ab) == 2 * size, "unpin did not reach what is cached");
  }
  broken.during("reset");
  {
    PrefixCacheFixture<A> pool(shape);
    const std::vector<BlockId> table = pool.store("", ab);
    pool.allocator.reset();
    broken.expect(pool.lookup("", ab) == 0, "something is found after reset");
    broken.expect(pool.allocator.num_owners(table[0]) == 1, "reset changed the owners");
    pool.allocator.release(table);
    broken.expect(pool.allocator.num_free() == shape.num_blocks, "not every block came back");
    pool.store("", ab);
    broken.expect(pool.lookup("", ab) == 2 * size, "nothing can be published after reset");
  }
  broken.during("events");
  {
    using Kind = PrefixCacheEvent::Kind;
    PrefixCacheFixture<A> pool(shape);
    pool.store("quiet", ab.first(size));
    pool.allocator.reset();
    pool.allocator.events().set_capacity(3);
    std::vector<BlockId> table(1);
    broken.expect(pool.allocator.try_allocate(table), "no block");
    const PrefixId root = pool.allocator.root("");
    const PrefixId id = pool.allocator.publish(root, ab.first(size), table[0]);
    pool.allocator.release(table);
    std::vector<BlockId> all(pool.allocator.num_free());
    broken.expect(pool.allocator.try_allocate(all), "what num_free promised was refused");
    pool.allocator.reset();
    pool.allocator.reset();  // the fourth
    std::vector<PrefixCacheEvent> events;
    pool.allocator.events().drain(events);
    const std::vector<PrefixCacheEvent> expected{{Kind::stored, id, root}, {Kind::evicted, id, {}}, {Kind::cleared, {}, {}}};
    broken.expect(events == expected, "the events are not: stored, evicted, cleared");
    broken.expect(pool.allocator.events().num_lost() == 1, "an event beyond the capacity is not counted");
  }
}

/// What goes to the host is found there when the device has lost it.
template <TieredPrefixCache A>
void check_host_tier(Violations& broken, BlockPoolShape shape, std::span<const TokenId> ab) {
  broken.during("host tier");
  shape.num_host_blocks = 2;
  PrefixCacheFixture<A> pool(shape);
  std::vector<BlockTransfer> transfers;
  const auto find_on_host = [&] {
    std::vector<HostBlockId> hosts;
    pool.allocator.match_host(pool.allocator.root(""), ab, hosts);
    return hosts;
  };
  const std::vector<BlockId> table = pool.store("", ab);
  pool.allocator.take_demotions(8, transfers);
  broken.expect(transfers.empty(), "a block in use was written to the host");
  pool.allocator.release(table);
  pool.allocator.take_demotions(1, transfers);
  broken.expect(transfers.size() == 1, "take_demotions did not write what it was asked for");
  pool.allocator.take_demotions(8, transfers);
  if (!broken.expect(transfers.size() == 2, "not every idle block was written to the host, or one was written twice")) { return; }
  broken.expect(find_on_host().empty(), "match_host found what the device still has");
  std::vector<BlockId> all(shape.num_blocks);
  broken.expect(pool.allocator.try_allocate(all), "cached blocks were not evicted");
  broken.expect(pool.lookup("", ab) == 0, "lookup counts what only the host has");
  const std::vector<HostBlockId> hosts = find_on_host();
  const auto host_of = [&](BlockId block) { return transfers[transfers[0].device == block ? 0 : 1].host; };
  broken.expect(hosts == std::vector{host_of(table[0]), host_of(table[1])}, "match_host did not find what was written");
  HostBlockId one{};
  broken.expect(!pool.allocator.try_allocate_host(std::span(&one, 1)), "a block that is about to be read was handed out");
  pool.allocator.take_demotions(0, transfers);
  broken.expect(pool.allocator.num_free_host() == 2 && pool.allocator.try_allocate_host(std::span(&one, 1)),
                "cached host blocks are not given up for sequences");
  pool.allocator.release_host(std::span(&one, 1));
  broken.expect(find_on_host().size() < 2, "what was dropped from the host is found");
}

template <PartialMatchAllocator A>
void check_heads(Violations& broken, std::uint32_t num_blocks) {
  broken.during("heads of blocks");
  constexpr std::uint32_t size = 8;
  PrefixCacheFixture<A> pool({.num_blocks = num_blocks, .block_size = size});
  const std::vector<TokenId> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  const std::vector<BlockId> table = pool.store("", tokens);
  std::vector<TokenId> differs(tokens.begin() + size, tokens.end());
  differs[6] = 0;
  std::vector<BlockId> first;
  const PrefixId parent = pool.allocator.match(pool.allocator.root(""), std::span(tokens).first(size), first);
  const PartialMatch found = pool.allocator.match_head(parent, differs);
  broken.expect(found.num_tokens == 6 && found.block == table[1], "the head of a block was not found");
  if (found.num_tokens > 0) {
    broken.expect(pool.allocator.num_owners(found.block) == 2, "match_head took no reference");
    pool.allocator.release(std::span(&found.block, 1));
  }
  differs[0] = 0;
  broken.expect(pool.allocator.match_head(parent, differs).num_tokens == 0, "a head of no tokens was found");
  broken.expect(pool.allocator.match_head(pool.allocator.root("salt"), tokens).num_tokens == 0,
                "the head of a block of another salt was found");
}

}  // namespace detail

/// \param shape at least 4 blocks
template <PrefixCachingAllocator A>
Violations check_prefix_cache(const BlockPoolShape& shape = {.num_blocks = 8, .block_size = 2}) {
  NVL_EXPECTS(shape.num_blocks >= 4, "num_blocks of the suite", shape.num_blocks, "at least 4");
  using Fixture = detail::PrefixCacheFixture<A>;
  Violations broken;
  const std::size_t size = shape.block_size;
  // Two blocks of different tokens, and two of the same tokens twice.
  std::vector<TokenId> ab(2 * size), aa(2 * size);
  for (std::size_t i = 0; i < size; ++i) {
    ab[i] = aa[i] = aa[size + i] = static_cast<TokenId>(i);
    ab[size + i] = static_cast<TokenId>(i + 1);
  }
  const auto a = std::span<const TokenId>(ab).first(size);

  broken.during("an empty cache");
  {
    Fixture pool(shape);
    broken.expect(pool.find("", ab).empty() && pool.lookup("", ab) == 0, "something was found");
    broken.expect(pool.find("", {}).empty(), "something was found for no tokens");
    broken.expect(pool.allocator.root("x") == pool.allocator.root("x"), "the root of a salt changes");
    broken.expect(pool.allocator.root("x") != pool.allocator.root("y"), "two salts have the same root");
  }
  broken.during("published and in use");
  {
    Fixture pool(shape);
    const std::vector<BlockId> table = pool.store("", ab);
    const std::uint32_t free = pool.allocator.num_free();
    broken.expect(pool.lookup("", ab) == 2 * size, "lookup does not find it");
    broken.expect(pool.allocator.num_owners(table[0]) == 1, "publish or lookup changed the owners");
    const std::vector<BlockId> found = pool.find("", ab);
    broken.expect(found == table, "match returned other blocks");
    broken.expect(pool.allocator.num_owners(table[0]) == 2 && pool.allocator.num_owners(table[1]) == 2,
                  "match took no reference");
    broken.expect(pool.allocator.num_free() == free, "matching blocks in use changed num_free");
    pool.allocator.release(found);
    broken.expect(pool.allocator.num_owners(table[0]) == 1, "release gave up more than one reference");
    std::vector<BlockId> appended{BlockId{~0u}};
    const PrefixId end = pool.allocator.match(pool.allocator.root(""), a, appended);
    broken.expect(appended.size() == 2 && appended[0] == BlockId{~0u}, "match did not append");
    broken.expect(pool.allocator.lookup(end, std::span(ab).subspan(size)) == size, "the id that match returned does not lead on");
  }
  broken.during("other content");
  {
    Fixture pool(shape);
    pool.store("", ab);
    broken.expect(pool.lookup("salt", ab) == 0, "blocks of another salt were found");
    broken.expect(pool.lookup("", aa) == size, "the common first block was not found, or more than it");
    broken.expect(pool.lookup("", std::span(ab).subspan(size)) == 0, "a block was found at another place of a sequence");
    broken.expect(pool.lookup("", std::span(ab).first(2 * size - 1)) == size, "a block was found by a part of its tokens");
    std::vector<TokenId> last_differs = ab;
    ++last_differs.back();
    broken.expect(pool.lookup("", last_differs) == size, "a block was found though its last token differs");
  }
  broken.during("released");
  {
    Fixture pool(shape);
    const std::vector<BlockId> table = pool.store("", ab);
    pool.allocator.release(table);
    broken.expect(pool.allocator.num_free() == shape.num_blocks, "cached blocks without an owner do not count as free");
    broken.expect(pool.lookup("", ab) == 2 * size, "it is not found any more though nothing needed its blocks");
    const std::vector<BlockId> found = pool.find("", ab);
    broken.expect(found == table, "match returned other blocks");
    broken.expect(pool.allocator.num_free() == shape.num_blocks - 2, "a found block is owned and still counts as free");
  }
  broken.during("the whole pool is taken");
  {
    Fixture pool(shape);
    pool.allocator.release(pool.store("", ab));
    std::vector<BlockId> all(shape.num_blocks);
    broken.expect(pool.allocator.try_allocate(all), "cached blocks were not evicted");
    broken.expect(pool.lookup("", ab) == 0, "evicted content was found");
    pool.allocator.release(all);
    broken.expect(pool.lookup("", ab) == 0, "evicted content was found after the release of its block");
    broken.expect(pool.allocator.num_free() == shape.num_blocks, "not every block came back");
  }
  broken.during("the same content in two blocks");
  {
    Fixture pool(shape);
    std::vector<BlockId> first(1), second(2);
    broken.expect(pool.allocator.try_allocate(first) && pool.allocator.try_allocate(second), "no blocks");
    pool.publish("", a, first);
    pool.publish("", ab, second);                                // its first block holds what `first` holds
    const std::uint32_t owners = first[0] == second[0] ? 2 : 1;  // merged, or not
    broken.expect(pool.allocator.num_owners(first[0]) == owners && pool.allocator.num_owners(second[0]) == owners,
                  "a publisher lost its block");
    broken.expect(pool.lookup("", ab) == 2 * size, "what follows the later of the two is not found");
    pool.allocator.release(first);
    broken.expect(pool.lookup("", ab) == 2 * size, "it is not found after one of the two was released");
    std::vector<BlockId> rest(shape.num_blocks - 2);
    broken.expect(pool.allocator.try_allocate(rest), "the released one cannot be taken");
    broken.expect(pool.lookup("", ab) == 2 * size, "it is not found though one of the two is still in use");
  }
  broken.during("forgotten");
  {
    Fixture pool(shape);
    const std::vector<BlockId> table = pool.store("", ab);
    pool.allocator.forget(table[1]);
    broken.expect(pool.lookup("", ab) == size, "a forgotten block was found, or the one before it was lost");
    broken.expect(pool.allocator.num_owners(table[1]) == 1, "forget changed the owners");
    pool.allocator.forget(table[1]);
    pool.allocator.forget(table[0]);
    pool.allocator.release(table);
    broken.expect(pool.lookup("", ab) == 0, "a forgotten block was found after its release");
    broken.expect(pool.allocator.num_free() == shape.num_blocks, "not every block came back");
    pool.store("", ab);
    broken.expect(pool.lookup("", ab) == 2 * size, "content that was forgotten once cannot be published again");
  }
  if constexpr (ManagedPrefixCache<A>) { detail::check_managed_cache<A>(broken, shape, ab); }
  if constexpr (TieredPrefixCache<A>) { detail::check_host_tier<A>(broken, shape, ab); }
  if constexpr (PartialMatchAllocator<A>) { detail::check_heads<A>(broken, shape.num_blocks); }
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
