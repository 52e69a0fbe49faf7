#include "kernels/qk_norm_rope_store_cases.hpp"
#include "support/device.cuh"
#include "support/random_tensor.hpp"
#include "support/slots.hpp"
#include "support/strided_rows.hpp"

#include <nvl/kernels/qk_norm_rope_store.cuh>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/rope.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace {

using nvl::bf16;
using nvl::fp16;
using nvl::KvLayout;
using nvl::RopeConfig;
using nvl::RopeTable;
using nvl::RotaryLayout;
using nvl::SlotId;
using nvl_test::DeviceVector;
using nvl_test::QkNormRopeStoreCase;
using nvl_test::to_floats;

constexpr int num_positions = 600;
constexpr float eps = 1e-6f;

/// One call with everything it needs.
template <class T>
class Call {
 public:
  Call(const QkNormRopeStoreCase& c, RotaryLayout rotary)
      : config{.theta = 1e6, .layout = rotary},
        layout(nvl_test::layout_for(c.num_tokens, c.block_size, c.num_kv_heads, c.head_dim)),
        d(static_cast<std::size_t>(c.head_dim)),
        num_heads(static_cast<std::size_t>(c.num_q_heads + 2 * c.num_kv_heads)),
        stride(num_heads * d + static_cast<std::size_t>(c.gap)),
        slots(nvl_test::random_slots(c.num_tokens, layout, true, 1)),
        qkv(nvl_test::random_values<T>(slots.size() * num_heads * d, 2)),
        q_norm(nvl_test::random_values<T>(d, 3)),
        k_norm(nvl_test::random_values<T>(d, 4)),
        case_(c),
        table_(config, c.head_dim, num_positions),
        frequencies_(nvl::rope_inverse_frequencies(config, c.head_dim)),
        device_kv(static_cast<std::size_t>(layout.layer_elements())) {
    std::mt19937 random(5);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      positions.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(num_positions)));
    }
    device_qkv = DeviceVector<T>(nvl_test::spread_rows(qkv, num_heads * d, stride));
  }

  void launch() {
    const DeviceVector<float> cos_sin(nvl::kernels::pack_rope_table(table_));
    const DeviceVector<std::int32_t> device_positions(positions);
    const DeviceVector<SlotId> device_slots(slots);
    const DeviceVector<T> device_q_norm(q_norm), device_k_norm(k_norm);
    nvl::kernels::launch_qk_norm_rope_store<T>({.qkv = device_qkv.data(),
                                                .positions = device_positions.data(),
                                                .slot_mapping = device_slots.data(),
                                                .q_norm = case_.norm ? device_q_norm.data() : nullptr,
                                                .k_norm = case_.norm ? device_k_norm.data() : nullptr,
                                                .rope = nvl::kernels::device_rope_table(table_, cos_sin.data()),
                                                .layout = layout,
                                                .kv = device_kv.data(),
                                                .row_stride = static_cast<std::int64_t>(stride),
                                                .num_q_heads = case_.num_q_heads,
                                                .num_tokens = case_.num_tokens,
                                                .eps = eps,
                                                .indices_ready = case_.gap != 0},
                                               nullptr);
    NVL_CUDA_CHECK(cudaDeviceSynchronize());
  }

  /// Head `head` of `token` as the oracle has it: normalised and rotated.
  std::vector<double> rotated(std::size_t token, std::size_t head) const {
    const bool is_q = head < static_cast<std::size_t>(case_.num_q_heads);
    const std::vector<float> norm = case_.norm ? to_floats(is_q ? q_norm : k_norm) : std::vector<float>{};
    return nvl::reference::norm_and_rope(std::span<const T>(qkv).subspan((token * num_heads + head) * d, d), norm, double{eps},
                                         frequencies_, 1.0, static_cast<double>(positions[token]), config.layout);
  }

  RopeConfig config;
  KvLayout layout;
  std::size_t d, num_heads, stride;
  std::vector<SlotId> slots;
  std::vector<std::int32_t> positions;
  std::vector<T> qkv, q_norm, k_norm;

 private:
  QkNormRopeStoreCase case_;
  RopeTable table_;
  std::vector<double> frequencies_;

 public:
  DeviceVector<T> device_qkv, device_kv;
};

