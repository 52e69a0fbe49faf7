#pragma once
/// One step of the engine as plain data: what every rank receives and what comes back.
///
/// A StepInput is a set of views into one StepBuffer, whose bytes are contiguous, so that a device gets a step in one copy.
/// T = tokens computed, S = sequences, B = widest block table, R = rows of logits that are sampled.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace nvl::inline NVL_ABI {

/// Copy of one physical block, over all layers, before the step's tokens are computed.
struct BlockCopy {
  BlockId from{};
  BlockId to{};
};

/// A block that moves between the pools of the device and of the host, over all layers.
///
/// The transfers of a step run after the tokens of the step before are computed, and beside those of their own step; the next
/// step, its transfers and its tokens, waits for them. So a block that goes out is neither released nor written before the next
/// call of `schedule`, and one that comes in is not read before that.
struct BlockTransfer {
  BlockId device{};
  HostBlockId host{};
};

struct LogitBias {
  TokenId token = 0;
  float bias = 0;  // added to the logit
};

/// A half-open range of entries in one of the flat arrays of StepInput.
struct IndexRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  constexpr std::uint32_t size() const noexcept { return end - begin; }
};

/// How one row of logits becomes a token. Depends on nothing but this row's request: batch mates cannot change it.
struct SamplingRow {
  float temperature = 0.0f;  // 0 = arg max, the lowest id among equals
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::int32_t top_k = 0;          // 0 = all
  std::int32_t num_logprobs = -1;  // -1: none; n: of the chosen token and of the n most likely
  std::uint64_t seed = 0;          // random numbers are a function of (seed, choice, output_index) only
  std::uint32_t choice = 0;
  std::uint32_t output_index = 0;  // [tokens] of output before this one
  IndexRange bias;                 // into StepInput::logit_bias
  IndexRange banned;               // into StepInput::banned: these tokens cannot be chosen
  IndexRange history;              // into StepInput::history: prompt and output so far; empty when no penalty is set
  std::uint32_t num_prompt = 0;    // how many of `history` are prompt

