#pragma once
/// A RankGroup that counts the bytes which a rank hands to it.

#include <nvl/core/ids.hpp>
#include <nvl/parallel/thread_group.hpp>

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl_test {

/// [bytes] of one rank
struct Traffic {
  std::int64_t summed = 0;    // all_reduce_sum
  std::int64_t gathered = 0;  // all_gather, its own part
  std::int64_t sent = 0;      // send
};

class CountedGroup {
 public:
  explicit CountedGroup(nvl::ThreadGroup group) : group_(std::move(group)), traffic_(std::make_shared<Traffic>()) {}

  static std::vector<CountedGroup> make(std::uint32_t size) {
    std::vector<CountedGroup> ends;
    for (nvl::ThreadGroup& end : nvl::ThreadGroup::make(size)) { ends.emplace_back(std::move(end)); }
    return ends;
  }

  /// Counted on, wherever the group goes. Read while no rank is at work.
  std::shared_ptr<const Traffic> traffic() const noexcept { return traffic_; }

  nvl::Rank rank() const noexcept { return group_.rank(); }
  std::uint32_t size() const noexcept { return group_.size(); }
  template <class T>
  void all_reduce_sum(T* data, std::int64_t n) {
    traffic_->summed += bytes<T>(n);
    group_.all_reduce_sum(data, n);
  }
  template <class T>
  void all_gather(const T* mine, T* all, std::int64_t n) {
    traffic_->gathered += bytes<T>(n);
    group_.all_gather(mine, all, n);
  }
  template <class T>
  void broadcast(T* data, std::int64_t n, nvl::Rank root) {
    group_.broadcast(data, n, root);
  }
  template <class T>
  void send(const T* data, std::int64_t n, nvl::Rank to) {
    traffic_->sent += bytes<T>(n);
    group_.send(data, n, to);
  }
  template <class T>
  void recv(T* data, std::int64_t n, nvl::Rank from) {
    group_.recv(data, n, from);
  }
  void barrier() { group_.barrier(); }
  void abort(std::string_view why) noexcept { group_.abort(why); }

 private:
  template <class T>
  static constexpr std::int64_t bytes(std::int64_t n) noexcept {
    return n * static_cast<std::int64_t>(sizeof(T));
  }

  nvl::ThreadGroup group_;
  std::shared_ptr<Traffic> traffic_;
};

}  // namespace nvl_test
