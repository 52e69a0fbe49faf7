#pragma once
/// Slots of a paged cache for tests and benches.

#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <random>
#include <vector>

namespace nvl_test {

/// Different slots in random order; one in five is no_slot if `with_padding`.
inline std::vector<nvl::SlotId> random_slots(int num_tokens, const nvl::KvLayout& layout, bool with_padding, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<nvl::SlotId> slots(static_cast<std::size_t>(layout.num_blocks * layout.block_size));
  std::iota(slots.begin(), slots.end(), nvl::SlotId{0});
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(static_cast<std::size_t>(num_tokens));
  for (nvl::SlotId& slot : slots) {
    if (with_padding && random() % 5 == 0) { slot = nvl::no_slot; }
  }
  return slots;
}

/// Runs of consecutive slots that fill whole blocks, the blocks in random order: how a prompt's tokens are stored.
inline std::vector<nvl::SlotId> random_pages(int num_tokens, const nvl::KvLayout& layout, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<nvl::SlotId> blocks(static_cast<std::size_t>(layout.num_blocks)), slots;
  std::iota(blocks.begin(), blocks.end(), nvl::SlotId{0});
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (int i = 0; i < num_tokens; ++i) {
    slots.push_back(blocks[static_cast<std::size_t>(i / layout.block_size)] * layout.block_size + i % layout.block_size);
  }
  return slots;
}

/// Enough blocks for `num_tokens` and some more.
inline nvl::KvLayout layout_for(int num_tokens, int block_size, int num_kv_heads, int head_dim) {
  return {
      .num_blocks = num_tokens / block_size + 3, .block_size = block_size, .num_kv_heads = num_kv_heads, .head_dim = head_dim};
}

}  // namespace nvl_test
