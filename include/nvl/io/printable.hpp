#pragma once
/// Text from files as error messages may show it: one line, plain ASCII, bounded length.

#include <nvl/core/config.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace nvl::inline NVL_ABI::detail {

/// `text` with every byte outside printable ASCII shown as '?', cut after `max_bytes`.
inline std::string printable(std::string_view text, std::size_t max_bytes = 160) {
  std::string result;
  for (const char c : text.substr(0, max_bytes)) { result += c >= 0x20 && c <= 0x7e ? c : '?'; }
  return text.size() > max_bytes ? result + "..." : result;
}

/// printable() in double quotes.
inline std::string in_quotes(std::string_view text, std::size_t max_bytes = 160) {
  return '"' + printable(text, max_bytes) + '"';
}

}  // namespace nvl::inline NVL_ABI::detail
