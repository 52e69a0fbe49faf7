// Collectives over TCP between threads, processes and network namespaces; ranks that are killed, stopped, late or elsewhere.

#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/net/rendezvous.hpp>
#include <nvl/net/tcp_group.hpp>

#include "support/expect_error.hpp"
#include "support/processes.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <sched.h>

namespace tcp_group_test {

using namespace nvl;
using namespace nvl_test;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;

namespace {

using Work = std::function<void(TcpGroup&)>;

RendezvousOptions options_of(std::uint32_t rank, std::uint32_t size, const net::Endpoint& at) {
  RendezvousOptions options;
  options.rank = Rank{rank};
  options.world_size = size;
  options.address = at.address;
  options.port = at.port;
  options.secret = "a secret of the tests";
  return options;
}

/// Calls `work(group)` for each rank on a thread of its own; returns what each threw, empty: nothing.
std::vector<std::string> on_threads(std::uint32_t size, const Work& work, std::chrono::milliseconds timeout = 20s) {
  std::vector<std::string> errors(size);
  const net::Endpoint at = own_endpoint();
  std::vector<std::jthread> threads;
  for (std::uint32_t r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      contain(
          [&] {
            TcpGroup group(rendezvous(options_of(r, size, at)), {.timeout = timeout});
            work(group);
          },
          [&](const char* what) { errors[r] = what; });
    });
  }
  threads.clear();
  return errors;
}

/// The same in processes, which live as long as the result.
std::vector<std::unique_ptr<ChildProcess>> on_processes(std::uint32_t size, const Work& work, std::chrono::milliseconds timeout) {
  const net::Endpoint at = own_endpoint();
  std::vector<std::unique_ptr<ChildProcess>> ranks;
  for (std::uint32_t r = 0; r < size; ++r) {
    ranks.push_back(std::make_unique<ChildProcess>([&, r] {
      TcpGroup group(rendezvous(options_of(r, size, at)), {.timeout = timeout});
      work(group);
    }));
  }
  return ranks;
}

bool is_quiet(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) {
    if (!error.empty()) { UNSCOPED_INFO(error); }
  }
  return errors == std::vector<std::string>(errors.size());
}

/// Values that every rank can compute for every other; of such different sizes that the order of a sum shows.
std::vector<float> data_of(std::uint32_t rank, std::int64_t n) {
  std::mt19937 random(rank * 1000 + static_cast<unsigned>(n));
  std::normal_distribution<float> normal;
  std::vector<float> data(static_cast<std::size_t>(n));
  for (float& value : data) { value = std::ldexp(normal(random), static_cast<int>(random() % 60)); }
  return data;
}

void fail_unless(bool condition, const std::string& what) {
  if (!condition) { raise(Error(what)); }
}

template <class T>
void check_all_reduce(TcpGroup& group, std::int64_t n) {
  std::vector<T> data, expected;
  std::vector<std::vector<float>> all;
  for (std::uint32_t r = 0; r < group.size(); ++r) { all.push_back(data_of(r, n)); }
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    using Sum = std::conditional_t<std::is_same_v<T, float>, double, float>;
    Sum sum{};
    for (const std::vector<float>& one : all) { sum += static_cast<Sum>(static_cast<T>(one[i])); }
    expected.push_back(static_cast<T>(sum));
    data.push_back(static_cast<T>(all[index_of(group.rank())][i]));
  }
  group.all_reduce_sum(data.data(), n);
  for (std::size_t i = 0; i < data.size(); ++i) {
    fail_unless(static_cast<float>(data[i]) == static_cast<float>(expected[i]), "element " + std::to_string(i));
  }
}

