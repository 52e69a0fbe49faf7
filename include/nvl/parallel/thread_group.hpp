#pragma once
/// The RankGroup of threads of one process: ranks read each other's memory.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct ThreadGroupOptions {
  std::chrono::milliseconds timeout{30'000};  // a rank that is later than this ends the group
};

/// One rank's end. Copies of an end are the same end.
///
/// All-reduce: each rank adds up its own part of the elements for all of them, in the order of the ranks, and writes the sums to
/// everybody. In double for float, in float for narrower elements.
class ThreadGroup {
 public:
  static constexpr std::uint32_t max_size = 256;

  /// The ends of a new group, by rank.
  /// \throws InvalidArgument for a size that is not 1 to max_size
  static std::vector<ThreadGroup> make(std::uint32_t size, const ThreadGroupOptions& options = {}) {
    NVL_EXPECTS(size >= 1 && size <= max_size, "ranks of a ThreadGroup", size, "1 to " + std::to_string(max_size));
    NVL_EXPECTS(options.timeout.count() > 0, "ThreadGroupOptions::timeout", options.timeout.count(), "positive");
    const auto shared = std::make_shared<Shared>(size, options);
    std::vector<ThreadGroup> ends;
    for (std::uint32_t r = 0; r < size; ++r) { ends.push_back(ThreadGroup(shared, r)); }
    return ends;
  }

  Rank rank() const noexcept { return Rank{rank_}; }
  std::uint32_t size() const noexcept { return shared_->size(); }

  template <class T>
  void all_reduce_sum(T* data, std::int64_t n) {
    if (size() == 1) { return; }
    meet({.name = "all_reduce_sum", .count = n, .element_bytes = sizeof(T), .data = data});
    const std::int64_t begin = n * rank_ / size();
    const std::int64_t end = n * (rank_ + 1) / size();
    using Sum = std::conditional_t<std::is_same_v<T, float>, double, float>;
    for (std::int64_t i = begin; i < end; ++i) {
      Sum sum{};
      for (std::uint32_t r = 0; r < size(); ++r) { sum += static_cast<Sum>(data_of<T>(r)[i]); }
      const T rounded = static_cast<T>(sum);
      for (std::uint32_t r = 0; r < size(); ++r) { data_of<T>(r)[i] = rounded; }
    }
    barrier();
  }

  template <class T>
  void all_gather(const T* mine, T* all, std::int64_t n) {
    static_assert(std::is_trivially_copyable_v<T>);
    meet({.name = "all_gather", .count = n, .element_bytes = sizeof(T), .data = const_cast<T*>(mine)});
    for (std::uint32_t r = 0; r < size(); ++r) { copy(all + r * n, data_of<T>(r), n); }
    barrier();
  }

  template <class T>
  void broadcast(T* data, std::int64_t n, Rank root) {
    static_assert(std::is_trivially_copyable_v<T>);
    check(root);
    meet({.name = "broadcast", .count = n, .element_bytes = sizeof(T), .peer = index_of(root), .data = data});
    if (root != rank()) { copy(data, data_of<T>(index_of(root)), n); }
    barrier();
  }

  template <class T>
  void send(const T* data, std::int64_t n, Rank to) {
    static_assert(std::is_trivially_copyable_v<T>);
    check(to);
    shared_->send(rank_, index_of(to), data, n * static_cast<std::int64_t>(sizeof(T)));
  }

  template <class T>
  void recv(T* data, std::int64_t n, Rank from) {
    static_assert(std::is_trivially_copyable_v<T>);
    check(from);
    shared_->recv(rank_, index_of(from), data, n * static_cast<std::int64_t>(sizeof(T)));
  }

  void barrier() { shared_->arrive(rank_, {.name = "barrier"}); }

  void abort(std::string_view why) noexcept { shared_->abort(rank_, why); }

 private:
  /// What a rank calls. All ranks call the same, each with data of its own.
  struct Call {
    std::string_view name;
    std::int64_t count = 0;
    std::size_t element_bytes = 0;
    std::uint32_t peer = 0;
    void* data = nullptr;

    bool matches(const Call& other) const noexcept {
      return name == other.name && count == other.count && element_bytes == other.element_bytes && peer == other.peer;
    }
    std::string text() const {
      std::string text(name);
      return element_bytes == 0 ? text : text + " of " + std::to_string(count) + " x " + std::to_string(element_bytes) + " bytes";
    }
  };

  class Shared {
   public:
    Shared(std::uint32_t size, const ThreadGroupOptions& options)
        : options_(options),
          calls_(size),
          met_(size),
          has_arrived_(size, false),
          mails_(std::size_t{size} * size) {}

    std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(calls_.size()); }
    /// What rank `r` brought to the last meeting. It stays until all have come to the next one.
    const Call& call_of(std::uint32_t r) const noexcept { return met_[r]; }

