#pragma once
/// How a connection shows that it belongs to the group. Messages have a fixed size, a version and no pointers or lengths inside
/// that are believed; whoever cannot prove the secret is dropped after at most one message of 128 bytes.
///
///     listener                                          caller
///     Challenge{nonce}                     ->
///                                          <-           Join{who, nonce, proof over both nonces and the rest}
///     Verdict{outcome, proof over both}    ->

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/net/secret.hpp>
#include <nvl/net/socket.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::net {

static_assert(std::endian::native == std::endian::little, "nvl: messages between ranks are written as they are in memory");

inline constexpr std::uint32_t wire_magic = 0x524c564e;  // "NVLR"
inline constexpr std::uint32_t wire_version = 1;

/// What a connection is for.
enum class Purpose : std::uint32_t { rendezvous = 1, data = 2, control = 3 };

struct Challenge {
  std::uint32_t magic = wire_magic;
  std::uint32_t version = wire_version;
  Digest nonce{};
};

struct Join {
  std::uint32_t magic = wire_magic;
  std::uint32_t version = wire_version;
  Purpose purpose = Purpose::rendezvous;
  std::uint32_t rank = 0;
  std::uint32_t world_size = 0;
  std::uint32_t port = 0;     // where this rank listens
  std::uint32_t time_ms = 0;  // how long it will wait
  std::uint32_t unused = 0;
  Digest config{};
  Digest nonce{};
  Digest proof{};
};

/// The first lines of the answer; for a rendezvous that came about a Place for each rank follows.
struct Verdict {
  static constexpr std::size_t max_blob = 256;

  std::uint32_t magic = wire_magic;
  std::uint32_t is_ok = 0;
  std::uint32_t blob_bytes = 0;
  std::uint32_t unused = 0;
  std::array<char, 512> reason{};  // of a refusal
  std::array<unsigned char, max_blob> blob{};
  Digest session{};
  Digest proof{};
};

struct Place {
  std::array<char, 60> address{};
  std::uint32_t port = 0;
};

