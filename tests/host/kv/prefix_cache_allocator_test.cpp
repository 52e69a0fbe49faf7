#include "support/colliding_hash.hpp"

#include <nvl/core/error.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prefix_cache_allocator_test {

using namespace nvl;

namespace {

using Tokens = std::vector<TokenId>;
using Table = std::vector<BlockId>;

template <class A>
Table allocate(A& allocator, std::size_t count) {
  Table table(count);
  REQUIRE(allocator.try_allocate(table));
  return table;
}

template <class A>
PrefixId publish(A& allocator, const Tokens& tokens, const Table& table, std::string_view salt = {}) {
  const std::size_t size = tokens.size() / table.size();
  PrefixId prefix = allocator.root(salt);
  for (std::size_t i = 0; i < table.size(); ++i) {
    prefix = allocator.publish(prefix, std::span(tokens).subspan(i * size, size), table[i]);
  }
  return prefix;
}

template <class A>
Table match(A& allocator, const Tokens& tokens, std::string_view salt = {}) {
  Table table;
  allocator.match(allocator.root(salt), tokens, table);
  return table;
}

}  // namespace

TEST_CASE("a prefix cache needs a block size and ids that fit", "[kv][host]") {
  CHECK_THROWS_AS(PrefixCacheAllocator({.num_blocks = 4, .block_size = 0}), InvalidArgument);
  CHECK_THROWS_AS(PrefixCacheAllocator({.num_blocks = ~0u, .block_size = 1}), InvalidArgument);  // before it takes 16 GiB
  CHECK_THROWS_AS(PrefixCacheAllocator({.num_blocks = 4, .block_size = 1, .num_host_blocks = 1u << 31}), InvalidArgument);
  PrefixCacheAllocator none({.num_blocks = 0, .block_size = 4});
  CHECK(none.num_free() == 0);
  CHECK(none.lookup(none.root(""), Tokens{1, 2, 3, 4}) == 0);
}

TEST_CASE("only whole blocks are published", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 4, .block_size = 4});
  const Table table = allocate(allocator, 1);
  const Tokens three{1, 2, 3}, five{1, 2, 3, 4, 5};
  CHECK_THROWS_AS(allocator.publish(allocator.root(""), three, table[0]), InvalidArgument);
  CHECK_THROWS_AS(allocator.publish(allocator.root(""), five, table[0]), InvalidArgument);
  CHECK(allocator.lookup(allocator.root(""), five) == 0);
}

TEST_CASE("the least recently released block is evicted first, and children before parents", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 4, .block_size = 1});
  const Tokens first{1, 2}, second{3, 4};
  const Table a = allocate(allocator, 2), b = allocate(allocator, 2);
  publish(allocator, first, a);
  publish(allocator, second, b);
  allocator.release(a);
  allocator.release(b);
  allocator.release(match(allocator, first));  // used again: now more recent than `second`
  const auto found = [&](const Tokens& tokens) { return allocator.lookup(allocator.root(""), tokens); };
  const Table taken1 = allocate(allocator, 1);
  CHECK(found(first) == 2);
  CHECK(found(second) == 1);
  const Table taken2 = allocate(allocator, 1);
  CHECK(found(second) == 0);
  CHECK(found(first) == 2);
  const Table taken3 = allocate(allocator, 1);
  CHECK(found(first) == 1);
  CHECK(allocator.stats().evicted_blocks == 3);
  CHECK(allocator.num_free() == 1);
  CHECK(allocator.num_idle() == 1);
}

TEST_CASE("free blocks are taken before cached ones are evicted", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 4, .block_size = 1});
  const Table a = allocate(allocator, 2);
  publish(allocator, Tokens{1, 2}, a);
  allocator.release(a);
  allocate(allocator, 2);
  CHECK(allocator.lookup(allocator.root(""), Tokens{1, 2}) == 2);
  CHECK(allocator.stats().evicted_blocks == 0);
}

