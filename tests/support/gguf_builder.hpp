#pragma once
/// Writes GGUF files, right ones and, on demand, wrong ones: every field can be overridden.

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nvl_test {

/// The bytes of `value` as they lie in memory (little-endian).
template <class T>
std::string raw(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

inline std::string gguf_string(std::string_view text) { return raw(std::uint64_t{text.size()}) + std::string(text); }

/// The type code of a C++ type in GGUF metadata.
template <class T>
constexpr std::uint32_t gguf_type_of() {
  if constexpr (std::is_same_v<T, std::uint8_t>) { return 0; }
  if constexpr (std::is_same_v<T, std::int8_t>) { return 1; }
  if constexpr (std::is_same_v<T, std::uint16_t>) { return 2; }
  if constexpr (std::is_same_v<T, std::int16_t>) { return 3; }
  if constexpr (std::is_same_v<T, std::uint32_t>) { return 4; }
  if constexpr (std::is_same_v<T, std::int32_t>) { return 5; }
  if constexpr (std::is_same_v<T, float>) { return 6; }
  if constexpr (std::is_same_v<T, bool>) { return 7; }
  if constexpr (std::is_same_v<T, std::uint64_t>) { return 10; }
  if constexpr (std::is_same_v<T, std::int64_t>) { return 11; }
  if constexpr (std::is_same_v<T, double>) { return 12; }
}

struct GgufBuilder {
  struct Entry {
    std::string key;
    std::uint32_t type = 0;
    std::string payload;                          // what follows the type
    std::optional<std::uint64_t> key_bytes = {};  // instead of the key's length
  };

  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;  // as in the file: innermost first
    std::uint32_t type = 0;
    std::string data;
    std::optional<std::uint64_t> offset = {};      // instead of where the data really go
    std::optional<std::uint32_t> num_dims = {};    // instead of dims.size()
    std::optional<std::uint64_t> name_bytes = {};  // instead of the name's length
  };

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::optional<std::uint64_t> num_tensors;
  std::optional<std::uint64_t> num_entries;
  std::vector<Entry> entries;
  std::vector<Tensor> tensors;
  std::uint64_t alignment = 32;  // of the data; the metadata key is the caller's
  std::string tail;              // behind everything

  template <class T>
  GgufBuilder& set(const std::string& key, T value) {
    return set_raw(key, gguf_type_of<T>(), raw(value));
  }
  GgufBuilder& set_string(const std::string& key, std::string_view value) { return set_raw(key, 8, gguf_string(value)); }

  template <class T>
  GgufBuilder& set_array(const std::string& key, const std::vector<T>& values) {
    std::string payload = raw(gguf_type_of<T>()) + raw(std::uint64_t{values.size()});
    for (const T value : values) { payload += raw(value); }
    return set_raw(key, 9, payload);
  }
  GgufBuilder& set_string_array(const std::string& key, const std::vector<std::string>& values) {
    std::string payload = raw(std::uint32_t{8}) + raw(std::uint64_t{values.size()});
    for (const std::string& value : values) { payload += gguf_string(value); }
    return set_raw(key, 9, payload);
  }

  /// Replaces an entry of this key, or adds one.
  GgufBuilder& set_raw(const std::string& key, std::uint32_t type, std::string payload) {
    for (Entry& entry : entries) {
      if (entry.key == key) {
        entry = {key, type, std::move(payload)};
        return *this;
      }
    }
    entries.push_back({key, type, std::move(payload)});
    return *this;
  }

  GgufBuilder& erase(const std::string& key) {
    std::erase_if(entries, [&](const Entry& entry) { return entry.key == key; });
    return *this;
  }

  GgufBuilder& add_tensor(std::string name, std::vector<std::uint64_t> dims, std::uint32_t type, std::string data) {
    tensors.push_back({std::move(name), std::move(dims), type, std::move(data)});
    return *this;
  }

  Tensor& tensor(std::string_view name) {
    for (Tensor& t : tensors) {
      if (t.name == name) { return t; }
    }
    throw std::runtime_error("no tensor " + std::string(name));
  }

  std::string build() const {
    std::string out =
        magic + raw(version) + raw(num_tensors.value_or(tensors.size())) + raw(num_entries.value_or(entries.size()));
    for (const Entry& entry : entries) {
      out += raw(entry.key_bytes.value_or(entry.key.size())) + entry.key + raw(entry.type) + entry.payload;
    }
    std::string data;
    for (const Tensor& t : tensors) {
      data.append((alignment - data.size() % alignment) % alignment, '\0');
      out += raw(t.name_bytes.value_or(t.name.size())) + t.name;
      out += raw(t.num_dims.value_or(static_cast<std::uint32_t>(t.dims.size())));
      for (const std::uint64_t extent : t.dims) { out += raw(extent); }
      out += raw(t.type) + raw(t.offset.value_or(data.size()));
      data += t.data;
    }
    if (!tensors.empty()) { out.append((alignment - out.size() % alignment) % alignment, '\0'); }
    return out + data + tail;
  }
};

}  // namespace nvl_test
