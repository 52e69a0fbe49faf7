/// nvl-generate: continues prompts. Text comes as it is made; many prompts are computed together.

#include "support/abort_guard.hpp"
#include "support/open_llm.hpp"
#include "support/prompts.hpp"

#include <nvl/core/error.hpp>
#include <nvl/engine/request.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace nvl_examples;

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void add_answer(nlohmann::ordered_json& json, const nvl::Choice& choice) {
  json["output_ids"] = choice.output_ids;
  json["text"] = choice.text;
  json["finish_reason"] = nvl::to_string(choice.finish_reason);
  if (!choice.stop_string.empty()) {
    json["stop_reason"] = choice.stop_string;
  } else if (choice.stop_token >= 0) {
    json["stop_reason"] = choice.stop_token;
  }
}

/// \param ranked whether the sum of its log-probabilities is known and ranks it
void add_logprobs(nlohmann::ordered_json& json, const nvl::Choice& choice, bool ranked) {
  if (ranked) { json["cumulative_logprob"] = choice.cumulative_logprob; }
  if (choice.logprobs.empty()) { return; }
  auto& tokens = json["logprobs"] = nlohmann::ordered_json::array();
  for (const nvl::SampledToken& token : choice.logprobs) {
    nlohmann::ordered_json top = nlohmann::ordered_json::array();
    for (const nvl::TokenLogprob& entry : token.top_logprobs) { top.push_back({entry.token, entry.logprob}); }
    tokens.push_back({{"id", token.token}, {"logprob", token.logprob}, {"top", std::move(top)}});
  }
}

nlohmann::ordered_json to_json(const nvl::Completion& done, bool ranked) {
  nlohmann::ordered_json json;
  json["prompt_ids"] = done.prompt_ids;
  add_answer(json, done);
  if (!done.error.empty()) { json["error"] = done.error; }
  const auto milliseconds = [](double seconds) { return std::round(1e6 * seconds) / 1e3; };
  json["timings"] = {{"queue_ms", milliseconds(done.timings.queue)},
                     {"ttft_ms", milliseconds(done.timings.ttft)},
                     {"tpot_ms", milliseconds(done.timings.tpot)},
                     {"e2e_ms", milliseconds(done.timings.e2e)}};
  json["num_cached_tokens"] = done.num_cached_tokens;
  json["seed"] = done.seed;
  add_logprobs(json, done, ranked);
  for (const nvl::Choice& other : done.others) {
    auto& further = json["others"].emplace_back();
    add_answer(further, other);
    add_logprobs(further, other, ranked);
  }
  return json;
}

