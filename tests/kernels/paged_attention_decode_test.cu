#include "kernels/paged_attention_decode_problem.cuh"
#include "support/device.cuh"

#include <nvl/core/dtype.hpp>
#include <nvl/core/error.hpp>
#include <nvl/kernels/paged_attention_decode.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using Catch::Matchers::ContainsSubstring;
using nvl::bf16;
using nvl::fp16;
using nvl_test::DecodeCase;
using nvl_test::DecodeProblem;

/// Averages of 20,000 values nearly cancel, which float's bound for single sums does not allow for.
template <class T>
constexpr double max_error = (sizeof(T) == 4 ? 4.0 : 1.0) * nvl::reference::max_nmse<T>;

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

TEMPLATE_TEST_CASE("decode attention is the oracle's for every shape", "[kernel][gpu]", bf16, fp16, float) {
  nvl_test::require_device();
  for (const DecodeCase& shape : nvl_test::decode_test_cases()) {
    CAPTURE(shape.name);
    DecodeProblem<TestType> problem(shape);
    problem.plan();
    problem.run();
    const std::vector<TestType> out = problem.out();
    CHECK(problem.error(out) <= max_error<TestType>);

    // The plan serves every layer of a step, and counters of a layer are ready for the next.
    problem.poison_out();
    problem.run();
    CHECK(same_bits<TestType>(problem.out(), out));

    problem.poison_out();
    problem.params().history_is_complete = true;
    problem.run();
    CHECK(same_bits<TestType>(problem.out(), out));
  }
}

TEMPLATE_TEST_CASE("decode attention without tensor cores takes bf16 and fp16 too", "[kernel][gpu]", bf16, fp16) {
  nvl_test::require_device();
  for (const DecodeCase& shape : nvl_test::decode_test_cases()) {
    CAPTURE(shape.name);
    DecodeProblem<TestType> problem(shape);
    nvl::kernels::launch_paged_decode<nvl::kernels::PagedDecodePlainTraits<TestType>>(problem.params(), nullptr);
    CHECK(problem.error(problem.out()) <= max_error<TestType>);
  }
}

