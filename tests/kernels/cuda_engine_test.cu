// The engine on a GPU, in float: against the CPU engine, and against itself under every condition that must not matter.

#include "support/cuda_tiny_model.cuh"
#include "support/temp_dir.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

using namespace nvl;
using namespace nvl_test;
using Catch::Matchers::ContainsSubstring;

namespace {

using GpuEngine = TinyCudaEngine<float>;

std::vector<std::vector<TokenId>> expected_outputs(const std::vector<Request>& requests) {
  TinyEngine<> cpu(cuda_tiny_config(), cuda_tiny_weights(), roomy_options());
  return outputs_of(cpu.generate(requests));
}

std::vector<std::vector<TokenId>> outputs_with(const EngineOptions& options, const std::vector<Request>& requests) {
  GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
  auto outputs = outputs_of(gpu.generate(requests));
  CHECK(gpu.failure().empty());
  CHECK(gpu.stats().num_free_blocks == gpu.stats().num_blocks);
  return outputs;
}

}  // namespace

TEST_CASE("a GPU engine gives the logits of the CPU engine", "[engine][gpu]") {
  require_device();
  for (const bool has_bias : {false, true}) {
    for (const std::int32_t window : {0, 20}) {
      ModelConfig config = cuda_tiny_config();
      config.qkv_bias = config.o_bias = config.mlp_bias = has_bias;
      config.qk_norm = !has_bias;
      config.sliding_window = window;
      config.first_windowed_layer = window > 0 ? 1 : 0;
      config.tie_word_embeddings = !has_bias;
      config.rope.layout = has_bias ? RotaryLayout::interleaved : RotaryLayout::half;
      const RandomWeights weights(config, 7);
      TinyEngine<> cpu(config, weights, roomy_options());
      GpuEngine gpu(config, weights, cuda_options());
      const std::vector<float> expected = all_logits(cpu, tiny_prompt(3, 131));
      const std::vector<float> actual = all_logits(gpu, tiny_prompt(3, 131));
      const float worst = largest_difference(actual, expected);
      INFO("bias " << has_bias << ", window " << window << ": worst error " << worst);
      CHECK(worst <= 2e-4f);
      const auto requests = varied_requests(6, true);
      CHECK(outputs_of(gpu.generate(requests)) == outputs_of(cpu.generate(requests)));
    }
  }
}

TEST_CASE("on a GPU the tokens do not depend on graphs, batch, chunks, preemption or prefix hits", "[engine][gpu]") {
  require_device();
  const std::vector<Request> requests = varied_requests(24, true);
  const auto expected = expected_outputs(requests);
  SECTION("graphs, and again over prefix hits") {
    GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
    CHECK(outputs_of(gpu.generate(requests)) == expected);
    const std::vector<Completion> again = gpu.generate(requests);
    CHECK(outputs_of(again) == expected);
    CHECK(std::any_of(again.begin(), again.end(), [](const Completion& done) { return done.num_cached_tokens > 0; }));
  }
  SECTION("every kernel launched by itself") {
    EngineOptions options = cuda_options();
    options.device.use_graphs = false;
    CHECK(outputs_with(options, requests) == expected);
  }
  SECTION("one at a time") {
    EngineOptions options = cuda_options();
    options.max_num_seqs = 1;
    CHECK(outputs_with(options, requests) == expected);
  }
  SECTION("prompts in chunks of 7") {
    EngineOptions options = cuda_options();
    options.max_num_seqs = 7;
    options.max_num_batched_tokens = 7;
    CHECK(outputs_with(options, requests) == expected);
  }
  SECTION("preemption") {
    EngineOptions options = cuda_options();
    options.num_blocks = 14;
    GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
    CHECK(outputs_of(gpu.generate(requests)) == expected);
    CHECK(gpu.stats().num_preemptions > 0);
  }
}

