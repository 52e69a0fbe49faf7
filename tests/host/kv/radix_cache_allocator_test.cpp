#include <nvl/core/error.hpp>
#include <nvl/kv/index_heap.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace radix_cache_allocator_test {

using namespace nvl;

namespace {

using Tokens = std::vector<TokenId>;
using Table = std::vector<BlockId>;

Table allocate(RadixCacheAllocator& cache, std::size_t count) {
  Table table(count);
  REQUIRE(cache.try_allocate(table));
  return table;
}

PrefixId publish(RadixCacheAllocator& cache, const Tokens& tokens, Table& table) {
  const std::size_t size = tokens.size() / table.size();
  PrefixId prefix = cache.root("");
  for (std::size_t i = 0; i < table.size(); ++i) {
    prefix = cache.publish(prefix, std::span(tokens).subspan(i * size, size), table[i]);
  }
  return prefix;
}

/// The blocks of `tokens`, published and given up.
Table store(RadixCacheAllocator& cache, const Tokens& tokens, std::size_t num_blocks) {
  Table table;
  cache.match(cache.root(""), tokens, table);
  const Table rest = allocate(cache, num_blocks - table.size());
  table.insert(table.end(), rest.begin(), rest.end());
  publish(cache, tokens, table);
  cache.release(table);
  return table;
}

Table match(RadixCacheAllocator& cache, const Tokens& tokens) {
  Table table;
  cache.match(cache.root(""), tokens, table);
  return table;
}

std::uint32_t found(const RadixCacheAllocator& cache, const Tokens& tokens) { return cache.lookup(cache.root(""), tokens); }

}  // namespace

TEST_CASE("a radix cache needs a block size and ids that fit", "[kv][host]") {
  CHECK_THROWS_AS(RadixCacheAllocator({.num_blocks = 4, .block_size = 0}), InvalidArgument);
  CHECK_THROWS_AS(RadixCacheAllocator({.num_blocks = 1u << 31, .block_size = 1}), InvalidArgument);
  CHECK_THROWS_AS(RadixCacheAllocator({.num_blocks = 4, .block_size = 1, .num_host_blocks = 1u << 31}), InvalidArgument);
  const RadixCacheAllocator none({.num_blocks = 0, .block_size = 4});
  CHECK(none.num_free() == 0);
  CHECK(none.lookup(none.root(""), Tokens{1, 2, 3, 4}) == 0);
}

TEST_CASE("a radix cache evicts leaves before what they are built on, whatever was released last", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 4, .block_size = 1});
  store(cache, {1, 2, 3}, 3);
  store(cache, {9}, 1);
  cache.release(match(cache, {1, 2, 3}));  // most recently used, but its end still goes before its beginning
  const Table first = allocate(cache, 1);
  CHECK(found(cache, {9}) == 0);
  CHECK(found(cache, {1, 2, 3}) == 3);
  const Table second = allocate(cache, 2);
  CHECK(found(cache, {1, 2, 3}) == 1);
  CHECK(cache.stats().evicted_blocks == 3);
}

TEST_CASE("of two branches the one released first goes first, and what they share goes last", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 5, .block_size = 1});
  store(cache, {1, 2, 3}, 3);
  store(cache, {1, 4, 5}, 3);
  CHECK(cache.num_idle() == 5);
  const bool is_used_again = GENERATE(false, true);
  const Tokens first = is_used_again ? Tokens{1, 4, 5} : Tokens{1, 2, 3},
               last = is_used_again ? Tokens{1, 2, 3} : Tokens{1, 4, 5};
  if (is_used_again) { cache.release(match(cache, last)); }
  const Table taken = allocate(cache, 2);
  CHECK(found(cache, first) == 1);
  CHECK(found(cache, last) == 3);
  const Table more = allocate(cache, 2);
  CHECK(found(cache, last) == 1);
}

TEST_CASE("a prefix whose continuations are in use is evicted only if no leaf is left", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 3, .block_size = 1});
  Table table = allocate(cache, 3);
  publish(cache, {1, 2, 3}, table);
  cache.release(std::span(table).first(2));  // behind an attention window
  CHECK(cache.num_free() == 2);
  const Table taken = allocate(cache, 2);
  CHECK(found(cache, {1, 2, 3}) == 0);
  cache.release(std::span(table).subspan(2));
  CHECK(cache.num_free() == 1);  // cached below a prefix that is gone: never found, evicted some time
  CHECK(cache.try_allocate(std::span(table).first(1)));
}

TEST_CASE("two sequences that compute the same content end up with one block", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 4, .block_size = 2});
  Table a = allocate(cache, 1), b = allocate(cache, 1);
  const BlockId own = b[0];
  const PrefixId id = publish(cache, {5, 6}, a);
  CHECK(publish(cache, {5, 6}, b) == id);
  CHECK(b == a);
  CHECK(cache.num_owners(a[0]) == 2);
  CHECK(cache.num_owners(own) == 0);
  CHECK(cache.num_free() == 3);
  CHECK(cache.stats().merged_blocks == 1);
  cache.release(a);
  cache.release(b);
  Table c = allocate(cache, 1);
  publish(cache, {5, 6}, c);  // while the other is idle
  CHECK(c == a);
  CHECK(cache.num_free() == 3);

  SECTION("a block that others own too is replaced for the publisher only") {
    Table d = allocate(cache, 1), fork = d;
    cache.share(d);
    publish(cache, {5, 6}, d);
    CHECK(d == a);
    CHECK(cache.num_owners(fork[0]) == 1);
    publish(cache, {5, 6}, fork);
    CHECK(fork == a);
    CHECK(cache.num_owners(a[0]) == 3);
  }
}

