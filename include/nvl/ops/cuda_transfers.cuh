#pragma once
/// Moves KV blocks between the device and page-locked host memory in a stream of their own, beside the steps.

#include <nvl/core/config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/kernels/block_copy.cuh>
#include <nvl/ops/cuda_device.cuh>
#include <nvl/ops/device_ops.hpp>

#include <span>

#include <cuda_runtime.h>

namespace nvl::inline NVL_ABI {

/// Two events tie the streams together: transfers start when what the device's stream holds at `start` is done, and what comes
/// after `join` in it, graphs included, starts when they are done. Allocates nothing after construction.
class CudaTransfers {
 public:
  explicit CudaTransfers(CudaDevice& device) : device_(device) {}

  /// The lists of `call` lie in device memory, which the device's stream does not overwrite before `join`.
  template <class T>
  void start(const BlockTransfers<T>& call) {
    ready_.record(device_.stream());
    const cudaStream_t stream = device_.copy_stream();
    NVL_CUDA_CHECK(cudaStreamWaitEvent(stream, ready_.get(), 0));
    move(call, call.out, true);
    move(call, call.in, false);
    done_.record(stream);
    is_under_way_ = true;
  }

  void join() {
    if (!is_under_way_) { return; }
    NVL_CUDA_CHECK(cudaStreamWaitEvent(device_.stream(), done_.get(), 0));
    is_under_way_ = false;
  }

 private:
  template <class T>
  void move(const BlockTransfers<T>& call, std::span<const BlockTransfer> transfers, bool to_host) {
    kernels::launch_block_swap<T>({.kv = call.kv,
                                   .host = call.host,
                                   .layout = call.layout,
                                   .num_layers = call.num_layers,
                                   .transfers = transfers.data(),
                                   .num_transfers = static_cast<int>(transfers.size()),
                                   .to_host = to_host},
                                  device_.copy_stream(), false);
  }

  CudaDevice& device_;
  CudaEvent ready_, done_;
  bool is_under_way_ = false;
};

}  // namespace nvl::inline NVL_ABI
