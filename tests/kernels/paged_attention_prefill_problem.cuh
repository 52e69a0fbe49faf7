#pragma once
/// One case of prefill attention with random data: on the device for the kernel, on the host for the oracle.

#include "kernels/paged_attention_prefill_cases.hpp"

#include <nvl/core/dtype.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/detail/launch.cuh>
#include <nvl/kernels/paged_attention_prefill_plan.cuh>
#include <nvl/kernels/reference/attention.hpp>
#include <nvl/kernels/reference/error_measure.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace nvl_test {

/// Normal values, fast: drawn from a table.
template <class T>
class NormalSource {
 public:
  explicit NormalSource(std::uint32_t seed) : random_(seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    table_.resize(table_size);
    for (T& value : table_) { value = static_cast<T>(normal(random)); }
  }
  void fill(std::span<T> to) {
    for (std::size_t i = 0; i < to.size(); i += 4) {
      const std::uint64_t bits = random_();
      for (std::size_t j = 0; j < 4 && i + j < to.size(); ++j) { to[i + j] = table_[(bits >> (16 * j)) % table_size]; }
    }
  }

 private:
  static constexpr std::size_t table_size = 1 << 14;
  std::vector<T> table_;
  std::mt19937_64 random_;
};

/// Every slot of the KV pool that no sequence sees holds NaN; so do the gaps between rows of q, and out before the call.
/// Buffer<X> owns an array on the device that reads as 0xff bytes where nobody wrote.
template <class T, template <class> class Buffer>
class PrefillProblem {
 public:
  explicit PrefillProblem(const PrefillCase& shape, std::uint32_t seed = 1)
      : shape_(shape),
        scale_(1.0f / std::sqrt(float(shape.head_dim))) {
    NormalSource<T> normal(seed);
    const std::size_t d = static_cast<std::size_t>(shape.head_dim);
    layout_ = {.block_size = shape.block_size, .num_kv_heads = shape.num_kv_heads, .head_dim = shape.head_dim};
    cu_.push_back(0);
    std::int32_t used_blocks = 0, max_blocks = 1;
    for (const PrefillSequence& s : shape.sequences) {
      cu_.push_back(cu_.back() + s.query_len);
      seq_lens_.push_back(s.seq_len);
      const std::int32_t blocks = (s.seq_len + shape.block_size - 1) / shape.block_size;
      used_blocks += blocks;
      max_blocks = std::max(max_blocks, blocks);
    }
    max_blocks_ = max_blocks + 1;
    layout_.num_blocks = shape.first_block + used_blocks + 2;
    num_tokens_ = cu_.back() + shape.padding_tokens;
    q_stride_ = std::int64_t{shape.num_q_heads} * shape.head_dim + shape.extra_stride;

    std::vector<std::uint32_t> order(static_cast<std::size_t>(used_blocks + 2));
    std::iota(order.begin(), order.end(), static_cast<std::uint32_t>(shape.first_block));
    std::mt19937 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<nvl::BlockId> table(shape.sequences.size() * static_cast<std::size_t>(max_blocks_), nvl::BlockId{0xffffffffu});
    kv_device_ = Buffer<T>(static_cast<std::size_t>(layout_.layer_elements()));
    const T nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    std::vector<T> block(static_cast<std::size_t>(layout_.block_elements()));
    std::size_t next = 0;
    for (std::size_t s = 0; s < shape.sequences.size(); ++s) {
      const auto seq_len = static_cast<std::size_t>(shape.sequences[s].seq_len);
      keys_.emplace_back(static_cast<std::size_t>(shape.num_kv_heads) * seq_len * d);
      values_.emplace_back(keys_.back().size());
      normal.fill(keys_.back());
      normal.fill(values_.back());
      for (std::size_t b = 0; b * static_cast<std::size_t>(shape.block_size) < seq_len; ++b) {
        const std::uint32_t id = order[next++];
        table[s * static_cast<std::size_t>(max_blocks_) + b] = nvl::BlockId{id};
        std::fill(block.begin(), block.end(), nan);
        const std::size_t first = b * static_cast<std::size_t>(shape.block_size);
        const std::size_t count = std::min(seq_len - first, static_cast<std::size_t>(shape.block_size)) * d;
        for (std::int32_t h = 0; h < shape.num_kv_heads; ++h) {
          const std::size_t from = (static_cast<std::size_t>(h) * seq_len + first) * d;
          std::copy_n(keys_[s].begin() + static_cast<std::ptrdiff_t>(from), count, block.begin() + layout_.k_offset(0, h, 0));
          std::copy_n(values_[s].begin() + static_cast<std::ptrdiff_t>(from), count, block.begin() + layout_.v_offset(0, h, 0));
        }
        NVL_CUDA_CHECK(cudaMemcpy(kv_device_.data() + layout_.k_offset(id, 0, 0), block.data(), block.size() * sizeof(T),
                                  cudaMemcpyHostToDevice));
      }
    }
    q_.assign(static_cast<std::size_t>(num_tokens_ * q_stride_), nan);
    for (std::int32_t t = 0; t < cu_.back(); ++t) {
      normal.fill(
          std::span(q_).subspan(static_cast<std::size_t>(t * q_stride_), static_cast<std::size_t>(shape.num_q_heads) * d));
    }
    q_device_ = Buffer<T>(q_);
    const std::size_t rows = static_cast<std::size_t>(num_tokens_) * static_cast<std::size_t>(shape.num_q_heads);
    out_device_ = Buffer<T>(rows * d);
    lse_device_ = Buffer<float>(rows);
    table_device_ = Buffer<nvl::BlockId>(table);
    seq_lens_device_ = Buffer<std::int32_t>(seq_lens_);
    cu_device_ = Buffer<std::int32_t>(cu_);
    stride_device_ = Buffer<std::int32_t>(std::vector<std::int32_t>{max_blocks_});
    workspace_ = Buffer<std::byte>(nvl::kernels::paged_prefill_workspace_bytes<T>(
        num_tokens_, static_cast<std::int32_t>(seq_lens_.size()), shape.num_q_heads, shape.num_kv_heads, shape.head_dim));
  }