  constexpr bool has_penalty() const noexcept {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

/// In token_ids: a token that the step before this one samples in its row `row`. The host need not know it to launch this step.
constexpr TokenId sampled_in_row(std::int32_t row) noexcept { return -1 - row; }

struct StepInput {
  std::uint64_t step = 0;                 // counts launched steps; the same on every rank
  std::span<std::int32_t> block_stride;   // [1] B, for kernels that are captured once and run with any B
  std::span<TokenId> token_ids;           // [T] a token, or sampled_in_row(r) for one that the previous step chooses
  std::span<std::int32_t> positions;      // [T] index of the token in its sequence
  std::span<SlotId> slot_mapping;         // [T] where its K and V go, no_slot = nowhere
  std::span<std::int32_t> cu_query_lens;  // [S + 1] prefix sum of tokens per sequence
  std::span<std::int32_t> seq_lens;       // [S] tokens visible to the last query of the sequence
  std::span<std::int32_t> sample_rows;    // [R] rows of [T] whose logits are computed
  std::span<SamplingRow> sampling;        // [R]
  std::span<BlockId> block_tables;        // [S, B] row-major; entries past a sequence's blocks are not read
  std::span<LogitBias> logit_bias;        // flat
  std::span<TokenId> banned;              // flat
  std::span<TokenId> history;             // flat
  std::span<BlockCopy> copies;            // done before anything else of the step
  std::span<BlockTransfer> swap_out;      // device to host, beside the step
  std::span<BlockTransfer> swap_in;       // host to device, likewise; what a transfer writes is in no other one
  std::int32_t max_blocks_per_seq = 0;    // B
  std::int32_t min_query_len = 0;         // [tokens] of the sequence with the fewest to compute, and of that with the most
  std::int32_t max_query_len = 0;

  std::int32_t num_tokens() const noexcept { return static_cast<std::int32_t>(token_ids.size()); }
  std::int32_t num_seqs() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
  std::int32_t num_samples() const noexcept { return static_cast<std::int32_t>(sample_rows.size()); }
};

/// How many entries each array of a StepInput has.
struct StepShape {
  std::size_t num_tokens = 0, num_seqs = 0, max_blocks_per_seq = 0, num_samples = 0;
  std::size_t num_logit_bias = 0, num_banned = 0, num_history = 0, num_copies = 0;
  std::size_t num_swap_out = 0, num_swap_in = 0;
};

inline StepShape shape_of(const StepInput& in) noexcept {
  return {.num_tokens = in.token_ids.size(),
          .num_seqs = in.seq_lens.size(),
          .max_blocks_per_seq = static_cast<std::size_t>(in.max_blocks_per_seq),
          .num_samples = in.sample_rows.size(),
          .num_logit_bias = in.logit_bias.size(),
          .num_banned = in.banned.size(),
          .num_history = in.history.size(),
          .num_copies = in.copies.size(),
          .num_swap_out = in.swap_out.size(),
          .num_swap_in = in.swap_in.size()};
}

/// [bytes] that the start of a step's memory is aligned to
inline constexpr std::size_t step_alignment = 64;

namespace detail {

/// The one list of arrays and their lengths: `visit(array, count)`. Arrays whose lengths follow from T, S and R come first, so
/// their places depend on nothing else.
template <class Visit>
void for_each_step_array(StepInput& in, const StepShape& s, Visit&& visit) {
  visit(in.block_stride, std::size_t{1});
  visit(in.token_ids, s.num_tokens);
  visit(in.positions, s.num_tokens);
  visit(in.slot_mapping, s.num_tokens);
  visit(in.cu_query_lens, s.num_seqs + 1);
  visit(in.seq_lens, s.num_seqs);
  visit(in.sample_rows, s.num_samples);
  visit(in.sampling, s.num_samples);
  visit(in.block_tables, s.num_seqs * s.max_blocks_per_seq);
  visit(in.logit_bias, s.num_logit_bias);
  visit(in.banned, s.num_banned);
  visit(in.history, s.num_history);
  visit(in.copies, s.num_copies);
  visit(in.swap_out, s.num_swap_out);
  visit(in.swap_in, s.num_swap_in);
}

constexpr std::size_t align_step_array(std::size_t n) noexcept {
  return (n + step_alignment - 1) / step_alignment * step_alignment;
}

}  // namespace detail

/// [bytes] of a step with such arrays
inline std::size_t step_bytes(const StepShape& shape) {
  std::size_t bytes = 0;
  StepInput in;
  detail::for_each_step_array(
      in, shape, [&]<class T>(std::span<T>&, std::size_t count) { bytes = detail::align_step_array(bytes) + count * sizeof(T); });
  return bytes;
}

/// The views of a step whose bytes are at `base`, memory of any device; nothing is read or written there.
inline StepInput place_step(const StepShape& shape, std::byte* base) {
  StepInput in;
  std::size_t offset = 0;
  detail::for_each_step_array(in, shape, [&]<class T>(std::span<T>& array, std::size_t count) {
    offset = detail::align_step_array(offset);
    array = {reinterpret_cast<T*>(base + offset), count};
    offset += count * sizeof(T);
  });
  in.max_blocks_per_seq = static_cast<std::int32_t>(shape.max_blocks_per_seq);
  return in;
}

/// Owns the bytes of one StepInput in host memory. Reused step after step; grows, never shrinks.
class StepBuffer {
 public:
  /// Lays out the arrays for `shape`. Their contents are unspecified until written. The views of the last layout die.
  StepInput& layout(const StepShape& shape) {
    size_ = step_bytes(shape);
    if (size_ > capacity_) {
      const std::size_t wanted = std::max(size_, capacity_ * 2);
      bytes_ = std::make_unique<std::byte[]>(wanted + step_alignment);  // zeros: the gaps between arrays may be sent, too
      capacity_ = wanted;
    }
    auto* const base = reinterpret_cast<std::byte*>(detail::align_step_array(reinterpret_cast<std::uintptr_t>(bytes_.get())));
    input_ = place_step(shape, base);
    detail::for_each_step_array(input_, shape, []<class T>(std::span<T>& array, std::size_t count) {
      std::uninitialized_default_construct_n(array.data(), count);
    });
    input_.block_stride[0] = input_.max_blocks_per_seq;
    return input_;
  }

  StepInput& input() noexcept { return input_; }
  const StepInput& input() const noexcept { return input_; }
  std::size_t size_bytes() const noexcept { return size_; }  ///< of the last layout

 private:
  StepInput input_;
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  // natural logarithm, after bias, penalties, bans and temperature (0: as 1), before top-k/top-p/min-p
};

/// What one row of logits became.
struct SampledToken {
  TokenId token = 0;
  float logprob = 0;                       // of `token`; 0 unless SamplingRow::num_logprobs >= 0
  bool finite = true;                      // false: a logit was NaN or +-infinity, or all were banned; `token` means nothing
  std::vector<TokenLogprob> top_logprobs;  // most likely first, num_logprobs of them (fewer if more are banned)
};

struct StepOutput {
  std::uint64_t step = 0;             // of the StepInput that it answers
  std::vector<SampledToken> sampled;  // [R]
};

}  // namespace nvl::inline NVL_ABI
