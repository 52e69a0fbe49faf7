#pragma once
/// Concept AttentionBackend: queries against paged K and V.

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/step.hpp>
#include <nvl/ops/device_ops.hpp>

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
  std::span<const std::int32_t> block_stride{};  // [1] max_blocks_per_seq, where kernels read it
  std::int32_t num_tokens = 0;
  std::int32_t min_query_len = 0;  // [tokens] of the sequence with the fewest to compute, and of that with the most
  std::int32_t max_query_len = 0;
  // Of backends that give states (StatefulAttentionBackend):
  bool is_causal = true;  // false: every query of sequence s sees all of its keys, of which there may be none
  std::span<const std::int32_t> key_begins{};  // [S] the first key of sequence s that its queries see; none given: 0

  std::int32_t num_seqs() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
};

inline AttentionMetadata metadata_of(const StepInput& in) noexcept {
  return {.cu_query_lens = in.cu_query_lens,
          .seq_lens = in.seq_lens,
          .block_tables = in.block_tables,
          .max_blocks_per_seq = in.max_blocks_per_seq,
          .block_stride = in.block_stride,
          .num_tokens = in.num_tokens(),
          .min_query_len = in.min_query_len,
          .max_query_len = in.max_query_len};
}

/// Heads of one rank, fixed at construction.
struct AttentionShape {
  std::int32_t num_q_heads = 0;
  KvLayout kv;
  std::int32_t window = 0;      // [tokens] of the layers with a sliding window; 0 = there are none
  bool has_full_layers = true;  // there are layers without one
};

/// One layer's call: out = softmax(scale * q k^T + mask) v, causal, over the paged K and V that hold the new tokens already.
template <class T>
struct AttentionCall {
  T* out = nullptr;               // [num_tokens, num_q_heads, head_dim], rows contiguous
  const T* q = nullptr;           // [num_tokens, num_q_heads, head_dim] at the head of rows of `q_row_stride`
  std::int64_t q_row_stride = 0;  // [elements] from token to token
  const T* kv = nullptr;          // one layer, KvLayout
  float scale = 1.0f;
  std::int32_t window = 0;  // [tokens] visible to a query, itself included; 0 = all, and 0 where the mask is not causal
  float* lse = nullptr;     // [num_tokens, num_q_heads], of backends that give states; nullptr: not wanted
};

namespace detail::attention_backend {

template <class B>
concept has_types = requires {
  typename B::Element;
  typename B::Ops;
};
template <class B>
concept has_constructor = std::constructible_from<B, const AttentionShape&, typename B::Ops&>;
template <class B>
concept has_block_size = requires {
  { B::block_size } -> std::convertible_to<std::int32_t>;
};
template <class B>
concept has_supports = requires(std::int32_t head_dim) {
  { B::supports(head_dim) } -> std::same_as<bool>;
};
template <class B>
concept has_plan = requires(B b, const AttentionMetadata& metadata) { b.plan(metadata); };
template <class B>
concept has_run = requires(B b, const AttentionCall<typename B::Element>& call) { b.run(call); };

}  // namespace detail::attention_backend

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
concept AttentionBackend = detail::attention_backend::has_types<B> && detail::attention_backend::has_constructor<B> &&
                           detail::attention_backend::has_block_size<B> && detail::attention_backend::has_supports<B> &&
                           detail::attention_backend::has_plan<B> && detail::attention_backend::has_run<B>;

/// Refinement: the attention state of a query over some of its keys, to be merged with those over others (TokenSharingOps).
///
/// | expression        | meaning                                                                                                    |
/// |-------------------|------------------------------------------------------------------------------------------------------------|
/// | `B::gives_states` | true: `plan` heeds is_causal and key_begins; `run` writes to `lse` the natural log of the sum of exp(scores);|
/// |                   | of a query without keys, 0 to `out` and -infinity to `lse`                                                   |
template <class B>
concept StatefulAttentionBackend = AttentionBackend<B> && requires { requires B::gives_states; };

/// The least AttentionBackend. Declared, not defined.
struct AttentionBackendArchetype {
  using Element = DeviceOpsArchetype::Element;
  using Ops = DeviceOpsArchetype;
  static constexpr std::int32_t block_size = 16;
  static constexpr bool supports(std::int32_t) { return true; }
  AttentionBackendArchetype(const AttentionShape&, Ops&);
  void plan(const AttentionMetadata&);
  void run(const AttentionCall<Element>&);
};

/// True if B is an AttentionBackend; else the compiler says which member is missing. For use beside a backend of one's own:
/// `static_assert(nvl::require_attention_backend<MyBackend>());`
template <class B>
consteval bool require_attention_backend() {
  namespace has = detail::attention_backend;
  static_assert(has::has_types<B>, "nvl: an AttentionBackend needs the types `Element` and `Ops`");
  static_assert(has::has_constructor<B>, "nvl: an AttentionBackend needs a constructor from `const AttentionShape&, Ops&`");
  static_assert(has::has_block_size<B>, "nvl: an AttentionBackend needs `static constexpr std::int32_t block_size`");
  static_assert(has::has_supports<B>, "nvl: an AttentionBackend needs `static constexpr bool supports(std::int32_t head_dim)`");
  static_assert(has::has_plan<B>, "nvl: an AttentionBackend needs `void plan(const AttentionMetadata&)`");
  static_assert(has::has_run<B>, "nvl: an AttentionBackend needs `void run(const AttentionCall<Element>&)`");
  return true;
}
static_assert(require_attention_backend<AttentionBackendArchetype>());

}  // namespace nvl::inline NVL_ABI
