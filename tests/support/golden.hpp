#pragma once
/// Golden files of tests/data/tiny_models, in the form that their README.md describes.

#include <nvl/core/ids.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace nvl_test {

struct GoldenPrompt {
  std::vector<nvl::TokenId> ids;
  std::vector<nvl::TokenId> greedy_ids;
  std::vector<std::vector<nvl::TokenId>> top_ids;
  std::vector<std::vector<double>> top_logits;
  std::vector<std::vector<double>> column_logits;
  std::vector<double> logsumexp;
  std::vector<std::vector<double>> logits;  // empty for long prompts
};

struct Golden {
  double tolerance = 0;
  std::vector<std::size_t> columns;
  std::vector<GoldenPrompt> prompts;
};

inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) { throw std::runtime_error("cannot open " + path.string()); }
  return nlohmann::json::parse(file);
}

inline Golden read_golden(const std::filesystem::path& path) {
  const nlohmann::json json = read_json(path);
  Golden golden;
  golden.tolerance = json.at("tolerance").get<double>();
  json.at("columns").get_to(golden.columns);
  for (const nlohmann::json& entry : json.at("prompts")) {
    GoldenPrompt prompt;
    entry.at("ids").get_to(prompt.ids);
    entry.at("greedy_ids").get_to(prompt.greedy_ids);
    entry.at("top_ids").get_to(prompt.top_ids);
    entry.at("top_logits").get_to(prompt.top_logits);
    entry.at("column_logits").get_to(prompt.column_logits);
    entry.at("logsumexp").get_to(prompt.logsumexp);
    if (entry.contains("logits")) { entry.at("logits").get_to(prompt.logits); }
    golden.prompts.push_back(std::move(prompt));
  }
  return golden;
}

}  // namespace nvl_test
