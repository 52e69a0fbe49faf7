#pragma once
/// How processes that were started together find each other: rank 0 listens, the others come, and all leave with the same table of
/// ranks or with the same reason why there is none.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/net/handshake.hpp>
#include <nvl/net/launch_env.hpp>
#include <nvl/net/secret.hpp>
#include <nvl/net/socket.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

struct RendezvousOptions {
  Rank rank{0};
  std::uint32_t world_size = 1;
  std::string address;                        // of rank 0: it listens there and nowhere else, the others call there
  std::uint16_t port = 0;                     // of rank 0
  std::string secret;                         // the same for all ranks, not guessable: 16 bytes or more
  std::string config;                         // text that has to be the same for all ranks: model, layout, versions
  std::chrono::milliseconds timeout{30'000};  // until all ranks are there
  net::DoorOptions door;                      // for connections that have not proved the secret yet

  static constexpr std::uint32_t max_world_size = 4096;

  /// As a launcher says.
  static RendezvousOptions from(const LaunchEnv& env, std::string secret) {
    RendezvousOptions options;
    options.rank = env.rank;
    options.world_size = env.world_size;
    options.address = env.master_address;
    options.port = env.master_port;
    options.secret = std::move(secret);
    return options;
  }
};

/// What a rank takes along.
struct Meeting {
  Rank rank{0};
  std::vector<net::Endpoint> peers;  // by rank: where each listens
  std::vector<std::byte> blob;       // rank 0's, for all
  net::Socket listener;              // this rank's, at its place in `peers`; none in a world of one
  net::Secret secret;                // for connections among these ranks; another one each time
  net::DoorOptions door;
  std::uint64_t num_dropped = 0;  // rank 0: connections that did not prove the secret

  std::uint32_t world_size() const noexcept { return static_cast<std::uint32_t>(peers.size()); }
};

namespace detail::rendezvous {

inline std::string failure_text(const RendezvousOptions& options, const std::string& why) {
  return "the rendezvous of " + std::to_string(options.world_size) + " ranks at " +
         net::Endpoint{options.address, options.port}.text() + " failed: " + why;
}

/// Rank 0.
class Host {
 public:
  Host(const RendezvousOptions& options, std::span<const std::byte> blob)
      : options_(options),
        blob_(blob),
        secret_(options.secret),
        door_(net::listen_on(options.address, options.port, backlog), secret_, options.door),
        config_(net::sha256(options.config)),
        guests_(options.world_size),
        watched_(options.world_size, -1),
        deadline_(net::Clock::now() + options.timeout) {}

  Meeting meet() {
    for (std::uint32_t num_there = 1; num_there < options_.world_size; ++num_there) {
      net::Door::Event event = door_.wait(watched_, deadline_);
      if (event.watched) { fail("rank " + std::to_string(*event.watched) + " went away while it waited for the others"); }
      if (!event.visitor) { fail(absence()); }
      net::Acquaintance& visitor = *event.visitor;
      // Whoever waits least decides: all ranks then hear the same reason.
      deadline_ = std::min(deadline_, net::Clock::now() + std::chrono::milliseconds(visitor.join.time_ms));
      const std::string objection = objection_to(visitor);
      if (!objection.empty()) { fail(objection, std::move(event.visitor)); }
      const std::uint32_t rank = visitor.join.rank;
      watched_[rank] = visitor.socket.fd();
      guests_[rank] = std::move(event.visitor);
    }
    return tell_all();
  }

 private:
  static constexpr int backlog = 512;

  /// Why this one, who knows the secret, cannot take part; empty: it can.
  std::string objection_to(const net::Acquaintance& visitor) const {
    const net::Join& join = visitor.join;
    const std::string rank = "rank " + std::to_string(join.rank);
    const std::string from = " (" + net::peer_endpoint(visitor.socket).text() + ")";
    if (join.purpose != net::Purpose::rendezvous) { return rank + from + " came for something else than the rendezvous"; }
    if (join.world_size != options_.world_size) {
      return rank + from + " was started for a world of " + std::to_string(join.world_size) + " ranks, rank 0 for " +
             std::to_string(options_.world_size);
    }
    if (join.rank >= options_.world_size) { return rank + from + " is not below the number of ranks"; }
    if (join.rank == 0) { return rank + " is here already, and another came" + from; }
    if (guests_[join.rank]) {
      return rank + " came twice, from " + net::peer_endpoint(guests_[join.rank]->socket).text() + " and" + from;
    }
    if (join.config != config_) { return rank + from + " has another configuration than rank 0"; }
    return {};
  }

