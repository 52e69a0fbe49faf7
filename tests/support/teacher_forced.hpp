#pragma once
/// An engine's answer held against the logits that another computes for the same text.

#include <nvl/core/ids.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace nvl_test {

/// Logits of every position of `ids`, one row after the other.
template <class E>
std::vector<float> all_logits(E& engine, const std::vector<nvl::TokenId>& ids) {
  std::vector<float> logits;
  engine.prompt_logits(ids,
                       [&](std::int32_t, std::span<const float> row) { logits.insert(logits.end(), row.begin(), row.end()); });
  return logits;
}

inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) { return std::numeric_limits<float>::infinity(); }
  float worst = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    worst = std::isfinite(difference) ? std::max(worst, difference) : std::numeric_limits<float>::infinity();
  }
  return worst;
}

/// What a judge says of the ids that were chosen, each after the text that was there by then.
struct Judgement {
  int num_decided = 0;       // positions where the judge prefers one id by more than the margin asked for
  int num_wrong = 0;         // of these, with another id chosen
  float largest_regret = 0;  // over all positions: its best logit less that of the id chosen
};

/// \param logits of the judge for every position of the text, one row after the other
/// \param first position of the first chosen id
inline Judgement judge(const std::vector<float>& logits, const std::vector<nvl::TokenId>& text, std::size_t first, float margin) {
  const std::size_t vocab = logits.size() / text.size();
  Judgement said;
  for (std::size_t at = first; at < text.size(); ++at) {
    const std::span<const float> row = std::span(logits).subspan((at - 1) * vocab, vocab);
    const auto best = static_cast<std::size_t>(std::max_element(row.begin(), row.end()) - row.begin());
    float second = -std::numeric_limits<float>::infinity();
    for (std::size_t id = 0; id < vocab; ++id) {
      if (id != best) { second = std::max(second, row[id]); }
    }
    const auto chosen = static_cast<std::size_t>(text[at]);
    said.largest_regret = std::max(said.largest_regret, row[best] - row[chosen]);
    if (row[best] - second <= margin) { continue; }
    ++said.num_decided;
    said.num_wrong += chosen == best ? 0 : 1;
  }
  return said;
}

}  // namespace nvl_test
