#pragma once
/// The RankGroup of processes, on one host or several: every rank has a TCP connection to every other.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/group.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/tcp_exchange.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct TcpGroupOptions {
  std::chrono::milliseconds timeout{30'000};  // without progress for so long, a call ends the group
};

/// This process's end of a group. Data is not encrypted: the secret of the rendezvous decides who takes part, and the network must
/// be one on which nobody else reads or writes along.
///
/// Small all-reduces send all to all and add up everything on each rank; large ones add up a part on each rank and send the sums
/// around, which moves each element twice whatever the size of the group (reduce-scatter and all-gather; Rabenseifner, "Optimization
/// of collective reduction operations", ICCS 2004). Sums are in double for float, in float for narrower elements.
class TcpGroup {
 public:
  /// Takes the listener of the meeting along. All ranks of the meeting make theirs at the same time.
  /// \throws Error with the rank that does not connect, and why
  explicit TcpGroup(Meeting meeting, const TcpGroupOptions& options = {})
      : options_(options),
        peers_(meeting.peers),
        secret_(meeting.secret),
        door_(meeting.door) {
    NVL_EXPECTS(options.timeout.count() > 0, "TcpGroupOptions::timeout", options.timeout.count(), "positive");
    if (meeting.listener) { address_ = net::local_endpoint(meeting.listener).address; }
    exchange_ = std::make_unique<net::TcpExchange>(std::move(meeting), options.timeout);
    parts_.resize(size());
  }

  /// Called by all ranks: those with the same `color` become a group of their own, with connections of its own, in the order of
  /// their ranks here. Neither group needs the other afterwards.
  /// \throws Error with the rank that does not connect, and why
  TcpGroup split(std::uint32_t color) {
    struct Seat {
      std::uint32_t color = 0, port = 0;
    };
    Meeting meeting;
    if (size() > 1) { meeting.listener = net::listen_on(address_, 0, static_cast<int>(size()) * 2); }
    const Seat mine{.color = color, .port = meeting.listener ? net::local_endpoint(meeting.listener).port : 0u};
    std::vector<Seat> seats(size());
    all_gather(&mine, seats.data(), 1);
    for (std::uint32_t r = 0; r < size(); ++r) {
      if (r == exchange_->rank()) { meeting.rank = Rank{meeting.world_size()}; }
      if (seats[r].color == color) { meeting.peers.push_back({peers_[r].address, static_cast<std::uint16_t>(seats[r].port)}); }
    }
    ++num_splits_;
    if (size() > 1) {
      meeting.secret =
          secret_.for_session(net::sha256("split " + std::to_string(num_splits_) + " color " + std::to_string(color)));
    }
    meeting.door = door_;
    return TcpGroup(std::move(meeting), options_);
  }

  static constexpr bool is_eager = true;  // it is the system that keeps what is not received yet

  Rank rank() const noexcept { return Rank{exchange_->rank()}; }
  std::uint32_t size() const noexcept { return exchange_->size(); }

  template <class T>
  void all_reduce_sum(T* data, std::int64_t n) {
    net::Call call = call_of<T>(net::Operation::all_reduce_sum, n);
    if (size() == 1) { return; }
    const std::size_t bytes = count(n) * sizeof(T);
    if (size() == 2 || bytes * (size() - 1) <= small_bytes) {
      T* const others = scratch<T>(n * (size() - 1));
      for_each_other([&](std::uint32_t r) {
        return net::Part{.out = data, .out_bytes = bytes, .in = others + n * slot_of(r), .in_bytes = bytes};
      });
      exchange_->exchange(call, parts_);
      add_up(data, others, n);
      return;
    }
    const auto begin = [&](std::uint32_t r) { return n * r / size(); };
    const auto bytes_of = [&](std::uint32_t r) { return count(begin(r + 1) - begin(r)) * sizeof(T); };
    const std::uint32_t self = exchange_->rank();
    T* const mine = data + begin(self);
    const std::int64_t num_mine = begin(self + 1) - begin(self);
    T* const others = scratch<T>(num_mine * (size() - 1));
    for_each_other([&](std::uint32_t r) {
      return net::Part{
          .out = data + begin(r), .out_bytes = bytes_of(r), .in = others + num_mine * slot_of(r), .in_bytes = bytes_of(self)};
    });
    exchange_->exchange(call, parts_);
    add_up(mine, others, num_mine);
    for_each_other([&](std::uint32_t r) {
      return net::Part{.out = mine, .out_bytes = bytes_of(self), .in = data + begin(r), .in_bytes = bytes_of(r)};
    });
    call.step = 1;
    exchange_->exchange(call, parts_);
  }

  template <class T>
  void all_gather(const T* mine, T* all, std::int64_t n) {
    const net::Call call = call_of<T>(net::Operation::all_gather, n);
    const std::size_t bytes = count(n) * sizeof(T);
    for_each_other(
        [&](std::uint32_t r) { return net::Part{.out = mine, .out_bytes = bytes, .in = all + n * r, .in_bytes = bytes}; });
    exchange_->exchange(call, parts_);
    if (n > 0) { std::memmove(static_cast<void*>(all + n * exchange_->rank()), mine, bytes); }
  }

