#pragma once
/// One call of a TcpGroup: bytes that go to and come from other ranks at the same time, and who is to blame if they do not.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/net/handshake.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/socket.hpp>
#include <nvl/net/tcp_links.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

namespace nvl::inline NVL_ABI::net {

enum class Operation : std::uint32_t { all_reduce_sum, all_gather, broadcast, transfer, barrier };

/// What a rank calls. It goes in front of the data, and the receiver compares it with its own call.
struct Call {
  Operation operation = Operation::barrier;
  std::uint32_t root = 0;  // of a broadcast; the sender of a transfer
  std::uint64_t count = 0;
  std::uint32_t element_bytes = 0;
  std::uint32_t step = 0;    // an all-reduce of much data takes two
  std::uint64_t number = 0;  // of the message on its connection

  std::string text() const {
    static constexpr std::array<std::string_view, 5> names{"all_reduce_sum", "all_gather", "broadcast", "send or recv",
                                                           "barrier"};
    const auto which = static_cast<std::size_t>(operation);
    std::string text(which < names.size() ? names[which] : "something unknown");
    if (operation == Operation::barrier) { return text; }
    text += " of " + std::to_string(count) + " x " + std::to_string(element_bytes) + " bytes";
    const bool has_root = operation == Operation::broadcast || operation == Operation::transfer;
    return has_root ? text + " from rank " + std::to_string(root) : text;
  }
  friend bool operator==(const Call&, const Call&) = default;
};
static_assert(sizeof(Call) == 32);

/// What goes to one rank and comes from it in a call.
struct Part {
  bool sends = false, receives = false;
  const void* out = nullptr;
  std::size_t out_bytes = 0;
  void* in = nullptr;
  std::size_t in_bytes = 0;
};

/// All connections of one rank, and the state of the group as it sees it.
///
/// There is no thread for heartbeats. A rank that waits says so to all others, four times within the deadline, with the rank that
/// it waits for; at the deadline the blame goes along these notices to the rank that says nothing: it is stopped, or elsewhere.
class TcpExchange {
 public:
  TcpExchange(Meeting meeting, std::chrono::milliseconds timeout)
      : rank_(index_of(meeting.rank)),
        timeout_(timeout),
        peers_(meeting.world_size()),
        wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
        fds_(2 * peers_.size() + 1) {
    if (!wake_) { raise(Error("eventfd failed: " + error_text(errno))); }
    if (size() == 1) { return; }
    std::vector<Link> links = connect_all(meeting, Clock::now() + timeout);
    for (std::uint32_t r = 0; r < size(); ++r) { peers_[r].link = std::move(links[r]); }
  }
  TcpExchange(const TcpExchange&) = delete;
  TcpExchange& operator=(const TcpExchange&) = delete;
  ~TcpExchange() {
    if (!is_dead_) { tell_all({.kind = Kind::leave}); }
  }

  std::uint32_t rank() const noexcept { return rank_; }
  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(peers_.size()); }

  /// Returns when all of `parts` (by rank) have been sent and received.
  /// \throws Error with the rank and the reason; the group is dead then
  void exchange(const Call& call, std::span<const Part> parts) {
    throw_if_dead();
    for (Peer& peer : peers_) { peer.num_out = peer.num_in = 0; }
    Deadline last_progress = Clock::now();
    if (last_progress >= next_hearing_) { hear_all(); }
    Deadline next_notice = last_progress + timeout_ / 4;
    for (bool is_first = true;; is_first = false) {
      std::size_t num_moved = 0;
      bool is_done = true;
      for (std::uint32_t r = 0; r < size(); ++r) {
        const Part& part = parts[r];
        if (is_first || fds_[2 * r].revents != 0) { num_moved += push(r, call, part) + pull(r, call, part); }
        const bool has_out = part.sends && peers_[r].num_out < sizeof(Call) + part.out_bytes;
        const bool has_in = part.receives && peers_[r].num_in < sizeof(Call) + part.in_bytes;
        is_done = is_done && !has_out && !has_in;
        const int events = (has_out ? POLLOUT : 0) | (has_in ? POLLIN : 0);
        fds_[2 * r] = {.fd = events != 0 ? peers_[r].link.data.fd() : -1, .events = static_cast<short>(events), .revents = 0};
      }
      if (is_done) { break; }
      const Deadline now = Clock::now();
      if (num_moved > 0) {
        last_progress = now;
        next_notice = now + timeout_ / 4;
      }
      const bool has_data = wait(std::min(next_notice, last_progress + timeout_));
      throw_if_dead();
      // Data that came while this process itself was stopped is progress, too.
      if (!has_data && Clock::now() >= last_progress + timeout_) { fail(blame(call, parts)); }
      if (Clock::now() >= next_notice) {
        tell_all({.kind = Kind::waiting, .rank = missing(parts)});
        next_notice += timeout_ / 4;
      }
    }
    for (std::uint32_t r = 0; r < size(); ++r) {
      peers_[r].num_sent += parts[r].sends ? 1 : 0;
      peers_[r].num_received += parts[r].receives ? 1 : 0;
    }
  }

