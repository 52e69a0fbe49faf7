#pragma once
/// A BlockAllocator that finds full blocks again by the tokens in them and before them.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/host_block_pool.hpp>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// What a prefix cache was asked for and what it found, since it was constructed.
struct PrefixCacheStats {
  std::uint64_t queried_tokens = 0;  // given to `match`
  std::uint64_t hit_tokens = 0;      // of them found
  std::uint64_t evicted_blocks = 0;  // cached blocks that were taken for other content
};

/// Reference-counted blocks, a hash table from (prefix, tokens) to block, and an LRU list of cached blocks without an owner.
///
/// Identity. The prefix that a block ends has a serial number, given once and never again. A block is found if the serial of
/// the prefix before it and all its tokens are equal, so by induction equal ids mean equal histories, whatever the hash does.
/// Serial numbers of evicted prefixes are gone for good: what hangs below one is not found any more. Roots are the exception:
/// they are keyed 128-bit hashes of the salt (127 bits kept), because remembering salts would let clients fill the memory.
///
/// Duplicates. Sequences that compute the same prompt side by side each keep their own block, a twin of the one in the table,
/// and share its id. When the owner of the one in the table goes first, a twin takes its place.
///
/// Eviction. Least recently released first; of the ids of one `release`, the last goes first, so release a block table as it
/// is and children go before parents. While a sequence holds every block before the one it publishes, a prefix in the table
/// always has its parent there.
///
/// Memory is fixed at construction: about 60 bytes and block_size tokens a block. Nothing but `match` can throw, and it throws
/// before it changes anything.
template <BlockHash Hash = Xxh3BlockHash>
class BasicPrefixCacheAllocator : public HostBlockPool {
 public:
  explicit BasicPrefixCacheAllocator(const BlockPoolShape& shape, Hash hash = {})
      : HostBlockPool(shape),
        hash_(std::move(hash)),
        block_size_(shape.block_size),
        num_blocks_(shape.num_blocks) {
    NVL_EXPECTS(shape.block_size >= 1, "BlockPoolShape::block_size", shape.block_size, "at least 1");
    NVL_EXPECTS(shape.num_blocks < none, "BlockPoolShape::num_blocks", shape.num_blocks, "below 2^32 - 1");
    blocks_.resize(num_blocks_);
    tokens_.resize(std::size_t{num_blocks_} * block_size_);
    buckets_.assign(std::bit_ceil(std::max<std::size_t>(num_blocks_, 1)), none);
    free_.reserve(num_blocks_);
    for (std::uint32_t id = num_blocks_; id > 0; --id) { free_.push_back(id - 1); }
  }

  // BlockAllocator

  bool try_allocate(std::span<BlockId> out) noexcept {
    if (out.size() > num_free()) { return false; }
    for (BlockId& id : out) {
      const std::uint32_t b = free_.empty() ? evict() : pop_free();
      blocks_[b].num_owners = 1;
      id = BlockId{b};
    }
    return true;
  }

  void release(std::span<const BlockId> ids) noexcept {
    for (std::size_t i = ids.size(); i > 0; --i) { release_one(index_of(ids[i - 1])); }
  }

  /// Cached blocks without an owner count as free: they are evicted when needed.
  std::uint32_t num_free() const noexcept { return static_cast<std::uint32_t>(free_.size()) + num_idle_; }
  std::uint32_t num_blocks() const noexcept { return num_blocks_; }

  // SharingAllocator

  void share(std::span<const BlockId> ids) noexcept {
    for (const BlockId id : ids) {
      assert(at(id).num_owners > 0);
      ++at(id).num_owners;
    }
  }
  std::uint32_t num_owners(BlockId id) const noexcept { return at(id).num_owners; }

  // PrefixCachingAllocator

  PrefixId root(std::string_view salt) const noexcept {
    const XXH128_hash_t digest = root_secret_.hash128(salt.data(), salt.size());
    return {.high = digest.high64 | root_bit, .low = digest.low64};
  }

