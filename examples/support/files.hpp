#pragma once
/// Whole files and standard input as text, and token ids as text.

#include "support/options.hpp"

#include <nvl/core/ids.hpp>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace nvl_examples {

/// All bytes of `path`, "-" being standard input. \throws UsageError, one that holds more than `max_bytes` included
inline std::string read_text(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{1} << 30) {
  struct Close {
    void operator()(std::FILE* file) const noexcept {
      if (file != stdin) { std::fclose(file); }
    }
  };
  const auto fail = [&](const std::string& why) -> std::string { throw UsageError(path.string() + ": " + why); };
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) { return fail("is a directory, not a text file"); }
  const std::unique_ptr<std::FILE, Close> file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (!file) { return fail(std::strerror(errno)); }
  std::string text;
  std::vector<char> buffer(std::size_t{1} << 16);
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    text.append(buffer.data(), count);
    if (text.size() > max_bytes) { return fail("holds more than " + std::to_string(max_bytes) + " bytes"); }
  }
  if (std::ferror(file.get()) != 0) { return fail(std::strerror(errno)); }
  return text;
}

/// The lines of `text` without their ends; a last line without one counts too.
inline std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) { line.remove_suffix(1); }
    lines.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

/// Ids as people and programs write them: "1 2 3", "1,2,3", "[1, 2, 3]". `name` is what messages call the text.
inline std::vector<nvl::TokenId> parse_ids(std::string_view text, const std::string& name) {
  constexpr std::string_view separators = " \t\r\n,[]";
  std::vector<nvl::TokenId> ids;
  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(separators), text.size()));
    if (text.empty()) { return ids; }
    const std::string_view word = text.substr(0, text.find_first_of(separators));
    nvl::TokenId id = 0;
    const auto [stopped, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stopped != word.data() + word.size() || id < 0) {
      const std::string shown(word.substr(0, 40));
      throw UsageError(name + ": token " + std::to_string(ids.size() + 1) + " is \"" + shown + "\": must be an id from 0 to " +
                       std::to_string(std::numeric_limits<nvl::TokenId>::max()));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

/// "1 2 3", without a line end.
inline std::string ids_text(std::span<const nvl::TokenId> ids) {
  std::string text;
  text.reserve(ids.size() * 6);
  char digits[16];
  for (const nvl::TokenId id : ids) {
    if (!text.empty()) { text += ' '; }
    const auto [end, error] = std::to_chars(digits, digits + sizeof digits, id);
    text.append(digits, end);
  }
  return text;
}

}  // namespace nvl_examples
