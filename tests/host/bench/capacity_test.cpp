#include "bench/support/capacity.hpp"
#include "bench/support/gpus.hpp"
#include "bench/support/presets.hpp"
#include "support/expect_error.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cstdint>
#include <set>
#include <string_view>
#include <vector>

namespace capacity_test {

using namespace nvl_bench;
using Catch::Matchers::WithinRel;
using nvl_test::expect_error;

namespace {

CapacityQuestion on_h200(std::string_view model) {
  CapacityQuestion question;
  question.model = *preset(model);
  question.gpu = *find_gpu("h200");
  question.rates = {4e12, 800e12, 500e12};
  return question;
}

}  // namespace

TEST_CASE("the planned memory is the sum that a pencil finds", "[bench][host]") {
  const nvl::MemoryPlan plan = rank_plan(on_h200("qwen3-0.6b"));
  CHECK(plan.max_model_len == 40960);
  CHECK(plan.fixed.weight_bytes == 2 * 596'049'920);
  CHECK(plan.kv_bytes_per_block == 28 * 2 * 8 * 128 * 16 * 2);
  CHECK(kv_bytes_per_token(plan) == 114688);
  // residual, hidden 1024 each; q, k, v 2048 + 1024 + 1024; attention 2048; gate, up, activated 3072 each; 64 rows that go on
  CHECK(plan.activation_bytes == 2 * (2048 * (2 * 1024 + 4096 + 2048 + 3 * 3072) + 64 * (1024 + 2048)));
  CHECK(plan.logits_bytes == 64 * 151936 * 4);
  CHECK(plan.fixed.graph_bytes == (11 + 12) * 28 * 16384);  // batches 1, 2, 4, 8, 16, ... 64; prompts 64, ... 512, 640, ... 1024
  const std::int64_t step = 11'966'976;                     // arrays of 2048 tokens and 64 sequences of 40960, summed by a script
  const std::int64_t rope = 40960 * 128 * 4;
  const std::int64_t products = 32 << 20;
  const std::int64_t sampler = 64 * 151936 * 4;
  const std::int64_t results = 64 * (16 + 32 * 8);  // beams of 16 want the 32 most likely tokens of a row
  const std::int64_t ids = 256, rounding = 12 * 256;
  const std::int64_t prefill = 25'088;  // 16 + 32 bytes x 8 heads x (2048 / 64 + 64) tiles + 4 x 64, in units of 256
  const std::int64_t spans = 12'800 + 264 * 128 + 2'304 + 2 * 64 * 8;  // of 264 thread blocks with 528 partial sums
  const std::int64_t decode = 2 * spans + 528 * (8 + 16) * 130 * 4;    // one query a sequence: 8 columns; eight: 16
  CHECK(plan.fixed.workspace_bytes == step + rope + products + sampler + results + ids + rounding + prefill + decode);
  const auto budget = static_cast<std::int64_t>(static_cast<double>(find_gpu("h200")->memory_bytes) * 0.92) - (512 << 20);
  const std::int64_t others = plan.total_bytes() - plan.kv_bytes;
  CHECK(plan.num_blocks == (budget - others) / plan.kv_bytes_per_block);
  CHECK(plan.total_bytes() <= budget);
}

TEST_CASE("options of the engine move the plan as they do on a GPU", "[bench][host]") {
  CapacityQuestion question = on_h200("llama-3.1-8b");
  const nvl::MemoryPlan all = rank_plan(question);
  question.options.num_blocks = 1000;
  CHECK(rank_plan(question).num_blocks == 1000);
  question.options.num_blocks = 0;
  question.options.device.use_graphs = false;
  CHECK(rank_plan(question).fixed.graph_bytes == 0);
  question.options.device.use_graphs = true;
  question.options.max_model_len = 1024;
  question.options.max_num_seqs = 8;
  CHECK(rank_plan(question).num_blocks == 8 * 64);  // no more than can be used
  question.options.max_model_len = 0;
  question.block_size = 64;
  CHECK(rank_plan(question).kv_bytes_per_block == 4 * all.kv_bytes_per_block);
  question.dtype = nvl::DType::float16;
  CHECK(rank_plan(question).kv_bytes_per_block == 4 * all.kv_bytes_per_block);
}

TEST_CASE("FP8 halves K and V and nothing else", "[bench][host]") {
  CapacityQuestion question = on_h200("qwen3-8b");
  const nvl::MemoryPlan wide = rank_plan(question);
  question.kv_element_bytes = 1;
  const nvl::MemoryPlan narrow = rank_plan(question);
  CHECK(2 * narrow.kv_bytes_per_block == wide.kv_bytes_per_block);
  CHECK(narrow.total_bytes() - narrow.kv_bytes == wide.total_bytes() - wide.kv_bytes);
  CHECK((narrow.num_blocks == 2 * wide.num_blocks || narrow.num_blocks == 2 * wide.num_blocks + 1));
}

TEST_CASE("ranks share heads, columns and vocabulary; KV heads are copied where there are more ranks", "[bench][host]") {
  const nvl::ModelConfig whole = *preset("llama-3.1-8b");  // 32 heads, 8 of them KV, MLP 14336, vocabulary 128256
  const nvl::ModelConfig eighth = rank_model(whole, 8);
  CHECK(eighth.num_q_heads == 4);
  CHECK(eighth.num_kv_heads == 1);
  CHECK(eighth.intermediate_size == 1792);
  CHECK(eighth.vocab_size == whole.vocab_size);
  CHECK(rank_weights(whole, 8).vocab_size == 16032);
  CHECK(rank_model(whole, 1) == whole);

  CapacityQuestion question = on_h200("llama-3.1-8b");
  const nvl::MemoryPlan one = rank_plan(question);
  question.num_ranks = 8;
  const nvl::MemoryPlan eight = rank_plan(question);
  CHECK(8 * kv_bytes_per_token(eight) == kv_bytes_per_token(one));
  // Norms are in every rank, all else is divided: 65 vectors of 4096.
  CHECK(8 * (eight.fixed.weight_bytes - 65 * 4096 * 2) == one.fixed.weight_bytes - 65 * 4096 * 2);
  // Logits of the whole vocabulary, its own part of them, and everybody's on their way.
  CHECK(eight.logits_bytes > 2 * one.logits_bytes);
  CHECK(eight.logits_bytes < 3 * one.logits_bytes);

  question.model.num_kv_heads = 2;
  question.num_ranks = 1;
  const std::int64_t two_heads = kv_bytes_per_token(rank_plan(question));
  question.num_ranks = 8;
  CHECK(kv_bytes_per_token(rank_plan(question)) == two_heads / 2);  // one head in each rank: four times as much together
}

TEST_CASE("what cannot be divided or does not fit is refused with the numbers", "[bench][host]") {
  using nvl::InvalidArgument;
  const nvl::ModelConfig odd = *preset("smollm2-135m");  // 9 heads, 3 of them KV, MLP 1536
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_model(odd, 2)); }, {"tensor_parallel_size is 2", "9 query heads"});
  CHECK(rank_model(odd, 3).num_q_heads == 3);
  const nvl::ModelConfig narrow = *preset("qwen2.5-0.5b");  // 14 heads, MLP 4864
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_model(narrow, 7)); }, {"tensor_parallel_size is 7", "4864"});
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_model(narrow, 0)); }, {"tensor_parallel_size is 0"});
  nvl::ModelConfig uneven = *preset("llama-3.1-8b");
  uneven.num_q_heads = 24;
  uneven.num_kv_heads = 6;
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_model(uneven, 4)); }, {"tensor_parallel_size is 4", "6 KV heads"});

  CapacityQuestion question = on_h200("llama-3.1-8b");
  question.block_size = 24;
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_plan(question)); }, {"block_size is 24", "power of two"});
  question.block_size = 16;
  question.options.device.memory_utilization = 1.5;
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_plan(question)); }, {"gpu_memory_utilization is 1.5"});
  question.options.device.memory_utilization = 0.92;
  question.dtype = nvl::DType::float32;
  expect_error<InvalidArgument>([&] { static_cast<void>(rank_plan(question)); }, {"dtype is", "bfloat16 or float16"});
  question.dtype = nvl::DType::bfloat16;
  question.gpu.memory_bytes = std::int64_t{16} << 30;
  CHECK_THROWS_AS(rank_plan(question), nvl::OutOfMemory);
}

