#pragma once
/// A BlockAllocator with a prefix cache that is a tree of token blocks.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/host_tier.hpp>
#include <nvl/kv/index_heap.hpp>
#include <nvl/kv/index_list.hpp>
#include <nvl/kv/prefix_cache.hpp>

#include <algorithm>
#include <array>
#include <bit>
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
/// Runs. A node whose only child follows it needs no search: a match compares tokens along the run, block by block, and hashes
/// only where a node has several children and the one taken last is not it. A run has no object of its own, so nothing is moved
/// when sequences part in it: the node where they do has two children from then on.
///
/// Identity. A PrefixId is the place and the serial number of a node; serials are given once and never again. What hangs below a
/// node that is gone is not found any more. Tokens are always compared, whatever the hash says.
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
/// Memory is fixed at construction: about 190 bytes and block_size tokens a block of either tier. Nothing but `match`,
/// `match_host` and `take_demotions` can throw, and they throw before they change anything.
template <BlockHash Hash = Xxh3BlockHash>
class BasicRadixCacheAllocator {
 public:
  static constexpr std::uint32_t max_heads_compared = 16;  // children whose heads match_head looks at
  static constexpr std::int8_t pinned_priority = std::numeric_limits<std::int8_t>::max();

  explicit BasicRadixCacheAllocator(const BlockPoolShape& shape, Hash hash = {})
      : hash_(std::move(hash)),
        block_size_(checked(shape).block_size),
        num_nodes_(shape.num_blocks + shape.num_host_blocks),
        blocks_(shape.num_blocks),
        host_nodes_(shape.num_host_blocks, no_index),
        nodes_(2 * std::size_t{num_nodes_}),
        tokens_(std::size_t{num_nodes_} * block_size_),
        buckets_(std::bit_ceil(std::max<std::size_t>(num_nodes_, 1)), no_index),
        free_(shape.num_blocks),
        free_nodes_(num_nodes_),
        free_anchors_(num_nodes_),
        idle_links_(num_nodes_),
        retained_links_(num_nodes_),
        leaves_(num_nodes_),
        host_(shape.num_host_blocks),
        max_retained_(shape.num_blocks / 4) {
    if (shape.num_host_blocks > 0) { newly_idle_.reserve(num_nodes_); }
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
    for_each_found(prefix, tokens, [&](std::uint32_t n) {
      const std::uint32_t b = nodes_[n].device;
      if (b == no_index) { return false; }
      own(n);
      make_first_child(n);
      out.push_back(BlockId{b});
      stats_.hit_tokens += block_size_;
      prefix = id_of(n);
      return true;
    });
    return prefix;
  }

  std::uint32_t lookup(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    std::uint32_t found = 0;
    for_each_found(prefix, tokens, [&](std::uint32_t n) {
      if (nodes_[n].device == no_index) { return false; }
      found += block_size_;
      return true;
    });
    return found;
  }

  PrefixId publish(PrefixId parent, std::span<const TokenId> tokens, BlockId& id) {
    NVL_EXPECTS(tokens.size() == block_size_, "tokens published", tokens.size(), "one block of " + std::to_string(block_size_));
    const std::uint32_t b = index_of(id);
    assert(blocks_[b].num_owners > 0);
    std::uint32_t n = find_child(node_of(parent), tokens);
    if (n != no_index && nodes_[n].device == b) { return id_of(n); }     // published before
    if (blocks_[b].node != no_index) { leave_device(blocks_[b].node); }  // it held something else
    if (n != no_index && nodes_[n].device != no_index) {
      own(n);
      id = BlockId{nodes_[n].device};
      release_one(b);
      ++stats_.merged_blocks;
      return id_of(n);
    }
    if (n == no_index) { n = add_node(parent, tokens); }
    attach(n, b);
    ++stats_.stored_blocks;
    events_.note(PrefixCacheEvent::Kind::stored, id_of(n), parent);
    return id_of(n);
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
    for_each_found(prefix, tokens, [&](std::uint32_t n) {
      if (nodes_[n].device != no_index) { return false; }
      host_.hold(nodes_[n].host);
      hosts.push_back(HostBlockId{nodes_[n].host});
      stats_.host_hit_tokens += block_size_;
      prefix = id_of(n);
      return true;
    });
    return prefix;
  }

