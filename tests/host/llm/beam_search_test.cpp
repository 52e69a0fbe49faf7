// Beam search over tiny models against what Hugging Face transformers finds (tests/golden/make_beam_goldens.py).

#include <nvl/io/checkpoint.hpp>
#include <nvl/nvl.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/tiny_golden.hpp"

namespace beam_search_test {

using namespace nvl;
using namespace nvl_test;

namespace {

using FloatEngine = DefaultCpuEngine<float>;

struct BeamCase {
  std::string name;
  Request request;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<double> scores;
};

std::map<std::string, std::vector<BeamCase>> cases_by_model() {
  const std::map<std::string, EarlyStopping> early{
      {"no", EarlyStopping::no}, {"yes", EarlyStopping::yes}, {"never", EarlyStopping::never}};
  std::map<std::string, std::vector<BeamCase>> all;
  const nlohmann::json file = read_json(tiny_model_path("beams.json"));
  for (const nlohmann::json& json : file.at("cases")) {
    const auto model = json.at("model").get<std::string>();
    const Golden golden = read_golden(tiny_model_path(model + "/golden.json"));
    BeamCase one;
    one.name = json.dump().substr(0, 160);
    one.request.prompt_ids = golden.prompts.at(json.at("prompt").get<std::size_t>()).ids;
    SamplingParams& sampling = one.request.sampling;
    sampling.ignore_eos = true;  // the case has stop tokens of its own
    sampling.beam_width = sampling.n = json.at("width").get<std::int32_t>();
    sampling.length_penalty = json.at("length_penalty").get<float>();
    sampling.early_stopping = early.at(json.at("early_stopping").get<std::string>());
    sampling.max_tokens = json.at("max_tokens").get<std::int32_t>();
    json.at("stop_ids").get_to(sampling.stop_token_ids);
    json.at("tokens").get_to(one.tokens);
    json.at("scores").get_to(one.scores);
    all[model].push_back(std::move(one));
  }
  return all;
}

void check_case(const Completion& done, const BeamCase& expected) {
  INFO(expected.name);
  std::vector<Choice> choices{done};
  choices.insert(choices.end(), done.others.begin(), done.others.end());
  REQUIRE(choices.size() == expected.tokens.size());
  for (std::size_t i = 0; i < choices.size(); ++i) {
    CHECK(choices[i].output_ids == expected.tokens[i]);
    const double length = static_cast<double>(choices[i].output_ids.size());
    const double score = choices[i].cumulative_logprob / std::pow(length, double{expected.request.sampling.length_penalty});
    CHECK(std::abs(score - expected.scores[i]) < 1e-3);
    CHECK(choices[i].finish_reason == (choices[i].stop_token >= 0 ? FinishReason::stop : FinishReason::length));
  }
}

}  // namespace

TEST_CASE("tiny models find the beams of Hugging Face, alone, together and with few blocks", "[llm][golden][host]") {
  std::size_t num_cases = 0, num_stopped = 0;
  for (const auto& [model, cases] : cases_by_model()) {
    INFO(model);
    const Checkpoint checkpoint = Checkpoint::open(tiny_model_path(model));
    const Float32Weights weights(checkpoint);
    FloatEngine engine(checkpoint.config(), weights, tiny_model_options());
    std::vector<Request> requests;
    for (const BeamCase& one : cases) {
      requests.push_back(one.request);
      const Completion done = engine.generate({one.request}).front();
      check_case(done, one);
      ++num_cases;
      num_stopped += done.finish_reason == FinishReason::stop ? 1 : 0;
    }
    EngineOptions scarce = tiny_model_options();
    scarce.num_blocks = 8;
    scarce.max_num_seqs = 6;
    FloatEngine crowded(checkpoint.config(), weights, scarce);
    const std::vector<Completion> together = crowded.generate(requests);
    for (std::size_t i = 0; i < cases.size(); ++i) { check_case(together[i], cases[i]); }
    CHECK(crowded.stats().num_free_blocks == 8);
  }
  CHECK(num_cases >= 50);
  CHECK(num_stopped >= 10);
}

}  // namespace beam_search_test