void print_json(const nvl::Completion& done, bool ranked) {
  print(to_json(done, ranked).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void print_answer(const std::string& name, const std::string& text) {
  print("[" + name + "]\n" + text + (text.ends_with('\n') ? "" : "\n"));
}

std::string speed_text(const nvl::Completion& done) {
  char text[160];
  std::snprintf(text, sizeof text, "%zu prompt tokens, first token after %.0f ms, %zu output tokens at %.1f tokens/s",
                done.prompt_ids.size(), 1e3 * done.timings.ttft, done.output_ids.size(),
                done.timings.tpot > 0 ? 1 / done.timings.tpot : 0.0);
  return text;
}

/// Runs all requests together and hands results over in the order of the prompts, each as soon as those before it are done.
class Batch {
 public:
  Batch(nvl::AnyEngine& engine, std::size_t size) : engine_(engine), results_(size), guard_(engine) {}

  void submit(std::size_t index, nvl::Request request, std::function<void(const nvl::TokenEvent&)> on_token = {}) {
    const auto on_finish = [this, index](const nvl::Completion& done) {
      results_[index] = done;
      ++num_done_;
    };
    guard_.add(engine_.submit(std::move(request), {.on_token = std::move(on_token), .on_finish = on_finish}));
  }

  /// Calls `use(index, completion)` for each result. \return whether none ended with an error
  template <class Use>
  bool run(Progress& bar, Use&& use) {
    bool ok = true;
    std::size_t next = 0;
    while (next < results_.size()) {
      engine_.step();
      bar.update(static_cast<double>(num_done_) / static_cast<double>(results_.size()),
                 std::to_string(num_done_) + " of " + std::to_string(results_.size()));
      for (; next < results_.size() && results_[next]; ++next) {
        bar.clear();
        use(next, *results_[next]);
        ok = ok && results_[next]->error.empty();
        *results_[next] = {};
      }
    }
    return ok;
  }

 private:
  nvl::AnyEngine& engine_;
  std::vector<std::optional<nvl::Completion>> results_;
  std::size_t num_done_ = 0;
  AbortGuard guard_;
};

int generate(int argc, char** argv) {
  OptionParser parser("nvl-generate", "Continues a prompt, or answers it with --chat.");
  ModelOptions model;
  PromptOptions prompts;
  SamplingOptions sampling;
  CapacityOptions capacity;
  bool json = false;
  model.add_model_to(parser);
  prompts.add_to(parser, true);
  sampling.add_to(parser, true);
  sampling.add_choices_to(parser);
  parser.group("Output");
  parser.flag("--json", json,
              "One JSON object a prompt: prompt_ids, output_ids, text, finish_reason, timings and more, and the further answers "
              "as others.");
  parser.group("Machine");
  model.add_device_to(parser);
  capacity.add_to(parser);
  parser.footer(
      "Examples:\n"
      "  nvl-generate -m model.gguf -p \"The sky is\" -n 32 --temp 0\n"
      "  nvl-generate -m model.gguf --chat -p \"Why is the sky blue?\"\n"
      "  nvl-generate -m model.gguf --prompts-file prompts.jsonl --json");
  if (!parser.parse(argc, argv)) { return 0; }
  model.validate();
  if (sampling.logprobs && !json) { throw UsageError("--logprobs needs --json: text has no place for them"); }

  const std::vector<Prompt> items = prompts.read();
  const auto num_choices = static_cast<std::size_t>(std::max(1, sampling.over({}).num_choices()));
  nvl::EngineOptions options;
  options.max_num_seqs = static_cast<std::int32_t>(std::min<std::size_t>(items.size() * num_choices, 64));
  nvl::LLM llm = open_llm("nvl-generate", model, capacity.over(options));
  const nvl::SamplingParams params = sampling.over(llm.default_sampling());

  const bool streams = items.size() == 1 && num_choices == 1 && !json;
  Batch batch(llm.engine(), items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    nvl::Request request{.prompt_ids = prompts.encode(llm.tokenizer(), items[i]), .sampling = params};
    std::function<void(const nvl::TokenEvent&)> on_token;
    if (streams) {
      on_token = [](const nvl::TokenEvent& event) { print(event.text); };
    }
    try {
      batch.submit(i, std::move(request), std::move(on_token));
    } catch (const nvl::InvalidArgument& error) { throw UsageError(PromptOptions::at(items[i], error.what())); }
  }

  Progress bar("generating");
  std::string first_error;
  const bool ok = batch.run(bar, [&](std::size_t i, const nvl::Completion& done) {
    if (json) {
      print_json(done, params.has_rivals());
    } else if (streams) {
      if (!done.text.ends_with('\n')) { print("\n"); }
      if (is_terminal(stderr)) { print_note("[" + speed_text(done) + "]"); }
    } else {
      const std::string name = std::to_string(i + 1);
      print_answer(done.others.empty() ? name : name + ".1", done.text);
      for (std::size_t c = 0; c < done.others.size(); ++c) {
        print_answer(name + "." + std::to_string(c + 2), done.others[c].text);
      }
    }
    if (first_error.empty() && !done.error.empty()) { first_error = PromptOptions::at(items[i], done.error); }
  });
  if (!ok) { throw UsageError(first_error); }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("nvl-generate", [&] { return generate(argc, argv); });
}
