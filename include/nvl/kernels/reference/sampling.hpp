#pragma once
/// Oracle of the samplers: the probability of every token, in double precision, by sorting the whole vocabulary.
///
/// Definitions, in the order in which they act:
///   bias, penalties  l' = l + bias; then for tokens of the history l' / r if l' > 0 else l' * r (r = repetition_penalty, Keskar
///                    et al. 2019, arXiv:1909.05858, with the sign rule of Hugging Face transformers), minus frequency_penalty
///                    times the occurrences in the output, minus presence_penalty if there is one
///   temperature      p = softmax(l' / temperature); temperature 0 puts everything on the most likely token
///   top-k            the k most likely; equal logits by ascending id
///   top-p            the shortest run of the most likely whose probability, renormalised over top-k, reaches p (Holtzman et al.
///                    2020, arXiv:1904.09751)
///   min-p            those with at least min_p times the probability of the most likely (Nguyen et al. 2024, arXiv:2407.01082)

#include <nvl/core/config.hpp>
#include <nvl/core/ids.hpp>
#include <nvl/core/step.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <vector>

namespace nvl::inline NVL_ABI {
namespace reference {

/// What a row of logits means to its request.
struct SamplingDistribution {
  std::vector<double> logits;          // [vocab] after bias and penalties; banned: -infinity
  std::vector<double> logprobs;        // [vocab] after temperature, before top-k/top-p/min-p
  std::vector<double> probabilities;   // [vocab] that a draw follows; 0 for what was cut off
  std::vector<TokenId> by_likelihood;  // tokens that are not banned, most likely first
  double top_p_margin = 1;             // distance of top_p to the nearest probability at which its set changes
};

/// `logits`: [vocab], finite. The ranges of `options` point into `in`. At least one token is not banned.
inline SamplingDistribution sampling_distribution(std::span<const float> logits, const StepInput& in,
                                                  const SamplingRow& options) {
  SamplingDistribution d;
  d.logits.assign(logits.begin(), logits.end());
  const auto at = [](std::vector<double>& values, TokenId id) -> double& { return values.at(static_cast<std::size_t>(id)); };

  for (std::uint32_t i = options.bias.begin; i < options.bias.end; ++i) {
    at(d.logits, in.logit_bias[i].token) += in.logit_bias[i].bias;
  }
  std::set<TokenId> seen;
  std::map<TokenId, int> output_count;
  for (std::uint32_t i = 0; i < options.history.size(); ++i) {
    const TokenId id = in.history[options.history.begin + i];
    seen.insert(id);
    if (i >= options.num_prompt) { ++output_count[id]; }
  }
  for (const TokenId id : seen) {
    double& l = at(d.logits, id);
    l = l > 0 ? l / double{options.repetition_penalty} : l * double{options.repetition_penalty};
  }
  for (const auto& [id, count] : output_count) {
    at(d.logits, id) -= double{options.frequency_penalty} * count + double{options.presence_penalty};
  }
  for (std::uint32_t i = options.banned.begin; i < options.banned.end; ++i) {
    at(d.logits, in.banned[i]) = -std::numeric_limits<double>::infinity();
  }

  std::vector<TokenId>& order = d.by_likelihood;
  order.resize(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return at(d.logits, a) > at(d.logits, b); });
  while (!order.empty() && std::isinf(at(d.logits, order.back()))) { order.pop_back(); }

  const bool greedy = options.temperature == 0.0f;
  const double temperature = greedy ? 1.0 : double{options.temperature};
  const double max = at(d.logits, order.front());
  double total = 0;
  for (const TokenId id : order) { total += std::exp((at(d.logits, id) - max) / temperature); }
  for (const double l : d.logits) { d.logprobs.push_back((l - max) / temperature - std::log(total)); }

  std::size_t kept = greedy ? 1 : order.size();
  const auto mass_of = [&](std::size_t count) {
    double mass = 0;
    for (std::size_t i = 0; i < count; ++i) { mass += std::exp(at(d.logprobs, order[i])); }
    return mass;
  };
  if (!greedy && options.top_k > 0) { kept = std::min(kept, static_cast<std::size_t>(options.top_k)); }
  if (!greedy && options.top_p < 1.0f) {
    const double wanted = double{options.top_p};
    const double renormalise = mass_of(kept);
    double reached = 0;
    std::size_t count = 0;
    while (count < kept && reached < wanted) {
      reached += std::exp(at(d.logprobs, order[count++])) / renormalise;
      d.top_p_margin = std::min(d.top_p_margin, std::abs(reached - wanted));
    }
    kept = std::max<std::size_t>(count, 1);
  }
  if (!greedy && options.min_p > 0.0f) {
    const double lowest = d.logprobs.at(static_cast<std::size_t>(order.front())) + std::log(double{options.min_p});
    while (kept > 1 && at(d.logprobs, order[kept - 1]) < lowest) { --kept; }
  }
  const double renormalise = mass_of(kept);
  d.probabilities.assign(logits.size(), 0.0);
  for (std::size_t i = 0; i < kept; ++i) { at(d.probabilities, order[i]) = std::exp(at(d.logprobs, order[i])) / renormalise; }
  return d;
}

}  // namespace reference
}  // namespace nvl::inline NVL_ABI
