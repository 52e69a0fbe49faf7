#include "bench/support/presets.hpp"
#include "bench/support/roofline.hpp"

#include <nvl/core/weight_names.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace roofline_test {

using namespace nvl_bench;
using Catch::Matchers::WithinRel;

TEST_CASE("presets have the published numbers of parameters", "[bench][host]") {
  const std::map<std::string, std::int64_t> published{{"smollm2-135m", 134'515'008},   {"qwen2.5-0.5b", 494'032'768},
                                                      {"qwen3-0.6b", 596'049'920},     {"qwen3-1.7b", 1'720'574'976},
                                                      {"qwen3-4b", 4'022'468'096},     {"qwen3-8b", 8'190'735'360},
                                                      {"llama-3.2-1b", 1'235'814'400}, {"llama-3.1-8b", 8'030'261'248}};
  for (const std::string_view name : preset_names) {
    CAPTURE(name);
    const auto config = preset(name);
    REQUIRE(config);
    CHECK_NOTHROW(nvl::validate(*config));
    std::int64_t count = 0;
    for (const nvl::WeightSpec& spec : nvl::expected_weights(*config)) {
      count += spec.shape[0] * (spec.shape.size() > 1 ? spec.shape[1] : 1);
    }
    if (name != "tiny") { CHECK(count == published.at(std::string(name))); }
  }
  CHECK(!preset("qwen3-600b"));
}

TEST_CASE("the least work of the nano-vllm load is as published in its analysis", "[bench][host]") {
  const ModelBytes model(*preset("qwen3-0.6b"), 2, 2);
  CHECK_THAT(model.weight_bytes(), WithinRel(1.192e9, 1e-3));
  CHECK(model.kv_read_bytes(1) == 114688);
  const std::vector<RequestLengths> lengths = nano_vllm_workload().lengths();
  const LoadWork work = LoadWork::of(model, lengths);
  CHECK_THAT(work.kv_read_bytes, WithinRel(13.853760356352e12, 1e-12));  // computed in Python
  CHECK_THAT(work.prefill_matmul_flops, WithinRel(125.9e12, 2e-3));
  CHECK_THAT(work.prefill_attention_flops, WithinRel(11.3e12, 1e-2));
  REQUIRE(work.decode_batches.size() == 1023);
  CHECK(work.decode_batches.front() == 256);
  const PeakRates h200 = known_peak_rates("NVIDIA H200");
  REQUIRE(h200.known());
  // About 39,000 tokens/s on an H200, where reading K and V takes most of the time.
  CHECK_THAT(133966 / work.seconds(model, h200), WithinRel(39000.0, 0.01));
  CHECK_THAT(work.prefill_seconds(model, h200), WithinRel(0.180, 0.01));
  CHECK(!known_peak_rates("some GPU").known());
}

TEST_CASE("one sequence reads weights and its K and V once a token", "[bench][host]") {
  const ModelBytes model(*preset("qwen3-8b"), 2, 2);
  CHECK_THAT(model.weight_bytes(), WithinRel(15.136e9, 1e-3));  // the embedding itself is read by the row
  const std::vector<RequestLengths> one{{512, 128}};
  const LoadWork work = LoadWork::of(model, one);
  const PeakRates peak{4e12, 800e12, 500e12};
  double expected = 0;
  for (int context = 513; context < 512 + 128; ++context) {
    expected += (model.weight_bytes() + model.kv_read_bytes(context)) / 4e12;
  }
  CHECK_THAT(work.decode_seconds(model, peak), WithinRel(expected, 1e-12));
}

TEST_CASE("a window bounds what attention reads and computes", "[bench][host]") {
  nvl::ModelConfig config = *preset("qwen3-0.6b");
  const ModelBytes all(config, 2, 2);
  config.sliding_window = 100;
  config.first_windowed_layer = 8;
  const ModelBytes some(config, 2, 2);
  CHECK(some.kv_read_bytes(100) == all.kv_read_bytes(100));
  CHECK(some.kv_read_bytes(1000) == 4096.0 * (8 * 1000 + 20 * 100));
  const double q = 4.0 * config.q_size();
  CHECK(all.prefill_attention_flops(3) == q * 28 * 6);
  CHECK(some.prefill_attention_flops(102) == q * (8 * (102 * 103 / 2) + 20 * (5050 + 200)));
}

}  // namespace roofline_test
