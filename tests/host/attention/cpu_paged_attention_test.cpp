#include <nvl/attention/cpu_paged_attention.hpp>

#include <nvl/core/device_options.hpp>
#include <nvl/core/supported.hpp>
#include <nvl/kernels/reference/attention.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/ops/cpu_device.hpp>
#include <nvl/ops/cpu_ops.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <support/expect_error.hpp>
#include <support/random_tensor.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace cpu_paged_attention_test {

using namespace nvl;
using nvl_test::random_values;

namespace {

struct Heads {
  std::int32_t q = 1, kv = 1, dim = 64;
};

/// Sequences whose K and V lie in shuffled blocks. Slots that no token fills, and every block that no sequence owns, are NaN.
template <class T, std::int32_t BlockSize = 16>
class PagedCase {
 public:
  PagedCase(Heads heads, std::vector<std::int32_t> seq_lens, std::uint32_t seed) : heads_(heads), seq_lens_(std::move(seq_lens)) {
    std::int32_t num_blocks = 3;
    for (const std::int32_t n : seq_lens_) {
      max_blocks_ = std::max(max_blocks_, (n + BlockSize - 1) / BlockSize);
      num_blocks += (n + BlockSize - 1) / BlockSize;
    }
    layout_ = {.num_blocks = num_blocks, .block_size = BlockSize, .num_kv_heads = heads.kv, .head_dim = heads.dim};
    std::vector<std::uint32_t> free(static_cast<std::size_t>(num_blocks));
    std::iota(free.begin(), free.end(), 0u);
    std::shuffle(free.begin(), free.end(), std::mt19937(seed));
    // Past a sequence's blocks the table holds ids that do not exist.
    tables_.assign(seq_lens_.size() * static_cast<std::size_t>(max_blocks_), BlockId{0xfffffff0u});
    kv_.assign(static_cast<std::size_t>(layout_.layer_elements()), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
    for (std::size_t s = 0; s < seq_lens_.size(); ++s) {
      const auto n = static_cast<std::size_t>(seq_lens_[s]);
      const std::size_t row = n * static_cast<std::size_t>(heads.dim);
      q_.push_back(
          random_values<T>(n * static_cast<std::size_t>(heads.q * heads.dim), seed + 10 + static_cast<std::uint32_t>(s), 2.0f));
      k_.push_back(random_values<T>(row * static_cast<std::size_t>(heads.kv), seed + 20 + static_cast<std::uint32_t>(s)));
      v_.push_back(random_values<T>(row * static_cast<std::size_t>(heads.kv), seed + 30 + static_cast<std::uint32_t>(s)));
      for (std::int32_t p = 0; p < seq_lens_[s]; ++p) {
        BlockId& id = tables_[s * static_cast<std::size_t>(max_blocks_) + static_cast<std::size_t>(p / BlockSize)];
        if (p % BlockSize == 0) {
          id = BlockId{free.back()};
          free.pop_back();
        }
        for (std::int32_t h = 0; h < heads.kv; ++h) {
          const std::size_t from =
              (static_cast<std::size_t>(h) * n + static_cast<std::size_t>(p)) * static_cast<std::size_t>(heads.dim);
          std::copy_n(k_[s].data() + from, heads.dim, kv_.data() + layout_.k_offset(index_of(id), h, p % BlockSize));
          std::copy_n(v_[s].data() + from, heads.dim, kv_.data() + layout_.v_offset(index_of(id), h, p % BlockSize));
        }
      }
    }
  }

  /// Computes positions [begin[s], end[s]) of every sequence in one step.
  template <class Attention>
  std::vector<std::vector<T>> run(Attention& attention, const std::vector<std::int32_t>& begin,
                                  const std::vector<std::int32_t>& end, std::int32_t window = 0) const {
    std::vector<std::int32_t> cu{0};
    std::vector<T> q;
    const std::size_t q_row = static_cast<std::size_t>(heads_.q * heads_.dim);
    const std::size_t stride = q_row + 24;  // rows that are not contiguous, as Q inside QKV
    for (std::size_t s = 0; s < seq_lens_.size(); ++s) {
      for (std::int32_t p = begin[s]; p < end[s]; ++p) {
        q.insert(q.end(), q_[s].begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p) * q_row),
                 q_[s].begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p + 1) * q_row));
        q.insert(q.end(), 24, static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
      }
      cu.push_back(cu.back() + end[s] - begin[s]);
    }
    std::vector<T> out(static_cast<std::size_t>(cu.back()) * q_row);
    attention.plan({.cu_query_lens = cu, .seq_lens = end, .block_tables = tables_, .max_blocks_per_seq = max_blocks_});
    attention.run({.out = out.data(),
                   .q = q.data(),
                   .q_row_stride = static_cast<std::int64_t>(stride),
                   .kv = kv_.data(),
                   .scale = scale(),
                   .window = window});
    std::vector<std::vector<T>> result;
    for (std::size_t s = 0; s < seq_lens_.size(); ++s) {
      result.emplace_back(out.begin() + cu[s] * static_cast<std::ptrdiff_t>(q_row),
                          out.begin() + cu[s + 1] * static_cast<std::ptrdiff_t>(q_row));
    }
    return result;
  }

  template <class Attention>
  std::vector<std::vector<T>> run_whole(Attention& attention, std::int32_t window = 0) const {
    return run(attention, std::vector<std::int32_t>(seq_lens_.size(), 0), seq_lens_, window);
  }

  /// All positions of sequence `s`, [seq_len, q heads, dim].
  std::vector<double> expected(std::size_t s, std::int32_t window = 0) const {
    std::vector<double> out;
    const auto n = static_cast<std::size_t>(seq_lens_[s]), d = static_cast<std::size_t>(heads_.dim);
    for (std::size_t p = 0; p < n; ++p) {
      const std::size_t first =
          window > 0 && p + 1 > static_cast<std::size_t>(window) ? p + 1 - static_cast<std::size_t>(window) : 0;
      for (std::int32_t h = 0; h < heads_.q; ++h) {
        const auto kv_head = static_cast<std::size_t>(h / (heads_.q / heads_.kv));
        const std::span<const T> query(q_[s].data() + (p * static_cast<std::size_t>(heads_.q) + static_cast<std::size_t>(h)) * d,
                                       d);
        const std::span<const T> keys(k_[s].data() + kv_head * n * d, n * d), values(v_[s].data() + kv_head * n * d, n * d);
        const std::vector<double> row = reference::attention<T>(query, keys, values, first, p, static_cast<double>(scale()));
        out.insert(out.end(), row.begin(), row.end());
      }
    }
    return out;
  }

  AttentionShape shape() const { return {.num_q_heads = heads_.q, .kv = layout_}; }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(heads_.dim)); }

  Heads heads_;
  std::vector<std::int32_t> seq_lens_;
  std::int32_t max_blocks_ = 1;
  KvLayout layout_;
  std::vector<BlockId> tables_;
  std::vector<T> kv_;
  std::vector<std::vector<T>> q_, k_, v_;  // of each sequence: [n, q heads, dim]; [kv heads, n, dim]
};

