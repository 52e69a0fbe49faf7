#pragma once
/// Ranks as processes of their own, which can be killed and stopped.

#include <nvl/core/error.hpp>
#include <nvl/net/socket.hpp>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <csignal>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nvl_test {

/// A child that runs `work` and reports what it threw; empty: nothing. It is killed and reaped at the end of its scope.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<void()>& work) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) { std::abort(); }
    std::fflush(nullptr);  // what is buffered is the parent's to write
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[0]);
      std::string report;
      nvl::contain(work, [&](const char* what) { report = what; });
      const bool is_told = ::write(ends[1], report.data(), report.size()) == static_cast<ssize_t>(report.size());
      ::_exit(is_told ? 0 : 1);  // not the parent's destructors, nor its exit handlers
    }
    ::close(ends[1]);
    pipe_ = ends[0];
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(pipe_);
  }

  pid_t pid() const noexcept { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }

  /// What it threw. A child that says nothing for 20 s has hung: that is its report, then.
  std::string report() const {
    std::string text;
    std::array<char, 1024> buffer{};
    while (true) {
      pollfd fd{.fd = pipe_, .events = POLLIN, .revents = 0};
      if (::poll(&fd, 1, 20'000) <= 0) { return text + "[the process hangs]"; }
      const ssize_t count = ::read(pipe_, buffer.data(), buffer.size());
      if (count <= 0) { return text; }
      text.append(buffer.data(), static_cast<std::size_t>(count));
    }
  }

 private:
  pid_t pid_ = -1;
  int pipe_ = -1;
};

/// An address of this host that no other test process uses at the time, and a port that is free there.
inline nvl::net::Endpoint own_endpoint() {
  const auto pid = static_cast<unsigned>(::getpid());
  const std::string address = "127." + std::to_string(1 + (pid >> 15) % 250) + "." + std::to_string((pid >> 7) % 256) + "." +
                              std::to_string(1 + pid % 128);
  return nvl::net::local_endpoint(nvl::net::listen_on(address, 0, 1));
}

}  // namespace nvl_test
