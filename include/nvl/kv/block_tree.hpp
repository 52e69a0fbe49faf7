#pragma once
/// The tree of a radix cache: prefixes, each one block of tokens longer than the one it hangs on.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>
#include <nvl/kv/block_hash.hpp>
#include <nvl/kv/free_ids.hpp>
#include <nvl/kv/index_list.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Up to `capacity` nodes, each with a `State` of its owner's. A node whose only child follows it needs no search: tokens are
/// compared along the run, block by block, and hashed only where a node has several children and the one taken last is not it.
/// A run has no object of its own, so nothing is moved when sequences part in it.
///
/// A PrefixId is the place and the serial number of a node; serials are given once and never again. Tokens are always compared,
/// whatever the hash says. Prefixes that no node ends (a root, or one whose node is gone) have an anchor while they have
/// children: a node without serial and tokens, found by its id. Memory is fixed at construction; nothing throws after it.
template <BlockHash Hash, class State>
class BlockTree {
 public:
  struct Node : State {
    PrefixId parent{};                     // the prefix before it; of an anchor: the prefix itself
    std::uint64_t serial = 0;              // 0: not in use, or an anchor
    std::uint32_t parent_node = no_index;  // while it is there
    std::uint32_t first_child = no_index;  // the one that was taken last
    std::uint32_t sibling_prev = no_index;
    std::uint32_t sibling_next = no_index;
    std::uint32_t bucket = no_index;
    std::uint32_t bucket_next = no_index;
  };

  BlockTree(std::uint32_t capacity, std::uint32_t block_size, Hash hash)
      : hash_(std::move(hash)),
        capacity_(capacity),
        block_size_(block_size),
        nodes_(2 * std::size_t{capacity}),
        tokens_(std::size_t{capacity} * block_size),
        buckets_(std::bit_ceil(std::max<std::size_t>(capacity, 1)), no_index),
        free_nodes_(capacity),
        free_anchors_(capacity) {}

  Node& operator[](std::uint32_t n) noexcept { return nodes_[n]; }
  const Node& operator[](std::uint32_t n) const noexcept { return nodes_[n]; }
  std::uint32_t capacity() const noexcept { return capacity_; }
  bool is_anchor(std::uint32_t n) const noexcept { return n >= capacity_; }
  PrefixId id_of(std::uint32_t n) const noexcept { return {.high = n, .low = nodes_[n].serial}; }
  std::span<const TokenId> tokens_of(std::uint32_t n) const noexcept {
    return {tokens_.data() + std::size_t{n} * block_size_, block_size_};
  }

  /// The node that `prefix` names, or its anchor; no_index: it has neither.
  std::uint32_t node_of(PrefixId prefix) const noexcept {
    if (prefix.high < capacity_ && nodes_[prefix.high].serial == prefix.low) { return static_cast<std::uint32_t>(prefix.high); }
    std::uint32_t n = buckets_[bucket_of(prefix, {})];
    while (n != no_index && !(is_anchor(n) && nodes_[n].parent == prefix)) { n = nodes_[n].bucket_next; }
    return n;
  }

  /// Of node or anchor `parent`, or of no_index, which has none.
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

  /// A node of `tokens` after `parent`, which has no such child. There are fewer than `capacity`.
  std::uint32_t add(PrefixId parent, std::span<const TokenId> tokens) noexcept {
    std::uint32_t parent_node = node_of(parent);
    if (parent_node == no_index) {
      parent_node = capacity_ + take(free_anchors_);
      nodes_[parent_node].parent = parent;
      insert(parent_node, bucket_of(parent, {}));
    }
    const std::uint32_t n = take(free_nodes_);
    nodes_[n].serial = ++last_serial_;
    nodes_[n].parent = parent;
    std::ranges::copy(tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(std::size_t{n} * block_size_));
    insert(n, bucket_of(parent, tokens));
    link_child(parent_node, n);
    return n;
  }

  /// Its children are roots of trees that nobody finds. Its State is a new one.
  void remove(std::uint32_t n) noexcept {
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
        free_anchors_.give_back(std::array{NodeId{parent - capacity_}});
      }
    }
    nodes_[n] = {};
    free_nodes_.give_back(std::array{NodeId{n}});
  }

  /// The next search below its parent begins with it.
  void make_first_child(std::uint32_t n) noexcept {
    if (nodes_[n].sibling_prev == no_index) { return; }
    unlink_child(n);
    link_child(nodes_[n].parent_node, n);
  }

 private:
  enum class NodeId : std::uint32_t {};

  std::uint32_t bucket_of(PrefixId prefix, std::span<const TokenId> tokens) const noexcept {
    return static_cast<std::uint32_t>(hash_(prefix, tokens) & (buckets_.size() - 1));
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

  static std::uint32_t take(FreeIds<NodeId>& ids) noexcept {
    NodeId id{};
    static_cast<void>(ids.try_take(std::span(&id, 1)));
    return index_of(id);
  }

  Hash hash_;
  std::uint32_t capacity_;
  std::uint32_t block_size_;
  std::vector<Node> nodes_;             // [2, capacity] nodes, then anchors
  std::vector<TokenId> tokens_;         // [capacity, block_size]
  std::vector<std::uint32_t> buckets_;  // first node of each, by (parent, tokens); anchors by (prefix, nothing)
  FreeIds<NodeId> free_nodes_, free_anchors_;
  std::uint64_t last_serial_ = 0;
};

}  // namespace nvl::inline NVL_ABI