/// Text in a field of fixed size, cut if it is longer.
template <std::size_t n>
void put_text(std::array<char, n>& field, std::string_view text) {
  field = {};
  std::copy_n(text.begin(), std::min(text.size(), n - 1), field.begin());
}
/// What came over the wire goes to a terminal one day.
template <std::size_t n>
std::string get_text(const std::array<char, n>& field) {
  std::string text(field.begin(), std::find(field.begin(), field.end(), '\0'));
  std::ranges::replace_if(
      text, [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

inline Digest proof_of(const Secret& secret, const Challenge& challenge, Join join) {
  join.proof = {};
  return secret.prove("nvl join", {bytes_of(challenge), bytes_of(join)});
}
inline Digest proof_of(const Secret& secret, const Challenge& challenge, const Join& join, Verdict verdict,
                       const std::vector<Place>& places) {
  verdict.proof = {};
  const std::string_view text(reinterpret_cast<const char*>(places.data()), places.size() * sizeof(Place));
  return secret.prove("nvl verdict", {bytes_of(challenge), bytes_of(join), bytes_of(verdict), text});
}

/// One end of a connection past the first two messages.
struct Acquaintance {
  Socket socket;
  Challenge challenge;
  Join join;
};

/// The caller's half: answers the challenge; else says why that cannot be.
inline std::optional<std::string> introduce(Acquaintance& caller, const Secret& secret, Deadline deadline) {
  if (auto why = recv_all(caller.socket, &caller.challenge, sizeof(Challenge), deadline)) { return why; }
  if (caller.challenge.magic != wire_magic) { return "is no program of nvl"; }
  if (caller.challenge.version != wire_version) {
    return "speaks version " + std::to_string(caller.challenge.version) + " of the protocol, this rank version " +
           std::to_string(wire_version);
  }
  caller.join.nonce = random_nonce();
  caller.join.proof = proof_of(secret, caller.challenge, caller.join);
  return send_all(caller.socket, &caller.join, sizeof(Join), deadline);
}

/// The answer, with `num_places` if it is a good one; else says why there is none that can be believed.
inline std::optional<std::string> hear_verdict(const Acquaintance& caller, const Secret& secret, std::size_t num_places,
                                               Deadline deadline, Verdict& verdict, std::vector<Place>& places) {
  if (auto why = recv_all(caller.socket, &verdict, sizeof(verdict), deadline)) { return why; }
  places.resize(verdict.is_ok == 1 ? num_places : 0);
  if (auto why = recv_all(caller.socket, places.data(), places.size() * sizeof(Place), deadline)) { return why; }
  const bool is_true = are_equal(verdict.proof, proof_of(secret, caller.challenge, caller.join, verdict, places));
  if (!is_true || verdict.magic != wire_magic || verdict.blob_bytes > Verdict::max_blob) { return "has another secret"; }
  return std::nullopt;
}

/// The listener's last message. It is small: a caller that takes none of it for so long is given up.
inline std::optional<std::string> tell_verdict(const Acquaintance& visitor, const Secret& secret, Verdict verdict,
                                               const std::vector<Place>& places, Deadline deadline) {
  verdict.proof = proof_of(secret, visitor.challenge, visitor.join, verdict, places);
  if (auto why = send_all(visitor.socket, &verdict, sizeof(verdict), deadline)) { return why; }
  return send_all(visitor.socket, places.data(), places.size() * sizeof(Place), deadline);
}

struct DoorOptions {
  std::chrono::milliseconds patience{2'000};  // for a caller that does not introduce itself
  std::size_t max_callers = 64;               // of these at a time; more wait outside
};

/// Lets in who proves the secret. Garbage, silence and scans cost a descriptor for a while and are counted; they delay nobody.
class Door {
 public:
  Door(Socket listener, Secret secret, const DoorOptions& options)
      : listener_(std::move(listener)),
        secret_(std::move(secret)),
        options_(options) {}

  /// Waits for a visitor, for something to read on one of the `watched` (descriptor, or -1), or for the deadline. At most one of
  /// the members is set.
  struct Event {
    std::optional<Acquaintance> visitor;
    std::optional<std::size_t> watched;
  };
  Event wait(std::span<const int> watched, Deadline deadline) {
    while (true) {
      fds_.clear();
      const bool lets_in = callers_.size() < options_.max_callers && Clock::now() >= closed_until_;
      fds_.push_back({.fd = lets_in ? listener_.fd() : -1, .events = POLLIN, .revents = 0});
      for (const int fd : watched) { fds_.push_back({.fd = fd, .events = POLLIN, .revents = 0}); }
      const Deadline next = lets_in ? deadline : std::min(deadline, Clock::now() + back_off);
      for (const Caller& caller : callers_) { fds_.push_back({.fd = caller.end.socket.fd(), .events = POLLIN, .revents = 0}); }
      wait_for_any(fds_, next);

      for (std::size_t i = 0; i < watched.size(); ++i) {
        if (fds_[1 + i].revents != 0) { return {.visitor = std::nullopt, .watched = i}; }
      }
      std::optional<Acquaintance> visitor;
      for (std::size_t i = 0; i < callers_.size() && !visitor; ++i) {
        const bool has_said = fds_[1 + watched.size() + i].revents != 0;
        if (has_said || Clock::now() >= callers_[i].deadline) { visitor = listen_to(callers_[i]); }
      }
      std::erase_if(callers_, [](const Caller& caller) { return !caller.end.socket; });
      if (visitor) { return {.visitor = std::move(visitor), .watched = std::nullopt}; }
      if (fds_[0].revents != 0) { let_in(); }
      if (Clock::now() >= deadline) { return {}; }
    }
  }

  std::uint64_t num_dropped() const noexcept { return num_dropped_; }
  /// Where somebody who called himself `rank` came from, and had another secret.
  std::optional<std::string> impostor(std::uint32_t rank) const {
    const auto found = impostors_.find(rank);
    return found == impostors_.end() ? std::nullopt : std::optional(found->second);
  }

  Socket take_listener() noexcept { return std::move(listener_); }

 private:
  static constexpr std::chrono::milliseconds back_off{20};  // before the next try when there are no descriptors

  struct Caller {
    Acquaintance end;
    std::size_t num_bytes = 0;  // of Join so far
    Deadline deadline;
  };

  void let_in() {
    bool is_exhausted = false;
    Caller caller{.end = {.socket = try_accept(listener_, is_exhausted), .challenge = {}, .join = {}},
                  .deadline = Clock::now() + options_.patience};
    if (is_exhausted) { closed_until_ = Clock::now() + back_off; }
    if (!caller.end.socket) { return; }
    caller.end.challenge.nonce = random_nonce();
    // A new connection takes 40 bytes at once.
    if (send_some(caller.end.socket, &caller.end.challenge, sizeof(Challenge)).num_bytes != sizeof(Challenge)) {
      ++num_dropped_;
      return;
    }
    callers_.push_back(std::move(caller));
  }

  /// Reads more of the caller's one message. When that is done, or the patience is over, its socket is taken out of `caller`.
  std::optional<Acquaintance> listen_to(Caller& caller) {
    auto* const bytes = reinterpret_cast<std::byte*>(&caller.end.join);
    const Moved received = recv_some(caller.end.socket, bytes + caller.num_bytes, sizeof(Join) - caller.num_bytes);
    caller.num_bytes += received.num_bytes;
    const Join& join = caller.end.join;
    const bool is_whole = caller.num_bytes == sizeof(Join);
    const bool is_foreign =
        (caller.num_bytes >= sizeof(join.magic) && join.magic != wire_magic) || (is_whole && join.version != wire_version);
    if (!is_whole && !is_foreign && !received.is_gone && Clock::now() < caller.deadline) { return std::nullopt; }

    Acquaintance end = std::move(caller.end);
    caller.end.socket = Socket();
    if (is_whole && !is_foreign) {
      if (are_equal(end.join.proof, proof_of(secret_, end.challenge, end.join))) { return end; }
      if (impostors_.size() < max_impostors) { impostors_[end.join.rank] = peer_endpoint(end.socket).text(); }
      // It can tell from the proof in this, which it cannot follow, that the secrets differ.
      tell_verdict(end, secret_, {}, {}, Clock::now());
    }
    ++num_dropped_;
    return std::nullopt;
  }

  static constexpr std::size_t max_impostors = 4096;  // anybody can make up ranks

  Socket listener_;
  Secret secret_;
  DoorOptions options_;
  std::vector<Caller> callers_;
  std::vector<pollfd> fds_;
  Deadline closed_until_{};
  std::uint64_t num_dropped_ = 0;
  std::map<std::uint32_t, std::string> impostors_;
};

}  // namespace nvl::inline NVL_ABI::net
