#pragma once
/// What comes after the decoder: logits, and the tokens that are sampled from them.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/step.hpp>
#include <nvl/ops/device_ops.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace nvl::inline NVL_ABI {

/// True if every row asks for its most likely token and nothing else: then ranks need not exchange logits.
inline bool wants_maxima_only(const StepInput& in) noexcept {
  return std::ranges::all_of(in.sampling, [](const SamplingRow& row) {
    return row.temperature == 0.0f && row.num_logprobs < 0 && !row.has_penalty() && row.bias.size() == 0 &&
           row.banned.size() == 0;
  });
}

/// Of a rank that has the whole vocabulary.
template <DeviceOps Ops>
class WholeHead {
 public:
  using Buffer = typename Ops::Device::Buffer;

  template <class Context>
  WholeHead(typename Ops::Device& device, std::int32_t max_rows, std::int32_t vocab_size, Context&)
      : vocab_size_(vocab_size),
        logits_(device, static_cast<std::size_t>(max_rows) * static_cast<std::size_t>(vocab_size) * sizeof(float)) {}

  float* mine() noexcept { return logits_.template as<float>(); }
  void sample(Ops& ops, const StepInput& in, bool /*maxima_only*/, StepOutput& out) { ops.sample(in, mine(), vocab_size_, out); }
  const float* gather(Ops&, std::int32_t) noexcept { return mine(); }

 private:
  std::int32_t vocab_size_;
  Buffer logits_;
};

/// Of ranks that have a part of it each. Rows whose most likely token is wanted cost a RowMaximum a rank; the logits of a step with other rows are gathered, and every
/// rank samples them, so that all know the tokens.
template <class Ops, class Context>
class ShardedHead {
  static_assert(ShardingOps<Ops>,
                "nvl: the ops of this attention backend cannot split a vocabulary over ranks (ShardingOps): use "
                "SingleDevice, or the CPU's");
  static_assert(GatheringContext<Context>, "nvl: ranks that share layers need `all_gather` in their Context (GatheringContext)");

 public:
  using Device = typename Ops::Device;
  using Buffer = typename Device::Buffer;

  /// \param max_rows of a step; `context` outlives the head
  ShardedHead(Device& device, std::int32_t max_rows, std::int32_t vocab_size, Context& context)
      : context_(context),
        vocab_size_(vocab_size) {
    const std::uint32_t num = context.num_slices();
    for (std::uint32_t i = 0; i < num; ++i) { columns_.push_back(slice_of(vocab_size, i, num)); }
    logits_of_.resize(num);
    maxima_of_.resize(num);
    widest_ = ceil_div<std::int64_t>(vocab_size, num);
    mine_ = floats(device, max_rows * widest_);
    parts_ = floats(device, std::int64_t{num} * max_rows * widest_);
    whole_ = floats(device, std::int64_t{max_rows} * vocab_size);
    my_maxima_ = Buffer(device, static_cast<std::size_t>(max_rows) * sizeof(RowMaximum));
    maxima_ = Buffer(device, num * static_cast<std::size_t>(max_rows) * sizeof(RowMaximum));
  }

  /// Where this rank's logits go, [rows, columns of this rank].
  float* mine() noexcept { return mine_.template as<float>(); }

  /// Of the logits that are there: samples them.
  void sample(Ops& ops, const StepInput& in, bool maxima_only, StepOutput& out) {
    const std::int32_t rows = in.num_samples();
    if (!maxima_only) {
      ops.sample(in, gather(ops, rows), vocab_size_, out);
      return;
    }
    RowMaximum* const mine = my_maxima_.template as<RowMaximum>();
    RowMaximum* const all = maxima_.template as<RowMaximum>();
    ops.find_maxima(mine, this->mine(), rows, columns_[context_.slice_index()]);
    context_.all_gather(mine, all, rows);
    for (std::size_t i = 0; i < columns_.size(); ++i) { maxima_of_[i] = all + static_cast<std::int64_t>(i) * rows; }
    ops.choose_maxima(maxima_of_, in, out);
  }

  /// The logits of the whole vocabulary, [rows, vocab_size].
  const float* gather(Ops& ops, std::int32_t rows) {
    const std::int64_t stride = rows * widest_;
    float* const all = parts_.template as<float>();
    context_.all_gather(mine(), all, stride);
    for (std::size_t i = 0; i < columns_.size(); ++i) { logits_of_[i] = all + static_cast<std::int64_t>(i) * stride; }
    ops.join_columns(whole_.template as<float>(), logits_of_, rows, columns_);
    return whole_.template as<float>();
  }

 private:
  static Buffer floats(Device& device, std::int64_t n) { return Buffer(device, static_cast<std::size_t>(n) * sizeof(float)); }

  Context& context_;
  std::int32_t vocab_size_;
  std::int64_t widest_ = 0;  // [columns] of a part, as parts are sent
  std::vector<Shard> columns_;
  std::vector<const float*> logits_of_;  // of each slice, in the step at work
  std::vector<const RowMaximum*> maxima_of_;
  Buffer mine_, parts_, whole_, my_maxima_, maxima_;
};

/// [bytes] that the head of one rank allocates
constexpr std::int64_t head_bytes(std::int64_t max_rows, std::int32_t vocab_size, std::uint32_t num_slices) noexcept {
  const std::int64_t whole = max_rows * vocab_size * std::int64_t{sizeof(float)};
  if (num_slices == 1) { return whole; }
  const std::int64_t widest = ceil_div<std::int64_t>(vocab_size, num_slices);
  return whole + (num_slices + 1) * max_rows * (widest * std::int64_t{sizeof(float)} + std::int64_t{sizeof(RowMaximum)});
}

template <class Ops, class Context>
using HeadOf = std::conditional_t<WholeLayers<Context>, WholeHead<Ops>, ShardedHead<Ops, Context>>;

}  // namespace nvl::inline NVL_ABI