TEST_CASE("statistics count tokens asked for and found", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 4, .block_size = 2});
  const Table a = allocate(allocator, 2);
  publish(allocator, Tokens{1, 2, 3, 4}, a);
  match(allocator, {1, 2, 3, 4, 5});
  match(allocator, {1, 2, 4, 4});
  match(allocator, {7});
  CHECK(allocator.stats().queried_tokens == 10);
  CHECK(allocator.stats().hit_tokens == 6);
}

TEST_CASE("of two blocks with the same content, the one in use stays findable when the other goes", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 3, .block_size = 1});
  const Table a = allocate(allocator, 1), b = allocate(allocator, 1), c = allocate(allocator, 1);
  const PrefixId id = publish(allocator, {5}, a);
  CHECK(publish(allocator, {5}, b) == id);
  CHECK(publish(allocator, {5}, c) == id);

  SECTION("the first publisher goes: its block is free at once, a twin takes its place") {
    allocator.release(a);
    CHECK(allocator.num_idle() == 0);
    CHECK(allocator.num_free() == 1);
    const Table found = match(allocator, {5});
    REQUIRE(found.size() == 1);
    CHECK(found != a);
    CHECK(allocator.num_owners(found[0]) == 2);
  }
  SECTION("a later publisher goes: its block is free at once") {
    allocator.release(b);
    CHECK(allocator.num_idle() == 0);
    CHECK(match(allocator, {5}) == a);
  }
  SECTION("all go: one copy is kept") {
    allocator.release(b);
    allocator.release(a);
    allocator.release(c);
    CHECK(allocator.num_idle() == 1);
    CHECK(allocator.num_free() == 3);
    CHECK(match(allocator, {5}) == c);
  }
  SECTION("one turns out damaged: none is found, since nobody knows who copied from whom") {
    allocator.forget(b[0]);
    CHECK(allocator.lookup(allocator.root(""), Tokens{5}) == 0);
    allocator.release(a);
    allocator.release(b);
    allocator.release(c);
    CHECK(allocator.num_idle() == 0);
    CHECK(allocator.num_free() == 3);
  }
}

TEST_CASE("content that is published anew while its cached copy is idle keeps one copy", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 2, .block_size = 1});
  const Table a = allocate(allocator, 1);
  const PrefixId id = publish(allocator, {5}, a);
  allocator.release(a);
  const Table b = allocate(allocator, 1);
  REQUIRE(b != a);
  CHECK(publish(allocator, {5}, b) == id);
  CHECK(allocator.num_idle() == 0);
  CHECK(allocator.num_free() == 1);
  CHECK(match(allocator, {5}) == b);
}

TEST_CASE("a block that is published with other content is found by the new one only", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 2, .block_size = 1});
  const Table a = allocate(allocator, 1);
  const PrefixId first = publish(allocator, {5}, a);
  CHECK(publish(allocator, {6}, a) != first);
  CHECK(match(allocator, {5}).empty());
  CHECK(match(allocator, {6}) == a);
}

TEST_CASE("a block that is published with other content leaves its twins alone", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 2, .block_size = 1});
  const Table a = allocate(allocator, 1), b = allocate(allocator, 1);
  publish(allocator, {5}, a);
  publish(allocator, {5}, b);
  const bool first = GENERATE(true, false);
  publish(allocator, {6}, first ? a : b);
  CHECK(match(allocator, {5}) == (first ? b : a));
  CHECK(match(allocator, {6}) == (first ? a : b));
  for (int i = 0; i < 2; ++i) {
    allocator.release(a);
    allocator.release(b);
  }
  CHECK(allocator.num_idle() == 2);
  CHECK(match(allocator, {5}) == (first ? b : a));
  CHECK(match(allocator, {6}) == (first ? a : b));
}

TEST_CASE("what was computed from a forgotten block is not found either", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 4, .block_size = 1});
  const Table a = allocate(allocator, 3);
  const Tokens tokens{1, 2, 3};
  publish(allocator, tokens, a);
  allocator.forget(a[0]);
  const Table again = allocate(allocator, 1);
  publish(allocator, {1}, again);
  CHECK(allocator.lookup(allocator.root(""), tokens) == 1);  // the new first block; not the children of the old
  allocator.release(a);
  CHECK(allocator.num_free() == 3);
}

