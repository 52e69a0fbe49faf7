#include <nvl/core/thread_pool.hpp>

#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace thread_pool_test {

using namespace nvl;

TEST_CASE("every index is visited exactly once, in ranges that begin at multiples of the grain", "[core][thread_pool][host]") {
  for (const std::int32_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const std::int64_t count : {0, 1, 2, 15, 16, 17, 1000}) {
      for (const std::int64_t grain : {1, 3, 16, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        std::atomic<bool> aligned{true};
        pool.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
          if (begin % grain != 0 || begin >= end) { aligned = false; }
          for (std::int64_t i = begin; i < end; ++i) { ++visits[static_cast<std::size_t>(i)]; }
        });
        CAPTURE(threads, count, grain);
        CHECK(aligned);
        for (const auto& v : visits) { REQUIRE(v == 1); }
      }
    }
  }
}

TEST_CASE("what a loop wrote is seen by the caller and by the next loop", "[core][thread_pool][host]") {
  ThreadPool pool(3);
  std::vector<std::int64_t> values(257, 0);
  for (int round = 1; round <= 2000; ++round) {
    pool.parallel_for(257, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) { ++values[static_cast<std::size_t>(i)]; }
    });
    REQUIRE(std::accumulate(values.begin(), values.end(), std::int64_t{0}) == 257 * round);
  }
}

TEST_CASE("threads that fell asleep wake up for the next loop", "[core][thread_pool][host]") {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    // Each range waits for the other, so the loop only ends if two threads take part.
    std::atomic<int> inside{0};
    pool.parallel_for(2, 1, [&](std::int64_t, std::int64_t) {
      ++inside;
      while (inside < 2) { std::this_thread::yield(); }
    });
    CHECK(inside == 2);
  }
}

TEST_CASE("the first exception of a loop reaches the caller and the pool stays usable", "[core][thread_pool][host]") {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    std::string message;
    try {
      pool.parallel_for(100, 1, [](std::int64_t begin, std::int64_t end) {
        if (begin <= 42 && 42 < end) { throw std::runtime_error("index 42"); }
      });
    } catch (const std::runtime_error& error) { message = error.what(); }
    REQUIRE(message == "index 42");
  }
  std::atomic<std::int64_t> sum{0};
  pool.parallel_for(10, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
  CHECK(sum == 10);
}

TEST_CASE("a loop inside a loop and loops of several callers at once all complete", "[core][thread_pool][host]") {
  ThreadPool pool(2);
  std::atomic<std::int64_t> sum{0};
  const auto nested = [&] {
    for (int round = 0; round < 100; ++round) {
      pool.parallel_for(8, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          pool.parallel_for(8, 1, [&](std::int64_t b, std::int64_t e) { sum += e - b; });
        }
      });
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) { callers.emplace_back(nested); }
  for (std::thread& caller : callers) { caller.join(); }
  CHECK(sum == 3 * 100 * 64);
}

TEST_CASE("many pools with more threads than cores make progress", "[core][thread_pool][host]") {
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int i = 0; i < 4; ++i) { pools.push_back(std::make_unique<ThreadPool>(8)); }
  std::atomic<std::int64_t> sum{0};
  const auto begin = std::chrono::steady_clock::now();
  for (int round = 0; round < 200; ++round) {
    for (auto& pool : pools) {
      pool->parallel_for(64, 1, [&](std::int64_t b, std::int64_t e) { sum += e - b; });
    }
  }
  CHECK(sum == 200 * 4 * 64);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
}

TEST_CASE("a number of threads out of range is refused with the range", "[core][thread_pool][host]") {
  nvl_test::expect_error<InvalidArgument>([] { ThreadPool pool(-1); }, {"num_threads", "-1", "1024"});
  nvl_test::expect_error<InvalidArgument>([] { ThreadPool pool(1025); }, {"num_threads", "1025"});
  CHECK(ThreadPool(0).num_threads() == ThreadPool::default_num_threads());
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("a thread that the system cannot start is a typed error, and those that started are joined",
          "[core][thread_pool][host]") {
  // In a child process: with no room for further stacks, the system refuses the threads.
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int outcome = 1;
    rlimit limit{};
    ::getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = rlim_t{256} << 20;
    ::setrlimit(RLIMIT_AS, &limit);
    try {
      ThreadPool pool(1024);
    } catch (const OutOfMemory& error) {
      outcome = std::string(error.what()).find("of 1024 cannot be started") != std::string::npos ? 0 : 2;
    } catch (...) { outcome = 3; }
    ::_exit(outcome);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
#endif

}  // namespace thread_pool_test
