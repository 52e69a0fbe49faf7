/// Decode attention over paged K and V, bf16, head_dim 128, blocks of 16 in random order: the rows of the table of public kernels,
/// then steps of mixed lengths as an engine has them. The plan is made once and not timed: a step of a model makes it once for
/// all layers (its own time is the row "plan").

#include "bench/kernels/support/kernel_bench.cuh"
#include "kernels/paged_attention_decode_cases.hpp"

#include <nvl/kernels/paged_attention_decode.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

using nvl::bf16;
using nvl::BlockId;
using nvl::KvLayout;
using nvl_test::DecodeSequence;

namespace {

constexpr int head_dim = 128;

/// Buffers of one shape: `sets` layers of K and V with a block table each.
class DecodeStep {
 public:
  using Params = nvl::kernels::PagedDecodeParams<bf16>;

  DecodeStep(int num_q_heads, int num_kv_heads, const std::vector<DecodeSequence>& sequences, std::uint64_t seed)
      : num_seqs_(static_cast<int>(sequences.size())) {
    std::vector<std::int32_t> seq_lens, cu(sequences.size() + 1);
    std::iota(cu.begin(), cu.end(), 0);
    std::int64_t num_blocks = 0;
    for (const DecodeSequence& s : sequences) {
      seq_lens.push_back(s.seq_len);
      const std::int32_t blocks = (s.seq_len + 15) / 16;
      num_blocks += blocks;
      stride_ = std::max(stride_, blocks);
      bytes_ += 2.0 * sizeof(bf16) * s.seq_len * num_kv_heads * head_dim;
    }
    bytes_q_ = 2.0 * num_seqs_ * num_q_heads * head_dim;
    sets_ = nvl_bench::num_cold_sets(static_cast<std::size_t>(bytes_));
    const KvLayout layout{.num_blocks = num_blocks, .block_size = 16, .num_kv_heads = num_kv_heads, .head_dim = head_dim};
    kv_ = nvl_bench::random_normal_buffer<bf16>(static_cast<std::size_t>(layout.layer_elements()), sets_, seed);
    q_ = nvl_bench::random_normal_buffer<bf16>(static_cast<std::size_t>(num_seqs_ * num_q_heads * head_dim), 1, seed + 1);
    out_ = nvl_bench::DeviceBuffer<bf16>(q_.size());
    std::vector<BlockId> order(static_cast<std::size_t>(num_blocks));
    for (std::size_t i = 0; i < order.size(); ++i) { order[i] = BlockId(i); }
    std::mt19937_64 random(seed);
    tables_ = nvl_bench::DeviceBuffer<BlockId>(static_cast<std::size_t>(num_seqs_) * static_cast<std::size_t>(stride_), sets_);
    for (int set = 0; set < sets_; ++set) {
      std::shuffle(order.begin(), order.end(), random);
      std::vector<BlockId> table(tables_.size());
      std::size_t next = 0;
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        for (std::int32_t b = 0; b * 16 < sequences[s].seq_len; ++b) {
          table[s * static_cast<std::size_t>(stride_) + static_cast<std::size_t>(b)] = order[next++];
        }
      }
      tables_.upload(table, set);
    }
    seq_lens_ = nvl_bench::DeviceBuffer<std::int32_t>(seq_lens);
    cu_ = nvl_bench::DeviceBuffer<std::int32_t>(cu);
    block_stride_ = nvl_bench::DeviceBuffer<std::int32_t>(std::vector<std::int32_t>{stride_});
    params_ = {.out = out_.data(),
               .q = q_.data(),
               .q_row_stride = std::int64_t{num_q_heads} * head_dim,
               .layout = layout,
               .block_stride = block_stride_.data(),
               .seq_lens = seq_lens_.data(),
               .cu_query_lens = cu_.data(),
               .num_seqs = num_seqs_,
               .num_q_heads = num_q_heads,
               .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
               .max_seqs = num_seqs_,
               .max_kv_tokens = std::accumulate(seq_lens.begin(), seq_lens.end(), std::int64_t{0})};
  }

  double bytes_read() const { return bytes_ + bytes_q_; }
  double bytes_written() const { return bytes_q_; }
  int sets() const { return sets_; }
  Params& params() { return params_; }

  /// Plans every set. After a change of params() that the plan reads.
  void plan() {
    const std::size_t bytes = nvl::kernels::with_paged_decode_traits(
        params_, [&]<class Traits>() { return nvl::kernels::paged_decode_workspace_bytes<Traits>(params_); });
    workspaces_ = nvl_bench::DeviceBuffer<unsigned char>(bytes, sets_);
    NVL_CUDA_CHECK(cudaMemset(workspaces_.data(), 0, workspaces_.total()));
    for (int set = 0; set < sets_; ++set) { launch_plan(set, nullptr); }
    NVL_CUDA_CHECK(cudaDeviceSynchronize());
  }
  void launch_plan(int call, cudaStream_t stream) const {
    const Params p = params_of(call);
    nvl::kernels::with_paged_decode_traits(p, [&]<class Traits>() { nvl::kernels::launch_paged_decode_plan<Traits>(p, stream); });
  }
  void launch(int call, cudaStream_t stream) const {
    const Params p = params_of(call);
    nvl::kernels::with_paged_decode_traits(p, [&]<class Traits>() { nvl::kernels::launch_paged_decode<Traits>(p, stream); });
  }