  void take_demotions(std::size_t most, std::vector<BlockTransfer>& transfers) {
    transfers.reserve(transfers.size() + std::min(most, newly_idle_.size()));
    std::size_t done = 0;
    for (; done < newly_idle_.size() && most > 0; ++done) {
      const std::uint32_t n = newly_idle_[done];
      if (is_idle(n) && nodes_[n].host == no_index) {
        const std::uint32_t h = host_.take([this](std::uint32_t old) { drop_content(old); });
        if (h == no_index) { break; }
        host_.cache(h);
        host_.hold(h);  // no second block of this step goes there
        nodes_[n].host = h;
        host_nodes_[h] = n;
        transfers.push_back({.device = BlockId{nodes_[n].device}, .host = HostBlockId{h}});
        ++stats_.demoted_blocks;
        events_.note(PrefixCacheEvent::Kind::stored_on_host, id_of(n), nodes_[n].parent);
        --most;
      }
      nodes_[n].is_newly_idle = false;
    }
    newly_idle_.erase(newly_idle_.begin(), newly_idle_.begin() + static_cast<std::ptrdiff_t>(done));
    host_.end_holds();
  }

  // PartialMatchAllocator

  /// Looks at max_heads_compared of the blocks that follow `prefix`, those taken last.
  PartialMatch match_head(PrefixId prefix, std::span<const TokenId> tokens) noexcept {
    const std::uint32_t parent = node_of(prefix);
    if (parent == no_index) { return {}; }
    const auto wanted = tokens.first(std::min<std::size_t>(tokens.size(), block_size_ - 1));
    std::uint32_t best = no_index;
    std::size_t longest = 0;
    std::uint32_t n = nodes_[parent].first_child;
    for (std::uint32_t i = 0; i < max_heads_compared && n != no_index; ++i, n = nodes_[n].sibling_next) {
      if (nodes_[n].device == no_index) { continue; }
      const auto parted = std::ranges::mismatch(wanted, tokens_of(n)).in1;
      const auto num_equal = static_cast<std::size_t>(parted - wanted.begin());
      if (num_equal > longest) { std::tie(longest, best) = std::pair(num_equal, n); }
    }
    if (best == no_index) { return {}; }
    own(best);
    stats_.partial_hit_tokens += longest;
    return {.block = BlockId{nodes_[best].device}, .num_tokens = static_cast<std::uint32_t>(longest)};
  }

  // ManagedPrefixCache

  std::uint32_t pin(PrefixId root, std::span<const TokenId> tokens) noexcept {
    return retain(root, tokens, {.priority = pinned_priority});
  }
  std::uint32_t unpin(PrefixId root, std::span<const TokenId> tokens) noexcept { return retain(root, tokens, {}); }
  /// [blocks] with a priority above 0 at most. What has one already keeps it.
  void set_max_pinned(std::uint32_t blocks) noexcept { max_retained_ = blocks; }

  void reset() noexcept {
    for (std::uint32_t n = 0; n < num_nodes_; ++n) {
      if (nodes_[n].serial != 0) { drop(n); }
    }
    events_.note(PrefixCacheEvent::Kind::cleared);
  }

  const PrefixCacheStats& stats() const noexcept { return stats_; }
  PrefixCacheEvents& events() noexcept { return events_; }

