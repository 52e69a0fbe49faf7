#include "support/scheduler_matrix.hpp"

#include <catch2/catch_test_macros.hpp>

namespace scheduler_matrix_cost_test {

TEST_CASE("every order that chooses between swap and recomputation keeps its promises over every allocator",
          "[conformance][host]") {
  nvl_test::check_every_order<nvl::CostPreemption>();
}

}  // namespace scheduler_matrix_cost_test
