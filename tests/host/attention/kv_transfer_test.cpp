#include "support/expect_error.hpp"
#include "support/host_caches.hpp"

#include <nvl/attention/kv_transfer.hpp>

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <vector>

namespace kv_transfer_test {

using namespace nvl;

TEST_CASE("blocks come across with all layers, keys and values", "[attention][host]") {
  CpuDevice device({.num_threads = 1});
  // Blocks of 1 token x 1 head x 2: K, V. Two layers.
  const KvLayout two{.num_blocks = 2, .block_size = 1, .num_kv_heads = 1, .head_dim = 2};
  const KvLayout three{.num_blocks = 3, .block_size = 1, .num_kv_heads = 1, .head_dim = 2};
  std::vector<float> from{1, 2, 3, 4, 5, 6, 7, 8, /* layer 1 */ 11, 12, 13, 14, 15, 16, 17, 18};
  std::vector<float> to(24, 0.0f);
  HostKvTransfer<float> transfer(device, {from.data(), two, 2}, device, {to.data(), three, 2});
  CHECK(transfer.num_done() == 0);
  transfer.start(std::array{BlockCopy{BlockId{1}, BlockId{2}}});
  CHECK(transfer.num_done() == 1);
  CHECK(to == std::vector<float>{0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 15, 16, 17, 18});
}

TEST_CASE("caches whose blocks differ are refused with both numbers", "[attention][host]") {
  const KvLayout layout{.num_blocks = 2, .block_size = 16, .num_kv_heads = 2, .head_dim = 64};
  const KvCache<float> from{nullptr, layout, 4};
  KvCache<float> to = from;
  to.layout.num_blocks = 7;
  CHECK_NOTHROW(expect_same_blocks(from, to));
  to.num_layers = 3;
  nvl_test::expect_error<InvalidArgument>([&] { expect_same_blocks(from, to); }, {"layers", "is 3", "4"});
  to = from;
  to.layout.block_size = 32;
  nvl_test::expect_error<InvalidArgument>([&] { expect_same_blocks(from, to); }, {"block_size", "is 32", "16"});
  to = from;
  to.layout.num_kv_heads = 1;
  nvl_test::expect_error<InvalidArgument>([&] { expect_same_blocks(from, to); }, {"KV heads", "is 1", "2"});
  to = from;
  to.layout.head_dim = 128;
  nvl_test::expect_error<InvalidArgument>([&] { expect_same_blocks(from, to); }, {"head_dim", "is 128", "64"});
}

}  // namespace kv_transfer_test
