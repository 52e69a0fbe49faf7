#include <nvl/ops/cpu_ops.hpp>

#include <nvl/core/device_options.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/rope_table.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/kernels/reference/gated_activation.hpp>
#include <nvl/kernels/reference/linear.hpp>
#include <nvl/kernels/reference/merge_states.hpp>
#include <nvl/kernels/reference/rms_norm.hpp>
#include <nvl/kernels/reference/rope.hpp>
#include <nvl/ops/cpu_device.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>
#include <support/random_tensor.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace cpu_ops_test {

using namespace nvl;
using nvl_test::random_values;
using nvl_test::RandomTensor;

namespace {

template <class T>
bool equal_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("rms_norm and add_rms_norm equal the oracle, in place too, and treat rows apart", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  for (const std::int32_t n : {1, 15, 16, 17, 576}) {
    const CpuVector w = ops.load_vector(RandomTensor(DType::float32, {n}, 3).tensor());
    for (const std::int32_t rows : {0, 1, 5, 40}) {
      CAPTURE(n, rows);
      const auto size = static_cast<std::size_t>(n * rows);
      const double bound = n < 100 ? reference::max_nmse_of_few<TestType> : reference::max_nmse<TestType>;
      const std::vector<TestType> x = random_values<TestType>(size, 5);
      std::vector<TestType> out(size);
      ops.rms_norm(out.data(), x.data(), w, rows, 1e-5f);
      CHECK(reference::nmse(out, reference::rms_norm<TestType>(x, w.values, 1e-5)) <= bound);
      std::vector<TestType> in_place = x;
      ops.rms_norm(in_place.data(), in_place.data(), w, rows, 1e-5f);
      CHECK(equal_bits(in_place, out));
      if (rows > 0) {
        std::vector<TestType> last(static_cast<std::size_t>(n));
        ops.rms_norm(last.data(), x.data() + (rows - 1) * n, w, 1, 1e-5f);
        CHECK(std::memcmp(last.data(), out.data() + (rows - 1) * n, last.size() * sizeof(TestType)) == 0);
      }

      std::vector<TestType> residual = random_values<TestType>(size, 6);
      std::vector<TestType> expected_residual = residual;
      const std::vector<double> expected = reference::add_rms_norm<TestType>(expected_residual, x, w.values, 1e-5);
      std::vector<TestType> both = x;
      ops.add_rms_norm(both.data(), residual.data(), both.data(), w, rows, 1e-5f);
      CHECK(equal_bits(residual, expected_residual));
      CHECK(reference::nmse(both, expected) <= bound);
    }
  }
}

TEMPLATE_TEST_CASE("the gated activations equal the oracle", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
    for (const std::int32_t n : {1, 16, 33, 1536}) {
      for (const std::int32_t rows : {0, 1, 9}) {
        CAPTURE(static_cast<int>(activation), n, rows);
        const std::vector<TestType> gate_up = random_values<TestType>(static_cast<std::size_t>(2 * n * rows), 5, 3.0f);
        std::vector<TestType> out(static_cast<std::size_t>(n * rows));
        ops.gated_activation(out.data(), gate_up.data(), rows, n, activation);
        const double bound = n < 100 ? reference::max_nmse_of_few<TestType> : reference::max_nmse<TestType>;
        CHECK(reference::nmse(out, reference::gated_activation<TestType>(gate_up, static_cast<std::size_t>(n), activation)) <=
              bound);
      }
    }
  }
}

TEST_CASE("the activations hold at the ends of the number range, and NaN stays NaN", "[ops][host]") {
  CpuDevice device({.num_threads = 1});
  CpuOps<float> ops(device);
  const std::vector<float> gate_up{-1000.0f, -90.0f, 0.0f, 1000.0f, std::numeric_limits<float>::quiet_NaN(),
                                   1.0f,     1.0f,   1.0f, 1.0f,    1.0f};
  std::vector<float> out(5);
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
    ops.gated_activation(out.data(), gate_up.data(), 1, 5, activation);
    CHECK(std::abs(out[0]) < 1e-30f);
    CHECK(std::abs(out[1]) < 1e-30f);
    CHECK(out[2] == 0.0f);
    CHECK(out[3] == 1000.0f);
    CHECK(std::isnan(out[4]));
  }
}

