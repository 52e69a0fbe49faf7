#include <nvl/kv/free_list_allocator.hpp>
#include <nvl/kv/prefix_cache_allocator.hpp>
#include <nvl/kv/radix_cache_allocator.hpp>
#include <nvl/sched/admission.hpp>
#include <nvl/sched/publish.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace admission_test {

using namespace nvl;

namespace {

constexpr std::int32_t block_size = 4;

/// Tokens 0, 1, 2, ...
Sequence sequence(std::int32_t num_tokens) {
  Sequence seq;
  seq.tokens.resize(static_cast<std::size_t>(num_tokens));
  std::iota(seq.tokens.begin(), seq.tokens.end(), 0);
  seq.num_prompt = num_tokens;
  return seq;
}

template <class A>
A pool(std::uint32_t num_blocks) {
  return A({.num_blocks = num_blocks, .block_size = block_size});
}

/// A pool in which the blocks of `seq`, all of its whole ones, are cached and idle.
PrefixCacheAllocator pool_with(std::uint32_t num_blocks, Sequence seq) {
  auto allocator = pool<PrefixCacheAllocator>(num_blocks);
  seq.prefix_root = allocator.root("");
  REQUIRE(try_admit(seq, allocator, block_size));
  seq.num_computed = seq.num_tokens();
  publish_full_blocks(seq, allocator, block_size);
  release_blocks(seq, allocator);
  return allocator;
}

}  // namespace

TEMPLATE_TEST_CASE("an admitted sequence has blocks for all its tokens", "[sched][host]", FreeListAllocator,
                   PrefixCacheAllocator) {
  for (const std::int32_t length : {1, 3, 4, 5, 8, 16}) {
    auto allocator = pool<TestType>(4);
    Sequence seq = sequence(length);
    REQUIRE(try_admit(seq, allocator, block_size));
    CHECK(seq.block_table.size() == blocks_for(length, block_size));
    CHECK(seq.num_computed == 0);
    CHECK(seq.num_cached == 0);
    CHECK(seq.status == SeqStatus::running);
    CHECK(allocator.num_free() == 4 - seq.block_table.size());
  }
}

TEMPLATE_TEST_CASE("an admission that fails keeps nothing", "[sched][host]", FreeListAllocator, PrefixCacheAllocator) {
  auto allocator = pool<TestType>(4);
  Sequence seq = sequence(17);
  CHECK_FALSE(try_admit(seq, allocator, block_size));
  CHECK(seq.block_table.empty());
  CHECK(seq.status == SeqStatus::waiting);
  CHECK(allocator.num_free() == 4);
  Sequence fits = sequence(16);
  CHECK_FALSE(try_admit(fits, allocator, block_size, 1));  // the reserve would be used
  CHECK(fits.block_table.empty());
  CHECK(allocator.num_free() == 4);
  CHECK(try_admit(fits, allocator, block_size, 0));
}

TEST_CASE("a prefix hit stops short of the last token, which is always computed", "[sched][host]") {
  for (const std::int32_t length : {7, 8, 9, 12, 13}) {
    auto allocator = pool_with(8, sequence(12));
    Sequence seq = sequence(length);
    seq.prefix_root = allocator.root("");
    const std::int32_t expected = (length - 1) / block_size * block_size;
    CHECK(uncached_tokens(seq, allocator) == length - expected);
    REQUIRE(try_admit(seq, allocator, block_size));
    CHECK(seq.num_cached == expected);
    CHECK(seq.num_computed == expected);
    CHECK(seq.num_published == expected / block_size);
    CHECK(seq.num_uncomputed() >= 1);
    CHECK(seq.block_table.size() == blocks_for(length, block_size));
    // The block that is going to be written is its own.
    CHECK(allocator.num_owners(seq.block_table.back()) == 1);
  }
}

TEST_CASE("an admission that fails after a prefix hit gives the hit back", "[sched][host]") {
  auto allocator = pool_with(4, sequence(8));
  Sequence seq = sequence(20);
  seq.prefix_root = allocator.root("");
  CHECK_FALSE(try_admit(seq, allocator, block_size));
  CHECK(seq.block_table.empty());
  CHECK(seq.num_published == 0);
  CHECK(seq.num_computed == 0);
  CHECK(seq.published_prefix == seq.prefix_root);
  CHECK(allocator.num_free() == 4);
  CHECK(allocator.lookup(seq.prefix_root, seq.tokens) == 8);  // and it is still cached
}

