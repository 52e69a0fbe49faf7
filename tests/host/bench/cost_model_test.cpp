#include "bench/sim/cost_model.hpp"
#include "bench/sim/fit.hpp"
#include "bench/support/presets.hpp"
#include "bench/support/trace.hpp"

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

using namespace nvl_bench;
using Catch::Approx;

namespace {

/// Steps of Qwen3-0.6B whose times are exactly those of `cost`.
std::vector<LoggedStep> steps_of(const DeviceCost& cost, const nvl::ModelConfig& model) {
  TraceRandom random(1);
  const StepCost exact(model, cost, 16);
  std::vector<LoggedStep> steps;
  for (int i = 0; i < 400; ++i) {
    nvl::StepWork work;
    work.num_decodes = i % 5 == 0 ? 0 : random.between(1, 256);
    work.decode_kv_tokens = std::int64_t{work.num_decodes} * random.between(10, 2000);
    const std::int32_t prompts = i % 5 == 0 || i % 7 == 0 ? random.between(1, 16) : 0;
    work.num_seqs = work.num_decodes + prompts;
    work.num_tokens = work.num_decodes;
    for (int p = 0; p < prompts; ++p) {
      const std::int64_t length = random.between(16, 1024);
      work.num_tokens += static_cast<std::int32_t>(length);
      work.prefill_kv_tokens += length;
      work.prefill_pairs += length * (length + 1) / 2;
    }
    work.num_samples = work.num_seqs;
    steps.push_back({work, exact.device_seconds(work)});
  }
  return steps;
}

}  // namespace

TEST_CASE("the cost of a step is that worked out by hand", "[bench][host]") {
  // Qwen3-0.6B: 440,401,920 parameters in the layers, 155,582,464 in the output projection, 114,688 bytes of K and V a token.
  DeviceCost cost;
  cost.weight_bytes = 4e12;
  cost.kv_bytes = 2e12;
  cost.matmul_flops = 500e12;
  cost.attention_flops = 100e12;
  cost.row_bytes = 1e12;
  cost.layer_us = 10;
  cost.prompt_layer_us = 5;
  cost.host_us = 20;
  cost.host_seq_us = 2;
  cost.link_bytes = 50e9;
  const StepCost step(*preset("qwen3-0.6b"), cost, 16);
  CHECK(step.kv_token_bytes() == 114688);

  const double layer_params = 440401920, head_params = 155582464;
  // Written and read by a token: 4 x 1024 + 4096 + 2048 + 3 x 3072 values of two bytes in 28 layers.
  const double row_bytes = 2 * 2 * 28 * (4 * 1024 + 4096 + 2048 + 3 * 3072), logits_bytes = 8 * 151936;

  nvl::StepWork decode;  // two sequences, which read 1,000 tokens of K and V
  decode.num_seqs = decode.num_tokens = decode.num_samples = decode.num_decodes = 2;
  decode.decode_kv_tokens = 1000;
  const double weights = 2 * (layer_params + head_params) / 4e12;  // slower than the arithmetic
  CHECK(step.device_seconds(decode) ==
        Approx(weights + 1000 * 114688 / 2e12 + 2 * (row_bytes + logits_bytes) / 1e12 + 280e-6).epsilon(1e-4));
  CHECK(step.host_seconds(decode) == Approx(24e-6));
  CHECK(step.transfer_seconds(decode) == 0);

  nvl::StepWork prompt;  // 2,000 tokens of one prompt, the last of which is sampled
  prompt.num_seqs = prompt.num_samples = 1;
  prompt.num_tokens = 2000;
  prompt.prefill_kv_tokens = 2000;
  prompt.prefill_pairs = 2000 * 2001 / 2;
  const double arithmetic = 2000 * 2 * layer_params / 500e12;  // slower than reading the weights
  const double attention = 4.0 * 28 * 2048 * (2000 * 2001 / 2) / 100e12;
  CHECK(step.device_seconds(prompt) == Approx(arithmetic + 2 * head_params / 4e12 + 2000 * 114688 / 2e12 + attention +
                                              (2000 * row_bytes + logits_bytes) / 1e12 + 28 * 15e-6)
                                           .epsilon(1e-4));

  nvl::StepWork moves;  // nothing is computed
  moves.num_copies = 3;
  moves.num_transfers = 5;
  CHECK(step.device_seconds(moves) == Approx(3 * 2 * 16 * 114688 / 2e12));
  CHECK(step.transfer_seconds(moves) == Approx(5 * 16 * 114688 / 50e9));
}