  /// [tokens] at the beginning that are cached and are kept so from now on; as far as the bound of set_max_pinned goes.
  std::uint32_t retain(PrefixId root, std::span<const TokenId> tokens, const Retention& retention) noexcept {
    std::uint32_t done = 0;
    for_each_found(root, tokens, [&](std::uint32_t n) {
      if (nodes_[n].device == no_index) { return false; }
      const bool is_more = retention.priority > 0 && nodes_[n].priority <= 0;
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

  /// A prefix, in use while its serial is not 0: it has a block on the device or on the host. Those from num_nodes_ on are
  /// anchors: prefixes that no block ends (a root, or one that is gone); they have neither serial nor blocks, only children.
  struct Node {
    PrefixId parent{};  // of an anchor: the prefix itself
    std::uint64_t serial = 0;
    std::uint64_t last_use = 0;            // when it lost its last owner, by clock_
    std::uint64_t expires = never;         // its priority, by num_matches_
    std::uint32_t parent_node = no_index;  // while it is there
    std::uint32_t first_child = no_index;  // the one that was taken last
    std::uint32_t sibling_prev = no_index;
    std::uint32_t sibling_next = no_index;
    std::uint32_t num_device_children = 0;
    std::uint32_t device = no_index;
    std::uint32_t host = no_index;
    std::uint32_t bucket = no_index;
    std::uint32_t bucket_next = no_index;
    std::int8_t priority = 0;
    bool is_newly_idle = false;  // in newly_idle_
  };

  enum class NodeId : std::uint32_t {};

  static const BlockPoolShape& checked(const BlockPoolShape& shape) {
    NVL_EXPECTS(shape.block_size >= 1, "BlockPoolShape::block_size", shape.block_size, "at least 1");
    NVL_EXPECTS(shape.num_blocks < no_index / 2 && shape.num_host_blocks < no_index / 2 - shape.num_blocks,
                "BlockPoolShape::num_blocks", shape.num_blocks, "below 2^31, with num_host_blocks");
    return shape;
  }

  Block& at(BlockId id) noexcept { return blocks_[index_of(id)]; }
  PrefixId id_of(std::uint32_t n) const noexcept { return {.high = n, .low = nodes_[n].serial}; }
  bool is_anchor(std::uint32_t n) const noexcept { return n >= num_nodes_; }
  bool is_idle(std::uint32_t n) const noexcept {
    return nodes_[n].device != no_index && blocks_[nodes_[n].device].num_owners == 0;
  }

  std::span<TokenId> tokens_of(std::uint32_t n) noexcept { return {tokens_.data() + std::size_t{n} * block_size_, block_size_}; }
  std::span<const TokenId> tokens_of(std::uint32_t n) const noexcept {
    return {tokens_.data() + std::size_t{n} * block_size_, block_size_};
  }

  // The tree

  std::uint32_t bucket_of(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    return static_cast<std::uint32_t>(hash_(prefix, tokens) & (buckets_.size() - 1));
  }

  /// The node that `prefix` names, or its anchor; no_index: it has neither.
  std::uint32_t node_of(PrefixId prefix) const noexcept {
    if (prefix.high < num_nodes_ && nodes_[prefix.high].serial == prefix.low) { return static_cast<std::uint32_t>(prefix.high); }
    std::uint32_t n = buckets_[bucket_of(prefix, {})];
    while (n != no_index && !(is_anchor(n) && nodes_[n].parent == prefix)) { n = nodes_[n].bucket_next; }
    return n;
  }

  std::uint32_t find_child(std::uint32_t parent, std::span<const TokenId> tokens) const noexcept {
    if (parent == no_index) { return no_index; }
    const std::uint32_t first = nodes_[parent].first_child;
    if (first == no_index || std::ranges::equal(tokens_of(first), tokens)) { return first; }
    if (nodes_[first].sibling_next == no_index) { return no_index; }
    std::uint32_t n = buckets_[bucket_of(nodes_[first].parent, tokens)];
    while (n != no_index && (is_anchor(n) || nodes_[n].parent_node != parent || !std::ranges::equal(tokens_of(n), tokens))) {
      n = nodes_[n].bucket_next;
    }
    return n;
  }

  /// Calls `visit(n)` for the nodes of `tokens` after `prefix`, in order, while it returns true.
  template <class Visit>
  void for_each_found(PrefixId prefix, std::span<const TokenId> tokens, Visit&& visit) const {
    std::uint32_t n = tokens.size() >= block_size_ ? node_of(prefix) : no_index;
    for (; tokens.size() >= block_size_; tokens = tokens.subspan(block_size_)) {
      n = find_child(n, tokens.first(block_size_));
      if (n == no_index || !visit(n)) { return; }
    }
  }

  void insert(std::uint32_t n, std::uint32_t bucket) noexcept {
    nodes_[n].bucket = bucket;
    nodes_[n].bucket_next = std::exchange(buckets_[bucket], n);
  }

  void erase(std::uint32_t n) noexcept {
    std::uint32_t* link = &buckets_[nodes_[n].bucket];
    while (*link != n) { link = &nodes_[*link].bucket_next; }
    *link = nodes_[n].bucket_next;
  }

  void link_child(std::uint32_t parent, std::uint32_t n) noexcept {
    const std::uint32_t next = std::exchange(nodes_[parent].first_child, n);
    nodes_[n].parent_node = parent;
    nodes_[n].sibling_prev = no_index;
    nodes_[n].sibling_next = next;
    if (next != no_index) { nodes_[next].sibling_prev = n; }
  }

  void unlink_child(std::uint32_t n) noexcept {
    const auto [parent, prev, next] = std::tuple(nodes_[n].parent_node, nodes_[n].sibling_prev, nodes_[n].sibling_next);
    (prev == no_index ? nodes_[parent].first_child : nodes_[prev].sibling_next) = next;
    if (next != no_index) { nodes_[next].sibling_prev = prev; }
  }

  void make_first_child(std::uint32_t n) noexcept {
    if (nodes_[n].sibling_prev == no_index) { return; }
    unlink_child(n);
    link_child(nodes_[n].parent_node, n);
  }

  static std::uint32_t take(FreeIds<NodeId>& ids) noexcept {
    NodeId id{};
    static_cast<void>(ids.try_take(std::span(&id, 1)));  // there are as many as blocks
    return index_of(id);
  }

  std::uint32_t add_node(PrefixId parent, std::span<const TokenId> tokens) noexcept {
    std::uint32_t parent_node = node_of(parent);
    if (parent_node == no_index) {
      parent_node = num_nodes_ + take(free_anchors_);
      nodes_[parent_node].parent = parent;
      insert(parent_node, bucket_of(parent, {}));
    }
    const std::uint32_t n = take(free_nodes_);
    nodes_[n].serial = ++last_serial_;
    nodes_[n].parent = parent;
    std::ranges::copy(tokens, tokens_of(n).begin());
    insert(n, bucket_of(parent, tokens));
    link_child(parent_node, n);
    return n;
  }

  /// `n` has no blocks any more. Its children are roots of trees that nobody finds.
  void remove_node(std::uint32_t n) noexcept {
    set_priority(n, 0, never);
    for (std::uint32_t child = nodes_[n].first_child; child != no_index;) {
      nodes_[child].parent_node = nodes_[child].sibling_prev = no_index;
      child = std::exchange(nodes_[child].sibling_next, no_index);
    }
    erase(n);
    if (const std::uint32_t parent = nodes_[n].parent_node; parent != no_index) {
      unlink_child(n);
      if (is_anchor(parent) && nodes_[parent].first_child == no_index) {
        erase(parent);
        nodes_[parent] = {};
        free_anchors_.give_back(std::array{NodeId{parent - num_nodes_}});
      }
    }
    nodes_[n] = {.is_newly_idle = nodes_[n].is_newly_idle};
    free_nodes_.give_back(std::array{NodeId{n}});
  }

  // Blocks of the device

  void attach(std::uint32_t n, std::uint32_t b) noexcept {
    nodes_[n].device = b;
    blocks_[b].node = n;
    const std::uint32_t parent = nodes_[n].parent_node;
    if (parent == no_index) { return; }
    ++nodes_[parent].num_device_children;
    if (!is_anchor(parent)) { update_leaf(parent); }
  }

  /// The block of `n`, which is not idle, is not published any more.
  void leave_device(std::uint32_t n) noexcept {
    blocks_[std::exchange(nodes_[n].device, no_index)].node = no_index;
    const std::uint32_t parent = nodes_[n].parent_node;
    if (parent != no_index) {
      --nodes_[parent].num_device_children;
      if (!is_anchor(parent)) { update_leaf(parent); }
    }
    if (nodes_[n].host == no_index) { remove_node(n); }
  }

  bool goes_before(std::uint32_t a, std::uint32_t b) const noexcept {
    return std::tuple(nodes_[a].priority, nodes_[a].last_use, a) < std::tuple(nodes_[b].priority, nodes_[b].last_use, b);
  }

  /// Idle nodes without a child on the device are in leaves_, no others.
  void update_leaf(std::uint32_t n) noexcept {
    const auto before = [this](std::uint32_t a, std::uint32_t b) { return goes_before(a, b); };
    const bool is_leaf = is_idle(n) && nodes_[n].num_device_children == 0;
    if (is_leaf == leaves_.contains(n)) { return; }
    is_leaf ? leaves_.push(n, before) : leaves_.remove(n, before);
  }

  /// One more owner of the block of `n`.
  void own(std::uint32_t n) noexcept {
    if (blocks_[nodes_[n].device].num_owners++ == 0) {
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
    nodes_[n].last_use = clock_;
    idle_.push_back(idle_links_, n);
    update_leaf(n);
    if (host_.num_blocks() > 0 && nodes_[n].host == no_index && !std::exchange(nodes_[n].is_newly_idle, true)) {
      newly_idle_.push_back(n);  // within the reserved capacity: cannot throw
    }
  }

  std::uint32_t evict() noexcept {
    if (num_matches_ >= next_expiry_) { end_retentions(); }
    const std::uint32_t n = leaves_.empty() ? idle_.front() : leaves_.top();
    const std::uint32_t b = nodes_[n].device;
    own(n);
    events_.note(PrefixCacheEvent::Kind::evicted, id_of(n));
    ++stats_.evicted_blocks;
    leave_device(n);
    return b;
  }

  // Blocks of the host, and both

  /// The host block `h` is about to hold something else.
  void drop_content(std::uint32_t h) noexcept {
    const std::uint32_t n = std::exchange(host_nodes_[h], no_index);
    ++stats_.evicted_host_blocks;
    events_.note(PrefixCacheEvent::Kind::evicted_from_host, id_of(n));
    nodes_[n].host = no_index;
    if (nodes_[n].device == no_index) { remove_node(n); }
  }

  /// `n` is not found any more.
  void drop(std::uint32_t n) noexcept {
    const std::uint32_t b = nodes_[n].device;
    if (b != no_index) { own(n); }
    if (const std::uint32_t h = nodes_[n].host; h != no_index) {
      drop_content(h);
      host_.uncache(h);
    }
    if (b == no_index) { return; }
    events_.note(PrefixCacheEvent::Kind::evicted, id_of(n));
    leave_device(n);
    release_one(b);
  }

  // Retention

  void set_priority(std::uint32_t n, std::int8_t priority, std::uint64_t expires) noexcept {
    Node& node = nodes_[n];
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
      if (nodes_[n].expires <= num_matches_) {
        set_priority(n, 0, never);
      } else {
        next_expiry_ = std::min(next_expiry_, nodes_[n].expires);
      }
      n = next;
    }
  }

  Hash hash_;
  detail::PrefixRoots roots_;
  std::uint32_t block_size_;
  std::uint32_t num_nodes_;
  std::vector<Block> blocks_;              // [num_blocks]
  std::vector<std::uint32_t> host_nodes_;  // [num_host_blocks] whose copy each holds
  std::vector<Node> nodes_;                // [2, num_nodes] nodes, then anchors
  std::vector<TokenId> tokens_;            // [num_nodes, block_size]
  std::vector<std::uint32_t> buckets_;     // first node of each, by (parent, tokens); anchors by (prefix, nothing)
  FreeIds<BlockId> free_;
  FreeIds<NodeId> free_nodes_, free_anchors_;
  IndexList idle_;                         // nodes whose block has no owner; least recently released first
  std::vector<IndexLink> idle_links_;      // [num_nodes]
  IndexList retained_;                     // nodes whose priority expires
  std::vector<IndexLink> retained_links_;  // [num_nodes]
  IndexHeap leaves_;                       // evicted next
  std::vector<std::uint32_t> newly_idle_;  // with no copy on the host yet, perhaps; in the order in which they became idle
  HostTier host_;
  std::uint32_t num_retained_ = 0;
  std::uint32_t max_retained_;
  std::uint64_t last_serial_ = 0;
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
