#pragma once
/// A bounded little-endian reader: every length is compared with the bytes that are left before it is used.

#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace nvl::inline NVL_ABI {

static_assert(std::endian::native == std::endian::little, "nvl reads GGUF and safetensors on little-endian machines only");

/// Walks over bytes that it does not own. Errors name the file, the offset and what was being read.
class ByteCursor {
 public:
  /// `path` must outlive the cursor; it is used in messages only.
  ByteCursor(std::span<const std::byte> bytes, const std::string& path) noexcept : bytes_(bytes), path_(&path) {}

  std::uint64_t offset() const noexcept { return offset_; }                     ///< [bytes] from the start
  std::uint64_t remaining() const noexcept { return bytes_.size() - offset_; }  ///< [bytes]

  const std::byte* here() const noexcept { return bytes_.data() + offset_; }  ///< what is read next

  template <class T>
    requires std::is_arithmetic_v<T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::span<const std::byte> take(std::uint64_t size, std::string_view what) {
    if (size > remaining()) {
      fail(std::string(what) + " needs " + std::to_string(size) + " bytes, but only " + std::to_string(remaining()) +
           " are left");
    }
    const auto result = bytes_.subspan(offset_, size);
    offset_ += size;
    return result;
  }

  /// `count` items of at least `item_bytes` each must still fit; throws before anything is allocated for them.
  void require_items(std::uint64_t count, std::uint64_t item_bytes, std::string_view what) const {
    if (count > remaining() / item_bytes) {
      fail(std::string(what) + " is " + std::to_string(count) + ": must be at most " + std::to_string(remaining() / item_bytes) +
           ", which is all that the " + std::to_string(remaining()) + " bytes left can hold");
    }
  }

  [[noreturn]] void fail(const std::string& what) const { raise(FileError(*path_, offset_, what)); }
  [[noreturn]] void fail_at(std::uint64_t offset, const std::string& what) const { raise(FileError(*path_, offset, what)); }

 private:
  std::span<const std::byte> bytes_;
  const std::string* path_;
  std::uint64_t offset_ = 0;
};

}  // namespace nvl::inline NVL_ABI