    /// Returns when all ranks have arrived with the same call.
    void arrive(std::uint32_t rank, const Call& call) {
      std::unique_lock lock(mutex_);
      throw_if_dead();
      calls_[rank] = call;
      has_arrived_[rank] = true;
      if (++num_arrived_ == size()) {
        const auto other = std::ranges::find_if(calls_, [&](const Call& c) { return !c.matches(calls_.front()); });
        if (other != calls_.end()) {
          die("rank " + std::to_string(other - calls_.begin()) + " calls " + other->text() + " where rank 0 calls " +
              calls_.front().text());
        }
        met_ = calls_;
        num_arrived_ = 0;
        has_arrived_.assign(size(), false);
        ++meeting_;
        changed_.notify_all();
        throw_if_dead();
        return;
      }
      wait(
          lock, [&, meeting = meeting_] { return meeting_ != meeting; },
          [&] { return missing_ranks() + " did not come to " + call.text(); });
    }

    void send(std::uint32_t rank, std::uint32_t to, const void* data, std::int64_t num_bytes) {
      std::unique_lock lock(mutex_);
      throw_if_dead();
      Mail& mail = mails_[std::size_t{rank} * size() + to];
      mail = {.data = data, .num_bytes = num_bytes, .is_there = true};
      changed_.notify_all();
      wait(
          lock, [&] { return !mail.is_there; },
          [&] { return "rank " + std::to_string(to) + " did not receive from rank " + std::to_string(rank); });
    }

    void recv(std::uint32_t rank, std::uint32_t from, void* data, std::int64_t num_bytes) {
      std::unique_lock lock(mutex_);
      throw_if_dead();
      Mail& mail = mails_[std::size_t{from} * size() + rank];
      wait(
          lock, [&] { return mail.is_there; },
          [&] { return "rank " + std::to_string(from) + " did not send to rank " + std::to_string(rank); });
      if (mail.num_bytes != num_bytes) {
        die("rank " + std::to_string(from) + " sends " + std::to_string(mail.num_bytes) + " bytes where rank " +
            std::to_string(rank) + " receives " + std::to_string(num_bytes));
        throw_if_dead();
      }
      if (num_bytes > 0) { std::memcpy(data, mail.data, static_cast<std::size_t>(num_bytes)); }
      mail.is_there = false;
      changed_.notify_all();
    }

    void abort(std::uint32_t rank, std::string_view why) noexcept {
      contain(
          [&] {
            const std::lock_guard lock(mutex_);
            die("rank " + std::to_string(rank) + " gave up: " + std::string(why));
          },
          [&](const char*) { die_without_memory(); });
    }

   private:
    struct Mail {
      const void* data = nullptr;
      std::int64_t num_bytes = 0;
      bool is_there = false;
    };

    template <class Done, class Reason>
    void wait(std::unique_lock<std::mutex>& lock, Done&& done, Reason&& reason) {
      const bool in_time = changed_.wait_for(lock, options_.timeout, [&] { return is_dead_ || done(); });
      if (!in_time) { die(reason() + " within " + std::to_string(options_.timeout.count()) + " ms"); }
      throw_if_dead();
    }

    std::string missing_ranks() const {
      std::string ranks;
      for (std::uint32_t r = 0; r < size(); ++r) {
        if (!has_arrived_[r]) { ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(r); }
      }
      return ranks;
    }

    /// The first reason is the one that counts.
    void die(std::string why) {
      if (!is_dead_) { why_ = std::move(why); }
      is_dead_ = true;
      changed_.notify_all();
    }
    void die_without_memory() noexcept {
      const std::lock_guard lock(mutex_);
      is_dead_ = true;
      changed_.notify_all();
    }
    void throw_if_dead() const {
      if (is_dead_) { raise(Error("the group of " + std::to_string(size()) + " ranks is dead: " + why_)); }
    }

    const ThreadGroupOptions options_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Call> calls_, met_;
    std::vector<bool> has_arrived_;
    std::vector<Mail> mails_;  // [from][to]
    std::uint64_t meeting_ = 0;
    std::uint32_t num_arrived_ = 0;
    bool is_dead_ = false;
    std::string why_;
  };

  ThreadGroup(std::shared_ptr<Shared> shared, std::uint32_t rank) : shared_(std::move(shared)), rank_(rank) {}

  void meet(const Call& call) {
    NVL_EXPECTS(call.count >= 0, "elements of a collective", call.count, "not negative");
    shared_->arrive(rank_, call);
  }
  void check(Rank peer) const {
    NVL_EXPECTS(index_of(peer) < size(), "rank", index_of(peer), "below the group's size of " + std::to_string(size()));
  }
  template <class T>
  T* data_of(std::uint32_t rank) const noexcept {
    return static_cast<T*>(shared_->call_of(rank).data);
  }
  template <class T>
  static void copy(T* to, const T* from, std::int64_t n) noexcept {
    if (n > 0) { std::memcpy(static_cast<void*>(to), from, static_cast<std::size_t>(n) * sizeof(T)); }
  }

  std::shared_ptr<Shared> shared_;
  std::uint32_t rank_ = 0;
};
static_assert(RankGroup<ThreadGroup>);

}  // namespace nvl::inline NVL_ABI
