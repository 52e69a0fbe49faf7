#include <nvl/kv/block_table.hpp>

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <limits>

namespace block_table_test {

using namespace nvl;

TEST_CASE("the blocks of n tokens are counted at the edges of a block", "[kv][host]") {
  STATIC_CHECK(blocks_for(0, 16) == 0);
  STATIC_CHECK(blocks_for(1, 16) == 1);
  STATIC_CHECK(blocks_for(16, 16) == 1);
  STATIC_CHECK(blocks_for(17, 16) == 2);
  STATIC_CHECK(blocks_for(std::numeric_limits<std::int32_t>::max(), 16) == (std::size_t{1} << 27));
  STATIC_CHECK(full_blocks(0, 16) == 0);
  STATIC_CHECK(full_blocks(15, 16) == 0);
  STATIC_CHECK(full_blocks(16, 16) == 1);
  STATIC_CHECK(full_blocks(17, 16) == 1);
}

TEST_CASE("a slot is the block of the position and the offset in it", "[kv][host]") {
  const std::array table{BlockId{7}, BlockId{0}, BlockId{4'000'000'000u}};
  CHECK(slot_of(table, 0, 4) == 28);
  CHECK(slot_of(table, 3, 4) == 31);
  CHECK(slot_of(table, 4, 4) == 0);
  CHECK(slot_of(table, 9, 4) == 16'000'000'001);  // past 2^32
}

}  // namespace block_table_test
