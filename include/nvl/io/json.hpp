#pragma once
/// Strict JSON for files that nvl does not trust: bounded depth and memory, no duplicate keys, no numbers that lose their value.
///
/// Parsing is iterative, so depth costs no stack; limits are enforced while parsing, before anything is built.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/io/printable.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

namespace detail {

/// Forward iterator over a text that reports how far it was read, for the offset in messages.
class CountingIterator {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator() = default;
  CountingIterator(const char* position, const char** furthest) noexcept : position_(position), furthest_(furthest) {}

  reference operator*() const noexcept { return *position_; }
  CountingIterator& operator++() noexcept {
    *furthest_ = ++position_;
    return *this;
  }
  CountingIterator operator++(int) noexcept {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const noexcept { return position_ == other.position_; }

 private:
  const char* position_ = nullptr;
  const char** furthest_ = nullptr;
};

/// Builds a nlohmann::json from parser events. Every handler returns false to stop; `error()` then says why.
class JsonBuilder {
 public:
  using json = nlohmann::json;

  JsonBuilder(std::size_t max_depth, std::size_t max_bytes) : max_depth_(max_depth), max_bytes_(max_bytes) {}

  bool null() { return add(json(nullptr)); }
  bool boolean(bool value) { return add(json(value)); }
  bool number_integer(json::number_integer_t value) { return add(json(value)); }
  bool number_unsigned(json::number_unsigned_t value) { return add(json(value)); }
  bool number_float(json::number_float_t value, const std::string& text) {
    // The parser turns integers that 64 bits cannot hold into floats.
    if (text.find_first_of(".eE") == std::string::npos) { return stop("integer " + printable(text) + " does not fit 64 bits"); }
    if (!std::isfinite(value)) { return stop("number " + printable(text) + " is out of range"); }
    return add(json(value));
  }
  bool string(std::string& value) {
    if (!pay(value.size())) { return false; }
    return add(json(std::move(value)));
  }
  bool binary(json::binary_t&) { return stop("binary values are not JSON"); }

  bool start_object(std::size_t) { return open(json::object()); }
  bool end_object() { return close(); }
  bool start_array(std::size_t) { return open(json::array()); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    constexpr std::size_t map_node_bytes = 96;
    if (!pay(map_node_bytes + name.size())) { return false; }
    auto& members = open_.back()->get_ref<json::object_t&>();
    const auto [slot, inserted] = members.try_emplace(std::move(name));
    if (!inserted) { return stop("duplicate key " + in_quotes(slot->first)); }
    member_ = &slot->second;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." without the library's prefix
    const std::string_view text = error.what();
    const std::size_t prefix = text.find("] ");
    return stop(printable(prefix == std::string_view::npos ? text : text.substr(prefix + 2), 240));
  }

  const std::string& error() const noexcept { return error_; }
  json take() { return std::move(root_); }

 private:
  bool stop(std::string why) {
    if (error_.empty()) { error_ = std::move(why); }
    return false;
  }

  /// Counts what the value costs in memory, a little above what the heap really takes.
  bool pay(std::size_t bytes) {
    used_bytes_ += bytes;
    return used_bytes_ <= max_bytes_ ||
           stop("needs more than " + std::to_string(max_bytes_) + " bytes of memory: too many values for a file of this kind");
  }

  bool place(json&& value, json*& where) {
    constexpr std::size_t value_bytes = 48;
    if (!pay(value_bytes)) { return false; }
    if (open_.empty()) {
      root_ = std::move(value);
      where = &root_;
    } else if (open_.back()->is_array()) {
      auto& elements = open_.back()->get_ref<json::array_t&>();
      elements.push_back(std::move(value));
      where = &elements.back();
    } else {
      *member_ = std::move(value);
      where = member_;
    }
    return true;
  }

  bool add(json&& value) {
    json* where = nullptr;
    return place(std::move(value), where);
  }

