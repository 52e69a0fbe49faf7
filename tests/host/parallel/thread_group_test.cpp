#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/parallel/thread_group.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace thread_group_test {

using namespace nvl;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Calls `work(end)` for each rank on a thread of its own; returns what each threw, empty: nothing.
std::vector<std::string> on_ranks(std::vector<ThreadGroup>& ends, const std::function<void(ThreadGroup&)>& work) {
  std::vector<std::string> errors(ends.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < ends.size(); ++r) {
    threads.emplace_back([&, r] { contain([&] { work(ends[r]); }, [&](const char* what) { errors[r] = what; }); });
  }
  threads.clear();
  return errors;
}

bool is_quiet(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) {
    if (!error.empty()) { UNSCOPED_INFO(error); }
  }
  return errors == std::vector<std::string>(errors.size());
}

}  // namespace

TEMPLATE_TEST_CASE("all-reduce adds in the order of the ranks, the same bits on each", "[parallel][host]", float, bf16) {
  for (const std::uint32_t size : {1u, 2u, 3u, 4u, 7u}) {
    for (const std::int64_t n : {0, 1, 2, 5, 64, 1023}) {
      CAPTURE(size, n);
      std::vector<ThreadGroup> ends = ThreadGroup::make(size);
      std::vector<std::vector<TestType>> data(size), expected(1);
      std::mt19937 random(static_cast<unsigned>(size * 7 + static_cast<unsigned>(n)));
      std::normal_distribution<float> normal;
      for (auto& mine : data) {
        for (std::int64_t i = 0; i < n; ++i) { mine.push_back(static_cast<TestType>(normal(random))); }
      }
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
        double sum = 0;
        for (const auto& mine : data) { sum += static_cast<double>(static_cast<float>(mine[i])); }
        expected[0].push_back(static_cast<TestType>(static_cast<float>(sum)));
      }
      REQUIRE(is_quiet(on_ranks(ends, [&](ThreadGroup& end) {
        for (int repeat = 0; repeat < 3; ++repeat) {
          std::vector<TestType> copy = data[index_of(end.rank())];
          end.all_reduce_sum(copy.data(), n);
          if (repeat == 2) { data[index_of(end.rank())] = copy; }
        }
      })));
      for (const auto& mine : data) {
        for (std::size_t i = 0; i < mine.size(); ++i) {
          REQUIRE(static_cast<float>(mine[i]) == static_cast<float>(expected[0][i]));
        }
      }
    }
  }
}

TEST_CASE("gather, broadcast, send and receive move what they say", "[parallel][host]") {
  std::vector<ThreadGroup> ends = ThreadGroup::make(4);
  REQUIRE(is_quiet(on_ranks(ends, [&](ThreadGroup& end) {
    const auto r = static_cast<int>(index_of(end.rank()));
    const std::vector<int> mine{r, 10 * r};
    std::vector<int> all(8);
    end.all_gather(mine.data(), all.data(), 2);
    if (all != std::vector<int>{0, 0, 1, 10, 2, 20, 3, 30}) { raise(Error("all_gather")); }
    int value = r == 2 ? 99 : r;
    end.broadcast(&value, 1, Rank{2});
    if (value != 99) { raise(Error("broadcast")); }
    // A ring: everybody but rank 0 receives first.
    int passed = r == 0 ? 5 : -1;
    if (r > 0) { end.recv(&passed, 1, Rank{static_cast<std::uint32_t>(r - 1)}); }
    const int next = passed + 1;
    end.send(&next, 1, Rank{static_cast<std::uint32_t>((r + 1) % 4)});
    if (r == 0) { end.recv(&passed, 1, Rank{3}); }
    if (passed != (r == 0 ? 9 : 5 + r)) { raise(Error("ring " + std::to_string(passed))); }
    end.barrier();
  })));
}

TEST_CASE("a rank that does not come is named, and the group is dead", "[parallel][host]") {
  std::vector<ThreadGroup> ends = ThreadGroup::make(3, {.timeout = std::chrono::milliseconds(50)});
  auto errors = on_ranks(ends, [](ThreadGroup& end) {
    float x = 1;
    if (end.rank() != Rank{1}) { end.all_reduce_sum(&x, 1); }
  });
  CHECK_THAT(errors[0], ContainsSubstring("rank 1 did not come to all_reduce_sum of 1 x 4 bytes within 50 ms"));
  CHECK(errors[0] == errors[2]);
  CHECK(errors[1].empty());
  CHECK_THAT(on_ranks(ends, [](ThreadGroup& end) { end.barrier(); })[1], ContainsSubstring("dead: rank 1 did not come"));
}

TEST_CASE("a rank that calls something else is named on every rank", "[parallel][host]") {
  std::vector<ThreadGroup> ends = ThreadGroup::make(3);
  std::vector<float> data(8);
  const auto errors = on_ranks(ends, [&](ThreadGroup& end) {
    std::vector<float> mine(8);
    end.all_reduce_sum(mine.data(), end.rank() == Rank{2} ? 7 : 8);
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("rank 2 calls all_reduce_sum of 7 x 4 bytes where rank 0 calls all_reduce_sum of 8"));
  }
  std::vector<ThreadGroup> pair = ThreadGroup::make(2);
  const auto lengths = on_ranks(pair, [](ThreadGroup& end) {
    int two[2] = {1, 2};
    if (end.rank() == Rank{0}) {
      end.send(two, 2, Rank{1});
    } else {
      end.recv(two, 1, Rank{0});
    }
  });
  CHECK_THAT(lengths[0], ContainsSubstring("rank 0 sends 8 bytes where rank 1 receives 4"));
  CHECK(lengths[0] == lengths[1]);
}

TEST_CASE("an abort wakes whoever waits and says who gave up and why", "[parallel][host]") {
  std::vector<ThreadGroup> ends = ThreadGroup::make(3);
  const auto errors = on_ranks(ends, [](ThreadGroup& end) {
    if (end.rank() == Rank{2}) {
      end.abort("out of memory");
      end.abort("and again");
    } else {
      int x = 0;
      end.broadcast(&x, 1, Rank{0});
    }
  });
  CHECK_THAT(errors[0], ContainsSubstring("the group of 3 ranks is dead: rank 2 gave up: out of memory"));
  CHECK(errors[0] == errors[1]);
}

TEST_CASE("a group refuses what it cannot be", "[parallel][host]") {
  CHECK_THROWS_AS(ThreadGroup::make(0), InvalidArgument);
  CHECK_THROWS_AS(ThreadGroup::make(257), InvalidArgument);
  CHECK_THROWS_AS(ThreadGroup::make(2, {.timeout = std::chrono::milliseconds(0)}), InvalidArgument);
  ThreadGroup alone = ThreadGroup::make(1).front();
  float x = 3;
  alone.all_reduce_sum(&x, 1);
  CHECK(x == 3);
  CHECK_THROWS_AS(alone.send(&x, 1, Rank{1}), InvalidArgument);
}

}  // namespace thread_group_test
