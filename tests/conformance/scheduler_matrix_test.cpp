/// Every order, preemption and allocator: the suite runs where they fit together, and docs/policies.md says where they do.
/// The other preemptions are in scheduler_matrix_swap_test.cpp and scheduler_matrix_cost_test.cpp, to compile side by side.
#include "support/scheduler_matrix.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

namespace scheduler_matrix_test {

using namespace nvl;
using namespace nvl_test;

namespace {

/// What the compiler says of each combination, as a table.
std::string matrix() {
  std::string head = "| scheduler |", rule = "|---|", rows;
  for_each_allocator([&]<class A>(Named<A> allocator) {
    head += " `" + std::string(allocator.name) + "` |";
    rule += "---|";
  });
  for_each_scheduler([&]<class S>(Named<S> scheduler) {
    rows += "| `" + std::string(scheduler.name) + "` |";
    for_each_allocator([&]<class A>(Named<A>) { rows += SchedulerPolicy<S, A> ? " works |" : " refused |"; });
    rows += "\n";
  });
  return head + "\n" + rule + "\n" + rows;
}

}  // namespace

TEST_CASE("every order that recomputes keeps its promises over every allocator", "[conformance][host]") {
  check_every_order<RecomputePreemption>();
}

TEST_CASE("the matrix in docs/policies.md is what the compiler says", "[conformance][host]") {
  const std::string path = NVL_TEST_DATA_DIR "/../../docs/policies.md";
  const std::string mark = "<!-- matrix of tests/conformance/scheduler_matrix_test.cpp -->\n";
  std::ifstream file(path);
  std::string page{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::size_t begin = page.find(mark) + mark.size();
  REQUIRE(page.find(mark) != std::string::npos);
  const std::size_t end = page.find("\n\n", begin) + 1;
  REQUIRE(end != 0);
  if (std::getenv("NVL_UPDATE_DOCS") != nullptr) {
    page.replace(begin, end - begin, matrix());
    std::ofstream(path) << page;
  } else {
    INFO("run this test with NVL_UPDATE_DOCS=1 in the environment to write the table");
    CHECK(page.substr(begin, end - begin) == matrix());
  }
}

}  // namespace scheduler_matrix_test