  /// From any thread.
  void abort(std::string_view why) noexcept {
    contain([&] { die(name(rank_) + " gave up: " + std::string(why)); }, [&](const char*) { is_dead_ = true; });
    const std::uint64_t one = 1;
    if (::write(wake_.fd(), &one, sizeof(one)) < 0) { return; }  // it is awake: the counter is full
  }

 private:
  enum class Kind : std::uint32_t { leave = 1, waiting = 2, dead = 3 };
  struct Notice {
    std::uint32_t magic = wire_magic;
    Kind kind = Kind::leave;
    std::uint32_t rank = 0;  // that the sender waits for
    std::uint32_t unused = 0;
    std::array<char, 496> reason{};
  };

  struct Peer {
    Link link;
    std::uint64_t num_sent = 0, num_received = 0;  // messages
    std::size_t num_out = 0, num_in = 0;           // bytes of the call under way, its header counted
    Call header;                                   // that comes in
    Notice notice;                                 // that comes in
    std::size_t notice_bytes = 0;
    bool has_left = false;
    std::uint32_t waits_for = 0;
    std::optional<Deadline> waited_at;  // when it said so last
  };

  static std::string name(std::uint32_t rank) { return "rank " + std::to_string(rank); }

  /// Header and data as one message, from where the last try ended.
  static int fill(std::array<iovec, 2>& pieces, void* header, void* data, std::size_t num_bytes, std::size_t num_done) {
    const std::size_t in_header = std::min(num_done, sizeof(Call)), in_data = num_done - in_header;
    int count = 0;
    if (in_header < sizeof(Call)) {
      pieces[static_cast<std::size_t>(count++)] = {static_cast<std::byte*>(header) + in_header, sizeof(Call) - in_header};
    }
    if (in_data < num_bytes) {
      pieces[static_cast<std::size_t>(count++)] = {static_cast<std::byte*>(data) + in_data, num_bytes - in_data};
    }
    return count;
  }

  std::size_t push(std::uint32_t r, Call call, const Part& part) {
    Peer& peer = peers_[r];
    if (!part.sends || peer.num_out == sizeof(Call) + part.out_bytes) { return 0; }
    call.number = peer.num_sent;
    std::array<iovec, 2> pieces{};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = static_cast<std::size_t>(fill(pieces, &call, const_cast<void*>(part.out), part.out_bytes, peer.num_out));
    const Moved sent = moved(::sendmsg(peer.link.data.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT), false);
    if (sent.is_gone) { lose(r, sent); }
    peer.num_out += sent.num_bytes;
    return sent.num_bytes;
  }

  std::size_t pull(std::uint32_t r, const Call& call, const Part& part) {
    Peer& peer = peers_[r];
    if (!part.receives || peer.num_in == sizeof(Call) + part.in_bytes) { return 0; }
    std::array<iovec, 2> pieces{};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = static_cast<std::size_t>(fill(pieces, &peer.header, part.in, part.in_bytes, peer.num_in));
    const Moved received = moved(::recvmsg(peer.link.data.fd(), &message, MSG_DONTWAIT), true);
    if (received.is_gone) { lose(r, received); }
    const bool has_header = peer.num_in < sizeof(Call) && peer.num_in + received.num_bytes >= sizeof(Call);
    peer.num_in += received.num_bytes;
    if (has_header) {
      Call expected = call;
      expected.number = peer.num_received;
      if (peer.header != expected) {
        const bool is_text_equal = peer.header.text() == expected.text();
        fail(name(r) + " calls " + peer.header.text() + " where " + name(rank_) + " calls " + expected.text() +
             (is_text_equal ? ", in message " + std::to_string(peer.header.number) + " where " + std::to_string(expected.number) +
                                  " comes next"
                            : ""));
      }
    }
    return received.num_bytes;
  }

  /// A data connection broke. If its rank, or another, has said why, that is the reason.
  [[noreturn]] void lose(std::uint32_t r, const Moved& how) {
    const Deadline until = Clock::now() + std::min<std::chrono::milliseconds>(timeout_, last_words);
    while (!is_dead_ && !peers_[r].has_left && Clock::now() < until) {
      for (std::uint32_t i = 0; i < size(); ++i) { fds_[2 * i].fd = -1; }
      wait(until);
    }
    fail(name(r) + (peers_[r].has_left ? " has left the group" : " is gone: " + how.why()));
  }

  /// Until there is something to do with data (true), or the deadline; hears all notices that have come.
  bool wait(Deadline until) {
    for (std::uint32_t r = 0; r < size(); ++r) {
      const bool speaks = r != rank_ && !peers_[r].has_left;
      fds_[2 * r + 1] = {.fd = speaks ? peers_[r].link.control.fd() : -1, .events = POLLIN, .revents = 0};
    }
    fds_.back() = {.fd = wake_.fd(), .events = POLLIN, .revents = 0};
    wait_for_any(fds_, until);
    bool has_data = false;
    for (std::uint32_t r = 0; r < size(); ++r) {
      has_data = has_data || fds_[2 * r].revents != 0;
      if (fds_[2 * r + 1].revents != 0) { hear(r); }
    }
    return has_data;
  }