TEMPLATE_TEST_CASE("growing takes the missing blocks or nothing", "[sched][host]", FreeListAllocator, PrefixCacheAllocator) {
  auto allocator = pool<TestType>(3);
  ScheduledBatch batch;
  Sequence seq = sequence(4);
  REQUIRE(try_admit(seq, allocator, block_size));
  CHECK(try_grow(seq, allocator, 4, block_size, batch));
  CHECK(seq.block_table.size() == 1);
  CHECK(try_grow(seq, allocator, 5, block_size, batch));
  CHECK(seq.block_table.size() == 2);
  const std::vector<BlockId> before = seq.block_table;
  CHECK_FALSE(try_grow(seq, allocator, 13, block_size, batch));
  CHECK(seq.block_table == before);
  CHECK(allocator.num_free() == 1);
  CHECK(try_grow(seq, allocator, 12, block_size, batch));
  CHECK(allocator.num_free() == 0);
  CHECK(batch.copies.empty());
}

namespace {

/// A sequence of `num_tokens`, all computed, and `num_forks` forks of it; each knows one more token.
std::vector<Sequence> forked(PrefixCacheAllocator& allocator, std::int32_t num_tokens, std::size_t num_forks) {
  std::vector<Sequence> seqs(1, sequence(num_tokens));
  seqs[0].prefix_root = allocator.root("");
  REQUIRE(try_admit(seqs[0], allocator, block_size));
  seqs[0].num_computed = num_tokens;
  publish_full_blocks(seqs[0], allocator, block_size);
  for (std::size_t i = 0; i < num_forks; ++i) {
    Sequence child = sequence(num_tokens);
    fork_blocks(seqs[0], child, allocator, block_size);
    seqs.push_back(child);
  }
  for (std::size_t i = 0; i < seqs.size(); ++i) { seqs[i].tokens.push_back(static_cast<TokenId>(100 + i)); }
  return seqs;
}

}  // namespace

TEST_CASE("a fork shares every block of what its parent has computed", "[sched][host]") {
  for (const std::int32_t length : {1, 3, 4, 6, 8}) {
    auto allocator = pool<PrefixCacheAllocator>(8);
    const std::vector<Sequence> seqs = forked(allocator, length, 2);
    CHECK(allocator.num_free() == 8 - blocks_for(length, block_size));
    for (const Sequence& seq : seqs) {
      CHECK(seq.block_table == seqs[0].block_table);
      CHECK(seq.num_uncomputed() == 1);
      CHECK(seq.num_published == length / block_size);
      CHECK(seq.published_prefix == seqs[0].published_prefix);
      CHECK(seq.status == SeqStatus::running);
    }
    for (const BlockId block : seqs[0].block_table) { CHECK(allocator.num_owners(block) == 3); }
  }
}

TEST_CASE("whoever writes to a shared block gets a copy of it, and the last owner keeps it", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(8);
  std::vector<Sequence> seqs = forked(allocator, 6, 2);
  const std::vector<BlockId> before = seqs[0].block_table;
  ScheduledBatch batch;
  for (Sequence& seq : seqs) { REQUIRE(try_grow(seq, allocator, 7, block_size, batch)); }
  REQUIRE(batch.copies.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(batch.copies[i].from == before[1]);
    CHECK(batch.copies[i].to == seqs[i].block_table[1]);
    CHECK(seqs[i].block_table[0] == before[0]);
  }
  CHECK(seqs[2].block_table == before);
  for (const Sequence& seq : seqs) { CHECK(allocator.num_owners(seq.block_table[1]) == 1); }
  CHECK(allocator.num_owners(before[0]) == 3);
  CHECK(allocator.num_free() == 8 - 4);
  for (Sequence& seq : seqs) { release_blocks(seq, allocator); }
  CHECK(allocator.num_free() == 8);
}

