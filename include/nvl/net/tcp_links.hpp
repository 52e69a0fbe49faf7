#pragma once
/// The connections of a rank to all others: two to each, one for data and one for what has to be heard while data is under way.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/net/handshake.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/secret.hpp>
#include <nvl/net/socket.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI::net {

struct Link {
  Socket data, control;
};

namespace detail::tcp_links {

inline Socket& place_of(Link& link, Purpose purpose) { return purpose == Purpose::data ? link.data : link.control; }

[[noreturn]] inline void fail(std::uint32_t rank, const std::string& why) {
  raise(Error("rank " + std::to_string(rank) + " " + why + " while the ranks connected to each other"));
}

/// Calls a rank below, which listens since before the rendezvous.
inline Socket call(const Meeting& meeting, std::uint32_t rank, Purpose purpose, Deadline deadline) {
  const Endpoint& at = meeting.peers[rank];
  std::string why;
  Acquaintance end{.socket = try_connect(at.address, at.port, deadline, why), .challenge = {}, .join = {}};
  if (!end.socket) { fail(rank, "at " + at.text() + " cannot be reached (" + why + ")"); }
  end.join = {.purpose = purpose, .rank = index_of(meeting.rank), .world_size = meeting.world_size()};
  Verdict verdict;
  std::vector<Place> places;
  std::optional<std::string> problem = introduce(end, meeting.secret, deadline);
  if (!problem) { problem = hear_verdict(end, meeting.secret, 0, deadline, verdict, places); }
  if (!problem && verdict.is_ok != 1) { problem = "refused: " + get_text(verdict.reason); }
  if (problem) { fail(rank, "at " + at.text() + " " + *problem); }
  return std::move(end.socket);
}

}  // namespace detail::tcp_links

/// Every rank calls those below it, lowest first, and then lets in those above it. By rank; this rank's own stays empty.
/// \throws Error that names the rank that does not come, and why
inline std::vector<Link> connect_all(Meeting& meeting, Deadline deadline) {
  namespace steps = detail::tcp_links;
  const std::uint32_t self = index_of(meeting.rank), size = meeting.world_size();
  std::vector<Link> links(size);
  for (std::uint32_t r = 0; r < self; ++r) {
    for (const Purpose purpose : {Purpose::data, Purpose::control}) {
      steps::place_of(links[r], purpose) = steps::call(meeting, r, purpose, deadline);
    }
  }
  if (self + 1 == size) { return links; }

  Door door(std::move(meeting.listener), meeting.secret, meeting.door);
  for (std::size_t num_missing = std::size_t{2} * (size - 1 - self); num_missing > 0; --num_missing) {
    Door::Event event = door.wait({}, deadline);
    if (!event.visitor) {
      for (std::uint32_t r = self + 1; r < size; ++r) {
        if (!links[r].data || !links[r].control) { steps::fail(r, "did not come in time"); }
      }
    }
    const Join& join = event.visitor->join;
    const bool is_link = join.purpose == Purpose::data || join.purpose == Purpose::control;
    if (!is_link || join.rank <= self || join.rank >= size || steps::place_of(links[join.rank], join.purpose)) {
      steps::fail(join.rank, "made a connection that is not its own");
    }
    const Verdict welcome{.is_ok = 1};
    if (const auto why = tell_verdict(*event.visitor, meeting.secret, welcome, {}, deadline)) { steps::fail(join.rank, *why); }
    steps::place_of(links[join.rank], join.purpose) = std::move(event.visitor->socket);
  }
  return links;
}

}  // namespace nvl::inline NVL_ABI::net