TEST_CASE("a sequence holds blocks for all of its tokens but the last", "[bench][host]") {
  nvl::MemoryPlan plan;
  plan.block_size = 16;
  plan.num_blocks = 1000;
  CHECK(blocks_of_sequence(plan, 1) == 1);
  CHECK(blocks_of_sequence(plan, 17) == 1);
  CHECK(blocks_of_sequence(plan, 18) == 2);
  CHECK(blocks_of_sequence(plan, 2048) == 128);
  CHECK(sequences_that_fit(plan, 2048) == 7);
  CHECK(sequences_that_fit(plan, 16002) == 0);
}

TEST_CASE("limits of speed are bytes and arithmetic over rates", "[bench][host]") {
  CapacityQuestion question = on_h200("qwen3-0.6b");
  const double weights = 2 * 596'000'000.0 / 4e12;  // the norms are no matter
  const double kv = 114688.0 * 1000 / 4e12;
  const CapacityLimits one(question);
  CHECK_THAT(one.decode_step(1, 1000), WithinRel(weights + kv, 1e-3));
  CHECK_THAT(one.decode_step(100, 1000), WithinRel(weights + 100 * kv, 1e-3));
  const double arithmetic = 1000 * 2 * 596e6 / 800e12;  // more than the bytes
  CHECK_THAT(one.decode_step(1000, 1000), WithinRel(arithmetic + 1000 * kv, 1e-3));
  const double body = 440.4e6, attention = 4.0 * 2048 * 28 * 2000 * 2001 / 2;
  CHECK_THAT(one.first_token(2000), WithinRel(2000 * 2 * body / 800e12 + attention / 500e12, 1e-3));

  question.num_ranks = 4;
  const CapacityLimits four(question);
  const double sums = 56 * (15e-6 + 100 * 1024 * 2 * 1.5 / 450e9);  // two a layer; a ring sends each byte 2 (n - 1) / n times
  CHECK_THAT(four.decode_step(100, 1000), WithinRel((weights + 100 * kv) / 4 + sums, 1e-3));
  const std::vector<RequestLengths> load(8, {500, 3});
  const double prefill = 4000 * 2 * body / 4 / 800e12 + 8 * 4.0 * 512 * 28 * 500 * 501 / 2 / 500e12 +
                         56 * (2 * 15e-6 + 4000 * 1024 * 2 * 1.5 / 450e9);  // two steps of 2048 tokens
  const double step = weights / 4 + 8 * 28672.0 * 501.5 / 4e12 + 56 * (15e-6 + 8 * 1024 * 2 * 1.5 / 450e9);
  CHECK_THAT(four.load(load), WithinRel(prefill + 2 * step, 2e-3));
}