template <class T>
void check_case(const QkNormRopeStoreCase& c, RotaryLayout rotary) {
  CAPTURE(c.num_tokens, c.num_q_heads, c.num_kv_heads, c.head_dim, c.block_size, c.norm, c.gap, static_cast<int>(rotary));
  Call<T> call(c, rotary);
  call.launch();
  const std::size_t d = call.d, num_q = static_cast<std::size_t>(c.num_q_heads),
                    num_kv = static_cast<std::size_t>(c.num_kv_heads);
  const std::vector<T> row_after = nvl_test::dense_rows(call.device_qkv.to_host(), call.num_heads * d, call.stride);
  std::vector<T> kv = call.device_kv.to_host();

  std::vector<T> q, k;
  std::vector<double> expected_q, expected_k;
  bool rest_untouched = true, v_stored = true;
  for (std::size_t token = 0; token < call.slots.size(); ++token) {
    const auto row = [&](const std::vector<T>& rows, std::size_t head) {
      const auto at = rows.begin() + static_cast<std::ptrdiff_t>((token * call.num_heads + head) * d);
      return std::vector<T>(at, at + static_cast<std::ptrdiff_t>(d));
    };
    for (std::size_t head = 0; head < call.num_heads; ++head) {
      const std::vector<T> after = row(row_after, head);
      if (head < num_q) {
        const std::vector<double> expected = call.rotated(token, head);
        q.insert(q.end(), after.begin(), after.end());
        expected_q.insert(expected_q.end(), expected.begin(), expected.end());
        continue;
      }
      rest_untouched = rest_untouched && nvl_test::same_values(after, row(call.qkv, head));
      const SlotId slot = call.slots[token];
      if (slot == nvl::no_slot) { continue; }
      const bool is_k = head < num_q + num_kv;
      const auto kv_head = static_cast<std::int32_t>(head - num_q - (is_k ? 0 : num_kv));
      const auto block = slot / c.block_size;
      const auto offset = static_cast<std::int32_t>(slot % c.block_size);
      const auto at =
          kv.begin() + (is_k ? call.layout.k_offset(block, kv_head, offset) : call.layout.v_offset(block, kv_head, offset));
      const std::vector<T> stored(at, at + static_cast<std::ptrdiff_t>(d));
      if (is_k) {
        const std::vector<double> expected = call.rotated(token, head);
        k.insert(k.end(), stored.begin(), stored.end());
        expected_k.insert(expected_k.end(), expected.begin(), expected.end());
      } else {
        v_stored = v_stored && nvl_test::same_values(stored, row(call.qkv, head));
      }
      std::fill(at, at + static_cast<std::ptrdiff_t>(d), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
    }
  }
  const auto bound = [](std::size_t size) {
    return size < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>;
  };
  CHECK(nvl::reference::nmse(q, expected_q) <= bound(q.size()));
  CHECK(nvl::reference::nmse(k, expected_k) <= bound(k.size()));
  CHECK(v_stored);
  CHECK(rest_untouched);
  // What the tokens' slots held is NaN again; so must be everything else.
  CHECK(std::all_of(kv.begin(), kv.end(), [](const T& x) { return std::isnan(static_cast<float>(x)); }));
}

TEMPLATE_TEST_CASE("Q is rotated in place, K and V come to their slots", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const RotaryLayout rotary : {RotaryLayout::half, RotaryLayout::interleaved}) {
    for (const QkNormRopeStoreCase& c : nvl_test::qk_norm_rope_store_cases()) {
      if (c.num_tokens <= 300 && !(c.timed && c.num_tokens > 8)) { check_case<TestType>(c, rotary); }
    }
  }
}

