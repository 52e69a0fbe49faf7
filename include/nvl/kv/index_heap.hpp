#pragma once
/// A priority queue of indices that can leave it anywhere: which block a cache evicts next.

#include <nvl/core/config.hpp>
#include <nvl/kv/index_list.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nvl::inline NVL_ABI {

/// A binary heap that knows where each index is. `before(a, b)` says which goes first; what it says of indices in the heap must
/// not change. push and remove take logarithmic time; nothing allocates after construction.
class IndexHeap {
 public:
  explicit IndexHeap(std::size_t num_indices) : places_(num_indices, no_index) { heap_.reserve(num_indices); }

  bool empty() const noexcept { return heap_.empty(); }
  std::uint32_t top() const noexcept { return heap_.front(); }
  bool contains(std::uint32_t i) const noexcept { return places_[i] != no_index; }

  template <class Before>
  void push(std::uint32_t i, Before&& before) noexcept {
    heap_.push_back(i);  // within the reserved capacity: cannot throw
    rise(heap_.size() - 1, before);
  }

  template <class Before>
  void remove(std::uint32_t i, Before&& before) noexcept {
    const std::size_t place = places_[i];
    const std::uint32_t last = heap_.back();
    heap_.pop_back();
    places_[i] = no_index;
    if (last == i) { return; }
    put(place, last);
    sink(rise(place, before), before);
  }

 private:
  void put(std::size_t place, std::uint32_t i) noexcept {
    heap_[place] = i;
    places_[i] = static_cast<std::uint32_t>(place);
  }

  template <class Before>
  std::size_t rise(std::size_t place, Before&& before) noexcept {
    const std::uint32_t i = heap_[place];
    for (; place > 0 && before(i, heap_[(place - 1) / 2]); place = (place - 1) / 2) { put(place, heap_[(place - 1) / 2]); }
    put(place, i);
    return place;
  }

  template <class Before>
  void sink(std::size_t place, Before&& before) noexcept {
    const std::uint32_t i = heap_[place];
    for (std::size_t child = 2 * place + 1; child < heap_.size(); child = 2 * place + 1) {
      if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) { ++child; }
      if (!before(heap_[child], i)) { break; }
      put(place, heap_[child]);
      place = child;
    }
    put(place, i);
  }

  std::vector<std::uint32_t> heap_;
  std::vector<std::uint32_t> places_;  // of each index in heap_
};

}  // namespace nvl::inline NVL_ABI