TEST_CASE("a small GPU engine gives the tokens of the CPU engine, with graphs and without", "[engine][gpu][sanitize]") {
  require_device();
  const std::vector<Request> requests = varied_requests(6, true);
  const auto expected = expected_outputs(requests);
  EngineOptions options = small_cuda_options();
  CHECK(outputs_with(options, requests) == expected);
  options.device.use_graphs = false;
  CHECK(outputs_with(options, requests) == expected);
}

TEST_CASE("drawn tokens on a GPU depend on the seed, not on batch mates", "[engine][gpu]") {
  require_device();
  const std::vector<Request> requests = varied_requests(24);
  GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
  const auto together = outputs_of(gpu.generate(requests));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    INFO("request " << i);
    CHECK(gpu.generate({requests[i]}).front().output_ids == together[i]);
  }
}

TEST_CASE("log-probabilities come from a GPU as from the CPU", "[engine][gpu]") {
  require_device();
  Request request = greedy_request(tiny_prompt(4, 30), 12);
  request.sampling.logprobs = 4;
  TinyEngine<> cpu(cuda_tiny_config(), cuda_tiny_weights(), roomy_options());
  GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
  const Completion expected = cpu.generate({request}).front();
  const Completion actual = gpu.generate({request, greedy_request(tiny_prompt(5, 9), 20)}).front();
  REQUIRE(actual.logprobs.size() == expected.logprobs.size());
  for (std::size_t t = 0; t < expected.logprobs.size(); ++t) {
    CHECK(std::abs(actual.logprobs[t].logprob - expected.logprobs[t].logprob) < 1e-4f);
    REQUIRE(actual.logprobs[t].top_logprobs.size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(actual.logprobs[t].top_logprobs[i].token == expected.logprobs[t].top_logprobs[i].token);
    }
  }
}

TEST_CASE("a GPU engine takes what its plan says, nothing more in a step, and gives all of it back", "[engine][gpu]") {
  require_device();
  { GpuEngine first(cuda_tiny_config(), cuda_tiny_weights(), cuda_options()); }  // what the libraries load stays
  const std::size_t before = device_bytes_in_use();
  {
    EngineOptions options = cuda_options();
    options.num_blocks = 1 << 16;
    GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
    const auto taken = static_cast<double>(device_bytes_in_use() - before);
    const auto planned = static_cast<double>(gpu.memory_plan().total_bytes());
    INFO("taken " << taken << ", planned " << planned << "\n" << to_table(gpu.memory_plan()));
    CHECK(std::abs(taken - planned) <= 0.01 * planned + (8 << 20));
    gpu.generate(varied_requests(12));
    const std::size_t in_steps = device_bytes_in_use();
    gpu.generate(varied_requests(24));
    CHECK(device_bytes_in_use() == in_steps);
    GpuEngine second(cuda_tiny_config(), cuda_tiny_weights(), cuda_options());
    const auto requests = varied_requests(8);
    CHECK(outputs_of(second.generate(requests)) == outputs_of(gpu.generate(requests)));
  }
  CHECK(device_bytes_in_use() <= before + (4 << 20));
}

TEST_CASE("a cache of matrix products that is of no use to a GPU engine is one of its warnings", "[engine][gpu]") {
  require_device();
  const TempDir folder;
  EngineOptions options = small_cuda_options();
  const auto warnings = [&](const std::filesystem::path& file, const ModelConfig& config) {
    options.device.gemm_cache_file = file.string();
    GpuEngine gpu(config, RandomWeights(config, 42), options);
    CHECK(gpu.generate({greedy_request(tiny_prompt(1, 20), 5)}).front().output_ids.size() == 5);
    return gpu.warnings();
  };
  const auto is_about = [](const std::vector<std::string>& said, const std::filesystem::path& file, const char* words) {
    REQUIRE(said.size() == 1);
    CHECK_THAT(said.front(), ContainsSubstring(file.string()) && ContainsSubstring(words));
  };
  CHECK(warnings({}, cuda_tiny_config()).empty());
  is_about(warnings(folder.path() / "missing", cuda_tiny_config()), folder.path() / "missing", "is not there");
  const auto garbage = folder.write("garbage", "hello\n");
  is_about(warnings(garbage, cuda_tiny_config()), garbage, "is not used");

  const auto good = folder.path() / "good";
  options.device.gemm_search_seconds = 0.5;
  CHECK(warnings(good, cuda_tiny_config()).empty());  // it is written now
  options.device.gemm_search_seconds = 0.0;
  CHECK(warnings(good, cuda_tiny_config()).empty());
  ModelConfig other = cuda_tiny_config();
  other.hidden_size = 128;
  other.intermediate_size = 200;
  is_about(warnings(good, other), good, "none of its ");
}