TEST_CASE("a token's Q, K and V are the same bits whatever tokens are beside it", "[kernel][gpu]") {
  nvl_test::require_device();
  const QkNormRopeStoreCase many{700, 16, 8, 128, 16, true};
  Call<bf16> all(many, RotaryLayout::half);
  QkNormRopeStoreCase few = many;
  few.num_tokens = 3;
  Call<bf16> alone(few, RotaryLayout::half);
  alone.layout = all.layout;
  alone.device_kv = DeviceVector<bf16>(all.device_kv.size());
  const auto first = [&](auto values, std::size_t size) { return values.resize(size), values; };
  alone.slots = first(all.slots, 3);
  alone.positions = first(all.positions, 3);
  alone.qkv = first(all.qkv, 3 * all.stride);
  alone.device_qkv = DeviceVector<bf16>(alone.qkv);
  all.launch();
  alone.launch();
  CHECK(to_floats(first(all.device_qkv.to_host(), alone.qkv.size())) == to_floats(alone.device_qkv.to_host()));
  const std::vector<bf16> cache = all.device_kv.to_host(), cache_alone = alone.device_kv.to_host();
  bool same = true;
  for (std::size_t i = 0; i < cache.size(); ++i) {
    const auto x = static_cast<float>(cache_alone[i]);
    same = same && (std::isnan(x) || x == static_cast<float>(cache[i]));
  }
  CHECK(same);
}

TEST_CASE("qk_norm_rope_store reaches slots beyond 2^31 elements of the cache", "[kernel][gpu]") {
  nvl_test::require_device();
  const QkNormRopeStoreCase c{3, 2, 2, 128, 16, true};
  Call<bf16> near(c, RotaryLayout::half), far(c, RotaryLayout::half);
  near.slots = {15, 0, 6};
  const std::int64_t first = (1 << 18) + 7;  // times 8192 elements of a block: 2^31 and more
  near.launch();
  // Where the cache would begin if it were all there.
  const std::uintptr_t kv =
      reinterpret_cast<std::uintptr_t>(far.device_kv.data()) - sizeof(bf16) * static_cast<std::uintptr_t>(first * 8192);
  const RopeTable table(far.config, c.head_dim, num_positions);
  const DeviceVector<float> cos_sin(nvl::kernels::pack_rope_table(table));
  const DeviceVector<std::int32_t> positions(far.positions);
  const DeviceVector<SlotId> slots(std::vector<SlotId>{first * 16 + 15, first * 16, first * 16 + 6});
  const DeviceVector<bf16> q_norm(far.q_norm), k_norm(far.k_norm);
  far.layout.num_blocks = 1 << 20;
  nvl::kernels::launch_qk_norm_rope_store<bf16>({.qkv = far.device_qkv.data(),
                                                 .positions = positions.data(),
                                                 .slot_mapping = slots.data(),
                                                 .q_norm = q_norm.data(),
                                                 .k_norm = k_norm.data(),
                                                 .rope = nvl::kernels::device_rope_table(table, cos_sin.data()),
                                                 .layout = far.layout,
                                                 .kv = reinterpret_cast<bf16*>(kv),
                                                 .num_q_heads = c.num_q_heads,
                                                 .num_tokens = c.num_tokens,
                                                 .eps = eps},
                                                nullptr);
  CHECK(nvl_test::same_values(far.device_kv.to_host(), near.device_kv.to_host()));
}

TEST_CASE("qk_norm_rope_store refuses shapes it does not do", "[kernel][gpu]") {
  nvl_test::require_device();
  nvl::kernels::QkNormRopeStoreParams<bf16> p{.rope = {.num_positions = 1, .head_dim = 64},
                                              .layout = {.num_blocks = 1, .block_size = 16, .num_kv_heads = 1, .head_dim = 64},
                                              .num_tokens = 1};
  CHECK_THROWS_AS(nvl::kernels::launch_qk_norm_rope_store(p, nullptr), nvl::InvalidArgument);  // no Q heads
  p.num_q_heads = 2;
  p.rope.head_dim = 128;
  CHECK_THROWS_AS(nvl::kernels::launch_qk_norm_rope_store(p, nullptr), nvl::InvalidArgument);
  p.rope.head_dim = p.layout.head_dim = 72;
  CHECK_THROWS_AS(nvl::kernels::launch_qk_norm_rope_store(p, nullptr), nvl::InvalidArgument);
}

}  // namespace
