#pragma once
/// Python's random.Random(seed), for loads that are defined by a Python script. Same integers, bit for bit.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace nvl_bench {

/// random.seed(int), getrandbits and randint of CPython 3.2 or later: the Mersenne Twister MT19937 (Matsumoto, Nishimura 1998),
/// seeded by its init_by_array with the 32-bit digits of the seed.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint64_t seed) {
    const std::array<std::uint32_t, 2> digits{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
    const std::size_t num_digits = digits[1] != 0 ? 2 : 1;
    state_[0] = 19650218u;
    for (std::uint32_t i = 1; i < size; ++i) { state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i; }
    std::uint32_t i = 1;
    const auto advance = [&] {
      if (++i == size) {
        state_[0] = state_[size - 1];
        i = 1;
      }
    };
    for (std::uint32_t k = 0; k < size; ++k) {
      const std::uint32_t j = k % static_cast<std::uint32_t>(num_digits);
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1664525u)) + digits[j] + j;
      advance();
    }
    for (std::uint32_t k = 0; k < size - 1; ++k) {
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1566083941u)) - i;
      advance();
    }
    state_[0] = 0x80000000u;
  }

  /// `bits` random bits, 1 to 32.
  std::uint32_t getrandbits(int bits) { return next() >> (32 - bits); }

  /// A number from `low` to `high`, both included. \throws std::invalid_argument if there is none, or more than 2^32 - 1
  std::int64_t randint(std::int64_t low, std::int64_t high) {
    const std::int64_t width = high - low + 1;
    if (width < 1 || width > 0xffffffff) {
      throw std::invalid_argument("randint(" + std::to_string(low) + ", " + std::to_string(high) + ")");
    }
    const int bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(width)));
    std::int64_t value = getrandbits(bits);
    while (value >= width) { value = getrandbits(bits); }
    return low + value;
  }

 private:
  static constexpr std::uint32_t size = 624, shift = 397;

  std::uint32_t next() {
    if (used_ == size) { twist(); }
    std::uint32_t y = state_[used_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

  void twist() {
    for (std::uint32_t i = 0; i < size; ++i) {
      const std::uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % size] & 0x7fffffffu);
      state_[i] = state_[(i + shift) % size] ^ (y >> 1) ^ ((y & 1u) != 0 ? 0x9908b0dfu : 0u);
    }
    used_ = 0;
  }

  std::array<std::uint32_t, size> state_{};
  std::uint32_t used_ = size;
};

}  // namespace nvl_bench
