#pragma once
/// A BlockAllocator that finds full blocks again by the tokens in them and before them.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/host_tier.hpp>
#include <nvl/kv/index_list.hpp>
#include <nvl/kv/prefix_cache.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Reference-counted blocks, a hash table from (prefix, tokens) to block, and LRU lists of cached blocks without an owner.
/// After vLLM's automatic prefix caching (hash table of full blocks, free queue in the order of eviction).
///
/// Identity. The prefix that a block ends has a serial number, given once and never again. A block is found if the serial of
/// the prefix before it and all its tokens are equal, so by induction equal ids mean equal histories, whatever the hash does.
/// Serial numbers of evicted prefixes are gone for good: what hangs below one is not found any more.
///
/// Duplicates. Sequences that compute the same prompt side by side each keep their own block, a twin of the one in the table,
/// and share its id. When the owner of the one in the table goes first, a twin takes its place. So nothing that goes wrong in one
/// sequence while it runs reaches another that came to the same prompt by itself; RadixCacheAllocator merges instead.
///
/// Host tier, if BlockPoolShape::num_host_blocks > 0. A cached block that loses its last owner is written through to a host
/// block, its twin there, beside one of the next steps. When the device's block is evicted, the twin keeps its place in the table.
///
/// Eviction. Least recently released first, pinned ones after all others; of the ids of one `release`, the last goes first, so
/// release a block table as it is and children go before parents. While a sequence holds every block before the one it
/// publishes, a prefix in the table always has its parent there.
///
/// Memory is fixed at construction: about 70 bytes and block_size tokens a block of either tier. Nothing but `match`,
/// `match_host` and `take_demotions` can throw, and they throw before they change anything.
template <BlockHash Hash = Xxh3BlockHash>
class BasicPrefixCacheAllocator {
 public:
  explicit BasicPrefixCacheAllocator(const BlockPoolShape& shape, Hash hash = {})
      : hash_(std::move(hash)),
        block_size_(detail::checked_cache_shape(shape).block_size),
        num_blocks_(shape.num_blocks),
        free_(shape.num_blocks),
        host_(shape.num_host_blocks),
        max_pinned_(shape.num_blocks / 4) {
    const std::size_t num_both = std::size_t{num_blocks_} + shape.num_host_blocks;
    blocks_.resize(num_both);
    for (std::uint32_t b = 0; b < num_both; ++b) { blocks_[b].twin_prev = blocks_[b].twin_next = b; }
    idle_links_.resize(num_blocks_);
    tokens_.resize(num_both * block_size_);
    buckets_.assign(std::bit_ceil(std::max<std::size_t>(num_both, 1)), no_index);
    if (shape.num_host_blocks > 0) { newly_idle_.reserve(num_blocks_); }
  }

  // BlockAllocator

  bool try_allocate(std::span<BlockId> out) noexcept {
    if (out.size() > num_free()) { return false; }
    const auto from_free = out.first(std::min<std::size_t>(out.size(), free_.size()));
    static_cast<void>(free_.try_take(from_free));
    for (BlockId& id : out.subspan(from_free.size())) { id = BlockId{evict()}; }
    for (const BlockId id : out) { at(id).num_owners = 1; }
    return true;
  }

  void release(std::span<const BlockId> ids) noexcept {
    for (std::size_t i = ids.size(); i > 0; --i) { release_one(index_of(ids[i - 1])); }
  }

  /// Cached blocks without an owner count as free: they are evicted when needed.
  std::uint32_t num_free() const noexcept { return free_.size() + num_idle(); }
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

  /// Different salts never share blocks, nor do different adapters of the weights.
  PrefixId root(std::string_view salt, std::string_view adapter = {}) const noexcept { return roots_(salt, adapter); }