TEST_CASE("in the tree a block that is published with other content is found by the new one only", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 2, .block_size = 1});
  Table a = allocate(cache, 1);
  const PrefixId first = publish(cache, {5}, a);
  CHECK(publish(cache, {6}, a) != first);
  CHECK(match(cache, {5}).empty());
  CHECK(match(cache, {6}) == a);
}

TEST_CASE("lower priorities are evicted first, and one that has expired counts no more", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 4, .block_size = 1});
  cache.set_max_pinned(3);
  for (TokenId token = 1; token <= 4; ++token) { store(cache, {token}, 1); }
  const PrefixId root = cache.root("");
  CHECK(cache.retain(root, Tokens{1}, {.priority = 5}) == 1);
  CHECK(cache.retain(root, Tokens{2}, {.priority = 9, .num_matches = 3}) == 1);
  CHECK(cache.retain(root, Tokens{4}, {.priority = -1}) == 1);
  CHECK(cache.num_retained() == 2);
  const auto evict_one = [&] { allocate(cache, 1); };
  SECTION("4, 3, 1, 2 while 2 is retained") {
    evict_one();
    CHECK(found(cache, {4}) == 0);
    evict_one();
    CHECK(found(cache, {3}) == 0);
    evict_one();
    CHECK(found(cache, {1}) == 0);
    CHECK(found(cache, {2}) == 1);
  }
  SECTION("2 before 3 and 1 when its three admissions are over") {
    for (int i = 0; i < 3; ++i) { match(cache, {77}); }
    evict_one();
    CHECK(found(cache, {4}) == 0);
    evict_one();
    CHECK(found(cache, {2}) == 0);
    evict_one();
    CHECK(found(cache, {3}) == 0);
    CHECK(found(cache, {1}) == 1);
    CHECK(cache.num_retained() == 1);
  }
  SECTION("no more than the bound are retained, and what is retained can be changed") {
    CHECK(cache.retain(root, Tokens{3}, {.priority = 1}) == 1);
    CHECK(cache.retain(root, Tokens{4}, {.priority = 1}) == 0);
    CHECK(cache.retain(root, Tokens{1}, {.priority = 7}) == 1);
    CHECK(cache.unpin(root, Tokens{2}) == 1);
    CHECK(cache.retain(root, Tokens{4}, {.priority = 1}) == 1);
    CHECK(cache.num_retained() == 3);
  }
}

TEST_CASE("of the blocks that follow a prefix, the head of the one that agrees longest is found", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 8, .block_size = 8});
  const Tokens one{1, 2, 3, 4, 5, 6, 7, 8}, two{1, 2, 3, 9, 9, 9, 9, 9};
  const Table first = store(cache, one, 1), second = store(cache, two, 1);
  const auto head = [&](const Tokens& tokens) {
    const PartialMatch found = cache.match_head(cache.root(""), tokens);
    if (found.num_tokens > 0) { cache.release(std::span(&found.block, 1)); }
    return found;
  };
  CHECK(head({1, 2, 3, 4, 0, 0, 0, 0}).num_tokens == 4);
  CHECK(head({1, 2, 3, 4, 0, 0, 0, 0}).block == first[0]);
  CHECK(head({1, 2, 3, 9, 9, 0, 0, 0}).block == second[0]);
  CHECK(head({1, 2, 3, 4, 5}).num_tokens == 5);  // the prompt ends within the block
  CHECK(head({1, 2, 0, 0}).num_tokens == 2);
  CHECK(head({1, 0, 0, 0}).num_tokens == 0);  // below a quarter: not worth a copy
  CHECK(head(one).num_tokens == 7);           // a whole block is for `match` to find
  CHECK(cache.num_free() == 8);
  CHECK(cache.stats().partial_hit_tokens == 4 + 4 + 5 + 5 + 2 + 7);
}

TEST_CASE("anchors of roots come and go with their prefixes, however many salts there are", "[kv][host]") {
  RadixCacheAllocator cache({.num_blocks = 2, .block_size = 1});
  for (int i = 0; i < 1000; ++i) {
    Table table = allocate(cache, 1);
    const PrefixId root = cache.root("tenant " + std::to_string(i));
    cache.publish(root, Tokens{5}, table[0]);
    CHECK(cache.lookup(root, Tokens{5}) == 1);
    CHECK(cache.lookup(cache.root("tenant " + std::to_string(i + 1)), Tokens{5}) == 0);
    cache.release(table);
  }
  CHECK(cache.num_free() == 2);
}

TEST_CASE("a heap of indices gives the first of those in it, whichever leave", "[kv][host]") {
  constexpr std::uint32_t count = 40;
  std::mt19937 random(4);
  std::vector<std::uint32_t> keys(count);
  for (std::uint32_t& key : keys) { key = static_cast<std::uint32_t>(random() % 20); }
  const auto before = [&](std::uint32_t a, std::uint32_t b) { return std::pair(keys[a], a) < std::pair(keys[b], b); };
  IndexHeap heap(count);
  std::vector<std::uint32_t> inside;
  for (int i = 0; i < 5000; ++i) {
    const auto index = static_cast<std::uint32_t>(random() % count);
    if (heap.contains(index)) {
      heap.remove(index, before);
      std::erase(inside, index);
      keys[index] = static_cast<std::uint32_t>(random() % 20);
    } else {
      heap.push(index, before);
      inside.push_back(index);
    }
    REQUIRE(heap.empty() == inside.empty());
    if (!inside.empty()) { REQUIRE(heap.top() == *std::ranges::min_element(inside, before)); }
  }
}

}  // namespace radix_cache_allocator_test
