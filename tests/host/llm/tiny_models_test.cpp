// Every family against Hugging Face transformers in float64, from the files that it wrote.

#include <nvl/core/dequantize.hpp>
#include <nvl/io/checkpoint.hpp>
#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
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

/// The weights of a checkpoint as float32 tensors, as `dequantize_row` makes them.
class Float32Weights {
 public:
  explicit Float32Weights(const Checkpoint& checkpoint) {
    for (const HostTensor& tensor : checkpoint.tensors()) {
      const std::int64_t row = tensor.shape.back();
      const std::size_t row_bytes = tensor.data.size() / static_cast<std::size_t>(tensor.num_rows());
      std::vector<float>& values = values_.emplace_back(static_cast<std::size_t>(tensor.num_rows() * row));
      for (std::int64_t i = 0; i < tensor.num_rows(); ++i) {
        dequantize_row(tensor.dtype, tensor.data.data() + static_cast<std::size_t>(i) * row_bytes, values.data() + i * row, row);
      }
      tensors_.push_back({tensor.name, DType::float32, tensor.shape, std::as_bytes(std::span<const float>(values))});
    }
  }

  const HostTensor* find(std::string_view name) const {
    const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const HostTensor& t) { return t.name == name; });
    return found == tensors_.end() ? nullptr : &*found;
  }

 private:
  std::vector<std::vector<float>> values_;
  std::vector<HostTensor> tensors_;
};

/// Over all logits that the golden file holds.
double largest_error(FloatEngine& engine, const Golden& golden) {
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
  return worst;
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
  // Whatever the file stores, in float32: so the bound is that of float32 arithmetic.
  const Float32Weights weights(checkpoint);
  FloatEngine engine(checkpoint.config(), weights, options());
  const double worst = largest_error(engine, golden);
  INFO("largest error of a logit " << worst);
  CHECK(worst <= golden.tolerance);
  CHECK(worst > 0);  // float32 cannot be exact: 0 would mean that nothing was compared
}

TEST_CASE("weights that stay quantised cost little of that accuracy", "[llm][golden][host]") {
  // Products of Q4_0, Q4_1 and Q8_0 round activations to 16 bits in blocks of 32 (ops/cpu_linear.hpp). Logits here reach 23; a
  // tenth of what the real model's logits may be off (tests/data/smollm2) is the bound, and measured 1.9e-3.
  constexpr double tolerance = 5e-3;
  const Checkpoint checkpoint = Checkpoint::open(data("gguf/llama_mixed.gguf"));
  FloatEngine engine(checkpoint.config(), checkpoint, options());
  const double worst = largest_error(engine, read_golden(data("gguf/llama_mixed.golden.json")));
  INFO("largest error of a logit " << worst);
  CHECK(worst <= tolerance);
  CHECK(worst > 0);
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
