#pragma once
/// One case of decode attention with random data: on the device for the kernel, on the host for the oracle.

#include "kernels/paged_attention_decode_cases.hpp"
#include "support/device.cuh"

#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/paged_attention_decode.cuh>
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
#include <vector>

namespace nvl_test {

/// Whatever no sequence sees holds NaN: slots past its length, blocks of nobody, gaps between rows of q, out before the call.
template <class T>
class DecodeProblem {
 public:
  explicit DecodeProblem(const DecodeCase& shape, std::uint32_t seed = 1) : shape_(shape) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<T> values(1 << 14);
    for (T& v : values) { v = static_cast<T>(normal(random)); }
    const auto fill = [&](std::span<T> to) {
      for (T& v : to) { v = values[random() % values.size()]; }
    };

    const auto d = static_cast<std::size_t>(shape.head_dim);
    std::vector<std::int32_t> seq_lens, cu{0};
    std::int64_t used = 0, total = 0;
    std::int32_t stride = 1;
    for (const DecodeSequence& s : shape.sequences) {
      seq_lens.push_back(s.seq_len);
      cu.push_back(cu.back() + s.query_len);
      const std::int32_t blocks = (s.seq_len + shape.block_size - 1) / shape.block_size;
      used += blocks;
      total += s.seq_len;
      stride = std::max(stride, blocks + 1);
    }
    num_rows_ = cu.back() + shape.padding_seqs;
    for (std::int32_t i = 0; i < shape.padding_seqs; ++i) {
      seq_lens.push_back(0);
      cu.push_back(cu.back() + 1);
    }
    nvl::KvLayout layout{.num_blocks = shape.first_block + used + 2,
                         .block_size = shape.block_size,
                         .num_kv_heads = shape.num_kv_heads,
                         .head_dim = shape.head_dim};
    std::vector<std::int64_t> order(static_cast<std::size_t>(used) + 2);
    std::iota(order.begin(), order.end(), shape.first_block);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<nvl::BlockId> table(seq_lens.size() * static_cast<std::size_t>(stride), nvl::BlockId{0xffffffffu});
    // The host keeps the part of the pool that is in use.
    const nvl::KvLayout used_layout{used + 2, layout.block_size, layout.num_kv_heads, layout.head_dim};
    const T nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    std::vector<T> pool(static_cast<std::size_t>(used_layout.layer_elements()), nan);
    std::size_t next = 0;
    for (std::size_t s = 0; s < shape.sequences.size(); ++s) {
      const auto n = static_cast<std::size_t>(shape.sequences[s].seq_len);
      for (std::int32_t h = 0; h < shape.num_kv_heads; ++h) {
        keys_.emplace_back(n * d);
        values_.emplace_back(n * d);
        fill(keys_.back());
        fill(values_.back());
      }
      for (std::size_t first = 0; first < n; first += static_cast<std::size_t>(shape.block_size)) {
        const std::int64_t id = order[next++];
        table[s * static_cast<std::size_t>(stride) + first / static_cast<std::size_t>(shape.block_size)] = nvl::BlockId(id);
        const std::size_t count = std::min(n - first, static_cast<std::size_t>(shape.block_size)) * d;
        for (std::int32_t h = 0; h < shape.num_kv_heads; ++h) {
          const std::size_t at = s * static_cast<std::size_t>(shape.num_kv_heads) + static_cast<std::size_t>(h);
          std::copy_n(keys_[at].data() + first * d, count, pool.data() + used_layout.k_offset(id - shape.first_block, h, 0));
          std::copy_n(values_[at].data() + first * d, count, pool.data() + used_layout.v_offset(id - shape.first_block, h, 0));
        }
      }
    }
    const std::int64_t q_stride = std::int64_t{shape.num_q_heads} * shape.head_dim + shape.extra_stride;
    q_.assign(static_cast<std::size_t>(num_rows_ * q_stride), nan);
    for (std::int32_t r = 0; r < num_rows_; ++r) {
      fill(std::span(q_).subspan(static_cast<std::size_t>(r * q_stride), static_cast<std::size_t>(shape.num_q_heads) * d));
    }
    q_device_ = DeviceVector<T>(q_);
    kv_device_ = DeviceVector<T>(static_cast<std::size_t>(layout.layer_elements()));
    NVL_CUDA_CHECK(cudaMemcpy(kv_device_.data() + layout.k_offset(shape.first_block, 0, 0), pool.data(), pool.size() * sizeof(T),
                              cudaMemcpyHostToDevice));
    out_device_ = DeviceVector<T>(static_cast<std::size_t>(num_rows_) * static_cast<std::size_t>(shape.num_q_heads) * d);
    table_device_ = DeviceVector<nvl::BlockId>(table);
    stride_device_ = DeviceVector<std::int32_t>(std::vector<std::int32_t>{stride});
    seq_lens_device_ = DeviceVector<std::int32_t>(seq_lens);
    cu_device_ = DeviceVector<std::int32_t>(cu);
    params_ = {.out = out_device_.data(),
               .q = q_device_.data(),
               .q_row_stride = q_stride,
               .kv = kv_device_.data(),
               .layout = layout,
               .block_tables = table_device_.data(),
               .block_stride = stride_device_.data(),
               .seq_lens = seq_lens_device_.data(),
               .cu_query_lens = cu_device_.data(),
               .num_seqs = static_cast<std::int32_t>(seq_lens.size()),
               .num_q_heads = shape.num_q_heads,
               .max_query_len = shape.max_query_len,
               .window = shape.window,
               .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
               .softcap = shape.softcap,
               .split_tokens = shape.split_tokens,
               .max_seqs = static_cast<std::int32_t>(seq_lens.size()),
               .max_kv_tokens = total};
    workspace_ = DeviceVector<std::byte>(nvl::kernels::with_paged_decode_traits(
        params_, [&]<class Traits>() { return nvl::kernels::paged_decode_workspace_bytes<Traits>(params_); }));
    if (workspace_.size() > 0) { NVL_CUDA_CHECK(cudaMemset(workspace_.data(), 0, workspace_.size())); }
    params_.workspace = workspace_.data();
  }