template <class T>
bool equal_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("attention equals the oracle for every head dim, group size and length around the block", "[attention][host]",
                   float, bf16) {
  CpuDevice device({.num_threads = 2});
  CpuOps<TestType> ops(device);
  for (const std::int32_t dim : supported_head_dims) {
    for (const Heads heads : {Heads{2, 2, dim}, Heads{6, 2, dim}, Heads{8, 1, dim}, Heads{40, 1, dim}}) {
      const PagedCase<TestType> c(heads, {1, 15, 16, 17, 31, 33, 70}, 1);
      CpuPagedAttention<TestType> attention(c.shape(), ops);
      const auto out = c.run_whole(attention);
      for (std::size_t s = 0; s < out.size(); ++s) {
        CAPTURE(dim, heads.q, heads.kv, s);
        CHECK(reference::nmse(out[s], c.expected(s)) <= reference::max_nmse<TestType>);
      }
    }
  }
}

TEST_CASE("a window hides the keys before it, whatever its length", "[attention][host]") {
  CpuDevice device({.num_threads = 2});
  CpuOps<float> ops(device);
  const PagedCase<float> c({4, 2, 32}, {1, 40, 100}, 2);
  CpuPagedAttention<float> attention(c.shape(), ops);
  for (const std::int32_t window : {1, 2, 15, 16, 17, 33, 64, 99, 100, 1000}) {
    const auto out = c.run_whole(attention, window);
    for (std::size_t s = 0; s < out.size(); ++s) {
      CAPTURE(window, s);
      CHECK(reference::nmse(out[s], c.expected(s, window)) <= reference::max_nmse<float>);
    }
  }
}

