#pragma once
/// Finds the first of several byte strings in a stream of bytes, in time linear in the stream, and says how much of the end of
/// the stream may yet become one of them.
/// Source: Aho & Corasick 1975, "Efficient string matching: an aid to bibliographic search".

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// An automaton over the stop strings. Immutable; a stream's progress is one State, so it is cheap to copy and to look ahead.
///
/// The first match is the one that ends first, because a stream cannot wait for a longer one; of several that end at the same
/// byte, the longest. So the answer does not depend on how the stream is cut into pieces.
class StopMatcher {
 public:
  enum class State : std::uint32_t { start = 0 };
  static constexpr std::int32_t no_match = -1;

  /// Matches nothing.
  StopMatcher() : StopMatcher(std::span<const std::string>{}) {}

  /// \throws InvalidArgument for an empty string.
  explicit StopMatcher(std::span<const std::string> stops) {
    nodes_.emplace_back();
    root_children_.fill(0);
    for (std::size_t i = 0; i < stops.size(); ++i) { insert(stops[i], static_cast<std::int32_t>(i)); }
    link();
  }

  bool empty() const noexcept { return nodes_.size() == 1; }

  State next(State state, char byte) const noexcept {
    auto node = static_cast<std::uint32_t>(state);
    std::uint32_t to = child(node, byte);
    while (to == 0 && node != 0) {
      node = nodes_[node].suffix;
      to = child(node, byte);
    }
    return State{to};
  }

  /// Index of the longest stop string that ends here, or no_match.
  std::int32_t match(State state) const noexcept { return nodes_[static_cast<std::uint32_t>(state)].match; }

  /// [bytes] at the end of the stream that are the beginning of a stop string and not a whole one.
  std::size_t held_bytes(State state) const noexcept { return nodes_[static_cast<std::uint32_t>(state)].held; }

 private:
  /// A prefix of a stop string. Node 0 is the empty prefix; as a child it means "none".
  struct Node {
    std::uint32_t first_child = 0;
    std::uint32_t next_sibling = 0;
    std::uint32_t suffix = 0;  // the longest proper suffix of this prefix that is a prefix too
    std::uint32_t depth = 0;   // [bytes]
    std::uint32_t held = 0;    // [bytes] of the longest suffix, or of this, that can grow
    std::int32_t match = no_match;
    char byte = 0;  // the last one
  };

  /// Siblings are at most as many as stop strings. The root, where most text is, has a table.
  std::uint32_t child(std::uint32_t node, char byte) const noexcept {
    if (node == 0) { return root_children_[static_cast<unsigned char>(byte)]; }
    std::uint32_t at = nodes_[node].first_child;
    while (at != 0 && nodes_[at].byte != byte) { at = nodes_[at].next_sibling; }
    return at;
  }

  void insert(std::string_view stop, std::int32_t index) {
    NVL_EXPECTS(!stop.empty(), "stop string", stop, "at least one byte");
    std::uint32_t node = 0;
    for (const char byte : stop) {
      std::uint32_t to = child(node, byte);
      if (to == 0) {
        to = static_cast<std::uint32_t>(nodes_.size());
        nodes_.push_back({.next_sibling = nodes_[node].first_child, .depth = nodes_[node].depth + 1, .byte = byte});
        nodes_[node].first_child = to;
        if (node == 0) { root_children_[static_cast<unsigned char>(byte)] = to; }
      }
      node = to;
    }
    if (nodes_[node].match == no_match) { nodes_[node].match = index; }
  }

  /// Sets suffix links, and what follows from them, in order of depth.
  void link() {
    std::vector<std::uint32_t> queue{0};
    for (std::size_t i = 0; i < queue.size(); ++i) {
      const std::uint32_t node = queue[i];
      const Node& suffix = nodes_[nodes_[node].suffix];
      nodes_[node].held = nodes_[node].first_child != 0 ? nodes_[node].depth : suffix.held;
      if (nodes_[node].match == no_match) { nodes_[node].match = suffix.match; }
      for (std::uint32_t to = nodes_[node].first_child; to != 0; to = nodes_[to].next_sibling) {
        if (node != 0) { nodes_[to].suffix = static_cast<std::uint32_t>(next(State{nodes_[node].suffix}, nodes_[to].byte)); }
        queue.push_back(to);
      }
    }
  }

  std::vector<Node> nodes_;
  std::array<std::uint32_t, 256> root_children_;
};

}  // namespace nvl::inline NVL_ABI
