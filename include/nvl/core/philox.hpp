#pragma once
/// Counter-based random numbers: a number is a pure function of a key and a counter, so there is no state to carry, and a
/// result cannot depend on what was drawn before it or beside it.
/// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox-4x32-10).

#include <nvl/core/config.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

/// One Philox-4x32 block: the counter that goes in, or the random words that come out.
struct PhiloxBlock {
  std::uint32_t word[4] = {0, 0, 0, 0};
  friend constexpr bool operator==(const PhiloxBlock&, const PhiloxBlock&) noexcept = default;
};

/// Philox-4x32 with 10 rounds. `key` holds the first key word of the paper in its low half.
NVL_HOST_DEVICE constexpr PhiloxBlock philox4x32(PhiloxBlock counter, std::uint64_t key) noexcept {
  constexpr std::uint64_t multiplier0 = 0xD2511F53u;
  constexpr std::uint64_t multiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t weyl0 = 0x9E3779B9u;  // golden ratio
  constexpr std::uint32_t weyl1 = 0xBB67AE85u;  // sqrt(3) - 1
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  PhiloxBlock c = counter;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = multiplier0 * c.word[0];
    const std::uint64_t product1 = multiplier1 * c.word[2];
    const auto high0 = static_cast<std::uint32_t>(product0 >> 32);
    const auto high1 = static_cast<std::uint32_t>(product1 >> 32);
    c = {{high1 ^ c.word[1] ^ key0, static_cast<std::uint32_t>(product1),  //
          high0 ^ c.word[3] ^ key1, static_cast<std::uint32_t>(product0)}};
    key0 += weyl0;
    key1 += weyl1;
  }
  return c;
}

/// The middle of one of 2^52 equal parts of (0, 1), chosen by 64 random bits: never 0 and never 1, so its logarithm is finite.
NVL_HOST_DEVICE constexpr double to_open_unit_interval(std::uint32_t high, std::uint32_t low) noexcept {
  const std::uint64_t part = ((std::uint64_t{high} << 32) | low) >> 12;
  return (static_cast<double>(part) + 0.5) * 0x1p-52;
}

/// The `n`-th uniform number in (0, 1) for the token at `output_index` of choice `choice` of a request seeded with `seed`.
/// The fourth word of the counter is 0 here; a later use that needs numbers of its own takes another value.
NVL_HOST_DEVICE constexpr double uniform(std::uint64_t seed, std::uint32_t choice, std::uint32_t output_index,
                                         std::uint32_t n = 0) noexcept {
  const PhiloxBlock r = philox4x32({{n, output_index, choice, 0}}, seed);
  return to_open_unit_interval(r.word[0], r.word[1]);
}

}  // namespace nvl::inline NVL_ABI