TEST_CASE("expected times agree with what was measured on an H200", "[bench][host]") {
  CapacityQuestion question = on_h200("qwen3-0.6b");
  question.rates = reachable_rates(question.gpu);
  const CapacityLimits limits(question);
  // bench/results/latency_qwen3_0.6b.json: 1401.9 tokens/s after a prompt of 512
  CHECK_THAT(Efficiency().expected(limits.decode_step(1, 576), 1, 28), WithinRel(1 / 1401.9, 0.01));
  // bench/results/throughput_qwen3_0.6b.json: 4.692 s, 1032 steps
  question.options.max_num_batched_tokens = 16384;
  const double load = CapacityLimits(question).load(nano_vllm_workload().lengths());
  CHECK_THAT(Efficiency().expected(load, 1032, 28), WithinRel(4.692, 0.01));
}

TEST_CASE("the table of GPUs holds plausible numbers under different names", "[bench][host]") {
  std::set<std::string_view> names;
  for (const Gpu& gpu : gpus) {
    CAPTURE(gpu.name);
    names.insert(gpu.name);
    const PeakRates rates = reachable_rates(gpu);
    CHECK(rates.known());
    CHECK(rates.read_bytes < gpu.bandwidth);
    CHECK(rates.matmul_flops < gpu.flops);
    CHECK(gpu.num_sms > 0);
    CHECK(gpu.link_bandwidth > 0);
    CHECK(gpu_list().find(gpu.name) != std::string::npos);
  }
  CHECK(names.size() == gpus.size());
  CHECK(reachable_rates(*find_gpu("h200")).read_bytes == 4.65e12);
  CHECK_THAT(reachable_rates(*find_gpu("h100")).read_bytes, WithinRel(3.35e12 * 4.65 / 4.8, 1e-9));
  CHECK(!find_gpu("voodoo2"));
}

}  // namespace capacity_test