  /// Gives the query at `position` of the only sequence values that depend on nothing but it and `seed`.
  void set_queries(std::int32_t first_position, std::uint32_t seed) {
    const std::size_t row = static_cast<std::size_t>(shape_.num_q_heads) * static_cast<std::size_t>(shape_.head_dim);
    for (std::int32_t t = 0; t < cu_.back(); ++t) {
      NormalSource<T> normal(seed + static_cast<std::uint32_t>(first_position + t));
      normal.fill(std::span(q_).subspan(static_cast<std::size_t>(t * q_stride_), row));
    }
    q_device_.upload(q_);
  }

  std::vector<T> out() const { return out_device_.to_host(); }

  nvl::kernels::PagedPrefillParams<T> params() {
    return {.out = out_device_.data(),
            .lse = lse_device_.data(),
            .q = q_device_.data(),
            .q_row_stride = q_stride_,
            .kv = kv_device_.data(),
            .layout = layout_,
            .block_tables = table_device_.data(),
            .max_blocks_per_seq = shape_.device_block_stride ? 0 : max_blocks_,
            .block_stride = shape_.device_block_stride ? stride_device_.data() : nullptr,
            .seq_lens = seq_lens_device_.data(),
            .cu_query_lens = cu_device_.data(),
            .num_seqs = static_cast<std::int32_t>(seq_lens_.size()),
            .num_tokens = num_tokens_,
            .num_q_heads = shape_.num_q_heads,
            .window = shape_.window,
            .min_query_len = shape_.min_query_len,
            .scale = scale_,
            .softcap = shape_.softcap,
            .workspace = workspace_.data()};
  }

  struct Errors {
    double out = 0.0;           // NMSE of the checked rows
    double lse = 0.0;           // largest difference
    std::size_t checked = 0;    // rows
    std::size_t touched = 0;    // elements written outside of the sequences' rows
    std::size_t unwritten = 0;  // elements left alone or not finite
  };

