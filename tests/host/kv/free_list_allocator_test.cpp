#include <nvl/kv/free_list_allocator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

namespace free_list_allocator_test {

using namespace nvl;

TEST_CASE("a fresh pool hands out its blocks in order, and again after their release", "[kv][host]") {
  FreeListAllocator allocator({.num_blocks = 4, .block_size = 16});
  std::vector<BlockId> table(4);
  REQUIRE(allocator.try_allocate(table));
  CHECK(table == std::vector{BlockId{0}, BlockId{1}, BlockId{2}, BlockId{3}});
  allocator.release(table);
  std::vector<BlockId> again(4);
  REQUIRE(allocator.try_allocate(again));
  CHECK(again == table);
}

TEST_CASE("a free list of no blocks serves requests for none", "[kv][host]") {
  FreeListAllocator allocator({.num_blocks = 0, .block_size = 16});
  CHECK(allocator.try_allocate({}));
  std::vector<BlockId> one(1);
  CHECK_FALSE(allocator.try_allocate(one));
  CHECK(allocator.num_free() == 0);
}

}  // namespace free_list_allocator_test
