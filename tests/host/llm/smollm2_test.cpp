// The real model against float64 arithmetic on its dequantised weights (tests/data/smollm2/README.md).

#include <nvl/io/chat_format.hpp>
#include <nvl/io/checkpoint.hpp>
#include <nvl/io/tokenizer.hpp>
#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/golden.hpp"

namespace smollm2_test {

using namespace nvl;
using nvl_test::read_json;

namespace {

const std::filesystem::path model_path = std::filesystem::path(NVL_FETCHED_DATA_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The model, loaded once for all cases.
struct SmolLM2 {
  Checkpoint checkpoint = Checkpoint::open(model_path);
  std::shared_ptr<const Tokenizer> tokenizer = std::make_shared<const Tokenizer>(Tokenizer::from_gguf(*checkpoint.gguf()));
  DefaultCpuEngine<float> engine;
  nlohmann::json golden = read_json(std::filesystem::path(NVL_TEST_DATA_DIR) / "smollm2/golden.json");

  SmolLM2() : engine(checkpoint.config(), checkpoint, options(tokenizer)) {}

  static EngineOptions options(std::shared_ptr<const Tokenizer> text) {
    EngineOptions options;
    options.max_num_seqs = 32;
    options.max_num_batched_tokens = 1024;
    options.max_model_len = 2048;
    options.num_blocks = 512;
    options.device.num_threads = 2;
    options.token_text = std::move(text);
    return options;
  }
};

SmolLM2& model() {
  if (!std::filesystem::exists(model_path)) { SKIP("the model is not there: scripts/fetch_model"); }
  static SmolLM2 model;
  return model;
}

/// The logits at each position of `ids` from `first` on.
std::vector<std::vector<float>> logits_from(SmolLM2& m, const std::vector<TokenId>& ids, std::size_t first) {
  std::vector<std::vector<float>> rows;
  m.engine.prompt_logits(
      ids, [&](std::int32_t, std::span<const float> logits) { rows.emplace_back(logits.begin(), logits.end()); },
      static_cast<std::int32_t>(first));
  return rows;
}

std::size_t argmax(const std::vector<float>& logits) {
  return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

TEST_CASE("SmolLM2's prompt ids are those of Hugging Face", "[llm][smollm2][host]") {
  SmolLM2& m = model();
  for (const nlohmann::json& prompt : m.golden.at("prompts")) {
    INFO(prompt.at("name").get<std::string>());
    const auto expected = prompt.at("prompt_ids").get<std::vector<TokenId>>();
    CHECK(m.tokenizer->encode(prompt.at("text").get<std::string>()) == expected);
    if (prompt.at("kind") == "chat") {
      std::vector<ChatMessage> messages;
      for (const nlohmann::json& message : prompt.at("messages")) {
        messages.push_back({message.at("role").get<std::string>(), message.at("content").get<std::string>()});
      }
      CHECK(format_chat(*m.tokenizer, messages, true) == expected);
    }
  }
}

TEST_CASE("SmolLM2's logits are within 5e-2 of the dequantised reference, with the same clear choices",
          "[llm][smollm2][slow][host]") {
  SmolLM2& m = model();
  const double tolerance = m.golden.at("tolerance").get<double>();
  const double clear_margin = m.golden.at("clear_margin").get<double>();
  const auto columns = m.golden.at("columns").get<std::vector<std::size_t>>();
  double worst = 0;
  for (const nlohmann::json& prompt : m.golden.at("prompts")) {
    INFO(prompt.at("name").get<std::string>());
    const auto ids = prompt.at("prompt_ids").get<std::vector<TokenId>>();
    const std::vector<float> logits = logits_from(m, ids, ids.size() - 1).front();
    const auto top_ids = prompt.at("top_ids").get<std::vector<std::size_t>>();
    const auto top_logits = prompt.at("top_logits").get<std::vector<double>>();
    const auto column_logits = prompt.at("column_logits").get<std::vector<double>>();
    double error = 0;
    for (std::size_t i = 0; i < top_ids.size(); ++i) {
      error = std::max(error, std::abs(double{logits[top_ids[i]]} - top_logits[i]));
    }
    for (std::size_t i = 0; i < columns.size(); ++i) {
      error = std::max(error, std::abs(double{logits[columns[i]]} - column_logits[i]));
    }
    CHECK(error <= tolerance);
    worst = std::max(worst, error);
    if (top_logits[0] - top_logits[1] > clear_margin) { CHECK(argmax(logits) == top_ids[0]); }
  }
  CHECK(worst > 0);
}

TEST_CASE("SmolLM2 chooses as the reference does at every step, teacher forced", "[llm][smollm2][slow][host]") {
  SmolLM2& m = model();
  double worst = 0;
  for (const nlohmann::json& prompt : m.golden.at("prompts")) {
    INFO(prompt.at("name").get<std::string>());
    auto ids = prompt.at("prompt_ids").get<std::vector<TokenId>>();
    const std::size_t num_prompt = ids.size();
    const auto greedy = prompt.at("greedy_ids").get<std::vector<std::size_t>>();
    const auto margins = prompt.at("greedy_margins").get<std::vector<double>>();
    const auto step_ids = prompt.at("step_top_ids").get<std::vector<std::vector<std::size_t>>>();
    const auto step_logits = prompt.at("step_top_logits").get<std::vector<std::vector<double>>>();
    for (std::size_t i = 0; i + 1 < greedy.size(); ++i) { ids.push_back(static_cast<TokenId>(greedy[i])); }
    const std::vector<std::vector<float>> rows = logits_from(m, ids, num_prompt - 1);
    REQUIRE(rows.size() == greedy.size());
    for (std::size_t step = 0; step < greedy.size(); ++step) {
      for (std::size_t i = 0; i < step_ids[step].size(); ++i) {
        worst = std::max(worst, std::abs(double{rows[step][step_ids[step][i]]} - step_logits[step][i]));
      }
      if (margins[step] > 0.01) { CHECK(argmax(rows[step]) == greedy[step]); }
    }
  }
  CHECK(worst <= m.golden.at("tolerance").get<double>());
}

TEST_CASE("SmolLM2's greedy continuations are the reference's up to the first near tie, alone or in one batch",
          "[llm][smollm2][slow][host]") {
  SmolLM2& m = model();
  std::vector<Request> requests;
  for (const nlohmann::json& prompt : m.golden.at("prompts")) {
    Request request;
    prompt.at("prompt_ids").get_to(request.prompt_ids);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 48;
    request.sampling.ignore_eos = true;
    requests.push_back(std::move(request));
  }
  const std::vector<Completion> together = m.engine.generate(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const nlohmann::json& prompt = m.golden.at("prompts")[i];
    INFO(prompt.at("name").get<std::string>());
    const auto margins = prompt.at("greedy_margins").get<std::vector<double>>();
    auto expected = prompt.at("greedy_ids").get<std::vector<TokenId>>();
    const auto tie = std::find_if(margins.begin(), margins.end(), [](double margin) { return margin <= 0.01; });
    const bool is_clear = tie == margins.end();
    expected.resize(static_cast<std::size_t>(tie - margins.begin()));
    std::vector<TokenId> got = together[i].output_ids;
    REQUIRE(got.size() == 48);
    got.resize(expected.size());
    CHECK(got == expected);
    if (is_clear) { CHECK(together[i].text == prompt.at("greedy_text").get<std::string>()); }
    if (i % 6 == 0) { CHECK(m.engine.generate({requests[i]}).front().output_ids == together[i].output_ids); }
  }
}

}  // namespace smollm2_test