  template <class T>
  void broadcast(T* data, std::int64_t n, Rank root) {
    NVL_EXPECTS(index_of(root) < size(), "root of a broadcast", index_of(root),
                "below the group's size of " + std::to_string(size()));
    net::Call call = call_of<T>(net::Operation::broadcast, n);
    call.root = index_of(root);
    const std::size_t bytes = count(n) * sizeof(T);
    const bool is_root = root == rank();
    for_each_other([&](std::uint32_t r) {
      const bool is_from = r == index_of(root);
      return net::Part{.out = data, .out_bytes = is_root ? bytes : 0, .in = data, .in_bytes = is_from ? bytes : 0};
    });
    exchange_->exchange(call, parts_);
  }

  /// Returns when the data is with the system, which is before it is received unless there is much of it.
  template <class T>
  void send(const T* data, std::int64_t n, Rank to) {
    net::Part& part = only_part(to);
    part = {.sends = true, .out = data, .out_bytes = count(n) * sizeof(T)};
    transfer<T>(n, rank());
  }
  template <class T>
  void recv(T* data, std::int64_t n, Rank from) {
    net::Part& part = only_part(from);
    part = {.receives = true, .in = data, .in_bytes = count(n) * sizeof(T)};
    transfer<T>(n, from);
  }

  void barrier() {
    for_each_other([](std::uint32_t) { return net::Part{}; });
    exchange_->exchange({}, parts_);
  }

  /// From any thread.
  void abort(std::string_view why) noexcept { exchange_->abort(why); }

 private:
  // Up to here a second round costs more time than the data that it saves.
  static constexpr std::size_t small_bytes = 32768;

  static std::size_t count(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

  template <class T>
  static net::Call call_of(net::Operation operation, std::int64_t n) {
    static_assert(std::is_trivially_copyable_v<T>, "nvl: ranks exchange elements as bytes, so these must be trivially copyable");
    NVL_EXPECTS(n >= 0, "elements of a call of a TcpGroup", n, "not negative");
    return {.operation = operation, .count = static_cast<std::uint64_t>(n), .element_bytes = sizeof(T)};
  }

  template <class F>
  void for_each_other(F&& part_of) {
    for (std::uint32_t r = 0; r < size(); ++r) {
      parts_[r] = r == exchange_->rank() ? net::Part{} : part_of(r);
      parts_[r].sends = parts_[r].receives = r != exchange_->rank();
    }
  }
  net::Part& only_part(Rank peer) {
    NVL_EXPECTS(index_of(peer) < size() && peer != rank(), "rank of a transfer", index_of(peer),
                "another one, below the group's size of " + std::to_string(size()));
    std::ranges::fill(parts_, net::Part{});
    return parts_[index_of(peer)];
  }
  template <class T>
  void transfer(std::int64_t n, Rank from) {
    net::Call call = call_of<T>(net::Operation::transfer, n);
    call.root = index_of(from);
    exchange_->exchange(call, parts_);
  }

  /// Of the ranks but this one, which.
  std::int64_t slot_of(std::uint32_t r) const noexcept { return r < exchange_->rank() ? r : r - 1; }

  template <class T>
  T* scratch(std::int64_t n) {
    scratch_.resize(std::max(scratch_.size(), count(n) * sizeof(T)));
    return reinterpret_cast<T*>(scratch_.data());
  }

  /// data[i] = rank 0's + rank 1's + …, where this rank's are in `data` and the others' one after the other.
  template <class T>
  void add_up(T* data, const T* others, std::int64_t n) const {
    using Sum = std::conditional_t<std::is_same_v<T, float>, double, float>;
    std::array<Sum, 256> sums;
    for (std::int64_t begin = 0; begin < n; begin += std::int64_t{sums.size()}) {
      const std::size_t width = std::min(sums.size(), count(n - begin));
      sums.fill(Sum{});
      for (std::uint32_t r = 0; r < size(); ++r) {
        const T* const from = (r == exchange_->rank() ? data : others + n * slot_of(r)) + begin;
        for (std::size_t i = 0; i < width; ++i) { sums[i] += static_cast<Sum>(from[i]); }
      }
      for (std::size_t i = 0; i < width; ++i) { data[begin + static_cast<std::int64_t>(i)] = static_cast<T>(sums[i]); }
    }
  }

  std::unique_ptr<net::TcpExchange> exchange_;
  std::vector<net::Part> parts_;
  std::vector<std::byte> scratch_;
  TcpGroupOptions options_;
  std::vector<net::Endpoint> peers_;  // by rank: where each listened
  std::string address_;               // where this one did
  net::Secret secret_;
  net::DoorOptions door_;
  std::uint32_t num_splits_ = 0;
};
static_assert(EagerRankGroup<TcpGroup>);

}  // namespace nvl::inline NVL_ABI
