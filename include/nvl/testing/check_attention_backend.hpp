#pragma once
/// Conformance suite of the concept AttentionBackend: compares a backend with the double-precision oracle.
///
///     const auto broken = nvl::testing::check_attention_backend<MyBackend>();
///     if (!broken.empty()) { std::puts(broken.text().c_str()); }

#include <nvl/attention/attention_backend.hpp>
#include <nvl/core/checked.hpp>
#include <nvl/core/config.hpp>
#include <nvl/core/device_options.hpp>
#include <nvl/core/error.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/kv_layout.hpp>
#include <nvl/kernels/reference/attention.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/testing/violations.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace nvl::inline NVL_ABI::testing {

namespace detail {

/// Tokens of one sequence in a step: the last `num_queries` of its `seq_len` are computed.
struct AttentionCase {
  std::int32_t seq_len;
  std::int32_t num_queries;
};

/// A step of random sequences, with everything around them that must not be read poisoned.
template <class B>
class AttentionStep {
 public:
  using T = typename B::Element;
  using Device = typename B::Ops::Device;

  AttentionStep(Device& device, const AttentionShape& shape, std::span<const AttentionCase> cases, std::uint64_t seed)
      : shape_(shape),
        cases_(cases.begin(), cases.end()),
        random_(seed) {
    std::vector<BlockId> shuffled(static_cast<std::size_t>(shape.kv.num_blocks));
    for (std::size_t i = 0; i < shuffled.size(); ++i) { shuffled[i] = BlockId{static_cast<std::uint32_t>(i)}; }
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
    cu_query_lens_.push_back(0);
    for (const AttentionCase& c : cases_) {
      cu_query_lens_.push_back(cu_query_lens_.back() + c.num_queries);
      seq_lens_.push_back(c.seq_len);
      max_blocks_ = std::max(max_blocks_, ceil_div(c.seq_len, shape.kv.block_size));
    }
    auto next = shuffled.begin();
    for (const AttentionCase& c : cases_) {
      for (std::int32_t i = 0; i < max_blocks_; ++i) {
        const bool used = i < ceil_div(c.seq_len, shape.kv.block_size);
        block_tables_.push_back(used ? *next++ : BlockId{~0u});  // entries past a sequence's blocks are not read
      }
    }
    q_row_stride_ = (shape.num_q_heads + 2) * shape.kv.head_dim;  // wider than Q alone, as in a packed QKV row
    const auto num_tokens = static_cast<std::size_t>(cu_query_lens_.back());
    q_ = Buffer(device, std::max<std::size_t>(num_tokens * static_cast<std::size_t>(q_row_stride_), 1) * sizeof(T));
    out_ = Buffer(device, std::max<std::size_t>(num_tokens * static_cast<std::size_t>(out_row()), 1) * sizeof(T));
    kv_ = Buffer(device, static_cast<std::size_t>(shape.kv.layer_elements()) * sizeof(T));
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < num_tokens * static_cast<std::size_t>(q_row_stride_); ++i) { q()[i] = T(normal(random_)); }
  }

  AttentionMetadata metadata() const noexcept {
    return {
        .cu_query_lens = cu_query_lens_, .seq_lens = seq_lens_, .block_tables = block_tables_, .max_blocks_per_seq = max_blocks_};
  }