  /// Compares with the kernel that has neither tensor cores nor splits.
  void verify(const std::string& name) const {
    launch(0, nullptr);
    const std::vector<bf16> actual = out_.to_host();
    nvl::kernels::launch_paged_decode<nvl::kernels::PagedDecodePlainTraits<bf16>>(params_of(0), nullptr);
    std::vector<double> expected;
    for (const bf16 x : out_.to_host()) { expected.push_back(static_cast<double>(static_cast<float>(x))); }
    nvl_bench::verify(name, actual, expected, 2 * nvl::reference::max_nmse<bf16>);  // both are rounded
  }

 private:
  Params params_of(int call) const {
    Params p = params_;
    p.kv = kv_.set(call);
    p.block_tables = tables_.set(call);
    p.workspace = const_cast<unsigned char*>(workspaces_.set(call));
    return p;
  }

  int num_seqs_, sets_ = 1;
  std::int32_t stride_ = 1;
  double bytes_ = 0, bytes_q_ = 0;
  nvl_bench::DeviceBuffer<bf16> kv_, q_, out_;
  nvl_bench::DeviceBuffer<BlockId> tables_;
  nvl_bench::DeviceBuffer<std::int32_t> seq_lens_, cu_, block_stride_;
  nvl_bench::DeviceBuffer<unsigned char> workspaces_;
  Params params_{};
};

struct Variant {
  const char* name;
  bool mixed_only;
  void (*edit)(DecodeStep::Params& p);
};
constexpr Variant variants[] = {
    {"", false, [](DecodeStep::Params&) {}},
    {"history is complete", false, [](DecodeStep::Params& p) { p.history_is_complete = true; }},
    {"fixed splits of 512", true, [](DecodeStep::Params& p) { p.split_tokens = 512; }},
};

}  // namespace

int main(int argc, char** argv) {
  struct Compared {
    std::string shape;
    double peer_us, us;
  };
  std::vector<Compared> compared;
  const int result = nvl_bench::kernel_bench_main(argc, argv, "paged_decode", [&](nvl_bench::KernelBench& bench) {
    const auto measure = [&](int q_heads, int kv_heads, const std::vector<DecodeSequence>& sequences, const std::string& shape,
                             double peer_us) {
      if (!bench.wants("paged_decode " + shape)) { return; }
      DecodeStep step(q_heads, kv_heads, sequences, bench.seed());
      for (const Variant& v : variants) {
        if (v.mixed_only && peer_us > 0) { continue; }
        const DecodeStep::Params saved = step.params();
        v.edit(step.params());
        step.plan();
        step.verify(shape);
        const nvl_bench::KernelRow& row = bench.add({.op = "paged_decode",
                                                     .dtype = "bfloat16",
                                                     .shape = shape,
                                                     .bytes_read = step.bytes_read(),
                                                     .bytes_written = step.bytes_written(),
                                                     .bound = nvl_bench::Bound::read,
                                                     .variant = v.name},
                                                    step.sets(), [&](int call, cudaStream_t s) { step.launch(call, s); });
        if (v.name[0] == '\0' && peer_us > 0) { compared.push_back({shape, peer_us, row.cold.median_us}); }
        step.params() = saved;
      }
      if (peer_us == 0) {
        step.plan();
        bench.add({.op = "paged_decode", .dtype = "bfloat16", .shape = shape, .bytes_read = 8.0, .variant = "plan"}, step.sets(),
                  [&](int call, cudaStream_t s) { step.launch_plan(call, s); });
      }
    };
    for (const nvl_test::DecodePeerRow& r : nvl_test::decode_peer_rows) {
      measure(r.num_q_heads, r.num_kv_heads,
              nvl_test::decode_sequences(std::vector<std::int32_t>(static_cast<std::size_t>(r.num_seqs), r.seq_len)),
              std::to_string(r.num_q_heads) + "/" + std::to_string(r.num_kv_heads) + " " + std::to_string(r.num_seqs) + " x " +
                  std::to_string(r.seq_len),
              r.best_us);
    }
    for (const auto& [count, high] : {std::pair{32, 2000}, std::pair{131, 1700}, std::pair{256, 1700}}) {
      measure(16, 8, nvl_test::mixed_decode_sequences(count, 100, high),
              "16/8 " + std::to_string(count) + " x 100.." + std::to_string(high), 0);
    }
  });
  if (!compared.empty()) {
    std::printf("\n| heads, sequences x tokens | fastest public kernel, us | this, us | ratio |\n|---|---|---|---|\n");
    for (const Compared& c : compared) {
      std::printf("| %s | %.1f | %.1f | %.2f |\n", c.shape.c_str(), c.peer_us, c.us, c.us / c.peer_us);
    }
  }
  return result;
}
