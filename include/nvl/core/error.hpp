#pragma once
/// The exceptions of nvl, and the one place that throws them.
///
/// Expected outcomes (no free block, nothing to schedule) are return values and never come here. Misuse and failures throw a
/// type below, whose message names the field, the value found and the rule that it breaks.

#include <nvl/core/config.hpp>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Base of everything that nvl throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A parameter, option or policy argument is out of its range. Nothing was changed.
class InvalidArgument : public Error {
 public:
  InvalidArgument(std::string field, std::string value, std::string rule)
      : Error(field + " is " + value + ": must be " + rule),
        field_(std::move(field)),
        value_(std::move(value)),
        rule_(std::move(rule)) {}

  const std::string& field() const noexcept { return field_; }
  const std::string& value() const noexcept { return value_; }
  const std::string& rule() const noexcept { return rule_; }

 private:
  std::string field_, value_, rule_;
};

/// A file cannot be read or breaks its format. Names the file and, where it is known, the byte offset.
class FileError : public Error {
 public:
  static constexpr std::uint64_t no_offset = ~std::uint64_t{0};

  FileError(std::string path, std::uint64_t offset, const std::string& what)
      : Error(path + (offset == no_offset ? std::string() : " (offset " + std::to_string(offset) + ")") + ": " + what),
        path_(std::move(path)),
        offset_(offset) {}
  FileError(std::string path, const std::string& what) : FileError(std::move(path), no_offset, what) {}

  const std::string& path() const noexcept { return path_; }
  std::uint64_t offset() const noexcept { return offset_; }  ///< [bytes] from the start of the file, or no_offset

 private:
  std::string path_;
  std::uint64_t offset_;
};

/// Well-formed, but outside what nvl does; the message lists what it does do.
class Unsupported : public Error {
 public:
  using Error::Error;
};

/// The memory that the options ask for is not there. The message holds the arithmetic.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

/// A CUDA call or kernel failed. After some of them (an illegal address, say) every later call of the process fails as well.
class CudaError : public Error {
 public:
  /// `code` is the cudaError_t or cublasStatus_t, `call` what failed, `what` the library's own words.
  CudaError(int code, const std::string& call, const std::string& what)
      : Error(call + " failed: " + what + " (" + std::to_string(code) + ")"),
        code_(code) {}

  int code() const noexcept { return code_; }

 private:
  int code_;
};

/// Every throw of nvl passes here. A host built with -fno-exceptions defines NVL_ERROR_HANDLER, a callable that takes the
/// `const nvl::Error&` and does not return.
template <class E>
[[noreturn]] void raise(E&& error) {
  static_assert(std::is_base_of_v<Error, std::remove_cvref_t<E>>, "nvl::raise takes an nvl::Error");
#if defined(NVL_ERROR_HANDLER)
  NVL_ERROR_HANDLER(static_cast<const Error&>(error));
  std::abort();
#elif defined(__cpp_exceptions)
  throw std::forward<E>(error);
#else
  static_cast<void>(error);
  std::abort();
#endif
}

/// Calls `work()`; if it throws, calls `on_error(message)` instead of letting the exception out.
template <class Work, class OnError>
void contain(Work&& work, OnError&& on_error) {
#if defined(__cpp_exceptions)
  try {
    std::forward<Work>(work)();
  } catch (const std::exception& error) { std::forward<OnError>(on_error)(error.what()); } catch (...) {
    std::forward<OnError>(on_error)("an exception that is not a std::exception");
  }
#else
  static_cast<void>(on_error);
  std::forward<Work>(work)();
#endif
}

namespace detail {

/// Text of a value in a message. Bytes print as numbers and bools as words.
template <class T>
std::string to_text(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    return "\"" + std::string(std::string_view(value)) + "\"";
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<std::underlying_type_t<T>>(value));
  } else if constexpr (std::is_integral_v<T>) {
    return std::to_string(value);
  } else {
    std::ostringstream out;
    out << value;
    return out.str();
  }
}

}  // namespace detail

/// Throws InvalidArgument "<field> is <value>: must be <rule>" unless `condition` holds.
#define NVL_EXPECTS(condition, field, value, rule)                                                                           \
  do {                                                                                                                       \
    if (!(condition)) [[unlikely]] { ::nvl::raise(::nvl::InvalidArgument((field), ::nvl::detail::to_text(value), (rule))); } \
  } while (false)

}  // namespace nvl::inline NVL_ABI
