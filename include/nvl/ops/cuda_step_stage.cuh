#pragma once
/// Brings the arrays of a step to the device: one copy from page-locked memory, which does not hold up the host.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>
#include <nvl/core/step_limits.hpp>
#include <nvl/ops/cuda_device.cuh>
#include <nvl/ops/cuda_graphs.cuh>
#include <nvl/ops/cuda_memory.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>

namespace nvl::inline NVL_ABI {

/// Two steps may be under way: each has its own host memory, and a third is staged only when the first is done, which is the
/// caller's to see to. They share the device memory, which a step's copy overwrites when the step before it has been computed,
/// being in the same stream.
class CudaStepStage {
 public:
  CudaStepStage(CudaDevice& device, const StepLimits& limits)
      : device_(device),
        capacity_(step_bytes(largest_step(limits))),
        on_device_(device, capacity_),
        on_host_{PinnedBuffer(capacity_), PinnedBuffer(capacity_)} {}

  /// For a device that hangs: see PinnedBuffer.
  void abandon() noexcept {
    for (PinnedBuffer& buffer : on_host_) { buffer.abandon(); }
  }

  /// Starts the copy of `in`; the views returned are of device memory and valid until the next call. With `padded` tokens above
  /// 0 the step is filled up with tokens and sequences that have no KV and store nothing.
  /// \throws InvalidArgument for a step larger than planned.
  const StepInput& stage(const StepInput& in, CudaGraphs::Size padded) {
    StepShape shape = shape_of(in);
    if (padded.num_tokens > 0) {
      shape.num_tokens = static_cast<std::size_t>(padded.num_tokens);
      shape.num_seqs = shape.num_samples = static_cast<std::size_t>(padded.num_seqs);
    }
    const std::size_t bytes = step_bytes(shape);
    NVL_EXPECTS(bytes <= capacity_, "bytes of a step's arrays", bytes, "at most the planned " + std::to_string(capacity_));
    PinnedBuffer& host = on_host_[num_staged_++ % on_host_.size()];
    StepInput staged = place_step(shape, host.data());
    copy_arrays(in, staged);
    pad(in, staged);
    NVL_CUDA_CHECK(cudaMemcpyAsync(on_device_.as<std::byte>(), host.data(), bytes, cudaMemcpyHostToDevice, device_.stream()));
    return view(shape, in);
  }

  /// The views of a step of this size whose arrays hold whatever they hold, for recording it.
  const StepInput& view_of(CudaGraphs::Size size) {
    const auto num_seqs = static_cast<std::size_t>(size.num_seqs);
    StepInput in;
    in.min_query_len = in.max_query_len = size.num_tokens / size.num_seqs;
    return view({.num_tokens = static_cast<std::size_t>(size.num_tokens),
                 .num_seqs = num_seqs,
                 .max_blocks_per_seq = 1,
                 .num_samples = num_seqs},
                in);
  }

 private:
  const StepInput& view(const StepShape& shape, const StepInput& in) {
    on_device_view_ = place_step(shape, on_device_.as<std::byte>());
    on_device_view_.step = in.step;
    on_device_view_.min_query_len = in.min_query_len;
    on_device_view_.max_query_len = in.max_query_len;
    return on_device_view_;
  }

  static void copy_arrays(const StepInput& from, StepInput& to) {
    std::array<std::span<const std::byte>, 16> sources;
    std::size_t i = 0;
    StepInput views = from;
    detail::for_each_step_array(views, shape_of(from),
                                [&]<class T>(std::span<T>& array, std::size_t) { sources[i++] = std::as_bytes(array); });
    i = 0;
    detail::for_each_step_array(to, shape_of(to), [&]<class T>(std::span<T>& array, std::size_t) {
      const std::span<const std::byte> source = sources[i++];
      if (!source.empty()) { std::memcpy(static_cast<void*>(array.data()), source.data(), source.size()); }
    });
  }

  static void pad(const StepInput& in, StepInput& to) {
    to.block_stride[0] = to.max_blocks_per_seq;
    to.cu_query_lens[0] = 0;
    for (auto t = static_cast<std::size_t>(in.num_tokens()); t < to.token_ids.size(); ++t) {
      to.token_ids[t] = 0;
      to.positions[t] = 0;
      to.slot_mapping[t] = no_slot;
    }
    for (auto s = static_cast<std::size_t>(in.num_seqs()); s < to.seq_lens.size(); ++s) {
      to.cu_query_lens[s + 1] = static_cast<std::int32_t>(s) + 1;
      to.seq_lens[s] = 0;
      to.sample_rows[s] = static_cast<std::int32_t>(s);
      to.sampling[s] = {};
    }
  }

  CudaDevice& device_;
  std::size_t capacity_;
  CudaDevice::Buffer on_device_;
  std::array<PinnedBuffer, 2> on_host_;
  std::size_t num_staged_ = 0;
  StepInput on_device_view_;
};

}  // namespace nvl::inline NVL_ABI
