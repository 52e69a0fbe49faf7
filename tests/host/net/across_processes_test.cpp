// Strategies of which each process has a part keep their promises together. A thread stands for a process.

#include <nvl/core/error.hpp>
#include <nvl/parallel/across_processes.hpp>
#include <nvl/parallel/pipeline_parallel.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/tcp_group.hpp>
#include <nvl/parallel/tensor_parallel.hpp>
#include <nvl/parallel/tensor_pipeline_parallel.hpp>
#include <nvl/parallel/thread_group.hpp>
#include <nvl/testing/check_parallel_strategy.hpp>

#include "support/expect_error.hpp"
#include "support/processes.hpp"

#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace across_processes_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;

namespace {

/// `make(world)` is the strategy of each process; what each found broken.
template <class Make>
std::vector<std::string> check_on_threads(std::uint32_t num_processes, Make&& make) {
  std::vector<std::string> broken(num_processes);
  const net::Endpoint at = own_endpoint();
  std::vector<std::jthread> threads;
  for (std::uint32_t r = 0; r < num_processes; ++r) {
    threads.emplace_back([&, r] {
      contain(
          [&] {
            RendezvousOptions options;
            options.rank = Rank{r};
            options.world_size = num_processes;
            options.address = at.address;
            options.port = at.port;
            options.secret = "a secret of the tests";
            TcpGroup world(rendezvous(options), {.timeout = 20s});
            auto local = make(world);
            AcrossProcesses strategy(std::move(local), std::move(world));
            static_assert(RemoteRanks<decltype(strategy)>);
            broken[r] = testing::check_parallel_strategy(strategy).text();
          },
          [&](const char* what) { broken[r] = what; });
    });
  }
  threads.clear();
  return broken;
}

}  // namespace

TEST_CASE("strategies with a rank in each process keep their promises together", "[parallel][conformance][host]") {
  for (const std::uint32_t size : {1u, 2u, 3u}) {
    CAPTURE(size);
    const std::vector<std::string> nothing(size);
    CHECK(check_on_threads(size, [](TcpGroup& world) { return TensorParallel<TcpGroup>(world.split(0)); }) == nothing);
    CHECK(check_on_threads(size, [](TcpGroup& world) { return PipelineParallel<TcpGroup>(world.split(0)); }) == nothing);
  }
  for (const std::uint32_t num_stages : {1u, 2u, 4u}) {
    CAPTURE(num_stages);
    const auto make = [&](TcpGroup& world) { return TensorPipelineParallel<TcpGroup>::split(world, num_stages); };
    CHECK(check_on_threads(4, make) == std::vector<std::string>(4));
  }
}

TEST_CASE("processes with several ranks each keep their promises together", "[parallel][conformance][host]") {
  std::vector<ThreadGroup> ends = ThreadGroup::make(4);
  const auto make = [&](TcpGroup& world) {
    const std::size_t first = index_of(world.rank()) * 2;
    return TensorParallel<>(std::vector<ThreadGroup>{ends[first], ends[first + 1]});
  };
  CHECK(check_on_threads(2, make) == std::vector<std::string>(2));
}

TEST_CASE("ranks that do not divide into stages and pulses without length are refused", "[parallel][host]") {
  TcpGroup one(rendezvous({}));
  expect_error<InvalidArgument>([&] { TensorPipelineParallel<TcpGroup>::split(one, 2); },
                                {"stages is 2", "divisor of the 1 ranks"});
  TensorParallel<TcpGroup> local(one.split(0));
  expect_error<InvalidArgument>([&] { AcrossProcesses(std::move(local), std::move(one), {.pulse = 0ms}); },
                                {"AcrossProcessesOptions::pulse", "positive"});
}

}  // namespace across_processes_test
