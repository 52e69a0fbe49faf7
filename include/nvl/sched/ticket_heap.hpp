#pragma once
/// A binary heap of tickets that know their place in it, so that any of them can leave.

#include <nvl/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// `T` has a member `std::uint32_t heap_place`, which the heap writes, first to TicketHeap::nowhere. `Before(a, b)`: a comes out
/// first. All but `reserve` is noexcept. O(log n) to insert, erase and update.
template <class T, class Before>
class TicketHeap {
 public:
  static constexpr std::uint32_t nowhere = ~std::uint32_t{0};

  explicit TicketHeap(Before before = {}) : before_(std::move(before)) {}

  /// Room for `count` in all. \throws std::bad_alloc, and then nothing changed.
  void reserve(std::size_t count) {
    if (count > items_.capacity()) { items_.reserve(std::max(count, 2 * items_.capacity())); }
  }

  bool empty() const noexcept { return items_.empty(); }
  std::size_t size() const noexcept { return items_.size(); }
  T& top() const noexcept { return *items_.front(); }

  /// Within what was reserved.
  void insert(T& item) noexcept {
    item.heap_place = static_cast<std::uint32_t>(items_.size());
    items_.push_back(&item);
    rise(item.heap_place);
  }

  void erase(T& item) noexcept {
    const std::uint32_t hole = std::exchange(item.heap_place, nowhere);
    T* const last = items_.back();
    items_.pop_back();
    if (last == &item) { return; }
    put(hole, last);
    update(*last);
  }

  /// The place of `item` follows from it anew.
  void update(T& item) noexcept {
    if (!rise(item.heap_place)) { sink(item.heap_place); }
  }

 private:
  void put(std::uint32_t place, T* item) noexcept {
    items_[place] = item;
    item->heap_place = place;
  }

  bool rise(std::uint32_t place) noexcept {
    T* const item = items_[place];
    bool moved = false;
    while (place > 0 && before_(*item, *items_[(place - 1) / 2])) {
      put(place, items_[(place - 1) / 2]);
      place = (place - 1) / 2;
      moved = true;
    }
    put(place, item);
    return moved;
  }

  void sink(std::uint32_t place) noexcept {
    T* const item = items_[place];
    const auto size = static_cast<std::uint32_t>(items_.size());
    for (std::uint32_t child = 2 * place + 1; child < size; child = 2 * place + 1) {
      if (child + 1 < size && before_(*items_[child + 1], *items_[child])) { ++child; }
      if (!before_(*items_[child], *item)) { break; }
      put(place, items_[child]);
      place = child;
    }
    put(place, item);
  }

  Before before_;
  std::vector<T*> items_;
};

}  // namespace nvl::inline NVL_ABI
