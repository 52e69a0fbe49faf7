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

namespace cost_model_test {

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
    steps.push_back({work, 0, 1});
  }
  // One after the other, as a host that runs one step ahead sees them.
  for (int round = 0; round < 2; ++round) {
    const std::vector<double> seconds = predicted_seconds(exact, steps);
    double now = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      steps[i].start = now;
      now += steps[i].seconds = seconds[i];
    }
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
  cost.shared_kv_bytes = 8e12;
  cost.layer_us_2 = 10;
  cost.layer_us_16 = 11;
  cost.layer_us_128 = 12;
  cost.layer_us_more = 13;
  cost.prompt_layer_us = 5;
  cost.mixed_layer_us = 7;
  cost.launch_layer_us = 40;
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
  CHECK(step.device_seconds(decode, 400) ==
        Approx(step.device_seconds(decode) - 400 * 114688 / 2e12 + 400 * 114688 / 8e12));  // 400 of the tokens are shared
  CHECK(step.plan_seconds(decode) == Approx(24e-6));
  CHECK(step.launch_seconds(decode) == 0);  // a graph
  CHECK(step.transfer_seconds(decode) == 0);

  nvl::StepWork prompt;  // 2,000 tokens of one prompt, the last of which is sampled
  prompt.num_seqs = prompt.num_samples = 1;
  prompt.num_tokens = 2000;
  prompt.prefill_kv_tokens = 2000;
  prompt.prefill_pairs = 2000 * 2001 / 2;
  const double arithmetic = 2000 * 2 * layer_params / 500e12;  // slower than reading the weights
  const double attention = 4.0 * 28 * 2048 * (2000 * 2001 / 2) / 100e12;
  CHECK(step.device_seconds(prompt) == Approx(arithmetic + 2 * head_params / 4e12 + 2000 * 114688 / 2e12 + attention +
                                              (2000 * row_bytes + logits_bytes) / 1e12 + 28 * 18e-6)
                                           .epsilon(1e-4));

  CHECK(step.launch_seconds(prompt) == Approx(28 * 40e-6));

  // What a layer takes besides depends on the rows, and on what they are.
  const auto gaps = [&](std::int32_t decodes, std::int32_t prompt_tokens) {
    nvl::StepWork work;
    work.num_decodes = decodes;
    work.num_tokens = decodes + prompt_tokens;
    DeviceCost other = cost;
    other.layer_us_2 = other.layer_us_16 = other.layer_us_128 = other.layer_us_more = 0;
    other.prompt_layer_us = other.mixed_layer_us = 0;
    return (step.device_seconds(work) - StepCost(*preset("qwen3-0.6b"), other, 16).device_seconds(work)) / 28e-6;
  };
  CHECK(gaps(1, 0) == Approx(10));
  CHECK(gaps(3, 0) == Approx(11));
  CHECK(gaps(16, 0) == Approx(11));
  CHECK(gaps(17, 0) == Approx(12));
  CHECK(gaps(129, 0) == Approx(13));
  CHECK(gaps(0, 100) == Approx(12 + 5));
  CHECK(gaps(10, 100) == Approx(12 + 5 + 7));

  // Graphs: decodes, and single prompts that need little padding.
  const auto has_graph = [](std::int32_t seqs, std::int32_t tokens) {
    nvl::StepWork work;
    work.num_seqs = seqs;
    work.num_decodes = seqs == tokens ? seqs : seqs - 1;
    work.num_tokens = tokens;
    return StepCost::has_graph(work);
  };
  for (const auto& [seqs, tokens] : {std::pair(1, 1), {256, 256}, {512, 512}, {1, 64}, {1, 57}, {1, 500}, {1, 1000}}) {
    INFO(seqs << " sequences, " << tokens << " tokens");
    CHECK(has_graph(seqs, tokens));
  }
  for (const auto& [seqs, tokens] : {std::pair(513, 513), {1, 20}, {1, 40}, {1, 130}, {1, 1025}, {2, 64}}) {
    INFO(seqs << " sequences, " << tokens << " tokens");
    CHECK_FALSE(has_graph(seqs, tokens));
  }

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
  truth.layer_us_16 = 22;
  truth.layer_us_128 = 35;
  truth.prompt_layer_us = 21;
  truth.mixed_layer_us = 9;
  truth.launch_layer_us = 80;
  const std::vector<FitData> data{{*preset("qwen3-0.6b"), steps_of(truth, *preset("qwen3-0.6b"))},
                                  {*preset("qwen3-8b"), steps_of(truth, *preset("qwen3-8b"))}};
  const FitReport report = fit_cost(data);
  CHECK(report.cost.weight_bytes == Approx(truth.weight_bytes).epsilon(0.05));
  CHECK(report.cost.kv_bytes == Approx(truth.kv_bytes).epsilon(0.05));
  CHECK(report.cost.matmul_flops == Approx(truth.matmul_flops).epsilon(0.05));
  CHECK(report.cost.layer_us_128 == Approx(truth.layer_us_128).epsilon(0.1));
  CHECK(report.cost.launch_layer_us == Approx(truth.launch_layer_us).epsilon(0.1));
  CHECK(report.decode.num_steps + report.prompt.num_steps == 800);
  CHECK(report.decode.mean_relative < 0.01);
  CHECK(report.prompt.mean_relative < 0.01);
  CHECK(report.decode.predicted == Approx(report.decode.measured).epsilon(0.01));
  // It was not right to begin with, and what the log does not show is what it was.
  CHECK(fit_error(DeviceCost{}, data, false).mean_relative > 0.05);
  CHECK(report.cost.link_bytes == DeviceCost{}.link_bytes);
  CHECK(report.cost.host_us == DeviceCost{}.host_us);

  const FitReport one = fit_cost({data.front()});  // which does not tell these two from others
  CHECK(one.cost.weight_bytes == Approx(DeviceCost{}.weight_bytes).epsilon(0.1));
  CHECK(one.cost.matmul_flops == Approx(DeviceCost{}.matmul_flops).epsilon(0.1));
  CHECK(one.decode.mean_relative < 0.03);
}