  PrefixId match(PrefixId prefix, std::span<const TokenId> tokens, std::vector<BlockId>& out) {
    out.reserve(out.size() + tokens.size() / block_size_);
    stats_.queried_tokens += tokens.size();
    for_each_found(prefix, tokens, [&](std::uint32_t b) {
      if (is_host(b)) { return false; }
      if (blocks_[b].num_owners++ == 0) { unlink_idle(b); }
      out.push_back(BlockId{b});
      stats_.hit_tokens += block_size_;
      prefix = id_of(blocks_[b]);
      return true;
    });
    return prefix;
  }

  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    std::uint32_t found = 0;
    for_each_found(prefix, tokens, [&](std::uint32_t b) {
      found += is_host(b) ? 0 : block_size_;
      return !is_host(b);
    });
    return found;
  }

  PrefixId publish(PrefixId parent, std::span<const TokenId> tokens, BlockId id) {
    NVL_EXPECTS(tokens.size() == block_size_, "tokens published", tokens.size(), "one block of " + std::to_string(block_size_));
    const std::uint32_t b = index_of(id);
    Block& block = blocks_[b];
    assert(block.num_owners > 0);
    const Place place = find(parent, tokens);
    if (place.block != no_index && block.serial == blocks_[place.block].serial) { return id_of(block); }  // published before
    if (block.serial != 0) { withdraw(b); }  // it held something else
    if (place.block == no_index) {
      block.serial = ++last_serial_;
      block.parent = parent;
      std::ranges::copy(tokens, tokens_of(b).begin());
      insert(b, place.bucket);
    } else {
      link_twin(b, place.block);
      if (is_host(place.block)) {
        take_place(b, place.block);
      } else if (blocks_[place.block].num_owners == 0) {  // the block that is in use keeps the content, the idle one becomes free
        unlink_idle(place.block);
        withdraw(place.block);
        free_.give_back(std::array{BlockId{place.block}});
        return id_of(block);
      } else {
        return id_of(block);
      }
    }
    ++stats_.stored_blocks;
    events_.note(PrefixCacheEvent::Kind::stored, id_of(block), parent);
    return id_of(block);
  }

  /// Neither is anything found that was published after it: that was computed from it. Its twins go with it.
  void forget(BlockId id) noexcept {
    const std::uint32_t b = index_of(id);
    if (blocks_[b].serial == 0) { return; }
    events_.note(PrefixCacheEvent::Kind::evicted, id_of(blocks_[b]));
    while (blocks_[b].twin_next != b) { drop(blocks_[b].twin_next); }
    drop(b);
  }

  // TieredAllocator

  bool try_allocate_host(std::span<HostBlockId> out) noexcept {
    return host_.try_allocate(out, [this](std::uint32_t h) { drop_content(h); });
  }
  void release_host(std::span<const HostBlockId> ids) noexcept { host_.give_back(ids); }
  /// Cached host blocks count as free.
  std::uint32_t num_free_host() const noexcept { return host_.num_free(); }
  std::uint32_t num_host_blocks() const noexcept { return host_.num_blocks(); }

  // TieredPrefixCache

  PrefixId match_host(PrefixId prefix, std::span<const TokenId> tokens, std::vector<HostBlockId>& hosts) {
    if (host_.num_blocks() == 0) { return prefix; }
    hosts.reserve(hosts.size() + tokens.size() / block_size_);
    for_each_found(prefix, tokens, [&](std::uint32_t b) {
      if (!is_host(b)) { return false; }
      host_.hold(b - num_blocks_);
      hosts.push_back(HostBlockId{b - num_blocks_});
      stats_.host_hit_tokens += block_size_;
      prefix = id_of(blocks_[b]);
      return true;
    });
    return prefix;
  }

  void take_demotions(std::size_t most, std::vector<BlockTransfer>& transfers) {
    transfers.reserve(transfers.size() + std::min(most, newly_idle_.size()));
    std::size_t done = 0;
    for (; done < newly_idle_.size() && most > 0; ++done) {
      const std::uint32_t b = newly_idle_[done];
      if (blocks_[b].serial != 0 && blocks_[b].num_owners == 0 && blocks_[b].twin_next == b) {
        const std::uint32_t h = host_.take([this](std::uint32_t old) { drop_content(old); });
        if (h == no_index) { break; }
        host_.cache(h);
        host_.hold(h);  // no second block of this step goes there
        link_twin(num_blocks_ + h, b);
        transfers.push_back({.device = BlockId{b}, .host = HostBlockId{h}});
        ++stats_.demoted_blocks;
        events_.note(PrefixCacheEvent::Kind::stored_on_host, id_of(blocks_[b]), blocks_[b].parent);
        --most;
      }
      blocks_[b].is_newly_idle = false;
    }
    newly_idle_.erase(newly_idle_.begin(), newly_idle_.begin() + static_cast<std::ptrdiff_t>(done));
    host_.end_holds();
  }

  // ManagedPrefixCache

  std::uint32_t pin(PrefixId root, std::span<const TokenId> tokens) noexcept { return set_pins(root, tokens, true); }
  std::uint32_t unpin(PrefixId root, std::span<const TokenId> tokens) noexcept { return set_pins(root, tokens, false); }
  /// [blocks] What is pinned already stays so.
  void set_max_pinned(std::uint32_t blocks) noexcept { max_pinned_ = blocks; }

  void reset() noexcept {
    for (std::uint32_t b = 0; b < blocks_.size(); ++b) {
      if (blocks_[b].serial != 0) { drop(b); }
    }
    events_.note(PrefixCacheEvent::Kind::cleared);
  }

  const PrefixCacheStats& stats() const noexcept { return stats_; }
  PrefixCacheEvents& events() noexcept { return events_; }
  /// [blocks] that are cached and have no owner
  std::uint32_t num_idle() const noexcept { return idle_.size() + idle_pinned_.size(); }
  std::uint32_t num_pinned() const noexcept { return num_pinned_; }

 private:
  /// Blocks of the device come first, those of the host after them.
  ///
  /// Of the device: free: no owner, serial 0, in free_. Idle: no owner, in the table and in an LRU list. In use: owners, and in
  /// the table, or a twin of one that is, or not published (serial 0). Of the host: cached: serial, in the table if no twin is,
  /// else a twin. The block in the table is one of the host only if it has no twin; an idle one has none on the device.
  struct Block {
    PrefixId parent;           // the prefix before it; set while it is in the table
    std::uint64_t serial = 0;  // of the prefix that it ends; 0 = not published
    std::uint32_t num_owners = 0;
    std::uint32_t bucket = no_index;  // of the table; no_index: not in it
    std::uint32_t bucket_next = no_index;
    std::uint32_t twin_prev = no_index;  // ring of blocks with the same serial; itself when alone
    std::uint32_t twin_next = no_index;
    bool is_pinned = false;      // while it is in the table
    bool is_newly_idle = false;  // in newly_idle_
  };

  struct Place {
    std::uint32_t bucket;
    std::uint32_t block;  // or no_index
  };

  Block& at(BlockId id) noexcept { return blocks_[index_of(id)]; }
  const Block& at(BlockId id) const noexcept { return blocks_[index_of(id)]; }
  static PrefixId id_of(const Block& block) noexcept { return {.high = 0, .low = block.serial}; }
  bool is_host(std::uint32_t b) const noexcept { return b >= num_blocks_; }

  std::span<TokenId> tokens_of(std::uint32_t b) noexcept { return {tokens_.data() + std::size_t{b} * block_size_, block_size_}; }
  std::span<const TokenId> tokens_of(std::uint32_t b) const noexcept {
    return {tokens_.data() + std::size_t{b} * block_size_, block_size_};
  }

  Place find(PrefixId parent, std::span<const TokenId> tokens) const noexcept {
    const auto bucket = static_cast<std::uint32_t>(hash_(parent, tokens) & (buckets_.size() - 1));
    std::uint32_t b = buckets_[bucket];
    while (b != no_index && !(blocks_[b].parent == parent && std::ranges::equal(tokens_of(b), tokens))) {
      b = blocks_[b].bucket_next;
    }
    return {bucket, b};
  }

  /// Calls `visit(b)` for the blocks in the table that hold `tokens` after `prefix`, in order, while it returns true.
  template <class Visit>
  void for_each_found(PrefixId prefix, std::span<const TokenId> tokens, Visit&& visit) const {
    for (; tokens.size() >= block_size_; tokens = tokens.subspan(block_size_)) {
      const std::uint32_t b = find(prefix, tokens.first(block_size_)).block;
      if (b == no_index || !visit(b)) { return; }
      prefix = id_of(blocks_[b]);
    }
  }

  void insert(std::uint32_t b, std::uint32_t bucket) noexcept {
    blocks_[b].bucket = bucket;
    blocks_[b].bucket_next = std::exchange(buckets_[bucket], b);
  }

  /// The link of the table that points at `b`.
  std::uint32_t& link_to(std::uint32_t b) noexcept {
    std::uint32_t* link = &buckets_[blocks_[b].bucket];
    while (*link != b) { link = &blocks_[*link].bucket_next; }
    return *link;
  }

  void link_twin(std::uint32_t b, std::uint32_t other) noexcept {
    blocks_[b].serial = blocks_[other].serial;
    blocks_[b].twin_prev = other;
    blocks_[b].twin_next = std::exchange(blocks_[other].twin_next, b);
    blocks_[blocks_[b].twin_next].twin_prev = b;
  }

  void unlink_twin(std::uint32_t b) noexcept {
    blocks_[blocks_[b].twin_prev].twin_next = blocks_[b].twin_next;
    blocks_[blocks_[b].twin_next].twin_prev = blocks_[b].twin_prev;
    blocks_[b].twin_prev = blocks_[b].twin_next = b;
  }

  /// A twin on the device if there is one, else one on the host, else `b`.
  std::uint32_t heir_of(std::uint32_t b) const noexcept {
    const std::uint32_t next = blocks_[b].twin_next;
    return is_host(next) && blocks_[next].twin_next != b ? blocks_[next].twin_next : next;
  }

  /// `b`, a twin of `old`, stands in the table for it.
  void take_place(std::uint32_t b, std::uint32_t old) noexcept {
    Block& block = blocks_[b];
    Block& before = blocks_[old];
    link_to(old) = b;
    block.bucket = std::exchange(before.bucket, no_index);
    block.bucket_next = std::exchange(before.bucket_next, no_index);
    block.is_pinned = std::exchange(before.is_pinned, false);
    block.parent = before.parent;
    std::ranges::copy(tokens_of(old), tokens_of(b).begin());
  }

  /// `b` is not published any more. If it is in the table and has a twin, that one takes its place.
  void withdraw(std::uint32_t b) noexcept {
    Block& block = blocks_[b];
    if (const std::uint32_t heir = heir_of(b); block.bucket != no_index && heir != b) { take_place(heir, b); }
    if (block.bucket != no_index) {
      link_to(b) = block.bucket_next;
      block.bucket = block.bucket_next = no_index;
      if (std::exchange(block.is_pinned, false)) { --num_pinned_; }
    }
    unlink_twin(b);
    block.serial = 0;
  }

  /// `b` is not published any more, and free if nobody owns it.
  void drop(std::uint32_t b) noexcept {
    if (is_host(b)) {
      drop_content(b - num_blocks_);
      host_.uncache(b - num_blocks_);
    } else if (blocks_[b].num_owners > 0) {
      withdraw(b);
    } else {
      unlink_idle(b);
      withdraw(b);
      free_.give_back(std::array{BlockId{b}});
    }
  }

  void drop_content(std::uint32_t h) noexcept {
    ++stats_.evicted_host_blocks;
    events_.note(PrefixCacheEvent::Kind::evicted_from_host, id_of(blocks_[num_blocks_ + h]));
    withdraw(num_blocks_ + h);
  }

  void release_one(std::uint32_t b) noexcept {
    Block& block = blocks_[b];
    assert(block.num_owners > 0);
    if (--block.num_owners > 0) { return; }
    const std::uint32_t heir = heir_of(b);
    if (block.serial != 0 && (heir == b || is_host(heir))) {
      link_idle(b);
      return;
    }
    if (block.serial != 0) { withdraw(b); }
    free_.give_back(std::array{BlockId{b}});
  }

  std::uint32_t evict() noexcept {
    const std::uint32_t b = idle_.size() > 0 ? idle_.front() : idle_pinned_.front();
    unlink_idle(b);
    events_.note(PrefixCacheEvent::Kind::evicted, id_of(blocks_[b]));
    withdraw(b);
    ++stats_.evicted_blocks;
    return b;
  }

  IndexList& idle_list(std::uint32_t b) noexcept { return blocks_[b].is_pinned ? idle_pinned_ : idle_; }
  void unlink_idle(std::uint32_t b) noexcept { idle_list(b).remove(idle_links_, b); }
  void link_idle(std::uint32_t b) noexcept {
    idle_list(b).push_back(idle_links_, b);
    if (host_.num_blocks() > 0 && blocks_[b].twin_next == b && !std::exchange(blocks_[b].is_newly_idle, true)) {
      newly_idle_.push_back(b);  // within the reserved capacity: cannot throw
    }
  }

  std::uint32_t set_pins(PrefixId root, std::span<const TokenId> tokens, bool pinned) noexcept {
    std::uint32_t done = 0;
    for_each_found(root, tokens, [&](std::uint32_t b) {
      Block& block = blocks_[b];
      if (is_host(b) || (pinned && !block.is_pinned && num_pinned_ >= max_pinned_)) { return false; }
      if (block.is_pinned != pinned) {
        if (block.num_owners == 0) { unlink_idle(b); }
        block.is_pinned = pinned;
        if (block.num_owners == 0) { idle_list(b).push_back(idle_links_, b); }
        num_pinned_ = pinned ? num_pinned_ + 1 : num_pinned_ - 1;
      }
      done += block_size_;
      return true;
    });
    return done;
  }

  Hash hash_;
  detail::PrefixRoots roots_;
  std::uint32_t block_size_;
  std::uint32_t num_blocks_;
  std::vector<Block> blocks_;           // [num_blocks + num_host_blocks]
  std::vector<TokenId> tokens_;         // [num_blocks + num_host_blocks, block_size], of the blocks in the table
  std::vector<std::uint32_t> buckets_;  // first block of each
  FreeIds<BlockId> free_;
  IndexList idle_, idle_pinned_;           // evicted from the front
  std::vector<IndexLink> idle_links_;      // [num_blocks]
  std::vector<std::uint32_t> newly_idle_;  // with no copy on the host yet, perhaps; in the order in which they became idle
  HostTier host_;
  std::uint32_t num_pinned_ = 0;
  std::uint32_t max_pinned_;
  std::uint64_t last_serial_ = 0;
  PrefixCacheStats stats_;
  PrefixCacheEvents events_;
};

using PrefixCacheAllocator = BasicPrefixCacheAllocator<>;
static_assert(TieredPrefixCache<PrefixCacheAllocator> && ManagedPrefixCache<PrefixCacheAllocator>);

}  // namespace nvl::inline NVL_ABI
