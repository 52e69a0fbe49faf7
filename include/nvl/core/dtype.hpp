#pragma once
/// Element types: their names and sizes at run time, and host storage types for bf16 and fp16.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nvl::inline NVL_ABI {

/// bfloat16 in memory: the upper half of a float. Arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN.
  explicit constexpr bf16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(is_nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit constexpr operator float() const noexcept { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

/// IEEE binary16 in memory. Arithmetic is done in float.
struct fp16 {
  std::uint16_t bits = 0;

  fp16() = default;
  /// Rounds to nearest, ties to even; overflow gives infinity.
  explicit constexpr fp16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
    const std::uint32_t mag = u & 0x7fffffffu;
    std::uint32_t half = 0;
    if (mag > 0x7f800000u) {
      half = 0x7e00u;  // NaN
    } else if (mag >= 0x477ff000u) {
      half = 0x7c00u;                 // rounds to infinity
    } else if (mag >= 0x38800000u) {  // normal: rebias the exponent by 112, round the 13 bits that go
      const std::uint32_t rebased = mag - 0x38000000u;
      half = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
    } else if (mag >= 0x33000000u) {  // subnormal: shift the mantissa with its hidden bit into place
      const std::uint32_t shift = 126u - (mag >> 23);
      const std::uint32_t mantissa = (mag & 0x7fffffu) | 0x800000u;
      const std::uint32_t low = mantissa & ((1u << shift) - 1u);
      const std::uint32_t tie = 1u << (shift - 1u);
      half = mantissa >> shift;
      half += (low > tie || (low == tie && (half & 1u))) ? 1u : 0u;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  explicit constexpr operator float() const noexcept {
    const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0x1fu) { return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13)); }
    if (exponent != 0) { return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13)); }
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
};

/// What a tensor's bytes mean. Block-quantised types hold `dtype_block_elements` consecutive elements of a row in one block of
/// `dtype_block_bytes`; their layouts are those of GGUF.
enum class DType : std::uint8_t {
  float32,
  float16,
  bfloat16,
  int8,
  int32,
  int64,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k
};

struct DTypeInfo {
  DType type;
  std::string_view name;
  std::uint32_t block_elements;  // elements of one block; 1 for plain types
  std::uint32_t block_bytes;
};

/// The one table of element types.
inline constexpr std::array<DTypeInfo, 14> dtype_table{{
    {DType::float32, "float32", 1, 4},
    {DType::float16, "float16", 1, 2},
    {DType::bfloat16, "bfloat16", 1, 2},
    {DType::int8, "int8", 1, 1},
    {DType::int32, "int32", 1, 4},
    {DType::int64, "int64", 1, 8},
    {DType::q4_0, "Q4_0", 32, 18},
    {DType::q4_1, "Q4_1", 32, 20},
    {DType::q5_0, "Q5_0", 32, 22},
    {DType::q5_1, "Q5_1", 32, 24},
    {DType::q8_0, "Q8_0", 32, 34},
    {DType::q4_k, "Q4_K", 256, 144},
    {DType::q5_k, "Q5_K", 256, 176},
    {DType::q6_k, "Q6_K", 256, 210},
}};

constexpr const DTypeInfo& info(DType type) noexcept { return dtype_table[static_cast<std::size_t>(type)]; }
constexpr bool is_quantized(DType type) noexcept { return info(type).block_elements > 1; }

constexpr std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (const DTypeInfo& row : dtype_table) {
    if (row.name == name) { return row.type; }
  }
  return std::nullopt;
}

/// DType of a host storage type.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::float32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bfloat16;
};
template <>
struct DTypeOf<fp16> {
  static constexpr DType value = DType::float16;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

}  // namespace nvl::inline NVL_ABI