TEST_CASE("a fork at a block's end copies nothing", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(8);
  std::vector<Sequence> seqs = forked(allocator, 8, 1);
  ScheduledBatch batch;
  for (Sequence& seq : seqs) { REQUIRE(try_grow(seq, allocator, 9, block_size, batch)); }
  CHECK(batch.copies.empty());
  CHECK(allocator.num_free() == 8 - 4);
}

TEST_CASE("growth that needs a copy and a new block gets both or nothing", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(3);
  std::vector<Sequence> seqs = forked(allocator, 6, 1);
  const std::vector<BlockId> before = seqs[0].block_table;
  ScheduledBatch batch;
  CHECK_FALSE(try_grow(seqs[0], allocator, 9, block_size, batch));
  CHECK(seqs[0].block_table == before);
  CHECK(batch.copies.empty());
  CHECK(allocator.num_free() == 1);
  CHECK(allocator.num_owners(before[1]) == 2);
  release_blocks(seqs[1], allocator);
  CHECK(try_grow(seqs[0], allocator, 9, block_size, batch));  // now it is the only owner
  CHECK(batch.copies.empty());
}

TEST_CASE("a victim takes its copies out of the step", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(8);
  std::vector<Sequence> seqs = forked(allocator, 6, 2);
  ScheduledBatch batch;
  REQUIRE(try_grow(seqs[0], allocator, 7, block_size, batch));
  REQUIRE(try_grow(seqs[1], allocator, 7, block_size, batch));
  preempt_by_recompute(seqs[0], allocator, batch);
  REQUIRE(batch.copies.size() == 1);
  CHECK(batch.copies[0].to == seqs[1].block_table[1]);
}

TEST_CASE("a preempted sequence finds again what was not evicted meanwhile", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(4);
  Sequence seq = sequence(10);
  seq.prefix_root = allocator.root("");
  REQUIRE(try_admit(seq, allocator, block_size));
  seq.num_computed = 10;
  publish_full_blocks(seq, allocator, block_size);
  CHECK(seq.num_published == 2);
  ScheduledBatch batch;
  preempt_by_recompute(seq, allocator, batch);
  CHECK(batch.preempted == std::vector<Sequence*>{&seq});
  CHECK(seq.status == SeqStatus::preempted);
  CHECK(seq.num_preemptions == 1);
  CHECK(seq.num_computed == 0);
  CHECK(seq.num_published == 0);
  CHECK(seq.block_table.empty());
  CHECK(allocator.num_free() == 4);

  Sequence other = sequence(12);  // another beginning, three blocks: evicts the child and spares the parent
  other.tokens[0] = 99;
  other.prefix_root = allocator.root("");
  REQUIRE(try_admit(other, allocator, block_size));
  release_blocks(other, allocator);
  REQUIRE(try_admit(seq, allocator, block_size));
  CHECK(seq.num_cached == 4);
  CHECK(seq.num_uncomputed() == 6);
}

TEST_CASE("only blocks whose tokens are all computed are published", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(8);
  Sequence seq = sequence(14);
  seq.prefix_root = allocator.root("salt");
  REQUIRE(try_admit(seq, allocator, block_size));
  const auto found = [&] { return allocator.lookup(allocator.root("salt"), seq.tokens); };
  for (const auto& [computed, published] : {std::pair{3, 0}, {4, 4}, {7, 4}, {12, 12}, {14, 12}}) {
    seq.num_computed = computed;
    publish_full_blocks(seq, allocator, block_size);
    CHECK(found() == static_cast<std::uint32_t>(published));
    CHECK(seq.num_published == published / block_size);
  }
  CHECK(allocator.lookup(allocator.root(""), seq.tokens) == 0);

  // Planned further than computed: the caller says how far.
  Sequence ahead = sequence(8);
  ahead.prefix_root = allocator.root("ahead");
  REQUIRE(try_admit(ahead, allocator, block_size));
  ahead.num_computed = 8;
  publish_full_blocks(ahead, allocator, block_size, 4);
  CHECK(allocator.lookup(ahead.prefix_root, ahead.tokens) == 4);
}

