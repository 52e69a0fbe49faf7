#include <nvl/core/simd.hpp>

#include <nvl/core/dtype.hpp>

#include <catch2/catch_test_macros.hpp>

#include <support/random_tensor.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace simd_test {

using namespace nvl;
using nvl_test::random_values;

namespace {

std::array<float, simd::lanes> lanes_of(const simd::f32x16& v) {
  std::array<float, simd::lanes> a;
  simd::store(a.data(), v);
  return a;
}

}  // namespace

TEST_CASE("exp is within two units in the last place from -87 to 88", "[core][simd][host]") {
  double worst = 0.0;
  for (float x = -87.0f; x < 88.0f; x += 0.0173f) {
    const double expected = std::exp(static_cast<double>(x));
    const double actual = static_cast<double>(lanes_of(simd::exp(simd::broadcast(x)))[7]);
    worst = std::max(worst, std::abs(actual - expected) / expected);
  }
  CHECK(worst < 2.0 * 0x1p-23);
}

TEST_CASE("exp of zero is one, of very negative numbers zero, of NaN NaN, and it never overflows", "[core][simd][host]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const auto exp_of = [](float x) { return lanes_of(simd::exp(simd::broadcast(x)))[0]; };
  CHECK(exp_of(0.0f) == 1.0f);
  CHECK(exp_of(-88.0f) == 0.0f);
  CHECK(exp_of(-1e30f) == 0.0f);
  CHECK(exp_of(-inf) == 0.0f);
  CHECK(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isfinite(exp_of(1000.0f)));
  CHECK(exp_of(1000.0f) > 1e38f);
}

TEST_CASE("arithmetic acts lane by lane", "[core][simd][host]") {
  const std::vector<float> a = random_values<float>(16, 1), b = random_values<float>(16, 2), c = random_values<float>(16, 3);
  const simd::f32x16 va = simd::load(a.data()), vb = simd::load(b.data()), vc = simd::load(c.data());
  for (std::size_t i = 0; i < 16; ++i) {
    CAPTURE(i);
    CHECK(lanes_of(va + vb)[i] == a[i] + b[i]);
    CHECK(lanes_of(va - vb)[i] == a[i] - b[i]);
    CHECK(lanes_of(va * vb)[i] == a[i] * b[i]);
    CHECK(lanes_of(va / vb)[i] == a[i] / b[i]);
    CHECK(lanes_of(simd::max(va, vb))[i] == std::max(a[i], b[i]));
    CHECK(lanes_of(simd::min(va, vb))[i] == std::min(a[i], b[i]));
    CHECK(lanes_of(simd::abs(va))[i] == std::abs(a[i]));
    CHECK(lanes_of(simd::fma(va, vb, vc))[i] == simd::fma(a[i], b[i], c[i]));
  }
  CHECK(lanes_of(simd::zero()) == std::array<float, 16>{});
}

TEST_CASE("horizontal sums and maxima cover every lane once", "[core][simd][host]") {
  simd::f32x16 v[simd::lanes];
  std::array<float, simd::lanes> expected{};
  for (int i = 0; i < simd::lanes; ++i) {
    std::array<float, simd::lanes> a;
    for (int j = 0; j < simd::lanes; ++j) {
      a[static_cast<std::size_t>(j)] = static_cast<float>((i * 37 + j * 11) % 101 - 50);  // integers: any order of sums is exact
      expected[static_cast<std::size_t>(i)] += a[static_cast<std::size_t>(j)];
    }
    v[i] = simd::load(a.data());
    CHECK(simd::sum(v[i]) == expected[static_cast<std::size_t>(i)]);
    CHECK(simd::horizontal_max(v[i]) == *std::max_element(a.begin(), a.end()));
  }
  CHECK(lanes_of(simd::sums(v)) == expected);
}

TEST_CASE("loads and stores of a part of a register touch nothing else", "[core][simd][host]") {
  for (int n = 0; n <= simd::lanes; ++n) {
    // Exactly n elements on the heap: a sanitizer sees any access behind them.
    const std::vector<float> source = random_values<float>(static_cast<std::size_t>(n), 4);
    std::vector<float> copy(static_cast<std::size_t>(n), 0.0f);
    const simd::f32x16 v = simd::load_first(source.data(), n);
    simd::store_first(copy.data(), v, n);
    CHECK(copy == source);
    for (int i = n; i < simd::lanes; ++i) { CHECK(lanes_of(v)[static_cast<std::size_t>(i)] == 0.0f); }
    const std::array<float, 16> chosen = lanes_of(simd::select_range(n / 2, n, simd::broadcast(1.0f), simd::broadcast(2.0f)));
    for (int i = 0; i < simd::lanes; ++i) { CHECK(chosen[static_cast<std::size_t>(i)] == (i >= n / 2 && i < n ? 1.0f : 2.0f)); }
  }
}