  nvl::kernels::PagedDecodeParams<T>& params() { return params_; }
  const DecodeCase& shape() const { return shape_; }

  void plan(cudaStream_t stream = nullptr) {
    nvl::kernels::with_paged_decode_traits(
        params_, [&]<class Traits>() { nvl::kernels::launch_paged_decode_plan<Traits>(params_, stream); });
  }
  void run(cudaStream_t stream = nullptr) {
    nvl::kernels::with_paged_decode_traits(params_,
                                           [&]<class Traits>() { nvl::kernels::launch_paged_decode<Traits>(params_, stream); });
  }
  void poison_out() { NVL_CUDA_CHECK(cudaMemset(out_device_.data(), 0xff, out_device_.size() * sizeof(T))); }
  std::vector<T> out() const { return out_device_.to_host(); }

  bool is_decoded(std::size_t seq) const { return shape_.sequences[seq].query_len <= shape_.max_query_len; }

  /// NMSE over the rows that are decoded; infinite if a row that is not was written.
  double error(const std::vector<T>& out) const {
    const auto d = static_cast<std::size_t>(shape_.head_dim);
    const auto heads = static_cast<std::size_t>(shape_.num_q_heads);
    std::vector<T> actual;
    std::vector<double> expected;
    std::size_t row = 0;
    bool untouched = true;
    for (std::size_t s = 0; s < shape_.sequences.size(); ++s) {
      const DecodeSequence& seq = shape_.sequences[s];
      for (std::int32_t i = 0; i < seq.query_len; ++i, ++row) {
        if (!is_decoded(s)) {
          untouched = untouched && is_poison(out, row);
          continue;
        }
        const std::int32_t position = seq.seq_len - seq.query_len + i;
        const std::int32_t first = shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
        for (std::size_t h = 0; h < heads; ++h) {
          const std::size_t at =
              s * static_cast<std::size_t>(shape_.num_kv_heads) + h / (heads / static_cast<std::size_t>(shape_.num_kv_heads));
          const auto query = std::span<const T>(q_).subspan(row * static_cast<std::size_t>(params_.q_row_stride) + h * d, d);
          const std::vector<double> row_of_head = nvl::reference::attention<T>(
              query, keys_[at], values_[at], static_cast<std::size_t>(first), static_cast<std::size_t>(position),
              static_cast<double>(params_.scale), static_cast<double>(shape_.softcap));
          expected.insert(expected.end(), row_of_head.begin(), row_of_head.end());
          actual.insert(actual.end(), out.begin() + static_cast<std::ptrdiff_t>((row * heads + h) * d),
                        out.begin() + static_cast<std::ptrdiff_t>((row * heads + h + 1) * d));
        }
      }
    }
    for (; row < static_cast<std::size_t>(num_rows_); ++row) { untouched = untouched && is_poison(out, row); }
    return untouched ? nvl::reference::nmse(actual, expected) : std::numeric_limits<double>::infinity();
  }

 private:
  bool is_poison(const std::vector<T>& out, std::size_t row) const {
    const std::size_t size = static_cast<std::size_t>(shape_.num_q_heads) * static_cast<std::size_t>(shape_.head_dim);
    return std::all_of(out.begin() + static_cast<std::ptrdiff_t>(row * size),
                       out.begin() + static_cast<std::ptrdiff_t>((row + 1) * size),
                       [](T x) { return std::isnan(static_cast<float>(x)); });
  }

  DecodeCase shape_;
  std::int32_t num_rows_ = 0;
  std::vector<std::vector<T>> keys_, values_;  // [sequence, KV head]
  std::vector<T> q_;
  DeviceVector<T> q_device_, kv_device_, out_device_;
  DeviceVector<nvl::BlockId> table_device_;
  DeviceVector<std::int32_t> stride_device_, seq_lens_device_, cu_device_;
  DeviceVector<std::byte> workspace_;
  nvl::kernels::PagedDecodeParams<T> params_;
};

}  // namespace nvl_test