  /// New K and V: random where a sequence has tokens that a backend may read, NaN elsewhere.
  void fill_kv(std::int32_t window) {
    std::fill_n(kv(), static_cast<std::size_t>(shape_.kv.layer_elements()), T(std::numeric_limits<float>::quiet_NaN()));
    std::normal_distribution<float> normal;
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      const SlidingWindow visible{.tokens = window};
      const std::int32_t first = visible.first_read(cases_[s].seq_len - cases_[s].num_queries);
      for (std::int32_t position = first; position < cases_[s].seq_len; ++position) {
        for (std::int32_t head = 0; head < shape_.kv.num_kv_heads; ++head) {
          for (std::int32_t i = 0; i < shape_.kv.head_dim; ++i) {
            kv()[k_offset(s, position, head) + i] = T(normal(random_));
            kv()[v_offset(s, position, head) + i] = T(normal(random_));
          }
        }
      }
    }
  }

  void run(B& backend, std::int32_t window) {
    std::fill_n(out(), static_cast<std::size_t>(cu_query_lens_.back() * out_row()), T(std::numeric_limits<float>::quiet_NaN()));
    backend.run(
        AttentionCall<T>{.out = out(), .q = q(), .q_row_stride = q_row_stride_, .kv = kv(), .scale = scale(), .window = window});
  }

  /// States of all queries over some of the keys: all of these where the mask is not causal, and none of the first sequence.
  void check_states(Violations& broken, B& backend, bool is_causal) {
    std::vector<std::int32_t> begins, ends = seq_lens_;
    for (const AttentionCase& c : cases_) { begins.push_back((c.seq_len - (is_causal ? c.num_queries : 0)) / 2); }
    if (!is_causal) { begins.front() = ends.front() = 0; }
    AttentionMetadata metadata = this->metadata();
    metadata.seq_lens = ends;
    metadata.is_causal = is_causal;
    metadata.key_begins = begins;
    backend.plan(metadata);
    fill_kv(0);
    std::vector<float> lse(static_cast<std::size_t>(cu_query_lens_.back() * shape_.num_q_heads));
    backend.run(AttentionCall<T>{
        .out = out(), .q = q(), .q_row_stride = q_row_stride_, .kv = kv(), .scale = scale(), .window = 0, .lse = lse.data()});
    const std::string what = is_causal ? "causal states" : "states over all keys";
    double worst = 0;
    std::vector<T> actual;
    std::vector<double> expected;
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      for (std::int32_t row = cu_query_lens_[s]; row < cu_query_lens_[s + 1]; ++row) {
        const std::int32_t query = row - cu_query_lens_[s];
        const std::int32_t last = is_causal ? cases_[s].seq_len - cases_[s].num_queries + query : ends[s] - 1;
        for (std::int32_t head = 0; head < shape_.num_q_heads; ++head) {
          const T* const found = out() + row * out_row() + head * shape_.kv.head_dim;
          const float found_lse = lse[static_cast<std::size_t>(row * shape_.num_q_heads + head)];
          if (last < begins[s]) {
            broken.expect(found_lse == -std::numeric_limits<float>::infinity() &&
                              std::all_of(found, found + shape_.kv.head_dim, [](T x) { return static_cast<float>(x) == 0.0f; }),
                          what + ": without keys, not 0 and -infinity");
            continue;
          }
          actual.insert(actual.end(), found, found + shape_.kv.head_dim);
          const std::vector<double> values = oracle(s, query, head, begins[s], last);
          expected.insert(expected.end(), values.begin(), values.end());
          worst = std::max(worst, std::abs(double{found_lse} - log_sum_exp(s, query, head, begins[s], last)));
        }
      }
    }
    const double error = reference::nmse(std::span<const T>(actual), std::span<const double>(expected));
    broken.expect(error <= reference::max_nmse_of_few<T>, what + ": normalised mean square error " + nvl::detail::to_text(error));
    broken.expect(worst < 1e-3, what + ": a log-sum-exp is off by " + nvl::detail::to_text(worst));
  }

  /// Compares what `run` wrote with the oracle, sequence by sequence.
  void check(Violations& broken, std::int32_t window) {
    const auto head_dim = static_cast<std::size_t>(shape_.kv.head_dim);
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      std::vector<double> expected;
      for (std::int32_t j = 0; j < cases_[s].num_queries; ++j) {
        for (std::int32_t head = 0; head < shape_.num_q_heads; ++head) {
          const std::int32_t position = cases_[s].seq_len - cases_[s].num_queries + j;
          const std::int32_t begin = window > 0 ? std::max(0, position - window + 1) : 0;
          const std::vector<double> row = oracle(s, j, head, begin, position);
          expected.insert(expected.end(), row.begin(), row.end());
        }
      }
      const T* const actual = out() + cu_query_lens_[s] * out_row();
      const double error = reference::nmse(std::span<const T>(actual, expected.size()), std::span<const double>(expected));
      broken.expect(error <= reference::max_nmse_of_few<T>,
                    "seq_len " + std::to_string(cases_[s].seq_len) + ", " + std::to_string(cases_[s].num_queries) +
                        " queries, head_dim " + std::to_string(head_dim) + ", " + std::to_string(shape_.num_q_heads) + "/" +
                        std::to_string(shape_.kv.num_kv_heads) + " heads, window " + std::to_string(window) +
                        ": normalised mean square error " + nvl::detail::to_text(error));
    }
  }

 private:
  using Buffer = typename Device::Buffer;

  T* q() noexcept { return q_.template as<T>(); }
  T* out() noexcept { return out_.template as<T>(); }
  T* kv() noexcept { return kv_.template as<T>(); }
  std::int32_t out_row() const noexcept { return shape_.num_q_heads * shape_.kv.head_dim; }
  float scale() const noexcept { return 1.0f / std::sqrt(static_cast<float>(shape_.kv.head_dim)); }
  std::int64_t block_of(std::size_t s, std::int32_t position) const noexcept {
    return index_of(
        block_tables_[s * static_cast<std::size_t>(max_blocks_) + static_cast<std::size_t>(position / shape_.kv.block_size)]);
  }
  std::int64_t k_offset(std::size_t s, std::int32_t position, std::int32_t head) const noexcept {
    return shape_.kv.k_offset(block_of(s, position), head, position % shape_.kv.block_size);
  }
  std::int64_t v_offset(std::size_t s, std::int32_t position, std::int32_t head) const noexcept {
    return shape_.kv.v_offset(block_of(s, position), head, position % shape_.kv.block_size);
  }

  std::span<const T> query_of(std::size_t s, std::int32_t query, std::int32_t head) noexcept {
    return {q() + (cu_query_lens_[s] + query) * q_row_stride_ + head * shape_.kv.head_dim,
            static_cast<std::size_t>(shape_.kv.head_dim)};
  }

  /// What a query finds in the keys [first, last].
  std::vector<double> oracle(std::size_t s, std::int32_t query, std::int32_t head, std::int32_t first, std::int32_t last) {
    const auto head_dim = static_cast<std::size_t>(shape_.kv.head_dim);
    const std::int32_t kv_head = head / (shape_.num_q_heads / shape_.kv.num_kv_heads);
    std::vector<T> keys, values;
    for (std::int32_t p = 0; p <= last; ++p) {
      const T* const k = kv() + k_offset(s, p, kv_head);
      const T* const v = kv() + v_offset(s, p, kv_head);
      keys.insert(keys.end(), k, k + head_dim);
      values.insert(values.end(), v, v + head_dim);
    }
    return reference::attention<T>(query_of(s, query, head), keys, values, static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(last), scale());
  }

  double log_sum_exp(std::size_t s, std::int32_t query, std::int32_t head, std::int32_t first, std::int32_t last) {
    const std::span<const T> q_row = query_of(s, query, head);
    double sum = 0;
    for (std::int32_t p = first; p <= last; ++p) {
      const T* const k = kv() + k_offset(s, p, head / (shape_.num_q_heads / shape_.kv.num_kv_heads));
      double dot = 0;
      for (std::size_t i = 0; i < q_row.size(); ++i) { dot += double{static_cast<float>(q_row[i])} * static_cast<float>(k[i]); }
      sum += std::exp(dot * scale());
    }
    return std::log(sum);
  }

  AttentionShape shape_;
  std::vector<AttentionCase> cases_;
  std::mt19937_64 random_;
  std::vector<std::int32_t> cu_query_lens_, seq_lens_;
  std::vector<BlockId> block_tables_;
  std::int32_t max_blocks_ = 0;
  std::int64_t q_row_stride_ = 0;
  Buffer q_, out_, kv_;
};

}  // namespace detail

