#pragma once
/// The CPU as a device: a thread pool and host memory.

#include <nvl/core/aligned_buffer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/thread_pool.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace nvl::inline NVL_ABI {

class CpuDevice {
 public:
  static constexpr std::string_view name = "cpu";

  /// Zeroed, aligned to 64 bytes.
  class Buffer {
   public:
    Buffer() = default;
    /// \throws OutOfMemory
    Buffer(CpuDevice&, std::size_t num_bytes) : bytes_(num_bytes) {}
    template <class T>
    T* as() noexcept {
      return bytes_.as<T>();
    }
    std::size_t size_bytes() const noexcept { return bytes_.size_bytes(); }

   private:
    AlignedBuffer bytes_;
  };

  using HostBuffer = Buffer;

  /// \throws InvalidArgument for a number of threads out of range; OutOfMemory if a thread cannot be started.
  explicit CpuDevice(const DeviceOptions& options = {}) : threads_(options.num_threads) {}

  ThreadPool& threads() noexcept { return threads_; }

  /// A quarter of the host's memory, for the KV cache: what is free now says little where a page cache fills the rest. An
  /// eighth of the address space where the system does not tell.
  static DeviceMemory memory(const DeviceOptions& = {}) noexcept {
#if defined(__linux__) && defined(_SC_PHYS_PAGES)
    const long pages = ::sysconf(_SC_PHYS_PAGES);
    const long page_bytes = ::sysconf(_SC_PAGESIZE);
    if (pages > 0 && page_bytes > 0) { return {.budget_bytes = std::int64_t{pages} * page_bytes / 4, .is_for_kv_only = true}; }
#endif
    return {.budget_bytes = std::numeric_limits<std::int64_t>::max() / 8, .is_for_kv_only = true};
  }

 private:
  ThreadPool threads_;
};

}  // namespace nvl::inline NVL_ABI