  /// A rank that never waits hears notices all the same, so that they do not pile up.
  void hear_all() {
    for (std::uint32_t r = 0; r < size(); ++r) {
      if (r != rank_) { hear(r); }
    }
    next_hearing_ = Clock::now() + timeout_ / 4;
    throw_if_dead();
  }

  void hear(std::uint32_t r) {
    Peer& peer = peers_[r];
    while (!is_dead_ && !peer.has_left) {
      auto* const bytes = reinterpret_cast<std::byte*>(&peer.notice);
      const Moved received = recv_some(peer.link.control, bytes + peer.notice_bytes, sizeof(Notice) - peer.notice_bytes);
      if (received.is_gone) { return die(name(r) + " is gone: " + received.why()); }
      if (received.num_bytes == 0) { return; }
      peer.notice_bytes += received.num_bytes;
      if (peer.notice_bytes < sizeof(Notice)) { continue; }
      peer.notice_bytes = 0;
      const Notice& notice = peer.notice;
      if (notice.magic != wire_magic || notice.rank >= size()) { return die(name(r) + " sent garbage"); }
      if (notice.kind == Kind::dead) { return die(get_text(notice.reason)); }
      if (notice.kind == Kind::leave) { peer.has_left = true; }
      if (notice.kind == Kind::waiting) {
        peer.waits_for = notice.rank;
        peer.waited_at = Clock::now();
      }
    }
  }

  bool is_missing(std::uint32_t r, const Part& part) const {
    const Peer& peer = peers_[r];
    return (part.receives && peer.num_in < sizeof(Call) + part.in_bytes) ||
           (part.sends && peer.num_out < sizeof(Call) + part.out_bytes);
  }
  /// It said a moment ago that it waits.
  bool is_waiting(std::uint32_t r) const { return peers_[r].waited_at && Clock::now() - *peers_[r].waited_at < timeout_ / 2; }

  /// Of the ranks that this call waits for, one that says nothing, else the first.
  std::uint32_t missing(std::span<const Part> parts) const {
    std::uint32_t found = rank_;
    for (std::uint32_t r = size(); r-- > 0;) {
      if (is_missing(r, parts[r]) && (found == rank_ || !is_waiting(r) || is_waiting(found))) { found = r; }
    }
    return found;
  }

  std::string blame(const Call& call, std::span<const Part> parts) const {
    const std::uint32_t first = missing(parts);
    std::uint32_t last = first;
    for (std::uint32_t i = 0; i < size() && is_waiting(last) && last != rank_; ++i) { last = peers_[last].waits_for; }
    const std::string within = " within " + std::to_string(timeout_.count()) + " ms";
    const bool has_begun = parts[first].receives && peers_[first].num_in > 0;
    const std::string what = (has_begun ? " stopped in the middle of " : " did not come to ") + call.text() + within;
    if (last == first && !is_waiting(first)) { return name(first) + what; }
    if (last == rank_ || is_waiting(last)) {
      return name(first) + what + ": it waits for " + name(peers_[first].waits_for) + " in another call";
    }
    return name(last) + " says nothing" + within + ": " + name(first) + " waits for " +
           (peers_[first].waits_for == last ? "it" : name(peers_[first].waits_for)) + ", and " + name(rank_) + " for " +
           name(first) + " in " + call.text();
  }

  void tell_all(const Notice& notice) noexcept {
    for (const Peer& peer : peers_) {
      // The first bytes that a connection without other traffic carries: there is room, or the peer has long been gone.
      if (peer.link.control) { send_some(peer.link.control, &notice, sizeof(notice)); }
    }
  }

  /// The first reason is the one that counts. It is passed on, wherever it came from: without it, the end of this rank's
  /// connections would look like the cause to those who see that first.
  void die(const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (is_dead_) { return; }
    why_ = why;
    is_dead_ = true;
    Notice notice{.kind = Kind::dead};
    put_text(notice.reason, why);
    tell_all(notice);
  }
  [[noreturn]] void fail(const std::string& why) {
    die(why);
    raise_dead();
  }
  void throw_if_dead() {
    if (is_dead_) { raise_dead(); }
  }
  [[noreturn]] void raise_dead() {
    const std::lock_guard lock(mutex_);
    raise(Error("the group of " + std::to_string(size()) + " ranks is dead: " + why_));
  }

  static constexpr std::chrono::milliseconds last_words{500};  // between the end of one connection and that of the other

  const std::uint32_t rank_;
  const std::chrono::milliseconds timeout_;
  std::vector<Peer> peers_;
  Socket wake_;
  Deadline next_hearing_{};
  std::vector<pollfd> fds_;  // data and control of each rank, and what wakes the wait
  std::atomic<bool> is_dead_ = false;
  std::mutex mutex_;  // of the reason
  std::string why_;
};

}  // namespace nvl::inline NVL_ABI::net
