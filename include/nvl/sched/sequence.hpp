#pragma once
/// One sequence of tokens on its way through the engine.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/kv/block_allocator.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nvl::inline NVL_ABI {

/// waiting -> running -> finished. Preemption goes back from running to preempted (blocks given up, tokens kept) or to swapped
/// (K and V in host blocks). loading: it has blocks, which the copies of the last planned step fill from the host; it computes
/// from the next step on.
enum class SeqStatus : std::uint8_t { waiting, running, loading, preempted, swapped, finished };

/// Why a sequence ended. error: its logits were not finite, or the engine died.
enum class FinishReason : std::uint8_t { none, stop, length, abort, error };

constexpr std::string_view to_string(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::none: return "none";
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::abort: return "abort";
    case FinishReason::error: return "error";
  }
  return "none";
}

/// Prefill, chunk, decode, prefix hit and recompute are one thing: `num_computed` catches up with `tokens`.
struct Sequence {
  SeqId id{};
  RequestId request{};
  std::vector<TokenId> tokens;        // prompt, then output
  std::int32_t num_prompt = 0;        // [tokens]
  std::int32_t max_total_tokens = 0;  // [tokens] prompt + max_tokens, within the engine's max_model_len
  std::int32_t num_computed =
      0;  // [tokens] whose K and V are stored by the steps planned so far; < tokens.size() while there is work
  std::int32_t num_held = 0;            // [tokens] the last of them, if a step under way chooses it and none may compute it yet
  std::vector<BlockId> block_table;     // physical block of each logical block; those before num_released are not its own
  std::vector<HostBlockId> host_table;  // host block of each logical block, of a swapped or loading sequence; else empty
  std::int32_t num_released = 0;        // [blocks] at the head of block_table that a sliding window has left behind
  bool keeps_all_blocks = false;        // another engine will get them: a window leaves none behind
  SeqStatus status = SeqStatus::waiting;
  FinishReason finish_reason = FinishReason::none;
  std::int32_t priority = 0;    // lower is served first, by policies that look
  std::uint64_t user = 0;       // whose it is, for policies that share fairly between users
  std::int32_t num_cached = 0;  // [tokens] found in the prefix cache at the last admission
  std::int32_t num_preemptions = 0;
  PrefixId prefix_root{};          // of the request's salt
  PrefixId published_prefix{};     // ends the last published block
  std::int32_t num_published = 0;  // [blocks] at the head of block_table that the prefix cache knows

  std::span<const BlockId> owned_blocks() const noexcept {
    return std::span(block_table).subspan(static_cast<std::size_t>(num_released));
  }
  std::int32_t num_tokens() const noexcept { return static_cast<std::int32_t>(tokens.size()); }
  /// [tokens] that a step may compute
  std::int32_t num_uncomputed() const noexcept { return num_tokens() - num_held - num_computed; }
  std::int32_t num_output() const noexcept { return num_tokens() - num_prompt; }
};

}  // namespace nvl::inline NVL_ABI