  std::string absence() const {
    std::string text, impostors;
    for (std::uint32_t r = 1; r < options_.world_size; ++r) {
      if (guests_[r]) { continue; }
      text += (text.empty() ? "rank " : ", rank ") + std::to_string(r);
      if (const auto from = door_.impostor(r)) {
        impostors += "; " + *from + " called itself rank " + std::to_string(r) + " and has another secret";
      }
    }
    const bool has_dropped = door_.num_dropped() > 0;
    return text + " did not come in time" + impostors +
           (has_dropped ? "; connections dropped: " + std::to_string(door_.num_dropped()) : "");
  }

  /// Tells all who are there, and until the deadline those who come late: they would find nobody, and no reason.
  [[noreturn]] void fail(const std::string& why, std::optional<net::Acquaintance> refused = {}) {
    net::Verdict verdict;
    net::put_text(verdict.reason, why);
    std::uint32_t num_told = 1;  // processes, this one among them
    const auto tell = [&](const net::Acquaintance& guest) {
      net::tell_verdict(guest, secret_, verdict, {}, net::Clock::now() + options_.door.patience);
      ++num_told;
    };
    if (refused) { tell(*refused); }
    for (const std::optional<net::Acquaintance>& guest : guests_) {
      if (guest) { tell(*guest); }
    }
    while (num_told < options_.world_size) {
      const net::Door::Event event = door_.wait({}, deadline_);
      if (!event.visitor) { break; }
      tell(*event.visitor);
    }
    raise(Error(failure_text(options_, why)));
  }

  Meeting tell_all() {
    Meeting meeting;
    meeting.door = options_.door;
    meeting.blob.assign(blob_.begin(), blob_.end());
    meeting.listener = door_.take_listener();
    meeting.num_dropped = door_.num_dropped();
    meeting.peers.push_back(net::local_endpoint(meeting.listener));
    for (std::uint32_t r = 1; r < options_.world_size; ++r) {
      meeting.peers.push_back(
          {net::peer_endpoint(guests_[r]->socket).address, static_cast<std::uint16_t>(guests_[r]->join.port)});
    }

    net::Verdict verdict;
    verdict.is_ok = 1;
    verdict.session = net::random_nonce();
    verdict.blob_bytes = static_cast<std::uint32_t>(blob_.size());
    if (!blob_.empty()) { std::memcpy(verdict.blob.data(), blob_.data(), blob_.size()); }
    std::vector<net::Place> places(meeting.peers.size());
    for (std::size_t r = 0; r < places.size(); ++r) {
      net::put_text(places[r].address, meeting.peers[r].address);
      places[r].port = meeting.peers[r].port;
    }
    meeting.secret = secret_.for_session(verdict.session);
    const net::Deadline soon = net::Clock::now() + options_.door.patience;
    for (std::uint32_t r = 1; r < options_.world_size; ++r) {
      if (const auto why = net::tell_verdict(*guests_[r], secret_, verdict, places, soon)) {
        raise(Error(failure_text(options_, "rank " + std::to_string(r) + " " + *why)));
      }
    }
    return meeting;
  }