TEMPLATE_TEST_CASE("chunks, single steps, batches and threads give the same bits as one pass", "[attention][host]", float, bf16) {
  CpuDevice one({.num_threads = 1}), three({.num_threads = 3});
  CpuOps<TestType> ops_one(one), ops_three(three);
  for (const Heads heads : {Heads{2, 2, 64}, Heads{9, 3, 64}, Heads{8, 1, 80}}) {
    for (const std::int32_t window : {0, 20}) {
      const PagedCase<TestType> c(heads, {75, 3, 48}, 3);
      CpuPagedAttention<TestType> alone(c.shape(), ops_one), split(c.shape(), ops_three);
      const auto whole = c.run_whole(alone, window);
      CHECK(equal_bits<TestType>(c.run_whole(split, window)[0], whole[0]));
      for (const std::int32_t chunk : {1, 7, 16, 33}) {
        CAPTURE(heads.q, heads.kv, heads.dim, window, chunk);
        std::vector<std::vector<TestType>> joined(3);
        for (std::int32_t begin = 0; begin < 75; begin += chunk) {
          std::vector<std::int32_t> first, last;
          for (const std::int32_t n : {75, 3, 48}) {
            first.push_back(std::min(begin, n - 1));  // a finished sequence computes its last token again
            last.push_back(std::min(begin + chunk, n));
            first.back() = std::min(first.back(), last.back() - 1);
          }
          const auto part = c.run(split, first, last, window);
          for (std::size_t s = 0; s < 3; ++s) {
            const auto row = static_cast<std::size_t>(heads.q * heads.dim);
            joined[s].resize(static_cast<std::size_t>(first[s]) * row);
            joined[s].insert(joined[s].end(), part[s].begin(), part[s].end());
          }
        }
        for (std::size_t s = 0; s < 3; ++s) { CHECK(equal_bits<TestType>(joined[s], whole[s])); }
      }
    }
  }
}

TEST_CASE("blocks smaller, larger and not a divisor of the tile give the same bits", "[attention][host]") {
  CpuDevice device({.num_threads = 2});
  CpuOps<float> ops(device);
  const PagedCase<float, 16> c16({6, 2, 32}, {50, 16, 1}, 4);
  const PagedCase<float, 1> c1({6, 2, 32}, {50, 16, 1}, 4);
  const PagedCase<float, 12> c12({6, 2, 32}, {50, 16, 1}, 4);
  const PagedCase<float, 64> c64({6, 2, 32}, {50, 16, 1}, 4);
  CpuPagedAttention<float, 32, 16> a16(c16.shape(), ops);
  CpuPagedAttention<float, 32, 1> a1(c1.shape(), ops);
  CpuPagedAttention<float, 32, 12> a12(c12.shape(), ops);
  CpuPagedAttention<float, 32, 64> a64(c64.shape(), ops);
  const auto expected = c16.run_whole(a16);
  CHECK(c1.run_whole(a1) == expected);
  CHECK(c12.run_whole(a12) == expected);
  CHECK(c64.run_whole(a64) == expected);
}

