#pragma once
/// What the sampling kernels write, as plain data that one copy brings to the host, how the host reads it, and the memory that
/// they need beside it.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {
namespace kernels {

/// What one row of logits became. Followed by its most likely tokens, see SamplingResultLayout.
struct SampledRow {
  TokenId token = 0;                  // 0 if not finite
  float logprob = 0;                  // of `token`; 0 unless SamplingRow::num_logprobs >= 0
  std::int32_t finite = 1;            // 0: a logit was NaN or +-infinity, or all were banned
  std::int32_t num_top_logprobs = 0;  // how many of the row's TokenLogprob are valid, most likely first
};

/// One block of memory: SampledRow[max_rows], then TokenLogprob[max_rows, max_top_logprobs]. Copying the first
/// `bytes(rows, false)`
/// of it brings the tokens alone.
struct SamplingResultLayout {
  int max_rows = 0;
  int max_top_logprobs = 0;  // largest num_logprobs of a row; 0: no top_logprobs are stored

  constexpr std::size_t top_logprobs_offset() const noexcept { return static_cast<std::size_t>(max_rows) * sizeof(SampledRow); }
  constexpr std::size_t bytes() const noexcept { return bytes(max_rows, true); }
  /// [bytes] from the start that hold the results of the first `rows` rows.
  constexpr std::size_t bytes(int rows, bool with_top_logprobs) const noexcept {
    const auto n = static_cast<std::size_t>(rows);
    return with_top_logprobs ? top_logprobs_offset() + n * static_cast<std::size_t>(max_top_logprobs) * sizeof(TokenLogprob)
                             : n * sizeof(SampledRow);
  }
  SampledRow* rows(std::byte* base) const noexcept { return reinterpret_cast<SampledRow*>(base); }
  TokenLogprob* top_logprobs(std::byte* base) const noexcept {
    return reinterpret_cast<TokenLogprob*>(base + top_logprobs_offset());
  }
  const SampledRow* rows(const std::byte* base) const noexcept { return reinterpret_cast<const SampledRow*>(base); }
  const TokenLogprob* top_logprobs(const std::byte* base) const noexcept {
    return reinterpret_cast<const TokenLogprob*>(base + top_logprobs_offset());
  }

  /// Fills `out` from a host copy of the block. The memory of `out` is reused.
  void read(const std::byte* base, std::span<SampledToken> out) const {
    for (std::size_t r = 0; r < out.size(); ++r) {
      const SampledRow& row = rows(base)[r];
      out[r].token = row.token;
      out[r].logprob = row.logprob;
      out[r].finite = row.finite != 0;
      const TokenLogprob* const top = top_logprobs(base) + r * static_cast<std::size_t>(max_top_logprobs);
      out[r].top_logprobs.assign(top, top + row.num_top_logprobs);
    }
  }
};

inline constexpr int max_general_sampling_blocks = 132;  // of the general kernel: each takes one row at a time

/// [bytes] of SampleParams::workspace for steps of at most `max_rows` rows.
constexpr std::size_t sampling_workspace_bytes(int max_rows, int vocab) {
  return static_cast<std::size_t>(std::min(max_rows, max_general_sampling_blocks)) * static_cast<std::size_t>(vocab) *
         sizeof(float);
}

/// True unless every row takes the most likely token or draws from all tokens, from the logits as they are and without
/// log-probabilities: what the plain kernel does.
inline bool needs_general_sampling(std::span<const SamplingRow> rows) noexcept {
  return std::any_of(rows.begin(), rows.end(), [](const SamplingRow& r) {
    const bool truncates = r.temperature != 0.0f && (r.top_k > 0 || r.top_p < 1.0f || r.min_p > 0.0f);
    return truncates || r.has_penalty() || r.bias.size() > 0 || r.banned.size() > 0 || r.num_logprobs >= 0;
  });
}

}  // namespace kernels
}  // namespace nvl::inline NVL_ABI
