#include <nvl/kv/host_block_pool.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

namespace host_block_pool_test {

using namespace nvl;

TEST_CASE("a host pool hands out all its blocks once, and again after their release", "[kv][host]") {
  HostBlockPool pool({.num_blocks = 9, .block_size = 16, .num_host_blocks = 3});
  CHECK(pool.num_host_blocks() == 3);
  std::vector<HostBlockId> table(3), one(1);
  REQUIRE(pool.try_allocate_host(table));
  CHECK(table == std::vector{HostBlockId{0}, HostBlockId{1}, HostBlockId{2}});
  CHECK_FALSE(pool.try_allocate_host(one));
  CHECK(pool.num_free_host() == 0);
  pool.release_host(table);
  CHECK(pool.num_free_host() == 3);
  REQUIRE(pool.try_allocate_host(one));
  CHECK(pool.num_free_host() == 2);
}

TEST_CASE("a host pool of no blocks serves requests for none", "[kv][host]") {
  HostBlockPool pool({.num_blocks = 9, .block_size = 16});
  std::vector<HostBlockId> one(1);
  CHECK(pool.try_allocate_host({}));
  CHECK_FALSE(pool.try_allocate_host(one));
}

}  // namespace host_block_pool_test
