#pragma once
/// Attention over paged K and V on the CPU: prefill, chunks and decode, GQA, sliding window.
/// Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; tiles as in Dao et al. 2022, arXiv:2205.14135.

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/core/thread_pool.hpp>
#include <nvl/ops/cpu_ops.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI {

/// HeadDim of a backend that takes any of `supported_head_dims`, chosen at run time.
inline constexpr std::int32_t dynamic_head_dim = 0;

/// K and V tiles start at absolute positions, so that a row's sums do not depend on how its prompt was cut into steps.
template <class T, std::int32_t HeadDim = dynamic_head_dim, std::int32_t BlockSize = 16>
class CpuPagedAttention {
  static_assert(HeadDim == dynamic_head_dim || is_supported_head_dim(HeadDim),
                "nvl: CpuPagedAttention is not compiled for this HeadDim (core/supported.hpp has the list)");
  static_assert(BlockSize > 0, "nvl: a KV block holds at least one token");

 public:
  using Element = T;
  using Ops = CpuOps<T>;
  static constexpr std::int32_t block_size = BlockSize;

  static constexpr bool supports(std::int32_t head_dim) noexcept {
    return HeadDim == dynamic_head_dim ? is_supported_head_dim(head_dim) : head_dim == HeadDim;
  }

  CpuPagedAttention(const AttentionShape& shape, Ops& ops) : shape_(shape), threads_(ops.threads()) {
    NVL_EXPECTS(supports(shape.kv.head_dim), "head_dim", shape.kv.head_dim,
                "one of those compiled in: " +
                    (HeadDim == dynamic_head_dim ? supported_head_dims_text() : std::to_string(HeadDim)));
    NVL_EXPECTS(shape.kv.block_size == BlockSize, "block_size of the KV cache", shape.kv.block_size,
                "that of the attention backend (" + std::to_string(BlockSize) + ")");
    NVL_EXPECTS(shape.kv.num_kv_heads > 0 && shape.num_q_heads % shape.kv.num_kv_heads == 0, "num_q_heads", shape.num_q_heads,
                "a multiple of num_kv_heads (" + std::to_string(shape.kv.num_kv_heads) + ")");
  }

  void plan(const AttentionMetadata& metadata) { metadata_ = metadata; }

  void run(const AttentionCall<T>& call) {
    for (std::int32_t s = 0; s < metadata_.num_seqs(); ++s) {
      const auto su = static_cast<std::size_t>(s);
      const std::int32_t first_row = metadata_.cu_query_lens[su];
      const std::int32_t num_queries = metadata_.cu_query_lens[su + 1] - first_row;
      const std::int32_t first_position = metadata_.seq_lens[su] - num_queries;
      threads_.parallel_for(std::int64_t{num_queries} * shape_.num_q_heads, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const auto query = static_cast<std::int32_t>(i / shape_.num_q_heads);
          const auto head = static_cast<std::int32_t>(i % shape_.num_q_heads);
          attend(call, s, first_row + query, first_position + query, head);
        }
      });
    }
  }

 private:
  void attend(const AttentionCall<T>& call, std::int32_t s, std::int32_t row, std::int32_t position, std::int32_t head) {
    const std::int32_t d = shape_.kv.head_dim;
    const std::int32_t kv_head = head / (shape_.num_q_heads / shape_.kv.num_kv_heads);
    const T* const q = call.q + row * call.q_row_stride + std::int64_t{head} * d;
    const std::int32_t first = call.window > 0 ? std::max(0, position - call.window + 1) : 0;
    const BlockId* const blocks = metadata_.block_tables.data() + std::int64_t{s} * metadata_.max_blocks_per_seq;
    std::vector<float> acc(static_cast<std::size_t>(d), 0.0f);
    float max = -INFINITY, sum = 0.0f;
    for (std::int32_t p = first; p <= position; ++p) {
      const std::int64_t block = index_of(blocks[p / BlockSize]);
      const T* const k = call.kv + shape_.kv.k_offset(block, kv_head, p % BlockSize);
      const T* const v = call.kv + shape_.kv.v_offset(block, kv_head, p % BlockSize);
      float score = 0.0f;
      for (std::int32_t i = 0; i < d; ++i) { score += static_cast<float>(q[i]) * static_cast<float>(k[i]); }
      score *= call.scale;
      const float new_max = std::max(max, score);
      const float keep = std::exp(max - new_max);
      const float weight = std::exp(score - new_max);
      sum = sum * keep + weight;
      max = new_max;
      for (std::int32_t i = 0; i < d; ++i) {
        acc[static_cast<std::size_t>(i)] = acc[static_cast<std::size_t>(i)] * keep + weight * static_cast<float>(v[i]);
      }
    }
    T* const out = call.out + (std::int64_t{row} * shape_.num_q_heads + head) * d;
    for (std::int32_t i = 0; i < d; ++i) { out[i] = static_cast<T>(acc[static_cast<std::size_t>(i)] / sum); }
  }

  AttentionShape shape_;
  ThreadPool& threads_;
  AttentionMetadata metadata_;
};

static_assert(AttentionBackend<CpuPagedAttention<float>>);
static_assert(AttentionBackend<CpuPagedAttention<bf16, 128>>);

}  // namespace nvl::inline NVL_ABI