  bool open(json&& container) {
    if (open_.size() >= max_depth_) { return stop("is nested deeper than " + std::to_string(max_depth_) + " levels"); }
    json* where = nullptr;
    if (!pay(sizeof(json::object_t)) || !place(std::move(container), where)) { return false; }
    // Containers on this stack stay where they are: a parent grows only after its open child was closed.
    open_.push_back(where);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  json root_;
  std::vector<json*> open_;
  json* member_ = nullptr;
  std::string error_;
  std::size_t max_depth_;
  std::size_t max_bytes_;
  std::size_t used_bytes_ = 0;
};

[[noreturn]] inline void fail_json(const std::string& path, std::string_view key, const std::string& value,
                                   const std::string& rule) {
  raise(FileError(path, std::string(key) + " is " + value + ": must be " + rule));
}

/// A value as a message shows it: scalars as they are, containers by their kind.
inline std::string describe(const nlohmann::json& value) {
  if (value.is_object()) { return "an object"; }
  if (value.is_array()) { return "an array"; }
  return printable(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

}  // namespace detail

namespace detail {

/// Where a string or another token of more than `limit` bytes begins in `text`, or npos. Need not be exact on invalid JSON.
inline std::size_t find_long_token(std::string_view text, std::size_t limit) {
  constexpr std::string_view separators = "[]{}:, \t\r\n";
  std::size_t begin = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (i - begin > limit) { return begin; }
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
        begin = i + 1;
      }
    } else if (c == '"') {
      in_string = true;
      begin = i;
    } else if (separators.find(c) != std::string_view::npos) {
      begin = i + 1;
    }
  }
  return std::string_view::npos;
}

}  // namespace detail

/// [bytes] of memory that a document may need unless the caller says otherwise. With what the parser itself needs for the
/// longest token, parsing stays below 64 MiB.
inline constexpr std::size_t default_json_memory = std::size_t{40} << 20;

/// Parses exactly one JSON value. `path` is only used in messages.
/// \throws FileError with the offset for anything that RFC 8259 does not allow, invalid UTF-8, duplicate keys, nesting beyond
///         `max_depth`, integers beyond 64 bits, floats beyond double, a document that needs more than `max_bytes` of memory, and
///         a single string or number of more than a tenth of that
inline nlohmann::json parse_json(std::string_view text, const std::string& path, std::size_t max_depth = 64,
                                 std::size_t max_bytes = default_json_memory) {
  // The parser keeps a token several times while it reads it, so this has to be known before.
  const std::size_t long_token = detail::find_long_token(text, max_bytes / 10);
  if (long_token != std::string_view::npos) {
    raise(FileError(path, long_token,
                    "invalid JSON: a string or number of more than " + std::to_string(max_bytes / 10) + " bytes"));
  }
  const char* furthest = text.data();
  detail::JsonBuilder builder(max_depth, max_bytes);
  const detail::CountingIterator first(text.data(), &furthest);
  const detail::CountingIterator last(text.data() + text.size(), &furthest);
  if (!nlohmann::json::sax_parse(first, last, &builder)) {
    const auto offset = static_cast<std::uint64_t>(furthest - text.data());
    raise(FileError(path, offset, "invalid JSON: " + builder.error()));
  }
  return builder.take();
}

/// The member `key` of an object, or nullptr if there is none or it is null.
inline const nlohmann::json* json_find(const nlohmann::json& object, std::string_view key) {
  if (!object.is_object()) { return nullptr; }
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Typed access. `name` is how messages call the value; the `json_optional_*` forms give nothing for a missing or null member,
// the others throw. All throw FileError naming key, value and rule when the member has another type or is out of range.

inline std::int64_t json_to_int(const nlohmann::json& value, std::string_view name, std::int64_t low, std::int64_t high,
                                const std::string& path) {
  // Written as an unsigned number only if it is not negative, so one that passes int64 is above every limit.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                     value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  const std::int64_t number = fits ? value.get<std::int64_t>() : 0;
  if (!fits || number < low || number > high) {
    detail::fail_json(path, name, detail::describe(value),
                      "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return number;
}

inline double json_to_float(const nlohmann::json& value, std::string_view name, double low, double high,
                            const std::string& path) {
  const double number = value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= low && number <= high)) {
    detail::fail_json(path, name, detail::describe(value),
                      "a number from " + detail::to_text(low) + " to " + detail::to_text(high));
  }
  return number;
}

inline bool json_to_bool(const nlohmann::json& value, std::string_view name, const std::string& path) {
  if (!value.is_boolean()) { detail::fail_json(path, name, detail::describe(value), "true or false"); }
  return value.get<bool>();
}

inline const std::string& json_to_string(const nlohmann::json& value, std::string_view name, const std::string& path) {
  if (!value.is_string()) { detail::fail_json(path, name, detail::describe(value), "a string"); }
  return value.get_ref<const std::string&>();
}

inline std::optional<std::int64_t> json_optional_int(const nlohmann::json& object, std::string_view key, std::int64_t low,
                                                     std::int64_t high, const std::string& path) {
  const nlohmann::json* const value = json_find(object, key);
  return value != nullptr ? std::optional(json_to_int(*value, key, low, high, path)) : std::nullopt;
}

inline std::optional<double> json_optional_float(const nlohmann::json& object, std::string_view key, double low, double high,
                                                 const std::string& path) {
  const nlohmann::json* const value = json_find(object, key);
  return value != nullptr ? std::optional(json_to_float(*value, key, low, high, path)) : std::nullopt;
}

inline std::optional<bool> json_optional_bool(const nlohmann::json& object, std::string_view key, const std::string& path) {
  const nlohmann::json* const value = json_find(object, key);
  return value != nullptr ? std::optional(json_to_bool(*value, key, path)) : std::nullopt;
}

inline std::optional<std::string> json_optional_string(const nlohmann::json& object, std::string_view key,
                                                       const std::string& path) {
  const nlohmann::json* const value = json_find(object, key);
  return value != nullptr ? std::optional(json_to_string(*value, key, path)) : std::nullopt;
}

/// The member `key`, which must be there and not null.
inline const nlohmann::json& json_at(const nlohmann::json& object, std::string_view key, const std::string& path) {
  const nlohmann::json* const value = json_find(object, key);
  if (value == nullptr) { detail::fail_json(path, key, "missing", "given"); }
  return *value;
}

inline std::int64_t json_int(const nlohmann::json& object, std::string_view key, std::int64_t low, std::int64_t high,
                             const std::string& path) {
  return json_to_int(json_at(object, key, path), key, low, high, path);
}

inline double json_float(const nlohmann::json& object, std::string_view key, double low, double high, const std::string& path) {
  return json_to_float(json_at(object, key, path), key, low, high, path);
}

inline bool json_bool(const nlohmann::json& object, std::string_view key, const std::string& path) {
  return json_to_bool(json_at(object, key, path), key, path);
}

inline const std::string& json_string(const nlohmann::json& object, std::string_view key, const std::string& path) {
  return json_to_string(json_at(object, key, path), key, path);
}

inline const nlohmann::json& json_object(const nlohmann::json& object, std::string_view key, const std::string& path) {
  const nlohmann::json& value = json_at(object, key, path);
  if (!value.is_object()) { detail::fail_json(path, key, detail::describe(value), "an object"); }
  return value;
}

inline const nlohmann::json& json_array(const nlohmann::json& object, std::string_view key, const std::string& path) {
  const nlohmann::json& value = json_at(object, key, path);
  if (!value.is_array()) { detail::fail_json(path, key, detail::describe(value), "an array"); }
  return value;
}

}  // namespace nvl::inline NVL_ABI