TEST_CASE("bf16 and fp16 convert as the scalar types do, NaN and infinity included", "[core][simd][host]") {
  std::mt19937 random(5);
  std::uniform_int_distribution<std::uint32_t> any;
  for (int round = 0; round < 20000; ++round) {
    std::array<float, 16> values;
    std::array<fp16, 16> halves;
    for (std::size_t i = 0; i < 16; ++i) {
      const std::uint32_t bits = any(random);
      std::memcpy(&values[i], &bits, 4);
      halves[i].bits = static_cast<std::uint16_t>(bits >> 7);
    }
    if (round == 0) { values = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1.00390625f, 1.01171875f, 3.4e38f}; }
    std::array<bf16, 16> stored;
    simd::store(stored.data(), simd::load(values.data()));
    const std::array<float, 16> widened = lanes_of(simd::load(stored.data())),
                                from_half = lanes_of(simd::load_fp16(halves.data()));
    for (std::size_t i = 0; i < 16; ++i) {
      const bf16 expected(values[i]);
      REQUIRE(stored[i].bits == expected.bits);
      REQUIRE((std::isnan(values[i]) ? std::isnan(widened[i]) : widened[i] == static_cast<float>(expected)));
      const float half = static_cast<float>(halves[i]);
      REQUIRE((std::isnan(half) ? std::isnan(from_half[i]) : from_half[i] == half));
    }
  }
}

TEST_CASE("bit operations take integers out of packed lanes", "[core][simd][host]") {
  std::array<std::uint32_t, 16> packed;
  for (std::size_t i = 0; i < 16; ++i) { packed[i] = 0x89abcdefu * static_cast<std::uint32_t>(i + 1); }
  for (unsigned shift = 0; shift < 32; shift += 4) {
    const std::array<float, 16> nibbles =
        lanes_of(simd::to_float(simd::bit_and(simd::shift_right(simd::load_u32(packed.data()), shift), 15u)));
    for (std::size_t i = 0; i < 16; ++i) { CHECK(nibbles[i] == static_cast<float>((packed[i] >> shift) & 15u)); }
  }
}

#if NVL_SIMD_INT_DOT
TEST_CASE("integer dot products are exact at the ends of their range", "[core][simd][host]") {
  std::mt19937 random(6);
  for (int round = 0; round < 200; ++round) {
    std::array<float, 32> x;
    for (float& v : x) {
      v = round == 0 ? 32512.0f : (round == 1 ? -32512.0f : static_cast<float>(static_cast<int>(random() % 65025) - 32512));
    }
    simd::IntBlock block;
    const std::int32_t sum = simd::round_to_block(simd::load(x.data()), simd::load(x.data() + 16), 1.0f, block);
    std::int32_t expected_sum = 0;
    for (const float v : x) { expected_sum += static_cast<std::int32_t>(v); }
    REQUIRE(sum == expected_sum);

    std::vector<std::uint8_t> bytes(8 * 64);
    for (std::uint8_t& b : bytes) { b = round < 2 ? 255 : static_cast<std::uint8_t>(random()); }
    const auto* const weights = reinterpret_cast<const std::byte*>(bytes.data());
    for (int part = 0; part < simd::parts; ++part) {
      const auto check = [&](simd::IntPart dot, auto&& weight_of) {
        for (int lane = 0; lane < simd::part_lanes; ++lane) {
          std::int32_t expected = 0;
          for (int k = 0; k < 32; ++k) {
            expected += weight_of(part * simd::part_lanes + lane, k) * static_cast<std::int32_t>(x[static_cast<std::size_t>(k)]);
          }
          REQUIRE(dot[lane] == expected);
        }
      };
      const std::byte* const first = weights + part * simd::part_lanes * 4;
      simd::dot_block<8, 1>(first, &block, 1, [&](int, simd::IntPart dot) {
        check(dot, [&](int lane, int k) { return std::int32_t{bytes[static_cast<std::size_t>(k / 4 * 64 + lane * 4 + k % 4)]}; });
      });
      simd::dot_block<4, 1>(first, &block, 1, [&](int, simd::IntPart dot) {
        check(dot, [&](int lane, int k) {
          const std::int32_t both = bytes[static_cast<std::size_t>(k / 8 * 64 + lane * 4 + k % 4)];
          return k % 8 < 4 ? both & 15 : both >> 4;
        });
      });
    }
  }
}
#endif

}  // namespace simd_test