TEST_CASE("a fit finds the device that a log comes from", "[bench][host]") {
  DeviceCost truth;
  truth.weight_bytes = 3.1e12;
  truth.kv_bytes = 3.7e12;
  truth.matmul_flops = 480e12;
  truth.attention_flops = 170e12;
  truth.row_bytes = 4e12;
  truth.layer_us = 22;
  truth.prompt_layer_us = 31;
  const std::vector<FitData> data{{*preset("qwen3-0.6b"), steps_of(truth, *preset("qwen3-0.6b"))},
                                  {*preset("qwen3-8b"), steps_of(truth, *preset("qwen3-8b"))}};
  const FitReport report = fit_cost(data);
  CHECK(report.cost.weight_bytes == Approx(truth.weight_bytes).epsilon(0.05));
  CHECK(report.cost.kv_bytes == Approx(truth.kv_bytes).epsilon(0.05));
  CHECK(report.cost.matmul_flops == Approx(truth.matmul_flops).epsilon(0.05));
  CHECK(report.cost.layer_us == Approx(truth.layer_us).epsilon(0.1));
  CHECK(report.decode.num_steps + report.prompt.num_steps == 800);
  CHECK(report.decode.mean_relative < 0.01);
  CHECK(report.prompt.mean_relative < 0.01);
  CHECK(report.decode.predicted == Approx(report.decode.measured).epsilon(0.01));
  // It was not right to begin with, and what the log does not show is what it was.
  CHECK(fit_error(DeviceCost{}, data, false).mean_relative > 0.05);
  CHECK(report.cost.link_bytes == DeviceCost{}.link_bytes);
  CHECK(report.cost.host_us == DeviceCost{}.host_us);
}

TEST_CASE("a few interrupted steps do not spoil a fit", "[bench][host]") {
  const DeviceCost truth;
  std::vector<LoggedStep> steps = steps_of(truth, *preset("qwen3-0.6b"));
  for (std::size_t i = 3; i < steps.size(); i += 80) { steps[i].seconds *= 40; }
  const FitReport report = fit_cost({{*preset("qwen3-0.6b"), steps}});
  const StepCost fitted(*preset("qwen3-0.6b"), report.cost, 16), exact(*preset("qwen3-0.6b"), truth, 16);
  for (std::size_t i = 0; i < steps.size(); i += 7) {
    CHECK(fitted.device_seconds(steps[i].work) == Approx(exact.device_seconds(steps[i].work)).epsilon(0.1));
  }
}

TEST_CASE("a step log is read, and what is none is refused", "[bench][host]") {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / "nvl_step_log_test.csv";
  const auto write = [&](const std::string& text) { std::ofstream(path) << text; };
  const std::string head =
      "run,start_s,us,seqs,tokens,samples,decodes,decode_kv_tokens,prefill_kv_tokens,prefill_pairs,copies,transfers,waiting,"
      "running\n";
  write("# model qwen3-0.6b\n" + head + "1,0.5,250.5,3,12,2,1,100,22,77,4,5,6,7\n1,0.6,10,0,0,0,0,0,0,0,0,2,0,0\n");
  const StepLog log = read_step_log(path);
  CHECK(log.model == "qwen3-0.6b");
  REQUIRE(log.steps.size() == 1);  // a step without tokens says nothing
  CHECK(log.steps[0].seconds == Approx(250.5e-6));
  CHECK(log.steps[0].work == nvl::StepWork{.num_seqs = 3,
                                           .num_tokens = 12,
                                           .num_samples = 2,
                                           .num_decodes = 1,
                                           .decode_kv_tokens = 100,
                                           .prefill_kv_tokens = 22,
                                           .prefill_pairs = 77,
                                           .num_copies = 4,
                                           .num_transfers = 5});
  for (const std::string& text : {std::string(), head + "1,2\n", "# model x\n" + head + "1,2,3\n",
                                  "# model x\n" + head + "1,0.5,a,3,12,2,1,100,22,77,4,5,6,7\n"}) {
    write(text);
    CHECK_THROWS_AS(read_step_log(path), std::runtime_error);
  }
  std::filesystem::remove(path);
  CHECK_THROWS_AS(read_step_log(path), std::runtime_error);
}
