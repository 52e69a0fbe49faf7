#pragma once
/// KvTransfer between caches in the memory of CUDA devices, which may be one device or two that reach each other.

#include <nvl/attention/kv_transfer.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/cache_copy.cuh>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/ops/cuda_device.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

/// The receiving device reads: a kernel of few blocks in the device's copy stream, beside its steps. It starts behind the steps
/// that were launched before: one of them may still write for a sequence whose blocks these were.
template <class T>
class CudaKvTransfer {
 public:
  using Element = T;
  using Device = CudaDevice;

  /// \throws Unsupported if `to_device` cannot read the memory of `from_device`
  CudaKvTransfer(CudaDevice& from_device, const KvCache<T>& from, CudaDevice& to_device, const KvCache<T>& to)
      : from_device_(from_device),
        device_(to_device),
        from_(from),
        to_(to) {
    expect_same_blocks(from, to);
    enable_peer_access(to_device.options().ordinal, from_device.options().ordinal);
  }

  CudaKvTransfer(const CudaKvTransfer&) = delete;
  CudaKvTransfer& operator=(const CudaKvTransfer&) = delete;

  ~CudaKvTransfer() {
    if (device_.has_hung() || from_device_.has_hung()) {
      for (Copy& copy : under_way_) { copy.list.abandon(); }
      for (PinnedBuffer& list : free_lists_) { list.abandon(); }
      return;
    }
    static_cast<void>(cudaSetDevice(device_.options().ordinal));
    static_cast<void>(cudaStreamSynchronize(device_.copy_stream()));
  }

  void start(std::span<const BlockCopy> copies) {
    device_.make_current();
    Begun begun(under_way_);
    Copy& copy = begun.copy;
    copy.list = list_for(copies.size_bytes());
    if (!copies.empty()) { std::memcpy(copy.list.data(), copies.data(), copies.size_bytes()); }
    const cudaStream_t stream = device_.copy_stream();
    copy.done.record(device_.stream());
    NVL_CUDA_CHECK(cudaStreamWaitEvent(stream, copy.done.get(), 0));
    kernels::launch_cache_copy<T>({.to = to_.kv,
                                   .from = from_.kv,
                                   .to_layout = to_.layout,
                                   .from_layout = from_.layout,
                                   .num_layers = to_.num_layers,
                                   .copies = reinterpret_cast<const BlockCopy*>(copy.list.data()),
                                   .num_copies = static_cast<int>(copies.size())},
                                  stream);
    copy.done.record(stream);
    begun.succeeded = true;
  }

  std::uint64_t num_done() {
    device_.make_current();
    while (!under_way_.empty()) {
      const cudaError_t status = cudaEventQuery(under_way_.front().done.get());
      if (status == cudaErrorNotReady) { break; }
      kernels::detail::check_cuda(status, "a transfer of K and V");
      free_lists_.push_back(std::move(under_way_.front().list));
      under_way_.pop_front();
      ++num_done_;
    }
    return num_done_;
  }

 private:
  struct Copy {
    PinnedBuffer list;  // lives until the kernel has read it
    CudaEvent done;
  };

  /// The newest of the copies under way, unless it fails to begin.
  struct Begun {
    explicit Begun(std::deque<Copy>& copies) : all(copies), copy(copies.emplace_back()) {}
    ~Begun() {
      if (!succeeded) { all.pop_back(); }
    }
    std::deque<Copy>& all;
    Copy& copy;
    bool succeeded = false;
  };

  static void enable_peer_access(std::int32_t reader, std::int32_t owner) {
    if (reader == owner) { return; }
    int can_read = 0;
    NVL_CUDA_CHECK(cudaDeviceCanAccessPeer(&can_read, reader, owner));
    if (can_read == 0) {
      raise(Unsupported("CUDA device " + std::to_string(reader) + " cannot read the memory of device " + std::to_string(owner) +
                        ": CudaKvTransfer needs one device, or two with peer access"));
    }
    NVL_CUDA_CHECK(cudaSetDevice(reader));
    const cudaError_t status = cudaDeviceEnablePeerAccess(owner, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
      static_cast<void>(cudaGetLastError());
    } else {
      kernels::detail::check_cuda(status, "cudaDeviceEnablePeerAccess");
    }
  }

  /// Page-locked memory, used again: allocating it waits for the device.
  PinnedBuffer list_for(std::size_t num_bytes) {
    for (std::size_t i = 0; i < free_lists_.size(); ++i) {
      if (free_lists_[i].size_bytes() < num_bytes) { continue; }
      PinnedBuffer list = std::move(free_lists_[i]);
      free_lists_.erase(free_lists_.begin() + static_cast<std::ptrdiff_t>(i));
      return list;
    }
    constexpr std::size_t least = std::size_t{64} << 10;  // a prompt of 131072 tokens in blocks of 16
    return PinnedBuffer(std::max(num_bytes, least));
  }

  CudaDevice& from_device_;
  CudaDevice& device_;
  KvCache<T> from_, to_;
  std::deque<Copy> under_way_;  // the oldest first
  std::vector<PinnedBuffer> free_lists_;
  std::uint64_t num_done_ = 0;
};
static_assert(require_kv_transfer<CudaKvTransfer<bf16>>());

}  // namespace nvl::inline NVL_ABI
