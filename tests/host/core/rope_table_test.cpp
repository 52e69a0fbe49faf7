#include <nvl/core/rope_table.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

namespace rope_table_test {

using namespace nvl;

namespace {
constexpr double two_pi = 2.0 * std::numbers::pi;
}

TEST_CASE("without scaling, pair i turns by theta^(-2i/d) radians a position", "[core][rope][host]") {
  const RopeConfig config{.theta = 10000.0};
  const std::vector<double> f = rope_inverse_frequencies(config, 8);
  REQUIRE(f.size() == 4);
  CHECK(f[0] == Catch::Approx(1.0));
  CHECK(f[1] == Catch::Approx(0.1));
  CHECK(f[2] == Catch::Approx(0.01));
  CHECK(f[3] == Catch::Approx(0.001));

  const RopeTable table(config, 8, 5000);
  CHECK(table.head_dim() == 8);
  CHECK(table.num_positions() == 5000);
  for (const std::int32_t p : {0, 1, 17, 4999}) {
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(table.cos(p)[i] == static_cast<float>(std::cos(p * f[i])));
      CHECK(table.sin(p)[i] == static_cast<float>(std::sin(p * f[i])));
    }
  }
}

TEST_CASE("linear scaling divides every frequency by the factor", "[core][rope][host]") {
  const std::vector<double> plain = rope_inverse_frequencies({.theta = 500000.0}, 64);
  const std::vector<double> scaled =
      rope_inverse_frequencies({.theta = 500000.0, .scaling = RopeScaling::linear, .factor = 4.0}, 64);
  for (std::size_t i = 0; i < plain.size(); ++i) { CHECK(scaled[i] == Catch::Approx(plain[i] / 4.0)); }
}

TEST_CASE("llama3 scaling keeps short waves, stretches long ones and blends between", "[core][rope][host]") {
  const RopeConfig config{.theta = 500000.0,
                          .scaling = RopeScaling::llama3,
                          .factor = 8.0,
                          .low_freq_factor = 1.0,
                          .high_freq_factor = 4.0,
                          .original_max_positions = 8192};
  const std::vector<double> plain = rope_inverse_frequencies({.theta = 500000.0}, 128);
  const std::vector<double> scaled = rope_inverse_frequencies(config, 128);
  int kept = 0, stretched = 0, blended = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = two_pi / plain[i];
    CAPTURE(i, wavelength);
    if (wavelength < 8192.0 / 4.0) {
      CHECK(scaled[i] == plain[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      CHECK(scaled[i] == Catch::Approx(plain[i] / 8.0));
      ++stretched;
    } else {
      const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
      CHECK(scaled[i] == Catch::Approx(plain[i] * ((1.0 - smooth) / 8.0 + smooth)));
      ++blended;
    }
  }
  CHECK(kept > 0);
  CHECK(stretched > 0);
  CHECK(blended > 0);
}

TEST_CASE("yarn blends from kept to stretched between the pairs that turn beta_fast and beta_slow times", "[core][rope][host]") {
  // Qwen2.5's published setting. The correction range, by hand: dim ln(L / (beta 2 pi)) / (2 ln theta).
  RopeConfig config{.theta = 1000000.0, .scaling = RopeScaling::yarn, .factor = 4.0, .original_max_positions = 32768};
  const double dim = 128.0;
  const auto pair_of = [&](double beta) { return dim * std::log(32768.0 / (beta * two_pi)) / (2.0 * std::log(1000000.0)); };
  const double low = std::floor(pair_of(32.0));
  const double high = std::ceil(pair_of(1.0));
  REQUIRE(low == 23.0);
  REQUIRE(high == 40.0);
  const std::vector<double> plain = rope_inverse_frequencies({.theta = 1000000.0}, 128);
  const std::vector<double> scaled = rope_inverse_frequencies(config, 128);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CAPTURE(i);
    if (static_cast<double>(i) <= low) {
      CHECK(scaled[i] == Catch::Approx(plain[i]));
    } else if (static_cast<double>(i) >= high) {
      CHECK(scaled[i] == Catch::Approx(plain[i] / 4.0));
    } else {
      const double ramp = (static_cast<double>(i) - low) / (high - low);
      CHECK(scaled[i] == Catch::Approx(plain[i] * (ramp / 4.0 + 1.0 - ramp)));
    }
  }

  CHECK(rope_magnitude(config) == Catch::Approx(0.1 * std::log(4.0) + 1.0));
  config.attention_factor = 0.75;
  CHECK(rope_magnitude(config) == 0.75);
  const RopeTable table(config, 128, 3);
  CHECK(table.cos(0)[0] == 0.75f);

  config.truncate = false;
  const std::vector<double> exact = rope_inverse_frequencies(config, 128);
  const double ramp = (30.0 - pair_of(32.0)) / (pair_of(1.0) - pair_of(32.0));
  CHECK(exact[30] == Catch::Approx(plain[30] * (ramp / 4.0 + 1.0 - ramp)));
}

TEST_CASE("frequency factors divide the frequencies after any scaling", "[core][rope][host]") {
  RopeConfig config{.theta = 100.0, .scaling = RopeScaling::linear, .factor = 2.0};
  config.freq_factors = {1.0f, 2.0f};
  const std::vector<double> f = rope_inverse_frequencies(config, 4);
  CHECK(f[0] == Catch::Approx(0.5));
  CHECK(f[1] == Catch::Approx(0.1 / 2.0 / 2.0));
  nvl_test::expect_error<InvalidArgument>([&] { rope_inverse_frequencies(config, 8); }, {"frequency factors", "2", "4"});
}

TEST_CASE("a table of no positions or of an odd head is refused", "[core][rope][host]") {
  nvl_test::expect_error<InvalidArgument>([] { RopeTable(RopeConfig{}, 8, 0); }, {"positions", "0"});
  nvl_test::expect_error<InvalidArgument>([] { RopeTable(RopeConfig{}, 7, 10); }, {"head_dim", "7", "even"});
}

}  // namespace rope_table_test