TEMPLATE_TEST_CASE("embed returns the rows of the table, whatever its type", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  for (const DType type : {DType::float32, DType::bfloat16, DType::float16, DType::q4_0, DType::q4_1, DType::q8_0, DType::q6_k}) {
    CAPTURE(std::string(info(type).name));
    const RandomTensor tensor(type, {37, 256}, 3);
    const HostTensor* const part = &tensor.tensor();
    const CpuWeight<TestType> table = ops.load_weight(std::span(&part, 1));
    std::vector<TokenId> ids{0, 36, 15, 16, 17, 17, 5, 31, 32, 1, 2, 3};
    std::vector<TestType> out(ids.size() * 256);
    ops.embed(out.data(), ids, table);
    CHECK(reference::nmse(out, reference::embed<TokenId>(ids, tensor.floats(), 256)) <= reference::max_nmse<TestType>);
    for (const TokenId bad : {-1, 37}) {
      ids[3] = bad;
      nvl_test::expect_error<InvalidArgument>([&] { ops.embed(out.data(), ids, table); }, {std::to_string(bad), "0 to 36"});
    }
    ops.embed(out.data(), {}, table);
  }
}

TEMPLATE_TEST_CASE("qk_norm_rope_store rotates Q in place and puts K and V into their slots", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  for (const RotaryLayout rotary : {RotaryLayout::half, RotaryLayout::interleaved}) {
    for (const std::int32_t d : {16, 64, 80, 10}) {
      for (const bool with_norm : {false, true}) {
        CAPTURE(static_cast<int>(rotary), d, with_norm);
        constexpr std::int32_t q_heads = 6, kv_heads = 2, tokens = 21;
        const RopeConfig config{.theta = 10000.0, .layout = rotary};
        const RopeTable rope(config, d, 100);
        const std::vector<double> frequencies = rope_inverse_frequencies(config, d);
        const KvLayout layout{.num_blocks = 9, .block_size = 4, .num_kv_heads = kv_heads, .head_dim = d};
        const CpuVector q_norm = ops.load_vector(RandomTensor(DType::float32, {d}, 1).tensor());
        const CpuVector k_norm = ops.load_vector(RandomTensor(DType::float32, {d}, 2).tensor());
        constexpr std::int32_t heads = q_heads + 2 * kv_heads;
        std::vector<TestType> qkv = random_values<TestType>(static_cast<std::size_t>(tokens * heads * d), 3);
        const std::vector<TestType> before = qkv;
        std::vector<TestType> kv(static_cast<std::size_t>(layout.layer_elements()), static_cast<TestType>(99.0f));
        std::vector<std::int32_t> positions;
        std::vector<SlotId> slots;
        for (std::int32_t t = 0; t < tokens; ++t) {
          positions.push_back((t * 37) % 100);
          slots.push_back(t == 3 ? no_slot : (t * 5) % 36);
        }
        ops.qk_norm_rope_store({.qkv = qkv.data(),
                                .positions = positions,
                                .slot_mapping = slots,
                                .num_q_heads = q_heads,
                                .q_norm = with_norm ? &q_norm : nullptr,
                                .k_norm = with_norm ? &k_norm : nullptr,
                                .eps = 1e-6f,
                                .rope = &rope,
                                .layout = layout,
                                .kv = kv.data()});

        const auto ud = static_cast<std::size_t>(d);
        std::vector<TestType> rotated;  // all heads together: the measure is a mean
        std::vector<double> expected_rotated;
        const auto head_of = [&](const std::vector<TestType>& rows, std::int32_t t, std::int32_t h) {
          return std::span<const TestType>(rows).subspan(static_cast<std::size_t>((t * heads + h) * d), ud);
        };
        std::size_t stored = 0;
        for (std::int32_t t = 0; t < tokens; ++t) {
          for (std::int32_t h = 0; h < q_heads + kv_heads; ++h) {
            const bool is_q = h < q_heads;
            const std::vector<float> norm = !with_norm ? std::vector<float>{} : (is_q ? q_norm.values : k_norm.values);
            const std::vector<double> expected = reference::norm_and_rope<TestType>(
                head_of(before, t, h), norm, 1e-6, frequencies, 1.0, positions[static_cast<std::size_t>(t)], rotary);
            if (is_q) {
              const std::span<const TestType> head = head_of(qkv, t, h);
              rotated.insert(rotated.end(), head.begin(), head.end());
              expected_rotated.insert(expected_rotated.end(), expected.begin(), expected.end());
            } else if (slots[static_cast<std::size_t>(t)] != no_slot) {
              const SlotId slot = slots[static_cast<std::size_t>(t)];
              const auto at =
                  static_cast<std::size_t>(layout.k_offset(slot / 4, h - q_heads, static_cast<std::int32_t>(slot % 4)));
              rotated.insert(rotated.end(), kv.begin() + static_cast<std::ptrdiff_t>(at),
                             kv.begin() + static_cast<std::ptrdiff_t>(at + ud));
              expected_rotated.insert(expected_rotated.end(), expected.begin(), expected.end());
              const auto v_at =
                  static_cast<std::size_t>(layout.v_offset(slot / 4, h - q_heads, static_cast<std::int32_t>(slot % 4)));
              const std::span<const TestType> v = head_of(before, t, h + kv_heads);
              CHECK(std::memcmp(v.data(), kv.data() + v_at, ud * sizeof(TestType)) == 0);
              stored += 2 * ud;
            }
          }
        }
        CHECK(reference::nmse(rotated, expected_rotated) <= reference::max_nmse<TestType>);
        // Nothing but the slots was written, and the token without a slot is nowhere.
        std::size_t changed = 0;
        for (const TestType v : kv) { changed += static_cast<float>(v) != 99.0f ? 1 : 0; }
        CHECK(changed == stored);
      }
    }
  }
}

