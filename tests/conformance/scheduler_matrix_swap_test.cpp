#include "support/scheduler_matrix.hpp"

#include <catch2/catch_test_macros.hpp>

namespace scheduler_matrix_swap_test {

TEST_CASE("every order that swaps keeps its promises over every allocator", "[conformance][host]") {
  nvl_test::check_every_order<nvl::SwapPreemption>();
}

}  // namespace scheduler_matrix_swap_test
