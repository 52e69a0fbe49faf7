// Every family against Hugging Face transformers in float64, from the files that it wrote.

#include <nvl/io/checkpoint.hpp>
#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "support/golden.hpp"

using namespace nvl;
using namespace nvl_test;

namespace {

using FloatEngine = DefaultCpuEngine<float>;

struct Case {
  std::string model;   // under tests/data/tiny_models
  std::string golden;  // likewise
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* name : {"llama3_scaled", "llama_linear", "llama_yarn", "llama_mha", "llama_mqa", "llama_bias", "qwen2",
                           "qwen2_window", "qwen3", "qwen3_yarn", "mistral"}) {
    all.push_back({name, std::string(name) + "/golden.json"});
  }
  for (const char* name : {"llama3_scaled", "llama_linear", "qwen2", "qwen3"}) {
    all.push_back({"gguf/" + std::string(name) + ".gguf", std::string(name) + "/golden.json"});
  }
  all.push_back({"gguf/llama_mixed.gguf", "gguf/llama_mixed.golden.json"});
  return all;
}

std::filesystem::path data(const std::string& name) { return std::filesystem::path(NVL_TEST_DATA_DIR) / "tiny_models" / name; }

EngineOptions options() {
  EngineOptions options;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 128;
  options.num_blocks = 128;
  options.device.num_threads = 2;
  return options;
}

Request greedy(const GoldenPrompt& prompt) {
  Request request;
  request.prompt_ids = prompt.ids;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = static_cast<std::int32_t>(prompt.greedy_ids.size());
  return request;
}

}  // namespace

TEST_CASE("tiny models have the logits of Hugging Face at every position", "[llm][golden][host]") {
  const Case which = GENERATE(from_range(cases()));
  INFO(which.model);
  const Checkpoint checkpoint = Checkpoint::open(data(which.model));
  const Golden golden = read_golden(data(which.golden));
  FloatEngine engine(checkpoint.config(), checkpoint, options());
  double worst = 0;
  for (const GoldenPrompt& prompt : golden.prompts) {
    engine.prompt_logits(prompt.ids, [&](std::int32_t position, std::span<const float> logits) {
      const auto at = static_cast<std::size_t>(position);
      const auto compare = [&](std::size_t id, double expected) {
        worst = std::max(worst, std::abs(double{logits[id]} - expected));
      };
      for (std::size_t i = 0; i < prompt.top_ids[at].size(); ++i) {
        compare(static_cast<std::size_t>(prompt.top_ids[at][i]), prompt.top_logits[at][i]);
      }
      for (std::size_t i = 0; i < golden.columns.size(); ++i) { compare(golden.columns[i], prompt.column_logits[at][i]); }
      if (!prompt.logits.empty()) {
        for (std::size_t id = 0; id < logits.size(); ++id) { compare(id, prompt.logits[at][id]); }
      }
      double sum = 0;
      for (const float logit : logits) { sum += std::exp(double{logit}); }
      worst = std::max(worst, std::abs(std::log(sum) - prompt.logsumexp[at]));
    });
  }
  INFO("largest error of a logit " << worst);
  CHECK(worst <= golden.tolerance);
  CHECK(worst > 0);  // float32 cannot be exact: 0 would mean that nothing was compared
}

TEST_CASE("tiny models continue greedily as Hugging Face does, alone and together", "[llm][golden][host]") {
  const Case which = GENERATE(from_range(cases()));
  INFO(which.model);
  const Checkpoint checkpoint = Checkpoint::open(data(which.model));
  const Golden golden = read_golden(data(which.golden));
  FloatEngine engine(checkpoint.config(), checkpoint, options());
  std::vector<Request> all;
  for (const GoldenPrompt& prompt : golden.prompts) { all.push_back(greedy(prompt)); }
  const std::vector<Completion> together = engine.generate(all);
  for (std::size_t i = 0; i < golden.prompts.size(); ++i) {
    INFO("prompt of " << golden.prompts[i].ids.size() << " tokens");
    CHECK(together[i].output_ids == golden.prompts[i].greedy_ids);
    CHECK(engine.generate({all[i]}).front().output_ids == golden.prompts[i].greedy_ids);
  }
}

TEST_CASE("a window shorter than the prompt changes what the model sees", "[llm][golden][host]") {
  const Checkpoint checkpoint = Checkpoint::open(data("mistral"));
  REQUIRE(checkpoint.config().sliding_window == 12);
  ModelConfig unlimited = checkpoint.config();
  unlimited.sliding_window = 0;
  const Golden golden = read_golden(data("mistral/golden.json"));
  FloatEngine windowed(checkpoint.config(), checkpoint, options());
  FloatEngine full(unlimited, checkpoint, options());
  const std::vector<TokenId>& ids = golden.prompts.back().ids;
  std::vector<float> last, last_full;
  windowed.prompt_logits(ids, [&](std::int32_t, std::span<const float> logits) { last.assign(logits.begin(), logits.end()); });
  full.prompt_logits(ids, [&](std::int32_t, std::span<const float> logits) { last_full.assign(logits.begin(), logits.end()); });
  CHECK(last != last_full);
}