TEST_CASE("gather_rows and copy_blocks move exactly what they name, in every layer and in order", "[ops][host]") {
  CpuDevice device({.num_threads = 2});
  CpuOps<float> ops(device);
  const std::vector<float> x{0, 1, 10, 11, 20, 21};
  std::vector<float> rows(6);
  ops.gather_rows(rows.data(), x.data(), std::vector<std::int32_t>{2, 0, 2}, 2);
  CHECK(rows == std::vector<float>{20, 21, 0, 1, 20, 21});

  const KvLayout layout{.num_blocks = 4, .block_size = 2, .num_kv_heads = 1, .head_dim = 16};
  constexpr std::int32_t layers = 3;
  const auto block = static_cast<std::size_t>(layout.block_elements());
  std::vector<float> kv(static_cast<std::size_t>(layout.layer_elements()) * layers);
  for (std::size_t i = 0; i < kv.size(); ++i) { kv[i] = static_cast<float>(i / block); }  // layer * 4 + block
  // The second copy reads what the first wrote.
  ops.copy_blocks(kv.data(), layout, layers, std::vector<BlockCopy>{{BlockId{0}, BlockId{2}}, {BlockId{2}, BlockId{3}}});
  for (std::size_t i = 0; i < kv.size(); ++i) {
    const std::size_t layer = i / block / 4, b = i / block % 4;
    REQUIRE(kv[i] == static_cast<float>(layer * 4 + (b == 1 ? 1 : 0)));
  }
}

