#pragma once
/// Vocabularies, logits and requests that the sampling test checks and the sampling benchmark times.

#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace nvl_test {

inline constexpr std::array<int, 7> sampling_vocabs{1, 7, 1000, 1024, 1025, 49152, 151936};

/// What a request adds to its SamplingRow.
struct SamplingExtras {
  std::vector<nvl::LogitBias> bias;
  std::vector<nvl::TokenId> banned;
  std::vector<nvl::TokenId> history;
};

struct SamplingSetting {
  std::string name;
  nvl::SamplingRow row;
  int num_bias = 0, num_banned = 0, num_history = 0;  // drawn from the vocabulary, with repetitions

  bool is_general() const { return name != "greedy" && name != "plain" && name != "cool" && name != "hot"; }

  bool is_timed() const {
    for (const char* timed : {"greedy", "plain", "top_k 50", "top_k 50, top_p 0.9", "top_p 0.95", "min_p 0.1", "top_k 1025",
                              "penalties", "logprobs 20, cool", "everything"}) {
      if (name == timed) { return true; }
    }
    return false;
  }

  SamplingExtras extras(int vocab, unsigned seed) const {
    std::mt19937 random(seed);
    const auto draw = [&] { return static_cast<nvl::TokenId>(random() % static_cast<unsigned>(vocab)); };
    SamplingExtras e;
    for (int i = 0; i < num_bias; ++i) { e.bias.push_back({draw(), static_cast<float>(random() % 400) / 50.0f - 4.0f}); }
    for (int i = 0; i < num_banned; ++i) { e.banned.push_back(draw()); }
    for (int i = 0; i < num_history; ++i) { e.history.push_back(i % 3 == 2 ? e.history.back() : draw()); }
    return e;
  }
};

inline std::vector<SamplingSetting> sampling_settings() {
  std::vector<SamplingSetting> all;
  const auto add = [&](const char* name, auto&& change, int num_bias = 0, int num_banned = 0, int num_history = 0) {
    nvl::SamplingRow row;
    row.temperature = 1.0f;
    row.seed = 42 + 1000 * all.size();
    row.choice = static_cast<std::uint32_t>(all.size() % 3);
    row.output_index = static_cast<std::uint32_t>(7 * all.size());
    change(row);
    all.push_back({name, row, num_bias, num_banned, num_history});
  };
  using Row = nvl::SamplingRow;
  const auto penalise = [](Row& r) {
    r.repetition_penalty = 1.3f, r.presence_penalty = 0.4f, r.frequency_penalty = 0.2f, r.num_prompt = 3;
  };
  add("greedy", [](Row& r) { r.temperature = 0.0f; });
  add("plain", [](Row&) {});
  add("cool", [](Row& r) { r.temperature = 0.6f; });
  add("hot", [](Row& r) { r.temperature = 100.0f; });
  add("icy, general", [](Row& r) { r.temperature = 1e-30f, r.min_p = 1e-3f; });
  add("top_k 1", [](Row& r) { r.top_k = 1; });
  add("top_k 2", [](Row& r) { r.top_k = 2, r.temperature = 3.0f; });
  add("top_k 50", [](Row& r) { r.top_k = 50; });
  add("top_k 1024", [](Row& r) { r.top_k = 1024, r.temperature = 2.0f; });
  add("top_k 1025", [](Row& r) { r.top_k = 1025, r.temperature = 2.0f; });
  add("top_k 20000, top_p 0.7", [](Row& r) { r.top_k = 20000, r.top_p = 0.7f, r.temperature = 3.0f; });
  add("top_k beyond the vocabulary", [](Row& r) { r.top_k = 1 << 30; });
  add("top_p 0.5", [](Row& r) { r.top_p = 0.5f; });
  add("top_p 0.9, cool", [](Row& r) { r.top_p = 0.9f, r.temperature = 0.3f; });
  add("top_p 0.95", [](Row& r) { r.top_p = 0.95f; });
  add("top_p 0.99, hot", [](Row& r) { r.top_p = 0.99f, r.temperature = 4.0f; });
  add("top_p nearly 1", [](Row& r) { r.top_p = 0.99999994f; });
  add("tiny top_p", [](Row& r) { r.top_p = 1e-6f; });
  add("min_p 0.1", [](Row& r) { r.min_p = 0.1f; });
  add("min_p 1", [](Row& r) { r.min_p = 1.0f; });
  add("top_k 50, top_p 0.9", [](Row& r) { r.top_k = 50, r.top_p = 0.9f; });
  add("top_k 40, top_p 0.95, min_p 0.05", [](Row& r) { r.top_k = 40, r.top_p = 0.95f, r.min_p = 0.05f, r.temperature = 1.5f; });
  add("top_p 0.9, min_p 0.02", [](Row& r) { r.top_p = 0.9f, r.min_p = 0.02f, r.temperature = 1.5f; });
  add(
      "bias", [](Row&) {}, 40);
  add(
      "banned, greedy", [](Row& r) { r.temperature = 0.0f; }, 0, 20);
  add("penalties", penalise, 0, 0, 300);
  add(
      "penalties, greedy", [&](Row& r) { penalise(r), r.temperature = 0.0f; }, 0, 0, 1000);
  add(
      "long history", [&](Row& r) { penalise(r), r.num_prompt = 20000; }, 0, 0, 30000);
  add(
      "everything",
      [&](Row& r) { penalise(r), r.top_k = 100, r.top_p = 0.9f, r.min_p = 0.01f, r.temperature = 0.8f, r.num_logprobs = 20; }, 10,
      5, 500);
  add(
      "everything but top_k", [&](Row& r) { penalise(r), r.top_p = 0.9f, r.num_logprobs = 3; }, 10, 5, 500);
  add("logprobs 0, greedy", [](Row& r) { r.temperature = 0.0f, r.num_logprobs = 0; });
  add("logprobs 5", [](Row& r) { r.num_logprobs = 5; });
  add("logprobs 20, cool", [](Row& r) { r.num_logprobs = 20, r.temperature = 0.7f; });
  return all;
}

/// Kinds of rows: what makes thresholds easy or hard to find.
inline constexpr int num_logit_kinds = 7;
inline std::vector<float> sampling_logits(int vocab, int kind, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> logits(static_cast<std::size_t>(vocab));
  for (float& l : logits) {
    const float x = normal(random);
    switch (kind) {
      case 0: l = x; break;                            // flat
      case 1: l = 3.0f * x; break;                     // as of a model
      case 2: l = std::round(2.0f * x) / 2.0f; break;  // many equal
      case 3: l = -1.5f; break;                        // all equal
      case 4: l = 20.0f + 30.0f * x; break;            // nearly certain
      case 5: l = 1e-3f * x; break;                    // uniform, around zero
      default: l = x < 0.0f ? -0.0f : 0.0f; break;     // zeros of both signs
    }
  }
  if (kind == 0 && vocab > 500) { logits[static_cast<std::size_t>(vocab) / 3] = 300.0f * static_cast<float>(seed % 2); }
  return logits;
}

}  // namespace nvl_test