TEST_CASE("a fixed head dim gives the same bits as the dispatch at run time", "[attention][host]") {
  CpuDevice device({.num_threads = 2});
  CpuOps<float> ops(device);
  const PagedCase<float> c({6, 2, 64}, {40}, 5);
  CpuPagedAttention<float> dynamic(c.shape(), ops);
  CpuPagedAttention<float, 64> fixed(c.shape(), ops);
  CHECK(dynamic.supports(64));
  CHECK(fixed.supports(64));
  CHECK_FALSE(fixed.supports(128));
  CHECK_FALSE(dynamic.supports(48));
  CHECK(c.run_whole(fixed) == c.run_whole(dynamic));
}

TEST_CASE("scores far apart neither overflow nor lose the largest", "[attention][host]") {
  CpuDevice device({.num_threads = 1});
  CpuOps<float> ops(device);
  const KvLayout layout{.num_blocks = 3, .block_size = 16, .num_kv_heads = 1, .head_dim = 16};
  CpuPagedAttention<float> attention({.num_q_heads = 1, .kv = layout}, ops);
  std::vector<float> kv(static_cast<std::size_t>(layout.layer_elements()));
  for (std::int32_t p = 0; p < 40; ++p) {
    kv[static_cast<std::size_t>(layout.k_offset(p / 16, 0, p % 16))] = p == 20 ? 1e4f : -1e4f + static_cast<float>(p);
    kv[static_cast<std::size_t>(layout.v_offset(p / 16, 0, p % 16))] = static_cast<float>(p);
  }
  std::vector<float> q(16), out(16);
  q[0] = 10.0f;
  const std::vector<std::int32_t> cu{0, 1}, lens{40};
  const std::vector<BlockId> table{BlockId{0}, BlockId{1}, BlockId{2}};
  attention.plan({.cu_query_lens = cu, .seq_lens = lens, .block_tables = table, .max_blocks_per_seq = 3});
  attention.run({.out = out.data(), .q = q.data(), .q_row_stride = 16, .kv = kv.data()});
  CHECK(out[0] == 20.0f);
}

TEST_CASE("a step without sequences is nothing", "[attention][host]") {
  CpuDevice device({.num_threads = 2});
  CpuOps<float> ops(device);
  CpuPagedAttention<float> attention(
      {.num_q_heads = 1, .kv = {.num_blocks = 1, .block_size = 16, .num_kv_heads = 1, .head_dim = 16}}, ops);
  const std::vector<std::int32_t> cu{0};
  attention.plan({.cu_query_lens = cu, .seq_lens = {}, .block_tables = {}, .max_blocks_per_seq = 0});
  attention.run({});
}

TEST_CASE("shapes that the backend is not compiled for are refused with what it is compiled for", "[attention][host]") {
  CpuDevice device({.num_threads = 1});
  CpuOps<float> ops(device);
  const auto shape = [](std::int32_t q, std::int32_t kv, std::int32_t dim, std::int32_t block) {
    return AttentionShape{.num_q_heads = q, .kv = {.num_blocks = 1, .block_size = block, .num_kv_heads = kv, .head_dim = dim}};
  };
  nvl_test::expect_error<InvalidArgument>([&] { CpuPagedAttention<float> a(shape(2, 2, 48, 16), ops); },
                                          {"head_dim", "48", "16, 32, 64, 80, 96, 128, 256"});
  nvl_test::expect_error<InvalidArgument>([&] { CpuPagedAttention<float, 64> a(shape(2, 2, 128, 16), ops); },
                                          {"head_dim", "128", "64"});
  nvl_test::expect_error<InvalidArgument>([&] { CpuPagedAttention<float> a(shape(2, 2, 64, 32), ops); },
                                          {"block_size", "32", "16"});
  nvl_test::expect_error<InvalidArgument>([&] { CpuPagedAttention<float> a(shape(3, 2, 64, 16), ops); },
                                          {"num_q_heads", "3", "2"});
  nvl_test::expect_error<InvalidArgument>([&] { CpuPagedAttention<float> a(shape(3, 0, 64, 16), ops); }, {"num_q_heads", "0"});
  nvl_test::expect_error<InvalidArgument>([&] { dispatch_head_dim(7, [](auto) {}); }, {"head_dim", "7", "80"});
}

}  // namespace cpu_paged_attention_test
