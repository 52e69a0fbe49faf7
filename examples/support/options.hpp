#pragma once
/// The option parser that all programs share: names, values, environment twins, --help and error messages.
///
/// CLI11 splits the command line (in options.cpp, which alone includes it); values are converted here, so that every message
/// has the form of the library's own: `--top-k is "many": must be an integer from -2147483648 to 2147483647`.

#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl_examples {

/// Something is wrong with the command line, the environment or a file that they name. One line.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A number of bytes as people write it: digits, then nothing, K, M, G or T (powers of 1024).
struct ByteCount {
  std::int64_t value = 0;
};

namespace detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

[[noreturn]] inline void fail_value(std::string_view name, std::string_view text, const std::string& rule) {
  throw UsageError(std::string(name) + " is \"" + std::string(text) + "\": must be " + rule);
}

std::int64_t parse_byte_count(std::string_view name, const std::string& text);

/// Sets `value` from the text that `name` was given. \throws UsageError
template <class T>
void convert(std::string_view name, const std::string& text, T& value) {
  if constexpr (is_optional<T>) {
    convert(name, text, value.emplace());
  } else if constexpr (is_vector<T>) {
    convert(name, text, value.emplace_back());
  } else if constexpr (std::same_as<T, std::string> || std::same_as<T, std::filesystem::path>) {
    value = text;
  } else if constexpr (std::same_as<T, ByteCount>) {
    value.value = parse_byte_count(name, text);
  } else if constexpr (std::same_as<T, bool>) {
    const auto is_one_of = [&](std::initializer_list<std::string_view> words) {
      for (const std::string_view word : words) {
        if (text == word) { return true; }
      }
      return false;
    };
    if (is_one_of({"1", "true", "on", "yes"})) {
      value = true;
    } else if (is_one_of({"0", "false", "off", "no"})) {
      value = false;
    } else {
      fail_value(name, text, "true or false");
    }
  } else {
    static_assert(std::is_arithmetic_v<T>, "nvl_examples: an option holds text, a path, a switch or a number");
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, value);
    bool ok = error == std::errc() && stopped == end;
    if constexpr (std::is_floating_point_v<T>) {
      if (ok) { ok = std::isfinite(value); }
      if (!ok) { fail_value(name, text, "a number"); }
    } else if (!ok) {
      fail_value(name, text,
                 "an integer from " + std::to_string(std::numeric_limits<T>::min()) + " to " +
                     std::to_string(std::numeric_limits<T>::max()));
    }
  }
}

}  // namespace detail

/// Declares the options of one program (or of one of its commands), then reads them from the command line and, where it is
/// silent, from the environment: `--max-tokens` is NVL_MAX_TOKENS there.
class OptionParser {
 public:
  /// \param program its name in messages. \param about one sentence, shown by --help
  OptionParser(std::string program, std::string about);
  OptionParser(const OptionParser&) = delete;
  OptionParser& operator=(const OptionParser&) = delete;
  ~OptionParser();

  /// Options that are added next stand under this title in --help.
  void group(std::string title);

  /// \param names "-m,--model": the first long one is the main one, the others are aliases. "-dp,--data-parallel-size" too: one dash
  ///              and several letters, for options that people know so
  /// \param metavar what --help calls the value
  /// \param value keeps what it holds unless the option is given. An optional is empty without it; a vector takes the option
  ///              as often as it comes; of any other the last one counts.
  template <class T>
  void option(const std::string& names, T& value, std::string metavar, std::string help) {
    add(names, std::move(metavar), std::move(help), detail::is_vector<T>,
        [&value](std::string_view name, const std::string& text) { detail::convert(name, text, value); });
  }

  /// An option without a value.
  void flag(const std::string& names, bool& value, std::string help) {
    add(names, {}, std::move(help), false,
        [&value](std::string_view name, const std::string& text) { detail::convert(name, text, value); });
  }

  /// A command of the program, with options of its own. The program then needs one. `this` owns it.
  OptionParser& command(std::string name, std::string about);
  /// Name of the command that was given, once `parse` is through.
  const std::string& chosen_command() const noexcept;

  /// Text under the options in --help.
  void footer(std::string text);

  /// False if all is done: --help or --version was given and answered on standard output. \throws UsageError
  bool parse(int argc, const char* const* argv);

  std::string help() const;

 private:
  using Setter = std::function<void(std::string_view name, const std::string& text)>;
  struct Impl;
  explicit OptionParser(std::unique_ptr<Impl> impl);
  void add(const std::string& names, std::string metavar, std::string help, bool repeatable, Setter setter);

  std::unique_ptr<Impl> impl_;
};

/// `text` as one line that a terminal takes: line breaks become blanks.
std::string one_line(std::string_view text);

/// Calls `body()`, which returns the exit status. What it throws becomes one line on standard error, "<program>: error: ...",
/// and status 1; so does output that could not be written.
int run_program(const std::string& program, const std::function<int()>& body);

}  // namespace nvl_examples
