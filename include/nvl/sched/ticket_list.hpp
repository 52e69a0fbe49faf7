#pragma once
/// A line of tickets that are linked to each other, so that any of them can leave and nothing is allocated.

#include <nvl/core/config.hpp>

namespace nvl::inline NVL_ABI {

/// `T` has members `T* before` and `T* after`, which the list writes, both null outside.
template <class T>
class TicketList {
 public:
  TicketList() = default;
  TicketList(TicketList&& other) noexcept : first_(other.first_), last_(other.last_) { other.first_ = other.last_ = nullptr; }
  TicketList& operator=(TicketList&& other) noexcept {
    first_ = other.first_;
    last_ = other.last_;
    if (this != &other) { other.first_ = other.last_ = nullptr; }
    return *this;
  }

  bool empty() const noexcept { return first_ == nullptr; }
  T* first() const noexcept { return first_; }
  bool contains(const T& item) const noexcept { return item.before != nullptr || first_ == &item; }

  void push_back(T& item) noexcept { link(last_, item, nullptr); }
  void push_front(T& item) noexcept { link(nullptr, item, first_); }
  void erase(T& item) noexcept {
    (item.before != nullptr ? item.before->after : first_) = item.after;
    (item.after != nullptr ? item.after->before : last_) = item.before;
    item.before = item.after = nullptr;
  }

 private:
  void link(T* before, T& item, T* after) noexcept {
    item.before = before;
    item.after = after;
    (before != nullptr ? before->after : first_) = &item;
    (after != nullptr ? after->before : last_) = &item;
  }

  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace nvl::inline NVL_ABI
