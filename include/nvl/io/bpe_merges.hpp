#pragma once
/// The merge loop of byte-pair encoding: join the neighbouring pair of best rank, leftmost first, until none can be joined.
/// Sennrich et al. 2016, arXiv:1508.07909. A heap and a linked list make it O(n log n) in the symbols of one piece.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace nvl::inline NVL_ABI {

/// What two neighbouring symbols become.
struct Merge {
  std::uint32_t rank;  // lower joins first
  TokenId result;
};

/// Pairs of symbols that may be joined: a hash table without deletion.
class MergeTable {
 public:
  /// `expected` pairs fit without growing.
  explicit MergeTable(std::size_t expected = 0) { rehash(std::bit_ceil(std::max<std::size_t>(16, expected * 2))); }

  /// A pair that is there already keeps its merge; returns whether it was new.
  bool insert(TokenId left, TokenId right, Merge merge) {
    if ((size_ + 1) * 2 > slots_.size()) { rehash(slots_.size() * 2); }
    Slot& slot = slots_[locate(key(left, right))];
    if (slot.key != empty) { return false; }
    slot = {key(left, right), merge};
    ++size_;
    return true;
  }

  /// nullptr if the pair does not join.
  const Merge* find(TokenId left, TokenId right) const noexcept {
    const Slot& slot = slots_[locate(key(left, right))];
    return slot.key == empty ? nullptr : &slot.merge;
  }

  std::size_t size() const noexcept { return size_; }

 private:
  struct Slot {
    std::uint64_t key;
    Merge merge;
  };
  static constexpr std::uint64_t empty = ~std::uint64_t{0};  // ids are not negative, so no pair has this key

  static std::uint64_t key(TokenId left, TokenId right) noexcept {
    return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
  }

  std::size_t locate(std::uint64_t wanted) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    // Fibonacci hashing: the highest bits of the product depend on every bit of the key.
    std::size_t at = static_cast<std::size_t>((wanted * 0x9E3779B97F4A7C15u) >> shift_);
    while (slots_[at].key != empty && slots_[at].key != wanted) { at = (at + 1) & mask; }
    return at;
  }

  void rehash(std::size_t capacity) {
    std::vector<Slot> old(capacity, Slot{empty, {}});
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(capacity);
    for (const Slot& slot : old) {
      if (slot.key != empty) { slots_[locate(slot.key)] = slot; }
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half full
  std::size_t size_ = 0;
  int shift_ = 0;  // 64 - log2(slots_.size())
};

/// Replaces `symbols` by what is left when no pair of neighbours joins any more. At most 2^31 symbols.
inline void apply_merges(std::vector<TokenId>& symbols, const MergeTable& table) {
  const std::size_t count = symbols.size();
  if (count < 2) { return; }
  constexpr std::uint32_t none = ~std::uint32_t{0};

  struct Link {
    std::uint32_t previous, next;
  };
  // A candidate is stale once either of its symbols changed; it is then found to join differently, or not at all.
  struct Candidate {
    std::uint64_t order;  // rank, then position: ties go to the leftmost pair
    TokenId result;
    bool operator>(const Candidate& other) const noexcept { return order > other.order; }
  };

  std::vector<Link> links(count);
  std::vector<Candidate> heap;
  const auto candidate = [&](std::uint32_t at, const Merge& merge) {
    return Candidate{(std::uint64_t{merge.rank} << 32) | at, merge.result};
  };
  for (std::size_t i = 0; i < count; ++i) {
    links[i] = {i == 0 ? none : static_cast<std::uint32_t>(i - 1), i + 1 == count ? none : static_cast<std::uint32_t>(i + 1)};
    if (i + 1 == count) { continue; }
    if (const Merge* merge = table.find(symbols[i], symbols[i + 1])) {
      heap.push_back(candidate(static_cast<std::uint32_t>(i), *merge));
    }
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>{});

  constexpr TokenId gone = -1;
  const auto push = [&](std::uint32_t left) {
    if (left == none || links[left].next == none) { return; }
    if (const Merge* merge = table.find(symbols[left], symbols[links[left].next])) {
      heap.push_back(candidate(left, *merge));
      std::push_heap(heap.begin(), heap.end(), std::greater<>{});
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
    const Candidate best = heap.back();
    heap.pop_back();
    const auto left = static_cast<std::uint32_t>(best.order & none);
    if (symbols[left] == gone || links[left].next == none) { continue; }
    const std::uint32_t right = links[left].next;
    const Merge* merge = table.find(symbols[left], symbols[right]);
    if (merge == nullptr || merge->result != best.result || merge->rank != best.order >> 32) { continue; }
    symbols[left] = merge->result;
    symbols[right] = gone;
    links[left].next = links[right].next;
    if (links[right].next != none) { links[links[right].next].previous = left; }
    push(links[left].previous);
    push(left);
  }
  std::erase(symbols, gone);
}

}  // namespace nvl::inline NVL_ABI