TEST_CASE("a block that nobody owns can be forgotten", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 2, .block_size = 1});
  const Table a = allocate(allocator, 1);
  publish(allocator, {5}, a);
  allocator.release(a);
  allocator.forget(a[0]);
  CHECK(allocator.num_idle() == 0);
  CHECK(allocator.num_free() == 2);
  CHECK(match(allocator, {5}).empty());
}

TEST_CASE("two instances never agree on ids, so their hashes cannot be learned from one another", "[kv][host]") {
  const PrefixCacheAllocator a({.num_blocks = 1, .block_size = 1}), b({.num_blocks = 1, .block_size = 1});
  CHECK(a.root("salt") != b.root("salt"));
  const Tokens tokens{1, 2, 3};
  CHECK(Xxh3BlockHash()(a.root(""), tokens) != Xxh3BlockHash()(a.root(""), tokens));
}

TEST_CASE("the hash depends on each token, on their order and on the prefix", "[kv][host]") {
  const Xxh3BlockHash hash;
  const PrefixId root{.high = 1, .low = 2};
  const Tokens tokens{1, 2, 3, 4};
  std::set<std::uint64_t> values{hash(root, tokens),
                                 hash({.high = 1, .low = 3}, tokens),
                                 hash({.high = 2, .low = 2}, tokens),
                                 hash(root, Tokens{2, 1, 3, 4}),
                                 hash(root, Tokens{1, 2, 3}),
                                 hash(root, {})};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Tokens changed = tokens;
    changed[i] ^= 1 << 30;
    values.insert(hash(root, changed));
  }
  CHECK(values.size() == 10);
  CHECK(hash(root, tokens) == hash(root, tokens));
}

TEST_CASE("any number of salts takes no memory and never mixes", "[kv][host]") {
  PrefixCacheAllocator allocator({.num_blocks = 2, .block_size = 1});
  std::set<std::pair<std::uint64_t, std::uint64_t>> roots;
  for (int i = 0; i < 10'000; ++i) {
    const PrefixId root = allocator.root("tenant " + std::to_string(i));
    roots.emplace(root.high, root.low);
    CHECK(root.high >> 63 == 1);  // never the id of a block, whose high half is 0
  }
  CHECK(roots.size() == 10'000);
  const Table a = allocate(allocator, 1);
  publish(allocator, {5}, a, "tenant 1");
  CHECK(match(allocator, {5}, "tenant 2").empty());
  CHECK(match(allocator, {5}, "tenant 1") == a);
}

TEMPLATE_TEST_CASE("a collision never gives blocks of another prefix", "[kv][host]", FourBitCache, OneBucketCache) {
  // Every block of two tokens out of eight, at every depth up to four, all in a few buckets.
  constexpr std::uint32_t num_blocks = 600;
  TestType allocator({.num_blocks = num_blocks, .block_size = 2});
  std::map<std::uint32_t, Tokens> history;  // block -> all tokens up to its end
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    Tokens tokens(2 * (1 + random() % 4));
    for (TokenId& token : tokens) { token = static_cast<TokenId>(random() % 8); }
    Table table;
    PrefixId prefix = allocator.match(allocator.root(""), tokens, table);
    for (std::size_t b = 0; b < table.size(); ++b) {
      const Tokens expected(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(2 * b + 2));
      REQUIRE(history.at(index_of(table[b])) == expected);
    }
    while (table.size() < tokens.size() / 2) {
      const std::size_t end = 2 * table.size() + 2;
      table.push_back(allocate(allocator, 1)[0]);
      history[index_of(table.back())] = Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end));
      prefix = allocator.publish(prefix, std::span(tokens).subspan(end - 2, 2), table.back());
    }
    CHECK(allocator.lookup(allocator.root(""), tokens) == tokens.size());
    allocator.release(table);
  }
  CHECK(allocator.num_free() == num_blocks);
}

}  // namespace prefix_cache_allocator_test
