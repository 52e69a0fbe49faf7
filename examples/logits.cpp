/// nvl-logits: what the model thinks comes next, at each position of a prompt. For comparing implementations.

#include "support/open_llm.hpp"
#include "support/prompts.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace nvl_examples;

/// {"position": 3, "top": [[id, logit], ...]}: the `top` largest, the lower id first among equals. Logits have as many digits
/// as it takes to read the same float back.
std::string position_json(std::int32_t position, std::span<const float> logits, std::size_t top,
                          std::vector<std::int32_t>& order) {
  order.resize(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(top, order.size());
  const auto logit = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::int32_t a, std::int32_t b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
  std::string line = "{\"position\": " + std::to_string(position) + ", \"top\": [";
  char digits[32];
  for (std::size_t i = 0; i < count; ++i) {
    const auto [end, error] = std::to_chars(digits, digits + sizeof digits, logit(order[i]));
    line += (i == 0 ? "[" : ", [") + std::to_string(order[i]) + ", ";
    line.append(digits, end);
    line += ']';
  }
  return line + "]}\n";
}

int logits(int argc, char** argv) {
  OptionParser parser(
      "nvl-logits", "Shows, for each position of a prompt, the likeliest next tokens with their logits: a JSON line a position.");
  ModelOptions model;
  PromptOptions prompt;
  CapacityOptions capacity;
  std::int32_t top = 10;
  bool last = false;
  model.add_model_to(parser);
  prompt.add_to(parser, false);
  parser.group("Output");
  parser.option("--top", top, "N", "Tokens a position. Default: 10.");
  parser.flag("--last", last, "Only the last position.");
  parser.group("Machine");
  model.add_device_to(parser);
  capacity.add_to(parser);
  parser.footer("Example:\n  nvl-logits -m model.gguf -p \"The sky is\" --top 5");
  if (!parser.parse(argc, argv)) { return 0; }
  model.validate();
  if (top < 1) { throw UsageError("--top is " + std::to_string(top) + ": must be at least 1"); }

  const std::vector<Prompt> items = prompt.read();
  nvl::LLM llm = open_llm("nvl-logits", model, capacity.over({}));
  const std::vector<nvl::TokenId> ids = prompt.encode(llm.tokenizer(), items.front());
  const auto last_position = static_cast<std::int32_t>(ids.size()) - 1;
  Progress bar("computing");
  std::vector<std::int32_t> order;
  bool finite = true;
  llm.engine().prompt_logits(ids, [&](std::int32_t position, std::span<const float> row) {
    bar.update(static_cast<double>(position) / static_cast<double>(ids.size()));
    if (last && position != last_position) { return; }
    finite = finite && std::all_of(row.begin(), row.end(), [](float value) { return std::isfinite(value); });
    if (!finite) { return; }
    const std::string line = position_json(position, row, static_cast<std::size_t>(top), order);
    std::fwrite(line.data(), 1, line.size(), stdout);
  });
  if (!finite) {
    throw UsageError("the model's logits are not finite (NaN or infinity): --check-tensors looks for them in its weights");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("nvl-logits", [&] { return logits(argc, argv); });
}
