#pragma once
/// Owned host memory: zeroed, aligned for vector loads, with large pages asked for where they help.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
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

/// Pieces of a few large buffers. Matrices of less than a large page each would lie in small pages otherwise, and whoever
/// streams through them would wait for the TLB. A piece keeps its buffer alive, the arena need not live.
class BufferArena {
 public:
  struct Piece {
    std::shared_ptr<AlignedBuffer> buffer;
    std::byte* data = nullptr;  // aligned as AlignedBuffer is; zero
    std::size_t num_bytes = 0;
  };

  /// \param buffer_bytes of each buffer; memory that no piece touches costs nothing
  explicit BufferArena(std::size_t buffer_bytes = std::size_t{32} << 20) : buffer_bytes_(buffer_bytes) {}

  /// \throws OutOfMemory
  Piece allocate(std::size_t num_bytes) {
    if (num_bytes == 0) { return {}; }
    if (buffer_ == nullptr || buffer_->size_bytes() - used_ < num_bytes) {
      buffer_ = std::make_shared<AlignedBuffer>(std::max(num_bytes, buffer_bytes_));
      used_ = 0;
    }
    Piece piece{.buffer = buffer_, .data = buffer_->data() + used_, .num_bytes = num_bytes};
    used_ = std::min(buffer_->size_bytes(),
                     (used_ + num_bytes + AlignedBuffer::alignment - 1) / AlignedBuffer::alignment * AlignedBuffer::alignment);
    return piece;
  }

 private:
  std::size_t buffer_bytes_;
  std::shared_ptr<AlignedBuffer> buffer_;  // the last one
  std::size_t used_ = 0;                   // [bytes] of it
};

}  // namespace nvl::inline NVL_ABI
