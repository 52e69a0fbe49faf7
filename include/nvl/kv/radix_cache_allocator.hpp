#pragma once
/// A BlockAllocator with a prefix cache that is a tree of token blocks.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/block_tree.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/host_tier.hpp>
#include <nvl/kv/index_heap.hpp>
#include <nvl/kv/index_list.hpp>
#include <nvl/kv/prefix_cache.hpp>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// How long cached blocks are kept, compared with others that nobody owns either.
struct Retention {
  std::int8_t priority = 0;       // lower ones are evicted first; of equal ones the least recently used
  std::uint64_t num_matches = 0;  // for so many calls of `match`; then the priority is 0 again. 0: for good
};

/// Reference-counted blocks and a tree: each node is the prefix that one block ends, its children are the blocks known to follow.
/// The tree of SGLang's RadixAttention (Zheng et al. 2023, arXiv:2312.07104) with token blocks for edges, as in KsanaLLM's prefix
/// cache; priorities and retention after TensorRT-LLM's KV cache reuse.
///
/// Runs and identity: BlockTree. Tokens are always compared, whatever the hash says; what hangs below a node that is gone is not
/// found any more.
///
/// Merging. A block that is published with content that another block holds is given back, and its owner gets the other one: each
/// prefix is on the device once. This is safe while a launched step still reads the block that was given back: the step has its
/// own copy of the block table, and whoever gets the block next writes to it in a later step. The price: sequences that computed
/// the same prompt by themselves share its blocks from then on, and so whatever may be wrong in them.
///
/// Eviction. Only leaves (no child on the device) go, the lowest priority first, then the least recently released; so a prefix
/// outlives what is built on it. Where all that is idle has children in use (windows of attention slide so), the node that has
/// been idle longest.
///
/// Host tier, if BlockPoolShape::num_host_blocks > 0: a node that loses its last owner gets a copy in a host block beside one of
/// the next steps, and stays in the tree as long as it has a block on either side.
///
/// Memory is fixed at construction: about 220 bytes and block_size tokens a block of either tier. Nothing but `match`,
/// `match_host` and `take_demotions` can throw, and they throw before they change anything.
template <BlockHash Hash = Xxh3BlockHash>
class BasicRadixCacheAllocator {
 public:
  static constexpr std::uint32_t max_heads_compared = 16;  // children whose heads match_head looks at
  static constexpr std::int8_t pinned_priority = std::numeric_limits<std::int8_t>::max();

  explicit BasicRadixCacheAllocator(const BlockPoolShape& shape, Hash hash = {})
      : block_size_(detail::checked_cache_shape(shape).block_size),
        blocks_(shape.num_blocks),
        host_nodes_(shape.num_host_blocks, no_index),
        tree_(shape.num_blocks + shape.num_host_blocks, shape.block_size, std::move(hash)),
        free_(shape.num_blocks),
        idle_links_(tree_.capacity()),
        retained_links_(tree_.capacity()),
        leaves_(tree_.capacity()),
        host_(shape.num_host_blocks),
        max_retained_(shape.num_blocks / 4) {
    if (shape.num_host_blocks > 0) { newly_idle_.reserve(tree_.capacity()); }
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
    ++clock_;
    for (std::size_t i = ids.size(); i > 0; --i) { release_one(index_of(ids[i - 1])); }
  }

  /// Cached blocks without an owner count as free: they are evicted when needed.
  std::uint32_t num_free() const noexcept { return free_.size() + num_idle(); }
  std::uint32_t num_blocks() const noexcept { return free_.capacity(); }

  // SharingAllocator

  void share(std::span<const BlockId> ids) noexcept {
    for (const BlockId id : ids) {
      assert(at(id).num_owners > 0);
      ++at(id).num_owners;
    }
  }
  std::uint32_t num_owners(BlockId id) const noexcept { return blocks_[index_of(id)].num_owners; }

  // PrefixCachingAllocator

  /// Different salts never share blocks, nor do different adapters of the weights.
  PrefixId root(std::string_view salt, std::string_view adapter = {}) const noexcept { return roots_(salt, adapter); }

