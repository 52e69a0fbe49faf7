#include "bench/support/verify.hpp"
#include "support/engines.hpp"
#include "tests/support/tiny_model.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace verify_test {

using namespace nvl_bench;
using Catch::Matchers::ContainsSubstring;
using nvl::bf16;
using nvl_test::roomy_options;
using nvl_test::tiny_config;

namespace {

template <class Element>
std::unique_ptr<nvl::AnyEngine> engine_of(const nvl::RandomWeights& weights, nvl::EngineOptions options = roomy_options()) {
  return nvl::make_any_engine<nvl::DefaultCpuEngine<Element>>(tiny_config(), weights, options, {});
}

nvl::RandomWeights bf16_weights() { return {tiny_config(), 1, {.dtype = nvl::DType::bfloat16}}; }

Workload small_load() {
  RandomIds random(tiny_config().vocab_size, 1);
  return random_workload(20, {60, 24}, 0.5, tiny_config().vocab_size, random);
}

}  // namespace

TEST_CASE("the load of the check is the measured one, shorter and greedy", "[bench][host]") {
  const Workload load = nano_vllm_workload();
  const Workload shorter = verification_load(load, {.input_len = 256, .output_len = 32});
  REQUIRE(shorter.size() == load.size());
  CHECK(shorter.temperature == 0);
  for (std::size_t i = 0; i < load.size(); ++i) {
    CHECK(shorter.prompts[i].size() == std::min<std::size_t>(256, load.prompts[i].size()));
    CHECK(std::equal(shorter.prompts[i].begin(), shorter.prompts[i].end(), load.prompts[i].begin()));
    CHECK(shorter.output_lens[i] == 32);
  }
}

TEST_CASE("answers are those of evenly chosen requests, and leave no prompt in the prefix cache", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  const auto engine = engine_of<float>(weights);
  const Workload load = small_load();
  const std::vector<Answer> answers = greedy_answers(*engine, load, 4, load.size());
  REQUIRE(answers.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(answers[i].prompt == load.prompts[5 * i]);
    CHECK(std::ssize(answers[i].output) == load.output_lens[5 * i]);
  }
  // Smaller batches answer the same.
  const std::vector<Answer> alone = greedy_answers(*engine, load, 4, 1);
  for (std::size_t i = 0; i < 4; ++i) { CHECK(alone[i].output == answers[i].output); }
  CHECK(greedy_answers(*engine, load, 100, 7).size() == 20);
  for (const nvl::Completion& done : engine->generate(load.requests())) { CHECK(done.num_cached_tokens == 0); }
}

TEST_CASE("an engine agrees with itself without any regret", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  const auto engine = engine_of<float>(weights);
  const Workload load = small_load();
  const std::vector<Answer> answers = greedy_answers(*engine, load, 16, load.size());
  std::int64_t tokens = 0;
  for (const Answer& answer : answers) { tokens += std::ssize(answer.output); }
  const Verdict verdict = judge(*engine, answers, RegretLimit::of(nvl::DType::float32));
  CHECK(verdict.passed());
  CHECK(verdict.num_requests == 16);
  CHECK(verdict.num_tokens == tokens);
  CHECK(verdict.num_same == tokens);
  CHECK(verdict.num_wrong == 0);
  CHECK(verdict.num_decisive > tokens / 2);
  CHECK(verdict.worst_regret == 0);
  CHECK((verdict.logit_deviation > 0.5 && verdict.logit_deviation < 2));
}

TEST_CASE("a bfloat16 engine stays within the limit, and a spoiled one does not", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  const auto reference = engine_of<float>(weights);
  const Workload load = small_load();
  const RegretLimit limit = RegretLimit::of(nvl::DType::bfloat16);
  {
    const auto measured = engine_of<bf16>(weights);
    const Verdict verdict = judge(*reference, greedy_answers(*measured, load, 16, load.size()), limit);
    CAPTURE(verdict.worst_regret, verdict.worst);
    CHECK(verdict.passed());
    CHECK(verdict.limit == 0.2 * verdict.logit_deviation);
    CHECK(verdict.worst_regret < verdict.limit / 2);
    CHECK(verdict.mean_regret < 0.01);
  }
  for (const auto& [one, other] :
       std::vector<std::pair<const char*, const char*>>{{"layers.0.gate_proj", "layers.0.up_proj"},
                                                        {"layers.1.k_proj", "layers.1.v_proj"},
                                                        {"layers.1.down_proj", "layers.2.down_proj"}}) {
    CAPTURE(one, other);
    nvl::RandomWeights spoiled = bf16_weights();
    spoiled.exchange(one, other);
    const auto measured = engine_of<bf16>(spoiled);
    const Verdict verdict = judge(*reference, greedy_answers(*measured, load, 16, load.size()), limit);
    CHECK(!verdict.passed());
    CHECK(verdict.num_wrong > 0);
    CHECK(verdict.worst_regret > verdict.limit);
    CHECK_THAT(verdict.worst, ContainsSubstring("of request"));
  }
}

TEST_CASE("one wrong token in all answers is found", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  const auto engine = engine_of<float>(weights);
  const Workload load = small_load();
  std::vector<Answer> answers = greedy_answers(*engine, load, 16, load.size());
  nvl::TokenId& last = answers[7].output.back();  // the last, so that no other token follows from it
  last = (last + 1) % tiny_config().vocab_size;
  const Verdict verdict = judge(*engine, answers, {0.1, 1});
  CHECK(!verdict.passed());
  CHECK(verdict.num_wrong == 1);
  CHECK(verdict.num_same == verdict.num_tokens - 1);
  CHECK_THAT(verdict.worst, ContainsSubstring("token " + std::to_string(answers[7].output.size()) + " of request 8"));
}

TEST_CASE("a check of nothing is not passed", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  CHECK(!judge(*engine_of<float>(weights), {}, {1, 1}).passed());
}

TEST_CASE("a request that the engine cannot finish stops the check", "[bench][host]") {
  const nvl::RandomWeights weights = bf16_weights();
  nvl::EngineOptions options = roomy_options();
  options.max_model_len = 64;
  const auto engine = engine_of<float>(weights, options);
  RandomIds random(tiny_config().vocab_size, 1);
  const Workload load = random_workload(2, {60, 24}, 0, tiny_config().vocab_size, random);
  CHECK_THROWS_WITH(greedy_answers(*engine, load, 2, 2), ContainsSubstring("request 1 of the check ended after 4 of 24"));
}

}  // namespace verify_test
