#pragma once
/// Which rank computes which token of a step, and which keeps the K and V of which position: arithmetic that every rank does
/// alike.

#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/parallel/parallel_strategy.hpp>

#include <algorithm>
#include <cstdint>

namespace nvl::inline NVL_ABI {

/// Rows in 2 x count chunks: share i has chunk i, whose queries see few keys, and chunk 2 count - 1 - i, whose queries see
/// many, so that all have the same to do under a causal mask (zig-zag; Grattafiori et al. 2024, arXiv:2407.21783, section
/// 3.3.2).
class ZigZag {
 public:
  constexpr ZigZag(std::int32_t num_rows, std::uint32_t count) noexcept : num_rows_(num_rows), count_(count) {}

  constexpr Shard low(std::uint32_t share) const noexcept { return chunk(share); }
  constexpr Shard high(std::uint32_t share) const noexcept { return chunk(2 * count_ - 1 - share); }

  /// Rows of any share, of up to `num_rows`, at most.
  static constexpr std::int32_t max_rows(std::int32_t num_rows, std::uint32_t count) noexcept {
    return std::min(num_rows, 2 * ceil_div(num_rows, 2 * static_cast<std::int32_t>(count)));
  }

 private:
  constexpr Shard chunk(std::uint32_t c) const noexcept {
    const auto bound = [&](std::uint32_t i) { return static_cast<std::int32_t>(std::int64_t{num_rows_} * i / (2 * count_)); };
    return {bound(c), bound(c + 1)};
  }

  std::int32_t num_rows_;
  std::uint32_t count_;
};

/// Rows that a rank has of a step at most: its share of those of prompts, and those of all sequences that decode, which are
/// computed where they are kept.
constexpr std::int32_t max_share_rows(std::int32_t max_num_tokens, std::int32_t max_num_seqs, std::uint32_t count) noexcept {
  return std::min(max_num_tokens, ZigZag::max_rows(max_num_tokens, count) + max_num_seqs);
}

/// A block of the scheduler's tables is a block on each of `count` ranks, under the same id: the first block_size tokens are in
/// that of share 0, and so on. So allocator, scheduler and tables are those of one rank with blocks of count x block_size
/// tokens.
struct StripedBlocks {
  std::int32_t block_size = 0;  // [tokens] of a block on a rank
  std::uint32_t count = 1;

  constexpr std::int32_t tokens_per_block() const noexcept { return block_size * static_cast<std::int32_t>(count); }
  /// That keeps the K and V of the token at `position` of its sequence.
  constexpr std::uint32_t share_of(std::int32_t position) const noexcept {
    return static_cast<std::uint32_t>(position % tokens_per_block() / block_size);
  }
  /// Where it keeps them, if the scheduler's slot is `slot`.
  constexpr SlotId local_slot(SlotId slot) const noexcept { return slot / tokens_per_block() * block_size + slot % block_size; }
  /// How many of a sequence's first `num_tokens` tokens a share keeps.
  constexpr std::int32_t tokens_of(std::uint32_t share, std::int32_t num_tokens) const noexcept {
    const std::int32_t rest = num_tokens % tokens_per_block() - static_cast<std::int32_t>(share) * block_size;
    return num_tokens / tokens_per_block() * block_size + std::clamp(rest, 0, block_size);
  }
};

}  // namespace nvl::inline NVL_ABI