TEST_CASE("a step that waits for the launch of the next one takes longer, and the next so much less", "[bench][host]") {
  DeviceCost cost;
  cost.launch_layer_us = 100;
  const nvl::ModelConfig model = *preset("qwen3-0.6b");
  const StepCost exact(model, cost, 16);
  nvl::StepWork decode, prompt;
  decode.num_seqs = decode.num_tokens = decode.num_samples = decode.num_decodes = 4;
  decode.decode_kv_tokens = 400;
  prompt.num_seqs = prompt.num_samples = 1;
  prompt.num_tokens = 2000;
  prompt.prefill_pairs = 2000 * 2001 / 2;
  REQUIRE(exact.launch_seconds(prompt) > exact.device_seconds(decode));
  std::vector<LoggedStep> steps{{decode, 0, 1e-3}, {decode, 1e-3, 1e-3}, {prompt, 2e-3, 5e-3}, {decode, 7e-3, 1e-3}};
  const std::vector<double> predicted = predicted_seconds(exact, steps);
  CHECK(predicted[0] == Approx(exact.plan_seconds(decode) + exact.device_seconds(decode)));
  CHECK(predicted[1] == Approx(exact.plan_seconds(prompt) + exact.launch_seconds(prompt)));
  CHECK(predicted[1] + predicted[2] == Approx(exact.device_seconds(decode) + exact.device_seconds(prompt)));
  CHECK(predicted[3] == Approx(exact.device_seconds(decode)));
  steps[3].start = 1;  // after a pause: nothing was launched ahead
  CHECK(predicted_seconds(exact, steps)[3] == Approx(exact.plan_seconds(decode) + exact.device_seconds(decode)));
}

TEST_CASE("a few interrupted steps do not spoil a fit", "[bench][host]") {
  const DeviceCost truth;
  std::vector<LoggedStep> steps = steps_of(truth, *preset("qwen3-0.6b"));
  double late = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    steps[i].start += late;
    if (i % 80 == 3) {
      late += 39 * steps[i].seconds;
      steps[i].seconds *= 40;
    }
  }
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
  CHECK(log.steps[0].start == 0.5);
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

}  // namespace cost_model_test
