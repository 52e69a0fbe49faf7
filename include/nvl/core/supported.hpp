#pragma once
/// The one list of head dimensions that attention is compiled for, and the dispatch over it.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

inline constexpr std::array<std::int32_t, 7> supported_head_dims{16, 32, 64, 80, 96, 128, 256};

constexpr bool is_supported_head_dim(std::int32_t head_dim) noexcept {
  for (const std::int32_t d : supported_head_dims) {
    if (d == head_dim) { return true; }
  }
  return false;
}

/// "16, 32, 64, ...": for messages.
inline std::string supported_head_dims_text() {
  std::string text;
  for (const std::int32_t d : supported_head_dims) { text += (text.empty() ? "" : ", ") + std::to_string(d); }
  return text;
}

/// Calls `f(std::integral_constant<std::int32_t, d>{})` with the `d` of the list that equals `head_dim`.
/// \throws InvalidArgument with the list if none does.
template <class F>
void dispatch_head_dim(std::int32_t head_dim, F&& f) {
  const bool found = [&]<std::size_t... kIdx>(std::index_sequence<kIdx...>) {
    return ((supported_head_dims[kIdx] == head_dim ? (f(std::integral_constant<std::int32_t, supported_head_dims[kIdx]>{}), true)
                                                   : false) ||
            ...);
  }(std::make_index_sequence<supported_head_dims.size()>{});
  NVL_EXPECTS(found, "head_dim", head_dim, "one of those compiled in: " + supported_head_dims_text());
}

}  // namespace nvl::inline NVL_ABI
