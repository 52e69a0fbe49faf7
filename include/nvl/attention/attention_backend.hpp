#pragma once
/// Concept AttentionBackend: queries against paged K and V.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace nvl::inline NVL_ABI {

/// What the sequences of one step look like. Views of a StepInput, or of a caller's own arrays.
struct AttentionMetadata {
  std::span<const std::int32_t> cu_query_lens;  // [S + 1]
  std::span<const std::int32_t> seq_lens;       // [S] the last query of sequence s is its token seq_lens[s] - 1
  std::span<const BlockId> block_tables;        // [S, max_blocks_per_seq]
  std::int32_t max_blocks_per_seq = 0;

  std::int32_t num_seqs() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
};

inline AttentionMetadata metadata_of(const StepInput& in) noexcept {
  return {.cu_query_lens = in.cu_query_lens, .seq_lens = in.seq_lens, .block_tables = in.block_tables,
          .max_blocks_per_seq = in.max_blocks_per_seq};
}

/// Heads of one rank, fixed at construction.
struct AttentionShape {
  std::int32_t num_q_heads = 0;
  KvLayout kv;
};

/// One layer's call: out = softmax(scale * q k^T + mask) v, causal, over the paged K and V that hold the new tokens already.
template <class T>
struct AttentionCall {
  T* out = nullptr;                 // [num_tokens, num_q_heads, head_dim], rows contiguous
  const T* q = nullptr;             // [num_tokens, num_q_heads, head_dim] at the head of rows of `q_row_stride`
  std::int64_t q_row_stride = 0;    // [elements] from token to token
  const T* kv = nullptr;            // one layer, KvLayout
  float scale = 1.0f;
  std::int32_t window = 0;          // [tokens] visible to a query, itself included; 0 = all
};

/// | expression            | meaning                                                                               |
/// |-----------------------|---------------------------------------------------------------------------------------|
/// | `B::Element`          | type of Q, K, V and the output                                                        |
/// | `B::Ops`              | the ops of the device that it runs on (concept DeviceOps, same Element)               |
/// | `B::block_size`       | [tokens] of a KV block, std::int32_t constant                                         |
/// | `B::supports(d)`      | bool, constexpr: head dim `d` is one of those compiled in                             |
/// | `B(shape, ops)`       | `shape.kv.head_dim` supported, else InvalidArgument; `ops` outlives the backend       |
/// | `b.plan(metadata)`    | once a step, before any `run`; `metadata` stays valid until the last `run` of the step|
/// | `b.run(call)`         | one layer                                                                             |
template <class B>
concept AttentionBackend =
    requires { typename B::Element; typename B::Ops; } &&
    std::constructible_from<B, const AttentionShape&, typename B::Ops&> &&
    requires(B b, const AttentionMetadata& metadata, const AttentionCall<typename B::Element>& call, std::int32_t head_dim) {
      { B::block_size } -> std::convertible_to<std::int32_t>;
      { B::supports(head_dim) } -> std::same_as<bool>;
      b.plan(metadata);
      b.run(call);
    };

}  // namespace nvl::inline NVL_ABI