  PrefixId match(PrefixId prefix, std::span<const TokenId> tokens, std::vector<BlockId>& out) {
    const std::size_t longest = tokens.size() / block_size_;
    out.reserve(out.size() + longest);
    stats_.queried_tokens += tokens.size();
    for (std::size_t i = 0; i < longest; ++i) {
      const std::uint32_t b = find(prefix, tokens.subspan(i * block_size_, block_size_)).block;
      if (b == none) { break; }
      Block& block = blocks_[b];
      if (block.num_owners++ == 0) { unlink_idle(b); }
      out.push_back(BlockId{b});
      stats_.hit_tokens += block_size_;
      prefix = id_of(block);
    }
    return prefix;
  }

  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    std::size_t found = 0;
    for (; found + block_size_ <= tokens.size(); found += block_size_) {
      const std::uint32_t b = find(prefix, tokens.subspan(found, block_size_)).block;
      if (b == none) { break; }
      prefix = id_of(blocks_[b]);
    }
    return static_cast<std::uint32_t>(found);
  }

  PrefixId publish(PrefixId parent, std::span<const TokenId> tokens, BlockId id) {
    NVL_EXPECTS(tokens.size() == block_size_, "tokens published", tokens.size(), "one block of " + std::to_string(block_size_));
    const std::uint32_t b = index_of(id);
    Block& block = blocks_[b];
    assert(block.num_owners > 0);
    const Place place = find(parent, tokens);
    if (place.block != none && block.serial == blocks_[place.block].serial) { return id_of(block); }  // published before
    if (block.serial != 0) { withdraw(b); }                                                           // it held something else
    if (place.block == none) {
      block.serial = ++last_serial_;
      block.parent = parent;
      std::copy(tokens.begin(), tokens.end(), tokens_of(b).begin());
      insert(b, place.bucket);
    } else if (blocks_[place.block].num_owners == 0) {  // the block that is in use keeps the content, the idle one becomes free
      take_place(b, place.block);
      unlink_idle(place.block);
      free_.push_back(place.block);
    } else {
      block.serial = blocks_[place.block].serial;
      link_twin(b, place.block);
    }
    return id_of(block);
  }

  /// Neither is anything found that was published after it: that was computed from it. Its twins go with it.
  void forget(BlockId id) noexcept {
    const std::uint32_t b = index_of(id);
    if (blocks_[b].serial == 0) { return; }
    while (blocks_[b].twin_next != b) { withdraw(blocks_[b].twin_next); }
    withdraw(b);
    if (blocks_[b].num_owners == 0) {
      unlink_idle(b);
      free_.push_back(b);
    }
  }

  const PrefixCacheStats& stats() const noexcept { return stats_; }
  /// [blocks] that are cached and have no owner
  std::uint32_t num_idle() const noexcept { return num_idle_; }

 private:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  static constexpr std::uint64_t root_bit = std::uint64_t{1} << 63;

  /// Free: no owner, serial 0, in free_. Idle: no owner, in the table and the LRU list. In use: owners, and in the table, or a
  /// twin of one that is, or not published (serial 0). An idle block has no twins.
  struct Block {
    PrefixId parent;           // the prefix before it; set while it is in the table
    std::uint64_t serial = 0;  // of the prefix that it ends; 0 = not published
    std::uint32_t num_owners = 0;
    std::uint32_t bucket = none;  // of the table; none: not in it
    std::uint32_t bucket_next = none;
    std::uint32_t idle_prev = none;  // less recently released
    std::uint32_t idle_next = none;
    std::uint32_t twin_prev = none;  // ring of blocks with the same serial; itself when alone
    std::uint32_t twin_next = none;
  };

  struct Place {
    std::uint32_t bucket;
    std::uint32_t block;  // or none
  };

  Block& at(BlockId id) noexcept { return blocks_[index_of(id)]; }
  const Block& at(BlockId id) const noexcept { return blocks_[index_of(id)]; }
  static PrefixId id_of(const Block& block) noexcept { return {.high = 0, .low = block.serial}; }

  std::span<TokenId> tokens_of(std::uint32_t b) noexcept { return {tokens_.data() + std::size_t{b} * block_size_, block_size_}; }
  std::span<const TokenId> tokens_of(std::uint32_t b) const noexcept {
    return {tokens_.data() + std::size_t{b} * block_size_, block_size_};
  }

  Place find(PrefixId parent, std::span<const TokenId> tokens) const noexcept {
    const auto bucket = static_cast<std::uint32_t>(hash_(parent, tokens) & (buckets_.size() - 1));
    std::uint32_t b = buckets_[bucket];
    while (b != none && !(blocks_[b].parent == parent && std::ranges::equal(tokens_of(b), tokens))) {
      b = blocks_[b].bucket_next;
    }
    return {bucket, b};
  }

  void insert(std::uint32_t b, std::uint32_t bucket) noexcept {
    Block& block = blocks_[b];
    block.bucket = bucket;
    block.bucket_next = std::exchange(buckets_[bucket], b);
    block.twin_prev = block.twin_next = b;
  }

  /// The link of the table that points at `b`.
  std::uint32_t& link_to(std::uint32_t b) noexcept {
    std::uint32_t* link = &buckets_[blocks_[b].bucket];
    while (*link != b) { link = &blocks_[*link].bucket_next; }
    return *link;
  }

  void link_twin(std::uint32_t b, std::uint32_t other) noexcept {
    blocks_[b].twin_prev = other;
    blocks_[b].twin_next = blocks_[other].twin_next;
    blocks_[blocks_[b].twin_next].twin_prev = b;
    blocks_[other].twin_next = b;
  }

  void unlink_twin(std::uint32_t b) noexcept {
    blocks_[blocks_[b].twin_prev].twin_next = blocks_[b].twin_next;
    blocks_[blocks_[b].twin_next].twin_prev = blocks_[b].twin_prev;
    blocks_[b].twin_prev = blocks_[b].twin_next = b;
  }

  /// `b` stands in the table for `old`, which is not published any more.
  void take_place(std::uint32_t b, std::uint32_t old) noexcept {
    Block& block = blocks_[b];
    Block& before = blocks_[old];
    link_to(old) = b;
    block.bucket = std::exchange(before.bucket, none);
    block.bucket_next = std::exchange(before.bucket_next, none);
    block.serial = std::exchange(before.serial, 0);
    block.parent = before.parent;
    if (block.twin_next == none) { block.twin_prev = block.twin_next = b; }
    std::ranges::copy(tokens_of(old), tokens_of(b).begin());
  }

  /// `b` is not published any more. If it is in the table and has a twin, that one takes its place.
  void withdraw(std::uint32_t b) noexcept {
    Block& block = blocks_[b];
    const std::uint32_t twin = block.twin_next;
    unlink_twin(b);
    if (block.bucket == none) {
      block.serial = 0;
    } else if (twin != b) {
      take_place(twin, b);
    } else {
      link_to(b) = block.bucket_next;
      block.bucket = block.bucket_next = none;
      block.serial = 0;
    }
  }

  void release_one(std::uint32_t b) noexcept {
    Block& block = blocks_[b];
    assert(block.num_owners > 0);
    if (--block.num_owners > 0) { return; }
    if (block.serial != 0 && block.twin_next == b) {
      link_idle(b);
      return;
    }
    if (block.serial != 0) { withdraw(b); }
    free_.push_back(b);  // within the reserved capacity: cannot throw
  }

  std::uint32_t pop_free() noexcept {
    const std::uint32_t b = free_.back();
    free_.pop_back();
    return b;
  }

  std::uint32_t evict() noexcept {
    const std::uint32_t b = idle_first_;
    unlink_idle(b);
    withdraw(b);
    ++stats_.evicted_blocks;
    return b;
  }

  void link_idle(std::uint32_t b) noexcept {
    blocks_[b].idle_prev = std::exchange(idle_last_, b);
    blocks_[b].idle_next = none;
    (blocks_[b].idle_prev == none ? idle_first_ : blocks_[blocks_[b].idle_prev].idle_next) = b;
    ++num_idle_;
  }

  void unlink_idle(std::uint32_t b) noexcept {
    const auto [prev, next] = std::pair(blocks_[b].idle_prev, blocks_[b].idle_next);
    (prev == none ? idle_first_ : blocks_[prev].idle_next) = next;
    (next == none ? idle_last_ : blocks_[next].idle_prev) = prev;
    --num_idle_;
  }

  Hash hash_;
  detail::HashSecret root_secret_;
  std::uint32_t block_size_;
  std::uint32_t num_blocks_;
  std::vector<Block> blocks_;
  std::vector<TokenId> tokens_;         // [num_blocks, block_size], of the blocks in the table
  std::vector<std::uint32_t> buckets_;  // first block of each
  std::vector<std::uint32_t> free_;     // stack
  std::uint32_t idle_first_ = none;     // evicted next
  std::uint32_t idle_last_ = none;
  std::uint32_t num_idle_ = 0;
  std::uint64_t last_serial_ = 0;
  PrefixCacheStats stats_;
};

using PrefixCacheAllocator = BasicPrefixCacheAllocator<>;
static_assert(PrefixCachingAllocator<PrefixCacheAllocator> && TieredAllocator<PrefixCacheAllocator>);

}  // namespace nvl::inline NVL_ABI