TEMPLATE_TEST_CASE("transfer_blocks moves exactly what it names, out and back in, in every layer", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  const KvLayout layout{.num_blocks = 5, .block_size = 2, .num_kv_heads = 1, .head_dim = 16};
  constexpr std::int32_t layers = 3;
  const auto block = static_cast<std::size_t>(layout.block_elements());
  const std::vector<TestType> before = random_values<TestType>(static_cast<std::size_t>(layout.layer_elements()) * layers, 3);
  std::vector<TestType> kv = before;
  CpuDevice::HostBuffer host_pool(device, 3 * layers * block * sizeof(TestType));
  auto* const host = host_pool.as<TestType>();
  const auto transfer = [](std::uint32_t on_device, std::uint32_t on_host) {
    return BlockTransfer{.device = BlockId{on_device}, .host = HostBlockId{on_host}};
  };
  const auto move = [&](const std::vector<BlockTransfer>& out, const std::vector<BlockTransfer>& in) {
    ops.transfer_blocks({.kv = kv.data(), .layout = layout, .num_layers = layers, .host = host, .out = out, .in = in});
  };
  move({transfer(4, 0), transfer(1, 2)}, {});
  CHECK(equal_bits(kv, before));
  const auto of_layer = [&](std::size_t layer, std::size_t b) { return before.data() + (layer * 5 + b) * block; };
  for (std::size_t layer = 0; layer < layers; ++layer) {
    CHECK(std::memcmp(host + layer * block, of_layer(layer, 4), block * sizeof(TestType)) == 0);
    CHECK(std::memcmp(host + (2 * layers + layer) * block, of_layer(layer, 1), block * sizeof(TestType)) == 0);
    for (std::size_t i = 0; i < block; ++i) { REQUIRE(static_cast<float>(host[(layers + layer) * block + i]) == 0.0f); }
  }
  // Into other blocks, and out of a third in the same call.
  move({transfer(3, 1)}, {transfer(0, 2), transfer(1, 0)});
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const std::size_t now_holds[] = {1, 4, 2, 3, 4};
    for (std::size_t b = 0; b < 5; ++b) {
      CHECK(std::memcmp(kv.data() + (layer * 5 + b) * block, of_layer(layer, now_holds[b]), block * sizeof(TestType)) == 0);
    }
    CHECK(std::memcmp(host + (layers + layer) * block, of_layer(layer, 3), block * sizeof(TestType)) == 0);
  }
}

TEMPLATE_TEST_CASE("merge_states equals the oracle, and a state without keys is not read", "[ops][host]", float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  constexpr std::int32_t heads = 3, dim = 40;
  constexpr float none = -std::numeric_limits<float>::infinity();
  const std::vector<std::int32_t> rows{4, 0, 3};  // of 5; rows 1 and 2 are left alone
  const std::size_t state = dim, row = heads * state;
  auto out = nvl_test::random_values<TestType>(5 * row, 1), other = nvl_test::random_values<TestType>(3 * row, 2);
  auto lse = nvl_test::random_values<float>(5 * heads, 3, 5.0f);
  auto other_lse = nvl_test::random_values<float>(3 * heads, 4, 5.0f);
  other_lse[1] = none;    // row 4, head 1
  lse[0] = none;          // row 0, head 0
  lse[3 * heads] = none;  // row 3, head 0: neither has keys
  other_lse[2 * heads] = none;
  const auto nan = static_cast<TestType>(std::numeric_limits<float>::quiet_NaN());
  std::fill_n(other.begin() + static_cast<std::ptrdiff_t>(state), dim, nan);
  std::fill_n(out.begin(), dim, nan);
  const auto before = out;
  const auto lse_before = lse;
  ops.merge_states({.out = out.data(),
                    .lse = lse.data(),
                    .other = other.data(),
                    .other_lse = other_lse.data(),
                    .rows = rows,
                    .num_heads = heads,
                    .head_dim = dim});
  std::vector<bool> touched(5, false);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    touched[static_cast<std::size_t>(rows[i])] = true;
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t to = static_cast<std::size_t>(rows[i]) * heads + h, from = i * heads + h;
      const auto expected =
          reference::merge_states(std::span<const TestType>(before).subspan(to * state, state), double{lse_before[to]},
                                  std::span<const TestType>(other).subspan(from * state, state), double{other_lse[from]});
      if (std::isinf(expected.lse)) {
        CHECK(lse[to] == none);
        continue;
      }
      CHECK(std::abs(lse[to] - expected.lse) < 1e-5);
      CHECK(reference::nmse(std::span<const TestType>(out).subspan(to * state, state), std::span<const double>(expected.out)) <=
            reference::max_nmse<TestType>);
    }
  }
  for (std::size_t r = 0; r < 5; ++r) {
    if (!touched[r]) { CHECK(std::memcmp(out.data() + r * row, before.data() + r * row, row * sizeof(TestType)) == 0); }
  }
}