  const RendezvousOptions& options_;
  std::span<const std::byte> blob_;
  net::Secret secret_;
  net::Door door_;
  net::Digest config_;
  std::vector<std::optional<net::Acquaintance>> guests_;  // by rank
  std::vector<int> watched_;
  net::Deadline deadline_;
};

/// Any other rank. Calls until rank 0 answers, since it may be started later.
inline Meeting visit(const RendezvousOptions& options) {
  constexpr std::chrono::milliseconds first_pause{10}, longest_pause{500};
  const net::Secret secret(options.secret);
  const net::Deadline deadline = net::Clock::now() + options.timeout;
  const std::string host = "rank 0 at " + net::Endpoint{options.address, options.port}.text();
  Meeting meeting;
  net::Acquaintance end;
  std::string why;
  for (std::chrono::milliseconds pause = first_pause;; pause = std::min(2 * pause, longest_pause)) {
    end.socket = net::try_connect(options.address, options.port, deadline, why);
    if (end.socket) {
      meeting.listener = net::listen_on(net::local_endpoint(end.socket).address, 0, static_cast<int>(options.world_size) * 2);
      end.join = {.rank = index_of(options.rank),
                  .world_size = options.world_size,
                  .port = net::local_endpoint(meeting.listener).port,
                  .time_ms = static_cast<std::uint32_t>(net::ms_until(deadline)),
                  .config = net::sha256(options.config)};
      const auto problem = net::introduce(end, secret, std::min(deadline, net::Clock::now() + options.door.patience));
      if (!problem) { break; }
      why = *problem;
    }
    if (net::Clock::now() + pause >= deadline) {
      raise(Error(failure_text(
          options, "rank " + std::to_string(index_of(options.rank)) + " did not reach " + host + " in time: " + why)));
    }
    std::this_thread::sleep_for(pause);
  }

  net::Verdict verdict;
  std::vector<net::Place> places;
  // Rank 0 knows this deadline and says by then who is missing: it is given the time to say it.
  if (const auto problem =
          net::hear_verdict(end, secret, options.world_size, deadline + options.door.patience, verdict, places)) {
    raise(Error(failure_text(options, host + " " + *problem + " (this is rank " + std::to_string(index_of(options.rank)) + ")")));
  }
  if (verdict.is_ok != 1) { raise(Error(failure_text(options, net::get_text(verdict.reason)))); }

  meeting.rank = options.rank;
  meeting.door = options.door;
  const auto* const blob = reinterpret_cast<const std::byte*>(verdict.blob.data());
  meeting.blob.assign(blob, blob + verdict.blob_bytes);
  for (const net::Place& place : places) {
    meeting.peers.push_back({net::get_text(place.address), static_cast<std::uint16_t>(place.port)});
  }
  meeting.secret = secret.for_session(verdict.session);
  return meeting;
}

}  // namespace detail::rendezvous

/// Called by all ranks; returns when all are there. `blob` is rank 0's and reaches all ranks: 256 bytes at most, such as an
/// ncclUniqueId.
///
/// A rank that is late, goes away, comes twice, or has another world size, rank or configuration ends the rendezvous for all
/// ranks, with its number and the reason. Who does not know the secret is dropped and counted and ends nothing: a rank with the
/// wrong secret learns it at once, and the others that it is missing at the end of their time.
/// \throws InvalidArgument for options out of their range; Error with the rank and the reason
inline Meeting rendezvous(const RendezvousOptions& options, std::span<const std::byte> blob = {}) {
  NVL_EXPECTS(options.world_size >= 1 && options.world_size <= RendezvousOptions::max_world_size, "RendezvousOptions::world_size",
              options.world_size, "1 to " + std::to_string(RendezvousOptions::max_world_size));
  NVL_EXPECTS(index_of(options.rank) < options.world_size, "RendezvousOptions::rank", index_of(options.rank),
              "below the world size of " + std::to_string(options.world_size));
  NVL_EXPECTS(options.timeout.count() > 0, "RendezvousOptions::timeout", options.timeout.count(), "positive");
  NVL_EXPECTS(options.door.patience.count() > 0, "RendezvousOptions::door.patience", options.door.patience.count(), "positive");
  NVL_EXPECTS(options.door.max_callers > 0, "RendezvousOptions::door.max_callers", options.door.max_callers, "positive");
  NVL_EXPECTS(blob.size() <= net::Verdict::max_blob, "bytes of the blob of a rendezvous", blob.size(), "256 at most");
  if (options.world_size == 1) {
    Meeting alone;
    alone.peers.resize(1);
    alone.blob.assign(blob.begin(), blob.end());
    return alone;
  }
  NVL_EXPECTS(options.port != 0, "RendezvousOptions::port", options.port, "1 to 65535");
  if (index_of(options.rank) == 0) { return detail::rendezvous::Host(options, blob).meet(); }
  return detail::rendezvous::visit(options);
}

}  // namespace nvl::inline NVL_ABI