/// Everything that the tables of AttentionBackend and its refinement promise. For backends whose device shares the host's
/// memory. Prefill, chunk and decode in one step; sequences that end at a block's edge and beside it; several queries a KV
/// head; windows; no tokens; states.
template <AttentionBackend B>
Violations check_attention_backend(std::uint64_t seed = 1) {
  Violations broken;
  typename B::Ops::Device device{DeviceOptions{}};
  typename B::Ops ops(device);
  constexpr std::int32_t size = B::block_size;
  const std::vector<detail::AttentionCase> cases{{1, 1},
                                                 {size - 1, 1},
                                                 {size, size},
                                                 {size + 1, size + 1},
                                                 {3 * size, 5},
                                                 {2 * size + 1, 1},
                                                 {4 * size + 3, 2 * size},
                                                 {SlidingWindow().alignment + 2 * size + 3, 2}};
  std::vector<detail::AttentionCase> usable;
  std::int64_t num_blocks = 8;  // that are nobody's
  for (const detail::AttentionCase& c : cases) {
    if (c.seq_len < c.num_queries || c.num_queries == 0) { continue; }
    usable.push_back(c);
    num_blocks += ceil_div(c.seq_len, size);
  }
  bool any = false, refused = false;
  for (std::int32_t head_dim = 1; head_dim <= 1024; ++head_dim) {
    KvLayout layout{.num_blocks = num_blocks, .block_size = size, .num_kv_heads = 2, .head_dim = head_dim};
    if (!B::supports(head_dim)) {
      if (refused) { continue; }
      refused = true;
      bool threw = false;
      contain([&] { B backend(AttentionShape{.num_q_heads = 2, .kv = layout}, ops); }, [&](const char*) { threw = true; });
      broken.expect(threw, "head_dim " + std::to_string(head_dim) + " is not supported, and the constructor takes it");
      continue;
    }
    any = true;
    for (const std::int32_t group : {1, 3, 4}) {
      const AttentionShape shape{.num_q_heads = group * layout.num_kv_heads, .kv = layout};
      detail::AttentionStep<B> step(device, shape, usable, seed);
      B backend(shape, ops);
      backend.plan(step.metadata());
      for (const std::int32_t window : {0, 1, size + 2}) {  // one plan, several layers
        step.fill_kv(window);
        step.run(backend, window);
        step.check(broken, window);
      }
      if constexpr (StatefulAttentionBackend<B>) {
        step.check_states(broken, backend, true);
        step.check_states(broken, backend, false);
      }
      detail::AttentionStep<B> nothing(device, shape, {}, seed);
      backend.plan(nothing.metadata());
      nothing.run(backend, 0);
    }
  }
  broken.expect(any, "no head dimension from 1 to 1024 is supported");
  return broken;
}

}  // namespace nvl::inline NVL_ABI::testing
