#pragma once
/// Owned host memory: zeroed, aligned for vector loads, with large pages asked for where they help.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nvl::inline NVL_ABI {

/// Bytes that read as zero. Pages that nobody touches take no memory, so a large KV cache costs what is used of it.
class AlignedBuffer {
 public:
  static constexpr std::size_t alignment = 64;  // [bytes] one cache line, one AVX-512 register

  AlignedBuffer() = default;

  /// \throws OutOfMemory when the system refuses.
  explicit AlignedBuffer(std::size_t num_bytes) {
    if (num_bytes == 0) { return; }
    const std::size_t wanted_alignment = num_bytes >= huge_page ? huge_page : alignment;
    const auto with_slack = checked_add(num_bytes, wanted_alignment);
    // calloc, not aligned_alloc: the system's pages are zero already and stay untouched.
    raw_ = with_slack ? std::calloc(*with_slack, 1) : nullptr;
    if (raw_ == nullptr) { raise(OutOfMemory("host memory: " + std::to_string(num_bytes) + " bytes cannot be allocated")); }
    const auto address = reinterpret_cast<std::uintptr_t>(raw_);
    data_ = static_cast<std::byte*>(raw_) + ((address + wanted_alignment - 1) / wanted_alignment * wanted_alignment - address);
    num_bytes_ = num_bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Streaming through weights misses the TLB every 4 KiB otherwise. Advice only: refusal changes nothing.
    if (num_bytes >= huge_page) { static_cast<void>(::madvise(data_, num_bytes / huge_page * huge_page, MADV_HUGEPAGE)); }
#endif
  }

  AlignedBuffer(AlignedBuffer&& other) noexcept
      : raw_(std::exchange(other.raw_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(raw_, other.raw_);
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }
  ~AlignedBuffer() { std::free(raw_); }

  std::byte* data() noexcept { return data_; }
  const std::byte* data() const noexcept { return data_; }
  std::size_t size_bytes() const noexcept { return num_bytes_; }

  /// The bytes as an array of T, an implicit-lifetime type.
  template <class T>
  T* as() noexcept {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const noexcept {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  static constexpr std::size_t huge_page = std::size_t{1} << 21;

  void* raw_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

}  // namespace nvl::inline NVL_ABI
