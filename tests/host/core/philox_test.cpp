#include <nvl/core/philox.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstdint>
#include <set>
#include <tuple>

namespace philox_test {

using namespace nvl;

TEST_CASE("Philox-4x32-10 gives the published known answers", "[core][host]") {
  // Random123 1.14, tests/kat_vectors, rows "philox4x32 10": all zero, all one, digits of pi.
  CHECK(philox4x32({{0, 0, 0, 0}}, 0) == PhiloxBlock{{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}});
  CHECK(philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~std::uint64_t{0}) ==
        PhiloxBlock{{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}});
  CHECK(philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0x299f31d0a4093822u) ==
        PhiloxBlock{{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}});
  static_assert(philox4x32({{0, 0, 0, 0}}, 0).word[0] == 0x6627e8d5u, "usable at compile time");
}

TEST_CASE("The open unit interval has neither end", "[core][host]") {
  CHECK(to_open_unit_interval(0, 0) == 0x1p-53);
  CHECK(to_open_unit_interval(~0u, ~0u) == 1.0 - 0x1p-53);
  CHECK(to_open_unit_interval(~0u, ~0u) < 1.0);
  CHECK(to_open_unit_interval(0x80000000u, 0) == 0.5 + 0x1p-53);
}

TEST_CASE("A uniform number depends on seed, choice, output index and n, each alone", "[core][host]") {
  std::set<double> values;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32, ~std::uint64_t{0}}) {
    for (std::uint32_t choice = 0; choice < 8; ++choice) {
      for (std::uint32_t index = 0; index < 8; ++index) {
        for (std::uint32_t n = 0; n < 8; ++n) {
          const double u = uniform(seed, choice, index, n);
          CHECK(u == uniform(seed, choice, index, n));
          values.insert(u);
        }
      }
    }
  }
  CHECK(values.size() == 4 * 8 * 8 * 8);
}

TEST_CASE("Uniform numbers of consecutive tokens have the moments of a uniform distribution", "[core][host]") {
  constexpr std::uint32_t count = 200000;
  double sum = 0, squares = 0, products = 0, last = 0.5;
  for (std::uint32_t i = 0; i < count; ++i) {
    const double u = uniform(7, 0, i) - 0.5;
    sum += u;
    squares += u * u;
    products += u * last;
    last = u;
  }
  // Five standard deviations: a right generator fails with probability below 1e-6 for some other seed; this seed is fixed.
  const double sigma = 5 / std::sqrt(double{count});
  CHECK(std::abs(sum / count) < sigma * std::sqrt(1.0 / 12));
  CHECK(std::abs(squares / count - 1.0 / 12) < sigma * std::sqrt(1.0 / 180));
  CHECK(std::abs(products / count) < sigma / 12);
}

}  // namespace philox_test