void check_all_calls(TcpGroup& group) {
  const std::uint32_t self = index_of(group.rank()), size = group.size();
  struct Pair {
    std::int32_t a;
    std::int64_t b;
  };
  for (const std::int64_t n : {0, 1, 7, 100'000}) {
    const auto count = static_cast<std::size_t>(n);
    std::vector<Pair> mine(count, Pair{static_cast<std::int32_t>(self), -n}), all(count * size);
    group.all_gather(mine.data(), all.data(), n);
    for (std::size_t i = 0; i < all.size(); ++i) {
      fail_unless(all[i].a == static_cast<std::int32_t>(i / count) && all[i].b == -n, "all_gather");
    }
    for (std::uint32_t root = 0; root < size; ++root) {
      std::vector<std::uint16_t> data(count, static_cast<std::uint16_t>(self + 1));
      group.broadcast(data.data(), n, Rank{root});
      for (const std::uint16_t value : data) { fail_unless(value == root + 1, "broadcast"); }
    }
    // Around the ring: even ranks send first.
    if (size > 1) {
      std::vector<std::int32_t> out(count, static_cast<std::int32_t>(self)), in(count);
      const Rank next{(self + 1) % size}, previous{(self + size - 1) % size};
      if (self % 2 == 0) { group.send(out.data(), n, next); }
      group.recv(in.data(), n, previous);
      if (self % 2 == 1) { group.send(out.data(), n, next); }
      for (const std::int32_t value : in) { fail_unless(value == static_cast<std::int32_t>(index_of(previous)), "recv"); }
    }
    group.barrier();
  }
}

bool run(const std::string& command) { return std::system(("{ " + command + "; } 2>/dev/null").c_str()) == 0; }

/// Two processes in network namespaces of their own, joined by one link (nvla, nvlb); what each threw. Nothing where this is not
/// allowed.
std::vector<std::string> on_two_hosts(const Work& work, std::chrono::milliseconds timeout) {
  const auto call = [&](std::uint32_t rank) {
    TcpGroup group(rendezvous(options_of(rank, 2, {"10.77.0.1", 29500})), {.timeout = timeout});
    work(group);
  };
  const auto enter_own_network = [] { fail_unless(::unshare(CLONE_NEWNET) == 0, "not allowed"); };
  const ChildProcess second([&] {
    enter_own_network();
    for (int i = 0; !run("ip addr add 10.77.0.2/24 dev nvlb && ip link set nvlb up"); ++i) {
      fail_unless(i < 300, "not allowed");
      std::this_thread::sleep_for(10ms);
    }
    call(1);
  });
  const std::string other = std::to_string(second.pid());
  const ChildProcess first([&] {
    enter_own_network();
    const std::string is_apart =
        "test $(readlink /proc/" + std::to_string(::getppid()) + "/ns/net) != $(readlink /proc/" + other + "/ns/net)";
    for (int i = 0; !run(is_apart + " && ip link add nvla type veth peer name nvlb netns " + other); ++i) {
      fail_unless(i < 100, "not allowed");
      std::this_thread::sleep_for(10ms);
    }
    fail_unless(run("ip addr add 10.77.0.1/24 dev nvla && ip link set nvla up"), "not allowed");
    call(0);
  });
  const std::vector<std::string> errors{first.report(), second.report()};
  return errors[0] == "not allowed" ? std::vector<std::string>() : errors;
}

void check_all_contain(const std::vector<std::string>& errors, const std::string& words, std::size_t except = ~std::size_t{0}) {
  for (std::size_t r = 0; r < errors.size(); ++r) {
    CAPTURE(r);
    if (r != except) { CHECK_THAT(errors[r], ContainsSubstring(words)); }
  }
}

}  // namespace

