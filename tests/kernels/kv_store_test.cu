#include "kernels/kv_store_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/slots.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/kv_store.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::KvLayout;
using nvl::SlotId;
using nvl_test::DeviceVector;

/// `kv` with the rows of K and V, [num_tokens, heads, head_dim], in their slots.
template <class T>
void store(std::vector<T>& kv, const KvLayout& layout, const std::vector<SlotId>& slots, const std::vector<T>& k,
           const std::vector<T>& v) {
  const auto d = static_cast<std::size_t>(layout.head_dim);
  for (std::size_t token = 0; token < slots.size(); ++token) {
    if (slots[token] == nvl::no_slot) { continue; }
    const std::int64_t block = slots[token] / layout.block_size;
    const auto offset = static_cast<std::int32_t>(slots[token] % layout.block_size);
    for (int head = 0; head < layout.num_kv_heads; ++head) {
      const auto row = static_cast<std::ptrdiff_t>((token * static_cast<std::size_t>(layout.num_kv_heads) + head) * d);
      std::copy_n(k.begin() + row, d, kv.begin() + layout.k_offset(block, head, offset));
      std::copy_n(v.begin() + row, d, kv.begin() + layout.v_offset(block, head, offset));
    }
  }
}

TEMPLATE_TEST_CASE("K and V come to their slots, and nothing else is written", "[kernel][gpu]", bf16, fp16, float) {
  using T = TestType;
  nvl_test::require_device();
  for (const nvl_test::KvStoreCase& c : nvl_test::kv_store_cases()) {
    if (c.num_tokens > 1503) { continue; }
    CAPTURE(c.num_tokens, c.num_kv_heads, c.head_dim, c.block_size, c.gap);
    const KvLayout layout = nvl_test::layout_for(c.num_tokens, c.block_size, c.num_kv_heads, c.head_dim);
    const std::vector<SlotId> slots = nvl_test::random_slots(c.num_tokens, layout, true, 1);
    const auto width = static_cast<std::size_t>(c.num_kv_heads * c.head_dim), stride = width + static_cast<std::size_t>(c.gap);
    const std::vector<T> k = nvl_test::random_values<T>(slots.size() * width, 2);
    const std::vector<T> v = nvl_test::random_values<T>(slots.size() * width, 3);
    const DeviceVector<T> device_k(nvl_test::spread_rows(k, width, stride)), device_v(nvl_test::spread_rows(v, width, stride));
    const DeviceVector<SlotId> device_slots(slots);
    DeviceVector<T> kv(static_cast<std::size_t>(layout.layer_elements()));
    nvl::kernels::launch_kv_store<T>({.k = device_k.data(),
                                      .v = device_v.data(),
                                      .slot_mapping = device_slots.data(),
                                      .layout = layout,
                                      .kv = kv.data(),
                                      .k_stride = static_cast<std::int64_t>(stride),
                                      .v_stride = static_cast<std::int64_t>(stride),
                                      .num_tokens = c.num_tokens},
                                     nullptr);
    std::vector<T> expected(kv.size(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
    store(expected, layout, slots, k, v);
    CHECK(nvl_test::same_values(kv.to_host(), expected));
  }
}

TEST_CASE("kv_store reaches slots beyond 2^31 elements of the cache", "[kernel][gpu]") {
  nvl_test::require_device();
  const KvLayout block{.num_blocks = 1, .block_size = 16, .num_kv_heads = 2, .head_dim = 128};
  KvLayout layout = block;
  layout.num_blocks = 1 << 20;
  const std::int64_t first = (1 << 18) + 7;  // times 8192 elements of a block: 2^31 and more
  const std::vector<bf16> k = nvl_test::random_values<bf16>(3 * 256, 2), v = nvl_test::random_values<bf16>(3 * 256, 3);
  const std::vector<SlotId> slots{15, 0, 6};
  std::vector<SlotId> far_slots;
  for (const SlotId slot : slots) { far_slots.push_back(first * 16 + slot); }
  const DeviceVector<bf16> device_k(k), device_v(v);
  const DeviceVector<SlotId> device_slots(far_slots);
  DeviceVector<bf16> device_block(static_cast<std::size_t>(block.layer_elements()));
  // Where the cache would begin if it were all there.
  const std::uintptr_t kv =
      reinterpret_cast<std::uintptr_t>(device_block.data()) - sizeof(bf16) * static_cast<std::uintptr_t>(first * 8192);
  nvl::kernels::launch_kv_store<bf16>({.k = device_k.data(),
                                       .v = device_v.data(),
                                       .slot_mapping = device_slots.data(),
                                       .layout = layout,
                                       .kv = reinterpret_cast<bf16*>(kv),
                                       .num_tokens = 3},
                                      nullptr);
  std::vector<bf16> expected(device_block.size(), static_cast<bf16>(std::numeric_limits<float>::quiet_NaN()));
  store(expected, block, slots, k, v);
  CHECK(nvl_test::same_values(device_block.to_host(), expected));
}

TEST_CASE("kv_store refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::KvStoreParams<bf16> p{.layout = {.num_blocks = 1, .block_size = 16, .num_kv_heads = 1, .head_dim = 12},
                                      .num_tokens = 1};
  CHECK_THROWS_AS(nvl::kernels::launch_kv_store(p, nullptr), nvl::InvalidArgument);
  p.layout.head_dim = 64;
  p.layout.block_size = 0;
  CHECK_THROWS_AS(nvl::kernels::launch_kv_store(p, nullptr), nvl::InvalidArgument);
  p.layout.block_size = 16;
  p.k_stride = 32;
  CHECK_THROWS_AS(nvl::kernels::launch_kv_store(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