  /// Compares with the oracle: every row of short sequences, about `max_rows` of each long one.
  Errors check(std::size_t max_rows = 400) const {
    const std::vector<T> out = out_device_.to_host();
    const std::vector<float> lse = lse_device_.to_host();
    const auto d = static_cast<std::size_t>(shape_.head_dim);
    const std::int32_t heads = shape_.num_q_heads;
    const std::int32_t group = heads / shape_.num_kv_heads;
    Errors errors;
    std::vector<T> actual;
    std::vector<double> expected;
    std::vector<bool> is_row(static_cast<std::size_t>(num_tokens_), false);
    for (std::size_t s = 0; s < seq_lens_.size(); ++s) {
      const std::int32_t query_len = cu_[s + 1] - cu_[s];
      if (query_len < shape_.min_query_len || query_len == 0 || seq_lens_[s] == 0) { continue; }
      const std::size_t total = static_cast<std::size_t>(query_len) * static_cast<std::size_t>(heads);
      const std::size_t step = std::max<std::size_t>(1, total / max_rows);
      for (std::int32_t i = 0; i < query_len; ++i) { is_row[static_cast<std::size_t>(cu_[s] + i)] = true; }
      // From the last row down, so that the row with the most keys is among them.
      for (std::size_t at = 0; at < total; at += step) {
        const std::size_t row = total - 1 - at;
        const auto query = static_cast<std::int32_t>(row) / heads;
        const auto head = static_cast<std::int32_t>(row) % heads;
        const auto token = static_cast<std::size_t>(cu_[s] + query);
        const std::int32_t position = seq_lens_[s] - query_len + query;
        const std::int32_t first = shape_.window > 0 ? std::max(0, position + 1 - shape_.window) : 0;
        const auto seq_len = static_cast<std::size_t>(seq_lens_[s]);
        const std::size_t kv = static_cast<std::size_t>(head / group) * seq_len * d;
        double expected_lse = 0.0;
        const auto want = nvl::reference::attention<T>(
            std::span(q_).subspan(token * static_cast<std::size_t>(q_stride_) + static_cast<std::size_t>(head) * d, d),
            std::span(keys_[s]).subspan(kv, seq_len * d), std::span(values_[s]).subspan(kv, seq_len * d),
            static_cast<std::size_t>(first), static_cast<std::size_t>(position), scale_, shape_.softcap, &expected_lse);
        const std::size_t at_out = token * static_cast<std::size_t>(heads) + static_cast<std::size_t>(head);
        actual.insert(actual.end(), out.begin() + static_cast<std::ptrdiff_t>(at_out * d),
                      out.begin() + static_cast<std::ptrdiff_t>((at_out + 1) * d));
        expected.insert(expected.end(), want.begin(), want.end());
        const double lse_error = std::abs(expected_lse - double{lse[at_out]});
        errors.lse = std::isfinite(lse_error) ? std::max(errors.lse, lse_error) : std::numeric_limits<double>::infinity();
        ++errors.checked;
      }
    }
    errors.out = nvl::reference::nmse(actual, expected);
    const std::size_t row_elements = static_cast<std::size_t>(heads) * d;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool finite = std::isfinite(static_cast<float>(out[i]));
      if (is_row[i / row_elements]) {
        errors.unwritten += finite ? 0 : 1;
      } else {
        errors.touched += finite ? 1 : 0;
      }
    }
    return errors;
  }

  /// 4 d FLOP for every pair of a query and a key it sees, or, as the peers count, half of 4 S^2 d for a whole prompt.
  double flops() const {
    double pairs = 0.0;
    for (const PrefillSequence& s : shape_.sequences) {
      pairs += double(s.query_len) * (double(s.seq_len) - 0.5 * double(s.query_len));
    }
    return 4.0 * pairs * shape_.head_dim * shape_.num_q_heads;
  }

 private:
  PrefillCase shape_;
  nvl::KvLayout layout_;
  float scale_;
  std::int32_t max_blocks_ = 0, num_tokens_ = 0;
  std::int64_t q_stride_ = 0;
  std::vector<std::int32_t> cu_, seq_lens_;
  std::vector<T> q_;
  std::vector<std::vector<T>> keys_, values_;  // of a sequence: [num_kv_heads, seq_len, head_dim]
  Buffer<T> kv_device_, q_device_, out_device_;
  Buffer<float> lse_device_;
  Buffer<nvl::BlockId> table_device_;
  Buffer<std::int32_t> seq_lens_device_, cu_device_, stride_device_;
  Buffer<std::byte> workspace_;
};

}  // namespace nvl_test
