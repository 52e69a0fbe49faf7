#pragma once
/// TCP sockets whose every wait has an end: the ground of the rendezvous and of TcpGroup. POSIX.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

namespace nvl::inline NVL_ABI::net {

/// Clocks that are set must not end a wait, nor make it longer.
using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/// An address in digits, and a port.
struct Endpoint {
  std::string address;
  std::uint16_t port = 0;

  std::string text() const {
    const bool is_v6 = address.find(':') != std::string::npos;
    return (is_v6 ? "[" + address + "]" : address) + ":" + std::to_string(port);
  }
  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

/// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) noexcept : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) { ::close(fd_); }
  }

  int fd() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

inline std::string error_text(int error) { return std::generic_category().message(error); }

/// poll's way of saying how long: [ms] rounded up, so that a wait does not end a little before its deadline.
inline int ms_until(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

/// Waits until something happens to one of `fds` or the deadline has passed. Descriptors below 0 are left out.
template <class Fds>
void wait_for_any(Fds& fds, Deadline deadline) {
  const int result = ::poll(fds.data(), static_cast<nfds_t>(fds.size()), ms_until(deadline));
  if (result > 0) { return; }
  for (pollfd& fd : fds) { fd.revents = 0; }
  if (result < 0 && errno != EINTR) { raise(Error("poll failed: " + error_text(errno))); }
}

/// What one try to send or to receive did. Neither moved nor gone: it would have to wait.
struct Moved {
  std::size_t num_bytes = 0;
  bool is_gone = false;  // the other side has closed, or the connection is broken
  int error = 0;         // errno of a broken one

  std::string why() const { return error == 0 ? "closed the connection" : error_text(error); }
};

/// `count` is what send or recv returned; 0 bytes received means closed.
inline Moved moved(ssize_t count, bool is_recv) {
  if (count > 0) { return {.num_bytes = static_cast<std::size_t>(count)}; }
  if (count == 0) { return {.is_gone = is_recv}; }
  const bool has_to_wait = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return {.is_gone = !has_to_wait, .error = has_to_wait ? 0 : errno};
}
inline Moved send_some(const Socket& socket, const void* data, std::size_t num_bytes) {
  return moved(::send(socket.fd(), data, num_bytes, MSG_NOSIGNAL | MSG_DONTWAIT), false);
}
inline Moved recv_some(const Socket& socket, void* data, std::size_t num_bytes) {
  return moved(::recv(socket.fd(), data, num_bytes, MSG_DONTWAIT), true);
}

/// Sends or receives all of it; else says why not.
inline std::optional<std::string> send_all(const Socket& socket, const void* data, std::size_t num_bytes, Deadline deadline) {
  const auto* next = static_cast<const std::byte*>(data);
  for (const std::byte* const end = next + num_bytes; next != end;) {
    const Moved sent = send_some(socket, next, static_cast<std::size_t>(end - next));
    if (sent.is_gone) { return sent.why(); }
    if (sent.num_bytes == 0 && Clock::now() >= deadline) { return "took no data in time"; }
    next += sent.num_bytes;
    std::array<pollfd, 1> fds{{{.fd = socket.fd(), .events = POLLOUT, .revents = 0}}};
    if (next != end) { wait_for_any(fds, deadline); }
  }
  return std::nullopt;
}
inline std::optional<std::string> recv_all(const Socket& socket, void* data, std::size_t num_bytes, Deadline deadline) {
  auto* next = static_cast<std::byte*>(data);
  for (std::byte* const end = next + num_bytes; next != end;) {
    const Moved received = recv_some(socket, next, static_cast<std::size_t>(end - next));
    if (received.is_gone) { return received.why(); }
    if (received.num_bytes == 0 && Clock::now() >= deadline) { return "said nothing in time"; }
    next += received.num_bytes;
    std::array<pollfd, 1> fds{{{.fd = socket.fd(), .events = POLLIN, .revents = 0}}};
    if (next != end) { wait_for_any(fds, deadline); }
  }
  return std::nullopt;
}

inline Endpoint to_endpoint(const sockaddr* address, socklen_t size) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (::getnameinfo(address, size, host.data(), host.size(), port.data(), port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return {};
  }
  return {host.data(), static_cast<std::uint16_t>(std::stoi(port.data()))};
}
inline Endpoint local_endpoint(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  const bool is_known = ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return is_known ? to_endpoint(reinterpret_cast<const sockaddr*>(&address), size) : Endpoint{};
}
inline Endpoint peer_endpoint(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  const bool is_known = ::getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return is_known ? to_endpoint(reinterpret_cast<const sockaddr*>(&address), size) : Endpoint{};
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

/// The addresses of a name; null, with `why`, if it has none. The resolver's own time-outs bound the wait.
inline AddressList resolve(const std::string& host, std::uint16_t port, std::string& why) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error != 0) {
    why = std::string("its address is not known: ") + ::gai_strerror(error);
    list = nullptr;
  }
  return {list, &::freeaddrinfo};
}

inline Socket make_socket(int family) {
  Socket socket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  const int on = 1;
  if (socket) { ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); }
  return socket;
}

/// Listens on one address of this host; port 0: one that is free.
/// \throws Error with the address and the system's reason; InvalidArgument for "all addresses"
inline Socket listen_on(const std::string& host, std::uint16_t port, int backlog) {
  std::string why;
  const AddressList list = resolve(host, port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    const std::string address = to_endpoint(at->ai_addr, at->ai_addrlen).address;
    NVL_EXPECTS(address != "0.0.0.0" && address != "::", "address to listen on", host,
                "one address of this host, not all of them");
    Socket socket = make_socket(at->ai_family);
    const int on = 1;
    if (socket && ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        ::bind(socket.fd(), at->ai_addr, at->ai_addrlen) == 0 && ::listen(socket.fd(), backlog) == 0) {
      return socket;
    }
    why = error_text(errno);
  }
  raise(Error("cannot listen on " + Endpoint{host, port}.text() + ": " + why));
}

/// A connection to one of the addresses of `host`, tried in their order; none, with `why`, if that fails before the deadline.
inline Socket try_connect(const std::string& host, std::uint16_t port, Deadline deadline, std::string& why) {
  const AddressList list = resolve(host, port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    Socket socket = make_socket(at->ai_family);
    if (!socket) {
      why = error_text(errno);
      continue;
    }
    int error = ::connect(socket.fd(), at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS || error == EINTR) {
      std::array<pollfd, 1> fds{{{.fd = socket.fd(), .events = POLLOUT, .revents = 0}}};
      do { wait_for_any(fds, deadline); } while (fds[0].revents == 0 && Clock::now() < deadline);
      socklen_t size = sizeof(error);
      if (fds[0].revents == 0) {
        error = ETIMEDOUT;
      } else if (::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
        error = errno;
      }
    }
    // Linux may connect a socket to itself while nobody listens on a port that it also hands out to callers.
    if (error == 0 && local_endpoint(socket) == peer_endpoint(socket)) { error = ECONNREFUSED; }
    if (error == 0) { return socket; }
    why = error_text(error);
  }
  return {};
}

/// The next caller, or none. `is_exhausted`: this process has no descriptor left, so nobody is let in until one is closed.
inline Socket try_accept(const Socket& listener, bool& is_exhausted) {
  Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  is_exhausted = !socket && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM);
  const int on = 1;
  if (socket) { ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); }
  return socket;
}

}  // namespace nvl::inline NVL_ABI::net