TEST_CASE("publishing without a prefix cache does nothing", "[sched][host]") {
  auto allocator = pool<FreeListAllocator>(2);
  Sequence seq = sequence(8);
  REQUIRE(try_admit(seq, allocator, block_size));
  seq.num_computed = 8;
  publish_full_blocks(seq, allocator, block_size);
  CHECK(seq.num_published == 0);
  CHECK(uncached_tokens(seq, allocator) == 8);
}

TEST_CASE("an entry of a batch asks for a sample exactly when it ends at the last token", "[sched][host]") {
  Sequence seq = sequence(10);
  ScheduledBatch batch;
  append_to_batch(batch, seq, 6);
  append_to_batch(batch, seq, 4);
  REQUIRE(batch.seqs.size() == 2);
  CHECK(batch.seqs[0].first_position == 0);
  CHECK_FALSE(batch.seqs[0].needs_sample);
  CHECK(batch.seqs[1].first_position == 6);
  CHECK(batch.seqs[1].needs_sample);
  CHECK(batch.num_tokens == 10);
  CHECK(seq.num_uncomputed() == 0);
  batch.clear();
  CHECK(batch.empty());
  CHECK(batch.num_tokens == 0);
}

TEST_CASE("a sequence that got its blocks without an admission is published from its root", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(4);
  Sequence seq = sequence(8);
  seq.prefix_root = allocator.root("salt");
  ScheduledBatch batch;
  REQUIRE(try_grow(seq, allocator, 8, block_size, batch));
  seq.num_computed = 8;
  publish_full_blocks(seq, allocator, block_size);
  CHECK(allocator.lookup(allocator.root("salt"), seq.tokens) == 8);
}

TEST_CASE("the window says from where a step may read", "[sched][host]") {
  for (const std::int32_t alignment : {1, 4, 128}) {
    for (const std::int32_t tokens : {1, 5, 128}) {
      const SlidingWindow window{.tokens = tokens, .alignment = alignment};
      for (std::int32_t position = 0; position < 600; ++position) {
        const std::int32_t first = window.first_read(position);
        CHECK(first % alignment == 0);
        CHECK(first <= std::max(position - tokens + 1, 0));
        CHECK(first + alignment > std::max(position - tokens + 1, 0));
      }
    }
  }
  CHECK(SlidingWindow{}.first_read(1000) == 0);
}

TEMPLATE_TEST_CASE("blocks behind the window come free, those that are read do not", "[sched][host]", FreeListAllocator,
                   PrefixCacheAllocator) {
  auto allocator = pool<TestType>(10);
  const SlidingWindow window{.tokens = 6, .alignment = 1};
  Sequence seq = sequence(40);
  REQUIRE(try_admit(seq, allocator, block_size));
  CHECK(allocator.num_free() == 0);
  for (std::int32_t computed = 0; computed < 40; ++computed) {
    seq.num_computed = computed;
    publish_full_blocks(seq, allocator, block_size);
    release_behind_window(seq, allocator, window, block_size);
    const std::int32_t first_seen = std::max(computed - 5, 0);
    CHECK(seq.num_released == first_seen / block_size);
    CHECK(allocator.num_free() == static_cast<std::uint32_t>(seq.num_released));
    CHECK(seq.owned_blocks().size() == seq.block_table.size() - static_cast<std::size_t>(seq.num_released));
  }
  release_blocks(seq, allocator);
  CHECK(allocator.num_free() == 10);
  CHECK(seq.num_released == 0);
}

TEST_CASE("a block behind the window stays until the prefix cache knows it", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(10);
  const SlidingWindow window{.tokens = 4, .alignment = 1};
  Sequence seq = sequence(16);
  seq.prefix_root = allocator.root("");
  REQUIRE(try_admit(seq, allocator, block_size));
  seq.num_computed = 16;  // planned, not yet computed
  release_behind_window(seq, allocator, window, block_size);
  CHECK(seq.num_released == 0);
  publish_full_blocks(seq, allocator, block_size);
  release_behind_window(seq, allocator, window, block_size);
  CHECK(seq.num_released == 3);
  CHECK(allocator.lookup(allocator.root(""), seq.tokens) == 16);
}