  PrefixId match(PrefixId prefix, std::span<const TokenId> tokens, std::vector<BlockId>& out) {
    out.reserve(out.size() + tokens.size() / block_size_);
    ++num_matches_;
    stats_.queried_tokens += tokens.size();
    tree_.for_each_found(prefix, tokens, [&](std::uint32_t n) {
      const std::uint32_t b = tree_[n].device;
      if (b == no_index) { return false; }
      own(n);
      tree_.make_first_child(n);
      out.push_back(BlockId{b});
      stats_.hit_tokens += block_size_;
      prefix = tree_.id_of(n);
      return true;
    });
    return prefix;
  }

  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    std::uint32_t found = 0;
    tree_.for_each_found(prefix, tokens, [&](std::uint32_t n) {
      if (tree_[n].device == no_index) { return false; }
      found += block_size_;
      return true;
    });
    return found;
  }

  PrefixId publish(PrefixId parent, std::span<const TokenId> tokens, BlockId& id) {
    NVL_EXPECTS(tokens.size() == block_size_, "tokens published", tokens.size(), "one block of " + std::to_string(block_size_));
    const std::uint32_t b = index_of(id);
    assert(blocks_[b].num_owners > 0);
    std::uint32_t n = tree_.find_child(tree_.node_of(parent), tokens);
    if (n != no_index && tree_[n].device == b) { return tree_.id_of(n); }  // published before
    if (blocks_[b].node != no_index) { leave_device(blocks_[b].node); }    // it held something else
    if (n != no_index && tree_[n].device != no_index) {
      own(n);
      id = BlockId{tree_[n].device};
      release_one(b);
      ++stats_.merged_blocks;
      return tree_.id_of(n);
    }
    if (n == no_index) { n = tree_.add(parent, tokens); }
    attach(n, b);
    ++stats_.stored_blocks;
    events_.note(PrefixCacheEvent::Kind::stored, tree_.id_of(n), parent);
    return tree_.id_of(n);
  }

  /// Neither is anything found that was published after it: that was computed from it. Its copy on the host goes with it.
  void forget(BlockId id) noexcept {
    if (const std::uint32_t n = at(id).node; n != no_index) { drop(n); }
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
    tree_.for_each_found(prefix, tokens, [&](std::uint32_t n) {
      if (tree_[n].device != no_index) { return false; }
      host_.hold(tree_[n].host);
      hosts.push_back(HostBlockId{tree_[n].host});
      stats_.host_hit_tokens += block_size_;
      prefix = tree_.id_of(n);
      return true;
    });
    return prefix;
  }

  void take_demotions(std::size_t most, std::vector<BlockTransfer>& transfers) {
    transfers.reserve(transfers.size() + std::min(most, newly_idle_.size()));
    std::size_t done = 0;
    for (; done < newly_idle_.size() && most > 0; ++done) {
      const std::uint32_t n = newly_idle_[done];
      if (is_idle(n) && tree_[n].host == no_index) {
        const std::uint32_t h = host_.take([this](std::uint32_t old) { drop_content(old); });
        if (h == no_index) { break; }
        host_.cache(h);
        host_.hold(h);  // no second block of this step goes there
        tree_[n].host = h;
        host_nodes_[h] = n;
        transfers.push_back({.device = BlockId{tree_[n].device}, .host = HostBlockId{h}});
        ++stats_.demoted_blocks;
        events_.note(PrefixCacheEvent::Kind::stored_on_host, tree_.id_of(n), tree_[n].parent);
        --most;
      }
      tree_[n].is_newly_idle = false;
    }
    newly_idle_.erase(newly_idle_.begin(), newly_idle_.begin() + static_cast<std::ptrdiff_t>(done));
    host_.end_holds();
  }

  // PartialMatchAllocator

  /// Looks at max_heads_compared of the blocks that follow `prefix`, those taken last. Less than a quarter of a block is left to
  /// be computed: the copy would move more than it saves.
  PartialMatch match_head(PrefixId prefix, std::span<const TokenId> tokens) noexcept {
    const std::uint32_t parent = tree_.node_of(prefix);
    if (parent == no_index) { return {}; }
    const auto wanted = tokens.first(std::min<std::size_t>(tokens.size(), block_size_ - 1));
    std::uint32_t best = no_index;
    std::size_t longest = 0;
    std::uint32_t n = tree_[parent].first_child;
    for (std::uint32_t i = 0; i < max_heads_compared && n != no_index; ++i, n = tree_[n].sibling_next) {
      if (tree_[n].device == no_index) { continue; }
      const auto parted = std::ranges::mismatch(wanted, tree_.tokens_of(n)).in1;
      const auto num_equal = static_cast<std::size_t>(parted - wanted.begin());
      if (num_equal > longest) { std::tie(longest, best) = std::pair(num_equal, n); }
    }
    if (best == no_index || 4 * longest < block_size_) { return {}; }
    own(best);
    stats_.partial_hit_tokens += longest;
    return {.block = BlockId{tree_[best].device}, .num_tokens = static_cast<std::uint32_t>(longest)};
  }

  // ManagedPrefixCache

  std::uint32_t pin(PrefixId root, std::span<const TokenId> tokens) noexcept {
    return retain(root, tokens, {.priority = pinned_priority});
  }
  std::uint32_t unpin(PrefixId root, std::span<const TokenId> tokens) noexcept { return retain(root, tokens, {}); }
  /// [blocks] with a priority above 0 at most. What has one already keeps it.
  void set_max_pinned(std::uint32_t blocks) noexcept { max_retained_ = blocks; }

  void reset() noexcept {
    for (std::uint32_t n = 0; n < tree_.capacity(); ++n) {
      if (tree_[n].serial != 0) { drop(n); }
    }
    events_.note(PrefixCacheEvent::Kind::cleared);
  }

  const PrefixCacheStats& stats() const noexcept { return stats_; }
  PrefixCacheEvents& events() noexcept { return events_; }

  /// [tokens] at the beginning that are cached and are kept so from now on; as far as the bound of set_max_pinned goes.
  std::uint32_t retain(PrefixId root, std::span<const TokenId> tokens, const Retention& retention) noexcept {
    std::uint32_t done = 0;
    tree_.for_each_found(root, tokens, [&](std::uint32_t n) {
      if (tree_[n].device == no_index) { return false; }
      const bool is_more = retention.priority > 0 && tree_[n].priority <= 0;
      if (is_more && num_retained_ >= max_retained_) { return false; }
      const bool is_for_good = retention.num_matches == 0 || retention.priority == 0;
      set_priority(n, retention.priority, is_for_good ? never : num_matches_ + retention.num_matches);
      done += block_size_;
      return true;
    });
    return done;
  }

  /// [blocks] that are cached and have no owner
  std::uint32_t num_idle() const noexcept { return idle_.size(); }
  /// [blocks] with a priority above 0
  std::uint32_t num_retained() const noexcept { return num_retained_; }

 private:
  static constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

  struct Block {
    std::uint32_t num_owners = 0;
    std::uint32_t node = no_index;  // no_index: not published
  };

  /// What the cache knows of a prefix. A node in use has a block on the device or on the host.
  struct NodeState {
    std::uint64_t last_use = 0;     // when it lost its last owner, by clock_
    std::uint64_t expires = never;  // its priority, by num_matches_
    std::uint32_t num_device_children = 0;
    std::uint32_t device = no_index;
    std::uint32_t host = no_index;
    std::int8_t priority = 0;
    bool is_newly_idle = false;  // in newly_idle_
  };

  Block& at(BlockId id) noexcept { return blocks_[index_of(id)]; }
  bool is_idle(std::uint32_t n) const noexcept { return tree_[n].device != no_index && blocks_[tree_[n].device].num_owners == 0; }

  /// `n` has no blocks any more.
  void remove_node(std::uint32_t n) noexcept {
    set_priority(n, 0, never);
    const bool is_newly_idle = tree_[n].is_newly_idle;  // its place in newly_idle_ stays
    tree_.remove(n);
    tree_[n].is_newly_idle = is_newly_idle;
  }

  // Blocks of the device

  void attach(std::uint32_t n, std::uint32_t b) noexcept {
    tree_[n].device = b;
    blocks_[b].node = n;
    const std::uint32_t parent = tree_[n].parent_node;
    if (parent == no_index) { return; }
    ++tree_[parent].num_device_children;
    if (!tree_.is_anchor(parent)) { update_leaf(parent); }
  }

  /// The block of `n`, which is not idle, is not published any more.
  void leave_device(std::uint32_t n) noexcept {
    blocks_[std::exchange(tree_[n].device, no_index)].node = no_index;
    const std::uint32_t parent = tree_[n].parent_node;
    if (parent != no_index) {
      --tree_[parent].num_device_children;
      if (!tree_.is_anchor(parent)) { update_leaf(parent); }
    }
    if (tree_[n].host == no_index) { remove_node(n); }
  }

  bool goes_before(std::uint32_t a, std::uint32_t b) const noexcept {
    return std::tuple(tree_[a].priority, tree_[a].last_use, a) < std::tuple(tree_[b].priority, tree_[b].last_use, b);
  }

  /// Idle nodes without a child on the device are in leaves_, no others.
  void update_leaf(std::uint32_t n) noexcept {
    const auto before = [this](std::uint32_t a, std::uint32_t b) { return goes_before(a, b); };
    const bool is_leaf = is_idle(n) && tree_[n].num_device_children == 0;
    if (is_leaf == leaves_.contains(n)) { return; }
    is_leaf ? leaves_.push(n, before) : leaves_.remove(n, before);
  }

  /// One more owner of the block of `n`.
  void own(std::uint32_t n) noexcept {
    if (blocks_[tree_[n].device].num_owners++ == 0) {
      idle_.remove(idle_links_, n);
      update_leaf(n);
    }
  }

  void release_one(std::uint32_t b) noexcept {
    assert(blocks_[b].num_owners > 0);
    if (--blocks_[b].num_owners > 0) { return; }
    const std::uint32_t n = blocks_[b].node;
    if (n == no_index) {
      free_.give_back(std::array{BlockId{b}});
      return;
    }
    tree_[n].last_use = clock_;
    idle_.push_back(idle_links_, n);
    update_leaf(n);
    if (host_.num_blocks() > 0 && tree_[n].host == no_index && !std::exchange(tree_[n].is_newly_idle, true)) {
      newly_idle_.push_back(n);  // within the reserved capacity: cannot throw
    }
  }

  std::uint32_t evict() noexcept {
    if (num_matches_ >= next_expiry_) { end_retentions(); }
    const std::uint32_t n = leaves_.empty() ? idle_.front() : leaves_.top();
    const std::uint32_t b = tree_[n].device;
    own(n);
    events_.note(PrefixCacheEvent::Kind::evicted, tree_.id_of(n));
    ++stats_.evicted_blocks;
    leave_device(n);
    return b;
  }

  // Blocks of the host, and both

  /// The host block `h` is about to hold something else.
  void drop_content(std::uint32_t h) noexcept {
    const std::uint32_t n = std::exchange(host_nodes_[h], no_index);
    ++stats_.evicted_host_blocks;
    events_.note(PrefixCacheEvent::Kind::evicted_from_host, tree_.id_of(n));
    tree_[n].host = no_index;
    if (tree_[n].device == no_index) { remove_node(n); }
  }

  /// `n` is not found any more.
  void drop(std::uint32_t n) noexcept {
    const std::uint32_t b = tree_[n].device;
    if (b != no_index) { own(n); }
    if (const std::uint32_t h = tree_[n].host; h != no_index) {
      drop_content(h);
      host_.uncache(h);
    }
    if (b == no_index) { return; }
    events_.note(PrefixCacheEvent::Kind::evicted, tree_.id_of(n));
    leave_device(n);
    release_one(b);
  }

  // Retention

  void set_priority(std::uint32_t n, std::int8_t priority, std::uint64_t expires) noexcept {
    NodeState& node = tree_[n];
    if (priority == node.priority && expires == node.expires) { return; }
    const auto before = [this](std::uint32_t a, std::uint32_t b) { return goes_before(a, b); };
    const bool is_leaf = leaves_.contains(n);
    if (is_leaf) { leaves_.remove(n, before); }
    num_retained_ = num_retained_ + (priority > 0 ? 1 : 0) - (node.priority > 0 ? 1 : 0);
    if (node.expires != never) { retained_.remove(retained_links_, n); }
    node.priority = priority;
    node.expires = expires;
    if (expires != never) {
      retained_.push_back(retained_links_, n);
      next_expiry_ = std::min(next_expiry_, expires);
    }
    if (is_leaf) { leaves_.push(n, before); }
  }

  void end_retentions() noexcept {
    next_expiry_ = never;
    for (std::uint32_t n = retained_.front(); n != no_index;) {
      const std::uint32_t next = retained_links_[n].next;
      if (tree_[n].expires <= num_matches_) {
        set_priority(n, 0, never);
      } else {
        next_expiry_ = std::min(next_expiry_, tree_[n].expires);
      }
      n = next;
    }
  }

  detail::PrefixRoots roots_;
  std::uint32_t block_size_;
  std::vector<Block> blocks_;              // [num_blocks]
  std::vector<std::uint32_t> host_nodes_;  // [num_host_blocks] whose copy each holds
  BlockTree<Hash, NodeState> tree_;
  FreeIds<BlockId> free_;
  IndexList idle_;                         // nodes whose block has no owner; least recently released first
  std::vector<IndexLink> idle_links_;      // [num_nodes]
  IndexList retained_;                     // nodes whose priority expires
  std::vector<IndexLink> retained_links_;  // [num_nodes]
  IndexHeap leaves_;                       // evicted next
  std::vector<std::uint32_t> newly_idle_;  // with no copy on the host yet, perhaps; in the order in which they became idle
  HostTier host_;
  std::uint32_t num_retained_ = 0;
  std::uint32_t max_retained_;
  std::uint64_t clock_ = 0;  // calls of `release`
  std::uint64_t num_matches_ = 0;
  std::uint64_t next_expiry_ = never;
  PrefixCacheStats stats_;
  PrefixCacheEvents events_;
};

using RadixCacheAllocator = BasicRadixCacheAllocator<>;
static_assert(TieredPrefixCache<RadixCacheAllocator> && ManagedPrefixCache<RadixCacheAllocator> &&
              PartialMatchAllocator<RadixCacheAllocator>);

}  // namespace nvl::inline NVL_ABI