TEST_CASE("decode attention of a sequence of 100,000 tokens", "[kernel][gpu]") {
  nvl_test::require_device();
  DecodeProblem<bf16> problem({.name = "long",
                               .num_q_heads = 3,
                               .num_kv_heads = 1,
                               .head_dim = 64,
                               .sequences = nvl_test::decode_sequences({100'003, 7})});
  problem.plan();
  problem.run();
  CHECK(problem.error(problem.out()) <= max_error<bf16>);
}

TEST_CASE("decode attention addresses slots beyond 2^31 elements", "[kernel][gpu]") {
  nvl_test::require_device();
  DecodeProblem<bf16> problem({.name = "far blocks",
                               .num_q_heads = 16,
                               .num_kv_heads = 8,
                               .head_dim = 128,
                               .sequences = nvl_test::decode_sequences({100, 33}),
                               .first_block = (std::int64_t{1} << 31) / (2 * 8 * 16 * 128) + 1});
  REQUIRE(problem.params().layout.k_offset(problem.shape().first_block, 0, 0) > std::int64_t{1} << 31);
  problem.plan();
  problem.run();
  CHECK(problem.error(problem.out()) <= max_error<bf16>);
}

TEST_CASE("a captured decode step runs with other lengths, tables and numbers of sequences", "[kernel][gpu]") {
  nvl_test::require_device();
  const auto shape = [](std::vector<nvl_test::DecodeSequence> sequences, std::int32_t padding) {
    return DecodeCase{.name = "graph",
                      .num_q_heads = 16,
                      .num_kv_heads = 8,
                      .head_dim = 128,
                      .sequences = std::move(sequences),
                      .padding_seqs = padding};
  };
  // The graph is captured with the small problem's pointers; then its inputs are overwritten by those of the others.
  DecodeProblem<bf16> large(shape(nvl_test::mixed_decode_sequences(12, 1, 900), 0));
  DecodeProblem<bf16> captured(shape(nvl_test::decode_sequences(std::vector<std::int32_t>(12, 900)), 0));
  DecodeProblem<bf16> small(shape(nvl_test::decode_sequences({5, 17, 2000, 33, 1}), 7));

  cudaStream_t stream = nullptr;
  NVL_CUDA_CHECK(cudaStreamCreate(&stream));
  NVL_CUDA_CHECK(cudaDeviceSynchronize());
  nvl_test::DeviceVector<nvl::BlockId> table(12 * 1024);
  nvl_test::DeviceVector<std::int32_t> lengths(12), cu(13), stride(1);
  nvl_test::DeviceVector<bf16> q(12 * 16 * 128), out(12 * 16 * 128);
  nvl_test::DeviceVector<bf16> kv(
      static_cast<std::size_t>(std::max(large.params().layout.layer_elements(), small.params().layout.layer_elements())));
  auto& p = captured.params();
  p.block_tables = table.data();
  p.seq_lens = lengths.data();
  p.cu_query_lens = cu.data();
  p.block_stride = stride.data();
  p.q = q.data();
  p.out = out.data();
  p.kv = kv.data();
  NVL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  captured.plan(stream);
  captured.run(stream);
  captured.run(stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  NVL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  NVL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (DecodeProblem<bf16>* problem : {&large, &small, &large}) {
    const auto& from = problem->params();
    const auto copy = [&]<class U>(U* to, const U* data, std::size_t count) {
      NVL_CUDA_CHECK(cudaMemcpyAsync(to, data, count * sizeof(U), cudaMemcpyDeviceToDevice, stream));
    };
    std::int32_t blocks = 0;
    NVL_CUDA_CHECK(cudaMemcpy(&blocks, from.block_stride, sizeof blocks, cudaMemcpyDeviceToHost));
    copy(table.data(), from.block_tables, static_cast<std::size_t>(12 * blocks));
    copy(lengths.data(), from.seq_lens, 12);
    copy(cu.data(), from.cu_query_lens, 13);
    copy(stride.data(), from.block_stride, 1);
    copy(q.data(), from.q, q.size());
    copy(kv.data(), from.kv, static_cast<std::size_t>(from.layout.layer_elements()));
    NVL_CUDA_CHECK(cudaMemsetAsync(out.data(), 0xff, out.size() * sizeof(bf16), stream));
    NVL_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
    CHECK(problem->error(out.to_host()) <= max_error<bf16>);
  }
  NVL_CUDA_CHECK(cudaGraphExecDestroy(exec));
  NVL_CUDA_CHECK(cudaGraphDestroy(graph));
  NVL_CUDA_CHECK(cudaStreamDestroy(stream));
}

TEST_CASE("with fixed splits a sequence's output does not depend on the others of the step", "[kernel][gpu]") {
  nvl_test::require_device();
  DecodeProblem<bf16> problem({.name = "invariant",
                               .num_q_heads = 8,
                               .num_kv_heads = 4,
                               .head_dim = 128,
                               .sequences = nvl_test::decode_sequences({700, 3000, 256, 257, 1}),
                               .split_tokens = 256});
  problem.plan();
  problem.run();
  const std::vector<bf16> all = problem.out();
  const auto p = problem.params();
  const std::size_t row = 8 * 128;
  for (std::int32_t s = 0; s < 5; ++s) {
    problem.poison_out();
    auto& alone = problem.params();
    alone.num_seqs = 1;
    alone.seq_lens = p.seq_lens + s;
    alone.cu_query_lens = p.cu_query_lens + s;
    std::int32_t stride = 0;
    NVL_CUDA_CHECK(cudaMemcpy(&stride, p.block_stride, sizeof stride, cudaMemcpyDeviceToHost));
    alone.block_tables = p.block_tables + s * stride;
    problem.plan();
    problem.run();
    const std::vector<bf16> out = problem.out();
    const auto at = static_cast<std::size_t>(s) * row;
    CHECK(same_bits<bf16>(std::span(out).subspan(at, row), std::span(all).subspan(at, row)));
  }
}

TEST_CASE("fixed splits that the workspace has no room for cost the fixed order, not the result", "[kernel][gpu]") {
  nvl_test::require_device();
  DecodeProblem<bf16> problem({.name = "no room",
                               .num_q_heads = 8,
                               .num_kv_heads = 4,
                               .head_dim = 128,
                               .sequences = nvl_test::decode_sequences({700, 3000, 900}),
                               .split_tokens = 64});
  problem.params().max_kv_tokens = 1000;
  problem.plan();
  problem.run();
  CHECK(problem.error(problem.out()) <= max_error<bf16>);
}

TEST_CASE("decode attention refuses what it cannot do", "[kernel][gpu]") {
  nvl_test::require_device();
  DecodeProblem<bf16> problem(
      {.name = "refused", .num_q_heads = 8, .num_kv_heads = 4, .head_dim = 128, .sequences = nvl_test::decode_sequences({7})});
  using Traits = nvl::kernels::PagedDecodeTraits<bf16, 128>;
  const auto message_of = [&](auto change) {
    auto p = problem.params();
    change(p);
    try {
      nvl::kernels::launch_paged_decode<Traits>(p, nullptr);
    } catch (const nvl::InvalidArgument& error) { return std::string(error.what()); }
    return std::string();
  };
  CHECK_THAT(message_of([](auto& p) { p.layout.block_size = 24; }), ContainsSubstring("power of two"));
  CHECK_THAT(message_of([](auto& p) { p.num_q_heads = 6; }), ContainsSubstring("multiple of num_kv_heads (4)"));
  CHECK_THAT(message_of([](auto& p) { p.layout.head_dim = 64; }), ContainsSubstring("that of its traits (128)"));
  CHECK_THAT(message_of([](auto& p) { p.num_seqs = 2; }), ContainsSubstring("at most max_seqs (1)"));
  CHECK_THAT(message_of([](auto& p) { p.q_row_stride = 1025; }), ContainsSubstring("multiple of 16 bytes"));
  CHECK_THAT(message_of([](auto& p) { p.split_tokens = 100; }), ContainsSubstring("multiple of 16"));
  CHECK(message_of([](auto& p) { p.num_seqs = 0; }).empty());
}

}  // namespace