TEST_CASE("all-reduce over TCP adds in the order of the ranks, the same bits on each", "[parallel][host]") {
  for (const std::uint32_t size : {1u, 2u, 3u, 4u, 7u}) {
    CAPTURE(size);
    REQUIRE(is_quiet(on_threads(size, [](TcpGroup& group) {
      for (const std::int64_t n : {0, 1, 5, 255, 257, 4096, 50'001}) {  // small ones in one step, large ones in two
        check_all_reduce<float>(group, n);
        check_all_reduce<bf16>(group, n);
      }
    })));
  }
}

TEST_CASE("gather, broadcast, send and receive over TCP move what they say", "[parallel][host]") {
  for (const std::uint32_t size : {1u, 2u, 4u}) {
    CAPTURE(size);
    REQUIRE(is_quiet(on_threads(size, check_all_calls)));
  }
}

TEST_CASE("processes are ranks", "[parallel][host]") {
  const auto ranks = on_processes(
      3,
      [](TcpGroup& group) {
        check_all_calls(group);
        check_all_reduce<float>(group, 20'000);
      },
      20s);
  for (const auto& rank : ranks) { CHECK(rank->report() == ""); }
}

TEST_CASE("a group can be split, and its parts do not need it", "[parallel][host]") {
  for (const std::uint32_t size : {1u, 2u, 5u}) {
    CAPTURE(size);
    REQUIRE(is_quiet(on_threads(size, [](TcpGroup& world) {
      const std::uint32_t self = index_of(world.rank()), num_even = (world.size() + 1) / 2;
      TcpGroup half = world.split(self % 2), all = world.split(7);
      fail_unless(half.size() == (self % 2 == 0 ? num_even : world.size() - num_even), "size of a half");
      fail_unless(index_of(half.rank()) == self / 2, "rank in a half");
      fail_unless(all.rank() == world.rank() && all.size() == world.size(), "rank in another group of all");
      TcpGroup alone = half.split(self);
      fail_unless(alone.size() == 1, "a group of one");
      { const TcpGroup ended = std::move(world); }
      check_all_calls(all);
      check_all_calls(half);
      check_all_reduce<float>(half, 257);
      check_all_calls(alone);
    })));
  }
}

TEST_CASE("a rank that leaves after the last call does not disturb those that are still in it", "[parallel][host]") {
  for (int repeat = 0; repeat < 5; ++repeat) {
    REQUIRE(is_quiet(on_threads(4, [](TcpGroup& group) {
      std::vector<float> data(300'000, 1.0f);
      group.broadcast(data.data(), 300'000, Rank{0});
    })));
  }
}

TEST_CASE("a rank that leaves early ends the others' calls with its number", "[parallel][host]") {
  const auto errors = on_threads(3, [](TcpGroup& group) {
    if (index_of(group.rank()) != 1) { group.barrier(); }
  });
  check_all_contain(errors, "rank 1 has left the group", 1);
}

TEST_CASE("ranks that call different things all hear of it", "[parallel][host]") {
  struct Case {
    Work odd, others;
    std::string words;
  };
  const std::vector<Case> cases{
      {[](TcpGroup& g) { g.barrier(); },
       [&](TcpGroup& g) {
         float y[4] = {};
         g.all_reduce_sum(y, 4);
       },
       "calls barrier"},
      {[](TcpGroup& g) {
         float y[5] = {};
         g.all_reduce_sum(y, 5);
       },
       [](TcpGroup& g) {
         float y[5] = {};
         g.all_reduce_sum(y, 4);
       },
       "all_reduce_sum of 5 x 4 bytes"},
      {[](TcpGroup& g) {
         bf16 y[4];
         g.broadcast(y, 4, Rank{0});
       },
       [](TcpGroup& g) {
         float y[4] = {};
         g.broadcast(y, 4, Rank{0});
       },
       "broadcast of 4 x 2 bytes"},
      {[](TcpGroup& g) {
         float y[4] = {};
         g.broadcast(y, 4, Rank{1});
       },
       [](TcpGroup& g) {
         float y[4] = {};
         g.broadcast(y, 4, Rank{0});
       },
       "from rank 1"},
      {[](TcpGroup& g) {
         float y[4] = {};
         g.recv(y, 4, Rank{0});
       },
       [](TcpGroup& g) { g.barrier(); }, "calls barrier"},
  };
  for (const Case& test : cases) {
    CAPTURE(test.words);
    check_all_contain(on_threads(3,
                                 [&](TcpGroup& group) {
                                   group.barrier();
                                   (index_of(group.rank()) == 1 ? test.odd : test.others)(group);
                                   group.barrier();
                                 }),
                      test.words);
  }
}

TEST_CASE("a rank that does not come in time is named by all", "[parallel][host]") {
  const auto errors = on_threads(
      3,
      [](TcpGroup& group) {
        if (index_of(group.rank()) == 2) { std::this_thread::sleep_for(1100ms); }
        group.barrier();
      },
      700ms);
  check_all_contain(errors, "rank 2 did not come to barrier within 700 ms");
}

TEST_CASE("a dead group stays dead and says why", "[parallel][host]") {
  const auto errors = on_threads(2, [](TcpGroup& group) {
    if (index_of(group.rank()) == 1) { group.abort("the GPU is lost"); }
    contain([&] { group.barrier(); }, [](const char*) {});
    float x = 0;
    group.send(&x, 1, Rank{index_of(group.rank()) ^ 1});
  });
  check_all_contain(errors, "the group of 2 ranks is dead: rank 1 gave up: the GPU is lost");
}

TEST_CASE("abort from another thread wakes a rank that waits", "[parallel][host]") {
  const auto errors = on_threads(2, [](TcpGroup& group) {
    std::jthread other([&] {
      std::this_thread::sleep_for(50ms);
      if (index_of(group.rank()) == 0) { group.abort("stop was pressed"); }
    });
    float x = 0;
    group.recv(&x, 1, Rank{index_of(group.rank()) ^ 1});  // each from the other: nothing comes
  });
  check_all_contain(errors, "rank 0 gave up: stop was pressed");
}

TEST_CASE("two ranks that wait for each other are told so", "[parallel][host]") {
  const auto errors = on_threads(
      2,
      [](TcpGroup& group) {
        float x = 0;
        group.recv(&x, 1, Rank{index_of(group.rank()) ^ 1});
      },
      1500ms);
  check_all_contain(errors, "in another call");
}

TEST_CASE("the survivors of a killed rank end at once with its number", "[parallel][host]") {
  const auto ranks = on_processes(
      4,
      [](TcpGroup& group) {
        std::vector<float> data(100'000, 1.0f);
        while (true) { group.all_reduce_sum(data.data(), 100'000); }
      },
      20s);
  std::this_thread::sleep_for(300ms);
  ranks[2]->signal(SIGKILL);
  for (const std::size_t r : {0u, 1u, 3u}) { CHECK_THAT(ranks[r]->report(), ContainsSubstring("rank 2 is gone")); }
}

TEST_CASE("the survivors of a stopped rank end within the deadline with its number", "[parallel][host]") {
  const auto ranks = on_processes(
      4,
      [](TcpGroup& group) {
        std::vector<float> data(100'000, 1.0f);
        while (true) { group.all_reduce_sum(data.data(), 100'000); }
      },
      900ms);
  std::this_thread::sleep_for(300ms);
  ranks[1]->signal(SIGSTOP);
  for (const std::size_t r : {0u, 2u, 3u}) { CHECK_THAT(ranks[r]->report(), ContainsSubstring("rank 1 ")); }
  ranks[1]->signal(SIGCONT);
  CHECK_THAT(ranks[1]->report(), ContainsSubstring("rank 1 "));
}

TEST_CASE("in a chain of waiting ranks the one that is stopped is named", "[parallel][host]") {
  // 0 waits for 1, which waits for 2, which is stopped.
  const auto ranks = on_processes(
      3,
      [](TcpGroup& group) {
        const std::uint32_t self = index_of(group.rank());
        float x = 0;
        group.barrier();
        if (self == 2) { ::raise(SIGSTOP); }
        group.recv(&x, 1, Rank{self + 1});
      },
      1500ms);
  for (const std::size_t r : {0u, 1u}) {
    const std::string report = ranks[r]->report();
    CAPTURE(r, report);
    const bool is_named =
        report.find("rank 2 says nothing") != std::string::npos || report.find("rank 2 did not come") != std::string::npos;
    CHECK(is_named);
  }
}

TEST_CASE("a rank that is gone before the connections are made is named", "[parallel][host]") {
  const net::Endpoint at = own_endpoint();
  std::vector<std::string> errors(3);
  std::vector<std::jthread> threads;
  for (std::uint32_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      contain(
          [&] {
            Meeting meeting = rendezvous(options_of(r, 3, at));
            if (r != 1) { const TcpGroup group(std::move(meeting), {.timeout = 400ms}); }
          },
          [&](const char* what) { errors[r] = what; });
    });
  }
  threads.clear();
  check_all_contain(errors, "rank 1 ", 1);
  check_all_contain(errors, "while the ranks connected", 1);
}

TEST_CASE("wrong arguments of a TcpGroup are refused by name", "[parallel][host]") {
  expect_error<InvalidArgument>([] { TcpGroup(rendezvous({}), {.timeout = 0ms}); }, {"TcpGroupOptions::timeout"});
  TcpGroup group(rendezvous({}));
  float x = 0;
  expect_error<InvalidArgument>([&] { group.all_reduce_sum(&x, -1); }, {"elements", "-1"});
  expect_error<InvalidArgument>([&] { group.broadcast(&x, 1, Rank{1}); }, {"root", "size of 1"});
  expect_error<InvalidArgument>([&] { group.send(&x, 1, Rank{0}); }, {"rank of a transfer"});
}

TEST_CASE("two network namespaces are two hosts", "[parallel][host]") {
  const auto work = [](TcpGroup& group) {
    check_all_calls(group);
    check_all_reduce<float>(group, 50'001);
  };
  const std::vector<std::string> errors = on_two_hosts(work, 20s);
  if (errors.size() != 2) { SKIP("no right to make network namespaces"); }
  CHECK(errors == std::vector<std::string>(2));
}

TEST_CASE("when the network is cut each side names the other within the deadline", "[parallel][host]") {
  const auto work = [](TcpGroup& group) {
    group.barrier();
    if (index_of(group.rank()) == 0) { fail_unless(run("ip link set nvla down"), "the link stays up"); }
    std::vector<float> data(10'000, 1.0f);
    while (true) { group.all_reduce_sum(data.data(), 10'000); }
  };
  const std::vector<std::string> errors = on_two_hosts(work, 700ms);
  if (errors.size() != 2) { SKIP("no right to make network namespaces"); }
  CHECK_THAT(errors[0], ContainsSubstring("is dead: rank 1 "));
  CHECK_THAT(errors[1], ContainsSubstring("is dead: rank 0 "));
}

}  // namespace tcp_group_test