TEMPLATE_TEST_CASE("copy_slots moves the K and V of the tokens that it names, between blocks of other sizes too", "[ops][host]",
                   float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  const KvLayout small{.num_blocks = 3, .block_size = 4, .num_kv_heads = 2, .head_dim = 8};
  const KvLayout large{.num_blocks = 2, .block_size = 16, .num_kv_heads = 2, .head_dim = 8};
  const auto from = nvl_test::random_values<TestType>(static_cast<std::size_t>(small.layer_elements()), 5);
  std::vector<TestType> to(static_cast<std::size_t>(large.layer_elements()), static_cast<TestType>(0.0f));
  const std::vector<SlotCopy> copies{{0, 31}, {11, 0}, {6, 17}};
  ops.copy_slots(to.data(), large, from.data(), small, copies);
  std::size_t num_written = 0;
  for (const TestType value : to) { num_written += static_cast<float>(value) != 0.0f ? 1 : 0; }
  CHECK(num_written == copies.size() * 2 * 2 * 8);
  for (const SlotCopy& copy : copies) {
    for (std::int32_t head = 0; head < 2; ++head) {
      const TestType* const k = from.data() + small.k_offset(copy.from / 4, head, static_cast<std::int32_t>(copy.from % 4));
      const TestType* const v = from.data() + small.v_offset(copy.from / 4, head, static_cast<std::int32_t>(copy.from % 4));
      CHECK(std::memcmp(k, to.data() + large.k_offset(copy.to / 16, head, static_cast<std::int32_t>(copy.to % 16)),
                        8 * sizeof(*k)) == 0);
      CHECK(std::memcmp(v, to.data() + large.v_offset(copy.to / 16, head, static_cast<std::int32_t>(copy.to % 16)),
                        8 * sizeof(*v)) == 0);
    }
  }
}

TEST_CASE("buffers of the device are zero, aligned and movable, and too much memory is a typed error", "[ops][host]") {
  CpuDevice device({.num_threads = 1});
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{5} << 20}) {
    CpuDevice::Buffer buffer(device, bytes);
    CHECK(buffer.size_bytes() == bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.as<float>()) % 64 == 0);
    const char* const data = buffer.as<char>();
    bool zero = true;
    for (std::size_t i = 0; i < bytes; ++i) { zero = zero && data[i] == 0; }
    CHECK(zero);
    CpuDevice::Buffer moved = std::move(buffer);
    CHECK(moved.as<char>() == data);
    CpuDevice::Buffer assigned;
    assigned = std::move(moved);
    CHECK(assigned.as<char>() == data);
  }
  CHECK(CpuDevice::Buffer(device, 0).as<char>() == nullptr);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  nvl_test::expect_error<OutOfMemory>([&] { CpuDevice::Buffer buffer(device, std::size_t{1} << 60); }, {"1152921504606846976"});
#endif
  nvl_test::expect_error<OutOfMemory>([&] { CpuDevice::Buffer buffer(device, ~std::size_t{0}); }, {"bytes cannot be allocated"});
  CHECK(CpuDevice::memory().budget_bytes > 0);
}

}  // namespace cpu_ops_test