TEST_CASE("an engine that does not fit on the GPU is refused with the arithmetic", "[engine][gpu]") {
  require_device();
  EngineOptions options = cuda_options();
  const auto refusal = [&] {
    try {
      GpuEngine gpu(cuda_tiny_config(), cuda_tiny_weights(), options);
    } catch (const Error& error) { return std::string(error.what()); }
    return std::string("accepted");
  };
  SECTION("more KV than there is memory") {
    options.num_blocks = std::int64_t{1} << 30;
    CHECK_THAT(refusal(), ContainsSubstring("the engine needs") && ContainsSubstring("KV cache"));
  }
  SECTION("a share that others have taken already") {
    options.num_blocks = 0;
    options.device.memory_utilization = 1e-6;
    CHECK_THAT(refusal(), ContainsSubstring("no room for a KV cache") && ContainsSubstring("weights"));
  }
  SECTION("a share that is none") {
    options.device.memory_utilization = 1.5;
    CHECK_THAT(refusal(), ContainsSubstring("gpu_memory_utilization is 1.5"));
  }
  SECTION("a device that is not there") {
    options.device.ordinal = 77;
    CHECK_THAT(refusal(), ContainsSubstring("device ordinal is 77"));
  }
  const std::size_t before = device_bytes_in_use();
  options = cuda_options();
  CHECK(refusal() == "accepted");
  CHECK(device_bytes_in_use() <= before + (4 << 20));
}

TEST_CASE("NaN in one row on a GPU ends that request only", "[engine][gpu]") {
  require_device();
  // Token 100's embedding is NaN.
  ModelConfig config = cuda_tiny_config();
  config.tie_word_embeddings = false;
  const RandomWeights clean_weights(config, 42);
  struct Source {
    const RandomWeights& weights;
    std::vector<std::byte> data;
    HostTensor poisoned;
    const HostTensor* find(std::string_view name) const { return name == "embed" ? &poisoned : weights.find(name); }
  };
  Source source{clean_weights, {}, *clean_weights.find("embed")};
  source.data.assign(source.poisoned.data.begin(), source.poisoned.data.end());
  const auto hidden = static_cast<std::size_t>(config.hidden_size);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < hidden; ++i) { std::memcpy(source.data.data() + (100 * hidden + i) * 4, &nan, 4); }
  source.poisoned.data = source.data;

  GpuEngine gpu(config, source, cuda_options());
  std::vector<TokenId> clean = tiny_prompt(1, 40);
  std::replace(clean.begin(), clean.end(), TokenId{100}, TokenId{101});
  std::vector<TokenId> poisoned = clean;
  poisoned[20] = 100;
  const auto expected = gpu.generate({greedy_request(clean, 8)}).front().output_ids;
  const std::vector<Completion> done = gpu.generate({greedy_request(poisoned, 8), greedy_request(clean, 8)});
  CHECK(done[0].finish_reason == FinishReason::error);
  CHECK_THAT(done[0].error, ContainsSubstring("not finite"));
  CHECK(done[1].output_ids == expected);
  CHECK(gpu.generate({greedy_request(clean, 8)}).front().output_ids == expected);
  CHECK(gpu.stats().num_free_blocks == gpu.stats().num_blocks);
}
