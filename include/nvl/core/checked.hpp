#pragma once
/// Integer arithmetic that reports overflow instead of wrapping. Every size computed from a file or a request goes through here.

#include <nvl/core/config.hpp>

#include <concepts>
#include <optional>

namespace nvl::inline NVL_ABI {

/// a + b, or nothing if T cannot hold it.
template <std::integral T>
constexpr std::optional<T> checked_add(T a, T b) noexcept {
  T result{};
  if (__builtin_add_overflow(a, b, &result)) { return std::nullopt; }
  return result;
}

/// a * b, or nothing if T cannot hold it.
template <std::integral T>
constexpr std::optional<T> checked_mul(T a, T b) noexcept {
  T result{};
  if (__builtin_mul_overflow(a, b, &result)) { return std::nullopt; }
  return result;
}

/// The smallest multiple of `alignment` (> 0) that is not below `value`, or nothing if T cannot hold it.
template <std::unsigned_integral T>
constexpr std::optional<T> checked_align_up(T value, T alignment) noexcept {
  const T rest = value % alignment;
  return rest == 0 ? std::optional<T>(value) : checked_add<T>(value, alignment - rest);
}

/// ceil(a / b) without the overflow of (a + b - 1) / b.
template <std::integral T>
NVL_HOST_DEVICE constexpr T ceil_div(T a, T b) noexcept {
  return a / b + (a % b != 0 ? T{1} : T{0});
}

}  // namespace nvl::inline NVL_ABI
