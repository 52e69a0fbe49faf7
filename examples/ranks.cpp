// Processes that find each other: run it under mpirun, srun or torchrun to see whether a cluster is set up for more than one.
//
//   NVL_SECRET=$(openssl rand -hex 16) mpirun -n 4 -x NVL_SECRET nvl-ranks

#include <nvl/net/launch_env.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/tcp_group.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace {

/// [us] of one all-reduce of `n` floats.
double time_all_reduce(nvl::TcpGroup& group, std::int64_t n) {
  std::vector<float> data(static_cast<std::size_t>(n), 1.0f);
  const int num_warm = 3, num_timed = n > 100'000 ? 5 : 100;
  std::chrono::steady_clock::time_point begin;
  for (int i = 0; i < num_warm + num_timed; ++i) {
    if (i == num_warm) { begin = std::chrono::steady_clock::now(); }
    group.all_reduce_sum(data.data(), n);
    data.assign(data.size(), 1.0f);
  }
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / num_timed;
}

void run() {
  const char* const secret = std::getenv("NVL_SECRET");
  const nvl::LaunchEnv env = nvl::read_launch_env();
  auto options = nvl::RendezvousOptions::from(env, secret != nullptr ? secret : "");
  options.config = "nvl-ranks 1";  // a rank with another text is refused
  nvl::Meeting meeting = nvl::rendezvous(options);
  const bool is_first = index_of(meeting.rank) == 0;
  if (is_first) {
    std::printf("%u ranks, started by %s\n", meeting.world_size(), std::string(env.launcher).c_str());
    for (std::size_t r = 0; r < meeting.peers.size(); ++r) {
      std::printf("  rank %zu at %s\n", r, env.world_size == 1 ? "this host" : meeting.peers[r].text().c_str());
    }
  }
  nvl::TcpGroup group(std::move(meeting));
  for (const std::int64_t n : {2, 2048, 16384, 262144, 4194304}) {
    const double us = time_all_reduce(group, n);
    if (is_first) { std::printf("all-reduce of %8lld bytes: %9.1f us\n", static_cast<long long>(n) * 4, us); }
  }
}

}  // namespace

int main() {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvl-ranks: error: %s\n", error.what());
    return 1;
  }
}