TEST_CASE("a fork shares only what its parent has not left behind", "[sched][host]") {
  auto allocator = pool<PrefixCacheAllocator>(10);
  Sequence parent = sequence(14);
  parent.prefix_root = allocator.root("");
  REQUIRE(try_admit(parent, allocator, block_size));
  parent.num_computed = 14;
  publish_full_blocks(parent, allocator, block_size);
  release_behind_window(parent, allocator, {.tokens = 5, .alignment = 1}, block_size);
  REQUIRE(parent.num_released == 2);
  Sequence child = sequence(14);
  fork_blocks(parent, child, allocator, block_size);
  CHECK(child.num_released == 2);
  CHECK(allocator.num_owners(parent.block_table[0]) == 0);
  CHECK(allocator.num_owners(parent.block_table[2]) == 2);
  release_blocks(parent, allocator);
  release_blocks(child, allocator);
  CHECK(allocator.num_free() == 10);
}

TEST_CASE("the block whose head is copied stays what it is until the plan is made", "[sched][host]") {
  auto allocator = pool<RadixCacheAllocator>(3);
  Sequence first = sequence(8);
  first.prefix_root = allocator.root("");
  REQUIRE(try_admit(first, allocator, block_size));
  first.num_computed = 8;
  publish_full_blocks(first, allocator, block_size);
  const BlockId second_block = first.block_table[1];
  release_blocks(first, allocator);

  Sequence seq = sequence(8);
  seq.tokens[6] = 99;  // in the second block
  seq.prefix_root = allocator.root("");
  ScheduledBatch batch;
  REQUIRE(try_admit(seq, allocator, block_size));
  extend_hit(seq, allocator, block_size, batch);
  CHECK(seq.status == SeqStatus::running);
  CHECK(seq.num_cached == 6);
  CHECK(seq.num_computed == 6);
  REQUIRE(batch.copies.size() == 1);
  CHECK(batch.copies[0].from == second_block);
  CHECK(batch.copies[0].to == seq.block_table[1]);
  CHECK(allocator.num_owners(second_block) == 1);  // nobody else gets it in this step
  CHECK(allocator.num_free() == 0);
  finish_plan(allocator, batch, 4);
  CHECK(allocator.num_free() == 1);
  CHECK(batch.held.empty());
}

TEMPLATE_TEST_CASE("a prefix that only the host holds is read back beside the step", "[sched][host]", PrefixCacheAllocator,
                   RadixCacheAllocator) {
  TestType allocator({.num_blocks = 4, .block_size = block_size, .num_host_blocks = 4});
  Sequence first = sequence(12);
  first.prefix_root = allocator.root("");
  REQUIRE(try_admit(first, allocator, block_size));
  first.num_computed = 12;
  publish_full_blocks(first, allocator, block_size);
  release_blocks(first, allocator);
  ScheduledBatch batch;
  finish_plan(allocator, batch, 4);
  CHECK(batch.swap_out.empty());  // not for its own sake
  batch.num_tokens = 1;
  batch.seqs.push_back({.seq = &first, .first_position = 0, .num_tokens = 1});
  finish_plan(allocator, batch, 2);
  CHECK(batch.swap_out.size() == 2);
  finish_plan(allocator, batch, 2);
  CHECK(batch.swap_out.size() == 3);
  std::vector<BlockId> all(4);
  REQUIRE(allocator.try_allocate(all));  // the device loses it
  allocator.release(all);

  batch.clear();
  Sequence seq = sequence(14);
  seq.prefix_root = allocator.root("");
  REQUIRE(try_admit(seq, allocator, block_size));
  CHECK(seq.num_computed == 0);
  extend_hit(seq, allocator, block_size, batch);
  CHECK(seq.status == SeqStatus::loading);
  CHECK(seq.num_cached == 12);
  CHECK(seq.num_computed == 12);
  CHECK(seq.num_published == 0);
  CHECK(seq.host_table.empty());
  REQUIRE(batch.swap_in.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) { CHECK(batch.swap_in[i].device == seq.block_table[i]); }
  CHECK(allocator.num_free_host() == 1);  // three are about to be read
  finish_plan(allocator, batch, 4);
  CHECK(allocator.num_free_host() == 4);

  SECTION("and what comes in for one that is preempted at once does not") {
    preempt_by_recompute(seq, allocator, batch);
    CHECK(batch.swap_in.empty());
  }
}

}  // namespace admission_test
