#pragma once
/// Doubly linked lists of indices: the orders in which caches evict. Every operation takes constant time and no memory.

#include <nvl/core/config.hpp>

#include <cstdint>
#include <span>
#include <utility>

namespace nvl::inline NVL_ABI {

/// No index.
inline constexpr std::uint32_t no_index = ~std::uint32_t{0};

/// The neighbours of one index in the list that it is in.
struct IndexLink {
  std::uint32_t prev = no_index;
  std::uint32_t next = no_index;
};

/// One list. The links of all indices lie in an array of the owner, which several lists may share: an index is in one at most.
class IndexList {
 public:
  void push_back(std::span<IndexLink> links, std::uint32_t i) noexcept {
    links[i] = {.prev = std::exchange(back_, i), .next = no_index};
    (links[i].prev == no_index ? front_ : links[links[i].prev].next) = i;
    ++size_;
  }

  /// `i` is in this list.
  void remove(std::span<IndexLink> links, std::uint32_t i) noexcept {
    const auto [prev, next] = links[i];
    (prev == no_index ? front_ : links[prev].next) = next;
    (next == no_index ? back_ : links[next].prev) = prev;
    --size_;
  }

  std::uint32_t front() const noexcept { return front_; }  ///< no_index if it is empty
  std::uint32_t size() const noexcept { return size_; }

 private:
  std::uint32_t front_ = no_index;
  std::uint32_t back_ = no_index;
  std::uint32_t size_ = 0;
};

}  // namespace nvl::inline NVL_ABI
