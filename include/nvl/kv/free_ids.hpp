#pragma once
/// The ids of a pool that nobody has: a stack, so that what was released last is handed out next.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Ids 0 <= id < capacity of the enumeration `Id`, all free at first. Both operations take time proportional to the ids that
/// they move, and allocate no memory.
template <class Id>
class FreeIds {
 public:
  explicit FreeIds(std::uint32_t capacity) : capacity_(capacity) {
    ids_.reserve(capacity_);
    // The lowest id is on top, so that a fresh pool is handed out in order and a long prompt gets neighbouring blocks.
    for (std::uint32_t id = capacity_; id > 0; --id) { ids_.push_back(Id{id - 1}); }
  }

  /// Fills `out` with distinct free ids. False: there are not as many, and nothing changed.
  bool try_take(std::span<Id> out) noexcept {
    if (out.size() > ids_.size()) { return false; }
    for (Id& id : out) {
      id = ids_.back();
      ids_.pop_back();
    }
    return true;
  }

  /// Each of `ids` was taken and not yet given back.
  void give_back(std::span<const Id> ids) noexcept {
    // Backwards, so that a block table that is released and allocated again comes back in its order.
    for (std::size_t i = ids.size(); i > 0; --i) {
      assert(index_of(ids[i - 1]) < capacity_ && ids_.size() < capacity_);
      ids_.push_back(ids[i - 1]);  // within the reserved capacity: cannot throw
    }
  }

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(ids_.size()); }
  std::uint32_t capacity() const noexcept { return capacity_; }

 private:
  std::vector<Id> ids_;
  std::uint32_t capacity_ = 0;
};

}  // namespace nvl::inline NVL_ABI
