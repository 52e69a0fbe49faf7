#pragma once
/// How the KV cache of one layer lies in memory: [num_blocks][K, V][num_kv_heads][block_size][head_dim].
///
/// One block of one layer is contiguous, so copying it is one run of bytes; the tokens of one head inside a block are
/// contiguous, so attention reads long runs. Offsets are 64-bit: they pass 2^31 elements.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>

#include <cstdint>

namespace nvl::inline NVL_ABI {

struct KvLayout {
  std::int64_t num_blocks = 0;
  std::int32_t block_size = 0;    // [tokens]
  std::int32_t num_kv_heads = 0;  // of this rank
  std::int32_t head_dim = 0;      // [elements]

  NVL_HOST_DEVICE constexpr std::int64_t head_elements() const noexcept { return std::int64_t{block_size} * head_dim; }
  /// [elements] of one block of one layer, K and V together
  NVL_HOST_DEVICE constexpr std::int64_t block_elements() const noexcept { return 2 * num_kv_heads * head_elements(); }
  /// [elements] of one layer
  NVL_HOST_DEVICE constexpr std::int64_t layer_elements() const noexcept { return num_blocks * block_elements(); }

  /// [elements] from the start of a pool of whole blocks, [blocks][num_layers] x block_elements (in host memory), to `layer` of
  /// `block`: what moves together lies together
  NVL_HOST_DEVICE constexpr std::int64_t whole_block_offset(std::int64_t block, std::int32_t layer,
                                                            std::int32_t num_layers) const noexcept {
    return (block * num_layers + layer) * block_elements();
  }

  /// [elements] from the start of the layer to the K of `offset` in `block` of `head`
  NVL_HOST_DEVICE constexpr std::int64_t k_offset(std::int64_t block, std::int32_t head, std::int32_t offset) const noexcept {
    return block * block_elements() + head * head_elements() + std::int64_t{offset} * head_dim;
  }
  /// [elements] likewise to the V
  NVL_HOST_DEVICE constexpr std::int64_t v_offset(std::int64_t block, std::int32_t head, std::int32_t offset) const noexcept {
    return k_offset(block, head, offset) + num_kv_heads * head_elements();
  }
};

/// What a model's layers see of the past, if none of them sees all of it.
struct SlidingWindow {
  std::int32_t tokens = 0;  // that a query sees, itself included; 0 = some layer sees all
  /// [tokens] Attention backends read whole tiles of keys: none before the multiple of this at or before the first key that is
  /// seen. What they read beyond the window has to be finite, and changes nothing. The widest tile is that of the prefill kernel
  /// for sm_90 (kernels/paged_attention_prefill_wgmma.cuh); decode reads single blocks, the CPU only keys that are seen.
  std::int32_t alignment = 128;

  /// The first position whose K and V a step may read that computes the token at `position` and those after it.
  constexpr std::int32_t first_read(std::int32_t position) const noexcept {
    const std::int32_t first_seen = tokens > 0 && position >= tokens ? position - tokens + 1 : 0;
    return first_seen / alignment * alignment;
  }
};

}  // namespace nvl::inline NVL_ABI
