// Every family against Hugging Face transformers in float64, from the files that it wrote.

#include <nvl/io/checkpoint.hpp>
#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <span>
#include <vector>

#include "support/tiny_golden.hpp"

namespace tiny_models_test {

using namespace nvl;
using namespace nvl_test;

namespace {

using FloatEngine = DefaultCpuEngine<float>;

}  // namespace

TEST_CASE("tiny models have the logits of Hugging Face at every position", "[llm][golden][host]") {
  const TinyModel which = GENERATE(from_range(tiny_models()));
  INFO(which.model);
  const Checkpoint checkpoint = Checkpoint::open(tiny_model_path(which.model));
  const Golden golden = read_golden(tiny_model_path(which.golden));
  // Whatever the file stores, in float32: so the bound is that of float32 arithmetic.
  const Float32Weights weights(checkpoint);
  FloatEngine engine(checkpoint.config(), weights, tiny_model_options());
  const double worst = largest_error(engine, golden);
  INFO("largest error of a logit " << worst);
  CHECK(worst <= golden.tolerance);
  CHECK(worst > 0);  // float32 cannot be exact: 0 would mean that nothing was compared
}

TEST_CASE("weights that stay quantised cost little of that accuracy", "[llm][golden][host]") {
  // Products of Q4_0, Q4_1 and Q8_0 round activations to 16 bits in blocks of 32 (ops/cpu_linear.hpp). Logits here reach 23; a
  // tenth of what the real model's logits may be off (tests/data/smollm2) is the bound, and measured 1.9e-3.
  constexpr double tolerance = 5e-3;
  const Checkpoint checkpoint = Checkpoint::open(tiny_model_path("gguf/llama_mixed.gguf"));
  FloatEngine engine(checkpoint.config(), checkpoint, tiny_model_options());
  const double worst = largest_error(engine, read_golden(tiny_model_path("gguf/llama_mixed.golden.json")));
  INFO("largest error of a logit " << worst);
  CHECK(worst <= tolerance);
  CHECK(worst > 0);
}

TEST_CASE("tiny models continue greedily as Hugging Face does, alone and together", "[llm][golden][host]") {
  const TinyModel which = GENERATE(from_range(tiny_models()));
  INFO(which.model);
  const Checkpoint checkpoint = Checkpoint::open(tiny_model_path(which.model));
  const Golden golden = read_golden(tiny_model_path(which.golden));
  FloatEngine engine(checkpoint.config(), checkpoint, tiny_model_options());
  std::vector<Request> all;
  for (const GoldenPrompt& prompt : golden.prompts) { all.push_back(greedy_request(prompt)); }
  const std::vector<Completion> together = engine.generate(all);
  for (std::size_t i = 0; i < golden.prompts.size(); ++i) {
    INFO("prompt of " << golden.prompts[i].ids.size() << " tokens");
    CHECK(together[i].output_ids == golden.prompts[i].greedy_ids);
    CHECK(engine.generate({all[i]}).front().output_ids == golden.prompts[i].greedy_ids);
  }
}

TEST_CASE("a window shorter than the prompt changes what the model sees", "[llm][golden][host]") {
  const Checkpoint checkpoint = Checkpoint::open(tiny_model_path("mistral"));
  REQUIRE(checkpoint.config().sliding_window == 12);
  ModelConfig unlimited = checkpoint.config();
  unlimited.sliding_window = 0;
  const Golden golden = read_golden(tiny_model_path("mistral/golden.json"));
  FloatEngine windowed(checkpoint.config(), checkpoint, tiny_model_options());
  FloatEngine full(unlimited, checkpoint, tiny_model_options());
  const std::vector<TokenId>& ids = golden.prompts.back().ids;
  std::vector<float> last, last_full;
  windowed.prompt_logits(ids, [&](std::int32_t, std::span<const float> logits) { last.assign(logits.begin(), logits.end()); });
  full.prompt_logits(ids, [&](std::int32_t, std::span<const float> logits) { last_full.assign(logits.begin(), logits.end()); });
  CHECK(last != last_full);
}

}  // namespace tiny_models_test
